"""The README says what the reports and the code say."""

import re
from dataclasses import replace

import pandas as pd
import pytest
import yaml

import steadymap
from conftest import ROOT
from steadymap.analysis.sweeps import headline
from steadymap.gate.baseline import read, retraining_table
from steadymap.gate.compare import compare
from steadymap.params.methods import METHODS
from steadymap.store.atomic import read_json
from steadymap.store.tables import read_table

README = (ROOT / "README.md").read_text()
PERFORMANCE = (ROOT / "docs" / "performance.md").read_text()
GATE = (ROOT / "docs" / "gate.md").read_text()
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()
BENCH = ROOT / "reports" / "bench"


def headline_table(study):
    """The README's table, from the study's."""
    tables = ROOT / "reports" / study / "tables"
    table = read_table(tables / "sensitivity.csv")
    rows, ranks = headline(table), headline(table, "spearman", "signed")
    ranks = ranks.set_index(["sweep", "model"])["mean"]
    models, tasks = (read_table(tables / f"{name}.csv") for name in ("models", "tasks"))
    names = models["model"].tolist()
    lines = [
        f"| sweep | varies | {' | '.join(names)} |",
        f"|---|---|{'---|' * len(names)}",
    ]
    for (sweep, method, hyperparameter), part in rows.groupby(
        ["sweep", "method", "hyperparameter"], sort=False
    ):
        found = part.set_index("model")
        cells = [
            f"{found.loc[name, 'mean']:.3f} "
            f"[{found.loc[name, 'ci_low']:.3f}, {found.loc[name, 'ci_high']:.3f}] / "
            f"{ranks[sweep, name]:.3f}"
            for name in names
        ]
        swept = list(dict.fromkeys(tasks.loc[tasks["sweep"] == sweep, "value"].astype(str)))
        values = ", ".join(swept) if len(swept) < 4 else f"{swept[0]} to {swept[-1]} ({len(swept)})"
        lines.append(
            f"| {sweep} | `{hyperparameter}` of {method}: {values} | {' | '.join(cells)} |"
        )
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
    ranks = table[table["metric"] == "spearman"].set_index(["method", "model"])["S_same"]
    n_compared = rows["n_images"] * rows["n_units"] * rows["n_draws"]
    rows = rows.assign(n_compared=n_compared, blank=rows["n_degenerate"] > 0.5 * n_compared)
    lines = [f"| method | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for method, part in rows.groupby("method", sort=False):
        found = part.set_index("model")
        cells = [
            f"{row.S_same:.3f}{' (blank)' if row.blank else ''} "
            f"[{row.same_low:.3f}, {row.same_high:.3f}] / {ranks[method, row.Index]:.3f}, "
            f"floor {row.floor:.3f}"
            for row in found.loc[names].itertuples()
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


def test_ratios_in_words_are_the_benchmark_s():
    found = read_json(BENCH / "bench.json")
    cases = found["cases"]
    large, small = cases["googlenet 224 px"], cases["googlenet 64 px"]
    resnet = cases["resnet50 224 px"]
    rows = pd.concat([pd.DataFrame(found["methods"]), pd.DataFrame(found["curves"])])
    gains = (rows["fp32_seconds"] / rows["channels_last_seconds"] - 1) * 100
    slow, fast = (gains[rows["case"] == f"{name} 224 px"] for name in ("resnet50", "googlenet"))
    similarity = found["similarity"]

    assert (
        f"are {large['sweep_fp32_ratio']:.1f} times as fast as the peers as documented at 224 px "
        f"and {small['sweep_fp32_ratio']:.1f} times at 64 px, where the aim was 3 and three "
        f"repetitions gave {min(small['sweep_fp32_runs']):.2f} to "
        f"{max(small['sweep_fp32_runs']):.2f}; they are {large['sweep_channels_last_ratio']:.1f} "
        f"and {small['sweep_channels_last_ratio']:.1f} times as fast"
    ) in PERFORMANCE
    assert (
        f"it is {resnet['sweep_channels_last_ratio']:.1f} times the peers in channels_last and "
        f"{resnet['sweep_fp32_ratio']:.1f} times those as documented"
    ) in PERFORMANCE
    assert (
        f"speeds the peers up by {slow.min():.0f} to {slow.max():.0f} %, GoogLeNet's at 224 px "
        f"by {fast.min():.0f} to {fast.max():.0f} %"
    ) in PERFORMANCE
    assert (
        f"Similarities are {similarity['ratio']:.0f} times as fast as scikit-image and scipy, "
        f"{similarity['one_thread_ratio']:.0f} on one thread"
    ) in PERFORMANCE
    own, single = (f"{similarity[key]:.2f}"[1:] for key in ("own_seconds", "one_thread_seconds"))
    assert f"take {own} s against {single} s on one thread" in PERFORMANCE


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


def sizes(study):
    """Claims of SAM that hold, those of them with a size to compare, and those that agree."""
    claims = read_table(ROOT / "reports" / study / "tables" / "claims.csv")
    held = claims[claims["direction"] == "holds"]
    compared = held["size"].isin(["inside", "outside"])
    counts = held["size"].value_counts()
    return len(held), compared.sum(), counts.get("inside", 0), counts.get("another grid", 0)


def test_sizes_are_counted_as_the_tables_count_them():
    for study, words in (
        ("reference", "its direction does: of SAM's {} that hold, "),
        ("photos", "Of the {} that hold, "),
    ):
        n_held, n_compared, n_inside, n_elsewhere = sizes(study)
        assert (
            words.format(n_held) + f"{n_compared} have a size to compare, and the paper's "
            f"lies in our interval for {n_inside} of the {n_compared}.\n"
            f"Another {n_elsewhere} were measured on other values than the paper swept"
        ) in README


def test_noise_of_lime_is_that_of_its_seeds():
    rows = headline(read_table(ROOT / "reports" / "reference" / "tables" / "sensitivity.csv"))
    moved = {name: 1 - part["mean"] for name, part in rows.groupby("sweep")}
    ranges = [
        f"by {moved[name].min():.2f} to {moved[name].max():.2f} with {n}"
        for name, n in (("LIME-seed", "50 superpixels"), ("LIME-seed-150", "150"))
    ]

    assert f"(1 - SSIM) {' and '.join(ranges)}, and LIME-N" in README


def test_cells_without_a_retraining_margin_are_counted():
    baseline = read(ROOT / "reports" / "baseline" / "embedded")
    margins = retraining_table(ROOT / "reports" / "retraining" / "embedded" / "margins.csv")
    elsewhere = replace(baseline, weights=dict.fromkeys(baseline.weights, "trained elsewhere"))
    table = compare(baseline, elsewhere, retraining=margins)
    lacking = table[table["margin"].isna()]

    assert lacking["sweep"].str.startswith("IPR").all()
    assert (
        f"inconclusive: {len(lacking)} of the embedded baseline's {len(table)}, all of them of "
        "`IPR`"
    ) in GATE


def test_retrained_sweeps_are_those_of_the_yardstick():
    folder = ROOT / "reports" / "retraining" / "embedded"
    every = read_table(ROOT / "reports" / "embedded" / "tables" / "sensitivity.csv")["sweep"]
    measured = set(read_table(folder / "margins.csv")["sweep"]) - {"default"}
    names = {name for name in every if name != "default"}
    assert names <= measured
    assert f"all {len(names)} sweeps were measured again" in PROTOCOL

    page = (folder / "README.md").read_text()
    rows = re.findall(r"^\| (\S+) \| (\w+) \| (\S+) \| \S+ ± .*\| ([\d.]+) \|$", page, re.M)
    ratios = pd.DataFrame(rows, columns=["sweep", "method", "model", "ratio"])
    ratios = ratios.set_index(["method", "sweep", "model"])["ratio"].astype(float).sort_index()
    assert len(ratios) == 2 * len(names)
    assert f"{(ratios < 1).sum()} of {len(ratios)} sweeps of a model move maps less" in PROTOCOL
    few = ratios.loc[["smoothgrad", "integrated_gradients", "sliding_patch"]]
    masks, lime = ratios["meaningful_perturbation"], ratios["lime"]
    seeds = lime.loc[["LIME-seed", "LIME-seed-150"]]
    regular, robust = lime["LIME-S"]
    for told in (
        f"{few.min():.2f} to {few.max():.2f} as far",
        f"Meaningful Perturbation {masks.min():.2f} to {masks.max():.2f}",
        f"LIME-N has {' and '.join(f'{value:.2f}' for value in lime['LIME-N'])}",
        f"seeds {seeds.min():.2f} to {seeds.max():.2f}",
        f"{regular:.2f} times (regular) and {robust:.2f} times (robust)",
    ):
        assert told in PROTOCOL
    assert f"maps {regular:.2f} (regular) and {robust:.2f} times (robust) as far as" in README
    others = ratios[ratios > 1].drop("LIME-S", level="sweep").reset_index()
    assert set(others["sweep"]) == {"LIME-seed", "LIME-seed-150"}
    assert (others["model"] == "googlenet-r").all()


def test_conclusions_are_what_the_claims_came_out_as():
    claims = read_table(ROOT / "reports" / "reference" / "tables" / "claims.csv").set_index("claim")
    values = pd.to_numeric(claims["value"], errors="coerce")
    regular = float(re.search(r"regular ([\d.]+) steps", claims.loc["13", "reason"])[1])

    assert f"by rank correlation {values['6']:.1f} times, in the paper 36" in README
    assert f"fewer steps ({values['13']:.0f} against {regular:.0f})" in README
    assert f"rise of 1.4 was {values['7']:.2f} here, undecided" in README
    same, other = re.findall(r"([\d.]+) to ([\d.]+)", claims.loc["9", "reason"])
    assert f"same image (SSIM {float(same[0]):.3f} to {float(same[1]):.3f})" in README
    assert f"other images ({float(other[0]):.3f} to {float(other[1]):.3f})" in README
    means = dict(re.findall(r"(SP-L|MP) ([\d.]+)", claims.loc["D19", "reason"]))
    assert (
        f"moved more (SSIM {float(means['MP']):.2f} against {float(means['SP-L']):.2f})" in README
    )
    for claim, verdict in (
        *(("D4", "holds"), ("11b", "holds"), ("13", "holds"), ("7", "inconclusive")),
        *(("9", "fails"), ("D8", "fails"), ("D19", "fails"), ("D19b", "holds"), ("D19c", "fails")),
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
    twin = compared[
        (compared["comparison"] == "denoising-gradient")
        & (compared["pairing"] == "same")
        & (compared["role"] == "twin")
        & (compared["metric"] == "ssim")
        & (compared["convention"] == "common")
    ]
    plain = twin.loc[twin["method"] == "gradient", "mean"].item()
    guided = twin.loc[twin["method"] == "guided_backprop", "mean"].item()
    assert f"gradient was {values['7']:.2f} here, undecided" in README
    assert f"away from it (SSIM {plain:.3f} to {guided:.3f})" in README
    assert f"rise of 1.5 for the mean of both was {values['8']:.2f} here" in README
    assert f"maps of the twin were far from the same (SSIM {values['11']:.2f})" in README
    for claim, verdict in (
        *(("D4", "holds"), ("D5", "holds"), ("D6", "holds"), ("14", "holds")),
        *(("7", "inconclusive"), ("8", "fails"), ("11", "fails")),
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


DOCS = sorted((ROOT / "docs").glob("*.md"))
ABBREVIATIONS = {
    "SAM": "Sensitivity of Attribution Methods",
    "IPR": "independent parameter randomization",
}


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")),
    ],
)
def test_the_papers_names_are_spelled_out_where_they_first_stand(name):
    text = " ".join((ROOT / name).read_text().split())
    for short, long in ABBREVIATIONS.items():
        if first := re.search(rf"\b{short}\b", text):
            assert long in text[max(0, first.start() - 300) : first.end() + 100], (name, short)


def test_papers_are_cited_with_their_addresses():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]

    assert [(one["year"], len(one["authors"])) for one in cited] == [
        (2020, 3),
        (2023, 2),
        (2018, 6),
    ]
    for text in ((ROOT / "README.md").read_text(), (ROOT / "docs" / "protocol.md").read_text()):
        assert all(one["url"] in text for one in cited)
    assert all(long in steadymap.__doc__.replace("\n", " ") for long in ABBREVIATIONS.values())
