"""Generated films and their questions in the layouts of published benchmarks.

Each layout is a function of the films and the folder that gives the number of questions of each task. A film that serves several
tasks is one file with several names (hard links) where the file system has them, and copied where it has not.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
MLVU_FILES = {
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
MLVU_TYPES = {"needle": "findNeedle", "sub_scene": "subPlot"}  # where the rows name a task otherwise than its file
LETTERS = "ABCD"
LVB_GROUPS = (15, 60, 600, 3600)  # LongVideoBench's groups of durations, in seconds


@dataclass(frozen=True)
class Film:
    """A generated film with its questions in a JSON file beside it."""

    path: Path
    seed: int
    minutes: float
    pace: float

    def rows(self) -> list[Row]:
        """Its questions as MLVU rows with our keys `evidence` and `kind`."""
        rows: list[Row] = json.loads(self.path.with_suffix(".json").read_text(encoding="utf-8"))
        return rows


def mlvu(films: Sequence[Film], out: Path) -> dict[str, int]:
    """`json/<n>_<task>.json` and `video/<n>_<task>/`, as the dev set."""
    tasks: dict[str, list[Row]] = {}
    for film in films:
        for row in film.rows():
            task = row["question_type"]
            row["question_type"] = MLVU_TYPES.get(task, task)
            if task == "sub_scene":
                row["scoring_points"] = row["answer"].split(" , ")
            tasks.setdefault(task, []).append(row)
            link(film.path, out / "video" / MLVU_FILES[task] / film.path.name)
    for task, rows in tasks.items():
        write_json(out / "json" / f"{MLVU_FILES[task]}.json", rows)
    return {task: len(tasks[task]) for task in MLVU_FILES if task in tasks}


def video_mme(films: Sequence[Film], out: Path) -> dict[str, int]:
    """`videomme/test-00000-of-00001.parquet`, `data/` and `subtitle/`.

    Raises:
        ValueError: pyarrow, which writes the table, is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError("the layout video-mme is a Parquet table; pip install pyarrow") from None
    rows: list[dict[str, str]] = []
    for number, film in enumerate(films, start=1):
        length = "short" if film.minutes < 2 else "medium" if film.minutes <= 15 else "long"
        asked = [row for row in film.rows() if row.get("candidates")]
        link(film.path, out / "data" / film.path.name)
        write(out / "subtitle" / f"{film.path.stem}.srt", _srt(asked))
        for index, row in enumerate(asked, start=1):
            options = [f"{letter}. {text}." for letter, text in zip(LETTERS, row["candidates"], strict=True)]
            rows.append(
                {
                    "video_id": f"{number:03d}",
                    "duration": length,
                    "domain": "Generated",
                    "sub_category": "Scenes",
                    "url": "",
                    "videoID": film.path.stem,
                    "question_id": f"{number:03d}-{index}",
                    "task_type": row["kind"],
                    "question": row["question"],
                    "options": options,  # type: ignore[dict-item]
                    "answer": LETTERS[row["candidates"].index(row["answer"])],
                }
            )
    table = out / "videomme" / "test-00000-of-00001.parquet"
    table.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    return dict(Counter(row["task_type"] for row in rows))


def longvideobench(films: Sequence[Film], out: Path) -> dict[str, int]:
    """`lvb_val.json`, `videos/` and `subtitles/`."""
    rows: list[Row] = []
    for film in films:
        asked = [row for row in film.rows() if row.get("candidates")]
        seconds = 60.0 * film.minutes
        link(film.path, out / "videos" / film.path.name)
        lines = [{"timestamp": list(span), "text": _line(row)} for span, row in _spans(asked)]
        write_json(out / "subtitles" / f"{film.path.stem}_en.json", lines)
        for index, row in enumerate(asked):
            rows.append(
                {
                    "video_id": film.path.stem,
                    "id": f"{film.path.stem}_{index}",
                    "video_path": film.path.name,
                    "subtitle_path": f"{film.path.stem}_en.json",
                    "question": row["question"],
                    "candidates": row["candidates"],
                    "correct_choice": row["candidates"].index(row["answer"]),
                    "duration": seconds,
                    "duration_group": next((group for group in LVB_GROUPS if seconds <= group), LVB_GROUPS[-1]),
                    "question_category": row["kind"],
                    "topic_category": "Generated scenes",
                    "level": "L1",
                    "starting_timestamp_for_subtitles": 0,
                }
            )
    write_json(out / "lvb_val.json", rows)
    return dict(Counter(row["question_category"] for row in rows))


def folder(films: Sequence[Film], out: Path) -> dict[str, int]:
    """Films in `videos/` and `questions.jsonl` with `video`, `question`, `options`, `answer` and `task`."""
    rows: list[Row] = []
    for film in films:
        name = f"videos/{film.path.name}"
        link(film.path, out / name)
        for row in film.rows():
            options = {"options": row["candidates"]} if row.get("candidates") else {}
            rows.append(
                {
                    "video": name,
                    "question": row["question"],
                    **options,
                    "answer": row["answer"],
                    "task": row["question_type"],
                }
            )
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write(out / "questions.jsonl", lines)
    return dict(Counter(row["task"] for row in rows))


LAYOUTS: dict[str, Callable[[Sequence[Film], Path], dict[str, int]]] = {
    "mlvu": mlvu,
    "video-mme": video_mme,
    "longvideobench": longvideobench,
    "folder": folder,
}


def _line(row: Row) -> str:
    """What a narrator says while the evidence of a question is shown: nothing that tells the answer."""
    return f"Now look: {row['question']}"


def _spans(rows: Sequence[Row]) -> list[tuple[tuple[float, float], Row]]:
    """The first evidence of each question, in order of time."""
    return sorted((((row["evidence"][0][0], row["evidence"][0][1]), row) for row in rows), key=lambda pair: pair[0])


def _srt(rows: Sequence[Row]) -> str:
    blocks = []
    for number, ((start, end), row) in enumerate(_spans(rows), start=1):
        text = f'<font color="white" size=".72c">{_line(row)}</font>'
        blocks.append(f"{number}\n{_clock(start)} --> {_clock(end)}\n{text}\n")
    return "\n".join(blocks)


def _clock(seconds: float) -> str:
    whole, thousandths = divmod(round(1000 * seconds), 1000)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d},{thousandths:03d}"


def link(source: Path, target: Path) -> None:
    """Give a file a second name; copy it where the file system has no hard links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:
        part = target.with_name(f".{target.name}.part")
        shutil.copyfile(source, part)
        os.replace(part, target)


def write(path: Path, text: str) -> None:
    """Write a text file at once and complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def write_json(path: Path, data: Any) -> None:
    write(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")
