"""Which token goes into which: plans in indices, to be applied to whatever travels with the tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from videoprune.ops.similarity import cosine


def bipartite_plan(metric: Tensor, remove: int) -> tuple[Tensor, Tensor]:
    """One round of even/odd bipartite matching (ToMe, arXiv 2210.09461), each batch entry on its own.

    Each token at an even place finds the most similar one at an odd place, by cosine; the `remove` even tokens whose
    best match is closest are given to it. Ties go to the lower index.

    Args:
        metric: (B, N, K) what similarity is measured on.
        remove: tokens to remove from each entry, at most N // 2.

    Returns:
        survivors (B, N - remove) int64, ascending places of those that stay;
        into (B, N) int64, the place that absorbs each, its own for a survivor.
    """
    batch, tokens, _ = metric.shape
    if not 0 <= remove <= tokens // 2:
        raise ValueError(
            f"remove: {remove} is given; one round on {tokens} tokens allows 0..{tokens // 2}: take more rounds"
        )
    places = torch.arange(tokens, device=metric.device).expand(batch, -1)
    if remove == 0:
        return places, places
    best, partner = cosine(metric[:, ::2], metric[:, 1::2]).max(dim=2)
    merged = torch.argsort(best, dim=1, descending=True, stable=True)[:, :remove]
    into = places.scatter(1, 2 * merged, 2 * partner.gather(1, merged) + 1)
    return ascending(into == places, tokens - remove), into


def nearest_kept(metric: Tensor, keep: Tensor) -> Tensor:
    """For each token the most similar kept one of its batch entry, by cosine: (B, N, K), (B, N) bool -> (B, N) int64.

    Ties go to the lower index. An entry that keeps nothing points to 0.
    """
    return cosine(metric, metric).masked_fill(~keep[:, None], -torch.inf).argmax(dim=2)


def ascending(keep: Tensor, count: int) -> Tensor:
    """Places of a mask that marks `count` in every row: (B, N) bool -> (B, count) int64 ascending."""
    return torch.argsort((~keep).to(torch.int8), dim=1, stable=True)[:, :count].contiguous()


def group_mean(rows: Tensor, weight: Tensor, slot: Tensor, slots: int) -> Tensor:
    """Weighted mean of the rows that share a slot.

    A product with the table of who goes where: the same sums in the same order on every run, which scattered additions
    on a GPU do not give.

    Args:
        rows: (B, N, D). weight: (B, N). slot: (B, N) int64 in 0..slots-1, every slot taken by a row of positive weight.

    Returns:
        (B, slots, D) float32.
    """
    table = (slot[:, None] == torch.arange(slots, device=slot.device)[:, None]) * weight[:, None].float()
    return (table @ rows.float()) / table.sum(dim=2, keepdim=True)
