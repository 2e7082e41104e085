"""What the programs of this folder share: a child process measured by the kernel, and sections of a page of results."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"


@dataclass(frozen=True)
class Ended:
    """A process that ended: its stdout, wall and CPU seconds, and the most memory that it ever held (bytes)."""

    out: str
    wall: float
    cpu: float
    peak: int


def measured(command: Sequence[str]) -> Ended:
    """Run a command to its end; CPU time and peak memory are the kernel's, as `/usr/bin/time -v` tells them."""
    with tempfile.TemporaryFile("w+") as out:
        begun = time.perf_counter()
        process = subprocess.Popen(command, stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        text = out.read()
    if process.returncode:
        sys.exit(f"exit code {process.returncode} of {' '.join(command)}\n{text}")
    return Ended(text, wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def memory(key: str) -> int:
    """A size of this process in bytes: "VmRSS", what it holds now, or "VmHWM", the most it held."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    sys.exit(f"/proc/self/status has no {key}; this needs Linux")


def machine() -> str:
    """The machine and the versions, in a line."""
    import av
    import torch

    from videoprune.bench.machine import describe

    facts = describe()
    cores, threads = len(os.sched_getaffinity(0)), os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads()
    load = " ".join(f"{each:.1f}" for each in os.getloadavg())
    return (
        f"{facts['cpu']}, {cores} cores, {threads} thread(s) of torch; {facts['system']}, Python {facts['python']}, torch "
        f"{facts['torch']}, PyAV {av.__version__}; {time.strftime('%Y-%m-%d')}, load at the end {load}."
    )


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def prose(*parts: str) -> str:
    """Sentences as one wrapped paragraph, or one entry of a list where the first begins with a dash."""
    joined = " ".join(parts)
    behind = "  " if joined.startswith("- ") else ""
    return textwrap.fill(joined, 130, subsequent_indent=behind, break_long_words=False, break_on_hyphens=False)


def mib(size: float) -> str:
    return f"{size / 2**20:.1f}"


def parser(description: str | None) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_output(command: argparse.ArgumentParser, page: str) -> None:
    """The flags that say where a result goes."""
    command.add_argument("--json", action="store_true", help="print one JSON object instead of the text")
    command.add_argument(
        "--page", type=Path, default=RESULTS / page, help=f"the page whose section is written; docs/results/{page}"
    )
    command.add_argument("--no-page", action="store_true", help="write no page")


def command_line(words: Sequence[str]) -> str:
    """What was called, as the page shows it: folders of this machine are left out."""
    shown = [Path(word).name if word.startswith("/") else word for word in words]
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *shown])


def publish(given: argparse.Namespace, title: str, name: str, text: str, data: dict[str, Any]) -> None:
    """Print a result and write it into its section of the page; a page that is not there is begun."""
    text = f"## {name}\n\n    {command_line(sys.argv[1:])}\n\n{machine()}\n\n{text.strip()}\n"
    print(json.dumps(data, indent=2) if given.json else text)
    if given.no_page:
        return
    page: Path = given.page
    whole = page.read_text(encoding="utf-8") if page.is_file() else f"# {title}\n"
    body = f"<!-- {name} -->\n{text}<!-- end of {name} -->"
    place = re.compile(rf"<!-- {re.escape(name)} -->.*?<!-- end of {re.escape(name)} -->", re.DOTALL)
    whole = place.sub(lambda _: body, whole) if place.search(whole) else f"{whole.rstrip()}\n\n{body}\n"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(whole, encoding="utf-8")


def mark(good: bool) -> str:
    return "meets" if good else "**misses**"
