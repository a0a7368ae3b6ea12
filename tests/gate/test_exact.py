"""The gate's exact tier, and ten planted changes that it and the statistical tier must name."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import exact_study
from steadymap import draws
from steadymap.attribution import gradients, integrated_gradients, lime, sliding_patch
from steadymap.attribution.model_runner import ModelRunner
from steadymap.gate import baseline as gate_baseline
from steadymap.gate import compare
from steadymap.metrics import accuracy, similarity
from steadymap.models import randomization


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Folder with the study's inputs."""
    folder = tmp_path_factory.mktemp("exact")
    exact_study.write_inputs(folder / "inputs")
    return folder


@pytest.fixture(scope="module")
def pristine(home):
    """Every cell, measured by the code as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        return exact_study.measure(Path("inputs"), Path("pristine"))


@pytest.fixture(scope="module")
def baseline(home, pristine):
    """The same numbers as a baseline, its margins fixed before anything is planted."""
    gate_baseline.accept(
        gate_baseline.read(home / "pristine"), home / "baseline", reason="as it is"
    )
    return gate_baseline.read(home / "baseline")


def of_methods(cells, methods):
    """Cells of these methods alone."""
    made = exact_study.params(methods)
    names = {name for sweeps in made.sweeps.values() for name in sweeps}
    first = cells.index.str.split().str[0]
    second = cells.index.str.split().str[1]
    return cells[first.isin([*names, *methods]) | ((first == "IPR") & second.isin(methods))]


def test_every_number_is_as_expected(pristine):
    told = exact_study.problems(pristine, exact_study.expectations())

    assert not told, "\n".join(
        [
            f"{len(told)} of {len(pristine)} numbers differ; if they should, "
            'python tests/exact_study.py --expect --reason "..."',
            *(f"  {cell}: {text}" for cell, text in told.items()),
        ]
    )


def test_every_method_metric_and_kind_of_unit_is_among_the_cells(pristine):
    cells = " ".join(pristine.index)

    for method in exact_study.params().methods:
        assert f"IPR {method} " in cells
    for unit in exact_study.UNITS:
        assert f"IPR gradient {unit} same ssim/common" in pristine.index
    for metric in (
        *("ssim/common", "ssim/sam", "ssim/wang", "spearman/signed", "pearson/signed"),
        *("hog_pearson/cells4", "insertion/auc", "insertion/auc_over_max", "deletion/auc"),
        *("localization_error/alpha0.25", "iou/alpha0.25", "dynamic_range/raw"),
    ):
        assert f" {metric}" in cells
    assert pristine.notna().all()


def test_expectations_come_from_a_network_that_says_something(pristine):
    """Saturated or flat, it would let changes pass."""
    assert exact_study.WEIGHTS.stat().st_size <= 500_000
    # 1 - SSIM of maps that randomizing a unit hardly changes would be near 0.
    moved = pristine[pristine.index.str.fullmatch(r"IPR \w+ \S+ same ssim/common")]
    assert len(moved) == 10 * len(exact_study.UNITS)
    assert (moved > 0.001).all()
    areas = pristine[pristine.index.str.endswith("insertion/auc")]
    assert ((areas > 0.1) & (areas < 0.95)).all()


# Planted changes: each is a slip that the code could have, put into the code that runs.


def other_window(patch):
    kept = similarity.convention_of
    patch.setattr(
        similarity,
        "convention_of",
        lambda method, name, *, win_size=5: kept(method, name, win_size=win_size + 2),
    )


def explained(patch, module, name, change, after=lambda maps: maps):
    """Let a method see other settings, or its maps be changed."""
    made = getattr(module, name)

    def function(runner, batch, settings):
        changed = [change(dict(setting)) for setting in settings]
        explained = made.explain(
            runner, batch.images, batch.targets, image_ids=batch.image_ids, settings=changed
        )
        return [(after(maps), extra) for maps, extra in explained]

    patch.setattr(module, name, replace(made, function=function, shares_passes=True))


def absolute_sigma(patch):
    explained(patch, gradients, "SMOOTHGRAD", lambda s: s | {"sigma_unit": "absolute"})


def dropped_superpixel(patch):
    kept = lime.regress

    def regress(shown, scores, **options):
        coefficients, r2 = kept(shown, scores, **options)
        return np.append(coefficients[:-1], 0.0), r2

    patch.setattr(lime, "regress", regress)


def short_of_the_last_patch(patch):
    # range(0, side - patch_size, stride) lacks the + 1.
    patch.setattr(
        sliding_patch, "corners", lambda side, size, step: np.arange(0, side - size, step)
    )


def unsigned(patch):
    explained(patch, gradients, "GRADIENT", lambda s: s, after=lambda maps: maps.abs())


def one_seed_for_all(patch):
    kept = draws.generator
    patch.setattr(draws, "generator", lambda seed, *key: kept(0, *key))


def logits_throughout(patch):
    kept = ModelRunner.target_scores

    def scores(self, logits, targets, output):
        return kept(self, logits, targets, "logit")

    patch.setattr(ModelRunner, "target_scores", scores)


def one_trial_fewer(patch):
    explained(
        patch,
        integrated_gradients,
        "INTEGRATED_GRADIENTS",
        lambda s: s | {"n_trials": s["n_trials"] - 1},
    )


def norms_as_trained(patch):
    # Only what initializers set to a constant, BatchNorm's gamma and beta, goes this way.
    patch.setattr(randomization, "_normal_like", lambda trained, generator: trained.double())
    patch.setattr(randomization, "_norms", lambda network, unit: [])


def undivided(patch):
    kept = accuracy.auc

    def auc(curves, *, fractions=None, over_max=False):
        return kept(curves, fractions=fractions)

    patch.setattr(accuracy, "auc", auc)


# Name: what is planted, methods to run, the cell of the exact and of the statistical tier.
PLANTED = {
    "SSIM window": (
        other_window,
        ["smoothgrad"],
        "SG-N n_samples=5 (nested) ssim/common",
        "SG-N net ssim/common mean",
    ),
    "sigma taken as absolute": (
        absolute_sigma,
        ["smoothgrad"],
        "SG-sigma sigma=0.3 (nested) ssim/common",
        "SG-sigma net ssim/common mean",
    ),
    "last superpixel dropped": (
        dropped_superpixel,
        ["lime"],
        "LIME-N n_samples=15 (nested) ssim/common",
        "IPR lime net ssim/common S_same",
    ),
    "off-by-one patch": (
        short_of_the_last_patch,
        ["sliding_patch"],
        "SP-L patch_size=8 ssim/common",
        "SP-L net hog_pearson/cells4 mean",
    ),
    "abs instead of signed": (
        unsigned,
        ["gradient"],
        "gradient insertion/auc_over_max",
        "IPR gradient net ssim/common S_same",
    ),
    "wrong seed use": (
        one_seed_for_all,
        ["lime"],
        "LIME-seed seed=1 (independent) ssim/common",
        "LIME-seed net ssim/common (independent draws) mean",
    ),
    "logit for probability": (
        logits_throughout,
        ["sliding_patch"],
        "SP-L patch_size=14 dynamic_range/raw",
        "SP-L net dynamic_range/raw mean",
    ),
    "one IG trial fewer": (
        one_trial_fewer,
        ["integrated_gradients"],
        "IG-N n_trials=4 (nested) ssim/common",
        "IG-N net ssim/common mean",
    ),
    "BatchNorm not randomized": (
        norms_as_trained,
        ["gradient"],
        "IPR gradient last same ssim/common",
        # A mean over five units, of which one has nothing else: not same, nor surely moved.
        None,
    ),
    "AUC undivided": (
        undivided,
        ["gradient"],
        "gradient insertion/auc_over_max",
        "gradient net insertion/auc_over_max mean",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_change_turns_its_cells_red(name, home, pristine, baseline, monkeypatch):
    plant, methods, exact_cell, statistical_cell = PLANTED[name]
    monkeypatch.chdir(home)
    expected = of_methods(exact_study.expectations(), methods)
    guarded = baseline.of_methods(methods)
    assert not exact_study.problems(of_methods(pristine, methods), expected)
    unchanged = gate_baseline.read(home / "pristine").of_methods(methods)
    assert compare.exit_code(compare.compare(guarded, unchanged)) == 0
    plant(monkeypatch)
    folder = Path(name.lower().replace(" ", "-"))

    found = exact_study.measure(Path("inputs"), folder, methods)

    told = exact_study.problems(found, expected)
    assert exact_cell in told
    table = compare.compare(guarded, gate_baseline.read(folder))
    table["cell"] = [gate_baseline.cell_name(row) for row in table.to_dict("records")]
    print(name, len(told), "of", len(expected), "|", table["verdict"].value_counts().to_dict())
    if statistical_cell is None:
        assert compare.exit_code(table) == 2
    else:
        assert statistical_cell in set(table.loc[table["verdict"] == compare.MOVED, "cell"])
        assert compare.exit_code(table) == 1
