"""The run that sums a study up."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from steadymap.analysis.claims.verdict import verdict_counts
from steadymap.tracking.entries import (
    NOTES,
    SUMMARY,
    Entry,
    Study,
    counts,
    experiment_name,
    finite,
)

# A report above this size is not shown in MLflow.
_MAX_PAGE_BYTES = 25_000_000


def summary_entry(
    study: Study, headlines: Mapping[str, Mapping[str, float]], report: Path | None
) -> Entry:
    """Run that sums a study up.

    Parameters
    ----------
    study : Study
        With the table `tasks`; `claims` where it exists.
    headlines : mapping of str to mapping
        By model, content of `metrics/{model}.json`.
    report : Path, optional
        The report's page. Where it is too large to be shown, its Markdown beside it is logged.

    Returns
    -------
    Entry
        Metrics `{model}/min_ssim`, ...; groups of claims by verdict; the report as artifact.
    """
    tasks, images, name = study.tables["tasks"], study.evaluation_set, study.name
    points = {
        (f"{model}/{statistic}", 0): value
        for model, numbers in headlines.items()
        for statistic, value in numbers.items()
    }
    metrics, _ = finite(points)
    if len(claims := study.tables.get("claims", pd.DataFrame())):
        verdicts = verdict_counts(claims).items()
        metrics |= counts({f"claims/{verdict}": n for verdict, n in verdicts if n})
    rows = [(*metric.rsplit("/", 1), value) for (metric, _), value in metrics.items()]
    n_images = images.n_images if images else None
    n_settings = tasks["task_id"].nunique()
    sizes = {"n_sweeps": tasks["sweep"].nunique(), "n_settings": n_settings, "n_images": n_images}
    if report is not None and report.is_file() and report.stat().st_size > _MAX_PAGE_BYTES:
        report = report.with_suffix(".md")
    artifacts = {report.name: report.read_bytes()} if report and report.is_file() else {}
    return Entry(
        experiment_name(name, SUMMARY),
        f"{name}: summary",
        params={
            "models": ", ".join(sorted(headlines))[:6000],
            "methods": ", ".join(dict.fromkeys(tasks["method"]))[:6000],
        },
        metrics=metrics | counts(sizes),
        tags={
            "study": name,
            "sweep_id": f"{name}/summary",
            "report": f"reports/{name}/report.html",
            "mlflow.note.content": NOTES.summary(name, rows, list(artifacts)),
        },
        artifacts=artifacts,
        images=images,
    )
