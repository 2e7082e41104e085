"""From a watched film and its answers to what a report shows: one object as data, and the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from videoprune.errors import FilmError, UsageError
from videoprune.report.frames import seen
from videoprune.report.page import PageData, Shown, page
from videoprune.report.pictures import cell_states, kept_strip, spread

if TYPE_CHECKING:
    from videoprune.answer import Answer
    from videoprune.watched import Video

SHOWN = 96  # frames on a page, at most; those of the evidence are always among them


def result(video: Video, answers: Sequence[Answer], dense: Sequence[Answer] = ()) -> dict[str, Any]:
    """The object that `videoprune ask --json` prints."""
    pipe = video.pipeline
    return {
        "film": video.film,
        "model": pipe.model_name,
        "recipe": pipe.recipe.name,
        "overrides": list(pipe.recipe.overrides),
        "digest": pipe.recipe.digest(),
        "warnings": list(video.warnings),
        "watch": {"seconds": video.seconds, "flops": video.flops},
        "answers": [answer.to_dict() for answer in answers],
        **({"compare": [answer.to_dict() for answer in dense]} if dense else {}),
    }


def shown_frames(video: Video, answers: Sequence[Answer], most: int = SHOWN) -> list[int]:
    """Numbers of the frames to show: evenly spread, and the answers' evidence."""
    seconds = video.tokens.frame_seconds.cpu().numpy()
    evidence = {int(np.abs(seconds - each["seconds"]).argmin()) for answer in answers for each in answer.evidence}
    return sorted(set(spread(len(seconds), most)) | evidence)


def page_data(video: Video, answers: Sequence[Answer], dense: Sequence[Answer] = (), most: int = SHOWN) -> PageData:
    """What the page shows: cells by what reaches the last decoder layer of the first answer. The film is read once more."""
    tokens, first = answers[0].tokens, answers[0]
    wanted = shown_frames(video, answers, most)
    try:
        pictures = seen(video, wanted)
    except FilmError:  # a film that was watched before may be gone
        pictures = {}
    states = cell_states(tokens, _reaching(first))
    events = video.events.frame_event.cpu().numpy()
    seconds = tokens.frame_seconds.cpu().numpy()
    return PageData(
        result=result(video, answers, dense),
        frames=[Shown(n, float(seconds[n]), int(events[n]), pictures.get(n), states[n]) for n in wanted],
        bounds=video.events.bounds.cpu().numpy(),
        frame_seconds=seconds,
        similarity=_numpy(video.events.similarity),
        relevance=[_numpy(answer.run.relevance) if answer.run else None for answer in answers],
        key=[_numpy(answer.run.events.key) if answer.run else None for answer in answers],
        tokens_by_layer=[answer.report.tokens_by_layer for answer in answers],
    )


def write_page(path: Path, video: Video, answers: Sequence[Answer], dense: Sequence[Answer] = ()) -> None:
    """Write the HTML report.

    Raises:
        UsageError: the file can't be written.
    """
    text = page(page_data(video, answers, dense))
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"--report {path}: can't be written ({error.strerror}); give a file in a folder that is there"
        ) from error


def kept_picture(video: Video, answer: Answer | None, most: int = 24, columns: int = 8) -> Image.Image:
    """The strip of `videoprune show`: what enters the language model, or what reaches its last layer for one question."""
    tokens = video.tokens if answer is None else answer.tokens
    wanted = spread(tokens.frames, most)
    pictures = seen(video, wanted)
    owner = None if answer is None else _reaching(answer)
    return kept_strip([pictures[n] for n in wanted], owner, tokens, wanted, columns=columns)


def _reaching(answer: Answer) -> np.ndarray:
    """(T0,) the ledger's owners, -1 where the row that stands for a token was dropped inside the language model."""
    owner = answer.tokens.owner.cpu().numpy()
    alive = np.zeros(len(answer.tokens) + 1, dtype=bool)
    alive[answer.alive.cpu().numpy()] = True
    return np.where(alive[owner], owner, -1)


def _numpy(tensor: Tensor | None) -> np.ndarray | None:
    return None if tensor is None else tensor.detach().float().cpu().numpy()
