"""Checks of params across sections; each problem names key, value and remedy."""

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from steadymap.params import plugins
from steadymap.params.methods import (
    ALPHAS,
    ARCHITECTURES,
    CLASSES,
    INPUT_TRANSFORMING,
    PRESETS,
    PRETRAINED,
    PROTOCOLS,
    ROBUST,
    SAM_MODELS,
    ConflictError,
    HyperparameterError,
    Method,
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
    Recipe,
    RobustAccuracy,
    Scalar,
    Search,
    Sweep,
    architecture_of,
)

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
        if problem["type"] == REPEATED:
            for value in problem["ctx"]["values"]:
                yield f"{path}: {_shown(value)} stands twice; name it once"
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


def choices_text(value: str, known: list[str]) -> str:
    """Known values as text, the closest to `value` named."""
    close = get_close_matches(value, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known are {', '.join(known)}"


def _unknown(key: str, value: str, kind: str, known: list[str]) -> str:
    return f"{key}: {_shown(value)} is {kind}; {choices_text(value, known)}"


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
            yield from _given_problems(name, params.recipe(name), params)
            yield from _recipe_problems(name, params.recipe(name), params, root)
            continue
        yield f"training.{name}: missing; add its recipe"
        if name not in ARCHITECTURES and not name.endswith(ROBUST):
            yield _unknown_architecture("models.regular", name, name)
    for name in params.training:
        if name not in params.models.names:
            yield f"training.{name}: no such model; add it to models or remove the recipe"


def _recipe_problems(name: str, recipe: Recipe, params: Params, root: Path) -> Iterator[str]:
    """Keys of training that do not go together, or not with the model."""
    key, architecture = f"training.{name}", params.architecture(name)
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
    if recipe.init_from is not None and not (name != regular and recipe.init_from == regular):
        yield (
            f"{key}.init_from: {_shown(recipe.init_from)}; only a robust twin starts from its "
            f"regular one: remove it{'' if name == regular else f' or write {regular}'}"
        )
    if name != regular and not recipe.is_given and recipe.attack is None:
        yield f"{key}.attack: missing; a robust twin is trained under an attack"


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
    if recipe.pretrained is not None:
        yield from _pretrained_problems(f"{key}.pretrained", name, recipe.pretrained, params)


def _pretrained_problems(key: str, name: str, weights: str, params: Params) -> Iterator[str]:
    if weights not in PRETRAINED:
        yield _unknown(key, weights, "not known", list(PRETRAINED))
        return
    architecture = params.architecture(name)
    if name.endswith(ROBUST):
        yield f"{key}: torchvision's weights are not robust; name a checkpoint"
    elif ":" in architecture:
        yield f"{key}: torchvision has no weights for {architecture}; name a checkpoint"
    n_classes = PRETRAINED[weights]
    if isinstance(params.data, EmbeddedData) and len(params.data.classes) != n_classes:
        yield (
            f"{key}: {weights} knows {n_classes} classes, data.classes has "
            f"{len(params.data.classes)}; use data of ImageNet's classes"
        )


def _is_address(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def _architecture_problems(name: str, params: Params) -> Iterator[str]:
    architecture = params.architecture(name)
    if ":" in architecture:
        return
    is_named = params.training[name].architecture is not None
    key = f"training.{name}.architecture" if is_named else "models.regular"
    if architecture not in ARCHITECTURES and (is_named or not name.endswith(ROBUST)):
        yield _unknown_architecture(key, name, architecture)
    least = ARCHITECTURES.get(architecture, 0)
    if params.data.image_size < least and not name.endswith(ROBUST):
        yield (
            f"data.image_size: {params.data.image_size} is below the {least} px that "
            f"{architecture} takes; enlarge it"
        )


def _unknown_architecture(key: str, name: str, found: str) -> str:
    return (
        f"{key}: {_shown(found)} is no architecture; {choices_text(found, sorted(ARCHITECTURES))}; "
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


def _sweep_problems(params: Params) -> Iterator[str]:
    known = params.declared
    for name in params.methods:
        if name not in known:
            yield _unknown("methods", name, "no method", sorted(known))
    owners: dict[str, str] = {}
    for method, sweeps in params.sweeps.items():
        if method not in params.methods:
            yield f"sweeps.{method}: not in methods; add it there or remove its sweeps"
            continue
        for name, sweep in sweeps.items() if method in known else ():
            key = f"sweeps.{method}.{name}"
            if name in owners:
                yield f"{key}: {name} is a sweep of {owners[name]} too; rename one"
            if name != "default":
                owners[name] = method
            check = _lone_problems if sweep.vary is None else _varied_problems
            yield from check(key, name, sweep, known[method], params.data.image_size)


def _varied_problems(
    key: str, name: str, sweep: Sweep, spec: Method, image_size: int
) -> Iterator[str]:
    """Problems of a sweep, of which one hyperparameter varies."""
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
    yield from _setting_problems(key, sweep, spec, image_size)


def _setting_problems(key: str, sweep: Sweep, spec: Method, image_size: int) -> Iterator[str]:
    """Names and values of a sweep that its method does not take."""
    known = spec.hyperparameters
    assert sweep.vary is not None
    if sweep.vary not in known:
        yield _unknown(f"{key}.vary", sweep.vary, _none_of(spec), sorted(known))
    yield from _fixed_problems(f"{key}.fixed", sweep.fixed, spec, image_size)
    for value in sweep.values if sweep.vary in known else ():
        problems = list(_value_problems(f"{key}.values", sweep.vary, value, spec, image_size))
        yield from problems
        if not problems and set(sweep.fixed) <= set(known):
            yield from _conflicts(key, spec, {**sweep.fixed, sweep.vary: value})


def _lone_problems(
    key: str, name: str, sweep: Sweep, spec: Method, image_size: int
) -> Iterator[str]:
    """Problems of a setting of a method without sweeps."""
    if name != "default":
        yield f"{key}.vary: missing; name a hyperparameter, or call a lone setting 'default'"
    for part in ("values", "reference"):
        if getattr(sweep, part) not in ([], None):
            yield f"{key}.{part}: nothing varies; remove it, or name what does in vary"
    yield from _fixed_problems(f"{key}.fixed", sweep.fixed, spec, image_size)
    yield from _conflicts(key, spec, sweep.fixed)


def _none_of(spec: Method) -> str:
    return f"no hyperparameter of {spec.name}"


def _fixed_problems(
    key: str, values: Mapping[str, Scalar], spec: Method, image_size: int
) -> Iterator[str]:
    """Values by hyperparameter that a method does not take."""
    for name, value in values.items():
        if name in spec.hyperparameters:
            yield from _value_problems(f"{key}.{name}", name, value, spec, image_size)
        else:
            known = sorted(spec.hyperparameters)
            yield _unknown(f"{key}.{name}", name, _none_of(spec), known)


def _conflicts(key: str, spec: Method, given: Mapping[str, Scalar]) -> Iterator[str]:
    """Conflicts between values; single wrong values are reported by `_value_problems`."""
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
                    kind = "no model of this study"
                    yield _unknown(f"{key}.models", model, kind, params.models.names)
            if search.models is not None and not search.models:
                yield f"{key}.models: empty; name a model, or remove the key for all of them"
            if search.objective == "cheapest" and search.tau is None:
                yield f"{key}.tau: missing; add the SSIM that a setting must reach, such as 0.95"
            if search.objective != "cheapest" and search.tau is not None:
                yield f"{key}.tau: unused by objective {search.objective}; remove it"
            spoiled = list(_axes_problems(key, search, known[method], params.data.image_size))
            yield from spoiled
            if not spoiled:
                yield from _points_problems(key, search, known[method], params.data.image_size)


def _comparison_problems(params: Params) -> Iterator[str]:
    comparisons, known = params.comparisons, params.declared
    sweeps = [name for by_name in params.sweeps.values() for name in by_name]
    size = params.data.image_size
    for position, denoising in enumerate(comparisons.denoising):
        key = f"comparisons.denoising.{position}"
        if denoising.towards not in params.methods:
            yield _unknown(f"{key}.towards", denoising.towards, "not in methods", params.methods)
        if denoising.sweep not in sweeps:
            yield _unknown(f"{key}.sweep", denoising.sweep, "no sweep", sweeps)
    if comparisons.distance is not None and comparisons.distance not in sweeps:
        yield _unknown("comparisons.distance", comparisons.distance, "no sweep", sweeps)
    if comparisons.object_size is not None:
        for part in ("object_sizes", "patch_sizes"):
            for value in getattr(comparisons.object_size, part):
                if value > size:
                    yield (
                        f"comparisons.object_size.{part}: {value} is larger than the image "
                        f"({size} px); choose a smaller one"
                    )
    for method, sweep in comparisons.teaser.items():
        key = f"comparisons.teaser.{method}"
        if method not in known:
            yield _unknown(key, method, "no method", sorted(known))
        elif sweep.vary is None or not sweep.values:
            yield f"{key}.vary: missing; name the hyperparameter whose values are shown"
        else:
            yield from _setting_problems(key, sweep, known[method], size)


def _randomization_problems(params: Params) -> Iterator[str]:
    section, names, known = params.randomization, params.models.names, params.declared
    n_images = params.evaluation_set.n_images
    for method, method_params in section.methods.items():
        key = f"randomization.methods.{method}"
        if method not in known:
            yield _unknown(key, method, "no method", sorted(known))
            continue
        spec, size = known[method], params.data.image_size
        values = method_params.hyperparameters
        yield from _fixed_problems(f"{key}.hyperparameters", values, spec, size)
        yield from _conflicts(key, spec, values)
        for part in ("n_images", "n_draws"):
            number, most = getattr(method_params, part), getattr(section, part)
            if number is not None and number > most:
                yield f"{key}.{part}: {number} is more than the section's {most}"
    if section.methods and section.n_images > n_images:
        yield (
            f"randomization.n_images: {section.n_images} is more than evaluation_set.n_images "
            f"{n_images}; choose fewer"
        )
    for part in ("units", "critical_units"):
        for model in getattr(section, part):
            if model not in names:
                yield f"randomization.{part}.{model}: no such model; {choices_text(model, names)}"
    for model in section.models or []:
        if model not in names:
            yield _unknown("randomization.models", model, "no model", names)


def _axes_problems(key: str, search: Search, spec: Method, image_size: int) -> Iterator[str]:
    for name in search.hyperparameters:
        if name not in spec.hyperparameters:
            known = sorted(spec.hyperparameters)
            yield _unknown(f"{key}.hyperparameters.{name}", name, _none_of(spec), known)
    for part, values in (("fixed", search.fixed), ("reference", search.reference)):
        yield from _fixed_problems(f"{key}.{part}", values, spec, image_size)
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
            yield _unknown("data.preprocessing", data.preprocessing, "no preset", list(PRESETS))
        elif preset.crop not in (None, data.image_size):
            yield (
                f"data.image_size: {data.image_size}, but {data.preprocessing} makes "
                f"{preset.crop} px; write {preset.crop}, or choose another preprocessing"
            )
        return
    for name in data.classes:
        if name not in CLASSES:
            yield _unknown("data.classes", name, "no class", list(CLASSES))


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
                f"{choices_text(name, sorted(used))}"
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
    ]
    if not problems:
        # Own code comes with torch, which a typo elsewhere need not wait for.
        problems += _custom_problems(params)
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
