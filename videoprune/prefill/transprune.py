"""TransPrune: visual tokens that the layers change least, and that the text attends to least, leave at three layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from videoprune.checks import check_count, check_range, check_shares, scale_points
from videoprune.errors import UsageError
from videoprune.layer_method import Kept, PrefillMethod, PrefillState, PrefillView
from videoprune.ops.attention import keep_best
from videoprune.ops.schedule import counts_towards
from videoprune.run import Run

MODULES = (("input_norm", "attention_output"), ("post_attention_norm", "mlp_output"))  # what enters, what leaves


def transition_variation(before: Tensor, after: Tensor) -> Tensor:
    """How much a module changes each token: |out|/|in| · softmax over the sequence of (1 - cos(in, out)).

    Args:
        before: (S, D) what enters the module.
        after: (S, D) what leaves it, before the residual is added.

    Returns:
        (S,) float32.
    """
    size, turn = [], []
    for entering, leaving in zip(before.split(4096), after.split(4096), strict=True):  # bounds the float32 copies
        entering, leaving = entering.float(), leaving.float()
        size.append(leaving.norm(dim=-1) / entering.norm(dim=-1).clamp(min=1e-12))
        turn.append(1 - functional.cosine_similarity(entering, leaving, dim=-1, eps=1e-12))
    return torch.cat(size) * torch.cat(turn).softmax(dim=0)


@dataclass(frozen=True, kw_only=True)
class TransPrune(PrefillMethod):
    """Pruning by token transition variation and instruction-guided attention (arXiv 2507.20630), the High setting.

    With `keep` the shares are stretched so that the last point leaves exactly that; `at_most` caps the last point.

    Args:
        layers: points; tokens leave before these layers of `paper_depth`, ascending.
        shares: of the visual tokens that came in, alive after each point, falling.
        first: layer from which on the variation is summed.
        alpha: weight of the variation; 1 - alpha is that of the attention.
        paper_depth: depth that `layers` and `first` are given for.
    """

    paper = "arXiv 2507.20630"
    scope = "video"
    needs_question = True
    fixed_count = True
    attention = "text rows"
    search = (("keep", 0.02, 0.98), ("alpha", 0, 1))

    positions: str = "compact"
    layers: Sequence[int] = (7, 9, 12)
    shares: Sequence[float] = (0.875, 0.625, 0.125)
    first: int = 6
    alpha: float = 0.5
    paper_depth: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("paper_depth", self.paper_depth)
        check_count("first", self.first, least=0)
        check_range("alpha", self.alpha, 0, 1)
        object.__setattr__(self, "layers", tuple(self.layers))
        ordered = [0, *self.layers, self.paper_depth]
        if not self.layers or ordered != sorted(set(ordered)) or self.first >= self.layers[0]:
            raise UsageError(
                f"layers: {list(self.layers)} and first: {self.first} are given; allowed are ascending indices in "
                f"1..{self.paper_depth - 1} (below `paper_depth`), and a `first` below them"
            )
        object.__setattr__(self, "shares", check_shares(self.shares, len(self.layers)))

    def start(self, run: Run, layers: int) -> PrefillState:
        """Fresh state; refuses layers that collide in this depth or leave none to look at."""
        scaled = scale_points(self.layers, self.paper_depth, layers)
        first = min(int(self.first * layers / self.paper_depth + 0.5), scaled[0] - 1)
        return _State(self, first, [layer - 1 for layer in scaled])


class _State(PrefillState):
    needs = tuple(name for module in MODULES for name in module)

    def __init__(self, method: TransPrune, first: int, points: list[int]) -> None:
        self.method, self.points = method, points
        self.at = frozenset(range(first, points[-1] + 1))
        self.counts: list[int] | None = None
        self.changed: Tensor | None = None  # (T,) by row of the ledger, so that it follows the survivors

    def after(self, view: PrefillView) -> Kept | None:
        method, alive = self.method, len(view.visual)
        if self.counts is None or self.changed is None:
            self.counts = counts_towards(
                alive, method.shares, None if method.keep is None else method.count(alive), method.at_most
            )
            self.changed = torch.zeros(len(view.tokens), device=view.visual.device)
        self.changed[view.token] += self.variation(view)[view.visual]
        if view.layer not in self.points:
            return None
        count = self.counts[self.points.index(view.layer)]
        if count >= alive:
            return None
        changed, attended = self.changed[view.token], view.text_attention()
        alpha = method.alpha
        score = alpha * changed / (changed.sum() + 1e-8) + (1 - alpha) * attended / (attended.sum() + 1e-8)
        return Kept(keep_best(score, count))

    def variation(self, view: PrefillView) -> Tensor:
        """(S,) summed over attention and MLP where both were captured, else of the layer as one module."""
        seen = view.captured
        if all(name in seen for name in self.needs):
            return sum((transition_variation(seen[a], seen[b]) for a, b in MODULES), torch.zeros(()))
        before = view.before.float()  # as a norm without gain leaves it
        before = before * before.square().mean(-1, keepdim=True).clamp(min=1e-12).rsqrt()
        return transition_variation(before, view.after - view.before)
