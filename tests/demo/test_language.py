"""The vocabulary is closed, and stock tokenizers read it as we do."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from transformers import AutoTokenizer

from videoprune.demo import language, weights_path
from videoprune.demo.film import film_timeline
from videoprune.demo.questions import TASKS, WORDINGS, Asker


@pytest.fixture(scope="module")
def tokenizer():  # type: ignore[no-untyped-def]
    return AutoTokenizer.from_pretrained(weights_path())


@pytest.mark.parametrize(
    "text",
    [
        "What color is the STAR?",
        "what   color is the star ?",
        "Which way?\n(A) left\n(b) Right\n(C) up\n( D ) down",
        "Best option: (",
        "A red circle, a blue square; a dog.",
        "<|im_start|> user <video> Where? <|im_end|>",
        "",
    ],
)
def test_shipped_tokenizer_agrees(tokenizer, text: str) -> None:  # type: ignore[no-untyped-def]
    assert tokenizer(text)["input_ids"] == language.encode(text)


def test_case_and_punctuation_do_not_matter(tokenizer) -> None:  # type: ignore[no-untyped-def]
    assert tokenizer("What color is the Star?")["input_ids"] == tokenizer("what color is the star ?")["input_ids"]
    assert tokenizer("a circle")["input_ids"] != tokenizer("(a) circle")["input_ids"][1:3]  # article and letter differ
    assert tokenizer.decode(language.encode("a red circle moves left , a blue star moves up .")) == (
        "a red circle moves left, a blue star moves up."
    )
    assert tokenizer.decode(language.encode("(b)")) == "(B)"


def test_prompt(tokenizer) -> None:  # type: ignore[no-untyped-def]
    turn = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Where is the key?"}]}
    prompt = tokenizer.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
    assert prompt == "<|im_start|> user <video> Where is the key? <|im_end|> <|im_start|> assistant"
    assert prompt.count("<video>") == 1
    assert language.unknown_words(prompt) == []


def test_every_wording_and_answer_is_known() -> None:
    for wordings in WORDINGS.values():
        for wording in wordings:
            text = wording.format(shape="star", object="red star", thing="key", place="city")
            assert language.unknown_words(text) == []
    for seed in range(10):
        asker = Asker(film_timeline(2, seed), np.random.default_rng(seed))
        for question in filter(None, map(asker.ask, TASKS)):
            assert language.unknown_words(" ".join((question.answer, *question.wrong))) == []


def test_unknown_words_are_named_once_in_order() -> None:
    assert language.unknown_words("Is the Zebra red, or is the zebra a horse?") == ["zebra", "horse"]


def test_vocabulary_is_small_and_unique() -> None:
    assert len(set(language.VOCABULARY)) == len(language.VOCABULARY) <= 300


def test_light_parts_do_not_import_torch() -> None:
    code = (
        "import sys, videoprune.demo, videoprune.demo.language as l, videoprune.demo.film, videoprune.demo.benchmark;"
        "l.unknown_words('a cat'); sys.exit(bool({'torch', 'transformers', 'tokenizers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
