"""METok's event-aware pooling: coarser where event and frame say less about the question (arXiv 2506.02850)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.checks import check_count
from videoprune.errors import UsageError
from videoprune.method import MergeMethod
from videoprune.ops.attention import best_per_group
from videoprune.run import Events, Run
from videoprune.tokens import VisualTokens


def key_frames_of(frame_event: Tensor, relevance: Tensor, count: int) -> Tensor:
    """(F,) bool: the `count` most relevant frames of each event, ties to the earlier; both inputs (F,)."""
    quota = torch.full_like(torch.bincount(frame_event), count)
    best = best_per_group(relevance.float(), frame_event, quota)
    return torch.zeros_like(frame_event, dtype=torch.bool).index_fill_(0, best, True)


def frame_strides(key_event: Tensor, key_frame: Tensor, strides: tuple[int, int, int]) -> Tensor:
    """(F,) int64: in a key event the first stride for key frames, the second for others; else the second and third."""
    return torch.tensor(strides, device=key_event.device)[2 - key_event.long() - key_frame.long()]


def cells_left(strides: Tensor, grid: tuple[int, int]) -> Tensor:
    """(F,) int64: tokens of a frame of `grid` pooled at each stride; a ragged edge keeps a cell of its own."""
    rows, columns = grid
    return (-(-rows // strides)) * (-(-columns // strides))


def escalate(strides: Tensor, order: Tensor, grid: tuple[int, int], limit: int) -> Tensor:
    """Double strides until at most `limit` tokens are left, or one a frame (ours).

    Each pass doubles the frames in `order` (F,), the least important first, and stops where the limit is met.
    """
    strides = strides.clone()
    while True:
        now = cells_left(strides, grid)
        total = int(now.sum())
        if total <= limit or total == len(strides):
            return strides
        saved = (now - cells_left(2 * strides, grid))[order].cumsum(0)
        enough = int((saved < total - limit).sum()) + 1  # frames up to the one that meets the limit
        strides[order[:enough]] *= 2


def pooled_into(strides: Tensor, grid: tuple[int, int]) -> Tensor:
    """(F*N,) int64: for each token of full grids the token at the head of its stride x stride block."""
    row = torch.arange(grid[0], device=strides.device)[:, None]
    column = torch.arange(grid[1], device=strides.device)
    stride = strides[:, None, None]
    head = (row // stride * stride) * grid[1] + column // stride * stride
    frame = torch.arange(len(strides), device=strides.device)[:, None, None]
    return (head + frame * grid[0] * grid[1]).flatten()


@dataclass(frozen=True, kw_only=True)
class METok(MergeMethod):
    """Average pooling of each frame at a stride that its event and its own relevance choose.

    Strides are on the host's grid of language-model tokens, which is pooled by 2 already: 1, 2, 4 are the paper's 2, 4,
    8 before it (equal for average pooling where the grid divides). A ragged edge is averaged over what is there, so a
    side g gives ceil(g/s); the paper's average mode gives floor(g/s) and loses the edge, its bilinear mode gives
    ceil(g/s) by interpolation. An event of one frame takes the smaller stride of its pair: its frame is its most
    relevant.

    `keep` and `at_most` are limits (ours): where pooling leaves more, strides double, first of other frames in other
    events, then their key frames, then other frames in key events, then key frames, each the least relevant first;
    where one token a frame is still too many, frames leave in that order.

    Args:
        key_frames: frames of each event, the most relevant to the question, that get the smaller stride.
        strides: three, ascending: key frame in key event; other frame there, and key frame elsewhere; other frame
            elsewhere.
        newline: end every event but the last with the host's newline, where it has one (the last is ended by the host).
    """

    paper = "arXiv 2506.02850"
    scope = "event"
    needs_question = True
    needs_relevance = True
    fixed_count = False
    attention = "none"
    search = (("keep", 0.02, 0.98), ("key_frames", 1, 12))
    whole_grids = True

    positions: str = "compact"
    key_frames: int = 6
    strides: tuple[int, int, int] = (1, 2, 4)
    newline: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("key_frames", self.key_frames)
        if not isinstance(self.strides, (tuple, list)) or len(self.strides) != 3:
            raise UsageError(
                f"strides: {self.strides!r} is given; allowed are three whole numbers, ascending, such as [1, 2, 4]"
            )
        for stride in self.strides:
            check_count("strides", stride)
        if list(self.strides) != sorted(self.strides):
            raise UsageError(
                f"strides: {list(self.strides)} is given; allowed are ascending ones: {sorted(self.strides)}"
            )
        object.__setattr__(self, "strides", tuple(self.strides))  # YAML gives a list

    def __call__(self, tokens: VisualTokens, run: Run) -> VisualTokens:
        key_event, frame_event, relevance = _question(run.events, run.relevance, tokens)
        if not tokens.full_grid:
            raise UsageError(
                "merge.metok pools whole grids, but tokens of some frames are gone: put it before other "
                "merge methods and leave out `encode`, or use METok's `segment` alone with another merge method",
                stage="merge",
            )
        rows = (tokens.weight > 0).nonzero()[:, 0]
        key_frame = key_frames_of(frame_event, relevance, self.key_frames)
        limit = self.count(len(rows))
        least_first = torch.argsort(relevance, stable=True)
        least_first = least_first[torch.argsort((2 * key_event + key_frame.long())[least_first], stable=True)]
        strides = escalate(frame_strides(key_event, key_frame, self.strides), least_first, tokens.grid, limit)
        pooled = pooled_into(strides, tokens.grid).view(tokens.frames, -1)
        if limit < tokens.frames:  # one token a frame is left by now
            pooled[least_first[: tokens.frames - limit]] = -1
        into = torch.arange(len(tokens), device=rows.device)  # added rows stay
        into[rows] = torch.where(pooled >= 0, rows[pooled.clamp(min=0)], -1).flatten()
        tokens = tokens.merge(into)
        newline = run.published.get("newline")
        if self.newline and newline is not None:
            event = frame_event[tokens.frame]
            ends = (event[1:] != event[:-1]).nonzero()[:, 0]
            tokens = tokens.insert(ends, newline.to(tokens.features).expand(len(ends), -1))
        return tokens.compacted() if self.positions == "compact" else tokens


def _question(events: Events, relevance: Tensor | None, tokens: VisualTokens) -> tuple[Tensor, Tensor, Tensor]:
    """(F,) int64 whether each frame's event is key, (F,) its event, (F,) its relevance, on the tokens' device."""
    if relevance is None or events.key is None:
        raise ValueError("merge.metok needs run.relevance and ranked events: call Events.ranked before it")
    if len(relevance) != tokens.frames or len(events.frame_event) != tokens.frames:
        raise ValueError(
            f"{len(relevance)} relevances and events of {len(events.frame_event)} frames for a film of {tokens.frames}"
        )
    device = tokens.features.device
    frame_event = events.frame_event.to(device)
    return events.key.to(device)[frame_event].long(), frame_event, relevance.float().to(device)
