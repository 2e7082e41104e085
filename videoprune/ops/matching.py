"""Which token goes into which: plans in indices, to be applied to whatever travels with the tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from videoprune.ops.blocks import at_once
from videoprune.ops.clustering import slot_means
from videoprune.ops.similarity import inverse_norm

CHUNK = 2**20  # numbers of a block of rows


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
    found = [_best_odd(part) for part in metric.split(_together(metric))]
    best, partner = (torch.cat(parts) for parts in zip(*found, strict=True))
    merged = torch.argsort(best, dim=1, descending=True, stable=True)[:, :remove]
    into = places.scatter(1, 2 * merged, 2 * partner.gather(1, merged) + 1)
    return ascending(into == places, tokens - remove), into


def _together(metric: Tensor) -> int:
    """Batch entries (B, N, K) that make a block."""
    return max(1, at_once(CHUNK, metric.device) // max(1, metric.shape[1] * metric.shape[2]))


def _best_odd(metric: Tensor) -> tuple[Tensor, Tensor]:
    """For each row at an even place the cosine of the most similar one at an odd place, and its number among those."""
    metric = metric.float()
    scale = inverse_norm(metric)
    products = torch.bmm(metric[:, ::2], metric[:, 1::2].transpose(1, 2)).mul_(scale[:, None, 1::2])
    best, partner = products.max(dim=2)  # a row's own length changes none of its choices
    return best * scale[:, ::2], partner


def nearest_kept(metric: Tensor, keep: Tensor, most: int | None = None) -> Tensor:
    """For each token the most similar kept one of its batch entry, by cosine; ties go to the lower index.

    Args:
        metric: (B, N, K).
        keep: (B, N) bool. An entry that keeps nothing points to 0.
        most: what every entry keeps at most, where that is known: only so many are compared with. None compares with all.

    Returns:
        (B, N) int64.
    """
    place = ascending(keep, keep.shape[1] if most is None else most)
    if not place.shape[1]:
        return torch.zeros_like(keep, dtype=torch.int64)
    absent, parts = ~keep.gather(1, place), []
    for rows, columns, missing in zip(
        *(whole.split(_together(metric)) for whole in (metric, place, absent)), strict=True
    ):
        rows = rows.float()
        chosen = rows.gather(1, columns[..., None].expand(-1, -1, rows.shape[2]))
        products = torch.bmm(rows, chosen.transpose(1, 2)).mul_(inverse_norm(chosen)[:, None])
        parts.append(columns.gather(1, products.masked_fill_(missing[:, None], -torch.inf).max(dim=2).indices))
    return torch.cat(parts)


def ascending(keep: Tensor, count: int) -> Tensor:
    """Places of a mask that marks `count` in every row: (B, N) bool -> (B, count) int64 ascending."""
    return torch.argsort((~keep).to(torch.int8), dim=1, stable=True)[:, :count].contiguous()


def group_mean(rows: Tensor, weight: Tensor, slot: Tensor, slots: int) -> Tensor:
    """Weighted mean of the rows that share a slot, each batch entry on its own; see `slot_means`.

    Args:
        rows: (B, N, D). weight: (B, N). slot: (B, N) int64 in 0..slots-1, every slot taken by a row of positive weight.

    Returns:
        (B, slots, D) float32.
    """
    batch, count, width = rows.shape
    own = slot + slots * torch.arange(batch, device=slot.device)[:, None]
    means = slot_means(rows.reshape(-1, width), own.flatten(), batch * slots, weight.expand(batch, count).flatten())
    return means.view(batch, slots, width)
