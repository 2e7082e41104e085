"""What stands between the tokens of a film's frames: rows of the ledger ([CLS], newlines), and text that counts frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from videoprune.tokens import VisualTokens

FIXED = "fixed"  # score of the ledger, (T,) bool: rows that no stage before decode sees or removes


def with_rows(
    tokens: VisualTokens, lead: Sequence[Tensor] | None = None, trail: Sequence[Tensor] | None = None
) -> VisualTokens:
    """Add rows of weight 0 without a cell before and behind each frame's tokens; their score "fixed" is true.

    `tokens` are as the tower gave them, in order of their positions. Each added row takes a position of its own, as in the
    unpruned prompt, whether or not tokens of its frame are left.

    Args:
        lead, trail: for each of the F frames (R, D), R may differ; None adds none.
    """
    frames, device, width = tokens.frames, tokens.frame.device, tokens.features.shape[1]
    none = [tokens.features.new_empty(0, width)] * frames
    lead, trail = none if lead is None else lead, none if trail is None else trail
    before = torch.tensor([len(rows) for rows in lead], device=device)
    behind = torch.tensor([len(rows) for rows in trail], device=device)
    start = (before + behind + tokens.per_frame).cumsum(0) - (before + behind + tokens.per_frame)  # (F,) of each frame
    number = torch.arange(frames, device=device)

    def places(counts: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        frame = number.repeat_interleave(counts)
        inside = torch.arange(len(frame), device=device) - (counts.cumsum(0) - counts)[frame]
        return frame, offset[frame] + inside

    lead_frame, lead_position = places(before, start)
    trail_frame, trail_position = places(behind, start + before + tokens.per_frame)
    own = (start + before)[tokens.frame] + tokens.position - tokens.frame * tokens.per_frame
    frame, position = torch.cat((lead_frame, trail_frame)), torch.cat((lead_position, trail_position, own))
    order = torch.argsort(position)
    added = len(frame)
    moved = torch.argsort(order)[added:]  # where each row of `tokens` stands now

    def joined(fresh: Tensor, old: Tensor) -> Tensor:
        return torch.cat((fresh.to(old), old))[order]

    empty = torch.full((added,), -1, device=device)
    scores = {name: joined(score.new_zeros(added, *score.shape[1:]), score) for name, score in tokens.scores.items()}
    scores[FIXED] = joined(torch.ones(added, dtype=torch.bool), torch.zeros(len(own), dtype=torch.bool, device=device))
    return replace(
        tokens,
        features=joined(torch.cat((*lead, *trail)), tokens.features),
        frame=joined(frame, tokens.frame),
        cell=joined(empty[:, None].expand(-1, 2), tokens.cell),
        event=joined(empty, tokens.event),
        seconds=joined(tokens.frame_seconds[frame], tokens.seconds),
        weight=joined(torch.zeros_like(empty), tokens.weight),
        owner=torch.where(tokens.owner >= 0, moved[tokens.owner.clamp(min=0)], tokens.owner),
        position=position[order],
        extent=frames * tokens.per_frame + added,
        scores=scores,
    ).check()


def between(tokens: VisualTokens, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where rows and text stand in a visual block with counts (F,) rows of text before each frame.

    Text stays whatever leaves, and takes positions of its own: those of the unpruned prompt, or where tokens were
    renumbered, the ones before the next token that is left.

    Returns:
        rows (T,) of the tokens in the block, ascending; positions (T + text,) of all rows of the block, ascending; and
        behind: (1,) the position that follows the block.
    """
    device = tokens.frame.device
    counts = counts.to(device)
    before = counts.cumsum(0)  # rows of text up to each frame's own
    rows = torch.arange(len(tokens), device=device) + before[tokens.frame]
    if tokens.extent == tokens.frames * tokens.per_frame:
        base = torch.arange(tokens.frames, device=device) * tokens.per_frame
    else:
        first = torch.searchsorted(tokens.frame, torch.arange(tokens.frames, device=device))
        base = torch.cat((tokens.position, tokens.position.new_tensor([tokens.extent])))[first]
    frame = torch.arange(tokens.frames, device=device).repeat_interleave(counts)
    inside = torch.arange(len(frame), device=device) - (before - counts)[frame]
    text = (base + before - counts)[frame] + inside
    position = torch.cat((tokens.position + before[tokens.frame], text)).sort().values
    return rows, position, before[-1:] + tokens.extent
