"""The report's JSON, its table, the words for numbers, memory and the stopwatch."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import numpy
import pytest
from rich.console import Console

from videoprune.report.flops import Cost
from videoprune.report.report import (
    Report,
    Stopwatch,
    clock,
    human_bytes,
    human_flops,
    human_seconds,
)


@pytest.fixture
def report():
    return Report(
        tokens={"sampled": 1000, "encoded": 500, "merged": 125, "last_layer": 4},
        tokens_by_layer=[125, 125, 4],
        kv={"entries": [150, 150, 29], "bytes": 2**20, "dense_bytes": 2**22},
        flops={"encode": Cost(6e9, 1e9), "prefill": Cost(2e9, 1e9), "lm_head": Cost(1e6)},
        dense=Cost(8e10, 2e10),
        seconds={"decode_film": 1.5, "encode": 0.25, "prefill": 0.125},
        peak_bytes=3 * 2**20,
        choices=[{"name": "decoder", "value": "pyav", "reason": "[decord] is not installed"}],
    )


def shown(report: Report, **kwargs) -> str:
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report.table(**kwargs))
    return console.export_text()


def test_json_has_the_keys_that_others_script_against(report):
    data = json.loads(json.dumps(report.to_dict()))
    assert set(data) == {"tokens", "kv", "flops", "seconds", "peak_bytes", "choices"}
    assert set(data["tokens"]) == {"sampled", "encoded", "merged", "last_layer"}
    assert data["kv"] == {"entries": [150, 150, 29], "bytes": 2**20, "dense_bytes": 2**22}
    assert set(data["flops"]) == {"encode", "prefill", "lm_head", "total", "dense"}
    assert all(set(cost) == {"linear", "attention", "total"} for cost in data["flops"].values())
    assert data["flops"]["total"] == {"linear": 8.001e9, "attention": 2e9, "total": 10.001e9}
    assert data["flops"]["dense"]["total"] == 1e11
    assert data["seconds"]["decode_film"] == 1.5
    assert data["peak_bytes"] == 3 * 2**20
    assert data["choices"][0] == {"name": "decoder", "value": "pyav", "reason": "[decord] is not installed"}


def test_numbers_of_tensors_and_numpy_become_json(report):
    report.tokens["merged"] = numpy.int64(7)
    report.kv["entries"] = [numpy.int64(3)]
    report.seconds["merge"] = numpy.float32(0.5)
    assert json.loads(json.dumps(report.to_dict()))["kv"]["entries"] == [3]


def test_table_shows_counts_shares_and_reasons(report):
    text = shown(report, evidence=[{"seconds": 65.0, "weight": 0.25}, {"seconds": 5.0, "weight": 0.5}])
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "visual tokens sampled 1,000 100 % of sampled" in lines
    assert "merged 125 12 % of sampled" in lines
    assert "last layer 4 0.4 % of sampled" in lines
    assert "KV cache entries 29–150 by layer, 3 layers" in lines
    assert "size 1.00 MiB 25 % of dense, 4.00 MiB" in lines
    assert "work total 10.0 GFLOPs 10 % of dense, 100 GFLOPs" in lines
    assert "encode 250 ms 7.00 GFLOPs, 70 % of total" in lines
    assert "memory peak 3.00 MiB" in lines
    assert "choices decoder pyav [decord] is not installed" in lines  # brackets are text, not rich's markup
    assert lines.index("evidence at 0:05 weight 50 %") + 1 == lines.index("at 1:05 weight 25 %")


def test_table_of_an_empty_report_is_drawn():
    assert "sampled" in shown(Report())


@pytest.mark.parametrize(
    ("call", "number", "text"),
    [
        (human_bytes, 0, "0 B"),
        (human_bytes, 1023, "1023 B"),
        (human_bytes, 1024, "1.00 KiB"),
        (human_bytes, 2**20 - 1, "1.00 MiB"),
        (human_bytes, 4_300_000, "4.10 MiB"),
        (human_bytes, 5000 * 2**40, "5000 TiB"),
        (human_flops, 12, "12 FLOPs"),
        (human_flops, 1.234e9, "1.23 GFLOPs"),
        (human_flops, 9.996e9, "10.0 GFLOPs"),
        (human_flops, 99.96e12, "100 TFLOPs"),
        (human_flops, 999.7e9, "1.00 TFLOPs"),
        (human_seconds, 0, "0 ms"),
        (human_seconds, 0.0001, "<1 ms"),
        (human_seconds, 0.9996, "1.00 s"),
        (human_seconds, 59.97, "1 min 00 s"),
        (human_seconds, 3599.7, "1 h 00 min"),
        (human_seconds, 7170, "2 h 00 min"),
        (clock, 59.99, "0:59"),
        (clock, 3725, "1:02:05"),
    ],
)
def test_words_for_numbers(call, number, text):
    assert call(number) == text


def test_clock_with_tenths():
    assert clock(0.3, 1) == "0:00.3"
    assert clock(61.96, 1) == "1:01.9"


def test_peak_memory_is_this_process_own_in_bytes():
    # in a process of its own: here an earlier peak would hide 64 MiB, and getrusage would hand it on to a child
    code = (
        "from videoprune.report.report import peak_memory as peak; before = peak();"
        "block = b'x' * 2**26; del block; print(before, peak())"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, answer.stdout.split())
    assert 2**22 < before < 2**29
    assert 0.9 * 2**26 < after - before < 1.5 * 2**26


class Clock:
    """Time that passes when told, in place of the machine's."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def tick(monkeypatch):
    wall = Clock()
    monkeypatch.setattr(time, "perf_counter", wall)
    monkeypatch.setattr(time, "process_time", lambda: wall.now / 2)
    return wall


def test_stopwatch_adds_up_and_pauses_the_outer_stage(tick):
    watch = Stopwatch()
    with watch("encode"):
        tick.now += 1
        with watch("decode_film"):
            tick.now += 10
        tick.now += 2
        with watch("encode"):
            tick.now += 4
    tick.now += 100  # nobody's
    with watch("encode"):
        tick.now += 8
    assert watch.seconds == {"encode": 15, "decode_film": 10}
    assert watch.cpu_seconds == {"encode": 7.5, "decode_film": 5}


def test_stopwatch_survives_an_exception(tick):
    watch = Stopwatch()

    def fail() -> None:
        with watch("encode"), watch("merge"):
            tick.now += 3
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    tick.now += 50
    with watch("merge"):
        tick.now += 1
    assert watch.seconds == {"encode": 0, "merge": 4}


def test_stopwatch_on_the_real_clock():
    watch = Stopwatch()
    with watch("sleep"):
        time.sleep(0.05)
    assert 0.05 <= watch.seconds["sleep"] < 5
    assert watch.cpu_seconds["sleep"] < 0.05
    watch.add("sleep", 1.0)
    assert watch.seconds["sleep"] > 1
