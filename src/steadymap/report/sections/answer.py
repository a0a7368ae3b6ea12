"""The report's answer: which hyperparameters move maps."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pandas as pd

from steadymap.analysis import readings
from steadymap.analysis.readings import sweep_anchor
from steadymap.report import viewer
from steadymap.report.document import Block, Cell, Items, Table, Text
from steadymap.report.figures import sweeps as figures
from steadymap.report.gallery import MAX_LEAD_BYTES, Gallery
from steadymap.report.sections.parameters import parameter_sentences
from steadymap.report.sections.sweeps import _share_wanted, advised, grids_words
from steadymap.report.study import Study, by_key, missing, records
from steadymap.report.words import (
    INVERTED_WORDS,
    METER,
    and_list,
    as_sentence,
    count_of,
    decimal,
    inverted_mark,
    meter,
    one_minus_ssim,
    own_metrics,
    rank_moved,
    reference_settings,
    side,
    two_digits,
    with_interval,
)


def advice_block(study: Study) -> Iterator[Block]:
    """A line per method: what to report, how many samples, how many seeds."""
    table = study.table("advice")
    if table.empty:
        return
    items = [advised(method, own) for method, own in table.groupby("method", sort=False)]
    tau = f"{table['tau'].iloc[0]:g}"
    items.append(
        f"Enough is an SSIM (common) of {tau}: of {100 * _share_wanted(study):g} % of the images "
        "with a converged map for a count; and as a mean, of rank correlation too, of two averages "
        "of as many seeds. By model: `tables/advice.csv`."
    )
    yield Items(items, title="What to do, by this study's own numbers")


def answer(study: Study, gallery: Gallery) -> Iterator[Block]:
    """Which hyperparameters move maps, as text, picture and table."""
    rows = study.headline
    if rows.empty:
        yield Text(
            "No sweep with a hyperparameter was scored, so there is nothing to compare. Add one "
            "under "
            "`sweeps` in `params.yaml` and run `make repro`.",
            lead=True,
        )
        return
    known = rows.dropna(subset=["mean"])
    pairs = study.table("settings")[
        (study.table("settings")["metric"] == "ssim")
        & (study.table("settings")["convention"] == study.convention)
    ]
    pairs = readings.headline_draws(pairs)
    n_pairs, n_degenerate = int(pairs["n_images"].sum()), int(pairs["n_degenerate"].sum())
    n_inverted = pairs["n_inverted"].sum(min_count=1)
    if known.empty or (n_pairs and n_degenerate == n_pairs):
        yield Text(
            "No answer: every compared pair of maps was degenerate (constant, not finite, or "
            "one pixel carrying over half of the mass), so the scores below mean nothing.",
            lead=True,
        )
        return
    order = list(dict.fromkeys(known["sweep"]))
    yield Text(" ".join(_answer_sentences(study, known, order)), lead=True)
    yardstick = study.training_variability
    retrained = ""
    if len(yardstick):
        settings = list(dict.fromkeys(yardstick["method"] + " " + yardstick["setting"]))
        retrained = (
            " **Hatched**: how far the maps of networks trained from other seeds are apart, with "
            f"its interval ({'; '.join(settings)}). A hyperparameter left of it moves the maps "
            "less than "
            "training the network again does."
        )
    yield gallery.add(
        "dangerous-hyperparameters",
        figures.hyperparameters_by_effect(
            study.table("sensitivity"),
            images=study.table("images"),
            look=study.look,
            retraining=yardstick if len(yardstick) else None,
        ),
        alt="How far each hyperparameter moved the maps of each model, the most first",
        caption="How far each hyperparameter moved the maps, the worst first. To the right: choose "
        "this hyperparameter with care, report its value, or average over it. Where a point lies "
        f"depends on the values swept.{retrained}",
        max_bytes=MAX_LEAD_BYTES,
    )
    yield _danger_table(study, known)
    yield from _twins_table(study)
    first = study.about(order[0])
    noises = [
        _seed_noise(study, known, method)
        for method in dict.fromkeys(known["method"])
        if method != first[0] or first[1] == "seed"
    ]
    details = [*filter(None, noises), *_answer_by_method(study, known)]
    details += _answer_twins(study, known)
    if len(order) > 1:
        details.append(_answer_measures(study, order[0]))
    details += parameter_sentences(study)
    details.append(
        f"Of the sweeps' maps, {n_degenerate} of {n_pairs} compared pairs were degenerate "
        "(constant, not finite, or one pixel carrying over half of the mass)"
        + ("; their scores mean little." if n_degenerate else ".")
        + ("" if missing(n_inverted) else f" {int(n_inverted)} were inverted: {INVERTED_WORDS}.")
    )
    yield Items(details, fold="By method, by measure, and what the model's parameters do")


def _answer_sentences(study: Study, known: pd.DataFrame, order: list[str]) -> Iterator[str]:
    """Sweeps by how far they moved the maps, the worst first."""
    worst = known.groupby("sweep", sort=False)["degree"].max()
    method, hyperparameter = study.about(order[0])
    yield (
        f"**Most dangerous: `{hyperparameter}` of {method}** (sweep {order[0]}), mean 1 − SSIM "
        f"{_per_model(known, order[0], one_minus_ssim)}; 1 − Spearman "
        f"{_per_model(known, order[0], rank_moved)}."
    )
    if hyperparameter != "seed" and (noise := _seed_noise(study, known, method)):
        yield noise
    groups: dict[int, dict[str, list[str]]] = {}
    for sweep in order:
        method, hyperparameter = study.about(sweep)
        hyperparameters = groups.setdefault(int(worst[sweep]), {}).setdefault(method, [])
        if f"`{hyperparameter}`" not in hyperparameters:
            hyperparameters.append(f"`{hyperparameter}`")
    for place, methods in groups.items():
        named = [
            f"{and_list(hyperparameters)} of {method}"
            for method, hyperparameters in methods.items()
        ]
        if place >= _TOLD:
            yield f"**{as_sentence(readings.DEGREES[place][1])}**: {'; '.join(named)}."
    if few := [sweep for sweep in order if worst[sweep] < _TOLD]:
        others = "" if len(few) == len(order) else "other "
        yield (
            f"{count_of(len(few), f'{others}sweep')} moved them little or hardly, by SSIM and by "
            "rank correlation."
        )
    if len(order) > 1:
        apart, n_both = _apart(study, known, order[0], order[1])
        if len(apart) < n_both:
            yield (
                "Of the first two, the difference, paired by image, excludes 0 by both measures "
                f"for {and_list(apart)} only."
                if apart
                else "The difference of the first two, paired by image, does not exclude 0 by both "
                "measures: their order is not settled."
            )
    else:
        yield "It is the only sweep, so there is no other hyperparameter to compare it with."


# Degrees of which the first sentences name every hyperparameter.
_TOLD = 2


def _seed_noise(study: Study, known: pd.DataFrame, method: str) -> str:
    """How far another seed alone moves a method's maps, beside the hyperparameter that moves most.

    '' where no seed sweep with that hyperparameter's other settings moves them half as far on the
    same model,
    or where the hyperparameter does not move them much; the first sweep of all is told of in any
    case.
    """
    own = known[known["method"] == method]
    others = records(own[own["hyperparameter"] != "seed"].sort_values("mean", kind="stable"))
    if not others:
        return ""
    worst = others[0]
    hyperparameter, moved = worst["hyperparameter"], 1 - worst["mean"]
    if worst["degree"] < _TOLD and worst["sweep"] != known["sweep"].iloc[0]:
        return ""
    at = reference_settings(study, worst["sweep"])
    told = []
    seeds = own[(own["hyperparameter"] == "seed") & (own["model"] == worst["model"])]
    for row in records(seeds):
        held = reference_settings(study, row["sweep"])
        # Where another setting differs too, the noise is that of other maps, or of none.
        alike = hyperparameter in held and held | {hyperparameter: None} == at | {
            hyperparameter: None
        }
        if alike and 1 - row["mean"] >= moved / 2 > 0:
            told.append(
                f"{decimal(1 - row['mean'])} at `{hyperparameter}` {held[hyperparameter]} "
                f"({row['sweep']})"
            )
    if not told:
        return ""
    return (
        f"Another seed alone moves the maps of {method} on {worst['model']} by {and_list(told)}: "
        "much "
        f"of the {decimal(moved)} of `{hyperparameter}` ({worst['sweep']}) may be the method's "
        "own noise."
    )


def _danger_table(study: Study, known: pd.DataFrame) -> Table:
    """A line per sweep, on the model whose maps it moved most."""
    worst_images = (
        1
        - readings.headline_rows(study.table("images"), "ssim", study.convention)
        .dropna(subset=["mean"])
        .groupby(["sweep", "model"])["mean"]
        .min()
    )
    retrained = by_key(study.training_variability, "sweep", "model")
    cells = []
    for sweep, own in known.groupby("sweep", sort=False):
        ordered = records(own.sort_values(["degree", "mean"], ascending=[False, True]))
        row, others = ordered[0], [1 - other["mean"] for other in ordered[1:]]
        moved, place = 1 - row["mean"], int(row["degree"])
        span = "–"
        if others:
            span = " to ".join(two_digits(end) for end in dict.fromkeys((min(others), max(others))))
        line = [
            Cell(str(sweep), anchor=sweep_anchor(str(sweep))),
            Cell(readings.DEGREES[place][1], tone=place),
            Cell(f"{row['method']}: {row['hyperparameter']}"),
            Cell(one_minus_ssim(row), meter=meter(row["mean"])),
            Cell(decimal(1 - row["rank_mean"]) + inverted_mark(row), meter=meter(row["rank_mean"])),
            Cell(row["model"], anchor=_first_map(study, str(sweep), row["model"])),
            Cell(span),
            Cell(two_digits(worst_images.get((sweep, row["model"])))),
        ]
        if retrained:
            band = retrained.get((sweep, row["model"]))
            line.append(Cell(f"{moved / band['mean']:.1f}×" if band and band["mean"] > 0 else "–"))
        cells.append(line)
    columns = ["sweep", "in words", "hyperparameter", f"1 − SSIM [{study.percent}]"]
    columns += ["1 − Spearman", "on", "others", "worst"]
    columns += ["retraining"] if retrained else []
    starts = ", ".join(f"**{name}** from {least:g}" for least, name in readings.DEGREES[1:])
    note = (
        f"**1 − SSIM** ({study.convention}) of a setting's map and the reference map, mean over "
        "settings and images, on the model that the hyperparameter moved most; **others**: the "
        "other models. "
        "**1 − Spearman**: the same of rank correlation, ‡ where pairs are inverted. **worst**: "
        f"the image that moved most, mean over settings. **In words**: {starts}, by the larger of "
        "the two; thresholds are a convention."
        + (
            " **retraining**: in units of what training the network again does."
            if retrained
            else ""
        )
        + grids_words(study, known["sweep"])
    )
    return Table(columns, cells, n_names=3, note=note, meter_note=METER)


def _twins_table(study: Study) -> Iterator[Block]:
    """Robust less regular over several trainings, beside this one's."""
    cells = []
    for row in records(study.robust_minus_regular):
        mean, low, high = study.difference(
            (row["sweep"], row["model"]), (row["sweep"], row["twin"])
        ).values()
        over, ranks = (
            {"mean": row[f"{name}difference"], "ci_low": row[low], "ci_high": row[f"{name}high"]}
            for name, low in (("", "low"), ("rank_", "rank_low"))
        )
        settled = side(over) * side(ranks) > 0
        cells.append(
            [
                Cell(str(row["sweep"]), anchor=sweep_anchor(str(row["sweep"]))),
                Cell(str(row["method"])),
                Cell(f"{row['twin']} − {row['model']}"),
                Cell(with_interval(over), tone=1 if settled else None),
                Cell(with_interval(ranks)),
                Cell(with_interval({"mean": mean, "ci_low": low, "ci_high": high})),
            ]
        )
    if not cells:
        return
    n = int(study.robust_minus_regular["n_trainings"].max())
    yield Table(
        [
            *("sweep", "method", "twins", f"{n} trainings [{study.percent}]", "Spearman"),
            "this training",
        ],
        cells,
        n_names=3,
        note=f"**Twins**: SSIM (common) of the robust model less that of the regular one; above 0, "
        f"the robust model's maps moved less. Over {n} trainings, paired by training and image, "
        "the interval covers trainings and images; of this training, paired by image, images "
        f"alone. **Spearman**: the same of rank correlation. All measures: "
        f"`../retraining/{study.name}/twins.csv`.",
        meter_note="Shaded: the intervals exclude 0 by both measures, on the same side.",
    )


def _first_map(study: Study, sweep: str, model: str) -> str:
    """Fragment of the viewer at the image that a sweep moved most on a model."""
    rows = study.headline_rows("images", sweep=sweep)
    rows = rows[rows["model"] == model].dropna(subset=["mean"])
    if rows.empty or study.maps(study.about(sweep)[0]) is None:
        return ""
    first = records(rows.sort_values(["mean", "image_id"], kind="stable"))[0]
    return viewer.fragment(model, sweep, str(first["image_id"]))


def _answer_by_method(study: Study, known: pd.DataFrame) -> Iterator[str]:
    for method in dict.fromkeys(known["method"]):
        own = known[known["method"] == method]
        sweeps = list(dict.fromkeys(own["sweep"]))
        if len(sweeps) > 1:
            means = own.groupby("sweep")[["mean", "rank_mean"]].mean()
            listed = [
                f"{s} ({study.about(s)[1]}) {' / '.join(map(decimal, means.loc[s]))}"
                for s in sweeps
            ]
            yield (
                f"Within {method}, mean SSIM / Spearman over models, most moving first: "
                f"{', '.join(listed)}."
            )


def _answer_twins(study: Study, known: pd.DataFrame) -> Iterator[str]:
    keys = set(by_key(known, "sweep", "model"))
    for robust in (name for name in study.models if name.endswith("-r")):
        regular = robust.removesuffix("-r")
        sweeps = [
            sweep
            for sweep in dict.fromkeys(known["sweep"])
            if {(sweep, regular), (sweep, robust)} <= keys
        ]
        if not sweeps:
            continue
        found = [
            [study.difference(*pair, metric) for metric in ("ssim", "spearman")]
            for pair in (((sweep, regular), (sweep, robust)) for sweep in sweeps)
        ]
        less, more = (
            [pair for pair in found if all(sign * row["mean"] > 0 for row in pair)]
            for sign in (1, -1)
        )
        up, down = (sum(all(map(side, pair)) for pair in some) for some in (less, more))
        apart = sum(pair[0]["mean"] * pair[1]["mean"] < 0 for pair in found)
        yield (
            f"Of {count_of(len(found), 'sweep')}, maps of {robust} moved less than those of "
            f"{regular} in {len(less)} and more in {len(more)}, by SSIM and by rank correlation; "
            f"the {study.percent} intervals of both differences, paired by image, exclude 0 in "
            f"{up} and {down} of these."
            + (f" In {apart}, undecided: SSIM and rank correlation disagree." if apart else "")
        )


def _answer_measures(study: Study, most: str) -> str:
    """Whether other measures name the same sweep."""
    agree: list[str] = []
    differ: list[tuple[str, str]] = []
    rows = readings.headline_draws(study.table("sensitivity"))
    measures = readings.MEASURES | {(name, "own"): name for name in own_metrics(rows)}
    for (metric, convention), label in measures.items():
        if (metric, convention) == ("ssim", study.convention):
            continue
        chosen = rows[rows["metric"] == metric]
        if convention is not None:
            chosen = chosen[chosen["convention"] == convention]
        means = chosen.groupby("sweep")["mean"].mean().dropna()
        if means.empty:
            continue
        first = str(means.idxmin())
        if first == most:
            agree.append(label)
        else:
            differ.append((label, first))
    parts = []
    if agree:
        verb = "names" if len(agree) == 1 else "name"
        parts.append(f"{and_list(agree)} {verb} {most} as the most moving sweep too")
    parts += [f"{label} names {first} instead" for label, first in differ]
    return ("; ".join(parts) or "No other measure was computed") + "."


def _per_model(rows: pd.DataFrame, sweep: str, moved: Callable[[Mapping[str, Any]], str]) -> str:
    own = records(rows[rows["sweep"] == sweep])
    return and_list([f"{moved(row)} for {row['model']}" for row in own])


def _apart(study: Study, rows: pd.DataFrame, first: str, second: str) -> tuple[list[str], int]:
    """Models whose maps `first` surely moves more than `second` by both measures; of how many."""
    keys = set(by_key(rows, "sweep", "model"))
    both = [m for m in dict.fromkeys(rows["model"]) if {(first, m), (second, m)} <= keys]
    lower = [
        m
        for m in both
        if all(
            study.difference((first, m), (second, m), metric)["ci_low"] > 0
            for metric in ("ssim", "spearman")
        )
    ]
    return lower, len(both)
