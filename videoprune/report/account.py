"""What one answer cost, from the trace that its session left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from videoprune.models.session import Trace
from videoprune.report.flops import Cost, decoder_cost, kv_bytes, lm_head_cost
from videoprune.report.report import Report, peak_memory
from videoprune.tokens import VisualTokens

if TYPE_CHECKING:
    from videoprune.models.host import Host

EVIDENCE_FRAMES = 5


def account(
    host: Host,
    tokens: VisualTokens,
    trace: Trace,
    *,
    rows: int,
    dense_rows: int,
    encoded: int,
    costs: Mapping[str, Cost],
    seconds: Mapping[str, float],
    choices: Sequence[dict[str, Any]],
    continued: int = 0,
    branches: bool = False,
) -> Report:
    """The report of one answer.

    Args:
        host: the model that answered.
        tokens: visual tokens as they entered the language model.
        trace: what its session left.
        rows: rows of the prompt, with the tokens that entered.
        dense_rows: rows of the same prompt with nothing pruned.
        encoded: tokens after the vision tower.
        costs, seconds: of the stages before the language model, and the seconds of all stages.
        choices: every automatic choice.
        continued: rows that the cache held before the first call; a dense run would have held them too.
        branches: the calls behind the prompt each continue the prompt, and not one another.
    """
    shape, sampled = host.decoder_shape, len(tokens.owner)
    alive = torch.arange(len(tokens), device=tokens.features.device)
    for layer in sorted(trace.kept):
        if layer < shape.layers - 1:
            alive = trace.kept[layer]
    calls = [decoder_cost(shape, q, k) for q, k in zip(trace.queries, trace.keys, strict=True)]
    first = trace.prompt_calls
    behind = [query[0] for query in trace.queries[first:]]
    head = lm_head_cost(1 + sum(behind), shape.width, host.vocabulary)
    spent = dict(costs) | {
        "prefill": sum(calls[:first], Cost()),
        "decode": sum(calls[first:], Cost()),
        "lm_head": head,
        "overhead": Cost(attention=trace.counted.total),
    }
    held = dense_rows  # what a dense run's cache holds when the prompt is read
    dense = host.dense_encode_cost(tokens.frames, tokens.grid) + head
    dense = dense + decoder_cost(
        shape, [held - (continued and continued + dense_rows - rows)] * shape.layers, [held] * shape.layers
    )
    prompt = held
    for fed in behind:
        held = (prompt if branches else held) + fed
        dense = dense + decoder_cost(shape, [fed] * shape.layers, [held] * shape.layers)
    number = torch.finfo(host.dtype).bits // 8
    return Report(
        tokens={
            "sampled": sampled,
            "encoded": encoded,
            "merged": tokens.count,
            "last_layer": int((tokens.weight[alive] > 0).sum()),
        },
        tokens_by_layer=trace.visual_rows,
        kv={
            "entries": trace.entries,
            "bytes": kv_bytes(trace.entries, shape, number),
            "dense_bytes": kv_bytes([held] * shape.layers, shape, number),
        },
        revival=_revival(trace),
        flops=spent,
        dense=dense,
        seconds=dict(seconds),
        peak_bytes=peak_memory(),
        choices=list(choices),
    )


def _revival(trace: Trace) -> dict[str, int]:
    """Dropped tokens that could come back, counted each time that they stop or come back, and what they took."""
    parked = sum(len(rows) for rows in trace.parked.values())
    revived = sum(len(rows) for rows in trace.revived.values())
    return {"parked": parked, "revived": revived, "waiting": parked - revived, "bytes": trace.parked_bytes}


def evidence(tokens: VisualTokens, trace: Trace) -> list[dict[str, float]]:
    """The frames that the answer attended to most; weights are shares of the attention on all visual tokens."""
    if trace.evidence is None or not len(tokens):
        return []
    weight = torch.zeros(tokens.frames, device=trace.evidence.device).index_add_(0, tokens.frame, trace.evidence)
    total = float(weight.sum())
    if not total:
        return []
    best = torch.argsort(weight, descending=True, stable=True)[:EVIDENCE_FRAMES]
    return [
        {"seconds": round(float(tokens.frame_seconds[frame]), 3), "weight": round(float(weight[frame]) / total, 4)}
        for frame in best.tolist()
        if weight[frame] > 0
    ]
