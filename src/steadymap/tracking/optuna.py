"""Optuna studies rebuilt from the tables."""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna import distributions
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from steadymap.analysis.readings import headline_rows
from steadymap.experiments.search_space import COMPLETE, REFERENCE, inside, quiet, space_of
from steadymap.params.schema import Params
from steadymap.store.tables import read_table


@dataclass(frozen=True)
class Rebuilt:
    """How many studies a call wrote, left as they were, and deleted."""

    written: int = 0
    unchanged: int = 0
    deleted: int = 0

    def __str__(self) -> str:
        """Counts in a stage's summary line."""
        return f"{self.written} written, {self.unchanged} unchanged, {self.deleted} deleted"


def storage_url(params: Params) -> str | None:
    """Storage that params or `STEADYMAP_OPTUNA` name; None stands for the journal file."""
    return os.environ.get("STEADYMAP_OPTUNA") or params.tracking.optuna


def journal_path() -> Path:
    """`optuna.journal` at the root of the repository."""
    return Path(os.environ.get("DVC_ROOT") or ".").resolve() / "optuna.journal"


def rebuild_studies(params: Params, *, url: str | None = None) -> Rebuilt:
    """Make an Optuna study of each sweep and search on each model, from the tables.

    For people and their tools: nothing reads them back. Studies that say the same already are left
    alone, others are replaced, and those of this `study` that the tables don't know are deleted.

    Parameters
    ----------
    params : Params
        Those of the study; give names and ranges.
    url : str, optional
        Storage; by default that of `storage_url`.

    Raises
    ------
    OSError
        Where the storage can't be written to; names it and the remedy.
    """
    url = url or storage_url(params)
    try:
        with quiet():
            storage = url or JournalStorage(JournalFileBackend(str(journal_path())))
            return _rebuild(params, storage)
    except Exception as error:
        cause = str(error).strip().splitlines() or [type(error).__name__]
        remedy = "move the file away" if url is None else "mend it or name another"
        raise OSError(
            f"Optuna storage {url or journal_path()}: {cause[0]}; {remedy} (tracking.optuna, "
            "STEADYMAP_OPTUNA): the next `dvc repro` makes the studies anew"
        ) from error


def _rebuild(params: Params, storage: BaseStorage | str) -> Rebuilt:
    trials_of = {**_sweep_studies(params), **_search_studies(params)}
    stored = {
        summary.study_name: summary.user_attrs["steadymap"]
        for summary in optuna.get_all_study_summaries(storage)
        if summary.study_name.startswith(f"{params.study}/") and "steadymap" in summary.user_attrs
    }
    digests = {name: _digest(trials) for name, trials in trials_of.items()}
    unchanged = {name for name, digest in digests.items() if stored.get(name) == digest}
    for name in stored.keys() - unchanged:
        optuna.delete_study(study_name=name, storage=storage)
    written = [name for name in trials_of if name not in unchanged]
    for name in written:
        study = optuna.create_study(
            storage=storage, study_name=name, directions=["maximize", "minimize"]
        )
        # Marked as ours at once, and as finished only in the end: a half-made one is replaced.
        study.set_user_attr("steadymap", "")
        study.set_metric_names(["ssim", "passes"])
        study.add_trials(trials_of[name])
        study.set_user_attr("steadymap", digests[name])
    return Rebuilt(len(written), len(unchanged), len(stored.keys() - trials_of.keys()))


def _digest(trials: Sequence[FrozenTrial]) -> str:
    """Hash of what a study's trials say; their times don't count."""
    plain = [
        [
            trial.state.name,
            trial.values,
            trial.params,
            {name: repr(values) for name, values in trial.distributions.items()},
            trial.user_attrs,
        ]
        for trial in trials
    ]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:32]


def _trial(
    row: Mapping[str, Any],
    params: Mapping[str, Any],
    space: dict[str, distributions.BaseDistribution],
    similarity: float | None,
    attrs: Mapping[str, Any],
) -> FrozenTrial:
    """Trial with the values SSIM and passes; a failed one where there is no SSIM."""
    passes = float(row["forward_passes"] + row["backward_passes"])
    return create_trial(
        state=TrialState.FAIL if similarity is None else TrialState.COMPLETE,
        params=inside(params, space),
        distributions=space,
        values=None if similarity is None else (similarity, passes),
        user_attrs={"task_id": row["task_id"], **attrs},
    )


def _sweep_studies(params: Params) -> dict[str, list[FrozenTrial]]:
    """Trials of each sweep by the name of its study; the reference, like itself, has SSIM 1."""
    folder = params.reports / "tables"
    tasks, settings = read_table(folder / "tasks.csv"), read_table(folder / "settings.csv")
    settings = headline_rows(settings, "ssim", "common")
    keys = ["sweep", "model", "value"]
    tasks = tasks.merge(settings[[*keys, "mean"]], on=keys, how="left")
    tasks.loc[tasks["is_reference"], "mean"] = 1.0
    studies: dict[str, list[FrozenTrial]] = {}
    swept = tasks[tasks["hyperparameter"] != ""]
    for (method, sweep, model), rows in swept.groupby(["method", "sweep", "model"], sort=False):
        draws = rows.loc[~rows["is_reference"], "draws"].iloc[0]
        name = rows["hyperparameter"].iloc[0]
        records = rows[rows["draws"] == draws].to_dict("records")
        values = [json.loads(row["hyperparameters"])[name] for row in records]
        space = {name: _swept(values)}
        studies[f"{params.study}/{method}/{sweep}/{model}"] = [
            _trial(
                row,
                {name: value},
                space,
                row["mean"] if math.isfinite(row["mean"]) else None,
                {"reference": row["is_reference"]},
            )
            for value, row in zip(values, records, strict=True)
        ]
    return studies


def _swept(values: Sequence[Any]) -> distributions.BaseDistribution:
    """Distribution that holds the values of a sweep."""
    for distribution, types in (
        (distributions.IntDistribution, int),
        (distributions.FloatDistribution, int | float),
    ):
        if all(isinstance(value, types) and not isinstance(value, bool) for value in values):
            return distribution(min(values), max(values))
    return distributions.CategoricalDistribution(values)


def _search_studies(params: Params) -> dict[str, list[FrozenTrial]]:
    """Trials of each search by the name of its study."""
    path = params.reports / "tables" / "search.csv"
    if not path.is_file():
        return {}
    table = read_table(path)
    trials = table[table["state"] != REFERENCE]
    studies: dict[str, list[FrozenTrial]] = {}
    for (method, name, model), rows in trials.groupby(["method", "search", "model"], sort=False):
        space = space_of(method, params.search[method][name])
        studies[f"{params.study}/{method}/{name}/{model}"] = [
            _trial(
                row,
                json.loads(row["hyperparameters"]),
                space,
                row["ssim_mean"] if row["state"] == COMPLETE else None,
                {name: row[name] for name in ("batch", "is_best")},
            )
            for row in rows.to_dict("records")
        ]
    return studies
