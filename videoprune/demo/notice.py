"""When the demo model cannot know: one line that says so, and what would."""

from __future__ import annotations

from collections.abc import Mapping

REMEDY = "load a full-size model with --model ORG/NAME (LLaVA-OneVision, LongVA)"


def notice(question: str, metadata: Mapping[str, str]) -> str | None:
    """A one-line notice, or None where the demo model is at home.

    Args:
        question: as asked.
        metadata: container tags of the film.
    """
    from videoprune.demo import is_demo_film
    from videoprune.demo.language import unknown_words

    unknown = unknown_words(question)
    if not is_demo_film(metadata):
        return f"the demo model knows its own generated films only, and this is none; {REMEDY}"
    if unknown:
        some = ", ".join(dict.fromkeys(unknown))
        return (
            f"the demo model does not know the word{'s' if len(unknown) > 1 else ''} {some[:80]}; rephrase, or {REMEDY}"
        )
    return None
