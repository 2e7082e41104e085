"""Options by likelihood: the stock model's own log-probabilities with nothing pruned, whole runs of each option otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tiny import llava15, longva, onevision, vicuna_tokenizer
from videoprune.answer import OptionScores
from videoprune.asking import prepare
from videoprune.demo.film import make_film
from videoprune.errors import UsageError
from videoprune.models.decoder import compressed
from videoprune.models.generation import end_of_turn, reply_ids
from videoprune.pipeline import Pipeline
from videoprune.watched import Video

QUESTION = "what happens after the red circle ?"
OPTIONS = ["the red circle happens", "a helpful circle", "what ."]
FRAMES = {"frames": {"fps": 1, "max": 8}}
PRUNED = {
    "prefill": {**FRAMES, "prefill": {"method": "aim", "keep": 0.3}},
    "compact": {**FRAMES, "prefill": {"method": "aim", "keep": 0.3, "positions": "compact"}},
    "decode": {**FRAMES, "decode": {"method": "a2sf", "keep": 0.4}},
    "all": {
        **FRAMES,
        "encode": {"method": "sta", "keep": 0.7},
        "segment": {"method": "metok"},
        "merge": {"method": "aim", "keep": 0.5},
        "prefill": {"method": "metok"},
        "decode": [{"method": "metok"}, {"method": "a2sf", "keep": 0.6}],
    },
}


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "demo.mp4"
    make_film(path, minutes=20 / 60, seed=3)
    return path


@pytest.fixture(scope="module", params=[onevision, longva, llava15], ids=lambda make: make.__name__)
def pipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = request.param(tmp_path_factory.mktemp("model"))
    return Pipeline.load(FRAMES, model=folder, device="cpu")


def whole_run(video: Video, option: str, *, stock: bool) -> torch.Tensor:
    """(n,) log-probabilities of an option's tokens from one forward pass, or from one pruned run with the option fed behind."""
    host, asked = video.pipeline.host, prepare(video, QUESTION)
    ids = reply_ids(host, option)
    prompt, behind = asked.prompt, host.embed(ids[:-1])[None]
    last = prompt.position_ids[..., -1:] + 1 + torch.arange(len(ids) - 1)
    with torch.no_grad():
        if stock:
            logits = host.model(
                inputs_embeds=torch.cat((prompt.embeddings, behind), dim=1),
                position_ids=torch.cat((prompt.position_ids, last), dim=-1),
                use_cache=False,
            ).logits[0, -len(ids) :]
        else:
            session = asked.session()
            with compressed(host.model, session):
                first = host.model(inputs_embeds=prompt.embeddings, position_ids=prompt.position_ids)
                session.decode = ()  # evicted when the prompt was read, and not while the option is fed
                rows = [first.logits[0, -1]]
                for at in range(len(ids) - 1):  # a token a call, as decoding does
                    out = host.model(
                        inputs_embeds=behind[:, at : at + 1],
                        position_ids=last[..., at : at + 1],
                        past_key_values=first.past_key_values,
                    )
                    rows.append(out.logits[0, -1])
            logits = torch.stack(rows)
    return logits.double().log_softmax(-1)[torch.arange(len(ids)), ids]


def agree(video: Video, scores: OptionScores, *, stock: bool, tolerance: float) -> None:
    assert len(scores.logprobs) == len(OPTIONS)
    for option, total, each in zip(OPTIONS, scores.logprobs, scores.token_logprobs, strict=True):
        want = whole_run(video, option, stock=stock)
        torch.testing.assert_close(each.double(), want, atol=tolerance, rtol=0)
        assert total == pytest.approx(float(want.sum()), abs=tolerance * len(want))
    assert scores.chosen == max(range(len(OPTIONS)), key=scores.logprobs.__getitem__)


def test_nothing_pruned_equals_a_stock_forward_pass(pipe: Pipeline, film: Path) -> None:
    video = pipe.watch(film)
    agree(video, video.options(QUESTION, OPTIONS), stock=True, tolerance=1e-5)


@pytest.mark.parametrize("recipe", PRUNED)
def test_pruned_equals_a_run_of_each_option(recipe: str, pipe: Pipeline, film: Path) -> None:
    video = pipe.with_recipe(PRUNED[recipe]).watch(film)
    scores = video.options(QUESTION, OPTIONS)
    agree(video, scores, stock=False, tolerance=1e-5)
    entries = scores.report.kv["entries"]
    assert min(entries) < prepare(video, QUESTION).prompt.embeddings.shape[1], "the case prunes nothing"


def test_the_order_of_options_changes_nothing(pipe: Pipeline, film: Path) -> None:
    """Each starts from the cache that the prompt left, whatever was scored before."""
    video = pipe.with_recipe(PRUNED["all"]).watch(film)
    forward, backward = video.options(QUESTION, OPTIONS), video.options(QUESTION, OPTIONS[::-1])
    assert forward.logprobs == backward.logprobs[::-1]
    assert forward.text == backward.text


def test_the_end_of_the_turn_is_scored(pipe: Pipeline, film: Path) -> None:
    video, host = pipe.watch(film), pipe.host
    scores = video.options(QUESTION, OPTIONS, normalise="mean")
    words = [len(host.tokenizer(option, add_special_tokens=False)["input_ids"]) for option in OPTIONS]
    ends = end_of_turn(host) is not None
    assert scores.lengths == tuple(count + ends for count in words)
    assert scores.scores == tuple(total / length for total, length in zip(scores.logprobs, scores.lengths, strict=True))
    assert scores.text == OPTIONS[scores.chosen]


def test_what_ends_a_turn(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokenizer's end token where `generate` stops there, else the first that it stops at."""
    settings = pipe.host.model.generation_config
    monkeypatch.setattr(pipe.host, "tokenizer", vicuna_tokenizer())  # has no end token of its own
    for stops, want in ((None, None), (7, 7), ([9, 3], 9)):
        monkeypatch.setattr(settings, "eos_token_id", stops)
        assert end_of_turn(pipe.host) == want
    pipe.host.tokenizer.eos_token = "red"
    red = pipe.host.tokenizer.convert_tokens_to_ids("red")
    for stops, want in ((None, red), ([9, red], red), (9, 9)):
        monkeypatch.setattr(settings, "eos_token_id", stops)
        assert end_of_turn(pipe.host) == want


def test_the_report_counts_one_prompt_and_every_option(pipe: Pipeline, film: Path) -> None:
    video = pipe.watch(film)
    two, three = video.options(QUESTION, OPTIONS[:2]).report, video.options(QUESTION, OPTIONS).report
    assert two.flops["prefill"] == three.flops["prefill"]
    assert three.flops["decode"].total > two.flops["decode"].total
    spent = sum(three.flops[stage].total for stage in ("encode", "prefill", "decode", "lm_head"))
    assert three.dense.total == spent  # what a dense run does, without the report's own look at the attention


@pytest.mark.parametrize(
    ("options", "normalise", "says"),
    [
        (["red"], "sum", "at least two"),
        ("red", "sum", "list of at least two"),
        (["red", " "], "sum", "at least one word"),
        (["red", "red "], "sum", "alike"),
        (["red", "a"], "product", "allowed are sum, mean"),
    ],
)
def test_bad_options_are_refused(options, normalise: str, says: str, pipe: Pipeline, film: Path) -> None:
    video = pipe.watch(film)
    with pytest.raises(UsageError, match=says):
        video.options(QUESTION, options, normalise=normalise)


def test_control_tokens_in_options_are_refused(pipe: Pipeline, film: Path) -> None:
    special = pipe.host.tokenizer.all_special_tokens[-1]
    with pytest.raises(UsageError, match="control token"):
        pipe.watch(film).options(QUESTION, ["red", f"a {special}"])
