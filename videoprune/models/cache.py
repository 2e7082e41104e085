"""A key/value cache whose layers may differ in length, and which knows what every entry is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
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
        # (K,) entries that attention sees in this call, new ones included, None all; set as `incoming`
        self.attended: Tensor | None = None

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
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        return (
            (keys, values) if self.attended is None else (take(keys, self.attended, 2), take(values, self.attended, 2))
        )

    def get_seq_length(self) -> int:
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.size + query_length, self.seen - self.size

    def crop(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError(
            "a pruned cache cannot be cropped: assisted decoding is not supported with compression; switch it off"
        )

    def fork(self) -> KeptLayer:
        """Another layer with the same entries: tensors are shared, and replaced where one of the two changes them."""
        other = KeptLayer()
        if self.is_initialized:
            other.lazy_initialization(self.keys, self.values)
            other.keys, other.values = self.keys, self.values
        other.seen, other.position = self.seen, self.position
        return other

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

    def sort(self) -> None:
        """Bring the entries in the order of their positions, where rows in the middle of the sequence were added last."""
        if self.position is not None:
            self.keep(self.position.argsort(dim=-1))

    def in_order(self, values: Tensor, dim: int) -> Tensor:
        """What is known of each entry as it lies, (…, S, …) along `dim`, oldest entry first."""
        return values

    def lying(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Keys and values (Hkv, S, d) as they lie, the position of each, (S,) or (Hkv, S), and (S,) bool what is no entry's
        remains; None where all are entries."""
        if self.position is None:
            raise ValueError("an empty cache layer has no positions")
        return self.keys[0], self.values[0], self.position, None

    def positions(self) -> Tensor:
        """(Hkv, S) the token of each entry."""
        if self.position is None:
            raise ValueError("an empty cache layer has no positions")
        return self.position.expand(self.keys.shape[1], self.size)


class Uneven(ValueError):
    """Prompts of a batch are not equally long at some layer; they have to run one by one."""


def check_even(lengths: Iterable[int]) -> None:
    """Raise `Uneven` where the lengths differ."""
    seen = set(lengths)
    if len(seen) > 1:
        raise Uneven(
            f"prompts of a batch have {', '.join(map(str, sorted(seen)))} rows at one layer; run them one by one"
        )


class BatchLayer(KeptLayer):
    """One layer of several prompts side by side: each has a layer of its own, so that each evicts for itself.

    Attention sees them stacked, which copies what is cached once a call; so they have to stay equally long.
    """

    def __init__(self, parts: list[KeptLayer]) -> None:
        super().__init__()
        self.parts = parts

    @property
    def size(self) -> int:
        """Entries physically held, of each."""
        return self.parts[0].size

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        pairs = [
            part.update(key_states[number : number + 1], value_states[number : number + 1], *args, **kwargs)
            for number, part in enumerate(self.parts)
        ]
        check_even(part.size for part in self.parts)
        return torch.cat([keys for keys, _ in pairs]), torch.cat([values for _, values in pairs])

    def get_seq_length(self) -> int:
        return self.parts[0].seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.parts[0].get_mask_sizes(query_length)


@dataclass(eq=False)
class Past:
    """A cache to continue from, after one or more calls of a session; tokens that wait to come back are no part of it.

    Attributes:
        layers: its layers; forked before they are written to, so that one past serves any number of continuations.
        alive: (A,) int64 ascending, rows of the prompt that survived the last prefill pruning.
        step: decoding steps so far.
        read: whether the whole prompt is in it; False while only its beginning is.
        shifts: for each layer, how far its positions lie behind the prompt's, where rows were renumbered.
    """

    layers: list[KeptLayer]
    alive: Tensor
    step: int
    read: bool
    shifts: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        """Rows of the conversation that were fed, kept or not."""
        return self.layers[0].seen

    def fork(self) -> list[KeptLayer]:
        """Layers to continue with; these stay as they are."""
        return [layer.fork() for layer in self.layers]
