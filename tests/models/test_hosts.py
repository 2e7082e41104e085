"""Every family beside the demo's and LongVA: the stock class with nothing pruned, the masked oracle with everything pruned."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen3Config

from tests.films import write
from tests.models.hosts import MAKERS, stock_answer, stock_features
from tests.oracle import oracle_logits
from tests.tiny import internvl, llava15, llava_next_video, vicuna_tokenizer, video_llava
from videoprune.errors import EnvironmentProblem, UsageError
from videoprune.models.host import QUESTION, Host
from videoprune.models.load import FAMILIES, load_host, recognise
from videoprune.models.session import Session
from videoprune.pipeline import Pipeline
from videoprune.registry import find
from videoprune.run import Events, Run

ASKED = "what happens after the red circle ?"
STEPS = 6


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
    return write(tmp_path_factory.mktemp("film") / "film.mp4", 100)


@torch.no_grad()
def test_features_and_answer_equal_the_stock_class(host: Host, images: np.ndarray) -> None:
    features = stock_features(host, images)[1]
    tokens = host.encode(images, np.arange(5.0), 0).tokens
    newline = int(host.newline() is not None)  # the stock class gives it with the features
    torch.testing.assert_close(tokens.features, features[: len(features) - newline], atol=1e-5, rtol=0)
    assert tokens.position.tolist() == list(range(len(features) - newline))
    assert tokens.count == len(tokens.owner) == 5 * 16
    ids, logits = stock_answer(host, images, ASKED, STEPS)
    prompt, _ = host.prompt(ASKED, tokens)
    assert prompt.dense_rows == prompt.embeddings.shape[1]
    mine = host.generate(prompt, Session(prompt.visual, tokens), STEPS, logits=True)
    assert mine.ids == ids
    torch.testing.assert_close(mine.logits, logits, atol=1e-5, rtol=0)


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
        host.encode(images, np.arange(5.0), 0).tokens.features, stock_features(host, images)[1], atol=1e-5, rtol=0
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


def test_internvls_template_names_the_film_as_video(tmp_path: Path) -> None:
    folder = internvl(tmp_path)
    template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
        "{% if part['type'] == 'video' %}<video>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
        "{% endfor %}{{ '<|im_start|>assistant\n' }}"
    )
    own = load_host(folder, device="cpu")
    assert own.template() == (
        "<|im_start|>user\nFrame1: <img>",
        f"</img>\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n",
    )
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert load_host(folder, device="cpu").template() == own.template()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template.replace("<|im_start|>", "", 1)}))
    assert load_host(folder, device="cpu").template()[0] == "user\nFrame1: <img>"


def test_internvl_on_qwen3_with_the_tower_of_6b(tmp_path: Path, images: np.ndarray) -> None:
    """As InternVL3.5 has it: normalised queries and keys in the language model; here in the tower as well."""
    host = load_host(internvl(tmp_path, qk_norm=True, qwen=Qwen3Config, head_dim=16), device="cpu")
    ids, logits = stock_answer(host, images, ASKED, STEPS)
    tokens = host.encode(images, np.arange(5.0), 0).tokens
    prompt, _ = host.prompt(ASKED, tokens)
    mine = host.generate(prompt, Session(prompt.visual, tokens), STEPS, logits=True)
    assert mine.ids == ids
    torch.testing.assert_close(mine.logits, logits, atol=1e-5, rtol=0)
    run = Run(Events.single(5))
    state = find("prefill", "fastv").load()(layer=2, keep=0.25).start(run, 6)
    pruned = host.generate(prompt, Session(prompt.visual, tokens, [state]), STEPS, logits=True)
    assert pruned.trace.queries[0][0] - pruned.trace.queries[0][-1] == 60
    want = oracle_logits(host.model, prompt.embeddings, prompt.position_ids, prompt.visual, pruned.ids, pruned.trace)
    torch.testing.assert_close(pruned.logits, want, atol=1e-4, rtol=0)


def test_internvls_text_stays_whatever_leaves(tmp_path: Path, images: np.ndarray) -> None:
    host = load_host(internvl(tmp_path), device="cpu")
    dense = host.encode(images, np.arange(5.0), 0).tokens
    whole, _ = host.prompt(ASKED, dense)
    # frames 0 and 3 lose every token, the others all but two
    kept = torch.tensor([frame * 16 + place for frame in (1, 2, 4) for place in (3, 9)])
    original, _ = host.prompt(ASKED, dense.keep(kept))
    compact, _ = host.prompt(ASKED, dense.keep(kept).compacted())
    start, gap = whole.visual.start, 4  # </img> Frame2 : <img>
    rows = [start + frame * gap + number for number, frame in enumerate((1, 1, 2, 2, 4, 4))]
    assert original.visual.rows.tolist() == compact.visual.rows.tolist() == rows
    text = torch.ones(whole.embeddings.shape[1], dtype=torch.bool)
    text[whole.visual.rows] = False
    left = torch.ones(original.embeddings.shape[1], dtype=torch.bool)
    left[original.visual.rows] = False
    assert torch.equal(original.embeddings[0, left], whole.embeddings[0, text])
    assert torch.equal(original.embeddings[0, rows], dense.features[kept])
    assert torch.equal(original.position_ids[0, left], whole.position_ids[0, text])
    assert torch.equal(original.position_ids[0, rows], whole.position_ids[0, whole.visual.rows[kept]])
    assert compact.position_ids[0].tolist() == list(range(compact.embeddings.shape[1]))
    assert original.dense_rows == compact.dense_rows == whole.embeddings.shape[1]


def test_a_placeholder_in_the_question_is_refused(host: Host, images: np.ndarray) -> None:
    tokens = host.encode(images[:1], np.arange(1.0), 0).tokens
    with pytest.raises(UsageError, match="control token"):
        host.prompt(f"what is {host.placeholder or '<video>'} ?", tokens)


def test_families_are_told_apart(tmp_path: Path) -> None:
    for name, maker in MAKERS.items():
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
    ("family", "frames", "rows"),
    [
        ("llava-next-video", 32, 16),
        ("video-llava", 8, 17),
        ("llava-1.5", 6, 16),
        ("llava-next", 6, 17),
        ("internvl", 8, 16),
    ],
)
def test_where_nothing_is_asked_for_frames_are_the_authors(
    family: str, frames: int, rows: int, tmp_path: Path, film: Path
) -> None:
    pipe = Pipeline.load(model=MAKERS[family](tmp_path), device="cpu")
    tokens = pipe.watch(film).tokens
    assert (tokens.frames, len(tokens)) == (frames, frames * rows)
    chosen = next(choice for choice in pipe.choices if choice["name"] == "recipe")
    assert (pipe.recipe.frames.frames, pipe.recipe.frames.fps) == (frames, None)
    json.dumps(chosen)
