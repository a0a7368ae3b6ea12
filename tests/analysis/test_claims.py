import inspect
import math

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from conftest import ROOT
from steadymap.analysis.claims import ipr, sam
from steadymap.analysis.claims.sam import CLAIM_COLUMNS, claims, fluctuation, scatter
from steadymap.analysis.claims.scores import (
    PAPER_IMAGES,
    TABLE_COLUMNS,
    TABLE_METRICS,
    StudyScores,
    bars,
    no_difference_p,
    paper_grids,
    relative_spread,
    robust_gain,
    twins,
)
from steadymap.analysis.claims.verdict import (
    NOT_MEASURABLE,
    NOT_RESOLVED,
    Finding,
    Judge,
    after_holm,
    counted,
    over_trainings,
    read_claims,
    verdict_counts,
)
from steadymap.analysis.sweeps import by_image, by_setting, by_sweep
from steadymap.analysis.table_s1 import GLOBAL_COLUMNS, global_std, paper_table, table_s1
from steadymap.engine.settings import grids_of, points
from steadymap.params.checks import validate
from steadymap.params.files import profile
from steadymap.params.schema import Statistics
from steadymap.statistics.intervals import Range, range_of, t_interval
from steadymap.statistics.pairing import mismatched
from steadymap.statistics.resampling import Replicates, Resamples, interval

OPTIONS = Statistics(confidence=0.95)
PAIR = ("googlenet", "googlenet-r")
N = 24

METHODS = {
    "SG-N": ("smoothgrad", "n_samples"),
    "SG-sigma": ("smoothgrad", "sigma"),
    "SP-S": ("sliding_patch", "patch_size"),
    "SP-L": ("sliding_patch", "patch_size"),
    "LIME-seed": ("lime", "seed"),
    "LIME-seed-150": ("lime", "seed"),
    "LIME-N": ("lime", "n_samples"),
    "LIME-S": ("lime", "n_superpixels"),
    "MP-seed": ("meaningful_perturbation", "seed"),
    "MP-N": ("meaningful_perturbation", "n_iterations"),
    "MP-blur": ("meaningful_perturbation", "blur_radius"),
}
CONVENTIONS = {
    "ssim": "sam",
    "spearman": "signed",
    "hog_pearson": "cells4",
    "dynamic_range": "raw",
    "insertion": "auc_over_max",
    "deletion": "auc_over_max",
    "localization_error": "alpha0.25",
}
ACCURACY = TABLE_METRICS[1:]


def evaluation_set(n=N, photos=None):
    photos = [""] * n if photos is None else photos
    ids = [f"val-{i:05d}" for i in range(n)]
    names = {"image_id": ids, "class_name": "disc", "photo": photos}
    return pd.DataFrame(names)


def model_table(models):
    return pd.DataFrame({"model": list(models), "n_val": 800, "clean_accuracy": 0.9})


def rows_of(sweep, model, metric, cells, values=None, convention=None, draws=None):
    """Score rows of one sweep and model; `cells` is (images, settings)."""
    method, hyperparameter = METHODS[sweep]
    n, k = cells.shape
    values = [str(10 * (v + 1)) for v in range(k)] if values is None else values
    return pd.DataFrame(
        {
            "sweep": sweep,
            "method": method,
            "model": model,
            "hyperparameter": hyperparameter,
            "value": np.repeat(values, n),
            "image_id": np.tile(evaluation_set(n)["image_id"], k),
            "metric": metric,
            "convention": convention or CONVENTIONS[metric],
            "draws": draws or ("independent" if hyperparameter == "seed" else "nested"),
            "score": cells.T.ravel(),
            "degenerate": False,
            "inverted": False,
        }
    )


def whole_study(rng, models=PAIR, *, robust_shift=0.1, boxes=True, n=N):
    """All sweeps and metrics; robust models more consistent, their accuracy half as variable."""
    frames = []
    for sweep in METHODS:
        for model in models:
            robust = model.endswith("-r")
            k = {"LIME-N": 2, "LIME-S": 2}.get(sweep, 4)
            for metric in ("ssim", "spearman", "hog_pearson"):
                level = 0.6 + robust_shift * robust + 0.1 * (metric == "hog_pearson")
                cells = level + 0.02 * rng.normal(size=(n, k))
                frames.append(rows_of(sweep, model, metric, cells))
                if metric == "ssim":
                    frames.append(rows_of(sweep, model, metric, cells, convention="common"))
            for metric in ACCURACY[0 if boxes else 1 :]:
                effect = np.linspace(-0.1, 0.1, k) * ("seed" not in sweep)
                noise = 0.1 * rng.normal(size=(n, k))
                cells = 0.4 + (effect + noise) * (0.5 if robust else 1.0)
                frames.append(rows_of(sweep, model, metric, cells))
        if sweep == "SP-L":
            for model in models:
                cells = np.arange(4) + 0.1 * rng.normal(size=(n, 4))
                frames.append(rows_of(sweep, model, "dynamic_range", cells))
    return pd.concat(frames, ignore_index=True)


def compared(comparison, model, scores, *, other="", value="", method="", **more):
    """Comparison rows of one metric, one score per image."""
    frame = {
        "comparison": comparison,
        "model": model,
        "other": other,
        "role": "self",
        "method": method,
        "value": value,
        "pairing": "same",
        "image_id": evaluation_set(len(scores))["image_id"],
        "metric": "ssim",
        "convention": "sam",
        "score": scores,
        "degenerate": False,
        "inverted": False,
    }
    return pd.DataFrame(frame | more)


def denoising(rng, levels, mismatched, *, regular="googlenet", role="twin", name="gradient"):
    """De-noising rows at the given mean levels; '' is guided backprop's."""
    other = regular + "-r" if role == "twin" else "vgg16-r"
    frames = []
    for pairing, found in (("same", levels), ("mismatched", mismatched)):
        for value, level in found.items():
            for metric in ("ssim", "spearman", "hog_pearson"):
                method = "smoothgrad" if value else "guided_backprop"
                convention = CONVENTIONS[metric]
                more = {"metric": metric, "convention": convention, "pairing": pairing}
                more |= {"role": role, "method": method, "other": other, "value": value}
                scores = level * (1 + 0.01 * rng.normal(size=N))
                frames.append(compared(f"denoising-{name}", regular, scores, **more))
    return pd.concat(frames, ignore_index=True)


def one(found, claim):
    rows = found[found["claim"] == claim]
    assert len(rows) == 1
    return rows.iloc[0]


def judge(scores, claim, *, models=PAIR, options=OPTIONS, photos=None, n=N, **more):
    """Row of one claim, which the others have no part in."""
    with pytest.MonkeyPatch.context() as patch:
        alone = [listed for listed in read_claims("sam.yaml") if listed.claim == claim]
        patch.setattr(sam, "read_claims", lambda file: alone)
        found = claims(scores, evaluation_set(n, photos), model_table(models), options, **more)
    return one(found, claim)


@pytest.fixture
def rng():
    return np.random.default_rng(5)


@pytest.fixture(scope="module")
def study():
    return whole_study(np.random.default_rng(5))


RANGES = {
    "SSIM": (-1, 1),
    "std": (0, 0.5),
    "difference": (-2, 2),
    "difference of stds": (-0.5, 0.5),
    "steps": (0, math.inf),
}


def extreme_study(rng, n, models=PAIR):
    """Scores at the ends of their ranges: most images at one end, a photograph or two elsewhere."""
    scores = whole_study(rng, models, n=n)
    odd = scores["image_id"].isin([f"val-{i:05d}" for i in (0, 5)])
    similar = ~scores["metric"].isin([*ACCURACY, "dynamic_range"])
    far = rng.uniform(size=len(scores))
    near = np.where(similar, 1.0, 0.0) - 0.01 * rng.uniform(size=len(scores)) * similar
    return scores.assign(score=np.where(odd, np.where(similar, 1 - 2 * far, far), near))


@pytest.mark.parametrize("n_photos", [2, 12])
def test_no_interval_leaves_the_range_of_its_measure(rng, n_photos):
    """Every interval of the tables that are made from scores, with few photographs and many."""
    n = 12
    rows = evaluation_set(n, photos=[f"p{i % n_photos}" for i in range(n)])
    scores = extreme_study(rng, n)
    settings, images = by_setting(scores, rows, OPTIONS), by_image(scores, rows)
    sweeps = by_sweep(images, dict.fromkeys(images["sweep"], 4), OPTIONS)
    table = table_s1(scores, rows, OPTIONS)
    spreads = global_std(scores, rows, OPTIONS)
    found = claims(scores, rows, model_table(PAIR), OPTIONS)

    checked = 0

    def inside(low, high, ends):
        nonlocal checked
        if np.isfinite([low, high]).all():
            checked += 1
            assert ends[0] - 1e-9 <= low <= high <= ends[1] + 1e-9

    for row in pd.concat([settings, sweeps]).to_dict("records"):
        inside(row["ci_low"], row["ci_high"], range_of(row["metric"]))
    for row in table.to_dict("records"):
        within = range_of(row["metric"])
        inside(row["mean_low"], row["mean_high"], within)
        for prefix in ("rms", "std_mean"):
            inside(row[f"{prefix}_low"], row[f"{prefix}_high"], within.spread)
    for row in spreads.to_dict("records"):
        for prefix in ("std", "scaled"):
            inside(row[f"{prefix}_low"], row[f"{prefix}_high"], range_of(row["metric"]).spread)
    for row in found.to_dict("records"):
        inside(row["ci_low"], row["ci_high"], RANGES.get(row["unit"], (-math.inf, math.inf)))
        if (
            row["claim"] in ("1", "1b", "2", "3b", "16", "17", "18", "19")
            and row["unit"] == "ratio"
        ):
            inside(row["ci_low"], row["ci_high"], (0, math.inf))
    assert checked > 300


@pytest.mark.parametrize(("file", "recipes"), [("sam.yaml", sam.recipe), ("ipr.yaml", ipr.recipe)])
def test_every_claim_has_a_recipe_and_every_recipe_a_claim(file, recipes):
    listed = read_claims(file)

    assert {claim.function for claim in listed} == set(recipes)
    assert len({claim.claim for claim in listed}) == len(listed)
    for claim in listed:
        inspect.signature(recipes[claim.function]).bind("evidence", **claim.arguments)
        assert all((claim.name, claim.section, claim.statement, claim.recipe, claim.unit))
    assert all(inspect.getdoc(recipe) for recipe in recipes.values())


def replicates(value, *others):
    """A statistic with its values on resamples, by default the same on two."""
    images = np.array(others or (value, value))
    return Replicates(value, images)


def as_replicates(table):
    """A table whose cells are numbers in the form that recipes read."""
    cells = {column: table[column].map(replicates) for column in ("mean", "std_rms")}
    return table.assign(**cells)


def accuracy_pairs(table):
    return twins(table[table["metric"].isin(ACCURACY)])


class TestPaperTable:
    def test_recipes_give_the_papers_numbers(self):
        """Claims 1 and 2 from the printed table: .508, .314 and 2.417."""
        table = as_replicates(paper_table())

        assert len(table) == 80
        assert relative_spread(table, robust=False).point == pytest.approx(0.508, abs=5e-4)
        assert relative_spread(table, robust=True).point == pytest.approx(0.314, abs=5e-4)
        assert robust_gain(accuracy_pairs(table)).point == pytest.approx(2.417, abs=5e-4)

    @pytest.mark.parametrize(
        ("metric", "expected"),
        [("localization_error", 0.411), ("insertion", 0.113), ("deletion", 0.172)],
    )
    def test_variation_of_each_metric(self, metric, expected):
        spread = relative_spread(as_replicates(paper_table()), metric=metric)

        assert spread.point == pytest.approx(expected, abs=6e-4)

    def test_gain_of_each_metric(self):
        table = as_replicates(paper_table())
        gains = {m: robust_gain(twins(table[table["metric"] == m])).point for m in ACCURACY}

        expected = {"localization_error": 1.76, "insertion": 2.46, "deletion": 3.02}
        assert gains == pytest.approx(expected, abs=0.01)

    def test_resamples_go_through_the_recipes(self):
        """On the second resample every mean is twice as large."""
        table = paper_table()
        table = as_replicates(table).assign(mean=[replicates(m, m, 2 * m) for m in table["mean"]])

        spread = relative_spread(table, robust=False)

        assert spread.images == pytest.approx([0.50832, 0.25416], abs=1e-5)
        assert robust_gain(accuracy_pairs(table)).images == pytest.approx(
            [2.41711, 2.41711], abs=1e-5
        )

    def test_paper_values_of_claims_are_those_of_the_table(self, study):
        """Every paper value that the claims take from Table S1, recomputed from it."""
        table = paper_table()
        ssim = table[table["metric"] == "ssim"]
        cells = as_replicates(table)
        length = {row: bar.point for row, bar in bars(cells).items()}
        spread = bars(cells, "localization_error", "std_rms")
        spread = {row: bar.point for row, bar in spread.items()}
        rows = ssim.set_index(["row", "model"])["mean"]
        smoothgrad = rows["SG"]
        sp_s = table[(table["row"] == "SP-S") & (table["metric"] == "localization_error")]
        sp_s = sp_s[~sp_s["model"].str.endswith("-r")]
        kinds = {m: relative_spread(cells, metric=m).point for m in ACCURACY}
        pairs = twins(ssim)
        gains = pairs["mean_robust"] - pairs["mean"]
        both = twins(table[table["metric"].isin(ACCURACY)])
        robust = smoothgrad[["googlenet-r", "resnet-r"]].mean()
        expected = {
            "3": sp_s["std_rms"].mean(),
            "3b": (sp_s["std_rms"] / sp_s["mean"]).mean(),
            "4": length["SP-S"],
            "5": kinds["localization_error"] / max(kinds["insertion"], kinds["deletion"]),
            "11": robust,
            "11b": robust / smoothgrad[["googlenet", "resnet"]].mean(),
            "19b": spread["LIME"] / spread["MP"],
            "20b": spread["SP-L"] / spread["SP-S"],
            "D18": gains[pairs["row"] == "LIME"].min(),
            "D19": min(length["SG"], length["MP"]) - length["SP-L"],
            "D19c": length["LIME"] - length["SP-L"],
            "D20": gains.min(),
            "D21": (both["std_rms"] - both["std_rms_robust"]).min(),
            "D24": length["SP-S"],
        }
        found = claims(study, evaluation_set(), model_table(PAIR), OPTIONS)
        printed = found.set_index("claim")["paper_value"]

        assert {key: printed[key] for key in expected} == pytest.approx(expected, abs=6e-4)
        assert (gains > 0).sum() == 9
        assert (both["std_rms"] > both["std_rms_robust"]).sum() == 29


class TestTable:
    def test_layout(self, study):
        found = table_s1(study, evaluation_set(), OPTIONS)

        assert tuple(found.columns) == TABLE_COLUMNS
        assert list(dict.fromkeys(found["row"])) == ["SG", "SP-S", "SP-L", "LIME", "MP"]
        assert len(found) == 5 * 2 * 4
        first = found.iloc[0]
        assert tuple(first[["row", "sweep", "model", "metric"]]) == (
            "SG",
            "SG-N",
            *PAIR[:1],
            "ssim",
        )
        assert tuple(first[["paper_model", "paper_mean", "paper_std"]]) == (
            "GoogLeNet",
            0.6422,
            0.3197,
        )

    def test_spreads_in_closed_form(self):
        """Half of the images flip over two settings: RMS .5/sqrt 2, mean of the stds .25."""
        cells = np.zeros((N, 2))
        cells[::2, 1] = 1.0
        scores = rows_of("SG-N", "googlenet", "localization_error", cells)

        found = table_s1(scores, evaluation_set(), OPTIONS).iloc[0]

        assert found["mean"] == pytest.approx(0.25)
        assert found["std_rms"] == pytest.approx(np.sqrt(0.125))
        assert found["std_mean"] == pytest.approx(0.25)
        assert found["rms_low"] < found["std_rms"] < found["rms_high"]
        assert found["std_mean_low"] < found["std_mean"] < found["std_mean_high"]

    def test_agrees_with_the_sensitivity_table(self, study):
        rows = evaluation_set()
        sensitivity = by_sweep(by_image(study, rows), dict.fromkeys(METHODS, 4), OPTIONS)
        merged = table_s1(study, rows, OPTIONS).merge(
            sensitivity[sensitivity["convention"] != "common"],
            on=["sweep", "model", "metric"],
            suffixes=("", "_there"),
        )

        assert len(merged) == 40
        for ours, theirs in (
            ("mean", "mean_there"),
            ("std_rms", "std_rms_there"),
            ("std_mean", "std_mean_there"),
        ):
            assert merged[ours].to_numpy() == pytest.approx(merged[theirs].to_numpy())
        for ours, theirs in (("mean_low", "ci_low"), ("mean_high", "ci_high")):
            assert merged[ours].to_numpy() == pytest.approx(merged[theirs].to_numpy())

    def test_few_photographs_give_the_t_interval(self, rng):
        """With as many images on each photograph, the jackknife is the t-interval of means."""
        photos = [f"p{i % 6}" for i in range(N)]
        cells = rng.uniform(size=(N, 3))
        scores = rows_of("SG-N", "googlenet", "insertion", cells)

        found = table_s1(scores, evaluation_set(photos=photos), OPTIONS).iloc[0]

        expected = interval(cells.mean(axis=1), photos, within=range_of("insertion"))
        assert (found["mean_low"], found["mean_high"]) == pytest.approx(expected)

    def test_resnets_of_any_depth_stand_beside_resnet(self, rng):
        scores = whole_study(rng, ("resnet18", "resnet18-r", "vgg16"))

        found = table_s1(scores, evaluation_set(), OPTIONS)
        lime = found[(found["row"] == "LIME") & (found["metric"] == "ssim")]

        assert list(lime["paper_model"]) == ["ResNet", "ResNet-R", ""]
        assert list(lime["paper_mean"])[:2] == [0.5552, 0.6722]
        assert np.isnan(lime["paper_mean"].iloc[2])

    def test_what_is_missing_has_no_row(self, rng):
        scores = whole_study(rng, boxes=False)
        scores = scores[scores["sweep"] != "MP-seed"]

        found = table_s1(scores, evaluation_set(), OPTIONS)

        assert "MP" not in set(found["row"])
        assert "localization_error" not in set(found["metric"])
        assert len(found) == 4 * 2 * 3

    def test_independent_draws_of_a_count_do_not_mix_in(self, rng):
        scores = rows_of("SG-N", "googlenet", "ssim", np.full((N, 3), 0.8))
        other = rows_of("SG-N", "googlenet", "ssim", np.zeros((N, 3)), draws="independent")

        found = table_s1(pd.concat([scores, other]), evaluation_set(), OPTIONS)

        assert found["mean"].iloc[0] == pytest.approx(0.8)

    def test_undefined_scores_are_left_out(self):
        cells = np.full((N, 3), 0.5)
        cells[0] = np.nan
        cells[1, 0] = np.nan

        found = table_s1(
            rows_of("SP-L", "googlenet", "ssim", cells), evaluation_set(), OPTIONS
        ).iloc[0]

        assert found["mean"] == 0.5
        assert found["n_images"] == N - 1

    def test_empty_scores_give_an_empty_table(self, study):
        assert table_s1(study.iloc[:0], evaluation_set(), OPTIONS).empty


class TestGlobalStd:
    def test_a_constant_shift_in_closed_form(self, rng):
        """Two settings a shift apart: half of it, on any number of images."""
        base = rng.normal(size=N)
        scores = rows_of("SP-L", "googlenet", "insertion", np.stack([base, base + 0.3], axis=1))

        found = global_std(scores, evaluation_set(), OPTIONS)

        assert tuple(found.columns) == GLOBAL_COLUMNS
        assert list(found["model"]) == ["googlenet", "mean"]
        for column in ("std", "std_low", "std_high", "std_scaled", "scaled_low", "scaled_high"):
            assert found[column].to_numpy() == pytest.approx(0.15)
        assert found["seed_sd"].isna().all()

    def test_a_seeds_spread_shrinks_with_the_images(self, rng):
        """Noise of SD .2 between seeds: .2 / sqrt n here, .2 / sqrt 1735 there (ddof 0)."""
        n = 400
        cells = rng.normal(size=n)[:, None] + 0.2 * rng.normal(size=(n, 5))
        scores = rows_of("MP-seed", "googlenet", "insertion", cells)

        found = global_std(scores, evaluation_set(n), OPTIONS).iloc[0]

        assert found["seed_sd"] == pytest.approx(0.2, rel=0.1)
        expected = found["seed_sd"] * np.sqrt(4 / 5 / PAPER_IMAGES)
        assert found["std_scaled"] == pytest.approx(expected)
        assert found["std"] == pytest.approx(0.2 * np.sqrt(4 / 5 / n), rel=0.9)
        assert found["std_scaled"] < found["std"]
        assert found["std_low"] <= found["std"] <= found["std_high"]

    def test_few_images_give_the_scaled_spread_of_many(self, rng):
        """A seed's scaled spread does not depend on n, its plain one does."""
        found = {}
        for n in (16, 1600):
            cells = 0.2 * rng.normal(size=(n, 5))
            scores = rows_of("MP-seed", "googlenet", "insertion", cells)
            found[n] = global_std(scores, evaluation_set(n), OPTIONS).iloc[0]

        assert found[16]["std_scaled"] == pytest.approx(found[1600]["std_scaled"], rel=0.3)
        assert found[16]["std"] > 3 * found[1600]["std"]

    def test_noise_of_few_images_is_taken_off_a_hyperparameter(self, rng):
        """On average over data sets, a hyperparameter without effect is scaled near to nothing."""
        plain, scaled = [], []
        for _ in range(60):
            cells = rng.normal(size=(N, 3))
            row = global_std(
                rows_of("MP-blur", "googlenet", "insertion", cells), evaluation_set(), OPTIONS
            ).iloc[0]
            plain.append(row["std"])
            scaled.append(row["std_scaled"])

        assert np.sqrt(np.mean(np.square(plain))) == pytest.approx(np.sqrt(2 / 3 / N), rel=0.2)
        assert np.median(scaled) < 0.6 * np.median(plain)

    def test_coverage_of_a_hyperparameters_spread(self, rng):
        """True dataset means -.1, 0, .1: std .0816."""
        options = Statistics(confidence=0.95)
        truth = np.std([-0.1, 0, 0.1])
        hits = {"std": 0, "scaled": 0}
        for _ in range(150):
            cells = np.array([-0.1, 0, 0.1]) + 0.1 * rng.normal(size=(N, 3))
            cells += rng.normal(size=(N, 1))
            row = global_std(
                rows_of("MP-blur", "googlenet", "insertion", cells), evaluation_set(), options
            ).iloc[0]
            for name in hits:
                hits[name] += row[f"{name}_low"] <= truth <= row[f"{name}_high"]

        assert all(0.86 <= count / 150 <= 1 for count in hits.values())

    def test_mean_over_models_and_the_methods_seed(self, rng):
        frames = []
        for model, shift in zip(PAIR, (0.2, 0.4), strict=True):
            cells = np.tile([0.0, shift], (N, 1))
            frames.append(rows_of("LIME-S", model, "insertion", cells))
            cells = 0.1 * rng.normal(size=(N, 5))
            frames.append(rows_of("LIME-seed", model, "insertion", cells))

        found = global_std(pd.concat(frames), evaluation_set(), OPTIONS)
        found = found.set_index(["sweep", "model"])

        assert list(found.loc["LIME-S", "std"]) == pytest.approx([0.1, 0.2, 0.15])
        assert list(found.loc["LIME-S", "seed_sd"]) == list(found.loc["LIME-seed", "seed_sd"])


class TestClaims:
    def test_every_claim_comes_out_in_every_study(self, rng, study):
        """Nothing is dropped: not without boxes, twins, sweeps, or any scores at all."""
        full = claims(study, evaluation_set(), model_table(PAIR), OPTIONS)
        boxless = whole_study(rng, boxes=False)
        tiny = study[study["sweep"].isin(["SG-N", "SP-L"])]
        single = study[study["model"] == "googlenet"]

        ids = list(full["claim"])
        assert tuple(full.columns) == CLAIM_COLUMNS
        assert len(set(ids)) == len(ids)
        assert set(map(str, range(1, 24))) <= set(ids)
        for scores, models in (
            (boxless, PAIR),
            (tiny, PAIR),
            (single, PAIR[:1]),
            (study.iloc[:0], PAIR),
        ):
            found = claims(scores, evaluation_set(), model_table(models), OPTIONS)
            assert list(found["claim"]) == ids
            absent = found["direction"] == NOT_MEASURABLE
            assert absent.any()
            assert (found.loc[absent, "reason"] != "").all()
            assert (found.loc[absent, "size"] == "").all()
            assert found.loc[~absent, "value"].notna().all()
            # Accuracies are those of the validation images.
            counts = found.loc[~absent].set_index("claim")["n_images"].drop("D28", errors="ignore")
            assert (counts == N).all()

    def test_what_needs_boxes_says_so(self, rng):
        scores = whole_study(rng, boxes=False)

        found = claims(scores, evaluation_set(), model_table(PAIR), OPTIONS).set_index("claim")

        for claim in ("1", "1b", "2", "3", "3b", "5", "19", "19b", "20", "20b", "D21", "D22"):
            assert found.loc[claim, "direction"] == NOT_MEASURABLE
            assert "box" in found.loc[claim, "reason"]
        assert found.loc["16", "direction"] == "holds"

    def test_what_needs_a_resnet_says_so(self, rng, study):
        comparisons = denoising(rng, {"0": 0.2, "5": 0.3, "": 0.4}, {"0": 0.1, "5": 0.1, "": 0.1})

        found = judge(study, "9", comparisons=comparisons)

        assert found["direction"] == NOT_MEASURABLE
        assert found["reason"] == "the study has no ResNet pair"

    def test_a_model_without_a_twin(self, study):
        scores = study[study["model"] == "googlenet"]

        found = claims(scores, evaluation_set(), model_table(PAIR[:1]), OPTIONS)

        assert one(found, "11b")["reason"] == "no model of the study has a robust twin"
        assert one(found, "16")["direction"] == "holds"
        assert one(found, "D13")["direction"] == "holds"

    def test_only_imagenets_claims_can_never_be_measured(self, study):
        found = claims(study, evaluation_set(), model_table(PAIR), OPTIONS).set_index("claim")

        for claim in ("21", "22", "23"):
            assert found.loc[claim, "direction"] == NOT_MEASURABLE
        assert "googlenet 90.0 % of 800" in found.loc["21", "reason"]

    @pytest.mark.parametrize(
        ("robust", "noise", "direction"),
        [(0.9, 0.01, "holds"), (0.7, 0.01, "fails"), (0.81, 0.5, "inconclusive")],
    )
    def test_direction_follows_the_interval(self, rng, robust, noise, direction):
        frames = [
            rows_of("SG-N", model, "ssim", level + noise * rng.normal(size=(N, 3)))
            for model, level in zip(PAIR, (0.8, robust), strict=True)
        ]

        found = judge(pd.concat(frames), "11b")

        assert found["direction"] == direction
        assert found["ci_low"] < found["value"] < found["ci_high"]

    def test_size_is_whether_the_interval_holds_the_papers_value(self, rng):
        frames = {
            level: rows_of("SG-N", PAIR[1], "ssim", level + 0.01 * rng.normal(size=(N, 3)))
            for level in (0.66, 0.5 * 1.361)
        }
        regular = rows_of("SG-N", PAIR[0], "ssim", 0.5 + 0.01 * rng.normal(size=(N, 3)))

        outside, inside = (
            judge(pd.concat([regular, frame]), "11b")["size"] for frame in frames.values()
        )

        assert (outside, inside) == ("outside", "inside")

    def test_models_are_paired_by_image(self, rng):
        """A difference that images nearly share is sure however much images differ."""
        images = rng.normal(size=(N, 1))
        frames = [
            rows_of("SP-L", model, metric, images + level + 0.01 * rng.normal(size=(N, 3)))
            for model, level in zip(PAIR, (0.0, 0.2), strict=True)
            for metric in ("ssim", "spearman", "hog_pearson")
        ]

        found = judge(pd.concat(frames), "D12")

        assert found["value"] == pytest.approx(0.2, abs=0.01)
        assert found["ci_high"] - found["ci_low"] < 0.02
        assert found["direction"] == "fails"

    def test_order_of_the_rows_does_not_matter(self, study):
        args = evaluation_set(), model_table(PAIR), OPTIONS
        found = claims(study, *args)

        shuffled = claims(study.sample(frac=1, random_state=0), *args)

        pd.testing.assert_frame_equal(found, shuffled)

    def test_few_photographs_suffice_for_a_large_difference(self, study):
        found = judge(study, "11b", photos=[f"p{i % 5}" for i in range(N)])

        assert found["direction"] == "holds"

    def test_one_photograph_decides_nothing(self, study):
        found = judge(study, "11b", photos=["p"] * N)

        assert found["direction"] == "inconclusive"
        assert found["size"] == "not comparable"
        assert "no interval" in found["reason"]

    def test_coverage_of_a_ratio(self, rng):
        """True ratio 1.25; images share 6 or 12 photographs."""
        options = Statistics(confidence=0.95)
        for n_photos in (6, 12):
            photos = [f"p{i % n_photos}" for i in range(N)]
            hits = 0
            for _ in range(40):
                frames = []
                for model, level in zip(PAIR, (0.4, 0.5), strict=True):
                    shared = np.tile(0.05 * rng.normal(size=n_photos), N // n_photos)
                    cells = level + shared[:, None] + 0.02 * rng.normal(size=(N, 3))
                    frames.append(rows_of("SG-N", model, "ssim", cells))
                found = judge(pd.concat(frames), "11b", options=options, photos=photos)
                hits += found["ci_low"] <= 1.25 <= found["ci_high"]
            assert hits / 40 >= 0.83

    def test_no_difference_at_all_is_seldom_called_one(self, rng):
        """A smallest of many is low by chance; its interval allows for that."""
        options = Statistics(confidence=0.95)
        verdicts = []
        for _ in range(60):
            frames = [
                rows_of(sweep, model, metric, rng.normal(size=(N, 3)))
                for model in PAIR
                for sweep in ("LIME-seed", "LIME-N")
                for metric in ("ssim", "spearman", "hog_pearson")
            ]
            scores = pd.concat(frames)
            scores = scores.replace({"sweep": {"LIME-seed": "SG-N"}})
            verdicts.append(judge(scores, "D5", options=options)["direction"])

        assert verdicts.count("inconclusive") >= 50
        assert verdicts.count("holds") <= 2


def alone(values):
    """A statistic of three photographs and its judge: mean, and the mean without each."""
    values = np.array(values)
    n = len(values)
    ids = [f"i{place}" for place in range(n)]
    judge = Judge(Resamples(ids, ids, OPTIONS))
    return judge, judge.resamples.mean(values)


class TestVerdicts:
    def test_an_interval_without_width_is_no_information(self):
        """Two zeros that tie say neither that a loss is there nor that it isn't."""
        judge, tie = alone([0.0, 0.0, 0.0])
        _, below = alone([-0.2, -0.2, -0.2])
        _, gain = alone([0.1, 0.11, 0.12])

        assert judge.finding(tie).direction == "inconclusive"
        assert judge.finding(below).direction == "inconclusive"
        found = judge.smallest({"tie": tie, "gain": gain})
        assert (found.value, found.direction) == (pytest.approx(0.11), "holds")
        assert "left out: 1 of 2 that no photograph changes" in found.notes
        assert judge.smallest({"a": tie, "b": below}).direction == "inconclusive"

    def test_an_end_at_the_bound_decides_nothing(self):
        for ends in ((-1.0, 0.0), (0.0, 1.0)):
            assert Finding(0.0, ends, 3).direction == "inconclusive"
            assert Finding(0.0, ends, 3, above=False).direction == "inconclusive"

    def test_ends_of_a_minimum_in_closed_form(self):
        """Three photographs: mean -+ t(2) s / sqrt 3; the upper end at 2.5 % over two parts."""
        judge, low = alone([0.1, 0.2, 0.3])
        _, high = alone([0.2, 0.4, 0.9])
        error = {0.2: 0.1 / np.sqrt(3), 0.5: np.std([0.2, 0.4, 0.9], ddof=1) / np.sqrt(3)}
        t, strict = stats.t.ppf([0.975, 0.9875], 2)

        found = judge.smallest({"low": low, "high": high})
        lows = [mean - t * e for mean, e in error.items()]
        highs = [mean + strict * e for mean, e in error.items()]
        assert found.interval == pytest.approx((min(lows), min(highs)))
        largest = judge.largest({"low": low, "high": high})
        lows = [mean - strict * e for mean, e in error.items()]
        highs = [mean + t * e for mean, e in error.items()]
        assert largest.interval == pytest.approx((max(lows), max(highs)))

    def test_p_is_that_of_the_t_test(self):
        judge, value = alone([0.1, 0.11, 0.13, 0.12])
        p = stats.ttest_1samp([0.1, 0.11, 0.13, 0.12], 0).pvalue

        assert judge.finding(value).p_value == pytest.approx(p, rel=2e-3)
        assert np.isnan(judge.finding(value, bound=0.115).p_value)

    def table(self):
        rows = [
            ("1", "a", "claim", NOT_MEASURABLE, np.nan),
            ("2", "a", "claim", "holds", 0.004),
            ("3", "a", "claim", "fails", 0.001),
            ("4", "b", "claim", "fails", 0.03),
            ("5", "c", "claim", NOT_RESOLVED, np.nan),
            ("6", "d", "check", "holds", 1e-9),
            ("7", "e", "claim", NOT_MEASURABLE, np.nan),
        ]
        return pd.DataFrame(rows, columns=["claim", "group", "kind", "direction", "p"])

    def test_groups_are_counted_by_their_first_measurable_claim_and_checks_are_not(self):
        table = self.table()

        assert list(counted(table)["claim"]) == ["2", "4", "5", "7"]
        assert verdict_counts(table) == {
            "holds": 1,
            "fails": 1,
            # One that is not resolved.
            "inconclusive": 1,
            NOT_RESOLVED: 1,
            NOT_MEASURABLE: 1,
        }

    def test_holm_is_over_groups(self):
        """P of .004 among three stays below .05 / 3, .03 above .05 / 2."""
        found = after_holm(self.table(), 0.95)

        expected = ["", "holds", "", "inconclusive", NOT_RESOLVED, "", ""]
        assert found.to_list() == expected

    def test_checks_and_groups_of_the_papers(self, study):
        found = claims(study, evaluation_set(), model_table(PAIR), OPTIONS).set_index("claim")

        assert list(found.index[found["kind"] == "check"]) == ["22", "23", "D24"]
        assert [c.claim for c in read_claims("ipr.yaml") if c.kind == "check"] == ["I11"]
        for group in (("3", "3b"), ("6", "6b", "D4"), ("10", "11", "11b"), ("D16", "D16b")):
            assert found.loc[list(group), "group"].nunique() == 1


class TestTrainings:
    def scores(self, gains):
        """Twins over trainings: robust more similar by a gain, the same on every image."""
        frames = [
            rows_of("SP-L", model, metric, np.full((N, 3), 0.5 + gain * model.endswith("-r")))
            for gain in gains
            for model in PAIR
            for metric in ("ssim", "spearman", "hog_pearson")
        ]
        trainings = np.repeat(range(len(gains)), len(frames[0]) * 6)
        return pd.concat(frames).assign(training=trainings)

    def test_trainings_that_differ_alone_give_student_s_interval(self):
        gains = [0.2, 0.25, 0.3, 0.35]

        found = judge(self.scores(gains), "D12")

        part = (np.var(gains, ddof=1) / 4, 3)
        expected = t_interval(0.275, [part], within=Range(-2, 2))
        assert found["value"] == pytest.approx(0.275)
        assert (found["ci_low"], found["ci_high"]) == pytest.approx(expected)
        assert (found["direction"], found["rests_on"]) == ("fails", "4 trainings")
        low = judge(self.scores([0.0, 0.2, 0.3, 0.5]), "D12")
        assert low["direction"] == "inconclusive"

    def test_one_training_is_named_as_one_on_this_pair(self, study):
        found = claims(study, evaluation_set(), model_table(PAIR), OPTIONS).set_index("claim")

        assert set(found.loc[["2", "11b", "14", "D5", "D12"], "rests_on"]) == {"this pair"}
        assert set(found.loc[["3", "4", "16", "20b"], "rests_on"]) == {""}

    def test_a_study_s_claims_on_twins_give_way_to_those_over_trainings(self, study):
        args = evaluation_set(), model_table(PAIR), OPTIONS
        one = claims(study, *args)
        several = pd.concat([study.assign(training=k) for k in range(3)])
        again = claims(several, *args).assign(alone="holds, fails, holds", direction="fails")
        again = again[again["rests_on"] != ""]

        merged = over_trainings(one, again, 0.95).set_index("claim")

        assert merged.loc["11b", ["direction", "rests_on"]].to_list() == ["fails", "3 trainings"]
        assert merged.loc["11b", "alone"] == "holds, fails, holds"
        kept = one.set_index("claim")["direction"]
        assert merged.loc["4", ["direction", "alone"]].to_list() == [kept["4"], ""]


class TestGrids:
    PAPER = tuple(["50", "100", "200", "500", "800"])

    def test_the_papers_grids_are_those_of_its_profile(self):
        params = validate(yaml.safe_load(profile("imagenet", ROOT / "profiles")))
        swept = grids_of([p for m in params.methods for p in points(m, params.sweeps[m])])
        theirs = {name: paper_grids()[name] for name in swept if name in paper_grids()}

        assert len(theirs) == 12
        for name, values in theirs.items():
            assert list(map(float, swept[name])) == list(map(float, values))

    @pytest.mark.parametrize(
        ("values", "verdict", "size"),
        [(PAPER, "yes", "outside"), (tuple(["5", "10", "20", "50", "100"]), "no", "another grid")],
    )
    def test_a_claim_on_another_grid_says_so_and_books_no_size(self, rng, values, verdict, size):
        """SmoothGrad over 5 to 100 samples is not the paper's question."""
        scores = whole_study(rng)
        rows, models = evaluation_set(), model_table(PAIR)

        found = claims(scores, rows, models, OPTIONS, grids={"SG-N": values})

        row = one(found, "11")
        assert (row["papers_grid"], row["size"]) == (verdict, size)
        assert row["grid"].startswith(f"SG-N {', '.join(values)}")
        assert ("paper 50, 100, 200, 500, 800" in row["grid"]) == (verdict == "no")
        assert row["direction"] == one(claims(scores, rows, models, OPTIONS), "11")["direction"]
        # What rests on none of the paper's sweeps has no grid.
        assert one(found, "21")["papers_grid"] == ""

    def test_tables_hold_the_values_swept(self, rng):
        grids = {"SG-N": ["5", "10"], "LIME-seed": ["0", "1"]}
        found = table_s1(whole_study(rng), evaluation_set(), OPTIONS, grids=grids)
        spreads = global_std(whole_study(rng), evaluation_set(), OPTIONS, grids=grids)

        values = found.set_index("row")[["values", "paper_values"]]
        assert set(map(tuple, values.loc["SG"].to_numpy())) == {("5 10", "50 100 200 500 800")}
        assert set(spreads.loc[spreads["sweep"] == "LIME-seed", "values"]) == {"0 1"}


class TestAccuracyClaims:
    def test_relative_spread_and_gain(self, rng):
        """Two settings +-a around .4: std / mean is a / .4; stds twice as large on regular."""
        frames = []
        for row in ("SG-N", "SP-S", "SP-L", "LIME-seed", "MP-seed"):
            for model, reach in zip(PAIR, (0.2, 0.1), strict=True):
                for metric in ACCURACY:
                    cells = 0.4 + reach * np.array([-1.0, 1.0]) + 0.01 * rng.normal(size=(N, 2))
                    frames.append(rows_of(row, model, metric, cells))
        found = claims(pd.concat(frames), evaluation_set(), model_table(PAIR), OPTIONS)
        found = found.set_index("claim")

        assert found.loc["1", "value"] == pytest.approx(0.5, rel=0.05)
        assert found.loc["1b", "value"] == pytest.approx(0.25, rel=0.05)
        assert found.loc["2", "value"] == pytest.approx(2, rel=0.02)
        assert found.loc["2", "size"] == "outside"
        assert list(found.loc[["1", "1b", "2", "D21"], "direction"]) == ["holds"] * 4

    def test_a_gain_over_nothing_is_a_difference(self, rng):
        """Robust models whose scores never move: no ratio, the difference of the stds."""
        frames = []
        for model, reach in zip(PAIR, (0.2, 0.0), strict=True):
            for metric in ACCURACY:
                cells = 0.4 + reach * np.array([-1.0, 1.0]) * rng.uniform(0.9, 1.1, (N, 1))
                frames.append(rows_of("SP-S", model, metric, cells))

        found = judge(pd.concat(frames), "2")

        assert found["value"] == pytest.approx(0.2, rel=0.02)
        assert found["unit"] == "difference of stds"
        assert found["name"] == "robust models' accuracy scores vary less (difference of stds)"
        assert found["size"] == "not comparable"
        assert found["direction"] == "holds"
        assert "3 of 3 ratios not formed" in found["reason"]
        assert "without SG, SP-L, LIME, MP" in found["reason"]

    def test_no_claim_is_lost_where_scores_never_move(self, study):
        """All accuracies 0: no ratio can be formed, yet what can be measured is."""
        kept = study[~study["metric"].isin(ACCURACY)]
        moved = study[study["metric"].isin(ACCURACY)].assign(score=0.0)
        found = claims(pd.concat([kept, moved]), evaluation_set(), model_table(PAIR), OPTIONS)
        found = found.set_index("claim")

        for claim in ("1", "1b", "2", "3b", "5", "20b"):
            assert "not formed" in found.loc[claim, "reason"], claim
            assert found.loc[claim, "direction"] in ("fails", "inconclusive")
            assert found.loc[claim, "size"] == "not comparable"
        assert set(found.loc[["16", "18", "20", "D22"], "direction"]) == {NOT_RESOLVED}
        assert found.loc["19", "direction"] == "inconclusive"

    def test_superpixels_against_the_seed(self, rng):
        """Dataset means .2 apart against seeds of SD .1: .1 / (.1 sqrt(.8 / 1735)) = 466."""
        n = 200
        frames = []
        for model in PAIR:
            base = rng.normal(size=(n, 1))
            shifts = base + np.array([0.0, 0.2])
            frames.append(rows_of("LIME-S", model, "insertion", shifts))
            cells = base + 0.1 * rng.normal(size=(n, 5))
            frames.append(rows_of("LIME-seed", model, "insertion", cells))

        found = judge(pd.concat(frames), "16", n=n)

        assert found["value"] == pytest.approx(np.sqrt(PAPER_IMAGES / 0.8), rel=0.1)
        assert found["direction"] == "holds"
        assert "at this study's n" in found["reason"]

    def test_up_to_takes_the_largest_ratio_of_two_hyperparameters(self, rng):
        frames = []
        base = rng.normal(size=(N, 1))
        for sweep, shift in {"SP-L": 0.2, "SP-S": 0.1, "MP-N": 0.1, "MP-blur": 0.8}.items():
            cells = base + np.array([0.0, shift]) + 0.001 * rng.normal(size=(N, 2))
            for metric in ACCURACY:
                frames.append(rows_of(sweep, "googlenet", metric, cells))

        found = judge(pd.concat(frames), "18", models=PAIR[:1])

        assert found["value"] == pytest.approx(8, rel=0.05)
        assert "MP-blur/MP-N" in found["reason"]

    @pytest.mark.parametrize("claim", ["16", "17", "17b", "18", "20", "D22", "D23"])
    def test_a_hyperparameter_that_moves_no_mean_is_not_resolved(self, rng, claim):
        """Its spread is noise of the images, however large beside that of a seed."""
        frames = [
            rows_of(sweep, "googlenet", metric, 0.5 + 0.2 * rng.normal(size=(N, 3)))
            for sweep in METHODS
            for metric in ACCURACY
        ]

        found = judge(pd.concat(frames), claim, models=PAIR[:1])

        assert found["direction"] == NOT_RESOLVED
        assert found["reason"].startswith(f"not resolved at n = {N}: ")
        assert np.isnan(found["value"])

    def test_a_pair_that_is_not_resolved_is_left_out(self, rng):
        """SP-L moves the mean, SP-S only noise; MP-N and MP-blur move it alike."""
        shifts = {"SP-L": 0.2, "SP-S": 0.0, "MP-N": 0.2, "MP-blur": 0.2}
        frames = [
            rows_of(sweep, "googlenet", "insertion", [0, shift] + 0.02 * rng.normal(size=(N, 2)))
            for sweep, shift in shifts.items()
        ]

        found = judge(pd.concat(frames), "18", models=PAIR[:1])

        assert found["value"] == pytest.approx(1, abs=0.1)
        assert found["direction"] == "fails"
        assert f"not resolved at n = {N}: SP-S insertion p" in found["reason"]

    def test_settings_that_differ_are_told_at_the_level(self, rng):
        """Settings that go together on an image and differ in their spread: 2.5 % at most."""
        spread = np.array([0.5, 1.0, 3.0])
        p = [
            no_difference_p(
                spread * (rng.normal(size=(8, 1)) + rng.normal(size=(8, 3)) @ np.tri(3))
            )
            for _ in range(2000)
        ]

        assert 0.01 < np.mean(np.array(p) < 0.025) < 0.025 + 3 * np.sqrt(0.025 / 2000)
        assert no_difference_p(np.array([[-0.1, 0.1], [-0.12, 0.12], [-0.11, 0.11]])) < 0.01

    @pytest.mark.parametrize(("factor", "direction"), [(1.2, "holds"), (4.0, "fails")])
    def test_seeds_that_matter_alike(self, rng, factor, direction):
        n = 200
        frames = [
            rows_of(sweep, "googlenet", metric, sd * rng.normal(size=(n, 5)))
            for sweep, sd in (("LIME-seed", 0.1), ("MP-seed", 0.1 * factor))
            for metric in ACCURACY
        ]

        found = judge(pd.concat(frames), "19", models=PAIR[:1], n=n)

        assert found["value"] == pytest.approx(factor, rel=0.15)
        assert found["direction"] == direction

    def test_which_bars_are_shortest(self, rng):
        levels = {"SG-N": 0.9, "SP-S": 0.95, "SP-L": 0.7, "LIME-seed": 0.6, "MP-seed": 0.8}
        frames = [
            rows_of(sweep, model, "ssim", level + 0.01 * rng.normal(size=(N, 3)))
            for sweep, level in levels.items()
            for model in PAIR
        ]
        found = claims(pd.concat(frames), evaluation_set(), model_table(PAIR), OPTIONS)

        assert one(found, "D19")["value"] == pytest.approx(0.1, abs=0.01)
        assert one(found, "D19")["direction"] == "holds"
        assert one(found, "D19c")["value"] == pytest.approx(-0.1, abs=0.01)
        assert one(found, "D19c")["direction"] == "fails"

    def test_exceptions_among_the_pairs_are_named(self, rng):
        frames = []
        for sweep in ("SG-N", "SP-L"):
            for model, level in zip(PAIR, (0.7, 0.8), strict=True):
                shown = 1.5 - level if sweep == "SP-L" else level
                cells = shown + 0.01 * rng.normal(size=(N, 3))
                frames.append(rows_of(sweep, model, "ssim", cells))

        found = judge(pd.concat(frames), "D20")

        assert found["direction"] == "fails"
        assert "of 2: 1 holds, 1 fails" in found["reason"]
        assert "fails: SP-L googlenet ssim" in found["reason"]


class TestFallbacks:
    """What is judged where a ratio can't be formed."""

    def test_a_mean_of_ratios_is_a_difference_where_one_cannot_be_formed(self, rng):
        """Rank correlation of regular models is about 0; robust ones gain .2, .2 and .5."""
        gains = {"ssim": (0.5, 0.7), "hog_pearson": (0.5, 0.7), "spearman": (0.0, 0.5)}
        frames = [
            rows_of("MP-seed", model, metric, level + 0.02 * rng.normal(size=(N, 3)))
            for metric, levels in gains.items()
            for model, level in zip(PAIR, levels, strict=True)
        ]

        found = judge(pd.concat(frames), "14")

        assert found["value"] == pytest.approx(0.3, abs=0.02)
        assert (found["unit"], found["direction"]) == ("difference", "holds")
        assert found["name"].endswith("(difference)")

    def test_a_seed_that_moves_one_image_alone_gives_differences(self, rng):
        """Stds of .1, .15 and .2 over superpixels, next to nothing over the seed."""
        frames = []
        one_image = np.full((N, 3), 0.5)
        one_image[0] = [0.4, 0.5, 0.6]
        for metric, shift in zip(ACCURACY, (0.2, 0.3, 0.4), strict=True):
            cells = 0.4 + np.array([0, shift]) + 0.01 * rng.normal(size=(N, 2))
            frames.append(rows_of("LIME-S", PAIR[0], metric, cells))
            frames.append(rows_of("LIME-seed", PAIR[0], metric, one_image))

        found = judge(pd.concat(frames), "D23", models=PAIR[:1])

        assert found["value"] == pytest.approx(0.1, abs=0.01)
        assert (found["unit"], found["direction"]) == ("difference of stds", "holds")

    def test_the_row_whose_average_hides_least_decides(self, rng):
        """SG-N moves all images alike, SP-L single ones four times as much as their mean."""
        n = 200
        frames = [
            rows_of(sweep, PAIR[0], metric, 0.5 + effect + noise * rng.normal(size=(n, 4)))
            for sweep, reach, noise in (("SG-N", 0.1, 0.01), ("SP-L", 0.03, 0.1))
            for effect in [np.linspace(-reach, reach, 4)]
            for metric in ACCURACY
        ]

        found = judge(pd.concat(frames), "D27", models=PAIR[:1], n=n)

        assert (found["unit"], found["direction"]) == ("ratio", "fails")
        assert found["value"] == pytest.approx(1, abs=0.05)


class TestComparisonClaims:
    def test_a_photograph_is_left_out_of_both_its_pairs(self):
        """Four images in a ring: without one, the two pairs that it is part of are gone."""
        rows = evaluation_set(4).assign(class_name=list("abcd"))
        study = StudyScores(
            rows_of("SG-N", PAIR[0], "ssim", np.zeros((4, 2))), rows, OPTIONS, alpha=0.25
        )
        values = np.array([[0.1, 0.2, 0.4, 0.8]])

        found = study.mean(values, range_of("ssim"), pairs=4)

        assert list(mismatched(rows)) == [1, 2, 3, 0]
        # Image 0 is in the pairs of 0 with 1 and of 3 with 0.
        assert found.images == pytest.approx([0.3, 0.6, 0.45, 0.15])
        assert study.mean(values, range_of("ssim")).images[0] == pytest.approx(1.4 / 3)

    def noise(self, rng, regular, robust, value="0.1"):
        frames = []
        for model, level in zip(PAIR, (regular, robust), strict=True):
            for metric in ("spearman", "ssim", "hog_pearson"):
                scores = level + 0.05 * rng.normal(size=N)
                more = {"metric": metric, "convention": CONVENTIONS[metric], "value": value}
                frames.append(compared("gradient-noise", model, scores, **more))
        return pd.concat(frames, ignore_index=True)

    def test_noise_ratio(self, rng, study):
        found = judge(study, "6", comparisons=self.noise(rng, 0.1, 0.7))

        assert found["value"] == pytest.approx(7, rel=0.3)
        assert (found["unit"], found["direction"]) == ("ratio", "holds")

    def test_a_denominator_about_0_gives_the_difference(self, rng, study):
        found = judge(study, "6", comparisons=self.noise(rng, 0.0, 0.7))

        assert found["value"] == pytest.approx(0.7, abs=0.05)
        assert (found["unit"], found["size"]) == ("difference", "not comparable")
        assert found["direction"] == "holds"
        assert "ratio not formed" in found["reason"]

    def test_the_variance_is_named_where_missing(self, rng, study):
        comparisons = self.noise(rng, 0.1, 0.7, value="0.01")

        assert judge(study, "6b", comparisons=comparisons)["direction"] == "holds"
        assert "variance 0.1" in judge(study, "6", comparisons=comparisons)["reason"]

    def test_a_rise_beyond_that_of_other_images(self, rng, study):
        swept = dict(
            zip(paper_grids()["denoising-gradient"], np.linspace(0.25, 0.35, 6), strict=True)
        )
        levels = swept | {"": 0.4}
        flat = dict.fromkeys(levels, 0.1)
        found = claims(
            study,
            evaluation_set(),
            model_table(PAIR),
            OPTIONS,
            comparisons=denoising(rng, levels, flat),
        )

        assert one(found, "7")["value"] == pytest.approx(1.4, rel=0.01)
        assert one(found, "7")["size"] == "inside"
        assert one(found, "8")["value"] == pytest.approx(1.5, rel=0.01)
        assert list(one(found, c)["direction"] for c in ("7", "8", "D1", "D1b")) == ["holds"] * 4
        assert "mismatched images 0." in one(found, "7")["reason"]
        assert "judged on [0.0" in one(found, "7")["reason"]
        assert "second robust model" in one(found, "7c")["reason"]

    def test_a_rise_that_other_images_share_does_not_count(self, rng, study):
        levels = {"0": 0.25, "80": 0.35, "": 0.4}
        mismatched = {"0": 0.05, "80": 0.25, "": 0.1}

        found = judge(study, "7", comparisons=denoising(rng, levels, mismatched))

        assert found["value"] == pytest.approx(1.4, rel=0.01)
        assert found["direction"] == "fails"

    def test_the_control_is_a_claim_of_its_own(self, rng, study):
        levels, flat = {"0": 0.2, "80": 0.3, "": 0.3}, {"0": 0.1, "80": 0.1, "": 0.1}
        comparisons = pd.concat(
            [
                denoising(rng, levels, flat),
                denoising(rng, {"0": 0.2, "80": 0.22, "": 0.2}, flat, role="control"),
            ]
        )

        assert judge(study, "7", comparisons=comparisons)["value"] == pytest.approx(1.5, rel=0.01)
        assert judge(study, "7c", comparisons=comparisons)["value"] == pytest.approx(1.1, rel=0.01)

    def test_without_mismatched_images_no_rise_counts(self, rng, study):
        comparisons = denoising(rng, {"0": 0.2, "80": 0.3}, {})

        found = judge(study, "7", comparisons=comparisons)

        assert found["direction"] == NOT_MEASURABLE
        assert "mismatched" in found["reason"]

    def test_one_fall_breaks_a_monotone_rise(self, rng, study):
        levels = {"0": 0.2, "5": 0.3, "10": 0.28, "80": 0.35}

        found = judge(study, "D1", comparisons=denoising(rng, levels, {}))

        assert found["value"] == pytest.approx(-0.02, abs=0.003)
        assert found["direction"] == "fails"
        assert "googlenet 5 to 10" in found["reason"]

    def test_resnet18_stands_for_resnet(self, rng):
        models = ("resnet18", "resnet18-r")
        levels, flat = {"0": 0.239, "80": 0.3, "": 0.377}, {"0": 0.1, "80": 0.1, "": 0.1}
        comparisons = denoising(rng, levels, flat, regular="resnet18")

        found = judge(whole_study(rng, models), "9", models=models, comparisons=comparisons)

        assert found["value"] == pytest.approx(0.377 / 0.239, rel=0.01)
        assert (found["direction"], found["size"]) == ("holds", "inside")
        assert "resnet18 stands for ResNet-50" in found["reason"]

    def test_distance(self, rng):
        models = ("resnet18", "resnet18-r")
        comparisons = pd.concat(
            compared(
                "distance",
                model,
                level * (1 + 0.1 * rng.normal(size=N)),
                metric="l1",
                convention="max_abs",
                value="50-800",
            )
            for model, level in zip(models, (0.1, 0.02), strict=True)
        )

        found = judge(whole_study(rng, models), "10", models=models, comparisons=comparisons)

        assert found["value"] == pytest.approx(5, rel=0.15)
        assert (found["direction"], found["size"]) == ("holds", "inside")


class TestOtherEvidence:
    def test_convergence(self, rng, study):
        ids = evaluation_set()["image_id"]
        frames = []
        for model, level in zip(PAIR, (40, 10), strict=True):
            steps = level + rng.integers(-3, 4, size=N).astype(float)
            frame = {"model": model, "image_id": ids, "converged_step": steps, "n_iterations": 60}
            frames.append(pd.DataFrame(frame))
        convergence = pd.concat(frames, ignore_index=True)
        convergence.loc[0, "converged_step"] = np.nan

        found = judge(study, "13", convergence=convergence)

        assert found["value"] == pytest.approx(10, abs=1)
        assert found["direction"] == "holds"
        assert "1 runs never converge" in found["reason"]

    def object_sizes(self, area, peak, n=8, unseen=0):
        rows = []
        for image in range(n):
            for size in (6, 24):
                for patch in (3, 5, 9, 11, 15):
                    rows.append(
                        {
                            "model": "googlenet",
                            "image_id": f"object-{image}",
                            "object_size": size,
                            "patch_size": patch,
                            "object_area": size**2,
                            "area_above_half": area(size, patch) + image * (1 + patch / 50),
                            "peak": peak(size, patch) + 0.001 * image,
                            "score": 0.9 + 0.01 * image if image >= unseen else 0.3,
                        }
                    )
        return pd.DataFrame(rows)

    def test_patches_and_objects(self, study):
        frame = self.object_sizes(
            lambda size, patch: (size + patch) ** 2, lambda size, patch: 0.02 + 0.8 * (patch > 8)
        )
        found = claims(
            study, evaluation_set(), model_table(PAIR), OPTIONS, object_size=frame
        ).set_index("claim")

        assert list(found.loc[["D14", "D15", "D15b"], "direction"]) == ["holds"] * 3
        assert found.loc["D14", "value"] == pytest.approx(0.0235 / 0.935)
        assert "patches of 3, 5 px on 24 px" in found.loc["D14", "reason"]
        expected = np.mean([15**2 + 3.5 * 1.18, 17**2 + 3.5 * 1.22, 21**2 + 3.5 * 1.3])
        assert found.loc["D15", "value"] == pytest.approx(expected / 36)
        assert (found.loc[["D14", "D15", "D15b"], "n_images"] == 8).all()

    def test_objects_that_the_network_does_not_see_are_left_out(self, study):
        def area(size, patch):
            return (size + patch) ** 2

        whole = self.object_sizes(area, lambda size, patch: 0.02)
        more = self.object_sizes(area, lambda size, patch: 0.02, n=10, unseen=2)
        kept = more[more["score"] > 0.5].reset_index(drop=True)

        found, expected, few = (
            claims(study, evaluation_set(), model_table(PAIR), OPTIONS, object_size=frame)
            for frame in (more, kept, whole[whole["image_id"] != "object-0"])
        )

        assert one(found, "D14")["value"] == one(expected, "D14")["value"]
        assert one(found, "D14")["n_images"] == 8
        assert one(few, "D14")["direction"] == NOT_MEASURABLE
        assert one(few, "D14")["reason"].startswith("7 of 7 objects alone have a probability")

    def test_patches_that_are_not_blank(self, study):
        frame = self.object_sizes(lambda size, patch: 4.0, lambda size, patch: 0.5)

        found = claims(study, evaluation_set(), model_table(PAIR), OPTIONS, object_size=frame)

        assert one(found, "D14")["direction"] == "fails"
        assert one(found, "D15")["direction"] == "fails"

    def test_amplitude_that_falls_once(self, rng, study):
        kept = study[study["metric"] != "dynamic_range"]
        cells = np.array([1.0, 2, 1.5, 3]) + 0.01 * rng.normal(size=(N, 4))
        values = ["3", "5", "9", "11"]
        scores = pd.concat([kept, rows_of("SP-L", PAIR[0], "dynamic_range", cells, values)])

        found = judge(scores, "D13")

        assert found["value"] == pytest.approx(-0.5, abs=0.02)
        assert found["direction"] == "fails"
        assert "5 to 9 px" in found["reason"]

    def test_scatter_of_a_square_is_perimeter_over_area(self):
        maps = np.zeros((3, 16, 16))
        maps[0, 4:8, 4:8] = 0.5
        maps[1, 2:10:2, 2:10:2] = 1.0

        found = scatter(maps)

        assert found[:2] == pytest.approx([1.0, 4.0])
        assert np.isnan(found[2])

    def test_scatter_over_blur(self, rng, study):
        frames = []
        for model, levels in zip(PAIR, ((0.5, 0.6, 0.9), (0.5, 0.4, 0.3)), strict=True):
            for value, level in zip(("5", "10", "30"), levels, strict=True):
                frame = {"model": model, "value": value, "image_id": evaluation_set()["image_id"]}
                frame["scatter"] = level + 0.01 * rng.normal(size=N)
                frames.append(pd.DataFrame(frame))
        found = claims(
            study, evaluation_set(), model_table(PAIR), OPTIONS, scatter=pd.concat(frames)
        )

        assert one(found, "D7")["value"] == pytest.approx(1.8, rel=0.05)
        assert one(found, "D8")["value"] == pytest.approx(0.6, rel=0.05)
        assert (one(found, "D7")["direction"], one(found, "D8")["direction"]) == ("holds",) * 2

    def test_no_consistent_gain(self, rng):
        """Worse under one metric of three: no consistent gain. A little better under all: one."""

        def study(gains):
            return pd.concat(
                rows_of(sweep, model, metric, 0.5 + gain * own + 0.005 * rng.normal(size=(N, 3)))
                for sweep in ("LIME-seed", "LIME-N")
                for metric, gain in gains.items()
                for model, own in zip(PAIR, (0, 1), strict=True)
            )

        mixed = judge(study({"ssim": 0.2, "spearman": 0.2, "hog_pearson": -0.02}), "D16")
        better = judge(study(dict.fromkeys(("ssim", "spearman", "hog_pearson"), 0.04)), "D16")

        assert (mixed["direction"], better["direction"]) == ("holds", "fails")


def structures(levels, floors, metric="edge_correlation"):
    """Structure of gradients per model, image i against the next as floor."""
    ids = list(evaluation_set()["image_id"])
    partners = [*ids[1:], ids[0]]
    # Of mean 0, and another for each model.
    steps = {m: 0.01 * np.cos(2 * np.pi * k * np.arange(N) / N) for k, m in enumerate(levels, 1)}
    return pd.concat(
        pd.DataFrame(
            {
                **{"sweep": "default", "method": "gradient", "model": model, "value": ""},
                **{"image_id": ids, "other": others, "metric": metric, "pairing": pairing},
                **{"score": level[model] + steps[model] * (pairing == "same"), "degenerate": False},
            }
        )
        for model in levels
        for pairing, others, level in (("same", ids, levels), ("mismatched", partners, floors))
    )


@pytest.mark.parametrize("claim", ["D6", "11b"])
def test_pairs_with_a_blank_map_do_not_decide_a_claim(study, claim):
    whole = judge(study, claim)
    # Every map of four images is blank: its pairs score 0 on one model and 1 on the other.
    ids = set(evaluation_set()["image_id"][:4])
    blank = study["image_id"].isin(ids) & study["metric"].isin(["ssim", "spearman", "hog_pearson"])
    level = study["model"].eq("googlenet").astype(float)
    spoiled = study.assign(degenerate=blank, score=study["score"].mask(blank, level))

    found, kept = judge(spoiled, claim), judge(study[~blank], claim)

    assert found["direction"] == whole["direction"] == "holds"
    assert found["value"] == kept["value"]
    assert found["n_images"] == N - 4


class TestWhatThePaperSays:
    """Claims that the paper makes in words or pictures."""

    @pytest.mark.parametrize(
        ("robust_floor", "direction"), [(0.1, "holds"), (0.35, "fails"), (0.25, "inconclusive")]
    )
    def test_structure_is_held_against_the_floor(self, study, robust_floor, direction):
        levels = {"googlenet": 0.25, "googlenet-r": 0.4}
        frame = structures(levels, {"googlenet": 0.1, "googlenet-r": robust_floor})

        found = judge(study, "D25", structure=frame)

        assert found["value"] == pytest.approx((0.4 - robust_floor) - (0.25 - 0.1))
        assert found["direction"] == direction
        assert found["rests_on"] == "this pair"

    def test_structure_of_robust_models(self, study):
        levels = {"googlenet": 0.0, "googlenet-r": 0.4}
        frame = structures(levels, {"googlenet": 0.1, "googlenet-r": 0.1})

        found = judge(study, "D26", structure=frame)

        assert found["value"] == pytest.approx(0.3)
        assert found["direction"] == "holds"
        assert judge(study, "D25c", structure=frame)["reason"] == (
            "the study has no mass_inside of gradient"
        )

    @pytest.mark.parametrize(("shared", "direction"), [(0.0, "holds"), (1.0, "fails")])
    def test_what_averages_hide(self, rng, shared, direction):
        frames = []
        for metric in ACCURACY:
            # What a setting does to all images alike stays in the average.
            common = np.linspace(-0.1, 0.1, 4) * shared
            for sweep in ("SG-N", "SP-L"):
                cells = 0.5 + common + 0.1 * rng.normal(size=(N, 4)) * (1 - 0.9 * shared)
                frames.append(rows_of(sweep, "googlenet", metric, cells))

        found = judge(pd.concat(frames), "D27", models=PAIR[:1])

        assert found["direction"] == direction
        if shared:
            assert 1 <= found["value"] < 1.1
            assert found["unit"] == "ratio"

    def test_how_many_times_the_averages_spread_stands_in_the_table(self):
        # Settings that differ by .2 in one half of the images, by as much less in the other.
        cells = np.tile([[0.4, 0.6]], (N, 1))
        cells[: N // 2] = [0.7, 0.5]
        cells[0] = [0.4, 0.6]

        found = global_std(
            rows_of("SG-N", "googlenet", "insertion", cells), evaluation_set(), OPTIONS
        )

        (row,) = found[found["model"] == "googlenet"].to_dict("records")
        assert row["per_image"] == pytest.approx(0.1)
        assert row["times"] == pytest.approx(0.1 / cells.mean(axis=0).std())

    @pytest.mark.parametrize(
        ("robust", "direction"), [(0.7, "holds"), (0.9, "fails"), (0.79, "inconclusive")]
    )
    def test_clean_accuracy(self, study, robust, direction):
        models = model_table(PAIR).assign(clean_accuracy=[0.8, robust])

        found = one(claims(study, evaluation_set(), models, OPTIONS), "D28")

        variance = (0.8 * 0.2 + robust * (1 - robust)) / 800
        assert found["value"] == pytest.approx(0.8 - robust)
        assert found["ci_high"] - found["ci_low"] == pytest.approx(
            2 * 1.96 * math.sqrt(variance), rel=0.01
        )
        assert found["direction"] == direction
        assert found["n_images"] == 800

    def test_huge_objects(self):
        rows = evaluation_set()
        huge = np.arange(N) % 3 == 0
        # 8 of 24 boxes cover 64 % of the image, the others 4 %.
        side = np.where(huge, 80, 20)
        rows = rows.assign(x0=0, y0=0, x1=side, y1=side)
        drops = np.where(huge, 0.05, 0.4)[:, None] + 0.01 * np.cos(np.arange(N))[:, None]
        cells = np.hstack([0.5 * drops, drops])
        scores = rows_of("SP-L", "googlenet", "dynamic_range", cells)

        found = one(claims(scores, rows, model_table(PAIR[:1]), OPTIONS, image_size=100), "D29")

        assert found["value"] == pytest.approx(drops[huge].mean() - drops[~huge].mean())
        assert found["direction"] == "holds"
        assert found["reason"].startswith("8 huge objects")
        few = one(claims(scores, rows, model_table(PAIR[:1]), OPTIONS, image_size=200), "D29")
        assert few["direction"] == NOT_MEASURABLE

    def test_masks_that_keep_changing(self, study):
        ids = evaluation_set()["image_id"]
        change = pd.concat(
            pd.DataFrame(
                {
                    "model": model,
                    "image_id": ids,
                    "fluctuation": level + 0.01 * (-1) ** np.arange(N),
                }
            )
            for model, level in zip(PAIR, (0.3, 0.1), strict=True)
        )

        found = judge(study, "D30", fluctuation=change)

        assert found["value"] == pytest.approx(3)
        assert found["direction"] == "holds"

    def test_fluctuation_is_the_mean_change_from_step_10_on(self):
        masks = np.zeros((1, 5, 2, 2))
        masks[0, :, 0, 0] = [0, 1, 0, 0.4, 1]

        found = fluctuation(masks, [0, 5, 10, 20, 30])

        assert found == pytest.approx([(0.4 + 0.6) / 2 / 4])
        assert np.isnan(fluctuation(masks, [0, 1, 2, 5, 10])).all()

    def test_the_papers_accuracies_where_its_models_are_measured(self, study):
        ours = [0.6886, 0.5094, 0.7559, 0.5625]
        models = pd.DataFrame(
            {
                "model": ["googlenet", "googlenet-r", "resnet50", "resnet50-r"],
                **{"n_val": 50_000, "clean_accuracy": ours},
            }
        )

        found = one(claims(study, evaluation_set(), models, OPTIONS), "21")

        assert found["value"] == pytest.approx(0.002, abs=1e-6)
        assert found["direction"] == "holds"
        other = models.assign(clean_accuracy=[0.6978, *ours[1:]])
        assert one(claims(study, evaluation_set(), other, OPTIONS), "21")["direction"] == "fails"

    def test_the_example_that_rises(self):
        """One image of four rises at every step and is highest under guided backprop."""
        levels = {"0": [0.1, 0.1, 0.1, 0.1], "10": [0.2, 0.2, 0.05, 0.2]}
        levels |= {"50": [0.3, 0.1, 0.3, 0.3], "": [0.4, 0.4, 0.4, 0.2]}
        frame = pd.concat(
            compared(
                "denoising-input_x_gradient",
                "resnet18",
                np.array(scores),
                **{"other": "resnet18-r", "role": "twin", "value": value},
                method="integrated_gradients" if value else "guided_backprop",
            )
            for value, scores in levels.items()
        )
        models = ("resnet18", "resnet18-r")
        scores = pd.concat(rows_of("SG-N", model, "ssim", np.full((4, 2), 0.5)) for model in models)

        found = judge(scores, "22", models=models, comparisons=frame, n=4)

        assert found["value"] == 0.25
        assert found["direction"] == "holds"
        assert found["kind"] == "check"

    def test_the_image_of_the_widest_difference(self):
        models = ("resnet18", "resnet18-r")
        regular, robust = np.full((4, 1), 0.5), np.array([[0.6], [0.4], [0.9], [0.5]])
        scores = pd.concat(
            rows_of("LIME-N", model, "ssim", cells)
            for model, cells in zip(models, (regular, robust), strict=True)
        )

        found = judge(scores, "23", models=models, n=4)

        assert found["value"] == pytest.approx(0.4)
        assert found["direction"] == "holds"
        assert found["reason"].startswith("val-00002: 0.5000 on resnet18, 0.9000 on resnet18-r")


class TestSaturation:
    """No ratio is formed of scores that have no room to vary."""

    def scores(self, rng, insertion=0.5, error=None):
        frames = []
        for model in PAIR:
            for sweep in ("SG-N", "SP-S", "SP-L"):
                for metric in ACCURACY:
                    cells = 0.4 + 0.1 * rng.random((N, 4))
                    if metric == "insertion" and sweep == "SG-N":
                        cells = insertion + 0.01 * rng.random((N, 4))
                    if metric == "localization_error" and sweep == "SP-S" and error is not None:
                        cells = np.full((N, 4), error)
                    frames.append(rows_of(sweep, model, metric, cells))
        return pd.concat(frames)

    def test_cells_of_the_table_say_so(self, rng):
        found = table_s1(self.scores(rng, 0.97, 1.0), evaluation_set(), OPTIONS)

        stuck = found[found["saturated"]]
        assert set(zip(stuck["row"], stuck["metric"], strict=True)) == {
            ("SG", "insertion"),
            ("SP-S", "localization_error"),
        }
        spreads = global_std(self.scores(rng, 0.97), evaluation_set(), OPTIONS)
        spreads = spreads[spreads["saturated"]]
        assert set(zip(spreads["sweep"], spreads["metric"], strict=True)) == {("SG-N", "insertion")}

    def test_ratios_leave_them_out(self, rng):
        whole = self.scores(rng, 0.97, 1.0)
        kept = whole[
            ~((whole["sweep"] == "SG-N") & (whole["metric"] == "insertion"))
            & ~((whole["sweep"] == "SP-S") & (whole["metric"] == "localization_error"))
        ]

        found, expected = judge(whole, "2"), judge(kept, "2")

        # The mean of the other ratios stands beside the difference of all.
        assert found["unit"] == "difference of stds"
        assert "2 of 9 ratios not formed" in found["reason"]
        assert f"mean of the others {expected['value']:.3g}" in found["reason"]
        assert judge(whole, "1")["value"] == pytest.approx(judge(kept, "1")["value"])
        assert judge(whole, "5")["value"] == pytest.approx(judge(kept, "5")["value"])

    def test_a_spread_of_saturated_scores_is_in_no_ratio(self, rng):
        frames = []
        for sweep, level in (("LIME-S", 0.9), ("LIME-seed", 0.97)):
            cells = level + np.array([0.0, 0.02]) + 0.01 * rng.random((N, 2))
            frames.append(rows_of(sweep, "googlenet", "insertion", cells))

        found = judge(pd.concat(frames), "16", models=PAIR[:1])

        assert found["direction"] == "inconclusive"
        assert found["reason"] == "no ratio, saturated: LIME-seed insertion"


class TestImagesThatWouldDecide:
    def test_by_the_rule_of_the_t_interval(self):
        """Differences of mean .01 and standard deviation .05: t = .2 sqrt(n)."""
        n = 16
        steps = 0.05 * (-1.0) ** np.arange(n) * np.sqrt((n - 1) / n)
        frames = [
            rows_of("SG-N", model, "ssim", np.tile(cells[:, None], (1, 2)))
            for model, cells in zip(PAIR, (np.zeros(n), 0.01 + steps), strict=True)
        ]
        study = StudyScores(pd.concat(frames), evaluation_set(n), OPTIONS, alpha=0.25)
        robust, regular = (study.similarity("SG-N", model, "ssim") for model in PAIR[::-1])

        finding = Judge(study.resamples).finding(robust - regular)

        needed = finding.images_to_decide(0.95)
        assert finding.direction == "inconclusive"
        assert 0.2 * math.sqrt(needed) >= stats.t.ppf(0.975, needed - 1) * 0.999
        assert 0.2 * math.sqrt(needed - 2) < stats.t.ppf(0.975, needed - 3) * 1.001

    def test_decided_claims_have_none(self, study):
        found = claims(study, evaluation_set(), model_table(PAIR), OPTIONS)

        undecided = found["direction"].isin(["inconclusive", NOT_RESOLVED])
        assert found.loc[~undecided, "images_to_decide"].isna().all()
        needed = found.loc[undecided, "images_to_decide"].dropna()
        assert len(needed)
        assert (needed > N).all()

    def test_a_hyperparameter_that_is_not_resolved(self):
        """As many images as make the F of the present effects significant."""
        difference = 0.02 + 0.2 * (-1.0) ** np.arange(N)
        cells = 0.5 + np.outer(difference, [-0.5, 0.5])
        seeds = 0.5 + 0.1 * np.outer((-1.0) ** np.arange(N), [-1, 1])
        frames = [rows_of("LIME-S", PAIR[0], "insertion", cells)]
        frames.append(rows_of("LIME-seed", PAIR[0], "insertion", seeds))

        found = judge(pd.concat(frames), "16", models=PAIR[:1])

        # Of two settings F is the square of t.
        t, needed = 0.02 / difference.std(ddof=1), found["images_to_decide"]
        assert found["direction"] == NOT_RESOLVED
        assert t * math.sqrt(needed) >= stats.t.ppf(1 - 0.0125, needed - 1) * 0.999
        assert t * math.sqrt(needed - 1) < stats.t.ppf(1 - 0.0125, needed - 2) * 1.001
