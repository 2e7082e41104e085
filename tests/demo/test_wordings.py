"""The training grammar, what it may lose, and hand-written wordings that it does not contain."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from videoprune.demo import language
from videoprune.demo.film import film_timeline
from videoprune.demo.questions import TASKS, WORDINGS, Question
from videoprune.demo.training.asking import FIRST, SECOND, Examiner, Mix, WideAsker
from videoprune.demo.training.evaluate import Film
from videoprune.demo.training.understood import paired, trained_on
from videoprune.demo.training.wordings import ENDINGS, GRAMMAR, OPENINGS, bare, known, pattern, usable, vary

HAND = json.loads((Path(__file__).parent / "wordings.json").read_text(encoding="utf-8"))
PARTS = {"shape": "star", "object": "red star", "thing": "key", "place": "city"}


def test_vary_takes_one_part_of_each_choice() -> None:
    rng = np.random.default_rng(0)
    seen = {vary("[In|At] the {place}[ scene|], now?", rng) for _ in range(60)}
    assert seen == {f"{a} the {{place}}{b}, now?" for a in ("In", "At") for b in (" scene", "")}
    assert vary("What [|] follows?", rng) == "What follows?"


def test_what_needs_unknown_words_is_left_out() -> None:
    assert known("What [is|zebra|] at the {place}?") == "What [is|] at the {place}?"
    assert known("What [zebra|horse] is it?") is None
    assert known("Zebra, what is it?") is None


@pytest.mark.parametrize("kind", GRAMMAR)
def test_grammar_speaks_the_vocabulary_and_is_recognised(kind: str) -> None:
    rng = np.random.default_rng(1)
    assert len(usable(GRAMMAR[kind])) >= 3
    for template in usable(GRAMMAR[kind]):
        for _ in range(5):
            text = vary(template, rng).format(**PARTS)
            assert language.unknown_words(text) == []
            assert pattern(template).fullmatch(bare(text)), (template, text)
    assert not any(language.unknown_words(vary(t, rng)) for t in (*usable(OPENINGS), *usable(ENDINGS)))


def test_hand_written_wordings_are_twenty_a_kind_and_not_trained_on() -> None:
    count = {kind: len(set(texts)) for kind, texts in HAND.items()}
    assert set(count) == set(WORDINGS)
    assert count.pop("order_first") + count.pop("order_last") == 20
    assert set(count.values()) == {20}
    assert [(kind, t) for kind, texts in HAND.items() for t in texts if trained_on(t, kind)] == []
    assert trained_on("What color is the {shape}?", "colour")
    assert trained_on("what is seen next after  the {object}.", "after")


def test_a_pair_asks_the_same_thing_in_other_words() -> None:
    import torch

    film = Film(5, film_timeline(2, 5), 0.0, torch.zeros(1))
    for kind in TASKS:
        for number in range(3):
            pair = paired(film, kind, HAND, number)
            if pair is not None:
                usual, other = pair
                assert usual.answer == other.answer
                assert usual.evidence == other.evidence
                assert usual.text != other.text


def test_the_first_course_asks_in_the_films_wordings_only() -> None:
    timeline = film_timeline(2, 3)
    asker = WideAsker(timeline, np.random.default_rng(2), wide=0.0)
    for kind in TASKS:
        question = asker.ask(kind)
        if question is not None:
            names = [name for name in WORDINGS if name.startswith(kind)]
            assert any(pattern(t).fullmatch(bare(question.text)) for n in names for t in WORDINGS[n])
    assert FIRST.wide == FIRST.lost == FIRST.short_names == 0 < SECOND.wide


def test_short_names_are_used_where_they_are_clear() -> None:
    examiner = Examiner(np.random.default_rng(3), Mix(short_names=1.0))
    asked = Question("direction", "Which way does the red star move?", "left", (), ((0.0, 1.0),))
    assert examiner.shorten(asked, {"star": 1}).text == "Which way does the star move?"
    assert examiner.shorten(asked, {"star": 2}) is asked
    counted = Question("count", "How many times does the red star appear?", "one", (), ())
    assert examiner.shorten(counted, {"star": 1}) is counted  # red stars are counted, not stars


def test_lost_words_are_little_ones() -> None:
    examiner = Examiner(np.random.default_rng(4), Mix(lost=0.9))
    text = "What happens right after the red star appears in the video?"
    kept = {language.WORD_ID[w] for w in ("after", "red", "star", "?")}
    shorter = [examiner.words(text) for _ in range(20)]
    assert all(kept <= set(ids) for ids in shorter)
    assert min(map(len, shorter)) < len(language.encode(text))
    assert Examiner(np.random.default_rng(4), FIRST).words(text) == language.encode(text)


def test_lettered_questions_have_one_right_letter() -> None:
    examiner = Examiner(np.random.default_rng(5), Mix(letters=1.0, lost=0.0))
    decode = language.VOCABULARY
    for _ in range(20):
        written = examiner.write(examiner.look_up())
        assert written.lettered
        words = [decode[i] for i in written.prompt]
        letter = next(decode[i] for i in written.answer if decode[i] in language.LETTERS)
        assert language.LETTERS[written.right] == letter
        wanted = words[words.index("is") + 1 : words.index("?")]
        at = words.index(letter, words.index("?"))
        assert words[at + 2 : at + 2 + len(wanted)] == wanted  # "( A ) the text"
        spelt = [word for word, option in zip(words, written.options, strict=True) if option == written.right]
        assert spelt == wanted
        assert set(written.options) == {-1, 0, 1, 2, 3}


def test_a_free_question_spells_no_option() -> None:
    examiner = Examiner(np.random.default_rng(6), Mix(letters=0.0))
    written = examiner.write(Question("colour", "What color is the star?", "red", ("blue", "green", "white"), ()))
    assert not written.lettered
    assert set(written.options) == {-1}
