"""Which questions a training film is asked, and in which words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from videoprune.demo import language, names
from videoprune.demo.questions import TASKS, WORDINGS, Asker, Question, with_options
from videoprune.demo.timeline import Timeline
from videoprune.demo.training.wordings import ENDINGS, OPENINGS, training_wordings, usable, vary

_END = language.WORD_ID[language.END]
_ASK = [_END, language.WORD_ID[language.START], language.WORD_ID["assistant"]]
_PREFIX = language.encode("Best option: (")
_UNKNOWN = language.WORD_ID[language.UNKNOWN]
_MEANING = """
first last after before once prior follows followed precedes preceded preceding start starts begins beginning end final
initial color colour colored shade many often number total times where which way direction place
"""
_KEPT_WORDS = frozenset(  # never lost: without them a question asks something else
    language.WORD_ID[word]
    for word in (
        *names.CONCEPTS,
        *language.PUNCTUATION,
        *language.LETTERS,
        *names.NUMBERS,
        *_MEANING.split(),
    )
    if word in language.WORD_ID
)
_NAME = re.compile(f"({'|'.join(names.COLOURS)}) ({'|'.join(names.SHAPES)})")

FIRST_RATES = {
    "count": 2.0, "after": 1.7, "before": 2.0, "direction": 1.5, "order": 1.2, "colour": 2.5, "where": 0.8, "needle": 0.6,
    "anomaly": 0.5, "topic": 0.4, "sub_scene": 0.6, "list": 0.4,
}  # fmt: skip
SECOND_RATES = {
    "count": 2.6, "after": 2.2, "before": 2.4, "direction": 1.8, "order": 0.9, "colour": 5.0, "where": 1.2, "needle": 0.4,
    "anomaly": 0.4, "topic": 0.3, "sub_scene": 0.6, "list": 0.5,
}  # fmt: skip


@dataclass(frozen=True)
class Written:
    """A question as tokens: ``options`` says of each prompt token which option it spells (-1: none)."""

    prompt: list[int]
    answer: list[int]
    options: list[int]
    right: int  # the index of the right option, -1 without options

    @property
    def lettered(self) -> bool:
        return self.right >= 0


@dataclass(frozen=True)
class Mix:
    """What is asked, as shares.

    ``rates`` says how often a film is asked each kind; above 1 it is asked again (another wording, mostly another
    object). ``letters`` is the share of questions asked with options, ``lookups`` how many text-only look-ups a film
    gets on average, ``few_colours`` the share of films with two colours only (else the colour alone tells objects
    apart, and shapes are never learnt), ``wide`` the share of questions in the wider grammar, ``short_names`` the
    share of "the red star" that becomes "the star" where that says which, ``lost`` that of little words that are lost.
    """

    rates: Mapping[str, float] = field(default_factory=lambda: SECOND_RATES)
    letters: float = 0.08
    lookups: float = 0.15
    few_colours: float = 0.1
    wide: float = 0.65
    short_names: float = 0.2
    lost: float = 0.02


FIRST = Mix(FIRST_RATES, letters=0.12, lookups=0.2, few_colours=0.4, wide=0.0, short_names=0.0, lost=0.0)
SECOND = Mix()
THIRD_RATES = SECOND_RATES | {"sub_scene": 1.5, "list": 0.3, "colour": 3.0}
LETTERS = Mix(THIRD_RATES, letters=0.6, lookups=3.0)
CLOSE = Mix(THIRD_RATES | {"list": 0.5}, letters=0.35, lookups=0.5)


class WideAsker(Asker):
    """Asks in the wider grammar, by a share."""

    def __init__(self, timeline: Timeline, rng: np.random.Generator, wide: float) -> None:
        super().__init__(timeline, rng)
        self.wide = wide

    def wording(self, name: str) -> str:
        rng = self.rng
        if rng.random() >= self.wide:
            return super().wording(name)
        text = vary(self._pick(training_wordings(name)), rng)
        draw = rng.random()
        if draw < 0.12 and text[-1] == "?" and text not in WORDINGS[name]:
            text = vary(self._pick(usable(OPENINGS)), rng) + text
        elif draw < 0.24:
            text = text[:-1] + vary(self._pick(usable(ENDINGS)), rng) + text[-1]
        return text[:-1] if rng.random() < 0.15 else text


class Examiner:
    """Draws a film's questions and writes them as tokens."""

    def __init__(self, rng: np.random.Generator, mix: Mix) -> None:
        self.rng, self.mix = rng, mix

    def questions(self, timeline: Timeline) -> list[Question]:
        """Questions about a film in random order."""
        asker, asked = WideAsker(timeline, self.rng, self.mix.wide), []
        for kind in TASKS:
            rate = self.mix.rates[kind]
            times = int(rate) + (self.rng.random() < rate % 1)
            asked += [q for q in (asker.ask(kind) for _ in range(times)) if q is not None]
        asked = list({(q.text, q.answer): q for q in asked}.values())
        lookups = self.mix.lookups
        asked += [self.look_up() for _ in range(int(lookups) + (self.rng.random() < lookups % 1))]
        self.rng.shuffle(asked)  # type: ignore[arg-type]
        shapes = Counter(name.split()[1] for name in asker.times)
        asked = [self.shorten(q, shapes) for q in asked]
        return sorted(asked, key=lambda q: q.kind != "list")  # the longest first, so that it always fits

    def shorten(self, question: Question, shapes: Mapping[str, int]) -> Question:
        """ "the red star" as "the star", by a share, where the film has stars of one colour only."""
        found = _NAME.search(question.text)
        if question.kind in ("letter", "count") or found is None or shapes.get(found[2]) != 1:
            return question
        if self.rng.random() >= self.mix.short_names:
            return question
        text = _NAME.sub(found[2], question.text)
        return Question(question.kind, text, question.answer, question.wrong, question.evidence, question.told)

    def look_up(self) -> Question:
        """A question that needs no film: which letter stands before a given text."""
        rng = self.rng
        pools = (names.PLACES, names.COLOURS, names.ITEMS, names.DIRECTIONS, names.NUMBERS, names.ANOMALIES)
        pick = int(rng.integers(2 * len(pools)))
        if pick < len(pools):
            options = [pools[pick][i] for i in rng.permutation(len(pools[pick]))[:4]]
        else:
            ways = rng.random() < 0.5
            options = []
            while len(options) < 4:
                name = f"{names.COLOURS[rng.integers(6)]} {names.SHAPES[rng.integers(6)]}"
                text = f"a {name} moves {names.DIRECTIONS[rng.integers(4)]}" if ways else name
                options += [text] if text not in options else []
        return Question("letter", f"Which option is {options[0]}?", options[0], tuple(options[1:]), ())

    def words(self, text: str) -> list[int]:
        """Token ids, some of the little words lost or unknown."""
        ids = language.encode(text)
        if not self.mix.lost:
            return ids
        chance = self.rng.random(len(ids))
        lost = [i for i, c in zip(ids, chance, strict=True) if i in _KEPT_WORDS or c >= self.mix.lost]
        return [_UNKNOWN if i not in _KEPT_WORDS and c > 1 - self.mix.lost / 2 else i
                for i, c in zip(lost, self.rng.random(len(lost)), strict=True)]  # fmt: skip

    def write(self, question: Question) -> Written:
        """A question and its answer, some of them with lettered options."""
        rng = self.rng
        lettered = question.kind == "letter" or (bool(question.wrong) and rng.random() < self.mix.letters)
        if not lettered:
            prompt = self.words(question.text) + _ASK
            return Written(prompt, [*language.encode(question.answer), _END], [-1] * len(prompt), -1)
        options, right = with_options(question, rng)
        style = rng.random()
        before = ("Question: ", " Options:\n") if style < 0.2 else ("", "\n")
        prompt = [*language.encode(before[0]), *self.words(question.text), *language.encode(before[1])]
        spelt = [-1] * len(prompt)
        for number, (letter, option) in enumerate(zip(language.LETTERS, options, strict=True)):
            sign, text = language.encode(f"({letter})"), language.encode(option)
            prompt += sign + text
            spelt += [-1] * len(sign) + [number] * len(text)
        prompt += [*language.encode("\nOnly give the best option." if style > 0.8 else ""), *_ASK]
        answer = language.encode(f"({language.LETTERS[right]})")
        if rng.random() < 0.5:  # as the MLVU protocol asks: the answer's first words are given
            prompt, answer = prompt + _PREFIX, answer[1:]
        return Written(prompt, [*answer, _END], spelt + [-1] * (len(prompt) - len(spelt)), right)
