"""A stock layer of a per-frame vision tower under one set of names: CLIP and SigLIP share theirs, InternVL's has others."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class TowerLayer:
    """One layer.

    Attributes:
        heads, scale: of its attention.
        keys_come_from: the module that gives the keys (F, P, C) as the layer computes them.
    """

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self._masked = hasattr(layer, "self_attn")
        self._attention: Any = layer.self_attn if self._masked else layer.attention
        self._norm: Any = layer.layer_norm1 if self._masked else layer.layernorm_before
        self._query_norm: Any = getattr(self._attention, "q_norm", nn.Identity())
        self._key_norm: Any = getattr(self._attention, "k_norm", nn.Identity())
        self.keys_come_from: nn.Module = getattr(self._attention, "k_norm", self._attention.k_proj)
        self.heads, self.scale = int(self._attention.num_heads), float(self._attention.scale)

    def __call__(self, hidden: Tensor) -> Tensor:
        """(F, P, C) -> (F, P, C)."""
        out: Tensor = self._layer(hidden, None) if self._masked else self._layer(hidden)
        return out

    def queries(self, hidden: Tensor) -> Tensor:
        """(F, R, C) rows that enter the layer -> (F, R, C) their queries."""
        out: Tensor = self._query_norm(self._attention.q_proj(self._norm(hidden)))
        return out

    def keys(self, hidden: Tensor) -> Tensor:
        """(F, P, C) rows that enter the layer -> (F, P, C) their keys."""
        out: Tensor = self._key_norm(self._attention.k_proj(self._norm(hidden)))
        return out
