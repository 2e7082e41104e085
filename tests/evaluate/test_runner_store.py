"""Results on disk: torn lines heal, a full disk loses nothing, other runs are refused, attempts replace errors."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from videoprune.errors import EnvironmentProblem, UsageError
from videoprune.evaluate.base import Question
from videoprune.evaluate.lock import STALE, Lock
from videoprune.evaluate.rows import Setup, effective, error_of, export, film_row, parse, question_row, read_rows
from videoprune.evaluate.store import Results

SETUP = Setup("demo", "aa", "demo", "bb", {"fps": 1}, "likelihood", "cc", 0)
IDENTITY = {"benchmark": "mlvu", "recipe": "demo", "recipe_digest": "aa", "seed": 0}


def asked(number: int, film: str = "f", **changes: object) -> Question:
    settings: dict[str, object] = {
        "id": f"count/{number}", "video": f"{film}.mp4", "path": Path(f"/{film}.mp4"), "task": "count",
        "question": f"how many {number}?", "options": ("one", "two"), "answer": "one",
    }  # fmt: skip
    return Question(**{**settings, **changes})  # type: ignore[arg-type]


def answered(number: int, film: str = "f", correct: bool = True) -> dict[str, object]:
    return question_row(SETUP, film, asked(number, film), prediction="one", choice=0, correct=correct)


def failed(number: int, film: str = "f") -> dict[str, object]:
    return question_row(SETUP, film, asked(number, film), error=error_of(ValueError("no"), "ask"))


def test_rows_survive_and_are_not_written_twice(tmp_path: Path) -> None:
    first = Results(tmp_path, IDENTITY)
    assert first.append(0, [answered(1), answered(2)]) == 2
    assert first.append(1, [answered(2), answered(3)]) == 1
    first.describe({})
    first.close()
    again = Results(tmp_path, IDENTITY)
    assert len(again.answered) == 3
    assert again.tallies == {"count": [3, 3, 3]}
    assert again.append(0, [answered(1)]) == 0
    assert sorted(path.name for path in tmp_path.glob("results*")) == ["results-0.jsonl", "results-1.jsonl"]


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_a_torn_last_line_heals(tmp_path: Path, cut: int) -> None:
    results = Results(tmp_path, IDENTITY)
    results.append(0, [answered(1), answered(2), answered(3)])
    results.describe({})
    results.close()
    path = tmp_path / "results-0.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    healed = Results(tmp_path, IDENTITY)
    left = 3 if cut == 1 else 2  # without its line break the last row is whole
    assert len(healed.answered) == left
    assert bool(healed.healed) == (left == 2)
    healed.append(0, [answered(3)])
    healed.close()
    assert path.read_bytes() == whole


def test_damage_in_the_middle_costs_only_its_lines(tmp_path: Path) -> None:
    results = Results(tmp_path, IDENTITY)
    results.append(0, [answered(1), answered(2)])
    results.describe({})
    results.close()
    path = tmp_path / "results-0.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"\0" * 50 + b"\n" + lines[1])
    again = Results(tmp_path, IDENTITY)
    assert len(again.answered) == 1
    assert "1 damaged" in again.healed[0]


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only")])
def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str) -> None:
    results = Results(tmp_path, IDENTITY)
    results.append(0, [answered(1)])
    before = (tmp_path / "results-0.jsonl").read_bytes()
    real = os.write

    def half(handle: int, data: object) -> int:
        if len(bytes(data)) < 100:  # type: ignore[call-overload]
            raise OSError(number, os.strerror(number))
        return real(handle, bytes(data)[:-50])  # type: ignore[call-overload]

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(EnvironmentProblem, match=words):
        results.append(0, [answered(2)])
    assert (tmp_path / "results-0.jsonl").read_bytes() == before


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(EnvironmentProblem, match="no permission"):
        Results(tmp_path / "x", IDENTITY)


@pytest.mark.parametrize(
    ("field", "label"), [("recipe", "recipe is demo, not other"), ("seed", "seed is 0, not other")]
)
def test_another_runs_results_are_refused(tmp_path: Path, field: str, label: str) -> None:
    Results(tmp_path, IDENTITY).describe({})
    with pytest.raises(UsageError, match=label):
        Results(tmp_path, {**IDENTITY, field: "other"})
    Results(tmp_path, IDENTITY).close()


def test_results_without_a_run_are_refused(tmp_path: Path) -> None:
    (tmp_path / "results-0.jsonl").write_text("{}\n")
    with pytest.raises(UsageError, match=r"without their run\.json"):
        Results(tmp_path, IDENTITY)


def test_answers_replace_errors(tmp_path: Path) -> None:
    results = Results(tmp_path, IDENTITY)
    lost = film_row(SETUP, "g", [asked(5, "g"), asked(6, "g")], error_of(ValueError("broken"), "video"), 1.0)
    results.append(0, [failed(1), lost])
    assert len(results.errors) == 2
    assert results.append(0, [failed(1)]) == 0  # failing again is no news
    results.append(0, [answered(1), answered(5, "g")])
    rows = read_rows(tmp_path)
    assert [row["error"] is None for row in rows].count(True) == 2
    left = next(row for row in rows if row["question"] is None)
    assert left["questions"] == ["count/6"]
    results.append(0, [answered(6, "g")])
    assert all(row["error"] is None for row in read_rows(tmp_path))
    assert len(effective(parse(tmp_path / "results-0.jsonl")[0])) == 3


def test_a_film_that_fails_in_another_state_has_one_error(tmp_path: Path) -> None:
    results = Results(tmp_path, IDENTITY)
    for film, why in (("content", "hangs"), ("unreadable", "is gone")):
        row = film_row(SETUP, film, [asked(5, "g"), asked(6, "g")], error_of(ValueError(why), "video"), 1.0)
        results.append(0, [row])
    assert [row["error"]["message"] for row in read_rows(tmp_path)] == ["is gone"]


def test_shards_write_files_of_their_own_and_are_read_together(tmp_path: Path) -> None:
    for shard in ((1, 2), (2, 2)):
        results = Results(tmp_path, IDENTITY, shard)
        results.append(0, [answered(shard[0])])
        results.describe({"shard": list(shard)})
        results.close()
    names = {path.name for path in tmp_path.iterdir()}
    assert {"results-1-of-2-0.jsonl", "results-2-of-2-0.jsonl", "run-1-of-2.json", "run-2-of-2.json"} == names
    torn = tmp_path / "results-2-of-2-0.jsonl"
    torn.write_bytes(torn.read_bytes()[:-20])
    beside = Results(tmp_path, IDENTITY, (1, 2))  # a line that the other shard is writing is not ours to heal
    assert torn.read_bytes()[-1:] != b"\n"
    assert len(beside.answered) == 1
    assert Results(tmp_path, IDENTITY).healed  # a run of the whole folder heals them all
    assert len(read_rows(tmp_path)) == 1


def test_keys_are_of_the_content() -> None:
    base = SETUP.key("f", asked(1))
    others = [
        SETUP.key("g", asked(1)),
        SETUP.key("f", None),
        SETUP.key("f", asked(1, question="other?")),
        SETUP.key("f", asked(1, options=("two", "one"))),
        Setup("demo", "xx", "demo", "bb", {"fps": 1}, "likelihood", "cc", 0).key("f", asked(1)),
        Setup("demo", "aa", "demo", "xx", {"fps": 1}, "likelihood", "cc", 0).key("f", asked(1)),
        Setup("demo", "aa", "demo", "bb", {"fps": 2}, "likelihood", "cc", 0).key("f", asked(1)),
        Setup("demo", "aa", "demo", "bb", {"fps": 1}, "likelihood", "xx", 0).key("f", asked(1)),
        Setup("demo", "aa", "demo", "bb", {"fps": 1}, "likelihood", "cc", 1).key("f", asked(1)),
    ]
    assert len({base, *others}) == 10
    renamed = Setup("other name", "aa", "elsewhere", "bb", {"fps": 1}, "likelihood", "cc", 0)
    assert renamed.key("f", asked(1, path=Path("/elsewhere/f.mp4"))) == base


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_export_holds_every_row(tmp_path: Path, ending: str) -> None:
    import csv

    import pyarrow.parquet

    rows = [answered(1), failed(2)]
    export(rows, tmp_path / f"rows.{ending}")
    if ending == "csv":
        with open(tmp_path / "rows.csv", encoding="utf-8", newline="") as file:
            found = list(csv.DictReader(file))
    else:
        found = pyarrow.parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    assert [row["key"] for row in found] == [row["key"] for row in rows]
    assert json.loads(found[0]["options"]) == ["one", "two"]
    assert json.loads(found[1]["error"])["stage"] == "ask"


def test_export_elsewhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.csv or \.parquet"):
        export([], tmp_path / "rows.xlsx")


# --------------------------------------------------------------------------------------------------------------- lock


def test_two_runs_at_a_time_are_refused(tmp_path: Path) -> None:
    lock = Lock(tmp_path)
    with pytest.raises(UsageError, match=f"process {os.getpid()}"):
        Lock(tmp_path)
    with pytest.raises(UsageError, match="another run holds it"):
        Lock(tmp_path, (1, 2))
    lock.release()
    Lock(tmp_path).release()
    assert not list(tmp_path.glob(".lock*"))


def test_shards_share_a_folder(tmp_path: Path) -> None:
    first, second = Lock(tmp_path, (1, 2)), Lock(tmp_path, (2, 2))
    for shard in ((1, 1), (1, 2), (1, 3)):
        with pytest.raises(UsageError, match="another run holds it"):
            Lock(tmp_path, shard)
    first.release()
    second.release()


def written(path: Path, age: float = 0.0, **changes: object) -> None:
    lock = Lock(path.parent)
    holder = json.loads(path.read_text())
    lock.release()
    path.write_text(json.dumps({**holder, **changes}))
    stamp = path.stat().st_mtime - age
    os.utime(path, (stamp, stamp))


@pytest.mark.parametrize(
    ("changes", "age", "held"),
    [
        ({"pid": 2**22 + 1}, 0, False),  # above every process number: gone
        ({"begun": "another boot 17"}, 0, False),  # the number belongs to another process by now
        ({"host": "elsewhere"}, 0, True),
        ({"host": "elsewhere"}, STALE + 60, False),  # nobody touches it any more
    ],
)
def test_what_a_dead_run_left_behind_heals(tmp_path: Path, changes: dict[str, object], age: float, held: bool) -> None:
    written(tmp_path / ".lock", age, **changes)
    if held:
        with pytest.raises(UsageError, match="elsewhere"):
            Lock(tmp_path)
    else:
        Lock(tmp_path).release()
