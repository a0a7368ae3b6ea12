"""What a study costs before anything runs: passes, time, disk."""

import io
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch
from rich.console import Console
from rich.table import Table

from steadymap.attribution.model_runner import ModelRunner
from steadymap.data import folders, imagenet
from steadymap.data.dataset import Dataset, read_dataset
from steadymap.engine import evaluation_set, runner
from steadymap.engine.settings import Setting, points, setting, unique_settings
from steadymap.engine.tasks import Plan, Task, cost_of, largest, plan_settings, reference_of
from steadymap.experiments import accuracy_scores, comparisons, randomized_maps
from steadymap.metrics import accuracy
from steadymap.models import adoption, randomization, registry
from steadymap.params.schema import EmbeddedData, FolderData, ImagenetData, Params, Rates
from steadymap.store.atomic import read_json
from steadymap.store.tables import read_table
from steadymap.store.task_cache import TaskCache
from steadymap.training import loop

# Photographs decoded per second: JPEG of 500 x 375 px on two cores.
_DECODED = 100

# Seconds of one call when measuring; beyond it, fewer rows are taken.
_CALL_SECONDS = 0.5

# Calls of one measurement, and the seconds that they take together, at least.
_ROUNDS, _ROUNDS_SECONDS = 3, 0.25

# Below this share of the processor time that its threads could use, a measurement was disturbed.
_UNDISTURBED = 0.8

# Seconds of a stage that are not model passes: imports, reading, writing.
_STAGE_SECONDS = 8.0

_COPY_SECONDS = 0.5

# Maps of sweeps stand in the task cache, in results/ and, unless it can link, in DVC's cache.
_ARCHIVED = 3

_COLUMNS = ("tasks", "to run", "forward passes", "backward passes", "seconds", "MB on disk")


class Throughput(Rates):
    """Rates of one architecture at the study's batch shape.

    Attributes
    ----------
    disturbed : bool
        Whether other processes took processor time from the measurement.
    """

    disturbed: bool = False

    def seconds(self, forward: int, backward: int) -> float:
        """Seconds of that many passes; each backward pass has a forward one with it."""
        return backward / self.gradient + max(forward - backward, 0) / self.forward


@dataclass(frozen=True)
class Line:
    """One row of the estimate, of a stage's tasks or of a sum of such rows."""

    stage: str
    tasks: int = 0
    pending: int = 0
    forward: int = 0
    backward: int = 0
    seconds: float = 0.0
    megabytes: float = 0.0

    def unless(self, done: bool) -> "Line":
        """The same line; where its tasks are done, none is pending and no time is needed."""
        return replace(self, pending=0, seconds=0.0) if done else self


def _total(stage: str, lines: Sequence[Line]) -> Line:
    """Sum of lines under one name."""
    numbers = [astuple(line)[1:] for line in lines]
    return Line(stage, *(sum(column) for column in zip(*numbers, strict=True)))


@dataclass(frozen=True)
class Extent:
    """How much data there is, or will be.

    Attributes
    ----------
    n_train, n_val, n_classes : int
        As fetched; else as params say or as file names tell.
    fetched : bool
        Whether the data stand in the results.
    changed : bool
        Whether files came or went since they were fetched.
    """

    n_train: int
    n_val: int
    n_classes: int
    fetched: bool
    changed: bool = False


def extent(params: Params, dataset: Dataset | None) -> Extent:
    """Extent of a study's data.

    Raises
    ------
    ValueError
        Where they are to be read from a folder that is none.
    """
    data = params.data
    if isinstance(data, EmbeddedData):
        return Extent(data.n_train, data.n_val, len(data.classes), fetched=dataset is not None)
    if dataset is not None and dataset.description["kind"] == data.kind:
        # Whoever has the results needs the folder no more.
        here = data.path is not None and Path(data.path).expanduser().is_dir()
        changed = (
            isinstance(data, FolderData)
            and here
            and folders.listing(data).digest != dataset.description["listing"]
        )
        n_train, n_val = (len(dataset.images.get(split, ())) for split in ("train", "val"))
        return Extent(n_train, n_val, len(dataset.classes), fetched=True, changed=changed)
    if isinstance(data, FolderData):
        named = folders.listing(data)
        return Extent(named.n_train, named.n_val, named.n_classes, fetched=False)
    n_train = 0 if data.train is None else data.n_train or imagenet.N_TRAIN
    return Extent(n_train, data.n_val or imagenet.N_VAL, len(imagenet.wnids()), fetched=False)


def _clock() -> np.ndarray:
    """Wall time, processor time of this process, and idle time of all processors, in seconds."""
    return np.array([time.monotonic(), time.process_time(), psutil.cpu_times().idle])


def _measure(call: Callable[[], object]) -> tuple[float, bool]:
    """Seconds that a call would take on a machine without other work; whether it was disturbed.

    What other processes took of the processor time that this one could have used is left out. It
    is at most what its threads lacked: threads that wait for each other lack time on an idle
    machine too.
    """
    call()
    n_calls, began = 0, _clock()
    while True:
        call()
        n_calls += 1
        wall, processor, idle = (_clock() - began).tolist()
        if n_calls >= _ROUNDS and wall >= _ROUNDS_SECONDS:
            break
    n_threads = torch.get_num_threads()
    others = max(0.0, wall * (psutil.cpu_count() or 1) - idle - processor)
    taken = min(others, max(0.0, wall * n_threads - processor)) / n_threads
    return (wall - taken) / n_calls, taken > (1 - _UNDISTURBED) * wall


def calibrate(architecture: str, params: Params, n_classes: int) -> Throughput:
    """Measure forward, gradient and training throughput on fresh weights, a few seconds.

    Parameters
    ----------
    architecture : str
        Name in the registry, or `module:function`.
    params : Params
        The study: device, image size, batch shape, precision of trainings.
    n_classes : int
        Number of classes.

    Raises
    ------
    ValueError
        Where the device is not there, or the network returns no logits.
    """
    device = runner.device_of(params.attribution.device)
    network = registry.build(architecture, n_classes)
    adapted = registry.explainable(network, mean=[0.5] * 3, std=[0.25] * 3).to(device)
    size = params.data.image_size
    key = f"architecture {architecture!r}"
    adoption.check_classifier(adapted, key=key, n_classes=n_classes, image_size=size)
    batch = params.attribution.batch_size
    few = torch.rand(2, 3, size, size, device=device)
    probe = ModelRunner(adapted, 2)
    probe.logits(few)
    began = time.monotonic()
    probe.logits(few)
    # Large images on a slow device: the rate of a part of the batch will do.
    batch = min(batch, max(2, int(2 * _CALL_SECONDS / (time.monotonic() - began))))
    images = torch.rand(batch, 3, size, size, device=device)
    targets = torch.zeros(batch, dtype=torch.int64, device=device)
    model = ModelRunner(adapted, batch)
    network = network.to(device).to(memory_format=torch.channels_last)
    rows = images.contiguous(memory_format=torch.channels_last)

    names = [name for name in params.models.names if params.architecture(name) == architecture]
    precisions = {params.recipe(name).precision for name in names}
    # On a CPU `auto` chooses bf16 only where that is faster than float32.
    bf16 = precisions == {"bf16"} or (device.type != "cpu" and precisions != {"float32"})

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            network(rows).float().sum().backward()

    calls = (
        lambda: model.scores(images, targets, output="logit"),
        lambda: model.gradients(images, targets, output="logit"),
        step,
    )
    seconds, disturbed = zip(*(_measure(call) for call in calls), strict=True)
    forward, gradient, training = (batch / each for each in seconds)
    return Throughput(
        forward=forward, gradient=gradient, training=training, disturbed=any(disturbed)
    )


class _Planner:
    """Prices the tasks that the engine plans for a study.

    Until there are models and an evaluation set, plans are made of as many nameless images, and
    nothing counts as cached.

    Parameters
    ----------
    params : Params
        The study.
    speeds : mapping of str to Throughput
        By architecture.
    cache : TaskCache
        Finished maps.
    """

    def __init__(self, params: Params, speeds: Mapping[str, Throughput], cache: TaskCache):
        self.params, self.cache = params, cache
        self.speeds = {name: speeds[params.architecture(name)] for name in params.models.names}
        folder, models = params.results / "evaluation_set", params.results / "models"
        names = params.models.names
        cards = [models / name / "card.json" for name in names]
        self.known = (folder / "targets.csv").is_file() and all(card.is_file() for card in cards)
        if self.known:
            self.rows, self.targets, _ = evaluation_set.read(folder)
            self.weights = runner.weights_of(models, names)
            return
        ids = [str(position) for position in range(params.evaluation_set.size)]
        self.rows = pd.DataFrame({"image_id": ids, "sha256": ""})
        self.targets = pd.concat(
            [pd.DataFrame({"image_id": ids, "model": name, "target": 0}) for name in names]
        )
        self.weights = dict.fromkeys(names, "")

    def plan(
        self,
        settings: list[Setting],
        names: Sequence[str] | None = None,
        n_images: int | None = None,
    ) -> Plan:
        """Tasks of settings of one method, by default for all models and the method's images."""
        if n_images is None:
            n_images = self.params.evaluation_set.of(settings[0].method)
        return plan_settings(
            settings,
            weights={name: self.weights[name] for name in names or self.weights},
            rows=self.rows.head(n_images),
            targets=self.targets,
            preprocessing=self.params.data.pixel_recipe,
            attribution=self.params.attribution,
        )

    def line(
        self, stage: str, plans: Sequence[Plan], *, cached: bool = True, copies: int = 1
    ) -> Line:
        """Price of plans.

        Parameters
        ----------
        stage : str
            Name of the line.
        plans : sequence of Plan
            Tasks.
        cached : bool
            Whether the cache may hold some of them.
        copies : int
            How often each map is stored.
        """
        tasks = [task for plan in plans for task in plan.tasks]
        pending = runner.missing(tasks, self.cache) if cached and self.known else tasks
        forward, backward, _ = self._passes(tasks)
        maps = sum(len(task.block) * len(task.settings) for task in tasks)
        megabytes = copies * maps * self.params.data.image_size**2 * 4 / 1e6
        seconds = self._passes(pending)[2]
        return Line(stage, len(tasks), len(pending), forward, backward, seconds, megabytes)

    def _passes(self, tasks: Sequence[Task]) -> tuple[int, int, float]:
        """Forward passes, backward passes and seconds."""
        images: Counter[tuple[str, tuple[Setting, ...]]] = Counter()
        for task in tasks:
            images[task.model, task.settings] += len(task.block)
        passes: dict[str, list[int]] = {name: [0, 0] for name in self.speeds}
        for (model, settings), n in images.items():
            for kind, per_image in enumerate(cost_of(settings, self.params.data.image_size)):
                passes[model][kind] += n * per_image
        seconds = sum(self.speeds[name].seconds(*both) for name, both in passes.items())
        forward, backward = (sum(both[kind] for both in passes.values()) for kind in (0, 1))
        return forward, backward, seconds

    def evaluation(self, there: Extent) -> Line:
        """Predictions of every model on the validation images, by which the rule chooses."""
        done = (self.params.results / "evaluation_set" / "targets.csv").is_file()
        seconds = sum(there.n_val / speed.forward for speed in self.speeds.values())
        pixels = self.params.evaluation_set.size * self.params.data.image_size**2 * 3
        passes = there.n_val * len(self.speeds)
        return Line("evaluation set", 1, 1, passes, 0, seconds, 2 * pixels / 1e6).unless(done)

    def attributions(self) -> Iterator[Line]:
        """A line per method."""
        for method in self.params.methods:
            settings = unique_settings(points(method, self.params.sweeps[method]))
            yield self.line(f"attribute {method}", [self.plan(settings)], copies=_ARCHIVED)

    def searches(self) -> Iterator[Line]:
        """A line per search: what it tried, or else as if every trial were the most expensive."""
        for method, searches in self.params.search.items():
            for name, search in searches.items():
                stage, names = f"search {name} (at most)", search.models or None
                if tried := _tried(self.params, method, name):
                    yield self.line(stage, [self.plan(tried, names)])
                    continue
                reference, dearest = (
                    self.line(stage, [self.plan([made], names)], cached=False)
                    for setting_of in (reference_of, largest)
                    for made in [setting_of(method, search, self.params.data.image_size)]
                )
                yield _total(stage, [reference, *[dearest] * search.n_trials])

    def accuracies(self, attributions: Sequence[Line]) -> Iterator[Line]:
        """A line per method: curves of finished maps that are measured cost nothing, of others all.

        Parameters
        ----------
        attributions : sequence of Line
            As `attributions` yields them.
        """
        params, side = self.params, self.params.data.image_size
        per_map = accuracy.passes_per_map(side * side, params.accuracy.pixels(side))
        for method, attribution in zip(params.methods, attributions, strict=True):
            n_settings = len(unique_settings(points(method, params.sweeps[method])))
            n_images = params.evaluation_set.of(method)
            n_blocks = -(-n_images // params.attribution.block_size)
            n_jobs = n_blocks * len(self.speeds) * -(-n_settings // accuracy_scores.MAPS_AT_ONCE)
            measured = (params.results / "accuracy" / f"{method}.parquet").is_file()
            passes = n_settings * n_images * per_map
            seconds = sum(passes / speed.forward for speed in self.speeds.values())
            passes *= len(self.speeds)
            stage, megabytes = f"accuracy {method}", passes * 4 / 1e6
            line = Line(stage, n_jobs, n_jobs, passes, 0, seconds, megabytes)
            yield line.unless(measured and attribution.pending == 0)

    def comparisons(self) -> Iterator[Line]:
        """A line per section, beyond the maps of sweeps; every image as one with an object."""
        params, sections = self.params, comparisons.sections(self.params)
        study = comparisons.study_inputs(params) if self.known and sections else None
        for section in sections:
            rows, targets = self.rows.head(section.n_images), self.targets
            if study is not None:
                inputs = comparisons.section_inputs(section, study, params)
                rows, targets = inputs.rows, inputs.targets
            plans = comparisons.section_plans(section, rows, targets, self.weights, params)
            yield self.line(f"compare {section.name}", plans, copies=_ARCHIVED)

    def randomizations(self, n_classes: int) -> Iterator[Line]:
        """A line per model: maps of its randomized copies, and what making these takes."""
        params = self.params
        study = randomized_maps.Study(params, self.cache, Path(), runner.RunContext.of(params))
        for model in randomized_maps.randomized_models(params):
            stage, speed = f"randomize {model}", self.speeds[model]
            if self.known:
                plans = list(study.plans(study.trained_model(model)))
                line = self.line(stage, [plan for group in plans for plan in group])
                n_copies = sum(self.line("", group).pending > 0 for group in plans[1:])
            else:
                network = registry.build(params.architecture(model), n_classes)
                copies = randomized_maps.variants(params, model, network)
                lines = []
                for spec in study.specs.values():
                    once = self.line(stage, [self.plan(spec.settings, [model], spec.n_images)])
                    lines += [once] * (1 + sum(v.draw < spec.n_draws for v in copies))
                line, n_copies = _total(stage, lines), len(copies)
            # A copy is calibrated, adapted, and its function measured.
            n_rows = randomization.CALIBRATION_IMAGES + params.randomization.n_function_images
            making = n_copies * (n_rows / speed.forward + _COPY_SECONDS)
            yield replace(line, seconds=line.seconds + making)


def _tried(params: Params, method: str, name: str) -> list[Setting]:
    """Settings that a search tried, if it was run as params have it now."""
    folder = params.results / "search"
    if not (folder / "searches.json").is_file():
        return []
    ran = read_json(folder / "searches.json").get(method, {}).get(name)
    if ran != params.search[method][name].model_dump(mode="json"):
        return []
    rows = read_table(folder / "search.csv")
    texts = rows.loc[rows["search"] == name, "hyperparameters"]
    return [setting(method, json.loads(text)) for text in dict.fromkeys(texts)]


def _fetch_line(params: Params, there: Extent) -> Line:
    images = there.n_train + there.n_val
    if isinstance(params.data, ImagenetData):
        # Photographs stay where they are: a table says where.
        seconds, megabytes = there.n_val / _DECODED, 2 * images * 200 / 1e6
    else:
        seconds = images / 400
        megabytes = 2 * images * params.data.image_size**2 * 3 / 1e6
    return Line("fetch", 1, 1, 0, 0, seconds, megabytes).unless(there.fetched)


def _training_lines(
    params: Params,
    speeds: Mapping[str, Throughput],
    cache: Path,
    dataset: Dataset | None,
    there: Extent,
) -> Iterator[Line]:
    threat = params.robust_accuracy
    weights: dict[str, str] = {}
    for name in params.models.names:
        recipe = params.recipe(name)
        given = recipe.is_given
        card = params.results / "models" / name / "card.json"
        done = given and card.is_file()
        if dataset is not None and not given:
            init = None
            if recipe.init_from:
                init = weights.get(recipe.init_from)
                other = params.results / "models" / recipe.init_from / "card.json"
                if init is None and other.is_file():
                    init = read_json(other)["weights_sha256"]
            digest = loop.recipe_digest(name, recipe, dataset, threat=threat, init_sha256=init)
            finished = cache / "training" / digest[:32] / "card.json"
            done = finished.is_file()
            if done:
                weights[name] = read_json(finished)["weights_sha256"]
        attack_steps = recipe.attack.steps if recipe.attack else 0
        trained = 0 if given else recipe.epochs * there.n_train * (1 + attack_steps)
        measured = min(threat.n_images, there.n_val) * threat.steps
        # Given weights are measured once; a model that is trained, after each epoch.
        n_clean = (1 if given else recipe.epochs) * there.n_val
        speed = speeds[params.architecture(name)]
        seconds = trained / speed.training + measured / speed.gradient + n_clean / speed.forward
        forward = trained + measured + (there.n_val if given else 0)
        line = Line(f"train {name}", 1, 1, forward, trained + measured, seconds, 25)
        yield line.unless(done)


def estimate(params: Params, cache: Path) -> str:
    """Table of passes, time and disk per stage, for a terminal.

    Nothing but params is needed: neither data nor weights.
    """
    folder = params.results / "data"
    dataset = read_dataset(folder) if (folder / "dataset.json").is_file() else None
    there = extent(params, dataset)
    speeds = _speeds(params, there.n_classes)
    planner = _Planner(params, speeds, TaskCache(cache / "tasks"))
    attributions = [*planner.attributions()]
    lines = [
        _fetch_line(params, there),
        *_training_lines(params, speeds, cache, dataset, there),
        planner.evaluation(there),
        *attributions,
        *planner.searches(),
        *planner.accuracies(attributions),
        *planner.comparisons(),
        *planner.randomizations(there.n_classes),
    ]
    n_stages = 10 + len(params.models.names) + 3 * len(params.methods)
    title = f"study {params.study}: what is to be computed"
    text = _rendered(title, lines, speeds, n_stages * _STAGE_SECONDS, params)
    if there.changed:
        text += (
            "\ndata.path: files came or went since the fetch; `dvc repro -f fetch` takes them in"
        )
    return text


def estimate_trainings(studies: Mapping[str, Params], cache: Path, *, dataset: Dataset) -> str:
    """Table of passes, time and disk for studies that differ in their trainings.

    Parameters
    ----------
    studies : mapping of str to Params
        By the name to be shown.
    cache : Path
        Where trainings and tasks are kept.
    dataset : Dataset
        What all of them train on.
    """
    first = next(iter(studies.values()))
    there = extent(first, dataset)
    speeds = _speeds(first, there.n_classes)
    lines = []
    for name, params in studies.items():
        planner = _Planner(params, speeds, TaskCache(cache / "tasks"))
        trainings = [*_training_lines(params, speeds, cache, dataset, there)]
        attributions = [*planner.attributions()]
        lines += [
            _total(f"{name}: train", trainings),
            _total(f"{name}: attribute", attributions),
            _total(f"{name}: accuracy", [*planner.accuracies(attributions)]),
        ]
    return _rendered("trainings: what is to be computed", lines, speeds, _STAGE_SECONDS, first)


def _speeds(params: Params, n_classes: int) -> dict[str, Throughput]:
    """Throughput of each architecture, as params assume it or else as it is measured here."""
    architectures = dict.fromkeys(params.architecture(name) for name in params.models.names)
    return {
        name: Throughput(**params.plan.throughput[name].model_dump())
        if name in params.plan.throughput
        else calibrate(name, params, n_classes)
        for name in architectures
    }


def _rendered(
    title: str,
    lines: Sequence[Line],
    speeds: dict[str, Throughput],
    overhead: float,
    params: Params,
) -> str:
    """Lines as a table for a terminal, and their sum; `overhead` are seconds beside the passes."""
    table = Table("stage", title=title, title_justify="left")
    for name in _COLUMNS:
        table.add_column(name, justify="right")
    for line in lines:
        table.add_row(line.stage, *(f"{number:,.0f}" for number in astuple(line)[1:]))
    console = Console(width=130, record=True, file=io.StringIO())
    console.print(table)
    total = _total("", lines)
    text = f"{total.pending} of {total.tasks} tasks to run"
    if total.pending:
        text += f", about {_duration(total.seconds + overhead)}"
    large = total.megabytes >= 1e4
    disk = f"{total.megabytes / 1e3:,.0f} GB" if large else f"{total.megabytes:,.0f} MB"
    text += (
        f"\n{total.forward:,} forward and {total.backward:,} backward passes; {disk} on disk, maps "
        "of sweeps counted in the task cache, in results/ and in DVC's cache"
    )
    return f"{console.export_text()}{_rates(speeds, params)}\n{text}"


def _duration(seconds: float) -> str:
    if seconds >= 5 * 3600:
        return f"{seconds / 3600:,.0f} device hours"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _rates(speeds: dict[str, Throughput], params: Params) -> str:
    """Rows per second of each architecture, and where they come from."""

    def shown(names: list[str]) -> str:
        return "; ".join(
            f"{name} {speeds[name].forward:.0f} forward, {speeds[name].gradient:.0f} gradient, "
            f"{speeds[name].training:.0f} training rows/s"
            for name in names
        )

    assumed = [name for name in speeds if name in params.plan.throughput]
    measured = [name for name in speeds if name not in assumed]
    lines = [f"measured here: {shown(measured)}"] if measured else []
    if any(speeds[name].disturbed for name in measured):
        lines.append(
            "the machine is busy: rates are reckoned from processor time, as if nothing else ran; "
            "beside other work it takes longer"
        )
    if assumed:
        lines.append(f"assumed, not measured ({params.plan.assumption}): {shown(assumed)}")
    return "\n".join(lines)
