"""What a decode method sees of a layer's cache, looked up when it first asks: one that waits costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from videoprune.layer_method import DecodeView
from videoprune.models.cache import KeptLayer


class CacheView(DecodeView):
    """A view of `kept` right after its layer ran; `keys`, `values`, `position` and `text` are read at first sight.

    Args:
        kept: the layer's cache.
        token: `VisualBlock.token` of the prompt.
        facts: the view's other attributes.
    """

    def __init__(self, kept: KeptLayer, token: Callable[[Tensor], Tensor], **facts: Any) -> None:
        self.kept, self.token = kept, token
        self.__dict__.update(facts)

    def __getattr__(self, name: str) -> Tensor:
        if name == "keys":
            value = self.kept.in_order(self.kept.keys[0], 1)
        elif name == "values":
            value = self.kept.in_order(self.kept.values[0], 1)
        elif name == "position":
            value = self.kept.positions()
        elif name == "text":
            value = self.position  # the same for all heads until they hold different entries
            value = (self.token(value if value.stride(0) else value[:1]) < 0).expand_as(value)
        else:
            raise AttributeError(name)
        setattr(self, name, value)
        return value

    def forget(self) -> None:
        """Read all of it anew at next sight: the layer's cache has changed."""
        for name in ("keys", "values", "position", "text"):
            self.__dict__.pop(name, None)

    @property
    def length(self) -> int:
        return self.kept.size

    def scored(self, score: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        keys, values, _, _ = self.kept.lying()
        return self.kept.in_order(score(keys, values), 0)


def last_rows(have: int, rows: int) -> slice:
    """The last `rows` of `have` rows, all where there are fewer."""
    return slice(have - min(rows, have), have)
