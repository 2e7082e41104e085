"""Analytic FLOPs against torch's counter on tiny random models of the stock classes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from videoprune.report.flops import (
    Cost,
    TransformerShape,
    attention_rows_cost,
    decoder_cost,
    kv_bytes,
    layer_cost,
    lm_head_cost,
    mlp_cost,
    patch_embed_cost,
    tower_cost,
)

SHAPE = TransformerShape(layers=3, width=64, mlp=112, heads=4, kv_heads=2, head_dim=24, gated_mlp=True)
VOCAB = 50


@pytest.fixture(params=["qwen2", "llama"])
def model(request):
    """A decoder whose heads together are wider than the residual stream, so that mixing the two up is seen."""
    text = {
        "hidden_size": SHAPE.width,
        "intermediate_size": SHAPE.mlp,
        "num_hidden_layers": SHAPE.layers,
        "num_attention_heads": SHAPE.heads,
        "num_key_value_heads": SHAPE.kv_heads,
        "head_dim": SHAPE.head_dim,
        "vocab_size": VOCAB,
        "pad_token_id": 0,
        "attn_implementation": "sdpa",
    }
    if request.param == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**text)).eval()
    return LlamaForCausalLM(LlamaConfig(**text)).eval()


def counted(call) -> int:
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def rotary(positions: int) -> int:
    """Positions times frequencies, once a call: counted where a transformers release does it as a matrix product."""
    return 2 * positions * SHAPE.head_dim // 2


def test_prefill_and_steps_equal_the_counter(model):
    cache, length = DynamicCache(config=model.config), 37
    ids = torch.randint(1, VOCAB, (1, length))
    flops = counted(lambda: model(input_ids=ids, past_key_values=cache, use_cache=True))
    expected = decoder_cost(SHAPE, [length] * 3, [length] * 3) + lm_head_cost(length, SHAPE.width, VOCAB)
    assert flops - expected.total in (0, rotary(length))
    for new in (1, 4):  # an ordinary step, and several rows at once
        past = cache.get_seq_length()
        flops = counted(lambda n=new: model(input_ids=ids[:, :n], past_key_values=cache, logits_to_keep=1))
        expected = decoder_cost(SHAPE, [new] * 3, [past + new] * 3) + lm_head_cost(1, SHAPE.width, VOCAB)
        assert flops - expected.total in (0, rotary(new))


def test_pruned_prefill_and_a_step_on_the_ragged_cache(model):
    decoder, cache = model.get_decoder(), DynamicCache(config=model.config)
    hidden, entering = torch.randn(1, 40, SHAPE.width), [40, 25, 9]

    def run(hidden, position, lengths):
        cos, sin = decoder.rotary_emb(hidden, position)
        for layer, rows in zip(decoder.layers, lengths, strict=True):
            hidden, cos, sin = hidden[:, :rows], cos[:, :rows], sin[:, :rows]
            hidden = layer(hidden, past_key_values=cache, use_cache=True, position_embeddings=(cos, sin))

    flops = counted(lambda: run(hidden, torch.arange(40)[None], entering))
    expected = decoder_cost(SHAPE, entering, entering)
    assert flops - expected.total in (0, rotary(40))
    flops = counted(lambda: run(hidden[:, :1], torch.tensor([[40]]), [1, 1, 1]))
    assert flops - decoder_cost(SHAPE, [1, 1, 1], [41, 26, 10]).total in (0, rotary(1))
    held = [layer.keys.shape[2] for layer in cache.layers]
    assert held == [41, 26, 10]
    assert kv_bytes(held, SHAPE, 4) == sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values))


@pytest.fixture
def clip():
    config = CLIPVisionConfig(
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=28,
        patch_size=7,
        attn_implementation="sdpa",
    )
    return CLIPVisionModel(config).eval(), TransformerShape(3, 48, 80, 4, 4, 12, gated_mlp=False)


def test_tower_dense_equals_the_counter(clip):
    model, shape = clip
    flops = counted(lambda: model(pixel_values=torch.randn(5, 3, 28, 28)))
    assert flops == (patch_embed_cost(16, 3 * 7 * 7, 48, 5) + tower_cost(shape, [17] * 3, 5)).total


def test_tower_pruned_and_cut_short_equals_the_counter(clip):
    model, shape = clip

    def run():
        hidden = torch.randn(5, 17, 48)
        for layer, length in zip(model.encoder.layers, (17, 6), strict=False):
            hidden = layer(hidden[:, :length], None)

    assert counted(run) == tower_cost(shape, [17, 6], 5).total


def test_projector_and_recomputed_rows_equal_the_counter():
    projector = torch.nn.Sequential(torch.nn.Linear(48, 64), torch.nn.GELU(), torch.nn.Linear(64, 96))
    assert counted(lambda: projector(torch.randn(30, 48))) == mlp_cost(30, (48, 64, 96)).total
    q_proj, hidden, keys = torch.nn.Linear(64, 96), torch.randn(5, 64), torch.randn(4, 21, 24)

    def scores():
        return q_proj(hidden).view(5, 4, 24).transpose(0, 1) @ keys.transpose(1, 2)

    assert counted(scores) == attention_rows_cost(SHAPE, 5, 21).total


def test_the_split_is_between_what_grows_linearly_and_what_does_not():
    one, two = layer_cost(SHAPE, 10, 10), layer_cost(SHAPE, 20, 20)
    assert (two.linear, two.attention) == (2 * one.linear, 4 * one.attention)
    assert one.attention == 2 * 2 * 10 * 10 * 4 * 24  # q·kᵀ and p·v over the full rectangle, by hand
    assert sum([one, two]) == one + two
    assert one * 3 == one + one + one
    assert Cost(1, 2).to_dict() == {"linear": 1, "attention": 2, "total": 3}


@pytest.mark.parametrize("lengths", [[5, 5], [5] * 4])
def test_a_wrong_number_of_layers_is_refused(lengths):
    with pytest.raises(ValueError, match="for 3 layers"):
        decoder_cost(SHAPE, lengths, lengths)


def test_more_tower_layers_than_there_are_is_refused():
    with pytest.raises(ValueError, match="tower of 3 layers"):
        tower_cost(SHAPE, [5] * 4, 1)


def test_no_torch_and_no_rich_for_plain_numbers():
    code = (
        "import sys, videoprune.report.flops, videoprune.report.report as r; r.peak_memory(); r.Report().to_dict();"
        "sys.exit('torch' in sys.modules or 'rich' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
