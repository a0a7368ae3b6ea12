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
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

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
        """Say the counts in a stage's summary line."""
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
    place = url or str(journal_path())
    try:
        with quiet():
            return _rebuild(params, _storage(url))
    except Exception as error:
        cause = str(error).strip().splitlines() or [type(error).__name__]
        remedy = "move the file away" if url is None else "mend it or name another"
        raise OSError(
            f"Optuna storage {place}: {cause[0]}; {remedy} (tracking.optuna, STEADYMAP_OPTUNA): "
            "the next `dvc repro` makes the studies anew"
        ) from error


def _storage(url: str | None) -> BaseStorage | str:
    return url or JournalStorage(JournalFileBackend(str(journal_path())))


def _rebuild(params: Params, storage: BaseStorage | str) -> Rebuilt:
    wanted = {**_sweep_studies(params), **_search_studies(params)}
    prefix = f"{params.study}/"
    known = {
        summary.study_name: summary
        for summary in optuna.get_all_study_summaries(storage)
        if summary.study_name.startswith(prefix) and "steadymap" in summary.user_attrs
    }
    counts = dict.fromkeys(("written", "unchanged", "deleted"), 0)
    for name in known.keys() - wanted.keys():
        optuna.delete_study(study_name=name, storage=storage)
        counts["deleted"] += 1
    for name, made in wanted.items():
        digest = _digest(made)
        if name in known:
            if known[name].user_attrs["steadymap"] == digest:
                counts["unchanged"] += 1
                continue
            optuna.delete_study(study_name=name, storage=storage)
        study = optuna.create_study(
            storage=storage, study_name=name, directions=["maximize", "minimize"]
        )
        # Marked as ours at once, and as finished only in the end: a half-made one is replaced.
        study.set_user_attr("steadymap", "")
        study.set_metric_names(["ssim", "passes"])
        study.add_trials(made)
        study.set_user_attr("steadymap", digest)
        counts["written"] += 1
    return Rebuilt(**counts)


def _digest(made: Sequence[FrozenTrial]) -> str:
    """Hash of what a study's trials say; their times don't count."""
    plain = [
        [
            trial.state.name,
            trial.values,
            trial.params,
            {name: repr(values) for name, values in trial.distributions.items()},
            trial.user_attrs,
        ]
        for trial in made
    ]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:32]


def _frozen(
    params: Mapping[str, Any],
    space: dict[str, BaseDistribution],
    values: tuple[float, float] | None,
    attrs: Mapping[str, Any],
) -> FrozenTrial:
    return create_trial(
        state=TrialState.COMPLETE if values else TrialState.FAIL,
        params=inside(params, space),
        distributions=space,
        values=values,
        user_attrs=dict(attrs),
    )


def _sweep_studies(params: Params) -> dict[str, list[FrozenTrial]]:
    """Trials of each sweep by the name of its study; the reference, like itself, has SSIM 1."""
    folder = params.reports / "tables"
    tasks, settings = read_table(folder / "tasks.csv"), read_table(folder / "settings.csv")
    settings = settings[(settings["metric"] == "ssim") & (settings["convention"] == "common")]
    means = settings.set_index(["sweep", "model", "value", "draws"])["mean"]
    studies: dict[str, list[FrozenTrial]] = {}
    hyperparameters = tasks[tasks["hyperparameter"] != ""]
    for (method, sweep, model), rows in hyperparameters.groupby(
        ["method", "sweep", "model"], sort=False
    ):
        variants = rows[~rows["is_reference"]]
        own = variants["draws"].iloc[0]
        hyperparameter = rows["hyperparameter"].iloc[0]
        rows = rows[rows["draws"] == own]
        points = [json.loads(text)[hyperparameter] for text in rows["hyperparameters"]]
        space = {hyperparameter: _swept(points)}
        made = []
        for point, row in zip(points, rows.to_dict("records"), strict=True):
            similarity = 1.0
            if not row["is_reference"]:
                similarity = float(means.get((sweep, model, row["value"], own), math.nan))
            passes = float(row["forward_passes"] + row["backward_passes"])
            defined = math.isfinite(similarity)
            attrs = {"task_id": row["task_id"], "reference": bool(row["is_reference"])}
            made.append(
                _frozen(
                    {hyperparameter: point}, space, (similarity, passes) if defined else None, attrs
                )
            )
        studies[f"{params.study}/{method}/{sweep}/{model}"] = made
    return studies


def _swept(points: Sequence[Any]) -> BaseDistribution:
    """Distribution that holds the values of a sweep."""
    if all(isinstance(point, int) and not isinstance(point, bool) for point in points):
        return IntDistribution(min(points), max(points))
    if all(isinstance(point, int | float) and not isinstance(point, bool) for point in points):
        return FloatDistribution(min(points), max(points))
    return CategoricalDistribution(points)


def _search_studies(params: Params) -> dict[str, list[FrozenTrial]]:
    """Trials of each search by the name of its study."""
    path = params.reports / "tables" / "search.csv"
    if not path.is_file():
        return {}
    rows = read_table(path)
    studies: dict[str, list[FrozenTrial]] = {}
    for (method, name, model), part in rows.groupby(["method", "search", "model"], sort=False):
        space = space_of(method, params.search[method][name])
        made = []
        for row in part[part["state"] != REFERENCE].to_dict("records"):
            values = (row["ssim_mean"], float(row["forward_passes"] + row["backward_passes"]))
            attrs = {
                "task_id": row["task_id"],
                "batch": row["batch"],
                "is_best": bool(row["is_best"]),
            }
            done = row["state"] == COMPLETE
            made.append(
                _frozen(json.loads(row["hyperparameters"]), space, values if done else None, attrs)
            )
        studies[f"{params.study}/{method}/{name}/{model}"] = made
    return studies
