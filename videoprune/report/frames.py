"""Pictures of sampled frames as the model saw them, read again from the film: a watched film keeps none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from videoprune.models.preprocess import Preprocess
from videoprune.video import Film

if TYPE_CHECKING:
    from videoprune.watched import Video


def seen(video: Video, wanted: Sequence[int]) -> dict[int, np.ndarray]:
    """(H, W, 3) uint8 pictures of the sampled frames `wanted`, by number, cropped as for the vision tower.

    The film is decoded once more, a chunk at a time; only what is wanted is held.

    Raises:
        FilmError: the film is gone or can't be read.
    """
    pipe, left, found, given = video.pipeline, set(wanted), {}, 0
    with Film(video.film, video.rule or pipe.recipe.frames, decoder=pipe.decoder) as film:
        for chunk in film:
            for number in sorted(left & set(range(given, given + len(chunk)))):
                found[number] = _cropped(chunk.images[number - given], pipe.host.preprocess)
            given += len(chunk)
            left -= found.keys()
            if not left:
                break
    return found


def _cropped(image: np.ndarray, preprocess: object) -> np.ndarray:
    """One frame on the tower's square, its colours as they were; whole where the model takes any shape."""
    if not isinstance(preprocess, Preprocess):
        return image
    pixels = preprocess(image[None])[0].permute(1, 2, 0).numpy()
    shown = pixels * np.array(preprocess.std, np.float32) + np.array(preprocess.mean, np.float32)
    return (shown * 255).round().clip(0, 255).astype(np.uint8)
