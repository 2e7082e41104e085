"""Each harness's prompt, reading and average, against numbers computed by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.evaluate import layouts
from tests.evaluate.runs import asked, row, write_run
from videoprune.errors import UsageError
from videoprune.evaluate import extract
from videoprune.evaluate.base import (
    BENCHMARKS,
    DEFAULT_PROTOCOLS,
    PROTOCOLS,
    Mark,
    Question,
    default_protocol,
    protocol,
    read,
)
from videoprune.evaluate.score import score
from videoprune.evaluate.subtitles import interleave, read_srt, seconds_of, shown_at
from videoprune.video import FilmInfo, FrameRule, StreamChoice, targets

SIX = ("red door", "green gate", "a car", "blue dress", "fifth thing", "sixth thing")

# (task, gold letter, what the model wrote, right by: mlvu-official, mlvu-lmms-eval, mlvu-vlmevalkit), read by hand
FIXED = [
    ("plotQA", "E", "E) because", (1, 0, 1)),  # lmms-eval knows no E
    ("plotQA", "F", "(F)", (1, 0, 1)),
    ("plotQA", "B", "B", (1, 1, 1)),
    ("plotQA", "C", "The answer is C.", (0, 1, 1)),  # no bracket: MLVU wants the letter alone
    ("needleQA", "A", "Best option: (A) red door", (1, 1, 1)),
    ("needleQA", "D", "a blue dress", (0, 0, 1)),  # VLMEvalKit finds the option's text
    ("order", "A", "", (0, 0, 0)),
    ("order", "B", "B.", (0, 1, 1)),
    ("order", "C", "A or C", (0, 0, 0)),  # lmms-eval: the start tells more than the end
    ("order", "E", "The answer is E", (0, 0, 1)),
    ("order", "D", "D", (1, 1, 1)),
]
# by hand: plotQA 3/4, needleQA 1/2, order 1/5 | 2/4, 1/2, 2/5 | 9 of 11 questions
HEADLINES = {
    "mlvu-official": (3 / 4 + 1 / 2 + 1 / 5) / 3,  # 0.48333
    "mlvu-lmms-eval": (2 / 4 + 1 / 2 + 2 / 5) / 3,  # 0.46667
    "mlvu-vlmevalkit": 9 / 11,  # 0.81818
}


def six(index: int) -> Question:
    task, gold, _, _ = FIXED[index]
    return asked(index, task, options=SIX, answer=SIX["ABCDEF".index(gold)])


@pytest.mark.parametrize("place", range(3))
def test_each_harness_reads_the_fixed_answers_as_by_hand(place: int) -> None:
    harness = protocol(list(HEADLINES)[place])
    found = [harness.correct(FIXED[index][2], six(index)) for index in range(len(FIXED))]
    assert found == [bool(right[place]) for *_, right in FIXED]


def test_the_same_predictions_give_each_harness_its_number(tmp_path: Path) -> None:
    rows = [row(six(index), text) for index, (_, _, text, _) in enumerate(FIXED)]
    run = write_run(tmp_path / "run", rows, benchmark="mlvu-test")
    for name, value in HEADLINES.items():
        result = score(run, protocol_name=name)
        assert result["headline"]["value"] == pytest.approx(value)
        assert result["headline"]["name"] == "M-Avg"
        assert result["protocol"]["name"] == name
        low, high = result["headline"]["interval"]
        assert low <= value <= high
    shares = score(run, protocol_name="mlvu-lmms-eval")["by"]["task"]
    assert [(line["name"], line["correct"], line["questions"]) for line in shares] == [
        ("plotQA", 2, 4), ("needleQA", 1, 2), ("order", 2, 5)
    ]  # fmt: skip


def test_published_test_row_becomes_the_other_harness_number() -> None:
    """LongVA's row of the MLVU test: mean of nine tasks 41.1, over all 502 questions 43.2."""
    counts = {"topic_reasoning": 91, "anomaly_reco": 39, "needleQA": 60, "ego": 53, "plotQA": 50, "sportsQA": 36}
    counts |= {"order": 70, "count": 60, "tutorialQA": 43}
    shares = dict(zip(counts, (81.3, 41.0, 46.7, 39.6, 46.0, 44.4, 17.1, 23.3, 30.2), strict=True))
    marks = []
    for task, count in counts.items():
        right = round(shares[task] * count / 100)
        marks += [Mark(task, place < right, benchmark="mlvu-test") for place in range(count)]
    assert 100 * protocol("mlvu-official").average(marks)["headline"] == pytest.approx(41.1, abs=0.05)
    assert 100 * protocol("mlvu-vlmevalkit").average(marks)["headline"] == pytest.approx(43.2, abs=0.05)


def test_vlmevalkit_leaves_order_out_of_the_dev_average() -> None:
    marks = [Mark("order", True, benchmark="mlvu")] * 3 + [Mark("ego", False, benchmark="mlvu")]
    average = protocol("mlvu-vlmevalkit").average(marks)
    assert (average["headline"], average["micro"], average["left_out"]) == (0.0, 0.75, ["order"])
    assert protocol("mlvu-official").average(marks)["headline"] == 0.5


def test_repeated_right_options() -> None:
    question = asked(0, options=("x", "y", "x", "x"), answer="x")
    right = {name: [protocol(name).correct(letter, question) for letter in "ABCD"] for name in HEADLINES}
    assert right["mlvu-official"] == right["mlvu-lmms-eval"] == [False, False, False, True]
    assert right["mlvu-vlmevalkit"] == [True, False, False, True]  # one of its two comparisons takes the first
    nowhere = asked(0, answer="none of them")
    assert not any(protocol(name).correct(letter, nowhere) for name in HEADLINES for letter in "ABCD")


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("B", 1),
        (" B\n", 1),
        ("(C) blue", 2),
        ("C) blue", 2),
        ("B.", None),
        ("b", None),
        ("", None),
        (")", None),
        ("E)", None),
    ],
)
def test_mlvu_reads_the_character_before_the_bracket(text: str, index: int | None) -> None:
    assert extract.before_bracket(text, 4) == index


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        # read with lmms-eval 0.7.3's own function
        ("E", ""), ("(F)", ""), ("The answer is E", ""), ("Apple", "A"), ("Best option: (C)", "C"), ("(A) or (B)", "B"),
        ("A cat, so (B)", "A"), ("I choose C, not D", "D"), ("b", ""), ("'D'", "D"), ("It is B: the dog", "B"), ("", ""),
    ],
)  # fmt: skip
def test_lmms_eval_reads_the_most_telling_letter(text: str, letter: str) -> None:
    index = extract.ranked_letter(text, "ABCD")
    assert ("" if index is None else "ABCD"[index]) == letter


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("The answer is (C).", 2), ("B. green", 1), ("I see a red door", 0), ("A or B", None), ("D " * 9, None),
        ("red door, green gate", None),
    ],
)  # fmt: skip
def test_vlmevalkit_without_a_judge(text: str, index: int | None) -> None:
    assert extract.toolkit(text, SIX[:4]) == index


def test_video_mme_reads_the_first_letter_and_drops_blanks() -> None:
    harness = protocol("video-mme")
    question = asked(0, options=("w", "x", "y", "z"), answer="y")
    assert [harness.extract(text, question) for text in ("C", "The best answer is: C.", "none", "Best option: (C)")] == [
        2, 2, None, 1  # its script leaves the B of "Best"
    ]  # fmt: skip
    marks = [Mark("a", True), Mark("a", False), Mark("b", False, blank=True)]
    assert harness.average(marks)["headline"] == 0.5
    assert replace(harness, blanks="wrong").average(marks)["headline"] == pytest.approx(1 / 3)


def test_longvideobench_draws_where_nothing_is_read_the_same_every_time() -> None:
    harness, strict = protocol("longvideobench"), protocol("longvideobench-strict")
    drawn = [harness.extract("no idea", asked(index)) for index in range(200)]
    assert drawn == [harness.extract("no idea", asked(index)) for index in range(200)]
    assert {drawn.count(place) > 25 for place in range(4)} == {True}
    assert strict.extract("no idea", asked(0)) is None
    assert strict.extract("Best option: E", asked(0, options=tuple("vwxyz"))) == 4


def test_plain_answers_spell_out_an_option() -> None:
    harness = protocol("plain")
    question = asked(0, options=("left", "right", "up left", "left"), answer="left")
    assert [harness.correct(text, question) for text in ("Left.", "it moves left", "up left", "right", "left or right")] == [
        True, True, False, False, False
    ]  # fmt: skip
    assert harness.prompt(question).flat() == "What about 0?"


def test_likelihoods() -> None:
    by_sum, by_mean = protocol("likelihood"), protocol("likelihood-mean")
    pairs = [(-3.0, 1), (-4.0, 4), (-3.0, 2)]
    assert (by_sum.choose(pairs), by_mean.choose(pairs)) == (0, 1)
    assert protocol("likelihood-letter").replies(asked(0)) == ("A", "B", "C", "D")
    assert by_sum.replies(asked(0)) == ("c0", "c1", "c2", "c3")
    with pytest.raises(UsageError, match="none are given"):
        by_sum.choose([])


def test_prompts() -> None:
    question = asked(0, options=("red", "blue"), answer="red")
    official = protocol("mlvu-official").prompt(question)
    assert official.text == "Question: What about 0?\nOptions:\n(A) red\n(B) blue\nOnly give the best option."
    assert official.prefix == "Best Option: ("
    assert official.flat().startswith("Carefully watch this video")
    assert official.flat().endswith("Only give the best option.\nBest Option: (")
    lmms = protocol("mlvu-lmms-eval")
    assert lmms.prompt(question).flat() == (
        "What about 0?\n(A) red\n(B) blue\nOnly give the best option.\nBest option: ("
    )
    assert lmms.prompt(asked(0, options=SIX)).flat().endswith("(F) sixth thing")
    assert protocol("video-mme").prompt(question).flat() == (
        "Select the best answer to the following multiple-choice question based on the video. Respond with only the letter "
        "(A, or B) of the correct option.\nWhat about 0?\nA. red\nB. blue\nThe best answer is:"
    )
    sentence = asked(0, "summary", options=(), answer="It rains.")
    assert protocol("mlvu-official").prompt(sentence).flat().endswith("answer the given questions.\nWhat about 0?")


def test_video_mme_takes_the_subtitles_at_the_sampled_frames(tmp_path: Path) -> None:
    question = read("video-mme", layouts.video_mme(tmp_path, "json")).questions[0]
    lines = read_srt(Path(question.extra["subtitles"]))
    assert [(line.start, line.end, line.text) for line in lines] == [
        (0.5, 2.0, "Hello there."),
        (10.0, 12.5, "A second line."),
    ]
    assert shown_at(lines, [0.0, 2.0, 11.0]) == ["A second line."]
    text = protocol("video-mme-subtitles").prompt(question, [1.0, 1.5, 30.0]).flat()
    assert text.startswith("This video's subtitles are listed below:\nHello there.\nSelect the best answer")
    assert "based on the video and the subtitles" in text
    silent = replace(question, extra={})
    assert "No subtitles available" in protocol("video-mme-subtitles").prompt(silent, [1.0]).flat()


def test_longvideobench_interleaves_as_its_loader(tmp_path: Path) -> None:
    first, second = read("longvideobench", layouts.longvideobench(tmp_path)).questions
    harness = protocol("longvideobench")
    prompted = harness.prompt(first, [0.0, 1.0, 5.0, 9.0])
    assert prompted.interleaved == ((1.25, "one"), (8.25, "two"))  # the second has no end: the film's, 12.5 s
    assert interleave([0.0, 1.0, 5.0, 9.0], prompted.interleaved) == [0, 1, "one", 2, "two", 3]
    assert prompted.flat().startswith("one\ntwo\nQuestion: When, 0?\nA. first")
    assert harness.prompt(second, [1.5]).interleaved == ((2.25, "later"),)  # 100 s are taken off
    assert harness.prompt(second, [200.0]).interleaved == ()
    assert seconds_of("01:02:03,500") == 3723.5


def test_official_index_counts_where_options_repeat(tmp_path: Path) -> None:
    question = asked(0, options=("x", "y", "x", "z"), answer="x", gold=0)
    assert (question.gold, protocol("video-mme").correct("A", question), protocol("video-mme").correct("C", question)) == (
        0, True, False
    )  # fmt: skip


def test_every_protocol_describes_itself_and_its_digest_sees_a_change() -> None:
    digests = {name: protocol(name).digest() for name in PROTOCOLS}
    assert len(set(digests.values())) == len(PROTOCOLS)
    for name in PROTOCOLS:
        harness = protocol(name)
        said = harness.describe()
        assert said["name"] == name
        assert said["digest"] == digests[name]
        json.dumps(said)
        for changed in (
            {"max_new_tokens": 17},
            {"averaging": "other"},
            {"version": 2},
            {"find": lambda text, question: 0},
        ):
            assert replace(harness, **changed).digest() != digests[name]
        assert replace(harness, notes=()).digest() == digests[name]
        assert set(harness.benchmarks) <= set(BENCHMARKS)
    assert {default_protocol(name).name for name in BENCHMARKS} == set(DEFAULT_PROTOCOLS.values())
    assert default_protocol("mlvu", "demo").name == "mlvu-official"
    assert default_protocol("mlvu-test", "demo").name == "plain"
    with pytest.raises(UsageError, match="did you mean 'mlvu-official'"):
        protocol("mlvu-oficial")


@pytest.mark.parametrize(
    ("length", "fps", "count"), [(100.0, 25.0, 8), (7.3, 30.0, 16), (60.0, 24000 / 1001, 32), (3.0, 2.0, 8)]
)
def test_frames_are_those_that_the_harness_takes(length: float, fps: float, count: int) -> None:
    """The seconds at which frames are looked at, turned back into numbers, against each harness's formula."""
    total = round(length * fps)
    info = FilmInfo(
        "film.mp4", "pyav", total / fps, fps, total, 8, 8, 0, "h264", "yuv420p", StreamChoice(1, 0, ""), {}, 0.0, 1
    )
    want = {
        "mlvu-lmms-eval": [int(value) for value in np.linspace(0, total - 1, count)],
        "mlvu-vlmevalkit": [int(i * (total / (count + 1))) for i in range(1, count + 1)],
    }
    taken = min(count, int(info.duration or 0))
    want["longvideobench"] = [int(int((info.duration or 0) * fps) / taken) * i for i in range(taken)]
    for name, numbers in want.items():
        rule = protocol(name).frame_rule(FrameRule(frames=count))
        found = np.floor(targets(info, rule) * fps + 1e-6).astype(int).tolist()
        assert found == sorted(set(numbers)), name
    assert protocol("mlvu-official").frame_rule(FrameRule(frames=count)) == FrameRule(frames=count)
    assert protocol("mlvu-lmms-eval").frame_rule(FrameRule(fps=1)) == FrameRule(fps=1)
    assert protocol("mlvu-lmms-eval").frame_rule(FrameRule(frames=4, spread="floor")).spread == "floor"
    for wrong in ({"frames": 4, "spread": "even"}, {"fps": 1, "spread": "ends"}):
        with pytest.raises(UsageError, match="spread"):
            FrameRule(**wrong)
