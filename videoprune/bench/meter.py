"""What a stage takes: wall and CPU seconds, and the most memory it held above what was there when it began."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Spent:
    """Of one stage: seconds add up over its parts; `peak_bytes` is the largest of them, None where the system does not tell."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_bytes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


class Peak:
    """The peak of memory since it was made, above what was held then: of the device, or of the process on a CPU.

    On a CPU the kernel's own (Linux, VmHWM, reset here).
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before: int | None = torch.cuda.memory_allocated(device)
            return
        try:
            CLEAR.write_text("5")
            self.before = _status("VmRSS")
        except OSError:
            self.before = None

    def bytes(self) -> int | None:
        if self.before is None:
            return None
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device)) - self.before
        return max(0, _status("VmHWM") - self.before)


def _status(key: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{STATUS} has no {key}")


class Meter:
    """Measures stages by name; a stage may come in parts. Stages do not nest.

    Attributes:
        stages: by name, in the order in which they first came.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stages: dict[str, Spent] = {}

    def now(self) -> tuple[float, float]:
        """Wall and CPU time, once the device is done."""
        if self.device.type != "cpu":
            getattr(torch, self.device.type).synchronize()
        return time.perf_counter(), time.process_time()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        peak, begun = Peak(self.device), self.now()
        yield
        self.add(stage, begun, self.now(), peak.bytes())

    def add(self, stage: str, begun: tuple[float, float], ended: tuple[float, float], peak: int | None) -> None:
        """Book what was measured from `begun` to `ended`."""
        spent = self.stages.setdefault(stage, Spent())
        spent.seconds += ended[0] - begun[0]
        spent.cpu_seconds += ended[1] - begun[1]
        if peak is not None:
            spent.peak_bytes = max(peak, spent.peak_bytes or 0)
