"""The bound of a pruned prefill: the same loop given the indices, so that only their selection is left out."""

from __future__ import annotations

from collections.abc import Sequence

from videoprune.layer_method import DecodeState, DecodeView, Kept, KeptKV, PrefillState, PrefillView, Selected
from videoprune.models.session import Session


class Recorder(PrefillState):
    """A method's state that writes down what it decides."""

    def __init__(self, state: PrefillState) -> None:
        self.state, self.decided = state, dict[int, Kept | None]()
        self.at, self.needs, self.positions, self.multiplies = state.at, state.needs, state.positions, state.multiplies

    def after(self, view: PrefillView) -> Kept | None:
        self.decided[view.layer] = self.state.after(view)
        return self.decided[view.layer]


class Replay(PrefillState):
    """Gives what was recorded and looks at nothing: no outputs are captured for it, no products counted."""

    multiplies = False

    def __init__(self, recorded: Recorder) -> None:
        self.at, self.positions, self.decided = recorded.at, recorded.positions, recorded.decided

    def after(self, view: PrefillView) -> Kept | None:
        return self.decided[view.layer]


class DecodeRecorder(DecodeState):
    """As `Recorder`, for what leaves the cache."""

    def __init__(self, state: DecodeState) -> None:
        self.state, self.decided = state, dict[tuple[int, int], KeptKV | Selected | None]()
        self.revives, self.page, self.queries, self.multiplies = (
            state.revives,
            state.page,
            state.queries,
            state.multiplies,
        )
        self.finished: Sequence[KeptKV | None] | None = None

    def after(self, view: DecodeView) -> KeptKV | Selected | None:
        self.decided[view.step, view.layer] = self.state.after(view)
        return self.decided[view.step, view.layer]

    def room(self, layer: int) -> int:
        return self.state.room(layer)

    def finish(self, views: Sequence[DecodeView]) -> Sequence[KeptKV | None] | None:
        self.finished = self.state.finish(views)
        return self.finished


class DecodeReplay(DecodeState):
    """As `Replay`, for what leaves the cache; good for as many steps as were recorded."""

    multiplies = False

    def __init__(self, recorded: DecodeRecorder) -> None:
        self.decided, self.finished, self.revives = recorded.decided, recorded.finished, recorded.revives
        self.page, self.room = recorded.page, recorded.room  # type: ignore[method-assign]

    def after(self, view: DecodeView) -> KeptKV | Selected | None:
        return self.decided[view.step, view.layer]

    def finish(self, views: Sequence[DecodeView]) -> Sequence[KeptKV | None] | None:
        return self.finished


class Recorded:
    """What the methods of one session decide: run it once, then `session` gives others that are told so.

    Args:
        session: before it is run; its states are replaced by recorders.
    """

    def __init__(self, session: Session) -> None:
        self.prefill = [Recorder(state) for state in session.prefill]
        self.decode = [DecodeRecorder(state) for state in session.decode]
        session.prefill, session.decode = self.prefill, self.decode
        self.recording = session

    def session(self) -> Session:
        """A session of the same prompt that is given the indices."""
        return Session(
            visual=self.recording.visual,
            tokens=self.recording.tokens,
            prefill=[Replay(each) for each in self.prefill],
            decode=[DecodeReplay(each) for each in self.decode],
            evidence_layers=self.recording.evidence_layers,
        )
