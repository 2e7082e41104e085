"""`videoprune doctor`: what is installed, what would be used, and whether the library's insides are as we know them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from videoprune import console
from videoprune.commands.common import Json
from videoprune.errors import EnvironmentProblem

DEMO_FILM_PROBLEMS = (EnvironmentProblem, OSError, ValueError)


def doctor(json: Json = False) -> None:
    """Say what is installed and what would be used, and check what we touch of transformers; exit 3 if the demo can't run.

    The check builds a tiny random model of every family and looks at the places where pruning reaches into transformers'
    own code, which its releases may move.

    \b
    Examples:
      videoprune doctor
      videoprune doctor --json
    """
    console.quiet_libraries(False)
    facts = examine()
    console.print_json(facts) if json else print(examined(facts))
    if not facts["ready"]:
        raise typer.Exit(EnvironmentProblem.exit_code)


def examine() -> dict[str, Any]:
    """Everything as data; `ready` tells whether the demo can run here and every check is ok."""
    import importlib.metadata
    import importlib.util
    import platform

    from videoprune.demo import weights_path

    versions: dict[str, str] = {"python": platform.python_version()}
    problems: list[str] = []
    for package in ("torch", "transformers", "av", "numpy"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
            problems.append(f"{package} is not installed; pip install {package}")
    facts: dict[str, Any] = {"versions": versions}
    try:
        from videoprune.models.load import choose_device, choose_dtype
        from videoprune.report.memory import free_memory
        from videoprune.report.report import human_bytes
        from videoprune.video import available_decoders

        facts["decoders"] = available_decoders()
        device, why = choose_device("auto")
        facts["choices"] = [why, choose_dtype("auto", device)[1]]
        free = free_memory(device)
        facts["memory"] = {"free": "unknown" if free is None else f"{human_bytes(free)} on {device}"}
    except (ImportError, OSError, RuntimeError) as error:
        problems.append(f"{type(error).__name__}: {error}")
    flash = importlib.util.find_spec("flash_attn") is not None
    facts["attention"] = {
        "sdpa": "ok, the default",
        "flash_attention_2": "ok" if flash else "flash-attn is not installed",
    }
    weights: Path = weights_path() / "model.safetensors"
    facts["demo"] = {"model": str(weights) if weights.is_file() else "missing"}
    if not weights.is_file():
        problems.append("the demo model is missing; install videoprune again")
    try:
        facts["demo"]["film"] = str(console.demo_material(1)[0])
    except DEMO_FILM_PROBLEMS as error:
        facts["demo"]["film"] = "missing"
        problems.append(str(error))
    facts["checks"] = _checks(problems)
    return {**facts, "problems": problems, "ready": not problems}


def _checks(problems: list[str]) -> list[dict[str, Any]]:
    """The self-check as data; a failure is a problem."""
    try:
        from videoprune.selfcheck import run_checks
    except Exception as error:  # a release that moved what we import: that is what this is to find out
        problems.append(
            f"self-check: {type(error).__name__}: {error}; install a transformers release from 5.18 below 6"
        )
        return []
    results = run_checks()
    problems += [
        f"self-check {each.family}: {each.name}: {each.problem}; this release of transformers moved it: report it, or "
        "install the one in constraints.txt"
        for each in results
        if each.problem
    ]
    return [each.to_dict() for each in results]


def examined(facts: dict[str, Any]) -> str:
    """The same as a table."""
    rows = [("version", name, version) for name, version in facts["versions"].items()]
    rows += [("decoder", name, state) for name, state in facts.get("decoders", {}).items()]
    rows += [
        ("would use", choice["name"], f"{choice['value']}: {choice['reason']}") for choice in facts.get("choices", [])
    ]
    rows += [("memory", name, state) for name, state in facts.get("memory", {}).items()]
    rows += [("attention", name, state) for name, state in facts["attention"].items()]
    rows += [("demo", name, state) for name, state in facts["demo"].items()]
    rows += [
        (f"check {check['family']}", check["name"], "ok" if check["ok"] else f"FAILED: {check['problem']}")
        for check in facts["checks"]
    ]
    rows += [("problem", "", problem) for problem in facts["problems"]]
    return console.columns(("WHAT", "NAME", "IS"), [*rows, ("ready", "", "yes" if facts["ready"] else "no")])
