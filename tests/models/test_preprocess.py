"""Frames on squares: what the stock image processors give, and each way of fitting by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.models.clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from tests.conftest import Ended
from tests.films import write
from tests.models.hosts import MAKERS
from videoprune.errors import EnvironmentProblem, UsageError
from videoprune.models.load import load_host
from videoprune.models.preprocess import CLIP_MEAN, CLIP_STD, HALF, IMAGENET_MEAN, Preprocess, square_side

SHAPES = [(60, 91), (91, 60), (56, 56), (240, 427), (30, 44)]


@pytest.fixture(params=SHAPES, ids=str)
def images(request: pytest.FixtureRequest) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (2, *request.param, 3), dtype=np.uint8)


def stock(processor: object, images: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(np.stack(processor(list(images))["pixel_values"]))  # type: ignore[operator]


def test_crop_is_clips(images: np.ndarray) -> None:
    processor = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    torch.testing.assert_close(Preprocess(56)(images), stock(processor, images), atol=1e-5, rtol=0)


def test_pad_is_llavas(images: np.ndarray) -> None:
    processor = LlavaImageProcessorPil(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, do_pad=True, image_mean=CLIP_MEAN
    )
    mine = Preprocess.parse({"do_pad": True, "image_processor_type": "LlavaImageProcessorFast"}, 56)
    assert mine.fit == "pad"
    torch.testing.assert_close(mine(images), stock(processor, images), atol=1e-5, rtol=0)


def test_squeeze_is_a_plain_resize(images: np.ndarray) -> None:
    raw = {"size": {"height": 56, "width": 56}, "image_mean": HALF, "image_std": HALF}
    processor = CLIPImageProcessorPil(**raw, do_center_crop=False)
    mine = Preprocess.parse(raw, 56)
    assert mine.fit == "squeeze"
    torch.testing.assert_close(mine(images), stock(processor, images), atol=1e-5, rtol=0)


def test_each_way_keeps_what_it_promises() -> None:
    """A frame twice as wide as high, black, white in its left and right quarter."""
    frame = np.zeros((1, 28, 56, 3), dtype=np.uint8)
    frame[:, :, :14] = frame[:, :, -14:] = 255
    white = {
        fit: Preprocess(28, HALF, HALF, fit, resample=0)(frame)[0].mean(0) > 0.9 for fit in ("crop", "pad", "squeeze")
    }
    assert not white["crop"].any()
    assert white["squeeze"].float().mean() == 0.5
    assert white["pad"].float().mean() == 0.25
    rows = white["pad"].any(dim=1)
    assert rows.nonzero()[[0, -1], 0].tolist() == [7, 20]
    grey = Preprocess(28, HALF, HALF, "pad", resample=0)(frame)[0]
    assert torch.allclose(grey[:, :7], torch.tensor(127 / 255 * 2 - 1), atol=1e-6)


def test_other_towers_are_refused() -> None:
    assert square_side([448, 448]) == square_side(448) == 448
    with pytest.raises(EnvironmentProblem, match="square"):
        square_side([448, 224])


def test_the_checkpoints_processor_decides(tmp_path: Path) -> None:
    """A video processor before the image processor's, in either layout; LLaVA-1.5 reads the image processor's."""
    folder = MAKERS["video-llava"](tmp_path / "video")
    image = {"size": {"shortest_edge": 56}, "image_mean": list(HALF), "image_std": list(HALF), "do_center_crop": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(image))
    assert load_host(folder, device="cpu").preprocess == Preprocess(56, HALF, HALF)
    (folder / "video_preprocessor_config.json").write_text(json.dumps({**image, "image_mean": list(IMAGENET_MEAN)}))
    assert load_host(folder, device="cpu").preprocess.mean == IMAGENET_MEAN
    nested = {"image_processor": image, "video_processor": {"size": {"height": 56, "width": 56}, "resample": 2}}
    (folder / "processor_config.json").write_text(json.dumps(nested))
    host = load_host(folder, device="cpu")
    assert host.preprocess == Preprocess(56, CLIP_MEAN, CLIP_STD, "squeeze", 2)
    fit = next(choice for choice in host.choices if choice["name"] == "frame_fit")
    assert fit == {"name": "frame_fit", "value": "squeeze", "reason": "native: processor_config.json"}
    folder = MAKERS["llava-1.5"](tmp_path / "image")
    (folder / "processor_config.json").write_text(json.dumps(nested))
    assert load_host(folder, device="cpu").preprocess.fit == "crop"


def test_another_fit_is_asked_for_on_the_command_line(tmp_path: Path, videoprune: Callable[..., Ended]) -> None:
    folder, film = MAKERS["longva"](tmp_path / "model"), write(tmp_path / "film.mp4", 50)
    seen = {}
    for fit in ("crop", "pad", "squeeze"):
        told = videoprune("ask", film, "what happens ?", "-m", folder, "--frame-fit", fit, "--json", "--frames", 2)
        assert told.code == 0, told.err
        answer = json.loads(told.out)["answers"][0]
        seen[fit] = str(answer["evidence"])
        chosen = [choice for choice in answer["report"]["choices"] if choice["name"] == "frame_fit"]
        assert [choice["value"] for choice in chosen] == [fit]
        assert ("native" if fit == "crop" else "in place of crop") in chosen[0]["reason"]
    assert len(set(seen.values())) == 3
    told = videoprune("ask", film, "what happens ?", "-m", folder, "--frame-fit", "stretch")
    assert told.code == 2
    with pytest.raises(UsageError, match="crop, pad, squeeze"):
        load_host(folder, frame_fit="stretch")
