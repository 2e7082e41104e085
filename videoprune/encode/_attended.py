"""What merge methods need of the tower: the attention that tokens had there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from videoprune.method import EncodeMethod, TowerPlan, TowerView

SCORE = "cls_attention"


@dataclass(frozen=True, kw_only=True)
class Attended(EncodeMethod):
    """Drops nothing, and leaves the [CLS] attention of the last layer that runs in `tokens.scores["cls_attention"]`.

    A pipeline puts it before the encode methods where a merge method reads that attention; no recipe names it. What a unit
    was given that another absorbs is lost.
    """

    paper = "none: a reading, not a method"
    scope = "frame"
    needs_question = False
    fixed_count = True
    attention = "[CLS] row"

    keep: float | int | None = 1

    def layers(self, depth: int) -> Sequence[int]:
        return (depth - 1,)

    def plan(self, view: TowerView) -> TowerPlan:
        return TowerPlan(scores={SCORE: view.cls_attention()})
