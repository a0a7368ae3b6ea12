"""Writes runs to MLflow, wherever it lies, and nothing where they are right already."""

import getpass
import hashlib
import json
import logging
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlflow import MlflowClient, entities
from mlflow.entities import Experiment, Run, ViewType
from mlflow.exceptions import MlflowException

from steadymap.store import environment
from steadymap.tracking.entries import (
    NOTES,
    SUMMARY,
    TRAINING,
    Entry,
    Points,
    experiment_name,
    model_link,
    rounded,
)
from steadymap.tracking.store import all_pages, artifact_folder, open_store

logger = logging.getLogger(__name__)

# Its tracebacks of a locked or broken database would precede the TrackingError that says the same.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)

_NOTE = "mlflow.note.content"

# In front of the name, whose end the UI cuts off.
SUPERSEDED = "superseded: "

_IDENTITY = (
    *("sweep_id", "training_id", "recipe_digest", "task_id", "reference_task_id"),
    *("randomization_id", "table_digest"),
)

# Tags that a run may lose when its tables change.
_OPTIONAL = (
    *("dropped_metrics", "independent_task_id", "passes"),
    *("after_holm", "size", "rests_on", "unit"),
)


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
    """How many runs were written, and how many were right already."""

    created: int = 0
    updated: int = 0
    unchanged: int = 0
    superseded: int = 0

    def __str__(self) -> str:
        """Counts in a stage's summary line."""
        return ", ".join(f"{count} {name}" for name, count in asdict(self).items())


@contextmanager
def open_writer(origin: Origin, uri: str | None) -> Iterator["Writer"]:
    """Yield a writer to the store at `uri`; errors of the store become TrackingErrors."""
    with open_store(uri) as (client, store_uri):
        yield Writer(client, store_uri, origin)


class Writer:
    """Makes the runs of a study in MLflow what entries say; `mirrored` counts them."""

    def __init__(self, client: MlflowClient, uri: str, origin: Origin):
        self.client = client
        self.uri = uri
        self.origin = origin
        self._counts: Counter[str] = Counter()
        root = experiment_name(origin.study, SUMMARY)
        # `_` and `%` are wild in LIKE, so names are checked again.
        pattern = re.sub("[%']", "_", root)
        similar = all_pages(
            client.search_experiments,
            filter_string=f"name LIKE '{pattern}%'",
            view_type=ViewType.ALL,
        )
        self.experiments: dict[str, Experiment] = {
            experiment.name: experiment
            for experiment in similar
            if f"{experiment.name}/".startswith(f"{root}/")
        }
        self._clock = int(time.time() * 1000)

    def write(
        self,
        entries: Sequence[Entry],
        experiments: Collection[str],
        *,
        scope: Mapping[str, str] | None = None,
    ) -> None:
        """Make runs what entries say, and supersede the other runs of experiments.

        Parameters
        ----------
        entries : sequence of Entry
            Runs to create or update, with their children.
        experiments : collection of str
            Names of the experiments whose other runs are superseded.
        scope : mapping of str to str, optional
            Only runs with these tags are superseded.
        """
        names = dict.fromkeys(entry.experiment for entry in entries)
        ids = {name: self._experiment_id(name) for name in names}
        for name in self.experiments.keys() & {*experiments}:
            ids[name] = self.experiments[name].experiment_id
        runs: list[Run] = []
        if ids:
            runs = all_pages(self.client.search_runs, experiment_ids=sorted(ids.values()))
        # A current run is preferred to a superseded one of the same identity.
        runs.sort(key=lambda run: run.data.tags.get("current") != "true")
        by_identity: dict[tuple[str, ...], list[Run]] = {}
        for run in runs:
            identity = (run.info.experiment_id, *_identity(run.data.tags))
            by_identity.setdefault(identity, []).append(run)
        trained = self._trained()
        kept: set[str] = set()

        def put(entry: Entry, parent: str | None = None) -> None:
            tags = entry.tags | {"current": "true"}
            if parent is not None:
                tags["mlflow.parentRunId"] = parent
            if _NOTE in tags and (run := trained.get(entry.params.get("model", ""))):
                tags[_NOTE] = self._linked(tags[_NOTE], run)
            experiment_id = ids[entry.experiment]
            known = by_identity.get((experiment_id, *_identity(tags)), [])
            run_id = self._put(entry, experiment_id, tags, known)
            kept.add(run_id)
            for child in entry.children:
                put(child, run_id)

        for entry in entries:
            put(entry)
        scope = scope or {}
        for run in runs:
            if run.info.run_id not in kept:
                self._leave(run, supersede=scope.items() <= run.data.tags.items())

    def register(self, entry: Entry, folder: Path) -> None:
        """Register a trained model that `write` has mirrored: its weights and its card.

        Parameters
        ----------
        entry : Entry
            Run of the training.
        folder : Path
            Folder with `weights.safetensors` and `card.json`. Without weights, or a hash of them
            in the card, nothing is registered.
        """
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
        version = next((v for v in versions if v.tags.get("weights_sha256") == sha), None)
        if version is None:
            run = self._trained()[entry.name]
            # One run may stand for several weights, as its recipe stays the same.
            path = f"model/{sha[:12]}"
            self.client.log_artifact(run.info.run_id, str(weights), path)
            self.client.log_artifact(run.info.run_id, str(folder / "card.json"), path)
            version = self.client.create_model_version(
                name,
                f"{run.info.artifact_uri}/{path}",
                run.info.run_id,
                tags={"weights_sha256": sha, "study": self.origin.study},
                description=entry.tags.get(_NOTE),
            )
        aliases = self.client.get_registered_model(name).aliases
        if str(aliases.get("current")) != str(version.version):
            self.client.set_registered_model_alias(name, "current", version.version)

    @property
    def mirrored(self) -> Mirrored:
        """Counts of runs so far."""
        return Mirrored(**self._counts)

    def _trained(self) -> dict[str, Run]:
        """Current run of each trained model."""
        experiment = self.experiments.get(experiment_name(self.origin.study, TRAINING))
        if experiment is None:
            return {}
        runs = all_pages(
            self.client.search_runs,
            experiment_ids=[experiment.experiment_id],
            filter_string="tags.current = 'true'",
        )
        return {run.info.run_name: run for run in runs}

    def _linked(self, note: str, run: Run) -> str:
        """Make the name of the model in a note a link to the run that trained it."""
        sentence, name = model_link(self.origin.study, run.info.run_name), run.info.run_name
        link = f"[`{name}`](#/experiments/{run.info.experiment_id}/runs/{run.info.run_id})"
        return note.replace(sentence, sentence.replace(f"`{name}`", link, 1))

    def _experiment_id(self, name: str) -> str:
        """Id of an experiment with its tags, made or restored where it is missing."""
        subject = name.removeprefix(experiment_name(self.origin.study, SUMMARY)).lstrip("/")
        tags = {
            "study": self.origin.study,
            # Otherwise the UI guesses whether this is about language models.
            "mlflow.experimentKind": "custom_model_development",
            _NOTE: NOTES.experiment(self.origin.study, subject),
        }
        experiment = self.experiments.get(name)
        if experiment is None:
            folder = artifact_folder(self.uri)
            location = None if folder is None else (folder / name).as_uri()
            new = self.client.create_experiment(name, artifact_location=location, tags=tags)
            experiment = self.experiments[name] = self.client.get_experiment(new)
        elif experiment.lifecycle_stage == "deleted":
            self.client.restore_experiment(experiment.experiment_id)
        for key, value in tags.items():
            if experiment.tags.get(key) != value:
                self.client.set_experiment_tag(experiment.experiment_id, key, value)
                experiment.tags[key] = value
        return str(experiment.experiment_id)

    def _put(
        self, entry: Entry, experiment_id: str, tags: dict[str, str], known: Sequence[Run]
    ) -> str:
        """Update the first of the known runs that can be, or create one; its id."""
        for run in known:
            missing = self._missing(run, entry)
            if missing is not None:
                changed = self._update(run, entry, tags, missing)
                self._counts["updated" if changed else "unchanged"] += 1
                return str(run.info.run_id)
        self._counts["created"] += 1
        # The UI shows the newest run first: a millisecond less for each keeps the tables' order.
        self._clock -= 1
        run = self.client.create_run(
            experiment_id,
            start_time=self._clock - int(1000 * entry.seconds),
            tags={**tags, **self._provenance()},
            run_name=entry.name,
        )
        self._log(run, entry.metrics, entry.params, {})
        self._log_artifacts(run, entry)
        self._log_input(run, entry)
        self._close(run, entry)
        return str(run.info.run_id)

    def _missing(self, run: Run, entry: Entry) -> Points | None:
        """Metrics to add to a run; None if it holds something that can't be taken back."""
        if any(entry.params.get(name) != value for name, value in run.data.params.items()):
            return None
        if entry.images is not None and _digests(run) - {entry.images.digest}:
            return None
        curves = {name for name, step in entry.metrics if step}
        logged = {(name, 0): v for name, v in run.data.metrics.items() if name not in curves}
        for name in curves & set(run.data.metrics):
            for point in self.client.get_metric_history(run.info.run_id, name):
                logged[name, point.step] = point.value
        if entry.finished and logged.keys() - entry.metrics.keys():
            return None
        missing = {
            key: value
            for key, value in entry.metrics.items()
            if key not in logged or rounded(logged[key]) != value
        }
        # A curve's wrong point would be drawn beside its correction.
        if any(name in curves and (name, step) in logged for name, step in missing):
            return None
        return missing

    def _update(self, run: Run, entry: Entry, tags: dict[str, str], metrics: Points) -> bool:
        old = run.data.tags
        tags = {name: value for name, value in tags.items() if old.get(name) != value}
        gone = [name for name in _OPTIONAL if name in old and name not in entry.tags]
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

    def _leave(self, run: Run, *, supersede: bool) -> None:
        run_id, name = run.info.run_id, run.info.run_name
        if run.info.status == "RUNNING":
            # There is one writer: whoever began this run was killed.
            self.client.set_terminated(run_id, "KILLED")
            logger.info("MLflow: closed %s, which had been left running", name)
        if supersede and run.data.tags.get("current") == "true":
            self.client.set_tag(run_id, "current", "false")
            self.client.update_run(run_id, name=SUPERSEDED + name)
            self._counts["superseded"] += 1

    def _close(self, run: Run, entry: Entry) -> bool:
        """Set the status of a run; whether it was another."""
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
        points = [
            entities.Metric(name, value, now, step) for (name, step), value in metrics.items()
        ]
        names = [entities.Param(name, value) for name, value in params.items()]
        labels = [entities.RunTag(name, value) for name, value in tags.items()]
        # MLflow takes at most 1000 items at a time, of params and tags 100 each.
        while points or names or labels:
            self.client.log_batch(run.info.run_id, points[:800], names[:100], labels[:100])
            points, names, labels = points[800:], names[100:], labels[100:]

    def _log_input(self, run: Run, entry: Entry) -> bool:
        """Log the images of a run that has none; whether there were any to log."""
        images = entry.images
        if images is None or _digests(run):
            return False
        dataset = entities.Dataset(
            name=images.name,
            digest=images.digest,
            source_type="local",
            source=json.dumps({"uri": images.uri}),
            profile=json.dumps({"num_rows": images.n_images}),
        )
        context = entities.InputTag("mlflow.data.context", images.context)
        self.client.log_inputs(run.info.run_id, [entities.DatasetInput(dataset, [context])])
        return True

    def _log_artifacts(self, run: Run, entry: Entry) -> bool:
        """Log the artifacts that differ from those logged; whether there were any."""
        logged: dict[str, str] = json.loads(run.data.tags.get("artifacts", "{}"))
        location = urlsplit(run.info.artifact_uri)
        folder = Path(unquote(location.path)) if location.scheme in ("", "file") else None
        digests = {
            path: hashlib.sha256(content).hexdigest()[:16]
            for path, content in entry.artifacts.items()
        }
        changed = [
            path
            for path, digest in digests.items()
            if logged.get(path) != digest or (folder is not None and not (folder / path).is_file())
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
        self._log(run, {}, {}, {"artifacts": json.dumps({**logged, **digests}, sort_keys=True)})
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


def _identity(tags: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(tags.get(name, "") for name in _IDENTITY)


def _digests(run: Run) -> set[str]:
    return {item.dataset.digest for item in run.inputs.dataset_inputs} if run.inputs else set()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # In a container, a user may have no name.
        return "unknown"
