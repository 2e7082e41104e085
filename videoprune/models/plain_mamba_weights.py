"""The authors' PlainMamba checkpoints (arXiv 2403.17695): L1, L2 and L3, with the quirks of their code."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from videoprune.errors import UsageError
from videoprune.models.plain_mamba import OFFICIAL, PlainMamba


def load_official(path: str | os.PathLike[str]) -> PlainMamba:
    """A tower from an official checkpoint (`.pth`, or the same as `.safetensors`), L1, L2 or L3 by its sizes, with `quirk`.

    Raises:
        UsageError: not there, unreadable, or not such a checkpoint; names the first weights that do not fit.
    """
    state = _state(Path(path))
    state = {name.removeprefix("backbone."): value for name, value in state.items()}
    head = {name.removeprefix("head.fc."): state.pop(name) for name in list(state) if name.startswith("head.")}
    numbers = [name.split(".")[1] for name in state if name.startswith("layers.")]
    table, depth = state.get("pos_embed"), 1 + max((int(each) for each in numbers if each.isdecimal()), default=-1)
    sizes = None if table is None else (table.shape[-1], depth)
    fitting = [shape for shape in OFFICIAL.values() if (shape.width, shape.blocks) == sizes]
    if not fitting or table is None:
        known = ", ".join(f"{name} width {shape.width} and {shape.blocks} blocks" for name, shape in OFFICIAL.items())
        found = f"width {table.shape[-1]} and {depth} blocks" if table is not None else "no pos_embed"
        raise UsageError(f"weights: {path} has {found}; official PlainMamba checkpoints are {known}")
    shape = replace(fitting[0], image=fitting[0].patch * math.isqrt(table.shape[1]))
    with torch.device("meta"):
        tower = PlainMamba(shape, len(head["weight"]) if "weight" in head else None)
    state |= {f"head.{name}": value for name, value in head.items()}
    expected = {name: tuple(value.shape) for name, value in tower.state_dict().items()}
    wrong = [
        f"{name} is {tuple(state[name].shape) if name in state else 'missing'}, not {expected.get(name, 'known')}"
        for name in sorted(expected.keys() | state.keys())
        if name not in expected or name not in state or tuple(state[name].shape) != expected[name]
    ]
    if wrong:
        raise UsageError(f"weights: {path} is no official PlainMamba checkpoint: {'; '.join(wrong[:4])}")
    if not all(bool(torch.isfinite(value).all()) for value in state.values()):
        raise UsageError(f"weights: {path} holds numbers that are not finite; fetch it again")
    tower.load_state_dict(state, assign=True)
    return tower.eval()


def _state(path: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint by name; nothing but tensors is unpickled."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        raw: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle fails in as many ways as it has bytes
        why = f"{type(error).__name__}: {error}".splitlines()[0][:160]
        raise UsageError(f"weights: {path} can't be read ({why}); give an official PlainMamba checkpoint") from None
    raw = raw.get("state_dict", raw) if isinstance(raw, dict) else raw
    if not isinstance(raw, dict) or not all(isinstance(value, Tensor) for value in raw.values()):
        raise UsageError(f"weights: {path} holds no weights by name; give an official PlainMamba checkpoint")
    return {str(name): value for name, value in raw.items()}
