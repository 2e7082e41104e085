"""DPC-KNN events: frames cluster around density peaks, clusters are made contiguous (as in PruneVid, arXiv 2412.16117)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.checks import check_count, check_range
from videoprune.method import SegmentMethod
from videoprune.ops.clustering import dpc_knn
from videoprune.ops.similarity import adjacent_cosine
from videoprune.run import Events


def cluster(features: Tensor, clusters: int, neighbors: int) -> Tensor:
    """(N,) int64 labels of points (N, D) around their density peaks; ties go to the lower index, no noise is added."""
    return dpc_knn(features, clusters, neighbors)[0]


def contiguous(labels: Tensor) -> Tensor:
    """One event a label: its longest run, of equally long ones the first; frames of other runs join the event before.

    Args:
        labels: (F,) int64 in 0..F-1.

    Returns:
        (F,) int64 event of each frame, ascending from 0; frames before the first event join it.
    """
    frames = len(labels)
    starts = torch.ones(frames, dtype=torch.bool, device=labels.device)
    starts[1:] = labels[1:] != labels[:-1]
    run = starts.cumsum(0) - 1
    length = torch.zeros_like(labels).scatter_add_(0, run, torch.ones_like(labels))
    rank = length[run] * frames - run  # longer first, then earlier
    best = torch.full_like(labels, -1).scatter_reduce_(0, labels, rank, "amax")
    return ((starts & (rank == best[labels])).cumsum(0) - 1).clamp(min=0)


@dataclass(frozen=True, kw_only=True)
class DPCKNN(SegmentMethod):
    """Always round-down `share` of the frames, or `events`, found by clustering the frames' mean tokens.

    Args:
        share: events a frame; the paper's 0.25.
        events: how many, instead of a share; a film of fewer frames has an event a frame.
        neighbors: frames that a density is taken over, the frame itself included; the paper's 7.
    """

    paper = "arXiv 2412.16117"
    scope = "video"
    needs_question = False
    fixed_count = True
    attention = "none"
    search = (("share", 0.02, 0.5),)

    share: float = 0.25
    events: int | None = None
    neighbors: int = 7

    def __post_init__(self) -> None:
        check_range("share", self.share, 0, 1, open_low=True)
        if self.events is not None:
            check_count("events", self.events)
        check_count("neighbors", self.neighbors)

    def __call__(self, features: Tensor) -> Events:
        frames = len(features)
        wanted = int(frames * self.share) if self.events is None else self.events
        labels = cluster(features, max(1, min(wanted, frames)), self.neighbors)
        return Events(contiguous(labels), similarity=adjacent_cosine(features))
