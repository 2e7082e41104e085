"""Generated pictures with several objects and their boxes, and box AP on them by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from videoprune.demo import names, scenes
from videoprune.demo.masks import body_mask, box_of
from videoprune.models.preprocess import CLIP_MEAN, CLIP_STD, Preprocess

MOST_OBJECTS = 3
OVERLAP = 0.15  # of two boxes, at most; what lies on top hides what is below
TRIES = 20
HELD_OUT = 1_000_000  # seeds from here on are never trained on


@dataclass(frozen=True, eq=False)
class Picture:
    """image (SIZE, SIZE, 3) uint8; boxes (n, 4) left, top, right, bottom in pixels; classes (n,), an index of `names.SHAPES`;
    mask (SIZE, SIZE) bool of all objects, without the streaks behind them."""

    image: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    mask: np.ndarray


def draw_pictures(count: int, first: int, per_place: int = 16) -> list[Picture]:
    """`count` pictures with one to three objects each, seeds from `first` on."""
    drawn: list[Picture] = []
    seed = first
    while len(drawn) < count:
        rng = np.random.default_rng((seed, 6))
        place = scenes.draw_place(names.PLACES[seed % len(names.PLACES)], rng)
        drawn += [draw_picture(place, rng) for _ in range(min(per_place, count - len(drawn)))]
        seed += 1
    return drawn


def draw_picture(place: np.ndarray, rng: np.random.Generator) -> Picture:
    """One picture at a place."""
    image, _ = scenes.draw_frame(place, rng, (int(rng.integers(-3, 4)), int(rng.integers(-3, 4))))
    canvas = image.astype(np.float32)
    mask = np.zeros((scenes.SIZE, scenes.SIZE), bool)
    boxes: list[tuple[int, int, int, int]] = []
    classes: list[int] = []
    for _ in range(int(rng.integers(1, MOST_OBJECTS + 1))):
        kind = int(rng.integers(len(names.SHAPES)))
        colour, direction = str(rng.choice(names.COLOURS)), str(rng.choice(names.DIRECTIONS))
        sprite = scenes.actor_sprite(names.SHAPES[kind], colour, direction, int(rng.choice(scenes.RADII)))
        for _ in range(TRIES):
            x, y = rng.uniform(10, scenes.SIZE - 10, 2)
            body = body_mask(sprite, x, y, body=True)
            box = box_of(body)
            if box is not None and all(iou(box, other) <= OVERLAP for other in boxes):
                scenes.paste(canvas, sprite, x, y)
                mask |= body
                boxes.append(box)
                classes.append(kind)
                break
    picture = np.clip(canvas, 0, 255).astype(np.uint8)
    return Picture(picture, np.array(boxes, np.float64).reshape(-1, 4), np.array(classes), mask)


def iou(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    """Intersection over union of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    inside = max(0, width) * max(0, height)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return inside / (areas - inside)


def pixels_of(pictures: Sequence[Picture]) -> Tensor:
    """(F, 3, SIZE, SIZE) normalised as the demo model's."""
    return Preprocess(scenes.SIZE, CLIP_MEAN, CLIP_STD)(np.stack([picture.image for picture in pictures]))


def labels_of(pictures: Sequence[Picture]) -> list[dict[str, Tensor]]:
    """What transformers' detectors are trained on: class_labels (n,), boxes (n, 4) centre and size as shares."""
    found = []
    for picture in pictures:
        corners = torch.from_numpy(picture.boxes).float() / scenes.SIZE
        middle, size = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
        found.append({"class_labels": torch.from_numpy(picture.classes), "boxes": torch.cat((middle, size), dim=1)})
    return found


def average_precision(pictures: Sequence[Picture], logits: Tensor, boxes: Tensor) -> dict[str, float]:
    """COCO's AP over IoU 0.5 to 0.95 and AP at 0.5, every query with its best class.

    Args:
        logits: (F, Q, classes + 1). boxes: (F, Q, 4) centre and size as shares.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO()
    annotations = []
    for number, picture in enumerate(pictures):
        for (left, top, right, bottom), kind in zip(picture.boxes.tolist(), picture.classes.tolist(), strict=True):
            box = [left, top, right - left, bottom - top]
            common = {"id": len(annotations) + 1, "image_id": number, "category_id": kind, "bbox": box}
            annotations.append({**common, "area": box[2] * box[3], "iscrowd": 0})
    truth.dataset = {
        "images": [{"id": number} for number in range(len(pictures))],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in enumerate(names.SHAPES)],
    }
    score, kind = logits.softmax(dim=-1)[..., :-1].max(dim=-1)
    corner = (boxes[..., :2] - boxes[..., 2:] / 2) * scenes.SIZE
    found = [
        {"image_id": number, "category_id": c, "bbox": [*at, *size], "score": s}
        for number in range(len(pictures))
        for at, size, c, s in zip(
            corner[number].tolist(), (boxes[number, :, 2:] * scenes.SIZE).tolist(), kind[number].tolist(),
            score[number].tolist(), strict=True,
        )
    ]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {"AP": float(evaluation.stats[0]), "AP50": float(evaluation.stats[1])}
