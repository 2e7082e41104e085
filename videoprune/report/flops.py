"""Analytic FLOPs and key/value bytes, in plain numbers.

The convention, used everywhere in this project:

- 2 FLOPs per multiply-add of a matrix product.
- `linear`: query, key, value and output projections, MLP, patch embedding, projector, `lm_head`.
- `attention`: q·kᵀ and p·v over the full rectangle of queries and keys, the masked half of a causal prefill included.
- `lm_head` is a stage of its own, so that it can be left out where a paper leaves it out.
- Not counted: biases, norms, activations, softmax, rotary angles, pooling, sorting and all else element by element.

Papers mix conventions (multiply-adds instead of FLOPs, half the rectangle, MLP alone); with `linear` and `attention`
apart, their figures can be matched. `torch.utils.flop_counter` counts exactly the same under
`sdpa_kernel(SDPBackend.MATH)` with transformers 5.23; a release that takes rotary angles by a matrix product adds
`head_dim` FLOPs for each position of a call, which stay out here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Cost:
    """FLOPs of some work; costs add up, and `cost * n` is the cost of doing it n times."""

    linear: float = 0.0
    attention: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.linear + other.linear, self.attention + other.attention)

    def __radd__(self, other: int) -> Cost:
        """Let `sum(costs)` work, which starts from 0."""
        return self if other == 0 else NotImplemented

    def __mul__(self, times: float) -> Cost:
        return Cost(self.linear * times, self.attention * times)

    __rmul__ = __mul__

    @property
    def total(self) -> float:
        """Both parts together."""
        return self.linear + self.attention

    def to_dict(self) -> dict[str, float]:
        """`linear`, `attention` and `total`, as the JSON shows them."""
        return {"linear": self.linear, "attention": self.attention, "total": self.total}


@dataclass(frozen=True)
class TransformerShape:
    """What of a transformer decides its cost.

    Attributes:
        layers: layers of the whole stack.
        width: D, of the residual stream.
        mlp: hidden width of the MLP.
        heads, kv_heads: query heads and key/value heads (equal without grouped queries).
        head_dim: d of one head; heads * head_dim need not be the width.
        gated_mlp: three matrices (gate, up, down) instead of two.
    """

    layers: int
    width: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    gated_mlp: bool


def layer_cost(shape: TransformerShape, queries: int, keys: int) -> Cost:
    """One layer that `queries` rows enter and that sees `keys` keys, those of the new rows included.

    Keys and values are projected for the new rows alone; older ones come from the cache.
    """
    q_width, kv_width = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    projections = 2 * shape.width * q_width + 2 * shape.width * kv_width  # q and o, k and v
    mlp = (3 if shape.gated_mlp else 2) * shape.width * shape.mlp
    return Cost(linear=2.0 * queries * (projections + mlp), attention=4.0 * queries * keys * q_width)


def decoder_cost(shape: TransformerShape, queries: Sequence[int], keys: Sequence[int]) -> Cost:
    """One forward call of the decoder: prefill, or one step.

    Args:
        queries: (L,) rows that enter each layer.
        keys: (L,) keys that they see there.

    Raises:
        ValueError: where the lists have not one entry a layer: a short one would silently undercount.
    """
    if len(queries) != shape.layers or len(keys) != shape.layers:
        raise ValueError(
            f"decoder_cost: {len(queries)} query and {len(keys)} key counts for "
            f"{shape.layers} layers; one of each a layer is needed"
        )
    return sum((layer_cost(shape, q, k) for q, k in zip(queries, keys, strict=True)), Cost())


def tower_cost(shape: TransformerShape, lengths: Sequence[int], frames: int) -> Cost:
    """The layers of a vision tower for `frames` frames of equal counts; each frame attends to itself alone.

    Args:
        lengths: patches of one frame, [CLS] included where there is one, that enter each layer that runs; it is shorter
            than the stack where the host reads an inner layer.

    Raises:
        ValueError: where more layers would run than the tower has.
    """
    if len(lengths) > shape.layers:
        raise ValueError(
            f"tower_cost: {len(lengths)} lengths for a tower of {shape.layers} layers; give one for each that runs"
        )
    return sum((layer_cost(shape, n, n) for n in lengths), Cost()) * frames


def patch_embed_cost(patches: int, patch_dim: int, width: int, frames: int) -> Cost:
    """Pixels to patches: `patch_dim` numbers (channels x height x width of a patch) to `width`, without [CLS]."""
    return Cost(linear=2.0 * frames * patches * patch_dim * width)


def mlp_cost(rows: int, widths: Sequence[int]) -> Cost:
    """A chain of matrices over `rows` rows; a projector from 128 over 192 to 192 has widths (128, 192, 192)."""
    return Cost(linear=2.0 * rows * sum(a * b for a, b in pairwise(widths)))


def lm_head_cost(rows: int, width: int, vocab: int) -> Cost:
    """Logits of `rows` rows; generation takes those of the last row alone."""
    return Cost(linear=2.0 * rows * width * vocab)


def attention_rows_cost(shape: TransformerShape, rows: int, keys: int) -> Cost:
    """Scores of chosen query rows recomputed in one layer: their query projection and q·kᵀ; the keys are at hand."""
    q_width = shape.heads * shape.head_dim
    return Cost(linear=2.0 * rows * shape.width * q_width, attention=2.0 * rows * keys * q_width)


def kv_bytes(entries: Sequence[int], shape: TransformerShape, bytes_per_number: int) -> int:
    """Bytes of the keys and values of all layers; `entries` (L,) are the cache's lengths, the same for every head."""
    return 2 * sum(entries) * shape.kv_heads * shape.head_dim * bytes_per_number
