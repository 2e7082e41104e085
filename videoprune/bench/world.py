"""The film that every case looks at: random numbers with the structure that methods look for."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor, nn

from videoprune.errors import UsageError
from videoprune.layer_method import DecodeView, PrefillView
from videoprune.method import TowerView
from videoprune.ops.attention import decayed_column_sum, row_attention
from videoprune.run import Events, Run
from videoprune.tokens import VisualTokens

SIDES = (14, 12, 20, 16, 24, 10, 8)  # of a frame's grid, the first that divides the number of tokens
EVENTS, BEFORE, BEHIND, LAYERS = 8, 16, 32, 24
SHARED = 0.2  # noise between neighbouring frames at places that stand still


class World:
    """A film of T tokens of width D, and one decoder layer that sees it between BEFORE and BEHIND rows of text.

    Half of the places stand still through an event but for a little noise, half move; a few directions hold much of the
    variance. Heads have 64 numbers; two key/value heads, one where the heads are odd.
    """

    def __init__(self, tokens: int, width: int, seed: int = 0) -> None:
        side = next((side for side in SIDES if tokens % side**2 == 0), None)
        if side is None:
            raise UsageError(
                f"--tokens: {tokens} is given; allowed are whole frames: multiples of "
                + ", ".join(str(side**2) for side in sorted(SIDES))
            )
        if width % 64:
            raise UsageError(f"--width: {width} is given; allowed are multiples of 64, the size of a head")
        self.tokens, self.width, self.side = tokens, width, side
        self.per_frame, self.frames = side**2, tokens // side**2
        self.heads = width // 64
        self.kv_heads = 1 if self.heads % 2 else 2
        self.generator = torch.Generator().manual_seed(seed)
        self.event = torch.arange(self.frames) * min(EVENTS, self.frames) // self.frames
        self.first, self.last = BEFORE, BEFORE + tokens
        self.scale = 64**-0.5

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    @cached_property
    def film(self) -> Tensor:
        """(F, N, D)."""
        scenes = self.random(int(self.event[-1]) + 1, self.per_frame, self.width)
        still = (torch.arange(self.per_frame) % 2 == 0).float()[:, None]
        film = self.random(self.frames, self.per_frame, self.width)
        film = torch.lerp(film, scenes[self.event] + SHARED * film, still)
        main = self.random(self.frames, self.per_frame, 6) @ self.random(6, self.width)
        return film.add_(main, alpha=0.3)

    @cached_property
    def ledger(self) -> VisualTokens:
        seconds = torch.arange(self.frames, dtype=torch.float64)
        tokens = VisualTokens.from_frames(self.film.flatten(0, 1), seconds, (self.side, self.side))
        return tokens.with_events(self.event).with_scores(points=self.points)

    @cached_property
    def points(self) -> Tensor:
        """(T, 3) in 400 voxels of 0.1."""
        return torch.rand(self.tokens, 3, generator=self.generator) * torch.tensor([1.0, 1.0, 0.4])

    @cached_property
    def relevance(self) -> Tensor:
        return torch.rand(self.frames, generator=self.generator)

    @cached_property
    def run(self) -> Run:
        return Run(Events(self.event).ranked(self.relevance, 3), relevance=self.relevance)

    @cached_property
    def frame_features(self) -> Tensor:
        """(F, D)."""
        return self.film.mean(1)

    @cached_property
    def key(self) -> Tensor:
        """(Hkv, S, 64)."""
        return self.random(self.kv_heads, self.last + BEHIND, 64)

    @cached_property
    def value(self) -> Tensor:
        return self.random(self.kv_heads, self.last + BEHIND, 64)

    @cached_property
    def query(self) -> Tensor:
        """(H, S, 64)."""
        return self.random(self.heads, self.last + BEHIND, 64)

    @cached_property
    def hidden(self) -> Tensor:
        """(S, D) what a layer gives."""
        text = self.random(BEFORE + BEHIND, self.width)
        return torch.cat((text[:BEFORE], self.film.flatten(0, 1), text[BEFORE:]))

    @cached_property
    def changed(self) -> Tensor:
        """(S, D) what a module makes of `hidden`."""
        return self.hidden * 0.5 + self.random(*self.hidden.shape) * 0.5

    @cached_property
    def unit_keys(self) -> Tensor:
        """(F, N, 64) keys of a vision tower, mean over heads."""
        return self.film[..., :64] + 0.3 * self.random(self.frames, self.per_frame, 64)

    @cached_property
    def cls_attention(self) -> Tensor:
        """(F, N)."""
        return torch.rand(self.frames, self.per_frame, generator=self.generator).softmax(1)

    @cached_property
    def pixels(self) -> Tensor:
        """(F, 3, 14·side, 14·side)."""
        return self.random(self.frames, 3, 14 * self.side, 14 * self.side)

    def prefill_view(self) -> PrefillView:
        """What a prefill method sees; `dataclasses.replace` gives it another layer."""
        rows, positions = len(self.hidden), torch.arange(len(self.hidden))
        tokens = self.ledger.with_scores(importance=self.cls_attention.flatten())
        return PrefillView(
            layer=0,
            layers=LAYERS,
            before=self.hidden,
            after=self.changed,
            visual=torch.arange(self.first, self.last),
            token=torch.arange(self.tokens),
            text_after=torch.arange(self.last, rows),
            tokens=tokens,
            attention=lambda wanted: row_attention(
                self.query[:, wanted], self.key, self.scale, wanted, key_position=positions[None]
            ),
            query=lambda: self.query,
            key=lambda: self.key,
            scale=self.scale,
            final_norm=nn.RMSNorm(self.width).requires_grad_(False),
            captured=dict.fromkeys(("input_norm", "post_attention_norm"), self.hidden)
            | dict.fromkeys(("attention_output", "mlp_output"), self.changed),
        )

    def decode_view(self) -> DecodeView:
        """What a decode method sees right after prefill."""
        length = self.key.shape[1]
        position = torch.arange(length).expand(self.kv_heads, -1)
        return DecodeView(
            layer=0,
            layers=LAYERS,
            prefill=True,
            step=0,
            keys=self.key,
            values=self.value,
            position=position,
            text=(position < self.first) | (position >= self.last),
            attention=lambda rows: row_attention(
                self.query[:, -rows:], self.key, self.scale, torch.arange(length - rows, length), key_position=position
            ),
            streamed=lambda weights: decayed_column_sum(self.query[:, -len(weights) :], self.key, weights, self.scale),
            alive=torch.cat((torch.arange(self.first), torch.arange(self.last, length))),
            prompt_rows=length,
        )

    def tower_views(self, window: int) -> list[TowerView]:
        """What an encode method sees after its first layer, window by window."""
        size = self.frames if window == 1 else window
        unit = torch.arange(self.per_frame).expand(self.frames, -1)
        whole = TowerView(
            layer=0,
            depth=LAYERS,
            step=0,
            hidden=self.film,
            keys=lambda: self.unit_keys,
            unit=unit,
            valid=torch.ones_like(unit, dtype=torch.bool),
            size=torch.ones_like(unit),
            total=self.per_frame,
            frame=torch.arange(self.frames),
            cls_attention=lambda: self.cls_attention,
            pixels=lambda: self.pixels,
        )
        return [_part(whole, slice(start, start + size)) for start in range(0, self.frames, size)]


def _part(view: TowerView, frames: slice) -> TowerView:
    keys, attention, pixels = view.keys()[frames], view.cls_attention()[frames], view.pixels()[frames]
    scanned = view.hidden[frames]  # of the size that counts: what a scan puts out
    return replace(
        view,
        hidden=view.hidden[frames],
        keys=lambda: keys,
        unit=view.unit[frames],
        valid=view.valid[frames],
        size=view.size[frames],
        frame=view.frame[frames],
        cls_attention=lambda: attention,
        pixels=lambda: pixels,
        scan=lambda: scanned,
    )
