"""What a scout learns from: generated pictures, and the words for what they show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from videoprune.demo import names
from videoprune.demo.training.frames import mixed_stream
from videoprune.encode.ssm import SSM as Prune
from videoprune.errors import UsageError
from videoprune.models.host import Host
from videoprune.trained import Lesson

STREAM = 40  # moments drawn at one place
SEED, HELD_SEED = 40_000_000, 41_000_000  # of places trained on and held out; no film is drawn from them
HELD_STREAMS = 15
SHOWN = 0.3  # cover of a cell from which a word counts as shown
POSITIVE = 4.0  # weight of words that are shown: most are not
PRUNED_FROM, PRUNED = 0.4, 0.5  # from this share of the training on, this share of the steps is pruned
SLOW = 0.02  # of the running mean
GROUPS = {
    "place": names.PLACES,
    "shape": names.SHAPES,
    "colour": names.COLOURS,
    "direction": names.DIRECTIONS,
    "item": names.ITEMS,
    "anomaly": names.ANOMALIES,
}

Example = tuple[np.ndarray, np.ndarray]  # picture (H, W, 3) uint8, words (W,) bool


def draw(streams: int, first: int, tell: Callable[..., Any] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (streams * 40, H, W, 3) uint8, and which words each shows, (streams * 40, concepts) bool."""
    images, words = [], []
    for stream in range(streams):
        image, label = mixed_stream(first + stream, STREAM)
        images.append(image)
        words.append(label.max(axis=1) > SHOWN)
        if tell is not None:
            tell("pictures", stream + 1, streams)
    return np.concatenate(images), np.concatenate(words)


class Concepts(Lesson):
    """Pictures and their words, `films` places of 40 pictures each; half of the later steps under `encode.ssm`."""

    def __init__(
        self,
        method: Any,
        host: Host,
        data: str | Path,
        *,
        films: int,
        seed: int = 0,
        tell: Callable[..., Any] | None = None,
    ) -> None:
        if str(data) != "demo":
            raise UsageError(
                f"--data {data}: a scout learns from words for whole pictures, which are known for generated ones: allowed is "
                "demo. For real films give an official PlainMamba checkpoint as scout.weights"
            )
        self.method, self.host = method, host
        self.images, self.words = draw(films, SEED + 100_000 * seed, tell)
        self.prune = Prune(keep=0.5)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        return self.images[index], self.words[index]

    def loss(self, part: nn.Module, examples: Sequence[Example], progress: float) -> dict[str, Tensor]:
        """Cross-entropy of every word, and the share of shown words that are found."""
        eye: Any = part
        pixels = self.method.pixels_of(eye, np.stack([image for image, _ in examples]))
        shown = torch.from_numpy(np.stack([words for _, words in examples])).float().to(pixels.device)
        pruned = progress >= PRUNED_FROM and bool(torch.rand(()) < PRUNED)
        features, _ = eye(pixels, (self.prune,) if pruned else ())
        with torch.no_grad():
            eye.centre.lerp_(features.mean(dim=0), SLOW)
        logits = eye.words(features)[:, : shown.shape[1]]
        each = nn.functional.binary_cross_entropy_with_logits(logits, shown, reduction="none")
        weight = 1 + (POSITIVE - 1) * shown
        found = ((logits > 0) & (shown > 0)).sum() / shown.sum().clamp(min=1)
        return {"loss": (each * weight).sum() / len(examples), "found": found.detach()}

    @torch.no_grad()
    def held_out(self, part: nn.Module) -> dict[str, float]:
        """Accuracy by group of words on pictures of other places, of those that show one of the group; unpruned, and pruned."""
        eye: Any = part
        images, words = draw(HELD_STREAMS, HELD_SEED)
        found = {"pictures": float(len(images))}
        for label, prune in (("", ()), ("_pruned", (self.prune,))):
            logits = torch.cat(
                [
                    eye.words(eye(self.method.pixels_of(eye, images[start : start + 100]), prune)[0])
                    for start in range(0, len(images), 100)
                ]
            ).cpu()
            for group, members in GROUPS.items():
                span = [names.CONCEPTS.index(word) for word in members]
                shows = torch.from_numpy(words[:, span].any(axis=1))
                right = logits[shows][:, span].argmax(dim=1) == torch.from_numpy(words[:, span]).int()[shows].argmax(
                    dim=1
                )
                found[group + label] = float(right.float().mean())
        return found
