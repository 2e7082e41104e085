"""EntropyPrune: visual tokens whose query heads say the same leave; what differs is measured by matrix entropy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.checks import check_count, check_range, scale_layers
from videoprune.errors import UsageError
from videoprune.layer_method import Kept, PrefillMethod, PrefillState, PrefillView
from videoprune.ops.attention import keep_best
from videoprune.run import Run


def head_entropy(query: Tensor, normalise: bool = False) -> Tensor:
    """-Σ λ ln λ / ln H of the Gram matrix of a token's query heads, which are first centred on their mean.

    Args:
        query: (H, N, d).
        normalise: divide the eigenvalues by their sum, which makes it the von Neumann entropy; the authors do not, so that
            for them a token of large queries scores low.

    Returns:
        (N,) float32.
    """
    heads = query.shape[0]
    entropies = []
    for part in query.transpose(0, 1).split(8192):
        centred = part.float() - part.float().mean(dim=1, keepdim=True)
        spectrum = torch.linalg.eigvalsh(centred @ centred.transpose(1, 2) / heads).clamp(min=1e-10)
        if normalise:
            spectrum = spectrum / spectrum.sum(dim=1, keepdim=True)
        entropies.append(-(spectrum * spectrum.log()).sum(dim=1) / math.log(max(heads, 2)))
    return torch.cat(entropies)


@dataclass(frozen=True, kw_only=True)
class EntropyPrune(PrefillMethod):
    """One cut by the entropy of the query heads (arXiv 2602.17196).

    Args:
        keep: share or count that stays; None computes it from `average`.
        average: mean share of the visual tokens over all layers: (L·average - layer)/(L - layer) of them stay. The
            default is the authors' 192 of 576, which leaves 166.
        layer: the tokens leave before this layer of `paper_depth`; scaled, and never before layer 1.
        normalise: see `head_entropy`.
        paper_depth: depth that `layer` is given for.
    """

    paper = "arXiv 2602.17196"
    scope = "video"
    needs_question = False
    fixed_count = True
    attention = "none"
    search = (("keep", 0.02, 0.98), ("average", 0.1, 0.9))
    reads_text = False

    average: float = 1 / 3
    layer: int = 2
    normalise: bool = False
    paper_depth: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("average", self.average, 0, 1, open_low=True)
        check_count("paper_depth", self.paper_depth)
        check_count("layer", self.layer)
        if not isinstance(self.normalise, bool):
            raise UsageError(f"normalise: {self.normalise!r} is given; allowed are true and false")
        check_range("layer", self.layer, 1, self.paper_depth - 1)

    def start(self, run: Run, layers: int) -> PrefillState:
        """Fresh state with one pruning point; refuses an average that the layers in front of it already exceed."""
        layer = max(1, scale_layers((self.layer,), self.paper_depth, layers)[0])
        share = (layers * self.average - layer) / (layers - layer) if layers > layer else 0.0
        if self.keep is None and share <= 0:
            raise UsageError(
                f"average: {self.average} is given; the {layer} of {layers} layers that see every token allow more than "
                f"{layer / layers:.3g}: give more, or give `keep`"
            )
        return _State(self, layer, share)


class _State(PrefillState):
    def __init__(self, method: EntropyPrune, layer: int, share: float) -> None:
        self.method, self.share, self.at = method, share, frozenset({layer - 1})

    def after(self, view: PrefillView) -> Kept | None:
        method, total = self.method, len(view.visual)
        count = method.count(total)
        if method.keep is None:
            count = min(count, max(int(self.share * total + 1e-9), 1))
        if count >= total:
            return None
        return Kept(keep_best(head_entropy(view.query()[:, view.visual], method.normalise), count))
