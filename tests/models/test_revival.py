"""Parking and revival in the layer loop, on LazyLLM's two stages and on states made for the purpose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import matrix, tiny, tiny_qwen
from tests.models.lazy_reading import LazyReading
from videoprune import Pipeline, Recipe
from videoprune.decode.h2o import H2O
from videoprune.decode.lazyllm import LazyLLM as Decode
from videoprune.decode.pagedeviction import PagedEviction
from videoprune.errors import UsageError
from videoprune.layer_method import DecodeState, DecodeView, Kept, PrefillState, PrefillView, Selected
from videoprune.models.cache import KeptLayer, Uneven
from videoprune.models.framing import FIXED
from videoprune.models.host import Host
from videoprune.models.load import load_host
from videoprune.models.parking import attend_to
from videoprune.models.session import Session
from videoprune.prefill.dart import DART
from videoprune.prefill.lazyllm import LazyLLM as Prefill
from videoprune.report.flops import Cost, decoder_cost
from videoprune.run import Events, Run

ASKED = "what happens after the red circle ?"
STEPS = 9
MAKERS = {
    "onevision": tiny.onevision,
    "video_llava": tiny.video_llava,  # [CLS] rows that no method sees
    "internvl": tiny.internvl,  # text between the frames
    "qwen2_vl": tiny_qwen.qwen2_vl,  # M-RoPE
    "qwen2_5_vl": tiny_qwen.qwen2_5_vl,
    "qwen3_vl": tiny_qwen.qwen3_vl,  # deepstack, norms of queries and keys, text between the frames
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module", params=MAKERS)
def host(request: pytest.FixtureRequest, folder: Path) -> Host:
    return made(request.param, folder)


@pytest.fixture(scope="module")
def one(folder: Path) -> Host:
    return made("onevision", folder)


def made(name: str, folder: Path) -> Host:
    place = folder / name
    if not place.exists():
        MAKERS[name](place)
    loaded = load_host(place, device="cpu")
    loaded.model.generation_config.eos_token_id = None  # every run decodes as many tokens
    return loaded


def prompt_of(host: Host, frames: int = 8):
    images = np.random.default_rng(0).integers(0, 255, (frames, 120, 160, 3), dtype=np.uint8)
    tokens = host.encode(images, np.arange(float(frames)), 0).tokens
    return host.prompt(ASKED, tokens)[0], tokens


def answered(host: Host, prefill: list[Any], decode: list[Any], steps: int = STEPS):
    """Methods or ready states; (prompt, generation, session, rows that the key projection of each layer was given)."""
    prompt, tokens = prompt_of(host)
    run, depth = Run(Events.single(tokens.frames)), host.decoder_shape.layers
    session = Session(
        prompt.visual,
        tokens,
        [each if isinstance(each, PrefillState) else each.begin(run, depth) for each in prefill],
        [each if isinstance(each, DecodeState) else each.start(run, depth) for each in decode],
        evidence_layers=frozenset({2, 3}),
    )
    projected, hooks = [0] * depth, []
    for number, layer in enumerate(host.decoder.layers):

        def count(module: Any, given: Any, out: Any, number: int = number) -> None:
            projected[number] += out.shape[1]

        hooks.append(layer.self_attn.k_proj.register_forward_hook(count))
    made = host.generate(prompt, session, steps, logits=True)
    for hook in hooks:
        hook.remove()
    return prompt, made, session, projected


def by_percentile(points: list[int], percent: float, visual: Tensor, tokens: Any):
    """The paper's rule by numpy's percentile: of the visual tokens while reading, of all of the prompt later."""
    fixed = tokens.scores.get(FIXED, torch.zeros(len(tokens), dtype=torch.bool))
    may_go = visual[~fixed]

    def choose(call: int, layer: int, alive: Tensor, score: Tensor) -> Tensor:
        if layer not in points:
            return alive
        ranked = torch.isin(alive, may_go) if call == 0 else torch.ones_like(alive, dtype=torch.bool)
        least = np.percentile(score[ranked].numpy(), percent)
        return alive[~ranked | (score >= least)]

    return choose


def test_equals_the_reading_in_float64(host: Host) -> None:
    """Choices, revivals, logits and entries of the whole method, none of them told to the reading."""
    methods = {"layers": (2, 3, 5), "percentiles": (60, 30, 30), "paper_depth": 6}
    prompt, mine, session, projected = answered(host, [Prefill(**methods)], [Decode(**methods)])
    points, trace, rows = [1, 2, 4], session.trace, prompt.embeddings.shape[1]
    chosen: dict[tuple[int, int], Tensor] = {}
    percent = {1: 60.0, 2: 30.0, 4: 30.0}

    def choose(call: int, layer: int, alive: Tensor, score: Tensor) -> Tensor:
        rule = by_percentile(points, percent.get(layer, 0.0), prompt.visual.rows, session.tokens)
        goes = rule(call, layer, alive, score)
        if call and layer in points:
            chosen[call, layer] = goes
        return goes

    reading = LazyReading(host.model, choose).read(prompt.embeddings, prompt.position_ids, prompt.visual, mine.ids)
    torch.testing.assert_close(mine.logits.double(), reading.logits, atol=2e-4, rtol=0)
    assert trace.selected.keys() == chosen.keys()
    assert all(torch.equal(trace.selected[call], chosen[call]) for call in chosen)
    assert trace.revived, "nothing came back"
    assert min(call for call, _ in trace.revived) == 1
    # a layer computes a token at most once, and it is in its cache from then on
    assert int(reading.computed.max()) == 1
    assert projected == reading.computed.sum(1).tolist() == trace.entries
    for number, layer in enumerate(session.left.layers):
        assert torch.equal(layer.position, reading.computed[number].nonzero()[:, 0])
        torch.testing.assert_close(
            layer.keys[0].transpose(0, 1).double(), reading.keys[number, layer.position], atol=2e-4, rtol=0
        )
        torch.testing.assert_close(
            layer.values[0].transpose(0, 1).double(), reading.values[number, layer.position], atol=2e-4, rtol=0
        )
    # what the layers were given in each call, and what they looked at
    assert [sum(call) for call in zip(*trace.queries, strict=True)] == projected
    for call in range(1, STEPS):
        looked = [len(chosen[call, at]) if at in points else None for at in range(6)]
        latest, want = rows, []
        for at in range(6):
            want.append(latest + call)
            latest = looked[at] if looked[at] is not None else latest
        assert trace.keys[call] == want
    # the ledger: who waits and who came back
    waiting = {at: set[int]() for at in points}
    for call in range(STEPS):
        for at in points:
            back = set(trace.revived.get((call, at), torch.empty(0)).tolist())
            assert back <= waiting[at]
            waiting[at] -= back
            stops = trace.parked.get((call, at), torch.empty(0)).tolist()
            assert not waiting[at] & set(stops)
            waiting[at] |= set(stops)
    everyone = [token for at in points for token in waiting[at]]
    assert len(everyone) == len(set(everyone))
    held_last = set(prompt.visual.token(session.left.layers[-1].position).tolist()) - {-1}
    assert set(everyone) == set(range(len(session.tokens))) - held_last
    assert trace.parked_most == sum(
        len(trace.parked[0, at]) for at in points
    )  # all that waits later waited from the start
    width = host.decoder_shape.width + 2 * host.decoder_shape.head_dim
    assert trace.parked_bytes == trace.parked_most * width * 4


class DropsMost(PrefillState):
    """Two of three visual tokens stop behind layer 1."""

    at, parks = frozenset({1}), True

    def after(self, view: PrefillView) -> Kept:
        return Kept(torch.arange(0, len(view.visual), 3), parked=True)


class WantsAll(DecodeState):
    """Everything comes back behind layer 1 with the first decoded token."""

    revives = True

    def after(self, view: DecodeView) -> Selected | None:
        return None if view.prefill or view.layer != 1 else Selected(torch.arange(view.prompt_rows))


def test_all_revived_at_once_is_the_dense_cache(host: Host) -> None:
    """What the layers up to the one behind the cut hold is then what an unpruned run holds, and the tokens that came back
    are computed on as in a run that hides nothing from them."""
    prompt, mine, session, projected = answered(host, [DropsMost()], [WantsAll()], steps=3)
    tokens, rows = session.tokens, prompt.embeddings.shape[1]
    dense = Session(prompt.visual, tokens)
    host.generate(prompt, dense, 3)
    assert len(session.trace.revived[1, 1]) == len(session.trace.parked[0, 1]) > 0
    assert set(session.trace.revived) == {(1, 1)}
    assert projected == [rows + 2] * 6
    for layer in range(6):
        ours, theirs = session.left.layers[layer], dense.left.layers[layer]
        assert torch.equal(ours.position, torch.arange(rows + 2))
        if layer < 3:  # layer 2 is fed by layer 1, which every token has run through beside all others
            torch.testing.assert_close(ours.keys[..., :rows, :], theirs.keys[..., :rows, :], atol=1e-5, rtol=0)
            torch.testing.assert_close(ours.values[..., :rows, :], theirs.values[..., :rows, :], atol=1e-5, rtol=0)
    # layer 3: those that came back saw in layer 2 all that a dense run shows them
    back = prompt.visual.rows[session.trace.revived[1, 1]]
    torch.testing.assert_close(
        session.left.layers[3].keys[..., back, :], dense.left.layers[3].keys[..., back, :], atol=1e-4, rtol=0
    )
    others = session.left.layers[3].keys - dense.left.layers[3].keys
    assert float(others[..., prompt.visual.stop : rows, :].abs().max()) > 1e-3, "the cut changed nothing"

    def choose(call: int, layer: int, alive: Tensor, score: Tensor) -> Tensor:
        seen = tokens.scores.get(FIXED, torch.zeros(len(tokens), dtype=torch.bool))
        goes = torch.ones(rows, dtype=torch.bool)
        free = prompt.visual.rows[~seen]
        goes[free] = torch.arange(len(free)) % 3 == 0
        return alive[goes[alive]] if call == 0 and layer == 1 else alive

    reading = LazyReading(host.model, choose).read(prompt.embeddings, prompt.position_ids, prompt.visual, mine.ids)
    torch.testing.assert_close(mine.logits.double(), reading.logits, atol=2e-4, rtol=0)


def test_until_something_comes_back_it_is_a_masked_dense_run(one: Host) -> None:
    """Without a stage that parks, the choice alone: what is not chosen is hidden from the new token, and cached."""
    decode = Decode(layers=(2, 4), percentiles=(50, 50), paper_depth=6)
    prompt, mine, session, projected = answered(one, [], [decode])
    rows = prompt.embeddings.shape[1]
    rule = by_percentile([1, 3], 50, prompt.visual.rows, session.tokens)
    reading = LazyReading(one.model, lambda call, *rest: rule(call, *rest) if call else rest[1]).read(
        prompt.embeddings, prompt.position_ids, prompt.visual, mine.ids
    )
    torch.testing.assert_close(mine.logits.double(), reading.logits, atol=2e-4, rtol=0)
    assert not session.trace.revived
    assert session.trace.parked_bytes == 0
    assert projected == session.trace.entries == [rows + STEPS - 1] * 6


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("prefill", "decode"),
    [
        ([DART(keep=0.7, layer=2, paper_depth=6)], []),
        ([], [H2O(keep=0.7)]),
        ([], [PagedEviction(keep=64, page=8)]),
    ],
    ids=["prefill-dart", "decode-h2o", "decode-pagedeviction"],
)
def test_chains(kernel: str, prefill: list[Any], decode: list[Any], one: Host) -> None:
    """What another method drops for good stays away; what it evicts is not computed again. Heads may hold different entries."""
    schedule = {"layers": (3, 5), "percentiles": (60, 30), "paper_depth": 6}
    one.decoder.set_attn_implementation(kernel)
    try:
        prompt, mine, session, projected = answered(one, [*prefill, Prefill(**schedule)], [*decode, Decode(**schedule)])
    finally:
        one.decoder.set_attn_implementation("sdpa")
    trace = session.trace
    assert trace.revived

    def choose(call: int, layer: int, alive: Tensor, score: Tensor) -> Tensor:
        if call == 0 and layer in trace.kept:
            stays = torch.cat((torch.arange(prompt.visual.start), prompt.visual.rows[trace.kept[layer]]))
            return torch.cat((stays, torch.arange(prompt.visual.stop, prompt.embeddings.shape[1])))
        chosen = trace.selected.get((call, layer), alive)
        gone = torch.ones_like(chosen, dtype=torch.bool)
        for at, kept in trace.kept.items():
            if at in (1,) and prefill:  # dropped for good
                gone &= ~torch.isin(chosen, prompt.visual.rows) | torch.isin(chosen, prompt.visual.rows[kept])
        return chosen[gone] if layer >= 1 else chosen

    reading = LazyReading(one.model, choose, trace.evicted).read(
        prompt.embeddings, prompt.position_ids, prompt.visual, mine.ids
    )
    torch.testing.assert_close(mine.logits.double(), reading.logits, atol=2e-4, rtol=0)
    assert int(reading.computed.max()) == 1
    assert projected == reading.computed.sum(1).tolist()


def test_states_wait_only_where_they_may_come_back(one: Host) -> None:
    prefill = Prefill(layers=(2, 4), percentiles=(50, 50), paper_depth=6)
    _, alone, session, _ = answered(one, [prefill], [])
    assert session.trace.kept
    assert not session.trace.parked
    assert session.trace.parked_bytes == 0
    _, both, _, _ = answered(one, [prefill], [Decode(keep=0.5)])
    assert torch.equal(alone.logits[0], both.logits[0])  # the first token comes from the pruned prompt


def test_evidence_falls_on_what_was_looked_at(one: Host) -> None:
    class Only(DecodeState):
        revives = True

        def after(self, view: DecodeView) -> Selected | None:
            chosen = torch.cat((torch.arange(16), torch.arange(20, 23)))
            return None if view.prefill or view.layer else Selected(chosen)

    prompt, _, session, _ = answered(one, [], [Only()], steps=2)
    only = session.trace.evidence.nonzero()[:, 0]
    first = Session(prompt.visual, session.tokens, evidence_layers=frozenset({2, 3}))
    one.generate(prompt, first, 1)
    later = (session.trace.evidence - first.trace.evidence).abs() > 1e-7
    shown = prompt.visual.token(torch.cat((torch.arange(16), torch.arange(20, 23))))
    assert set(later.nonzero()[:, 0].tolist()) == set(shown[shown >= 0].tolist())
    assert len(only) > len(shown)


def test_what_tokens_cannot_come_back_under_is_refused(one: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    both = {"prefill": {"method": "lazyllm"}, "decode": {"method": "lazyllm"}}
    Pipeline(one, Recipe.load(both))
    compact = [both["prefill"], {"method": "fastv", "positions": "compact"}]
    with pytest.raises(
        UsageError, match=r"decode\.lazyllm: prefill\.fastv has positions 'compact'.*; set its positions"
    ):
        Pipeline(one, Recipe.load({**both, "prefill": compact}))
    monkeypatch.setattr(one.decoder.config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(UsageError, match=r"'flash_attention_2' is given.*allowed are --attn sdpa and eager"):
        Pipeline(one, Recipe.load(both))
    Pipeline(one, Recipe.load({"prefill": {"method": "lazyllm"}}))


@pytest.mark.parametrize("keep", [1, 0.5])
def test_the_account(keep: float, one: Host) -> None:
    """`keep: 1` of the decode stage is no stage at all; else the report says what waited, came back and was computed."""
    prefill = {"method": "lazyllm", "layers": (2, 4), "percentiles": (60, 30), "paper_depth": 6}
    recipe = {"prefill": prefill, "decode": {"method": "lazyllm", "keep": keep}, "max_new_tokens": STEPS}
    pipe = Pipeline(one, Recipe.load(recipe))
    answer = matrix.watch(pipe, "moving").ask(ASKED)
    report, trace = answer.report, answer.trace
    data = report.to_dict()
    if keep == 1:
        assert "revival" not in data
        assert {call[0] for call in trace.queries[1:]} == {1}
        return
    revival = data["revival"]
    assert revival["revived"] == sum(map(len, trace.revived.values())) > 0
    assert revival["waiting"] == revival["parked"] - revival["revived"]
    assert revival["waiting"] == report.kv["entries"][0] - report.kv["entries"][-1]  # what the last layer never saw
    shape = one.decoder_shape
    calls = [decoder_cost(shape, q, k) for q, k in zip(trace.queries[1:], trace.keys[1:], strict=True)]
    assert report.flops["decode"] == sum(calls, Cost())
    assert max(max(call) for call in trace.queries[1:]) > 1
    assert report.kv["entries"] == [sum(call) for call in zip(*trace.queries, strict=True)]


def test_several_prompts_at_once_are_refused(one: Host) -> None:
    prompt, tokens = prompt_of(one)
    sessions = [Session(prompt.visual, tokens, [DropsMost()], [WantsAll()]) for _ in range(2)]
    with pytest.raises(Uneven, match="one by one"):
        one.generate_batch([prompt, prompt], sessions, 3)


@pytest.mark.parametrize("heads_differ", [False, True])
@pytest.mark.parametrize("window", [None, 5])
def test_the_mask_is_by_position(heads_differ: bool, window: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    prompt, index = 12, torch.tensor([2, 7, 13])
    held = torch.tensor([0, 1, 3, 4, 8, 9, 11, 12])
    if heads_differ:
        held = torch.stack((held, torch.tensor([0, 1, 3, 5, 8, 10, 11, 12])))
    kept = KeptLayer()
    kept.position = held
    selected = torch.rand(prompt + 1, generator=generator) < 0.6
    selected[[2, 7, prompt]] = True
    mask = attend_to(selected, kept, index, 4, window)
    assert mask is not None
    wide = mask.expand(1, 4, *mask.shape[2:])[0]
    for head in range(4):
        own = held[head // 2] if heads_differ else held
        position = torch.cat((own, index))[kept.attended].tolist()
        for row, place in enumerate(index.tolist()):
            for column, key in enumerate(position):
                chosen = bool(selected[min(key, prompt)])
                near = window is None or key > place - window
                assert bool(wide[head, row, column]) == (chosen and key <= place and near)
    seen = {int(each) for each in torch.cat((held.flatten(), index)) if selected[min(int(each), prompt)]}
    got = torch.cat((held.reshape(-1, 8), index.expand(held.reshape(-1, 8).shape[0], 3)), 1)[:, kept.attended]
    assert seen <= set(got.flatten().tolist())
    assert attend_to(selected, kept, torch.tensor([13]), 4, window) is None or heads_differ or window
