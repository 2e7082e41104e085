"""Video-LLaVA: a CLIP-like video tower of its own, projector, Vicuna; each frame's [CLS] stays, before its 256 patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from videoprune.models.framing import with_rows
from videoprune.models.host import Host, even_units
from videoprune.models.llava15 import VICUNA, VICUNA_TURN, dense, tower_type
from videoprune.models.tower import TowerOutput
from videoprune.report.flops import Cost
from videoprune.tokens import VisualTokens


class VideoLlava(Host):
    """Stock VideoLlavaForConditionalGeneration.

    The [CLS] rows are added rows: weight 0, no cell, no part in any count. Merge methods leave them alone, prefill methods
    do not see them, decode methods may evict their entries.
    """

    family = "video-llava"
    accepts = "video_llava (Video-LLaVA)"
    stock = "VideoLlavaForConditionalGeneration"
    source = (
        "transformers' VideoLlavaForConditionalGeneration.get_video_features and VideoLlavaProcessor; prompt of the model "
        "card LanguageBind/Video-LLaVA-7B-hf; 8 frames: PKU-YuanGroup/Video-LLaVA, languagebind/video/processing_video.py"
    )
    next_turn = VICUNA_TURN
    default_recipe = dense(frames=8)
    placeholder = "<video>"

    @classmethod
    def matches(cls, config: Mapping[str, Any]) -> str | None:
        if config.get("model_type") == "video_llava" and tower_type(config) == "clip_vision_model":
            return "model_type is video_llava"
        return None

    def vision_tower(self) -> Any:
        return self.model.model.video_tower

    def token_grid(self) -> tuple[int, int]:
        return self.patch_side, self.patch_side

    def unit_of_patch(self) -> Tensor:
        return even_units(self.patch_side, 1)

    def project(self, hidden: Tensor) -> Tensor:
        features: Tensor = self.model.model.multi_modal_projector(hidden)
        return features

    def projector_cost(self, rows: int) -> Cost:
        return super().projector_cost(rows + rows // self.tower.patches)  # one [CLS] a frame

    def added_rows(self, frames: int) -> int:
        return frames

    def _tokens(self, features: Tensor, out: TowerOutput, seconds: Tensor) -> VisualTokens:
        tokens = super()._tokens(features, out, seconds)
        if out.cls is None:
            raise ValueError("a Video-LLaVA tower has a [CLS] row")
        return with_rows(tokens, list(self.project(out.cls)[:, None]))

    def template(self) -> tuple[str, str]:
        """From the checkpoint's chat template where it knows videos, else Vicuna's short form."""
        return self.chat("video") or VICUNA
