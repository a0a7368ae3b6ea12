"""Score a study's maps against their negatives and against a mild change: `reports/inversion`.

Run on demand, no stage of the pipeline: it asks what SSIM says of an inverted map, by each
convention, and reads the maps that `make repro` left in `results/`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from steadymap.draws import generator
from steadymap.metrics.similarity import CONVENTIONS, dynamic_range, normalize, similarities
from steadymap.store.atomic import atomic_file
from steadymap.store.maps import Maps
from steadymap.store.tables import read_table, write_table

# Standard deviation of the noise that is the mild change, in those of each map.
MILD = 0.25
WINDOW = 5


def reference_settings(tasks: pd.DataFrame) -> dict[str, dict[str, object]]:
    """Hyperparameters of each method at the reference of its first sweep, or its only setting."""
    rows = tasks[tasks["is_reference"] & (tasks["draws"] != "independent")]
    return {
        method: json.loads(part["hyperparameters"].iloc[0])
        for method, part in rows.groupby("method", sort=False)
    }


def mildly_changed(maps: torch.Tensor, image_ids: list[str], method: str) -> torch.Tensor:
    """The maps with normal noise of `MILD` of their standard deviation."""
    noise = [generator(0, name, method, 0).standard_normal(maps.shape[1:]) for name in image_ids]
    return maps + MILD * maps.std(dim=(1, 2), keepdim=True) * torch.from_numpy(np.stack(noise))


def windows(maps: torch.Tensor) -> dict[str, float]:
    """Shares of windows by the signs of SSIM's two factors for a map and its negative, `common`.

    The factors are (c1 - 2 u**2) / (c1 + 2 u**2) and (c2 - 2 v) / (c2 + 2 v), u the window's mean
    and v its sample variance.
    """
    setting = CONVENTIONS["common"]
    unfolded = normalize(maps).unfold(1, WINDOW, 1).unfold(2, WINDOW, 1)
    mean_negative = 2 * unfolded.mean((-1, -2)) ** 2 > (0.01 * setting.data_range) ** 2
    variance_negative = 2 * unfolded.var((-1, -2)) > (0.03 * setting.data_range) ** 2
    return {
        "both_negative": float((mean_negative & variance_negative).double().mean()),
        "none_negative": float((~mean_negative & ~variance_negative).double().mean()),
    }


def measure(method: str, model: str, maps: np.ndarray, image_ids: list[str]) -> list[dict]:
    """One row per convention: maps against their negatives, and against a mild change."""
    origin = torch.from_numpy(np.array(maps, dtype=np.float64))
    kept = dynamic_range(origin) > 0
    origin, ids = origin[kept], [name for name, known in zip(image_ids, kept, strict=True) if known]
    options: dict[str, Any] = {"conventions": tuple(CONVENTIONS), "hog_cell": 4, "win_size": WINDOW}
    negative = similarities(method, origin, -origin, **options)
    mild = similarities(method, origin, mildly_changed(origin, ids, method), **options)
    shares = windows(origin)
    return [
        {
            "method": method,
            "model": model,
            "metric": metric,
            "convention": convention,
            "n_images": len(ids),
            "negative": float(negative[metric, convention].mean()),
            "negative_max": float(negative[metric, convention].max()),
            "mild": float(mild[metric, convention].mean()),
            "mild_min": float(mild[metric, convention].min()),
            **shares,
        }
        for metric, convention in negative
        if metric in ("ssim", "spearman")
    ]


def readme(table: pd.DataFrame, study: str) -> str:
    """Table of the maps against their negatives, and how it came about."""
    names = [*CONVENTIONS, "signed"]
    lines = [
        "# What SSIM says of an inverted map",
        "",
        f"Written by `python studies/inversion.py --study {study}` from the study's maps, each "
        "method at the reference of its first sweep: mean over images against the maps' negatives "
        "(single image at most) / against the maps with normal noise of a quarter of their "
        "standard deviation. `signed` is Spearman's rank correlation.",
        "",
        f"| method | model | {' | '.join(names)} | windows with two negative factors | with none |",
        f"|---|---|{'---|' * (len(names) + 2)}",
    ]
    for (method, model), part in table.groupby(["method", "model"], sort=False):
        rows = part.set_index("convention")
        cells = [
            f"{row.negative:+.2f} ({row.negative_max:+.2f}) / {row.mild:+.2f}"
            for row in rows.loc[names].itertuples()
        ]
        both, none = (f"{rows[name].iloc[0]:.0%}" for name in ("both_negative", "none_negative"))
        lines.append(f"| `{method}` | {model} | {' | '.join(cells)} | {both} | {none} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure all methods of a study, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", default="embedded")
    parser.add_argument("--results", type=Path, help="default: results/STUDY")
    parser.add_argument("--tasks", type=Path, help="default: reports/STUDY/tables/tasks.csv")
    parser.add_argument("--output", type=Path, default=Path("reports/inversion"))
    options = parser.parse_args()
    results = options.results or Path("results") / options.study
    tasks = options.tasks or Path("reports") / options.study / "tables" / "tasks.csv"
    rows: list[dict] = []
    for method, hyperparameters in reference_settings(read_table(tasks)).items():
        maps = Maps(results / "maps" / method)
        for model in maps.models:
            stack = np.asarray(maps.read(model, hyperparameters))
            rows += measure(method, model, stack, list(maps.image_ids))
    table = pd.DataFrame(rows)
    write_table(table, options.output / "inversion.csv")
    with atomic_file(options.output / "README.md") as temporary:
        temporary.write_text(readme(table, options.study))


if __name__ == "__main__":
    main()
