"""Cells of the picture against a plain reading of the ledger, and the light that they get."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from videoprune.report.pictures import DROPPED, GROUND, KEPT, MERGED, cell_states, kept_strip, spread
from videoprune.tokens import VisualTokens

FRAMES, GRID = 3, (2, 4)
N = GRID[0] * GRID[1]


def ledger(frames: int = FRAMES, grid: tuple[int, int] = GRID) -> VisualTokens:
    return VisualTokens.from_frames(torch.randn(frames * grid[0] * grid[1], 5), torch.arange(frames) * 30.0, grid)


def reduced() -> VisualTokens:
    """Frame 0: everything into cell (0, 1); frame 1: all dropped but cell (1, 3), which also takes frame 2's first."""
    into = torch.full((FRAMES * N,), -1)
    into[:N] = 1
    into[2 * N - 1] = into[2 * N] = 2 * N - 1
    return ledger().merge(into)


def expected() -> np.ndarray:
    state = np.zeros((FRAMES, *GRID), dtype=int)
    state[0], state[0, 0, 1] = MERGED, KEPT
    state[1, 1, 3], state[2, 0, 0] = KEPT, MERGED
    return state


def test_states_of_a_dense_ledger_are_all_kept():
    assert (cell_states(ledger()) == KEPT).all()


def test_states_after_merging_and_dropping():
    assert (cell_states(reduced()) == expected()).all()


def test_states_through_two_stages_and_random_choices():
    tokens = ledger(6, (3, 3))
    rng = torch.Generator().manual_seed(1)
    for _ in range(2):
        alive = torch.rand(len(tokens), generator=rng) < 0.6
        survivors = alive.nonzero()[:, 0]
        into = torch.where(alive, torch.arange(len(tokens)), survivors[torch.arange(len(tokens)) % len(survivors)])
        into[(~alive).nonzero()[::2, 0]] = -1
        tokens = tokens.merge(into)
    state = cell_states(tokens)
    assert (state == KEPT).sum() == len(tokens)
    assert (state > DROPPED).sum() == int(tokens.weight.sum())
    for frame, (row, column) in zip(tokens.frame.tolist(), tokens.cell.tolist(), strict=True):
        assert state[frame, row, column] == KEPT


def test_an_owner_of_a_later_stage_drops_more():
    tokens = reduced()
    owner = torch.where(tokens.owner == 0, -1, tokens.owner)
    want = expected()
    want[0] = DROPPED
    assert (cell_states(tokens, owner) == want).all()


def test_a_row_without_a_place_leaves_its_tokens_merged():
    tokens = reduced()
    tokens.cell[0] = -1
    want = expected()
    want[0] = MERGED
    assert (cell_states(tokens) == want).all()


def test_cells_are_lit_half_lit_and_dark_where_they_should_be():
    cell, grey = 24, 200
    images = np.full((FRAMES, 48, 96, 3), grey, dtype=np.uint8)
    strip = np.asarray(kept_strip(images, None, reduced(), columns=2, cell=cell)).astype(int)
    tile_w, tile_h = GRID[1] * cell, GRID[0] * cell
    state = expected()
    # the middle of every cell of every frame, at its place in the strip
    for frame in range(FRAMES):
        x0, y0 = 20 + frame % 2 * (tile_w + 10), 20 + frame // 2 * (tile_h + 40)
        for row in range(GRID[0]):
            for column in range(GRID[1]):
                pixel = strip[y0 + row * cell + cell // 2, x0 + column * cell + cell // 2]
                if state[frame, row, column] == KEPT:
                    assert (pixel == grey).all()
                elif state[frame, row, column] == MERGED:
                    assert 0.3 * grey < pixel.mean() < 0.6 * grey
                else:
                    assert pixel.mean() < 0.2 * grey
    assert tuple(strip[0, 0]) == GROUND
    label = strip[20 + tile_h + 2 : 20 + tile_h + 30, 20 : 20 + tile_w]
    assert label.max() > 200  # the time stands under the frame


def test_the_picture_is_as_wide_as_asked_and_shows_the_right_frame():
    tokens = ledger(24, (4, 4)).keep(torch.tensor([16 * 20 + 5]))  # one cell of frame 20
    images = np.full((4, 112, 112, 3), 255, dtype=np.uint8)
    strip = kept_strip(images, None, tokens, [3, 9, 20, 23], columns=4)
    assert abs(strip.width - 1200) <= 1
    white = (np.asarray(strip)[:250] == 255).all(axis=2).nonzero()[1]
    assert 600 < white.mean() < 900  # third of four


def test_small_cells_and_odd_sizes_are_drawn():
    strip = kept_strip(np.zeros((3, 30, 54, 3), np.uint8), None, ledger(3, (12, 12)), columns=8, cell=3)
    assert strip.width == 2 * 20 + 3 * 36 + 2 * 10
    assert len(spread(64, 24)) == 24
    assert spread(64, 24)[0] > 0
    assert spread(64, 24)[-1] == 62
    assert spread(2, 24) == [0, 1]


@pytest.mark.parametrize(
    ("images", "frames", "message"),
    [
        (np.zeros((2, 8, 8, 3), np.uint8), None, "2 images for 3 frames"),
        (np.zeros((1, 8, 8, 3), np.uint8), [3], "inside 0..2"),
        (np.zeros((3, 8, 8, 3), np.float32), None, "uint8"),
        ([], [], "at least one"),
    ],
)
def test_bad_images_are_refused(images, frames, message):
    with pytest.raises(ValueError, match=message):
        kept_strip(images, None, ledger(), frames)


def test_a_foreign_owner_is_refused():
    with pytest.raises(ValueError, match="need"):
        cell_states(ledger(), torch.zeros(5, dtype=torch.int64))
