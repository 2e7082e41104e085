"""`videoprune bench accuracy`: does a pruned model still answer right? Recipes and methods on held-out generated films.

One film is the unit: it is drawn, encoded to mp4, decoded once, encoded once for each encode stage that occurs, and asked the
same questions under every setting. Each film's rows are appended to `OUT/rows.jsonl` when it is done, and what is there is not
done again. Scores: exact match of the whole answer for kinds with one answer, F1 over events for lists; options by the
likelihood of their texts and by the letter that is generated.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from videoprune.bench.films import FIRST_SEED, KINDS, LISTS, Asked, HeldOut
from videoprune.bench.settings import Setting
from videoprune.demo.language import LETTERS
from videoprune.evaluate.events import event_f1
from videoprune.processes import die_with_parent

if TYPE_CHECKING:
    from videoprune.pipeline import Pipeline
    from videoprune.watched import Video

VERSION = 1  # of how answers are scored; rows of another one are done again
FORMS = ("open", "options", "letters")
TOP_SHARE = 0.2  # of the frames, for the recall of the relevance scorer
Tell = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Work:
    """One film and the settings that it still has to be asked under."""

    film: HeldOut
    settings: tuple[Setting, ...]
    each: int
    forms: tuple[str, ...]
    choices: tuple[str, ...]  # settings that are asked in all forms; the others open alone
    kinds: tuple[str, ...]
    films: Path
    model: str | None
    keep_films: bool


def key(setting: Setting, film: HeldOut, model: str, kinds: Sequence[str] = KINDS) -> str:
    """What a film's rows are filed under."""
    some = "" if set(kinds) == set(KINDS) else ":" + ",".join(sorted(kinds))
    return f"{VERSION}:{model}:{setting.digest()}:{film.frames}:{film.seed}{some}"


# ------------------------------------------------------------------------------------------------------------ one film


@lru_cache(maxsize=1)
def _pipeline(model: str | None) -> Pipeline:
    from videoprune.pipeline import Pipeline

    return Pipeline.load("dense", model=model, device="cpu")


def measure_film(work: Work) -> list[dict[str, Any]]:
    """All answers of one film under its settings; runs in a worker process."""
    import torch

    torch.set_num_threads(1)
    path = work.film.file(work.films)
    try:
        videos = _watch(work, path)
    finally:
        if not work.keep_films:
            path.unlink(missing_ok=True)
            path.with_suffix(".json").unlink(missing_ok=True)
    asked = [one for one in work.film.questions(work.each) if one.kind in work.kinds]
    rows: list[dict[str, Any]] = []
    for setting, video in videos:
        rows += _ask(work, setting, video, asked)
    return rows


def _watch(work: Work, path: Path) -> list[tuple[Setting, Video]]:
    """The film as every setting stores it: one decoding, and one encoding for each encode stage that occurs."""
    import torch

    from videoprune.report.report import Stopwatch
    from videoprune.watching import Watcher, add_to_all, decoded, open_film, spacing

    base, rule = _pipeline(work.model), work.film.rule
    pipes = [base.with_recipe(setting.recipe) for setting in work.settings]
    decoding = Stopwatch()
    with open_film(path, rule, pipes) as reader:
        interval = spacing(reader.info, rule)
        watchers = [Watcher(pipe, path, rule, len(reader) or None, interval=interval) for pipe in pipes]
        for batch in decoded(reader, decoding):
            add_to_all(watchers, batch)
        info, warnings = reader.info, list(reader.warnings)
    videos = []
    for setting, watcher in zip(work.settings, watchers, strict=True):
        watcher.stopwatch.add("decode_film", decoding.seconds["decode_film"])
        video = watcher.finish(info, warnings)
        if setting.blind:
            video = dataclasses.replace(video, tokens=video.tokens.keep(torch.arange(0)))
        videos.append((setting, video))
    return videos


def _ask(work: Work, setting: Setting, video: Video, asked: Sequence[Asked]) -> Iterator[dict[str, Any]]:
    seconds = video.tokens.frame_seconds.numpy()
    model = video.pipeline.model_name
    forms = work.forms if setting.name in work.choices else tuple(form for form in work.forms if form == "open")
    for form in forms:
        fit = [one for one in asked if form == "open" or one.right is not None]
        for one, measured in zip(fit, FORM[form](video, fit), strict=True):
            base = {
                "key": key(setting, work.film, model, work.kinds),
                "setting": setting.name,
                "frames": work.film.frames,
                "seed": work.film.seed,
                "kind": one.kind,
                "question": one.question.text,
            }
            yield {**base, "form": form, **measured, **_recall(setting, video, one, seconds, form)}


def _open(video: Video, asked: Sequence[Asked]) -> Iterator[dict[str, Any]]:
    for one, answer in zip(asked, video.ask_all([each.question.text for each in asked]), strict=True):
        score = (
            event_f1(answer.text, one.question.answer).f1
            if one.kind in LISTS
            else float(plain(answer.text) == plain(one.question.answer))
        )
        report = answer.report.to_dict()
        shown = one.evidence(video.tokens.frame_seconds.numpy())
        there = np.zeros(len(shown), dtype=bool)
        there[answer.tokens.frame[answer.alive].numpy()] = True
        yield {
            "answer": one.question.answer,
            "text": answer.text,
            "score": score,
            "evidence": float(there[shown].mean()) if shown.any() else None,
            "tokens": report["tokens"],
            "kv_bytes": report["kv"]["bytes"],
            "kv_dense_bytes": report["kv"]["dense_bytes"],
            "flops": report["flops"]["total"]["total"],
            "flops_dense": report["flops"]["dense"]["total"],
            "seconds": {stage: round(spent, 5) for stage, spent in report["seconds"].items()},
        }


def _options(video: Video, asked: Sequence[Asked]) -> Iterator[dict[str, Any]]:
    for one in asked:
        scored = video.options(one.question.text, one.options)
        yield {"answer": one.question.answer, "text": scored.text, "score": float(scored.chosen == one.right)}


def _letters(video: Video, asked: Sequence[Asked]) -> Iterator[dict[str, Any]]:
    for one, answer in zip(asked, video.ask_all([_with_letters(one) for one in asked]), strict=True):
        found = re.search(r"\(?\s*([A-D])\b", answer.text)
        right = LETTERS[one.right] if one.right is not None else ""
        score = float(found is not None and found.group(1) == right)
        yield {"answer": right, "text": answer.text, "score": score}


def _with_letters(one: Asked) -> str:
    lines = "\n".join(f"({letter}) {text}" for letter, text in zip(LETTERS, one.options, strict=True))
    return f"{one.question.text}\n{lines}"


FORM: dict[str, Callable[[Video, Sequence[Asked]], Iterator[dict[str, Any]]]] = {
    "open": _open, "options": _options, "letters": _letters,
}  # fmt: skip


def plain(text: str) -> str:
    """An answer without case, punctuation and surplus blanks: what exact match compares."""
    return " ".join(re.findall(r"\w+", text.lower()))


def _recall(setting: Setting, video: Video, one: Asked, seconds: np.ndarray, form: str) -> dict[str, Any]:
    """Share of a question's evidence frames among the best fifth by relevance, of a film of which nothing is pruned."""
    if setting.name != "dense" or form != "open":
        return {}
    shown = one.evidence(seconds)
    if not shown.any() or shown.mean() > TOP_SHARE:  # evidence everywhere: nothing to find
        return {}
    best = np.argsort(-video.relevance(one.question.text).numpy(), kind="stable")[: round(TOP_SHARE * len(seconds))]
    return {"recall": float(shown[best].sum() / shown.sum())}


# ------------------------------------------------------------------------------------------------------------ all films


def run(
    settings: Callable[[int], Sequence[Setting]],
    out: Path,
    *,
    lengths: Sequence[int],
    count: int,
    each: int = 2,
    first_seed: int = FIRST_SEED,
    forms: Sequence[str] = FORMS,
    choices: Sequence[str] = ("dense", "demo", "blind"),
    kinds: Sequence[str] = KINDS,
    workers: int = 1,
    model: str | None = None,
    keep_films: bool = False,
    films: Path | None = None,
    tell: Tell | None = None,
) -> list[dict[str, Any]]:
    """Measure `count` films of every length under the settings, and give all their rows.

    Args:
        settings: for a length in frames, the settings of that length.
        out: folder; rows that are there are not measured again.
        lengths: frames of a film, one a second.
        each: questions of a kind and film at most.
        first_seed: films are drawn from the seeds from here on.
        forms: how questions are asked: "open", "options" by likelihood, "letters" by generated letter.
        choices: names of the settings that are asked in all forms; the others are asked open.
        kinds: of questions; a film that was asked all of them before is not asked again.
        workers: processes of one thread each.
        films: folder of the films, `out`/films where absent.
    """
    films = films or out / "films"
    out.mkdir(parents=True, exist_ok=True)
    name = _pipeline(model).model_name

    def keys(setting: Setting, film: HeldOut) -> set[str]:
        return {key(setting, film, name), key(setting, film, name, kinds)}

    done = {row["key"] for row in _read(out / "rows.jsonl")}
    works = []
    for frames in lengths:
        chosen = tuple(settings(frames))
        for seed in range(first_seed, first_seed + count):
            film = HeldOut(seed, frames)
            todo = tuple(setting for setting in chosen if not done & keys(setting, film))
            if todo:
                works.append(
                    Work(film, todo, each, tuple(forms), tuple(choices), tuple(kinds), films, model, keep_films)
                )
    _measure(works, out, workers, tell)
    wanted = {
        each_key
        for frames in lengths
        for setting in settings(frames)
        for seed in range(first_seed, first_seed + count)
        for each_key in keys(setting, HeldOut(seed, frames))
    }
    return [row for row in _read(out / "rows.jsonl") if row["key"] in wanted]


def _measure(works: Sequence[Work], out: Path, workers: int, tell: Tell | None) -> None:
    if not works:
        return
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with (
        ProcessPoolExecutor(workers, mp_context=context, initializer=die_with_parent) as pool,
        (out / "rows.jsonl").open("a") as file,
    ):
        waiting = {pool.submit(measure_film, work) for work in works}
        try:
            for finished, future in enumerate(as_completed(waiting), 1):
                file.writelines(json.dumps(row) + "\n" for row in future.result())
                file.flush()
                os.fsync(file.fileno())
                if tell:
                    tell("films", finished, len(works))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _read(path: Path) -> list[dict[str, Any]]:
    """Rows of complete films; the last line of a run that was killed may be torn."""
    rows: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
    return rows


__all__ = ["FORMS", "KINDS", "Work", "key", "measure_film", "plain", "run"]
