"""Every method's selection on the film of `world`, next to the transcription of its paper.

Of a method with several pruning points the first one is timed, where all tokens are still alive, and counted for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import torch

from videoprune.bench.case import Case, Work
from videoprune.bench.machine import DenseLayer
from videoprune.bench.world import BEHIND, LAYERS, World
from videoprune.encode.bavit import THRESHOLD, BAViT
from videoprune.layer_method import Kept
from videoprune.prefill.atp import ATP
from videoprune.prefill.lvpruning import LVPruning
from videoprune.registry import methods
from videoprune.trained import HostFacts, bind_fresh

FLOAT = 4
PAGERANK = "AIM's PageRank reads every row of attention; its page gives the cost and a cheaper variant"


def selections(world: World, reference: ModuleType) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Name and maker of each case: the methods of this package, stage by stage."""
    makers = {"segment": _segment, "encode": _encode, "merge": _merge, "prefill": _prefill, "decode": _decode}
    for entry in methods():
        if entry.stage in makers and not entry.external:
            name, method = f"{entry.stage} {entry.name}", entry.load()()
            bind_fresh([method], facts_of(world))  # learned parts: what they choose does not change what they cost
            yield name, partial(makers[entry.stage], name, method, world, reference)


def facts_of(world: World) -> HostFacts:
    """The model that the film of `world` is in."""
    return HostFacts(
        family="made up",
        width=world.width,
        layers=LAYERS,
        heads=world.heads,
        kv_heads=world.kv_heads,
        head_dim=world.width // world.heads,
        tower_width=world.width,
        tower_layers=LAYERS,
        grid=(world.side, world.side),
        patch=14,
        side=14 * world.side,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )


def _theirs(name: str, world: World, reference: ModuleType) -> tuple[Work | None, float]:
    """The transcription and the bytes that it holds; None for a baseline."""
    made = _TRANSCRIPTIONS.get(name)
    return made(world, reference) if made else (None, 0.0)


def _saved(share: float, layer: int, tokens: int) -> Callable[[DenseLayer], float]:
    """Seconds that the layers from `layer` on save where `share` of the tokens is left."""
    return lambda dense: (LAYERS - layer) * (dense.seconds(tokens) - dense.seconds(share * tokens))


def _segment(name: str, method: Any, world: World, reference: ModuleType) -> Case:
    return Case(name, lambda: method(world.frame_features), *_theirs(name, world, reference))


def _encode(name: str, method: Any, world: World, reference: ModuleType) -> Case:
    views = world.tower_views(method.window)
    layers = len(method.layers(LAYERS))
    share = method.count(world.per_frame) / world.per_frame if method.keep is not None else 0.5
    saves = _saved(share, 0, world.tokens)
    return Case(
        name,
        lambda: [method.plan(view) for view in views],
        *_theirs(name, world, reference),
        saves=saves,
        repeats=layers,
    )


def _merge(name: str, method: Any, world: World, reference: ModuleType) -> Case:
    left = len(method(world.ledger, world.run)) if method.keep is None else method.count(world.tokens)
    saves = _saved(left / world.tokens, 0, world.tokens)
    return Case(name, lambda: method(world.ledger, world.run), *_theirs(name, world, reference), saves=saves)


def _prefill(name: str, method: Any, world: World, reference: ModuleType) -> Case:
    view = world.prefill_view()
    layers = sorted(method.start(world.run, LAYERS).at)
    views = {layer: replace(view, layer=layer) for layer in layers}

    def ours() -> tuple[int, Kept | None]:
        state, kept = method.start(world.run, LAYERS), None
        for layer in layers:
            kept = state.after(views[layer])
            if kept is not None:
                break
        return layer, kept

    points = getattr(method, "layers", None) or getattr(method, "shares", None)
    repeats = len(points) if points else LAYERS // 3 if name == "prefill aim" else 1
    first = layers[0] if method.keep is not None else layers[-1] // 2
    share = method.count(world.tokens) / world.tokens if method.keep is not None else 0.25
    saves = _saved(share, first + 1, world.tokens)
    excepted = PAGERANK if name == "prefill aim" else ""
    return Case(name, ours, *_theirs(name, world, reference), saves=saves, repeats=repeats, excepted=excepted)


def _decode(name: str, method: Any, world: World, reference: ModuleType) -> Case:
    view = world.decode_view()

    def ours() -> object:
        state = method.start(world.run, LAYERS)
        if state.revives:  # it chooses in every step, by the new token's row
            return state.after(replace(view, layer=min(state.point), prefill=False, step=1))
        first = getattr(state, "first", 0)
        done = [state.after(replace(view, layer=max(0, first - 1)))]
        done.append(state.finish([replace(view, layer=first)]))
        return done

    return Case(name, ours, *_theirs(name, world, reference), saves=lambda dense: dense.seconds(world.tokens))


# ---------------------------------------------------------------------------------------------------- transcriptions

Made = tuple[Work, float]


def _matrix(world: World) -> float:
    """Bytes of the eager matrix: logits, masked logits, probabilities."""
    return 3 * FLOAT * world.heads * float(world.key.shape[1]) ** 2


def _of_frames(world: World, matrices: int) -> float:
    return FLOAT * world.tokens * (matrices * world.per_frame + world.width)


def _quota(world: World, share: float) -> torch.Tensor:
    return (torch.bincount(world.event) * world.per_frame * share).long()


def _part(world: World, share: float) -> int:
    return int(world.tokens * share)


def _first_part(method: Any, world: World) -> torch.nn.Module:
    """The learned part of a method's first pruning point."""
    bind_fresh([method], facts_of(world))
    part: torch.nn.Module = method.part[0]
    return part


def _lvpruning(world: World, reference: ModuleType) -> Made:
    method = LVPruning()
    weights = dict(_first_part(method, world).state_dict())
    film, text = world.changed[world.first : world.last], world.changed[world.last :]
    work = partial(reference.lvpruning, film, text, weights, method.heads, world.tokens // 2)
    return work, 4 * _of_frames(world, 0)


def _bavit(world: World, reference: ModuleType) -> Made:
    method = BAViT()
    bind_fresh([method], facts_of(world))
    weights = dict(method.part.state_dict())
    work = partial(reference.bavit, world.pixels, weights, method.depth, method.heads, THRESHOLD)
    return work, FLOAT * world.tokens * 20.0 * method.width


def _atp(world: World, reference: ModuleType) -> Made:
    method = ATP()
    part, cell = _first_part(method, world), world.ledger.cell
    work = partial(reference.atp, world.query, world.key, cell, method.strides, part, world.first, world.last)
    return work, _matrix(world) + FLOAT * world.heads * float(world.tokens) ** 2


_TRANSCRIPTIONS: dict[str, Callable[[World, ModuleType], Made]] = {
    "segment dpc_knn": lambda w, r: (lambda: r.segment_dpc_knn(w.frame_features, max(1, w.frames // 4), min(7, w.frames)), 0.0),
    "segment fastvid": lambda w, r: (lambda: r.segment_fastvid(w.frame_features, min(8, w.frames), 0.9), 0.0),
    "segment holitom": lambda w, r: (lambda: r.segment_holitom(w.frame_features, 0.8), 0.0),
    "segment metok": lambda w, r: (lambda: r.segment_metok(w.frame_features, min(4, w.frames - 1)), 0.0),
    "encode bavit": lambda w, r: _bavit(w, r),
    "encode fastervlm": lambda w, r: (lambda: r.fastervlm(w.cls_attention, w.per_frame // 4), 0.0),
    "encode lvtp": lambda w, r: (
        lambda: r.lvtp(w.unit_keys, w.pixels, w.per_frame * 3 // 4),
        _of_frames(w, 4) + 4 * FLOAT * w.pixels.numel(),
    ),
    "encode sta": lambda w, r: (lambda: r.sta(w.film, w.unit_keys, w.per_frame * 64 // 196), _of_frames(w, 1)),
    "encode tome": lambda w, r: (lambda: r.tome(w.unit_keys, w.film, w.per_frame * 23 // 576), _of_frames(w, 1)),
    "encode visionzip": lambda w, r: (
        lambda: r.visionzip(w.cls_attention, w.unit_keys, w.film, w.per_frame * 54 // 576, w.per_frame * 10 // 576),
        _of_frames(w, 1),
    ),
    "merge aim": lambda w, r: (lambda: r.aim(w.film), 2 * _of_frames(w, 1)),
    "merge divprune": lambda w, r: (lambda: r.divprune(w.film, _part(w, 0.098)), 3 * FLOAT * float(w.tokens) ** 2),
    "merge dycoke": lambda w, r: (lambda: r.dycoke(w.film, 0.7), _of_frames(w, 0)),
    "merge evs": lambda w, r: (lambda: r.evs(w.film, _part(w, 0.25)), 3 * _of_frames(w, 0)),
    "merge fastvid": lambda w, r: (lambda: r.fastvid(w.film, w.event, 0.1), 2 * _of_frames(w, 5)),
    "merge geo3dpruner": lambda w, r: (
        lambda: r.geo3dpruner(w.film, w.points, 0.1, 640),
        3.5 * FLOAT * float(w.tokens) ** 2,
    ),
    "merge holitom": lambda w, r: (lambda: r.holitom(w.film, w.event, 0.1), 2 * _of_frames(w, 3)),
    "merge lrcp": lambda w, r: (lambda: r.lrcp(w.film, 4, _part(w, 0.125)), 5 * _of_frames(w, 0)),
    "merge metok": lambda w, r: (lambda: r.metok_merge(w.film, w.event, w.relevance), _of_frames(w, 0)),
    "merge prunevid": lambda w, r: (lambda: r.prunevid(w.film, w.event), 2 * _of_frames(w, 1)),
    "merge vflowopt": lambda w, r: (lambda: r.vflowopt_merge(w.film, 0.2651), 2 * _of_frames(w, 4)),
    "prefill aim": lambda w, r: (lambda: r.aim_prefill(w.query, w.key, w.first, w.last, w.tokens * 7 // 8), _matrix(w)),
    "prefill atp": lambda w, r: _atp(w, r),
    "prefill dart": lambda w, r: (lambda: r.dart(w.changed, w.key, w.first, w.last, _part(w, 0.222)), _of_frames(w, 0)),
    "prefill entropyprune": lambda w, r: (
        lambda: r.entropyprune(w.query, w.first, w.last, _part(w, 0.3)),
        2 * _of_frames(w, 0),
    ),
    "prefill fastv": lambda w, r: (lambda: r.fastv(w.query, w.key, w.first, w.last, w.tokens // 2), _matrix(w)),
    "prefill holitom": lambda w, r: (
        lambda: r.holitom_prefill(w.query, w.key, w.changed, w.first, w.last, w.tokens // 2),
        max(_matrix(w), FLOAT * float(w.tokens) ** 2 / 2),
    ),
    "prefill lvpruning": lambda w, r: _lvpruning(w, r),
    "prefill metok": lambda w, r: (
        lambda: r.metok_prefill(
            w.query, w.key, w.event.repeat_interleave(w.per_frame), _quota(w, 0.5), w.first, w.last
        ),
        _matrix(w),
    ),
    "prefill prunevid": lambda w, r: (
        lambda: r.prunevid_prefill(
            w.query, w.key, torch.arange(w.tokens) // w.per_frame,
            torch.full((w.frames,), int(0.4 * w.per_frame)), w.first, w.last,
        ),
        2 * FLOAT * w.heads * BEHIND * w.tokens,
    ),
    "prefill lazyllm": lambda w, r: (
        lambda: r.lazyllm(w.query, w.key, w.first, w.last, 30),
        FLOAT * w.heads * w.tokens * 64,
    ),
    "prefill pyramiddrop": lambda w, r: (
        lambda: r.pyramiddrop(w.query, w.key, w.first, w.last, w.tokens // 2),
        FLOAT * w.heads * w.tokens * 64,
    ),
    "prefill sparsevlm": lambda w, r: (
        lambda: r.sparsevlm(w.query, w.key, w.changed, w.first, w.last, w.tokens * 300 // 576),
        max(_matrix(w), 5 * FLOAT * (0.15 * w.tokens) ** 2),
    ),
    "prefill topv": lambda w, r: (
        lambda: r.topv(
            w.film, w.changed[w.first : w.last].view_as(w.film), w.ledger.cell[: w.per_frame].float(), w.tokens // 2
        ),
        _of_frames(w, 5),
    ),
    "prefill transprune": lambda w, r: (
        lambda: r.transprune(w.query, w.key, [(w.hidden, w.changed)] * 2, 1, w.first, w.last, w.tokens * 7 // 8),
        3 * _of_frames(w, 0),
    ),
    "prefill vflowopt": lambda w, r: (lambda: r.p.top(w.cls_attention.flatten(), w.tokens * 9 // 10), 0.0),
    "decode a2sf": lambda w, r: (lambda: r.a2sf(w.query, w.key, 0.95, 16, w.key.shape[1] // 2), _matrix(w)),
    "decode dycoke": lambda w, r: (
        lambda: r.dycoke_decode(w.query, w.key, w.decode_view().text[0], w.tokens // 3),
        FLOAT * w.heads * w.tokens * 64,
    ),
    "decode h2o": lambda w, r: (lambda: r.h2o(w.query, w.key, w.key.shape[1] // 2), _matrix(w)),
    "decode lazyllm": lambda w, r: (
        lambda: r.lazyllm(w.query, w.key, 0, w.key.shape[1], 30),
        FLOAT * w.heads * w.tokens * 64,
    ),
    "decode pagedeviction": lambda w, r: (lambda: r.pagedeviction(w.key, w.value, w.key.shape[1] // 2), 0.0),
    "decode snapkv": lambda w, r: (
        lambda: r.snapkv(w.query, w.key, 64, 5, w.key.shape[1] // 2),
        3 * FLOAT * w.heads * 64 * w.tokens,
    ),
}  # fmt: skip
