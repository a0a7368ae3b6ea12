"""A study as its report reads it: tables, params, images, maps."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from steadymap.analysis import parameters, plane, readings
from steadymap.report.figures import theme
from steadymap.statistics.intervals import SIMILARITY_RANGE, interval
from steadymap.store.atomic import read_json
from steadymap.store.maps import Maps
from steadymap.store.tables import read_table

_WORDNET = re.compile(r"n\d{8}")

COLUMNS = {
    "sensitivity": "sweep method hyperparameter model metric convention draws n_images n_settings "
    "mean ci_low ci_high std_rms std_mean n_degenerate n_inverted",
    "settings": "sweep method hyperparameter model value is_reference metric convention draws "
    "n_images mean ci_low ci_high std n_degenerate n_inverted",
    "images": "sweep method hyperparameter model image_id class_name photo metric convention draws "
    "mean std n_degenerate n_inverted",
    "tasks": "sweep method model hyperparameter value draws is_reference task_id hyperparameters "
    "n_images forward_passes backward_passes",
    "models": "model robust n_val clean_accuracy attack n_attacked robust_accuracy n_parameters "
    "weights_sha256 init_from epochs",
    "evaluation_set": "image_id class_name photo",
    "search": "search method model objective tau sampler trial hyperparameters task_id n_images "
    "ssim_mean ci_low ci_high spearman_mean n_inverted forward_passes backward_passes state "
    "is_best message",
    "importances": "search method model evaluator hyperparameters importance",
    "comparisons": "comparison model other role method value pairing metric convention n_images "
    "mean ci_low ci_high std n_degenerate n_inverted",
    "object_size": "model image_id object_size patch_size object_area area_above_half peak score",
    "table_s1": "row sweep model metric mean std_rms std_mean mean_low mean_high rms_low rms_high "
    "n_images paper_model paper_mean paper_std",
    "global_std": "sweep method hyperparameter model metric convention n_images n_settings std "
    "std_low std_high seed_sd std_scaled",
    "localization_baselines": "name metric convention n_images mean ci_low ci_high",
    "localization_chosen": "sweep method model metric convention draws mean alpha n_chosen_on",
    "claims": "claim name section statement recipe paper_value value ci_low ci_high unit n_images "
    "direction size reason",
    "ipr": " ".join(parameters.IPR_COLUMNS),
    "ipr_units": " ".join(parameters.UNIT_COLUMNS),
    "ipr_function": " ".join(parameters.FUNCTION_COLUMNS),
    "ipr_correlations": " ".join(parameters.CORRELATION_COLUMNS),
    "ipr_claims": " ".join(parameters.CLAIM_COLUMNS),
    "ipr_failures": "model method order unit draw reason",
    "plane": " ".join(plane.PLANE_COLUMNS),
    "budget": "model method sweep tau budget low high n_max share_at_max self_similarity "
    "forward_passes backward_passes n_images reached",
    "advice": "method model tau report steady counted at_least n_max n_seeds most_seeds "
    "seeds_ssim seeds_spearman",
    "budget_curves": "model sweep value tau share low high method ssim n_images",
    "yardstick": "sweep method model sweep_setting metric convention is_reference mean low high "
    "n_trainings",
    "twins": "model twin method sweep metric difference low high n_trainings convention draws",
}

_UNCOUNTED = ("n_inverted", "spearman_mean", "x_inverted", "y_inverted")


class Scored(NamedTuple):
    """A map held against its reference: similarity, rank correlation, flags; None where unknown."""

    score: float | None
    rank: float | None
    degenerate: bool
    inverted: bool

    @property
    def marks(self) -> str:
        """What stands behind a score below a map: `†` degenerate, `‡` inverted."""
        return f" {'†' * self.degenerate}{'‡' * self.inverted}".rstrip()


@dataclass(frozen=True)
class Study:
    """What a study left in its two folders, read when first needed.

    Attributes
    ----------
    reports, results : Path
        Folders of tables, and of maps, scores, data and curves.
    name : str
    params : dict
        What the study ran with; may be empty.
    """

    reports: Path
    results: Path
    name: str
    params: dict[str, Any] = field(repr=False)

    def table(self, name: str) -> pd.DataFrame:
        """One of the tables, with at least the columns that are read.

        Raises
        ------
        FileNotFoundError, ValueError
            Where it, or a column, is missing.
        """
        return self._read(self.reports / "tables" / f"{name}.csv")

    @staticmethod
    def _read(path: Path) -> pd.DataFrame:
        frame = read_table(path)
        name = path.stem
        # Tables from before inverted pairs were counted.
        for column in _UNCOUNTED:
            if column in COLUMNS[name].split() and column not in frame:
                frame[column] = math.nan
        if name == "plane" and "verdict" not in frame:
            frame["verdict"] = parameters.plane_verdicts(frame)
        absent = [column for column in COLUMNS[name].split() if column not in frame]
        if absent:
            raise ValueError(
                f"{path}: lacks {', '.join(absent)}; write it again by `dvc repro --force analyze`"
            )
        return frame

    def param(self, *keys: str) -> Any:
        """Value of the params; None where absent."""
        value: Any = self.params
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def described(self, name: str) -> Any:
        """Fact on the data: as recorded, else as params have it."""
        return self.description.get(name, self.param("data", name))

    @cached_property
    def sensitivity(self) -> pd.DataFrame:
        """Table of sweeps."""
        return self.table("sensitivity")

    @cached_property
    def settings(self) -> pd.DataFrame:
        """Table of settings."""
        return self.table("settings")

    @cached_property
    def images(self) -> pd.DataFrame:
        """Table of images in each sweep."""
        return self.table("images")

    @cached_property
    def tasks(self) -> pd.DataFrame:
        """Table of what was computed."""
        return self.table("tasks")

    @cached_property
    def model_table(self) -> pd.DataFrame:
        """Table of models."""
        return self.table("models")

    @cached_property
    def evaluation_set(self) -> pd.DataFrame:
        """Table of images."""
        return self.table("evaluation_set")

    @cached_property
    def search(self) -> pd.DataFrame:
        """Trials of searches; empty where there are none."""
        known = (self.reports / "tables" / "search.csv").is_file()
        return self.table("search") if known else pd.DataFrame()

    @cached_property
    def convention(self) -> str:
        """The headline's, or the first there is."""
        found = self.sensitivity.loc[self.sensitivity["metric"] == "ssim", "convention"]
        return "common" if found.empty or "common" in set(found) else str(found.iloc[0])

    @cached_property
    def headline(self) -> pd.DataFrame:
        """Headline rows of the sensitivity table; the sweep that moves any model's most first.

        By `degree`, the larger of what SSIM (`mean`) and rank correlation (`rank_mean`) say, and of
        equal ones by SSIM.
        """
        keys, columns = ["sweep", "model"], ["mean", "ci_low", "ci_high"]
        ranks = choose(self.sensitivity, "spearman", None)[[*keys, *columns]]
        ranks = ranks.rename(columns={"mean": "rank_mean", **{c: f"rank_{c}" for c in columns[1:]}})
        rows = choose(self.sensitivity, "ssim", self.convention).merge(ranks, on=keys, how="left")
        moved = 1 - rows[["mean", "rank_mean"]].astype(float)
        rows["degree"] = [readings.degree(*pair) for pair in moved.to_numpy()]
        groups = rows.groupby("sweep", sort=False)
        means, degrees = groups["mean"].min(), groups["degree"].max()
        order = sorted(means.index, key=lambda name: (-degrees[name], last(means[name]), name))
        rows = rows.assign(
            place=[order.index(sweep) for sweep in rows["sweep"]],
            who=[self.models.index(model) for model in rows["model"]],
        )
        return rows.sort_values(["place", "who"], kind="stable").reset_index(drop=True)

    @cached_property
    def _image_means(self) -> dict[str, pd.DataFrame]:
        """Similarity by metric, an image per row and a (sweep, model) per column."""
        return {
            metric: choose(self.images, metric, convention).pivot_table(
                index="image_id", columns=["sweep", "model"], values="mean", sort=False
            )
            for metric, convention in (("ssim", self.convention), ("spearman", None))
        }

    def difference(
        self, one: tuple[str, str], other: tuple[str, str], metric: str = "ssim"
    ) -> tuple[float, float, float]:
        """Headline similarity of `other` less that of `one`, each a sweep and a model.

        Mean and interval over the images that both have: paired by image and clustered by
        photograph (docs/protocol.md), hence narrower than the intervals of the two means say. NaN
        where it is undefined.
        """
        means = self._image_means[metric]
        if not {one, other} <= set(means.columns):
            return math.nan, math.nan, math.nan
        found = (means[other] - means[one]).dropna()
        photos = words(self.evaluation_set.set_index("image_id")["photo"])
        clusters = [photos.get(image_id, "") or image_id for image_id in found.index]
        low, high = interval(
            found.to_numpy(float),
            clusters,
            confidence=self.confidence,
            n_bootstrap=int(self.param("statistics", "n_bootstrap") or 2000),
            seed=int(self.param("statistics", "seed") or 0),
            within=SIMILARITY_RANGE.minus(SIMILARITY_RANGE),
        )
        return float(found.mean()), low, high

    @cached_property
    def sweeps(self) -> list[str]:
        """Sweeps with a hyperparameter, in the order of the tasks."""
        return list(dict.fromkeys(self.tasks.loc[self.tasks["hyperparameter"] != "", "sweep"]))

    @cached_property
    def models(self) -> list[str]:
        """Names of all models."""
        known = [*self.model_table["model"], *self.tasks["model"], *self.sensitivity["model"]]
        return list(dict.fromkeys(known))

    @cached_property
    def confidence(self) -> float:
        """Level of intervals."""
        return float(self.param("statistics", "confidence") or 0.95)

    @cached_property
    def percent(self) -> str:
        """Level of intervals in words."""
        return f"{100 * self.confidence:g} %"

    @cached_property
    def look(self) -> theme.Look:
        """What its figures have in common."""
        return theme.Look(self.models, self.confidence, self.convention)

    @cached_property
    def n_images(self) -> int:
        """Number of images explained."""
        return len(self.evaluation_set)

    @cached_property
    def photos(self) -> pd.Series:
        """Number of images per photograph; empty where photographs are not known."""
        photos = self.evaluation_set["photo"].astype(str)
        return photos[photos != ""].value_counts().sort_index()

    @cached_property
    def description(self) -> dict[str, Any]:
        """Facts on the data; empty where they are not at hand."""
        path = self.results / "data" / "dataset.json"
        return read_json(path) if path.is_file() else {}

    @cached_property
    def shows_photos(self) -> bool:
        """Whether reports, which go to git, may show the images.

        Those of kinds that are known to be the user's own or generated; never ImageNet's, whose
        terms forbid passing them on: its class folders are WordNet ids, such as n01440764.
        """
        names = [*words(self.evaluation_set["class_name"]), *self.description.get("classes", [])]
        imagenet = bool(names) and all(_WORDNET.fullmatch(str(name)) for name in names)
        return self.described("kind") in ("embedded", "imagefolder") and not imagenet

    @cached_property
    def pixels(self) -> dict[str, np.ndarray]:
        """Image by id, where the images are at hand and may be shown."""
        folder = self.results / "evaluation_set"
        if not self.shows_photos or not (folder / "images.npy").is_file():
            return {}
        rows = read_table(folder / "evaluation_set.csv")
        images = np.load(folder / "images.npy", mmap_mode="r")
        return dict(zip(rows["image_id"], images, strict=True))

    @cached_property
    def facts(self) -> dict[str, dict[str, Any]]:
        """Row of the evaluation set by image id."""
        return {str(row["image_id"]): row for row in records(self.evaluation_set)}

    @cached_property
    def scores(self) -> pd.DataFrame | None:
        """Per-image scores that pictures show, and the maps' own flags."""
        path = self.results / "scores.parquet"
        if not path.is_file():
            return None
        frame = readings.headline_draws(read_table(path))
        headline = (frame["metric"] == "ssim") & (frame["convention"] == self.convention)
        shown = ["dynamic_range", "hog_pearson", "spearman"]
        return frame.assign(inverted=frame.get("inverted", False))[
            headline | frame["metric"].isin(shown)
        ]

    @cached_property
    def comparison_scores(self) -> dict[tuple[str, ...], float]:
        """SSIM of pairs of an image's own maps, as the headline's.

        By comparison, model, other, method, value and image.
        """
        path = self.results / "comparisons" / "comparisons.parquet"
        if not path.is_file():
            return {}
        frame = read_table(path)
        chosen = frame["pairing"].eq("same") & frame["metric"].eq("ssim")
        frame = frame[chosen & frame["convention"].eq(self.convention)]
        names = ["comparison", "model", "other", "method", "value", "image_id"]
        keys = zip(*(words(frame[name]) for name in names), strict=True)
        return dict(zip(keys, frame["score"].astype(float), strict=True))

    @cached_property
    def alpha(self) -> str:
        """Convention of the headline's localization threshold."""
        return f"alpha{float(self.param('accuracy', 'alpha') or 0.25):.2f}"

    @cached_property
    def pairs(self) -> list[tuple[str, str]]:
        """Regular models with their robust twins."""
        return [(name, f"{name}-r") for name in self.models if f"{name}-r" in self.models]

    @cached_property
    def unit_index(self) -> dict[str, Any]:
        """What the pictures of randomized models show; empty where there are none."""
        path = self.results / "randomization" / "pictures" / "index.json"
        return read_json(path) if path.is_file() else {}

    def unit_methods(self, model: str) -> list[str]:
        """Methods with maps of one image by a randomized model."""
        folder = self.results / "randomization" / "pictures" / model
        return sorted(path.stem for path in folder.glob("*.npy"))

    def unit_maps(self, model: str, method: str) -> np.ndarray:
        """Maps of one image, (1 + units, height, width): trained, then without each unit."""
        path = self.results / "randomization" / "pictures" / model / f"{method}.npy"
        return np.load(path, mmap_mode="r") if path.is_file() else np.zeros((0, 1, 1))

    @cached_property
    def unit_scores(self) -> dict[tuple[str, ...], tuple[float, bool]]:
        """SSIM of the maps in the pictures to the trained model's, and whether they are inverted.

        By model, method and unit.
        """
        path = self.results / "randomization" / "scores.parquet"
        if not path.is_file() or not self.unit_index:
            return {}
        frame = read_table(path)
        chosen = frame["kind"].eq("same") & frame["metric"].eq("ssim")
        chosen &= frame["convention"].eq(self.convention)
        chosen &= frame["image_id"].eq(self.unit_index["image_id"])
        chosen &= frame["order"].eq(self.unit_index["order"])
        frame = frame[chosen & frame["draw"].eq(self.unit_index["draw"])]
        keys = zip(*(frame[name] for name in ("model", "method", "unit")), strict=True)
        turned = true(frame.assign(inverted=frame.get("inverted", False))["inverted"])
        return dict(zip(keys, zip(frame["score"].astype(float), turned, strict=True), strict=True))

    @cached_property
    def yardstick(self) -> pd.DataFrame:
        """How far retraining moves the maps (1 - SSIM), by sweep and model; empty where unknown.

        Of two trainings at each sweep's reference setting, as `steadymap.retraining` measures it.
        """
        columns = ["sweep", "method", "model", "setting", "mean", "low", "high", "n_trainings"]
        path = self.reports.parent / "retraining" / self.name / "yardstick.csv"
        if not path.is_file():
            return pd.DataFrame(columns=columns)
        frame = self._read(path)
        told = frame["is_reference"].astype(str).eq("True") & frame["sweep"].isin(self.sweeps)
        told &= frame["metric"].eq("ssim") & frame["convention"].eq("common")
        rows = frame[told].drop_duplicates(["sweep", "model"])
        return rows.rename(columns={"sweep_setting": "setting"})[columns].reset_index(drop=True)

    @cached_property
    def twins(self) -> pd.DataFrame:
        """Headline similarity of robust less that of regular models over several trainings.

        Paired by training and image, by sweep, as `steadymap.retraining` measures it, the same of
        rank correlation beside it (`rank_difference` and so on); empty where it did not.
        """
        keys, columns = ["sweep", "model"], ["difference", "low", "high"]
        path = self.reports.parent / "retraining" / self.name / "twins.csv"
        if not path.is_file():
            return pd.DataFrame()
        frame = self._read(path)
        frame = frame[frame["sweep"].isin(self.sweeps)]
        ranks = choose(frame, "spearman", None)[[*keys, *columns]]
        ranks = ranks.rename(columns={name: f"rank_{name}" for name in columns})
        return choose(frame, "ssim", "common").merge(ranks, on=keys, how="left")

    def optional(self, name: str) -> pd.DataFrame:
        """Table that a study may lack; empty where it does."""
        try:
            known = (self.reports / "tables" / f"{name}.csv").is_file()
            return self.table(name) if known else pd.DataFrame(columns=COLUMNS[name].split())
        except pd.errors.EmptyDataError:
            return pd.DataFrame(columns=COLUMNS[name].split())

    def maps(self, method: str, *place: str) -> Maps | None:
        """Map archive of a method, of the study or in a folder of `comparisons`."""
        folder = self.results / "maps"
        if place:
            folder = self.results.joinpath("comparisons", *place)
        folder = folder / method
        return Maps(folder) if (folder / "index.json").is_file() else None

    def box(self, image_id: str) -> tuple[int, int, int, int] | None:
        """Box of the object, half-open x0, y0, x1, y1."""
        return corners(self.facts.get(image_id, {}))

    def about(self, sweep: str) -> tuple[str, str]:
        """Return method and hyperparameter of a sweep."""
        row = records(self.tasks[self.tasks["sweep"] == sweep])[0]
        return row["method"], row["hyperparameter"]

    def shared_tasks(self, sweep: str) -> pd.DataFrame:
        """Tasks of a sweep without the second reference that independent draws need."""
        return readings.headline_draws(self.tasks[self.tasks["sweep"] == sweep])

    def values(self, sweep: str) -> tuple[list[str], str | None]:
        """Values of a sweep in order, and the reference."""
        rows = self.tasks[self.tasks["sweep"] == sweep]
        values = list(dict.fromkeys(rows["value"].astype(str)))
        reference = rows.loc[true(rows["is_reference"]), "value"].astype(str)
        numbers = [number(value) for value in values]
        if all(found is not None for found in numbers):
            values = [v for _, v in sorted(zip(numbers, values, strict=True))]
        return values, None if reference.empty else reference.iloc[0]

    def score(
        self, sweep: str, image_id: str, model: str, value: str, metric: str = "ssim"
    ) -> Scored:
        """Scores of one map to its reference, and its flags."""
        measures = (metric, "spearman", "dynamic_range")
        found, rank, raw = (
            self._scores.get((sweep, image_id, model, value, name)) for name in measures
        )
        return Scored(
            score=found and found[0],
            rank=rank and rank[0],
            degenerate=raw is not None and raw[1],
            inverted=rank is not None and rank[2],
        )

    @cached_property
    def _scores(self) -> dict[tuple[str, ...], tuple[float, bool, bool]]:
        if self.scores is None:
            return {}
        names = ["sweep", "image_id", "model", "value", "metric"]
        keys = zip(*(self.scores[name] for name in names), strict=True)
        flags = (true(self.scores[name]) for name in ("degenerate", "inverted"))
        scores = zip(self.scores["score"].astype(float), *flags, strict=True)
        found: dict[tuple[str, ...], tuple[float, bool, bool]] = {}
        for key, score in zip(keys, scores, strict=True):
            found.setdefault(key, score)
        return found


def thin(values: list[str], reference: str | None, most: int = 9) -> list[str]:
    """At most so many values as fit: both ends, the reference, and an even choice between."""
    if len(values) <= most:
        return values
    kept = {round(place) for place in np.linspace(0, len(values) - 1, most)}
    if reference in values:
        place = values.index(reference)
        if place not in kept:
            inner = kept - {0, len(values) - 1}
            nearest = min(inner or kept, key=lambda other: abs(other - place))
            kept = kept - {nearest} | {place}
    return [values[place] for place in sorted(kept)]


def choose(frame: pd.DataFrame, metric: str, convention: str | None) -> pd.DataFrame:
    """Rows of one measure with headline draws, one per sweep, model and whatever else."""
    chosen = readings.headline_draws(frame)
    chosen = chosen[chosen["metric"] == metric]
    if convention is None and not chosen.empty:
        convention = chosen["convention"].iloc[0]
    return chosen[chosen["convention"] == convention]


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dictionaries."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def by_key(frame: pd.DataFrame, *names: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """First row by its values in columns `names`."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in records(frame):
        found.setdefault(tuple(row[name] for name in names), row)
    return found


def corners(row: Mapping[str, Any]) -> tuple[int, int, int, int] | None:
    """Box of a row of the evaluation set; None where it has none."""
    values = [row.get(name) for name in ("x0", "y0", "x1", "y1")]
    if any(missing(value) for value in values):
        return None
    x0, y0, x1, y1 = (int(float(value)) for value in values)  # type: ignore[arg-type]
    return (x0, y0, x1, y1) if 0 <= x0 < x1 and 0 <= y0 < y1 else None


def missing(value: Any) -> bool:
    """Whether a cell of a table is empty."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def words(column: pd.Series) -> pd.Series:
    """Column as text, '' where empty: an all-empty column of a CSV is read as NaN."""
    return column.astype(object).where(column.notna(), "").astype(str)


def text_of(row: Mapping[str, Any], name: str) -> str:
    """Cell as text, '' where empty."""
    value = row.get(name)
    return "" if missing(value) else str(value)


def true(column: pd.Series) -> pd.Series:
    """Column of truth values, however the file spelled them."""
    return column.astype(str) == "True"


def number(value: str) -> float | None:
    """Value as a finite number."""
    try:
        found = float(value)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def last(value: Any) -> float:
    """Sort key that puts NaN last."""
    return math.inf if missing(float(value)) else float(value)
