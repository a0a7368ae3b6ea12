"""What should exist: `params.yaml`, validated."""

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
)

from steadymap import own
from steadymap.vocabulary import (
    ALPHAS,
    ARCHITECTURES,
    CLASSES,
    INPUT_TRANSFORMING,
    LONGEST_NAME,
    METHODS,
    NAMES,
    PRESETS,
    PRETRAINED,
    PROTOCOLS,
    ROBUST,
    SAM_MODELS,
    ConflictError,
    HyperparameterError,
    Method,
    name_problem,
    statistics_problem,
)


def _check_name(kind: str) -> AfterValidator:
    def checked(name: str) -> str:
        if (problem := name_problem(name, kind)) is not None:
            raise ValueError(problem)
        return name

    return AfterValidator(checked)


def _name_schema(kind: str) -> WithJsonSchema:
    pattern = f"^{NAMES[kind][0]}$"
    return WithJsonSchema({"type": "string", "pattern": pattern, "maxLength": LONGEST_NAME})


Name = Annotated[str, _check_name("name"), _name_schema("name")]
Study = Annotated[str, _check_name("study"), _name_schema("study")]
Scalar = bool | int | float | str
Channels = Annotated[list[float], Field(min_length=3, max_length=3)]
_ARCHITECTURE = r"^([a-z0-9_]+|[A-Za-z_][\w.]*:[A-Za-z_]\w*)$"


class ParamsError(ValueError):
    """Params that can't be run; one line per problem: key path, value, remedy."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class EmbeddedData(_Section):
    """Images generated offline from photographs that ship with the libraries."""

    kind: Literal["embedded"]
    image_size: int = Field(default=64, ge=32, le=512)
    n_train: int = Field(default=4000, ge=1)
    n_val: int = Field(default=800, ge=1)
    classes: list[str] = Field(default=list(CLASSES), min_length=2)
    pattern_amplitude: float = Field(default=0.04, ge=0, le=0.5)
    seed: int = Field(default=0, ge=0)

    @property
    def pixel_recipe(self) -> str:
        """Name of how the pixels came about."""
        return f"{self.kind}-{self.image_size}"


class _PhotographData(_Section):
    """Photographs in files; classes and numbers are known once they are read."""

    path: str | None = None
    image_size: int = Field(ge=32, le=512)
    preprocessing: str = "squash"
    n_train: int | None = Field(default=None, ge=1)
    n_val: int | None = Field(default=None, ge=1)
    boxes: str | None = None
    on_bad_image: Literal["skip", "refuse"] = "skip"
    max_megapixels: float = Field(default=100.0, gt=0)
    seed: int = Field(default=0, ge=0)

    @property
    def pixel_recipe(self) -> str:
        """Name of how the pixels came about."""
        fixed = PRESETS[self.preprocessing].crop
        return self.preprocessing if fixed else f"{self.preprocessing}-{self.image_size}"


class FolderData(_PhotographData):
    """Photographs in folders, one per class."""

    kind: Literal["imagefolder"]
    val_fraction: float = Field(default=0.2, gt=0, le=1)


class ImagenetData(_PhotographData):
    """ILSVRC2012, or part of it: its images stay where they are.

    `path` is a folder with the official archives or an extracted tree, `train` one with a folder
    per wnid; `boxes` the official archive of XML files, or their folder.
    """

    kind: Literal["imagenet"]
    train: str | None = None
    preprocessing: str = "squash256-crop224"
    on_bad_image: Literal["skip", "refuse"] = "refuse"


Data = EmbeddedData | FolderData | ImagenetData


class Models(_Section):
    """Networks to explain; a robust twin carries the suffix `-r`."""

    regular: list[Name] = Field(min_length=1)
    robust: list[Name] = []

    @property
    def names(self) -> list[str]:
        """All models, each twin behind its regular one."""
        names = []
        for model in self.regular:
            names.append(model)
            if model in self.robust:
                names.append(model + ROBUST)
        return names


class Attack(_Section):
    """A PGD threat: radius and step in units of the norm over a whole [0, 1] image."""

    norm: Literal["l2", "linf"]
    eps: float = Field(gt=0)
    step_size: float = Field(gt=0)
    steps: int = Field(ge=1)
    random_start: bool = False


class Recipe(_Section):
    """How a network is trained, or the weights of one that is.

    `architecture` is a name of the registry or `module:function` of your own; by default the
    model's name. `weights` names a folder that training wrote, or a weights file, for which `mean`
    and `std` are what it was trained with; by default those of the file, else of the data.
    `augmentation: imagenet` crops, flips and recolours; `auxiliary_weight` trains GoogLeNet's and
    InceptionV3's auxiliary heads along, which are dropped at the end; `keep: best` keeps the epoch
    of the highest robust accuracy. `precision: auto` times a step in bf16 and in float32 and trains
    in the faster, so that the weights depend on the machine more than by rounding.
    `pretrained` names weights of torchvision, from `directory` if that is given; `checkpoint` a
    weights file, or the address of one, with its `sha256`. `checkpoint_key` chooses among the sets
    of weights in a file, by the dotted keys down to one; `checkpoint_prefix` is what the names of
    the network's tensors begin with in it, all others being left out.
    """

    architecture: Annotated[str, Field(pattern=_ARCHITECTURE)] | None = None
    weights: str | None = None
    pretrained: str | None = None
    directory: str | None = None
    checkpoint: str | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    checkpoint_key: Annotated[str, Field(min_length=1)] | None = None
    checkpoint_prefix: Annotated[str, Field(min_length=1)] | None = None
    transform_input: bool | None = None
    mean: Channels | None = None
    std: Channels | None = None
    epochs: int = Field(default=0, ge=0)
    batch_size: int = Field(default=64, ge=1)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = Field(default=0.1, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=1e-4, ge=0)
    schedule: Literal["one_cycle", "step", "constant"] = "one_cycle"
    step_epochs: int = Field(default=30, ge=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    flip: bool = False
    augmentation: Literal["none", "imagenet"] = "none"
    nesterov: bool = True
    auxiliary_weight: float | None = Field(default=None, gt=0)
    keep: Literal["last", "best"] = "last"
    precision: Literal["auto", "bf16", "float32"] = "float32"
    init_from: Name | None = None
    attack: Attack | None = None
    seed: int = Field(default=0, ge=0)

    @property
    def is_given(self) -> bool:
        """Whether weights are taken rather than trained."""
        return (self.weights or self.pretrained or self.checkpoint) is not None


# Keys of a recipe that take weights from elsewhere.
SOURCES = ("weights", "pretrained", "checkpoint")


def architecture_of(model: str, recipe: Recipe) -> str:
    """Architecture that a recipe gives a model: `googlenet-r` is a twin of `googlenet`."""
    return recipe.architecture or model.removesuffix(ROBUST)


class RobustAccuracy(Attack):
    """The attack that accuracies are measured under, and on how many validation images."""

    norm: Literal["l2", "linf"] = "l2"
    eps: float = Field(default=1.0, gt=0)
    step_size: float = Field(default=0.2, gt=0)
    steps: int = Field(default=20, ge=1)
    n_images: int = Field(default=400, ge=1)


class EvaluationSet(_Section):
    """Which validation images are explained, and for which class."""

    rule: Literal["all_correct", "any", "list", "sam-1735"] = "all_correct"
    target: Literal["label", "prediction"] = "label"
    n_images: int = Field(default=16, ge=1)
    images: list[str] = []
    seed: int = Field(default=0, ge=0)


class Attribution(_Section):
    """How maps are computed; the batch shape is part of what a map is, to the last bit.

    `own` are attribution methods of one's own, `module:function` by the name they go by.
    """

    batch_size: int = Field(default=64, ge=1)
    block_size: int = Field(default=16, ge=8, le=16)
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    own: dict[str, str] = {}


class Sweep(_Section):
    """One hyperparameter varied, the others fixed; a lone setting where nothing varies."""

    vary: str | None = None
    values: list[Scalar] = []
    reference: Scalar | None = None
    fixed: dict[str, Scalar] = {}


class Axis(_Section):
    """Values that a search may propose for one hyperparameter: a range, or choices."""

    low: int | float | None = None
    high: int | float | None = None
    step: int | float | None = None
    log: bool = False
    choices: list[Scalar] | None = None

    @property
    def largest(self) -> Scalar:
        """Largest value of a range; the last of the choices."""
        if self.choices is not None:
            return self.choices[-1]
        assert self.low is not None
        assert self.high is not None
        if self.step is None:
            return self.high
        # Counted in steps: sums of floats drift.
        return _tidy(self.low + self.step * math.floor((self.high - self.low) / self.step + 1e-9))

    @property
    def values(self) -> list[Scalar] | None:
        """All values, if they are finitely many and evenly spaced, or choices."""
        if self.choices is not None:
            return list(self.choices)
        assert self.low is not None
        assert self.high is not None
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        step = self.step or (1 if whole and not self.log else None)
        if step is None:
            return None
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        return [_tidy(self.low + step * place) for place in range(count)]

    def holds(self, value: Scalar) -> bool:
        """Whether a value lies in the range or among the choices."""
        if self.choices is not None:
            return value in self.choices
        if isinstance(value, str) or self.low is None or self.high is None:
            return False
        return self.low <= value <= self.high


class Search(_Section):
    """Several hyperparameters at once, the points chosen by Optuna."""

    hyperparameters: dict[str, Axis] = Field(min_length=1)
    fixed: dict[str, Scalar] = {}
    reference: dict[str, Scalar] = {}
    objective: Literal["worst_case", "cheapest"]
    tau: float | None = Field(default=None, gt=0, le=1)
    sampler: Literal["grid", "random", "qmc", "tpe", "nsga2"]
    budget: int = Field(ge=1)
    batch: int = Field(default=4, ge=1)
    seed: int = Field(default=0, ge=0)
    models: list[Name] | None = None

    @property
    def grid_size(self) -> int | None:
        """Number of points of the full grid; None where an axis has no grid."""
        sizes = [axis.values for axis in self.hyperparameters.values()]
        return None if None in sizes else math.prod(len(v) for v in sizes if v is not None)

    @property
    def n_trials(self) -> int:
        """Number of points that it proposes."""
        size = self.grid_size
        return size if self.sampler == "grid" and size is not None else self.budget


def _tidy(value: int | float) -> int | float:
    """Value without the tail that binary sums leave: .3 for .1 + .2."""
    return value if isinstance(value, int) else float(f"{value:.12g}")


class Similarity(_Section):
    """How two maps are compared; `own` are metrics of one's own, `module:function` by name."""

    conventions: list[Literal["common", "sam", "wang", "mass_weighted"]] = Field(
        default=["common", "sam", "wang"], min_length=1
    )
    win_size: int = Field(default=5, ge=3)
    hog_cell: int = Field(default=4, ge=1)
    own: dict[str, str] = {}


class Statistics(_Section):
    """How intervals are formed."""

    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    n_bootstrap: int = Field(default=2000, ge=100)
    seed: int = Field(default=0, ge=0)


class Accuracy(_Section):
    """How maps are held against the model and against the object's box.

    `output: sigmoid` follows the class's own logit, for heads whose classes don't exclude others.
    """

    step: int | None = Field(default=None, ge=1)
    substrate: Literal["mean", "black", "blur"] = "mean"
    output: Literal["probability", "sigmoid"] = "probability"
    tracked: Literal["target", "prediction"] = "target"
    alpha: float = 0.25

    def pixels(self, side: int) -> int:
        """Pixels inserted or deleted at a time: a 28th of the image where params leave it open."""
        return self.step or max(1, round(side * side / 28))


class Noise(_Section):
    """Noise on the input: variances of the Gaussian, in [0, 1] units squared."""

    variances: list[Annotated[float, Field(gt=0)]] = Field(min_length=1)
    seed: int = Field(default=0, ge=0)


class Denoising(_Section):
    """De-noised maps of regular models, a sweep's, held against robust models' plain ones."""

    towards: Name
    sweep: Name


class ObjectSize(_Section):
    """An object on a blank background at several sizes, seen by patches of several sizes; px."""

    object_sizes: list[Annotated[int, Field(ge=2)]] = Field(min_length=1)
    patch_sizes: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    stride: int = Field(default=1, ge=1)
    n_images: int = Field(default=4, ge=1)


class Budget(_Section):
    """From which sample or step on maps stay converged: SSIM tau, on which share of the images."""

    tau: list[Annotated[float, Field(gt=0, le=1)]] = Field(default=[0.95, 0.99], min_length=1)
    share: float = Field(default=0.9, gt=0, le=1)


class Comparisons(_Section):
    """Comparisons that are no sweeps: between inputs, models, sizes, with converged maps."""

    noise: Noise | None = None
    denoising: list[Denoising] = []
    distance: Name | None = None
    object_size: ObjectSize | None = None
    teaser: dict[Name, Sweep] = {}
    budget: Budget | None = None


class RandomizedMethod(_Section):
    """A method under randomised parameters: its setting; fewer images or draws if it is dear."""

    hyperparameters: dict[str, Scalar] = {}
    n_images: int | None = Field(default=None, ge=1)
    n_draws: int | None = Field(default=None, ge=1)


class Randomization(_Section):
    """Which parameters are randomised, how, and which methods are to notice it."""

    methods: dict[Name, RandomizedMethod] = {}
    models: list[Name] | None = None
    preset: Literal["paper", "all"] = "paper"
    units: dict[Name, list[str]] = {}
    critical_units: dict[Name, list[str]] = {}
    orders: list[Literal["independent", "top_down", "bottom_up"]] = ["independent"]
    randomizer: Literal["init", "stale", "reset", "permute"] = "init"
    n_images: int = Field(default=8, ge=1)
    n_draws: int = Field(default=2, ge=1)
    n_function_images: int = Field(default=200, ge=1)
    seed: int = Field(default=0, ge=0)


class Engine(_Section):
    """Where tasks run, which changes no bit of what they give; `threads` are those of a worker.

    `auto` is `in_process` on a machine without several GPUs; `scheduler`, an address or a scheduler
    file, makes it `cluster`.
    """

    kind: Literal["auto", "in_process", "local", "cluster"] = "auto"
    scheduler: Annotated[str, Field(min_length=1)] | None = None
    workers: int | None = Field(default=None, ge=1)
    threads: int | None = Field(default=None, ge=1)
    retries: int = Field(default=2, ge=0)


class Tracking(_Section):
    """Where mirrors are written; nothing reads them but people."""

    optuna: str | None = None


class Rates(_Section):
    """Rows per second: forward passes, gradients with their forward pass, training steps."""

    forward: float = Field(gt=0)
    gradient: float = Field(gt=0)
    training: float = Field(gt=0)


class Plan(_Section):
    """What `make plan` reckons with, by architecture, in place of measuring here."""

    throughput: dict[str, Rates] = {}
    assumption: str = ""


class Params(_Section):
    """The whole of `params.yaml`; what has a default here may be left out of it.

    Some defaults depend on the data, see `defaults`.
    """

    study: Study
    data: Annotated[Data, Field(discriminator="kind")]
    models: Models
    training: dict[Name, Recipe]
    robust_accuracy: RobustAccuracy = RobustAccuracy()
    evaluation_set: EvaluationSet = EvaluationSet()
    methods: list[Name] = Field(min_length=1)
    protocol: Literal["text", "code", "ipr-text"] | None = None
    sweeps: dict[Name, dict[Name, Sweep]] = {}
    search: dict[Name, dict[Name, Search]] = {}
    attribution: Attribution = Attribution()
    similarity: Similarity = Similarity()
    accuracy: Accuracy = Accuracy()
    comparisons: Comparisons = Comparisons()
    randomization: Randomization = Randomization()
    statistics: Statistics = Statistics()
    engine: Engine = Engine()
    tracking: Tracking = Tracking()
    plan: Plan = Plan()

    @property
    def results(self) -> Path:
        """Folder of what DVC caches."""
        return Path("results") / self.study

    @property
    def reports(self) -> Path:
        """Folder of what git keeps."""
        return Path("reports") / self.study

    @property
    def declared(self) -> dict[str, Method]:
        """Methods that may be named, the package's and one's own."""
        return METHODS | {name: own.declaration(name) for name in self.attribution.own}

    def recipe(self, model: str) -> Recipe:
        """Recipe of a model; a robust twin has its regular model's architecture."""
        recipe, regular = self.training[model], self.training.get(model.removesuffix(ROBUST))
        if recipe.architecture is None and regular is not None:
            return recipe.model_copy(update={"architecture": regular.architecture})
        return recipe

    def architecture(self, model: str) -> str:
        """Architecture of a model."""
        return architecture_of(model, self.recipe(model))


# What pydantic's complaints mean for somebody who edits a YAML file.
_REMEDIES = {
    "missing": "add it",
    "extra_forbidden": "remove it or correct its spelling",
    "int_type": "write a whole number",
    "int_from_float": "write a whole number",
    "float_type": "write a number",
    "string_type": "write a word (quote it if it looks like a number)",
    "bool_type": "write true or false",
    "list_type": "write a list, [a, b]",
    "dict_type": "write a mapping, key: value",
    "model_type": "write a mapping, key: value",
    "model_attributes_type": "write a mapping, key: value",
}


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _pydantic_problems(error: ValidationError) -> Iterator[str]:
    seen = set()
    for problem in error.errors():
        # A union reports once per branch; the branch names are no keys of the file.
        parts = [str(part) for part in problem["loc"] if part not in _BRANCHES]
        if problem["type"] == "string_pattern_mismatch":
            problem["msg"] = f"write what matches {problem['ctx']['pattern']}"
        if parts[0] == "data" and parts[1:2] and parts[1] in _KINDS:
            del parts[1]
        path = ".".join(parts)
        if path in seen:
            continue
        seen.add(path)
        if problem["type"] == "union_tag_not_found":
            yield f"{path}.kind: missing; add it, one of {', '.join(_KINDS)}"
            continue
        if problem["type"] == "union_tag_invalid":
            yield f"{path}.kind: {_shown(problem['input']['kind'])}; choose {_QUOTED_KINDS}"
            continue
        remedy = _REMEDIES.get(problem["type"])
        if remedy is None:
            remedy = problem["msg"].replace("Input should be", "choose")
            remedy = remedy.removeprefix("Value error, ")
        if problem["type"] == "missing":
            yield f"{path}: missing; {remedy}"
        elif problem["type"] == "extra_forbidden":
            yield f"{path}: {_shown(problem['input'])} is not a known key; {remedy}"
        else:
            yield f"{path}: {_shown(problem['input'])}; {remedy}"


_BRANCHES = ("bool", "int", "float", "str", "[key]")
_KINDS = ("embedded", "imagefolder", "imagenet")
_QUOTED_KINDS = ", ".join(map(repr, _KINDS[:-1])) + f" or {_KINDS[-1]!r}"


def _choices(value: str, known: list[str]) -> str:
    close = get_close_matches(value, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known are {', '.join(known)}"


def _duplicates(values: list[Any]) -> list[Any]:
    return [value for position, value in enumerate(values) if value in values[:position]]


def _name_problems(params: Params) -> Iterator[str]:
    """Names that only case tells apart: one file, where the file system ignores it."""
    made: list[Collection[str]] = [*params.sweeps.values(), *params.search.values()]
    kinds: dict[str, list[str]] = {
        "models": [*params.models.names, *params.training],
        "methods": [*params.methods, *params.randomization.methods, *params.attribution.own],
        "sweeps and search": [name for found in made for name in found],
        "similarity.own": list(params.similarity.own),
    }
    for key, names in kinds.items():
        seen: dict[str, str] = {}
        for name in dict.fromkeys(names):
            if (other := seen.setdefault(name.lower(), name)) != name:
                yield f"{key}: {_shown(other)} and {_shown(name)} differ in case alone; rename one"


def _model_problems(params: Params, root: Path) -> Iterator[str]:
    for key in ("regular", "robust"):
        names = getattr(params.models, key)
        for name in _duplicates(names):
            yield f"models.{key}: {_shown(name)} stands twice; name it once"
    for name in params.models.regular:
        if name.endswith(ROBUST):
            yield (
                f"models.regular: {_shown(name)} ends in {ROBUST}, as robust twins do; rename it, "
                f"or name {name.removesuffix(ROBUST)} in models.regular and models.robust"
            )
    for name in params.models.robust:
        if name not in params.models.regular:
            yield (
                f"models.robust: {_shown(name)} has no regular twin; add it to models.regular "
                "or remove it here"
            )
    for name in params.models.names:
        if name not in params.training:
            yield f"training.{name}: missing; add its recipe"
            if name not in ARCHITECTURES and not name.endswith(ROBUST):
                yield _unknown_architecture("models.regular", name, name)
            continue
        recipe = params.recipe(name)
        yield from _architecture_problems(name, params)
        yield from _given_problems(name, recipe, params)
        if recipe.weights is not None:
            yield from _weights_problems(f"training.{name}.weights", recipe.weights, params, root)
            for part in _OF_FILES if (root / recipe.weights).is_dir() else ():
                if getattr(recipe, part) is not None:
                    yield f"training.{name}.{part}: the folder's card has it; remove it"
        elif not recipe.is_given and recipe.epochs < 1:
            yield f"training.{name}.epochs: {recipe.epochs}; train at least 1, or name weights"
        if recipe.auxiliary_weight is not None and not (
            ":" in params.architecture(name) or params.architecture(name) in INPUT_TRANSFORMING
        ):
            yield (
                f"training.{name}.auxiliary_weight: {params.architecture(name)} has no auxiliary "
                f"heads, only {' and '.join(INPUT_TRANSFORMING)}; remove it"
            )
        if recipe.flip and recipe.augmentation != "none":
            yield f"training.{name}.flip: augmentation {recipe.augmentation} flips; remove it"
        twin = name.removesuffix(ROBUST)
        if recipe.init_from is not None and not (name != twin and recipe.init_from == twin):
            yield (
                f"training.{name}.init_from: {_shown(recipe.init_from)}; only a robust twin starts "
                f"from its regular one: remove it{'' if name == twin else f' or write {twin}'}"
            )
        if name != twin and not recipe.is_given and recipe.attack is None:
            yield f"training.{name}.attack: missing; a robust twin is trained under an attack"
    for name in params.training:
        if name not in params.models.names:
            yield f"training.{name}: no such model; add it to models or remove the recipe"


# Keys that say how a weights file is to be read.
_OF_FILES = ("mean", "std", "transform_input", "checkpoint_key", "checkpoint_prefix")


def _given_problems(name: str, recipe: Recipe, params: Params) -> Iterator[str]:
    """Keys of weights from elsewhere that do not go together."""
    key = f"training.{name}"
    sources = [source for source in SOURCES if getattr(recipe, source) is not None]
    if len(sources) > 1:
        yield f"{key}: both {' and '.join(sources)}; keep one of them"
    filed = recipe.weights is not None or recipe.checkpoint is not None
    for part, goes_with, allowed in (
        *((part, "weights or checkpoint", filed) for part in _OF_FILES),
        ("sha256", "checkpoint", recipe.checkpoint is not None),
        ("directory", "pretrained", recipe.pretrained is not None),
    ):
        if getattr(recipe, part) is not None and not allowed:
            yield f"{key}.{part}: it goes with a weights file; remove it, or name {goes_with}"
    given = (recipe.mean, recipe.std) if recipe.mean and recipe.std else ([0.0], [1.0])
    if (problem := statistics_problem(*given)) is not None:
        part, _, rest = problem.partition(" is ")
        yield f"{key}.{part}: {rest}"
    for one, other in (("mean", "std"), ("std", "mean")):
        if filed and getattr(recipe, one) is not None and getattr(recipe, other) is None:
            yield f"{key}.{other}: missing; it goes with {one}: add it, or remove both"
    found = architecture_of(name, recipe)
    if recipe.transform_input and found not in INPUT_TRANSFORMING:
        yield (
            f"{key}.transform_input: {found} has none, only {' and '.join(INPUT_TRANSFORMING)}; "
            "remove it"
        )
    file = recipe.checkpoint or ""
    if _is_address(file) and recipe.sha256 is None:
        yield f"{key}.sha256: missing; what is downloaded is checked: add it"
    if "://" in file and not _is_address(file):
        yield f"{key}.checkpoint: {_shown(file)}; write http, https or a path"
    if recipe.pretrained is None:
        return
    if recipe.pretrained not in PRETRAINED:
        yield (
            f"{key}.pretrained: {_shown(recipe.pretrained)} is not known; "
            f"{_choices(recipe.pretrained, list(PRETRAINED))}"
        )
        return
    if name.endswith(ROBUST):
        yield f"{key}.pretrained: torchvision's weights are not robust; name a checkpoint"
    elif ":" in found:
        yield f"{key}.pretrained: torchvision has no weights for {found}; name a checkpoint"
    known = PRETRAINED[recipe.pretrained]
    if isinstance(params.data, EmbeddedData) and len(params.data.classes) != known:
        yield (
            f"{key}.pretrained: {recipe.pretrained} knows {known} classes, data.classes has "
            f"{len(params.data.classes)}; use data of ImageNet's classes"
        )


def _is_address(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def _architecture_problems(name: str, params: Params) -> Iterator[str]:
    found = params.architecture(name)
    if ":" in found:
        return
    own = params.training[name].architecture is not None
    key = f"training.{name}.architecture" if own else "models.regular"
    if found not in ARCHITECTURES and (own or not name.endswith(ROBUST)):
        yield _unknown_architecture(key, name, found)
    elif params.data.image_size < ARCHITECTURES.get(found, 0) and not name.endswith(ROBUST):
        yield (
            f"data.image_size: {params.data.image_size} is below the {ARCHITECTURES[found]} px "
            f"that {found} takes; enlarge it"
        )


def _unknown_architecture(key: str, name: str, found: str) -> str:
    return (
        f"{key}: {_shown(found)} is no architecture; {_choices(found, sorted(ARCHITECTURES))}; "
        f"for one of your own write training.{name}.architecture: module:function"
    )


def _weights_problems(key: str, weights: str, params: Params, root: Path) -> Iterator[str]:
    folder = root / weights
    if folder.is_file():
        if folder.suffix not in (".safetensors", ".pt", ".pth"):
            yield f"{key}: {_shown(weights)}; a weights file ends in .safetensors, .pt or .pth"
        return
    if not folder.is_dir():
        yield (
            f"{key}: {_shown(weights)} is neither a weights file nor a folder; name a state dict "
            "(.safetensors, .pt), a folder with card.json and weights.safetensors, or null to train"
        )
        return
    try:
        card = json.loads((folder / "card.json").read_text())
        classes = card["classes"]
    except (OSError, ValueError, KeyError) as error:
        yield f"{key}: {_shown(weights)} has no readable card.json ({error}); train it here (null)"
        return
    if isinstance(params.data, EmbeddedData) and classes != params.data.classes:
        yield _other_classes(key, weights, classes, "data.classes has", params.data.classes)


def _other_classes(
    key: str, weights: str, known: Sequence[str], where: str, classes: Sequence[str]
) -> str:
    return (
        f"{key}: {_shown(weights)} knows {len(known)} classes, {where} {len(classes)}; "
        "use the same classes in the same order"
    )


def _own_problems(params: Params) -> Iterator[str]:
    """Import methods and metrics of one's own; what can't be used."""
    for name, path in params.attribution.own.items():
        try:
            own.register(name, path)
        except own.OwnError as error:
            yield f"attribution.own.{name}: {_shown(path)}; {error}"
    for name, path in params.similarity.own.items():
        try:
            own.metric(name, path)
        except own.OwnError as error:
            yield f"similarity.own.{name}: {_shown(path)}; {error}"


def _sweep_problems(params: Params) -> Iterator[str]:
    known = params.declared
    for name in _duplicates(params.methods):
        yield f"methods: {_shown(name)} stands twice; name it once"
    for name in params.methods:
        if name not in known:
            yield f"methods: {_shown(name)} is no method; {_choices(name, sorted(known))}"
    owners: dict[str, str] = {}
    for method, sweeps in params.sweeps.items():
        if method not in params.methods:
            yield f"sweeps.{method}: not in methods; add it there or remove its sweeps"
            continue
        if method not in known:
            continue
        for name, sweep in sweeps.items():
            key = f"sweeps.{method}.{name}"
            if name in owners:
                yield f"{key}: {name} is a sweep of {owners[name]} too; rename one"
            if name != "default":
                owners[name] = method
            if sweep.vary is None:
                yield from _lone_problems(key, name, sweep, known[method], params)
                continue
            if name == "default":
                yield f"{key}: 'default' names the setting of methods without sweeps; rename it"
            if len(sweep.values) < 2:
                yield f"{key}.values: {_shown(sweep.values)}; name at least 2"
            if sweep.reference is None:
                yield f"{key}.reference: missing; name the value that the others are compared with"
                continue
            for value in _duplicates(sweep.values):
                yield f"{key}.values: {_shown(value)} stands twice; name it once"
            if sweep.reference not in sweep.values:
                yield (
                    f"{key}.reference: {_shown(sweep.reference)} is not in values "
                    f"{_shown(sweep.values)}; choose one of them"
                )
            if sweep.vary in sweep.fixed:
                yield f"{key}.fixed.{sweep.vary}: it is varied; remove it from fixed"
            yield from _setting_problems(key, sweep, known[method], params.data.image_size)


def _setting_problems(key: str, sweep: Sweep, spec: Method, image_size: int) -> Iterator[str]:
    known = sorted(spec.hyperparameters)
    assert sweep.vary is not None
    for where, name in [("vary", sweep.vary), *((f"fixed.{name}", name) for name in sweep.fixed)]:
        if name not in spec.hyperparameters:
            yield (
                f"{key}.{where}: {_shown(name)} is no hyperparameter of {spec.name}; "
                f"{_choices(name, known)}"
            )
    for name, value in sweep.fixed.items():
        if name in spec.hyperparameters:
            yield from _value_problems(f"{key}.fixed.{name}", name, value, spec, image_size)
    if sweep.vary in spec.hyperparameters:
        for value in sweep.values:
            problems = list(_value_problems(f"{key}.values", sweep.vary, value, spec, image_size))
            yield from problems
            if not problems and set(sweep.fixed) <= set(spec.hyperparameters):
                yield from _conflicts(key, spec, {**sweep.fixed, sweep.vary: value})


def _lone_problems(
    key: str, name: str, sweep: Sweep, spec: Method, params: Params
) -> Iterator[str]:
    if name != "default":
        yield f"{key}.vary: missing; name a hyperparameter, or call a lone setting 'default'"
    for part in ("values", "reference"):
        if getattr(sweep, part) not in ([], None):
            yield f"{key}.{part}: nothing varies; remove it, or name what does in vary"
    for given, value in sweep.fixed.items():
        if given not in spec.hyperparameters:
            yield (
                f"{key}.fixed.{given}: {_shown(given)} is no hyperparameter of {spec.name}; "
                f"{_choices(given, sorted(spec.hyperparameters))}"
            )
            return
        yield from _value_problems(
            f"{key}.fixed.{given}", given, value, spec, params.data.image_size
        )
    yield from _conflicts(key, spec, sweep.fixed)


def _conflicts(key: str, spec: Method, given: Mapping[str, Scalar]) -> Iterator[str]:
    """Values that exclude one another; those that are wrong by themselves are told elsewhere."""
    try:
        spec.effective(given)
    except ConflictError as error:
        yield f"{key}: {error}"
    except HyperparameterError:
        return


def _value_problems(
    key: str, name: str, value: Scalar, spec: Method, image_size: int
) -> Iterator[str]:
    hyperparameter = spec.hyperparameters[name]
    try:
        hyperparameter.check(name, value)
    except HyperparameterError as error:
        yield f"{key}: {_shown(value)}; {error.remedy}"
        return
    if hyperparameter.in_pixels and float(value) > image_size:
        yield (
            f"{key}: {_shown(value)} is larger than the image ({image_size} px); "
            "choose a smaller one"
        )


def _search_problems(params: Params) -> Iterator[str]:
    known = params.declared
    sweeps = {name: method for method, made in params.sweeps.items() for name in made}
    owners: dict[str, str] = {}
    for method, searches in params.search.items():
        if method not in params.methods:
            yield f"search.{method}: not in methods; add it there or remove its searches"
            continue
        if method not in known:
            continue
        for name, search in searches.items():
            key = f"search.{method}.{name}"
            if name in sweeps or name == "default":
                yield f"{key}: {name} is the name of a sweep too; rename one"
            if name in owners:
                yield f"{key}: {name} is a search of {owners[name]} too; rename one"
            owners[name] = method
            for model in search.models or []:
                if model not in params.models.names:
                    yield (
                        f"{key}.models: {_shown(model)} is no model of this study; "
                        f"{_choices(model, params.models.names)}"
                    )
            if search.models is not None and not search.models:
                yield f"{key}.models: empty; name a model, or remove the key for all of them"
            for model in _duplicates(search.models or []):
                yield f"{key}.models: {_shown(model)} stands twice; name it once"
            if search.objective == "cheapest" and search.tau is None:
                yield f"{key}.tau: missing; add the SSIM that a setting must reach, such as 0.95"
            if search.objective != "cheapest" and search.tau is not None:
                yield f"{key}.tau: unused by objective {search.objective}; remove it"
            spoiled = list(_axes_problems(key, search, known[method], params.data.image_size))
            yield from spoiled
            if not spoiled:
                yield from _points_problems(key, search, known[method], params.data.image_size)


def _comparison_problems(params: Params) -> Iterator[str]:
    made, size, known = params.comparisons, params.data.image_size, params.declared
    owners = {name: method for method, found in params.sweeps.items() for name in found}
    for position, denoising in enumerate(made.denoising):
        key = f"comparisons.denoising.{position}"
        if denoising.towards not in params.methods:
            yield (
                f"{key}.towards: {_shown(denoising.towards)} is not in methods; "
                f"{_choices(denoising.towards, params.methods)}"
            )
        if denoising.sweep not in owners:
            yield (
                f"{key}.sweep: {_shown(denoising.sweep)} is no sweep; "
                f"{_choices(denoising.sweep, list(owners))}"
            )
    if made.distance is not None and made.distance not in owners:
        yield (
            f"comparisons.distance: {_shown(made.distance)} is no sweep; "
            f"{_choices(made.distance, list(owners))}"
        )
    if made.object_size is not None:
        for part in ("object_sizes", "patch_sizes"):
            for value in getattr(made.object_size, part):
                if value > size:
                    yield (
                        f"comparisons.object_size.{part}: {value} is larger than the image "
                        f"({size} px); choose a smaller one"
                    )
    for tau in _duplicates(made.budget.tau) if made.budget is not None else []:
        yield f"comparisons.budget.tau: {tau:g} stands twice; name it once"
    for method, sweep in made.teaser.items():
        key = f"comparisons.teaser.{method}"
        if method not in known:
            yield f"{key}: {_shown(method)} is no method; {_choices(method, sorted(known))}"
        elif sweep.vary is None or not sweep.values:
            yield f"{key}.vary: missing; name the hyperparameter whose values are shown"
        else:
            yield from _setting_problems(key, sweep, known[method], size)


def _randomization_problems(params: Params) -> Iterator[str]:
    made, names, known = params.randomization, params.models.names, params.declared
    n_images = params.evaluation_set.n_images
    for method, wanted in made.methods.items():
        key = f"randomization.methods.{method}"
        if method not in known:
            yield f"{key}: {_shown(method)} is no method; {_choices(method, sorted(known))}"
            continue
        spec = known[method]
        for name, value in wanted.hyperparameters.items():
            if name not in spec.hyperparameters:
                yield (
                    f"{key}.hyperparameters.{name}: {_shown(name)} is no hyperparameter of "
                    f"{method}; {_choices(name, sorted(spec.hyperparameters))}"
                )
            else:
                where = f"{key}.hyperparameters.{name}"
                yield from _value_problems(where, name, value, spec, params.data.image_size)
        yield from _conflicts(key, spec, wanted.hyperparameters)
        if wanted.n_images is not None and wanted.n_images > made.n_images:
            yield f"{key}.n_images: {wanted.n_images} is more than the section's {made.n_images}"
        if wanted.n_draws is not None and wanted.n_draws > made.n_draws:
            yield f"{key}.n_draws: {wanted.n_draws} is more than the section's {made.n_draws}"
    if made.methods and made.n_images > n_images:
        yield (
            f"randomization.n_images: {made.n_images} is more than evaluation_set.n_images "
            f"{n_images}; choose fewer"
        )
    for part in ("units", "critical_units"):
        for model in getattr(made, part):
            if model not in names:
                yield f"randomization.{part}.{model}: no such model; {_choices(model, names)}"
    for model in made.models or []:
        if model not in names:
            yield f"randomization.models: {_shown(model)} is no model; {_choices(model, names)}"
    for order in _duplicates(made.orders):
        yield f"randomization.orders: {_shown(order)} stands twice; name it once"


def _axes_problems(key: str, search: Search, spec: Method, image_size: int) -> Iterator[str]:
    known = sorted(spec.hyperparameters)
    named: dict[str, Sequence[str]] = {
        "hyperparameters": list(search.hyperparameters),
        "fixed": list(search.fixed),
        "reference": list(search.reference),
    }
    for part, names in named.items():
        for name in names:
            if name not in spec.hyperparameters:
                yield (
                    f"{key}.{part}.{name}: {_shown(name)} is no hyperparameter of {spec.name}; "
                    f"{_choices(name, known)}"
                )
    for part, values in (("fixed", search.fixed), ("reference", search.reference)):
        for name, value in values.items():
            if name in spec.hyperparameters:
                yield from _value_problems(f"{key}.{part}.{name}", name, value, spec, image_size)
    for name, axis in search.hyperparameters.items():
        if name in search.fixed:
            yield f"{key}.fixed.{name}: it is searched; remove it from fixed"
        if name in spec.hyperparameters:
            yield from _axis_problems(f"{key}.hyperparameters.{name}", name, axis, spec, image_size)


def _axis_problems(key: str, name: str, axis: Axis, spec: Method, image_size: int) -> Iterator[str]:
    declared = spec.hyperparameters[name]
    if axis.choices is not None:
        if axis.low is not None or axis.high is not None or axis.step is not None or axis.log:
            yield f"{key}: both choices and a range; keep one of them"
        if len(axis.choices) < 2:
            yield f"{key}.choices: {_shown(axis.choices)}; name at least 2, or move it to fixed"
        for value in _duplicates(axis.choices):
            yield f"{key}.choices: {_shown(value)} stands twice; name it once"
        for value in axis.choices:
            yield from _value_problems(f"{key}.choices", name, value, spec, image_size)
        return
    if declared.type is str:
        yield f"{key}: words have no range; write choices: [{', '.join(declared.choices)}]"
        return
    if axis.low is None or axis.high is None:
        end = "low" if axis.low is None else "high"
        yield f"{key}.{end}: missing; write low and high, or choices"
        return
    for end, bound in (("low", axis.low), ("high", axis.high)):
        yield from _value_problems(f"{key}.{end}", name, bound, spec, image_size)
    if axis.low >= axis.high:
        yield f"{key}.low: {_shown(axis.low)} is not below high {_shown(axis.high)}; swap or widen"
    if axis.log and axis.low <= 0:
        yield f"{key}.low: {_shown(axis.low)}; a log range begins above 0"
    if axis.step is not None:
        if axis.log:
            yield f"{key}.step: {_shown(axis.step)}; a log range has no step, remove one of them"
        if axis.step <= 0 or axis.step > axis.high - axis.low > 0:
            yield f"{key}.step: {_shown(axis.step)}; choose more than 0, at most high - low"
        if declared.type is int and not isinstance(axis.step, int):
            yield f"{key}.step: {_shown(axis.step)}; write a whole number"


def _points_problems(key: str, search: Search, spec: Method, image_size: int) -> Iterator[str]:
    if search.sampler == "grid":
        size = search.grid_size
        for name, axis in search.hyperparameters.items():
            if axis.values is None:
                yield (
                    f"{key}.hyperparameters.{name}: the grid sampler takes a range without log "
                    "and with a step, or choices; write one"
                )
        if size is not None and size > search.budget:
            yield (
                f"{key}.budget: {search.budget}, but the grid has {size} points; raise it, "
                "or take fewer values"
            )
    if search.objective == "cheapest":
        for name, axis in search.hyperparameters.items():
            value = search.reference.get(name)
            if value is not None and not axis.holds(value):
                yield (
                    f"{key}.reference.{name}: {_shown(value)} lies outside the search; the "
                    "converged map is one of its settings: choose a value inside, or remove it"
                )
        return
    given = {**search.fixed, **search.reference}
    for name, declared in spec.hyperparameters.items():
        if name not in given and declared.in_pixels and declared.default > image_size:
            yield (
                f"{key}.reference.{name}: missing; its default {_shown(declared.default)} is "
                f"larger than the image ({image_size} px): add it"
            )


def _data_problems(data: Data) -> Iterator[str]:
    if isinstance(data, (FolderData, ImagenetData)):
        preset = PRESETS.get(data.preprocessing)
        if preset is None:
            yield (
                f"data.preprocessing: {_shown(data.preprocessing)} is no preset; "
                f"{_choices(data.preprocessing, list(PRESETS))}"
            )
        elif preset.crop not in (None, data.image_size):
            yield (
                f"data.image_size: {data.image_size}, but {data.preprocessing} makes "
                f"{preset.crop} px; write {preset.crop}, or choose another preprocessing"
            )
        return
    for name in data.classes:
        if name not in CLASSES:
            yield f"data.classes: {_shown(name)} is no class; {_choices(name, list(CLASSES))}"
    for name in _duplicates(data.classes):
        yield f"data.classes: {_shown(name)} stands twice; name it once"


def _other_problems(params: Params) -> Iterator[str]:
    size, n_val = params.data.image_size, params.data.n_val
    if params.similarity.win_size % 2 == 0:
        yield f"similarity.win_size: {params.similarity.win_size} is even; choose an odd window"
    if params.similarity.win_size > size:
        yield (
            f"similarity.win_size: {params.similarity.win_size} is larger than the image "
            f"({size} px); choose a smaller one"
        )
    if params.similarity.hog_cell * 3 > size:
        yield (
            f"similarity.hog_cell: {params.similarity.hog_cell} leaves fewer than 3 cells in "
            f"{size} px; choose at most {size // 3}"
        )
    for name in _duplicates(params.similarity.conventions):
        yield f"similarity.conventions: {_shown(name)} stands twice; name it once"
    if params.accuracy.alpha not in ALPHAS:
        yield (
            f"accuracy.alpha: {params.accuracy.alpha:g} is none of the thresholds that are "
            f"measured; choose one of {', '.join(f'{alpha:g}' for alpha in ALPHAS)}"
        )
    if "common" not in params.similarity.conventions:
        yield "similarity.conventions: 'common' is missing; headlines are made of it: add it"
    chosen = params.evaluation_set
    if chosen.rule == "list" and not chosen.images:
        yield "evaluation_set.images: empty under rule list; name image ids of the validation split"
    if chosen.rule != "list" and chosen.images:
        yield f"evaluation_set.images: unused under rule {chosen.rule}; remove it or write list"
    if chosen.rule == "sam-1735":
        lacking = [name for name in SAM_MODELS if name not in params.models.names]
        if lacking:
            yield (
                f"evaluation_set.rule: sam-1735 asks {', '.join(SAM_MODELS)}, and {lacking[0]} is "
                "no model; add it to models, or write all_correct"
            )
    for name in _duplicates(chosen.images):
        yield f"evaluation_set.images: {_shown(name)} stands twice; name it once"
    if n_val is not None and chosen.n_images > n_val:
        yield (
            f"evaluation_set.n_images: {chosen.n_images} is more than data.n_val "
            f"{n_val}; choose fewer"
        )
    if n_val is not None and params.robust_accuracy.n_images > n_val:
        yield (
            f"robust_accuracy.n_images: {params.robust_accuracy.n_images} is more than "
            f"data.n_val {n_val}; choose fewer"
        )


def _plan_problems(params: Params) -> Iterator[str]:
    used = {params.architecture(name) for name in params.models.names if name in params.training}
    for name in params.plan.throughput:
        if name not in used:
            yield (
                f"plan.throughput.{name}: no model has this architecture; "
                f"{_choices(name, sorted(used))}"
            )
    if params.plan.throughput and not params.plan.assumption.strip():
        yield "plan.assumption: missing; say which device the rates are of, and whence"
    if params.plan.assumption and not params.plan.throughput:
        yield "plan.assumption: there are no rates that it is about; add plan.throughput, or remove"


def _engine_problems(engine: Engine) -> Iterator[str]:
    if engine.kind == "cluster" and engine.scheduler is None:
        yield (
            "engine.scheduler: missing; write the address (tcp://host:port) or the file of a "
            "running scheduler"
        )
    if engine.kind in ("in_process", "local") and engine.scheduler is not None:
        yield (
            f"engine.scheduler: {_shown(engine.scheduler)} is unused by kind {engine.kind}; "
            "remove it, or write kind: cluster"
        )
    if engine.workers is not None and (engine.scheduler or engine.kind == "in_process"):
        yield (
            f"engine.workers: {engine.workers}; only a local cluster is started from here: remove "
            "it, or write kind: local"
        )


def _section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section as it stands; empty where there is none, or no mapping in its place."""
    found = values.get(name)
    return found if isinstance(found, Mapping) else {}


def defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values that params leave out and that depend on what they say, as an overlay.

    A method without sweeps has none, a HOG cell is a sixteenth of the image's side, and no default
    asks for more images than there are.
    """
    section = partial(_section, values)
    found: dict[str, Any] = {"sweeps": {}, "similarity": {}}
    if isinstance(methods := values.get("methods"), list):
        found["sweeps"] = {
            m: {} for m in methods if isinstance(m, str) and m not in section("sweeps")
        }
    size, n_val = section("data").get("image_size"), section("data").get("n_val")
    if "hog_cell" not in section("similarity") and isinstance(size, int):
        found["similarity"]["hog_cell"] = max(1, size // 16)
    most = n_val if isinstance(n_val, int) else None
    for name, kind in (
        ("robust_accuracy", RobustAccuracy),
        ("evaluation_set", EvaluationSet),
        ("randomization", Randomization),
    ):
        usual = kind.model_fields["n_images"].default
        here = section(name).get("n_images")
        if here is None and most is not None and most < usual:
            found[name] = {"n_images": most}
        if name == "evaluation_set":
            # Randomised parameters explain images of the evaluation set.
            most = here if isinstance(here, int) else min(usual, most or usual)
    # A section that is no mapping stays, to be told.
    return {key: new for key, new in found.items() if isinstance(values.get(key, {}), Mapping)}


def validate(values: Any, *, root: Path = Path(), source: str = "params.yaml") -> Params:
    """Check params as a whole.

    Parameters
    ----------
    values : mapping
        What YAML gave.
    root : Path
        Folder that relative paths start from.
    source : str
        Name for the error.

    Raises
    ------
    ParamsError
        With one line per problem: key path, value, remedy.
    """
    if not isinstance(values, Mapping):
        raise ParamsError(
            f"{source}: not a mapping of keys; write it with `make profile P=embedded`"
        )
    try:
        params = Params.model_validate(overlay(values, defaults(values)))
    except ValidationError as error:
        raise ParamsError(_message(source, list(_pydantic_problems(error)))) from None
    problems = [
        *_name_problems(params),
        *_data_problems(params.data),
        *_other_problems(params),
        *_model_problems(params, root),
        *_plan_problems(params),
    ]
    if not problems:
        # Own code comes with torch, which a typo elsewhere need not wait for.
        problems += _own_problems(params)
    if problems and (params.attribution.own or params.similarity.own):
        # What is said of methods below rests on their declarations.
        raise ParamsError(_message(source, problems))
    problems += [
        *_sweep_problems(params),
        *_search_problems(params),
        *_comparison_problems(params),
        *_randomization_problems(params),
        *_engine_problems(params.engine),
    ]
    if problems:
        raise ParamsError(_message(source, problems))
    if params.protocol is None:
        return params
    params = _under_protocol(params)
    problems = [*_sweep_problems(params), *_search_problems(params)]
    if problems:
        raise ParamsError(_message(f"{source} under protocol {params.protocol}", problems))
    return params


def _under_protocol(params: Params) -> Params:
    """Params whose sweeps and searches take from the protocol what they leave open."""
    assert params.protocol is not None
    answers = PROTOCOLS[params.protocol]

    def open_to(method: str, taken: Collection[str]) -> dict[str, Scalar]:
        found = answers.get(method, {}).items()
        return {name: value for name, value in found if name not in taken}

    sweeps: dict[str, dict[str, Sweep]] = {}
    for method, made in params.sweeps.items():
        sweeps[method] = {
            name: sweep.model_copy(
                update={"fixed": {**open_to(method, [sweep.vary or ""]), **sweep.fixed}}
            )
            for name, sweep in made.items()
        }
        if not made and method in answers:
            sweeps[method] = {"default": Sweep(fixed=answers[method])}
    searches = {
        method: {
            name: search.model_copy(
                update={"fixed": {**open_to(method, search.hyperparameters), **search.fixed}}
            )
            for name, search in made.items()
        }
        for method, made in params.search.items()
    }
    methods = {
        method: wanted.model_copy(
            update={"hyperparameters": {**open_to(method, []), **wanted.hyperparameters}}
        )
        for method, wanted in params.randomization.methods.items()
    }
    randomization = params.randomization.model_copy(update={"methods": methods})
    return params.model_copy(
        update={"sweeps": sweeps, "search": searches, "randomization": randomization}
    )


def _message(source: str, problems: list[str]) -> str:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return "\n".join([f"{source}: {count}", *(f"  {problem}" for problem in problems)])


def check_recipe(
    model: str, recipe: Recipe, *, classes: Sequence[str], n_train: int, root: Path = Path()
) -> None:
    """Check a model's recipe against what is known only once the data are there.

    Raises
    ------
    ParamsError
        Where finished weights know other classes, or there is nothing to train on.
    """
    if recipe.pretrained is not None:
        known = PRETRAINED[recipe.pretrained]
        if len(classes) != known:
            raise ParamsError(
                f"training.{model}.pretrained: {recipe.pretrained} knows {known} classes, the "
                f"data have {len(classes)}; use data of ImageNet's classes, all of them in the "
                "list even where a folder holds a few"
            )
        if all(re.fullmatch(r"n\d{8}", name) for name in classes) and list(classes) != sorted(
            classes
        ):
            raise ParamsError(
                f"training.{model}.pretrained: {recipe.pretrained} numbers classes by sorted "
                "wnid, the data don't; sort their list of classes"
            )
        return
    if recipe.checkpoint is not None:
        return
    if recipe.weights is None:
        if n_train < 1:
            raise ParamsError(
                f"training.{model}.weights: null, but the data hold no training images; name "
                "finished weights, or let data.val_fraction leave some to train on"
            )
        return
    if (root / recipe.weights).is_file():
        return
    others = json.loads((root / recipe.weights / "card.json").read_text())["classes"]
    if others != list(classes):
        key = f"training.{model}.weights"
        raise ParamsError(_other_classes(key, recipe.weights, others, "the data have", classes))


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice, and reads 1e-4 as a number."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in _duplicates(keys):
            raise ParamsError(f"line {node.start_mark.line + 1}: {key}: given twice; keep one")
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def read_text(path: Path) -> str:
    """Text of a params file; a missing one is named."""
    try:
        return Path(path).read_text()
    except FileNotFoundError:
        raise ParamsError(
            f"{path}: no such file; write it with `make profile P=embedded`"
        ) from None


def read_yaml(path: Path) -> Any:
    """Read a YAML file; a missing or broken one is named."""
    return _parsed(read_text(path), path)


def _parsed(text: str, source: str | Path) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ParamsError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None


def load(path: Path = Path("params.yaml")) -> Params:
    """Read and check `params.yaml`."""
    path = Path(path)
    return validate(read_yaml(path), root=path.parent, source=str(path))


def overlay(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merge mappings key by key; lists and scalars are replaced, null removes a key."""
    merged = deepcopy(dict(base))
    for key, value in changes.items():
        if value is None and key in merged:
            del merged[key]
        elif isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = overlay(merged[key], value)
        else:
            merged[key] = deepcopy(value)
    return merged


def inherited(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Part of `base` that applies to a profile: what it says of other things is left out.

    Another kind of data keeps size and seed alone, and asks for no more images than it has. Recipes
    of other models go, and how to train one whose weights are given; sweeps, searches and
    comparisons of methods that are not named go too.
    """
    kept, after = deepcopy(dict(base)), overlay(base, changes)
    data = _section(changes, "data")
    if data.get("kind", kept["data"]["kind"]) != kept["data"]["kind"]:
        kept["data"] = {key: kept["data"][key] for key in ("image_size", "seed")}
    for name in ("robust_accuracy", "evaluation_set"):
        if isinstance(n_val := data.get("n_val"), int):
            kept[name]["n_images"] = min(kept[name]["n_images"], n_val)
    models, given = _section(after, "models"), _section(changes, "training")
    names = [*(models.get("regular") or []), *(f"{n}{ROBUST}" for n in models.get("robust") or [])]
    kept["training"] = {
        name: {} if set(_section(given, name)) & set(SOURCES) else recipe
        for name, recipe in kept["training"].items()
        if name in names
    }
    methods = after.get("methods") or []
    for section in ("sweeps", "search"):
        kept[section] = {m: made for m, made in kept[section].items() if m in methods}
    left = overlay({"sweeps": kept["sweeps"]}, {"sweeps": _section(changes, "sweeps")})["sweeps"]
    sweeps = {name for method in left for name in _section(left, method)}
    made = kept["comparisons"]
    made["denoising"] = [
        one for one in made["denoising"] if one["towards"] in methods and one["sweep"] in sweeps
    ]
    if made["distance"] not in sweeps:
        del made["distance"]
    return kept


def _without_nulls(
    merged: dict[str, Any], changes: Mapping[str, Any], base: Mapping[str, Any]
) -> dict[str, Any]:
    """Merged params without the nulls that were to remove what was not inherited anyway."""
    for key, value in changes.items():
        if value is None and key in base and key in merged:
            del merged[key]
        elif isinstance(value, Mapping) and isinstance(merged.get(key), dict):
            inner = base.get(key)
            _without_nulls(merged[key], value, inner if isinstance(inner, Mapping) else {})
    return merged


# A comment that tells editors what a key may be.
SCHEMA_LINE = "# yaml-language-server: $schema=docs/params.schema.json\n"
# Of no concern to what DVC runs; all others have to stand in params.yaml, where it looks them up.
_UNWATCHED = ("engine", "tracking", "plan")


def schema() -> str:
    """JSON schema of `params.yaml`, for editors."""
    return json.dumps(Params.model_json_schema(), indent=1) + "\n"


def complete(text: str, *, root: Path = Path(), source: str = "params.yaml") -> str:
    """Write into the text of a short `params.yaml` the keys that DVC looks up, with their defaults.

    What stands there stays as it is, comments too.

    Raises
    ------
    ParamsError
        Where params are not valid, or the text leaves no place for a key.
    """
    values = _parsed(text, source)
    params = validate(values, root=root, source=source)
    shown = params.model_dump(mode="json")
    added: dict[str, Any] = {
        key: shown[key] for key in Params.model_fields if key not in {*values, *_UNWATCHED}
    }
    if "sweeps" in added:
        added["sweeps"] = {method: {} for method in params.methods}
    within = {"sweeps": defaults(values)["sweeps"]} if "sweeps" in values else {}
    within["models"] = {} if "robust" in values["models"] else {"robust": []}
    top: Any = yaml.compose(text, Loader=_Loader)
    nodes = {key.value: node for key, node in top.value}
    places = [(nodes[key].start_mark, nodes[key], new) for key, new in within.items() if new]
    # From the end, so that places before stay where they are.
    for mark, node, new in sorted(places, key=lambda place: -place[0].index):
        entries = [f"{key}: {_flow(value)}" for key, value in new.items()]
        at = mark.index
        if node.flow_style:
            at += 1
            entry = ", ".join(entries) + (", " if node.value else "")
        else:
            entry = "".join(f"{line}\n{' ' * mark.column}" for line in entries)
        text = text[:at] + entry + text[at:]
    if added:
        lines = [f"{key}: {_flow(value)}\n" for key, value in added.items()]
        text = f"{text.rstrip()}\n\n# Defaults of what is left out above.\n{''.join(lines)}"
    try:
        same = validate(_parsed(text, source), root=root, source=source) == params
    except ParamsError:
        same = False
    if not same:
        missing = ", ".join([*added, *(f"{key}.{name}" for key in within for name in within[key])])
        raise ParamsError(f"{source}: DVC needs {missing}; add them by hand, or write the file in "
                          "block style, key below key")  # fmt: skip
    return text


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf)
    return text.removesuffix("\n").removesuffix("\n...")


def profile(name: str, folder: Path = Path("profiles")) -> str:
    """Text of the whole `params.yaml` of a profile.

    `embedded.yaml` is complete and comes with its comments; every other profile is an overlay on
    what applies of it.

    Raises
    ------
    ParamsError
        Where there is no such profile, or what it makes is not valid.
    """
    folder = Path(folder)
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in known:
        raise ParamsError(f"profile {name!r}: there is none; {_choices(name, known)}")
    base = folder / "embedded.yaml"
    text = base.read_text()
    if name != "embedded":
        embedded, changes = read_yaml(base), read_yaml(folder / f"{name}.yaml") or {}
        if not isinstance(changes, Mapping):
            raise ParamsError(f"profile {name}: not a mapping of keys; write study: {name}")
        merged = _without_nulls(overlay(inherited(embedded, changes), changes), changes, embedded)
        text = yaml.safe_dump(merged, sort_keys=False, width=100)
        text = (
            f"# Written by `make profile P={name}`: embedded.yaml with {name}.yaml over it.\n{text}"
        )
    text = SCHEMA_LINE + text
    validate(yaml.load(text, Loader=_Loader), root=folder.parent, source=f"profile {name}")
    return text
