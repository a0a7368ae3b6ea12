"""How much of a map is the seed, at the counts that tools take by default: `reports/defaults`.

Run on demand, no stage of the pipeline:

    python studies/defaults.py --weights data/squeezenet1_0-imagenet.safetensors \
        --photographs data/imagenette224/val --n 12

The counts are the tools' (`defaults.yaml`), the implementation is this package's, so that the count
is all that differs. Each photograph is explained twice, with seeds 0 and 1, for the class that the
network predicts. Finished maps are kept in `.cache/tasks`; an interrupted run goes on where it
stopped.
"""

import argparse
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from matplotlib.figure import Figure
from PIL import Image
from rich.progress import track
from torch import nn

from steadymap import attribute, explainable
from steadymap.engine.settings import Setting, setting
from steadymap.engine.tasks import cost_of, task_key
from steadymap.metrics.similarity import degenerate, normalize, spearman, ssim
from steadymap.models.registry import build, load_state, read_state
from steadymap.params.schema import Attribution
from steadymap.report.figures import theme
from steadymap.statistics.intervals import Range, range_of
from steadymap.statistics.resampling import interval
from steadymap.store.atomic import atomic_file
from steadymap.store.tables import write_table
from steadymap.store.task_cache import TaskCache

ARCHITECTURE, SIDE, N_CLASSES = "squeezenet1_0", 224, 1000
# Of the weights that ship as squeezenet1_0-imagenet.safetensors.
MEAN, STD = (123 / 255, 117 / 255, 104 / 255), (1 / 255, 1 / 255, 1 / 255)
SEEDS = (0, 1)
# Share of the pixels whose overlap is measured: those of largest magnitude.
TOP = 0.1
MEASURES = {"ssim": "SSIM", "spearman": "Spearman", "top": "top 10 %"}
SUFFIXES = (".jpeg", ".jpg", ".png")
KEYS = ["method", "count", "tools"]


@dataclass(frozen=True)
class Default:
    """A method at a count, and the tools that take it.

    Attributes
    ----------
    method : str
        Name of the method.
    hyperparameters : mapping
        What differs from this package's defaults.
    tools : str
        Tools with the version in which the default was read, and where it stands.
    """

    method: str
    hyperparameters: Mapping[str, Any]
    tools: str

    @property
    def count(self) -> int:
        """Number of samples or steps."""
        return next(v for name, v in self.hyperparameters.items() if name.startswith("n_"))

    def at(self, seed: int) -> Setting:
        """All hyperparameters, with a seed."""
        return setting(self.method, {**self.hyperparameters, "seed": seed})


def read_defaults(path: Path) -> list[Default]:
    """Defaults of `defaults.yaml`."""
    return [
        Default(
            row["method"],
            row["hyperparameters"],
            "; ".join("{tool} {version} ({where})".format(**tool) for tool in row["tools"]),
        )
        for row in yaml.safe_load(path.read_text("utf-8"))
    ]


def photographs(folder: Path, n: int, side: int) -> tuple[list[str], np.ndarray]:
    """First photographs of each class folder in turn, squashed: names, uint8 (n, side, side, 3).

    Parameters
    ----------
    folder : Path
        With photographs, in folders or not.
    n : int
        How many.
    side : int
        Px.
    """
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if len(found) < n:
        raise ValueError(f"{folder} has {len(found)} photographs; ask for at most as many (--n)")
    classes = [list(group) for _, group in itertools.groupby(found, key=lambda p: p.parent)]
    in_turn = [p for turn in itertools.zip_longest(*classes) for p in turn if p is not None][:n]
    pixels = []
    for path in in_turn:
        with Image.open(path) as image:
            pixels.append(np.asarray(image.convert("RGB").resize((side, side))))
    return [str(path.relative_to(folder)) for path in in_turn], np.stack(pixels)


def top_overlap(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    """Share that the strongest tenths of two maps have in common (Dice), .1 by chance.

    Pixels as strong as the last of the tenth belong to it.
    """
    flat = [maps.double().abs().flatten(1) for maps in (a, b)]
    kept = max(1, round(TOP * flat[0].shape[1]))
    first, second = (m >= m.topk(kept).values[:, -1:] for m in flat)
    shared, both = (first & second).sum(1).double(), (first.sum(1) + second.sum(1)).double()
    return (2 * shared / both).numpy()


def scores(a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
    """Each of `MEASURES` of two batches of maps, pair by pair; SSIM by convention `common`."""
    first, second = torch.from_numpy(a), torch.from_numpy(b)
    return {
        "ssim": ssim(normalize(first), normalize(second)).numpy(),
        "spearman": spearman(first, second).numpy(),
        "top": top_overlap(first, second),
    }


@dataclass(frozen=True)
class Audit:
    """A network and photographs with the classes to explain.

    Attributes
    ----------
    model : Module
        As `explainable` makes it.
    weights_sha256 : str
        Of its weights.
    names : list of str
        Names of the photographs.
    pixels : ndarray
        Uint8 (n, side, side, 3).
    cache : TaskCache
        Where finished maps are.
    """

    model: nn.Module
    weights_sha256: str
    names: list[str]
    pixels: np.ndarray
    cache: TaskCache

    def maps(self, default: Default, seed: int) -> Iterator[np.ndarray]:
        """Map of each photograph, (1, side, side), from the cache where it is there."""
        images = torch.from_numpy(self.pixels).permute(0, 3, 1, 2).float() / 255
        made = default.at(seed)
        named = f"{default.method} {default.count}, seed {seed}"
        every = [*zip(self.names, images, self.pixels, strict=True)]
        for name, image, pixels in track(every, named, transient=True):
            with torch.inference_mode():
                target = int(self.model(image[None]).argmax())
            content = hashlib.sha256(pixels.tobytes()).hexdigest()
            key = task_key(
                made,
                weights_sha256=self.weights_sha256,
                preprocessing="defaults",
                images=[(name, content, target)],
                attribution=Attribution(device="cpu"),
            )
            entry = self.cache.read(key)
            if entry is None:
                maps = attribute(
                    default.method,
                    self.model,
                    image[None],
                    [target],
                    image_ids=[name],
                    progress=False,
                    **made.hyperparameters,
                )
                entry = maps.numpy(), {}
                self.cache.write(key, *entry)
            yield entry[0]

    def measure(self, default: Default) -> pd.DataFrame:
        """Scores per photograph between seeds, and with the map of another one as chance level."""
        both = [np.concatenate([*self.maps(default, seed)]) for seed in SEEDS]
        forward, backward = cost_of([default.at(0)], self.pixels.shape[1])
        seeds = scores(*both)
        chance = scores(both[0], np.roll(both[1], 1, axis=0))
        blank = degenerate(torch.from_numpy(both[0])) | degenerate(torch.from_numpy(both[1]))
        return pd.DataFrame(
            {
                "method": default.method,
                "count": default.count,
                "tools": default.tools,
                "image_id": self.names,
                "forward": forward,
                "backward": backward,
                "degenerate": blank.numpy(),
                **seeds,
                **{f"chance_{name}": values for name, values in chance.items()},
            }
        )


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean over photographs of each score with its interval, a row per default.

    Photographs with a blank map are left out and counted.
    """
    records = []
    for key, part in rows.groupby(KEYS, sort=False):
        kept = part[~part["degenerate"]]
        row = dict(zip(KEYS, key, strict=True)) | {"n_images": len(kept)}
        row["n_degenerate"] = int(part["degenerate"].sum())
        row |= {name: int(part[name].iloc[0]) for name in ("forward", "backward")}
        for name in MEASURES:
            within = Range(0.0, 1.0) if name == "top" else range_of(name)
            low, high = interval(kept[name].dropna().to_numpy(), within=within)
            row |= {name: kept[name].mean(), f"{name}_low": low, f"{name}_high": high}
            row[f"chance_{name}"] = kept[f"chance_{name}"].mean()
        records.append(row)
    return pd.DataFrame(records)


@theme.themed
def figure(table: pd.DataFrame) -> Figure:
    """Agreement of two seeds at each default, a panel per measure; rings: another photograph."""
    labels = [f"{row.method} {row.count}" for row in table.itertuples()]
    drawn, axes = theme.panels(len(MEASURES), (9.0, 1.4 + 0.3 * len(table)))
    lines = np.arange(len(table))
    for axis, (name, title) in zip(axes, MEASURES.items(), strict=True):
        axis.barh(lines, table[name], 0.6, color=theme.HUES[0][0])
        ends = table[[f"{name}_low", f"{name}_high"]].to_numpy(float).T
        axis.plot(ends, np.tile(lines, (2, 1)), color=theme.INK, linewidth=1.6)
        axis.plot(table[f"chance_{name}"], lines, "o", mfc="white", mec=theme.INK, ms=5)
        axis.set_title(f"{title} of two seeds", loc="left", fontsize=9)
        axis.set_xlim(min(0.0, axis.get_xlim()[0]), 1.0)
    theme.label_lines(axes, labels)
    ring = theme.mark("another photograph", marker="o", mfc="white", mec=theme.INK, linestyle="")
    theme.headed(drawn, "How much two seeds agree at tools' default counts", [ring])
    theme.footnote(drawn, f"{theme.n_images(table)}; dark lines: 95 % intervals")
    return drawn


def readme(table: pd.DataFrame) -> str:
    """Page of the table."""
    lines = [
        "# How much of a map is the seed, at tools' default counts",
        "",
        f"Written by `python studies/defaults.py`: `{ARCHITECTURE}` with ImageNet weights, "
        f"{SIDE} px, {theme.span(table['n_images'])} photographs, each explained twice with two "
        "seeds for the class that the network predicts. The counts are the tools'; all else is "
        "this package's implementation and defaults, of Integrated Gradients with a baseline of "
        "uniform noise. Means over photographs with 95 % intervals; in parentheses the same "
        "between maps of different photographs. Top 10 %: what the strongest tenths of the pixels "
        "have in common (Dice).",
        "",
        "![Agreement of two seeds at each default count](defaults.png)",
        "",
        "| method | count | default of | SSIM | Spearman | top 10 % | passes | n |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in table.to_dict("records"):
        cells = [
            f"{row[name]:.2f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}] "
            f"({row[f'chance_{name}']:.2f})"
            for name in MEASURES
        ]
        passes = f"{row['forward']} forward, {row['backward']} backward"
        blank = f" (+ {row['n_degenerate']} blank)" if row["n_degenerate"] else ""
        start = f"| {row['method']} | {row['count']} | {row['tools']} |"
        lines.append(f"{start} {' | '.join(cells)} | {passes} | {row['n_images']}{blank} |")
    return "\n".join([*lines, ""])


def write(table: pd.DataFrame, rows: pd.DataFrame, folder: Path) -> None:
    """Write table, scores per photograph, figure and page.

    Parameters
    ----------
    table : DataFrame
        As `summary` makes it.
    rows : DataFrame
        Scores per photograph.
    folder : Path
        Where to.
    """
    write_table(table, folder / "defaults.csv")
    write_table(rows, folder / "images.csv")
    theme.save(figure(table), folder / "defaults.png")
    with atomic_file(folder / "README.md") as temporary:
        temporary.write_text(readme(table), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run each default on each photograph, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--n", type=int, default=12, help="number of photographs")
    parser.add_argument("--side", type=int, default=SIDE, help="px")
    parser.add_argument("--cache", type=Path, default=Path(".cache/tasks"))
    parser.add_argument("--output", type=Path, default=Path("reports/defaults"))
    parser.add_argument("--defaults", type=Path, default=Path(__file__).with_suffix(".yaml"))
    options = parser.parse_args(arguments)
    network = build(ARCHITECTURE, N_CLASSES)
    load_state(network, read_state(options.weights), source=str(options.weights))
    names, pixels = photographs(options.photographs, options.n, options.side)
    audit = Audit(
        explainable(network, mean=MEAN, std=STD),
        hashlib.sha256(options.weights.read_bytes()).hexdigest(),
        names,
        pixels,
        TaskCache(options.cache),
    )
    rows = pd.concat([audit.measure(default) for default in read_defaults(options.defaults)])
    write(summary(rows), rows, options.output)


if __name__ == "__main__":
    main()
