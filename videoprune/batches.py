"""Several films at a time: prompts that stay equally long are read and decoded as one batch, the others one by one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from videoprune.answer import Answer, check_question
from videoprune.asking import Asked, prepare
from videoprune.errors import UsageError
from videoprune.models.cache import Uneven
from videoprune.watched import Video

if TYPE_CHECKING:
    from videoprune.pipeline import Pipeline

Film = str | os.PathLike[str] | Video


@torch.no_grad()
def ask_batch(
    pipe: Pipeline, pairs: Sequence[tuple[Film, str]], size: int, logits: bool, watch: dict[str, Any]
) -> list[Answer]:
    """See `Pipeline.ask_batch`."""
    if size < 1:
        raise UsageError(f"size: {size} is given; allowed are 1 and more prompts at a time")
    questions = [check_question(question) for _, question in pairs]
    answers: dict[int, Answer] = {}
    waiting: dict[tuple[int, ...], list[tuple[int, Asked]]] = {}
    varies = pipe.stages.varies()
    for number, video in enumerate(_videos(pipe, [film for film, _ in pairs], watch)):
        asked = prepare(video, questions[number])
        if varies is not None:
            answers[number] = _alone(asked, f"{varies} keeps as many as the data says", logits)
            continue
        like = waiting.setdefault(_lengths(asked), [])
        like.append((number, asked))
        if len(like) == size:
            answers |= _together(like, logits)
            like.clear()
    for like in waiting.values():
        answers |= _together(like, logits)
    return [answers[number] for number in range(len(pairs))]


def _videos(pipe: Pipeline, films: Sequence[Film], watch: dict[str, Any]) -> Iterator[Video]:
    """Each film watched, one that comes again right behind itself only once."""
    last: tuple[Film, Video] | None = None
    for film in films:
        if isinstance(film, Video):
            if film.pipeline is not pipe:
                raise UsageError(
                    f"film {film.film}: it was watched by another pipeline; give its path, or watch it with this one"
                )
            yield film
            continue
        if last is None or last[0] != film:
            last = film, pipe.watch(film, **watch)
        yield last[1]


def _lengths(asked: Asked) -> tuple[int, ...]:
    """What has to be equal in a batch."""
    prompt, tokens = asked.prompt, asked.tokens
    return (*prompt.embeddings.shape, *prompt.position_ids.shape, prompt.visual.stop, len(tokens), tokens.frames)


def _together(like: list[tuple[int, Asked]], logits: bool) -> dict[int, Answer]:
    """Answers to prompts of one length, by their numbers."""
    if not like:
        return {}
    if len(like) == 1:
        return {like[0][0]: _alone(like[0][1], "no other prompt is as long", logits)}
    pipe = like[0][1].video.pipeline
    try:
        found = pipe.host.generate_batch(
            [asked.prompt for _, asked in like],
            [asked.session() for _, asked in like],
            pipe.recipe.max_new_tokens,
            logits=logits,
        )
    except Uneven:
        return {number: _alone(asked, "counts turned out unequal", logits) for number, asked in like}
    answers = {}
    for (number, asked), generation in zip(like, found, strict=True):
        reason = "prompts and counts are equally long; seconds are shares of the batch's"
        asked.choices.append({"name": "batch", "value": str(len(like)), "reason": reason})
        answers[number] = asked.answer(generation)
    return answers


def _alone(asked: Asked, reason: str, logits: bool) -> Answer:
    pipe = asked.video.pipeline
    asked.choices.append({"name": "batch", "value": "1", "reason": reason})
    generation = pipe.host.generate(asked.prompt, asked.session(), pipe.recipe.max_new_tokens, logits=logits)
    return asked.answer(generation)
