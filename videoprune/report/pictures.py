"""Pictures of what was kept, drawn from the ledger alone. Pillow only."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from videoprune.report.report import clock

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from videoprune.tokens import VisualTokens

DROPPED, MERGED, KEPT = 0, 1, 2

GROUND = (13, 15, 20)
PILL = (32, 36, 46)
TEXT = (226, 229, 236)
FAINT = (140, 147, 162)
ACCENT = (255, 190, 85)
LIGHT = np.array([0.06, 0.42, 1.0])  # how much of the picture's light is left, by state
COLOUR = np.array([0.0, 0.6, 1.0])  # and of its colour: a dark scene is not mistaken for a dropped cell
SMOOTH = 3  # drawn this much larger and reduced, for round corners without steps


def _array(values: Any) -> NDArray[Any]:
    """A tensor on any device, or something that already is an array."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def spread(frames: int, count: int) -> list[int]:
    """At most `count` frame indices, evenly spread over `frames`, from the middle of equal parts."""
    count = min(frames, count)
    return [int((i + 0.5) * frames / count) for i in range(count)]


def cell_states(tokens: VisualTokens, owner: Any = None) -> NDArray[np.uint8]:
    """What became of every cell: (F, rows, columns) of DROPPED, MERGED or KEPT.

    A cell is KEPT where the row that stands for it carries its own place, MERGED where it lives on in a row with
    another place (or none), DROPPED where no row stands for it.

    Args:
        tokens: the ledger.
        owner: (F*N,) row of `tokens` for each original token, -1 dropped; None takes the ledger's. One with more -1
            shows what a later stage left.
    """
    owner = _array(tokens.owner if owner is None else owner)
    frame, cell = _array(tokens.frame), _array(tokens.cell)
    height, width = tokens.grid
    originals = tokens.frames * height * width
    if owner.shape != (originals,):
        raise ValueError(
            f"owner has shape {owner.shape}; {tokens.frames} frames of {height}x{width} cells need ({originals},)"
        )
    place = np.where((cell >= 0).all(axis=1), frame * height * width + cell[:, 0] * width + cell[:, 1], -1)
    state = np.full(originals, DROPPED, dtype=np.uint8)
    alive = np.flatnonzero(owner >= 0)
    state[alive] = np.where(place[owner[alive]] == alive, KEPT, MERGED)
    return state.reshape(tokens.frames, height, width)


def kept_strip(
    images: Iterable[NDArray[np.uint8]],
    owner: Any,
    tokens: VisualTokens,
    frames: Sequence[int] | None = None,
    *,
    columns: int = 8,
    cell: int | None = None,
    width: int = 1200,
) -> Image.Image:
    """A strip of sampled frames: cells of kept tokens are lit, merged ones half lit, dropped ones dark.

    Args:
        images: frames (H, W, 3) uint8, all of one size, as the model saw them: after its crop, or the cells
            would lie elsewhere.
        owner: (F*N,) see `cell_states`; None takes the ledger's.
        tokens: the ledger.
        frames: index of each image among the F sampled frames; None where `images` are all F.
        columns: frames in a row of the strip.
        cell: width of one cell in pixels; None makes the strip as wide as `width`.
        width: of the strip in pixels, where `cell` is None.
    """
    pictures = [np.asarray(image) for image in images]
    chosen = list(range(tokens.frames)) if frames is None else [int(f) for f in frames]
    if len(pictures) != len(chosen) or not chosen:
        raise ValueError(
            f"kept_strip: {len(pictures)} images for {len(chosen)} frames; give one image for each, at least one"
        )
    if any(p.ndim != 3 or p.shape != pictures[0].shape or p.shape[2] != 3 or p.dtype != np.uint8 for p in pictures):
        raise ValueError("kept_strip: images must be (H, W, 3) uint8, all of one size")
    if not all(0 <= f < tokens.frames for f in chosen):
        raise ValueError(f"kept_strip: frames must be inside 0..{tokens.frames - 1}")
    columns = min(columns, len(chosen))
    if columns < 1 or (cell is not None and cell < 1):
        raise ValueError(f"kept_strip: columns {columns} and cell {cell} must be at least 1")
    grid_h, grid_w = tokens.grid
    margin, gap, label = 20, 10, 30
    if cell is None:
        cell_w = max(2, (width - 2 * margin - (columns - 1) * gap) // columns // grid_w)
        margin = max(margin, (width - columns * (grid_w * cell_w + gap) + gap) // 2)  # what whole cells leave over
    else:
        cell_w = cell
    cell_h = max(2, round(cell_w * grid_w * pictures[0].shape[0] / pictures[0].shape[1] / grid_h))
    tile_w, tile_h = grid_w * cell_w, grid_h * cell_h
    lines = -(-len(chosen) // columns)
    legend = 44
    size = (2 * margin + columns * (tile_w + gap) - gap, 20 + lines * (tile_h + label) + (lines - 1) * gap + legend)

    states = cell_states(tokens, owner)
    seconds = [float(s) for s in _array(tokens.frame_seconds)[chosen]]
    close = any(int(a) == int(b) for a, b in itertools.pairwise(seconds))
    strip = Image.new("RGB", size, GROUND)
    draw = ImageDraw.Draw(strip)
    font = ImageFont.load_default(15 if tile_w >= 90 else 11)
    for number, (picture, frame) in enumerate(zip(pictures, chosen, strict=True)):
        x = margin + number % columns * (tile_w + gap)
        y = 20 + number // columns * (tile_h + label + gap)
        strip.paste(lit_tile(picture, states[frame], cell_w, cell_h), (x, y))
        text = clock(seconds[number], 1 if close else 0)
        middle = y + tile_h + label // 2 + 2
        _pill(strip, (x, middle - 10, x + int(draw.textlength(text, font)) + 16, middle + 10))
        draw.text((x + 8, middle), text, TEXT, font, anchor="lm")
        kept = int((states[frame] == KEPT).sum())
        if tile_w >= 90:
            draw.text(
                (x + tile_w - 2, middle), f"{kept} / {grid_h * grid_w}", ACCENT if kept else FAINT, font, anchor="rm"
            )
    _legend(strip, draw, states, margin, size[1] - legend // 2 - 2)
    return strip


def lit_tile(picture: NDArray[np.uint8], state: NDArray[np.uint8], cell_w: int, cell_h: int) -> Image.Image:
    """One frame with its cells lit by `state` (rows, columns)."""
    rows, columns = state.shape
    size = (columns * cell_w, rows * cell_h)
    scaled = Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS)
    light, tint = (np.kron(level[state], np.ones((cell_h, cell_w)))[:, :, None] for level in (LIGHT, COLOUR))
    colour = np.asarray(scaled, dtype=np.float64)
    grey = colour.mean(axis=2, keepdims=True)
    shown = (grey + (colour - grey) * tint) * light + np.asarray(GROUND) * 1.6 * (1 - light)
    lit = Image.fromarray(shown.clip(0, 255).astype(np.uint8))
    inset = 1 if min(cell_w, cell_h) >= 10 else 0
    mask = Image.new("L", (size[0] * SMOOTH, size[1] * SMOOTH), 0)
    ring = Image.new("L", mask.size, 0)
    brush, pen = ImageDraw.Draw(mask), ImageDraw.Draw(ring)
    radius = min(cell_w, cell_h) * SMOOTH // 8
    for row, column in np.ndindex(rows, columns):
        box = (
            (column * cell_w + inset) * SMOOTH,
            (row * cell_h + inset) * SMOOTH,
            ((column + 1) * cell_w - inset) * SMOOTH - 1,
            ((row + 1) * cell_h - inset) * SMOOTH - 1,
        )
        brush.rounded_rectangle(box, radius, 255)
        if state[row, column] == KEPT and inset:
            pen.rounded_rectangle(box, radius, None, 255, max(1, round(SMOOTH * min(2, min(cell_w, cell_h) / 14))))
    tile = Image.new("RGB", size, GROUND)
    tile.paste(lit, (0, 0), mask.resize(size, Image.Resampling.BOX))
    tile.paste(ACCENT, (0, 0, *size), ring.resize(size, Image.Resampling.BOX))
    return tile


def _pill(strip: Image.Image, box: tuple[int, int, int, int]) -> None:
    """A rounded label's ground."""
    size = (box[2] - box[0], box[3] - box[1])
    mask = Image.new("L", (size[0] * SMOOTH, size[1] * SMOOTH), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, mask.width - 1, mask.height - 1), mask.height // 2, 255)
    strip.paste(PILL, box, mask.resize(size, Image.Resampling.BOX))


def _legend(strip: Image.Image, draw: ImageDraw.ImageDraw, states: NDArray[np.uint8], x: int, y: int) -> None:
    """What the light means, with the counts of the whole film; shortened where the strip is narrow."""
    big, small = ImageFont.load_default(15), ImageFont.load_default(12)
    sample = np.full((16, 16, 3), (120, 160, 220), dtype=np.uint8)
    total = states.size
    names = ((KEPT, "kept"), (MERGED, "merged into a kept token"), (DROPPED, "dropped"))
    texts = [f"{name}  {int((states == state).sum()):,}" for state, name in names]
    ending = f"of {total:,} tokens in {len(states):,} frames"
    wide = sum(draw.textlength(t, big) + 50 for t in (*texts, ending)) < strip.width - 2 * x
    font = big if wide else small
    for (state, name), text in zip(names, texts, strict=True):
        strip.paste(lit_tile(sample, np.full((1, 1), state, dtype=np.uint8), 16, 16), (x, y - 8))
        text = text if wide else name.split()[0]
        draw.text((x + 24, y), text, TEXT, font, anchor="lm")
        x += int(draw.textlength(text, font)) + 24 + (26 if wide else 14)
    if wide:
        draw.text((x, y), ending, FAINT, font, anchor="lm")
