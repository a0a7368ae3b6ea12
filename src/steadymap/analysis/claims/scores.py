"""Scores of a study in the shape that the recipes of claims read."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files

import numpy as np
import pandas as pd
from jaxtyping import Float

from steadymap.analysis.claims.verdict import Draws, MissingError, Resamples
from steadymap.params.methods import ROBUST
from steadymap.params.schema import Statistics
from steadymap.statistics.intervals import cluster_names

# Table S1's rows, and our sweeps: LIME and MP stand there for their seed sweeps.
TABLE_ROWS = {"SG": "SG-N", "SP-S": "SP-S", "SP-L": "SP-L", "LIME": "LIME-seed", "MP": "MP-seed"}

TABLE_METRICS = ("ssim", "localization_error", "insertion", "deletion")

ACCURACY = TABLE_METRICS[1:]

SIMILARITY = ("spearman", "hog_pearson", "ssim")

# Images of the paper: what the spread of a seed's dataset means is scaled to (docs/protocol.md).
PAPER_IMAGES = 1735

TABLE_COLUMNS = (
    *("row", "sweep", "model", "metric", "mean", "std_rms", "std_mean"),
    *("mean_low", "mean_high", "rms_low", "rms_high", "std_mean_low", "std_mean_high"),
    *("n_images", "paper_model", "paper_mean", "paper_std", "values", "paper_values"),
)

FAMILIES = {"googlenet": "GoogLeNet", "resnet": "ResNet"}


@dataclass(frozen=True)
class Spread:
    """Draws of a sweep's global spread (docs/protocol.md), and the spread between its settings.

    `stands_out` says whether the dataset means differ by more than the noise of their images. Where
    they don't, `scaled` is that noise on the paper's images, the same in every draw.
    """

    std: Draws
    scaled: Draws
    between: float
    n_images: int
    n_settings: int
    stands_out: bool = True


class StudyScores:
    """Scores of a study, and the statistics that claims are made of, as draws."""

    def __init__(
        self,
        scores: pd.DataFrame,
        rows: pd.DataFrame,
        options: Statistics,
        *,
        alpha: float,
        models: Sequence[str] = (),
        comparisons: pd.DataFrame | None = None,
        grids: Mapping[str, Sequence[str]] | None = None,
    ):
        self.options = options
        self.grids = {name: tuple(values) for name, values in (grids or {}).items()}
        # Sweeps and comparisons that the claim at hand rests on.
        self.used: list[str] = []
        self.resamples = Resamples(list(rows["image_id"]), cluster_names(rows), options)
        # A seed sweep has no shared draws; a count sweep's independent ones stand beside.
        headline = (scores["draws"] != "independent") | (scores["hyperparameter"] == "seed")
        self.scores = scores[headline]
        keys = ["sweep", "model", "metric", "convention"]
        self._groups = self.scores.groupby(keys, sort=False).indices
        self.sweeps = (
            self.scores[["sweep", "method", "hyperparameter"]]
            .drop_duplicates("sweep")
            .set_index("sweep")
        )
        present = list(dict.fromkeys(self.scores["model"]))
        self.models = [model for model in models if model in present] or present
        self.pairs = [(m, m + ROBUST) for m in self.models if m + ROBUST in self.models]
        hog = self.scores.loc[self.scores["metric"] == "hog_pearson", "convention"]
        self.conventions = {
            "ssim": "sam",
            "localization_error": f"alpha{alpha:.2f}",
            "insertion": "auc_over_max",
            "deletion": "auc_over_max",
            "spearman": "signed",
            "pearson": "signed",
            "hog_pearson": str(hog.iloc[0]) if len(hog) else "",
            "dynamic_range": "raw",
        }
        self.comparisons = comparisons

    def cells(
        self, sweep: str, model: str, metric: str, convention: str | None = None
    ) -> tuple[list[str], Float[np.ndarray, "images settings"]]:
        """Values of a sweep's settings, in order, and the scores; NaN where there is none."""
        convention = self.conventions[metric] if convention is None else convention
        where = self._groups.get((sweep, model, metric, convention))
        if where is None:
            raise MissingError(self.reason(sweep, metric, convention))
        self.used.append(sweep)
        part = self.scores.iloc[where]
        values = in_order(dict.fromkeys(part["value"]))
        images = self.resamples.image_ids.get_indexer(pd.Index(part["image_id"]))
        columns = pd.Index(values).get_indexer(pd.Index(part["value"]))
        found = np.full((len(self.resamples.image_ids), len(values)), np.nan)
        known = images >= 0
        found[images[known], columns[known]] = part["score"].to_numpy(np.float64)[known]
        return values, found

    def reason(self, sweep: str, metric: str, convention: str) -> str:
        """Why a score can't be measured here."""
        if sweep not in self.sweeps.index:
            return f"the study has no sweep {sweep}"
        if metric in ACCURACY and not self.scores["metric"].isin(ACCURACY).any():
            return "the study has no accuracy scores"
        if metric == "localization_error":
            anywhere = (self.scores["metric"] == metric).any()
            return f"no scores at {convention}" if anywhere else "no image of the study has a box"
        return f"{sweep} has no {metric} scores ({convention or 'any convention'})"

    def similarity(
        self, sweep: str, model: str, metric: str, convention: str | None = None
    ) -> Draws:
        """Mean over images of the mean over a sweep's variants."""
        _, cells = self.cells(sweep, model, metric, convention)
        return self.resamples.mean(_row_mean(cells))

    def setting_means(self, sweep: str, model: str, metric: str) -> tuple[list[str], np.ndarray]:
        """Values of a sweep, and the draws of each one's mean over images, (draws, settings)."""
        values, cells = self.cells(sweep, model, metric)
        return values, self.resamples.mean(cells)

    def spread(self, sweep: str, model: str, metric: str, convention: str | None = None) -> Spread:
        """Std over a sweep's dataset means, as is and as it would be on the paper's 1,735 images.

        Of the variance over settings of dataset means over n images, the part tau^2 / n is noise,
        tau^2 being the variance between images of a setting's effect. A seed has nothing else: its
        scaled variance is the mean variance between seeds per image over 1,735. A hyperparameter's
        is what
        the noise leaves, plus tau^2 / 1,735.
        """
        _, cells = self.cells(sweep, model, metric, convention)
        complete = np.isfinite(cells).all(axis=1)
        n, k = int(complete.sum()), cells.shape[1]
        if k < 2 or n < 2:
            raise MissingError(f"{sweep} has {k} settings and {n} images in {metric}: too few")
        effects = cells[complete] - cells[complete].mean(axis=1, keepdims=True)
        tau2 = effects.var(axis=0, ddof=1).mean()
        means = self.resamples.mean(np.where(complete[:, None], cells, np.nan))
        observed = means.var(axis=1)
        # Resampling adds the noise of n images once more: taken off, or the interval would lie
        # above the estimate.
        extra = np.zeros(len(observed))
        if not self.resamples.jackknife:
            extra[1:] = effects.var(axis=0).mean() / n
        between = np.where(complete, cells.var(axis=1), np.nan)
        stands_out = True
        if self.sweeps.loc[sweep, "hyperparameter"] == "seed":
            scaled2 = self.resamples.mean(between) / PAPER_IMAGES
        else:
            scaled2 = np.maximum(observed - extra - tau2 / n, 0) + tau2 / PAPER_IMAGES
            stands_out = bool(observed[0] > tau2 / n)
        return Spread(
            np.sqrt(np.maximum(observed - extra, 0)),
            np.sqrt(scaled2),
            math.sqrt(np.nanmean(between) * k / (k - 1)),
            n,
            k,
            stands_out,
        )

    def models_of(self, sweep: str, metric: str, convention: str | None = None) -> list[str]:
        """Models with scores of a sweep by one metric."""
        convention = self.conventions[metric] if convention is None else convention
        found = [m for m in self.models if (sweep, m, metric, convention) in self._groups]
        if not found:
            raise MissingError(self.reason(sweep, metric, convention))
        return found

    def scaled(self, sweep: str, metric: str) -> Draws:
        """Global spread at 1,735 images, mean over models."""
        models = self.models_of(sweep, metric)
        return mean_of([self.spread(sweep, model, metric).scaled for model in models])

    def stands_out(self, sweep: str, metric: str) -> bool:
        """Whether any model's spread is more than the noise of the study's images."""
        models = self.models_of(sweep, metric)
        return any(self.spread(sweep, model, metric).stands_out for model in models)

    def raw(self, sweep: str, metric: str) -> float:
        """Global spread as it is on the study's own images, mean over models."""
        models = self.models_of(sweep, metric)
        return float(np.mean([self.spread(sweep, model, metric).std[0] for model in models]))

    @cached_property
    def table(self) -> pd.DataFrame:
        """Table S1; the cells of mean, std_rms and std_mean are draws."""
        found = []
        for row, sweep in TABLE_ROWS.items():
            for model in self.models:
                for metric in TABLE_METRICS:
                    try:
                        _, cells = self.cells(sweep, model, metric)
                    except MissingError:
                        continue
                    variances = _row_variance(cells)
                    found.append(
                        {
                            "row": row,
                            "sweep": sweep,
                            "model": model,
                            "metric": metric,
                            "mean": self.resamples.mean(_row_mean(cells)),
                            "std_rms": np.sqrt(self.resamples.mean(variances)),
                            "std_mean": self.resamples.mean(np.sqrt(variances)),
                            "n_images": self.resamples.seen[-1],
                        }
                    )
        columns = [*TABLE_COLUMNS[:7], "n_images"]
        return pd.DataFrame(found, columns=columns)

    def need_pairs(self) -> list[tuple[str, str]]:
        """Regular and robust models in pairs; a MissingError where there are none."""
        if not self.pairs:
            raise MissingError("no model of the study has a robust twin")
        return self.pairs

    def family(self, family: str) -> tuple[str, str]:
        """Pair that stands for a network of the paper: ResNet-50 if there, else the first."""
        found = [pair for pair in self.need_pairs() if pair[0].startswith(family)]
        if not found:
            raise MissingError(f"the study has no {FAMILIES[family]} pair")
        return next((pair for pair in found if pair[0] == "resnet50"), found[0])

    @cached_property
    def _compared(self) -> dict[tuple[str, ...], Float[np.ndarray, " images"]]:
        if self.comparisons is None:
            return {}
        frame = self.comparisons
        guided = frame["method"] == "guided_backprop"
        wanted = frame["metric"].map(self.conventions)
        # HOG's cells and the distance's scaling are whatever the comparison used.
        free = ~frame["metric"].isin(["ssim", "spearman"])
        frame = frame[free | (frame["convention"] == wanted)].assign(
            key=frame["value"].astype(str).where(~guided, "guided_backprop")
        )
        names = ["comparison", "model", "other", "key", "pairing", "metric"]
        found = {}
        for name, part in frame.groupby(names, sort=False):
            scores = part.groupby("image_id")["score"].mean()
            found[name] = scores.reindex(self.resamples.image_ids).to_numpy(float)
        return found

    def compared(
        self, comparison: str, model: str, other: str, key: str, pairing: str, metric: str
    ) -> Draws:
        """Mean over images of a comparison; `key` is a value, or guided_backprop."""
        found = self._compared.get((comparison, model, other, key, pairing, metric))
        if found is None:
            what = " ".join(filter(None, (comparison, key, pairing)))
            raise MissingError(f"no comparison {what} in {metric} for {model}")
        return self.resamples.mean(found)

    def comparison(self, comparison: str) -> pd.DataFrame:
        """Rows of one comparison; a MissingError where it was not made."""
        if self.comparisons is not None:
            part = self.comparisons[self.comparisons["comparison"] == comparison]
            if len(part):
                return part
        raise MissingError(f"the study has no comparison {comparison}")

    def targets(
        self, comparison: str, role: str, regular: str | None = None
    ) -> list[tuple[str, str]]:
        """Pairs (regular model, robust model it is held against) of a de-noising comparison."""
        part = self.comparison(comparison)
        part = part[part["role"] == role]
        if regular is not None:
            part = part[part["model"] == regular]
        found = list(dict.fromkeys(zip(part["model"], part["other"], strict=True)))
        if not found:
            what = "robust twin" if role == "twin" else "second robust model"
            raise MissingError(f"{comparison} has no {what} to compare with")
        return found

    def keys(self, comparison: str) -> list[str]:
        """Values of a de-noising comparison in order, the plain map's 0 first."""
        part = self.comparison(comparison)
        part = part[part["method"] != "guided_backprop"]
        found = in_order(dict.fromkeys(part["value"].astype(str)))
        if len(found) < 2 or float(found[0]) != 0:
            raise MissingError(f"{comparison} lacks the plain map (value 0) or a de-noised one")
        return found

    def rests_on(self, name: str, values: Sequence[str]) -> None:
        """Note that a claim rests on a comparison at these values."""
        self.grids[name] = tuple(values)
        self.used.append(name)

    def grid(self) -> tuple[str, str]:
        """Values swept that the claim at hand rests on, and whether they are the paper's."""
        told, same = [], []
        for name in dict.fromkeys(self.used):
            ours, theirs = self.grids.get(name, ()), paper_grids().get(name, ())
            if not ours:
                continue
            words = f"{name} {', '.join(ours)}"
            if theirs:
                same.append(_same_values(ours, theirs))
                words += "" if same[-1] else f" (paper {', '.join(theirs)})"
            told.append(words)
        return "; ".join(told), "" if not same else "yes" if all(same) else "no"


def in_order(values: Mapping[str, None]) -> list[str]:
    """Values in numeric order where all are numbers, else as they came."""
    try:
        return sorted(values, key=float)
    except ValueError:
        return list(values)


def _row_mean(cells: np.ndarray) -> np.ndarray:
    known = np.isfinite(cells)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(known, cells, 0.0).sum(axis=1) / known.sum(axis=1)


def _row_variance(cells: np.ndarray) -> np.ndarray:
    return _row_mean((cells - _row_mean(cells)[:, None]) ** 2)


def mean_of(parts: Sequence[Draws]) -> Draws:
    """Mean over parts, replicate by replicate."""
    return np.mean(np.stack(parts), axis=0)


@cache
def paper_grids() -> dict[str, tuple[str, ...]]:
    """Values that the paper swept, at 224 px, by our names of sweeps and comparisons."""
    found = pd.read_csv(str(files("steadymap.analysis.claims") / "paper_grids.csv"), dtype=str)
    return {row.sweep: tuple(row.values.split()) for row in found.itertuples(name="Grid")}


def _same_values(ours: Sequence[str], theirs: Sequence[str]) -> bool:
    try:
        return {float(value) for value in ours} == {float(value) for value in theirs}
    except ValueError:
        return set(ours) == set(theirs)


def stacked(table: pd.DataFrame, column: str) -> np.ndarray:
    """Column of arrays as one array."""
    return np.stack(table[column].to_list())


def of_metric(table: pd.DataFrame, metric: str, robust: bool | None = None) -> pd.DataFrame:
    """Rows of one metric, of robust or of regular models where asked."""
    part = table[table["metric"] == metric]
    if robust is not None:
        part = part[part["model"].str.endswith(ROBUST) == robust]
    return part


def twins(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of regular models beside those of their robust twins (`_robust`)."""
    regular = table[~table["model"].str.endswith(ROBUST)]
    robust = table[table["model"].str.endswith(ROBUST)]
    robust = robust.assign(model=robust["model"].str.removesuffix(ROBUST))
    return regular.merge(robust, on=["row", "model", "metric"], suffixes=("", "_robust"))
