"""PagedEviction against a list of pages in float64."""

import numpy as np
import pytest
import torch

from tests.decode.fakes import KV_HEADS, WIDTH, step_view, view
from videoprune.decode.pagedeviction import PagedEviction, entry_scores
from videoprune.errors import UsageError
from videoprune.run import Events, Run

RUN = Run(Events.single(4))
TEXT = [*range(6), *range(30, 40)]


def scores(keys, values):
    keys, values = keys.double().numpy(), values.double().numpy()
    return np.mean(np.linalg.norm(values, axis=2) / np.linalg.norm(keys, axis=2), axis=0)


def test_the_prompt_is_cut_entry_by_entry():
    seen = view()
    index = PagedEviction(keep=15).start(RUN, 28).after(seen).index
    assert index.tolist() == sorted(np.argsort(-scores(seen.keys, seen.values), kind="stable")[:15].tolist())
    kept = PagedEviction(keep=18, protect_text=True).start(RUN, 28).after(seen).index.tolist()
    assert len(kept) == 18
    assert set(TEXT) <= set(kept)
    assert PagedEviction(keep=3, protect_text=True).start(RUN, 28).after(seen).index.tolist() == TEXT


@pytest.mark.parametrize(("page", "keep"), [(8, 16), (8, 21), (16, 32), (16, 50), (32, 35), (8, 3)])
@pytest.mark.parametrize("protect", [False, True])
def test_whole_pages_leave_when_the_newest_is_full(page, keep, protect):
    state, seen = PagedEviction(keep=keep, page=page, protect_text=protect).start(RUN, 28), view()
    generator = torch.Generator().manual_seed(7)
    budget = max(keep, len(TEXT) * protect)
    keys, values, position = seen.keys, seen.values, seen.position
    kept = state.after(seen)
    freed = 0
    for step in range(1, 70):
        if kept is not None:
            keys, values, position = keys[:, kept.index], values[:, kept.index], position[:, kept.index]
        new = torch.randn(2, KV_HEADS, 1, WIDTH, generator=generator)
        keys, values = torch.cat((keys, new[0]), 1), torch.cat((values, new[1]), 1)
        position = torch.cat((position, torch.full((KV_HEADS, 1), 39 + step)), 1)
        now = step_view(0, step, keys, position, (6, 30), seen.query[:, -1:])
        now.values = values
        kept = state.after(now)
        length, mean = keys.shape[1], None
        if length % page == 0 and length > budget and length > page:
            mean = scores(keys, values).reshape(-1, page).mean(axis=1)[:-1]
            if protect:
                held = np.isin(position[0].numpy(), TEXT).reshape(-1, page).any(axis=1)[:-1]
                mean = np.where(held, np.inf, mean)
        if mean is None or np.isinf(mean).all():
            assert kept is None
        else:
            worst = int(mean.argmin())
            assert kept.index.tolist() == [i for i in range(length) if i // page != worst]
            freed += 1
        if not protect:
            assert length <= max(budget, page) + page
    assert freed > 0 or (protect and page == 32)  # text in every page


def test_nothing_to_do():
    for keep in (1, None, 40, 99):
        assert PagedEviction(keep=keep).start(RUN, 28).after(view()) is None
    assert PagedEviction().start(RUN, 28).after(view(length=1, visual=(0, 1))) is None


def test_black_frames_and_half_precision():
    black = view()
    black.keys, black.values = torch.zeros_like(black.keys), torch.zeros_like(black.values)
    assert PagedEviction(keep=7).start(RUN, 28).after(black).index.tolist() == list(range(7))
    seen = view()
    got = entry_scores(seen.keys.bfloat16(), seen.values.bfloat16())
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got, scores(seen.keys, seen.values), rtol=0.02)


@pytest.mark.parametrize("bad", [{"page": 12}, {"page": 0}, {"keep": 0}])
def test_refusals(bad):
    with pytest.raises(UsageError, match="given"):
        PagedEviction(**bad)
