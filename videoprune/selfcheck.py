"""What we touch of transformers' insides, checked on a tiny random model of every family.

Pruning reaches into a stock model in a few places: its layers' signature, its rotary embedding, the masks, the cache's
layers, the vision tower's layers, `generate()`. A release may move any of them; each check here is one such place, and says
so before an answer does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from videoprune.layer_method import Kept, PrefillState, PrefillView
from videoprune.models.cache import KeptLayer
from videoprune.models.decoder import CAPTURED, MASKS, compressed
from videoprune.models.demo import MARK
from videoprune.models.host import Host, Sampling
from videoprune.models.load import FAMILIES, recognise
from videoprune.models.packed_tower import PackedTower
from videoprune.models.sample import rotated_queries
from videoprune.models.scratch import scratch_host, word_tokenizer
from videoprune.models.session import Session, Stream, VisualBlock
from videoprune.models.tiny_configs import TINY
from videoprune.ops.attention import row_attention
from videoprune.tokens import VisualTokens

FRAMES, CLOSE = 2, 1e-4


@dataclass(frozen=True)
class Check:
    """One look at one family: what is touched, and what is wrong with it, None where nothing is."""

    family: str
    name: str
    problem: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {"family": self.family, "name": self.name, "ok": self.problem is None, "problem": self.problem}


class Wrong(Exception):
    """A check failed; the message says how."""


def run_checks() -> list[Check]:
    """Every check on every family, and those that no family is needed for."""
    results = [_tried("all", name, check) for name, check in COMMON.items()]
    for family in FAMILIES:
        if family.matches({MARK: True}):  # the demo model is a LLaVA-OneVision
            continue
        results += _of_family(family)
    return results


def _of_family(family: type[Host]) -> Iterator[Check]:
    try:
        config = TINY[family.family]
        if recognise(config)[0] is not family:
            raise Wrong(f"its tiny config is taken for {recognise(config)[0].family}")
        hosts = {attn: scratch_host(family, config, attn=attn) for attn in ("sdpa", "eager")}
    except Exception as error:  # whatever a release raises is what we want to know
        yield Check(family.family, "the stock class builds from its config", _said(error))
        return
    yield Check(family.family, "the stock class builds from its config", None)
    for name, check in CHECKS.items():
        yield _tried(family.family, name, lambda check=check: check(hosts["sdpa"], hosts["eager"]))  # type: ignore[misc]


def _tried(family: str, name: str, check: Callable[[], None]) -> Check:
    try:
        with torch.no_grad():
            check()
    except Exception as error:
        return Check(family, name, _said(error))
    return Check(family, name, None)


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    return text if isinstance(error, Wrong) else f"{type(error).__name__}: {text}"


def _expect(good: bool, problem: str) -> None:
    if not good:
        raise Wrong(problem)


def _near(found: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    _expect(found.shape == expected.shape, f"{what} has shape {tuple(found.shape)}, not {tuple(expected.shape)}")
    far = float((found.float() - expected.float()).abs().max())
    _expect(far <= CLOSE, f"{what} is off by {far:.1e}")


# ------------------------------------------------------------------------------------------------- one family's checks


def _prompt(host: Host, rows: int = 12) -> tuple[torch.Tensor, Session]:
    """Random embeddings (1, rows, D) with a visual block in the middle, and a session that prunes nothing."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(1, rows, host.decoder_shape.width, generator=generator)
    tokens = VisualTokens.from_frames(embeddings[0, 3:9], torch.zeros(1, dtype=torch.float64), (2, 3))
    return embeddings, Session(visual=VisualBlock.whole(3, 6, embeddings.device), tokens=tokens)


def _decoder(host: Host, eager: Host) -> None:
    decoder = host.decoder
    for name in ("embed_tokens", "layers", "norm", "rotary_emb"):
        _expect(hasattr(decoder, name), f"get_decoder() has no {name}")
    for module in CAPTURED.values():
        _expect(hasattr(decoder.layers[0], module), f"a decoder layer has no {module}")
    attention = decoder.layers[0].self_attn
    for name in ("q_proj", "head_dim", "scaling"):
        _expect(hasattr(attention, name), f"a decoder layer's attention has no {name}")


def _layer(host: Host, eager: Host) -> None:
    embeddings, _ = _prompt(host)
    cos, sin = _angles(host, embeddings)
    width = host.decoder_shape.head_dim
    _expect(cos.shape == (1, embeddings.shape[1], width), f"rotary_emb gives cos of shape {tuple(cos.shape)}")
    cache = DynamicCache(config=host.decoder.config)
    cache.layers[:] = [KeptLayer() for _ in host.decoder.layers]
    out = host.decoder.layers[0](
        embeddings,
        attention_mask=None,
        position_embeddings=(cos, sin),
        position_ids=None,
        past_key_values=cache,
        use_cache=True,
    )
    _expect(isinstance(out, torch.Tensor), f"a decoder layer gives a {type(out).__name__}, not a tensor")
    _expect(out.shape == embeddings.shape, f"a decoder layer gives shape {tuple(out.shape)}")
    held = tuple(cache.layers[0].keys.shape)
    shape = host.decoder_shape
    _expect(held == (1, shape.kv_heads, embeddings.shape[1], width), f"the cache holds keys of shape {held}")


def _loop(host: Host, eager: Host) -> None:
    embeddings, session = _prompt(host)
    stock = host.model(inputs_embeds=embeddings, position_ids=_positions(host, embeddings)).logits
    with compressed(host.model, session):
        ours = host.model(inputs_embeds=embeddings, position_ids=_positions(host, embeddings)).logits
    _near(ours, stock, "a prompt with nothing pruned")
    _expect("forward" not in vars(host.decoder), "the decoder's forward is not given back")


def _positions(host: Host, embeddings: torch.Tensor) -> torch.Tensor:
    """Position ids as `generate` hands them down: (1, S), or (4, 1, S) on an M-RoPE host."""
    position = torch.arange(embeddings.shape[1])[None]
    return position[None].expand(4, -1, -1) if isinstance(host.tower, PackedTower) else position


def _angles(host: Host, embeddings: torch.Tensor) -> Any:
    """cos and sin (1, S, d), as the layer loop asks for them."""
    position = _positions(host, embeddings)
    return host.decoder.rotary_emb(embeddings, position[1:] if position.ndim == 3 else position)


class _Halve(PrefillState):
    """Keeps every second visual token behind the first layer."""

    at = frozenset({0})

    def after(self, view: PrefillView) -> Kept:
        return Kept(torch.arange(0, len(view.visual), 2))


def _ragged(host: Host, eager: Host) -> None:
    """Layers of different length: three steps one by one are what `generate` gives, and mask and cache agree on the sizes."""
    embeddings, session = _prompt(host)
    session.prefill = [_Halve()]
    rows, position = embeddings.shape[1], _positions(host, embeddings)
    with compressed(host.model, session) as trace:
        out = host.model.generate(
            inputs_embeds=embeddings,
            attention_mask=torch.ones(1, rows, dtype=torch.int64),
            position_ids=position[1:] if position.ndim == 3 else position,
            max_new_tokens=3,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
    _expect(tuple(out.sequences.shape) == (1, 3), f"generate gives {tuple(out.sequences.shape)} ids for 3 new tokens")
    _expect(trace.entries == [rows + 2, rows - 1, rows - 1], f"the cache has {trace.entries} entries by layer")
    embeddings, again = _prompt(host)
    again.prefill = [_Halve()]
    cache, told = DynamicCache(config=host.decoder.config), []
    with compressed(host.model, again):
        fed, at = embeddings, position
        for step in range(3):
            hidden = host.decoder(inputs_embeds=fed, position_ids=at, past_key_values=cache).last_hidden_state
            told.append(host.model.lm_head(hidden[:, -1]))
            fed = host.embed(told[-1].argmax(-1))[None]
            at = torch.full_like(position[..., :1], rows + step)
    _near(torch.stack(list(out.logits))[:, 0], torch.cat(told), "generate on layers of different length")


def _rows(host: Host, eager: Host) -> None:
    """Attention rows that we recompute are those that the eager layer gives."""
    embeddings, _ = _prompt(host)
    layer, decoder = eager.decoder.layers[0], eager.decoder
    cos, sin = _angles(eager, embeddings)
    cache = DynamicCache(config=decoder.config)
    cache.layers[:] = [KeptLayer() for _ in decoder.layers]
    mask = MASKS["full_attention"](decoder.config, embeddings, None, None)
    given: list[torch.Tensor] = []
    handle = layer.self_attn.register_forward_hook(lambda _, __, out: given.append(out[1]))
    try:
        layer(embeddings, attention_mask=mask, position_embeddings=(cos, sin), position_ids=None, past_key_values=cache)
    finally:
        handle.remove()
    index = torch.arange(embeddings.shape[1])
    stream, last = Stream(embeddings, cos, sin, index), index[-2:]
    query = rotated_queries(layer, stream, last)
    ours = row_attention(query, cache.layers[0].keys[0], float(layer.self_attn.scaling), last, key_position=index[None])
    _near(ours, given[0][0][:, -2:], "the attention of the last rows")


def _tower(host: Host, eager: Host) -> None:
    """Our loop over the tower's layers gives what the stock tower gives."""
    images = torch.Generator().manual_seed(1)
    if isinstance(host.tower, PackedTower):
        pictures = torch.randint(0, 256, (FRAMES, 56, 84, 3), generator=images, dtype=torch.uint8).numpy()
        ours = host.encode(pictures, torch.arange(FRAMES).double().numpy(), 0, (), Sampling(FRAMES, 1.0)).tokens
        stock = _stock_packed(host, pictures)
        _near(ours.features, stock, "the vision tower")
        return
    side = host.preprocess.size
    pixels = torch.randn(FRAMES, 3, side, side, generator=images)
    out = host.tower(pixels, torch.arange(FRAMES))
    states = host.vision_tower()(pixels, output_hidden_states=True).hidden_states
    _near(out.hidden, states[host.tower.stop][:, host.tower.extra :], "the vision tower")
    expected = (FRAMES, host.grid[0] * host.grid[1], host.decoder_shape.width)
    found = tuple(host.project(out.hidden).shape)
    _expect(found == expected, f"the projector gives shape {found}, not {expected}")


def _stock_packed(host: Host, pictures: Any) -> torch.Tensor:
    from videoprune.models.patches import patchify

    preprocess: Any = host.preprocess
    pixels = preprocess(pictures, FRAMES)
    patches = patchify(pixels, preprocess.patch, preprocess.merge, preprocess.pair)
    steps, (high, wide) = len(pixels) // preprocess.pair, pixels.shape[2:]
    grid = torch.tensor([[steps, high // preprocess.patch, wide // preprocess.patch]])
    features = host.model.model.get_video_features(patches, grid, return_dict=True).pooler_output
    return torch.cat(list(features)) if isinstance(features, (list, tuple)) else features


CHECKS: Mapping[str, Callable[[Host, Host], None]] = {
    "get_decoder(), names in a decoder layer": _decoder,
    "a decoder layer's call, rotary_emb, cache update": _layer,
    "our layer loop against stock logits": _loop,
    "generate() on layers of different length": _ragged,
    "attention rows against eager attention": _rows,
    "our tower loop against the stock tower": _tower,
}


# ----------------------------------------------------------------------------------------------- checks of no family


def _masks() -> None:
    from transformers import Qwen2Config

    config: Any = Qwen2Config(hidden_size=16, num_attention_heads=2, num_key_value_heads=2, num_hidden_layers=2)
    config._attn_implementation = "sdpa"
    hidden = torch.zeros(1, 4, 16)
    for kind, make in MASKS.items():
        if kind == "full_attention":
            _expect(make(config, hidden, None, None) is None, "a prompt without padding gets a mask under sdpa")
    cache = DynamicCache(config=config)
    cache.layers[:] = [KeptLayer(), KeptLayer()]
    for number, size in ((0, 6), (1, 3)):
        cache.layers[number].update(torch.zeros(1, 2, size, 8), torch.zeros(1, 2, size, 8))
        cache.layers[number].seen = 6
    mask = MASKS["full_attention"](config, hidden[:, :2], None, cache, layer_idx=1)
    _expect(mask is not None and mask.shape[-2:] == (2, 5), "a continuation's mask does not have its layer's size")


def _cache() -> None:
    layer = KeptLayer()
    layer.update(torch.zeros(1, 2, 5, 4), torch.zeros(1, 2, 5, 4))
    layer.keep(torch.tensor([0, 4]))
    _expect(layer.get_seq_length() == 5, "a layer forgets how many tokens it has seen")
    _expect(layer.get_mask_sizes(1) == (3, 3), f"mask sizes are {layer.get_mask_sizes(1)}, not (3, 3)")
    cache: Any = DynamicCache()
    cache.layers[:] = [layer]
    _expect(cache.get_seq_length() == 5, "the cache does not ask its first layer for the length")


def _chat() -> None:
    words = word_tokenizer()
    parts = "{% for p in m['content'] %}[{{ p['type'] }}]{{ p.get('text', '') }}{% endfor %}"
    words.chat_template = "{% for m in messages %}" + parts + "{% endfor %}"
    content = [{"type": "video"}, {"type": "text", "text": "what ?"}]
    text = words.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
    _expect(text == "[video][text]what ?", f"a chat template gives {text!r}")


COMMON: Mapping[str, Callable[[], None]] = {
    "masks: none for a prompt, by layer behind it": _masks,
    "a cache layer that forgets entries, not positions": _cache,
    "chat templates with parts of content": _chat,
}
