"""An independent reading of progressive pruning with revival, token by token in float64: no cache class, no kernel, no mask.

Every layer remembers which tokens it has computed. A call goes through the layers with the set of tokens that it looks at;
those of the set that a layer has not seen are computed there, from what the layer below left of them, whenever that was.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from videoprune.models.session import VisualBlock

# (call, layer, tokens looked at by prompt position, the last row's attention on them, mean over heads) -> those that go on
Choose = Callable[[int, int, Tensor, Tensor], Tensor]


def _norm(module: Any, x: Tensor) -> Tensor:
    scale = (x.square().mean(-1, keepdim=True) + module.variance_epsilon).rsqrt()
    return x * scale * module.weight


class LazyReading:
    """Reads a prompt and given answer tokens.

    Attributes:
        logits: (calls, vocabulary) of every call's last row.
        computed: (layers, rows) int64, how often each layer computed each token.
        keys, values: by layer (rows, Hkv, d), zeros where never computed.
    """

    def __init__(self, model: Any, choose: Choose, evicted: Mapping[tuple[int, int], Tensor] | None = None) -> None:
        self.model = copy.deepcopy(model).double()
        self.decoder = self.model.get_decoder()
        self.choose, self.evicted = choose, evicted or {}

    @torch.no_grad()
    def read(self, embeddings: Tensor, position_ids: Tensor, visual: VisualBlock, ids: list[int]) -> LazyReading:
        decoder, steps = self.decoder, len(ids) - 1
        answer = decoder.embed_tokens(torch.tensor([ids[:-1]], dtype=torch.int64))
        self.hidden = [torch.cat((embeddings.double(), answer), dim=1)[0]]
        rows, total = embeddings.shape[1], self.hidden[0].shape[0]
        position = torch.cat((position_ids, position_ids[..., -1:] + 1 + torch.arange(steps)), dim=-1)
        cos, sin = decoder.rotary_emb(self.hidden[0][None], position)
        self.cos, self.sin, self.visual = cos[0].double(), sin[0].double(), visual
        config, depth = decoder.config, len(decoder.layers)
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        size = decoder.layers[0].self_attn.head_dim
        self.hidden += [torch.full_like(self.hidden[0], torch.nan) for _ in range(depth)]
        self.keys = torch.zeros(depth, total, self.kv_heads, size, dtype=torch.float64)
        self.values = torch.zeros_like(self.keys)
        self.computed = torch.zeros(depth, total, dtype=torch.int64)
        self.held = torch.zeros(depth, self.kv_heads, total, dtype=torch.bool)
        outcome = [self._call(0, torch.arange(rows), torch.arange(rows))]
        calls = range(1, steps + 1)
        outcome.extend(self._call(step, torch.arange(rows), torch.arange(rows, rows + step)) for step in calls)
        self.logits = self.model.lm_head(_norm(decoder.norm, torch.stack(outcome)))
        return self

    def _call(self, call: int, alive: Tensor, fed: Tensor) -> Tensor:
        """One forward call: `alive` of the prompt, and the tokens `fed` behind it; (D,) the last row's final state."""
        last = int(fed[-1])
        for number, layer in enumerate(self.decoder.layers):
            seen = alive if call == 0 else torch.cat((alive, fed))
            missing = seen[self.computed[number][seen] == 0]
            row = self._compute(number, layer, missing, seen, last)
            index = self.evicted.get((call, number))
            if index is not None:
                for head in range(self.kv_heads):
                    held = self.held[number, head].nonzero()[:, 0]
                    stays = held[index if index.ndim == 1 else index[head]]
                    self.held[number, head] = False
                    self.held[number, head, stays] = True
            alive = self.choose(call, number, alive, row[alive])
        return self.hidden[-1][last]

    def _compute(self, number: int, layer: Any, tokens: Tensor, seen: Tensor, last: int) -> Tensor:
        """Compute tokens that attend to those `seen` up to themselves; (rows,) attention of the row `last`."""
        attention = layer.self_attn

        def heads(projected: Tensor, count: int, norm: str) -> Tensor:
            split = projected.unflatten(-1, (count, -1))
            return _norm(getattr(attention, norm), split) if hasattr(attention, norm) else split

        def rotated(x: Tensor) -> Tensor:
            half = x.shape[-1] // 2
            turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
            return x * self.cos[tokens, None] + turned * self.sin[tokens, None]

        before = self.hidden[number][tokens]
        normed = _norm(layer.input_layernorm, before)
        query = rotated(heads(attention.q_proj(normed), self.heads, "q_norm"))
        self.keys[number, tokens] = rotated(heads(attention.k_proj(normed), self.kv_heads, "k_norm"))
        self.values[number, tokens] = attention.v_proj(normed).unflatten(-1, (self.kv_heads, -1))
        self.computed[number, tokens] += 1
        self.held[number, :, tokens] = True
        mixed, row = torch.zeros_like(query), torch.zeros(len(self.cos), dtype=torch.float64)
        looked = torch.zeros(len(self.cos), dtype=torch.bool)
        looked[seen] = True
        for head in range(self.heads):
            own = head // (self.heads // self.kv_heads)
            logits = query[:, head] @ self.keys[number, :, own].T * query.shape[-1] ** -0.5
            there = looked & self.held[number, own]
            hidden = ~there[None] | (torch.arange(len(there)) > tokens[:, None])
            share = logits.masked_fill(hidden, -torch.inf).softmax(-1)
            mixed[:, head] = share @ self.values[number, :, own]
            row += share[tokens == last].sum(0) / self.heads
        out = before + attention.o_proj(mixed.flatten(1))
        out = out + layer.mlp(_norm(layer.post_attention_layernorm, out))
        added = self.visual.deepstack
        if added is not None and number < added.shape[1]:
            for place, token in enumerate(tokens.tolist()):
                found = (self.visual.rows == token).nonzero()
                if len(found):
                    out[place] += added[int(found), number].double()
        self.hidden[number + 1][tokens] = out
        return row
