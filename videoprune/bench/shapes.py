"""Models to measure: the demo model, and random ones of LongVA's and LLaVA-OneVision's shape at any width and depth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from videoprune import demo
from videoprune.errors import UsageError
from videoprune.models.host import Host
from videoprune.models.known import CLIP_L, KNOWN, QWEN2_7B
from videoprune.models.llava_onevision import LlavaOnevision
from videoprune.models.load import load_host
from videoprune.models.longva import LongVA
from videoprune.models.scratch import scratch_host
from videoprune.report.flops import TransformerShape

SHAPES = ("demo", "longva", "onevision")
HEAD = 128  # of Qwen2-7B
CONTEXT = 2**18  # of the random models: so that a dense run of many frames is no refusal
# the language model of both, for what a count would be at full width
FULL = TransformerShape(
    layers=QWEN2_7B["num_hidden_layers"],
    width=QWEN2_7B["hidden_size"],
    mlp=QWEN2_7B["intermediate_size"],
    heads=QWEN2_7B["num_attention_heads"],
    kv_heads=QWEN2_7B["num_key_value_heads"],
    head_dim=HEAD,
    gated_mlp=True,
)


def shaped_host(shape: str, width: int, layers: int, device: torch.device, dtype: torch.dtype) -> Host:
    """A model of a shape; the demo model has its own width, depth and weights.

    Raises:
        UsageError: a shape that is none of SHAPES, a width that is no multiple of HEAD, or fewer than one layer.
    """
    if shape not in SHAPES:
        raise UsageError(f"--shape {shape}: allowed are {', '.join(SHAPES)}")
    if shape == "demo":
        names = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
        return load_host(str(demo.weights_path()), device=str(device), dtype=names[dtype])
    if width < HEAD or width % HEAD:
        raise UsageError(f"--width {width}: allowed are multiples of {HEAD}, the size of a head")
    if layers < 1:
        raise UsageError(f"--layers {layers}: allowed is a whole number of at least 1")
    family: type[Host] = LongVA if shape == "longva" else LlavaOnevision
    return scratch_host(family, shaped_config(shape, width, layers), name=shape, device=device, dtype=dtype)


def shaped_config(shape: str, width: int, layers: int) -> dict[str, Any]:
    """The config of the 7B model ("longva", "onevision") with its widths scaled to `width`, tower included.

    Head sizes, the tower's depth, its patches and the ratio of MLP to width stay; at width 3584 and 28 layers the shape is
    the 7B model's own.
    """
    share = width / QWEN2_7B["hidden_size"]
    heads = width // HEAD
    text = {
        **QWEN2_7B,
        "hidden_size": width,
        "intermediate_size": 16 * max(1, round(QWEN2_7B["intermediate_size"] * share / 16)),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        # the nearest number of key/value heads that divides the query heads
        "num_key_value_heads": min(
            (count for count in range(1, heads + 1) if heads % count == 0),
            key=lambda count: abs(count - QWEN2_7B["num_key_value_heads"] * share),
        ),
        "max_position_embeddings": CONTEXT,
    }
    if shape == "longva":
        own = {key: value for key, value in text.items() if key not in _OWN}
        return {**KNOWN["LongVA-7B"], **own, "vision_config": _tower(CLIP_L, share)}
    known = KNOWN["LLaVA-OneVision-7B"]
    return {**known, "text_config": text, "vision_config": _tower(known["vision_config"], share)}


_OWN = ("model_type", "rope_theta")  # what LongVA has of its own


def _tower(vision: Mapping[str, Any], share: float) -> dict[str, Any]:
    """A vision tower with as many of its heads as the share says, at least one."""
    heads = max(1, round(vision["num_attention_heads"] * share))
    part = heads / vision["num_attention_heads"]
    return {
        **vision,
        "num_attention_heads": heads,
        "hidden_size": round(vision["hidden_size"] * part),
        "intermediate_size": round(vision["intermediate_size"] * part),
    }
