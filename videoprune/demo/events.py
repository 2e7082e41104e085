"""Lists of events, as the demo model writes them and as films have them: "a red circle moves left , a blue star moves up"."""

from __future__ import annotations

import re
from collections import Counter

_SENTENCE = re.compile(r"\s*[,.;\n]\s*")


def events_in(text: str) -> list[str]:
    """The events of an answer, in order, without articles, case and surplus blanks."""
    found = (re.findall(r"\w+", part.lower()) for part in _SENTENCE.split(text))
    return [
        " ".join(word for word in words if word not in ("a", "an", "the", "and", "then")) for words in found if words
    ]


def event_f1(predicted: str, reference: str) -> float:
    """F1 of the events of an answer against those of the film, each counted as often as it occurs; order has no part in it.

    2 * |P ∩ R| / (|P| + |R|) over multisets; 1 where both are empty.
    """
    told, right = Counter(events_in(predicted)), Counter(events_in(reference))
    if not told and not right:
        return 1.0
    return 2 * (told & right).total() / (told.total() + right.total())
