"""The vision tower as our own loop over its stock layers, so that units can leave between layers.

For towers that see one frame at a time (CLIP, SigLIP, InternVL). Frames are the batch dimension; frames that keep equally
many patches run as one dense batch, never padded and never masked. A unit is the set of patches that becomes one
language-model token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from videoprune.method import BEFORE, EncodeMethod, TowerView
from videoprune.models.tower_layer import TowerLayer
from videoprune.ops.counting import CountedFlops


@dataclass(eq=False)
class TowerOutput:
    """What left the tower for a chunk of F frames.

    Attributes:
        hidden: (F, N, C) patches on the full grid; those of an absorbed unit hold the values of the unit that absorbed it,
            those of a dropped one zeros.
        kept: (F, U) bool, the units that came through.
        absorbed_by: (F, U) int64 unit of the same frame that stands for each, itself where kept, -1 where dropped.
        cls: (F, C) the [CLS] row, None on a tower without one.
        lengths: (frames, rows of one frame at each layer that ran), one entry for each pattern that occurred.
        counted: FLOPs of what the methods computed to decide.
        scores: (F, U) each, what methods left for later stages; zero where a unit was gone by then.
    """

    hidden: Tensor
    kept: Tensor
    absorbed_by: Tensor
    cls: Tensor | None
    lengths: list[tuple[int, list[int]]] = field(default_factory=list)
    counted: float = 0.0
    scores: dict[str, Tensor] = field(default_factory=dict)

    def scores_of(self, place: Tensor | None = None) -> dict[str, Tensor]:
        """The scores of units at `place` (T,), as from `ledger`, or of all: (T,) each."""
        flat = {name: score.flatten() for name, score in self.scores.items()}
        return flat if place is None else {name: score[place] for name, score in flat.items()}

    def ledger(self) -> tuple[Tensor, Tensor]:
        """place (T,) of each kept unit on the full grids, frame-major, and owner (F*U,), the one of them for each unit."""
        frames, units = self.kept.shape
        flat = self.kept.flatten()
        place = flat.nonzero()[:, 0]
        slot = torch.full((frames * units,), -1, dtype=torch.int64, device=flat.device)
        slot[place] = torch.arange(len(place), device=flat.device)
        base = torch.arange(frames, device=flat.device)[:, None] * units
        absorbed = torch.where(self.absorbed_by >= 0, self.absorbed_by + base, -1).flatten()
        return place, torch.where(absorbed >= 0, slot[absorbed.clamp(min=0)], -1)


@dataclass(eq=False)
class Group:
    """Frames with equally many patches: frame (f,) rows of the chunk, hidden (f, extra+P, C), patch (f, P)."""

    frame: Tensor
    hidden: Tensor
    patch: Tensor


@dataclass(eq=False)
class Books:
    """Who stands for whom in a chunk: alive (F, U) bool, size (F, U) original units, absorbed_by (F, U) unit or -1; and what
    methods had to say of each unit, (F, U)."""

    alive: Tensor
    size: Tensor
    absorbed_by: Tensor
    scores: dict[str, Tensor] = field(default_factory=dict)

    def columns(self) -> tuple[Tensor, Tensor, Tensor]:
        """Units alive, ascending: order (F, W) unit numbers, valid (F, W) false where a frame has fewer, and the inverse
        column (F, U) of each unit."""
        width = int(self.alive.sum(dim=1).max())
        order = torch.argsort((~self.alive).to(torch.int8), dim=1, stable=True)[:, :width]
        column = torch.zeros_like(self.size)
        column.scatter_(1, order, torch.arange(width, device=order.device).expand_as(order))
        return order, self.alive.gather(1, order), column

    def note(self, order: Tensor, valid: Tensor, scores: Mapping[str, Tensor]) -> None:
        """Enter scores (F, W) of the units of `columns()`."""
        for name, score in scores.items():
            whole = score.new_zeros(self.size.shape)
            self.scores[name] = whole.scatter_(1, order, torch.where(valid, score, 0))

    def write(
        self, order: Tensor, valid: Tensor, keep: Tensor, absorbed_by: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Enter a decision on the units of `columns()`; returns, for each unit that another absorbs, its frame (M,), its
        number (M,), the absorber's number (M,), and how many original units it stood for (M,)."""
        leaves = valid & ~keep
        into = torch.where(leaves & (absorbed_by >= 0), order.gather(1, absorbed_by.clamp(min=0)), -1)
        row, place = (into >= 0).nonzero(as_tuple=True)
        unit, goal = order[row, place], into[row, place]
        share, self.size = self.size[row, unit], self.size.clone()
        self.size.index_put_((row, goal), share, accumulate=True)
        stands = torch.full_like(self.absorbed_by, -1).scatter_(1, order, torch.where(keep, order, into))
        self.absorbed_by = torch.where(self.absorbed_by >= 0, stands.gather(1, self.absorbed_by.clamp(min=0)), -1)
        self.alive = torch.zeros_like(self.alive).scatter_(1, order, keep)
        return row, unit, goal, share


def acting(methods: Sequence[EncodeMethod], depth: int) -> dict[int, list[tuple[EncodeMethod, int]]]:
    """Layer -> the methods that act after it, each with which of its layers this is."""
    at: dict[int, list[tuple[EncodeMethod, int]]] = {}
    for method in methods:
        for step, number in enumerate(method.layers(depth)):
            at.setdefault(number, []).append((method, step))
    return at


@dataclass(eq=False)
class Decision:
    """Of a method on frames (F, W): keep (F, W) bool, absorbed_by (F, W) column or -1, scores (F, W) each; whether anything
    is to leave at all."""

    keep: Tensor
    absorbed_by: Tensor
    scores: dict[str, Tensor] = field(default_factory=dict)
    acts: bool = False


def decide(method: EncodeMethod, valid: Tensor, view: Callable[[slice], TowerView]) -> Decision:
    """Call the method window by window."""
    made = Decision(valid.clone(), torch.full(valid.shape, -1, dtype=torch.int64, device=valid.device))
    together = method.window if method.window > 1 else len(valid)  # independent frames share one call
    for start in range(0, len(valid), together):
        rows = slice(start, min(start + together, len(valid)))
        plan = method.plan(view(rows))
        if plan is None:
            continue
        for name, score in plan.scores.items():
            made.scores.setdefault(name, torch.zeros(valid.shape, device=valid.device))[rows] = score.float()
        if plan.keep is None:
            continue
        made.acts = True
        made.keep[rows] &= plan.keep
        if plan.absorbed_by is not None:
            made.absorbed_by[rows] = plan.absorbed_by
    return made


class DenseTower:
    """A per-frame vision tower.

    Args:
        tower: stock CLIPVisionModel, SiglipVisionModel or InternVLVisionModel.
        stop: layers that run; a host that selects hidden state -2 never computes the last one.
        unit_of_patch: (N,) int64, unit of every patch, raster order; units are numbered in raster order too.
        has_cls: whether row 0 is a [CLS].

    Attributes:
        cls_substitute: what methods read in the place of the attention of [CLS] on a tower without one; None: nothing.
    """

    cls_substitute: str | None = "mean received attention"

    def __init__(self, tower: Any, stop: int, unit_of_patch: Tensor, has_cls: bool) -> None:
        self.stop, self.has_cls, self.extra = stop, has_cls, int(has_cls)
        inner = getattr(tower, "vision_model", tower)
        self.embeddings = inner.embeddings
        self.first_norm: Callable[[Tensor], Tensor] = getattr(inner, "pre_layrnorm", nn.Identity())
        stack = inner.encoder
        self.layers = [TowerLayer(layer) for layer in (stack.layers if hasattr(stack, "layers") else stack.layer)]
        device = next(stack.parameters()).device
        self.unit_of_patch = unit_of_patch.to(device)
        self.patches, self.units = len(unit_of_patch), int(unit_of_patch.max()) + 1
        # patch_at[u, o]: the o-th patch of unit u. A unit at the ragged edge of an odd grid has fewer and repeats them, so
        # that a patch always finds a partner at its own place when units are merged.
        inside = [(unit_of_patch == unit).nonzero()[:, 0] for unit in range(self.units)]
        self.largest = max(len(patches) for patches in inside)
        place = torch.arange(self.largest)
        self.patch_at = torch.stack([patches[place % len(patches)] for patches in inside]).to(device)
        self.patches_in = torch.tensor([len(patches) for patches in inside], device=device)
        offset = torch.zeros_like(unit_of_patch)
        for patches in inside:
            offset[patches] = torch.arange(len(patches))
        self.offset = offset.to(device)

    @torch.no_grad()
    def __call__(self, pixels: Tensor, frame: Tensor, methods: Sequence[EncodeMethod] = ()) -> TowerOutput:
        """Run F frames (F, 3, H, W); `frame` (F,) are their numbers in the film; methods act in order after their layers."""
        hidden = self.first_norm(self.embeddings(pixels))
        frames, device = len(hidden), hidden.device
        unit = torch.arange(self.units, device=device).repeat(frames, 1)
        books = Books(torch.ones_like(unit, dtype=torch.bool), torch.ones_like(unit), unit)
        groups = [
            Group(
                torch.arange(frames, device=device),
                hidden,
                torch.arange(self.patches, device=device).expand(frames, -1),
            )
        ]
        del hidden  # else the first layer's input would stay to the end
        at = acting(methods, self.stop)
        patterns: list[list[int]] = [[] for _ in range(frames)]
        counter, shrunk = CountedFlops(), False
        for number in range(BEFORE, self.stop):
            entered = [group.hidden for group in groups]
            with listening(self.layers[number].keys_come_from if number in at and number != BEFORE else None) as keys:
                for group in groups if number != BEFORE else ():
                    group.hidden = self.layers[number](group.hidden)
                    for row in range(frames) if len(groups) == 1 else group.frame.tolist():
                        patterns[row].append(group.hidden.shape[1])
            for method, step in at.get(number, ()):
                act = _Act(self, number, step, groups, entered, keys, books, pixels, frame)
                with counter:
                    made = act.decide(method)
                    books.note(act.order, act.valid, made.scores)
                    if not made.acts:
                        continue
                    groups = act.shrink(made)
                entered, keys = [group.hidden for group in groups], []
                shrunk = True
        full, first, _ = self._spread(groups, frames)
        if shrunk:
            owner = books.absorbed_by[:, self.unit_of_patch]  # (F, N)
            source = self.patch_at[owner.clamp(min=0), self.offset]
            full = torch.where((owner >= 0)[..., None], full.gather(1, source[..., None].expand_as(full)), 0)
        lengths = [(count, list(rows)) for rows, count in Counter(map(tuple, patterns)).items()]
        cls = first[:, 0] if self.has_cls else None
        return TowerOutput(full, books.alive, books.absorbed_by, cls, lengths, counter.total, books.scores)

    def _spread(self, groups: Sequence[Group], frames: int) -> tuple[Tensor, Tensor, Tensor]:
        """Groups back on the full grid: values (F, N, C), the leading rows (F, extra, C), and which patches are there."""
        if len(groups) == 1 and groups[0].patch.shape[1] == self.patches:
            hidden = groups[0].hidden
            return hidden[:, self.extra :], hidden[:, : self.extra], torch.ones_like(groups[0].patch, dtype=torch.bool)
        like = groups[0].hidden
        values = like.new_zeros(frames, self.patches, like.shape[-1])
        first = like.new_zeros(frames, self.extra, like.shape[-1])
        present = torch.zeros(frames, self.patches, dtype=torch.bool, device=like.device)
        for group in groups:
            values[group.frame[:, None], group.patch] = group.hidden[:, self.extra :]
            first[group.frame] = group.hidden[:, : self.extra]
            present[group.frame[:, None], group.patch] = True
        return values, first, present


@contextmanager
def listening(module: nn.Module | None) -> Iterator[list[Tensor]]:
    """What `module` gives at each call inside the `with`; nothing for None."""
    outputs: list[Tensor] = []
    handle = None if module is None else module.register_forward_hook(lambda _, __, out: outputs.append(out))
    try:
        yield outputs
    finally:
        if handle is not None:
            handle.remove()


class _Act:
    """One method after one layer: what it sees, and what comes of its decision."""

    def __init__(
        self,
        tower: DenseTower,
        number: int,
        step: int,
        groups: list[Group],
        entered: list[Tensor],
        projected: list[Tensor],
        books: Books,
        pixels: Tensor,
        frame: Tensor,
    ) -> None:
        self.tower, self.layer, self.number, self.step = tower, tower.layers[max(number, 0)], number, step
        self.groups, self.entered, self.books, self.pixels, self.frame = groups, entered, books, pixels, frame
        self.projected = projected
        self.order, self.valid, self.column = books.columns()

    def decide(self, method: EncodeMethod) -> Decision:
        """Call the method window by window."""
        hidden = self._unit_means([group.hidden[:, self.tower.extra :] for group in self.groups])
        size = self.books.size.gather(1, self.order)
        return decide(
            method,
            self.valid,
            lambda rows: TowerView(
                layer=self.number,
                depth=self.tower.stop,
                step=self.step,
                hidden=hidden[rows],
                keys=lambda: self._keys[rows],
                unit=self.order[rows],
                valid=self.valid[rows],
                size=size[rows],
                total=self.tower.units,
                frame=self.frame[rows],
                cls_attention=lambda: self._cls_attention[rows],
                pixels=lambda: self.pixels[rows],
                unit_of_patch=self.tower.unit_of_patch,
            ),
        )

    def _target(self, group: Group) -> Tensor:
        """(f, P) column of each patch's unit."""
        return self.column[group.frame[:, None], self.tower.unit_of_patch[group.patch]]

    def _unit_means(self, rows: Sequence[Tensor]) -> Tensor:
        """Patches (f, P, C) of each group -> (F, W, C) float32 means over the patches of a unit."""
        frames, width = self.order.shape
        mean = torch.zeros(frames, width, rows[0].shape[-1], device=rows[0].device)
        for group, values in zip(self.groups, rows, strict=True):
            target = self._target(group)
            total = torch.zeros(len(target), width, values.shape[-1], device=values.device)
            total.scatter_add_(1, target[..., None].expand_as(values), values.float())
            count = torch.zeros(len(target), width, device=values.device).scatter_add_(
                1, target, torch.ones_like(target).float()
            )
            mean[group.frame] = total / count.clamp(min=1)[..., None]
        return mean

    @cached_property
    def _key_rows(self) -> list[Tensor]:
        """(f, extra+P, C) of each group: the layer's own keys, or for a second method after the layer those of its output."""
        if self.projected:
            return self.projected
        return [self.layer.keys(rows) for rows in self.entered]

    @cached_property
    def _keys(self) -> Tensor:
        """(F, W, d) mean over heads and over the patches of a unit."""
        heads = self.layer.heads
        patches = [rows[:, self.tower.extra :] for rows in self._key_rows]
        return self._unit_means([rows.unflatten(-1, (heads, -1)).mean(dim=-2) for rows in patches])

    @cached_property
    def _cls_attention(self) -> Tensor:
        """(F, W) the layer's attention of [CLS] on each unit: softmax over all rows, mean over heads, sum over patches.

        A tower without [CLS] gives what each unit receives from all rows on average instead, as VisionZip does there.
        """
        layer, heads = self.layer, self.layer.heads
        share = torch.zeros(self.order.shape, device=self.order.device)
        for group, rows, projected in zip(self.groups, self.entered, self._key_rows, strict=True):
            keys = projected.unflatten(-1, (heads, -1)).permute(0, 2, 3, 1)
            asking = rows[:, :1] if self.tower.has_cls else rows
            total = torch.zeros(rows.shape[:2], device=rows.device)
            for part in asking.split(64, dim=1):  # bounds the memory to 64 rows a head and frame
                query = layer.queries(part).unflatten(-1, (heads, -1)).transpose(1, 2)
                total += (query @ keys).float().mul(layer.scale).softmax(dim=-1).mean(dim=1).sum(dim=1)
            received = total[:, self.tower.extra :] / asking.shape[1]
            share[group.frame] = torch.zeros(len(rows), share.shape[1], device=rows.device).scatter_add_(
                1, self._target(group), received
            )
        return share

    def shrink(self, made: Decision) -> list[Group]:
        """Merge what leaves into what stays, write the books, and regroup the frames by what they keep.

        Patch by patch: the o-th patch of an absorbed unit joins the o-th of its absorber, weighted by the original units
        that each stands for.
        """
        tower, books = self.tower, self.books
        values, first, present = tower._spread(self.groups, len(made.keep))
        mass = books.size[:, tower.unit_of_patch].float()
        row, unit, goal, share = books.write(self.order, self.valid, made.keep, made.absorbed_by)
        if len(row):
            total = values.float() * mass[..., None]
            for offset in range(tower.largest):
                has = tower.patches_in[unit] > offset
                source, at = tower.patch_at[unit[has], offset], tower.patch_at[goal[has], offset]
                weight = share[has].float()
                total.index_put_((row[has], at), values[row[has], source].float() * weight[:, None], accumulate=True)
                mass.index_put_((row[has], at), weight, accumulate=True)
            values = (total / mass[..., None]).to(values.dtype)
        stays = books.alive[:, tower.unit_of_patch] & present
        counts = stays.sum(dim=1)
        groups = []
        for count in counts.unique().tolist():
            chosen = (counts == count).nonzero()[:, 0]
            patch = stays[chosen].nonzero()[:, 1].view(len(chosen), count)
            groups.append(Group(chosen, torch.cat((first[chosen], values[chosen[:, None], patch]), dim=1), patch))
        return groups
