"""One layer's cache made of random numbers."""

from __future__ import annotations

import torch

from videoprune.layer_method import DecodeView, KeptKV
from videoprune.ops.attention import row_attention

HEADS, KV_HEADS, WIDTH = 4, 2, 8


def view(layer=0, length=40, visual=(6, 30), seed=0, layers=28):
    """After prefill: `visual` is the range of visual entries. The raw queries and keys are kept on the view."""
    generator = torch.Generator().manual_seed(seed * 100 + layer)
    query = torch.randn(HEADS, length, WIDTH, generator=generator)
    key = torch.randn(KV_HEADS, length, WIDTH, generator=generator)
    position = torch.arange(length).expand(KV_HEADS, length)
    rows = torch.arange(length)
    made = DecodeView(
        layer=layer,
        layers=layers,
        prefill=True,
        step=0,
        keys=key,
        values=torch.randn(KV_HEADS, length, WIDTH, generator=generator),
        position=position,
        text=(position < visual[0]) | (position >= visual[1]),
        attention=lambda last: row_attention(query[:, length - last :], key, WIDTH**-0.5, rows[length - last :]),
        prompt_rows=length,
    )
    made.query = query
    return made


def step_view(layer, step, keys, position, visual, query):
    """After a decoded token: `keys` (Hkv, S, d) include its own."""
    return DecodeView(
        layer=layer,
        layers=28,
        prefill=False,
        step=step,
        keys=keys,
        values=keys,
        position=position,
        text=(position < visual[0]) | (position >= visual[1]),
        attention=lambda last: row_attention(query, keys, WIDTH**-0.5),
    )


def checked(kept: KeptKV, length: int) -> torch.Tensor:
    index = kept.index
    assert index.dtype == torch.int64
    assert index.shape[0] == KV_HEADS
    assert (index[:, 1:] > index[:, :-1]).all()
    assert index.min() >= 0
    assert index.max() < length
    return index
