"""Tiny Qwen-VL hosts, and what the stock classes are given for frames and a question."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen2VLProcessor, Qwen3VLProcessor

from tests.models.test_patches import by_hand
from videoprune.models.host import Sampling
from videoprune.models.qwen_vl import QwenVL
from videoprune.tokens import VisualTokens

ASKED = "what happens after the red circle ?"
STEPS = 6


def encode(host: QwenVL, images: np.ndarray, interval: float = 1.0, methods: Any = ()) -> VisualTokens:
    seconds = np.arange(len(images)) * interval
    return host.encode(images, seconds, 0, methods, Sampling(len(images), interval)).tokens


def stock_inputs(host: QwenVL, images: np.ndarray, interval: float) -> dict[str, Any]:
    """What the stock processor would give for these frames, from its own text replacement and patches cut by hand."""
    pixels = host.preprocess(images, len(images))
    patch = host.preprocess.patch
    grid = torch.tensor([[len(pixels) // 2, pixels.shape[2] // patch, pixels.shape[3] // patch]])
    inputs: dict[str, Any] = {
        "pixel_values_videos": torch.from_numpy(by_hand(pixels.numpy(), patch)),
        "video_grid_thw": grid,
    }
    metadata = SimpleNamespace(fps=25, frames_indices=[round(25 * interval * number) for number in range(len(images))])
    fake = SimpleNamespace(
        video_token="<|video_pad|>",
        vision_start_token="<|vision_start|>",
        vision_end_token="<|vision_end|>",
        video_processor=SimpleNamespace(merge_size=2, temporal_patch_size=2),
        _calculate_timestamps=lambda *given: Qwen3VLProcessor._calculate_timestamps(None, *given),
    )
    processor = Qwen3VLProcessor if host.family == "qwen3-vl" else Qwen2VLProcessor
    film = processor.replace_video_token(fake, {**inputs, "video_metadata": [metadata]}, 0)
    conversation = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": ASKED}]}]
    text = host.tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    ids = torch.tensor([host.tokenizer(text.replace("<|video_pad|>", film))["input_ids"]])
    video = ids == host.model.config.video_token_id
    inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": 2 * video.int()}
    if host.family == "qwen2.5-vl":
        inputs["second_per_grid_ts"] = torch.tensor([2 * interval], dtype=torch.float64)
    return inputs


def generate(host: QwenVL, **inputs: Any) -> tuple[list[int], Tensor]:
    out = host.model.generate(
        **inputs, max_new_tokens=STEPS, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    rows = inputs["input_ids"].shape[1]
    return out.sequences[0, rows:].tolist(), torch.stack([step[0] for step in out.logits])
