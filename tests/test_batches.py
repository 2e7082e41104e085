"""Batches of films: the answers of asking one by one, and what fits no batch is asked alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tiny import onevision, video_llava
from videoprune.asking import prepare
from videoprune.demo.film import make_film
from videoprune.errors import UsageError
from videoprune.layer_method import Kept
from videoprune.models.cache import Uneven
from videoprune.models.decoder import compressed
from videoprune.models.host import Host
from videoprune.models.load import load_host
from videoprune.pipeline import Pipeline
from videoprune.recipe import Recipe

ASKED = [
    "what happens after the red circle ?",
    "what are you a helpful assistant ?",
    "the red circle happens after what ?",
]
FRAMES = {"frames": {"frames": 8}, "max_new_tokens": 6}
FIXED: dict[str, dict] = {
    "dense": {},
    "merge": {"merge": {"method": "aim", "keep": 0.5}},
    "prefill-aim": {"prefill": {"method": "aim", "keep": 0.4}},
    "prefill-fastv": {"prefill": {"method": "fastv"}},
    "prefill-holitom": {"prefill": {"method": "holitom"}},  # changes rows
    "prefill-compact": {"prefill": {"method": "fastv", "positions": "compact"}},
    "prefill-topv": {"prefill": {"method": "topv"}},  # asks for inner outputs
    "decode-a2sf": {"decode": {"method": "a2sf", "keep": 0.4, "variant": "decode"}},  # a head keeps its own
    "decode-h2o": {"decode": {"method": "h2o", "keep": 0.5}},
    "decode-streamingllm": {"decode": {"method": "streamingllm", "keep": 0.5}},
    "all": {
        "encode": {"method": "sta", "keep": 0.7},
        "segment": {"method": "metok"},
        "merge": {"method": "aim", "keep": 0.6},
        "prefill": [{"method": "fastv", "keep": 0.7}, {"method": "aim", "keep": 0.5}],
        "decode": [{"method": "snapkv", "keep": 0.8, "window": 4}, {"method": "a2sf", "keep": 0.6}],
    },
}
ALONE = {"prefill.metok": {"segment": {"method": "metok"}, "prefill": {"method": "metok"}}}


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("films")
    paths = [folder / f"{seed}.mp4" for seed in range(3)]
    for seed, path in enumerate(paths):
        make_film(path, minutes=0.2, seed=seed)
    return paths


@pytest.fixture(scope="module", params=[onevision, video_llava], ids=lambda make: make.__name__)
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Host:
    loaded = load_host(request.param(tmp_path_factory.mktemp("model")), device="cpu")
    loaded.model.generation_config.eos_token_id = None
    return loaded


def piped(host: Host, recipe: dict) -> Pipeline:
    return Pipeline(host, Recipe.load({**FRAMES, **recipe}), seed=1)


def batch_choice(answer) -> dict:
    (choice,) = [choice for choice in answer.report.choices if choice["name"] == "batch"]
    return choice


def equal(mine, alone) -> None:
    assert mine.question == alone.question
    assert mine.ids == alone.ids
    assert mine.text == alone.text
    torch.testing.assert_close(mine.logits, alone.logits, atol=1e-4, rtol=0)
    assert mine.report.tokens == alone.report.tokens
    assert mine.report.kv == alone.report.kv
    assert mine.report.dense == alone.report.dense
    assert mine.report.flops.keys() == alone.report.flops.keys()
    for stage, cost in mine.report.flops.items():
        assert cost.total == pytest.approx(alone.report.flops[stage].total), stage
    assert mine.trace.queries == alone.trace.queries
    assert mine.trace.evicted.keys() == alone.trace.evicted.keys()
    for layer, rows in alone.trace.kept.items():
        assert torch.equal(mine.trace.kept[layer], rows)
    for one, other in zip(mine.evidence, alone.evidence, strict=True):
        assert one == pytest.approx(other, abs=5e-4)


@pytest.mark.parametrize("recipe", FIXED)
def test_a_batch_equals_one_by_one(recipe: str, host: Host, films: list[Path]) -> None:
    pipe = piped(host, FIXED[recipe])
    pairs = [(pipe.watch(film), question) for film, question in zip(films, ASKED, strict=True)]
    together = pipe.ask_batch(pairs, logits=True)
    assert [batch_choice(answer)["value"] for answer in together] == ["3"] * 3
    for answer, (video, question) in zip(together, pairs, strict=True):
        equal(answer, video.ask(question, logits=True))


def test_prompts_that_end_early_are_booked_to_their_end(host: Host, films: list[Path]) -> None:
    pipe = piped(host, FIXED["decode-a2sf"])
    pairs = [(pipe.watch(film), question) for film, question in zip(films, ASKED, strict=True)]
    written = [video.ask(question).ids for video, question in pairs]
    stop = written[0][2]  # the first answer's third word ends an answer; the others may go on
    host.model.generation_config.eos_token_id = stop
    try:
        together = pipe.ask_batch(pairs, logits=True)
        alone = [video.ask(question, logits=True) for video, question in pairs]
    finally:
        host.model.generation_config.eos_token_id = None
    assert len(together[0].ids) == written[0].index(stop) + 1
    assert {len(answer.ids) for answer in alone} != {6}
    for mine, other in zip(together, alone, strict=True):
        equal(mine, other)
        assert len(mine.trace.queries) == len(mine.ids)


def test_unequal_prompts_form_batches_of_their_own(host: Host, films: list[Path]) -> None:
    pipe = piped(host, {})
    questions = [ASKED[0], "what ?", ASKED[1], "a circle happens"]
    pairs = list(zip([films[0], films[1], films[2], films[2]], questions, strict=True))
    answers = pipe.ask_batch(pairs, logits=True)
    assert [batch_choice(answer)["value"] for answer in answers] == ["2", "1", "2", "1"]
    assert batch_choice(answers[1])["reason"] == "no other prompt is as long"
    for answer, (film, question) in zip(answers, pairs, strict=True):
        torch.testing.assert_close(answer.logits, pipe.watch(film).ask(question, logits=True).logits, atol=1e-4, rtol=0)
    assert [batch_choice(answer)["value"] for answer in pipe.ask_batch(pairs, size=1)] == ["1"] * 4


@pytest.mark.parametrize("varies", ALONE)
def test_counts_that_depend_on_the_data_run_one_by_one(varies: str, host: Host, films: list[Path]) -> None:
    pipe = piped(host, ALONE[varies])
    pairs = list(zip(films, ASKED, strict=True))
    for answer, (film, question) in zip(pipe.ask_batch(pairs, logits=True), pairs, strict=True):
        assert batch_choice(answer) == {
            "name": "batch",
            "value": "1",
            "reason": f"{varies} keeps as many as the data says",
        }
        torch.testing.assert_close(answer.logits, pipe.watch(film).ask(question, logits=True).logits, atol=0, rtol=0)


def test_counts_that_turn_out_unequal_fall_back(host: Host, films: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that promised a count and did not keep it costs a batch, never an answer."""
    pipe = piped(host, {"prefill": {"method": "uniform", "keep": 0.5}})
    state = type(pipe.stages.prefill[0].start(None, host.decoder_shape.layers))
    after = state.after

    def uneven(self, view) -> Kept | None:
        kept = after(self, view)
        return kept if kept is None or view.tokens.features[0, 0] > firsts[0] else Kept(kept.index[1:])

    pairs = [(pipe.watch(film), question) for film, question in zip(films, ASKED, strict=True)]
    firsts = sorted(float(video.tokens.features[0, 0]) for video, _ in pairs)
    monkeypatch.setattr(state, "after", uneven)
    answers = pipe.ask_batch(pairs, logits=True)
    for answer, (video, question) in zip(answers, pairs, strict=True):
        assert batch_choice(answer)["reason"] == "counts turned out unequal"
        torch.testing.assert_close(answer.logits, video.ask(question, logits=True).logits, atol=0, rtol=0)
    asked = [prepare(video, question) for video, question in pairs]
    prompts, sessions = [each.prompt for each in asked], [each.session() for each in asked]
    with pytest.raises(Uneven, match="rows at one layer"):
        host.generate_batch(prompts, sessions, 2)
    assert "forward" not in host.decoder.__dict__


def test_bad_input(host: Host, films: list[Path]) -> None:
    pipe, other = piped(host, {}), piped(host, {})
    assert pipe.ask_batch([]) == []
    for pairs, size, says in (
        ([(films[0], "")], 8, "empty"),
        ([(films[0], "what ?")], 0, "size: 0 is given"),
        ([(other.watch(films[0]), "what ?")], 8, "watched by another pipeline"),
    ):
        with pytest.raises(UsageError, match=says):
            pipe.ask_batch(pairs, size=size)


def test_beams_are_refused(host: Host, films: list[Path]) -> None:
    asked = prepare(piped(host, {}).watch(films[0]), ASKED[0])
    with pytest.raises(UsageError, match="or beams"), compressed(host.model, asked.session()):
        host.model.generate(inputs_embeds=asked.prompt.embeddings, max_new_tokens=2, num_beams=2, do_sample=False)
