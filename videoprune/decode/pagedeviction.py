"""PagedEviction: whole pages with the smallest values next to their keys leave (arXiv 2509.04377)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from videoprune.decode._standing import StandingBudget
from videoprune.errors import UsageError
from videoprune.layer_method import DecodeMethod, DecodeState, DecodeView, KeptKV
from videoprune.ops.attention import keep_best
from videoprune.run import Run

PAGES = (8, 16, 32)


def entry_scores(keys: Tensor, values: Tensor) -> Tensor:
    """Mean over the heads of |v| / |k|: (Hkv, S, d) twice -> (S,) float32. A rotation changes no length."""
    tiny = torch.finfo(torch.float32).tiny
    return (values.float().norm(dim=-1) / keys.float().norm(dim=-1).clamp(min=tiny)).mean(dim=0)


def page_to_free(score: Tensor, page: int, locked: Tensor | None = None) -> Tensor:
    """The page with the lowest mean score, the newest one and locked ones excepted; of equals the first.

    Args:
        score: (S,) of the entries, S a multiple of `page`, at least two pages.
        page: entries of a page; page p holds the entries p * page to (p + 1) * page - 1.
        locked: (S,) bool, entries whose page stays. Where every page is locked, the result says the newest.

    Returns:
        () int64, the number of the page.
    """
    mean = score.view(-1, page).mean(dim=1)
    if locked is not None:
        mean = mean.masked_fill(locked.view(-1, page).any(dim=1), torch.inf)
    newest = torch.arange(len(mean), device=mean.device) == len(mean) - 1
    lowest = mean.masked_fill(newest, torch.inf).min(dim=0)
    return torch.where(lowest.values.isinf(), len(mean) - 1, lowest.indices)


@dataclass(frozen=True, kw_only=True)
class PagedEviction(DecodeMethod):
    """Reads no attention: what counts is how long an entry's value is next to its key, alike for all heads of a layer.

    After the prompt was read, the lowest entries leave one by one down to the budget, and the others are packed into
    pages. While answering, whole pages alone leave: each time the newest page has just become full and the cache is over
    its budget, the page with the lowest mean. Between, the cache may be over its budget by up to a page (two, where the
    budget is smaller than a page: the newest always stays).
    The cache is laid out in pages, so nothing that stays is moved, and the next token is written where a page was freed.
    Each layer decides on its own.

    Args:
        keep: share or count of a layer's cache after the prompt; a count holds for answers that grow into it, too.
        protect_text: never evict entries of the prompt's text; while answering, a page that holds one stays.
        page: entries of a page: 8, 16 or 32.
    """

    paper = "arXiv 2509.04377"
    scope = "video"
    needs_question = False
    fixed_count = True
    attention = "none"

    keep: float | int | None = 0.5
    protect_text: bool = False
    page: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.page not in PAGES or isinstance(self.page, bool):
            raise UsageError(f"page: {self.page!r} is given; allowed are 8, 16 and 32")

    def start(self, run: Run, layers: int) -> DecodeState:
        """Fresh budgets for one answer."""
        return _State(self)


class _State(StandingBudget):
    def __init__(self, method: PagedEviction) -> None:
        super().__init__(method)
        self.method, self.page = method, method.page

    def room(self, layer: int) -> int:
        """The budget in whole pages and the newest one; where text holds every page, two behind them: one has to fill before
        the other can leave."""
        page, budget = self.method.page, self.budget.get(layer, 0)
        return (-(-budget // page) + 2 if self.method.protect_text else max(budget // page + 1, 2)) * page

    def after(self, view: DecodeView) -> KeptKV | None:
        method, layer, page, length = self.method, view.layer, self.method.page, view.length
        if view.prefill:
            text = view.text.any(0) & method.protect_text
            if not self.open(view, int(text.sum())) or self.budget[layer] >= length:
                return None
            return KeptKV(keep_best(entry_scores(view.keys, view.values), self.budget[layer], text))
        if layer not in self.budget or length % page or length < 2 * page or length <= self.budget[layer]:
            return None
        locked = self.protected(view).any(0) if method.protect_text else None
        freed = page_to_free(view.scored(entry_scores), page, locked)
        if locked is not None and bool(freed == length // page - 1):
            return None
        rest = torch.arange(length - page, device=freed.device)
        return KeptKV(rest + (rest >= freed * page) * page, freed=freed)
