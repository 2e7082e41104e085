"""The command line with a pipeline that only pretends: what it prints, where, and how it ends."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Ended
from tests.films import sound_only, write
from videoprune.errors import EnvironmentProblem, FilmError
from videoprune.recipe import Recipe

Run = Callable[..., Ended]
LOADED: list[dict[str, Any]] = []


class FakeReport:
    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def to_dict(self) -> dict[str, Any]:
        work = {"linear": 1e9 * self.tokens, "attention": 1e8}
        return {
            "tokens": {"sampled": 100, "encoded": 100, "merged": self.tokens, "last_layer": self.tokens},
            "kv": {"entries": [self.tokens], "bytes": 1024 * self.tokens, "dense_bytes": 102400},
            "flops": {"total": work, "dense": work},
            "seconds": {"encode": 1.0, "prefill": 0.5},
            "peak_bytes": 1,
            "choices": [],
        }

    def table(self, evidence: Any = ()) -> str:
        return "the report"


@dataclasses.dataclass
class FakeAnswer:
    question: str
    text: str
    report: FakeReport
    notice: str | None = "the demo model may not know"
    evidence: list[dict[str, float]] = dataclasses.field(default_factory=lambda: [{"seconds": 3.0, "weight": 0.5}])

    def to_dict(self) -> dict[str, Any]:
        told = {key: getattr(self, key) for key in ("question", "text", "notice", "evidence")}
        return {**told, "report": self.report.to_dict()}


class FakePipeline:
    model_name = "fake"

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.choices: list[dict[str, str]] = []

    @classmethod
    def load(cls, recipe: Any = None, *, overrides: Any = (), **settings: Any) -> FakePipeline:
        LOADED.append(settings)
        if settings.get("model") == "gone":
            raise EnvironmentProblem("model 'gone' is not there; give a folder")
        return cls(Recipe.load(recipe or "demo", overrides))

    def with_recipe(self, recipe: Any, overrides: Any = ()) -> FakePipeline:
        return FakePipeline(Recipe.load(recipe, overrides))

    def watch(self, film: str, *, frames: Any = None, progress: Any = None) -> FakeVideo:
        if "rotten" in str(film):
            raise FilmError(f"film {film!r} can't be decoded")
        if "bug" in str(film):
            raise RuntimeError("two\nlines")
        if "stop" in str(film):
            raise KeyboardInterrupt
        LOADED[-1] |= {"frames": frames}
        progress("encode", 4, 4)
        return FakeVideo(film, 100 if self.recipe.name == "dense" else 10, self)


@dataclasses.dataclass
class FakeVideo:
    film: str
    tokens: int
    pipeline: Any
    warnings: list[str] = dataclasses.field(default_factory=lambda: ["the film is cut"])
    seconds: dict[str, float] = dataclasses.field(default_factory=lambda: {"encode": 1.0})
    flops: dict[str, Any] = dataclasses.field(default_factory=dict)

    def ask_all(self, questions: list[str], *, progress: Any = None) -> list[FakeAnswer]:
        return [FakeAnswer(question, f"answer to {question}", FakeReport(self.tokens)) for question in questions]


@pytest.fixture
def film(tmp_path: Path) -> str:
    path = tmp_path / "film.mp4"
    write(path, 100)  # four seconds
    return str(path)


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the whole module, so that these tests never wait for transformers."""
    LOADED.clear()
    monkeypatch.setitem(sys.modules, "videoprune.pipeline", types.SimpleNamespace(Pipeline=FakePipeline))


# ---------------------------------------------------------------------------------------------------------------- ask


def test_a_film_that_cannot_be_read_is_told_before_a_model_is_loaded(videoprune: Run, tmp_path: Path) -> None:
    sound = sound_only(tmp_path / "sound.mp4")
    for words in ((sound, "q"), (tmp_path / "none.mp4", "q")):
        done = videoprune("ask", *words)
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith("error: film")
    assert not LOADED


def test_start_past_the_end_is_a_usage_error(videoprune: Run, film: str) -> None:
    done = videoprune("ask", film, "q", "--start", "100")
    assert done.code == 2
    assert "past the end" in done.err
    assert not LOADED


def test_stdout_is_the_answer_alone(videoprune: Run, film: str) -> None:
    done = videoprune("ask", film, "what happens?")
    assert (done.code, done.out) == (0, "answer to what happens?\n")
    assert "encode: 4/4" in done.err
    assert "warning: the film is cut" in done.err
    assert "note: the demo model may not know" in done.err


def test_quiet_and_verbose(videoprune: Run, film: str) -> None:
    assert "encode" not in videoprune("ask", film, "q", "-q").err
    done = videoprune("ask", film, "q", "-v")
    assert "the report" in done.err
    assert done.out == "answer to q\n"


def test_json_is_one_object(videoprune: Run, film: str) -> None:
    done = videoprune("ask", film, "one", "two", "--json", "--set", "prefill.keep=0.3", "--compare")
    assert done.code == 0
    data = json.loads(done.out)
    assert {"film", "model", "recipe", "watch", "answers"} <= set(data)
    assert set(data["watch"]) == {"seconds", "flops"}
    assert [answer["question"] for answer in data["answers"]] == ["one", "two"]
    assert set(data["answers"][0]) == {"question", "text", "notice", "evidence", "report"}
    assert [answer["report"]["tokens"]["merged"] for answer in data["compare"]] == [100, 100]
    assert (data["recipe"], data["model"], data["overrides"]) == ("demo", "fake", ["prefill.keep=0.3"])


def test_compare_is_side_by_side(videoprune: Run, film: str) -> None:
    done = videoprune("ask", film, "q", "--compare")
    assert all(
        text in done.out for text in ("demo", "dense", "tokens entering the LM", "key/value cache", "FLOPs", "seconds")
    )


def test_several_answers_a_line_each(videoprune: Run, film: str) -> None:
    assert videoprune("ask", film, "a", "b").out == "answer to a\nanswer to b\n"
    assert len(LOADED) == 1


@pytest.mark.parametrize("words", [(), ("-",)])
def test_questions_from_stdin(
    videoprune: Run, film: str, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n\n  two \n"))
    assert videoprune("ask", film, *words).out == "answer to one\nanswer to two\n"


def test_frame_flags_go_over_the_recipe(videoprune: Run, film: str) -> None:
    videoprune("ask", film, "q", "--frames", "8", "--start", "2")
    assert (LOADED[-1]["frames"].frames, LOADED[-1]["frames"].fps, LOADED[-1]["frames"].start) == (8, None, 2.0)
    videoprune("ask", film, "q", "--fps", "2", "--max-frames", "16")
    assert (LOADED[-1]["frames"].fps, LOADED[-1]["frames"].max) == (2.0, 16)


# -------------------------------------------------------------------------------------------------------------- wrong


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("ask", "FILM", ""), 2, "question"),
        (("ask", "FILM", "q", "  "), 2, "question"),
        (("ask",), 2, "FILM"),
        (("ask", "gone.mp4", "q"), 1, "gone.mp4"),
        (("ask", "FOLDER", "q"), 1, "folder"),
        (("ask", "FILM", "q", "--fps", "0"), 2, "--fps 0"),
        (("ask", "FILM", "q", "--fps", "nan"), 2, "--fps nan"),
        (("ask", "FILM", "q", "--fps", "1", "--frames", "3"), 2, "--frames 3"),
        (("ask", "FILM", "q", "--start", "5", "--end", "3"), 2, "--end 3"),
        (("ask", "FILM", "q", "--max-new-tokens", "0"), 2, "--max-new-tokens"),
        (("ask", "FILM", "q", "--decoder", "opencv"), 2, "pyav"),
        (("ask", "FILM", "q", "--recipe", "dmeo"), 2, "did you mean 'demo'?"),
        (("ask", "FILM", "q", "--modle", "x"), 2, "did you mean --model?"),
        (("ask", "FILM", "q", "--set", "prefill.keep=1.5"), 2, "prefill.fastv.keep: 1.5"),
        (("ask", "FILM", "q", "--set", "prefill.keep=0"), 2, "prefill.fastv.keep: 0"),
        (("ask", "FILM", "q", "--set", "prefill.kep=0.5"), 2, "did you mean 'keep'?"),
        (("ask", "FILM", "q", "--set", "prefill.method=fastvv"), 2, "prefill.method"),
        (("ask", "FILM", "q", "--model", "gone"), 3, "model 'gone'"),
        (("methods", "prefil"), 2, "did you mean 'prefill'?"),
        (("recipes", "dmeo"), 2, "did you mean 'demo'?"),
        (("validate", "gone.yaml"), 2, "does not exist"),
        (("aks",), 2, "ask"),
        (("demo", "mkae"), 2, "make"),
        (("demo", "make", "--out", "x.txt"), 2, "mp4"),
    ],
)
def test_bad_input(videoprune: Run, film: str, tmp_path: Path, words: tuple[str, ...], code: int, said: str) -> None:
    places = {"FILM": film, "FOLDER": str(tmp_path)}
    words = tuple(places.get(word, word) for word in words)
    plain = videoprune(*words)
    assert (plain.code, plain.out) == (code, "")
    line = plain.err.removeprefix("load model\n")
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert said in line
    data = videoprune(*words, "--json")
    assert data.code == code
    assert set(json.loads(data.out)["error"]) == {"type", "stage", "message"}


@pytest.mark.parametrize(
    ("name", "code", "said"), [("rotten", 1, "can't be decoded"), ("bug", 1, "RuntimeError: two lines (unexpected")]
)
def test_trouble_on_the_way(videoprune: Run, film: str, tmp_path: Path, name: str, code: int, said: str) -> None:
    path = Path(film).rename(tmp_path / f"{name}.mp4")
    done = videoprune("ask", path, "q", "-q")
    assert (done.code, done.out) == (code, "")
    assert said in done.err
    assert "Traceback" not in done.err
    assert "Traceback" in videoprune("ask", path, "q", "--debug").err
    assert json.loads(videoprune("ask", path, "q", "--json").out)["error"]["type"] in ("FilmError", "RuntimeError")


def test_interrupted(videoprune: Run, film: str, tmp_path: Path) -> None:
    assert videoprune("ask", Path(film).rename(tmp_path / "stop.mp4"), "q").code == 130


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_interrupt_ends_even_a_call_that_python_cannot_leave() -> None:
    code = (
        "import ctypes, videoprune.console as c\n"
        "c.leave_on_interrupt()\nprint('ready', flush=True)\n"
        "while True:\n  try: ctypes.CDLL(None).sleep(30)\n  except KeyboardInterrupt: pass\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.1)
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    assert time.monotonic() - started < 5  # 0.7 s on a machine that is not busy


# ---------------------------------------------------------------------------------------------------- what there is


def test_methods(videoprune: Run) -> None:
    rows = json.loads(videoprune("methods", "--json").out)
    keys = {"stage", "name", "paper", "scope", "needs_question", "fixed_count", "attention"}
    assert all(set(row) == keys for row in rows)
    text = videoprune("methods", "prefill").out
    assert text.splitlines()[0].split()[:2] == ["STAGE", "METHOD"]
    assert len(text.splitlines()) == 1 + sum(row["stage"] == "prefill" for row in rows)


def test_recipes(videoprune: Run) -> None:
    rows = json.loads(videoprune("recipes", "--json").out)
    assert all(set(row) == {"name", "description", "stages"} for row in rows)
    shown = videoprune("recipes", "demo")
    assert (shown.code, "merge:" in shown.out) == (0, True)
    assert json.loads(videoprune("recipes", "demo", "--json").out)["name"] == "demo"


def test_a_printed_recipe_is_a_recipe(videoprune: Run, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(videoprune("recipes", "demo").out)
    done = videoprune("validate", path)
    assert done.code == 0
    assert done.out.startswith("mine is valid\n")
    assert json.loads(videoprune("validate", "demo", "--json").out)["valid"] is True


def test_doctor(videoprune: Run) -> None:
    done = videoprune("doctor", "--json")
    facts = json.loads(done.out)
    assert done.code == (0 if facts["ready"] else 3)
    assert facts["attention"]["sdpa"].startswith("ok")
    assert {"python", "torch", "transformers", "av", "numpy"} == set(facts["versions"])
    assert {choice["name"] for choice in facts["choices"]} == {"device", "dtype"}
    assert "would use" in videoprune("doctor").out


def test_demo(videoprune: Run, film: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"question": "where?", "answer": "forest"}, {"question": "who?", "answer": "circle"}]
    monkeypatch.setattr("videoprune.console.demo_material", lambda count: (Path(film), rows[:count]))
    done = videoprune("demo", "--questions", "2")
    assert done.code == 0
    assert "generated scenes" in done.out
    assert all(text in done.out for text in ("where?", "forest", "answer to who?", "DEMO", "DENSE"))
    data = json.loads(videoprune("demo", "--json").out)
    assert [row["expected"] for row in data["questions"]] == ["forest", "circle"]


def test_demo_make(videoprune: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr(
        "videoprune.demo.film.make_film", lambda out, minutes, seed, **more: made.append((out, minutes, seed))
    )
    done = videoprune("demo", "make", "--out", tmp_path / "f.mp4", "--minutes", "3", "--seed", "7", "--json")
    assert made == [(tmp_path / "f.mp4", 3.0, 7)]
    assert json.loads(done.out) == {"film": str(tmp_path / "f.mp4"), "questions": str(tmp_path / "f.json")}


@pytest.mark.parametrize(
    "words", [("--help",), ("ask", "--help"), ("demo", "--help"), ("demo", "make", "-h"), ("recipes", "-h")]
)
def test_help_has_examples(videoprune: Run, words: tuple[str, ...]) -> None:
    done = videoprune(*words)
    assert done.code == 0
    assert "videoprune" in done.out
    assert "Example" in done.out


def test_version_and_nothing(videoprune: Run) -> None:
    assert videoprune("--version").out.startswith("videoprune 0.")
    assert "Commands" in videoprune().out


def test_module_and_checkout_script() -> None:
    root = Path(__file__).parents[1]
    for script in (["-m", "videoprune"], ["cli.py"]):
        done = subprocess.run(
            [sys.executable, *script, "--version"], capture_output=True, text=True, cwd=root, timeout=60
        )
        assert done.stdout.startswith("videoprune ")
