"""Who is who: digests of films and models by content, so that what was stored for one is never taken for another."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from videoprune.errors import FilmError

if TYPE_CHECKING:
    from videoprune.models.host import Host

WATCHED = ".vpz"  # ending of a watched film's name
BLOCK = 1 << 20  # bytes read at the beginning, the middle and the end of a film
SAMPLES = 64  # numbers read from each weight of the tower and of the projector


def film_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a film's size and of a mebibyte at its beginning, middle and end; its name and dates have no part in it.

    Raises:
        FilmError: the film cannot be read.
    """
    digest = hashlib.sha256()
    try:
        size = Path(path).stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with open(path, "rb") as film:
            for start in sorted({0, max(0, size // 2 - BLOCK // 2), max(0, size - BLOCK)}):
                film.seek(start)
                digest.update(film.read(BLOCK))
    except OSError as error:
        raise FilmError(f"film {os.fspath(path)!r}: cannot be read ({error.strerror or error})") from error
    return digest.hexdigest()


def model_digest(host: Host) -> str:
    """SHA-256 of what makes visual tokens: family, sizes, and evenly spread samples of every weight outside the language model.

    Weights are compared as bfloat16, so that the same checkpoint loaded in float32 and in bfloat16 is the same model.
    """
    import torch

    digest = hashlib.sha256()
    shape = [host.family, host.grid, host.decoder_shape.width, host.tower_shape.layers, host.preprocess]
    digest.update(json.dumps([str(part) for part in shape]).encode())
    inside = {id(weight) for weight in host.decoder.parameters()}
    for name, weight in sorted(host.model.named_parameters()):
        if id(weight) in inside or name.startswith("lm_head"):
            continue
        flat = weight.detach().flatten()
        some = flat[torch.arange(min(SAMPLES, len(flat)), device=flat.device) * len(flat) // SAMPLES % len(flat)]
        digest.update(name.encode() + some.to(torch.bfloat16).view(torch.int16).cpu().numpy().tobytes())
    return digest.hexdigest()
