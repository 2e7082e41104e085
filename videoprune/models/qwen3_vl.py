"""Qwen3-VL: a packed tower with learned positions and deepstack, the time of each step as text before it, Qwen3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from videoprune.models.preprocess import HALF
from videoprune.models.qwen_vl import QwenVL


class Qwen3VL(QwenVL):
    """Stock Qwen3VLForConditionalGeneration.

    The visual block is one step behind another, each between markers of its own and with its time before it, inside the
    markers of the template: that is what transformers' processor writes.
    """

    family = "qwen3-vl"
    accepts = "qwen3_vl (Qwen3-VL)"
    stock = "Qwen3VLForConditionalGeneration"
    source = (
        "transformers' Qwen3VLForConditionalGeneration, Qwen3VLProcessor and Qwen3VLVideoProcessor; 2 frames a second, at "
        "most 768, from the latter; the cap of pixels a frame: QwenLM/Qwen3-VL, qwen-vl-utils, vision_process.py"
    )
    mean, std = HALF, HALF
    together, units = True, (4, 24576)  # as in the checkpoints' video_preprocessor_config.json
    fixed_system = ""

    @classmethod
    def matches(cls, config: Mapping[str, Any]) -> str | None:
        return "model_type is qwen3_vl" if config.get("model_type") == "qwen3_vl" else None

    def step_seconds(self, times: Tensor) -> Tensor:
        """The mean of a step's frames: the time that is written before it."""
        return times.mean(dim=1)

    def step_texts(self, seconds: Sequence[float]) -> tuple[list[Tensor], Tensor]:
        return [self._ids(f"<{time:.1f} seconds><|vision_start|>") for time in seconds], self._ids("<|vision_end|>")
