"""LVPruning: at three layers each visual token reads the question by cross-attention and says whether it is still needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from videoprune.checks import check_count, check_range, check_shares
from videoprune.layer_method import Kept, PrefillState, PrefillView
from videoprune.ops.attention import keep_best
from videoprune.ops.schedule import counts_towards
from videoprune.prefill._gated import GatedPrefill, Gates, alive
from videoprune.run import Run
from videoprune.trained import HostFacts, Schedule


class CrossBlock(nn.Module):
    """softmax(Q Kᵀ/√d) V + Q with queries of the film and keys and values of the text, then LN, Linear, SiLU, Linear, LN."""

    def __init__(self, entering: int, text: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(entering, width)
        self.key, self.value = nn.Linear(text, width), nn.Linear(text, width)
        self.feed = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.SiLU(),
            nn.Linear(2 * width, width),
            nn.LayerNorm(width),
        )

    def forward(self, film: Tensor, text: Tensor) -> Tensor:
        """(V, E), (T, D) -> (V, W)."""
        query = self.query(film)
        split = [
            rows.unflatten(-1, (self.heads, -1)).transpose(0, 1) for rows in (query, self.key(text), self.value(text))
        ]
        read = functional.scaled_dot_product_attention(*(rows[None] for rows in split))[0]
        fed: Tensor = self.feed(read.transpose(0, 1).flatten(1) + query)
        return fed


class Decider(nn.Module):
    """Decision module of one pruning point: (V, D) film, (T, D) text -> (V, 2) logits, keep and remove."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.first, self.second = CrossBlock(width, width, inner, heads), CrossBlock(inner, width, inner, heads)
        self.out = nn.Linear(inner, 2)
        with torch.no_grad():  # most is kept at first, so that the loss tells of each token what its loss would cost
            self.out.bias.copy_(torch.tensor([1.0, -1.0]))

    def forward(self, film: Tensor, text: Tensor) -> Tensor:
        # states differ in size by orders of magnitude from layer to layer
        film, text = (functional.layer_norm(rows.float(), rows.shape[-1:]) for rows in (film, text))
        logits: Tensor = self.out(self.second(self.first(film, text), text))
        return logits


def ratio_loss(gates: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """(1/S) Σ_s (ρ_s - mean_j D_sj)², gates (V,) of each point."""
    return torch.stack([(share - gate.mean()).square() for gate, share in zip(gates, shares, strict=True)]).mean()


@dataclass(frozen=True, kw_only=True)
class LVPruning(GatedPrefill):
    """Learned decisions by cross-attention (arXiv 2501.13652).

    At each point the tokens with the highest keep-minus-remove logit stay, as many as that point's share of the tokens that
    came in. With `keep` the shares are stretched so that the last point leaves exactly that; `at_most` caps the last point.

    Args:
        layers: see `GatedPrefill`.
        shares: of the visual tokens that came in, alive after each point, falling: the paper's (ρ, ρ - 0.2, ρ - 0.4).
        divisor: the modules are this much narrower than the model; 1 is the paper's.
        heads: of the modules.
        ratio_weight: of the ratio loss in training.
        temperature: of the Gumbel softmax in training.
    """

    paper = "arXiv 2501.13652"
    scope = "video"
    needs_question = True
    fixed_count = True
    attention = "none"
    schedule = Schedule(steps=400, batch=4, learning_rate=2e-3, films=100)

    layers: Sequence[int] = (1, 8, 16)
    shares: Sequence[float] = (0.5, 0.3, 0.1)
    divisor: int = 4
    heads: int = 8
    ratio_weight: float = 5.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("divisor", self.divisor)
        check_count("heads", self.heads)
        check_range("ratio_weight", self.ratio_weight, 0, 1e6)
        check_range("temperature", self.temperature, 0, 1e3, open_low=True)
        object.__setattr__(self, "shares", check_shares(self.shares, len(self.layers)))

    # ------------------------------------------------------------------ the learned part

    def structure(self) -> dict[str, Any]:
        return {**super().structure(), "divisor": self.divisor, "heads": self.heads}

    def build(self, host: HostFacts) -> nn.Module:
        inner = self.heads * math.ceil(host.width / self.divisor / self.heads)
        return nn.ModuleList(Decider(host.width, inner, self.heads) for _ in self.points(host.layers))

    def gates(self, part: nn.Module, view: PrefillView, point: int, progress: float) -> Gates:
        drawn = functional.gumbel_softmax(self.logits(part, view, point), tau=self.temperature, hard=True)[:, 0]
        gate = alive(view) * drawn
        return Gates(gate, gate.sum())

    def penalties(self, decided: Sequence[Sequence[Gates]], total: Sequence[int]) -> dict[str, Tensor]:
        losses = [ratio_loss([point.gate for point in points], self.shares) for points in decided]
        return {"ratio": self.ratio_weight * torch.stack(losses).mean()}

    @staticmethod
    def logits(part: nn.Module, view: PrefillView, point: int) -> Tensor:
        """(V, 2) of each visual token, from its state and the prompt's text behind the film; the last row where there is
        none."""
        text = view.text_after if len(view.text_after) else view.last_row
        decider = part[point]  # type: ignore[index]
        logits: Tensor = decider(view.after[view.visual], view.after[text])
        return logits

    # ------------------------------------------------------------------ in use

    def start(self, run: Run, layers: int) -> PrefillState:
        """Fresh state; refuses layers that collide in this depth."""
        return _State(self, self.points(layers))


class _State(PrefillState):
    def __init__(self, method: LVPruning, points: tuple[int, ...]) -> None:
        self.method, self.points, self.at = method, points, frozenset(points)
        self.counts: list[int] = []

    def after(self, view: PrefillView) -> Kept | None:
        method, total = self.method, len(view.visual)
        if not self.counts:
            self.counts = counts_towards(
                total, method.shares, None if method.keep is None else method.count(total), method.at_most
            )
        point = self.points.index(view.layer)
        if (count := self.counts[point]) >= total:
            return None
        logits = method.logits(method.part, view, point)
        return Kept(keep_best(logits[:, 0] - logits[:, 1], count))
