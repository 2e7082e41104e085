"""Evenly spaced frames: a baseline for the scouts that look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from videoprune.method import ScoutMethod
from videoprune.tokens import budget


@dataclass(frozen=True, kw_only=True)
class Uniform(ScoutMethod):
    """Shows the tower a frame each time that its share of the film grows by one: sampling fewer frames, in the film's ledger."""

    paper = "a baseline of ours: evenly spaced frames"
    scope = "video"
    needs_question = False
    fixed_count = True
    attention = "none"

    def pick(self, features: Tensor | None, count: int, allowed: int, first: int, carried: Any) -> tuple[Tensor, Any]:
        due = torch.tensor(
            [budget(number, float(self.keep)) if number else 0 for number in range(first, first + count + 1)]
        )
        return due.diff().nonzero()[:, 0], None
