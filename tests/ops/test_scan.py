"""Selective scans against loops over single numbers, and paths against a walker."""

import numpy as np
import pytest
import torch

from videoprune.ops.scan import aligned, packed, paths, selective_scan


def draw(frames, length, channels, states, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(frames, length, channels))
    delta = np.log1p(np.exp(rng.normal(size=(frames, length, channels))))
    rate = -np.exp(rng.normal(size=(channels, states)))
    into, out = rng.normal(size=(2, frames, length, states))
    return x, delta, rate, into, out, rng.normal(size=channels)


def slow(x, delta, rate, into, out, skip):
    """The recurrence one token after another, in float64."""
    frames, length, channels = x.shape
    y = np.zeros_like(x)
    for frame in range(frames):
        state = np.zeros((channels, rate.shape[1]))
        for t in range(length):
            step = delta[frame, t][:, None]
            state = np.exp(step * rate) * state + step * into[frame, t][None] * x[frame, t][:, None]
            y[frame, t] = state @ out[frame, t] + skip * x[frame, t]
    return y


def as_float32(*arrays):
    """As tensors with time first."""
    return [time_first(torch.from_numpy(array)).float() for array in arrays]


def time_first(tensor):
    return tensor.transpose(0, 1) if tensor.ndim == 3 else tensor


@pytest.mark.parametrize("length", [1, 7, 8, 9, 50, 196])
@pytest.mark.parametrize("chunk", [1, 8, 1000])
def test_scan_is_the_recurrence(length, chunk):
    drawn = draw(2, length, 5, 3, seed=length)
    expected = slow(*drawn)
    got = selective_scan(*as_float32(*drawn), chunk=chunk).numpy().swapaxes(0, 1)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_scan_does_not_overflow_where_steps_are_large():
    x, delta, *rest = draw(1, 400, 4, 8)
    expected = slow(x, delta * 1000, *rest)
    got = selective_scan(*as_float32(x, delta * 1000, *rest))
    assert torch.isfinite(got).all()
    np.testing.assert_allclose(got.numpy().swapaxes(0, 1), expected, rtol=1e-4, atol=1e-2)


def test_scan_has_gradients_of_the_recurrence():
    drawn = [torch.from_numpy(each).requires_grad_() for each in draw(1, 11, 3, 2)]
    x, delta, rate, into, out, skip = drawn
    state, total = torch.zeros(3, 2, dtype=torch.float64), 0
    for t in range(11):
        state = torch.exp(delta[0, t][:, None] * rate) * state + delta[0, t][:, None] * into[0, t] * x[0, t][:, None]
        total = total + ((state @ out[0, t] + skip * x[0, t]) * (t + 1)).sum()
    expected = torch.autograd.grad(total, drawn)
    weights = torch.arange(1, 12)[:, None, None]
    got = torch.autograd.grad((selective_scan(*map(time_first, drawn), chunk=4) * weights).sum(), drawn)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def walk(rows, columns, row, column, along, turn):
    """Places and moves of a walker who goes `along` until the edge, then one `turn`, then back."""
    names = {(0, 1): 1, (0, -1): 2, (-1, 0): 3, (1, 0): 4}
    places, moves = [row * columns + column], [0]
    while len(places) < rows * columns:
        step = along
        if not (0 <= row + step[0] < rows and 0 <= column + step[1] < columns):
            step, along = turn, (-along[0], -along[1])
        row, column = row + step[0], column + step[1]
        places.append(row * columns + column)
        moves.append(names[step])
    return places, moves


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 3), (3, 2), (4, 4), (5, 5), (7, 4), (1, 6), (6, 1)])
def test_paths_are_those_of_a_walker(rows, columns):
    order, move = paths(rows, columns)
    last_row, last_column = rows - 1, columns - 1
    # from the last row back: it begins where the first path ends, right of an odd number of rows, left of an even one
    starts = [
        (0, 0, (0, 1), (1, 0)),
        (last_row, last_column if rows % 2 else 0, (0, -1) if rows % 2 else (0, 1), (-1, 0)),
        (0, 0, (1, 0), (0, 1)),
        (last_row if columns % 2 else 0, last_column, (-1, 0) if columns % 2 else (1, 0), (0, -1)),
    ]
    for path, start in enumerate(starts):
        places, moves = walk(rows, columns, *start)
        assert order[path].tolist() == places
        assert move[path].tolist() == moves


def test_aligned_paths_meet_survivors_in_the_order_of_the_whole_grid():
    order, move = paths(4, 5)
    rng = np.random.default_rng(3)
    unit = torch.from_numpy(np.stack([np.sort(rng.choice(20, 9, replace=False)) for _ in range(6)]))
    ours, moves = aligned(order, move, unit)
    for path in range(4):
        for frame in range(6):
            kept = unit[frame].tolist()
            met = [
                (place, way)
                for place, way in zip(order[path].tolist(), move[path].tolist(), strict=True)
                if place in kept
            ]
            assert [kept[rank] for rank in ours[path, frame].tolist()] == [place for place, _ in met]
            assert moves[path, frame].tolist() == [way for _, way in met]


@pytest.mark.parametrize("count", [1, 2, 3, 10, 16, 17])
def test_packed_paths_visit_every_survivor_once(count):
    order, move, (rows, columns) = packed(count)
    assert rows * columns >= count > (rows - 1) * columns
    assert move.shape == order.shape == (4, count)
    for path in order.tolist():
        assert sorted(path) == list(range(count))
