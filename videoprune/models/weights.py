"""How many weights a checkpoint has, read from its headers alone, and whether they fit before they are read."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils import cached_file

from videoprune.errors import EnvironmentProblem
from videoprune.report.memory import free_memory
from videoprune.report.report import human_bytes

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
WIDTHS = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}
QUANTIZED = {"4bit": 0.5, "8bit": 1.0}  # bytes a weight, what stays in full left out
HEADER_LIMIT = 100 << 20  # bytes; the format's own


@dataclass(frozen=True)
class Weights:
    """What a checkpoint says of its weights: `count` numbers, in `stored` bytes on disk, and where that was read."""

    count: int
    stored: int
    source: str

    def bytes_as(self, dtype: torch.dtype) -> int:
        """Bytes once loaded as `dtype`."""
        return self.count * (torch.finfo(dtype).bits // 8)


def read_weights(model: str, revision: str | None, config: Mapping[str, Any]) -> Weights | None:
    """Count the weights of a folder or of a hub name without reading one; None where nothing says how many there are.

    A checkpoint that is not downloaded yet has only its index, which gives bytes; the config says of which dtype.
    """
    index = _found(model, INDEX, revision)
    if index is not None:
        data = _json(index)
        shards = {index.parent / str(name) for name in data.get("weight_map", {}).values()}
        if shards and all(shard.is_file() for shard in shards):
            return _counted(shards)
        stored = data.get("metadata", {}).get("total_size")
        if isinstance(stored, int) and stored > 0:
            return Weights(stored // _stored_width(config), stored, "the index of its shards")
        return None
    folder = Path(model).expanduser()
    single = folder / SINGLE if folder.is_dir() else None
    return _counted({single}) if single is not None and single.is_file() else None


def check_weights_fit(
    model: str, weights: Weights | None, dtype: torch.dtype, device: torch.device, quantize: str | None = None
) -> None:
    """Refuse to start reading weights that cannot fit.

    Raises:
        EnvironmentProblem: they need more than is free on the device, or on the CPU that they come through.
    """
    if weights is None:
        return
    kind, width = str(dtype).removeprefix("torch."), torch.finfo(dtype).bits / 8
    if quantize is not None:
        kind, width = quantize, QUANTIZED[quantize]
    need = int(weights.count * width)
    through = [] if device.type == "cpu" or quantize is not None else [torch.device("cpu")]
    for place in (device, *through):
        free = free_memory(place)
        if free is None or need <= free:
            continue
        narrower = "--dtype bfloat16 halves it, " if kind == "float32" else ""
        narrower += "" if quantize == "4bit" else "--quantize 4bit takes less, "
        raise EnvironmentProblem(
            f"model {model}: {weights.count / 1e9:.2f} G weights x {width:g} bytes ({kind}) = {human_bytes(need)}, and "
            f"{human_bytes(free)} are free on {place}: {narrower}--device names another; `videoprune plan` does the sums",
            stage="load",
        )


def _found(model: str, name: str, revision: str | None) -> Path | None:
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    try:
        path = cached_file(model, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError):  # offline, or no such model: whoever loads the weights says so
        return None
    return None if path is None else Path(path)


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _counted(files: set[Path]) -> Weights | None:
    count = sum(size for file in files for size in _sizes(file))
    return Weights(count, sum(file.stat().st_size for file in files), "its safetensors headers") if count else None


def _sizes(file: Path) -> Iterator[int]:
    """Numbers in each tensor of a safetensors file, by its header; nothing where it is damaged."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length)) if length <= HEADER_LIMIT else {}
    except (OSError, ValueError, struct.error):
        return
    for name, entry in header.items():
        if name != "__metadata__" and entry.get("dtype") in WIDTHS:
            yield math.prod(entry["shape"])


def _stored_width(config: Mapping[str, Any]) -> int:
    """Bytes a stored weight takes, by config.json; 2 where it does not say, as in all large checkpoints."""
    name = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    return 4 if name == "float32" else 2
