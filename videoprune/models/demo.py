"""The demo model of the package: a small LLaVA-OneVision that knows generated scenes, and says where it cannot know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from videoprune.demo.language import complete
from videoprune.demo.notice import notice
from videoprune.models.llava_onevision import LlavaOnevision

MARK = "videoprune_demo"  # key of its config.json


class DemoModel(LlavaOnevision):
    """Stock LlavaOnevisionForConditionalGeneration with the weights of `videoprune.demo`."""

    family = "demo"
    accepts = "videoprune's demo model"
    source = "videoprune.demo.train, which wrote it"
    default_recipe = "demo"

    @classmethod
    def matches(cls, config: Mapping[str, Any]) -> str | None:
        return f"config.json has the key {MARK}" if config.get(MARK) else None

    def phrase(self, question: str) -> str:
        return complete(question)

    def notice(self, question: str, metadata: Mapping[str, str]) -> str | None:
        return notice(question, metadata)
