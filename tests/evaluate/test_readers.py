"""Every layout is read alike, and what is wrong with a data set is counted or refused."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from tests.evaluate import layouts
from videoprune.errors import EnvironmentProblem, UsageError
from videoprune.evaluate.base import Benchmark, protocol, read

TASKS = list(layouts.NUMBERED)


def problems(benchmark: Benchmark) -> dict[str, int]:
    return {problem.kind: problem.count for problem in benchmark.problems}


@pytest.mark.parametrize("spelling", layouts.MLVU_SPELLINGS)
def test_mlvu_spellings_give_the_same_questions(tmp_path: Path, spelling: str) -> None:
    benchmark = read("mlvu", layouts.mlvu(tmp_path, spelling))
    assert [question.id for question in benchmark.questions] == [f"{task}/{i}" for task in TASKS for i in range(2)]
    assert benchmark.tasks() == dict.fromkeys(TASKS, 2)
    assert all(question.path.is_file() and question.path.is_absolute() for question in benchmark.questions)
    assert benchmark.problems == ()
    first, last = benchmark.questions[0], benchmark.questions[-1]
    assert (first.options, first.answer, first.gold, first.duration) == (("c0", "c1", "c2", "c3"), "c0", 0, 240.5)
    assert last.generation
    assert last.answer == "It is summary 1."
    assert benchmark.questions[14].extra["points"] == ["first", "second"]


def test_mlvu_inside_its_download_and_flat(tmp_path: Path) -> None:
    layouts.mlvu(tmp_path / "MLVU")
    assert len(read("mlvu", tmp_path)) == 18
    for film in (tmp_path / "MLVU" / "video").rglob("*.mp4"):
        film.rename(tmp_path / "MLVU" / "video" / film.name)
    flat = read("mlvu", tmp_path)
    assert all(question.path.is_file() for question in flat.questions)


def test_mlvu_copy_of_lmms_eval(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    text = "What is it?\n(A) a cat\n(B) a dog\n(C) none\n(D) both"
    row = {"video_name": "needle_4.mp4", "duration": "61.5", "question": text, "answer": "B", "task_type": "needle"}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "test.parquet")
    layouts.put_film(tmp_path / "needle_4.mp4")
    [question] = read("mlvu", tmp_path).questions
    assert (question.question, question.options) == ("What is it?", ("a cat", "a dog", "none", "both"))
    assert (question.answer, question.gold, question.task) == ("a dog", 1, "needle")
    assert question.path.is_file()


def test_mlvu_test_set(tmp_path: Path) -> None:
    benchmark = read("mlvu-test", layouts.mlvu_test(tmp_path))
    assert len(benchmark) == 9
    assert {len(question.options) for question in benchmark.questions} == {6}
    assert all(question.answer is None and question.path.is_file() for question in benchmark.questions)
    known = read("mlvu-test", layouts.mlvu_test(tmp_path, answers=True))
    assert [question.gold for question in known.questions] == [0, 1, 2, 3, 4, 5, 0, 1, 2]
    with pytest.raises(UsageError, match="mlvu-test"):
        read("mlvu", layouts.mlvu_test(tmp_path / "alone"))


def test_mlvu_defects_are_kept_and_counted(tmp_path: Path) -> None:
    rows = {
        "needle": [
            layouts.mlvu_row("needle", 0, answer="something else"),
            layouts.mlvu_row("needle", 1, candidates=["c1", "x", "c1", "y"], answer="c1"),
            layouts.mlvu_row("needle", 2, candidates=["x", "x", "c2", "y"]),
        ],
        "topic_reasoning": [layouts.mlvu_row("topic_reasoning", 0, candidates=["", "", "", ""], answer="")],
        "count": [layouts.mlvu_row("count", 0, candidates=[1, 2, 3, 4], answer=3)],
    }
    benchmark = read("mlvu", layouts.mlvu(tmp_path, rows=rows))
    ids = {question.id: question for question in benchmark.questions}
    assert list(ids) == ["needle/0", "needle/1", "needle/2", "count/0", "topic_reasoning/0"]
    assert [question.gold for question in ids.values()] == [None, 2, 2, 2, 3]
    assert problems(benchmark) == {
        "task without a file": 6,
        "answer not among the options": 1,
        "repeated right option": 1,
        "repeated option": 1,
        "empty options": 1,
    }
    assert "needle.json, entry 0" in next(str(p) for p in benchmark.problems if p.kind.startswith("answer"))
    official = protocol("mlvu-official")
    assert official.correct("A", ids["needle/0"]) is False
    assert [official.correct(letter, ids["needle/1"]) for letter in "AC"] == [False, True]


def test_missing_and_extra_and_empty_films(tmp_path: Path) -> None:
    layouts.mlvu(tmp_path)
    films = tmp_path / "video"
    (films / "1_plotQA" / "plotQA_0.mp4").unlink()
    (films / "2_needle" / "needle_0.mp4").write_bytes(b"")
    (films / "2_needle" / "needle_1.mp4").rename(films / "2_needle" / "needle_1.MKV")
    (films / "3_ego" / "extra.mp4").write_bytes(b"film")
    (tmp_path / "json" / "10_new.json").write_text("[]")
    benchmark = read("mlvu", tmp_path)
    assert len(benchmark) == 18
    assert problems(benchmark) == {"unknown task": 1, "missing film": 2, "empty film": 1, "film without a question": 2}
    missing = next(question for question in benchmark.questions if question.id == "plotQA/0")
    assert missing.path == films / "1_plotQA" / "plotQA_0.mp4"


def test_capitals_of_an_ending_do_not_matter(tmp_path: Path) -> None:
    layouts.mlvu(tmp_path)
    (tmp_path / "video/2_needle/needle_1.mp4").rename(tmp_path / "video/2_needle/needle_1.MP4")
    assert read("mlvu", tmp_path).problems == ()


@pytest.mark.parametrize("kind", ["parquet", "json", "csv", "template"])
def test_video_mme(tmp_path: Path, kind: str) -> None:
    benchmark = read("video-mme", layouts.video_mme(tmp_path, kind))
    assert [question.id for question in benchmark.questions] == ["001-1", "001-2", "002-1", "002-2", "003-1", "003-2"]
    assert [question.gold for question in benchmark.questions] == [0, 1, 1, 2, 2, 3]
    assert [question.path.name for question in benchmark.questions[::2]] == ["id_0.mp4", "id_1.MP4", "id_2.mkv"]
    assert benchmark.questions[0].options[:2] == ("Apples.", "Candles.")
    assert benchmark.questions[4].extra["group"] == {
        "length": "long",
        "domain": "Knowledge",
        "sub_category": "Astronomy",
    }
    assert [bool(question.extra.get("subtitles")) for question in benchmark.questions] == [True, True] + [False] * 4
    assert benchmark.problems == ()


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts.video_mme(tmp_path, "parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(EnvironmentProblem, match=r"videoprune\[evaluate\]"):
        read("video-mme", tmp_path)


def test_longvideobench(tmp_path: Path) -> None:
    benchmark = read("longvideobench", layouts.longvideobench(tmp_path))
    assert [(q.id, q.task, q.gold, len(q.options), q.duration) for q in benchmark.questions] == [
        ("v0_0", "S2E", 1, 4, 12.5),
        ("v1_0", "TOS", 1, 5, 400.0),
    ]
    assert [question.extra["group"]["length"] for question in benchmark.questions] == ["15", "600"]
    assert all(Path(question.extra["subtitles"]).is_file() for question in benchmark.questions)
    blind = read("longvideobench", layouts.longvideobench(tmp_path / "test", answers=False))
    assert [question.answer for question in blind.questions] == [None, None]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json"])
def test_folder(tmp_path: Path, kind: str) -> None:
    benchmark = read("folder", layouts.folder(tmp_path, kind))
    assert [(q.task, q.answer, q.gold, q.path.name) for q in benchmark.questions] == [
        ("colour", "red", 0, "a.mp4"),
        ("shape", "square", 1, "b.mp4"),
        ("summary", "a red circle moves up", None, "a.mp4"),
    ]
    assert [len(questions) for questions in benchmark.films().values()] == [2, 1]
    assert benchmark.problems == ()
    assert len(read("folder", next(tmp_path.glob("questions.*")))) == 3


def test_malformed_json_says_where(tmp_path: Path) -> None:
    layouts.mlvu(tmp_path)
    file = tmp_path / "json" / "4_count.json"
    file.write_text('[\n {"video": "a.mp4",\n  "question": "x",},\n]')
    with pytest.raises(UsageError, match=r"4_count\.json: line 3, column 19"):
        read("mlvu", tmp_path)
    file.write_text('[{"video": "a.mp4", "question": "x", "video": "b.mp4"}]')
    with pytest.raises(UsageError, match="'video' is twice"):
        read("mlvu", tmp_path)
    file.write_text('{"video": "a.mp4"}')
    with pytest.raises(UsageError, match="a list of entries"):
        read("mlvu", tmp_path)
    file.write_text('[{"video": "a.mp4", "duration": 3, "candidates": ["a"], "answer": "a"}]')
    with pytest.raises(UsageError, match="entry 0: question is missing"):
        read("mlvu", tmp_path)
    file.write_text("[" * 100_000)
    with pytest.raises(UsageError, match=r"4_count\.json"):
        read("mlvu", tmp_path)


def test_malformed_lines_say_where(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text('{"video": "a.mp4", "question": "x"}\n\n{"video": \n')
    with pytest.raises(UsageError, match=r"questions\.jsonl: line 3, column"):
        read("folder", tmp_path)
    file.unlink()
    table = tmp_path / "questions.csv"
    table.write_text("video,question\na.mp4,x\nb.mp4,y,z\n")
    with pytest.raises(UsageError, match=r"line 3: 3 cells where 2 columns"):
        read("folder", tmp_path)
    table.write_text("video,video\na.mp4,x\n")
    with pytest.raises(UsageError, match="'video' is there twice"):
        read("folder", tmp_path)


def test_not_utf8_says_where(tmp_path: Path) -> None:
    layouts.mlvu(tmp_path)
    (tmp_path / "json" / "3_ego.json").write_bytes(b'[\n{"video": "caf\xe9.mp4"}]')
    with pytest.raises(UsageError, match=r"3_ego\.json: line 2, byte 15: .* not UTF-8"):
        read("mlvu", tmp_path)
    (tmp_path / "json" / "3_ego.json").write_bytes(b"\xef\xbb\xbf[]")  # a byte-order mark is no fault
    assert len(read("mlvu", tmp_path)) == 16


def test_unicode_names_and_text(tmp_path: Path) -> None:
    layouts.put_film(tmp_path / "фильм é.mp4")
    layouts.write_csv(tmp_path / "questions.csv", [{"video": "фильм é.mp4", "question": "何?", "answer": "ja"}])
    [question] = read("folder", tmp_path).questions
    assert question.path.is_file()
    assert question.question == "何?"


def test_repeated_ids_and_questions(tmp_path: Path) -> None:
    layouts.put_film(tmp_path / "a.mp4")
    row = {"id": "x", "video": "a.mp4", "question": "Why?", "answer": "so"}
    layouts.write_csv(tmp_path / "questions.csv", [row, row, {**row, "question": "How?"}])
    benchmark = read("folder", tmp_path)
    assert [question.id for question in benchmark.questions] == ["x", "x#2", "x#3"]
    assert problems(benchmark) == {"id twice": 2, "question twice": 1}


def test_unknown_task_of_the_test_set_is_kept(tmp_path: Path) -> None:
    layouts.mlvu_test(tmp_path)
    file = tmp_path / "test_question.json"
    rows = json.loads(file.read_text())
    rows[0]["question_type"] = "cookingQA"
    layouts.put_json(file, rows)
    benchmark = read("mlvu-test", tmp_path)
    assert benchmark.questions[0].task == "cookingQA"
    assert problems(benchmark) == {"unknown task": 1}


def test_links_are_followed_and_circles_end(tmp_path: Path) -> None:
    store, root = tmp_path / "store", tmp_path / "set"
    layouts.put_film(store / "films" / "a.mp4")
    root.mkdir()
    (root / "linked").symlink_to(store / "films", target_is_directory=True)
    (store / "films" / "again").symlink_to(root, target_is_directory=True)
    (root / "b.mp4").symlink_to(root / "b.mp4")
    layouts.write_csv(
        root / "questions.csv", [{"video": name, "question": "x", "answer": "y"} for name in ("a.mp4", "b.mp4")]
    )
    benchmark = read("folder", root)
    assert benchmark.questions[0].path == root / "linked" / "a.mp4"
    assert benchmark.questions[0].path.is_file()
    assert problems(benchmark)["missing film"] == 1
    assert problems(benchmark)["folder twice"] >= 1


@pytest.mark.parametrize("name", ["../a.mp4", "/etc/passwd", "x/../../a.mp4"])
def test_a_film_outside_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    layouts.write_csv(tmp_path / "questions.csv", [{"video": name, "question": "x", "answer": "y"}])
    with pytest.raises(UsageError, match="outside the data set's folder"):
        read("folder", tmp_path)


def test_ambiguous_or_missing_files_of_questions(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"write questions\.csv"):
        read("folder", tmp_path)
    (tmp_path / "one.csv").write_text("video,question\n")
    (tmp_path / "two.csv").write_text("video,question\n")
    with pytest.raises(UsageError, match="several files"):
        read("folder", tmp_path)
    with pytest.raises(UsageError, match="no question is in it"):
        read("folder", tmp_path / "one.csv")
    with pytest.raises(UsageError, match="neither a folder nor a file"):
        read("folder", tmp_path / "nowhere")
    with pytest.raises(UsageError, match="did you mean 'mlvu'"):
        read("mlvuu", tmp_path)
    for name in ("mlvu", "mlvu-test", "video-mme", "longvideobench"):
        with pytest.raises(UsageError, match=str(tmp_path)):
            read(name, tmp_path / "nothing")


def test_a_name_of_several_films_is_refused(tmp_path: Path) -> None:
    layouts.put_film(tmp_path / "x" / "a.mp4")
    layouts.put_film(tmp_path / "y" / "a.mp4")
    layouts.write_csv(tmp_path / "questions.csv", [{"video": "a.mp4", "question": "x", "answer": "y"}])
    with pytest.raises(UsageError, match="name of several films"):
        read("folder", tmp_path)


def test_ten_thousand_entries_are_fast(tmp_path: Path) -> None:
    rows = [layouts.mlvu_row("plotQA", index, video=f"film_{index % 500}.mp4") for index in range(10_000)]
    layouts.put_json(tmp_path / "json" / "1_plotQA.json", rows)
    for index in range(500):
        layouts.put_film(tmp_path / "video" / "1_plotQA" / f"film_{index}.mp4")
    started = time.process_time()
    benchmark = read("mlvu", tmp_path)
    assert time.process_time() - started < 3
    assert len(benchmark) == 10_000
    assert len(benchmark.films()) == 500
    assert problems(benchmark) == {"task without a file": 8}


def test_unreadable_file_is_told(tmp_path: Path) -> None:
    layouts.mlvu(tmp_path)
    file = tmp_path / "json" / "1_plotQA.json"
    file.unlink()
    os.symlink("1_plotQA.json", file)
    with pytest.raises(UsageError, match="can't be read"):
        read("mlvu", tmp_path)
