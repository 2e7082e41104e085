"""Pruning between decoder layers and eviction from the cache, on stock layers and stock `generate()`.

For the time of a `with`, the text decoder of a stock model (`model.get_decoder()`) has an instance-level `forward`: the
loop below over its own layers. Everything above it (embeddings, sampling, streaming) and below it (layers, attention
kernels) stays stock. One loop serves prefill, decoding and multi-token continuation.

Traps that shaped it: masks are made once per shape and never from `position_ids` (gaps would be read as packed sequences);
a multi-token continuation needs a mask, or SDPA attends to the first keys only; the cache's logical length never shrinks.
"""

from __future__ import annotations

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
from videoprune.models.cache import BatchLayer, KeptLayer, Uneven
from videoprune.models.paging import PagedLayer
from videoprune.models.parking import attend_to
from videoprune.models.pieces import mlp_in_pieces
from videoprune.models.sample import QUERIES, Sample
from videoprune.models.session import Session, Stream, Trace

MASKS = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
# what a prefill method may name in `needs`: outputs of these modules of a decoder layer
CAPTURED = {
    "input_norm": "input_layernorm",
    "attention_output": "self_attn",
    "post_attention_norm": "post_attention_layernorm",
    "mlp_output": "mlp",
}


class Layers:
    """The layer loop of one decoder under one session, or under several whose streams stay equally long."""

    def __init__(self, decoder: Any, sessions: Sequence[Session]) -> None:
        self.decoder = decoder
        self.samples = [Sample(decoder, session) for session in sessions]
        if len(sessions) > 1 and any(state.revives for session in sessions for state in session.decode):
            raise Uneven("a decode method brings tokens back, for each prompt others; run them one by one")
        self.captured: dict[str, Tensor] = {}
        self.types = getattr(decoder.config, "layer_types", None) or ["full_attention"] * len(decoder.layers)

    def __call__(self, hidden: Tensor, position_ids: Tensor, cache: Cache) -> Tensor:
        decoder, samples = self.decoder, self.samples
        past, rows = cache.get_seq_length(), hidden.shape[1]
        prefill = past == 0
        cos, sin = decoder.rotary_emb(hidden, position_ids)
        index = torch.arange(past, past + rows, device=hidden.device)
        streams = []
        for number, sample in enumerate(samples):
            one = slice(number, number + 1)
            streams.append(Stream(hidden[one], cos[one], sin[one], index))
            sample.begin(prefill, position_ids[..., one, :] if len(samples) > 1 else position_ids)
        masks: dict[tuple[Any, ...], Any] = {}
        shift = 0
        for number, layer in enumerate(decoder.layers):
            if not prefill and samples[0].shifts[number] != shift:  # equal for all: as many rows left each of them
                shift = samples[0].shifts[number]
                cos, sin = decoder.rotary_emb(hidden, position_ids - shift)
                streams = [
                    Stream(each.hidden, cos[place : place + 1], sin[place : place + 1], index)
                    for place, each in enumerate(streams)
                ]
            entered, kept, parts = Stream.join(streams), cache.layers[number], self._parts(cache, number)
            shape = (self.types[number], entered.hidden.shape[1], kept.size)
            if samples[0].parking.selected is not None:
                mask = self._attend_to(samples[0].parking.selected, number, entered, parts[0])
            elif isinstance(kept, PagedLayer) and kept.pages:
                mask = kept.admit(streams[0].index)
            else:
                if shape not in masks:
                    known = {} if prefill else {"layer_idx": number}
                    masks[shape] = MASKS[self.types[number]](
                        decoder.config, entered.hidden, None, None if prefill else cache, **known
                    )
                mask = masks[shape]
            for part, stream in zip(parts, streams, strict=True):
                part.incoming = stream.index
            out = layer(
                entered.hidden,
                attention_mask=mask,
                position_embeddings=(entered.cos, entered.sin),
                position_ids=None,
                past_key_values=cache,
                use_cache=True,
            )
            for place, (sample, part) in enumerate(zip(samples, parts, strict=True)):
                part.seen = past + rows  # logical length: the same for every layer, pruned or not
                captured = {name: value[place] for name, value in self.captured.items()}
                streams[place] = sample.after(number, layer, streams[place], out[place : place + 1], part, captured)
            self.captured.clear()
        for place, sample in enumerate(samples):
            own = [self._parts(cache, number)[place] for number in range(len(decoder.layers))]
            sample.end(streams[place], own)
        return decoder.norm(
            Stream.join(streams).hidden[:, -rows:]
        )  # those that came back have no say in the next token

    def _attend_to(self, selected: Tensor, number: int, entered: Stream, kept: KeptLayer) -> Tensor | None:
        """See `attend_to`; the mask as the attention kernels take it."""
        config = self.decoder.config
        window = config.sliding_window if self.types[number] == "sliding_attention" else None
        mask = attend_to(selected, kept, entered.index, config.num_attention_heads, window)
        if mask is None or config._attn_implementation != "eager":
            return mask
        dtype = entered.hidden.dtype
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)

    @staticmethod
    def _parts(cache: Cache, number: int) -> list[KeptLayer]:
        layer = cache.layers[number]
        return layer.parts if isinstance(layer, BatchLayer) else [layer]

    def empty_cache(self) -> list[KeptLayer]:
        """Layers for what the samples will cache, or for what they continue."""
        own = [
            sample.session.past.fork() if sample.session.past is not None else self._new_layers()
            for sample in self.samples
        ]
        return own[0] if len(own) == 1 else [BatchLayer(list(parts)) for parts in zip(*own, strict=True)]

    def _new_layers(self) -> list[KeptLayer]:
        """Empty layers, those that can be in pages where a decode method evicts whole ones.

        Pages take a mask of slots, which the other kernels do not, and one prompt, since each evicts other pages.
        """
        states = self.samples[0].session.decode
        pages = {state.page for state in states if state.page is not None}
        paged = len(pages) == len(self.samples) == 1 and not any(state.revives for state in states)
        paged = paged and self.decoder.config._attn_implementation == "sdpa"
        return [
            PagedLayer(*pages) if paged and self.types[number] == "full_attention" else KeptLayer()
            for number in range(len(self.decoder.layers))
        ]


def _capture(captured: dict[str, Tensor], name: str, module: nn.Module, args: Any, out: Any) -> None:
    """Forward hook: keep a module's output, (B, S, D)."""
    captured[name] = out[0] if isinstance(out, tuple) else out


def _capture_queries(
    captured: dict[str, Tensor], rows: int, axes: int, module: nn.Module, args: Any, out: Tensor
) -> None:
    """Forward hook: keep the last `rows` rows of (B, S, ...), of a call by the layer, which has `axes`."""
    if out.ndim == axes:
        captured[QUERIES] = out[:, -rows:].clone()


def _hook_queries(loop: Layers, hooks: ExitStack) -> None:
    """Capture the query rows that the evidence and decode methods read, so that they are not computed a second time."""
    sessions = [sample.session for sample in loop.samples]
    rows = max((state.queries for each in sessions for state in each.decode), default=0)
    evidence = frozenset[int]().union(*(each.evidence_layers for each in sessions))
    for number, layer in enumerate(loop.decoder.layers):
        count, attention = max(rows, int(number in evidence)), layer.self_attn
        if count:
            normed = hasattr(attention, "q_norm")  # Qwen3: by head
            module = attention.q_norm if normed else attention.q_proj
            hook = partial(_capture_queries, loop.captured, count, 4 if normed else 3)
            hooks.callback(module.register_forward_hook(hook).remove)


@contextmanager
def compressed(model: Any, session: Session, *others: Session) -> Iterator[Trace]:
    """Run `model` (a stock host) under a session; the model is as before when the `with` ends.

    With `others`, a batch of as many prompts runs, of equal length at every layer; no method sees more than its own. Yields
    the first session's trace.

    Raises:
        UsageError: from `generate` in ways of decoding that would silently mean something else (padding, static caches,
            no cache, a prompt in chunks, several drafted tokens at once, beams).
        Uneven: prompts of a batch are not equally long any more.
    """
    decoder = model.get_decoder()
    sessions = (session, *others)
    loop = Layers(decoder, sessions)
    earlier = decoder.__dict__.get("forward")  # accelerate may have put one there

    begun = False

    def forward(
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **unused: Any,
    ) -> BaseModelOutputWithPast:
        nonlocal begun
        hidden = decoder.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cache = past_key_values if past_key_values is not None else DynamicCache(config=decoder.config)
        past = cache.get_seq_length()
        _refuse(hidden, attention_mask, cache, use_cache, len(sessions), first=not begun)
        if position_ids is not None and position_ids.shape[-1] != hidden.shape[1]:
            raise UsageError(
                f"{hidden.shape[1]} rows are given with {position_ids.shape[-1]} positions: a prompt is read in one piece; "
                "set no prefill_chunk_size"
            )
        if past == 0:
            if begun:  # without a cache `generate` reads the whole prompt again for every token
                raise UsageError(
                    "use_cache=False is given, or a second prompt; a session is one prompt read into one cache"
                )
            if hidden.shape[1] < session.visual.stop:
                raise UsageError(
                    f"the first {hidden.shape[1]} rows of a prompt are given, whose visual block ends at row "
                    f"{session.visual.stop}: a prompt is read in one piece; set no prefill_chunk_size"
                )
            for sample in loop.samples:
                sample.prompt_rows = hidden.shape[1]
            cache.layers[:] = loop.empty_cache()
            if session.past is not None:  # the caller gives the whole conversation; what the cache has seen is left out
                past = session.past.rows
                hidden = hidden[:, past:]
                position_ids = None if position_ids is None else position_ids[..., past:]
        elif begun and hidden.shape[1] > 1:
            raise UsageError(
                f"{hidden.shape[1]} tokens are given at once behind the prompt: a prompt in chunks (prefill_chunk_size) and "
                "assisted decoding (assistant_model, prompt_lookup_num_tokens) are not supported; switch them off"
            )
        begun = True
        if position_ids is None:
            position_ids = torch.arange(past, past + hidden.shape[1], device=hidden.device)[None]
        elif position_ids.ndim == 3 and len(position_ids) == 4:  # M-RoPE models put the text's own in front, for masks
            position_ids = position_ids[1:]
        out = loop(hidden, position_ids, cache)
        return BaseModelOutputWithPast(last_hidden_state=out, past_key_values=cache)

    with ExitStack() as hooks:
        _hook_queries(loop, hooks)
        wanted = {(at, name) for each in sessions for state in each.prefill for at in state.at for name in state.needs}
        for number, name in sorted(wanted):
            module = getattr(decoder.layers[number], CAPTURED[name])
            handle = module.register_forward_hook(partial(_capture, loop.captured, name))
            hooks.callback(handle.remove)
        hooks.enter_context(mlp_in_pieces(decoder.layers))
        decoder.forward = forward
        try:
            yield session.trace
        finally:
            if earlier is not None:
                decoder.forward = earlier
            else:
                del decoder.forward


def _refuse(
    hidden: Tensor, attention_mask: Any, cache: Cache, use_cache: bool | None, batch: int, *, first: bool
) -> None:
    """Refuse what would run but mean something else."""
    if use_cache is False:
        raise UsageError(
            "use_cache=False is given; a session is one prompt read into one cache: leave it at its default"
        )
    if hidden.shape[0] != batch:
        raise UsageError(
            f"a batch of {hidden.shape[0]} prompts is given, or beams, for {batch} session{'s' * (batch > 1)}; each prompt has a "
            "session of its own, and beams are not supported: ask one by one, or with Pipeline.ask_batch"
        )
    if getattr(cache, "is_compileable", False):
        raise UsageError(
            "a static cache is given; layers differ in length here: leave cache_implementation at its default"
        )
    if isinstance(attention_mask, dict) or (attention_mask is not None and attention_mask.ndim > 2):
        raise UsageError("a prepared attention mask is given; compression builds its own: pass none")
    # one look a prompt: a look is a device synchronisation
    if first and attention_mask is not None and not bool(attention_mask.all()):
        raise UsageError("a prompt with padding is given; compression needs prompts without padding: ask one by one")
