"""Write the model folder that stock classes load: weights in bf16, tokenizer, configs."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import torch
from transformers import GenerationConfig, LlavaOnevisionForConditionalGeneration

from videoprune.demo import language, scenes
from videoprune.demo.training.common import IMAGE_MEAN, IMAGE_STD, build_model, word_rows
from videoprune.demo.training.reader import Reader, concept_ids
from videoprune.errors import UsageError

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


def disassemble(folder: Path, tower: Path, lm: Path) -> None:
    """Stage files from an exported model folder, the opposite of :func:`assemble`.

    Weights have the folder's precision (bf16) and no optimizer state comes with them. Words that the folder's
    vocabulary lacks start as ``language.LIKE`` says; the vocabulary may only have grown at its end.

    Raises
    ------
    UsageError
        When the folder's words are not the first words of today's vocabulary.
    """
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    known = tokenizer["model"]["vocab"]
    if any(language.WORD_ID.get(word) != number for word, number in known.items()):
        raise UsageError(
            f"{folder}: its vocabulary of {len(known)} words is not the beginning of today's "
            f"({len(language.VOCABULARY)} words); train from nothing instead"
        )
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    parts = {
        "tower": model.model.vision_tower.state_dict(),
        "projector": model.model.multi_modal_projector.state_dict(),
    }
    torch.save(parts, tower)
    torch.manual_seed(0)
    reader = Reader()
    weights = reader.state_dict()
    found = {f"lm.{name}": value for name, value in model.model.language_model.state_dict().items()}
    found |= {"head.weight": model.lm_head.weight.detach(), "newline": model.model.image_newline.detach()}
    for name, value in found.items():
        weights[name][: len(value)] = value  # embeddings may have more rows than the folder's
    table, head = weights["lm.embed_tokens.weight"], weights["head.weight"]
    for word, like in language.LIKE.items():
        number = language.WORD_ID[word]
        if number >= len(known):
            table[number] = table[language.WORD_ID[like]]
    head[len(known) :] = head[language.WORD_ID[language.UNKNOWN]]  # never an answer
    table[concept_ids()] = word_rows()  # exact, and frozen in training
    torch.save({"weights": {name: weights[name] for name, _ in reader.named_parameters()}}, lm)


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
