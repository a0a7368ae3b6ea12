"""The README says what the reports and the code say."""

import re

import pytest

from conftest import ROOT
from steadymap.sensitivity import headline
from steadymap.store import read_table
from steadymap.vocabulary import METHODS

README = (ROOT / "README.md").read_text()


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


@pytest.mark.parametrize("study", ["embedded", "photos"])
def test_headline_numbers_are_the_tables(study):
    written = re.search(rf"<!-- {study}: .*? -->\n(.*?)\n<!-- /{study} -->", README, re.S)[1]

    assert written == headline_table(study)


def test_methods_are_those_there_are():
    assert method_rows() in README


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([^):#]+)\)", README))))
def test_links_lead_somewhere(path):
    assert (ROOT / path).exists()


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()

    for target in set(re.findall(r"`?make ([a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.M), target
