"""A run rehearsed: the recipe's own code and the real loops, on a model whose layers do nothing.

The film is made up, features are `WIDTH` wide, a layer passes on what it gets. What is left after every stage is decided by the
code that decides it in earnest, in seconds and without weights. Where a method's count depends on the film, several films are
rehearsed (`FILMS`): one that stands still, one of scenes, one where nothing repeats.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, Qwen2Config

from videoprune.footage import Footage
from videoprune.models.decoder import compressed
from videoprune.models.host import Host, Sampling
from videoprune.models.packed_tower import PackedOutput, PackedTower
from videoprune.models.session import Session
from videoprune.models.tower import DenseTower, TowerOutput
from videoprune.report.flops import Cost
from videoprune.report.memory import LiveBytes
from videoprune.run import Events, Run
from videoprune.scouting import Look, Scouting, in_film, kept_steps, seen_events
from videoprune.stages import Stages, merge
from videoprune.store import Store
from videoprune.tokens import VisualTokens
from videoprune.trained import HostFacts, Trained, bind_fresh

WIDTH, HEADS = 16, 2
FILMS = ("still", "scenes", "noise")
BEFORE = 14  # rows of text before the film, where there is so much text


@dataclass(eq=False)
class Rehearsal:
    """What a rehearsed run left at every stage; counts are of language-model tokens, rows include added ones.

    Attributes:
        sampled, encoded, merged, last_layer: as in a report.
        steps, grid: frames of the ledger, and (rows, columns) of tokens in each.
        stored: rows that wait for questions, after the stages that need none.
        entered: visual rows that enter the language model.
        rows: all rows of the prompt; dense_rows with nothing pruned.
        by_layer: (L,) visual tokens that enter each layer.
        queries, keys: by call, then by layer.
        entries: (L,) cache entries when the answer is complete; prefill_entries when the prompt was read.
        encode, scout: FLOPs of the encoded chunks, and of the scout.
        parked_rows: tokens that wait to come back, at most.
        held: (L,) cache entries of all layers together when each layer begins in prefill, its own left out.
        stored_bytes, merge_bytes, waiting_bytes: what the stages between tower and prompt held: when the last chunk was
            encoded, at most, and when the prompt was made; float32 of `width`.
        tower_bytes: most that a chunk held in a tower whose layers hold nothing, float32 of `width`.
    """

    sampled: int = 0
    steps: int = 0
    grid: tuple[int, int] = (0, 0)
    encoded: int = 0
    merged: int = 0
    last_layer: int = 0
    stored: int = 0
    entered: int = 0
    rows: int = 0
    dense_rows: int = 0
    by_layer: list[int] = field(default_factory=list)
    queries: list[list[int]] = field(default_factory=list)
    keys: list[list[int]] = field(default_factory=list)
    entries: list[int] = field(default_factory=list)
    prefill_entries: list[int] = field(default_factory=list)
    encode: Cost = field(default_factory=Cost)
    scout: Cost = field(default_factory=Cost)
    parked_rows: int = 0
    held: list[int] = field(default_factory=list)
    stored_bytes: int = 0
    merge_bytes: int = 0
    waiting_bytes: int = 0
    tower_bytes: int = 0


@torch.no_grad()
def rehearse(
    host: Host,
    stages: Stages,
    frames: int,
    *,
    text: int,
    new_tokens: int,
    chunk: int,
    picture: tuple[int, int],
    at_most: int | None = None,
    film: str = "scenes",
    seed: int = 0,
    width: int = WIDTH,
    answer: bool = True,
) -> Rehearsal:
    """Rehearse one question on a film of `frames` frames.

    Args:
        host: of the model, its weights may be on the meta device.
        stages: the recipe's methods.
        text: rows of text in the prompt, template and question together.
        new_tokens: length of the answer.
        chunk: frames encoded at a time, whole windows of the encode methods.
        picture: (height, width) of a decoded frame.
        at_most: tokens held while the film is watched, as in `watch.at_most`.
        film: one of FILMS.
        width: of the features.
        answer: False ends before the language model.
    """
    generator = torch.Generator().manual_seed(seed)
    understudy = _understudy(host, film, generator, width, picture)
    narrow = HostFacts.of(host) if any(isinstance(method, Trained) for method in stages.every) else None
    if narrow is not None:  # learned parts see states of this width, and pictures of one pixel a patch
        states: dict[str, Any] = {"width": width, "heads": HEADS, "kv_heads": HEADS, "head_dim": width // HEADS}
        channels = 3 if isinstance(host.tower, PackedTower) else width
        pictures: dict[str, Any] = {"patch": 1, "side": narrow.side // max(1, narrow.patch), "channels": channels}
        bind_fresh(stages.every, dataclasses.replace(narrow, **states, **pictures))
    out = Rehearsal()
    meter = LiveBytes()
    events, tokens = _watch(understudy, stages, frames, chunk, at_most, seed, film, meter, out)
    out.stored, out.sampled, out.steps, out.grid = len(tokens), len(tokens.owner), tokens.frames, tokens.grid
    run = Run(events, question=torch.randn(8, width, generator=generator), seed=seed)
    if stages.need_relevance:
        run.relevance = torch.rand(tokens.frames, generator=generator)
        rank = stages.segment[0].rank if stages.segment else None
        run.events = events.ranked(run.relevance, 1) if rank is None else rank(events, run.relevance)
    with meter:
        merged = merge(tokens, run, stages.aware, understudy)
    out.merge_bytes, out.waiting_bytes = meter.peak, meter.live
    tokens = merged
    out.merged, out.entered = tokens.count, len(tokens)
    if answer:
        _answer(understudy, stages, tokens, run, text, new_tokens, out)
    return out


def _watch(
    host: Host,
    stages: Stages,
    frames: int,
    chunk: int,
    at_most: int | None,
    seed: int,
    film: str,
    meter: LiveBytes,
    out: Rehearsal,
) -> tuple[Events, VisualTokens]:
    """The question-blind part, as `watching` does it: encode and store chunk by chunk, then segment and merge."""
    store = Store(stages.blind, stages.segment, host, at_most, seed)
    scout = None if stages.scout is None else Scouting(stages.scout, stages.prune, host.pair)
    looks, footage, entered = list[Look](), Footage(film, (WIDTH,), torch.Generator().manual_seed(seed)), 0
    for first in range(0, frames, chunk):  # chunks are even: a pair of frames may be one step
        number, features = np.arange(first, min(first + chunk, frames)), None
        if scout is not None:  # its own film: what it would see is not there
            dreamt, work = footage(number[:: host.pair]), Cost(linear=scout.method.cost(len(number), stages.prune))
            looks.append(scout.choose(dreamt, len(dreamt), work))
            number, features = number[scout.frames(looks[-1], len(number)).numpy()], dreamt[looks[-1].kept]
        if not len(number):
            continue
        encoded = host.encode(number, number.astype(np.float64), entered, stages.encode, Sampling(frames, 1.0))
        entered += len(number)
        out.encode = out.encode + encoded.cost
        out.tower_bytes = max(out.tower_bytes, cast(Any, host.tower).peak)
        out.stored_bytes = max(out.stored_bytes, meter.live)
        with meter:  # a copy, so that the meter sees it come and go
            store.add(dataclasses.replace(encoded.tokens, features=encoded.tokens.features.clone()), features)
    out.encoded, out.scout = store.encoded, sum((look.cost for look in looks), Cost())
    whole = torch.cat([look.features for look in looks if look.features is not None] or store.features)
    events = stages.segment[0](whole) if stages.segment else Events.single(len(whole))
    seen = kept_steps(looks)
    with meter:
        tokens = store.finish(events if seen is None else seen_events(events, seen))
    if seen is not None:
        tokens = in_film(tokens, seen, torch.arange(len(whole)).double(), stages.compact)
    return events, tokens.with_events(events.frame_event)


def _answer(
    host: Host, stages: Stages, tokens: VisualTokens, run: Run, text: int, new_tokens: int, out: Rehearsal
) -> None:
    depth, before = host.decoder_shape.layers, min(text, BEFORE)
    words = torch.zeros(text, dtype=torch.int64)
    prompt, _ = host.lay_out(words[:before], words[before:], tokens, words[:0])
    rows = prompt.embeddings
    model = _Model(_Decoder(depth, rows.shape[2]))
    session = Session(
        visual=prompt.visual,
        tokens=tokens,
        prefill=[method.start(run, depth) for method in stages.prefill],
        decode=[method.start(run, depth) for method in stages.decode],
    )
    cache = DynamicCache(config=model.decoder.config)
    with compressed(model, session) as trace:
        model.decoder.forward(inputs_embeds=rows, past_key_values=cache)
        for _ in range(new_tokens - 1):  # the last token is never fed
            model.decoder.forward(inputs_embeds=rows[:, -1:], past_key_values=cache)
    alive = torch.arange(len(tokens))
    for layer in sorted(trace.kept):
        if layer < depth - 1:
            alive = trace.kept[layer]
    out.last_layer = int((tokens.weight[alive] > 0).sum())
    out.rows, out.dense_rows, out.by_layer = rows.shape[1], prompt.dense_rows, list(trace.visual_rows)
    out.queries, out.keys = trace.queries, trace.keys
    out.held = [layer.held for layer in model.decoder.layers]
    out.entries, out.prefill_entries, out.parked_rows = trace.entries, trace.prefill_entries, trace.parked_most


# ---------------------------------------------------------------------------------------------------------- stand-ins


def _understudy(host: Host, film: str, generator: torch.Generator, width: int, picture: tuple[int, int]) -> Host:
    """The host with a tower that computes nothing; its grid, its bookkeeping and its formulas are its own."""
    understudy = copy.copy(host)
    stand_in: Any = understudy  # methods are replaced on this instance alone
    stand_in.device, stand_in.dtype = torch.device("cpu"), torch.float32
    if isinstance(host.tower, PackedTower):
        real: Any = host
        stand_in.tower = _PackedTower(host.tower, width)
        stand_in.preprocess = _Patches(real.preprocess, picture, film, generator)
    else:
        units = host.unit_of_patch()
        patches = len(units)
        side = math.isqrt(patches)
        shape = (side, side) if side * side == patches else (1, patches)
        stand_in.tower = _Tower(host.tower.stop, units, host.tower.has_cls, width)
        stand_in.preprocess = Footage(film, (width, *shape), generator)
        stand_in.project = lambda hidden: _pooled(hidden, units)
    row = torch.zeros(width)
    newline, separator = host.newline() is not None, host.separator() is not None
    stand_in.newline = lambda: row if newline else None
    stand_in.separator = lambda: row if separator else None
    stand_in.embed = lambda ids: torch.ones(len(ids), width)
    stand_in.check_context = lambda rows: None  # whoever plans says how far beyond it is
    return understudy


def _pooled(hidden: Tensor, units: Tensor) -> Tensor:
    """Patches (F, N, C) to the mean of each unit (F, U, C); lone rows (F, C) as they are."""
    if hidden.ndim == 2:
        return hidden
    sums = hidden.new_zeros(len(hidden), int(units.max()) + 1, hidden.shape[2]).index_add_(1, units, hidden)
    return sums / torch.bincount(units)[None, :, None]


class _Patches:
    """Stands for the pixels of a packed tower: patches of one pixel on the grid that the real preprocessing gives."""

    def __init__(self, real: Any, picture: tuple[int, int], film: str, generator: torch.Generator) -> None:
        self.real, self.picture, self.film, self.generator = real, picture, film, generator
        self.patch, self.merge, self.pair, self.factor = 1, real.merge, real.pair, real.merge
        self.footage: Footage | None = None

    def __call__(self, number: np.ndarray, frames: int) -> Tensor:
        rows, columns = self.real.grid(*self.picture, frames)
        if self.footage is None:
            self.footage = Footage(self.film, (3, rows * self.merge, columns * self.merge), self.generator)
        whole = np.concatenate((number, number[-1:].repeat(-len(number) % self.pair)))
        return self.footage(whole)


class _Tower(DenseTower):
    """The tower's loop over layers that pass everything on; `peak` is what it held at most."""

    def __init__(self, stop: int, unit_of_patch: Tensor, has_cls: bool, width: int) -> None:
        stack: Any = nn.Module()
        stack.layers = nn.ModuleList(_TowerLayer(width) for _ in range(stop))
        inner = SimpleNamespace(
            embeddings=lambda pixels: nn.functional.pad(pixels.flatten(2).transpose(1, 2), (0, 0, int(has_cls), 0)),
            encoder=stack,
        )
        super().__init__(inner, stop, unit_of_patch, has_cls)
        self.peak = 0

    def __call__(self, *args: Any, **kwargs: Any) -> TowerOutput:
        with LiveBytes() as meter:
            out = super().__call__(*args, **kwargs)
        self.peak, out.counted = max(self.peak, meter.peak), 0.0  # counted at a width that is not the model's
        return out


class _PackedTower(PackedTower):
    """The packed tower's loop over blocks that pass everything on; costs are those of the real one."""

    def __init__(self, real: PackedTower, width: int) -> None:
        heads = real.shape.heads
        self.real, self.peak, inner = real, 0, heads * max(1, width // heads)
        tower: Any = SimpleNamespace(
            blocks=[_Block(inner) for _ in range(real.stop)],
            spatial_merge_size=real.merge,
            config=SimpleNamespace(patch_size=real.patch, rope_parameters=None),
            fullatt_block_indexes=real.full,
            window_size=getattr(real.tower, "window_size", 0),
            patch_embed=lambda patches: patches[:, :1].expand(-1, inner).clone(),
            merger=lambda rows: rows.unflatten(0, (-1, real.merge**2)).mean(1)[:, :1].expand(-1, width).clone(),
        )
        if real.deep:
            tower.deepstack_visual_indexes = real.deep
            tower.deepstack_merger_list = [tower.merger] * len(real.deep)
        super().__init__(tower, real.shape, width)

    def __call__(self, *args: Any, **kwargs: Any) -> PackedOutput:
        with LiveBytes() as meter:
            out = super().__call__(*args, **kwargs)
        self.peak, out.counted = max(self.peak, meter.peak), 0.0  # counted at a width that is not the model's
        return out

    def embed_cost(self, units: int) -> Cost:
        return self.real.embed_cost(units)

    def merger_cost(self, units: int) -> Cost:
        return self.real.merger_cost(units)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), nn.Module()
        self.attn.qkv = nn.Linear(width, 3 * width)

    def forward(self, hidden: Tensor, **unused: Any) -> Tensor:
        return hidden


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = HEADS, width // HEADS
        self.scale = self.scaling = self.head_dim**-0.5
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden


class _TowerLayer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer_norm1, self.self_attn = nn.LayerNorm(width), _Attention(width)

    def forward(self, hidden: Tensor, mask: None) -> Tensor:
        return hidden


class _DecoderLayer(nn.Module):
    """Calls what prefill methods may want to capture, writes its keys and values, and passes its input on."""

    def __init__(self, number: int, width: int) -> None:
        super().__init__()
        self.number, self.held = number, 0
        self.input_layernorm, self.post_attention_layernorm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attn, self.mlp = _Attention(width), nn.Identity()

    def forward(self, hidden: Tensor, *, past_key_values: Any, **unused: Any) -> Tensor:
        if not past_key_values.layers[self.number].size:  # the prompt is read
            self.held = sum(layer.size for layer in past_key_values.layers[: self.number])
        normed = self.self_attn(self.input_layernorm(hidden))
        keys = self.self_attn.k_proj(normed).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        past_key_values.update(keys, keys, self.number)
        self.mlp(self.post_attention_layernorm(hidden))
        return hidden


class _Decoder(nn.Module):
    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        config: Any = Qwen2Config(
            hidden_size=width, num_hidden_layers=layers, num_attention_heads=HEADS, num_key_value_heads=HEADS
        )
        config._attn_implementation = "sdpa"
        self.config, self.norm, self.width = config, nn.Identity(), width
        self.layers = nn.ModuleList(_DecoderLayer(number, width) for number in range(layers))

    def rotary_emb(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = hidden.new_zeros(1, hidden.shape[1], self.width // HEADS)
        return angles + 1, angles


class _Model:
    """What `compressed` needs of a model."""

    def __init__(self, decoder: _Decoder) -> None:
        self.decoder: Any = decoder.eval()

    def get_decoder(self) -> Any:
        return self.decoder


def films_of(stages: Stages) -> Sequence[str]:
    """The films to rehearse: one where all counts are known beforehand, else all."""
    return ("scenes",) if all(method.fixed_count for method in stages.every) else FILMS
