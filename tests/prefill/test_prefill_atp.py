"""ATP against the N x N reading of its scores, its thresholds and its losses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.prefill.fakes import ledger, run_with, view, walk
from videoprune.bench import ops
from videoprune.errors import UsageError
from videoprune.ops.attention import row_attention
from videoprune.prefill._gated import Gates
from videoprune.prefill.atp import ATP, received, spatial_score, standard
from videoprune.trained import HostFacts, bind_fresh

FACTS = HostFacts("fake", 6, 28, 4, 2, 8, 6, 4, (2, 2))


def bound(**options: object) -> ATP:
    method = ATP(**options)  # type: ignore[arg-type]
    bind_fresh([method], FACTS)
    return method


def test_mean_logits_without_the_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(6, 11, 4, generator=generator), torch.randn(2, 11, 4, generator=generator)
    weight = torch.rand(11, generator=generator)
    wide = key.double().repeat_interleave(3, dim=0)
    matrix = query.double() @ wide.transpose(1, 2) * 0.5  # (6, 11, 11)
    expected = (matrix * (weight.double() / weight.double().sum())[None, :, None]).sum(1).mean(0)
    assert torch.allclose(received(query, key, 0.5, weight).double(), expected, atol=1e-6)


def test_standard_scores_under_weights() -> None:
    score, weight = torch.tensor([1.0, 5.0, 3.0, 100.0]), torch.tensor([1.0, 1.0, 1.0, 0.0])
    z = (np.array([1, 5, 3]) - 3) / np.sqrt(8 / 3)
    assert np.allclose(standard(score, weight)[:3].numpy(), 1 / (1 + np.exp(-z)), atol=1e-6)
    assert float(standard(torch.ones(3), torch.ones(3))[0]) == 0.5  # nothing to tell apart


def test_spatial_scores_are_those_of_the_coarsest_sample() -> None:
    cell = torch.cartesian_prod(torch.arange(12), torch.arange(12))
    score = spatial_score(torch.cat((cell, torch.tensor([[-1, -1]]))), (4, 3, 2), 3.0)
    for (row, column), found in zip(cell.tolist(), score.tolist(), strict=False):
        inside = [s for s in (4, 3, 2) if (row - s // 2) % s == 0 and (column - s // 2) % s == 0]
        assert found == pytest.approx(1 - 3 / inside[0] ** 2 if inside else 0.0)
    assert float(score[-1]) == 0
    assert int((score == 1 - 3 / 16).sum()) == 9


def test_the_transcription_chooses_the_same() -> None:
    tokens = ledger(6)
    seen = view(3, tokens, torch.arange(24), behind=5)
    query, key = seen.query(), seen.key()
    seen = replace(seen, scale=8**-0.5, attention=lambda rows: row_attention(query[:, rows], key, 8**-0.5, rows))
    method = bound(layers=(4,), paper_depth=28)
    kept = method.start(run_with([6], None), 28).after(seen)
    assert kept is not None
    reference = ops.references()[1]
    with torch.no_grad():
        expected = reference.atp(query, key, tokens.cell, (4, 3, 2), method.part[0], 3, 27)  # type: ignore[index]
    assert kept.index.tolist() == expected.tolist()


def test_counts_differ_and_budgets_are_ceilings() -> None:
    """Films whose scores are skewed keep less than films whose scores are even, under the same thresholds."""
    tokens, run = ledger(10), run_with([10], None)
    free = walk(bound(), run, 28, tokens)
    assert 1 <= free[27] < 40
    below = walk(bound(keep=3), run, 28, tokens)
    assert below[27] <= 3
    assert [below[layer] for layer in range(20)] == [free[layer] for layer in range(20)]  # the last point alone
    assert walk(bound(keep=0.999), run, 28, tokens) == free
    assert walk(bound(at_most=2), run, 28, tokens)[27] <= 2


def test_one_token_stays_where_none_passes() -> None:
    tokens, method = ledger(6), bound(layers=(4,), paper_depth=28)
    with torch.no_grad():
        method.part[0].inner[2].bias.fill_(50.0)  # type: ignore[index,union-attr]
    kept = method.start(run_with([6], None), 28).after(view(3, tokens, torch.arange(24)))
    assert kept is not None
    assert len(kept.index) == 1


def test_losses_by_hand() -> None:
    method = ATP(layers=(8, 16), target=0.25, depth_weight=0.5, target_weight=2.0)
    decided = [
        [Gates(torch.ones(1), torch.tensor(count)) for count in counts] for counts in ((40.0, 20.0), (10.0, 0.0))
    ]
    found = method.penalties(decided, [100, 50])
    shares = np.array([[0.4, 0.2], [0.2, 0.0]])
    assert float(found["depth"]) == pytest.approx(0.5 * (shares @ [0.25, 0.5]).mean())
    assert float(found["target"]) == pytest.approx(2.0 * abs(shares.mean() - 0.25))


def test_training_gates_are_soft_and_sharpen() -> None:
    torch.manual_seed(0)
    method, tokens = ATP(), ledger(6)
    part = method.build(FACTS)
    seen = view(3, tokens, torch.arange(24))
    seen.gate = torch.full((24,), 0.5)
    early, late = (method.gates(part, seen, 0, progress).gate for progress in (0.0, 1.0))
    assert float(early.max()) <= 0.5
    assert float((late - 0.25).abs().mean()) > float((early - 0.25).abs().mean())
    early.sum().backward()
    assert all(float(weight.grad.abs().sum()) > 0 for weight in part[0].parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ()}, "layers"),
        ({"target": 0}, "target"),
        ({"strides": (2, 3)}, "strides"),
        ({"strides": ()}, "strides"),
        ({"spatial_weight": 9}, "spatial_weight"),
        ({"final_temperature": -1}, "final_temperature"),
        ({"keep": 2.5}, "keep"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ATP(**options)  # type: ignore[arg-type]
