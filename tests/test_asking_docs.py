"""The examples of docs/asking.md run, in order and as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from videoprune.demo.film import make_film

PAGE = Path(__file__).parent.parent / "docs" / "asking.md"


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    examples = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(examples) == 5
    for seed, name in enumerate(("film.mp4", "other.mp4")):
        make_film(tmp_path / name, minutes=0.2, seed=seed)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for example in examples:
        exec(compile(example, str(PAGE), "exec"), names)
        assert capsys.readouterr().out.strip()
    assert names["scores"].text in ("red", "blue", "green")
