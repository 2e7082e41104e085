"""What can be searched in a recipe: the numeric options of its methods, within declared bounds or given ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from videoprune.errors import UsageError
from videoprune.recipe import Recipe
from videoprune.registry import STAGES, find, unknown


@dataclass(frozen=True)
class Dial:
    """One number of a recipe and the bounds that it is searched within.

    Attributes:
        path: "merge.keep", "merge.1.keep" where the stage has several methods, "prefill.ratios.0" for a list's entry.
        low, high: bounds, both included.
        whole: whether only whole numbers are allowed.
        value: what the recipe says, moved into the bounds.
    """

    path: str
    low: float
    high: float
    whole: bool
    value: float

    def suggest(self, trial: Any) -> float:
        """A value from an optuna trial."""
        if self.whole:
            return int(trial.suggest_int(self.path, int(self.low), int(self.high)))
        return float(trial.suggest_float(self.path, self.low, self.high))

    def __str__(self) -> str:
        return f"{self.path}={self.low:g}:{self.high:g}"


def dials(recipe: Recipe, given: Sequence[str] = ()) -> list[Dial]:
    """What to search in a recipe.

    Args:
        recipe: whose methods declare bounds in `search`; a list's entries are searched one by one,
            and an option that is None in the recipe is left alone.
        given: "stage.option=low:high"; where any is given, those alone are searched.

    Raises:
        UsageError: an option that does not exist or is no number, bounds that are none, or nothing to search.
    """
    known = _numbers(recipe)
    if given:
        bounds = dict(_read(text) for text in given)
        for path in bounds:
            if path not in known:
                raise UsageError(f"search: {unknown(path, known)}")
        return [_dial(path, *bounds[path], known[path][0]) for path in bounds]
    found = [_dial(path, *declared, value) for path, (value, declared) in known.items() if declared is not None]
    if not found:
        raise UsageError(
            f"recipe {recipe.name}: none of its methods declares what to search; give --search for one of: "
            + (", ".join(known) or "no numbers at all")
        )
    return found


def settings_of(recipe: Recipe, values: Mapping[str, float]) -> Recipe:
    """The recipe with some of its numbers changed.

    Raises:
        UsageError: values that a method refuses.
    """
    data = recipe.to_dict()
    for path, value in values.items():
        stage, *rest = path.split(".")
        steps = data[stage] if isinstance(data[stage], list) else [data[stage]]
        step = steps[int(rest.pop(0)) if rest[0].isdecimal() else 0]
        name = rest[0]
        if len(rest) == 1:
            step[name] = value
        else:
            entries = list(step.get(name) or _default(stage, step["method"], name))
            entries[int(rest[1])] = value
            step[name] = entries
    changed = Recipe.load(data)
    changed.build()
    return changed


def _default(stage: str, method: str, name: str) -> Any:
    return getattr(find(stage, method).load()(), name)


def _numbers(recipe: Recipe) -> dict[str, tuple[float, tuple[float, float] | None]]:
    """Every number of the recipe's methods: path -> its value and its declared bounds, None without."""
    numbers: dict[str, tuple[float, tuple[float, float] | None]] = {}
    for stage in STAGES[:5]:
        steps = recipe.steps(stage)
        for index, step in enumerate(steps):
            method = step.build(stage)
            declared = {name: (low, high) for name, low, high in getattr(method, "search", ())}
            where = stage if len(steps) == 1 else f"{stage}.{index}"
            for field in dataclasses.fields(method):
                value, bounds = getattr(method, field.name), declared.get(field.name)
                entries = {f".{number}": entry for number, entry in enumerate(value)} if _listed(value) else {"": value}
                for suffix, entry in entries.items():
                    if isinstance(entry, (int, float)) and not isinstance(entry, bool):
                        share = field.name != "keep" or isinstance(entry, float)  # a count has no declared bounds
                        numbers[f"{where}.{field.name}{suffix}"] = entry, bounds if share else None
    return numbers


def _listed(value: Any) -> bool:
    return isinstance(value, (tuple, list))


def _dial(path: str, low: float, high: float, value: float) -> Dial:
    whole = isinstance(value, int)
    if whole and (low != int(low) or high != int(high)):
        raise UsageError(f"search: {path}={low:g}:{high:g} is given; allowed are whole bounds, as {path} is {value}")
    return Dial(path, low, high, whole, min(max(value, type(value)(low)), type(value)(high)))


def _read(text: str) -> tuple[str, tuple[float, float]]:
    path, equals, bounds = text.partition("=")
    low, colon, high = bounds.partition(":")
    try:
        pair = float(low), float(high)
    except ValueError:
        colon = ""
        pair = 0.0, 0.0
    if not equals or not colon or not pair[0] < pair[1] < float("inf"):
        raise UsageError(f"search: {text!r} is given; allowed is STAGE.OPTION=LOW:HIGH, as in merge.keep=0.1:0.6")
    return path.strip(), pair
