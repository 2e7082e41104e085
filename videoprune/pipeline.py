"""Pipeline: load → watch → ask.

pipe = Pipeline.load("demo")
video = pipe.watch("movie.mp4")          # decode, encode, segment, merge: once, whatever will be asked
print(video.ask("What happens after the red circle appears?").text)
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from videoprune import demo
from videoprune.errors import EnvironmentProblem
from videoprune.models.host import Host
from videoprune.models.load import load_host
from videoprune.ops.counting import CountedFlops
from videoprune.recipe import Recipe
from videoprune.report.flops import Cost
from videoprune.report.report import Stopwatch
from videoprune.run import Events, Run
from videoprune.stages import Stages, merge
from videoprune.tokens import VisualTokens
from videoprune.video import Film, FrameRule
from videoprune.watched import Answer, Choice, Progress, Video, check_question, silent

CHUNK = 32  # frames decoded and encoded at a time; rounded up to whole windows of the encode methods


class Pipeline:
    """A loaded model under a recipe. Pipelines may share one model; nothing is left patched on it."""

    def __init__(
        self, host: Host, recipe: Recipe, *, decoder: str = "auto", seed: int = 0, choices: Sequence[Choice] = ()
    ) -> None:
        self.host, self.recipe, self.decoder, self.seed = host, recipe, decoder, seed
        self.stages = Stages.of(recipe)
        self.stages.check(host)
        self.choices = [*host.choices, *choices]

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
        host = load_host(os.fspath(folder), device=device, dtype=dtype, attn=attn, revision=revision)
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
        kept = [choice for choice in self.choices if choice["name"] != "recipe" and choice not in self.host.choices]
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
        question_known: bool = False,
        progress: Progress | None = None,
    ) -> Video:
        """Decode and encode a film and run the question-blind stages, a chunk of frames at a time.

        Args:
            film: path.
            frames: replaces the recipe's frame rule.
            question_known: accepted for symmetry with `ask`; no stage here drops frames by the question.
            progress: called with (stage, done, total).

        Raises:
            FilmError: the film cannot be read.
        """
        rule, stopwatch, tell = frames or self.recipe.frames, Stopwatch(), progress or silent
        window = math.lcm(*(method.window for method in self.stages.encode))
        chunk = -(-CHUNK // window) * window
        parts: list[VisualTokens] = []
        observed: list[Tensor] = []
        cost = Cost()
        done = 0
        with Film(film, rule, decoder=self.decoder, chunk=chunk) as reader:
            total = len(reader) or None
            chunks = iter(reader)
            while True:
                with stopwatch("decode_film"):
                    batch = next(chunks, None)
                if batch is None:
                    break
                with stopwatch("encode"):
                    encoded = self.host.encode(batch.images, batch.seconds, done, self.stages.encode)
                    parts.append(encoded.tokens)
                    cost = cost + encoded.cost
                if self.stages.need_relevance:
                    with stopwatch("relevance"):
                        seen = self.stages.relevance.observe(batch.images)
                        if seen is not None:
                            observed.append(seen)
                done += len(batch)
                tell("encode", done, total)
            info, warnings = reader.info, list(reader.warnings)
        tokens = VisualTokens.concat(parts)
        flops = {"encode": cost}
        encoded_count = tokens.count
        with stopwatch("segment"), CountedFlops() as counted:
            features = tokens.frame_features()
            events = self.stages.segment[0](features) if self.stages.segment else Events.single(tokens.frames)
            events = dataclasses.replace(events, frame_event=events.frame_event.to(tokens.features.device))
            tokens = tokens.with_events(events.frame_event)
        flops["segment"] = Cost(linear=counted.total)
        with stopwatch("merge"), CountedFlops() as counted:
            tokens = merge(tokens, Run(events, seed=self.seed), self.stages.blind, self.host)
        flops["merge"] = Cost(linear=counted.total)
        tell("watch", 1, 1)
        return Video(
            pipeline=self,
            film=os.fspath(film),
            tokens=tokens,
            events=events,
            observed=torch.cat(observed) if observed else None,
            encoded_count=encoded_count,
            seconds=stopwatch.seconds,
            costs=flops,
            warnings=warnings,
            metadata=dict(info.metadata),
            choices=[{"name": "video", "value": info.decoder, "reason": choice} for choice in info.choices],
            rule=rule,
        )

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
        video = self.watch(film, question_known=True, **watch)
        return video.ask(question, progress=watch.get("progress"))
