"""Training batches: composed films show what their timeline says, and questions do not see each other."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from videoprune.demo import names
from videoprune.demo.questions import Question
from videoprune.demo.training.bank import Bank
from videoprune.demo.training.common import CELLS, WIDTH, MasterWeights, concept_vectors, schedule
from videoprune.demo.training.compose import BOOKS, HEADER, Composer, Shape, pointed


def owners(bank: Bank) -> dict[int, tuple[str, tuple[str, ...]]]:
    """Place and event of each bank row."""
    found = {}
    for place in bank.places:
        found |= dict.fromkeys(place.empty, (place.name, ()))
        for clips in (*place.actors.values(), *place.others.values()):
            found |= {row: (place.name, clip.name) for clip in clips for row in clip.rows}
    return found


def test_composed_film_shows_its_timeline(bank: Bank) -> None:
    composer, owner = Composer(bank, np.random.default_rng(1)), owners(bank)
    cutaways = 0
    for seconds in (16, 32, 64, 128, 128, 128, 256):
        timeline, rows = composer.film(seconds)
        cutaways += sum(shot.cutaway for shot in timeline.shots)
        for t in range(seconds):
            event = timeline.event_at(t)
            place = timeline.shot_of(event).place if event else timeline.shot_at(t).place
            assert owner[int(rows[t])] == (place, event.name if event else ())
    assert cutaways > 0


@pytest.mark.parametrize("shape", [Shape(3, 64, 200, (16, 32)), Shape(2, 600, 200, (16, 64))])
def test_batch(bank: Bank, shape: Shape) -> None:
    batch = Composer(bank, np.random.default_rng(2)).batch(shape)
    length = HEADER + shape.visual + 1 + shape.text
    assert batch.ids.shape == (shape.films, length)
    assert batch.mask.shape == (shape.films, 1, length, length)
    assert batch.mask[:, 0].any(-1).all()  # no row without a key
    assert not batch.mask[:, 0].triu(1).any()  # nothing looks ahead
    by_film: dict[int, list] = {}
    for asked in batch.asked:
        by_film.setdefault(asked.film, []).append(asked)
        assert (batch.labels[asked.film, asked.start : asked.start + asked.length] >= 0).all()
    for film, questions in by_film.items():
        first = HEADER + shape.visual + 1
        starts = [q.start for q in questions]
        for a, b in itertools.pairwise(questions):
            assert not batch.mask[film, 0, b.start, first : a.start + a.length].any()  # a question sees no earlier one
        assert batch.mask[film, 0, starts, 0].all()
        assert batch.mask[film, 0, starts, first - 1].all()
        used = batch.mask[film, 0, starts[0], HEADER : first - 1]
        positions = batch.positions[film, HEADER : first - 1][used]
        assert (positions.diff() > 0).all()
        assert positions[-1] < batch.positions[film, first - 1]


def test_pruned_films_keep_the_evidence(bank: Bank) -> None:
    composer = Composer(bank, np.random.default_rng(3))
    kept_shares = []
    for _ in range(20):
        timeline, rows = composer.film(64)
        kept = set((composer.choose(rows, timeline, 300) // CELLS).tolist())
        needed = [t for e in timeline.events for t in range(int(e.start), int(e.end))]
        kept_shares.append(np.mean([t in kept for t in needed]))
    assert np.mean(kept_shares) > 0.95


def test_averages_are_averages(bank: Bank) -> None:
    composer = Composer(bank, np.random.default_rng(4))
    features = torch.full((12, CELLS, WIDTH), 3.0)
    shown = np.zeros((12, CELLS), bool)
    assert torch.allclose(composer.average(features, shown), features)  # a mean of equals
    features = torch.rand(12, CELLS, WIDTH)
    out = composer.average(features, shown)
    assert out.min() >= features.min()
    assert out.max() <= features.max()
    assert not torch.equal(out, features)


def test_concept_vectors_are_orthonormal() -> None:
    vectors = concept_vectors()
    assert torch.allclose(vectors @ vectors.T, torch.eye(len(names.CONCEPTS)), atol=1e-5)
    assert torch.equal(vectors, concept_vectors())


def test_master_weights_learn_in_bf16() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 8).bfloat16()
    optimizer = MasterWeights([("layers.0.weight", layer.weight), ("bias", layer.bias)], muon_lr=0.2, adam_lr=0.02)
    x = torch.randn(64, 8).bfloat16()
    losses = []
    for step in range(60):
        loss = (layer(x) - x).float().square().mean()
        loss.backward()
        optimizer.step(schedule(step, 60, warm=5, hold=0.5))
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_schedule_rises_holds_and_falls() -> None:
    values = [schedule(s, 100, warm=10, hold=0.5) for s in range(101)]
    assert values[0] == pytest.approx(0.1)
    assert values[9:50] == [1.0] * 41
    assert values[75] == pytest.approx(0.5)
    assert values[100] == pytest.approx(0.01)


def test_pointed_tokens_are_those_the_answer_tells_of() -> None:
    second = np.array([-1, 3, 4, -1, 10, 11])
    asked = Question("after", "", "a red star moves up", (), ((3.0, 5.0), (10.0, 12.0)), ((10.0, 12.0),))
    places = pointed(asked, second, 6)
    assert [j for j, _ in places] == [0, 1, 2, 3, 4]
    assert all(mask.tolist() == [False, False, False, False, True, True] for _, mask in places)
    assert pointed(Question("count", "", "zero", (), ((0.0, 20.0),)), second, 2) == []


def test_bookkeeping_counts_as_the_timeline_does(bank: Bank) -> None:
    composer = Composer(bank, np.random.default_rng(5))
    timeline, rows = composer.film(128)
    books = composer.bookkeeping(timeline, bank.shown[rows])
    seen: list[tuple[str, ...]] = []
    for event in timeline.actors:
        labels = books[int(event.start)].reshape(-1, len(BOOKS))
        assert (labels == labels[0]).all()  # the bank shows the object in every cell
        shape, colour, way, _, before, _, number, again = labels[0].tolist()
        assert (names.SHAPES[shape], names.COLOURS[colour], names.DIRECTIONS[way]) == event.name
        assert number == len(seen)
        assert again == sum(s[:2] == event.name[:2] for s in seen)
        assert (*names.COLOURS, None)[before] == (seen[-1][1] if seen else None)
        seen.append(event.name)
    empty = [t for t in range(128) if timeline.event_at(t) is None]
    assert (books[empty] == -100).all()
