"""The primitives of `videoprune.ops` with what each computes and moves, next to their transcriptions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType

import torch

from videoprune.bench.case import Case
from videoprune.bench.world import BEHIND, World
from videoprune.ops import attention, clustering, farthest, matching, similarity, subspace, transport, windows

FLOAT = 4
PICKS = 512  # farthest points taken, at every size
ITERATIONS = 5  # of a row vector times the attention matrix


def primitives(world: World, reference: ModuleType) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Name and maker of each case, so that only those that are wanted are prepared."""
    for make in (
        _attention_rows, _column_sums, _vector_times, _bipartite, _nearest_kept, _group_mean, _farthest, _dpc_frames, _dpc_film,
        _one_sided, _sinkhorn, _top_per_group, _top, _thin, _subspace, _windows, _nearest, _slot_means, _cosine, _adjacent,
    ):  # fmt: skip
        yield (make.__doc__ or "").strip().rstrip("."), partial(make, world, reference)


def _eager(world: World) -> float:
    """Bytes of logits, masked logits and probabilities of the whole matrix."""
    return 3 * FLOAT * world.heads * float(world.key.shape[1]) ** 2


def _attention_rows(world: World, reference: ModuleType) -> Case:
    """attention rows (32 of text)."""
    length = world.key.shape[1]
    rows = torch.arange(length - BEHIND, length)
    elements = world.heads * BEHIND * length
    return Case(
        "attention rows (32 of text)",
        lambda: attention.row_attention(world.query[:, rows], world.key, world.scale, rows),
        lambda: reference.attention_rows(world.query, world.key, world.scale, rows),
        _eager(world), 2.0 * 64 * elements, FLOAT * elements,
    )  # fmt: skip


def _column_sums(world: World, reference: ModuleType) -> Case:
    """streamed column sums."""
    length = world.key.shape[1]
    weights = torch.full((length,), 1 / length)
    return Case(
        "streamed column sums",
        lambda: attention.decayed_column_sum(world.query, world.key, weights, world.scale),
        lambda: reference.column_mean(world.query, world.key, world.scale),
        _eager(world), 64.0 * world.heads * length**2, FLOAT * world.query.numel(),
    )  # fmt: skip


def _vector_times(world: World, reference: ModuleType) -> Case:
    """row vector times attention, 5 steps."""
    length = world.key.shape[1]

    def ours() -> object:
        graph = attention.StreamedAttention(world.query, world.key, world.scale)
        flow = torch.full((world.heads, length), 1 / length)
        for _ in range(ITERATIONS):
            flow = graph.times(flow)
        return flow

    products = 1 if length <= attention.HOLD_LENGTH else ITERATIONS
    return Case(
        "row vector times attention, 5 steps",
        ours,
        lambda: reference.pagerank(world.query, world.key, world.scale, ITERATIONS),
        _eager(world), 64.0 * world.heads * length**2 * products, FLOAT * world.query.numel(),
    )  # fmt: skip


def _bipartite(world: World, reference: ModuleType) -> Case:
    """bipartite matching, half of each frame."""
    half = world.per_frame // 2
    return Case(
        "bipartite matching, half of each frame",
        lambda: matching.bipartite_plan(world.film, half),
        lambda: reference.bipartite(world.film, half),
        FLOAT * 2 * world.film.numel(), 2.0 * world.tokens * half / 2 * world.width, FLOAT * world.film.numel(),
    )  # fmt: skip


def _nearest_kept(world: World, reference: ModuleType) -> Case:
    """nearest kept of each frame."""
    keep = torch.zeros(world.frames, world.per_frame, dtype=torch.bool)
    keep[:, ::4] = True
    count = int(keep[0].sum())
    kept = world.film[:, ::4].contiguous()
    return Case(
        "nearest kept of each frame",
        lambda: matching.nearest_kept(world.film, keep, count),
        lambda: reference.cosine(world.film, kept).argmax(-1),
        FLOAT * 2 * world.film.numel(), 2.0 * world.tokens * count * world.width, FLOAT * world.film.numel(),
    )  # fmt: skip


def _group_mean(world: World, reference: ModuleType) -> Case:
    """means of merged pairs of each frame."""
    half = world.per_frame // 2
    survivors, into = matching.bipartite_plan(world.film, half)
    slot, mass = torch.searchsorted(survivors, into), torch.ones(world.frames, world.per_frame)
    plan = reference.bipartite(world.film, half)
    return Case(
        "means of merged pairs of each frame",
        lambda: matching.group_mean(world.film, mass, slot, world.per_frame - half),
        lambda: reference.merge_mean(world.film, plan),
        FLOAT * 2 * world.film.numel(), 0.0, FLOAT * 1.5 * world.film.numel(),
    )  # fmt: skip


def _farthest(world: World, reference: ModuleType) -> Case:
    """greedy farthest point, 512 taken."""
    rows, picks = world.film.flatten(0, 1), min(PICKS, world.tokens)
    steps = 0 if world.tokens <= farthest.HOLD else picks * world.tokens
    return Case(
        "greedy farthest point, 512 taken",
        lambda: farthest.farthest_points(rows, picks),
        lambda: reference.farthest(rows, picks),
        3 * FLOAT * world.tokens**2, 1.0 * world.tokens**2 * world.width + 2.0 * steps * world.width,
        FLOAT * (world.tokens * picks + steps * world.width),
    )  # fmt: skip


def _dpc_frames(world: World, reference: ModuleType) -> Case:
    """DPC-KNN of each frame."""
    clusters = world.per_frame // 4
    return Case(
        "DPC-KNN of each frame",
        lambda: clustering.dpc_knn(world.film, clusters, 7),
        lambda: reference.dpc_knn(world.film, clusters, 7),
        5 * FLOAT * world.tokens * world.per_frame, 2.0 * world.tokens * world.per_frame * world.width,
        FLOAT * world.film.numel(),
    )  # fmt: skip


def _dpc_film(world: World, reference: ModuleType) -> Case:
    """DPC-KNN of the whole film."""
    rows = world.film.flatten(0, 1)
    products = 0.5 if world.tokens <= clustering.HOLD else 2.0  # one half, mirrored; or all of them twice
    return Case(
        "DPC-KNN of the whole film",
        lambda: clustering.dpc_knn(rows, 256, 7),
        lambda: reference.dpc_knn(rows[None], 256, 7),
        5 * FLOAT * world.tokens**2, products * 2 * world.tokens**2 * world.width, FLOAT * world.film.numel(),
    )  # fmt: skip


def _transport(
    world: World, reference: ModuleType, iterations: int
) -> tuple[Callable[[], object], Callable[[], object]]:
    source, target = world.film, world.film + 0.5
    ones = torch.ones(world.frames, world.per_frame)
    most = float(torch.cdist(source[:1], target[:1]).max())

    def cost(start: int, stop: int) -> torch.Tensor:
        return similarity.distance(source, target[:, start:stop]) / most

    return (
        lambda: transport.transport_row_sums(cost, ones, ones, 0.1, iterations, block=world.per_frame),
        lambda: reference.sinkhorn(torch.cdist(source, target) / most, ones, ones, 0.1, iterations),
    )


def _one_sided(world: World, reference: ModuleType) -> Case:
    """one-sided Sinkhorn of each frame."""
    return Case(
        "one-sided Sinkhorn of each frame",
        *_transport(world, reference, 1),
        4 * FLOAT * world.tokens * world.per_frame, 2.0 * world.tokens * world.per_frame * world.width,
        2 * FLOAT * world.film.numel(),
    )  # fmt: skip


def _sinkhorn(world: World, reference: ModuleType) -> Case:
    """full Sinkhorn of each frame, 10 iterations."""
    matrix = FLOAT * world.tokens * world.per_frame
    return Case(
        "full Sinkhorn of each frame, 10 iterations",
        *_transport(world, reference, 10),
        4 * matrix, 2.0 * world.tokens * world.per_frame * world.width, 2 * FLOAT * world.film.numel() + 19 * matrix,
    )  # fmt: skip


def _top_per_group(world: World, reference: ModuleType) -> Case:
    """segmented top-k, a group a frame."""
    score, group = world.cls_attention.flatten(), torch.arange(world.tokens) // world.per_frame
    quota = torch.full((world.frames,), world.per_frame // 4)
    return Case(
        "segmented top-k, a group a frame",
        lambda: attention.best_per_group(score, group, quota),
        lambda: reference.top_per_group(score, group, quota),
        0.0, 0.0, 12.0 * world.tokens,
    )  # fmt: skip


def _top(world: World, reference: ModuleType) -> Case:
    """top-k, a quarter."""
    score = world.cls_attention.flatten()
    return Case(
        "top-k, a quarter",
        lambda: attention.keep_best(score, world.tokens // 4),
        lambda: reference.top(score, world.tokens // 4),
        0.0, 0.0, (FLOAT + 2) * world.tokens,
    )  # fmt: skip


def _thin(world: World, reference: ModuleType) -> Case:
    """even thinning to a quarter."""
    free = world.cls_attention.flatten() > world.cls_attention.median()
    count = world.tokens // 4
    return Case(
        "even thinning to a quarter",
        lambda: attention.thin_evenly(free, count),
        lambda: reference.thin_evenly(free, count),
        moved=2.0 * world.tokens,
    )


def _subspace(world: World, reference: ModuleType) -> Case:
    """subspace iteration, 4 directions."""
    rows = world.film.flatten(0, 1)
    passes = 2 * subspace.ITERATIONS + 1
    return Case(
        "subspace iteration, 4 directions",
        lambda: subspace.principal_directions(rows, 4),
        lambda: reference.principal_directions(rows, 4),
        3 * FLOAT * rows.numel(), 2.0 * rows.numel() * (4 + subspace.SPARE) * passes,
        FLOAT * rows.numel() * (subspace.ITERATIONS + 1),
    )  # fmt: skip


def _windows(world: World, reference: ModuleType) -> Case:
    """dynamic programming over windows."""
    static = similarity.adjacent_cosine(world.film) > 0.8

    def ours() -> object:
        count = windows.static_counts(static, world.frames)
        return windows.best_windows(count * torch.arange(world.frames))

    return Case(
        "dynamic programming over windows", ours, lambda: reference.static_windows(static),
        0.0, 0.0, static.numel() + 8.0 * world.frames**2,
    )  # fmt: skip


def _nearest(world: World, reference: ModuleType) -> Case:
    """nearest of 1024 targets."""
    rows = world.film.flatten(0, 1)
    targets = rows[:: max(1, len(rows) // 1024)][:1024].contiguous()
    return Case(
        "nearest of 1024 targets",
        lambda: clustering.nearest(rows, targets),
        lambda: reference.nearest(rows, targets),
        2 * FLOAT * rows.numel() + FLOAT * len(rows) * len(targets), 2.0 * rows.numel() * len(targets), FLOAT * rows.numel(),
    )  # fmt: skip


def _slot_means(world: World, reference: ModuleType) -> Case:
    """means of 1024 groups."""
    rows = world.film.flatten(0, 1)
    slot = torch.randint(1024, (len(rows),), generator=world.generator)
    return Case(
        "means of 1024 groups",
        lambda: clustering.slot_means(rows, slot, 1024),
        lambda: reference.group_means(rows, slot, 1024),
        FLOAT * rows.numel(), 0.0, FLOAT * (rows.numel() + 1024 * world.width),
    )  # fmt: skip


def _cosine(world: World, reference: ModuleType) -> Case:
    """cosines inside each frame."""
    return Case(
        "cosines inside each frame",
        lambda: similarity.cosine(world.film, world.film),
        lambda: reference.cosine(world.film, world.film),
        FLOAT * 3 * world.film.numel(), 2.0 * world.tokens * world.per_frame * world.width,
        FLOAT * (world.film.numel() + world.tokens * world.per_frame),
    )  # fmt: skip


def _adjacent(world: World, reference: ModuleType) -> Case:
    """cosines of adjacent frames."""
    return Case(
        "cosines of adjacent frames",
        lambda: similarity.adjacent_cosine(world.film),
        lambda: reference.adjacent_cosine(world.film),
        FLOAT * 3 * world.film.numel(), 0.0, FLOAT * world.film.numel(),
    )  # fmt: skip
