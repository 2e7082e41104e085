"""transformers' YOLOS and DETR with fewer tokens: cells of the picture are dropped before the first encoder layer.

The stock model is used as it is: its embeddings, its layers, its heads; nothing on it is replaced. What is dropped is not
there for any layer, survivors keep their own positions, detection tokens and queries are never dropped. Pictures that keep
equally many cells run as one batch, never padded and never masked.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from videoprune.errors import UsageError
from videoprune.models.preprocess import square_side
from videoprune.trained import HostFacts

Choose = Callable[[Tensor, tuple[int, int]], Tensor]  # pixels (B, 3, H, W) and grid -> (B, rows * columns) bool


@dataclass(eq=False)
class Detections:
    """What a detector found in B pictures with Q queries.

    Attributes:
        logits: (B, Q, classes + 1), the last is "nothing".
        boxes: (B, Q, 4) centre x, centre y, width, height as shares of the picture.
        kept: (B, N) bool, the cells that went through the encoder.
    """

    logits: Tensor
    boxes: Tensor
    kept: Tensor


class PrunedDetector(nn.Module):
    """A stock detector behind a choice of cells.

    Args:
        detector: of transformers.
        choose: which cells of each picture go on; None keeps all. At least one of each picture has to stay.
    """

    def __init__(self, detector: Any, choose: Choose | None = None) -> None:
        super().__init__()
        self.detector, self.choose = detector, choose

    def forward(self, pixels: Tensor) -> Detections:
        """Pictures of one size, normalised as the model's: (B, 3, H, W)."""
        state, grid = self._begin(pixels)
        cells = grid[0] * grid[1]
        if self.choose is None:
            kept = torch.ones(len(pixels), cells, dtype=torch.bool, device=pixels.device)
        else:
            kept = self.choose(pixels, grid)
        counts = kept.sum(dim=1)
        if not bool(counts.all()):
            raise UsageError("a picture keeps no cell; a detector needs one at least")
        found: Tensor | None = None
        for count in counts.unique().tolist():
            chosen = (counts == count).nonzero()[:, 0]
            index = kept[chosen].nonzero()[:, 1].view(len(chosen), count)
            rows = self._run(state, chosen, index)
            if found is None:
                found = rows.new_zeros(len(pixels), *rows.shape[1:])
            found = found.index_copy(0, chosen, rows)
        logits = self.detector.class_labels_classifier(found)
        return Detections(logits, self.detector.bbox_predictor(found).sigmoid(), kept)

    def loss(self, found: Detections, labels: list[dict[str, Tensor]]) -> Tensor:
        """The stock loss; `labels` as the stock model takes them: class_labels (n,) and boxes (n, 4) of each picture."""
        detector = self.detector
        loss, _, _ = detector.loss_function(found.logits, labels, detector.device, found.boxes, detector.config)
        return loss

    @abstractmethod
    def _begin(self, pixels: Tensor) -> tuple[Any, tuple[int, int]]:
        """Whatever `_run` needs of the pictures, and the grid (rows, columns) of their cells."""

    @abstractmethod
    def _run(self, state: Any, chosen: Tensor, index: Tensor) -> Tensor:
        """Pictures `chosen` (b,) with their cells `index` (b, n) alone -> (b, Q, D) what the heads read."""


class PrunedYolos(PrunedDetector):
    """YolosForObjectDetection."""

    def _begin(self, pixels: Tensor) -> tuple[Any, tuple[int, int]]:
        vit, size = self.detector.vit, tuple(pixels.shape[2:])
        middle = vit.encoder.interpolation
        patch = vit.embeddings.patch_embeddings.patch_size
        state = vit.embeddings(pixels), None if middle is None else middle(size)
        return state, (size[0] // patch[0], size[1] // patch[1])

    def _run(self, state: Any, chosen: Tensor, index: Tensor) -> Tensor:
        embedded, middle = state
        vit, queries = self.detector.vit, self.detector.config.num_detection_tokens
        last = torch.arange(embedded.shape[1] - queries, embedded.shape[1], device=index.device)
        first = index.new_zeros(len(index), 1)  # [CLS]
        place = torch.cat((first, index + 1, last.expand(len(index), -1)), dim=1)
        hidden = embedded[chosen[:, None], place]
        for number, layer in enumerate(vit.encoder.layer):
            hidden = layer(hidden)
            if middle is not None and number < len(vit.encoder.layer) - 1:
                hidden = hidden + middle[number][0, place]
        out: Tensor = vit.layernorm(hidden)[:, -queries:]
        return out


class PrunedDetr(PrunedDetector):
    """DetrForObjectDetection: cells of the backbone's last map leave before the transformer's encoder."""

    def _begin(self, pixels: Tensor) -> tuple[Any, tuple[int, int]]:
        model = self.detector.model
        ones = torch.ones(len(pixels), *pixels.shape[2:], device=pixels.device)
        features, mask = model.backbone(pixels, ones)[-1]
        place = model.position_embedding(shape=features.shape, device=pixels.device, dtype=pixels.dtype, mask=mask)
        place = place.flatten(2).transpose(1, 2).expand(len(pixels), -1, -1)
        return (model.input_projection(features).flatten(2).transpose(1, 2), place), tuple(features.shape[2:])

    def _run(self, state: Any, chosen: Tensor, index: Tensor) -> Tensor:
        model = self.detector.model
        features, place = (rows[chosen[:, None], index] for rows in state)
        encoded = model.encoder(inputs_embeds=features, spatial_position_embeddings=place).last_hidden_state
        queries = model.query_position_embeddings.weight.expand(len(chosen), -1, -1)
        decoded = model.decoder(
            inputs_embeds=torch.zeros_like(queries),
            spatial_position_embeddings=place,
            object_queries_position_embeddings=queries,
            encoder_hidden_states=encoded,
        )
        out: Tensor = decoded.last_hidden_state
        return out


def detector_facts(family: str, patch: int, side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> HostFacts:
    """What a part that looks at pixels alone has to know of a detector, in the place of a host's facts.

    Args:
        patch: side of a classified patch in pixels, for DETR the stride of its last map or less.
        side: of a picture in pixels, 0 where pictures differ.
        mean, std: normalisation.
    """
    return HostFacts(family, 0, 0, 0, 0, 0, 0, 0, (0, 0), patch=square_side(patch), side=side, mean=mean, std=std)
