"""The layer loop: equal to stock with nothing pruned, equal to the masked oracle with everything pruned."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch

from tests.oracle import oracle_logits
from tests.tiny import longva, onevision
from videoprune.errors import UsageError
from videoprune.layer_method import DecodeState, Kept, KeptKV, PrefillState
from videoprune.models.decoder import compressed
from videoprune.models.host import QUESTION, Host
from videoprune.models.load import load_host
from videoprune.models.session import Session
from videoprune.registry import find
from videoprune.run import Events, Run

ASKED = "what happens after the red circle ?"
STEPS = 9

# every prefill and decode method, alone and in chains; sizes are for 80 visual tokens in 6 or 4 layers
CASES: dict[str, tuple[list[tuple[str, dict]], list[tuple[str, dict]]]] = {
    "prefill-aim": ([("aim", {})], []),
    "prefill-metok": ([("metok", {})], []),
    "prefill-random": ([("random", {"keep": 0.3})], []),
    "prefill-uniform": ([("uniform", {"keep": 12})], []),
    "prefill-fastv": ([("fastv", {})], []),
    "prefill-dart": ([("dart", {})], []),
    "prefill-topv": ([("topv", {})], []),
    "prefill-transprune": ([("transprune", {"layers": (8, 16, 24), "first": 2})], []),
    "prefill-transprune-original": (
        [("transprune", {"layers": (8, 16, 24), "first": 2, "positions": "original"})],
        [],
    ),
    "prefill-holitom-compact": ([("holitom", {"positions": "compact"})], []),
    "prefill-entropyprune": ([("entropyprune", {})], []),
    "prefill-vflowopt": ([("vflowopt", {"keep": 0.4})], []),
    "prefill-pyramiddrop": ([("pyramiddrop", {})], []),
    "prefill-lazyllm": ([("lazyllm", {})], []),
    "prefill-sparsevlm": ([("sparsevlm", {"layers": (6, 12, 20)})], []),
    "prefill-prunevid": ([("prunevid", {})], []),
    "prefill-holitom": ([("holitom", {})], []),
    "decode-snapkv": ([], [("snapkv", {"window": 8})]),
    "decode-h2o": ([], [("h2o", {})]),
    "decode-streamingllm": ([], [("streamingllm", {})]),
    "decode-dycoke": ([], [("dycoke", {})]),
    "decode-pagedeviction": ([], [("pagedeviction", {"page": 8})]),
    "decode-metok": ([("metok", {})], [("metok", {})]),
    "decode-a2sf": ([], [("a2sf", {"keep": 0.4})]),
    "decode-a2sf-each-step": ([], [("a2sf", {"keep": 0.4, "variant": "decode"})]),
    "decode-random": ([], [("random", {"keep": 0.4})]),
    "decode-uniform": ([], [("uniform", {"keep": 0.4})]),
    "chain-compact": (
        [
            ("metok", {"keep": 0.5, "positions": "compact"}),
            ("random", {"keep": 0.6, "positions": "compact"}),
            ("aim", {"keep": 0.5, "positions": "compact"}),
        ],
        [("metok", {}), ("a2sf", {"keep": 0.6})],
    ),
    "chain": ([("metok", {"keep": 0.5}), ("aim", {"keep": 0.5})], [("metok", {}), ("a2sf", {"keep": 0.6})]),
}


@pytest.fixture(scope="module", params=["onevision", "longva"])
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Host:
    folder = tmp_path_factory.mktemp("models") / request.param
    loaded = load_host({"onevision": onevision, "longva": longva}[request.param](folder), device="cpu")
    loaded.model.generation_config.eos_token_id = None  # every run decodes as many tokens
    return loaded


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (5, 120, 160, 3), dtype=np.uint8)


class Recorder(PrefillState):
    """Passes a method's decisions on and keeps the states that it changed."""

    def __init__(self, state: PrefillState) -> None:
        self.state, self.at, self.needs, self.positions = state, state.at, state.needs, state.positions
        self.changes: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def after(self, view) -> Kept | None:
        kept = self.state.after(view)
        if kept is not None and kept.hidden is not None:
            self.changes[view.layer] = (view.token[kept.index], kept.hidden)
        return kept


def states(host: Host, kind: str, methods: list[tuple[str, dict]], run: Run) -> list:
    depth = host.decoder_shape.layers
    built = [find(kind, name).load()(**options) for name, options in methods]
    return [method.begin(run, depth) if kind == "prefill" else method.start(run, depth) for method in built]


def run_case(host: Host, images: np.ndarray, prefill: list, decode: list):
    tokens = host.encode(images, np.arange(5.0), 0).tokens
    frame_event = torch.tensor([0, 0, 1, 1, 2])
    tokens = tokens.with_events(frame_event)
    tokens = tokens.with_scores(importance=torch.rand(len(tokens), generator=torch.Generator().manual_seed(5)))
    events = Events(frame_event).ranked(torch.tensor([0.1, 0.9, 0.2, 0.3, 0.8]), 2)
    prompt, _ = host.prompt(ASKED, tokens)
    run = Run(events, relevance=torch.tensor([0.1, 0.9, 0.2, 0.3, 0.8]), seed=3)
    recorded = [Recorder(state) for state in states(host, "prefill", prefill, run)]
    session = Session(prompt.visual, tokens, recorded, states(host, "decode", decode, run))
    return prompt, host.generate(prompt, session, STEPS, logits=True), session


def test_nothing_pruned_equals_stock(host: Host, images: np.ndarray) -> None:
    prompt, mine, session = run_case(host, images, [], [])
    stock = host.model.generate(
        inputs_embeds=prompt.embeddings,
        attention_mask=torch.ones(prompt.embeddings.shape[:2], dtype=torch.int64),
        max_new_tokens=STEPS,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    assert mine.ids == stock.sequences[0].tolist()
    torch.testing.assert_close(mine.logits, torch.stack([step[0] for step in stock.logits]), atol=1e-5, rtol=0)
    assert session.trace.queries[0] == [prompt.embeddings.shape[1]] * host.decoder_shape.layers


def test_pixels_through_the_stock_class_give_the_same(tmp_path, images: np.ndarray) -> None:
    """From pixels and text ids through the unmodified class: features, prompt and answer are the same."""
    for clip, side in ((True, 8), (False, 7)):
        host = load_host(onevision(tmp_path / f"{side}", clip=clip, side=side), device="cpu")
        host.model.generation_config.eos_token_id = None
        _, mine, _ = run_case(host, images, [], [])
        before, behind = host.template()
        rows = 5 * host.grid[0] * host.grid[1] + 1
        text = f"{before}{'<video>' * rows}{behind.replace(QUESTION, ASKED)}"
        ids = torch.tensor([host.tokenizer(text, add_special_tokens=False)["input_ids"]])
        stock = host.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values_videos=host.preprocess(images)[None],
            max_new_tokens=STEPS,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        assert mine.ids == stock.sequences[0, ids.shape[1] :].tolist()
        torch.testing.assert_close(mine.logits, torch.stack([step[0] for step in stock.logits]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_pruned_run_equals_the_masked_oracle(case: str, host: Host, images: np.ndarray) -> None:
    prefill, decode = CASES[case]
    prompt, mine, session = run_case(host, images, prefill, decode)
    trace = session.trace
    assert len(mine.ids) == STEPS
    assert trace.kept or trace.evicted, "the case prunes nothing"
    changes = {layer: change for state in session.prefill for layer, change in state.changes.items()}
    want = oracle_logits(host.model, prompt.embeddings, prompt.position_ids, prompt.visual, mine.ids, trace, changes)
    assert mine.logits is not None
    torch.testing.assert_close(mine.logits, want, atol=1e-4, rtol=0)
    assert min(trace.entries) < prompt.embeddings.shape[1] + STEPS - 1  # memory is freed, not masked
    renumbers = any(state.positions == "compact" for state in session.prefill)
    assert bool(trace.compacted) == renumbers == ("compact" in case or case == "prefill-transprune")


def test_two_sessions_in_turn_leave_no_trace(host: Host, images: np.ndarray) -> None:
    alone = {case: run_case(host, images, *CASES[case])[1].logits for case in ("prefill-aim", "decode-a2sf")}
    before = {name: value.clone() for name, value in host.model.state_dict().items()}
    for case in ("decode-a2sf", "prefill-aim", "decode-a2sf"):
        torch.testing.assert_close(run_case(host, images, *CASES[case])[1].logits, alone[case], atol=0, rtol=0)
    assert "forward" not in host.decoder.__dict__
    assert all(torch.equal(value, before[name]) for name, value in host.model.state_dict().items())
    assert not any(module._forward_hooks for module in host.model.modules())


class DropsHalf(PrefillState):
    at = frozenset({1})

    def after(self, view) -> Kept:
        rows = view.attention(view.text_after)
        assert torch.allclose(rows.sum(-1), torch.ones(rows.shape[:2]), atol=1e-5)
        return Kept(torch.arange(0, len(view.visual), 2))


class EvictsEveryStep(DecodeState):
    def after(self, view) -> KeptKV | None:
        return None if view.prefill else KeptKV(torch.arange(1, view.keys.shape[1]))


def test_eviction_at_every_step_keeps_logical_positions(host: Host, images: np.ndarray) -> None:
    tokens = host.encode(images, np.arange(5.0), 0).tokens
    prompt, _ = host.prompt(ASKED, tokens)
    session = Session(prompt.visual, tokens, [DropsHalf()], [EvictsEveryStep()])
    mine = host.generate(prompt, session, STEPS, logits=True)
    want = oracle_logits(host.model, prompt.embeddings, prompt.position_ids, prompt.visual, mine.ids, session.trace)
    torch.testing.assert_close(mine.logits, want, atol=1e-4, rtol=0)


def test_of_a_layer_that_ran_nothing_is_held_but_its_cache(host: Host, images: np.ndarray) -> None:
    """What entered the layers is gone by the time that a decode method looks at all of them: memory does not grow with depth."""
    tokens = host.encode(images, np.arange(5.0), 0).tokens
    prompt, _ = host.prompt(ASKED, tokens)
    entered: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    class Looks(DecodeState):
        def finish(self, views) -> None:
            alive.append(sum(each() is not None for each in entered[1:-1]))  # the embeddings are the caller's

    hooks = [
        layer.register_forward_pre_hook(lambda _, given: entered.append(weakref.ref(given[0])))
        for layer in host.decoder.layers
    ]
    try:
        host.generate(prompt, Session(prompt.visual, tokens, [], [Looks()]), 1)
    finally:
        for hook in hooks:
            hook.remove()
    assert len(entered) == host.decoder_shape.layers
    assert alive == [0]


def test_attention_rows_equal_eager(host: Host, images: np.ndarray) -> None:
    """Recomputed rows against the eager kernel's own probabilities, in every layer."""
    tokens = host.encode(images, np.arange(5.0), 0).tokens
    prompt, _ = host.prompt(ASKED, tokens)
    seen: dict[int, torch.Tensor] = {}

    class Looks(PrefillState):
        at = frozenset(range(host.decoder_shape.layers))

        def after(self, view) -> None:
            seen[view.layer] = view.attention(view.text_after)

    host.generate(prompt, Session(prompt.visual, tokens, [Looks()]), 1)
    host.decoder.set_attn_implementation("eager")
    try:
        out = host.decoder(inputs_embeds=prompt.embeddings, output_attentions=True)
    finally:
        host.decoder.set_attn_implementation("sdpa")
    for layer, rows in seen.items():
        torch.testing.assert_close(rows, out.attentions[layer][0, :, -rows.shape[1] :], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"cache_implementation": "static"}, "static"),
        ({"attention_mask": "padded"}, "padding"),
        ({"prompt_lookup_num_tokens": 2}, "assisted|cropped|pruned cache"),
    ],
)
def test_what_would_mean_something_else_is_refused(settings: dict, says: str, host: Host, images: np.ndarray) -> None:
    tokens = host.encode(images, np.arange(5.0), 0).tokens
    prompt, _ = host.prompt(ASKED, tokens)
    mask = torch.ones(prompt.embeddings.shape[:2], dtype=torch.int64)
    if settings.get("attention_mask") == "padded":
        settings, mask = {}, mask.clone()
        mask[0, 0] = 0
    with (
        pytest.raises((UsageError, ValueError), match=says),
        compressed(host.model, Session(prompt.visual, tokens, [DropsHalf()])),
    ):
        host.model.generate(
            inputs_embeds=prompt.embeddings, attention_mask=mask, max_new_tokens=4, do_sample=False, **settings
        )
    assert "forward" not in host.decoder.__dict__


def test_a_second_prompt_in_one_session_is_refused(host: Host, images: np.ndarray) -> None:
    """What `use_cache=False` amounts to: the whole prompt read again for every token."""
    tokens = host.encode(images, np.arange(5.0), 0).tokens
    prompt, _ = host.prompt(ASKED, tokens)
    with compressed(host.model, Session(prompt.visual, tokens, [DropsHalf()])):
        host.decoder(inputs_embeds=prompt.embeddings)
        with pytest.raises(UsageError, match="use_cache"):
            host.decoder(inputs_embeds=prompt.embeddings)
