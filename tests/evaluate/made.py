"""A small benchmark of generated films in the MLVU layout, and films that go wrong in five ways."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.films import write
from videoprune.demo.benchmark import make_benchmark

FILMS, SEED = 3, 40
A_FILM = 6  # questions at most
BAD = ("empty.mp4", "text.mp4", "cut.mp4", "gone.mp4", "hangs.avi")


def make_small(out: Path) -> Path:
    """FILMS short films with at most A_FILM questions each, of every task that occurs."""
    make_benchmark(out, "mlvu", FILMS, SEED, minutes=(0.2, 0.3))
    counts: dict[str, int] = {}
    for path in sorted((out / "json").glob("*.json")):
        rows = []
        for row in json.loads(path.read_text(encoding="utf-8")):
            before = counts.get(row["video"], 0)
            if before < A_FILM and row["video"] not in {kept["video"] for kept in rows}:
                counts[row["video"]] = before + 1
                rows.append(row)
        path.write_text(json.dumps(rows), encoding="utf-8")
    return out


def add_bad(folder: Path) -> None:
    """Five films with a question each that can't be watched: empty, text, cut off, missing, and one that hangs the decoder."""
    path = folder / "json" / "1_plotQA.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    films = folder / "video" / "1_plotQA"
    for name in BAD:
        rows.append({**rows[0], "video": name, "question": f"What color is the circle of {name}?"})
    path.write_text(json.dumps(rows), encoding="utf-8")
    (films / "empty.mp4").write_bytes(b"")
    (films / "text.mp4").write_text("this is not a film\n" * 100)
    good = next(films.glob("demo_*.mp4")).read_bytes()
    (films / "cut.mp4").write_bytes(good[: len(good) // 2])  # its index stood at the end
    hanging(films / "hangs.avi")


def hanging(path: Path) -> Path:
    """A film whose second half is a hole of 64 GiB, as a downloader leaves one: FFmpeg looks for a packet in it for minutes."""
    write(path, 100, codec="mpeg4", options={}, fps=10)
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)
        file.truncate(1 << 36)
    return path


def copy_of(folder: Path, target: Path) -> Path:
    """The folder again, its films as hard links."""
    shutil.copytree(folder, target, copy_function=lambda source, to: Path(to).hardlink_to(source))
    for path in (target / "json").glob("*.json"):  # these are changed by tests
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    return target
