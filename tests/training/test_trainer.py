"""The trainer on a lesson of a few numbers, and on the demo model for a few steps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from videoprune.cli import main
from videoprune.errors import UsageError
from videoprune.trained import Lesson, Schedule, read_about
from videoprune.training import films
from videoprune.training.curve import draw_curve
from videoprune.training.films import Generated, open_films
from videoprune.training.trainer import make_method, run, train, trained_methods

PLAN = Schedule(steps=12, batch=4, learning_rate=0.05)


class Line(Lesson):
    """Learns y = 2x + 1 from noisy draws, so that order and draws both matter."""

    def __init__(self) -> None:
        self.host: Any = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32)

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> float:
        return index / 10

    def loss(self, part: nn.Module, examples: Sequence[float], progress: float) -> dict[str, Tensor]:
        x = torch.tensor(examples)[:, None]
        noise = 0.1 * torch.randn_like(x)
        off = (part(x) - 2 * x - 1 + noise).square().mean()
        return {"loss": off, "progress": torch.tensor(progress)}


def line(folder: Path, **settings: Any) -> nn.Module:
    folder.mkdir(exist_ok=True)
    torch.manual_seed(1)
    part = nn.Linear(1, 1)
    run(part, Line(), PLAN, folder, save_every=5, log_every=3, **settings)
    return part


def test_the_loss_falls_and_is_logged(tmp_path: Path) -> None:
    line(tmp_path)
    rows = [json.loads(row) for row in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 6, 9, 12]
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    assert rows[0]["progress"] < rows[-1]["progress"] <= 1
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
    assert (tmp_path / "checkpoints" / "checkpoint-12" / "model.safetensors").is_file()


def test_resumed_is_as_if_never_stopped(tmp_path: Path) -> None:
    whole = line(tmp_path / "whole")
    line(tmp_path / "parts", stop_at=7)
    again = line(tmp_path / "parts", resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "parts")]
    assert [json.loads(row)["step"] for row in logs[1]] == [3, 6, 9, 12]
    assert json.loads(logs[0][-1])["loss"] == pytest.approx(json.loads(logs[1][-1])["loss"], abs=1e-6)


def test_accumulated_is_as_if_at_once(tmp_path: Path) -> None:
    class Quiet(Line):
        def loss(self, part: nn.Module, examples: Sequence[float], progress: float) -> dict[str, Tensor]:
            x = torch.tensor(examples)[:, None]
            return {"loss": (part(x) - 2 * x - 1).square().mean()}

    found = []
    for pieces in (1, 4):
        torch.manual_seed(1)
        part = nn.Linear(1, 1)
        run(part, Quiet(), PLAN, tmp_path / str(pieces), accumulate=pieces)
        found.append(part)
    assert torch.allclose(found[0].weight, found[1].weight, atol=1e-5)
    with pytest.raises(UsageError, match="divisors of the batch of 4"):
        run(nn.Linear(1, 1), Quiet(), PLAN, tmp_path, accumulate=3)


def test_a_loss_that_is_not_finite_ends_it(tmp_path: Path) -> None:
    class Broken(Line):
        def loss(self, part: nn.Module, examples: Sequence[float], progress: float) -> dict[str, Tensor]:
            return {"loss": part(torch.full((1, 1), torch.inf)).sum()}

    with pytest.raises(UsageError, match="not finite"):
        run(nn.Linear(1, 1), Broken(), PLAN, tmp_path)


def test_a_few_steps_on_the_demo_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ATP from the command line: its share goes towards the target, and the file is one that a recipe takes."""
    monkeypatch.setattr(films, "LENGTHS", (12,))
    monkeypatch.setattr("videoprune.training.answers.HELD_OUT", 1)
    monkeypatch.setattr(Generated.__init__, "__defaults__", ((12,),))
    out = tmp_path / "atp"
    command = ["train", "atp", "--out", str(out), "--steps", "8", "--films", "2", "--batch", "2", "--log-every", "2",
               "--set", "target=0.1", "--learning-rate", "0.05", "-q", "--device", "cpu"]  # fmt: skip
    assert main(command) == 0
    rows = [json.loads(row) for row in (out / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["target"] < 0.8 * rows[0]["target"]
    assert rows[-1]["loss"] < rows[0]["loss"]
    about, _ = read_about(out / "atp.safetensors")
    assert about["method"] == "prefill.atp"
    assert about["host"]["width"] == 192
    assert about["training"]["seed"] == 0
    assert about["training"]["held_out"]["questions"] > 0
    assert (out / "loss.svg").read_text().startswith("<svg")
    drawn = Generated(1, 1)
    film = drawn.file(0)
    asked = ["ask", str(film), "Where does the video mainly take place?", "-q", "--set", "prefill.method=atp"]
    given = ["--set", f"prefill.weights={out / 'atp.safetensors'}"]
    assert main([*asked, *given, "--set", "prefill.target=0.1"]) == 0
    assert main([*asked, *given]) == 2  # trained for another target
    assert main(command) == 2  # the folder is taken
    assert main([*command[:-2], "--seed", "4", "--resume"]) == 2  # by another training


def test_folders_of_films_are_read(tmp_path: Path) -> None:
    drawn = Generated(3, 40, (12,))
    for number in range(3):
        drawn.file(number).rename(tmp_path / f"{number}.mp4")
    rows = [{"video": f"{number}.mp4", "question": "What is it?", "answer": "a dog"} for number in range(3)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, aside = open_films(str(tmp_path), 5, 5, seed=0)
    assert (len(first), len(aside)) == (2, 1)
    assert first.asked(0)[0].answer == "a dog"
    assert {first.file(0), first.file(1), aside.file(0)} == {tmp_path / f"{number}.mp4" for number in range(3)}
    (tmp_path / "questions.jsonl").write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(UsageError, match="two films at least"):
        open_films(str(tmp_path), 5, 5, seed=0)


def test_seeds_of_training_and_benchmark_are_apart() -> None:
    from videoprune.bench.films import FIRST_SEED

    assert FIRST_SEED + 10**6 < films.FIRST_SEED < films.HELD_OUT_SEED


def test_methods_by_name() -> None:
    assert {"lvpruning", "atp"} <= trained_methods().keys()
    assert make_method("prefill.atp", ["target=0.1"]).target == 0.1  # type: ignore[attr-defined]
    for name, message in (("lvpruned", "lvpruning"), ("prefill.fastv", "nothing to learn"), ("x.atp", "stage")):
        with pytest.raises(UsageError, match=message):
            make_method(name)
    with pytest.raises(UsageError, match="steps"):
        train("atp", "unused", steps=0)


def test_a_curve_of_a_log(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2.0, "<b>": 1}\n{"step": 2, "loss": 1.0, "<b>": 0}\n')
    draw_curve(tmp_path / "log.jsonl", tmp_path / "loss.svg", "a & b")
    text = (tmp_path / "loss.svg").read_text()
    assert text.count("<polyline") == 2
    assert "&lt;b&gt;" in text
    assert "a &amp; b" in text
