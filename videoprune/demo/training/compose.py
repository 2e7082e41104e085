"""Films composed from the bank, cut to few tokens, with many questions each: batches for the language model.

A film is a sequence of bank rows (one a sampled frame). Most films keep only some of their tokens, with the positions
that they had, because a pruned film costs a fraction and teaches nearly as much; what is kept, and how kept tokens are
averaged, varies as widely as the pipeline's methods do.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from videoprune.demo import language, names
from videoprune.demo.questions import Question
from videoprune.demo.timeline import Timeline, draw_timeline
from videoprune.demo.training.asking import SECOND, Examiner, Mix
from videoprune.demo.training.bank import Bank, Place
from videoprune.demo.training.common import CELLS

HEADER = 2  # tokens before the video: <|im_start|> user
CLIP_SECONDS = {"actor": 5, "item": 3, "anomaly": 5}  # room kept for an event, in sampled frames
WEAK_EVIDENCE_SHARE = 0.12  # of pruned films lose part of the evidence
COMPACT_SHARE = 0.15  # of pruned films are renumbered
FEW_COLOURS = 2  # in films of few colours
MERGED_SHARE = 0.5  # of pruned films have averaged tokens
_VIDEO = language.WORD_ID[language.VIDEO]
_OPEN = [language.WORD_ID[language.START], language.WORD_ID["user"]]

BROAD = ("topic", "sub_scene", "letter", "list")  # kinds whose answers are not about one thing at one time

# What a token of a crossing object is taught to know by the middle of the model: class counts of own shape, colour and
# direction, those of the object before it (the last class: none), how many came before, and how often this one came.
BOOKS = (6, 6, 4, 7, 7, 5, 15, 5)


@dataclass(frozen=True)
class Shape:
    """Static sizes of a batch and the lengths of its films."""

    films: int
    visual: int  # visual tokens, at most
    text: int  # tokens of all questions of a film, at most
    frames: tuple[int, ...]


@dataclass(frozen=True)
class Asked:
    """Where one answer is in a batch."""

    film: int
    start: int
    length: int
    kind: str
    letter: bool
    frames: int


@dataclass
class Batch:
    ids: torch.Tensor  # (B, L)
    labels: torch.Tensor  # (B, L), -100 where nothing is predicted
    positions: torch.Tensor  # (B, L)
    mask: torch.Tensor  # (B, 1, L, L) bool, True = may look
    features: torch.Tensor  # (B, visual, WIDTH)
    points: tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # film (n,), place (n,), visual tokens told of (n, visual)
    books: torch.Tensor  # (B, visual, len(BOOKS)), -100 on tokens that show no crossing object
    spelt: torch.Tensor  # (B, L), which option a token spells, -100 on the others
    choices: tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # film (n,), place before a letter (n,), its option (n, L)
    asked: list[Asked]

    def to(self, device: str) -> Batch:
        """The same batch with its tensors on a device."""
        whole = ("ids", "labels", "positions", "mask", "features", "books", "spelt")
        tensors = {name: getattr(self, name).to(device) for name in whole}
        film, place, told = (t.to(device) for t in self.points)
        asker, before, option = (t.to(device) for t in self.choices)
        return Batch(**tensors, points=(film, place, told), choices=(asker, before, option), asked=self.asked)


class Composer:
    """Endless batches from a bank."""

    def __init__(self, bank: Bank, rng: np.random.Generator, mix: Mix = SECOND) -> None:
        self.bank, self.rng, self.mix = bank, rng, mix
        self.examiner = Examiner(rng, mix)

    # ---- films

    def film(self, seconds: int) -> tuple[Timeline, np.ndarray]:
        """A timeline and its bank rows, one a second: (seconds,) int."""
        rng, places = self.rng, self.bank.places
        main = places[rng.integers(len(places))]
        away: dict[str, Place] = {}
        while len(away) < 2:
            other = places[rng.integers(len(places))]
            if other.name != main.name:
                away.setdefault(other.name, other)
        cast = set(main.actors).intersection(*(place.actors for place in away.values()))
        objects = sorted(cast)
        if (
            rng.random() < self.mix.few_colours
        ):  # else the colour alone tells objects apart, and shapes are never learnt
            few = set(rng.choice(names.COLOURS, FEW_COLOURS, replace=False).tolist())
            objects = [o for o in objects if o[1] in few] or objects
        drawn = draw_timeline(float(seconds), rng, objects, main.name, CLIP_SECONDS.__getitem__, step=1.0)
        picked = iter(away.values())
        shots, where = [], []
        for shot in drawn.shots:
            place = next(picked) if shot.cutaway else main
            shots.append(dataclasses.replace(shot, place=place.name))
            where.append(place)
        empty = {id(p): np.asarray(p.empty) for p in where}
        rows = np.empty(seconds, np.int64)
        for t in range(seconds):
            place = where[next(i for i, shot in enumerate(shots) if t < shot.end or i == len(shots) - 1)]
            rows[t] = empty[id(place)][rng.integers(len(empty[id(place)]))]
        events = []
        for event in drawn.events:
            middle = (event.start + event.end) / 2
            place = where[next(i for i, shot in enumerate(shots) if middle < shot.end or i == len(shots) - 1)]
            clips = (
                place.actors[(event.name[0], event.name[1])] if event.kind == "actor" else place.others[event.name[0]]
            )
            clip = clips[rng.integers(len(clips))]
            start = int(event.start)
            length = min(len(clip.rows), seconds - start)
            rows[start : start + length] = np.asarray(clip.rows)[:length]
            events.append(dataclasses.replace(event, name=clip.name, end=float(start + length)))
        return Timeline(float(seconds), tuple(shots), tuple(events)), rows

    # ---- fewer tokens

    def choose(self, rows: np.ndarray, timeline: Timeline, keep: int) -> np.ndarray:
        """Which ``keep`` of the film's tokens stay: ascending indices."""
        rng, frames = self.rng, len(rows)
        shown = self.bank.shown[rows]  # (F, CELLS)
        for event in timeline.events:
            if event.kind == "anomaly":  # whole frames: too many to keep all
                part = slice(int(event.start), int(event.end))
                shown[part] &= rng.random(shown[part].shape) < rng.uniform(0.15, 0.7)
        if rng.random() < WEAK_EVIDENCE_SHARE:
            lost = rng.random(shown.shape) > rng.uniform(0.4, 0.9)
            for event in timeline.events:
                if event.kind == "item":
                    lost[int(event.start) : int(event.end)] = False
            shown &= ~lost
        weight = rng.random((frames, CELLS)) + 10 * shown
        style = rng.random()
        if style < 0.25:  # some frames and some cells are kept more than others
            weight += 2 * rng.random((frames, 1)) + rng.random((1, CELLS))
        elif style < 0.45:  # whole frames at even distances
            weight += 5 * (np.arange(frames) % int(rng.integers(2, 9)) == 0)[:, None]
        elif style < 0.6:  # frames with an event keep their background
            weight += 5 * (shown.any(1) & (rng.random(frames) < rng.uniform(0.3, 1)))[:, None]
        elif style < 0.7:  # the first frame stays whole
            weight[0] += 5
        flat = weight.ravel()
        return np.sort(np.argpartition(-flat, keep - 1)[:keep])

    def average(self, features: torch.Tensor, shown: np.ndarray) -> torch.Tensor:
        """Some tokens replaced by means, as merging does: (F, CELLS, WIDTH) in and out."""
        rng = self.rng
        frames, cells, _ = features.shape
        wide = features.float()
        out = wide.clone()
        # in time: the mean over a few frames of the same cell; shorter where something is shown
        chosen = rng.random((frames, cells)) < rng.uniform(0.1, 0.8)
        length = np.where(shown, rng.integers(2, 4, shown.shape), rng.integers(2, 7, shown.shape))
        chosen &= ~shown | (rng.random(shown.shape) < 0.4)
        begin = np.maximum(np.arange(frames)[:, None] - rng.integers(0, 100, shown.shape) % length, 0)
        end = np.minimum(begin + length, frames)
        total = torch.cat([torch.zeros_like(wide[:1]), wide.cumsum(0)])
        f, c = np.nonzero(chosen)
        f0, f1 = torch.from_numpy(begin[f, c]), torch.from_numpy(end[f, c])
        tf, tc = torch.from_numpy(f), torch.from_numpy(c)
        out[tf, tc] = (total[f1, tc] - total[f0, tc]) / (f1 - f0)[:, None]
        # in space: with another token of the frame, or 2x2 and 4x4 cell means of whole frames
        chosen = rng.random((frames, cells)) < rng.uniform(0, 0.2)
        f, c = np.nonzero(chosen)
        other = torch.from_numpy(rng.integers(0, cells, len(f)))
        tf, tc = torch.from_numpy(f), torch.from_numpy(c)
        out[tf, tc] = (out[tf, tc] + wide[tf, other]) / 2
        grid = int(cells**0.5)
        blocks = torch.from_numpy(np.flatnonzero(rng.random(frames) < rng.uniform(0, 0.15)))
        if len(blocks):
            quads = wide[blocks].view(-1, grid // 2, 2, grid // 2, 2, wide.shape[-1]).mean((2, 4), keepdim=True)
            quads = quads.expand(-1, -1, 2, -1, 2, -1).reshape(len(blocks), cells, -1)
            out[blocks] = quads
        whole = torch.from_numpy(np.flatnonzero(~shown.any(1) & (rng.random(frames) < rng.uniform(0, 0.3))))
        if len(whole):
            out[whole] = wide[whole].mean(1, keepdim=True).expand(-1, cells, -1)
        return out

    def bookkeeping(self, timeline: Timeline, shown: np.ndarray) -> np.ndarray:
        """Labels of ``BOOKS`` for each token: (F, CELLS, len(BOOKS)), -100 where no crossing object is shown."""
        books = np.full((*shown.shape, len(BOOKS)), -100, np.int64)
        lists = (names.SHAPES, names.COLOURS, names.DIRECTIONS)
        before, came = tuple(len(words) for words in lists), Counter[tuple[str, ...]]()
        for number, event in enumerate(timeline.actors):
            own = tuple(words.index(word) for words, word in zip(lists, event.name, strict=True))
            values = (*own, *before, min(number, BOOKS[6] - 1), min(came[event.name[:2]], BOOKS[7] - 1))
            part = slice(int(event.start), int(event.end))
            books[part][shown[part]] = values
            came[event.name[:2]] += 1
            before = own
        return books

    # ---- batches

    def batch(self, shape: Shape) -> Batch:
        """A batch of static size: (films, 3 + visual + text)."""
        rng = self.rng
        b, length = shape.films, HEADER + shape.visual + 1 + shape.text
        ids = np.zeros((b, length), np.int64)
        labels = np.full((b, length), -100, np.int64)
        positions = np.zeros((b, length), np.int64)
        segment = np.full((b, length), -1, np.int32)  # 0 the film, 1… its questions, -1 padding
        features = torch.zeros(b, shape.visual, self.bank.tokens.shape[-1], dtype=torch.bfloat16)
        books = np.full((b, shape.visual, len(BOOKS)), -100, np.int64)
        spelt = np.full((b, length), -100, np.int64)
        choices: list[tuple[int, int, np.ndarray]] = []
        asked: list[Asked] = []
        points: list[tuple[int, int, np.ndarray]] = []
        for i in range(b):
            seconds = int(rng.choice(shape.frames))
            timeline, rows = self.film(seconds)
            total = seconds * CELLS
            keep = min(shape.visual, total)
            if rng.random() < 0.3:  # below what there is room for
                keep = max(min(keep, 32), int(keep * rng.uniform(0.3, 1)))
            tokens = self.bank.tokens[torch.from_numpy(rows)]
            kept = np.arange(total)
            compact = False
            if keep < total:
                kept = self.choose(rows, timeline, keep)
                compact = rng.random() < COMPACT_SHARE
                if rng.random() < MERGED_SHARE:
                    tokens = self.average(tokens, self.bank.shown[rows]).bfloat16()
            n = len(kept)
            features[i, :n] = tokens.reshape(total, -1)[torch.from_numpy(kept)]
            books[i, :n] = self.bookkeeping(timeline, self.bank.shown[rows]).reshape(total, -1)[kept]
            ids[i, :HEADER], ids[i, HEADER : HEADER + shape.visual + 1] = _OPEN, _VIDEO
            segment[i, : HEADER + n], segment[i, HEADER + shape.visual] = 0, 0
            positions[i, :HEADER] = np.arange(HEADER)
            positions[i, HEADER : HEADER + n] = HEADER + (np.arange(n) if compact else kept)
            newline = HEADER + (n if compact else total)
            positions[i, HEADER + shape.visual] = newline
            at = HEADER + shape.visual + 1
            second = np.full(shape.visual, -1.0)  # of each visual token that shows an event
            second[:n] = np.where(self.bank.shown[rows].ravel()[kept], kept // CELLS, -1)
            for number, question in enumerate(self.examiner.questions(timeline), 1):
                written = self.examiner.write(question)
                prompt, answer = written.prompt, written.answer
                size = len(prompt) + len(answer)
                if at + size > length:
                    continue
                ids[i, at : at + size] = prompt + answer
                labels[i, at + len(prompt) : at + size] = answer
                positions[i, at : at + size] = newline + 1 + np.arange(size)
                segment[i, at : at + size] = number
                asked.append(Asked(i, at + len(prompt), len(answer), question.kind, written.lettered, seconds))
                points += [(i, at + len(prompt) - 1 + j, m) for j, m in pointed(question, second, len(answer))]
                if written.lettered:
                    options = np.full(length, -100, np.int64)
                    options[at : at + len(prompt)] = written.options
                    spelt[i, options >= 0] = options[options >= 0]
                    letter = at + len(prompt) + len(answer) - 3  # it is followed by ")" and the end
                    choices.append((i, letter - 1, options == written.right))
                at += size
        return Batch(
            torch.from_numpy(ids),
            torch.from_numpy(labels),
            torch.from_numpy(positions),
            block_mask(segment),
            features,
            _stacked(points, shape.visual),
            torch.from_numpy(books),
            torch.from_numpy(spelt),
            _stacked(choices, length),
            asked,
        )


def _stacked(
    points: Sequence[tuple[int, int, np.ndarray]], width: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Films (n,), places (n,) and masks (n, width) of the points whose mask is not empty."""
    chosen = [p for p in points if p[2].any()]
    masks = np.stack([p[2] for p in chosen]) if chosen else np.zeros((0, width), bool)
    films, places = (torch.tensor([p[k] for p in chosen], dtype=torch.long) for k in (0, 1))
    return films, places, torch.from_numpy(masks)


def pointed(question: Question, second: np.ndarray, length: int) -> list[tuple[int, np.ndarray]]:
    """Which visual tokens each token of an answer tells of: ``(index, (visual,) bool)``; nothing for broad questions.

    ``second`` holds the second of each visual token that shows an event, -1 for the others.
    """

    def within(spans: Sequence[tuple[float, float]]) -> np.ndarray:
        masks = [(second >= start) & (second < end) for start, end in spans]
        return np.logical_or.reduce(masks) & (second >= 0)

    if question.kind in BROAD or not question.evidence or question.answer in ("zero", "nothing", "nothing happens"):
        return []
    mask = within(question.told or question.evidence)
    return [(j, mask) for j in range(length - 1)]  # the end token tells nothing


def block_mask(segment: np.ndarray) -> torch.Tensor:
    """Causal mask in which a question sees the film and itself only: (B, L) segments to (B, 1, L, L) bool."""
    s = torch.from_numpy(segment)
    length = s.shape[1]
    may = (s[:, None, :] == 0) | (s[:, None, :] == s[:, :, None])
    may &= torch.ones(length, length, dtype=torch.bool).tril()
    may &= (s >= 0)[:, None, :]
    may |= torch.eye(length, dtype=torch.bool)  # padding looks at itself: a row without any key would be NaN
    return may[:, None]
