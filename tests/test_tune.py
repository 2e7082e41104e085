"""Tuning a recipe on the demo model: the search space, the objective, going on, and the recipe that comes out."""

import json
from pathlib import Path

import pytest
import torch

from tests.films import write
from videoprune.errors import EnvironmentProblem, UsageError
from videoprune.pipeline import Pipeline
from videoprune.recipe import Recipe
from videoprune.search import dials, settings_of
from videoprune.tune import Objective, tune

RECIPE = {
    "frames": {"frames": 4},
    "merge": [{"method": "dycoke", "drop": 0.5}, {"method": "evs", "keep": 0.5}],
    "prefill": {"method": "vflowopt", "ratios": [0.9, 0.5]},
}


def test_what_can_be_searched():
    recipe = Recipe.load(RECIPE)
    found = {knob.path: (knob.low, knob.high, knob.whole, knob.value) for knob in dials(recipe)}
    assert found == {
        "merge.0.drop": (0.2, 0.98, False, 0.5),
        "merge.1.keep": (0.02, 0.98, False, 0.5),
        "prefill.ratios.0": (0.1, 1, False, 0.9),
        "prefill.ratios.1": (0.1, 1, False, 0.5),
    }
    (knob,) = dials(recipe, ["prefill.layers.0=2:12"])
    assert (knob.low, knob.high, knob.whole, knob.value) == (2, 12, True, 9)
    assert str(knob) == "prefill.layers.0=2:12"
    (knob,) = dials(recipe, ["merge.1.keep=0.1:0.3"])
    assert knob.value == 0.3  # moved into the bounds


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("merge.keep=0.1:0.5", "did you mean 'merge.1.keep'"),
        ("merge.1.keep", "LOW:HIGH"),
        ("merge.1.keep=0.5:0.1", "LOW:HIGH"),
        ("merge.1.keep=a:b", "LOW:HIGH"),
        ("prefill.layers.0=2.5:12", "whole bounds"),
        ("prefill.score=0:1", "allowed"),
    ],
)
def test_bad_bounds(given, told):
    with pytest.raises(UsageError, match=told):
        dials(Recipe.load(RECIPE), [given])


def test_nothing_to_search():
    with pytest.raises(UsageError, match="none of its methods"):
        dials(Recipe.load({"merge": {"method": "evs", "keep": 40}}))


def test_values_go_where_they_belong():
    changed = settings_of(Recipe.load(RECIPE), {"merge.1.keep": 0.25, "prefill.ratios.1": 0.75, "prefill.layers.0": 4})
    assert changed.merge[1].options["keep"] == 0.25
    assert changed.merge[0].options == {"drop": 0.5}
    assert changed.prefill[0].options["ratios"] == (0.9, 0.75)
    assert changed.prefill[0].options["layers"] == (4, 18)
    with pytest.raises(UsageError, match="ratios"):
        settings_of(Recipe.load(RECIPE), {"prefill.ratios.1": 1.5})


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("films") / "film.mp4"
    write(path, 100)
    return str(path)


@pytest.fixture(scope="module")
def pipe():
    return Pipeline.load("dense")


SIMPLE = {"frames": {"frames": 3}, "merge": {"method": "evs", "keep": 0.3}}


def test_the_objective_is_the_cosine_of_the_states_behind_the_last_norm(pipe, film):
    recipe = Recipe.load(SIMPLE)
    objective = Objective(pipe, recipe, [(film, "what is seen?")])
    (ask,) = objective.asks
    assert ask.states.shape == (1, pipe.host.decoder_shape.width)
    # dense, read off the model itself: the state that gives the first token's logits
    dense = pipe.with_recipe(Recipe.load({"frames": {"frames": 3}, "max_new_tokens": 1}))
    logits = dense.watch(film).ask("what is seen?", logits=True).logits[0]
    head = pipe.host.model.get_output_embeddings()
    torch.testing.assert_close(head(ask.states[0]).float(), logits.float(), rtol=1e-4, atol=1e-4)
    whole = objective(Recipe.load({**SIMPLE, "merge": {"method": "evs", "keep": 1}}))
    assert whole.cosine == pytest.approx(1, abs=1e-6)
    assert whole.share == 1
    pruned = objective(recipe)
    assert pruned.cosine < whole.cosine
    assert pruned.share == pytest.approx(0.3, abs=0.02)
    assert pruned.entering < whole.entering


def test_eviction_is_seen_by_the_tokens_behind_the_prompt(pipe, film):
    recipe = Recipe.load({"frames": {"frames": 3}, "decode": {"method": "streamingllm", "keep": 0.1}})
    objective = Objective(pipe, recipe, [(film, "what is seen?")], tokens=4)
    assert len(objective.asks[0].states) == len(objective.asks[0].reply) > 1
    assert objective(Recipe.load({"frames": {"frames": 3}})).cosine == pytest.approx(1, abs=1e-5)
    assert objective(recipe).cosine < 1 - 1e-4


def test_a_search_goes_on_where_it_was_stopped(pipe, film, tmp_path):
    recipe, study = Recipe.load(SIMPLE), tmp_path / "study.journal"
    settings = {"search": ["merge.keep=0.1:0.5"], "study": study}
    told = []
    first = tune(pipe, recipe, [(film, "what is seen?")], trials=2, tell=lambda *row: told.append(row), **settings)
    assert told[-1] == ("trials", 2, 2)
    assert first.trials == 2
    again = tune(pipe, recipe, [(film, "what is seen?")], trials=4, **settings)
    assert again.trials == 4
    assert again.best.cosine >= first.best.cosine >= first.start.cosine - 1e-9
    assert again.best.share <= again.start.share + 1e-9  # the recipe's own share is the budget
    with pytest.raises(UsageError, match="another search"):
        tune(pipe, recipe, [(film, "what else?")], trials=4, **settings)
    with pytest.raises(UsageError, match="none of 4 trials is within the budget"):
        tune(pipe, recipe, [(film, "what is seen?")], trials=4, at_most=1, search=settings["search"])


def test_the_command_writes_a_recipe_that_ask_takes(videoprune, film, tmp_path):
    out = tmp_path / "mine.yaml"
    recipe = tmp_path / "simple.yaml"
    recipe.write_text("frames: {frames: 3}\nmerge: {method: evs, keep: 0.3}\n")
    words = ("tune", recipe, "--films", film, "--question", "what is seen?", "--trials", "2", "--budget", "0.5")
    ended = videoprune(*words, "--out", out, "--json")
    assert ended.code == 0, ended.err
    data = json.loads(ended.out)
    assert data["trials"] == 2
    assert data["best"]["share"] <= 0.5
    assert Recipe.load(out).merge[0].options["keep"] == data["recipe"]["merge"]["keep"]
    assert out.read_text().startswith("# videoprune tune simple: cosine of final states")
    assert videoprune("ask", film, "what is seen?", "--recipe", out).code == 0
    assert "trials: 2/2" in ended.err


def test_refusals_before_the_model(videoprune, film, tmp_path, monkeypatch):
    missing = videoprune("tune", "demo", "--films", film)
    assert missing.code == 2
    assert "--question" in missing.err
    bad = videoprune("tune", "demo", "--films", film, "--question", "what?", "--search", "merge.kepe=0:1")
    assert bad.code == 2
    assert "did you mean" in bad.err
    nowhere = videoprune("tune", "demo", "--films", film, "--question", "what?", "--out", Path("/nowhere/a.yaml"))
    assert nowhere.code == 2
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    without = videoprune("tune", "demo", "--films", film, "--question", "what?")
    assert without.code == EnvironmentProblem.exit_code
    assert "videoprune[tune]" in without.err
