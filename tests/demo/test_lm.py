"""Training goes on where it was cut off, and one process does what two do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from videoprune.demo import language
from videoprune.demo.train import COURSES, FULL, SMOKE
from videoprune.demo.training import lm, reader
from videoprune.demo.training.asking import FIRST, Mix
from videoprune.demo.training.bank import Bank
from videoprune.demo.training.compose import Composer, Shape

SMALL = ((0.5, Shape(1, 24, 60, (8,))), (0.5, Shape(1, 32, 60, (8, 16))))
COURSE = lm.Course((lm.Phase("one", 3, SMALL, FIRST), lm.Phase("two", 4, SMALL)), hold=0.5)


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    monkeypatch.setattr(lm, "SAVE_EVERY", 2)
    monkeypatch.setattr(lm, "EVALUATION_BATCHES", 1)


def weights(folder: Path, phase: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = lm.read(folder / f"lm_{phase}.pt")["weights"]
    return found


def test_a_run_that_was_cut_off_ends_as_one_that_was_not(
    bank: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    lm.train_course(whole, bank, bank, COURSE, None, 0, resume=False)
    steps, real = 0, lm.Pupil.step

    def dies(pupil: lm.Pupil, scale: float) -> None:
        nonlocal steps
        steps += 1
        if steps == 7:  # the last step of the second phase: after its first save
            raise KeyboardInterrupt
        real(pupil, scale)

    monkeypatch.setattr(lm.Pupil, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        lm.train_course(cut, bank, bank, COURSE, None, 0, resume=False)
    assert not (cut / "lm_two.pt").exists()
    monkeypatch.setattr(lm.Pupil, "step", real)
    lm.train_course(cut, bank, bank, COURSE, None, 0, resume=True)
    a, b = weights(whole, "two"), weights(cut, "two")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["head.weight"], weights(whole, "one")["head.weight"])


def test_a_course_begins_from_given_weights(bank: Bank, tmp_path: Path) -> None:
    one = lm.Course((lm.Phase("one", 1, SMALL, FIRST),))
    lm.train_course(tmp_path, bank, bank, one, None, 0, resume=False)
    begun = weights(tmp_path, "one")
    none = lm.Course((lm.Phase("none", 0, SMALL),))
    lm.train_course(tmp_path, bank, bank, none, tmp_path / "lm_one.pt", 5, resume=False)
    after = weights(tmp_path, "none")
    assert all(torch.equal(begun[name], after[name]) for name in begun)


def test_both_halves_of_a_step_weigh_the_same(bank: Bank) -> None:
    batches = [Composer(bank, np.random.default_rng(r)).batch(SMALL[0][1]) for r in (1, 2)]
    halves = []
    for batch in batches:
        pupil = lm.Pupil(0)
        pupil.backward(batch, 1)
        halves.append({name: p.grad.float() for name, p in pupil.named if p.grad is not None})
    both = lm.Pupil(0)
    for batch in batches:
        both.backward(batch, 2)
    for name, p in both.named:
        if p.grad is not None:
            mean = (halves[0][name] + halves[1][name]) / 2
            assert torch.allclose(p.grad.float(), mean, atol=0.02 * float(mean.abs().max()) + 1e-6), name


def test_plans_have_a_number_of_steps_for_every_phase() -> None:
    for plan in (FULL, SMOKE):
        assert len(plan.steps) == len(COURSES)
        for course, steps in zip(COURSES, plan.steps, strict=True):
            assert tuple(phase.steps for phase in course(steps).phases) == steps
    names = [phase.name for course, steps in zip(COURSES, FULL.steps, strict=True) for phase in course(steps).phases]
    assert len(set(names)) == len(names)  # they name files of one folder


def test_a_letter_is_looked_for_at_its_option(bank: Bank) -> None:
    batch = Composer(bank, np.random.default_rng(0), Mix(letters=1.0, lookups=2.0)).batch(Shape(2, 24, 300, (8,)))
    film, place, option = batch.choices
    assert len(film) == sum(asked.letter for asked in batch.asked) > 0
    for i, at, mask in zip(film.tolist(), place.tolist(), option, strict=True):
        letter = language.VOCABULARY[batch.labels[i, at + 1]]
        assert batch.spelt[i, mask].unique().tolist() == [language.LETTERS.index(letter)]
        assert mask.nonzero().max() < at  # of its own question, and before the answer
    pupil = lm.Pupil(0)
    _, _, _, middle, late = reader.predict(pupil.reader, pupil.reader.head, batch)
    before = reader.option_loss(pupil.reader, late, batch).item()
    for _ in range(10):
        pupil.backward(batch, 1)
        pupil.step(1.0)
    _, _, _, after_middle, late = reader.predict(pupil.reader, pupil.reader.head, batch)
    assert reader.option_loss(pupil.reader, late, batch).item() < before
    spelling = [pupil.keeper.letters(states, batch.spelt).item() for states in (middle, after_middle)]
    assert spelling[1] < spelling[0]
