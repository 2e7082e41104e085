"""A key/value cache whose layers may differ in length, and which knows what every entry is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer


def take(values: Tensor, index: Tensor, dim: int) -> Tensor:
    """Gather along `dim`: index (K,) for all leading dimensions, or (Hkv, K) one row for each entry of dimension 1."""
    if index.ndim == 1:
        return values.index_select(dim, index)
    shape = [1] * values.ndim
    shape[1], shape[dim] = index.shape
    expanded = list(values.shape)
    expanded[dim] = index.shape[1]
    return values.gather(dim, index.view(shape).expand(expanded))


class KeptLayer(DynamicLayer):
    """One layer's keys and values (B, Hkv, S, d) of the tokens still kept.

    `get_seq_length` stays logical (tokens seen), so that positions never shift when entries leave; `position` says which
    token of the unpruned prompt and answer each entry is.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seen = 0
        self.position: Tensor | None = None  # (S,), or (Hkv, S) once heads have kept different entries
        self.incoming: Tensor | None = None  # (S',) set by the layer loop before the layer runs

    @property
    def size(self) -> int:
        """Entries physically held."""
        return int(self.keys.shape[-2]) if self.is_initialized and self.keys.numel() else 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        rows = key_states.shape[-2]
        incoming = self.incoming
        if incoming is None or len(incoming) != rows:  # a caller outside the layer loop: the next logical positions
            incoming = torch.arange(self.seen, self.seen + rows, device=key_states.device)
        if self.position is None:
            self.position = incoming
        else:
            incoming = incoming.expand(*self.position.shape[:-1], rows)
            self.position = torch.cat((self.position, incoming), dim=-1)
        self.seen += rows
        self.incoming = None
        return super().update(key_states, value_states, *args, **kwargs)

    def get_seq_length(self) -> int:
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.size + query_length, self.seen - self.size

    def crop(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError(
            "a pruned cache cannot be cropped: assisted decoding is not supported with compression; switch it off"
        )

    def reset(self) -> None:
        super().reset()
        self.seen, self.position = 0, None

    def keep(self, index: Tensor, keys: Tensor | None = None, values: Tensor | None = None) -> None:
        """Keep the entries `index`, (K,) for all heads or (Hkv, K); `keys`/`values` (Hkv, K, d) replace them."""
        if self.position is None:
            raise ValueError("an empty cache layer has no entries to keep")
        self.keys = take(self.keys, index, 2) if keys is None else keys[None].to(self.keys.dtype)
        self.values = take(self.values, index, 2) if values is None else values[None].to(self.values.dtype)
        if index.ndim == 1:
            self.position = self.position.index_select(-1, index)
        else:
            self.position = self.position.expand(index.shape[0], self.position.shape[-1]).gather(1, index)

    def positions(self) -> Tensor:
        """(Hkv, S) the token of each entry."""
        if self.position is None:
            raise ValueError("an empty cache layer has no positions")
        return self.position.expand(self.keys.shape[1], self.size)
