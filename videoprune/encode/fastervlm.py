"""FasterVLM: the units that [CLS] attends to most go on, the others are dropped (arXiv 2412.01818)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.checks import check_count
from videoprune.errors import UsageError
from videoprune.method import EncodeMethod, TowerPlan, TowerView
from videoprune.ops.similarity import smallest


def most_attended(attention: Tensor, count: int, valid: Tensor | None = None, shared: bool = False) -> Tensor:
    """The units with the highest [CLS] attention; ties go to the lower frame and index.

    Args:
        attention: (F, U) attention of [CLS] on each unit.
        count: units that each frame keeps, all where it has fewer.
        valid: (F, U) bool, False for padding.
        shared: one budget for all frames, the sum of their own: each frame's best unit stays, then the best of all.

    Returns:
        (F, U) bool.
    """
    valid = torch.ones_like(attention, dtype=torch.bool) if valid is None else valid
    score = (-attention.float()).masked_fill(~valid, torch.inf)
    room = valid.sum(dim=1, keepdim=True).clamp(max=count)
    if not shared:
        return smallest(score, room)
    best = smallest(score, 1) & valid
    return smallest(score.masked_fill(best, -torch.inf).flatten(), room.sum()).view_as(valid)


@dataclass(frozen=True, kw_only=True)
class FasterVLM(EncodeMethod):
    """Ranks units by the attention that [CLS] pays them in the last layer that the host runs, mean over heads.

    Both published forms keep equally many units of every frame: for images they are gathered behind the projector, for
    video before it, which is the same choice and, with a projector that treats units one by one, the same result.
    `form: "video"` is ours beyond that: the budgets of `frames` frames are pooled, and a frame on which [CLS] is sure
    gets more of it than one on which it is not; every frame keeps a unit. A tower without [CLS] (SigLIP) is read by
    the attention that a unit receives from all others on average (ours).

    Args:
        keep: share or count of a frame's units; 0.25 is the paper's 144 of 576.
        form: "image" (every frame its own budget, the published image and video forms) or "video" (shared).
        frames: that share a budget under "video"; 8 is Video-LLaVA's film.
    """

    paper = "arXiv 2412.01818"
    scope = "frame"
    needs_question = False
    fixed_count = True
    attention = "[CLS] row"

    keep: float | int | None = 0.25
    form: str = "image"
    frames: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("frames", self.frames)
        if self.form not in ("image", "video"):
            raise UsageError(f"form: {self.form!r} is given; allowed are 'image' and 'video'")

    @property
    def window(self) -> int:
        return self.frames if self.form == "video" else 1

    def layers(self, depth: int) -> Sequence[int]:
        return (depth - 1,)

    def plan(self, view: TowerView) -> TowerPlan | None:
        count = self.count(view.total)
        if view.unit.shape[1] <= count:
            return None
        return TowerPlan(most_attended(view.cls_attention(), count, view.valid, self.form == "video"))
