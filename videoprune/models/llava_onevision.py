"""LLaVA-OneVision: any per-frame tower, projector, then bilinear halving of the grid, Qwen2; a newline row ends the video.

The demo model is one, with a CLIP tower that has a [CLS].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from videoprune.models.host import QUESTION, Host
from videoprune.models.llava15 import dense


class LlavaOnevision(Host):
    """Stock LlavaOnevisionForConditionalGeneration."""

    family = "llava-onevision"
    accepts = "llava_onevision (LLaVA-OneVision)"
    stock = "LlavaOnevisionForConditionalGeneration"
    source = (
        "transformers' LlavaOnevisionForConditionalGeneration.get_video_features and LlavaOnevisionVideoProcessor; the "
        "checkpoint's chat template; 32 frames: as its authors evaluate it (arXiv 2408.03326)"
    )
    default_recipe: ClassVar[str | Mapping[str, Any]] = dense(frames=32)
    next_turn = f"<|im_end|><|im_start|>user \n{QUESTION}<|im_end|><|im_start|>assistant\n"

    @classmethod
    def matches(cls, config: Mapping[str, Any]) -> str | None:
        return "model_type is llava_onevision" if config.get("model_type") == "llava_onevision" else None

    def token_grid(self) -> tuple[int, int]:
        side = math.ceil(self.patch_side / 2)
        return side, side

    def unit_of_patch(self) -> Tensor:
        """A cell reads the two patch rows around its centre (bilinear); each row belongs to the cell that weighs it most."""
        side, cells = self.patch_side, self.token_grid()[0]
        centre = (torch.arange(cells) + 0.5) * side / cells - 0.5
        weight = (1 - (torch.arange(side)[:, None] - centre[None]).abs()).clamp(min=0)  # (side, cells)
        nearest = torch.argmax(weight, dim=1)
        return (nearest[:, None] * cells + nearest[None, :]).flatten()

    def project(self, hidden: Tensor) -> Tensor:
        return self.model.model.apply_pooling(self.model.model.multi_modal_projector(hidden))

    def newline(self) -> Tensor | None:
        return self.model.model.image_newline

    def template(self) -> tuple[str, str]:
        """From the tokenizer's chat template where it knows videos, else the family's own (Qwen2 chat, one <video>)."""
        own = "<|im_start|>user ", f"\n{QUESTION}<|im_end|><|im_start|>assistant\n"
        return self.chat("video") or own
