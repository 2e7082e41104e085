"""What every host does once a prompt is laid out: read it, answer it, score replies to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from videoprune.models.cache import Past
from videoprune.models.generation import Generation, Scored, generate, read, score
from videoprune.models.session import Session
from videoprune.models.shortage import told

if TYPE_CHECKING:
    from videoprune.models.host import Host, Prompt


class Answering:
    """The part of a host that runs the language model; `Host` is the only class that has it."""

    @torch.no_grad()
    def generate(self, prompt: Prompt, session: Session, max_new_tokens: int = 64, logits: bool = False) -> Generation:
        """Greedy stock `generate()` under the session; one at a time on one model.

        Where the session continues a cache, `prompt` is the whole conversation; what the cache has seen is not read again.

        Raises:
            UsageError: the checkpoint's generation_config asks for what is not supported.
        """
        with told(_host(self), prompt.embeddings.shape[1], session):
            return generate(_host(self), [prompt], [session], max_new_tokens, logits)[0]

    @torch.no_grad()
    def generate_batch(
        self, prompts: Sequence[Prompt], sessions: Sequence[Session], max_new_tokens: int = 64, logits: bool = False
    ) -> list[Generation]:
        """As `generate`, several prompts of one length in one batch; the seconds of each are its share.

        Raises:
            Uneven: methods made them unequal; run them one by one.
        """
        with told(_host(self), sum(prompt.embeddings.shape[1] for prompt in prompts), sessions[0]):
            return generate(_host(self), prompts, sessions, max_new_tokens, logits)

    @torch.no_grad()
    def read(self, prompt: Prompt, session: Session, rows: int) -> tuple[Past, float]:
        """Read the first `rows` rows of a prompt, its visual block among them: a cache to continue from, and seconds."""
        with told(_host(self), prompt.embeddings.shape[1], session):
            return read(_host(self), prompt, session, rows)

    @torch.no_grad()
    def score(self, prompt: Prompt, session: Session, replies: Sequence[Tensor]) -> Scored:
        """Log-probabilities of the token ids (n,) of each reply behind one prompt, which is read once.

        Decode methods act when the prompt was read, and not while replies are scored.
        """
        with told(_host(self), prompt.embeddings.shape[1], session):
            return score(_host(self), prompt, session, replies)


def _host(answering: Answering) -> Host:
    return cast("Host", answering)
