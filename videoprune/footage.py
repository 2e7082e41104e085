"""Made-up films of numbers, for rehearsals: one that stands still, one of scenes, one where nothing repeats."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SCENE = 8  # frames of a made-up scene


class Footage:
    """A made-up film: called with frame numbers (F,), it gives (F, *shape)."""

    def __init__(self, film: str, shape: tuple[int, ...], generator: torch.Generator) -> None:
        self.film, self.shape, self.generator = film, shape, generator
        self.first = torch.randn(1, *shape, generator=generator)

    def __call__(self, number: np.ndarray) -> Tensor:
        if self.film == "still":
            return self.first.repeat(len(number), *[1] * len(self.shape))
        fresh = torch.randn(len(number), *self.shape, generator=self.generator)
        if self.film == "noise":
            return fresh
        scenes = {
            scene: torch.randn(self.shape, generator=torch.Generator().manual_seed(scene))
            for scene in {int(each) // SCENE for each in number}
        }
        return torch.stack([scenes[int(each) // SCENE] for each in number]) + 0.3 * fresh
