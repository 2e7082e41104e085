"""The ledger: every original token counted once, through any chain of changes, against a plain-Python bookkeeper."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from videoprune.errors import UsageError
from videoprune.tokens import VisualTokens, budget, check_share

GRID = (2, 3)


def tokens(frames: int = 4, width: int = 5, seed: int = 0) -> VisualTokens:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(frames * 6, width, generator=generator)
    return VisualTokens.from_frames(features, torch.arange(frames, dtype=torch.float64), GRID)


class Books:
    """Rows as plain sets of the original tokens that they stand for, with their exact means."""

    def __init__(self, start: VisualTokens) -> None:
        self.rows = [({number}, start.features[number].double()) for number in range(len(start))]

    def keep(self, index: list[int]) -> None:
        self.rows = [self.rows[number] for number in index]

    def merge(self, into: list[int]) -> None:
        merged = []
        for survivor in [number for number, goal in enumerate(into) if goal == number]:
            group = [self.rows[number] for number, goal in enumerate(into) if goal == survivor]
            owned = set().union(*(members for members, _ in group))
            total = sum(value * len(members) for members, value in group)
            merged.append((owned, total / len(owned)))
        self.rows = merged


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_chain_conserves_tokens(data: st.DataObject) -> None:
    now = tokens()
    books = Books(now)
    for _ in range(data.draw(st.integers(1, 5))):
        if not len(now):
            break
        if data.draw(st.booleans()):
            index = sorted(data.draw(st.sets(st.integers(0, len(now) - 1), min_size=1)))
            now = now.keep(torch.tensor(index))
            books.keep(index)
        else:
            survivors = sorted(data.draw(st.sets(st.integers(0, len(now) - 1), min_size=1)))
            into = [
                row if row in survivors else data.draw(st.sampled_from([*survivors, -1])) for row in range(len(now))
            ]
            now = now.merge(torch.tensor(into))
            books.merge(into)
        now.check()
        assert len(now) == len(books.rows)
        for row, (members, mean) in enumerate(books.rows):
            assert set((now.owner == row).nonzero()[:, 0].tolist()) == members
            assert int(now.weight[row]) == len(members)
            torch.testing.assert_close(now.features[row].double(), mean, atol=1e-5, rtol=1e-5)
        lost = set(range(24)) - set().union(*(members for members, _ in books.rows))
        assert set((now.owner == -1).nonzero()[:, 0].tolist()) == lost


def test_places_and_scores_travel_with_their_rows() -> None:
    start = tokens().with_scores(relevance=torch.arange(24.0)).with_events(torch.tensor([0, 0, 1, 1]))
    kept = start.keep(torch.tensor([1, 7, 23]))
    assert kept.frame.tolist() == [0, 1, 3]
    assert kept.cell.tolist() == [[0, 1], [0, 1], [1, 2]]
    assert kept.event.tolist() == [0, 0, 1]
    assert kept.seconds.tolist() == [0.0, 1.0, 3.0]
    assert kept.position.tolist() == [1, 7, 23]
    assert kept.scores["relevance"].tolist() == [1.0, 7.0, 23.0]
    assert kept.compacted().position.tolist() == [0, 1, 2]
    assert (kept.extent, kept.compacted().extent) == (24, 3)


def test_added_rows_weigh_nothing_and_have_no_place() -> None:
    start = tokens().with_events(torch.tensor([0, 0, 1, 1]))
    more = start.insert(torch.tensor([11, 23]), torch.full((2, 5), 7.0)).check()
    assert (len(more), more.count) == (26, 24)
    assert more.weight[[12, 25]].tolist() == [0, 0]
    assert more.cell[[12, 25]].tolist() == [[-1, -1], [-1, -1]]
    assert more.event[[12, 25]].tolist() == [0, 1]
    assert bool((more.features[[12, 25]] == 7).all())
    assert torch.equal(more.features[more.weight > 0], start.features)
    assert torch.equal(more.owner, torch.tensor([*range(12), *range(13, 25)]))


def test_chunks_join_to_the_whole() -> None:
    whole = tokens(6)
    parts = []
    for start in (0, 2, 4):
        seconds = torch.arange(start, start + 2, dtype=torch.float64)
        part = VisualTokens.from_frames(whole.features[start * 6 : start * 6 + 12], seconds, GRID)
        parts.append(part.keep(torch.tensor([0, 5, 7])))
    joined = VisualTokens.concat(parts).check()
    want = whole.keep(torch.tensor([0, 5, 7, 12, 17, 19, 24, 29, 31]))
    for name in ("features", "frame", "cell", "seconds", "weight", "owner", "position", "frame_seconds"):
        assert torch.equal(getattr(joined, name), getattr(want, name)), name


def test_frame_features_are_means_over_a_frames_original_tokens() -> None:
    start = tokens()
    into = torch.arange(24)
    into[6:9] = 0  # three tokens of frame 1 are absorbed by a token of frame 0
    into[18:] = -1  # frame 3 is lost
    now = start.merge(into)
    owners = now.owner.view(4, 6)
    for frame in range(3):
        torch.testing.assert_close(now.frame_features()[frame], now.features[owners[frame]].mean(dim=0))
    assert bool((now.frame_features()[3] == 0).all())


@pytest.mark.parametrize(
    ("index", "says"), [([1, 1], "ascending"), ([2, 1], "ascending"), ([24], "ascending"), ([-1, 3], "ascending")]
)
def test_bad_rows_are_refused(index: list[int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        tokens().keep(torch.tensor(index))


def test_bad_merges_are_refused() -> None:
    into = torch.arange(24)
    into[3], into[4] = 4, 5
    with pytest.raises(ValueError, match="survive"):
        tokens().merge(into)
    with pytest.raises(ValueError, match="entry for each"):
        tokens().merge(torch.arange(3))
    with pytest.raises(ValueError, match="one row each"):
        tokens().merge(torch.arange(24), features=torch.zeros(3, 5))


def test_a_book_that_does_not_balance_is_told() -> None:
    broken = tokens()
    broken.weight[2] = 5
    with pytest.raises(ValueError, match="row 2 has weight 5"):
        broken.check()


@pytest.mark.parametrize(
    ("total", "keep", "at_most", "want"),
    [
        (100, None, None, 100),
        (100, 1, None, 100),
        (100, 1.0, None, 100),
        (100, 0.25, None, 25),
        (10, 0.25, None, 3),
        (100, 7, None, 7),
        (5, 7, None, 5),
        (100, 0.5, 20, 20),
        (100, 0.001, None, 1),
        (0, 0.5, None, 0),
    ],
)
def test_budget(total: int, keep: float | int | None, at_most: int | None, want: int) -> None:
    assert budget(total, keep, at_most) == want


@pytest.mark.parametrize("bad", [0, -1, 1.5, 0.0, True, "0.5", float("nan")])
def test_shares_that_are_none_are_refused(bad: object) -> None:
    with pytest.raises(UsageError, match=r"keep: .* is given; allowed"):
        check_share("keep", bad)  # type: ignore[arg-type]


def test_mrope_positions_are_frame_row_and_column() -> None:
    """Frames go on from chunk to chunk, rows and columns do not; renumbering closes gaps in time alone."""
    features = torch.arange(12.0)[:, None]
    chunk = VisualTokens.from_frames(features, torch.arange(2.0), (2, 3), mrope=True, interval=1.0)
    assert chunk.position.tolist() == [[0] * 6 + [1] * 6, [0, 0, 0, 1, 1, 1] * 2, [0, 1, 2] * 4]
    whole = VisualTokens.concat([chunk, chunk])
    assert whole.position[0].tolist() == [number // 6 for number in range(24)]
    assert torch.equal(whole.position[1:], chunk.position[1:].repeat(1, 2))
    assert (whole.extent, whole.interval) == (4, 1.0)
    kept = whole.keep(torch.tensor([1, 5, 20]))
    assert kept.position.tolist() == [[0, 0, 3], [0, 1, 0], [1, 2, 2]]
    renumbered = kept.compacted()
    assert renumbered.position.tolist() == [[0, 0, 1], [0, 1, 0], [1, 2, 2]]
    assert (kept.extent, renumbered.extent) == (4, 2)
    added = kept.insert(torch.tensor([1]), torch.zeros(1, 1))
    assert added.position.tolist() == [[0, 0, 0, 3], [0, 1, 1, 0], [1, 2, 2, 2]]
    merged = whole.merge(torch.arange(24) // 2 * 2)
    assert torch.equal(merged.position, whole.position[:, ::2])


def test_chunks_of_one_film_have_one_grid() -> None:
    parts = [VisualTokens.from_frames(torch.zeros(6, 1), torch.zeros(1), grid) for grid in ((2, 3), (3, 2))]
    with pytest.raises(ValueError, match=r"\(2, 3\), \(3, 2\)"):
        VisualTokens.concat(parts)
