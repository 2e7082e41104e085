"""What methods share that cut once, before one layer."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from videoprune.checks import check_count, check_range, scale_layers
from videoprune.layer_method import Kept, PrefillMethod, PrefillState, PrefillView
from videoprune.run import Run


@dataclass(frozen=True, kw_only=True)
class OneCut(PrefillMethod):
    """One pruning point: what a layer shows decides what enters the next one.

    Args:
        keep: share or count that stays.
        layer: the tokens leave before this layer of `paper_depth`, by what the layer in front of it shows; scaled, and
            never before layer 1.
        paper_depth: depth that `layer` is given for.
    """

    multiplies: ClassVar[bool] = True  # see `PrefillState`

    keep: float | int | None = 0.5
    layer: int = 2
    paper_depth: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("paper_depth", self.paper_depth)
        check_count("layer", self.layer)
        check_range("layer", self.layer, 1, self.paper_depth - 1)

    @abstractmethod
    def choose(self, view: PrefillView, count: int, run: Run) -> Kept:
        """The `count` visual tokens that go on, fewer than there are."""

    def start(self, run: Run, layers: int) -> PrefillState:
        """Fresh state with one pruning point."""
        return _State(self, run, max(1, scale_layers((self.layer,), self.paper_depth, layers)[0]))


class _State(PrefillState):
    def __init__(self, method: OneCut, run: Run, layer: int) -> None:
        self.method, self.run, self.at = method, run, frozenset({layer - 1})
        self.multiplies = method.multiplies

    def after(self, view: PrefillView) -> Kept | None:
        count = self.method.count(len(view.visual))
        return None if count >= len(view.visual) else self.method.choose(view, count, self.run)
