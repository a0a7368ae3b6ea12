"""A study's tables from its files."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from conftest import ROOT
from steadymap.analysis import tables
from steadymap.analysis.parameters import by_image
from steadymap.engine.settings import points
from steadymap.params.checks import validate
from steadymap.store.atomic import write_json
from steadymap.store.maps import write_maps

MP = "meaningful_perturbation"


@pytest.fixture
def params(values, tmp_path, monkeypatch):
    """Params of a study below the working folder."""
    monkeypatch.chdir(tmp_path)
    return validate(values)


def write_archive(params, sweeps, image_ids=("a", "b")):
    made = list(dict.fromkeys(point.setting for point in points(MP, sweeps)))
    rng = np.random.default_rng(0)
    maps = {
        model: rng.random((len(made), len(image_ids), 16, 16)).astype(np.float32)
        for model in params.models.names
    }
    notes = [
        pd.DataFrame(
            {
                "model": model,
                "setting": index,
                "image_id": list(image_ids),
                "name": "converged_step",
                "value": [10.0 * index, np.nan],
            }
        )
        for model in params.models.names
        for index in range(len(made))
    ]
    write_maps(
        params.results / "maps" / MP,
        method=MP,
        image_ids=image_ids,
        settings=[
            {"hyperparameters": one.hyperparameters, "task_ids": dict.fromkeys(maps, "x")}
            for one in made
        ],
        maps={model: iter(stack) for model, stack in maps.items()},
        diagnostics=notes,
    )
    return made


def test_convergence_is_that_of_the_longest_run(params):
    sweeps = params.sweeps[MP]
    made = write_archive(params, sweeps)
    longest = max(
        (one for one in made if one.hyperparameters["init"] == "circular"),
        key=lambda one: one.hyperparameters["n_iterations"],
    )

    found = tables.convergence(params)

    assert set(found["n_iterations"]) == {90}
    assert found["converged_step"].tolist()[0] == 10.0 * made.index(longest)
    assert len(found) == 4
    assert found["converged_step"].isna().sum() == 2


def test_scatter_has_a_row_per_model_radius_and_image(params):
    write_archive(params, params.sweeps[MP])

    found = tables.scatter(params)

    assert len(found) == 2 * 3 * 2
    assert set(found["value"]) == {"1.5", "3", "8.5"}
    assert (found["scatter"] > 0).all()


def test_studies_without_the_method_have_empty_tables(values, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values["methods"].remove(MP)
    del values["sweeps"][MP]
    params = validate(values)

    assert tables.convergence(params).empty
    assert tables.scatter(params).empty


def test_parameter_sensitivity_per_image_is_a_mean_over_units_and_draws():
    keys = {"model": "net", "metric": "ssim", "convention": "common", "randomizer": "init"}
    keys |= {
        "preset": "paper",
        "order": "independent",
        "degenerate": False,
        "inverted": False,
        "image_id": "a",
    }
    rows = [
        keys | {"method": method, "unit": unit, "unit_index": index, "draw": draw, "kind": kind}
        | {"score": score}
        for method, kind, unit, index, draw, score in (
            ("gradient", "same", "one", 0, 0, 0.9),
            ("gradient", "same", "one", 0, 1, 0.7),
            ("gradient", "same", "two", 1, 0, 0.5),
            ("gradient", "same", "two", 1, 1, np.nan),
            ("smoothgrad", "same", "one", 0, 0, 0.8),
            ("smoothgrad", "fresh", "one", 0, 0, 0.4),
            ("smoothgrad", "floor", "", -1, 0, 0.75),
        )
    ]  # fmt: skip
    scores = pd.DataFrame(rows)
    wang = scores.assign(convention="wang", score=0.0)

    found = by_image(pd.concat([scores, wang]), ["smoothgrad"])

    assert found["convention"].tolist() == ["common", "common"]
    found = found.set_index("method")
    assert found.loc["gradient", "S_same"] == pytest.approx((0.1 + 0.3 + 0.5) / 3)
    assert np.isnan(found.loc["gradient", "excess"])
    assert found.loc["smoothgrad", "S_same"] == pytest.approx(0.2)
    assert found.loc["smoothgrad", "excess"] == pytest.approx(0.6 - 0.25)


def test_a_mean_that_moved_stands_in_dvc_metrics_diff_with_its_change(tmp_path):
    def git(*arguments):
        identity = ("-c", "user.name=nobody", "-c", "user.email=nobody@localhost")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)

    def write(mean):
        row = {"method": "smoothgrad", "sweep": "SG-N", "hyperparameter": "n_samples"}
        row |= {"model": "net", "metric": "ssim", "convention": "common", "draws": "nested"}
        row |= {
            "mean": mean,
            "std_rms": 0.1,
            "std_mean": 0.1,
            "ci_low": 0.0,
            "ci_high": 1.0,
            "n_images": 16,
        }
        models = pd.DataFrame([{"model": "net", "clean_accuracy": 1.0, "robust_accuracy": 0.5}])
        numbers = tables.metrics(pd.DataFrame([row]), models, alpha=0.25)
        write_json(numbers, tmp_path / "all_metrics.json")

    git("init", "-q")
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "dvc.yaml").write_text("metrics: [metrics]\n")
    write(0.8)
    git("add", "-A")
    git("commit", "-qm", "start")
    write(0.75)

    told = subprocess.run(
        [sys.executable, "-m", "dvc", "metrics", "diff", "--json", "--targets", "all_metrics.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )

    (changed,) = json.loads(told.stdout)["all_metrics.json"].items()
    assert changed[0] == "ssim.SG-N.net.mean"
    assert changed[1]["diff"] == pytest.approx(-0.05)


def committed(study):
    return json.loads((ROOT / "reports" / study / "all_metrics.json").read_text())


@pytest.mark.parametrize("study", ["embedded", "photos", "plain", "reference"])
def test_the_headline_fits_a_terminal_and_agrees_with_all_metrics(study):
    numbers = committed(study)

    found = tables.headline_metrics(numbers)

    for model, few in found.items():
        path = ROOT / "reports" / study / "metrics" / f"{model}.json"
        assert json.loads(path.read_text()) == few
        assert len(few) <= 5
        means = [one[model]["mean"] for one in numbers["ssim"].values()]
        assert few["min_ssim"] == min(means)
        # A row per file, a column per number, four blanks between.
        assert len(f"reports/{study}/metrics/{model}.json") + sum(len(n) + 4 for n in few) <= 104


def test_plots_are_drawn_without_a_network(tmp_path):
    """DVC's own page loads what draws from elsewhere."""
    shutil.copytree(ROOT / ".dvc", tmp_path / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache"))
    shutil.copy(ROOT / ".gitignore", tmp_path)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / "curve.csv").write_text("value,ssim\n5,0.9\n10,0.8\n")
    (tmp_path / "dvc.yaml").write_text("plots:\n  - curve.csv:\n      x: value\n      y: ssim\n")

    shown = [sys.executable, "-m", "dvc", "plots", "show"]
    subprocess.run(shown, cwd=tmp_path, capture_output=True, check=True)

    page = (tmp_path / "dvc_plots" / "index.html").read_text()
    assert "function vegaEmbed" in page
    assert "vegaEmbed('#curve_csv', spec)" in page
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", page)
    status = ["git", "status", "--porcelain"]
    told = subprocess.run(status, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "dvc_plots" not in told.stdout


def test_incomplete_maps_are_counted_as_a_share_of_the_change(params):
    """Residuals of .02, .06 and .5 of the change: the median is .06, two are above .05."""
    images, method = ["a", "b", "c"], "integrated_gradients"
    values = {
        "completeness": [0.02, 0.12, 1.0],
        "function_change": [1.0, -2.0, 2.0],
        "other": [7.0, 7.0, 7.0],
    }
    notes = [
        pd.DataFrame(
            {"model": "m", "setting": 0, "image_id": images, "name": name, "value": numbers}
        )
        for name, numbers in values.items()
    ]
    write_maps(
        params.results / "maps" / method,
        method=method,
        image_ids=images,
        settings=[{"hyperparameters": {"n_steps": 5}, "task_ids": {"m": "x"}}],
        maps={"m": iter(np.zeros((1, 3, 8, 8), np.float32))},
        diagnostics=notes,
    )

    made = tables.completeness(params, [method])

    assert made.to_dict("records") == [
        {
            "method": method,
            "model": "m",
            "hyperparameters": '{"n_steps": 5}',
            "n_images": 3,
            "median": pytest.approx(0.06),
            "n_above": 2,
        }
    ]


def test_methods_without_completeness_have_no_row(params):
    write_archive(params, params.sweeps[MP])

    assert tables.completeness(params, [MP]).empty
