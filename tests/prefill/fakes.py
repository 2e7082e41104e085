"""A decoder layer's view made of random numbers, and a loop that walks a prefill method through a decoder."""

from __future__ import annotations

import torch
from torch import nn

from videoprune.layer_method import Kept, PrefillMethod, PrefillView
from videoprune.ops.attention import row_attention
from videoprune.run import Events, Run
from videoprune.tokens import VisualTokens

HEADS, KV_HEADS, WIDTH = 4, 2, 8


def ledger(frames: int, per_frame: int = 4) -> VisualTokens:
    return VisualTokens.from_frames(
        torch.randn(frames * per_frame, 6), torch.arange(frames, dtype=torch.float64), (per_frame // 2, 2)
    )


def run_with(lengths: list[int], key: list[int] | None, seed: int = 0) -> Run:
    """Events of so many frames each; `key` names the key ones, None leaves them unranked."""
    events = Events(torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)))
    if key is not None:
        marked = torch.zeros(len(lengths), dtype=torch.bool)
        marked[key] = True
        events = Events(events.frame_event, key=marked)
    return Run(events, seed=seed)


def view(
    layer: int, tokens: VisualTokens, token: torch.Tensor, before: int = 3, behind: int = 5, seed: int = 0
) -> PrefillView:
    """The view after `layer` where the ledger's rows `token` are alive between `before` and `behind` text rows."""
    generator = torch.Generator().manual_seed(seed * 100 + layer)
    rows = before + len(token) + behind
    query = torch.randn(HEADS, rows, WIDTH, generator=generator)
    key = torch.randn(KV_HEADS, rows, WIDTH, generator=generator)
    return PrefillView(
        layer=layer,
        layers=28,
        before=torch.randn(rows, 6, generator=generator),
        after=torch.randn(rows, 6, generator=generator),
        visual=torch.arange(before, before + len(token)),
        token=token,
        text_after=torch.arange(rows - behind, rows),
        tokens=tokens,
        attention=lambda wanted: row_attention(query[:, wanted], key, 0.5, wanted),
        query=lambda: query,
        key=lambda: key,
        scale=0.5,
        final_norm=nn.Identity(),
        captured={},
    )


def checked(kept: Kept, alive: int) -> torch.Tensor:
    index = kept.index
    assert index.dtype == torch.int64
    assert index.ndim == 1
    assert (index[1:] > index[:-1]).all(), "not ascending"
    assert not len(index) or (index[0] >= 0 and index[-1] < alive), "an index into the visual rows alone"
    return index


def walk(method: PrefillMethod, run: Run, layers: int, tokens: VisualTokens) -> dict[int, int]:
    """Visual tokens alive after each layer."""
    state, token, counts = method.start(run, layers), torch.arange(len(tokens)), {}
    for layer in range(layers):
        if layer in state.at:
            kept = state.after(view(layer, tokens, token))
            if kept is not None:
                token = token[checked(kept, len(token))]
        counts[layer] = len(token)
    return counts
