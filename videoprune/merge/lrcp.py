"""LRCP: drop the tokens that a few principal components of the film can rebuild (arXiv 2605.15621)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.checks import check_count
from videoprune.method import MergeMethod
from videoprune.ops.attention import keep_best
from videoprune.ops.clustering import nearest, slot_means
from videoprune.ops.subspace import principal_directions, unexplained
from videoprune.run import Run
from videoprune.tokens import VisualTokens


def reconstruction_error(features: Tensor, rank: int) -> Tensor:
    """How much of each token the `rank` main directions of all of them leave unexplained.

    Args:
        features: (N, D).

    Returns:
        (N,) float32, |x|^2 - |U'x|^2 of the tokens around their mean.
    """
    return unexplained(features, principal_directions(features, min(rank, *features.shape)))


@dataclass(frozen=True, kw_only=True)
class LRCP(MergeMethod):
    """Keeps the tokens that the film's principal components explain least; added rows (newline, summary) stay.

    Args:
        rank: components; the paper has 4 for LLaVA and 8 for Qwen hosts.
        merge: let each dropped token join the kept one most like it, which becomes the plain mean of its group.
    """

    paper = "arXiv 2605.15621"
    scope = "video"
    needs_question = False
    fixed_count = True
    attention = "none"
    search = (("keep", 0.02, 0.98), ("rank", 1, 32))

    keep: float | int | None = 0.125
    positions: str = "compact"
    rank: int = 4
    merge: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("rank", self.rank)

    def __call__(self, tokens: VisualTokens, run: Run) -> VisualTokens:
        rows = (tokens.weight > 0).nonzero()[:, 0]
        count = self.count(len(rows))
        stays = torch.ones(len(tokens), dtype=torch.bool, device=rows.device)
        if count < len(rows):
            stays[rows] = False
            stays[rows[keep_best(reconstruction_error(tokens.features[rows], self.rank), count)]] = True
        survivors = stays.nonzero()[:, 0]
        if self.merge and count < len(rows):
            kept, lost = rows[stays[rows]], rows[~stays[rows]]
            joined = nearest(tokens.features[lost], tokens.features[kept])
            into = torch.arange(len(tokens), device=rows.device)
            into[lost] = kept[joined]
            slot = torch.cat((torch.arange(count, device=rows.device), joined))
            merged = tokens.features.clone()
            merged[kept] = slot_means(tokens.features[torch.cat((kept, lost))], slot, count).to(merged.dtype)
            tokens = tokens.merge(into, merged[survivors])
        else:
            tokens = tokens.keep(survivors)
        return tokens.compacted() if self.positions == "compact" else tokens
