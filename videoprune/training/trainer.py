"""One trainer for every method that learns: transformers' Trainer around a method's part and its lesson.

What it leaves in its folder: `NAME.safetensors` (the part), `training.json` (settings and what was reached), `log.jsonl` (a row
every few steps), `loss.svg`, `tensorboard/`, and `checkpoints/`, from which `resume` goes on.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from videoprune import __version__
from videoprune.errors import EnvironmentProblem, UsageError
from videoprune.models.host import Host
from videoprune.models.load import load_host
from videoprune.recipe import Recipe
from videoprune.registry import STAGES, methods, unknown
from videoprune.trained import HostFacts, Lesson, Schedule, Trained, method_name, save_part
from videoprune.training.curve import draw_curve

Tell = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Outcome:
    """What a training left.

    Attributes:
        weights: the part's file. folder: where everything else is.
        record: what the file says of the training: seed, settings, losses, and figures on held-out examples.
    """

    weights: Path
    folder: Path
    record: dict[str, Any]


def trained_methods() -> dict[str, str]:
    """Names of the methods that learn, and their stages."""
    return {entry.name: entry.stage for entry in methods() if issubclass(entry.load(), Trained)}


def make_method(name: str, options: Sequence[str] = ()) -> Trained:
    """A method by its name, or as STAGE.NAME, with "option=value" changes.

    Raises:
        UsageError: it does not exist, learns nothing, or has no such option.
    """
    stage, _, short = name.rpartition(".")
    if not stage:
        known = trained_methods()
        if short not in known:
            raise UsageError(f"method: {unknown(short, known)}")
        stage = known[short]
    if stage not in STAGES:
        raise UsageError(f"method: stage {unknown(stage, STAGES)}")
    recipe = Recipe.load({stage: {"method": short}}, [f"{stage}.{option}" for option in options])
    (method,) = recipe.build()[stage]
    if not isinstance(method, Trained):
        raise UsageError(f"method: {name} has nothing to learn; allowed: {', '.join(trained_methods())}")
    return method


def make_lesson(method: Trained, host: Host, data: str, films: int, seed: int, tell: Tell | None = None) -> Lesson:
    """The lesson that a method learns from."""
    module, _, name = method.lesson.partition(":")
    lesson: Lesson = getattr(importlib.import_module(module), name)(
        method, host, data, films=films, seed=seed, tell=tell
    )
    if not len(lesson):
        raise UsageError(f"--data {data}: there is nothing to learn from; give films with answered questions")
    return lesson


def train(
    name: str,
    out: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | None = None,
    data: str = "demo",
    options: Sequence[str] = (),
    steps: int | None = None,
    batch: int | None = None,
    accumulate: int = 1,
    learning_rate: float | None = None,
    films: int | None = None,
    seed: int = 0,
    resume: bool = False,
    save_every: int = 50,
    log_every: int = 5,
    device: str = "auto",
    dtype: str = "auto",
    tell: Tell | None = None,
) -> Outcome:
    """Train the learned part of a method for a model.

    Args:
        name: of the method, as "lvpruning" or "prefill.lvpruning".
        out: folder; a new one, or with `resume` one that the same call began.
        model: checkpoint folder or hub name; None or "demo" takes the demo model.
        data: "demo" for generated films, else a folder of films with a file of questions.
        options: "option=value" of the method.
        steps, batch, learning_rate, films: None takes the method's own, see `Schedule`.
        accumulate: parts that a step's examples are computed in, one after the other, each of which holds less memory.
        seed: of the initial weights, the films, the order of the examples and the draws.
        save_every, log_every: steps.
        device, dtype: of the host; in bfloat16 or float16 the training is mixed precision.
        tell: progress.

    Raises:
        UsageError: a bad setting, or a folder that holds another training.
        EnvironmentProblem: without accelerate and tensorboard; model not found.
    """
    _require()
    method = make_method(name, options)
    schedule = _schedule(method.schedule, steps, batch, learning_rate, films)
    folder = Path(out).expanduser()
    from videoprune import demo

    own = model in (None, "demo")
    host = load_host(os.fspath(demo.weights_path() if own else model or ""), device=device, dtype=dtype)
    facts = HostFacts.of(host)
    settings = {
        "method": method_name(method), "options": list(options), "model": "demo" if own else str(model), "digest": facts.digest,
        "data": data, "seed": seed, **asdict(schedule), "accumulate": accumulate,
    }  # fmt: skip
    _begin(folder, settings, resume)
    host.model.requires_grad_(False)
    lesson = make_lesson(method, host, data, schedule.films, seed, tell)
    torch.manual_seed(seed)
    part = method.build(facts).to(host.device)
    losses = run(
        part, lesson, schedule, folder, seed=seed, resume=resume, accumulate=accumulate, save_every=save_every,
        log_every=log_every, tell=tell,
    )  # fmt: skip
    part.eval()
    record = {
        **settings,
        "version": __version__,
        "last_losses": losses,
        "held_out": {key: round(value, 6) for key, value in lesson.held_out(part).items()},
    }
    draw_curve(folder / "log.jsonl", folder / "loss.svg", f"{method_name(method)}, seed {seed}")
    weights = save_part(folder / f"{method_name(method).rpartition('.')[2]}.safetensors", part, method, facts, record)
    _write(folder / "training.json", record)
    return Outcome(weights, folder, record)


def run(
    part: nn.Module,
    lesson: Lesson,
    schedule: Schedule,
    folder: Path,
    *,
    seed: int = 0,
    resume: bool = False,
    accumulate: int = 1,
    save_every: int = 50,
    log_every: int = 5,
    stop_at: int | None = None,
    tell: Tell | None = None,
) -> dict[str, float]:
    """Optimise a part in place on its lesson; returns the last logged losses.

    `stop_at` ends after that step as if interrupted: a call with `resume` then goes on to the end of the schedule.
    """
    from torch.utils.tensorboard import SummaryWriter
    from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments
    from transformers.integrations import TensorBoardCallback
    from transformers.trainer_utils import get_last_checkpoint
    from transformers.utils import logging as transformers_logging

    folder.mkdir(parents=True, exist_ok=True)
    host = lesson.host
    if accumulate < 1 or schedule.batch % accumulate:
        raise UsageError(f"accumulate: {accumulate} is given; allowed are divisors of the batch of {schedule.batch}")
    log = folder / "log.jsonl"
    last = get_last_checkpoint(str(folder / "checkpoints")) if resume and (folder / "checkpoints").is_dir() else None
    _keep_log(log, int(Path(last).name.rpartition("-")[2]) if last else 0)
    sums: dict[str, list[float]] = {}

    class Told(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if tell is not None:
                tell("train", state.global_step, schedule.steps)
            if state.global_step == stop_at:
                control.should_save = control.should_training_stop = True

    class Ours(Trainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Tensor:
            examples = [lesson[int(number)] for number in inputs["examples"]]
            losses = model(examples, self.state.global_step / max(1, schedule.steps - 1))
            for key, value in losses.items():
                sums.setdefault(key, []).append(float(value.detach()))
            loss: Tensor = losses["loss"]
            if not bool(torch.isfinite(loss)):
                raise UsageError(f"step {self.state.global_step}: the loss is not finite; lower --learning-rate")
            return loss

        def log(self, logs: dict[str, float], *rest: Any, **named: Any) -> None:
            if "loss" in logs:
                logs |= {key: sum(values) / len(values) for key, values in sums.items()}
                sums.clear()
                with log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"step": self.state.global_step, **logs}) + "\n")
            super().log(logs, *rest, **named)

    transformers_logging.set_verbosity_error()
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        max_steps=schedule.steps,
        per_device_train_batch_size=schedule.batch // accumulate,
        gradient_accumulation_steps=accumulate,
        learning_rate=schedule.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(schedule.warmup * schedule.steps),
        weight_decay=schedule.weight_decay,
        max_grad_norm=schedule.clip,
        bf16=host.dtype == torch.bfloat16,
        fp16=host.dtype == torch.float16,
        logging_steps=log_every,
        save_steps=save_every,
        save_total_limit=2,
        report_to=[],
        use_cpu=host.device.type == "cpu",
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        disable_tqdm=True,
        log_level="error",
        seed=seed,
    )
    trainer = Ours(
        model=_Student(part, lesson),
        args=arguments,
        train_dataset=_Numbers(len(lesson)),
        data_collator=lambda numbers: {"examples": torch.tensor(numbers)},
        callbacks=[Told(), TensorBoardCallback(SummaryWriter(str(folder / "tensorboard")))],
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.train(resume_from_checkpoint=last)
    rows = [row for row in trainer.state.log_history if "loss" in row]
    return {key: round(float(value), 6) for key, value in rows[-1].items()} if rows else {}


class _Student(nn.Module):
    """What the Trainer optimises and saves: the part alone. The host behind the lesson is no module of it."""

    def __init__(self, part: nn.Module, lesson: Lesson) -> None:
        super().__init__()
        self.part = part
        self.lesson = (lesson,)

    def forward(self, examples: Sequence[Any], progress: float) -> dict[str, Tensor]:
        return self.lesson[0].loss(self.part, examples, progress)


class _Numbers(Dataset[int]):
    """Numbers of examples; the lesson knows what they stand for."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return index


# ------------------------------------------------------------------------------------------------------------- settings


def _require() -> None:
    for package in ("accelerate", "tensorboard"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise EnvironmentProblem(
                f"training needs {package}, which is not installed: pip install 'videoprune[train]'"
            ) from error


def _schedule(
    own: Schedule, steps: int | None, batch: int | None, learning_rate: float | None, films: int | None
) -> Schedule:
    given: dict[str, Any] = {"steps": steps, "batch": batch, "learning_rate": learning_rate, "films": films}
    for key, value in given.items():
        if value is not None and not (value > 0 and value < 1e9):
            raise UsageError(f"{key}: {value} is given; allowed are numbers above 0")
    return replace(own, **{key: value for key, value in given.items() if value is not None})


def _begin(folder: Path, settings: dict[str, Any], resume: bool) -> None:
    """Refuse a folder that holds something else, and write down what is begun."""
    file = folder / "training.json"
    if folder.exists() and any(folder.iterdir()):
        if not resume:
            raise UsageError(f"--out {folder} is not empty; give a new folder, or --resume to go on with what it holds")
        try:
            there = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise UsageError(f"--out {folder} holds no training that could be resumed; give a new folder") from None
        for key, value in json.loads(json.dumps(settings)).items():
            if there.get(key) != value:
                raise UsageError(
                    f"--out {folder} holds a training with {key} {there.get(key)!r}, not {value!r}; give a new folder"
                )
        return
    folder.mkdir(parents=True, exist_ok=True)
    _write(file, settings)


def _keep_log(log: Path, step: int) -> None:
    """Rows of the log up to a step: those behind it are made again."""
    rows = log.read_text(encoding="utf-8").splitlines() if log.is_file() and step else []
    kept = []
    for row in rows:
        try:
            if json.loads(row)["step"] <= step:
                kept.append(row)
        except (ValueError, KeyError, TypeError):  # the last row of a run that was killed may be torn
            continue
    log.write_text("".join(f"{row}\n" for row in kept), encoding="utf-8")


def _write(file: Path, data: dict[str, Any]) -> None:
    part = file.with_name(f".{file.name}.part")
    part.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    os.replace(part, file)
