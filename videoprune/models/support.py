"""The families and what fits them, read from the code itself: the host of each on the meta device, and the methods' facts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch

from videoprune import demo
from videoprune.answer import silent
from videoprune.errors import UsageError
from videoprune.models.fits import substitute
from videoprune.models.host import Host
from videoprune.models.known import KNOWN
from videoprune.models.load import FAMILIES, recognise
from videoprune.models.outline import meta_host
from videoprune.recipe import Recipe
from videoprune.registry import STAGES, Entry, methods
from videoprune.stages import Stages


def examples() -> dict[str, tuple[str, Mapping[str, Any]]]:
    """For each family a checkpoint whose shape is known: its name and its config."""
    found: dict[str, tuple[str, Mapping[str, Any]]] = {}
    own = demo.weights_path() / "config.json"
    if own.is_file():
        found["demo"] = ("demo", json.loads(own.read_text(encoding="utf-8")))
    for name, config in KNOWN.items():
        found.setdefault(recognise(config)[0].family, (name, config))
    return found


def supported(progress: Callable[[str, int, int | None], None] = silent) -> list[dict[str, Any]]:
    """One entry a family: what it accepts, what its example looks like, and which methods do not simply fit it.

    Methods are tried with their defaults at the example's depth; `progress` is called with (stage, done, total).

    Keys: `family`, `accepts`, `stock`, `source`, `example`, `tower`, `cls`, `tokens_a_frame` (None: by the film's shape),
    `rows_a_frame` that stand for no token, `frames` (the default rule), `context`, and `stages`: stage -> {method: {status,
    why}} for those with status "substitute" or "refused".
    """
    known = examples()
    entries = []
    for done, family in enumerate(FAMILIES):
        progress("hosts", done, len(FAMILIES))
        entries.append(_entry(family, *known[family.family]))
    return entries


def _entry(family: type[Host], name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    host = meta_host(family, config, family.loading(config), name, torch.float32, "sdpa")
    rule = Recipe.load(family.default_recipe).frames
    stages: dict[str, dict[str, dict[str, str]]] = {stage: {} for stage in STAGES if stage != "relevance"}
    for method in methods():
        fact = _fit(host, method)
        if fact is not None:
            stages[method.stage][method.name] = fact
    rows, columns = host.grid
    return {
        "family": family.family,
        "accepts": family.accepts,
        "stock": family.stock,
        "source": family.source,
        "example": name,
        "tower": type(host.vision_tower()).__name__,
        "cls": host.tower.has_cls,
        "tokens_a_frame": rows * columns or None,
        "rows_a_frame": host.added_rows(1),
        "frames": rule_text(rule),
        "context": host.context,
        "stages": stages,
    }


def _fit(host: Host, method: Entry) -> dict[str, str] | None:
    """How a method with its defaults does not simply fit a host: {status, why}, None where it does."""
    instead = substitute(host.tower, method.stage, method.attention)
    if instead is not None:
        return {"status": "substitute", "why": instead}
    if getattr(method.load(), "reads_scan", False):
        return None  # it prunes the scout's tower, whatever the host's is
    if method.stage in ("encode", "prefill", "decode"):
        alone = {"name": method.name, "description": "", method.stage: {"method": method.name}}
        try:
            Stages.of(Recipe.load(alone)).check(
                host, outline=True
            )  # a learned part is made for one model: not its family's
        except UsageError as error:
            return {"status": "refused", "why": str(error).removeprefix(f"{method.stage}.{method.name}: ")}
    return None


def rule_text(rule: Any) -> str:
    """A frame rule in words: "8", or "1 a second, at most 256"."""
    if rule.frames is not None:
        return str(rule.frames)
    most = "" if rule.max is None else f", at most {rule.max}"
    return f"{rule.fps:g} a second{most}" if rule.fps is not None else f"all{most}"
