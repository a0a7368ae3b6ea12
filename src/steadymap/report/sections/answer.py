"""The report's answer: which hyperparameters move maps."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from steadymap.analysis import readings
from steadymap.analysis.readings import DEGREES, sweep_anchor
from steadymap.report import viewer, words
from steadymap.report.document import Block, Cell, Items, Table, Text
from steadymap.report.figures import sweeps as figures
from steadymap.report.gallery import Gallery
from steadymap.report.sections.parameters import parameter_sentences
from steadymap.report.study import Study, by_key, missing, records
from steadymap.report.words import and_list, count_of, decimal

# Degrees from which on the first sentences name every hyperparameter.
_MUCH = 2

_METRICS = ("ssim", "spearman")


def advice_block(study: Study) -> Iterator[Block]:
    """A line per method: what to report, how many samples, how many seeds."""
    rows = study.table("advice")
    if rows.empty:
        return
    items = [advice_line(method, group) for method, group in rows.groupby("method", sort=False)]
    tau, share = rows["tau"].iloc[0], 100 * study.budget_share
    items.append(words.sentence("advice", tau=tau, share=share))
    yield Items(items, title="What to do, by this study's own numbers")


def advice_line(method: str, rows: pd.DataFrame) -> str:
    """Advice that holds on all models: what moves maps on any, the largest count of any.

    Parameters
    ----------
    method : str
    rows : DataFrame
        The method's rows of table `advice`, one per model.
    """
    moving = dict.fromkeys(" ".join(rows["report"]).split())
    steady = [n for n in dict.fromkeys(" ".join(rows["steady"]).split()) if n not in moving]
    reported, others = (and_list(f"`{name}`" for name in names) for names in (moving, steady))
    parts = [f"report {reported}" if moving else "no value swept moves its maps"]
    if moving and steady:
        parts.append(f"its maps hardly depend on {others}")
    counted = next(filter(None, rows["counted"]), "")
    if counted and rows["at_least"].notna().all():
        parts.append(f"`{counted}` of {rows['at_least'].max():g} or more")
    elif counted:
        parts.append(f"more `{counted}` than {rows['n_max'].max():g}, the most tried")
    n = rows["n_seeds"].max()
    if rows["most_seeds"].notna().any() and rows["n_seeds"].notna().all():
        parts.append("one seed is enough" if n == 1 else f"average {n:g} seeds")
    elif rows["most_seeds"].notna().any():
        most = count_of(int(rows["most_seeds"].max()), "seed")
        parts.append(
            f"average more than {most}, the most tried (two such averages: SSIM "
            f"{decimal(rows['seeds_ssim'].min())}, rank correlation "
            f"{decimal(rows['seeds_spearman'].min())})"
        )
    elif "seed" in moving or counted:
        parts.append("seeds to average: not measured here")
    return f"**{method}**: {'; '.join(parts)}."


def answer(study: Study, gallery: Gallery) -> Iterator[Block]:
    """Which hyperparameters move maps, as text, picture and table."""
    if study.headline.empty:
        yield Text(words.sentence("no-sweep"), lead=True)
        return
    rows = study.headline.dropna(subset=["mean"])
    pairs = study.headline_rows("settings")
    n_pairs, n_degenerate = int(pairs["n_images"].sum()), int(pairs["n_degenerate"].sum())
    # In tables from before degenerate pairs were left out they are among the images.
    n_pairs += n_degenerate if "mean_all" in pairs else 0
    if rows.empty or (n_pairs and n_degenerate == n_pairs):
        yield Text(words.sentence("no-answer"), lead=True)
        return
    yield Text(" ".join(_lead(study, rows)), lead=True)
    yield _effects_picture(study, gallery)
    yield _danger_table(study, rows)
    if len(study.robust_minus_regular):
        yield _trainings_table(study)
    n_inverted = pairs["n_inverted"].sum(min_count=1)
    inverted = ""
    if not missing(n_inverted):
        inverted = f", {int(n_inverted)} inverted ({words.INVERTED_PAIRS})"
    details = [*_other_noise(study, rows), *_by_method(rows), *_by_twins(study, rows)]
    details += [*_by_measure(study, rows["sweep"].iloc[0]), *parameter_sentences(study)]
    counts = {"n": n_pairs, "n_degenerate": n_degenerate, "inverted": inverted}
    details.append(words.sentence("degenerate-pairs", **counts))
    yield Items(details, fold="By method, by measure, and what the model's parameters do")


def _lead(study: Study, rows: pd.DataFrame) -> Iterator[str]:
    """Sweeps by how far they moved the maps, the worst first."""
    order = list(dict.fromkeys(rows["sweep"]))
    method, hyperparameter = study.about(order[0])
    first = records(rows[rows["sweep"] == order[0]])
    by_ssim, by_rank = (
        and_list(f"{words.moved(row, prefix)} for {row['model']}" for row in first)
        for prefix in ("", "rank_")
    )
    yield words.sentence("most-dangerous", first=first[0], by_ssim=by_ssim, by_rank=by_rank)
    if hyperparameter != "seed" and (noise := _seed_noise(study, rows, method)):
        yield noise
    degrees = rows.groupby("sweep")["degree"].max().value_counts().sort_index(ascending=False)
    counts = ", ".join(f"{n} **{DEGREES[degree][1]}**" for degree, n in degrees.items())
    yield f"Of {count_of(len(order), 'sweep')} by what they do to a map: {counts}."
    if len(order) == 1:
        yield "It is the only sweep, so there is no other hyperparameter to compare it with."
        return
    keys = set(zip(rows["sweep"], rows["model"], strict=True))
    both = [m for m in study.models if {(sweep, m) for sweep in order[:2]} <= keys]
    apart = [model for model in both if _surely_apart(study, order[0], order[1], model)]
    if len(apart) < len(both):
        where = f" on {and_list(m for m in both if m not in apart)}" if apart else ""
        yield words.sentence("not-settled", where=where)


def _surely_apart(study: Study, first: str, second: str, model: str) -> bool:
    """Whether the first sweep moves a model's maps more than the second, by both intervals."""
    ends = (study.difference((first, model), (second, model), metric) for metric in _METRICS)
    return all(difference["ci_low"] > 0 for difference in ends)


def _other_noise(study: Study, rows: pd.DataFrame) -> list[str]:
    """Sentences on seeds of the methods whose noise the lead does not mention."""
    method, hyperparameter = study.about(rows["sweep"].iloc[0])
    methods = [m for m in dict.fromkeys(rows["method"]) if m != method or hyperparameter == "seed"]
    return [*filter(None, (_seed_noise(study, rows, method) for method in methods))]


def _seed_noise(study: Study, rows: pd.DataFrame, method: str) -> str:
    """How far another seed alone moves a method's maps, beside the hyperparameter that moves most.

    '' where no seed sweep with that hyperparameter's other settings moves them half as far on the
    same model, or where the hyperparameter does not move them much and is not the first of all.
    """
    group = rows[rows["method"] == method]
    others = group[group["hyperparameter"] != "seed"].sort_values("mean", kind="stable")
    if others.empty:
        return ""
    worst = others.iloc[0]
    hyperparameter, moved = worst["hyperparameter"], 1 - worst["mean"]
    if worst["degree"] < _MUCH and worst["sweep"] != rows["sweep"].iloc[0]:
        return ""
    # Where another setting differs too, the noise is that of other maps, or of none.
    held = {name: _reference_settings(study, name) for name in group["sweep"]}
    others_held = held[worst["sweep"]] | {hyperparameter: None}
    noises = [
        f"{decimal(1 - row['mean'])} at `{hyperparameter}` {settings[hyperparameter]} "
        f"({row['sweep']})"
        for row in records(group[group["hyperparameter"] == "seed"])
        if row["model"] == worst["model"] and 1 - row["mean"] >= moved / 2 > 0
        if hyperparameter in (settings := held[row["sweep"]])
        and settings | {hyperparameter: None} == others_held
    ]
    if not noises:
        return ""
    return words.sentence("seed-noise", worst=worst, noises=and_list(noises), moved=moved)


def _reference_settings(study: Study, sweep: str) -> dict[str, Any]:
    """Hyperparameters at a sweep's reference, or at its first setting; without the seed."""
    rows = study.shared_tasks(sweep)
    kept = rows[rows["is_reference"]]
    settings = json.loads((kept if len(kept) else rows)["hyperparameters"].iloc[0])
    return {name: value for name, value in settings.items() if name != "seed"}


def _effects_picture(study: Study, gallery: Gallery) -> Block:
    variability = study.training_variability
    hatched = words.sentence("hatched") if len(variability) else ""
    return gallery.draw(
        "dangerous-hyperparameters",
        figures.hyperparameters_by_effect(
            study.table("sensitivity"),
            images=study.table("images"),
            look=study.look,
            retraining=variability if len(variability) else None,
        ),
        hatched=hatched,
    )


def _danger_table(study: Study, rows: pd.DataFrame) -> Table:
    """A line per sweep, on the model whose maps it moved most."""
    variability = by_key(study.training_variability, "sweep", "model")
    lines = []
    for _, group in rows.groupby("sweep", sort=False):
        first, *others = records(group.sort_values(["degree", "mean"], ascending=[False, True]))
        ends = sorted(1 - row["mean"] for row in others)
        spans = dict.fromkeys(decimal(end, 2) for end in [*ends[:1], *ends[-1:]])
        texts = {
            "others": " to ".join(spans) or "–",
            "moved": words.moved(first),
            "further": np.nanmax([first["relative"], first["rank_relative"]]),
        }
        lines.append(first | texts | {"rank_moved": 1 - first["rank_mean"]})

    def in_retrainings(row: dict[str, Any]) -> str:
        band = variability.get((row["sweep"], row["model"]), {})
        low, high = (band.get(f"difference_{end}", np.nan) for end in ("low", "high"))
        if missing(low):
            return "–"
        return "above" if low > 0 else "below" if high < 0 else "undecided"

    return words.table(
        "danger",
        lines,
        study,
        cells={
            "sweep_link": _sweep_link,
            "in_words": lambda r: Cell(DEGREES[r["degree"]][1], tone=r["degree"]),
            "first_map": lambda r: Cell(
                r["model"], anchor=_first_map(study, r["sweep"], r["model"])
            ),
            "in_retrainings": in_retrainings,
        },
        without=[] if variability else ["retraining"],
        degrees=", ".join(f"**{name}** from {least:g}" for least, name in DEGREES[1:]),
        retraining=" " + words.sentence("in-retrainings") if variability else "",
        grids=words.grids(study, rows["sweep"]),
    )


def _sweep_link(row: dict[str, Any]) -> Cell:
    return Cell(row["sweep"], anchor=sweep_anchor(row["sweep"]))


def _first_map(study: Study, sweep: str, model: str) -> str:
    """Fragment of the viewer at the image that a sweep moved most on a model."""
    rows = study.headline_rows("images", sweep=sweep).dropna(subset=["mean"])
    rows = rows[rows["model"] == model].sort_values(["mean", "image_id"], kind="stable")
    if rows.empty or study.maps(study.about(sweep)[0]) is None:
        return ""
    return viewer.fragment(model, sweep, str(rows["image_id"].iloc[0]))


def _trainings_table(study: Study) -> Table:
    """Robust less regular over several trainings, beside this one's."""
    rows = study.robust_minus_regular

    def over_trainings(row: dict[str, Any]) -> Cell:
        low, high = (sorted((row[f"ci_{end}"], row[f"rank_ci_{end}"])) for end in ("low", "high"))
        settled = low[0] > 0 or high[1] < 0
        return Cell(words.with_interval(row), tone=1 if settled else None)

    def this_training(row: dict[str, Any]) -> str:
        one, other = ((row["sweep"], row[name]) for name in ("model", "twin"))
        return words.with_interval(study.difference(one, other))

    cells = {
        "sweep_link": _sweep_link,
        "over_trainings": over_trainings,
        "this_training": this_training,
    }
    return words.table("trainings", rows, study, cells=cells, n=int(rows["n_trainings"].max()))


def _by_method(rows: pd.DataFrame) -> Iterator[str]:
    """Mean similarities of a method's sweeps, the most moving first."""
    means = rows.groupby(["method", "sweep"], sort=False)[["mean", "rank_mean"]].mean()
    for method, group in means.groupby("method", sort=False):
        if len(group) > 1:
            listed = [f"{n[1]} {' / '.join(map(decimal, m))}" for n, *m in group.itertuples()]
            yield f"{method}, mean SSIM / Spearman over models: {', '.join(listed)}."


def _by_twins(study: Study, rows: pd.DataFrame) -> Iterator[str]:
    """In how many sweeps the maps of a robust model moved less than its twin's."""
    keys = set(zip(rows["sweep"], rows["model"], strict=True))
    for pair in study.pairs:
        sweeps = [s for s in dict.fromkeys(rows["sweep"]) if {(s, model) for model in pair} <= keys]
        if not sweeps:
            continue
        differences = [
            [study.difference((sweep, pair[0]), (sweep, pair[1]), metric) for metric in _METRICS]
            for sweep in sweeps
        ]
        means, lows, highs = (
            np.array([[d[name] for d in both] for both in differences])
            for name in ("mean", "ci_low", "ci_high")
        )
        yield words.sentence(
            "twins",
            sweeps=count_of(len(sweeps), "sweep"),
            robust=pair[1],
            regular=pair[0],
            less=(means > 0).all(axis=1).sum(),
            more=(means < 0).all(axis=1).sum(),
            surely_less=(lows > 0).all(axis=1).sum(),
            surely_more=(highs < 0).all(axis=1).sum(),
            study=study,
        )
        if apart := (means.prod(axis=1) < 0).sum():
            yield f"In {apart} of these sweeps, SSIM and rank correlation disagree."


def _by_measure(study: Study, most: str) -> Iterator[str]:
    """Which sweep other measures call the most moving."""
    named = {most: [f"SSIM ({study.convention})"]}
    similarities = readings.headline_draws(study.table("sensitivity"))
    for key, label, rows in readings.by_measure(similarities):
        means = rows.groupby("sweep")["mean"].mean().dropna()
        if key != ("ssim", study.convention) and len(means):
            named.setdefault(str(means.idxmin()), []).append(label)
    if study.headline["sweep"].nunique() > 1:
        parts = [f"{sweep} by {and_list(labels)}" for sweep, labels in named.items()]
        yield f"Most moving sweep: {'; '.join(parts)}."
