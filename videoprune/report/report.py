"""The report of one answer: what went in, what was left after every stage, and what it cost."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from videoprune.report.flops import Cost

if TYPE_CHECKING:
    from rich.table import Table

STAGES = ("decode_film", "scout", "encode", "segment", "relevance", "merge", "prefill", "decode", "lm_head", "overhead")
TOKENS = ("sampled", "encoded", "merged", "last_layer")


# ------------------------------------------------------------------------------------------------- words for numbers


def _scaled(value: float, base: float, units: Sequence[str]) -> str:
    """Three digits and a unit; steps up where rounding would reach the next unit."""
    unit = units[0]
    for unit in units:
        if abs(value) < base - 0.5 or unit == units[-1]:
            break
        value /= base
    if unit == units[0]:
        return f"{value:.0f} {unit}"
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f} {unit}"


def human_bytes(count: float) -> str:
    """4300000 → "4.10 MiB"; units of 1024."""
    return _scaled(count, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def human_flops(count: float) -> str:
    """1.234e9 → "1.23 GFLOPs"; a count of operations, not a rate."""
    return _scaled(count, 1000, ("FLOPs", "kFLOPs", "MFLOPs", "GFLOPs", "TFLOPs", "PFLOPs", "EFLOPs"))


def human_seconds(seconds: float) -> str:
    """0.0123 → "12 ms", 3.21 → "3.21 s", 200 → "3 min 20 s", 3720 → "1 h 02 min"."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.00095 or seconds == 0 else "<1 ms"
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def clock(seconds: float, decimals: int = 0) -> str:
    """Time in a film: 65 → "1:05", 3725 → "1:02:05"; rounded down, as players do."""
    scale = 10**decimals
    ticks = int(seconds * scale + 1e-6)
    whole, part = divmod(ticks, scale)
    hours, minutes = whole // 3600, whole // 60 % 60
    text = f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
    return f"{text}.{part:0{decimals}d}" if decimals else text


def _share(part: float, whole: float) -> str:
    if not whole:
        return "–"
    percent = 100 * part / whole
    if 0 < percent < 0.1:
        return "<0.1 %"
    return f"{percent:.0f} %" if percent >= 9.95 or percent == 0 else f"{percent:.1f} %"


# --------------------------------------------------------------------------------------------------------- the report


@dataclass
class Report:
    """What one answer cost. Tokens are language-model tokens that a dense run would feed; added rows are left out.

    Attributes:
        tokens: `sampled` (a dense run's), `encoded` (after the tower), `merged` (entering the language model),
            `last_layer` (alive at the last decoder layer).
        tokens_by_layer: (L,) visual tokens that enter each decoder layer.
        kv: `entries` (L,) cache entries by layer when the answer is complete, `bytes` and a dense run's `dense_bytes`.
        revival: where a method parks tokens inside the language model to come back: how often a visual token was `parked`
            and how often one was `revived`, how many are `waiting` in the end, and the `bytes` that they took at most.
        flops: cost by stage: encode, segment, merge, prefill, decode, lm_head, overhead (scoring); together the total.
        dense: what the same answer costs without pruning, `lm_head` included.
        seconds: wall time by stage, each second in one stage.
        peak_bytes: largest memory so far, see `peak_memory`.
        choices: every automatic choice as {name, value, reason}.
    """

    tokens: dict[str, int] = field(default_factory=dict)
    tokens_by_layer: list[int] = field(default_factory=list)
    kv: dict[str, Any] = field(default_factory=dict)
    revival: dict[str, int] = field(default_factory=dict)
    flops: dict[str, Cost] = field(default_factory=dict)
    dense: Cost = field(default_factory=Cost)
    seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: int = 0
    choices: list[dict[str, Any]] = field(default_factory=list)

    @property
    def total(self) -> Cost:
        """The sum over the stages."""
        return sum(self.flops.values(), Cost())

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`; `flops` holds the stages beside `total` and `dense`."""
        return {
            "tokens": {name: int(self.tokens.get(name, 0)) for name in TOKENS},
            "kv": {
                "entries": [int(n) for n in self.kv.get("entries", [])],
                "bytes": int(self.kv.get("bytes", 0)),
                "dense_bytes": int(self.kv.get("dense_bytes", 0)),
            },
            **({"revival": dict(self.revival)} if self.revival.get("parked") else {}),
            "flops": {
                **{stage: cost.to_dict() for stage, cost in self.flops.items()},
                "total": self.total.to_dict(),
                "dense": self.dense.to_dict(),
            },
            "seconds": {stage: float(spent) for stage, spent in self.seconds.items()},
            "peak_bytes": int(self.peak_bytes),
            "choices": [dict(choice) for choice in self.choices],
        }

    def table(self, evidence: Sequence[Mapping[str, float]] = ()) -> Table:
        """A small table for the terminal; `evidence` are the answer's {seconds, weight}, shown as times."""
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(justify="right", overflow="fold")
        table.add_column(style="dim", overflow="fold", ratio=1)

        def rows(section: str, lines: Sequence[tuple[str, str, str]]) -> None:
            for number, line in enumerate(lines):
                # Text and not str: a reason or a path may hold square brackets, which are rich's markup
                table.add_row(section if number == 0 else "", *map(Text, line))

        data = self.to_dict()
        tokens, kv, total = data["tokens"], data["kv"], self.total
        sampled = tokens["sampled"]
        rows(
            "visual tokens",
            [(name.replace("_", " "), f"{n:,}", f"{_share(n, sampled)} of sampled") for name, n in tokens.items()],
        )
        if kv["entries"]:
            low, high = min(kv["entries"]), max(kv["entries"])
            span = f"{low:,}" if low == high else f"{low:,}–{high:,}"
            memory = f"{_share(kv['bytes'], kv['dense_bytes'])} of dense, {human_bytes(kv['dense_bytes'])}"
            layers = (
                f"in each of {len(kv['entries'])} layers" if low == high else f"by layer, {len(kv['entries'])} layers"
            )
            rows("KV cache", [("entries", span, layers), ("size", human_bytes(kv["bytes"]), memory)])
        if revival := data.get("revival"):
            waiting = f"{revival['waiting']:,} wait in the end, {human_bytes(revival['bytes'])} at most"
            revived = f"{_share(revival['revived'], revival['parked'])} of parked"
            rows(
                "revival",
                [("parked", f"{revival['parked']:,}", waiting), ("revived", f"{revival['revived']:,}", revived)],
            )
        against = f"{_share(total.total, self.dense.total)} of dense, {human_flops(self.dense.total)}"
        rows("work", [("total", human_flops(total.total), against)])
        stages = [name for name in (*STAGES, *self.flops, *self.seconds) if name in self.flops or name in self.seconds]
        lines = []
        for name in dict.fromkeys(stages):
            spent = human_seconds(self.seconds[name]) if name in self.seconds else ""
            cost = self.flops.get(name, Cost()).total
            work = f"{human_flops(cost)}, {_share(cost, total.total)} of total" if cost else ""
            if spent or work:
                lines.append((name.replace("_", " "), spent, work))
        rows("stages", lines)
        rows("memory", [("peak", human_bytes(self.peak_bytes), "")])
        if evidence:
            best = sorted(evidence, key=lambda e: -e["weight"])[:5]
            rows("evidence", [("at", clock(e["seconds"]), f"weight {_share(e['weight'], 1)}") for e in best])
        rows("choices", [(str(c["name"]), str(c["value"]), str(c["reason"])) for c in self.choices])
        return table


# ------------------------------------------------------------------------------------------------------ memory, time


def _cuda() -> Any:
    """torch.cuda where this process already uses it, else None; torch is never imported for a report."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized() else None


def peak_memory() -> int:
    """Peak memory of this process so far in bytes: CUDA's largest allocation where CUDA is in use, else resident set.

    0 where the system does not tell.
    """
    cuda = _cuda()
    if cuda is not None:
        return sum(int(cuda.max_memory_allocated(device)) for device in range(cuda.device_count()))
    try:
        # Linux carries getrusage's peak over from the parent at exec; VmHWM is this program's own
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024  # bytes on macOS, KiB elsewhere


class Stopwatch:
    """Seconds by stage: `with watch("encode"): …`.

    The same name adds up, nested in itself too. A stage inside another pauses the outer one, so that the stages sum to
    the time that passed inside the outermost. For one thread; do not `yield` inside a stage, or the consumer's time is
    counted as its own.

    Attributes:
        seconds: wall time by stage.
        cpu_seconds: process CPU time by stage, all threads together.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}
        self._running: list[str] = []
        self._since = (0.0, 0.0)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[Stopwatch]:
        """Time a block as `stage`; an exception inside is timed too and passes on."""
        self._lap()
        self._running.append(stage)
        self.add(stage, 0.0)
        try:
            yield self
        finally:
            self._lap()
            self._running.pop()

    def add(self, stage: str, seconds: float, cpu_seconds: float = 0.0) -> None:
        """Add time that was measured elsewhere, in a decoder's thread for instance."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        self.cpu_seconds[stage] = self.cpu_seconds.get(stage, 0.0) + cpu_seconds

    def _lap(self) -> None:
        """Book the time since the last lap on the innermost running stage."""
        cuda = _cuda()
        if cuda is not None:
            cuda.synchronize()  # kernels run behind Python's back: without this, the next stage would pay for them
        now = (time.perf_counter(), time.process_time())
        if self._running:
            self.add(self._running[-1], now[0] - self._since[0], now[1] - self._since[1])
        self._since = now
