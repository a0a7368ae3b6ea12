"""Conversion of foreign weights to the names of our networks, whole or not at all."""

import logging
import re
import shutil
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
import torchvision
from torch import Tensor, nn

from steadymap.data.dataset import Dataset
from steadymap.models.registry import build, load_state, read_state, source_sha256
from steadymap.params.methods import INPUT_TRANSFORMING, ROBUST
from steadymap.params.schema import Recipe, architecture_of
from steadymap.store.atomic import file_sha256, read_json, write_json
from steadymap.training.downloads import check_file, download
from steadymap.training.torch_files import CheckpointError, naming, read_checkpoint, same_bits

logger = logging.getLogger(__name__)

_HEADS = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}

_COUNTER = "num_batches_tracked"

# torchvision's transform_input undoes these statistics and applies .5 and .5.
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass
class Layout:
    """Weights under the names of the network, and how they got them.

    Attributes
    ----------
    tensors : dict of str to Tensor
        By the network's names.
    origin : dict of str to str
        The name that each has in the file.
    rules : list of dict
        `rule`, and on how many `tensors` it worked.
    dropped : list of dict
        `name` in the file and `reason`.
    filled : list of str
        Counters that files of old versions lack; no map depends on them.
    mean, std : list of float, optional
        Of a normalization that the file holds, in [0, 1] units.
    transform_input : bool
        Whether the layout is one whose network undoes ImageNet's statistics on its input.
    """

    tensors: dict[str, Tensor]
    origin: dict[str, str]
    rules: list[dict[str, Any]] = field(default_factory=list)
    dropped: list[dict[str, str]] = field(default_factory=list)
    filled: list[str] = field(default_factory=list)
    mean: list[float] | None = None
    std: list[float] | None = None
    transform_input: bool = False

    def _rename(self, rule: str, renamed: Mapping[str, str]) -> None:
        """Give tensors other names, present name by new one."""
        tensors: dict[str, Tensor] = {}
        origin: dict[str, str] = {}
        for name, tensor in self.tensors.items():
            new = renamed.get(name, name)
            if new in tensors:
                raise CheckpointError(
                    f"two tensors are called {new}: {origin[new]} and {self.origin[name]}; "
                    "remove one of them"
                )
            tensors[new], origin[new] = tensor, self.origin[name]
        self.tensors, self.origin = tensors, origin
        self.rules.append({"rule": rule, "tensors": len(renamed)})

    def _strip(self, prefix: str, rule: str) -> None:
        renamed = {n: n.removeprefix(prefix) for n in self.tensors if n.startswith(prefix)}
        self._rename(f"prefix `{prefix}` {rule}", renamed)

    def _drop(self, name: str, reason: str) -> Tensor:
        self.dropped.append({"name": self.origin.pop(name), "reason": reason})
        return self.tensors.pop(name)


def _remove_attacker(layout: Layout) -> None:
    """Undo the robustness library's AttackerModel: classifier, normalizer, and both once more."""
    if not any(name.startswith(("attacker.", "normalizer.")) for name in layout.tensors):
        return
    for name in [name for name in layout.tensors if name.startswith("attacker.")]:
        rest = name.removeprefix("attacker.")
        twin = f"normalizer.{rest[10:]}" if rest.startswith("normalize.") else rest
        if twin not in layout.tensors:
            continue
        if not same_bits(layout.tensors[name], layout.tensors[twin]):
            raise CheckpointError(
                f"two copies of one weight differ: {layout.origin[twin]} and "
                f"{layout.origin[name]}; take the file anew, or remove the wrong one"
            )
        layout._drop(name, f"the attacker's copy, equal to {layout.origin[twin]}")
    for key, what in (("new_mean", "mean"), ("new_std", "std")):
        if f"normalizer.{key}" not in layout.tensors:
            continue
        value = layout._drop(f"normalizer.{key}", f"normalization, in the card as {what}")
        # Stored as float32; six digits give back the decimal that was meant.
        channels = [round(float(number), 6) for number in value.flatten()]
        is_finite = len(channels) == 3 and bool(value.isfinite().all())
        if not is_finite or (what == "std" and min(channels) <= 0):
            raise CheckpointError(
                f"the normalizer's {what} is {channels}; give mean and std in params"
            )
        setattr(layout, what, channels)
    renamed = {n: n.removeprefix("model.") for n in layout.tensors if n.startswith("model.")}
    if renamed:
        layout._rename("AttackerModel: the classifier under `model.`", renamed)


def _remove_wrappers(layout: Layout) -> None:
    """Take off what DataParallel, torch.compile and averaging put around a network."""
    if compiled := {n: n.replace("_orig_mod.", "") for n in layout.tensors if "_orig_mod." in n}:
        layout._rename("prefix `_orig_mod.` of a compiled module taken off", compiled)
    while layout.tensors:
        others = [name for name in layout.tensors if name != "n_averaged"]
        if not others or not all(name.startswith("module.") for name in others):
            return
        if len(others) < len(layout.tensors):
            layout._drop("n_averaged", "number of models averaged, of no use in evaluation")
        layout._strip("module.", "of a wrapper taken off")


def _remove_prefix(layout: Layout, expected: Collection[str]) -> None:
    """Take a prefix off that all tensors have and that the network's names lack.

    Where some stand outside it, or two prefixes fit, params must choose.
    """
    needed = {name for name in expected if not name.endswith(f".{_COUNTER}")}
    counts: Counter[str] = Counter()
    for name in layout.tensors:
        ends = [0, *(place.end() for place in re.finditer(r"\.", name))]
        counts.update(name[:end] for end in ends if name[end:] in needed)
    most = max(counts.values(), default=0)
    fitting = [prefix for prefix, count in counts.items() if count == most]
    # Few names in common are chance; loading reports what is missing.
    if "" in fitting or 2 * most < len(needed):
        return
    if len(fitting) == 1 and all(name.startswith(fitting[0]) for name in layout.tensors):
        layout._strip(fitting[0], "in front of the network's names taken off")
        return
    # As they stand in the file, where wrappers are still on.
    shown = dict.fromkeys(
        origin.removesuffix(name.removeprefix(prefix))
        for prefix in fitting
        for name, origin in layout.origin.items()
        if name.startswith(prefix) and origin.endswith(name.removeprefix(prefix))
    )
    names = " and ".join(f"`{prefix}`" for prefix in shown)
    raise CheckpointError(
        f"{most} of the network's {len(needed)} tensors stand under {names}, others of the file do "
        f"not; take those alone by checkpoint_prefix (prefix= in Python), as in "
        f"checkpoint_prefix: {next(iter(shown))}"
    )


def _lay_out(
    tensors: Mapping[str, Tensor],
    expected: Collection[str] | None = None,
    *,
    prefix: str | None = None,
) -> Layout:
    layout = Layout(dict(tensors), {name: name for name in tensors})
    if prefix is not None:
        prefix = prefix if prefix.endswith(".") else f"{prefix}."
        for name in [name for name in tensors if not name.startswith(prefix)]:
            layout._drop(name, f"outside of checkpoint_prefix {prefix}")
        if not layout.tensors:
            shown = ", ".join(list(tensors)[:3])
            raise CheckpointError(
                f"no tensor stands under {prefix!r}; correct checkpoint_prefix: there are {shown}"
            )
        layout._strip(prefix, "taken off, as params say")
    if expected is not None and set(layout.tensors) == set(expected):
        return layout
    _remove_wrappers(layout)
    _remove_attacker(layout)
    old, new = ".branch4_conv.", ".branch4.1."
    if split := {name: name.replace(old, new) for name in layout.tensors if old in name}:
        layout._rename("`branch4_conv` is the second part of `branch4`", split)
        layout.transform_input = True
    if expected is not None:
        _remove_prefix(layout, expected)
    return layout


def read_state_dict(
    path: Path, *, within: str | None = None, prefix: str | None = None
) -> dict[str, Tensor]:
    """Weights of a network from a foreign file; nothing in the file is executed.

    Nested dicts are opened, wrappers' prefixes taken off, an attacker's equal copies and a
    normalizer's statistics left out, and the SAM paper's GoogLeNet gets torchvision's names.
    Auxiliary heads stay; `convert` drops them.

    Parameters
    ----------
    path : Path
        Safetensors, or what `torch.save` writes or wrote, dill or not.
    within : str, optional
        Dotted keys down to the weights, where a file holds several.
    prefix : str, optional
        What the names of the network's tensors begin with in the file; all others are left out.

    Returns
    -------
    dict of str to Tensor
        On the CPU, in the file's dtypes; some may share memory.

    Raises
    ------
    CheckpointError
        Where the file is damaged, holds no one set of weights, or two copies that differ.
    """
    with naming(path):
        return _lay_out(read_checkpoint(path, within=within).tensors, prefix=prefix).tensors


def _fit_to(layout: Layout, architecture: str, expected: Mapping[str, Tensor]) -> None:
    heads = [
        name
        for name in layout.tensors
        if name.startswith(_HEADS.get(architecture, ())) and name not in expected
    ]
    for name in heads:
        layout._drop(name, "auxiliary head, of use in training only")
    counters = [name for name in expected if name.endswith(f".{_COUNTER}")]
    if counters and not any(name in layout.tensors for name in counters):
        # torch before 0.4.1 had none; evaluation does not read them.
        layout.filled = counters
        layout.tensors |= {name: torch.zeros_like(expected[name]) for name in counters}
    for name, value in layout.tensors.items():
        if name in expected and value.is_floating_point() != expected[name].is_floating_point():
            raise CheckpointError(
                f"{name} is {value.dtype}, the network's {expected[name].dtype}; save the weights "
                "as they are, not quantized"
            )


def normalization(
    mean: Sequence[float], std: Sequence[float], *, transform_input: bool
) -> tuple[list[float], list[float]]:
    """Statistics that images in [0, 1] meet in effect, per channel.

    torchvision's GoogLeNet and Inception v3 can undo ImageNet's statistics on their input and apply
    .5 and .5 instead (`transform_input`). Networks here never do; the statistics in front of them
    take it over: ((x - m) / s) a + b equals (x - (m - b s / a)) / (s / a).

    Parameters
    ----------
    mean, std
        Per channel, of images in [0, 1].
    transform_input
        Whether the network undoes ImageNet's statistics on its input.
    """
    if not transform_input:
        return list(mean), list(std)
    effective_mean, effective_std = [], []
    for m, s, mu, sigma in zip(mean, std, _IMAGENET_MEAN, _IMAGENET_STD, strict=True):
        a, b = sigma / 0.5, (mu - 0.5) / 0.5
        effective_mean.append(round(m - b * s / a, 9))
        effective_std.append(round(s / a, 9))
    return effective_mean, effective_std


def convert(
    path: Path,
    *,
    architecture: str,
    n_classes: int,
    within: str | None = None,
    prefix: str | None = None,
    statistics: tuple[Sequence[float], Sequence[float]] | None = None,
    transform_input: bool | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Convert a foreign weights file, whole or not at all.

    Parameters
    ----------
    path : Path
        The file, as in `read_state_dict`.
    architecture : str
        As in `models.build`.
    n_classes : int
        Number of classes.
    within : str, optional
        Dotted keys down to the weights, where a file holds several.
    prefix : str, optional
        What the names of the network's tensors begin with in the file; all others are left out.
    statistics : tuple of sequence of float, optional
        Mean and std in front of the network, per channel, in [0, 1] units; by default those that
        the file holds.
    transform_input : bool, optional
        Whether GoogLeNet or Inception v3 was trained behind torchvision's transform of that name;
        by default only where the file has the layout of the SAM paper's GoogLeNet.

    Returns
    -------
    network : nn.Module
        With the weights.
    card : dict
        Source, sha256, format, rules, mapping, what was dropped and why, mean and std in effect.

    Raises
    ------
    CheckpointError
        With file, reason and remedy, where a tensor is missing, surplus, of another shape, not
        finite, or there in two versions.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path}: a folder; name the weights file in it")
    checkpoint = read_checkpoint(path, within=within)
    network = build(architecture, n_classes)
    expected = network.state_dict()
    with naming(path):
        layout = _lay_out(checkpoint.tensors, expected, prefix=prefix)
        _fit_to(layout, architecture, expected)
        transforms = layout.transform_input if transform_input is None else transform_input
        if transforms and architecture not in INPUT_TRANSFORMING:
            raise CheckpointError(
                f"transform_input is for {' and '.join(INPUT_TRANSFORMING)}, not for "
                f"{architecture}; remove it"
            )
        load_state(network, layout.tensors, source=str(path))
    origin: str | None = "params" if statistics is not None else None
    if statistics is None and layout.mean is not None and layout.std is not None:
        statistics, origin = (layout.mean, layout.std), "file"
    given: tuple[list[float] | None, ...] = (None, None)
    effective = given
    if statistics is not None:
        given = tuple(map(list, statistics))
        effective = normalization(*statistics, transform_input=transforms)
    return network, {
        "architecture": architecture,
        "n_classes": n_classes,
        "source": str(path),
        "sha256": file_sha256(path),
        "format": checkpoint.format,
        "within": checkpoint.within,
        "prefix": prefix,
        "rules": layout.rules,
        "mapping": {name: layout.origin[name] for name in expected if name in layout.origin},
        "dropped": layout.dropped,
        "filled": layout.filled,
        "left_alone": checkpoint.unknown,
        "dtypes": sorted({str(value.dtype) for value in layout.tensors.values()}),
        "normalization": {
            **{"mean": given[0], "std": given[1]},
            **{"from": origin, "transform_input": transforms},
        },
        "mean": effective[0],
        "std": effective[1],
    }


@dataclass(frozen=True)
class Pretrained:
    """One of torchvision's own weights files.

    Attributes
    ----------
    url : str
        Where torchvision has it; its name ends in the first digits of its sha256.
    file : str
        That name.
    digits : str
        Those digits.
    mean, std : tuple of float
        Statistics in front of the network, per channel, in [0, 1] units.
    image_size : int
        Side of the images that it was evaluated on, in pixels.
    transform_input : bool
        Whether torchvision switches that on with these weights.
    """

    url: str
    file: str
    digits: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    transform_input: bool


def pretrained(architecture: str, name: str) -> Pretrained:
    """Weights of torchvision, by the architecture and their name there, as IMAGENET1K_V1."""
    weights = torchvision.models.get_model_weights(architecture)[name]
    file = weights.url.rsplit("/", 1)[-1]
    preset = weights.transforms()
    return Pretrained(
        url=weights.url,
        file=file,
        digits=re.fullmatch(r".+-([0-9a-f]{8,})\.pth", file)[1],  # type: ignore[index]
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        image_size=preset.crop_size[0],
        transform_input=architecture in INPUT_TRANSFORMING,
    )


def pretrained_file(weights: Pretrained, *, cache: Path, directory: str | None = None) -> Path:
    """A weights file of torchvision: from a folder, torch's own cache, ours, or the network.

    Parameters
    ----------
    weights : Pretrained
        Which.
    cache : Path
        Folder for what is downloaded.
    directory : str, optional
        Folder that holds the file under torchvision's name; then nothing is downloaded.

    Raises
    ------
    ValueError
        Where the file's sha256 does not begin as its name says.
    FileNotFoundError
        Where `directory` does not hold it.
    DownloadError
        Where it can't be downloaded: with what to place where.
    """
    if directory is not None:
        path = Path(directory) / weights.file
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: no such file; download {weights.url} and place it there"
            )
        return check_file(path, sha256=weights.digits)
    kept = Path(torch.hub.get_dir()) / "checkpoints" / weights.file
    if kept.is_file():
        return check_file(kept, sha256=weights.digits)
    return download(weights.url, Path(cache) / weights.file, sha256=weights.digits)


def _weights_file(source: str, sha256: str | None, cache: Path) -> Path:
    """A weights file by its path or address, its sha256 checked where params name it."""
    if source.startswith(("http://", "https://")):
        assert sha256 is not None
        name = urlsplit(source).path.rsplit("/", 1)[-1] or "weights"
        # Two addresses may end in the same name.
        return download(source, cache / f"{sha256[:16]}-{name}", sha256=sha256)
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; place the weights there (docs/checkpoints.md says which)"
        )
    return check_file(path, sha256=sha256) if sha256 is not None else path


def model_card(
    model: str,
    recipe: Recipe,
    dataset: Dataset,
    *,
    robust: bool,
    mean: Sequence[float],
    std: Sequence[float],
    origin: Mapping[str, Any],
) -> dict[str, Any]:
    """Card of a model before its accuracies and its weights are known.

    Parameters
    ----------
    model : str
        Name of the model.
    recipe : Recipe
        How its weights are made or taken.
    dataset : Dataset
        Images that it is trained and measured on.
    robust : bool
        Whether it was trained on attacked images.
    mean, std : sequence of float
        Statistics in front of the network, per channel, in [0, 1] units.
    origin : mapping
        Entries about where the weights come from.
    """
    architecture, description = architecture_of(model, recipe), dataset.description
    return {
        "model": model,
        "architecture": architecture,
        "source_sha256": source_sha256(architecture),
        "robust": robust,
        "classes": list(dataset.classes),
        "mean": mean,
        "std": std,
        "image_size": description["image_size"],
        "recipe": recipe.model_dump(mode="json"),
        **origin,
        "data": {
            "kind": description["kind"],
            "digest": description["digest"],
            "n_train": 0 if recipe.is_given else len(dataset.images["train"]),
            "n_val": len(dataset.images["val"]),
        },
    }


def copy_model(model: str, recipe: Recipe, destination: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Copy weights and curves of the finished model whose folder a recipe names.

    Parameters
    ----------
    model : str
        Name of the model that the copy is to be.
    recipe : Recipe
        `weights` names the folder.
    destination : Path
        Folder that gets weights and curves.

    Returns
    -------
    network : nn.Module
        With these weights.
    card : dict
        Of the finished model, under the new name.

    Raises
    ------
    ValueError
        Where the folder holds another architecture, a twin in place of a regular model or the other
        way round, or weights that are not those of its card.
    """
    given = Path(str(recipe.weights))
    card = read_json(given / "card.json")
    present = (card["architecture"], card["robust"])
    expected = (architecture_of(model, recipe), model.endswith(ROBUST))
    if present != expected:
        raise ValueError(
            f"training.{model}.weights: {given} holds {present[0]!r}, robust {present[1]}; "
            f"{model} needs {expected[0]!r}, robust {expected[1]}"
        )
    if file_sha256(given / "weights.safetensors") != card["weights_sha256"]:
        raise ValueError(
            f"{given}/weights.safetensors: not the weights of its card; take the folder again"
        )
    network = build(card["architecture"], len(card["classes"]))
    load_state(network, read_state(given / "weights.safetensors"), source=str(given))
    for name in ("weights.safetensors", "curves.csv"):
        shutil.copyfile(given / name, destination / name)
    return network, card | {"model": model, "source_sha256": source_sha256(card["architecture"])}


def convert_recipe(
    model: str, recipe: Recipe, dataset: Dataset, destination: Path, *, cache: Path
) -> tuple[nn.Module, dict[str, Any]]:
    """Convert the weights file that a recipe names, which is downloaded if need be.

    Parameters
    ----------
    model : str
        Name of the model.
    recipe : Recipe
        `pretrained`, `checkpoint` or `weights` names the file.
    dataset : Dataset
        Its classes are the network's; its statistics serve where neither params nor file hold any.
    destination : Path
        Folder that gets the conversion's card as `conversion.json`.
    cache : Path
        Folder for what is downloaded.

    Returns
    -------
    network : nn.Module
        With these weights.
    card : dict
        Of the model, without accuracies.

    Raises
    ------
    ValueError
        Where the weights do not fit; see `convert`.
    """
    architecture, description = architecture_of(model, recipe), dataset.description
    mean, std, transform_input = recipe.mean, recipe.std, recipe.transform_input
    if recipe.pretrained is not None:
        key, weights = "pretrained", pretrained(architecture, recipe.pretrained)
        path = pretrained_file(weights, cache=cache, directory=recipe.directory)
        source, transform_input = weights.url, weights.transform_input
        mean, std = list(weights.mean), list(weights.std)
        if description["image_size"] != weights.image_size:
            logger.warning(
                "%s: torchvision's weights are for images of %d px, these have %d",
                *(model, weights.image_size, description["image_size"]),
            )
    else:
        key = "weights" if recipe.weights is not None else "checkpoint"
        source = str(recipe.weights or recipe.checkpoint)
        path = _weights_file(source, recipe.sha256, cache)
    try:
        network, converted = convert(
            path,
            architecture=architecture,
            n_classes=len(dataset.classes),
            within=recipe.checkpoint_key,
            prefix=recipe.checkpoint_prefix,
            statistics=(mean, std) if mean and std else None,
            transform_input=transform_input,
        )
    except ValueError as error:
        raise ValueError(f"training.{model}.{key}: {error}") from None
    converted["source"] = source
    write_json(converted, destination / "conversion.json")
    if converted["mean"] is None:
        mean, std = description["mean"], description["std"]
        converted["normalization"] |= {"mean": mean, "std": std, "from": "data"}
        converted["mean"], converted["std"] = normalization(
            mean, std, transform_input=converted["normalization"]["transform_input"]
        )
    described = ("source", "sha256", "format", "within", "prefix", "rules", "normalization")
    origin = {key: converted[key] for key in described}
    origin |= {f"n_{key}": len(converted[key]) for key in ("dropped", "filled")}
    card = model_card(
        model,
        recipe,
        dataset,
        robust=model.endswith(ROBUST),
        mean=converted["mean"],
        std=converted["std"],
        origin={"init_sha256": None, "checkpoint": origin},
    )
    return network, card
