"""`videoprune bench speed` on models small enough for a test."""

import json
import math

import pytest
import torch

from videoprune.bench import pairs, speed, stage_run
from videoprune.bench.meter import Meter
from videoprune.bench.pairs import Ratio, interleaved, rank_of, ratio_of
from videoprune.bench.replay import Recorded
from videoprune.bench.shapes import FULL, shaped_config, shaped_host
from videoprune.bench.speed import pair_rows, read_counts, read_recipe, stock_prefill, verdict
from videoprune.bench.speed_page import as_markdown
from videoprune.bench.stage_run import ask, run_stages, watch
from videoprune.cli import main
from videoprune.demo import film_path
from videoprune.errors import UsageError
from videoprune.models.generation import generate
from videoprune.models.longva import longva_config
from videoprune.pipeline import Pipeline

QUESTION = "What happens after the red circle appears?"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def host():
    return shaped_host("demo", 0, 0, CPU, torch.float32)


def asked_of(host, recipe, frames=12):
    pipe = Pipeline(host, read_recipe(recipe, 1))
    return ask(pipe, watch(pipe, film_path(), frames), QUESTION)


# ----------------------------------------------------------------------------------------------------------- pairs


def test_the_interval_is_the_binomials():
    """Against the coverage summed term by term; 6th and 16th of 21 are in every table of the sign test."""
    assert rank_of(21) == 5
    assert rank_of(5) is None
    for count in (6, 15, 21, 40):
        rank = rank_of(count)
        cover = [sum(math.comb(count, k) for k in range(r + 1, count - r)) / 2**count for r in (rank, rank + 1)]
        assert cover[0] >= 0.95 > cover[1]


def test_a_ratio_is_of_pairs_and_not_of_medians():
    theirs = [1.0, 10.0, 100.0, 1.0, 10.0, 100.0]
    ours = [2.0, 10.0, 50.0, 3.0, 10.0, 60.0]
    ratio = ratio_of(ours, theirs)
    assert ratio.median == 1.0
    assert (ratio.low, ratio.high) == (0.5, 3.0)
    assert ratio_of(ours[:3], theirs[:3]).low is None


def test_sides_take_turns_and_turns_at_beginning():
    calls, times = [], iter(range(1000))
    ratio = interleaved(lambda: calls.append("a"), lambda: calls.append("b"), 3, clock=lambda: float(next(times)))
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert (ratio.ours, ratio.theirs, ratio.pairs) == (1.0, 1.0, 3)


@pytest.mark.parametrize(
    ("median", "high", "said"),
    [(1.0, 1.02, "meets"), (1.0, 1.1, "median meets"), (1.0, None, "median meets"), (1.04, 1.1, "misses")],
)
def test_a_verdict_looks_at_the_whole_interval(median, high, said):
    assert verdict(Ratio(median, 0.9, high, 1.0, 1.0, 21), 1.03) == said


# ---------------------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("shape", ["longva", "onevision"])
def test_full_width_is_the_7b_model(shape):
    config = shaped_config(shape, 3584, 28)
    text = longva_config(config).text_config.to_dict() if shape == "longva" else config["text_config"]
    known = {"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4}
    assert {key: text[key] for key in known} == known
    assert config["vision_config"]["hidden_size"] == (1024 if shape == "longva" else 1152)
    assert (FULL.width, FULL.mlp, FULL.heads, FULL.kv_heads, FULL.layers) == (3584, 18944, 28, 4, 28)


def test_a_narrow_model_keeps_heads_and_grid():
    small = shaped_host("longva", 256, 2, CPU, torch.float32)
    assert small.grid == (12, 12)
    assert (small.decoder_shape.head_dim, small.decoder_shape.heads, small.decoder_shape.kv_heads) == (128, 2, 1)
    assert small.tower_shape.layers == 24
    half = shaped_host("onevision", 128, 1, CPU, torch.bfloat16)
    assert half.grid == (14, 14)
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize(("width", "layers"), [(100, 2), (0, 2), (128, 0)])
def test_bad_sizes_are_refused(width, layers):
    with pytest.raises(UsageError, match="allowed"):
        shaped_host("longva", width, layers, CPU, torch.float32)


# --------------------------------------------------------------------------------------------------------- replays


@pytest.mark.parametrize(
    "recipe",
    ["prefill.fastv", "metok-release", "demo", "prefill.aim+prefill.first=14+prefill.last=22", "prefill.topv"],
)
def test_a_replay_is_the_same_run_without_a_choice(host, recipe, monkeypatch):
    asked = asked_of(host, recipe)
    recording = asked.session()
    recorded = Recorded(recording)
    first = host.generate(asked.prompt, recording, 3, logits=True)
    given = recorded.session()

    def refused(*args, **kwargs):
        raise AssertionError("a replay looked at attention")

    monkeypatch.setattr("videoprune.models.sample.row_attention", refused)
    monkeypatch.setattr("videoprune.models.sample.decayed_column_sum", refused)
    again = host.generate(asked.prompt, given, 3, logits=True)
    assert again.trace.queries == first.trace.queries
    assert again.trace.entries == first.trace.entries
    assert again.trace.entries != [asked.prompt.dense_rows + 2] * len(again.trace.entries)
    torch.testing.assert_close(again.logits, first.logits, rtol=0, atol=0)
    assert not any(state.needs for state in given.prefill)


def test_dense_pairs_run_the_same_prefill(host):
    """Our loop and the stock one give the same first token."""
    asked = asked_of(host, "dense")
    own = generate(host, [asked.prompt], [asked.session()], 1, True)[0]
    assert stock_prefill(host, asked.prompt).sequences[0].tolist() == own.ids


def test_pair_rows_name_what_they_compare(host, monkeypatch):
    monkeypatch.setattr(pairs, "rank_of", lambda count: 0)
    rows = {}
    for recipe in ("dense", "metok-release", "prefill.fastv", "merge.evs+merge.keep=0.5"):
        pipe = Pipeline(host, read_recipe(recipe, 1))
        rows[recipe] = [row["what"] for row in pair_rows(pipe, film_path(), 12, 1, lambda *told: None)]
    given = "prefill / given the indices", "prefill and eviction / given the indices"
    assert rows == {
        "dense": ["loop / stock generate()"],
        "metok-release": list(given),
        "prefill.fastv": [given[0]],
        "merge.evs+merge.keep=0.5": [],
    }


# ---------------------------------------------------------------------------------------------------------- stages


def test_a_run_measures_every_stage(host):
    pipe = Pipeline(host, read_recipe("metok-release", 4))
    run = run_stages(pipe, film_path(), 12, QUESTION, 4)
    data = run.to_dict()
    assert list(data["stages"]) == list(stage_run.STAGES)
    assert data["frames"] == 12
    assert data["tokens"]["sampled"] == 12 * 16
    # counted bytes are those that the cache holds
    assert data["kv"]["bytes"] == data["kv"]["measured_bytes"] > 0
    # a prefill counted anew from the report's rows: dense is one length everywhere
    shape, rows = host.decoder_shape, data["dense_rows"]
    narrow = shape.kv_heads * shape.head_dim
    linear = 2 * rows * shape.layers * (2 * 192 * 192 + 2 * 192 * narrow + 3 * 192 * 384)
    assert data["prefill"]["dense_flops"]["linear"] == linear
    assert data["prefill"]["share"] < 1
    assert data["prefill"]["share_at_full_width"] is None
    assert data["films_an_hour"] == pytest.approx(3600 / sum(each["seconds"] for each in data["stages"].values()))
    assert 0 < data["first_token"]["seconds"] < data["seconds"]


def test_watching_stage_by_stage_gives_what_the_pipeline_gives(host):
    pipe = Pipeline(host, read_recipe("demo", 4))
    video = watch(pipe, film_path(), 12)
    from videoprune.video import FrameRule

    other = pipe.watch(film_path(), frames=FrameRule(frames=12))
    torch.testing.assert_close(video.tokens.features, other.tokens.features, rtol=0, atol=0)


def test_a_meter_sees_time_and_memory():
    meter = Meter(CPU)
    for size in (2**22, 2**24):
        with meter("work"):
            held = torch.ones(size)  # 16 and 64 MiB
            del held
    spent = meter.stages["work"]
    assert spent.cpu_seconds > 0
    assert spent.seconds > 0
    assert 60 * 2**20 < spent.peak_bytes < 100 * 2**20


# --------------------------------------------------------------------------------------------------------- command


def test_a_page_and_json_from_the_command(tmp_path, capsys):
    page = tmp_path / "speed.md"
    words = ["bench", "speed", "--frames", "8", "--pair-frames", "8", "--pairs", "2", "--recipes", "prefill.fastv"]
    code = main([*words, "--film", str(film_path()), "--threads", "1", "--json", "-q", "--markdown", str(page)])
    assert code == 0
    data = json.loads(capsys.readouterr().out)
    assert [run["recipe"] for run in data["runs"]] == ["dense", "prefill.fastv"]
    assert data["runs"][0]["prefill"]["share"] == 1
    assert [row["pairs"] for row in data["pairs"]] == [2, 2]
    text = page.read_text()
    assert text == as_markdown(data) + "\n"
    for block in text.split("\n\n"):  # every row of a table is as wide as its head
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1
    assert "## Pairs" in text
    assert "loop / stock generate()" in text


def test_bad_words_are_refused():
    assert read_counts("32, 128", "--frames") == [32, 128]
    assert read_counts("", "--pair-frames") == []
    for text in ("x", "0", "3,-1"):
        with pytest.raises(UsageError, match="--frames"):
            read_counts(text, "--frames")
    for name in ("no-such", "prefill.nothing", "demo+merj.keep=3"):
        with pytest.raises(UsageError):
            read_recipe(name, 1)
    with pytest.raises(UsageError, match=r"merge\.evs.*kept"):
        speed.measure("demo", recipes=["demo+merge.kept=3"], frames=[])
    with pytest.raises(UsageError, match="--threads"):
        speed.measure("demo", recipes=[], frames=[], threads=0)
    with pytest.raises(UsageError, match="--shape"):
        speed.measure("other", recipes=[], frames=[])


def test_changes_stand_behind_plus_signs():
    recipe = read_recipe("metok-release+merge.key_frames=20+merge.at_most=16384", 5)
    assert recipe.merge[0].options["key_frames"] == 20
    assert recipe.merge[0].options["at_most"] == 16384
    assert recipe.max_new_tokens == 5
    assert recipe.name == "metok-release+merge.key_frames=20+merge.at_most=16384"
