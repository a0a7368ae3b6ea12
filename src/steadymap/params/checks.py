"""Checks of params across sections; each problem names key, value and remedy."""

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from steadymap.params import plugins
from steadymap.params.methods import (
    ALPHAS,
    ARCHITECTURES,
    INPUT_TRANSFORMING,
    PRESETS,
    PRETRAINED,
    PROTOCOLS,
    ROBUST,
    SAM_MODELS,
    ConflictError,
    HyperparameterError,
    Method,
    choices_text,
    statistics_problem,
)
from steadymap.params.schema import (
    REPEATED,
    SOURCES,
    Axis,
    Data,
    EmbeddedData,
    Engine,
    EvaluationSet,
    FolderData,
    ImagenetData,
    Params,
    ParamsError,
    Randomization,
    RandomizedMethod,
    Recipe,
    RobustAccuracy,
    Scalar,
    Search,
    Sweep,
)

E = TypeVar("E", Sweep, Search, RandomizedMethod)

# What pydantic's complaints mean for somebody who edits a YAML file.
_REMEDIES = {
    **dict.fromkeys(("int_type", "int_from_float"), "write a whole number"),
    "float_type": "write a number",
    "string_type": "write a word (quote it if it looks like a number)",
    "bool_type": "write true or false",
    "list_type": "write a list, [a, b]",
    **dict.fromkeys(
        ("dict_type", "model_type", "model_attributes_type"), "write a mapping, key: value"
    ),
}


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _pydantic_problems(error: ValidationError) -> Iterator[str]:
    seen = set()
    for problem in error.errors():
        # A union reports once per branch; the branch names are no keys of the file.
        parts = [str(part) for part in problem["loc"] if part not in _BRANCHES]
        if parts[0] == "data" and parts[1:2] and parts[1] in _KINDS:
            del parts[1]
        path, value = ".".join(parts), problem["input"]
        if path in seen:
            continue
        seen.add(path)
        match problem["type"]:
            case "missing":
                yield f"{path}: missing; add it"
            case "union_tag_not_found":
                yield f"{path}.kind: missing; add it, one of {', '.join(_KINDS)}"
            case "union_tag_invalid":
                yield f"{path}.kind: {_shown(value['kind'])}; choose {_QUOTED_KINDS}"
            case "extra_forbidden":
                remedy = "remove it or correct its spelling"
                yield f"{path}: {_shown(value)} is not a known key; {remedy}"
            case "string_pattern_mismatch":
                yield f"{path}: {_shown(value)}; write what matches {problem['ctx']['pattern']}"
            case kind if kind == REPEATED:
                for repeated in problem["ctx"]["values"]:
                    yield f"{path}: {_shown(repeated)} stands twice; name it once"
            case kind:
                text = problem["msg"].replace("Input should be", "choose")
                remedy = _REMEDIES.get(kind, text.removeprefix("Value error, "))
                yield f"{path}: {_shown(value)}; {remedy}"


_BRANCHES = ("bool", "int", "float", "str", "[key]")

_KINDS = ("embedded", "imagefolder", "imagenet")

_QUOTED_KINDS = ", ".join(map(repr, _KINDS[:-1])) + f" or {_KINDS[-1]!r}"


def _unknown(key: str, names: Iterable[str], known: Iterable[str], kind: str) -> Iterator[str]:
    """Names that are none of the known ones."""
    for name in names:
        if name not in known:
            yield f"{key}: {_shown(name)} is {kind}; {choices_text(name, known)}"


def _too_many(key: str, number: int | None, most: int | None, limit: str) -> Iterator[str]:
    """A number above the limit that another key sets; None sets none."""
    if number is not None and most is not None and number > most:
        yield f"{key}: {number} is more than {limit} {most}; choose fewer"


def _too_large(key: str, length: Scalar, image_size: int) -> Iterator[str]:
    """A length in pixels that does not fit into the image."""
    if float(length) > image_size:
        yield (
            f"{key}: {_shown(length)} is larger than the image ({image_size} px); "
            "choose a smaller one"
        )


def _name_problems(params: Params) -> Iterator[str]:
    """Names that only case tells apart: one file, where the file system ignores it."""
    by_method: list[Collection[str]] = [*params.sweeps.values(), *params.search.values()]
    kinds: dict[str, list[str]] = {
        "models": [*params.models.names, *params.training],
        "methods": [*params.methods, *params.randomization.methods, *params.attribution.own],
        "sweeps and search": [name for names in by_method for name in names],
        "similarity.own": list(params.similarity.own),
    }
    for key, names in kinds.items():
        seen: dict[str, str] = {}
        for name in dict.fromkeys(names):
            if (other := seen.setdefault(name.lower(), name)) != name:
                yield f"{key}: {_shown(other)} and {_shown(name)} differ in case alone; rename one"


def _reference_problems(params: Params) -> Iterator[str]:
    """Names of methods, models and sweeps that are not there."""
    comparisons, randomization = params.comparisons, params.randomization
    methods, models = sorted(params.declared), params.models.names
    sweeps = [name for by_name in params.sweeps.values() for name in by_name]
    distance = [] if comparisons.distance is None else [comparisons.distance]
    references: list[tuple[str, Iterable[str], list[str], str]] = [
        ("methods", params.methods, methods, "no method"),
        ("comparisons.distance", distance, sweeps, "no sweep"),
        ("randomization.models", randomization.models or [], models, "no model"),
    ]
    for position, denoising in enumerate(comparisons.denoising):
        key = f"comparisons.denoising.{position}"
        references += [
            (f"{key}.towards", [denoising.towards], params.methods, "not in methods"),
            (f"{key}.sweep", [denoising.sweep], sweeps, "no sweep"),
        ]
    for section, named, known, kind in (
        ("comparisons.teaser", comparisons.teaser, methods, "no method"),
        ("randomization.methods", randomization.methods, methods, "no method"),
        ("randomization.units", randomization.units, models, "no model"),
        ("randomization.critical_units", randomization.critical_units, models, "no model"),
    ):
        references += [(f"{section}.{name}", [name], known, kind) for name in named]
    for method, searches in params.search.items():
        for name, search in searches.items() if method in params.methods else ():
            key = f"search.{method}.{name}.models"
            references.append((key, search.models or [], models, "no model of this study"))
    for key, names, known, kind in references:
        yield from _unknown(key, names, known, kind)
    for section, entries in (("sweeps", params.sweeps), ("search", params.search)):
        for method in entries:
            if method not in params.methods:
                entry = "sweeps" if section == "sweeps" else "searches"
                yield f"{section}.{method}: not in methods; add it there or remove its {entry}"


def _model_problems(params: Params, root: Path) -> Iterator[str]:
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
        if name in params.training:
            yield from _architecture_problems(name, params)
            yield from _recipe_problems(name, params.recipe(name), params, root)
            continue
        yield f"training.{name}: missing; add its recipe"
        if not name.endswith(ROBUST):
            yield from _unknown_architecture("models.regular", name, name)
    for name in params.training:
        if name not in params.models.names:
            yield f"training.{name}: no such model; add it to models or remove the recipe"


def _recipe_problems(name: str, recipe: Recipe, params: Params, root: Path) -> Iterator[str]:
    """Keys of training that do not go together, or not with the model."""
    key, architecture = f"training.{name}", params.architecture(name)
    yield from _given_problems(key, recipe, architecture)
    if recipe.pretrained is not None:
        yield from _pretrained_problems(f"{key}.pretrained", name, recipe.pretrained, params)
    if recipe.weights is not None:
        yield from _weights_problems(f"{key}.weights", recipe.weights, params, root)
        for part in _OF_FILES if (root / recipe.weights).is_dir() else ():
            if getattr(recipe, part) is not None:
                yield f"{key}.{part}: the folder's card has it; remove it"
    elif not recipe.is_given and recipe.epochs < 1:
        yield f"{key}.epochs: {recipe.epochs}; train at least 1, or name weights"
    if recipe.auxiliary_weight is not None and not (
        ":" in architecture or architecture in INPUT_TRANSFORMING
    ):
        yield (
            f"{key}.auxiliary_weight: {architecture} has no auxiliary heads, only "
            f"{' and '.join(INPUT_TRANSFORMING)}; remove it"
        )
    if recipe.flip and recipe.augmentation != "none":
        yield f"{key}.flip: augmentation {recipe.augmentation} flips; remove it"
    regular = name.removesuffix(ROBUST)
    if recipe.init_from is not None and (name == regular or recipe.init_from != regular):
        yield (
            f"{key}.init_from: {_shown(recipe.init_from)}; only a robust twin starts from its "
            f"regular one: remove it{'' if name == regular else f' or write {regular}'}"
        )
    if name != regular and not recipe.is_given and recipe.attack is None:
        yield f"{key}.attack: missing; a robust twin is trained under an attack"


# Keys that say how a weights file is to be read.
_OF_FILES = ("mean", "std", "transform_input", "checkpoint_key", "checkpoint_prefix")

# Keys of weights from elsewhere, and the sources that they go with.
_GO_WITH: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_OF_FILES, ("weights", "checkpoint")),
    "sha256": ("checkpoint",),
    "directory": ("pretrained",),
}


def _given_problems(key: str, recipe: Recipe, architecture: str) -> Iterator[str]:
    """Keys of weights from elsewhere that do not go together."""
    given = [name for name in Recipe.model_fields if getattr(recipe, name) is not None]
    sources = [source for source in SOURCES if source in given]
    if len(sources) > 1:
        yield f"{key}: both {' and '.join(sources)}; keep one of them"
    for part, allowed in _GO_WITH.items():
        if part in given and not {*allowed} & {*given}:
            yield (
                f"{key}.{part}: it goes with a weights file; remove it, or name "
                f"{' or '.join(allowed)}"
            )
    statistics = (recipe.mean, recipe.std) if recipe.mean and recipe.std else ([0.0], [1.0])
    if (problem := statistics_problem(*statistics)) is not None:
        part, _, rest = problem.partition(" is ")
        yield f"{key}.{part}: {rest}"
    for part, other in (("mean", "std"), ("std", "mean")):
        if {"weights", "checkpoint"} & {*given} and part in given and other not in given:
            yield f"{key}.{other}: missing; it goes with {part}: add it, or remove both"
    if recipe.transform_input and architecture not in INPUT_TRANSFORMING:
        yield (
            f"{key}.transform_input: {architecture} has none, only "
            f"{' and '.join(INPUT_TRANSFORMING)}; remove it"
        )
    scheme, separator, _ = (recipe.checkpoint or "").partition("://")
    if separator and scheme not in ("http", "https"):
        yield f"{key}.checkpoint: {_shown(recipe.checkpoint)}; write http, https or a path"
    elif separator and recipe.sha256 is None:
        yield f"{key}.sha256: missing; what is downloaded is checked: add it"


def _pretrained_problems(key: str, name: str, weights: str, params: Params) -> Iterator[str]:
    if weights not in PRETRAINED:
        yield from _unknown(key, [weights], PRETRAINED, "not known")
        return
    architecture = params.architecture(name)
    if name.endswith(ROBUST):
        yield f"{key}: torchvision's weights are not robust; name a checkpoint"
    elif ":" in architecture:
        yield f"{key}: torchvision has no weights for {architecture}; name a checkpoint"
    if isinstance(params.data, EmbeddedData):
        yield from _pretrained_classes(key, weights, "data.classes has", params.data.classes)


def _pretrained_classes(
    key: str, weights: str, where: str, classes: Sequence[str]
) -> Iterator[str]:
    """Another number of classes than torchvision's weights know."""
    if len(classes) != PRETRAINED[weights]:
        yield (
            f"{key}: {weights} knows {PRETRAINED[weights]} classes, {where} {len(classes)}; use "
            "data of ImageNet's classes, all of them in the list even where a folder holds a few"
        )


def _architecture_problems(name: str, params: Params) -> Iterator[str]:
    architecture, is_regular = params.architecture(name), not name.endswith(ROBUST)
    if ":" in architecture:
        return
    is_named = params.training[name].architecture is not None
    if is_named or is_regular:
        key = f"training.{name}.architecture" if is_named else "models.regular"
        yield from _unknown_architecture(key, name, architecture)
    least = ARCHITECTURES.get(architecture, 0)
    if params.data.image_size < least and is_regular:
        yield (
            f"data.image_size: {params.data.image_size} is below the {least} px that "
            f"{architecture} takes; enlarge it"
        )


def _unknown_architecture(key: str, name: str, architecture: str) -> Iterator[str]:
    remedy = f"for one of your own write training.{name}.architecture: module:function"
    for problem in _unknown(key, [architecture], sorted(ARCHITECTURES), "no architecture"):
        yield f"{problem}; {remedy}"


def _weights_problems(key: str, weights: str, params: Params, root: Path) -> Iterator[str]:
    path = root / weights
    if path.is_file():
        if path.suffix not in (".safetensors", ".pt", ".pth"):
            yield f"{key}: {_shown(weights)}; a weights file ends in .safetensors, .pt or .pth"
        return
    if not path.is_dir():
        yield (
            f"{key}: {_shown(weights)} is neither a weights file nor a folder; name a state dict "
            "(.safetensors, .pt), a folder with card.json and weights.safetensors, or null to train"
        )
        return
    try:
        classes = json.loads((path / "card.json").read_text())["classes"]
    except (OSError, ValueError, KeyError) as error:
        yield f"{key}: {_shown(weights)} has no readable card.json ({error}); train it here (null)"
        return
    if isinstance(params.data, EmbeddedData):
        yield from _other_classes(key, weights, classes, "data.classes has", params.data.classes)


def _other_classes(
    key: str, weights: str, known: Sequence[str], where: str, classes: Sequence[str]
) -> Iterator[str]:
    """Other classes than finished weights know."""
    if list(known) != list(classes):
        yield (
            f"{key}: {_shown(weights)} knows {len(known)} classes, {where} {len(classes)}; "
            "use the same classes in the same order"
        )


def _custom_problems(params: Params) -> Iterator[str]:
    """Import custom methods and metrics; those that can't be used."""
    sections: list[tuple[str, Mapping[str, str], Callable[[str, str], Any]]] = [
        ("attribution.own", params.attribution.own, plugins.register),
        ("similarity.own", params.similarity.own, plugins.metric),
    ]
    for key, paths, load in sections:
        for name, path in paths.items():
            try:
                load(name, path)
            except plugins.OwnError as error:
                yield f"{key}.{name}: {_shown(path)}; {error}"


@dataclass(frozen=True)
class _MethodChecks:
    """Checks of what params say of one method.

    Attributes
    ----------
    spec : Method
        Its declaration.
    image_size : int
        Side of the images, px: no length may exceed it.
    """

    spec: Method
    image_size: int

    def _unknown(self, key: str, name: str) -> Iterator[str]:
        kind = f"no hyperparameter of {self.spec.name}"
        yield from _unknown(key, [name], sorted(self.spec.hyperparameters), kind)

    def value(self, key: str, name: str, value: Scalar) -> Iterator[str]:
        """A value that its hyperparameter, which the method has, can't take."""
        hyperparameter = self.spec.hyperparameters[name]
        try:
            hyperparameter.check(name, value)
        except HyperparameterError as error:
            yield f"{key}: {_shown(value)}; {error.remedy}"
            return
        if hyperparameter.in_pixels:
            yield from _too_large(key, value, self.image_size)

    def values(self, key: str, values: Mapping[str, Scalar]) -> Iterator[str]:
        """Values by hyperparameter that the method does not take."""
        for name, value in values.items():
            yield from self._unknown(f"{key}.{name}", name)
            if name in self.spec.hyperparameters:
                yield from self.value(f"{key}.{name}", name, value)

    def conflicts(self, key: str, given: Mapping[str, Scalar]) -> Iterator[str]:
        """Conflicts between values; single wrong values are reported by `value`."""
        try:
            self.spec.effective(given)
        except ConflictError as error:
            yield f"{key}: {error}"
        except HyperparameterError:
            return

    def setting(self, key: str, sweep: Sweep) -> Iterator[str]:
        """Names and values of a sweep that the method does not take."""
        known, varied = self.spec.hyperparameters, sweep.vary
        assert varied is not None
        yield from self._unknown(f"{key}.vary", varied)
        yield from self.values(f"{key}.fixed", sweep.fixed)
        for value in sweep.values if varied in known else ():
            problems = list(self.value(f"{key}.values", varied, value))
            yield from problems
            if not problems and set(sweep.fixed) <= set(known):
                yield from self.conflicts(key, {**sweep.fixed, varied: value})

    def sweep(self, key: str, name: str, sweep: Sweep) -> Iterator[str]:
        """Problems of a sweep, of which one hyperparameter varies."""
        if sweep.vary is None:
            yield from self.lone(key, name, sweep)
            return
        if name == "default":
            yield f"{key}: 'default' names the setting of methods without sweeps; rename it"
        if len(sweep.values) < 2:
            yield f"{key}.values: {_shown(sweep.values)}; name at least 2"
        if sweep.reference is None:
            yield f"{key}.reference: missing; name the value that the others are compared with"
            return
        if sweep.reference not in sweep.values:
            yield (
                f"{key}.reference: {_shown(sweep.reference)} is not in values "
                f"{_shown(sweep.values)}; choose one of them"
            )
        if sweep.vary in sweep.fixed:
            yield f"{key}.fixed.{sweep.vary}: it is varied; remove it from fixed"
        yield from self.setting(key, sweep)

    def lone(self, key: str, name: str, sweep: Sweep) -> Iterator[str]:
        """Problems of a setting of a method without sweeps."""
        if name != "default":
            yield f"{key}.vary: missing; name a hyperparameter, or call a lone setting 'default'"
        for part in ("values", "reference"):
            if getattr(sweep, part) not in ([], None):
                yield f"{key}.{part}: nothing varies; remove it, or name what does in vary"
        yield from self.values(f"{key}.fixed", sweep.fixed)
        yield from self.conflicts(key, sweep.fixed)

    def search(self, key: str, search: Search) -> Iterator[str]:
        """Problems of a search's axes; where there are none, of its points."""
        problems = list(self._axes(key, search))
        yield from problems or self._points(key, search)

    def _axes(self, key: str, search: Search) -> Iterator[str]:
        for name in search.hyperparameters:
            yield from self._unknown(f"{key}.hyperparameters.{name}", name)
        yield from self.values(f"{key}.fixed", search.fixed)
        yield from self.values(f"{key}.reference", search.reference)
        for name, axis in search.hyperparameters.items():
            if name in search.fixed:
                yield f"{key}.fixed.{name}: it is searched; remove it from fixed"
            if name in self.spec.hyperparameters:
                yield from self._axis(f"{key}.hyperparameters.{name}", name, axis)

    def _axis(self, key: str, name: str, axis: Axis) -> Iterator[str]:
        declared = self.spec.hyperparameters[name]
        if axis.choices is not None:
            if axis.log or {axis.low, axis.high, axis.step} != {None}:
                yield f"{key}: both choices and a range; keep one of them"
            if len(axis.choices) < 2:
                yield f"{key}.choices: {_shown(axis.choices)}; name at least 2, or move it to fixed"
            for value in axis.choices:
                yield from self.value(f"{key}.choices", name, value)
        elif declared.type is str:
            yield f"{key}: words have no range; write choices: [{', '.join(declared.choices)}]"
        elif axis.low is None or axis.high is None:
            end = "low" if axis.low is None else "high"
            yield f"{key}.{end}: missing; write low and high, or choices"
        else:
            yield from self.value(f"{key}.low", name, axis.low)
            yield from self.value(f"{key}.high", name, axis.high)
            yield from _range_problems(key, axis, axis.low, axis.high, declared.type)

    def _points(self, key: str, search: Search) -> Iterator[str]:
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
        for name, declared in self.spec.hyperparameters.items():
            if name not in given and declared.in_pixels and declared.default > self.image_size:
                yield (
                    f"{key}.reference.{name}: missing; its default {_shown(declared.default)} is "
                    f"larger than the image ({self.image_size} px): add it"
                )


def _range_problems(key: str, axis: Axis, low: float, high: float, kind: type) -> Iterator[str]:
    if low >= high:
        yield f"{key}.low: {_shown(low)} is not below high {_shown(high)}; swap or widen"
    if axis.log and low <= 0:
        yield f"{key}.low: {_shown(low)}; a log range begins above 0"
    if axis.step is None:
        return
    shown = f"{key}.step: {_shown(axis.step)}"
    if axis.log:
        yield f"{shown}; a log range has no step, remove one of them"
    if axis.step <= 0 or axis.step > high - low > 0:
        yield f"{shown}; choose more than 0, at most high - low"
    if kind is int and not isinstance(axis.step, int):
        yield f"{shown}; write a whole number"


def _checks(params: Params, *, named_in_methods: bool = True) -> dict[str, _MethodChecks]:
    """Checks by method, of those that are declared and perhaps named in `methods`."""
    return {
        name: _MethodChecks(spec, params.data.image_size)
        for name, spec in params.declared.items()
        if name in params.methods or not named_in_methods
    }


def _sweep_problems(params: Params) -> Iterator[str]:
    owners: dict[str, str] = {}
    checks = _checks(params)
    for method, sweeps in params.sweeps.items():
        for name, sweep in sweeps.items() if method in checks else ():
            key = f"sweeps.{method}.{name}"
            if name in owners:
                yield f"{key}: {name} is a sweep of {owners[name]} too; rename one"
            if name != "default":
                owners[name] = method
            yield from checks[method].sweep(key, name, sweep)


def _search_problems(params: Params) -> Iterator[str]:
    sweeps = {name for by_name in params.sweeps.values() for name in by_name} | {"default"}
    owners: dict[str, str] = {}
    checks = _checks(params)
    for method, searches in params.search.items():
        for name, search in searches.items() if method in checks else ():
            key = f"search.{method}.{name}"
            if name in sweeps:
                yield f"{key}: {name} is the name of a sweep too; rename one"
            if name in owners:
                yield f"{key}: {name} is a search of {owners[name]} too; rename one"
            owners[name] = method
            if search.models == []:
                yield f"{key}.models: empty; name a model, or remove the key for all of them"
            if search.objective == "cheapest" and search.tau is None:
                yield f"{key}.tau: missing; add the SSIM that a setting must reach, such as 0.95"
            if search.objective != "cheapest" and search.tau is not None:
                yield f"{key}.tau: unused by objective {search.objective}; remove it"
            yield from checks[method].search(key, search)


def _comparison_problems(params: Params) -> Iterator[str]:
    comparisons, checks = params.comparisons, _checks(params, named_in_methods=False)
    for part in ("object_sizes", "patch_sizes") if comparisons.object_size else ():
        for value in getattr(comparisons.object_size, part):
            yield from _too_large(f"comparisons.object_size.{part}", value, params.data.image_size)
    for method, sweep in comparisons.teaser.items():
        key = f"comparisons.teaser.{method}"
        if method in checks and (sweep.vary is None or not sweep.values):
            yield f"{key}.vary: missing; name the hyperparameter whose values are shown"
        elif method in checks:
            yield from checks[method].setting(key, sweep)


def _randomization_problems(params: Params) -> Iterator[str]:
    section, checks = params.randomization, _checks(params, named_in_methods=False)
    for method, method_params in section.methods.items():
        key, values = f"randomization.methods.{method}", method_params.hyperparameters
        if method in checks:
            yield from checks[method].values(f"{key}.hyperparameters", values)
            yield from checks[method].conflicts(key, values)
        for part in ("n_images", "n_draws"):
            number, most = getattr(method_params, part), getattr(section, part)
            yield from _too_many(f"{key}.{part}", number, most, "the section's")


def _data_problems(data: Data) -> Iterator[str]:
    if isinstance(data, (FolderData, ImagenetData)):
        preset = PRESETS.get(data.preprocessing)
        if preset is None:
            yield from _unknown("data.preprocessing", [data.preprocessing], PRESETS, "no preset")
        elif preset.crop not in (None, data.image_size):
            yield (
                f"data.image_size: {data.image_size}, but {data.preprocessing} makes "
                f"{preset.crop} px; write {preset.crop}, or choose another preprocessing"
            )


def _other_problems(params: Params) -> Iterator[str]:
    similarity, size, n_val = params.similarity, params.data.image_size, params.data.n_val
    if similarity.win_size % 2 == 0:
        yield f"similarity.win_size: {similarity.win_size} is even; choose an odd window"
    yield from _too_large("similarity.win_size", similarity.win_size, size)
    if similarity.hog_cell * 3 > size:
        yield (
            f"similarity.hog_cell: {similarity.hog_cell} leaves fewer than 3 cells in "
            f"{size} px; choose at most {size // 3}"
        )
    if params.accuracy.alpha not in ALPHAS:
        yield (
            f"accuracy.alpha: {params.accuracy.alpha:g} is none of the thresholds that are "
            f"measured; choose one of {', '.join(f'{alpha:g}' for alpha in ALPHAS)}"
        )
    if "common" not in similarity.conventions:
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
    n_robust, randomization = params.robust_accuracy.n_images, params.randomization
    n_randomized = randomization.n_images if randomization.methods else None
    for key, number, most, limit in (
        ("evaluation_set", chosen.n_images, n_val, "data.n_val"),
        ("robust_accuracy", n_robust, n_val, "data.n_val"),
        ("randomization", n_randomized, chosen.size, "evaluation_set.n_images"),
    ):
        yield from _too_many(f"{key}.n_images", number, most, limit)
    for method, number in chosen.of_methods.items():
        key = f"evaluation_set.of_methods.{method}"
        yield from _unknown(key, [method], params.methods, "no method of the study")
        yield from _too_many(key, number, n_val, "data.n_val")


def _plan_problems(params: Params) -> Iterator[str]:
    used = {params.architecture(name) for name in params.models.names if name in params.training}
    for name in params.plan.throughput:
        kind = "an architecture of no model"
        yield from _unknown(f"plan.throughput.{name}", [name], sorted(used), kind)
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


def section_of(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section as it stands; empty where there is none, or no mapping in its place."""
    found = values.get(name)
    return found if isinstance(found, Mapping) else {}


def defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values that params leave out and that depend on what they say, as an overlay.

    A method without sweeps has none, a HOG cell is a sixteenth of the image's side, and no default
    asks for more images than there are.
    """
    section = partial(section_of, values)
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
            # Randomized parameters explain images of the evaluation set.
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
        *_engine_problems(params.engine),
    ]
    if not problems:
        # Own code comes with torch, which a typo elsewhere need not wait for.
        problems += _custom_problems(params)
    if problems and (params.attribution.own or params.similarity.own):
        # What is said of methods below rests on their declarations.
        raise ParamsError(_message(source, problems))
    problems += [
        *_reference_problems(params),
        *_sweep_problems(params),
        *_search_problems(params),
        *_comparison_problems(params),
        *_randomization_problems(params),
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
    default = {method: {"default": Sweep()} for method in answers}

    def completed(entry: E, method: str, key: str, others: Collection[str | None] = ()) -> E:
        """Sweep, search or randomized method whose values at `key` the protocol completes."""
        answered = {n: v for n, v in answers.get(method, {}).items() if n not in others}
        return entry.model_copy(update={key: {**answered, **getattr(entry, key)}})

    sweeps = {
        method: {
            name: completed(sweep, method, "fixed", [sweep.vary])
            for name, sweep in (by_name or default.get(method, {})).items()
        }
        for method, by_name in params.sweeps.items()
    }
    searches = {
        method: {
            name: completed(search, method, "fixed", search.hyperparameters)
            for name, search in by_name.items()
        }
        for method, by_name in params.search.items()
    }
    methods = {
        method: completed(entry, method, "hyperparameters")
        for method, entry in params.randomization.methods.items()
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

    Parameters
    ----------
    model, recipe
        Name of a model and its section of `training`.
    classes
        Classes of the data.
    n_train
        Number of training images.
    root
        Folder that paths in params are relative to.

    Raises
    ------
    ParamsError
        Where finished weights know other classes, or there is nothing to train on.
    """
    key, problems = f"training.{model}", list[str]()
    if recipe.pretrained is not None:
        key, weights = f"{key}.pretrained", recipe.pretrained
        problems += _pretrained_classes(key, weights, "the data have", classes)
        are_wnids = all(re.fullmatch(r"n\d{8}", name) for name in classes)
        if are_wnids and list(classes) != sorted(classes):
            problems.append(
                f"{key}: {weights} numbers classes by sorted wnid, the data don't; sort their "
                "list of classes"
            )
    elif not recipe.is_given and n_train < 1:
        problems.append(
            f"{key}.weights: null, but the data hold no training images; name finished weights, "
            "or let data.val_fraction leave some to train on"
        )
    elif recipe.weights is not None and not (root / recipe.weights).is_file():
        known = json.loads((root / recipe.weights / "card.json").read_text())["classes"]
        problems += _other_classes(
            f"{key}.weights", recipe.weights, known, "the data have", classes
        )
    if problems:
        raise ParamsError("\n".join(problems))


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
