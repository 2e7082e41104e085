"""Methods are found by file name, without importing them; plugins through the entry point group."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from videoprune import registry
from videoprune.errors import UsageError


def test_every_method_file_is_an_entry_and_its_facts_are_the_class_own() -> None:
    entries = registry.methods()
    assert {("segment", "metok"), ("encode", "sta"), ("merge", "aim"), ("prefill", "metok"), ("decode", "a2sf")} <= {
        (entry.stage, entry.name) for entry in entries
    }
    for entry in entries:
        loaded = entry.load()
        for fact in ("paper", *registry.FACTS):
            assert getattr(entry, fact) == getattr(loaded, fact), (entry.stage, entry.name, fact)


def test_methods_of_a_stage_come_in_order() -> None:
    names = [entry.name for entry in registry.methods("prefill")]
    assert names == sorted(names)
    assert {entry.stage for entry in registry.methods("prefill")} == {"prefill"}


@pytest.mark.parametrize(
    ("stage", "name", "said"),
    [
        ("prefill", "metokk", "did you mean 'metok'?"),
        ("merge", "nothing_like_it", "allowed: "),
        ("merge", "a2sf", "a2sf is a method of decode"),
    ],
)
def test_unknown_method(stage: str, name: str, said: str) -> None:
    with pytest.raises(UsageError, match=stage) as error:
        registry.find(stage, name)
    assert said in str(error.value)


def test_unknown_stage() -> None:
    with pytest.raises(UsageError, match="did you mean 'prefill'"):
        registry.methods("prefil")


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package that brings a good method, one that can't be imported, and one under a taken name."""
    (tmp_path / "elsewhere_methods.py").write_text(
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True)\nclass Mine:\n    paper = 'mine'\n    scope = 'frame'\n    keep: float = 0.5\n"
    )
    info = tmp_path / "elsewhere-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[videoprune.methods]\n"
        "merge.mine = elsewhere_methods:Mine\n"
        "merge.broken = elsewhere_gone:Mine\n"
        "merge.aim = elsewhere_methods:Mine\n"
        "kitchen.mine = elsewhere_methods:Mine\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("plugins")
def test_plugins() -> None:
    entry = registry.find("merge", "mine")
    assert entry.external
    assert entry.facts() == {
        "stage": "merge",
        "name": "mine",
        "paper": "mine",
        "scope": "frame",
        "needs_question": False,
        "fixed_count": True,
        "attention": "none",
    }
    assert set(entry.fields()) == {"keep"}
    assert not registry.find("merge", "aim").external
    problems = registry.discover()[1]
    assert len(problems) == 3
    with pytest.raises(UsageError, match="elsewhere_gone"):
        registry.find("merge", "broken")


def test_importing_and_listing_stays_light() -> None:
    code = (
        "import sys, videoprune, videoprune.cli as cli\n"
        "codes = [cli.main(['methods', '--json']), cli.main(['--help']), cli.main(['recipes', '--help'])]\n"
        "heavy = {'torch', 'transformers', 'av', 'numpy', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(f'{codes} {heavy}' if any(codes) or heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_recipes_are_read_without_torch() -> None:
    code = "import sys; from videoprune.cli import main; code = main(['recipes']); sys.exit(code or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0


def test_public_names() -> None:
    import videoprune

    assert videoprune.Recipe.__name__ == "Recipe"
    assert "Pipeline" in dir(videoprune)
    with pytest.raises(AttributeError, match="public names"):
        _ = videoprune.Pipelin
