"""StreamingLLM, entry by entry."""

import pytest
import torch

from tests.decode.fakes import KV_HEADS, checked, step_view, view
from videoprune.decode.streamingllm import StreamingLLM
from videoprune.errors import UsageError
from videoprune.run import Events, Run

RUN = Run(Events.single(4))
TEXT = [*range(6), *range(30, 40)]


@pytest.mark.parametrize(
    ("settings", "want"),
    [
        ({}, [0, 1, 2, 3, *range(24, 40)]),
        ({"keep": 10, "sinks": 0}, list(range(30, 40))),
        ({"keep": 3}, [0, 1, 39]),  # a sink less for a recent one
        ({"keep": 0.01}, [39]),
        ({"at_most": 5, "keep": None}, [0, 1, 2, 3, 39]),
        ({"keep": 18, "protect_text": True}, [*TEXT[:6], 28, 29, *TEXT[6:]]),
        ({"keep": 5, "protect_text": True}, TEXT),
    ],
)
def test_entries(settings, want):
    index = checked(StreamingLLM(**settings).start(RUN, 28).after(view()), 40)
    assert index.tolist() == [want] * KV_HEADS


@pytest.mark.parametrize("settings", [{"keep": 1}, {"keep": None}, {"keep": 40}, {"keep": 99}])
def test_nothing_to_do(settings):
    assert StreamingLLM(**settings).start(RUN, 28).after(view()) is None


@pytest.mark.parametrize(("keep", "protect"), [(20, False), (44, False), (0.5, True), (5, True)])
def test_the_window_moves_with_the_answer(keep, protect):
    state, seen = StreamingLLM(keep=keep, protect_text=protect).start(RUN, 28), view()
    budget = max(20 if keep == 0.5 else keep, len(TEXT) * protect)
    keys, position, places = seen.keys.bfloat16(), seen.position, list(range(40))
    kept = state.after(seen)
    for step in range(9):
        if kept is not None:
            index = checked(kept, keys.shape[1])
            keys, position = keys.gather(1, index[..., None].expand(-1, -1, 8)), position.gather(1, index)
        while len(places) > budget:
            free = [p for p in places[4:] if not (protect and p in TEXT)]
            places.remove(free[0])
        assert position[0].tolist() == places
        places.append(40 + step)
        keys = torch.cat((keys, keys[:, :1]), 1)
        position = torch.cat((position, torch.full((KV_HEADS, 1), 40 + step)), 1)
        kept = state.after(step_view(0, step + 1, keys, position, (6, 30), seen.query[:, -1:]))


@pytest.mark.parametrize("bad", [{"sinks": -1}, {"keep": 0}, {"at_most": 0}])
def test_refusals(bad):
    with pytest.raises(UsageError):
        StreamingLLM(**bad)
