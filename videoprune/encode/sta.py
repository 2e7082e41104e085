"""STA: drop what earlier frames already said, between layers of the vision tower (arXiv 2308.04549).

A unit is redundant if much similarity flows to it from the units kept in the frame before, and unimportant if its
activation is small. The paper walks through the temporal groups of one video transformer and drops; a tower that sees
one frame at a time takes frames for groups, and gives what it drops to the nearest kept unit of the frame. That
adaptation is our reconstruction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.checks import check_count, check_range
from videoprune.errors import UsageError
from videoprune.method import EncodeMethod, TowerPlan, TowerView
from videoprune.ops.matching import ascending, bipartite_plan, nearest_kept
from videoprune.ops.similarity import smallest, unit

MODES = ("merge", "drop")


def accumulate_and_drop(features: Tensor, keys: Tensor, drop: int, backward: bool) -> Tensor:
    """One stage as published, without merging: features (F, N, C), keys (F, N, K) -> (F, N-drop, C) in time order.

    Survivors of a frame stay in their order; the released code loses it.
    """
    keep, _ = plan_drops(features, keys, drop, backward)
    index = ascending(keep, features.shape[1] - drop)
    return features.gather(1, index[..., None].expand(-1, -1, features.shape[2]))


def plan_drops(
    features: Tensor, keys: Tensor, drop: int, backward: bool, temperature: float = 1.0, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Which units of each frame go on, and what would absorb the others.

    The first frame visited has no past: it loses even units that an odd one repeats (bipartite matching; where more
    than half must go, further rounds on what is left, which is ours). Each later frame t loses the `drop` units i with
    the largest

        c_i (1 - a_i),   c_i = sum_j softmax_i(k_i . k_j / temperature) c_j   over the units j of the frame visited
        before,

    with a the sum of |activations| scaled to 0..1 in the frame, k unit keys, c_j = 1 for all units of the first frame,
    and later c of the kept units alone, scaled to sum 1.

    Args:
        features: (F, N, C) activations after the layer. keys: (F, N, K) of its attention, mean over heads.
        drop: units to drop from each frame, 0..N-1.
        backward: walk from the last frame to the first.
        temperature: of the softmax; the paper's 1 is nearly flat on cosines.
        valid: (F, N) bool, False for padding. A frame keeps min(its units, N - drop).

    Returns:
        keep (F, N) bool, and absorbed_by (F, N) int64, the nearest kept unit of the same frame, -1 for padding.
    """
    frames, units, _ = keys.shape
    if not 0 <= drop < units:
        raise ValueError(f"drop: {drop} is given; a frame of {units} units allows 0..{units - 1}")
    if valid is None:
        valid = torch.ones(frames, units, dtype=torch.bool, device=keys.device)
    visits = range(frames - 1, -1, -1) if backward else range(frames)
    keep = torch.zeros_like(valid)
    keep[visits[0]] = _first_frame(keys[visits[0]], valid[visits[0]], units - drop)
    if frames > 1:
        scaled = unit(keys)
        now, before = list(visits[1:]), list(visits[:-1])
        # what flows depends on keys alone, not on who was kept: all frames in one product, then a light scan
        flow = scaled[now] @ scaled[before].transpose(1, 2) / temperature  # (F-1, current, previous)
        padding = ~valid[now][:, :, None]
        # filled twice: a frame without any unit gives no softmax
        flow = flow.masked_fill(padding, -torch.inf).softmax(dim=1).masked_fill(padding, 0)
        unimportant = 1 - _semantic(features, valid)
        room = valid.sum(dim=1, keepdim=True).clamp(max=units - drop)
        carried = valid[visits[0]].float()
        for step, frame in enumerate(now):
            received = flow[step] @ carried
            score = (received * unimportant[frame]).masked_fill(~valid[frame], torch.inf)
            keep[frame] = smallest(score, room[frame])
            carried = received * keep[frame]
            carried = carried / carried.sum().clamp(min=torch.finfo(torch.float32).tiny)
    return keep, torch.where(valid, nearest_kept(keys, keep, units - drop), -1)


def _semantic(features: Tensor, valid: Tensor) -> Tensor:
    """(F, N) sum of |activations|, scaled to 0..1 among the valid units of each frame; 0 where all are equal."""
    strength = features.float().abs().sum(dim=2)
    low = strength.masked_fill(~valid, torch.inf).amin(dim=1, keepdim=True)
    high = strength.masked_fill(~valid, -torch.inf).amax(dim=1, keepdim=True)
    spread = high - low
    return torch.where(spread > 0, (strength - low) / spread, 0)


def _first_frame(keys: Tensor, valid: Tensor, room: int) -> Tensor:
    """(N,) bool: rounds of even/odd matching on one frame's keys (N, K) until at most `room` units are left."""
    left = valid.nonzero()[:, 0]
    while len(left) > room:
        survivors, _ = bipartite_plan(keys[None, left], min(len(left) // 2, len(left) - room))
        left = left[survivors[0]]
    return torch.zeros_like(valid).index_fill(0, left, True)


@dataclass(frozen=True, kw_only=True)
class STA(EncodeMethod):
    """Semantic-aware temporal accumulation after layers 0, L/3 and 2L/3: forward, backward, forward in time.

    `keep` is a share of a frame's units, or a count of units a frame; all frames keep equally many, and what must go is
    split evenly over the layers, the earlier ones first. Without `keep` the paper's schedule: r units a frame in the
    first stage, r/2 and r/4 in the next (its groups double, r stays), so that 196 units with r = 64 become 132, 100,
    84. Merging and the restart are ours, like frames as groups.

    Args:
        drop: r, for a frame of the tower at hand; None takes 64 of 196 units, the paper's example.
        mode: "merge" (a dropped unit is absorbed by the nearest kept one of its frame) or "drop" (as published).
        restart: frames after which the walk starts anew: late frames do not inherit one endless chain, and chunks of
            whole
            windows change no result.
        temperature: of the softmax over current units.
    """

    paper = "arXiv 2308.04549"
    scope = "video"
    needs_question = False
    fixed_count = True
    attention = "none"
    search = (("keep", 0.2, 0.98), ("temperature", 0.02, 1))

    drop: int | None = None
    mode: str = "merge"
    restart: int = 16
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.drop is not None:
            check_count("drop", self.drop, least=0)
            if self.keep is not None:
                raise UsageError(
                    f"drop and keep: {self.drop} and {self.keep} are given; allowed is one of them: remove the other"
                )
        if self.mode not in MODES:
            raise UsageError(f"mode: {self.mode!r} is given; allowed are 'merge' and 'drop'")
        check_count("restart", self.restart)
        check_range("temperature", self.temperature, 0, 1000, open_low=True)

    @property
    def window(self) -> int:
        return self.restart

    def layers(self, depth: int) -> Sequence[int]:
        return sorted({0, depth // 3, 2 * depth // 3})  # a tower of two layers has two of them, of one has one

    def alive_after(self, total: int, steps: int) -> list[int]:
        """Units of a frame of `total` that are left after each of the `steps` layers."""
        if self.keep is None:
            first = int(total * 64 / 196 + 0.5) if self.drop is None else self.drop
            drops = [first >> step for step in range(steps)]
            if sum(drops) >= total:
                raise UsageError(
                    f"drop: {first} is given, {sum(drops)} over {steps} layers; a frame has {total} units: "
                    "give a smaller `drop`, or `keep`"
                )
        if self.keep is not None or self.count(total) < total - sum(drops):
            rest = total - self.count(total)
            drops = [rest // steps + (step < rest % steps) for step in range(steps)]
        return [total - sum(drops[: step + 1]) for step in range(steps)]

    def plan(self, view: TowerView) -> TowerPlan | None:
        alive = self.alive_after(view.total, len(self.layers(view.depth)))[view.step]
        units = view.unit.shape[1]
        if units <= alive:
            return None
        backward = view.step % 2 == 1
        keep, absorbed_by = plan_drops(view.hidden, view.keys(), units - alive, backward, self.temperature, view.valid)
        return TowerPlan(keep, absorbed_by if self.mode == "merge" else None)
