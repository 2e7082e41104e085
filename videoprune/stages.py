"""The methods of a recipe, ready to act: those that change nothing left out, merges split where the question is first needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from videoprune.encode._attended import Attended
from videoprune.errors import UsageError, VideoPruneError
from videoprune.method import BEFORE, EncodeMethod, MergeMethod, Method, RelevanceMethod, ScoutMethod
from videoprune.models.fits import CLS_CHOICE, substitute
from videoprune.models.host import Host
from videoprune.recipe import Recipe
from videoprune.run import Events, Run
from videoprune.tokens import VisualTokens
from videoprune.trained import HostFacts, Trained, bind_fresh, method_name, shipped_weights


@dataclass(eq=False)
class Stages:
    """Methods by stage, in order.

    Attributes:
        encode, segment, prefill, decode, relevance: as the recipe names them; `segment` has one or none. Before the encode
            methods stands a reading of the tower's attention where a merge method wants it.
        scout: one or none. prune: encode methods that act in its tower, and not in the host's.
        blind, aware: merges that run once a film, and those that run once a question.
    """

    encode: tuple[EncodeMethod, ...]
    segment: tuple[Any, ...]
    blind: tuple[MergeMethod, ...]
    aware: tuple[MergeMethod, ...]
    prefill: tuple[Any, ...]
    decode: tuple[Any, ...]
    relevance: RelevanceMethod
    scout: ScoutMethod | None = None
    prune: tuple[EncodeMethod, ...] = ()

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
            if method.whole_grids and (number or any(not each.reads_scan for each in acting.get("encode", ()))):
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
        scout, encode, prune = _scouted(built, acting, merges)
        if any(method.attention == "[CLS] row" for method in merges):
            encode = (Attended(), *encode)
        return cls(
            encode=encode,
            segment=acting.get("segment", ()),
            blind=merges[:first],
            aware=merges[first:],
            prefill=acting.get("prefill", ()),
            decode=acting.get("decode", ()),
            relevance=built["relevance"][0],
            scout=scout,
            prune=prune,
        )

    @property
    def every(self) -> tuple[Method, ...]:
        """All methods, the scorer too."""
        scouts = () if self.scout is None else (self.scout,)
        stages = (scouts, self.prune, self.encode, self.segment, self.blind, self.aware, self.prefill, self.decode)
        return (*(method for methods in stages for method in methods), self.relevance)

    @property
    def compact(self) -> bool:
        """Whether the tokens that are stored were renumbered."""
        return any(method.positions == "compact" for method in self.blind)

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

    def check(self, host: Host, *, outline: bool = False) -> list[dict[str, str]]:
        """Refuse schedules that do not fit the host, before any work; returns what stands in for what it lacks, and which
        learned parts act, as choices. An `outline` has no weights: learned parts are untrained then.

        Raises:
            UsageError: layers that do not exist or collide; a learned part that is not for this host.
        """
        learned = self._bind(host, outline)
        if self.scout is not None:
            self.scout.check(self.prune)
        trial = Run(Events.single(1))  # one for all: decode methods read what prefill methods publish
        for stage, methods in (("prefill", self.prefill), ("decode", self.decode)):
            for method in methods:
                try:
                    state = method.start(trial, host.decoder_shape.layers)
                except UsageError as error:
                    raise UsageError(f"{stage}.{_name(method)}: {error}", stage=stage) from error
                if stage == "decode" and state.revives:
                    self._check_revival(_name(method), host)
        for method in self.encode:
            layers = list(method.layers(host.tower.stop))
            if any(not BEFORE <= layer < host.tower.stop for layer in layers):
                raise UsageError(
                    f"encode: acts after layers {layers}, but this vision tower runs layers 0..{host.tower.stop - 1}"
                )
        given = {substitute(host.tower, "encode", method.attention) for method in self.encode} - {None}
        reason = "the vision tower has no [CLS]"
        return [*learned, *({"name": CLS_CHOICE, "value": str(instead), "reason": reason} for instead in given)]

    def _bind(self, host: Host, outline: bool) -> list[dict[str, str]]:
        """Load the learned part of every method that has one; returns them as choices."""
        trained = [method for method in self.every if isinstance(method, Trained)]
        if not trained:
            return []
        facts, choices = HostFacts.of(host), list[dict[str, str]]()
        if outline:
            bind_fresh(trained, facts)
            return choices
        for method in trained:
            stage, _, name = method_name(method).rpartition(".")
            try:
                record = method.bind(facts, device=host.device)
            except UsageError as error:
                raise UsageError(f"{stage}.{name}.{error}", stage=stage or None) from error
            file = shipped_weights(method).name if method.weights is None else method.weights
            reason = f"trained with seed {record.get('seed')}, {record.get('steps')} steps on {record.get('data')}"
            choices.append({"name": f"{stage}.{name}.weights", "value": file, "reason": reason})
            if method.host_bound and not facts.digest:
                reason = "the model's weights are quantised or wait elsewhere: only sizes were compared"
                choices.append({"name": f"{stage}.{name}.host", "value": "by its sizes", "reason": reason})
        return choices

    def _check_revival(self, name: str, host: Host) -> None:
        """Refuse what tokens cannot come back under."""
        kernel = str(host.decoder.config._attn_implementation)
        if kernel not in ("sdpa", "eager"):
            raise UsageError(
                f"decode.{name}: attention {kernel!r} is given; tokens that come back stand in the middle of the sequence, which "
                "takes a mask: allowed are --attn sdpa and eager",
                stage="decode",
            )
        for method in self.prefill:
            if method.positions == "compact":
                raise UsageError(
                    f"decode.{name}: prefill.{_name(method)} has positions 'compact', which gives away the places of tokens that "
                    "may come back; set its positions to 'original'",
                    stage="decode",
                )


def _scouted(
    built: Mapping[str, Sequence[Any]], acting: Mapping[str, tuple[Any, ...]], merges: Sequence[MergeMethod]
) -> tuple[ScoutMethod | None, tuple[EncodeMethod, ...], tuple[EncodeMethod, ...]]:
    """The scout, the encode methods of the host's tower, and those of the scout's; refuses what does not go together."""
    scouts, encode = acting.get("scout", ()), acting.get("encode", ())
    if len(scouts) > 1:
        raise UsageError(f"scout: {len(scouts)} methods are given; a film has one scout: give one", stage="scout")
    prune = tuple(method for method in encode if method.reads_scan)
    encode = tuple(method for method in encode if not method.reads_scan)
    if prune and not any(method.has_scan for method in built.get("scout", ())):
        raise UsageError(
            f"encode.{_name(prune[0])}: it ranks units by what a selective scan puts out, and a host's vision tower is a "
            "transformer; it prunes the tower of a scout: add scout: {method: ssm}, or take another encode method",
            stage="encode",
        )
    if not scouts:
        return None, encode, ()
    for method in encode:
        if method.window > 1:
            raise UsageError(
                f"encode.{_name(method)}: it walks through {method.window} frames in a row, and the scout leaves gaps between "
                "them: take one that looks at single frames (tome, visionzip, …), or leave out `scout`",
                stage="encode",
            )
    for merge_method in merges:
        if merge_method.whole_grids:
            raise UsageError(
                f"merge.{_name(merge_method)}: it pools whole grids of every frame, and the scout leaves frames out: take "
                "another merge method, or leave out `scout`",
                stage="merge",
            )
    return scouts[0], encode, prune


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
