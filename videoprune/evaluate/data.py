"""Questions about films, and the data sets that they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from videoprune.errors import UsageError

CARRIED = ("group", "points", "gold")  # entries of Question.extra that result rows keep
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Question:
    """One question about one film.

    Attributes:
        id: its official id, or "task/index" with the index that it has in its official file, from 0.
        video: the film's name as the data set writes it.
        path: absolute path of the film; it need not exist.
        task: canonical name of its task.
        question: the text.
        options: the options' texts, without letters; empty for a question that is answered in sentences.
        answer: text of the right option, or the reference; None where it is not public.
        duration: seconds, as the data set says; None where it does not.
        extra: what only some data sets have: `row` (the original entry), `points` (scoring points), `group` (further
            names to score by), `gold` (index of the right option), `subtitles` (path of a subtitle file).
    """

    id: str
    video: str
    path: Path
    task: str
    question: str
    options: tuple[str, ...] = ()
    answer: str | None = None
    duration: float | None = None
    extra: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), hash=False)

    @property
    def generation(self) -> bool:
        """Whether it is answered in sentences."""
        return not self.options

    @property
    def gold(self) -> int | None:
        """Index of the right option: the data set's own where it gives one, else the last that reads like the answer, as MLVU's
        script takes it; None where no option does, which every harness counts as wrong whatever is answered."""
        if self.extra.get("gold") is not None:
            return int(self.extra["gold"])
        found = [index for index, option in enumerate(self.options) if option == self.answer]
        return found[-1] if found else None


@dataclass(frozen=True)
class Problem:
    """A defect of the data, told once: `kind` in two or three words, how many, where first, and what follows from it."""

    kind: str
    count: int
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.count} × {self.kind} (first: {self.where}): {self.message}"


@dataclass(frozen=True)
class Benchmark:
    """A data set as it lies on a disk: its questions in the official order, and what is wrong with it."""

    name: str
    root: Path
    questions: tuple[Question, ...]
    problems: tuple[Problem, ...] = ()

    def __len__(self) -> int:
        return len(self.questions)

    def films(self) -> dict[Path, tuple[Question, ...]]:
        """The questions by film, films in the order of their first question."""
        grouped: dict[Path, list[Question]] = {}
        for question in self.questions:
            grouped.setdefault(question.path, []).append(question)
        return {path: tuple(questions) for path, questions in grouped.items()}

    def tasks(self) -> dict[str, int]:
        """Number of questions by task, in the order of first appearance."""
        counts: dict[str, int] = {}
        for question in self.questions:
            counts[question.task] = counts.get(question.task, 0) + 1
        return counts


def question_of(row: Mapping[str, Any]) -> Question:
    """The question of a result row (videoprune.evaluate.rows says what one holds).

    Raises:
        UsageError: a field is missing or of another type.
    """
    for name, kinds in (("video", str), ("task", str), ("question", str), ("options", list | tuple)):
        if not isinstance(row.get(name), kinds):
            raise UsageError(
                f"result row {row.get('key')!r}: {name} is {row.get(name)!r}; give the results of a `videoprune batch` run"
            )
    return Question(
        id=str(row.get("id")),
        video=row["video"],
        path=Path(row["video"]),
        task=row["task"],
        question=row["question"],
        options=tuple(map(str, row["options"])),
        answer=row.get("answer"),
        duration=row.get("duration"),
        extra={name: row[name] for name in CARRIED if row.get(name) is not None},
    )
