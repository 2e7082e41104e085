"""One prompt on its way through the decoder layers: what its methods see, and what they drop from it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from videoprune.layer_method import DecodeState, Kept, KeptKV, PrefillState, PrefillView, Selected
from videoprune.models.cache import KeptLayer, Past
from videoprune.models.framing import FIXED
from videoprune.models.paging import PagedLayer
from videoprune.models.parking import NEVER, Parking
from videoprune.models.session import Session, Stream
from videoprune.models.views import CacheView, last_rows
from videoprune.ops.attention import column_sum_flops, decayed_column_sum, fold_rows, row_attention

EVIDENCE_STEPS = 24  # decoded tokens whose attention counts as evidence: an answer's content is in its first words

QUERIES = "queries"  # what is captured of a layer's last query rows, (R, H * d) or (R, H, d), not yet rotated


def rotate_half(x: Tensor) -> Tensor:
    """The rotary embedding's quarter turn, as in every host here."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def rotated_queries(layer: nn.Module, entered: Stream, rows: Tensor | slice) -> Tensor:
    """(H, R, d) queries of some rows of the stream that entered `layer`, as its attention computes them."""
    attention: Any = layer.self_attn
    norm: Any = layer.input_layernorm
    query = attention.q_proj(norm(entered.hidden[0, rows])).unflatten(-1, (-1, attention.head_dim))
    if hasattr(attention, "q_norm"):  # Qwen3
        query = attention.q_norm(query)
    return rotated(query, entered, rows)


def rotated(query: Tensor, entered: Stream, rows: Tensor | slice) -> Tensor:
    """(R, H, d) queries of some rows of a stream, rotated: (H, R, d)."""
    query = query.transpose(0, 1)
    return query * entered.cos[0, rows] + rotate_half(query) * entered.sin[0, rows]


class Sample:
    """One session inside the layer loop, which may run several side by side; methods see one at a time."""

    def __init__(self, decoder: Any, session: Session) -> None:
        self.decoder, self.session = decoder, session
        self.captured: dict[str, Tensor] = {}
        self.prompt_rows = 0
        self.alive = torch.empty(0, dtype=torch.int64) if session.past is None else session.past.alive
        # by layer: how far positions lie behind the prompt's, where rows were renumbered
        self.shifts: list[int] = [] if session.past is None else list(session.past.shifts)
        # positions that evidence was last collected at, and their rows of the ledger and 1.0 where they are visual
        self.looked_at: Tensor | None = None
        self.looked_up: tuple[Tensor, Tensor]
        self.parking = Parking(session)

    def begin(self, prefill: bool, position: Tensor) -> None:
        """A forward call on rows at `position` (1, S) or (3, 1, S) starts.

        `prefill` where it reads the visual tokens, so that prefill methods act.
        """
        device = position.device
        session = self.session
        self.prefill, self.reading = prefill, not session.read  # decode methods see the prompt once it is complete
        self.queries: list[int] = []
        self.keys: list[int] = []
        self.views: list[CacheView] = []
        self.parking.begin(position.shape[-1], self.prompt_rows)
        if prefill:
            self.position, self.shift, self.shifts = position, 0, []
            fixed = session.tokens.scores.get(FIXED, torch.zeros(len(session.tokens), dtype=torch.bool))
            self.fixed = fixed.nonzero()[:, 0].to(device)  # rows of the ledger that no method sees
            self.token = (~fixed).nonzero()[:, 0].to(device)  # the others
            self.visual = session.visual.rows.to(device)[self.token]  # their rows in the current stream
        if not self.reading:
            session.step += 1

    def after(
        self, number: int, layer: nn.Module, entered: Stream, out: Tensor, kept: KeptLayer, captured: dict[str, Tensor]
    ) -> Stream:
        """A layer ran on `entered` and gave `out` (1, S, D): what goes on to the next, and what stays in the cache."""
        session = self.session
        if self.prefill:
            out = self._deepstack(number, out, self.visual, self.token)
        elif back := self.parking.came_back(entered):
            out = self._deepstack(number, out, *back)
            kept.sort()
        stream = Stream(out, entered.cos, entered.sin, entered.index)
        self.captured = captured
        self.queries.append(entered.hidden.shape[1])
        self.keys.append(kept.size if kept.attended is None else len(kept.attended))
        kept.attended = None
        if self.prefill:
            session.trace.visual_rows.append(len(self.visual))
            self.shifts.append(self.shift)
        looked_at = number in session.evidence_layers and not session.partial
        if looked_at and len(session.trace.queries) < EVIDENCE_STEPS + session.trace.prompt_calls:
            self._collect_evidence(layer, entered, kept)
        if self.prefill:
            stream = self._prune(number, layer, entered, stream, kept.keys[0])
        if session.decode and not session.partial:
            view, selected = self._evict(number, layer, entered, kept, self.reading)
            self.views.append(view)
            if selected is not None:
                stream = self.parking.select(number, stream, selected)
        return stream

    def end(self, stream: Stream, layers: list[KeptLayer]) -> None:
        """The forward call is over: `stream` left the last layer."""
        session = self.session
        session.trace.queries.append(self.queries)
        session.trace.keys.append(self.keys)
        if self.reading:
            before = [] if session.past is None else [session.past.alive]
            self.alive = torch.cat((*before, stream.index))
            if not session.partial:
                self._finish(layers)
                self._lay_out(layers)
                session.read = True
            session.trace.prefill_entries = [layer.size for layer in layers]
        session.trace.entries = [layer.size for layer in layers]
        session.left = Past(layers, self.alive, session.step, session.read, tuple(self.shifts))
        if stream.hidden.is_cuda and not session.trace.marks:
            torch.cuda.synchronize()
        session.trace.marks.append(time.perf_counter())

    def _deepstack(self, number: int, hidden: Tensor, rows: Tensor, token: Tensor) -> Tensor:
        """Qwen3-VL: behind the first layers, what inner layers of the tower saw is added to the visual rows."""
        added = self.session.visual.deepstack
        if added is None or number >= added.shape[1]:
            return hidden
        return hidden.index_add(1, rows, added[token, number][None].to(hidden))

    def _counting(self, state: PrefillState | DecodeState) -> AbstractContextManager[object]:
        """Counting costs several times what a small operation does."""
        return self.session.trace.counted if state.multiplies else nullcontext()

    # ------------------------------------------------------------------ attention rows

    def _rows(self, layer: nn.Module, entered: Stream, keys: Tensor, position: Tensor, rows: Tensor | slice) -> Tensor:
        """(H, R, S) probabilities of some rows of the stream over keys (Hkv, S, d) of tokens `position` (Hkv or 1, S)."""
        with self.session.trace.counted.paused() as counted:
            query = self._query_rows(layer, entered, rows)
            counted.total += 2.0 * query.numel() * keys.shape[1]
            return row_attention(query, keys, self._scale(layer), entered.index[rows], key_position=position)

    def _queries(self, layer: nn.Module, entered: Stream, rows: Tensor | slice) -> Tensor:
        """`_query_rows` for a method that counts its products."""
        with self.session.trace.counted.paused():
            return self._query_rows(layer, entered, rows)

    def _query_rows(self, layer: nn.Module, entered: Stream, rows: Tensor | slice) -> Tensor:
        """(H, R, d) rotated queries: the layer's own where the last rows are asked for and were captured, else computed anew."""
        own, have = self.captured.get(QUERIES), entered.hidden.shape[1]
        if own is None or not isinstance(rows, slice) or rows.stop != have or have - rows.start > len(own):
            query = rotated_queries(layer, entered, rows)
            self.session.trace.counted.total += 2.0 * query.numel() * entered.hidden.shape[2]
            return query
        own = own[len(own) - (have - rows.start) :]
        attention: Any = layer.self_attn
        return rotated(own if own.ndim == 3 else own.unflatten(-1, (-1, attention.head_dim)), entered, rows)

    @staticmethod
    def _scale(layer: nn.Module) -> float:
        attention: Any = layer.self_attn
        return float(attention.scaling)

    def _collect_evidence(self, layer: nn.Module, entered: Stream, kept: KeptLayer) -> None:
        """Add the last row's attention, mean over heads, to the visual tokens that it falls on."""
        session = self.session
        if not len(session.tokens):  # a blind baseline: nothing to attend to
            return
        keys, _, position, live = kept.lying()
        query = self._query_rows(layer, entered, last_rows(entered.hidden.shape[1], 1))[:, 0].float()
        grouped = (query * self._scale(layer)).view(len(keys), -1, query.shape[1])
        logits = grouped @ keys.float().transpose(1, 2)  # the last row sees every key
        attended = self.parking.attended(position) if live is None else live
        if attended is not None:
            logits = logits.masked_fill(~attended.expand(len(keys), -1)[:, None], -torch.inf)
        share = logits.softmax(-1).mean(dim=1)  # (Hkv, S)
        session.trace.counted.total += 2.0 * query.numel() * keys.shape[1]
        if position is not self.looked_at:  # unpruned layers hold the same positions
            token = session.visual.token(position)
            self.looked_at, self.looked_up = position, (token.clamp(min=0).flatten(), (token >= 0).to(share.dtype))
        token, is_visual = self.looked_up
        weight = share if is_visual.ndim == 2 else share.sum(dim=0)  # heads may hold different entries
        if session.trace.evidence is None:
            session.trace.evidence = torch.zeros(len(session.tokens), device=share.device)
        session.trace.evidence.index_add_(0, token, (weight * is_visual).flatten())

    # ------------------------------------------------------------------ prefill

    def _prune(self, number: int, layer: nn.Module, entered: Stream, stream: Stream, keys: Tensor) -> Stream:
        for state in self.session.prefill:
            if number not in state.at or not len(self.visual):
                continue
            view = self._prefill_view(number, layer, entered, stream, keys)
            with self._counting(state):
                decision = state.after(view)
            if decision is None:
                continue
            stream = self._apply(number, stream, decision, state.positions == "compact")
            # a second method after the same layer sees the survivors only; the layer's attention is over all that entered
            entered, keys = entered.keep(self._rows_kept), keys[:, self._rows_kept]
        return stream

    def _prefill_view(
        self, number: int, layer: nn.Module, entered: Stream, stream: Stream, keys: Tensor
    ) -> PrefillView:
        rows = entered.hidden.shape[1]
        behind = (
            self.prompt_rows - self.session.visual.stop
        )  # text is never pruned, so its number is the whole prompt's
        return PrefillView(
            layer=number,
            layers=len(self.decoder.layers),
            before=entered.hidden[0],
            after=stream.hidden[0],
            visual=self.visual,
            token=self.token,
            text_after=torch.arange(rows - behind, rows, device=keys.device),
            tokens=self.session.tokens,
            attention=lambda wanted: self._rows(layer, entered, keys, entered.index[None], wanted),
            query=lambda: self._queries(layer, entered, slice(None)),
            key=lambda: keys,
            scale=self._scale(layer),
            final_norm=self.decoder.norm,
            captured=self.captured,
        )

    def _apply(self, number: int, stream: Stream, decision: Kept, compact: bool) -> Stream:
        """Drop the visual rows that do not go on; no host synchronisation: all sizes are known."""
        stays = torch.ones(stream.hidden.shape[1], dtype=torch.bool, device=stream.hidden.device)
        stays[self.visual] = False
        kept_rows = self.visual[decision.index]
        stays[kept_rows] = True
        count = stream.hidden.shape[1] - len(self.visual) + len(kept_rows)
        rows = torch.argsort((~stays).to(torch.int8), stable=True)[:count]
        unchanged = stream
        if decision.hidden is not None:
            hidden = stream.hidden.clone()
            hidden[0, kept_rows] = decision.hidden.to(hidden.dtype)
            stream = Stream(hidden, stream.cos, stream.sin, stream.index)
        if decision.parked and self.parking.wanted:
            leaves = torch.ones(len(self.visual), dtype=torch.bool, device=stream.index.device)
            leaves[decision.index] = False
            leaves = torch.argsort((~leaves).to(torch.int8), stable=True)[: len(leaves) - len(kept_rows)]
            self.parking.put(number, unchanged.keep(self.visual[leaves]))
        self.visual = torch.searchsorted(rows, kept_rows)
        self.token = self.token[decision.index]
        self.session.trace.kept[number] = torch.cat((self.fixed, self.token)).sort().values
        self._rows_kept = rows
        self.position = self.position[..., rows]
        left = stream.keep(rows)
        if not compact or self.position.ndim == 3:  # on M-RoPE a token's row and column say where it was seen
            return left
        self.position = self.position - (~stays).cumsum(0)[rows]
        self.shift += len(stays) - count
        self.session.trace.compacted.add(number)
        cos, sin = self.decoder.rotary_emb(left.hidden, self.position)
        return Stream(left.hidden, cos, sin, left.index)

    # ------------------------------------------------------------------ decode

    def _evict(
        self, number: int, layer: nn.Module, entered: Stream, kept: KeptLayer, prefill: bool
    ) -> tuple[CacheView, Selected | None]:
        view = self._decode_view(number, layer, entered, kept, prefill)
        selected = None
        for state in self.session.decode:
            with self._counting(state):
                decision = state.after(view)
            if isinstance(decision, Selected):
                selected = decision
            elif decision is not None:
                self._keep_entries(number, kept, decision)
                view = self._decode_view(number, layer, entered, kept, prefill)
        # they hold what entered the layer, and the views of all layers wait for `finish`
        view.attention, view.streamed = _gone, None
        return view, selected

    def _decode_view(self, number: int, layer: nn.Module, entered: Stream, kept: KeptLayer, prefill: bool) -> CacheView:
        attended = None if self.parking.selected is None else self.parking.attended(kept.positions())
        have = entered.hidden.shape[1]

        def attention(rows: int) -> Tensor:
            position = kept.positions()
            seen = position if attended is None else position.masked_fill(~attended, NEVER)
            return self._rows(layer, entered, kept.in_order(kept.keys[0], 1), seen, last_rows(have, rows))

        def streamed(weights: Tensor) -> Tensor:
            if not prefill or kept.size != have:
                rows = attention(len(weights))
                with self.session.trace.counted.paused() as counted:
                    counted.total += 2.0 * rows.numel()
                    return fold_rows(rows, weights, len(kept.keys[0]))
            query = self._queries(layer, entered, last_rows(have, len(weights)))
            with self.session.trace.counted.paused() as counted:
                counted.total += column_sum_flops(query, kept.keys[0])
                return decayed_column_sum(query, kept.keys[0], weights, self._scale(layer))

        return CacheView(
            kept,
            self.session.visual.token,
            layer=number,
            layers=len(self.decoder.layers),
            prefill=prefill,
            step=self.session.step,
            attention=attention,
            attended=attended,
            prompt_rows=self.prompt_rows,
            streamed=streamed,
        )

    def _keep_entries(self, number: int, kept: KeptLayer, decision: KeptKV) -> None:
        if decision.freed is not None and isinstance(kept, PagedLayer) and kept.pages:
            kept.free(decision.freed)
        else:
            kept.keep(decision.index, decision.keys, decision.values)
        call = (self.session.step, number)
        earlier = self.session.trace.evicted.get(call)
        if earlier is None:
            self.session.trace.evicted[call] = decision.index
        else:  # two decode methods at one layer: compose, so that a replay needs one step
            both = (earlier, decision.index)
            if earlier.ndim == 1 and decision.index.ndim == 1:
                self.session.trace.evicted[call] = earlier[decision.index]
            else:
                heads = max(index.shape[0] if index.ndim == 2 else 1 for index in both)
                wide = [index.expand(heads, index.shape[-1]) for index in both]
                self.session.trace.evicted[call] = wide[0].gather(1, wide[1])

    def _finish(self, layers: Sequence[KeptLayer]) -> None:
        views = self.views
        for view in views:
            view.alive = self.alive
        for state in self.session.decode:
            decisions = state.finish(views)
            for number, decision in enumerate(decisions or ()):
                if decision is not None:
                    self._keep_entries(number, layers[number], decision)
            if decisions is not None:
                for view in views:
                    view.forget()

    def _lay_out(self, layers: Sequence[KeptLayer]) -> None:
        """Move what is cached of the prompt into pages, where a method evicts whole ones."""
        states = [state for state in self.session.decode if state.page is not None]
        for number, layer in enumerate(layers):
            if isinstance(layer, PagedLayer):
                layer.lay_out(max((state.room(number) for state in states), default=0))


def _gone(rows: int) -> Tensor:
    raise ValueError("attention rows are only there right after a layer ran; read them in `after`, not in `finish`")
