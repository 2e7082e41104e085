"""Learned parts: written, read, and refused where they are not for this method and model, before memory is taken."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.matrix import host_of
from videoprune.cli import main
from videoprune.console import demo_material
from videoprune.errors import UsageError
from videoprune.host_facts import HostFacts, weights_digest
from videoprune.pipeline import Pipeline
from videoprune.prefill.atp import ATP
from videoprune.prefill.lvpruning import LVPruning
from videoprune.recipe import Recipe
from videoprune.trained import load_part, method_name, save_part

FACTS = HostFacts("fake", 16, 28, 4, 2, 4, 8, 4, (4, 4), digest="ab")


def saved(path: Path, method: Any = None, facts: HostFacts = FACTS) -> Path:
    method = method or LVPruning()
    torch.manual_seed(0)
    return save_part(path, method.build(facts), method, facts, {"seed": 3})


def rewritten(path: Path, change: Any) -> None:
    """The file with its header changed and its numbers as they were."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def test_a_part_comes_back(tmp_path: Path) -> None:
    path = saved(tmp_path / "deep" / "part.safetensors")
    part, record = load_part(path, LVPruning(weights=str(path)), FACTS)
    torch.manual_seed(0)
    for name, value in LVPruning().build(FACTS).state_dict().items():
        assert torch.equal(part.state_dict()[name], value)
    assert record == {"seed": 3}
    assert [file.name for file in path.parent.iterdir()] == ["part.safetensors"]
    method = LVPruning(weights=str(path))
    assert method.bind(FACTS) == {"seed": 3}
    assert not any(weight.requires_grad for weight in method.part.parameters())
    assert method == LVPruning(weights=str(path))  # what is bound is no setting


BAD = {
    "missing": (lambda path: path.unlink(), "can't be read"),
    "empty": (lambda path: path.write_bytes(b""), "no safetensors"),
    "text": (lambda path: path.write_text("weights, surely"), "no safetensors"),
    "pickle": (lambda path: torch.save({"x": torch.zeros(3)}, path), "no safetensors"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-40]), "damaged or cut"),
    "cut header": (lambda path: path.write_bytes(path.read_bytes()[:100]), "no safetensors"),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b"more"), "damaged or cut"),
    "no metadata": (lambda path: rewritten(path, lambda header: header.pop("__metadata__")), "says nothing"),
    "other format": (
        lambda path: rewritten(path, lambda header: header["__metadata__"].update(videoprune="9")),
        "format '9'",
    ),
    "broken metadata": (
        lambda path: rewritten(path, lambda header: header["__metadata__"].update(host="{")),
        "damaged or cut",
    ),
    "metadata of another kind": (
        lambda path: rewritten(path, lambda header: header["__metadata__"].update(structure="[1]")),
        "damaged or cut",
    ),
    "huge": (
        lambda path: rewritten(path, lambda header: header["0.out.weight"].update(shape=[2**40, 2**20])),
        "damaged or cut",
    ),
    "negative": (
        lambda path: rewritten(path, lambda header: header["0.out.weight"].update(shape=[-2, -8])),
        "damaged or cut",
    ),
    "turned": (
        lambda path: rewritten(path, lambda header: header["0.out.weight"]["shape"].reverse()),
        r"0\.out\.weight is 8x2, and prefill\.lvpruning on this model has 2x8",
    ),
    "renamed": (
        lambda path: rewritten(path, lambda header: header.update(other=header.pop("0.out.weight"))),
        "missing",
    ),
    "overlapping": (
        lambda path: rewritten(
            path, lambda header: header["0.out.bias"].update(data_offsets=header["1.out.bias"]["data_offsets"])
        ),
        "damaged or cut",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_in_a_sentence(case: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "part.safetensors")
    spoil, message = BAD[case]
    spoil(path)
    with pytest.raises(UsageError, match=message) as told:
        load_part(path, LVPruning(weights=str(path)), FACTS)
    assert str(path) in str(told.value)
    assert "\n" not in str(told.value)


def test_a_file_for_something_else_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "part.safetensors")
    own = str(path)
    with pytest.raises(UsageError, match=r"trained for prefill\.lvpruning, and the recipe's method is prefill\.atp"):
        load_part(path, ATP(weights=own), FACTS)
    with pytest.raises(UsageError, match="trained with divisor 4"):
        load_part(path, LVPruning(weights=own, divisor=2), FACTS)
    for other in (
        replace(FACTS, digest="cd"),
        replace(FACTS, width=32),
        replace(FACTS, family="qwen2-vl", digest="cd"),
        replace(FACTS, layers=32),
    ):
        with pytest.raises(UsageError, match="trained for another model"):
            load_part(path, LVPruning(weights=own), other)
    load_part(path, LVPruning(weights=own), replace(FACTS, digest=""))  # quantised: sizes have to do


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    part = LVPruning().build(FACTS)
    with torch.no_grad():
        next(part.parameters()).view(-1)[3] = torch.nan
    path = save_part(tmp_path / "part.safetensors", part, LVPruning(), FACTS, {})
    with pytest.raises(UsageError, match="not finite"):
        load_part(path, LVPruning(weights=str(path)), FACTS)


def test_a_pipeline_refuses_and_names_the_option(tmp_path: Path) -> None:
    host = host_of("onevision", "float32")
    for weights, message in ((None, "another model|none ship"), (str(tmp_path / "none.safetensors"), "can't be read")):
        step = {"method": "lvpruning", **({"weights": weights} if weights else {})}
        with pytest.raises(UsageError, match=rf"prefill\.lvpruning\.weights: .*({message})") as told:
            Pipeline(host, Recipe.load({"prefill": step}))
        assert told.value.stage == "prefill"
    path = save_part(
        tmp_path / "own.safetensors",
        LVPruning().build(HostFacts.of(host)),
        LVPruning(),
        HostFacts.of(host),
        {"seed": 5},
    )
    pipe = Pipeline(host, Recipe.load({"prefill": {"method": "lvpruning", "weights": str(path)}}))
    (choice,) = (choice for choice in pipe.choices if choice["name"] == "prefill.lvpruning.weights")
    assert choice["value"] == str(path)
    assert "seed 5" in choice["reason"]
    Pipeline(host, Recipe.load({"prefill": {"method": "lvpruning", "keep": 1}}))  # changes nothing, needs nothing


def test_the_command_line_leaves_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"\xff" * 64)
    set_ = ["--set", "prefill.method=lvpruning", "--set", f"prefill.weights={bad}"]
    film, _ = demo_material(1)
    assert main(["ask", str(film), "what?", "-q", *set_]) == 2
    told = capsys.readouterr().err
    assert "no safetensors" in told
    assert "Traceback" not in told


def test_a_digest_is_of_the_weights_not_of_their_dtype() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(5, 200), torch.nn.Linear(200, 3))
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.bfloat16().float())
    first = weights_digest(model)
    half = torch.nn.Sequential(torch.nn.Linear(5, 200), torch.nn.Linear(200, 3)).bfloat16()
    half.load_state_dict(model.state_dict())
    assert weights_digest(half) == first
    other = torch.nn.Sequential(torch.nn.Linear(5, 200), torch.nn.Linear(200, 3))
    assert weights_digest(other) != first
    assert weights_digest(torch.nn.Linear(3, 3, device="meta")) == ""


def test_names_of_methods() -> None:
    assert method_name(ATP()) == "prefill.atp"
