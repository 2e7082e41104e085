"""How many hand-written wordings the model understands: questions that no training template contains.

``python -m videoprune.demo.training.understood --wordings tests/demo/wordings.json --cache DIR`` asks the same thing twice,
in a film's wording and in a hand-written one.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import LlavaOnevisionForConditionalGeneration

from videoprune.demo import weights_path
from videoprune.demo.questions import WORDINGS, Asker, Question
from videoprune.demo.timeline import Timeline
from videoprune.demo.training.evaluate import Film, answer_log_likelihood, held_out_films
from videoprune.demo.training.wordings import GRAMMAR, bare, pattern

Wordings = Mapping[str, Sequence[str]]


class OneWordingAsker(Asker):
    """Asks with a template that is given instead of a random one; remembers which kind of template was asked for."""

    def __init__(self, timeline: Timeline, seed: tuple[int, ...], templates: Wordings, number: int) -> None:
        super().__init__(timeline, np.random.default_rng(seed))
        self.templates, self.number = templates, number

    def wording(self, name: str) -> str:
        super().wording(name)  # draws as usual, so that what is asked stays the same
        return self.templates[name][self.number % len(self.templates[name])]


def trained_on(wording: str, kind: str) -> bool:
    """Whether a template of the training grammar can become this wording (up to case, blanks and marks at ends)."""
    text = bare(wording.format(shape="star", object="red star", thing="red star", place="city"))
    return any(pattern(template).fullmatch(text) for template in (*WORDINGS[kind], *GRAMMAR[kind]))


def paired(film: Film, kind: str, wordings: Wordings, number: int) -> tuple[Question, Question] | None:
    """The same question in the first of the film's wordings and in the hand-written one of this number."""
    seed = (film.seed, 8, number)
    usual = OneWordingAsker(film.timeline, seed, WORDINGS, 0).ask(kind)
    other = OneWordingAsker(film.timeline, seed, wordings, number).ask(kind)
    return None if usual is None or other is None else (usual, other)


def understood(
    model: LlavaOnevisionForConditionalGeneration, films: Sequence[Film], wordings: Wordings, each: int
) -> dict[str, tuple[int, int, int, int]]:
    """By kind: wordings asked, right in the film's wording, right in the hand-written one, right in both.

    Every wording is asked of ``each`` films, on all tokens; right is an exact match of the whole answer.
    """
    found: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    kinds = dict.fromkeys(re.sub("_(first|last)$", "", name) for name in wordings)
    for at, film in enumerate(films):
        asked: list[tuple[str, Question, Question]] = []
        for kind in kinds:
            total = sum(len(w) for name, w in wordings.items() if name.startswith(kind))
            numbers = [n for n in range(total * each) if n % len(films) == at]
            pairs = ((kind, paired(film, kind, wordings, n)) for n in numbers)
            asked += [(kind, *pair) for kind, pair in pairs if pair is not None]
        texts = [(q.text, q.answer) for _, usual, other in asked for q in (usual, other)]
        if not texts:
            continue
        kept = torch.arange(film.tokens.shape[0] * film.tokens.shape[1])
        hits = [hit for hit, _ in answer_log_likelihood(model, film.tokens, kept, texts)]
        for (kind, *_), usual_hit, other_hit in zip(asked, hits[::2], hits[1::2], strict=True):
            found[kind].append((usual_hit, other_hit))
    return {
        kind: (len(rows), sum(a for a, _ in rows), sum(b for _, b in rows), sum(a and b for a, b in rows))
        for kind, rows in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=weights_path())
    parser.add_argument("--wordings", type=Path, required=True, help="JSON: lists of templates by kind")
    parser.add_argument("--films", type=int, default=20)
    parser.add_argument("--each", type=int, default=4, help="films that every wording is asked of")
    parser.add_argument("--minutes", type=float, default=64 / 60)
    parser.add_argument("--cache", type=Path, required=True)
    options = parser.parse_args()
    wordings = json.loads(options.wordings.read_text(encoding="utf-8"))
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(options.weights, dtype=torch.float32).eval()
    films = list(held_out_films(model, options.cache, options.films, options.minutes))
    print(f"{'kind':<10} {'n':>4} {'usual':>6} {'hand':>6} {'understood':>11}")
    shares = []
    for kind, (n, usual, hand, both) in understood(model, films, wordings, options.each).items():
        shares.append(100 * both / usual if usual else float("nan"))
        print(f"{kind:<10} {n:>4} {100 * usual / n:>6.1f} {100 * hand / n:>6.1f} {shares[-1]:>11.1f}")
    print(f"mean understood, of what is answered right in the film's wording: {np.nanmean(shares):.1f} %")


if __name__ == "__main__":
    main()
