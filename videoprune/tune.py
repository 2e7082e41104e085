"""Search a recipe's parameters so that the last token's final hidden state changes least against a dense run.

The objective is that of VFlowOpt (arXiv 2508.05211): the cosine between the last prompt token's state behind the last
norm, dense and pruned, averaged over questions on films. It needs no labels. Eviction acts behind that token: where a
recipe has a decode stage, the states of the first tokens of the dense answer, given to both, count as well.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from videoprune.asking import prepare
from videoprune.errors import EnvironmentProblem, UsageError
from videoprune.recipe import Recipe
from videoprune.search import dials, settings_of

if TYPE_CHECKING:
    from videoprune.pipeline import Pipeline
    from videoprune.watched import Video

Tell = Callable[[str, int, int | None], None]
OVER = 1e-9  # what a share may exceed the budget by


@dataclass(frozen=True)
class Ask:
    """A question on a film, what dense says to it, and the states (n, D) from which it says so."""

    film: str
    question: str
    reply: Tensor
    states: Tensor


@dataclass(frozen=True)
class Measured:
    """One setting of a recipe.

    Attributes:
        cosine: mean over questions and tokens, -1..1; a state that is no number counts 0.
        share: mean share of the sampled visual tokens that are alive, over layers and questions.
        entering: most visual tokens that entered the language model.
    """

    cosine: float
    share: float
    entering: int


@dataclass(frozen=True)
class Tuned:
    """What a search found.

    Attributes:
        recipe: the best setting within the budget.
        best, start: how it does, and how the recipe did as it was given.
        trials: settings tried so far, and how many of them were within the budget.
    """

    recipe: Recipe
    best: Measured
    start: Measured
    trials: int
    within: int


class Objective:
    """How well settings of a recipe keep the final states of some questions.

    Args:
        pipe: any pipeline on the model; its own recipe plays no part.
        recipe: what is tuned; its frame rule holds for dense, too.
        asks: (film, question) pairs.
        tokens: of the dense answer whose states count where the recipe evicts.
        tell: progress over the dense runs.
    """

    def __init__(
        self, pipe: Pipeline, recipe: Recipe, asks: Sequence[tuple[str, str]], tokens: int = 8, tell: Tell | None = None
    ) -> None:
        self.pipe, self.recipe = pipe, recipe
        dense = dataclasses.replace(Recipe.load("dense"), frames=recipe.frames, max_new_tokens=tokens)
        shown, videos = pipe.with_recipe(dense), dict[str, Any]()
        self.asks = []
        for number, (film, question) in enumerate(asks):
            if film not in videos:
                videos = {film: shown.watch(film)}  # one at a time: films are large
            video = videos[film]
            ids = video.ask(question).ids[:tokens]
            # the last id of a reply is not read: of an answer of n tokens n + 1 states count, or the prompt's alone
            reply = torch.tensor([*ids, ids[-1]] if recipe.decode else ids[:1], dtype=torch.int64)
            states, _, _ = final_states(video, question, reply)
            self.asks.append(Ask(film, question, reply, states))
            if tell is not None:
                tell("dense", number + 1, len(asks))

    def __call__(self, recipe: Recipe) -> Measured:
        """Measure one setting."""
        shown, videos = self.pipe.with_recipe(recipe), dict[str, Any]()
        cosines, shares, entering = [], [], 0
        for ask in self.asks:
            if ask.film not in videos:
                videos = {ask.film: shown.watch(ask.film)}
            states, rows, sampled = final_states(videos[ask.film], ask.question, ask.reply)
            alike = torch.cosine_similarity(states, ask.states, dim=-1).nan_to_num(0.0)
            cosines.append(float(alike.mean()))
            shares.append(sum(rows) / len(rows) / max(sampled, 1))
            entering = max(entering, rows[0])
        return Measured(_mean(cosines), _mean(shares), entering)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def final_states(video: Video, question: str, reply: Tensor) -> tuple[Tensor, list[int], int]:
    """States behind the last norm: (n, D) float32 of the last prompt token and of all but the last token of a reply (n,).

    Also the visual tokens that entered each layer, and how many a dense run feeds.
    """
    host, asked = video.pipeline.host, prepare(video, question)
    session, rows = asked.session(), list[Tensor]()
    head = host.model.get_output_embeddings()  # what enters it is the state that the objective is about
    hook = head.register_forward_pre_hook(lambda _, given: rows.append(given[0][0].float()))
    try:
        scored = host.score(asked.prompt, session, [reply.to(host.device)])
    finally:
        hook.remove()
    return torch.cat(rows)[: len(reply)], scored.trace.visual_rows, len(asked.tokens.owner)


def tune(
    pipe: Pipeline,
    recipe: Recipe,
    asks: Sequence[tuple[str, str]],
    *,
    trials: int = 50,
    budget: float | None = None,
    at_most: int | None = None,
    search: Sequence[str] = (),
    study: str | os.PathLike[str] | None = None,
    seed: int = 0,
    tokens: int = 8,
    tell: Tell | None = None,
) -> Tuned:
    """Search with optuna's tree-structured Parzen estimator; the first trial is the recipe as it was given.

    Args:
        pipe: a pipeline on the model. recipe: what is tuned.
        asks: (film, question) pairs; none of them needs an answer.
        trials: how many in all, those that the study already holds included.
        budget: most that the mean share of visual tokens over the layers may be; None takes the given recipe's own.
        at_most: most visual tokens that may enter the language model.
        search: "stage.option=low:high" bounds, which are searched instead of the declared ones.
        study: file that the trials are appended to, from which a search goes on; None forgets them.
        seed: of the sampler. tokens: see `Objective`. tell: progress over the trials.

    Raises:
        UsageError: nothing to search, a study of another search, or no setting within the budget.
        EnvironmentProblem: without optuna.
    """
    optuna = require_optuna()
    knobs = dials(recipe, search)
    if not asks:
        raise UsageError("no questions are given; give at least one on one film")
    objective = Objective(pipe, recipe, asks, tokens, tell)
    start = objective(recipe)
    limit = start.share if budget is None else budget
    key = {
        "recipe": recipe.digest(), "model": pipe.model_name, "budget": budget, "at_most": at_most, "tokens": tokens,
        "dials": [str(knob) for knob in knobs], "asks": [[Path(film).name, question] for film, question in asks],
    }  # fmt: skip
    held = _open(optuna, study, key, seed)

    def over(measured: Measured) -> dict[str, float]:
        """By how much a setting exceeds each limit; none is above 0 within the budget."""
        entering = 0.0 if at_most is None else measured.entering / at_most - 1
        return {"share": measured.share / limit - 1 - OVER, "entering": entering}

    done = len(_finished(optuna, held))
    held.sampler = optuna.samplers.TPESampler(seed=seed + done)
    if not held.trials:
        held.enqueue_trial({knob.path: knob.value for knob in knobs})

    def trial_of(trial: Any) -> float:
        values = {knob.path: knob.suggest(trial) for knob in knobs}
        try:
            measured = objective(settings_of(recipe, values))
        except UsageError as error:  # values that a method refuses together
            raise optuna.TrialPruned(str(error)) from error
        for name, value in vars(measured).items():
            trial.set_user_attr(name, value)
        for name, excess in over(measured).items():
            trial.set_constraint(name, excess)
        return measured.cosine

    while (done := len(_finished(optuna, held))) < trials:
        held.optimize(trial_of, n_trials=1)
        if tell is not None:
            tell("trials", done + 1, trials)
    seen = [(trial, _measured(trial)) for trial in _finished(optuna, held)]
    good = [(trial, how) for trial, how in seen if how is not None and max(over(how).values()) <= 0]
    if not good:
        raise UsageError(
            f"none of {done} trials is within the budget (mean share {limit:.3g}"
            + ("" if at_most is None else f", at most {at_most} tokens")
            + "): raise it, give more trials, or widen --search"
        )
    best, measured = max(good, key=lambda pair: (pair[1].cosine, -pair[0].number))
    return Tuned(settings_of(recipe, best.params), measured, start, trials=done, within=len(good))


def _measured(trial: Any) -> Measured | None:
    """What a trial of a study measured; None where its values were refused."""
    names = [item.name for item in dataclasses.fields(Measured)]
    found = {name: trial.user_attrs[name] for name in names if name in trial.user_attrs}
    return Measured(**found) if len(found) == len(names) else None


def require_optuna() -> Any:
    """optuna, quiet.

    Raises:
        EnvironmentProblem: where it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise EnvironmentProblem(f"tune needs optuna ({error}): pip install 'videoprune[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _finished(optuna: Any, study: Any) -> list[Any]:
    """Trials that were measured, or refused."""
    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    return list(study.get_trials(deepcopy=False, states=states))


def _open(optuna: Any, path: str | os.PathLike[str] | None, key: dict[str, Any], seed: int) -> Any:
    """The study in a file, which must be one of this very search; what a killed run left unfinished is given up."""
    storage = None
    if path is not None:
        if not Path(path).absolute().parent.is_dir():
            raise UsageError(f"study: {os.fspath(path)!r} is given, and its folder does not exist: make it first")
        backend = optuna.storages.journal.JournalFileBackend(os.fspath(path))
        storage = optuna.storages.JournalStorage(backend)
    try:
        study = optuna.create_study(study_name="tune", storage=storage, direction="maximize", load_if_exists=True)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError) as error:
        raise UsageError(f"study: {os.fspath(path or '')!r} holds no study ({error}): give another file") from error
    before = study.user_attrs.get("search")
    if before is not None and before != key:
        differ = ", ".join(sorted(name for name in key if before.get(name) != key[name]))
        raise UsageError(
            f"study: {os.fspath(path or '')!r} holds another search (other {differ}): give another file, or the same settings"
        )
    if before is None:
        study.set_user_attr("search", key)
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return study
