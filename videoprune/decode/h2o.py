"""H2O: the entries that were attended to most so far, and the latest ones (arXiv 2306.14048)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.checks import check_count, check_range
from videoprune.decode._standing import StandingBudget
from videoprune.layer_method import DecodeMethod, DecodeState, DecodeView, KeptKV
from videoprune.ops.attention import carry, keep_best
from videoprune.run import Run


@dataclass(frozen=True, kw_only=True)
class H2O(DecodeMethod):
    """Heavy hitters and recent entries, half of the budget each, for each key/value head.

    After the prompt was read the entries with the largest sums of attention stay, and the last ones. From there on
    every answered token adds its row, normalised over the entries that are left, and the lowest entry outside the
    recent ones leaves, so that the cache stays at its budget: `keep` of the layer's entries after prefill, text
    included; a count holds for answers that grow into it, too. The paper evicts already while the prompt streams
    through; here prefill is one fused pass and the prompt is cut at its end. With `protect_text` (not the paper's
    choice) the prompt's text stays first; where it alone exceeds the budget, it all stays and nothing else.

    Args:
        keep: share or count of a layer's cache that stays.
        protect_text: never evict entries of the prompt's text; answered tokens may still go.
        recent: share of the budget that goes to the last entries.
        rows: last rows of the prompt whose attention is summed; None takes all of them, as the paper does, in memory
            for heads x rows x entries.
    """

    paper = "arXiv 2306.14048"
    scope = "video"
    needs_question = False
    fixed_count = True
    attention = "all rows"
    search = (("keep", 0.05, 0.98), ("recent", 0, 1))

    keep: float | int | None = 0.5
    protect_text: bool = False
    recent: float = 0.5
    rows: int | None = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("recent", self.recent, 0, 1)
        if self.rows is not None:
            check_count("rows", self.rows)

    def start(self, run: Run, layers: int) -> DecodeState:
        """Fresh sums for one answer."""
        return _State(self)


class _State(StandingBudget):
    def __init__(self, method: H2O) -> None:
        super().__init__(method)
        self.method = method
        self.recent: dict[int, int] = {}  # how many recent entries are among those that stay
        self.sums: dict[int, tuple[Tensor, Tensor]] = {}  # (Hkv, K) positions and scores of the entries that stayed

    def after(self, view: DecodeView) -> KeptKV | None:
        method, layer, length = self.method, view.layer, view.text.shape[1]
        if view.prefill:
            texts = int(view.text.sum(-1).max()) if method.protect_text else 0
            if not self.open(view, texts):
                return None
            budget = method.count(length if isinstance(method.keep, float) else 1 << 40)
            self.recent[layer] = max(0, min(int(budget * method.recent + 0.5), budget - texts))
            rows = length if method.rows is None else min(method.rows, length)
            score = view.column_sums(torch.ones(rows, device=view.keys.device))
        elif layer in self.sums:
            before, score = self.sums[layer]
            score = carry(score, before, view.position) + view.column_sums(torch.ones(1, device=view.keys.device))
        else:
            return None
        budget, kept = self.budget[layer], self.protected(view)
        kept[:, max(0, length - self.recent[layer]) :] = True
        index = keep_best(score, min(budget, length), kept)
        self.sums[layer] = (view.position.gather(1, index), score.gather(1, index))
        return None if index.shape[1] == length else KeptKV(index)
