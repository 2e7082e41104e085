"""Further questions: equal to the stock model on the whole conversation, or to reading the pruned conversation anew."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from tests.tiny import llava15, longva, onevision
from videoprune.asking import prepare
from videoprune.demo.film import make_film
from videoprune.demo.language import CHAT_TEMPLATE
from videoprune.errors import UsageError
from videoprune.models.decoder import compressed
from videoprune.models.generation import end_of_turn
from videoprune.models.host import QUESTION, Host
from videoprune.models.load import load_host
from videoprune.models.session import Session
from videoprune.models.turns import next_turn
from videoprune.pipeline import Pipeline
from videoprune.recipe import Recipe
from videoprune.watched import Video

ASKED = ["what happens after the red circle ?", "what are you ?", "the red circle ?"]
FRAMES = {"frames": {"fps": 1, "max": 8}, "max_new_tokens": 5}
BLIND = {
    "dense": {},
    "merge": {"merge": {"method": "aim", "keep": 0.5}},
    "prefill": {"prefill": {"method": "random", "keep": 0.4}},
    "compact": {"prefill": {"method": "random", "keep": 0.4, "positions": "compact"}},
    "decode": {"decode": {"method": "streamingllm", "keep": 0.6}},
    "all": {
        "merge": {"method": "aim", "keep": 0.6},
        "prefill": [{"method": "uniform", "keep": 0.5}],
        "decode": [{"method": "random", "keep": 0.8}],
    },
}
AWARE = {
    "merge.metok": {"segment": {"method": "metok"}, "merge": {"method": "metok"}},
    "prefill.aim": {"prefill": {"method": "aim", "keep": 0.4}},
    "prefill.fastv": {"prefill": {"method": "fastv"}},
    "decode.a2sf": {"decode": {"method": "a2sf", "keep": 0.4}},
    "prefill.metok": {"segment": {"method": "metok"}, "prefill": {"method": "metok"}},
}


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "demo.mp4"
    make_film(path, minutes=20 / 60, seed=3)
    return path


@pytest.fixture(scope="module", params=[onevision, longva, llava15], ids=lambda make: make.__name__)
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Host:
    return load_host(request.param(tmp_path_factory.mktemp("model")), device="cpu")


def watched(host: Host, film: Path, recipe: dict) -> Video:
    return Pipeline(host, Recipe.load({**FRAMES, **recipe}), seed=1).watch(film)


def turn_choice(answer) -> str | None:
    return next((choice["value"] for choice in answer.report.choices if choice["name"] == "turn"), None)


def ids_of(host: Host, text: str) -> list[int]:
    return host.tokenizer(text, add_special_tokens=False)["input_ids"]


def conversation_logits(video: Video, answers: list) -> list[torch.Tensor]:
    """The stock model on the whole conversation in one pass: (steps, vocabulary) logits of each answer's tokens."""
    host = video.pipeline.host
    prompt, _ = host.prompt(ASKED[0], video.tokens)
    end, turn = end_of_turn(host), next_turn(host)
    rows, spans = [prompt.embeddings[0]], []
    for number, answer in enumerate(answers):
        spans.append((sum(map(len, rows)), len(answer.ids)))
        said = answer.ids[:-1] if answer.ids[-1] == end else answer.ids
        following = ids_of(host, turn.replace(QUESTION, ASKED[number + 1])) if number + 1 < len(answers) else []
        rows.append(host.embed(torch.tensor([*said, *following], dtype=torch.int64)))
    with torch.no_grad():
        logits = host.model(inputs_embeds=torch.cat(rows)[None], use_cache=False).logits[0]
    return [logits[start - 1 : start - 1 + count] for start, count in spans]


@pytest.mark.parametrize("stops", [False, True], ids=["cut-off", "stops"])
def test_nothing_pruned_equals_stock_on_the_whole_conversation(stops: bool, host: Host, film: Path) -> None:
    """Answers that were cut off, and answers that end with the end of the turn, which the template writes too."""
    settings = host.model.generation_config
    first = watched(host, film, {}).ask(ASKED[0]).ids
    settings.eos_token_id = [first[2]] if stops else None  # the model itself will never write its end: it is random
    try:
        video = watched(host, film, {})
        chat = video.chat()
        answers = [chat.ask(question, logits=True) for question in ASKED]
        want = conversation_logits(video, answers)
    finally:
        settings.eos_token_id = None
    assert [turn_choice(answer) for answer in answers] == [None, "continued", "continued"]
    assert (len(answers[0].ids) < 5) == stops
    for answer, logits in zip(answers, want, strict=True):
        torch.testing.assert_close(answer.logits, logits[: len(answer.logits)], atol=1e-5, rtol=0)
        assert answer.ids == logits.argmax(-1).tolist()
    assert chat.turns == answers


@pytest.mark.parametrize("recipe", ["merge", "prefill", "compact"])
def test_a_continued_turn_equals_reading_the_conversation_anew(recipe: str, host: Host, film: Path) -> None:
    """Methods that look at no question choose the same, whether a turn continues or starts again."""
    chat = watched(host, film, BLIND[recipe]).chat()
    continued = [chat.ask(question, logits=True) for question in ASKED]
    chat = watched(host, film, BLIND[recipe]).chat()
    for answer in continued:
        chat._last = None
        anew = chat.ask(answer.question, logits=True)
        torch.testing.assert_close(anew.logits, answer.logits, atol=1e-5, rtol=0)
        assert anew.ids == answer.ids
        assert anew.report.tokens == answer.report.tokens
    assert turn_choice(continued[1]) == "continued"
    assert continued[1].report.flops["prefill"].total < anew.report.flops["prefill"].total / 3


@pytest.mark.parametrize("recipe", BLIND)
def test_blind_recipes_continue_the_cache(recipe: str, host: Host, film: Path) -> None:
    video = watched(host, film, BLIND[recipe])
    chat = video.chat()
    one, two = chat.ask(ASKED[0]), chat.ask(ASKED[1])
    assert turn_choice(one) is None
    assert turn_choice(two) == "continued"
    new_rows = two.trace.queries[0][0]
    assert new_rows < 30 < len(two.tokens)
    assert set(two.trace.queries[0]) == {new_rows}, "a further turn has no visual tokens to prune"
    assert two.report.tokens == one.report.tokens
    if recipe == "dense":
        assert two.report.kv["bytes"] == two.report.kv["dense_bytes"]


def test_eviction_goes_on_through_the_turns(host: Host, film: Path) -> None:
    video = watched(host, film, BLIND["decode"])
    chat = video.chat()
    sizes = [max(chat.ask(question).report.kv["entries"]) for question in ASKED]
    alone = max(video.ask(ASKED[0]).report.kv["entries"])
    assert sizes == [alone] * 3  # the budget of the first prompt holds


def test_a_turn_read_at_once_equals_a_token_at_a_time(host: Host, film: Path) -> None:
    """Layers and heads hold different entries by now; rows of the new turn must each see those, and the rows before them."""
    recipe = {"prefill": {"method": "random", "keep": 0.4}, "decode": {"method": "random", "keep": 0.7}}
    video = watched(host, film, recipe)
    chat = video.chat()
    first, second = chat.ask(ASKED[0]), chat.ask(ASKED[1], logits=True)
    assert len(set(first.report.kv["entries"])) > 1
    asked = prepare(video, ASKED[1], [(ASKED[0], first.ids)])
    prompt, chat = asked.prompt, video.chat()
    chat.ask(ASKED[0])
    past = chat._last[1].left
    cache = DynamicCache(config=host.decoder.config)
    cache.layers[:] = past.fork()
    for row in range(past.rows, prompt.embeddings.shape[1]):  # a session each: one call each
        with torch.no_grad(), compressed(host.model, Session(prompt.visual, asked.tokens, past=past)):
            out = host.model(
                inputs_embeds=prompt.embeddings[:, row : row + 1],
                position_ids=prompt.position_ids[..., row : row + 1],
                past_key_values=cache,
            )
    torch.testing.assert_close(out.logits[0, -1], second.logits[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("looks", AWARE)
def test_aware_recipes_read_the_film_anew(looks: str, host: Host, film: Path) -> None:
    video = watched(host, film, AWARE[looks])
    chat = video.chat()
    first, answer = chat.ask(ASKED[0], logits=True), chat.ask(ASKED[1], logits=True)
    (choice,) = [choice for choice in answer.report.choices if choice["name"] == "turn"]
    assert choice == {"name": "turn", "value": "read anew", "reason": f"{looks} looks at the question"}
    assert answer.trace.queries[0][0] > len(answer.tokens)  # its own tokens, the history and the question
    torch.testing.assert_close(video.ask(ASKED[0], logits=True).logits, first.logits, atol=0, rtol=0)


def test_a_failed_turn_changes_nothing(host: Host, film: Path) -> None:
    chat = watched(host, film, {}).chat()
    chat.ask(ASKED[0])
    special = host.tokenizer.all_special_tokens[-1]
    for question, says in (("", "empty"), (f"what {special} ?", "control token"), ("what " * 5000, "context")):
        with pytest.raises(UsageError, match=says):
            chat.ask(question)
    other = watched(host, film, {}).chat()
    other.ask(ASKED[0])
    assert len(chat.turns) == 1
    assert chat.ask(ASKED[1]).ids == other.ask(ASKED[1]).ids


def test_turns_follow_the_chat_template(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text between two turns is what the template itself writes for the whole conversation."""
    own = next_turn(host)
    assert own.count(QUESTION) == 1
    assert own.endswith(host.template()[1].partition(QUESTION)[2])
    monkeypatch.setattr(host.tokenizer, "chat_template", CHAT_TEMPLATE)
    if host.template()[1].endswith(" <|im_end|> <|im_start|> assistant"):  # a family that follows its template
        want = f" <|im_end|> <|im_start|> user {QUESTION} <|im_end|> <|im_start|> assistant"
        assert next_turn(host) == want
    else:
        assert next_turn(host) == own
