"""A plain folder of films with a file of questions: CSV, TSV, JSONL, JSON (also MLVU's rows) or Parquet.

    video,question,A,B,C,D,answer,task
    films/garden.mp4,What is red?,the gate,the bench,the roof,nothing,B,colour

`video` is a path below the folder, or the name of a film anywhere in it. Options are a list (`options` or `candidates`, in CSV as
JSON or with | between), or columns A, B, …; without options a question is answered in sentences. `answer` is an option's text or
its letter. `id`, `task` and `duration` may be left out.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from videoprune.errors import UsageError
from videoprune.evaluate.base import LETTERS, Benchmark, Question
from videoprune.evaluate.files import Problems, duration_of, film_files, load_rows, text_of, texts_of
from videoprune.evaluate.films import Films

KINDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
VIDEO = ("video", "film", "video_path", "path", "video_name")
OPTIONS = ("options", "candidates", "choices")
TASK = ("task", "question_type", "task_type")


def read(path: Path) -> Benchmark:
    """The questions of the file `path`, or of the one file of questions in the folder `path`.

    Raises:
        UsageError: no such file, several of them, or one that can't be understood.
        EnvironmentProblem: a Parquet table without pyarrow.
    """
    file = path if path.is_file() else _questions_file(path)
    root, problems = file.parent, Problems()
    everywhere: dict[str, list[Path]] = {}
    for film in film_files(root, problems):
        everywhere.setdefault(film.name, []).append(Path(os.path.abspath(film)))
    films = Films(root, ["."])
    questions: list[Question] = []
    for index, row in enumerate(load_rows(file)):
        where = f"{file}, entry {index}"
        row = {key: value for key, value in row.items() if value not in (None, "")}
        video = text_of(row, _first(row, VIDEO, where), where)
        found = films.find(video, where)
        if not found.exists() and video in everywhere:
            if len(everywhere[video]) > 1:
                some = ", ".join(str(place.relative_to(root.absolute())) for place in everywhere[video][:3])
                raise UsageError(
                    f"{where}: {video!r} is the name of several films ({some}); give the path of the one that is meant"
                )
            found = everywhere[video][0]
        options = _options(row, where)
        answer = None if "answer" not in row else str(row["answer"])
        extra: dict[str, Any] = {"row": row}
        if options and answer is not None and answer not in options and answer in LETTERS[: len(options)]:
            extra["gold"] = LETTERS.index(answer)
            answer = options[extra["gold"]]
        if isinstance(row.get("scoring_points"), list):
            extra["points"] = [str(point) for point in row["scoring_points"]]
        problems.options(where, options, answer)
        questions.append(
            Question(
                id=str(row.get("id", row.get("question_id", f"{file.stem}/{index}"))),
                video=video,
                path=found,
                task=next((str(row[name]) for name in TASK if name in row), "all"),
                question=text_of(row, "question", where),
                options=options,
                answer=answer,
                duration=duration_of(row, "duration", where),
                extra=extra,
            )
        )
    if not questions:
        raise UsageError(f"{file}: no question is in it; one a line is expected, as in {__name__}")
    unique = problems.unique(questions)
    paths = [question.path for question in unique]
    problems.films(paths)
    asked = set(paths)
    for film in (each for several in everywhere.values() for each in several):
        if film not in asked:
            problems.add("film without a question", film, "it is not watched")
    return Benchmark("folder", root, tuple(unique), problems.listed())


def _questions_file(path: Path) -> Path:
    if not path.is_dir():
        raise UsageError(f"{path}: neither a folder nor a file; give the folder of the films, or its file of questions")
    named = [path / f"questions{kind}" for kind in KINDS if (path / f"questions{kind}").is_file()]
    listed = [file for file in sorted(path.iterdir()) if file.suffix.lower() in KINDS and file.name != "made.json"]
    found = named or [file for file in listed if file.is_file() and not file.name.startswith(".")]
    if len(found) == 1:
        return found[0]
    if not found:
        raise UsageError(
            f"{path}: no file of questions is there; write questions.csv with the columns video, question, answer, "
            "and A, B, … for options"
        )
    names = ", ".join(file.name for file in found[:5])
    raise UsageError(f"{path}: several files may hold the questions ({names}); give the one that is meant")


def _first(row: dict[str, Any], names: tuple[str, ...], where: str) -> str:
    for name in names:
        if name in row:
            return name
    raise UsageError(
        f"{where}: {names[0]} is missing (there are {', '.join(map(str, row)) or 'no fields'}); the film's name is expected"
    )


def _options(row: dict[str, Any], where: str) -> tuple[str, ...]:
    for name in OPTIONS:
        value = row.get(name)
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                value = [part.strip() for part in value.split("|")]
        if value:
            return texts_of({name: value}, name, where)
    columns = [letter for letter in LETTERS if letter in row]
    if columns and "".join(columns) != LETTERS[: len(columns)]:
        raise UsageError(f"{where}: options {', '.join(columns)} are given; they have to be A, B, … without a gap")
    return tuple(str(row[letter]) for letter in columns)
