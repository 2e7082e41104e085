"""A key/value cache in pages: what leaves is a page, what comes fills one that left, and nothing that stays is moved."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from videoprune.models.cache import KeptLayer


class PagedLayer(KeptLayer):
    """One layer's keys and values (1, Hkv, slots, d) in pages of `page` slots, in a pool that is allocated once.

    While the prompt is read, entries lie in order as in any layer; `lay_out` moves what is left of them into the pool. From
    then on a token is written into the newest page, which is one that left before where there is any, and `free` gives a
    page back. Attention reads the pool as it lies: keys carry their rotation, so that their order says nothing, and slots
    without an entry are masked. Which slot holds which token is known by `place`, and the order in which pages came by
    `table`, so that methods see entries oldest first.

    Counts are known here and page numbers on the device alone, so that nothing waits for it. Where heads hold different
    entries a slot would be several tokens: such a layer stays contiguous.

    Attributes:
        pages: pages of the pool; 0 until it is laid out.
        table: (P,) int64, pages that are held, oldest first; all but the last one are full.
        fill: entries of the last one.
    """

    table: Tensor
    newest: Tensor  # (page,) slots of the last page
    place: Tensor  # (slots,) int64 position of each slot's token
    live: Tensor  # (slots,) bool, slots that hold an entry

    def __init__(self, page: int) -> None:
        super().__init__()
        self.page, self.pages, self.fill = page, 0, 0
        self.used = 0  # pages of the pool that were ever written to
        self.at_end = True  # whether the last page is the last of these
        self.returned: list[Tensor] = []  # (1,) pages that left and wait to be filled
        self.shared = False  # whether another layer reads the same pool, which is copied before it is written to
        self.admitted: Tensor | None = None  # (R,) slots for the rows that the next `update` brings

    @property
    def size(self) -> int:
        """Entries held."""
        if not self.pages:
            return super().size
        return (self.table.shape[0] - 1) * self.page + self.fill

    @property
    def extent(self) -> int:
        """Slots that attention reads: all up to the last one that is held, those of pages that left among them."""
        return (self.used - 1) * self.page + self.fill if self.at_end else self.used * self.page

    # ------------------------------------------------------------------ entries come

    def lay_out(self, room: int) -> None:
        """Move the entries into a pool of as many pages as `room` entries take, at least as many as there are."""
        if self.pages or self.position is None or self.position.ndim != 1 or not self.size:
            return
        position, size, device = self.position, self.size, self.keys.device
        self.used, self.fill = -(-size // self.page), (size - 1) % self.page + 1
        self.table = torch.arange(self.used, device=device)
        self.place = torch.zeros(0, dtype=torch.int64, device=device)
        self.live = torch.zeros(0, dtype=torch.bool, device=device)
        self._enlarge(max(self.used, -(-room // self.page)))
        self.place[:size], self.live[:size] = position, True
        self.newest = self._slots(self.table[-1:])
        self.at_end, self.shared, self.returned, self.position = True, False, [], None

    def admit(self, index: Tensor) -> Tensor | None:
        """Give slots to the rows `index` (R,), positions ascending, that the next `update` brings.

        Returns:
            (1, 1, R, extent) bool, the slots that each row attends to; None where one row sees every slot.
        """
        rows = len(index)
        if self.shared:
            self._copy()
        parts = []
        while rows:
            if self.fill == self.page:
                self._turn_page()
            count = min(rows, self.page - self.fill)
            parts.append(self.newest[self.fill : self.fill + count])
            self.fill, rows = self.fill + count, rows - count
        self.admitted = parts[0] if len(parts) == 1 else torch.cat(parts)
        self.live.index_fill_(0, self.admitted, True)
        self.place.index_copy_(0, self.admitted, index)
        live, place = self.live[: self.extent], self.place[: self.extent]
        if len(index) == 1:
            return None if self.size == self.extent else live[None, None, None]
        return (live & (place <= index[:, None]))[None, None]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.pages:
            return super().update(key_states, value_states, *args, **kwargs)
        if self.admitted is None:
            raise ValueError("rows come unannounced: the layer loop asks `admit` for the mask first")
        self.keys.index_copy_(2, self.admitted, key_states)
        self.values.index_copy_(2, self.admitted, value_states)
        self.seen += key_states.shape[-2]
        self.admitted = self.incoming = None
        return self.keys[:, :, : self.extent], self.values[:, :, : self.extent]

    # ------------------------------------------------------------------ entries leave

    def free(self, number: Tensor) -> None:
        """Give back the page that is `number`-th in age, () int64 from 0, not the newest."""
        if self.shared:
            self._copy()
        page, rest = self.table[number].view(1), torch.arange(self.table.shape[0] - 1, device=self.table.device)
        self.table = self.table[rest + (rest >= number)]
        self.live.view(self.pages, self.page).index_fill_(0, page, False)
        self.returned.append(page)

    def keep(self, index: Tensor, keys: Tensor | None = None, values: Tensor | None = None) -> None:
        """As any layer, entries counted oldest first: those that stay are moved, and packed anew."""
        room = self.pages * self.page
        if room:
            order, self.pages = self._order(), 0
            self.position = self.place[order]
            self.keys, self.values = self.keys.index_select(2, order), self.values.index_select(2, order)
        super().keep(index, keys, values)
        if room:
            self.lay_out(room)

    def fork(self) -> KeptLayer:
        """Another layer with the same entries; whichever is written to first copies the pool."""
        if not self.pages:
            other = PagedLayer(self.page)
            if self.is_initialized:
                other.lazy_initialization(self.keys, self.values)
                other.keys, other.values = self.keys, self.values
            other.seen, other.position = self.seen, self.position
            return other
        other = PagedLayer(self.page)
        other.__dict__.update(self.__dict__)
        other.returned = list(self.returned)
        self.shared = other.shared = True
        return other

    def reset(self) -> None:
        super().reset()
        self.pages = 0

    # ------------------------------------------------------------------ where entries lie

    def in_order(self, values: Tensor, dim: int) -> Tensor:
        return values.index_select(dim, self._order()) if self.pages else values

    def lying(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        if not self.pages:
            return super().lying()
        held, full = slice(self.extent), self.size == self.extent
        return self.keys[0, :, held], self.values[0, :, held], self.place[held], None if full else self.live[held]

    def positions(self) -> Tensor:
        if not self.pages:
            return super().positions()
        return self.in_order(self.place, 0).expand(self.keys.shape[1], self.size)

    def _order(self) -> Tensor:
        """(S,) slots of the entries, oldest first."""
        return self._slots(self.table)[: self.size]

    def _slots(self, pages: Tensor) -> Tensor:
        return (pages[:, None] * self.page + torch.arange(self.page, device=pages.device)).flatten()

    # ------------------------------------------------------------------ the pool

    def _turn_page(self) -> None:
        """Begin a page: one that left, else one that was never used, else one of a larger pool."""
        self.at_end = not self.returned
        if self.returned:
            number = self.returned.pop()
        else:
            if self.used == self.pages:
                self._enlarge(self.pages + max(1, self.pages // 4))
            number = torch.full((1,), self.used, device=self.table.device)
            self.used += 1
        self.table, self.newest, self.fill = torch.cat((self.table, number)), self._slots(number), 0

    def _enlarge(self, pages: int) -> None:
        """Move everything into a pool of `pages` pages; what is not used holds zeros, since masked values are multiplied too."""
        self.pages = pages
        self.keys, self.values, self.place, self.live = (
            torch.cat(
                (old, old.new_zeros(*old.shape[:dim], pages * self.page - old.shape[dim], *old.shape[dim + 1 :])), dim
            )
            for old, dim in ((self.keys, 2), (self.values, 2), (self.place, 0), (self.live, 0))
        )

    def _copy(self) -> None:
        self.keys, self.values = self.keys.clone(), self.values.clone()
        self.place, self.live = self.place.clone(), self.live.clone()
        self.shared = False
