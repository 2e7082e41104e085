"""Judges of answers in sentences: event F1, an OpenAI-compatible endpoint, a local model, or files for judging elsewhere.

MLVU's rules: a sub-scene answer gets accuracy (mean over its scoring points, each 1, 3 or 5) and relevance (1 to 5), a summary
completeness and reliability (1 to 5 each). A task's score is the sum of its two means, out of 10; an answer whose judgement can't
be read counts as 0; G-Avg is the mean of the two tasks. The published numbers come from gpt-4-turbo at temperature 0 with the
benchmark's own rubric. Ours, below, asks for the same scores in other words: give the official text as `rubric` to compare.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from videoprune.errors import EnvironmentProblem, UsageError
from videoprune.evaluate.base import Question
from videoprune.evaluate.events import event_f1
from videoprune.evaluate.files import read_text
from videoprune.evaluate.intervals import bounds, by_film, macro_of
from videoprune.evaluate.score import Verdict

SUB_SCENE = ("score_accuracy", "score_relevance")
SUMMARY = ("score_completeness", "score_reliability")
JUDGEMENTS = "judgements.jsonl"
KEY = "VIDEOPRUNE_JUDGE_KEY"
RETRY = (408, 409, 425, 429, 500, 502, 503, 504)
RUBRICS = {
    SUB_SCENE: """You grade an answer to a question about one scene of a video. You are given the question, the points that a full
answer makes, and the answer.
Accuracy: grade each point 5 if the answer states it correctly, 3 if it touches it but is not fully right, 1 if it misses it; the
accuracy is the mean over the points.
Relevance: 1 off the question, 2 partly on it with much that does not belong, 3 mainly on it but unsure, 4 mostly on it and sure,
5 fully on it with nothing else. Whether it is correct does not matter here.
Reason first. End with one line of JSON: {"score_accuracy": number, "score_relevance": number}""",
    SUMMARY: """You grade a summary of a video against a reference summary.
Completeness: 1 hardly any of the main content, 2 some of it, 3 most of it, 4 nearly all, 5 all key points and main content.
Reliability: 1 many errors or contradictions, 2 several, 3 few and minor, 4 next to none, 5 none, clear to read. Details that the
reference does not have cost nothing where they are plausible and contradict nothing.
Reason first. End with one line of JSON: {"score_completeness": integer, "score_reliability": integer}""",
}


@dataclass(frozen=True)
class Judgement:
    """Scores by name, empty where none could be read, and the judge's words."""

    scores: Mapping[str, float]
    text: str = ""

    @property
    def total(self) -> float:
        return float(sum(self.scores.values()))


class Judge(ABC):
    """Scores one answer.

    Attributes:
        name: what judgements are kept and printed under.
        scale: the best total.
    """

    name: str
    scale: float = 10.0

    @abstractmethod
    def judge(self, question: Question, answer: str) -> Judgement:
        """Scores of an answer to a question with a reference.

        Raises:
            EnvironmentProblem: the judge can't be reached.
        """


class EventJudge(Judge):
    """Event F1 against the reference; for generated films only."""

    name = "events"
    scale = 1.0

    def judge(self, question: Question, answer: str) -> Judgement:
        return Judgement({"event_f1": event_f1(answer, question.answer or "").f1})


@dataclass
class RubricJudge(Judge):
    """Asks something that completes chats, given as `complete(system, user) -> text`.

    Args:
        name: of the model.
        complete: the call.
        rubric: replaces both rubrics.
    """

    name: str
    complete: Callable[[str, str], str]
    rubric: str | None = None

    def judge(self, question: Question, answer: str) -> Judgement:
        keys = keys_of(question)
        text = self.complete(self.rubric or RUBRICS[keys], case_of(question, answer))
        return Judgement(read_scores(text, keys), text)


def keys_of(question: Question) -> tuple[str, str]:
    """The two scores of a question: a sub-scene's where it has scoring points, else a summary's."""
    return SUB_SCENE if question.extra.get("points") else SUMMARY


def case_of(question: Question, answer: str) -> str:
    """What the judge is shown."""
    points = question.extra.get("points")
    if points:
        listed = "\n".join(f"{number}. {point}" for number, point in enumerate(points, start=1))
        return f"Question: {question.question}\nScoring points:\n{listed}\nAnswer: {answer}"
    return f"Question: {question.question}\nReference: {question.answer}\nAnswer: {answer}"


def read_scores(text: str, keys: Sequence[str]) -> dict[str, float]:
    """The scores behind their names, the last of each; empty unless all are there and within 1 to 5."""
    scores = {}
    for key in keys:
        found = re.findall(rf"{key}['\"]?\s*[:=]\s*([0-9]+(?:\.[0-9]+)?)", text)
        if not found or not 1 <= float(found[-1]) <= 5:
            return {}
        scores[key] = float(found[-1])
    return scores


@dataclass
class Endpoint:
    """A chat-completions endpoint as OpenAI's; also vLLM's, SGLang's and llama.cpp's servers.

    Args:
        url: base, as in https://api.openai.com/v1.
        model: name.
        key: bearer token; None takes the environment variable VIDEOPRUNE_JUDGE_KEY.
        timeout: seconds for one answer.
        retries: further tries after a time-out, a refused connection or a busy server, `wait` seconds apart, doubling.
    """

    url: str
    model: str
    key: str | None = None
    timeout: float = 60.0
    retries: int = 4
    wait: float = 1.0
    _headers: dict[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not re.match(r"https?://[^/\s]+", self.url):
            raise UsageError(
                f"--judge-url: {self.url!r} is given; an http(s) address such as https://api.openai.com/v1 is allowed"
            )
        token = self.key or os.environ.get(KEY, "")
        self._headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}

    def __call__(self, system: str, user: str) -> str:
        body = {
            "model": self.model,
            "temperature": 0,
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}],
        }
        data = json.dumps(body).encode()
        problem = ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(self.wait * 2 ** (attempt - 1))
            address = f"{self.url.rstrip('/')}/chat/completions"
            request = urllib.request.Request(address, data, self._headers)  # noqa: S310 (http or https: checked above)
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as answer:  # noqa: S310
                    return _content(answer.read(), self.url)
            except urllib.error.HTTPError as error:
                said = " ".join(error.read(300).decode("utf-8", "replace").split())
                problem = f"HTTP {error.code} {said}".strip()
                if error.code not in RETRY:
                    break
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                problem = str(getattr(error, "reason", error)) or type(error).__name__
        raise EnvironmentProblem(
            f"judge {self.model} at {self.url}: {problem}; check the address, the model's name and {KEY}, and run the same "
            "command again: judgements that are made are kept",
            stage="judge",
        )


def _content(data: bytes, url: str) -> str:
    try:
        content = json.loads(data)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        raise EnvironmentProblem(
            f"judge at {url}: its answer is no chat completion ({data[:120]!r})", stage="judge"
        ) from None
    return content if isinstance(content, str) else ""


def local_model(folder: str, device: str = "auto", max_new_tokens: int = 512) -> Callable[[str, str], str]:
    """A text model from a folder as the judge, greedy.

    Raises:
        EnvironmentProblem: it can't be loaded.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from videoprune.models.load import choose_device, choose_dtype

    place = choose_device(device)[0]
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=choose_dtype("auto", place)[0]).to(place).eval()
    except (OSError, ValueError) as error:
        raise EnvironmentProblem(f"judge {folder}: can't be loaded ({' '.join(str(error).split())[:200]})") from None

    @torch.no_grad()
    def complete(system: str, user: str) -> str:
        if tokenizer.chat_template:
            turns = [{"role": "system", "content": system}, {"role": "user", "content": user}]
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        else:
            text = f"{system}\n\n{user}\n\n"
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=not tokenizer.chat_template).to(place)
        made = model.generate(**ids, max_new_tokens=max_new_tokens, do_sample=False)
        return str(tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))

    return complete


def judged(
    verdicts: Iterable[Verdict],
    judge: Judge,
    kept: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[tuple[Verdict, Judgement]]:
    """Judge the answers in sentences. Judgements are kept in a file by content, so that a second call asks for new ones only.

    Args:
        verdicts: of a run; those with options or without a reference are passed over, errors get no scores.
        judge: who judges.
        kept: JSONL file.
        progress: called with answers judged and answers in all.

    Raises:
        EnvironmentProblem: the judge can't be reached, or the file can't be written; what is judged is kept.
    """
    asked = [verdict for verdict in verdicts if verdict.question.generation and verdict.question.answer is not None]
    known = _known(kept) if kept is not None else {}
    found: list[tuple[Verdict, Judgement]] = []
    for number, verdict in enumerate(asked, start=1):
        if verdict.error is not None:
            found.append((verdict, Judgement({})))
            continue
        key = _key(judge, verdict)
        if key not in known:
            made = judge.judge(verdict.question, verdict.text)
            known[key] = made
            if kept is not None:
                entry = {
                    "key": key,
                    "judge": judge.name,
                    "id": verdict.question.id,
                    "scores": made.scores,
                    "text": made.text,
                }
                try:
                    with open(kept, "a", encoding="utf-8") as file:
                        file.write(json.dumps(entry, ensure_ascii=False) + "\n")
                except OSError as error:
                    raise EnvironmentProblem(
                        f"{kept}: can't be written ({error.strerror}); free space or change its rights"
                    ) from None
        found.append((verdict, known[key]))
        if progress:
            progress(number, len(asked))
    return found


def _key(judge: Judge, verdict: Verdict) -> str:
    question = verdict.question
    shown = judge.rubric if isinstance(judge, RubricJudge) and judge.rubric else RUBRICS[keys_of(question)]
    parts = [
        judge.name,
        shown,
        question.question,
        question.answer,
        list(question.extra.get("points", ())),
        verdict.text,
    ]
    return hashlib.sha256(json.dumps(parts, ensure_ascii=True).encode()).hexdigest()[:32]


def _known(path: Path) -> dict[str, Judgement]:
    known: dict[str, Judgement] = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    except (OSError, UnicodeDecodeError):
        raise UsageError(f"{path}: can't be read; take it away to judge anew") from None
    for line in lines:
        try:
            entry = json.loads(line)
            known[entry["key"]] = Judgement(entry["scores"], entry["text"])
        except (ValueError, KeyError, TypeError):
            continue  # a line that a crash left half-written
    return known


def summary_of(found: Sequence[tuple[Verdict, Judgement]], judge: Judge, *, seed: int = 0) -> dict[str, Any]:
    """Scores by task and their mean, which is MLVU's G-Avg where the judge's scale is 10.

    Returns:
        `judge`, `scale`, `tasks` (each `{task, answers, unread, score, parts, interval}`), `average` and its `interval`.
    """
    tasks = list(dict.fromkeys(verdict.question.task for verdict, _ in found))
    points = np.zeros((len(found), len(tasks)))
    counts = np.zeros((len(found), len(tasks)))
    for place, (verdict, judgement) in enumerate(found):
        column = tasks.index(verdict.question.task)
        counts[place, column], points[place, column] = 1, judgement.total
    films = [verdict.film for verdict, _ in found]

    lines: list[dict[str, Any]] = []
    for column, task in enumerate(tasks):
        mine = [judgement for verdict, judgement in found if verdict.question.task == task]
        names = list(dict.fromkeys(name for judgement in mine for name in judgement.scores))
        one = (points[:, [column]], counts[:, [column]])
        lines.append(
            {
                "task": task,
                "answers": len(mine),
                "unread": sum(not judgement.scores for judgement in mine),
                "score": float(points[:, column].sum() / counts[:, column].sum()),
                "parts": {name: sum(each.scores.get(name, 0.0) for each in mine) / len(mine) for name in names},
                "interval": bounds(by_film(films, one, macro_of, seed=seed)),
            }
        )
    average = sum(float(line["score"]) for line in lines) / len(lines) if lines else None
    interval = bounds(by_film(films, (points, counts), macro_of, seed=seed))
    return {"judge": judge.name, "scale": judge.scale, "tasks": lines, "average": average, "interval": interval}


def of(kind: str | None, model: str | None, url: str, rubric: Path | None) -> Judge | None:
    """The judge of the command line's flags; None where none is asked for.

    Raises:
        UsageError: flags that do not go together, or an unreadable rubric.
        EnvironmentProblem: a local model that can't be loaded.
    """
    if kind is None:
        if model is not None or rubric is not None:
            raise UsageError(
                "--judge-model and --rubric are given without --judge; add --judge endpoint or --judge local"
            )
        return None
    if kind == "events":
        return EventJudge()
    if model is None:
        raise UsageError(f"--judge {kind}: --judge-model is missing; name the model that judges")
    text = read_text(rubric) if rubric is not None else None
    complete = Endpoint(url, model) if kind == "endpoint" else local_model(model)
    return RubricJudge(f"{kind}:{model}" + (f" with {rubric.name}" if rubric else ""), complete, text)
