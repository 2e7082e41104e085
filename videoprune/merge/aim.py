"""AIM's merging: halve the tokens of every frame by bipartite matching, again and again (arXiv 2412.03248)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.checks import check_count
from videoprune.method import MergeMethod
from videoprune.ops.matching import bipartite_plan, group_mean
from videoprune.run import Run
from videoprune.tokens import VisualTokens

ROWS_AT_ONCE = 32768  # tokens in float32 at a time; frames are independent, so this changes no result


def merge_round(features: Tensor, remove: int) -> Tensor:
    """One round: the `remove` even tokens most like an odd one join it, which becomes the plain mean of its group.

    Args:
        features: (F, N, D); similarity is their own cosine.
        remove: tokens to remove from each frame, at most N // 2.

    Returns:
        (F, N-remove, D) float32 in raster order; the released code puts unmerged tokens first, by similarity.
    """
    return plan_merges(features, features.shape[1] - remove, rounds=1)[0]


def plan_merges(
    features: Tensor, target: int, weight: Tensor | None = None, rounds: int | None = None
) -> tuple[Tensor, Tensor]:
    """Rounds of halving down to `target` tokens a frame; the last one merges exactly the rest.

    Args:
        features: (F, N, D).
        weight: (F, N) of each token in its group's mean; None counts every token once, and in later rounds every
            average once, as published.
        rounds: most rounds allowed; None takes what is needed.

    Returns:
        features (F, target, D) float32 in raster order, and into (F, N) int64, the place of the final survivor of each.
    """
    frames, tokens, _ = features.shape
    rows = features.float()
    mass = torch.ones(frames, tokens, device=rows.device) if weight is None else weight.float()
    into = torch.arange(tokens, device=rows.device).expand(frames, -1)
    place = into  # where the rows left stand in the frame
    while rows.shape[1] > target:
        left = rows.shape[1]
        remove = left - target if rounds == 1 else min(left // 2, left - target)
        rounds = None if rounds is None else rounds - 1
        survivors, absorbed = bipartite_plan(rows, remove)
        slot = torch.searchsorted(survivors, absorbed)  # survivors ascend
        rows = group_mean(rows, mass, slot, left - remove)
        if weight is None:
            mass = mass[:, : left - remove]
        else:
            mass = torch.zeros_like(mass[:, : left - remove]).scatter_add_(
                1, slot, mass
            )  # whole numbers: exact in any order
        # place -> row before this round -> row after it -> its place
        row_of_place = torch.zeros_like(into).scatter_(
            1, place, torch.arange(left, device=rows.device).expand(frames, -1)
        )
        place = place.gather(1, survivors)
        into = place.gather(1, slot.gather(1, row_of_place.gather(1, into)))
    return rows, into


def share_out(counts: Tensor, total: int) -> Tensor:
    """Spread `total` tokens over frames in proportion to the (F,) `counts` that they have; the sum is exact.

    Every frame that has tokens keeps one where `total` allows it. Frames of equal count differ by at most 1, and those
    with one more are evenly spaced. With fewer tokens than frames, every frame keeps one: the caller joins them.
    """
    least = (counts > 0).to(torch.int64)
    rest = max(total - int(least.sum()), 0)
    spare = (counts - least).cumsum(0)
    room = max(int(spare[-1]), 1)
    stairs = (spare * rest + room // 2) // room
    return least + torch.diff(stairs, prepend=stairs.new_zeros(1))


@dataclass(frozen=True, kw_only=True)
class AIM(MergeMethod):
    """Iterative merging inside each frame; survivors stand in raster order.

    Without `keep` each frame is halved `rounds` times (196 -> 98 -> 49); with it the share or count of the whole is met
    exactly, halving as often as that needs. A budget below one token a frame joins the last tokens of neighbouring
    frames by their weighted mean (ours). Added rows are left alone.

    Args:
        rounds: halvings of the paper's schedule.
        weighted: weigh each token in a mean by the original tokens that it stands for; the paper does not.
    """

    paper = "arXiv 2412.03248"
    scope = "frame"
    needs_question = False
    fixed_count = True
    attention = "none"

    positions: str = "compact"
    rounds: int = 2
    weighted: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("rounds", self.rounds)

    def targets(self, counts: Tensor) -> tuple[Tensor, int]:
        """Tokens each frame is merged to, (F,), and those of the whole, fewer only where frames must be joined."""
        total = int(counts.sum())
        halved = counts
        for _ in range(self.rounds if self.keep is None else 0):
            halved = halved - halved // 2
        goal = min(self.count(total), int(halved.sum()))
        exact = self.keep is None and goal == int(halved.sum())
        return (halved if exact else share_out(counts, goal)), goal

    def __call__(self, tokens: VisualTokens, run: Run) -> VisualTokens:
        device = tokens.features.device
        rows = (tokens.weight > 0).nonzero()[:, 0]
        counts = torch.bincount(tokens.frame[rows], minlength=tokens.frames).cpu()  # one read: shapes depend on it
        if not len(rows):
            return tokens
        targets, goal = self.targets(counts)
        start = counts.cumsum(0) - counts
        into = torch.arange(len(tokens), device=device)
        features = tokens.features.clone()
        for count, target in torch.stack((counts, targets), dim=1).unique(dim=0).tolist():
            if count == target:
                continue
            alike = start[(counts == count) & (targets == target)].to(device)
            for part in alike.split(max(1, ROWS_AT_ONCE // count)):
                member = rows[part[:, None] + torch.arange(count, device=device)]
                weight = tokens.weight[member] if self.weighted else None
                merged, absorbed = plan_merges(tokens.features[member], target, weight)
                into[member] = member.gather(1, absorbed)
                stays = absorbed == torch.arange(count, device=device)
                features[member[stays]] = merged.flatten(0, 1).to(features.dtype)
        survivors = (into == torch.arange(len(into), device=device)).nonzero()[:, 0]
        tokens = tokens.merge(into, features[survivors])
        if goal < int(targets.sum()):
            tokens = _join_frames(tokens, goal)
        return tokens.compacted() if self.positions == "compact" else tokens


def _join_frames(tokens: VisualTokens, goal: int) -> VisualTokens:
    """Join runs of neighbouring tokens, one a frame, to `goal` weighted means, each where its first token stood."""
    rows = (tokens.weight > 0).nonzero()[:, 0]
    run = torch.arange(len(rows), device=rows.device) * goal // len(rows)
    first = torch.searchsorted(run, torch.arange(goal, device=rows.device))
    into = torch.arange(len(tokens), device=rows.device)
    into[rows] = rows[first[run]]
    return tokens.merge(into)
