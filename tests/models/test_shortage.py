"""Memory that runs out, by fakes that raise as torch does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import films
from tests.tiny import onevision
from videoprune import Pipeline
from videoprune.errors import EnvironmentProblem
from videoprune.models import weights
from videoprune.models.shortage import is_shortage
from videoprune.models.weights import Weights, check_weights_fit, read_weights

QUESTION = "what happens after the red circle ?"
CPU = "[enforce fail at alloc_cpu.cpp:126] . DefaultCPUAllocator: not enough memory: you tried to allocate 8589934592 bytes."
CUDA = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 7.79 GiB of which 1.02 GiB is free."
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onevision(tmp_path_factory.mktemp("model"), clip=False)


@pytest.fixture
def pipe(folder: Path) -> Pipeline:
    return Pipeline.load({"frames": {"frames": 24}, "max_new_tokens": 3}, model=folder, device="cpu")


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    films.write(path, frames=60)
    return path


def test_what_is_a_shortage() -> None:
    assert is_shortage(MemoryError())
    assert is_shortage(RuntimeError(CPU))
    assert is_shortage(torch.OutOfMemoryError(CUDA))
    assert not is_shortage(RuntimeError("shape mismatch"))
    assert not is_shortage(ValueError("not enough memory"))


def narrow(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch, most: int, error: Exception) -> list[int]:
    """A tower that holds `most` frames; gives the sizes that it was asked for."""
    asked, own = [], pipe.host.encode

    def encode(images: np.ndarray, *rest: Any) -> Any:
        asked.append(len(images))
        if len(images) > most:
            raise error
        return own(images, *rest)

    monkeypatch.setattr(pipe.host, "encode", encode)
    return asked


@pytest.mark.parametrize("error", [RuntimeError(CPU), MemoryError(), torch.OutOfMemoryError(CUDA)])
def test_a_chunk_is_tried_again_in_halves(
    pipe: Pipeline, film: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    whole = pipe.watch(film).tokens
    asked = narrow(pipe, monkeypatch, 12, error)
    halves = pipe.watch(film).tokens
    assert asked == [24, 12, 12]
    assert torch.equal(halves.owner, whole.owner)
    assert torch.equal(halves.frame, whole.frame)
    assert torch.equal(halves.seconds, whole.seconds)
    assert torch.allclose(halves.features, whole.features, atol=1e-5)


def test_later_chunks_start_with_halves(folder: Path, film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipeline.load({"frames": {"frames": 50}, "max_new_tokens": 3}, model=folder, device="cpu")
    asked = narrow(pipe, monkeypatch, 16, MemoryError())
    assert pipe.watch(film).tokens.frames == 50
    assert asked == [32, 16, 16, 16, 2]


def test_halves_keep_whole_windows(folder: Path, film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = {"frames": {"frames": 24}, "encode": {"method": "sta", "keep": 0.5}}
    pipe = Pipeline.load(recipe, model=folder, device="cpu")
    assert pipe.stages.encode[0].window == 16
    whole = pipe.watch(film).tokens
    asked = narrow(pipe, monkeypatch, 23, MemoryError())
    halves = pipe.watch(film).tokens
    assert asked == [24, 16, 8]
    assert torch.equal(halves.owner, whole.owner)


def test_it_is_tried_once_and_told_with_the_sums(pipe: Pipeline, film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = narrow(pipe, monkeypatch, 5, RuntimeError(CPU))
    with pytest.raises(EnvironmentProblem, match="24 frames at a time, then 12") as caught:
        pipe.watch(film)
    assert asked == [24, 12]
    assert caught.value.stage == "encode"
    assert caught.value.exit_code == 3
    for part in ("next allocation 8.00 GiB", "weights ", "free ", "--fit"):
        assert part in str(caught.value)


def test_another_error_passes(pipe: Pipeline, film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = narrow(pipe, monkeypatch, 5, RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        pipe.watch(film)
    assert asked == [24]


@pytest.mark.parametrize(("call", "stage"), [(0, "prefill"), (2, "decode")])
def test_the_language_model_runs_out(pipe: Pipeline, film: Path, call: int, stage: str) -> None:
    video = pipe.watch(film)
    layer, calls = pipe.host.decoder.layers[1], []

    def greedy(*_: Any) -> None:
        calls.append(1)
        if len(calls) > call:
            raise torch.OutOfMemoryError(CUDA)

    handle = layer.register_forward_pre_hook(greedy)
    with pytest.raises(EnvironmentProblem, match=f"out of memory on cpu in {stage}") as caught:
        video.ask(QUESTION)
    handle.remove()
    rows = 24 * 16 + 1
    assert "next allocation 2.50 GiB" in str(caught.value)
    assert f"a prompt of {rows + sum(map(len, pipe.host.prompt_ids(QUESTION)))} rows" in str(caught.value)
    assert "forward" not in vars(pipe.host.decoder)
    assert video.ask(QUESTION).text is not None  # nothing is left broken


def test_weights_are_counted_from_headers(folder: Path, tmp_path: Path) -> None:
    pipe = Pipeline.load("dense", model=folder, device="cpu")
    counted = read_weights(str(folder), None, {})
    assert counted is not None
    assert counted.count == sum(parameter.numel() for parameter in pipe.host.model.parameters())
    assert counted.bytes_as(torch.float32) == 2 * counted.bytes_as(torch.bfloat16)
    assert read_weights(str(tmp_path), None, {}) is None
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"metadata": {"total_size": 16000000000}, "weight_map": {"a": "model-00001-of-00004.safetensors"}}'
    )
    assert read_weights(str(tmp_path), None, {"dtype": "bfloat16"}) == Weights(
        8 * 10**9, 16 * 10**9, "the index of its shards"
    )


def test_weights_that_do_not_fit_are_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "free_memory", lambda device: 1000)
    monkeypatch.setattr("videoprune.models.load._load_weights", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(
        EnvironmentProblem, match=r"G weights x 4 bytes \(float32\) = .* and 1000 B are free on cpu"
    ) as caught:
        Pipeline.load("dense", model=folder, device="cpu")
    for part in ("--dtype bfloat16", "--quantize 4bit", "--device", "videoprune plan"):
        assert part in str(caught.value)


def test_narrower_weights_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "free_memory", lambda device: 10 * 10**9)
    known = Weights(4 * 10**9, 8 * 10**9, "test")
    cpu = torch.device("cpu")
    check_weights_fit("m", known, torch.bfloat16, cpu)
    check_weights_fit("m", known, torch.float32, cpu, "4bit")
    check_weights_fit("m", None, torch.float32, cpu)
    with pytest.raises(EnvironmentProblem, match=r"4\.00 G weights x 4 bytes \(float32\) = 14\.9 GiB"):
        check_weights_fit("m", known, torch.float32, cpu)
