"""A watched film and the answers that it gives."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from videoprune.errors import UsageError
from videoprune.method import RelevanceView
from videoprune.models.session import Session, Trace
from videoprune.ops.counting import CountedFlops
from videoprune.report.flops import Cost, decoder_cost, kv_bytes, lm_head_cost
from videoprune.report.report import Report, Stopwatch, peak_memory
from videoprune.run import Events, Run
from videoprune.stages import merge
from videoprune.tokens import VisualTokens

if TYPE_CHECKING:
    from videoprune.pipeline import Pipeline
    from videoprune.video import FrameRule

Progress = Callable[[str, int, int | None], None]  # stage, done, total or None
Choice = dict[str, Any]
EVIDENCE_FRAMES = 5


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

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints for one answer."""
        return {
            "question": self.question,
            "text": self.text,
            "notice": self.notice,
            "evidence": self.evidence,
            "report": self.report.to_dict(),
        }


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
    def ask(self, question: str, *, progress: Progress | None = None, logits: bool = False) -> Answer:
        """Answer one question from the stored tokens.

        Args:
            question: free text.
            progress: called with (stage, done, total).
            logits: keep the logits of every decoded step in `Answer.logits`.

        Raises:
            UsageError: an empty question, control tokens in it, or more tokens than the model's context.
        """
        question = check_question(question)
        pipe, tell, stopwatch = self.pipeline, progress or silent, Stopwatch()
        host, stages = pipe.host, pipe.stages
        run = Run(self.events, question=host.embed(host.question_ids(question)), seed=pipe.seed)
        with stopwatch("relevance"), CountedFlops() as scoring:
            if stages.need_relevance:
                self._rank(run, question)
        with stopwatch("merge"), CountedFlops() as merging:
            tokens = merge(self.tokens, run, stages.aware, host)
        tell("merge", 1, 1)
        prompt, choices = host.prompt(host.phrase(question), tokens)
        depth = host.decoder_shape.layers
        session = Session(
            visual=prompt.visual,
            tokens=tokens,
            prefill=[method.start(run, depth) for method in stages.prefill],
            decode=[method.start(run, depth) for method in stages.decode],
            evidence_layers=frozenset(range(depth // 3, max(2 * depth // 3, depth // 3 + 1))),
        )
        generation = host.generate(prompt, session, pipe.recipe.max_new_tokens, logits=logits)
        tell("answer", 1, 1)
        seconds = dict(self.seconds)
        for stage, spent in (
            *stopwatch.seconds.items(),
            ("prefill", generation.prefill_seconds),
            ("decode", generation.decode_seconds),
        ):
            seconds[stage] = seconds.get(stage, 0.0) + spent
        costs = dict(self.costs)
        costs["relevance"] = Cost(linear=scoring.total)
        costs["merge"] = costs["merge"] + Cost(linear=merging.total)
        report = self._report(tokens, generation.trace, prompt.embeddings.shape[1], costs, seconds, choices)
        return Answer(
            question=question,
            text=generation.text,
            notice=host.notice(question, self.metadata),
            evidence=_evidence(tokens, generation.trace),
            report=report,
            tokens=tokens,
            ids=generation.ids,
            logits=generation.logits,
            trace=generation.trace,
            run=run,
        )

    def _rank(self, run: Run, question: str) -> None:
        """Score the frames by the question, and the events by their frames."""
        stages, host = self.pipeline.stages, self.pipeline.host
        words: Tensor = host.model.get_input_embeddings().weight
        run.relevance = stages.relevance.score(
            RelevanceView(
                tokens=self.tokens,
                text=question,
                question=run.question if run.question is not None else words[:0],
                vocabulary_mean=words.float().mean(dim=0),
                observed=self.observed,
            )
        )
        run.events = (
            stages.segment[0].rank(self.events, run.relevance)
            if stages.segment
            else self.events.ranked(run.relevance, 1)
        )

    def _report(
        self,
        tokens: VisualTokens,
        trace: Trace,
        rows: int,
        costs: dict[str, Cost],
        seconds: dict[str, float],
        choices: list[Choice],
    ) -> Report:
        host, pipe = self.pipeline.host, self.pipeline
        shape, sampled = host.decoder_shape, len(tokens.owner)
        alive = torch.arange(len(tokens), device=tokens.features.device)
        for layer in sorted(trace.kept):
            if layer < shape.layers - 1:
                alive = trace.kept[layer]
        calls = [decoder_cost(shape, q, k) for q, k in zip(trace.queries, trace.keys, strict=True)]
        head = lm_head_cost(len(calls), shape.width, host.vocabulary)
        costs |= {
            "prefill": calls[0],
            "decode": sum(calls[1:], Cost()),
            "lm_head": head,
            "overhead": Cost(attention=trace.counted.total),
        }
        dense_rows = rows - len(tokens) + sampled
        dense = host.dense_encode_cost(tokens.frames) + head
        for step in range(len(calls)):
            keys = dense_rows + step
            dense = dense + decoder_cost(shape, [dense_rows if step == 0 else 1] * shape.layers, [keys] * shape.layers)
        number = torch.finfo(host.dtype).bits // 8
        return Report(
            tokens={
                "sampled": sampled,
                "encoded": self.encoded_count,
                "merged": tokens.count,
                "last_layer": int((tokens.weight[alive] > 0).sum()),
            },
            tokens_by_layer=trace.visual_rows,
            kv={
                "entries": trace.entries,
                "bytes": kv_bytes(trace.entries, shape, number),
                "dense_bytes": kv_bytes([dense_rows + len(calls) - 1] * shape.layers, shape, number),
            },
            flops=costs,
            dense=dense,
            seconds=seconds,
            peak_bytes=peak_memory(),
            choices=[*pipe.choices, *self.choices, *choices],
        )


def check_question(question: str) -> str:
    """The question without surrounding blanks; an empty one is refused."""
    if not isinstance(question, str) or not question.strip():
        raise UsageError(
            'the question is empty; ask something, for example "What happens after the red circle appears?"'
        )
    return question.strip()


def _evidence(tokens: VisualTokens, trace: Trace) -> list[dict[str, float]]:
    """The frames that the answer attended to most; weights are shares of the attention on all visual tokens."""
    if trace.evidence is None or not len(tokens):
        return []
    weight = torch.zeros(tokens.frames, device=trace.evidence.device).index_add_(0, tokens.frame, trace.evidence)
    total = float(weight.sum())
    if not total:
        return []
    best = torch.argsort(weight, descending=True, stable=True)[:EVIDENCE_FRAMES]
    return [
        {"seconds": round(float(tokens.frame_seconds[frame]), 3), "weight": round(float(weight[frame]) / total, 4)}
        for frame in best.tolist()
        if weight[frame] > 0
    ]


def silent(stage: str, done: int, total: int | None) -> None:
    """Progress that nobody wants to see."""
