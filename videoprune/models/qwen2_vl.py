"""Qwen2-VL: a packed tower of its own with 2x2 merging, M-RoPE whose time counts steps, Qwen2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from videoprune.models.qwen_vl import QwenVL


class Qwen2VL(QwenVL):
    """Stock Qwen2VLForConditionalGeneration."""

    family = "qwen2-vl"
    accepts = "qwen2_vl (Qwen2-VL)"
    stock = "Qwen2VLForConditionalGeneration"
    source = (
        "transformers' Qwen2VLForConditionalGeneration, Qwen2VLProcessor and Qwen2VLVideoProcessor; 2 frames a second, at "
        "most 768, and the limits of pixels: QwenLM/Qwen2-VL, qwen-vl-utils, vision_process.py"
    )

    @classmethod
    def matches(cls, config: Mapping[str, Any]) -> str | None:
        return "model_type is qwen2_vl" if config.get("model_type") == "qwen2_vl" else None
