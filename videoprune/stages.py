"""The methods of a recipe, ready to act: those that change nothing left out, merges split where the question is first needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from videoprune.errors import UsageError, VideoPruneError
from videoprune.method import EncodeMethod, MergeMethod, Method, RelevanceMethod
from videoprune.models.fits import CLS_CHOICE, substitute
from videoprune.models.host import Host
from videoprune.recipe import Recipe
from videoprune.run import Events, Run
from videoprune.tokens import VisualTokens


@dataclass(eq=False)
class Stages:
    """Methods by stage, in order.

    Attributes:
        encode, segment, prefill, decode, relevance: as the recipe names them; `segment` has one or none.
        blind, aware: merges that run once a film, and those that run once a question.
    """

    encode: tuple[EncodeMethod, ...]
    segment: tuple[Any, ...]
    blind: tuple[MergeMethod, ...]
    aware: tuple[MergeMethod, ...]
    prefill: tuple[Any, ...]
    decode: tuple[Any, ...]
    relevance: RelevanceMethod

    @classmethod
    def of(cls, recipe: Recipe) -> Stages:
        built = recipe.build()
        acting = {name: tuple(method for method in methods if not method.identity) for name, methods in built.items()}
        merges = acting.get("merge", ())
        first = next((number for number, method in enumerate(merges) if method.needs_question), len(merges))
        if len(acting.get("segment", ())) > 1:
            raise UsageError(
                f"segment: {len(acting['segment'])} methods are given; a film has one segmentation: give one"
            )
        for number, method in enumerate(merges):
            if method.whole_grids and (number or acting.get("encode")):
                raise UsageError(
                    f"merge: {type(method).__name__} pools whole grids, which "
                    f"{'the merge method before it' if number else 'the encode stage'} thins out: put it first in `merge` and "
                    "leave out `encode`"
                )
        for stage in ("encode", "segment"):
            for method in acting.get(stage, ()):
                if method.needs_question:
                    raise UsageError(
                        f"{stage}: {_name(method)} drops by the question, and what a film is stored with serves every "
                        "question; methods that look at the question belong into merge, prefill or decode"
                    )
        return cls(
            encode=acting.get("encode", ()),
            segment=acting.get("segment", ()),
            blind=merges[:first],
            aware=merges[first:],
            prefill=acting.get("prefill", ()),
            decode=acting.get("decode", ()),
            relevance=built["relevance"][0],
        )

    @property
    def need_relevance(self) -> bool:
        return any(method.needs_relevance for method in (*self.aware, *self.prefill, *self.decode))

    def needs_question(self) -> str | None:
        """The first stage behind the stored tokens whose choice depends on the question, as "prefill.aim"; None where none
        does: the cache that one question leaves then serves the next."""
        if self.aware:
            return f"merge.{_name(self.aware[0])}"
        for method in self.prefill:
            if method.needs_question or method.reads_text:
                return f"prefill.{_name(method)}"
        for method in self.decode:
            if method.needs_question or method.attention != "none":
                return f"decode.{_name(method)}"
        return "relevance" if self.need_relevance else None

    def varies(self) -> str | None:
        """The first stage inside the language model whose count depends on the data, as "prefill.metok"; None where all
        counts are known beforehand, so that prompts of one length stay equally long."""
        for stage, methods in (("prefill", self.prefill), ("decode", self.decode)):
            for method in methods:
                if not method.fixed_count:
                    return f"{stage}.{_name(method)}"
        return None

    def check(self, host: Host) -> list[dict[str, str]]:
        """Refuse schedules that do not fit the host, before any work; returns what stands in for what it lacks, as choices.

        Raises:
            UsageError: layers that do not exist or collide.
        """
        trial = Run(Events.single(1))  # one for all: decode methods read what prefill methods publish
        for stage, methods in (("prefill", self.prefill), ("decode", self.decode)):
            for method in methods:
                try:
                    method.start(trial, host.decoder_shape.layers)
                except UsageError as error:
                    raise UsageError(f"{stage}.{_name(method)}: {error}", stage=stage) from error
        for method in self.encode:
            layers = list(method.layers(host.tower.stop))
            if any(not 0 <= layer < host.tower.stop for layer in layers):
                raise UsageError(
                    f"encode: acts after layers {layers}, but this vision tower runs layers 0..{host.tower.stop - 1}"
                )
        given = {substitute(host.tower, "encode", method.attention) for method in self.encode} - {None}
        reason = "the vision tower has no [CLS]"
        return [{"name": CLS_CHOICE, "value": str(instead), "reason": reason} for instead in given]


def _name(method: Method) -> str:
    return type(method).__module__.rpartition(".")[2]


def merge(tokens: VisualTokens, run: Run, methods: tuple[MergeMethod, ...], host: Host) -> VisualTokens:
    """Apply merge methods in order, each with its position policy."""
    newline = host.newline()
    if newline is not None:
        run.published["newline"] = newline
    for method in methods:
        try:
            tokens = method(tokens, run)
        except VideoPruneError as error:
            error.stage = error.stage or "merge"
            raise
        if method.positions == "compact":
            tokens = tokens.compacted()
    return tokens
