"""Generated films as a folder in the layout of the MLVU benchmark: ``json/<n>_<task>.json``, ``video/<n>_<task>/``."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from videoprune.demo.film import make_film

FILES = {
    "plotQA": "1_plotQA",
    "needle": "2_needle",
    "ego": "3_ego",
    "count": "4_count",
    "order": "5_order",
    "anomaly_reco": "6_anomaly_reco",
    "topic_reasoning": "7_topic_reasoning",
    "sub_scene": "8_sub_scene",
    "summary": "9_summary",
}
MINUTES = 13 / 6  # the shipped film: 2 minutes 10 seconds
MOST_VIDEOS = 10_000


def make_mlvu(
    out: Path,
    videos: int = 1,
    seed: int = 0,
    *,
    minutes: float = MINUTES,
    generated: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write a benchmark folder of generated films.

    A single film is called ``demo.mp4``; several are called ``demo_<seed>.mp4`` and use the seeds from ``seed`` on.
    With ``make_mlvu(out, 1, 0)`` the folder is the repository's ``data/``.

    Parameters
    ----------
    out : Path
        The folder; its ``json`` and ``video`` folders must not exist yet, or come from an earlier run.
    videos, seed, minutes
        How many films, the first one's seed, and their length.
    generated : bool
        Also write the two tasks that are answered in sentences.
    progress : callable, optional
        Called with films done and films in all.

    Returns
    -------
    dict
        ``out``, ``videos``, ``rows``: questions by task.
    """
    if isinstance(videos, bool) or not isinstance(videos, int) or not 1 <= videos <= MOST_VIDEOS:
        raise ValueError(f"videos is {videos!r}; allowed are whole numbers from 1 to {MOST_VIDEOS}: give one of them")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    tasks: dict[str, list[dict[str, object]]] = {}
    with tempfile.TemporaryDirectory(dir=out, prefix=".part") as scratch:
        new = Path(scratch)
        for i in range(videos):
            name = "demo.mp4" if videos == 1 else f"demo_{seed + i}.mp4"
            made = make_film(new / name, minutes, seed + i, generated=generated)
            for row in json.loads(made["questions"].read_text(encoding="utf-8")):
                tasks.setdefault(str(row["question_type"]), []).append(row)
            for task in {t for t, rows in tasks.items() if rows[-1]["video"] == name}:
                folder = new / "video" / FILES[task]
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(new / name, folder / name)
            (new / name).unlink()
            if progress:
                progress(i + 1, videos)
        (new / "json").mkdir()
        for task, rows in tasks.items():
            path = new / "json" / f"{FILES[task]}.json"
            path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        for part in ("json", "video"):
            if (out / part).exists():
                shutil.rmtree(out / part)
            os.replace(new / part, out / part)
    return {"out": out, "videos": videos, "rows": {task: len(rows) for task, rows in sorted(tasks.items())}}
