"""Scouts: what they choose, and the ledger of what the vision tower never saw."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import tiny, tiny_qwen
from tests.learned import untrained
from tests.matrix import watch
from videoprune.errors import UsageError
from videoprune.models.load import load_host
from videoprune.pipeline import Pipeline
from videoprune.recipe import Recipe
from videoprune.registry import find
from videoprune.run import Events
from videoprune.scout.random import Random
from videoprune.scout.ssm import SSM, novel
from videoprune.scout.uniform import Uniform
from videoprune.scouting import Scouting, all_events, seen_events
from videoprune.tokens import budget
from videoprune.video import FrameRule, Frames
from videoprune.watching import Watcher


def slow_novel(features, known, allowed, least):
    """The greedy choice in float64, every distance anew at every step."""

    def away(row, others):
        return min(1 - row @ other / np.linalg.norm(row) / np.linalg.norm(other) for other in others)

    features, known = features.double().numpy(), list(known.double().numpy())
    picked = []
    if not known:
        scaled = features / np.linalg.norm(features, axis=1, keepdims=True)
        picked.append(int((scaled @ scaled.mean(axis=0)).argmax()))
        known.append(features[picked[0]])
    while len(picked) < min(allowed, len(features)):
        left = [row for row in range(len(features)) if row not in picked]
        best = max(left, key=lambda row: away(features[row], known))
        if least and away(features[best], known) <= least:
            break
        picked.append(best)
        known.append(features[best])
    return sorted(picked)


@pytest.mark.parametrize("allowed", [1, 3, 16, 40])
@pytest.mark.parametrize("least", [0.0, 0.6])
@pytest.mark.parametrize("known", [0, 4])
def test_novel_is_the_slow_one(allowed, least, known):
    rng = torch.Generator().manual_seed(allowed)
    features, before = torch.randn(16, 6, generator=rng), torch.randn(known, 6, generator=rng)
    assert novel(features, before, allowed, least).tolist() == slow_novel(features, before, allowed, least)


def test_novel_finds_what_differs():
    place, event = torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0])
    film = torch.stack([place + 0.01 * torch.tensor([0, 0, n % 3]) for n in range(16)])
    film[9] = film[10] = event
    assert 9 in novel(film, film[:0], 2, 0.0).tolist()
    assert novel(film, place[None], 8, 0.1).tolist() == [9]  # the second frame of the event says nothing new
    assert novel(place.repeat(16, 1), place[None], 8, 0.1).tolist() == []
    assert novel(film, film[:0], 0, 0.0).tolist() == []


@pytest.mark.parametrize("method", [Uniform(keep=0.3), Random(keep=0.3), SSM(keep=0.3), SSM(keep=0.3, window=5)])
@pytest.mark.parametrize("frames", [1, 2, 16, 33, 160])
def test_the_share_is_met_at_the_end_and_never_passed(method, frames):
    features = torch.randn(frames, 4, generator=torch.Generator().manual_seed(0))
    scouting, kept = Scouting(method, ()), []
    for start in range(0, frames, 4 * method.window):
        part = features[start : start + 4 * method.window]
        kept.append(scouting.choose(part, len(part), None).kept + start)  # type: ignore[arg-type]
        seen = min(frames, start + 4 * method.window)
        assert scouting.sent == budget(seen, 0.3)
    whole = torch.cat(kept)
    assert len(whole) == budget(frames, 0.3)
    assert bool((whole[1:] > whole[:-1]).all())
    again = Scouting(method, ()).choose(features, frames, None).kept  # type: ignore[arg-type]
    assert torch.equal(again, whole)  # the size of chunks changes nothing


def test_what_a_still_stretch_leaves_is_there_for_a_busy_one():
    method = SSM(keep=0.25, novelty=0.05)
    still, busy = torch.ones(64, 8), torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    look = Scouting(method, ()).choose(torch.cat((still, busy)), 80, None)  # type: ignore[arg-type]
    assert int((look.kept < 64).sum()) == 1
    assert int((look.kept >= 64).sum()) == 16


def test_events_of_seen_frames_and_back():
    events = Events(torch.tensor([0, 0, 1, 1, 2, 3, 3]))
    seen = torch.tensor([1, 2, 3, 6])
    assert seen_events(events, seen).frame_event.tolist() == [0, 1, 1, 2]
    assert all_events(Events(torch.tensor([0, 1, 1, 2])), seen, 7).frame_event.tolist() == [0, 0, 1, 1, 1, 1, 2]


@pytest.mark.parametrize(
    "options", [{"keep": 0}, {"keep": 1.5}, {"keep": 7}, {"window": 0}, {"novelty": -1}, {"image": 50}, {"kernel": 4}]
)
def test_bad_options(options):
    with pytest.raises(UsageError, match="is given"):
        SSM(**options)


# --------------------------------------------------------------------------------------------------------- the pipeline


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scouts")
    found = {}
    for name, maker in (("onevision", tiny.onevision), ("internvl", tiny.internvl), ("qwen", tiny_qwen.qwen2_5_vl)):
        maker(folder / name)
        found[name] = load_host(folder / name, device="cpu", dtype="float32")
        found[name].model.generation_config.eos_token_id = None
    found["weights"] = untrained("scout", "ssm", found["onevision"], folder)
    return found


def recipe(hosts, **more):
    given = {
        "scout": {"method": "ssm", "keep": 0.5, "window": 2, "weights": str(hosts["weights"])},
        "max_new_tokens": 4,
    }
    return Recipe.load({**given, "encode": [{"method": "ssm", "keep": 0.5}], "segment": {"method": "metok"}, **more})


MERGES = (None, {"method": "evs", "keep": 0.5}, {"method": "aim", "keep": 0.5}, {"method": "dycoke"},
          {"method": "uniform", "keep": 9, "positions": "compact"})  # fmt: skip


@pytest.mark.parametrize("name", ["onevision", "internvl", "qwen"])
@pytest.mark.parametrize("merge", MERGES, ids=lambda merge: merge and merge["method"])
def test_ledger_is_conserved_and_runs_repeat(hosts, name, merge):
    host = hosts[name]
    pipe = Pipeline(host, recipe(hosts, merge=merge))
    video, dense = watch(pipe, "moving"), watch(pipe.with_recipe({"max_new_tokens": 4}), "moving")
    tokens = video.tokens.check()
    assert tokens.frames == dense.tokens.frames
    assert len(tokens.owner) == len(dense.tokens.owner)
    assert torch.equal(tokens.frame_seconds, dense.tokens.frame_seconds)
    assert len(video.events.frame_event) == tokens.frames
    shown = (tokens.owner.view(tokens.frames, -1) >= 0).any(dim=1)
    assert int(shown.sum()) <= budget(tokens.frames, 0.5)
    assert video.encoded_count == budget(tokens.frames, 0.5) * tokens.per_frame
    assert torch.equal(tokens.event, video.events.frame_event[tokens.frame])
    assert bool(torch.isin(tokens.frame, shown.nonzero()[:, 0]).all())
    answer, again = video.ask("what happens", logits=True), watch(pipe, "moving").ask("what happens", logits=True)
    assert answer.ids == again.ids
    assert torch.equal(answer.logits, again.logits)
    report = answer.report.to_dict()
    assert report["tokens"]["sampled"] == len(dense.tokens.owner)
    assert report["flops"]["scout"]["total"] > 0
    assert report["flops"]["dense"] == dense.ask("what happens").report.to_dict()["flops"]["dense"]
    assert {"name": "scout", "value": f"{budget(tokens.frames, 0.5)} of {tokens.frames} frames"}.items() <= next(
        choice for choice in answer.report.choices if choice["name"] == "scout"
    ).items()


def test_tokens_of_seen_frames_are_those_of_a_dense_run(hosts):
    """What the tower sees it sees as it would have: same features, same places, same positions."""
    for name in ("onevision", "qwen"):
        pipe = Pipeline(hosts[name], recipe(hosts))
        tokens, dense = watch(pipe, "moving").tokens, watch(pipe.with_recipe("dense"), "moving").tokens
        rows = (tokens.owner >= 0).nonzero()[:, 0]
        torch.testing.assert_close(tokens.features, dense.features[rows], rtol=1e-4, atol=1e-5)
        for field in ("frame", "cell", "seconds", "weight"):
            assert torch.equal(getattr(tokens, field), getattr(dense, field)[rows])
        assert torch.equal(tokens.position, dense.position[..., rows])
        assert tokens.extent == dense.extent


def test_keep_1_is_the_identity(hosts):
    pipe = Pipeline(hosts["onevision"], recipe(hosts, scout={"method": "ssm", "keep": 1}))
    video, dense = watch(pipe, "moving"), watch(pipe.with_recipe({"segment": {"method": "metok"}}), "moving")
    assert torch.equal(video.tokens.features, dense.tokens.features)
    assert "scout" not in video.costs


def film(count, seed=0):
    rng = np.random.default_rng(seed)
    return Frames(rng.integers(0, 255, (count, 40, 50, 3)).astype(np.uint8), np.arange(count) * 0.5, np.arange(count))


def watched(pipe, frames, chunk):
    watcher = Watcher(pipe, "film", FrameRule(), len(frames))
    for start in range(0, len(frames), chunk):
        part = slice(start, start + chunk)
        watcher.add(Frames(frames.images[part], frames.seconds[part], frames.index[part]))
    return watcher.finish(SimpleNamespace(metadata={}, choices=[], decoder="none"), [])


@pytest.mark.parametrize("bound", [None, 120])
def test_chunks_change_nothing_and_a_bound_holds(hosts, bound):
    more = {"merge": {"method": "evs", "keep": 0.3}, "watch": {"at_most": bound} if bound else None}
    pipe = Pipeline(hosts["onevision"], recipe(hosts, **more))
    frames = film(37)
    one, other = watched(pipe, frames, 8).tokens, watched(pipe, frames, 32).tokens
    assert torch.equal(one.owner, other.owner)
    assert torch.equal(one.position, other.position)
    torch.testing.assert_close(one.features, other.features)
    if bound:
        assert one.count <= bound


def test_several_pipelines_watch_one_decoding(hosts):
    from videoprune.watching import add_to_all

    pipes = [Pipeline(hosts["onevision"], recipe(hosts)), Pipeline(hosts["onevision"], recipe(hosts))]
    pipes += [pipes[0].with_recipe("dense"), pipes[0].with_recipe({"scout": {"method": "uniform", "keep": 0.25}})]
    frames = film(8)
    watchers = [Watcher(pipe, "film", FrameRule(), 8) for pipe in pipes]
    add_to_all(watchers, frames)
    videos = [watcher.finish(SimpleNamespace(metadata={}, choices=[], decoder="none"), []) for watcher in watchers]
    per = videos[0].tokens.per_frame
    assert [video.encoded_count for video in videos] == [4 * per, 4 * per, 8 * per, 2 * per]
    assert torch.equal(videos[0].tokens.owner, watched(pipes[0], frames, 8).tokens.owner)


def test_watched_film_on_disk(hosts, tmp_path):
    from tests import films

    path = films.write(tmp_path / "film.mp4", 24, fps=4)
    pipe = Pipeline(hosts["onevision"], recipe(hosts))
    video = pipe.watch(path, frames=FrameRule(fps=2))
    video.save(tmp_path / "film.vpz")
    opened = pipe.open(tmp_path / "film.vpz")
    assert torch.equal(opened.tokens.owner, video.tokens.owner)
    assert opened.ask("what happens").text == video.ask("what happens").text
    with pytest.raises(UsageError, match="scout"):
        pipe.with_recipe({"segment": {"method": "metok"}}).open(tmp_path / "film.vpz")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"scout": [{"method": "uniform"}, {"method": "random"}]}, "2 methods are given"),
        ({"encode": {"method": "sta"}}, r"encode\.sta.*leaves gaps"),
        ({"merge": {"method": "metok"}}, r"merge\.metok.*pools whole grids"),
        ({"scout": {"method": "uniform"}}, r"encode\.ssm.*add scout: \{method: ssm\}"),
        ({"encode": {"method": "ssm", "blocks": [1, 2]}}, "blocks"),
        ({"scout": {"method": "ssm", "keep": 3}}, "keep"),
    ],
)
def test_what_does_not_go_together_is_refused(hosts, more, said):
    with pytest.raises(UsageError, match=said):
        Pipeline(hosts["onevision"], recipe(hosts, **more))


def test_bad_weights_are_refused(hosts, tmp_path):
    state = load_file(hosts["weights"])

    def refused(path, said, **options):
        scout = {"method": "ssm", "weights": str(path), **options}
        with pytest.raises(UsageError, match=said):
            Pipeline(hosts["onevision"], Recipe.load({"scout": scout}))

    refused(tmp_path / "gone.safetensors", "can't be read")
    (tmp_path / "text.safetensors").write_text("no weights at all")
    refused(tmp_path / "text.safetensors", "damaged|no safetensors")
    save_file(state, tmp_path / "bare.safetensors")
    refused(tmp_path / "bare.safetensors", "says nothing of what it was trained for")
    (tmp_path / "cut.safetensors").write_bytes(hosts["weights"].read_bytes()[:-100])
    refused(tmp_path / "cut.safetensors", "damaged or cut")
    refused(hosts["weights"], "trained with", width=32)
    refused(tmp_path / "gone.pth", "can't be read")


def test_weights_fit_any_host(hosts):
    for name in ("onevision", "internvl", "qwen"):
        Pipeline(hosts[name], recipe(hosts))


def test_scouts_are_listed():
    assert [find("scout", name).name for name in ("random", "ssm", "uniform")] == ["random", "ssm", "uniform"]
    assert Recipe.load("scout-demo").stages()["scout"] == ["ssm"]


def test_plan_counts_what_the_scout_shows(hosts):
    from videoprune.plan import Planner

    scouted = Planner.of(None, {"scout": {"method": "ssm", "keep": 0.25}}).plan(64)
    dense = Planner.of(None, "dense").plan(64)
    assert scouted.tokens["sampled"] == dense.tokens["sampled"]
    assert scouted.tokens["encoded"] == (256, 256)
    assert scouted.flops["encode"].total == pytest.approx(dense.flops["encode"].total / 4)
    assert 0 < scouted.flops["scout"].total < 0.1 * dense.flops["encode"].total
    still = Planner.of(None, {"scout": {"method": "ssm", "keep": 0.25, "novelty": 0.1}}).plan(64)
    assert still.tokens["encoded"] == (16, 256)  # a film that stands still, and one where nothing repeats
