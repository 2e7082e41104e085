"""Questions about long videos with open video language models, at a fraction of their cost.

    from videoprune import Pipeline

    pipe = Pipeline.load("demo")
    print(pipe.ask("movie.mp4", "what happens after the red circle?").text)

Names are resolved when they are first used, so that `import videoprune` imports neither torch nor anything else heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from videoprune.answer import Answer, OptionScores
    from videoprune.chat import Chat
    from videoprune.pipeline import Pipeline, Video
    from videoprune.recipe import Recipe
    from videoprune.tokens import VisualTokens
    from videoprune.video import FrameRule

__all__ = ["Answer", "Chat", "FrameRule", "OptionScores", "Pipeline", "Recipe", "Video", "VisualTokens", "__version__"]

_HOMES = {
    "Answer": "answer",
    "Chat": "chat",
    "FrameRule": "video",
    "OptionScores": "answer",
    "Pipeline": "pipeline",
    "Recipe": "recipe",
    "Video": "pipeline",
    "VisualTokens": "tokens",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'videoprune' has no attribute {name!r}; public names: {', '.join(__all__)}")
    return getattr(importlib.import_module(f"videoprune.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
