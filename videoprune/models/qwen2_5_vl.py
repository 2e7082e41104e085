"""Qwen2.5-VL: a packed tower with window attention, M-RoPE whose time is in seconds, Qwen2.5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from videoprune.models.qwen_vl import QwenVL


class Qwen25VL(QwenVL):
    """Stock Qwen2_5_VLForConditionalGeneration."""

    family = "qwen2.5-vl"
    accepts = "qwen2_5_vl (Qwen2.5-VL)"
    stock = "Qwen2_5_VLForConditionalGeneration"
    source = (
        "transformers' Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor and Qwen2VLVideoProcessor; 2 frames a "
        "second, at most 768, and the limits of pixels: QwenLM/Qwen2.5-VL, qwen-vl-utils, vision_process.py"
    )

    @classmethod
    def matches(cls, config: Mapping[str, Any]) -> str | None:
        return "model_type is qwen2_5_vl" if config.get("model_type") == "qwen2_5_vl" else None

    def rope_index(self, ids: Tensor, kind: Tensor, grid: Tensor, interval: float) -> Tensor:
        """Time runs `tokens_per_second` positions a second."""
        position, _ = self.model.model.get_rope_index(
            ids[None],
            mm_token_type_ids=kind[None],
            video_grid_thw=grid,
            second_per_grid_ts=torch.tensor([interval], dtype=torch.float64),
        )
        return position[:, 0]
