"""`videoprune hosts`: one entry a family, the page that carries it, and no torch for its help."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Ended
from videoprune.models.load import FAMILIES

PAGE = Path(__file__).parents[1] / "docs" / "hosts.md"


@pytest.fixture(scope="module")
def entries() -> dict[str, dict]:
    from videoprune.models.support import supported

    return {entry["family"]: entry for entry in supported()}


def test_every_family_is_there_with_what_is_published_of_it(entries: dict[str, dict]) -> None:
    assert list(entries) == [family.family for family in FAMILIES]
    cells = {name: (entry["tokens_a_frame"], entry["rows_a_frame"], entry["cls"]) for name, entry in entries.items()}
    assert cells["longva"] == cells["llava-next-video"] == (144, 0, True)
    assert cells["llava-onevision"] == (196, 0, False)
    assert cells["video-llava"] == (256, 1, True)
    assert cells["llava-1.5"] == (576, 0, True)
    assert cells["llava-next"] == (576, 1, True)
    assert cells["internvl"] == (256, 0, True)
    assert {entries[name]["frames"] for name in ("longva", "llava-onevision", "llava-next-video")} == {"32"}
    assert {entries[name]["frames"] for name in ("video-llava", "internvl")} == {"8"}
    assert entries["video-llava"]["context"] == 4096
    assert entries["longva"]["context"] == 224000


def test_what_a_tower_lacks_is_told_by_stage(entries: dict[str, dict]) -> None:
    assert not any(entries["video-llava"]["stages"].values())
    towers = entries["llava-onevision"]["stages"]["encode"]
    assert {name: fact["status"] for name, fact in towers.items()} == {
        "fastervlm": "substitute",
        "visionzip": "substitute",
    }
    for name in ("qwen2-vl", "qwen2.5-vl", "qwen3-vl"):
        assert entries[name]["stages"]["encode"] == towers


def test_the_page_carries_what_the_command_prints(
    videoprune: Callable[..., Ended], entries: dict[str, dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("videoprune.models.support.supported", lambda progress: list(entries.values()))
    told = videoprune("hosts", "--markdown")
    assert told.code == 0
    page = PAGE.read_text(encoding="utf-8")
    assert told.out.strip() in page, "docs/hosts.md is old: put the output of `videoprune hosts --markdown` into it"
    assert json.loads(videoprune("hosts", "--json").out) == list(entries.values())
    plain = videoprune("hosts").out
    assert plain.startswith("FAMILY")
    assert all(name in plain for name in entries)
    assert "all (fastvid*, holitom*, vflowopt*)" in plain


def test_help_imports_no_torch() -> None:
    code = "import sys; from videoprune.cli import main; main(['hosts', '--help']); assert 'torch' not in sys.modules"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert "videoprune hosts --json" in told.stdout
