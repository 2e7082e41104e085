"""The most frames, or the largest `keep`, with which a run fits the memory and the trained context."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from videoprune.errors import EnvironmentProblem, UsageError
from videoprune.plan import Plan, Planner
from videoprune.report.report import human_bytes

MOST_FRAMES = 4096  # beyond it nothing is looked for
FINE = 64  # frames are found to one part in so many


@dataclass(frozen=True, eq=False)
class Fit:
    """A plan that fits, what was changed for it ("frames", "merge.keep" or "nothing"), to which value, and why not more."""

    plan: Plan
    changed: str
    value: str
    limit: str

    def flags(self) -> list[str]:
        """What to add to the command line."""
        if self.changed == "frames":
            return ["--frames", self.value]
        return [] if self.changed == "nothing" else ["--set", f"{self.changed}={self.value}"]


Try = Callable[[int], Plan]


def fit_frames(planner: Planner, most: int | None, *, tell: Callable[[int], None], **settings: Any) -> Fit:
    """The most frames that fit; `most` is what the film has, None where there is none; keywords as for `Planner.plan`.

    Raises:
        EnvironmentProblem: not even one frame fits.
    """
    end = min(most or MOST_FRAMES, MOST_FRAMES)

    def plan(frames: int) -> Plan:
        tell(frames)
        return planner.plan(frames, **settings)

    best, worse = _search(plan, end, lambda low: max(1, low // FINE))
    if best is None:
        raise _hopeless(plan(1), "not even one frame fits")
    whole = "the film has no more" if most == end else "more is not looked for"
    return Fit(best, "frames", str(best.frames), whole if worse is None else _why_not(worse))


def fit_keep(planner: Planner, frames: int, *, tell: Callable[[int], None], **settings: Any) -> Fit:
    """The largest `keep` of the last merge method that fits `frames` frames, in steps of 0.01.

    Raises:
        UsageError: the recipe merges nothing.
        EnvironmentProblem: the smallest does not fit either.
    """
    steps = planner.recipe.steps("merge")
    tell(frames)
    now = planner.plan(frames, **settings)
    if now.good:
        return Fit(now, "nothing", "", "it fits as it is")
    if not steps:
        raise UsageError(
            f"--fit: recipe {planner.recipe.name} has no merge method whose keep could be lowered, and the frames are given; "
            "add one (--set merge.method=uniform), or leave the number of frames open"
        )
    key = "merge.keep" if len(steps) == 1 else f"merge.{len(steps) - 1}.keep"

    def plan(percent: int) -> Plan:
        tell(percent)
        return planner.with_overrides([f"{key}={percent / 100}"]).plan(frames, **settings)

    best, worse = _search(plan, 99, lambda low: 1)
    if best is None:
        raise _hopeless(plan(1), f"{frames} frames do not fit with {key}=0.01 either; take fewer frames")
    return Fit(best, key, best.overrides[-1].partition("=")[2], _why_not(worse or now))


def _search(plan: Try, end: int, step: Callable[[int], int]) -> tuple[Plan | None, Plan | None]:
    """The plan of the largest number in 1..end that is good, and of a larger one that is not."""
    low, best, worse = 0, None, None
    at = min(end, 8)
    while worse is None and low < end:  # doubling, since a large plan takes long
        trial = plan(at)
        if trial.good:
            low, best, at = at, trial, min(2 * at, end)
        else:
            worse = trial
    high = at
    while worse is not None and high - low > step(low):
        middle = (low + high) // 2
        if middle == 0:
            break
        trial = plan(middle)
        if trial.good:
            low, best = middle, trial
        else:
            high, worse = middle, trial
    return best, worse


def _why_not(plan: Plan) -> str:
    if not plan.in_context:
        return f"beyond it, {plan.rows:,} rows pass the trained context of {plan.context:,}"
    return f"beyond it, {human_bytes(plan.peak_bytes)} pass the {human_bytes(plan.free_bytes or 0)} that are free"


def _hopeless(plan: Plan, what: str) -> EnvironmentProblem:
    if not plan.in_context:
        return EnvironmentProblem(f"--fit: {what}: {_why_not(plan)}; choose a recipe that keeps less")
    narrower = "--dtype bfloat16, " if plan.dtype == "float32" else ""
    peak, free = plan.memory.peak, plan.free_bytes or 0
    return EnvironmentProblem(
        f"--fit: {what}: weights {human_bytes(plan.weight_bytes)} + {plan.memory.phase} {human_bytes(peak)} = "
        f"{human_bytes(plan.peak_bytes)}, and {human_bytes(free)} are free: {narrower}another --device or a smaller model",
        stage=plan.memory.phase,
    )


def command_line(film: str | None, given: list[str], fit: Fit) -> str:
    """The `videoprune ask` that runs what was planned; `given` are the flags that name model, recipe and device."""
    return shlex.join(["videoprune", "ask", film or "FILM", "QUESTION", *given, *fit.flags()])
