"""How many numbers are in flight at once."""

from __future__ import annotations

import torch


def at_once(limit: int, device: torch.device) -> int:
    """`limit` numbers on a CPU, where a block should stay in the caches and come from memory that is mapped already; on an
    accelerator, where a launch costs more than either, sixteen times as many."""
    return limit if device.type == "cpu" else 16 * limit
