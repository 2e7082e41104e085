"""Events of equal length: the baseline that any segmentation must beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.checks import check_count
from videoprune.method import SegmentMethod
from videoprune.run import Events


def equal_spans(frames: int, events: int) -> Tensor:
    """(F,) int64 event of each frame; lengths differ by at most 1, and no event is empty where events <= F."""
    return torch.arange(frames) * events // max(frames, 1)


@dataclass(frozen=True, kw_only=True)
class Uniform(SegmentMethod):
    """Spans of equal length, looked up on the clock alone.

    Args:
        events: how many; a film of fewer frames has an event a frame.
        key_events: events that get more tokens, the most relevant to the question.
    """

    paper = "a baseline of ours: equal spans"
    scope = "video"
    needs_question = False
    fixed_count = True
    attention = "none"

    events: int = 5
    key_events: int = 3

    def __post_init__(self) -> None:
        check_count("events", self.events)
        check_count("key_events", self.key_events)

    def __call__(self, features: Tensor) -> Events:
        frames = len(features)
        return Events(equal_spans(frames, min(self.events, frames)).to(features.device))

    def rank(self, events: Events, relevance: Tensor) -> Events:
        return events.ranked(relevance, self.key_events)
