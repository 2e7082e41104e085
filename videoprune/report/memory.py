"""Memory: how much is free, and how much a piece of work holds at its peak, found without doing the work.

`peak_of` runs the real code on tensors without storage (the meta device) and adds up what is alive after every operation. A
stock layer so tells its own working set, whatever it casts, copies and keeps. Fused attention is taken as what it is: no
queries x keys matrix. What kernels allocate inside themselves is not seen.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from videoprune.errors import UsageError

UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that operations inside the `with` made and that are still alive: `live` now, `peak` at most."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for given in tree_leaves((args, kwargs)):  # what came from outside costs nothing, nor do views of it
            if isinstance(given, torch.Tensor):
                self._book(given, counted=False)
        out = func(*args, **(kwargs or {}))
        for made in tree_leaves(out):
            if isinstance(made, torch.Tensor):
                self._book(made, counted=True)
        return out

    def _book(self, tensor: torch.Tensor, counted: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes() if counted else 0

        def gone(_: Any) -> None:
            self.live -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)


class FusedAttention(TorchFunctionMode):
    """Stands in for fused attention kernels, which give an output as large as the queries and hold no S x S matrix."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            query, _, value = args if len(args) == 3 else (args[0], None, (kwargs or {}).get("value", args[-1]))
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        return func(*args, **(kwargs or {}))


def peak_of(work: Callable[[], Any]) -> tuple[int, int]:
    """Run `work`; (bytes alive at most, bytes still alive at the end through what it returned)."""
    with torch.no_grad(), FusedAttention(), LiveBytes() as meter:
        result = work()
    left = meter.live
    del result
    return meter.peak, left


def on_meta(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Call a module with its weights replaced by meta tensors of the same shapes; the module is left as it is."""
    weights = {
        name: torch.empty_like(tensor, device="meta")
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }
    return torch.func.functional_call(module, weights, args, kwargs)


# ------------------------------------------------------------------------------------------------------- free memory


def parse_memory(text: str) -> int:
    """ "24GiB" → bytes; units B, kB, MB, GB (powers of 1000), KiB, MiB, GiB, TiB (of 1024).

    Raises:
        UsageError: for anything else.
    """
    number = text.strip().lower().rstrip("abcdefghijklmnopqrstuvwxyz ")
    unit = text.strip().lower().removeprefix(number).strip()
    try:
        size = float(number) * UNITS[unit]
    except (ValueError, KeyError):
        size = 0.0
    if not 0 < size < 2**60:
        raise UsageError(f"--memory {text}: allowed is a size such as 24GiB, 80GB or 512MiB")
    return int(size)


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be taken on `device`, None where the system does not tell.

    On a CPU what the kernel calls available, or what a control group (a container) leaves, whichever is less.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory()) - int(torch.mps.driver_allocated_memory())
    known = [amount for amount in (_available(), _group_room()) if amount is not None]
    return min(known) if known else None


def _available() -> int | None:
    """MemAvailable of Linux; elsewhere the free pages where the system counts them."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    names = getattr(os, "sysconf_names", {})
    if sys.platform != "darwin" and "SC_AVPHYS_PAGES" in names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _group_room(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What the control group's limit leaves; file pages that it can drop do not count as used."""
    pairs = (
        (root / "memory.max", root / "memory.current", root / "memory.stat"),
        (root / "memory/memory.limit_in_bytes", root / "memory/memory.usage_in_bytes", root / "memory/memory.stat"),
    )
    for limit, used, stat in pairs:
        try:
            most, now = limit.read_text().strip(), int(used.read_text())
            if not most.isdigit() or int(most) >= 2**60:  # "max", or version 1's way to say none
                continue
            facts = dict(line.split() for line in stat.read_text().splitlines() if len(line.split()) == 2)
        except (OSError, ValueError):
            continue
        return max(0, int(most) - now + int(facts.get("inactive_file", 0)))
    return None
