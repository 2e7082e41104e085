"""Recipes: what a pipeline is made of, as data.

A recipe is a YAML file with a description, a frame rule and, for each of the five stages, one method or a list of them; a stage
that is left out does nothing. Everything is checked and nothing is guessed: keys, types and method names when it is read, the
methods' own options when it is built. Reading and listing recipes imports neither torch nor any method.

    frames: {fps: 1, max: 256}
    merge: {method: aim, rounds: 2, at_most: 4096}
    prefill: [{method: aim, first: 14, last: 22}]
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from videoprune.errors import UsageError
from videoprune.recipe_source import KEYS, override, read
from videoprune.registry import ACTING, STAGES, find, shipped, unknown

if TYPE_CHECKING:
    from videoprune.video import FrameRule

Rule = TypeVar("Rule")


@dataclass(frozen=True)
class Step:
    """One method of a stage with the options that the recipe gives; all others are the method's defaults."""

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The mapping that the recipe file holds."""
        return {"method": self.method, **{key: _listed(value) for key, value in self.options.items()}}

    def build(self, stage: str) -> Any:
        """The method itself.

        Raises:
            UsageError: for an option that the method does not have or refuses, as `stage.method.option: …`.
        """
        where = f"{stage}.{self.method}"
        entry = find(stage, self.method)
        fields = entry.fields()
        for key in self.options:
            if key not in fields:
                raise UsageError(f"{where}: option {unknown(key, fields)}", stage=stage)
        _check_types(where, entry.load(), self.options, stage)
        try:
            return entry.load()(**self.options)
        except (UsageError, TypeError, ValueError) as error:
            # the methods' own messages start with the option's name: "keep: 1.5 is given; allowed …"
            joint = "." if str(error).partition(":")[0] in fields else ": "
            raise UsageError(f"{where}{joint}{error}", stage=stage) from error


@dataclass(frozen=True)
class WatchRule:
    """How a film is held while it is watched.

    Attributes:
        at_most: visual tokens stored at any time; beyond it the merge methods' own rule is applied to what is there.
            None stores all that the encode stage gives.
    """

    at_most: int | None = None

    def __post_init__(self) -> None:
        if self.at_most is not None and self.at_most < 1:
            raise UsageError(f"at_most: {self.at_most} is given; allowed is a whole number of at least 1")


@dataclass(frozen=True)
class Recipe:
    """What a pipeline is made of.

    Attributes:
        name, description: of the shipped recipe or the file; "custom" for a mapping.
        frames: which frames of a film are looked at.
        watch: how many tokens are held while they come.
        scout, segment, encode, merge, prefill, decode: the methods of each stage, applied in order.
        relevance: what scores frames by the question, for the methods that ask.
        max_new_tokens: longest answer.
        overrides: what was changed after reading, for reports.
    """

    name: str = "custom"
    description: str = ""
    frames: FrameRule = field(default_factory=lambda: _frame_rule({}))
    watch: WatchRule = WatchRule()
    scout: tuple[Step, ...] = ()
    segment: tuple[Step, ...] = ()
    encode: tuple[Step, ...] = ()
    merge: tuple[Step, ...] = ()
    prefill: tuple[Step, ...] = ()
    decode: tuple[Step, ...] = ()
    relevance: Step = Step("embedding")
    max_new_tokens: int = 64
    overrides: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def load(cls, source: str | os.PathLike[str] | Mapping[str, Any] | Recipe, overrides: Sequence[str] = ()) -> Recipe:
        """Read and check a recipe.

        Args:
            source: the name of a shipped recipe, the path of a YAML file, the same as a mapping, or a recipe.
            overrides: changes like "prefill.keep=0.25", "merge.0.rounds=1", "decode.method=none" or "frames.fps=2", applied
                in order; the value is YAML. A new method keeps only `keep` and `at_most` of the old one's options.

        Raises:
            UsageError: names the recipe, the key, and the nearest that exists.
        """
        name, before = "custom", tuple[str, ...]()
        if isinstance(source, Recipe):
            name, before, data = source.name, source.overrides, source.to_dict()
        elif isinstance(source, Mapping):
            data = dict(source)
        else:
            path = _path(source)
            name, data = path.stem, read(path)
        try:
            for change in overrides:
                override(data, change)
            recipe = cls._checked({"name": name, **data})
        except UsageError as error:
            label = source if isinstance(source, (str, os.PathLike)) else name
            raise UsageError(f"recipe {label}: {error}", stage=error.stage) from None
        return dataclasses.replace(recipe, overrides=(*before, *overrides))

    @classmethod
    def _checked(cls, data: Mapping[str, Any]) -> Recipe:
        for key in data:
            if key not in KEYS:
                raise UsageError(f"key {unknown(str(key), KEYS)}")
        made: dict[str, Any] = {}
        for key in ("name", "description"):
            if not isinstance(data.get(key, ""), str):
                raise UsageError(f"{key}: {data[key]!r} is given; allowed is text")
            made[key] = data.get(key, "").strip()
        made["frames"] = _frame_rule(data.get("frames"))
        made["watch"] = _rule("watch", WatchRule, data.get("watch"), "{at_most: 8192}")
        for stage in STAGES:
            made[stage] = _steps(stage, data.get(stage))
        if len(made["relevance"]) > 1:
            raise UsageError("relevance: a list is given; allowed is one method")
        made["relevance"] = made["relevance"][0] if made["relevance"] else Step("embedding")
        longest = data.get("max_new_tokens", 64)
        if isinstance(longest, bool) or not isinstance(longest, int) or longest < 1:
            raise UsageError(f"max_new_tokens: {longest!r} is given; allowed is a whole number of at least 1")
        return cls(**made, max_new_tokens=longest)

    def build(self) -> dict[str, tuple[Any, ...]]:
        """The methods of each stage, relevance included; imports torch.

        Raises:
            UsageError: for an option that a method does not have or refuses.
        """
        try:
            return {stage: tuple(step.build(stage) for step in self.steps(stage)) for stage in STAGES}
        except UsageError as error:
            raise UsageError(f"recipe {self.name}: {error}", stage=error.stage) from error

    def steps(self, stage: str) -> tuple[Step, ...]:
        """The methods of `stage` by name, as the recipe lists them."""
        return (self.relevance,) if stage == "relevance" else tuple(getattr(self, stage))

    def stages(self) -> dict[str, list[str]]:
        """The names of the methods of every stage that has one."""
        return {stage: [step.method for step in self.steps(stage)] for stage in ACTING if self.steps(stage)}

    def to_dict(self) -> dict[str, Any]:
        """The canonical form: `Recipe.load` reads it back to an equal recipe."""
        data: dict[str, Any] = {"name": self.name, "description": self.description, "frames": _given(self.frames)}
        if watch := _given(self.watch):
            data["watch"] = watch
        for stage in STAGES:
            if steps := [step.to_dict() for step in self.steps(stage)]:
                data[stage] = steps[0] if len(steps) == 1 else steps
        return {**data, "max_new_tokens": self.max_new_tokens}

    def to_yaml(self) -> str:
        """The canonical form as a recipe file."""
        return str(
            yaml.safe_dump(self.to_dict(), sort_keys=False, default_flow_style=None, allow_unicode=True, width=120)
        )

    def digest(self) -> str:
        """SHA-256 of what the recipe does; its name and description have no part in it."""
        data = {key: value for key, value in self.to_dict().items() if key not in ("name", "description")}
        return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


# ----------------------------------------------------------------------------------------------------------- finding


def recipe_names() -> list[str]:
    """The shipped recipes."""
    return sorted(path.stem for path in shipped("configs", "configs").glob("*.yaml"))


def recipe_text(source: str | os.PathLike[str]) -> str:
    """A recipe file, comments and all."""
    return _path(source).read_text(encoding="utf-8-sig")


def _path(source: str | os.PathLike[str]) -> Path:
    """The file of a recipe that was given by name or by path."""
    given = os.fspath(source)
    if isinstance(source, str) and given in recipe_names():
        return shipped("configs", "configs") / f"{given}.yaml"
    path = Path(given)
    looks_like_path = not isinstance(source, str) or path.suffix in (".yaml", ".yml") or len(path.parts) > 1
    if path.is_file():
        return path
    if looks_like_path:
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UsageError(f"recipe file {given!r} {what}; give a YAML file or one of: {', '.join(recipe_names())}")
    raise UsageError(f"recipe: {unknown(given, recipe_names())}, or the path of a YAML file")


# ----------------------------------------------------------------------------------------------------------- reading


def _frame_rule(data: Any) -> FrameRule:
    from videoprune.video import FrameRule

    try:
        return _rule("frames", FrameRule, data, "{fps: 1, max: 256}")
    except UsageError as error:
        raise UsageError(str(error).replace("frames: frame rule: ", "frames: ")) from None


def _rule(key: str, kind: type[Rule], data: Any, example: str) -> Rule:
    """A frozen dataclass from the mapping under `key`."""
    if data is None:
        return kind()
    if not isinstance(data, Mapping):
        raise UsageError(f"{key}: {data!r} is given; allowed is a mapping like {example}")
    fields = [item.name for item in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for name in data:
        if name not in fields:
            raise UsageError(f"{key}: key {unknown(str(name), fields)}")
    _check_types(key, kind, data, key)
    try:
        return kind(**data)
    except (UsageError, TypeError, ValueError) as error:
        raise UsageError(f"{key}: {error}") from None


def _given(rule: Any) -> dict[str, Any]:
    """The fields of a rule that are given."""
    return {
        item.name: getattr(rule, item.name) for item in dataclasses.fields(rule) if getattr(rule, item.name) is not None
    }


def _steps(stage: str, data: Any) -> tuple[Step, ...]:
    """The methods of one stage; `none` and nothing are the same."""
    steps = []
    for item in data if isinstance(data, (list, tuple)) else [data]:
        if item is None or item == "none":
            continue
        if not isinstance(item, Mapping):
            raise UsageError(
                f"{stage}: {item!r} is given; allowed is a mapping like {{method: NAME}}, or a list of them"
            )
        method = item.get("method", False)
        if not isinstance(method, str | None):
            raise UsageError(
                f"{stage}.method: {item.get('method', 'nothing')!r} is given; allowed is the name of a method"
            )
        if method is None or method == "none":
            continue
        find(stage, method)
        options = {key: _plain(f"{stage}.{method}.{key}", value) for key, value in item.items() if key != "method"}
        steps.append(Step(method, options))
    return tuple(steps)


def _plain(where: str, value: Any) -> Any:
    """An option as methods take it: text, numbers, and tuples of them."""
    if isinstance(value, (list, tuple)):
        return tuple(_plain(where, item) for item in value)
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{where}: {value!r} is given; allowed are finite numbers")
    if value is not None and not isinstance(value, (str, int, float)):
        raise UsageError(
            f"{where}: {type(value).__name__} {value!r} is given; allowed are text, numbers and lists of them"
        )
    return value


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, tuple) else value


# ------------------------------------------------------------------------------------------------------------- types


def _check_types(where: str, owner: type, options: Mapping[str, Any], stage: str) -> None:
    """Refuse options whose type is not the annotated one; what an annotation can't say is the class's own to check."""
    try:
        hints = get_type_hints(owner)
    except NameError:  # names that exist for type checkers only
        return
    texts = {
        item.name: item.type if isinstance(item.type, str) else str(item.type) for item in dataclasses.fields(owner)
    }
    for key, value in options.items():
        if not _fits(value, hints[key]):
            allowed = texts[key].replace("tuple[", "list[").replace("Sequence[", "list[")
            raise UsageError(f"{where}.{key}: {_listed(value)!r} is given; allowed is {allowed}", stage=stage)


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in inner)
    if origin is Literal:
        return any(value == part and type(value) is type(part) for part in inner)
    if origin in (tuple, Sequence):
        if not isinstance(value, tuple):
            return False
        if origin is Sequence or inner[1:] == (...,):
            return all(_fits(item, inner[0]) for item in value)
        return len(value) == len(inner) and all(map(_fits, value, inner))
    if hint in (int, float):
        return isinstance(value, (int, float) if hint is float else int) and not isinstance(value, bool)
    return hint not in (bool, str, types.NoneType) or isinstance(value, hint)
