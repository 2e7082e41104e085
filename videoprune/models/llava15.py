"""LLaVA-1.5: CLIP-L/336, projector, Vicuna; made for images, so a film is its frames as images: 576 tokens each, no pooling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from videoprune.errors import EnvironmentProblem
from videoprune.models.host import QUESTION, Host, even_units

VICUNA = ("USER: ", f"\n{QUESTION} ASSISTANT:")  # the short form that the model cards of Vicuna-based hosts give
VICUNA_TURN = f"</s>USER: {QUESTION} ASSISTANT:"
TOWERS = ("clip_vision_model", "siglip_vision_model")  # one frame at a time, on a fixed grid


def dense(**frames: Any) -> Mapping[str, Any]:
    """The recipe "dense" with a frame rule of the family's own."""
    return {"name": "dense", "description": "nothing is pruned; frames as the authors take them", "frames": frames}


def check_whole_grid(config: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose selected vision features are not exactly the patches of a frame.

    Raises:
        EnvironmentProblem: a [CLS] that stays ("full" on CLIP), or a patch that goes in its stead ("default" on SigLIP).
    """
    tower = tower_type(config)
    selects, fits = config.get("vision_feature_select_strategy", "default"), "full" if "siglip" in tower else "default"
    if selects != fits:
        raise EnvironmentProblem(
            f"vision_feature_select_strategy {selects!r} on a {tower} is not supported; {fits!r} is, which keeps every "
            "patch and nothing else"
        )


def tower_type(config: Mapping[str, Any]) -> str:
    """The vision tower's model_type in a config.json of the LLaVA kind, where CLIP is the default."""
    return str((config.get("vision_config") or {}).get("model_type", "clip_vision_model"))


class Llava15(Host):
    """Stock LlavaForConditionalGeneration.

    All frames stand in the place of the template's one image, as papers that give it films do; the chat template for
    several images would put a newline behind each.
    """

    family = "llava-1.5"
    accepts = "llava with a CLIP or SigLIP tower (LLaVA-1.5)"
    stock = "LlavaForConditionalGeneration"
    source = (
        "transformers' LlavaForConditionalGeneration.get_image_features and LlavaProcessor; prompt of "
        "llava-hf/llava-1.5-7b-hf (chat_template.json); frames: as many as fit into its 4 096 positions"
    )
    next_turn = VICUNA_TURN
    default_recipe = dense(frames=6)
    placeholder = "<image>"
    video_processor = False

    @classmethod
    def matches(cls, config: Mapping[str, Any]) -> str | None:
        if config.get("model_type") == "llava" and tower_type(config) in TOWERS:
            return f"model_type is llava with a {tower_type(config)}"
        return None

    @classmethod
    def loading(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        check_whole_grid(config)
        return {}

    def token_grid(self) -> tuple[int, int]:
        return self.patch_side, self.patch_side

    def unit_of_patch(self) -> Tensor:
        return even_units(self.patch_side, 1)

    def project(self, hidden: Tensor) -> Tensor:
        features: Tensor = self.model.model.multi_modal_projector(hidden)
        return features

    def template(self) -> tuple[str, str]:
        """From the checkpoint's chat template where it knows images, else Vicuna's short form."""
        return self.chat("image") or VICUNA
