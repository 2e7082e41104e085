"""Questions about a timeline, with answers, wrong options and the seconds that prove the answer.

Twelve kinds; :data:`TASKS` maps each to its task in the MLVU benchmark.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from videoprune.demo import names
from videoprune.demo.scenes import Event
from videoprune.demo.timeline import OBJECTS, Timeline

NOTHING = "nothing"

TASKS = {
    "colour": "plotQA",
    "after": "plotQA",
    "before": "plotQA",
    "where": "plotQA",
    "needle": "needle",
    "direction": "ego",
    "count": "count",
    "order": "order",
    "anomaly": "anomaly_reco",
    "topic": "topic_reasoning",
    "sub_scene": "sub_scene",
    "list": "summary",
}
GENERATED = ("sub_scene", "list")  # answered in whole sentences, never with options

WORDINGS: dict[str, tuple[str, ...]] = {
    "topic": (
        "Where does the video mainly take place?",
        "What place does the video mostly show?",
        "What is the main setting of the film?",
        "Which place is shown for most of the video?",
    ),
    "anomaly": (
        "What unusual event happens in the video?",
        "Which unusual thing can be seen in the film?",
        "What strange event occurs in the video?",
        "Does anything unusual happen, and what is it?",
    ),
    "needle": (
        "Which small item is shown for a short time?",
        "What small item appears briefly in the video?",
        "Which tiny item can be seen for a moment?",
        "What item is briefly visible in the film?",
    ),
    "colour": (
        "What color is the {shape}?",
        "What is the color of the {shape} in the video?",
        "Which color does the {shape} have?",
    ),
    "after": (
        "What happens right after the {object} appears?",
        "What happens immediately after the {object}?",
        "What is the next event right after the {object}?",
        "Right after the {object}, what happens?",
    ),
    "before": (
        "What happens right before the {object} appears?",
        "What happens just before the {object}?",
        "What is the previous event, right before the {object}?",
        "Right before the {object}, what happens?",
    ),
    "where": (
        "Where is the {thing}?",
        "In which place does the {thing} appear?",
        "Where can the {thing} be seen?",
    ),
    "direction": (
        "Which way does the {object} move?",
        "In which direction does the {object} go?",
        "What direction is the {object} moving in?",
        "Where is the {object} heading, which direction?",
    ),
    "count": (
        "How many times does the {object} appear?",
        "How often does the {object} appear in the video?",
        "How many times can the {object} be seen in the film?",
    ),
    "order_first": (
        "Which object appears first?",
        "What is the first object in the video?",
        "Which object is the first to appear?",
    ),
    "order_last": (
        "Which object appears last?",
        "What is the last object in the video?",
        "Which object is the last to appear?",
    ),
    "list": (
        "List the events in order.",
        "Describe what happens in the video.",
        "Summarize the video.",
        "List all objects and how they move, in order.",
    ),
    "sub_scene": (
        "Describe what happens in the {place}.",
        "What happens while the video shows the {place}?",
        "What happens in the {place} scene?",
    ),
}


@dataclass(frozen=True)
class Question:
    """One question; ``wrong`` is empty for kinds without options, ``evidence`` is in seconds of the film.

    ``told`` is the part of the evidence from which a model that reads forward can tell the answer, where that is not
    all of it: what came before an object is known when the object is seen.
    """

    kind: str
    text: str
    answer: str
    wrong: tuple[str, ...]
    evidence: tuple[tuple[float, float], ...]
    told: tuple[tuple[float, float], ...] = ()


def called(event: Event) -> str:
    """What an event's object is called: "red circle", "key"."""
    return f"{event.name[1]} {event.name[0]}" if event.kind == "actor" else event.name[0]


def sentence(event: Event) -> str:
    """What an actor does: "a red circle moves left"."""
    return f"a {called(event)} moves {event.name[2]}"


def span(*events: Event) -> tuple[tuple[float, float], ...]:
    return tuple((round(e.start, 2), round(e.end, 2)) for e in events)


class Asker:
    """Draws questions about one timeline. Each kind is a method that returns a question, or None if none can be asked."""

    def __init__(self, timeline: Timeline, rng: np.random.Generator) -> None:
        self.timeline, self.rng = timeline, rng
        self.actors = timeline.actors
        self.times = Counter(called(e) for e in self.actors)
        self.single = [e for e in self.actors if self.times[called(e)] == 1]
        self.whole = ((0.0, round(timeline.seconds, 2)),)

    def ask(self, kind: str) -> Question | None:
        method: Callable[[], Question | None] = getattr(self, f"_{kind}")
        return method()

    # -- helpers

    def _pick(self, options: Sequence):  # type: ignore[no-untyped-def]
        return options[int(self.rng.integers(len(options)))]

    def wording(self, name: str) -> str:
        """A template of :data:`WORDINGS`."""
        template: str = self._pick(WORDINGS[name])
        return template

    def _say(self, wording: str, **parts: str) -> str:
        return self.wording(wording).format(**parts)

    def _others(self, options: Sequence[str], answer: str) -> tuple[str, ...]:
        rest = [o for o in options if o != answer]
        return tuple(rest[i] for i in self.rng.permutation(len(rest))[:3])

    def _fill(self, near: Sequence[str], answer: str, invent: Callable[[], str]) -> tuple[str, ...]:
        """Three wrong options: from ``near`` (the film's own) where possible, invented ones for the rest."""
        wrong = list(self._others(list(dict.fromkeys(near)), answer))
        while len(wrong) < 3:
            other = invent()
            if other != answer and other not in wrong:
                wrong.append(other)
        return tuple(wrong)

    def _wrong_objects(self, event: Event) -> tuple[str, ...]:
        shape, colour, _ = event.name

        def invent() -> str:
            if self.rng.random() < 0.5:
                return f"{colour} {self._pick(names.SHAPES)}"
            return f"{self._pick(names.COLOURS)} {shape}"

        return self._fill(list(self.times), called(event), invent)

    def _wrong_sentences(self, event: Event, asked: Event) -> tuple[str, ...]:
        shape, colour, direction = event.name

        def invent() -> str:
            parts = [shape, colour, direction]
            which = int(self.rng.integers(3))
            parts[which] = self._pick((names.SHAPES, names.COLOURS, names.DIRECTIONS)[which])
            return f"a {parts[1]} {parts[0]} moves {parts[2]}"

        near = [sentence(e) for e in self.actors if e is not asked]
        return self._fill(near, sentence(event), invent)

    # -- kinds

    def _topic(self) -> Question:
        place = self.timeline.main_place
        shots = tuple((round(s.start, 2), round(s.end, 2)) for s in self.timeline.shots if not s.cutaway)
        return Question("topic", self._say("topic"), place, self._others(names.PLACES, place), shots)

    def _anomaly(self) -> Question:
        found = [e for e in self.timeline.events if e.kind == "anomaly"]
        answer = found[0].name[0] if found else NOTHING
        wrong = self._others((*names.ANOMALIES, NOTHING), answer)
        return Question("anomaly", self._say("anomaly"), answer, wrong, span(*found[:1]) or self.whole)

    def _needle(self) -> Question | None:
        found = [e for e in self.timeline.events if e.kind == "item"]
        if len(found) != 1:
            return None
        item = found[0].name[0]
        return Question("needle", self._say("needle"), item, self._others(names.ITEMS, item), span(found[0]))

    def _colour(self) -> Question | None:
        shapes = Counter(name.split()[1] for name in self.times)
        usable = [e for e in self.actors if shapes[e.name[0]] == 1]
        if not usable:
            return None
        event = self._pick(usable)
        shown = [e for e in self.actors if called(e) == called(event)]
        shape, colour, _ = event.name
        text = self._say("colour", shape=shape)
        return Question("colour", text, colour, self._others(names.COLOURS, colour), span(*shown))

    def _neighbour(self, kind: str, offset: int) -> Question | None:
        events = self.timeline.events
        pairs = [
            (e, events[i + offset]) for i, e in enumerate(events) if e in self.single and 0 <= i + offset < len(events)
        ]
        pairs = [(e, other) for e, other in pairs if other.kind == "actor"]
        if not pairs:
            return None
        asked, other = self._pick(pairs)
        text = self._say(kind, object=called(asked))
        return Question(
            kind,
            text,
            sentence(other),
            self._wrong_sentences(other, asked),
            span(*sorted((asked, other), key=_start)),
            span(other if kind == "after" else asked),
        )

    def _after(self) -> Question | None:
        return self._neighbour("after", 1)

    def _before(self) -> Question | None:
        return self._neighbour("before", -1)

    def _where(self) -> Question | None:
        seen = self.single + [e for e in self.timeline.events if e.kind == "item"]
        if not seen:
            return None
        away = [e for e in seen if self.timeline.shot_of(e).cutaway]
        event = self._pick(away if away and self.rng.random() < 0.4 else seen)
        place = self.timeline.shot_of(event).place
        near = [shot.place for shot in self.timeline.shots]
        wrong = self._fill(near, place, lambda: self._pick(names.PLACES))
        return Question("where", self._say("where", thing=called(event)), place, wrong, span(event))

    def _direction(self) -> Question | None:
        if not self.single:
            return None
        event = self._pick(self.single)
        way = event.name[2]
        text = self._say("direction", object=called(event))
        return Question("direction", text, way, self._others(names.DIRECTIONS, way), span(event))

    def _count(self) -> Question:
        most = max(self.times.values())
        draw = self.rng.random()
        if draw < 0.5:
            name = self._pick([n for n, times in self.times.items() if times == most])
        elif draw < 0.9:
            name = self._pick(list(self.times))
        else:
            absent = [f"{c} {s}" for s, c in OBJECTS if f"{c} {s}" not in self.times]
            name = self._pick(absent)
        answer = names.NUMBERS[self.times.get(name, 0)]
        shown = span(*(e for e in self.actors if called(e) == name)) or self.whole
        text = self._say("count", object=name)
        return Question("count", text, answer, self._others(names.NUMBERS, answer), shown)

    def _order(self) -> Question | None:
        if len(self.times) < 2:
            return None
        first = self.rng.random() < 0.5
        event = self.actors[0 if first else -1]
        text = self._say("order_first" if first else "order_last")
        return Question("order", text, called(event), self._wrong_objects(event), span(event))

    def _list(self) -> Question:
        answer = " , ".join(sentence(e) for e in self.actors)
        return Question("list", self._say("list"), answer, (), span(*self.actors))

    def _sub_scene(self) -> Question | None:
        cutaways = [shot for shot in self.timeline.shots if shot.cutaway]
        if not cutaways:
            return None
        shot = self._pick(cutaways)
        shown = [e for e in self.timeline.events if self.timeline.shot_of(e) is shot]
        if any(e.kind != "actor" for e in shown):
            return None
        answer = " , ".join(sentence(e) for e in shown) or f"{NOTHING} happens"
        return Question(
            "sub_scene",
            self._say("sub_scene", place=shot.place),
            answer,
            (),
            ((round(shot.start, 2), round(shot.end, 2)),),
        )


def _start(event: Event) -> float:
    return event.start


def with_options(question: Question, rng: np.random.Generator) -> tuple[list[str], int]:
    """The four options in random order and the index of the right one."""
    options = [question.answer, *question.wrong]
    order = rng.permutation(len(options))
    return [options[i] for i in order], int(np.flatnonzero(order == 0)[0])


def mlvu_row(question: Question, video: str, seconds: float, rng: np.random.Generator) -> dict[str, object]:
    """A question as a row of an MLVU JSON file, with our two keys ``evidence`` and ``kind``."""
    row: dict[str, object] = {"video": video, "duration": round(seconds, 2), "question": question.text}
    if question.wrong:
        row["candidates"] = with_options(question, rng)[0]
    row |= {"answer": question.answer, "question_type": TASKS[question.kind]}
    row |= {"evidence": [list(e) for e in question.evidence], "kind": question.kind}
    return row
