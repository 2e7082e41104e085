"""What merge methods rank by reaches them: the attention that tokens had in the tower."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from videoprune.demo.film import make_film
from videoprune.pipeline import Pipeline
from videoprune.video import FrameRule

FRAMES = FrameRule(frames=6)
READ_IT = ("fastvid", "holitom", "vflowopt")


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "demo.mp4"
    make_film(path, minutes=20 / 60, seed=3)
    return path


@pytest.fixture(scope="module")
def dense() -> Pipeline:
    return Pipeline.load("dense")


def test_only_where_a_merge_method_wants_it(dense: Pipeline) -> None:
    assert dense.stages.encode == ()
    for name in READ_IT:
        stages = dense.with_recipe({"encode": {"method": "tome"}, "merge": {"method": name}}).stages
        assert [type(method).__name__ for method in stages.encode] == ["Attended", "ToMe"]
    assert [len(dense.with_recipe({"merge": {"method": name}}).stages.encode) for name in ("evs", "aim")] == [0, 0]


def test_it_changes_no_token_and_is_what_fastervlm_keeps_the_best_of(dense: Pipeline) -> None:
    images = np.random.default_rng(0).integers(0, 255, (3, 112, 112, 3), dtype=np.uint8)
    seconds = np.arange(3.0)
    reading = dense.with_recipe({"merge": {"method": "vflowopt"}}).stages.encode
    plain, read = (dense.host.encode(images, seconds, 0, methods).tokens for methods in ((), reading))
    assert torch.equal(plain.features, read.features)
    assert plain.scores.keys() == set()
    attention = read.scores["cls_attention"].view(3, 16)
    assert bool((attention > 0).all())
    assert bool((attention.sum(dim=1) < 1).all())  # the rest is what [CLS] gives itself
    faster = dense.with_recipe({"encode": {"method": "fastervlm", "keep": 4}, "merge": {"method": "vflowopt"}})
    kept = dense.host.encode(images, seconds, 0, faster.stages.encode).tokens
    chosen = torch.zeros(3, 16, dtype=torch.bool)
    chosen[kept.frame, kept.cell @ torch.tensor([4, 1])] = True
    assert torch.equal(chosen, attention >= attention.topk(4).values[:, -1:])
    assert torch.equal(kept.scores["cls_attention"], attention[chosen])


def test_vflowopt_keeps_what_the_tower_attends_to(dense: Pipeline, film: Path) -> None:
    pipe = dense.with_recipe({"merge": {"method": "vflowopt", "keep": 24, "recycle": False}})
    kept = pipe.watch(film, frames=FRAMES).tokens
    whole = dense.with_recipe({"merge": {"method": "vflowopt", "keep": 1, "at_most": 96}}).watch(film, frames=FRAMES)
    best = whole.tokens.scores["cls_attention"].topk(24).values[-1]  # recycling may swap a few within a cell
    assert len(kept) == 24
    assert float((kept.scores["cls_attention"] >= best).float().mean()) > 0.85


@pytest.mark.parametrize("name", READ_IT)
def test_chunks_change_nothing(name: str, dense: Pipeline, film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = dense.with_recipe({"segment": {"method": "metok"}, "merge": {"method": name, "keep": 0.3}})
    together = pipe.watch(film, frames=FrameRule(frames=12)).tokens
    monkeypatch.setattr("videoprune.watching.CHUNK", 5)
    parts = pipe.watch(film, frames=FrameRule(frames=12)).tokens
    assert torch.equal(together.owner, parts.owner)
    assert torch.allclose(together.features, parts.features, atol=1e-5)
