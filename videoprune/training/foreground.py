"""What a token classifier learns from: pictures and where their objects are, from generated scenes or COCO annotations.

A folder holds pictures and one JSON file in COCO's layout: `images` with id and file_name, `annotations` with image_id and
`segmentation` (polygons) or `bbox` (left, top, width, height).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, UnidentifiedImageError
from torch import Tensor, nn

from videoprune.encode._classifier import token_labels, token_loss
from videoprune.errors import UsageError
from videoprune.models.host import Host
from videoprune.trained import HostFacts, Lesson

HELD_STREAMS = 20  # generated places that are held out, 800 pictures
HELD_EVERY = 10  # of a folder's pictures one is held out
FILM = 64  # frames of the film whose picture size is trained, on hosts where that follows the film
BOX_SHARE = 0.25  # of a patch that a box must cover: its corners are not the object

# picture (H, W, 3) uint8, foreground (H, W) bool, and the share of a patch that must be foreground for it to count
Example = tuple[np.ndarray, np.ndarray, float]


class Foreground(Lesson):
    """Pictures preprocessed as the host's, and the patches of them that show an object.

    Generated scenes come with exact masks, `films` places of 40 pictures each. A patch is foreground where a mask touches it;
    where only boxes are known, where they cover a quarter of it.
    """

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
        self.method, self.host, self.patch = method, host, HostFacts.of(host).patch
        examples: Sequence[Example]
        held: Sequence[Example]
        if str(data) == "demo":
            from videoprune.demo.training.foreground import HELD_OUT

            examples, held = Drawn(films, seed * 100_000), Drawn(HELD_STREAMS, HELD_OUT)
        else:
            folder = Annotated(Path(data))
            examples = [folder[number] for number in range(len(folder)) if (number + 1) % HELD_EVERY]
            held = [folder[number] for number in range(len(folder)) if not (number + 1) % HELD_EVERY]
            if not held:
                raise UsageError(f"--data {data}: has {len(folder)} pictures; allowed are {HELD_EVERY} and more")
        self.examples, self.held = examples, held

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]

    def loss(self, part: nn.Module, examples: Sequence[Example], progress: float) -> dict[str, Tensor]:
        """Weighted cross-entropy of every token (see `token_loss`), and the share of tokens that are labelled right."""
        losses, right, count = [], [], 0
        for pixels, labels in self.batches(examples):
            logits = part(pixels).float()
            losses.append(token_loss(logits, labels) * (len(pixels) / len(examples)))
            right.append((logits.detach().argmax(dim=-1).bool() == labels).sum())
            count += labels.numel()
        return {"loss": torch.stack(losses).sum(), "accuracy": torch.stack(right).sum() / count}

    @torch.no_grad()
    def held_out(self, part: nn.Module) -> dict[str, float]:
        """Accuracy of tokens, recall and precision of the foreground, and of how many tokens and pictures."""
        hit = found = shown = right = tokens = 0
        for start in range(0, len(self.held), 100):
            rows = range(start, min(start + 100, len(self.held)))
            for pixels, labels in self.batches([self.held[number] for number in rows]):
                said = part(pixels).argmax(dim=-1).bool()
                hit, found, shown = hit + int((said & labels).sum()), found + int(said.sum()), shown + int(labels.sum())
                right, tokens = right + int((said == labels).sum()), tokens + labels.numel()
        return {
            "accuracy": right / tokens,
            "recall": hit / max(1, shown),
            "precision": hit / max(1, found),
            "foreground": shown / tokens,
            "dropped": 1 - found / tokens,
            "tokens": tokens,
            "pictures": len(self.held),
        }

    def batches(self, examples: Sequence[Example]) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels (F, 3, H, W) and labels (F, rows, columns) bool on the host's device, those of one size and rule together."""
        groups: dict[tuple[Any, ...], list[Example]] = {}
        for example in examples:
            groups.setdefault((example[0].shape, example[2]), []).append(example)
        for (_, share), group in groups.items():
            pixels = self._pixels(np.stack([picture for picture, _, _ in group]))
            masks = self._masks(np.stack([mask for _, mask, _ in group]))
            yield pixels.to(self.host.device), token_labels(masks, self.patch, share).to(self.host.device)

    def _pixels(self, images: np.ndarray, preprocess: Any = None) -> Tensor:
        preprocess = preprocess or self.host.preprocess
        if not self.host.any_shape:
            pixels: Tensor = preprocess(images)
            return pixels
        return torch.cat([preprocess(image[None], FILM)[:1] for image in images])  # one by one: it fills up pairs

    def _masks(self, masks: np.ndarray) -> Tensor:
        """(F, H, W) bool taken through the geometry of the pixels."""
        plain = replace(
            self.host.preprocess, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), resample=int(Image.Resampling.NEAREST)
        )
        pictures = np.repeat(masks[..., None].astype(np.uint8) * 255, 3, axis=3)
        return self._pixels(pictures, plain)[:, 0] > 0.5


class Drawn(Sequence[Example]):
    """Generated scenes: `streams` places, 40 pictures each; a stream is the same for the same seed."""

    def __init__(self, streams: int, first: int) -> None:
        from videoprune.demo.training.foreground import draw_pool

        self.images, masks = draw_pool(streams, first)
        self.side = masks.shape[1:]
        self.masks = np.packbits(masks.reshape(len(masks), -1), axis=1)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        mask = np.unpackbits(self.masks[index], count=self.side[0] * self.side[1]).astype(bool)
        return self.images[index], mask.reshape(self.side), 0.0


class Annotated(Sequence[Example]):
    """Pictures of a folder with one COCO file.

    Raises:
        UsageError: no such folder, no or several JSON files, one of another layout, a picture that is missing.
    """

    def __init__(self, folder: Path) -> None:
        files = sorted(folder.glob("*.json")) if folder.is_dir() else []
        if len(files) != 1:
            raise UsageError(
                f"--data {folder}: holds {len(files)} JSON files; allowed is 'demo', or a folder with pictures and one "
                "JSON file of COCO annotations"
            )
        try:
            raw = json.loads(files[0].read_text(encoding="utf-8"))
            self.files = [(image["id"], folder / str(image["file_name"])) for image in raw["images"]]
            self.found: dict[Any, list[Any]] = {key: [] for key, _ in self.files}
            for entry in raw["annotations"]:
                self.found[entry["image_id"]].append(_outline(entry))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"--data {files[0]}: is no file of COCO annotations ({type(error).__name__}: {error}); allowed are `images` "
                "with id and file_name, and `annotations` with image_id and segmentation or bbox"
            ) from None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Any) -> Any:
        key, path = self.files[index]
        try:
            with Image.open(path) as opened:
                picture = np.asarray(opened.convert("RGB"))
        except (OSError, UnidentifiedImageError) as error:
            raise UsageError(
                f"--data: {path} can't be read ({error}); give the pictures that the JSON file names"
            ) from None
        canvas = Image.new("1", (picture.shape[1], picture.shape[0]))
        pen = ImageDraw.Draw(canvas)
        boxed = False
        for polygons, box in self.found[key]:
            for polygon in polygons:
                pen.polygon(polygon, fill=1)
            if not polygons:
                left, top, width, height = box
                boxed = True
                pen.rectangle([left, top, left + width - 1, top + height - 1], fill=1)
        return picture, np.asarray(canvas), BOX_SHARE if boxed else 0.0


def _outline(entry: dict[str, Any]) -> tuple[list[list[float]], list[float]]:
    """Polygons of an annotation, none where it has run lengths or nothing, and its box."""
    raw = entry.get("segmentation")
    polygons = [[float(value) for value in one] for one in raw] if isinstance(raw, list) else []
    box = [float(value) for value in entry["bbox"]] if not polygons else []
    if any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons) or (not polygons and len(box) != 4):
        raise ValueError("a polygon has three corners or more, a bbox four numbers")
    return polygons, box
