"""What every stage sees of the whole: the events, the question, and what earlier stages published."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Events:
    """A partition of the F sampled frames into E consecutive events.

    Attributes:
        frame_event: (F,) int64, the event of each frame, ascending from 0.
        score: (E,) float, the event's relevance to the question; None before a question is known.
        key: (E,) bool, which events are key to the question; None before a question is known.
        similarity: (F-1,) float, similarity of adjacent frames, where the segmenter computed it (for reports).
    """

    frame_event: Tensor
    score: Tensor | None = None
    key: Tensor | None = None
    similarity: Tensor | None = None

    @classmethod
    def from_cuts(cls, cuts: Tensor, frames: int, similarity: Tensor | None = None) -> Events:
        """Events from cut points: a cut t ends an event at frame t (inclusive); `cuts` ascending, each in 0..F-2."""
        if len(cuts) and (int(cuts.min()) < 0 or int(cuts.max()) > frames - 2):
            raise ValueError(f"cuts {cuts.tolist()} leave the {frames} frames; allowed are 0..{frames - 2}")
        starts = torch.zeros(frames, dtype=torch.int64, device=cuts.device)
        starts[cuts + 1] = 1
        return cls(starts.cumsum(0), similarity=similarity)

    @classmethod
    def single(cls, frames: int) -> Events:
        """One event that holds every frame: what a pipeline without a segmenter works with."""
        return cls(torch.zeros(frames, dtype=torch.int64))

    def __len__(self) -> int:
        return int(self.frame_event[-1]) + 1 if len(self.frame_event) else 0

    @property
    def frames_each(self) -> Tensor:
        """(E,) number of frames in each event."""
        return torch.bincount(self.frame_event, minlength=len(self))

    @property
    def bounds(self) -> Tensor:
        """(E, 2) first and last frame (inclusive) of each event."""
        counts = self.frames_each
        last = counts.cumsum(0) - 1
        return torch.stack((last - counts + 1, last), dim=1)

    def ranked(self, relevance: Tensor, key_events: int) -> Events:
        """Score each event by its most relevant frame and call the `key_events` best ones key (METok, stage 1)."""
        score = torch.full((len(self),), -torch.inf, device=relevance.device)
        score = score.scatter_reduce(0, self.frame_event.to(relevance.device), relevance.float(), "amax")
        best = torch.argsort(score, descending=True, stable=True)[:key_events]
        key = torch.zeros(len(self), dtype=torch.bool, device=relevance.device)
        key[best] = True
        return replace(self, score=score, key=key)


@dataclass(eq=False)
class Run:
    """One question on one film, as the stages see it.

    Attributes:
        events: the film's events; scored and with key events once the question is known.
        relevance: (F,) relevance of each frame to the question, None where no stage asked for it.
        question: (Q, D) embeddings of the question's tokens, None in the question-blind part.
        published: what stages leave for later ones under their own name (METok's decode stage reads its prefill layers).
        seed: for the methods that draw at random.
    """

    events: Events
    relevance: Tensor | None = None
    question: Tensor | None = None
    published: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def generator(self, salt: int = 0) -> torch.Generator:
        """A CPU generator that depends on the seed and `salt` alone (a layer, say), so that runs repeat."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + salt)
