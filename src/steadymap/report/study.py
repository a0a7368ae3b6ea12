"""A study as its report reads it: tables, params, images, maps."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from steadymap.analysis import parameters, plane, readings, structure
from steadymap.analysis.claims import verdict
from steadymap.report.document import text_file
from steadymap.report.figures import theme
from steadymap.report.figures.maps import Scored, Tile
from steadymap.statistics.intervals import SIMILARITY_RANGE
from steadymap.statistics.resampling import cluster_names, interval
from steadymap.store.atomic import read_json
from steadymap.store.maps import Maps
from steadymap.store.tables import read_table

_WORDNET = re.compile(r"n\d{8}")

# Of several trainings, beside the studies' folders.
_RETRAINING = ("yardstick", "twins", "training_claims")

# Columns that the report reads of each table.
_READ = yaml.safe_load(text_file("columns.yaml"))

COLUMNS: dict[str, Sequence[str]] = {
    **{name: columns.split() for name, columns in (_READ["required"] | _READ["optional"]).items()},
    **{name: verdict.CLAIM_COLUMNS for name in ("claims", "ipr_claims", "training_claims")},
    "ipr": parameters.IPR_COLUMNS,
    "ipr_units": parameters.UNIT_COLUMNS,
    "ipr_function": parameters.FUNCTION_COLUMNS,
    "ipr_correlations": parameters.CORRELATION_COLUMNS,
    "plane": plane.PLANE_COLUMNS,
    "structure": structure.COLUMNS,
}

_UNCOUNTED, _TEXT, _TRUTH = (_READ[kind].split() for kind in ("uncounted", "text", "truth"))


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
    _tables: dict[str, pd.DataFrame] = field(default_factory=dict, init=False, repr=False)

    def table(self, name: str) -> pd.DataFrame:
        """Table by name, with at least the `COLUMNS` that the report reads.

        A table that a study may lack is empty where it does.

        Raises
        ------
        FileNotFoundError, ValueError
            A required table, or a column, is missing.
        """
        if name not in self._tables:
            self._tables[name] = self._read(name)
        return self._tables[name]

    def _read(self, name: str) -> pd.DataFrame:
        folder = self.reports / "tables"
        if name in _RETRAINING:
            folder = self.reports.parent / "retraining" / self.name
        path = folder / f"{name}.csv"
        try:
            frame = read_table(path)
        except (FileNotFoundError, pd.errors.EmptyDataError):
            if name in _READ["required"]:
                raise
            return pd.DataFrame(columns=list(COLUMNS[name]))
        absent = [column for column in COLUMNS[name] if column not in frame]
        frame = frame.assign(**{column: math.nan for column in absent if column in _UNCOUNTED})
        if name == "plane" and "verdict" in absent:
            frame["verdict"] = plane.plane_verdicts(frame)
        if missed := [column for column in absent if column not in frame]:
            raise ValueError(
                f"{path}: lacks {', '.join(missed)}; write it again by `dvc repro --force analyze`"
            )
        texts = {column: as_text(frame[column]) for column in _TEXT if column in frame}
        return frame.assign(**texts, **{c: true(frame[c]) for c in _TRUTH if c in frame})

    def claims(self, stem: str = "claims") -> pd.DataFrame:
        """Claims of a paper; SAM's on robust against regular over trainings, where there are."""
        rows, retrained = self.table(stem), self.table("training_claims")
        rows = rows.assign(group=rows["group"].fillna(rows["claim"]))
        if stem != "claims":
            retrained = retrained.iloc[:0]
        return verdict.over_trainings(rows, retrained, self.confidence)

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
    def convention(self) -> str:
        """SSIM convention of the headline, or the first there is."""
        table = self.table("sensitivity")
        conventions = table.loc[table["metric"] == "ssim", "convention"]
        if conventions.empty or "common" in set(conventions):
            return "common"
        return str(conventions.iloc[0])

    def headline_rows(
        self, name: str, metric: str = "ssim", sweep: str | None = None
    ) -> pd.DataFrame:
        """Rows of a table with headline draws, of SSIM by the headline's convention.

        Parameters
        ----------
        name : str
            Of the table.
        metric : str
        sweep : str, optional
            Of all sweeps by default.
        """
        table = self.table(name)
        rows = table if sweep is None else table[table["sweep"] == sweep]
        convention = self.convention if metric == "ssim" else None
        return readings.headline_rows(rows, metric, convention)

    @cached_property
    def headline(self) -> pd.DataFrame:
        """Headline rows of the sensitivity table; the sweep that moves any model's most first."""
        return readings.headline(self.table("sensitivity"), self.convention, self.models)

    @cached_property
    def _image_means(self) -> dict[str, pd.DataFrame]:
        """Similarity by metric, an image per row and a (sweep, model) per column."""
        return {
            metric: self.headline_rows("images", metric).pivot_table(
                index="image_id", columns=["sweep", "model"], values="mean", sort=False
            )
            for metric in ("ssim", "spearman")
        }

    def difference(
        self, one: tuple[str, str], other: tuple[str, str], metric: str = "ssim"
    ) -> dict[str, float]:
        """Mean headline similarity of `other` less that of `one`, with its interval.

        Paired by image and clustered by photograph (docs/protocol.md), hence narrower than the
        intervals of the two means.

        Parameters
        ----------
        one, other : tuple of str
            Sweep and model.
        metric : str
            `ssim` or `spearman`.

        Returns
        -------
        dict
            `mean`, `ci_low` and `ci_high` over the images that both have; NaN where undefined.
        """
        means = self._image_means[metric]
        if not {one, other} <= set(means.columns):
            return dict.fromkeys(("mean", "ci_low", "ci_high"), math.nan)
        differences = (means[other] - means[one]).dropna()
        images = self.table("evaluation_set").set_index("image_id", drop=False)
        low, high = interval(
            differences.to_numpy(float),
            cluster_names(images.loc[differences.index]),
            confidence=self.confidence,
            within=SIMILARITY_RANGE.minus(SIMILARITY_RANGE),
        )
        return {"mean": float(differences.mean()), "ci_low": low, "ci_high": high}

    @cached_property
    def sweeps(self) -> list[str]:
        """Sweeps with a hyperparameter, in the order of the tasks."""
        tasks = self.table("tasks")
        return list(dict.fromkeys(tasks.loc[tasks["hyperparameter"] != "", "sweep"]))

    @cached_property
    def models(self) -> list[str]:
        """Names of all models."""
        tables = (self.table(name) for name in ("models", "tasks", "sensitivity"))
        return list(dict.fromkeys(model for table in tables for model in table["model"]))

    def model_order(self, rows: pd.DataFrame) -> pd.Series:
        """Position of each row's model among the study's; behind them, those that it lacks."""
        return rows["model"].map([*dict.fromkeys([*self.models, *rows["model"]])].index)

    @cached_property
    def confidence(self) -> float:
        """Level of intervals."""
        return float(self.param("statistics", "confidence") or 0.95)

    @cached_property
    def look(self) -> theme.Look:
        """What its figures have in common."""
        return theme.Look(self.models, self.confidence, self.convention)

    @cached_property
    def papers_look(self) -> theme.Look:
        """Look of figures beside the SAM paper's: SSIM by its convention, where it was measured."""
        return replace(self.look, convention=self.papers_convention)

    @cached_property
    def papers_convention(self) -> str:
        """Convention of SSIM of what stands beside the SAM paper's."""
        known = set(self.table("sensitivity")["convention"])
        return "sam" if "sam" in known else self.convention

    @property
    def percent(self) -> str:
        """Level of intervals in words."""
        return self.look.percent

    @cached_property
    def n_images(self) -> int:
        """Number of images explained."""
        return len(self.table("evaluation_set"))

    @cached_property
    def photos(self) -> pd.Series:
        """Number of images per photograph; empty where photographs are not known."""
        photos = self.table("evaluation_set")["photo"]
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
        names = [*self.table("evaluation_set")["class_name"], *self.description.get("classes", [])]
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
        return {str(row["image_id"]): row for row in records(self.table("evaluation_set"))}

    @cached_property
    def scores(self) -> pd.DataFrame | None:
        """Per-image scores that pictures show, and the maps' own flags."""
        path = self.results / "scores.parquet"
        if not path.is_file():
            return None
        # Pictures show the maps of one seed.
        frame = readings.nested_draws(read_table(path))
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
        frame = read_table(path).query("pairing == 'same' and metric == 'ssim'")
        frame = frame[frame["convention"] == self.convention]
        names = ["comparison", "model", "other", "method", "value", "image_id"]
        return {key: score for key, (score,) in _scored(frame, names).items()}

    @cached_property
    def alpha(self) -> str:
        """Convention of the headline's localization threshold."""
        return f"alpha{float(self.param('accuracy', 'alpha') or 0.25):.2f}"

    @cached_property
    def accuracy_spread(self) -> tuple[str, pd.DataFrame]:
        """A model, `mean` over models where that is known, and its rows of table `global_std`."""
        rows = self.table("global_std")
        rows = rows[rows["convention"].isin(["auc_over_max", self.alpha])]
        model = "mean" if (rows["model"] == "mean").any() else next(iter(self.models), "")
        return model, rows[rows["model"] == model]

    def accuracy_convention(self, metric: str) -> str:
        """Convention of an accuracy metric in the headline."""
        return "auc_over_max" if metric in ("insertion", "deletion") else self.alpha

    @cached_property
    def budget_share(self) -> float:
        """Share of the images that a stability budget asks for."""
        return float(self.param("comparisons", "budget", "share") or 0.9)

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
        frame = read_table(path).query("kind == 'same' and metric == 'ssim'")
        shown = {"convention": self.convention}
        shown |= {name: self.unit_index[name] for name in ("image_id", "order", "draw")}
        for name, value in shown.items():
            frame = frame[frame[name] == value]
        frame = frame.assign(inverted=frame.get("inverted", False))
        return _scored(frame, ["model", "method", "unit"], "inverted")

    @cached_property
    def training_variability(self) -> pd.DataFrame:
        """How far another training seed moves the maps (1 - SSIM), by sweep and model.

        Between trainings, at each sweep's reference setting; empty where it was not measured.
        """
        rows = self.table("yardstick").query("metric == 'ssim' and convention == 'common'")
        rows = rows[rows["is_reference"].eq(True) & rows["sweep"].isin(self.sweeps)]
        rows = rows.drop_duplicates(["sweep", "model"])
        return rows.rename(columns={"sweep_setting": "setting"}).reset_index(drop=True)

    @cached_property
    def robust_minus_regular(self) -> pd.DataFrame:
        """Headline similarity of robust less that of regular models over several trainings.

        Paired by training and image, by sweep, with the columns of a headline; empty where it was
        not measured.
        """
        table = self.table("twins")
        table = table[table["sweep"].isin(self.sweeps)]
        names = {"difference": "mean", "low": "ci_low", "high": "ci_high"}
        return readings.with_ranks(table.rename(columns=names), "common")

    def maps(self, method: str, *folder: str) -> Maps | None:
        """Map archive of a method, of the study or in a folder of `comparisons`."""
        path = self.results.joinpath(*(["comparisons", *folder] if folder else ["maps"]), method)
        return Maps(path) if (path / "index.json").is_file() else None

    def box(self, image_id: str) -> tuple[int, int, int, int] | None:
        """Box of the object, half-open x0, y0, x1, y1."""
        return corners(self.facts.get(image_id, {}))

    def photo(self, image_id: str) -> Tile | None:
        """Image with its box, where it may be shown."""
        pixels = self.pixels.get(image_id)
        return None if pixels is None else Tile(np.asarray(pixels), box=self.box(image_id))

    def shared_tasks(self, sweep: str) -> pd.DataFrame:
        """Tasks of a sweep, without the second reference that independent draws need."""
        tasks = self.table("tasks")
        return readings.nested_draws(tasks[tasks["sweep"] == sweep])

    def about(self, sweep: str) -> tuple[str, str]:
        """Return method and hyperparameter of a sweep."""
        row = self.shared_tasks(sweep).iloc[0]
        return row["method"], row["hyperparameter"]

    def values(self, sweep: str) -> tuple[list[str], str | None]:
        """Values of a sweep in order, and the reference."""
        tasks = self.table("tasks")
        rows = tasks[tasks["sweep"] == sweep]
        values = list(dict.fromkeys(rows["value"]))
        numbers = [number(value) for value in values]
        if None not in numbers:
            values = [v for _, v in sorted(zip(numbers, values, strict=True))]
        return values, next(iter(rows.loc[rows["is_reference"], "value"]), None)

    def score(
        self, sweep: str, image_id: str, model: str, value: str, metric: str = "ssim"
    ) -> Scored:
        """Scores of one map to its reference, and its flags.

        Parameters
        ----------
        sweep, image_id, model, value : str
            The map; `value` of the sweep's hyperparameter, as in the tables.
        metric : str
            Similarity that is `score`.
        """
        similarity, rank, dynamic_range = (
            self._scores.get((sweep, image_id, model, value, name))
            for name in (metric, "spearman", "dynamic_range")
        )
        return Scored(
            score=similarity and similarity[0],
            rank=rank and rank[0],
            degenerate=dynamic_range is not None and dynamic_range[1],
            inverted=rank is not None and rank[2],
        )

    @cached_property
    def _scores(self) -> dict[tuple[str, ...], tuple[float, bool, bool]]:
        if self.scores is None:
            return {}
        names = ["sweep", "image_id", "model", "value", "metric"]
        return _scored(self.scores.drop_duplicates(names), names, "degenerate", "inverted")


def _scored(frame: pd.DataFrame, names: Sequence[str], *flags: str) -> dict[tuple[str, ...], Any]:
    """Score and flags of each row by the text of columns `names`."""
    keys = zip(*(as_text(frame[name]) for name in names), strict=True)
    scores = frame["score"].astype(float), *(true(frame[flag]) for flag in flags)
    return dict(zip(keys, zip(*scores, strict=True), strict=True))


def thin(values: list[str], reference: str | None, most: int = 9) -> list[str]:
    """Values that fit: both ends, the reference, and an even choice between.

    Parameters
    ----------
    values : list of str
        In order.
    reference : str or None
        Value that is always kept.
    most : int
        Number of values that fit.
    """
    if len(values) <= most:
        return values
    kept = {round(index) for index in np.linspace(0, len(values) - 1, most)}
    if reference in values:
        always = values.index(reference)
        if always not in kept:
            inner = kept - {0, len(values) - 1}
            nearest = min(inner or kept, key=lambda index: abs(index - always))
            kept = kept - {nearest} | {always}
    return [values[index] for index in sorted(kept)]


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dictionaries."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def by_key(frame: pd.DataFrame, *names: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """First row by its values in columns `names`."""
    rows = records(frame.drop_duplicates([*names]))
    return {tuple(row[name] for name in names): row for row in rows}


def beside(rows: pd.DataFrame, others: pd.DataFrame, keys: list[str], prefix: str) -> pd.DataFrame:
    """Rows with the columns of the first of `others` that has the same keys.

    Parameters
    ----------
    rows, others : DataFrame
    keys : list of str
        Columns of both.
    prefix : str
        Of the added columns' names.
    """
    return rows.join(others.drop_duplicates(keys).set_index(keys).add_prefix(prefix), on=keys)


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


def as_text(column: pd.Series) -> pd.Series:
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
    """Value as a finite number; None where it is not one."""
    try:
        converted = float(value)
    except ValueError:
        return None
    return converted if math.isfinite(converted) else None
