"""A process that works for another ends with it, and says how."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from videoprune.processes import how_it_ended

PARENT = """
import multiprocessing, time
from concurrent.futures import ProcessPoolExecutor
from os import getpid

from videoprune.processes import die_with_parent

if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=die_with_parent)
    print(pool.submit(getpid).result(), flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("code", "said"),
    [(1, "exit code 1"), (-9, "signal 9 (SIGKILL)"), (-250, "signal 250 (unknown)"), (None, "exit code None")],
)
def test_the_end_of_a_process_is_named(code: int | None, said: str) -> None:
    assert how_it_ended(code) == said


def test_a_pool_ends_with_a_process_that_is_killed(tmp_path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    os.kill(worker, 0)  # it is there
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail(f"worker {worker} outlived its parent by 30 s")
