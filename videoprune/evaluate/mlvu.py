"""MLVU: the dev set (nine tasks, under the names of Hugging Face, the repository or its scripts), and the six-option test set."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from videoprune.errors import UsageError
from videoprune.evaluate.base import LETTERS, Benchmark, Question
from videoprune.evaluate.files import Problems, duration_of, load_rows, text_of, texts_of
from videoprune.evaluate.films import Films

# canonical task -> its numbered name, and what else files, folders and rows call it
TASKS = {
    "plotQA": ("1_plotQA",),
    "needle": ("2_needle", "findNeedle"),
    "ego": ("3_ego",),
    "count": ("4_count",),
    "order": ("5_order",),
    "anomaly_reco": ("6_anomaly_reco",),
    "topic_reasoning": ("7_topic_reasoning",),
    "sub_scene": ("8_sub_scene", "subPlot", "sub_plot"),
    "summary": ("9_summary",),
}
GENERATION = ("sub_scene", "summary")
TEST_TASKS = (
    "plotQA", "needleQA", "ego", "count", "order", "anomaly_reco", "topic_reasoning", "sportsQA", "tutorialQA", *GENERATION
)  # fmt: skip
SPELLINGS = {name: task for task, others in TASKS.items() for name in (task, *others)}
JSON_FOLDERS = ("json", "upload_json", "data", "new_json", ".")
VIDEO_FOLDERS = ("video", "videos", ".")
TEST_FILE = "test_question.json"
LISTED = re.compile(r"^\(([A-Z])\)\s?(.*)$")


def read_dev(path: Path) -> Benchmark:
    """The dev set.

    Accepted: `json/`, `upload_json/` or `data/` with `1_plotQA.json` or `plotQA.json` …; films in `video/` under either name of
    their task, or all in one folder; the Parquet copy that lmms-eval uses, beside its films.

    Raises:
        UsageError: nothing of that is at `path`, or a file can't be understood.
        EnvironmentProblem: the Parquet copy without pyarrow.
    """
    root, folder = _located(path)
    problems = Problems()
    if folder is None:
        return _parquet_copy(root, problems)
    files: dict[str, Path] = {}
    for file in sorted(folder.glob("*.json")):
        task = SPELLINGS.get(file.stem)
        if task is None:
            problems.add("unknown task", file, f"left aside; known are {', '.join(TASKS)}")
        elif task in files:
            problems.add("task twice", file, f"left aside, {files[task].name} is read")
        else:
            files[task] = file
    for task in TASKS:
        if task not in files:
            problems.add("task without a file", task, "it is left out of the scores")
    questions: list[Question] = []
    for task in (task for task in TASKS if task in files):
        names = (TASKS[task][0], task, *TASKS[task][1:])
        films = Films(root, [f"{base}/{name}" for base in VIDEO_FOLDERS for name in names] + ["video", "videos", "."])
        for index, row in enumerate(load_rows(files[task])):
            where = f"{files[task]}, entry {index}"
            questions.append(_question(row, where, f"{task}/{index}", task, films, problems))
    return _finished("mlvu", root, questions, problems)


def read_test(path: Path) -> Benchmark:
    """The test set: `test_question.json` (beside the films' folder or in `json/`), and the answers where a file gives them.

    Answers are taken from the rows themselves, or from another JSON file there whose entries have `question_id` and `answer`.

    Raises:
        UsageError: no such file at `path`, or one that can't be understood.
    """
    file = path if path.is_file() else None
    places = [
        path / base / folder / TEST_FILE for base in (".", "MLVU_Test") for folder in (".", "json", "upload_json")
    ]
    file = file or next((place for place in places if place.is_file()), None)
    if file is None:
        raise UsageError(f"{path}: no {TEST_FILE} is there; give the folder of MLVU's test set (for the dev set: mlvu)")
    root = file.parent.parent if file.parent.name in JSON_FOLDERS else file.parent
    problems, answers = Problems(), _answers(file)
    films = Films(root, ["video", "videos", "test_video", "."])
    questions: list[Question] = []
    for index, row in enumerate(load_rows(file)):
        where = f"{file}, entry {index}"
        task = text_of(row, "question_type", where)
        task = SPELLINGS.get(task, task) if task in ("subPlot", "sub_plot") else task
        if task not in TEST_TASKS:
            problems.add(
                "unknown task", f"{where}: {task}", f"kept as a task of its own; known are {', '.join(TEST_TASKS)}"
            )
        identity = text_of(row, "question_id", where)
        answer = row.get("answer", answers.get(identity))
        questions.append(_question({**row, "answer": answer}, where, identity, task, films, problems))
    return _finished("mlvu-test", root, questions, problems)


def _located(path: Path) -> tuple[Path, Path | None]:
    """The folder of the data set and that of its JSON files; None where it is the Parquet copy."""
    if not path.is_dir():
        raise UsageError(f"{path}: no folder; give that of MLVU, the one which holds json/ and video/")
    for root in (path, path / "MLVU"):
        for name in JSON_FOLDERS:
            folder = root / name
            if folder.is_dir() and any(file.stem in SPELLINGS for file in folder.glob("*.json")):
                return root, folder
    if any(path.rglob("*.parquet")):
        return path, None
    if (path / TEST_FILE).is_file():
        raise UsageError(f"{path}: this is MLVU's test set; ask for the benchmark mlvu-test")
    raise UsageError(
        f"{path}: no questions are there; expected is json/1_plotQA.json … json/9_summary.json (or upload_json/, data/) "
        "with the films in video/1_plotQA/ …"
    )


def _question(row: dict[str, Any], where: str, identity: str, task: str, films: Films, problems: Problems) -> Question:
    options: tuple[str, ...] = ()
    if task not in GENERATION or row.get("candidates"):
        options = texts_of(row, "candidates", where)
    answer = row.get("answer")
    if answer is not None and not isinstance(answer, str | int | float):
        raise UsageError(f"{where}: answer is {answer!r}; a text is expected")
    answer = None if answer is None else str(answer)
    if (
        options
        and answer is not None
        and answer not in options
        and len(answer) == 1
        and answer in LETTERS[: len(options)]
    ):
        answer = options[LETTERS.index(answer)]
    problems.options(where, options, answer)
    video = text_of(row, "video", where)
    said = row.get("question_type")
    if isinstance(said, str) and SPELLINGS.get(said, said) != task:
        problems.add("task unlike its file", f"{where}: {said}", "the file's task counts")
    extra: dict[str, Any] = {"row": row}
    if isinstance(row.get("scoring_points"), list):
        extra["points"] = [str(point) for point in row["scoring_points"]]
    return Question(
        id=identity,
        video=video,
        path=films.find(video, where),
        task=task,
        question=text_of(row, "question", where),
        options=options,
        answer=answer,
        duration=duration_of(row, "duration", where),
        extra=extra,
    )


def _answers(file: Path) -> dict[str, str]:
    """question_id -> answer from another JSON file beside the questions; empty where none has them."""
    for other in sorted(file.parent.glob("*.json")):
        if other != file:
            rows = load_rows(other)
            found = {
                str(row["question_id"]): str(row["answer"]) for row in rows if {"question_id", "answer"} <= row.keys()
            }
            if rows and len(found) == len(rows):
                return found
    return {}


def _parquet_copy(root: Path, problems: Problems) -> Benchmark:
    """lmms-eval's copy: `video_name`, `task_type`, the options inside the question, and the answer's letter."""
    films = Films(root, ["video", "videos", "."])
    questions: list[Question] = []
    counts: dict[str, int] = {}
    for file in sorted(root.rglob("*.parquet")):
        for index, row in enumerate(load_rows(file)):
            where = f"{file}, row {index}"
            task = text_of(row, "task_type", where)
            task = SPELLINGS.get(task, task)
            counts[task] = counts.get(task, -1) + 1
            lines = text_of(row, "question", where).split("\n")
            options = [found[2] for found in map(LISTED.match, lines) if found]
            text = "\n".join(line for line in lines if not LISTED.match(line)).strip()
            plain = {
                "video": text_of(row, "video_name", where),
                "question": text,
                "answer": row.get("answer"),
                "duration": row.get("duration"),
                **({"candidates": options} if options else {}),
            }
            questions.append(_question(plain, where, f"{task}/{counts[task]}", task, films, problems))
    return _finished("mlvu", root, questions, problems)


def _finished(name: str, root: Path, questions: Sequence[Question], problems: Problems) -> Benchmark:
    """Note what concerns all questions: repeated ones, films that are missing, empty or not asked about."""
    if not questions:
        raise UsageError(f"{root}: no question is in its files; is the download complete?")
    questions = problems.unique(questions)
    paths = [question.path for question in questions]
    problems.films(paths)
    for folder in ("video", "videos"):
        if (root / folder).is_dir():
            problems.extras(root / folder, paths)
    return Benchmark(name, root, tuple(questions), problems.listed())
