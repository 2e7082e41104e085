"""One question on one film, stage by stage, one after the other, each measured."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch

from videoprune.asking import Asked, prepare
from videoprune.bench.meter import Meter, Peak
from videoprune.bench.pairs import clock_of
from videoprune.bench.replay import Recorded
from videoprune.bench.shapes import FULL
from videoprune.models.session import Trace
from videoprune.pipeline import Pipeline
from videoprune.report.flops import Cost, decoder_cost
from videoprune.video import FrameRule
from videoprune.watched import Video
from videoprune.watching import Watcher, open_film, spacing

STAGES = ("decode_film", "encode", "store", "segment", "question", "prefill", "decode")


class _Marks(list[float]):
    """A trace's marks, where the first, the end of prefill, is measured too."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self.meter, self.begun, self.peak = meter, meter.now(), Peak(meter.device)

    def append(self, mark: float) -> None:
        super().append(mark)
        if len(self) == 1:
            self.close("prefill")

    def close(self, stage: str) -> None:
        """Book the time since the last close on a stage."""
        now = self.meter.now()
        self.meter.add(stage, self.begun, now, self.peak.bytes())
        self.begun, self.peak = now, Peak(self.meter.device)


@dataclass(eq=False)
class StageRun:
    """What one question on one film took.

    Attributes:
        recipe: whose; frames: that were looked at; rows, dense_rows: of the prompt, and with nothing pruned.
        meter: seconds and peak memory by stage.
        report: the answer's, as a dictionary.
        prefill, dense_prefill: FLOPs of the language model's prefill; full_prefill, full_dense: of the same counts at the width
            of the 7B model, None where the depth is another.
        kv_bytes: of the keys and values that the cache really holds when the answer is complete.
        bound_seconds: prefill given the indices, by `pairs.clock_of`; None where nothing is pruned in the language model.
    """

    recipe: str
    frames: int
    rows: int
    dense_rows: int
    meter: Meter
    report: dict[str, Any]
    prefill: Cost
    dense_prefill: Cost
    full_prefill: Cost | None
    full_dense: Cost | None
    kv_bytes: int
    bound_seconds: float | None

    def seconds(self, cpu: bool = False) -> float:
        """Of all stages together."""
        return sum(each.cpu_seconds if cpu else each.seconds for each in self.meter.stages.values())

    def first_token(self, cpu: bool = False) -> float:
        """Seconds from the film's first byte to the end of prefill."""
        decode = self.meter.stages["decode"]
        return self.seconds(cpu) - (decode.cpu_seconds if cpu else decode.seconds)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        report = self.report
        return {
            "recipe": self.recipe,
            "frames": self.frames,
            "rows": self.rows,
            "dense_rows": self.dense_rows,
            "tokens": report["tokens"],
            "stages": {name: self.meter.stages[name].to_dict() for name in STAGES},
            "seconds": self.seconds(),
            "cpu_seconds": self.seconds(cpu=True),
            "first_token": {"seconds": self.first_token(), "cpu_seconds": self.first_token(cpu=True)},
            "films_an_hour": 3600 / self.seconds(),
            "flops": report["flops"],
            "prefill": {
                "flops": self.prefill.to_dict(),
                "dense_flops": self.dense_prefill.to_dict(),
                "share": self.prefill.total / self.dense_prefill.total,
                "share_at_full_width": None
                if self.full_prefill is None or self.full_dense is None
                else self.full_prefill.total / self.full_dense.total,
                "given_the_indices": self.bound_seconds,
            },
            "kv": {
                "bytes": report["kv"]["bytes"],
                "measured_bytes": self.kv_bytes,
                "dense_bytes": report["kv"]["dense_bytes"],
                "share": report["kv"]["bytes"] / report["kv"]["dense_bytes"],
            },
        }


def watch(pipe: Pipeline, film: str | os.PathLike[str], frames: int, meter: Meter | None = None) -> Video:
    """Watch a film a stage at a time: what `Pipeline.watch` does, but decoding waits for the model and the model for it."""
    meter = meter or Meter(pipe.host.device)
    rule = FrameRule(frames=frames)
    with torch.no_grad(), open_film(film, rule, [pipe]) as reader:
        watcher = Watcher(pipe, film, rule, len(reader) or None, None, spacing(reader.info, rule))
        chunks = iter(reader)
        while True:
            with meter("decode_film"):
                batch = next(chunks, None)
            if batch is None:
                break
            with meter("encode"):
                look, shown = watcher.look(batch)
                encoded = watcher.encode(shown)
            with meter("store"):
                watcher.take(batch, encoded, look, shown)
        with meter("segment"):
            return watcher.finish(reader.info, list(reader.warnings))


def ask(pipe: Pipeline, video: Video, question: str) -> Asked:
    """A question up to the language model; as the model is used to reading it."""
    with torch.no_grad():
        return prepare(video, pipe.host.phrase(question))


def run_stages(pipe: Pipeline, film: str | os.PathLike[str], frames: int, question: str, new_tokens: int) -> StageRun:
    """Watch a film, ask one question, and measure every stage of it; then prefill again given the indices."""
    host, meter = pipe.host, Meter(pipe.host.device)
    video = watch(pipe, film, frames, meter)
    with meter("question"):
        asked = ask(pipe, video, question)
        session = asked.session()
    recorded = Recorded(session) if session.prefill or session.decode else None
    marks = _Marks(meter)
    session.trace = Trace(marks=marks)
    generation = host.generate(asked.prompt, session, new_tokens)
    marks.close("decode")
    trace = generation.trace
    report = asked.report(trace).to_dict()
    rows, dense_rows = asked.prompt.embeddings.shape[1], asked.prompt.dense_rows
    depth, dense = host.decoder_shape.layers, [asked.prompt.dense_rows] * host.decoder_shape.layers
    whole = depth == FULL.layers
    held = session.left.layers if session.left is not None else []
    kv_bytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in held)
    del held
    session.left = None
    bound = None
    if recorded is not None:
        given, clock = recorded.session(), clock_of(host.device)
        begun = clock()
        host.generate(asked.prompt, given, 1)
        bound = clock() - begun
    return StageRun(
        recipe=pipe.recipe.name,
        frames=frames,
        rows=rows,
        dense_rows=dense_rows,
        meter=meter,
        report=report,
        prefill=decoder_cost(host.decoder_shape, trace.queries[0], trace.keys[0]),
        dense_prefill=decoder_cost(host.decoder_shape, dense, dense),
        full_prefill=decoder_cost(FULL, trace.queries[0], trace.keys[0]) if whole else None,
        full_dense=decoder_cost(FULL, dense, dense) if whole else None,
        kv_bytes=kv_bytes,
        bound_seconds=bound,
    )
