"""DyCoke's temporal merging: in windows of four frames, drop what stands in an earlier one already (arXiv 2411.15024)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.checks import check_range
from videoprune.method import MergeMethod
from videoprune.ops.attention import apportion, best_per_group
from videoprune.ops.similarity import pair_cosine
from videoprune.run import Run
from videoprune.tokens import VisualTokens


def reference_frame(frame: Tensor) -> Tensor:
    """The frame that each is compared with: of frames 0..3 of a window 1 -> 0, 2 -> 0, 3 -> 2.

    Frame 0 is compared with frame 0 of the window before (ours, and only for budgets that it cannot survive whole); the
    film's first frame with none, -1.
    """
    place = frame % 4
    back = torch.tensor([4, 1, 2, 1], device=frame.device)[place]
    return (frame - back).clamp(min=-1)


def likeness(features: Tensor, frame: Tensor, place: Tensor, per_frame: int) -> Tensor:
    """(T,) float32 cosine of each token with the one at its place in its reference frame; -2 where there is none.

    Args:
        features: (T, D).
        frame: (T,) int64.
        place: (T,) int64 in 0..per_frame-1, the token's number on the frame's grid.
    """
    reference = reference_frame(frame)
    row_of = torch.full(((int(frame.max()) + 1) * per_frame,), -1, dtype=torch.int64, device=frame.device)
    row_of[frame * per_frame + place] = torch.arange(len(frame), device=frame.device)
    partner = torch.where(reference >= 0, row_of[(reference * per_frame + place).clamp(min=0)], -1)
    same = pair_cosine(features, torch.arange(len(frame), device=frame.device), partner.clamp(min=0))
    return same.where(partner >= 0, -2.0)


def quotas(counts: Tensor, frames: Tensor, drop: float, total: int | None) -> Tensor:
    """Tokens that each frame keeps.

    Args:
        counts: (F,) int64, tokens of each frame.
        frames: (F,) int64, its index in the film.
        drop: share that the compared frames (all but the first of a window) lose; used without `total`.
        total: tokens to keep. First frames of windows stay whole where that allows it and the others share the rest;
            below that only first frames keep any.
    """
    first = frames % 4 == 0
    if total is None:
        return torch.where(first, counts, counts - (drop * counts.double() + 0.5).floor().long())
    whole = int(counts[first].sum())
    if total < whole:
        return apportion(counts * first, total)
    return counts * first + apportion(counts * ~first, total - whole)


@dataclass(frozen=True, kw_only=True)
class DyCoke(MergeMethod):
    """Drops, in frames 1 to 3 of every four, the tokens most like those at their place in an earlier frame.

    Windows are counted from the film's first frame, and a last window of fewer frames follows the same rule; the
    released code leaves its third frame whole and loses an odd last frame. Added rows (newline, summary) stay.

    Args:
        drop: share of the tokens of compared frames that leave without `keep`; 0.7 keeps 47.5 % of whole windows.
    """

    paper = "arXiv 2411.15024"
    scope = "video"
    needs_question = False
    fixed_count = True
    attention = "none"
    search = (("keep", 0.02, 0.98), ("drop", 0.2, 0.98))

    positions: str = "compact"
    drop: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("drop", self.drop, 0, 1)

    def __call__(self, tokens: VisualTokens, run: Run) -> VisualTokens:
        rows = (tokens.weight > 0).nonzero()[:, 0]
        if not len(rows):
            return tokens
        frame, cell = tokens.frame[rows], tokens.cell[rows]
        counts, frames = torch.bincount(frame, minlength=tokens.frames), torch.arange(tokens.frames)
        quota = quotas(counts.cpu(), frames, self.drop, None if self.keep is None else self.count(len(rows)))
        if self.at_most is not None and int(quota.sum()) > self.at_most:
            quota = quotas(counts.cpu(), frames, self.drop, self.at_most)
        place = cell[:, 0] * tokens.grid[1] + cell[:, 1]
        score = -likeness(tokens.features[rows], frame, place, tokens.per_frame)
        stays = tokens.weight == 0
        stays[rows[best_per_group(score, frame, quota.to(rows.device))]] = True
        tokens = tokens.keep(stays.nonzero()[:, 0])
        return tokens.compacted() if self.positions == "compact" else tokens
