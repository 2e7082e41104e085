"""A watched film and the answers that it gives."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from videoprune.answer import Answer, Choice, OptionScores, Progress, check_options, check_question, silent
from videoprune.asking import ask_together, prepare, relevance
from videoprune.chat import Chat
from videoprune.models.generation import check_text, reply_ids
from videoprune.report.flops import Cost
from videoprune.run import Events
from videoprune.tokens import VisualTokens

if TYPE_CHECKING:
    from videoprune.pipeline import Pipeline
    from videoprune.video import FrameRule


@dataclass(eq=False)
class Video:
    """A watched film: what every question about it shares.

    Attributes:
        tokens: visual tokens after the question-blind stages.
        events: its events, not yet ranked by a question.
        observed: (F, C) what the relevance scorer kept of each frame.
        encoded_count: tokens after the vision tower.
        seconds: wall time of the shared stages.
        costs: their FLOPs.
        warnings: what the decoder had to say (a cut tail …).
        rule: which frames were looked at.
    """

    pipeline: Pipeline
    film: str
    tokens: VisualTokens
    events: Events
    observed: Tensor | None
    encoded_count: int
    seconds: dict[str, float]
    costs: dict[str, Cost]
    warnings: list[str]
    metadata: dict[str, str]
    choices: list[Choice]
    rule: FrameRule | None = None

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write `movie.vpz`, which `Pipeline.open` and `videoprune ask` read without decoding or encoding again.

        Raises:
            UsageError: a name that does not end in `.vpz`.
        """
        from videoprune.saved import save_video

        return save_video(self, path)

    @property
    def flops(self) -> dict[str, dict[str, float]]:
        """FLOPs of the shared stages and their total, each split linear/attention."""
        total = sum(self.costs.values(), Cost())
        return {stage: cost.to_dict() for stage, cost in self.costs.items()} | {"total": total.to_dict()}

    @torch.no_grad()
    def relevance(self, question: str) -> Tensor:
        """(F,) float32: how much each frame has to do with a question, by the recipe's scorer."""
        return relevance(self, check_question(question))

    @torch.no_grad()
    def ask(self, question: str, *, progress: Progress | None = None, logits: bool = False) -> Answer:
        """Answer one question from the stored tokens.

        Args:
            question: free text.
            progress: called with (stage, done, total).
            logits: keep the logits of every decoded step in `Answer.logits`.

        Raises:
            UsageError: an empty question, control tokens in it, or more tokens than the model's context.
        """
        tell = progress or silent
        asked = prepare(self, check_question(question))
        tell("merge", 1, 1)
        pipe = self.pipeline
        generation = pipe.host.generate(asked.prompt, asked.session(), pipe.recipe.max_new_tokens, logits=logits)
        tell("answer", 1, 1)
        return asked.answer(generation)

    @torch.no_grad()
    def ask_all(
        self, questions: Sequence[str], *, progress: Progress | None = None, logits: bool = False
    ) -> list[Answer]:
        """Answer several questions; the answers are those of asking one by one.

        Where no stage looks at the question behind the stored tokens, the language model reads the film once and each
        question continues from that cache. `answer.report.choices` says which it was, under the name "prompt"; what is
        shared is in every report, as the encoding is.

        Raises:
            UsageError: as `ask`; an empty question or control tokens in one before the first is answered.
        """
        tell, asked = progress or silent, [check_question(question) for question in questions]
        for question in asked:
            check_text(self.pipeline.host.tokenizer, question, "question")
        looks = self.pipeline.stages.needs_question()
        if len(asked) < 2:
            return [self.ask(question, progress=progress, logits=logits) for question in asked]
        if looks is None:
            return ask_together(self, asked, tell, logits)
        answers = []
        for question in asked:
            answers.append(self.ask(question, progress=progress, logits=logits))
            choice = {"name": "prompt", "value": "one by one", "reason": f"{looks} looks at the question"}
            answers[-1].report.choices.append(choice)
        return answers

    def chat(self) -> Chat:
        """A conversation about the film, in which questions refer to earlier ones."""
        return Chat(self)

    @torch.no_grad()
    def options(
        self, question: str, options: Sequence[str], *, normalise: str = "sum", progress: Progress | None = None
    ) -> OptionScores:
        """How likely each of several replies is, for multiple choice without letters.

        The prompt is read once under the recipe, the decode stage evicts when it was read; each option is then fed behind a
        copy of that cache, and nothing is evicted meanwhile. An option's log-probability is that of its tokens and of the
        token that ends the turn (of its tokens alone where the model has none), so that a reply that goes on is another
        reply.

        Args:
            question: free text; name the options in it only where the model should read them.
            options: at least two replies, as the model would write them.
            normalise: "sum" compares the replies' probabilities, "mean" the probability a token, which favours no length.
            progress: called with (stage, done, total).

        Raises:
            UsageError: an empty question, fewer than two options, an empty one or two alike, control tokens, or more tokens
                than the model's context.
        """
        tell, host = progress or silent, self.pipeline.host
        replies = check_options(options, normalise)
        asked = prepare(self, check_question(question))
        tell("merge", 1, 1)
        ids = [reply_ids(host, reply) for reply in replies]
        host.check_context(asked.prompt.embeddings.shape[1] + max(map(len, ids)) - 1)
        scored = host.score(asked.prompt, asked.session(), ids)
        tell("options", 1, 1)
        asked.add("prefill", scored.prefill_seconds)
        asked.add("decode", scored.score_seconds)
        return OptionScores(
            question=asked.question,
            options=replies,
            logprobs=tuple(float(each.double().sum()) for each in scored.logprobs),
            lengths=tuple(map(len, ids)),
            normalise=normalise,
            notice=host.notice(asked.question, self.metadata),
            report=asked.report(scored.trace, branches=True),
            tokens=asked.tokens,
            token_logprobs=tuple(scored.logprobs),
        )
