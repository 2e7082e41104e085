"""ToMe: after every layer of the vision tower, the most alike pairs of units become one (arXiv 2210.09461)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.checks import check_count
from videoprune.errors import UsageError
from videoprune.method import EncodeMethod, TowerPlan, TowerView
from videoprune.ops.matching import ascending, group_mean
from videoprune.ops.similarity import cosine, smallest


def merge_tokens(features: Tensor, sizes: Tensor, remove: int) -> tuple[Tensor, Tensor]:
    """One merge by the similarity of the features themselves: each group becomes its size-weighted mean.

    Args:
        features: (F, N, D). sizes: (F, N) original tokens that each stands for. remove: tokens to remove, 0..N-1.

    Returns:
        (F, N - remove, D) float32 in the order of the survivors, and their sizes (F, N - remove).
    """
    left = features.shape[1] - remove
    keep, into = plan_merges(features, sizes, left)
    slot = _slots(keep, into)
    merged = torch.zeros(len(sizes), left, dtype=sizes.dtype, device=sizes.device).scatter_add_(1, slot, sizes)
    return group_mean(features, sizes, slot, left), merged


def plan_merges(metric: Tensor, sizes: Tensor, left: int, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Which units of each frame stay, and which one absorbs each of the others.

    Units at even places look for the most similar one at an odd place, by cosine, and the pairs that are closest merge;
    ties go to the lower index. A round removes half at most: where more must go, another one follows on what is left,
    measured on the size-weighted means (ours; the paper stops at half a layer).

    Args:
        metric: (F, N, K) what similarity is measured on. sizes: (F, N). left: units that a frame keeps, at least 1.
        valid: (F, N) bool, False for padding behind a frame's units. A frame keeps min(its units, left).

    Returns:
        keep (F, N) bool, and into (F, N) int64, the place that stands for each, its own where kept or padding.
    """
    units = metric.shape[1]
    place = torch.arange(units, device=metric.device).expand(metric.shape[:2])
    valid = torch.ones_like(place, dtype=torch.bool) if valid is None else valid
    keep, into, width = valid, place, units
    while width > left:  # as many rounds as the fullest frame needs: no look at the data
        rows = metric
        if width < units:  # slots behind a frame's survivors are empty, 0 / 0
            rows = group_mean(metric, sizes * valid, _slots(keep, into), width).nan_to_num()
        origin = ascending(keep, width)
        goes = _round(rows, keep.sum(dim=1, keepdim=True), left)
        into = place.scatter(1, origin, origin.gather(1, goes)).gather(1, into)
        keep = keep & (into == place)
        width -= min(width // 2, width - left)
    return keep, into


def _slots(keep: Tensor, into: Tensor) -> Tensor:
    """(F, N) int64: the rank, among the survivors of its frame, of the one that stands for each unit."""
    return (keep.cumsum(dim=1) - 1).clamp(min=0).gather(1, into)


def _round(metric: Tensor, count: Tensor, left: int) -> Tensor:
    """One round of even/odd matching among the first `count` (F, 1) rows: the place that absorbs each, (F, N) int64."""
    frames, units, _ = metric.shape
    into = torch.arange(units, device=metric.device).repeat(frames, 1)
    outside = into >= count
    alike = cosine(metric[:, ::2], metric[:, 1::2]).masked_fill(outside[:, None, 1::2], -torch.inf)
    best, partner = alike.max(dim=2)
    quota = torch.minimum(count // 2, (count - left).clamp(min=0))
    gone = smallest((-best).masked_fill(outside[:, ::2], torch.inf), quota)
    into[:, ::2] = torch.where(gone, 2 * partner + 1, into[:, ::2])
    return into


@dataclass(frozen=True, kw_only=True)
class ToMe(EncodeMethod):
    """Merges after every layer, by the head-mean keys of that layer; every unit weighs as many as it stands for.

    `keep` is a share of a frame's units, or a count of units a frame; what must go is split evenly over the layers, the
    earlier ones first. Without `keep` the paper's schedule: r units a layer, never more than half of those alive.
    The paper merges between attention and MLP and adds log(size) to the attention logits; here the merge comes after
    the layer, and the tower's stock attention counts every unit once.

    Args:
        remove: r, for a frame of the tower at hand; None takes 23 of 576 units, the paper's ViT-L at 384 pixels.
    """

    paper = "arXiv 2210.09461"
    scope = "frame"
    needs_question = False
    fixed_count = True
    attention = "none"

    remove: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.remove is not None:
            check_count("remove", self.remove, least=0)
            if self.keep is not None:
                raise UsageError(
                    f"remove and keep: {self.remove} and {self.keep} are given; allowed is one of them: remove the other"
                )

    def layers(self, depth: int) -> Sequence[int]:
        return range(depth)

    def alive_after(self, total: int, steps: int) -> list[int]:
        """Units of a frame of `total` that are left after each of the `steps` layers."""
        each = int(total * 23 / 576 + 0.5) if self.remove is None else self.remove
        alive, left = [], total
        for _ in range(steps):
            left -= min(each, left // 2)
            alive.append(left)
        if self.keep is None and self.count(total) >= left:
            return alive
        rest = total - self.count(total)
        drops = [rest // steps + (step < rest % steps) for step in range(steps)]
        return [total - sum(drops[: step + 1]) for step in range(steps)]

    def plan(self, view: TowerView) -> TowerPlan | None:
        left = self.alive_after(view.total, len(self.layers(view.depth)))[view.step]
        if view.unit.shape[1] <= left:
            return None
        keep, into = plan_merges(view.keys(), view.size, left, view.valid)
        return TowerPlan(keep, torch.where(view.valid, into, -1))
