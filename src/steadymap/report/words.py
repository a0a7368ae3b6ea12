"""Numbers, intervals and settings as text."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from steadymap.analysis import readings
from steadymap.metrics.similarity import INVERTED
from steadymap.report import viewer
from steadymap.report.study import Study, by_key, missing, number, records, true

METER = "Shaded: 1 − SSIM."

BETTER = {
    name: f"{words} ({better} is better)" for name, (words, better) in readings.ACCURACY.items()
}

ARROWS = {"ssim": "SSIM ↑", "spearman": "Spearman ↑", "hog_pearson": "HOG ↑"}

VERDICTS = ("holds", "fails", "inconclusive", "not measurable here")

MAKE_UI = "MLflow (`make ui`)"

INVERTED_WORDS = f"a rank correlation below {INVERTED:g}, which SSIM may not show"


def reference_settings(study: Study, sweep: str) -> dict[str, Any]:
    """Hyperparameters at a sweep's reference, or at its first setting; without the seed."""
    rows = study.shared_tasks(sweep)
    kept = rows[true(rows["is_reference"])]
    row = records(kept if len(kept) else rows)[0]
    found = json.loads(row["hyperparameters"])
    return {name: value for name, value in found.items() if name != "seed"}


def viewer_link(study: Study, sweep: str, image_id: str) -> str:
    """Fragment of the viewer at an image; '' where it has no maps."""
    maps = study.maps(study.about(sweep)[0])
    models = [name for name in study.models if maps and name in maps.models]
    return viewer.fragment(models[0], sweep, image_id) if models else ""


def _rank(row: Mapping[str, Any]) -> dict[str, Any]:
    """Rank correlation of a headline row, with its interval."""
    return {name: row[f"rank_{name}"] for name in ("mean", "ci_low", "ci_high")}


def whole_number(value: Any) -> str:
    """Whole number as text; a dash where undefined."""
    return "–" if missing(value) else str(int(value))


def side(row: Mapping[str, Any]) -> int:
    """Side of 0 that an interval lies on; 0 where it holds 0 or is not known."""
    return int(row["ci_low"] > 0) - int(row["ci_high"] < 0)


def inverted_mark(row: Mapping[str, Any]) -> str:
    """Mark of rows with inverted pairs."""
    return "" if missing(row["n_inverted"]) or not row["n_inverted"] else " ‡"


def rank_moved(row: Mapping[str, Any]) -> str:
    """1 - Spearman with its interval."""
    return one_minus_ssim(_rank(row))


def one_minus_ssim(row: Mapping[str, Any]) -> str:
    """1 - SSIM with its interval."""
    turned = {"mean": 1 - row["mean"], "ci_low": None}
    if not missing(row.get("ci_low")):
        turned |= {"ci_low": 1 - row["ci_high"], "ci_high": 1 - row["ci_low"]}
    return with_interval(turned)


def accuracy_pairs(study: Study) -> list[tuple[str, str]]:
    """Accuracy metrics, with the headline's convention."""
    return [
        ("insertion", "auc_over_max"),
        ("deletion", "auc_over_max"),
        ("localization_error", study.alpha),
        ("iou", study.alpha),
    ]


def accuracy_words(study: Study) -> str:
    """Definition of the accuracy metrics in one paragraph."""
    return (
        "Insertion and deletion: area under the curve over its maximum. Localization: box of what "
        f"exceeds {float(study.alpha.removeprefix('alpha')):g} of the map's maximum; other "
        "thresholds in `tables/sensitivity.csv`."
    )


def bounds(row: Mapping[str, Any], prefix: str) -> str:
    """Interval of the columns `prefix`_low and _high as text."""
    low, high = row[f"{prefix}_low"], row[f"{prefix}_high"]
    return "" if missing(low) else f"[{decimal(low)}, {decimal(high)}]"


def as_sentence(text: str) -> str:
    """Text with a capital and without its full stop."""
    return text[:1].upper() + text[1:].rstrip(".")


def metric_row(study: Study, rows: pd.DataFrame, metric: str) -> dict[str, Any]:
    """Row of a metric, of SSIM by the headline's convention."""
    chosen = rows[rows["metric"] == metric]
    if metric == "ssim":
        chosen = chosen[chosen["convention"] == study.convention]
    return records(chosen.head(1))[0] if len(chosen) else {}


def one_kind(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of one order (independent where there is), randomizer and preset."""
    for name in ("order", "randomizer", "preset"):
        if name in table and len(table):
            first = "independent" if (table[name] == "independent").any() else table[name].iloc[0]
            table = table[table[name] == first]
    return table


def rank_rows(study: Study) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows of table `ipr` by rank correlation, by model and method."""
    table = one_kind(study.table("ipr"))
    return by_key(table[table["metric"] == "spearman"], "model", "method")


def grid_words(study: Study, sweep: str) -> str:
    """Grid of a sweep as text."""
    return f"{sweep} `{study.about(sweep)[1]}` {swept_values(study.values(sweep)[0])}"


def swept_values(values: Sequence[str]) -> str:
    """Values of a sweep in few words."""
    if len(values) < 4 or any(number(value) is None for value in values):
        return ", ".join(values)
    return f"{values[0]} to {values[-1]} ({len(values)} values)"


def own_metrics(table: pd.DataFrame) -> list[str]:
    """Similarity metrics of one's own that a table has."""
    return list(table.loc[table["convention"] == "own", "metric"].unique())


def with_bounds(row: Mapping[str, Any], value: str, prefix: str) -> str:
    """Value with the interval of its columns `prefix`_low and _high."""
    return f"{decimal(row[value])} {bounds(row, prefix)}".strip()


def two_digits(value: Any) -> str:
    """Number with two decimals; a dash where undefined."""
    return "–" if missing(value) or not math.isfinite(value) else f"{value:.2f}"


def whole_percent(value: Any) -> str:
    """Share as a whole percentage; a dash where undefined."""
    return "–" if missing(value) or not math.isfinite(value) else f"{100 * value:.0f} %"


def held_constant(study: Study, sweep: str, hyperparameter: str) -> str:
    """Hyperparameters that the sweep holds constant."""
    row = records(study.shared_tasks(sweep))[0]
    held = {k: v for k, v in json.loads(row["hyperparameters"]).items() if k != hyperparameter}
    return f" Held: {', '.join(f'{name} {value}' for name, value in held.items())}." if held else ""


def decimal(value: Any) -> str:
    """Number with three decimals; a dash where undefined."""
    return "–" if missing(value) or not math.isfinite(value) else f"{value:.3f}"


def digits(value: Any) -> str:
    """Number with three significant digits; a dash where undefined."""
    return "–" if missing(value) or not math.isfinite(value) else f"{value:.3g}"


def with_interval(row: Mapping[str, Any]) -> str:
    """Mean with its interval; the mean alone where there is none."""
    mean = decimal(row.get("mean"))
    if mean == "–" or missing(row.get("ci_low")):
        return mean
    return f"{mean} [{decimal(row['ci_low'])}, {decimal(row['ci_high'])}]"


def meter(mean: Any) -> float | None:
    """1 - SSIM within [0, 1], for a bar in a table's cell."""
    return None if missing(mean) or not math.isfinite(mean) else min(max(1 - mean, 0.0), 1.0)


def share_of(value: Any, n: Any) -> str:
    """Share as a percentage, with the number it is of."""
    if missing(value):
        return "–"
    counted = "" if missing(n) else f" ({int(n)})"
    return f"{100 * float(value):.1f} %{counted}"


def count_of(n: int, noun: str, plural: str = "") -> str:
    """Number with its noun in singular or plural."""
    return f"{n} {noun if n == 1 else plural or noun + 's'}"


def and_list(names: Iterable[Any]) -> str:
    """Names joined by commas and an 'and'."""
    names = [str(name) for name in names]
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
