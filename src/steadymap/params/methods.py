"""What params may name: methods with their hyperparameters, architectures, classes.

Declarations only, so that checking params needs neither torch nor the code that runs them.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import resources
from numbers import Integral, Real
from typing import Any

import yaml


class HyperparameterError(ValueError):
    """A hyperparameter's value that its method can't take; `remedy` says what it can."""

    def __init__(self, name: str, value: Any, remedy: str):
        super().__init__(f"{name} is {value!r}; {remedy}")
        self.name = name
        self.remedy = remedy


class ConflictError(HyperparameterError):
    """A value that a hyperparameter can take, but not together with the others."""


def whole_pixels(length: float) -> int:
    """Nearest whole number of pixels, halves upwards."""
    return math.floor(length + 0.5)


@dataclass(frozen=True)
class Hyperparameter:
    """Type, default and range of one hyperparameter.

    Attributes
    ----------
    type : type
        `int`, `float` or `str`; an int serves as a float, a bool as neither; numpy's numbers are
        made Python's.
    default : object
        Value where none is given.
    low, high : float
        Smallest and largest value.
    above : float, optional
        Bound that values must exceed.
    choices : tuple of str
        Values of a `str`.
    count : bool
        A number of random samples: settings that differ in it alone share draws and one pass.
    progress : bool
        A number of steps: settings that differ in it alone are moments of one pass.
    in_pixels : bool
        A length that must fit into the image.
    side_power : float
        Power of the image's side with which a value grows that is no length, but depends on one.
    """

    type: type
    default: Any
    low: float = -math.inf
    high: float = math.inf
    above: float | None = None
    choices: tuple[str, ...] = ()
    count: bool = False
    progress: bool = False
    in_pixels: bool = False
    side_power: float = 0

    def scaled(self, value: Any, factor: float) -> Any:
        """Value for images whose sides are larger by a factor; lengths are whole where ints."""
        power = 1 if self.in_pixels else self.side_power
        if not power or isinstance(value, str):
            return value
        times = value * factor**power
        return max(whole_pixels(times), int(self.low)) if self.type is int else round(times, 10)

    def check(self, name: str, value: Any) -> Any:
        """Return the value in its type.

        Raises
        ------
        HyperparameterError
            Where type, range or choice is wrong.
        """
        if self.type is str:
            if not isinstance(value, str) or value not in self.choices:
                remedy = f"choose one of {', '.join(self.choices)}"
                raise HyperparameterError(name, value, remedy)
            return str(value)
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if self.type is int and not whole:
            raise HyperparameterError(name, value, "write a whole number")
        if self.type is float and not (
            whole or (isinstance(value, Real) and not isinstance(value, bool))
        ):
            raise HyperparameterError(name, value, "write a number")
        if not math.isfinite(value):
            raise HyperparameterError(name, value, "write a finite number")
        if self.above is not None and value <= self.above:
            raise HyperparameterError(name, value, f"choose more than {self.above:g}")
        if not self.low <= value <= self.high:
            bounds = [f"at least {self.low:g}"] if math.isfinite(self.low) else []
            bounds += [f"at most {self.high:g}"] if math.isfinite(self.high) else []
            raise HyperparameterError(name, value, f"choose {' and '.join(bounds)}")
        return self.type(value)


@dataclass(frozen=True)
class Method:
    """Declaration of an attribution method.

    Attributes
    ----------
    name : str
        The name used everywhere.
    hyperparameters : mapping
        What can be set, in the order in which it is shown.
    conflict : callable, optional
        From all hyperparameters to the name of the one that the others forbid, and the remedy.
    """

    name: str
    hyperparameters: Mapping[str, Hyperparameter] = field(default_factory=dict)
    conflict: Callable[[Mapping[str, Any]], tuple[str, str] | None] | None = None

    @property
    def stochastic(self) -> bool:
        """Whether it draws random numbers, that is, has a `seed`."""
        return "seed" in self.hyperparameters

    def effective(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All hyperparameters, those given and the defaults of the others, in declared order.

        Raises
        ------
        HyperparameterError
            Where a name is unknown, a value can't be taken, or values exclude one another.
        """
        for name, value in given.items():
            if name not in self.hyperparameters:
                known = ", ".join(self.hyperparameters) or "none"
                remedy = f"{self.name} has no such hyperparameter; known are {known}"
                raise HyperparameterError(name, value, remedy)
        found = {
            name: hyperparameter.check(name, given.get(name, hyperparameter.default))
            for name, hyperparameter in self.hyperparameters.items()
        }
        if self.conflict is not None and (forbidden := self.conflict(found)) is not None:
            name, remedy = forbidden
            raise ConflictError(name, found[name], remedy)
        return found


def statistics_problem(mean: Sequence[float], std: Sequence[float]) -> str | None:
    """What is wrong with channel statistics of images in [0, 1], beginning with the name.

    Statistics in effect behind a transform of the input may leave [0, 1] by a little.
    """
    for name, values in (("mean", mean), ("std", std)):
        shown = f"{name} is {[float(value) for value in values]}"
        if not all(math.isfinite(value) and abs(value) <= 2 for value in values):
            return (
                f"{shown}; give statistics of images in [0, 1]: those of 0..255 are divided by 255"
            )
        if name == "std" and min(values, default=0) <= 0:
            return f"{shown}; images are divided by it: give values above 0"
    if len(mean) != len(std):
        return f"mean has {len(mean)} values, std {len(std)}; give one of each per channel"
    return None


# What a score is: a logit, its softmax (of a lone logit its sigmoid), or its sigmoid.
OUTPUTS = ("logit", "probability", "sigmoid")

RANDOM_BASELINES = ("uniform", "gaussian")


def _needless_trials(setting: Mapping[str, Any]) -> tuple[str, str] | None:
    """Trials of integrated gradients with a baseline that is the same in all of them."""
    if setting["n_trials"] > 1 and setting["baseline"] not in RANDOM_BASELINES:
        return (
            "n_trials",
            f"with baseline {setting['baseline']} all trials are equal: write 1, or choose a "
            f"random baseline ({', '.join(RANDOM_BASELINES)})",
        )
    return None


_CONFLICTS = {"integrated_gradients": _needless_trials}

_TYPES = {"int": int, "float": float, "str": str}

_DECLARED = yaml.safe_load(
    resources.files("steadymap.params").joinpath("methods.yaml").read_text("utf-8")
)


def _hyperparameter(declared: dict[str, Any]) -> Hyperparameter:
    choices = tuple(declared.get("choices", ()))
    return Hyperparameter(**declared | {"type": _TYPES[declared["type"]], "choices": choices})


METHODS: dict[str, Method] = {
    name: Method(
        name,
        {key: _hyperparameter(hyperparameter) for key, hyperparameter in declared.items()},
        _CONFLICTS.get(name),
    )
    for name, declared in _DECLARED["methods"].items()
}

# Values that sweeps, searches and randomized methods take where they leave them open.
PROTOCOLS: dict[str, dict[str, dict[str, Any]]] = _DECLARED["protocols"]

# Side of the smallest image, in pixels, that each architecture takes.
ARCHITECTURES: dict[str, int] = {
    "googlenet": 32,
    "inception_v3": 75,
    "mobilenet_v2": 32,
    "resnet18": 32,
    "resnet50": 32,
    "squeezenet1_0": 32,
    "vgg16": 32,
}


@dataclass(frozen=True)
class Preset:
    """How photographs of any size become squares; bilinear, antialiased.

    Attributes
    ----------
    squash : bool
        Scale both sides to `resize`; else the shorter side, keeping the aspect.
    resize, crop : int, optional
        Pixels; `data.image_size` where None. The crop is central.
    """

    squash: bool
    resize: int | None = None
    crop: int | None = None


PRESETS: dict[str, Preset] = {
    "squash": Preset(squash=True),
    "resize-crop": Preset(squash=False),
    # ImageNet: the SAM paper's code, and what torchvision's weights were trained for.
    "squash256-crop224": Preset(squash=True, resize=256, crop=224),
    "resize256-crop224": Preset(squash=False, resize=256, crop=224),
    "resize342-crop299": Preset(squash=False, resize=342, crop=299),
}

# What scores are called; a custom similarity needs another name.
SIMILARITIES = (
    *("ssim", "spearman", "pearson", "hog_pearson", "dynamic_range", "l1"),
    *("insertion", "deletion", "localization_error", "iou"),
)

# Shares of a map's maximum at which localization is measured (SAM's code).
ALPHAS = tuple(round(0.1 + 0.05 * step, 2) for step in range(9))

# Classes of the embedded data set, in label order.
CLASSES = ("disc", "ring", "triangle", "square", "star", "cross", "heart", "crescent")

# Weights of torchvision by their names there, and the number of classes that they know.
PRETRAINED: dict[str, int] = {"IMAGENET1K_V1": 1000}

# Architectures that torchvision can train behind a transform of their input.
INPUT_TRANSFORMING = ("googlenet", "inception_v3")

ROBUST = "-r"

# Models that the SAM paper chose its images by: correct on the first three of these, drawn, then
# correct on the last.
SAM_MODELS = ("resnet50", "googlenet", "resnet50-r", "googlenet-r")

# What a name may be made of, by what it names. Names become parts of files and folders, of DVC's
# stages and keys (where a dot begins a level) and of MLflow's experiments, runs and metrics.
LONGEST_NAME = 60

_PLAIN = (
    r"[A-Za-z0-9][A-Za-z0-9_-]*",
    "letters, digits, '-' and '_', beginning with a letter or digit",
)

_IDENTIFIER = r"[A-Za-z][A-Za-z0-9_]*", "letters, digits and '_', beginning with a letter"

NAMES: dict[str, tuple[str, str]] = {
    "name": _PLAIN,
    "study": (
        r"[a-z0-9][a-z0-9_-]*",
        "lower-case letters, digits, '-' and '_', beginning with a letter or digit",
    ),
    "method": _IDENTIFIER,
    "metric": _IDENTIFIER,
}

# Folders of reports/ that are no study's; MLflow's experiment of trainings, beside the methods'.
RESERVED_NAMES: dict[str, tuple[str, ...]] = {
    "study": (
        *("architectures", "baseline", "bench", "claim-rules", "defaults", "gate"),
        *("interval_coverage", "inversion", "kills", "processes", "rehearsal", "repro"),
        *("retraining", "scale"),
    ),
    "method": ("training",),
}


def name_problem(name: str, kind: str = "name") -> str | None:
    """What to do about a name that files, DVC or MLflow can't take; None where they can.

    Parameters
    ----------
    name : str
        Of a model, sweep, search or the like; of a study, or of a custom method or metric.
    kind : str
        A key of `NAMES`.
    """
    pattern, allowed = NAMES[kind]
    if len(name) > LONGEST_NAME:
        return f"use at most {LONGEST_NAME} characters, these are {len(name)}"
    if not re.fullmatch(pattern, name):
        return f"use {allowed}"
    if name in RESERVED_NAMES.get(kind, ()):
        return f"{name!r} is taken by steadymap itself; choose another name"
    return None


def choices_text(value: str, known: Iterable[str]) -> str:
    """Known values as text, the closest to `value` named."""
    known = list(known)
    close = get_close_matches(value, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known are {', '.join(known)}"


def value_text(value: Any) -> str:
    """Text of a value of params: `true`, `none`, `0.15`, a list as JSON."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "none"
    return json.dumps(value) if isinstance(value, list) else str(value)
