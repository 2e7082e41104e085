"""LazyLLM's decode stage against a reading in numpy: who is looked at behind each point of one step."""

import numpy as np
import pytest
import torch

from tests.prefill.fakes import run_with
from videoprune.decode.lazyllm import LazyLLM, confidence
from videoprune.errors import UsageError
from videoprune.layer_method import DecodeView
from videoprune.prefill.lazyllm import LazyLLM as Prefill

RUN = run_with([8], None)
HEADS, KV_HEADS, PROMPT, STEP = 4, 2, 40, 3


def step_view(layer, attended=None, seed=0, position=None):
    """The third decoded token: the prompt's entries (or those at `position`), then the answer's; attention is random."""
    if position is None:
        position = torch.arange(PROMPT + STEP).expand(KV_HEADS, -1)
    if attended is not None:
        attended = attended.expand(len(position), -1)
    rows = torch.rand(HEADS, 1, position.shape[1], generator=torch.Generator().manual_seed(seed * 100 + layer))
    if attended is not None:
        rows = rows * attended.repeat_interleave(HEADS // KV_HEADS, dim=0)[:, None]
    rows = rows / rows.sum(-1, keepdim=True)
    text = (position < 6) | (position >= 30)
    empty = torch.zeros(KV_HEADS, position.shape[1], 8)
    return DecodeView(
        layer=layer, layers=32, prefill=False, step=STEP, keys=empty, values=empty, position=position, text=text,
        attention=lambda last: rows, attended=attended, prompt_rows=PROMPT,
    )  # fmt: skip


def looked_at(*chosen):
    """(S,) bool, these prompt tokens and the answer."""
    mask = torch.zeros(PROMPT + STEP, dtype=torch.bool)
    mask[torch.tensor(*chosen)] = True
    mask[PROMPT:] = True
    return mask


def test_each_point_chooses_among_what_the_one_before_chose():
    state, attended, alive = LazyLLM().start(RUN, 32), None, np.arange(PROMPT)
    for layer in range(32):
        view = step_view(layer, attended)
        found = state.after(view)
        if layer not in (9, 18, 28):
            assert found is None
            continue
        score = view.attention(1)[:, 0].double().mean(0).numpy()[alive]
        alive = alive[score >= np.percentile(score, 30)]
        assert found.position.tolist() == alive.tolist()
        attended = looked_at(alive.tolist())
    assert len(alive) == 13  # 12 of 40 lie below, then 9 of 28, then 6 of 19
    assert state.revives


@pytest.mark.parametrize(("settings", "want"), [({"keep": 0.25}, 10), ({"keep": 4}, 4), ({"at_most": 3}, 3)])
def test_the_last_point_meets_the_budget(settings, want):
    state, attended, counts = LazyLLM(**settings).start(RUN, 32), None, []
    for layer in (9, 18, 28):
        chosen = state.after(step_view(layer, attended)).position.tolist()
        attended = looked_at(chosen)
        counts.append(len(chosen))
    assert counts[-1] == want
    assert counts == sorted(counts, reverse=True)


def test_every_step_begins_anew():
    state = LazyLLM().start(RUN, 32)
    first = state.after(step_view(9)).position
    state.after(step_view(18, looked_at(first.tolist())))
    again = state.after(step_view(9)).position
    other = state.after(step_view(9, seed=1)).position
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_protected_text_is_always_looked_at():
    text = [*range(6), *range(30, 40)]
    wide = LazyLLM(protect_text=True).start(RUN, 32).after(step_view(9)).position.tolist()
    assert set(text) <= set(wide)
    assert len(wide) == 28
    alone = LazyLLM(protect_text=True, layers=(10,), percentiles=(30,), keep=5).start(RUN, 32)
    assert alone.after(step_view(9)).position.tolist() == text  # beyond the budget, and nothing else
    assert set(text) - set(
        LazyLLM(keep=5, layers=(10,), percentiles=(30,)).start(RUN, 32).after(step_view(9)).position.tolist()
    )


def test_heads_that_hold_different_entries():
    position = torch.stack((torch.tensor([0, 2, 3, 5, 40, 41]), torch.tensor([0, 1, 3, 6, 40, 41])))
    view = step_view(9, position=position)
    rows, want = view.attention(1)[:, 0].double().numpy(), np.zeros(PROMPT)
    for head in range(HEADS):
        for entry, token in enumerate(position[head // 2].tolist()):
            if token < PROMPT:
                want[token] += rows[head, entry] / HEADS
    np.testing.assert_allclose(confidence(view.attention(1)[:, 0], position, PROMPT), want, atol=1e-6)
    chosen = LazyLLM(keep=3, layers=(10,), percentiles=(30,)).start(RUN, 32).after(view).position
    held = [0, 1, 2, 3, 5, 6]
    assert chosen.tolist() == sorted(sorted(held, key=lambda token: -want[token])[:3])


def test_layers_are_those_of_the_prefill_stage():
    run = run_with([8], None)
    Prefill(layers=(5, 20), percentiles=(50, 10)).start(run, 32)
    state = LazyLLM().start(run, 32)
    assert [layer for layer in range(32) if state.after(step_view(layer)) is not None] == [4, 19]
    assert len(state.after(step_view(4)).position) == 20


def test_nothing_is_chosen_in_prefill():
    view = step_view(9)
    view.prefill = True
    assert LazyLLM().start(RUN, 32).after(view) is None
    assert LazyLLM(keep=1).identity


@pytest.mark.parametrize(
    "settings",
    [
        {"layers": (16, 8, 24)},
        {"layers": (8,)},
        {"percentiles": (100, 0, 0)},
        {"keep": 0},
        {"at_most": 0},
        {"paper_depth": 2},
    ],
)
def test_refusals(settings):
    with pytest.raises(UsageError):
        LazyLLM(**settings)
