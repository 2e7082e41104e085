"""FastVID's segments: a few cuts for certain, and one wherever adjacent frames differ enough (arXiv 2503.11187)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from videoprune.checks import check_count, check_range
from videoprune.method import SegmentMethod
from videoprune.ops.similarity import adjacent_cosine, smallest
from videoprune.run import Events


def dynamic_cuts(similarity: Tensor, segments: int, threshold: float) -> Tensor:
    """Frames after which the film is cut: the `segments` - 1 smallest similarities, and all below the threshold.

    Args:
        similarity: (F-1,) of adjacent frames. segments: least number of segments. threshold: cut below it.

    Returns:
        (C,) int64 ascending; ties go to the earlier frame.
    """
    return (smallest(similarity, segments - 1) | (similarity < threshold)).nonzero()[:, 0]


@dataclass(frozen=True, kw_only=True)
class FastVID(SegmentMethod):
    """At least `segments` events, more where the film changes more.

    The paper compares the outputs of SigLIP's pooling head; here a frame is the mean of its projected tokens, whose
    cosines lie in another range, so that the threshold may need another value.

    Args:
        segments: least number of events, c; a film of fewer frames has an event a frame.
        threshold: τ; adjacent frames with a smaller cosine are cut apart. 0.84 for Qwen2.5-VL.
    """

    paper = "arXiv 2503.11187"
    scope = "video"
    needs_question = False
    fixed_count = False
    attention = "none"
    search = (("segments", 1, 24), ("threshold", 0.5, 0.99))

    segments: int = 8
    threshold: float = 0.9

    def __post_init__(self) -> None:
        check_count("segments", self.segments)
        check_range("threshold", self.threshold, -1, 1)

    def __call__(self, features: Tensor) -> Events:
        similarity = adjacent_cosine(features)
        return Events.from_cuts(dynamic_cuts(similarity, self.segments, self.threshold), len(features), similarity)
