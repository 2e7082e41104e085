"""The self-check passes on the installed transformers, covers every family, and can fail."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from videoprune import selfcheck
from videoprune.models.cache import KeptLayer
from videoprune.models.demo import DemoModel
from videoprune.models.load import FAMILIES


def test_every_check_is_ok_on_every_family() -> None:
    results = selfcheck.run_checks()
    assert not [each for each in results if each.problem]
    families = {family.family for family in FAMILIES if family is not DemoModel}
    assert {each.family for each in results} == families | {"all"}
    assert len(results) == len(selfcheck.COMMON) + len(families) * (1 + len(selfcheck.CHECKS))


def only(monkeypatch: pytest.MonkeyPatch, family: str) -> list[selfcheck.Check]:
    monkeypatch.setattr(selfcheck, "FAMILIES", [each for each in FAMILIES if each.family == family])
    return [each for each in selfcheck.run_checks() if each.problem]


def test_a_layer_that_gives_a_tuple_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """As transformers 4 did."""
    from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

    own = Qwen2DecoderLayer.forward
    monkeypatch.setattr(Qwen2DecoderLayer, "forward", lambda *args, **kwargs: (own(*args, **kwargs),))
    failed = {each.name: each.problem for each in only(monkeypatch, "longva")}
    assert failed["a decoder layer's call, rotary_emb, cache update"] == "a decoder layer gives a tuple, not a tensor"


def test_a_tower_that_does_more_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings, CLIPVisionModel

    own = CLIPVisionModel.forward

    def shifted(self: Any, pixel_values: torch.Tensor, **kwargs: Any) -> Any:
        return own(self, pixel_values + 0.5, **kwargs)

    monkeypatch.setattr(CLIPVisionModel, "forward", shifted)
    assert CLIPVisionEmbeddings is not None
    failed = {each.name: str(each.problem) for each in only(monkeypatch, "llava-1.5")}
    assert failed["our tower loop against the stock tower"].startswith("the vision tower is off by")


def test_a_cache_with_another_length_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeptLayer, "get_mask_sizes", lambda self, q: (self.seen + q, 0))
    failed = {each.name for each in only(monkeypatch, "longva")}
    assert "a cache layer that forgets entries, not positions" in failed
    assert "masks: none for a prompt, by layer behind it" in failed


def test_doctor_prints_each_check_and_fails_with_them(videoprune: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = [selfcheck.Check("longva", "our layer loop against stock logits", "off by 1.0e+00")]
    monkeypatch.setattr(selfcheck, "run_checks", lambda: [selfcheck.Check("all", "masks", None), *bad])
    ended = videoprune("doctor")
    assert ended.code == 3
    assert "FAILED: off by 1.0e+00" in ended.out
    data = json.loads(videoprune("doctor", "--json").out)
    assert not data["ready"]
    assert [each["ok"] for each in data["checks"]] == [True, False]
    assert "longva" in data["problems"][0]
    monkeypatch.setattr(selfcheck, "run_checks", lambda: [selfcheck.Check("all", "masks", None)])
    assert videoprune("doctor", "--json").code == 0
