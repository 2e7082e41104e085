"""Tiny random models of the real stock classes, written to disk in the real formats; no network, no weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)

WORDS = [
    "<unk>",
    "<pad>",
    "<|im_start|>",
    "<|im_end|>",
    "<video>",
    "<image>",
    "system",
    "user",
    "assistant",
    "You",
    "are",
    "a",
    "helpful",
    "assistant",
    ".",
    "what",
    "happens",
    "after",
    "the",
    "red",
    "circle",
    "?",
]
VOCABULARY = 256
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 3,
    "pad_token_id": 1,
    "tie_word_embeddings": False,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "patch_size": 14,
}


def tokenizer(special: Sequence[str] = (), more: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Like Qwen2's; `special` are further control tokens, `more` further words."""
    words = list(dict.fromkeys([*WORDS, *special, *more]))
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<video>", "<image>", *special],
    )


def spread(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Wider random weights, so that logits are no ties and attention is no average."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
            elif name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def onevision(folder: Path, *, clip: bool = True, side: int = 8, layers: int = 6, seed: int = 0, **text: Any) -> Path:
    """A LLaVA-OneVision checkpoint; with a CLIP tower ([CLS]) or a SigLIP one."""
    kind = CLIPVisionConfig if clip else SiglipVisionConfig
    extra = {"projection_dim": 32} if clip else {"vision_use_head": False}
    config = LlavaOnevisionConfig(
        vision_config=kind(image_size=14 * side, **VISION, **extra),
        text_config=Qwen2Config(**{**TEXT, **text}, num_hidden_layers=layers),
        image_token_index=5,
        video_token_index=4,
        vision_feature_select_strategy="default" if clip else "full",
        vision_feature_layer=-1,
        image_grid_pinpoints=[[14 * side, 14 * side]],
        tie_word_embeddings=False,
    )
    model = spread(LlavaOnevisionForConditionalGeneration(config), seed)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 1
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def longva(folder: Path, *, seed: int = 0) -> Path:
    """A LongVA checkpoint under the original names, in two shards, from its three parts."""
    raw = {
        **TEXT,
        "model_type": "llava_qwen",
        "architectures": ["LlavaQwenForCausalLM"],
        "num_hidden_layers": 6,
        "rope_theta": 1e9,
        "rms_norm_eps": 1e-6,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_patch_merge_type": "unires",
        "vision_config": {**VISION, "image_size": 112, "projection_dim": 32, "hidden_act": "quick_gelu"},
    }
    text = Qwen2Config(
        **TEXT, num_hidden_layers=6, rms_norm_eps=1e-6, rope_parameters={"rope_type": "default", "rope_theta": 1e9}
    )
    language = spread(Qwen2ForCausalLM(text), seed)
    tower = spread(CLIPVisionModel(CLIPVisionConfig(**raw["vision_config"])), seed + 1)
    projector = spread(torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.GELU(), torch.nn.Linear(64, 64)), seed + 2)
    weights = dict(language.state_dict())
    inner = "" if any(key.startswith("vision_model.") for key in tower.state_dict()) else "vision_model."
    weights |= {f"model.vision_tower.vision_tower.{inner}{key}": value for key, value in tower.state_dict().items()}
    weights |= {f"model.mm_projector.{key}": value for key, value in projector.state_dict().items()}
    weights["model.image_newline"] = torch.zeros(64)
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(weights)
    shards = {f"model-0000{number + 1}-of-00002.safetensors": names[number::2] for number in range(2)}
    for shard, keys in shards.items():
        save_file({key: weights[key].clone().contiguous() for key in keys}, folder / shard, metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": 0},
        "weight_map": {key: shard for shard, keys in shards.items() for key in keys},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(raw))
    tokenizer().save_pretrained(folder)
    return folder


def vicuna_tokenizer(media: Sequence[str] = ("<video>", "<image>")) -> PreTrainedTokenizerFast:
    """Like Vicuna's: a begin token before every text, and the placeholders `media`."""
    words = list(dict.fromkeys([*WORDS, "<s>", "USER", "ASSISTANT", ":"]))
    words = [word for word in words if word not in ("<video>", "<image>") or word in media]
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", words.index("<s>"))])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=list(media),
    )


def _vicuna_host(
    folder: Path, stock: Any, config: Any, *, side: int, seed: int, text: dict[str, Any], **own: Any
) -> Path:
    """A host of a CLIP tower and a Llama, as the Vicuna-based families are; their tokens are those of the tokenizer."""
    model = spread(
        stock(
            config(
                vision_config=CLIPVisionConfig(image_size=14 * side, **VISION, projection_dim=32),
                text_config=LlamaConfig(**{**TEXT, **text}, num_hidden_layers=6),
                image_token_index=5,
                tie_word_embeddings=False,
                **own,
            )
        ),
        seed,
    )
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 1
    model.save_pretrained(folder)
    vicuna_tokenizer().save_pretrained(folder)
    return folder


def llava_next_video(folder: Path, *, side: int = 8, seed: int = 0, mode: str = "average", **text: Any) -> Path:
    """A LLaVA-NeXT-Video checkpoint: 16 tokens a frame."""
    stock, config = LlavaNextVideoForConditionalGeneration, LlavaNextVideoConfig
    return _vicuna_host(
        folder, stock, config, side=side, seed=seed, text=text, video_token_index=4, spatial_pool_mode=mode
    )


def video_llava(folder: Path, *, side: int = 4, seed: int = 0, **text: Any) -> Path:
    """A Video-LLaVA checkpoint: 16 tokens and a [CLS] row a frame."""
    stock, config = VideoLlavaForConditionalGeneration, VideoLlavaConfig
    return _vicuna_host(folder, stock, config, side=side, seed=seed, text=text, video_token_index=4)


def llava15(folder: Path, *, side: int = 4, seed: int = 0, select: str = "default", **text: Any) -> Path:
    """A LLaVA-1.5 checkpoint: 16 tokens a frame."""
    return _vicuna_host(
        folder,
        LlavaForConditionalGeneration,
        LlavaConfig,
        side=side,
        seed=seed,
        text=text,
        vision_feature_select_strategy=select,
    )


def llava_next(folder: Path, *, side: int = 4, seed: int = 0, **text: Any) -> Path:
    """A LLaVA-1.6 checkpoint: 16 tokens and a newline a frame."""
    stock, config = LlavaNextForConditionalGeneration, LlavaNextConfig
    pinpoints = [[28 * side, 14 * side], [14 * side, 28 * side]]
    return _vicuna_host(folder, stock, config, side=side, seed=seed, text=text, image_grid_pinpoints=pinpoints)


def internvl(
    folder: Path,
    *,
    side: int = 8,
    seed: int = 0,
    layers: int = 6,
    qk_norm: bool = False,
    qwen: Any = Qwen2Config,
    **text: Any,
) -> Path:
    """An InternVL3 checkpoint: 16 tokens a frame, of 2x2 patches each; the text counts the frames."""
    kind = "rms_norm" if qk_norm else "layer_norm"  # the 6B tower has one, the 300M tower the other
    words = tokenizer(["<img>", "</img>", "<IMG_CONTEXT>"], [*(f"Frame{number}" for number in range(1, 33)), ":"])
    vision = {**VISION, "image_size": [14 * side, 14 * side], "patch_size": [14, 14]}
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(**vision, use_qk_norm=qk_norm, norm_type=kind, use_mean_pooling=not qk_norm),
        text_config=qwen(**{**TEXT, **text}, num_hidden_layers=layers),
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=(side // 2) ** 2,
        tie_word_embeddings=False,
    )
    model = spread(InternVLForConditionalGeneration(config), seed)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 1
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
