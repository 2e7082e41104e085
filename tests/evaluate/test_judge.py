"""Judging answers in sentences: event F1, a local server in the place of an endpoint, and the official files."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Ended
from tests.evaluate.runs import asked, failed, row, write_run
from videoprune.errors import EnvironmentProblem, UsageError
from videoprune.evaluate import judge as judges
from videoprune.evaluate.base import protocol
from videoprune.evaluate.events import event_f1, events_of
from videoprune.evaluate.score import load_run, verdicts


@pytest.mark.parametrize(
    ("answer", "reference", "precision", "recall", "f1", "ordered"),
    [
        ("a red circle moves left , a blue square moves up", "a red circle moves left , a blue square moves up", 1, 1, 1, 1),
        ("A blue square moves up, then the red circle moves left.", "a red circle moves left , a blue square moves up",
         1, 1, 1, 0.5),
        ("a red circle moves left", "a red circle moves left , a blue square moves up", 1, 1 / 2, 2 / 3, 2 / 3),
        ("a b , a b , c d", "a b , e f", 1 / 3, 1 / 2, 2 / 5, 2 / 5),  # a repeated event answers for one
        ("nothing happens", "a b", 0, 0, 0, 0),
        ("", "a b", 0, 0, 0, 0),
        ("", "", 1, 1, 1, 1),
    ],
)  # fmt: skip
def test_event_f1_by_hand(
    answer: str, reference: str, precision: float, recall: float, f1: float, ordered: float
) -> None:
    found = event_f1(answer, reference)
    assert (found.precision, found.recall, found.f1, found.ordered) == pytest.approx((precision, recall, f1, ordered))
    assert event_f1(events_of(answer), events_of(reference)) == found


def test_event_f1_reads_the_generated_references() -> None:
    import numpy as np

    from videoprune.demo.questions import Asker
    from videoprune.demo.timeline import draw_timeline

    question = Asker(draw_timeline(120.0, np.random.default_rng(3)), np.random.default_rng(0)).ask("list")
    assert question is not None
    events = events_of(question.answer)
    assert len(events) == question.answer.count(" , ") + 1
    assert event_f1(question.answer, question.answer).ordered == 1.0


class Server(BaseHTTPRequestHandler):
    """Answers like a chat-completions endpoint: first the HTTP statuses of `script`, then by what it is shown."""

    script: list[int]
    seen: list[dict[str, Any]]

    @staticmethod
    def verdict(shown: str) -> str:
        if "Scoring points" in shown:
            return "Fine. {'score_accuracy': 3.5, 'score_relevance': 5, 'total_score': 8.5}"
        return '{"score_completeness": 2, "score_reliability": 4}' if "Rain." in shown else "I can't judge this."

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
        said = self.script.pop(0) if self.script else self.verdict(body["messages"][1]["content"])
        if isinstance(said, int):
            self.send_response(said)
            data = b"busy"
        else:
            self.send_response(200)
            data = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, type[Server]]]:
    class Mine(Server):
        script: list[int] = []  # noqa: RUF012
        seen: list[dict[str, Any]] = []  # noqa: RUF012

    with HTTPServer(("127.0.0.1", 0), Mine) as listening:
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}/v1", Mine
        listening.shutdown()
        thread.join()


def sub_scene(index: int = 0) -> Any:
    return asked(index, "sub_scene", options=(), answer="A dog runs.", points=["a dog", "it runs"])


def summary(index: int = 1) -> Any:
    return asked(index, "summary", options=(), answer="It rains.")


def test_endpoint_is_asked_retried_and_kept(
    tmp_path: Path, server: tuple[str, type[Server]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, mine = server
    monkeypatch.setenv(judges.KEY, "secret")
    mine.script[:] = [503]
    rows = [row(sub_scene(0), "A dog."), row(summary(1), "Rain."), row(summary(2), "Snow."), row(asked(3), "A")]
    run = write_run(tmp_path / "run", [*rows, failed([summary(4)])])
    judge = judges.RubricJudge("m", judges.Endpoint(url, "m", wait=0.01))
    found = verdicts(load_run(run).rows, protocol("mlvu-official"))
    result = judges.summary_of(judges.judged(found, judge, run / judges.JUDGEMENTS), judge)
    assert len(mine.seen) == 4
    by_task = {line["task"]: line for line in result["tasks"]}
    assert by_task["sub_scene"]["score"] == 8.5
    assert by_task["sub_scene"]["parts"] == {"score_accuracy": 3.5, "score_relevance": 5.0}
    # of three summaries one is judged 6, one can't be read and one failed: both count as 0
    totals = sorted([line["score"] for line in result["tasks"]])
    assert len(totals) == 2
    assert result["average"] == pytest.approx(sum(totals) / 2)
    assert by_task["summary"]["score"] == pytest.approx(6 / 3)
    assert by_task["summary"]["unread"] == 2
    first = mine.seen[0]
    assert (first["path"], first["key"], first["temperature"], first["model"]) == (
        "/v1/chat/completions",
        "Bearer secret",
        0,
        "m",
    )
    assert "secret" not in (run / judges.JUDGEMENTS).read_text()
    assert "secret" not in repr(judge)
    again = judges.summary_of(judges.judged(found, judge, run / judges.JUDGEMENTS), judge)
    assert again == result
    assert len(mine.seen) == 4  # nothing is asked twice


def test_an_endpoint_that_refuses_or_is_not_there(server: tuple[str, type[Server]]) -> None:
    url, mine = server
    mine.script[:] = [401]
    with pytest.raises(EnvironmentProblem, match="HTTP 401 busy"):
        judges.Endpoint(url, "m", wait=0.01)("system", "user")
    assert len(mine.seen) == 1  # a wrong key is no reason to try again
    mine.script[:] = [429, 500, 503]
    with pytest.raises(EnvironmentProblem, match="HTTP 503"):
        judges.Endpoint(url, "m", retries=2, wait=0.01)("system", "user")
    with pytest.raises(EnvironmentProblem, match="refused"):
        judges.Endpoint("http://127.0.0.1:9/v1", "m", retries=1, wait=0.01)("system", "user")
    for wrong in ("file:///etc/passwd", "localhost:1", ""):
        with pytest.raises(UsageError, match="--judge-url"):
            judges.Endpoint(wrong, "m")


def test_a_slow_endpoint_times_out() -> None:
    import socket

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        with pytest.raises(EnvironmentProblem, match="timed out"):
            judges.Endpoint(url, "m", timeout=0.2, retries=1, wait=0.01)("system", "user")


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("{'score_completeness': 4, 'score_reliability': 5, 'total_score': 9}", [4.0, 5.0]),
        ('score_completeness = 1\n… "score_reliability": 2.0}', [1.0, 2.0]),
        ("{'score_completeness': 4}", []),
        ("{'score_completeness': 9, 'score_reliability': 5}", []),
        ("", []),
    ],
)
def test_scores_are_read_or_not(text: str, scores: list[float]) -> None:
    assert list(judges.read_scores(text, judges.SUMMARY).values()) == scores


def test_case_shows_points_or_the_reference() -> None:
    assert judges.case_of(sub_scene(), "A cat.").endswith("Scoring points:\n1. a dog\n2. it runs\nAnswer: A cat.")
    assert judges.case_of(summary(), "Sun.") == "Question: What about 1?\nReference: It rains.\nAnswer: Sun."


def test_a_local_model_judges(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {"<unk>": 0, "a": 1, "b": 2}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>").save_pretrained(tmp_path)
    config = LlamaConfig(
        vocab_size=3,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=None,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    said = judges.local_model(str(tmp_path), device="cpu", max_new_tokens=3)("system", "user")
    assert set(said.split()) <= {"a", "b", "<unk>"}
    with pytest.raises(EnvironmentProblem, match="can't be loaded"):
        judges.local_model(str(tmp_path / "nothing"))


def test_command_judges_generated_films_and_writes_the_official_files(
    tmp_path: Path, videoprune: Callable[..., Ended]
) -> None:
    answers = [
        row(asked(10, "sub_scene", options=(), answer="a b , c d"), "a b"),
        row(summary(2), "It rains."),
        row(asked(0), "A"),
    ]
    run = write_run(tmp_path / "run", answers)
    ended = videoprune("score", run, "--judge", "events", "--official", tmp_path / "files", "--json")
    assert ended.code == 0, ended.err
    result = json.loads(ended.out)
    assert {line["task"]: line["score"] for line in result["judged"]["tasks"]} == pytest.approx(
        {"sub_scene": 2 / 3, "summary": 1.0}
    )
    assert json.loads((tmp_path / "files" / "subplot_all.json").read_text()) == [
        {"video_name": "film_10.mp4", "Q": "What about 10?", "A": "a b , c d", "pred": "a b"}
    ]
    assert json.loads((tmp_path / "files" / "summary_all.json").read_text())[0]["pred"] == "It rains."
    text = videoprune("score", run, "--judge", "events").out
    assert "judge events" in text
    assert "mean over tasks (G-Avg): 0.83" in text


def test_submission_of_the_test_set(tmp_path: Path, videoprune: Callable[..., Ended]) -> None:
    six = tuple(f"c{index}" for index in range(6))
    rows = [
        row(asked(index, "needleQA", options=six, answer=None), text)
        for index, text in ((10, "F) so"), (2, "(E)"), (3, "who knows"))
    ]
    run = write_run(tmp_path / "run", rows, benchmark="mlvu-test")
    assert videoprune("score", run, "--official", tmp_path / "out").code == 0
    assert json.loads((tmp_path / "out" / "test_res.json").read_text()) == [
        {"question_id": "needleQA/2", "question_type": "needleQA", "option": "E"},
        {"question_id": "needleQA/3", "question_type": "needleQA", "option": ""},
        {"question_id": "needleQA/10", "question_type": "needleQA", "option": "F"},
    ]


def test_the_other_forms(tmp_path: Path, videoprune: Callable[..., Ended]) -> None:
    question = asked(0, "OCR", answer="c2", group={"length": "short", "domain": "Knowledge", "sub_category": "Law"})
    run = write_run(tmp_path / "mme", [row(question, "C")], benchmark="video-mme", protocol="video-mme")
    assert videoprune("score", run, "--official", tmp_path / "out").code == 0
    [film] = json.loads((tmp_path / "out" / "video_mme_results.json").read_text())
    assert (film["duration"], film["questions"][0]["answer"], film["questions"][0]["response"]) == ("short", "C", "C")
    assert film["questions"][0]["options"][1] == "B. c1"
    run = write_run(
        tmp_path / "lvb", [row(asked(0, answer=None), "B")], benchmark="longvideobench", protocol="longvideobench"
    )
    assert videoprune("score", run, "--official", tmp_path / "out").code == 0
    assert json.loads((tmp_path / "out" / "longvideobench_test_for_submission.json").read_text()) == {"plotQA/0": "B"}
    nothing = write_run(tmp_path / "none", [row(asked(0), "A")])
    assert videoprune("score", nothing, "--official", tmp_path / "out").code == 2
