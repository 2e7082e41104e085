"""Pruning between decoder layers and eviction from the cache, on stock layers and stock `generate()`.

For the time of a `with`, the text decoder of a stock model (`model.get_decoder()`) has an instance-level `forward`: the
loop below over its own layers. Everything above it (embeddings, sampling, streaming) and below it (layers, attention
kernels) stays stock. One loop serves prefill, decoding and multi-token continuation.

Traps that shaped it: masks are made once per shape and never from `position_ids` (gaps would be read as packed sequences);
a multi-token continuation needs a mask, or SDPA attends to the first keys only; the cache's logical length never shrinks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast

from videoprune.errors import UsageError
from videoprune.method import DecodeView, Kept, KeptKV, PrefillView
from videoprune.models.cache import KeptLayer
from videoprune.models.session import Session, Stream, Trace
from videoprune.ops.attention import row_attention

MASKS = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
# what a prefill method may name in `needs`: outputs of these modules of a decoder layer
CAPTURED = {
    "input_norm": "input_layernorm",
    "attention_output": "self_attn",
    "post_attention_norm": "post_attention_layernorm",
    "mlp_output": "mlp",
}
EVIDENCE_STEPS = 24  # decoded tokens whose attention counts as evidence: an answer's content is in its first words


def rotate_half(x: Tensor) -> Tensor:
    """The rotary embedding's quarter turn, as in every host here."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def rotated_queries(layer: nn.Module, entered: Stream, rows: Tensor | slice) -> Tensor:
    """(H, R, d) queries of some rows of the stream that entered `layer`, as its attention computes them."""
    attention: Any = layer.self_attn
    norm: Any = layer.input_layernorm
    query = attention.q_proj(norm(entered.hidden[0, rows])).unflatten(-1, (-1, attention.head_dim))
    if hasattr(attention, "q_norm"):  # Qwen3
        query = attention.q_norm(query)
    query = query.transpose(0, 1)
    return query * entered.cos[0, rows] + rotate_half(query) * entered.sin[0, rows]


class Layers:
    """The layer loop of one decoder under one session."""

    def __init__(self, decoder: Any, session: Session) -> None:
        self.decoder, self.session = decoder, session
        self.captured: dict[str, Tensor] = {}
        self.prompt_rows = 0
        self.types = getattr(decoder.config, "layer_types", None) or ["full_attention"] * len(decoder.layers)

    def __call__(self, hidden: Tensor, position_ids: Tensor, cache: Cache) -> Tensor:
        decoder, session = self.decoder, self.session
        past, rows = cache.get_seq_length(), hidden.shape[1]
        prefill = past == 0
        cos, sin = decoder.rotary_emb(hidden, position_ids)
        stream = Stream(hidden, cos, sin, torch.arange(past, past + rows, device=hidden.device))
        if prefill:
            self.visual = torch.arange(*session.visual, device=hidden.device)  # rows of the current stream
            self.token = torch.arange(len(session.tokens), device=hidden.device)  # their rows in the ledger
        else:
            session.step += 1
        masks: dict[tuple[Any, ...], Any] = {}
        queries, keys, views = [], [], []
        for number, layer in enumerate(decoder.layers):
            entered, kept = stream, cache.layers[number]
            shape = (self.types[number], entered.hidden.shape[1], kept.size)
            if shape not in masks:
                known = {} if prefill else {"layer_idx": number}
                masks[shape] = MASKS[self.types[number]](
                    decoder.config, entered.hidden, None, None if prefill else cache, **known
                )
            kept.incoming = entered.index
            out = layer(
                entered.hidden,
                attention_mask=masks[shape],
                position_embeddings=(entered.cos, entered.sin),
                position_ids=None,
                past_key_values=cache,
                use_cache=True,
            )
            kept.seen = past + rows  # logical length: the same for every layer, pruned or not
            stream = Stream(out, entered.cos, entered.sin, entered.index)
            queries.append(entered.hidden.shape[1])
            keys.append(kept.size)
            if prefill:
                session.trace.visual_rows.append(len(self.visual))
            with session.trace.counted:
                if number in session.evidence_layers and (prefill or session.step <= EVIDENCE_STEPS):
                    self._collect_evidence(layer, entered, kept)
                if prefill:
                    stream = self._prune(number, layer, entered, stream, kept.keys[0])
                if session.decode:
                    views.append(self._evict(number, layer, entered, kept, prefill))
            self.captured.clear()
        session.trace.queries.append(queries)
        session.trace.keys.append(keys)
        if prefill:
            self._finish(cache, views, stream)
            session.trace.prefill_entries = [layer.size for layer in cache.layers]
        session.trace.entries = [layer.size for layer in cache.layers]
        if prefill and hidden.is_cuda:
            torch.cuda.synchronize()
        session.trace.marks.append(time.perf_counter())
        return decoder.norm(stream.hidden)

    # ------------------------------------------------------------------ attention rows

    def _rows(self, layer: nn.Module, entered: Stream, keys: Tensor, position: Tensor, rows: Tensor) -> Tensor:
        """(H, R, S) probabilities of some rows of the stream over keys (Hkv, S, d) of tokens `position` (Hkv or 1, S)."""
        query = rotated_queries(layer, entered, rows)
        return row_attention(query, keys, self._scale(layer), entered.index[rows], key_position=position)

    @staticmethod
    def _scale(layer: nn.Module) -> float:
        attention: Any = layer.self_attn
        return float(attention.scaling)

    def _collect_evidence(self, layer: nn.Module, entered: Stream, kept: KeptLayer) -> None:
        """Add the last row's attention, mean over heads, to the visual tokens that it falls on."""
        session = self.session
        last = torch.tensor([entered.hidden.shape[1] - 1], device=entered.hidden.device)
        share = self._rows(layer, entered, kept.keys[0], kept.positions(), last)[:, 0]
        group = share.shape[0] // kept.keys.shape[1]
        per_head = share.view(-1, group, share.shape[-1]).mean(dim=1)  # (Hkv, S): heads may hold different entries
        if session.trace.evidence is None:
            session.trace.evidence = torch.zeros(len(session.tokens), device=share.device)
        start, stop = session.visual
        token = kept.positions() - start
        inside = (token >= 0) & (token < stop - start)
        weight = torch.where(inside, per_head, 0.0)
        session.trace.evidence.index_add_(0, token.clamp(0, max(stop - start - 1, 0)).flatten(), weight.flatten())

    # ------------------------------------------------------------------ prefill

    def _prune(self, number: int, layer: nn.Module, entered: Stream, stream: Stream, keys: Tensor) -> Stream:
        for state in self.session.prefill:
            if number not in state.at or not len(self.visual):
                continue
            view = self._prefill_view(number, layer, entered, stream, keys)
            decision = state.after(view)
            if decision is None:
                continue
            stream = self._apply(number, stream, decision)
            # a second method after the same layer sees the survivors only; the layer's attention is over all that entered
            entered, keys = entered.keep(self._rows_kept), keys[:, self._rows_kept]
        return stream

    def _prefill_view(
        self, number: int, layer: nn.Module, entered: Stream, stream: Stream, keys: Tensor
    ) -> PrefillView:
        rows = entered.hidden.shape[1]
        behind = (
            self.prompt_rows - self.session.visual[1]
        )  # text is never pruned, so its number is the unpruned prompt's

        return PrefillView(
            layer=number,
            layers=len(self.decoder.layers),
            before=entered.hidden[0],
            after=stream.hidden[0],
            visual=self.visual,
            token=self.token,
            text_after=torch.arange(rows - behind, rows, device=keys.device),
            tokens=self.session.tokens,
            attention=lambda wanted: self._rows(layer, entered, keys, entered.index[None], wanted),
            query=lambda: rotated_queries(layer, entered, slice(None)),
            key=lambda: keys,
            scale=self._scale(layer),
            final_norm=self.decoder.norm,
            captured=dict(self.captured),
        )

    def _apply(self, number: int, stream: Stream, decision: Kept) -> Stream:
        """Drop the visual rows that do not go on; no host synchronisation: all sizes are known."""
        stays = torch.ones(stream.hidden.shape[1], dtype=torch.bool, device=stream.hidden.device)
        stays[self.visual] = False
        kept_rows = self.visual[decision.index]
        stays[kept_rows] = True
        count = stream.hidden.shape[1] - len(self.visual) + len(kept_rows)
        rows = torch.argsort((~stays).to(torch.int8), stable=True)[:count]
        if decision.hidden is not None:
            hidden = stream.hidden.clone()
            hidden[0, kept_rows] = decision.hidden.to(hidden.dtype)
            stream = Stream(hidden, stream.cos, stream.sin, stream.index)
        self.visual = torch.searchsorted(rows, kept_rows)
        self.token = self.token[decision.index]
        self.session.trace.kept[number] = self.token
        self._rows_kept = rows
        return stream.keep(rows)

    # ------------------------------------------------------------------ decode

    def _evict(self, number: int, layer: nn.Module, entered: Stream, kept: KeptLayer, prefill: bool) -> DecodeView:
        view = self._decode_view(number, layer, entered, kept, prefill)
        for state in self.session.decode:
            decision = state.after(view)
            if decision is not None:
                self._keep_entries(number, kept, decision)
                view = self._decode_view(number, layer, entered, kept, prefill)
        return view

    def _decode_view(
        self, number: int, layer: nn.Module, entered: Stream, kept: KeptLayer, prefill: bool
    ) -> DecodeView:
        start, stop = self.session.visual
        position, keys = kept.positions(), kept.keys[0]

        def attention(rows: int) -> Tensor:
            return self._rows(layer, entered, keys, position, last(rows))

        def last(rows: int) -> Tensor:
            have = entered.hidden.shape[1]
            return torch.arange(have - min(rows, have), have, device=keys.device)

        return DecodeView(
            layer=number,
            layers=len(self.decoder.layers),
            prefill=prefill,
            step=self.session.step,
            keys=keys,
            values=kept.values[0],
            position=position,
            text=(position < start) | (position >= stop),
            attention=attention,
        )

    def _keep_entries(self, number: int, kept: KeptLayer, decision: KeptKV) -> None:
        kept.keep(decision.index, decision.keys, decision.values)
        call = (self.session.step, number)
        earlier = self.session.trace.evicted.get(call)
        if earlier is None:
            self.session.trace.evicted[call] = decision.index
        else:  # two decode methods at one layer: compose, so that a replay needs one step
            both = (earlier, decision.index)
            if earlier.ndim == 1 and decision.index.ndim == 1:
                self.session.trace.evicted[call] = earlier[decision.index]
            else:
                heads = max(index.shape[0] if index.ndim == 2 else 1 for index in both)
                wide = [index.expand(heads, index.shape[-1]) for index in both]
                self.session.trace.evicted[call] = wide[0].gather(1, wide[1])

    def _finish(self, cache: Cache, views: Sequence[DecodeView], stream: Stream) -> None:
        for view in views:
            view.attention = _gone
            view.alive = stream.index
        for state in self.session.decode:
            decisions = state.finish(views)
            for number, decision in enumerate(decisions or ()):
                if decision is not None:
                    self._keep_entries(number, cache.layers[number], decision)
            if decisions is not None:
                views = [self._refreshed(view, cache.layers[view.layer]) for view in views]

    def _refreshed(self, view: DecodeView, kept: KeptLayer) -> DecodeView:
        start, stop = self.session.visual
        view.keys, view.values, view.position = kept.keys[0], kept.values[0], kept.positions()
        view.text = (view.position < start) | (view.position >= stop)
        return view


def _gone(rows: int) -> Tensor:
    raise ValueError("attention rows are only there right after a layer ran; read them in `after`, not in `finish`")


def _capture(captured: dict[str, Tensor], name: str, module: nn.Module, args: Any, out: Any) -> None:
    """Forward hook: keep a module's output, (S, D)."""
    captured[name] = (out[0] if isinstance(out, tuple) else out)[0]


@contextmanager
def compressed(model: Any, session: Session) -> Iterator[Trace]:
    """Run `model` (a stock host) under a session; the model is as before when the `with` ends.

    Raises:
        UsageError: from `generate` in ways of decoding that would silently mean something else (padding, static caches).
    """
    decoder = model.get_decoder()
    loop = Layers(decoder, session)
    earlier = decoder.__dict__.get("forward")  # accelerate may have put one there

    def forward(
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        **unused: Any,
    ) -> BaseModelOutputWithPast:
        hidden = decoder.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cache = past_key_values if past_key_values is not None else DynamicCache(config=decoder.config)
        _refuse(hidden, attention_mask, cache)
        past = cache.get_seq_length()
        if past == 0:
            if session.trace.queries:  # without a cache `generate` reads the whole prompt again for every token
                raise UsageError(
                    "use_cache=False is given, or a second prompt; a session is one prompt read into one cache"
                )
            cache.layers[:] = [KeptLayer() for _ in decoder.layers]
            loop.prompt_rows = hidden.shape[1]
        if position_ids is None:
            position_ids = torch.arange(past, past + hidden.shape[1], device=hidden.device)[None]
        out = loop(hidden, position_ids, cache)
        return BaseModelOutputWithPast(last_hidden_state=out, past_key_values=cache)

    with ExitStack() as hooks:
        wanted = {(at, name) for state in session.prefill for at in state.at for name in state.needs}
        for number, name in sorted(wanted):
            module = getattr(decoder.layers[number], CAPTURED[name])
            handle = module.register_forward_hook(partial(_capture, loop.captured, name))
            hooks.callback(handle.remove)
        decoder.forward = forward
        try:
            yield session.trace
        finally:
            if earlier is not None:
                decoder.forward = earlier
            else:
                del decoder.forward


def _refuse(hidden: Tensor, attention_mask: Any, cache: Cache) -> None:
    """Refuse what would run but mean something else."""
    if hidden.shape[0] != 1:
        raise UsageError(
            f"a batch of {hidden.shape[0]} prompts is given; compression runs one prompt at a time: ask one by one"
        )
    if getattr(cache, "is_compileable", False):
        raise UsageError(
            "a static cache is given; layers differ in length here: leave cache_implementation at its default"
        )
    if isinstance(attention_mask, dict) or (attention_mask is not None and attention_mask.ndim > 2):
        raise UsageError("a prepared attention mask is given; compression builds its own: pass none")
    first_call = cache.get_seq_length() == 0  # one look a prompt: a look is a device synchronisation
    if first_call and attention_mask is not None and not bool(attention_mask.all()):
        raise UsageError("a prompt with padding is given; compression needs prompts without padding: ask one by one")
