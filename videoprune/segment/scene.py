"""Shot cuts: a frame differs from the one before far more than its neighbours do from theirs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from videoprune.checks import check_count, check_range
from videoprune.method import SegmentMethod
from videoprune.ops.similarity import adjacent_cosine
from videoprune.run import Events


def shot_cuts(change: Tensor, ratio: float, width: int, least: float) -> Tensor:
    """Frames after which the film is cut: change >= `least` and >= `ratio` * the mean change around it.

    Args:
        change: (F-1,) 1 - cosine of adjacent frames.
        ratio: how far a cut stands out. width: changes on either side that the mean is taken over, fewer at the ends.
        least: smallest change that is a cut.

    Returns:
        (C,) int64 ascending.
    """
    kernel = torch.ones(2 * width + 1, device=change.device)
    kernel[width] = 0
    rows = torch.stack((change.float(), torch.ones_like(change, dtype=torch.float32)))[:, None]
    total, count = functional.conv1d(rows, kernel[None, None], padding=width)[:, 0]
    return ((change >= least) & (change * count >= ratio * total)).nonzero()[:, 0]


@dataclass(frozen=True, kw_only=True)
class Scene(SegmentMethod):
    """As many events as the film has shots; a slow pan is no cut, because its neighbours change as much.

    Looks `width` frames ahead, so that events close as frames come.

    Args:
        ratio: change of a cut over the mean change around it.
        width: changes on either side that the mean is taken over.
        least: smallest 1 - cosine that is a cut.
    """

    paper = "a baseline of ours: shot cuts by adaptive threshold"
    scope = "video"
    needs_question = False
    fixed_count = False
    attention = "none"
    online = True

    ratio: float = 3.0
    width: int = 2
    least: float = 0.05

    def __post_init__(self) -> None:
        check_range("ratio", self.ratio, 1, 1000)
        check_count("width", self.width)
        check_range("least", self.least, 0, 2, open_low=True)

    def __call__(self, features: Tensor) -> Events:
        similarity = adjacent_cosine(features)
        if not len(similarity):
            return Events.single(len(features))
        return Events.from_cuts(
            shot_cuts(1 - similarity, self.ratio, self.width, self.least), len(features), similarity
        )
