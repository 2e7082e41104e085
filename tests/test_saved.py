"""Watched films on disk: the same answers, and refusal of every file that does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.tiny import onevision
from videoprune.demo.film import make_film
from videoprune.errors import FilmError, UsageError
from videoprune.pipeline import Pipeline
from videoprune.saved import read_about
from videoprune.watched import Video

RECIPE = {
    "frames": {"fps": 1},
    "encode": {"method": "tome", "keep": 0.7},
    "segment": {"method": "metok"},
    "merge": [{"method": "dycoke"}, {"method": "evs", "keep": 0.5}],
    "prefill": {"method": "metok", "keep": 0.6},
    "decode": {"method": "a2sf", "keep": 0.5},
    "max_new_tokens": 5,
}
QUESTION = "What happens after the red circle?"


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    loaded = Pipeline.load(RECIPE, model=onevision(tmp_path_factory.mktemp("model")), device="cpu")
    loaded.host.model.generation_config.eos_token_id = None
    return loaded


@pytest.fixture(scope="module")
def watched(pipe: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> tuple[Video, Path]:
    folder = tmp_path_factory.mktemp("film")
    make_film(folder / "film.mp4", minutes=12 / 60, seed=3)
    video = pipe.watch(folder / "film.mp4")
    return video, video.save(folder / "film.vpz")


def rewrite(path: Path, out: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], None]) -> Path:
    tensors = load_file(path)
    with safe_open(str(path), framework="pt") as file:
        about = json.loads(file.metadata()["videoprune"])
    change(tensors, about)
    save_file(tensors, out, metadata={"videoprune": json.dumps(about)})
    return out


def test_the_answer_and_the_ledger_are_the_same_to_the_last_bit(pipe: Pipeline, watched: tuple[Video, Path]) -> None:
    video, path = watched
    again = pipe.open(path)
    for name in ("features", "frame", "cell", "event", "seconds", "weight", "owner", "position", "frame_seconds"):
        before, after = getattr(video.tokens, name), getattr(again.tokens, name)
        assert before.dtype == after.dtype, name
        assert torch.equal(before, after), name
    assert torch.equal(video.events.frame_event, again.events.frame_event)
    assert (again.tokens.grid, again.tokens.extent) == (video.tokens.grid, video.tokens.extent)
    assert (again.encoded_count, again.metadata, again.rule) == (video.encoded_count, video.metadata, video.rule)
    first, second = video.ask(QUESTION, logits=True), again.ask(QUESTION, logits=True)
    assert first.logits is not None
    assert second.logits is not None
    assert torch.equal(first.logits, second.logits)
    assert first.report.tokens == second.report.tokens
    assert second.report.seconds["encode"] == second.report.seconds["decode_film"] == 0
    assert read_about(path)["recipe"]["merge"][0]["method"] == "dycoke"


def test_stages_after_the_question_may_change_and_those_before_may_not(
    pipe: Pipeline, watched: tuple[Video, Path]
) -> None:
    path = watched[1]
    assert pipe.with_recipe({**RECIPE, "prefill": {"method": "fastv", "keep": 0.5}}).open(path).ask(QUESTION).ids
    for stage, change in (("encode", {"method": "tome", "keep": 0.8}), ("merge", {"method": "dycoke"})):
        with pytest.raises(UsageError, match=f"recipe's {stage} differs"):
            pipe.with_recipe({**RECIPE, stage: change}).open(path)


def test_another_model_is_refused(watched: tuple[Video, Path], tmp_path: Path) -> None:
    other = Pipeline.load(RECIPE, model=onevision(tmp_path), device="cpu")
    with torch.no_grad():
        other.host.model.model.multi_modal_projector.linear_2.weight.mul_(1.5)
    with pytest.raises(UsageError, match="watched with the model"):
        other.open(watched[1])


def test_a_film_that_changed_is_refused_and_one_that_is_gone_is_not_needed(
    pipe: Pipeline, watched: tuple[Video, Path], tmp_path: Path
) -> None:
    film = tmp_path / "film.mp4"
    film.write_bytes(Path(watched[0].film).read_bytes())
    video = pipe.watch(film, frames=watched[0].rule)
    path = video.save(tmp_path / "film.vpz")
    film.write_bytes(film.read_bytes()[:-1] + b"x")
    with pytest.raises(FilmError, match="has changed since"):
        pipe.open(path)
    film.unlink()
    assert pipe.open(path).ask(QUESTION).ids == video.ask(QUESTION).ids


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, about: tensors.update({"tokens.owner": tensors["tokens.owner"][:-1].clone()}),
        lambda tensors, about: tensors.update({"tokens.features": tensors["tokens.features"][:, :-1].contiguous()}),
        lambda tensors, about: tensors.update({"tokens.weight": tensors["tokens.weight"] + 1}),
        lambda tensors, about: tensors.pop("events.frame_event"),
        lambda tensors, about: about["plain"]["tokens"].pop("extent"),
        lambda tensors, about: about.update(format=99),
    ],
    ids=["owner", "width", "ledger", "events", "extent", "format"],
)
def test_damaged_files_are_refused(
    pipe: Pipeline, watched: tuple[Video, Path], tmp_path: Path, change: Callable[..., None]
) -> None:
    with pytest.raises(FilmError, match="watched film"):
        pipe.open(rewrite(watched[1], tmp_path / "bad.vpz", change))


def test_what_is_no_watched_film_is_refused(pipe: Pipeline, watched: tuple[Video, Path], tmp_path: Path) -> None:
    text, cut, other = tmp_path / "text.vpz", tmp_path / "cut.vpz", tmp_path / "other.vpz"
    text.write_text("hello")
    cut.write_bytes(watched[1].read_bytes()[:-100])
    save_file({"a": torch.zeros(1)}, other)
    for path in (text, cut, other, tmp_path / "none.vpz"):
        with pytest.raises(FilmError, match="watched film"):
            pipe.open(path)
    with pytest.raises(UsageError, match=r"ends in \.vpz"):
        watched[0].save(tmp_path / "film.mp4")


def test_the_commands(videoprune: Callable[..., Any], tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    make_film(film, minutes=12 / 60, seed=3)
    indexed = videoprune("index", str(film), "--set", "merge.keep=0.3", "-q")
    assert (indexed.code, indexed.out.strip()) == (0, str(tmp_path / "film.vpz"))
    direct = videoprune("ask", str(film), "Where does it take place?", "--set", "merge.keep=0.3", "--json")
    stored = videoprune("ask", indexed.out.strip(), "Where does it take place?", "--json")
    assert stored.code == direct.code == 0
    one, other = json.loads(direct.out), json.loads(stored.out)
    assert one["answers"][0]["text"] == other["answers"][0]["text"]
    assert one["answers"][0]["report"]["tokens"] == other["answers"][0]["report"]["tokens"]
    assert one["film"] == other["film"]
    for words in (["--fps", "2"], ["--compare"]):
        refused = videoprune("ask", indexed.out.strip(), "q?", *words)
        assert refused.code == 2
        assert words[0] in refused.err
