"""What the benchmark's pieces compute, never how fast."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import peers
import pictures
import speed
from steadymap import draws
from steadymap.params.schema import Sweep
from steadymap.report.figures import theme

SWEEPS = {
    "smoothgrad": {
        "SG-N": Sweep(vary="n_samples", values=[1, 3], reference=1, fixed={"sigma": 0.1})
    },
    "integrated_gradients": {
        "IG-N": Sweep(
            vary="n_trials", values=[1, 2], reference=1, fixed={"n_steps": 2, "baseline": "uniform"}
        )
    },
    "sliding_patch": {
        "SP-L": Sweep(vary="patch_size", values=[7, 16], reference=7, fixed={"stride": 12}),
        "SP-S": Sweep(
            vary="patch_size",
            values=[7, 9],
            reference=7,
            fixed={"stride": 12, "upsampling": "stretched"},
        ),
    },
    "lime": {
        "LIME-N": Sweep(vary="n_samples", values=[6, 12], reference=12, fixed={"n_superpixels": 8}),
        "LIME-seed": Sweep(
            vary="seed", values=[0, 1], reference=0, fixed={"n_samples": 12, "n_superpixels": 8}
        ),
    },
    "meaningful_perturbation": {
        "MP-N": Sweep(
            vary="n_iterations",
            values=[1, 3],
            reference=3,
            fixed={"mask_size": 4, "jitter": 2, "blur_radius": 4, "init": "random"},
        ),
        "MP-code": Sweep(
            vary="n_iterations",
            values=[1, 3],
            reference=3,
            fixed={"mask_size": 4, "blur_radius": 4, "upsampling": "nearest", "final_blur": 1.0},
        ),
    },
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    made = speed.Case("resnet18", 40, 2, SWEEPS, 5)
    return speed.Bench(made, tmp_path_factory.mktemp("bench"), candidates=(4,))


@pytest.fixture(scope="module")
def rows(bench):
    return speed.compare(bench, repetitions=1)


def test_each_method_has_a_row_and_equals_its_peer(rows):
    """The same noise, baselines, masks, segments, positions and shifts were handed to both."""
    assert [row["method"] for row in rows] == list(SWEEPS)
    for row in rows:
        assert row["equal"], row
        assert 0 < row["passes_seconds"] < row["own_seconds"]
        assert row["fp32_ratio"] == row["fp32_seconds"] / row["own_seconds"]
        assert row["runs"]["own"] == [row["own_seconds"]]
        assert row["runs"]["channels_last"] == [row["channels_last_seconds"]]


def test_batches_are_told(bench):
    kind = {"forward": 4, "gradient": 4, "images": bench.peers["fp32"].images}

    assert bench.batches["own"] == 4
    assert bench.batches["fp32"] == kind


def test_a_setting_of_two_sweeps_counts_twice_for_peers_and_once_when_distinct(bench, rows):
    assert sorted(bench.occurrences("lime").values()) == [1, 2, 2]
    row = next(row for row in rows if row["method"] == "lime")

    assert row["fp32_distinct_seconds"] < row["fp32_seconds"]


@pytest.mark.parametrize(
    "method", ["smoothgrad", "integrated_gradients", "meaningful_perturbation"]
)
def test_another_seed_would_not_pass_as_equal(bench, method, monkeypatch):
    kept = peers.PEERS[method]
    monkeypatch.setitem(
        peers.PEERS,
        method,
        lambda peer, image, targets, names, setting: kept(peer, image, targets, ["other"], setting),
    )

    assert speed.float64_difference(bench, method) > speed._FLOAT64_TOLERANCE


def test_meaningful_perturbation_is_checked_beyond_its_first_step(bench, monkeypatch):
    """Which is the gradient's sign alone: other momenta would not show."""
    kept = torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda rows, lr: kept(rows, lr=lr, betas=(0.8, 0.99)))

    found = speed.float64_difference(bench, "meaningful_perturbation")

    assert found > speed._FLOAT64_TOLERANCE


@pytest.mark.parametrize(
    "method", ["smoothgrad", "integrated_gradients", "meaningful_perturbation"]
)
def test_images_that_a_peer_takes_together_have_the_maps_of_each_alone(bench, tiny, method):
    images, targets = bench.images.double(), [3, 1]
    # Any network shows it; double precision of a large one takes seconds.
    peer = replace(bench.peers["fp32"], model=tiny.double())

    for setting in bench.settings(method):
        chosen = setting.hyperparameters
        together, *alone = (
            peers.PEERS[method](peer, images[part], targets[part], bench.names[part], chosen)()
            for part in (slice(0, 2), slice(0, 1), slice(1, 2))
        )

        scale = float(together.abs().max())
        assert not torch.allclose(together[0], together[1], rtol=0, atol=1e-3 * scale)
        torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-6 * scale)


def test_as_many_images_are_taken_together_as_fill_a_batch(bench):
    peer = replace(bench.peers["fp32"], backward=32, images=8)

    assert peers.together("smoothgrad", peer, {"n_samples": 10}) == 3
    assert peers.together("smoothgrad", peer, {"n_samples": 160}) == 1
    assert peers.together("integrated_gradients", peer, {"n_steps": 10}) == 2
    assert peers.together("meaningful_perturbation", peer, {}) == 8
    assert peers.together("lime", peer, {"n_samples": 20}) == 1


def test_peers_draw_before_they_are_timed(bench, monkeypatch):
    """Nothing is drawn any more once the clock runs."""
    made = [
        peers.PEERS[method](
            bench.peers["fp32"],
            bench.images[:1],
            bench.targets[:1],
            bench.names[:1],
            bench.settings(method)[0].hyperparameters,
        )
        for method in peers.PEERS
    ]
    monkeypatch.setattr(draws, "generator", None)

    for call in made:
        assert call().shape[-2:].numel() > 1


def test_curves_equal_those_of_the_loop(bench):
    found = speed.compare_curves(bench, repetitions=1, step=200)

    assert found["equal"]
    assert found["max_difference"] < 1e-5


def test_covered_images_are_timed_in_part_and_in_whole(bench):
    found = speed.compare_covered(bench, repetitions=1)

    assert [row["patch_size"] for row in found] == [7, 9, 16]
    for row in found:
        assert row["max_difference"] < speed.TOLERANCE
        assert row["ratio"] == row["whole_seconds"] / row["part_seconds"]


def test_similarities_equal_those_of_the_libraries():
    found = speed.compare_similarity(side=48, n_pairs=3, hog_cell=8, repetitions=1)

    assert found["equal"]
    assert found["max_difference"] < 1e-6
    assert found["ratio"] == found["peer_seconds"] / found["own_seconds"]
    assert found["one_thread_ratio"] == found["peer_seconds"] / found["one_thread_seconds"]


def test_summary_sums_over_methods():
    same = {
        "case": "net 8 px",
        "fp32_seconds": 6.0,
        "channels_last_seconds": 4.0,
        "fp32_distinct_seconds": 5.0,
        "channels_last_distinct_seconds": 3.0,
        "passes_seconds": 1.8,
        "own_seconds": 2.0,
        "equal": True,
        "runs": {"own": [2.0, 1.0], "fp32": [6.0, 4.0], "channels_last": [4.0, 3.0]},
    }
    other = {**same, "fp32_seconds": 14.0, "passes_seconds": 1.0, "equal": False}
    other["runs"] = {"own": [2.0, 3.0], "fp32": [14.0, 8.0], "channels_last": [4.0, 1.0]}

    found = speed.summary([same, other], 7.0)

    assert json.loads(json.dumps(found)) == {
        "net 8 px": {
            "sweep_fp32_ratio": 5.0,
            "sweep_channels_last_ratio": 2.0,
            "sweep_fp32_runs": [5.0, 3.0],
            "sweep_channels_last_runs": [2.0, 1.0],
            "sweep_fp32_distinct_ratio": 2.5,
            "sweep_channels_last_distinct_ratio": 1.5,
            "model_time_share": 0.7,
            "similarity_ratio": 7.0,
            "maps_equal": False,
        }
    }


def test_scaled_grids_keep_their_references():
    sweep = Sweep(vary="n_samples", values=[50, 100, 800], reference=50, fixed={"sigma": 0.1})

    made = speed.scaled(sweep, {"n_samples": 100})

    assert made.values == [1, 8]
    assert made.reference == 1
    assert made.fixed == {"sigma": 0.1}


@pytest.mark.parametrize("side", [64, 224])
def test_cases_hold_all_sweeps_of_their_profile(side):
    made = speed.case("googlenet", side, n_images=1)

    assert set(made.sweeps) == set(peers.PEERS)
    for method, sweeps in made.sweeps.items():
        for sweep in sweeps.values():
            assert sweep.reference in sweep.values, method
    assert made.name == f"googlenet {side} px"


def test_the_clock_counts_forward_and_backward_passes_alone():
    with speed.watched() as clock:
        x = torch.ones(3, requires_grad=True)
        torch.autograd.grad((x * x).sum(), x)
        counted = clock.seconds
        (x * x).sum()

    assert 0 < counted == clock.seconds


def test_figures_draw(tmp_path):
    bars = pd.DataFrame(
        {
            "case": ["a 8 px"] * 2,
            "method": ["lime", "sliding_patch"],
            "fp32_ratio": [3.0, 2.0],
            "channels_last_ratio": [2.0, 1.5],
        }
    )
    curves = pd.DataFrame(
        {"axis": ["images"] * 2, "value": [1, 2], "seconds": [1.0, 2.0], "megabytes": [90.0, 91.0]}
    )
    for name, figure in (
        ("bars", pictures.speed_bars(bars)),
        ("curves", pictures.growth_curves(curves)),
    ):
        theme.save(figure, tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as drawn:
            assert np.asarray(drawn.convert("L")).std() > 1


@pytest.mark.slow
def test_growth_measures_each_point_in_its_own_process(monkeypatch):
    import growth

    monkeypatch.setattr(growth, "FIXED", {})
    base = growth.Extent(images=4, side=32, samples=1, batch_size=2)
    table = growth.measured(
        {"images": (2, 4), "settings": (1, 2), "side": (40,), "workers": (2,)}, base
    )

    assert table["value"].tolist() == [2, 4, 1, 2, 40, 2]
    # Four images with one setting stand on two axes, measured once.
    columns = ["seconds", "megabytes"]
    assert table.loc[1, columns].tolist() == table.loc[2, columns].tolist()
    assert (table[["seconds", "megabytes"]] > 0).all(axis=None)
    # Two workers hold a copy each of what one process holds.
    assert table["megabytes"].iloc[-1] > 2 * table["megabytes"].iloc[0]
