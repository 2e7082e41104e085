"""`--device-map`, `--quantize` and HF_HUB_OFFLINE, on the CPU: the same answers, or a plain refusal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tests.tiny import llava15, onevision
from videoprune import cli
from videoprune.demo.film import make_film
from videoprune.errors import EnvironmentProblem, UsageError
from videoprune.models import placement as placing
from videoprune.models.load import load_host
from videoprune.pipeline import Pipeline

# accelerate takes a bare parameter for a module that is not there, and places it all the same
pytestmark = pytest.mark.filterwarnings("ignore:The following device_map keys")

QUESTION = "what happens after the red circle ?"
EVERYTHING = {
    "frames": {"fps": 1, "max": 8},
    "encode": {"method": "sta", "keep": 0.7},
    "segment": {"method": "metok"},
    "merge": {"method": "aim", "keep": 0.6},
    "prefill": [{"method": "metok"}, {"method": "topv"}],
    "decode": {"method": "a2sf", "keep": 0.6},
    "max_new_tokens": 5,
}
OUTSIDE = {  # half of the layers wait on disk
    "model.vision_tower": "cpu",
    "model.multi_modal_projector": "cpu",
    "model.image_newline": "cpu",
    "model.language_model.embed_tokens": "cpu",
    "model.language_model.rotary_emb": "cpu",
    **{f"model.language_model.layers.{layer}": "cpu" if layer < 3 else "disk" for layer in range(6)},
    "model.language_model.norm": "cpu",
    "lm_head": "disk",
}


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "demo.mp4"
    make_film(path, minutes=20 / 60, seed=3)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onevision(tmp_path_factory.mktemp("model"))


def test_device_map_auto_gives_the_same_answer(folder: Path, film: Path) -> None:
    plain = Pipeline.load(EVERYTHING, model=folder, device="cpu").watch(film).ask(QUESTION, logits=True)
    mapped = (
        Pipeline.load(EVERYTHING, model=folder, device="cpu", device_map="auto").watch(film).ask(QUESTION, logits=True)
    )
    torch.testing.assert_close(mapped.logits, plain.logits, atol=0, rtol=0)
    (choice,) = [choice for choice in mapped.report.choices if choice["name"] == "device_map"]
    assert "cpu computes" in choice["reason"]


def test_layers_that_wait_outside_give_the_same_answer(
    folder: Path, film: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """accelerate's hooks bring weights over for every module that the loop calls, inner ones too."""
    monkeypatch.chdir(tmp_path)
    plain = Pipeline.load(EVERYTHING, model=folder, device="cpu").watch(film).ask(QUESTION, logits=True)
    pipe = Pipeline.load(EVERYTHING, model=folder, device="cpu", device_map=OUTSIDE)
    waiting = [name for name, weight in pipe.host.model.named_parameters() if weight.is_meta]
    assert any("layers.5.self_attn.q_proj" in name for name in waiting)
    assert any("lm_head" in name for name in waiting)
    video = pipe.watch(film)
    answer = video.ask(QUESTION, logits=True)
    torch.testing.assert_close(answer.logits, plain.logits, atol=1e-6, rtol=0)
    assert video.options(QUESTION, ["the red circle", "a circle"]).chosen in (0, 1)
    forwards = [module for module in pipe.host.model.modules() if "forward" in module.__dict__]
    before = {id(module): module.__dict__["forward"] for module in forwards}
    video.ask(QUESTION)
    assert {id(module): module.__dict__["forward"] for module in forwards} == before  # accelerate's own are put back


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model.language_model.embed_tokens": "disk"}, "embed_tokens.weight found no room"),
        ({"model.vision_tower": "disk"}, "vision_tower.* found no room"),
    ],
)
def test_what_may_not_wait_outside(
    change: dict, says: str, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EnvironmentProblem, match=says):
        load_host(folder, device="cpu", device_map={**OUTSIDE, **change})


def test_layers_on_several_devices_are_refused(folder: Path) -> None:
    model = load_host(folder, device="cpu").model
    model.get_decoder().layers[3].to("meta")  # a second device that every machine has
    with pytest.raises(EnvironmentProblem, match="layers compute on cpu, meta"):
        placing.check_placed(model, "a model")


@pytest.fixture(scope="module")
def whole_blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 bit packs 64 weights of a row together on CPUs with AVX-512."""
    return onevision(tmp_path_factory.mktemp("blocks"), intermediate_size=128)


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_quantised_weights_run_every_stage(quantize: str, whole_blocks: Path, film: Path) -> None:
    import bitsandbytes

    pipe = Pipeline.load(EVERYTHING, model=whole_blocks, device="cpu", quantize=quantize)
    kind = {"4bit": bitsandbytes.nn.Linear4bit, "8bit": bitsandbytes.nn.Linear8bitLt}[quantize]
    assert isinstance(pipe.host.decoder.layers[0].mlp.up_proj, kind)
    narrow = [name for name, module in pipe.host.model.named_modules() if isinstance(module, kind)]
    assert all(
        "language_model.layers" in name for name in narrow
    )  # towers, projectors and the last layer keep their width
    assert len(narrow) == 7 * 6
    answer = pipe.watch(film).ask(QUESTION, logits=True)
    assert answer.logits is not None
    assert np.isfinite(answer.logits.float().numpy()).all()
    assert len(answer.ids) == 5
    (choice,) = [choice for choice in answer.report.choices if choice["name"] == "quantize"]
    assert choice["value"] == quantize


def test_quantised_keeps_the_answer_near(folder: Path, film: Path) -> None:
    """8 bit errs by percents, not by another model's weights."""
    recipe = {"frames": {"fps": 1, "max": 8}, "max_new_tokens": 1}
    plain = Pipeline.load(recipe, model=folder, device="cpu").watch(film).ask(QUESTION, logits=True).logits[0]
    eight = (
        Pipeline.load(recipe, model=folder, device="cpu", quantize="8bit")
        .watch(film)
        .ask(QUESTION, logits=True)
        .logits[0]
    )
    assert float(torch.cosine_similarity(plain.float(), eight.float(), dim=0)) > 0.95


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"quantize": "3bit"}, UsageError, "--quantize 3bit: allowed are 4bit, 8bit"),
        ({"device_map": "balanced"}, UsageError, "--device-map balanced: allowed is auto"),
    ],
)
def test_other_values_are_refused_before_any_work(settings: dict, error: type, says: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=says):
        load_host(tmp_path / "no-model-there", device="cpu", **settings)


@pytest.mark.parametrize(("flag", "package"), [("--quantize", "bitsandbytes"), ("--device-map", "accelerate")])
def test_a_missing_package_is_named(flag: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = placing.importlib.util.find_spec
    monkeypatch.setattr(placing.importlib.util, "find_spec", lambda name: None if name == package else found(name))
    settings = {"quantize": "4bit"} if flag == "--quantize" else {"device_map": "auto"}
    with pytest.raises(
        EnvironmentProblem, match=rf"{flag}.* {package} is not installed; pip install 'videoprune\[quant"
    ):
        load_host(tmp_path / "no-model-there", device="cpu", **settings)


def test_flags_of_the_command_line(film: Path, tmp_path: Path) -> None:
    flags = [
        "--model",
        str(llava15(tmp_path / "model", intermediate_size=128)),
        "--device",
        "cpu",
        "--frames",
        "2",
        "--max-new-tokens",
        "2",
        "-q",
    ]
    run = CliRunner().invoke(
        cli.app, ["ask", str(film), QUESTION, *flags, "--quantize", "4bit", "--device-map", "auto"]
    )
    assert run.exit_code == 0, run.output
    run = CliRunner().invoke(cli.app, ["ask", str(film), QUESTION, *flags, "--quantize", "2bit"])
    assert isinstance(run.exception, UsageError) or run.exit_code == 2


def test_offline_is_respected_and_told(tmp_path: Path) -> None:
    """A fresh process, since the hub's client reads the variable once; nothing is tried over the network."""
    code = (
        "import socket\n"
        "def refuse(*args, **kwargs): raise SystemExit('the network was tried')\n"
        "socket.create_connection = socket.getaddrinfo = refuse\n"
        "from videoprune.errors import EnvironmentProblem\n"
        "from videoprune.models.load import load_host\n"
        "try: load_host('org/model', device='cpu')\n"
        "except EnvironmentProblem as error: print(error)\n"
    )
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub")}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert out.returncode == 0, out.stderr
    assert "org/model" in out.stdout
    assert (
        "HF_HUB_OFFLINE is set; unset it, download the model first (hf download org/model), or give a folder"
        in out.stdout
    )
    assert len(out.stdout.splitlines()) == 1
