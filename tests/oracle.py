"""An independent reading of a pruned run: the full-length sequence through the stock layers in eager attention, where
dense 4-D masks hide, layer by layer, head by head and step by step, what was pruned or evicted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from videoprune.models.session import Trace, VisualBlock


def visible(trace: Trace, rows: int, visual: VisualBlock, layer: int, kv_heads: int, steps: int) -> list[Tensor]:
    """What each call may see in one layer: entry 0 the (rows,) bool of prompt rows that enter it, entry t >= 1 the
    (kv_heads, rows + steps) bool of cached positions that decoding step t attends to, its own token included."""
    alive = torch.ones(rows, dtype=torch.bool)
    for at in sorted(trace.kept):
        if at < layer:
            alive[visual.rows] = False
            alive[visual.rows[trace.kept[at]]] = True
    cached = alive.nonzero()[:, 0].expand(kv_heads, -1)
    out = [alive]

    def evict(call: int, cached: Tensor) -> Tensor:
        index = trace.evicted.get((call, layer))
        if index is None:
            return cached
        return cached.gather(1, index.expand(kv_heads, index.shape[-1]))

    cached = evict(0, cached)
    for step in range(1, steps + 1):
        cached = torch.cat((cached, torch.full((kv_heads, 1), rows + step - 1)), dim=1)
        mask = torch.zeros(kv_heads, rows + steps, dtype=torch.bool)
        mask.scatter_(1, cached, True)
        out.append(mask)
        cached = evict(step, cached)
    return out


@torch.no_grad()
def oracle_logits(
    model: Any,
    embeddings: Tensor,
    position_ids: Tensor,
    visual: VisualBlock,
    ids: list[int],
    trace: Trace,
    changes: Mapping[int, tuple[Tensor, Tensor]] | None = None,
) -> Tensor:
    """(steps + 1, vocabulary) logits of the prompt's last row and of every decoded token but the last.

    `changes`: layer -> (rows of the visual block, their new states), for methods that merge what they drop.
    """
    decoder = model.get_decoder()
    rows, steps = embeddings.shape[1], len(ids) - 1
    generated = decoder.embed_tokens(torch.tensor([ids[:-1]], dtype=torch.int64))
    hidden = torch.cat((embeddings, generated), dim=1)
    after = position_ids[..., -1:] + 1 + torch.arange(steps)
    position = torch.cat((position_ids, after), dim=-1)
    cos_sin = decoder.rotary_emb(hidden, position)
    heads, kv_heads = decoder.config.num_attention_heads, decoder.config.num_key_value_heads
    length = rows + steps
    implementation = decoder.config._attn_implementation
    decoder.set_attn_implementation("eager")
    try:
        for number, layer in enumerate(decoder.layers):
            seen = visible(trace, rows, visual, number, kv_heads, steps)
            mask = torch.zeros(kv_heads, length, length, dtype=torch.bool)
            mask[:, :rows, :rows] = torch.ones(rows, rows).tril().bool() & seen[0]
            for step in range(1, steps + 1):
                mask[:, rows + step - 1] = seen[step]
            mask |= torch.eye(length, dtype=torch.bool)  # rows that left still need something to attend to
            bias = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
            bias = bias.repeat_interleave(heads // kv_heads, dim=0)[None]
            hidden = layer(
                hidden,
                attention_mask=bias,
                position_embeddings=cos_sin,
                position_ids=None,
                past_key_values=None,
                use_cache=False,
            )
            if visual.deepstack is not None and number < visual.deepstack.shape[1]:
                hidden[0, visual.rows] += visual.deepstack[:, number]
            if changes and number in changes:
                rows_changed, states = changes[number]
                hidden[0, visual.rows[rows_changed]] = states
            if number in trace.compacted:  # every row moves up by as many as left before it
                later = visible(trace, rows, visual, number + 1, kv_heads, 0)[0]
                left = torch.cat((seen[0] & ~later, torch.zeros(steps, dtype=torch.bool)))
                position = position - (left.cumsum(0) - left.long())
                cos_sin = decoder.rotary_emb(hidden, position)
        return model.lm_head(decoder.norm(hidden))[0, rows - 1 :]
    finally:
        decoder.set_attn_implementation(implementation)
