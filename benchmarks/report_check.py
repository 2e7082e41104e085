"""The HTML report in a real browser: no console error, nothing of a film's name or a question runs, its numbers are `--json`'s.

    pip install playwright                      # the library alone; the browser is the system's
    python benchmarks/report_check.py --chromium /usr/bin/chromium
    python benchmarks/report_check.py --shots docs/report

Asks a film (the demo film, under a name with a script in it) `--compare --report --json`, opens the page in headless Chromium,
light, dark and as wide as a phone, and leaves with 1 where a check fails. With --shots the three screenshots are written.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import shared

NAME = 'a<script>document.title="ran"</script>&"\'film.mp4'.replace("/", "\N{FRACTION SLASH}")
SCRIPT = '<script>document.title="ran"</script><img src=x onerror="document.title=\'ran\'">'
QUESTIONS = ("What happens immediately after the green circle?", f"Which object appears last? {SCRIPT}")
VIEWS = {  # name: width, height, colour scheme, is a phone
    "light": (1180, 1250, "light", False),
    "dark": (1180, 1100, "dark", False),
    "phone": (390, 1500, "light", True),
}
START = {"light": "header", "dark": "main > section:nth-of-type(2)", "phone": "header"}  # where a screenshot begins


def asked(film: Path, page: Path, questions: tuple[str, ...]) -> dict[str, Any]:
    """The object that `videoprune ask --json` prints while it writes the page."""
    words = ["ask", film.name, *questions, "--compare", "--report", str(page), "--json", "--quiet"]
    ended = subprocess.run(
        [sys.executable, "-m", "videoprune", *words], stdout=subprocess.PIPE, text=True, check=False, cwd=film.parent
    )
    if ended.returncode:
        sys.exit(f"videoprune ask: exit code {ended.returncode}: {ended.stdout}")
    return dict(json.loads(ended.stdout))


def expected(result: dict[str, Any]) -> list[list[float]]:
    """The exact numbers that each answer's section has to show, from `--json` alone; in any order."""
    sections = []
    for answer, dense in zip(result["answers"], result["compare"], strict=True):
        report, numbers = answer["report"], list[float]()
        numbers += [*report["tokens"].values(), report["kv"]["bytes"], report["flops"]["total"]["total"]]
        numbers += [sum(report["seconds"].values()), *report["kv"]["entries"]]
        for each in (report, dense["report"]):
            numbers += list(each["seconds"].values())
            stages = (cost["total"] for name, cost in each["flops"].items() if name not in ("total", "dense"))
            numbers += [cost for cost in stages if cost]
        sections.append(numbers)
    return sections


def missing(shown: list[float], wanted: list[float]) -> list[float]:
    """Numbers of `wanted` that are not among `shown`, each taken once."""
    left = list(shown)
    lacking = []
    for number in wanted:
        if number in left:
            left.remove(number)
        else:
            lacking.append(number)
    return lacking


def look(page: Path, chromium: str, shots: Path | None) -> dict[str, Any]:
    """Open the page in each view: what the browser complained of, what it loaded, and what it shows."""
    from playwright.sync_api import sync_playwright

    found: dict[str, Any] = {"console": [], "requests": [], "views": {}}
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        found["browser"] = browser.version
        for name, (width, height, scheme, phone) in VIEWS.items():
            context = browser.new_context(
                viewport={"width": width, "height": height}, color_scheme=scheme, is_mobile=phone, device_scale_factor=1
            )
            tab = context.new_page()
            tab.on("console", lambda said: found["console"].append(f"{said.type}: {said.text}"))
            tab.on("pageerror", lambda error: found["console"].append(f"error: {error}"))
            tab.on("request", lambda sent: found["requests"].append(sent.url[:60]))
            tab.goto(page.as_uri(), wait_until="load")
            links = tab.eval_on_selector_all(
                ".evidence a", "all => all.map(a => [a.hash, !!document.querySelector(a.hash)])"
            )
            if links:
                tab.click(".evidence a")
            found["views"][name] = {
                "title": tab.title(),
                "scripts": tab.eval_on_selector_all("script", "all => all.map(s => s.type)"),
                "images": tab.eval_on_selector_all("img", "all => all.map(i => i.getAttribute('src').slice(0, 11))"),
                "headings": tab.eval_on_selector_all("section.answer h2", "all => all.map(h => h.textContent)"),
                "numbers": tab.eval_on_selector_all(
                    "section.answer",
                    "all => all.map(s => [...s.querySelectorAll('[data-value]')].map(n => Number(n.dataset.value)))",
                ),
                "inside": json.loads(tab.eval_on_selector("#result", "s => s.textContent")),
                "links": links,
                "went": tab.evaluate("location.hash"),
                "ground": tab.evaluate("getComputedStyle(document.body).backgroundColor"),
                "overflow": tab.evaluate("document.documentElement.scrollWidth > window.innerWidth"),
            }
            if shots is not None:
                top = tab.evaluate(
                    f"document.querySelector({START[name]!r}).getBoundingClientRect().top + scrollY - 16"
                )
                clip = {"x": 0, "y": max(0, top), "width": width, "height": height}
                save_png(tab.screenshot(full_page=True, clip=clip), shots / f"report-{name}.png")
            context.close()
        browser.close()
    return found


def save_png(png: bytes, path: Path) -> None:
    """With a palette: a third of the size, and the page has few colours beside the pictures of the film."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.quantize(colors=192, method=Image.Quantize.MEDIANCUT).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB", file=sys.stderr, flush=True)


def checks(result: dict[str, Any], found: dict[str, Any], questions: tuple[str, ...], film: Path) -> dict[str, bool]:
    views, wanted = list(found["views"].values()), expected(result)
    numbers = [
        not missing(shown, each)
        for view in views
        for shown, each in zip(view["numbers"], wanted, strict=True)
    ]  # fmt: skip
    return {
        "no console message and no page error": not found["console"],
        "nothing was requested but the page": all(url.startswith(("file:", "data:")) for url in found["requests"]),
        "no script ran: the title is the film's name": all(
            view["title"] == f"{film.name} · videoprune" for view in views
        ),
        "the only script element is inert JSON": all(view["scripts"] == ["application/json"] for view in views),
        "pictures are data": all(each == "data:image/" for view in views for each in view["images"]),
        "questions are shown as they were asked": all(view["headings"] == list(questions) for view in views),
        "its numbers equal --json's": bool(numbers) and all(numbers),
        "the JSON inside equals --json's": all(view["inside"] == result for view in views),
        "evidence links lead to frames": all(
            view["links"] and all(there for _, there in view["links"]) and view["went"] == view["links"][0][0]
            for view in views
        ),
        "dark is dark": found["views"]["dark"]["ground"] != found["views"]["light"]["ground"],
        "a phone need not scroll sideways": not found["views"]["phone"]["overflow"],
    }


def main() -> None:
    command = shared.parser(__doc__)
    command.add_argument("--film", type=Path, help="else the demo film, copied under a name with a script in it")
    command.add_argument(
        "--question", action="append", help="repeatable; else two about the demo film, one with a script"
    )
    command.add_argument(
        "--chromium", default=shutil.which("chromium") or shutil.which("google-chrome"), help="the browser"
    )
    command.add_argument("--shots", type=Path, metavar="DIR", help="write report-light.png, -dark.png and -phone.png")
    shared.add_output(command, "report.md")
    given = command.parse_args()
    if given.chromium is None:
        sys.exit("no chromium is found; install one (apt install chromium), or give --chromium PATH")
    from videoprune.registry import shipped

    with tempfile.TemporaryDirectory() as folder:
        film, questions = given.film, tuple(given.question or QUESTIONS)
        if film is None:
            film = Path(folder) / NAME
            shutil.copy(str(shipped("demo/film/demo.mp4", "data/video/1_plotQA/demo.mp4")), film)
        page = Path(folder) / "page.html"
        result = asked(film, page, questions)
        found, size = look(page, given.chromium, None), page.stat().st_size
        if given.shots is not None:  # the pictures show a film and questions as people have them
            plain = Path(folder) / "film.mp4"
            shutil.copy(str(film), plain)
            asked(plain, page, (questions[0].replace(SCRIPT, "").strip(),))
            look(page, given.chromium, given.shots)
        passed = checks(result, found, questions, film)
    data = {"browser": found["browser"], "checks": passed, "console": found["console"], "bytes": size}
    counted = sum(map(len, expected(result)))
    lines = [f"- {'ok' if good else '**FAIL**'}: {line}" for line, good in passed.items()]
    text = shared.prose(
        "`videoprune ask --compare --report --json` on the demo film under a name with a `<script>` in it, one of two",
        f"questions with another and an `onerror`; Chromium {found['browser']}, headless, in three views ({', '.join(VIEWS)});",
        f"{counted} numbers compared exactly in each.",
    )
    text += "\n\n" + "\n".join(lines)
    if given.shots is not None:
        place = Path(os.path.relpath(given.shots, given.page.parent)).as_posix()
        text += "\n\n" + "\n\n".join(f"![the page, {name}]({place}/report-{name}.png)" for name in VIEWS)
    shared.publish(given, "The report page in a browser", "Checks", text, data)
    if not all(passed.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
