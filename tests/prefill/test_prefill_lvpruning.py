"""LVPruning against a reading of its decision module, its schedule and its losses."""

from __future__ import annotations

import pytest
import torch

from tests.prefill.fakes import ledger, run_with, view, walk
from videoprune.bench import ops
from videoprune.errors import UsageError
from videoprune.prefill.lvpruning import Decider, LVPruning, ratio_loss
from videoprune.trained import HostFacts, bind_fresh

FACTS = HostFacts("fake", 6, 28, 4, 2, 8, 6, 4, (2, 2))


def bound(**options: object) -> LVPruning:
    method = LVPruning(**options)  # type: ignore[arg-type]
    bind_fresh([method], FACTS)
    return method


def test_the_module_is_the_papers() -> None:
    torch.manual_seed(0)
    decider = Decider(12, 16, 4)
    film, text = torch.randn(9, 12), torch.randn(5, 12)
    reference = ops.references()[1]
    with torch.no_grad():
        logits = decider(film, text)
    for count in (1, 4, 8):
        best = (logits[:, 0] - logits[:, 1]).topk(count).indices.sort().values
        assert torch.equal(reference.lvpruning(film, text, dict(decider.state_dict()), 4, count), best)


def test_counts_are_shares_of_what_came_in() -> None:
    tokens, run = ledger(10), run_with([10], None)
    counts = walk(bound(), run, 28, tokens)  # before layers 1, 7 and 14 of 28
    assert [counts[layer] for layer in (0, 5, 6, 12, 13, 27)] == [20, 20, 12, 12, 4, 4]
    assert walk(bound(keep=0.25), run, 28, tokens)[27] == 10
    assert walk(bound(keep=7), run, 28, tokens)[27] == 7
    assert walk(bound(at_most=3), run, 28, tokens)[27] == 3
    assert walk(bound(keep=1000), run, 28, tokens)[27] == 40


def test_what_stays_is_what_the_module_wants_most() -> None:
    tokens, method = ledger(6), bound(keep=0.5)
    seen = view(0, tokens, torch.arange(24))
    kept = method.start(run_with([6], None), 28).after(seen)
    assert kept is not None
    logits = method.part[0](seen.after[seen.visual], seen.after[seen.text_after])  # type: ignore[index]
    wanted = (logits[:, 0] - logits[:, 1]).double().numpy()
    assert kept.index.tolist() == sorted(sorted(range(24), key=lambda token: -wanted[token])[: len(kept.index)])


def test_ratio_loss_by_hand() -> None:
    gates = [torch.tensor([1.0, 1, 0, 0]), torch.tensor([1.0, 0, 0, 0])]
    assert float(ratio_loss(gates, (0.75, 0.5))) == pytest.approx(((0.25) ** 2 + (0.25) ** 2) / 2)


def test_training_gates_are_hard_cumulative_and_have_gradients() -> None:
    torch.manual_seed(0)
    method, tokens = LVPruning(), ledger(6)
    part = method.build(FACTS)
    seen = view(0, tokens, torch.arange(24))
    seen.gate = (torch.arange(24) % 2).float()
    decided = method.gates(part, seen, 0, 0.0)
    assert set(decided.gate.tolist()) <= {0.0, 1.0}
    assert float(decided.gate[::2].max()) == 0
    sum(method.penalties([[decided, decided, decided]], [24]).values()).backward()  # type: ignore[union-attr]
    assert float(part[0].out.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": (8, 1)}, "layers"),
        ({"shares": (0.5, 0.5, 0.1)}, "shares"),
        ({"shares": (0.5, 0.3)}, "shares"),
        ({"divisor": 0}, "divisor"),
        ({"temperature": 0}, "temperature"),
        ({"keep": 0.0}, "keep"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LVPruning(**options)  # type: ignore[arg-type]


def test_without_a_part_it_says_so() -> None:
    state = LVPruning().start(run_with([6], None), 28)
    with pytest.raises(UsageError, match="no learned part"):
        state.after(view(0, ledger(6), torch.arange(24)))


def test_layers_that_collide_are_refused() -> None:
    with pytest.raises(UsageError, match=r"layers.*(collide|become)"):
        LVPruning(layers=(1, 2, 3)).start(run_with([6], None), 8)
