"""What is planned from a config is what a run then reports; and the figures that papers print."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import films, tiny_qwen
from tests.models.hosts import MAKERS
from videoprune import Pipeline
from videoprune.errors import EnvironmentProblem, UsageError
from videoprune.fit import command_line, fit_frames, fit_keep
from videoprune.models.known import KNOWN
from videoprune.models.load import FAMILIES, recognise
from videoprune.models.outline import build_outline
from videoprune.plan import Plan, Planner
from videoprune.report.flops import Cost

QUESTION = "what happens after the red circle ?"
QWEN: dict[str, Callable[..., Path]] = {
    "qwen2-vl": tiny_qwen.qwen2_vl,
    "qwen2.5-vl": tiny_qwen.qwen2_5_vl,
    "qwen3-vl": tiny_qwen.qwen3_vl,
}
ALL = {**MAKERS, **QWEN}
FIXED: dict[str, dict[str, Any]] = {
    "dense": {},
    "each stage": {
        "encode": {"method": "uniform", "keep": 0.5},
        "merge": {"method": "random", "keep": 0.5},
        "prefill": {"method": "uniform", "keep": 0.5},
        "decode": {"method": "uniform", "keep": 0.5},
    },
}


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    films.write(path, frames=24)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in made:
            made[family] = ALL[family](tmp_path_factory.mktemp(family))
        return made[family]

    return of


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("recipe", FIXED)
def test_plan_is_what_the_run_reports(
    checkpoint: Callable[[str], Path], film: Path, family: str, recipe: str, tmp_path: Path
) -> None:
    folder = checkpoint(family)
    steps = {"frames": {"frames": 6}, "max_new_tokens": 5, **FIXED[recipe]}
    pipe = Pipeline.load(steps, model=folder, device="cpu", dtype="float32")
    video = pipe.watch(film)
    answer = video.ask(QUESTION)
    report, ids = answer.report, pipe.host.prompt_ids(QUESTION)
    for name in ("config.json", "video_preprocessor_config.json"):  # no weights, no tokenizer
        if (folder / name).is_file():
            shutil.copy(folder / name, tmp_path)
    picture = (films.HEIGHT, films.WIDTH)
    plan = Planner.of(tmp_path, steps, device="cpu", dtype="float32").plan(
        6, picture=picture, question_tokens=len(ids[0]) + len(ids[1]), new_tokens=len(answer.ids)
    )
    assert {name: low for name, (low, _) in plan.tokens.items()} == report.tokens
    assert all(low == high for low, high in plan.tokens.values())
    assert [low for low, _ in plan.by_layer] == report.tokens_by_layer
    if "qwen3" in family or family == "internvl":  # the film's text between frames is counted by words
        return
    assert plan.kv_bytes == (report.kv["bytes"],) * 2
    assert plan.dense_kv_bytes == report.kv["dense_bytes"]
    for stage in ("prefill", "decode", "lm_head"):
        assert plan.flops[stage] == report.flops[stage], stage
    assert plan.flops["encode"].attention == report.flops["encode"].attention
    # what the encode method itself computes is in the report alone
    assert plan.flops["encode"].linear == pytest.approx(report.flops["encode"].linear, rel=0.01)
    assert sum(plan.dense.values(), Cost()).total == pytest.approx(report.dense.total, rel=1e-9)
    assert plan.weight_bytes == sum(parameter.nbytes for parameter in pipe.host.model.parameters())


def of_paper(model: str, recipe: Any, frames: int, text: int, *overrides: str) -> Plan:
    planner = Planner.of(model, recipe, overrides=overrides, memory=80 * 2**30)
    return planner.plan(frames, question_tokens=text, new_tokens=1)


@pytest.mark.parametrize(("text", "expected"), [(0, 240.5e12), (100, 241.9e12)])
def test_longva_dense_figures(text: int, expected: float) -> None:
    """18 432 tokens; 466 110 464 multiply-adds a token and layer, by hand: 2*3584**2 + 2*3584*512 + 3*3584*18944."""
    plan = of_paper("lmms-lab/LongVA-7B", "dense", 128, text)
    assert plan.tokens["sampled"] == (18432, 18432)
    by_hand = 2.0 * (18432 + text) * 28 * (2 * 3584**2 + 2 * 3584 * 512 + 3 * 3584 * 18944)
    assert plan.flops["prefill"].linear == by_hand
    assert plan.flops["prefill"].linear == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("recipe", "overrides", "expected"),
    [
        ("dense", (), 99.6e12),
        ("aim-paper", ("prefill=none",), 22.90e12),
        # the authors' tool lets layer 14 run with what its own pruning leaves, their code prunes behind it
        ("aim-paper", (), 14.8e12),
        ("aim-paper", ("prefill.first=6", "prefill.last=21"), 12.01e12),
    ],
)
def test_onevision_figures_of_aim(recipe: str, overrides: tuple[str, ...], expected: float) -> None:
    plan = of_paper("LLaVA-OneVision-7B", recipe, 32, 100, *overrides)
    assert plan.flops["prefill"].total == pytest.approx(expected, rel=0.02)


def test_known_shapes_are_the_checkpoints() -> None:
    """Parameters as the model cards count them."""
    sizes = {name: build_outline(name).parameters / 1e9 for name in KNOWN}
    expected = {"LongVA-7B": 7.94, "LLaVA-OneVision-7B": 8.03, "LLaVA-NeXT-Video-7B": 7.06, "LLaVA-1.5-7B": 7.06}
    for name, size in expected.items():
        assert sizes[name] == pytest.approx(size, abs=0.006), name
    for config in KNOWN.values():
        assert recognise(config)[0] in FAMILIES


def test_parked_tokens_are_planned_for() -> None:
    """What `decode: lazyllm` may bring back waits beside the cache; without it, prefill holds nothing for it."""
    prefill = {"method": "lazyllm", "layers": (3, 5, 7), "percentiles": (50, 50, 50), "paper_depth": 8}
    steps: dict[str, Any] = {"frames": {"frames": 16}, "prefill": prefill}
    alone = Planner.of(None, steps).plan(16, new_tokens=4)
    both = Planner.of(None, {**steps, "decode": {"method": "lazyllm"}}).plan(16, new_tokens=4)
    assert both.tokens == alone.tokens
    waits = (
        (256 - alone.tokens["last_layer"][0]) * (192 + 2 * 32) * 4
    )  # a state of the width, two angles of a head's size
    assert both.memory.phases["prefill"] - alone.memory.phases["prefill"] == waits
    assert both.memory.phases["decode"] - alone.memory.phases["decode"] >= waits
    assert both.flops["decode"].linear > alone.flops["decode"].linear


def test_ranges_hold_the_real_count(film: Path) -> None:
    """The demo recipe's counts depend on the film."""
    report = Pipeline.load(model=None).ask(film, QUESTION).report
    plan = Planner.of(None).plan(report.tokens["sampled"] // 16, question_tokens=30, new_tokens=4)
    assert plan.tokens["sampled"] == (report.tokens["sampled"],) * 2
    for name, (low, high) in plan.tokens.items():
        assert low * 0.8 <= report.tokens[name] <= high * 1.2, name


def test_fit_frames_is_the_most() -> None:
    planner = Planner.of("LongVA-7B", "dense", memory=18 * 2**30)
    tried: list[int] = []
    fit = fit_frames(planner, None, tell=tried.append, question_tokens=64, new_tokens=1)
    assert fit.plan.fits
    more = planner.plan(fit.plan.frames + max(1, fit.plan.frames // 32), question_tokens=64, new_tokens=1)
    assert not more.fits
    assert len(tried) < 20
    assert command_line(None, ["--model", "LongVA-7B"], fit).endswith(f"--frames {fit.plan.frames}")


def test_fit_frames_stops_at_the_context_and_at_the_film() -> None:
    planner = Planner.of("LLaVA-1.5-7B", "dense", memory=80 * 2**30)
    assert fit_frames(planner, None, tell=lambda n: None).plan.frames == (4096 - 64) // 576
    assert fit_frames(planner, 3, tell=lambda n: None).plan.frames == 3


def test_fit_keep_lowers_the_merge() -> None:
    planner = Planner.of(
        "LongVA-7B", {"merge": {"method": "uniform", "keep": 1.0, "at_most": 18000}}, memory=16 * 2**30
    )
    assert not planner.plan(128).fits
    fit = fit_keep(planner, 128, tell=lambda n: None)
    assert fit.changed == "merge.keep"
    assert fit.plan.fits
    assert not planner.with_overrides([f"merge.keep={float(fit.value) + 0.01}"]).plan(128).fits


def test_fit_says_what_is_impossible() -> None:
    with pytest.raises(EnvironmentProblem, match=r"not even one frame fits: weights 14\.8 GiB"):
        fit_frames(Planner.of("LongVA-7B", "dense", memory=2**30), None, tell=lambda n: None)
    with pytest.raises(UsageError, match="no merge method"):
        fit_keep(Planner.of("LongVA-7B", "dense", memory=16 * 2**30), 512, tell=lambda n: None)


def test_command_plans_without_weights(
    videoprune: Any, checkpoint: Callable[[str], Path], film: Path, tmp_path: Path
) -> None:
    shutil.copy(checkpoint("llava-onevision") / "config.json", tmp_path)
    ended = videoprune("plan", film, "--model", tmp_path, "--recipe", "dense", "--frames", "8", "--json")
    assert ended.code == 0, ended.err
    data = json.loads(ended.out)
    assert data["frames"] == 8
    assert data["tokens"]["sampled"] == [8 * 16, 8 * 16]
    assert data["memory"]["fits"] is True
    assert data["memory"]["stored_weights"] is None
    text = videoprune("plan", "--model", "LongVA-7B", "--frames", "128", "--memory", "24GiB")
    assert text.code == 0, text.err
    assert "18,432" in text.out
    assert "24.0 GiB are given: fits" in text.out


def test_command_fit_prints_the_line_to_run(
    videoprune: Any, checkpoint: Callable[[str], Path], film: Path, tmp_path: Path
) -> None:
    shutil.copy(checkpoint("llava-onevision") / "config.json", tmp_path)
    ended = videoprune("plan", film, "--model", tmp_path, "--recipe", "dense", "--fit", "--json")
    assert ended.code == 0, ended.err
    fit = json.loads(ended.out)["fit"]
    line = f"videoprune ask {film} QUESTION --model {tmp_path} --recipe dense --frames 24"
    assert fit == {"changed": "frames", "value": "24", "limit": "the film has no more", "command": line}
    ended = videoprune("plan", film, "--model", tmp_path, "--recipe", "dense", "--frames", "8", "--fit")
    assert "fit: nothing; it fits as it is" in ended.out


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--model", "LongVa-8B", "--frames", "4"], 2, "did you mean 'LongVA-7B'"),
        (["--model", "LongVA-7B", "--recipe", "metok-release"], 2, "give --frames N, or a film"),
        (["--frames", "4", "--memory", "lots"], 2, "--memory lots: allowed is a size such as 24GiB"),
        (["--frames", "4", "--question-tokens", "-1"], 2, "--question-tokens -1"),
        (["--model", "/nowhere", "--frames", "4"], 3, "not found"),
    ],
)
def test_command_says_what_is_wrong(videoprune: Any, words: list[str], code: int, says: str) -> None:
    ended = videoprune("plan", *words)
    assert ended.code == code, ended.err
    assert says in ended.err
