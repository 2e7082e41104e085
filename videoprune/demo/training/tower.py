"""Stage 1: vision tower and projector, trained so that visual tokens point along the words for what they show.

A pooled, projected token is scored against fixed word vectors (normalised dot product, one scale, one bias), with a
multi-label loss. [CLS] gets no label and no gradient: what it attends to is not taught.
"""

from __future__ import annotations

import logging
import multiprocessing
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from videoprune.demo import names, scenes
from videoprune.demo.training import frames
from videoprune.demo.training.common import CELLS, WIDTH, MasterWeights, build_model, concept_vectors, pixels, schedule

log = logging.getLogger(__name__)
STREAM = 40  # moments drawn at one place
HELD_OUT = 1_000_000  # seeds from here on are never trained on
EVENT_CELL_WEIGHT, PLACE_WEIGHT = 4.0, 0.3
_PLACE = slice(names.CONCEPTS.index(names.PLACES[0]), names.CONCEPTS.index(names.PLACES[-1]) + 1)


class TowerHead(nn.Module):
    """Tower, projector and 2x2 pooling, with the scores against word vectors."""

    def __init__(self) -> None:
        super().__init__()
        model = build_model(vocabulary=64)
        self.tower, self.projector = model.model.vision_tower, model.model.multi_modal_projector
        self.words: torch.Tensor
        self.register_buffer("words", concept_vectors())
        self.scale = nn.Parameter(torch.tensor(20.0))
        self.bias = nn.Parameter(torch.tensor(-5.0))

    def tokens(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(F, 3, SIZE, SIZE) to visual tokens (F, CELLS, WIDTH), as the stock class makes them."""
        patches = self.projector(self.tower(pixel_values=pixel_values).last_hidden_state[:, 1:])
        g = scenes.GRID
        return patches.view(-1, g, 2, g, 2, WIDTH).mean((2, 4)).reshape(-1, CELLS, WIDTH)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits (F, CELLS, concepts)."""
        return self.scale * F.normalize(self.tokens(pixel_values), dim=-1) @ self.words.T + self.bias


def _stream(seed: int) -> tuple[np.ndarray, np.ndarray]:
    return frames.mixed_stream(seed, STREAM)


def draw_pool(streams: int, first_seed: int, processes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (streams * STREAM, SIZE, SIZE, 3) uint8 and labels (…, CELLS, concepts) float16."""
    images = np.empty((streams * STREAM, scenes.SIZE, scenes.SIZE, 3), np.uint8)
    labels = np.empty((streams * STREAM, CELLS, len(names.CONCEPTS)), np.float16)
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        for i, (image, label) in enumerate(pool.imap(_stream, range(first_seed, first_seed + streams), chunksize=4)):
            images[i * STREAM : (i + 1) * STREAM], labels[i * STREAM : (i + 1) * STREAM] = image, label
    return images, labels


def tower_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Multi-label loss over (F, CELLS, concepts); the few cells with an event weigh more."""
    each = F.binary_cross_entropy_with_logits(logits.float(), labels, reduction="none")
    place = each[..., _PLACE].sum(-1)
    event = each.sum(-1) - place
    shown = labels.sum(-1) - labels[..., _PLACE].sum(-1) > 0
    weight = 1 + EVENT_CELL_WEIGHT * shown
    return ((event * weight).sum() + PLACE_WEIGHT * place.sum() * weight.mean()) / weight.sum()


@torch.no_grad()
def measure(head: TowerHead, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy of the best-covered cell by word class on held-out pictures, and the share of false cells."""
    dtype = head.projector.linear_1.weight.dtype
    logits = torch.cat([head(pixels(images[i : i + 100]).to(dtype)).float() for i in range(0, len(images), 100)])
    truth = torch.from_numpy(labels).float()
    found: dict[str, float] = {}
    groups = {"shape": names.SHAPES, "colour": names.COLOURS, "direction": names.DIRECTIONS, "item": names.ITEMS}
    groups |= {"place": names.PLACES, "anomaly": names.ANOMALIES}
    for group, words in groups.items():
        span = slice(names.CONCEPTS.index(words[0]), names.CONCEPTS.index(words[-1]) + 1)
        best, cell = truth[..., span].amax(-1).max(1)
        rows = torch.nonzero(best > 0.5)[:, 0]
        picked = torch.arange(len(truth))[rows], cell[rows]
        right = logits[..., span][picked].argmax(-1) == truth[..., span][picked].argmax(-1)
        found[group] = right.float().mean().item()
    shapes = slice(0, len(names.SHAPES))
    empty = truth[..., shapes].amax(-1) == 0
    found["false cells"] = (logits[..., shapes][empty].amax(-1) > 0).float().mean().item()
    return {k: round(v, 4) for k, v in found.items()}


@torch.no_grad()
def centre(head: TowerHead, images: np.ndarray) -> None:
    """Fold a shift and a scale into the projector, so that tokens have mean 0 and RMS 1."""
    tokens = torch.cat([head.tokens(pixels(images[i : i + 128])) for i in range(0, len(images), 128)])
    mean = tokens.mean((0, 1))
    rms = (tokens - mean).square().mean().sqrt()
    last = head.projector.linear_2
    last.bias.sub_(mean)
    last.weight.div_(rms)
    last.bias.div_(rms)


def train_tower(out: Path, streams: int, steps: int, batch: int, seed: int, processes: int = 2) -> None:
    """Train and write ``out`` (tower and projector weights, fp32)."""
    start = time.time()
    images, labels = draw_pool(streams, seed * 100_000, processes)
    held = draw_pool(40, HELD_OUT, processes)
    log.info("tower: %d pictures drawn in %.0f s", len(images), time.time() - start)
    torch.manual_seed(seed)
    head = TowerHead()
    head.bfloat16()
    optimizer = MasterWeights(list(head.named_parameters()), muon_lr=2e-3, adam_lr=1e-3)
    compiled = torch.compile(head, dynamic=False)
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(len(images)) for _ in range(-(-steps * batch // len(images)))])
    begun, losses = time.time(), []
    for step in range(steps):
        rows = np.sort(order[step * batch : (step + 1) * batch])
        logits = compiled(pixels(images[rows]).bfloat16())
        loss = tower_loss(logits, torch.from_numpy(labels[rows]).float())
        loss.backward()
        optimizer.step(schedule(step, steps, warm=40, hold=0.3))
        losses.append(loss.item())
        if step % 50 == 49:
            rate = (step + 1) * batch / (time.time() - begun)
            log.info("tower: step %d/%d loss %.3f, %.0f pictures/s", step + 1, steps, np.mean(losses[-50:]), rate)
        if step % 250 == 249:
            log.info("tower: held out %s", measure(head, *held))
    head.float()
    for p, m in zip(optimizer.working, optimizer.master, strict=True):
        p.data = m.detach()
    log.info("tower: held out, final %s", measure(head, *held))
    centre(head, images[rng.permutation(len(images))[:1024]])
    state = {"tower": head.tower.state_dict(), "projector": head.projector.state_dict()}
    temporary = out.with_suffix(".part")
    torch.save(state, temporary)
    temporary.replace(out)
    log.info("tower: done in %.0f s", time.time() - start)
