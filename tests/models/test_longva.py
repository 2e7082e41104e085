"""LongVA's original checkpoint on stock classes, against the original arithmetic written out here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn.functional import avg_pool2d, gelu, linear
from transformers import CLIPVisionConfig, CLIPVisionModel, Qwen2Config, Qwen2ForCausalLM

from tests.tiny import TEXT, longva
from videoprune.models.load import load_host
from videoprune.models.longva import LongVA, longva_config
from videoprune.models.session import Session


@torch.no_grad()
def test_original_names_give_the_original_logits(tmp_path: Path) -> None:
    folder = longva(tmp_path / "longva")
    host = load_host(str(folder), device="cpu")  # refuses missing, unexpected and mismatched weights
    assert isinstance(host, LongVA)
    weights = {key: value for shard in folder.glob("*.safetensors") for key, value in load_file(shard).items()}
    raw = json.loads((folder / "config.json").read_text())
    # the original: CLIP's second-last hidden state without [CLS], projector, 2x2 mean, frames in a row, no newline
    tower = CLIPVisionModel(CLIPVisionConfig(**raw["vision_config"])).eval()
    prefix = "model.vision_tower.vision_tower."
    own = {key.removeprefix("vision_model."): value for key, value in tower.state_dict().items()}
    mine = {key.removeprefix(prefix).removeprefix("vision_model."): v for key, v in weights.items() if prefix in key}
    assert set(mine) == set(own)
    tower.load_state_dict({key: mine[key.removeprefix("vision_model.")] for key in tower.state_dict()})
    text = Qwen2Config(
        **TEXT, num_hidden_layers=6, rms_norm_eps=1e-6, rope_parameters={"rope_type": "default", "rope_theta": 1e9}
    )
    language = Qwen2ForCausalLM(text).eval()
    language.load_state_dict({key: weights[key] for key in language.state_dict()})
    images = np.random.default_rng(0).integers(0, 255, (3, 112, 112, 3), dtype=np.uint8)
    pixels = host.preprocess(images)
    hidden = tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    projector = [weights[f"model.mm_projector.{number}.{kind}"] for number in (0, 2) for kind in ("weight", "bias")]
    features = linear(gelu(linear(hidden, *projector[:2])), *projector[2:])
    features = avg_pool2d(features.view(3, 8, 8, 64).permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1).reshape(-1, 64)
    before, behind = host.template()
    question = "what happens after the circle ?"
    ids = [host.tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, behind)]
    ids[1] = host.tokenizer(behind.replace("\ufffdquestion\ufffd", question), add_special_tokens=False)["input_ids"]
    embed = language.get_input_embeddings()
    sequence = torch.cat([embed(torch.tensor(ids[0])), features, embed(torch.tensor(ids[1]))])[None]
    want = language(inputs_embeds=sequence).logits[0, -1]

    tokens = host.encode(images, np.arange(3.0), 0).tokens
    prompt, _ = host.prompt(question, tokens)
    torch.testing.assert_close(prompt.embeddings, sequence, atol=1e-5, rtol=0)
    answer = host.generate(prompt, Session(prompt.visual, tokens), 1, logits=True)
    assert answer.logits is not None
    torch.testing.assert_close(answer.logits[0], want, atol=1e-5, rtol=0)


def test_the_real_checkpoint_is_clip_large_with_a_long_context() -> None:
    """The fields that the authors publish, without a `vision_config`, become CLIP-L/336 with 144 tokens a frame."""
    raw = {
        "model_type": "llava_qwen",
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 224000,
        "rope_theta": 1000000000.0,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
    }
    config = longva_config(raw)
    assert (config.vision_config.image_size, config.vision_config.num_hidden_layers) == (336, 24)
    assert config.vision_config.hidden_act == "quick_gelu"
    assert config.text_config.rope_parameters["rope_theta"] == 1e9
    host = object.__new__(LongVA)
    host.patch_side = 24
    assert host.token_grid() == (12, 12)
    assert torch.bincount(host.unit_of_patch()).tolist() == [4] * 144
