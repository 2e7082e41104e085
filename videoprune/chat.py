"""A conversation about one film: a further question continues the cache where no stage looked at the question before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from videoprune.answer import Answer, Choice, Progress, check_question, silent
from videoprune.asking import Asked, prepare
from videoprune.models.session import Session

if TYPE_CHECKING:
    from videoprune.watched import Video


class Chat:
    """Questions in turn, each read with what was asked and answered before.

    Under a recipe whose stages look at no question behind the stored tokens, the cache of one turn serves the next: only the
    new question is read. Else what was dropped was dropped for the question before, and every turn reads the film again
    from the watched tokens. `answer.report.choices` says which, under the name "turn".

    Attributes:
        video: the film.
        turns: the answers so far, in order.
    """

    def __init__(self, video: Video) -> None:
        self.video = video
        self.turns: list[Answer] = []
        self._last: tuple[Asked, Session] | None = None

    @torch.no_grad()
    def ask(self, question: str, *, progress: Progress | None = None, logits: bool = False) -> Answer:
        """Ask the next question; keywords as for `Video.ask`.

        A turn that fails changes nothing: the conversation goes on from the one before.

        Raises:
            UsageError: an empty question, control tokens in it, or a conversation longer than the model's context.
        """
        pipe, tell = self.video.pipeline, progress or silent
        history = [(pipe.host.phrase(turn.question), turn.ids) for turn in self.turns]
        asked = prepare(self.video, check_question(question), history)
        tell("merge", 1, 1)
        session, choice = self._session(asked)
        continued = session.past.rows if session.past is not None else 0
        generation = pipe.host.generate(asked.prompt, session, pipe.recipe.max_new_tokens, logits=logits)
        tell("answer", 1, 1)
        asked.choices += [choice] if self.turns else []
        answer = asked.answer(generation, continued=continued)
        self.turns.append(answer)
        self._last = (asked, session)
        return answer

    def _session(self, asked: Asked) -> tuple[Session, Choice]:
        """A session that continues the last turn's cache, or one that reads the film again, with the reason."""
        looks = self.video.pipeline.stages.needs_question()
        anew: Choice = {"name": "turn", "value": "read anew", "reason": f"{looks} looks at the question"}
        if self._last is None or looks is not None:
            return asked.session(), anew
        before, last = self._last
        past, seen = last.left, before.prompt.embeddings.shape[1]
        if past is None or not torch.equal(asked.prompt.position_ids[..., :seen], before.prompt.position_ids):
            return asked.session(), {**anew, "reason": "positions were renumbered to fit the context"}
        session = asked.session(past, last.trace.continued())
        session.decode = last.decode  # states go on: budgets are of the whole conversation
        continues: Choice = {
            "name": "turn",
            "value": "continued",
            "reason": f"no stage looks at the question; {past.rows} rows were read before",
        }
        return session, continues
