"""METok's events: cut the film where adjacent frames are least alike (arXiv 2506.02850, stage 1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.checks import check_count
from videoprune.method import SegmentMethod
from videoprune.ops.similarity import adjacent_cosine
from videoprune.run import Events


def cut_points(features: Tensor, cuts: int) -> Tensor:
    """Frames after which the film is cut: the `cuts` smallest cosines of adjacent frames, ties to the earlier one.

    Args:
        features: (F, D), the mean of each frame's projected tokens.
        cuts: how many; a film of F frames has at most F-1.

    Returns:
        (cuts,) int64 ascending; a cut t ends an event at frame t, inclusive.
    """
    return _lowest(adjacent_cosine(features), cuts)


def _lowest(similarity: Tensor, cuts: int) -> Tensor:
    return torch.argsort(similarity, stable=True)[:cuts].sort().values


@dataclass(frozen=True, kw_only=True)
class METok(SegmentMethod):
    """Always `cuts` + 1 events, found without a threshold; the `key_events` most relevant to the question are key.

    An event is as relevant as its most relevant frame. In a film of fewer than `cuts` + 1 frames every frame is its own
    event (ours; the released code asks for more frames). Frames without content (black: zero features) are like
    nothing, so that they are cut off first.

    Args:
        cuts: lowest adjacent similarities that are cut at (k of the released code; the paper counts events, one more).
        key_events: events that get more tokens.
    """

    paper = "arXiv 2506.02850"
    scope = "video"
    needs_question = False
    fixed_count = True
    attention = "none"
    search = (("cuts", 1, 12), ("key_events", 1, 8))

    cuts: int = 4
    key_events: int = 3

    def __post_init__(self) -> None:
        check_count("cuts", self.cuts, least=0)
        check_count("key_events", self.key_events)

    def __call__(self, features: Tensor) -> Events:
        similarity = adjacent_cosine(features)
        return Events.from_cuts(_lowest(similarity, self.cuts), len(features), similarity)

    def rank(self, events: Events, relevance: Tensor) -> Events:
        return events.ranked(relevance, self.key_events)
