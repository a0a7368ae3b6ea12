"""The audit of tools' default counts, on a network and photographs that are small."""

import importlib.util
import inspect
from importlib.metadata import version

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from PIL import Image
from scipy import stats
from skimage.metrics import structural_similarity
from torch import nn

from conftest import ROOT
from steadymap import attribute, explainable
from steadymap.attribution import EXPLAINERS
from steadymap.models.registry import build
from steadymap.store.tables import read_table
from steadymap.store.task_cache import TaskCache

SCRIPT = ROOT / "studies" / "defaults.py"
spec = importlib.util.spec_from_file_location("defaults", SCRIPT)
defaults = importlib.util.module_from_spec(spec)
spec.loader.exec_module(defaults)

SMALL = defaults.Default("smoothgrad", {"n_samples": 3}, "Tool 1.0 (n)")


@pytest.fixture
def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(64, 5))


@pytest.fixture
def audit(network, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3), dtype=np.uint8)
    model = explainable(network, mean=[0.5], std=[0.25])
    return defaults.Audit(model, "0" * 64, ["a", "b", "c"], pixels, TaskCache(tmp_path / "cache"))


def write_photographs(folder):
    random = np.random.default_rng(0)
    for name in ("n01/x.JPEG", "n01/y.JPEG", "n02/z.png", "n02/notes.txt"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("no photograph")
        else:
            Image.fromarray(random.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)


def test_every_default_is_a_setting_with_a_tool_and_its_version():
    found = defaults.read_defaults(ROOT / "studies" / "defaults.yaml")

    assert {one.method for one in found} <= set(EXPLAINERS)
    counts = {}
    for one in found:
        assert one.at(0) != one.at(1)
        assert one.tools
        counts.setdefault(one.method, set()).add(one.count)
    assert counts == {
        "lime": {10, 25, 150, 1000, 5000},
        "smoothgrad": {5, 20, 50},
        "integrated_gradients": {20, 50, 100, 300},
    }


def test_defaults_of_installed_tools_are_those_that_they_have():
    captum = pytest.importorskip("captum.attr")
    lime_image = pytest.importorskip("lime.lime_image")
    rows = defaults.read_defaults(ROOT / "studies" / "defaults.yaml")
    functions = {
        "NoiseTunnel.attribute, nt_samples": captum.NoiseTunnel.attribute,
        "Lime.attribute, n_samples": captum.Lime.attribute,
        "IntegratedGradients.attribute, n_steps": captum.IntegratedGradients.attribute,
        "LimeImageExplainer.explain_instance, num_samples": (
            lime_image.LimeImageExplainer.explain_instance
        ),
    }

    for where, function in functions.items():
        (row,) = [one for one in rows if f"({where})" in one.tools]
        package = "lime" if function.__module__.startswith("lime") else "captum"
        name = where.split(", ")[1]
        assert inspect.signature(function).parameters[name].default == row.count
        if version(package) in ("0.9.0", "0.2.0.1"):
            assert version(package) in row.tools


def test_photographs_come_from_each_class_in_turn(tmp_path):
    write_photographs(tmp_path)

    names, pixels = defaults.photographs(tmp_path, 2, 16)

    assert names == ["n01/x.JPEG", "n02/z.png"]
    assert pixels.shape == (2, 16, 16, 3)
    with pytest.raises(ValueError, match="has 3 photographs"):
        defaults.photographs(tmp_path, 4, 16)


def test_overlap_of_the_strongest_tenth():
    a = torch.zeros((2, 10, 10))
    b = torch.zeros((2, 10, 10))
    a[:, 0] = torch.arange(10.0) + 1
    b[0, 0, :5], b[0, 1, :5] = -3, 2
    b[1] = a[1]

    # Five of ten pixels; all.
    assert defaults.top_overlap(a, b).tolist() == [0.5, 1.0]
    # A map of one value is all of it strongest: 10 of 100 pixels in common, Dice 20 / 110.
    assert defaults.top_overlap(a[:1], torch.ones((1, 10, 10))).tolist() == [20 / 110]


def test_scores_are_those_of_two_seeds(audit):
    rows = audit.measure(SMALL)

    one, other = (np.concatenate([*audit.maps(SMALL, seed)]) for seed in defaults.SEEDS)
    image = torch.from_numpy(audit.pixels[1]).permute(2, 0, 1)[None].float() / 255
    target = int(audit.model(image).argmax())
    again = attribute(
        "smoothgrad", audit.model, image, [target], image_ids=["b"], n_samples=3, seed=1
    )
    assert (again.numpy()[0] == other[1]).all()
    a, b = (maps[1].astype(float) / np.abs(maps[1]).max() for maps in (one, other))
    row = rows.iloc[1]
    assert row["spearman"] == pytest.approx(stats.spearmanr(a, b, axis=None).statistic)
    assert row["ssim"] == pytest.approx(structural_similarity(a, b, data_range=2, win_size=5))
    chance = stats.spearmanr(one[1], other[0], axis=None).statistic
    assert row["chance_spearman"] == pytest.approx(chance)
    assert (row["forward"], row["backward"]) == (3, 3)


def test_what_is_finished_is_not_computed_again(audit, monkeypatch):
    first = audit.measure(SMALL)

    def refuse(*arguments, **options):
        raise AssertionError("computed again")

    monkeypatch.setattr(defaults, "attribute", refuse)

    pd.testing.assert_frame_equal(audit.measure(SMALL), first)


def test_blank_maps_are_left_out_and_counted():
    rows = pd.DataFrame(
        {
            **{"method": "lime", "count": 10, "tools": "Tool 1.0 (n)", "forward": 10},
            **{"backward": 0, "image_id": list("abc"), "degenerate": [False, False, True]},
            **{name: [0.2, 0.4, 1.0] for name in defaults.MEASURES},
            **{f"chance_{name}": [0.0, 0.1, 0.5] for name in defaults.MEASURES},
        }
    )

    (row,) = defaults.summary(rows).to_dict("records")

    assert row["ssim"] == pytest.approx(0.3)
    assert row["chance_top"] == pytest.approx(0.05)
    assert row["ssim_low"] < 0.3 < row["ssim_high"]
    assert (row["n_images"], row["n_degenerate"]) == (2, 1)


def test_the_command_writes_tables_figure_and_page(tmp_path):
    write_photographs(tmp_path / "val")
    torch.manual_seed(0)
    weights = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(build("squeezenet1_0", 1000).state_dict(), weights)
    few = tmp_path / "few.yaml"
    tool = "[{tool: Tool, version: '1.0', where: n}]"
    few.write_text(
        f"- {{method: smoothgrad, hyperparameters: {{n_samples: 2}}, tools: {tool}}}\n"
        f"- {{method: lime, hyperparameters: {{n_samples: 4, n_superpixels: 4}}, tools: {tool}}}\n"
    )

    defaults.main(
        [
            *("--weights", str(weights), "--photographs", str(tmp_path / "val"), "--n", "2"),
            *("--side", "48", "--defaults", str(few), "--cache", str(tmp_path / "cache")),
            *("--output", str(tmp_path / "out")),
        ]
    )

    table = read_table(tmp_path / "out" / "defaults.csv")
    assert table["count"].tolist() == [2, 4]
    assert (tmp_path / "out" / "defaults.png").stat().st_size > 1000
    assert len(read_table(tmp_path / "out" / "images.csv")) == 4
    page = (tmp_path / "out" / "README.md").read_text()
    assert "| lime | 4 | Tool 1.0 (n) |" in page
