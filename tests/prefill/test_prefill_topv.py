import numpy as np
import pytest
import torch

from tests.prefill.fakes import checked, ledger, run_with, view
from videoprune.errors import UsageError
from videoprune.prefill.topv import TopV, contributions

RUN = run_with([8], None)


def seen_by(tokens, token, **kwargs):
    """A view with the post-attention norm's output in it."""
    seen = view(2, tokens, token, **kwargs)
    seen.captured["post_attention_norm"] = torch.randn(seen.after.shape, generator=torch.Generator().manual_seed(9))
    return seen


def oracle(source, target, cell, centre, weights, sigma, epsilon, iterations):
    """One frame with whole matrices in float64."""
    far = np.linalg.norm(source[:, None] - target[None], axis=-1)
    far = (far - far.min()) / max(far.max() - far.min(), 1e-12)
    grid = 1 - np.exp(-((cell[:, None] - cell[None]) ** 2).sum(-1) / (2 * sigma**2))
    away = np.linalg.norm(cell - np.array(centre), axis=1)
    away = away / max(away.max(), 1e-12)
    kernel = np.exp(-(weights[0] * far + weights[1] * grid + weights[2] * away[:, None]) / epsilon)
    left = np.ones(len(source))
    for step in range(iterations):
        right = 1 / (kernel.T @ left)
        if step < iterations - 1:
            left = 1 / (kernel @ right)
    return (left[:, None] * kernel * right).sum(1)


def importance(seen, tokens, token, iterations=1):
    """Frame by frame."""
    got = np.zeros(len(token))
    frame = tokens.frame[token].numpy()
    source = seen.before[seen.visual].double().numpy()
    target = seen.captured["post_attention_norm"][seen.visual].double().numpy()
    cell = tokens.cell[token].double().numpy()
    centre = ((tokens.grid[0] - 1) / 2, (tokens.grid[1] - 1) / 2)
    for number in set(frame):
        own = frame == number
        got[own] = oracle(source[own], target[own], cell[own], centre, (1, 1, 0.01), 10, 0.1, iterations)
    return got


TOKEN = torch.tensor([0, 1, 2, 5, 6, 7, 8, 9, 10, 11, 24, 25, 26, 27, 28, 30])  # frames of 6, 6, 0, 0, 4 tokens… ragged


@pytest.mark.parametrize("iterations", [1, 3])
def test_keeps_what_supplies_most(iterations):
    tokens = ledger(8, 6)
    seen = seen_by(tokens, TOKEN)
    want = importance(seen, tokens, TOKEN, iterations)
    got = TopV(keep=7, recover=0, iterations=iterations).start(RUN, 32).after(seen)
    assert checked(got, 16).tolist() == sorted(np.argsort(-want, kind="stable")[:7].tolist())
    assert want.max() / want.min() > 1.02


def test_contributions_equal_the_definition_and_ignore_padding():
    torch.manual_seed(0)
    source, target, cell = torch.randn(2, 9, 5), torch.randn(2, 9, 5), torch.randint(0, 3, (2, 9, 2))
    valid = torch.arange(9) < torch.tensor([9, 5])[:, None]
    got = contributions(source, target, cell, (1.0, 1.0), valid, (0.7, 2.0, 0.3), 1.5, 0.2)
    for frame, size in enumerate((9, 5)):
        arrays = [each[frame, :size].double().numpy() for each in (source, target, cell)]
        np.testing.assert_allclose(got[frame, :size], oracle(*arrays, (1, 1), (0.7, 2, 0.3), 1.5, 0.2, 1), rtol=1e-3)
        assert got[frame, :size].sum().item() == pytest.approx(size, rel=1e-5)
    assert got[1, 5:].tolist() == [0] * 4


def test_ending_on_rows_ranks_by_norm():
    source = torch.randn(1, 12, 5, generator=torch.Generator().manual_seed(1))
    valid, cell = torch.ones(1, 12, dtype=torch.bool), torch.zeros(1, 12, 2, dtype=torch.int64)
    got = contributions(source, torch.flip(source, [1]), cell, (0.0, 0.0), valid, iterations=3, finish="rows")
    norm = source.norm(dim=-1)
    torch.testing.assert_close(got, norm / norm.mean(), rtol=1e-4, atol=1e-4)


def test_a_share_of_the_survivors_is_an_even_sample():
    tokens = ledger(10)
    seen = seen_by(tokens, torch.arange(40))
    got = checked(TopV(keep=20, recover=0.2).start(RUN, 32).after(seen), 40).tolist()
    best = np.argsort(-importance(seen, tokens, torch.arange(40)), kind="stable")[:16].tolist()
    rest = [place for place in range(40) if place not in best]
    assert sorted(set(got) - set(best)) == [rest[2], rest[8], rest[14], rest[20]]


@pytest.mark.parametrize(
    ("settings", "want"),
    [({}, 16), ({"keep": 0.3}, 10), ({"keep": 5}, 5), ({"at_most": 1}, 1), ({"recover": 1.0}, 16), ({"keep": 31}, 31)],
)
def test_budgets(settings, want):
    seen = seen_by(ledger(8), torch.arange(32))
    assert len(checked(TopV(**settings).start(RUN, 32).after(seen), 32)) == want


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_black_film_and_repeats(dtype):
    seen = seen_by(ledger(8), torch.arange(32))
    seen.before = torch.zeros_like(seen.before, dtype=dtype)
    seen.captured["post_attention_norm"] = seen.before
    first, second = (checked(TopV().start(RUN, 32).after(seen), 32) for _ in range(2))
    assert len(first) == 16
    assert torch.equal(first, second)


def test_tokens_without_a_place():
    tokens = ledger(4)
    tokens.cell[3] = -1
    assert len(TopV().start(RUN, 32).after(seen_by(tokens, torch.arange(16))).index) == 8


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_and_one_token(count):
    assert TopV().start(RUN, 32).after(seen_by(ledger(1), torch.arange(count))) is None
    assert TopV(keep=1).start(RUN, 32).after(seen_by(ledger(1), torch.arange(4))) is None


@pytest.mark.parametrize(
    "settings",
    [{"layer": -1}, {"layer": 32}, {"epsilon": 0}, {"sigma": 0}, {"alpha": -1}, {"iterations": 0}, {"finish": "both"},
     {"recover": 1.1}, {"keep": 0}],
)  # fmt: skip
def test_refusals(settings):
    with pytest.raises(UsageError):
        TopV(**settings)
