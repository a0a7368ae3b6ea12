"""What should exist: `params.yaml`, validated."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, field_validator
from pydantic_core import PydanticCustomError

from steadymap.params import plugins
from steadymap.params.methods import (
    CLASSES,
    LONGEST_NAME,
    METHODS,
    NAMES,
    PRESETS,
    ROBUST,
    Method,
    choices_text,
    name_problem,
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


def duplicates(values: list[Any]) -> list[Any]:
    """Values that stand more than once."""
    return [value for position, value in enumerate(values) if value in values[:position]]


def _check_unique(values: list[Any]) -> list[Any]:
    if repeated := duplicates(values):
        raise PydanticCustomError(REPEATED, "a value stands twice", {"values": repeated})
    return values


# Type of the error about values that stand twice in a list.
REPEATED = "repeated"

_Unique = AfterValidator(_check_unique)

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
    classes: Annotated[list[str], _Unique] = Field(default=list(CLASSES), min_length=2)
    pattern_amplitude: float = Field(default=0.04, ge=0, le=0.5)
    seed: int = Field(default=0, ge=0)

    @field_validator("classes")
    @classmethod
    def _check_classes(cls, classes: list[str]) -> list[str]:
        for name in classes:
            if name not in CLASSES:
                raise ValueError(f"{name!r} is no class; {choices_text(name, CLASSES)}")
        return classes

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

    regular: Annotated[list[Name], _Unique] = Field(min_length=1)
    robust: Annotated[list[Name], _Unique] = []

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
    `augmentation: imagenet` crops, flips and recolors; `auxiliary_weight` trains GoogLeNet's and
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
    """Which validation images are explained, and for which class.

    `of_methods` has the methods that explain another number of images than `n_images`: each takes
    the first so many of the set, which holds the largest number.
    """

    rule: Literal["all_correct", "any", "list", "sam-1735"] = "all_correct"
    target: Literal["label", "prediction"] = "label"
    n_images: int = Field(default=16, ge=1)
    of_methods: dict[Name, Annotated[int, Field(ge=1)]] = {}
    images: Annotated[list[str], _Unique] = []
    seed: int = Field(default=0, ge=0)

    @property
    def size(self) -> int:
        """Number of images of the set."""
        return max(self.n_images, *self.of_methods.values(), 0)

    def of(self, method: str) -> int:
        """Number of images that a method explains."""
        return self.of_methods.get(method, self.n_images)


class Attribution(_Section):
    """How maps are computed; the batch shape is part of what a map is, to the last bit.

    `own` are custom attribution methods, `module:function` by the name they go by.
    """

    batch_size: int = Field(default=64, ge=1)
    block_size: int = Field(default=16, ge=8, le=16)
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    own: dict[str, str] = {}


class Sweep(_Section):
    """One hyperparameter varied, the others fixed; a lone setting where nothing varies."""

    vary: str | None = None
    values: Annotated[list[Scalar], _Unique] = []
    reference: Scalar | None = None
    fixed: dict[str, Scalar] = {}


class Axis(_Section):
    """Values that a search may propose for one hyperparameter: a range, or choices."""

    low: int | float | None = None
    high: int | float | None = None
    step: int | float | None = None
    log: bool = False
    choices: Annotated[list[Scalar], _Unique] | None = None

    @property
    def largest(self) -> Scalar:
        """Largest value of a range; the last of the choices."""
        if self.choices is not None or self.step is not None:
            assert self.values
            return self.values[-1]
        assert self.high is not None
        return self.high

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
        # Counted in steps: sums of floats drift.
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
    models: Annotated[list[Name], _Unique] | None = None

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
    """How two maps are compared; `own` are custom metrics, `module:function` by name."""

    conventions: Annotated[list[Literal["common", "sam", "wang", "mass_weighted"]], _Unique] = (
        Field(default=["common", "sam", "wang"], min_length=1)
    )
    win_size: int = Field(default=5, ge=3)
    hog_cell: int = Field(default=4, ge=1)
    own: dict[str, str] = {}


class Statistics(_Section):
    """How intervals are formed."""

    confidence: float = Field(default=0.95, gt=0.5, lt=1)


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
    """An object on a blank background at several sizes, seen by patches of several sizes; px.

    `n_images` are the first images with an object; those are kept of which the network gives the
    object alone a probability of .5 or more.
    """

    object_sizes: list[Annotated[int, Field(ge=2)]] = Field(min_length=1)
    patch_sizes: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    stride: int = Field(default=1, ge=1)
    n_images: int = Field(default=16, ge=1)


class Budget(_Section):
    """From which sample or step on maps stay converged: SSIM tau, on which share of the images."""

    tau: Annotated[list[Annotated[float, Field(gt=0, le=1)]], _Unique] = Field(
        default=[0.95, 0.99], min_length=1
    )
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
    """A method under randomized parameters: its setting, and its numbers of images and draws."""

    hyperparameters: dict[str, Scalar] = {}
    n_images: int | None = Field(default=None, ge=1)
    n_draws: int | None = Field(default=None, ge=1)


class Randomization(_Section):
    """Which parameters are randomized, how, and which methods are to notice it."""

    methods: dict[Name, RandomizedMethod] = {}
    models: list[Name] | None = None
    preset: Literal["paper", "all"] = "paper"
    units: dict[Name, list[str]] = {}
    critical_units: dict[Name, list[str]] = {}
    orders: Annotated[list[Literal["independent", "top_down", "bottom_up"]], _Unique] = [
        "independent"
    ]
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
    methods: Annotated[list[Name], _Unique] = Field(min_length=1)
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
        """Methods that may be named, the package's and custom ones."""
        return METHODS | {name: plugins.declaration(name) for name in self.attribution.own}

    def recipe(self, model: str) -> Recipe:
        """Recipe of a model; a robust twin has its regular model's architecture."""
        recipe, regular = self.training[model], self.training.get(model.removesuffix(ROBUST))
        if recipe.architecture is None and regular is not None:
            return recipe.model_copy(update={"architecture": regular.architecture})
        return recipe

    def architecture(self, model: str) -> str:
        """Architecture of a model."""
        return architecture_of(model, self.recipe(model))
