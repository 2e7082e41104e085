"""Hiding by masks against removing: the same answers' logits; and the gradient of what is hidden, written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.matrix import QUESTION, host_of, watch
from videoprune.asking import prepare
from videoprune.layer_method import PrefillView
from videoprune.models.masked import log_gate, read_masked
from videoprune.pipeline import Pipeline
from videoprune.prefill._gated import GatedPrefill
from videoprune.prefill.atp import ATP
from videoprune.prefill.lvpruning import LVPruning
from videoprune.recipe import Recipe
from videoprune.trained import HostFacts

HOSTS = ("onevision", "video_llava", "internvl", "qwen2_5_vl", "qwen3_vl")
METHODS: dict[str, GatedPrefill] = {
    "lvpruning": LVPruning(layers=(4, 12, 22)),
    "atp": ATP(layers=(4, 12, 22)),  # untrained thresholds
}


def bound(method: GatedPrefill, host: Any) -> GatedPrefill:
    facts = HostFacts.of(host)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        method.bind(facts, method.build(facts))
    return method


def piped(host: Any, method: GatedPrefill) -> Pipeline:
    pipe = Pipeline(host, Recipe.load({"max_new_tokens": 4}))
    pipe.stages.prefill = (bound(method, host),)
    return pipe


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", HOSTS)
def test_hidden_tokens_are_as_good_as_removed_ones(family: str, name: str) -> None:
    host, method = host_of(family, "float32"), METHODS[name]
    pipe = piped(host, method)
    video = watch(pipe, "moving")
    answer = video.ask(QUESTION, logits=True)
    assert answer.logits is not None
    points = method.points(host.decoder_shape.layers)
    assert answer.trace.kept.keys() <= set(points)
    assert len(answer.alive) < len(answer.tokens)
    seen: list[PrefillView] = []

    def decide(view: PrefillView) -> Tensor:
        seen.append(view)
        left = answer.trace.kept.get(view.layer)
        return view.gate if left is None else torch.isin(view.token, left).float()

    asked = prepare(video, QUESTION)
    ids = torch.tensor(answer.ids)
    with torch.no_grad():
        logits = read_masked(host, asked.prompt, asked.tokens, ids, frozenset(points), decide, floor=0.0)
    assert [view.layer for view in seen] == list(points)
    assert float((logits - answer.logits).abs().max()) <= 1e-4


@pytest.mark.parametrize("name", METHODS)
def test_scores_of_training_and_use_agree_where_gates_are_hard(name: str) -> None:
    """What training sees of the tokens that are left is what use sees, so that both choose the same."""
    host, method = host_of("onevision", "float32"), METHODS[name]
    pipe = piped(host, method)
    video = watch(pipe, "moving")
    answer = video.ask(QUESTION)

    def decide(view: PrefillView) -> Tensor:
        point = method.points(host.decoder_shape.layers).index(view.layer)
        if isinstance(method, LVPruning):
            logits = method.logits(method.part, view, point)
            score = (logits[:, 0] - logits[:, 1]).masked_fill(view.gate == 0, -torch.inf)
            count = len(answer.trace.kept[view.layer])
            stays = torch.zeros(len(score), dtype=torch.bool).index_fill_(0, score.topk(count).indices, True)
        else:
            stays = (torch.maximum(*method.above(method.part, view, point)) > 0) & (view.gate > 0)  # type: ignore[attr-defined]
        assert torch.equal(view.token[stays], answer.trace.kept[view.layer])
        return stays.float()

    asked = prepare(video, QUESTION)
    points = frozenset(method.points(host.decoder_shape.layers))
    with torch.no_grad():
        read_masked(host, asked.prompt, asked.tokens, torch.tensor([7]), points, decide, floor=0.0)


def test_the_answer_is_not_in_what_gates_see() -> None:
    host = host_of("onevision", "float32")
    method = METHODS["lvpruning"]
    video = watch(piped(host, method), "moving")
    asked = prepare(video, QUESTION)
    found: list[list[Tensor]] = []
    for answer in ([5, 6, 7], [9, 10, 11, 12]):
        views: list[Tensor] = []

        def decide(view: PrefillView, views: list[Tensor] = views) -> Tensor:
            assert int(view.last_row) == asked.prompt.embeddings.shape[1] - 1
            assert int(view.text_after[-1]) == int(view.last_row)
            views.append(method.logits(method.part, view, len(views)))
            return torch.linspace(0.1, 1, len(view.visual))

        points = frozenset(method.points(host.decoder_shape.layers))
        with torch.no_grad():
            read_masked(host, asked.prompt, asked.tokens, torch.tensor(answer), points, decide)
        found.append(views)
    for one, other in zip(*found, strict=True):
        assert float((one - other).abs().max()) < 1e-5


def test_a_hidden_token_is_told_what_coming_back_would_change() -> None:
    """The gradient of softmax(A + log g) V towards g against that of exp(A) g V / Σ exp(A) g, in float64."""
    generator = torch.Generator().manual_seed(0)
    logits, values = torch.randn(5, 8, generator=generator).double(), torch.randn(8, 3, generator=generator).double()
    weight = torch.randn(5, 3, generator=generator).double()
    hard = torch.tensor([1, 0, 1, 1, 0, 0, 1, 0]).double()

    gate = hard.clone().requires_grad_()
    masked = torch.softmax(logits + log_gate(gate, floor=1e-9), dim=-1) @ values
    (masked * weight).sum().backward()
    told = gate.grad

    plain = hard.clone().requires_grad_()
    shares = logits.exp() * plain
    written = (shares / shares.sum(-1, keepdim=True)) @ values
    (written * weight).sum().backward()
    assert torch.allclose(masked, written, atol=1e-7)
    assert plain.grad is not None
    assert told is not None
    assert float(plain.grad[hard == 0].abs().min()) > 1e-3
    assert torch.allclose(told, plain.grad, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_mixed_precision_has_gradients(name: str) -> None:
    host, method = host_of("onevision", "bfloat16"), METHODS[name]
    host.model.requires_grad_(False)
    video = watch(Pipeline(host, Recipe.load({})), "moving")
    asked = prepare(video, QUESTION)
    part = method.build(HostFacts.of(host))
    points = method.points(host.decoder_shape.layers)
    torch.manual_seed(0)

    def decide(view: PrefillView) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return method.gates(part, view, points.index(view.layer), 0.5).gate

    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = read_masked(host, asked.prompt, asked.tokens, torch.tensor([5, 6]), frozenset(points), decide)
        torch.nn.functional.cross_entropy(logits.float(), torch.tensor([5, 6])).backward()
    for weight in part.parameters():
        assert weight.dtype == torch.float32
        assert weight.grad is not None
        assert bool(torch.isfinite(weight.grad).all())
    assert sum(float(weight.grad.abs().sum()) for weight in part.parameters()) > 0  # type: ignore[union-attr]
