"""A tiny config.json of every family, of the stock class's own fields: what the self-check builds random models from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TEXT: Mapping[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
QWEN2, LLAMA = {"model_type": "qwen2", **TEXT}, {"model_type": "llama", **TEXT}
CLIP: Mapping[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
    "projection_dim": 32,
}
SIGLIP = {key: value for key, value in CLIP.items() if key != "projection_dim"}
SIGLIP |= {"model_type": "siglip_vision_model", "vision_use_head": False}
ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
MROPE = {**TEXT, "rope_parameters": ROPE}
LLAVA = {"vision_feature_layer": -2, "vision_feature_select_strategy": "default", "image_token_index": 5}
PACKED = {"depth": 3, "num_heads": 2, "spatial_merge_size": 2, "temporal_patch_size": 2, "patch_size": 14}
TOKENS = {"image_token_id": 21, "video_token_id": 20, "vision_start_token_id": 18, "vision_end_token_id": 19}
TINY: Mapping[str, Mapping[str, Any]] = {
    "llava-onevision": {
        "model_type": "llava_onevision",
        "text_config": QWEN2,
        "vision_config": SIGLIP,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "image_grid_pinpoints": [[56, 56]],
    },
    "longva": {**TEXT, "model_type": "llava_qwen", "mm_projector_type": "mlp2x_gelu", "vision_config": CLIP},
    "llava-next-video": {"model_type": "llava_next_video", "text_config": LLAMA, "vision_config": CLIP, **LLAVA},
    "video-llava": {"model_type": "video_llava", "text_config": LLAMA, "vision_config": CLIP, **LLAVA},
    "llava-1.5": {"model_type": "llava", "text_config": LLAMA, "vision_config": CLIP, **LLAVA},
    "llava-next": {"model_type": "llava_next", "text_config": LLAMA, "vision_config": CLIP, **LLAVA},
    "internvl": {
        "model_type": "internvl",
        "text_config": QWEN2,
        "vision_config": {
            "model_type": "internvl_vision",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": [56, 56],
            "patch_size": [14, 14],
        },
        "image_token_id": 16,
    },
    "qwen2-vl": {
        "model_type": "qwen2_vl",
        "text_config": {"model_type": "qwen2_vl_text", **MROPE},
        "vision_config": {"model_type": "qwen2_vl", "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2, **PACKED},
        **TOKENS,
    },
    "qwen2.5-vl": {
        "model_type": "qwen2_5_vl",
        "text_config": {"model_type": "qwen2_5_vl_text", **MROPE},
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "hidden_size": 32,
            "intermediate_size": 48,
            "out_hidden_size": 64,
            "window_size": 56,
            "fullatt_block_indexes": [2],
            **PACKED,
        },
        **TOKENS,
    },
    "qwen3-vl": {
        "model_type": "qwen3_vl",
        "text_config": {"model_type": "qwen3_vl_text", "head_dim": 16, **MROPE},
        "vision_config": {
            "model_type": "qwen3_vl",
            "hidden_size": 32,
            "intermediate_size": 48,
            "out_hidden_size": 64,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 1],
            **PACKED,
        },
        **TOKENS,
    },
}
