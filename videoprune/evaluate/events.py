"""Event F1: how many of the reference's events an answer tells. A judge for generated films, whose references list events.

    "a red circle moves left , a blue square moves up"

It compares sentences, not meanings, so it is for answers in that form only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

SPLIT = re.compile(r"[,;.\n]|\band then\b|\bthen\b|\band\b", re.IGNORECASE)
ARTICLES = re.compile(r"\b(a|an|the)\b", re.IGNORECASE)


@dataclass(frozen=True)
class EventScore:
    """Shares in 0..1.

    Attributes:
        precision: of the told events, those that are in the reference (each of its events answers for one).
        recall: of the reference's events, those that are told.
        f1: their harmonic mean.
        ordered: the same with only the longest run of events that is in both in the same order.
    """

    precision: float
    recall: float
    f1: float
    ordered: float


def events_of(text: str) -> list[str]:
    """The events that a text lists, in order: lower case, without articles."""
    parts = (" ".join(ARTICLES.sub(" ", part).casefold().split()) for part in SPLIT.split(text))
    return [part for part in parts if part]


def event_f1(answer: str | Sequence[str], reference: str | Sequence[str]) -> EventScore:
    """Compare two lists of events, or texts that list them. Shares are 1 where both are empty, 0 where one is."""
    told = events_of(answer) if isinstance(answer, str) else list(answer)
    true = events_of(reference) if isinstance(reference, str) else list(reference)
    if not told and not true:
        return EventScore(1.0, 1.0, 1.0, 1.0)
    shared = (Counter(told) & Counter(true)).total()
    return EventScore(
        precision=shared / len(told) if told else 0.0,
        recall=shared / len(true) if true else 0.0,
        f1=2 * shared / (len(told) + len(true)),
        ordered=2 * _common(told, true) / (len(told) + len(true)),
    )


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    best = [0] * (len(second) + 1)
    for item in first:
        corner = 0
        for place, other in enumerate(second):
            corner, best[place + 1] = (
                best[place + 1],
                corner + 1 if item == other else max(best[place + 1], best[place]),
            )
    return best[-1]
