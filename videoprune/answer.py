"""What comes back: an answer, the likelihoods of options, and the account of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from videoprune.errors import UsageError
from videoprune.models.session import Trace
from videoprune.report.report import Report
from videoprune.run import Run
from videoprune.tokens import VisualTokens

Progress = Callable[[str, int, int | None], None]  # stage, done, total or None
Choice = dict[str, Any]
NORMALISE = ("sum", "mean")


@dataclass(eq=False)
class Answer:
    """An answer with its account.

    Attributes:
        question, text: what was asked, and the answer.
        notice: one line where the model cannot know, None otherwise.
        evidence: frames that the answer attended to, [{seconds, weight}], weights summing to at most 1, best first.
        report: tokens, FLOPs, bytes and seconds of every stage.
        tokens: the visual tokens as they entered the language model, with their ledger.
        ids: token ids of the answer; logits (steps, vocabulary) where asked for; trace of what was kept where.
    """

    question: str
    text: str
    notice: str | None
    evidence: list[dict[str, float]]
    report: Report
    tokens: VisualTokens
    ids: list[int] = field(default_factory=list)
    logits: Tensor | None = None
    trace: Trace = field(default_factory=Trace)
    run: Run | None = None

    @property
    def alive(self) -> Tensor:
        """(A,) int64 rows of `tokens` that the last decoder layer still saw."""
        cuts = [layer for layer in self.trace.kept if layer < len(self.trace.visual_rows) - 1]
        if not cuts:
            return torch.arange(len(self.tokens), device=self.tokens.features.device)
        return self.trace.kept[max(cuts)]

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints for one answer."""
        return {
            "question": self.question,
            "text": self.text,
            "notice": self.notice,
            "evidence": self.evidence,
            "report": self.report.to_dict(),
        }


@dataclass(frozen=True, eq=False)
class OptionScores:
    """How likely each option is as the answer to one question.

    Attributes:
        question, options: what was asked, and the replies that were scored.
        logprobs: of each option, natural logarithm, summed over its tokens and the token that ends the turn.
        lengths: of each option in tokens, that end included.
        normalise: "sum", or "mean" for the log-probability a token.
        notice: one line where the model cannot know, None otherwise.
        report: what reading the prompt once and scoring all options cost.
        tokens: the visual tokens as they entered the language model.
        token_logprobs: (n,) each option, of its single tokens.
    """

    question: str
    options: tuple[str, ...]
    logprobs: tuple[float, ...]
    lengths: tuple[int, ...]
    normalise: str
    notice: str | None
    report: Report
    tokens: VisualTokens
    token_logprobs: tuple[Tensor, ...] = ()

    @property
    def scores(self) -> tuple[float, ...]:
        """What is compared: `logprobs`, by the token under "mean"."""
        if self.normalise == "sum":
            return self.logprobs
        return tuple(total / length for total, length in zip(self.logprobs, self.lengths, strict=True))

    @property
    def chosen(self) -> int:
        """Index of the best option; the first of equals."""
        scores = self.scores
        return max(range(len(scores)), key=lambda number: (scores[number], -number))

    @property
    def text(self) -> str:
        """The best option."""
        return self.options[self.chosen]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "question": self.question,
            "options": list(self.options),
            "chosen": self.chosen,
            "text": self.text,
            "normalise": self.normalise,
            "logprobs": list(self.logprobs),
            "lengths": list(self.lengths),
            "notice": self.notice,
            "report": self.report.to_dict(),
        }


def check_question(question: str) -> str:
    """The question without surrounding blanks; an empty one is refused."""
    if not isinstance(question, str) or not question.strip():
        raise UsageError(
            'the question is empty; ask something, for example "What happens after the red circle appears?"'
        )
    return question.strip()


def check_options(options: Sequence[str], normalise: str) -> tuple[str, ...]:
    """The options without surrounding blanks.

    Raises:
        UsageError: fewer than two, an empty one, two alike, or a way to normalise that does not exist.
    """
    if isinstance(options, str) or len(options) < 2:
        raise UsageError(f"options: {options!r} is given; give a list of at least two replies to choose from")
    for option in options:
        if not isinstance(option, str) or not option.strip():
            raise UsageError(f"options: {option!r} is given; an option is a text of at least one word")
    stripped = tuple(option.strip() for option in options)
    if len(set(stripped)) < len(stripped):
        raise UsageError(f"options: {', '.join(stripped)}: two are alike; give each once")
    if normalise not in NORMALISE:
        raise UsageError(f"normalise: {normalise!r} is given; allowed are {', '.join(NORMALISE)}")
    return stripped


def silent(stage: str, done: int, total: int | None) -> None:
    """Progress that nobody wants to see."""
