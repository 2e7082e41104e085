"""What the machine can do, measured in the same run: matrix products, copies, and one dense decoder layer."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

SQUARE = 2048  # side of the matrices of the matmul bound
ROUNDS = 25
COPIED = 2**26  # floats of the copy bound: 256 MiB each way, beyond the caches
LAYER_TOKENS = 6272  # most tokens that a dense layer is run with; above, its time is scaled


@dataclass(frozen=True)
class Bounds:
    """Measured throughput: FLOPs a second of float32 matrix products, bytes read and written a second by a copy."""

    matmul: float
    copy: float

    def best(self, other: Bounds) -> Bounds:
        """The faster of two measurements of each: other work on the machine only slows them."""
        return Bounds(max(self.matmul, other.matmul), max(self.copy, other.copy))


def cpu_seconds(work: Callable[[], object]) -> float:
    """Process CPU time of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def measure_bounds(threads: int) -> Bounds:
    """Both bounds with so many threads, the best of some rounds: by CPU time for one thread, by wall time for more."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        left, right, out = (torch.randn(SQUARE, SQUARE) for _ in range(3))
        source, goal = torch.randn(COPIED), torch.empty(COPIED).fill_(0)
        clock = cpu_seconds if threads == 1 else _wall
        matmul = min(clock(lambda: torch.mm(left, right, out=out)) for _ in range(ROUNDS))
        copy = min(clock(lambda: goal.copy_(source)) for _ in range(ROUNDS))
    finally:
        torch.set_num_threads(before)
    return Bounds(2 * SQUARE**3 / matmul, 8 * COPIED / copy)


def _wall(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class DenseLayer:
    """CPU time of one decoder layer over all tokens: Qwen2's shape, 5.43 widths in the MLP, two key/value heads.

    The products over tokens and the attention between them are timed apart at up to LAYER_TOKENS tokens, and scaled by N
    and N² above that.
    """

    def __init__(self, width: int, tokens: int) -> None:
        run = min(tokens, LAYER_TOKENS)
        heads, inner = width // 64, int(width * 4864 / 896)
        states = torch.randn(run, width)
        shapes = [(width, width), (width, width), (128, width), (128, width), (inner, width), (inner, width)]
        weights = [torch.randn(shape) * 0.02 for shape in shapes]
        down = torch.randn(width, inner) * 0.02
        query, key = torch.randn(1, heads, run, 64), torch.randn(1, heads, run, 64)

        def linear() -> None:
            for weight in weights[:4]:
                functional.linear(states, weight)
            gate = functional.silu(functional.linear(states, weights[4])) * functional.linear(states, weights[5])
            functional.linear(gate, down)

        def attention() -> Tensor:
            return functional.scaled_dot_product_attention(query, key, key, is_causal=True)

        times = [statistics.median(cpu_seconds(work) for _ in range(3)) for work in (linear, attention)]
        self.linear, self.attention, self.measured_at = times[0] / run, times[1] / run**2, run

    def seconds(self, tokens: float) -> float:
        """Of one layer over so many tokens."""
        return self.linear * tokens + self.attention * tokens**2


def describe() -> dict[str, str]:
    """The machine and the versions, for the page."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    return {
        "cpu": model,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
