"""What a trained method is: a method with a learned part, which is a small module kept in a safetensors file.

A method becomes one by inheriting `Trained` beside its stage's base class; it says what it learns, the trainer
(`videoprune.training`, `videoprune train NAME`) does the rest:

    @dataclass(frozen=True, kw_only=True)
    class LVPruning(Trained, PrefillMethod):
        lesson = "videoprune.training.answers:Answers"   # what it learns from: a `Lesson`
        schedule = Schedule(steps=400, learning_rate=1e-3)
        width_divisor: int = 4                           # hyper-parameters, as of any method

        def structure(self): return {"layers": [1, 8, 16], "width_divisor": self.width_divisor}   # what weights depend on
        def build(self, host): return Deciders(host.width, self.width_divisor)   # the part, untrained
        def start(self, run, layers): ... self.part ...                          # the part, bound to a host

A pipeline binds the part before any work (`Stages.check`): `weights` of the recipe names the file, None takes the one that
ships for the demo model, `videoprune/weights/NAME.safetensors`. A file that was made for another method, host or
structure, or that is damaged, is refused; shapes are compared before memory is taken for a single weight.

The file's metadata are texts: `videoprune` (format), `method` ("prefill.lvpruning"), and as JSON `host` (see `HostFacts`),
`structure`, and `training` (seed, settings, package version, what was reached).
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from videoprune.errors import UsageError
from videoprune.host_facts import HostFacts

if TYPE_CHECKING:
    from videoprune.models.host import Host

FORMAT = "1"
NEEDED = ("family", "width", "layers", "digest")  # facts that every file has
HEADER_LIMIT = 1 << 20  # bytes of a part's header
DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "BOOL": 1}  # bytes of one number

# ---------------------------------------------------------------------------------------------------------- the method


@dataclass(frozen=True)
class Schedule:
    """How a method is trained where nothing else is asked for.

    Attributes:
        steps: of the optimiser (AdamW).
        batch: examples a step.
        learning_rate: the highest; it falls along a cosine after the warm-up.
        warmup: share of the steps. weight_decay, clip: of AdamW, and of the gradient's norm.
        films: generated films that `--data demo` draws.
    """

    steps: int = 400
    batch: int = 4
    learning_rate: float = 1e-3
    warmup: float = 0.03
    weight_decay: float = 0.0
    clip: float = 1.0
    films: int = 100


@dataclass(frozen=True, kw_only=True)
class Trained(ABC):
    """Beside its stage's base class, what makes a method a trained one; see the module.

    Class attributes:
        lesson: "module:Class" of the `Lesson` that it learns from.
        schedule: the trainer's defaults for it.
        host_bound: whether the part belongs to one model; a part that looks at pixels alone fits any.
        facts: where it does not, the facts of a host that it depends on all the same.

    Args:
        weights: file of the learned part; None takes the one that ships for the demo model.
    """

    lesson: ClassVar[str]
    schedule: ClassVar[Schedule] = Schedule()
    host_bound: ClassVar[bool] = True
    facts: ClassVar[tuple[str, ...]] = ()

    weights: str | None = None

    @abstractmethod
    def build(self, host: HostFacts) -> nn.Module:
        """The part with its initial weights; must also work under `torch.device("meta")`, where no memory is taken."""

    def structure(self) -> dict[str, Any]:
        """The hyper-parameters that weights of this part depend on, as plain data: a file with others is refused."""
        return {}

    @property
    def weights_name(self) -> str:
        """Name of the file that ships for the demo model."""
        return method_name(self).rpartition(".")[2]

    @property
    def part(self) -> nn.Module:
        """The part that `bind` left.

        Raises:
            UsageError: nothing is bound.
        """
        part: nn.Module | None = self.__dict__.get("_part")
        if part is None:
            raise UsageError(
                f"weights: {method_name(self)} has no learned part yet; load it through a Pipeline, or bind one"
            )
        return part

    def bind(
        self, host: HostFacts, part: nn.Module | None = None, device: torch.device | None = None
    ) -> dict[str, Any]:
        """Load the part for a host, or take `part`; the training's record where there is one.

        Raises:
            UsageError: see `load_part`.
        """
        record: dict[str, Any] = {}
        if part is None:
            file = shipped_weights(self) if self.weights is None else Path(self.weights).expanduser()
            part, record = load_part(file, self, host)
        object.__setattr__(self, "_part", part.float().to(device or "cpu").eval().requires_grad_(False))
        return record


def bind_fresh(methods: Iterable[Any], host: HostFacts, seed: int = 0) -> None:
    """Give trained methods untrained parts, where only counts and costs matter: plans, measurements, tests."""
    for method in methods:
        if isinstance(method, Trained):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                method.bind(host, method.build(host))


def method_name(method: Any) -> str:
    """ "stage.name" of a method of this package, the module's last name for another's."""
    module = type(method).__module__.split(".")
    return ".".join(module[-2:]) if module[0] == "videoprune" else module[-1]


def bound_facts(method: Any, host: HostFacts) -> dict[str, Any]:
    """The facts of a host that must be the same where the method's part is used."""
    facts = asdict(host)
    return facts if method.host_bound else {name: facts[name] for name in method.facts}


def shipped_weights(method: Any) -> Path:
    """Where the learned part for the demo model is in the package."""
    return Path(__file__).parent / "weights" / f"{method.weights_name}.safetensors"


# ------------------------------------------------------------------------------------------------------------ training


class Lesson(ABC):
    """What a method learns from: examples by number, and a loss on some of them. The trainer makes it by

        Lesson(method, host, data, films=…, seed=…, tell=…)

    where `data` is "demo" or a folder of films with a file of questions. The trainer owns the optimiser, checkpoints, logs
    and the order of the examples.
    """

    method: Any
    host: Host

    @abstractmethod
    def __len__(self) -> int:
        """Examples."""

    @abstractmethod
    def __getitem__(self, index: int) -> Any:
        """One example, the same at every call; whatever `loss` understands."""

    @abstractmethod
    def loss(self, part: nn.Module, examples: Sequence[Any], progress: float) -> dict[str, Tensor]:
        """Scalars: "loss" is minimised, the others are logged.

        Draws come from torch's global generator, which checkpoints hold. `progress` runs from 0 to 1 over the training.
        """

    def held_out(self, part: nn.Module) -> dict[str, float]:
        """Figures on examples that were not trained on, for the record; nothing by default."""
        return {}


# ------------------------------------------------------------------------------------------------------------ the file


def save_part(
    path: str | os.PathLike[str], part: nn.Module, method: Any, host: HostFacts, training: Mapping[str, Any]
) -> Path:
    """Write a learned part; the file appears at once and complete."""
    from safetensors.torch import save_file

    path = Path(path)
    about = {
        "videoprune": FORMAT,
        "method": method_name(method),
        "host": json.dumps(bound_facts(method, host)),
        "structure": json.dumps(method.structure(), sort_keys=True),
        "training": json.dumps(dict(training)),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file(
            {name: value.detach().cpu().contiguous() for name, value in part.state_dict().items()}, temporary, about
        )
        temporary.chmod(0o644)  # safetensors leaves a file that its writer alone can read
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read_about(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, tuple[str, tuple[int, ...]]]]:
    """A part's metadata (JSON read) and its weights by name, each (dtype, shape); only the header is read.

    Raises:
        UsageError: not there, no such file, or damaged.
    """
    path = Path(path)

    def bad(why: str) -> UsageError:
        return UsageError(f"weights: {path} {why}; give a file that `videoprune train` wrote")

    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(HEADER_LIMIT, size - 8):
                raise bad("is no safetensors file, or its beginning is damaged")
            header = json.loads(file.read(length))
    except OSError as error:
        raise bad(f"can't be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise (
            bad("is no safetensors file, or its header is damaged") if not isinstance(error, UsageError) else error
        ) from None
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__"), dict):
        raise bad("says nothing of what it was trained for")
    raw = header.pop("__metadata__")
    about: dict[str, Any] = {"videoprune": raw.get("videoprune"), "method": raw.get("method")}
    try:
        for key in ("host", "structure", "training"):
            about[key] = json.loads(raw[key])
        if not all(isinstance(about[key], dict) for key in ("host", "structure", "training")):
            raise ValueError
        weights, spans = {}, []
        for name, entry in header.items():
            shape = tuple(entry["shape"])
            if not all(isinstance(side, int) and not isinstance(side, bool) and side >= 0 for side in shape):
                raise ValueError
            start, end = entry["data_offsets"]
            count = 1
            for side in shape:
                count *= side
            if end - start != count * DTYPES[entry["dtype"]]:
                raise ValueError
            weights[name] = (entry["dtype"], shape)
            spans.append((start, end))
        ends = [0, *(end for _, end in sorted(spans))]
        if [start for start, _ in sorted(spans)] != ends[:-1] or 8 + length + ends[-1] != size:
            raise ValueError
    except (KeyError, TypeError, ValueError, RecursionError, AttributeError):
        raise bad("is damaged or cut: its header and its size do not agree") from None
    if about["videoprune"] != FORMAT:
        raise bad(f"is of format {about['videoprune']!r}, and this version reads {FORMAT!r}: train it again")
    return about, weights


def load_part(path: str | os.PathLike[str], method: Any, host: HostFacts) -> tuple[nn.Module, dict[str, Any]]:
    """A learned part and the record of its training.

    Raises:
        UsageError: the file is missing, damaged, of another method or structure, for another host, or has weights that are
            not finite or not of the part's shapes; found by its header, before memory is taken.
    """
    name = method_name(method)
    short = name.rpartition(".")[2]
    train = f"`videoprune train {short} --model … --data … --out DIR` makes one"
    if method.weights is None and not Path(path).is_file():
        raise UsageError(f"weights: none ship for {name}; {train}, then give {name}.weights")
    about, found = read_about(path)
    if about["method"] != name:
        raise UsageError(
            f"weights: {path} was trained for {about['method']}, and the recipe's method is {name}; {train}"
        )
    if about["structure"] != json.loads(json.dumps(method.structure())):
        raise UsageError(
            f"weights: {path} was trained with {_told(about['structure'])}, and the recipe says {_told(method.structure())}; "
            f"give the same, or train again: {train}"
        )
    _check_host(path, about["host"], bound_facts(method, host), host.family, f"{train}, then give {name}.weights")
    with torch.device("meta"):
        part = method.build(host)
    expected = {key: tuple(value.shape) for key, value in part.state_dict().items()}
    shapes = {key: shape for key, (_, shape) in found.items()}
    for key in sorted(expected.keys() | shapes.keys()):
        if expected.get(key) != shapes.get(key):
            raise UsageError(
                f"weights: {path}: {key} is {_shape(shapes.get(key))}, and {name} on this model has {_shape(expected.get(key))}; "
                f"the file is damaged or was made by another version: {train}"
            )
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UsageError(f"weights: {path} can't be read ({str(error)[:160]}); {train}") from None
    if not all(bool(torch.isfinite(value).all()) for value in state.values() if value.is_floating_point()):
        raise UsageError(
            f"weights: {path} holds numbers that are not finite: the training failed or the file is damaged; {train}"
        )
    part.load_state_dict(state, assign=True)
    return part, about["training"]


def _check_host(
    path: str | os.PathLike[str], trained_for: Mapping[str, Any], facts: Mapping[str, Any], family: str, advice: str
) -> None:
    for key, value in json.loads(json.dumps(dict(facts))).items():
        if key == "digest" and not value:
            continue  # quantised or waiting elsewhere: sizes have to do
        if trained_for.get(key) != value:
            what = "weights" if key == "digest" else f"{key} {trained_for.get(key)!r}"
            this = "others" if key == "digest" else f"{value!r}"
            model = f"{trained_for['family']}, with" if "family" in trained_for else "one with"
            raise UsageError(
                f"weights: {path} was trained for another model ({model} {what}; this one, {family}, has {this}); {advice}"
            )


def _told(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items()) or "nothing"


def _shape(shape: Sequence[int] | None) -> str:
    return "missing" if shape is None else "x".join(map(str, shape)) or "one number"
