"""The demo: a generator of moving scenes with questions, and a small model trained on them. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from videoprune.demo.film import is_demo_film

__all__ = ["film_path", "is_demo_film", "questions_path", "weights_path"]

_HERE = Path(__file__).resolve().parent
_INSIDE = _HERE / "film"  # where a wheel has what a checkout has in data/
_DATA = _HERE.parents[1] / "data"


def weights_path() -> Path:
    """Folder of the shipped model, for ``from_pretrained``."""
    return _HERE / "weights"


def film_path() -> Path:
    """The shipped film: in the package if it is there, else in the repository's ``data`` folder."""
    inside = _INSIDE / "demo.mp4"
    return inside if inside.exists() else _DATA / "video" / "1_plotQA" / "demo.mp4"


def questions_path() -> Path:
    """Folder of the shipped film's questions, one MLVU file a task."""
    inside = _INSIDE / "json"
    return inside if inside.exists() else _DATA / "json"
