"""Planned next to measured peak memory, above what is resident once a model is loaded.

A random-weight LLaVA-OneVision of a width at which a run takes a gigabyte or more answers one question about the demo film;
each run is a process of its own, so that nothing is left over from the one before. Linux only: the peak is VmHWM, reset once
the model is there.

    python benchmarks/memory.py
    python benchmarks/memory.py --recipe dense --frames 32
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import shared

RECIPES = ("dense", "aim-paper", "sta-aim-metok")
FRAMES = (32, 64)
CONFIG: dict[str, Any] = {
    "model_type": "llava_onevision",
    "text_config": {
        "model_type": "qwen2",
        "vocab_size": 1024,
        "hidden_size": 256,
        "intermediate_size": 12288,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 32768,
    },
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 256,
        "intermediate_size": 6144,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 384,
        "patch_size": 14,
        "vision_use_head": False,
    },
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
    "tie_word_embeddings": False,
}
NEW_TOKENS = 4


def one(recipe: str, frames: int, film: Path) -> dict[str, Any]:
    """One run in this process: planned and measured bytes above what is resident after loading."""
    from videoprune.models.llava_onevision import LlavaOnevision
    from videoprune.models.scratch import scratch_host
    from videoprune.pipeline import Pipeline
    from videoprune.plan import Planner
    from videoprune.recipe import Recipe

    overrides = [f"frames={{frames: {frames}}}", f"max_new_tokens={NEW_TOKENS}"]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(CONFIG))
        planner = Planner.of(folder, recipe, overrides=overrides, device="cpu", dtype="float32")
        from videoprune.video import probe

        facts = probe(film)
        planned = planner.plan(frames, picture=(facts.height, facts.width), question_tokens=16, new_tokens=NEW_TOKENS)
    del planner
    host = scratch_host(LlavaOnevision, CONFIG)
    pipe = Pipeline(host, Recipe.load(recipe, overrides))
    resident = shared.memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    report = pipe.ask(film, "what happens after the red circle ?").report
    return {
        "recipe": recipe,
        "frames": frames,
        "tokens": report.tokens["merged"],
        "phase": planned.memory.phase,
        "phases": dict(planned.memory.phases),
        "planned": planned.memory.peak,
        "measured": shared.memory("VmHWM") - resident,
        "weights_planned": planned.weight_bytes,
        "weights": sum(parameter.nbytes for parameter in host.model.parameters()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", action="append", help=f"repeatable; else {', '.join(RECIPES)}")
    parser.add_argument("--frames", action="append", type=int, help=f"repeatable; else {FRAMES}")
    parser.add_argument("--film", type=Path, help="else the demo film")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # for the processes that this one starts
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.recipe[0], given.frames[0], given.film)))
        return
    import torch
    import transformers

    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.platform()}, float32\n")
    print("| recipe | frames | tokens in the LM | peak in | planned, MiB | measured, MiB | planned / measured |")
    print("|---|---|---|---|---|---|---|")
    from videoprune.registry import shipped

    film = str(given.film or shipped("demo/film/demo.mp4", "data/video/1_plotQA/demo.mp4"))
    for recipe in given.recipe or RECIPES:
        for frames in given.frames or FRAMES:
            words = [__file__, "--one", "--recipe", recipe, "--frames", str(frames), "--film", film]
            done = subprocess.run([sys.executable, *words], stdout=subprocess.PIPE, check=True)
            row = json.loads(done.stdout.splitlines()[-1])
            print(
                f"| {recipe} | {frames} | {row['tokens']:,} | {row['phase']} | {row['planned'] / 2**20:.0f} "
                f"| {row['measured'] / 2**20:.0f} | {row['planned'] / row['measured']:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
