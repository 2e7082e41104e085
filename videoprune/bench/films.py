"""Held-out films of an accuracy table: generated, encoded to mp4, with questions of every kind and where their evidence is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from videoprune.demo import names, scenes
from videoprune.demo.film import FPS, camera, film_timeline, make_film
from videoprune.demo.questions import TASKS, Asker, Question, with_options
from videoprune.demo.timeline import Timeline
from videoprune.video import FrameRule

FIRST_SEED = 8_000_000  # nothing is trained on these, nothing is chosen on them
KINDS = tuple(TASKS)
MACRO = ("topic", "anomaly", "needle", "colour", "direction", "order", "after", "before", "count")
LISTS = ("list", "sub_scene")
ONE_FACT = ("topic", "anomaly", "needle", "list")  # a film has one such fact; it is asked in several wordings
TRIES = 12  # draws of a kind, of which the different ones are asked


@dataclass(frozen=True)
class Asked:
    """A question of a film, with its four options in order and the place of the right one where it has options."""

    question: Question
    options: tuple[str, ...]
    right: int | None

    @property
    def kind(self) -> str:
        return self.question.kind

    def evidence(self, seconds: np.ndarray) -> np.ndarray:
        """(F,) bool: which of the frames at `seconds` show what proves the answer."""
        shown = np.zeros(len(seconds), dtype=bool)
        for start, end in self.question.evidence:
            shown |= (seconds >= start) & (seconds < end)
        return shown


@dataclass(frozen=True)
class HeldOut:
    """A film by its seed, of as many seconds as frames are looked at, one a second from a phase of its own."""

    seed: int
    frames: int

    @property
    def minutes(self) -> float:
        return self.frames / 60

    @property
    def rule(self) -> FrameRule:
        phase = float(np.random.default_rng((self.seed, 5)).uniform(0, 0.99))
        return FrameRule(fps=1.0, start=round(phase, 3))

    def file(self, folder: Path) -> Path:
        """The mp4, drawn where it is not there yet."""
        path = folder / f"{self.frames}_{self.seed}.mp4"
        if not path.is_file():
            make_film(path, self.minutes, self.seed)
        return path

    def drawn(self, timeline: Timeline | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The frames (F, H, W, 3) that the rule samples and their seconds (F,), without a video file between; with a timeline
        what that one tells, at the film's places."""
        timeline, start = timeline or film_timeline(self.minutes, self.seed), self.rule.start or 0
        seconds = start + np.arange(int(self.frames - start))
        views: dict[str, np.ndarray] = {}
        images = []
        for second in seconds:
            number = int(second * FPS)  # the picture that is shown then
            at = number / FPS
            place = timeline.shot_at(at).place
            if place not in views:
                views[place] = scenes.draw_place(
                    place, np.random.default_rng((self.seed, 1, names.PLACES.index(place)))
                )
            event = timeline.event_at(at)
            rng = np.random.default_rng((self.seed, 2, number))
            progress = event.progress(at) if event else 0.0
            images.append(scenes.draw_frame(views[place], rng, camera(at, self.seed), event, progress)[0])
        return np.stack(images), seconds

    def questions(self, each: int) -> list[Asked]:
        """Up to `each` different questions of every kind, the same at every call."""
        timeline = film_timeline(self.minutes, self.seed)
        asker, rng = Asker(timeline, np.random.default_rng((self.seed, 6))), np.random.default_rng((self.seed, 7))
        asked: list[Asked] = []
        for kind in KINDS:
            found: dict[object, Question] = {}
            for _ in range(TRIES):
                question = asker.ask(kind)
                if question is not None and len(found) < each:
                    found.setdefault(
                        question.text if kind in ONE_FACT else (question.evidence, question.answer), question
                    )
            for question in found.values():
                options, right = with_options(question, rng) if question.wrong else ([], None)
                asked.append(Asked(question, tuple(options), right))
        return asked
