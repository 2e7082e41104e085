"""Shapes of well-known checkpoints, for `videoprune plan` where neither the checkpoint nor the hub is at hand.

Each is the part of the checkpoint's config.json that decides its shape. Parameters: LongVA-7B 7.94 G (Qwen2-7B with its own
CLIP-L/336), LLaVA-OneVision-7B 8.03 G, the Vicuna-7B ones 7.06 G (Video-LLaVA 7.37 G, for its second tower), InternVL3-8B
7.94 G, Qwen2-VL-7B and Qwen2.5-VL-7B 8.29 G, Qwen3-VL-8B 8.77 G.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from videoprune.errors import UsageError
from videoprune.registry import unknown

QWEN2_7B: Mapping[str, Any] = {
    "model_type": "qwen2",
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "hidden_act": "silu",
}
VICUNA_7B: Mapping[str, Any] = {
    "model_type": "llama",
    "vocab_size": 32064,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}
CLIP_L: Mapping[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
# so400m at 384: the checkpoint's tower was saved without its 27th layer, which the model does not read
SIGLIP_SO400M: Mapping[str, Any] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "vision_use_head": False,
}
MROPE: Mapping[str, Any] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
INTERNVIT_300M: Mapping[str, Any] = {
    "model_type": "internvl_vision",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": [448, 448],
    "patch_size": [14, 14],
    "attention_bias": True,
}
KNOWN: Mapping[str, Mapping[str, Any]] = {
    "LongVA-7B": {
        **QWEN2_7B,
        "model_type": "llava_qwen",
        "max_position_embeddings": 224000,
        "rope_theta": 1e9,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "tie_word_embeddings": False,
    },
    "LLaVA-OneVision-7B": {
        "model_type": "llava_onevision",
        "text_config": QWEN2_7B,
        "vision_config": SIGLIP_SO400M,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "tie_word_embeddings": False,
    },
    "LLaVA-NeXT-Video-7B": {
        "model_type": "llava_next_video",
        "text_config": VICUNA_7B,
        "vision_config": CLIP_L,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "spatial_pool_stride": 2,
        "spatial_pool_mode": "average",
    },
    "Video-LLaVA-7B": {
        "model_type": "video_llava",
        "text_config": VICUNA_7B,
        "vision_config": {**CLIP_L, "image_size": 224},
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    },
    "LLaVA-1.5-7B": {
        "model_type": "llava",
        "text_config": VICUNA_7B,
        "vision_config": CLIP_L,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    },
    "LLaVA-1.6-7B": {
        "model_type": "llava_next",
        "text_config": VICUNA_7B,
        "vision_config": CLIP_L,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    },
    "InternVL3-8B": {
        "model_type": "internvl",
        "text_config": {**QWEN2_7B, "vocab_size": 151674},
        "vision_config": INTERNVIT_300M,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "downsample_ratio": 0.5,
        "tie_word_embeddings": False,
    },
    "Qwen2-VL-7B": {
        "model_type": "qwen2_vl",
        "text_config": {**QWEN2_7B, "model_type": "qwen2_vl_text", "rope_parameters": MROPE},
        "vision_config": {
            "depth": 32,
            "embed_dim": 1280,
            "num_heads": 16,
            "mlp_ratio": 4,
            "hidden_size": 3584,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        "tie_word_embeddings": False,
    },
    "Qwen2.5-VL-7B": {
        "model_type": "qwen2_5_vl",
        "text_config": {
            **QWEN2_7B,
            "model_type": "qwen2_5_vl_text",
            "max_position_embeddings": 128000,
            "rope_parameters": MROPE,
        },
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "num_heads": 16,
            "intermediate_size": 3420,
            "out_hidden_size": 3584,
            "patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
        "tie_word_embeddings": False,
    },
    "Qwen3-VL-8B": {
        "model_type": "qwen3_vl",
        "text_config": {
            "model_type": "qwen3_vl_text",
            "vocab_size": 151936,
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 262144,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            },
        },
        "vision_config": {
            "depth": 27,
            "hidden_size": 1152,
            "num_heads": 16,
            "intermediate_size": 4304,
            "out_hidden_size": 4096,
            "patch_size": 16,
            "deepstack_visual_indexes": [8, 16, 24],
        },
        "tie_word_embeddings": False,
    },
}
# what the checkpoints are called on the hub, in lower case and without the organisation
NAMES: Mapping[str, str] = {
    **{name.lower(): name for name in KNOWN},
    "longva-7b-dpo": "LongVA-7B",
    "llava-onevision-qwen2-7b-ov-hf": "LLaVA-OneVision-7B",
    "llava-onevision-qwen2-7b-ov-chat-hf": "LLaVA-OneVision-7B",
    "llava-next-video-7b-hf": "LLaVA-NeXT-Video-7B",
    "llava-next-video-7b-dpo-hf": "LLaVA-NeXT-Video-7B",
    "video-llava-7b-hf": "Video-LLaVA-7B",
    "llava-1.5-7b-hf": "LLaVA-1.5-7B",
    "llava-v1.6-vicuna-7b-hf": "LLaVA-1.6-7B",
    "internvl3-8b-hf": "InternVL3-8B",
    "qwen2-vl-7b-instruct": "Qwen2-VL-7B",
    "qwen2.5-vl-7b-instruct": "Qwen2.5-VL-7B",
    "qwen3-vl-8b-instruct": "Qwen3-VL-8B",
}


def known_shape(model: str) -> tuple[str, Mapping[str, Any]] | None:
    """The known shape that `model` ("LongVA-7B", "lmms-lab/LongVA-7B") names, with its config; None where there is none."""
    name = NAMES.get(model.rpartition("/")[2].lower())
    return None if name is None else (name, KNOWN[name])


def refuse_unknown(model: str) -> UsageError:
    """What to say of a bare name that is no known shape."""
    return UsageError(f"model: {unknown(model, KNOWN)}; or give a folder with a config.json, or ORG/NAME from the hub")
