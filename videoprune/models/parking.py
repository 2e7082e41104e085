"""Tokens that were dropped in prefill and may come back: the states they wait with, and what a step then attends to."""

from __future__ import annotations

import torch
from torch import Tensor

from videoprune.layer_method import Selected
from videoprune.models.cache import KeptLayer
from videoprune.models.session import Session, Stream

NEVER = torch.iinfo(torch.int64).max  # a position behind every query


class Parking:
    """Dropped tokens by the layer that they left, each with its hidden state and rotary angles, and what a call looks at.

    A token waits behind one layer at most: the caches up to it hold the token, those behind do not. It leaves when it comes
    back, so no layer computes a token twice. Only visual tokens are ever dropped.

    Attributes:
        wanted: whether a decode method of the session brings tokens back; else none is held.
        streams: by layer, the tokens that wait behind it; `index` is unordered.
        selected: (P + 1,) bool by position of the prompt's P rows, the last entry for the answer: what the layers of this
            call look at; None before a choice.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.wanted = any(state.revives for state in session.decode) and not session.partial
        self.streams: dict[int, Stream] = {}
        self.selected: Tensor | None = None

    def begin(self, fed: int, prompt_rows: int) -> None:
        """A forward call starts on `fed` rows; those that come back will stand before them."""
        self.fed, self.prompt_rows, self.selected = fed, prompt_rows, None

    def put(self, layer: int, tokens: Stream) -> None:
        """Tokens stop behind `layer`."""
        if not len(tokens.index):
            return
        held, trace = self.streams.get(layer), self.session.trace
        self.streams[layer] = tokens if held is None else Stream.in_a_row([held, tokens])
        trace.parked[self.session.step, layer] = self.session.visual.token(tokens.index)
        trace.parked_most = max(trace.parked_most, sum(len(each.index) for each in self.streams.values()))
        trace.parked_bytes = max(trace.parked_bytes, self.nbytes)

    def take(self, layer: int, selected: Tensor) -> Stream | None:
        """Those behind `layer` that are `selected`; they wait no longer."""
        held = self.streams.get(layer)
        if held is None:
            return None
        comes = selected[held.index]
        back = comes.nonzero()[:, 0]
        if not len(back):
            return None
        self.streams[layer] = held.keep((~comes).nonzero()[:, 0])
        self.session.trace.revived[self.session.step, layer] = self.session.visual.token(held.index[back]).sort().values
        return held.keep(back)

    def select(self, layer: int, stream: Stream, decision: Selected) -> Stream:
        """Let the layers behind `layer` look at a choice: what waits there comes back, what came back before may wait again."""
        selected = torch.zeros(self.prompt_rows + 1, dtype=torch.bool, device=stream.index.device)
        selected[decision.position] = True
        selected[-1] = True
        if self.selected is not None:
            selected &= self.selected
        self.selected = selected
        self.session.trace.selected[self.session.step, layer] = selected[:-1].nonzero()[:, 0]
        if len(stream.index) > self.fed:
            stays = selected[stream.index.clamp(max=self.prompt_rows)]
            self.put(layer, stream.keep((~stays).nonzero()[:, 0]))
            stream = stream.keep(stays.nonzero()[:, 0])
        back = self.take(layer, selected)
        if back is None:
            return stream
        joined = Stream.in_a_row([back, stream])
        return joined.keep(joined.index.argsort())

    def came_back(self, entered: Stream) -> tuple[Tensor, Tensor] | None:
        """Rows of the stream that came back in this call and their rows of the ledger, None where none did."""
        count = len(entered.index) - self.fed
        if count <= 0:
            return None
        return torch.arange(count, device=entered.index.device), self.session.visual.token(entered.index[:count])

    def attended(self, position: Tensor) -> Tensor | None:
        """Which entries at `position` the layer attended to in this call, None all."""
        return None if self.selected is None else self.selected[position.clamp(max=self.prompt_rows)]

    @property
    def nbytes(self) -> int:
        """Bytes of the states and angles that wait."""
        tensors = [each for held in self.streams.values() for each in (held.hidden, held.cos, held.sin)]
        return sum(each.nbytes for each in tensors)


def attend_to(selected: Tensor, kept: KeptLayer, index: Tensor, heads: int, window: int | None) -> Tensor | None:
    """Let a layer's next call see only selected entries of its cache, and of those each row what does not come after it.

    Sets `kept.attended`. Rows that come back stand in the middle of the sequence, so the causal mask is by position.

    Args:
        selected: (P + 1,) bool by position of the prompt's P rows; the last entry is for what is behind them.
        kept: its cache, `index` not yet in it.
        index: (R,) int64, positions of the rows that enter.
        heads: query heads.
        window: positions that a row looks back, its own included; None all.

    Returns:
        (1, 1 or H, R, K) bool over the K entries that are seen, None where every row sees all of them.
    """
    position = index
    if kept.position is not None:
        position = torch.cat((kept.position, index.expand(*kept.position.shape[:-1], len(index))), dim=-1)
    seen = selected[position.clamp(max=len(selected) - 1)]
    kept.attended = (seen if seen.ndim == 1 else seen.any(dim=0)).nonzero()[:, 0]
    if position.ndim == 1 and len(index) == 1 and window is None:
        return None
    key = position[..., kept.attended].masked_fill(~seen[..., kept.attended], NEVER)
    visible = key[..., None, :] <= index[:, None]
    if window is not None:
        visible &= key[..., None, :] > index[:, None] - window
    if visible.ndim == 2:
        return visible[None, None]
    return visible.repeat_interleave(heads // len(visible), dim=0)[None]
