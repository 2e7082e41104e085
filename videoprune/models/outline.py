"""A host without weights: the stock model on torch's meta device, built from config.json alone.

It knows every shape that the loaded host knows, so that what a run costs can be told before anything is downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils import cached_file

from videoprune.errors import EnvironmentProblem
from videoprune.models.host import Host
from videoprune.models.known import known_shape, refuse_unknown
from videoprune.models.load import read_json, recognise
from videoprune.models.preprocess import Preprocess
from videoprune.models.weights import Weights, read_weights

PIECES = re.compile(r"<[^<>]*>|\d|[^\W\d]+|[^\w\s]|\n")


class NoTokenizer:
    """Stands where a host expects a tokenizer; an outline reads no text."""

    eos_token_id: int | None = None
    bos_token: str | None = None
    chat_template: str | None = None
    all_special_tokens: tuple[str, ...] = ()

    def tokenize(self, text: str) -> list[str]:
        return [text]

    def convert_tokens_to_ids(self, token: str) -> int:
        return 0

    def __call__(self, text: str, **unused: Any) -> dict[str, list[int]]:
        """Ids without meaning, about as many as a tokenizer gives: words, digits, marks, control tokens."""
        return {"input_ids": [0] * len(PIECES.findall(text))}

    def __len__(self) -> int:
        return 0


@dataclass(frozen=True, eq=False)
class Outline:
    """A host on the meta device.

    Attributes:
        host: as loaded, but every weight is a shape.
        weights: what the checkpoint's headers say, None where only its config is known.
        parameters: weights that the stock class has.
        source: where the shape is from.
        reason: why the family was taken.
    """

    host: Host
    weights: Weights | None
    parameters: int
    source: str
    reason: str

    def weight_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of all weights as `dtype`."""
        return self.parameters * (torch.finfo(dtype).bits // 8)


def find_config(model: str, revision: str | None = None) -> tuple[Mapping[str, Any], str]:
    """The config of a folder, a hub name or a known shape, and where it is from.

    Raises:
        EnvironmentProblem: it is none of these.
        UsageError: a bare name that is no known shape.
    """
    known = known_shape(model)
    if Path(model).expanduser().exists() or known is None:
        if not Path(model).expanduser().exists() and not any(mark in model for mark in "/\\."):
            raise refuse_unknown(model)
        return read_json(model, "config.json", revision), "config.json"
    try:  # a well-known name asks no hub
        path = cached_file(model, "config.json", revision=revision, local_files_only=True) if "/" in model else None
    except (OSError, ValueError):
        path = None
    if path is not None:
        return read_json(model, "config.json", revision), "config.json"
    return known[1], f"the known shape {known[0]}, as no config.json of {model} is at hand"


def build_outline(
    model: str, *, dtype: torch.dtype = torch.float32, attn: str = "sdpa", revision: str | None = None
) -> Outline:
    """The outline of a checkpoint folder (a config.json is enough), a hub name or a known shape.

    Raises:
        EnvironmentProblem, UsageError: as `find_config`; a family or a variant that is not supported.
    """
    config, source = find_config(model, revision)
    try:
        family, reason = recognise(config)
        own = family.loading(config)
    except EnvironmentProblem as error:
        raise EnvironmentProblem(f"model {model}: {error}") from error
    host = meta_host(family, config, own, model, dtype, attn)
    if source == "config.json":
        told: list[dict[str, str]] = []
        read = lambda file: read_json(model, file, revision, required=False)  # noqa: E731
        host.preprocess = family.own_preprocess(read, host.model.config, told) or host.preprocess
    weights = read_weights(model, revision, config) if source == "config.json" else None
    parameters = sum(parameter.numel() for parameter in host.model.parameters())
    return Outline(host, weights, parameters, source, reason)


def meta_host(
    family: type[Host], config: Mapping[str, Any], own: Mapping[str, Any], name: str, dtype: torch.dtype, attn: str
) -> Host:
    """A family's host over its stock model on the meta device; `own` is what `family.loading` gave.

    Raises:
        EnvironmentProblem: transformers cannot build a model of this config.
    """
    stock = getattr(transformers, family.stock)
    try:
        settled = own.get("config") or stock.config_class.from_dict(plain_config(config))
        with torch.device("meta"):
            model = stock._from_config(settled, dtype=dtype, attn_implementation=attn)
    except Exception as error:  # a config's own checks raise whatever they like
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EnvironmentProblem(
            f"model {name}: its config.json describes no {family.stock} ({first[:200]})"
        ) from error
    return family(model.eval(), NoTokenizer(), name, square_preprocess(model.config))


def square_preprocess(config: Any) -> Preprocess:
    """Frames to the tower's size and no more: for models that see no real frames."""
    size = getattr(config.vision_config, "image_size", 0)
    return Preprocess(size=int(size[0] if isinstance(size, (list, tuple)) else size))


def plain_config(value: Any) -> Any:
    """Configs take dictionaries, and change them."""
    if isinstance(value, Mapping):
        return {key: plain_config(item) for key, item in value.items()}
    return list(value) if isinstance(value, (list, tuple)) else value
