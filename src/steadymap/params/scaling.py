"""Params of a study on images of another size: lengths keep their share of the image.

What grows with the image's side: hyperparameters that are lengths and those that depend on one
(`side_power` in methods.yaml), the cell of HOG, the objects and patches of the object-size
comparison, and L2 attacks, whose norm grows with the side at the same change per pixel. What stays:
SSIM's window, numbers of samples and steps, and changes per pixel (noise, linf attacks).
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

from steadymap.params.methods import METHODS, PROTOCOLS, whole_pixels


def scaled_values(values: Sequence[Any], reference: Any, scale: Callable[[Any], Any]) -> list[Any]:
    """Values of a sweep, scaled; different ones stay different.

    Whole numbers that would coincide lie 1 apart, counted from the reference's: no grid is finer
    than a pixel.

    Parameters
    ----------
    values : sequence
        Values swept, the reference among them.
    reference : object
        The value with which the others are compared.
    scale : callable
        From a value to the scaled one.
    """
    made = {value: scale(value) for value in values}
    whole = all(isinstance(value, int) for value in made.values())
    if whole and len(set(made.values())) < len(made):
        ordered = sorted(values)
        at = ordered.index(reference)
        for lower, higher in zip(ordered[at:], ordered[at + 1 :], strict=False):
            made[higher] = max(made[higher], made[lower] + 1)
        for higher, lower in zip(ordered[at::-1], ordered[:at][::-1], strict=False):
            made[lower] = min(made[lower], made[higher] - 1)
    return [made[value] for value in values]


class _Scale:
    """Scales settings, sweeps and attacks to images whose sides are larger by a factor."""

    def __init__(self, factor: float, protocol: str | None):
        self.factor = factor
        self.given = PROTOCOLS.get(protocol or "", {})

    def setting(self, method: str, setting: Mapping[str, Any], varied: str = "") -> dict[str, Any]:
        """Hyperparameters, those left out among them whose default does not stay."""
        declared, protocol = METHODS[method].hyperparameters, self.given.get(method, {})
        made = {name: declared[name].scaled(value, self.factor) for name, value in setting.items()}
        for name, hyperparameter in declared.items():
            default = protocol.get(name, hyperparameter.default)
            other = hyperparameter.scaled(default, self.factor)
            if name not in made and name != varied and other != default:
                made[name] = other
        return made

    def sweep(self, method: str, sweep: Mapping[str, Any]) -> dict[str, Any]:
        """A sweep's values, reference and fixed hyperparameters."""
        varied, before = METHODS[method].hyperparameters[sweep["vary"]], sweep["values"]
        values = scaled_values(
            before, sweep["reference"], lambda value: varied.scaled(value, self.factor)
        )
        made = {**sweep, "values": values}
        made["reference"] = values[before.index(sweep["reference"])]
        if fixed := self.setting(method, sweep.get("fixed", {}), sweep["vary"]):
            made["fixed"] = fixed
        return made

    def lengths(self, section: dict[str, Any], *names: str) -> None:
        """Lengths of a section, px, in place; its lists of lengths too."""
        for name in names:
            if isinstance(lengths := section.get(name), list):
                section[name] = [whole_pixels(length * self.factor) for length in lengths]
            elif lengths is not None:
                section[name] = max(1, whole_pixels(lengths * self.factor))


def scaled(params: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    """Params for images of another size, on which everything has its share of the image.

    Searches are left out, since their ranges are no protocol's.

    Parameters
    ----------
    params : mapping
        Whole params, as a profile makes them.
    image_size : int
        Side of the new images, px.

    Returns
    -------
    dict
        New params; those given stay as they are.
    """
    made: dict[str, Any] = deepcopy(dict(params)) | {"search": {}}
    scale = _Scale(image_size / made["data"]["image_size"], made.get("protocol"))
    made["data"]["image_size"] = image_size
    for sections in (made["sweeps"], {"": made["comparisons"].get("teaser", {})}):
        for method, sweeps in sections.items():
            for name, sweep in sweeps.items():
                sweeps[name] = scale.sweep(method or name, sweep)
    for method, entry in made["randomization"].get("methods", {}).items():
        entry["hyperparameters"] = scale.setting(method, entry.get("hyperparameters", {}))
    scale.lengths(made["similarity"], "hog_cell")
    if objects := made["comparisons"].get("object_size"):
        scale.lengths(objects, "object_sizes", "patch_sizes", "stride")
    attacks = [recipe.get("attack") for recipe in made["training"].values()]
    for attack in filter(None, [*attacks, made["robust_accuracy"]]):
        if attack["norm"] == "l2":
            attack |= {name: attack[name] * scale.factor for name in ("eps", "step_size")}
    return made
