"""Stage 3: the language model, on batches composed from the bank. Tower and projector are frozen."""

from __future__ import annotations

import logging
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from videoprune.demo.training.asking import SECOND, Mix
from videoprune.demo.training.bank import Bank, read_bank
from videoprune.demo.training.common import MasterWeights, schedule, word_rows
from videoprune.demo.training.compose import Batch, Composer, Shape
from videoprune.demo.training.reader import Body, Bookkeeper, Reader, concept_ids, option_loss, pointing_loss, predict

log = logging.getLogger(__name__)
BOOK_WEIGHT, POINT_WEIGHT, SPELT_WEIGHT, OPTION_WEIGHT = 0.3, 0.4, 0.5, 0.5
MUON_LR, ADAM_LR, WARM, HOLD = 2e-3, 1e-3, 60, 0.75
RANKS = 2  # films of a step are drawn in as many independent parts, by as many processes or by one
EVALUATION_BATCHES = 8
SAVE_EVERY = 100  # steps


@dataclass(frozen=True)
class Phase:
    """Steps drawn from several batch shapes, each with its share."""

    name: str
    steps: int
    shapes: tuple[tuple[float, Shape], ...]
    mix: Mix = SECOND


@dataclass(frozen=True)
class Course:
    """Phases under one learning-rate schedule, from a fresh optimizer state: constant for ``hold``, then down to 0."""

    phases: tuple[Phase, ...]
    hold: float = HOLD


@torch.no_grad()
def exact(
    body: Body,
    head: nn.Module,
    composer: Composer,
    shape: Shape,
    batches: int,
    device: str = "cpu",
) -> dict[str, tuple[float, int]]:
    """Share of answers whose every token is the most likely one (what greedy decoding would write), by kind."""
    right: dict[str, list[bool]] = defaultdict(list)
    for _ in range(batches):
        batch = composer.batch(shape).to(device)
        logits, targets, where, _, _ = predict(body, head, batch)
        hit = torch.zeros_like(where)
        hit[where] = logits.argmax(-1) == targets
        for a in batch.asked:
            name = a.kind + ("/letter" if a.letter else "")
            right[name].append(bool(hit[a.film, a.start - 1 : a.start - 1 + a.length].all()))
    return {k: (round(100 * float(np.mean(v)), 1), len(v)) for k, v in sorted(right.items())}


def train_lm(
    folder: Path,
    bank: Path,
    held: Path,
    course: Course,
    start: Path | None,
    seed: int,
    resume: bool,
    device: str = "cpu",
    processes: int = RANKS,
) -> None:
    """Train one course; ``start`` is a file of weights to begin from (None: random weights).

    Two single-threaded processes each take half of a step's films and average their gradients: many small operations
    make threads wait for each other all the time. One process takes both halves: for a GPU, and for a machine so busy
    that two processes mostly wait for each other.
    """
    if processes == RANKS:
        port = 29000 + os.getpid() % 1000
        arguments = (port, folder, bank, held, course, start, seed, resume)
        torch.multiprocessing.spawn(_worker, arguments, nprocs=RANKS)
        return
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "compiled_0")
    torch.set_num_threads(1)
    banks = [read_bank(path) for path in (bank, held)]
    train_course(folder, banks[0], banks[1], course, start, seed, resume, device)


def _worker(
    rank: int,
    port: int,
    folder: Path,
    bank: Path,
    held: Path,
    course: Course,
    start: Path | None,
    seed: int,
    resume: bool,
) -> None:
    level = logging.INFO if rank == 0 else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(1)
    # one cache of compiled kernels each: two processes that write one file at a time read it half-written
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / f"compiled_{rank}")
    store = f"tcp://127.0.0.1:{port}"
    # very long: the first process saves and measures while the others wait, and someone may stop all for a while
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS, timeout=timedelta(hours=24))
    banks = [read_bank(path) for path in (bank, held)]
    train_course(folder, banks[0], banks[1], course, start, seed, resume)
    dist.destroy_process_group()


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace gradients by their mean over processes; one message for all."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.float().flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    at = 0
    for g in gradients:
        g.copy_(flat[at : at + g.numel()].view_as(g))
        at += g.numel()


class Pupil:
    """The language model in training: what one step needs, on one device."""

    def __init__(self, seed: int, device: str = "cpu") -> None:
        torch.manual_seed(seed)
        self.reader = Reader().bfloat16().to(device)
        self.named = list(self.reader.named_parameters())
        self.optimizer = MasterWeights(self.named, MUON_LR, ADAM_LR)
        self.concepts = concept_ids().to(device)
        with torch.no_grad():  # from fp32, not from the rounded working copy
            table = self.optimizer.names.index("lm.embed_tokens.weight")
            self.optimizer.master[table][self.concepts] = word_rows().to(device)
        self.keeper = Bookkeeper().to(device)
        for p in self.keeper.parameters():
            p.grad = torch.zeros_like(p)  # so that all processes always send the same message
        self.keeper_optimizer = torch.optim.AdamW(
            self.keeper.parameters(), lr=ADAM_LR, betas=(0.9, 0.98), weight_decay=0.0
        )
        torch._dynamo.config.cache_size_limit = 32
        self.compiled = torch.compile(self.reader, dynamic=False)

    def backward(self, batch: Batch, parts: int) -> tuple[float, ...]:
        """Add a batch's gradients, one of ``parts``; its losses: answers, books, pointing, spelling, options."""
        logits, targets, _, middle, late = predict(self.compiled, self.reader.head, batch)
        loss = F.cross_entropy(logits, targets)
        extra = self.keeper(middle, batch.books)
        point = pointing_loss(self.reader, middle, batch)
        spelt = self.keeper.letters(middle, batch.spelt)
        option = option_loss(self.reader, late, batch)
        extras = BOOK_WEIGHT * extra + POINT_WEIGHT * point + SPELT_WEIGHT * spelt + OPTION_WEIGHT * option
        ((loss + extras) / parts).backward()
        return loss.item(), extra.item(), point.item(), spelt.item(), option.item()

    def step(self, scale: float) -> None:
        """One update from the gradients, averaged over processes."""
        if dist.is_initialized():
            average_gradients([*(p for _, p in self.named), *self.keeper.parameters()])
        grad = self.reader.lm.embed_tokens.weight.grad
        if grad is not None:
            grad[self.concepts] = 0  # these rows stay aligned with the visual tokens
        self.optimizer.step(scale)
        self.keeper_optimizer.step()
        self.keeper_optimizer.zero_grad(set_to_none=False)

    def save(self, out: Path, phase: str, steps: int) -> None:
        """Write the state after some steps of a phase, complete before it takes its name."""
        state = {
            "phase": phase,
            "steps": steps,
            "weights": self.optimizer.state(),
            "optimizers": [o.state_dict() for o in (*self.optimizer.optimizers, self.keeper_optimizer)],
            "keeper": self.keeper.state_dict(),
        }
        temporary = out.with_suffix(".part")
        torch.save(state, temporary)
        temporary.replace(out)

    def restore(self, path: Path, weights_only: bool = False) -> int:
        """Take the weights, and the rest unless ``weights_only``, from a file; the steps that its phase had done."""
        state = read(path)
        with torch.no_grad():
            pairs = zip(self.optimizer.names, self.optimizer.working, self.optimizer.master, strict=True)
            for name, p, m in pairs:
                m.copy_(state["weights"][name])
                p.copy_(m)
        if weights_only:
            return 0
        optimizers = (*self.optimizer.optimizers, self.keeper_optimizer)
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.keeper.load_state_dict(state["keeper"])
        return int(state["steps"])


def train_course(
    folder: Path,
    bank: Bank,
    held: Bank,
    course: Course,
    begin: Path | None,
    seed: int,
    resume: bool,
    device: str = "cpu",
) -> None:
    """Train phase by phase; ``folder/lm_<phase>.pt`` holds weights and optimizer after each.

    Films are drawn anew from their number after every ``SAVE_EVERY`` steps, at which the state is written to
    ``folder/lm_latest.pt``: a run that was cut off there goes on as if it had not been.
    """
    first, ranks = (dist.get_rank() == 0, [dist.get_rank()]) if dist.is_initialized() else (True, list(range(RANKS)))
    pupil, phases, latest = Pupil(seed, device), course.phases, folder / "lm_latest.pt"
    if begin is not None:
        pupil.restore(begin, weights_only=True)
    total, step = sum(phase.steps for phase in phases), 0
    for number, phase in enumerate(phases):
        out = folder / f"lm_{phase.name}.pt"
        if resume and out.exists():
            step += phase.steps
            if not (number + 1 < len(phases) and (folder / f"lm_{phases[number + 1].name}.pt").exists()):
                pupil.restore(out)
                log.info("lm: continue after phase %s", phase.name)
            continue
        done = 0
        if resume and latest.exists() and read(latest)["phase"] == phase.name:
            done = pupil.restore(latest)
            step += done
            log.info("lm: continue phase %s after %d steps", phase.name, done)
        shares = np.array([share for share, _ in phase.shapes])
        start, busy, losses, seen = time.time(), 0.0, [], 0
        for i in range(done, phase.steps):
            if i % SAVE_EVERY == 0:
                rng = np.random.default_rng((seed, number, i))  # the same in all processes: they take the same shapes
                composers = [Composer(bank, np.random.default_rng((seed, number, i, r + 1)), phase.mix) for r in ranks]
            shape = phase.shapes[int(rng.choice(len(shares), p=shares / shares.sum()))][1]
            for composer in composers:
                batch = composer.batch(shape).to(device)
                begun = time.time()
                losses.append(pupil.backward(batch, len(ranks)))
                seen += batch.ids.numel() * RANKS // len(ranks)
                busy += time.time() - begun
            begun = time.time()
            pupil.step(schedule(step, total, WARM, course.hold))
            busy += time.time() - begun
            step += 1
            if i % 50 == 49:
                spent = time.time() - start
                note = "lm: %s %d/%d (%d/%d) loss %.3f, books %.3f, pointing %.3f, spelling %.3f, options %.3f, "
                note += "%.0f tokens/s, %.0f s of data"
                counts = phase.name, i + 1, phase.steps, step, total
                log.info(note, *counts, *np.mean(losses[-50 * len(ranks) :], axis=0), seen / spent, spent - busy)
            if first and (i % (3 * SAVE_EVERY) == 3 * SAVE_EVERY - 1 or i + 1 == phase.steps):
                check = Composer(held, np.random.default_rng(3), phase.mix)
                found = exact(pupil.compiled, pupil.reader.head, check, phase.shapes[0][1], EVALUATION_BATCHES, device)
                log.info("lm: held out %s", found)
            if first and i % SAVE_EVERY == SAVE_EVERY - 1:
                pupil.save(latest, phase.name, i + 1)
        if first:
            pupil.save(out, phase.name, phase.steps)
        if dist.is_initialized():
            dist.barrier()


def read(path: Path) -> dict[str, Any]:
    """What :meth:`Pupil.save` wrote."""
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    return state
