"""Every family beside the demo's and LongVA: the stock class with nothing pruned, the masked oracle with everything pruned."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.oracle import oracle_logits
from tests.tiny import llava15, llava_next_video, longva, onevision, vicuna_tokenizer, video_llava
from videoprune.demo.film import make_film
from videoprune.errors import EnvironmentProblem, UsageError
from videoprune.models.host import QUESTION, Host
from videoprune.models.load import FAMILIES, load_host, recognise
from videoprune.models.session import Session
from videoprune.models.video_llava import VideoLlava
from videoprune.pipeline import Pipeline
from videoprune.recipe import Recipe
from videoprune.registry import find

ASKED = "what happens after the red circle ?"
STEPS = 6
MAKERS: dict[str, Callable[..., Path]] = {
    "llava-next-video": llava_next_video,
    "video-llava": video_llava,
    "llava-1.5": llava15,
}
RECIPES = ["dense", "aim-paper", "metok-release", "sta-aim-metok"]


@pytest.fixture(scope="module", params=MAKERS)
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Host:
    loaded = load_host(MAKERS[request.param](tmp_path_factory.mktemp("models") / request.param), device="cpu")
    assert loaded.family == request.param
    return loaded


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (5, 60, 90, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "demo.mp4"
    make_film(path, minutes=20 / 60, seed=3)
    return path


def stock_inputs(host: Host, images: np.ndarray) -> tuple[dict[str, Any], torch.Tensor]:
    """What the stock class is given for these frames, and its own features of them, (rows, D)."""
    pixels = host.preprocess(images)
    if host.placeholder == "<video>":
        features = host.model.model.get_video_features(pixels[None], return_dict=True).pooler_output
        return {"pixel_values_videos": pixels[None]}, features.flatten(0, 1)
    features = host.model.model.get_image_features(pixels, return_dict=True).pooler_output
    return {"pixel_values": pixels}, torch.cat(list(features))


@torch.no_grad()
def test_features_and_answer_equal_the_stock_class(host: Host, images: np.ndarray) -> None:
    given, features = stock_inputs(host, images)
    tokens = host.encode(images, np.arange(5.0), 0).tokens
    torch.testing.assert_close(tokens.features, features, atol=1e-5, rtol=0)
    assert tokens.position.tolist() == list(range(len(features)))
    assert tokens.count == len(tokens.owner) == 5 * 16
    before, behind = host.template()
    text = f"{before}{host.placeholder * len(features)}{behind.replace(QUESTION, ASKED)}"
    ids = torch.tensor([host.tokenizer(text)["input_ids"]])
    assert host.tokenizer.decode(ids[0, 0]) == "<s>"
    stock = host.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        **given,
        max_new_tokens=STEPS,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    prompt, _ = host.prompt(ASKED, tokens)
    mine = host.generate(prompt, Session(prompt.visual, tokens), STEPS, logits=True)
    assert mine.ids == stock.sequences[0, ids.shape[1] :].tolist()
    torch.testing.assert_close(mine.logits, torch.stack([step[0] for step in stock.logits]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_keep_their_books_and_equal_the_oracle(recipe: str, host: Host, film: Path) -> None:
    pipe = Pipeline(host, Recipe.load(recipe, [f"max_new_tokens={STEPS}"]), seed=1)
    if recipe == "metok-release" and isinstance(host, VideoLlava):
        with pytest.raises(UsageError, match="whole grids"):
            pipe.ask(film, ASKED)
        return
    answer = pipe.watch(film).ask(ASKED, logits=True)
    tokens, report = answer.tokens.check(), answer.report
    assert int(tokens.weight.sum()) == int((tokens.owner >= 0).sum())
    assert bool((tokens.position[1:] > tokens.position[:-1]).all())
    assert report.tokens["sampled"] == tokens.frames * 16
    assert report.tokens["merged"] == tokens.count == int((tokens.cell[:, 0] >= 0).sum())
    falling = list(report.tokens.values())
    assert falling == sorted(falling, reverse=True)
    assert recipe == "dense" or falling[-1] < falling[0]
    prompt, _ = host.prompt(ASKED, tokens)
    want = oracle_logits(host.model, prompt.embeddings, prompt.position_ids, prompt.visual, answer.ids, answer.trace)
    torch.testing.assert_close(answer.logits, want, atol=1e-4, rtol=0)


def test_cls_rows_lead_their_frames_whatever_leaves(tmp_path: Path, images: np.ndarray) -> None:
    host = load_host(video_llava(tmp_path), device="cpu")
    dense = host.encode(images, np.arange(5.0), 0).tokens
    method = find("encode", "sta").load()(keep=0.25)
    tokens = host.encode(images, np.arange(5.0), 0, [method]).tokens
    leads = tokens.weight == 0
    assert tokens.position[leads].tolist() == [0, 17, 34, 51, 68]
    assert tokens.frame[leads].tolist() == list(range(5))
    assert tokens.seconds[leads].tolist() == list(range(5))
    assert tokens.count == 5 * 4
    assert tokens.extent == dense.extent == 85
    inside = tokens.cell[:, 0] * 4 + tokens.cell[:, 1]
    assert torch.equal(tokens.position[~leads], (tokens.frame * 17 + 1 + inside)[~leads])
    assert torch.equal(tokens.owner[(tokens.frame * 16 + inside)[~leads]], (~leads).nonzero()[:, 0])


@pytest.mark.parametrize("methods", [[], [("sta", {"keep": 0.5})]])
def test_encoding_costs_what_the_counter_counts(methods: list, host: Host, images: np.ndarray) -> None:
    built = [find("encode", name).load()(**options) for name, options in methods]
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        encoded = host.encode(images, np.arange(5.0), 0, built)
    assert encoded.cost.total == pytest.approx(counter.get_total_flops(), rel=0.02)
    if not methods:
        assert encoded.cost.total == host.dense_encode_cost(5).total


@torch.no_grad()
def test_next_video_pools_odd_grids_as_the_stock_class_does(tmp_path: Path, images: np.ndarray) -> None:
    host = load_host(llava_next_video(tmp_path, side=7, mode="max"), device="cpu")
    assert host.grid == (3, 3)
    assert torch.bincount(host.unit_of_patch()).tolist() == [4, 4, 6, 4, 4, 6, 6, 6, 9]
    torch.testing.assert_close(
        host.encode(images, np.arange(5.0), 0).tokens.features, stock_inputs(host, images)[1], atol=1e-5, rtol=0
    )


def test_stretched_positions_widen_next_videos_context(tmp_path: Path) -> None:
    rope = {"rope_type": "linear", "factor": 2.5, "rope_theta": 10000.0}
    host = load_host(llava_next_video(tmp_path, rope_parameters=rope), device="cpu")
    assert host.context == 10240
    assert {"name": "context", "value": "10240", "reason": "linear RoPE scaling by 2.5"} in host.choices


def test_the_checkpoints_chat_template_is_taken(tmp_path: Path, images: np.ndarray) -> None:
    folder = llava_next_video(tmp_path)
    template = (
        "{{ bos_token }}{% for message in messages %}user {% for part in message['content'] %}"
        "{% if part['type'] == 'video' %}<video> {% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %} assistant"
    )
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    host = load_host(folder, device="cpu")
    before, behind = (host.tokenizer.decode(ids) for ids in host.prompt_ids(ASKED))
    assert before == "<s> user"  # one begin token, though the tokenizer adds one too
    assert behind == f"{ASKED} assistant"
    host.tokenizer.chat_template = "{{ 'text only: ' + messages[0]['content'] }}"
    assert host.template()[0] == "USER: "


def test_a_placeholder_in_the_question_is_refused(host: Host, images: np.ndarray) -> None:
    tokens = host.encode(images[:1], np.arange(1.0), 0).tokens
    with pytest.raises(UsageError, match="control token"):
        host.prompt(f"what is {host.placeholder} ?", tokens)


def test_families_are_told_apart(tmp_path: Path) -> None:
    makers = {**MAKERS, "llava-onevision": onevision, "longva": longva}
    for name, maker in makers.items():
        config = json.loads((maker(tmp_path / name) / "config.json").read_text())
        assert recognise(config)[0].family == name
        assert [family.family for family in FAMILIES if family.matches(config)] == [name]
    with pytest.raises(EnvironmentProblem, match=r"pixtral|LLaVA-1\.5"):
        recognise({"model_type": "llava", "vision_config": {"model_type": "pixtral"}})


def test_variants_that_would_mean_something_else_are_refused(tmp_path: Path) -> None:
    makers = {
        "full": llava15(tmp_path / "full", select="full"),
        "conv": llava_next_video(tmp_path / "conv", mode="conv"),
    }
    for says, folder in makers.items():
        with pytest.raises(EnvironmentProblem, match=says) as error:
            load_host(folder, device="cpu")
        assert str(folder) in str(error.value)
    folder = video_llava(tmp_path / "tokenizer")
    vicuna_tokenizer(["<image>"]).save_pretrained(folder)
    with pytest.raises(EnvironmentProblem, match="<video>"):
        load_host(folder, device="cpu")


@pytest.mark.parametrize(
    ("family", "frames", "rows"), [("llava-next-video", 32, 16), ("video-llava", 8, 17), ("llava-1.5", 6, 16)]
)
def test_where_nothing_is_asked_for_frames_are_the_authors(
    family: str, frames: int, rows: int, tmp_path: Path, film: Path
) -> None:
    pipe = Pipeline.load(model=MAKERS[family](tmp_path), device="cpu")
    tokens = pipe.watch(film).tokens
    assert (tokens.frames, len(tokens)) == (frames, frames * rows)
    chosen = next(choice for choice in pipe.choices if choice["name"] == "recipe")
    assert chosen["value"]["frames"] == {"frames": frames}
    json.dumps(chosen)
