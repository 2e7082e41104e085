"""Uniform: evenly spaced entries stay, the eviction baseline without any score."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from videoprune.checks import check_count
from videoprune.method import DecodeMethod, DecodeState, DecodeView, KeptKV
from videoprune.ops.attention import always_kept, keep_best, thin_evenly
from videoprune.run import Run


def uniform_entries(kept: Tensor, count: int) -> Tensor:
    """The entries of `kept` (Hkv, S) bool and evenly spaced others up to `count`: (Hkv, count) int64 ascending."""
    chosen = kept | thin_evenly(~kept, count - kept.sum(-1, keepdim=True))
    return keep_best(chosen.float(), count)


@dataclass(frozen=True, kw_only=True)
class Uniform(DecodeMethod):
    """An evenly spaced share of each layer's entries stays, once, after prefill.

    Text counts within the budget; where the protected text alone exceeds it, the text stays and nothing else.

    Args:
        keep: share or count of a layer's cache that stays.
        recent: entries at the end that stay while the budget allows.
    """

    paper = "baseline, no paper"
    scope = "video"
    needs_question = False
    fixed_count = True
    attention = "none"

    keep: float | int | None = 0.5
    recent: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("recent", self.recent, least=0)

    def start(self, run: Run, layers: int) -> DecodeState:
        """State without memory."""
        return _State(self)


class _State(DecodeState):
    def __init__(self, method: Uniform) -> None:
        self.method = method

    def after(self, view: DecodeView) -> KeptKV | None:
        length = view.text.shape[1]
        count = self.method.count(length)
        if not view.prefill or count >= length:
            return None
        kept, count = always_kept(view.text, count, self.method.recent, self.method.protect_text)
        if count == length:
            return None
        return KeptKV(uniform_entries(kept, count))
