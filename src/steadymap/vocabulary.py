"""What params may name: methods with their hyperparameters, architectures, classes.

Declarations only, so that checking params needs neither torch nor the code that runs them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class HyperparameterError(ValueError):
    """A hyperparameter's value that its method can't take; `remedy` says what it can."""

    def __init__(self, name: str, value: Any, remedy: str):
        super().__init__(f"{name} is {value!r}; {remedy}")
        self.remedy = remedy


@dataclass(frozen=True)
class Hyperparameter:
    """Type, default and range of one hyperparameter.

    Attributes
    ----------
    type : type
        `int`, `float` or `str`; an int serves as a float, a bool as neither.
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
    in_pixels : bool
        A length that must fit into the image.
    """

    type: type
    default: Any
    low: float = -math.inf
    high: float = math.inf
    above: float | None = None
    choices: tuple[str, ...] = ()
    count: bool = False
    in_pixels: bool = False

    def check(self, name: str, value: Any) -> Any:
        """Return the value in its type.

        Raises
        ------
        HyperparameterError
            Where type, range or choice is wrong.
        """
        if self.type is str:
            if value not in self.choices:
                remedy = f"choose one of {', '.join(self.choices)}"
                raise HyperparameterError(name, value, remedy)
            return value
        whole = isinstance(value, int) and not isinstance(value, bool)
        if self.type is int and not whole:
            raise HyperparameterError(name, value, "write a whole number")
        if self.type is float and not (whole or isinstance(value, float)):
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
    """

    name: str
    hyperparameters: Mapping[str, Hyperparameter] = field(default_factory=dict)

    @property
    def stochastic(self) -> bool:
        """Whether it draws random numbers, that is, has a `seed`."""
        return "seed" in self.hyperparameters

    def effective(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All hyperparameters, those given and the defaults of the others, in declared order.

        Raises
        ------
        HyperparameterError
            Where a name is unknown or a value can't be taken.
        """
        for name, value in given.items():
            if name not in self.hyperparameters:
                known = ", ".join(self.hyperparameters) or "none"
                remedy = f"{self.name} has no such hyperparameter; known are {known}"
                raise HyperparameterError(name, value, remedy)
        return {
            name: hyperparameter.check(name, given.get(name, hyperparameter.default))
            for name, hyperparameter in self.hyperparameters.items()
        }


_SEED = Hyperparameter(int, 0, low=0)
_OUTPUTS = ("logit", "probability")
_SPACES = ("normalized", "pixel")

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("gradient", {"output": Hyperparameter(str, "logit", choices=_OUTPUTS)}),
        Method(
            "smoothgrad",
            {
                "n_samples": Hyperparameter(int, 50, low=1, count=True),
                "sigma": Hyperparameter(float, 0.15, low=0),
                "input_space": Hyperparameter(str, "normalized", choices=_SPACES),
                "output": Hyperparameter(str, "logit", choices=_OUTPUTS),
                "seed": _SEED,
            },
        ),
        Method(
            "sliding_patch",
            {
                "patch_size": Hyperparameter(int, 53, low=1, in_pixels=True),
                "stride": Hyperparameter(int, 3, low=1, in_pixels=True),
                "fill": Hyperparameter(str, "mean", choices=("mean", "black", "grey")),
                "output": Hyperparameter(str, "probability", choices=_OUTPUTS),
            },
        ),
        Method(
            "lime",
            {
                # The sample that shows everything is one of them.
                "n_samples": Hyperparameter(int, 1000, low=2, count=True),
                "n_superpixels": Hyperparameter(int, 50, low=1),
                "fill": Hyperparameter(str, "black", choices=("black", "grey", "mean")),
                "surrogate": Hyperparameter(str, "ridge", choices=("ridge", "lasso")),
                "lasso_alpha": Hyperparameter(float, 0.01, above=0),
                "compactness": Hyperparameter(float, 30.0, above=0),
                "sigma": Hyperparameter(float, 3.0, low=0, in_pixels=True),
                "output": Hyperparameter(str, "probability", choices=_OUTPUTS),
                "seed": _SEED,
            },
        ),
    )
}

# Side of the smallest image, in pixels, that each architecture takes.
ARCHITECTURES: dict[str, int] = {
    "googlenet": 32,
    "inception_v3": 75,
    "mobilenet_v2": 32,
    "resnet18": 32,
    "resnet50": 32,
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

# Classes of the embedded data set, in label order.
CLASSES = ("disc", "ring", "triangle", "square", "star", "cross", "heart", "crescent")

ROBUST = "-r"


def architecture_of(model: str) -> str:
    """Architecture of a model name: `googlenet-r` is the robust twin of `googlenet`."""
    return model.removesuffix(ROBUST)
