"""Train the demo model from nothing: ``python -m videoprune.demo.train --quick --out DIR``.

Stages, each written to ``DIR`` when it is complete and skipped by ``--resume`` when it is there: tower, banks, language
model (phase by phase), export. Step counts are fixed, so that a slower machine trains the same model for longer.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from videoprune.demo.training.lm import Phase

log = logging.getLogger("videoprune.demo.train")
BANK_SEED, HELD_OUT_SEED = 10_000, 2_000_000  # first seeds of place instances, trained on and held out


@dataclass(frozen=True)
class Plan:
    """Everything that decides how long training takes."""

    streams: int  # for the tower: places, 40 pictures each
    tower_steps: int
    places: int  # in the bank
    held_places: int
    steps: tuple[int, ...]  # of the language model's phases
    batch: int = 128


QUICK = Plan(streams=1200, tower_steps=900, places=560, held_places=60, steps=(500, 900, 500, 300, 350, 600))
SMOKE = Plan(streams=8, tower_steps=3, places=12, held_places=12, steps=(2, 2, 2, 2, 2, 2))


def phases(steps: tuple[int, ...]) -> list[Phase]:
    """Short films first, then all lengths with few tokens, then ever more dense ones; mixed to the end."""
    from videoprune.demo.training.compose import Shape
    from videoprune.demo.training.lm import Phase

    # films are per process; a step sees two processes' films
    short = Shape(8, 128, 256, (8, 16, 24, 32))
    small = Shape(8, 160, 256, (16, 32, 48, 64, 96, 128))
    medium = Shape(6, 320, 256, (32, 64, 96, 128, 128))
    large = Shape(4, 672, 256, (42, 64, 96, 128, 128))
    dense = Shape(2, 2080, 256, (64, 100, 120, 128, 130, 192, 256))
    return [
        Phase("short", steps[0], ((1.0, short),)),
        Phase("sparse", steps[1], ((0.75, small), (0.25, medium))),
        Phase("mixed", steps[2], ((0.7, small), (0.3, medium))),
        Phase("again", steps[3], ((0.75, small), (0.25, medium))),
        Phase("keys", steps[4], ((0.75, small), (0.25, medium))),
        Phase("all", steps[5], ((0.38, small), (0.3, medium), (0.18, large), (0.14, dense))),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the finished model")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_const", const=QUICK, dest="plan", help="about two hours on two CPU cores")
    size.add_argument("--smoke", action="store_const", const=SMOKE, dest="plan", help="a minute: does everything run?")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="keep what is complete in --out")
    parser.add_argument("--threads", type=int, default=2)
    parser.set_defaults(plan=QUICK)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(options.threads)
    run(options.plan, options.out, options.seed, options.resume, options.threads)


def run(plan: Plan, out: Path, seed: int, resume: bool, threads: int) -> None:
    """All stages in order."""
    from videoprune.demo.training.bank import build_bank
    from videoprune.demo.training.export import export
    from videoprune.demo.training.lm import train_lm
    from videoprune.demo.training.tower import train_tower

    def missing(path: Path) -> bool:
        return not (resume and path.exists())

    tower, bank, held = out / "tower.pt", out / "bank.pt", out / "bank_held_out.pt"
    if missing(tower):
        train_tower(tower, plan.streams, plan.tower_steps, plan.batch, seed, threads)
    if missing(bank):
        build_bank(bank, tower, plan.places, BANK_SEED + 100_000 * seed, threads)
    if missing(held):
        build_bank(held, tower, plan.held_places, HELD_OUT_SEED, threads)
    planned = phases(plan.steps)
    train_lm(out, bank, held, planned, seed, resume, threads)
    export(out / "model", tower, out / f"lm_{planned[-1].name}.pt")
    log.info("the model is in %s", out / "model")


if __name__ == "__main__":
    main()
