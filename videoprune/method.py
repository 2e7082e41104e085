"""What a method is in each of the five stages.

A method is a frozen dataclass: its fields are its hyper-parameters with the paper's defaults, `__post_init__` refuses bad
ones, and one function does the work by calling a pure function on tensors that stands above the class in the same file.
A file `videoprune/STAGE/NAME.py` holds one class with a `paper`: that makes it the method NAME of that stage.
The plain class attributes below are what `videoprune methods` lists; it reads them from the source, without importing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from videoprune.checks import check_positions
from videoprune.run import Events, Run
from videoprune.tokens import VisualTokens, budget, check_share


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """Base of all methods.

    Class attributes:
        paper: where it is published, "arXiv NNNN.NNNNN" or a sentence.
        scope: how far it looks: "frame", "event" or "video".
        needs_question: whether its choice depends on the question.
        needs_relevance: whether it reads the frames' relevance or the events' ranks, which a scorer then has to find.
        fixed_count: whether its token count is known before the data is seen.
        attention: which attention it reads: "none", "[CLS] row", "last row", "text rows", "recent rows", "all rows".
    """

    paper: ClassVar[str]
    scope: ClassVar[str] = "video"
    needs_question: ClassVar[bool] = False
    needs_relevance: ClassVar[bool] = False
    fixed_count: ClassVar[bool] = True
    attention: ClassVar[str] = "none"

    @property
    def identity(self) -> bool:
        """Whether these settings change nothing (`keep: 1` without a cap): the stage is then skipped altogether."""
        return False


@dataclass(frozen=True, kw_only=True)
class Budgeted(Method):
    """A method with the common budget.

    Args:
        keep: share (0, 1] or count of what enters the stage that leaves it; None leaves the paper's own schedule.
        at_most: cap by a count.
    """

    keep: float | int | None = None
    at_most: int | None = None

    def __post_init__(self) -> None:
        check_share("keep", self.keep)
        check_share("at_most", self.at_most)

    @property
    def identity(self) -> bool:
        return self.keep == 1 and self.at_most is None

    def count(self, total: int) -> int:
        """Tokens that leave when `total` enter."""
        return budget(total, self.keep, self.at_most)


# ---------------------------------------------------------------------------------------------------------- segment


class SegmentMethod(Method):
    """Finds the events of a film from its frame features."""

    online: ClassVar[bool] = False  # True where events can be closed as frames come

    @abstractmethod
    def __call__(self, features: Tensor) -> Events:
        """Events of the frames with `features` (F, D) float32."""

    def rank(self, events: Events, relevance: Tensor) -> Events:
        """Score the events by relevance (F,) and mark the key ones; by default the best half (rounded up)."""
        return events.ranked(relevance, (len(events) + 1) // 2)


# -------------------------------------------------------------------------------------------------------- relevance


@dataclass(eq=False)
class RelevanceView:
    """What a scorer sees.

    Attributes:
        tokens: the visual tokens as they are stored before the question is known.
        text: the question.
        question: (Q, D) word embeddings of its tokens.
        vocabulary_mean: (D,) mean word embedding of the language model.
        observed: (F, C) what the scorer's own `observe` kept of each frame, None where it looks at no pixels.
    """

    tokens: VisualTokens
    text: str
    question: Tensor
    vocabulary_mean: Tensor
    observed: Tensor | None


@dataclass(frozen=True, kw_only=True)
class RelevanceMethod(Method):
    """Scores how much each frame has to do with the question."""

    needs_question: ClassVar[bool] = True

    def observe(self, images: Any) -> Tensor | None:
        """Called with each chunk of frames (F, H, W, 3) uint8 while the film is watched; None keeps nothing."""
        return None

    @abstractmethod
    def score(self, view: RelevanceView) -> Tensor:
        """(F,) float32, higher is more relevant."""


# ----------------------------------------------------------------------------------------------------------- encode


@dataclass(eq=False)
class TowerView:
    """What an encode method sees after one layer of the vision tower: F frames of one window, U units alive in each.

    A unit is the set of patches that becomes one language-model token. Activations and keys are averaged over a unit's
    patches (and keys over heads) first.

    Attributes:
        layer, depth: index of the layer that just ran, and the number of layers that will run.
        step: which of the method's layers this is, from 0.
        hidden: (F, U, C) residual stream after the layer.
        keys: (F, U, d) keys of that layer's attention, mean over heads, before any rotary embedding.
        unit: (F, U) int64, the unit's number on the full grid, ascending in each frame.
        valid: (F, U) bool; False pads frames that have fewer units than others.
        size: (F, U) int64, how many original units each stands for.
        total: units a frame entered the tower with.
        frame: (F,) int64, index of each frame in the film.
        cls_attention: call it for (F, U) attention of [CLS] on each unit (mean over heads, sum over its patches), or
            raises UsageError on a tower without [CLS].
        pixels: call it for (F, 3, H, W), the normalised pixels.
    """

    layer: int
    depth: int
    step: int
    hidden: Tensor
    keys: Tensor
    unit: Tensor
    valid: Tensor
    size: Tensor
    total: int
    frame: Tensor
    cls_attention: Callable[[], Tensor]
    pixels: Callable[[], Tensor]


@dataclass(frozen=True, eq=False)
class TowerPlan:
    """Which units go on.

    Attributes:
        keep: (F, U) bool.
        absorbed_by: (F, U) int64 column of the kept unit of the same frame that absorbs each dropped unit, -1 where it
            is dropped for good; ignored where `keep`. None drops all.
    """

    keep: Tensor
    absorbed_by: Tensor | None = None


class EncodeMethod(Budgeted):
    """Drops or merges units between layers of the vision tower."""

    @property
    def window(self) -> int:
        """Frames that are looked at together; encoder chunks are whole windows, so that chunking changes no result.

        1 means that frames are independent: a view then holds any number of them.
        """
        return 1

    @abstractmethod
    def layers(self, depth: int) -> Sequence[int]:
        """Indices of the tower layers after which it acts, for a tower that runs `depth` layers."""

    @abstractmethod
    def plan(self, view: TowerView) -> TowerPlan | None:
        """Decide for one window after one of `layers`; None changes nothing."""


# ------------------------------------------------------------------------------------------------------------ merge


@dataclass(frozen=True, kw_only=True)
class MergeMethod(Budgeted):
    """Fewer tokens before the language model.

    Args:
        positions: "original" (survivors keep theirs) or "compact" (renumbered from 0 after this method).
    """

    positions: str = "original"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positions(self.positions)

    @abstractmethod
    def __call__(self, tokens: VisualTokens, run: Run) -> VisualTokens:
        """A smaller VisualTokens; a `frame`-scope method may be given any chunk of whole frames."""


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


@dataclass(frozen=True, eq=False)
class Kept:
    """Which visual tokens go on to the next layer; text is never removed.

    Attributes:
        index: (K,) int64 ascending, into the V visual tokens alive (not into the sequence).
        hidden: (K, D) changed rows (recycling, inner merging), or None.
        absorbed_by: (V,) int64, for each visual token the entry of `index` that stands for it, -1 dropped; None
            where nothing is merged.
        parked: the dropped ones may come back in a later step.
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
    """

    at: frozenset[int] = frozenset()
    needs: tuple[str, ...] = ()

    @abstractmethod
    def after(self, view: PrefillView) -> Kept | None:
        """Called after each layer of `at`, in order; None changes nothing."""


class PrefillMethod(Budgeted):
    """Drops visual tokens between decoder layers while the prompt is read."""

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


@dataclass(frozen=True, eq=False)
class KeptKV:
    """Entries that stay in one layer's cache.

    Attributes:
        index: (K,) for all heads, or (Hkv, K) a head each; int64 ascending.
        keys, values: (Hkv, K, d) changed entries, or None.
    """

    index: Tensor
    keys: Tensor | None = None
    values: Tensor | None = None


class DecodeState:
    """One answer's state of a decode method; both calls may return None to change nothing."""

    def after(self, view: DecodeView) -> KeptKV | None:
        """Called for every layer, after prefill and after every decoded token."""
        return None

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
