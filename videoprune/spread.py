"""How published harnesses spread a number of frames over a film: by frame numbers, where videoprune's own rule goes by time."""

from __future__ import annotations

import numpy as np

SPREADS = ("ends", "inner", "floor")


def spread_seconds(spread: str, count: int, length: float, fps: float) -> np.ndarray:
    """Seconds (F,) float64, ascending, from the start of a span at which the frames of a spread are shown.

    Args:
        spread: one of SPREADS; for N frames numbered from 0, "ends" takes `count` evenly from the first to the last, rounded
            down (lmms-eval), "inner" i·N/(count+1) for i = 1 … count, rounded down (VLMEvalKit), and "floor" every
            floor(N/count)-th from the first, with `count` at most the whole seconds (LongVideoBench).
        count: frames to take, at least 1; a number that comes up twice is given once.
        length, fps: seconds of the span and frames a second, which give N.
    """
    total = max(1, round(length * fps))
    if spread == "ends":
        index = np.linspace(0, total - 1, count).astype(np.int64)
    elif spread == "inner":
        index = (np.arange(1, count + 1) * (total / (count + 1))).astype(np.int64)
    else:
        count = max(1, min(count, int(length)))
        index = np.arange(count) * (int(length * fps) // count)
    return np.unique(index) / fps
