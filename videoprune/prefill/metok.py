"""METok, second stage: visual tokens leave event by event at three layers, and all of them at the last one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.checks import check_count, check_range, scale_layers
from videoprune.errors import UsageError
from videoprune.layer_method import Kept, PrefillMethod, PrefillState, PrefillView
from videoprune.ops.attention import apportion, best_per_group
from videoprune.run import Run


def paper_quota(length: Tensor, key: Tensor, ratio: float, point: int, points: int) -> Tensor:
    """Tokens that each event keeps at pruning point `point` of 0..points-1, from its current length.

    Key events keep max(1, ceil(ratio * length)), none at the last point; the others max(1, ceil(ratio * length / 2)) at
    the first point, none later. (E,) int64, (E,) bool -> (E,) int64.
    """
    if point == points - 1:
        return torch.zeros_like(length)
    share = torch.where(key, ratio, ratio / 2 if point == 0 else 0.0).double()  # float64 as in Python: 0.76 * 25 is 19
    quota = (share * length).ceil().long().clamp(min=1)
    return torch.minimum(torch.where(key | (point == 0), quota, 0), length)


def budget_totals(key_total: int, other_total: int, count: int, points: int) -> list[tuple[int, int]]:
    """Tokens of key and of other events after each pruning point but the last, such that `count` are alive at the end.

    The paper's schedule solved for its ratio r: key events shrink by r at each point and the others to r/2 at the first
    and 0 after. Where `count` exceeds the key events' tokens, these stay whole and the others keep what is missing.
    """
    rounds = points - 1
    if rounds == 1:
        key_end = min(key_total, int(count * key_total / max(key_total + other_total / 2, 1) + 0.5))
    else:
        key_end = min(key_total, count)
    key_end = max(key_end, count - other_total)
    other_end = count - key_end
    ratio = (key_end / key_total) ** (1 / rounds) if key_total else 1.0
    totals = [(max(key_end, round(ratio ** (i + 1) * key_total)), other_end) for i in range(rounds)]
    if rounds > 1:
        totals[0] = (totals[0][0], max(other_end, round(ratio * other_total / 2)))
    return [*totals[:-1], (key_end, other_end)]


@dataclass(frozen=True, kw_only=True)
class METok(PrefillMethod):
    """Event-wise hierarchical pruning (arXiv 2506.02850).

    Before each layer p of `layers`, by the attention of layer p-1 from the text behind the film, every event keeps its
    best tokens: see `paper_quota`. Where events were never ranked by the question all count as key; without segments
    the film is one event. The scaled layers are published as "metok.layers" for the decode stage.

    With `keep` that share or count of the tokens that reach the first point is alive before the last one, exactly:
    `budget_totals` solves the schedule for its ratio, and inside the key and the other events the tokens are split in
    proportion to the events' lengths (a short event may lose all, unlike in the paper). With `at_most` alone the
    paper's quotas before the last point are cut in proportion. Either way the last point removes all visual tokens.

    Args:
        layers: pruning points in a model of `paper_depth` layers, ascending, two at least.
        keep_key: share of a key event's tokens that stays at each point, the paper's ratio.
        paper_depth: depth that `layers` are given for.
    """

    paper = "arXiv 2506.02850"
    scope = "event"
    needs_question = True
    needs_relevance = True
    fixed_count = False
    attention = "text rows"
    search = (("keep", 0.02, 0.98), ("keep_key", 0.2, 1))

    layers: Sequence[int] = (3, 10, 19)
    keep_key: float = 0.76
    paper_depth: int = 28

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("paper_depth", self.paper_depth)
        check_range("keep_key", self.keep_key, 0, 1, open_low=True)
        if not isinstance(self.layers, Sequence) or isinstance(self.layers, str) or len(self.layers) < 2:
            raise UsageError(
                f"layers: {self.layers!r} is given; allowed are two or more layer indices, as in [3, 10, 19]"
            )
        for layer in self.layers:
            check_count("layers", layer)
        if list(self.layers) != sorted(set(self.layers)) or self.layers[-1] >= self.paper_depth:
            raise UsageError(
                f"layers: {list(self.layers)} is given; allowed are ascending indices in 1..{self.paper_depth - 1} "
                "(below `paper_depth`)"
            )
        object.__setattr__(self, "layers", tuple(self.layers))

    def start(self, run: Run, layers: int) -> PrefillState:
        """Fresh state; refuses layers that collide in this depth, or that leave no layer to read attention from."""
        scaled = scale_layers(self.layers, self.paper_depth, layers)
        if scaled[0] < 1:
            raise UsageError(
                f"layers: {list(self.layers)} of {self.paper_depth} become {list(scaled)} of this model's {layers}; "
                "the first must be at least 1, because it reads the attention of the layer before; give later `layers`"
            )
        run.published["metok.layers"] = scaled
        return _State(self, run, scaled)


class _State(PrefillState):
    multiplies = False

    def __init__(self, method: METok, run: Run, layers: tuple[int, ...]) -> None:
        self.method, self.run = method, run
        self.point = {layer - 1: i for i, layer in enumerate(layers)}
        self.at = frozenset(self.point)
        self.totals: list[tuple[int, int]] | None = None

    def quota(self, length: Tensor, key: Tensor, point: int) -> Tensor:
        method, points = self.method, len(self.point)
        quota = paper_quota(length, key, method.keep_key, point, points)
        if method.keep is None:
            return quota if method.at_most is None or point < points - 2 else apportion(quota, method.at_most)
        if self.totals is None:
            total, of_key = int(length.sum()), int(length[key].sum())
            self.totals = budget_totals(of_key, total - of_key, method.count(total), points)
        of_key, of_other = self.totals[point]
        return apportion(torch.where(key, length, 0), of_key) + apportion(torch.where(key, 0, length), of_other)

    def after(self, view: PrefillView) -> Kept | None:
        if not len(view.visual):
            return None
        point = self.point[view.layer]
        if point == len(self.point) - 1:
            return Kept(view.visual.new_empty(0))
        event = view.tokens.event[view.token].clamp(min=0)  # -1 where nothing was segmented: one event
        key = self.run.events.key
        key = torch.ones(len(self.run.events), dtype=torch.bool) if key is None else key
        key = key.to(event.device)
        length = torch.bincount(event, minlength=len(key))
        index = best_per_group(view.text_attention(), event, self.quota(length, key, point))
        return None if len(index) == len(event) else Kept(index)
