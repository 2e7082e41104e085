"""HoliTom's windows: those in which the most places stand still for the longest time (arXiv 2505.21334)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.checks import check_count, check_range
from videoprune.method import SegmentMethod
from videoprune.ops.similarity import adjacent_cosine
from videoprune.ops.windows import best_windows, static_counts
from videoprune.run import Events


def static_windows(similarity: Tensor, threshold: float, longest: int = 1024) -> Tensor:
    """The partition that maximises the sum over windows of (frames - 1) * places static through the window.

    Args:
        similarity: (F-1, N) cosine of each place with the same place in the next frame.
        threshold: a place is static between two frames where its cosine is above it.
        longest: frames of the longest window that is looked at; the table has F * longest entries.

    Returns:
        (W, 2) int64 first and last frame of each window; of equally good partitions the one with the shortest last one.
    """
    longest = min(longest, len(similarity) + 1)
    count = static_counts(similarity > threshold, longest)
    return best_windows(count * torch.arange(longest, device=count.device))


@dataclass(frozen=True, kw_only=True)
class HoliTom(SegmentMethod):
    """Windows by dynamic programming, so that merging static places over time saves the most tokens.

    The paper compares every place with itself; a segmenter here sees one vector a frame, one place. A window is then a
    run of frames whose adjacent cosines are all above the threshold, and a film without any is cut at every frame.

    Args:
        threshold: the paper's 0.80 where 15 % of the tokens or more are kept, 0.65 for 10 %.
        longest: frames of the longest window.
    """

    paper = "arXiv 2505.21334"
    scope = "video"
    needs_question = False
    fixed_count = False
    attention = "none"
    search = (("threshold", 0.5, 0.99),)

    threshold: float = 0.8
    longest: int = 1024

    def __post_init__(self) -> None:
        check_range("threshold", self.threshold, -1, 1)
        check_count("longest", self.longest)

    def __call__(self, features: Tensor) -> Events:
        similarity = adjacent_cosine(features)
        windows = static_windows(similarity[:, None], self.threshold, self.longest)
        cuts = windows[:-1, 1].to(features.device)
        return Events.from_cuts(cuts, len(features), similarity)
