"""What prefill methods share that learn a gate on each visual token.

In training nothing is removed: `gate` gives a number in [0, 1] for every token, by which later layers attend to it
(`videoprune.models.masked`). In use the same part chooses what is removed.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from videoprune.checks import check_points, scale_layers
from videoprune.errors import UsageError
from videoprune.layer_method import PrefillMethod, PrefillView
from videoprune.trained import Trained


@dataclass(eq=False)
class Gates:
    """What was decided at one pruning point in training.

    Attributes:
        gate: (V,) in [0, 1], earlier points multiplied in.
        count: scalar, what the losses take for the tokens that are left.
        figures: what else is logged.
    """

    gate: Tensor
    count: Tensor
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class GatedPrefill(Trained, PrefillMethod):
    """A method with learned gates at some layers.

    Args:
        layers: pruning points; tokens leave before these layers of `paper_depth`, ascending; scaled, the first never
            before layer 1.
        paper_depth: depth that `layers` are given for.
    """

    lesson: ClassVar[str] = "videoprune.training.answers:Answers"

    layers: Sequence[int] = (8, 16, 24)
    paper_depth: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "layers", check_points(self.layers, self.paper_depth))

    def points(self, layers: int) -> tuple[int, ...]:
        """The layers of a decoder of `layers` after which tokens leave.

        Raises:
            UsageError: two of them collide.
        """
        scaled = scale_layers(self.layers, self.paper_depth, layers)
        scaled = (max(1, scaled[0]), *scaled[1:])
        if len(set(scaled)) < len(scaled):
            raise UsageError(
                f"layers: {list(self.layers)} of {self.paper_depth} become {list(scaled)} of this model's {layers}; "
                "give later `layers`, or fewer"
            )
        return tuple(layer - 1 for layer in scaled)

    @abstractmethod
    def gates(self, part: nn.Module, view: PrefillView, point: int, progress: float) -> Gates:
        """What training decides at a point; `progress` runs from 0 to 1 over the training."""

    @abstractmethod
    def penalties(self, decided: Sequence[Sequence[Gates]], total: Sequence[int]) -> dict[str, Tensor]:
        """Weighted losses beside the answer's, over the examples of a step: for each what was decided at every point, and
        the visual tokens that it began with."""

    def structure(self) -> dict[str, Any]:
        return {"layers": list(self.layers), "paper_depth": self.paper_depth}


def alive(view: PrefillView) -> Tensor:
    """(V,) float32: how much of each visual token is still there; all of it where tokens really leave."""
    return torch.ones(len(view.visual), device=view.visual.device) if view.gate is None else view.gate
