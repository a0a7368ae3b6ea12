"""What a study costs before anything runs: passes, time, disk."""

import io
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from steadymap.attribution.model_runner import ModelRunner
from steadymap.data import folders, imagenet
from steadymap.data.dataset import Dataset, read_dataset
from steadymap.engine import runner
from steadymap.engine.settings import Setting, pairs, points, sharing_a_pass, unique_settings
from steadymap.engine.tasks import cost_of, largest, reference_of
from steadymap.experiments import accuracy_scores, comparisons, randomized_maps
from steadymap.metrics.similarity import similarities
from steadymap.models import adoption, randomization, registry
from steadymap.params.schema import EmbeddedData, ImagenetData, Params
from steadymap.store.atomic import read_json
from steadymap.store.tables import read_table
from steadymap.store.task_cache import TaskCache
from steadymap.training import loop

# Photographs decoded per second: JPEG of 500 x 375 px on two cores.
_DECODED = 100

# Seconds of one call when measuring; beyond it, fewer rows are taken.
_CALL_SECONDS = 0.5

# Seconds of a stage that are not model passes: imports, reading, writing.
_STAGE_SECONDS = 8.0

_COPY_SECONDS = 0.5

_ROUNDS = 3

_COLUMNS = (
    "tasks",
    "to run",
    "forward passes",
    "backward passes",
    "seconds",
    "MB on disk",
    "rows",
)


@dataclass(frozen=True)
class Throughput:
    """Rows per second of one architecture at the study's batch shape."""

    forward: float
    gradient: float
    training: float


@dataclass(frozen=True)
class Line:
    """One row of the estimate; `rows` of scores are at most so many."""

    stage: str
    tasks: int
    pending: int
    forward: int
    backward: int
    seconds: float
    megabytes: float
    rows: int = 0


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
    data, fetched = params.data, dataset is not None
    if isinstance(data, EmbeddedData):
        return Extent(data.n_train, data.n_val, len(data.classes), fetched)
    if isinstance(data, ImagenetData):
        if dataset is not None and dataset.description["kind"] == data.kind:
            n_train = len(dataset.images.get("train", ()))
            return Extent(n_train, len(dataset.images["val"]), len(dataset.classes), fetched)
        n_train = 0 if data.train is None else data.n_train or imagenet.N_TRAIN
        n_val = data.n_val or imagenet.N_VAL
        return Extent(n_train, n_val, len(imagenet.wnids()), fetched=False)
    if dataset is None or dataset.description["kind"] != data.kind:
        named = folders.listing(data)
        return Extent(named.n_train, named.n_val, named.n_classes, fetched=False)
    sizes = {split: len(images) for split, images in dataset.images.items()}
    # Whoever has the results needs the folder no more.
    here = data.path is not None and Path(data.path).expanduser().is_dir()
    return Extent(
        sizes.get("train", 0),
        sizes["val"],
        len(dataset.classes),
        fetched,
        changed=here and folders.listing(data).digest != dataset.description["listing"],
    )


def calibrate(architecture: str, params: Params, n_classes: int) -> Throughput:
    """Measure forward, gradient and training throughput on fresh weights, a few seconds."""
    device = runner.device_of(params.attribution.device)
    network = registry.build(architecture, n_classes)
    adapted = registry.explainable(network, mean=[0.5] * 3, std=[0.25] * 3).to(device)
    size = params.data.image_size
    key = f"architecture {architecture!r}"
    adoption.check_classifier(adapted, key=key, n_classes=n_classes, image_size=size)
    batch = params.attribution.batch_size
    few = torch.rand(2, 3, size, size, device=device)
    probed = ModelRunner(adapted, 2)
    probed.logits(few)
    began = time.monotonic()
    probed.logits(few)
    # Large images on a slow device: the rate of a part of the batch will do.
    batch = min(batch, max(2, int(2 * _CALL_SECONDS / (time.monotonic() - began))))
    images = torch.rand(batch, 3, size, size, device=device)
    targets = torch.zeros(batch, dtype=torch.int64, device=device)
    passes = ModelRunner(adapted, batch)
    network = network.to(device).to(memory_format=torch.channels_last)
    rows = images.contiguous(memory_format=torch.channels_last)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            network(rows).float().sum().backward()

    def rate(call: object) -> float:
        assert callable(call)
        call()
        began = time.monotonic()
        for _ in range(_ROUNDS):
            call()
        return batch * _ROUNDS / (time.monotonic() - began)

    return Throughput(
        forward=rate(lambda: passes.scores(images, targets, output="logit")),
        gradient=rate(lambda: passes.gradients(images, targets, output="logit")),
        training=rate(step),
    )


def _training_lines(
    params: Params,
    speeds: dict[str, Throughput],
    cache: Path,
    dataset: Dataset | None,
    there: Extent,
) -> Iterator[Line]:
    known: dict[str, str] = {}
    for name in params.models.names:
        recipe = params.recipe(name)
        given = recipe.is_given
        done = given and (params.results / "models" / name / "card.json").is_file()
        if dataset is not None and not given:
            card = params.results / "models" / (recipe.init_from or name) / "card.json"
            init = None
            if recipe.init_from:
                init = known.get(recipe.init_from)
                if init is None and card.is_file():
                    init = read_json(card)["weights_sha256"]
            digest = loop.recipe_digest(
                name, recipe, dataset, threat=params.robust_accuracy, init_sha256=init
            )
            finished = cache / "training" / digest[:32] / "card.json"
            done = finished.is_file()
            if done:
                known[name] = read_json(finished)["weights_sha256"]
        attack_steps = recipe.attack.steps if recipe.attack else 0
        threat = params.robust_accuracy
        trained = 0 if given else recipe.epochs * there.n_train * (1 + attack_steps)
        measured = min(threat.n_images, there.n_val) * threat.steps
        speed = speeds[params.architecture(name)]
        seconds = 0.0
        if not done:
            seconds = trained / speed.training + measured / speed.gradient
            # Given weights are measured once; one that is trained, after each epoch.
            seconds += (1 if given else recipe.epochs) * there.n_val / speed.forward
        clean = there.n_val if given else 0
        yield Line(
            f"train {name}",
            1,
            0 if done else 1,
            trained + measured + clean,
            trained + measured,
            seconds,
            25,
        )


def _evaluation_line(params: Params, speeds: dict[str, Throughput], there: Extent) -> Line:
    """Predictions of every model on the validation images, by which the rule chooses."""
    names = params.models.names
    done = (params.results / "evaluation_set" / "targets.csv").is_file()
    passes = there.n_val * len(names)
    seconds = sum(there.n_val / speeds[params.architecture(name)].forward for name in names)
    pixels = params.evaluation_set.n_images * params.data.image_size**2 * 3
    return Line("evaluation set", 1, 1 - done, passes, 0, seconds * (not done), 2 * pixels / 1e6)


def _metrics(params: Params) -> int:
    """How many scores a pair of maps gets."""
    options = params.similarity
    side = max(4 * options.hog_cell, options.win_size, 16)
    blank = torch.zeros(1, side, side)
    return len(
        similarities(
            "gradient",
            blank,
            blank,
            conventions=tuple(options.conventions),
            hog_cell=options.hog_cell,
            win_size=options.win_size,
        )
    )


def _attribution_lines(
    params: Params, speeds: dict[str, Throughput], cache: TaskCache
) -> Iterator[Line]:
    size, n_images = params.data.image_size, params.evaluation_set.n_images
    names, metrics = params.models.names, _metrics(params)
    folder = params.results
    known = (folder / "evaluation_set" / "targets.csv").is_file() and all(
        (folder / "models" / name / "card.json").is_file() for name in names
    )
    for method in params.methods:
        settings = unique_settings(points(method, params.sweeps[method]))
        groups = sharing_a_pass(settings)
        blocks = -(-n_images // params.attribution.block_size)
        forward = backward = 0
        seconds = 0.0
        tasks = pending = blocks * len(groups) * len(names)
        for group in groups:
            per_image = cost_of(group, size)
            forward += per_image[0] * n_images * len(names)
            backward += per_image[1] * n_images * len(names)
        if known:
            plan = runner.study_plan(method, params)
            absent = runner.missing(plan.tasks, cache)
            tasks, pending = len(plan.tasks), len(absent)
            work = [(task.model, len(task.block), cost_of(task.settings, size)) for task in absent]
        else:
            work = [(name, n_images, cost_of(group, size)) for name in names for group in groups]
        for model, images, (ahead, back) in work:
            speed = speeds[params.architecture(model)]
            # A gradient's throughput counts its forward pass.
            seconds += images * (back / speed.gradient + max(ahead - back, 0) / speed.forward)
        # Maps stand in the task cache, in the workspace and, unless it can link, in DVC's cache.
        megabytes = 3 * len(settings) * len(names) * n_images * size * size * 4 / 1e6
        compared = len(pairs(method, params.sweeps[method])) * metrics
        rows = (compared + len(points(method, params.sweeps[method]))) * len(names) * n_images
        yield Line(
            f"attribute {method}", tasks, pending, forward, backward, seconds, megabytes, rows
        )


def _search_lines(
    params: Params, speeds: dict[str, Throughput], cache: TaskCache
) -> Iterator[Line]:
    """Upper bounds: every trial as dear as the dearest, nothing shared."""
    size, n_images = params.data.image_size, params.evaluation_set.n_images
    blocks = -(-n_images // params.attribution.block_size)
    for method, searches in params.search.items():
        for name, search in searches.items():
            names = search.models or params.models.names
            known = _searched(params, method, name)
            dearest = cost_of([largest(method, search, size)], size)
            compared = cost_of([reference_of(method, search, size)], size)
            ahead, back = (
                n_images * (compared[kind] + search.n_trials * dearest[kind]) for kind in (0, 1)
            )
            n_settings = len(known) if known else search.n_trials + 1
            tasks = pending = blocks * n_settings * len(names)
            seconds = 0.0
            if known:
                plan = runner.settings_plan(known, params, names)
                tasks, pending = len(plan.tasks), len(runner.missing(plan.tasks, cache))
            if pending:
                for model in names:
                    speed = speeds[params.architecture(model)]
                    seconds += back / speed.gradient + max(ahead - back, 0) / speed.forward
            megabytes = n_settings * len(names) * n_images * size * size * 4 / 1e6
            yield Line(
                f"search {name} (at most)",
                tasks,
                pending,
                ahead * len(names),
                back * len(names),
                seconds,
                megabytes,
            )


def _accuracy_lines(
    params: Params, speeds: dict[str, Throughput], pending: dict[str, int]
) -> Iterator[Line]:
    """Curves of maps that are there and measured cost nothing; of others, all of them."""
    blocks = -(-params.evaluation_set.n_images // params.attribution.block_size)
    names = params.models.names
    for method in params.methods:
        n_settings = len(unique_settings(points(method, params.sweeps[method])))
        tasks = blocks * len(names) * -(-n_settings // accuracy_scores.MAPS_AT_ONCE)
        measured = (params.results / "accuracy" / f"{method}.parquet").is_file()
        due = not measured or pending[f"attribute {method}"] > 0
        passes = accuracy_scores.plan_passes(method, params)
        seconds = sum(passes / len(names) / speeds[params.architecture(n)].forward for n in names)
        yield Line(
            f"accuracy {method}",
            tasks,
            tasks * due,
            passes,
            0,
            seconds * due,
            passes * 4 / 1e6,
            accuracy_scores.plan_rows(method, params),
        )


def _comparison_lines(
    params: Params, speeds: dict[str, Throughput], cache: TaskCache
) -> Iterator[Line]:
    area, metrics = params.data.image_size**2, _metrics(params)
    for line in comparisons.plan_lines(params, cache):
        ahead, back = (sum(passes[kind] for passes in line.passes.values()) for kind in (0, 1))
        seconds = 0.0
        for model, (forward, backward) in line.pending_passes.items():
            speed = speeds[params.architecture(model)]
            seconds += backward / speed.gradient + max(forward - backward, 0) / speed.forward
        megabytes = 3 * line.maps * area * 4 / 1e6
        rows = line.maps * metrics
        yield Line(
            f"compare {line.section}",
            line.tasks,
            line.pending,
            ahead,
            back,
            seconds,
            megabytes,
            rows,
        )


def _randomization_lines(
    params: Params, speeds: dict[str, Throughput], cache: TaskCache, n_classes: int
) -> Iterator[Line]:
    run_context = runner.RunContext.of(params)
    metrics = _metrics(params)
    for line in randomized_maps.plan_lines(
        params, n_classes=n_classes, cache=cache, run_context=run_context
    ):
        speed = speeds[params.architecture(line.model)]
        ahead, back = line.pending_passes
        seconds = back / speed.gradient + max(ahead - back, 0) / speed.forward
        # A copy is calibrated, adapted, and its function measured.
        measured = randomization.CALIBRATION_IMAGES + params.randomization.n_function_images
        seconds += line.copies * (measured / speed.forward + _COPY_SECONDS)
        megabytes = line.maps * params.data.image_size**2 * 4 / 1e6
        forward, backward = line.passes
        yield Line(
            f"randomize {line.model}",
            line.tasks,
            line.pending,
            forward,
            backward,
            seconds,
            megabytes,
            line.maps * metrics,
        )


def _searched(params: Params, method: str, name: str) -> list[Setting]:
    """Settings that a search tried, if it was run as params have it now."""
    folder = params.results / "search"
    if not (folder / "searches.json").is_file():
        return []
    ran = read_json(folder / "searches.json").get(method, {}).get(name)
    if ran != params.search[method][name].model_dump(mode="json"):
        return []
    rows = read_table(folder / "search.csv")
    texts = rows.loc[rows["search"] == name, "hyperparameters"]
    return [
        Setting(method, tuple(sorted(json.loads(text).items()))) for text in dict.fromkeys(texts)
    ]


def _fetch_line(params: Params, there: Extent) -> Line:
    fresh, images = not there.fetched, there.n_train + there.n_val
    if isinstance(params.data, ImagenetData):
        # Photographs stay where they are: a table says where.
        seconds, megabytes = there.n_val / _DECODED, 2 * images * 200 / 1e6
    else:
        seconds = images / 400
        megabytes = 2 * images * params.data.image_size**2 * 3 / 1e6
    return Line("fetch", 1, int(fresh), 0, 0, fresh * seconds, megabytes)


def estimate(params: Params, cache: Path) -> str:
    """Table of passes, time, disk and rows per stage, for a terminal.

    Nothing but params is needed: neither data nor weights.
    """
    folder = params.results / "data"
    dataset = read_dataset(folder) if (folder / "dataset.json").is_file() else None
    there = extent(params, dataset)
    speeds = _speeds(params, there.n_classes)
    lines = [
        _fetch_line(params, there),
        *_training_lines(params, speeds, cache, dataset, there),
        _evaluation_line(params, speeds, there),
        *_attribution_lines(params, speeds, TaskCache(cache / "tasks")),
        *_search_lines(params, speeds, TaskCache(cache / "tasks")),
    ]
    lines += [
        *_accuracy_lines(params, speeds, {line.stage: line.pending for line in lines}),
        *_comparison_lines(params, speeds, TaskCache(cache / "tasks")),
        *_randomization_lines(params, speeds, TaskCache(cache / "tasks"), there.n_classes),
    ]
    stages = 10 + len(params.models.names) + 3 * len(params.methods)
    title = f"study {params.study}: what is to be computed"
    text = _rendered(title, lines, speeds, stages * _STAGE_SECONDS, params)
    if there.changed:
        text += (
            "\ndata.path: files came or went since they were fetched; `dvc repro -f fetch` takes "
            "them in"
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
        trained = [*_training_lines(params, speeds, cache, dataset, there)]
        mapped = [*_attribution_lines(params, speeds, TaskCache(cache / "tasks"))]
        pending = {line.stage: line.pending for line in mapped}
        scored = [*_accuracy_lines(params, speeds, pending)]
        for kind, part in (("train", trained), ("attribute", mapped), ("accuracy", scored)):
            lines.append(
                Line(
                    stage=f"{name}: {kind}",
                    tasks=sum(line.tasks for line in part),
                    pending=sum(line.pending for line in part),
                    forward=sum(line.forward for line in part),
                    backward=sum(line.backward for line in part),
                    seconds=sum(line.seconds for line in part),
                    megabytes=sum(line.megabytes for line in part),
                    rows=sum(line.rows for line in part),
                )
            )
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
    table = Table(title=title, title_justify="left")
    table.add_column("stage")
    for name in _COLUMNS:
        table.add_column(name, justify="right")
    for line in lines:
        table.add_row(
            line.stage,
            f"{line.tasks}",
            f"{line.pending}",
            f"{line.forward:,}",
            f"{line.backward:,}",
            f"{line.seconds:,.0f}",
            f"{line.megabytes:,.0f}",
            f"{line.rows:,}",
        )
    pending = sum(line.pending for line in lines)
    seconds = sum(line.seconds for line in lines) + (overhead if pending else 0)
    console = Console(width=130, record=True, file=io.StringIO())
    console.print(table)
    total = f"{pending} of {sum(line.tasks for line in lines)} tasks to run"
    if pending:
        total += f", about {_duration(seconds)}"
    megabytes = sum(line.megabytes for line in lines)
    disk = f"{megabytes / 1e3:,.0f} GB" if megabytes >= 1e4 else f"{megabytes:,.0f} MB"
    total += (
        f"\n{sum(line.forward for line in lines):,} forward and "
        f"{sum(line.backward for line in lines):,} backward passes; "
        f"{sum(line.rows for line in lines):,} rows of scores; {disk} on disk, maps of sweeps "
        "counted in the task cache, in results/ and in DVC's cache"
    )
    return f"{console.export_text()}{_sources_of(speeds, params)}\n{total}"


def _duration(seconds: float) -> str:
    if seconds >= 5 * 3600:
        return f"{seconds / 3600:,.0f} device hours"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _sources_of(speeds: dict[str, Throughput], params: Params) -> str:
    """Rows per second of each architecture, and where they come from."""

    def told(names: list[str]) -> str:
        return "; ".join(
            f"{name} {speeds[name].forward:.0f} forward, {speeds[name].gradient:.0f} gradient, "
            f"{speeds[name].training:.0f} training rows/s"
            for name in names
        )

    assumed = [name for name in speeds if name in params.plan.throughput]
    measured = [name for name in speeds if name not in assumed]
    lines = [f"measured here: {told(measured)}"] if measured else []
    if assumed:
        lines.append(f"assumed, not measured ({params.plan.assumption}): {told(assumed)}")
    return "\n".join(lines)
