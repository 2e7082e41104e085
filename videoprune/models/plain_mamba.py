"""PlainMamba (arXiv 2403.17695): a vision tower of selective scans, in plain PyTorch, whose units can leave between blocks.

Modules are named as in the authors' checkpoints, which `plain_mamba_weights` reads. With `quirk` the scan does as their code
does and their weights expect: x is permuted into a path but the step size, B and C are not, the step size's bias is added
twice, and D x is added by each of the four scans.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from videoprune.errors import UsageError
from videoprune.method import EncodeMethod, TowerView
from videoprune.models.tower import acting, decide
from videoprune.ops.scan import aligned, packed, paths, scan_flops, selective_scan
from videoprune.report.flops import Cost

STEM = 64  # channels of the official stem
SCANS = ("aligned", "packed")  # how survivors are scanned; "packed" is the paper's straw man


@dataclass(frozen=True)
class MambaShape:
    """Sizes of a tower.

    Attributes:
        width: D. blocks: L. image, patch: sides in pixels. state: n. expand: E / D. kernel: side of the depthwise
            convolution.
        convs: 3x3 convolutions of the official stem; None embeds patches by one convolution, without a stem.
        dwconv: blocks that a further depthwise convolution follows.
        quirk: scan as the official code does, see the module.
    """

    width: int
    blocks: int
    image: int = 224
    patch: int = 16
    state: int = 16
    expand: int = 2
    kernel: int = 7
    convs: int | None = None
    dwconv: tuple[int, ...] = ()
    quirk: bool = False

    @property
    def side(self) -> int:
        """Patches a side."""
        return self.image // self.patch

    @property
    def inner(self) -> int:
        """E, channels of a scan."""
        return self.expand * self.width

    @property
    def rank(self) -> int:
        """R, of the step size's projection."""
        return math.ceil(self.width / 16)

    def cost(self, lengths: Sequence[int], frames: int = 1) -> Cost:
        """FLOPs of `frames` frames with `lengths` tokens in each block; scans included, classifier left out."""
        side, units, n = self.image // 2, self.side**2, self.state
        if self.convs is None:
            embed = 2.0 * units * self.patch**2 * 3 * self.width
        else:
            stem = side**2 * STEM * (7 * 7 * 3 + 9 * STEM * self.convs)
            embed = 2.0 * (stem + units * (self.patch // 2) ** 2 * STEM * self.width)
        total = embed + sum(2.0 * 9 * units * self.width for _ in self.dwconv)
        for tokens in lengths:
            row = self.width * 2 * self.inner + self.inner * (self.rank + 2 * n) + self.rank * self.inner
            row += self.inner * self.width
            total += 2.0 * tokens * row + 2.0 * min(units, tokens) * self.kernel**2 * self.inner
            total += 4 * scan_flops(tokens, self.inner, n)
        return Cost(linear=total * frames)


OFFICIAL = {
    "L1": MambaShape(192, 24, convs=1, dwconv=(0,), quirk=True),
    "L2": MambaShape(384, 24, convs=2, quirk=True),
    "L3": MambaShape(448, 36, convs=2, quirk=True),
}


@dataclass(eq=False)
class Walk:
    """Where the tokens of a block lie: on the `grid` (rows, columns) at `cell` (F, K), and the paths over them, `order` and
    `move` (4, F, K)."""

    grid: tuple[int, int]
    cell: Tensor
    order: Tensor
    move: Tensor

    @classmethod
    def over(cls, unit: Tensor, grid: tuple[int, int], scan: str = "aligned") -> Walk:
        """The walk over survivors `unit` (F, K), ascending places on `grid`."""
        frames, count = unit.shape
        if scan == "packed" and count < grid[0] * grid[1]:
            order, move, grid = packed(count)
            cell = torch.arange(count).expand(frames, -1)
            order, move = (each[:, None].expand(-1, frames, -1) for each in (order, move))
        else:
            order, move = aligned(*paths(*grid), unit.cpu())
            cell = unit
        return cls(grid, cell.to(unit.device), order.to(unit.device), move.to(unit.device))


@dataclass(eq=False)
class MambaOutput:
    """What left the tower: tokens (F, K, D) behind the last norm, their places `unit` (F, K), tokens in each block, and FLOPs."""

    tokens: Tensor
    unit: Tensor
    lengths: list[int] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)


class Mixer(nn.Module):
    """Four scans over one projection of the tokens, gated."""

    def __init__(self, shape: MambaShape) -> None:
        super().__init__()
        self.shape = shape
        inner, n, rank = shape.inner, shape.state, shape.rank
        self.in_proj = nn.Linear(shape.width, 2 * inner)
        self.conv2d = nn.Conv2d(inner, inner, shape.kernel, padding=shape.kernel // 2, groups=inner)
        self.x_proj = nn.Linear(inner, rank + 2 * n, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.arange(1, n + 1, dtype=torch.float32).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, shape.width)
        self.direction_Bs = nn.Parameter(torch.empty(5, n))
        nn.init.trunc_normal_(self.direction_Bs, std=0.02)
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        with torch.no_grad():  # softplus(bias) spread evenly in the logarithm over 0.001..0.1
            wanted = torch.exp(torch.rand(inner) * math.log(0.1 / 0.001) + math.log(0.001)).clamp(min=1e-4)
            self.dt_proj.bias.copy_(wanted + torch.log(-torch.expm1(-wanted)))

    def forward(self, hidden: Tensor, walk: Walk) -> tuple[Tensor, Tensor]:
        """(F, K, D) -> what the residual stream gains (F, K, D), and the scans' output (F, K, E), all paths together."""
        x, gate = self.in_proj(hidden).chunk(2, dim=-1)
        x = nn.functional.silu(self._convolved(x, walk))
        rank, n = self.shape.rank, self.shape.state
        delta, B, C = self.x_proj(x).split((rank, n, n), dim=-1)
        delta = self.dt_proj(delta)
        if self.shape.quirk:
            delta = delta + self.dt_proj.bias
        scanned = self.scan(x, nn.functional.softplus(delta), B, C, walk)
        return self.out_proj(scanned * nn.functional.silu(gate)), scanned

    def scan(self, x: Tensor, delta: Tensor, B: Tensor, C: Tensor, walk: Walk) -> Tensor:
        """The four scans, brought back into the tokens' order and summed: x, delta (F, K, E), B, C (F, K, n) -> (F, K, E)."""
        frames, count, inner = x.shape
        n, ways = B.shape[-1], len(walk.order)
        first = torch.arange(frames, device=x.device)[:, None] * count
        along = (walk.order + first).permute(2, 0, 1).flatten()  # (K * 4 * F,) rows of (F * K), time first

        def walked(*parts: Tensor) -> Tensor:
            return torch.cat(parts, dim=-1).flatten(0, 1).index_select(0, along).view(count, ways * frames, -1)

        if self.shape.quirk:
            shown, rest = walked(x), torch.cat((delta, B, C), dim=-1).transpose(0, 1).repeat(1, ways, 1)
        else:
            shown, rest = walked(x, delta, B, C).split((inner, inner + 2 * n), dim=-1)
        delta, B, C = rest.split((inner, n, n), dim=-1)
        B = B + self.direction_Bs[walk.move.permute(2, 0, 1).flatten(1)]
        out = selective_scan(shown, delta, -torch.exp(self.A_log.float()), B, C, self.D)
        when = walk.order.argsort(dim=-1) * (ways * frames)  # (4, F, K): how late each token comes
        column = torch.arange(ways * frames, device=x.device).view(ways, frames, 1)
        return out.flatten(0, 1).index_select(0, (when + column).flatten()).view(ways, frames, count, inner).sum(dim=0)

    def _convolved(self, x: Tensor, walk: Walk) -> Tensor:
        """The depthwise convolution on the grid, with zeros where nothing is left."""
        frames, count, inner = x.shape
        rows, columns = walk.grid
        if count == rows * columns:
            return self.conv2d(x.transpose(1, 2).unflatten(2, walk.grid)).flatten(2).transpose(1, 2)
        place = walk.cell[..., None].expand(-1, -1, inner)
        full = x.new_zeros(frames, rows * columns, inner).scatter(1, place, x)
        full = self.conv2d(full.transpose(1, 2).unflatten(2, walk.grid)).flatten(2).transpose(1, 2)
        return full.gather(1, place)


class Block(nn.Module):
    """x + mixer(norm(x)), and in some blocks a depthwise convolution behind it."""

    def __init__(self, shape: MambaShape, number: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(shape.width)
        self.mamba = Mixer(shape)
        self.dw: nn.Module | None = None
        if number in shape.dwconv:
            conv = nn.Conv2d(shape.width, shape.width, 3, padding=1, bias=False, groups=shape.width)
            self.dw = nn.Sequential(conv, nn.BatchNorm2d(shape.width), nn.GELU())

    def forward(self, hidden: Tensor, walk: Walk) -> tuple[Tensor, Tensor]:
        """(F, K, D) -> (F, K, D) and the scans' output (F, K, E)."""
        gained, scanned = self.mamba(self.norm(hidden), walk)
        hidden = hidden + gained
        if self.dw is not None:
            frames, _, width = hidden.shape
            place = walk.cell[..., None].expand(-1, -1, width)
            full = hidden.new_zeros(frames, math.prod(walk.grid), width).scatter(1, place, hidden)
            full = self.dw(full.transpose(1, 2).unflatten(2, walk.grid)).flatten(2).transpose(1, 2)
            hidden = full.gather(1, place)
        return hidden, scanned


class PatchEmbed(nn.Module):
    """Patches to tokens, behind the official stem or by one convolution."""

    def __init__(self, shape: MambaShape) -> None:
        super().__init__()
        if shape.convs is None:
            self.projection = nn.Conv2d(3, shape.width, shape.patch, shape.patch)
            return
        self.stem = nn.Sequential(
            nn.Conv2d(3, STEM, 7, 2, padding=3, bias=False), nn.BatchNorm2d(STEM), nn.ReLU(inplace=True)
        )
        layers = [
            part
            for _ in range(shape.convs)
            for part in (nn.Conv2d(STEM, STEM, 3, padding=1, bias=False), nn.BatchNorm2d(STEM), nn.ReLU(inplace=True))
        ]
        self.convs = nn.Sequential(*layers)
        self.projection = nn.Conv2d(STEM, shape.width, shape.patch // 2, shape.patch // 2)

    def forward(self, pixels: Tensor) -> Tensor:
        """(F, 3, H, W) -> (F, D, H / patch, W / patch)."""
        if hasattr(self, "stem"):
            pixels = self.convs(self.stem(pixels))
        out: Tensor = self.projection(pixels)
        return out


class PlainMamba(nn.Module):
    """The tower; with `classes` a linear classifier on the mean of its tokens."""

    def __init__(self, shape: MambaShape, classes: int | None = None) -> None:
        super().__init__()
        self.shape = shape
        self.patch_embed = PatchEmbed(shape)
        self.pos_embed = nn.Parameter(torch.empty(1, shape.side**2, shape.width))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.layers = nn.ModuleList(Block(shape, number) for number in range(shape.blocks))
        self.ln1 = nn.LayerNorm(shape.width, eps=1e-6)
        self.head = None if classes is None else nn.Linear(shape.width, classes)

    def forward(
        self,
        pixels: Tensor,
        methods: Sequence[EncodeMethod] = (),
        first: int = 0,
        scan: str = "aligned",
    ) -> MambaOutput:
        """Run frames (F, 3, H, W); `first` is the first one's number in the film, for methods that draw.

        Args:
            methods: act between blocks, in order; every frame must keep equally many units, and nothing absorbs what leaves.
            scan: "aligned", or "packed" to scan survivors as a smaller grid.

        Raises:
            UsageError: a method that keeps different counts, absorbs, or reads attention.
        """
        if scan not in SCANS:
            raise UsageError(f"scan: {scan!r} is given; allowed are {', '.join(SCANS)}")
        maps = self.patch_embed(pixels)
        grid = (maps.shape[2], maps.shape[3])
        hidden = maps.flatten(2).transpose(1, 2) + self._position(grid)
        frames, total = hidden.shape[:2]
        unit = torch.arange(total, device=hidden.device).expand(frames, -1)
        walk, at, lengths = Walk.over(unit, grid), acting(methods, len(self.layers)), list[int]()
        for number, block in enumerate(self.layers):
            lengths.append(hidden.shape[1])
            hidden, scanned = block(hidden, walk)
            for method, step in at.get(number, ()):
                seen = _Seen(number, len(self.layers), step, hidden, scanned, unit, total, grid, first, pixels)
                rows = seen.kept(method)
                hidden, scanned = (each.gather(1, rows[..., None].expand(-1, -1, each.shape[-1])) for each in
                                   (hidden, scanned))  # fmt: skip
                unit = unit.gather(1, rows)
                walk = Walk.over(unit, grid, scan)
        return MambaOutput(self.ln1(hidden), unit, lengths, self.shape.cost(lengths, frames))

    def classify(self, out: MambaOutput) -> Tensor:
        """(F, classes) logits from the mean of the tokens that are left."""
        if self.head is None:
            raise ValueError("this tower was built without a classifier")
        logits: Tensor = self.head(out.tokens.mean(dim=1))
        return logits

    def _position(self, grid: tuple[int, int]) -> Tensor:
        side = self.shape.side
        if grid == (side, side):
            return self.pos_embed
        table = self.pos_embed.view(1, side, side, -1).permute(0, 3, 1, 2)
        table = nn.functional.interpolate(table, grid, mode="bicubic", align_corners=False)
        return table.flatten(2).transpose(1, 2)


@dataclass(eq=False)
class _Seen:
    """What a method sees behind a block, and what comes of it."""

    number: int
    depth: int
    step: int
    hidden: Tensor
    scanned: Tensor
    unit: Tensor
    total: int
    grid: tuple[int, int]
    first: int
    pixels: Tensor

    @torch.no_grad()
    def kept(self, method: EncodeMethod) -> Tensor:
        """(F, K) columns that go on, ascending."""
        valid = torch.ones_like(self.unit, dtype=torch.bool)
        made = decide(method, valid, self._view)
        keep, counts = made.keep, made.keep.sum(dim=1)
        name = type(method).__module__.rpartition(".")[2]
        if bool((counts != counts[0]).any()):
            raise UsageError(f"encode.{name}: frames keep different counts, which a tower of scans does not batch")
        if bool((made.absorbed_by[~keep] >= 0).any()):
            raise UsageError(f"encode.{name}: units absorb others, which a tower of scans does not: give mode: drop")
        return keep.nonzero()[:, 1].view(len(keep), -1)

    def _view(self, rows: slice) -> TowerView:
        return TowerView(
            layer=self.number,
            depth=self.depth,
            step=self.step,
            hidden=self.hidden[rows].detach(),
            keys=_no_attention,
            unit=self.unit[rows],
            valid=torch.ones_like(self.unit[rows], dtype=torch.bool),
            size=torch.ones_like(self.unit[rows]),
            total=self.total,
            frame=torch.arange(self.first, self.first + len(self.unit), device=self.unit.device)[rows],
            cls_attention=_no_attention,
            pixels=lambda: self.pixels[rows],
            grid=self.grid,
            scan=lambda: self.scanned[rows].detach(),
        )


def _no_attention() -> Tensor:
    raise UsageError(
        "encode: a tower of scans has no attention; give a method that reads none, as ssm or random (mode: drop)"
    )
