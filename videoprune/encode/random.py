"""A random subset of every frame's units: a baseline for the methods that look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.checks import check_count
from videoprune.errors import UsageError
from videoprune.method import EncodeMethod, TowerPlan, TowerView
from videoprune.ops.matching import nearest_kept
from videoprune.ops.similarity import smallest


def draw(frame: Tensor, unit: Tensor, seed: int) -> Tensor:
    """A pseudo-random whole number for each unit: frame (F,), unit (F, U) -> (F, U) int64 in 0..2^53.

    A hash of place and seed instead of a generator, so that it depends on no chunk, no order and no device.
    """
    mixed = unit * 0x9E3779B1 + frame[:, None] * 0x85EBCA6B + (seed * 0xC2B2AE35) % (1 << 53)
    for factor in (0x7FEB352D35A7A5B, 0x1B873593CC9E2D51, 0x27D4EB2F165667C5):
        mixed = (mixed ^ ((mixed >> 31) & 0x1FFFFFFFF)) * factor  # wraps around at 64 bits
    return (mixed >> 11) & ((1 << 53) - 1)


@dataclass(frozen=True, kw_only=True)
class Random(EncodeMethod):
    """Keeps units at random after the first layer, every frame its own; a count is a count of units a frame.

    Args:
        keep: share or count of a frame's units.
        mode: "merge" (a dropped unit is absorbed by the nearest kept one of its frame, by key cosine) or "drop".
        seed: of the draw; the film and its chunks are not asked.
    """

    paper = "a baseline of ours: random units"
    scope = "frame"
    needs_question = False
    fixed_count = True
    attention = "none"

    keep: float | int | None = 0.5
    mode: str = "merge"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("seed", self.seed, least=0)
        if self.mode not in ("merge", "drop"):
            raise UsageError(f"mode: {self.mode!r} is given; allowed are 'merge' and 'drop'")

    def layers(self, depth: int) -> Sequence[int]:
        return (0,)

    def plan(self, view: TowerView) -> TowerPlan | None:
        count = self.count(view.total)
        if view.unit.shape[1] <= count:
            return None
        numbers = draw(view.frame.to(view.unit.device), view.unit, self.seed).masked_fill(
            ~view.valid, torch.iinfo(torch.int64).max
        )
        keep = smallest(numbers, view.valid.sum(dim=1, keepdim=True).clamp(max=count))
        return TowerPlan(keep, nearest_kept(view.keys(), keep, count) if self.mode == "merge" else None)
