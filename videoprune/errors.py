"""What can go wrong, and the exit code that it gives.

Every message is one line and says what was given, what is allowed and what to do.
"""

from __future__ import annotations


class VideoPruneError(Exception):
    """Base of every error that is the fault of an input, a setting or the machine, and not of the program.

    Attributes:
        exit_code: what the command line leaves with.
        stage: where it happened ("video", "merge", "prefill", …), None where no stage is to blame.
    """

    exit_code: int = 1
    stage: str | None = None

    def __init__(self, message: str = "", *, stage: str | None = None) -> None:
        super().__init__(message)
        if stage is not None:
            self.stage = stage


class FilmError(VideoPruneError):
    """A film cannot be read."""

    exit_code = 1
    stage = "video"


class UsageError(VideoPruneError, ValueError):
    """A bad flag, recipe, key or value."""

    exit_code = 2


class EnvironmentProblem(VideoPruneError):
    """A missing package, device or model: nothing is wrong with what was asked."""

    exit_code = 3
