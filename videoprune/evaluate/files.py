"""Reading the files of a data set: text, JSON, CSV and Parquet, with errors that say where; and finding films in folders."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from videoprune.errors import EnvironmentProblem, UsageError
from videoprune.evaluate.base import Problem, Question

FILMS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv")


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, a byte-order mark taken off.

    Raises:
        UsageError: it is missing, no file, unreadable or not UTF-8 (says where).
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"{path}: can't be read ({error.strerror or error}); check the path and its permissions"
        ) from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise UsageError(
            f"{path}: line {line}, byte {column}: {data[error.start : error.start + 4]!r} is not UTF-8; convert the file to UTF-8"
        ) from None


def parse_json(text: str, path: Path, line: int = 1) -> Any:
    """JSON of a file whose text begins at `line`.

    Raises:
        UsageError: malformed, or a key twice in one object; says file, line and column.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        built = dict(pairs)
        if len(built) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise UsageError(f"{path}: the key {twice!r} is twice in one entry ({_short(built)}); keep one of them")
        return built

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{path}: line {line + error.lineno - 1}, column {error.colno}: {error.msg}; this is no valid JSON, mend it there"
        ) from None
    except RecursionError:
        raise UsageError(f"{path}: nested too deeply to be a file of questions") from None


def load_json(path: Path) -> Any:
    """A JSON file; see `parse_json`."""
    return parse_json(read_text(path), path)


def load_rows(path: Path) -> list[dict[str, Any]]:
    """The entries of a `.json` (a list), `.jsonl`, `.csv`, `.tsv` or `.parquet` file, in order.

    Raises:
        UsageError: another ending, malformed, or entries that are no objects.
        EnvironmentProblem: Parquet without pyarrow.
    """
    kind = path.suffix.lower()
    if kind == ".parquet":
        rows: Any = _parquet(path)
    elif kind in (".csv", ".tsv"):
        rows = _table(path, "\t" if kind == ".tsv" else ",")
    elif kind == ".jsonl":
        lines = enumerate(read_text(path).split("\n"), start=1)
        rows = [parse_json(text, path, number) for number, text in lines if text.strip()]
    elif kind == ".json":
        rows = load_json(path)
    else:
        raise UsageError(
            f"{path}: {path.suffix or 'no ending'} is given; .json, .jsonl, .csv, .tsv and .parquet are read"
        )
    if not isinstance(rows, list):
        raise UsageError(f"{path}: a list of entries is expected, {type(rows).__name__} is there")
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UsageError(f"{path}: entry {index} is {_short(row)}; an object with keys is expected")
    return rows


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise EnvironmentProblem(
            f"{path} is a Parquet table, which pyarrow reads: pip install 'videoprune[evaluate]' (or give the questions as .json)"
        ) from None
    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise UsageError(f"{path}: no readable Parquet table ({' '.join(str(error).split())[:200]})") from None
    return rows


def _table(path: Path, delimiter: str) -> list[dict[str, Any]]:
    csv.field_size_limit(1 << 24)
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
    rows: list[dict[str, Any]] = []
    try:
        head = next(reader, None)
        if not head:
            raise UsageError(f"{path}: empty; a first line with the names of the columns is expected")
        if len(set(head)) < len(head):
            twice = next(name for name in head if head.count(name) > 1)
            raise UsageError(f"{path}: the column {twice!r} is there twice; keep one of them")
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(head):
                raise UsageError(
                    f"{path}: line {reader.line_num}: {len(cells)} cells where {len(head)} columns are named"
                )
            rows.append(dict(zip(head, cells, strict=True)))
    except csv.Error as error:
        raise UsageError(f"{path}: line {reader.line_num}: {error}") from None
    return rows


def text_of(row: dict[str, Any], key: str, where: str, *, empty: bool = False) -> str:
    """A field that has to be text.

    Raises:
        UsageError: missing, of another type, or empty.
    """
    value = row.get(key)
    if not isinstance(value, str) or not (value.strip() or empty):
        found = "is missing" if key not in row else f"is {_short(value)}"
        raise UsageError(f"{where}: {key} {found}; a text is expected")
    return value


def texts_of(row: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    """A field that has to be a list of texts (numbers are written out); at most 26.

    Raises:
        UsageError: it is anything else.
    """
    value = row.get(key)
    plain = isinstance(value, list | tuple) and all(
        isinstance(item, str | int | float) and not isinstance(item, bool) for item in value
    )
    if not plain or not 1 <= len(value) <= 26:  # type: ignore[arg-type]
        raise UsageError(f"{where}: {key} is {_short(value)}; a list of 1 to 26 texts is expected")
    return tuple(str(item) for item in value)  # type: ignore[union-attr]


def duration_of(row: dict[str, Any], key: str, where: str) -> float | None:
    """Seconds, whole or not; None where absent.

    Raises:
        UsageError: no number, or below 0.
    """
    value = row.get(key)
    if value is None or value == "":
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = -1.0
    if isinstance(value, bool) or not 0 <= seconds < float("inf"):
        raise UsageError(f"{where}: {key} is {_short(value)}; seconds are expected")
    return seconds


def film_files(root: Path, problems: Problems | None = None) -> Iterator[Path]:
    """Films below a folder in sorted order; links are followed, a folder that contains itself by a link is entered once."""
    seen: set[tuple[int, int]] = set()
    for folder, names, files in os.walk(root, followlinks=True):
        try:
            status = os.stat(folder)
        except OSError:
            names[:] = []
            continue
        if (status.st_dev, status.st_ino) in seen:
            names[:] = []
            if problems is not None:
                problems.add("folder twice", folder, "a link leads to a folder that is read already; it is read once")
            continue
        seen.add((status.st_dev, status.st_ino))
        names[:] = sorted(name for name in names if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(FILMS) and not name.startswith("."):
                yield Path(folder, name)


class Problems:
    """Collects what is wrong with a data set: one entry a kind, with a count and the first place."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str, str]] = {}

    def add(self, kind: str, where: object, message: str) -> None:
        count, first, said = self._found.get(kind, (0, str(where), message))
        self._found[kind] = (count + 1, first, said)

    def films(self, paths: Iterable[Path]) -> None:
        """Note the films that are missing, empty or broken links; each film is looked at once."""
        for path in dict.fromkeys(paths):
            try:
                size = path.stat().st_size
            except OSError as error:
                text = "a link in a circle" if isinstance(error, OSError) and error.errno == 40 else "not there"
                self.add("missing film", path, f"{text}; its questions give error rows")
                continue
            if path.is_dir():
                self.add("film is a folder", path, "its questions give error rows")
            elif size == 0:
                self.add("empty film", path, "0 bytes; its questions give error rows")

    def extras(self, root: Path, known: Iterable[Path]) -> None:
        """Note films below `root` that no question asks about."""
        asked = set(known)
        for path in film_files(root, self):
            if Path(os.path.abspath(path)) not in asked:
                self.add("film without a question", path, "it is not watched")

    def unique(self, questions: Sequence[Question]) -> list[Question]:
        """Note ids that are there twice and make them differ; note questions that are asked twice of one film."""
        ids: dict[str, int] = {}
        asked: set[tuple[object, ...]] = set()
        kept = []
        for question in questions:
            ids[question.id] = ids.get(question.id, 0) + 1
            if ids[question.id] > 1:
                self.add("id twice", question.id, "the later ones are called id#2, id#3 …")
                question = dataclasses.replace(question, id=f"{question.id}#{ids[question.id]}")
            content = (question.path, question.task, question.question, question.options, question.answer)
            if content in asked:
                self.add("question twice", question.id, "asked and counted each time")
            asked.add(content)
            kept.append(question)
        return kept

    def options(self, where: str, options: Sequence[str], answer: str | None) -> None:
        """Note options that repeat or are empty, and an answer that is none of them."""
        if options and not any(option.strip() for option in options):
            self.add("empty options", where, "kept by the official index; the last one counts as right")
        elif len(set(options)) < len(options):
            twice = answer is not None and list(options).count(answer) > 1
            kind = "repeated right option" if twice else "repeated option"
            self.add(kind, where, "kept by the official index; harnesses differ in which of them counts")
        if options and answer is not None and answer not in options:
            self.add(
                "answer not among the options",
                where,
                "kept by the official index; it counts as wrong whatever is answered",
            )

    def listed(self) -> tuple[Problem, ...]:
        return tuple(Problem(kind, count, where, message) for kind, (count, where, message) in self._found.items())


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
