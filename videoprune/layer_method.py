"""What a method is in the two stages inside the language model: prefill, between its layers, and decode, on its cache.

See `videoprune.method` for what all methods share.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from videoprune.checks import check_positions
from videoprune.method import Budgeted
from videoprune.ops.attention import fold_rows
from videoprune.run import Run
from videoprune.tokens import VisualTokens

# ---------------------------------------------------------------------------------------------------------- prefill


@dataclass(eq=False)
class PrefillView:
    """What a prefill method sees right after a decoder layer ran. Rows are of the current, already pruned sequence.

    Attributes:
        layer, layers: index of the layer that just ran, and their number.
        before, after: (S, D) residual stream that entered and that left the layer.
        visual: (V,) int64 ascending, rows of the visual tokens that are still alive.
        token: (V,) int64, the row of each in `tokens`.
        text_after: (M,) int64, rows of the text behind the visual block: question and chat template.
        tokens: the ledger, as it entered the language model.
        attention: attention(rows (R,)) -> (H, R, S) float32, the layer's attention probabilities of some query rows.
        query, key: calls that give the layer's rotated queries (H, S, d) and keys (Hkv, S, d).
        scale: factor of the attention logits, 1/sqrt(d) in most models.
        final_norm: the model's last norm, for methods that compare normalised states.
        captured: outputs that the method asked for in `needs`, by name.
        gate: (V,) how much of each visual token is still there, in the training of a learned gate, which hides tokens
            instead of removing them; None where tokens leave.
    """

    layer: int
    layers: int
    before: Tensor
    after: Tensor
    visual: Tensor
    token: Tensor
    text_after: Tensor
    tokens: VisualTokens
    attention: Callable[[Tensor], Tensor]
    query: Callable[[], Tensor]
    key: Callable[[], Tensor]
    scale: float
    final_norm: nn.Module
    captured: dict[str, Tensor]
    gate: Tensor | None = None

    @property
    def last_row(self) -> Tensor:
        """(1,) int64: the prompt's last row, which the answer starts from."""
        return torch.full((1,), self.after.shape[0] - 1, device=self.visual.device)

    @property
    def question_rows(self) -> tuple[Tensor, ...]:
        """Rows of the text behind the film, the last row where there is none, in parts that bound the memory."""
        rows = self.text_after if len(self.text_after) else self.last_row
        return rows.split(max(1, 2**17 // self.after.shape[0]))

    def last_row_attention(self) -> Tensor:
        """(V,) float32 attention of the prompt's last row on each visual token, mean over heads."""
        return self.attention(self.last_row).mean(dim=(0, 1))[self.visual]

    def text_attention(self) -> Tensor:
        """(V,) float32 attention of `question_rows` on each visual token, mean over rows and heads."""
        parts = self.question_rows
        total = sum((self.attention(part).mean(0).sum(0) for part in parts), torch.zeros((), device=parts[0].device))
        return total[self.visual] / sum(map(len, parts))


@dataclass(frozen=True, eq=False)
class Kept:
    """Which visual tokens go on to the next layer; text is never removed.

    Attributes:
        index: (K,) int64 ascending, into the V visual tokens alive (not into the sequence).
        hidden: (K, D) changed rows (recycling, inner merging), or None.
        absorbed_by: (V,) int64, for each visual token the entry of `index` that stands for it, -1 dropped; None
            where nothing is merged.
        parked: the dropped ones may come back in a later step: where a decode method `revives`, the states with which they
            left this layer are held until one selects them.
    """

    index: Tensor
    hidden: Tensor | None = None
    absorbed_by: Tensor | None = None
    parked: bool = False


class PrefillState(ABC):
    """One answer's state of a prefill method.

    Attributes:
        at: layers after which `after` is called.
        needs: outputs (S, D) of those layers to capture: "input_norm", "attention_output", "post_attention_norm",
            "mlp_output".
        positions: the method's, see `PrefillMethod`.
        parks: whether its decisions are `parked`.
        multiplies: whether it multiplies matrices beside what the view computes for it, so that its products are counted.
    """

    at: frozenset[int] = frozenset()
    parks: bool = False
    multiplies: bool = True
    needs: tuple[str, ...] = ()
    positions: str = "original"

    @abstractmethod
    def after(self, view: PrefillView) -> Kept | None:
        """Called after each layer of `at`, in order; None changes nothing."""


@dataclass(frozen=True, kw_only=True)
class PrefillMethod(Budgeted):
    """Drops visual tokens between decoder layers while the prompt is read.

    Args:
        positions: "original" (survivors keep theirs) or "compact" (from the next layer on, rows move up into the gaps that
            this method made, so that each layer has a next position of its own).

    Attributes:
        reads_text: whether its choice depends on rows behind the visual block, so on the question; where it does not, the
            visual block is read once for several questions.
    """

    reads_text: ClassVar[bool] = True
    positions: str = "original"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positions(self.positions)

    def begin(self, run: Run, layers: int) -> PrefillState:
        """`start`, with the method's position policy for the layer loop."""
        state = self.start(run, layers)
        state.positions = self.positions
        return state

    @abstractmethod
    def start(self, run: Run, layers: int) -> PrefillState:
        """Fresh state for one answer in a decoder of `layers` layers; refuses a schedule that does not fit."""


# ----------------------------------------------------------------------------------------------------------- decode


@dataclass(eq=False)
class DecodeView:
    """One layer's key/value cache, right after the layer ran (prefill: the whole prompt; later: one new token).

    Attributes:
        layer, layers: index of the layer, and their number.
        prefill: True once, when the prompt was just read.
        step: 0 in prefill, then 1, 2, … for each decoded token.
        keys, values: (Hkv, S, d) as cached (keys rotated).
        position: (Hkv, S) int64, index of each entry in the unpruned prompt and answer.
        text: (Hkv, S) bool, entries that are text: prompt text and answer.
        alive: (A,) int64 ascending positions that survived the last prefill pruning; only in `finish`.
        attention: attention(rows) -> (H, R, S) float32 for the last `rows` query rows that this layer computed.
        attended: (Hkv, S) bool, entries that the layer attended to in this step; None all of them.
        prompt_rows: rows of the unpruned prompt; positions from there on are the answer's.
        streamed: streamed(weights) -> `column_sums` without holding the rows, None where the cache was cut before.
    """

    layer: int
    layers: int
    prefill: bool
    step: int
    keys: Tensor
    values: Tensor
    position: Tensor
    text: Tensor
    attention: Callable[[int], Tensor]
    alive: Tensor | None = None
    attended: Tensor | None = None
    prompt_rows: int = 0
    streamed: Callable[[Tensor], Tensor] | None = None

    @property
    def length(self) -> int:
        """S, entries of the cache."""
        return self.text.shape[1]

    def scored(self, score: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """(S,) what `score` says of keys and values (Hkv, S, d), for scores in which entries do not look at each other.

        On a cache in pages this reads the entries as they lie, where `keys` and `values` would be copies in order.
        """
        return score(self.keys, self.values)

    def column_sums(self, weights: Tensor) -> Tensor:
        """(Hkv, S) float32: Σ_r weights_r P_r over the last R query rows, weights (R,), and the query heads of each head."""
        if self.streamed is not None:
            return self.streamed(weights)
        return fold_rows(self.attention(len(weights)), weights, len(self.keys))


@dataclass(frozen=True, eq=False)
class KeptKV:
    """Entries that stay in one layer's cache.

    Attributes:
        index: (K,) for all heads, or (Hkv, K) a head each; int64 ascending.
        keys, values: (Hkv, K, d) changed entries, or None.
        freed: () int64, where what leaves is one whole page: its number, in pages of the state's `page` entries from the
            oldest on. A cache in pages then moves nothing.
    """

    index: Tensor
    keys: Tensor | None = None
    values: Tensor | None = None
    freed: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Selected:
    """What the layers behind this one attend to for the rest of this decoding step, beside the answer; nothing is evicted.

    A token that is parked behind this layer comes back: the next layers compute it once, from the state that it left with,
    and cache it, up to the layer behind which it is not selected and parked again. One that a later layer neither holds nor
    gets back (dropped for good, or evicted) is not there.

    Attributes:
        position: (K,) int64, prompt positions out of those that this layer looked at.
    """

    position: Tensor


class DecodeState:
    """One answer's state of a decode method; both calls may return None to change nothing.

    Attributes:
        revives: whether it returns `Selected`, so that what prefill parks has to be held.
        page: entries of a page where whole pages leave while answering: the cache is then laid out in pages, see `room`.
        queries: how many of a layer's last query rows it reads at most: so many are kept as the layer computes them, others
            are computed anew.
        multiplies: as of `PrefillState`.
    """

    revives: bool = False
    page: int | None = None
    queries: int = 0
    multiplies: bool = True

    def after(self, view: DecodeView) -> KeptKV | Selected | None:
        """Called for every layer, after prefill and after every decoded token; `Selected` only after a decoded token."""
        return None

    def room(self, layer: int) -> int:
        """Entries that a layer's pool of pages is made for, asked once when the prompt was read; it grows where they are more."""
        return 0

    def finish(self, views: Sequence[DecodeView]) -> Sequence[KeptKV | None] | None:
        """Called once after prefill with the views of all layers (their `attention` is gone)."""
        return None


@dataclass(frozen=True, kw_only=True)
class DecodeMethod(Budgeted):
    """Evicts key/value entries after prefill and while answering.

    Args:
        protect_text: never evict entries of the prompt's text.
    """

    protect_text: bool = True

    @abstractmethod
    def start(self, run: Run, layers: int) -> DecodeState:
        """Fresh state for one answer."""
