"""The packed vision towers of Qwen2-VL, Qwen2.5-VL and Qwen3-VL as our own loop over their stock blocks.

All patches of a chunk lie in one row, frame by frame ("frame" here is a temporal step: a pair of frames that share their
patches), and a block is told where attention begins and ends. A unit is a square of `merge` x `merge` patches, the least
that the tower's merger can digest, and always leaves as a whole. Survivors keep their rotary angles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from videoprune.method import BEFORE, EncodeMethod, TowerView
from videoprune.models.sample import rotate_half
from videoprune.models.tower import Books, Decision, TowerOutput, acting, decide, listening
from videoprune.ops.counting import CountedFlops
from videoprune.report.flops import Cost, TransformerShape, layer_cost, patch_embed_cost


@dataclass(eq=False)
class PackedOutput(TowerOutput):
    """A `TowerOutput` whose `hidden` (F, U, D) are language-model tokens already: the merger is the tower's last step.

    Attributes:
        deepstack: (F, U, K, D) what K inner blocks saw, for the language model's first layers; None without them. Each unit
            has its own; one that another absorbed has none of its own in the language model.
        cost: FLOPs of patch embedding, blocks and mergers.
    """

    deepstack: Tensor | None = None
    cost: Cost = field(default_factory=Cost)


@dataclass(eq=False)
class Packed:
    """Units alive, in the order in which they travel, frame by frame.

    hidden (A, m, C) and cos, sin (A, m, d) of the patches of each; frame (A,) row of the chunk; unit (A,) number on the
    grid; window (A,) window that it attends in, ascending, None in a tower without windows.
    """

    hidden: Tensor
    cos: Tensor
    sin: Tensor
    frame: Tensor
    unit: Tensor
    window: Tensor | None

    def keep(self, alive: Tensor) -> Packed:
        window = None if self.window is None else self.window[alive]
        return Packed(self.hidden[alive], self.cos[alive], self.sin[alive], self.frame[alive], self.unit[alive], window)


class PackedTower:
    """A packed vision tower.

    Args:
        tower: stock vision model of Qwen2-VL, Qwen2.5-VL or Qwen3-VL.
        shape: of its blocks.
        tokens: width of the language model.
    """

    has_cls = False
    cls_substitute: str | None = "mean received attention"  # within the stretch that a row attends to

    def __init__(self, tower: Any, shape: TransformerShape, tokens: int) -> None:
        self.tower, self.shape, self.tokens = tower, shape, tokens
        self.blocks: Sequence[Any] = tower.blocks
        self.stop, self.merge = len(self.blocks), int(tower.spatial_merge_size)
        self.patch = int(tower.config.patch_size)
        self.full: Sequence[int] | None = getattr(tower, "fullatt_block_indexes", None)  # blocks without windows
        self.deep: list[int] = list(getattr(tower, "deepstack_visual_indexes", ()))
        theta = (getattr(tower.config, "rope_parameters", None) or {}).get("rope_theta", 10000.0)
        half = shape.head_dim // 2
        self.frequency = 1.0 / float(theta) ** (torch.arange(0, half, 2, dtype=torch.float32) / half)

    # ------------------------------------------------------------------ the grid

    def _places(self, grid: tuple[int, int], device: torch.device) -> Tensor:
        """(U, m, 2) row and column of every patch of every unit, units in raster order."""
        row = torch.arange(grid[0] * self.merge, device=device).view(grid[0], 1, self.merge, 1)
        column = torch.arange(grid[1] * self.merge, device=device).view(1, grid[1], 1, self.merge)
        both = torch.stack(torch.broadcast_tensors(row, column), dim=-1)
        return both.reshape(grid[0] * grid[1], self.merge**2, 2)

    def windows(self, grid: tuple[int, int]) -> Tensor | None:
        """(U,) window of every unit, None where no block has windows."""
        if self.full is None:
            return None
        side = int(self.tower.window_size) // self.merge // self.patch
        row, column = torch.arange(grid[0]) // side, torch.arange(grid[1]) // side
        return (row[:, None] * -(-grid[1] // side) + column[None]).flatten()

    def _angles(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin (U, m, d) of axial rotary positions: rows in one half of the angles, columns in the other."""
        angle = (places[..., None].float() * self.frequency.to(places.device)).flatten(2)
        angle = torch.cat((angle, angle), dim=-1)
        return angle.cos(), angle.sin()

    def _embedded(self, grid: tuple[int, int], device: torch.device) -> Tensor | None:
        """(U, m, C) Qwen3-VL's learned positions, resampled bilinearly (corners on corners) to this grid."""
        table: Any = getattr(self.tower, "pos_embed", None)
        if table is None:
            return None
        side = int(self.tower.num_grid_per_side)

        def taps(count: int) -> tuple[Tensor, Tensor]:
            at = torch.arange(count, device=device).float() * (side - 1) / max(count - 1, 1)
            low = at.floor().long()
            return torch.stack((low, (low + 1).clamp(max=side - 1))), torch.stack((low + 1 - at, at - low))

        (row, row_share), (column, column_share) = taps(grid[0] * self.merge), taps(grid[1] * self.merge)
        total = torch.zeros((), device=device)
        for r, r_share in zip(row, row_share, strict=True):
            for c, c_share in zip(column, column_share, strict=True):
                index = r[:, None] * side + c[None]
                total = total + table(index) * (r_share[:, None] * c_share[None])[..., None]
        places = self._places(grid, device)
        return total[places[..., 0], places[..., 1]]

    # ------------------------------------------------------------------ running

    @torch.no_grad()
    def __call__(
        self,
        patches: Tensor,
        grid: tuple[int, int],
        frame: Tensor,
        pixels: Callable[[], Tensor],
        methods: Sequence[EncodeMethod] = (),
    ) -> PackedOutput:
        """Run the patches (F*U*m, P) of F frames, unit by unit in raster order.

        Args:
            grid: (rows, columns) of units in a frame.
            frame: (F,) numbers in the film.
            pixels: gives (F, 3, H, W) for methods that look at them.
            methods: act in order after their layers.
        """
        device, units = patches.device, grid[0] * grid[1]
        packed = self._begin(patches, grid, len(frame))
        start = torch.arange(units, device=device).repeat(len(frame), 1)
        books = Books(torch.ones_like(start, dtype=torch.bool), torch.ones_like(start), start)
        at, counter, cost = acting(methods, self.stop), CountedFlops(), self.embed_cost(units * len(frame))
        deep = patches.new_zeros(len(frame), units, len(self.deep), self.tokens, dtype=packed.hidden.dtype)
        shrunk = False
        for number in range(BEFORE, self.stop):
            projected: list[Tensor] = []
            if number != BEFORE:
                entered, block = packed.hidden, self.blocks[number]
                ends, work = self._segments(number, packed)
                cost = cost + work
                with listening(block.attn.qkv if number in at else None) as projected:
                    out = block(
                        entered.flatten(0, 1),
                        cu_seqlens=ends,
                        position_embeddings=(packed.cos.flatten(0, 1), packed.sin.flatten(0, 1)),
                    )
                packed.hidden = out.view_as(entered)
            if number in self.deep:
                index = self.deep.index(number)
                deep[packed.frame, packed.unit, index] = self.tower.deepstack_merger_list[index](out)
                cost = cost + self.merger_cost(len(entered))
            for method, step in at.get(number, ()):
                act = _Act(self, number, step, packed, projected, books, grid, frame, pixels)
                with counter:
                    made = act.decide(method)
                    books.note(act.order, act.valid, made.scores)
                    if not made.acts:
                        continue
                    packed = act.shrink(made)
                projected, shrunk = [], True
        place = torch.argsort(packed.frame * units + packed.unit)  # travel order is not raster order in windows
        merged = self.tower.merger(packed.hidden[place].flatten(0, 1))
        full = merged.new_zeros(len(frame), units, merged.shape[-1])
        full[packed.frame[place], packed.unit[place]] = merged
        if shrunk:
            owner = books.absorbed_by
            taken = full.gather(1, owner.clamp(min=0)[..., None].expand_as(full))
            full = torch.where((owner >= 0)[..., None], taken, 0)
        cost = cost + self.merger_cost(len(merged))
        deepstack = deep if self.deep else None
        return PackedOutput(
            full,
            books.alive,
            books.absorbed_by,
            None,
            counted=counter.total,
            scores=books.scores,
            deepstack=deepstack,
            cost=cost,
        )

    def _begin(self, patches: Tensor, grid: tuple[int, int], frames: int) -> Packed:
        device, units, size = patches.device, grid[0] * grid[1], self.merge**2
        hidden = self.tower.patch_embed(patches).view(frames, units, size, -1)
        learned = self._embedded(grid, device)
        if learned is not None:
            hidden = hidden + learned.to(hidden.dtype)
        cos, sin = self._angles(self._places(grid, device))
        order, windows = torch.arange(units, device=device), self.windows(grid)
        window = None
        if windows is not None:
            windows = windows.to(device)
            order = torch.argsort(windows, stable=True)
            first = torch.arange(frames, device=device)[:, None] * units  # no window of a frame has that of another
            window = (windows[order] + first).flatten()
        row = torch.arange(frames, device=device).repeat_interleave(units)
        return Packed(
            hidden[:, order].flatten(0, 1),
            cos[order].repeat(frames, 1, 1),
            sin[order].repeat(frames, 1, 1),
            row,
            order.repeat(frames),
            window,
        )

    def stretches(self, number: int, packed: Packed) -> Tensor:
        """(n,) patches in each stretch that attends to itself alone in a block: a frame, or a window."""
        inside = packed.window if self.full is not None and number not in self.full else None
        belongs = packed.frame if inside is None else inside
        return torch.unique_consecutive(belongs, return_counts=True)[1] * self.merge**2

    def _segments(self, number: int, packed: Packed) -> tuple[Tensor, Cost]:
        """(n+1,) int32 ends of the stretches that attend to themselves alone, and what the block costs with them."""
        lengths = self.stretches(number, packed)
        ends = nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
        return ends, self._block_cost(int(lengths.sum()), int(lengths.square().sum()))

    # ------------------------------------------------------------------ cost

    def _block_cost(self, rows: int, pairs: int) -> Cost:
        """One block on `rows` patches; `pairs` is the sum of the squares of the stretches that attend to themselves."""
        return Cost(layer_cost(self.shape, rows, 0).linear, layer_cost(self.shape, 1, pairs).attention)

    def embed_cost(self, units: int) -> Cost:
        """Patch embedding of `units` units."""
        convolution = self.tower.patch_embed.proj.weight
        return patch_embed_cost(units * self.merge**2, convolution[0].numel(), len(convolution), 1)

    def merger_cost(self, units: int) -> Cost:
        """The two matrices of a merger over `units` units."""
        width = self.shape.width * self.merge**2
        return Cost(linear=2.0 * units * width * (width + self.tokens))

    def dense_cost(self, grid: tuple[int, int], frames: int) -> Cost:
        """Patch embedding, blocks and mergers of `frames` frames with nothing dropped."""
        units, size = grid[0] * grid[1], self.merge**2
        windows = self.windows(grid)
        each = torch.tensor([units]) if windows is None else windows.bincount()
        whole, inside = (units * size) ** 2, int((each * size).square().sum())
        full = self.stop if self.full is None else len(set(self.full) & set(range(self.stop)))
        cost = self._block_cost(units * size, whole) * full + self._block_cost(units * size, inside) * (
            self.stop - full
        )
        return (cost + self.embed_cost(units) + self.merger_cost(units) * (1 + len(self.deep))) * frames


class _Act:
    """One method after one block: what it sees, and what comes of its decision."""

    def __init__(
        self,
        tower: PackedTower,
        number: int,
        step: int,
        packed: Packed,
        projected: list[Tensor],
        books: Books,
        grid: tuple[int, int],
        frame: Tensor,
        pixels: Callable[[], Tensor],
    ) -> None:
        self.tower, self.block, self.number, self.step = tower, tower.blocks[max(number, 0)], number, step
        self.packed, self.projected, self.books, self.grid = packed, projected, books, grid
        self.frame, self.pixels = frame, pixels
        self.order, self.valid, self.column = books.columns()

    def _spread(self, values: Tensor) -> Tensor:
        """(A, C) of the units alive -> (F, W, C), zeros where a frame has fewer."""
        out = values.new_zeros(*self.order.shape, values.shape[-1])
        out[self.packed.frame, self.column[self.packed.frame, self.packed.unit]] = values
        return out

    @cached_property
    def _qkv(self) -> Tensor:
        """(A*m, 3C) of the block as it ran, or for a second method after it, of what the first one left."""
        if self.projected:
            return self.projected[0]
        rows: Tensor = self.block.attn.qkv(self.block.norm1(self.packed.hidden.flatten(0, 1)))
        return rows

    @cached_property
    def _keys(self) -> Tensor:
        """(F, W, d) keys before the rotary embedding, mean over heads and over the patches of a unit."""
        keys = self._qkv.unflatten(-1, (3, self.tower.shape.heads, -1))[:, 1].float().mean(dim=1)
        return self._spread(keys.view(*self.packed.hidden.shape[:2], -1).mean(dim=1))

    @cached_property
    def _received(self) -> Tensor:
        """(F, W) what stands for the attention of [CLS]: what a unit receives from all rows of its stretch, mean over heads
        and over the rows of the frame, sum over the unit's patches."""
        packed, heads = self.packed, self.tower.shape.heads
        both = self._qkv.unflatten(-1, (3, heads, -1))[:, :2].float()
        cos, sin = packed.cos.flatten(0, 1)[:, None, None], packed.sin.flatten(0, 1)[:, None, None]
        query, keys = (both * cos + rotate_half(both) * sin).unbind(dim=1)
        total, begun = torch.zeros(len(query), device=query.device), 0
        for length in self.tower.stretches(max(self.number, 0), packed).tolist():
            stretch = slice(begun, begun + length)
            inside = keys[stretch].permute(1, 2, 0)
            for part in query[stretch].split(64):  # bounds the memory to 64 rows a head
                share = (part.transpose(0, 1) @ inside * self.block.attn.scaling).softmax(dim=-1)
                total[stretch] += share.mean(dim=0).sum(dim=0)
            begun += length
        unit = total.view(len(packed.unit), -1)
        rows = packed.frame.bincount(minlength=len(self.order))[packed.frame] * unit.shape[1]
        return self._spread((unit.sum(dim=1) / rows)[:, None])[..., 0]

    @cached_property
    def _unit_of_patch(self) -> Tensor:
        """(N,) unit of every patch of a frame, patches in raster order."""
        side = self.tower.merge
        unit = torch.arange(self.grid[0] * self.grid[1], device=self.order.device).view(self.grid)
        return unit.repeat_interleave(side, 0).repeat_interleave(side, 1).flatten()

    def decide(self, method: EncodeMethod) -> Decision:
        """Call the method window by window."""
        hidden = self._spread(self.packed.hidden.float().mean(dim=1))
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
                total=self.grid[0] * self.grid[1],
                frame=self.frame[rows],
                cls_attention=lambda: self._received[rows],
                pixels=lambda: self.pixels()[rows],
                grid=self.grid,
                unit_of_patch=self._unit_of_patch,
            ),
        )

    def shrink(self, made: Decision) -> Packed:
        """Merge what leaves into what stays, patch by patch, weighted by the original units that each stands for."""
        packed, books = self.packed, self.books
        mass = books.size[packed.frame, packed.unit].float()
        row, unit, goal, share = books.write(self.order, self.valid, made.keep, made.absorbed_by)
        if len(row):
            slot = torch.zeros_like(books.size)
            slot[packed.frame, packed.unit] = torch.arange(len(packed.unit), device=row.device)
            total = packed.hidden.float() * mass[:, None, None]
            moved = packed.hidden[slot[row, unit]].float() * share.float()[:, None, None]
            total.index_add_(0, slot[row, goal], moved)
            mass = mass.index_add(0, slot[row, goal], share.float())
            packed.hidden = (total / mass[:, None, None]).to(packed.hidden.dtype)
        return packed.keep(books.alive[packed.frame, packed.unit])
