"""One question on a watched film, step by step: merge by the question, build the prompt, open a session, give account."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from videoprune.answer import Answer, Choice, Progress
from videoprune.method import RelevanceView
from videoprune.models.cache import Past
from videoprune.models.generation import Generation
from videoprune.models.host import Prompt
from videoprune.models.session import Session, Trace
from videoprune.models.turns import conversation
from videoprune.ops.counting import CountedFlops
from videoprune.report.account import account, evidence
from videoprune.report.flops import Cost
from videoprune.report.report import Report, Stopwatch
from videoprune.run import Run
from videoprune.stages import merge
from videoprune.tokens import VisualTokens

if TYPE_CHECKING:
    from videoprune.watched import Video


@dataclass(eq=False)
class Asked:
    """One question, ready for the language model.

    Attributes:
        video: the film.
        question: what was asked.
        run: what the stages see.
        tokens: visual tokens as they enter the language model.
        prompt: the text around them.
        costs, seconds: of the stages so far.
        choices: automatic choices beside the film's and the pipeline's.
    """

    video: Video
    question: str
    run: Run
    tokens: VisualTokens
    prompt: Prompt
    costs: dict[str, Cost]
    seconds: dict[str, float]
    choices: list[Choice]

    def session(self, past: Past | None = None, trace: Trace | None = None) -> Session:
        """A session of its own, with fresh states; the prefill methods have acted already where a `past` is given."""
        pipe = self.video.pipeline
        depth = pipe.host.decoder_shape.layers
        # started in any case: decode methods read what prefill methods publish
        prefill = [method.begin(self.run, depth) for method in pipe.stages.prefill]
        return Session(
            visual=self.prompt.visual,
            tokens=self.tokens,
            prefill=prefill if past is None else (),
            decode=[method.start(self.run, depth) for method in pipe.stages.decode],
            evidence_layers=frozenset(range(depth // 3, max(2 * depth // 3, depth // 3 + 1))),
            past=past,
            trace=trace or Trace(),
        )

    def add(self, stage: str, seconds: float) -> None:
        """Book time on a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def report(self, trace: Trace, *, continued: int = 0, branches: bool = False) -> Report:
        """The account of what the trace says was done."""
        pipe = self.video.pipeline
        return account(
            pipe.host,
            self.tokens,
            trace,
            rows=self.prompt.embeddings.shape[1],
            dense_rows=self.prompt.dense_rows,
            encoded=self.video.encoded_count,
            costs=self.costs,
            seconds=self.seconds,
            choices=[*pipe.choices, *self.video.choices, *self.choices],
            continued=continued,
            branches=branches,
        )

    def answer(self, generation: Generation, *, continued: int = 0) -> Answer:
        """The answer with its account."""
        self.add("prefill", generation.prefill_seconds)
        self.add("decode", generation.decode_seconds)
        return Answer(
            question=self.question,
            text=generation.text,
            notice=self.video.pipeline.host.notice(self.question, self.video.metadata),
            evidence=evidence(self.tokens, generation.trace),
            report=self.report(generation.trace, continued=continued),
            tokens=self.tokens,
            ids=generation.ids,
            logits=generation.logits,
            trace=generation.trace,
            run=self.run,
        )


def prepare(video: Video, question: str, history: Sequence[tuple[str, Sequence[int]]] = ()) -> Asked:
    """Run what depends on the question before the language model: relevance, question-aware merges, the prompt.

    Args:
        video: the film.
        question: what is asked.
        history: earlier questions of the conversation as the model read them, with the token ids of their answers.

    Raises:
        UsageError: control tokens in the question, or more tokens than the model's context.
    """
    pipe, stopwatch = video.pipeline, Stopwatch()
    host, stages = pipe.host, pipe.stages
    run = Run(video.events, question=host.embed(host.question_ids(question)), seed=pipe.seed)
    with stopwatch("relevance"), CountedFlops() as scoring:
        if stages.need_relevance:
            _rank(video, run, question)
    with stopwatch("merge"), CountedFlops() as merging:
        tokens = merge(video.tokens, run, stages.aware, host)
    prompt, choices = conversation(host, history, host.phrase(question), tokens)
    if prompt.position_ids.ndim == 3 and any(method.positions == "compact" for method in stages.prefill):
        reason = "M-RoPE positions are a token's time and place; those left inside the language model keep theirs"
        choices = [*choices, {"name": "prefill.positions", "value": "original", "reason": reason}]
    costs: Mapping[str, Cost] = video.costs
    asked = Asked(
        video=video,
        question=question,
        run=run,
        tokens=tokens,
        prompt=prompt,
        costs={**costs, "relevance": Cost(linear=scoring.total), "merge": costs["merge"] + Cost(linear=merging.total)},
        seconds=dict(video.seconds),
        choices=list(choices),
    )
    for stage, spent in stopwatch.seconds.items():
        asked.add(stage, spent)
    return asked


def ask_together(video: Video, questions: Sequence[str], tell: Progress, logits: bool = False) -> list[Answer]:
    """Answers to several questions under stages that look at none: the film is read once, each question continues it."""
    host, recipe = video.pipeline.host, video.pipeline.recipe
    first = prepare(video, questions[0])
    tell("merge", 1, 1)
    rows, reading = first.prompt.visual.stop, first.session()
    past, seconds = host.read(first.prompt, reading, rows)
    answers: list[Answer] = []
    for number, question in enumerate(questions, 1):
        asked = prepare(video, question) if answers else first
        if _same_start(asked.prompt, first.prompt, rows):
            session = asked.session(past, reading.trace.branch())
            asked.add("prefill", seconds)
            reason = f"no stage looks at the question; the film was read once for {len(questions)} questions"
            asked.choices.append({"name": "prompt", "value": "shared", "reason": reason})
        else:
            session = asked.session()
            reason = "positions were renumbered to fit the context, for some questions and not for others"
            asked.choices.append({"name": "prompt", "value": "one by one", "reason": reason})
        generation = host.generate(asked.prompt, session, recipe.max_new_tokens, logits=logits)
        tell("answer", number, len(questions))
        answers.append(asked.answer(generation))
    return answers


def _same_start(one: Prompt, other: Prompt, rows: int) -> bool:
    """Whether two prompts begin with the same rows at the same positions."""
    alike = torch.equal(one.position_ids[..., :rows], other.position_ids[..., :rows])
    return alike and torch.equal(one.embeddings[:, :rows], other.embeddings[:, :rows])


def relevance(video: Video, question: str) -> Tensor:
    """(F,) how much each frame has to do with the question, by the recipe's scorer."""
    host = video.pipeline.host
    return video.pipeline.stages.relevance.score(
        RelevanceView(
            tokens=video.tokens,
            text=question,
            question=host.embed(host.question_ids(question)),
            vocabulary_mean=host.model.get_input_embeddings().weight.mean(dim=0, dtype=torch.float32),
            observed=video.observed,
        )
    )


def _rank(video: Video, run: Run, question: str) -> None:
    """Score the frames by the question, and the events by their frames."""
    stages = video.pipeline.stages
    run.relevance = relevance(video, question)
    run.events = (
        stages.segment[0].rank(video.events, run.relevance) if stages.segment else video.events.ranked(run.relevance, 1)
    )
