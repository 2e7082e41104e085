"""SnapKV: the last rows of the prompt say which entries the answer will need (arXiv 2404.14469)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from videoprune.checks import check_count
from videoprune.errors import UsageError
from videoprune.layer_method import DecodeMethod, DecodeState, DecodeView, KeptKV
from videoprune.ops.attention import always_kept, fold_rows, keep_best
from videoprune.run import Run


def window_votes(rows: Tensor, kv_heads: int, kernel: int) -> Tensor:
    """Mean attention that the last W rows pay each entry before them, smoothed along the entries.

    Args:
        rows: (H, W, S) attention probabilities of the last W rows, W < S.
        kv_heads: Hkv; the mean goes over the query heads of each.
        kernel: width of the average along the entries; outside of them there are zeros.

    Returns:
        (Hkv, S - W) float32.
    """
    heads, window, length = rows.shape
    weights = torch.full((window,), kv_heads / (window * heads), device=rows.device)
    score = fold_rows(rows[..., : length - window], weights, kv_heads)
    return functional.avg_pool1d(score[None], kernel, stride=1, padding=kernel // 2)[0]


@dataclass(frozen=True, kw_only=True)
class SnapKV(DecodeMethod):
    """Once, after the prompt was read, each key/value head keeps what the last `window` rows look at, and the window.

    The budget is `keep` of the layer's entries, window and text included; where it is smaller than the window, the last
    ones that fit stay. With `protect_text` (not the paper's choice) the prompt's text stays first, even beyond the
    budget. Answered tokens are added and never leave.

    Args:
        keep: share or count of a layer's cache that stays.
        protect_text: never evict entries of the prompt's text.
        window: rows at the end of the prompt that vote, and whose entries stay.
        kernel: entries that a vote is averaged over, an odd number.
    """

    paper = "arXiv 2404.14469"
    scope = "video"
    needs_question = False
    fixed_count = True
    attention = "recent rows"
    search = (("keep", 0.05, 0.98), ("window", 4, 128))

    keep: float | int | None = 0.5
    protect_text: bool = False
    window: int = 64
    kernel: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("window", self.window)
        check_count("kernel", self.kernel)
        if self.kernel % 2 == 0:
            raise UsageError(f"kernel: {self.kernel} is given; allowed is an odd number: take {self.kernel + 1}")

    def start(self, run: Run, layers: int) -> DecodeState:
        """State without memory."""
        return _State(self)


class _State(DecodeState):
    def __init__(self, method: SnapKV) -> None:
        self.method, self.queries = method, method.window

    def after(self, view: DecodeView) -> KeptKV | None:
        method, (kv_heads, length) = self.method, view.text.shape
        count = method.count(length)
        if not view.prefill or count >= length:
            return None
        kept, count = always_kept(view.text, count, method.window, method.protect_text)
        if count == length:
            return None
        # votes are at most 1: the window ranks above them, later entries first
        score = (2 + torch.arange(length, device=view.keys.device)).float().repeat(kv_heads, 1)
        if length > method.window:
            score[:, : -method.window] = window_votes(view.attention(method.window), kv_heads, method.kernel)
        return KeptKV(keep_best(score, count, kept))
