"""A decoding step under PagedEviction on the cache in pages, next to the same on the contiguous cache.

A random Qwen2 decoder reads a prompt of twice the budget, half of which stays; then both caches answer in turn, `page`
tokens at a time, so that each turn has one eviction. What is written of keys and values is counted too.

    OMP_NUM_THREADS=1 python benchmarks/paged_cache.py
    OMP_NUM_THREADS=1 python benchmarks/paged_cache.py --entries 1024 --page 32 --pairs 21
"""

from __future__ import annotations

import argparse
import time
from functools import partial

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

from videoprune.bench.machine import describe
from videoprune.bench.pairs import Ratio, clock_of, interleaved
from videoprune.bench.world import World
from videoprune.decode.pagedeviction import PagedEviction
from videoprune.models.cache import KeptLayer
from videoprune.models.decoder import Layers
from videoprune.models.paging import PagedLayer
from videoprune.models.session import Session, VisualBlock
from videoprune.run import Events, Run

BEFORE = 16  # rows of text before the visual block, and behind it


class Answering:
    """One of the two: a session that has read the prompt and goes on token by token."""

    def __init__(self, decoder: torch.nn.Module, world: World, page: int, paged: bool) -> None:
        state = PagedEviction(keep=0.5, page=page).start(Run(Events.single(world.frames)), len(decoder.layers))
        if not paged:
            state.page = None
        tokens = world.ledger
        block = VisualBlock.whole(BEFORE, len(tokens), torch.device("cpu"))
        self.loop = Layers(decoder, [Session(block, tokens, (), [state])])
        rows = BEFORE + len(tokens) + BEFORE
        self.loop.samples[0].prompt_rows = rows
        self.cache = DynamicCache(config=decoder.config)
        self.cache.layers[:] = self.loop.empty_cache()
        generator = torch.Generator().manual_seed(0)
        self.rows = torch.randn(1, rows, decoder.config.hidden_size, generator=generator)
        self.at = 0
        self.feed(self.rows)

    def feed(self, hidden: torch.Tensor) -> None:
        self.loop(hidden, torch.arange(self.at, self.at + hidden.shape[1])[None], self.cache)
        self.at += hidden.shape[1]

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.feed(self.rows[:, self.at % 97][:, None])


def cache_alone(entries: int, page: int, pairs: int, kv_heads: int, group: int, width: int) -> Ratio:
    """Of one layer: a token is appended, stock attention reads the cache, one page leaves in `page` tokens."""
    paged, ordinary = PagedLayer(page), KeptLayer()
    for layer in (paged, ordinary):
        layer.update(*torch.randn(2, 1, kv_heads, entries, width))
    paged.lay_out(entries + page)
    query, new = torch.randn(1, kv_heads, group, width), torch.randn(2, 1, kv_heads, 1, width)
    freed, rest, position = torch.tensor(entries // page // 2), torch.arange(entries), torch.tensor([entries])

    def turn(layer: KeptLayer) -> None:
        for _ in range(page):
            layer.incoming = position
            mask = layer.admit(position) if isinstance(layer, PagedLayer) else None
            scaled_dot_product_attention(query, *layer.update(*new), attn_mask=mask)
        if isinstance(layer, PagedLayer):
            layer.free(freed)
        else:
            layer.keep(rest + (rest >= freed * page) * page)

    return interleaved(lambda: turn(paged), lambda: turn(ordinary), pairs).per(page)


def measure(
    entries: int, page: int, pairs: int, layers: int, width: int, heads: int, kv_heads: int
) -> tuple[Ratio, str]:
    """The ratio of `page` steps each, and what the caches hold."""
    config = Qwen2Config(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
        intermediate_size=width * 5, vocab_size=64, max_position_embeddings=2**20,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    decoder = Qwen2ForCausalLM(config).eval().get_decoder()
    world = World(2 * entries, width)
    both = [Answering(decoder, world, page, paged) for paged in (True, False)]
    ratio = interleaved(*(partial(each.steps, page) for each in both), pairs, clock_of(torch.device("cpu")))
    held = [sum(layer.keys.nbytes + layer.values.nbytes for layer in each.cache.layers) / 2**20 for each in both]
    sizes = {layer.size for each in both for layer in each.cache.layers}
    assert sizes == {both[0].cache.layers[0].size}, "both hold as many entries"
    return ratio.per(page), f"{held[0]:.1f} / {held[1]:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", default="256,1024,4096", help="visual tokens that a layer's budget has room for")
    parser.add_argument("--page", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=11)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=896)
    parser.add_argument("--heads", type=int, default=14)
    parser.add_argument("--kv-heads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{describe()['cpu']}, {time.strftime('%Y-%m-%d')}, process CPU time, 1 thread")
    shape = f"{given.layers} layers of width {given.width}, {given.heads} heads, {given.kv_heads} of keys and values"
    print(f"{shape}, pages of {given.page}; in brackets the caches and stock attention alone, a layer\n")
    print("| entries | paged, ms a token | contiguous | ratio | 95 % | MiB held, paged / contiguous |")
    print("|---:|---:|---:|---:|---:|---:|")
    heads, width = (given.kv_heads, given.heads // given.kv_heads), given.width // given.heads
    with torch.no_grad():
        for entries in map(int, given.entries.split(",")):
            print(row(f"({entries:,})", cache_alone(entries, given.page, given.pairs, *heads, width), ""), flush=True)
            ratio, held = measure(
                entries, given.page, given.pairs, given.layers, given.width, given.heads, given.kv_heads
            )
            print(row(f"{entries:,}", ratio, held), flush=True)


def row(name: str, ratio: Ratio, held: str) -> str:
    known = "" if ratio.low is None else f"{ratio.low:.3f} – {ratio.high:.3f}"
    times = f"{ratio.ours * 1e3:.3f} | {ratio.theirs * 1e3:.3f} | {ratio.median:.3f} | {known}"
    return f"| {name} | {times} | {held} |"


if __name__ == "__main__":
    main()
