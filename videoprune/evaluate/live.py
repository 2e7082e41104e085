"""What a batch shows while it runs: a table on a terminal, a line now and then elsewhere, always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from videoprune import console
from videoprune.evaluate.runner import Tally
from videoprune.evaluate.store import Results

EVERY = 10.0  # seconds between two lines where stderr is no terminal
FRESH = 0.5  # seconds between two pictures on a terminal


class Live:
    """Accuracy by task, throughput and what is left.

    Args:
        results: of each recipe, by name.
        total: questions that the run covers.
        quiet: show nothing.
    """

    def __init__(self, results: Sequence[tuple[str, Results]], total: int, *, quiet: bool) -> None:
        self.results, self.total, self.quiet = results, total, quiet
        self.started = self.last = time.monotonic()
        self._picture: Any = None

    def __enter__(self) -> Live:
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live as Picture

            self._picture = Picture(console=Console(stderr=True), auto_refresh=False, transient=True)
            self._picture.start()
        return self

    def __exit__(self, *problem: object) -> None:
        if self._picture is not None:
            self._picture.stop()

    def __call__(self, tally: Tally) -> None:
        """Show where the run stands, if it is time to."""
        now = time.monotonic()
        if self.quiet or now - self.last < (FRESH if self._picture is not None else EVERY):
            return
        self.last = now
        if self._picture is not None:
            self._picture.update(self._table(tally), refresh=True)
        else:
            console.say(self.line(tally))

    def line(self, tally: Tally) -> str:
        """All of it in one line."""
        parts = [self._films(tally), self._speed(tally)]
        parts += [f"{name}: {_share(*_sum(result))}" for name, result in self.results]
        return "batch: " + "; ".join(parts)

    def _films(self, tally: Tally) -> str:
        done = sum(len(result.answered) for _, result in self.results)
        errors = f", {tally.errors} errors" if tally.errors else ""
        return f"films {tally.films}/{tally.all_films}, questions {done}/{self.total}{errors}"

    def _speed(self, tally: Tally) -> str:
        spent = max(1e-9, time.monotonic() - self.started)
        if not tally.questions:
            return "loading the model" if not tally.workers else "first film"
        left = self.total - sum(len(result.answered) for _, result in self.results) - tally.errors
        minutes = max(0.0, left * spent / tally.questions / 60)
        speed = f"{tally.questions / spent:.2f} questions/s, {tally.film_seconds / spent:.0f} s of film/s"
        return f"{speed}, about {minutes:.0f} min left"

    def _table(self, tally: Tally) -> Any:
        from rich.markup import escape
        from rich.table import Table

        caption = f"{self._films(tally)}\n{self._speed(tally)}\n" + escape(", ".join(tally.running))
        table = Table("task", *(escape(name) for name, _ in self.results), caption=caption, caption_justify="left")
        tasks = dict.fromkeys(task for _, result in self.results for task in result.tallies)
        for task in tasks:
            table.add_row(escape(task), *(_share(*result.tallies.get(task, [0, 0, 0])) for _, result in self.results))
        table.add_row("all", *(_share(*_sum(result)) for _, result in self.results))
        return table


def _sum(result: Results) -> list[int]:
    return [sum(tally[place] for tally in result.tallies.values()) for place in range(3)]


def _share(rows: int, right: int, judged: int) -> str:
    return f"{100 * right / judged:.1f} % of {judged}" if judged else f"{rows} answered"
