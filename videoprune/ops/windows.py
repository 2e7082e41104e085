"""Dynamic programming over windows: cut a film so that the windows are worth most together."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def best_windows(value: Tensor) -> Tensor:
    """The partition of F frames into consecutive windows with the largest sum of values.

    Args:
        value: (F, L), value[e, l - 1] of the window of l frames that ends with frame e; windows that would begin before
            frame 0 are not looked at. F * L numbers are read back from a device once.

    Returns:
        (W, 2) int64 first and last frame of each window, in order, on the CPU. Of equally good partitions the one whose
        last window is shortest, then the one before it, and so on.
    """
    table = value.cpu().numpy()
    frames, longest = table.shape
    best = np.zeros(frames + 1, dtype=table.dtype)  # best[f]: of the frames before f
    length = np.zeros(frames, dtype=np.int64)
    for end in range(frames):
        width = min(end + 1, longest)
        total = best[end + 1 - width : end + 1][::-1] + table[end, :width]
        length[end] = total.argmax() + 1  # numpy's is the first of equals, the shortest window
        best[end + 1] = total[length[end] - 1]
    windows = []
    end = frames - 1
    while end >= 0:
        windows.append((end - length[end] + 1, end))
        end -= length[end]
    return torch.tensor(windows[::-1], dtype=torch.int64).view(-1, 2)


def static_counts(static: Tensor, longest: int) -> Tensor:
    """At how many places a window stands still.

    Args:
        static: (F-1, N) bool, whether a place is the same in a frame and in the next one.
        longest: frames of the longest window, at least 1.

    Returns:
        (F, longest) int64; entry [e, l - 1] counts the places that are static through the l frames that end with frame
        e: N for a single frame, 0 where the window would begin before frame 0.
    """
    steps, places = static.shape
    count = torch.zeros(steps + 1, longest, dtype=torch.int64, device=static.device)
    count[:, 0] = places
    if steps:
        row = torch.arange(steps, device=static.device)[:, None]
        run = row - torch.where(static, -1, row).cummax(dim=0).values  # static steps up to this one
        tally = torch.zeros(steps, longest, dtype=torch.int64, device=static.device)
        tally.scatter_add_(1, run.clamp(max=longest - 1), torch.ones_like(run))
        count[1:, 1:] = tally.flip(1).cumsum(dim=1).flip(1)[:, 1:]
    return count
