"""What the command line shows and how it ends: progress, tables, errors, exit codes, Ctrl-C.

stdout carries the answer alone, or one JSON object; everything else goes to stderr.
"""

from __future__ import annotations

import difflib
import json as jsonlib
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videoprune.errors import EnvironmentProblem, UsageError, VideoPruneError
from videoprune.registry import shipped

if TYPE_CHECKING:
    from rich.progress import TaskID

INTERRUPTED = 130
HEARTBEAT = 5.0  # seconds between two lines of one stage where stderr is no terminal
GRACE = 0.7  # seconds that Ctrl-C leaves for tidying up


def say(message: str) -> None:
    """One line on stderr."""
    print(message, file=sys.stderr, flush=True)


def as_json(data: Any) -> str:
    """One JSON value as text."""
    return jsonlib.dumps(data, indent=2, ensure_ascii=False)


def print_json(data: Any) -> None:
    """One JSON value on stdout."""
    print(as_json(data))


def columns(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """An aligned table that is never cut, so that it can be read by eye and by awk."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def print_rich(renderable: Any, *, stderr: bool = False) -> None:
    """A rich table on stdout or stderr; as wide as it needs where nobody looks at a terminal."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    Console(file=stream, width=None if stream.isatty() else 160).print(renderable)


# ---------------------------------------------------------------------------------------------------------- questions


def read_questions(given: Sequence[str]) -> list[str]:
    """The questions of the command line; `-` stands for the lines of stdin, and so does nothing at all where stdin is piped.

    Raises:
        UsageError: where there is none, or an empty one.
    """
    if not given and not sys.stdin.isatty():
        given = ["-"]
    questions: list[str] = []
    for question in given:
        if question == "-":
            try:
                questions += [line.strip() for line in sys.stdin if line.strip()]
            except UnicodeDecodeError:
                raise UsageError("questions from stdin are no text; give one question a line, in UTF-8") from None
        elif question.strip():
            questions.append(question.strip())
        else:
            raise UsageError("question: an empty one is given; ask something, like 'what happens first?'")
    if not questions:
        raise UsageError("question: none is given; put it behind the film, or one a line on stdin")
    return questions


# ----------------------------------------------------------------------------------------------------------- progress


class Progress:
    """What `progress(stage, done, total)` shows: bars on a terminal, a line a stage elsewhere, nothing when quiet."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self._bars: Any = None
        self._tasks: dict[str, TaskID] = {}
        self._stage: str | None = None
        self._pending: str | None = None
        self._last = 0.0

    def __enter__(self) -> Progress:
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bars

            parts = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            self._bars = Bars(*parts, console=Console(stderr=True), transient=True)
            self._bars.start()
        return self

    def __exit__(self, *problem: object) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars, self._tasks = None, {}
        self._flush()

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """Report that `done` of `total` pieces of `stage` are done; None where the total is unknown."""
        if self.quiet:
            return
        if self._bars is not None:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=total)
            self._bars.update(self._tasks[stage], completed=done, total=total)
            return
        if stage != self._stage:
            self._flush()
            self._stage, self._last = stage, time.monotonic()
        self._pending = f"{stage}: {done}" + (f"/{total}" if total else "") if done else stage
        if (total and done >= total) or time.monotonic() - self._last > HEARTBEAT:
            self._flush()
            self._last = time.monotonic()

    def _flush(self) -> None:
        if self._pending:
            say(self._pending)
        self._pending = None


def quiet_libraries(verbose: bool) -> None:
    """Keep the libraries' own warnings and progress bars off stderr; to be called before they are imported."""
    if verbose:
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.simplefilter("ignore")


# ------------------------------------------------------------------------------------------------------- side by side


def total_seconds(report: dict[str, Any]) -> float:
    """All stages of one answer."""
    return float(sum(report["seconds"].values()))


def total_flops(report: dict[str, Any]) -> float:
    """Linear and attention together."""
    total = report["flops"]["total"]
    return float(total["linear"] + total["attention"])


def cost_rows(pruned: dict[str, Any], dense: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What an answer cost, next to dense: (what, pruned, dense)."""
    from videoprune.report.report import human_bytes, human_flops, human_seconds

    lines: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("tokens entering the LM", lambda report: f"{report['tokens']['merged']:,}"),
        ("key/value cache", lambda report: human_bytes(report["kv"]["bytes"])),
        ("FLOPs", lambda report: human_flops(total_flops(report))),
        ("seconds", lambda report: human_seconds(total_seconds(report))),
    ]
    return [(label, cell(pruned["report"]), cell(dense["report"])) for label, cell in lines]


def comparison(question: str, pruned: dict[str, Any], dense: dict[str, Any], name: str) -> Any:
    """A table of one question: the recipe's answer and what it cost, next to dense."""
    from rich.markup import escape
    from rich.table import Table

    table = Table("", escape(name), "dense", title=escape(question), title_justify="left")
    for row in [("answer", pruned["text"], dense["text"]), *cost_rows(pruned, dense)]:
        table.add_row(*map(escape, row))
    return table


# -------------------------------------------------------------------------------------------------------- demo


def demo_material(count: int) -> tuple[Path, list[dict[str, Any]]]:
    """The demo film and `count` of its questions, each of a kind of its own as long as there are kinds."""
    film = shipped("demo/film/demo.mp4", "data/video/1_plotQA/demo.mp4")
    folder = shipped("demo/film/json", "data/json")
    rows: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.json")):
        rows += [row for row in jsonlib.loads(path.read_text(encoding="utf-8")) if row.get("video") == film.name]
    if not film.is_file() or not rows:
        raise EnvironmentProblem(
            f"the demo film or its questions are missing ({film}, {folder}); install videoprune again"
        )
    seen: dict[Any, int] = {}
    ranked = []
    for row in rows:
        kind = row.get("question_type")
        seen[kind] = seen.get(kind, -1) + 1
        ranked.append((seen[kind], row))
    return film, [row for _, row in sorted(ranked, key=lambda pair: pair[0])][:count]


# ------------------------------------------------------------------------------------------------------------- ending


def fail(error: BaseException, *, as_json: bool, debug: bool) -> int:
    """Show an error in one line (or as data) and give the exit code."""
    known = isinstance(error, VideoPruneError)
    code = error.exit_code if isinstance(error, VideoPruneError) else getattr(error, "exit_code", 1)
    kind, message = type(error).__name__, " ".join(str(error).split())
    if not known and hasattr(error, "format_message"):  # Typer's own: a bad flag, a missing argument
        kind, message = "UsageError", _flag_message(error)
    elif not known:
        message = f"{kind}: {message}"[:500] + " (unexpected; run again with --debug to see where)"
    if debug:
        traceback.print_exception(error)
    if as_json:
        print_json({"error": {"type": kind, "stage": getattr(error, "stage", None), "message": message}})
    else:
        say(f"error: {message}")
    return int(code)


def _flag_message(error: Any) -> str:
    """Typer's message, with the nearest flag where one does not exist."""
    near = difflib.get_close_matches(
        getattr(error, "option_name", ""), getattr(error, "possibilities", None) or [], n=1
    )
    if near:
        return f"{error.option_name} is no flag; did you mean {near[0]}?"
    return " ".join(error.format_message().replace("Value error, ", "").split())


def leave_on_interrupt() -> None:
    """Make Ctrl-C end the program within a second, even while a library computes and Python can't run.

    Python raises KeyboardInterrupt between two of its own instructions, and everything tidies up on the way out. A long
    kernel delays that, so a thread that the signal wakes at once ends the process when the tidying has not.
    """
    if threading.current_thread() is not threading.main_thread() or os.name == "nt":
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell started us with it ignored

    def wait() -> None:
        while signal.SIGINT not in os.read(reading, 64):
            pass
        time.sleep(GRACE)
        os._exit(INTERRUPTED)

    threading.Thread(target=wait, name="interrupt", daemon=True).start()
