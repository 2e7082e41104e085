"""Attention rows and column sums next to a fused kernel, and the choice of the entries that they score.

No function holds an S×S matrix except `StreamedAttention` below a stated size and memory limit. Keys are never repeated
for grouped query heads: head h reads key/value head h // (H // Hkv), so queries are reshaped to (Hkv, H/Hkv * rows, d).
Everything is computed in float32, ties are broken by index.
"""

from __future__ import annotations

import torch
from torch import Tensor

from videoprune.ops.blocks import at_once

CHUNK = 2**20  # attention logits that are in flight at once: 4 MiB, which stay in a cache (see `at_once`)
FEW = 4096  # scores of which a sort costs less than the operations of a selection
HOLD_LENGTH = 8192  # above this no matrix of probabilities is held, whatever the memory
HOLD_BYTES = 2**29  # 512 MiB: the most that held blocks of probabilities may take

# ------------------------------------------------------------------------------------------------- rows and columns


def row_attention(
    query: Tensor,
    key: Tensor,
    scale: float,
    causal_offset: Tensor | None = None,
    temperature: float = 1.0,
    key_position: Tensor | None = None,
) -> Tensor:
    """Attention probabilities of some query rows: softmax(scale * q·kᵀ / temperature).

    Args:
        query: (H, R, d) the wanted rows, rotated.
        key: (Hkv, S, d) rotated.
        scale: factor of the logits, 1/sqrt(d) in most models.
        causal_offset: (R,) int64, row r sees the keys 0..causal_offset[r]; None lets every row see every key.
        temperature: the logits are divided by it.
        key_position: (Hkv or 1, S) int64 what `causal_offset` is compared with; None takes a key's own index.

    Returns:
        (H, R, S) float32.
    """
    (heads, rows, width), (kv_heads, length, _) = query.shape, key.shape
    grouped = (query.float() * (scale / temperature)).view(kv_heads, heads // kv_heads, rows, width)
    key = key.float().transpose(1, 2)
    if key_position is None:
        key_position = torch.arange(length, device=key.device)[None]
    key_position = key_position.expand(kv_heads, -1)
    out = torch.empty(kv_heads, heads // kv_heads, rows, length, device=key.device)
    step = max(1, at_once(CHUNK, key.device) // max(1, heads // kv_heads * length))
    for head in range(kv_heads):
        for start in range(0, rows, step):
            part = slice(start, start + step)
            logits = (grouped[head, :, part].reshape(-1, width) @ key[head]).view(heads // kv_heads, -1, length)
            if causal_offset is not None:
                logits.masked_fill_(key_position[head] > causal_offset[part, None], -torch.inf)
            out[head, :, part] = logits.softmax(-1)
    return out.flatten(0, 1)


def fold_rows(rows: Tensor, weights: Tensor, kv_heads: int) -> Tensor:
    """Weighted sum over query rows and over the query heads of each key/value head: (H, R, S), (R,) -> (Hkv, S)."""
    return torch.matmul(weights.to(rows), rows).view(kv_heads, -1, rows.shape[-1]).sum(1)


def decay_weights(rows: int, forgetting: float, device: torch.device | None = None) -> Tensor:
    """(rows,) float32: forgetting ** (rows - 1 - r), which is 1 for the last row."""
    return torch.pow(forgetting, torch.arange(rows - 1, -1, -1, device=device, dtype=torch.float32))


def decayed_column_sum(
    query: Tensor,
    key: Tensor,
    weights: Tensor,
    scale: float,
    positions: Tensor | None = None,
) -> Tensor:
    """Σ_r weights_r P_rj, summed over the query heads that share a key/value head; rows are streamed.

    Args:
        query: (H, R, d) rows that count, rotated.
        key: (Hkv, S, d) rotated.
        weights: (R,) weight of each row.
        scale: factor of the logits.
        positions: (R,) int64, place of each row among the keys; None takes the last R.

    Returns:
        (Hkv, S) float32.
    """
    heads, rows, length = query.shape[0], query.shape[1], key.shape[1]
    if positions is None and heads * rows * length <= at_once(CHUNK, key.device):
        return _column_sum_of_a_block(query, key, weights, scale)
    if positions is None:
        sums = StreamedAttention(query, key, scale, hold_bytes=0).times(weights.float().expand(heads, -1))
        return sums.view(key.shape[0], -1, length).sum(1)
    total = torch.zeros(key.shape[0], length, device=key.device)
    step = max(1, at_once(CHUNK, key.device) // max(1, heads * length))
    for start in range(0, rows, step):
        part = slice(start, start + step)
        total += fold_rows(row_attention(query[:, part], key, scale, positions[part]), weights[part], key.shape[0])
    return total


def _column_sum_of_a_block(query: Tensor, key: Tensor, weights: Tensor, scale: float) -> Tensor:
    """`decayed_column_sum` of the last R rows where all of their logits are in flight at once: as few operations as it takes."""
    (heads, rows, width), (kv_heads, length, _) = query.shape, key.shape
    query = (query.float() * scale).reshape(kv_heads, -1, width)
    logits = torch.bmm(query, key.float().transpose(1, 2))
    if rows > 1:
        future = torch.ones(rows, rows, dtype=torch.bool, device=key.device).triu(1)
        logits.view(heads, rows, length)[..., length - rows :].masked_fill_(future, -torch.inf)
    weights = weights.float().repeat(heads // kv_heads).expand(kv_heads, 1, -1)
    return torch.bmm(weights, logits.softmax(-1))[:, 0]


def column_sum_flops(query: Tensor, key: Tensor) -> float:
    """FLOPs of `decayed_column_sum` over the last R rows, (H, R, d) and (Hkv, S, d): each block of rows sees its causal part,
    a single block all keys."""
    (heads, rows, width), length = query.shape, key.shape[1]
    if heads * rows * length <= at_once(CHUNK, key.device):
        return 2.0 * heads * rows * length * (width + 1)
    block = rows_at_once(heads // key.shape[0], rows, length, key.device)
    ends = [min(start + block, rows) for start in range(0, rows, block)]
    seen = sum((end - start) * (length - rows + end) for start, end in zip(range(0, rows, block), ends, strict=True))
    return 2.0 * heads * seen * (width + 1)


def rows_at_once(group: int, rows: int, length: int, device: torch.device) -> int:
    """Rows of a block of StreamedAttention for `group` query heads a key/value head."""
    return min(max(8, at_once(CHUNK, device) // max(1, group * length)), max(1, rows))


class StreamedAttention:
    """The last R rows of the causal matrix P = softmax(scale * Q Kᵀ / temperature), (H, R, S), by blocks of rows.

    What is computed of a block is exp(logits - row maximum); the sums by which rows are divided go into the weights that
    the rows are multiplied with. The first product keeps maxima and sums, so that later ones only exponentiate. Blocks
    are held instead where S <= HOLD_LENGTH and their causal parts fit `hold_bytes`: repeated products are memory reads.

    Args:
        query: (H, R, d) rotated, row r sees the keys 0..S-R+r.
        key: (Hkv, S, d) rotated.
        scale: factor of the logits.
        temperature: the logits are divided by it.
        block: rows at a time; None chooses by CHUNK.
        hold_bytes: memory that held blocks may take; 0 always streams.
    """

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        scale: float,
        temperature: float = 1.0,
        block: int | None = None,
        hold_bytes: int = HOLD_BYTES,
    ) -> None:
        (heads, self.rows, width), (self.kv_heads, self.length, _) = query.shape, key.shape
        self.group, device = heads // self.kv_heads, key.device
        self.query = (query.float() * (scale / temperature)).view(self.kv_heads, self.group, self.rows, width)
        self.key = key.float().transpose(1, 2).contiguous()
        self.block = block or rows_at_once(self.group, self.rows, self.length, device)
        self.before = self.length - self.rows
        # a block is wider than its causal part by at most half a block a row
        held = 4 * heads * self.rows * (self.before + (self.rows + self.block) / 2)
        self.hold = self.length <= HOLD_LENGTH and held <= hold_bytes
        self.held: dict[tuple[int, int], Tensor] = {}
        self.divisor: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self.future = torch.ones(self.block, self.block, dtype=torch.bool, device=device).triu(1)
        self.scratch = torch.empty(0 if self.hold else self.group * self.block * self.length, device=device)

    def _exponentials(self, head: int, start: int, end: int) -> Tensor:
        """(H/Hkv, end-start, seen): exp(logits - maximum) of some rows of one key/value head; later keys have none."""
        place, seen = (head, start), self.before + end
        if place in self.held:
            return self.held[place]
        query = self.query[head, :, start:end].reshape(-1, self.key.shape[1])
        size = len(query) * seen
        buffer = torch.empty(size, device=query.device) if self.hold else self.scratch[:size]
        flat = torch.mm(query, self.key[head, :, :seen], out=buffer.view(len(query), seen))
        rows = flat.view(self.group, end - start, seen)
        rows[..., seen - (end - start) :].masked_fill_(self.future[: end - start, : end - start], -torch.inf)
        known = self.divisor.get(place)
        if known is None:
            largest = flat.amax(-1, keepdim=True)
            flat.sub_(largest).exp_()
            self.divisor[place] = largest, flat.sum(-1).view(self.group, -1)
        else:
            flat.sub_(known[0]).exp_()
        if self.hold:
            self.held[place] = rows
        return rows

    def times(self, weights: Tensor) -> Tensor:
        """weights·P for each head: (H, R) -> (H, S) float32."""
        grouped = weights.float().reshape(self.kv_heads, self.group, self.rows)
        total = torch.zeros(self.kv_heads, self.group, self.length, device=weights.device)
        for head in range(self.kv_heads):
            for start in range(0, self.rows, self.block):
                end = min(start + self.block, self.rows)
                rows = self._exponentials(head, start, end)
                share = grouped[head, :, start:end] / self.divisor[head, start][1]
                total[head, :, : self.before + end] += torch.bmm(share[:, None], rows)[:, 0]
        return total.flatten(0, 1)


def row_vector_times_attention(
    weights: Tensor,
    query: Tensor,
    key: Tensor,
    scale: float,
    temperature: float = 1.0,
    block: int | None = None,
) -> Tensor:
    """One step u ← u·P of the causal softmax matrix of each head, streamed by row blocks.

    Args:
        weights: (H, S).
        query: (H, S, d) rotated.
        key: (Hkv, S, d) rotated.
        scale: factor of the logits.
        temperature: the logits are divided by it.
        block: rows at a time; None chooses.

    Returns:
        (H, S) float32. For several steps make one `StreamedAttention` and call its `times`.
    """
    return StreamedAttention(query, key, scale, temperature, block, hold_bytes=0).times(weights)


# ------------------------------------------------------------------------------------------------ choosing entries


def keep_best(score: Tensor, count: int, protected: Tensor | None = None) -> Tensor:
    """Indices of the `count` highest scores along the last axis, ascending; of equal scores the first stay.

    Args:
        score: (..., S).
        count: entries that stay, at most S.
        protected: (..., S) bool, entries that stay before any other.

    Returns:
        (..., count) int64.
    """
    length = score.shape[-1]
    column = torch.arange(length, device=score.device)
    if count == length:
        return column.expand(score.shape)
    if protected is not None:
        score = score.masked_fill(protected, torch.inf)
    if count == length - 1:  # a step of decoding drops one entry: no sort
        worst = torch.where(score == score.amin(-1, keepdim=True), column, -1).amax(-1, keepdim=True)
        return column[:count] + (column[:count] >= worst).long()
    if score.device.type == "cpu" and count and score.numel() > FEW:
        rows = [_keep_best_row(row, count) for row in score.reshape(-1, length)]
        return torch.stack(rows).view(*score.shape[:-1], count)
    return score.argsort(dim=-1, descending=True, stable=True)[..., :count].sort(dim=-1).values


def _keep_best_row(score: Tensor, count: int) -> Tensor:
    """`keep_best` of one row on a CPU, where looking at the data costs nothing: a selection instead of a sort."""
    threshold = score.topk(count, sorted=False).values.amin()  # kthvalue is quadratic where entries are in order
    above, ties = ~(score <= threshold), score == threshold  # as in a sort, what is no number ranks above all
    room = count - int(above.sum())
    if int(ties.sum()) < room or torch.isnan(threshold):
        return score.argsort(descending=True, stable=True)[:count].sort().values
    return (above | (ties & (ties.cumsum(0) <= room))).nonzero()[:, 0]


def best_per_group(score: Tensor, group: Tensor, quota: Tensor) -> Tensor:
    """The quota[g] best entries of every group g: a segmented top-k by one ordering on (group, -score, index).

    Args:
        score: (V,).
        group: (V,) int64 in 0..E-1, an event, say.
        quota: (E,) int64.

    Returns:
        (K,) int64 ascending.
    """
    length = torch.bincount(group, minlength=len(quota))
    start = length.cumsum(0) - length
    if group.device.type == "cpu" and len(group) and len(length) * int(length.max()) <= 4 * len(group):
        return _best_per_row(score, group, quota, length, start)
    order = score.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]
    place = torch.arange(len(group), device=group.device) - start[group[order]]
    return order[place < quota[group[order]]].sort().values


def _best_per_row(score: Tensor, group: Tensor, quota: Tensor, length: Tensor, start: Tensor) -> Tensor:
    """`best_per_group` where groups are of similar size: one short sort a group, in a table of a row a group."""
    order = None if bool((group[1:] >= group[:-1]).all()) else group.argsort(stable=True)
    row = group if order is None else group[order]
    column = torch.arange(len(group)) - start[row]
    table = torch.full((len(length), int(length.max())), torch.nan)
    table[row, column] = (score if order is None else score[order]).float().neg()  # ascending, so that nothing is last
    rank = table.argsort(dim=1, stable=True)
    chosen = torch.arange(table.shape[1]) < torch.minimum(quota, length)[:, None]
    place = (start[:, None] + rank)[chosen]
    return (place if order is None else order[place]).sort().values


def apportion(size: Tensor, total: int) -> Tensor:
    """Split `total` in proportion to size (E,) int64 by the largest remainders; nothing gets more than its size."""
    whole = size.sum()
    share = size * whole.clamp(max=total)
    quota, remainder = share // whole.clamp(min=1), share % whole.clamp(min=1)
    order = remainder.argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(size), device=size.device)
    return quota + (rank < whole.clamp(max=total) - quota.sum())


def thin_evenly(free: Tensor, count: Tensor | int) -> Tensor:
    """Choose entries of `free` that are spread evenly over it.

    Args:
        free: (..., S) bool, entries to choose from.
        count: how many, a number or (..., 1) int64; more than there are chooses all.

    Returns:
        (..., S) bool with `count` entries set.
    """
    total = free.sum(-1, keepdim=True)
    count = torch.minimum(torch.as_tensor(count, device=free.device).clamp(min=0), total)
    rank = free.cumsum(-1)  # 1-based

    def chosen_up_to(entries: Tensor) -> Tensor:
        return (2 * entries * count + total) // (2 * total).clamp(min=1)

    return free & (chosen_up_to(rank) > chosen_up_to(rank - 1))


def carry(score: Tensor, before: Tensor, now: Tensor) -> Tensor:
    """Move scores of the entries at positions `before` (Hkv, A) ascending to `now` (Hkv, S); new entries start at 0."""
    place = torch.searchsorted(before.contiguous(), now.contiguous()).clamp(max=before.shape[1] - 1)
    return torch.where(before.gather(1, place) == now, score.gather(1, place), 0.0)


def always_kept(text: Tensor, count: int, recent: int, protect_text: bool) -> tuple[Tensor, int]:
    """Cache entries that a budget of `count` must not touch: the protected text, then as many recent ones as fit.

    Args:
        text: (Hkv, S) bool.
        count: the budget a head.
        recent: entries at the end that stay, fewer where text and recent ones exceed the budget.
        protect_text: whether text stays; where it alone exceeds the budget, the budget grows to it.

    Returns:
        (Hkv, S) bool, and the number of entries that stay in every head.
    """
    texts = int(text.sum(-1).max()) if protect_text else 0
    kept = text.clone() if protect_text else torch.zeros_like(text)
    kept[:, kept.shape[1] - max(0, min(recent, count - texts, kept.shape[1])) :] = True
    return kept, max(count, texts)
