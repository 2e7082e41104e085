"""`videoprune bench ops` on films small enough for a test."""

import dataclasses
import json

import pytest
import torch

from videoprune.bench import machine, ops, timing
from videoprune.bench.case import Case
from videoprune.bench.machine import Bounds, DenseLayer
from videoprune.bench.primitives import primitives
from videoprune.bench.selections import selections
from videoprune.bench.timing import Timed, counted_flops, peak_bytes, side_by_side
from videoprune.bench.world import World
from videoprune.registry import methods

TOKENS, WIDTH = 704, 128  # eleven frames of 8 x 8, two heads


@pytest.fixture(autouse=True)
def small_bounds(monkeypatch):
    monkeypatch.setattr(machine, "SQUARE", 64)
    monkeypatch.setattr(machine, "COPIED", 4096)
    monkeypatch.setattr(machine, "ROUNDS", 2)


@pytest.fixture(scope="module")
def world():
    return World(TOKENS, WIDTH)


def test_peak_memory_counts_what_is_alive_at_once():
    def work():
        first = torch.zeros(1000, 250)  # 1 MB
        second = first + 1  # 2 MB
        del first
        return second.sum()  # and below that again

    assert 2_000_000 <= peak_bytes(work) < 2_100_000
    assert peak_bytes(lambda: None) == 0


def test_products_are_counted():
    left, right = torch.zeros(3, 4), torch.zeros(4, 5)
    assert counted_flops(lambda: torch.mm(left, right, out=torch.empty(3, 5))) == 2 * 3 * 4 * 5


def test_sides_take_turns(monkeypatch):
    calls = []
    monkeypatch.setattr(timing, "cpu_seconds", lambda work: [work(), 0.25][1])
    ours, theirs = side_by_side(lambda: calls.append("ours"), lambda: calls.append("theirs"), budget=0.0)
    assert calls == ["ours", "theirs"] * 4  # once for the memory, then three pairs
    assert ours is not None
    assert theirs is not None
    assert (ours.seconds, ours.low, ours.high, ours.runs) == (0.25, 0.25, 0.25, 3)
    monkeypatch.setattr(timing, "cpu_seconds", lambda work: [work(), 9.0][1])
    assert side_by_side(lambda: None, None, budget=100.0)[0].runs == 1


@pytest.mark.parametrize("stage", ["primitive", "segment", "encode", "merge", "prefill", "decode"])
def test_every_case_runs_and_so_does_its_transcription(world, stage):
    shared, chosen = ops.references()
    makers = [*primitives(world, shared), *selections(world, chosen)]
    wanted = [make for name, make in makers if name.split()[0] == stage or (stage == "primitive" and " " in name)]
    if stage == "primitive":
        wanted = [make for _, make in primitives(world, shared)]
    assert wanted
    for make in wanted:
        case = make()
        case.ours()
        if case.theirs is not None:
            case.theirs()
        if case.flops:
            assert counted_flops(case.ours) <= 2.2 * case.flops + 1e6, case.name


def test_every_method_with_a_paper_has_a_transcription(world):
    _, chosen = ops.references()
    cases = dict(selections(world, chosen))
    for entry in methods():
        if entry.stage in ("relevance", "scout") or entry.external:  # a scout is a tower: its cost is its forward pass
            continue
        case = cases[f"{entry.stage} {entry.name}"]()
        published = entry.paper.startswith("arXiv") and (entry.stage, entry.name) not in {
            ("decode", "metok"),  # a look at who is alive, and sinks: no score to transcribe
            ("decode", "streamingllm"),
            ("encode", "ssm"),  # its score is one line: the mean of the positive part of what the tower put out
        }
        assert (case.theirs is not None) == published, case.name


def test_transcriptions_choose_what_we_choose(world):
    shared, _ = ops.references()
    for name in ("attention rows", "streamed column sums", "row vector", "top-k", "segmented", "nearest of", "cosines"):
        case = next(make for label, make in primitives(world, shared) if label.startswith(name))()
        ours, theirs = case.ours(), case.theirs()
        if ours.shape != theirs.shape:  # a sum over the query heads of a key/value head, theirs for each of them
            theirs = theirs.view(len(ours), -1, theirs.shape[-1]).sum(1)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    farthest = next(make for label, make in primitives(world, shared) if label.startswith("greedy"))()
    assert torch.equal(farthest.ours(), farthest.theirs())


def test_bars():
    timed = {"seconds": 1.0, "runs": 1}
    assert ops._bar(0.7, 1.0, False) == "bound"
    assert ops._bar(0.1, 5.0, False) == "faster"
    assert ops._bar(0.1, 4.9, False) == "none"
    assert ops._bar(0.1, None, True) == "only one"
    dense = DenseLayer(WIDTH, 64)
    assert dense.seconds(128) > 2 * dense.linear * 64
    case = Case("merge x", lambda: torch.zeros(3), None, saves=lambda _: 2.0, repeats=3)
    row = ops._row(case, TOKENS, Bounds(1e9, 1e9), dense, 0.0)
    assert row["of_prefill"] == pytest.approx(3 * row["ours"]["seconds"] / 2)
    assert row["no_transcription"] == "baseline"
    assert row["primitive"] is False
    large = dataclasses.replace(case, theirs=lambda: pytest.fail("too large to run"), needs=5e9)
    assert ops._row(large, TOKENS, Bounds(1e9, 1e9), dense, 0.0)["theirs"] is None
    assert timed


def test_the_command(videoprune, tmp_path):
    page = tmp_path / "ops.md"
    words = ("bench", "ops", "--tokens", "64,256", "--width", "64", "--only", "dart", "--only", "thinning")
    ended = videoprune(*words, "--seconds", "0", "--json", "--markdown", page)
    assert ended.code == 0
    data = json.loads(ended.out)
    assert [(row["name"], row["tokens"]) for row in data["rows"]] == [
        ("even thinning to a quarter", 64), ("prefill dart", 64), ("even thinning to a quarter", 256), ("prefill dart", 256),
    ]  # fmt: skip
    assert data["bounds"]["1"]["matmul"] > 1e8
    assert page.read_text().count("| prefill dart |") == 2
    left_out = videoprune(*words, "--seconds", "0", "--longest", "0")
    assert left_out.out.count("left out: about") == 2
    assert "256 tokens: 2/2" in ended.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--tokens", "63"), "multiples of"),
        (("--tokens", "many"), "allowed are numbers"),
        (("--width", "100"), "multiples of 64"),
        (("--tokens", "64", "--only", "nothing"), "allowed are parts of"),
    ],
)
def test_refusals(videoprune, words, told):
    ended = videoprune("bench", "ops", "--seconds", "0", *words)
    assert ended.code == 2
    assert told in ended.err


def test_an_installation_without_the_transcriptions(monkeypatch, videoprune):
    monkeypatch.setattr(ops, "__file__", "/nowhere/a/b/ops.py")
    ended = videoprune("bench", "ops", "--tokens", "64")
    assert ended.code == 3
    assert "source checkout" in ended.err


def test_times_are_written_with_their_spread():
    from videoprune.bench.page import _bytes, _time

    assert _time(Timed(0.0123, 0.012, 0.013, 5, 0).to_dict()) == "12.3 ± 0.5 ms"
    assert _time(Timed(12.0, 12.0, 12.0, 1, 0).to_dict()) == "12000 ms"
    assert (_bytes(12), _bytes(2.5e6), _bytes(1.5e9)) == ("12 B", "2.5 MB", "1.5 GB")
