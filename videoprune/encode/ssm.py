"""Token pruning for vision state-space models (ToP, arXiv 2409.18962): units by the positive part of their scan's output.

It acts in towers of selective scans, which keep each path over the survivors as it was (`videoprune.ops.scan.aligned`); no
host's tower is one, so in a pipeline it prunes the scout's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.checks import check_range, scale_layers
from videoprune.errors import UsageError
from videoprune.method import EncodeMethod, TowerPlan, TowerView
from videoprune.ops.similarity import smallest

PAPER_DEPTH = 36  # blocks of PlainMamba-L3
SCORES = ("clipped", "mean", "l1", "l2")


def importance(output: Tensor, score: str = "clipped") -> Tensor:
    """S_t = mean over channels e of max(0, y_te), the paper's choice among four.

    Args:
        output: (F, U, E) y, the sum of the scans' outputs before the gate.
        score: "clipped", or what the paper compares it with: "mean", "l1", "l2".

    Returns:
        (F, U) float32.
    """
    output = output.float()
    if score == "clipped":
        return output.clamp(min=0).mean(dim=-1)
    if score == "mean":
        return output.mean(dim=-1)
    return output.abs().mean(dim=-1) if score == "l1" else output.square().mean(dim=-1).sqrt()


@dataclass(frozen=True, kw_only=True)
class SSM(EncodeMethod):
    """Keeps the units with the highest importance after a quarter, a half and three quarters of the blocks.

    `keep` is what is left of a frame's units after the last of them; without it `ratio` of those alive stay each time.
    ViM-S's ratio is .8; ratio and blocks for PlainMamba are not published: .65 is what its -41.5 % FLOPs come to.

    Args:
        ratio: share that stays each time.
        blocks: after which it acts, counted from 1 on a tower of 36; scaled to the tower at hand.
        score: "clipped", "mean", "l1" or "l2".
    """

    paper = "arXiv 2409.18962"
    scope = "frame"
    needs_question = False
    fixed_count = True
    attention = "none"
    reads_scan = True
    search = (("keep", 0.1, 0.98),)

    ratio: float = 0.65
    blocks: Sequence[int] = (9, 18, 27)
    score: str = "clipped"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("ratio", self.ratio, 0, 1, open_low=True)
        if self.score not in SCORES:
            raise UsageError(f"score: {self.score!r} is given; allowed are {', '.join(SCORES)}")
        if not self.blocks or any(isinstance(b, bool) or not isinstance(b, int) or b < 1 for b in self.blocks):
            raise UsageError(f"blocks: {list(self.blocks)} is given; allowed are whole numbers of at least 1")
        object.__setattr__(self, "blocks", tuple(sorted(self.blocks)))

    def layers(self, depth: int) -> Sequence[int]:
        try:
            after = scale_layers(self.blocks, PAPER_DEPTH, depth)
        except UsageError as error:
            raise UsageError(f"blocks: {error}".replace("give `layers`", "give `blocks`")) from None
        if after[0] < 1:
            raise UsageError(
                f"blocks: {list(self.blocks)} of {PAPER_DEPTH} come before this tower's first block of {depth}"
            )
        return [block - 1 for block in after]

    def alive_after(self, total: int, steps: int) -> list[int]:
        """Units of a frame of `total` left after each of the `steps` layers: equal shares of those alive, rounded up."""
        final = self.count(total)
        ratio = self.ratio if self.keep is None else (final / total) ** (1 / steps)
        alive, counts = total, []
        for _ in range(steps):
            alive = math.ceil(alive * ratio - 1e-9)
            counts.append(max(alive, final) if self.keep is not None else min(alive, final))
        return [*counts[:-1], final] if self.keep is not None else counts

    def plan(self, view: TowerView) -> TowerPlan | None:
        if view.scan is None:
            raise UsageError("ssm: this tower has no scan whose output could be read", stage="encode")
        alive = self.alive_after(view.total, len(self.layers(view.depth)))[view.step]
        if view.unit.shape[1] <= alive:
            return None
        score = importance(view.scan(), self.score).masked_fill(~view.valid, -torch.inf)
        return TowerPlan(smallest(-score, view.valid.sum(dim=1, keepdim=True).clamp(max=alive)))
