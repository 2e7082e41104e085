"""Small data sets in every layout that the readers accept. Films are a few bytes, no video: readers look at names and sizes only.

Pass `film=` a real film's path to have it linked in everywhere.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NUMBERED = {
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
# spelling -> (folder of the JSON files, name of a task's file, name of its film folder)
MLVU_SPELLINGS = {
    "huggingface": ("json", lambda task: NUMBERED[task], lambda task: NUMBERED[task]),
    "github": ("data", lambda task: NUMBERED[task], lambda task: _old(task)),
    "scripts": ("upload_json", lambda task: _old(task), lambda task: _old(task)),
}
TYPES = {"needle": "findNeedle", "sub_scene": "subPlot"}


def _old(task: str) -> str:
    return "subPlot" if task == "sub_scene" else task


def put_film(path: Path, film: Path | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if film is None:
        path.write_bytes(b"film")
    else:
        shutil.copyfile(film, path)
    return path


def put_json(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, ensure_ascii=False, indent=1), encoding="utf-8")
    return path


def mlvu_row(task: str, index: int, **changed: Any) -> dict[str, Any]:
    """A sound row of the dev set: the right option is "c<index % 4>"."""
    row: dict[str, Any] = {
        "video": f"{task}_{index}.mp4",
        "duration": 240 + index if index % 2 else 240.5 + index,
        "question": f"What about {task} {index}?",
        "question_type": TYPES.get(task, task),
    }
    if task in ("sub_scene", "summary"):
        row["answer"] = f"It is {task} {index}."
        if task == "sub_scene":
            row["scoring_points"] = ["first", "second"]
    else:
        row |= {"candidates": ["c0", "c1", "c2", "c3"], "answer": f"c{index % 4}"}
    return {**row, **changed}


def mlvu(
    root: Path,
    spelling: str = "huggingface",
    rows: Mapping[str, Sequence[dict[str, Any]]] | None = None,
    *,
    each: int = 2,
    film: Path | None = None,
) -> Path:
    """The dev set with `each` rows a task, or with the given rows."""
    folder, file_of, films_of = MLVU_SPELLINGS[spelling]
    for task in NUMBERED:
        given = list(rows.get(task, [])) if rows is not None else [mlvu_row(task, index) for index in range(each)]
        if given or rows is None:
            put_json(root / folder / f"{file_of(task)}.json", given)
        for row in given:
            put_film(root / "video" / films_of(task) / row["video"], film)
    return root


def mlvu_test(root: Path, *, answers: bool = False, film: Path | None = None) -> Path:
    """The test set: six options, one question a task; the right option of question i is letter i."""
    tasks = ["plotQA", "needleQA", "ego", "count", "order", "anomaly_reco", "topic_reasoning", "sportsQA", "tutorialQA"]
    rows = [
        {
            "question_id": f"Q_{index}",
            "question_type": task,
            "video": f"test_{task}.mp4",
            "question": f"What about {task}?",
            "candidates": [f"c{number}" for number in range(6)],
        }
        for index, task in enumerate(tasks)
    ]
    put_json(root / "test_question.json", rows)
    if answers:
        put_json(root / "answers.json", [{"question_id": f"Q_{i}", "answer": f"c{i % 6}"} for i in range(len(rows))])
    for row in rows:
        put_film(root / "video" / row["video"], film)
    return root


def video_mme_rows() -> list[dict[str, Any]]:
    lengths = ("short", "medium", "long")
    return [
        {
            "video_id": f"{film + 1:03d}",
            "duration": lengths[film],
            "domain": "Knowledge",
            "sub_category": "Astronomy",
            "url": "",
            "videoID": f"id_{film}",
            "question_id": f"{film + 1:03d}-{number + 1}",
            "task_type": "Object Recognition" if number else "Counting Problem",
            "question": f"Which one, {film}.{number}?",
            "options": ["A. Apples.", "B. Candles.", "C. Berries.", "D. The three kinds are of the same number."],
            "answer": "ABCD"[film + number],
        }
        for film in range(3)
        for number in range(2)
    ]


SRT = """1
00:00:00,500 --> 00:00:02,000
<font color="white" size=".72c">Hello there.</font>

2
00:00:10,000 --> 00:00:12,500
<font color="white" size=".72c">A second</font>
<font color="white" size=".72c">line.</font>
"""


def video_mme(root: Path, kind: str = "parquet", *, film: Path | None = None) -> Path:
    """Three films, two questions each; the first film has subtitles, the second ends in .MP4, the third in .mkv."""
    rows = video_mme_rows()
    root.mkdir(parents=True, exist_ok=True)
    if kind == "parquet":
        import pyarrow
        import pyarrow.parquet

        (root / "videomme").mkdir(exist_ok=True)
        table = root / "videomme" / "test-00000-of-00001.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    elif kind == "json":
        put_json(root / "videomme.json", rows)
    elif kind == "template":
        films: dict[str, dict[str, Any]] = {}
        for row in rows:
            of_film = {key: row[key] for key in ("video_id", "duration", "domain", "sub_category", "videoID")}
            of_question = {key: row[key] for key in ("question_id", "task_type", "question", "options", "answer")}
            films.setdefault(row["videoID"], {**of_film, "questions": []})["questions"].append(of_question)
        put_json(root / "videomme.json", list(films.values()))
    else:
        write_csv(root / "videomme.csv", [{**row, "options": repr(row["options"])} for row in rows])
    for name in ("id_0.mp4", "id_1.MP4", "id_2.mkv"):
        put_film(root / "data" / name, film)
    (root / "subtitle").mkdir(exist_ok=True)
    (root / "subtitle" / "id_0.srt").write_text(SRT, encoding="utf-8")
    return root


def longvideobench(root: Path, *, answers: bool = True, film: Path | None = None) -> Path:
    """Two films with both forms of subtitles, one with four and one with five options; the right one is 1."""
    rows: list[dict[str, Any]] = []
    for index, group in enumerate((15, 600)):
        row = {
            "video_id": f"v{index}",
            "id": f"v{index}_0",
            "video_path": f"v{index}.mp4",
            "subtitle_path": f"v{index}_en.json",
            "question": f"When, {index}?",
            "candidates": ["first", "second", "third", "fourth", "fifth"][: 4 + index],
            "duration": 12.5 if index == 0 else 400,
            "duration_group": group,
            "question_category": "TOS" if index else "S2E",
            "topic_category": "KH-Knowledge-History",
            "level": f"L{index + 1}",
            "starting_timestamp_for_subtitles": 100 * index,
        }
        rows.append({**row, "correct_choice": 1} if answers else row)
        put_film(root / "videos" / f"v{index}.mp4", film)
    put_json(root / ("lvb_val.json" if answers else "lvb_test_wo_gt.json"), rows)
    put_json(
        root / "subtitles" / "v0_en.json",
        [{"timestamp": [0.25, 2.25], "text": "one"}, {"timestamp": [4.0, None], "text": "two"}],
    )
    put_json(
        root / "subtitles" / "v1_en.json",
        [{"start": "00:01:41.000", "end": "00:01:43.500", "line": "later"}],
    )
    return root


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], delimiter: str = ",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def folder(root: Path, kind: str = "csv", *, film: Path | None = None) -> Path:
    """Two films in a folder of their own; two questions with options and one without."""
    rows: list[dict[str, Any]] = [
        {"video": "films/a.mp4", "question": "Which colour?", "options": ["red", "green"], "answer": "red", "task": "colour"},
        {"video": "b.mp4", "question": "Which shape?", "options": ["circle", "square"], "answer": "B", "task": "shape"},
        {"video": "films/a.mp4", "question": "What happens?", "answer": "a red circle moves up", "task": "summary"},
    ]  # fmt: skip
    if kind == "csv":
        flat = []
        for row in rows:
            a, b = row.get("options", ("", ""))
            flat.append({**{key: row[key] for key in ("video", "question", "answer", "task")}, "A": a, "B": b})
        write_csv(root / "questions.csv", flat)
    elif kind == "jsonl":
        root.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (root / "questions.jsonl").write_text(text, encoding="utf-8")
    else:  # MLVU's words
        said = {"options": "candidates", "task": "question_type"}
        put_json(root / "questions.json", [{said.get(key, key): row[key] for key in row} for row in rows])
    for name in ("a.mp4", "b.mp4"):
        put_film(root / "films" / name, film)
    return root
