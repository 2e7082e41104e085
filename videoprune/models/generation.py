"""Reading a prompt and answering under a session: greedy stock `generate()`, the beginning of a prompt, given replies."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache, StoppingCriteria, StoppingCriteriaList

from videoprune.errors import UsageError
from videoprune.models.cache import Past
from videoprune.models.decoder import compressed
from videoprune.models.session import Session, Trace

if TYPE_CHECKING:
    from videoprune.models.host import Host, Prompt

# settings of a checkpoint's generation_config that would silently mean something else here, and what they may be
PLAIN: dict[str, tuple[Any, ...]] = {
    "use_cache": (None, True),
    "cache_implementation": (None, "dynamic"),
    "prefill_chunk_size": (None,),
    "prompt_lookup_num_tokens": (None,),
    "assistant_early_exit": (None,),
    "num_return_sequences": (None, 1),
}


@dataclass(eq=False)
class Generation:
    """What `generate` gave: the answer's text and token ids, logits (steps, vocabulary) if asked for, and times in seconds."""

    text: str
    ids: list[int]
    trace: Trace
    logits: Tensor | None
    prefill_seconds: float
    decode_seconds: float


@dataclass(eq=False)
class Scored:
    """Given replies under a prompt: log-probabilities (n,) of each reply's tokens, float32, and times in seconds."""

    logprobs: list[Tensor]
    trace: Trace
    prefill_seconds: float
    score_seconds: float


def check_generation(model: Any, name: str) -> None:
    """Refuse what a checkpoint's generation_config asks for where it would change an answer unseen.

    Sampling and beams are no such thing: answers are greedy, whatever the checkpoint's default is.

    Raises:
        UsageError: no cache, a static one, a prompt in chunks, assisted decoding, several answers.
    """
    for key, allowed in PLAIN.items():
        given = getattr(model.generation_config, key, None)
        if given not in allowed:
            raise UsageError(
                f"model {name}: its generation_config has {key}={given!r}, which compression does not support; allowed is "
                f"{allowed[-1]!r}: remove it from generation_config.json"
            )


def check_text(tokenizer: Any, text: str, what: str) -> None:
    """Refuse text of a user that would be read as structure.

    Raises:
        UsageError: it contains a special token.
    """
    for special in tokenizer.all_special_tokens:
        if special in text:
            raise UsageError(f"the {what} contains {special!r}, a control token of this model: leave it out")


def stop_ids(model: Any) -> list[int]:
    """The tokens at which `generate` stops."""
    stops = model.generation_config.eos_token_id
    return [] if stops is None else list(stops) if isinstance(stops, list) else [int(stops)]


def end_of_turn(host: Host) -> int | None:
    """The token at which `generate` stops: the tokenizer's end token, or the first of generation_config's."""
    stops = stop_ids(host.model)
    own: int | None = host.tokenizer.eos_token_id
    return own if own in stops or not stops else int(stops[0])


def reply_ids(host: Host, text: str) -> Tensor:
    """(n,) token ids of a reply as the model would write it: its text, and the token that ends a turn where there is one.

    Raises:
        UsageError: a special token in it.
    """
    check_text(host.tokenizer, text, "option")
    ids, end = host.tokenizer(text, add_special_tokens=False)["input_ids"], end_of_turn(host)
    return torch.tensor(ids if end is None else [*ids, end], device=host.device, dtype=torch.int64)


class _Finish(StoppingCriteria):
    """Stops nothing: where one prompt of a batch has its answer, what the others still decode is not booked on it."""

    def __init__(self, sessions: Sequence[Session], stops: Sequence[int]) -> None:
        self.sessions, self.stops = list(sessions), set(stops)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        for session, last in zip(self.sessions, input_ids[:, -1].tolist(), strict=True):
            if last in self.stops:
                session.trace = Trace()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def generate(
    host: Host, prompts: Sequence[Prompt], sessions: Sequence[Session], max_new_tokens: int, logits: bool
) -> list[Generation]:
    """See `Host.generate` and `Host.generate_batch`."""
    check_generation(host.model, host.name)
    settings: dict[str, Any] = {}
    stops = stop_ids(host.model)
    if len(prompts) > 1:
        own = host.model.generation_config.pad_token_id
        settings["pad_token_id"] = own if own is not None else (stops or [0])[0]
        settings["stopping_criteria"] = StoppingCriteriaList([_Finish(sessions, stops)])
    embeddings = prompts[0].embeddings if len(prompts) == 1 else torch.cat([prompt.embeddings for prompt in prompts])
    traces = [session.trace for session in sessions]
    with host.lock, compressed(host.model, *sessions):
        begun = time.perf_counter()
        out = host.model.generate(
            inputs_embeds=embeddings,
            attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.int64, device=host.device),
            position_ids=torch.cat([prompt.position_ids for prompt in prompts], dim=-2),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            temperature=None,  # checkpoints that sample by default leave warnings behind otherwise
            top_p=None,
            top_k=None,
            return_dict_in_generate=True,
            output_logits=logits,
            **settings,
        )
        ended = time.perf_counter()
    answers = []
    for number, trace in enumerate(traces):
        ids = out.sequences[number].tolist()
        if len(prompts) > 1:
            ids = ids[: next((place for place, token in enumerate(ids, 1) if token in stops), len(ids))]
        first = traces[0].marks[0] if traces[0].marks else ended
        answers.append(
            Generation(
                text=host.tokenizer.decode(ids, skip_special_tokens=True).strip(),
                ids=ids,
                trace=trace,
                logits=torch.stack([step[number] for step in out.logits[: len(ids)]]) if logits else None,
                prefill_seconds=(first - begun) / len(prompts),
                decode_seconds=(ended - first) / len(prompts),
            )
        )
    return answers


def read(host: Host, prompt: Prompt, session: Session, rows: int) -> tuple[Past, float]:
    """Read the first `rows` rows of a prompt, its visual block among them; returns the cache and the seconds it took.

    Prefill methods act as on the whole prompt, where they look at nothing behind the visual block.
    """
    session.partial = True
    with host.lock, compressed(host.model, session):
        begun = time.perf_counter()
        host.decoder(
            inputs_embeds=prompt.embeddings[:, :rows],
            position_ids=prompt.position_ids[..., :rows],
            past_key_values=DynamicCache(config=host.decoder.config),
        )
    if session.left is None:
        raise UsageError("a prompt without a visual block is given; there is nothing to share")
    return session.left, session.trace.marks[-1] - begun


def score(host: Host, prompt: Prompt, session: Session, replies: Sequence[Tensor]) -> Scored:
    """Log-probabilities of each reply's token ids (n,) behind the prompt; see `Host.score`."""
    model = host.model
    with host.lock:
        begun = time.perf_counter()
        with compressed(model, session) as trace:
            first = model(
                inputs_embeds=prompt.embeddings,
                position_ids=prompt.position_ids,
                past_key_values=DynamicCache(config=host.decoder.config),
                logits_to_keep=1,
            ).logits[0]
        past, after = session.left, prompt.position_ids[..., -1:] + 1
        read_at = trace.marks[-1]
        logprobs = []
        for ids in replies:
            each = Session(session.visual, session.tokens, past=past, trace=trace.continued())
            logits = first
            if len(ids) > 1:
                cache = DynamicCache(config=host.decoder.config)
                cache.layers[:] = past.fork() if past is not None else []
                with compressed(model, each) as called:
                    rest = model(
                        inputs_embeds=host.embed(ids[:-1])[None],
                        position_ids=after + torch.arange(len(ids) - 1, device=after.device),
                        past_key_values=cache,
                    ).logits[0]
                logits = torch.cat((first, rest))
                trace.queries += called.queries
                trace.keys += called.keys
                trace.entries = called.entries
            chances = logits.float().log_softmax(-1)
            logprobs.append(chances.gather(1, ids[:, None].to(chances.device))[:, 0])
        ended = time.perf_counter()
    return Scored(logprobs, trace, read_at - begun, ended - read_at)
