"""DART: a few pivots are chosen by the norm of their keys, and the visual tokens least like them stay."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.checks import check_count
from videoprune.layer_method import Kept, PrefillView
from videoprune.ops.attention import keep_best
from videoprune.ops.similarity import unit
from videoprune.prefill._one_cut import OneCut
from videoprune.run import Run


def key_norm(key: Tensor) -> Tensor:
    """L1 norm of each token's keys over all key/value heads: (Hkv, S, d) -> (S,) float32."""
    return key.float().abs().sum(dim=(0, 2))


def select(states: Tensor, pivots: Tensor, images: int, count: int) -> Tensor:
    """Tokens that stay: the first `images` pivots, then in turn for each pivot those least like it.

    Every token is taken once, copies of another included. The pivots take equally many, the first ones one more where it
    does not divide; of equally similar tokens the first is taken.

    Args:
        states: (V + T, D) states of the V visual tokens, then of T text tokens.
        pivots: (P,) int64 into `states`: `images` visual ones, then text ones, each by falling norm.
        images: how many pivots are visual; at least 1.
        count: visual tokens that stay, `images`..V.

    Returns:
        (count,) int64 ascending, into the V visual tokens.
    """
    states = unit(states)
    visual = len(states) - (len(pivots) - images)
    similarity = states[pivots] @ states[:visual].T
    taken = torch.zeros(visual, dtype=torch.bool, device=states.device)
    taken[pivots[:images]] = True
    each, more = divmod(count - images, len(pivots))
    for turn, row in enumerate(similarity):  # eight turns, whatever V
        quota = each + (turn < more)
        if quota:
            taken[keep_best((-row).masked_fill(taken, -torch.inf), quota)] = True
    return torch.argsort((~taken).to(torch.int8), stable=True)[:count]


def largest(norm: Tensor, count: int) -> Tensor:
    """Places of the `count` largest, by falling value; of equal ones the first: (N,) -> (min(count, N),) int64."""
    return norm.argsort(descending=True, stable=True)[:count]


@dataclass(frozen=True, kw_only=True)
class DART(OneCut):
    """Duplication-aware reduction (arXiv 2502.11494).

    The default keeps what 128 of 576 are. The pivots count: exactly the budget stays, where the authors' 128 become 132.

    Args:
        keep: share or count that stays.
        image_pivots: visual tokens of largest key norm; they stay (fewer, where the budget is smaller).
        text_pivots: tokens behind the film of largest key norm; fewer where there are fewer.
        layer: the tokens leave before this layer of `paper_depth`; scaled, and never before layer 1.
        paper_depth: depth that `layer` is given for.
    """

    paper = "arXiv 2502.11494"
    scope = "video"
    needs_question = False
    fixed_count = True
    attention = "none"
    search = (("keep", 0.02, 0.98), ("image_pivots", 1, 16), ("text_pivots", 0, 16))

    keep: float | int | None = 0.222
    image_pivots: int = 4
    text_pivots: int = 4
    layer: int = 2
    paper_depth: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("image_pivots", self.image_pivots)
        check_count("text_pivots", self.text_pivots, least=0)

    def choose(self, view: PrefillView, count: int, run: Run) -> Kept:
        total, norm = len(view.visual), key_norm(view.key())
        images = largest(norm[view.visual], min(self.image_pivots, count))
        texts = view.text_after[largest(norm[view.text_after], self.text_pivots)]
        states = view.final_norm(view.after[torch.cat((view.visual, texts))])
        pivots = torch.cat((images, torch.arange(total, total + len(texts), device=images.device)))
        return Kept(select(states, pivots, len(images), count))
