"""Films to train on: generated ones by seed, or a folder of films with questions and answers."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from videoprune.demo.film import film_timeline, make_film
from videoprune.demo.questions import TASKS
from videoprune.demo.training.asking import WideAsker
from videoprune.errors import UsageError
from videoprune.video import FrameRule

FIRST_SEED = 50_000_000  # of training films; those of `bench accuracy` begin at 8 million
HELD_OUT_SEED = 70_000_000
LENGTHS = (12, 16, 24, 32)  # frames of a generated film, one a second, in turn
LONG = ("list", "sub_scene")  # kinds with long answers
LONG_SHARE = 0.25  # of the films that are asked one of those
WIDE = 0.5  # share of questions in the wider grammar
HELD_OUT_SHARE = 0.1  # of a folder's films


@dataclass(frozen=True)
class Asked:
    """A question with its answer, and its kind."""

    question: str
    answer: str
    kind: str


class Films(ABC):
    """Films with questions and answers, by number."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def asked(self, number: int) -> Sequence[Asked]:
        """The questions on a film, the same at every call."""

    @abstractmethod
    def file(self, number: int) -> Path:
        """The film."""

    def rule(self, number: int) -> FrameRule | None:
        """Which frames are looked at; None leaves it to the recipe."""
        return None


class Generated(Films):
    """Films of generated scenes, drawn when they are needed."""

    def __init__(self, count: int, first_seed: int, lengths: Sequence[int] = LENGTHS) -> None:
        self.count, self.first_seed, self.lengths = count, first_seed, tuple(lengths)
        self.folder = tempfile.TemporaryDirectory(prefix="videoprune-films-")

    def __len__(self) -> int:
        return self.count

    def seconds(self, number: int) -> int:
        return self.lengths[number % len(self.lengths)]

    def asked(self, number: int) -> Sequence[Asked]:
        seed = self.first_seed + number
        rng = np.random.default_rng((seed, 8))
        asker = WideAsker(film_timeline(self.seconds(number) / 60, seed), rng, WIDE)
        found = {}
        for kind in TASKS:
            if kind in LONG and rng.random() >= LONG_SHARE / len(LONG):
                continue
            question = asker.ask(kind)
            if question is not None:
                found[question.text] = Asked(question.text, question.answer, kind)
        return list(found.values())

    def file(self, number: int) -> Path:
        seed = self.first_seed + number
        path = Path(self.folder.name) / f"{seed}.mp4"
        if not path.is_file():
            make_film(path, self.seconds(number) / 60, seed)
        return path

    def rule(self, number: int) -> FrameRule:
        phase = float(np.random.default_rng((self.first_seed + number, 5)).uniform(0, 0.99))
        return FrameRule(fps=1.0, start=round(phase, 3))


class Folder(Films):
    """Films that lie in a folder, with a file of questions as `videoprune batch` reads it; see `evaluate.folder`."""

    def __init__(self, rows: Sequence[tuple[Path, Sequence[Asked]]]) -> None:
        self.rows = list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def asked(self, number: int) -> Sequence[Asked]:
        return self.rows[number][1]

    def file(self, number: int) -> Path:
        return self.rows[number][0]


def open_films(data: str, count: int, held_out: int, seed: int) -> tuple[Films, Films]:
    """The films to train on and those that are held out.

    Args:
        data: "demo" for generated films, else a folder or its file of questions.
        count, held_out: how many are generated; of a folder's, a tenth is held out.
        seed: of the generated films, and of the draw of those that are held out.

    Raises:
        UsageError: no such folder, or no answered question on two films at least.
    """
    if data == "demo":
        return (
            Generated(count, FIRST_SEED + seed * 100_000),
            Generated(held_out, HELD_OUT_SEED + seed * 100_000, (32, 48)),
        )
    from videoprune.evaluate.folder import read

    by_film: dict[Path, list[Asked]] = {}
    for question in read(Path(data).expanduser()).questions:
        if question.answer:
            by_film.setdefault(question.path, []).append(Asked(question.question, question.answer, question.task))
    found = sorted(by_film.items())
    if len(found) < 2:
        raise UsageError(
            f"--data {data}: answered questions on {len(found)} films are there; two films at least are needed, one of which is "
            "held out: give questions with answers, or `demo`"
        )
    order = np.random.default_rng(seed).permutation(len(found))
    aside = max(1, round(HELD_OUT_SHARE * len(found)))
    return Folder([found[at] for at in order[aside:]]), Folder([found[at] for at in order[:aside]])
