"""TopV: the visual tokens that supply the most to an optimal transport inside one early layer stay."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.checks import check_count, check_range, scale_layers
from videoprune.layer_method import Kept, PrefillMethod, PrefillState, PrefillView
from videoprune.ops.attention import CHUNK, keep_best, thin_evenly
from videoprune.ops.blocks import at_once
from videoprune.ops.matching import ascending
from videoprune.ops.similarity import distance
from videoprune.ops.transport import check_finish, cost_range, padded_groups, transport_row_sums
from videoprune.run import Run


def contributions(
    source: Tensor,
    target: Tensor,
    cell: Tensor,
    centre: tuple[float, float],
    valid: Tensor,
    weights: tuple[float, float, float] = (1.0, 1.0, 0.01),
    sigma: float = 10.0,
    epsilon: float = 0.1,
    iterations: int = 1,
    finish: str = "cols",
) -> Tensor:
    """Importance of each token: what it supplies to the transport of its own frame.

    The cost is αF + βE + γG: F_ij = |s_i - t_j|, scaled to [0, 1] over the frame; E_ij = 1 - exp(-|x_i - x_j|²/2σ²) of the
    places on the grid; G_i = distance from the centre, as a share of the largest. Every target asks for a mass of 1, so
    that the mean importance of each frame is 1 and frames compare.

    Args:
        source, target: (F, N, D) tokens of F frames, padded.
        cell: (F, N, 2) row and column on the grid; a token without a place (-1, -1) is far from all.
        centre: of the grid.
        valid: (F, N) bool, False pads.
        weights: α, β, γ.
        sigma, epsilon: width of E, and entropy of the transport.
        iterations, finish: see `transport_row_sums`; "rows" takes the norms of the source tokens as their mass.

    Returns:
        (F, N) float32, 0 on padding.
    """
    frames, count, _ = source.shape
    together = max(1, at_once(CHUNK, source.device) // max(1, count * count))
    if frames > together:  # frames know nothing of one another: a block of them at a time stays in the caches
        parts = zip(
            source.split(together), target.split(together), cell.split(together), valid.split(together), strict=True
        )
        settings = (weights, sigma, epsilon, iterations, finish)
        return torch.cat([contributions(s, t, c, centre, v, *settings) for s, t, c, v in parts])
    source, target, place = source.float(), target.float(), cell.float()
    block = max(1, at_once(CHUNK, source.device) // max(1, frames * count))  # columns at a time
    placed = cell[..., 0] >= 0
    middle = torch.tensor(centre, device=source.device)
    away = (place - middle).norm(dim=-1).masked_fill(~(placed & valid), 0)
    away = torch.where(placed, away / away.amax(dim=1, keepdim=True).clamp(min=1e-12), 1.0)

    held = distance(source, target) if block >= count else None

    def apart(start: int, stop: int) -> Tensor:
        return distance(source, target[:, start:stop]) if held is None else held[:, :, start:stop]

    low, high = cost_range(apart, valid, block)

    def cost(start: int, stop: int) -> Tensor:
        both = placed[:, :, None] & placed[:, None, start:stop]
        gap = (place[:, :, None] - place[:, None, start:stop]).square().sum(-1)
        near = torch.where(both, torch.exp(gap / (-2 * sigma**2)), 0.0)
        feature = (apart(start, stop) - low) / (high - low).clamp(min=1e-12)
        return weights[0] * feature + weights[1] * (1 - near) + weights[2] * away[:, :, None]

    mass = source.norm(dim=-1) if finish == "rows" else torch.ones_like(away)
    mass = mass * valid
    mass = mass * (valid.sum(1, keepdim=True) / mass.sum(1, keepdim=True).clamp(min=1e-12))
    return transport_row_sums(cost, mass, valid.float(), epsilon, iterations, finish, block)


@dataclass(frozen=True, kw_only=True)
class TopV(PrefillMethod):
    """One cut by optimal transport between what enters a layer and what its attention makes of it (arXiv 2503.18278).

    Args:
        keep: share or count that stays.
        layer: the tokens leave after this layer of `paper_depth`; scaled.
        alpha, beta, gamma: weights of the distance in features, on the grid and from the centre.
        sigma: width of the distance on the grid, in tokens.
        epsilon: entropy of the transport.
        iterations: updates of the column marginals; 1 is the one-sided form, 3 the paper's number.
        finish: marginal that is met at the end: "cols", or "rows", which makes every importance the token's norm.
        recover: share of the survivors that is an even sample of what the ranking drops.
        paper_depth: depth that `layer` is given for.
    """

    paper = "arXiv 2503.18278"
    scope = "frame"
    needs_question = False
    fixed_count = True
    attention = "none"
    search = (("keep", 0.02, 0.98), ("sigma", 1, 30), ("epsilon", 0.02, 1), ("recover", 0, 0.5))
    reads_text = False

    keep: float | int | None = 0.5
    layer: int = 2
    alpha: float = 1.0
    beta: float = 1.0
    gamma: float = 0.01
    sigma: float = 10.0
    epsilon: float = 0.1
    iterations: int = 1
    finish: str = "cols"
    recover: float = 0.2
    paper_depth: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("paper_depth", self.paper_depth)
        check_count("layer", self.layer, least=0)
        check_count("iterations", self.iterations)
        check_finish(self.finish)
        for name in ("alpha", "beta", "gamma"):
            check_range(name, getattr(self, name), 0, 1e6)
        for name in ("sigma", "epsilon"):
            check_range(name, getattr(self, name), 0, 1e6, open_low=True)
        check_range("recover", self.recover, 0, 1)
        check_range("layer", self.layer, 0, self.paper_depth - 1)

    def start(self, run: Run, layers: int) -> PrefillState:
        """Fresh state with one pruning point."""
        return _State(self, scale_layers((self.layer,), self.paper_depth, layers)[0])


class _State(PrefillState):
    needs = ("post_attention_norm",)

    def __init__(self, method: TopV, layer: int) -> None:
        self.method, self.at = method, frozenset({layer})

    def after(self, view: PrefillView) -> Kept | None:
        method, total = self.method, len(view.visual)
        count = method.count(total)
        if count >= total:
            return None
        tokens, frame = view.tokens, view.tokens.frame[view.token]
        row, valid, place = padded_groups(frame, tokens.frames)
        source, target = view.before[view.visual], view.captured["post_attention_norm"][view.visual]
        cell, (rows, columns) = tokens.cell[view.token], tokens.grid
        importance = contributions(
            source[row], target[row], cell[row], ((rows - 1) / 2, (columns - 1) / 2), valid,
            (method.alpha, method.beta, method.gamma), method.sigma, method.epsilon, method.iterations, method.finish,
        )[frame, place]  # fmt: skip
        sampled = min(int(method.recover * count), count - 1)
        kept = torch.zeros(total, dtype=torch.bool, device=importance.device)
        kept[keep_best(importance, count - sampled)] = True
        kept |= thin_evenly(~kept, sampled)
        return Kept(ascending(kept[None], count)[0])
