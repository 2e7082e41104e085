"""Reading the chosen option from what a model wrote, the way each harness does it; our own words for their rules.

Every function takes the text and the number of options (or their texts) and gives an index from 0, or None.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from videoprune.evaluate.base import LETTERS, Question

# Video-MME's script lacks two commas: "Best answer:" and "Best option:" became one phrase that no model writes, so the "B" of
# "Best option: (C)" is read as the answer
VIDEO_MME_LEADS = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option isThe correct option is",
    "Best answer:Best option:",
)
LONGVIDEOBENCH_LEADS = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option is",
    "The correct option is",
    "Best answer:",
    "Best option:",
)
WHAT = ("answer", "correct answer", "best answer", "correct option", "best option", "choice", "correct choice")
LMMS_EVAL_LEADS = (
    *(f"{who}{what} is" for what in WHAT for who in ("", "the ")),
    *("i choose", "i select", "i pick", "my answer is", "my choice is"),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)


def index_of(letter: str, count: int) -> int | None:
    """Index of a capital letter among the first `count`, None for anything else."""
    place = LETTERS.find(letter) if len(letter) == 1 else -1
    return place if 0 <= place < count else None


def before_bracket(text: str, count: int) -> int | None:
    """MLVU's own rule: the character before the first ")", else the whole text, has to be the letter."""
    text = text.strip()
    bracket = text.find(")")
    return index_of(text if bracket < 0 else text[max(bracket - 1, 0) : bracket], count)


def first_letter(text: str, count: int, leads: Sequence[str], letters: str) -> int | None:
    """The first of `letters` that is left when the phrases `leads` are cut out; the letter may be part of a word."""
    for lead in leads:
        text = text.replace(lead, "")
    found = re.search(f"[{letters}]", text)
    return index_of(found[0], count) if found else None


def ranked_letter(text: str, letters: str) -> int | None:
    """lmms-eval's rule (0.7): of all letters in the text the one in the most telling place wins, of equals the last.

    Places from the most telling: at the start, at the end, behind "the answer is" and the like, (A), A., A:, A), before a
    space, anywhere.
    """
    text = text.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    bare = text.strip()
    text = f" {text} "
    found: list[tuple[int, int, int]] = []  # rank, position, minus the letter's index: a tie goes to the first letter
    for index, letter in enumerate(letters):
        for rank, form in (
            (6, f"({letter})"),
            (5, f"{letter}."),
            (4, f"{letter}:"),
            (3, f"{letter})"),
            (2, f"{letter} "),
        ):
            if form in text:
                found.append((rank, text.rfind(form), -index))
        for lead in LMMS_EVAL_LEADS:
            start = text.lower().find(lead)
            place = text.find(letter, start + len(lead)) if start >= 0 else -1
            if place >= 0:
                found.append((7, place, -index))
        if bare.startswith(letter) and not bare[1:2].isalpha():
            found.append((10, 0, -index))
        if bare.endswith(letter) and not bare[-2:-1].isalpha():
            found.append((9, len(text), -index))
    if not found:
        found = [(0, text.rfind(letter), -index) for index, letter in enumerate(letters) if letter in text]
    return -max(found)[2] if found else None


def toolkit(text: str, options: Sequence[str]) -> int | None:
    """VLMEvalKit's rule without a judge ("exact matching"): MLVU's own rule; else the one letter that stands alone among the
    last five words; else the one option whose text is in the answer, where the answer is not longer than twice all options."""
    strict = before_bracket(text, len(options))
    if strict is not None:
        return strict
    words = re.sub(r"[.()\[\],:;!*#{}]", " ", text).split()
    alone = [index for index in range(len(options)) if LETTERS[index] in words]
    if len(alone) == 1 and words.index(LETTERS[alone[0]]) > len(words) - 5:
        return alone[0]
    lower = text.lower()
    if len(lower) > 2 * sum(map(len, options)):
        return None
    inside = [index for index, option in enumerate(options) if option.lower() in lower]
    return inside[0] if len(inside) == 1 else None


def plain_text(text: str) -> str:
    """Text for comparing: lower case, single spaces, no closing mark."""
    return " ".join(text.casefold().split()).rstrip(" .!?")


def option_text(text: str, question: Question) -> int | None:
    """The option that the answer spells out: equal to it, else the only one inside it as whole words (the longest, where one
    holds another). Options that read alike are one: the last of them stands for all."""
    said = plain_text(text)
    options = {plain_text(option): index for index, option in enumerate(question.options)}
    if said in options:
        return options[said]
    inside = [option for option in options if option and re.search(rf"(?<!\w){re.escape(option)}(?!\w)", said)]
    whole = [option for option in inside if not any(option != other and option in other for other in inside)]
    return options[whole[0]] if len(whole) == 1 else None
