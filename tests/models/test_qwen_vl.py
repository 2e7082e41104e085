"""Qwen-VL hosts: the stock classes from text and patches with nothing pruned, the masked oracle with everything pruned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.models.qwen import ASKED, STEPS, encode, generate, stock_inputs
from tests.models.test_decoder import CASES, DropsHalf, EvictsEveryStep, Recorder, states
from tests.models.test_packed_tower import MAKERS
from tests.oracle import oracle_logits
from videoprune.errors import UsageError
from videoprune.models.host import Prompt
from videoprune.models.load import load_host
from videoprune.models.qwen_vl import QwenVL
from videoprune.models.session import Session
from videoprune.run import Events, Run
from videoprune.tokens import VisualTokens


@pytest.fixture(scope="module", params=MAKERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MAKERS[request.param](tmp_path_factory.mktemp("models") / request.param)


@pytest.fixture(scope="module")
def host(folder: Path) -> QwenVL:
    loaded = load_host(folder, device="cpu")
    assert isinstance(loaded, QwenVL)
    return loaded


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (10, 120, 120, 3), dtype=np.uint8)


@pytest.mark.parametrize(("frames", "interval"), [(10, 1.0), (7, 0.72), (1, 1.0)])
def test_features_positions_and_answer_equal_the_stock_class(
    frames: int, interval: float, host: QwenVL, images: np.ndarray
) -> None:
    inputs = stock_inputs(host, images[:frames], interval)
    ids, logits = generate(host, **inputs)
    tokens = encode(host, images[:frames], interval)
    prompt, choices = host.prompt(ASKED, tokens)
    assert not choices
    assert prompt.dense_rows == inputs["input_ids"].shape[1] == prompt.embeddings.shape[1]
    given = {key: inputs[key] for key in inputs if key in ("input_ids", "mm_token_type_ids", "video_grid_thw")}
    if "second_per_grid_ts" in inputs:
        given["second_per_grid_ts"] = inputs["second_per_grid_ts"]
    assert torch.equal(prompt.position_ids, host.model.model.get_rope_index(**given)[0])
    mine = host.generate(prompt, Session(prompt.visual, tokens), STEPS, logits=True)
    assert mine.ids == ids
    assert mine.logits is not None
    torch.testing.assert_close(mine.logits, logits, atol=1e-5, rtol=0)
    with torch.no_grad():
        whole = host.model(**inputs).logits[0, -1]
    torch.testing.assert_close(mine.logits[0], whole, atol=1e-5, rtol=0)


def test_nothing_is_left_on_the_model(host: QwenVL, images: np.ndarray) -> None:
    """`rope_deltas` is what these models remember between calls: a stock call after ours is as before."""
    inputs = stock_inputs(host, images, 1.0)
    before = generate(host, **inputs)
    tokens = encode(host, images[:4])
    prompt, _ = host.prompt(ASKED, tokens)
    host.generate(prompt, Session(prompt.visual, tokens, [DropsHalf()], [EvictsEveryStep()]), STEPS)
    after = generate(host, **inputs)
    assert before[0] == after[0]
    assert torch.equal(before[1], after[1])
    assert "forward" not in host.decoder.__dict__


def run_case(host: QwenVL, images: np.ndarray, prefill: list, decode: list) -> tuple[Prompt, Any, Session]:
    tokens = encode(host, images).with_events(torch.tensor([0, 0, 1, 1, 2]))
    tokens = tokens.with_scores(importance=torch.rand(len(tokens), generator=torch.Generator().manual_seed(5)))
    relevance = torch.tensor([0.1, 0.9, 0.2, 0.3, 0.8])
    run = Run(Events(torch.tensor([0, 0, 1, 1, 2])).ranked(relevance, 2), relevance=relevance, seed=3)
    prompt, _ = host.prompt(ASKED, tokens)
    recorded = [Recorder(state) for state in states(host, "prefill", prefill, run)]
    session = Session(prompt.visual, tokens, recorded, states(host, "decode", decode, run))
    return prompt, host.generate(prompt, session, STEPS, logits=True), session


# Qwen3-VL, whose visual block is interleaved with text, runs every method; the others one of each kind
COVERING = ["prefill-aim", "prefill-metok", "prefill-topv", "prefill-sparsevlm", "decode-a2sf", "decode-h2o", "chain"]
PAIRS = [("qwen3-vl", case) for case in CASES]
PAIRS += [(family, case) for family in ("qwen2-vl", "qwen2.5-vl") for case in COVERING]


@pytest.mark.parametrize(("folder", "case"), PAIRS, indirect=["folder"])
def test_pruned_run_equals_the_masked_oracle(case: str, host: QwenVL, images: np.ndarray) -> None:
    prompt, mine, session = run_case(host, images, *CASES[case])
    trace = session.trace
    assert trace.kept or trace.evicted, "the case prunes nothing"
    changes = {layer: change for state in session.prefill for layer, change in state.changes.items()}
    want = oracle_logits(host.model, prompt.embeddings, prompt.position_ids, prompt.visual, mine.ids, trace, changes)
    torch.testing.assert_close(mine.logits, want, atol=1e-4, rtol=0)
    assert min(trace.entries) < prompt.embeddings.shape[1] + STEPS - 1


class DropsHalfAtOnce(DropsHalf):
    at = frozenset({0, 1, 2})


def test_pruning_between_the_layers_that_deepstack_feeds(host: QwenVL, images: np.ndarray) -> None:
    tokens = encode(host, images)
    prompt, _ = host.prompt(ASKED, tokens)
    session = Session(prompt.visual, tokens, [DropsHalfAtOnce()], [EvictsEveryStep()])
    mine = host.generate(prompt, session, STEPS, logits=True)
    want = oracle_logits(host.model, prompt.embeddings, prompt.position_ids, prompt.visual, mine.ids, session.trace)
    torch.testing.assert_close(mine.logits, want, atol=1e-4, rtol=0)
    assert session.trace.visual_rows == [80, 40, 20, 10, 10, 10]
    if host.family == "qwen3-vl":  # and deepstack matters: without it, another answer
        block = replace(prompt.visual, deepstack=None)
        other = Session(block, tokens, [DropsHalfAtOnce()], [EvictsEveryStep()])
        bare = host.generate(prompt, other, STEPS, logits=True)
        assert float((bare.logits - mine.logits).abs().max()) > 0.1


# ------------------------------------------------------------------------------------------------------------ positions


def by_formula(host: QwenVL, tokens: VisualTokens, frames: int, step: Tensor) -> tuple[Tensor, int]:
    """(3, T) position ids of the visual rows and the one of the text behind, from the families' published rules, for a film
    of `frames` steps of which a row's is `step`."""
    before = len(host.prompt_ids(ASKED)[0])
    side = max(tokens.grid)
    row, column = tokens.cell.T
    if (
        host.family == "qwen3-vl"
    ):  # a step is a block of its own behind its time: < 1 . 5 seconds > and a mark; a mark ends it
        lead, close = 7, 1
        start = before + lead + step * (lead + side + close)
        return torch.stack((start, start + row, start + column)), before + frames * (lead + side + close)
    speed = 2 * 2.0 if host.family == "qwen2.5-vl" else 1  # tokens_per_second * seconds of a step
    time = before + (step * speed).long()
    return torch.stack((time, before + row, before + column)), before + side


@pytest.mark.parametrize("policy", ["original", "compact"])
def test_survivors_have_the_positions_of_the_unpruned_prompt(policy: str, host: QwenVL, images: np.ndarray) -> None:
    dense = encode(host, images)
    index = torch.tensor([3, 17, 18, 20, 31, 64, 70, 79])  # steps 0, 1, 1, 1, 1, 4, 4, 4
    tokens = dense.keep(index)
    frames, step = dense.frames, tokens.frame
    if policy == "compact":
        tokens = tokens.compacted()
        frames, step = 3, torch.tensor([0, 1, 1, 1, 1, 2, 2, 2])
    assert tokens.extent == frames
    prompt, _ = host.prompt(ASKED, tokens)
    want, behind = by_formula(host, tokens, frames, step)
    assert torch.equal(prompt.position_ids[:, 0, prompt.visual.rows], want)
    tail = prompt.position_ids[:, 0, prompt.visual.stop :]
    assert torch.equal(tail, (behind + torch.arange(tail.shape[1])).expand(3, -1))
    assert torch.equal(prompt.embeddings[0, prompt.visual.rows], tokens.features)
    assert prompt.dense_rows == host.prompt(ASKED, dense)[0].embeddings.shape[1]
    mine = host.generate(prompt, Session(prompt.visual, tokens), STEPS, logits=True)
    trace = mine.trace
    want_logits = oracle_logits(host.model, prompt.embeddings, prompt.position_ids, prompt.visual, mine.ids, trace)
    torch.testing.assert_close(mine.logits, want_logits, atol=1e-4, rtol=0)


def test_times_stand_before_the_steps_that_are_left(tmp_path: Path, images: np.ndarray) -> None:
    host = load_host(MAKERS["qwen3-vl"](tmp_path), device="cpu")
    tokens = encode(host, images)
    assert tokens.frame_seconds.tolist() == [0.5, 2.5, 4.5, 6.5, 8.5]
    kept = tokens.keep(torch.tensor([2, 18, 70]))
    block = host.prompt(ASKED, kept)[0]
    table = {tuple(row.tolist()): word for word, row in enumerate(host.model.get_input_embeddings().weight)}
    words = [table.get(tuple(row.tolist()), -1) for row in block.embeddings[0]]
    text = host.tokenizer.decode([host.model.config.video_token_id if word < 0 else word for word in words])
    marked = " ".join(
        f"< {time} seconds > <|vision_start|> <|video_pad|> <|vision_end|>" for time in ("0 . 5", "2 . 5", "8 . 5")
    )
    assert f"<|vision_start|> {marked} <|vision_end|> {ASKED[:4]}" in text
    assert "4 . 5" not in text


def test_merged_tokens_take_their_representatives_place(host: QwenVL, images: np.ndarray) -> None:
    """Features are averaged, deepstack is the representative's own."""
    dense = encode(host, images)
    into = torch.arange(80) // 2 * 2
    tokens = dense.merge(into)
    assert torch.equal(tokens.position, dense.position[:, ::2])
    torch.testing.assert_close(tokens.features, dense.features.view(40, 2, -1).mean(dim=1))
    prompt, _ = host.prompt(ASKED, tokens)
    if host.family == "qwen3-vl":
        assert torch.equal(prompt.visual.deepstack, dense.scores["deepstack"][::2])
    else:
        assert prompt.visual.deepstack is None


def test_a_film_of_which_nothing_is_left(host: QwenVL, images: np.ndarray) -> None:
    dense = encode(host, images)
    for tokens in (dense.keep(torch.arange(0)), dense.keep(torch.arange(0)).compacted()):
        prompt, _ = host.prompt(ASKED, tokens)
        before, behind = host.prompt_ids(ASKED)
        assert prompt.embeddings.shape[1] == len(before) + len(behind)
        assert len(host.generate(prompt, Session(prompt.visual, tokens), STEPS).ids) == STEPS


def test_positions_beyond_the_context_are_renumbered(tmp_path: Path, images: np.ndarray) -> None:
    host = load_host(MAKERS["qwen2.5-vl"](tmp_path, max_position_embeddings=60), device="cpu")
    tokens = encode(host, images, 8.0)  # time runs to 4 * 32 positions
    tokens = tokens.keep(torch.tensor([3, len(tokens) - 5, len(tokens) - 1]))
    prompt, choices = host.prompt(ASKED, tokens)
    assert [choice["value"] for choice in choices] == ["compact"]
    assert prompt.position_ids.max() < 60
    with pytest.raises(UsageError, match="context is 60"):
        host.prompt(ASKED, encode(host, np.tile(images, (4, 1, 1, 1))))
