"""Independent parameter randomization of a study: which maps notice that a model lost a unit.

For every model, unit and draw of weights a randomized copy is made, and the methods explain it with
the same draws as the trained model, and with fresh ones. Every map is a cached task like any other.

`results/{study}/randomization/` holds `scores.parquet` (columns as in `parameter_sensitivity`),
`changes.parquet` (what randomizing did to the function), `failures.csv`, `settings.json` and
`pictures/`: per model and method the first image's maps by the trained model and with each unit
randomized (independent order, draw 0).
"""

import hashlib
import itertools
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from operator import itemgetter
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
from steadymap.engine.tasks import Plan, Task, cost_of, device_part, plan_settings
from steadymap.experiments.pairing import mismatched
from steadymap.experiments.randomized_methods import RandomizedMethodSettings, randomized_methods
from steadymap.experiments.similarity_scores import pair_scores
from steadymap.models import randomization, registry
from steadymap.params.schema import Params
from steadymap.store import fingerprint
from steadymap.store.atomic import atomic_folder, read_json, write_json
from steadymap.store.tables import RANDOMIZATION_COLUMNS, write_table
from steadymap.store.task_cache import TaskCache

logger = logging.getLogger(__name__)

CHANGES = (
    *("model", "order", "unit", "unit_index", "draw", "randomizer"),
    *("accuracy", "kept_predictions", "target_change", "n_images"),
)

FAILURES = ("model", "method", "order", "unit", "draw", "reason")

# What a method or a randomized network may fail with; anything else is a mistake of ours.
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
        Its place from the input on.
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


class RunSummary(NamedTuple):
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


def variants(params: Params, model: str, network: nn.Module) -> list[Variant]:
    """All randomized copies of a model, in the order in which they are made."""
    section = params.randomization
    architecture = params.architecture(model)
    names = randomization.units(
        network,
        section.preset,
        architecture=None if ":" in architecture else architecture,
        override=section.units.get(model),
    )
    found = []
    for order in section.orders:
        for units in randomization.orders(names, order):
            unit = units[-1]
            found += [
                Variant(order, unit, names.index(unit), tuple(units), draw)
                for draw in range(section.n_draws)
            ]
    return found


class _Subject:
    """One model of a study, its images and what its copies need."""

    def __init__(
        self, model: str, params: Params, run_context: runner.RunContext, data: Path | None = None
    ):
        self.model, self.params = model, params
        folder = run_context.models / model
        self.card = read_json(folder / "card.json")
        self.device = runner.device_of(run_context.attribution.device)
        self.network = registry.build(self.card["architecture"], len(self.card["classes"])).eval()
        weights = folder / "weights.safetensors"
        registry.load_state(self.network, registry.read_state(weights), source=str(weights))
        self.network.to(self.device)
        dataset = read_dataset(data or params.results / "data")
        split = "train" if len(dataset.images.get("train", ())) > 1 else "val"
        order = np.random.default_rng(
            derived_seed("calibration", params.randomization.seed)
        ).permutation(len(dataset.images[split]))
        self.calibration = self._normalized(
            dataset.images[split][np.sort(order[: randomization.CALIBRATION_IMAGES])]
        )
        some = slice(params.randomization.n_function_images)
        self.seen = self._normalized(dataset.images["val"][some])
        labels = dataset.rows("val")["label"].to_numpy(copy=True)[some]
        self.labels = torch.as_tensor(labels, device=self.device)
        self.before: Tensor | None = None
        self.inputs = hashlib.sha256(
            self.calibration.cpu().numpy().tobytes() + self.seen.cpu().numpy().tobytes()
        ).hexdigest()

    def _normalized(self, pixels: np.ndarray) -> Tensor:
        images = evaluation_set.as_images(pixels).to(self.device)
        mean, std = (
            torch.tensor(self.card[name], device=self.device).reshape(1, -1, 1, 1)
            for name in ("mean", "std")
        )
        return (images - mean) / std

    def identity(self, variant: Variant) -> str:
        """Hash of a copy: everything that its weights depend on."""
        section = self.params.randomization
        parts = {
            "weights": registry.identity(self.card),
            "units": list(variant.units),
            "draw": variant.draw,
            "seed": section.seed,
            "randomizer": section.randomizer,
            "inputs": self.inputs,
            "torch": torch.__version__,
            "source": fingerprint.digest(
                "steadymap.models.randomization", "steadymap.models.registry"
            ),
            **device_part(self.params.attribution),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def randomized(self, variant: Variant) -> nn.Module:
        """A copy, before it is made explainable."""
        architecture, n_classes = self.card["architecture"], len(self.card["classes"])
        own = ":" in architecture
        return randomization.randomized(
            self.network,
            list(variant.units),
            draw=variant.draw,
            seed=self.params.randomization.seed,
            randomizer=self.params.randomization.randomizer,
            calibration_images=self.calibration,
            constructor=(lambda: registry.build(architecture, n_classes)) if own else None,
        )

    def explainable(self, network: nn.Module) -> registry.Explainable:
        """A copy as methods take it."""
        adapted = registry.explainable(network, mean=self.card["mean"], std=self.card["std"])
        return adapted.to(self.device)

    def change(self, network: nn.Module) -> dict[str, float]:
        """What randomizing did to the function, on validation images."""
        if self.before is None:
            self.before = randomization.logits(self.network, self.seen)
        return asdict(randomization.functional_change(self.before, network, self.seen, self.labels))


class _Bench:
    """Runs and collects tasks of one study's randomized models."""

    def __init__(self, params: Params, cache: TaskCache, run_context: runner.RunContext):
        self.params, self.cache, self.run_context = params, cache, run_context
        self.rows, self.targets, _ = evaluation_set.read(run_context.evaluation_set)
        self.executed = self.cached = self.copies = 0
        self.failures: list[dict[str, Any]] = []

    def plan(self, made: RandomizedMethodSettings, model: str, weights: str) -> Plan:
        return plan_settings(
            made.settings,
            weights={model: weights},
            rows=self.rows.head(made.n_images),
            targets=self.targets,
            preprocessing=self.params.data.pixel_recipe,
            attribution=self.params.attribution,
        )

    def execute_trained(self, plan: Plan, model: str, method: str) -> None:
        ran = runner.run(
            plan.tasks,
            cache=self.cache,
            run_context=self.run_context,
            image_size=self.params.data.image_size,
            title=f"randomize {model}, {method}",
        )
        self.executed += ran.executed
        self.cached += ran.cached

    def execute(self, plan: Plan, adapted: registry.Explainable | None) -> None:
        pending = runner.missing(plan.tasks, self.cache)
        for task in pending:
            results = runner.execute(task, self.run_context, model=adapted)
            for key, (maps, notes) in zip(task.keys, results, strict=True):
                self.cache.write(key, maps, notes)
        self.executed += len(pending)

    def maps(self, plan: Plan, model: str, made: Setting) -> np.ndarray:
        return runner.collected(plan.keys[model, made], self.cache)[0]

    def fail(
        self, error: Exception, model: str, method: str, variant: Variant | None = None
    ) -> None:
        named = {"order": "", "unit": "", "draw": -1}
        if variant is not None:
            named = {"order": variant.order, "unit": variant.unit, "draw": variant.draw}
        reason = " ".join(str(error).split())
        self.failures.append({"model": model, "method": method, **named, "reason": reason})
        logger.warning("randomize %s %s %s: %s", model, method, named["unit"], reason)


class PlanLine(NamedTuple):
    """What randomizing one model costs.

    Attributes
    ----------
    model : str
        Its name.
    tasks, pending : int
        Tasks, and those of them that the cache lacks.
    passes, pending_passes : tuple of int
        Forward and backward passes, of all tasks and of those that the cache lacks.
    copies : int
        Copies of the model that are still to be made.
    maps : int
        Maps that are stored.
    """

    model: str
    tasks: int
    pending: int
    passes: tuple[int, int]
    pending_passes: tuple[int, int]
    copies: int
    maps: int


def plan_lines(
    params: Params, *, n_classes: int, cache: TaskCache, run_context: runner.RunContext
) -> list[PlanLine]:
    """Tasks and passes of each model, before anything runs.

    Until there are models and an evaluation set, nothing counts as cached.
    """
    section, wanted = params.randomization, randomized_methods(params)
    names = (section.models or params.models.names) if wanted else []
    known = (run_context.evaluation_set / "targets.csv").is_file() and all(
        (run_context.models / name / "card.json").is_file() for name in names
    )
    return [
        _known_line(model, params, cache, run_context)
        if known
        else _estimated_line(model, params, wanted, n_classes)
        for model in names
    ]


def _known_line(
    model: str, params: Params, cache: TaskCache, run_context: runner.RunContext
) -> PlanLine:
    subject, bench = _Subject(model, params, run_context), _Bench(params, cache, run_context)
    every: list[Task] = []
    missing: list[Task] = []
    due = 0
    for (draw, _), plans in itertools.groupby(_every_plan(bench, subject), key=itemgetter(0)):
        tasks = [task for _, plan in plans for task in plan.tasks]
        absent = runner.missing(tasks, cache)
        every += tasks
        missing += absent
        due += draw >= 0 and bool(absent)
    size = params.data.image_size
    maps = sum(len(task.block) * len(task.settings) for task in every)
    return PlanLine(
        model, len(every), len(missing), _passes(every, size), _passes(missing, size), due, maps
    )


def _passes(tasks: Sequence[Task], image_size: int) -> tuple[int, int]:
    found = [(len(task.block), cost_of(task.settings, image_size)) for task in tasks]
    return sum(n * cost[0] for n, cost in found), sum(n * cost[1] for n, cost in found)


def _estimated_line(
    model: str, params: Params, wanted: dict[str, RandomizedMethodSettings], n_classes: int
) -> PlanLine:
    network = registry.build(params.architecture(model), n_classes)
    copies = variants(params, model, network)
    tasks = forward = backward = maps = 0
    for made in wanted.values():
        times = 1 + sum(variant.draw < made.n_draws for variant in copies)
        blocks = -(-made.n_images // params.attribution.block_size)
        tasks += times * blocks * len(made.settings)
        for one in made.settings:
            ahead, back = cost_of([one], params.data.image_size)
            forward += times * made.n_images * ahead
            backward += times * made.n_images * back
            maps += times * made.n_images
    passes = (forward, backward)
    return PlanLine(model, tasks, tasks, passes, passes, len(copies), maps)


def run(
    params: Params, *, cache: TaskCache, changes: Path, run_context: runner.RunContext
) -> RunSummary:
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
    benches: list[_Bench] = []

    def whole() -> None:
        benches.append(_Bench(params, cache, run_context))
        _run(benches[-1], changes)

    # The whole once more computes what was damaged, and finds the rest.
    names = params.randomization.models or params.models.names
    runner.read_or_recompute(
        whole,
        lambda: None,
        plans=(
            plan
            for model in names
            for _, plan in _every_plan(benches[-1], _Subject(model, params, run_context))
        ),
        cache=cache,
    )
    last = benches[-1]
    executed = sum(bench.executed for bench in benches)
    tasks = last.executed + last.cached
    copies = sum(bench.copies for bench in benches)
    return RunSummary(executed, tasks - executed, copies, len(last.failures))


def _run(bench: _Bench, changes: Path) -> None:
    params, run_context = bench.params, bench.run_context
    section, wanted = params.randomization, randomized_methods(params)
    scored: list[pd.DataFrame] = []
    changed: list[dict[str, Any]] = []
    pictures: dict[str, dict[str, np.ndarray]] = {}
    units: dict[str, list[str]] = {}
    for model in (section.models or params.models.names) if wanted else []:
        subject = _Subject(model, params, run_context)
        origins = _origins(bench, subject, wanted)
        for method, (plan, made) in origins.items():
            scored += _own_scores(bench, model, method, plan, made)
        copies = variants(params, model, subject.network)
        units[model] = list(dict.fromkeys(v.unit for v in copies if v.order == "independent"))
        shown = pictures.setdefault(model, {})
        for method, (plan, made) in origins.items():
            first = bench.maps(plan, model, made.setting)[0]
            shown[method] = np.full((len(units[model]) + 1, *first.shape), np.nan, np.float32)
            shown[method][0] = first
        failed = _explain_copies(bench, subject, copies, origins, changes)
        for variant in copies:
            found = _gathered(bench, subject, variant, origins, changes, failed[variant])
            if found is None:
                continue
            change, maps = found
            changed.append(
                {
                    "model": model,
                    "order": variant.order,
                    "unit": variant.unit,
                    "unit_index": variant.index,
                    "draw": variant.draw,
                    "randomizer": section.randomizer,
                    **change,
                }
            )
            for method, (same, fresh) in maps.items():
                plan, made = origins[method]
                origin = bench.maps(plan, model, made.setting)
                for kind, moved in (("same", same), ("fresh", fresh)):
                    if moved is not None:
                        scored += _scores(bench, model, method, kind, origin, moved, variant)
                if variant.order == "independent" and variant.draw == 0:
                    shown[method][1 + variant.index] = same[0]
    _write(params, bench, scored, changed, pictures, units, wanted)


def _every_plan(bench: _Bench, subject: _Subject) -> Iterator[tuple[tuple[int, str], Plan]]:
    """Plans of a model's maps with draw and hash of the weights; draw -1 where it is trained."""
    copies = variants(bench.params, subject.model, subject.network)
    weights = [(-1, registry.identity(subject.card))]
    weights += [(variant.draw, subject.identity(variant)) for variant in copies]
    for draw, identity in weights:
        for made in randomized_methods(bench.params).values():
            if draw < made.n_draws:
                yield (draw, identity), bench.plan(made, subject.model, identity)


Origins = dict[str, tuple[Plan, RandomizedMethodSettings]]


def _origins(
    bench: _Bench, subject: _Subject, wanted: dict[str, RandomizedMethodSettings]
) -> Origins:
    """Plans of the trained model's maps, without the methods that can't run on it."""
    found: Origins = {}
    for method, made in wanted.items():
        plan = bench.plan(made, subject.model, registry.identity(subject.card))
        try:
            bench.execute_trained(plan, subject.model, method)
        except runner.TasksFailedError as error:
            # A lost worker or a broken device is no fault of the method; the stage must not pass.
            if not all(isinstance(one, _FAULTS) for one in error.errors):
                raise
            bench.fail(error.errors[0], subject.model, method)
            continue
        found[method] = plan, made
    return found


@dataclass(frozen=True)
class _Job:
    """One copy to make, and where a worker finds what that takes."""

    model: str
    variant: Variant
    methods: tuple[str, ...]
    params: Params
    run_context: runner.RunContext
    data: Path
    cache: TaskCache
    changes: Path


def _clear_caches() -> None:
    global _kept
    _kept = None
    runner.clear_caches()


class _Explained(NamedTuple):
    """Tasks executed and copies made for one variant; what failed."""

    executed: int
    copies: int
    failures: list[dict[str, Any]]


# The subject of the last job with what it depends on: the next one is likely to be about it too.
_kept: tuple[Any, _Subject, _Bench] | None = None


def _explain_copies(
    bench: _Bench, subject: _Subject, copies: list[Variant], origins: Origins, changes: Path
) -> dict[Variant, list[dict[str, Any]]]:
    """Make the copies of which something is missing, here or on workers; failures of each."""
    _clear_caches()
    lacking = []
    for variant in copies:
        path, plans = _planned(bench, subject, variant, list(origins), changes)
        if _change(path) is None or any(
            runner.missing(plan.tasks, bench.cache) for plan in plans.values()
        ):
            lacking.append(variant)
    data, place = (bench.params.results / "data").resolve(), bench.run_context.resolved()
    # Workers make keys too: for the device that is meant here.
    meant = bench.params.model_copy(update={"attribution": place.attribution})
    jobs = [
        _Job(
            subject.model,
            variant,
            tuple(origins),
            meant,
            place,
            data,
            TaskCache(bench.cache.folder.resolve()),
            changes.resolve(),
        )
        for variant in lacking
    ]
    failed: dict[Variant, list[dict[str, Any]]] = {variant: [] for variant in copies}
    for index, made in runner.run_jobs(
        _explained,
        jobs,
        names=[
            f"{subject.model} without {variant.unit} ({variant.order}, draw {variant.draw})"
            for variant in lacking
        ],
        weights=[1] * len(jobs),
        run_context=bench.run_context,
        shared=runner.SharedFiles(
            bench.cache.folder,
            [*bench.run_context.files([subject.model]), data / "dataset.json"],
            _clear_caches,
        ),
        title=f"randomize {subject.model}",
        unit="copies",
    ):
        bench.executed += made.executed
        bench.cached -= made.executed
        bench.copies += made.copies
        failed[lacking[index]] = made.failures
    return failed


def _planned(
    bench: _Bench, subject: _Subject, variant: Variant, methods: Sequence[str], changes: Path
) -> tuple[Path, dict[str, Plan]]:
    """File of a copy's function change, and the plan of each method that explains it."""
    identity, wanted = subject.identity(variant), randomized_methods(bench.params)
    plans = {
        method: bench.plan(wanted[method], subject.model, identity)
        for method in methods
        if variant.draw < wanted[method].n_draws
    }
    return changes / f"{identity}.json", plans


def _change(path: Path) -> dict[str, float] | None:
    """A copy's function change; None where it is absent or its file is damaged."""
    try:
        return read_json(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        logger.warning("%s; it is measured again", error)
        path.unlink(missing_ok=True)
        return None


def _explained(job: _Job) -> _Explained:
    """Function change and maps of one copy, stored; it is made only if something is missing."""
    global _kept
    card = read_json(job.run_context.models / job.model / "card.json")
    needed = (
        job.model,
        registry.identity(card),
        job.params,
        job.run_context,
        job.data,
        job.cache.folder,
    )
    if _kept is None or _kept[0] != needed:
        _kept = (
            needed,
            _Subject(job.model, job.params, job.run_context, job.data),
            _Bench(job.params, job.cache, job.run_context),
        )
    _, subject, bench = _kept
    bench.executed, bench.copies, bench.failures = 0, 0, []
    path, plans = _planned(bench, subject, job.variant, job.methods, job.changes)
    network: nn.Module | None = None
    adapted: registry.Explainable | None = None

    def copied() -> nn.Module:
        nonlocal network
        if network is None:
            network = subject.randomized(job.variant)
            bench.copies += 1
        return network

    try:
        if _change(path) is None:
            write_json(subject.change(copied()), path)
    except _FAULTS as error:
        bench.fail(error, job.model, "", job.variant)
        return _Explained(bench.executed, bench.copies, bench.failures)
    for method, plan in plans.items():
        if adapted is None and runner.missing(plan.tasks, bench.cache):
            adapted = subject.explainable(copied())
        try:
            bench.execute(plan, adapted)
        except _FAULTS as error:
            bench.fail(error, job.model, method, job.variant)
    return _Explained(bench.executed, bench.copies, bench.failures)


def _gathered(
    bench: _Bench,
    subject: _Subject,
    variant: Variant,
    origins: Origins,
    changes: Path,
    failures: list[dict[str, Any]],
) -> tuple[dict[str, float], dict[str, tuple[np.ndarray, np.ndarray | None]]] | None:
    """Function change and maps of one copy, from the cache; what failed goes to the bench."""
    bench.failures += failures
    failed = {failure["method"] for failure in failures}
    if "" in failed:
        return None
    path, plans = _planned(bench, subject, variant, list(origins), changes)
    maps = {}
    for method, plan in plans.items():
        if method in failed:
            continue
        bench.cached += len(plan.tasks)
        made = origins[method][1]
        same, *fresh = (bench.maps(plan, subject.model, one) for one in made.settings)
        maps[method] = same, (fresh[0] if fresh else None)
    return read_json(path), maps


def _own_scores(
    bench: _Bench, model: str, method: str, plan: Plan, made: RandomizedMethodSettings
) -> Iterator[pd.DataFrame]:
    """The method's own noise, and maps of different images, by the trained model."""
    origin = bench.maps(plan, model, made.setting)
    if made.fresh is not None:
        again = bench.maps(plan, model, made.fresh)
        yield from _scores(bench, model, method, "floor", origin, again)
    if len(origin) > 1:
        others = origin[mismatched(bench.rows.head(made.n_images))]
        yield from _scores(bench, model, method, "mismatch", origin, others)


def _scores(
    bench: _Bench,
    model: str,
    method: str,
    kind: str,
    a: np.ndarray,
    b: np.ndarray,
    variant: Variant | None = None,
) -> list[pd.DataFrame]:
    section = bench.params.randomization
    same = {
        "model": model,
        "method": method,
        "order": variant.order if variant else "",
        "unit": variant.unit if variant else "",
        "unit_index": variant.index if variant else -1,
        "draw": variant.draw if variant else 0,
        "kind": kind,
        "randomizer": section.randomizer,
        "preset": section.preset,
    }
    ids: Sequence[str] = list(bench.rows["image_id"].head(len(a)))
    return pair_scores(method, a, b, image_ids=ids, same=same, options=bench.params.similarity)


def _write(
    params: Params,
    bench: _Bench,
    scored: list[pd.DataFrame],
    changed: list[dict[str, Any]],
    pictures: dict[str, dict[str, np.ndarray]],
    units: dict[str, list[str]],
    wanted: dict[str, RandomizedMethodSettings],
) -> None:
    with atomic_folder(params.results / "randomization") as temporary:
        scores = (
            pd.concat(scored, ignore_index=True)
            if scored
            else pd.DataFrame(columns=RANDOMIZATION_COLUMNS)
        )
        write_table(scores[list(RANDOMIZATION_COLUMNS)], temporary / "scores.parquet")
        write_table(pd.DataFrame(changed, columns=CHANGES), temporary / "changes.parquet")
        write_table(pd.DataFrame(bench.failures, columns=FAILURES), temporary / "failures.csv")
        used = {method: made.setting.hyperparameters for method, made in wanted.items()}
        write_json(used, temporary / "settings.json")
        index = {
            "image_id": str(bench.rows["image_id"].iloc[0]),
            "order": "independent",
            "draw": 0,
            "units": units,
        }
        write_json(index, temporary / "pictures" / "index.json")
        for model, shown in pictures.items():
            for method, maps in shown.items():
                path = temporary / "pictures" / model / f"{method}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, maps)
