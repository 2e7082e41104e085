"""Peak memory of a run, before the run: what is alive in each of its phases.

A phase is what the loops do between two points at which memory is given back. What a stock layer or a projector holds is read
from the layer itself, run on the meta device with the run's shapes; what the library's own stages hold is scaled up from two
rehearsals at small widths, which it grows with in a straight line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from videoprune.models.cache import KeptLayer
from videoprune.models.host import Host
from videoprune.models.packed_tower import PackedTower
from videoprune.models.pieces import mlp_in_pieces
from videoprune.rehearsal import Rehearsal
from videoprune.report.flops import kv_bytes
from videoprune.report.memory import peak_of

RUNTIME = 96 << 20  # libraries and kernels that a first run loads beside the model; measured on Linux with torch 2.13
NORMALISING = 1 + 3 * 4  # bytes a pixel: uint8, and three float32 copies
CHUNKS_DECODED = 3  # one with the model, one waiting, one being filled


@dataclass(frozen=True)
class Footprint:
    """Bytes alive at most in each phase, beside the weights; `kv` is the cache when the answer is complete."""

    phases: Mapping[str, int]
    kv: int

    @property
    def peak(self) -> int:
        return max(self.phases.values())

    @property
    def phase(self) -> str:
        """Where the peak is."""
        return max(self.phases, key=lambda name: self.phases[name])


@dataclass(frozen=True)
class Growth:
    """A straight line through two rehearsals: bytes = flat + slope * width, float32."""

    flat: float
    slope: float

    @classmethod
    def through(cls, widths: tuple[int, int], sizes: tuple[int, int]) -> Growth:
        slope = (sizes[1] - sizes[0]) / (widths[1] - widths[0])
        return cls(max(0.0, sizes[0] - slope * widths[0]), max(0.0, slope))

    def at(self, width: int, number: int = 4) -> int:
        """Bytes at a width, of numbers that take `number` bytes each."""
        return int(self.flat + self.slope * width * number / 4)


def footprint(
    host: Host,
    run: Rehearsal,
    sizes: tuple[Rehearsal, Rehearsal],
    widths: tuple[int, int],
    *,
    frames: int,
    chunk: int,
    picture: tuple[int, int],
    on_cpu: bool,
) -> Footprint:
    """Peak memory of one question on one film.

    Args:
        host: on the meta device.
        run: the run, rehearsed to its answer.
        sizes: the same up to the language model at two `widths`.
        frames: of the film that are looked at.
        chunk: frames encoded at a time.
        picture: (height, width) of a decoded frame.
        on_cpu: whether decoded frames and libraries share the memory with the model.
    """
    number = torch.finfo(host.dtype).bits // 8
    width, shape = host.decoder_shape.width, host.decoder_shape

    def grown(name: str) -> Growth:
        return Growth.through(widths, (getattr(sizes[0], name), getattr(sizes[1], name)))

    stored, waiting = grown("stored_bytes").at(width, number), grown("waiting_bytes").at(width, number)
    merged = grown("merge_bytes")
    working = max(0, merged.at(width) - grown("waiting_bytes").at(width)) + waiting
    images = picture[0] * picture[1] * 3
    ahead = min(frames, CHUNKS_DECODED * chunk) * images if on_cpu else 0
    runtime = RUNTIME if on_cpu else 0
    encoding = _encoding(host, run, min(chunk, frames), grown("tower_bytes"), number, on_cpu)

    embeddings = run.rows * width * number
    layer, most = _layer_peaks(host), 0
    for index, rows in enumerate(run.queries[0]):
        entered = rows * width * number if index else 0  # the first layer is given the embeddings themselves
        angles = 2 * rows * shape.head_dim * number
        cached = 2 * run.held[index] * shape.kv_heads * shape.head_dim * number
        most = max(most, entered + angles + cached + layer(rows))
    kv = kv_bytes(run.entries, shape, number)
    parked = run.parked_rows * (width + 2 * shape.head_dim) * number  # states and angles of what may come back
    step = max((rows for call in run.queries[1:] for rows in call), default=1)
    head = 4 * host.vocabulary * 2
    return Footprint(
        {
            "encode": runtime + stored + ahead + encoding,
            "merge": runtime + working,
            "prefill": runtime + waiting + embeddings + most + parked,
            "decode": runtime + waiting + embeddings + kv + parked + layer(step) + head,
        },
        kv,
    )


def _encoding(host: Host, run: Rehearsal, frames: int, shrinking: Growth, number: int, on_cpu: bool) -> int:
    """Bytes of encoding a chunk: pixels, then the tower layer by layer, then the projector."""
    if isinstance(host.tower, PackedTower):
        return _packed_encoding(host, host.tower, run, frames, shrinking, number, on_cpu)
    tower: Any = host.tower
    pixels = frames * 3 * host.preprocess.size**2
    hidden = torch.empty(frames, tower.patches + tower.extra, host.tower_shape.width, dtype=host.dtype, device="meta")
    layer, _ = peak_of(lambda: tower.layers[0](hidden))
    patches = hidden[:, tower.extra :]
    projector, _ = peak_of(lambda: host.project(patches))
    inside = max(hidden.nbytes + layer, shrinking.at(host.tower_shape.width, number), hidden.nbytes + projector)
    return max(pixels * NORMALISING * on_cpu, pixels * number + inside)


def _packed_encoding(
    host: Host, tower: PackedTower, run: Rehearsal, frames: int, shrinking: Growth, number: int, on_cpu: bool
) -> int:
    """The same of a packed tower: blocks, then the merger."""
    preprocess: Any = host.preprocess
    steps = -(-frames // preprocess.pair)
    units = run.grid[0] * run.grid[1]
    rows, shape = steps * units * tower.merge**2, tower.shape
    pixels = steps * preprocess.pair * 3 * units * preprocess.factor**2
    hidden = torch.empty(rows, shape.width, dtype=host.dtype, device="meta")
    angles = torch.empty(rows, shape.head_dim, device="meta")
    ends = torch.arange(steps + 1, dtype=torch.int32) * units * tower.merge**2
    block, _ = peak_of(lambda: tower.blocks[0](hidden, cu_seqlens=ends, position_embeddings=(angles, angles)))
    merger, _ = peak_of(lambda: tower.tower.merger(hidden))
    inside = max(
        hidden.nbytes + 2 * angles.nbytes + block, shrinking.at(shape.width, number), 2 * hidden.nbytes + merger
    )
    return max(pixels * NORMALISING * on_cpu, 2 * pixels * number + inside)  # pixels, and the same cut into patches


def _layer_peaks(host: Host) -> Any:
    """A function: bytes that a decoder layer holds at most for so many rows, its output and its new cache entries included."""
    decoder = host.decoder

    @cache
    def peak(rows: int) -> int:
        hidden = torch.empty(1, rows, host.decoder_shape.width, dtype=host.dtype, device="meta")
        angles = torch.empty(1, rows, host.decoder_shape.head_dim, dtype=host.dtype, device="meta")

        def work() -> tuple[Tensor, Any]:
            past = DynamicCache(config=decoder.config)
            past.layers[:] = [KeptLayer() for _ in decoder.layers]
            with mlp_in_pieces([decoder.layers[0]]):
                out = decoder.layers[0](
                    hidden,
                    attention_mask=None,
                    position_embeddings=(angles, angles),
                    position_ids=None,
                    past_key_values=past,
                    use_cache=True,
                )
            return out, past

        return peak_of(work)[0]

    return peak
