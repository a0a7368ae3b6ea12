"""The README says what the reports and the code say."""

import re

import pandas as pd
import pytest

from conftest import ROOT
from steadymap.sensitivity import headline
from steadymap.store import read_json, read_table
from steadymap.vocabulary import METHODS

README = (ROOT / "README.md").read_text()
PERFORMANCE = (ROOT / "docs" / "performance.md").read_text()
BENCH = ROOT / "reports" / "bench"


def headline_table(study):
    """The README's table, from the study's."""
    tables = ROOT / "reports" / study / "tables"
    rows = headline(read_table(tables / "sensitivity.csv"))
    models = read_table(tables / "models.csv")
    names = models["model"].tolist()
    lines = [
        f"| sweep | varies | {' | '.join(names)} |",
        f"|---|---|{'---|' * len(names)}",
    ]
    for (sweep, method, knob), part in rows.groupby(
        ["sweep", "method", "hyperparameter"], sort=False
    ):
        found = part.set_index("model")
        cells = [
            f"{found.loc[name, 'mean']:.3f} "
            f"[{found.loc[name, 'ci_low']:.3f}, {found.loc[name, 'ci_high']:.3f}]"
            for name in names
        ]
        lines.append(f"| {sweep} | `{knob}` of {method} | {' | '.join(cells)} |")
    accuracies = ", ".join(
        f"{row.model} {row.clean_accuracy:.1%} clean ({row.n_val}) and {row.robust_accuracy:.1%} "
        f"under attack ({row.n_attacked})"
        for row in models.itertuples()
    )
    attack = models["attack"].iloc[0]
    n_images = rows["n_images"].max()
    lines += ["", f"{n_images} images. Accuracy (n): {accuracies}; the attack is PGD, {attack}."]
    return "\n".join(lines)


def claim_counts(study):
    """A line on how a study's claims came out."""
    tables = ROOT / "reports" / study / "tables"
    lines = []
    for name, paper in (("claims", "SAM"), ("ipr_claims", "extended IPR")):
        path = tables / f"{name}.csv"
        if not path.is_file():
            continue
        counts = read_table(path)["direction"].value_counts()
        listed = ", ".join(
            f"{verdict} {counts.get(verdict, 0)}"
            for verdict in ("holds", "fails", "inconclusive", "not measurable here")
        )
        lines.append(f"Claims of {paper}, {counts.sum()} rows: {listed}.")
    return "\n".join(lines)


def parameter_table(study):
    """The README's table of sensitivity to parameters, from the study's."""
    table = read_table(ROOT / "reports" / study / "tables" / "ipr.csv")
    rows = table[(table["metric"] == "ssim") & (table["convention"] == "common")]
    names = list(dict.fromkeys(rows["model"]))
    n_compared = rows["n_images"] * rows["n_units"] * rows["n_draws"]
    rows = rows.assign(n_compared=n_compared, blank=rows["n_degenerate"] > 0.5 * n_compared)
    lines = [f"| method | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for method, part in rows.groupby("method", sort=False):
        found = part.set_index("model")
        cells = [
            f"{row.S_same:.3f}{' (blank)' if row.blank else ''} "
            f"[{row.same_low:.3f}, {row.same_high:.3f}], floor {row.floor:.3f}"
            for row in (found.loc[name] for name in names)
        ]
        lines.append(f"| `{method}` | {' | '.join(cells)} |")
    counts = ", ".join(
        f"`{row.method}` on {row.model} {row.n_degenerate} of {row.n_compared}"
        for row in rows[rows["blank"]].itertuples()
    )
    if counts:
        lines += [
            "",
            f"(blank): over half of the compared pairs have a degenerate map, as a blank one is "
            f"({counts}); S is there what an empty map scores.",
        ]
    return "\n".join(lines)


def covered_table():
    """How much computing covered images in part saves, per patch size."""
    rows = pd.DataFrame(read_json(BENCH / "bench.json")["covered"])
    lines = []
    for case, part in rows.groupby("case", sort=False):
        sizes = " | ".join(f"{size} px" for size in part["patch_size"])
        lines += ["", f"| {case} | {sizes} |", f"|---|{'---|' * len(part)}"]
        lines.append(f"| ratio | {' | '.join(f'{ratio:.2f}' for ratio in part['ratio'])} |")
    return "\n".join(lines[1:])


def growth_table():
    """Time and memory against each axis."""
    rows = read_table(BENCH / "growth.csv")
    lines = ["| against | values | seconds | MB |", "|---|---|---|---|"]
    for axis, part in rows.groupby("axis", sort=False):
        cells = (
            ", ".join(f"{float(value):{how}}" for value in part[column])
            for column, how in (("value", "g"), ("seconds", ".1f"), ("megabytes", ",.0f"))
        )
        lines.append(f"| {axis} | {' | '.join(cells)} |")
    return "\n".join(lines)


def block(name, text=README):
    """What stands between two marks of a page."""
    return re.search(rf"<!-- {name}: .*? -->\n(.*?)\n<!-- /{name} -->", text, re.S)[1]


def method_rows():
    """Rows of the README's table of methods."""
    return "\n".join(
        f"| `{method.name}` | "
        + ", ".join(
            f"{name} ({hyperparameter.default})"
            for name, hyperparameter in method.hyperparameters.items()
        )
        + " |"
        for method in METHODS.values()
    )


def test_the_benchmark_is_the_one_on_record():
    assert block("bench") == (BENCH / "bench.md").read_text().split("\n\n")[0]
    assert block("covered", PERFORMANCE) == covered_table()
    assert block("growth", PERFORMANCE) == growth_table()


def test_kills_are_those_of_the_outcome():
    found = read_json(ROOT / "reports" / "kills" / "outcome.json")
    stored = [kill["stored_by_the_stage"] for kill in found["kills"] if kill["stored_by_the_stage"]]

    assert (
        f"Killed {len(found['kills'])} times in {len(found['stages_hit'])} kinds of stage, the "
        f"tiny study ended in the same tables; {len(stored)} of the killed stages had stored "
        f"{sum(stored)} results, none of which was computed again"
    ) in README
    assert found["entries_rewritten"] == found["tables_different"] == 0
    assert found["tasks_counted_by_finished_stages"] < found["tasks"]


def test_the_slurm_recipe_is_one():
    """The README's commands and those of docs/scale.md."""
    recipes = [
        re.search(r"#SBATCH.*?make repro[^\n]*", text, re.S)[0]
        for text in (README, (ROOT / "docs" / "scale.md").read_text())
    ]

    assert len({" ".join(recipe.split()) for recipe in recipes}) == 1


@pytest.mark.parametrize("study", ["reference", "photos"])
def test_headline_numbers_are_the_tables(study):
    assert block(study) == headline_table(study)


def test_claims_are_counted_as_the_tables_count_them():
    assert block("claims") == claim_counts("reference")
    assert block("photo-claims") == claim_counts("photos")


def test_conclusions_are_what_the_claims_came_out_as():
    claims = read_table(ROOT / "reports" / "reference" / "tables" / "claims.csv").set_index("claim")
    values = pd.to_numeric(claims["value"], errors="coerce")
    regular = float(re.search(r"regular ([\d.]+) steps", claims.loc["13", "reason"])[1])

    assert f"by rank correlation {values['6']:.1f} times, in the paper 36" in README
    assert f"fewer steps ({values['13']:.0f} against {regular:.0f})" in README
    assert f"rise of 1.4 was {values['7']:.2f} here, undecided" in README
    for claim, verdict in (
        *(("D4", "holds"), ("11b", "holds"), ("13", "holds"), ("7", "inconclusive")),
        *(("9", "fails"), ("D8", "fails"), ("D19c", "fails")),
    ):
        assert claims.loc[claim, "direction"] == verdict, claim


def test_conclusions_from_photographs_are_what_was_measured():
    tables = ROOT / "reports" / "photos" / "tables"
    claims = read_table(tables / "claims.csv").set_index("claim")
    values = pd.to_numeric(claims["value"], errors="coerce")
    compared = read_table(tables / "comparisons.csv")
    noise = compared[
        (compared["comparison"] == "gradient-noise") & (compared["value"].astype(str) == "0.01")
    ]
    means = noise.set_index(["metric", "convention", "model"])["mean"]
    ssim, spearman = means["ssim", "common"], means["spearman", "signed"]

    assert (
        f"SSIM {ssim['googlenet-r']:.2f} against {ssim['googlenet']:.2f} and "
        f"Spearman {spearman['googlenet-r']:.2f} against {spearman['googlenet']:.2f}; "
        f"by rank correlation {values['6']:.1f} times at 0.1)"
    ) in README
    assert f"over its seeds ({values['14']:.2f} times, in the paper 1.22)" in README
    assert f"rise of 1.5 was {values['8']:.2f} here" in README
    assert f"on the twin (SSIM {values['11']:.2f})" in README
    for claim, verdict in (
        *(("D4", "holds"), ("D5", "holds"), ("D6", "holds"), ("14", "holds")),
        *(("8", "fails"), ("D3", "fails"), ("11", "fails")),
    ):
        assert claims.loc[claim, "direction"] == verdict, claim


def test_sensitivity_to_parameters_is_the_table_s():
    assert block("parameters") == parameter_table("reference")


def test_methods_are_those_there_are():
    assert method_rows() in README


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([^):#]+)\)", README))))
def test_links_lead_somewhere(path):
    assert (ROOT / path).exists()


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()

    for target in set(re.findall(r"`?make ([a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.M), target
