"""Pipeline: load → watch → ask.

pipe = Pipeline.load("demo")
video = pipe.watch("movie.mp4")          # decode, encode, segment, merge: once, whatever will be asked
print(video.ask("What happens after the red circle appears?").text)
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from videoprune import demo
from videoprune.answer import Answer, Choice, Progress, check_question
from videoprune.errors import EnvironmentProblem
from videoprune.models.fits import CLS_CHOICE
from videoprune.models.host import Host
from videoprune.models.load import load_host
from videoprune.models.placement import DeviceMap
from videoprune.recipe import Recipe
from videoprune.stages import Stages
from videoprune.store import Store
from videoprune.video import FrameRule
from videoprune.watched import Video
from videoprune.watching import Watcher, decoded, open_film, spacing


class Pipeline:
    """A loaded model under a recipe. Pipelines may share one model; nothing is left patched on it."""

    def __init__(
        self, host: Host, recipe: Recipe, *, decoder: str = "auto", seed: int = 0, choices: Sequence[Choice] = ()
    ) -> None:
        self.host, self.recipe, self.decoder, self.seed = host, recipe, decoder, seed
        self.stages = Stages.of(recipe)
        substitutes = self.stages.check(host)
        Store(
            self.stages.blind, self.stages.segment, host, recipe.watch.at_most
        )  # refuses a bound that nothing can hold
        self.choices = [*host.choices, *substitutes, *choices]

    @classmethod
    def load(
        cls,
        recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe | None = None,
        *,
        model: str | os.PathLike[str] | None = None,
        overrides: Sequence[str] = (),
        device: str = "auto",
        dtype: str = "auto",
        attn: str = "sdpa",
        decoder: str = "auto",
        seed: int = 0,
        revision: str | None = None,
        max_new_tokens: int | None = None,
        frame_fit: str | None = None,
        device_map: DeviceMap | None = None,
        quantize: str | None = None,
    ) -> Pipeline:
        """Load a model and check a recipe against it.

        Args:
            recipe: name, YAML path or mapping; None takes the model's default recipe.
            model: checkpoint folder or hub name; None takes the demo model.
            overrides: "stage.key=value" changes to the recipe.
            device, dtype, attn: as for `--device`, `--dtype`, `--attn`; "auto" chooses and says why in `choices`.
            decoder: video decoder, "auto" takes PyAV.
            seed: for the methods that draw at random.
            revision: of a hub model.
            max_new_tokens: longest answer; None takes the recipe's.
            frame_fit: "crop", "pad" or "squeeze" a frame that is not square; None does as the model was trained.
            device_map: "auto" leaves weights of decoder layers in main memory that find no room on the device; or modules to
                place, as accelerate takes them.
            quantize: "4bit" or "8bit", through bitsandbytes.

        Raises:
            UsageError: bad recipe, override or option, before any weights are read where possible.
            EnvironmentProblem: model or device missing, damaged or unsupported.
        """
        named = (
            None if recipe is None else Recipe.load(recipe, overrides)
        )  # a bad recipe is told before weights are read
        if named is not None:
            Stages.of(named)
        folder = demo.weights_path() if model is None else model
        if model is None and not (demo.weights_path() / "model.safetensors").is_file():
            raise EnvironmentProblem(
                "the demo model is not in this installation; install the package anew, or give --model"
            )
        host = load_host(
            os.fspath(folder),
            device=device,
            dtype=dtype,
            attn=attn,
            revision=revision,
            frame_fit=frame_fit,
            device_map=device_map,
            quantize=quantize,
        )
        choices: list[Choice] = []
        if named is None:
            named = Recipe.load(host.default_recipe, overrides)
            choices.append({"name": "recipe", "value": named.name, "reason": f"the default for {host.family}"})
        else:
            choices.append({"name": "recipe", "value": named.name, "reason": "asked for"})
        if max_new_tokens is not None:
            named = dataclasses.replace(named, max_new_tokens=max_new_tokens)
        return cls(host, named, decoder=decoder, seed=seed, choices=choices)

    def with_recipe(
        self, recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe, overrides: Sequence[str] = ()
    ) -> Pipeline:
        """Another recipe on the same loaded model."""
        loaded = Recipe.load(recipe, overrides)
        own = ("recipe", CLS_CHOICE)
        kept = [choice for choice in self.choices if choice["name"] not in own and choice not in self.host.choices]
        chosen = {"name": "recipe", "value": loaded.name, "reason": "asked for"}
        return Pipeline(self.host, loaded, decoder=self.decoder, seed=self.seed, choices=[*kept, chosen])

    @property
    def model_name(self) -> str:
        """The checkpoint's name; "demo" for the one in the package."""
        return "demo" if self.host.name == str(demo.weights_path()) else self.host.name

    # ------------------------------------------------------------------ watching

    def watch(
        self,
        film: str | os.PathLike[str],
        *,
        frames: FrameRule | None = None,
        progress: Progress | None = None,
    ) -> Video:
        """Decode and encode a film and run the question-blind stages, a chunk of frames at a time.

        Args:
            film: path.
            frames: replaces the recipe's frame rule.
            progress: called with (stage, done, total).

        Raises:
            FilmError: the film cannot be read.
        """
        rule = frames or self.recipe.frames
        with open_film(film, rule, [self]) as reader:
            watcher = Watcher(self, film, rule, len(reader) or None, progress, spacing(reader.info, rule))
            for batch in decoded(reader, watcher.stopwatch):
                watcher.add(batch)
            info, warnings = reader.info, list(reader.warnings)
        return watcher.finish(info, warnings)

    def open(self, path: str | os.PathLike[str]) -> Video:
        """A film that was watched before, from `movie.vpz`: nothing is decoded or encoded.

        Raises:
            FilmError: damaged, or the film has changed since.
            UsageError: watched with another model, or with other question-blind stages than this recipe's.
        """
        from videoprune.saved import load_video

        return load_video(self, path)

    def ask(self, film: str | os.PathLike[str], question: str, **watch: Any) -> Answer:
        """Watch a film for one question and answer it; keywords as for `watch`."""
        check_question(question)
        video = self.watch(film, **watch)
        return video.ask(question, progress=watch.get("progress"))

    def ask_batch(
        self,
        pairs: Sequence[tuple[str | os.PathLike[str] | Video, str]],
        *,
        size: int = 8,
        logits: bool = False,
        **watch: Any,
    ) -> list[Answer]:
        """Answer questions on several films, those with equally long prompts in batches; the answers are those of asking
        one by one.

        A batch runs where every prefill and decode method's count is known beforehand and prompts are equally long: fixed
        frame counts, the same keep, questions of as many tokens. There is no padding; what fits no batch is asked by itself.
        `answer.report.choices` says which, under the name "batch".

        Args:
            pairs: (film, question); a film is a path or one watched by this pipeline.
            size: prompts at a time.
            logits: keep the logits of every decoded step.
            watch: keywords as for `watch`, for the films given by path.

        Raises:
            UsageError: as `ask`; a film that another pipeline watched.
            FilmError: a film cannot be read.
        """
        from videoprune.batches import ask_batch

        return ask_batch(self, pairs, size, logits, watch)
