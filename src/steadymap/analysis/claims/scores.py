"""Scores of a study in the shape that the recipes of the SAM paper's claims read."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from steadymap.analysis.claims.verdict import MissingError, least_number
from steadymap.analysis.readings import main_conventions, nested_draws
from steadymap.params.methods import ROBUST
from steadymap.params.schema import Statistics
from steadymap.statistics.intervals import POSITIVE, Range, range_of
from steadymap.statistics.pairing import mismatched
from steadymap.statistics.resampling import (
    Replicates,
    Resamples,
    cluster_names,
    combined,
    defined_mean,
    mean_of,
    telling,
)

# Table S1's rows, and our sweeps: LIME and MP stand there for their seed sweeps.
TABLE_ROWS = {"SG": "SG-N", "SP-S": "SP-S", "SP-L": "SP-L", "LIME": "LIME-seed", "MP": "MP-seed"}

TABLE_METRICS = ("ssim", "localization_error", "insertion", "deletion")

ACCURACY = TABLE_METRICS[1:]

SIMILARITY = ("spearman", "hog_pearson", "ssim")

# Above this mean, insertion has no room to vary.
_FULL = 0.95

# Images of the paper: what the spread of a seed's dataset means is scaled to (docs/protocol.md).
PAPER_IMAGES = 1735

TABLE_COLUMNS = (
    *("row", "sweep", "model", "metric", "mean", "std_rms", "std_mean", "saturated"),
    *("mean_low", "mean_high", "rms_low", "rms_high", "std_mean_low", "std_mean_high"),
    *("n_images", "paper_model", "paper_mean", "paper_std", "values", "paper_values"),
)

FAMILIES = {"googlenet": "GoogLeNet", "resnet": "ResNet"}

GUIDED = "guided_backprop"


@dataclass(frozen=True)
class Spread:
    """Global spread of a sweep (docs/protocol.md).

    Attributes
    ----------
    std, scaled, own : Replicates
        Standard deviation over settings of dataset means: on the study's images, on as many as the
        paper has, and that of a hyperparameter less the noise of images. Of a seed, which has
        nothing but noise, `own` is `scaled`.
    per_image : Replicates
        Root of the mean variance over settings per image, of which `std` is what dataset means
        leave.
    seed_sd : float
        Root of the mean variance (ddof 1) over settings per image.
    n_images, n_settings : int
        Images with a score at every setting, and settings.
    saturated : bool
        As of a cell of Table S1 (`is_saturated`).
    effects : ndarray
        Each photograph's share in what each setting differs from their mean by, NaN of one without
        scores; no column of a seed.
    """

    std: Replicates
    scaled: Replicates
    own: Replicates
    per_image: Replicates
    seed_sd: float
    n_images: int
    n_settings: int
    saturated: bool
    effects: Float[np.ndarray, "photographs settings"]

    @property
    def p(self) -> float:
        """P that settings do not differ on average, or 0 of a seed."""
        return no_difference_p(self._known) if self.effects.size else 0.0

    @property
    def _known(self) -> Float[np.ndarray, "photographs settings"]:
        return self.effects[np.isfinite(self.effects).all(axis=1)]

    def resolved_by(self, level: float) -> float:
        """Images by which p would reach a level, by the present effects."""
        return images_to_resolve(self._known, self.n_images, level)


def no_difference_p(effects: Float[np.ndarray, "photographs contrasts"]) -> float:
    """P that the mean over photographs of every contrast is 0.

    F is the squared length of the mean against the contrasts' variance between photographs (that of
    settings x photographs). Contrasts that go together or differ in variance have fewer degrees of
    freedom (Box 1954; Greenhouse and Geisser 1959: on the safe side with few photographs).
    """
    n = len(effects)
    if n < 2:
        return 1.0
    mean, covariance = effects.mean(0), np.cov(effects.T)
    variance = float(np.trace(covariance))
    if variance <= np.finfo(float).eps * np.square(effects).sum():
        return 0.0 if mean.any() else 1.0
    freedom = variance**2 / float(np.square(covariance).sum())
    return float(stats.f.sf(n * (mean @ mean) / variance, freedom, freedom * (n - 1)))


def images_to_resolve(
    effects: Float[np.ndarray, "photographs contrasts"], n_images: int, level: float
) -> float:
    """Images from which on the F of `no_difference_p` would reach a level, NaN where none would.

    Parameters
    ----------
    effects : ndarray
        As for `no_difference_p`.
    n_images : int
        Images of these photographs.
    level : float
        Probability that is reached.
    """
    n = len(effects)
    mean, covariance = effects.mean(0), np.atleast_2d(np.cov(effects.T))
    variance = float(np.trace(covariance))
    if n < 2 or variance <= 0:
        return math.nan
    freedom = variance**2 / float(np.square(covariance).sum())
    ratio = float(mean @ mean) / variance
    return least_number(n, lambda m: stats.f.sf(m * ratio, freedom, freedom * (m - 1)) <= level) * (
        n_images / n
    )


class StudyScores:
    """Scores of a study, and the statistics that claims are made of, on shared resamples.

    Parameters
    ----------
    scores : DataFrame
        Similarity and accuracy rows, as in scores.parquet; with a column `training` where there are
        several, whose means are taken.
    rows : DataFrame
        The evaluation set, with columns image_id and photo; class_name too for mismatched images.
    options : Statistics
        Confidence.
    alpha : float
        Threshold of the localization error.
    models : sequence of str
        Order of the models; by default that of the scores.
    comparisons : DataFrame, optional
        As in comparisons.parquet.
    grids : mapping of str to sequence of str, optional
        Values of each sweep, its reference among them.
    """

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
        self.grids = {name: tuple(values) for name, values in (grids or {}).items()}
        # Sweeps and comparisons that the claim at hand rests on.
        self.used: list[str] = []
        # Whether it holds robust against regular models.
        self.compares_twins = False
        photos = cluster_names(rows)
        self.rows, self._photos = rows, np.array(photos)
        self._by_pairs: dict[int, Resamples] = {}
        self.resamples = Resamples(rows["image_id"], photos, options)
        # Methods without a sweep have one setting each.
        self.scores = by_training(nested_draws(scores[scores["hyperparameter"] != ""]))
        self.scores = self.scores.assign(score=telling(self.scores))
        # As arrays: hundreds of groups are read.
        self._columns = (
            self.scores["training"].to_numpy(),
            self.resamples.image_ids.get_indexer(self.scores["image_id"]),
            self.scores["value"].to_numpy(object),
            self.scores["score"].to_numpy(np.float64),
        )
        self.n_trainings = 1 + int(self.scores["training"].max()) if len(self.scores) else 1
        keys = ["sweep", "model", "metric", "convention"]
        self._groups = self.scores.groupby(keys, sort=False).indices
        self.sweeps = (
            self.scores[["sweep", "method", "hyperparameter"]]
            .drop_duplicates("sweep")
            .set_index("sweep")
        )
        present = list(dict.fromkeys(self.scores["model"]))
        self.models = [model for model in models if model in present] or present
        self._pairs = [(m, m + ROBUST) for m in self.models if m + ROBUST in self.models]
        hog = self.scores.loc[self.scores["metric"] == "hog_pearson", "convention"]
        self.conventions = {
            **main_conventions(alpha),
            "ssim": "sam",
            "pearson": "signed",
            "hog_pearson": str(hog.iloc[0]) if len(hog) else "",
            "dynamic_range": "raw",
        }
        self.comparisons = comparisons

    def mean(
        self, values: Float[np.ndarray, "trainings images"], within: Range, *, pairs: int = 0
    ) -> Replicates:
        """Mean over trainings and images.

        Parameters
        ----------
        values : ndarray
            Values, NaN where undefined.
        within : Range
            What they can be.
        pairs : int
            Number of the first images of which each goes with its mismatched partner; 0 where
            values are of one image each.
        """
        resamples = self._paired(pairs) if pairs else self.resamples
        return resamples.mean(values[None], ("training",), within=within)

    def _paired(self, n: int) -> Resamples:
        if n not in self._by_pairs:
            partners = np.arange(len(self.rows))
            partners[:n] = mismatched(self.rows.head(n))
            self._by_pairs[n] = self.resamples.paired(partners)
        return self._by_pairs[n]

    def per_image(self, frame: pd.DataFrame, column: str) -> Float[np.ndarray, "trainings images"]:
        """Mean of a column for each training and image of a frame that has both."""
        means = frame.groupby(["training", "image_id"])[column].mean().unstack()
        return means.reindex(columns=self.resamples.image_ids).to_numpy(np.float64)

    # Sweeps

    def cells(
        self, sweep: str, model: str, metric: str, convention: str | None = None
    ) -> tuple[list[str], Float[np.ndarray, "trainings images settings"]]:
        """Values of a sweep's settings, in order, and the scores; NaN where there is none.

        Parameters
        ----------
        sweep : str
            Name of the sweep.
        model : str
            Name of the model.
        metric : str
            Name of the metric.
        convention : str, optional
            Convention of the metric, by default that of the claims.
        """
        convention = self.conventions[metric] if convention is None else convention
        where = self._groups.get((sweep, model, metric, convention))
        if where is None:
            raise MissingError(self.reason(sweep, metric, convention))
        self.used.append(sweep)
        training, image, value, score = (column[where] for column in self._columns)
        values = in_order(value)
        cells = np.full((self.n_trainings, len(self.resamples.image_ids), len(values)), np.nan)
        cells[training, image, pd.Index(values).get_indexer(value)] = score
        return values, cells

    def reason(self, sweep: str, metric: str, convention: str) -> str:
        """Why a score can't be measured here.

        Parameters
        ----------
        sweep : str
            Name of the sweep.
        metric : str
            Name of the metric.
        convention : str
            Convention of the metric.
        """
        if sweep not in self.sweeps.index:
            return f"the study has no sweep {sweep}"
        if metric in ACCURACY and not self.scores["metric"].isin(ACCURACY).any():
            return "the study has no accuracy scores"
        if metric == "localization_error":
            anywhere = (self.scores["metric"] == metric).any()
            return f"no scores at {convention}" if anywhere else "no image of the study has a box"
        return f"{sweep} has no {metric} scores ({convention or 'any convention'})"

    def models_of(self, sweep: str, metric: str, convention: str | None = None) -> list[str]:
        """Models with scores of a sweep by one metric.

        Parameters
        ----------
        sweep : str
            Name of the sweep.
        metric : str
            Name of the metric.
        convention : str, optional
            Convention of the metric, by default that of the claims.
        """
        convention = self.conventions[metric] if convention is None else convention
        measured = [m for m in self.models if (sweep, m, metric, convention) in self._groups]
        if not measured:
            raise MissingError(self.reason(sweep, metric, convention))
        return measured

    def similarity(
        self,
        sweep: str,
        model: str,
        metric: str,
        convention: str | None = None,
        *,
        beside: Sequence[str] = (),
    ) -> Replicates:
        """Mean over images of the mean over a sweep's variants.

        Parameters
        ----------
        sweep : str
            Name of the sweep.
        model : str
            Name of the model.
        metric : str
            Name of the metric.
        convention : str, optional
            Convention of the metric, by default that of the claims.
        beside : sequence of str
            Sweeps, maybe of other methods, whose images alone count.
        """
        _, cells = self.cells(sweep, model, metric, convention)
        means = defined_mean(cells, 2)
        for other in beside:
            explained = self.scores.loc[self.scores["sweep"] == other, "image_id"]
            means[:, ~self.resamples.image_ids.isin(explained)] = np.nan
        return self.mean(means, range_of(metric))

    def setting_means(self, sweep: str, model: str, metric: str) -> dict[str, Replicates]:
        """Mean over images at each value of a sweep.

        Parameters
        ----------
        sweep : str
            Name of the sweep.
        model : str
            Name of the model.
        metric : str
            Name of the metric.
        """
        values, cells = self.cells(sweep, model, metric)
        means = [self.mean(cells[..., place], range_of(metric)) for place in range(len(values))]
        return dict(zip(values, means, strict=True))

    def spread(self, sweep: str, model: str, metric: str, convention: str | None = None) -> Spread:
        """Std over a sweep's dataset means, as is, on the paper's 1,735 images, and without noise.

        Of the variance over settings of dataset means, the settings' variance between photographs
        over the number of photographs is noise. A seed has nothing else: its scaled variance is the
        mean variance between seeds per image over 1,735. A hyperparameter's own variance is what
        the noise leaves; scaled, with the noise of 1,735 images.

        Parameters
        ----------
        sweep : str
            Name of the sweep.
        model : str
            Name of the model.
        metric : str
            Name of the metric.
        convention : str, optional
            Convention of the metric, by default that of the claims.
        """
        _, cells = self.cells(sweep, model, metric, convention)
        complete = np.isfinite(cells).all(axis=(0, 2))
        n, k = int(complete.sum()), cells.shape[2]
        if k < 2 or n < 2:
            raise MissingError(f"{sweep} has {k} settings and {n} images in {metric}: too few")
        cells = np.where(complete[:, None], cells, np.nan)
        between, within = cells.var(axis=2), range_of(metric)
        means = [self.mean(cells[..., place], within) for place in range(k)]
        observed = combined(lambda *values: np.var(values, axis=0), *means)
        std = combined(lambda v: np.sqrt(np.maximum(v, 0)), observed, within=within.spread)
        variance = self.mean(between, POSITIVE)
        per_image = combined(np.sqrt, variance, within=within.spread)
        seed_sd = float(np.sqrt(np.nanmean(between) * k / (k - 1)))
        if self.sweeps.loc[sweep, "hyperparameter"] == "seed":
            scaled = own = combined(
                lambda v: np.sqrt(v / PAPER_IMAGES), variance, within=within.spread
            )
            effects = np.empty((self.resamples.n_clusters, 0))
        else:
            apart = (cells - cells.mean(axis=2, keepdims=True)).mean(axis=0)[complete]
            shares = pd.DataFrame(apart).groupby(self._photos[complete]).sum()
            shares *= len(shares) / n
            effects = shares.reindex(np.unique(self._photos)).to_numpy()
            noise = float(shares.var(ddof=1).mean()) / len(shares)
            rest = combined(lambda v: np.maximum(v - noise, 0), observed)
            own = combined(np.sqrt, rest, within=within.spread)
            theirs = noise * n / PAPER_IMAGES
            scaled = combined(lambda v: np.sqrt(v + theirs), rest, within=within.spread)
        level = float(np.mean([mean.point for mean in means]))
        saturated = is_saturated(metric, level, per_image.point)
        return Spread(std, scaled, own, per_image, seed_sd, n, k, saturated, effects)

    def scaled(self, sweep: str, metric: str) -> Spread:
        """Mean over models of a sweep's global spread."""
        return mean_spread([self.spread(sweep, m, metric) for m in self.models_of(sweep, metric)])

    @cached_property
    def table(self) -> pd.DataFrame:
        """Table S1: row, sweep, model, metric, mean, std_rms and std_mean as replicates, saturated.

        A saturated cell of accuracy scores has no spread of which a ratio could be formed.
        """
        records = []
        for row, sweep in TABLE_ROWS.items():
            for model in self.models:
                for metric in TABLE_METRICS:
                    try:
                        _, cells = self.cells(sweep, model, metric)
                    except MissingError:
                        continue
                    means = defined_mean(cells, 2)
                    variances = defined_mean((cells - means[..., None]) ** 2, 2)
                    within = range_of(metric).spread
                    level = self.mean(means, range_of(metric))
                    rms = combined(np.sqrt, self.mean(variances, POSITIVE), within=within)
                    std = self.mean(np.sqrt(variances), within)
                    saturated = is_saturated(metric, level.point, rms.point)
                    records.append((row, sweep, model, metric, level, rms, std, saturated))
        return pd.DataFrame(records, columns=list(TABLE_COLUMNS[:8]))

    # Pairs of models

    def need_pairs(self) -> list[tuple[str, str]]:
        """Regular and robust models in pairs; a MissingError where there are none."""
        self.compares_twins = True
        if not self._pairs:
            raise MissingError("no model of the study has a robust twin")
        return self._pairs

    def family(self, family: str) -> tuple[str, str]:
        """Pair that stands for a network of the paper: ResNet-50 if there, else the first."""
        pairs = [pair for pair in self.need_pairs() if pair[0].startswith(family)]
        if not pairs:
            raise MissingError(f"the study has no {FAMILIES[family]} pair")
        return next((pair for pair in pairs if pair[0] == "resnet50"), pairs[0])

    # Comparisons

    @cached_property
    def _compared(self) -> dict[tuple[str, ...], Float[np.ndarray, "trainings images"]]:
        """Scores of each comparison, models, value, pairing and metric."""
        if self.comparisons is None:
            return {}
        frame = self.comparisons.assign(score=telling(self.comparisons))
        # HOG's cells and the distance's scaling are whatever the comparison used.
        free = ~frame["metric"].isin(["ssim", "spearman"])
        frame = frame[free | (frame["convention"] == frame["metric"].map(self.conventions))]
        frame = frame.assign(
            key=frame["value"].astype(str).where(frame["method"] != GUIDED, GUIDED)
        )
        names = ["comparison", "model", "other", "key", "pairing", "metric"]
        groups = by_training(frame).groupby(names, sort=False)
        return {key: self.per_image(part, "score") for key, part in groups}

    @cached_property
    def _n_compared(self) -> dict[str, int]:
        """Images of each comparison, which are the first of the study."""
        assert self.comparisons is not None
        return self.comparisons.groupby("comparison")["image_id"].nunique().to_dict()

    def compared_images(
        self, comparison: str, model: str, other: str, key: str, metric: str, pairing: str = "same"
    ) -> Float[np.ndarray, "trainings images"]:
        """Scores of a comparison; `key` is a value, or `GUIDED`.

        Parameters
        ----------
        comparison : str
            Name of the comparison.
        model : str
            Model whose maps are compared.
        other : str
            Model that they are held against; empty where there is none.
        key : str
            A value, or `GUIDED`.
        metric : str
            Name of the metric.
        pairing : {'same', 'mismatched'}
            Whether both maps are of the same image.
        """
        scores = self._compared.get((comparison, model, other, key, pairing, metric))
        if scores is None:
            what = " ".join(filter(None, (comparison, key, pairing)))
            raise MissingError(f"no comparison {what} in {metric} for {model}")
        return scores

    def compared(
        self, comparison: str, model: str, other: str, key: str, metric: str, pairing: str = "same"
    ) -> Replicates:
        """Mean over images of a comparison.

        Parameters
        ----------
        comparison, model, other, key, metric, pairing
            As for `compared_images`.
        """
        scores = self.compared_images(comparison, model, other, key, metric, pairing)
        pairs = self._n_compared[comparison] if pairing == "mismatched" else 0
        return self.mean(scores, range_of(metric), pairs=pairs)

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
        """Pairs (regular model, robust model it is held against) of a de-noising comparison.

        Parameters
        ----------
        comparison : str
            Name of the comparison.
        role : {'twin', 'control'}
            Whether the robust model is the regular one's twin.
        regular : str, optional
            Regular model; all by default.
        """
        part = self.comparison(comparison)
        part = part[part["role"] == role]
        if regular is not None:
            part = part[part["model"] == regular]
        pairs = list(dict.fromkeys(zip(part["model"], part["other"], strict=True)))
        if not pairs:
            what = "robust twin" if role == "twin" else "second robust model"
            raise MissingError(f"{comparison} has no {what} to compare with")
        return pairs

    def keys(self, comparison: str) -> list[str]:
        """Values of a de-noising comparison in order, the plain map's 0 first."""
        part = self.comparison(comparison)
        values = in_order(part.loc[part["method"] != GUIDED, "value"].astype(str))
        if len(values) < 2 or float(values[0]) != 0:
            raise MissingError(f"{comparison} lacks the plain map (value 0) or a de-noised one")
        return values

    # Grids

    def rests_on(self, name: str, values: Sequence[str]) -> None:
        """Note that a claim rests on a comparison at these values."""
        self.grids[name] = tuple(values)
        self.used.append(name)

    def grid(self) -> tuple[str, str]:
        """Values swept that the claim at hand rests on, and whether they are the paper's."""
        texts, same = [], []
        for name in dict.fromkeys(self.used):
            ours, theirs = self.grids.get(name, ()), paper_grids().get(name, ())
            if not ours:
                continue
            text = f"{name} {', '.join(ours)}"
            if theirs:
                same.append(_same_values(ours, theirs))
                text += "" if same[-1] else f" (paper {', '.join(theirs)})"
            texts.append(text)
        return "; ".join(texts), "" if not same else "yes" if all(same) else "no"


def is_saturated(metric: str, level: float, spread: float) -> bool:
    """Whether accuracy scores have no room to vary: none does, or insertion is almost full.

    Parameters
    ----------
    metric : str
        Name of the metric.
    level, spread : float
        Mean of the scores, and root of their mean variance over settings.
    """
    return metric in ACCURACY and (spread == 0 or (metric == "insertion" and level > _FULL))


def mean_spread(spreads: Sequence[Spread]) -> Spread:
    """Mean over models of their global spreads of one sweep."""
    return Spread(
        mean_of([spread.std for spread in spreads]),
        mean_of([spread.scaled for spread in spreads]),
        mean_of([spread.own for spread in spreads]),
        mean_of([spread.per_image for spread in spreads]),
        float(np.mean([spread.seed_sd for spread in spreads])),
        min(spread.n_images for spread in spreads),
        spreads[0].n_settings,
        any(spread.saturated for spread in spreads),
        np.hstack([spread.effects for spread in spreads]),
    )


def by_training(frame: pd.DataFrame) -> pd.DataFrame:
    """Frame with a column `training`, 0 where there is one."""
    return frame if "training" in frame else frame.assign(training=0)


def in_order(values: Iterable[str]) -> list[str]:
    """Different values in numeric order where all are numbers, else as they came."""
    different = list(dict.fromkeys(values))
    try:
        return sorted(different, key=float)
    except ValueError:
        return different


@cache
def paper_grids() -> dict[str, tuple[str, ...]]:
    """Values that the paper swept, at 224 px, by our names of sweeps and comparisons."""
    table = pd.read_csv(str(files("steadymap.analysis.claims") / "paper_grids.csv"), dtype=str)
    return dict(zip(table["sweep"], table["values"].str.split().map(tuple), strict=True))


def _same_values(ours: Sequence[str], theirs: Sequence[str]) -> bool:
    try:
        return {float(value) for value in ours} == {float(value) for value in theirs}
    except ValueError:
        return set(ours) == set(theirs)


# Statistics of tables shaped as Table S1, whose cells are replicates


def of_metric(table: pd.DataFrame, metric: str, robust: bool | None = None) -> pd.DataFrame:
    """Rows of one metric, of robust or of regular models where asked.

    Parameters
    ----------
    table : DataFrame
        Shaped as Table S1, with replicates in its cells.
    metric : str
        Name of the metric.
    robust : bool, optional
        Whether of robust or of regular models; of both by default.
    """
    part = table[table["metric"] == metric]
    return part if robust is None else part[part["model"].str.endswith(ROBUST) == robust]


def twins(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of regular models beside those of their robust twins (`_robust`)."""
    is_robust = table["model"].str.endswith(ROBUST)
    robust = table[is_robust].assign(model=table["model"].str.removesuffix(ROBUST))
    return table[~is_robust].merge(robust, on=["row", "model", "metric"], suffixes=("", "_robust"))


def mean_ratio(table: pd.DataFrame, numerator: str, denominator: str) -> Replicates:
    """Mean over rows of the ratio of two columns.

    Parameters
    ----------
    table : DataFrame
        Shaped as Table S1, with replicates in its cells.
    numerator : str
        Column that is divided.
    denominator : str
        Column that it is divided by.
    """
    pairs = zip(table[numerator], table[denominator], strict=True)
    return mean_of([above / below for above, below in pairs])


def relative_spread(
    table: pd.DataFrame, *, metric: str = "localization_error", robust: bool | None = None
) -> Replicates:
    """Mean over rows and models of std / mean (SAM 4.5).

    Parameters
    ----------
    table : DataFrame
        Columns row, model, metric, mean, std_rms.
    metric : str
        Name of the metric.
    robust : bool, optional
        Whether over robust or regular models; over all by default.
    """
    return mean_ratio(of_metric(table, metric, robust), "std_rms", "mean")


def robust_gain(pairs: pd.DataFrame) -> Replicates:
    """Mean over rows of `twins` of accuracy metrics: std of regular / of robust (SAM 4.5)."""
    return mean_ratio(pairs, "std_rms", "std_rms_robust")


def bars(table: pd.DataFrame, metric: str = "ssim", column: str = "mean") -> dict[str, Replicates]:
    """Mean over models of a column, per row of the table (Fig. 5).

    Parameters
    ----------
    table : DataFrame
        Shaped as Table S1, with replicates in its cells.
    metric : str
        Name of the metric.
    column : str
        `mean`, `std_rms` or `std_mean`.
    """
    part = of_metric(table, metric)
    return {
        str(row): mean_of(list(cells)) for row, cells in part.groupby("row", sort=False)[column]
    }
