"""A scout at work on one film: window by window, which frames the vision tower sees, and the ledger of those that it does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from videoprune.method import EncodeMethod, ScoutMethod
from videoprune.report.flops import Cost
from videoprune.run import Events
from videoprune.tokens import DROPPED, VisualTokens, budget


@dataclass(frozen=True, eq=False)
class Look:
    """What a scout made of a chunk of F steps.

    Attributes:
        steps: F. features: (F, D) float32, None where it looks at nothing.
        kept: (K,) int64 steps of the chunk that the tower sees, ascending.
        cost: FLOPs.
    """

    steps: int
    features: Tensor | None
    kept: Tensor
    cost: Cost


class Scouting:
    """The scout of one film.

    Args:
        method: the scout. prune: what prunes its tower. pair: sampled frames that are one step.
    """

    def __init__(self, method: ScoutMethod, prune: Sequence[EncodeMethod], pair: int = 1) -> None:
        self.method, self.prune, self.pair = method, prune, pair
        self.steps = self.sent = 0
        self._carried: Any = None

    def look(self, images: np.ndarray) -> Look:
        """See a chunk of frames (F * pair, H, W, 3) uint8, whole windows but for the film's last, and choose."""
        features, flops = self.method.see(images, self.prune, self.steps * self.pair)
        if features is not None:
            features = per_step(features, self.pair)
        return self.choose(features, -(-len(images) // self.pair), Cost(linear=flops))

    def choose(self, features: Tensor | None, steps: int, cost: Cost) -> Look:
        """Choose among `steps` whose features are known."""
        kept = []
        for start in range(0, steps, self.method.window):
            count = min(self.method.window, steps - start)
            allowed = budget(self.steps + count, float(self.method.keep)) - self.sent
            rows = slice(start, start + count)
            seen = None if features is None else features[rows]
            picked, self._carried = self.method.pick(seen, count, max(0, allowed), self.steps, self._carried)
            kept.append(picked + start)
            self.steps, self.sent = self.steps + count, self.sent + len(picked)
        return Look(steps, features, torch.cat(kept), cost)

    def frames(self, look: Look, frames: int) -> Tensor:
        """(K * pair,) the sampled frames of a chunk of `frames` that the tower sees."""
        every = (look.kept[:, None] * self.pair + torch.arange(self.pair)).flatten()
        return every[every < frames]


def per_step(seen: Tensor, pair: int) -> Tensor:
    """(F, C) of sampled frames -> the mean of each `pair`, an odd last one alone: what a frame of the ledger shows."""
    return seen if pair == 1 else torch.stack([part.mean(dim=0) for part in seen.split(pair)])


def kept_steps(looks: Sequence[Look]) -> Tensor | None:
    """(K,) int64 steps of the film that the tower saw, from the looks at its chunks; None without any."""
    starts = accumulate((look.steps for look in looks), initial=0)
    return torch.cat([look.kept + start for look, start in zip(looks, starts, strict=False)]) if looks else None


def seen_events(events: Events, seen: Tensor) -> Events:
    """The events of the frames `seen` (K,) alone, renumbered; an event of which nothing is seen is none."""
    if len(seen) == len(events.frame_event):
        return events
    return Events(
        torch.unique_consecutive(events.frame_event[seen.to(events.frame_event.device)], return_inverse=True)[1]
    )


def all_events(events: Events, seen: Tensor, frames: int) -> Events:
    """Events of all `frames` from those of the frames `seen` (K,): an unseen frame belongs to the event of the last seen one."""
    before = torch.searchsorted(seen, torch.arange(frames), right=True) - 1
    return Events(events.frame_event[before.clamp(min=0).to(events.frame_event.device)])


def in_film(tokens: VisualTokens, seen: Tensor, frame_seconds: Tensor, renumbered: bool) -> VisualTokens:
    """The tokens of the frames `seen` in the ledger of the whole film: what the tower never saw was dropped.

    Args:
        tokens: of K frames. seen: (K,) int64, their numbers among the F of the film, ascending.
        frame_seconds: (F,) of the film's frames.
        renumbered: positions were renumbered already, and stay so.
    """
    seen, frame_seconds = seen.to(tokens.frame.device), frame_seconds.to(tokens.frame.device)
    frames = len(frame_seconds)
    owner = torch.full((frames, tokens.per_frame), DROPPED, dtype=torch.int64, device=seen.device)
    owner[seen] = tokens.owner.view(len(seen), -1)
    extent, position = tokens.extent, tokens.position
    if not renumbered:
        each = extent // max(1, len(seen))
        moved = (seen - torch.arange(len(seen), device=seen.device)) * each
        extent = each * frames
        if position.ndim == 1:
            position = position + moved[tokens.frame]
        else:
            position = torch.cat(((position[0] + moved[tokens.frame])[None], position[1:]))
    return replace(
        tokens,
        frame=seen[tokens.frame],
        owner=owner.flatten(),
        position=position,
        frame_seconds=frame_seconds,
        extent=extent,
    ).check()
