"""LongVideoBench: `lvb_val.json` (with answers) or `lvb_test_wo_gt.json`, films in `videos/`, subtitles in `subtitles/`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from videoprune.errors import UsageError
from videoprune.evaluate.base import Benchmark, Question
from videoprune.evaluate.files import Problems, duration_of, load_rows, text_of, texts_of
from videoprune.evaluate.films import Films

FILES = ("lvb_val.json", "lvb_test_wo_gt.json")
GROUPS = {"duration_group": "length", "topic_category": "topic", "level": "level"}


def read(path: Path) -> Benchmark:
    """The validation set, or the test set where only that is there or its file is given.

    Raises:
        UsageError: neither file at `path`, or one that can't be understood.
    """
    file = path if path.is_file() else next((path / name for name in FILES if (path / name).is_file()), None)
    if file is None:
        raise UsageError(f"{path}: neither {FILES[0]} nor {FILES[1]} is there; give LongVideoBench's folder")
    root = file.parent
    films, problems = Films(root, ["videos", "."]), Problems()
    questions: list[Question] = []
    for index, row in enumerate(load_rows(file)):
        where = f"{file}, entry {index}"
        options = _options(row, where)
        choice = row.get("correct_choice")
        extra: dict[str, Any] = {
            "row": row,
            "group": {ours: str(row[name]) for name, ours in GROUPS.items() if name in row},
        }
        answer = None
        if choice is not None and choice != -1:
            if isinstance(choice, bool) or not isinstance(choice, int) or not 0 <= choice < len(options):
                raise UsageError(
                    f"{where}: correct_choice is {choice!r}; a whole number from 0 to {len(options) - 1} is expected"
                )
            extra["gold"], answer = choice, options[choice]
        problems.options(where, options, answer)
        if isinstance(row.get("subtitle_path"), str):
            subtitles = Films(root, ["subtitles", "."]).find(row["subtitle_path"], where)
            if subtitles.is_file():
                extra["subtitles"] = str(subtitles)
            else:
                problems.add("missing subtitles", subtitles, "asked without them")
        video = text_of(row, "video_path", where)
        questions.append(
            Question(
                id=text_of(row, "id", where),
                video=video,
                path=films.find(video, where),
                task=text_of(row, "question_category", where),
                question=text_of(row, "question", where),
                options=options,
                answer=answer,
                duration=duration_of(row, "duration", where),
                extra=extra,
            )
        )
    if not questions:
        raise UsageError(f"{file}: no question is in it; is the download complete?")
    unique = problems.unique(questions)
    paths = [question.path for question in unique]
    problems.films(paths)
    if (root / "videos").is_dir():
        problems.extras(root / "videos", paths)
    return Benchmark("longvideobench", root, tuple(unique), problems.listed())


def _options(row: dict[str, Any], where: str) -> tuple[str, ...]:
    """`candidates`, or `option0` … `option4` of the Parquet copy, "N/A" left out."""
    if "candidates" in row:
        return texts_of(row, "candidates", where)
    listed = [row[f"option{number}"] for number in range(5) if row.get(f"option{number}") not in (None, "N/A")]
    return texts_of({"candidates": listed}, "candidates", where)
