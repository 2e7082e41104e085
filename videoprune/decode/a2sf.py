"""A2SF: accumulated attention with a forgetting factor decides which key/value entries stay."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.checks import check_count, check_range
from videoprune.errors import UsageError
from videoprune.layer_method import DecodeMethod, DecodeState, DecodeView, KeptKV
from videoprune.ops.attention import always_kept, carry, decay_weights, decayed_column_sum, keep_best
from videoprune.run import Run


def rows_that_count(forgetting: float, epsilon: float) -> int:
    """W = ceil(ln epsilon / ln forgetting): rows before the last W have a factor of at most epsilon."""
    if forgetting == 0:
        return 1
    return max(1, math.ceil(math.log(epsilon) / math.log(forgetting)))


def accumulate_attention(query: Tensor, key: Tensor, forgetting: float, epsilon: float = 0.0) -> Tensor:
    """a_k = Σ_q forgetting^(S-1-q) P_qk, summed over the query heads of each key/value head; P causal, scale 1/sqrt(d).

    Args:
        query: (H, S, d) rotated.
        key: (Hkv, S, d) rotated.
        forgetting: factor by which the past counts less with each query.
        epsilon: rows whose factor fell below it are left out; 0 takes all.

    Returns:
        (Hkv, S) float32.
    """
    length, width = query.shape[1:]
    rows = length if epsilon == 0 or forgetting == 1 else min(length, rows_that_count(forgetting, epsilon))
    weights = decay_weights(rows, forgetting, key.device)
    return decayed_column_sum(query[:, length - rows :], key, weights, width**-0.5)


@dataclass(frozen=True, kw_only=True)
class A2SF(DecodeMethod):
    """Accumulative attention with forgetting factor (arXiv 2407.20485); a budget and a choice for each key/value head.

    `prefill` is what the authors' present code does: once, after the prompt was read, the highest scores among all but
    the last `recent` entries stay, and these last ones. `decode` is the paper's: from there on every answered token
    adds its attention row to the scores, a ← forgetting·a + P, and the lowest entry leaves, so that the cache stays at
    its budget. A row is normalised over the entries that are left, since the others are gone from the cache. The paper
    evicts already while the prompt streams through; here prefill is one fused pass and the prompt is cut at its end.

    The budget is `keep` of the layer's entries after prefill, text and recent ones included. Where it is smaller than
    `recent`, the last ones that fit stay. With `protect_text` (not the paper's choice) the prompt's text stays first;
    where text alone exceeds the budget it all stays and the cache is that much larger: in `decode` there is then no
    room for answered tokens, which leave at once.

    Args:
        keep: share or count of a layer's cache that stays.
        protect_text: never evict entries of the prompt's text; answered tokens may still go.
        forgetting: factor for each query back in time, 0 (the last row alone) up to, but not, 1. Near 1 many rows are
            read: W = ln epsilon / ln forgetting, 459 for 0.99.
        recent: entries at the end that always stay; the paper's own experiments have 0.
        epsilon: query rows whose factor fell below it are not read.
        variant: "prefill" or "decode".
    """

    paper = "arXiv 2407.20485"
    scope = "video"
    needs_question = False
    fixed_count = True
    attention = "recent rows"
    search = (("keep", 0.05, 0.98), ("forgetting", 0.3, 0.99))

    keep: float | int | None = 0.5
    protect_text: bool = False
    forgetting: float = 0.95
    recent: int = 16
    epsilon: float = 0.01
    variant: str = "prefill"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("forgetting", self.forgetting, 0, 1)
        if self.forgetting == 1:
            raise UsageError(
                "forgetting: 1 is given, which never forgets and would need every row; allowed is 0 up to 0.999"
            )
        check_count("recent", self.recent, least=0)
        check_range("epsilon", self.epsilon, 0, 1, open_low=True)
        if self.variant not in ("prefill", "decode"):
            raise UsageError(f"variant: {self.variant!r} is given; allowed are 'prefill' and 'decode'")

    def start(self, run: Run, layers: int) -> DecodeState:
        """Fresh sums for one answer."""
        return _State(self)


class _State(DecodeState):
    multiplies = False

    def __init__(self, method: A2SF) -> None:
        self.method = method
        self.queries = rows_that_count(method.forgetting, method.epsilon)
        self.budget: dict[int, tuple[int, int]] = {}  # entries that stay, and how many recent ones among them
        self.prompt_end: dict[int, Tensor] = {}  # (Hkv, 1) position of the prompt's last entry
        self.sums: dict[int, tuple[Tensor, Tensor]] = {}  # (Hkv, K) positions and scores of the entries that stayed
        self.weights: dict[int, Tensor] = {}  # (R,) by the number of rows

    def after(self, view: DecodeView) -> KeptKV | None:
        method, layer = self.method, view.layer
        length = view.length
        if view.prefill:
            budget = method.count(length)
            if method.variant == "prefill" and budget >= length:
                return None
            rows = min(length, rows_that_count(method.forgetting, method.epsilon))
            if rows not in self.weights:  # layers before the first cut are equally long
                self.weights[rows] = decay_weights(rows, method.forgetting, view.keys.device)
            score = view.column_sums(self.weights[rows])
            kept, budget = always_kept(view.text, budget, method.recent, method.protect_text)
            if method.variant == "decode":
                texts = int(view.text.sum(-1).max()) if method.protect_text else 0
                recent = max(0, min(method.recent, budget - texts))
                self.budget[layer], self.prompt_end[layer] = (budget, recent), view.position[:, -1:]
        elif layer in self.sums:
            before, score = self.sums[layer]
            score = method.forgetting * carry(score, before, view.position)
            score = score + view.column_sums(torch.ones(1, device=view.keys.device))
            budget, recent = self.budget[layer]
            kept = view.text & (view.position <= self.prompt_end[layer]) & method.protect_text
            kept[:, length - recent :] = True
        else:
            return None
        index = keep_best(score, min(budget, length), kept)
        if method.variant == "decode":
            self.sums[layer] = (view.position.gather(1, index), score.gather(1, index))
        return None if index.shape[1] == length else KeptKV(index)
