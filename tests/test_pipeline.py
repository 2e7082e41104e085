"""The whole path on a tiny random model: real film, all five stages, an honest report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.learned import weights_for
from tests.models.test_decoder import Recorder
from tests.oracle import oracle_logits
from tests.tiny import longva, onevision
from videoprune import watching
from videoprune.demo.film import make_film
from videoprune.errors import EnvironmentProblem, FilmError, UsageError
from videoprune.layer_method import PrefillMethod, PrefillState
from videoprune.models.load import load_host
from videoprune.pipeline import Pipeline
from videoprune.recipe import Recipe, recipe_names
from videoprune.registry import find
from videoprune.run import Run

QUESTION = "What happens after the red circle?"
ON_6_LAYERS = {"transprune-paper": ["prefill.layers=[8,14,20]"]}  # the paper's own collide there
# one of everything, sized for a film of 40 seconds: 640 tokens
CHAIN = {
    "frames": {"fps": 1},
    "encode": {"method": "sta", "keep": 0.5},
    "segment": {"method": "metok"},
    "merge": [{"method": "random", "keep": 0.8}, {"method": "aim", "keep": 0.5, "at_most": 4096}],
    "prefill": [{"method": "metok", "keep": 0.6}, {"method": "aim", "keep": 0.5}],
    "decode": {"method": "a2sf", "keep": 0.5},
}
ALL_KEPT = {
    "frames": {"fps": 1},
    "encode": {"method": "sta", "keep": 1},
    "segment": {"method": "metok"},
    "merge": {"method": "aim", "keep": 1},
    "prefill": {"method": "aim", "keep": 1},
    "decode": {"method": "a2sf", "keep": 1},
}


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "demo.mp4"
    make_film(path, minutes=40 / 60, seed=3)
    return path


@pytest.fixture(scope="module", params=["onevision", "longva"])
def pipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = {"onevision": onevision, "longva": longva}[request.param](tmp_path_factory.mktemp(request.param))
    loaded = Pipeline.load("dense", model=folder, device="cpu", max_new_tokens=9)
    loaded.host.model.generation_config.eos_token_id = None
    return loaded


def with_recipe(pipe: Pipeline, recipe: dict | str) -> Pipeline:
    changes = ["max_new_tokens=9", *ON_6_LAYERS.get(str(recipe), [])]
    if isinstance(recipe, str):
        changes += weights_for(recipe, pipe.host, Path(pipe.host.name))
    other = pipe.with_recipe(recipe, changes)
    return Pipeline(other.host, Recipe.load(recipe, changes), seed=1)


def test_keep_one_in_every_stage_equals_stock(pipe: Pipeline, film: Path) -> None:
    answer = with_recipe(pipe, ALL_KEPT).watch(film).ask(QUESTION, logits=True)
    dense = with_recipe(pipe, {"frames": {"fps": 1}}).watch(film).ask(QUESTION, logits=True)
    assert answer.ids == dense.ids
    torch.testing.assert_close(answer.logits, dense.logits, atol=1e-5, rtol=0)
    host = pipe.host
    prompt, _ = host.prompt(QUESTION, dense.tokens)
    stock = host.model.generate(
        inputs_embeds=prompt.embeddings,
        attention_mask=torch.ones(prompt.embeddings.shape[:2], dtype=torch.int64),
        max_new_tokens=9,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    assert dense.ids == stock.sequences[0].tolist()
    torch.testing.assert_close(dense.logits, torch.stack([step[0] for step in stock.logits]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("recipe", ["chain", *recipe_names()])
def test_every_recipe_keeps_its_books_and_equals_the_oracle(
    recipe: str, pipe: Pipeline, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: list[Recorder] = []
    begin = PrefillMethod.begin

    def recording(method: PrefillMethod, run: Run, layers: int) -> PrefillState:
        recorded.append(Recorder(begin(method, run, layers)))
        return recorded[-1]

    monkeypatch.setattr(PrefillMethod, "begin", recording)
    used = with_recipe(pipe, CHAIN if recipe == "chain" else recipe)
    answer = used.watch(film).ask(QUESTION, logits=True)
    tokens, report = answer.tokens.check(), answer.report
    assert int(tokens.weight.sum()) == int((tokens.owner >= 0).sum())
    assert bool((tokens.position[1:] > tokens.position[:-1]).all()) or "newline" in str(used.recipe.to_dict())
    assert report.tokens["sampled"] == tokens.frames * 16 == len(tokens.owner)
    assert report.tokens["merged"] == tokens.count
    falling = list(report.tokens.values())
    assert falling == sorted(falling, reverse=True)
    prompt, _ = used.host.prompt(QUESTION, tokens)
    merged = {layer: change for state in recorded for layer, change in state.changes.items()}
    want = oracle_logits(
        used.host.model, prompt.embeddings, prompt.position_ids, prompt.visual, answer.ids, answer.trace, merged
    )
    # tokens that come back change what later rows see: tests/models/test_revival.py reads those independently
    rows = 1 if answer.trace.selected else len(want)
    torch.testing.assert_close(answer.logits[:rows], want[:rows], atol=1e-4, rtol=0)
    assert len(answer.ids) == 9
    assert len(report.kv["entries"]) == used.host.decoder_shape.layers
    assert 0 < sum(entry["weight"] for entry in answer.evidence) <= 1.001


def test_the_chain_acts_in_every_stage(pipe: Pipeline, film: Path) -> None:
    answer = with_recipe(pipe, CHAIN).watch(film).ask(QUESTION)
    counts = answer.report.tokens
    assert counts["encoded"] == counts["sampled"] // 2
    assert counts["merged"] == round(round(counts["encoded"] * 0.8) * 0.5)
    assert counts["last_layer"] < counts["merged"]
    assert max(answer.report.kv["entries"]) < counts["merged"]
    assert answer.report.kv["bytes"] < 0.3 * answer.report.kv["dense_bytes"]
    assert answer.report.total.total < answer.report.dense.total


@pytest.mark.parametrize("recipe", ["dense", "chain", "metok-release", "aim-paper"])
def test_analytic_flops_equal_the_counter(recipe: str, pipe: Pipeline, film: Path) -> None:
    used = with_recipe(pipe, CHAIN if recipe == "chain" else recipe)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        answer = used.watch(film).ask(QUESTION)
    assert answer.report.total.total == pytest.approx(counter.get_total_flops(), rel=0.02)
    if recipe == "dense":
        model = answer.report.total.total - answer.report.flops["overhead"].total
        assert model == pytest.approx(answer.report.dense.total, rel=1e-9)


def test_the_size_of_chunks_changes_nothing(pipe: Pipeline, film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = with_recipe(pipe, CHAIN)
    whole = used.watch(film).ask(QUESTION, logits=True)
    monkeypatch.setattr(watching, "CHUNK", 16)
    parts = used.watch(film).ask(QUESTION, logits=True)
    assert torch.equal(whole.tokens.owner, parts.tokens.owner)
    torch.testing.assert_close(whole.logits, parts.logits, atol=1e-4, rtol=0)


def test_pipelines_share_a_model_in_turn(pipe: Pipeline, film: Path) -> None:
    recipes = {"chain": CHAIN, "metok": "metok-release"}
    alone = {
        name: with_recipe(pipe, recipe).watch(film).ask(QUESTION, logits=True).logits
        for name, recipe in recipes.items()
    }
    pipes = {name: with_recipe(pipe, recipe) for name, recipe in recipes.items()}
    videos = {name: used.watch(film) for name, used in pipes.items()}
    for _ in range(2):
        for name in recipes:
            assert torch.equal(videos[name].ask(QUESTION, logits=True).logits, alone[name])
    untouched = load_host(pipe.host.name, device="cpu").model.state_dict()
    assert all(torch.equal(value, untouched[name]) for name, value in pipe.host.model.state_dict().items())


def test_one_watch_serves_many_questions(pipe: Pipeline, film: Path) -> None:
    video = with_recipe(pipe, "metok-release").watch(film)
    first = video.ask(QUESTION, logits=True)
    video.ask("What is the helpful assistant?")
    assert torch.equal(video.ask(QUESTION, logits=True).logits, first.logits)


def test_timestamps_are_those_of_the_film(pipe: Pipeline, film: Path) -> None:
    video = with_recipe(pipe, "dense").watch(film)
    assert video.tokens.frame_seconds.tolist() == pytest.approx(list(range(40)), abs=0.2)
    torch.testing.assert_close(video.tokens.seconds, video.tokens.frame_seconds[video.tokens.frame])


@pytest.mark.parametrize(
    ("question", "says"),
    [("", "empty"), ("  \n", "empty"), ("what is <video> ?", "control token"), ("a <|im_end|> b", "control token")],
)
def test_bad_questions_are_refused(question: str, says: str, pipe: Pipeline, film: Path) -> None:
    with pytest.raises(UsageError, match=says):
        pipe.watch(film).ask(question)


def test_more_tokens_than_the_context_are_refused(tmp_path: Path, film: Path) -> None:
    short = Pipeline.load(
        {"frames": {"fps": 1}}, model=onevision(tmp_path / "m", max_position_embeddings=256), device="cpu"
    )
    with pytest.raises(UsageError, match="context is 256"):
        short.ask(film, QUESTION)
    # after merging they fit, but their original positions do not: renumbered, and said so
    kept = short.with_recipe({"frames": {"fps": 1}, "merge": {"method": "uniform", "keep": 100}})
    answer = kept.ask(film, QUESTION)
    assert [choice["value"] for choice in answer.report.choices if choice["name"] == "positions"] == ["compact"]


def test_a_missing_film_is_one_clear_line(pipe: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(FilmError) as error:
        pipe.watch(tmp_path / "none.mp4")
    assert "none.mp4" in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_recipes_are_refused_before_weights_are_read(tmp_path: Path) -> None:
    for recipe, says in (
        ({"merge": {"method": "aim", "keep": 1.5}}, "1.5"),
        ({"merge": {"method": "aim", "keep": 0}}, "keep"),
        ({"merge": {"method": "aym"}}, "aim"),
        ({"murge": {"method": "aim"}}, "merge"),
    ):
        with pytest.raises(UsageError, match=says):
            Pipeline.load(recipe, model=tmp_path / "no-model-there")


def test_schedules_that_do_not_fit_the_model_are_refused(pipe: Pipeline) -> None:
    with pytest.raises(UsageError, match="layers"):
        pipe.with_recipe({"prefill": {"method": "metok", "layers": [3, 4, 5]}})


def test_stages_before_the_store_may_not_look_at_the_question(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is stored of a film serves every question."""
    for stage, name in (("encode", "random"), ("segment", "uniform")):
        method = find(stage, name).load()
        monkeypatch.setattr(method, "needs_question", True)
        with pytest.raises(UsageError, match=f"{stage}: {name} drops by the question"):
            pipe.with_recipe({stage: {"method": name, "keep": 0.5} if stage == "encode" else {"method": name}})


def test_seeds_decide_random_methods(pipe: Pipeline, film: Path) -> None:
    recipe = Recipe.load({"frames": {"fps": 1}, "merge": {"method": "random", "keep": 0.3}})
    owners = [Pipeline(pipe.host, recipe, seed=seed).watch(film).tokens.owner for seed in (1, 1, 2)]
    assert torch.equal(owners[0], owners[1])
    assert not torch.equal(owners[0], owners[2])


def test_loading_what_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    broken = onevision(tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    other = onevision(tmp_path / "other")
    (other / "config.json").write_text('{"model_type": "bert"}')
    for folder, says in (
        (tmp_path / "empty", "config.json"),
        (broken, "weights"),
        (other, "bert"),
        (tmp_path / "absent", "not found"),
    ):
        with pytest.raises(EnvironmentProblem, match=says) as error:
            load_host(str(folder), device="cpu")
        assert "\n" not in str(error.value)


def test_a_missing_shard_or_weight_is_told(tmp_path: Path) -> None:
    folder = longva(tmp_path / "longva")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(EnvironmentProblem, match="weights"):
        load_host(str(folder), device="cpu")


def test_devices_that_are_not_there(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        assert load_host(str(onevision(tmp_path)), device="cuda").device.type == "cuda"
    else:
        with pytest.raises(EnvironmentProblem, match="cuda"):
            load_host(str(tmp_path), device="cuda")
    with pytest.raises(UsageError, match="--device"):
        load_host(str(tmp_path), device="toaster")
    with pytest.raises(UsageError, match="--dtype"):
        load_host(str(tmp_path), device="cpu", dtype="float3")


def test_bfloat16_runs_the_whole_chain(pipe: Pipeline, film: Path) -> None:
    half = Pipeline.load(CHAIN, model=pipe.host.name, device="cpu", dtype="bfloat16", max_new_tokens=4)
    answer = half.ask(film, QUESTION)
    assert answer.tokens.features.dtype == torch.bfloat16
    assert answer.report.kv["dense_bytes"] > 0
    assert np.isfinite(answer.report.total.total)
