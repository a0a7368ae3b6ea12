"""Params files: read, checked, completed, written of a profile; their JSON schema."""

import json
import math
import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from steadymap.params.checks import defaults, overlay, section_of, validate
from steadymap.params.methods import ROBUST, choices_text
from steadymap.params.scaling import scaled
from steadymap.params.schema import SOURCES, Params, ParamsError, duplicates


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice, and reads 1e-4 as a number."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in duplicates(keys):
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


def inherited(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Part of `base` that applies to a profile: what it says of other things is left out.

    Another kind of data keeps size and seed alone, and asks for no more images than it has. Recipes
    of other models go, and how to train one whose weights are given; sweeps, searches and
    comparisons of methods that are not named go too.
    """
    kept, after = deepcopy(dict(base)), overlay(base, changes)
    data = section_of(changes, "data")
    if data.get("kind", kept["data"]["kind"]) != kept["data"]["kind"]:
        kept["data"] = {key: kept["data"][key] for key in ("image_size", "seed")}
    for name in ("robust_accuracy", "evaluation_set"):
        if isinstance(n_val := data.get("n_val"), int):
            kept[name]["n_images"] = min(kept[name]["n_images"], n_val)
    models, given = section_of(after, "models"), section_of(changes, "training")
    names = [*(models.get("regular") or []), *(f"{n}{ROBUST}" for n in models.get("robust") or [])]
    kept["training"] = {
        name: {} if set(section_of(given, name)) & set(SOURCES) else recipe
        for name, recipe in kept["training"].items()
        if name in names
    }
    methods = after.get("methods") or []
    for section in ("sweeps", "search"):
        kept[section] = {m: made for m, made in kept[section].items() if m in methods}
    left = overlay({"sweeps": kept["sweeps"]}, {"sweeps": section_of(changes, "sweeps")})["sweeps"]
    sweeps = {name for method in left for name in section_of(left, method)}
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

    Parameters
    ----------
    text
        Content of the file.
    root
        Folder that paths in params are relative to.
    source
        Name of the file, for errors.

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

    `embedded.yaml` is complete and comes with its comments. Every other profile is an overlay: on
    what applies of it, or, with a key `base: {profile: NAME, image_size: N}`, of another profile
    whose lengths are scaled to images of N px.

    Raises
    ------
    ParamsError
        Where there is no such profile, or what it makes is not valid.
    """
    folder = Path(folder)
    if name == "embedded":
        text = (folder / "embedded.yaml").read_text()
    else:
        values, base = _profile_values(name, folder)
        text = yaml.safe_dump(values, sort_keys=False, width=100)
        text = f"# Written by `make profile P={name}`: {base} with {name}.yaml over it.\n{text}"
    text = SCHEMA_LINE + text
    validate(yaml.load(text, Loader=_Loader), root=folder.parent, source=f"profile {name}")
    return text


def _profile_values(name: str, folder: Path) -> tuple[dict[str, Any], str]:
    """Whole params of a profile, and what it lies over."""
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in known:
        raise ParamsError(f"profile {name!r}: there is none; {choices_text(name, known)}")
    changes = read_yaml(folder / f"{name}.yaml") or {}
    if not isinstance(changes, Mapping):
        raise ParamsError(f"profile {name}: not a mapping of keys; write study: {name}")
    if name == "embedded":
        return dict(changes), "embedded.yaml"
    changes = dict(changes)
    given = changes.pop("base", {"profile": "embedded"})
    if not isinstance(given, Mapping) or not {"profile"} <= {*given} <= {"profile", "image_size"}:
        raise ParamsError(
            f"profile {name}: base is {given!r}; write {{profile: NAME, image_size: N}}"
        )
    below, _ = _profile_values(given["profile"], folder)
    source = f"{given['profile']}.yaml"
    if size := given.get("image_size"):
        below, source = scaled(below, size), f"{source} scaled to {size} px"
    return _without_nulls(overlay(inherited(below, changes), changes), changes, below), source
