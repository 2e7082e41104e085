"""The demo model on the shipped film: its questions are answered, dense and pruned. Generated scenes, seed 0, first draw."""

from __future__ import annotations

import json
from typing import Any

import pytest

from videoprune import demo
from videoprune.demo.language import LETTERS
from videoprune.pipeline import Pipeline
from videoprune.watched import Answer


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    files = sorted(demo.questions_path().glob("*.json"))
    return [row | {"task": file.stem} for file in files for row in json.loads(file.read_text())]


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline.load(device="cpu")


def test_the_film_asks_enough(rows: list[dict[str, Any]]) -> None:
    assert len(rows) >= 20
    assert len({row["task"] for row in rows}) >= 7
    assert all(row["answer"] in row["candidates"] and row["duration"] >= 120 for row in rows)


@pytest.mark.parametrize("recipe", ["dense", "demo"])
def test_at_least_nine_of_ten_are_right(recipe: str, pipe: Pipeline, rows: list[dict[str, Any]]) -> None:
    video = pipe.with_recipe(recipe).watch(demo.film_path())
    answers: list[Answer] = [video.ask(row["question"]) for row in rows]
    wrong = [
        f"{row['question']} -> {answer.text} ({row['answer']})"
        for row, answer in zip(rows, answers, strict=True)
        if answer.text.lower() != row["answer"].lower()
    ]
    assert len(wrong) <= 0.1 * len(rows), wrong
    assert all(answer.notice is None for answer in answers)
    counts = answers[0].report.tokens
    if recipe == "demo":
        assert counts["merged"] <= 0.15 * counts["sampled"]
        assert counts["sampled"] > counts["encoded"] > counts["merged"] > counts["last_layer"]
        assert max(answers[0].report.kv["entries"]) < counts["merged"]


def test_wording_case_and_punctuation_do_not_matter(pipe: Pipeline, rows: list[dict[str, Any]]) -> None:
    video = pipe.with_recipe("dense").watch(demo.film_path())
    for row in rows[::5]:
        asked = row["question"].rstrip("?. ")
        wordings = (asked, asked + " ?", asked + ".", asked.upper() + "?", asked.lower())
        assert len({video.ask(wording).text for wording in wordings}) == 1, asked


def test_what_it_cannot_know_is_said(pipe: Pipeline) -> None:
    video = pipe.watch(demo.film_path())
    notice = video.ask("Who directed the helicopter?").notice
    assert notice is not None
    assert "helicopter" in notice
    assert "--model" in notice
    video.metadata.clear()
    assert "generated films" in str(video.ask("Where does the video take place?").notice)


@pytest.mark.parametrize("recipe", ["dense", "demo"])
def test_three_of_four_letters_are_right(recipe: str, pipe: Pipeline, rows: list[dict[str, Any]]) -> None:
    video = pipe.with_recipe(recipe).watch(demo.film_path())
    right = []
    for row in rows:
        lines = "\n".join(f"({letter}) {text}" for letter, text in zip(LETTERS, row["candidates"], strict=True))
        said = video.ask(f"{row['question']}\n{lines}").text
        right.append(said.replace(" ", "") == f"({LETTERS[row['candidates'].index(row['answer'])]})")
    assert sum(right) >= 0.75 * len(rows), right
