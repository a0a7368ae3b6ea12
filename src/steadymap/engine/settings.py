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
    items : tuple of (str, object)
        Name and value of each hyperparameter, sorted by name.
    """

    method: str
    items: tuple[tuple[str, Any], ...]

    @cached_property
    def hyperparameters(self) -> dict[str, Any]:
        """Values by name."""
        return dict(self.items)

    @cached_property
    def text(self) -> str:
        """The hyperparameters as JSON, as tables have them."""
        return json.dumps(self.hyperparameters)

    @cached_property
    def shared_pass_key(self) -> tuple[str, tuple[tuple[str, Any], ...]]:
        """Key of the settings that one model pass can serve."""
        if plugins.find(self.method):
            return self.method, self.items  # a custom function is called once per setting
        declared = declaration(self.method).hyperparameters
        return self.method, tuple(
            (name, value)
            for name, value in self.items
            if not (declared[name].count or declared[name].progress)
        )


def setting(method: str, hyperparameters: Mapping[str, Any]) -> Setting:
    """Setting of a method with the hyperparameters given and the defaults of the others."""
    effective = declaration(method).effective(hyperparameters)
    return Setting(method, tuple(sorted(effective.items())))


def with_next_seed(reference: Setting) -> Setting:
    """Setting with draws of its own: that of a stochastic method, from the next seed."""
    values = reference.hyperparameters
    return setting(reference.method, {**values, "seed": values["seed"] + 1})


def sharing_a_pass(settings: Sequence[Setting]) -> list[list[Setting]]:
    """Settings in groups that one model pass can serve, in order of appearance."""
    groups: dict[Any, list[Setting]] = {}
    for setting in settings:
        groups.setdefault(setting.shared_pass_key, []).append(setting)
    return list(groups.values())


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
    all_points = []
    declared = declaration(method)
    for name, sweep in sweeps.items():
        if sweep.vary is None:
            all_points.append(Point(name, "", "", "none", True, setting(method, sweep.fixed)))
            continue
        if not declared.stochastic:
            draws = "none"
        else:
            draws = "independent" if sweep.vary == "seed" else "nested"
        for value in sweep.values:
            varied = setting(method, {**sweep.fixed, sweep.vary: value})
            is_reference = value == sweep.reference
            all_points.append(Point(name, sweep.vary, str(value), draws, is_reference, varied))
            if is_reference and declared.hyperparameters[sweep.vary].count:
                fresh = with_next_seed(varied)
                all_points.append(Point(name, sweep.vary, str(value), "independent", True, fresh))
    return all_points


def pairs(method: str, sweeps: Mapping[str, Sweep]) -> list[tuple[Point, Point, str]]:
    """Reference, variant and draws of every comparison that a method's sweeps ask for."""
    all_points = points(method, sweeps)
    return [
        (reference, variant, reference.draws)
        for reference in all_points
        if reference.is_reference
        for variant in all_points
        if variant.sweep == reference.sweep and not variant.is_reference
    ]


def headline_points(points: Sequence[Point]) -> list[Point]:
    """Points without the second reference of a sweep over a count, whose draws are its own.

    The rule for points that `steadymap.analysis.readings.nested_draws` is for tables.
    """
    shared = {point.sweep for point in points if point.draws != "independent"}
    return [p for p in points if p.draws != "independent" or p.sweep not in shared]


def unique_settings(points: Sequence[Point]) -> list[Setting]:
    """Settings of the points, each once, in order of appearance."""
    return list(dict.fromkeys(point.setting for point in points))


def grids_of(points: Sequence[Point]) -> dict[str, list[str]]:
    """Values of each sweep in order, the reference among them."""
    grids: dict[str, dict[str, None]] = {}
    for point in points:
        grids.setdefault(point.sweep, {})[point.value] = None
    return {sweep: list(values) for sweep, values in grids.items()}
