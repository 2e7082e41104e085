"""CLIP and SigLIP as text-image scorers."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from videoprune.errors import EnvironmentProblem
from videoprune.models.load import read_json, read_preprocess


class ContrastiveModel:
    """Pooled embeddings of frames and of a question."""

    def __init__(self, model: Any, tokenizer: Any, preprocess: Any) -> None:
        self.model, self.tokenizer, self.preprocess = model, tokenizer, preprocess
        self.length = int(model.config.text_config.max_position_embeddings)

    @torch.no_grad()
    def images(self, images: np.ndarray) -> Tensor:
        """(F, H, W, 3) uint8 -> (F, C)."""
        return _pooled(self.model.get_image_features(pixel_values=self.preprocess(images).to(self.model.dtype)))

    @torch.no_grad()
    def text(self, text: str) -> Tensor:
        """(C,) elementwise maximum over the text's chunks."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        room = self.length - 2  # begin and end tokens
        chunks = [self.tokenizer.decode(ids[i : i + room]) for i in range(0, max(len(ids), 1), room)]
        batch = self.tokenizer(
            chunks, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        )
        known = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
        return _pooled(self.model.get_text_features(**known)).amax(dim=0)


def _pooled(out: Any) -> Tensor:
    """transformers returns a tensor or an output object, by version."""
    pooled: Tensor = out if isinstance(out, Tensor) else out.pooler_output
    return pooled


@lru_cache(maxsize=2)
def load_contrastive(model: str) -> ContrastiveModel:
    """Load a CLIP or SigLIP checkpoint; kept, because every chunk and every question needs it."""
    config = read_json(model, "config.json", None)
    if config.get("model_type") not in ("clip", "siglip"):
        raise EnvironmentProblem(
            f"model {model}: model_type {config.get('model_type')!r} is no text-image model; give a CLIP or SigLIP checkpoint"
        )
    try:
        loaded = AutoModel.from_pretrained(model).eval()
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError, RuntimeError) as error:
        raise EnvironmentProblem(f"model {model}: cannot be loaded ({str(error).splitlines()[0][:160]})") from error
    return ContrastiveModel(loaded, tokenizer, read_preprocess(model, None, loaded.config.vision_config, []))
