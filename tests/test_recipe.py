"""Recipes are read strictly: what is wrong is named, with the nearest that is right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import films
from videoprune.errors import UsageError
from videoprune.pipeline import Pipeline
from videoprune.recipe import Recipe, recipe_names
from videoprune.registry import methods
from videoprune.run import Events, Run
from videoprune.video import FrameRule

SHIPPED = tuple(recipe_names())
QUESTION = "Where does the video take place?"
ON_A_SHORT_FILM = {"pagedeviction-paper": ["decode.keep=64"]}  # its own 1 024 entries are never full there
# the first needs 3-D points that only a caller has; the second was published for classifiers, and prunes a scout here
NO_PAPER_RECIPE = {"geo3dpruner", "ssm"}


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline.load(device="cpu")


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return films.write(tmp_path_factory.mktemp("films") / "film.mp4", 40, fps=1, gop=8)


def test_what_is_shipped() -> None:
    assert {"aim-paper", "demo", "dense", "metok-paper", "metok-release", "sta-aim-metok"} <= set(SHIPPED)


def test_every_published_method_is_in_a_recipe_of_its_paper() -> None:
    recipes = [Recipe.load(name) for name in SHIPPED if name.partition("-")[2][:5] in ("paper", "relea")]
    for entry in methods():
        if entry.stage != "relevance" and entry.paper.startswith("arXiv") and entry.name not in NO_PAPER_RECIPE:
            users = [recipe.name for recipe in recipes if entry.name in recipe.stages().get(entry.stage, [])]
            assert any(name.startswith(entry.name.partition("_")[0]) or entry.stage == "segment" for name in users), (
                entry
            )


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_build_and_are_capped(name: str) -> None:
    recipe = Recipe.load(name)
    assert recipe.name == name
    assert recipe.description
    assert recipe.frames.max or recipe.frames.frames or recipe.watch.at_most  # memory does not grow with the film
    built = recipe.build()
    assert set(built) == {"scout", "segment", "encode", "merge", "prefill", "decode", "relevance"}
    assert all(method.at_most for method in built["merge"])
    assert name == "dense" or recipe.stages()


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_answer(name: str, pipe: Pipeline, film: Path) -> None:
    used = pipe.with_recipe(name, ON_A_SHORT_FILM.get(name, []))
    answer = used.watch(film, frames=FrameRule(frames=12)).ask(QUESTION)
    assert answer.text.strip()
    counts = answer.report.tokens
    assert list(counts) == ["sampled", "encoded", "merged", "last_layer"]
    assert list(counts.values()) == sorted(counts.values(), reverse=True)
    assert counts["sampled"] == 12 * 16
    acts = {"encode": "encoded", "merge": "merged", "prefill": "last_layer"}
    before = counts["sampled"]
    for stage, after in acts.items():
        assert counts[after] < before if stage in used.recipe.stages() else counts[after] == before
        before = counts[after]
    cache = answer.report.kv
    assert cache["bytes"] < cache["dense_bytes"] if used.recipe.stages() else cache["bytes"] == cache["dense_bytes"]


@pytest.mark.parametrize("layers", [28, 32, 40])
@pytest.mark.parametrize("name", SHIPPED)
def test_layers_of_shipped_recipes_exist_in_models_of_usual_depth(name: str, layers: int) -> None:
    built = Recipe.load(name).build()
    run = Run(Events.single(12))
    for method in built["prefill"]:
        state = method.begin(run, layers)
        assert all(0 <= layer < layers for layer in state.at)
    for method in built["decode"]:
        method.start(run, layers)


def test_layers_that_collide_in_a_shallow_model_are_refused(pipe: Pipeline, film: Path) -> None:
    with pytest.raises(UsageError, match=r"prefill\.transprune: .* become .* of this model's 8, which collide"):
        pipe.with_recipe("transprune-paper", ["prefill.layers=[8,9,10]"]).watch(film, frames=FrameRule(frames=2)).ask(
            QUESTION
        )


def test_demo_acts_in_all_five_stages() -> None:
    assert len(Recipe.load("demo").stages()) == 5


def test_canonical_form_is_read_back() -> None:
    for name in SHIPPED:
        recipe = Recipe.load(name)
        assert Recipe.load(recipe.to_dict()) == recipe
        assert Recipe.load(recipe.to_dict()).digest() == recipe.digest()
    digests = {Recipe.load(name).digest() for name in SHIPPED}
    assert len(digests) >= len(SHIPPED) - 1


def test_yaml_round_trip(tmp_path: Path) -> None:
    recipe = Recipe.load("sta-aim-metok", ["prefill.keep_key=0.5"])
    path = tmp_path / "mine.yaml"
    path.write_text(recipe.to_yaml())
    assert Recipe.load(path) == recipe
    assert Recipe.load(str(path)).digest() == recipe.digest()


def test_digest_is_of_what_it_does() -> None:
    one = {"merge": {"method": "aim", "rounds": 2}}
    assert Recipe.load(one).digest() == Recipe.load({**one, "description": "words"}).digest()
    assert Recipe.load(one).digest() != Recipe.load({"merge": {"method": "aim", "rounds": 1}}).digest()


def test_lists_none_and_defaults() -> None:
    merge = [{"method": "uniform", "keep": 0.5}, {"method": "aim"}]
    recipe = Recipe.load({"merge": merge, "decode": {"method": "none"}, "encode": None})
    assert recipe.stages() == {"merge": ["uniform", "aim"]}
    assert recipe.relevance.method == "embedding"
    assert recipe.max_new_tokens == 64
    assert [type(method).__name__ for method in recipe.build()["merge"]] == ["Uniform", "AIM"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"mrege": {}}, "did you mean 'merge'?"),
        ({"merge": {"method": "aimm"}}, "did you mean 'aim'?"),
        ({"merge": {"metod": "aim"}}, "merge.method"),
        ({"merge": "aim"}, "allowed is a mapping"),
        ({"merge": {"method": ["aim"]}}, "allowed is the name"),
        ({"merge": {"method": "aim", "keep": float("nan")}}, "finite"),
        ({"merge": {"method": "aim", "keep": {"a": 1}}}, "merge.aim.keep"),
        ({"frames": {"fsp": 1}}, "did you mean 'fps'?"),
        ({"frames": {"fps": 0}}, "frames"),
        ({"frames": {"fps": "fast"}}, "frames.fps"),
        ({"frames": 3}, "frames: 3 is given"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"max_new_tokens": True}, "at least 1"),
        ({"description": 3}, "allowed is text"),
        ({"relevance": [{"method": "embedding"}, {"method": "embedding"}]}, "one method"),
    ],
)
def test_refused_when_read(data: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as error:
        Recipe.load(data)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"merge": {"method": "aim", "ruonds": 2}}, "did you mean 'rounds'?"),
        ({"merge": {"method": "aim", "rounds": "two"}}, "merge.aim.rounds: 'two' is given"),
        ({"merge": {"method": "aim", "rounds": True}}, "merge.aim.rounds: True is given"),
        ({"merge": {"method": "aim", "keep": 0}}, "merge.aim.keep: 0 is given"),
        ({"merge": {"method": "aim", "keep": 1.5}}, "merge.aim.keep: 1.5 is given"),
        ({"prefill": {"method": "metok", "layers": [3, "x"]}}, "prefill.metok.layers"),
        ({"prefill": {"method": "metok", "layers": [10, 3]}}, "prefill.metok.layers"),
    ],
)
def test_refused_when_built(data: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as error:
        Recipe.load(data).build()
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("merge: {method: aim}\nmerge: {method: uniform}\n", "given twice"),
        ("merge: {method: aim, keep: 0.5, keep: 0.6}\n", "given twice"),
        ("merge: &a {method: aim}\nprefill: *a\n", "alias"),
        ("merge: !!python/object/apply:os.getcwd []\n", "YAML"),
        ("merge: {method: aim\n", "YAML"),
        ("- merge\n", "no mapping"),
        ("", "no mapping"),
    ],
)
def test_refused_files(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        Recipe.load(path)
    assert said in str(error.value)
    assert "bad.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00\x80")
    for path in (tmp_path / "bytes.yaml", tmp_path / "gone.yaml", tmp_path):
        with pytest.raises(UsageError):
            Recipe.load(path)


def test_unknown_recipe_names_the_nearest_and_all() -> None:
    with pytest.raises(UsageError, match="did you mean 'metok-paper'") as error:
        Recipe.load("metok-papr")
    assert all(name in str(error.value) for name in SHIPPED)


@pytest.mark.parametrize(
    ("override", "stage", "expected"),
    [
        ("prefill.keep=0.25", "prefill", [{"method": "metok", "layers": [3, 10, 19], "keep_key": 0.76, "keep": 0.25}]),
        ("merge.0.rounds=1", "merge", [{"method": "aim", "rounds": 1, "keep": 0.25, "at_most": 4096}]),
        ("prefill.method=none", "prefill", []),
        ("prefill=none", "prefill", []),
        ("prefill={method: aim, keep: 0.5}", "prefill", [{"method": "aim", "keep": 0.5}]),
        ("merge.method=uniform", "merge", [{"method": "uniform", "keep": 0.25, "at_most": 4096}]),
        ("encode.1.method=uniform", "encode", [{"method": "sta", "keep": 0.7}, {"method": "uniform"}]),
        ("decode.forgetting=1e-1", "decode", [{"method": "a2sf", "keep": 0.5, "forgetting": 0.1}]),
    ],
)
def test_overrides(override: str, stage: str, expected: list[dict[str, Any]]) -> None:
    recipe = Recipe.load("sta-aim-metok", [override])
    assert [step.to_dict() for step in recipe.steps(stage)] == expected
    assert recipe.overrides == (override,)


def test_overrides_of_frames_replace_the_rival() -> None:
    recipe = Recipe.load("dense", ["frames.frames=8", "max_new_tokens=5"])
    assert (recipe.frames.fps, recipe.frames.frames, recipe.max_new_tokens) == (None, 8, 5)
    assert Recipe.load(recipe, ["frames.fps=2"]).frames.frames is None


def test_overrides_follow_each_other() -> None:
    recipe = Recipe.load("dense", ["prefill.method=random", "prefill.keep=0.5"])
    assert recipe.prefill[0].to_dict() == {"method": "random", "keep": 0.5}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("prefill.keep", "KEY=VALUE"),
        ("prefil.keep=1", "did you mean 'prefill'?"),
        ("prefill..keep=1", "KEY=VALUE"),
        ("prefill.method=metokk", "did you mean 'metok'?"),
        ("prefill.0.a.b=1", "allowed is prefill.OPTION"),
        ("merge.3.keep=1", "counted from 0"),
        ("description.a=1", "has no parts"),
        ("frames.fps=0", "frames"),
        ("frames.fps=[", "YAML"),
    ],
)
def test_refused_overrides(override: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        Recipe.load("sta-aim-metok", [override])
    assert said in str(error.value)


def test_an_override_of_nothing_says_how() -> None:
    with pytest.raises(UsageError, match=r"set prefill\.method=NAME first"):
        Recipe.load("dense", ["prefill.keep=0.5"])
    two = {"merge": [{"method": "uniform", "keep": 0.5}, {"method": "aim"}]}
    with pytest.raises(UsageError, match="say which"):
        Recipe.load(two, ["merge.keep=0.5"])
