"""Reading a prompt while nothing is removed: what a learned gate would remove is hidden by the attention mask instead.

For training. The decoder's stock layers run with a 4-D mask, on SDPA: a gate g_j in [0, 1] on visual token j makes its
attention weight in all later layers, for every row but its own, exp(a_ij) g_j / Σ_k exp(a_ik) g_k; text keeps g = 1. With
gates of 0 and 1 the rows that stay are those of a run that removes the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from videoprune.errors import UsageError
from videoprune.layer_method import PrefillView
from videoprune.models.framing import FIXED
from videoprune.models.host import Host
from videoprune.models.prompt import Prompt
from videoprune.models.sample import rotate_half, rotated_queries
from videoprune.models.session import Stream
from videoprune.tokens import VisualTokens

FLOOR = 1e-3  # of a gate while training: what is hidden keeps this weight, and with it a gradient


def log_gate(gate: Tensor, floor: float = FLOOR) -> Tensor:
    """log max(g, floor), whose gradient is that of the product exp(a)·g as if nothing were floored.

    The attention's gradient towards log g carries a factor max(g, floor), which dividing by max(g, floor) takes away: a
    hidden token is told by how much the output would change if it came back. A floor of 0 gives -inf and no such gradient.
    """
    held = gate.detach().clamp(min=floor)
    return held.log() + (gate - gate.detach()) / held if floor else held.log()


def read_masked(
    host: Host,
    prompt: Prompt,
    tokens: VisualTokens,
    answer: Tensor,
    points: frozenset[int],
    decide: Callable[[PrefillView], Tensor],
    floor: float = FLOOR,
) -> Tensor:
    """Logits (n, vocabulary) that predict each of the `answer`'s token ids (n,) behind the prompt.

    Args:
        tokens: the ledger as it entered the prompt.
        points: layers after which `decide` is called.
        decide: gives the visual tokens' gates (V,) from there on, earlier ones multiplied in, from what a prefill method
            sees; in the view nothing has been removed, `view.gate` (V,) says how much of each token is still there, and
            the answer is not in it.
        floor: see `log_gate`.

    Raises:
        UsageError: an attention that takes no 4-D masks.
    """
    decoder: Any = host.decoder
    if decoder.config._attn_implementation not in ("sdpa", "eager"):
        raise UsageError(
            f"attention {decoder.config._attn_implementation!r} takes no masks; load the model with --attn sdpa to train on it"
        )
    known = host.embed(answer[:-1])[None].to(prompt.embeddings)
    rows, behind = prompt.embeddings.shape[1], known.shape[1]
    after = prompt.position_ids[..., -1:] + 1 + torch.arange(behind, device=prompt.position_ids.device)
    hidden = torch.cat((prompt.embeddings, known), dim=1)
    cos, sin = decoder.rotary_emb(hidden, torch.cat((prompt.position_ids, after), dim=-1))
    index = torch.arange(rows + behind, device=hidden.device)
    fixed = tokens.scores.get(FIXED, torch.zeros(len(tokens), dtype=torch.bool)).to(hidden.device)
    token = (~fixed).nonzero()[:, 0]
    visual = prompt.visual.rows.to(hidden.device)[token]
    gate = torch.ones(len(visual), device=hidden.device)
    bare = {kind: _causal(decoder, kind, index, hidden.dtype) for kind in set(_types(decoder))}
    masks = bare
    deepstack = prompt.visual.deepstack
    for number, (kind, layer) in enumerate(zip(_types(decoder), decoder.layers, strict=True)):
        entered, mask = Stream(hidden, cos, sin, index), masks[kind]
        hidden = layer(
            hidden,
            attention_mask=mask[None, None],
            position_embeddings=(cos, sin),
            position_ids=None,
            past_key_values=None,
            use_cache=False,
        )
        if deepstack is not None and number < deepstack.shape[1]:
            hidden = hidden.index_add(1, visual, deepstack[token, number][None].to(hidden))
        if number in points and len(visual):
            view = _view(host, number, layer, entered, hidden, mask, rows, visual, token, tokens, prompt, gate)
            gate = decide(view)
            column = torch.zeros(len(index), device=hidden.device).index_copy(0, visual, log_gate(gate.float(), floor))
            own = torch.eye(len(index), dtype=torch.bool, device=hidden.device)
            masks = {name: torch.where(own, causal, causal + column.to(causal.dtype)) for name, causal in bare.items()}
    last = decoder.norm(hidden[:, rows - 1 :])
    logits: Tensor = host.model.get_output_embeddings()(last)[0]
    return logits


def _types(decoder: Any) -> list[str]:
    return getattr(decoder.config, "layer_types", None) or ["full_attention"] * len(decoder.layers)


def _causal(decoder: Any, kind: str, index: Tensor, dtype: torch.dtype) -> Tensor:
    """(S, S) 0 where a row sees a column, else -inf."""
    apart = index[:, None] - index
    seen = apart >= 0
    if kind == "sliding_attention":
        seen &= apart < decoder.config.sliding_window
    return torch.zeros(seen.shape, dtype=dtype, device=index.device).masked_fill_(~seen, -torch.inf)


def _rotated_keys(layer: nn.Module, entered: Stream, rows: int) -> Tensor:
    """(Hkv, R, d) keys of the first `rows` rows, as the layer's attention computes them."""
    attention: Any = layer.self_attn
    norm: Any = layer.input_layernorm
    key = attention.k_proj(norm(entered.hidden[0, :rows])).unflatten(-1, (-1, attention.head_dim))
    if hasattr(attention, "k_norm"):  # Qwen3
        key = attention.k_norm(key)
    key = key.transpose(0, 1)
    return key * entered.cos[0, :rows] + rotate_half(key) * entered.sin[0, :rows]


def _view(
    host: Host,
    number: int,
    layer: Any,
    entered: Stream,
    hidden: Tensor,
    mask: Tensor,
    rows: int,
    visual: Tensor,
    token: Tensor,
    tokens: VisualTokens,
    prompt: Prompt,
    gate: Tensor,
) -> PrefillView:
    scale = float(layer.self_attn.scaling)

    def attention(wanted: Tensor) -> Tensor:
        query, key = rotated_queries(layer, entered, wanted).float(), _rotated_keys(layer, entered, rows).float()
        grouped = query.unflatten(0, (len(key), -1)).flatten(1, 2) * scale
        logits = (grouped @ key.transpose(1, 2)).unflatten(1, (-1, len(wanted)))
        return (logits + mask[wanted, :rows].float()).softmax(-1).flatten(0, 1)

    return PrefillView(
        layer=number,
        layers=len(host.decoder.layers),
        before=entered.hidden[0, :rows],
        after=hidden[0, :rows],
        visual=visual,
        token=token,
        text_after=torch.arange(prompt.visual.stop, rows, device=hidden.device),
        tokens=tokens,
        attention=attention,
        query=lambda: rotated_queries(layer, entered, slice(0, rows)),
        key=lambda: _rotated_keys(layer, entered, rows),
        scale=scale,
        final_norm=host.decoder.norm,
        captured={},
        gate=gate,
    )
