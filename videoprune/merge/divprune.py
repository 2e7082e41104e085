"""DivPrune: keep the tokens whose smallest distance from one another is largest (arXiv 2503.02175)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.checks import check_count
from videoprune.method import MergeMethod
from videoprune.ops.attention import apportion
from videoprune.ops.farthest import farthest_points
from videoprune.run import Run
from videoprune.tokens import VisualTokens


def select(features: Tensor, keep: int) -> Tensor:
    """Greedy Max-Min Diversity by cosine distance.

    Args:
        features: (N, D).
        keep: tokens to keep, at most N.

    Returns:
        (keep,) int64 in picking order, no token twice; ties go to the lower index.
    """
    return farthest_points(features, keep)


@dataclass(frozen=True, kw_only=True)
class DivPrune(MergeMethod):
    """Keeps a diverse subset of the whole film; added rows (newline, summary) stay.

    Above `window` tokens the film is cut into the fewest equal spans of at most that many, each with its part of the
    budget (ours: distances within a span alone, so that cost grows with the film and not with its square).

    Args:
        window: tokens that are compared with one another; 8192 is the largest matrix that the project allows.
    """

    paper = "arXiv 2503.02175"
    scope = "video"
    needs_question = False
    fixed_count = True
    attention = "none"

    keep: float | int | None = 0.098
    positions: str = "compact"
    window: int = 8192

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("window", self.window)

    def __call__(self, tokens: VisualTokens, run: Run) -> VisualTokens:
        rows = (tokens.weight > 0).nonzero()[:, 0]
        spans = rows.tensor_split(max(1, -(-len(rows) // self.window)))
        quota = apportion(torch.tensor([len(span) for span in spans]), self.count(len(rows))).tolist()
        stays = tokens.weight == 0
        for span, count in zip(spans, quota, strict=True):
            stays[span[select(tokens.features[span], count)] if count < len(span) else span] = True
        tokens = tokens.keep(stays.nonzero()[:, 0])
        return tokens.compacted() if self.positions == "compact" else tokens
