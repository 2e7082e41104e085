"""Tiny random Qwen-VL checkpoints of the real stock classes, in the real format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from tests.tiny import TEXT, WORDS, spread

MARKS = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>", "<|image_pad|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}


def qwen_tokenizer() -> PreTrainedTokenizerFast:
    plain = [word for word in WORDS if word not in ("<video>", "<image>")]
    words = list(dict.fromkeys([*plain, *MARKS, "<", ">", "seconds", *map(str, range(100))]))
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<|im_end|>",
        additional_special_tokens=MARKS,
        chat_template=TEMPLATE,
    )


def _qwen(
    folder: Path,
    stock: Any,
    config: Any,
    vision: dict[str, Any],
    text: dict[str, Any],
    size: tuple[int, int],
    seed: int,
) -> Path:
    words = qwen_tokenizer()
    marks = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    model = spread(
        stock(
            config(
                text_config={**TEXT, "num_hidden_layers": 6, "rope_parameters": ROPE, **text},
                vision_config={"depth": 4, "num_heads": 2, "spatial_merge_size": 2, "temporal_patch_size": 2, **vision},
                tie_word_embeddings=False,
                **{name: words.convert_tokens_to_ids(mark) for name, mark in marks.items()},
            )
        ),
        seed,
    )
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 1
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    (folder / "video_preprocessor_config.json").write_text(
        json.dumps({"size": {"shortest_edge": size[0], "longest_edge": size[1]}})
    )
    return folder


def as_released(folder: Path) -> Path:
    """Qwen2-VL and Qwen2.5-VL as their checkpoints lie on the hub: names and config from before transformers 5."""
    weights = load_file(folder / "model.safetensors")
    old = {
        key.replace("model.visual.", "visual.").replace("model.language_model.", "model."): weights[key]
        for key in weights
    }
    save_file(old, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    text, vision = config.pop("text_config"), config["vision_config"]
    rope = text.pop("rope_parameters")
    text |= {
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
    }
    vision |= {"model_type": config["model_type"], "in_chans": 3, "spatial_patch_size": 14}
    dropped = ("rope_parameters", "dtype", "layer_types")
    flat = {key: value for key, value in {**text, **config}.items() if key not in dropped}
    (folder / "config.json").write_text(json.dumps(flat))
    (folder / "video_preprocessor_config.json").unlink()
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "merge_size": 2})
    )
    return folder


def qwen2_vl(folder: Path, *, seed: int = 0, **text: Any) -> Path:
    """A Qwen2-VL checkpoint: 4 to 17 tokens a pair of frames."""
    vision = {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2, "patch_size": 14}
    stock, config = Qwen2VLForConditionalGeneration, Qwen2VLConfig
    return _qwen(folder, stock, config, vision, text, (4 * 784, 17 * 784), seed)


def qwen2_5_vl(folder: Path, *, seed: int = 0, **text: Any) -> Path:
    """A Qwen2.5-VL checkpoint: windows of 2x2 units, full attention in blocks 1 and 3."""
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": 64,
        "patch_size": 14,
        "window_size": 56,
        "fullatt_block_indexes": [1, 3],
        "tokens_per_second": 2,
    }
    stock, config = Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig
    return _qwen(folder, stock, config, vision, text, (4 * 784, 17 * 784), seed)


def qwen3_vl(folder: Path, *, seed: int = 0, **text: Any) -> Path:
    """A Qwen3-VL checkpoint: deepstack from blocks 0 to 2, limits of pixels for the whole film."""
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": 64,
        "patch_size": 16,
        "num_position_embeddings": 36,
        "deepstack_visual_indexes": [0, 1, 2],
    }
    stock, config = Qwen3VLForConditionalGeneration, Qwen3VLConfig
    return _qwen(folder, stock, config, vision, {"head_dim": 16, **text}, (4 * 1024, 170 * 1024), seed)
