"""Question relevance from the host alone: no second model, no pixels seen twice.

A projected visual token lives in the space of the language model's word embeddings, so their cosine tells whether a cell
shows what a word names. Ours; METok uses a text-image model (see `contrastive`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.checks import check_range
from videoprune.method import RelevanceMethod, RelevanceView


def frame_relevance(
    features: Tensor, frame: Tensor, frames: int, question: Tensor, vocabulary_mean: Tensor, sharpness: float = 1.0
) -> Tensor:
    """(F,) relevance of frames to a question.

    s[w, f] = max over the tokens i of frame f of cos(v_i - mean(v), e_w - mean(e));
    relevance[f] = sum over words w of (s[w, f] - mean over f)^sharpness where positive: a word that fits every frame
    equally ("the", "what") says nothing and cancels.

    Args:
        features: (T, D) visual tokens.
        frame: (T,) their frame.
        frames: F.
        question: (Q, D) word embeddings.
        vocabulary_mean: (D,).
        sharpness: exponent on a word's excess.
    """
    words = torch.nn.functional.normalize((question - vocabulary_mean).float(), dim=1)
    visual = features.float()
    visual = torch.nn.functional.normalize(visual - visual.mean(dim=0, keepdim=True), dim=1)
    cosine = visual @ words.T  # (T, Q)
    best = torch.full((frames, len(words)), -torch.inf, device=features.device)
    best = best.scatter_reduce(0, frame[:, None].expand(-1, len(words)), cosine, "amax")
    seen = torch.isfinite(best)
    mean = torch.where(seen, best, 0).sum(dim=0) / seen.sum(dim=0).clamp(min=1)
    excess = torch.where(seen, best - mean, 0).clamp(min=0)
    return (excess**sharpness).sum(dim=1)


@dataclass(frozen=True, kw_only=True)
class Embedding(RelevanceMethod):
    """Cosine of visual tokens with the question's word embeddings.

    Args:
        sharpness: exponent on the excess of a word's cosine over its mean, from 0.5 to 8; above 1 favours strong matches.
    """

    paper = "ours: the projector aligns visual tokens with word embeddings"
    scope = "video"
    needs_question = True
    sharpness: float = 2.0

    def __post_init__(self) -> None:
        check_range("sharpness", self.sharpness, 0.5, 8)

    def score(self, view: RelevanceView) -> Tensor:
        tokens = view.tokens
        return frame_relevance(
            tokens.features, tokens.frame, tokens.frames, view.question, view.vocabulary_mean, self.sharpness
        )
