"""Films held under a bound: what is kept, how much is held at any time, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tiny import onevision
from videoprune.demo.film import make_film
from videoprune.errors import UsageError
from videoprune.method import MergeMethod
from videoprune.pipeline import Pipeline
from videoprune.registry import find
from videoprune.run import Events
from videoprune.store import Store
from videoprune.tokens import VisualTokens


class NoHost:
    def newline(self) -> None:
        return None


def chunks(frames: int, size: int, seed: int = 0) -> list[VisualTokens]:
    """A film of `frames` frames of 4x4 tokens in chunks of `size`, with a few frames that change and many that repeat."""
    generator = torch.Generator().manual_seed(seed)
    still = torch.randn(16, 8, generator=generator)
    noise = 0.02 * torch.randn(frames, 16, 8, generator=generator)
    changes = (torch.rand(frames, 16, 1, generator=generator) < 0.05) * torch.randn(frames, 16, 8, generator=generator)
    features = still + noise + changes
    return [
        VisualTokens.from_frames(part.flatten(0, 1), torch.arange(len(part), dtype=torch.float64), (4, 4))
        for part in features.split(size)
    ]


def watched(parts: list[VisualTokens], at_most: int | None, *methods: MergeMethod) -> tuple[VisualTokens, int]:
    """The film after the merges, and the most tokens that were held."""
    store = Store(methods, (), NoHost(), at_most)  # type: ignore[arg-type]
    most = 0
    for part in parts:
        store.add(part)
        most = max(most, store.count)
    return store.finish(Events.single(sum(part.frames for part in parts))), most


def method(name: str, **options: object) -> MergeMethod:
    return find("merge", name).load()(**options)


@pytest.mark.parametrize("options", [{"keep": 0.1}, {"keep": 60}, {"keep": 0.5, "at_most": 100}], ids=str)
def test_a_ranked_method_keeps_the_same_tokens_with_a_bound_as_without(options: dict[str, float]) -> None:
    parts = chunks(96, 8)
    whole, _ = watched(parts, None, method("evs", **options))
    bounded, most = watched(parts, 200, method("evs", **options))
    assert most <= 200
    assert len(whole) == len(bounded)
    for name in ("features", "frame", "cell", "weight", "owner", "position", "seconds"):
        assert torch.equal(getattr(whole, name), getattr(bounded, name)), name


@pytest.mark.parametrize(
    "name", ["random", "uniform", "aim", "divprune", "dycoke", "lrcp", "prunevid", "holitom", "fastvid"]
)
@pytest.mark.parametrize("at_most", [150, 400])
def test_every_rule_holds_the_bound_and_the_budget(name: str, at_most: int) -> None:
    parts = chunks(300, 20)
    tokens, most = watched(parts, at_most, method(name, keep=0.2, at_most=120))
    assert most <= at_most
    tokens.check()
    assert tokens.count <= 120
    if find("merge", name).fixed_count:
        assert tokens.count == 120
    frames = tokens.frame[tokens.weight > 0]
    assert bool((frames[1:] >= frames[:-1]).all())
    for third in range(3):  # no part of the film is forgotten
        assert int(((frames >= 100 * third) & (frames < 100 * (third + 1))).sum()) >= 15


def test_frame_merges_act_as_chunks_come_and_the_share_means_what_it_did() -> None:
    parts = chunks(64, 8)
    whole, _ = watched(parts, None, method("aim", keep=0.25), method("evs", keep=0.5))
    bounded, most = watched(parts, 150, method("aim", keep=0.25), method("evs", keep=0.5))
    assert most <= 150
    assert len(whole) == len(bounded) == 128
    assert torch.equal(whole.frame, bounded.frame)
    assert torch.allclose(whole.features, bounded.features)


def test_a_bound_that_is_never_reached_changes_nothing() -> None:
    parts = chunks(32, 8)
    for name in ("evs", "dycoke", "random"):
        whole, _ = watched(parts, None, method(name, keep=0.3))
        bounded, _ = watched(parts, 10_000, method(name, keep=0.3))
        assert torch.equal(whole.features, bounded.features)
        assert torch.equal(whole.owner, bounded.owner)


def test_a_bound_without_a_rule_to_hold_it_is_refused(tmp_path: Path) -> None:
    for merge in (None, {"method": "aim", "keep": 0.5}):
        with pytest.raises(UsageError, match=r"watch\.at_most: 100 is given, but no question-blind merge"):
            Pipeline.load({"merge": merge, "watch": {"at_most": 100}}, model=onevision(tmp_path), device="cpu")
    with pytest.raises(UsageError, match="cannot hold"):
        watched(chunks(400, 8), 3, method("random", keep=0.5))
    with pytest.raises(UsageError, match=r"watch: at_most: 0 is given"):
        Pipeline.load({"watch": {"at_most": 0}}, model=onevision(tmp_path), device="cpu")


def test_a_film_through_the_pipeline(tmp_path: Path) -> None:
    make_film(tmp_path / "film.mp4", minutes=1, seed=4)
    recipe = {"frames": {"fps": 2}, "merge": {"method": "evs", "keep": 0.2, "at_most": 200}, "max_new_tokens": 4}
    free = Pipeline.load(recipe, model=onevision(tmp_path), device="cpu")
    bounded = free.with_recipe({**recipe, "watch": {"at_most": 400}})
    one, other = free.watch(tmp_path / "film.mp4"), bounded.watch(tmp_path / "film.mp4")
    assert torch.equal(one.tokens.owner, other.tokens.owner)
    assert torch.equal(one.tokens.features, other.tokens.features)
    assert [choice["name"] for choice in other.choices][-1] == "watch.at_most"
    question = "What happens first?"
    assert one.ask(question).ids == other.ask(question).ids
