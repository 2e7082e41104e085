"""Qwen-VL hosts in pipelines: films, recipes, conversations, the command line; and their checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import Ended
from tests.models.qwen import ASKED, STEPS, encode, generate, stock_inputs
from tests.models.test_packed_tower import MAKERS
from tests.oracle import oracle_logits
from tests.tiny_qwen import as_released
from videoprune import scouting, watching
from videoprune.demo.film import make_film
from videoprune.errors import EnvironmentProblem, UsageError
from videoprune.models.generation import reply_ids
from videoprune.models.host import QUESTION
from videoprune.models.load import FAMILIES, load_host, recognise
from videoprune.models.qwen_vl import QwenVL
from videoprune.models.session import Session
from videoprune.models.turns import conversation
from videoprune.pipeline import Pipeline
from videoprune.recipe import Recipe
from videoprune.video import Film, FrameRule

RECIPES = ["dense", "aim-paper", "metok-release", "sta-aim-metok"]


@pytest.fixture(scope="module", params=MAKERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MAKERS[request.param](tmp_path_factory.mktemp("models") / request.param)


@pytest.fixture(scope="module")
def host(folder: Path) -> QwenVL:
    loaded = load_host(folder, device="cpu")
    assert isinstance(loaded, QwenVL)
    return loaded


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (10, 120, 120, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "demo.mp4"
    make_film(path, minutes=20 / 60, seed=3)
    return path


# ------------------------------------------------------------------------------------------------------------ pipelines


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_keep_their_books_and_equal_the_oracle(recipe: str, host: QwenVL, film: Path) -> None:
    pipe = Pipeline(host, Recipe.load(recipe, [f"max_new_tokens={STEPS}"]), seed=1)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        answer = pipe.watch(film, frames=FrameRule(frames=9)).ask(ASKED, logits=True)
    tokens, report = answer.tokens.check(), answer.report
    assert int(tokens.weight.sum()) == int((tokens.owner >= 0).sum())
    per_step = tokens.grid[0] * tokens.grid[1]
    assert report.tokens["sampled"] == tokens.frames * per_step == len(tokens.owner)
    assert report.tokens["merged"] == tokens.count == len(tokens)
    falling = list(report.tokens.values())
    assert falling == sorted(falling, reverse=True)
    assert recipe == "dense" or falling[-1] < falling[0]
    assert report.total.total == pytest.approx(counter.get_total_flops(), rel=0.02)
    if recipe == "dense":
        model = report.total.total - report.flops["overhead"].total
        assert model == pytest.approx(report.dense.total, rel=1e-9)
    prompt, _ = host.prompt(ASKED, tokens)
    want = oracle_logits(host.model, prompt.embeddings, prompt.position_ids, prompt.visual, answer.ids, answer.trace)
    torch.testing.assert_close(answer.logits, want, atol=1e-4, rtol=0)


def test_a_film_through_the_pipeline_equals_the_stock_class(host: QwenVL, film: Path) -> None:
    """20 s at a frame a second; a step is two seconds, whatever chunks it comes in."""
    pipe = Pipeline(host, Recipe.load("dense", ["frames.fps=1", f"max_new_tokens={STEPS}"]))
    video = pipe.watch(film)
    assert (video.tokens.frames, video.tokens.interval) == (10, 2.0)
    answer = video.ask(ASKED, logits=True)
    with Film(film, FrameRule(fps=1)) as reader:
        images = np.concatenate([batch.images for batch in reader])
    ids, logits = generate(host, **stock_inputs(host, images, 1.0))
    assert answer.ids == ids
    torch.testing.assert_close(answer.logits, logits, atol=1e-5, rtol=0)
    assert {round(entry["seconds"] * 2) / 2 for entry in answer.evidence} <= {n / 2 for n in range(40)}


@pytest.mark.parametrize(
    "recipe", [{}, {"merge": {"method": "aim", "keep": 0.5}, "prefill": {"method": "random", "keep": 0.4}}]
)
def test_further_questions_and_options_have_their_positions(recipe: dict, host: QwenVL, film: Path) -> None:
    """A cache that is continued, a beginning that is shared, replies that are scored: as read anew, one by one."""
    pipe = Pipeline(host, Recipe.load({"frames": {"fps": 1, "max": 8}, "max_new_tokens": 4, **recipe}), seed=1)
    video, asked = pipe.watch(film), [ASKED, "what are you ?"]
    alone = [video.ask(question) for question in asked]
    assert [answer.ids for answer in video.ask_all(asked)] == [answer.ids for answer in alone]
    chat = video.chat()
    first, second = (chat.ask(question, logits=True) for question in asked)
    assert first.ids == alone[0].ids
    if recipe:
        return
    whole, _ = conversation(host, [(ASKED, first.ids)], asked[1], video.tokens)
    anew = host.generate(whole, Session(whole.visual, video.tokens), 4, logits=True)
    torch.testing.assert_close(second.logits, anew.logits, atol=1e-5, rtol=0)
    prompt, _ = host.prompt(ASKED, video.tokens)
    reply = reply_ids(host, "a helpful circle")
    read = oracle_logits(
        host.model,
        prompt.embeddings,
        prompt.position_ids,
        prompt.visual,
        reply.tolist(),
        Session(prompt.visual, video.tokens).trace,
    )
    want = read.log_softmax(-1).gather(1, reply[:, None]).sum()
    assert video.options(ASKED, ["a helpful circle", "what ."]).logprobs[0] == pytest.approx(float(want), abs=1e-4)


WIDE = [*RECIPES[1:], {"frames": {"fps": 1}, "encode": {"method": "lvtp"}}]


@pytest.mark.parametrize("recipe", WIDE, ids=str)
def test_a_grid_need_not_be_square(recipe: Any, host: QwenVL, tmp_path: Path) -> None:
    path = tmp_path / "wide.mp4"
    pixels = np.random.default_rng(4).integers(0, 255, (40, 10, 20, 3), dtype=np.uint8)
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=4, options={"g": "4"})
        stream.width, stream.height = 320, 160
        for image in pixels.repeat(16, axis=1).repeat(16, axis=2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode(None))
    answer = Pipeline(host, Recipe.load(recipe, ["max_new_tokens=2"]), seed=1).watch(path).ask(ASKED)
    tokens = answer.tokens.check()
    assert tokens.grid[1] > tokens.grid[0]
    assert bool((tokens.cell < torch.tensor(tokens.grid)).all())
    assert answer.report.tokens["last_layer"] < answer.report.tokens["sampled"]


def test_the_size_of_chunks_changes_nothing(host: QwenVL, film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = {
        "frames": {"fps": 1},
        "encode": {"method": "sta", "keep": 0.5, "restart": 3},
        "merge": {"method": "aim", "keep": 0.5},
    }
    pipe = Pipeline(host, Recipe.load(recipe, ["max_new_tokens=4"]))
    whole = pipe.watch(film)
    monkeypatch.setattr(watching, "CHUNK", 6)
    parts = pipe.watch(film)
    assert torch.equal(whole.tokens.owner, parts.tokens.owner)
    assert torch.equal(whole.tokens.position, parts.tokens.position)
    torch.testing.assert_close(whole.tokens.features, parts.tokens.features, atol=1e-5, rtol=0)


def test_a_watched_film_is_stored_whole(host: QwenVL, film: Path, tmp_path: Path) -> None:
    pipe = Pipeline(host, Recipe.load("sta-aim-metok", [f"max_new_tokens={STEPS}"]), seed=1)
    video = pipe.watch(film)
    want = video.ask(ASKED, logits=True)
    again = pipe.open(video.save(tmp_path / "film.vpz")).ask(ASKED, logits=True)
    assert again.ids == want.ids
    assert torch.equal(again.logits, want.logits)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_command_line_answers(recipe: str, folder: Path, film: Path, videoprune: Callable[..., Ended]) -> None:
    told = videoprune(
        "ask", film, ASKED, "--model", folder, "--recipe", recipe, "--frames", "8", "--max-new-tokens", "3", "--json",
        "--device", "cpu", "--quiet",
    )  # fmt: skip
    assert told.code == 0, told.err
    answer = json.loads(told.out)["answers"][0]
    assert answer["report"]["tokens"]["sampled"] % 4 == 0
    chosen = {choice["name"]: choice for choice in answer["report"]["choices"]}
    assert chosen["family"]["reason"].startswith("model_type is qwen")
    assert "qwen-vl-utils" in chosen["pixels"]["reason"]


def test_bfloat16_runs_the_whole_chain(folder: Path, film: Path) -> None:
    pipe = Pipeline.load("sta-aim-metok", model=folder, device="cpu", dtype="bfloat16", max_new_tokens=3)
    answer = pipe.ask(film, ASKED)
    assert answer.tokens.features.dtype == torch.bfloat16
    assert len(answer.ids) == 3


# -------------------------------------------------------------------------------------------------------------- loading


def test_families_are_told_apart(folder: Path, host: QwenVL) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert recognise(config)[0] is type(host)
    assert [family.family for family in FAMILIES if family.matches(config)] == [host.family]
    with pytest.raises(EnvironmentProblem, match=host.accepts.split()[0]):
        recognise({"model_type": "qwen9_vl"})


def test_template_and_limits_where_the_checkpoint_says_nothing(host: QwenVL, tmp_path: Path) -> None:
    folder = MAKERS[host.family](tmp_path / "bare", max_position_embeddings=1000)
    (folder / "video_preprocessor_config.json").unlink()
    (folder / "chat_template.jinja").unlink()
    bare = load_host(folder, device="cpu")
    unit = bare.preprocess.factor**2
    assert bare.preprocess.least == (4 if host.family == "qwen3-vl" else 128) * unit
    assert bare.preprocess.film_tokens == 1000
    assert bare.preprocess.mean == ((0.5,) * 3 if host.family == "qwen3-vl" else (0.48145466, 0.4578275, 0.40821073))
    before, behind = bare.template()
    assert before.endswith("<|im_start|>user\n<|vision_start|>")
    assert before.startswith("<|im_start|>system") is (host.family != "qwen3-vl")
    assert behind == f"<|vision_end|>{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    # limits of images are no limits of films
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"min_pixels": 3136, "max_pixels": 12845056, "image_mean": [0.1, 0.2, 0.3]})
    )
    other = load_host(folder, device="cpu").preprocess
    assert (other.least, other.mean) == (bare.preprocess.least, (0.1, 0.2, 0.3))


@pytest.mark.parametrize("family", ["qwen2-vl", "qwen2.5-vl"])
def test_checkpoints_as_they_were_released(family: str, tmp_path: Path, images: np.ndarray) -> None:
    new = load_host(MAKERS[family](tmp_path / "new"), device="cpu")
    old = load_host(as_released(MAKERS[family](tmp_path / "old")), device="cpu")
    assert old.family == family
    assert old.preprocess.least == 128 * 784
    weights = old.model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in new.model.state_dict().items())
    old.preprocess = new.preprocess
    tokens = encode(new, images)
    want, mine = (each.prompt(ASKED, tokens)[0] for each in (new, old))
    assert torch.equal(mine.position_ids, want.position_ids)
    logits = [each.generate(want, Session(want.visual, tokens), 2, logits=True).logits for each in (new, old)]
    assert torch.equal(logits[0], logits[1])


def test_frames_are_the_authors_where_nothing_is_asked_for(folder: Path, film: Path) -> None:
    pipe = Pipeline.load(model=folder, device="cpu", max_new_tokens=1)
    assert pipe.recipe.frames.fps == 2
    assert pipe.recipe.frames.max == 768
    assert pipe.watch(film).tokens.frames == 20


def test_frames_are_never_fitted(folder: Path) -> None:
    with pytest.raises(UsageError, match="whole"):
        load_host(folder, device="cpu", frame_fit="crop")


@pytest.mark.parametrize("mark", ["<|video_pad|>", "<|vision_end|>", "<|im_end|>"])
def test_marks_in_the_question_are_refused(mark: str, host: QwenVL, images: np.ndarray) -> None:
    with pytest.raises(UsageError, match="control token"):
        host.prompt(f"what is {mark} ?", encode(host, images[:2]))


def test_relevance_is_that_of_steps() -> None:
    """Frames are scored by pictures and compared with the ledger's frames: two frames are one step."""
    seen = torch.arange(5.0)[:, None]
    assert scouting.per_step(seen, 2).flatten().tolist() == [0.5, 2.5, 4.0]
    assert torch.equal(scouting.per_step(seen, 1), seen)
