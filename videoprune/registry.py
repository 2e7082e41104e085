"""Which methods exist, by stage and name; found without importing any of them.

A file `videoprune/STAGE/NAME.py` that holds one class with a literal `paper = "…"` is the method NAME of that stage. The facts
that `videoprune methods` lists are read from its source with `ast`, so listing never imports torch. Other packages add methods
through the entry point group `videoprune.methods`: the entry is called `stage.name` and points to "module:Class". Recipes name
methods by these names only; no recipe can name an import path.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib
import importlib.metadata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from videoprune.errors import UsageError

STAGES = ("segment", "encode", "merge", "prefill", "decode", "relevance", "scout")
ACTING = ("scout", *STAGES[:5])  # those that a recipe may leave out
GROUP = "videoprune.methods"

FACTS = ("scope", "needs_question", "fixed_count", "attention")


@dataclass(frozen=True)
class Entry:
    """One method: its facts, and where its class is.

    Attributes:
        stage, name: what recipes call it.
        paper, scope, needs_question, fixed_count, attention: as in `videoprune.method.Method`.
        target: "module:Class".
        external: whether another package brought it.
    """

    stage: str
    name: str
    paper: str
    scope: str
    needs_question: bool
    fixed_count: bool
    attention: str
    target: str
    external: bool = False

    def facts(self) -> dict[str, Any]:
        """What `videoprune methods --json` prints."""
        keys = ("stage", "name", "paper", "scope", "needs_question", "fixed_count", "attention")
        return {key: getattr(self, key) for key in keys}

    def load(self) -> type:
        """Import the class."""
        return _import(self.target)

    def fields(self) -> dict[str, dataclasses.Field[Any]]:
        """The hyper-parameters by name; imports the class."""
        return {field.name: field for field in dataclasses.fields(self.load()) if field.init}


def methods(stage: str | None = None) -> list[Entry]:
    """All methods, or those of one stage, in the order of the stages and by name."""
    if stage is not None and stage not in STAGES:
        raise UsageError(f"stage: {unknown(stage, STAGES)}")
    return [entry for entry in discover()[0] if stage in (None, entry.stage)]


def find(stage: str, name: str) -> Entry:
    """The method `name` of `stage`.

    Raises:
        UsageError: where there is none; names the nearest.
    """
    for entry in _built_in(stage) if stage in STAGES else ():
        if entry.name == name:
            return entry  # before discover(), which looks through every installed package
    entries, problems = discover()
    known = {entry.name: entry for entry in entries if entry.stage == stage}
    if name in known:
        return known[name]
    broken = [problem for problem in problems if problem.startswith(f"{stage}.{name}:")]
    if broken:
        raise UsageError(f"method {broken[0]}")
    elsewhere = [entry.stage for entry in entries if entry.name == name]
    hint = f" ({name} is a method of {' and '.join(elsewhere)})" if elsewhere else ""
    raise UsageError(f"{stage}.method: {unknown(name, [*known, 'none'])}{hint}")


def discover() -> tuple[list[Entry], list[str]]:
    """All methods, and one line for each external one that could not be read."""
    entries = [entry for stage in STAGES for entry in _built_in(stage)]
    taken = {(entry.stage, entry.name) for entry in entries}
    problems: list[str] = []
    for point in importlib.metadata.entry_points(group=GROUP):
        try:
            entry = _external(point)
        except Exception as error:  # another package's code: whatever it raises must not hide the other methods
            problems.append(f"{point.name}: {point.value} can't be read: {type(error).__name__}: {error}")
            continue
        if (entry.stage, entry.name) in taken:
            problems.append(f"{point.name}: {point.value} is left out, the name is taken")
            continue
        taken.add((entry.stage, entry.name))
        entries.append(entry)
    return sorted(entries, key=lambda entry: (STAGES.index(entry.stage), entry.name)), problems


def shipped(in_wheel: str, in_checkout: str) -> Path:
    """A file or folder that comes with the package: a wheel holds it inside videoprune/, a checkout beside it."""
    package = Path(__file__).parent
    inside = package / in_wheel
    return inside if inside.exists() else package.parent / in_checkout


def unknown(given: str, allowed: Iterable[str]) -> str:
    """The sentence for a name that does not exist: what was given, the nearest, what is allowed."""
    allowed = list(allowed)
    near = difflib.get_close_matches(given, allowed, n=1, cutoff=0.5)
    guess = f"; did you mean {near[0]!r}?" if near else ";"
    return f"{given!r} is given{guess} allowed: {', '.join(allowed) or 'nothing'}"


@cache
def _built_in(stage: str) -> tuple[Entry, ...]:
    """The methods of one stage folder, read from their sources."""
    found = []
    for path in sorted((Path(__file__).parent / stage).glob("*.py")):
        source = path.read_text(encoding="utf-8")
        if path.stem.startswith("_") or "paper" not in source:
            continue
        classes = _classes(source)
        named = [name for name, node in classes.items() if "paper" in _own_facts(node)]
        if len(named) > 1:
            raise ValueError(f"{path} holds {len(named)} classes with a `paper`; allowed is one method a file")
        for name in named:
            target = f"videoprune.{stage}.{path.stem}:{name}"
            found.append(Entry(stage=stage, name=path.stem, target=target, **_facts(name, {**_protocol(), **classes})))
    return tuple(found)


@cache
def _protocol() -> dict[str, ast.ClassDef]:
    """The base classes of all methods."""
    files = (Path(__file__).with_name(name) for name in ("method.py", "layer_method.py"))
    return {name: node for file in files for name, node in _classes(file.read_text(encoding="utf-8")).items()}


def _classes(source: str) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}


def _facts(name: str, classes: dict[str, ast.ClassDef]) -> dict[str, Any]:
    """The facts of a class, its bases' where it does not give its own."""
    if name not in classes:
        return {}
    facts: dict[str, Any] = {}
    for base in reversed(classes[name].bases):
        if isinstance(base, ast.Name):
            facts |= _facts(base.id, classes)
    return facts | _own_facts(classes[name])


def _own_facts(node: ast.ClassDef) -> dict[str, Any]:
    """The facts that the body of a class gives as literals."""
    facts: dict[str, Any] = {}
    for statement in node.body:
        if isinstance(statement, ast.Assign):
            targets, value = statement.targets, statement.value
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            targets, value = [statement.target], statement.value
        else:
            continue
        for target in targets:
            if isinstance(target, ast.Name) and target.id in ("paper", *FACTS):
                facts[target.id] = ast.literal_eval(value)
    return facts


def _external(point: importlib.metadata.EntryPoint) -> Entry:
    """Read one entry point; its class has to be imported, its source may be anywhere."""
    stage, _, name = point.name.partition(".")
    if stage not in STAGES or not name.isidentifier():
        raise ValueError(f"an entry of {GROUP} is called STAGE.NAME, STAGE one of {', '.join(STAGES)}")
    loaded = _import(point.value)
    paper = getattr(loaded, "paper", None)
    if not isinstance(loaded, type) or not isinstance(paper, str):
        raise TypeError("it is no class with a `paper`")
    facts = {key: getattr(loaded, key, default) for key, default in _facts("Method", _protocol()).items()}
    return Entry(stage=stage, name=name, paper=paper, target=point.value, external=True, **facts)


def _import(target: str) -> type:
    module, _, name = target.partition(":")
    loaded: type = getattr(importlib.import_module(module), name)
    return loaded
