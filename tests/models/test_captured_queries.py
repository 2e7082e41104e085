"""Query rows that a layer computed serve as those computed anew, and what is not counted as it runs has nothing to count."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.tiny import onevision
from tests.tiny_qwen import qwen3_vl
from videoprune.layer_method import DecodeState, DecodeView
from videoprune.models.host import Host, Sampling
from videoprune.models.load import load_host
from videoprune.models.session import Session
from videoprune.registry import find, methods
from videoprune.run import Events, Run

ASKED = "what happens after the red circle ?"
ROWS, STEPS = 7, 3
# methods that ask the view for all of their products
ASKING = {
    "prefill": [("fastv", {}), ("metok", {})],
    "decode": [
        ("a2sf", {"keep": 0.4}),
        ("a2sf", {"keep": 0.4, "variant": "decode"}),
        ("dycoke", {}),
        ("h2o", {}),
        ("metok", {}),
        ("pagedeviction", {"page": 8}),
        ("random", {}),
        ("streamingllm", {}),
        ("uniform", {}),
    ],
}


@pytest.fixture(scope="module", params=[onevision, qwen3_vl], ids=["onevision", "qwen3-vl"])  # the latter norms queries
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Host:
    return load_host(request.param(tmp_path_factory.mktemp("model")), device="cpu")


def run(host: Host, prefill: list, decode: list, evidence: bool = False) -> Session:
    images = np.random.default_rng(0).integers(0, 255, (4, 112, 112, 3), dtype=np.uint8)
    tokens = host.encode(images, np.arange(4.0), 0, (), Sampling(4, 1.0)).tokens
    tokens = tokens.with_events(torch.zeros(tokens.frames, dtype=torch.int64))
    prompt, _ = host.prompt(ASKED, tokens)
    depth = host.decoder_shape.layers
    session = Session(prompt.visual, tokens, prefill, decode, frozenset(range(depth)) if evidence else frozenset())
    host.model.generation_config.eos_token_id = None
    host.generate(prompt, session, STEPS)
    assert not any(module._forward_hooks for module in host.model.modules())
    return session


class Reads(DecodeState):
    multiplies = False

    def __init__(self, captured: int) -> None:
        self.queries, self.seen = captured, []

    def after(self, view: DecodeView) -> None:
        self.seen.append(view.attention(ROWS))
        self.seen.append(view.column_sums(torch.arange(1.0, 1 + (ROWS if view.prefill else 1))))


@pytest.mark.parametrize("captured", [1, ROWS, 1000])
def test_captured_rows_equal_those_computed_anew(host: Host, captured: int) -> None:
    anew, own = Reads(0), Reads(captured)
    counted = [run(host, [], [state]).trace.counted.total for state in (anew, own)]
    for mine, other in zip(own.seen, anew.seen, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-5)
    shape = host.decoder_shape
    row = 2.0 * shape.width * shape.heads * shape.head_dim * shape.layers
    prompt_rows = 2 * ROWS if captured >= ROWS else 0
    assert counted[0] - counted[1] == row * (prompt_rows + 2 * (STEPS - 1))


def test_evidence_of_captured_rows(host: Host) -> None:
    """Evidence alone, and beside a method that has more rows captured, or none."""
    every = [run(host, [], states, evidence=True).trace for states in ([], [Reads(0)], [Reads(ROWS)])]
    for trace in every[1:]:
        torch.testing.assert_close(trace.evidence, every[0].evidence)
    assert every[0].evidence.sum() > 0


@pytest.mark.parametrize(
    ("stage", "name", "options"), [(stage, *each) for stage in ASKING for each in ASKING[stage]], ids=str
)
def test_what_is_not_counted_as_it_runs_has_no_products(host: Host, stage: str, name: str, options: dict) -> None:
    totals = []
    for counting in (False, True):
        about = Run(Events.single(4), relevance=torch.rand(4, generator=torch.Generator().manual_seed(0)))
        depth, states = host.decoder_shape.layers, {"prefill": [], "decode": []}
        if (stage, name) == ("decode", "metok"):
            states["prefill"] = [find("prefill", "metok").load()().start(about, depth)]
        state = find(stage, name).load()(**options).start(about, depth)
        assert not state.multiplies
        state.multiplies = counting
        states[stage].append(state)
        totals.append(run(host, **states).trace.counted.total)
    assert totals[0] == totals[1]


def test_every_method_that_says_so_is_tested_here(host: Host) -> None:
    for stage, tested in ASKING.items():
        about = Run(Events.single(4), published={"metok.layers": (1, 2, 3)})
        found = [each for each in methods(stage) if not each.external]
        made = {each.name: each.load()().start(about, 28) for each in found if each.name not in ("atp", "lvpruning")}
        assert {name for name, state in made.items() if not state.multiplies} == {name for name, _ in tested}
