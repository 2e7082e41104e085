"""What is wrong with a checkpoint is told on the command line, with the exit code of the environment, and nothing is run."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import Ended
from tests.films import write
from tests.models.hosts import MAKERS
from tests.tiny import onevision, tokenizer
from videoprune.models.load import load_host

ASKED = "what happens after the red circle ?"


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("film") / "film.mp4", 50)


@pytest.fixture
def ask(film: Path, videoprune: Callable[..., Ended]) -> Callable[..., tuple[int, dict[str, str]]]:
    """The exit code and the error of `ask` with a checkpoint."""

    def call(folder: Path, *words: str) -> tuple[int, dict[str, str]]:
        told = videoprune("ask", film, ASKED, "--model", folder, "--frames", 4, "--json", "--max-new-tokens", 2, *words)
        return told.code, json.loads(told.out).get("error", {})

    return call


class Runs:
    """A pickle that does something when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def to_bin(folder: Path) -> dict[str, torch.Tensor]:
    """Replace the safetensors of a checkpoint by a pickle, as older checkpoints have it."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    return weights


def test_bin_files_are_read_as_weights_alone(tmp_path: Path, ask: Callable) -> None:
    folder = MAKERS["llava-1.5"](tmp_path / "model")
    weights = to_bin(folder)
    loaded = load_host(folder, device="cpu").model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items() if name in loaded)
    assert ask(folder)[0] == 0
    with open(folder / "pytorch_model.bin", "wb") as file:
        pickle.dump({"lm_head.weight": Runs(tmp_path / "ran")}, file, protocol=2)
    code, error = ask(folder)
    assert code == 3
    assert "weights cannot be read" in error["message"]
    assert not (tmp_path / "ran").exists()
    torch.save({**weights, "lm_head.weight": Runs(tmp_path / "ran")}, folder / "pytorch_model.bin")
    assert ask(folder)[0] == 3
    assert not (tmp_path / "ran").exists()


def test_a_missing_shard_is_told(tmp_path: Path, ask: Callable) -> None:
    folder = MAKERS["longva"](tmp_path)
    (folder / "model-00002-of-00002.safetensors").unlink()
    code, error = ask(folder)
    assert code == 3
    assert "model-00002-of-00002.safetensors" in error["message"]
    assert str(folder) in error["message"]


def test_missing_weights_are_no_random_ones(tmp_path: Path, ask: Callable) -> None:
    folder = MAKERS["internvl"](tmp_path)
    weights = to_bin(folder)
    gone = next(name for name in weights if "vision_tower" in name and "q_proj" in name)
    torch.save({name: value for name, value in weights.items() if name != gone}, folder / "pytorch_model.bin")
    code, error = ask(folder)
    assert code == 3
    assert "1 missing weights" in error["message"]


def test_a_tokenizer_of_another_model_is_told(tmp_path: Path, ask: Callable) -> None:
    folder = MAKERS["longva"](tmp_path / "model")
    tokenizer(more=[f"word{number}" for number in range(300)]).save_pretrained(folder)
    code, error = ask(folder)
    assert code == 3
    assert "they belong to different models" in error["message"]
    for path in folder.glob("tokenizer*"):
        path.unlink()
    code, error = ask(folder)
    assert code == 3
    assert "tokenizer" in error["message"]


@pytest.mark.parametrize("kind", ["internvl_chat", "llava_mistral", None])
def test_another_family_is_told(kind: str | None, tmp_path: Path, ask: Callable) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind} if kind else {}))
    code, error = ask(tmp_path)
    assert code == 3
    assert f"model_type {kind!r} is not supported" in error["message"]
    assert "internvl (InternVL3" in error["message"]
    assert "llava_next" in error["message"]


@pytest.mark.parametrize("family", ["video-llava", "llava-1.5", "llava-next", "internvl"])
def test_more_tokens_than_the_context_are_refused(family: str, tmp_path: Path, ask: Callable) -> None:
    folder = MAKERS[family](tmp_path, max_position_embeddings=70)
    code, error = ask(folder, "--recipe", "dense")
    assert code == 2
    assert "whose context is 70" in error["message"]
    assert "--max-frames" in error["message"]
    assert error["stage"] == "prompt"
    assert ask(folder, "--recipe", "dense", "--set", "merge=[{method: uniform, keep: 0.25}]")[0] == 0


def test_grids_that_an_earlier_stage_thins_are_refused_before_the_model(tmp_path: Path, ask: Callable) -> None:
    metok = "merge=[{method: metok}]"
    code, error = ask(tmp_path / "nowhere", "--recipe", "sta-aim-metok", "--set", metok)
    assert code == 2, error
    assert "whole grids" in error["message"]
    assert "leave out `encode`" in error["message"]


def test_a_tower_without_cls_says_what_it_reads_instead(
    tmp_path: Path, film: Path, videoprune: Callable[..., Ended]
) -> None:
    folder = onevision(tmp_path, clip=False)
    words = ("--frames", 4, "--json", "--recipe", "dense", "--set", "encode=[{method: fastervlm, keep: 0.5}]")
    told = videoprune("ask", film, ASKED, "--model", folder, *words)
    assert told.code == 0, told.err
    report = json.loads(told.out)["answers"][0]["report"]
    assert report["tokens"]["encoded"] == report["tokens"]["sampled"] // 2
    said = {choice["name"]: choice["value"] for choice in report["choices"]}
    assert said["[CLS] attention"] == "mean received attention"
