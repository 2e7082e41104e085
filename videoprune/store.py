"""What is held of a film while it is watched: under a bound, whatever its length.

Chunks of visual tokens come in order. Without a bound they are joined at the end, and the question-blind merges act once on
the whole film. With one (`watch: {at_most: N}` of a recipe) no more than N tokens are stored at any time: merges that look at
one frame alone act on each chunk as it comes, and when the store is full, the first merge that remains is applied to what is
there, by its own rule:

- a method whose score of a token depends on the past alone (`MergeMethod.arrive`, as EVS) keeps the best of all that came, so
  that the end result is the same as without a bound, to the token;
- any other is applied to the block of frames that was compressed least, the oldest of those, halving it; all parts of the
  film then end within a factor of two of one density, without the end having been seen first.

The budget of that merge counts what came, not what is stored, so that `keep: 0.2` means the same with a bound and without.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from videoprune.errors import UsageError
from videoprune.method import MergeMethod
from videoprune.run import Events, Run
from videoprune.stages import merge
from videoprune.tokens import VisualTokens, budget

if TYPE_CHECKING:
    from videoprune.models.host import Host

BLOCK = 128  # frames that are compressed together where a method is applied to a part of the film
FEWEST = 2  # tokens of a block: a `keep` of 1 would mean all of them
SLACK = 4  # a full store is emptied by a quarter where that loses nothing, so that it is not emptied for every chunk


@dataclass(eq=False)
class Block:
    """Consecutive frames and how often they were compressed."""

    tokens: VisualTokens
    features: Tensor
    times: int = 0


class Store:
    """The visual tokens of the film so far.

    Args:
        methods: the question-blind merges, in order.
        segment: the segment method, none or one.
        host: for the merges.
        at_most: tokens held at any time; None for no bound.
        seed: for the methods that draw.

    Raises:
        UsageError: a bound, but no merge whose rule could hold it.
    """

    def __init__(
        self,
        methods: Sequence[MergeMethod],
        segment: Sequence[Any],
        host: Host,
        at_most: int | None = None,
        seed: int = 0,
    ) -> None:
        bounded = at_most is not None
        first = next((n for n, method in enumerate(methods) if not (bounded and _at_once(method))), len(methods))
        self.at_once, self.rest = tuple(methods[:first]), tuple(methods[first:])
        if bounded and not self.rest:
            raise UsageError(
                f"watch.at_most: {at_most} is given, but no question-blind merge looks further than a frame and could hold it; "
                "add one (merge: {method: evs, at_most: 4096}) or leave watch.at_most out",
                stage="merge",
            )
        self.segment, self.host, self.at_most, self.seed = segment, host, at_most, seed
        self.encoded = self.entered = 0  # tokens that the tower gave, and that the first of `rest` was to see
        self.features: list[Tensor] = []  # (f, D) of every chunk
        self._blocks: list[Block] = []
        self._carried: Any = None
        self._compressed = False

    # ------------------------------------------------------------------ as chunks come

    def add(self, tokens: VisualTokens, features: Tensor | None = None) -> None:
        """Take one more chunk of frames; `features` (F, D) to segment them by where a scout has its own."""
        self.encoded += tokens.count
        self.features.append(tokens.frame_features() if features is None else features)
        if self.at_most is None:
            self._blocks.append(Block(tokens, self.features[-1]))
            return
        tokens = merge(tokens, self._run(tokens, self.features[-1]), self.at_once, self.host)
        self.entered += tokens.count
        tokens, self._carried = self.rest[0].arrive(tokens, self._carried)
        last = self._blocks[-1] if self._blocks else None
        if last is not None and last.times == 0 and last.tokens.frames + tokens.frames <= BLOCK:
            joined = VisualTokens.concat([last.tokens, tokens])
            self._blocks[-1] = Block(joined, torch.cat((last.features, self.features[-1])))
        else:
            self._blocks.append(Block(tokens, self.features[-1]))
        while self.count > self.at_most:
            self._compress(self.at_most)

    @property
    def count(self) -> int:
        """Tokens held now."""
        return sum(block.tokens.count for block in self._blocks)

    @property
    def choices(self) -> list[dict[str, str]]:
        """What the bound made of the film, for the report."""
        if not self._compressed:
            return []
        reason = (
            f"{self.entered} tokens came; they were merged as they came, by {type(self.rest[0]).__name__}'s own rule"
        )
        return [{"name": "watch.at_most", "value": str(self.at_most), "reason": reason}]

    def _run(self, tokens: VisualTokens, features: Tensor) -> Run:
        events = self.segment[0](features) if self.segment else Events.single(tokens.frames)
        return Run(events, seed=self.seed)

    def _compress(self, at_most: int) -> None:
        """Make room by the first remaining method's own rule."""
        method, self._compressed = self.rest[0], True
        if method.ranked:
            target = self._target()
            whole = VisualTokens.concat([block.tokens for block in self._blocks])
            self._blocks.clear()  # what they hold is in `whole`; with the result there would be three copies
            count = max(min(target, at_most), at_most - at_most // SLACK)
            self._blocks = [Block(self._apply(whole, count, Events.single(whole.frames)), self.features[-1][:0], 1)]
            return
        block = min(self._blocks, key=lambda each: each.times)  # the first of the least compressed: the oldest
        run = self._run(block.tokens, block.features)
        before = block.tokens.count
        if before <= FEWEST:
            raise UsageError(
                f"watch.at_most: {at_most} tokens cannot hold {sum(len(part) for part in self.features)} frames of this film; "
                "raise it, or sample fewer frames"
            )
        block.tokens = self._apply(block.tokens.with_events(run.events.frame_event), before // 2, run.events)
        block.times += 1

    def _apply(self, tokens: VisualTokens, count: int, events: Events) -> VisualTokens:
        method = dataclasses.replace(self.rest[0], keep=max(count, FEWEST), at_most=None, positions="original")
        return merge(tokens, Run(events, seed=self.seed), (method,), self.host)

    def _target(self) -> int:
        """Tokens that the first remaining method leaves of what came so far."""
        return budget(self.entered, self.rest[0].keep, self.rest[0].at_most)

    # ------------------------------------------------------------------ at the end

    def finish(self, events: Events) -> VisualTokens:
        """All merges applied; the events are those of the whole film."""
        tokens = VisualTokens.concat([block.tokens for block in self._blocks]).with_events(events.frame_event)
        self._blocks.clear()
        run = Run(events, seed=self.seed)
        rest = self.rest
        if self._compressed:
            first, target = rest[0], min(self._target(), tokens.count)
            if target < tokens.count:
                tokens = self._apply(tokens, target, events)
            tokens = tokens.compacted() if first.positions == "compact" else tokens
            rest = rest[1:]
        return merge(tokens, run, rest, self.host)


def _at_once(method: MergeMethod) -> bool:
    """Whether a merge may act on each chunk alone: it sees single frames, and its budget is a share of each."""
    return method.scope == "frame" and method.at_most is None and not isinstance(method.keep, int)
