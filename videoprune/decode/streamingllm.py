"""StreamingLLM: the first few entries, which attention sinks into, and the latest ones (arXiv 2309.17453)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.checks import check_count
from videoprune.decode._standing import StandingBudget
from videoprune.layer_method import DecodeMethod, DecodeState, DecodeView, KeptKV
from videoprune.ops.attention import keep_best
from videoprune.run import Run


def sinks_and_recent(kept: Tensor, count: int, sinks: int) -> Tensor:
    """The entries of `kept` (Hkv, S) bool, then the first `sinks` ones, then the last ones: (Hkv, count) ascending.

    Sinks leave room for one recent entry where the budget has any.
    """
    length = kept.shape[1]
    age = torch.arange(length, device=kept.device)
    rank = torch.where(age < min(sinks, count - 1), length, age)
    rank[-1] = length + 1
    return keep_best(rank.float().expand_as(kept), count, kept)  # exact in float32 below 2**24


@dataclass(frozen=True, kw_only=True)
class StreamingLLM(DecodeMethod):
    """A fixed window without any score, after the prompt and after every answered token.

    The budget is `keep` of the layer's entries after prefill, text and sinks included; a count holds for answers that
    grow into it, too. The paper numbers the entries inside the cache anew; here keys keep the rotation of their own
    positions. With `protect_text` (not the paper's choice) the prompt's text stays first; where it alone exceeds the
    budget, it all stays and nothing else.

    Args:
        keep: share or count of a layer's cache that stays.
        protect_text: never evict entries of the prompt's text; answered tokens may still go.
        sinks: entries at the start that stay.
    """

    paper = "arXiv 2309.17453"
    scope = "video"
    needs_question = False
    fixed_count = True
    attention = "none"

    keep: float | int | None = 0.5
    protect_text: bool = False
    sinks: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("sinks", self.sinks, least=0)

    def start(self, run: Run, layers: int) -> DecodeState:
        """Fresh budgets for one answer."""
        return _State(self)


class _State(StandingBudget):
    def __init__(self, method: StreamingLLM) -> None:
        super().__init__(method)
        self.method = method

    def after(self, view: DecodeView) -> KeptKV | None:
        method, layer, length = self.method, view.layer, view.text.shape[1]
        if view.prefill:
            self.open(view, int(view.text.sum(-1).max()) if method.protect_text else 0)
        if layer not in self.budget or self.budget[layer] >= length:
            return None
        return KeptKV(sinks_and_recent(self.protected(view), self.budget[layer], method.sinks))
