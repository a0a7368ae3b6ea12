"""Settings of a method and the points of its sweeps."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from steadymap.params import plugins
from steadymap.params.plugins import declaration
from steadymap.params.schema import Sweep

DEFAULT = "default"


@dataclass(frozen=True)
class Setting:
    """A method with all its hyperparameters.

    Attributes
    ----------
    method : str
        Name of the method.
    text : str
        The effective hyperparameters as JSON with sorted keys.
    """

    method: str
    text: str

    @cached_property
    def hyperparameters(self) -> dict[str, Any]:
        """The effective hyperparameters."""
        return json.loads(self.text)

    @cached_property
    def passes(self) -> str:
        """What settings that share one pass have in common."""
        if plugins.find(self.method):
            return self.text  # a function of one's own is called once per setting
        declared = declaration(self.method).hyperparameters
        kept = {
            key: value
            for key, value in self.hyperparameters.items()
            if not (declared[key].count or declared[key].progress)
        }
        return json.dumps(kept, sort_keys=True)


def setting(method: str, hyperparameters: Mapping[str, Any]) -> Setting:
    """Setting of a method with the hyperparameters given and the defaults of the others."""
    effective = declaration(method).effective(hyperparameters)
    return Setting(method, json.dumps(effective, sort_keys=True))


@dataclass(frozen=True)
class Point:
    """One setting in its role in a sweep.

    Attributes
    ----------
    sweep, hyperparameter : str
        Name of the sweep and of what it varies; `default` and '' for a method without sweeps.
    value : str
        Value of the varied hyperparameter.
    draws : {'nested', 'independent', 'none'}
        Whether the sweep's settings share random draws with its reference.
    is_reference : bool
        Whether the others are compared with it.
    setting : Setting
        What is computed.
    """

    sweep: str
    hyperparameter: str
    value: str
    draws: str
    is_reference: bool
    setting: Setting


def points(method: str, sweeps: Mapping[str, Sweep]) -> list[Point]:
    """All points of a method's sweeps, in order.

    A sweep over a count of samples appears with both kinds of draws. In the nested one each
    sample begins with the smaller ones; in the independent one the reference alone has draws of
    its own, from the next seed, which costs one more map.
    """
    if not sweeps:
        return [Point(DEFAULT, "", "", "none", True, setting(method, {}))]
    found = []
    declared = declaration(method)
    for name, sweep in sweeps.items():
        if sweep.vary is None:
            found.append(Point(name, "", "", "none", True, setting(method, sweep.fixed)))
            continue
        if not declared.stochastic:
            draws = "none"
        else:
            draws = "independent" if sweep.vary == "seed" else "nested"
        for value in sweep.values:
            made = setting(method, {**sweep.fixed, sweep.vary: value})
            is_reference = value == sweep.reference
            found.append(Point(name, sweep.vary, str(value), draws, is_reference, made))
            if is_reference and declared.hyperparameters[sweep.vary].count:
                seed = made.hyperparameters["seed"] + 1
                other = setting(method, {**made.hyperparameters, "seed": seed})
                found.append(Point(name, sweep.vary, str(value), "independent", True, other))
    return found


def pairs(method: str, sweeps: Mapping[str, Sweep]) -> list[tuple[Point, Point, str]]:
    """Reference, variant and draws of every comparison that a method's sweeps ask for."""
    found = []
    all_points = points(method, sweeps)
    for reference in (point for point in all_points if point.is_reference):
        found += [
            (reference, variant, reference.draws)
            for variant in all_points
            if variant.sweep == reference.sweep and not variant.is_reference
        ]
    return found


def unique_settings(wanted: Sequence[Point]) -> list[Setting]:
    """Settings of the points, each once, in order of appearance."""
    return list(dict.fromkeys(point.setting for point in wanted))


def grids_of(wanted: Sequence[Point]) -> dict[str, list[str]]:
    """Values of each sweep in order, the reference among them."""
    found: dict[str, dict[str, None]] = {}
    for point in wanted:
        found.setdefault(point.sweep, {})[point.value] = None
    return {sweep: list(values) for sweep, values in found.items()}
