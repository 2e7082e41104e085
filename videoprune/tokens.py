"""VisualTokens: the one structure that flows through the pipeline, and the ledger that says what became of every token.

Shape letters: F frames, N language-model tokens a frame in a dense run, T rows now, T0 = F*N original tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from videoprune.errors import UsageError

DROPPED = -1
AT_ONCE = 4096  # rows that are summed up at a time: a long film has millions, and a float32 copy of all would be large


@dataclass(frozen=True, eq=False)
class VisualTokens:
    """Visual tokens of one film with their ledger; unbatched and frozen, every change returns a new one.

    `keep` and `merge` are the only ways to make it smaller, so no method has to keep the books itself.

    Attributes:
        features: (T, D) embeddings, in the language model's width.
        frame: (T,) int64, index of the sampled frame.
        cell: (T, 2) int64, row and column on the frame's grid of language-model tokens; (-1, -1) without a place.
        event: (T,) int64, the event of the row's frame, -1 before segmentation.
        seconds: (T,) float64, presentation time of the frame.
        weight: (T,) int64, how many original tokens the row stands for; 0 for added rows (newline, summary).
        owner: (T0,) int64, for every original token (frame-major, raster inside a frame) the row that stands for it,
            or -1 where it was dropped.
        position: (T,) int64, offset of the row in the visual block of the unpruned prompt; on an M-RoPE host (3, T): the
            frame's number in that block, its row and its column. A host turns both into position ids.
        grid: (rows, columns) of language-model tokens in a frame; N = rows * columns.
        frame_seconds: (F,) float64, presentation time of every sampled frame, those without surviving rows included.
        extent: positions that the visual block spans: T0 originally, T once renumbered; with M-RoPE the frames that it
            spans. Text behind it starts there.
        scores: name -> (T, ...) tensors that stages leave for later ones; gathered by `keep`, the survivor's on a merge.
        interval: seconds from a frame to the next as they were asked for, where they are evenly spread; None where unknown.
    """

    features: Tensor
    frame: Tensor
    cell: Tensor
    event: Tensor
    seconds: Tensor
    weight: Tensor
    owner: Tensor
    position: Tensor
    grid: tuple[int, int]
    frame_seconds: Tensor
    extent: int
    scores: Mapping[str, Tensor] = field(default_factory=dict)
    interval: float | None = None

    # ------------------------------------------------------------------ making one

    @classmethod
    def from_frames(
        cls,
        features: Tensor,
        frame_seconds: Tensor,
        grid: tuple[int, int],
        owner: Tensor | None = None,
        scores: Mapping[str, Tensor] | None = None,
        mrope: bool = False,
        interval: float | None = None,
    ) -> VisualTokens:
        """Open the ledger for what a vision tower gave.

        Args:
            features: (T, D); without `owner` T = F*N, frame-major and raster inside a frame.
            frame_seconds: (F,) presentation times.
            grid: (rows, columns) of language-model tokens a frame.
            owner: (F*N,) row of `features` for each original token, -1 where the tower dropped it. A row's own place is
                the first original token in `place` order that it owns unless `scores["place"]` names it, (T,) int64.
            scores: further per-row tensors.
            mrope: positions are frame, row and column instead of offsets.
            interval: seconds between frames, where known.
        """
        frames, per_frame = len(frame_seconds), grid[0] * grid[1]
        device = features.device
        scores = dict(scores or {})
        if owner is None:
            owner = torch.arange(frames * per_frame, device=device)
        place = scores.pop("place", None)
        if place is None:
            place = torch.full((len(features),), frames * per_frame, device=device, dtype=torch.int64)
            alive = owner >= 0
            place.scatter_reduce_(0, owner[alive], torch.arange(len(owner), device=device)[alive], "amin")
        if len(owner) != frames * per_frame:
            raise ValueError(
                f"owner has {len(owner)} entries, {frames} frames of {per_frame} tokens need {frames * per_frame}"
            )
        frame, inside = place // per_frame, place % per_frame
        row, column = inside // grid[1], inside % grid[1]
        tokens = cls(
            features=features,
            frame=frame,
            cell=torch.stack((row, column), dim=1),
            event=torch.full_like(frame, -1),
            seconds=frame_seconds.to(device)[frame],
            weight=torch.bincount(owner[owner >= 0], minlength=len(features)),
            owner=owner,
            position=torch.stack((frame, row, column)) if mrope else place,
            grid=grid,
            frame_seconds=frame_seconds.to(device),
            extent=frames if mrope else frames * per_frame,
            scores=scores,
            interval=interval,
        )
        return tokens.check()

    @classmethod
    def concat(cls, parts: Sequence[VisualTokens]) -> VisualTokens:
        """Join chunks of consecutive frames; frames, owners and positions of later parts are shifted."""
        if not parts:
            raise ValueError("no chunks to join: a film gives at least one frame")
        first, shifted = parts[0], []
        if any(part.grid != first.grid for part in parts):
            raise ValueError(f"chunks of one film have grids {sorted({part.grid for part in parts})}: one is needed")
        rows = frames = extent = 0
        for part in parts:
            # a long film's first part is nearly all of it, and stays as it is
            owner = torch.where(part.owner >= 0, part.owner + rows, part.owner) if rows else part.owner
            position = part.position + extent
            if position.ndim == 2:  # rows and columns are counted inside a frame
                position = torch.cat((position[:1], part.position[1:]))
            shifted.append((part.frame + frames, owner, position))
            rows, frames, extent = rows + len(part), frames + part.frames, extent + part.extent
        shared = set(first.scores).intersection(*(part.scores for part in parts))
        return cls(
            features=torch.cat([part.features for part in parts]),
            frame=torch.cat([s[0] for s in shifted]),
            cell=torch.cat([part.cell for part in parts]),
            event=torch.cat([part.event for part in parts]),
            seconds=torch.cat([part.seconds for part in parts]),
            weight=torch.cat([part.weight for part in parts]),
            owner=torch.cat([s[1] for s in shifted]),
            position=torch.cat([s[2] for s in shifted], dim=-1),
            grid=first.grid,
            frame_seconds=torch.cat([part.frame_seconds for part in parts]),
            extent=extent,
            scores={name: torch.cat([part.scores[name] for part in parts]) for name in sorted(shared)},
            interval=first.interval,
        )

    # ------------------------------------------------------------------ reading it

    def __len__(self) -> int:
        return self.features.shape[0]

    def __repr__(self) -> str:
        return f"VisualTokens({self.count} of {len(self.owner)} tokens, {self.frames} frames, width {self.features.shape[1]})"

    @property
    def frames(self) -> int:
        """F, the sampled frames, those without a surviving row included."""
        return len(self.frame_seconds)

    @property
    def per_frame(self) -> int:
        """N, language-model tokens of a frame in a dense run."""
        return self.grid[0] * self.grid[1]

    @property
    def count(self) -> int:
        """Rows that stand for at least one original token: added rows (newline, summary) are left out."""
        return int((self.weight > 0).sum())

    @property
    def full_grid(self) -> bool:
        """Whether every frame still has its whole grid, one row a cell, in raster order; added rows may stand between."""
        return torch.equal((self.weight > 0).nonzero()[:, 0], self.owner)

    def frame_features(self) -> Tensor:
        """(F, D): mean over a frame's original tokens of the row that stands for each; dropped ones are left out.

        A frame that lost every token takes zeros.
        """
        per_token = torch.arange(len(self.owner), device=self.owner.device) // self.per_frame
        alive = self.owner >= 0
        frame, rows = per_token[alive], self.owner[alive]
        total = torch.zeros(self.frames, self.features.shape[1], dtype=torch.float32, device=self.features.device)
        for part in torch.arange(len(rows), device=rows.device).split(AT_ONCE):
            total.index_add_(0, frame[part], self.features[rows[part]].float())
        return total / torch.bincount(frame, minlength=self.frames).clamp(min=1)[:, None]

    def check(self) -> VisualTokens:
        """Raise where the books do not balance: every original token counted once, or dropped; return self."""
        alive = self.owner[self.owner >= 0]
        if len(alive) and int(alive.max()) >= len(self):
            raise ValueError(f"ledger: owner names row {int(alive.max())} of {len(self)}")
        counted = torch.bincount(alive, minlength=len(self))
        if not torch.equal(counted, self.weight):
            row = int((counted != self.weight).nonzero()[0])
            raise ValueError(
                f"ledger: row {row} has weight {int(self.weight[row])} but owns {int(counted[row])} original tokens"
            )
        return self

    # ------------------------------------------------------------------ making it smaller

    def keep(self, index: Tensor) -> VisualTokens:
        """Keep the rows `index` (K,), ascending; the others are dropped with the original tokens that they own."""
        self._check_rows(index)
        into = torch.full((len(self),), DROPPED, dtype=torch.int64, device=self.features.device)
        into[index] = index
        return self._reduced(into, index, self.features[index])

    def merge(self, into: Tensor, features: Tensor | None = None) -> VisualTokens:
        """Merge rows.

        Args:
            into: (T,) int64; the row that absorbs each row, itself for a survivor, -1 for a dropped one.
            features: (K, D) of the survivors in ascending order; None takes the weight-weighted mean of each group
                (added rows of weight 0 count as 1).
        """
        if into.shape != (len(self),):
            raise ValueError(
                f"merge: `into` has shape {tuple(into.shape)}, one entry for each of {len(self)} rows is needed"
            )
        rows = torch.arange(len(self), device=into.device)
        survivors = (into == rows).nonzero()[:, 0]
        targets = into[into >= 0]
        if not bool((into[targets] == targets).all()):
            raise ValueError("merge: a row is merged into one that does not survive; follow the chain to its survivor")
        if features is None:
            slot = torch.full_like(into, DROPPED)
            slot[survivors] = torch.arange(len(survivors), device=into.device)
            alive = (into >= 0).nonzero()[:, 0]
            share = self.weight.clamp(min=1).to(torch.float32)
            total = torch.zeros(len(survivors), self.features.shape[1], dtype=torch.float32, device=into.device)
            for part in alive.split(AT_ONCE):
                total.index_add_(0, slot[into[part]], self.features[part].float() * share[part, None])
            mass = torch.zeros(len(survivors), dtype=torch.float32, device=into.device).index_add_(
                0, slot[into[alive]], share[alive]
            )
            features = (total / mass[:, None]).to(self.features.dtype)
        if features.shape != (len(survivors), self.features.shape[1]):
            raise ValueError(
                f"merge: features have shape {tuple(features.shape)}; "
                f"{len(survivors)} survivors of width {self.features.shape[1]} need one row each"
            )
        return self._reduced(into, survivors, features)

    def _reduced(self, into: Tensor, survivors: Tensor, features: Tensor) -> VisualTokens:
        slot = torch.full((len(self) + 1,), DROPPED, dtype=torch.int64, device=into.device)  # last entry: dropped
        slot[survivors] = torch.arange(len(survivors), device=into.device)
        row_to_slot = slot[torch.cat((into, into.new_tensor([DROPPED])))]  # -1 leads to the last entry in both
        owner = row_to_slot[self.owner]
        row_to_slot = row_to_slot[:-1]
        weight = torch.zeros(len(survivors), dtype=torch.int64, device=into.device)
        alive = row_to_slot >= 0
        weight.index_add_(0, row_to_slot[alive], self.weight[alive])
        return replace(
            self,
            features=features,
            frame=self.frame[survivors],
            cell=self.cell[survivors],
            event=self.event[survivors],
            seconds=self.seconds[survivors],
            weight=weight,
            owner=owner,
            position=self.position[..., survivors],
            scores={name: score[survivors] for name, score in self.scores.items()},
        )

    def _check_rows(self, index: Tensor) -> None:
        if index.ndim != 1 or index.dtype != torch.int64:
            raise ValueError(
                f"keep: index is {index.dtype} of shape {tuple(index.shape)}, int64 of shape (K,) is needed"
            )
        if len(index) and (
            int(index[0]) < 0 or int(index[-1]) >= len(self) or not bool((index[1:] > index[:-1]).all())
        ):
            raise ValueError(f"keep: rows must be ascending, without repeats, inside 0..{len(self) - 1}")

    # ------------------------------------------------------------------ other changes

    def insert(self, after: Tensor, features: Tensor) -> VisualTokens:
        """Add rows of weight 0 (newlines, summaries) behind the rows `after` (R,) ascending; features (R, D).

        An added row takes frame, event, seconds and position of the row that it follows, and has no cell.
        """
        self._check_rows(after)
        added = torch.arange(len(after), device=after.device)
        bump = torch.zeros(len(self) + 1, dtype=torch.int64, device=after.device)
        bump[after + 1] = 1
        moved = torch.arange(len(self), device=after.device) + bump.cumsum(0)[: len(self)]
        order = torch.empty(len(self) + len(after), dtype=torch.int64, device=after.device)
        order[moved] = torch.arange(len(self), device=after.device)
        order[after + added + 1] = after  # gathered as copies of the row before, then corrected below
        fresh = torch.zeros(len(order), dtype=torch.bool, device=after.device)
        fresh[after + added + 1] = True
        new_features = self.features[order]
        new_features[fresh] = features.to(new_features.dtype)
        cell, weight = self.cell[order], self.weight[order]
        cell[fresh], weight[fresh] = -1, 0
        return replace(
            self,
            features=new_features,
            frame=self.frame[order],
            cell=cell,
            event=self.event[order],
            seconds=self.seconds[order],
            weight=weight,
            owner=torch.where(self.owner >= 0, moved[self.owner], DROPPED),
            position=self.position[..., order],
            scores={name: score[order] for name, score in self.scores.items()},
        )

    def with_events(self, frame_event: Tensor) -> VisualTokens:
        """Write the event of each frame, (F,) int64, into the ledger."""
        if frame_event.shape != (self.frames,):
            raise ValueError(f"events of {tuple(frame_event.shape)} frames for a film of {self.frames}")
        return replace(self, event=frame_event.to(self.frame.device)[self.frame])

    def with_scores(self, **scores: Tensor) -> VisualTokens:
        """Leave per-row scores, (T, ...), for later stages."""
        for name, score in scores.items():
            if len(score) != len(self):
                raise ValueError(f"score {name!r} has {len(score)} entries for {len(self)} rows")
        return replace(self, scores={**self.scores, **scores})

    def compacted(self) -> VisualTokens:
        """Renumber positions 0..T-1: the `compact` policy; with M-RoPE the frames that have tokens, rows and columns stay."""
        if self.position.ndim == 2:
            shown, frame = self.position[0].unique(return_inverse=True)
            return replace(self, position=torch.cat((frame[None], self.position[1:])), extent=len(shown))
        return replace(self, position=torch.arange(len(self), device=self.position.device), extent=len(self))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> VisualTokens:
        """Move to a device; `dtype` applies to the features alone."""
        moved = {
            name: getattr(self, name).to(device)
            for name in ("frame", "cell", "event", "seconds", "weight", "owner", "position", "frame_seconds")
        }
        features = self.features.to(device=device, dtype=dtype)
        return replace(self, features=features, scores={k: v.to(device) for k, v in self.scores.items()}, **moved)


def check_share(name: str, value: float | int | None) -> None:
    """Refuse a budget that is no share in (0, 1] and no count.

    Raises:
        UsageError: with what was given, what is allowed and what to do.
    """
    if value is None:
        return
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not value > 0
        or (isinstance(value, float) and value > 1)
    ):
        raise UsageError(
            f"{name}: {value!r} is given; allowed is a share above 0 and up to 1 (0.25) "
            "or a whole count of at least 1; 1 keeps everything"
        )


def budget(total: int, keep: float | int | None, at_most: int | None = None) -> int:
    """Tokens that leave a stage which `total` enter: a share (0, 1] or a count, capped by `at_most`; at least 1.

    `keep: 1` means everything by definition, whether written 1 or 1.0.
    """
    if keep is None or keep == 1:
        count = total
    elif isinstance(keep, int):
        count = min(keep, total)
    else:
        count = int(keep * total + 0.5)
    if at_most is not None:
        count = min(count, at_most)
    return max(min(count, total), min(1, total))
