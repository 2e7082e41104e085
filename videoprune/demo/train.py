"""Train the demo model: ``python -m videoprune.demo.train --quick --out DIR``.

Stages, each written to ``DIR`` when it is complete and skipped by ``--resume`` when it is there: tower, banks, language
model (courses, phase by phase), export. Step counts are fixed, so that a slower machine trains the same model for longer.
``--quick`` is the tower and the first course; ``--full`` adds the others: the shipped weights. ``--start-from FOLDER``
takes the tower and a language model to begin the second course with from an exported model.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from videoprune.demo.training.lm import Course

log = logging.getLogger("videoprune.demo.train")
BANK_SEED, HELD_OUT_SEED = 10_000, 2_000_000  # first seeds of place instances, trained on and held out


@dataclass(frozen=True)
class Plan:
    """Everything that decides how long training takes."""

    streams: int  # for the tower: places, 40 pictures each
    tower_steps: int
    places: int  # in the bank
    held_places: int
    steps: tuple[tuple[int, ...], ...]  # of the phases of the language model's courses
    batch: int = 128


FIRST = (500, 900, 500, 300, 350, 600)
QUICK = Plan(streams=1200, tower_steps=900, places=560, held_places=60, steps=(FIRST,))
FULL = replace(QUICK, steps=(FIRST, (700, 300), (450, 200)))
SMOKE = Plan(streams=8, tower_steps=3, places=12, held_places=12, steps=((2, 2, 2, 2, 2, 2), (2, 2), (2, 2)))


def first_course(steps: tuple[int, ...]) -> Course:
    """Short films first, then all lengths with few tokens, then ever more dense ones; mixed to the end."""
    from videoprune.demo.training.asking import FIRST
    from videoprune.demo.training.compose import Shape
    from videoprune.demo.training.lm import Course, Phase

    # films are per part of a step, of which there are two
    short = Shape(8, 128, 256, (8, 16, 24, 32))
    small = Shape(8, 160, 256, (16, 32, 48, 64, 96, 128))
    medium = Shape(6, 320, 256, (32, 64, 96, 128, 128))
    large = Shape(4, 672, 256, (42, 64, 96, 128, 128))
    dense = Shape(2, 2080, 256, (64, 100, 120, 128, 130, 192, 256))
    phases = (
        Phase("short", steps[0], ((1.0, short),), FIRST),
        Phase("sparse", steps[1], ((0.75, small), (0.25, medium)), FIRST),
        Phase("mixed", steps[2], ((0.7, small), (0.3, medium)), FIRST),
        Phase("again", steps[3], ((0.75, small), (0.25, medium)), FIRST),
        Phase("keys", steps[4], ((0.75, small), (0.25, medium)), FIRST),
        Phase("all", steps[5], ((0.38, small), (0.3, medium), (0.18, large), (0.14, dense)), FIRST),
    )
    return Course(phases)


def second_course(steps: tuple[int, ...]) -> Course:
    """More wordings, and more of what the first course left weak: colours by shape, counts, neighbours."""
    from videoprune.demo.training.compose import Shape
    from videoprune.demo.training.lm import Course, Phase

    small = Shape(8, 160, 384, (16, 32, 48, 64, 64, 96, 128))  # room for more questions
    medium = Shape(6, 320, 384, (32, 64, 64, 96, 128, 128))
    large = Shape(4, 672, 384, (42, 64, 64, 96, 128, 128, 192))
    dense = Shape(2, 2080, 384, (64, 64, 100, 120, 128, 130, 192, 256))
    sparse = ((0.85, small), (0.15, medium))
    mixed = ((0.6, small), (0.2, medium), (0.1, large), (0.1, dense))
    return Course((Phase("weak", steps[0], sparse), Phase("last", steps[1], mixed)), hold=0.3)


def third_course(steps: tuple[int, ...]) -> Course:
    """Answers by the letter of an option, which take a match of texts after the answer is known; then all of it."""
    from videoprune.demo.training.asking import CLOSE, LETTERS
    from videoprune.demo.training.compose import Shape
    from videoprune.demo.training.lm import Course, Phase

    options = Shape(8, 160, 640, (16, 32, 48, 64, 64, 96))  # room for questions with options
    small = Shape(8, 160, 448, (16, 32, 48, 64, 64, 96, 128))
    medium = Shape(6, 320, 448, (32, 64, 64, 96, 128, 128))
    large = Shape(4, 672, 448, (42, 64, 64, 96, 128, 128, 192))
    dense = Shape(2, 2080, 448, (64, 64, 100, 120, 128, 130, 192, 256))
    mixed = ((0.55, small), (0.2, medium), (0.12, large), (0.13, dense))
    return Course(
        (Phase("letters", steps[0], ((1.0, options),), LETTERS), Phase("close", steps[1], mixed, CLOSE)), hold=0.6
    )


COURSES = (first_course, second_course, third_course)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the finished model")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_const", const=QUICK, dest="plan", help="two hours on two free CPU cores")
    size.add_argument(
        "--full", action="store_const", const=FULL, dest="plan", help="three and a half hours on them, or a GPU"
    )
    size.add_argument("--smoke", action="store_const", const=SMOKE, dest="plan", help="minutes: does everything run?")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="keep what is complete in --out")
    parser.add_argument("--start-from", type=Path, help="an exported model: skip the tower and the first course")
    parser.add_argument("--device", default="cpu", help="of the language model's training: cpu or cuda")
    parser.add_argument(
        "--processes", type=int, choices=(1, 2), help="of the language model's training; without it 2 on a cpu, else 1"
    )
    parser.add_argument("--threads", type=int, default=2, help="of the tower's training and of drawing")
    parser.set_defaults(plan=QUICK)
    options = parser.parse_args()
    if options.start_from is not None and len(options.plan.steps) == 1:
        parser.error("--start-from skips the first course, and this plan has no other: give --full (or --smoke)")
    options.out.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    processes = options.processes or (2 if options.device == "cpu" else 1)
    if options.device != "cpu" and (processes > 1 or not torch.cuda.is_available()):
        parser.error(f"--device {options.device} needs a CUDA device and one process; --device cpu runs anywhere")
    arguments = options.plan, options.out, options.seed, options.resume, options.threads
    run(*arguments, options.start_from, options.device, processes)


def run(
    plan: Plan,
    out: Path,
    seed: int,
    resume: bool,
    threads: int,
    start_from: Path | None = None,
    device: str = "cpu",
    processes: int = 2,
) -> None:
    """All stages in order."""
    from videoprune.demo.training.bank import build_bank
    from videoprune.demo.training.export import disassemble, export
    from videoprune.demo.training.lm import train_lm
    from videoprune.demo.training.tower import train_tower

    def missing(path: Path) -> bool:
        return not (resume and path.exists())

    tower, bank, held, begun = (out / f"{name}.pt" for name in ("tower", "bank", "bank_held_out", "lm_begun"))
    torch.set_num_threads(threads)
    if start_from is not None:
        if missing(tower) or missing(begun):
            disassemble(start_from, tower, begun)
    elif missing(tower):
        train_tower(tower, plan.streams, plan.tower_steps, plan.batch, seed, threads)
    if missing(bank):
        build_bank(bank, tower, plan.places, BANK_SEED + 100_000 * seed, threads)
    if missing(held):
        build_bank(held, tower, plan.held_places, HELD_OUT_SEED, threads)
    courses = [course_of(steps) for course_of, steps in zip(COURSES, plan.steps, strict=False)]
    ends = [out / f"lm_{course.phases[-1].name}.pt" for course in courses]
    starts = [None, *ends] if start_from is None else [None, begun, *ends[1:]]  # None: random weights
    for number, course in enumerate(courses):
        if (number or start_from is None) and missing(ends[number]):
            train_lm(out, bank, held, course, starts[number], seed + number, resume, device, processes)
    export(out / "model", tower, ends[-1])
    log.info("the model is in %s", out / "model")


if __name__ == "__main__":
    main()
