"""What a benchmark is to the runner and the scores: questions about films, and protocols that say how they are asked and judged.

    benchmark = read("mlvu", "MLVU/")
    harness = protocol("mlvu-official")
    for film, questions in benchmark.films().items():
        for question in questions:
            asked = harness.prompt(question)             # asked.flat() is the text for a model that takes one turn
            text = ...                                   # the model's answer
            index = harness.extract(text, question)      # the option it chose, None where none can be read
            right = harness.correct(text, question)      # None where only a judge can tell

A reader gives every question of the official files in their order, the defective ones too: what is wrong with them is
counted in `Benchmark.problems`, and scores count them as the benchmark's own scripts do. Nothing here imports torch.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from videoprune.errors import UsageError
from videoprune.evaluate.data import CARRIED, LETTERS, Benchmark, Problem, Question, question_of
from videoprune.evaluate.harness import Mark, Prompted, Protocol
from videoprune.registry import unknown

__all__ = [
    "BENCHMARKS",
    "CARRIED",
    "DEFAULT_PROTOCOLS",
    "LETTERS",
    "PROTOCOLS",
    "Benchmark",
    "Mark",
    "Problem",
    "Prompted",
    "Protocol",
    "Question",
    "default_protocol",
    "protocol",
    "question_of",
    "read",
]

# name -> "module:function"; the function takes a path and gives a Benchmark
BENCHMARKS = {
    "mlvu": "videoprune.evaluate.mlvu:read_dev",
    "mlvu-test": "videoprune.evaluate.mlvu:read_test",
    "video-mme": "videoprune.evaluate.videomme:read",
    "longvideobench": "videoprune.evaluate.longvideobench:read",
    "folder": "videoprune.evaluate.folder:read",
}

# benchmark -> the protocol that is used where none is asked for: the benchmark's own
DEFAULT_PROTOCOLS = {
    "mlvu": "mlvu-official",
    "mlvu-test": "mlvu-official",
    "video-mme": "video-mme",
    "longvideobench": "longvideobench",
    "folder": "letters",
}

# name -> "module:attribute"; the attribute is a Protocol
PROTOCOLS = {
    "mlvu-official": "videoprune.evaluate.protocols:MLVU_OFFICIAL",
    "mlvu-lmms-eval": "videoprune.evaluate.protocols:MLVU_LMMS_EVAL",
    "mlvu-vlmevalkit": "videoprune.evaluate.protocols:MLVU_VLMEVALKIT",
    "video-mme": "videoprune.evaluate.protocols:VIDEO_MME",
    "video-mme-subtitles": "videoprune.evaluate.protocols:VIDEO_MME_SUBTITLES",
    "video-mme-lmms-eval": "videoprune.evaluate.protocols:VIDEO_MME_LMMS_EVAL",
    "longvideobench": "videoprune.evaluate.protocols:LONGVIDEOBENCH",
    "longvideobench-strict": "videoprune.evaluate.protocols:LONGVIDEOBENCH_STRICT",
    "likelihood": "videoprune.evaluate.protocols:LIKELIHOOD",
    "likelihood-mean": "videoprune.evaluate.protocols:LIKELIHOOD_MEAN",
    "likelihood-letter": "videoprune.evaluate.protocols:LIKELIHOOD_LETTER",
    "letters": "videoprune.evaluate.protocols:LETTERS_LISTED",
    "plain": "videoprune.evaluate.protocols:PLAIN",
}


def read(name: str, path: str | os.PathLike[str]) -> Benchmark:
    """Read a benchmark's folder.

    Args:
        name: one of BENCHMARKS.
        path: its folder (for "folder" also the file of questions in it).

    Raises:
        UsageError: an unknown name, no such layout at `path`, or a file that can't be understood (says file, line, column).
        EnvironmentProblem: the layout needs a package that is not installed.
    """
    if name not in BENCHMARKS:
        raise UsageError(f"benchmark: {unknown(name, BENCHMARKS)}")
    benchmark: Benchmark = _load(BENCHMARKS[name])(Path(path))
    return benchmark


def protocol(name: str) -> Protocol:
    """The protocol `name`.

    Raises:
        UsageError: there is none; names the nearest.
    """
    if name not in PROTOCOLS:
        raise UsageError(f"protocol: {unknown(name, PROTOCOLS)}")
    found: Protocol = _load(PROTOCOLS[name])
    return found


def default_protocol(benchmark: str, family: str | None = None) -> Protocol:
    """The benchmark's own protocol; for the demo model (`family` "demo") `plain` where that writes options otherwise than
    "(A) …" or has more than four, which it was never taught."""
    if benchmark not in DEFAULT_PROTOCOLS:
        raise UsageError(f"benchmark: {unknown(benchmark, DEFAULT_PROTOCOLS)}")
    return protocol("plain" if family == "demo" and benchmark != "mlvu" else DEFAULT_PROTOCOLS[benchmark])


def _load(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
