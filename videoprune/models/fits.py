"""What stands in for an attention that a vision tower does not have."""

from __future__ import annotations

from typing import Any

CLS_CHOICE = "[CLS] attention"  # name of the choice that says what was read instead


def substitute(tower: Any, stage: str, attention: str) -> str | None:
    """What a method of `stage` that reads `attention` is given in its place on this tower; None where nothing is missing.

    Methods inside the tower read its attention, and merge methods that are left it by the tower.
    """
    missing = stage in ("encode", "merge") and attention == "[CLS] row" and not tower.has_cls
    return str(tower.cls_substitute) if missing else None
