"""What a search may propose, in Optuna's terms; states of its trials."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from steadymap.params.plugins import declaration
from steadymap.params.schema import Axis, Search

COMPLETE, FAILED, REFERENCE = "complete", "failed", "reference"


def distribution(axis: Axis, whole: bool) -> BaseDistribution:
    """Optuna's distribution of the values that a search may propose."""
    if axis.choices is not None:
        return CategoricalDistribution(axis.choices)
    assert axis.low is not None
    assert axis.high is not None
    # Optuna warns where the steps don't end at high.
    high = float(axis.largest)
    if whole:
        return IntDistribution(int(axis.low), int(high), log=axis.log, step=int(axis.step or 1))
    return FloatDistribution(axis.low, high, log=axis.log, step=axis.step)


def space_of(method: str, search: Search) -> dict[str, BaseDistribution]:
    """Distribution of each searched hyperparameter."""
    declared = declaration(method).hyperparameters
    return {
        name: distribution(axis, declared[name].type is int)
        for name, axis in search.hyperparameters.items()
    }


def inside(
    hyperparameters: Mapping[str, Any], space: Mapping[str, BaseDistribution]
) -> dict[str, Any]:
    """Searched hyperparameters of a row, back where Optuna can take them."""
    point = {}
    for name, values in space.items():
        value = hyperparameters[name]
        if isinstance(values, IntDistribution | FloatDistribution):
            point[name] = min(max(value, values.low), values.high)
        else:
            assert isinstance(values, CategoricalDistribution)
            # 1 and 1.0 are the same choice, and only one of them is listed.
            point[name] = next(choice for choice in values.choices if choice == value)
    return point


@contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's line per trial and its notes on experimental features."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)
