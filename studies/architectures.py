"""Try every architecture with extended IPR's seven methods at full size: `reports/architectures`.

Run on demand, no stage of the pipeline. Weights are random, so that the numbers exercise the code
and are no result: they say nothing of any method or trained network.
"""

import argparse
import logging
import math
from pathlib import Path

import numpy as np
import pandas as pd
import skimage.data
import torch
import torchvision
from PIL import Image
from rich.progress import track
from torch import nn

from steadymap import attribute, explainable, normalize, ssim
from steadymap.models.randomization import randomized, units
from steadymap.models.registry import build
from steadymap.store.atomic import atomic_file
from steadymap.store.tables import write_table

ARCHITECTURES = {
    "inception_v3": 299,
    "vgg16": 224,
    "mobilenet_v2": 224,
    "resnet18": 224,
    "resnet50": 224,
    "googlenet": 224,
}
METHODS: dict[str, dict[str, object]] = {
    "gradient": {},
    "input_x_gradient": {},
    "guided_backprop": {},
    "guided_gradcam": {},
    "deeplift": {},
    "integrated_gradients": {"n_steps": 10},
    "lime": {"n_samples": 50, "n_superpixels": 20},
}
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
PHOTOGRAPHS = ("astronaut", "coffee")
BATCH_SIZE = 10
THRESHOLD = 0.01


def photographs(names: tuple[str, ...], side: int) -> torch.Tensor:
    """Photographs that ship with scikit-image, (n, 3, side, side) in [0, 1]."""
    found = []
    for name in names:
        image = Image.fromarray(getattr(skimage.data, name)()).resize((side, side))
        found.append(np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 255)
    return torch.from_numpy(np.stack(found))


def network(architecture: str, side: int) -> nn.Module:
    """Random weights in which nothing cancels: Kaiming's, BatchNorm off its defaults and fitted."""
    made = build(architecture, 1000)
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for module in made.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, generator=generator)
                if module.bias is not None:
                    nn.init.normal_(module.bias, std=0.1, generator=generator)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1, 0.2, generator=generator)
                nn.init.normal_(module.bias, 0, 0.2, generator=generator)
                module.momentum = 1.0
        made.train()(torch.randn((8, 3, side, side), generator=generator))
    return made.eval()


def measure(architecture: str, side: int) -> list[dict[str, object]]:
    """One row per unit and method: 1 - SSIM per image, draw 0; or the reason why there is none."""
    trained = network(architecture, side)
    images = photographs(PHOTOGRAPHS, side)
    normalized = (images - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    model = explainable(trained, mean=MEAN, std=STD)
    with torch.no_grad():
        targets = model(images).argmax(1)

    def maps(adapted: nn.Module, method: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        hyperparameters: dict = METHODS[method]
        return attribute(
            method,
            adapted,
            images,
            targets,
            image_ids=PHOTOGRAPHS,
            batch_size=BATCH_SIZE,
            diagnostics=True,
            **hyperparameters,
        )

    rows: list[dict[str, object]] = []
    origins = {method: maps(model, method)[0] for method in METHODS}
    named = units(trained, "paper", architecture=architecture)
    for index, unit in enumerate(track(named, architecture)):
        copy = randomized(trained, unit, draw=0, seed=0, calibration_images=normalized)
        adapted = explainable(copy, mean=MEAN, std=STD)
        for method, origin in origins.items():
            row = {"architecture": architecture, "image_size": side, "method": method}
            row |= {"unit_index": index, "unit": unit, "S": math.nan, "complete": "", "reason": ""}
            try:
                found, extra = maps(adapted, method)
                row["S"] = float(1 - ssim(normalize(origin), normalize(found)).mean())
                if "complete" in extra:
                    row["complete"] = str(bool(extra["complete"].all())).lower()
            except (ValueError, ArithmeticError, RuntimeError) as error:
                row["reason"] = " ".join(str(error).split())
            rows.append(row)
        logging.info("%s: %d of %d units", architecture, index + 1, len(named))
    return rows


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per architecture and method."""
    groups = rows.groupby(["architecture", "image_size", "method"], sort=False)
    found = groups["S"].agg(["size", "mean", "min", "max"]).reset_index()
    found = found.rename(columns={"size": "n_units", "mean": "S", "min": "S_min", "max": "S_max"})
    found["n_images"], found["n_draws"] = len(PHOTOGRAPHS), 1
    found["units_below_threshold"] = (
        groups["S"].agg(lambda s: int((s < THRESHOLD).sum())).to_numpy()
    )
    found["units_failed"] = groups["reason"].agg(lambda s: int((s != "").sum())).to_numpy()
    found["incomplete_maps"] = (
        groups["complete"].agg(lambda s: int((s == "false").sum())).to_numpy()
    )
    return found


def readme(table: pd.DataFrame) -> str:
    """Say what was run, and that it is no result."""
    wide = table.pivot(index="method", columns="architecture", values="S").loc[list(METHODS)]
    names = [name for name in ARCHITECTURES if name in wide]
    counts = table.groupby("architecture")["n_units"].first()
    lines = [
        "# Six architectures, seven methods, random weights",
        "",
        "**This is no result.** The networks have random weights, so that the numbers say nothing "
        "of any method: the run shows that every method explains every architecture at its full "
        "size, and every randomized copy of it.",
        "",
        f"Written by `python studies/architectures.py`: {len(PHOTOGRAPHS)} photographs that ship "
        "with scikit-image, one draw of the weights, the units of the preset `paper`, "
        "1,000 classes, Kaiming weights, BatchNorm off its defaults with statistics of one pass "
        "in train mode; "
        f"Integrated Gradients with {METHODS['integrated_gradients']['n_steps']} steps, LIME with "
        f"{METHODS['lime']['n_samples']} samples; torch {torch.__version__.partition('+')[0]}, "
        f"torchvision {torchvision.__version__.partition('+')[0]}.",
        "",
        "1 - SSIM (`common`) between the maps of a network and of its copies, mean over units and "
        "images:",
        "",
        f"| method | {' | '.join(f'{n}, {ARCHITECTURES[n]} px' for n in names)} |",
        f"|---|{'---|' * len(names)}",
    ]
    for method, row in wide.iterrows():
        lines.append(f"| `{method}` | {' | '.join(f'{row[name]:.3f}' for name in names)} |")
    lines.append(f"| units | {' | '.join(str(counts[name]) for name in names)} |")
    lines += [
        "",
        f"Units at which a method could not run: {table['units_failed'].sum()} "
        "(`ipr_units.csv` has the reason). DeepLIFT's maps that do not add up to the change of "
        f"the logit: {table['incomplete_maps'].sum()}.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architectures", nargs="+", default=list(ARCHITECTURES))
    parser.add_argument("--output", type=Path, default=Path("reports/architectures"))
    options = parser.parse_args()
    if unknown := set(options.architectures) - set(ARCHITECTURES):
        raise ValueError(
            f"--architectures: {sorted(unknown)}; choose of {', '.join(ARCHITECTURES)}"
        )
    kept = Path("reports/architectures")
    if set(options.architectures) < set(ARCHITECTURES) and options.output == kept:
        parser.error(f"--architectures: a part would replace the whole {kept}; name an --output")
    found = [measure(name, ARCHITECTURES[name]) for name in options.architectures]
    rows = pd.DataFrame([row for part in found for row in part])
    table = summary(rows)
    write_table(rows, options.output / "ipr_units.csv")
    write_table(table, options.output / "ipr.csv")
    with atomic_file(options.output / "README.md") as temporary:
        temporary.write_text(readme(table))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
