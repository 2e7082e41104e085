"""METok, third stage: after prefill the middle layers forget the film, only the first few remember it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.checks import check_count, scale_layers
from videoprune.errors import UsageError
from videoprune.layer_method import DecodeMethod, DecodeState, DecodeView, KeptKV
from videoprune.ops.attention import always_kept, keep_best, thin_evenly
from videoprune.run import Run


def still_alive(position: Tensor, text: Tensor, alive: Tensor) -> Tensor:
    """Entries at a position that survived prefill, and all text: (Hkv, S), (Hkv, S), (A,) -> (Hkv, S) bool."""
    return torch.isin(position, alive) | text


def entries(mask: Tensor) -> Tensor:
    """(Hkv, S) bool -> (Hkv, K) int64 ascending, K the longest head's count.

    Heads differ only where an earlier method evicted a head at a time; shorter ones then keep some of their first other
    entries, because a cache is rectangular.
    """
    return keep_best(mask.float(), int(mask.sum(-1).max()))


@dataclass(frozen=True, kw_only=True)
class METok(DecodeMethod):
    """Drops the middle layers' visual entries once, right after prefill (arXiv 2506.02850).

    With the pruning layers p0 < … < pn of METok's prefill stage: layers below p0 stay as they are; layers p0..pn-1 keep
    only the entries that are still alive at the end of prefill, which is the text alone where that stage emptied the
    visual ones; layers from pn on hold nothing else already. Behind another prefill method its survivors stay.

    The paper has no budget. With `keep` or `at_most` every layer's cache is also cut to that share or count of what it
    held after prefill, by evenly thinning its visual entries: attention in the first layers is too diffuse to rank by.
    Text stays even beyond the budget; without `protect_text` it is thinned like the rest, but for the last entry.

    Args:
        layers: the prefill stage's pruning layers, used only where it published none.
        paper_depth: depth that `layers` are given for.
    """

    paper = "arXiv 2506.02850"
    scope = "video"
    needs_question = False
    fixed_count = True
    attention = "none"

    layers: Sequence[int] = (3, 10, 19)
    paper_depth: int = 28

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("paper_depth", self.paper_depth)
        if not isinstance(self.layers, Sequence) or isinstance(self.layers, str) or len(self.layers) < 2:
            raise UsageError(
                f"layers: {self.layers!r} is given; allowed are two or more layer indices, as in [3, 10, 19]"
            )
        for layer in self.layers:
            check_count("layers", layer, least=0)
        if list(self.layers) != sorted(set(self.layers)) or self.layers[-1] >= self.paper_depth:
            raise UsageError(
                f"layers: {list(self.layers)} is given; allowed are ascending indices in 0..{self.paper_depth - 1} "
                "(below `paper_depth`)"
            )
        object.__setattr__(self, "layers", tuple(self.layers))

    def start(self, run: Run, layers: int) -> DecodeState:
        """Fresh state; the prefill stage must have started before, so that its layers are known."""
        published = run.published.get("metok.layers")
        scaled = scale_layers(self.layers, self.paper_depth, layers) if published is None else tuple(published)
        return _State(self, scaled[0], scaled[-1])


class _State(DecodeState):
    multiplies = False

    def __init__(self, method: METok, first: int, last: int) -> None:
        self.method, self.first, self.last = method, first, last

    def finish(self, views: Sequence[DecodeView]) -> Sequence[KeptKV | None]:
        return [self.layer(view) for view in views]

    def layer(self, view: DecodeView) -> KeptKV | None:
        length = view.position.shape[1]
        mask = torch.ones_like(view.text)
        if self.first <= view.layer < self.last and view.alive is not None:
            mask = still_alive(view.position, view.text, view.alive)
        budget = self.method.count(length)
        if budget < length and int(mask.sum(-1).max()) > budget:
            kept, budget = always_kept(view.text, budget, 1, self.method.protect_text)
            mask = kept | thin_evenly(mask & ~kept, budget - kept.sum(-1, keepdim=True))
        index = entries(mask)
        return None if index.shape[1] == length else KeptKV(index)
