"""Searches: what they ask, what they answer, and the studies that people open."""

import json
import math
import tracemalloc
from types import SimpleNamespace

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from conftest import ROOT, write_model
from mlflow_tables import mirror_sweeps
from steadymap.engine import runner, selection
from steadymap.engine.settings import setting
from steadymap.engine.tasks import largest, reference_of
from steadymap.experiments import cost, searches, similarity_scores
from steadymap.metrics.similarity import normalize
from steadymap.params.checks import overlay
from steadymap.params.checks import validate as validated
from steadymap.params.files import read_yaml
from steadymap.params.schema import EvaluationSet, ParamsError, Search, Statistics
from steadymap.report import build
from steadymap.report.figures import maps as figures_maps
from steadymap.report.figures import theme, training
from steadymap.store.tables import read_table, write_table
from steadymap.store.task_cache import TaskCache
from steadymap.tracking import optuna as tracking_optuna
from steadymap.tracking.entries import Study as TrackedStudy
from steadymap.tracking.sweeps import search_entries
from steadymap.tracking.writer import Origin
from synthetic_study import SWEEPS, Study, write_study

OPTIONS = Statistics(confidence=0.95)
SAMPLERS = ("grid", "random", "qmc", "tpe", "nsga2")


def made(objective="worst_case", sampler="tpe", **changes):
    values = {
        "hyperparameters": {
            "n_samples": {"low": 5, "high": 40, "step": 5},
            "sigma": {"low": 0.1, "high": 0.3, "step": 0.05},
        },
        "objective": objective,
        "sampler": sampler,
        "budget": 40,
        "tau": 0.9 if objective == "cheapest" else None,
    }
    return Search.model_validate({**values, **changes})


class Bench:
    """Scores in closed form; settings in `broken` fail."""

    image_size = 64

    def __init__(self, score, broken=(), rank=lambda values: 1):
        self.score, self.broken, self.rank = score, set(broken), rank
        self.photos = [f"photo {i}" for i in range(12)]
        sizes = SimpleNamespace(of=lambda method: len(self.photos))
        self.params = SimpleNamespace(evaluation_set=sizes)
        self.asked = []

    def outcomes(self, model, reference, wanted):
        found = []
        self.asked.append([made.text for made in wanted])
        for one in wanted:
            values = one.hyperparameters
            if one.text in self.broken:
                found.append(searches.Outcome(one.text, None, message="not finite"))
            else:
                similarity_scores = self.score(values) + 0.01 * np.linspace(-1, 1, len(self.photos))
                found.append(
                    searches.Outcome(
                        one.text, similarity_scores, ranks=self.rank(values) * similarity_scores
                    )
                )
        return found


def valley(values):
    """Lowest at n_samples 10 and sigma .25."""
    return 0.3 + 0.01 * abs(values["n_samples"] - 10) + 2 * abs(values["sigma"] - 0.25)


def climb(values):
    """Reach .9 at 25 samples where sigma is .1, later where it is larger."""
    return 1 - 2.5 / values["n_samples"] * (values["sigma"] / 0.1)


def trials(wanted, bench):
    return searches.trials("smoothgrad", "S", wanted, "googlenet", bench, OPTIONS)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("objective", ["worst_case", "cheapest"])
def test_every_sampler_runs_and_a_replay_asks_the_same(sampler, objective):
    wanted = made(objective, sampler, batch=3)
    score = valley if objective == "worst_case" else climb

    first, second = Bench(score), Bench(score)
    rows, again = trials(wanted, first), trials(wanted, second)

    assert list(rows) == list(searches.COLUMNS)
    assert first.asked == second.asked
    pd.testing.assert_frame_equal(rows, again)
    asked = rows[rows["state"] != "reference"]
    assert asked["trial"].tolist() == list(range(40))
    assert asked["batch"].tolist() == [number // 3 for number in range(40)]
    assert rows["is_best"].sum() == 1
    # A reference in each batch, beside three points.
    assert {len(batch) for batch in first.asked} == {4, 2}


def test_a_setting_that_inverts_a_map_never_holds():
    """All reach tau by SSIM; those of few samples have the maps the other way round."""
    wanted = made("cheapest", "grid")
    bench = Bench(lambda values: 0.95, rank=lambda values: 1 if values["n_samples"] > 20 else -1)

    rows = trials(wanted, bench)

    done = rows[rows["state"] == "complete"]
    samples = done["hyperparameters"].map(lambda text: json.loads(text)["n_samples"])
    assert (done["ssim_mean"] >= wanted.tau).all()
    assert set(done.loc[samples <= 20, "n_inverted"]) == {12}
    assert set(done.loc[samples > 20, "n_inverted"]) == {0}
    assert done.loc[samples <= 20, "spearman_mean"].to_numpy() == pytest.approx(-0.95)
    best = rows[rows["is_best"]].iloc[0]
    assert json.loads(best["hyperparameters"])["n_samples"] == samples[samples > 20].min()


@pytest.mark.parametrize("sampler", ["random", "qmc", "tpe", "nsga2"])
def test_another_seed_asks_other_points(sampler):
    one, two = Bench(valley), Bench(valley)
    trials(made(sampler=sampler), one)
    trials(made(sampler=sampler, seed=1), two)

    assert one.asked != two.asked


def test_grid_asks_every_point_once():
    rows = trials(made(sampler="grid"), Bench(valley))

    points = [json.loads(text) for text in rows["hyperparameters"][1:]]
    assert {(p["n_samples"], p["sigma"]) for p in points} == {
        (n, sigma) for n in range(5, 41, 5) for sigma in (0.1, 0.15, 0.2, 0.25, 0.3)
    }
    assert len(points) == 40


@pytest.mark.parametrize("sampler", ["grid", "tpe", "qmc", "nsga2"])
def test_the_planted_worst_is_found(sampler):
    rows = trials(made(sampler=sampler, budget=60), Bench(valley))

    best = rows[rows["is_best"]].iloc[0]
    found = json.loads(best["hyperparameters"])
    assert best["ssim_mean"] == rows["ssim_mean"].min()
    if sampler == "grid":
        assert (found["n_samples"], found["sigma"]) == (10, 0.25)
    # Of 40 settings, 5 lie within .1 of the lowest.
    assert best["ssim_mean"] <= 0.41


def test_tpe_learns():
    """Its later half asks for better points than its random beginning."""
    rows = trials(made(sampler="tpe", budget=60), Bench(valley))
    similarity_scores = rows["ssim_mean"][1:]

    assert similarity_scores[-20:].mean() < similarity_scores[:10].mean() - 0.05


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_cheapest_that_holds(sampler):
    rows = trials(made("cheapest", sampler, reference={"sigma": 0.1}), Bench(climb))

    done = rows[rows["state"] == "complete"]
    best = done[done["is_best"]].iloc[0]
    holds = done[done["ssim_mean"] >= 0.9]
    passes = holds["forward_passes"] + holds["backward_passes"]
    assert best["ssim_mean"] >= 0.9
    assert best["forward_passes"] + best["backward_passes"] == passes.min()
    if sampler in ("grid", "tpe"):
        assert json.loads(best["hyperparameters"])["n_samples"] == 25


def test_where_nothing_holds_nothing_is_best():
    rows = trials(made("cheapest", tau=0.999), Bench(climb))

    assert not rows["is_best"].any()


def test_cheapest_has_an_answer_where_two_converged_maps_agree():
    """The first point is one of them, whatever the sampler would have asked."""
    for sampler in ("random", "qmc", "tpe", "nsga2"):
        wanted = made("cheapest", sampler, budget=2, reference={"sigma": 0.1})
        assert trials(wanted, Bench(climb))["is_best"].sum() == 1


def test_cheapest_begins_with_two_converged_maps():
    wanted = made("cheapest", reference={"sigma": 0.2}, fixed={"seed": 4})

    rows = trials(wanted, Bench(climb))

    reference, first = (json.loads(text) for text in rows["hyperparameters"][:2])
    assert reference == {**first, "seed": 5}
    assert (first["n_samples"], first["sigma"], first["seed"]) == (40, 0.2, 4)
    assert math.isnan(rows["ssim_mean"][0])


def test_largest_setting_takes_most_passes():
    axes = {"patch_size": {"low": 5, "high": 15}, "stride": {"choices": [3, 9]}}
    wanted = made("cheapest", hyperparameters=axes)

    found = largest("sliding_patch", wanted, 64).hyperparameters

    assert (found["patch_size"], found["stride"]) == (5, 3)
    assert reference_of("sliding_patch", wanted, 64) == largest("sliding_patch", wanted, 64)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("objective", ["worst_case", "cheapest"])
def test_a_failed_point_is_tried_again_and_leaves_no_trace(sampler, objective):
    wanted = made(objective, sampler, budget=40)
    score = valley if objective == "worst_case" else climb
    undisturbed = trials(wanted, Bench(score))
    broken = undisturbed["hyperparameters"][3]

    failed = trials(wanted, Bench(score, [broken]))
    read_or_recompute = trials(wanted, Bench(score))

    row = failed.iloc[3]
    assert (row["state"], row["message"], row["hyperparameters"]) == (
        *("failed", "not finite"),
        broken,
    )
    assert math.isnan(row["ssim_mean"])
    assert len(failed) == len(undisturbed)
    pd.testing.assert_frame_equal(read_or_recompute, undisturbed)


def test_importances_find_the_hyperparameter_that_matters():
    wanted = made(sampler="grid")
    rows = trials(wanted, Bench(lambda v: 0.5 + v["sigma"] + 0.0001 * v["n_samples"]))

    found = searches.importances("smoothgrad", wanted, rows)

    assert list(found) == list(searches.IMPORTANCES)
    shares = found.set_index(["evaluator", "hyperparameters"])["importance"]
    for evaluator in ("fanova", "ped_anova"):
        assert shares[evaluator].sum() == pytest.approx(1)
        assert set(shares[evaluator].index) == {"n_samples", "sigma"}
    assert shares["fanova", "sigma"] > 0.9


def test_importances_do_not_hang_on_the_last_bits_of_a_score():
    wanted = made(sampler="grid")
    # Equal over n_samples: ties, which noise would break at random.
    rows = trials(wanted, Bench(lambda v: 0.5 + round(v["sigma"], 1)))
    noise = np.random.default_rng(0).choice([-1e-16, 0, 1e-16, 2e-16], len(rows))

    found = searches.importances("smoothgrad", wanted, rows)
    noisy = searches.importances(
        "smoothgrad", wanted, rows.assign(ssim_mean=rows["ssim_mean"] + noise)
    )

    pd.testing.assert_frame_equal(noisy, found, check_exact=True)


def test_importances_of_equal_scores_are_not_made_up():
    wanted = made(sampler="grid")
    rows = trials(wanted, Bench(lambda v: 0.5))

    assert searches.importances("smoothgrad", wanted, rows).empty


# A study on disk.


@pytest.fixture(scope="module")
def study(tmp_path_factory, embedded):
    """Tiny study with models and an evaluation set, and one search per objective."""
    root = tmp_path_factory.mktemp("study")
    base = overlay(
        read_yaml(ROOT / "profiles" / "embedded.yaml"), read_yaml(ROOT / "profiles" / "tiny.yaml")
    )
    axes = {"n_samples": {"low": 1, "high": 4, "step": 1}, "sigma": {"low": 0.1, "high": 0.3}}
    one = {"hyperparameters": axes, "budget": 6, "batch": 3, "seed": 0}
    base["search"] = {
        "smoothgrad": {
            "worst": {**one, "objective": "worst_case", "sampler": "tpe"},
            "cheap": {**one, "objective": "cheapest", "sampler": "nsga2", "tau": 0.5},
        },
        "gradient": {},
    }
    results = root / "results" / "tiny"
    for seed, model in enumerate(("googlenet", "googlenet-r")):
        write_model(
            results / "models" / model, model=model, classes=base["data"]["classes"], seed=seed
        )
    labels = embedded.rows("val")["label"].to_numpy()
    rule = EvaluationSet(rule="any", target="label", n_images=9, seed=0)
    chosen = selection.choose(rule, embedded, dict.fromkeys(["googlenet", "googlenet-r"], labels))
    selection.write(chosen, embedded, results / "evaluation_set")
    return root, base


@pytest.fixture
def params(study, monkeypatch):
    root, base = study
    monkeypatch.chdir(root)
    monkeypatch.delenv("STEADYMAP_OPTUNA", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return validated(base)


def test_a_rerun_executes_nothing_and_a_failed_task_is_tried_again(params, tmp_path, monkeypatch):
    cache = TaskCache(tmp_path / "cache")
    execute, broken = runner.execute, []

    def flawed(task, run_context):
        """One setting fails, and with it those that share its pass."""
        if any(one.hyperparameters["sigma"] == broken[0] for one in task.settings):
            raise FloatingPointError("the map of image 3 is not finite")
        return execute(task, run_context)

    whole = searches.TaskEvaluator(params, TaskCache(tmp_path / "whole"))
    expected, shares = searches.run(params, whole)
    assert whole.executed > 0
    row = expected[(expected["search"] == "worst") & (expected["trial"] == 1)].iloc[0]
    broken.append(json.loads(row["hyperparameters"])["sigma"])

    monkeypatch.setattr(runner, "execute", flawed)
    first = searches.TaskEvaluator(params, cache)
    disturbed, _ = searches.run(params, first)
    monkeypatch.setattr(runner, "execute", execute)
    second, third = searches.TaskEvaluator(params, cache), searches.TaskEvaluator(params, cache)
    read_or_recompute, again = searches.run(params, second)
    replayed, _ = searches.run(params, third)

    failed = disturbed[disturbed["state"] == "failed"]
    assert set(failed["model"]) == {"googlenet", "googlenet-r"}
    assert failed["message"].tolist()[0] == "the map of image 3 is not finite"
    assert second.executed > 0
    assert third.executed == 0
    pd.testing.assert_frame_equal(read_or_recompute, expected)
    pd.testing.assert_frame_equal(again, shares)
    pd.testing.assert_frame_equal(replayed, expected)


def test_damaged_maps_are_computed_again_in_the_same_run(params, tmp_path):
    cache = TaskCache(tmp_path)
    first, second = searches.TaskEvaluator(params, cache), searches.TaskEvaluator(params, cache)
    expected, _ = searches.run(params, first)
    damaged = sorted(tmp_path.rglob("*.npz"))[::2]
    for path in damaged:
        path.write_bytes(b"PK")

    again, _ = searches.run(params, second)

    pd.testing.assert_frame_equal(again, expected)
    assert second.executed > 0
    assert second.executed + second.cached == first.executed + first.cached
    assert all(path.stat().st_size > 2 for path in damaged)


@pytest.mark.parametrize("chunk", [8, 128])
def test_scores_and_names_are_those_of_the_sweeps(params, tmp_path, monkeypatch, chunk):
    """A search's point equals what `similarities` says of the same two maps, in any pieces."""
    from steadymap.metrics.similarity import similarities

    monkeypatch.setattr(similarity_scores, "_CHUNK", chunk)
    cache = TaskCache(tmp_path)
    bench = searches.TaskEvaluator(params, cache)
    wanted = params.search["smoothgrad"]["worst"]
    reference = reference_of("smoothgrad", wanted, 32)
    point = setting("smoothgrad", {**reference.hyperparameters, "n_samples": 2})

    found = bench.outcomes("googlenet", reference, [point])[0]

    plan = runner.settings_plan([reference, point], params, ["googlenet"])
    a, b = (
        torch.from_numpy(runner.collected(plan.keys["googlenet", one], cache)[0])
        for one in (reference, point)
    )
    expected = similarities("smoothgrad", a, b, hog_cell=4)["ssim", "common"].numpy()
    np.testing.assert_array_equal(found.scores, expected)
    assert found.task_id == plan.task_id("googlenet", point)


def test_scoring_holds_no_more_for_more_images(params, tmp_path, monkeypatch):
    """Of the reference and of each variant a chunk, of all there are 8 MB each."""
    side, size = 64, params.attribution.block_size
    cache = TaskCache(tmp_path)
    bench = searches.TaskEvaluator(params, cache)
    reference, *wanted = (setting("smoothgrad", {"n_samples": count}) for count in (1, 2, 3))
    lengths = []

    def normalized(maps, **options):
        lengths.append(len(maps))
        return normalize(maps, **options)

    monkeypatch.setattr(similarity_scores, "_CHUNK", 4 * size)
    monkeypatch.setattr(searches.similarity, "normalize", normalized)

    def peak(n):
        keys = {}
        for position, made in enumerate((reference, *wanted)):
            for start in range(0, n, size):
                key = f"{position}{n:x}{start:x}"
                maps = np.random.default_rng(start + position).random((size, side, side))
                cache.write(key, maps.astype(np.float32), {})
                keys.setdefault(("net", made), []).append(key)
        plan = SimpleNamespace(keys=keys, task_id=lambda model, made: made.text)
        tracemalloc.start()
        found = bench._scored(plan, "net", reference, wanted, {})
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert [len(outcome.scores) for outcome in found] == [n, n]
        return most

    peak(4 * size)  # what a first call imports
    few, many = peak(64), peak(512)

    assert many - few < 512 * side * side * 4 / 8
    assert max(lengths) == 4 * size  # doubles are torch's, and not traced


def test_an_empty_search_leaves_empty_tables(params):
    empty = params.model_copy(update={"search": {}})

    searches.write(*searches.run(empty, searches.TaskEvaluator(params, TaskCache("none"))), empty)

    table = read_table(empty.results / "search" / "search.csv")
    assert table.empty
    assert list(table) == list(searches.COLUMNS)


@pytest.fixture
def tables(params, tmp_path):
    """Tables of one sweep and of the searches, the latter by an analytic bench."""
    folder = params.reports / "tables"
    values = {5: 1.0, 10: 0.8, 20: 0.7, 50: 0.6, 80: 0.5}
    tasks, settings = [], []
    for draws, points in (("nested", values), ("independent", {5: 1.0})):
        for value in points:
            same = {"sweep": "SG-N", "model": "googlenet", "value": str(value), "draws": draws}
            tasks.append(
                {
                    **same,
                    "method": "smoothgrad",
                    "hyperparameter": "n_samples",
                    "is_reference": value == 5,
                    "task_id": f"{value:016x}",
                    "hyperparameters": json.dumps({"n_samples": value, "sigma": 0.15}),
                    "forward_passes": value,
                    "backward_passes": value,
                }
            )
    for value, mean in list(values.items())[1:]:
        row = {"sweep": "SG-N", "model": "googlenet", "value": str(value), "draws": "nested"}
        settings.append({**row, "metric": "ssim", "convention": "common", "mean": mean})
    write_table(pd.DataFrame(tasks), folder / "tasks.csv")
    write_table(pd.DataFrame(settings), folder / "settings.csv")
    wanted = params.search["smoothgrad"]["worst"]
    broken = trials(wanted, Bench(valley))["hyperparameters"][2]
    rows = trials(wanted, Bench(valley, [broken])).assign(search="worst")
    write_table(rows, folder / "search.csv")
    return folder


def journal():
    return JournalStorage(JournalFileBackend(str(tracking_optuna.journal_path())))


def test_studies_are_rebuilt_once_and_replaced_when_tables_change(params, tables, tmp_path):
    assert str(tracking_optuna.rebuild_studies(params)) == "2 written, 0 unchanged, 0 deleted"
    size = tracking_optuna.journal_path().stat().st_size
    assert str(tracking_optuna.rebuild_studies(params)) == "0 written, 2 unchanged, 0 deleted"
    assert tracking_optuna.journal_path().stat().st_size == size

    storage = journal()
    study = optuna.load_study(study_name="tiny/smoothgrad/SG-N/googlenet", storage=storage)
    assert [trial.values for trial in study.trials] == [
        [1.0, 10.0],
        [0.8, 20.0],
        [0.7, 40.0],
        [0.6, 100.0],
        [0.5, 160.0],
    ]
    assert study.trials[1].user_attrs["task_id"] == f"{10:016x}"
    assert study.metric_names == ["ssim", "passes"]
    shares = optuna.importance.get_param_importances(study)
    assert list(shares) == ["n_samples"]
    study = optuna.load_study(study_name="tiny/smoothgrad/worst/googlenet", storage=storage)
    states = [trial.state.name for trial in study.trials]
    assert states.count("FAIL") == 1
    shares = optuna.importance.get_param_importances(study)
    assert set(shares) == {"n_samples", "sigma"}

    settings = read_table(tables / "settings.csv")
    write_table(settings.assign(mean=settings["mean"] / 2), tables / "settings.csv")
    (tables / "search.csv").unlink()
    assert str(tracking_optuna.rebuild_studies(params)) == "1 written, 0 unchanged, 1 deleted"
    names = optuna.get_all_study_names(journal())
    assert names == ["tiny/smoothgrad/SG-N/googlenet"]


def test_a_storage_url_and_its_failure(params, tables, tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    monkeypatch.setenv("STEADYMAP_OPTUNA", url)
    assert str(tracking_optuna.rebuild_studies(params)) == "2 written, 0 unchanged, 0 deleted"

    bad = "sqlite:////nowhere/studies.db"
    monkeypatch.delenv("STEADYMAP_OPTUNA")
    named = params.model_copy(
        update={"tracking": params.tracking.model_copy(update={"optuna": bad})}
    )
    with pytest.raises(OSError, match=r"Optuna storage sqlite:////nowhere.*tracking.optuna"):
        tracking_optuna.rebuild_studies(named)


GOOD = {
    "hyperparameters": {
        "n_samples": {"low": 5, "high": 20, "step": 5},
        "sigma": {"choices": [0, 1]},
    },
    "objective": "worst_case",
    "sampler": "grid",
    "budget": 8,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": "cma"}, r"T.sampler: \"cma\"; choose 'grid', 'random'"),
        ({"budget": 0}, r"T.budget: 0; choose greater than or equal to 1"),
        ({"budget": 7}, r"T.budget: 7, but the grid has 8 points; raise it"),
        ({"objective": "best"}, r"T.objective: \"best\"; choose 'worst_case' or 'cheapest'"),
        ({"objective": "cheapest"}, r"T.tau: missing; add the SSIM"),
        ({"tau": 0.9}, r"T.tau: unused by objective worst_case; remove it"),
        ({"models": ["vgg"]}, r"T.models: \"vgg\" is no model of this study"),
        ({"fixed": {"sigma": 0.1}}, r"T.fixed.sigma: it is searched; remove it from fixed"),
        ({"reference": {"sigma": -1}}, r"T.reference.sigma: -1; choose at least 0"),
        ({"reference": {"sgima": 1}}, r"T.reference.sgima: \"sgima\" is no hyper.*'sigma'"),
        (
            {"objective": "cheapest", "tau": 0.9, "reference": {"n_samples": 50}},
            r"T.reference.n_samples: 50 lies outside the search",
        ),
        (
            {"hyperparameters": {"n_sample": {"low": 1, "high": 2}}},
            r"T.hyperparameters.n_sample: \"n_sample\" is no hyperparameter of smoothgrad; did you",
        ),
        (
            {"hyperparameters": {"n_samples": {"low": 0, "high": 2}}},
            r"n_samples.low: 0; choose at least 1",
        ),
        (
            {"hyperparameters": {"n_samples": {"low": 3, "high": 3}}},
            r"n_samples.low: 3 is not below high 3",
        ),
        ({"hyperparameters": {"n_samples": {"low": 3}}}, r"n_samples.high: missing; write low and"),
        (
            {"hyperparameters": {"n_samples": {"low": 1.5, "high": 4}}},
            r"n_samples.low: 1.5; write a whole number",
        ),
        (
            {"hyperparameters": {"sigma": {"low": 0.0, "high": 1, "log": True}}},
            r"sigma.low: 0.0; a log range begins above 0",
        ),
        (
            {"hyperparameters": {"sigma": {"low": 0.1, "high": 1, "log": True, "step": 0.1}}},
            r"sigma.step: 0.1; a log range has no step",
        ),
        (
            {"hyperparameters": {"sigma": {"low": 0.1, "high": 1}}},
            r"sigma: the grid sampler takes a range without log and with a step",
        ),
        (
            {"hyperparameters": {"output": {"low": 0, "high": 1}}},
            r"output: words have no range; write choices: \[logit, probability, sigmoid\]",
        ),
        (
            {"hyperparameters": {"output": {"choices": ["logit", "odds"]}}},
            r"output.choices: \"odds\"; choose one of logit, probability",
        ),
        (
            {"hyperparameters": {"sigma": {"choices": [0.1, 0.2], "low": 0.1}}},
            r"sigma: both choices and a range; keep one",
        ),
        ({"hyperparameters": {}}, r"T.hyperparameters: {}; "),
    ],
)
def test_wrong_searches_are_told_in_a_line(values, changes, message):
    values["search"] = {"smoothgrad": {"T": {**GOOD, **changes}}}

    with pytest.raises(ParamsError, match=message) as caught:
        validated(values, root=ROOT)

    assert str(caught.value).startswith("params.yaml: 1 problem\n")


def test_a_default_reference_must_fit_the_image(values):
    axes = {"stride": {"low": 3, "high": 9}, "fill": {"choices": ["mean", "black"]}}
    values["search"] = {
        "sliding_patch": {"T": {**GOOD, "hyperparameters": axes, "sampler": "tpe"}},
        "nothing": {},
    }
    values["data"]["image_size"] = 48

    with pytest.raises(ParamsError) as caught:
        validated(values, root=ROOT)

    assert "T.reference.patch_size: missing; its default 53 is larger" in str(caught.value)
    assert "search.nothing: not in methods" in str(caught.value)


def test_a_search_may_not_share_a_name_with_a_sweep(values):
    values["search"] = {"smoothgrad": {"SG-N": GOOD}, "lime": {}}

    with pytest.raises(ParamsError, match=r"SG-N is the name of a sweep too; rename one"):
        validated(values, root=ROOT)


def test_runs_have_a_child_per_distinct_setting():
    wanted = made("cheapest", "nsga2", reference={"sigma": 0.1})
    rows = trials(wanted, Bench(climb, ["nothing"]))
    shares = searches.importances("smoothgrad", wanted, rows)

    (parent,) = search_entries(TrackedStudy("tiny", {"search": rows, "importances": shares}))

    asked = rows[rows["state"] != "reference"]
    assert len(parent.children) == asked["task_id"].nunique() < len(asked)
    assert parent.name == "smoothgrad S googlenet"
    assert parent.params["tau"] == "0.9"
    best = rows[rows["is_best"]].iloc[0]
    named = [child for child in parent.children if child.name.endswith(" (best)")]
    assert [child.tags["task_id"] for child in named] == [best["task_id"]]
    assert named[0].metrics["ssim/mean", 0] == pytest.approx(best["ssim_mean"], rel=1e-5)
    assert named[0].metrics["forward_passes", 0] == best["forward_passes"]
    assert parent.metrics["n_trials", 0] == 40
    assert ("importance.fanova/sigma", 0) in parent.metrics


@pytest.mark.parametrize("objective", ["worst_case", "cheapest"])
def test_the_figure_of_a_search(objective, tmp_path):
    rows = trials(made(objective, "random", reference={"sigma": 0.1}), Bench(climb))
    rows.loc[4, ["state", "ssim_mean"]] = "failed", math.nan
    none = rows.assign(state="failed")

    for number, frame in enumerate((rows, none)):
        path = tmp_path / f"{number}.png"
        theme.save(training.search_trials(frame), path)
        assert path.stat().st_size > 1000


def test_plan_knows_the_bound_and_what_is_done(params, tmp_path, monkeypatch):
    speeds = {"googlenet": cost.Throughput(forward=100, gradient=50, training=50)}
    cache = TaskCache(tmp_path)
    planner = cost._Planner(params, speeds, cache)
    before = {line.stage: line for line in planner.searches()}

    # Reference and six trials of at most four samples, nine images, two models.
    worst = before["search worst (at most)"]
    assert worst.backward == 9 * 2 * (50 + 6 * 4)
    assert worst.pending == worst.tasks == 2 * 7 * 2
    assert before["search cheap (at most)"].backward == 9 * 2 * 7 * 4
    searches.write(*searches.run(params, searches.TaskEvaluator(params, cache)), params)
    after = list(planner.searches())
    assert {(line.pending, line.seconds) for line in after} == {(0, 0.0)}


def written(folder):
    """A study with a search of each objective beside its sweeps, one of which nothing holds."""
    reports, results = write_study(folder, Study(n_images=4, sweeps=(SWEEPS[0],), maps=False))
    found, shares = [], []
    for name, wanted in {
        "Worst": made(budget=8),
        "Cheap": made("cheapest", "random", budget=8, tau=0.99),
    }.items():
        broken = trials(wanted, Bench(valley))["hyperparameters"][3]
        rows = trials(wanted, Bench(valley, [broken])).assign(search=name)
        found.append(rows)
        shares.append(searches.importances("smoothgrad", wanted, rows))
    write_table(pd.concat(found), reports / "tables" / "search.csv")
    write_table(pd.concat(shares), reports / "tables" / "importances.csv")
    return reports, results


def test_the_report_says_what_was_found_and_what_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(figures_maps, "DPI", 40)
    monkeypatch.setattr(theme, "DPI", 40)
    reports, results = written(tmp_path)

    files = build.build(reports, results, study="toy")

    text = " ".join(files.details.read_text().split())
    rows = read_table(reports / "tables" / "search.csv")
    best = rows[rows["is_best"]].iloc[0]
    assert "lowest mean SSIM to the map at n_samples=50" in text
    assert f"{best['ssim_mean']:.3f} [{best['ci_low']:.3f}, {best['ci_high']:.3f}]" in text
    assert "| none holds |" in text
    assert "Failed: not finite" in text
    assert "PED-ANOVA" in text
    assert "n_samples x sigma" not in text
    assert {"Worst-trials", "Cheap-trials"} <= {path.stem for path in files.figures}


def test_searches_are_mirrored_once(tmp_path):
    reports, _ = written(tmp_path / "study")
    tables = {path.stem: read_table(path) for path in (reports / "tables").glob("*.csv")}
    origin, uri = Origin("toy"), f"sqlite:///{tmp_path / 'mlflow.db'}"

    first = mirror_sweeps(tables, origin=origin, uri=uri)
    again = mirror_sweeps(tables, origin=origin, uri=uri)
    tables["search"] = tables["search"][tables["search"]["search"] == "Worst"]
    fewer = mirror_sweeps(tables, origin=origin, uri=uri)

    cheap = made("cheapest", "random", budget=8, tau=0.99)
    n_cheap = trials(cheap, Bench(valley))["task_id"][1:].nunique()
    assert first.created > 10
    assert (again.created, again.updated, again.superseded) == (0, 0, 0)
    assert fewer.superseded == 1 + n_cheap


def test_a_method_with_fewer_images_is_priced_and_judged_by_its_own():
    """The set has four images, SmoothGrad takes its first three."""
    made = setting("smoothgrad", {"n_samples": 5})
    evaluator = SimpleNamespace(
        photos=["a", "b", "c", "d"],
        image_size=32,
        params=SimpleNamespace(
            evaluation_set=EvaluationSet(n_images=4, of_methods={"smoothgrad": 3})
        ),
    )
    scores = np.array([0.5, 0.6, 0.7])
    outcome = searches.Outcome("task", scores, ranks=scores)

    row = searches._result(made, outcome, evaluator, Statistics())

    assert row["backward_passes"] == 3 * 5
    assert row["ci_low"] < 0.6 < row["ci_high"]
