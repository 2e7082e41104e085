"""The protocols: how each harness asks, reads answers and averages.

Checked in November 2026 against MLVU's repository (evaluation/, evaluation_test/), lmms-eval 0.7.3 (tasks/mlvu, tasks/videomme,
tasks/longvideobench), VLMEvalKit (vlmeval/dataset/mlvu.py), Video-MME's evaluation/eval_your_results.py and LongVideoBench's
loader.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from videoprune.evaluate import extract
from videoprune.evaluate.base import LETTERS, Prompted, Protocol, Question
from videoprune.evaluate.subtitles import between_frames, read_json_lines, read_srt, shown_at

WATCH = "Carefully watch this video and pay attention to every detail. Based on your observations, "
CHOOSE = WATCH + "select the best option that accurately addresses the question."
TELL = WATCH + "answer the given questions."


def bracketed(question: Question) -> str:
    """(A) one, (B) two … on lines of their own."""
    return "\n".join(f"({letter}) {option}" for letter, option in zip(LETTERS, question.options, strict=False))


def dotted(question: Question) -> str:
    """A. one, B. two … on lines of their own."""
    return "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, question.options, strict=False))


# --------------------------------------------------------------------------------------------------------------- MLVU


def _mlvu_official(question: Question, seconds: Sequence[float]) -> Prompted:
    if question.generation:
        return Prompted(question.question, system=TELL)
    text = f"Question: {question.question}\nOptions:\n{bracketed(question)}".rstrip()
    return Prompted(f"{text}\nOnly give the best option.", system=CHOOSE, prefix="Best Option: (")


def _mlvu_lmms_eval(question: Question, seconds: Sequence[float]) -> Prompted:
    if question.generation:
        return Prompted(question.question)
    listed = f"{question.question}\n{bracketed(question)}"
    six = "" if len(question.options) > 4 else "\nOnly give the best option.\nBest option: ("
    return Prompted(listed + six)


def _mlvu_vlmevalkit(question: Question, seconds: Sequence[float]) -> Prompted:
    if question.generation:
        return Prompted(question.question, system=TELL)
    text = f"Question: {question.question}\nOptions:\n{bracketed(question)}".rstrip()
    return Prompted(f"{text}\nOnly give the best option.", system=CHOOSE)


MLVU_OFFICIAL = Protocol(
    name="mlvu-official",
    benchmarks=("mlvu", "mlvu-test"),
    source="MLVU, evaluation/multiple_choice_evaluation/choice_bench.py and evaluation_test/test_bench.py",
    ask=_mlvu_official,
    find=lambda text, question: extract.before_bracket(text, len(question.options)),
    max_new_tokens=1024,
    decoding="sampled, temperature 0.1, 4-bit weights (Video-LLaVA); here greedy",
    averaging="macro",
    headline="M-Avg",
    notes=("gold is the last option that reads like the answer",),
)
MLVU_LMMS_EVAL = Protocol(
    name="mlvu-lmms-eval",
    benchmarks=("mlvu", "mlvu-test"),
    source="lmms-eval 0.7.3, tasks/mlvu/utils.py and _task_utils/mcq_extract.py",
    ask=_mlvu_lmms_eval,
    find=lambda text, question: extract.ranked_letter(text, "ABCD"),
    max_new_tokens=16,
    frames="evenly from the first to the last frame, as many as the model's wrapper says",
    spread="ends",
    averaging="macro",
    headline="M-Avg",
    notes=(
        "reads the letters A to D only: right answers E and F of the six-option test count as wrong",
        "the six-option test has no answer instruction in its prompt",
    ),
)
MLVU_VLMEVALKIT = Protocol(
    name="mlvu-vlmevalkit",
    benchmarks=("mlvu", "mlvu-test"),
    source="VLMEvalKit, vlmeval/dataset/mlvu.py and utils/matching_util.py, judge exact_matching",
    ask=_mlvu_vlmevalkit,
    find=lambda text, question: extract.toolkit(text, question.options),
    max_new_tokens=None,
    frames="n inner points, at i·N/(n+1)",
    spread="inner",
    averaging="micro",
    headline="M-Avg",
    accepts="ends",
    left_out=(("mlvu", "order"),),
    notes=("M-Avg is over questions, not tasks, and its list of tasks leaves out `order` of the dev set",),
)


# ----------------------------------------------------------------------------------------------------------- Video-MME


def _video_mme(question: Question, by: str) -> str:
    letters = [*LETTERS[: len(question.options)]]
    allowed = f"{', '.join(letters[:-1])}, or {letters[-1]}" if len(letters) > 1 else "".join(letters)
    return (
        f"Select the best answer to the following multiple-choice question based on {by}. "
        f"Respond with only the letter ({allowed}) of the correct option.\n{question.question}\n{dotted(question)}"
    )


def _video_mme_plain(question: Question, seconds: Sequence[float]) -> Prompted:
    return Prompted(f"{_video_mme(question, 'the video')}\nThe best answer is:")


def _video_mme_subtitles(question: Question, seconds: Sequence[float]) -> Prompted:
    path = question.extra.get("subtitles")
    said = shown_at(read_srt(Path(path)), seconds) if path else []
    listed = "\n".join(said) or "No subtitles available"
    asked = f"{_video_mme(question, 'the video and the subtitles')}\nThe best answer is:"
    return Prompted(f"This video's subtitles are listed below:\n{listed}\n{asked}")


def _video_mme_lmms_eval(question: Question, seconds: Sequence[float]) -> Prompted:
    asked = _video_mme(question, "the video and the subtitles")
    return Prompted(f"{asked}\n\nAnswer with the option's letter from the given choices directly.")


def _video_mme_find(text: str, question: Question) -> int | None:
    return extract.first_letter(text, len(question.options), extract.VIDEO_MME_LEADS, "ABCD")


VIDEO_MME = Protocol(
    name="video-mme",
    benchmarks=("video-mme",),
    source="Video-MME, README and evaluation/eval_your_results.py",
    ask=_video_mme_plain,
    find=_video_mme_find,
    blanks="dropped",
    notes=("answers without a letter leave the denominator; errors here do not",),
)
VIDEO_MME_SUBTITLES = Protocol(
    name="video-mme-subtitles",
    benchmarks=("video-mme",),
    source="Video-MME, README and evaluation/eval_your_results.py",
    ask=_video_mme_subtitles,
    find=_video_mme_find,
    blanks="dropped",
    needs_seconds=True,
    notes=(
        "subtitles at the sampled frames only, films without a file say so in the prompt",
        "answers without a letter leave the denominator; errors here do not",
    ),
)
VIDEO_MME_LMMS_EVAL = Protocol(
    name="video-mme-lmms-eval",
    benchmarks=("video-mme",),
    source="lmms-eval 0.7.3, tasks/videomme/videomme.yaml and utils.py",
    ask=_video_mme_lmms_eval,
    find=lambda text, question: extract.ranked_letter(text, "ABCD"),
    frames="evenly from the first to the last frame, as many as the model's wrapper says",
    spread="ends",
    notes=("its prompt speaks of subtitles where none are given",),
)


# ------------------------------------------------------------------------------------------------------ LongVideoBench


def _longvideobench(question: Question, seconds: Sequence[float]) -> Prompted:
    row: Any = question.extra.get("row", {})
    lines: tuple[tuple[float, str], ...] = ()
    if question.extra.get("subtitles"):
        offset, end = float(row.get("starting_timestamp_for_subtitles") or 0), float(question.duration or 0)
        lines = between_frames(read_json_lines(Path(question.extra["subtitles"]), offset, end), seconds)
    text = f"Question: {question.question}\n{dotted(question)}"
    return Prompted(f"{text}\nAnswer with the option's letter from the given choices directly.", interleaved=lines)


def _longvideobench_find(text: str, question: Question) -> int | None:
    return extract.first_letter(text, len(question.options), extract.LONGVIDEOBENCH_LEADS, "ABCDE")


_LONGVIDEOBENCH: dict[str, Any] = {
    "benchmarks": ("longvideobench",),
    "ask": _longvideobench,
    "find": _longvideobench_find,
    "max_new_tokens": 32,
    "frames": "min(n, whole seconds) frames, every floor(N/n)-th from the first",
    "spread": "floor",
    "needs_seconds": True,
}
LONGVIDEOBENCH = Protocol(
    name="longvideobench",
    source="LongVideoBench, longvideobench_dataset.py; answers as its authors' task in lmms-eval 0.7.3 reads them",
    blanks="random",
    notes=(
        "an answer without a letter becomes a random choice, here drawn from the question's id: the same in every run",
    ),
    **_LONGVIDEOBENCH,
)
LONGVIDEOBENCH_STRICT = Protocol(
    name="longvideobench-strict",
    source="as longvideobench",
    notes=("an answer without a letter is wrong",),
    **_LONGVIDEOBENCH,
)


# ------------------------------------------------------------------------------------------------------------ any data


def _bare(question: Question, seconds: Sequence[float]) -> Prompted:
    return Prompted(question.question)


def _letters(question: Question, seconds: Sequence[float]) -> Prompted:
    if question.generation:
        return _bare(question, seconds)
    return Prompted(f"{question.question}\n{dotted(question)}\nAnswer with the letter of the right option only.")


def _letters_find(text: str, question: Question) -> int | None:
    letter = extract.ranked_letter(text, LETTERS[: len(question.options)])
    spelt = extract.option_text(text, question)
    return spelt if spelt is not None and len(text.strip()) > 2 else letter


LETTERS_LISTED = Protocol(
    name="letters",
    benchmarks=(),
    source="videoprune",
    ask=_letters,
    find=_letters_find,
    accepts="any",
    max_new_tokens=None,
    notes=("the options are listed; a letter or the option's text answers",),
)
PLAIN = Protocol(
    name="plain",
    benchmarks=(),
    source="videoprune",
    ask=_bare,
    find=extract.option_text,
    accepts="any",
    averaging="macro",
    max_new_tokens=None,
    notes=("the question alone is asked, options are not shown; an answer has to spell out one option",),
)
_SCORED: dict[str, Any] = {
    "benchmarks": (),
    "source": "videoprune",
    "find": extract.option_text,
    "mode": "likelihood",
    "decoding": "none: the options are scored as replies",
    "accepts": "any",
    "averaging": "macro",
    "max_new_tokens": None,
}
LIKELIHOOD = Protocol(
    name="likelihood",
    ask=_bare,
    notes=("the option whose text is the likeliest whole reply to the bare question",),
    **_SCORED,
)
LIKELIHOOD_MEAN = Protocol(
    name="likelihood-mean",
    ask=_bare,
    normalise="mean",
    notes=("as likelihood, by mean log-probability a token, which does not favour short options",),
    **_SCORED,
)
LIKELIHOOD_LETTER = Protocol(
    name="likelihood-letter",
    ask=_letters,
    reply="letter",
    notes=("the options are listed; the likeliest letter answers",),
    **_SCORED,
)


# -------------------------------------------------------------------------------------------------------------- probes

TEXTS = (
    "B",
    "(C) blue",
    "D. four",
    "The answer is E",
    "(F)",
    "Best option: (C)",
    "",
    "none of these",
    "A red one, or B",
    "blue",
)


def probes(protocol: Protocol) -> tuple[list[Any], list[Any]]:
    """Prompts and readings of fixed questions, which a protocol's digest is taken of."""
    options = ("red", "green", "blue", "four", "blue", "none")
    asked: list[Any] = []
    found: list[Any] = []
    for count in (0, 4, 6):
        answer = "blue" if count else "A blue one appears."
        probe = Question(f"probe/{count}", "film.mp4", Path("/film.mp4"), "probe", "What?", options[:count], answer)
        prompt = protocol.prompt(probe, (0.5, 1.5))
        asked.append([prompt.text, prompt.system, prompt.prefix, protocol.replies(probe)])
        found += [[protocol.extract(text, probe), protocol.correct(text, probe)] for text in TEXTS]
    return asked, found
