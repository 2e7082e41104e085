"""A results folder: rows appended and synced, a torn line healed, what another run wrote refused."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from videoprune.errors import EnvironmentProblem, UsageError
from videoprune.evaluate.rows import PATTERN, Row, dump, parse

RUN = "run.json"
LABELS = {
    "benchmark": "benchmark",
    "model": "model",
    "revision": "weights of the model",
    "recipe": "recipe",
    "recipe_digest": "recipe's settings",
    "frames": "frame rule",
    "protocol": "protocol",
    "protocol_digest": "protocol's version",
    "seed": "seed",
    "semantics": "version of the rows",
}


class Results:
    """The results of one recipe in one folder.

    Args:
        folder: made where it does not exist.
        identity: what all its rows share, by the names of LABELS; results of another one are refused.
        shard: (i, n), for the names of this run's files.

    Attributes:
        errors: key -> row of the error rows that no answer replaced.
        answered: keys of the answered questions.
        tallies: rows so far, by task: [rows, right, judged].
        healed: what was repaired while opening, one sentence each.

    Raises:
        UsageError: the folder holds results of something else.
        EnvironmentProblem: it can't be read or written.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], shard: tuple[int, int] = (1, 1)) -> None:
        self.folder, self.identity, self.shard = folder, dict(identity), shard
        self.errors: dict[str, Row] = {}
        self.answered: set[str] = set()
        self.tallies: dict[str, list[int]] = {}
        self.healed: list[str] = []
        self._handles: dict[str, int] = {}
        self._others = False  # whether shards of other runs may be writing beside us
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(folder, error) from None
        self._check()
        self._load()

    def _run_file(self) -> Path:
        index, count = self.shard
        return self.folder / (RUN if count == 1 else f"run-{index}-of-{count}.json")

    def _check(self) -> None:
        for path in sorted(self.folder.glob("run*.json")):
            try:
                there = json.loads(path.read_text(encoding="utf-8"))["identity"]
            except (ValueError, KeyError, TypeError):
                raise UsageError(
                    f"--out {self.folder}: {path.name} there is no record of a run; give another folder"
                ) from None
            except OSError as error:
                raise EnvironmentProblem(f"{path}: cannot be read ({error.strerror})") from None
            for name, label in LABELS.items():
                if there.get(name) != self.identity.get(name):
                    raise UsageError(
                        f"--out {self.folder} holds results of another run: its {label} is {_short(there.get(name))}, "
                        f"not {_short(self.identity.get(name))}; give another folder, or the same settings"
                    )
        if not list(self.folder.glob("run*.json")) and list(self.folder.glob(PATTERN)):
            raise UsageError(f"--out {self.folder} holds results without their run.json; give another folder")

    def _load(self) -> None:
        mine = {path.name for path in self._files()}
        for path in sorted(self.folder.glob(PATTERN)):
            if path.name in mine:
                self._heal(path)
            rows, damaged = parse(path)
            if damaged and path.name in mine:
                self.healed.append(
                    f"{path.name}: {damaged} damaged lines are left aside, their questions are asked again"
                )
            for row in rows:
                self._note(row)

    def _files(self) -> list[Path]:
        index, count = self.shard
        pattern = "results-[0-9]*.jsonl" if count == 1 else f"results-{index}-of-{count}-*.jsonl"
        return list(self.folder.glob(pattern)) + ([self.folder / "results.jsonl"] if count == 1 else [])

    def _heal(self, path: Path) -> None:
        """Cut a last line that a crash left half-written; complete one that only lacks its end."""
        try:
            if not path.is_file() or not path.stat().st_size:
                return
            with open(path, "r+b") as file:
                file.seek(-1, os.SEEK_END)
                if file.read(1) == b"\n":
                    return
                content = _tail(file)
                start = content.rfind(b"\n") + 1
                torn = content[start:]
                try:
                    whole = isinstance(json.loads(torn), dict)
                except ValueError:
                    whole = False
                if whole:
                    file.seek(0, os.SEEK_END)
                    file.write(b"\n")
                else:
                    file.truncate(path.stat().st_size - len(torn))
                    self.healed.append(f"{path.name}: a torn last line of {len(torn)} bytes was cut off")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise unwritable(path, error) from None

    def _note(self, row: Row) -> bool:
        """Take a row into account; False where its question is answered already."""
        key = row["key"]
        if key in self.answered:
            return False
        before = self.errors.pop(key, None)
        if row["error"] is None:
            self.answered.add(key)
        else:
            self.errors[key] = row
        for each, sign in ((before, -1), (row, 1)):
            if each is not None and each.get("task") is not None:
                tally = self.tallies.setdefault(each["task"], [0, 0, 0])
                tally[0] += sign
                tally[1] += sign * (each["correct"] is True)
                tally[2] += sign * (each["correct"] is not None)
        return True

    # ------------------------------------------------------------------ writing

    def describe(self, run: Mapping[str, Any]) -> None:
        """Write `run.json` (of a shard: `run-i-of-n.json`): the identity and what is to be said of this run."""
        path = self._run_file()
        part = path.with_name(f".{path.name}.part")
        try:
            part.write_text(
                json.dumps({"identity": self.identity, **run}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
            )
            os.replace(part, path)
        except OSError as error:
            raise unwritable(path, error) from None

    def append(self, worker: int, rows: Iterable[Row]) -> int:
        """Append rows to a worker's file and sync it; rows whose question is answered already are left out.

        Raises:
            EnvironmentProblem: disk full, or no right to write; everything appended before stays whole.
        """
        fresh: list[Row] = []
        for row in rows:
            known = self.errors.get(row["key"])
            if known is not None and row["error"] is not None:
                continue  # it failed again
            if self._note(row):
                fresh.append(row)
        if not fresh:
            return 0
        index, count = self.shard
        name = f"results-{worker}.jsonl" if count == 1 else f"results-{index}-of-{count}-{worker}.jsonl"
        self._write(name, b"".join(map(dump, fresh)), sync=True)
        return len(fresh)

    def time(self, record: Mapping[str, Any]) -> None:
        """Append what a film took to `films*.jsonl`; a record for planning, not a result."""
        index, count = self.shard
        self._write("films.jsonl" if count == 1 else f"films-{index}-of-{count}.jsonl", dump(record), sync=False)

    def _write(self, name: str, data: bytes, *, sync: bool) -> None:
        path = self.folder / name
        try:
            handle = self._handles.get(name)
            if handle is None:
                handle = self._handles[name] = os.open(path, os.O_CREAT | os.O_APPEND | os.O_RDWR, 0o644)
            size = os.fstat(handle).st_size
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(handle, view) :]
                if sync:
                    os.fsync(handle)
            except OSError:
                os.ftruncate(handle, size)  # half a row is no row
                raise
        except OSError as error:
            raise unwritable(path, error) from None

    def close(self) -> None:
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()


def unwritable(path: Path, error: OSError) -> EnvironmentProblem:
    """What to say when a result can't be written."""
    reasons = {
        errno.ENOSPC: "the disk is full; free some space",
        errno.EDQUOT: "the quota is used up; free some space",
        errno.EROFS: "the file system is read-only; give a folder elsewhere",
        errno.EACCES: "no permission; change its rights, or give a folder elsewhere",
        errno.EPERM: "no permission; change its rights, or give a folder elsewhere",
    }
    reason = reasons.get(error.errno or 0, f"{error.strerror or error}; check the disk")
    return EnvironmentProblem(
        f"--out {path}: cannot be written: {reason}, and run the same command again: it goes on where this one stopped",
        stage="results",
    )


def _tail(file: Any, step: int = 1 << 16) -> bytes:
    """The end of a file back to its last line break, or all of it."""
    size = file.seek(0, os.SEEK_END)
    data = b""
    while len(data) < size and b"\n" not in data:
        start = max(0, size - len(data) - step)
        file.seek(start)
        data = file.read(size - start)
        step *= 2
    return data


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)
    return text if len(text) <= 60 else text[:57] + "…"


def progress_of(results: Sequence[Results]) -> tuple[int, int]:
    """(answered questions, error rows) of several folders."""
    return sum(len(each.answered) for each in results), sum(len(each.errors) for each in results)
