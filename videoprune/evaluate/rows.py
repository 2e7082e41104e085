"""Result rows: what identifies one, what it holds, and which count when a folder is read.

A row is one line of JSON in `results*.jsonl`. Two kinds have the same keys:

- a question's row: `key, film, video, task, id, question, options, answer, prediction, choice, correct, error, seconds, tokens,
  flops, recipe, duration`; `error` is None, or what went wrong with this question alone;
- a film's error row: one for a film that can't be watched. `question`, `task`, `id` and `prediction` are None, `correct` is
  False and `questions` lists the ids of the questions that it stands for, and `asked` what scores need to know of them.

`key` is a digest of content: film, question, recipe, model, frame rule, protocol, seed and SEMANTICS. The same key is the same
work. A row of a later attempt replaces an error row before it; nothing is ever removed from a file. Nothing here imports torch.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videoprune.errors import EnvironmentProblem, UsageError
from videoprune.evaluate.base import CARRIED, Question

SEMANTICS = 1  # raised when the same inputs would give another row
PATTERN = "results*.jsonl"
DIGITS = 4  # of log-probabilities

Row = dict[str, Any]


@dataclass(frozen=True)
class Setup:
    """What every key of one results folder shares."""

    recipe: str
    recipe_digest: str
    model: str
    revision: str
    frames: Mapping[str, Any]
    protocol: str
    protocol_digest: str
    seed: int

    def key(self, film: str, question: Question | None) -> str:
        """Key of a question's row, or of a film's error row (None)."""
        asked: list[Any] = []
        if question is not None:
            asked = [question.id, question.task, question.question, list(question.options), question.answer]
        parts = [SEMANTICS, film, asked, self.recipe_digest, self.revision, sorted(self.frames.items())]
        parts += [self.protocol_digest, self.seed]
        return hashlib.sha256(json.dumps(parts, ensure_ascii=True).encode()).hexdigest()[:32]


def question_row(setup: Setup, film: str, question: Question, **found: Any) -> Row:
    """The row of one question; `found` replaces the empty fields."""
    row: Row = {
        "key": setup.key(film, question),
        "film": film,
        "video": question.video,
        "task": question.task,
        "id": question.id,
        "question": question.question,
        "options": list(question.options),
        "answer": question.answer,
        "prediction": None,
        "choice": None,
        "correct": False if question.answer is not None and question.options else None,
        "error": None,
        "seconds": 0.0,
        "tokens": None,
        "flops": None,
        "recipe": setup.recipe,
        "duration": question.duration,
    }
    row |= {name: question.extra[name] for name in CARRIED if name in question.extra}
    return {**row, **found}


def film_row(setup: Setup, film: str, questions: Sequence[Question], error: Mapping[str, Any], seconds: float) -> Row:
    """The one error row of a film that can't be watched."""
    return {
        "key": setup.key(film, None),
        "film": film,
        "video": questions[0].video,
        "task": None,
        "id": None,
        "question": None,
        "options": [],
        "answer": None,
        "prediction": None,
        "choice": None,
        "correct": False,
        "error": dict(error),
        "seconds": round(seconds, 3),
        "tokens": None,
        "flops": None,
        "recipe": setup.recipe,
        "duration": questions[0].duration,
        "questions": [question.id for question in questions],
        "asked": [_asked(question) for question in questions],
    }


def _asked(question: Question) -> Row:
    """What scores need to know of a question that a film's error row stands for."""
    return {
        "id": question.id,
        "task": question.task,
        "question": question.question,
        "options": list(question.options),
        "answer": question.answer,
        **{name: question.extra[name] for name in CARRIED if name in question.extra},
    }


def error_of(problem: BaseException, stage: str | None = None) -> dict[str, Any]:
    """`{type, stage, message}` of an exception."""
    message = " ".join(str(problem).split()) or "no message"
    kind = getattr(problem, "reported", type(problem).__name__)  # what another process found
    return {"type": kind, "stage": getattr(problem, "stage", None) or stage, "message": message[:500]}


def is_film_row(row: Mapping[str, Any]) -> bool:
    """Whether a row is the error of a whole film."""
    return row.get("question") is None and row.get("error") is not None


def dump(row: Mapping[str, Any]) -> bytes:
    """A row as its line."""
    return (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", errors="surrogatepass")


def effective(rows: Iterable[Row]) -> list[Row]:
    """The rows that count: one a key, answers before errors; of films' errors those that speak for a question without a row, the
    last one where a film failed in several states."""
    best: dict[str, Row] = {}
    for row in rows:
        before = best.get(row["key"])
        if before is None or before["error"] is not None:
            best[row["key"]] = row
    kept = [row for row in best.values() if not is_film_row(row)]
    told = {(row["film"], row["id"]) for row in kept} | {(row["video"], row["id"]) for row in kept}
    for row in reversed([row for row in best.values() if is_film_row(row)]):
        left = [each for each in row["questions"] if not {(row["film"], each), (row["video"], each)} & told]
        if left:
            told.update((row["video"], each) for each in left)
            kept.append({**row, "questions": left})
    return kept


def parse(path: Path) -> tuple[list[Row], int]:
    """The rows of a file, and how many lines of it can't be read (a torn last one, damage)."""
    rows: list[Row] = []
    damaged = 0
    try:
        with open(path, "rb") as file:
            for line in file:
                try:
                    row = json.loads(line)
                except ValueError:
                    damaged += bool(line.strip())
                    continue
                if isinstance(row, dict) and isinstance(row.get("key"), str) and "error" in row:
                    rows.append(row)
                else:
                    damaged += 1
    except OSError as error:
        raise EnvironmentProblem(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    return rows, damaged


def read_rows(folder: Path) -> list[Row]:
    """The rows of a results folder that count, sorted by key; those of all workers and shards.

    Raises:
        UsageError: there are none.
    """
    files = sorted(folder.glob(PATTERN))
    if not files:
        raise UsageError(f"{folder} holds no {PATTERN}; give the --out folder of a `videoprune batch` run")
    rows = [row for path in files for row in parse(path)[0]]
    return sorted(effective(rows), key=lambda row: str(row["key"]))


def export(rows: Sequence[Row], path: Path) -> None:
    """Write rows as a table: CSV, or Parquet (with pyarrow), by the ending; lists and mappings become JSON text.

    Raises:
        UsageError: another ending.
        EnvironmentProblem: pyarrow is missing, or the file can't be written.
    """
    check_export(path)
    names = list(dict.fromkeys(name for row in rows for name in row))
    flat = [{name: _cell(row.get(name)) for name in names} for row in rows]
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() == ".csv":
            with open(part, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
                writer = csv.DictWriter(file, names)
                writer.writeheader()
                writer.writerows(flat)
        else:
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(flat), part)
        part.replace(path)
    except OSError as error:
        raise EnvironmentProblem(f"--export {path}: cannot be written ({error.strerror or error})") from None
    finally:
        part.unlink(missing_ok=True)


def check_export(path: Path) -> None:
    """Refuse a table that can't be written before any work is done."""
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise UsageError(f"--export {path}: the name must end in .csv or .parquet")
    if path.suffix.lower() == ".parquet":
        import importlib.util

        if importlib.util.find_spec("pyarrow") is None:
            raise EnvironmentProblem(f"--export {path}: Parquet needs pyarrow; pip install pyarrow, or take .csv")


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value
