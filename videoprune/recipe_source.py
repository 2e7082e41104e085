"""The text of recipes: YAML that hides nothing, and "key.key=value" changes to it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from videoprune.errors import UsageError
from videoprune.registry import STAGES, unknown

KEYS = ("name", "description", "frames", "watch", *STAGES, "max_new_tokens")
BUDGET = ("keep", "at_most")  # options that every method knows: they stay when an override changes the method
LIMIT = 1 << 20  # bytes of a recipe file


class _Loader(yaml.SafeLoader):
    """safe_load, but a key that is given twice and an alias are refused: both hide what a recipe says."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.YAMLError(f"key {key.value!r} is given twice (line {key.start_mark.line + 1}); keep one")
            if isinstance(key.value, str):
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"an alias (*{self.peek_event().anchor}) is used; write the value out")  # type: ignore[no-untyped-call]
        return super().compose_node(parent, index)


# YAML 1.1 reads 1e-3 as text because it lacks a point; whoever writes it means the number
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parse(text: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise UsageError(f"no valid YAML: {getattr(error, 'problem', None) or error}{place}") from None


def read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(LIMIT + 1)
        if len(raw) > LIMIT:
            raise UsageError(f"more than {LIMIT} bytes; a recipe is a short YAML file")
        data = parse(raw.decode("utf-8-sig"))
    except OSError as error:
        raise UsageError(f"recipe {path}: can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"recipe {path}: no text; a recipe is a YAML file in UTF-8") from None
    except UsageError as error:
        raise UsageError(f"recipe {path}: {error}") from None
    if not isinstance(data, dict):
        raise UsageError(f"recipe {path}: holds no mapping; allowed keys: {', '.join(KEYS)}")
    return data


def override(data: dict[str, Any], text: str) -> None:
    """Apply one "key.key=value" to the raw recipe."""
    path, equals, raw = text.partition("=")
    keys = [key.strip() for key in path.split(".")]
    try:
        if not equals or not all(keys):
            raise UsageError("allowed is KEY=VALUE, like prefill.keep=0.25")
        value = parse(raw)
        if keys[0] not in KEYS:
            raise UsageError(f"key {unknown(keys[0], KEYS)}")
        if len(keys) == 1:
            data[keys[0]] = value
        elif keys[0] in ("frames", "watch") and len(keys) == 2:
            rule = dict(data[keys[0]]) if isinstance(data.get(keys[0]), Mapping) else {}
            rule.pop(
                {"fps": "frames", "frames": "fps"}.get(keys[1], ""), None
            )  # two ways to say one thing: the new one stands
            data[keys[0]] = {**rule, keys[1]: value}
        elif keys[0] in STAGES:
            data[keys[0]] = _override_stage(keys[0], data.get(keys[0]), keys[1:], value)
        else:
            raise UsageError(f"{keys[0]} has no parts; give {keys[0]}=VALUE")
    except UsageError as error:
        raise UsageError(f"override {text!r}: {error}", stage=error.stage) from None


def _override_stage(stage: str, data: Any, keys: list[str], value: Any) -> list[Any]:
    """The methods of one stage with one option changed. `none` keeps its place in the list, so that later indices hold."""
    items = [
        dict(item) if isinstance(item, Mapping) else item
        for item in (data if isinstance(data, (list, tuple)) else [data])
    ]
    items = [] if items == [None] else items
    indexed = keys[0].isdecimal()
    index = int(keys.pop(0)) if indexed else 0
    if len(keys) != 1:
        raise UsageError(f"allowed is {stage}.OPTION=VALUE or {stage}.INDEX.OPTION=VALUE")
    if not indexed and len(items) > 1:
        raise UsageError(
            f"{stage} has {len(items)} methods; say which: {stage}.0.{keys[0]} … {stage}.{len(items) - 1}.{keys[0]}"
        )
    if keys == ["method"] and index == len(items):
        return [*items, {"method": value}]
    if index >= len(items) or not isinstance(items[index], Mapping):
        has = f"has {len(items)} methods, counted from 0" if items else "has no method here"
        raise UsageError(
            f"{stage} {has}; set {stage}.{len(items) if items else ''}{'.' if items else ''}method=NAME first"
        )
    item = items[index]
    if keys == ["method"] and value != item.get("method"):
        items[index] = {"method": value, **{key: item[key] for key in BUDGET if key in item}}
    else:
        item[keys[0]] = value
    return items
