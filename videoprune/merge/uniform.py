"""Evenly spaced tokens of the film: a baseline for the methods that look."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.method import MergeMethod
from videoprune.run import Run
from videoprune.tokens import VisualTokens


def spaced(total: int, count: int) -> Tensor:
    """(count,) int64 ascending: the middles of `count` equal parts of 0..total-1."""
    return (2 * torch.arange(count) + 1) * total // (2 * max(count, 1))


@dataclass(frozen=True, kw_only=True)
class Uniform(MergeMethod):
    """Keeps evenly spaced tokens along the film; added rows (newline, summary) stay.

    Args:
        keep: share or count of the tokens.
    """

    paper = "a baseline of ours: evenly spaced tokens"
    scope = "video"
    needs_question = False
    fixed_count = True
    attention = "none"

    keep: float | int | None = 0.25

    def __call__(self, tokens: VisualTokens, run: Run) -> VisualTokens:
        rows = (tokens.weight > 0).nonzero()[:, 0]
        stays = tokens.weight == 0
        stays[rows[spaced(len(rows), self.count(len(rows))).to(rows.device)]] = True
        tokens = tokens.keep(stays.nonzero()[:, 0])
        return tokens.compacted() if self.positions == "compact" else tokens
