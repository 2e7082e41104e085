"""What a method is in each of the five stages.

A method is a frozen dataclass: its fields are its hyper-parameters with the paper's defaults, `__post_init__` refuses bad
ones, and one function does the work by calling a pure function on tensors that stands above the class in the same file.
A file `videoprune/STAGE/NAME.py` holds one class with a `paper`: that makes it the method NAME of that stage.
Those of the two stages inside the language model are in `videoprune.layer_method`.
The plain class attributes below are what `videoprune methods` lists; it reads them from the source, without importing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from videoprune.checks import check_count, check_positions, check_range
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
        search: the options that `videoprune tune` searches, (name, low, high); an entry of a list has its list's bounds.
        attention: which attention it reads: "none", "[CLS] row", "last row", "text rows", "recent rows", "all rows".
    """

    paper: ClassVar[str]
    scope: ClassVar[str] = "video"
    needs_question: ClassVar[bool] = False
    needs_relevance: ClassVar[bool] = False
    fixed_count: ClassVar[bool] = True
    attention: ClassVar[str] = "none"
    search: ClassVar[tuple[tuple[str, float, float], ...]] = (("keep", 0.02, 0.98),)

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

BEFORE = -1  # the "layer" that embeds patches


@dataclass(eq=False)
class TowerView:
    """What an encode method sees after one layer of the vision tower: F frames of one window, U units alive in each.

    A unit is the set of patches that becomes one language-model token. Activations and keys are averaged over a unit's
    patches (and keys over heads) first.

    Attributes:
        layer, depth: index of the layer that just ran, BEFORE where none has, and the number of layers that will run.
        step: which of the method's layers this is, from 0.
        hidden: (F, U, C) residual stream after the layer; before the first one, what enters it.
        keys: call it for (F, U, d) keys of that layer's attention, mean over heads, before any rotary embedding; before the
            first layer, those that it would compute.
        unit: (F, U) int64, the unit's number on the full grid, ascending in each frame.
        valid: (F, U) bool; False pads frames that have fewer units than others.
        size: (F, U) int64, how many original units each stands for.
        total: units a frame entered the tower with.
        frame: (F,) int64, index of each frame in the film.
        cls_attention: call it for (F, U) attention of [CLS] on each unit (mean over heads, sum over its patches); on a
            tower without [CLS] what each unit receives from all rows on average, VisionZip's rule there.
        pixels: call it for (F, 3, H, W), the normalised pixels.
        grid: (rows, columns) that the `total` units were in, None for a square.
        unit_of_patch: (P,) int64 unit of each patch of `pixels` in raster order; None where every patch is one.
        scan: call it for (F, U, E), the summed outputs of the layer's selective scans; None on a tower without them.
    """

    layer: int
    depth: int
    step: int
    hidden: Tensor
    keys: Callable[[], Tensor]
    unit: Tensor
    valid: Tensor
    size: Tensor
    total: int
    frame: Tensor
    cls_attention: Callable[[], Tensor]
    pixels: Callable[[], Tensor]
    grid: tuple[int, int] | None = None
    unit_of_patch: Tensor | None = None
    scan: Callable[[], Tensor] | None = None


@dataclass(frozen=True, eq=False)
class TowerPlan:
    """Which units go on.

    Attributes:
        keep: (F, U) bool; None keeps all.
        absorbed_by: (F, U) int64 column of the kept unit of the same frame that absorbs each dropped unit, -1 where it
            is dropped for good; ignored where `keep`. None drops all.
        scores: (F, U) float each; the tokens that the units become carry them to later stages, as `tokens.scores`.
    """

    keep: Tensor | None = None
    absorbed_by: Tensor | None = None
    scores: Mapping[str, Tensor] = field(default_factory=dict)


class EncodeMethod(Budgeted):
    """Drops or merges units between layers of the vision tower.

    Class attributes:
        reads_scan: it acts in a tower of selective scans: no host's is one, so that in a pipeline it prunes the scout's.
    """

    reads_scan: ClassVar[bool] = False

    @property
    def window(self) -> int:
        """Frames that are looked at together; encoder chunks are whole windows, so that chunking changes no result.

        1 means that frames are independent: a view then holds any number of them.
        """
        return 1

    @abstractmethod
    def layers(self, depth: int) -> Sequence[int]:
        """Indices of the tower layers after which it acts, for a tower that runs `depth` layers; BEFORE is before the first."""

    @abstractmethod
    def plan(self, view: TowerView) -> TowerPlan | None:
        """Decide for one window after one of `layers`; None changes nothing."""


# ------------------------------------------------------------------------------------------------------------ scout


@dataclass(frozen=True, kw_only=True)
class ScoutMethod(Method):
    """Looks at every sampled frame before the vision tower does, and says which of them the tower sees.

    It works through windows of the film as they come. What a host's tower reads as one (`Host.pair`) is one frame here.

    Class attributes:
        has_scan: whether it has a tower of scans, which encode methods with `reads_scan` prune.

    Args:
        keep: share of the frames that the tower sees, never passed at the end of a window; a count is refused, as the film's
            length is not known while it comes. 1 shows it all.
        window: frames that are chosen from at a time.
    """

    search: ClassVar[tuple[tuple[str, float, float], ...]] = (("keep", 0.05, 0.98),)
    has_scan: ClassVar[bool] = False

    keep: float = 0.3
    window: int = 16

    def __post_init__(self) -> None:
        check_range("keep", self.keep, 0, 1, open_low=True)
        check_count("window", self.window)

    @property
    def identity(self) -> bool:
        return self.keep == 1

    def see(self, images: Any, prune: Sequence[EncodeMethod], first: int) -> tuple[Tensor | None, float]:
        """(F, D) float32 of frames (F, H, W, 3) uint8, of which the first is number `first`, and FLOPs; by default nothing is
        looked at."""
        return None, 0.0

    def cost(self, frames: int, prune: Sequence[EncodeMethod]) -> float:
        """FLOPs of seeing so many frames."""
        return 0.0

    def check(self, prune: Sequence[EncodeMethod]) -> None:
        """Refuse what cannot prune its tower, before any work.

        Raises:
            UsageError
        """

    @abstractmethod
    def pick(self, features: Tensor | None, count: int, allowed: int, first: int, carried: Any) -> tuple[Tensor, Any]:
        """Choose in one window.

        Args:
            features: (count, D) of `see`. count: frames of the window.
            allowed: most that may be chosen; at least 1 in the first window.
            first: number of the window's first frame in the film.
            carried: what the window before gave back, None at first.

        Returns:
            (K,) int64 ascending frames of the window, and what the next one is given.
        """


# ------------------------------------------------------------------------------------------------------------ merge


@dataclass(frozen=True, kw_only=True)
class MergeMethod(Budgeted):
    """Fewer tokens before the language model.

    Class attributes:
        whole_grids: whether it pools over grids that no earlier stage has thinned out.

    Args:
        positions: "original" (survivors keep theirs) or "compact" (renumbered from 0 after this method).

    Attributes:
        ranked: the method keeps the best by a score that `arrive` leaves with each token, so that the best of a film are
            the best of those of its parts.
    """

    ranked: ClassVar[bool] = False
    whole_grids: ClassVar[bool] = False

    positions: str = "original"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positions(self.positions)

    @abstractmethod
    def __call__(self, tokens: VisualTokens, run: Run) -> VisualTokens:
        """A smaller VisualTokens; a `frame`-scope method may be given any chunk of whole frames."""

    def arrive(self, tokens: VisualTokens, carried: Any) -> tuple[VisualTokens, Any]:
        """Called with each chunk of a film that is held under a bound, in order, as it comes.

        A `ranked` method leaves the score of each token in the ledger here; `carried` is what it gave back with the chunk
        before (None at first), for scores that look at the frame before.
        """
        return tokens, None
