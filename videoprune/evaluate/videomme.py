"""Video-MME: the Parquet table of Hugging Face, or the same columns as JSON, JSONL, CSV or TSV; with subtitles where they are."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

from videoprune.errors import UsageError
from videoprune.evaluate.base import LETTERS, Benchmark, Question
from videoprune.evaluate.files import Problems, load_rows, text_of
from videoprune.evaluate.films import Films

ENDINGS = (".mp4", ".mkv", ".webm")
TABLES = ("videomme/*.parquet", "*.parquet", "*.jsonl", "*.json", "*.csv", "*.tsv")
GROUPS = {"duration": "length", "domain": "domain", "sub_category": "sub_category"}
LABEL = re.compile(r"^\s*([A-Z])[.)]\s+")


def read(path: Path) -> Benchmark:
    """The table's questions in order; films in `data/` under their YouTube id, subtitles in `subtitle/`.

    Raises:
        UsageError: no table at `path`, or one that can't be understood.
        EnvironmentProblem: a Parquet table without pyarrow.
    """
    file = path if path.is_file() else _table(path)
    root = file.parent.parent if file.parent.name == "videomme" else file.parent
    films, problems = Films(root, ["data", "videos", "video", "."]), Problems()
    questions: list[Question] = []
    for row, where in _flat(load_rows(file), file):
        videos = [name for name in ("videoID", "video", "video_id") if row.get(name)]
        if not videos:
            raise UsageError(f"{where}: videoID is missing; the name of the film without its ending is expected")
        video = text_of(row, videos[0], where)
        options = options_of(row.get("options", row.get("candidates")), where)
        answer = text_of(row, "answer", where) if row.get("answer") not in (None, "") else None
        extra: dict[str, Any] = {
            "row": row,
            "group": {ours: row[name] for name, ours in GROUPS.items() if row.get(name)},
        }
        if answer is not None and len(answer) == 1 and answer in LETTERS[: len(options)]:
            extra["gold"] = LETTERS.index(answer)
            answer = options[extra["gold"]]
        problems.options(where, options, answer)
        subtitles = root / "subtitle" / f"{video}.srt"
        if subtitles.is_file():
            extra["subtitles"] = str(subtitles.absolute())
        questions.append(
            Question(
                id=text_of(row, "question_id", where),
                video=video,
                path=films.find(video, where, ("", *ENDINGS) if "." in video[-5:] else ENDINGS),
                task=text_of(row, "task_type", where),
                question=text_of(row, "question", where),
                options=options,
                answer=answer,
                extra=extra,
            )
        )
    if not questions:
        raise UsageError(f"{file}: no question is in it; is the download complete?")
    unique = problems.unique(questions)
    paths = [question.path for question in unique]
    problems.films(paths)
    for name in ("data", "videos", "video"):
        if (root / name).is_dir():
            problems.extras(root / name, paths)
    return Benchmark("video-mme", root, tuple(unique), problems.listed())


def options_of(value: Any, where: str) -> tuple[str, ...]:
    """The options without their letters; a list, or one written as JSON or as Python writes it.

    Raises:
        UsageError: it is neither, or holds fewer than 1 or more than 26.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            try:
                value = ast.literal_eval(value)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                value = None
    if (
        not isinstance(value, list | tuple)
        or not 1 <= len(value) <= 26
        or not all(isinstance(each, str) for each in value)
    ):
        raise UsageError(
            f"{where}: options are no list of 1 to 26 texts; as in ['A. Apples.', 'B. Candles.'] is expected"
        )
    labels = [found[1] if found else "" for found in map(LABEL.match, value)]
    if "".join(labels) == LETTERS[: len(value)]:
        return tuple(LABEL.sub("", each) for each in value)
    return tuple(value)


def _table(path: Path) -> Path:
    for pattern in TABLES:
        found = sorted(path.glob(pattern))
        if len(found) > 1:
            listed = ", ".join(file.name for file in found[:5])
            raise UsageError(f"{path}: several tables are there ({listed}); give the one that is meant")
        if found:
            return found[0]
    raise UsageError(
        f"{path}: no table of questions is there; expected is videomme/test-00000-of-00001.parquet, or one .json, .jsonl "
        "or .csv file, with the films in data/"
    )


def _flat(rows: list[dict[str, Any]], file: Path) -> list[tuple[dict[str, Any], str]]:
    """One entry a question, also from the result template, where a film holds its `questions`."""
    flat: list[tuple[dict[str, Any], str]] = []
    for index, row in enumerate(rows):
        where = f"{file}, entry {index}"
        if isinstance(row.get("questions"), list):
            rest = {key: value for key, value in row.items() if key != "questions"}
            for each in row["questions"]:
                if not isinstance(each, dict):
                    raise UsageError(f"{where}: {each!r} among its questions is no object with keys")
                flat.append(({**rest, **each}, where))
        else:
            flat.append((row, where))
    return flat
