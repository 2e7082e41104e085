"""How a frame becomes the pixels of a tower with a fixed square input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from videoprune.errors import EnvironmentProblem, UsageError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
NORMALISATIONS: Mapping[tuple[float, ...], str] = {CLIP_MEAN: "clip", HALF: "siglip", IMAGENET_MEAN: "imagenet"}
FITS = ("crop", "pad", "squeeze")  # ways of fitting a frame that is not square


@dataclass(frozen=True)
class Preprocess:
    """A frame on a square of `size`, scaled to 0..1 and normalised.

    Args:
        size: side of the tower's input.
        mean, std: of the three channels.
        fit: "crop" takes shortest edge to `size` and the centre of the rest; "pad" sets the frame on a square of the mean
            colour and scales that; "squeeze" scales the whole frame to the square, whatever its shape.
        resample: PIL's number of the filter.
    """

    size: int
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    fit: str = "crop"
    resample: int = int(Image.Resampling.BICUBIC)

    def __call__(self, images: np.ndarray) -> Tensor:
        """(F, H, W, 3) uint8 -> (F, 3, size, size) float32."""
        if self.fit == "pad":
            images = padded(images, tuple(int(channel * 255) for channel in self.mean))
        frames, height, width = images.shape[:3]
        wide = high = self.size
        if self.fit == "crop":  # as CLIPImageProcessor rounds
            short = min(height, width)
            wide, high = self.size * width // short, self.size * height // short
        left, top = (wide - self.size) // 2, (high - self.size) // 2
        out = np.empty((frames, self.size, self.size, 3), dtype=np.uint8)
        for number, image in enumerate(images):
            if (width, height) == (wide, high):
                resized = image
            else:
                resized = np.asarray(Image.fromarray(image).resize((wide, high), Image.Resampling(self.resample)))
            out[number] = resized[top : top + self.size, left : left + self.size]
        pixels = torch.from_numpy(out).permute(0, 3, 1, 2).float() / 255.0
        mean, std = torch.tensor(self.mean).view(1, 3, 1, 1), torch.tensor(self.std).view(1, 3, 1, 1)
        return (pixels - mean) / std

    @classmethod
    def parse(cls, raw: Mapping[str, Any], size: int, native: str | None = None) -> Preprocess:
        """From the image (or video) processor's settings of a checkpoint; `native` is a family's own fit."""
        edges = raw.get("size") or {}
        if native is None:
            if raw.get("do_pad") and str(raw.get("image_processor_type", "")).startswith("LlavaImageProcessor"):
                native = "pad"  # elsewhere the key pads batches
            else:
                square = isinstance(edges, dict) and "height" in edges and not raw.get("do_center_crop")
                native = "squeeze" if square else "crop"
        mean, std = raw.get("image_mean") or cls.mean, raw.get("image_std") or cls.std
        resample = raw.get("resample")
        return cls(size, tuple(mean), tuple(std), native, cls.resample if resample is None else int(resample))

    def fitted(self, fit: str) -> Preprocess:
        """The same with another way of fitting frames."""
        return replace(self, fit=fit)


def check_fit(fit: str | None) -> None:
    """Refuse a way of fitting frames that does not exist; None is the checkpoint's own.

    Raises:
        UsageError
    """
    if fit is not None and fit not in FITS:
        raise UsageError(
            f"--frame-fit {fit}: allowed are {', '.join(FITS)}; without it frames are fitted as in training"
        )


def padded(images: np.ndarray, colour: tuple[int, ...]) -> np.ndarray:
    """(F, H, W, 3) uint8 -> (F, S, S, 3): frames in the middle of a square of `colour`, S the longer edge."""
    frames, height, width = images.shape[:3]
    side = max(height, width)
    if height == width:
        return images
    top, left = (side - height) // 2, (side - width) // 2
    out = np.empty((frames, side, side, 3), dtype=np.uint8)
    out[:] = np.asarray(colour, dtype=np.uint8)
    out[:, top : top + height, left : left + width] = images
    return out


def square_side(value: Any) -> int:
    """The side of a tower's square input or patch, which configurations give as a number or as a pair.

    Raises:
        EnvironmentProblem: it is not square.
    """
    if isinstance(value, (list, tuple)):
        if len(set(value)) != 1:
            raise EnvironmentProblem(
                f"a vision tower with input or patches of {list(value)} is not supported; square ones are"
            )
        value = value[0]
    return int(value)
