"""Question relevance from a contrastive text-image model (CLIP or SigLIP), as METok does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from videoprune.errors import UsageError
from videoprune.method import RelevanceMethod, RelevanceView


@dataclass(frozen=True, kw_only=True)
class Contrastive(RelevanceMethod):
    """Cosine of the pooled text embedding and each frame's pooled image embedding.

    The text is cut in chunks of the text tower's length, each encoded, then the elementwise maximum is taken over the
    chunks (METok's code). Only the question is given to it, not the chat template.

    Args:
        model: folder or hub name of a CLIP or SigLIP checkpoint.
    """

    paper = "arXiv 2506.02850 (METok, stage 1)"
    scope = "video"
    needs_question = True
    model: str = ""

    def __post_init__(self) -> None:
        if not self.model:
            raise UsageError(
                "model: nothing is given; name a CLIP or SigLIP checkpoint (folder or hub name), or use method: embedding"
            )

    def _scorer(self) -> Any:
        from videoprune.models.contrastive import load_contrastive

        return load_contrastive(self.model)

    def observe(self, images: Any) -> Tensor:
        return self._scorer().images(images)

    def score(self, view: RelevanceView) -> Tensor:
        if view.observed is None:
            raise UsageError("relevance: the film was watched without this scorer; watch it again with this recipe")
        text = self._scorer().text(view.text)
        return torch.nn.functional.cosine_similarity(
            view.observed.float(), text[None].float().to(view.observed.device), dim=1
        )
