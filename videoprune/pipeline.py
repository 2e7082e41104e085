"""Pipeline: load → watch → ask.

pipe = Pipeline.load("demo")
video = pipe.watch("movie.mp4")          # decode, encode, segment, merge: once, whatever will be asked
print(video.ask("What happens after the red circle appears?").text)
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from videoprune import demo
from videoprune.demo.notice import notice
from videoprune.errors import EnvironmentProblem, UsageError, VideoPruneError
from videoprune.method import EncodeMethod, MergeMethod, RelevanceMethod, RelevanceView
from videoprune.models.decoder import Session, Trace
from videoprune.models.host import Host
from videoprune.models.load import load_host
from videoprune.ops.counting import CountedFlops
from videoprune.recipe import Recipe
from videoprune.report.flops import Cost, decoder_cost, kv_bytes, lm_head_cost
from videoprune.report.report import Report, Stopwatch, peak_memory
from videoprune.run import Events, Run
from videoprune.tokens import VisualTokens
from videoprune.video import Film, FrameRule

Progress = Callable[[str, int, int | None], None]  # stage, done, total or None
Choice = dict[str, Any]
EVIDENCE_FRAMES = 5
CHUNK = 32  # frames decoded and encoded at a time; rounded up to whole windows of the encode methods


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
class Stages:
    """The methods of a recipe, those that change nothing left out; merges split where the question is first needed."""

    encode: tuple[EncodeMethod, ...]
    segment: tuple[Any, ...]
    blind: tuple[MergeMethod, ...]
    aware: tuple[MergeMethod, ...]
    prefill: tuple[Any, ...]
    decode: tuple[Any, ...]
    relevance: RelevanceMethod

    @classmethod
    def of(cls, recipe: Recipe) -> Stages:
        built = recipe.build()
        acting = {name: tuple(method for method in methods if not method.identity) for name, methods in built.items()}
        merges = acting.get("merge", ())
        first = next((number for number, method in enumerate(merges) if method.needs_question), len(merges))
        if len(acting.get("segment", ())) > 1:
            raise UsageError(
                f"segment: {len(acting['segment'])} methods are given; a film has one segmentation: give one"
            )
        return cls(
            encode=acting.get("encode", ()),
            segment=acting.get("segment", ()),
            blind=merges[:first],
            aware=merges[first:],
            prefill=acting.get("prefill", ()),
            decode=acting.get("decode", ()),
            relevance=built["relevance"][0],
        )

    @property
    def need_relevance(self) -> bool:
        return any(method.needs_question for method in (*self.aware, *self.prefill, *self.decode))


class Pipeline:
    """A loaded model under a recipe. Pipelines may share one model; nothing is left patched on it."""

    def __init__(
        self, host: Host, recipe: Recipe, *, decoder: str = "auto", seed: int = 0, choices: Sequence[Choice] = ()
    ) -> None:
        self.host, self.recipe, self.decoder, self.seed = host, recipe, decoder, seed
        self.stages = Stages.of(recipe)
        trial = Run(Events.single(1))  # one for all: decode methods read what prefill methods publish
        for method in (
            *self.stages.prefill,
            *self.stages.decode,
        ):  # a schedule that does not fit is refused before any work
            method.start(trial, host.decoder_shape.layers)
        for method in self.stages.encode:
            _check_tower_layers(method, host)
        self.choices = [*host.choices, *choices]

    @classmethod
    def load(
        cls,
        recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe | None = None,
        *,
        model: str | os.PathLike[str] | None = None,
        overrides: Sequence[str] = (),
        device: str = "auto",
        dtype: str = "auto",
        attn: str = "sdpa",
        decoder: str = "auto",
        seed: int = 0,
        revision: str | None = None,
        max_new_tokens: int | None = None,
    ) -> Pipeline:
        """Load a model and check a recipe against it.

        Args:
            recipe: name, YAML path or mapping; None takes the model's default recipe.
            model: checkpoint folder or hub name; None takes the demo model.
            overrides: "stage.key=value" changes to the recipe.
            device, dtype, attn: as for `--device`, `--dtype`, `--attn`; "auto" chooses and says why in `choices`.
            decoder: video decoder, "auto" takes PyAV.
            seed: for the methods that draw at random.
            revision: of a hub model.
            max_new_tokens: longest answer; None takes the recipe's.

        Raises:
            UsageError: bad recipe, override or option, before any weights are read where possible.
            EnvironmentProblem: model or device missing, damaged or unsupported.
        """
        named = (
            None if recipe is None else Recipe.load(recipe, overrides)
        )  # a bad recipe is told before weights are read
        if named is not None:
            Stages.of(named)
        demo_model = model is None
        folder = demo.weights_path() if model is None else model
        if demo_model and not (demo.weights_path() / "model.safetensors").is_file():
            raise EnvironmentProblem(
                "the demo model is not in this installation; install the package anew, or give --model"
            )
        host = load_host(os.fspath(folder), device=device, dtype=dtype, attn=attn, revision=revision)
        choices: list[Choice] = []
        if named is None:
            default = "demo" if demo_model else host.default_recipe
            named = Recipe.load(default, overrides)
            choices.append(
                {
                    "name": "recipe",
                    "value": default,
                    "reason": f"the default for {'the demo model' if demo_model else host.family}",
                }
            )
        else:
            choices.append({"name": "recipe", "value": named.name, "reason": "asked for"})
        if max_new_tokens is not None:
            named = dataclasses.replace(named, max_new_tokens=max_new_tokens)
        return cls(host, named, decoder=decoder, seed=seed, choices=choices)

    def with_recipe(
        self, recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe, overrides: Sequence[str] = ()
    ) -> Pipeline:
        """Another recipe on the same loaded model."""
        loaded = Recipe.load(recipe, overrides)
        kept = [choice for choice in self.choices if choice["name"] != "recipe" and choice not in self.host.choices]
        chosen = {"name": "recipe", "value": loaded.name, "reason": "asked for"}
        return Pipeline(self.host, loaded, decoder=self.decoder, seed=self.seed, choices=[*kept, chosen])

    @property
    def model_name(self) -> str:
        """The checkpoint's name; "demo" for the one in the package."""
        return "demo" if self.host.name == str(demo.weights_path()) else self.host.name

    # ------------------------------------------------------------------ watching

    def watch(
        self,
        film: str | os.PathLike[str],
        *,
        frames: FrameRule | None = None,
        question_known: bool = False,
        progress: Progress | None = None,
    ) -> Video:
        """Decode and encode a film and run the question-blind stages, a chunk of frames at a time.

        Args:
            film: path.
            frames: replaces the recipe's frame rule.
            question_known: accepted for symmetry with `ask`; no stage here drops frames by the question.
            progress: called with (stage, done, total).

        Raises:
            FilmError: the film cannot be read.
        """
        rule, stopwatch, tell = frames or self.recipe.frames, Stopwatch(), progress or _silent
        window = max((method.window for method in self.stages.encode), default=1)
        chunk = -(-CHUNK // window) * window
        parts: list[VisualTokens] = []
        observed: list[Tensor] = []
        cost = Cost()
        done = 0
        with Film(film, rule, decoder=self.decoder, chunk=chunk) as reader:
            total = len(reader) or None
            chunks = iter(reader)
            while True:
                with stopwatch("decode_film"):
                    batch = next(chunks, None)
                if batch is None:
                    break
                with stopwatch("encode"):
                    encoded = self.host.encode(batch.images, batch.seconds, done, self.stages.encode)
                    parts.append(encoded.tokens)
                    cost = cost + encoded.cost
                if self.stages.need_relevance:
                    with stopwatch("relevance"):
                        seen = self.stages.relevance.observe(batch.images)
                        if seen is not None:
                            observed.append(seen)
                done += len(batch)
                tell("encode", done, total)
            info, warnings = reader.info, list(reader.warnings)
        tokens = VisualTokens.concat(parts)
        flops = {"encode": cost}
        encoded_count = tokens.count
        with stopwatch("segment"), CountedFlops() as counted:
            features = tokens.frame_features()
            events = self.stages.segment[0](features) if self.stages.segment else Events.single(tokens.frames)
            events = dataclasses.replace(events, frame_event=events.frame_event.to(tokens.features.device))
            tokens = tokens.with_events(events.frame_event)
        flops["segment"] = Cost(linear=counted.total)
        with stopwatch("merge"), CountedFlops() as counted:
            tokens = self._merge(tokens, Run(events, seed=self.seed), self.stages.blind)
        flops["merge"] = Cost(linear=counted.total)
        tell("watch", 1, 1)
        return Video(
            pipeline=self,
            film=os.fspath(film),
            tokens=tokens,
            events=events,
            observed=torch.cat(observed) if observed else None,
            encoded_count=encoded_count,
            seconds=stopwatch.seconds,
            costs=flops,
            warnings=warnings,
            metadata=dict(info.metadata),
            choices=[{"name": "video", "value": info.decoder, "reason": choice} for choice in info.choices],
        )

    def ask(self, film: str | os.PathLike[str], question: str, **watch: Any) -> Answer:
        """Watch a film for one question and answer it; keywords as for `watch`."""
        check_question(question)
        video = self.watch(film, question_known=True, **watch)
        return video.ask(question, progress=watch.get("progress"))

    def _merge(self, tokens: VisualTokens, run: Run, methods: Sequence[MergeMethod]) -> VisualTokens:
        newline = self.host.newline()
        if newline is not None:
            run.published["newline"] = newline
        for method in methods:
            try:
                tokens = method(tokens, run)
            except VideoPruneError as error:
                error.stage = error.stage or "merge"
                raise
            if method.positions == "compact":
                tokens = tokens.compacted()
        return tokens


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
        pipe, tell, stopwatch = self.pipeline, progress or _silent, Stopwatch()
        host, stages = pipe.host, pipe.stages
        run = Run(self.events, question=host.embed(host.question_ids(question)), seed=pipe.seed)
        with stopwatch("relevance"), CountedFlops() as scoring:
            if stages.need_relevance:
                self._rank(run, question)
        with stopwatch("merge"), CountedFlops() as merging:
            tokens = pipe._merge(self.tokens, run, stages.aware)
        tell("merge", 1, 1)
        prompt, choices = host.prompt(question, tokens)
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
            notice=notice(question, self.metadata) if pipe.model_name == "demo" else None,
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


def _check_tower_layers(method: EncodeMethod, host: Host) -> None:
    layers = list(method.layers(host.tower.stop))
    if any(not 0 <= layer < host.tower.stop for layer in layers):
        raise UsageError(
            f"encode: acts after layers {layers}, but this vision tower runs layers 0..{host.tower.stop - 1}"
        )


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


def _silent(stage: str, done: int, total: int | None) -> None:
    """Progress that nobody wants to see."""
