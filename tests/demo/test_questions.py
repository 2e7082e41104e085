"""Questions are right by an independent reading of the timeline, and their rows are rows of MLVU."""

from __future__ import annotations

import numpy as np
import pytest

from videoprune.demo import names
from videoprune.demo.film import film_rows, film_timeline
from videoprune.demo.questions import TASKS, Asker
from videoprune.demo.timeline import Timeline

MLVU_TASKS = {"plotQA", "needle", "ego", "count", "order", "anomaly_reco", "topic_reasoning"}


def diary(film: Timeline) -> list[tuple[float, str, tuple[str, ...], str]]:
    """What happens, as (middle, kind, words, place), read second by second."""
    seen: list[tuple[float, str, tuple[str, ...], str]] = []
    for event in film.events:
        middle = (event.start + event.end) / 2
        place = next(s.place for s in film.shots if s.start <= middle < s.end)
        seen.append((middle, event.kind, event.name, place))
    return seen


def answer(kind: str, text: str, film: Timeline) -> set[str]:
    """All answers that the diary allows."""
    seen, words = diary(film), text.lower().rstrip("?.").replace(",", "").split()
    actors = [name for _, kind_, name, _ in seen if kind_ == "actor"]
    shape = next((w for w in words if w in names.SHAPES), None)
    colour = next((w for w in words if w in names.COLOURS), None)
    item = next((w for w in words if w in names.ITEMS), None)
    if kind == "topic":
        seconds = np.arange(0.05, film.seconds, 0.1)
        shown = [next(s.place for s in film.shots if s.start <= t < s.end) for t in seconds]
        return {max(set(shown), key=shown.count)}
    if kind == "anomaly":
        return {name[0] for _, k, name, _ in seen if k == "anomaly"} or {"nothing"}
    if kind == "needle":
        return {name[0] for _, k, name, _ in seen if k == "item"}
    if kind == "colour":
        return {c for s, c, _ in actors if s == shape}
    if kind == "count":
        return {("zero", "one", "two", "three", "four")[sum((s, c) == (shape, colour) for s, c, _ in actors)]}
    if kind == "order":
        s, c, _ = actors[-1 if "last" in words else 0]
        return {f"{c} {s}"}
    if kind == "direction":
        return {d for s, c, d in actors if (s, c) == (shape, colour)}
    if kind == "where":
        return {p for _, _, name, p in seen if name[:2] == (shape, colour) or name == (item,)}
    if kind in ("after", "before"):
        at = [i for i, (_, _, name, _) in enumerate(seen) if name[:2] == (shape, colour)]
        name = seen[at[0] + (1 if kind == "after" else -1)][2]
        return {f"a {name[1]} {name[0]} moves {name[2]}"}
    return {" , ".join(f"a {c} {s} moves {d}" for s, c, d in actors)}


@pytest.mark.parametrize("seed", range(12))
def test_every_answer_is_the_only_right_one(seed: int) -> None:
    film = film_timeline(2, seed)
    asker = Asker(film, np.random.default_rng(seed))
    for kind in TASKS:
        if kind == "sub_scene":
            continue
        for _ in range(5):
            question = asker.ask(kind)
            if question is None:
                continue
            assert answer(kind, question.text, film) == {question.answer}, question
            assert not {question.answer} & set(question.wrong)


def test_sub_scene_tells_what_a_cutaway_shows() -> None:
    told = 0
    for seed in range(40):
        film = film_timeline(2, seed)
        question = Asker(film, np.random.default_rng(0)).ask("sub_scene")
        if question is None:
            continue
        (start, end), told = question.evidence[0], told + 1
        shown = [e for e in film.events if e.start >= start and e.end <= end]
        assert question.answer.count("moves") == len(shown)
        assert all(e.name[1] in question.answer for e in shown)
        assert film.main_place not in question.text
    assert told > 5


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_rows_are_mlvu_rows(seed: int) -> None:
    rows = film_rows(film_timeline(13 / 6, seed), seed, "demo.mp4")
    assert {row["question_type"] for row in rows} == MLVU_TASKS
    assert 20 <= len(rows) <= 30
    assert len({row["question"] for row in rows}) == len(rows)
    for row in rows:
        assert set(row) == {
            "video",
            "duration",
            "question",
            "candidates",
            "answer",
            "question_type",
            "evidence",
            "kind",
        }
        assert row["video"] == "demo.mp4"
        assert row["duration"] == 130
        candidates = row["candidates"]
        assert isinstance(candidates, list)
        assert len(set(candidates)) == 4
        assert row["answer"] in candidates
        for start, end in row["evidence"]:  # type: ignore[attr-defined]
            assert 0 <= start < end <= 130


def test_right_option_is_at_no_preferred_place() -> None:
    places = [
        row["candidates"].index(row["answer"])  # type: ignore[attr-defined]
        for seed in range(20)
        for row in film_rows(film_timeline(2, seed), seed, "x")
    ]
    shares = np.bincount(places, minlength=4) / len(places)
    assert shares.min() > 0.18
    assert shares.max() < 0.32


def test_generated_tasks_are_an_option() -> None:
    film = film_timeline(2, 4)
    kinds = {row["kind"] for row in film_rows(film, 4, "x", generated=True)}
    assert "list" in kinds
    assert "list" not in {row["kind"] for row in film_rows(film, 4, "x")}
