"""One run at a time in a results folder: a lock file with the run's process and host, which heals when that process is gone."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

from videoprune.errors import UsageError

BEAT = 20.0  # seconds between two touches of a lock
STALE = 180.0  # seconds without a touch after which a lock of another machine counts as left behind
ALL = ".lock"


class Lock:
    """Holds a folder, or one shard of it, until `release`; touched every BEAT seconds, so that other machines see it live.

    Args:
        folder: exists.
        shard: (i, n); (1, 1) is the whole folder. Shards of one n may hold a folder together.

    Raises:
        UsageError: another run holds it.
    """

    def __init__(self, folder: Path, shard: tuple[int, int] = (1, 1)) -> None:
        name = ALL if shard[1] == 1 else f"{ALL}-{shard[0]}-of-{shard[1]}"
        self.folder, self.path, self._of = folder, folder / name, shard[1]
        self._leave = threading.Event()
        self._take()
        threading.Thread(target=self._touch, name="videoprune-lock", daemon=True).start()

    def _take(self) -> None:
        for _ in range(3):  # a second try heals what the first found left behind
            self._heal(self._rivals())
            try:
                handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                continue
            with os.fdopen(handle, "w") as file:
                json.dump(_myself(), file)
            try:
                self._heal([rival for rival in self._rivals() if rival != self.path])
            except UsageError:
                self.path.unlink(missing_ok=True)
                raise
            return
        raise UsageError(
            f"--out {self.folder}: another run takes it at this moment; wait for it, or give another folder"
        )

    def _rivals(self) -> list[Path]:
        """Locks that can't be held beside ours: the same one, the whole folder's, and shards of another count."""
        found = []
        for path in self.folder.glob(f"{ALL}*"):
            of = path.name.rpartition("-of-")[2] if path.name != ALL else "1"
            if path == self.path or of != str(self._of):
                found.append(path)
        return found

    def _heal(self, rivals: list[Path]) -> None:
        for path in rivals:
            try:
                holder = json.loads(path.read_text(encoding="utf-8"))
                age = time.time() - path.stat().st_mtime
            except FileNotFoundError:
                continue
            except ValueError:  # torn: its writer died, or is about to finish it
                holder, age = {}, time.time() - path.stat().st_mtime
            if _alive(holder, age):
                raise UsageError(
                    f"--out {self.folder}: another run holds it (process {holder.get('pid')} on "
                    f"{holder.get('host')}, lock {path.name}); wait for it, stop it, or give another folder"
                )
            path.unlink(missing_ok=True)

    def _touch(self) -> None:
        while not self._leave.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def release(self) -> None:
        self._leave.set()
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)


def _myself() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "begun": _begun(os.getpid())}


def _begun(pid: int) -> str | None:
    """When a process began, in a form that a later process of the same number does not share; None where unknown."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            ticks = file.read().rpartition(")")[2].split()[19]
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {ticks}"
    except (OSError, IndexError):
        return None


def _alive(holder: dict[str, Any], age: float) -> bool:
    """Whether the run that wrote a lock lives."""
    pid = holder.get("pid")
    if holder.get("host") != socket.gethostname() or not isinstance(pid, int):
        return age < STALE
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    begun = _begun(pid)
    if begun is not None and holder.get("begun") is not None:
        return bool(begun == holder["begun"])
    return age < STALE
