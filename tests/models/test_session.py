"""Where visual tokens stand in a prompt."""

from __future__ import annotations

import torch

from videoprune.models.session import VisualBlock


def test_rows_of_a_block_are_told_from_the_text_inside_it() -> None:
    block = VisualBlock(3, 9, torch.tensor([4, 5, 8]))
    places = torch.arange(12).view(2, 6)
    assert block.token(places).tolist() == [[-1, -1, -1, -1, 0, 1], [-1, -1, 2, -1, -1, -1]]


def test_a_block_without_text_or_without_tokens() -> None:
    whole = VisualBlock.whole(2, 3, torch.device("cpu"))
    assert (whole.start, whole.stop) == (2, 5)
    assert whole.token(torch.arange(7)).tolist() == [-1, -1, 0, 1, 2, -1, -1]
    assert VisualBlock.whole(2, 0, torch.device("cpu")).token(torch.arange(4)).tolist() == [-1] * 4
