"""One answer's session: what is visual, which methods act, and the trace that they leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from videoprune.method import DecodeState, PrefillState
from videoprune.ops.counting import CountedFlops
from videoprune.tokens import VisualTokens


@dataclass(eq=False)
class Stream:
    """The tokens alive at some depth: hidden (1, S, D), cos and sin (1, S, d), index (S,) in the unpruned sequence."""

    hidden: Tensor
    cos: Tensor
    sin: Tensor
    index: Tensor

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
        evicted: (call, layer) -> entries kept, as (K,) or (Hkv, K) indices.
        evidence: (T,) attention of the answer on each visual token, summed over the layers looked at.
        marks: time (perf_counter) at the end of every forward call; the first one after the device is done.
        prefill_entries, entries: key/value entries of each layer after the first, and after the last call.
    """

    queries: list[list[int]] = field(default_factory=list)
    keys: list[list[int]] = field(default_factory=list)
    counted: CountedFlops = field(default_factory=CountedFlops)
    visual_rows: list[int] = field(default_factory=list)
    kept: dict[int, Tensor] = field(default_factory=dict)
    evicted: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    evidence: Tensor | None = None
    marks: list[float] = field(default_factory=list)
    entries: list[int] = field(default_factory=list)
    prefill_entries: list[int] = field(default_factory=list)


@dataclass(eq=False)
class Session:
    """One answer: which rows of the prompt are visual, and the methods that act on them.

    Attributes:
        visual: (start, stop) rows of the prompt that are the visual block.
        tokens: its ledger, one row each.
        prefill, decode: states of the methods, fresh for this answer.
        evidence_layers: layers whose attention is read for the report; empty to read none.
    """

    visual: tuple[int, int]
    tokens: VisualTokens
    prefill: Sequence[PrefillState] = ()
    decode: Sequence[DecodeState] = ()
    evidence_layers: frozenset[int] = frozenset()
    trace: Trace = field(default_factory=Trace)
    step: int = 0
