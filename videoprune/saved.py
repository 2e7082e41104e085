"""A watched film on disk: `movie.vpz`, a safetensors file of the visual tokens, their ledger and what the film was watched with.

Everything that `video.ask` needs is in it, so that asking again costs neither decoding nor encoding. The header says which
film, which model and which question-blind stages made the tokens; a file that does not fit them is refused, never adapted.

    Video  ──save_video──▶  movie.vpz  ──load_video──▶  Video

Tensors: every tensor field of `VisualTokens` as `tokens.NAME` (`tokens.scores.NAME`), of `Events` as `events.NAME`, and
`observed`; integers in the narrowest type that holds them. The rest is one JSON object under the key `videoprune` of the
file's metadata.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from videoprune import __version__
from videoprune.errors import FilmError, UsageError
from videoprune.identity import WATCHED, film_digest, model_digest
from videoprune.report.flops import Cost
from videoprune.run import Events
from videoprune.tokens import VisualTokens
from videoprune.video import FrameRule
from videoprune.watched import Video

if TYPE_CHECKING:
    from videoprune.pipeline import Pipeline

FORMAT = 1  # grows when an old file would be read wrongly
INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64)
LONGEST = 100_000_000  # rows, frames or original tokens beyond which a file is taken for damaged


def watch_key(pipeline: Pipeline) -> dict[str, Any]:
    """The part of a recipe that decides what is stored: encode, segment, question-blind merges, the scorer where one is used."""
    recipe, stages = pipeline.recipe, pipeline.stages
    whole = recipe.to_dict()
    acting = [
        step.to_dict()
        for step, method in zip(recipe.merge, recipe.build()["merge"], strict=True)
        if not method.identity
    ]
    return {
        "scout": whole.get("scout") if stages.scout is not None else None,
        "encode": whole.get("encode"),
        "segment": whole.get("segment"),
        "merge": acting[: len(stages.blind)],
        "relevance": whole.get("relevance")
        if stages.need_relevance
        else None,  # a scorer may have looked at the pixels
    }


# ------------------------------------------------------------------------------------------------------------- writing


def save_video(video: Video, path: str | os.PathLike[str]) -> Path:
    """Write a watched film; the file takes its name when it is complete.

    Raises:
        UsageError: a name without the ending `.vpz`.
        FilmError: the film itself, whose digest goes into the file, is gone.
        OSError: the disk is full, or the folder cannot be written.
    """
    target = Path(path)
    if target.suffix != WATCHED:
        raise UsageError(f"save: {target.name!r} is given; a watched film's name ends in {WATCHED}, as movie{WATCHED}")
    tensors: dict[str, Tensor] = {}
    plain = {"tokens": _split(video.tokens, "tokens", tensors), "events": _split(video.events, "events", tensors)}
    if video.observed is not None:
        tensors["observed"] = video.observed
    about = {
        "format": FORMAT,
        "videoprune": __version__,
        "film": {"path": os.path.abspath(video.film), "digest": film_digest(video.film)},
        "model": {"name": video.pipeline.model_name, "digest": model_digest(video.pipeline.host)},
        "recipe": video.pipeline.recipe.to_dict(),
        "watched": watch_key(video.pipeline),
        "rule": dataclasses.asdict(video.rule) if video.rule is not None else None,
        "tensors": sorted(tensors),
        "plain": plain,
        "encoded_count": video.encoded_count,
        "seconds": video.seconds,
        "costs": {stage: dataclasses.asdict(cost) for stage, cost in video.costs.items()},
        "warnings": list(video.warnings),
        "metadata": dict(video.metadata),
        "choices": video.choices,
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    try:
        packed = {name: _narrow(tensor.detach().cpu()).contiguous() for name, tensor in tensors.items()}
        save_file(packed, scratch, metadata={"videoprune": json.dumps(about)})
        os.chmod(scratch, 0o644)
        os.replace(scratch, target)
    finally:
        Path(scratch).unlink(missing_ok=True)
    return target


def _split(whole: Any, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Put a dataclass's tensors into `tensors` and return the rest of its fields."""
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(whole):
        value = getattr(whole, field.name)
        if isinstance(value, Tensor):
            tensors[f"{name}.{field.name}"] = value
        elif isinstance(value, Mapping):
            tensors.update({f"{name}.{field.name}.{key}": each for key, each in value.items()})
        else:
            plain[field.name] = list(value) if isinstance(value, tuple) else value
    return plain


def _narrow(tensor: Tensor) -> Tensor:
    """An int64 tensor in the narrowest integer type that holds it."""
    if tensor.dtype != torch.int64 or not tensor.numel():
        return tensor
    low, high = int(tensor.min()), int(tensor.max())
    fits = (kind for kind in INTEGERS if torch.iinfo(kind).min <= low and high <= torch.iinfo(kind).max)
    return tensor.to(next(fits))


# ------------------------------------------------------------------------------------------------------------- reading


def read_about(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a watched film says of itself; no tensor is read.

    Raises:
        FilmError: not there, not such a file, damaged, or of a format that this version does not know.
    """
    name = os.fspath(path)
    if not Path(path).is_file():
        raise FilmError(f"watched film {name!r}: there is no such file; `videoprune index FILM` writes one")
    try:
        with safe_open(name, framework="pt") as file:
            text = (file.metadata() or {}).get("videoprune")
    except (SafetensorError, OSError) as error:
        raise FilmError(f"watched film {name!r}: damaged or no such file ({error}); watch the film again") from error
    if text is None:
        raise FilmError(
            f"watched film {name!r}: a safetensors file of something else; `videoprune index FILM` writes one"
        )
    about: dict[str, Any] = json.loads(text)
    if about.get("format") != FORMAT:
        raise FilmError(
            f"watched film {name!r}: its format is {about.get('format')}, this version reads {FORMAT}; watch the film again"
        )
    return about


def load_video(pipeline: Pipeline, path: str | os.PathLike[str]) -> Video:
    """A watched film as `pipeline.watch` gave it, on the pipeline's device.

    Raises:
        FilmError: damaged, or the film beside it is no longer the one that was watched.
        UsageError: watched with another model, or with other question-blind stages than the pipeline's.
    """
    name, about = os.fspath(path), read_about(path)
    _check_fits(name, about, pipeline)
    try:
        with safe_open(name, framework="pt") as file:
            _check_shapes(name, {key: list(file.get_slice(key).get_shape()) for key in file.keys()}, about, pipeline)  # noqa: SIM118
            tensors = {key: _widen(file.get_tensor(key)).to(pipeline.host.device) for key in file.keys()}  # noqa: SIM118
        tokens = _joined(VisualTokens, "tokens", about, tensors).check()
        events = _joined(Events, "events", about, tensors)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise FilmError(f"watched film {name!r}: damaged ({error}); watch the film again") from error
    return Video(
        pipeline=pipeline,
        film=about["film"]["path"],
        tokens=tokens,
        events=events,
        observed=tensors.get("observed"),
        encoded_count=about["encoded_count"],
        seconds=dict.fromkeys(about["seconds"], 0.0),
        costs={stage: Cost(**cost) for stage, cost in about["costs"].items()},
        warnings=about["warnings"],
        metadata=about["metadata"],
        choices=[*about["choices"], {"name": "film", "value": name, "reason": "watched before, read from disk"}],
        rule=FrameRule(**about["rule"]) if about["rule"] is not None else None,
    )


def _check_fits(name: str, about: Mapping[str, Any], pipeline: Pipeline) -> None:
    film = about["film"]
    if os.path.isfile(film["path"]) and film_digest(film["path"]) != film["digest"]:
        raise FilmError(f"watched film {name!r}: {film['path']} has changed since it was watched; watch it again")
    if model_digest(pipeline.host) != about["model"]["digest"]:
        raise UsageError(
            f"watched film {name!r}: it was watched with the model {about['model']['name']}, not with "
            f"{pipeline.model_name}; ask that one, or watch the film again"
        )
    now, then = watch_key(pipeline), about["watched"]
    if (
        "observed" not in about["tensors"] or now["relevance"] is None
    ):  # nothing of the scorer is stored, or none is asked
        now["relevance"] = then["relevance"]
    differing = [stage for stage in now if now[stage] != then.get(stage)]
    if differing:
        raise UsageError(
            f"watched film {name!r}: the recipe's {', '.join(differing)} differs from the one it was watched with "
            f"({'; '.join(f'{stage}: {then.get(stage)}' for stage in differing)}); what acts before a question cannot be "
            "changed afterwards: use that recipe, or watch the film again"
        )


def _check_shapes(name: str, shapes: Mapping[str, list[int]], about: Mapping[str, Any], pipeline: Pipeline) -> None:
    """Whether the tensors belong together, from the header alone: before memory is taken for them."""
    features, seconds = shapes.get("tokens.features", []), shapes.get("tokens.frame_seconds", [])
    if len(features) != 2 or len(seconds) != 1 or features[1] != pipeline.host.decoder_shape.width:
        raise FilmError(f"watched film {name!r}: damaged (features {features}, frames {seconds}); watch the film again")
    rows, frames = features[0], seconds[0]
    original = frames * about["plain"]["tokens"]["grid"][0] * about["plain"]["tokens"]["grid"][1]
    expected = {"tokens.owner": [original], "events.frame_event": [frames]}
    expected |= {f"tokens.{each}": [rows] for each in ("frame", "event", "seconds", "weight")} | {
        "tokens.cell": [rows, 2]
    }
    wrong = [f"{key} {shapes.get(key)}, not {shape}" for key, shape in expected.items() if shapes.get(key) != shape]
    wrong += [
        f"{key} {shape}" for key, shape in shapes.items() if key.startswith("tokens.scores.") and shape[0] != rows
    ]
    wrong += [f"{key} {shape}" for key, shape in shapes.items() if max(shape, default=0) > LONGEST]
    if wrong:
        raise FilmError(f"watched film {name!r}: damaged ({'; '.join(wrong)}); watch the film again")


def _widen(tensor: Tensor) -> Tensor:
    return tensor.to(torch.int64) if tensor.dtype in INTEGERS else tensor


def _joined(kind: Any, name: str, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    """The dataclass `kind` from what `_split` left of it."""
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in about["plain"][name].items()
    }
    for field in dataclasses.fields(kind):
        whole, inside = f"{name}.{field.name}", f"{name}.{field.name}."
        parts = {key.removeprefix(inside): tensor for key, tensor in tensors.items() if key.startswith(inside)}
        if whole in tensors:
            fields[field.name] = tensors[whole]
        elif parts:
            fields[field.name] = parts
    return kind(**fields)
