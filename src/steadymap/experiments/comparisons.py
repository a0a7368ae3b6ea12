"""Comparisons beside the sweeps: between inputs, models, sizes (SAM 4.1, 4.2, Figs. 1, 3, 6).

And between the settings of a sweep and their converged map (`steadymap.experiments.convergence`).

`run` writes `results/{study}/comparisons`, replaced as a whole:

- `comparisons.parquet`, a row per pair of maps and score, with the columns `COLUMNS`;
- `object_size.parquet`, a row per map of an object on black, with the columns `OBJECT_COLUMNS`;
- `structure.parquet`, a row per map and score of its visible structure, with the columns
  `structure_scores.COLUMNS`;
- `stability.parquet`, a row per map, held against its converged one, and score, with the columns
  `convergence.COLUMNS`;
- `noise-{variance}/` and `object-{size}px/`: the images that were made, in the format of an
  evaluation set (`evaluation_set.csv`, `targets.csv`, `images.npy`, of objects `masks.npy` too),
  and their maps in `maps/{method}`;
- `teaser/{method}`: maps of one image.

Maps are archives as `steadymap.store.maps.Maps` opens them.
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from steadymap import draws
from steadymap.engine import evaluation_set, runner
from steadymap.engine.settings import Setting, headline_points, points, setting
from steadymap.engine.tasks import Plan, plan_settings
from steadymap.experiments import convergence, structure_scores
from steadymap.experiments.similarity_scores import pair_scores
from steadymap.params.methods import PROTOCOLS, ROBUST
from steadymap.params.schema import Params
from steadymap.statistics.pairing import mismatched
from steadymap.store.atomic import atomic_folder
from steadymap.store.maps import Maps, write_maps
from steadymap.store.tables import joined, write_table
from steadymap.store.task_cache import TaskCache

COLUMNS = (
    *("comparison", "model", "other", "role", "method", "value", "pairing", "image_id"),
    *("metric", "convention", "score", "degenerate", "inverted"),
)

OBJECT_COLUMNS = (
    *("model", "image_id", "object_size", "patch_size"),
    *("object_area", "area_above_half", "peak", "score"),
)

NOISE_METHODS = ("gradient", "input_x_gradient")


@dataclass(frozen=True)
class Inputs:
    """Images to explain, made from the study's or its own.

    Attributes
    ----------
    rows, targets : DataFrame
        As of an evaluation set.
    pixels : ndarray
        Uint8 (images, height, width, 3).
    masks : ndarray, optional
        Pixels of the object, bool (images, height, width).
    """

    rows: pd.DataFrame
    targets: pd.DataFrame
    pixels: np.ndarray
    masks: np.ndarray | None = None

    @property
    def digest(self) -> str:
        """Hash of all that a map depends on: ids, contents and targets."""
        lines = [f"{row.image_id} {row.sha256}" for row in self.rows.itertuples()]
        lines += [f"{row.image_id} {row.model} {row.target}" for row in self.targets.itertuples()]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write them in the format of an evaluation set."""
        with atomic_folder(folder) as temporary:
            evaluation_set.write(temporary, self.rows, self.targets, self.pixels, self.masks)


@dataclass(frozen=True)
class Section:
    """Maps that a comparison needs beyond those of the study's sweeps.

    Attributes
    ----------
    kind : {"noise", "object", "teaser", "budget"}
        Which images are explained; for budgets, those of the study.
    amount : float
        Variance of the noise, or size of the object in px; else 0.
    settings : tuple of Setting
        What is computed, of one or more methods.
    models : tuple of str
        On which models.
    n_images : int
        On how many images, at most; of these, each method takes its own number of the study's.
    """

    kind: str
    amount: float
    settings: tuple[Setting, ...]
    models: tuple[str, ...]
    n_images: int

    @property
    def name(self) -> str:
        """`noise-{variance}`, `object-{size}px` (as its folder), `teaser` or `budget`."""
        if self.kind == "noise":
            return f"noise-{self.amount}"
        return f"object-{self.amount}px" if self.kind == "object" else self.kind


def noisy(pixels: np.ndarray, image_id: str, *, variance: float, seed: int = 0) -> np.ndarray:
    """Image under Gaussian noise (SAM 4.1; docs/protocol.md).

    The draw is keyed by seed and image alone: all models, and all variances up to its scale, see
    the same. It is added to the image as models see it, after resizing.

    Parameters
    ----------
    pixels : ndarray
        Uint8 (height, width, 3).
    image_id : str
        What the draw is keyed by.
    variance : float
        Of the noise before clipping, for images in [0, 1].
    seed : int
        Seed of the draw.

    Returns
    -------
    ndarray
        Uint8, clipped to [0, 1] and rounded to the nearest of 256 levels.
    """
    drawn = draws.generator(seed, image_id, "noise", 0).standard_normal(pixels.shape)
    levels = np.clip(pixels / 255 + np.sqrt(variance) * drawn, 0, 1) * 255
    return np.rint(levels).astype(np.uint8)


def composite(pixels: np.ndarray, mask: np.ndarray, *, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut an object out, scale it and put it in the middle of a black image (SAM Fig. 6).

    Black is the paper's zero image in pixel space, before a model normalizes it.

    Parameters
    ----------
    pixels : ndarray
        Uint8 (height, width, 3).
    mask : ndarray
        Pixels of the object, bool (height, width).
    size : int
        Longer side of the scaled object, px; the shorter one keeps the aspect. Bilinear,
        antialiased, the mask too.

    Returns
    -------
    tuple of ndarray
        Image, uint8 (height, width, 3), and mask, bool (height, width): pixels of which the
        object covers half or more.

    Raises
    ------
    ValueError
        Where the mask is empty, or the object would not fit.
    """
    height, width = mask.shape
    if not mask.any():
        raise ValueError("the mask is empty; give the pixels of an object")
    if not 1 <= size <= min(height, width):
        raise ValueError(
            f"size is {size}, the image {height} x {width}; choose 1 to {min(height, width)}"
        )
    left, top, right, bottom = _box(mask)
    box = slice(top, bottom), slice(left, right)
    covered = mask[box].astype(np.float64)
    # Colors are scaled together with their cover, so that nothing of the old background bleeds in.
    layers = np.concatenate([pixels[box] / 255 * covered[..., None], covered[..., None]], axis=2)
    longer = max(covered.shape)
    shape = [max(1, round(side * size / longer)) for side in covered.shape]
    scaled = F.interpolate(
        torch.from_numpy(layers).permute(2, 0, 1)[None],
        size=shape,
        mode="bilinear",
        antialias=True,
        align_corners=False,
    )[0].numpy()
    top, left = (height - shape[0]) // 2, (width - shape[1]) // 2
    place = slice(top, top + shape[0]), slice(left, left + shape[1])
    image, where = np.zeros_like(pixels), np.zeros((height, width), bool)
    image[place] = np.rint(np.clip(scaled[:3], 0, 1) * 255).transpose(1, 2, 0).astype(np.uint8)
    # Half a pixel's cover must not fall to the one side or the other by the last bit.
    where[place] = scaled[3] >= 0.5 - 1e-9
    return image, where


def area_above_half(maps: np.ndarray) -> np.ndarray:
    """Pixels of each map (batch, height, width) above half of its maximum; 0 if that is not > 0."""
    peaks = maps.max(axis=(1, 2))
    above = (maps > peaks[:, None, None] / 2).sum(axis=(1, 2))
    return np.where(peaks > 0, above, 0)


def noise_inputs(inputs: Inputs, *, variance: float, seed: int) -> Inputs:
    """The same images under noise, for the same classes.

    Parameters
    ----------
    inputs
        Images in [0, 1] and their classes.
    variance
        Variance of the normal noise, in units of [0, 1].
    seed
        Seed of the noise, which is keyed by image.
    """
    named = zip(inputs.pixels, inputs.rows["image_id"], strict=True)
    noisy_images = [noisy(image, name, variance=variance, seed=seed) for image, name in named]
    pixels = np.stack(noisy_images)
    rows = inputs.rows.assign(sha256=_sha256(pixels))
    return Inputs(rows, inputs.targets, pixels)


def objects(inputs: Inputs) -> dict[int, np.ndarray]:
    """Masks of the objects by position of the image; the box where there is no mask.

    Images whose object's place is not known are left out.
    """
    masks = {}
    for position, row in enumerate(inputs.rows.itertuples()):
        if inputs.masks is not None and inputs.masks[position].any():
            masks[position] = np.asarray(inputs.masks[position], bool)
        elif row.x0 >= 0 and row.x1 > row.x0 and row.y1 > row.y0:
            mask = np.zeros(inputs.pixels.shape[1:3], bool)
            mask[int(row.y0) : int(row.y1), int(row.x0) : int(row.x1)] = True
            masks[position] = mask
    return masks


def object_inputs(inputs: Inputs, *, size: int, n_images: int) -> Inputs:
    """Objects of the first images that have one, on black; ids end in `@{size}px`.

    Parameters
    ----------
    inputs : Inputs
        The study's images.
    size : int
        Longer side of the scaled objects, px.
    n_images : int
        How many images are taken, at most.
    """
    first = dict(itertools.islice(objects(inputs).items(), n_images))
    shape = inputs.pixels.shape[1:]
    pixels = np.zeros((len(first), *shape), np.uint8)
    masks = np.zeros((len(first), *shape[:2]), bool)
    for index, (position, mask) in enumerate(first.items()):
        pixels[index], masks[index] = composite(inputs.pixels[position], mask, size=size)
    rows = inputs.rows.iloc[list(first)].reset_index(drop=True)
    names = {name: f"{name}@{size}px" for name in rows["image_id"]}
    targets = inputs.targets[inputs.targets["image_id"].isin(names)].reset_index(drop=True)
    boxes = np.array([_box(mask) for mask in masks], int).reshape(-1, 4)
    return Inputs(
        rows.assign(
            image_id=rows["image_id"].map(names),
            sha256=_sha256(pixels),
            **dict(zip(("x0", "y0", "x1", "y1"), boxes.T, strict=True)),
        ),
        targets.assign(image_id=targets["image_id"].map(names)),
        pixels,
        masks,
    )


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Half-open x0, y0, x1, y1; -1 where the object covers no pixel by half."""
    if not mask.any():
        return -1, -1, -1, -1
    tall, wide = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(wide[0]), int(tall[0]), int(wide[-1]) + 1, int(tall[-1]) + 1


def _sha256(pixels: np.ndarray) -> list[str]:
    return [hashlib.sha256(image.tobytes()).hexdigest() for image in pixels]


def _plain(method: str, params: Params) -> Setting:
    """The one setting of a method that a comparison takes for it: the first of the study."""
    return points(method, params.sweeps[method])[0].setting


def _protocol(method: str, params: Params) -> dict[str, Any]:
    """Hyperparameters of a method that the study's protocol fixes."""
    return PROTOCOLS[params.protocol].get(method, {}) if params.protocol else {}


def teaser_models(params: Params) -> tuple[str, ...]:
    """Models of Fig. 1: the first regular one and, where there is one, its robust twin."""
    first = params.models.regular[0]
    return (first, first + ROBUST) if first in params.models.robust else (first,)


def teaser_settings(method: str, params: Params) -> list[Setting]:
    """Settings of a method that Fig. 1 shows, in order.

    What params leave open comes from the protocol, where there is one, else from the defaults.
    """
    sweep = params.comparisons.teaser[method]
    assert sweep.vary is not None
    answers = _protocol(method, params)
    made = [setting(method, {**answers, **sweep.fixed, sweep.vary: v}) for v in sweep.values]
    return list(dict.fromkeys(made))


def sections(params: Params) -> list[Section]:
    """What the comparisons of a study need beyond the maps of its sweeps."""
    options, everyone = params.comparisons, tuple(params.models.names)
    n_images, needed = params.evaluation_set.size, []
    plain = tuple(_plain(method, params) for method in NOISE_METHODS if method in params.methods)
    if options.noise is not None and plain:
        for variance in dict.fromkeys(options.noise.variances):
            most = max(params.evaluation_set.of(made.method) for made in plain)
            needed.append(Section("noise", variance, plain, everyone, most))
    if (objects := options.object_size) is not None:
        # A patch in another color than the background's would be seen wherever it lies, and the
        # map of a small object be the patch's.
        method = "sliding_patch"
        swept = method in params.methods
        given = _plain(method, params).hyperparameters if swept else _protocol(method, params)
        given = given | {"stride": objects.stride, "fill": "black"}
        sizes = dict.fromkeys(objects.patch_sizes)
        patches = tuple(setting(method, {**given, "patch_size": n}) for n in sizes)
        count = min(objects.n_images, n_images)
        for size in dict.fromkeys(objects.object_sizes):
            needed.append(Section("object", size, patches, everyone, count))
    shown = [made for method in options.teaser for made in teaser_settings(method, params)]
    if new := _not_swept(shown, params):
        needed.append(Section("teaser", 0, new, teaser_models(params), 1))
    # Of a sweep whose reference is its largest value, the independent draws' reference is it.
    converged = [sweep.converged for sweep in convergence.convergences(params)]
    if new := _not_swept(converged, params):
        needed.append(Section("budget", 0, new, everyone, n_images))
    return needed


def _not_swept(settings: Sequence[Setting], params: Params) -> tuple[Setting, ...]:
    """Settings, each once, whose maps are in no archive of the study."""
    swept = {
        point.setting
        for method in params.methods
        for point in points(method, params.sweeps[method])
    }
    return tuple(made for made in dict.fromkeys(settings) if made not in swept)


def study_inputs(params: Params) -> Inputs:
    """The study's own images."""
    folder = params.results / "evaluation_set"
    masks = folder / "masks.npy"
    return Inputs(*evaluation_set.read(folder), np.load(masks) if masks.is_file() else None)


def section_inputs(section: Section, study: Inputs, params: Params) -> Inputs:
    """Images of a section: made from the study's, the study's, or for the teaser its first.

    Parameters
    ----------
    section : Section
        Says which.
    study : Inputs
        The study's images.
    params : Params
        The study; gives the seed of the noise.
    """
    if section.kind == "noise":
        assert params.comparisons.noise is not None
        seed = params.comparisons.noise.seed
        n = section.n_images
        first = Inputs(study.rows.iloc[:n], study.targets, study.pixels[:n])
        return noise_inputs(first, variance=section.amount, seed=seed)
    if section.kind == "object":
        return object_inputs(study, size=int(section.amount), n_images=section.n_images)
    if section.kind == "budget":
        return study
    return Inputs(study.rows.iloc[:1], study.targets, study.pixels[:1])


def section_plans(
    section: Section,
    rows: pd.DataFrame,
    targets: pd.DataFrame,
    weights: Mapping[str, str],
    params: Params,
) -> list[Plan]:
    """Tasks of each method of a section.

    Parameters
    ----------
    section : Section
        Settings and models.
    rows, targets : DataFrame
        The section's images, as of an evaluation set.
    weights : mapping of str to str
        Hash of each model's weights.
    params : Params
        The study.
    """
    weights = {name: weights[name] for name in section.models}
    methods = dict.fromkeys(made.method for made in section.settings)
    own = section.kind in ("noise", "budget")
    return [
        plan_settings(
            [made for made in section.settings if made.method == method],
            weights=weights,
            rows=rows.head(params.evaluation_set.of(method)) if own else rows,
            targets=targets,
            preprocessing=params.data.pixel_recipe,
            attribution=params.attribution,
        )
        for method in methods
    ]


def run(params: Params, *, cache: TaskCache, inputs: Path) -> runner.RunSummary:
    """Compute what the comparisons of a study lack and write `results/{study}/comparisons`.

    Parameters
    ----------
    params : Params
        The study; its sweeps' maps stand in their archives.
    cache : TaskCache
        Where finished maps are.
    inputs : Path
        Folder for the images that are made, each set under a name of its content: a run that is
        killed leaves whole sets.

    Returns
    -------
    RunSummary
        Tasks executed and found in the cache.

    Raises
    ------
    ValueError
        Where a comparison names a sweep that can't serve it.
    FileNotFoundError
        Where maps of the study are missing.
    """
    study = study_inputs(params)
    weights = runner.weights_of(params.results / "models", params.models.names)
    done: list[tuple[Section, Inputs, runner.PlannedRun]] = []
    for section in sections(params):
        images = section_inputs(section, study, params)
        plans = section_plans(section, images.rows, images.targets, weights, params)
        folder = params.results / "evaluation_set"
        if section.kind in ("noise", "object"):
            folder = Path(inputs) / images.digest[:32]
            images.write(folder)
        run_context = runner.RunContext.of(params, evaluation_set=folder)
        planned = runner.PlannedRun(plans, run_context, f"compare {section.name}")
        done.append((section, images, planned))
    runs = [planned for _, _, planned in done]
    return runner.computed(runs, lambda: _write(study, done, params, cache), cache=cache)


def _write(
    study: Inputs,
    done: Sequence[tuple[Section, Inputs, runner.PlannedRun]],
    params: Params,
    cache: TaskCache,
) -> None:
    """Write the maps and tables of all sections from what the cache holds."""
    ids = list(study.rows["image_id"])
    with atomic_folder(params.results / "comparisons") as temporary:
        frames = _scored(_denoising(study, params), ids, params)
        frames += _scored(_distance(params), ids, params, distance=True)
        tables = []
        # Sections whose maps have no archive of their own.
        computed: dict[str, dict[Setting, Plan]] = {"teaser": {}, "budget": {}}
        for section, images, (plans, run_context, _) in done:
            if section.kind in computed:
                computed[section.kind] = {made: plan for plan in plans for made in plan.settings}
                continue
            folder = temporary / section.name
            images.write(folder)
            # Without an image there is no archive.
            for plan in plans if len(images.rows) else []:
                method = plan.settings[0].method
                target = folder / "maps" / method
                runner.assemble(method, plan, cache=cache, run_context=run_context, folder=target)
                if section.kind == "noise":
                    frames += _scored(_noise(section, Maps(target), params), ids, params)
                else:
                    tables.append(_object_table(section, images, plan, Maps(target), params))
        for method in params.comparisons.teaser:
            folder = temporary / "teaser" / method
            _write_teaser(method, folder, params, computed["teaser"], cache)
        towards = _scored(_convergence(params, computed["budget"], cache), ids, params)
        write_table(joined(towards, convergence.COLUMNS), temporary / "stability.parquet")
        write_table(joined(frames, COLUMNS), temporary / "comparisons.parquet")
        write_table(structure_scores.score(params), temporary / "structure.parquet")
        write_table(joined(tables, OBJECT_COLUMNS), temporary / "object_size.parquet")


# Columns that name a pair of stacks of maps, the method whose conventions apply, and the stacks.
_Pair = tuple[dict[str, str], str, np.ndarray, np.ndarray]


def _scored(
    pairs: Iterable[_Pair], ids: Sequence[str], params: Params, *, distance: bool = False
) -> list[pd.DataFrame]:
    """Score rows of pairs of maps of the study's first images, as many as there are maps."""
    options: dict[str, Any] = {"options": params.similarity, "distance": distance}
    return [
        frame
        for columns, method, a, b in pairs
        for frame in pair_scores(method, a, b, image_ids=ids[: len(a)], columns=columns, **options)
    ]


def _archived(model: str, made: Setting, params: Params) -> np.ndarray:
    """Maps of a setting of the study's sweeps."""
    return Maps(params.results / "maps" / made.method).read(model, made.hyperparameters)


def _named(comparison: str, model: str, method: str, **names: str) -> dict[str, str]:
    """Columns that name a comparison: by default of a model with itself, on the same images."""
    named = {"comparison": comparison, "model": model, "other": "", "role": "self"}
    return {**named, "method": method, "value": "", "pairing": "same", **names}


def _noise(section: Section, maps: Maps, params: Params) -> Iterator[_Pair]:
    """Maps of the clean image and of the noisy one (SAM 4.1)."""
    plain = _plain(maps.method, params)
    for model in params.models.names:
        named = _named(f"{maps.method}-noise", model, maps.method, value=str(section.amount))
        noisy_maps = maps.read(model, plain.hyperparameters)
        yield named, maps.method, _archived(model, plain, params), noisy_maps


def _sweep_points(key: str, sweep: str, params: Params) -> list[tuple[str, Setting]]:
    """Value and setting of a sweep's points; of two draws of one value, the nested one."""
    methods = [method for method, sweeps in params.sweeps.items() if sweep in sweeps]
    if len(methods) != 1:
        raise ValueError(
            f"{key}: {sweep!r} is a sweep of {', '.join(methods) or 'no method'}; name a sweep of "
            "one method"
        )
    (method,) = methods
    return [
        (point.value, point.setting)
        # The second reference of a count sweep is no step of the sweep.
        for point in headline_points(points(method, {sweep: params.sweeps[method][sweep]}))
    ]


def _denoising(study: Inputs, params: Params) -> Iterator[_Pair]:
    """De-noised maps of regular models and robust models' plain ones (SAM 4.2)."""
    for position, entry in enumerate(params.comparisons.denoising):
        plain = _plain(entry.towards, params)
        steps = [("0", plain)]
        steps += _sweep_points(f"comparisons.denoising.{position}.sweep", entry.sweep, params)
        if "guided_backprop" in params.methods:
            steps.append(("", _plain("guided_backprop", params)))
        # Those that all of them explain, so that every step is of the same images.
        n = min(params.evaluation_set.of(made.method) for _, made in steps)
        pairings = {"same": np.arange(n)}
        if n > 1:
            pairings["mismatched"] = mismatched(study.rows.head(n))
        for twin in params.models.robust:
            target = _archived(twin + ROBUST, plain, params)
            for model, (value, made), (pairing, order) in itertools.product(
                params.models.regular, steps, pairings.items()
            ):
                named = _named(
                    f"denoising-{entry.towards}",
                    model,
                    made.method,
                    other=twin + ROBUST,
                    role="twin" if twin == model else "control",
                    value=value,
                    pairing=pairing,
                )
                # One convention for all: that of the maps compared with.
                yield named, entry.towards, _archived(model, made, params)[:n], target[order]


def _distance(params: Params) -> Iterator[_Pair]:
    """Maps of a sweep's smallest and largest setting (SAM S12)."""
    sweep = params.comparisons.distance
    if sweep is None:
        return
    steps = _sweep_points("comparisons.distance", sweep, params)
    method = steps[0][1].method
    vary = params.sweeps[method][sweep].vary
    numbers = [made.hyperparameters[vary] for _, made in steps] if vary else []
    if len(numbers) < 2 or isinstance(numbers[0], str):
        raise ValueError(
            f"comparisons.distance: {sweep!r} has no smallest and largest value; name a sweep "
            "over numbers"
        )
    order = np.argsort(numbers, kind="stable")
    (low, small), (high, large) = steps[order[0]], steps[order[-1]]
    for model in params.models.names:
        named = _named("distance", model, method, value=f"{low}-{high}")
        yield named, method, _archived(model, small, params), _archived(model, large, params)


def _convergence(
    params: Params, computed: Mapping[Setting, Plan], cache: TaskCache
) -> Iterator[_Pair]:
    """Converged maps, and those of sweeps over samples or steps."""
    for sweep in convergence.convergences(params):
        for model in params.models.names:
            if sweep.converged in computed:
                keys = computed[sweep.converged].keys[model, sweep.converged]
                converged, _ = runner.collected(keys, cache)
            else:
                converged = _archived(model, sweep.converged, params)
            shared = {"sweep": sweep.sweep, "method": sweep.method, "model": model}
            shared["hyperparameter"] = sweep.hyperparameter
            for made, value in zip(sweep.settings, sweep.values, strict=True):
                named = {**shared, "value": str(value)}
                yield named, sweep.method, converged, _archived(model, made, params)


def _object_table(
    section: Section, inputs: Inputs, plan: Plan, maps: Maps, params: Params
) -> pd.DataFrame:
    """Where and how high maps of objects on black rise, by size of object and patch (Fig. 6)."""
    assert inputs.masks is not None
    size, run_context = int(section.amount), runner.RunContext.of(params)
    images = evaluation_set.as_images(inputs.pixels)
    frames = []
    for model in section.models:
        network = runner.trained_model(model, run_context)
        device = next(network.buffers()).device
        of_model = inputs.targets[inputs.targets["model"] == model]
        targets = of_model.set_index("image_id")["target"]
        scores = runner.runner_for(network, run_context).scores(
            images.to(device),
            torch.tensor([int(targets[name]) for name in maps.image_ids], device=device),
            output="probability",
        )
        for made in plan.settings:
            stack = np.asarray(maps.read(model, made.hyperparameters))
            columns = {
                "model": model,
                "image_id": [name.removesuffix(f"@{size}px") for name in maps.image_ids],
                "object_size": size,
                "patch_size": made.hyperparameters["patch_size"],
                "object_area": inputs.masks.sum(axis=(1, 2)),
                "area_above_half": area_above_half(stack),
                "peak": stack.max(axis=(1, 2)).astype(np.float64),
                "score": scores.double().cpu().numpy(),
            }
            frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def _write_teaser(
    method: str, folder: Path, params: Params, computed: Mapping[Setting, Plan], cache: TaskCache
) -> None:
    """Write maps of the first image: from the method's archive where they are in it."""
    shown, models = teaser_settings(method, params), teaser_models(params)
    rows, _, _ = evaluation_set.read(params.results / "evaluation_set")

    def found(model: str, made: Setting) -> tuple[str, np.ndarray]:
        """Task id and map."""
        if made in computed:
            (key,) = computed[made].keys[model, made]
            return computed[made].task_id(model, made), runner.entry(key, cache)[0]
        archive = Maps(params.results / "maps" / method)
        task_ids = archive.task_ids[archive.settings.index(made.hyperparameters)]
        return task_ids[model], archive.read(model, made.hyperparameters)[:1]

    maps = {model: [found(model, made) for made in shown] for model in models}
    task_ids = [{model: maps[model][index][0] for model in models} for index in range(len(shown))]
    write_maps(
        folder,
        method=method,
        image_ids=list(rows["image_id"][:1]),
        settings=[
            {"hyperparameters": made.hyperparameters, "task_ids": ids}
            for made, ids in zip(shown, task_ids, strict=True)
        ],
        maps={model: iter([stack for _, stack in maps[model]]) for model in models},
        diagnostics=[],
    )
