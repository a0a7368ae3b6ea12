"""The exact tier's study: a small trained network, drawn images, every method and metric.

    python tests/exact_study.py --expect --reason "..."    writes tests/exact/expected.csv anew
    python tests/exact_study.py --train                    trains tests/exact/weights.safetensors

The study goes through the package's own stages, in double precision inside the network: where
float32 sums depend on the processor's order of summation, and a ReLU at 0 on the last bit, the
numbers here don't. What is left of single precision: maps, scores of passes, and the running
statistics of randomized networks.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import date
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from torch import nn

from steadymap.attribution import guided_gradcam
from steadymap.data.dataset import Dataset
from steadymap.engine import evaluation_set, runner, selection
from steadymap.gate import reruns
from steadymap.models import registry
from steadymap.params.checks import validate
from steadymap.params.files import read_yaml
from steadymap.params.schema import EvaluationSet, Params
from steadymap.store import fingerprint
from steadymap.store.atomic import atomic_file, file_sha256, write_json
from steadymap.store.tables import read_table

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tests" / "exact"
WEIGHTS = FOLDER / "weights.safetensors"
EXPECTED, HISTORY = FOLDER / "expected.csv", FOLDER / "history.json"
SIDE, N_TRAIN, N_VAL, N_IMAGES = 32, 64, 16, 12
CLASSES = ["disc", "square", "cross"]
# A convolution alone, one with BatchNorm, a block that holds one, BatchNorm alone, a linear layer.
UNITS = ["stem", "conv+norm", "block", "last", "fc"]


class Block(nn.Module):
    """Residual, with BatchNorm inside."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x):
        return torch.relu(x + self.norm(self.conv(x)))


class Net(nn.Module):
    """A kind of unit of each sort in 6,000 weights."""

    def __init__(self, n_classes: int):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.block = Block(16)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.last = nn.BatchNorm2d(16)
        self.head = nn.Conv2d(16, 16, 3, padding=1)
        self.fc = nn.Linear(16, n_classes)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(self.norm(self.conv(x)))
        x = self.last(self.pool(self.block(x)))
        return self.fc(torch.relu(self.head(x)).mean((2, 3)))


def build(n_classes: int) -> nn.Module:
    return Net(n_classes)


def drawn(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shapes on rough ground: uint8 pixels, masks, labels."""
    random = np.random.Generator(np.random.Philox(seed))
    down, across = np.mgrid[:SIDE, :SIDE]
    pixels = np.empty((n, SIDE, SIDE, 3), np.uint8)
    masks = np.empty((n, SIDE, SIDE), bool)
    labels = np.arange(n) % len(CLASSES)
    for index, label in enumerate(labels):
        y, x = random.uniform(11, 21, 2)
        r = random.uniform(6, 9)
        dy, dx = np.abs(down - y), np.abs(across - x)
        masks[index] = [
            dy**2 + dx**2 <= r**2,
            np.maximum(dy, dx) <= 0.8 * r,
            (np.minimum(dy, dx) <= r / 3) & (np.maximum(dy, dx) <= r),
        ][label]
        ground = random.uniform(0.1, 0.5, 3) + 0.012 * (down - across)[..., None]
        ground = ground + random.uniform(-0.1, 0.1, (SIDE, SIDE, 3))
        color = random.uniform(0.5, 1, 3) + random.uniform(-0.1, 0.1, (SIDE, SIDE, 3))
        image = np.where(masks[index][..., None], color, ground)
        pixels[index] = np.round(255 * image.clip(0, 1)).astype(np.uint8)
    return pixels, masks, labels


def dataset() -> Dataset:
    images, masks, rows = {}, {}, []
    for split, n in (("train", N_TRAIN), ("val", N_VAL)):
        images[split], masks[split], labels = drawn(n, seed=len(split))
        for index, (mask, label) in enumerate(zip(masks[split], labels, strict=True)):
            ys, xs = np.nonzero(mask)
            rows.append(
                {
                    "id": f"{split}-{index:02d}",
                    "split": split,
                    "class_name": CLASSES[label],
                    "label": label,
                    "sha256": f"{index:064x}",
                    **{"x0": xs.min(), "y0": ys.min(), "x1": xs.max() + 1, "y1": ys.max() + 1},
                    "photo": "",
                }
            )
    return Dataset(tuple(CLASSES), images, masks, pd.DataFrame(rows), {"kind": "exact"})


def params(methods: Collection[str] | None = None) -> Params:
    made = validate(read_yaml(FOLDER / "params.yaml"))
    return reruns.reseeded(made, 0, methods=methods)


def write_inputs(folder: Path) -> None:
    """Data, model and evaluation set below `folder`, as stages leave them."""
    data = dataset()
    data.write(folder / "data")
    weights = folder / "models" / "net" / "weights.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(WEIGHTS.read_bytes())
    card = {
        "model": "net",
        "architecture": "exact_study:build",
        "source_sha256": registry.source_sha256("exact_study:build"),
        "robust": False,
        "classes": CLASSES,
        "mean": [0.5, 0.45, 0.4],
        "std": [0.2, 0.21, 0.22],
        "weights_sha256": file_sha256(weights),
        "n_parameters": sum(value.numel() for value in build(len(CLASSES)).parameters()),
        "recipe": {"init_from": None, "epochs": 0},
        "accuracies": {
            "n_clean": N_VAL,
            "clean": 1.0,
            "n_robust": N_VAL,
            "robust": 0.0,
            "attack": {"norm": "l2", "eps": 1.0, "steps": 1},
        },
    }
    write_json(card, weights.parent / "card.json")
    rule = EvaluationSet(rule="any", target="label", n_images=N_IMAGES, seed=0)
    network = registry.load(weights.parent)
    predicted = {"net": selection.predictions(network, data.images["val"])}
    selection.write(selection.choose(rule, data, predicted), data, folder / "evaluation_set")


class Exact(registry.Explainable):
    """Computes in float64, from and to float32."""

    def forward(self, images):
        return super().forward(images.double()).float()


@contextmanager
def exactly() -> Iterator[None]:
    """Models that are loaded or randomized compute in float64."""
    adapt, find, digest = registry.explainable, guided_gradcam.feature_map, fingerprint.digest

    def explainable(network, *, mean, std):
        adapted = adapt(network, mean=mean, std=std).double()
        adapted.__class__ = Exact
        return adapted

    registry.explainable = explainable
    guided_gradcam.feature_map = lambda network, images: find(network, images.double())
    # Nothing on disk changes meanwhile, and the cache is empty anyway.
    fingerprint.digest = cache(digest)
    runner._model.cache_clear()
    try:
        yield
    finally:
        registry.explainable, guided_gradcam.feature_map, fingerprint.digest = adapt, find, digest
        runner._model.cache_clear()


def measure(inputs: Path, folder: Path, methods: Collection[str] | None = None) -> pd.Series:
    """All cells of the study, computed with an empty cache; its tables lie in `folder`.

    `results/` is made in the current directory.
    """
    made = params(methods).model_copy(update={"study": folder.name})
    with exactly():
        reruns.measure(made, shared=inputs, folder=folder, cache=folder / "cache")
    return cells(made)


def cells(made: Params) -> pd.Series:
    """Mean over images of every score, by the name of its cell."""
    parts = []
    for method in made.methods:
        for part in ("scores", "accuracy"):
            rows = read_table(made.results / part / f"{method}.parquet")
            kept = ~rows["metric"].isin(["iou", "localization_error"])
            rows = rows[kept | (rows["convention"] == "alpha0.25")]
            names = rows["sweep"].where(rows["sweep"] != "default", rows["method"])
            value = rows["hyperparameter"] + "=" + rows["value"]
            names = names + (" " + value).where(rows["value"] != "", "")
            names = names + (" (" + rows["draws"] + ")").where(rows["draws"] != "none", "")
            cell = names + " " + rows["metric"] + "/" + rows["convention"]
            parts.append(rows["score"].groupby(cell.to_numpy()).mean())
    rows = read_table(made.results / "randomization" / "scores.parquet")
    unit = (" " + rows["unit"]).where(rows["unit"] != "", "")
    cell = "IPR " + rows["method"] + unit + " " + rows["kind"]
    cell = cell + " " + rows["metric"] + "/" + rows["convention"]
    parts.append((1 - rows["score"]).groupby(cell.to_numpy()).mean())
    return pd.concat(parts).rename("value").rename_axis("cell").sort_index()


def tolerance(cell: str) -> float:
    """Relative to the larger of 1 and the number; of dynamic ranges, to the number."""
    # Statistics of randomized BatchNorm are sums in float32, and an optimizer feeds differences on.
    # Measured with SSE4.1, AVX2, AVX-512, 1 and 2 threads: at most 1.6e-6, 1.7e-7.
    if cell.startswith("IPR "):
        return 1e-4
    return 1e-5 if cell.startswith("MP-") else 1e-6


def problems(found: pd.Series, expected: pd.Series) -> dict[str, str]:
    """What is not as expected, by cell, in words."""
    told = {}
    for cell in expected.index.union(found.index, sort=False):
        if cell not in found:
            told[cell] = "not measured"
            continue
        if cell not in expected:
            told[cell] = "not among the expectations"
            continue
        now, then = float(found[cell]), float(expected[cell])
        scale = abs(then) if "dynamic_range" in cell else max(1.0, abs(then))
        if np.isnan(now) != np.isnan(then) or abs(now - then) > tolerance(cell) * scale:
            told[cell] = f"{now:.9g}, expected {then:.9g}"
    return told


def expectations() -> pd.Series:
    return pd.read_csv(EXPECTED).set_index("cell")["value"]


def accept(reason: str, inputs: Path, folder: Path) -> str:
    """Measure and write the expectations with their reason."""
    if not reason.strip():
        raise SystemExit('say why the numbers may change: --expect --reason "..."')
    found = measure(inputs, folder)
    told = problems(found, expectations()) if EXPECTED.is_file() else {}
    with atomic_file(EXPECTED) as temporary:
        found.to_csv(temporary, float_format="%.12g", lineterminator="\n")
    entry = {"day": date.today().isoformat(), "reason": reason, "n_changed": len(told)}
    history = json.loads(HISTORY.read_text()) if HISTORY.is_file() else []
    write_json([*history, entry], HISTORY)
    return "\n".join([*(f"{cell}: {text}" for cell, text in told.items()), f"{len(found)} cells"])


def train() -> str:
    """Train the network on drawn images; its weights in float32."""
    torch.manual_seed(0)
    network = build(len(CLASSES))
    pixels, _, labels = drawn(600, seed=100)
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in ([0.5, 0.45, 0.4], [0.2, 0.21, 0.22]))
    images, targets = (evaluation_set.as_images(pixels) - mean) / std, torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for step in range(70):
        rows = torch.arange(step * 40, step * 40 + 40) % len(images)
        loss = nn.functional.cross_entropy(network(images[rows]), targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    pixels, _, labels = drawn(300, seed=200)
    logits = network((evaluation_set.as_images(pixels) - mean) / std)
    right = (logits.argmax(1).numpy() == labels).mean()
    FOLDER.mkdir(exist_ok=True)
    safetensors.torch.save_file(network.state_dict(), WEIGHTS)
    size = WEIGHTS.stat().st_size
    sure = logits.softmax(1).amax(1).mean()
    return f"{WEIGHTS.name}: {right:.0%} of 300 right, mean confidence {sure:.2f}, {size:,} bytes"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--expect", action="store_true")
    parser.add_argument("--reason", default="")
    given = parser.parse_args()
    if given.train:
        print(train())
    if given.expect:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            write_inputs(Path("inputs"))
            print(accept(given.reason, Path("inputs"), Path("exact")))


if __name__ == "__main__":
    # Models name their code by module; as a script this file would be another one.
    import exact_study

    exact_study.main()
