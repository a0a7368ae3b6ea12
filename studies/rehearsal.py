"""Rehearse the ImageNet profile on a few photographs, with random weights in the true formats.

Usage: python studies/rehearsal.py PHOTOGRAPHS FOLDER [--quick]

Weights, params, results and reports of the rehearsal go to a new folder, with `summary.md`.

What is rehearsed is that every stage reads what the real files hold, and runs. Numbers of random
weights say nothing, and none is kept.
"""

import argparse
import os
import runpy
import sys
import time
import types
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torchvision
import yaml
from torch import Tensor, nn

from steadymap.data import imagenet
from steadymap.params.checks import overlay, validate
from steadymap.params.files import load, profile
from steadymap.params.schema import Params
from steadymap.store.tables import read_table

ROOT = Path(__file__).resolve().parents[1]

# The whole route at full image size in a few minutes: what differs from the profile.
CUT: dict[str, Any] = {
    "data": {"boxes": None, "on_bad_image": "skip"},
    "robust_accuracy": {"steps": 2, "n_images": 2},
    "evaluation_set": {"rule": "any", "n_images": 4},
    "sweeps": {
        "smoothgrad": {
            "SG-N": {"values": [2, 5, 10], "reference": 2},
            "SG-sigma": {"fixed": {"n_samples": 2}},
        },
        "integrated_gradients": {
            "IG-N": {"values": [1, 2, 3], "reference": 1, "fixed": {"n_steps": 4}}
        },
        "sliding_patch": {
            "SP-L": {"values": [17, 29, 53], "reference": 29, "fixed": {"stride": 41}},
            "SP-S": {"values": [52, 53, 54], "reference": 53, "fixed": {"stride": 41}},
        },
        "lime": {
            "LIME-seed": {"values": [0, 1, 2], "fixed": {"n_samples": 20}},
            "LIME-seed-150": {"values": [0, 1], "fixed": {"n_samples": 20}},
            "LIME-N": {"values": [10, 20], "reference": 20},
            "LIME-S": {"fixed": {"n_samples": 20}},
        },
        "meaningful_perturbation": {
            "MP-N": {"values": [2, 4, 6], "reference": 4},
            "MP-blur": {"fixed": {"n_iterations": 4}},
            "MP-seed": {"values": [0, 1], "fixed": {"n_iterations": 4}},
        },
    },
    "attribution": {"batch_size": 4, "block_size": 8},
    "accuracy": {"step": 12544},
    "comparisons": {
        "noise": {"variances": [0.1]},
        "object_size": {"object_sizes": [84], "patch_sizes": [53], "stride": 41, "n_images": 2},
        "teaser": {"smoothgrad": {"values": [2, 3, 4], "reference": 3}},
    },
    "randomization": {
        "methods": {"gradient": {}, "guided_backprop": {}},
        "units": {
            "googlenet": ["conv1", "inception5b"],
            "googlenet-r": ["conv1", "inception5b"],
            "resnet50": ["layer1.0", "layer4.2"],
            "resnet50-r": ["layer1.0", "layer4.2"],
        },
        "n_images": 2,
        "n_draws": 1,
        "n_function_images": 4,
    },
}
# On top of it, for a first look: two photographs and small images.
QUICK: dict[str, Any] = {
    "data": {"image_size": 64, "preprocessing": "squash", "n_val": 8},
    "evaluation_set": {"n_images": 2},
    "sweeps": {
        "smoothgrad": {"SG-N": {"values": [2, 3]}, "SG-sigma": None},
        "integrated_gradients": {"IG-N": {"values": [1, 2]}},
        "sliding_patch": {
            "SP-L": {"values": [17, 29], "fixed": {"stride": 17}},
            "SP-S": None,
        },
        "lime": {
            "LIME-seed": {"values": [0, 1], "fixed": {"sigma": 0.86}},
            "LIME-seed-150": None,
            "LIME-N": {"fixed": {"sigma": 0.86}},
            "LIME-S": None,
        },
        "meaningful_perturbation": {
            "MP-N": {"values": [2, 4], "fixed": {"mask_size": 8, "jitter": 1}},
            "MP-blur": None,
            "MP-seed": None,
        },
    },
    "similarity": {"hog_cell": 4},
    "accuracy": {"step": 1024},
    "comparisons": {
        "object_size": {"object_sizes": [24], "patch_sizes": [15], "stride": 17},
        "teaser": {"smoothgrad": {"values": [2, 3], "reference": 2}},
    },
}


def params(photographs: Path, weights: Mapping[str, Path], *changes: Mapping[str, Any]) -> str:
    """Text of the `imagenet` profile with what a rehearsal changes.

    Parameters
    ----------
    photographs : Path
        Folder with a folder per wnid, or with the official archives, of which boxes are used.
    weights : mapping of str to Path
        Per model, a file of `write_weights`.
    *changes : mapping
        As `CUT`; null takes a key away.
    """
    values = yaml.safe_load(profile("imagenet", ROOT / "profiles"))
    for change in changes:
        values = overlay(values, change)
    values["study"] = "rehearsed"
    values["data"]["path"] = str(photographs)
    if (boxes := photographs / imagenet.BOXES).is_file():
        values["data"]["boxes"] = str(boxes)
    for model, path in weights.items():
        values["training"][model] = {"checkpoint": str(path)}
        if model == "googlenet":
            # Public weights of torchvision say so by their name, random ones in a file do not.
            values["training"][model]["transform_input"] = True
    validate(values, source="rehearsal")
    return yaml.safe_dump(values, sort_keys=False)


def write_weights(folder: Path, *, seed: int = 0) -> dict[str, Path]:
    """Random weights of the four classifiers, each in the layout of its public file.

    torchvision's GoogLeNet with its auxiliary heads (zip) and ResNet-50 (the format before zip);
    the SAM paper's `GoogLeNet_R.pt` and `ResNet50_R.pt`: nested in what the robustness library's
    trainer pickles, `module.` before each name, weights twice, GoogLeNet's `branch4_conv`.

    Returns
    -------
    dict of str to Path
        File of each model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = {
        "googlenet": folder / "googlenet.pth",
        "googlenet-r": folder / "GoogLeNet_R.pt",
        "resnet50": folder / "resnet50.pth",
        "resnet50-r": folder / "ResNet50_R.pt",
    }
    torch.save(_network("googlenet", seed).state_dict(), paths["googlenet"])
    torch.save(
        _network("resnet50", seed).state_dict(),
        paths["resnet50"],
        _use_new_zipfile_serialization=False,
    )
    renamed = {
        name.replace(".branch4.1.", ".branch4_conv."): value
        for name, value in _network("googlenet", seed + 1).state_dict().items()
    }
    _save_robust(renamed, paths["googlenet-r"], zipped=False)
    _save_robust(_network("resnet50", seed + 1).state_dict(), paths["resnet50-r"], zipped=True)
    return paths


def _network(architecture: str, seed: int) -> nn.Module:
    """Random network whose BatchNorm statistics are those of noise, so that logits depend on it."""
    options = {"aux_logits": True, "init_weights": False} if architecture == "googlenet" else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = getattr(torchvision.models, architecture)(
            weights=None, num_classes=len(imagenet.wnids()), **options
        )
        norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        for module in norms:
            module.momentum = None
        # Heads beside the main path only run in train mode.
        with torch.no_grad():
            network.train()(torch.randn(4, 3, 64, 64))
    return network.eval()


def _save_robust(state: Mapping[str, Tensor], path: Path, *, zipped: bool) -> None:
    found: OrderedDict[str, Tensor] = OrderedDict()
    parts = (("normalizer.new_", "model."), ("attacker.normalize.new_", "attacker.model."))
    for statistics, weights in parts:
        for name, values in (("mean", imagenet.MEAN), ("std", imagenet.STD)):
            found[f"module.{statistics}{name}"] = torch.tensor(values)[:, None, None]
        for name, tensor in state.items():
            found[f"module.{weights}{name}"] = tensor
    with _foreign() as arguments:
        content = {
            "model": found,
            "optimizer": {"state": {}, "param_groups": [{"lr": 0.001, "momentum": 0.9}]},
            "schedule": {"last_epoch": 90},
            "epoch": 90,
            "args": arguments,
        }
        torch.save(content, path, _use_new_zipfile_serialization=zipped)


@contextmanager
def _foreign() -> Iterator[object]:
    """An object of a class that exists where the file is written, and not where it is read."""
    module = types.ModuleType("cox.utils")

    class Parameters:
        pass

    Parameters.__module__, Parameters.__qualname__ = "cox.utils", "Parameters"
    setattr(module, "Parameters", Parameters)  # noqa: B010  modules declare no such field
    added = {"cox": types.ModuleType("cox"), "cox.utils": module}
    before = {name: sys.modules.get(name) for name in added}
    sys.modules.update(added)
    arguments = Parameters()
    arguments.__dict__.update(eps=3.0, constraint="2", attack_steps=7)
    try:
        yield arguments
    finally:
        for name, known in before.items():
            if known is None:
                del sys.modules[name]
            else:
                sys.modules[name] = known


def stages(text: str, made: Params) -> list[tuple[str, list[str]]]:
    """Name and command of each stage of `dvc.yaml`, in its order, one for each model or method.

    Parameters
    ----------
    text : str
        Content of `dvc.yaml`.
    made : Params
        Which models and methods there are.
    """
    values = {
        "${methods}": made.methods,
        "${models.regular}": made.models.regular,
        "${models.robust}": made.models.robust,
    }
    found = []
    for name, stage in yaml.safe_load(text)["stages"].items():
        matrix = stage.get("matrix")
        if matrix is None:
            found.append((name, stage["cmd"].split()[1:]))
            continue
        ((key, listed),) = matrix.items()
        for value in values[listed]:
            command = stage["cmd"].replace(f"${{item.{key}}}", value)
            found.append((f"{name}@{value}", command.split()[1:]))
    return found


def summary(made: Params, ran: pd.DataFrame, *changes: Mapping[str, Any]) -> str:
    """Markdown of what ran: stages with their seconds, tables with their rows; no score.

    Parameters
    ----------
    made : Params
        The rehearsal's.
    ran : DataFrame
        Columns stage, seconds.
    *changes : mapping
        What differs from the profile, each over what stands before it.
    """
    lines = ["# Rehearsal of the ImageNet profile", ""]
    lines += [
        f"{made.evaluation_set.n_images} photographs, {made.data.image_size} px, random weights of "
        f"{', '.join(made.models.names)} in the layouts of the public files.",
        "It shows that every stage reads these formats and runs; its scores say nothing and are "
        "left out.",
        "",
        "## What ran",
        "",
        "| stage | seconds |",
        "|---|--:|",
    ]
    shown = zip(ran["stage"], ran["seconds"], strict=True)
    lines += [f"| {stage} | {seconds:.0f} |" for stage, seconds in shown]
    lines += [f"| all | {ran['seconds'].sum():.0f} |", "", "## What was written", ""]
    lines += ["| table | rows |", "|---|--:|"]
    for path in sorted((made.reports / "tables").glob("*.csv")):
        lines.append(f"| {path.name} | {len(read_table(path))} |")
    lines += ["", f"Localization: {localization(made)}", "", "## What differs from the profile", ""]
    for change in changes:
        text = yaml.safe_dump(dict(change), sort_keys=False, default_flow_style=None, width=100)
        lines += ["```yaml", text.rstrip(), "```", ""]
    return "\n".join(lines)


def localization(made: Params) -> str:
    """How many images have a box, or why there is nothing to localize."""
    rows = read_table(made.results / "evaluation_set" / "evaluation_set.csv")
    boxed = int((rows["x0"] >= 0).sum())
    if boxed:
        return f"measured on the {boxed} of {len(rows)} images that have a box."
    where = "data.boxes is null" if getattr(made.data, "boxes", None) is None else "it has none"
    return f"empty, since no image has a box ({where})."


def main() -> None:
    # Stages import what lies beside them.
    sys.path.insert(0, str(ROOT / "stages"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photographs", type=Path, help="a folder per wnid, or official archives")
    parser.add_argument("folder", type=Path, help="new folder for the rehearsal")
    parser.add_argument("--quick", action="store_true", help="with still smaller grids")
    given = parser.parse_args()
    photographs, folder = given.photographs.resolve(), given.folder.resolve()
    folder.mkdir(parents=True)
    changes = [CUT, *([QUICK] if given.quick else [])]
    weights = write_weights(folder / "weights")
    text = params(photographs, weights, *changes)
    (folder / "params.yaml").write_text(text)
    os.chdir(folder)
    made, rows = load(), []
    for name, command in stages((ROOT / "dvc.yaml").read_text(), made):
        began = time.monotonic()
        sys.argv = [str(ROOT / command[0]), *command[1:]]
        runpy.run_path(sys.argv[0])["main"]()
        rows.append({"stage": name, "seconds": time.monotonic() - began})
    told = summary(made, pd.DataFrame(rows), *changes)
    (folder / "summary.md").write_text(told)
    print(f"rehearsal: {len(rows)} stages ran; {folder / 'summary.md'}")


if __name__ == "__main__":
    main()
