"""Small random films as tokens, for the tests of merge methods."""

import torch

from videoprune.run import Events, Run
from videoprune.tokens import VisualTokens


def film(frames, grid=(4, 4), seed=0, dtype=torch.float32, rows=None):
    generator = torch.Generator().manual_seed(seed)
    if rows is None:
        rows = torch.randn(frames * grid[0] * grid[1], 6, generator=generator).to(dtype)
    return VisualTokens.from_frames(rows, torch.arange(frames, dtype=torch.float64), grid)


def run(*lengths):
    return Run(Events(torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))))


def still(frames, grid=(4, 4), seed=0):
    """Frames that repeat but for a third of their places."""
    generator = torch.Generator().manual_seed(seed)
    cells = grid[0] * grid[1]
    rows = torch.randn(cells, 6, generator=generator).repeat(frames, 1)
    moving = torch.arange(len(rows)) % cells % 3 == 0
    noise = torch.randn(rows.shape, generator=generator)
    return film(frames, grid, rows=torch.where(moving[:, None], noise, rows + 0.01 * noise))
