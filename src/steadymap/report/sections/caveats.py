"""Caveats at the head of the report."""

import itertools
from collections.abc import Iterator

import numpy as np

from steadymap.analysis.readings import MOST_RESIDUAL
from steadymap.report.document import Block, Items
from steadymap.report.study import Study, records
from steadymap.report.words import and_list, count_of, decimal, sentence


def caveats(study: Study) -> Block:
    """Caveats at the head of the report."""
    items = [*_data_caveats(study), *_reading_caveats(study)]
    return Items(items, title="Before you read a number")


def _data_caveats(study: Study) -> Iterator[str]:
    n_models = len(study.models)
    clustered = " (clustered by photograph)" if len(study.photos) else ""
    scope = f"one network, {and_list(study.models)}"
    if n_models > 1:
        scope = f"these {n_models} networks, not robust and regular models as such"
    trainings = "**One training per model.**"
    if len(study.training_variability):
        n = int(study.training_variability["n_trainings"].max())
        table = "" if study.robust_minus_regular.empty else " and the table of twins"
        trainings = f"**One training per model**, but {n} in the hatched band{table}."
    yield sentence("caveat-trainings", trainings=trainings, clustered=clustered, scope=scope)
    rule = study.param("evaluation_set", "rule") or "all_correct"
    if rule == "all_correct":
        who = "all models" if n_models > 1 else "the model"
        yield f"**Easy images**: only those that {who} classified correctly."
    else:
        yield f"**Chosen images**: rule `{rule}`; some may be misclassified."
    models = study.table("models")
    started = records(models[models["init_from"] != ""])
    if started:
        pairs = and_list(f"{row['model']} was trained from {row['init_from']}" for row in started)
        yield sentence("caveat-start", pairs=pairs)
    if study.described("kind") == "embedded":
        planted = "without" if study.param("data", "pattern_amplitude") == 0 else "with"
        yield sentence("caveat-generated", planted=planted)
    size = study.described("image_size")
    grid = "a mean depends on the values swept"
    if isinstance(size, int) and size < 224:
        grid += f", here few and scaled to {size} px: not comparable with the paper's"
    yield f"**The grid decides**: {grid}."


def _reading_caveats(study: Study) -> Iterator[str]:
    yield sentence("caveat-ssim")
    yield sentence("caveat-reaction")
    residuals = study.table("completeness")
    worst = residuals.sort_values("median", ascending=False, kind="stable")
    for row in records(worst.drop_duplicates(["method", "model"])):
        if row["median"] > MOST_RESIDUAL:
            yield sentence("caveat-completeness", **row)
    images = count_of(study.n_images, "image")
    widths = study.headline.assign(half=(study.headline["ci_high"] - study.headline["ci_low"]) / 2)
    widths = widths.dropna(subset=["half"]).sort_values("half", kind="stable")
    if widths.empty:
        yield f"**{images}**: there are no intervals, and no difference is detectable."
        return
    halves = _paired_halves(study)
    paired = f", of a paired difference of models ±{decimal(np.median(halves))}" if halves else ""
    yield sentence(
        "caveat-images",
        images=images,
        study=study,
        median=widths["half"].median(),
        paired=paired,
        widest=widths.iloc[-1],
    )


def _paired_halves(study: Study) -> list[float]:
    """Half-widths of the intervals of differences between two models in one sweep."""
    halves = []
    for sweep in dict.fromkeys(study.headline["sweep"]):
        for one, other in itertools.combinations(study.models, 2):
            difference = study.difference((sweep, one), (sweep, other))
            halves.append((difference["ci_high"] - difference["ci_low"]) / 2)
    return [half for half in halves if np.isfinite(half)]
