"""A saved film: what twenty questions cost once it was watched, and its first token next to loading and prefill alone.

    python benchmarks/saved_film.py --cache films
    python benchmarks/saved_film.py --cache films --minutes 10

The film is generated and cached (one hour takes about four CPU minutes). Writes its section of docs/results/long-films.md.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import shared
from long_films import PAGE, SEED, TITLE, film

QUESTIONS, BAR = 20, 1.10


def questions_of(seed: int, minutes: int) -> list[str]:
    """Twenty different questions about a film."""
    from videoprune.bench.films import HeldOut

    asked = list(dict.fromkeys(one.question.text for one in HeldOut(seed, 60 * minutes).questions(6)))
    if len(asked) < QUESTIONS:
        sys.exit(f"the film of seed {seed} and {minutes} minutes has {len(asked)} questions, {QUESTIONS} are needed")
    return asked[:: len(asked) // QUESTIONS][:QUESTIONS]


def cpu(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of one call, and what it gave."""
    begun = time.process_time()
    out = work()
    return time.process_time() - begun, out


def main() -> None:
    command = shared.parser(__doc__)
    command.add_argument("--cache", type=Path, required=True, metavar="DIR", help="where generated films are kept")
    command.add_argument("--minutes", type=int, default=60, help="length of the film; 60")
    command.add_argument("--seed", type=int, default=SEED, help=f"of the film; {SEED}")
    command.add_argument("--pairs", type=int, default=21, help="interleaved pairs of the first token; 21")
    shared.add_output(command, PAGE)
    given = command.parse_args()

    import torch
    from safetensors.torch import load_file

    from videoprune.asking import prepare
    from videoprune.bench.pairs import interleaved
    from videoprune.pipeline import Pipeline
    from videoprune.video import Film, FrameRule

    torch.set_num_threads(1)
    path, asked = film(given.cache, given.minutes, given.seed), questions_of(given.seed, given.minutes)
    saved, rule = path.with_suffix(".vpz"), FrameRule(fps=1)
    pipe = Pipeline.load("demo", max_new_tokens=16)
    calls = {"encoded": 0, "opened": 0}
    encode, opened = pipe.host.encode, Film.__init__

    def counted(images: Any, *rest: Any) -> Any:
        calls["encoded"] += len(images)
        return encode(images, *rest)

    def counting(self: Film, *rest: Any, **more: Any) -> None:
        calls["opened"] += 1
        opened(self, *rest, **more)

    pipe.host.encode, Film.__init__ = counted, counting  # type: ignore[method-assign]
    pipe.watch(path, frames=FrameRule(fps=1, end=64)).ask(asked[0])  # first calls are slower
    calls.update(encoded=0, opened=0)
    watching, video = cpu(lambda: pipe.watch(path, frames=rule))
    direct, answers = cpu(lambda: [video.ask(each).text for each in asked])
    watched = dict(calls)
    saving, _ = cpu(lambda: video.save(saved))
    calls.update(encoded=0, opened=0)
    later, again = cpu(lambda: [pipe.open(saved).ask(each).text for each in asked])
    print(f"watch {watching:.2f}, ask {direct:.2f}, save {saving:.2f}, later {later:.2f}", file=sys.stderr, flush=True)

    one = Pipeline(pipe.host, pipe.recipe)
    with torch.no_grad():
        ready = prepare(video, pipe.host.phrase(asked[0]))

        def first() -> object:
            """From the saved film to the first token."""
            held = prepare(one.open(saved), pipe.host.phrase(asked[0]))
            return pipe.host.generate(held.prompt, held.session(), 1)

        def bare() -> object:
            """Its tensors read, and the prompt that is ready prefilled."""
            load_file(str(saved))
            return pipe.host.generate(ready.prompt, ready.session(), 1)

        ratio = interleaved(first, bare, given.pairs, time.process_time)
    data = {
        "minutes": given.minutes, "seed": given.seed, "frames": watched["encoded"], "questions": len(asked),
        "tokens": video.tokens.count, "bytes": saved.stat().st_size, "watch": watching, "ask": direct, "save": saving,
        "ask_saved": later, "encoded_again": calls["encoded"], "opened_again": calls["opened"],
        "same_answers": answers == again, "first_token": ratio.to_dict(),
    }  # fmt: skip
    shared.publish(given, TITLE, f"A saved film of {given.minutes} minutes", text(data), data)


def text(data: dict[str, Any]) -> str:
    ratio, asked = data["first_token"], data["questions"]
    span = "" if ratio["low"] is None else f" [{ratio['low']:.3f}, {ratio['high']:.3f}]"
    once = data["encoded_again"] == 0 and data["opened_again"] == 0 and data["same_answers"]
    same = "the same" if data["same_answers"] else "**not the same**"
    anew = asked * data["watch"] + data["ask"]
    whole = data["watch"] + data["save"] + data["ask_saved"]
    rows = [
        ("watch: decode, encode, merge", data["frames"], f"{data['watch']:.2f}"),
        ("save", 0, f"{data['save']:.3f}"),
        (f"{asked} questions, each on the file opened anew", data["encoded_again"], f"{data['ask_saved']:.2f}"),
        (f"{asked} questions on the film in memory", 0, f"{data['ask']:.2f}"),
        (f"{asked} questions, each watching anew (computed)", asked * data["frames"], f"{anew:.0f}"),
    ]  # fmt: skip
    return "\n\n".join(
        (
            shared.prose(
                f"{data['frames']:,} frames, {data['tokens']:,} tokens stored in {shared.mib(data['bytes'])} MiB; demo model and",
                "recipe, CPU time in one process, one thread.",
            ),
            shared.table(("", "frames encoded", "CPU s"), rows),
            shared.prose(
                f"- {asked} questions cost one encoding: {data['encoded_again']} frames encoded and",
                f"{data['opened_again']} films opened while asking the file, the answers {same}: {shared.mark(once)}.",
                f"In all {whole:.1f} s of CPU time.",
            )
            + "\n"
            + shared.prose(
                f"- First token from the file over loading its tensors and prefilling the ready prompt, {ratio['pairs']} pairs",
                f"of CPU time: **{ratio['median']:.3f}**{span} ({1000 * ratio['ours']:.0f} and {1000 * ratio['theirs']:.0f} ms),",
                f"bar {BAR}: {shared.mark(ratio['median'] <= BAR)}.",
            ),
        )
    )


if __name__ == "__main__":
    main()
