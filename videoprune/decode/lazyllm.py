"""LazyLLM, second half: each decoded token chooses anew what the layers look at, and what waits comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.checks import check_percentiles, check_points, scale_layers
from videoprune.layer_method import DecodeMethod, DecodeState, DecodeView, Selected
from videoprune.ops.attention import keep_best
from videoprune.ops.schedule import percentile_counts
from videoprune.run import Run


def confidence(attention: Tensor, position: Tensor, tokens: int) -> Tensor:
    """How sure a layer is of each token: the new row's attention on it, mean over heads.

    Args:
        attention: (H, S) of that row, 0 where the layer did not look.
        position: (Hkv, S) int64, the token of each entry; heads may hold different ones.
        tokens: T, positions from there on are not counted.

    Returns:
        (T,) float32.
    """
    shares = attention.float().view(len(position), -1, position.shape[1]).sum(dim=1) / len(attention)
    total = torch.zeros(tokens + 1, device=shares.device)
    return total.index_add(0, position.clamp(max=tokens).flatten(), shares.flatten())[:tokens]


@dataclass(frozen=True, kw_only=True)
class LazyLLM(DecodeMethod):
    """Progressive choice in every decoding step, with revival (arXiv 2407.14057).

    Every step begins with all tokens of the prompt. Before each of the layers where LazyLLM's prefill stage acts, the new
    token's attention chooses which of them the further layers look at; the answer's own tokens are always looked at. A
    chosen token that a layer never saw comes back from where `prefill: lazyllm` parked it, is computed once a layer and
    cached. Nothing is evicted. Behind a prefill stage that parks nothing only the choice is left.

    With `keep` that share or count of the prompt's entries is looked at behind the last point, the percentiles stretched.

    Args:
        protect_text: always look at the prompt's text; it counts within the budget, and stays beyond it.
        layers, percentiles, paper_depth: as in LazyLLM's prefill stage, used only where that did not publish its own.
    """

    paper = "arXiv 2407.14057"
    scope = "video"
    needs_question = True
    fixed_count = False
    attention = "last row"

    protect_text: bool = False
    layers: Sequence[int] = (10, 19, 29)
    percentiles: Sequence[float] = (30, 30, 30)
    paper_depth: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "layers", check_points(self.layers, self.paper_depth))
        object.__setattr__(self, "percentiles", check_percentiles(self.percentiles, len(self.layers)))

    def start(self, run: Run, layers: int) -> DecodeState:
        """Fresh state; the prefill stage must have started before, so that its layers are known."""
        published = run.published.get("lazyllm.layers")
        if published is None:
            scaled = scale_layers(self.layers, self.paper_depth, layers)
            return _State(self, scaled, self.percentiles)
        return _State(self, published, run.published["lazyllm.percentiles"])


class _State(DecodeState):
    revives = True

    def __init__(self, method: LazyLLM, layers: Sequence[int], percentiles: Sequence[float]) -> None:
        self.method, self.percentiles = method, percentiles
        self.point = {layer - 1: number for number, layer in enumerate(layers)}
        self.counts: list[int] = []

    def after(self, view: DecodeView) -> Selected | None:
        if view.prefill or view.layer not in self.point:
            return None
        method, point, rows = self.method, self.point[view.layer], view.prompt_rows
        alive = _tokens(view.attended, view.position, rows).nonzero()[:, 0]
        if point == 0:
            final = None if method.keep is None else method.count(len(alive))
            self.counts = percentile_counts(len(alive), self.percentiles, final, method.at_most)
        protected = _tokens(view.text & method.protect_text, view.position, rows)[alive]
        count = min(len(alive), max(self.counts[point], int(protected.sum())))
        score = confidence(view.attention(1)[:, 0], view.position, rows)[alive]
        return Selected(alive[keep_best(score, count, protected)])


def _tokens(entries: Tensor | None, position: Tensor, tokens: int) -> Tensor:
    """(T,) bool, tokens of which some head holds one of `entries` (Hkv, S) bool, None all, at `position`."""
    there = torch.zeros(tokens + 1, dtype=torch.bool, device=position.device)
    there[(position if entries is None else position[entries]).clamp(max=tokens).flatten()] = True
    return there[:tokens]
