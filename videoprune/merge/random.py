"""A random subset of the film's tokens: a baseline for the methods that look."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.method import MergeMethod
from videoprune.run import Run
from videoprune.tokens import VisualTokens


def subset(total: int, count: int, generator: torch.Generator) -> Tensor:
    """(count,) int64 ascending: a random subset of 0..total-1."""
    return torch.randperm(total, generator=generator)[:count].sort().values


@dataclass(frozen=True, kw_only=True)
class Random(MergeMethod):
    """Keeps a random subset of the film, drawn with the run's seed; added rows (newline, summary) stay.

    Args:
        keep: share or count of the tokens.
    """

    paper = "a baseline of ours: random tokens"
    scope = "video"
    needs_question = False
    fixed_count = True
    attention = "none"

    keep: float | int | None = 0.25

    def __call__(self, tokens: VisualTokens, run: Run) -> VisualTokens:
        rows = (tokens.weight > 0).nonzero()[:, 0]
        stays = tokens.weight == 0
        stays[rows[subset(len(rows), self.count(len(rows)), run.generator()).to(rows.device)]] = True
        tokens = tokens.keep(stays.nonzero()[:, 0])
        return tokens.compacted() if self.positions == "compact" else tokens
