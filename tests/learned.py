"""Learned parts with random weights, as files: for hosts that nothing was trained for."""

from __future__ import annotations

from pathlib import Path

import torch

from videoprune.models.host import Host
from videoprune.recipe import Recipe
from videoprune.registry import STAGES, find
from videoprune.trained import HostFacts, Trained, save_part


def untrained(stage: str, name: str, host: Host, folder: Path) -> Path:
    """The file of a part of a method with its own settings."""
    made, facts = find(stage, name).load()(), HostFacts.of(host)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        part = made.build(facts)
    return save_part(folder / f"{stage}-{name}.safetensors", part, made, facts, {"seed": 0})


def weights_for(recipe: str, host: Host, folder: Path) -> list[str]:
    """Overrides that give every trained method of a shipped recipe such a file."""
    changes = []
    for stage in STAGES:
        steps = Recipe.load(recipe).steps(stage)
        for number, step in enumerate(steps):
            if issubclass(find(stage, step.method).load(), Trained):
                place = f"{stage}.{number}" if len(steps) > 1 else stage
                changes.append(f"{place}.weights={untrained(stage, step.method, host, folder)}")
    return changes
