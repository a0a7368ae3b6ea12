"""Independent parameter randomization of a study: which maps notice that a model lost a unit.

For every model, unit and draw of weights a randomized copy is made, and the methods explain it with
the same random draws as the trained model, and with fresh ones. Every map is a cached task.

`results/{study}/randomization/` holds `scores.parquet` (columns
`RANDOMIZATION_COLUMNS`), `changes.parquet` (what
randomizing did to the function), `failures.csv`, `settings.json` and `pictures/`: per model and
method the first image's maps by the trained model and with each unit randomized (independent
order, draw 0).
"""

import functools
import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from steadymap.data.dataset import read_dataset
from steadymap.draws import derived_seed
from steadymap.engine import evaluation_set, runner
from steadymap.engine.settings import Setting
from steadymap.engine.tasks import Plan, key_of, plan_settings
from steadymap.experiments.randomized_methods import RandomizedMethodSettings, randomized_methods
from steadymap.experiments.similarity_scores import pair_scores
from steadymap.models import randomization, registry
from steadymap.params.schema import Params
from steadymap.statistics.pairing import mismatched
from steadymap.store import fingerprint
from steadymap.store.atomic import atomic_folder, read_json, write_json
from steadymap.store.tables import RANDOMIZATION_COLUMNS, joined, write_table
from steadymap.store.task_cache import TaskCache

logger = logging.getLogger(__name__)

CHANGES = (
    *("model", "order", "unit", "unit_index", "draw", "randomizer"),
    *("accuracy", "kept_predictions", "target_change", "n_images"),
)

FAILURES = ("model", "method", "order", "unit", "draw", "reason")

# Errors that a method or a randomized network may raise; any other is a bug.
_FAULTS = (ValueError, FloatingPointError)


@dataclass(frozen=True)
class Variant:
    """One randomized copy of a model.

    Attributes
    ----------
    order : str
        As in `randomization.ORDERS`.
    unit : str
        The unit that this step adds.
    index : int
        Its position, counted from the input.
    units : tuple of str
        All units that are randomized.
    draw : int
        Draw of the weights.
    """

    order: str
    unit: str
    index: int
    units: tuple[str, ...]
    draw: int

    @property
    def columns(self) -> dict[str, Any]:
        """Columns that name the copy in the tables of scores and of function changes."""
        names = {"order": self.order, "unit": self.unit, "unit_index": self.index}
        return {**names, "draw": self.draw}


# Stands where no unit is randomized.
_NONE = Variant("", "", -1, (), 0)


class RandomizationSummary(NamedTuple):
    """Tasks executed and found in the cache; copies of models made; failures."""

    executed: int
    cached: int
    copies: int
    failed: int

    def __str__(self) -> str:
        return (
            f"{self.executed} tasks executed, {self.cached} found in the cache; "
            f"{self.copies} copies of models made, {self.failed} failures"
        )


def randomized_models(params: Params) -> list[str]:
    """Models that are randomized: none where the section names no method."""
    section = params.randomization
    return list(section.models or params.models.names) if section.methods else []


def variants(params: Params, model: str, network: nn.Module) -> list[Variant]:
    """All randomized copies of a model, in the order in which they are made.

    Parameters
    ----------
    params : Params
        The study, whose section `randomization` gives orders, units and draws.
    model : str
        Name of the model.
    network : Module
        The model, whose modules are the units.
    """
    section = params.randomization
    architecture = params.architecture(model)
    names = randomization.units(
        network,
        section.preset,
        architecture=None if ":" in architecture else architecture,
        override=section.units.get(model),
    )
    return [
        Variant(order, units[-1], names.index(units[-1]), tuple(units), draw)
        for order in section.orders
        for units in randomization.orders(names, order)
        for draw in range(section.n_draws)
    ]


class TrainedModel:
    """One model of a study, its images, and what its randomized copies need."""

    def __init__(self, model: str, params: Params, run_context: runner.RunContext):
        self.model, self.params = model, params
        folder = run_context.models / model
        self.card = read_json(folder / "card.json")
        self.device = runner.device_of(run_context.attribution.device)
        self.network = registry.build(self.card["architecture"], len(self.card["classes"])).eval()
        weights = folder / "weights.safetensors"
        registry.load_state(self.network, registry.read_state(weights), source=str(weights))
        self.network.to(self.device)
        dataset = read_dataset(run_context.data)
        split = "train" if len(dataset.images.get("train", ())) > 1 else "val"
        generator = np.random.default_rng(derived_seed("calibration", params.randomization.seed))
        order = generator.permutation(len(dataset.images[split]))
        chosen = np.sort(order[: randomization.CALIBRATION_IMAGES])
        self.calibration = self._normalized(dataset.images[split][chosen])
        first = slice(params.randomization.n_function_images)
        self.function_images = self._normalized(dataset.images["val"][first])
        labels = dataset.rows("val")["label"].to_numpy(copy=True)[first]
        self.labels = torch.as_tensor(labels, device=self.device)
        self.trained_logits: Tensor | None = None
        inputs = hashlib.sha256()
        for images in (self.calibration, self.function_images):
            inputs.update(images.cpu().numpy().tobytes())
        self.inputs_sha256 = inputs.hexdigest()

    def _normalized(self, pixels: np.ndarray) -> Tensor:
        images = evaluation_set.as_images(pixels).to(self.device)
        mean, std = (
            torch.tensor(self.card[name], device=self.device).reshape(1, -1, 1, 1)
            for name in ("mean", "std")
        )
        return (images - mean) / std

    def identity(self, variant: Variant) -> str:
        """Hash of everything that a copy's weights depend on."""
        section = self.params.randomization
        parts = {
            "weights": registry.identity(self.card),
            "units": list(variant.units),
            "draw": variant.draw,
            "seed": section.seed,
            "randomizer": section.randomizer,
            "inputs": self.inputs_sha256,
            "source": fingerprint.digest(randomization.__name__, registry.__name__),
        }
        return key_of(parts, self.params.attribution)

    def randomized(self, variant: Variant) -> nn.Module:
        """A randomized copy of the bare network."""
        architecture, n_classes = self.card["architecture"], len(self.card["classes"])
        custom = ":" in architecture
        return randomization.randomized(
            self.network,
            list(variant.units),
            draw=variant.draw,
            seed=self.params.randomization.seed,
            randomizer=self.params.randomization.randomizer,
            calibration_images=self.calibration,
            constructor=(lambda: registry.build(architecture, n_classes)) if custom else None,
        )

    def explainable(self, network: nn.Module) -> registry.Explainable:
        """A copy as methods take it."""
        adapted = registry.explainable(network, mean=self.card["mean"], std=self.card["std"])
        return adapted.to(self.device)

    def function_change(self, network: nn.Module) -> dict[str, float]:
        """What randomizing did to the function, on validation images."""
        if self.trained_logits is None:
            self.trained_logits = randomization.logits(self.network, self.function_images)
        change = randomization.functional_change(
            self.trained_logits, network, self.function_images, self.labels
        )
        return asdict(change)


@dataclass(frozen=True)
class Study:
    """A study's models, methods and caches, by which its randomized maps are planned.

    Attributes
    ----------
    params : Params
        The study.
    cache : TaskCache
        Finished maps.
    changes : Path
        Folder of finished measurements of function change, one file per copy.
    run_context : RunContext
        Models and evaluation set.
    """

    params: Params
    cache: TaskCache
    changes: Path
    run_context: runner.RunContext

    @functools.cached_property
    def evaluation_set(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Rows and targets of the evaluation set."""
        return evaluation_set.read(self.run_context.evaluation_set)[:2]

    @functools.cached_property
    def specs(self) -> dict[str, RandomizedMethodSettings]:
        """Setting and extent of each method."""
        return randomized_methods(self.params)

    def trained_model(self, model: str) -> TrainedModel:
        """One of the study's models."""
        return TrainedModel(model, self.params, self.run_context)

    def plan(self, method: str, model: str, weights: str) -> Plan:
        """Tasks of a method's settings by a model, or a copy of it, whose hash is `weights`.

        Parameters
        ----------
        method
            A method of `randomization`.
        model
            Name of the trained model.
        weights
            Hash of the weights, of the model or a copy.
        """
        rows, targets = self.evaluation_set
        return plan_settings(
            self.specs[method].settings,
            weights={model: weights},
            rows=rows.head(self.specs[method].n_images),
            targets=targets,
            preprocessing=self.params.data.pixel_recipe,
            attribution=self.params.attribution,
        )

    def copy_plans(
        self, trained: TrainedModel, variant: Variant, methods: Sequence[str]
    ) -> tuple[Path, dict[str, Plan]]:
        """File of a copy's function change, and the plan of each method that explains it.

        Parameters
        ----------
        trained
            The model that is randomized.
        variant
            Unit, order and draw.
        methods
            Methods that explain the copy.
        """
        identity = trained.identity(variant)
        plans = {
            method: self.plan(method, trained.model, identity)
            for method in methods
            if variant.draw < self.specs[method].n_draws
        }
        return self.changes / f"{identity}.json", plans

    def plans(self, trained: TrainedModel) -> Iterator[list[Plan]]:
        """Plans of all methods: by the trained model, then by each of its randomized copies."""
        weights = registry.identity(trained.card)
        yield [self.plan(method, trained.model, weights) for method in self.specs]
        for variant in variants(self.params, trained.model, trained.network):
            yield list(self.copy_plans(trained, variant, list(self.specs))[1].values())

    def maps(self, plan: Plan, model: str, made: Setting) -> np.ndarray:
        """Maps of a setting from the cache, float32 (images, height, width).

        Parameters
        ----------
        plan
            Tasks, all of them finished.
        model
            Name of the model.
        made
            A setting of the plan.
        """
        return runner.collected(plan.keys[model, made], self.cache)[0]


@dataclass
class _Outcome:
    """What one turn over all models computed, and the rows and pictures made of it."""

    executed: int = 0
    cached: int = 0
    copies: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)
    scores: list[pd.DataFrame] = field(default_factory=list)
    changes: list[dict[str, Any]] = field(default_factory=list)
    units: dict[str, list[str]] = field(default_factory=dict)
    pictures: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)


def run(
    params: Params, *, cache: TaskCache, changes: Path, run_context: runner.RunContext
) -> RandomizationSummary:
    """Compute what the cache lacks and write `results/{study}/randomization`.

    A method that can't run on an architecture, and a copy whose output is not finite, are listed
    by name with the reason; the others go on.

    Parameters
    ----------
    params : Params
        The study.
    cache : TaskCache
        Where finished maps are.
    changes : Path
        Folder where finished measurements of function change are, one file per copy.
    run_context : RunContext
        Models and evaluation set.

    Raises
    ------
    TasksFailedError
        Where a task failed by anything else: a lost worker, a device, a file. Nothing is written.
    """
    study, outcomes = Study(params, cache, changes, run_context), list[_Outcome]()

    def compute() -> None:
        outcomes.append(_Outcome())
        for model in randomized_models(params):
            _randomize(study, study.trained_model(model), outcomes[-1])
        _write(study, outcomes[-1])

    # A second turn computes what was damaged, and finds the rest.
    runner.read_or_recompute(
        compute,
        lambda: None,
        plans=(
            plan
            for model in randomized_models(params)
            for plans in study.plans(study.trained_model(model))
            for plan in plans
        ),
        cache=cache,
    )
    last = outcomes[-1]
    executed = sum(outcome.executed for outcome in outcomes)
    copies = sum(outcome.copies for outcome in outcomes)
    cached = last.executed + last.cached - executed
    return RandomizationSummary(executed, cached, copies, len(last.failures))


def _randomize(study: Study, trained: TrainedModel, outcome: _Outcome) -> None:
    """Explain a model and its randomized copies, and score the copies' maps."""
    model = trained.model
    plans = _explain_trained(study, trained, outcome)
    for method, plan in plans.items():
        outcome.scores += _control_scores(study, model, method, plan)
    copies = variants(study.params, model, trained.network)
    units = list(dict.fromkeys(v.unit for v in copies if v.order == "independent"))
    outcome.units[model] = units
    for method, plan in plans.items():
        first = study.maps(plan, model, study.specs[method].setting)[0]
        picture = np.full((len(units) + 1, *first.shape), np.nan, np.float32)
        picture[0] = first
        outcome.pictures[model, method] = picture
    failures = _explain_copies(study, trained, copies, list(plans), outcome)
    for variant in copies:
        _score_copy(study, trained, variant, plans, failures.get(variant, []), outcome)


def _explain_trained(study: Study, trained: TrainedModel, outcome: _Outcome) -> dict[str, Plan]:
    """Plans of the trained model's maps by method, without the methods that can't run on it."""
    plans = {}
    for method in study.specs:
        title = f"randomize {trained.model}, {method}"
        plan = study.plan(method, trained.model, registry.identity(trained.card))
        try:
            ran = runner.run(
                plan.tasks, cache=study.cache, run_context=study.run_context, title=title
            )
        except runner.TasksFailedError as error:
            # A lost worker or a broken device is no fault of the method; the stage must not pass.
            if not all(isinstance(cause, _FAULTS) for cause in error.errors):
                raise
            outcome.failures.append(_failure(error.errors[0], trained.model, method))
            continue
        outcome.executed += ran.executed
        outcome.cached += ran.cached
        plans[method] = plan
    return plans


def _failure(error: Exception, model: str, method: str, variant: Variant = _NONE) -> dict[str, Any]:
    """Row of table `failures`; method '' stands for all of them."""
    names = {"model": model, "method": method, "order": variant.order, "unit": variant.unit}
    reason = " ".join(str(error).split())
    logger.warning("randomize %s %s %s: %s", model, method, variant.unit, reason)
    return {**names, "draw": -1 if variant is _NONE else variant.draw, "reason": reason}


@dataclass(frozen=True)
class _Job:
    """One copy to make, and where a worker finds what that takes."""

    model: str
    variant: Variant
    methods: tuple[str, ...]
    study: Study


class _Explained(NamedTuple):
    """Tasks executed and copies made for one variant; what failed."""

    executed: int
    copies: int
    failures: list[dict[str, Any]]


# The model of the last job with what it depends on: the next job is likely to be about it too.
_kept: tuple[Any, TrainedModel] | None = None


def _clear_caches() -> None:
    global _kept
    _kept = None
    runner.clear_caches()


def _kept_model(job: _Job) -> TrainedModel:
    global _kept
    study = job.study
    card = read_json(study.run_context.models / job.model / "card.json")
    needed = job.model, registry.identity(card), study.params, study.run_context
    if _kept is None or _kept[0] != needed:
        _kept = needed, study.trained_model(job.model)
    return _kept[1]


def _explain_copies(
    study: Study,
    trained: TrainedModel,
    copies: list[Variant],
    methods: list[str],
    outcome: _Outcome,
) -> dict[Variant, list[dict[str, Any]]]:
    """Make the copies of which something is missing, here or on workers; failures of each."""
    _clear_caches()
    lacking = []
    for variant in copies:
        path, plans = study.copy_plans(trained, variant, methods)
        tasks = [task for plan in plans.values() for task in plan.tasks]
        if _read_change(path) is None or runner.missing(tasks, study.cache):
            lacking.append(variant)
    context = study.run_context.resolved()
    shared = replace(
        study,
        # Workers make keys too: for the device that is meant here.
        params=study.params.model_copy(update={"attribution": context.attribution}),
        cache=TaskCache(study.cache.folder.resolve()),
        changes=study.changes.resolve(),
        run_context=context,
    )
    names = [
        f"{trained.model} without {variant.unit} ({variant.order}, draw {variant.draw})"
        for variant in lacking
    ]
    inputs = [*study.run_context.files([trained.model]), study.run_context.data / "dataset.json"]
    failures = {}
    for index, explained in runner.run_jobs(
        _explain,
        [_Job(trained.model, variant, tuple(methods), shared) for variant in lacking],
        names=names,
        weights=[1] * len(lacking),
        run_context=study.run_context,
        shared=runner.SharedFiles(study.cache.folder, inputs, _clear_caches),
        title=f"randomize {trained.model}",
        unit="copies",
    ):
        outcome.executed += explained.executed
        outcome.cached -= explained.executed
        outcome.copies += explained.copies
        failures[lacking[index]] = explained.failures
    return failures


def _read_change(path: Path) -> dict[str, float] | None:
    """A copy's function change; None where it is absent or its file is damaged."""
    try:
        return read_json(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        logger.warning("%s; it is measured again", error)
        path.unlink(missing_ok=True)
        return None


def _explain(job: _Job) -> _Explained:
    """Compute and store what is missing of one copy: its function change and its maps."""
    study, trained = job.study, _kept_model(job)
    path, plans = study.copy_plans(trained, job.variant, job.methods)
    # Made at most once, and only if something is missing.
    network = functools.cache(lambda: trained.randomized(job.variant))
    adapted = functools.cache(lambda: trained.explainable(network()))
    try:
        if _read_change(path) is None:
            write_json(trained.function_change(network()), path)
    except _FAULTS as error:
        failure = _failure(error, job.model, "", job.variant)
        return _Explained(0, network.cache_info().currsize, [failure])
    executed, failures = 0, []
    for method, plan in plans.items():
        pending = runner.missing(plan.tasks, study.cache)
        try:
            for task in pending:
                results = runner.execute(task, study.run_context, model=adapted())
                for key, (maps, notes) in zip(task.keys, results, strict=True):
                    study.cache.write(key, maps, notes)
        except _FAULTS as error:
            failures.append(_failure(error, job.model, method, job.variant))
        else:
            executed += len(pending)
    return _Explained(executed, network.cache_info().currsize, failures)


def _score_copy(
    study: Study,
    trained: TrainedModel,
    variant: Variant,
    plans: dict[str, Plan],
    failures: list[dict[str, Any]],
    outcome: _Outcome,
) -> None:
    """Add a copy's function change, and the scores of its maps against the trained model's.

    Parameters
    ----------
    study : Study
        Gives the cache.
    trained : TrainedModel
        The model that the copy is of.
    variant : Variant
        The copy.
    plans : dict of str to Plan
        Plan of the trained model's maps by each method.
    failures : list of dict
        What failed for this copy.
    outcome : _Outcome
        What is added to.
    """
    outcome.failures += failures
    failed = {failure["method"] for failure in failures}
    if "" in failed:
        return
    path, copy_plans = study.copy_plans(trained, variant, list(plans))
    names = {"model": trained.model, "randomizer": study.params.randomization.randomizer}
    outcome.changes.append({**names, **variant.columns, **read_json(path)})
    for method, plan in copy_plans.items():
        if method in failed:
            continue
        outcome.cached += len(plan.tasks)
        spec = study.specs[method]
        origin = study.maps(plans[method], trained.model, spec.setting)
        for kind, made in zip(("same", "fresh"), spec.settings, strict=False):
            maps = study.maps(plan, trained.model, made)
            outcome.scores += _scores(study, trained.model, method, kind, origin, maps, variant)
            if (kind, variant.order, variant.draw) == ("same", "independent", 0):
                outcome.pictures[trained.model, method][1 + variant.index] = maps[0]


def _control_scores(study: Study, model: str, method: str, plan: Plan) -> list[pd.DataFrame]:
    """Scores by the trained model alone: the method's own noise, and maps of different images."""
    spec = study.specs[method]
    origin, scores = study.maps(plan, model, spec.setting), []
    if spec.fresh is not None:
        fresh = study.maps(plan, model, spec.fresh)
        scores += _scores(study, model, method, "floor", origin, fresh)
    if len(origin) > 1:
        others = origin[mismatched(study.evaluation_set[0].head(spec.n_images))]
        scores += _scores(study, model, method, "mismatch", origin, others)
    return scores


def _scores(
    study: Study,
    model: str,
    method: str,
    kind: str,
    a: np.ndarray,
    b: np.ndarray,
    variant: Variant = _NONE,
) -> list[pd.DataFrame]:
    section = study.params.randomization
    made = {"randomizer": section.randomizer, "preset": section.preset}
    columns = {"model": model, "method": method, "kind": kind, **variant.columns, **made}
    ids = list(study.evaluation_set[0]["image_id"].head(len(a)))
    options = study.params.similarity
    return pair_scores(method, a, b, image_ids=ids, columns=columns, options=options)


def _write(study: Study, outcome: _Outcome) -> None:
    """Write all tables and pictures, or none."""
    with atomic_folder(study.params.results / "randomization") as temporary:
        table = joined(outcome.scores, RANDOMIZATION_COLUMNS)
        write_table(table, temporary / "scores.parquet")
        write_table(pd.DataFrame(outcome.changes, columns=CHANGES), temporary / "changes.parquet")
        write_table(pd.DataFrame(outcome.failures, columns=FAILURES), temporary / "failures.csv")
        used = {method: spec.setting.hyperparameters for method, spec in study.specs.items()}
        write_json(used, temporary / "settings.json")
        index = {
            "image_id": str(study.evaluation_set[0]["image_id"].iloc[0]),
            "order": "independent",
            "draw": 0,
            "units": outcome.units,
        }
        write_json(index, temporary / "pictures" / "index.json")
        for (model, method), maps in outcome.pictures.items():
            path = temporary / "pictures" / model / f"{method}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, maps)
