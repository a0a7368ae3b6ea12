"""Runs as people find them in MLflow, made from tables and cards; `writer` writes them.

One experiment per (study, method), `steadymap/{study}/{method}`, and `steadymap/{study}/training`.
A method's experiment has a parent run per (sweep, model), `sliding_patch SP-L googlenet-r`, with a
child per setting, `patch_size=17 googlenet-r` or `patch_size=29 googlenet-r (reference)`, and one
per (search, model), with a child per distinct setting tried, `n_samples=20 sigma=0.15 googlenet-r
(best)`. The training experiment has a run per model. `steadymap/{study}` has one run, which sums
the study up. In `steadymap/{study}/parameter randomization` a parent run per model, `googlenet-r:
parameters randomized`, has a child per method, `lime googlenet-r`, or `lime googlenet-r top_down`.
`steadymap/{study}/comparisons` has noise, de-noising, object sizes and spreads of dataset means,
`steadymap/{study}/claims` a run per claim.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from steadymap.params.methods import ROBUST, value_text
from steadymap.store.atomic import json_text
from steadymap.store.tables import rounded

TRAINING = "training"

RANDOMIZATION = "parameter randomization"

COMPARISONS, CLAIMS = "comparisons", "claims"

# The experiment of the run that sums a study up has the study's name alone.
SUMMARY = ""

# Of a metric with several conventions, the one that has the short name.
MAIN_CONVENTIONS = {"ssim": "common", "insertion": "auc_over_max", "deletion": "auc_over_max"}

HEADLINE = "ssim"

# Stands beside the headline: SSIM may call an inverted map alike.
RANK = "spearman"

# Metrics of a training by column of its curves.
_CURVES = {
    "train_loss": "train/loss",
    "train_accuracy": "train/accuracy",
    "val_accuracy": "val/accuracy",
    "val_robust_accuracy": "val/robust_accuracy",
    "learning_rate": "learning_rate",
}

# Values by (name, step).
Points = dict[tuple[str, int], float]

# PNG files of a parent run by (sweep, method, search or kind of figure, model).
Figures = Mapping[tuple[str, str], Sequence[Path]]


@dataclass(frozen=True)
class Images:
    """Images that a sweep was measured on or a network was trained on.

    Attributes
    ----------
    name, uri : str
        Name of the set, and the table or folder that holds it.
    digest : str
        Hash of images and targets, 32 hex digits.
    n_images : int
        Number of images.
    context : str
        `evaluation` or `training`.
    """

    name: str
    uri: str
    digest: str
    n_images: int
    context: str = "evaluation"


@dataclass(frozen=True)
class Entry:
    """Content of one run.

    Attributes
    ----------
    experiment, name : str
        Experiment and name of the run.
    params : dict
        Immutable in MLflow; empty ones are dropped.
    metrics : dict
        Finite values by name and step.
    tags : dict
        Those that the tables determine, identity included; empty ones are dropped.
    artifacts : dict
        Content by path.
    images : Images, optional
        Input of the run.
    finished : bool
        Whether the run is to be closed, with nothing still to come.
    seconds : float
        Duration, where one was measured.
    children : tuple of Entry
        Runs below it.
    """

    experiment: str
    name: str
    params: dict[str, str]
    metrics: Points
    tags: dict[str, str]
    artifacts: dict[str, bytes] = field(default_factory=dict)
    images: Images | None = None
    finished: bool = True
    seconds: float = 0.0
    children: tuple["Entry", ...] = ()

    def __post_init__(self) -> None:
        """Drop empty params and tags."""
        for name in ("params", "tags"):
            values = {key: value for key, value in getattr(self, name).items() if value != ""}
            object.__setattr__(self, name, values)


class Study:
    """What the runs of one study have in common.

    Parameters
    ----------
    name : str
        Name of the study.
    tables : mapping of str to DataFrame
        By file stem, each where it exists.
    figures : mapping, optional
        PNG files by (sweep, method, search or kind of figure, model).
    """

    def __init__(
        self, name: str, tables: Mapping[str, pd.DataFrame], figures: Figures | None = None
    ):
        self.name = name
        self.tables = tables
        self.models = {str(row["model"]): row for row in records(tables.get("models"))}
        self.evaluation_set = _evaluation_set(tables.get("evaluation_set"), name)
        self._figures = figures or {}

    def groups(self, name: str, columns: Sequence[str]) -> dict[tuple[str, ...], pd.DataFrame]:
        """Rows of a table by the text of these columns; none where there is no table."""
        return groups(self.tables.get(name), columns)

    def tags(self, model: str, anchor: str) -> dict[str, str]:
        """Tags of all runs of a model; `anchor` is that of the report's section about them."""
        card = self.models.get(model, {})
        return {
            "study": self.name,
            "report": report_link(self.name, anchor),
            "robust": value_text(card.get("robust", model.endswith(ROBUST))),
            "weights_sha256": str(card.get("weights_sha256", "")),
        }

    def figures(self, model: str, *subjects: str) -> dict[str, bytes]:
        """Figures of a parent run as artifacts."""
        return {
            f"figures/{path.name}": path.read_bytes()
            for subject in subjects
            for path in self._figures.get((subject, model), ())
        }


def experiment_name(study: str, subject: str) -> str:
    """Name of the experiment of a method, TRAINING, RANDOMIZATION or SUMMARY."""
    return f"steadymap/{study}/{subject}".rstrip("/")


def report_link(study: str, anchor: str) -> str:
    """Section of the report about a run, its tag `report`."""
    return f"reports/{study}/report.html#{anchor}"


def metric_name(metric: str, convention: str, statistic: str, *, draws: str = "") -> str:
    """Name of a statistic of scores in MLflow.

    The main reading of a metric is short: `ssim/mean`, `spearman/std`. It has the convention
    `common` (SSIM) or the metric's only one, and the headline's draws. Any other reading spells its
    convention out, and other draws than the headline's: `ssim.sam/mean`,
    `ssim.common.nested/mean`, `spearman.signed.nested/mean`.

    On a child, `mean` and `std` are over images, of the similarity to the reference. On a parent,
    `mean` is over images of each image's mean over settings, and `std_settings` the sweep's
    sensitivity: the RMS over images of each image's std over settings. SSIM's main reading has
    `ci_low` and `ci_high` of the mean too, and on a parent `std_settings_mean`, the mean of the
    stds.

    Under parameter randomization, statistics are called as the columns of `tables/ipr.csv` are:
    `ssim/S_same`, `ssim/same_low`, `ssim/excess`, `ssim.sam/S_same`, `spearman/S_fresh`. SSIM's
    main reading has all of them, others S_same, S_fresh, floor, excess and S_rel.

    Parameters
    ----------
    metric, convention : str
        As the tables have them.
    statistic : str
        `mean`, `std`, `std_settings`, or a column of the table.
    draws : str
        Kind of draws, where it is not the headline's.
    """
    if is_main(metric, convention) and not draws:
        return f"{metric}/{statistic}"
    spelled = f"{metric}.{convention}" if convention else metric
    return f"{spelled}{'.' * bool(draws)}{draws}/{statistic}"


def is_main(metric: str, convention: str) -> bool:
    """Whether a metric's convention has the short name."""
    return MAIN_CONVENTIONS.get(metric, convention) == convention


def add_metric(
    points: Points, row: Mapping[str, Any], statistic: str, column: str, draws: str = ""
) -> None:
    """Add a column of a row of scores to the points of a run, named by `metric_name`.

    Parameters
    ----------
    points : dict
        Changed in place.
    row : mapping
        Row of scores, with `metric` and `convention`.
    statistic, column : str
        In the name, and in the row.
    draws : str
        As for `metric_name`.

    Raises
    ------
    ValueError
        Where another convention has this name already.
    """
    name = metric_name(row["metric"], row["convention"], statistic, draws=draws)
    if (name, 0) in points:
        raise ValueError(
            f"{name}: two conventions of {row['metric']} would have this name, one is "
            f"{row['convention']!r}; name the main one in entries.MAIN_CONVENTIONS"
        )
    points[name, 0] = row[column]


def finite(points: Points) -> tuple[Points, str]:
    """Finite metrics, rounded; the names of those that are not."""
    metrics = {key: rounded(value) for key, value in points.items() if math.isfinite(value)}
    return metrics, ", ".join(dict.fromkeys(key[0] for key in points if key not in metrics))


def counts(values: Mapping[str, Any]) -> Points:
    """Metrics without steps; those that are missing are left out."""
    return {(name, 0): float(value) for name, value in values.items() if not pd.isna(value)}


def logged_table(rows: Iterable[Mapping[str, Any]], path: str) -> tuple[dict[str, bytes], str]:
    """Rows in the format of `mlflow.log_table`: the artifact, and the tag by which the UI shows it.

    Numbers that are not finite become empty cells.
    """
    frame = pd.DataFrame(rows).map(lambda cell: rounded(cell) if isinstance(cell, float) else cell)
    # The UI takes a dot for a level of nesting, and leaves the column empty.
    frame.columns = frame.columns.str.replace(".", " ")
    text = frame.to_json(orient="split", index=False, double_precision=15)
    return {path: text.encode()}, json.dumps([{"path": path, "type": "table"}])


def model_link(study: str, model: str) -> str:
    """Sentence of notes on a model's run and card; `writer` makes the model's name a link."""
    experiment = experiment_name(study, TRAINING)
    return f"Model: run `{model}` in `{experiment}`, artifact `card.json`."


def _evaluation_set(frame: pd.DataFrame | None, study: str) -> Images | None:
    if frame is None:
        return None
    names = ("image_id", "sha256", "label", "target", "x0", "y0", "x1", "y1")
    columns = frame[[name for name in names if name in frame]]
    text = columns.sort_values("image_id").to_csv(index=False, lineterminator="\n")
    uri = f"reports/{study}/tables/evaluation_set.csv"
    return Images(f"{study} evaluation set", uri, digest(text), len(frame))


def digest(text: str) -> str:
    """Hash of a text, 32 hex digits: MLflow takes at most 36 characters."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as params, `attack.eps`: texts by dotted name."""
    texts: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            texts |= flat(value, f"{prefix}{name}.")
        else:
            texts[f"{prefix}{name}"] = value_text(value)
    return texts


def groups(
    frame: pd.DataFrame | None, columns: Sequence[str]
) -> dict[tuple[str, ...], pd.DataFrame]:
    """Rows of a table by the text of these columns, in the order of the table."""
    if frame is None:
        return {}
    by_key = frame.groupby(list(columns), sort=False, observed=True)
    return {tuple(str(part) for part in key): group for key, group in by_key}


def records(frame: pd.DataFrame | None) -> list[dict[str, Any]]:
    """Rows of a table as dicts; none where there is no table."""
    return [] if frame is None else frame.to_dict("records")


# Templates of this folder.
TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("steadymap.tracking", ""),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.globals["model_link"] = model_link

# Notes on runs, Markdown: a macro for each kind of run.
NOTES: Any = TEMPLATES.get_template("notes.md.jinja").module


def training_entry(
    model: str, card: Mapping[str, Any], curves: pd.DataFrame, *, study: str, finished: bool
) -> Entry:
    """Run of a training, with the epochs as steps.

    Parameters
    ----------
    model : str
        Name of the model.
    card : mapping
        Its card, during training as far as known.
    curves : DataFrame
        A row per epoch so far.
    study : str
        Name of the study.
    finished : bool
        Whether training has ended.

    Returns
    -------
    Entry
        Another `recipe_digest` of the card is another run.
    """
    recipe, data = card.get("recipe") or {}, card.get("data") or {}
    accuracies = {
        name: value
        for name, value in (card.get("accuracies") or {}).items()
        if isinstance(value, float) and math.isfinite(value)
    }
    points: Points = {
        (name, int(epoch)): value
        for column, name in _CURVES.items()
        if column in curves and curves[column].notna().any()
        for epoch, value in zip(curves["epoch"], curves[column], strict=True)
    }
    points |= {(f"final/{name}_accuracy", 0): value for name, value in accuracies.items()}
    metrics, dropped = finite(points)
    robust = value_text(card.get("robust", model.endswith(ROBUST)))
    images = None
    if len(curves) and data.get("n_train"):
        # MLflow takes at most 36 characters of a digest.
        identity = (f"results/{study}/data", str(data["digest"])[:32], int(data["n_train"]))
        images = Images(f"{study} training images", *identity, context="training")
    return Entry(
        experiment_name(study, TRAINING),
        model,
        params={
            **flat(recipe),
            **{"model": model, "architecture": str(card.get("architecture", ""))},
            "robust": robust,
        },
        metrics=metrics,
        tags={
            "study": study,
            "training_id": f"{study}/{model}",
            "report": report_link(study, "models"),
            "recipe_digest": str(card.get("recipe_digest") or digest(json.dumps(recipe))),
            "robust": robust,
            "weights_sha256": str(card.get("weights_sha256", "")),
            "data_digest": str(data.get("digest", "")),
            "dropped_metrics": dropped,
            "mlflow.note.content": NOTES.training(study, model, card, accuracies, len(curves)),
        },
        artifacts={"card.json": json_text(card).encode()} if finished else {},
        images=images,
        finished=finished,
        seconds=float(curves["seconds"].sum()) if "seconds" in curves else 0.0,
    )
