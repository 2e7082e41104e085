"""Where weights go and how wide they are: device maps and quantisation, through transformers, accelerate and bitsandbytes.

One device computes. With a device map, weights of decoder layers that find no room on it wait in main memory or on disk and
come over, a layer at a time, when the layer runs: slow, but it runs.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from videoprune.errors import EnvironmentProblem, UsageError

QUANTIZE = ("4bit", "8bit")
# what keeps its width: the towers and projectors, small next to the language model and read at every frame, and the last layer
TOWERS = ("vision_tower", "video_tower", "image_tower", "visual", "vision_model", "multi_modal_projector")
WHOLE = ["lm_head", *(rf".*\b{name}" for name in TOWERS)]
RESERVED = (
    0.8  # share of the device's free memory that `auto` gives to weights; the rest is for activations and the cache
)
Choice = dict[str, str]
DeviceMap = str | Mapping[str, Any]


def placement(
    device_map: DeviceMap | None, quantize: str | None, device: torch.device, dtype: torch.dtype
) -> tuple[dict[str, Any], list[Choice]]:
    """Settings for `from_pretrained`, with their reasons; empty where neither is asked for.

    Args:
        device_map: "auto", or modules to places as accelerate takes them ("cpu", "disk", a device).
        quantize: "4bit" (NF4, double quantisation) or "8bit" (LLM.int8).
        device: where the model computes.
        dtype: of what is not quantised, and of the products.

    Raises:
        UsageError: another value.
        EnvironmentProblem: a package is missing, or the device is none that bitsandbytes knows.
    """
    settings: dict[str, Any] = {}
    choices: list[Choice] = []
    if quantize is not None:
        if quantize not in QUANTIZE:
            raise UsageError(f"--quantize {quantize}: allowed are {', '.join(QUANTIZE)}")
        _need("bitsandbytes", f"--quantize {quantize}")
        _need("accelerate", f"--quantize {quantize}")
        if device.type not in ("cuda", "cpu"):
            raise EnvironmentProblem(
                f"--quantize {quantize}: bitsandbytes has no kernels for {device.type}; use --device cuda or cpu, or leave it out"
            )
        settings |= {"quantization_config": _quantization(quantize, dtype), "device_map": {"": str(device)}}
        choices.append(
            {"name": "quantize", "value": quantize, "reason": "asked for; the linear layers of the language model"}
        )
    if device_map is not None:
        if isinstance(device_map, str) and device_map != "auto":
            raise UsageError(
                f"--device-map {device_map}: allowed is auto; a map of modules to places is for the Python API"
            )
        _need("accelerate", "--device-map")
        settings["device_map"] = dict(device_map) if isinstance(device_map, Mapping) else "auto"
        if device_map == "auto":
            settings["max_memory"] = _room(device)
        reason = f"asked for; {device} computes, weights that find no room on it wait in main memory"
        choices.append({"name": "device_map", "value": "auto" if device_map == "auto" else "given", "reason": reason})
    return settings, choices


def _need(package: str, flag: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise EnvironmentProblem(f"{flag}: the package {package} is not installed; pip install 'videoprune[quantize]'")


def _quantization(quantize: str, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=WHOLE)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=WHOLE,
    )


def _room(device: torch.device) -> dict[Any, int] | None:
    """Bytes that accelerate may fill: of one device, so that all layers compute there, and of main memory behind it."""
    from accelerate.utils import get_max_memory

    if device.type == "cpu":
        return {"cpu": get_max_memory()["cpu"]}
    index = device.index if device.index is not None else torch.cuda.current_device() if device.type == "cuda" else 0
    free = get_max_memory()
    return {index if device.type == "cuda" else device.type: int(free.get(index, 0) * RESERVED), "cpu": free["cpu"]}


def computing_device(module: nn.Module) -> torch.device:
    """Where a module computes: where accelerate's hook sends its inputs, else where its weights are."""
    hook = getattr(module, "_hf_hook", None)
    where = getattr(hook, "execution_device", None)
    if where is not None:
        return torch.device("cuda", where) if isinstance(where, int) else torch.device(where)
    return next(module.parameters()).device


def check_placed(model: Any, name: str) -> None:
    """Refuse a device map that the layer loop cannot work with.

    Raises:
        EnvironmentProblem: decoder layers compute on several devices, or what is read directly is not there to be read.
    """
    decoder = model.get_decoder()
    places = {str(computing_device(layer)) for layer in decoder.layers}
    places.add(str(computing_device(decoder.embed_tokens)))
    if len(places) > 1:
        raise EnvironmentProblem(
            f"model {name}: its decoder layers compute on {', '.join(sorted(places))}; pruning between layers needs one device: "
            "let --device-map auto place them, or use --quantize"
        )
    waiting = {id(weight) for layer in (*decoder.layers, decoder.norm) for weight in layer.parameters()}
    waiting |= {id(weight) for weight in model.get_output_embeddings().parameters()}
    for key, weight in model.named_parameters():
        if weight.is_meta and id(weight) not in waiting:
            raise EnvironmentProblem(
                f"model {name}: {key} found no room on the device, where only decoder layers may wait outside: "
                "use --quantize 4bit, a smaller model or a larger device"
            )
