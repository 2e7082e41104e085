"""What goes into a host and comes out of it: how a film is looked at, an encoded chunk, a prompt."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from videoprune.models.session import VisualBlock
from videoprune.report.flops import Cost
from videoprune.tokens import VisualTokens


@dataclass(eq=False)
class Prompt:
    """A prompt ready for the language model.

    Attributes:
        embeddings: (1, S, D).
        position_ids: (1, S), or (3, 1, S) on an M-RoPE host: time, row and column.
        visual: where the visual tokens stand.
        question: (Q,) ids of the question's tokens.
        dense_rows: rows of the same prompt with nothing pruned.
    """

    embeddings: Tensor
    position_ids: Tensor
    visual: VisualBlock
    question: Tensor
    dense_rows: int


@dataclass(frozen=True)
class Sampling:
    """How a film is looked at, where a chunk alone does not tell.

    Attributes:
        frames: sampled frames of the whole film, as far as its header tells.
        interval: seconds from one to the next, None where they are not evenly spread.
    """

    frames: int
    interval: float | None = None


@dataclass(eq=False)
class Encoded:
    """One encoded chunk: its tokens, what it cost, and patches (+[CLS]) that ran through the tower."""

    tokens: VisualTokens
    cost: Cost = field(default_factory=Cost)
