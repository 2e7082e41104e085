"""LongVA: CLIP-L/336 (fine-tuned), projector, then 2x2 average pooling, Qwen2 with a 224k context; no newline in videos.

The checkpoint has its own layout (`llava_qwen`); its names map onto stock LlavaForConditionalGeneration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d
from transformers import CLIPVisionConfig, LlavaConfig, Qwen2Config

from videoprune.models.host import QUESTION, Host, even_units
from videoprune.models.llava15 import dense

STRIDE = 2  # mm_spatial_pool_stride, passed by the authors' scripts
# original name -> name in LlavaForConditionalGeneration; lm_head.weight is the same in both
KEY_MAPPING = {
    r"^model\.vision_tower\.vision_tower\.(vision_model\.)?": "model.vision_tower.",
    r"^model\.mm_projector\.0\.": "model.multi_modal_projector.linear_1.",
    r"^model\.mm_projector\.2\.": "model.multi_modal_projector.linear_2.",
    r"^model\.(embed_tokens|layers|norm)\.": r"model.language_model.\1.",
}
CLIP_L_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
TEXT_KEYS = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "attention_dropout",
    "initializer_range",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
]


def longva_config(raw: Mapping[str, Any]) -> LlavaConfig:
    """The stock configuration for an original config.json.

    The vision tower is named there, not described: CLIP-L/336, unless the file carries its own `vision_config`.
    """
    text = {key: raw[key] for key in TEXT_KEYS if key in raw}
    rope = {"rope_type": "default", "rope_theta": float(raw.get("rope_theta", 1e6))}
    vision = {key: value for key, value in (raw.get("vision_config") or CLIP_L_336).items() if key != "model_type"}
    return LlavaConfig(
        text_config=Qwen2Config(**text, rope_parameters=rope, use_sliding_window=False),
        vision_config=CLIPVisionConfig(**vision),
        image_token_index=raw["vocab_size"] - 1,  # never used: visual tokens go in as embeddings
        vision_feature_layer=raw.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=raw.get("tie_word_embeddings", False),
    )


class LongVA(Host):
    """Stock LlavaForConditionalGeneration with LongVA's pooling and prompt."""

    family = "longva"
    accepts = "llava_qwen in the original layout (LongVA)"
    stock = "LlavaForConditionalGeneration"
    source = (
        "EvolvingLMMs-Lab/LongVA: mm_utils.py, conversation.py (qwen_1_5), config.json; 32 frames: the default of its "
        "evaluation scripts"
    )
    default_recipe = dense(frames=32)

    video_processor = False
    unused_weights = rf"{Host.unused_weights}|image_newline$"  # it serves images

    @classmethod
    def matches(cls, config: Mapping[str, Any]) -> str | None:
        if config.get("model_type") == "llava_qwen" and "mm_projector_type" in config:
            return "model_type is llava_qwen in the original layout (mm_* fields)"
        return None

    @classmethod
    def loading(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        return {"config": longva_config(config), "key_mapping": KEY_MAPPING}

    def token_grid(self) -> tuple[int, int]:
        side = self.patch_side // STRIDE
        return side, side

    def unit_of_patch(self) -> Tensor:
        return even_units(self.patch_side, STRIDE)

    def project(self, hidden: Tensor) -> Tensor:
        """Projector first, then the 2x2 mean: LongVA's order."""
        features: Tensor = self.model.model.multi_modal_projector(hidden)
        side = self.patch_side
        grid = features.unflatten(1, (side, side)).permute(0, 3, 1, 2)
        return torch.flatten(avg_pool2d(grid, STRIDE), 2).transpose(1, 2)

    def template(self) -> tuple[str, str]:
        system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        return f"{system}<|im_start|>user\n", f"\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
