"""Pruning a tower of scans as the paper measures it: classification, before and after fine-tuning, on generated scenes.

    python benchmarks/ssm_classify.py --out docs/results/ssm.md

A small PlainMamba learns to tell the colour of what crosses a picture. Then half of its blocks run on fewer tokens, chosen by
the clipped mean of the scans' output (`encode.ssm`), by l1, or at random, and scanned aligned or packed into a smaller grid.
Accuracy is on pictures of places that were not trained on.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from videoprune import __version__
from videoprune.demo import names, scenes
from videoprune.encode.random import Random
from videoprune.encode.ssm import SSM
from videoprune.evaluate.intervals import wilson
from videoprune.method import EncodeMethod
from videoprune.models.plain_mamba import MambaShape, PlainMamba
from videoprune.models.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess

SHAPE = MambaShape(48, 4, image=56, patch=14, state=4, kernel=3)  # as the scout that ships
TRAIN_SEED, HELD_SEED = 42_000_000, 43_000_000
PLACES_EACH = 10  # pictures of a place
BATCH = 32


@dataclass(frozen=True)
class Way:
    """One row: how tokens are chosen, and how those left are scanned."""

    name: str
    methods: tuple[EncodeMethod, ...]
    scan: str = "aligned"


@dataclass(frozen=True, kw_only=True)
class Thrice(Random):
    """Random units at the same three places and counts as `encode.ssm`."""

    like: SSM

    def layers(self, depth: int) -> Sequence[int]:
        return self.like.layers(depth)

    def plan(self, view):  # type: ignore[no-untyped-def]
        alive = self.like.alive_after(view.total, 3)[view.step]
        return Random(keep=alive, mode="drop", seed=self.seed + view.step).plan(view)


def ways(keep: float) -> list[Way]:
    best, by_l1 = SSM(keep=keep), SSM(keep=keep, score="l1")
    drawn = Thrice(keep=keep, mode="drop", like=best)
    return [
        Way("importance, aligned", (best,)),
        Way("importance, packed", (best,), "packed"),
        Way("l1, aligned", (by_l1,)),
        Way("random, aligned", (drawn,)),
        Way("random, packed", (drawn,), "packed"),
    ]


def draw(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures (count, 3, 56, 56) with one object each, as normalised pixels, and its colour (count,)."""
    images, labels = [], []
    rng = np.random.default_rng(seed)
    for number in range(count):
        if number % PLACES_EACH == 0:
            place = scenes.draw_place(str(rng.choice(names.PLACES)), rng)
        colour = int(rng.integers(len(names.COLOURS)))
        name = (str(rng.choice(names.SHAPES)), names.COLOURS[colour], str(rng.choice(names.DIRECTIONS)))
        event = scenes.random_event("actor", name, rng)
        shake = (int(rng.integers(-3, 4)), int(rng.integers(-3, 4)))
        images.append(scenes.draw_frame(place, rng, shake, event, rng.uniform(0.15, 0.85))[0])
        labels.append(colour)
    pixels = Preprocess(SHAPE.image, IMAGENET_MEAN, IMAGENET_STD, "squeeze", 4)(np.stack(images))
    return pixels, torch.tensor(labels)


def learn(
    model: PlainMamba, pixels: Tensor, labels: Tensor, way: Way | None, steps: int, rate: float, seed: int,
    tell: Callable[[str], None],
) -> None:  # fmt: skip
    """AdamW along a cosine, in place."""
    rng = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.1)
    model.train()
    for step in range(steps):
        rows = torch.randint(len(pixels), (BATCH,), generator=rng)
        out = model(pixels[rows], way.methods if way else (), step * BATCH, way.scan if way else "aligned")
        loss = nn.functional.cross_entropy(model.classify(out), labels[rows])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 25 == 24:
            tell(f"step {step + 1} of {steps}, loss {float(loss):.3f}")
    model.eval()


@torch.no_grad()
def right(model: PlainMamba, pixels: Tensor, labels: Tensor, way: Way | None) -> int:
    """Pictures that are classified right."""
    found = 0
    for start in range(0, len(pixels), 64):
        out = model(pixels[start : start + 64], way.methods if way else (), start, way.scan if way else "aligned")
        found += int((model.classify(out).argmax(dim=1) == labels[start : start + 64]).sum())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the page to write")
    parser.add_argument("--keep", type=float, default=0.3, help="share of the tokens behind the last pruning")
    parser.add_argument("--steps", type=int, default=1500, help="of the training; fine-tuning takes a fifth of it")
    parser.add_argument("--pictures", type=int, default=6000, help="to train on; a sixth of it is held out")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    started = time.process_time()
    held_count, tune = options.pictures // 6, options.steps // 5

    def tell(line: str) -> None:
        print(f"{time.process_time() - started:6.0f} s  {line}", flush=True)

    pixels, labels = draw(options.pictures, TRAIN_SEED + options.seed)
    held, truth = draw(held_count, HELD_SEED + options.seed)
    tell("pictures drawn")
    base = PlainMamba(SHAPE, len(names.COLOURS))
    learn(base, pixels, labels, None, options.steps, 3e-3, options.seed, tell)
    lines, whole = [], base(held[:1]).cost.total
    rows: list[tuple[str, float, int, int]] = [("unpruned", 1.0, right(base, held, truth, None), 0)]
    more = copy.deepcopy(base)
    learn(more, pixels, labels, None, tune, 1e-3, options.seed + 1, tell)
    rows[0] = (*rows[0][:3], right(more, held, truth, None))
    for way in ways(options.keep):
        with torch.no_grad():
            share = base(held[:1], way.methods, 0, way.scan).cost.total / whole
        before, tuned = right(base, held, truth, way), copy.deepcopy(base)
        learn(tuned, pixels, labels, way, tune, 1e-3, options.seed + 1, tell)
        rows.append((way.name, share, before, right(tuned, held, truth, way)))
        tell(f"{rows[-1]}")
    for name, share, before, after in rows:
        cells = [f"{100 * hits / held_count:.1f} % ({low * 100:.1f}–{high * 100:.1f})" for hits in (before, after)
                 for low, high in (wilson(hits, held_count),)]  # fmt: skip
        lines.append(f"| {name} | {100 * share:.0f} % | {cells[0]} | {cells[1]} |")
    command = f"python benchmarks/ssm_classify.py --keep {options.keep:g} --steps {options.steps} --pictures {options.pictures}"
    page = f"""# Pruning in a tower of scans, on generated scenes

`{command} --seed {options.seed} --out FILE`, videoprune {__version__}, {time.process_time() - started:.0f} s of CPU time.

A PlainMamba of width {SHAPE.width}, {SHAPE.blocks} blocks and {SHAPE.side}x{SHAPE.side} tokens tells the colour, one of
{len(names.COLOURS)}, of what crosses a picture: {options.steps} steps of {BATCH} out of {options.pictures} pictures. Pruned after
blocks 1, 2 and 3 to {100 * options.keep:g} % of the tokens. Fine-tuned: {tune} further steps each, the unpruned tower as well.
{held_count} held-out pictures of other places, one seed; in brackets 95 % intervals (Wilson). *aligned*: each path is walked over
the survivors in its own order; *packed*: survivors are packed into a smaller grid, and scanned and convolved there.

| tokens chosen and scanned | FLOPs | before fine-tuning | after |
|---|---|---|---|
""" + "\n".join(lines) + "\n"  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
