"""A protocol: how a harness asks, reads answers and averages."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from videoprune.errors import UsageError
from videoprune.evaluate.data import LETTERS, Question

if TYPE_CHECKING:
    from videoprune.video import FrameRule


@dataclass(frozen=True)
class Prompted:
    """A question as a protocol asks it.

    Attributes:
        text: the user's turn, without the film.
        system: the system turn; None leaves the model's own.
        prefix: how the model's turn is made to begin.
        interleaved: (seconds, line) of subtitles that stand between the frames, ascending.
    """

    text: str
    system: str | None = None
    prefix: str = ""
    interleaved: tuple[tuple[float, str], ...] = ()

    def flat(self) -> str:
        """All of it as one user's turn, for a model that takes the film and one text: system text, subtitles, question, and
        the beginning of the answer on a last line."""
        lines = "\n".join(line for _, line in self.interleaved)
        return "\n".join(part for part in (self.system, lines, self.text, self.prefix) if part)


@dataclass(frozen=True)
class Mark:
    """A question with its verdict, as averages take it: `correct` is False for an error row and for no answer."""

    task: str
    correct: bool
    blank: bool = False  # something was written, but no option can be read from it: some harnesses leave these out
    benchmark: str = ""


Ask = Callable[[Question, Sequence[float]], Prompted]
Extract = Callable[[str, Question], int | None]


@dataclass(frozen=True)
class Protocol:
    """How a harness asks, reads the answer and averages; everything that makes a number mean something.

    Attributes:
        name: what `--protocol` calls it.
        benchmarks: the data sets that it is made for; empty for any.
        source: where its rules are written.
        ask: (question, seconds of the sampled frames) -> Prompted.
        find: (text, question) -> index of the chosen option or None.
        mode: "generate": the model writes; "likelihood": the options' texts are scored as replies.
        max_new_tokens: longest answer; None leaves the recipe's.
        decoding: how the harness decodes. videoprune always answers greedily, and says so where that differs.
        frames: the harness's own choice of frames, in words.
        spread: how it spreads a number of frames, in FrameRule's words; None takes videoprune's own, the middle of equal parts.
        averaging: "macro" (mean of the tasks' accuracies) or "micro" (of all questions).
        headline: what the harness calls its average.
        blanks: "wrong", "random" (a choice drawn from the question's id, the same in every run) or "dropped".
        normalise: for likelihoods: "sum", or "mean" a token.
        needs_seconds: whether `ask` uses the sampled frames' seconds.
        accepts: which of several options that read like the right one count: "last", "ends" (first and last) or "any".
        left_out: (benchmark, task) that its average skips.
        reply: for likelihoods, what is scored: the option's "text" or its "letter".
        notes: what is peculiar about it, printed with scores.
        version: raised when a change here would change a number that no probe of `digest` sees.
    """

    name: str
    benchmarks: tuple[str, ...]
    source: str
    ask: Ask
    find: Extract
    mode: str = "generate"
    max_new_tokens: int | None = 16
    decoding: str = "greedy"
    frames: str = "the model's"
    spread: str | None = None
    averaging: str = "micro"
    headline: str = "accuracy"
    blanks: str = "wrong"
    normalise: str = "sum"
    needs_seconds: bool = False
    accepts: str = "last"
    left_out: tuple[tuple[str, str], ...] = ()
    reply: str = "text"
    notes: tuple[str, ...] = ()
    version: int = 1

    def prompt(self, question: Question, seconds: Sequence[float] = ()) -> Prompted:
        """The question as the harness asks it; `seconds` of the sampled frames, for protocols with subtitles."""
        return self.ask(question, seconds)

    def frame_rule(self, rule: FrameRule) -> FrameRule:
        """A recipe's rule with the harness's spread, where it counts frames and does not name a spread itself."""
        if self.spread is None or rule.spread is not None or (rule.frames is None and rule.max is None):
            return rule
        return dataclasses.replace(rule, spread=self.spread)

    def extract(self, text: str, question: Question) -> int | None:
        """Index of the option that an answer chooses, None where none can be read from it."""
        if question.generation:
            return None
        index = self.find(text, question)
        if index is None and self.blanks == "random":
            drawn = hashlib.sha256(f"{self.name}\0{question.id}".encode()).digest()
            return int.from_bytes(drawn[:8], "big") % len(question.options)
        return index

    def replies(self, question: Question) -> tuple[str, ...]:
        """What is scored in mode "likelihood", one reply an option."""
        if self.reply == "letter":
            return tuple(LETTERS[: len(question.options)])
        return question.options

    def choose(self, likelihoods: Sequence[tuple[float, int]]) -> int:
        """Index of the likeliest option; `likelihoods` are (summed log-probability, tokens) of each, the first wins a tie."""
        if not likelihoods:
            raise UsageError("likelihoods: none are given; one (sum, tokens) an option is needed")
        scores = [total / max(tokens, 1) if self.normalise == "mean" else total for total, tokens in likelihoods]
        return scores.index(max(scores))

    def right(self, index: int | None, question: Question) -> bool | None:
        """Whether the option `index` is right; None where the answer is not public or only a judge can tell."""
        if question.generation or question.answer is None:
            return None
        if index is None or not 0 <= index < len(question.options):
            return False
        if question.extra.get("gold") is not None and self.accepts != "any":
            return index == question.gold
        alike = [place for place, option in enumerate(question.options) if option == question.answer]
        if self.accepts == "last":
            alike = alike[-1:]
        elif self.accepts == "ends":
            alike = alike[:1] + alike[-1:]
        return index in alike

    def correct(self, prediction: str, question: Question) -> bool | None:
        """Whether an answer's text is right; None where the answer is not public or only a judge can tell."""
        return self.right(self.extract(prediction, question), question)

    def average(self, marks: Sequence[Mark]) -> dict[str, Any]:
        """Accuracies by task, both averages, and the harness's own as `headline`; shares in 0..1, None of no questions."""
        marks = [mark for mark in marks if not (mark.blank and self.blanks == "dropped")]
        tasks: dict[str, list[bool]] = {}
        for mark in marks:
            tasks.setdefault(mark.task, []).append(mark.correct)
        shares = {task: sum(right) / len(right) for task, right in tasks.items()}
        skipped = {mark.task for mark in marks if (mark.benchmark, mark.task) in self.left_out}
        taken = {task: right for task, right in tasks.items() if task not in skipped}
        averages = {"macro": _macro(tasks), "micro": _micro(tasks)}
        headline = _macro(taken) if self.averaging == "macro" else _micro(taken)
        return {"tasks": shares, **averages, "headline": headline, "counted": len(marks), "left_out": sorted(skipped)}

    def digest(self) -> str:
        """SHA-256 (16 hex digits) of what changes a number: settings, prompts and extraction on fixed probes."""
        from videoprune.evaluate.protocols import probes

        settings = {
            name: getattr(self, name)
            for name in self.__dataclass_fields__
            if name not in ("ask", "find", "source", "notes", "benchmarks", "decoding", "frames")
        }
        asked, read = probes(self)
        stable = json.dumps([settings, asked, read], sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(stable.encode()).hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """What `run.json` and scores print of it."""
        return {
            "name": self.name,
            "source": self.source,
            "mode": self.mode,
            "max_new_tokens": self.max_new_tokens,
            "decoding": self.decoding,
            "frames": self.frames,
            "average": f"{self.headline} ({self.averaging})",
            "blanks": self.blanks,
            "spread": self.spread,
            "notes": list(self.notes),
            "digest": self.digest(),
        }


def _macro(tasks: Mapping[str, Sequence[bool]]) -> float | None:
    return sum(sum(right) / len(right) for right in tasks.values()) / len(tasks) if tasks else None


def _micro(tasks: Mapping[str, Sequence[bool]]) -> float | None:
    total = sum(map(len, tasks.values()))
    return sum(map(sum, tasks.values())) / total if total else None
