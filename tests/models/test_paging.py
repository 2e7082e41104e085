"""The cache in pages: against a list of entries, against the masked oracle, and that nothing which stays is moved."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

from tests.oracle import oracle_logits
from tests.tiny import onevision
from videoprune.decode.pagedeviction import PagedEviction
from videoprune.decode.snapkv import SnapKV
from videoprune.layer_method import DecodeMethod
from videoprune.models.cache import KeptLayer
from videoprune.models.decoder import compressed
from videoprune.models.host import Host
from videoprune.models.load import load_host
from videoprune.models.paging import PagedLayer
from videoprune.models.prompt import Prompt
from videoprune.models.session import Session
from videoprune.run import Events, Run
from videoprune.tokens import VisualTokens

HEADS, WIDTH = 2, 4
Ready = tuple[Host, Prompt, VisualTokens]
ASKED = "what happens after the red circle ?"


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Ready:
    """A host and a prompt, in float64: what is left of a difference is no rounding."""
    host = load_host(onevision(tmp_path_factory.mktemp("model")), device="cpu")
    host.model.generation_config.eos_token_id = None
    images = np.random.default_rng(0).integers(0, 255, (5, 120, 160, 3), dtype=np.uint8)
    tokens = host.encode(images, np.arange(5.0), 0).tokens
    prompt, _ = host.prompt(ASKED, tokens)
    host.model.double()
    return host, dataclasses.replace(prompt, embeddings=prompt.embeddings.double()), tokens


class Pages:
    """The cache as a list of (position, key, value), oldest first, and a layer that is told the same."""

    def __init__(self, page: int, entries: int, room: int) -> None:
        self.page, self.entries, self.next = page, [], 0
        self.generator = torch.Generator().manual_seed(page)
        self.layer = PagedLayer(page)
        self.add(entries)
        self.layer.lay_out(room)

    def add(self, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        new = torch.randn(2, HEADS, rows, WIDTH, generator=self.generator)
        index = torch.arange(self.next, self.next + rows)
        self.next += rows
        self.entries += [(int(at), new[0, :, place], new[1, :, place]) for place, at in enumerate(index)]
        self.layer.incoming = index
        mask = self.layer.admit(index) if self.layer.pages else None
        return *self.layer.update(new[:1], new[1:]), mask

    def check(self) -> None:
        position, keys, values = zip(*self.entries, strict=True)
        layer = self.layer
        assert layer.size == len(self.entries)
        assert layer.positions().tolist() == [list(position)] * HEADS
        assert torch.equal(layer.in_order(layer.keys[0], 1), torch.stack(keys, 1))
        assert torch.equal(layer.in_order(layer.values[0], 1), torch.stack(values, 1))
        held, _, at, live = layer.lying()
        live = torch.ones(len(at), dtype=torch.bool) if live is None else live
        assert sorted(at[live].tolist()) == sorted(position)
        assert int(live.sum()) == len(self.entries)
        assert held.shape[1] == len(live) == layer.extent


def attend(query: torch.Tensor, entries: list, last: int) -> np.ndarray:
    """(Hkv, R, d) float64: what rows (Hkv, R, d) at positions last - R + 1 … last see of a list of entries."""
    rows, out = query.shape[1], np.zeros(query.shape)
    for head in range(HEADS):
        for row in range(rows):
            seen = [(key, value) for at, key, value in entries if at <= last - rows + 1 + row]
            logits = np.array([float(query[head, row].double() @ key[head].double()) for key, _ in seen]) / WIDTH**0.5
            share = np.exp(logits - logits.max())
            values = np.stack([value[head].double().numpy() for _, value in seen])
            out[head, row] = share / share.sum() @ values
    return out


@pytest.mark.parametrize("page", [8, 16, 32])
@pytest.mark.parametrize("entries", [5, 32, 41])
def test_against_a_list_of_entries(page: int, entries: int) -> None:
    """Rows come singly and several at once, pages leave, forks go their own ways, others evict entry by entry."""
    chance = random.Random(page + entries)
    pages = [Pages(page, entries, room=entries + page)]
    for step in range(60):
        each = chance.choice(pages)
        rows = 1 if chance.random() < 0.8 else chance.randint(2, 2 * page)
        keys, values, mask = each.add(rows)
        each.check()
        if step % 5 == 0:
            query = torch.randn(1, HEADS, rows, WIDTH, generator=each.generator)
            got = torch.nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
            np.testing.assert_allclose(got[0], attend(query[0], each.entries, each.next - 1), atol=1e-5)
        held = -(-len(each.entries) // page)
        if held > 1 and chance.random() < 0.5:
            number = chance.randrange(held - 1)
            each.layer.free(torch.tensor(number))
            del each.entries[number * page : (number + 1) * page]
            each.check()
        if chance.random() < 0.1:
            stays = sorted(chance.sample(range(len(each.entries)), len(each.entries) * 3 // 4 + 1))
            each.layer.keep(torch.tensor(stays))
            each.entries = [each.entries[number] for number in stays]
            each.check()
        if chance.random() < 0.1:
            other = Pages(page, 1, 1)
            other.layer, other.entries, other.next = each.layer.fork(), list(each.entries), each.next
            pages.append(other)
    for each in pages:
        each.check()


def test_heads_that_hold_different_entries_stay_contiguous() -> None:
    layer = PagedLayer(8)
    layer.update(torch.randn(1, HEADS, 20, WIDTH), torch.randn(1, HEADS, 20, WIDTH))
    layer.keep(torch.stack((torch.arange(10), torch.arange(10, 20))))
    layer.lay_out(100)
    assert layer.pages == 0
    layer.update(torch.randn(1, HEADS, 1, WIDTH), torch.randn(1, HEADS, 1, WIDTH))
    assert layer.positions().tolist() == [[*range(10), 20], [*range(10, 20), 20]]


def test_rows_that_are_not_announced_are_refused() -> None:
    layer = PagedLayer(8)
    layer.update(torch.randn(1, HEADS, 20, WIDTH), torch.randn(1, HEADS, 20, WIDTH))
    layer.lay_out(20)
    with pytest.raises(ValueError, match="unannounced"):
        layer.update(torch.randn(1, HEADS, 1, WIDTH), torch.randn(1, HEADS, 1, WIDTH))


# --------------------------------------------------------------------------------------------------------- no copies


class Written(TorchDispatchMode):
    """Bytes that operations write: of results in memory of their own, and of what they change in place.

    What is indexed in place counts with the rows that are written, not with the tensor that they are in.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("index_copy_", "index_fill_"):
            self.bytes += args[0].nbytes // args[0].shape[args[1]] * len(args[2])
        elif isinstance(out, torch.Tensor):
            memory = {each.untyped_storage().data_ptr() for each in args if isinstance(each, torch.Tensor)}
            if name.endswith("_") or out.untyped_storage().data_ptr() not in memory:
                self.bytes += out.nbytes
        return out


@pytest.mark.parametrize("page", [8, 16, 32])
def test_a_step_writes_its_own_row_and_moves_nothing(page: int) -> None:
    heads, width, entries = 4, 64, 1024
    row = 2 * heads * width * 4
    layer, ordinary = PagedLayer(page), KeptLayer()
    for each in (layer, ordinary):
        each.update(torch.randn(1, heads, entries, width), torch.randn(1, heads, entries, width))
    layer.lay_out(entries + page)
    pool = layer.keys.data_ptr(), layer.values.data_ptr(), layer.keys.shape
    for step in range(5 * page):
        new = torch.randn(2, 1, heads, 1, width)
        lay = [each.clone() for each in (layer.keys, layer.values, layer.place, layer.live)]
        with Written() as paged:
            mask = layer.admit(torch.tensor([entries + step]))
            keys, _ = layer.update(new[0], new[1])
            if layer.size % page == 0 and layer.size > entries:
                layer.free(torch.tensor(step % 7))
        assert paged.bytes < row + 64 * page + 32 * entries // page, "only the row, and page numbers"
        assert (layer.keys.data_ptr(), layer.values.data_ptr(), layer.keys.shape) == pool
        assert keys.data_ptr() == pool[0]
        assert mask is None or mask.untyped_storage().data_ptr() == layer.live.untyped_storage().data_ptr()
        stayed = lay[3] & layer.live & (lay[2] == layer.place)
        assert int(stayed.sum()) == layer.size - 1
        assert torch.equal(layer.keys[:, :, stayed], lay[0][:, :, stayed])
        assert torch.equal(layer.values[:, :, stayed], lay[1][:, :, stayed])
        with Written() as copied:
            ordinary.update(new[0], new[1])
        assert copied.bytes >= (entries - 1) * row  # what this replaces
    assert layer.size <= entries + page


# ------------------------------------------------------------------------------------------------------- whole model


def asked(ready: Ready, method: PagedEviction, paged: bool, before: Sequence[DecodeMethod] = ()) -> Session:
    host, prompt, tokens = ready
    states = [each.start(Run(Events.single(5)), host.decoder_shape.layers) for each in (*before, method)]
    if not paged:
        states[-1].page = None
    return Session(prompt.visual, tokens, (), states, evidence_layers=frozenset({1, 2}))


@pytest.mark.parametrize("page", [8, 16, 32])
@pytest.mark.parametrize("options", [{"keep": 0.5}, {"keep": 112}, {"keep": 3}, {"keep": 40, "protect_text": True}])
def test_answers_equal_the_masked_oracle_and_the_contiguous_cache(ready: Ready, page: int, options: dict) -> None:
    method, steps = PagedEviction(page=page, **options), 3 * page + 5
    (host, prompt, _), session = ready, asked(ready, method, paged=True)
    mine = host.generate(prompt, session, steps, logits=True)
    layers = session.left.layers
    assert all(isinstance(layer, PagedLayer) and layer.pages for layer in layers)
    assert any(call > 0 for call, _ in session.trace.evicted), "no page left"
    want = oracle_logits(host.model, prompt.embeddings, prompt.position_ids, prompt.visual, mine.ids, session.trace)
    torch.testing.assert_close(mine.logits.double(), want, atol=1e-5, rtol=0)

    other = asked(ready, method, paged=False)
    same = host.generate(prompt, other, steps, logits=True)
    assert all(type(layer) is KeptLayer for layer in other.left.layers)
    assert mine.ids == same.ids
    torch.testing.assert_close(mine.logits, same.logits, atol=1e-5, rtol=0)
    assert session.trace.evicted.keys() == other.trace.evicted.keys()
    assert all(torch.equal(index, other.trace.evicted[call]) for call, index in session.trace.evicted.items())
    assert (session.trace.keys, session.trace.entries) == (other.trace.keys, other.trace.entries)
    torch.testing.assert_close(session.trace.evidence, other.trace.evidence)
    budget = other.decode[0].budget[0]
    pages = -(-budget // page) + 2 if method.protect_text else max(budget // page + 1, 2)
    assert all(layer.pages == pages for layer in layers)  # the pool was never enlarged


def test_the_pool_stays_where_it_is_while_the_model_answers(ready: Ready) -> None:
    (host, prompt, _), session = ready, asked(ready, PagedEviction(keep=0.5, page=8), paged=True)
    cache = DynamicCache(config=host.decoder.config)
    seen: set[tuple[int, ...]] = set()
    with torch.no_grad(), compressed(host.model, session):
        host.decoder(inputs_embeds=prompt.embeddings, past_key_values=cache)
        for _ in range(40):
            host.decoder(inputs_embeds=prompt.embeddings[:, -1:], past_key_values=cache)
            pointers = (each.data_ptr() for layer in cache.layers for each in (layer.keys, layer.values, layer.place))
            seen.add((*pointers, *(layer.keys.shape[2] for layer in cache.layers)))
    assert len(seen) == 1


def test_a_method_before_it_that_leaves_heads_unequal_goes_on_contiguous(ready: Ready) -> None:
    (host, prompt, _), session = ready, asked(ready, PagedEviction(keep=32, page=8), True, [SnapKV(keep=0.6, window=4)])
    mine = host.generate(prompt, session, 30, logits=True)
    assert all(not layer.pages for layer in session.left.layers)
    want = oracle_logits(host.model, prompt.embeddings, prompt.position_ids, prompt.visual, mine.ids, session.trace)
    torch.testing.assert_close(mine.logits.double(), want, atol=1e-5, rtol=0)


def test_replies_are_scored_behind_one_pool(ready: Ready) -> None:
    """Each reply forks the cache; rows come several at once, behind pages that left, and more than the pool has room for."""
    method = PagedEviction(keep=24, page=8)
    replies = [
        torch.randint(0, 60, (length,), generator=torch.Generator().manual_seed(length)) for length in (1, 3, 30)
    ]
    scored = []
    for paged in (True, False):
        (host, prompt, _), session = ready, asked(ready, method, paged)
        scored.append(host.score(prompt, session, replies).logprobs)
        assert paged == any(isinstance(layer, PagedLayer) and layer.pages for layer in session.left.layers)
    for mine, other in zip(*scored, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=0)
