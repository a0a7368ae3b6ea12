"""Visible structure of maps, beside a floor: what another photograph's would score (SAM 4.1)."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from steadymap.params.schema import Statistics
from steadymap.statistics.intervals import range_of
from steadymap.statistics.resampling import Replicates, Resamples, cluster_names

# What `measured` names each group by.
_KEYS = ["sweep", "method", "model", "value", "metric"]

_PARTS = ("mean", "floor", "beyond")

COLUMNS = (
    *(*_KEYS, "n_images", "n_degenerate"),
    *(f"{part}{end}" for part in _PARTS for end in ("", "_low", "_high")),
)

# Metrics in the order in which they are shown, and what they are called.
MEASURES = {
    "edge_correlation": "edges",
    "autocorrelation": "smoothness",
    "mass_inside": "inside the box",
}


@dataclass(frozen=True)
class Structure:
    """Structure of maps by one metric.

    Attributes
    ----------
    mean, floor : Replicates
        Mean over images with their own target, and with another photograph's.
    n_degenerate : int
        Maps that are left out because they are blank.
    """

    mean: Replicates
    floor: Replicates
    n_degenerate: int

    @property
    def beyond(self) -> Replicates:
        """Mean beyond the floor."""
        return self.mean - self.floor


def measured(scores: pd.DataFrame, resamples: Resamples) -> Iterator[tuple[tuple, Structure]]:
    """Structure of each sweep's reference, method, model, value and metric.

    Blank maps are left out and counted. The interval of what another photograph's target gives
    leaves out every pair of which a photograph is part.

    Parameters
    ----------
    scores : DataFrame
        As in `results/{study}/comparisons/structure.parquet`.
    resamples : Resamples
        Of the evaluation set.
    """
    defined = scores.assign(score=scores["score"].mask(scores["degenerate"].astype(bool)))
    ids = resamples.image_ids
    for key, part in defined.groupby(_KEYS, sort=False):
        within, by_pairing = range_of(str(key[-1])), dict(list(part.groupby("pairing")))
        same = by_pairing["same"].set_index("image_id")
        mean = resamples.mean(same["score"].reindex(ids).to_numpy(float), within=within)
        other = by_pairing.get("mismatched", part[:0]).set_index("image_id")
        partners = np.arange(len(ids))
        partners[ids.get_indexer(other.index)] = ids.get_indexer(other["other"])
        values = other["score"].reindex(ids).to_numpy(float)
        floor = resamples.paired(partners).mean(values, within=within)
        yield key, Structure(mean, floor, int(same["degenerate"].sum()))


def structure(scores: pd.DataFrame, rows: pd.DataFrame, options: Statistics) -> pd.DataFrame:
    """Structure of each method's maps, the floor, and what lies beyond it, with intervals.

    Parameters
    ----------
    scores : DataFrame
        As in `results/{study}/comparisons/structure.parquet`.
    rows : DataFrame
        The evaluation set, with columns image_id and photo.
    options : Statistics
        Confidence.

    Returns
    -------
    DataFrame
        With the columns `COLUMNS`: `mean` over images, `floor` with the edges, the map or the box
        of another photograph, `beyond` their difference.
    """
    resamples = Resamples(rows["image_id"], cluster_names(rows), options)
    records = []
    for key, found in measured(scores, resamples):
        row = dict(zip(_KEYS, key, strict=True)) | {"n_images": found.mean.seen}
        row["n_degenerate"] = found.n_degenerate
        for name in _PARTS:
            value = getattr(found, name)
            row[name] = value.point
            row |= dict(
                zip((f"{name}_low", f"{name}_high"), resamples.interval(value), strict=True)
            )
        records.append(row)
    return pd.DataFrame(records, columns=list(COLUMNS))
