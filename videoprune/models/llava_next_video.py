"""LLaVA-NeXT-Video: CLIP-L/336, 2x2 pooling before the projector, Vicuna; 144 tokens a frame, no newline in videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from videoprune.errors import EnvironmentProblem
from videoprune.models.host import Host
from videoprune.models.llava15 import VICUNA, VICUNA_TURN, check_whole_grid, dense, tower_type
from videoprune.models.preprocess import Preprocess
from videoprune.report.flops import Cost


class LlavaNextVideo(Host):
    """Stock LlavaNextVideoForConditionalGeneration."""

    family = "llava-next-video"
    accepts = "llava_next_video (LLaVA-NeXT-Video)"
    stock = "LlavaNextVideoForConditionalGeneration"
    source = (
        "transformers' LlavaNextVideoForConditionalGeneration.get_video_features and LlavaNextVideoProcessor; prompt "
        "and 32 frames of the model card llava-hf/LLaVA-NeXT-Video-7B-hf"
    )
    next_turn = VICUNA_TURN
    default_recipe = dense(frames=32)
    placeholder = "<video>"

    def __init__(
        self, model: Any, tokenizer: Any, name: str, preprocess: Preprocess, choices: Sequence[dict[str, str]] = ()
    ) -> None:
        super().__init__(model, tokenizer, name, preprocess, choices)
        rope = getattr(self.decoder.config, "rope_parameters", None) or {}
        if rope.get("rope_type") == "linear":  # trained on stretched positions; the config names the number before
            self.context = int(self.context * rope["factor"])
            reason = f"linear RoPE scaling by {rope['factor']:g}"
            self.choices.append({"name": "context", "value": str(self.context), "reason": reason})

    @classmethod
    def matches(cls, config: Mapping[str, Any]) -> str | None:
        return "model_type is llava_next_video" if config.get("model_type") == "llava_next_video" else None

    @classmethod
    def loading(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        check_whole_grid(config)
        if "clip" not in tower_type(config):
            raise EnvironmentProblem(f"a {tower_type(config)} as vision tower is not supported; a CLIP one is")
        mode = config.get("spatial_pool_mode", "average")
        if mode not in ("average", "max"):
            raise EnvironmentProblem(f"spatial_pool_mode {mode!r} is not supported; average and max are")
        return {}

    @property
    def stride(self) -> int:
        """Patches along a side of the square that becomes one token."""
        return int(self.model.config.spatial_pool_stride)

    def token_grid(self) -> tuple[int, int]:
        side = self.patch_side // self.stride
        return side, side

    def unit_of_patch(self) -> Tensor:
        """Patches that the pooling leaves over at the right and lower edge of an odd grid go with the last cell."""
        cells = self.token_grid()[0]
        line = (torch.arange(self.patch_side) // self.stride).clamp(max=cells - 1)
        return (line[:, None] * cells + line[None, :]).flatten()

    def project(self, hidden: Tensor) -> Tensor:
        """Pooling first, then the projector."""
        inner = self.model.model
        features: Tensor = inner.multi_modal_projector(inner.vision_resampler(hidden))
        return features

    def projector_cost(self, rows: int) -> Cost:
        return super().projector_cost(rows * self.tower.units // self.tower.patches)

    def template(self) -> tuple[str, str]:
        """From the checkpoint's chat template where it knows videos (34B and 32K have others), else Vicuna's short form."""
        return self.chat("video") or VICUNA
