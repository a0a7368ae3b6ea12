"""Write the tables of README.md and docs/*.md from the files under `reports/`.

Usage: python studies/pages.py

A block stands between `<!-- name: ... -->` and `<!-- /name -->`; what is between them is written
anew, the rest of a page is left alone. `tests/test_pages.py` holds that this changes nothing.
"""

import argparse
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from steadymap.analysis.claims.verdict import over_trainings, verdict_counts
from steadymap.analysis.readings import beside_headline, headline_rows, relative_s
from steadymap.gate.baseline import read, retraining_table
from steadymap.gate.compare import compare
from steadymap.gate.retraining import hyperparameters
from steadymap.params.methods import METHODS
from steadymap.statistics.intervals import share_interval
from steadymap.store.atomic import atomic_file, read_json
from steadymap.store.tables import read_table

ROOT = Path(__file__).resolve().parents[1]
REPORTS = ROOT / "reports"
DRAWS = "Sweeps over a count of samples have independent draws, as another user gets them."
VERDICTS = ("holds", "fails", "inconclusive", "not measurable here")


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(cells)} |" for cells in (header, *rows)]
    return "\n".join([lines[0], f"|{'---|' * len(header)}", *lines[1:]])


def study_table(study: str, name: str) -> pd.DataFrame:
    """A result table of a study."""
    return read_table(REPORTS / study / "tables" / f"{name}.csv")


def headline_table(study: str) -> str:
    """SSIM with its interval and Spearman correlation of each sweep and model; accuracies."""
    scores = study_table(study, "sensitivity")
    nested = beside_headline(scores)
    rows, ranks = (
        pd.concat([headline_rows(frame, *measure) for frame in (scores, nested)])
        for measure in (("ssim", "common"), ("spearman", "signed"))
    )
    models, tasks = study_table(study, "models"), study_table(study, "tasks")
    names = models["model"].tolist()
    ranks = ranks.set_index(["sweep", "draws", "model"])["mean"]
    lines = []
    keys = ["sweep", "method", "hyperparameter", "draws"]
    for (sweep, method, hyperparameter, draws), group in rows.groupby(keys, sort=False):
        by_model = group.set_index("model")
        swept = list(dict.fromkeys(tasks.loc[tasks["sweep"] == sweep, "value"].astype(str)))
        values = ", ".join(swept) if len(swept) < 4 else f"{swept[0]} to {swept[-1]} ({len(swept)})"
        cells = [
            "{mean:.3f} [{ci_low:.3f}, {ci_high:.3f}] / ".format(**by_model.loc[name])
            + f"{ranks[sweep, draws, name]:.3f}"
            for name in names
        ]
        twice = draws == "nested" and sweep in set(nested["sweep"])
        lines.append(
            [f"{sweep}{', nested' * twice}", f"`{hyperparameter}` of {method}: {values}", *cells]
        )
    accuracies = ", ".join(
        f"{row.model} {accuracy(row.clean_accuracy, row.n_val)} clean and "
        f"{accuracy(row.robust_accuracy, row.n_attacked)} under attack"
        for row in models.itertuples()
    )
    note = (
        f"{rows['n_images'].max()} images. {DRAWS} Accuracy (n): {accuracies}; "
        f"the attack is PGD, {models['attack'].iloc[0]}."
    )
    return table(["sweep", "varies", *names], lines) + f"\n\n{note}"


def claim_table(study: str) -> str:
    """How a study's claims came out, counted by fact, and those decided."""
    counts, decided = [], []
    for name, paper in (("claims", "SAM"), ("ipr_claims", "extended IPR")):
        if not (REPORTS / study / "tables" / f"{name}.csv").is_file():
            continue
        claims = study_table(study, name)
        retrained = REPORTS / "retraining" / study / "training_claims.csv"
        if name == "claims" and retrained.is_file():
            claims = over_trainings(claims, read_table(retrained), 0.95)
        verdicts = verdict_counts(claims)
        counts.append([paper, *(str(verdicts[verdict]) for verdict in VERDICTS)])
        # Those of tables from before there were checks and groups are claims.
        claims = pd.DataFrame({"kind": "claim", "after_holm": ""}, claims.index).assign(**claims)
        shown = claims["direction"].isin(["holds", "fails"]) & (claims["kind"] != "check")
        for row in claims[shown].fillna({"after_holm": ""}).itertuples():
            value = pd.to_numeric(row.value, errors="coerce")
            if pd.notna(value):
                interval = f"{value:.3g} [{row.ci_low:.3g}, {row.ci_high:.3g}]"
                paper_value = "" if pd.isna(row.paper_value) else f"{row.paper_value:g}"
                verdicts_here = (row.direction, str(row.after_holm))
                decided.append(
                    [str(row.claim), row.statement, interval, paper_value, *verdicts_here]
                )
    header = ["claim", "statement", "here, with its interval", "paper", "verdict", "after Holm"]
    return f"{table(['facts of', *VERDICTS], counts)}\n\nThose decided:\n\n{table(header, decided)}"


def parameter_table(study: str) -> str:
    """Sensitivity to the model's parameters of each method and model."""
    scores = study_table(study, "ipr")
    rows = scores[(scores["metric"] == "ssim") & (scores["convention"] == "common")]
    names = list(dict.fromkeys(rows["model"]))
    ranks = scores[scores["metric"] == "spearman"].set_index(["method", "model"])["S_same"]
    rows = rows.assign(S_rel=relative_s(rows))
    n_compared = rows["n_images"] * rows["n_units"] * rows["n_draws"]
    rows = rows.assign(n_compared=n_compared, blank=rows["n_degenerate"] > 0.5 * n_compared)
    lines = []
    for method, group in rows.groupby("method", sort=False):
        cells = [
            f"{row.S_same:.3f}{' (blank)' if row.blank else ''} "
            f"[{row.same_low:.3f}, {row.same_high:.3f}] / {ranks[method, row.Index]:.3f} / "
            f"{row.S_rel:.2f}{interval_of(row, 'rel')}"
            for row in group.set_index("model").loc[names].itertuples()
        ]
        first = group.iloc[0]
        lines.append([f"`{method}`", f"{first['n_images']} x {first['n_draws']}", *cells])
    blank = ", ".join(
        f"`{row.method}` on {row.model} {row.n_degenerate} of {row.n_compared}"
        for row in rows[rows["blank"]].itertuples()
    )
    note = f"\n\n(blank): most compared pairs have a constant map ({blank})." if blank else ""
    return table(["method", "images x draws", *names], lines) + note


def accuracy(share: float, n: int) -> str:
    """Share of n images with its interval."""
    low, high = share_interval(share, n)
    return f"{share:.1%} [{100 * low:.1f}, {100 * high:.1f}] ({n})"


def interval_of(row: Any, prefix: str, digits: str = ".2f") -> str:
    """Interval in brackets; '' in tables of before it was measured."""
    low, high = (getattr(row, f"{prefix}_{end}", None) for end in ("low", "high"))
    return "" if low is None or pd.isna(low) else f" [{low:{digits}}, {high:{digits}}]"


def spread(values: pd.Series) -> str:
    """Lowest to highest value."""
    return f"{values.min():.2f} to {values.max():.2f}"


def results_table(study: str = "embedded") -> str:
    """Per method: the hyperparameter that moves maps most, and what randomized weights do."""
    scores = study_table(study, "sensitivity")
    keys = ["method", "hyperparameter", "sweep", "model"]
    moved, ranks = (
        1 - headline_rows(scores, *measure).set_index(keys)["mean"].sort_index()
        for measure in (("ssim", "common"), ("spearman", "signed"))
    )
    randomized = study_table(study, "ipr")
    ssim = (randomized["metric"] == "ssim") & (randomized["convention"] == "common")
    ranked = randomized["metric"] == "spearman"
    by_ssim, by_rank = (
        randomized[rows].groupby("method", sort=False)["S_same"] for rows in (ssim, ranked)
    )
    n_draws = randomized[ssim].groupby("method")[["n_images", "n_draws"]].min()
    lines = []
    for method, values in by_ssim:
        randomized_words = f"{spread(values)} / {spread(by_rank.get_group(method))}"
        cells = ["none swept", ""]
        if method in moved.index.get_level_values("method"):
            means = moved[method].groupby(["hyperparameter", "sweep"]).mean()
            hyperparameter, sweep = means.idxmax()
            key = (method, hyperparameter, sweep)
            cells = [
                f"`{hyperparameter}` ({sweep})",
                f"{spread(moved.loc[key])} / {spread(ranks.loc[key])}",
            ]
        n = " x ".join(map(str, n_draws.loc[method]))
        lines.append([f"`{method}`", *cells, randomized_words, n])
    header = ["method", "hyperparameter that moves its maps most", "how far", "randomized weights"]
    header.append("images x draws of weights")
    models = study_table(study, "models")["model"]
    note = (
        f"Distances are 1 - SSIM / 1 - Spearman, lowest to highest of {len(models)} models "
        f"({', '.join(models)}): 0 is the same map. {DRAWS} "
        "Where one draw of the weights was made, intervals in the report cover images alone."
    )
    return f"{table(header, lines)}\n\n{note}"


def retraining_ratios() -> str:
    """How far each sweep moves maps, in units of what training again does, and whether further."""
    folder = REPORTS / "retraining" / "embedded"
    tables = {name: read_table(folder / f"{name}.csv") for name in ("yardstick", "margins")}
    rows = hyperparameters(tables)
    judged = "verdict" in rows
    rows["cell"] = rows["ratio"].map("{:.2f}".format)
    if judged:
        difference = rows["difference"].map("{:+.3f}".format)
        ends = [interval_of(row, "difference", ".3f") for row in rows.itertuples()]
        rows["cell"] += ", " + difference + ends + ", " + rows["verdict"]
    keys = ["sweep", "method"]
    wide = rows.pivot_table(index=keys, columns="model", values="cell", aggfunc="first", sort=False)
    lines = [[sweep, f"`{method}`", *row] for (sweep, method), row in wide.T.items()]
    note = ""
    if judged:
        counts = rows["verdict"].value_counts()
        listed = ", ".join(f"{n} {verdict}" for verdict, n in counts.items())
        note = f"\n\nOf {len(rows)} sweeps and models: {listed}."
    return table(["sweep", "method", *wide.columns], lines) + note


def repro_table() -> str:
    """Minutes and disk of `make repro` in a fresh clone."""
    path = REPORTS / "repro" / "repro.json"
    if not path.is_file():
        return ""
    run = read_json(path)
    rows = [
        ["set-up of `.venv`", f"{run['setup_minutes']:.0f}", f"{run['venv_gb']:.1f}"],
        ["the study", f"{run['study_minutes']:.0f}", f"{run['study_gb']:.1f}"],
    ]
    note = f"Measured on {run['cores']} cores, {run['processor']}."
    return table(["`make repro`", "minutes", "GB on disk"], rows) + f"\n\n{note}"


def bench_table() -> str:
    """Ratios to other libraries, from the benchmark's own page."""
    return (REPORTS / "bench" / "bench.md").read_text().split("\n\n")[0]


def similarity_table() -> str:
    """Similarity scores beside scikit-image and scipy."""
    timed = read_json(REPORTS / "bench" / "bench.json")["similarity"]
    rows = [
        ["all cores", f"{timed['own_seconds']:.2f}", f"{timed['ratio']:.1f} x"],
        ["one thread", f"{timed['one_thread_seconds']:.2f}", f"{timed['one_thread_ratio']:.1f} x"],
    ]
    return table(["similarities on", "seconds", "scikit-image and scipy take"], rows)


def covered_table() -> str:
    """How much computing covered images in part saves, per patch size."""
    rows = pd.DataFrame(read_json(REPORTS / "bench" / "bench.json")["covered"])
    tables = []
    for case, group in rows.groupby("case", sort=False):
        header = [str(case), *(f"{size} px" for size in group["patch_size"])]
        tables.append(table(header, [["ratio", *(f"{ratio:.2f}" for ratio in group["ratio"])]]))
    return "\n\n".join(tables)


def growth_table() -> str:
    """Time and memory against each axis."""
    lines = []
    for axis, group in read_table(REPORTS / "bench" / "growth.csv").groupby("axis", sort=False):
        columns = (("value", "g"), ("seconds", ".1f"), ("megabytes", ",.0f"))
        lines.append(
            [str(axis), *(", ".join(f"{float(v):{how}}" for v in group[c]) for c, how in columns)]
        )
    return table(["against", "values", "seconds", "MB"], lines)


def kills_table() -> str:
    """What killing stages cost."""
    outcome = read_json(REPORTS / "kills" / "outcome.json")
    stored = [kill["stored_by_the_stage"] for kill in outcome["kills"]]
    rows = [
        ["kills", str(len(outcome["kills"]))],
        ["kinds of stage hit", str(len(outcome["stages_hit"]))],
        ["results that killed stages had stored", str(sum(stored))],
        ["of these computed again", str(outcome["entries_rewritten"])],
        ["tables that differ at the end", str(outcome["tables_different"])],
    ]
    return table(["`reports/kills`", ""], rows)


def margins_table() -> str:
    """Cells of the embedded baseline that have no retraining margin."""
    baseline = read(REPORTS / "baseline" / "embedded")
    margins = retraining_table(REPORTS / "retraining" / "embedded" / "margins.csv")
    other = replace(baseline, weights=dict.fromkeys(baseline.weights, "trained elsewhere"))
    cells = compare(baseline, other, retraining=margins)
    lacking = cells["margin"].isna()
    kind = (
        cells["sweep"].str.startswith("IPR").map({True: "randomized parameters", False: "sweeps"})
    )
    counts = pd.crosstab(kind, lacking).reindex(columns=[False, True], fill_value=0)
    rows = [[str(name), str(row[False]), str(row[True])] for name, row in counts.iterrows()]
    return table(["cells of the embedded baseline", "with a retraining margin", "without"], rows)


def inversion_table() -> str:
    """Similarity of maps to their own negatives."""
    return (REPORTS / "inversion" / "README.md").read_text().split("\n\n", 2)[2].rstrip("\n")


def methods_table() -> str:
    """Every method's hyperparameters with their defaults."""
    rows = [
        [
            f"`{method.name}`",
            ", ".join(f"{name} ({h.default})" for name, h in method.hyperparameters.items()),
        ]
        for method in METHODS.values()
    ]
    return table(["method", "hyperparameters (default)"], rows)


BLOCKS: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"repro": repro_table, "results": results_table},
    "docs/results.md": {
        "embedded": lambda: headline_table("embedded"),
        "claims": lambda: claim_table("embedded"),
        "parameters": lambda: parameter_table("embedded"),
        "retraining": retraining_ratios,
        "reference": lambda: headline_table("reference"),
        "photos": lambda: headline_table("photos"),
    },
    "docs/methods.md": {"defaults": methods_table},
    "docs/performance.md": {
        "repro": repro_table,
        "bench": bench_table,
        "similarity": similarity_table,
        "covered": covered_table,
        "growth": growth_table,
    },
    "docs/gate.md": {"margins": margins_table},
    "docs/scale.md": {"kills": kills_table},
    "docs/protocol.md": {"inversion": inversion_table},
}


def rendered(page: str) -> str:
    """Text of a page with its blocks written anew.

    Raises
    ------
    ValueError
        Where the page lacks the marks of a block, or has marks of another.
    """
    text = (ROOT / page).read_text("utf-8")
    marked = set(re.findall(r"<!-- /([\w-]+) -->", text))
    if wrong := marked ^ BLOCKS[page].keys():
        raise ValueError(f"{page}: block {sorted(wrong)[0]!r} stands in BLOCKS or the page alone")
    for name, written in BLOCKS[page].items():
        pattern = rf"(<!-- {name}: [^>]*-->\n).*?(<!-- /{name} -->)"
        block = written().replace("\\", r"\\")
        text = re.sub(pattern, rf"\1{block}\n\2", text, flags=re.S)
    return text


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    for page in BLOCKS:
        text = rendered(page)
        if text != (ROOT / page).read_text("utf-8"):
            with atomic_file(ROOT / page) as temporary:
                temporary.write_text(text, "utf-8")
            print(f"{page} written")


if __name__ == "__main__":
    main()
