"""Frames to patches as the Qwen-VL video processors make them: smart resize, normalisation, pairs of frames, 2x2 order.

Without torchvision; pictures are resized by PIL. The rules are those of transformers' Qwen2VLVideoProcessor and
Qwen3VLVideoProcessor with `cap_pixels_per_frame`, which is what the authors' qwen-vl-utils does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from videoprune.errors import FilmError

LARGEST_RATIO = 200  # of the sides of a picture, in the authors' code
FLOOR = 1.05  # a capped frame still gets a little more than the least


def smart_resize(height: int, width: int, factor: int, least: int, most: int, frames: float = 1) -> tuple[int, int]:
    """Sides that are multiples of `factor`, near the picture's ratio, with `least` to `most` pixels.

    Args:
        frames: with Qwen3-VL the limits are for all frames together.

    Raises:
        FilmError: sides whose ratio passes 200.
    """
    if max(height, width) > LARGEST_RATIO * min(height, width):
        raise FilmError(
            f"pictures of {width}x{height} pixels are given; this model takes sides up to {LARGEST_RATIO} to 1: crop the film"
        )
    rounded = 2 * round(frames / 2) if frames > 1 else 1
    high, wide = round(height / factor) * factor, round(width / factor) * factor
    if rounded * high * wide > most:
        shrink = math.sqrt(frames * height * width / most)
        high = max(factor, math.floor(height / shrink / factor) * factor)
        wide = max(factor, math.floor(width / shrink / factor) * factor)
    elif rounded * high * wide < least:
        grow = math.sqrt(least / (frames * height * width))
        high = math.ceil(height * grow / factor) * factor
        wide = math.ceil(width * grow / factor) * factor
    return high, wide


def patchify(pixels: Tensor, patch: int, merge: int, pair: int) -> Tensor:
    """(F, 3, H, W) -> (F/pair * N, 3*pair*patch*patch): step by step, unit by unit in raster order, a unit's patches together."""
    frames, channels, high, wide = pixels.shape
    rows, columns = high // (merge * patch), wide // (merge * patch)
    cut = pixels.view(frames // pair, pair, channels, rows, merge, patch, columns, merge, patch)
    return cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(-1, channels * pair * patch * patch)


@dataclass(frozen=True)
class PatchPreprocess:
    """How frames become pixels that can be cut into patches.

    Attributes:
        patch, merge, pair: side of a patch in pixels, patches along a unit's side, frames in a temporal step.
        mean, std: of the normalisation, for pixels scaled to 0..1.
        least, most: pixels of a frame (Qwen2-VL, Qwen2.5-VL), or of the whole film (Qwen3-VL, `together`).
        frame_tokens: Qwen3-VL's cap of one frame, in units.
        film_tokens: the whole film's, of which nine tenths are its budget: what the language model was trained for.
        together: whether the limits are for all frames together.
    """

    patch: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    least: int
    most: int
    merge: int = 2
    pair: int = 2
    frame_tokens: int = 768
    film_tokens: int = 128000
    together: bool = False
    resample: int = int(Image.Resampling.BICUBIC)

    @property
    def factor(self) -> int:
        """Pixels along a unit's side."""
        return self.patch * self.merge

    def size(self, height: int, width: int, frames: int) -> tuple[int, int]:
        """Height and width that each of a film's `frames` sampled frames is resized to."""
        frames, unit = max(frames, self.pair), self.factor**2
        if self.together:
            if min(height, width) < self.factor:
                grow = max(self.factor / height, self.factor / width)
                height, width = int(height * grow), int(width * grow)
            each = max(min(self.frame_tokens * unit, self.most // frames), int(self.least * FLOOR))
            return smart_resize(height, width, self.factor, self.least, each * frames, frames)
        share = int(self.film_tokens * unit * 0.9) * self.pair // frames
        return smart_resize(height, width, self.factor, self.least, max(min(self.most, share), int(self.least * FLOOR)))

    def grid(self, height: int, width: int, frames: int) -> tuple[int, int]:
        """(rows, columns) of language-model tokens a temporal step."""
        high, wide = self.size(height, width, frames)
        return high // self.factor, wide // self.factor

    def __call__(self, images: np.ndarray, frames: int) -> Tensor:
        """(F, H, W, 3) uint8 of a film of `frames` sampled frames -> (F', 3, h, w) float32; an odd frame is repeated."""
        high, wide = self.size(images.shape[1], images.shape[2], frames)
        out = np.empty((len(images) + -len(images) % self.pair, high, wide, 3), dtype=np.uint8)
        for number, image in enumerate(images):
            if image.shape[:2] != (high, wide):
                picture = Image.fromarray(image).resize((wide, high), Image.Resampling(self.resample))
                image = np.asarray(picture)
            out[number] = image
        out[len(images) :] = out[len(images) - 1]
        pixels = torch.from_numpy(out).permute(0, 3, 1, 2).float() / 255.0
        mean, std = torch.tensor(self.mean).view(1, 3, 1, 1), torch.tensor(self.std).view(1, 3, 1, 1)
        return (pixels - mean) / std
