"""Random: the eviction baseline that every score has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.decode._once import Once
from videoprune.ops.attention import keep_best
from videoprune.run import Run

SALT = 500_000  # other draws than those of the prefill stage in the same layer


def random_entries(kept: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """The entries of `kept` (Hkv, S) bool and random others up to `count`: (Hkv, count) int64 ascending.

    All heads share one draw.
    """
    draw = torch.randperm(kept.shape[1], generator=generator).to(kept.device).float()  # exact in float32 below 2**24
    return keep_best(draw.expand_as(kept), count, kept)


@dataclass(frozen=True, kw_only=True)
class Random(Once):
    """A random share of each layer's entries stays, once, after prefill.

    The draw depends on the run's seed and the layer alone. Text counts within the budget; where the protected text
    alone exceeds it, the text stays and nothing else.

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
        return random_entries(kept, count, run.generator(SALT + layer))
