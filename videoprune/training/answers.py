"""The lesson of gates inside the language model: what is hidden must not change the answers."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from videoprune.asking import prepare
from videoprune.bench.accuracy import plain
from videoprune.layer_method import PrefillView
from videoprune.models.generation import reply_ids
from videoprune.models.host import Host
from videoprune.models.masked import read_masked
from videoprune.pipeline import Pipeline
from videoprune.prefill._gated import GatedPrefill, Gates
from videoprune.recipe import Recipe
from videoprune.trained import HostFacts, Lesson
from videoprune.training.films import Asked, Films, open_films
from videoprune.watched import Video

HELD_OUT = 10  # generated films
HELD_BYTES = 2 << 30  # of watched films in memory

Tell = Callable[[str, int, int | None], None]


class Answers(Lesson):
    """Films, questions and answers: the host reads them with hidden tokens, and the answer's cross-entropy is the loss.

    The host is frozen. The method sees the prompt alone: a gate that could read the answer would learn to look it up.
    """

    method: GatedPrefill

    def __init__(
        self,
        method: GatedPrefill,
        host: Host,
        data: str = "demo",
        *,
        films: int = 100,
        seed: int = 0,
        tell: Tell | None = None,
    ) -> None:
        self.method, self.host = method, host
        self.facts = HostFacts.of(host)
        self.points = method.points(host.decoder_shape.layers)
        own = host.default_recipe  # a family's frame rule with nothing pruned, or the name of a recipe that prunes
        self.pipe = Pipeline(host, Recipe.load("dense" if isinstance(own, str) else own))
        self.films, self.aside = open_films(data, films, HELD_OUT, seed)
        self.examples = [
            (number, question) for number in range(len(self.films)) for question in self.films.asked(number)
        ]
        self.watched: OrderedDict[int, Video] = OrderedDict()
        tell = tell or (lambda stage, done, total: None)
        for number in range(len(self.films)):  # ahead of the first step, so that progress says what takes time
            if not self._hold(number):
                break
            tell("watch films", number + 1, len(self.films))

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[int, Asked]:
        return self.examples[index]

    def loss(self, part: nn.Module, examples: Sequence[tuple[int, Asked]], progress: float) -> dict[str, Tensor]:
        answering, decided, total = [], list[list[Gates]](), []
        for number, asked in examples:
            said, gates, many = self.read(part, self._video(number), asked, progress)
            answering.append(said)
            if gates:
                decided.append(gates)
                total.append(many)
        losses = {"answer": torch.stack(answering).mean()}
        if decided:
            losses |= self.method.penalties(decided, total)
        with torch.no_grad():
            counts = [[point.count / many for point in gates] for gates, many in zip(decided, total, strict=True)]
            shares = {
                f"share_{point}": torch.stack(each).mean() for point, each in enumerate(zip(*counts, strict=True))
            }
        return {"loss": torch.stack(list(losses.values())).sum(), **losses, **shares}

    def read(self, part: nn.Module, video: Video, asked: Asked, progress: float) -> tuple[Tensor, list[Gates], int]:
        """The answer's cross-entropy, what was decided at each point, and the tokens that could have been dropped."""
        with torch.no_grad():
            ready = prepare(video, asked.question)
        gates: list[Gates] = []

        def decide(view: PrefillView) -> Tensor:
            with torch.autocast(self.host.device.type, enabled=False):  # scores are near one another: in full precision
                gates.append(self.method.gates(part, view, len(gates), progress))
            return gates[-1].gate

        answer = reply_ids(self.host, asked.answer)
        logits = read_masked(self.host, ready.prompt, ready.tokens, answer, frozenset(self.points), decide)
        return functional.cross_entropy(logits.float(), answer), gates, len(gates[0].gate) if gates else 0

    @torch.no_grad()
    def held_out(self, part: nn.Module) -> dict[str, float]:
        """Answers that are right word for word, and the shares that stay, when tokens are really removed."""
        method = copy.copy(self.method)
        method.bind(self.facts, part, self.host.device)
        pipe = Pipeline(self.host, self.pipe.recipe)
        pipe.stages.prefill = (method,)
        right, shares, last = [], [], []
        for number in range(len(self.aside)):
            video = self._watch(pipe, self.aside, number)
            for asked in self.aside.asked(number):
                answer = video.ask(asked.question)
                right.append(float(plain(answer.text) == plain(asked.answer)))
                rows = answer.trace.visual_rows
                shares.append(sum(rows[point + 1] for point in self.points) / len(self.points) / max(1, rows[0]))
                last.append(rows[-1] / max(1, rows[0]))
        count = max(1, len(right))
        return {
            "questions": float(len(right)),
            "right": sum(right) / count,
            "mean_share": sum(shares) / count,
            "last_share": sum(last) / count,
        }

    # ------------------------------------------------------------------ films

    def _watch(self, pipe: Pipeline, films: Films, number: int) -> Video:
        path = films.file(number)
        video = pipe.watch(path, frames=films.rule(number))
        if films.rule(number) is not None:  # a generated film is drawn again where it is needed again
            path.unlink(missing_ok=True)
            path.with_suffix(".json").unlink(missing_ok=True)
        return video

    def _video(self, number: int) -> Video:
        if number not in self.watched:
            video = self._watch(self.pipe, self.films, number)
            while self.watched and self._held() + _bytes(video) > HELD_BYTES:
                self.watched.popitem(last=False)
            self.watched[number] = video
        self.watched.move_to_end(number)
        return self.watched[number]

    def _hold(self, number: int) -> bool:
        """Watch a film ahead; False where no more are held."""
        before = len(self.watched)
        self._video(number)
        return len(self.watched) > before

    def _held(self) -> int:
        return sum(map(_bytes, self.watched.values()))


def _bytes(video: Video) -> int:
    features: Any = video.tokens.features
    return int(features.numel() * features.element_size())
