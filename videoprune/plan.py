"""What a run will cost, told from a config and a film's header alone: tokens, FLOPs, cache, peak memory, and whether it fits.

from videoprune.plan import Planner
plan = Planner.of("lmms-lab/LongVA-7B", "aim-paper").plan(frames=128)
print(plan.peak_bytes, plan.fits)
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from videoprune import demo
from videoprune.answer import Choice
from videoprune.errors import UsageError
from videoprune.models.load import check_attention, choose_device, choose_dtype
from videoprune.models.outline import Outline, build_outline
from videoprune.recipe import Recipe
from videoprune.rehearsal import WIDTH, Rehearsal, films_of, rehearse
from videoprune.report.flops import Cost, decoder_cost, kv_bytes, lm_head_cost
from videoprune.report.footprint import Footprint, footprint
from videoprune.report.memory import free_memory
from videoprune.stages import Stages
from videoprune.watching import CHUNK

Range = tuple[int, int]
WIDTHS = (4 * WIDTH, 8 * WIDTH)  # where features outweigh the books, so that a line through the two holds at full width
PICTURE = (720, 1280)  # height and width of a frame where there is no film
QUESTION_TOKENS, NEW_TOKENS = 64, 16


@dataclass(frozen=True, eq=False)
class Plan:
    """What one question on one film will cost. A range (low, high) is one number where the count is known beforehand.

    Attributes:
        model, family, recipe: whose run; overrides: what was changed in the recipe.
        device, dtype: where, and in what.
        frames: that are looked at.
        question_tokens, new_tokens: text of the prompt, template included, and length of the answer.
        films: what was rehearsed; more than one where counts depend on the film.
        tokens: `sampled`, `encoded`, `merged`, `last_layer`, as in a report.
        by_layer: (L,) visual tokens that enter each decoder layer.
        rows, context: of the longest prompt, and what the model was trained for.
        flops: by stage: encode, prefill, decode, lm_head; of the costliest rehearsal, the methods' own scoring left out.
        dense: the same run with nothing pruned.
        kv_bytes, dense_kv_bytes: cache when the answer is complete.
        weight_bytes: of the model in `dtype`; stored_bytes on disk, None where only a config is at hand.
        memory: bytes beside the weights by phase; the peak is the largest.
        free_bytes: free on the device, or as given; None where the system does not tell.
        choices: automatic choices.
    """

    model: str
    family: str
    recipe: str
    overrides: Sequence[str]
    device: str
    dtype: str
    frames: int
    question_tokens: int
    new_tokens: int
    films: Sequence[str]
    tokens: Mapping[str, Range]
    by_layer: Sequence[Range]
    rows: int
    context: int
    flops: Mapping[str, Cost]
    dense: Mapping[str, Cost]
    kv_bytes: Range
    dense_kv_bytes: int
    weight_bytes: int
    stored_bytes: int | None
    memory: Footprint
    free_bytes: int | None
    choices: Sequence[Choice] = field(default_factory=tuple)

    @property
    def peak_bytes(self) -> int:
        """Weights and the largest phase together."""
        return self.weight_bytes + self.memory.peak

    @property
    def in_context(self) -> bool:
        return self.rows <= self.context

    @property
    def fits(self) -> bool | None:
        """Whether the device has the memory; None where its free memory is unknown."""
        return None if self.free_bytes is None else self.peak_bytes <= self.free_bytes

    @property
    def good(self) -> bool:
        """Whether it can run: inside the trained context, and not known to exceed the memory."""
        return self.in_context and self.fits is not False

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        flat = (
            "model",
            "family",
            "recipe",
            "device",
            "dtype",
            "frames",
            "question_tokens",
            "new_tokens",
            "rows",
            "context",
        )
        return {
            **{name: getattr(self, name) for name in flat},
            "overrides": list(self.overrides),
            "in_context": self.in_context,
            "rehearsed": list(self.films),
            "tokens": {name: list(span) for name, span in self.tokens.items()},
            "by_layer": [list(span) for span in self.by_layer],
            "flops": {name: cost.to_dict() for name, cost in _with_total(self.flops).items()},
            "dense_flops": {name: cost.to_dict() for name, cost in _with_total(self.dense).items()},
            "kv": {"bytes": list(self.kv_bytes), "dense_bytes": self.dense_kv_bytes},
            "memory": {
                "weights": self.weight_bytes,
                "stored_weights": self.stored_bytes,
                "phases": dict(self.memory.phases),
                "peak_above_weights": self.memory.peak,
                "peak": self.peak_bytes,
                "free": self.free_bytes,
                "fits": self.fits,
            },
            "choices": [dict(choice) for choice in self.choices],
        }


def _with_total(costs: Mapping[str, Cost]) -> dict[str, Cost]:
    return {**costs, "total": sum(costs.values(), Cost())}


@dataclass(frozen=True, eq=False)
class Planner:
    """A model's outline under a recipe; `plan` any number of films with it.

    Attributes:
        outline: the model without its weights.
        recipe: what is done.
        device, dtype: where, and in what.
        free: bytes that may be used, None to look at the device.
        choices: automatic choices so far.
    """

    outline: Outline
    recipe: Recipe
    device: torch.device
    dtype: torch.dtype
    free: int | None
    choices: Sequence[Choice]

    @classmethod
    def of(
        cls,
        model: str | os.PathLike[str] | None = None,
        recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe | None = None,
        *,
        overrides: Sequence[str] = (),
        device: str = "auto",
        dtype: str = "auto",
        attn: str = "sdpa",
        memory: int | None = None,
        revision: str | None = None,
    ) -> Planner:
        """Find the model's shape and check the recipe against it; arguments as for `Pipeline.load`.

        Args:
            memory: bytes of a device that is not here: dtype "auto" is then bfloat16, and `device` only a label.

        Raises:
            UsageError, EnvironmentProblem: as `Pipeline.load`, but no weights are looked for.
        """
        named = None if recipe is None else Recipe.load(recipe, overrides)
        where, why = choose_device(device if memory is None else "cpu")
        if memory is not None and dtype == "auto":
            kind, kind_why = choose_dtype("bfloat16", where)
            kind_why = {**kind_why, "reason": "--memory is of another machine; accelerators compute it natively"}
        else:
            kind, kind_why = choose_dtype(dtype, where)
        if memory is not None:
            why = {"name": "device", "value": "another", "reason": "--memory says what it has"}
        check_attention(attn)
        name = os.fspath(demo.weights_path() if model is None else model)
        outline = build_outline(name, dtype=kind, attn=attn, revision=revision)
        host = outline.host
        reason = "asked for" if named is not None else f"the default for {host.family}"
        named = named or Recipe.load(host.default_recipe, overrides)
        Stages.of(named).check(host, outline=True)
        choices = [
            {"name": "family", "value": host.family, "reason": outline.reason},
            {"name": "shape", "value": _parameters(outline.parameters), "reason": outline.source},
            why,
            kind_why,
            {"name": "recipe", "value": named.name, "reason": reason},
        ]
        return cls(outline, named, where, kind, memory, choices)

    @property
    def model_name(self) -> str:
        name = self.outline.host.name
        return "demo" if name == str(demo.weights_path()) else name

    def with_overrides(self, overrides: Sequence[str]) -> Planner:
        """The same with options of the recipe changed."""
        return dataclasses.replace(self, recipe=Recipe.load(self.recipe, overrides))

    def plan(
        self,
        frames: int,
        *,
        picture: tuple[int, int] = PICTURE,
        question_tokens: int = QUESTION_TOKENS,
        new_tokens: int = NEW_TOKENS,
    ) -> Plan:
        """Plan one question on a film.

        Args:
            frames: that are looked at.
            picture: (height, width) of a decoded frame.
            question_tokens: text of the prompt, template included.
            new_tokens: length of the answer.

        Raises:
            UsageError: a number below its least, or a recipe that cannot work on such a film.
        """
        for name, value, least in (
            ("frames", frames, 1),
            ("question-tokens", question_tokens, 0),
            ("new-tokens", new_tokens, 1),
        ):
            if value < least:
                raise UsageError(f"--{name} {value}: allowed is a whole number of at least {least}")
        host, stages = self.outline.host, Stages.of(self.recipe)
        windows = [method.window for method in stages.encode] + ([stages.scout.window] if stages.scout else [])
        window = math.lcm(host.pair, *(host.pair * each for each in windows))
        chunk = -(-CHUNK // window) * window
        films = films_of(stages)

        def rehearsed(film: str, **changed: Any) -> Rehearsal:
            return rehearse(
                host, stages, frames, text=question_tokens, new_tokens=new_tokens, chunk=chunk,
                picture=picture, at_most=self.recipe.watch.at_most, film=film, **changed,
            )  # fmt: skip

        runs = {film: rehearsed(film) for film in films}
        on_cpu = self.device.type == "cpu" and self.free is None
        prints = {}
        for film, run in runs.items():
            narrow, wide = (rehearsed(film, width=width, answer=False) for width in WIDTHS)
            prints[film] = footprint(
                host, run, (narrow, wide), WIDTHS, frames=frames, chunk=chunk, picture=picture, on_cpu=on_cpu
            )
        costs = [self._costs(run) for run in runs.values()]
        number = torch.finfo(self.dtype).bits // 8
        weights = self.outline.weights
        caches = [each.kv for each in prints.values()]
        depth, dense_entries = host.decoder_shape.layers, runs[films[0]].dense_rows + new_tokens - 1
        free = self.free if self.free is not None else free_memory(self.device)
        return Plan(
            model=self.model_name,
            family=host.family,
            recipe=self.recipe.name,
            overrides=self.recipe.overrides,
            device=str(self.device) if self.free is None else "given",
            dtype=str(self.dtype).removeprefix("torch."),
            frames=frames,
            question_tokens=question_tokens,
            new_tokens=new_tokens,
            films=films,
            tokens={
                name: _span([getattr(run, name) for run in runs.values()])
                for name in ("sampled", "encoded", "merged", "last_layer")
            },
            by_layer=[_span(counts) for counts in zip(*(run.by_layer for run in runs.values()), strict=True)],
            rows=max(run.rows for run in runs.values()),
            context=host.context,
            flops=max(costs, key=lambda each: sum(each.values(), Cost()).total),
            dense=self._dense(runs[films[0]], new_tokens),
            kv_bytes=_span(caches),
            dense_kv_bytes=kv_bytes([dense_entries] * depth, host.decoder_shape, number),
            weight_bytes=self.outline.weight_bytes(self.dtype),
            stored_bytes=None if weights is None else weights.stored,
            memory=max(prints.values(), key=lambda each: each.peak),
            free_bytes=free,
            choices=self.choices,
        )

    def _costs(self, run: Rehearsal) -> dict[str, Cost]:
        host = self.outline.host
        calls = [decoder_cost(host.decoder_shape, q, k) for q, k in zip(run.queries, run.keys, strict=True)]
        return {
            **({"scout": run.scout} if run.scout.total else {}),
            "encode": run.encode,
            "prefill": calls[0],
            "decode": sum(calls[1:], Cost()),
            "lm_head": lm_head_cost(len(calls), host.decoder_shape.width, host.vocabulary),
        }

    def _dense(self, run: Rehearsal, new_tokens: int) -> dict[str, Cost]:
        host, rows = self.outline.host, run.dense_rows
        shape, depth = host.decoder_shape, host.decoder_shape.layers
        steps = [decoder_cost(shape, [1] * depth, [rows + step] * depth) for step in range(1, new_tokens)]
        return {
            "encode": host.dense_encode_cost(run.steps, run.grid),
            "prefill": decoder_cost(shape, [rows] * depth, [rows] * depth),
            "decode": sum(steps, Cost()),
            "lm_head": lm_head_cost(new_tokens, shape.width, host.vocabulary),
        }


def _span(values: Sequence[int]) -> Range:
    return min(values), max(values)


def _parameters(count: int) -> str:
    return f"{count / 1e9:.2f} G parameters" if count >= 1e9 else f"{count / 1e6:.1f} M parameters"
