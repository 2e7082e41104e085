"""What decode methods share that evict once, after the prompt was read, without a score from the model."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor

from videoprune.checks import check_count
from videoprune.layer_method import DecodeMethod, DecodeState, DecodeView, KeptKV
from videoprune.ops.attention import always_kept
from videoprune.run import Run


@dataclass(frozen=True, kw_only=True)
class Once(DecodeMethod):
    """A share of each layer's entries stays, once, after prefill.

    Text counts within the budget; where the protected text alone exceeds it, the text stays and nothing else.

    Args:
        keep: share or count of a layer's cache that stays.
        recent: entries at the end that stay while the budget allows.
    """

    keep: float | int | None = 0.5
    recent: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("recent", self.recent, least=0)

    @abstractmethod
    def choose(self, kept: Tensor, count: int, layer: int, run: Run) -> Tensor:
        """The entries of `kept` (Hkv, S) bool and others up to `count`, fewer than S: (Hkv, count) int64 ascending."""

    def start(self, run: Run, layers: int) -> DecodeState:
        """State that only knows the run."""
        return _State(self, run)


class _State(DecodeState):
    multiplies = False

    def __init__(self, method: Once, run: Run) -> None:
        self.method, self.run = method, run

    def after(self, view: DecodeView) -> KeptKV | None:
        length = view.text.shape[1]
        count = self.method.count(length)
        if not view.prefill or count >= length:
            return None
        kept, count = always_kept(view.text, count, self.method.recent, self.method.protect_text)
        return None if count == length else KeptKV(self.method.choose(kept, count, view.layer, self.run))
