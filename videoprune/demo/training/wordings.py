"""The grammar of training questions: many ways to ask for each kind, wider than the wordings that films carry.

``[a|b|]`` stands for one of its parts; parts in words that the vocabulary lacks are not used. A wording of a benchmark that
:func:`pattern` matches is no test of language.
"""

from __future__ import annotations

import re
from functools import cache

import numpy as np

from videoprune.demo import language
from videoprune.demo.questions import WORDINGS

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_PART = {
    "shape": "(circle|square|triangle|star|heart|diamond)",
    "object": "((red|green|blue|yellow|purple|white) )?(circle|square|triangle|star|heart|diamond)",
    "thing": "((red|green|blue|yellow|purple|white) )?(circle|square|triangle|star|heart|diamond)|key|flag|umbrella"
    "|anchor|mushroom|fish",
    "place": "(forest|desert|beach|city|space|room)",
}

# what comes before and after any question
OPENINGS = ("In the [video|film|clip|movie], ", "In this [video|film|clip], ", "Please tell me: ", "Question: ",
            "Watch the [video|film] carefully. ", "Tell me, ")  # fmt: skip
ENDINGS = (" in the [video|film|clip|movie]", " in this [video|film|clip]", ", please", " on screen")

GRAMMAR: dict[str, tuple[str, ...]] = {
    "topic": (
        "[In|At] which [place|location] is the [video|film|movie|clip|footage] [mainly|mostly|] [set|filmed]?",
        "Where is [most of|the main part of] the [video|film|movie|footage] [set|filmed]?",
        "What is the [main|overall] [place|location|setting|environment|background] of the [video|clip|movie|footage]?",
        "[Name|Identify] the [main|overall] [place|location|setting|scene] of the [video|film|clip].",
        "[Where|In what place] does [most of|] the [film|clip|movie] [take place|happen]?",
        "What [setting|location|scene|background] can be seen [most of the time|during most of the video]?",
    ),
    "anomaly": (
        "What [odd|strange|weird|abnormal|unusual] [thing|event|incident] [happens|occurs|takes place|is shown]?",
        "[Is|Was] there [anything|something] [odd|strange|unusual|abnormal|weird], and what [is|was] it?",
        "[Name|Identify|Describe] the [anomaly|abnormal event|unusual event|strange thing|incident].",
        "Which [anomaly|incident|abnormal event|odd event] [can be seen|is shown|occurs]?",
        "What goes wrong during the [video|film]?",
        "[What happens|Does anything happen] that is out of the ordinary?",
        "What [is|was] [odd|strange|abnormal|unusual] about the [video|clip|film]?",
    ),
    "needle": (
        "Which [small|tiny|little] [item|thing] [is shown|can be seen|appears] [briefly|for a moment|for a short time]?",
        "Which [small|tiny|little] [item|thing] is visible [briefly|quickly|for a moment]?",
        "[Name|Identify] the [small|tiny|little] item that [is shown|appears|can be seen] [briefly|for a moment|quickly].",
        "What [item|small thing] [is|was] [visible|shown|seen] for [a moment|a second|a short time|only one moment]?",
        "What [hidden|brief|tiny|little] item can you see?",
        "[There is|It has] a [small|tiny] item. What is it?",
        "What tiny thing [appears|is seen] for a [second|moment]?",
    ),
    "colour": (
        "[What|Which] [color|colour] [is|was|has] the {shape}?",
        "[Name|Give|Identify|Tell me] the [color|colour|shade] of the {shape}.",
        "What is the {shape}'s [color|colour]?",
        "The {shape} [is|has] [what|which] [color|colour]?",
        "How is the {shape} colored?",
        "[What|Which] [color|colour] of {shape} [appears|is shown|can be seen]?",
        "In [what|which] color is the {shape} shown?",
        "[What|Which] [color|colour] does the {shape} [have|show|appear in]?",
    ),
    "after": (
        "What [comes|happens|is seen|appears|occurs] [right|immediately|directly|just|] after the {object}?",
        "What follows the {object}?",
        "What [event|happens] [directly|immediately|] follows the {object}?",
        "[After|Once] the {object} [is gone|has gone|was shown|passes], what [happens|comes|appears] [next|then]?",
        "What is [shown|seen] next after the {object}?",
        "The {object} [appears|passes]. What happens [next|right after it]?",
        "The {object} is [immediately|directly|] followed by what?",
        "[Describe|Name] the [next event|event right] after the {object}.",
    ),
    "before": (
        "What [comes|came|happens|is seen|appears|occurs] [right|immediately|directly|just|] before the {object}?",
        "What precedes the {object}?",
        "What [event|directly|immediately] precedes the {object}?",
        "What is the event [directly|immediately|] preceding the {object}?",
        "[Before|Prior to] the {object}, what [happens|is shown|appears]?",
        "What [was|is] [shown|seen] [just|immediately] before the {object}?",
        "The {object} is [immediately|directly|] preceded by what?",
        "What happens [immediately|directly|just|right|] before the {object} [is seen|enters|comes|can be seen]?",
        "[Describe|Name] the [previous event|event right] before the {object}.",
    ),
    "where": (
        "In [which|what] [place|location|scene|setting] is the {thing} [seen|shown|]?",
        "[Where|In what place] [does the {thing} appear|is the {thing} shown|is the {thing} seen]?",
        "[Name|Identify] the [place|location] of the {thing}.",
        "What [place|location|background] is [shown|seen] when the {thing} appears?",
        "At which location [does the {thing} appear|can the {thing} be seen]?",
    ),
    "direction": (
        "[Which|What] [way|direction] is the {object} [moving|going|heading|traveling in]?",
        "[Which|What] direction does the {object} [go|move|travel|cross] in?",
        "[In|Toward|Towards] [which|what] [direction|side] does the {object} [move|go|travel]?",
        "[Name|Give|Identify] the direction of the {object}.",
        "[Name|Give|Tell me] the direction in which the {object} [moves|goes|travels].",
        "How does the {object} move[, left, right, up or down|]?",
        "The {object} [moves|goes|is moving] in [which|what] direction?",
        "What is the direction of motion of the {object}?",
        "Which way does the {object} [go|travel|head]?",
    ),
    "count": (
        "How many times [is the {object} seen|is the {object} shown|does the {object} cross|does the {object} show]?",
        "How often [is the {object} shown|can you see the {object}|does the {object} cross|is the {object} visible]?",
        "[Count|Give the number of] the times the {object} [appears|is shown|can be seen].",
        "What is the [number|total] of times the {object} [appears|is seen]?",
        "On how many occasions [does the {object} appear|is the {object} seen]?",
        "How many {object} events are there?",
        "The {object} [appears|is shown] how many times?",
    ),
    "order_first": (
        "[Which|What] [object|thing|shape] [is|was] [seen|shown|visible] first?",
        "[Which|What] [object|thing|shape] [comes|appears|moves] first?",
        "[Name|Identify] the first object[ to appear| that appears|].",
        "What [object|shape] appears at the [start|beginning]?",
        "[Which|What] is the [earliest|initial|very first] object?",
        "What object does the [video|film] show first?",
        "The [video|film|clip] [starts|begins] with which object?",
    ),
    "order_last": (
        "[Which|What] [object|thing|shape] [is|was] [seen|shown|visible] last?",
        "[Which|What] [object|thing|shape] [comes|appears|moves] last?",
        "[Name|Identify] the [last|final] object[ to appear| that appears|].",
        "What [object|shape] appears at the end?",
        "[Which|What] is the [final|very last] object?",
        "What object does the [video|film] show last?",
        "[Which|What] object is the final one to appear?",
    ),
    "list": (
        "[List|Describe|Name] [all|the] [events|objects and how they move] [in order|from first to last|].",
        "[Give|Tell me] [a list|a recap|a summary] of [the events|everything|what happens].",
        "Describe [everything|all events] [that happens|] [in order|in sequence|].",
        "What happens [from start to end|in order|first, next and last]?",
        "What is the sequence of events?",
        "[Summarize|Describe|Recap] the [video|film|clip|footage|movie][ in order|].",
    ),
    "sub_scene": (
        "[Describe|Tell me] what [happens|takes place|occurs|is shown] in the {place}[ scene| part|].",
        "What [takes place|occurs|can be seen|is shown] [in|inside] the {place}[ scene|]?",
        "[During|In] the {place} [scene|part], what [happens|occurs|takes place]?",
        "What [object|] moves in the {place}[ scene|]?",
        "[Describe|Summarize] the {place} [scene|part].",
        "What [happens|occurs] when the [video|film] shows the {place}?",
    ),
}  # fmt: skip


def vary(wording: str, rng: np.random.Generator) -> str:
    """One random expansion; runs of blanks that an empty part leaves are closed."""

    def one(found: re.Match[str]) -> str:
        parts = found[1].split("|")
        return parts[int(rng.integers(len(parts)))]

    text = _CHOICE.sub(one, wording)
    return re.sub(r" +([.,?]|$)", r"\1", re.sub(" {2,}", " ", text))


@cache
def training_wordings(kind: str) -> tuple[str, ...]:
    """All templates of a kind: those that films carry, and the wider ones as far as their words are known."""
    return WORDINGS[kind] + usable(GRAMMAR[kind])


@cache
def usable(templates: tuple[str, ...]) -> tuple[str, ...]:
    """Those that can be said in known words, each as far as it can."""
    return tuple(filter(None, map(known, templates)))


def known(template: str) -> str | None:
    """The template without parts in words that the vocabulary lacks; None where it cannot be said without them."""
    out = []
    for i, piece in enumerate(_CHOICE.split(template)):
        if i % 2 == 0:
            if _unknown(piece):
                return None
            out.append(piece)
            continue
        parts = [part for part in piece.split("|") if not _unknown(part)]
        if not parts:
            return None
        out.append(f"[{'|'.join(parts)}]")
    return "".join(out)


def _unknown(text: str) -> list[str]:
    return language.unknown_words(re.sub(r"\{\w+\}", " ", text))


def pattern(wording: str) -> re.Pattern[str]:
    """Matches :func:`bare` of every question that a template can become."""

    def plain(text: str) -> str:
        pieces = re.split(r"\{(\w+)\}", text)  # text, name, text, name, …
        return "".join(f"({_PART[p].replace(' ', '')})" if i % 2 else re.escape(bare(p)) for i, p in enumerate(pieces))

    pieces = _CHOICE.split(wording)  # text, choice, text, choice, …
    return re.compile(
        "".join(
            "(" + "|".join(map(plain, piece.split("|"))) + ")" if i % 2 else plain(piece)
            for i, piece in enumerate(pieces)
        )
    )


def bare(text: str) -> str:
    """A text in lower case, without blanks and marks at ends of sentences."""
    return re.sub(r"[\s.?]", "", text.lower())
