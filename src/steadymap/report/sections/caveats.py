"""Caveats at the head of the report."""

import itertools
import math

import numpy as np

from steadymap.report.document import Block, Items
from steadymap.report.study import Study, as_text, records
from steadymap.report.words import count_of, decimal


def caveats(study: Study) -> Block:
    """Caveats at the head of the report."""
    n_models = len(study.models)
    if n_models == 1:
        networks = f"they say something about this one network, {study.models[0]}"
    else:
        networks = (
            f"differences are between these {n_models} networks, not between robust and regular "
            "models as such"
        )
    clustered = " (clustered by photograph)" if len(study.photos) else ""
    items = [
        f"**One training per model.** Intervals cover images{clustered} and random draws, not "
        f"trainings: {networks}."
    ]
    short = ["**One training per model**: nothing here is about robust models as such."]
    if n_models == 1:
        short = ["**One training, one network**: other networks may differ."]
    if len(study.training_variability):
        n = int(study.training_variability["n_trainings"].max())
        told = "the hatched band beside the hyperparameters"
        if len(study.robust_minus_regular):
            told += " and the table of twins below it"
        items = [
            f"**One training per model, {n} where that is said.** {told[:1].upper()}{told[1:]} "
            f"rest on {n} trainings of each network from other seeds. All other intervals cover "
            f"images{clustered} and random draws, not trainings: {networks}."
        ]
        short = [f"**One training per model**; {n} trainings in {told}."]
    rule = study.param("evaluation_set", "rule") or "all_correct"
    if rule == "all_correct":
        models = "all models classify" if n_models > 1 else "the model classifies"
        items.append(
            f"**Easy images.** Only images that {models} correctly are used; hard ones are not."
        )
        short.append(f"**Easy images**: only those that {models} correctly.")
    else:
        items.append(
            f"**Chosen images.** The evaluation set follows the rule `{rule}`: it may hold images "
            "that a model misclassifies."
        )
        short.append(f"**Chosen images**: by the rule `{rule}`.")
    started = study.table("models").assign(init_from=as_text(study.table("models")["init_from"]))
    if pairs := [
        f"{row['model']} was trained starting from {row['init_from']}"
        for row in records(started[started["init_from"] != ""])
    ]:
        items.append(
            f"**Twins of one start.** {'; '.join(pairs)}, not from random weights: what such a "
            "pair shares, and how little it differs, may come from that."
        )
        short.append(f"**Twins of one start**: {'; '.join(pairs)}.")
    if study.described("kind") == "embedded":
        if study.param("data", "pattern_amplitude") == 0:
            planted = "The images are generated, here without the planted non-robust feature"
        else:
            planted = "The images are generated and their non-robust feature was planted"
        items.append(
            f"**A demonstration of the instrument.** {planted}: no evidence for or against the "
            "paper."
        )
        short.append("**Generated images**: no evidence for or against the paper.")
    size = study.described("image_size")
    if isinstance(size, int) and size < 224:
        items.append(
            f"**Not the paper's grid.** Values are scaled to {size} px and few; neither they nor "
            "the numbers are comparable with the paper's. A mean depends on the values swept."
        )
        short.append(f"**{size} px, small grids**: not comparable with the paper's values.")
    else:
        items.append("**The grid decides.** A mean over a sweep depends on the values swept.")
        short.append("**The grid decides**: a mean depends on the values swept.")
    items += [
        "**High SSIM is not yet stability.** It may mean a small amplitude or one outlier pixel, "
        "and a map and its negative may score .6 or more: words, verdicts and rankings hold by "
        "Spearman's rank correlation too. Read it beside the counts of degenerate and inverted "
        "pairs.",
        "**Moving is a reaction, not a fault.** A large 1 − SSIM says that a map reacts to its "
        "hyperparameter; which of the maps is faithful to the model is not measured.",
    ]
    short += [
        "**High SSIM** may be a small amplitude, one outlier pixel or an inverted map: read it "
        "beside Spearman.",
        "**Moving is a reaction**: which map is faithful is not measured.",
    ]
    widths = study.headline.assign(
        half=(study.headline["ci_high"] - study.headline["ci_low"]).astype(float) / 2
    ).dropna(subset=["half"])
    if widths.empty:
        items.append(
            f"**Small n.** With {count_of(study.n_images, 'image')} there are no intervals: no "
            "difference is detectable, and none is claimed."
        )
        short.append(f"**{count_of(study.n_images, 'image')}**: no difference is detectable.")
    else:
        widest = records(widths.sort_values("half", kind="stable"))[-1]
        median, paired = decimal(widths["half"].median()), _paired_reach(study)
        between, briefly = "", ""
        if paired is not None:
            between = (
                "; of a difference between two models, paired by image, they reach "
                f"±{decimal(paired)} at the median"
            )
            briefly = f", a difference between models, paired by image, to about ±{decimal(paired)}"
        items.append(
            f"**Small n.** With {count_of(study.n_images, 'image')} the {study.percent} intervals "
            "of "
            f"a mean reach ±{median} at the median and ±{decimal(widest['half'])} at most "
            f"({widest['sweep']}, {widest['model']}){between}. A difference smaller than the reach "
            "of its own interval is inconclusive by design, as many verdicts are."
        )
        short.append(
            f"**{count_of(study.n_images, 'image')}**: a mean is known to about "
            f"±{median}{briefly}; "
            "many verdicts are inconclusive by design."
        )
    title = "Before you read a number"
    return Items(items, title=title, short=short, fold="What each of these means")


def _paired_reach(study: Study) -> float | None:
    """Median half-width of the intervals of differences between two models in one sweep."""
    halves = []
    for sweep in dict.fromkeys(study.headline["sweep"]):
        for pair in itertools.combinations(study.models, 2):
            _, low, high = study.difference((sweep, pair[0]), (sweep, pair[1])).values()
            halves.append((high - low) / 2)
    known = [half for half in halves if math.isfinite(half)]
    return float(np.median(known)) if known else None
