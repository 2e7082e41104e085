"""The plug-in for lmms-eval, against a stand-in with the same interface (version 0.7.3)."""

from __future__ import annotations

import abc
import importlib
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import videoprune.evaluate.lmms_eval as plugin
from videoprune.errors import UsageError
from videoprune.registry import shipped

FILM = shipped("demo/film/demo.mp4", "data/video/1_plotQA/demo.mp4")


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


@dataclass
class TokenCounts:
    output_tokens: int | None = None


@dataclass
class GenerationResult:
    text: str
    token_counts: TokenCounts | None = None


class Base(abc.ABC):
    is_simple = True

    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}

    @abc.abstractmethod
    def loglikelihood(self, requests: Any) -> Any: ...

    @abc.abstractmethod
    def generate_until(self, requests: Any) -> Any: ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests: Any) -> Any: ...


@dataclass
class Instance:
    args: tuple[Any, ...]


@pytest.fixture
def lmms(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.models"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    for name, parts in {
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
        "lmms_eval.api.instance": {"GenerationResult": GenerationResult, "TokenCounts": TokenCounts},
        "lmms_eval.api.model": {"lmms": Base},
    }.items():
        module = types.ModuleType(name)
        vars(module).update(parts)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(vars(plugin), "VideoPrune", raising=False)
    yield
    vars(plugin).pop("VideoPrune", None)


def request(number: int, **settings: Any) -> Instance:
    def to_messages(doc: dict[str, Any]) -> list[dict[str, Any]]:
        parts = [{"type": "video", "url": doc["film"]}, {"type": "text", "text": doc["question"]}]
        return [{"role": "user", "content": parts}]

    return Instance(
        (
            "",
            to_messages,
            {"max_new_tokens": 16, "temperature": 0, "do_sample": False, **settings},
            number,
            "task",
            "test",
        )
    )


@pytest.mark.usefixtures("lmms")
def test_the_manifest_names_a_class_that_the_registry_accepts() -> None:
    manifest = plugin.manifest()
    assert (manifest.model_id, manifest.simple_class_path) == ("videoprune", None)
    module, name = manifest.chat_class_path.rsplit(".", 1)
    made = getattr(importlib.import_module(module), name)
    assert issubclass(made, Base)
    assert made.is_simple is False
    assert not made.__abstractmethods__
    assert getattr(plugin, name) is made
    with pytest.raises(AttributeError):
        plugin.Other


def test_the_entry_point_is_registered_and_light() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    target = project["entry-points"]["lmms_eval.models"]["videoprune"]
    assert target == f"{plugin.__name__}:{plugin.manifest.__name__}"
    code = f"import sys, {plugin.__name__}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.usefixtures("lmms")
def test_answers_are_those_of_the_pipeline_in_the_order_of_the_requests() -> None:
    model = plugin.VideoPrune(model=None, recipe="demo", set="frames.max=16", device="cpu", batch_size="1")
    questions = ["What color is the circle?", "Where does the video mainly take place?", "Which object appears first?"]
    model.task_dict = {"task": {"test": [{"film": str(FILM), "question": question} for question in questions]}}
    watched = []
    watch = model.asking.pipe.watch
    model.asking.pipe.watch = lambda *args, **kwargs: watched.append(args) or watch(*args, **kwargs)
    found = model.generate_until([request(2), request(0), request(1, until=["e"])])
    model.asking.pipe.recipe = model.asking.recipe
    video = watch(FILM)
    want = [video.ask(questions[number]) for number in (2, 0, 1)]
    assert [each.text for each in found[:2]] == [each.text for each in want[:2]]
    assert found[2].text == want[2].text.partition("e")[0]
    assert [each.token_counts.output_tokens for each in found] == [len(each.ids) for each in want]
    assert len(watched) == 1
    assert str(model.device) == "cpu"
    short = model.generate_until([request(0, max_new_tokens=1)])[0]
    assert short.token_counts.output_tokens == 1


def test_chats_are_read_or_refused() -> None:
    film = {"type": "video", "url": "a.mp4", "start_time": 2.0, "end_time": None}
    chat = [
        {"role": "user", "content": [film, {"type": "text", "text": " Why? "}]},
        {"role": "system", "content": "Look."},
    ]
    assert plugin.clip_and_text(chat) == (plugin.Clip("a.mp4", 2.0), "Look.\nWhy?")
    for content, word in (
        ([{"type": "text", "text": "x"}], "holds 0"),
        ([film, film], "holds 2"),
        ([film, {"type": "image", "url": object()}], "image"),
        ([{"type": "video", "url": object()}], "video"),
    ):
        with pytest.raises(UsageError, match=word):
            plugin.clip_and_text([{"role": "user", "content": content}])


def test_sampling_and_beams_are_refused() -> None:
    plugin.check_settings({"do_sample": True, "temperature": 0, "num_beams": 1})
    with pytest.raises(UsageError, match="sampling"):
        plugin.check_settings({"do_sample": True, "temperature": 0.7})
    with pytest.raises(UsageError, match="4 beams"):
        plugin.check_settings({"num_beams": 4})


@pytest.mark.usefixtures("lmms")
def test_what_is_not_supported_says_so() -> None:
    model = plugin.VideoPrune.__new__(plugin.VideoPrune)
    with pytest.raises(UsageError, match="likelihood"):
        model.loglikelihood([])
    with pytest.raises(UsageError, match="rounds"):
        model.generate_until_multi_round([])
    with pytest.raises(UsageError, match="batch_size=8"):
        plugin.VideoPrune(batch_size=8)
