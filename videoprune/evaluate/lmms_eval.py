"""videoprune as a model of lmms-eval, found by its entry point `lmms_eval.models`; lmms-eval is no dependency.

    lmms-eval --model videoprune --model_args model=lmms-lab/LongVA-7B,recipe=metok --tasks mlvu_dev

`manifest` runs while lmms-eval is imported and imports nothing heavy. lmms-eval brings the questions, prompts and scores; frames,
compression and decoding are videoprune's. All questions about one film share its watching.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from videoprune.errors import UsageError

if TYPE_CHECKING:
    from videoprune.pipeline import Pipeline
    from videoprune.watched import Video

NAME = "videoprune"


def manifest() -> Any:
    """What lmms-eval's registry asks for: the name and where the class is."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=NAME, chat_class_path=f"{__name__}.VideoPrune")


def __getattr__(name: str) -> Any:
    """`VideoPrune` is made when lmms-eval asks for it: its base class is lmms-eval's."""
    if name != "VideoPrune":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = _made()
    globals()[name] = made
    return made


@dataclass(frozen=True, order=True)
class Clip:
    """A film, or its part from `start` to `end` seconds (None: its beginning, its end)."""

    path: str
    start: float | None = None
    end: float | None = None


def clip_and_text(messages: Sequence[Any]) -> tuple[Clip, str]:
    """The one film and the text of a chat in lmms-eval's form, `[{"role", "content": [{"type", …}]}]`.

    System turns come first; turns are joined by line breaks.

    Raises:
        UsageError: no film or several, or pictures or sound.
    """
    clips: list[Clip] = []
    texts: list[str] = []
    for message in sorted(messages, key=lambda message: message["role"] != "system"):
        content = message["content"]
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        for part in content:
            if part["type"] == "text":
                texts.append(part["text"].strip())
            elif part["type"] == "video" and isinstance(part.get("url"), str):
                clips.append(Clip(part["url"], part.get("start_time"), part.get("end_time")))
            else:
                raise UsageError(f"videoprune reads film files and text; {part['type']} of another kind is given")
    if len(clips) != 1:
        raise UsageError(f"videoprune reads one film a question; this request holds {len(clips)}")
    return clips[0], "\n".join(text for text in texts if text)


class Asking:
    """A pipeline that keeps the film it watched last."""

    def __init__(self, pipe: Pipeline) -> None:
        self.pipe, self.recipe = pipe, pipe.recipe
        self._clip: Clip | None = None
        self._video: Video | None = None

    def video(self, clip: Clip) -> Video:
        if self._video is None or clip != self._clip:
            self._video = None  # the old one's memory goes before the new one is read
            rule = (
                dataclasses.replace(self.recipe.frames, start=clip.start, end=clip.end)
                if (clip.start, clip.end) != (None, None)
                else None
            )
            self._clip, self._video = clip, self.pipe.watch(clip.path, frames=rule)
        return self._video

    def generate(self, clip: Clip, text: str, settings: dict[str, Any]) -> tuple[str, int]:
        """The answer and its number of tokens, cut at the first of the stop strings in `settings["until"]`."""
        longest = settings.get("max_new_tokens") or self.recipe.max_new_tokens
        self.pipe.recipe = dataclasses.replace(self.recipe, max_new_tokens=int(longest))
        answer = self.video(clip).ask(text)
        until = settings.get("until") or ()
        said = answer.text
        for stop in (until,) if isinstance(until, str) else until:
            said = said.partition(stop)[0] if stop else said
        return said, len(answer.ids)


def check_settings(settings: dict[str, Any]) -> None:
    """Refuse sampling and beams: answers are greedy, and silently ignoring the task would change what its score means.

    Raises:
        UsageError: `do_sample` with a temperature above 0, or several beams.
    """
    if settings.get("do_sample") and float(settings.get("temperature") or 0) > 0:
        raise UsageError("generation_kwargs ask for sampling; videoprune answers greedily, set do_sample=false")
    if int(settings.get("num_beams") or 1) > 1:
        beams = settings["num_beams"]
        raise UsageError(f"generation_kwargs ask for {beams} beams; videoprune answers greedily, set num_beams=1")


def _made() -> type:
    from lmms_eval.api.instance import GenerationResult, TokenCounts
    from lmms_eval.api.model import lmms

    class VideoPrune(lmms):  # type: ignore[misc, unused-ignore]
        """A video language model under a recipe.

        Args:
            model: checkpoint folder or hub name; None takes the demo model.
            recipe: name or file; None takes the model's default.
            set: changes to the recipe, as "merge.keep=0.25+prefill.keep=0.5".
            device, dtype, attn, decoder, seed, revision: as for `videoprune ask`.
            batch_size: 1; the questions of one film follow each other anyway.
        """

        is_simple = False

        def __init__(
            self,
            model: str | None = None,
            recipe: str | None = None,
            set: str = "",
            device: str = "auto",
            dtype: str = "auto",
            attn: str = "sdpa",
            decoder: str = "auto",
            seed: int = 0,
            revision: str | None = None,
            batch_size: int | str = 1,
            max_batch_size: int | None = None,
        ) -> None:
            super().__init__()
            if str(batch_size) not in ("1", "auto"):
                raise UsageError(f"batch_size={batch_size} is given; videoprune answers one question at a time, give 1")
            from videoprune.pipeline import Pipeline

            self.asking = Asking(
                Pipeline.load(
                    recipe,
                    model=model,
                    overrides=[change for change in set.split("+") if change],
                    device="auto" if device in ("", None) else device,
                    dtype=dtype,
                    attn=attn,
                    decoder=decoder,
                    seed=int(seed),
                    revision=revision,
                )
            )
            self.batch_size = 1

        @property
        def device(self) -> Any:
            return self.asking.pipe.host.device

        def generate_until(self, requests: list[Any]) -> list[Any]:
            """Answers in the order of the requests; a film that can't be watched ends the run, as lmms-eval's own models do."""
            chats = []
            for place, request in enumerate(requests):
                _, to_messages, settings, number, task, split = request.args
                settings = dict(settings or {})
                check_settings(settings)
                clip, text = clip_and_text(to_messages(self.task_dict[task][split][number]))
                chats.append((clip, place, text, settings))
            found: list[Any] = [None] * len(requests)
            first = {clip: place for clip, place, *_ in reversed(chats)}
            for clip, place, text, settings in sorted(chats, key=lambda chat: (first[chat[0]], chat[1])):
                said, count = self.asking.generate(clip, text, settings)
                found[place] = GenerationResult(text=said, token_counts=TokenCounts(output_tokens=count))
            return found

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            raise UsageError(
                "loglikelihood tasks are not supported; score options with `videoprune batch --protocol likelihood`"
            )

        def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
            raise UsageError("tasks of several rounds are not supported; every question is asked by itself")

    VideoPrune.__module__, VideoPrune.__qualname__ = __name__, "VideoPrune"
    return VideoPrune
