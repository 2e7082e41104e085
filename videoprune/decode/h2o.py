"""H2O: the entries that were attended to most so far, and the latest ones (arXiv 2306.14048)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.checks import check_count, check_range
from videoprune.method import DecodeMethod, DecodeState, DecodeView, KeptKV
from videoprune.ops.attention import carry, fold_rows, keep_best
from videoprune.run import Run


def column_sums(rows: Tensor, kv_heads: int) -> Tensor:
    """Attention that each entry received, summed over rows and the query heads of a head: (H, R, S) -> (Hkv, S)."""
    return fold_rows(rows, torch.ones(rows.shape[1], device=rows.device), kv_heads)


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


class _State(DecodeState):
    def __init__(self, method: H2O) -> None:
        self.method = method
        self.budget: dict[int, tuple[int, int]] = {}  # entries that stay, and how many recent ones among them
        self.prompt_end: dict[int, Tensor] = {}  # (Hkv, 1) position of the prompt's last entry
        self.sums: dict[int, tuple[Tensor, Tensor]] = {}  # (Hkv, K) positions and scores of the entries that stayed

    def after(self, view: DecodeView) -> KeptKV | None:
        method, layer, (kv_heads, length) = self.method, view.layer, view.text.shape
        if view.prefill:
            if method.identity or (method.keep is None and method.at_most is None):
                return None
            # a count is a size of the cache, also where the prompt is shorter
            budget = method.count(length if isinstance(method.keep, float) else 1 << 40)
            texts = int(view.text.sum(-1).max()) if method.protect_text else 0
            recent = max(0, min(int(budget * method.recent + 0.5), budget - texts))
            self.budget[layer], self.prompt_end[layer] = (max(budget, texts), recent), view.position[:, -1:]
            score = column_sums(view.attention(length if method.rows is None else min(method.rows, length)), kv_heads)
        elif layer in self.sums:
            before, score = self.sums[layer]
            score = carry(score, before, view.position) + column_sums(view.attention(1), kv_heads)
        else:
            return None
        budget, recent = self.budget[layer]
        kept = view.text & (view.position <= self.prompt_end[layer]) & method.protect_text
        kept[:, max(0, length - recent) :] = True
        index = keep_best(score, min(budget, length), kept)
        self.sums[layer] = (view.position.gather(1, index), score.gather(1, index))
        return None if index.shape[1] == length else KeptKV(index)
