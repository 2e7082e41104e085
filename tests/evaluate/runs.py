"""Results folders with rows as the runner writes them, for tests of scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from videoprune.evaluate.base import Question
from videoprune.evaluate.rows import Row, Setup, dump, film_row, question_row

SETUP = Setup("demo", "d" * 16, "demo", "r" * 8, {}, "mlvu-official", "p" * 16, 0)


def asked(
    index: int, task: str = "plotQA", *, film: int | None = None, options: Sequence[str] = ("c0", "c1", "c2", "c3"),
    answer: str | None = "c0", **extra: Any,
) -> Question:  # fmt: skip
    """Question `index` about film `film` (else its own)."""
    film = index if film is None else film
    return Question(
        id=f"{task}/{index}", video=f"film_{film}.mp4", path=Path(f"/films/film_{film}.mp4"), task=task,
        question=f"What about {index}?", options=tuple(options), answer=answer, duration=240.0 + 600 * film, extra=extra,
    )  # fmt: skip


def row(question: Question, prediction: str | None, **found: Any) -> Row:
    return question_row(SETUP, question.video, question, prediction=prediction, **found)


def failed(questions: Sequence[Question]) -> Row:
    """A film that can't be watched."""
    error = {"type": "FilmError", "stage": "video", "message": "cut off"}
    return film_row(SETUP, questions[0].video, questions, error, 0.1)


def write_run(
    folder: Path, rows: Sequence[Row], *, benchmark: str = "mlvu", protocol: str | None = "mlvu-official", recipe: str = "demo"
) -> Path:  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.jsonl").write_bytes(b"".join(dump(each) for each in rows))
    if protocol is not None:
        identity = {"benchmark": benchmark, "protocol": protocol, "recipe": recipe, "model": "demo"}
        (folder / "run.json").write_text(json.dumps({"identity": identity}), encoding="utf-8")
    return folder
