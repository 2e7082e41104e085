"""What a token classifier learns from: labels of generated scenes and of COCO files, through the host's preprocessing."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from videoprune.errors import UsageError
from videoprune.models.patches import PatchPreprocess
from videoprune.models.preprocess import Preprocess
from videoprune.training import foreground
from videoprune.training.foreground import Annotated, Foreground


def host(preprocess, patch=8):
    """As much of a host as the lesson looks at."""
    return SimpleNamespace(
        preprocess=preprocess,
        any_shape=isinstance(preprocess, PatchPreprocess),
        device=torch.device("cpu"),
        patch=patch,
    )


@pytest.fixture(autouse=True)
def facts(monkeypatch):
    monkeypatch.setattr(foreground.HostFacts, "of", classmethod(lambda cls, host: SimpleNamespace(patch=host.patch)))
    monkeypatch.setattr(foreground, "HELD_STREAMS", 1)


@pytest.fixture
def folder(tmp_path):
    """Ten pictures of 40x24: a polygon in the first, a box in the second, run lengths in the third, nothing in the others."""
    for number in range(10):
        Image.fromarray(np.full((24, 40, 3), 20 * number, np.uint8)).save(tmp_path / f"{number}.png")
    data = {
        "images": [{"id": number, "file_name": f"{number}.png"} for number in range(10)],
        "annotations": [
            {"image_id": 0, "segmentation": [[8, 0, 15, 0, 15, 7, 8, 7]]},
            {"image_id": 1, "bbox": [7, 0, 9, 8]},
            {"image_id": 2, "segmentation": {"counts": [1], "size": [24, 40]}, "bbox": [32, 16, 8, 8]},
        ],
    }
    (tmp_path / "coco.json").write_text(json.dumps(data))
    return tmp_path


class Says(nn.Module):
    """Says foreground where the fixed map does."""

    def __init__(self, found):
        super().__init__()
        self.logits = nn.Parameter(torch.stack((~found, found), dim=-1).float() * 4)

    def forward(self, pixels):
        return self.logits.expand(len(pixels), *self.logits.shape)


def test_polygons_touch_and_boxes_cover(folder):
    lesson = Foreground(None, host(Preprocess(24, fit="crop")), folder, films=1)
    assert (len(lesson), len(lesson.held)) == (9, 1)
    found = {}
    for index in range(3):
        ((pixels, labels),) = lesson.batches([lesson[index]])
        assert pixels.shape == (1, 3, 24, 24)
        found[index] = labels[0].nonzero().tolist()
    # the crop takes columns 8 to 32: the polygon fills the first patch, the box too but for the column that was cut off
    assert found == {0: [[0, 0]], 1: [[0, 0]], 2: []}
    assert lesson[1][2] == foreground.BOX_SHARE
    wide = Foreground(None, host(Preprocess(24, fit="pad")), folder, films=1)
    ((_, labels),) = wide.batches(
        [wide[0]]
    )  # in the middle of a square of 40, scaled by 0.6: pixels 4.8 to 9.6 of both axes
    assert labels[0].nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_a_host_that_takes_any_shape(folder):
    preprocess = PatchPreprocess(patch=4, mean=(0.5,) * 3, std=(0.5,) * 3, least=64, most=4096)
    lesson = Foreground(None, host(preprocess, 4), folder, films=1)
    ((pixels, labels),) = lesson.batches([lesson[0], lesson[3]])
    assert pixels.shape == (2, 3, 24, 40)
    assert labels[0].nonzero().tolist() == [[row, column] for row in (0, 1) for column in (2, 3)]
    assert not labels[1].any()


def test_loss_and_figures(folder):
    lesson = Foreground(None, host(Preprocess(24, fit="crop")), folder, films=1)
    found = torch.zeros(3, 3, dtype=torch.bool)
    found[0, 0] = found[1, 1] = True
    part = Says(found)
    losses = lesson.loss(part, [lesson[index] for index in range(3)], 0.0)
    # picture 0 and 2 share a rule with nothing, 1 and 2 are boxes: three pictures, four of 27 tokens are wrong
    assert losses["accuracy"].item() == pytest.approx(1 - 4 / 27)
    losses["loss"].backward()
    assert float(part.logits.grad.abs().sum()) > 0
    lesson.held = [lesson[0], lesson[1], lesson[2]]
    figures = lesson.held_out(part)
    assert figures == {
        "accuracy": pytest.approx(23 / 27),
        "recall": 1.0,
        "precision": pytest.approx(2 / 6),
        "foreground": pytest.approx(2 / 27),
        "dropped": pytest.approx(21 / 27),
        "tokens": 27,
        "pictures": 3,
    }


def test_generated_scenes_come_with_their_masks():
    lesson = Foreground(None, host(Preprocess(112), 14), "demo", films=1, seed=3)
    again = Foreground(None, host(Preprocess(112), 14), "demo", films=1, seed=3)
    assert len(lesson) == len(lesson.held) == 40
    assert all(np.array_equal(lesson[index][part], again[index][part]) for index in (0, 39) for part in (0, 1))
    assert not np.array_equal(lesson[0][0], lesson.held[0][0])
    share = np.mean([lesson[index][1].mean() for index in range(40)])
    assert 0.02 < share < 0.4
    ((_, labels),) = lesson.batches([lesson[index] for index in range(40)])
    assert labels.shape == (40, 8, 8)
    masks = np.stack([lesson[index][1] for index in range(40)])
    assert np.array_equal(labels.numpy(), masks.reshape(40, 8, 14, 8, 14).any(axis=(2, 4)))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "holds 0 JSON files"),
        ("[1]", "no file of COCO annotations"),
        ("{", "no file of COCO annotations"),
        ('{"images": [], "annotations": [{"image_id": 3, "bbox": [0, 0, 1, 1]}]}', "no file of COCO annotations"),
        (
            '{"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "bbox": [0, 0]}]}',
            "four numbers",
        ),
        ('{"images": [{"id": 1, "file_name": "a.png"}], "annotations": []}', "a.png can't be read"),
        ('{"images": [], "annotations": []}', "has 0 pictures"),
    ],
)
def test_bad_folders(content, says, tmp_path):
    if content is not None:
        (tmp_path / "coco.json").write_text(content)
    with pytest.raises(UsageError, match=says):
        Foreground(None, host(Preprocess(24)), tmp_path, films=1)


def test_nothing_but_pictures_and_annotations_is_read(folder):
    (folder / "more.json").write_text("{}")
    with pytest.raises(UsageError, match="2 JSON files"):
        Annotated(folder)
