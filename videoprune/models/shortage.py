"""Out of memory: told apart from other errors, answered once with smaller chunks, else said with the sums."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from videoprune.errors import EnvironmentProblem
from videoprune.models.pieces import ROWS
from videoprune.report.flops import kv_bytes
from videoprune.report.memory import free_memory
from videoprune.report.report import human_bytes

if TYPE_CHECKING:
    from videoprune.models.host import Host
    from videoprune.models.session import Session

T = TypeVar("T")
SAYS = re.compile(
    r"not enough memory|out of memory|can't allocate memory|cannot allocate memory|bad_alloc", re.IGNORECASE
)
ASKED = re.compile(r"tried to allocate ([\d.]+) ?(bytes|[KMGT]iB)", re.IGNORECASE)


def is_shortage(error: BaseException) -> bool:
    """Whether an error means that memory ran out; on a CPU torch says so in a plain RuntimeError."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and SAYS.search(str(error)) is not None


def halving(
    work: Callable[[int, int], T], count: int, most: int, step: int, host: Host, film: str
) -> tuple[list[T], int]:
    """Encode `count` frames at most `most` at a time; where memory runs out, once again with half as many.

    Args:
        work: work(start, stop) encodes these frames of the chunk.
        step: chunks are multiples of it.
        film: for the message.

    Returns:
        the parts, and how many frames at a time went through.

    Raises:
        EnvironmentProblem: half as many do not fit either, or there is no half.
    """
    size = min(most, count)
    try:
        return [work(start, min(start + size, count)) for start in range(0, count, size)], most
    except Exception as error:
        if not is_shortage(error):
            raise
        first = error
    half = max(step, size // 2 // step * step)
    if half < size:
        _give_back(host)
        try:
            return [work(start, min(start + half, count)) for start in range(0, count, half)], half
        except Exception as error:
            if not is_shortage(error):
                raise
            first = error
    tried = (
        f"{size} frames at a time, then {half}"
        if half < size
        else f"{size} frames at a time, the fewest that this recipe takes"
    )
    raise _problem(host, "encode", tried, first, f"videoprune plan {film} --model {host.name} --fit") from first


@contextmanager
def told(host: Host, rows: int, session: Session) -> Iterator[None]:
    """Turn a shortage inside the `with` into an EnvironmentProblem; `rows` of the prompt.

    Raises:
        EnvironmentProblem
    """
    try:
        yield
    except Exception as error:
        if not is_shortage(error):
            raise
        shape = host.decoder_shape
        number = torch.finfo(host.dtype).bits // 8
        cache = kv_bytes([rows] * shape.layers, shape, number)
        inner = 3 * min(rows, ROWS) * shape.mlp * number
        tried = (
            f"a prompt of {rows:,} rows, which takes {human_bytes(inner)} in one layer's MLP and up to {human_bytes(cache)} of "
            "key/value cache"
        )
        stage = "decode" if session.read else "prefill"
        problem = _problem(host, stage, tried, error, f"videoprune plan FILM --model {host.name} --fit")
        _give_back(host)
        raise problem from error


def _problem(host: Host, stage: str, tried: str, error: BaseException, command: str) -> EnvironmentProblem:
    weights = sum(parameter.nbytes for parameter in host.model.parameters())
    free = free_memory(host.device)
    asked = ASKED.search(str(error))
    sums = [f"weights {human_bytes(weights)}"]
    if asked:
        amount = float(asked[1])
        sums.append(f"next allocation {human_bytes(amount) if asked[2] == 'bytes' else f'{asked[1]} {asked[2]}'}")
    sums.append(f"free {'unknown' if free is None else human_bytes(free)}")
    return EnvironmentProblem(
        f"out of memory on {host.device} in {stage}, with {tried} ({', '.join(sums)}): `{command}` finds what fits; fewer frames "
        "(--max-frames), a smaller merge.keep or --dtype bfloat16 need less",
        stage=stage,
    )


def _give_back(host: Host) -> None:
    """Let go of what the failed attempt still holds."""
    gc.collect()
    device: Any = host.device
    if device.type == "cuda":
        torch.cuda.empty_cache()
