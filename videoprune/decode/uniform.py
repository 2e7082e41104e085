"""Uniform: evenly spaced entries stay, the eviction baseline without any score."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from videoprune.decode._once import Once
from videoprune.ops.attention import keep_best, thin_evenly
from videoprune.run import Run


def uniform_entries(kept: Tensor, count: int) -> Tensor:
    """The entries of `kept` (Hkv, S) bool and evenly spaced others up to `count`: (Hkv, count) int64 ascending."""
    chosen = kept | thin_evenly(~kept, count - kept.sum(-1, keepdim=True))
    return keep_best(chosen.float(), count)


@dataclass(frozen=True, kw_only=True)
class Uniform(Once):
    """An evenly spaced share of each layer's entries stays, once, after prefill.

    Text counts within the budget; where the protected text alone exceeds it, the text stays and nothing else.

    Args:
        keep: share or count of a layer's cache that stays.
        recent: entries at the end that stay while the budget allows.
    """

    paper = "baseline, no paper"
    scope = "video"
    needs_question = False
    fixed_count = True
    attention = "none"

    keep: float | int | None = 0.5
    recent: int = 1

    def choose(self, kept: Tensor, count: int, layer: int, run: Run) -> Tensor:
        return uniform_entries(kept, count)
