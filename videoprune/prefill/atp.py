"""ATP-LLaVA: at three layers the tokens above learned thresholds stay, as many as each film and question needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from videoprune.checks import check_count, check_range
from videoprune.errors import UsageError
from videoprune.layer_method import Kept, PrefillState, PrefillView
from videoprune.ops.attention import keep_best
from videoprune.prefill._gated import GatedPrefill, Gates, alive
from videoprune.run import Run
from videoprune.trained import HostFacts, Schedule

HIDDEN = 16  # width of the thresholds' perceptron


def received(query: Tensor, key: Tensor, scale: float, weight: Tensor) -> Tensor:
    """Mean over queries and heads of the logits scale · q_i·k_j, which is that of the mean query: no matrix of N x N.

    Args:
        query: (H, N, d). key: (Hkv, N, d). weight: (N,) of each query.

    Returns:
        (N,) float32.
    """
    share = weight / weight.sum().clamp(min=1e-12)
    mean = torch.einsum("n,hnd->hd", share, query.float())
    grouped = mean.unflatten(0, (len(key), -1)).mean(dim=1)  # (Hkv, d): heads that share keys add up likewise
    return scale * torch.einsum("kd,knd->n", grouped, key.float()) / len(key)


def standard(score: Tensor, weight: Tensor) -> Tensor:
    """The score in (0, 1), whatever its scale: the sigmoid of its z-score under the weights, (N,), (N,) -> (N,)."""
    share = weight / weight.sum().clamp(min=1e-12)
    mean = (share * score).sum()
    apart = score - mean
    return torch.sigmoid(apart / (share * apart.square()).sum().add(1e-12).sqrt())


def spatial_score(cell: Tensor, strides: Sequence[int], weight: float) -> Tensor:
    """1 - λ·R of the coarsest even sample of each frame that a token is in, R = 1/stride²; 0 outside all and without a place.

    (N, 2) -> (N,) float32; strides from the coarsest.
    """
    score = torch.zeros(len(cell), device=cell.device)
    for stride in sorted(strides):  # a coarser one is written over it
        sampled = ((cell - stride // 2) % stride == 0).all(dim=1) & (cell[:, 0] >= 0)
        score[sampled] = 1 - weight / stride**2
    return score


class Thresholds(nn.Module):
    """Of one pruning point: (2,) mean logit and mean share of attention -> (2,) thresholds in (0, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, 2))

    def forward(self, seen: Tensor) -> Tensor:
        found: Tensor = self.inner(seen).sigmoid()
        return found


@dataclass(frozen=True, kw_only=True)
class ATP(GatedPrefill):
    """Adaptive pruning by thresholds on redundancy and place (arXiv 2412.00447); a reconstruction, see its page.

    At each point a token stays where its redundancy score passes θ_r or its spatial score passes θ_s; both thresholds are
    made from the mean scores of this film and question at this layer. So counts differ; one token at least stays.
    `keep` and `at_most` are ceilings, never aims: where more than that would be left behind the last point, those stay that
    are furthest above the thresholds. The mean count is what the thresholds were trained for, `target`.

    Args:
        layers: see `GatedPrefill`.
        target: mean share over points and films that the thresholds are trained for.
        strides: of the even samples of a frame, the paper's rates 1/16, 1/9 and 1/4.
        spatial_weight: λ_s of the spatial score.
        temperature, final_temperature: T_m of the soft masks in training, when it begins and when it ends.
        depth_weight: λ_atp, of what deep layers keep.
        target_weight: λ_t, of the distance from the target.
    """

    paper = "arXiv 2412.00447"
    scope = "video"
    needs_question = True
    fixed_count = False
    attention = "text rows"
    schedule = Schedule(steps=300, batch=4, learning_rate=1e-2, films=100)

    layers: Sequence[int] = (4, 14, 24)
    target: float = 0.25
    strides: Sequence[int] = (4, 3, 2)
    spatial_weight: float = 3.0
    temperature: float = 10.0
    final_temperature: float = 40.0
    depth_weight: float = 0.05
    target_weight: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "strides", tuple(self.strides))
        if not self.strides or list(self.strides) != sorted(set(self.strides), reverse=True):
            raise UsageError(f"strides: {list(self.strides)} is given; allowed are whole numbers, falling")
        for stride in self.strides:
            check_count("strides", stride)
        check_range("target", self.target, 0, 1, open_low=True)
        check_range("spatial_weight", self.spatial_weight, 0, min(self.strides) ** 2)
        for name in ("temperature", "final_temperature"):
            check_range(name, getattr(self, name), 0, 1e4, open_low=True)
        for name in ("depth_weight", "target_weight"):
            check_range(name, getattr(self, name), 0, 1e6)

    # ------------------------------------------------------------------ the learned part

    def structure(self) -> dict[str, Any]:
        own = {"target": self.target, "strides": list(self.strides), "spatial_weight": self.spatial_weight}
        return {**super().structure(), **own}

    def build(self, host: HostFacts) -> nn.Module:
        return nn.ModuleList(Thresholds() for _ in self.points(host.layers))

    def above(self, part: nn.Module, view: PrefillView, point: int) -> tuple[Tensor, Tensor]:
        """By how much each visual token (V,) passes the threshold of redundancy, and that of place."""
        there = alive(view)
        own = received(view.query()[:, view.visual], view.key()[:, view.visual], view.scale, there)
        cross = view.text_attention()
        # the share of the text's attention that falls on the film, rather than its mean a token, which tells the length
        seen = torch.stack(((there * own).sum() / there.sum().clamp(min=1e-12), cross.sum()))
        redundancy = (standard(own, there) + standard(cross, there)) / 2
        place = spatial_score(view.tokens.cell[view.token], self.strides, self.spatial_weight)
        thresholds = part[point](seen)  # type: ignore[index]
        return redundancy - thresholds[0], place - thresholds[1]

    def gates(self, part: nn.Module, view: PrefillView, point: int, progress: float) -> Gates:
        temperature = self.temperature * (self.final_temperature / self.temperature) ** progress
        redundancy, place = self.above(part, view, point)
        mask = torch.maximum(torch.sigmoid(redundancy * temperature), torch.sigmoid(place * temperature))
        gate = alive(view) * mask
        return Gates(gate, gate.sum())

    def penalties(self, decided: Sequence[Sequence[Gates]], total: Sequence[int]) -> dict[str, Tensor]:
        """Σ_ℓ ℓ/L · share_ℓ, and how far the mean share of the step's films, over layers, is from the target."""
        shares = torch.stack(
            [torch.stack([point.count for point in points]) / many for points, many in zip(decided, total, strict=True)]
        )  # (films, points)
        depth = torch.tensor([layer / self.paper_depth for layer in self.layers], device=shares.device)
        return {
            "depth": self.depth_weight * (shares * depth).sum(dim=1).mean(),
            "target": self.target_weight * (shares.mean() - self.target).abs(),
        }

    # ------------------------------------------------------------------ in use

    def start(self, run: Run, layers: int) -> PrefillState:
        """Fresh state; refuses layers that collide in this depth."""
        return _State(self, self.points(layers))


class _State(PrefillState):
    def __init__(self, method: ATP, points: tuple[int, ...]) -> None:
        self.method, self.points, self.at = method, points, frozenset(points)
        self.ceiling: int | None = None

    def after(self, view: PrefillView) -> Kept | None:
        method, total = self.method, len(view.visual)
        if self.ceiling is None:
            self.ceiling = method.count(total)
        redundancy, place = method.above(method.part, view, self.points.index(view.layer))
        margin = torch.maximum(redundancy, place)
        count = max(1, int((margin > 0).sum()))
        if view.layer == self.points[-1]:
            count = min(count, self.ceiling)
        return None if count >= total else Kept(keep_best(margin, count))
