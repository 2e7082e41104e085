"""Several questions on one film: one reading of it where no stage looks at the question, answers as one by one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tests.tiny import onevision, video_llava
from videoprune import cli
from videoprune.demo.film import make_film
from videoprune.errors import UsageError
from videoprune.models.host import Host
from videoprune.models.load import load_host
from videoprune.pipeline import Pipeline
from videoprune.recipe import Recipe
from videoprune.registry import methods
from videoprune.watched import Video

ASKED = ["what happens after the red circle ?", "what are you ?", "a helpful assistant happens after the red circle ?"]
FRAMES = {"frames": {"fps": 1, "max": 8}, "max_new_tokens": 6}
# every prefill and decode method that looks at no question, alone and in a chain
BLIND: dict[str, dict] = {
    "dense": {},
    "prefill-random": {"prefill": {"method": "random", "keep": 0.4}},
    "prefill-uniform": {"prefill": {"method": "uniform", "keep": 12}},
    "prefill-compact": {"prefill": {"method": "random", "keep": 0.4, "positions": "compact"}},
    "prefill-entropyprune": {"prefill": {"method": "entropyprune"}},
    "prefill-topv": {"prefill": {"method": "topv"}},
    "decode-streamingllm": {"decode": {"method": "streamingllm", "keep": 0.5}},
    "decode-pagedeviction": {"decode": {"method": "pagedeviction", "keep": 0.5, "page": 8}},
    "decode-random": {"decode": {"method": "random", "keep": 0.5}},
    "decode-uniform": {"decode": {"method": "uniform", "keep": 0.5}},
    "decode-metok": {"prefill": {"method": "random", "keep": 0.4}, "decode": {"method": "metok"}},
    "chain": {
        "encode": {"method": "sta", "keep": 0.7},
        "segment": {"method": "metok"},
        "merge": {"method": "aim", "keep": 0.6},
        "prefill": [{"method": "topv"}, {"method": "uniform", "keep": 0.5}],
        "decode": [{"method": "streamingllm", "keep": 0.7}],
    },
}
AWARE = {
    "prefill.aim": {"prefill": {"method": "aim", "keep": 0.4}},
    "prefill.dart": {"prefill": {"method": "dart"}},
    "decode.snapkv": {"decode": {"method": "snapkv", "keep": 0.5, "window": 4}},
    "merge.metok": {"segment": {"method": "metok"}, "merge": {"method": "metok"}},
}


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "demo.mp4"
    make_film(path, minutes=20 / 60, seed=3)
    return path


@pytest.fixture(scope="module", params=[onevision, video_llava], ids=lambda make: make.__name__)
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Host:
    loaded = load_host(request.param(tmp_path_factory.mktemp("model")), device="cpu")
    loaded.model.generation_config.eos_token_id = None
    return loaded


def watched(host: Host, film: Path, recipe: dict) -> Video:
    return Pipeline(host, Recipe.load({**FRAMES, **recipe}), seed=1).watch(film)


def prompt_choice(answer) -> str | None:
    return next((choice["value"] for choice in answer.report.choices if choice["name"] == "prompt"), None)


@pytest.mark.parametrize("recipe", BLIND)
def test_one_reading_equals_one_by_one(recipe: str, host: Host, film: Path) -> None:
    video = watched(host, film, BLIND[recipe])
    together = video.ask_all(ASKED, logits=True)
    assert [prompt_choice(answer) for answer in together] == ["shared"] * 3
    for question, answer in zip(ASKED, together, strict=True):
        alone = video.ask(question, logits=True)
        assert answer.ids == alone.ids
        torch.testing.assert_close(answer.logits, alone.logits, atol=1e-5, rtol=0)
        assert answer.report.tokens == alone.report.tokens
        assert answer.report.kv == alone.report.kv
        assert answer.report.dense == alone.report.dense
        assert answer.trace.kept.keys() == alone.trace.kept.keys()
        for layer, rows in alone.trace.kept.items():
            assert torch.equal(answer.trace.kept[layer], rows)
        for mine, other in zip(answer.evidence, alone.evidence, strict=True):
            assert mine == pytest.approx(other, abs=2e-4)
        beginning, rest = answer.trace.queries[:2]
        assert [a + b for a, b in zip(beginning, rest, strict=True)] == alone.trace.queries[0]
        assert rest[0] < len(answer.tokens)


@pytest.mark.parametrize("looks", AWARE)
def test_stages_that_look_at_the_question_ask_one_by_one(looks: str, host: Host, film: Path) -> None:
    video = watched(host, film, AWARE[looks])
    for question, answer in zip(ASKED, video.ask_all(ASKED, logits=True), strict=True):
        (choice,) = [choice for choice in answer.report.choices if choice["name"] == "prompt"]
        assert choice == {"name": "prompt", "value": "one by one", "reason": f"{looks} looks at the question"}
        torch.testing.assert_close(answer.logits, video.ask(question, logits=True).logits, atol=0, rtol=0)


def test_every_method_that_shares_is_tested_here() -> None:
    """A method that says it reads no text, or no attention after prefill, has its case above."""
    for stage, blind in (
        ("prefill", lambda method: not (method.needs_question or method.reads_text)),
        ("decode", lambda method: not method.needs_question and method.attention == "none"),
    ):
        names = {found.name for found in methods(stage) if blind(found.load())}
        tested = {case.removeprefix(f"{stage}-") for case in BLIND if case.startswith(stage)}
        assert names - tested <= {"vflowopt"}, stage  # reads scores that only its own merge stage leaves


def test_one_question_or_none(host: Host, film: Path) -> None:
    video = watched(host, film, {})
    assert video.ask_all([]) == []
    (answer,) = video.ask_all(ASKED[:1])
    assert prompt_choice(answer) is None
    assert answer.ids == video.ask(ASKED[0]).ids


def test_a_bad_question_is_told_before_any_answer(host: Host, film: Path) -> None:
    video = watched(host, film, {})
    told: list[str] = []
    for bad, says in (("  ", "empty"), (f"what {host.tokenizer.all_special_tokens[-1]} ?", "control token")):
        with pytest.raises(UsageError, match=says):
            video.ask_all([ASKED[0], bad], progress=lambda stage, *_: told.append(stage))
    assert told == []


def test_the_command_line_shares_the_reading(tmp_path: Path, film: Path) -> None:
    flags = [
        "--model",
        str(onevision(tmp_path / "model")),
        "--device",
        "cpu",
        "--fps",
        "1",
        "--max-new-tokens",
        "3",
        "-q",
    ]
    out = CliRunner().invoke(cli.app, ["ask", str(film), *ASKED, "--recipe", "dense", "--json", *flags])
    assert out.exit_code == 0, out.output
    answers = json.loads(out.stdout)["answers"]
    assert len(answers) == 3
    for answer in answers:
        assert [c["value"] for c in answer["report"]["choices"] if c["name"] == "prompt"] == ["shared"]
