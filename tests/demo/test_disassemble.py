"""An exported model can be taken apart again, to train on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from videoprune.demo import language
from videoprune.demo.training.common import word_rows
from videoprune.demo.training.export import assemble, disassemble, export
from videoprune.demo.training.lm import Pupil
from videoprune.demo.training.reader import concept_ids
from videoprune.errors import UsageError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model") / "model"
    export(out)
    return out


def test_taken_apart_and_put_together_is_the_same(folder: Path, tmp_path: Path) -> None:
    disassemble(folder, tmp_path / "tower.pt", tmp_path / "lm.pt")
    before = assemble(None, None).bfloat16().state_dict()
    after = assemble(tmp_path / "tower.pt", tmp_path / "lm.pt").bfloat16().state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_words_added_at_the_end_keep_the_old_rows(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = (*language.VOCABULARY, "zebra", "horse")
    monkeypatch.setattr(language, "VOCABULARY", longer)
    monkeypatch.setattr(language, "WORD_ID", {word: i for i, word in enumerate(longer)})
    disassemble(folder, tmp_path / "tower.pt", tmp_path / "lm.pt")
    weights = torch.load(tmp_path / "lm.pt", weights_only=True)["weights"]
    assert len(weights["head.weight"]) == len(weights["lm.embed_tokens.weight"]) == len(longer)
    old = load_file(folder / "model.safetensors")["language_model.lm_head.weight"].float()
    assert torch.equal(weights["head.weight"][:-2], old)
    assert torch.equal(weights["lm.embed_tokens.weight"][concept_ids()], word_rows())
    pupil = Pupil(0)
    pupil.restore(tmp_path / "lm.pt", weights_only=True)
    assert torch.equal(pupil.optimizer.state()["head.weight"], weights["head.weight"])


def test_another_vocabulary_is_refused(folder: Path, tmp_path: Path) -> None:
    path = folder / "tokenizer.json"
    text = path.read_text(encoding="utf-8")
    tokenizer = json.loads(text)
    tokenizer["model"]["vocab"]["zebra"] = 7
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    try:
        with pytest.raises(UsageError, match="train from nothing"):
            disassemble(folder, tmp_path / "tower.pt", tmp_path / "lm.pt")
    finally:
        path.write_text(text, encoding="utf-8")
