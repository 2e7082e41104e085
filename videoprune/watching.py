"""Watching: decode → encode → store, a chunk of frames at a time, decoding in a thread beside the model.

A `Watcher` is one pipeline's side of it, so that several pipelines can watch one decoding.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from videoprune.answer import Progress, silent
from videoprune.models.host import Encoded, Sampling
from videoprune.models.shortage import halving
from videoprune.ops.counting import CountedFlops
from videoprune.report.flops import Cost
from videoprune.report.report import Stopwatch
from videoprune.run import Events
from videoprune.store import Store
from videoprune.tokens import VisualTokens
from videoprune.video import Film, FilmInfo, FrameRule, Frames, prefetch, targets
from videoprune.watched import Video

if TYPE_CHECKING:
    from videoprune.pipeline import Pipeline

CHUNK = 32  # frames decoded and encoded at a time; rounded up to whole windows of the encode methods
AHEAD = 1  # decoded chunks that wait for the model


def open_film(film: str | os.PathLike[str], rule: FrameRule, pipes: Sequence[Pipeline]) -> Film:
    """A film opened so that its chunks have whole windows for the encode methods of every pipeline."""
    return opener(film, rule, pipes)()


def opener(film: str | os.PathLike[str], rule: FrameRule, pipes: Sequence[Pipeline]) -> partial[Film]:
    """What `open_film` will do, as another process can be asked to do it."""
    window = window_of(pipes)
    return partial(Film, film, rule, decoder=pipes[0].decoder, chunk=-(-CHUNK // window) * window, window=window)


def spacing(info: FilmInfo, rule: FrameRule) -> float | None:
    """Seconds from one frame to the next that a rule asks for, None where they will not be evenly spread."""
    seconds = targets(info, rule)
    repeated = rule.keyframes or (info.frames is not None and info.frames < len(seconds))
    return None if repeated or len(seconds) < 2 else float(seconds[1] - seconds[0])


def window_of(pipes: Sequence[Pipeline]) -> int:
    """Frames that every pipeline's encode methods and tower look at together: chunks are multiples of it."""
    pairs = [pipe.host.pair for pipe in pipes]
    return math.lcm(*pairs, *(pipe.host.pair * method.window for pipe in pipes for method in pipe.stages.encode))


def decoded(film: Film, stopwatch: Stopwatch) -> Iterator[Frames]:
    """The chunks of a film, decoded in a thread; `decode_film` is the time that the model waits for it."""
    chunks = prefetch(film, AHEAD)
    while True:
        with stopwatch("decode_film"):
            batch = next(chunks, None)
        if batch is None:
            return
        yield batch


def per_step(seen: Tensor, pair: int) -> Tensor:
    """(F, C) of sampled frames -> the mean of each `pair`, an odd last one alone: what a frame of the ledger shows."""
    return seen if pair == 1 else torch.stack([part.mean(dim=0) for part in seen.split(pair)])


class Watcher:
    """One pipeline that watches one film: `add` each chunk, then `finish`.

    Args:
        total: frames to expect, None where unknown.
        progress: called with (stage, done, total).
        interval: seconds from one frame to the next, as `spacing` tells.
    """

    def __init__(
        self,
        pipe: Pipeline,
        film: str | os.PathLike[str],
        rule: FrameRule,
        total: int | None = None,
        progress: Progress | None = None,
        interval: float | None = None,
    ) -> None:
        self.pipe, self.film, self.rule, self.total, self.tell = pipe, os.fspath(film), rule, total, progress or silent
        stages = pipe.stages
        self.stopwatch = Stopwatch()
        self.store = Store(stages.blind, stages.segment, pipe.host, pipe.recipe.watch.at_most, pipe.seed)
        self.sampling = None if total is None else Sampling(total, interval)
        self.done = 0
        self.together = 2**31  # frames encoded at a time; less once memory ran out
        self._observed: list[Tensor] = []
        self._encoding = Cost()
        self._merging = CountedFlops()

    def add(self, batch: Frames) -> None:
        """Encode and store a chunk."""
        add_to_all([self], batch)

    def encode(self, batch: Frames) -> Encoded:
        """Encode a chunk, in halves from the first time on that memory runs out."""
        host, methods = self.pipe.host, self.pipe.stages.encode

        def part(start: int, stop: int) -> Encoded:
            rows = slice(start, stop)
            return host.encode(batch.images[rows], batch.seconds[rows], self.done + start, methods, self.sampling)

        parts, self.together = halving(part, len(batch), self.together, window_of([self.pipe]), host, self.film)
        if len(parts) == 1:
            return parts[0]
        return Encoded(VisualTokens.concat([each.tokens for each in parts]), sum((each.cost for each in parts), Cost()))

    def take(self, batch: Frames, encoded: Encoded) -> None:
        """Store an encoded chunk."""
        stages = self.pipe.stages
        self._encoding = self._encoding + encoded.cost
        with self.stopwatch("merge"), self._merging:
            self.store.add(encoded.tokens)
        if stages.need_relevance:
            with self.stopwatch("relevance"):
                seen = stages.relevance.observe(batch.images)
                if seen is not None:
                    self._observed.append(per_step(seen, self.pipe.host.pair))
        self.done += len(batch)
        self.tell("encode", self.done, self.total)

    def finish(self, info: FilmInfo, warnings: Sequence[str]) -> Video:
        """Segment and merge what was stored."""
        stages = self.pipe.stages
        with self.stopwatch("segment"), CountedFlops() as segmenting:
            features = torch.cat(self.store.features)
            events = stages.segment[0](features) if stages.segment else Events.single(len(features))
            events = dataclasses.replace(events, frame_event=events.frame_event.to(features.device))
        with self.stopwatch("merge"), self._merging:
            tokens = self.store.finish(events)
        if self.done != self.total:  # frames are missing: what is left is not evenly spread
            tokens = dataclasses.replace(tokens, interval=None)
        self.tell("watch", 1, 1)
        return Video(
            pipeline=self.pipe,
            film=self.film,
            tokens=tokens,
            events=events,
            observed=torch.cat(self._observed) if self._observed else None,
            encoded_count=self.store.encoded,
            seconds=self.stopwatch.seconds,
            costs={
                "encode": self._encoding,
                "segment": Cost(linear=segmenting.total),
                "merge": Cost(linear=self._merging.total),
            },
            warnings=list(warnings),
            metadata=dict(info.metadata),
            choices=[
                *({"name": "video", "value": info.decoder, "reason": choice} for choice in info.choices),
                *self.store.choices,
            ],
            rule=self.rule,
        )


def add_to_all(watchers: Sequence[Watcher], batch: Frames) -> None:
    """Give a chunk to several watchers of one film: it is encoded once for each encode stage that occurs.

    Each watcher is charged the time that it would have taken alone.
    """
    groups: list[list[Watcher]] = []
    for watcher in watchers:
        stage = watcher.pipe.stages.encode
        group = next((known for known in groups if known[0].pipe.stages.encode == stage), None)
        if group is None:
            groups.append([watcher])
        else:
            group.append(watcher)
    for group in groups:
        spent = Stopwatch()
        with spent("encode"):
            encoded = group[0].encode(batch)
        for watcher in group:
            watcher.stopwatch.add("encode", spent.seconds["encode"], spent.cpu_seconds["encode"])
            watcher.take(batch, encoded)
