"""The covering subset of the matrix; `python -m tests.matrix` runs all of it."""

from __future__ import annotations

import pytest

from tests.matrix import Cell, check, covering, every_method

# neighbouring cells share a host, which each worker then loads once
CELLS = sorted(covering(), key=lambda cell: (cell.host, cell.dtype, cell.film))


def test_every_method_is_in_the_subset() -> None:
    assert {(cell.stage, cell.method) for cell in CELLS} == set(every_method())


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_cell(cell: Cell) -> None:
    assert check(cell) in ("ok", "refused")
