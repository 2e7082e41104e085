import numpy as np
import pytest
import torch

from tests.prefill.fakes import checked, ledger, run_with, view, walk
from videoprune.errors import UsageError
from videoprune.prefill.dart import DART, select

RUN = run_with([8], None)


def oracle(seen, count, images=4, texts=4):
    """The card, token by token, in float64."""
    norm = np.abs(seen.key().double().numpy()).sum((0, 2))
    visual, text = seen.visual.tolist(), seen.text_after.tolist()
    first = sorted(visual, key=lambda row: -norm[row])[: min(images, count)]
    pivots = first + sorted(text, key=lambda row: -norm[row])[:texts]
    states = seen.final_norm(seen.after).double().numpy()
    states = states / np.maximum(np.linalg.norm(states, axis=1, keepdims=True), 1e-12)
    kept, left = list(first), count - len(first)
    for turn, pivot in enumerate(pivots):
        quota = left // len(pivots) + (turn < left % len(pivots))
        pool = [row for row in visual if row not in kept]
        kept += sorted(pool, key=lambda row: states[pivot] @ states[row])[:quota]
    return sorted(row - visual[0] for row in kept)


@pytest.mark.parametrize("behind", [6, 2, 0])
@pytest.mark.parametrize("count", [1, 3, 4, 5, 13, 20, 31])
def test_equals_the_card(count, behind):
    seen = view(1, ledger(8), torch.arange(32), behind=behind, seed=3)
    got = checked(DART(keep=count).start(RUN, 32).after(seen), 32) if count > 1 else None
    got = checked(DART(at_most=1).start(RUN, 32).after(seen), 32) if got is None else got
    assert got.tolist() == oracle(seen, count)


def test_other_pivots():
    seen = view(1, ledger(8), torch.arange(32), seed=5)
    method = DART(keep=17, image_pivots=5, text_pivots=3)
    assert method.start(RUN, 32).after(seen).index.tolist() == oracle(seen, 17, 5, 3)
    assert len(DART(keep=17, text_pivots=0).start(RUN, 32).after(seen).index) == 17


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copies_are_taken_once(dtype):
    states = torch.ones(24, 8, dtype=dtype)  # all alike
    got = select(states, torch.tensor([3, 1, 20, 22]), 2, 15)
    assert got.tolist() == [*range(15)]
    states[:20] = 0  # black
    assert len(set(select(states, torch.tensor([3, 1, 20, 22]), 2, 19).tolist())) == 19


def test_bfloat16_and_repeats():
    seen = view(1, ledger(8), torch.arange(32))
    seen.after = seen.after.bfloat16()
    first, second = (DART().start(RUN, 32).after(seen).index for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("settings", "want"), [({}, 7), ({"keep": 0.3}, 10), ({"keep": 5}, 5), ({"keep": 1}, 32), ({"at_most": 3}, 3)]
)
def test_budgets(settings, want):
    assert walk(DART(**settings), RUN, 28, ledger(8))[27] == want


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_and_one_token(count):
    assert DART().start(RUN, 28).after(view(1, ledger(1), torch.arange(count))) is None


@pytest.mark.parametrize(
    "settings", [{"layer": 0}, {"layer": 32}, {"image_pivots": 0}, {"text_pivots": -1}, {"keep": 0}, {"paper_depth": 0}]
)
def test_refusals(settings):
    with pytest.raises(UsageError):
        DART(**settings)
