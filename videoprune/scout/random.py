"""Random frames: a baseline for the scouts that look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from videoprune.checks import check_count
from videoprune.method import ScoutMethod


@dataclass(frozen=True, kw_only=True)
class Random(ScoutMethod):
    """Shows the tower frames of each window at random.

    Args:
        seed: of the draw.
    """

    paper = "a baseline of ours: random frames"
    scope = "video"
    needs_question = False
    fixed_count = True
    attention = "none"

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("seed", self.seed, least=0)

    def pick(self, features: Tensor | None, count: int, allowed: int, first: int, carried: Any) -> tuple[Tensor, Any]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + first)
        return torch.randperm(count, generator=generator)[:allowed].sort().values, None
