"""What SSIM says of inverted maps: the study's script, and the numbers that pages take from it."""

import importlib.util
import re
import subprocess
import sys

import numpy as np
import pytest

from conftest import ROOT
from steadymap.metrics.similarity import normalize, ssim
from steadymap.report.study import Study as StudyFiles
from steadymap.store.tables import read_table
from synthetic_study import SWEEPS, Study, write_study

SCRIPT = ROOT / "studies" / "inversion.py"
spec = importlib.util.spec_from_file_location("inversion", SCRIPT)
inversion = importlib.util.module_from_spec(spec)
spec.loader.exec_module(inversion)


def test_negatives_are_scored_by_every_convention(tmp_path):
    reports, results = write_study(tmp_path, Study(n_images=3, sweeps=(SWEEPS[0],)))

    command = [sys.executable, SCRIPT, "--study", "toy", "--output", tmp_path / "out"]
    subprocess.run(command, cwd=tmp_path, check=True)

    table = read_table(tmp_path / "out" / "inversion.csv").set_index(
        ["method", "model", "convention"]
    )
    maps = StudyFiles(reports, results, "toy", {}).maps("smoothgrad")
    reference = inversion.reference_settings(read_table(reports / "tables" / "tasks.csv"))
    stack = normalize(np.asarray(maps.read("googlenet", reference["smoothgrad"])))
    expected = ssim(stack, -stack)
    row = table.loc["smoothgrad", "googlenet", "common"]
    assert row["negative"] == pytest.approx(float(expected.mean()), rel=1e-4)
    assert row["negative_max"] == pytest.approx(float(expected.max()), rel=1e-4)
    signed = table.xs("signed", level="convention")
    assert (signed["negative"] == -1).all()
    weighted = table.xs("mass_weighted", level="convention")
    assert (weighted["negative"] < table.xs("common", level="convention")["negative"]).all()
    assert (weighted["mild"] > 0.7).all()


def test_the_protocol_has_the_script_s_numbers():
    page = (ROOT / "docs" / "protocol.md").read_text()
    block = re.search(r"<!-- inversion: .*? -->\n(.*?)\n?<!-- /inversion -->", page, re.S)[1]
    written = (ROOT / "reports" / "inversion" / "README.md").read_text()
    table = read_table(ROOT / "reports" / "inversion" / "inversion.csv")

    assert block.strip() == written[written.index("| method") :].strip()
    assert inversion.readme(table, "embedded") == written
    # The claim of the text: one convention tells the two apart by far more than the others.
    # A mask has one sign, so that its negative is no map that the method could return.
    signed = table[table["method"] != "meaningful_perturbation"]
    gaps = (signed["mild"] - signed["negative"]).groupby(signed["convention"]).min()
    assert gaps["mass_weighted"] > 0.7 > 2 * gaps["common"]


def test_the_docstring_s_range_is_that_of_the_table():
    table = read_table(ROOT / "reports" / "inversion" / "inversion.csv")
    told = table["convention"].eq("common") & ~table["method"].isin(
        ["lime", "meaningful_perturbation"]
    )

    words = " ".join(ssim.__doc__.split())
    low, high = re.search(r"score (\.\d) to (\.\d) against their own negatives", words).groups()
    assert table.loc[told, "negative"].between(float(low) - 0.05, float(high) + 0.05).all()
