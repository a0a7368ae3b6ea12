"""A study once more: its seeds, its passes, and whether chance alone stays green."""

import importlib.util
import sys
from pathlib import Path

import pytest

import exact_study
from conftest import ROOT
from steadymap.engine.settings import points
from steadymap.gate import baseline, provenance, reruns
from steadymap.metrics import accuracy
from steadymap.params.checks import validate


@pytest.fixture
def params(values):
    """The embedded study's."""
    return validate(values)


def seeds(params, method):
    return [
        point.setting.hyperparameters.get("seed") for point in points(method, params.sweeps[method])
    ]


def test_every_seed_moves_and_nothing_else(params):
    made = reruns.reseeded(params, 1000)

    for method in params.methods:
        before, after = (points(method, one.sweeps[method]) for one in (params, made))
        for old, new in zip(before, after, strict=True):
            expected = dict(old.setting.hyperparameters)
            if "seed" in expected:
                expected["seed"] += 1000
            assert new.setting.hyperparameters == expected
            assert (new.sweep, new.draws, new.is_reference) == (
                old.sweep,
                old.draws,
                old.is_reference,
            )
    assert seeds(made, "lime")[:5] == [1000, 1001, 1002, 1003, 1004]
    randomized = made.randomization.methods
    assert randomized["lime"].hyperparameters["seed"] == 1000
    assert "seed" not in randomized["gradient"].hyperparameters
    # Draws of weights are not the method's.
    assert made.randomization.seed == params.randomization.seed
    assert made.search == {}


def test_a_seed_of_an_own_method_moves_too(own_values):
    own_values["sweeps"]["counted"] = {}
    params = validate(own_values)

    made = reruns.reseeded(params, 1000, methods=["counted", "gradient"])

    assert "counted" in reruns.stochastic(params)
    assert made.methods == ["gradient", "counted"]
    assert seeds(made, "counted") == [1003]


def test_a_shift_of_nothing_changes_no_setting(params):
    made = reruns.reseeded(params, 0)

    for method in params.methods:
        assert points(method, made.sweeps[method]) == points(method, params.sweeps[method])


def test_a_stochastic_method_without_sweeps_keeps_its_cell(values):
    values["sweeps"]["lime"] = {}

    made = reruns.reseeded(validate(values), 7)

    (point,) = points("lime", made.sweeps["lime"])
    assert (point.sweep, point.hyperparameter, point.value) == ("default", "", "")
    assert point.setting.hyperparameters["seed"] == 7


def test_methods_can_be_left_out(params):
    made = reruns.reseeded(params, 1, methods=["smoothgrad"])

    assert made.methods == list(made.sweeps) == list(made.randomization.methods) == ["smoothgrad"]
    with pytest.raises(ValueError, match="method 'smoothgard' is not in the study"):
        reruns.reseeded(params, 1, methods=["smoothgard"])


def test_stochastic_methods_are_those_with_a_seed(params):
    assert reruns.stochastic(params) == [
        "smoothgrad",
        "integrated_gradients",
        "lime",
        "meaningful_perturbation",
    ]


def test_passes_count_shared_samples_once(params):
    made = reruns.reseeded(params, 1, methods=["smoothgrad"])

    inner = len(accuracy.fractions(64 * 64, params.accuracy.pixels(64))) - 2
    # SG-N: 100 nested samples and 5 of the other reference; SG-sigma: three times 50. Nine maps
    # with two curves each.
    assert reruns.passes(made) == (16 * (255 + 9 * 2 * inner), 16 * 255)


def test_a_rerun_does_not_write_into_what_it_shares(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = exact_study.params(["gradient"])

    with pytest.raises(ValueError, match="needs a folder of its own"):
        reruns.measure(made, shared=made.results, folder=tmp_path / "out", cache=tmp_path)
    with pytest.raises(FileNotFoundError, match="data: no such folder"):
        reruns.measure(made, shared=tmp_path / "none", folder=tmp_path / "out", cache=tmp_path)


@pytest.mark.slow
def test_other_seeds_and_blocks_stay_green(tmp_path, monkeypatch):
    """The script on the exact tier's study: five reruns for margins, five that have to be green."""
    monkeypatch.chdir(tmp_path)
    home = Path("results/exact")
    exact_study.write_inputs(home)
    made = exact_study.params(["smoothgrad", "lime"])
    made = made.model_copy(update={"study": "exact-again"})
    reruns.measure(made, shared=home, folder=Path("reports/exact"), cache=Path(".cache"))
    # No source file made these tables: none can be newer than they are.
    provenance.keep_sources([], Path("reports/exact"))
    monkeypatch.syspath_prepend(ROOT / "stages")
    spec = importlib.util.spec_from_file_location("rerun", ROOT / "stages" / "reruns.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "load", exact_study.params)
    monkeypatch.setattr(sys, "argv", ["reruns.py", "--methods", "smoothgrad", "lime"])

    assert script.main() == 0

    told = Path("reports/gate/exact/reruns.md").read_text()
    assert told.startswith("# 5 of 5 reruns with other method seeds are green")
    base = baseline.read(Path("reports/gate/exact/baseline"))
    assert (base.margins["margin"] > baseline.LEAST_MARGIN).any()
