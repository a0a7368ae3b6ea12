"""Comparisons on a small study in a folder, and their parts in closed form."""

import shutil
from contextlib import chdir

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from skimage.metrics import structural_similarity

from conftest import ROOT, write_model
from steadymap.analysis import tables
from steadymap.attribution import attribute
from steadymap.engine import evaluation_set, runner, selection
from steadymap.engine.settings import points
from steadymap.experiments import accuracy_scores, comparisons, convergence, cost
from steadymap.experiments.comparisons import (
    Inputs,
    area_above_half,
    composite,
    noise_inputs,
    noisy,
    object_inputs,
)
from steadymap.metrics import structure
from steadymap.models.registry import load
from steadymap.params.checks import overlay, validate
from steadymap.params.files import read_yaml
from steadymap.params.schema import EvaluationSet, Statistics
from steadymap.statistics.pairing import mismatched
from steadymap.store.maps import Maps
from steadymap.store.tables import read_table
from steadymap.store.task_cache import TaskCache

CHANGES = {
    # A name of its own: workers remember models and images by their relative folder.
    "study": "pairs",
    "models": {"regular": ["googlenet", "other"], "robust": ["googlenet"]},
    "training": {"other": {"architecture": "googlenet", "epochs": 1}},
    "evaluation_set": {"n_images": 4},
    "methods": ["gradient", "smoothgrad", "sliding_patch", "input_x_gradient", "guided_backprop"],
    "sweeps": {
        "gradient": {},
        "smoothgrad": {
            "SG-N": {
                "vary": "n_samples",
                "values": [2, 4],
                "reference": 2,
                "fixed": {"sigma": 0.15},
            }
        },
        "sliding_patch": {
            "SP-L": {
                "vary": "patch_size",
                "values": [5, 9],
                "reference": 9,
                "fixed": {"stride": 9, "fill": "gray", "upsampling": "stretched"},
            }
        },
        "input_x_gradient": {},
        "guided_backprop": {},
    },
    "comparisons": {
        "noise": {"variances": [0.1, 0.01], "seed": 0},
        "denoising": [
            {"towards": "gradient", "sweep": "SG-N"},
            {"towards": "input_x_gradient", "sweep": "SG-N"},
        ],
        "distance": "SG-N",
        "budget": {"tau": [0.5, 0.95], "share": 0.9},
        "object_size": {
            "object_sizes": [8, 20],
            "patch_sizes": [9, 13],
            "stride": 9,
            "n_images": 2,
        },
        # 2 samples are in the sweep, 3 in none; integrated gradients are no method of the study.
        "teaser": {
            "smoothgrad": {"vary": "n_samples", "values": [2, 3], "fixed": {"sigma": 0.15}},
            "integrated_gradients": {
                "vary": "n_steps",
                "values": [2, 4],
                "fixed": {"baseline": "mean"},
            },
        },
    },
}
MODELS = ["googlenet", "googlenet-r", "other"]
STATISTICS = Statistics(confidence=0.95)


def params_with(**changes):
    base = overlay(
        read_yaml(ROOT / "profiles" / "embedded.yaml"), read_yaml(ROOT / "profiles" / "tiny.yaml")
    )
    # Nothing of the profile but the small data and models.
    base.update(sweeps={}, search={}, comparisons={})
    return validate(overlay(overlay(base, CHANGES), changes))


def attribute_study(params, cache):
    for method in params.methods:
        made = runner.study_plan(method, params)
        run_context = runner.RunContext(
            params.results / "models", params.results / "evaluation_set", params.attribution
        )
        runner.run(made.tasks, cache=cache, run_context=run_context, title=method)
        folder = params.results / "maps" / method
        runner.assemble(method, made, cache=cache, run_context=run_context, folder=folder)


def compare(params, root):
    return comparisons.run(params, cache=TaskCache(root / "tasks"), inputs=root / "inputs")


@pytest.fixture(scope="module")
def study(tmp_path_factory, embedded):
    """A study of three models and four images with its maps and comparisons; params and run."""
    root = tmp_path_factory.mktemp("comparisons")
    with chdir(root):
        params = params_with()
        for seed, model in enumerate(MODELS):
            folder = params.results / "models" / model
            write_model(folder, model=model, classes=list(params.data.classes), seed=seed)
        labels = embedded.rows("val")["label"].to_numpy()
        rule = EvaluationSet(rule="any", target="label", n_images=4, seed=0)
        chosen = selection.choose(rule, embedded, dict.fromkeys(MODELS, labels))
        selection.write(chosen, embedded, params.results / "evaluation_set")
        attribute_study(params, TaskCache(root / "tasks"))
        ran = compare(params, root)
    return root, params, ran


@pytest.fixture
def results(study, monkeypatch):
    """Folder of the comparisons, with the study as working directory."""
    root, params, _ = study
    monkeypatch.chdir(root)
    return params.results / "comparisons"


def table(results):
    return read_table(results / "comparisons.parquet")


# Noise


def test_noise_has_the_variance_that_it_is_named_after():
    gray = np.full((200, 200, 3), 128, np.uint8)

    found = noisy(gray, "a", variance=0.01).astype(float) / 255

    # Half a level of rounding, and hardly a pixel that is clipped.
    assert found.var() == pytest.approx(0.01, rel=0.02)
    assert found.mean() == pytest.approx(128 / 255, abs=0.001)


def test_strong_noise_is_clipped_not_rescaled():
    black = np.zeros((200, 200, 3), np.uint8)

    found = noisy(black, "a", variance=0.1).astype(float) / 255

    # Half of the Gaussian ends at 0; the mean of the other half, cut at 1.
    sigma = np.sqrt(0.1)
    end = 1 / sigma
    expected = sigma * (stats.norm.pdf(0) - stats.norm.pdf(end)) + stats.norm.sf(end)
    assert (found == 0).mean() == pytest.approx(0.5, abs=0.01)
    assert found.mean() == pytest.approx(expected, rel=0.01)


def test_levels_are_rounded_not_truncated():
    image = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)

    assert (noisy(image, "a", variance=1e-12) == image).all()


def test_noise_is_keyed_by_image_and_seed_alone(embedded):
    rows = embedded.rows("val")[:4].rename(columns={"id": "image_id"})
    inputs = Inputs(rows, pd.DataFrame(), embedded.images["val"][:4])
    turned = Inputs(rows.iloc[::-1], pd.DataFrame(), embedded.images["val"][:4][::-1])

    found = noise_inputs(inputs, variance=0.1, seed=0).pixels

    assert (noise_inputs(turned, variance=0.1, seed=0).pixels[::-1] == found).all()
    gray = np.full((32, 32, 3), 128, np.uint8)
    drawn = [noisy(gray, name, variance=0.01, seed=seed) for name, seed in ["a0", "b0", "a1"]]
    assert (drawn[0] != drawn[1]).mean() > 0.9
    assert (drawn[0] != drawn[2]).mean() > 0.9


def test_noisy_images_are_an_evaluation_set(study, results):
    _, params, _ = study
    rows, targets, pixels = evaluation_set.read(results / "noise-0.1")
    clean, clean_targets, clean_pixels = evaluation_set.read(params.results / "evaluation_set")

    assert rows["image_id"].tolist() == clean["image_id"].tolist()
    assert rows.drop(columns="sha256").equals(clean.drop(columns="sha256"))
    assert set(rows["sha256"]).isdisjoint(clean["sha256"])
    assert targets.equals(clean_targets)
    expected = noisy(clean_pixels[2], clean["image_id"][2], variance=0.1)
    assert (pixels[2] == expected).all()


@pytest.mark.parametrize("method", ["gradient", "input_x_gradient"])
def test_noise_rows_compare_clean_with_noisy_maps(study, results, method):
    _, params, _ = study
    rows, targets, pixels = evaluation_set.read(results / "noise-0.01")
    chosen = targets[targets["model"] == "other"].set_index("image_id")["target"]
    expected = attribute(
        method,
        load(params.results / "models" / "other"),
        evaluation_set.as_images(pixels),
        [int(chosen[name]) for name in rows["image_id"]],
        image_ids=list(rows["image_id"]),
        batch_size=16,
    ).numpy()
    setting = points(method, {})[0].setting.hyperparameters
    archive = Maps(results / "noise-0.01" / "maps" / method)
    assert (archive.read("other", setting) == expected).all()
    assert archive.models == MODELS

    found = table(results)
    found = found[found["comparison"] == f"{method}-noise"]
    clean = Maps(params.results / "maps" / method).read("other", setting)[3].astype(float)
    noise = expected[3].astype(float)
    score = structural_similarity(
        clean / abs(clean).max(), noise / abs(noise).max(), data_range=2, win_size=5
    )
    one = found[
        (found["model"] == "other")
        & (found["value"] == "0.01")
        & (found["image_id"] == rows["image_id"][3])
        & (found["metric"] == "ssim")
        & (found["convention"] == "common")
    ]
    assert one["score"].item() == pytest.approx(score, abs=1e-9)
    # 3 models, 2 variances, 4 images; SSIM by 3 conventions and 3 other scores.
    assert len(found) == 3 * 2 * 4 * 7
    assert set(found["role"]) == {"self"}
    assert set(found["other"]) == {""}
    assert set(found["pairing"]) == {"same"}


def test_no_noise_scores_one(study, tmp_path, results):
    root, _, _ = study
    params = params_with(comparisons={"noise": {"variances": [1e-12]}, "teaser": None})

    with chdir(tmp_path):
        shutil.copytree(root / "results", "results")
        compare(params, root)
        found = table(params.results / "comparisons")

    same = found[found["comparison"].str.endswith("-noise")]
    assert len(same) == 2 * 3 * 4 * 7
    assert (same.loc[same["metric"] == "ssim", "score"] == 1).all()
    assert same["score"].to_numpy() == pytest.approx(1, abs=1e-12)


# De-noising


def test_denoising_rows_are_complete(results):
    found = table(results)
    found = found[found["comparison"] == "denoising-gradient"]
    ssim = found[(found["metric"] == "ssim") & (found["convention"] == "common")]

    # googlenet and other against googlenet-r, same and mismatched, 4 images.
    counted = ssim.groupby(["method", "value"]).size()
    assert counted.to_dict() == {
        ("gradient", "0"): 16,
        ("guided_backprop", ""): 16,
        ("smoothgrad", "2"): 16,
        ("smoothgrad", "4"): 16,
    }
    assert len(found) == 7 * len(ssim)
    assert not found.duplicated(found.columns[:10].tolist()).any()
    roles = ssim.groupby(["model", "other"])["role"].unique()
    assert {pair: list(names) for pair, names in roles.items()} == {
        ("googlenet", "googlenet-r"): ["twin"],
        ("other", "googlenet-r"): ["control"],
    }
    assert set(table(results)["comparison"]) >= {"denoising-input_x_gradient"}


@pytest.mark.parametrize("pairing", ["same", "mismatched"])
def test_denoised_maps_are_held_against_the_plain_robust_one(study, results, pairing):
    _, params, _ = study
    rows, _, _ = evaluation_set.read(params.results / "evaluation_set")
    smooth = Maps(params.results / "maps" / "smoothgrad")
    plain = Maps(params.results / "maps" / "gradient")
    order = {"same": np.arange(4), "mismatched": mismatched(rows)}[pairing]
    nested = next(made for made in smooth.settings if made["n_samples"] == 4)
    a = smooth.read("googlenet", nested)
    b = plain.read("googlenet-r", plain.settings[0])[order]

    found = table(results)
    found = found[
        (found["comparison"] == "denoising-gradient")
        & (found["model"] == "googlenet")
        & (found["value"] == "4")
        & (found["pairing"] == pairing)
        & (found["metric"] == "spearman")
    ]

    assert found["image_id"].tolist() == rows["image_id"].tolist()
    expected = [stats.spearmanr(x.ravel(), y.ravel()).statistic for x, y in zip(a, b, strict=True)]
    assert found["score"].tolist() == pytest.approx(expected, abs=1e-9)


def images_of(photos, classes):
    names = [f"val-{i}" for i in range(len(photos))]
    return pd.DataFrame({"image_id": names, "photo": photos, "class_name": classes})


def test_mismatched_is_the_next_image_where_all_differ():
    found = mismatched(images_of(list("abcde"), list("vwxyz")))

    assert found.tolist() == [1, 2, 3, 4, 0]


def test_mismatched_takes_another_photograph_and_another_class():
    rows = images_of(list("aabbccaa"), list("xyxyxyyx"))

    found = mismatched(rows)

    assert sorted(found) == list(range(8))
    for key in ("photo", "class_name"):
        assert (rows[key].to_numpy() != rows[key].to_numpy()[found]).all()


def test_mismatched_never_pairs_an_image_with_itself():
    # All share everything; an unknown photograph is nobody else's.
    for photos in ("aaaaa", [""] * 5):
        found = mismatched(images_of(list(photos), list("xxxxx")))

        assert sorted(found) == list(range(5))
        assert (found != np.arange(5)).all()


def test_one_image_can_not_be_mismatched():
    with pytest.raises(ValueError, match="1 image has no other to be paired with; take at least 2"):
        mismatched(images_of(["a"], ["x"]))


# Distance


def test_distance_is_the_mean_difference_of_scaled_maps(study, results):
    _, params, _ = study
    maps = Maps(params.results / "maps" / "smoothgrad")
    small, large = (
        next(made for made in maps.settings if made["n_samples"] == n and made["seed"] == 0)
        for n in (2, 4)
    )
    a, b = (maps.read("googlenet-r", made)[1].astype(float) for made in (small, large))

    found = table(results)
    found = found[(found["comparison"] == "distance") & (found["model"] == "googlenet-r")]

    assert set(found["value"]) == {"2-4"}
    assert set(found["metric"]) == {"l1", "ssim", "spearman", "pearson", "hog_pearson"}
    l1 = found[found["metric"] == "l1"]
    assert set(l1["convention"]) == {"max_abs"}
    expected = abs(a / abs(a).max() - b / abs(b).max()).mean()
    assert l1["score"].tolist()[1] == pytest.approx(expected, abs=1e-12)


def test_distance_needs_numbers(study, monkeypatch):
    root, _, _ = study
    monkeypatch.chdir(root)
    sweep = {"vary": "sigma_unit", "values": ["range", "absolute"], "reference": "range"}
    params = params_with(
        sweeps={"smoothgrad": {"unit": sweep}},
        comparisons={
            "distance": "unit",
            "noise": None,
            "denoising": [],
            "object_size": None,
            "teaser": None,
        },
    )

    with pytest.raises(ValueError, match=r"comparisons\.distance: 'unit' has no smallest and larg"):
        compare(params, root)


def test_a_sweep_must_belong_to_one_method(study, monkeypatch):
    root, _, _ = study
    monkeypatch.chdir(root)
    params = params_with(
        sweeps={"gradient": {"default": {}}, "guided_backprop": {"default": {}}},
        comparisons={"denoising": [{"towards": "gradient", "sweep": "default"}], "noise": None},
    )

    with pytest.raises(ValueError, match="'default' is a sweep of gradient, guided_backprop; name"):
        compare(params, root)


# Object size


def test_a_composite_is_the_scaled_object_in_the_middle_of_black():
    pixels = np.full((64, 64, 3), (10, 20, 30), np.uint8)
    mask = np.zeros((64, 64), bool)
    mask[5:45, 30:50] = True
    pixels[mask] = (200, 100, 50)

    image, where = composite(pixels, mask, size=10)

    expected = np.zeros((64, 64), bool)
    expected[27:37, 29:34] = True
    assert (where == expected).all()
    assert (image[where] == (200, 100, 50)).all()
    assert (image[~where] == 0).all()


@pytest.mark.parametrize("size", [10, 20, 60])
def test_the_mask_scales_with_the_object(size):
    y, x = np.mgrid[:64, :64]
    disc = (y - 30) ** 2 + (x - 20) ** 2 <= 15**2

    _, where = composite(np.full((64, 64, 3), 90, np.uint8), disc, size=size)

    assert where.sum() == pytest.approx(disc.sum() * (size / 31) ** 2, rel=0.04)
    center = [place.mean() for place in np.nonzero(where)]
    assert center == pytest.approx([31.5, 31.5], abs=0.01)


def test_no_old_background_bleeds_into_a_composite():
    y, x = np.mgrid[:64, :64]
    disc = (y - 30) ** 2 + (x - 20) ** 2 <= 15**2
    pixels = np.full((64, 64, 3), 255, np.uint8)
    pixels[disc] = 0

    image, _ = composite(pixels, disc, size=12)

    assert not image.any()


def test_what_a_composite_can_not_be_made_of():
    pixels = np.zeros((32, 32, 3), np.uint8)

    with pytest.raises(ValueError, match="the mask is empty; give the pixels of an object"):
        composite(pixels, np.zeros((32, 32), bool), size=8)
    with pytest.raises(ValueError, match="size is 40, the image 32 x 32; choose 1 to 32"):
        composite(pixels, np.ones((32, 32), bool), size=40)


def test_area_above_half_counts_pixels_above_half_of_the_peak():
    bump = np.zeros((10, 10), np.float32)
    bump[2:5, 2:6] = 0.6
    bump[0, 0] = 0.5
    bump[9, 9] = 1.0
    bump[8, 8] = -3.0

    found = area_above_half(np.stack([bump, -abs(bump), np.zeros_like(bump)]))

    # Half itself is not above half; a map without a positive value has no such area.
    assert found.tolist() == [13, 0, 0]


def inputs_with(masks, boxes):
    n = len(boxes)
    rows = pd.DataFrame(
        {
            "image_id": [f"val-{i}" for i in range(n)],
            "sha256": "s",
            **{key: [box[i] for box in boxes] for i, key in enumerate(("x0", "y0", "x1", "y1"))},
        }
    )
    targets = pd.DataFrame({"image_id": rows["image_id"], "model": "m", "target": range(n)})
    pixels = np.full((n, 32, 32, 3), 77, np.uint8)
    return Inputs(rows, targets, pixels, masks)


def test_boxes_serve_where_there_are_no_masks():
    inputs = inputs_with(None, [(-1, -1, -1, -1), (4, 8, 20, 16), (0, 0, 32, 32)])

    found = object_inputs(inputs, size=8, n_images=5)

    assert found.rows["image_id"].tolist() == ["val-1@8px", "val-2@8px"]
    assert found.targets["image_id"].tolist() == ["val-1@8px", "val-2@8px"]
    assert found.targets["target"].tolist() == [1, 2]
    assert found.masks.sum(axis=(1, 2)).tolist() == [8 * 4, 8 * 8]
    assert found.rows[["x0", "y0", "x1", "y1"]].to_numpy().tolist() == [
        [12, 14, 20, 18],
        [12, 12, 20, 20],
    ]


def test_masks_come_before_boxes():
    masks = np.zeros((2, 32, 32), bool)
    masks[0, :16, :4] = True

    found = object_inputs(inputs_with(masks, [(0, 0, 8, 8)] * 2), size=8, n_images=2)

    assert found.masks.sum(axis=(1, 2)).tolist() == [8 * 2, 8 * 8]


def test_object_rows_are_those_of_the_maps(study, results):
    _, params, _ = study
    found = read_table(results / "object_size.parquet")
    rows, targets, pixels = evaluation_set.read(results / "object-8px")
    masks = np.load(results / "object-8px" / "masks.npy")
    model = load(params.results / "models" / "googlenet")
    chosen = targets[targets["model"] == "googlenet"].set_index("image_id")["target"]
    classes = [int(chosen[name]) for name in rows["image_id"]]
    images = evaluation_set.as_images(pixels)
    maps = attribute(
        "sliding_patch",
        model,
        images,
        classes,
        batch_size=16,
        patch_size=9,
        stride=9,
        fill="black",  # the background's, whatever the study's sweeps take
        upsampling="stretched",  # as there
    ).numpy()
    with torch.no_grad():
        scores = model(images).softmax(1)[range(2), classes]

    # 3 models, 2 images, 2 sizes, 2 patches.
    assert len(found) == 24
    assert list(found.columns) == list(comparisons.OBJECT_COLUMNS)
    part = found[
        (found["model"] == "googlenet") & (found["object_size"] == 8) & (found["patch_size"] == 9)
    ]
    assert [f"{name}@8px" for name in part["image_id"]] == rows["image_id"].tolist()
    assert part["object_area"].tolist() == masks.sum(axis=(1, 2)).tolist()
    assert part["peak"].tolist() == maps.max(axis=(1, 2)).tolist()
    assert part["area_above_half"].tolist() == area_above_half(maps).tolist()
    assert part["score"].tolist() == pytest.approx(scores.tolist(), rel=1e-4)
    archive = Maps(results / "object-8px" / "maps" / "sliding_patch")
    assert (archive.read("googlenet", archive.settings[0]) == maps).all()


def test_settings_follow_the_protocol_where_the_study_has_none():
    params = params_with(
        protocol="code",
        methods=["gradient", "smoothgrad"],
        sweeps={"sliding_patch": None, "input_x_gradient": None, "guided_backprop": None},
        comparisons={"denoising": []},
    )

    (section, *_) = [made for made in comparisons.sections(params) if made.kind == "object"]

    for made in section.settings:
        assert (made.hyperparameters["upsampling"], made.hyperparameters["fill"]) == (
            "stretched",
            "black",
        )
    (shown, _) = comparisons.teaser_settings("integrated_gradients", params)
    assert shown.hyperparameters["baseline"] == "mean"
    (first, _) = comparisons.teaser_settings("smoothgrad", params)
    assert first.hyperparameters["sigma_unit"] == "range"
    text = params.model_copy(update={"protocol": "text"})
    (first, _) = comparisons.teaser_settings("smoothgrad", text)
    assert first.hyperparameters["sigma_unit"] == "absolute"


# Teaser


def test_teaser_maps_equal_those_of_the_same_setting_elsewhere(study, results):
    _, params, _ = study
    archive = Maps(results / "teaser" / "smoothgrad")
    rows, targets, pixels = evaluation_set.read(params.results / "evaluation_set")
    swept = Maps(params.results / "maps" / "smoothgrad")

    assert archive.models == ["googlenet", "googlenet-r"]
    assert archive.image_ids == [rows["image_id"][0]]
    assert [made["n_samples"] for made in archive.settings] == [2, 3]
    for model in archive.models:
        chosen = targets[targets["model"] == model].set_index("image_id")["target"]
        target = int(chosen[rows["image_id"][0]])
        expected = swept.read(model, archive.settings[0])[:1]
        assert (archive.read(model, archive.settings[0]) == expected).all()
        direct = attribute(
            "smoothgrad",
            load(params.results / "models" / model),
            evaluation_set.as_images(pixels[:1]),
            target,
            image_ids=[rows["image_id"][0]],
            batch_size=16,
            **archive.settings[1],
        )
        assert (archive.read(model, archive.settings[1]) == direct.numpy()).all()


def test_a_method_of_the_teaser_need_not_be_of_the_study(results):
    archive = Maps(results / "teaser" / "integrated_gradients")

    assert [made["n_steps"] for made in archive.settings] == [2, 4]
    maps = archive.read("googlenet", archive.settings[1])
    assert maps.shape == (1, 32, 32)
    assert maps.any()


# The whole


def test_a_rerun_executes_nothing_and_changes_nothing(study, results):
    root, params, first = study
    files = sorted(path for path in results.rglob("*") if path.is_file())
    before = {path: path.read_bytes() for path in files}

    again = compare(params, root)

    # 2 variances x 2 methods x 3 models; 2 sizes x 2 patches x 3 models; SG once and IG twice x 2;
    # a converged map of 3 models.
    assert (first.executed, first.cached) == (12 + 12 + 6 + 3, 0)
    assert (again.executed, again.cached) == (0, 33)
    assert {path: path.read_bytes() for path in results.rglob("*") if path.is_file()} == before
    assert not list(root.rglob("*.tmp"))


def test_damaged_entries_are_computed_again_in_the_same_run(study, results):
    """Of sections with an archive of maps, and of the maps that the teaser shows."""
    root, params, first = study
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    entries = {path: path.read_bytes() for path in (root / "tasks").rglob("*.npz")}
    for path in entries:
        path.write_bytes(b"PK")

    ran = compare(params, root)

    assert (ran.executed, ran.cached) == (first.executed, 0)
    assert {path: path.read_bytes() for path in results.rglob("*") if path.is_file()} == before
    # The study's own maps are read from its archives.
    for path, written in entries.items():
        path.write_bytes(written)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 0x41
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, flip])
def test_damaged_inputs_are_made_anew(study, tmp_path, results, damage):
    """Maps of other pixels would be stored under the keys of the right ones."""
    root, params, first = study
    inputs = tmp_path / "inputs"
    shutil.copytree(root / "inputs", inputs)
    before = {path: path.read_bytes() for path in inputs.rglob("*.*")}
    path = sorted(path for path in before if path.name == "images.npy")[0]
    damage(path)

    # Nothing is in the cache: everything is computed from these images.
    cache = TaskCache(tmp_path / "tasks")
    ran = comparisons.run(params, cache=cache, inputs=inputs)

    assert {path: path.read_bytes() for path in inputs.rglob("*.*")} == before
    assert ran.executed == first.executed
    for entry in sorted(cache.folder.rglob("*.npz")):
        np.testing.assert_array_equal(
            cache.read(entry.stem)[0], TaskCache(root / "tasks").read(entry.stem)[0]
        )


def test_a_killed_run_goes_on(study, tmp_path, monkeypatch):
    root, _, _ = study
    params = params_with(
        comparisons={"denoising": [], "distance": None, "object_size": None, "teaser": None}
    )
    execute, calls = runner.execute, []

    def dies(task, place):
        calls.append(task)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return execute(task, place)

    shutil.copytree(root / "results" / "pairs", tmp_path / "results" / "pairs")
    shutil.rmtree(tmp_path / "results" / "pairs" / "comparisons")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "execute", dies)
    with pytest.raises(KeyboardInterrupt):
        compare(params, tmp_path)
    assert not (params.results / "comparisons").exists()
    monkeypatch.setattr(runner, "execute", execute)

    ran = compare(params, tmp_path)

    # Two variances of two methods, and a converged map, on three models.
    assert (ran.executed, ran.cached) == (13, 2)
    expected = table(root / params.results / "comparisons")
    expected = expected[expected["comparison"].str.endswith("-noise")].reset_index(drop=True)
    pd.testing.assert_frame_equal(table(params.results / "comparisons"), expected)


def planned(params, folder):
    """Lines of the comparisons in a plan, by section."""
    speeds = {"googlenet": cost.Throughput(forward=100, gradient=50, training=40)}
    lines = cost._Planner(params, speeds, TaskCache(folder)).comparisons()
    return {line.stage.removeprefix("compare "): line for line in lines}


def test_the_plan_tells_what_a_run_executes(study, tmp_path, results):
    root, params, ran = study
    done, lacking = planned(params, root / "tasks"), planned(params, tmp_path)

    assert sum(line.pending for line in done.values()) == 0
    assert sum(line.seconds for line in done.values()) == 0
    assert sum(line.pending for line in lacking.values()) == ran.executed
    assert sum(line.tasks for line in done.values()) == ran.executed
    sizes = ["object-8px", "object-20px"]
    assert list(lacking) == ["noise-0.1", "noise-0.01", *sizes, "teaser", "budget"]

    def passes(name):
        return lacking[name].forward, lacking[name].backward

    # Two methods with one gradient each, 3 models, 4 images; maps are stored three times.
    assert passes("noise-0.1") == (2 * 3 * 4, 2 * 3 * 4)
    assert lacking["noise-0.1"].megabytes == pytest.approx(3 * 2 * 3 * 4 * 32**2 * 4 / 1e6)
    assert lacking["noise-0.1"].seconds == pytest.approx(2 * 3 * 4 / 50)
    # 3 x 3 corners for both patch sizes, and the image itself; 3 models, 2 images.
    assert passes("object-8px") == (3 * 2 * 2 * 10, 0)
    # One map of 4 samples for 4 images.
    assert passes("budget") == (3 * 16, 3 * 16)


def test_the_plan_needs_no_models(study, tmp_path, monkeypatch, results):
    _, params, _ = study
    known = planned(params, tmp_path)
    monkeypatch.chdir(tmp_path)

    assert planned(params, tmp_path) == known


def test_a_study_without_boxes_or_comparisons_has_empty_tables(study, tmp_path, monkeypatch):
    root, _, _ = study
    params = params_with(
        comparisons=dict.fromkeys(("noise", "distance", "teaser", "budget")) | {"denoising": []}
    )
    shutil.copytree(root / "results" / "pairs", tmp_path / "results" / "pairs")
    monkeypatch.chdir(tmp_path)
    folder = params.results / "evaluation_set"
    (folder / "masks.npy").unlink()
    rows = read_table(folder / "evaluation_set.csv")
    rows[["x0", "y0", "x1", "y1"]] = -1
    rows.to_csv(folder / "evaluation_set.csv", index=False)

    ran = compare(params, tmp_path)

    assert ran.executed == 0
    results = params.results / "comparisons"
    assert list(table(results).columns) == list(comparisons.COLUMNS)
    assert table(results).empty
    objects = read_table(results / "object_size.parquet")
    assert objects.empty
    assert list(objects.columns) == list(comparisons.OBJECT_COLUMNS)
    towards = read_table(results / "stability.parquet")
    assert towards.empty
    assert list(towards.columns) == list(convergence.COLUMNS)
    found = tables.comparison_summary(table(results), rows, STATISTICS)
    assert found.empty
    assert {"comparison", "mean", "ci_low", "n_degenerate"} <= set(found.columns)


def test_methods_that_a_study_lacks_are_left_out(study, tmp_path, monkeypatch):
    root, _, _ = study
    params = params_with(
        methods=["gradient", "smoothgrad", "sliding_patch"],
        sweeps={"input_x_gradient": None, "guided_backprop": None},
        comparisons={"denoising": [{"towards": "gradient", "sweep": "SG-N"}], "teaser": None},
    )
    shutil.copytree(root / "results" / "pairs", tmp_path / "results" / "pairs")
    monkeypatch.chdir(tmp_path)

    compare(params, root)

    found = table(params.results / "comparisons")
    assert set(found["comparison"]) == {"gradient-noise", "denoising-gradient", "distance"}
    assert set(found["method"]) == {"gradient", "smoothgrad"}
    assert not (params.results / "comparisons" / "teaser").exists()


def test_missing_maps_are_named(study, tmp_path, monkeypatch):
    root, params, _ = study
    shutil.copytree(root / "results" / "pairs", tmp_path / "results" / "pairs")
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(params.results / "maps" / "smoothgrad")

    with pytest.raises(FileNotFoundError, match=r"smoothgrad/index\.json: no such file; run the"):
        compare(params, root)


def test_summary_gives_means_and_clustered_intervals():
    rows = pd.DataFrame({"image_id": list("abcd"), "photo": ["p", "p", "q", "q"]})
    same = dict.fromkeys(comparisons.COLUMNS[:7], "x") | {"metric": "ssim", "convention": "common"}
    scores = [0.1, 0.3, 0.6, np.nan]
    made = pd.DataFrame(
        [
            {
                **same,
                "image_id": name,
                "score": score,
                "degenerate": False,
                "inverted": name == "c",
            }
            for name, score in zip("abcd", scores, strict=True)
        ]
    )

    (found,) = tables.comparison_summary(made, rows, STATISTICS).to_dict("records")

    assert found["n_images"] == 3
    assert found["mean"] == pytest.approx(1 / 3)
    assert found["std"] == pytest.approx(np.std(scores[:3]))
    assert found["n_degenerate"] == 1
    # Two photographs: the mean without either is .6 and .2; in Fisher's z.
    error = np.sqrt(1 / 2 * ((0.6 - 1 / 3) ** 2 + (0.2 - 1 / 3) ** 2))
    reach = stats.t.ppf(0.975, 1) * error / (1 - 1 / 9)
    assert found["ci_low"] == pytest.approx(np.tanh(np.arctanh(1 / 3) - reach))
    assert found["ci_high"] == pytest.approx(np.tanh(np.arctanh(1 / 3) + reach))


# Converged maps


def smoothgrad(params, model, **setting):
    """SmoothGrad maps of the evaluation set, computed afresh."""
    rows, targets, pixels = evaluation_set.read(params.results / "evaluation_set")
    chosen = targets[targets["model"] == model].set_index("image_id")["target"]
    return attribute(
        "smoothgrad",
        load(params.results / "models" / model),
        evaluation_set.as_images(pixels),
        [int(chosen[name]) for name in rows["image_id"]],
        image_ids=list(rows["image_id"]),
        batch_size=params.attribution.batch_size,
        sigma=0.15,
        **setting,
    ).numpy()


def held_against(params, results, value):
    """SSIM of the maps of a value with those of 4 samples and another seed, by scikit-image."""
    found = read_table(results / "stability.parquet")
    converged, maps = (
        smoothgrad(params, "other", n_samples=n, seed=seed).astype(float)
        for n, seed in ((4, 1), (value, 0))
    )
    rows = found[
        (found["model"] == "other")
        & (found["value"] == str(value))
        & (found["metric"] == "ssim")
        & (found["convention"] == "common")
    ]
    expected = [
        structural_similarity(
            a / abs(a).max(), b / abs(b).max(), data_range=2, win_size=5, gaussian_weights=False
        )
        for a, b in zip(converged, maps, strict=True)
    ]
    return rows["score"].to_numpy(), expected


@pytest.mark.parametrize("value", [2, 4])
def test_maps_are_held_against_the_largest_setting_with_another_seed(study, results, value):
    _, params, _ = study

    scores, expected = held_against(params, results, value)

    assert scores == pytest.approx(expected, abs=1e-6)
    found = read_table(results / "stability.parquet")
    # 3 models, 2 values, 4 images; SSIM by 3 conventions and 3 other scores.
    assert len(found) == 3 * 2 * 4 * 7
    assert set(found["sweep"]) == {"SG-N"}


def test_a_converged_map_that_the_sweep_has_anyway_costs_nothing(study, tmp_path, monkeypatch):
    """With the largest value as its reference, a sweep's independent draws are the converged."""
    root, _, _ = study
    params = params_with(sweeps={"smoothgrad": {"SG-N": {"reference": 4}}})
    shutil.copytree(root / "results", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    attribute_study(params, TaskCache(root / "tasks"))

    assert "budget" not in [section.name for section in comparisons.sections(params)]
    compare(params, root)
    scores, expected = held_against(params, params.results / "comparisons", 2)

    assert scores == pytest.approx(expected, abs=1e-6)


def test_budgets_of_a_study_are_in_its_tables(study, results):
    _, params, _ = study
    rows, _, _ = evaluation_set.read(params.results / "evaluation_set")

    found = tables.budget_tables(params, rows)

    curves, budgets = found["budget_curves"], found["budget"]
    assert len(curves) == 3 * 2 * 2
    assert len(budgets) == 3 * 2
    assert set(budgets["tau"]) == {0.5, 0.95}
    assert (budgets["n_max"] == 4).all()
    scores, _ = held_against(params, results, 4)
    one = budgets[(budgets["model"] == "other") & (budgets["tau"] == 0.5)].iloc[0]
    assert one["self_similarity"] == pytest.approx(scores.mean())
    assert one["share_at_max"] == (scores >= 0.5).mean()


def test_a_study_without_budgets_has_no_such_tables(study, results):
    _, params, _ = study
    rows, _, _ = evaluation_set.read(params.results / "evaluation_set")

    assert tables.budget_tables(params_with(comparisons={"budget": None}), rows) == {}


# Structure


def test_structure_is_that_of_each_references_map_and_with_anothers_target(study, results):
    _, params, _ = study
    found = read_table(results / "structure.parquet")
    rows, _, pixels = evaluation_set.read(params.results / "evaluation_set")
    partners, edges = mismatched(rows), structure.edges(evaluation_set.as_images(pixels))
    reference = next(one for one in points("smoothgrad", params.sweeps["smoothgrad"]))
    maps = Maps(params.results / "maps" / "smoothgrad")
    one = np.abs(maps.read("other", reference.setting.hyperparameters)[2]).astype(float)
    box = rows.iloc[partners[2]][["x0", "y0", "x1", "y1"]].astype(int)
    inside = one[box["y0"] : box["y1"], box["x0"] : box["x1"]].sum() / one.sum()

    # Maps of three models by five methods, of which two have a sweep; three metrics, two pairings.
    assert len(found) == 3 * 5 * 4 * 3 * 2
    assert not found["score"].isna().any()
    part = found[(found["method"] == "smoothgrad") & (found["model"] == "other")]
    part = part[part["image_id"] == rows["image_id"][2]]
    assert set(part["value"]) == {"2"}
    score = part.set_index(["metric", "pairing"])["score"]
    for pairing, position in (("same", 2), ("mismatched", partners[2])):
        expected = stats.spearmanr(one, edges[position].numpy(), axis=None).statistic
        assert score["edge_correlation", pairing] == pytest.approx(expected, abs=1e-9)
    assert score["mass_inside", "mismatched"] == pytest.approx(inside, rel=1e-6)
    other = part.set_index(["metric", "pairing"])["other"]
    assert other["mass_inside", "same"] == rows["image_id"][2]
    assert other["mass_inside", "mismatched"] == rows["image_id"][partners[2]]


# Numbers of images per method


def test_each_method_explains_its_own_number_of_images(study, tmp_path, monkeypatch):
    root, _, _ = study
    few = {"n_images": 2, "of_methods": {"gradient": 4, "guided_backprop": 3}}
    params = params_with(evaluation_set=few, comparisons={"teaser": None, "object_size": None})
    monkeypatch.chdir(tmp_path)
    for name in ("evaluation_set", "models", "data"):
        if (root / params.results / name).is_dir():
            shutil.copytree(root / params.results / name, params.results / name)
    cache = TaskCache(root / "tasks")
    attribute_study(params, cache)

    comparisons.run(params, cache=cache, inputs=root / "inputs")

    ids = read_table(params.results / "evaluation_set" / "evaluation_set.csv")["image_id"].tolist()
    archives = {method: Maps(params.results / "maps" / method) for method in params.methods}
    assert {method: len(maps.image_ids) for method, maps in archives.items()} == {
        **{"gradient": 4, "guided_backprop": 3, "smoothgrad": 2},
        **{"sliding_patch": 2, "input_x_gradient": 2},
    }
    # The first so many, whose maps are those of the larger study.
    assert archives["smoothgrad"].image_ids == ids[:2]
    setting = archives["gradient"].settings[0]
    whole = Maps(root / params.results / "maps" / "gradient").read("other", setting)
    assert (archives["gradient"].read("other", setting) == whole).all()

    rows = table(params.results / "comparisons")
    counts = rows.groupby("comparison")["image_id"].nunique()
    assert counts.to_dict() == {
        **{"gradient-noise": 4, "input_x_gradient-noise": 2, "distance": 2},
        # Of plain, de-noised and guided maps those that all have.
        **{"denoising-gradient": 2, "denoising-input_x_gradient": 2},
    }
    structures = read_table(params.results / "comparisons" / "structure.parquet")
    same = structures[(structures["pairing"] == "same") & (structures["metric"] != "mass_inside")]
    assert same.groupby("method")["image_id"].nunique()["guided_backprop"] == 3
    stable = read_table(params.results / "comparisons" / "stability.parquet")
    assert stable["image_id"].nunique() == 2


def test_accuracy_is_that_of_the_methods_images(study, tmp_path, monkeypatch):
    root, _, _ = study
    few = {"n_images": 2, "of_methods": {"gradient": 4}}
    params = params_with(evaluation_set=few)
    monkeypatch.chdir(tmp_path)
    for name in ("evaluation_set", "models"):
        shutil.copytree(root / params.results / name, params.results / name)
    cache, methods = TaskCache(root / "tasks"), ("gradient", "input_x_gradient")
    for method in methods:
        runner.attribute(method, params, cache=cache)

    counts = {
        method: accuracy_scores.score(
            method, params, cache=cache, run_context=runner.RunContext.of(params)
        )
        .rows["image_id"]
        .nunique()
        for method in methods
    }

    assert counts == {"gradient": 4, "input_x_gradient": 2}
    three = params.evaluation_set.model_copy(update={"n_images": 3, "of_methods": {}})
    fewer = params.model_copy(update={"evaluation_set": three})
    with pytest.raises(ValueError, match="its 4 images are not the 3"):
        accuracy_scores.score(
            "gradient", fewer, cache=cache, run_context=runner.RunContext.of(fewer)
        )
