"""Write the model folder that stock classes load: weights in bf16, tokenizer, configs."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import torch
from transformers import GenerationConfig, LlavaOnevisionForConditionalGeneration

from videoprune.demo import language, scenes
from videoprune.demo.training.common import IMAGE_MEAN, IMAGE_STD, build_model
from videoprune.demo.training.lm import Reader

MOST_NEW_TOKENS = 160


def assemble(tower: Path | None, lm: Path | None) -> LlavaOnevisionForConditionalGeneration:
    """The model from stage files; parts without a file stay random."""
    torch.manual_seed(0)
    model = build_model(len(language.VOCABULARY))
    reader = Reader()
    if lm is not None:
        reader.load_state_dict(torch.load(lm, weights_only=True)["weights"])
    model.model.language_model.load_state_dict(reader.lm.state_dict())
    model.lm_head.load_state_dict(reader.head.state_dict())
    model.model.image_newline.data = reader.newline.detach().clone()
    if tower is not None:
        state = torch.load(tower, weights_only=True)
        model.model.vision_tower.load_state_dict(state["tower"])
        model.model.multi_modal_projector.load_state_dict(state["projector"])
    return model


def export(out: Path, tower: Path | None = None, lm: Path | None = None) -> None:
    """Write the folder's files, each complete before it takes its name; other files there (README.md) stay."""
    model = assemble(tower, lm).bfloat16()
    end, pad = language.WORD_ID[language.END], language.WORD_ID[language.PAD]
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=MOST_NEW_TOKENS, eos_token_id=end, pad_token_id=pad
    )
    model.config.videoprune_demo = 1  # by which videoprune.models.demo knows it
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".part") as scratch:
        new = Path(scratch)
        model.save_pretrained(new)
        language.build_tokenizer().save_pretrained(new, save_jinja_files=False)
        size = {"height": scenes.SIZE, "width": scenes.SIZE}
        pictures = {
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "do_resize": True,
            "size": size,
            "crop_size": size,
            "resample": 3,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(IMAGE_MEAN),
            "image_std": list(IMAGE_STD),
        }
        (new / "preprocessor_config.json").write_text(json.dumps(pictures, indent=2) + "\n", encoding="utf-8")
        for path in new.iterdir():
            os.chmod(path, 0o644)
            os.replace(path, out / path.name)


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tower", type=Path)
    parser.add_argument("--lm", type=Path)
    options = parser.parse_args()
    export(options.out, options.tower, options.lm)
