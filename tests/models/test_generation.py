"""Ways of decoding that would run and mean something else are refused, whoever asks for them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from tests.tiny import onevision
from videoprune.errors import UsageError
from videoprune.models.decoder import compressed
from videoprune.models.host import Host, Prompt
from videoprune.models.load import load_host
from videoprune.models.session import Session
from videoprune.tokens import VisualTokens

ASKED = "what happens after the red circle ?"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    return load_host(onevision(tmp_path_factory.mktemp("model")), device="cpu")


@pytest.fixture(scope="module")
def ready(host: Host) -> tuple[Prompt, VisualTokens]:
    images = np.random.default_rng(0).integers(0, 255, (3, 120, 160, 3), dtype=np.uint8)
    tokens = host.encode(images, np.arange(3.0), 0).tokens
    return host.prompt(ASKED, tokens)[0], tokens


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("use_cache", False, r"use_cache=False.* allowed is True"),
        ("cache_implementation", "static", "cache_implementation='static'.* allowed is 'dynamic'"),
        ("prefill_chunk_size", 16, "prefill_chunk_size=16.* allowed is None"),
        ("prompt_lookup_num_tokens", 3, "prompt_lookup_num_tokens=3.* allowed is None"),
        ("num_return_sequences", 2, "num_return_sequences=2.* allowed is 1"),
    ],
)
def test_a_checkpoint_that_asks_for_it(
    setting: str,
    value: object,
    says: str,
    host: Host,
    ready: tuple[Prompt, VisualTokens],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompt, tokens = ready
    monkeypatch.setattr(host.model.generation_config, setting, value)
    with pytest.raises(UsageError, match=says):
        host.generate(prompt, Session(prompt.visual, tokens), 2)


def test_a_checkpoint_that_samples_or_beams_by_default_answers_greedily(
    host: Host, ready: tuple[Prompt, VisualTokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt, tokens = ready
    greedy = host.generate(prompt, Session(prompt.visual, tokens), 5).ids
    for setting, value in (("do_sample", True), ("temperature", 9.0), ("top_k", 200), ("num_beams", 4)):
        monkeypatch.setattr(host.model.generation_config, setting, value)
    for _ in range(3):
        assert host.generate(prompt, Session(prompt.visual, tokens), 5).ids == greedy


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"cache_implementation": "static"}, "static cache"),
        ({"prefill_chunk_size": 16}, "read in one piece; set no prefill_chunk_size"),
        ({"prefill_chunk_size": 55}, "prefill_chunk_size"),
        ({"prompt_lookup_num_tokens": 2}, "assisted decoding"),
        ({"num_beams": 2}, "beams are not supported"),
        ({"num_return_sequences": 2, "do_sample": True}, "a batch of 2 prompts"),
    ],
)
def test_stock_generate_under_a_session(
    settings: dict, says: str, host: Host, ready: tuple[Prompt, VisualTokens]
) -> None:
    prompt, tokens = ready
    rows = prompt.embeddings.shape[1]
    assert prompt.visual.stop < 55 < rows - 1, "the chunks above end inside the block and behind it"
    with pytest.raises((UsageError, ValueError), match=says), compressed(host.model, Session(prompt.visual, tokens)):
        host.model.generate(
            inputs_embeds=prompt.embeddings,
            attention_mask=torch.ones(1, rows, dtype=torch.int64),
            **{"max_new_tokens": 4, "do_sample": False, **settings},
        )
    assert "forward" not in host.decoder.__dict__


def test_pieces_of_a_prompt_and_no_cache(host: Host, ready: tuple[Prompt, VisualTokens]) -> None:
    """What a chunked prefill, assisted decoding or `use_cache=False` amount to, without `generate` in between."""
    prompt, tokens = ready
    rows, cache = prompt.embeddings, DynamicCache(config=host.decoder.config)
    with compressed(host.model, Session(prompt.visual, tokens)):
        with pytest.raises(UsageError, match="use_cache=False"):
            host.decoder(inputs_embeds=rows, use_cache=False)
        with pytest.raises(UsageError, match=r"ends at row .*: a prompt is read in one piece"):
            host.decoder(inputs_embeds=rows[:, :16])
        with pytest.raises(UsageError, match="61 rows are given with 16 positions"):
            host.decoder(inputs_embeds=rows, position_ids=prompt.position_ids[:, :16])
        host.decoder(inputs_embeds=rows[:, :55], past_key_values=cache)
        with pytest.raises(UsageError, match="6 tokens are given at once behind the prompt"):
            host.decoder(inputs_embeds=rows[:, 55:], past_key_values=cache)
