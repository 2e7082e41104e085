"""Measure the demo model on held-out films: real mp4 files, decoded, sampled at one frame a second at a random phase.

``python -m videoprune.demo.training.evaluate --weights DIR --films N`` prints a table; films' tokens are cached.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import LlavaOnevisionForConditionalGeneration

from videoprune.demo import language, scenes
from videoprune.demo.film import film_timeline, make_film
from videoprune.demo.questions import TASKS, Asker, Question
from videoprune.demo.timeline import Timeline
from videoprune.demo.training.common import CELLS, pixels
from videoprune.demo.training.compose import HEADER, block_mask

log = logging.getLogger(__name__)
FIRST_SEED = 5_000_000  # films from here on: neither the shipped film nor anything trained on
OPEN_KINDS = tuple(TASKS)
MAIN_KINDS = ("colour", "after", "before", "where", "needle", "direction", "count", "order", "anomaly", "topic")
TRIES = 6  # draws of each kind a film; the same question is asked once
CONTEXT_SHARE = 0.15  # of the pruned budget goes to tokens at even distances
TOP_SHARE = 0.2  # of frames, for the recall of the relevance scorer


@dataclass
class Film:
    """A held-out film: its content, sampling phase in seconds, and visual tokens (F, CELLS, WIDTH) fp32."""

    seed: int
    timeline: Timeline
    phase: float
    tokens: torch.Tensor


def sample(path: Path, fps: float, phase: float) -> np.ndarray:
    """Pictures at ``phase``, ``phase + 1 / fps``, … seconds: (F, SIZE, SIZE, 3) uint8."""
    size, pictures, due = (scenes.SIZE, scenes.SIZE), [], phase
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            if frame.time is not None and frame.time + 1e-6 >= due:
                pictures.append(np.asarray(frame.to_image().resize(size, Image.Resampling.BICUBIC)))
                due += 1 / fps
    return np.stack(pictures)


@torch.no_grad()
def see(model: LlavaOnevisionForConditionalGeneration, pictures: np.ndarray) -> torch.Tensor:
    """Visual tokens as the stock class makes them, without its newline row: (F, CELLS, WIDTH)."""
    parts = [pixels(pictures[i : i + 64])[None] for i in range(0, len(pictures), 64)]
    rows = [model.model.get_video_features(part).pooler_output[0][: part.shape[1] * CELLS] for part in parts]
    return torch.cat(rows).view(len(pictures), CELLS, -1)


def held_out_films(
    model: LlavaOnevisionForConditionalGeneration, cache: Path, count: int, minutes: float
) -> Iterator[Film]:
    """Films with pictures cached in ``cache``, so that another model can be measured on the same ones."""
    cache.mkdir(parents=True, exist_ok=True)
    for seed in range(FIRST_SEED, FIRST_SEED + count):
        phase = float(np.random.default_rng((seed, 5)).uniform(0, 0.99))
        stored = cache / f"{seed}_{minutes:g}.npy"
        if not stored.exists():
            with tempfile.TemporaryDirectory() as scratch:
                made = make_film(Path(scratch) / "film.mp4", minutes, seed)
                np.save(stored, sample(made["film"], 1.0, phase))
        yield Film(seed, film_timeline(minutes, seed), phase, see(model, np.load(stored)))


def by_change(tokens: torch.Tensor, keep: float) -> torch.Tensor:
    """A plain selector: tokens that differ most from their cell a frame before, and some at even distances."""
    frames, cells, _ = tokens.shape
    count = max(1, round(keep * frames * cells))
    change = torch.ones(frames, cells)
    change[1:] = 1 - F.cosine_similarity(tokens[1:], tokens[:-1], dim=-1)
    score = change.flatten()
    context = torch.linspace(0, frames * cells - 1, max(1, round(CONTEXT_SHARE * count))).long()
    score[context] = 10
    return score.topk(count).indices.sort().values


def at_random(tokens: torch.Tensor, keep: float, seed: int) -> torch.Tensor:
    count = max(1, round(keep * tokens.shape[0] * tokens.shape[1]))
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(tokens.shape[0] * tokens.shape[1], generator=generator)[:count].sort().values


def ask_all(film: Film, kinds: Sequence[str] = OPEN_KINDS) -> list[Question]:
    """Different questions about a film, the same at every call."""
    asker = Asker(film.timeline, np.random.default_rng((film.seed, 6)))
    found: dict[tuple[str, object], Question] = {}
    for kind in kinds:
        for _ in range(TRIES):
            question = asker.ask(kind)
            if question is not None:
                found.setdefault(
                    (kind, question.evidence if kind not in ("topic", "anomaly", "needle", "list") else 0), question
                )
    return list(found.values())


@torch.no_grad()
def answer_log_likelihood(
    model: LlavaOnevisionForConditionalGeneration,
    tokens: torch.Tensor,
    kept: torch.Tensor,
    pairs: Sequence[tuple[str, str]],
    prefix: Sequence[int] = (),
) -> list[tuple[bool, float]]:
    """For each (question, answer): whether greedy decoding writes it, and its log likelihood. All share one film."""
    total = tokens.shape[0] * tokens.shape[1]
    visual = tokens.reshape(total, -1)[kept]
    word = language.WORD_ID
    ids: list[int] = [word[language.START], word["user"]]
    segment = [0] * (HEADER + len(kept) + 1)
    position = [0, 1, *(HEADER + kept).tolist(), HEADER + total]
    tail: list[int] = []
    spans = []
    for number, (question, answer) in enumerate(pairs, 1):
        prompt = [*language.encode(question), word[language.END], word[language.START], word["assistant"], *prefix]
        reply = [*language.encode(answer), word[language.END]]
        spans.append((len(segment) + len(prompt), reply))
        tail += prompt + reply
        segment += [number] * (len(prompt) + len(reply))
        position += range(HEADER + total + 1, HEADER + total + 1 + len(prompt) + len(reply))
    embed = model.get_input_embeddings()
    newline = model.model.image_newline[None]
    inputs = torch.cat([embed(torch.tensor(ids)), visual, newline, embed(torch.tensor(tail, dtype=torch.long))])
    mask = block_mask(np.asarray(segment)[None])
    hidden = model.model.language_model(
        inputs_embeds=inputs[None].to(embed.weight.dtype),
        attention_mask=mask,
        position_ids=torch.tensor([position]),
        use_cache=False,
    ).last_hidden_state[0]
    out = []
    for start, reply in spans:
        chances = model.lm_head(hidden[start - 1 : start - 1 + len(reply)]).float().log_softmax(-1)
        target = torch.tensor(reply)
        right = bool((chances.argmax(-1) == target).all())
        out.append((right, float(chances.gather(1, target[:, None]).sum())))
    return out


def exact_match(model, films: Sequence[Film], how: str, keep: float) -> dict[str, list[bool]]:  # type: ignore[no-untyped-def]
    """Exact matches of free answers by kind."""
    right: dict[str, list[bool]] = defaultdict(list)
    for film in films:
        total = film.tokens.shape[0] * film.tokens.shape[1]
        if how == "all":
            kept = torch.arange(total)
        elif how == "none":
            kept = torch.arange(0)
        else:
            kept = by_change(film.tokens, keep) if how == "change" else at_random(film.tokens, keep, film.seed)
        asked = ask_all(film)
        results = answer_log_likelihood(model, film.tokens, kept, [(q.text, q.answer) for q in asked])
        for question, (hit, _) in zip(asked, results, strict=True):
            right[question.kind].append(hit)
    return right


def options_by_likelihood(model, films: Sequence[Film]) -> dict[str, list[bool]]:  # type: ignore[no-untyped-def]
    """Multiple choice: the option with the highest likelihood as a free answer."""
    right: dict[str, list[bool]] = defaultdict(list)
    for film in films:
        asked = [q for q in ask_all(film) if q.wrong]
        pairs = [(q.text, option) for q in asked for option in (q.answer, *q.wrong)]
        kept = torch.arange(film.tokens.shape[0] * film.tokens.shape[1])
        scores = [s for _, s in answer_log_likelihood(model, film.tokens, kept, pairs)]
        at = 0
        for q in asked:
            n = 1 + len(q.wrong)
            right[q.kind].append(int(np.argmax(scores[at : at + n])) == 0)
            at += n
    return right


def options_by_letter(model, films: Sequence[Film]) -> dict[str, list[bool]]:  # type: ignore[no-untyped-def]
    """Multiple choice with lettered options and the answer begun with ``Best option: (``."""
    from videoprune.demo.questions import with_options

    right: dict[str, list[bool]] = defaultdict(list)
    for film in films:
        rng = np.random.default_rng((film.seed, 7))
        asked, pairs = [q for q in ask_all(film) if q.wrong], []
        for q in asked:
            options, best = with_options(q, rng)
            lines = "\n".join(f"({letter}) {o}" for letter, o in zip(language.LETTERS, options, strict=True))
            pairs.append((f"{q.text}\n{lines}", f"({language.LETTERS[best]})"))
        kept = torch.arange(film.tokens.shape[0] * film.tokens.shape[1])
        for q, (hit, _) in zip(asked, answer_log_likelihood(model, film.tokens, kept, pairs), strict=True):
            right[q.kind].append(hit)
    return right


@torch.no_grad()
def scorer_recall(model, films: Sequence[Film]) -> dict[str, list[float]]:  # type: ignore[no-untyped-def]
    """Share of a question's evidence frames among the TOP_SHARE of frames most similar to its words, by kind.

    A frame's score is the largest cosine between one of its centred tokens and a word of the question.
    """
    embed = F.normalize(model.get_input_embeddings().weight.float(), dim=-1)
    found: dict[str, list[float]] = defaultdict(list)
    for film in films:
        centred = F.normalize(film.tokens - film.tokens.mean((0, 1)), dim=-1)
        seconds = film.phase + torch.arange(len(centred))
        for q in ask_all(film):
            evidence = torch.zeros(len(centred), dtype=torch.bool)
            for start, end in q.evidence:
                evidence |= (seconds >= start) & (seconds < end)
            if not evidence.any() or evidence.float().mean() > TOP_SHARE:
                continue
            score = (centred @ embed[language.encode(q.text)].T).amax((1, 2))
            top = score.topk(round(TOP_SHARE * len(score))).indices
            found[q.kind].append(float(evidence[top].sum() / evidence.sum()))
    return found


def show(title: str, right: dict[str, list[bool]]) -> dict[str, object]:
    """Print a row; the mean is over the kinds that have options."""
    shares = {k: 100 * float(np.mean(v)) for k, v in right.items()}
    mean = float(np.mean([shares[k] for k in MAIN_KINDS if k in shares]))
    print(
        f"{title:<16}"
        + " ".join(f"{k}:{shares[k]:.1f}({len(right[k])})" for k in OPEN_KINDS if k in shares)
        + f" | mean {mean:.1f}",
        flush=True,
    )
    return {"title": title, "mean": round(mean, 1), "kinds": {k: [round(shares[k], 1), len(right[k])] for k in shares}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--films", type=int, default=60)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--rows", default="all,change:0.15,change:0.1,random:0.1,none,options,letters,recall")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(options.weights, dtype=torch.float32).eval()
    films = list(held_out_films(model, options.cache, options.films, options.minutes))
    table: list[dict[str, object]] = []
    for row in options.rows.split(","):
        how, _, keep = row.partition(":")
        if how == "options":
            table.append(show(row, options_by_likelihood(model, films)))
        elif how == "letters":
            table.append(show(row, options_by_letter(model, films)))
        elif how == "recall":
            table.append(show(row, scorer_recall(model, films)))  # type: ignore[arg-type]
        else:
            table.append(show(row, exact_match(model, films, how, float(keep or 1))))
    if options.json:
        options.json.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
