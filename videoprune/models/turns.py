"""Further turns of a conversation: what stands between one answer and the next, from the chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from videoprune.models.generation import check_text, end_of_turn
from videoprune.models.host import QUESTION, Host, Prompt
from videoprune.tokens import VisualTokens

if TYPE_CHECKING:
    from videoprune.answer import Choice

ANSWER = (
    "\N{REPLACEMENT CHARACTER}answer\N{REPLACEMENT CHARACTER}"  # stands for the answer while the template is rendered
)
FIRST = "\N{REPLACEMENT CHARACTER}first\N{REPLACEMENT CHARACTER}"  # and for the first question
ANCHOR = "a"  # a text to stand behind while the next turn is tokenised: some tokenizers treat the start of a text apart


def next_turn(host: Host) -> str:
    """The text behind an answer up to the next one, the end of the turn included, `QUESTION` where the question goes.

    From the checkpoint's chat template where that is what the first turn's prompt follows, else the family's own.
    """
    closing = host.template()[1].partition(QUESTION)[2]
    for medium in ("video", "image"):
        for answer in ([{"type": "text", "text": ANSWER}], ANSWER):
            tail = _rendered(host.tokenizer, medium, answer)
            if tail is not None and tail.partition(QUESTION)[2] == closing:
                return tail
    return host.next_turn


def _rendered(tokenizer: Any, medium: str, answer: Any) -> str | None:
    """What a chat template writes behind the first answer of two; None where it cannot."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    further: Any = [{"type": "text", "text": QUESTION}] if isinstance(answer, list) else QUESTION
    turns = [
        {"role": "user", "content": [{"type": medium}, {"type": "text", "text": FIRST}]},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": further},
    ]
    try:
        text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except Exception:  # a template for other content fails in a way of its own
        return None
    _, found, tail = text.partition(ANSWER)
    return tail if found and tail.count(QUESTION) == 1 and FIRST in text else None


def next_ids(host: Host, question: str) -> Tensor:
    """(n,) token ids behind an answer up to the next one.

    Raises:
        UsageError: a control token in the question.
    """
    check_text(host.tokenizer, question, "question")
    text = next_turn(host).replace(QUESTION, question)

    def ids(of: str) -> list[int]:
        found: list[int] = host.tokenizer(of, add_special_tokens=False)["input_ids"]
        return found

    anchor, whole = ids(ANCHOR), ids(ANCHOR + text)
    own = whole[len(anchor) :] if whole[: len(anchor)] == anchor else ids(text)
    return torch.tensor(own, device=host.device, dtype=torch.int64)


def conversation(
    host: Host, history: Sequence[tuple[str, Sequence[int]]], question: str, tokens: VisualTokens
) -> tuple[Prompt, list[Choice]]:
    """The prompt of a further question: the film, what was asked and answered, and the question.

    Args:
        host: the model.
        history: earlier questions as the model read them, with the token ids of their answers.
        question: as the model is used to reading it.
        tokens: visual tokens as they enter the language model.

    Raises:
        UsageError: control tokens in the question, or more tokens than the model's context.
    """
    if not history:
        return host.prompt(question, tokens)
    before, first = host.prompt_ids(history[0][0])
    questions = [*(asked for asked, _ in history[1:]), question]
    end, parts = end_of_turn(host), [first]
    for (_, answer), following in zip(history, questions, strict=True):
        said = list(answer[:-1]) if answer and answer[-1] == end else list(answer)  # the template writes the end itself
        parts += [torch.tensor(said, device=host.device, dtype=torch.int64), next_ids(host, following)]
    return host.lay_out(before, torch.cat(parts), tokens, host.question_ids(question))
