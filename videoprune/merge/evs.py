"""EVS, efficient video sampling: drop tokens that repeat what stood at their place a frame before (arXiv 2510.14624)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.method import MergeMethod
from videoprune.ops.attention import keep_best
from videoprune.ops.similarity import pair_cosine
from videoprune.run import Run
from videoprune.tokens import VisualTokens

FIRST = 255.0  # score of a token that nothing stands before: above every distance, as in the public code
SCORE = "evs"  # where `arrive` leaves it
Carried = tuple[Tensor, Tensor]


def dissimilarity(features: Tensor, frame: Tensor, place: Tensor) -> Tensor:
    """1 - cosine of each token with the one at its place in the frame before; 255 where there is none.

    Args:
        features: (T, D).
        frame: (T,) int64.
        place: (T,) int64, the token's number on the frame's grid. Where a place is missing in the frame before, the
            latest earlier frame that has it is taken (ours; a full grid misses none).

    Returns:
        (T,) float32.
    """
    order = torch.argsort(frame, stable=True)
    order = order[torch.argsort(place[order], stable=True)]
    later, before = order[1:], order[:-1]
    score = torch.full((len(features),), FIRST, device=features.device)
    distance = 1 - pair_cosine(features, later, before)
    return score.index_copy_(0, later, distance.where(place[later] == place[before], FIRST))


def _place(tokens: VisualTokens) -> Tensor:
    """(T,) number of each token's cell on its frame's grid."""
    return tokens.cell[:, 0] * tokens.grid[1] + tokens.cell[:, 1]


@dataclass(frozen=True, kw_only=True)
class EVS(MergeMethod):
    """Keeps the tokens that changed most, wherever in the film they are; the first frame comes before all others.

    A budget below one frame keeps the first tokens of the first frame, and no more than the budget (the public code
    raises it to one frame). Added rows (newline, summary) stay.
    """

    paper = "arXiv 2510.14624"
    scope = "video"
    ranked = True
    needs_question = False
    fixed_count = True
    attention = "none"

    keep: float | int | None = 0.25

    def arrive(self, tokens: VisualTokens, carried: Carried | None) -> tuple[VisualTokens, Carried]:
        """Score a chunk against itself and the latest token of every place before it, (P, D) and (P,), which it carries on."""
        rows = (tokens.weight > 0).nonzero()[:, 0]
        features, place, frame = tokens.features[rows], _place(tokens)[rows], tokens.frame[rows] + 1
        if carried is not None:
            features, place = torch.cat((carried[0], features)), torch.cat((carried[1], place))
            frame = torch.cat((torch.zeros_like(carried[1]), frame))
        score = torch.zeros(len(tokens), device=features.device)
        score[rows] = dissimilarity(features, frame, place)[len(place) - len(rows) :]
        number = torch.arange(len(place), device=place.device)
        latest = torch.full((tokens.per_frame,), -1, device=place.device).scatter_reduce(0, place, number, "amax")
        latest = latest[latest >= 0]
        return tokens.with_scores(**{SCORE: score}), (features[latest], place[latest])

    def __call__(self, tokens: VisualTokens, run: Run) -> VisualTokens:
        rows = (tokens.weight > 0).nonzero()[:, 0]
        if SCORE in tokens.scores:
            score = tokens.scores[SCORE][rows]
        else:
            score = dissimilarity(tokens.features[rows], tokens.frame[rows], _place(tokens)[rows])
        stays = tokens.weight == 0
        stays[rows[keep_best(score, self.count(len(rows)))]] = True
        tokens = tokens.keep(stays.nonzero()[:, 0])
        return tokens.compacted() if self.positions == "compact" else tokens
