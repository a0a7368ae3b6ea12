"""MLflow as a mirror of the tables: written here, read by people, consulted by nothing.

Mirroring the same tables again writes nothing, so that a lost database is rebuilt by the last
stage. A run whose setting left the tables stays, called `superseded: ...` and tagged `current` =
false, and becomes current again when the setting returns.

`python -m steadymap.tracking ui` shows it.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from steadymap.store.atomic import read_json
from steadymap.store.tables import read_table
from steadymap.tracking.comparisons import claim_entries, comparison_entries
from steadymap.tracking.entries import (
    CLAIMS,
    COMPARISONS,
    RANDOMIZATION,
    SUMMARY,
    TRAINING,
    Study,
    experiment_name,
    training_entry,
)
from steadymap.tracking.randomizations import FIGURES, randomization_entries
from steadymap.tracking.summary import summary_entry
from steadymap.tracking.sweeps import search_entries, sweep_entries
from steadymap.tracking.writer import Mirrored, Origin, Writer, open_writer

# Tables of reports; the first six always exist.
_TABLES = ("tasks", "settings", "sensitivity", "models", "evaluation_set", "images")

_OPTIONAL_TABLES = (
    *("claims", "ipr_claims", "search", "importances", "ipr", "ipr_units", "ipr_failures"),
    *("comparisons", "object_size", "global_std"),
)


def write_sweeps(writer: Writer, study: Study, alpha: float = 0.25) -> None:
    """Write sweeps and searches into the experiments of their methods.

    Parameters
    ----------
    writer : Writer
        Counts the runs.
    study : Study
        As `sweep_entries` and `search_entries` take it.
    alpha : float
        Threshold whose localization runs show.
    """
    subjects = (SUMMARY, TRAINING, RANDOMIZATION, COMPARISONS, CLAIMS)
    others = {experiment_name(study.name, name) for name in subjects}
    runs = [*sweep_entries(study, alpha), *search_entries(study)]
    writer.write(runs, writer.experiments.keys() - others)


def write_randomization(
    writer: Writer, study: Study, settings: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write the randomization of parameters into its experiment.

    Another number, setting or unit makes another run and supersedes the old one, as a curve's old
    points can't be taken back.

    Parameters
    ----------
    writer : Writer
        Counts the runs.
    study : Study
        As `randomization_entries` takes it. Without rows of `ipr`, the runs that there are become
        superseded.
    settings : mapping of str to mapping
        Hyperparameters of each method, those of `results/{study}/randomization/settings.json`.
    """
    runs = randomization_entries(study, settings)
    writer.write(runs, [experiment_name(study.name, RANDOMIZATION)])


def write_comparisons(writer: Writer, study: Study) -> None:
    """Write comparisons and claims into their experiments.

    Parameters
    ----------
    writer : Writer
        Counts the runs.
    study : Study
        As `comparison_entries` and `claim_entries` take it.
    """
    writer.write(comparison_entries(study), [experiment_name(study.name, COMPARISONS)])
    writer.write(claim_entries(study), [experiment_name(study.name, CLAIMS)])


def mirror_study(
    reports: Path, results: Path, *, origin: Origin, uri: str | None = None, alpha: float = 0.25
) -> Mirrored:
    """Mirror a whole study from its files.

    Parameters
    ----------
    reports : Path
        Folder with `tables/`, `metrics/`, `figures/` and the report. A figure belongs to the sweep,
        or method, that its name begins with, and to one model where it ends with that; `ipr...` and
        `plane...` belong to the randomization of parameters.
    results : Path
        Folder with `models/{model}/` and, where parameters were randomized, `randomization/`.
    origin : Origin
        Becomes tags of runs that are written.
    uri : str, optional
        Tracking store; by default that of `tracking_uri`.
    alpha : float
        Threshold whose localization runs show.

    Returns
    -------
    Mirrored
        Counts of runs. Robust models are registered besides, weights and card, as
        `steadymap.{study}.{model}`: a version per hash of the weights, alias `current` on theirs.

    Raises
    ------
    TrackingError
        The store is locked, unreachable, read-only or broken.
    """
    name, reports, results = origin.study, Path(reports), Path(results)
    paths = {stem: reports / "tables" / f"{stem}.csv" for stem in (*_TABLES, *_OPTIONAL_TABLES)}
    tables = {
        stem: read_table(path) for stem, path in paths.items() if stem in _TABLES or path.is_file()
    }
    settings = {}
    if len(tables.get("ipr", ())):
        settings = read_json(results / "randomization" / "settings.json")
    tasks = tables["tasks"]
    subjects = {*tasks["sweep"], *tasks["method"], *FIGURES}
    if "search" in tables:
        subjects |= {*tables["search"]["search"]}
    models = {*tasks["model"], *tables["models"]["model"]}
    study = Study(name, tables, _figures(reports / "figures", models, subjects))
    trainings = []
    for model in tables["models"]["model"]:
        folder = results / "models" / model
        card, curves = read_json(folder / "card.json"), read_table(folder / "curves.csv")
        trainings.append(training_entry(model, card, curves, study=name, finished=True))
    metrics = sorted((reports / "metrics").glob("*.json"))
    headlines = {path.stem: read_json(path) for path in metrics}
    pages = [reports / "report.html", reports / "report.md"]
    page = next((page for page in pages if page.is_file()), None)
    summary = summary_entry(study, headlines, page)
    with open_writer(origin, uri) as writer:
        writer.write(trainings, [experiment_name(name, TRAINING)])
        for entry in trainings:
            if entry.tags["robust"] == "true":
                writer.register(entry, results / "models" / entry.name)
        writer.write([summary], [summary.experiment])
        write_sweeps(writer, study, alpha)
        write_randomization(writer, study, settings)
        write_comparisons(writer, study)
        return writer.mirrored


def _figures(
    folder: Path, models: Collection[str], subjects: Collection[str]
) -> dict[tuple[str, str], list[Path]]:
    """Figures by subject and model, both found in the file's name."""

    def by_length(names: Collection[str]) -> dict[str, str]:
        """Names by their form in a file's name.

        The longest is first: `SG-N-draws` is of the sweep SG-N, even where there is one called SG.
        """
        ordered = sorted(names, key=len, reverse=True)
        return {f"-{name.replace('_', '-')}-": name for name in ordered}

    figures: dict[tuple[str, str], list[Path]] = {}
    endings, beginnings = by_length(models), by_length(subjects)
    for path in sorted(folder.glob("*.png")):
        stem = f"-{path.stem.replace('_', '-')}-"
        subject = next((name for text, name in beginnings.items() if stem.startswith(text)), None)
        if subject is None:
            continue
        model = next((name for text, name in endings.items() if stem.endswith(text)), None)
        for name in models if model is None else [model]:
            figures.setdefault((subject, name), []).append(path)
    return figures
