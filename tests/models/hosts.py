"""Tiny checkpoints of all families, and what the stock class makes of frames and a question."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d
from transformers import InternVLProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tests.tiny import internvl, llava15, llava_next, llava_next_video, longva, onevision, video_llava
from videoprune.models.host import QUESTION, Host

MAKERS: dict[str, Callable[..., Path]] = {
    "llava-onevision": lambda folder: onevision(folder, clip=False),
    "longva": longva,
    "llava-next-video": llava_next_video,
    "video-llava": video_llava,
    "llava-1.5": llava15,
    "llava-next": llava_next,
    "internvl": internvl,
}


@torch.no_grad()
def stock_features(host: Host, images: np.ndarray) -> tuple[dict[str, Any], Tensor]:
    """What the stock class is given for these frames, and its own features of them, (rows, D)."""
    pixels, model = host.preprocess(images), host.model.model
    if host.family in ("llava-onevision", "llava-next-video", "video-llava"):
        features = model.get_video_features(pixels[None], return_dict=True).pooler_output
        features = features if isinstance(features, Tensor) else torch.stack(list(features))  # a tuple of films in 5.18
        return {"pixel_values_videos": pixels[None]}, features.flatten(0, -2)
    if host.family == "longva":  # the authors' average pooling is not in the stock class
        features = torch.stack(list(model.get_image_features(pixels, return_dict=True).pooler_output))
        side = host.patch_side
        pooled = avg_pool2d(features.unflatten(1, (side, side)).permute(0, 3, 1, 2), 2).flatten(2).transpose(1, 2)
        return {
            "mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=list(pooled))}
        }, pooled.flatten(0, 1)
    if host.family == "llava-next":  # an image of one patch, which the class packs but never asks for by itself
        hidden = model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        sizes = torch.tensor([images.shape[1:3]] * len(images))
        tiles = [frame[None] for frame in model.multi_modal_projector(hidden)]
        packed = model.pack_image_features(tiles, sizes, "default", model.image_newline)[0]
        return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=packed)}}, torch.cat(packed)
    features = model.get_image_features(pixels, return_dict=True).pooler_output
    return {"pixel_values": pixels}, torch.cat(list(features))


def stock_prompt(host: Host, question: str, rows: int, frames: int) -> Tensor:
    """(1, S) ids of the family's prompt with the placeholders that the stock class expects for `rows` rows."""
    before, behind = host.template()
    if host.family == "internvl":
        fake = SimpleNamespace(
            start_image_token="<img>",
            end_image_token="</img>",
            image_token="<IMG_CONTEXT>",
            image_seq_length=rows // frames,
        )
        film = InternVLProcessor.replace_video_token(fake, {"pixel_values_videos": [torch.empty(frames)]}, 0)
        text = before.removesuffix("Frame1: <img>") + film + behind.removeprefix("</img>")
    elif host.family == "longva":
        text = f"{before}<image>{behind}"
    else:
        medium = host.placeholder or "<video>"
        text = f"{before}{medium * rows}{behind}"
    special = host.placeholder is not None
    ids = host.tokenizer(text.replace(QUESTION, question), add_special_tokens=special)["input_ids"]
    if host.family == "longva":
        at = ids.index(host.tokenizer.convert_tokens_to_ids("<image>"))
        ids[at : at + 1] = [host.model.config.image_token_id] * rows
    return torch.tensor([ids])


@torch.no_grad()
def stock_answer(host: Host, images: np.ndarray, question: str, steps: int) -> tuple[list[int], Tensor]:
    """Token ids and logits (steps, vocabulary) of stock greedy `generate()` from frames and text."""
    given, features = stock_features(host, images)
    ids = stock_prompt(host, question, len(features), len(images))
    out = host.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        **given,
        max_new_tokens=steps,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return out.sequences[0, ids.shape[1] :].tolist(), torch.stack([step[0] for step in out.logits])
