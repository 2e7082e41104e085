"""`videoprune plan PATH --batch`: what a set of films takes, from the rates of a sample run."""

from __future__ import annotations

from pathlib import Path

from videoprune import console
from videoprune.console import Progress
from videoprune.errors import UsageError


def plan_batch(
    path: str | None,
    sample: Path | None,
    benchmark: str | None,
    hours: float | None,
    films: int | None,
    *,
    json: bool,
    quiet: bool,
) -> None:
    """Print the plan of a set; arguments as the flags of `videoprune plan`."""
    from videoprune.evaluate.capacity import Rates, capacity, capacity_rows, film_set

    if path is None or sample is None:
        raise UsageError(
            "plan --batch: give the folder of the films, and with --from the --out folder of a `videoprune batch` that was "
            "run on a sample of them, as --limit 20"
        )
    rates = Rates.of(sample)
    with Progress(quiet=quiet) as progress:
        found = film_set(Path(path), benchmark, progress=lambda done, total: progress("read headers", done, total))
    result = capacity(rates, found, hours=hours, scale_to=films)
    if json:
        console.print_json({"path": path, "sample": str(sample), **result})
    else:
        print(console.columns(("WHAT", "HOW MUCH", "HOW IT FOLLOWS"), capacity_rows(result)))
