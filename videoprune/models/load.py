"""From `--model` to a host: recognise the family from the config, choose device and dtype with a reason, load strictly."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import constants as hub
from transformers import AutoTokenizer
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from videoprune.errors import EnvironmentProblem, UsageError
from videoprune.models.demo import DemoModel
from videoprune.models.host import Host
from videoprune.models.internvl import InternVL
from videoprune.models.llava15 import Llava15
from videoprune.models.llava_next import LlavaNext
from videoprune.models.llava_next_video import LlavaNextVideo
from videoprune.models.llava_onevision import LlavaOnevision
from videoprune.models.longva import LongVA
from videoprune.models.placement import DeviceMap, check_placed, placement
from videoprune.models.preprocess import CLIP_MEAN, CLIP_STD, HALF, NORMALISATIONS, Preprocess, check_fit, square_side
from videoprune.models.qwen2_5_vl import Qwen25VL
from videoprune.models.qwen2_vl import Qwen2VL
from videoprune.models.qwen3_vl import Qwen3VL
from videoprune.models.video_llava import VideoLlava
from videoprune.models.weights import check_weights_fit, read_weights

FAMILIES: tuple[type[Host], ...] = (
    DemoModel,
    LlavaOnevision,
    LongVA,
    LlavaNextVideo,
    VideoLlava,
    Llava15,
    LlavaNext,
    InternVL,
    Qwen2VL,
    Qwen25VL,
    Qwen3VL,
)

DTYPES = {"float32": torch.float32, "fp32": torch.float32, "bfloat16": torch.bfloat16, "bf16": torch.bfloat16}
DTYPES |= {"float16": torch.float16, "fp16": torch.float16}
ATTENTION = ("sdpa", "flash_attention_2", "flash_attention_3", "eager")
Choice = dict[str, str]


def choose_device(device: str) -> tuple[torch.device, Choice]:
    """The device to run on, with its reason.

    Raises:
        UsageError: for a device that torch does not know.
        EnvironmentProblem: for one that this machine does not have.
    """
    if device == "auto":
        if torch.cuda.is_available():
            name, reason = "cuda", f"a CUDA device is there ({torch.cuda.get_device_name()})"
        elif torch.backends.mps.is_available():
            name, reason = "mps", "Apple's GPU is there, no CUDA device is"
        else:
            name, reason = "cpu", "no CUDA device and no Apple GPU is there"
    else:
        name, reason = device, "asked for"
    try:
        chosen = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {device}: not a device; allowed are auto, cpu, cuda, cuda:N and mps") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise EnvironmentProblem(
            f"--device {device}: no CUDA device is available to torch {torch.__version__}; use --device cpu or auto"
        )
    if chosen.type == "cuda" and chosen.index is not None and chosen.index >= torch.cuda.device_count():
        raise EnvironmentProblem(
            f"--device {device}: this machine has {torch.cuda.device_count()} CUDA devices, numbered from 0"
        )
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise EnvironmentProblem("--device mps: no Apple GPU is available; use --device cpu or auto")
    return chosen, {"name": "device", "value": str(chosen), "reason": reason}


def choose_dtype(dtype: str, device: torch.device) -> tuple[torch.dtype, Choice]:
    """The dtype to load weights in, with its reason."""
    if dtype == "auto":
        if device.type == "cuda" and torch.cuda.is_bf16_supported():
            name, reason = "bfloat16", "the CUDA device computes it natively"
        elif device.type in ("cuda", "mps"):
            name, reason = "float16", "the device has no native bfloat16"
        else:
            name, reason = "float32", "exact, and the fastest that every CPU has"
    else:
        name, reason = dtype, "asked for"
    if name not in DTYPES:
        raise UsageError(f"--dtype {dtype}: allowed are auto, {', '.join(DTYPES)}")
    return DTYPES[name], {"name": "dtype", "value": str(DTYPES[name]).removeprefix("torch."), "reason": reason}


def check_attention(attn: str) -> Choice:
    """Refuse an attention implementation that does not exist or whose package is missing."""
    if attn not in ATTENTION:
        raise UsageError(f"--attn {attn}: allowed are {', '.join(ATTENTION)}")
    if attn.startswith("flash"):
        from transformers.utils import is_flash_attn_2_available

        if attn == "flash_attention_3" or not is_flash_attn_2_available():
            raise EnvironmentProblem(
                f"--attn {attn}: its package is not installed; install videoprune[flash] on a CUDA machine, or use --attn sdpa"
            )
    reason = (
        "torch's fused kernels, FlashAttention among them where the device has it" if attn == "sdpa" else "asked for"
    )
    return {"name": "attention", "value": attn, "reason": reason}


def read_json(model: str, name: str, revision: str | None, required: bool = True) -> dict[str, Any]:
    """One JSON file of a checkpoint: from a folder, or through the Hugging Face cache."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        path = folder / name
        if not path.is_file():
            if not required:
                return {}
            raise EnvironmentProblem(
                f"model {model}: the folder has no {name}, so it is no checkpoint; give a folder written by save_pretrained"
            )
    elif folder.exists() or model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise EnvironmentProblem(
            f"model {model}: not found; give a checkpoint folder, ORG/NAME from the hub, or leave --model out for the demo model"
        )
    else:
        try:
            found = cached_file(model, name, revision=revision)
        except (OSError, ValueError) as error:
            if not required:
                return {}
            if hub.HF_HUB_OFFLINE:
                raise EnvironmentProblem(
                    f"model {model}: {name} is not in the cache, and HF_HUB_OFFLINE is set; unset it, download the model "
                    f"first (hf download {model}), or give a folder"
                ) from error
            first = str(error).strip().splitlines()[0]
            raise EnvironmentProblem(
                f"model {model}: not in the cache and not reachable ({first[:160]}); download it first or give a folder"
            ) from error
        if found is None:
            return {}
        path = Path(found)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EnvironmentProblem(
            f"model {model}: {name} cannot be read as JSON ({error}); the checkpoint is damaged or half-written"
        ) from error
    if not isinstance(content, dict):
        raise EnvironmentProblem(f"model {model}: {name} holds no JSON object; the checkpoint is damaged")
    return content


def recognise(config: Mapping[str, Any]) -> tuple[type[Host], str]:
    """The family of a config.json, with the reason.

    Raises:
        EnvironmentProblem: for a family that is not supported.
    """
    for family in FAMILIES:
        reason = family.matches(config)
        if reason is not None:
            return family, reason
    raise EnvironmentProblem(
        f"model_type {config.get('model_type')!r} is not supported; supported are "
        f"{', '.join(family.accepts for family in FAMILIES)}"
    )


def load_host(
    model: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    attn: str = "sdpa",
    revision: str | None = None,
    frame_fit: str | None = None,
    device_map: DeviceMap | None = None,
    quantize: str | None = None,
) -> Host:
    """Load a checkpoint folder or a hub name; `frame_fit` replaces its way of fitting frames that are not square.

    Raises:
        EnvironmentProblem: model not found, unsupported, damaged or incomplete; device missing.
        UsageError: bad device, dtype, attention, frame fit, device map or quantisation.
    """
    check_fit(frame_fit)
    name = str(model)
    where, device_choice = choose_device(device)
    kind, dtype_choice = choose_dtype(dtype, where)
    attn_choice = check_attention(attn)
    placed, placed_choices = placement(device_map, quantize, where, kind)
    config = read_json(name, "config.json", revision)
    try:
        family, reason = recognise(config)
        own = family.loading(config)
    except EnvironmentProblem as error:
        raise EnvironmentProblem(f"model {name}: {error}") from error
    if frame_fit is not None and family.any_shape:
        raise UsageError(
            f"--frame-fit {frame_fit}: {family.accepts} takes frames of any shape whole; leave --frame-fit out"
        )
    choices = [{"name": "family", "value": family.family, "reason": reason}, device_choice, dtype_choice, attn_choice]
    choices += placed_choices
    settings: dict[str, Any] = {"dtype": kind, "attn_implementation": attn, "revision": revision, **own, **placed}
    if device_map is None:  # spread over several devices, accelerate does the sums
        check_weights_fit(name, read_weights(name, revision, config), kind, where, quantize)
    with _quiet():
        loaded = _load_weights(family, name, settings)
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
        except Exception as error:  # every library layer below raises its own kind
            raise EnvironmentProblem(
                f"model {name}: its tokenizer cannot be loaded ({_first_line(error)}); the checkpoint is incomplete"
            ) from error
    if not getattr(tokenizer, "chat_template", None):  # older checkpoints keep it beside the tokenizer
        tokenizer.chat_template = read_json(name, "chat_template.json", revision, False).get("chat_template")
    rows = loaded.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise EnvironmentProblem(
            f"model {name}: its tokenizer has {len(tokenizer)} entries, its embeddings {rows}; "
            "they belong to different models"
        )
    preprocess = family.own_preprocess(lambda file: read_json(name, file, revision, False), loaded.config, choices)
    if preprocess is None:
        preprocess = read_preprocess(name, revision, loaded.config.vision_config, choices, family, frame_fit)
    if placed:
        check_placed(loaded, name)
    else:
        loaded = loaded.to(where)
    return family(loaded.eval(), tokenizer, name, preprocess, choices)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' own progress bars and remarks off stderr while loading: what matters is raised below."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()


def _load_weights(family: type[Host], name: str, settings: dict[str, Any]) -> Any:
    """`from_pretrained`, but an incomplete or foreign checkpoint is an error instead of random weights."""
    try:
        stock = getattr(transformers, family.stock)
        model, info = stock.from_pretrained(name, output_loading_info=True, **settings)
    except Exception as error:
        raise EnvironmentProblem(
            f"model {name}: its weights cannot be read ({_first_line(error)}); the checkpoint is damaged, half-written or absent"
        ) from error
    mismatched = [str(key[0] if isinstance(key, (tuple, list)) else key) for key in info.get("mismatched_keys", ())]
    unexpected = [key for key in info["unexpected_keys"] if not re.search(family.unused_weights, key)]
    for what, keys in (("missing", info["missing_keys"]), ("unexpected", unexpected), ("mismatched", mismatched)):
        if keys:
            some = ", ".join(sorted(keys)[:3])
            raise EnvironmentProblem(
                f"model {name}: {len(keys)} {what} weights ({some}…); the checkpoint is incomplete or of another kind"
            )
    return model


def read_preprocess(
    name: str,
    revision: str | None,
    vision: Any,
    choices: list[Choice],
    family: type[Host] | None = None,
    fit: str | None = None,
) -> Preprocess:
    """How frames become pixels: from the checkpoint's processor, else as the tower's family does; `fit` replaces its fit."""
    size = square_side(vision.image_size)
    raw, where = _processor_settings(name, revision, family is not None and family.video_processor)
    native = None if family is None else family.native_fit
    if raw:
        preprocess = Preprocess.parse(raw, size, native)
    else:
        siglip = "siglip" in vision.model_type
        usual = (HALF, HALF) if siglip else (CLIP_MEAN, CLIP_STD)
        mean, std = usual if family is None or family.mean_std is None else family.mean_std
        preprocess = Preprocess(size, mean, std, native or ("squeeze" if siglip else "crop"))
        where = "the checkpoint has no processor's settings"
        choices.append({"name": "preprocess", "value": NORMALISATIONS[mean], "reason": where})
    if family is not None:
        how = where if native is None else f"as {family.family} does"
        reason = f"native: {how}" if fit in (None, preprocess.fit) else f"asked for in place of {preprocess.fit}"
        choices.append({"name": "frame_fit", "value": fit or preprocess.fit, "reason": reason})
    return preprocess if fit is None else preprocess.fitted(fit)


def _processor_settings(name: str, revision: str | None, video: bool) -> tuple[dict[str, Any], str]:
    """Settings of a checkpoint's image processor, or of its video processor where it has one, and the file they are from."""
    nested = read_json(name, "processor_config.json", revision, required=False)
    files = {"video_processor": "video_preprocessor_config.json", "image_processor": "preprocessor_config.json"}
    for kind in files if video else ["image_processor"]:
        if nested.get(kind):
            return nested[kind], "processor_config.json"
        raw = read_json(name, files[kind], revision, required=False)
        if raw:
            return raw, files[kind]
    return {}, ""


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
