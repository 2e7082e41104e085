"""Every family under recipes of all stages, through the command line and against stock classes and the masked oracle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import Ended
from tests.films import write
from tests.models.hosts import MAKERS, stock_answer
from tests.oracle import oracle_logits
from videoprune.models.host import Host
from videoprune.models.load import load_host
from videoprune.pipeline import Pipeline
from videoprune.recipe import Recipe
from videoprune.video import Film, FrameRule

ASKED = "what happens after the red circle ?"
STEPS = 5
RECIPES = ["dense", "aim-paper", "metok-release", "sta-aim-metok"]
RULE = FrameRule(frames=8)


@pytest.fixture(scope="module", params=MAKERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MAKERS[request.param](tmp_path_factory.mktemp("models") / request.param)


@pytest.fixture(scope="module")
def host(folder: Path) -> Host:
    return load_host(folder, device="cpu")


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("film") / "film.mp4", 100)


@pytest.fixture(scope="module")
def images(film: Path) -> np.ndarray:
    with Film(film, RULE) as reader:
        return np.concatenate([batch.images for batch in reader])


@pytest.fixture(scope="module")
def dense(host: Host, images: np.ndarray) -> tuple[list[int], torch.Tensor]:
    return stock_answer(host, images, ASKED, STEPS)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_command_line_answers_as_the_oracle(
    recipe: str, host: Host, folder: Path, film: Path, dense: tuple, videoprune: Callable[..., Ended]
) -> None:
    told = videoprune(
        "ask", film, ASKED, "--model", folder, "--recipe", recipe, "--frames", "8", "--max-new-tokens", STEPS, "--json",
        "--device", "cpu", "--quiet",
    )  # fmt: skip
    assert told.code == 0, told.err
    given = json.loads(told.out)["answers"][0]
    pipe = Pipeline(host, Recipe.load(recipe, [f"max_new_tokens={STEPS}"]))
    answer = pipe.watch(film, frames=RULE).ask(ASKED, logits=True)
    assert given["text"] == answer.text
    assert {key: given["report"][key] for key in ("tokens", "kv")} == {
        "tokens": dict(answer.report.tokens),
        "kv": dict(answer.report.kv),
    }

    tokens, report = answer.tokens.check(), answer.report
    assert int(tokens.weight.sum()) == int((tokens.owner >= 0).sum())
    assert report.tokens["sampled"] == tokens.frames * 16
    assert report.tokens["merged"] == tokens.count == int((tokens.cell[:, 0] >= 0).sum())
    falling = list(report.tokens.values())
    assert falling == sorted(falling, reverse=True)

    prompt, _ = host.prompt(ASKED, tokens)
    steps = prompt.position_ids[0].diff()
    assert bool((steps > 0).all()) or recipe == "metok-release"  # METok's own newlines share the row's before
    want = oracle_logits(host.model, prompt.embeddings, prompt.position_ids, prompt.visual, answer.ids, answer.trace)
    torch.testing.assert_close(answer.logits, want, atol=1e-4, rtol=0)
    if recipe == "dense":
        assert answer.ids == dense[0]
        torch.testing.assert_close(answer.logits, dense[1], atol=1e-5, rtol=0)
        assert report.kv["bytes"] == report.kv["dense_bytes"]
        spent = sum(report.flops[stage].total for stage in ("encode", "prefill", "decode", "lm_head"))
        assert spent == pytest.approx(report.dense.total, rel=1e-12)
    else:
        assert falling[-1] < falling[0]
        assert report.kv["bytes"] < report.kv["dense_bytes"]


@pytest.mark.parametrize("recipe", RECIPES[1:])
def test_keep_1_is_the_stock_class(recipe: str, host: Host, film: Path, dense: tuple) -> None:
    stages = [stage for stage in Recipe.load(recipe).stages() if stage in ("encode", "merge", "prefill", "decode")]
    whole = [f"{stage}.{key}" for stage in stages for key in ("keep=1", "at_most=null")]
    pipe = Pipeline(host, Recipe.load(recipe, [f"max_new_tokens={STEPS}", *whole]))
    answer = pipe.watch(film, frames=RULE).ask(ASKED, logits=True)
    assert answer.ids == dense[0]
    torch.testing.assert_close(answer.logits, dense[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["video-llava", "llava-next"])
def test_rows_around_frames_reach_the_last_layer(family: str, tmp_path: Path, film: Path) -> None:
    """[CLS] and newlines are in every layer's cache, though the last pruning point removes every token."""
    pipe = Pipeline.load("metok-release", model=MAKERS[family](tmp_path), device="cpu", overrides=["max_new_tokens=2"])
    answer = pipe.with_recipe("metok-release", ["decode=[]", "max_new_tokens=2"]).watch(film, frames=RULE).ask(ASKED)
    added = (answer.tokens.weight == 0).nonzero()[:, 0]
    assert len(added) == 8
    last = answer.trace.kept[max(answer.trace.kept)]
    assert torch.equal(last, added)
    text = answer.trace.queries[0][0] - len(answer.tokens)
    assert answer.trace.queries[0][-1] == text + 8
    assert answer.report.tokens["last_layer"] == 0
    assert answer.report.kv["dense_bytes"] == 2 * 2 * 16 * 4 * 6 * (text + 8 * 17 + 1)
