"""What all tests share: one thread, no network, and the command line in this process."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import pytest

# before torch is imported anywhere: tests run beside each other, and no test may reach a hub
os.environ["OMP_NUM_THREADS"] = "1"  # whatever the caller has: two workers of two threads each wait for one another
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def videoprune(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """Call it with the words of a command line."""

    def call(*words: str) -> Ended:
        from videoprune.cli import main

        capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return Ended(code, out, err)

    monkeypatch.delenv("VIDEOPRUNE_DEBUG", raising=False)
    monkeypatch.setattr("videoprune.console.quiet_libraries", lambda verbose: None)  # it changes the whole process
    return call
