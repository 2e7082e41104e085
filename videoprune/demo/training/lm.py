"""Stage 3: the language model, on batches composed from the bank. Tower and projector are frozen."""

from __future__ import annotations

import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from videoprune.demo import language, names
from videoprune.demo.training.bank import Bank
from videoprune.demo.training.common import WIDTH, WORD_RMS, MasterWeights, build_model, schedule, word_rows
from videoprune.demo.training.compose import BOOKS, HEADER, Batch, Composer, Shape

log = logging.getLogger(__name__)
MUON_LR, ADAM_LR, WARM, HOLD = 2e-3, 1e-3, 60, 0.75
BOOK_LAYER, BOOK_WEIGHT = 5, 0.3
POINTING_HEADS, POINT_WEIGHT = (0, 3), 0.4  # one head of each key/value group
SYNONYM_NOISE = 0.3
EVALUATION_BATCHES = 8


@dataclass(frozen=True)
class Phase:
    """Steps drawn from several batch shapes, each with its share."""

    name: str
    steps: int
    shapes: tuple[tuple[float, Shape], ...]


class Reader(nn.Module):
    """The language model over words and visual tokens."""

    def __init__(self) -> None:
        super().__init__()
        model = build_model(len(language.VOCABULARY))
        self.lm, self.head = model.model.language_model, model.lm_head
        self.newline = nn.Parameter(torch.randn(model.config.text_config.hidden_size) * WORD_RMS)
        with torch.no_grad():
            words = self.lm.embed_tokens.weight.normal_(0, WORD_RMS)
            rows = word_rows()
            words[concept_ids()] = rows
            for word, concept in language.SYNONYMS.items():
                words[language.WORD_ID[word]] *= SYNONYM_NOISE
                words[language.WORD_ID[word]] += rows[names.CONCEPTS.index(concept)]

    def forward(
        self, ids: torch.Tensor, features: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Last hidden states and those after ``BOOK_LAYER``: (B, L, WIDTH) each. The stock model's own forward."""
        words = self.lm.embed_tokens(ids)
        visual = features.shape[1]
        newline = self.newline.expand(ids.shape[0], 1, -1)
        hidden = torch.cat([words[:, :HEADER], features.to(words.dtype), newline, words[:, HEADER + visual + 1 :]], 1)
        turns = self.lm.rotary_emb(hidden, positions)
        middle = hidden
        for number, layer in enumerate(self.lm.layers, 1):
            hidden = layer(hidden, attention_mask=mask, position_embeddings=turns, position_ids=positions)
            if number == BOOK_LAYER:
                middle = hidden
        return self.lm.norm(hidden), middle


def pointing_loss(reader: Reader, middle: torch.Tensor, batch: Batch) -> torch.Tensor:
    """How little two heads of the layer after ``BOOK_LAYER`` look at what an answer tells of; mean over answer tokens.

    Which picture answers a question is learnt very late from the words of answers alone.
    """
    film, place, told = batch.points
    if not len(film):
        return middle.sum() * 0.0
    layer = reader.lm.layers[BOOK_LAYER]
    x = layer.input_layernorm(middle)
    shape = (*x.shape[:2], -1, layer.self_attn.head_dim)
    turns = reader.lm.rotary_emb(x, batch.positions)
    query, key = layer.self_attn.q_proj(x).view(shape), layer.self_attn.k_proj(x).view(shape)
    query, key = apply_rotary_pos_emb(query.transpose(1, 2), key.transpose(1, 2), *turns)
    span = slice(HEADER, HEADER + told.shape[1])
    seen = batch.mask[film, 0, place, span]
    losses = []
    for head in POINTING_HEADS:
        group = head // (query.shape[1] // key.shape[1])
        scores = torch.einsum("nd,nvd->nv", query[film, head, place].float(), key[film, group, span].float())
        scores = (scores * layer.self_attn.scaling).masked_fill(~seen, -1e4)
        losses.append(scores.logsumexp(-1) - scores.masked_fill(~told, -1e4).logsumexp(-1))
    return torch.stack(losses).mean()


class Bookkeeper(nn.Module):
    """Reads ``BOOKS`` from visual tokens in the middle of the model; only for training, never shipped.

    Answers are a few words a film; these labels are on every token that shows an object, and what they ask (who came
    before, the how-maniest) is what "right after", "how many times" and "in order" need.
    """

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(WIDTH, sum(BOOKS))

    def forward(self, middle: torch.Tensor, books: torch.Tensor) -> torch.Tensor:
        """Mean loss from (B, L, WIDTH) hidden states and (B, visual, len(BOOKS)) labels."""
        visual = middle[:, HEADER : HEADER + books.shape[1]]
        where = books[..., 0] >= 0
        if not where.any():
            return middle.sum() * 0.0
        logits = self.read(F.rms_norm(visual[where].float(), (WIDTH,)))
        parts = zip(logits.split(BOOKS, -1), books[where].unbind(-1), strict=True)
        return torch.stack([F.cross_entropy(part, label) for part, label in parts]).mean()


def concept_ids() -> torch.Tensor:
    return torch.tensor([language.WORD_ID[word] for word in names.CONCEPTS])


def predict(
    body: Callable[..., tuple[torch.Tensor, torch.Tensor]], head: nn.Module, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits (n, words) and targets (n,) of answer tokens, where they are (B, L - 1) bool, and the middle states."""
    hidden, middle = body(batch.ids, batch.features, batch.mask, batch.positions)
    targets = batch.labels[:, 1:]
    where = targets >= 0
    return head(hidden[:, :-1][where]).float(), targets[where], where, middle


@torch.no_grad()
def exact(
    body: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    head: nn.Module,
    composer: Composer,
    shape: Shape,
    batches: int,
) -> dict[str, tuple[float, int]]:
    """Share of answers whose every token is the most likely one (what greedy decoding would write), by kind."""
    right: dict[str, list[bool]] = defaultdict(list)
    for _ in range(batches):
        batch = composer.batch(shape)
        logits, targets, where, _ = predict(body, head, batch)
        hit = torch.zeros(where.shape, dtype=torch.bool)
        hit[where] = logits.argmax(-1) == targets
        for a in batch.asked:
            name = a.kind + ("/letter" if a.letter else "")
            right[name].append(bool(hit[a.film, a.start - 1 : a.start - 1 + a.length].all()))
    return {k: (round(100 * float(np.mean(v)), 1), len(v)) for k, v in sorted(right.items())}


def train_lm(
    folder: Path, bank: Path, held: Path, phases: Sequence[Phase], seed: int, resume: bool, processes: int
) -> None:
    """Train with one single-threaded process a core, which average their gradients once a step.

    Many small operations make threads wait for each other all the time, most of all when the machine does other work.
    """
    port = 29000 + os.getpid() % 1000
    arguments = (processes, port, folder, bank, held, tuple(phases), seed, resume)
    torch.multiprocessing.spawn(_worker, arguments, nprocs=processes)


def _worker(
    rank: int,
    processes: int,
    port: int,
    folder: Path,
    bank: Path,
    held: Path,
    phases: tuple[Phase, ...],
    seed: int,
    resume: bool,
) -> None:
    level = logging.INFO if rank == 0 else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(1)
    # one cache of compiled kernels each: two processes that write one file at a time read it half-written
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / f"compiled_{rank}")
    store = f"tcp://127.0.0.1:{port}"
    # long: the first process saves and measures while the others wait
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=processes, timeout=timedelta(minutes=30))
    # our own files: a Bank is pickled, so weights_only does not apply
    banks = [torch.load(path, weights_only=False) for path in (bank, held)]
    train_phases(folder, banks[0], banks[1], phases, seed, resume)
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


def train_phases(folder: Path, bank: Bank, held: Bank, phases: Sequence[Phase], seed: int, resume: bool) -> None:
    """Train phase by phase; ``folder/lm_<phase>.pt`` holds weights and optimizer after each."""
    rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    torch.manual_seed(seed)
    reader = Reader().bfloat16()
    named = list(reader.named_parameters())
    optimizer = MasterWeights(named, MUON_LR, ADAM_LR)
    with torch.no_grad():  # from fp32, not from the rounded working copy
        concepts, exact_rows = concept_ids(), word_rows()
        table = optimizer.names.index("lm.embed_tokens.weight")
        optimizer.master[table][concepts] = exact_rows
    keeper = Bookkeeper()
    for p in keeper.parameters():
        p.grad = torch.zeros_like(p)  # so that all processes always send the same message
    keeper_optimizer = torch.optim.AdamW(keeper.parameters(), lr=ADAM_LR, betas=(0.9, 0.98), weight_decay=0.0)
    compiled = torch.compile(reader, dynamic=False)
    torch._dynamo.config.cache_size_limit = 32
    total, step = sum(phase.steps for phase in phases), 0
    for number, phase in enumerate(phases):
        out = folder / f"lm_{phase.name}.pt"
        if resume and out.exists():
            step += phase.steps
            if not (number + 1 < len(phases) and (folder / f"lm_{phases[number + 1].name}.pt").exists()):
                restore(out, optimizer)
                log.info("lm: continue after phase %s", phase.name)
            continue
        rng = np.random.default_rng((seed, number))  # the same in all processes: they take the same shapes
        composer = Composer(bank, np.random.default_rng((seed, number, rank)))
        shares = np.array([share for share, _ in phase.shapes])
        start, busy, losses, extras, seen = time.time(), 0.0, [], [], 0
        for i in range(phase.steps):
            shape = phase.shapes[int(rng.choice(len(shares), p=shares / shares.sum()))][1]
            batch = composer.batch(shape)
            begun = time.time()
            logits, targets, _, middle = predict(compiled, reader.head, batch)
            loss = F.cross_entropy(logits, targets)
            extra = keeper(middle, batch.books)
            point = pointing_loss(reader, middle, batch)
            (loss + BOOK_WEIGHT * extra + POINT_WEIGHT * point).backward()
            if processes > 1:
                average_gradients([*(p for _, p in named), *keeper.parameters()])
            grad = reader.lm.embed_tokens.weight.grad
            if grad is not None:
                grad[concepts] = 0  # these rows stay aligned with the visual tokens
            optimizer.step(schedule(step, total, WARM, HOLD))
            keeper_optimizer.step()
            keeper_optimizer.zero_grad(set_to_none=False)
            step += 1
            extras.append((extra.item(), point.item()))
            losses.append(loss.item())
            seen += batch.ids.numel() * processes
            busy += time.time() - begun
            if i % 50 == 49:
                spent = time.time() - start
                note = "lm: %s %d/%d (%d/%d) loss %.3f, books %.3f, pointing %.3f, %.0f tokens/s, %.0f s of data"
                means = np.mean(losses[-50:]), *np.mean(extras[-50:], axis=0)
                done = phase.name, i + 1, phase.steps, step, total
                log.info(note, *done, *means, seen / spent, spent - busy)
            if rank == 0 and (i % 300 == 299 or i + 1 == phase.steps):
                check = Composer(held, np.random.default_rng(3))
                log.info("lm: held out %s", exact(compiled, reader.head, check, phase.shapes[0][1], EVALUATION_BATCHES))
                save(folder / "lm_latest.pt", optimizer)
        if rank == 0:
            save(out, optimizer)
        if processes > 1:
            dist.barrier()


def save(out: Path, optimizer: MasterWeights) -> None:
    state = {"weights": optimizer.state(), "optimizers": [o.state_dict() for o in optimizer.optimizers]}
    temporary = out.with_suffix(".part")
    torch.save(state, temporary)
    temporary.replace(out)


def restore(path: Path, optimizer: MasterWeights) -> None:
    state = torch.load(path, weights_only=True)
    with torch.no_grad():
        for name, p, m in zip(optimizer.names, optimizer.working, optimizer.master, strict=True):
            m.copy_(state["weights"][name])
            p.copy_(m)
    for o, saved in zip(optimizer.optimizers, state["optimizers"], strict=True):
        o.load_state_dict(saved)
