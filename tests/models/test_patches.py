"""Frames to patches: the stock image processor where it runs without torchvision, its formulas read again where not."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as stock_resize
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as stock_film_resize

from videoprune.errors import FilmError
from videoprune.models.patches import PatchPreprocess, patchify, smart_resize
from videoprune.models.preprocess import CLIP_MEAN, CLIP_STD, HALF

SIDES = [(60, 90), (360, 640), (1080, 1920), (90, 60), (28, 1400), (17, 23), (448, 448), (391, 1217)]


def by_hand(pixels: np.ndarray, patch: int) -> np.ndarray:
    """Patch by patch from (F, 3, H, W): two frames, then units in raster order, then the patches of a unit."""
    frames, _, high, wide = pixels.shape
    out = []
    for step, unit_row, unit_column, row, column in product(
        range(frames // 2), range(high // patch // 2), range(wide // patch // 2), range(2), range(2)
    ):
        top, left = (2 * unit_row + row) * patch, (2 * unit_column + column) * patch
        both = pixels[2 * step : 2 * step + 2, :, top : top + patch, left : left + patch]
        out.append(both.transpose(1, 0, 2, 3).ravel())
    return np.stack(out)


def test_patches_lie_as_in_the_stock_processor() -> None:
    pixels = np.random.default_rng(0).normal(size=(4, 3, 56, 84)).astype(np.float32)
    np.testing.assert_array_equal(patchify(torch.from_numpy(pixels), 14, 2, 2).numpy(), by_hand(pixels, 14))


@pytest.mark.parametrize(("height", "width"), SIDES)
def test_a_still_film_is_the_stock_processors_image(height: int, width: int) -> None:
    """Which repeats an image for the second frame: the same sides, resizing, normalisation and order."""
    image = np.random.default_rng(1).integers(0, 255, (height, width, 3), dtype=np.uint8)
    least, most = 16 * 784, 64 * 784
    stock = Qwen2VLImageProcessorPil(size={"shortest_edge": least, "longest_edge": most})
    want = stock(images=[Image.fromarray(image)], return_tensors="np")
    mine = PatchPreprocess(14, CLIP_MEAN, CLIP_STD, least, most)
    pixels = mine(np.stack([image, image]), 2)
    patches = patchify(pixels, 14, 2, 2)
    rows, columns = mine.grid(height, width, 2)
    assert want["image_grid_thw"].tolist() == [[1, 2 * rows, 2 * columns]]
    np.testing.assert_allclose(patches.numpy(), want["pixel_values"], atol=1e-5)


@pytest.mark.parametrize(("height", "width"), SIDES)
@pytest.mark.parametrize("frames", [1, 2, 5, 16, 768])
def test_sides_are_the_stock_functions(height: int, width: int, frames: int) -> None:
    least, most = 128 * 784, 768 * 784
    assert smart_resize(height, width, 28, least, most) == stock_resize(height, width, 28, least, most)
    share = int(128000 * 784 * 0.9) * 2 // max(frames, 2)  # Qwen2VLVideoProcessor.resize with cap_pixels_per_frame
    capped = max(min(most, share), int(least * 1.05))
    mine = PatchPreprocess(14, CLIP_MEAN, CLIP_STD, least, most).size(height, width, frames)
    assert mine == stock_resize(height, width, 28, least, capped)

    least, most, count = 4 * 1024, 24576 * 1024, max(frames, 2)
    each = max(
        min(768 * 1024, most // count), int(least * 1.05)
    )  # Qwen3VLVideoProcessor.resize with cap_pixels_per_frame
    want = stock_film_resize(count, height, width, 2, 32, least, each * count)
    film = PatchPreprocess(16, HALF, HALF, least, most, together=True)
    assert film.size(height, width, frames) == want
    assert film.grid(height, width, frames) == (want[0] // 32, want[1] // 32)


def test_a_film_fits_what_the_language_model_was_trained_for() -> None:
    """Qwen2-VL has 32 768 positions: 768 frames of a large film become as small as that needs, and no smaller."""
    made = PatchPreprocess(14, CLIP_MEAN, CLIP_STD, 16 * 784, 768 * 784, film_tokens=32768)
    tokens = {count: math.prod(made.grid(1080, 1920, count)) * (count // 2) for count in (16, 128, 768)}
    assert 0.7 * 0.9 * 32768 < tokens[128] < 0.9 * 32768
    assert 0.7 * 0.9 * 32768 < tokens[768] < 0.9 * 32768
    assert tokens[16] == 8 * math.prod(made.grid(1080, 1920, 2))


def test_an_odd_frame_is_repeated() -> None:
    images = np.random.default_rng(2).integers(0, 255, (3, 60, 90, 3), dtype=np.uint8)
    pixels = PatchPreprocess(14, CLIP_MEAN, CLIP_STD, 4 * 784, 16 * 784)(images, 3)
    assert len(pixels) == 4
    assert torch.equal(pixels[3], pixels[2])
    assert not torch.equal(pixels[1], pixels[2])


def test_a_ribbon_is_refused() -> None:
    with pytest.raises(FilmError, match="200 to 1"):
        smart_resize(10, 2001, 28, 784, 7840)
