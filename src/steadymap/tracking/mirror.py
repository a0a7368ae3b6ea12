"""MLflow as a mirror of the tables: written here, read by people, consulted by nothing.

`runs` says what there is to see; here it is written, once, wherever MLflow lies. Mirroring the same
tables again writes nothing, so that a lost database is rebuilt by the last stage. A run whose
setting left the tables stays, called `superseded: ...` and tagged `current` = false, and becomes
current again when the setting returns.

`python -m steadymap.tracking ui` shows it.
"""

import getpass
import hashlib
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    Experiment,
    InputTag,
    Metric,
    Param,
    Run,
    RunTag,
    ViewType,
)
from mlflow.exceptions import MlflowException

from steadymap.params.schema import Params
from steadymap.store import environment
from steadymap.store.atomic import read_json
from steadymap.store.tables import read_table
from steadymap.tracking.entries import (
    RANDOMIZATION,
    SUMMARY,
    TRAINING,
    Entry,
    Points,
    experiment_name,
    model_words,
    randomization_entries,
    rounded,
    search_entries,
    summary_entry,
    sweep_entries,
    training_entry,
)
from steadymap.tracking.store import all_pages, artifact_folder, open_store
from steadymap.tracking.views import experiment_tags

logger = logging.getLogger(__name__)

# Its tracebacks of a locked or broken database would precede the TrackingError that says the same.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)

_NOTE = "mlflow.note.content"

# In front of the name, whose end the UI cuts off.
SUPERSEDED = "superseded: "

_SEARCHED = ("method", "search", "model")

_IDENTITY = (
    *("sweep_id", "training_id", "recipe_digest", "task_id", "reference_task_id"),
    *("randomization_id", "table_digest"),
)

# Tags that a run may lose when its tables change.
_PASSING = ("dropped_metrics", "independent_task_id", "passes")

# Figures of parameter randomization begin with one of these.
_RANDOMIZATION_FIGURES = ("ipr", "plane")


@dataclass(frozen=True)
class Origin:
    """What produced the tables.

    Attributes
    ----------
    study : str
        Name of the study, second part of the experiments' names.
    git_commit : str
        Commit of the checkout, `unknown` outside of one.
    dirty : bool
        Whether files of that commit were changed, outputs of the pipeline aside.
    dvc_stage : str, optional
        Stage that DVC was running.
    """

    study: str
    git_commit: str = "unknown"
    dirty: bool = False
    dvc_stage: str | None = None

    @classmethod
    def here(cls, study: str) -> "Origin":
        """Origin of what the current process makes in the current folder."""
        commit, dirty = environment.commit()
        return cls(study, commit or "unknown", dirty, os.environ.get("DVC_STAGE") or None)


@dataclass(frozen=True)
class Mirrored:
    """How many runs a call wrote, and how many were right already."""

    created: int = 0
    updated: int = 0
    unchanged: int = 0
    superseded: int = 0

    def __add__(self, other: "Mirrored") -> "Mirrored":
        """Add the counts of two calls."""
        return Mirrored(
            self.created + other.created,
            self.updated + other.updated,
            self.unchanged + other.unchanged,
            self.superseded + other.superseded,
        )

    def __str__(self) -> str:
        """Say the counts in a stage's summary line."""
        return (
            f"{self.created} created, {self.updated} updated, {self.unchanged} unchanged, "
            f"{self.superseded} superseded"
        )


def mirror_sweeps(
    tables: Mapping[str, pd.DataFrame],
    *,
    origin: Origin,
    uri: str | None = None,
    figures: Mapping[tuple[str, str], Sequence[Path]] | None = None,
    methods: Collection[str] | None = None,
    alpha: float = 0.25,
) -> Mirrored:
    """Mirror sweeps into the experiments of their methods.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        By file stem: `tasks`, `settings`, `sensitivity`, and what there is of `models`, `images`,
        `evaluation_set`, `search`, `importances`. Without `search`, runs of searches are left as
        they are.
    origin : Origin
        Becomes tags of runs that are written, not of those that are right already.
    uri : str, optional
        Tracking store; by default that of `tracking_uri`.
    figures : mapping of (sweep or method, model) to paths, optional
        PNG files, shown with the parent run.
    methods : collection of str, optional
        Mirror these alone, and leave the runs of others as they are.
    alpha : float
        Threshold whose localization runs show.

    Returns
    -------
    Mirrored
        Counts of runs.

    Raises
    ------
    TrackingError
        The store is locked, unreachable, read-only or broken.
    """
    entries = sweep_entries(
        tables, study=origin.study, figures=figures, methods=methods, alpha=alpha
    )
    searched = "search" in tables
    if searched:
        entries += search_entries(tables, study=origin.study, figures=figures)
    others = {experiment_name(origin.study, name) for name in (SUMMARY, TRAINING, RANDOMIZATION)}
    with open_store(uri) as (client, store_uri):
        mirror = _Mirror(client, store_uri, origin)
        if methods is None:
            names = mirror.experiments.keys() - others
        else:
            names = {experiment_name(origin.study, method) for method in methods}
        return mirror.write(entries, names, spare_searches=not searched)


def mirror_live(method: str, params: Params, *, uri: str | None = None) -> Mirrored:
    """Mirror one method as soon as it is scored, before the tables of the study exist.

    Parameters
    ----------
    method : str
        Name of the method.
    params : Params
        Those of the study.
    uri : str, optional
        Tracking store; by default that of `tracking_uri`.

    Returns
    -------
    Mirrored
        Counts of runs.

    Raises
    ------
    TrackingError
        The store is locked, unreachable, read-only or broken.
    """
    # Brings torch along, which the UI and the last stage do without.
    from steadymap.analysis.tables import study_summary

    tables, _ = study_summary(params, [method])
    origin = Origin.here(params.study)
    alpha = params.accuracy.alpha
    return mirror_sweeps(tables, origin=origin, uri=uri, methods=[method], alpha=alpha)


def mirror_training(
    model: str,
    *,
    card: Mapping[str, Any],
    curves: pd.DataFrame,
    origin: Origin,
    uri: str | None = None,
    finished: bool = True,
) -> Mirrored:
    """Mirror a training, after each epoch or when it has ended.

    Parameters
    ----------
    model : str
        Name of the model and of the run.
    card : mapping
        Model card, during training as far as known; another `recipe_digest` is another run.
    curves : DataFrame
        A row per epoch so far.
    origin : Origin
        Becomes tags of runs that are written.
    uri : str, optional
        Tracking store; by default that of `tracking_uri`.
    finished : bool
        Whether to close the run.

    Returns
    -------
    Mirrored
        Counts of runs.

    Raises
    ------
    TrackingError
        The store is locked, unreachable, read-only or broken.
    """
    entry = training_entry(model, card, curves, study=origin.study, finished=finished)
    with open_store(uri) as (client, store_uri):
        mirror = _Mirror(client, store_uri, origin)
        return mirror.write([entry], [entry.experiment], only=entry.tags["training_id"])


def mirror_randomization(
    tables: Mapping[str, pd.DataFrame],
    *,
    origin: Origin,
    settings: Mapping[str, Mapping[str, Any]],
    uri: str | None = None,
    figures: Mapping[str, Sequence[Path]] | None = None,
) -> Mirrored:
    """Mirror the randomization of parameters into its experiment.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        By file stem: what there is of `ipr`, `ipr_units`, `ipr_failures`, `models`,
        `evaluation_set`. Without rows of `ipr`, the runs that there are become superseded.
    origin : Origin
        Becomes tags of runs that are written.
    settings : mapping of str to mapping
        Hyperparameters of each method, those of `results/{study}/randomization/settings.json`.
    uri : str, optional
        Tracking store; by default that of `tracking_uri`.
    figures : mapping of str to paths, optional
        PNG files, shown with each model's parent run.

    Returns
    -------
    Mirrored
        Counts of runs. Another number, setting or unit makes another run and supersedes the old
        one, as a curve's old points can't be taken back.

    Raises
    ------
    TrackingError
        The store is locked, unreachable, read-only or broken.
    """
    entries = []
    if len(tables.get("ipr", ())):
        entries = randomization_entries(
            tables, study=origin.study, settings=settings, figures=figures
        )
    with open_store(uri) as (client, store_uri):
        mirror = _Mirror(client, store_uri, origin)
        return mirror.write(entries, [experiment_name(origin.study, RANDOMIZATION)])


def mirror_study(
    reports: Path, results: Path, *, origin: Origin, uri: str | None = None, alpha: float = 0.25
) -> Mirrored:
    """Mirror a whole study from its files.

    Parameters
    ----------
    reports : Path
        Folder with `tables/`, `metrics/`, `figures/` and the report. A figure belongs to the sweep,
        or method, that its name begins with, and to one model where it ends with that; `ipr...` and
        `plane...` belong to the randomization of parameters.
    results : Path
        Folder with `models/{model}/` and, where parameters were randomized, `randomization/`.
    origin : Origin
        Becomes tags of runs that are written.
    uri : str, optional
        Tracking store; by default that of `tracking_uri`.
    alpha : float
        Threshold whose localization runs show.

    Returns
    -------
    Mirrored
        Counts of runs. Robust models are registered besides, weights and card, as
        `steadymap.{study}.{model}`: a version per hash of the weights, alias `current` on theirs.

    Raises
    ------
    TrackingError
        The store is locked, unreachable, read-only or broken.
    """
    folder = Path(reports) / "tables"
    tables = {
        name: read_table(folder / f"{name}.csv")
        for name in ("tasks", "settings", "sensitivity", "models", "evaluation_set", "images")
    }
    if (folder / "claims.csv").is_file():
        tables["claims"] = read_table(folder / "claims.csv")
    for name in ("search", "importances"):
        path = folder / f"{name}.csv"
        tables[name] = read_table(path) if path.is_file() else pd.DataFrame(columns=[*_SEARCHED])
    randomized = {
        name: read_table(folder / f"{name}.csv")
        for name in ("ipr", "ipr_units", "ipr_failures")
        if (folder / f"{name}.csv").is_file()
    }
    settings = {}
    if len(randomized.get("ipr", ())):
        settings = read_json(Path(results) / "randomization" / "settings.json")
    subjects = {*tables["tasks"]["sweep"], *tables["tasks"]["method"], *tables["search"]["search"]}
    models = {*tables["tasks"]["model"], *tables["models"]["model"]}
    figures = _figures(Path(reports) / "figures", models, {*subjects, *_RANDOMIZATION_FIGURES})
    entries = []
    for model in tables["models"]["model"]:
        trained = Path(results) / "models" / model
        curves = read_table(trained / "curves.csv")
        card = read_json(trained / "card.json")
        entries.append(training_entry(model, card, curves, study=origin.study, finished=True))
    with open_store(uri) as (client, store_uri):
        mirror = _Mirror(client, store_uri, origin)
        trainings = mirror.write(entries, [experiment_name(origin.study, TRAINING)])
        for entry in entries:
            if entry.tags["robust"] == "true":
                mirror.register(entry, Path(results) / "models" / entry.name)
        page = Path(reports) / "report.html"
        headlines = {
            path.stem: read_json(path)
            for path in sorted((Path(reports) / "metrics").glob("*.json"))
        }
        summary = summary_entry(
            origin.study, tables, headlines, page if page.is_file() else page.with_suffix(".md")
        )
        trainings += mirror.write([summary], [summary.experiment])
    sweeps = mirror_sweeps(tables, origin=origin, uri=uri, figures=figures, alpha=alpha)
    pictures = {
        model: [path for name in _RANDOMIZATION_FIGURES for path in figures.get((name, model), ())]
        for model in models
    }
    return (
        trainings
        + sweeps
        + mirror_randomization(
            {**tables, **randomized}, origin=origin, settings=settings, uri=uri, figures=pictures
        )
    )


class _Mirror:
    """The runs of a study in MLflow, read once, and what is done to them."""

    def __init__(self, client: MlflowClient, uri: str, origin: Origin):
        self.client = client
        self.uri = uri
        self.origin = origin
        whole = experiment_name(origin.study, SUMMARY)
        # `_` and `%` are wild in LIKE, so what it finds is checked again.
        pattern = re.sub("[%']", "_", whole)
        found = all_pages(
            client.search_experiments,
            filter_string=f"name LIKE '{pattern}%'",
            view_type=ViewType.ALL,
        )
        self.experiments: dict[str, Experiment] = {
            experiment.name: experiment
            for experiment in found
            if f"{experiment.name}/".startswith(f"{whole}/")
        }
        self.clock = int(time.time() * 1000)

    def write(
        self,
        entries: Sequence[Entry],
        experiments: Collection[str],
        *,
        only: str | None = None,
        spare_searches: bool = False,
    ) -> Mirrored:
        """Make runs what `entries` say, and supersede the experiments' other runs.

        Where `only` is given, just those with this training_id are superseded; runs of searches
        can be spared.
        """
        needed = dict.fromkeys(entry.experiment for entry in entries)
        sweeps: dict[str, dict[str, str]] = {name: {} for name in needed}
        for entry in entries:
            if "hyperparameter" in entry.params:
                varied = entry.params["hyperparameter"]
                sweeps[entry.experiment][entry.params["sweep"]] = varied
        ids = {name: self._experiment_id(name, sweeps[name]) for name in needed}
        ids |= {
            name: self.experiments[name].experiment_id
            for name in experiments
            if name in self.experiments
        }
        runs = (
            all_pages(self.client.search_runs, experiment_ids=sorted(ids.values())) if ids else []
        )
        by_identity: dict[tuple[str, ...], list[Run]] = {}
        # A current run is preferred to a superseded one of the same identity.
        for run in sorted(runs, key=lambda run: run.data.tags.get("current") != "true"):
            identity = (run.info.experiment_id, *_identity(run.data.tags))
            by_identity.setdefault(identity, []).append(run)
        words = self._linked_models()
        kept: set[str] = set()
        counts = dict.fromkeys(("created", "updated", "unchanged", "superseded"), 0)

        def put(entry: Entry, parent: str | None) -> None:
            experiment_id = ids[entry.experiment]
            tags = entry.tags | {"current": "true"}
            if parent is not None:
                tags["mlflow.parentRunId"] = parent
            plain, linked = words.get(entry.params.get("model", ""), ("", ""))
            if plain and _NOTE in tags:
                tags[_NOTE] = tags[_NOTE].replace(plain, linked)
            for run in by_identity.get((experiment_id, *_identity(tags)), []):
                missing = self._missing(run, entry)
                if missing is not None:
                    changed = self._update(run, entry, tags, missing)
                    counts["updated" if changed else "unchanged"] += 1
                    break
            else:
                run = self._create(entry, experiment_id, tags)
                counts["created"] += 1
            kept.add(run.info.run_id)
            for child in entry.children:
                put(child, run.info.run_id)

        for entry in entries:
            put(entry, None)
        for run in runs:
            if run.info.run_id not in kept:
                owned = only is None or run.data.tags.get("training_id") == only
                owned &= not (spare_searches and "search" in run.data.tags)
                counts["superseded"] += self._leave(run, owned)
        return Mirrored(**counts)

    def register(self, entry: Entry, folder: Path) -> None:
        """Register a trained model that `write` has mirrored: its weights and its card."""
        weights, sha = folder / "weights.safetensors", entry.tags.get("weights_sha256", "")
        name = f"steadymap.{self.origin.study}.{entry.name}"
        if not sha or not weights.is_file():
            return
        try:
            self.client.get_registered_model(name)
        except MlflowException:
            note = (
                f"{entry.params['architecture']} of study {self.origin.study}, trained "
                "adversarially: safetensors weights and the model card."
            )
            self.client.create_registered_model(name, {"study": self.origin.study}, note)
        versions = all_pages(self.client.search_model_versions, filter_string=f"name = '{name}'")
        found = next((one for one in versions if one.tags.get("weights_sha256") == sha), None)
        if found is None:
            run = self._current(entry)
            # One run may stand for several weights, as its recipe stays the same.
            place = f"model/{sha[:12]}"
            self.client.log_artifact(run.info.run_id, str(weights), place)
            self.client.log_artifact(run.info.run_id, str(folder / "card.json"), place)
            found = self.client.create_model_version(
                name,
                f"{run.info.artifact_uri}/{place}",
                run.info.run_id,
                tags={"weights_sha256": sha, "study": self.origin.study},
                description=entry.tags.get(_NOTE),
            )
        if str(self._alias(name)) != str(found.version):
            self.client.set_registered_model_alias(name, "current", found.version)

    def _linked_models(self) -> dict[str, tuple[str, str]]:
        """By model, what notes say of its run, and the same with a link to it."""
        experiment = self.experiments.get(experiment_name(self.origin.study, TRAINING))
        if experiment is None:
            return {}
        place = experiment.experiment_id
        found = {}
        for run in all_pages(
            self.client.search_runs, experiment_ids=[place], filter_string="tags.current = 'true'"
        ):
            words = model_words(self.origin.study, run.info.run_name)
            link = f"[`{run.info.run_name}`](#/experiments/{place}/runs/{run.info.run_id})"
            found[run.info.run_name] = words, words.replace(f"`{run.info.run_name}`", link, 1)
        return found

    def _current(self, entry: Entry) -> Run:
        experiment = self.experiments[entry.experiment].experiment_id
        wanted = f"tags.training_id = '{entry.tags['training_id']}' and tags.current = 'true'"
        return self.client.search_runs([experiment], wanted, max_results=1)[0]

    def _alias(self, name: str) -> str | None:
        return self.client.get_registered_model(name).aliases.get("current")

    def _experiment_id(self, name: str, sweeps: Mapping[str, str]) -> str:
        tags, views = experiment_tags(name, sweeps)
        experiment = self.experiments.get(name)
        if experiment is None:
            folder = artifact_folder(self.uri)
            place = None if folder is None else (folder / name).as_uri()
            created = self.client.create_experiment(name, artifact_location=place, tags=tags)
            experiment = self.experiments[name] = self.client.get_experiment(created)
        elif experiment.lifecycle_stage == "deleted":
            self.client.restore_experiment(experiment.experiment_id)
        kept = {key for key, value in experiment.tags.items() if key in views and _edited(value)}
        for key, value in {**views, **tags}.items():
            if experiment.tags.get(key) != value and key not in kept:
                self.client.set_experiment_tag(experiment.experiment_id, key, value)
                experiment.tags[key] = value
        return str(experiment.experiment_id)

    def _missing(self, run: Run, entry: Entry) -> Points | None:
        """Metrics to add to a run; None if it holds something that can't be taken back."""
        if any(entry.params.get(name) != value for name, value in run.data.params.items()):
            return None
        if entry.images is not None and _digests(run) - {entry.images.digest}:
            return None
        curves = {name for name, step in entry.metrics if step}
        known = {(name, 0): value for name, value in run.data.metrics.items() if name not in curves}
        for name in curves & set(run.data.metrics):
            for point in self.client.get_metric_history(run.info.run_id, name):
                known[name, point.step] = point.value
        if entry.finished and known.keys() - entry.metrics.keys():
            return None
        missing = {
            key: value
            for key, value in entry.metrics.items()
            if key not in known or rounded(known[key]) != value
        }
        # A curve's wrong point would be drawn beside its correction.
        if any(name in curves and (name, step) in known for name, step in missing):
            return None
        return missing

    def _create(self, entry: Entry, experiment_id: str, tags: Mapping[str, str]) -> Run:
        # The UI shows the newest run first: a millisecond less for each keeps the tables' order.
        self.clock -= 1
        began = self.clock - int(1000 * entry.seconds)
        run = self.client.create_run(
            experiment_id,
            start_time=began,
            tags={**tags, **self._provenance()},
            run_name=entry.name,
        )
        self._log(run, entry.metrics, entry.params, {})
        self._log_artifacts(run, entry)
        self._log_input(run, entry)
        self._close(run, entry)
        return run

    def _update(self, run: Run, entry: Entry, tags: dict[str, str], metrics: Points) -> bool:
        old = run.data.tags
        tags = {name: value for name, value in tags.items() if old.get(name) != value}
        gone = [name for name in _PASSING if name in old and name not in entry.tags]
        params = {name: entry.params[name] for name in entry.params.keys() - run.data.params.keys()}
        changed = bool(metrics or params or tags or gone)
        for name in gone:
            self.client.delete_tag(run.info.run_id, name)
        if run.info.run_name != entry.name:
            self.client.update_run(run.info.run_id, name=entry.name)
            changed = True
        changed |= self._log_artifacts(run, entry)
        changed |= self._log_input(run, entry)
        if changed:
            self._log(run, metrics, params, {**tags, **self._provenance()})
        return self._close(run, entry) or changed

    def _leave(self, run: Run, owned: bool) -> bool:
        run_id, name = run.info.run_id, run.info.run_name
        if run.info.status == "RUNNING":
            # There is one writer: whoever began this run was killed.
            self.client.set_terminated(run_id, "KILLED")
            logger.info("MLflow: closed %s, which had been left running", name)
        superseded = owned and run.data.tags.get("current") == "true"
        if superseded:
            self.client.set_tag(run_id, "current", "false")
            self.client.update_run(run_id, name=SUPERSEDED + name)
        return superseded

    def _close(self, run: Run, entry: Entry) -> bool:
        """Bring the run's status in line; tell whether it was not."""
        status = "FINISHED" if entry.finished else "RUNNING"
        if run.info.status == status:
            return False
        if not entry.finished:
            self.client.update_run(run.info.run_id, status=status)
        else:
            end = run.info.start_time + int(1000 * entry.seconds)
            self.client.set_terminated(run.info.run_id, status, end)
        return True

    def _log(
        self, run: Run, metrics: Points, params: Mapping[str, str], tags: Mapping[str, str]
    ) -> None:
        now = int(time.time() * 1000)
        points = [Metric(name, value, now, step) for (name, step), value in metrics.items()]
        names = [Param(name, value) for name, value in params.items()]
        labels = [RunTag(name, value) for name, value in tags.items()]
        while points or names or labels:
            self.client.log_batch(
                run.info.run_id, metrics=points[:800], params=names[:100], tags=labels[:100]
            )
            points, names, labels = points[800:], names[100:], labels[100:]

    def _log_input(self, run: Run, entry: Entry) -> bool:
        """Log the images where they are not yet; tell whether they were not."""
        found = entry.images
        if found is None or _digests(run):
            return False
        dataset = Dataset(
            name=found.name,
            digest=found.digest,
            source_type="local",
            source=json.dumps({"uri": found.uri}),
            profile=json.dumps({"num_rows": found.n_images}),
        )
        context = InputTag("mlflow.data.context", found.context)
        self.client.log_inputs(run.info.run_id, [DatasetInput(dataset, [context])])
        return True

    def _log_artifacts(self, run: Run, entry: Entry) -> bool:
        """Log the artifacts that differ from those logged; tell whether there were any."""
        known: dict[str, str] = json.loads(run.data.tags.get("artifacts", "{}"))
        place = urlsplit(run.info.artifact_uri)
        folder = Path(unquote(place.path)) if place.scheme in ("", "file") else None
        digests = {
            path: hashlib.sha256(content).hexdigest()[:16]
            for path, content in entry.artifacts.items()
        }
        changed = [
            path
            for path, digest in digests.items()
            if known.get(path) != digest or (folder is not None and not (folder / path).is_file())
        ]
        if not changed:
            return False
        with tempfile.TemporaryDirectory() as temporary:
            for path in changed:
                file = Path(temporary, path)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(entry.artifacts[path])
            self.client.log_artifacts(run.info.run_id, temporary)
        # Digests behind the files: a run killed in between is written again.
        self._log(run, {}, {}, {"artifacts": json.dumps({**known, **digests}, sort_keys=True)})
        return True

    def _provenance(self) -> dict[str, str]:
        stage = self.origin.dvc_stage or "none"
        script = stage.split("@")[0] if self.origin.dvc_stage else "track"
        return {
            "git_commit": self.origin.git_commit,
            "dirty": "true" if self.origin.dirty else "false",
            "dvc.stage": stage,
            "mlflow.source.git.commit": self.origin.git_commit,
            "mlflow.source.name": f"stages/{script}.py",
            "mlflow.source.type": "LOCAL",
            "mlflow.user": _user(),
        }


def _figures(
    folder: Path, models: Collection[str], names: Collection[str]
) -> dict[tuple[str, str], list[Path]]:
    found: dict[tuple[str, str], list[Path]] = {}
    models = sorted(models, key=len, reverse=True)
    # The longest name first: `SG-N-draws` is of the sweep SG-N, even where there is one called SG.
    subjects = sorted(names, key=len, reverse=True)
    for path in sorted(folder.glob("*.png")):
        words = f"-{path.stem.replace('_', '-')}-"
        subject = next((s for s in subjects if words.startswith(f"-{s.replace('_', '-')}-")), None)
        if subject is None:
            continue
        model = next((m for m in models if words.endswith(f"-{m.replace('_', '-')}-")), None)
        for name in models if model is None else [model]:
            found.setdefault((subject, name), []).append(path)
    return found


def _identity(tags: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(tags.get(name, "") for name in _IDENTITY)


def _edited(view: str) -> bool:
    """Whether somebody saved this view anew in the UI, which then notes when."""
    try:
        known = json.loads(view)
        return bool(known["updatedAt"] != known["createdAt"])
    except (ValueError, KeyError, TypeError):
        return True


def _digests(run: Run) -> set[str]:
    return {known.dataset.digest for known in run.inputs.dataset_inputs} if run.inputs else set()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # In a container, a user may have no name.
        return "unknown"
