"""DyCoke, second half: deep layers see only the visual entries that an early layer looked at (arXiv 2411.15024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.checks import check_count, check_range
from videoprune.layer_method import DecodeMethod, DecodeState, DecodeView, KeptKV
from videoprune.ops.attention import always_kept, keep_best
from videoprune.run import Run


def look_up(score: Tensor, known: Tensor, position: Tensor) -> Tensor:
    """Scores of tokens at positions `known` (Hkv, A), (Hkv, A) mean over heads, for entries at `position` (Hkv, S).

    Tokens without a score take -1, below every attention.
    """
    size = 1 + max(int(known.max()), int(position.max()))
    total = torch.full((size,), -1.0, device=score.device)
    total[known.flatten()] = 0
    for share, places in zip(score, known, strict=True):  # a head at a time: no place twice, the same sums on every run
        total[places] += share / len(score)
    return total[position]


@dataclass(frozen=True, kw_only=True)
class DyCoke(DecodeMethod):
    """Layers from `layer` on keep the visual entries with the most attention of the last row in layer `layer` - 1.

    The paper holds the whole cache and chooses anew with every answered token; here entries that leave are gone, so the
    choice falls once, by the last row of the prompt, and holds for the answer. One set for all heads of a layer.

    Without `keep` the paper's schedule: (1 - prune) of the visual entries in layers from `layer` on, the layers below
    untouched. With `keep` or `at_most` every layer's cache is cut to that share or count of what it held, text
    included, by the same scores; text stays even beyond it while `protect_text` is on, as in the paper.

    Args:
        prune: p, share of the visual entries that leave; 0.7 in the paper's notes, 0.8 in the released code.
        layer: l, for a model of `paper_depth` layers; scaled to the model at hand.
        paper_depth: depth that `layer` is given for.
    """

    paper = "arXiv 2411.15024"
    scope = "video"
    needs_question = False
    fixed_count = True
    attention = "last row"
    search = (("keep", 0.05, 0.98), ("prune", 0.1, 0.98))

    prune: float = 0.7
    layer: int = 3
    paper_depth: int = 28

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("prune", self.prune, 0, 0.999)
        check_count("paper_depth", self.paper_depth)
        check_count("layer", self.layer)

    def start(self, run: Run, layers: int) -> DecodeState:
        """Fresh state for one answer."""
        first = int(self.layer * layers / self.paper_depth + 0.5)
        return _State(self, max(1, min(first, layers - 1)))


class _State(DecodeState):
    multiplies = False

    def __init__(self, method: DyCoke, first: int) -> None:
        self.method, self.first = method, first
        self.seen: tuple[Tensor, Tensor] | None = None  # (Hkv, A) scores and positions in layer `first` - 1

    def after(self, view: DecodeView) -> KeptKV | None:
        if view.prefill and view.layer == self.first - 1:
            kv_heads, length = view.text.shape
            rows = view.attention(1)[:, 0].view(kv_heads, -1, length).mean(dim=1)
            self.seen = rows, view.position
        return None

    def finish(self, views: Sequence[DecodeView]) -> Sequence[KeptKV | None] | None:
        if self.seen is None or self.method.identity:
            return None
        return [self.layer(view, *self.seen) for view in views]

    def layer(self, view: DecodeView, score: Tensor, known: Tensor) -> KeptKV | None:
        method, length = self.method, view.text.shape[1]
        if method.keep is None and method.at_most is None:
            if view.layer < self.first:
                return None
            texts = int(view.text.sum(-1).max())
            kept, count = view.text, texts + int((length - texts) * (1 - method.prune) + 0.5)
        else:
            kept, count = always_kept(view.text, min(method.count(length), length), 1, method.protect_text)
        if count >= length:
            return None
        return KeptKV(keep_best(look_up(score, known, view.position), count, kept))
