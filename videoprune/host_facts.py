"""What a learned part may depend on: sizes of a model, and a digest of its weights."""

from __future__ import annotations

import hashlib
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from videoprune.models.preprocess import square_side

if TYPE_CHECKING:
    from videoprune.models.host import Host

SAMPLES = 64  # numbers of each weight that go into a digest


@dataclass(frozen=True)
class HostFacts:
    """What a learned part may depend on.

    Attributes:
        family: of the host.
        width, layers, heads, kv_heads, head_dim: of its language model.
        tower_width, tower_layers: of its vision tower.
        grid: (rows, columns) of tokens a frame, (0, 0) where it follows the film.
        digest: of all its weights; empty where they can't be read as they are (quantised, or waiting in another memory).
        patch, side: pixels along a patch and along a frame of the vision tower; side 0 where frames follow the film.
        mean, std: normalisation of the pixels. channels: of them; a rehearsal's stand-ins have others.
    """

    family: str
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    tower_width: int
    tower_layers: int
    grid: tuple[int, int]
    digest: str = ""
    patch: int = 0
    side: int = 0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    channels: int = 3

    @classmethod
    def of(cls, host: Host) -> HostFacts:
        """The facts of a loaded host; its weights are read once."""
        text, tower = host.decoder_shape, host.tower_shape
        return cls(
            family=host.family,
            width=text.width,
            layers=text.layers,
            heads=text.heads,
            kv_heads=text.kv_heads,
            head_dim=text.head_dim,
            tower_width=tower.width,
            tower_layers=tower.layers,
            grid=(int(host.grid[0]), int(host.grid[1])),
            digest=weights_digest(host.model),
            patch=square_side(host.model.config.vision_config.patch_size),
            side=int(getattr(host.preprocess, "size", 0)) if not host.any_shape else 0,
            mean=tuple(host.preprocess.mean),
            std=tuple(host.preprocess.std),
        )


_DIGESTS: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of evenly spread samples of every weight as bfloat16, so that a checkpoint in another dtype is the same one.

    Empty where a weight is no plain number in reach.
    """
    if model in _DIGESTS:
        return _DIGESTS[model]
    digest, found = hashlib.sha256(), True
    for name, weight in sorted(model.named_parameters()):
        if weight.is_meta or not weight.is_floating_point():
            found = False
            break
        flat = weight.detach().flatten()
        some = flat[
            torch.arange(min(SAMPLES, len(flat)), device=flat.device) * len(flat) // SAMPLES % max(1, len(flat))
        ]
        digest.update(name.encode() + some.to(torch.bfloat16).view(torch.int16).cpu().numpy().tobytes())
    _DIGESTS[model] = digest.hexdigest() if found else ""
    return _DIGESTS[model]
