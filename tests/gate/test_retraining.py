"""Training-seed variability: its tables in closed form, and a study whose networks are tiny."""

import itertools
import runpy
import sys
from contextlib import chdir

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats
from skimage.metrics import structural_similarity

from conftest import ROOT
from steadymap.engine import evaluation_set, runner
from steadymap.gate import retraining
from steadymap.gate.retraining import (
    MARGIN_COLUMNS,
    ROBUST_VS_REGULAR_COLUMNS,
    TRAINING_COLUMNS,
    VARIABILITY_COLUMNS,
    cell_values,
    hyperparameters,
    margins,
    pair_mean,
    robust_vs_regular,
    training_mean,
)
from steadymap.params.checks import overlay, validate
from steadymap.params.files import read_yaml
from steadymap.statistics.resampling import crossed_interval
from steadymap.store.atomic import read_json
from steadymap.store.maps import Maps
from steadymap.store.tables import MISMATCH, read_table

CHANGES = {
    "study": "again",
    # A network of a few hundred weights; its source stands in the tests' folder.
    "training": {
        "googlenet": {"architecture": "conftest:Tiny", "epochs": 2, "batch_size": 16},
        "googlenet-r": {"init_from": "googlenet", "epochs": 1, "batch_size": 16},
    },
    "evaluation_set": {"n_images": 9},
    "methods": ["gradient", "smoothgrad", "sliding_patch"],
    "search": None,
    "comparisons": None,
    "randomization": None,
}


def params_with(**changes):
    base = overlay(
        read_yaml(ROOT / "profiles" / "embedded.yaml"), read_yaml(ROOT / "profiles" / "tiny.yaml")
    )
    left_out = dict.fromkeys(set(base["sweeps"]) - set(CHANGES["methods"]))
    base = overlay(base, {**CHANGES, "sweeps": left_out})
    return validate(overlay({**base, "search": {}}, changes))


@pytest.fixture(scope="module")
def study(tmp_path_factory, embedded):
    """A study with its results, and what two more trainings of it gave."""
    root = tmp_path_factory.mktemp("retraining")
    with chdir(root):
        params = params_with()
        embedded.write(params.results / "data")
        retraining.measure(params, embedded, cache=root / "cache")
        made = retraining.studies(params, trainings=2, sweeps=["gradient", "SG-N", "SP-L"])
        before = retraining.plan(made, root / "cache")
        tables = retraining.run(made, cache=root / "cache")
    return root, made, tables, before


@pytest.fixture
def inside(study, monkeypatch):
    """The study's folder as working directory; params of the trainings, and their tables."""
    monkeypatch.chdir(study[0])
    return study[1], study[2]


# Intervals


def test_pairs_of_trainings_are_averaged_over_pairs_and_images():
    distances = np.array([[1.0, 2], [3, 4], [5, np.nan]])

    point, _, _ = crossed_interval(pair_mean(distances, 3), 3, ["a", "b"])

    assert point == pytest.approx(3)


def test_trainings_that_differ_alone_give_student_s_interval():
    """Without spread over images the jackknife of a mean is its plain standard error."""
    offsets = np.array([0.1, 0.2, 0.4, 0.3])
    values = np.repeat(offsets[:, None], 5, axis=1)

    point, low, high = crossed_interval(training_mean(values), 4, list("abcde"))

    reach = stats.t.ppf(0.975, 3) * offsets.std(ddof=1) / 2
    assert (point, low, high) == pytest.approx((0.25, 0.25 - reach, 0.25 + reach))


def test_images_that_differ_alone_give_student_s_interval():
    offsets = np.array([0.1, 0.5, 0.2, 0.4, 0.3])
    values = np.repeat(offsets[None], 3, axis=0)

    point, low, high = crossed_interval(training_mean(values), 3, list("abcde"))

    reach = stats.t.ppf(0.975, 4) * offsets.std(ddof=1) / np.sqrt(5)
    assert (point, low, high) == pytest.approx((0.3, 0.3 - reach, 0.3 + reach))


def test_images_of_one_photograph_are_left_out_together():
    offsets = np.array([0.1, 0.1, 0.5, 0.5])
    values = np.repeat(offsets[None], 3, axis=0)

    _, low, high = crossed_interval(training_mean(values), 3, list("aabb"))

    reach = stats.t.ppf(0.975, 1) * np.array([0.1, 0.5]).std(ddof=1) / np.sqrt(2)
    assert (low, high) == pytest.approx((0.3 - reach, 0.3 + reach))


def test_both_variances_add_up():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(5, 1)) + rng.normal(size=(1, 7))

    point, low, high = crossed_interval(training_mean(values), 5, list("abcdefg"))

    by_training, by_image = values.mean(1).var(ddof=1) / 5, values.mean(0).var(ddof=1) / 7
    freedom = (by_training + by_image) ** 2 / (by_training**2 / 4 + by_image**2 / 6)
    reach = stats.t.ppf(0.975, freedom) * np.sqrt(by_training + by_image)
    assert (high - low) / 2 == pytest.approx(reach)
    assert point == pytest.approx(values.mean())


def test_intervals_of_pairs_cover_the_truth():
    """Maps' distances as those of random points: 5 trainings, 12 images, of a known mean."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        trainings, images = rng.normal(size=5), rng.normal(size=12)
        pairs = list(itertools.combinations(range(5), 2))
        distances = np.array([(trainings[a] - trainings[b]) ** 2 + images for a, b in pairs])
        # The squared difference of two standard normals has mean 2.
        _, low, high = crossed_interval(pair_mean(distances, 5), 5, [f"{i}" for i in range(12)])
        covered += low <= 2 <= high

    # Of a skewed distance between few trainings: below the nominal level, well above half.
    assert 0.8 <= covered / 200 <= 1


@pytest.mark.parametrize(("n", "clusters"), [(2, "abc"), (4, "aaa")])
def test_too_few_trainings_or_photographs_have_no_interval(n, clusters):
    point, low, high = crossed_interval(training_mean(np.ones((n, 3))), n, list(clusters))

    assert point == 1
    assert np.isnan([low, high]).all()


# Tables


def images_of(numbers, *, model="googlenet", metric="ssim", std=0.0, hyperparameter="n_samples"):
    return pd.DataFrame(
        {
            "sweep": "SG-N",
            "method": "smoothgrad",
            "hyperparameter": hyperparameter,
            "model": model,
            "image_id": [f"i{i}" for i in range(len(numbers))],
            "metric": metric,
            "convention": "common",
            "draws": "nested",
            "mean": numbers,
            "std": std,
        }
    )


def test_a_margin_is_the_spread_of_means_between_trainings():
    cells = cell_values([images_of([0.1, 0.3]), images_of([0.4, 0.4]), images_of([0.9, 0.3])])

    found = margins(cells)

    assert list(found.columns) == list(MARGIN_COLUMNS)
    row = found[found["statistic"] == "mean"].iloc[0]
    assert row["sd"] == pytest.approx(np.std([0.2, 0.4, 0.6], ddof=1))
    assert row["mean"] == pytest.approx(0.4)
    assert row["n_trainings"] == 3
    assert (row["model"], row["sweep"], row["metric"]) == ("googlenet", "SG-N", "ssim")


def test_spreads_over_settings_have_margins_of_their_own():
    cells = cell_values([images_of([0.1, 0.3], std=[0.1, 0.3]), images_of([0.1, 0.3], std=0.4)])

    found = margins(cells).set_index("statistic")["sd"]

    assert found["mean"] == pytest.approx(0)
    assert found["std"] == pytest.approx(np.std([0.2, 0.4], ddof=1))


def test_a_method_without_a_hyperparameter_has_no_spread_over_settings():
    cells = cell_values([images_of([0.1, 0.3], hyperparameter="")])

    assert set(margins(cells)["statistic"]) == {"mean"}


def test_dynamic_ranges_are_compared_by_factors():
    parts = [images_of(np.array([1.0, 10]) * factor, metric="dynamic_range") for factor in (1, 4)]

    found = margins(cell_values(parts))

    # A factor of four, whatever the unit.
    assert found["sd"].tolist() == pytest.approx([np.log(4) / np.sqrt(2)])


def test_a_score_that_is_undefined_on_an_image_is_left_out():
    cells = cell_values([images_of([0.2, np.nan]), images_of([0.4, 0.4])])

    row = margins(cells).iloc[0]

    assert row["sd"] == pytest.approx(np.std([0.2, 0.4], ddof=1))


def test_twins_are_paired_by_training_and_image():
    """Trainings and images differ much; each twin is .1 above its own model."""
    rng = np.random.default_rng(0)
    parts = []
    for _ in range(3):
        numbers = rng.random(4)
        parts.append(pd.concat([images_of(numbers), images_of(numbers + 0.1, model="googlenet-r")]))

    found = robust_vs_regular(cell_values(parts), list("abcd"), confidence=0.95)

    assert list(found.columns) == list(ROBUST_VS_REGULAR_COLUMNS)
    row = found.iloc[0]
    assert row[["difference", "low", "high"]].tolist() == pytest.approx([0.1] * 3)
    assert (row["model"], row["twin"]) == ("googlenet", "googlenet-r")
    assert (row["n_trainings"], row["n_images"]) == (3, 4)


def test_a_hyperparameter_is_told_in_units_of_retraining():
    rows = pd.DataFrame(
        {
            "model": ["a", "b"],
            "method": "smoothgrad",
            "sweep": "SG-N",
            "hyperparameter": "n_samples",
            "metric": "ssim",
            "is_reference": True,
            "mean": [0.5, 0.5],
            "low": [0.4, -0.1],
            "high": [0.6, 1.1],
        }
    )
    cells = pd.DataFrame(
        {
            "model": ["a", "a", "b", "b"],
            "sweep": "SG-N",
            "metric": "ssim",
            "statistic": "mean",
            "draws": ["nested", "independent", "nested", "independent"],
            "mean": [0.9, 0.8, 0.9, 0.8],
            "sd": 0.02,
        }
    )

    found = hyperparameters({"yardstick": rows, "margins": cells})

    assert found["hyperparameter"].tolist() == pytest.approx([0.2, 0.2])
    assert found["ratio"][0] == pytest.approx(0.4)
    # No ratio to what may be nothing.
    assert np.isnan(found["ratio"][1])


# A tiny study


def test_trainings_differ_in_their_seeds_alone(inside):
    made, tables = inside
    found = tables["trainings"]

    assert list(found.columns) == list(TRAINING_COLUMNS)
    assert found["training"].tolist() == [0, 0, 1, 1, 2, 2]
    assert found["seed"].tolist() == [0, 0, 1, 1, 2, 2]
    assert found["weights_sha256"].nunique() == 6
    for params, (_, part) in zip(made, found.groupby("training"), strict=True):
        cards = [read_json(params.results / "models" / name / "card.json") for name in part.model]
        # A twin starts from the regular model of its own training.
        assert cards[1]["init_sha256"] == cards[0]["weights_sha256"]
        assert [card["accuracies"]["clean"] for card in cards] == part["clean_accuracy"].tolist()
    recipes = [
        {name: recipe.model_dump(exclude={"seed"}) for name, recipe in params.training.items()}
        for params in made
    ]
    assert recipes[0] == recipes[1] == recipes[2]


def test_the_images_are_the_study_s_and_wrong_ones_are_kept_and_counted(inside):
    made, tables = inside
    own, _, _ = evaluation_set.read(made[0].results / "evaluation_set")

    for params in made[1:]:
        rows, targets, pixels = evaluation_set.read(params.results / "evaluation_set")
        pd.testing.assert_frame_equal(rows, own)
        assert len(pixels) == 9
        part = tables["trainings"]
        part = part[part["training"] == made.index(params)].set_index("model")
        wrong = targets.merge(rows[["image_id", "label"]], on="image_id")
        wrong = (wrong["prediction"] != wrong["label"]).groupby(wrong["model"]).sum()
        assert part["n_wrong"].to_dict() == wrong.to_dict()
    # Networks of this size get something wrong, or the test says nothing.
    assert tables["trainings"]["n_wrong"].sum() > 0
    assert (tables["trainings"]["agree"][:2] == 1).all()


def test_variability_is_the_distance_of_maps_of_two_trainings(inside):
    made, tables = inside
    found = tables["yardstick"]

    assert list(found.columns) == list(VARIABILITY_COLUMNS)
    assert list(dict.fromkeys(found["sweep_setting"])) == [
        "default",
        "SG-N n_samples=2",
        "SG-N n_samples=4",
        "SP-L patch_size=5",
        "SP-L patch_size=9",
    ]
    assert (found["n_trainings"] == 3).all()
    row = found[
        (found["model"] == "googlenet-r")
        & (found["sweep_setting"] == "SP-L patch_size=5")
        & (found["metric"] == "ssim")
    ].iloc[0]
    archives = [Maps(params.results / "maps" / "sliding_patch") for params in made]
    setting = next(one for one in archives[1].settings if one["patch_size"] == 5)
    maps = [archive.read("googlenet-r", setting).astype(float) for archive in archives]
    expected = [
        1
        - structural_similarity(
            a / abs(a).max(), b / abs(b).max(), data_range=2, win_size=5, gaussian_weights=False
        )
        for first, second in itertools.combinations(maps, 2)
        for a, b in zip(first, second, strict=True)
    ]
    assert row["mean"] == pytest.approx(np.mean(expected), abs=1e-9)
    assert row["mean"] > 0
    assert row["low"] < row["mean"] < row["high"]


def test_margins_have_the_cells_of_the_study(inside):
    made, tables = inside
    found = tables["margins"]
    means = found[found["statistic"] == "mean"]

    assert set(means["metric"]) >= {"ssim", "spearman", "insertion", "deletion", "iou"}
    assert set(means["sweep"]) == {"default", "SG-N", "SP-L"}
    assert not found.duplicated(
        ["model", "sweep", "method", "metric", "convention", "draws", "statistic"]
    ).any()
    assert (found["n_trainings"] == 3).all()
    one = means[
        (means["model"] == "googlenet") & (means["sweep"] == "SP-L") & (means["metric"] == "ssim")
    ]
    expected = []
    for params in made:
        scores = read_table(params.results / "scores" / "sliding_patch.parquet")
        scores = scores[scores["draws"] != MISMATCH]
        chosen = (scores["metric"] == "ssim") & (scores["convention"] == "common")
        chosen &= scores["draws"] != "mismatch"
        expected.append(scores[chosen & (scores["model"] == "googlenet")]["score"].mean())
    assert one["sd"].item() == pytest.approx(np.std(expected, ddof=1))


def test_a_sweep_is_held_against_training_again_by_a_paired_interval(inside):
    _, tables = inside

    rows = tables["yardstick"].query("metric == 'ssim' and hyperparameter != ''")
    found = hyperparameters(tables)

    kept = rows[rows["is_reference"]]
    assert rows.loc[~rows["is_reference"], "difference"].isna().all()
    assert (kept["difference_low"] < kept["difference"]).all()
    assert (kept["difference"] < kept["difference_high"]).all()
    gap = found["hyperparameter"] - found["retraining"]
    assert found["difference"].to_numpy() == pytest.approx(gap.to_numpy(), abs=0.02)
    ends = pd.DataFrame({"difference_low": [0.1, -0.2, -0.1], "difference_high": [0.2, -0.1, 0.1]})
    assert retraining.judged(ends).tolist() == ["above", "below", "undecided"]


def test_claims_on_twins_are_judged_over_trainings(inside):
    """Of the sweeps measured again; with the verdict of each training by itself."""
    made, tables = inside
    found = tables["training_claims"].set_index("claim")

    assert {"11b", "D5", "D12"} <= set(found.index)
    assert not {"4", "6", "D13"} & set(found.index)
    assert set(found["rests_on"]) == {"3 trainings"}
    assert found["alone"].str.split(", ").map(len).eq(3).all()
    # Its value is the ratio of the means over trainings.
    levels = []
    for training in made:
        scores = read_table(training.results / "scores" / "smoothgrad.parquet")
        scores = scores[(scores["sweep"] == "SG-N") & (scores["draws"] == "nested")]
        scores = scores[(scores["metric"] == "ssim") & (scores["convention"] == "sam")]
        levels.append(scores.groupby("model")["score"].mean())
    mean = sum(levels)
    expected = mean["googlenet-r"] / mean["googlenet"]
    assert float(found.loc["11b", "value"]) == pytest.approx(expected)


def test_comparisons_are_measured_again_with_all_sweeps_alone():
    params = params_with(comparisons={"noise": {"variances": [0.1]}})
    rows = pd.DataFrame({"image_id": ["a", "b"]})
    some = {"smoothgrad": {}}

    assert retraining.retrained(params, 1, params.sweeps, rows).comparisons.noise is not None
    assert retraining.retrained(params, 1, some, rows).comparisons.noise is None


def test_the_plan_counts_what_is_to_be_computed(study, inside):
    root, made, _, before = study

    assert "training 1: train" in before
    assert "training 2: attribute" in before
    assert "training 0" not in before
    # Everything but what the caches can't tell: accuracy finds its own.
    again = retraining.plan(made, root / "cache")
    lines = [line.split("│") for line in again.splitlines() if "training" in line]
    pending = {cells[1].strip(): int(cells[3]) for cells in lines if len(cells) > 3}
    assert pending == dict.fromkeys(pending, 0)
    assert len(pending) == 6


def test_the_script_plans_finds_what_is_done_and_writes_the_page(
    study, inside, monkeypatch, capsys
):
    """As a user calls it, a second time: nothing is trained or explained again."""
    root, _, tables, _ = study
    values = params_with().model_dump(mode="json")
    (root / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    # The script's cache is the one that is full.
    (root / ".cache").symlink_to(root / "cache")

    def refuse(*_, **__):
        raise AssertionError("nothing is left to compute")

    monkeypatch.setattr(runner, "execute", refuse)
    monkeypatch.setattr("steadymap.training.loop._fit", refuse)
    monkeypatch.syspath_prepend(ROOT / "stages")
    names = ["--trainings", "2", "--sweeps", "gradient", "SG-N", "SP-L"]
    main = runpy.run_path(str(ROOT / "stages" / "retraining.py"))["main"]

    monkeypatch.setattr(sys, "argv", ["retraining.py", *names, "--plan"])
    main()
    assert "training 2: train" in capsys.readouterr().out
    assert not (root / "reports").exists()
    monkeypatch.setattr(sys, "argv", ["retraining.py", *names])
    main()

    out = capsys.readouterr().out
    assert out.index("0 of ") < out.index(
        "retraining: 3 trainings, reports/retraining/again/README.md"
    )
    page = (root / "reports" / "retraining" / "again" / "README.md").read_text()
    assert "python stages/retraining.py --trainings 2 --sweeps gradient SG-N SP-L" in page
    for name, table in tables.items():
        again = read_table(root / "reports" / "retraining" / "again" / f"{name}.csv")
        # `value` is text in a file, for settings are.
        numbers = table.select_dtypes("number").columns.difference(["value"])
        np.testing.assert_allclose(again[numbers], table[numbers], rtol=1e-5)
        assert len(again) == len(table)


def test_the_page_is_made_of_the_tables(inside, tmp_path):
    made, tables = inside
    command = "python stages/retraining.py --trainings 2"

    retraining.write(tables, made, tmp_path / "kept", command=command)

    kept = sorted(path.name for path in (tmp_path / "kept").iterdir())
    names = ["margins", "training_claims", "trainings", "twins", "yardstick"]
    assert kept == ["README.md", *(f"{name}.csv" for name in names)]
    page = (tmp_path / "kept" / "README.md").read_text()
    assert "python stages/retraining.py --trainings 2" in page
    assert "Study `again`: its models were trained 3 times" in page
    assert "Seeds 0, 1, 2; python" in page
    for row in tables["trainings"].itertuples():
        assert row.weights_sha256[:12] in page
    for row in hyperparameters(tables).itertuples():
        assert f"| {row.sweep} | {row.method} | {row.model} | {row.hyperparameter:.3f} ±" in page
    written = read_table(tmp_path / "kept" / "margins.csv")
    assert written["sd"].tolist() == pytest.approx(tables["margins"]["sd"].tolist(), rel=1e-5)


# Refusals


def test_names_that_are_neither_method_nor_sweep_are_refused(inside):
    made, _ = inside

    with pytest.raises(ValueError, match=r"--sweeps: 'SGN' is neither .* known are gradient"):
        retraining.studies(made[0], trainings=1, sweeps=["SGN"])
    with pytest.raises(ValueError, match="--trainings: 0; train again at least once"):
        retraining.studies(made[0], trainings=0, sweeps=None)


def test_a_method_stands_for_all_its_sweeps(inside):
    params = params_with()

    found = retraining.chosen_sweeps(params, ["smoothgrad"])

    assert {method: list(made) for method, made in found.items()} == {
        "smoothgrad": ["SG-N", "SG-sigma"]
    }
    assert list(retraining.chosen_sweeps(params, None)) == params.methods


def test_finished_weights_can_not_be_trained_again(inside):
    made, _ = inside
    folder = made[0].results / "models" / "googlenet"
    params = params_with(training={"googlenet": {"weights": str(folder)}})

    with pytest.raises(ValueError, match=r"training.googlenet.weights: .* can't be trained again"):
        retraining.studies(params, trainings=1, sweeps=["SG-N"])


def test_a_study_whose_maps_are_not_those_of_its_params_is_refused(study, inside):
    root, *_ = study
    grid = {"sliding_patch": {"SP-L": {"values": [7, 9]}}}
    made = retraining.studies(params_with(sweeps=grid), trainings=1, sweeps=["SP-L"])

    with pytest.raises(ValueError, match=r"sliding_patch: no maps of .* run `dvc repro` first"):
        retraining.run(made, cache=root / "cache")


def test_a_study_that_was_never_run_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(FileNotFoundError, match=r"evaluation_set.csv: no such table"):
        retraining.studies(params_with(), trainings=1, sweeps=None)
