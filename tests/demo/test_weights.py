"""The shipped model: loaded by stock classes, and trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

from videoprune.demo import language, names, scenes, weights_path
from videoprune.demo.film import draw_film, film_timeline
from videoprune.demo.training.common import CELLS, pixels

SEED, FPS = 21, 8
MOST_BYTES = 16 * 2**20


@pytest.fixture(scope="module")
def model() -> LlavaOnevisionForConditionalGeneration:
    found, report = LlavaOnevisionForConditionalGeneration.from_pretrained(
        weights_path(), dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    return found.eval()


def test_files() -> None:
    present = {path.name for path in weights_path().iterdir()}
    wanted = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert wanted | {"preprocessor_config.json", "README.md"} <= present
    assert (weights_path() / "model.safetensors").stat().st_size <= MOST_BYTES


def test_sizes(model: LlavaOnevisionForConditionalGeneration) -> None:
    config = model.config
    assert (
        config.text_config.vocab_size == len(language.VOCABULARY) == len(AutoTokenizer.from_pretrained(weights_path()))
    )
    assert config.text_config.num_hidden_layers == 8
    assert config.video_token_index == language.WORD_ID[language.VIDEO]
    with torch.no_grad():
        rows = model.model.get_video_features(torch.zeros(1, 3, 3, scenes.SIZE, scenes.SIZE)).pooler_output
    assert rows[0].shape[0] == 3 * CELLS + 1  # one newline row at the end


@pytest.mark.parametrize(("shape", "colour"), [("circle", "red"), ("square", "blue"), ("star", "yellow")])
def test_visual_tokens_point_along_the_words(
    model: LlavaOnevisionForConditionalGeneration, shape: str, colour: str
) -> None:
    rng = np.random.default_rng(1)
    place = scenes.draw_place("forest", rng)
    event = scenes.random_event("actor", (shape, colour, "left"), rng)
    shown = [scenes.draw_frame(place, rng, (0, 0), event if i % 2 else None, i / 12) for i in range(12)]
    with torch.no_grad():
        rows = model.model.get_video_features(pixels(np.stack([picture for picture, _ in shown]))[None]).pooler_output[
            0
        ]
    tokens = rows[:-1].view(12, CELLS, -1)
    centred = F.normalize(tokens - tokens.mean((0, 1)), dim=-1)
    words = F.normalize(model.get_input_embeddings().weight, dim=-1)

    def score(word: str) -> torch.Tensor:  # (12,) the best cell of each frame
        return (centred @ words[language.WORD_ID[word]]).amax(1).detach()

    assert score(colour)[1::2].min() > score(colour)[0::2].max()  # only the frames that show it
    for options, right in ((names.COLOURS, colour), (names.SHAPES, shape)):
        best = max(options, key=lambda word: float(score(word)[1::2].mean()))
        assert best == right


def test_answers_through_stock_generate(model: LlavaOnevisionForConditionalGeneration) -> None:
    film = film_timeline(0.5, SEED)
    pictures = [p for i, p in enumerate(draw_film(film, SEED, FPS)) if i % FPS == 3]
    tokenizer = AutoTokenizer.from_pretrained(weights_path())
    video = pixels(np.stack(pictures))[None]
    questions = {
        "Where does the video mainly take place?": film.main_place,
        "Which object appears first?": f"{film.actors[0].name[1]} {film.actors[0].name[0]}",
        "Which small item is shown for a short time?": next(e.name[0] for e in film.events if e.kind == "item"),
    }
    for question, answer in questions.items():
        turn = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}
        prompt = tokenizer.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
        ids = tokenizer(
            prompt.replace("<video>", "<video> " * (len(pictures) * CELLS + 1)), return_tensors="pt"
        ).input_ids
        with torch.no_grad():
            out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values_videos=video)
        assert tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True) == answer
