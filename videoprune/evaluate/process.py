"""What processes that belong to a run share: they end with the one that started them, and say what memory they hold."""

from __future__ import annotations

import os


def die_with_parent() -> None:
    """Body of a thread: end this process when the one that started it ends, however it ends; nobody would take its work."""
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
