"""Searches, whose points Optuna proposes.

A search's Optuna study lives in memory: every run makes it anew from the seed, and tells it the
scores of maps that the task cache holds. A replay therefore asks the same points, and tries a point
again that failed, of which the cache holds nothing. The tables are what is kept.
"""

import itertools
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import optuna
import pandas as pd
import torch
from optuna import importance
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from steadymap.engine import evaluation_set, runner
from steadymap.engine.settings import Setting, setting
from steadymap.engine.tasks import Plan, cost_of, largest, reference_of
from steadymap.experiments.search_space import COMPLETE, FAILED, REFERENCE, inside, quiet, space_of
from steadymap.experiments.similarity_scores import chunks
from steadymap.metrics import similarity
from steadymap.params.schema import Params, Search, Statistics
from steadymap.statistics.intervals import SIMILARITY_RANGE
from steadymap.statistics.resampling import cluster_names, interval
from steadymap.store.atomic import atomic_folder, write_json
from steadymap.store.tables import joined, rounded, write_table
from steadymap.store.task_cache import TaskCache

logger = logging.getLogger(__name__)

COLUMNS = (
    *("search", "method", "model", "objective", "tau", "sampler", "trial", "batch"),
    *("hyperparameters", "task_id", "n_images", "ssim_mean", "ci_low", "ci_high"),
    *("spearman_mean", "n_degenerate", "n_inverted", "forward_passes", "backward_passes"),
    *("state", "is_best", "message"),
)

IMPORTANCES = ("search", "method", "model", "evaluator", "hyperparameters", "importance")


@dataclass(frozen=True)
class Outcome:
    """Scores of one setting on one model, or why it failed.

    Attributes
    ----------
    task_id : str
        Name of its maps.
    scores : ndarray, optional
        SSIM with the reference map, per image; None where the setting failed.
    n_degenerate : int
        Images of which either map is degenerate.
    ranks : ndarray, optional
        Spearman correlation with the reference map, per image; None where the setting failed.
    message : str
        Why it failed.
    """

    task_id: str
    scores: np.ndarray | None
    n_degenerate: int = 0
    ranks: np.ndarray | None = None
    message: str = ""

    @property
    def mean(self) -> float:
        """Mean SSIM over images."""
        return math.nan if self.scores is None else float(self.scores.mean())

    @property
    def rank_mean(self) -> float:
        """Mean Spearman correlation over images that have one."""
        defined = [] if self.ranks is None else self.ranks[~np.isnan(self.ranks)]
        return float(np.mean(defined)) if len(defined) else math.nan

    @property
    def n_inverted(self) -> int:
        """Images whose map is inverted."""
        return (
            0
            if self.ranks is None
            else int(similarity.inverted(torch.from_numpy(self.ranks)).sum())
        )


class TaskEvaluator:
    """Scores settings by maps from the task cache, and computes those that it lacks.

    Attributes
    ----------
    photos : list of str
        Photograph of each image of the evaluation set, of which a method may explain the first
        ones alone.
    executed, cached : int
        Tasks so far.
    """

    def __init__(self, params: Params, cache: TaskCache):
        self.params, self.cache = params, cache
        self.image_size = params.data.image_size
        self.run_context = runner.RunContext.of(params)
        self.photos = cluster_names(evaluation_set.read(self.run_context.evaluation_set)[0])
        self.executed = self.cached = 0

    def outcomes(
        self, model: str, reference: Setting, settings: Sequence[Setting]
    ) -> list[Outcome]:
        """Compute what the cache lacks of the maps, then score them against the reference's.

        Parameters
        ----------
        model : str
            Name of the model.
        reference : Setting
            What is compared with.
        settings : sequence of Setting
            What is scored, in this order.

        Raises
        ------
        TasksFailedError
            Where the reference itself fails, or a file can't be read.
        """
        plan = runner.settings_plan(
            list(dict.fromkeys([reference, *settings])), self.params, [model]
        )
        title = f"search {reference.method} {model}"
        self.cached += len(plan.tasks) - len(runner.missing(plan.tasks, self.cache))
        faults = self._run(plan.tasks, title)
        if reference in faults:
            raise faults[reference]

        def compute() -> None:
            before = self.executed
            faults.update(self._run(plan.tasks, title))
            self.cached -= self.executed - before

        return runner.read_or_recompute(
            lambda: self._scored(plan, model, reference, settings, faults),
            compute,
            plans=[plan],
            cache=self.cache,
        )

    def _scored(
        self,
        plan: Plan,
        model: str,
        reference: Setting,
        settings: Sequence[Setting],
        faults: Mapping[Setting, runner.TasksFailedError],
    ) -> list[Outcome]:
        """Outcomes of maps that are in the cache, and of settings that failed."""
        convention = similarity.convention_of(
            reference.method, "common", win_size=self.params.similarity.win_size
        )
        scale = partial(similarity.normalize, mode=convention.normalize)
        score = partial(
            similarity.ssim, data_range=convention.data_range, win_size=convention.win_size
        )
        scores: dict[Setting, list[tuple[np.ndarray, np.ndarray, int]]] = {
            made: [] for made in settings if made not in faults
        }
        origin = plan.keys[model, reference]
        for chunk in chunks(len(origin), self.params.attribution.block_size):
            a = torch.from_numpy(runner.collected(origin[chunk], self.cache)[0])
            scaled, empty = scale(a.double()), similarity.degenerate(a)
            for made, parts in scores.items():
                keys = plan.keys[model, made][chunk]
                b = torch.from_numpy(runner.collected(keys, self.cache)[0])
                n_degenerate = int((empty | similarity.degenerate(b)).sum())
                ranks = similarity.spearman(a, b).numpy()
                parts.append((score(scaled, scale(b.double())).numpy(), ranks, n_degenerate))
        outcomes = []
        for made in settings:
            task_id = plan.task_id(model, made)
            if made in faults:
                fault = faults[made].errors[0]
                message = " ".join(str(fault).split()) or type(fault).__name__
                outcomes.append(Outcome(task_id, None, message=message))
                continue
            ssims, ranks, counts = zip(*scores[made], strict=True)
            outcomes.append(
                Outcome(task_id, np.concatenate(ssims), sum(counts), np.concatenate(ranks))
            )
        return outcomes

    def _run(
        self, tasks: Sequence[runner.Task], title: str
    ) -> dict[Setting, runner.TasksFailedError]:
        """Execute what the cache lacks; what each setting that can't be computed said."""
        faults: dict[Setting, runner.TasksFailedError] = {}
        execute = partial(runner.run, cache=self.cache, run_context=self.run_context, title=title)
        try:
            self.executed += execute(runner.missing(tasks, self.cache)).executed
            return faults
        except runner.TasksFailedError:
            pass
        # One faulty setting spoils those that share its pass: the rest goes one by one.
        for task in runner.missing(tasks, self.cache):
            for made, key in zip(task.settings, task.keys, strict=True):
                if made in faults:
                    continue
                single = runner.Task(task.model, task.block, (made,), (key,))
                try:
                    self.executed += execute([single]).executed
                except runner.TasksFailedError as error:
                    # A file that can't be read is no fault of the setting.
                    if isinstance(error.errors[0], OSError):
                        raise
                    faults[made] = error
        return faults


class _Sobol(QMCSampler):
    """Sobol points from the first on: Optuna's draws the first one at random."""

    def __init__(self, space: dict[str, BaseDistribution], seed: int):
        super().__init__(scramble=True, seed=seed)
        self._space = space

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._space


def _sampler(search: Search, space: dict[str, BaseDistribution]) -> BaseSampler:
    if search.sampler == "qmc":
        return _Sobol(space, search.seed)
    if search.sampler == "tpe":
        # Optuna's 10 random trials would be most of a small budget.
        startup = max(search.batch, min(10, search.budget // 3))
        return TPESampler(n_startup_trials=startup, seed=search.seed)
    if search.sampler == "nsga2":
        return NSGAIISampler(population_size=max(2, search.batch), seed=search.seed)
    return RandomSampler(seed=search.seed)


def _proposals(
    method: str, search: Search, image_size: int, study: optuna.Study
) -> Iterator[list[tuple[Trial, dict[str, Any]]]]:
    """Yield batches of trials with their hyperparameters; each is to be told before the next."""
    space = space_of(method, search)
    if search.sampler == "grid":
        names = list(search.hyperparameters)
        values = [axis.values or [] for axis in search.hyperparameters.values()]
        for point in itertools.product(*values):
            study.enqueue_trial(dict(zip(names, point, strict=True)))
    elif search.objective == "cheapest":
        # The setting that reaches tau if any does comes first, so that there is an answer.
        hyperparameters = largest(method, search, image_size).hyperparameters
        study.enqueue_trial({name: hyperparameters[name] for name in space})
    for start in range(0, search.n_trials, search.batch):
        size = min(search.batch, search.n_trials - start)
        asked = [study.ask(space) for _ in range(size)]
        # In 6 digits, as tables have them, so that a name is the same on any machine.
        yield [
            (trial, {k: rounded(v) if isinstance(v, float) else v for k, v in trial.params.items()})
            for trial in asked
        ]


def trials(
    method: str,
    name: str,
    search: Search,
    model: str,
    evaluator: TaskEvaluator,
    options: Statistics,
) -> pd.DataFrame:
    """Run one search on one model.

    Parameters
    ----------
    method, name : str
        Of the search.
    search : Search
        What to search, as params have it.
    model : str
        Name of the model.
    evaluator : TaskEvaluator
        Scores the proposals.
    options : Statistics
        How intervals are formed.

    Returns
    -------
    DataFrame
        With the columns `COLUMNS`: the reference, then a row per trial in the order asked. The
        reference of `cheapest` carries no score. Its first trial does, the same setting with the
        search's own seed: the self-similarity of two converged maps (docs/protocol.md).
    """
    reference = reference_of(method, search, evaluator.image_size)
    with quiet():
        sampler = _sampler(search, space_of(method, search))
        study = optuna.create_study(sampler=sampler, direction="minimize")
    shared = {
        "search": name,
        "method": method,
        "model": model,
        "objective": search.objective,
        "tau": math.nan if search.tau is None else search.tau,
        "sampler": search.sampler,
        "n_images": evaluator.params.evaluation_set.of(method),
        "is_best": False,
    }
    rows: list[dict[str, Any]] = []
    for number, batch in enumerate(_proposals(method, search, evaluator.image_size, study)):
        settings = [setting(method, {**search.fixed, **proposed}) for _, proposed in batch]
        first, *outcomes = evaluator.outcomes(model, reference, [reference, *settings])
        if not rows:
            place = {"trial": -1, "batch": -1, "state": REFERENCE}
            unscored = replace(first, scores=None, ranks=None)
            row = shared | place | _result(reference, unscored, evaluator, options)
            rows.append(row | {"n_inverted": first.n_inverted})
        for (trial, _), made, outcome in zip(batch, settings, outcomes, strict=True):
            state = FAILED if outcome.scores is None else COMPLETE
            place = {"trial": trial.number, "batch": number, "state": state}
            rows.append(shared | place | _result(made, outcome, evaluator, options))
            _tell(study, trial, search, rows[-1])
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    best = best_of(frame, search.tau)
    if best is not None:
        frame.loc[best, "is_best"] = True
    return frame


def _result(
    made: Setting, outcome: Outcome, evaluator: TaskEvaluator, options: Statistics
) -> dict[str, Any]:
    """Columns of a setting's cost and scores; scores are NaN where it failed."""
    low = high = math.nan
    photos = evaluator.photos[: evaluator.params.evaluation_set.of(made.method)]
    if outcome.scores is not None:
        low, high = interval(
            outcome.scores,
            photos,
            confidence=options.confidence,
            within=SIMILARITY_RANGE,
        )
    forward, backward = cost_of([made], evaluator.image_size)
    return {
        "hyperparameters": made.text,
        "task_id": outcome.task_id,
        "ssim_mean": outcome.mean,
        "ci_low": low,
        "ci_high": high,
        "spearman_mean": outcome.rank_mean,
        "n_degenerate": outcome.n_degenerate,
        "n_inverted": outcome.n_inverted,
        "forward_passes": forward * len(photos),
        "backward_passes": backward * len(photos),
        "message": outcome.message,
    }


def best_of(rows: pd.DataFrame, tau: float | None) -> int | None:
    """Label of the row that answers a search; None where no trial does.

    Without `tau`, the lowest mean SSIM. With it, the fewest model passes among settings whose mean
    SSIM reaches it and that invert no map. Of equals, the first asked.
    """
    done = _scored_trials(rows)
    if tau is not None:
        done = done[(done["ssim_mean"] >= tau) & (done["n_inverted"] == 0)]
        done = done.assign(passes=done["forward_passes"] + done["backward_passes"])
        done = done.sort_values(["passes", "ssim_mean"], ascending=[True, False], kind="stable")
    else:
        done = done.sort_values("ssim_mean", kind="stable")
    return None if done.empty else int(done.index[0])


def _scored_trials(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[(rows["state"] == COMPLETE) & rows["ssim_mean"].notna()]


def _tell(study: optuna.Study, trial: Trial, search: Search, row: Mapping[str, Any]) -> None:
    if row["state"] == FAILED:
        study.tell(trial, state=TrialState.FAIL)
        return
    if search.objective == "worst_case":
        study.tell(trial, row["ssim_mean"])
        return
    assert search.tau is not None
    # Feasible where zero or less.
    trial.set_constraint("tau", search.tau - row["ssim_mean"])
    trial.set_constraint("inverted", row["n_inverted"] / row["n_images"])
    study.tell(trial, float(row["forward_passes"] + row["backward_passes"]))


def importances(method: str, search: Search, rows: pd.DataFrame) -> pd.DataFrame:
    """How much each hyperparameter has to do with the mean SSIM.

    Parameters
    ----------
    method : str
        Name of the method.
    search : Search
        Says what was searched.
    rows : DataFrame
        Trials of one search on one model.

    Returns
    -------
    DataFrame
        Evaluators `fanova` (share of the variance over the whole space) and `ped_anova` (what
        sets the best tenth of the trials apart) are Optuna's, over single hyperparameters, scaled
        to sum 1. Empty where fewer than four settings or equal scores leave nothing to tell apart.
    """
    done = _scored_trials(rows).drop_duplicates("task_id")
    # A forest splits ties by their last bits, and those depend on the order of a score's sums.
    scores = done["ssim_mean"].round(9).to_numpy()
    if len(done) < 4 or len(set(scores)) < 2:
        return pd.DataFrame(columns=list(IMPORTANCES))
    space = space_of(method, search)
    worst = search.objective == "worst_case"
    shares: list[tuple[str, str, float]] = []
    with quiet():
        study = optuna.create_study(direction="minimize" if worst else "maximize")
        for text, value in zip(done["hyperparameters"], scores, strict=True):
            point = inside(json.loads(text), space)
            study.add_trial(create_trial(params=point, distributions=space, value=float(value)))
        evaluators = {
            "fanova": importance.FanovaImportanceEvaluator(seed=search.seed),
            "ped_anova": importance.PedAnovaImportanceEvaluator(),
        }
        for evaluator, made in evaluators.items():
            by_name = importance.get_param_importances(study, evaluator=made)
            shares += [(evaluator, name, float(by_name[name])) for name in space]
    table = pd.DataFrame(shares, columns=list(IMPORTANCES[3:]))
    about = {column: done[column].iloc[0] for column in IMPORTANCES[:3]}
    return table.assign(**about)[list(IMPORTANCES)]


def run(params: Params, evaluator: TaskEvaluator) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All searches of a study: their trials and importances."""
    tables, shares = [], []
    for method, searches in params.search.items():
        for name, search in searches.items():
            for model in search.models or params.models.names:
                rows = trials(method, name, search, model, evaluator, params.statistics)
                tables.append(rows)
                shares.append(importances(method, search, rows))
    return joined(tables, COLUMNS), joined(shares, IMPORTANCES)


def write(rows: pd.DataFrame, shares: pd.DataFrame, params: Params) -> None:
    """Write `results/{study}/search`: both tables, and the searches that they answer.

    Parameters
    ----------
    rows, shares : DataFrame
        Trials and importances, as `run` returns them.
    params : Params
        The study.
    """
    with atomic_folder(params.results / "search") as temporary:
        write_table(rows, temporary / "search.csv")
        write_table(shares, temporary / "importances.csv")
        write_json(params.model_dump(mode="json")["search"], temporary / "searches.json")
