"""LLaVA-1.6 (LLaVA-NeXT): CLIP-L/336, projector; a frame is an image of one tile, 576 tokens and a newline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from videoprune.models.framing import with_rows
from videoprune.models.llava15 import TOWERS, Llava15, tower_type
from videoprune.models.tower import TowerOutput
from videoprune.tokens import VisualTokens


class LlavaNext(Llava15):
    """Stock LlavaNextForConditionalGeneration.

    Frames go in at base resolution, the whole frame squeezed onto one tile: what the authors' code makes of an image of a
    single patch, a newline behind it included; its tiles of higher resolution would give up to 2 880 tokens a frame.
    All frames stand in the place of the template's one image. The newlines are added rows: weight 0, in no count, never
    removed before decode.
    """

    family = "llava-next"
    accepts = "llava_next with a CLIP or SigLIP tower (LLaVA-1.6)"
    stock = "LlavaNextForConditionalGeneration"
    source = (
        "transformers' LlavaNextForConditionalGeneration.pack_image_features (an image of one patch) and "
        "LlavaNextImageProcessor (its base image); prompt of the checkpoint's chat template; frames: as many as fit into "
        "4 096 positions"
    )
    native_fit = "squeeze"

    @classmethod
    def matches(cls, config: Mapping[str, Any]) -> str | None:
        if config.get("model_type") == "llava_next" and tower_type(config) in TOWERS:
            return f"model_type is llava_next with a {tower_type(config)}"
        return None

    def added_rows(self, frames: int) -> int:
        return frames

    def _tokens(self, features: Tensor, out: TowerOutput, seconds: Tensor) -> VisualTokens:
        tokens = super()._tokens(features, out, seconds)
        newline = self.separator()[None].to(features)
        return with_rows(tokens, trail=[newline] * tokens.frames)

    def separator(self) -> Tensor:
        newline: Tensor = self.model.model.image_newline
        return newline
