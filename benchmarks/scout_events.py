"""What a scout misses and what it costs: events of held-out generated films of which the vision tower sees a frame.

    python benchmarks/scout_events.py --films 40

Films are drawn at one frame a second, as `videoprune bench accuracy` samples them, without a video file between. An event
counts as shown where one frame inside it reaches the tower. CPU times of scout and tower are taken in turn on the same frames.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from videoprune import __version__
from videoprune.bench.films import FIRST_SEED, HeldOut
from videoprune.demo import weights_path
from videoprune.demo.film import film_timeline
from videoprune.encode.ssm import SSM as Prune
from videoprune.method import EncodeMethod, ScoutMethod
from videoprune.models.load import load_host
from videoprune.report.flops import Cost
from videoprune.scout.random import Random
from videoprune.scout.ssm import SSM
from videoprune.scout.uniform import Uniform
from videoprune.scouting import Scouting
from videoprune.trained import HostFacts
from videoprune.training.concepts import draw

KINDS = ("actor", "item", "anomaly")


def untrained(eyes: SSM, facts: HostFacts) -> torch.nn.Module:
    """A tower with random weights, its features centred on 120 pictures."""
    torch.manual_seed(0)
    part: Any = eyes.build(facts).eval()
    with torch.no_grad():
        part.centre.copy_(part(eyes.pixels_of(part, draw(3, 45_000_000)[0]))[0].mean(dim=0))
    return part


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, default=40)
    parser.add_argument("--frames", type=int, default=128, help="of a film, one a second")
    parser.add_argument("--keeps", default="0.2,0.3,0.4")
    parser.add_argument("--prune", type=float, default=0.5, help="share of the scout's tokens that encode.ssm leaves")
    parser.add_argument("--weights", help="of the scout; the shipped ones where left out")
    parser.add_argument("--untrained", action="store_true", help="random weights: what the choice alone is worth")
    options = parser.parse_args()
    torch.set_num_threads(1)
    host = load_host(str(weights_path()), device="cpu", dtype="float32")
    eyes = SSM(weights=options.weights)
    facts = HostFacts.of(host)
    eyes.bind(facts, untrained(eyes, facts) if options.untrained else None)
    prune: tuple[EncodeMethod, ...] = (Prune(keep=options.prune),)
    shown: dict[tuple[str, float], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    sent: dict[tuple[str, float], int] = defaultdict(int)
    events: dict[str, int] = defaultdict(int)
    total, scout_seconds, tower_seconds = 0, list[float](), list[float]()
    for seed in range(FIRST_SEED, FIRST_SEED + options.films):
        film = HeldOut(seed, options.frames)
        images, seconds = film.drawn()
        total += len(images)
        started = time.process_time()
        looked = [eyes.see(images[at : at + 32], prune, at)[0] for at in range(0, len(images), 32)]
        scout_seconds.append((time.process_time() - started) / len(images))
        if len(tower_seconds) < 10:
            started = time.process_time()
            for at in range(0, len(images), 32):
                host.encode(images[at : at + 32], seconds[at : at + 32], at)
            tower_seconds.append((time.process_time() - started) / len(images))
        features = torch.cat([each for each in looked if each is not None])
        happened = [(event, (seconds >= event.start) & (seconds < event.end)) for event in
                    film_timeline(film.minutes, seed).events]  # fmt: skip
        happened = [(event, inside) for event, inside in happened if inside.any()]
        for event, _ in happened:
            events[event.kind] += 1
        for keep in map(float, options.keeps.split(",")):
            scouts: dict[str, ScoutMethod] = {"ssm": replace(eyes, keep=keep), "uniform": Uniform(keep=keep),
                                              "random": Random(keep=keep)}  # fmt: skip
            for name, scout in scouts.items():
                kept = Scouting(scout, ()).choose(features, len(features), Cost()).kept.numpy()
                sent[name, keep] += len(kept)
                for event, inside in happened:
                    shown[name, keep][event.kind] += bool(inside[kept].any())
    command = (
        f"python benchmarks/scout_events.py --films {options.films} --frames {options.frames} --keeps {options.keeps}"
    )
    command += " --untrained" if options.untrained else ""
    print(f"`{command} --prune {options.prune:g}`, videoprune {__version__}: {options.films} films, seeds {FIRST_SEED} on, "
          f"{total} frames, {sum(events.values())} events\n")  # fmt: skip
    print("| scout | frames shown | " + " | ".join(f"{kind} ({events[kind]})" for kind in KINDS) + " | all |")
    print("|---|---|" + "---|" * (len(KINDS) + 1))
    for (name, keep), found in sorted(shown.items(), key=lambda item: (item[0][1], item[0][0])):
        cells = [f"{100 * found[kind] / max(1, events[kind]):.1f} %" for kind in KINDS]
        whole = 100 * sum(found.values()) / sum(events.values())
        print(
            f"| {name}, keep {keep:g} | {100 * sent[name, keep] / total:.1f} % | "
            + " | ".join(cells)
            + f" | {whole:.1f} % |"
        )
    ours, theirs = median(scout_seconds), median(tower_seconds)
    flops = eyes.cost(1, prune), host.dense_encode_cost(1, host.grid).total
    unpruned = eyes.cost(1, ())
    print(
        f"\nA frame costs the scout {1e3 * ours:.2f} ms of CPU time and {flops[0] / 1e6:.2f} MFLOPs ({unpruned / 1e6:.2f} "
        f"unpruned), the demo model's tower {1e3 * theirs:.2f} ms and {flops[1] / 1e6:.0f} MFLOPs: "
        f"{100 * ours / theirs:.0f} % of the time, {100 * flops[0] / flops[1]:.1f} % of the FLOPs. Times are medians over films, "
        "one thread, on a loaded machine."
    )


if __name__ == "__main__":
    main()
