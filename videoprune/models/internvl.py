"""InternVL3: InternViT with [CLS], pixel shuffle of 2x2 patches, MLP, Qwen2 or Qwen3; the text counts the frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from videoprune.errors import EnvironmentProblem
from videoprune.models.host import QUESTION, Host, even_units
from videoprune.models.llava15 import dense
from videoprune.models.preprocess import IMAGENET_MEAN, IMAGENET_STD, square_side
from videoprune.report.flops import Cost, mlp_cost
from videoprune.tokens import VisualTokens

OPEN, CLOSE = "<img>", "</img>"  # around the tokens of a frame


class InternVL(Host):
    """Stock InternVLForConditionalGeneration: checkpoints in transformers' own layout, named …-hf on the hub.

    A film reads "Frame1: <img>…</img>", "Frame2: <img>…</img>" and so on, a line each, all of it text that no stage before
    decode removes. A unit is the 2x2 patches that become one token.
    """

    family = "internvl"
    accepts = "internvl (InternVL3, InternVL3.5 in transformers' layout)"
    stock = "InternVLForConditionalGeneration"
    source = (
        "transformers' InternVLForConditionalGeneration.get_image_features, InternVLProcessor.replace_video_token and "
        "InternVLVideoProcessor; 8 frames of one tile, at the middles of equal parts: load_video of the model card "
        "OpenGVLab/InternVL3-8B"
    )
    default_recipe = dense(frames=8)
    placeholder = "<IMG_CONTEXT>"
    mean_std = (IMAGENET_MEAN, IMAGENET_STD)
    native_fit = "squeeze"

    @classmethod
    def matches(cls, config: Mapping[str, Any]) -> str | None:
        return "model_type is internvl" if config.get("model_type") == "internvl" else None

    @classmethod
    def loading(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        selects = config.get("vision_feature_select_strategy", "default")
        if selects != "default":
            raise EnvironmentProblem(
                f"vision_feature_select_strategy {selects!r} is not supported; 'default' is, which leaves out the [CLS]"
            )
        ratio, vision = config.get("downsample_ratio", 0.5), config.get("vision_config") or {}
        side = square_side(vision.get("image_size", 448)) // square_side(vision.get("patch_size", 14))
        if not 0 < ratio <= 1 or 1 / ratio != int(1 / ratio) or side % int(1 / ratio):
            raise EnvironmentProblem(
                f"downsample_ratio {ratio} on {side} x {side} patches is not supported; 1 / ratio must divide {side}"
            )
        return {}

    @property
    def stride(self) -> int:
        """Patches along a side of the square that becomes one token."""
        return int(1 / self.model.config.downsample_ratio)

    def tower_has_cls(self) -> bool:
        return True

    def token_grid(self) -> tuple[int, int]:
        side = self.patch_side // self.stride
        return side, side

    def unit_of_patch(self) -> Tensor:
        return even_units(self.patch_side, self.stride)

    def project(self, hidden: Tensor) -> Tensor:
        """The tower's last norm where its last layer is selected, pixel shuffle, projector."""
        inner, side = self.model.model, self.patch_side
        if self.tower.stop == self.model.config.vision_config.num_hidden_layers:
            hidden = inner.vision_tower.layernorm(hidden)
        grid = hidden.unflatten(1, (side, side))
        shuffled = inner.pixel_shuffle(grid, scale_factor=self.model.config.downsample_ratio)
        features: Tensor = inner.multi_modal_projector(shuffled.flatten(1, 2))
        return features

    def projector_cost(self, rows: int) -> Cost:
        patches, width = self.stride**2, self.decoder_shape.width
        return mlp_cost(rows // patches, (self.tower_shape.width * patches, width, width))

    def frame_texts(self, tokens: VisualTokens) -> Sequence[Tensor]:
        """What closes a frame and opens the next; the first one is opened by the template."""
        own = [self._ids(f"{CLOSE}\nFrame{number + 1}: {OPEN}") for number in range(1, tokens.frames)]
        return [torch.empty(0, dtype=torch.int64, device=self.device), *own]

    def template(self) -> tuple[str, str]:
        """From the checkpoint's chat template where it knows videos, else Qwen2's without a system turn."""
        own = "<|im_start|>user\n", f"\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
        before, behind = self.chat("video", "<video>") or own
        return f"{before}Frame1: {OPEN}", f"{CLOSE}{behind}"
