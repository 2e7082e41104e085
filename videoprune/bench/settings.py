"""What an accuracy table compares: recipes and single methods at budgets, next to dense, random, uniform and blind."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from videoprune.errors import UsageError
from videoprune.recipe import Recipe
from videoprune.registry import find, methods

BLIND = "blind"  # the question without the film
OWN = "own"
ACTING = ("scout", "encode", "merge", "prefill", "decode")
BASELINES = ("random", "uniform")


@dataclass(frozen=True)
class Setting:
    """One row of a table.

    Attributes:
        name: "demo", "demo@0.15", "merge.evs@0.1", "dense", "blind".
        recipe: what films are watched with, as data.
        blind: whether the film is left out of the prompt.
        budget: the share of `sampled` that is asked for, None for a recipe's own.
    """

    name: str
    recipe: dict[str, Any]
    blind: bool = False
    budget: float | None = None

    def digest(self) -> str:
        """Of all that changes an answer."""
        data = {key: value for key, value in self.recipe.items() if key not in ("name", "description")}
        return hashlib.sha256(json.dumps([data, self.blind], sort_keys=True).encode()).hexdigest()[:16]


def settings(
    recipes: Sequence[str], single: Sequence[str], budgets: Sequence[str], sampled: int, max_new_tokens: int
) -> list[Setting]:
    """The rows: dense first, then recipes, single methods, and blind.

    Args:
        recipes: names or files; "random" and "uniform" are merges that know nothing.
        single: methods as STAGE.NAME, or STAGE for all of a stage.
        budgets: shares as text, "own" for what a recipe says itself; single methods take the shares.
        sampled: tokens of a dense run, to turn a share of them into a count.

    Raises:
        UsageError: for a name or budget that does not exist.
    """
    shares = [_share(budget) for budget in budgets if budget != OWN]
    rows = [Setting("dense", _recipe("dense", max_new_tokens))]
    for name in recipes:
        if name == "dense":
            continue
        if name in BASELINES:
            rows += [_single("merge", name, share, max_new_tokens) for share in shares]
            continue
        if OWN in budgets:
            rows.append(Setting(name, _recipe(name, max_new_tokens)))
        rows += [_at(name, share, sampled, max_new_tokens) for share in shares]
    for wanted in single:
        stage, _, name = wanted.partition(".")
        names = [name] if name else [entry.name for entry in methods(stage)]
        if stage not in ACTING:
            raise UsageError(f"method {wanted!r}: its stage has no budget; allowed stages are {', '.join(ACTING)}")
        for each in names:
            find(stage, each)
            rows += [_single(stage, each, share, max_new_tokens) for share in shares]
    rows.append(Setting(BLIND, _recipe("dense", max_new_tokens), blind=True))
    unique = {row.name: row for row in rows}
    return list(unique.values())


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise UsageError(
            f"budget {text!r}: allowed are shares above 0 up to 1, and {OWN} for what a recipe says itself"
        )
    return share


def _recipe(name: str, max_new_tokens: int) -> dict[str, Any]:
    return {**Recipe.load(name).to_dict(), "max_new_tokens": max_new_tokens}


def _single(stage: str, name: str, share: float, max_new_tokens: int) -> Setting:
    """One method alone; the segment stage is there for those that read events."""
    recipe: dict[str, Any] = {stage: {"method": name, "keep": share}, "max_new_tokens": max_new_tokens}
    if find(stage, name).scope == "event" or name in ("metok", "prunevid"):
        recipe["segment"] = {"method": "metok"}
    if (stage, name) == ("encode", "ssm"):
        recipe["scout"] = {"method": "ssm"}  # whose tower it prunes
    if (stage, name) == ("merge", "geo3dpruner"):
        recipe[stage]["still_camera"] = True  # the generated films' hardly moves
    if (stage, name) == ("prefill", "vflowopt"):  # ranks by what its merge leaves, which merges nothing here
        recipe["merge"] = {"method": "vflowopt", "keep": 1, "at_most": 2**30}
    label = name if stage == "merge" and name in BASELINES else f"{stage}.{name}"
    return Setting(f"{label}@{share:g}", recipe, budget=share)


def _at(name: str, share: float, sampled: int, max_new_tokens: int) -> Setting:
    """A recipe at a share of `sampled`: its last merge leaves that count, or where it has none, its prefill stage that share."""
    recipe = _recipe(name, max_new_tokens)
    for stage, keep in (("merge", max(2, round(share * sampled))), ("prefill", share)):
        given = recipe.get(stage)
        if given:
            steps = list(given) if isinstance(given, list) else [given]
            steps[-1] = {**{k: v for k, v in steps[-1].items() if k != "at_most"}, "keep": keep}
            return Setting(f"{name}@{share:g}", {**recipe, stage: steps}, budget=share)
    raise UsageError(f"recipe {name}: it has neither a merge nor a prefill method that a budget could be given to")
