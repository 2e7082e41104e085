"""What decode methods share whose budget stands while the answer grows: it is set once, when the prompt was read."""

from __future__ import annotations

from torch import Tensor

from videoprune.layer_method import DecodeMethod, DecodeState, DecodeView


class StandingBudget(DecodeState):
    """Each layer's budget, and where its prompt ended: answered tokens are text that may go.

    Attributes:
        budget: layer -> entries that stay.
        prompt_end: layer -> (Hkv, 1) position of the prompt's last entry.
    """

    multiplies = False

    def __init__(self, method: DecodeMethod) -> None:
        self.settings = method
        self.budget: dict[int, int] = {}
        self.prompt_end: dict[int, Tensor] = {}

    def open(self, view: DecodeView, texts: int) -> bool:
        """Set the budget of a layer whose prompt was just read; False where the settings change nothing.

        A count is a size of the cache, also where the prompt is shorter. `texts` entries are protected, beyond it too.
        """
        method, length = self.settings, view.text.shape[1]
        if method.identity or (method.keep is None and method.at_most is None):
            return False
        budget = method.count(length if isinstance(method.keep, float) else 1 << 40)
        self.budget[view.layer], self.prompt_end[view.layer] = max(budget, texts), view.position[:, -1:]
        return True

    def protected(self, view: DecodeView) -> Tensor:
        """(Hkv, S) bool: the prompt's text where it is protected."""
        return view.text & (view.position <= self.prompt_end[view.layer]) & self.settings.protect_text
