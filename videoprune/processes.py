"""What processes that belong to a run share: they end with the one that started them, and say what memory they hold."""

from __future__ import annotations

import os
import signal
import threading


def how_it_ended(code: int | None) -> str:
    """The end of a process from its exit code: "signal 9 (SIGKILL)" or "exit code 1"."""
    if code is None or code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "unknown"
    return f"signal {-code} ({name})"


def die_with_parent() -> None:
    """From now on this process ends when the one that started it does, however that ends: nobody would take its work."""
    threading.Thread(target=_wait_for_parent, name="videoprune-parent", daemon=True).start()


def _wait_for_parent() -> None:
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def resident(process: int | str = "self") -> int:
    """Resident memory of a process (its number) in bytes, 0 where the system does not say."""
    try:
        with open(f"/proc/{process}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
