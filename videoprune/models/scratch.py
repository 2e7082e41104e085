"""Models made up on the spot: the stock class of a family with random weights, and a tokenizer of a few words.

For checks of the machinery and for measurements that do not depend on what a model knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from videoprune.models.host import Host
from videoprune.models.outline import plain_config, square_preprocess

CONTROL = (
    "<|im_start|>", "<|im_end|>", "<video>", "<image>", "<IMG_CONTEXT>", "<img>", "</img>",
    "<|vision_start|>", "<|vision_end|>", "<|video_pad|>", "<|image_pad|>",
)  # fmt: skip
WORDS = ("<unk>", "<pad>", "system", "user", "assistant", "what", "happens", "after", "the", "red", "circle", "?")


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of `WORDS` and `CONTROL`; all else is unknown."""
    words = {word: number for number, word in enumerate((*WORDS, *CONTROL))}
    unknown, padding = WORDS[:2]
    inner = Tokenizer(models.WordLevel(words, unk_token=unknown))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token=unknown, pad_token=padding, additional_special_tokens=list(CONTROL)
    )


def scratch_host(
    family: type[Host],
    config: Mapping[str, Any],
    *,
    name: str = "scratch",
    attn: str = "sdpa",
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Host:
    """A host of `family` over a random model, as a config.json describes it.

    Weights are wider than at the start of training, so that logits are no ties and attention is no average.
    """
    own = family.loading(config)
    stock = getattr(transformers, family.stock)
    settled = own.get("config") or stock.config_class.from_dict(plain_config(config))
    with torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else []):
        torch.manual_seed(seed)
        with torch.device(device):
            model = stock._from_config(settled, dtype=dtype, attn_implementation=attn)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.15 if parameter.shape[-1] < 256 else parameter.shape[-1] ** -0.5)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 1
    return family(model.eval(), word_tokenizer(), name, square_preprocess(model.config))
