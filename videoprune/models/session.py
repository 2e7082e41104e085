"""One answer's session: what is visual, which methods act, and the trace that they leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from videoprune.layer_method import DecodeState, PrefillState
from videoprune.models.cache import Past, check_even
from videoprune.ops.counting import CountedFlops
from videoprune.tokens import VisualTokens


@dataclass(frozen=True, eq=False)
class VisualBlock:
    """Where the visual tokens stand in a prompt.

    Attributes:
        start, stop: the block's bounds; text stands before and behind it, and inside too where a family writes frame times.
        rows: (T,) int64 ascending, the prompt's row of each row of the ledger.
        deepstack: (T, K, D) what is added to the visual rows behind each of the first K layers, None where nothing is.
    """

    start: int
    stop: int
    rows: Tensor
    deepstack: Tensor | None = None

    @classmethod
    def whole(cls, start: int, count: int, device: torch.device) -> VisualBlock:
        """A block of `count` visual tokens and nothing else."""
        return cls(start, start + count, torch.arange(start, start + count, device=device))

    @cached_property
    def _token_at(self) -> Tensor:
        """(stop - start + 1,) ledger row of each row of the block, -1 for text; the last entry is for what is outside."""
        table = torch.full((self.stop - self.start + 1,), -1, dtype=torch.int64, device=self.rows.device)
        table[self.rows - self.start] = torch.arange(len(self.rows), device=self.rows.device)
        return table

    def token(self, position: Tensor) -> Tensor:
        """The ledger row at each row `position` of prompt and answer, -1 for text; any shape."""
        outside = (position < self.start) | (position >= self.stop)
        return self._token_at[torch.where(outside, self.stop - self.start, position - self.start)]


@dataclass(eq=False)
class Stream:
    """The tokens alive at some depth: hidden (1, S, D), cos and sin (1, S, d), index (S,) in the unpruned sequence."""

    hidden: Tensor
    cos: Tensor
    sin: Tensor
    index: Tensor

    @classmethod
    def join(cls, streams: Sequence[Stream]) -> Stream:
        """Streams (1, S, D) as one (B, S, D); `index` is the first one's.

        Raises:
            Uneven: they are not equally long.
        """
        if len(streams) == 1:
            return streams[0]
        check_even(stream.hidden.shape[1] for stream in streams)
        hidden, cos, sin = (torch.cat([getattr(each, name) for each in streams]) for name in ("hidden", "cos", "sin"))
        return cls(hidden, cos, sin, streams[0].index)

    @classmethod
    def in_a_row(cls, streams: Sequence[Stream]) -> Stream:
        """Streams of other tokens of the same sequence, one behind the other."""
        hidden, cos, sin = (
            torch.cat([getattr(each, name) for each in streams], 1) for name in ("hidden", "cos", "sin")
        )
        return cls(hidden, cos, sin, torch.cat([each.index for each in streams]))

    def keep(self, rows: Tensor) -> Stream:
        return Stream(self.hidden[:, rows], self.cos[:, rows], self.sin[:, rows], self.index[rows])


@dataclass(eq=False)
class Trace:
    """What happened, for the report and for replays: numbers only, no activations.

    Attributes:
        queries, keys: one list per forward call, with the rows that entered each layer and the keys they saw.
        counted: FLOPs of what methods and the report computed beside the model: attention rows, scores.
        visual_rows: visual tokens that entered each layer in prefill.
        kept: layer -> (V',) rows of `tokens` that went on after it.
        compacted: layers after which the rows that were left were renumbered.
        evicted: (call, layer) -> entries kept, as (K,) or (Hkv, K) indices.
        parked: (call, layer) -> (P,) rows of `tokens` that stopped behind the layer and wait there; call 0 reads the prompt.
        revived: (call, layer) -> (R,) rows of `tokens` that came back from there in that call.
        selected: (call, layer) -> (K,) positions of the prompt that the layers behind it attended to in that call.
        parked_most, parked_bytes: tokens that waited at most, and what they took.
        evidence: (T,) attention of the answer on each visual token, summed over the layers looked at.
        marks: time (perf_counter) at the end of every forward call; the first one after the device is done.
        prefill_entries, entries: key/value entries of each layer when the prompt was read, and after the last call.
        prompt_calls: forward calls that read the prompt: 2 where its beginning was read for several questions.
    """

    queries: list[list[int]] = field(default_factory=list)
    keys: list[list[int]] = field(default_factory=list)
    counted: CountedFlops = field(default_factory=CountedFlops)
    visual_rows: list[int] = field(default_factory=list)
    kept: dict[int, Tensor] = field(default_factory=dict)
    compacted: set[int] = field(default_factory=set)
    evicted: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    parked: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    revived: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    selected: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    parked_most: int = 0
    parked_bytes: int = 0
    evidence: Tensor | None = None
    marks: list[float] = field(default_factory=list)
    entries: list[int] = field(default_factory=list)
    prefill_entries: list[int] = field(default_factory=list)
    prompt_calls: int = 1

    def continued(self) -> Trace:
        """A trace for what follows: the same pruned prompt, its own calls."""
        return Trace(
            visual_rows=self.visual_rows,
            kept=dict(self.kept),
            compacted=set(self.compacted),
            prefill_entries=self.prefill_entries,
        )

    def branch(self) -> Trace:
        """A trace for one of the questions behind a shared beginning, the reading of which counts as its own."""
        trace = self.continued()
        trace.queries, trace.keys, trace.prompt_calls = list(self.queries), list(self.keys), 1 + len(self.queries)
        trace.counted.total = self.counted.total
        return trace


@dataclass(eq=False)
class Session:
    """One answer: which rows of the prompt are visual, and the methods that act on them.

    Attributes:
        visual: where the visual tokens stand in the prompt.
        tokens: its ledger, one row each.
        prefill, decode: states of the methods, fresh for this answer.
        evidence_layers: layers whose attention is read for the report; empty to read none.
        past: a cache to continue from: the rows of the prompt that it has seen are not read again.
        partial: only the beginning of the prompt is read; decode methods wait for the rest.
        step, read: decoding steps so far, and whether the whole prompt was read.
        left: the cache as the last call left it.
    """

    visual: VisualBlock
    tokens: VisualTokens
    prefill: Sequence[PrefillState] = ()
    decode: Sequence[DecodeState] = ()
    evidence_layers: frozenset[int] = frozenset()
    trace: Trace = field(default_factory=Trace)
    past: Past | None = None
    partial: bool = False
    step: int = 0
    read: bool = False
    left: Past | None = None

    def __post_init__(self) -> None:
        if self.past is not None:
            self.step, self.read = self.past.step, self.past.read
