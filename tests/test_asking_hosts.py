"""Several questions, conversations, batches and options on the hosts with M-RoPE, times between frames and deepstack."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tiny import internvl
from tests.tiny_qwen import qwen2_5_vl, qwen2_vl, qwen3_vl
from videoprune.asking import prepare
from videoprune.demo.film import make_film
from videoprune.models.generation import reply_ids
from videoprune.models.host import Host
from videoprune.models.load import load_host
from videoprune.pipeline import Pipeline
from videoprune.recipe import Recipe
from videoprune.watched import Video

ASKED = ["what happens after the red circle ?", "what are you a helpful assistant ?"]
OPTIONS = ["the red circle", "a circle happens after"]
RECIPES = {
    "dense": {},
    "blind": {"merge": {"method": "random", "keep": 0.7}, "prefill": {"method": "random", "keep": 0.4}},
}


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("films")
    for seed in range(2):
        make_film(folder / f"{seed}.mp4", minutes=0.2, seed=seed)
    return [folder / f"{seed}.mp4" for seed in range(2)]


@pytest.fixture(scope="module", params=[qwen2_vl, qwen2_5_vl, qwen3_vl, internvl], ids=lambda make: make.__name__)
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Host:
    loaded = load_host(request.param(tmp_path_factory.mktemp("model")), device="cpu")
    loaded.model.generation_config.eos_token_id = None
    return loaded


@pytest.fixture(scope="module", params=RECIPES)
def videos(request: pytest.FixtureRequest, host: Host, films: list[Path]) -> list[Video]:
    recipe = {"frames": {"frames": 4}, "max_new_tokens": 4, **RECIPES[request.param]}
    pipe = Pipeline(host, Recipe.load(recipe), seed=1)
    return [pipe.watch(film) for film in films]


def choice(answer, name: str) -> str:
    return next(each["value"] for each in answer.report.choices if each["name"] == name)


def test_positions_are_renumbered_where_they_are_ranks(host: Host, films: list[Path]) -> None:
    """On M-RoPE hosts survivors keep the times and places that they were seen at, and the report says so."""
    settings = {"prefill": {"method": "random", "keep": 0.4, "positions": "compact"}, "frames": {"frames": 4}}
    answer = Pipeline(host, Recipe.load({**settings, "max_new_tokens": 2})).watch(films[0]).ask(ASKED[0])
    told = [each["value"] for each in answer.report.choices if each["name"] == "prefill.positions"]
    ranks = prepare(Pipeline(host, Recipe.load(settings)).watch(films[0]), ASKED[0]).prompt.position_ids.ndim == 2
    assert (told == []) == ranks == bool(answer.trace.compacted)


def test_several_questions(videos: list[Video]) -> None:
    together = videos[0].ask_all(ASKED, logits=True)
    for question, answer in zip(ASKED, together, strict=True):
        assert choice(answer, "prompt") == "shared"
        torch.testing.assert_close(answer.logits, videos[0].ask(question, logits=True).logits, atol=1e-5, rtol=0)


def test_batches(videos: list[Video]) -> None:
    together = videos[0].pipeline.ask_batch(list(zip(videos, ASKED, strict=True)), logits=True)
    for video, question, answer in zip(videos, ASKED, together, strict=True):
        assert choice(answer, "batch") == "2"
        torch.testing.assert_close(answer.logits, video.ask(question, logits=True).logits, atol=1e-4, rtol=0)


def test_conversations(videos: list[Video]) -> None:
    """A continued turn against the whole conversation laid out and read anew."""
    chat, again = videos[0].chat(), videos[0].chat()
    chat.ask(ASKED[0])
    again.ask(ASKED[0])
    again._last = None
    continued, anew = chat.ask(ASKED[1], logits=True), again.ask(ASKED[1], logits=True)
    assert choice(continued, "turn") == "continued"
    torch.testing.assert_close(continued.logits, anew.logits, atol=1e-5, rtol=0)


def test_options(videos: list[Video]) -> None:
    """Against the answer's own logits: an option that is the greedy answer begins as the answer did."""
    video, host = videos[0], videos[0].pipeline.host
    written = video.ask(ASKED[0], logits=True)
    asked = prepare(video, ASKED[0])
    reply = torch.tensor(written.ids)
    (logprobs,) = host.score(asked.prompt, asked.session(), [reply]).logprobs
    want = written.logits.float().log_softmax(-1).gather(1, reply[:, None])[:, 0]
    torch.testing.assert_close(logprobs, want, atol=1e-5, rtol=0)
    scores = video.options(ASKED[0], OPTIONS)
    assert scores.lengths == tuple(len(reply_ids(host, option)) for option in OPTIONS)
