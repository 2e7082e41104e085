"""Files in the forms that benchmarks take: submissions of answers, and predictions for judging."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from videoprune.errors import EnvironmentProblem, UsageError
from videoprune.evaluate.base import LETTERS, Protocol
from videoprune.evaluate.mlvu import GENERATION
from videoprune.evaluate.score import RunFolder, Verdict, verdicts
from videoprune.registry import unknown

PREDICTIONS = {"sub_scene": "subplot_all.json", "summary": "summary_all.json"}


def mlvu_predictions(found: Sequence[Verdict]) -> dict[str, Any]:
    """MLVU's files for the judge: `{"video_name", "Q", "A", "pred"}` of the sub-scene and of the summary questions."""
    files: dict[str, Any] = {}
    for task in GENERATION:
        rows = [
            {
                "video_name": verdict.question.video,
                "Q": verdict.question.question,
                "A": verdict.question.answer,
                "pred": verdict.text,
            }
            for verdict in found
            if verdict.question.task == task
        ]
        if rows:
            files[PREDICTIONS[task]] = rows
    return files


def mlvu_test(found: Sequence[Verdict], harness: Protocol) -> dict[str, Any]:
    """MLVU's submission of the test set: `{"question_id", "question_type", "option"}`, the option "" where none was read."""
    rows = [
        {
            "question_id": verdict.question.id,
            "question_type": verdict.question.task,
            "option": _letter(verdict, harness),
        }
        for verdict in found
        if not verdict.question.generation
    ]
    return {"test_res.json": rows, **mlvu_predictions(found)}


def video_mme(found: Sequence[Verdict]) -> dict[str, Any]:
    """Video-MME's result template: a film with its questions and the responses."""
    films: dict[str, dict[str, Any]] = {}
    for verdict in found:
        question, groups = verdict.question, verdict.question.extra.get("group") or {}
        head: dict[str, Any] = {
            "video_id": question.id.rsplit("-", 1)[0],
            "duration": groups.get("length"),
            "domain": groups.get("domain"),
            "sub_category": groups.get("sub_category"),
            "questions": [],
        }
        film = films.setdefault(question.video, head)
        film["questions"].append(
            {
                "question_id": question.id,
                "task_type": question.task,
                "question": question.question,
                "options": [f"{LETTERS[place]}. {option}" for place, option in enumerate(question.options)],
                "answer": None if question.gold is None else LETTERS[question.gold],
                "response": verdict.text,
            }
        )
    return {"video_mme_results.json": list(films.values())}


def longvideobench(found: Sequence[Verdict]) -> dict[str, Any]:
    """LongVideoBench's submission: `{id: response}`."""
    return {"longvideobench_test_for_submission.json": {verdict.question.id: verdict.text for verdict in found}}


FORMS: dict[str, Callable[[Sequence[Verdict], Protocol], dict[str, Any]]] = {
    "mlvu": lambda found, harness: mlvu_predictions(found),
    "folder": lambda found, harness: mlvu_predictions(found),
    "mlvu-test": mlvu_test,
    "video-mme": lambda found, harness: video_mme(found),
    "longvideobench": lambda found, harness: longvideobench(found),
}


def write_official(run: RunFolder, harness: Protocol, out: Path, benchmark: str | None = None) -> list[Path]:
    """Write a run's answers in its benchmark's own form, sorted by question id as the rows are not.

    Returns:
        The files.

    Raises:
        UsageError: the benchmark is unknown or has no such form, or there is nothing for it in the rows.
        EnvironmentProblem: they can't be written.
    """
    name = benchmark or str(run.identity.get("benchmark") or "")
    if name not in FORMS:
        raise UsageError(f"benchmark: {unknown(name, FORMS)}")
    found = sorted(verdicts(run.rows, harness), key=lambda verdict: _order(verdict.question.id))
    files = FORMS[name](found, harness)
    if not files:
        raise UsageError(
            f"{run.folder}: none of its questions is answered in sentences; {name} has files for those only"
        )
    written = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for file, data in files.items():
            part = out / f".{file}.part"
            part.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            os.replace(part, out / file)
            written.append(out / file)
    except OSError as error:
        raise EnvironmentProblem(
            f"{out}: can't be written ({error.strerror}); free space or give another folder"
        ) from None
    return written


def _letter(verdict: Verdict, harness: Protocol) -> str:
    if "logprobs" in verdict.row:
        choice = verdict.row.get("choice")
    else:
        choice = harness.extract(verdict.text, verdict.question) if verdict.error is None else None
    return "" if choice is None else LETTERS[choice]


def _order(identity: str) -> list[tuple[int, int, str]]:
    """Sorts "needle/2" before "needle/10"."""
    parts = "".join(sign if sign.isdigit() else f"\0{sign}\0" for sign in identity).replace("\0\0", "").split("\0")
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts if part]
