"""The pictures and the box AP of the detector benchmark."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

FOLDER = str(Path(__file__).parents[1] / "benchmarks")


@pytest.fixture
def detection(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(FOLDER)
    import detection

    yield detection
    sys.modules.pop("detection", None)


def answers(detection: ModuleType, pictures: list, shift: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Every true box, moved to the right by `shift` of its width, and queries that say "nothing"."""
    logits, boxes = torch.full((len(pictures), 4, 7), -9.0), torch.zeros(len(pictures), 4, 4)
    logits[..., 6] = 9
    for number, label in enumerate(detection.labels_of(pictures)):
        for query, (kind, box) in enumerate(zip(label["class_labels"], label["boxes"], strict=True)):
            logits[number, query, kind], logits[number, query, 6] = 9, -9
            boxes[number, query] = box + torch.tensor([shift, 0, 0, 0]) * box[2]
    return logits, boxes


def test_average_precision(detection: ModuleType) -> None:
    pictures = detection.draw_pictures(24, 0)
    assert detection.average_precision(pictures, *answers(detection, pictures)) == {"AP": 1.0, "AP50": 1.0}
    # a box moved by a quarter of its width has an IoU of 0.75 / 1.25 = 0.6: right at 0.5, 0.55 and (here and there) 0.6
    moved = detection.average_precision(pictures, *answers(detection, pictures, 0.25))
    assert moved["AP50"] == 1.0
    assert 0.2 - 1e-6 <= moved["AP"] <= 0.3 + 1e-6
    logits, boxes = answers(detection, pictures)
    wrong = detection.average_precision(pictures, logits.roll(1, dims=2), boxes)
    assert wrong["AP50"] < 0.2


def test_pictures_are_the_same_for_a_seed_and_boxes_enclose_the_objects(detection: ModuleType) -> None:
    pictures, again = detection.draw_pictures(20, 5), detection.draw_pictures(20, 5)
    for one, other in zip(pictures, again, strict=True):
        assert np.array_equal(one.image, other.image)
        inside = np.zeros_like(one.mask)
        for left, top, right, bottom in one.boxes.astype(int):
            inside[top:bottom, left:right] = True
        assert not (one.mask & ~inside).any()
        assert 1 <= len(one.boxes) == len(one.classes) <= 3
        for number, box in enumerate(one.boxes):
            assert all(detection.iou(box, later) <= 0.15 for later in one.boxes[number + 1 :])
    flags = [label["boxes"] for label in detection.labels_of(pictures)]
    assert all(bool(((box >= 0) & (box <= 1)).all()) for box in flags)
    assert detection.pixels_of(pictures[:2]).shape == (2, 3, 112, 112)
