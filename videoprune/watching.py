"""Watching: decode → encode → store, a chunk of frames at a time, decoding beside the model.

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
from videoprune.decode_process import decoded_beside
from videoprune.models.host import Encoded, Sampling
from videoprune.models.shortage import halving
from videoprune.ops.counting import CountedFlops
from videoprune.report.flops import Cost
from videoprune.report.report import Stopwatch
from videoprune.run import Events
from videoprune.scouting import Look, Scouting, all_events, in_film, kept_steps, per_step, seen_events
from videoprune.store import Store
from videoprune.tokens import VisualTokens
from videoprune.video import Film, FilmInfo, FrameRule, Frames, prefetch, targets
from videoprune.watched import Video

if TYPE_CHECKING:
    from videoprune.pipeline import Pipeline

CHUNK = 32  # frames decoded and encoded at a time; rounded up to whole windows of the encode methods
LONG = 512  # frames from which on a film is decoded in a process of its own: twice where that begins to pay
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
    windows = [pipe.host.pair * method.window for pipe in pipes for method in pipe.stages.encode]
    scouts = [pipe.host.pair * pipe.stages.scout.window for pipe in pipes if pipe.stages.scout is not None]
    return math.lcm(*pairs, *windows, *scouts)


def decoded(film: Film, stopwatch: Stopwatch) -> Iterator[Frames]:
    """The chunks of a film, decoded in a thread, or a long film's in a process, which takes a third of a second to start but
    leaves the interpreter to the model; `decode_film` is the time that the model waits for it."""
    chunks = decoded_beside(film) if len(film) >= LONG and os.name == "posix" else prefetch(film, AHEAD)
    while True:
        with stopwatch("decode_film"):
            batch = next(chunks, None)
        if batch is None:
            return
        yield batch


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
        self.entered = 0  # frames that the tower was shown: all of them without a scout
        self.scouting = None if stages.scout is None else Scouting(stages.scout, stages.prune, pipe.host.pair)
        self._looks: list[Look] = []
        self._step_seconds: list[Tensor] = []
        self._observed: list[Tensor] = []
        self._encoding = Cost()
        self._merging = CountedFlops()

    def add(self, batch: Frames) -> None:
        """Encode and store a chunk."""
        add_to_all([self], batch)

    def look(self, batch: Frames) -> tuple[Look | None, Frames]:
        """What the scout makes of a chunk, and the frames of it that the tower is to see: without a scout all."""
        if self.scouting is None:
            return None, batch
        look = self.scouting.look(batch.images)
        rows = self.scouting.frames(look, len(batch)).numpy()
        return look, Frames(batch.images[rows], batch.seconds[rows], batch.index[rows])

    def encode(self, batch: Frames) -> Encoded | None:
        """Encode a chunk, in halves from the first time on that memory runs out; nothing for none."""
        if not len(batch):
            return None
        host, methods = self.pipe.host, self.pipe.stages.encode

        def part(start: int, stop: int) -> Encoded:
            rows = slice(start, stop)
            return host.encode(batch.images[rows], batch.seconds[rows], self.entered + start, methods, self.sampling)

        parts, self.together = halving(part, len(batch), self.together, window_of([self.pipe]), host, self.film)
        if len(parts) == 1:
            return parts[0]
        return Encoded(VisualTokens.concat([each.tokens for each in parts]), sum((each.cost for each in parts), Cost()))

    def take(
        self, batch: Frames, encoded: Encoded | None, look: Look | None = None, shown: Frames | None = None
    ) -> None:
        """Store a chunk, of which the frames `shown` were encoded; None for all."""
        stages, features = self.pipe.stages, None
        if look is not None:
            self._looks.append(look)
            self._step_seconds.append(self.pipe.host.seconds_of_steps(batch.seconds))
            features = None if look.features is None else look.features[look.kept].to(self.pipe.host.device)
        if encoded is not None:
            self._encoding = self._encoding + encoded.cost
            with self.stopwatch("merge"), self._merging:
                self.store.add(encoded.tokens, features)
        self.entered += len(batch if shown is None else shown)
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
            own = [look.features for look in self._looks if look.features is not None]
            features = torch.cat(own).to(self.pipe.host.device) if own else torch.cat(self.store.features)
            events = stages.segment[0](features) if stages.segment else Events.single(len(features))
            events = dataclasses.replace(events, frame_event=events.frame_event.to(features.device))
        with self.stopwatch("merge"), self._merging:
            tokens = self.store.finish(events) if self.scouting is None else self._finish_scouted(events)
            events = (
                events if len(events.frame_event) == tokens.frames else all_events(events, self._seen(), tokens.frames)
            )
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
                **({"scout": sum((look.cost for look in self._looks), Cost())} if self._looks else {}),
                "encode": self._encoding,
                "segment": Cost(linear=segmenting.total),
                "merge": Cost(linear=self._merging.total),
            },
            warnings=list(warnings),
            metadata=dict(info.metadata),
            choices=[
                *({"name": "video", "value": info.decoder, "reason": choice} for choice in info.choices),
                *self.store.choices,
                *self._scouted(),
            ],
            rule=self.rule,
        )

    def _seen(self) -> Tensor:
        """(K,) frames of the ledger that the tower saw, by their number in the film."""
        seen = kept_steps(self._looks)
        return torch.empty(0, dtype=torch.int64) if seen is None else seen

    def _finish_scouted(self, events: Events) -> VisualTokens:
        """The stored tokens merged, in the ledger of the whole film; `events` are of all frames or of those seen."""
        seen, seconds = self._seen(), torch.cat(self._step_seconds)
        whole = len(events.frame_event) == len(seconds)
        tokens = self.store.finish(seen_events(events, seen) if whole else events)
        tokens = in_film(tokens, seen, seconds, self.pipe.stages.compact)
        return tokens.with_events((events if whole else all_events(events, seen, len(seconds))).frame_event)

    def _scouted(self) -> list[dict[str, str]]:
        """How many frames the scout held back, for the report."""
        if not self._looks:
            return []
        steps, seen = sum(look.steps for look in self._looks), len(self._seen())
        reason = "the scout saw the others and held them back: all their tokens count as dropped"
        return [{"name": "scout", "value": f"{seen} of {steps} frames", "reason": reason}]


def add_to_all(watchers: Sequence[Watcher], batch: Frames) -> None:
    """Give a chunk to several watchers of one film: it is encoded once for each scout and encode stage that occur.

    Each watcher is charged the time that it would have taken alone.
    """
    groups: list[list[Watcher]] = []
    for watcher in watchers:
        group = next((known for known in groups if _alike(known[0], watcher)), None)
        if group is None:
            groups.append([watcher])
        else:
            group.append(watcher)
    for group in groups:
        spent, look, shown = Stopwatch(), None, batch
        if group[0].scouting is not None:
            with spent("scout"):
                look, shown = group[0].look(batch)
        with spent("encode"):
            encoded = group[0].encode(shown)
        for watcher in group:
            for stage in spent.seconds:
                watcher.stopwatch.add(stage, spent.seconds[stage], spent.cpu_seconds[stage])
            watcher.take(batch, encoded, look, shown)


def _alike(one: Watcher, other: Watcher) -> bool:
    """Whether two watchers show their tower the same frames and prune it the same way."""
    ours, theirs = one.pipe.stages, other.pipe.stages
    return (ours.encode, ours.scout, ours.prune) == (theirs.encode, theirs.scout, theirs.prune)
