"""Accuracy of a small study's maps: rows, cache, images without boxes."""

import importlib.util
import logging
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
import yaml
from torch import nn

from conftest import ROOT, write_model
from steadymap.attribution import fusion, model_runner
from steadymap.engine import evaluation_set, runner, selection
from steadymap.engine.runner import RunContext
from steadymap.engine.settings import points, setting, unique_settings
from steadymap.experiments import accuracy_scores, similarity_scores
from steadymap.experiments.accuracy_scores import score
from steadymap.experiments.localization import baseline_scores, choose_threshold, convention_of
from steadymap.experiments.similarity_scores import COLUMNS
from steadymap.metrics import accuracy, localization
from steadymap.models.registry import build, load
from steadymap.params.checks import overlay, validate
from steadymap.params.files import read_yaml
from steadymap.params.methods import ALPHAS
from steadymap.params.schema import Accuracy, EvaluationSet, FolderData
from steadymap.store.atomic import file_sha256, read_json, write_json
from steadymap.store.maps import write_maps
from steadymap.store.tables import read_table, write_table
from steadymap.store.task_cache import TaskCache

MODELS = ("googlenet", "googlenet-r")
N_IMAGES = 9
# Four points per curve: 2 passes per curve and 2 per image.
STEP = 350
SWEEPS = {
    "smoothgrad": {
        "SG-N": {"vary": "n_samples", "values": [2, 4], "reference": 2},
        "SG-sigma": {"vary": "sigma", "values": [0.1, 0.2], "reference": 0.2},
    },
    "sliding_patch": {
        "SP-L": {"vary": "patch_size", "values": [5, 9], "reference": 9, "fixed": {"stride": 9}}
    },
    "gradient": {},
}


def sharing_maps(hyperparameters):
    """Seed of a setting's made-up maps: two of the five settings have equal ones."""
    if hyperparameters.get("n_samples") == 4 or hyperparameters.get("sigma") == 0.2:
        return [7]
    return list(repr(sorted(hyperparameters.items())).encode())


def enliven(folder, images):
    """Give a model weights whose probabilities depend on the image, as fresh ones hardly do."""
    card = read_json(folder / "card.json")
    network = build(card["architecture"], len(card["classes"]), seed=len(card["model"]))
    generator = torch.Generator().manual_seed(len(card["model"]))
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, generator=generator)
            elif isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
            elif isinstance(module, nn.Dropout):
                module.p = 0.0
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.1, generator=generator)
        mean, std = (torch.tensor(card[key]).reshape(1, 3, 1, 1) for key in ("mean", "std"))
        network.train()((images - mean) / std)
    path = folder / "weights.safetensors"
    safetensors.torch.save_file(network.state_dict(), path)
    write_json(card | {"weights_sha256": file_sha256(path)}, folder / "card.json")


@pytest.fixture(scope="module")
def template(tmp_path_factory, embedded):
    """Files of a study: models, evaluation set, made-up maps."""
    root = tmp_path_factory.mktemp("template")
    values = overlay(
        read_yaml(ROOT / "profiles" / "embedded.yaml"), read_yaml(ROOT / "profiles" / "tiny.yaml")
    )
    values |= {
        "study": "toy",
        "methods": list(SWEEPS),
        "sweeps": SWEEPS,
        "search": {},
        "comparisons": {},
        "accuracy": {"step": STEP},
    }
    params = validate(values)
    results = root / params.results
    for model in MODELS:
        folder = results / "models" / model
        write_model(folder, model=model, classes=values["data"]["classes"])
        enliven(folder, evaluation_set.as_images(embedded.images["val"][:32]))
    labels = embedded.rows("val")["label"].to_numpy()
    rule = EvaluationSet(rule="any", target="label", n_images=N_IMAGES, seed=0)
    chosen = selection.choose(rule, embedded, dict.fromkeys(MODELS, labels))
    selection.write(chosen, embedded, results / "evaluation_set")
    rows, _, _ = evaluation_set.read(results / "evaluation_set")
    for method in SWEEPS:
        settings = unique_settings(points(method, params.sweeps[method]))
        write_maps(
            results / "maps" / method,
            method=method,
            image_ids=list(rows["image_id"]),
            settings=[{"hyperparameters": s.hyperparameters, "task_ids": {}} for s in settings],
            maps={
                model: iter(
                    np.random.default_rng([len(model), *sharing_maps(s.hyperparameters)])
                    .normal(size=(N_IMAGES, 32, 32))
                    .astype(np.float32)
                    for s in settings
                )
                for model in MODELS
            },
            diagnostics=[],
        )
    (root / "params.yaml").write_text(yaml.safe_dump(values))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        first = {method: scored(params, method) for method in ("smoothgrad", "gradient")}
    return root, params, first


@pytest.fixture
def study(template, tmp_path, monkeypatch):
    """The study in a folder of its own, which is the working directory."""
    root, params, _ = template
    shutil.copytree(root, tmp_path / "study")
    monkeypatch.chdir(tmp_path / "study")
    return params


@pytest.fixture
def first(template):
    """What the first run said, by method; its cache stands in the study's folder."""
    return template[2]


def scored(params, method="smoothgrad", cache="cache"):
    run_context = RunContext(
        params.results / "models", params.results / "evaluation_set", params.attribution
    )
    return score(method, params, cache=TaskCache(cache), run_context=run_context)


def changed(params, **accuracy_options):
    options = Accuracy(**{"step": STEP, **accuracy_options})
    return params.model_copy(update={"accuracy": options})


def test_every_map_has_its_rows(first):
    rows = first["smoothgrad"].rows

    assert tuple(rows.columns) == COLUMNS
    groups = rows[["sweep", "hyperparameter", "value", "draws"]].drop_duplicates()
    assert list(groups.itertuples(index=False, name=None)) == [
        ("SG-N", "n_samples", "2", "nested"),
        ("SG-N", "n_samples", "4", "nested"),
        ("SG-N", "n_samples", "2", "independent"),
        ("SG-N", "n_samples", "4", "independent"),
        ("SG-sigma", "sigma", "0.1", "nested"),
        ("SG-sigma", "sigma", "0.2", "nested"),
    ]
    measures = {(kind, area) for kind in accuracy.KINDS for area in ("auc", "auc_over_max")}
    measures |= {
        (metric, f"alpha0.{percent}")
        for metric in ("localization_error", "iou")
        for percent in (10, 15, 20, 25, 30, 35, 40, 45, 50)
    }
    counted = rows.groupby(["metric", "convention"]).size()
    assert counted.to_dict() == dict.fromkeys(measures, 6 * 2 * N_IMAGES)
    assert not rows.drop(columns=["score", "degenerate"]).duplicated().any()
    assert rows["score"].dtype == np.float64
    assert rows["score"].between(0, 1).all()
    assert not rows["degenerate"].any()
    # A network that hardly looks at its image would hide a map or an image mistaken for another.
    areas = rows[rows["convention"] == "auc"].groupby(["model", "image_id", "metric"])["score"]
    assert areas.std().median() > 1e-3


@pytest.mark.parametrize("chunk", [2, 128])
def test_rows_are_what_the_metrics_say_of_each_map(study, first, monkeypatch, chunk):
    monkeypatch.setattr(similarity_scores, "_CHUNK", chunk)
    found = scored(study).rows
    pd.testing.assert_frame_equal(found, first["smoothgrad"].rows)
    rows, _, pixels = evaluation_set.read(study.results / "evaluation_set")
    made = setting("smoothgrad", {"n_samples": 2, "seed": 1}).hyperparameters
    maps = accuracy_scores.Maps(study.results / "maps" / "smoothgrad")
    stack = torch.from_numpy(np.array(maps.read("googlenet-r", made)))
    model, images = load(study.results / "models" / "googlenet-r"), evaluation_set.as_images(pixels)
    labels = rows["label"].tolist()
    own = found[
        (found["model"] == "googlenet-r")
        & (found["draws"] == "independent")
        & (found["value"] == "2")
    ]
    own = own.set_index(["metric", "convention", "image_id"])["score"].sort_index()

    for kind, function in (("insertion", accuracy.insertion), ("deletion", accuracy.deletion)):
        for name, over_max in accuracy_scores.AREAS.items():
            expected = function(
                model, images, stack, labels, step=STEP, over_max=over_max, batch_size=16
            )
            assert (own[kind, name][rows["image_id"]].to_numpy() == expected.numpy()).all()
    boxes = rows[["x0", "y0", "x1", "y1"]].to_numpy()
    for place, alpha in enumerate(ALPHAS):
        expected = localization.iou(stack, boxes)[:, place].numpy()
        assert (own["iou", convention_of(alpha)][rows["image_id"]].to_numpy() == expected).all()
        errors = own["localization_error", convention_of(alpha)][rows["image_id"]]
        assert (errors.to_numpy() == (expected <= 0.5)).all()


def test_both_groups_of_a_count_hold_the_same_variants(first):
    rows = first["smoothgrad"].rows
    sweep = rows[(rows["sweep"] == "SG-N") & (rows["convention"] == "auc")]
    nested, independent = (
        sweep[sweep["draws"] == draws].reset_index(drop=True).drop(columns="draws")
        for draws in ("nested", "independent")
    )

    variant = nested["value"] == "4"

    assert nested[variant].equals(independent[variant])
    assert not (nested[~variant]["score"] == independent[~variant]["score"]).any()


def test_methods_without_draws_or_hyperparameters(study, first):
    patch, plain = scored(study, "sliding_patch").rows, first["gradient"].rows

    assert set(patch["draws"]) == {"none"}
    assert set(plain["sweep"]) == {"default"}
    assert set(plain["value"]) == {""}
    assert len(plain) == 2 * N_IMAGES * 22


def test_a_second_run_computes_nothing(study, first, monkeypatch):
    monkeypatch.setattr(accuracy, "curves", None)

    second = scored(study)

    # Five settings, two of which have equal maps.
    assert (first["smoothgrad"].computed, first["smoothgrad"].cached) == (2 * 4 * N_IMAGES, 0)
    assert (second.computed, second.cached) == (0, 2 * 4 * N_IMAGES)
    pd.testing.assert_frame_equal(first["smoothgrad"].rows, second.rows)
    assert "curves of 0 maps computed, of 72 found in the cache" in str(second)


def test_each_model_is_fused_once_for_all_its_tasks(study, monkeypatch):
    kept, fused, runs = fusion.fused, [], []
    for module in (runner, model_runner):
        monkeypatch.setattr(module, "fused", lambda model: fused.append(model) or kept(model))
    whole = accuracy.curves
    monkeypatch.setattr(
        accuracy, "curves", lambda *args, **options: runs.append(1) or whole(*args, **options)
    )

    scored(study, "gradient", cache="another")

    # Each model has two blocks of images.
    assert len(runs) == 2 * len(MODELS)
    assert len(fused) == len(MODELS)


def test_a_killed_run_goes_on_where_it_stopped(study, monkeypatch):
    whole, calls = accuracy.curves, []

    def dies(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(*arguments, **options)

    monkeypatch.setattr(accuracy, "curves", dies)
    with pytest.raises(KeyboardInterrupt):
        scored(study, "gradient", "fresh")
    monkeypatch.setattr(accuracy, "curves", whole)

    second = scored(study, "gradient", "fresh")

    # One model's two blocks, of eight images and of one, are kept.
    assert (second.computed, second.cached) == (N_IMAGES, N_IMAGES)
    assert not list(TaskCache("fresh").folder.rglob("*.tmp"))


def test_a_damaged_entry_is_computed_again(study, first):
    entry = sorted(TaskCache("cache").folder.rglob("*.npz"))[0]
    entry.write_bytes(b"broken")

    smoothgrad, gradient = scored(study), scored(study, "gradient")

    assert smoothgrad.computed + gradient.computed in (1, 8)
    pd.testing.assert_frame_equal(first["smoothgrad"].rows, smoothgrad.rows)
    pd.testing.assert_frame_equal(first["gradient"].rows, gradient.rows)


def test_no_bit_depends_on_blocks_or_on_company(study, first, monkeypatch):
    attribution = study.attribution.model_copy(update={"block_size": 16})
    monkeypatch.setattr(accuracy_scores, "MAPS_AT_ONCE", 1)

    second = scored(study.model_copy(update={"attribution": attribution}), cache="fresh")

    assert second.computed == 2 * 4 * N_IMAGES
    pd.testing.assert_frame_equal(first["smoothgrad"].rows, second.rows)


@pytest.mark.parametrize(
    ("options", "again"),
    [
        ({"step": 400}, True),
        ({"substrate": "black"}, True),
        ({"substrate": "blur"}, True),
        ({"output": "sigmoid"}, True),
        ({"alpha": 0.5}, False),
        ({"tracked": "prediction"}, False),  # the same classes
    ],
)
def test_only_what_curves_depend_on_computes_them_again(study, first, options, again):
    second = scored(changed(study, **options), "gradient")

    assert (second.computed, second.cached) == ((18, 0) if again else (0, 18))
    runs = first["gradient"], second
    areas = [run.rows[run.rows["convention"] == "auc"]["score"] for run in runs]
    assert areas[0].equals(areas[1]) is not again


def test_the_tracked_class_may_be_the_prediction(study, first):
    path = study.results / "evaluation_set" / "targets.csv"
    targets = read_table(path)
    other = (targets["model"] == "googlenet-r") & (targets["image_id"] == targets["image_id"][3])
    targets.loc[other, "prediction"] = (targets.loc[other, "target"] + 1) % 8
    write_table(targets, path)

    by_target = first["gradient"]
    by_prediction = scored(changed(study, tracked="prediction"), "gradient")

    differ = by_target.rows["score"] != by_prediction.rows["score"]
    moved = by_target.rows[differ]
    assert set(moved["model"]) == {"googlenet-r"}
    assert set(moved["image_id"]) == {targets["image_id"][3]}
    assert set(moved["metric"]) == set(accuracy.KINDS)
    # The block of eight by that model alone.
    assert (by_prediction.computed, by_prediction.cached) == (8, 10)


def test_images_without_a_box_lack_localization_alone(study, first, caplog):
    path = study.results / "evaluation_set" / "evaluation_set.csv"
    rows = read_table(path)
    rows.loc[[2, 5], ["x0", "y0", "x1", "y1"]] = -1
    everything = first["gradient"].rows
    write_table(rows, path)

    with caplog.at_level(logging.INFO):
        found = scored(study, "gradient").rows

    assert "gradient: 2 of 9 images have no box and are left out of localization" in caplog.text
    without = everything["image_id"].isin(rows["image_id"][[2, 5]])
    left_out = without & everything["metric"].isin(["iou", "localization_error"])
    assert left_out.sum() == 2 * 2 * 18
    pd.testing.assert_frame_equal(found, everything[~left_out].reset_index(drop=True))


def test_a_study_without_boxes_has_no_localization(study):
    path = study.results / "evaluation_set" / "evaluation_set.csv"
    rows = read_table(path)
    rows[["x0", "y0", "x1", "y1"]] = -1
    write_table(rows, path)

    found = scored(study, "gradient").rows

    assert set(found["metric"]) == set(accuracy.KINDS)
    assert len(baseline_scores(study, evaluation_set=path.parent)) == 0


@pytest.mark.parametrize("chunk", [2, 128])
def test_of_photographs_the_masks_are_unions_of_boxes(study, monkeypatch, chunk):
    monkeypatch.setattr(similarity_scores, "_CHUNK", chunk)
    folder = study.results / "evaluation_set"
    masks = np.zeros((N_IMAGES, 32, 32), bool)
    masks[:, :4, :4] = masks[:, 28:, 28:] = True
    masks[7, :8, :8] = True
    masks[6] = False
    np.save(folder / "masks.npy", masks)
    photographs = study.model_copy(
        update={"data": FolderData(kind="imagefolder", path="x", image_size=32)}
    )

    found = baseline_scores(photographs, evaluation_set=folder)

    rows, _, _ = evaluation_set.read(folder)
    assert list(found["image_id"].unique()) == [
        name for place, name in enumerate(rows["image_id"]) if place != 6
    ]
    whole = found[(found["name"] == "whole_image") & (found["metric"] == "iou")]
    expected = np.array([32.0] * 6 + [80.0] + [32.0])  # of the images in order, without the sixth
    assert whole["score"].tolist() == pytest.approx(np.tile(expected / 1024, 9).tolist())


def test_degenerate_maps_are_flagged(study):
    path = study.results / "maps" / "gradient" / "googlenet.npy"
    stack = np.load(path)
    stack[0, 4] = 0
    np.save(path, stack)

    rows = scored(study, "gradient").rows

    flagged = rows[rows["degenerate"]]
    name = evaluation_set.read(study.results / "evaluation_set")[0]["image_id"][4]
    assert set(flagged["image_id"]) == {name}
    assert set(flagged["model"]) == {"googlenet"}
    assert len(flagged) == 22
    assert (flagged[flagged["metric"] == "localization_error"]["score"] == 1).all()


def test_maps_of_other_images_are_refused(study):
    path = study.results / "evaluation_set" / "evaluation_set.csv"
    rows = read_table(path)
    write_table(rows.assign(image_id=[f"other-{name}" for name in rows["image_id"]]), path)

    with pytest.raises(ValueError, match=r"its 9 images are not the 9 of .*; run `dvc repro`"):
        scored(study, "gradient")


def test_passes_are_planned(study, monkeypatch):
    counted = []
    whole = accuracy.curves

    def counts(passes, *arguments, **options):
        before = passes.forward
        found = whole(passes, *arguments, **options)
        counted.append(passes.forward - before)
        return found

    monkeypatch.setattr(accuracy, "curves", counts)

    scored(study, "gradient", "fresh")

    assert sum(counted) == 2 * N_IMAGES * accuracy.passes_per_map(32 * 32, STEP)
    assert accuracy.passes_per_map(32 * 32, STEP) == 2 * 2 + 2


def test_the_stage_writes_the_rows(study, first, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "stages"))
    spec = importlib.util.spec_from_file_location("stage", ROOT / "stages" / "accuracy.py")
    stage = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stage)
    monkeypatch.setattr(sys, "argv", ["accuracy.py", "gradient"])

    stage.main()

    written = read_table(study.results / "accuracy" / "gradient.parquet")
    pd.testing.assert_frame_equal(written, first["gradient"].rows, check_dtype=False)
    assert capsys.readouterr().out == (
        "accuracy gradient: 396 scores; curves of 18 maps computed, of 0 found in the cache\n"
    )


# Baselines and thresholds


@pytest.mark.parametrize("chunk", [2, 128])
def test_baselines_are_scored_against_the_boxes(study, monkeypatch, chunk):
    monkeypatch.setattr(similarity_scores, "_CHUNK", chunk)
    folder = study.results / "evaluation_set"
    rows, _, pixels = evaluation_set.read(folder)
    boxes = rows[["x0", "y0", "x1", "y1"]].to_numpy()

    found = baseline_scores(study, evaluation_set=folder)

    assert list(found.columns) == ["name", "image_id", "metric", "convention", "score"]
    assert len(found) == 4 * 18 * N_IMAGES
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    iou = found[(found["metric"] == "iou") & (found["convention"] == "alpha0.25")]
    whole = iou[iou["name"] == "whole_image"]
    assert whole["score"].tolist() == pytest.approx((area / 1024).tolist())
    trivial = localization.trivial_maps(
        evaluation_set.as_images(pixels), image_ids=list(rows["image_id"])
    )
    for name, stack in trivial.items():
        expected = localization.iou(stack, boxes, alphas=(0.25,))[:, 0]
        assert iou[iou["name"] == name]["score"].tolist() == pytest.approx(expected.tolist())


def errors_at(table):
    """Score rows from errors per image by threshold."""
    return pd.DataFrame(
        [
            {"image_id": name, "metric": metric, "convention": convention, "score": error + shift}
            for convention, errors in table.items()
            for name, error in errors.items()
            for metric, shift in (("localization_error", 0.0), ("iou", 0.01))
        ]
    )


def test_a_threshold_is_chosen_on_one_half_and_scored_on_the_other():
    names = [f"image-{index}" for index in range(11)]
    table = errors_at(
        {
            "alpha0.10": dict.fromkeys(names, 1.0),
            "alpha0.30": dict.fromkeys(names, 0.25),
            "alpha0.40": dict.fromkeys(names, 0.25),
        }
    )

    chosen = choose_threshold(table)
    other = choose_threshold(table, seed=1)

    assert (chosen.alpha, chosen.n_images) == (0.3, 5)
    assert set(chosen.rows["convention"]) == {"alpha0.30"}
    assert chosen.rows.groupby("metric").size().to_dict() == {"iou": 6, "localization_error": 6}
    assert set(chosen.rows["image_id"]) != set(other.rows["image_id"])


def test_the_half_that_is_scored_has_no_say():
    names = [f"image-{index}" for index in range(10)]
    even = errors_at(
        {"alpha0.10": dict.fromkeys(names, 0.5), "alpha0.20": dict.fromkeys(names, 1.0)}
    )
    scored_half = set(choose_threshold(even).rows["image_id"])
    table = errors_at(
        {
            "alpha0.10": {name: 1.0 if name in scored_half else 0.4 for name in names},
            "alpha0.20": {name: 0.0 if name in scored_half else 0.6 for name in names},
        }
    )

    chosen = choose_threshold(table)

    assert chosen.alpha == 0.1
    errors = chosen.rows[chosen.rows["metric"] == "localization_error"]
    assert (errors["score"] == 1).all()


def test_a_threshold_needs_two_images():
    with pytest.raises(ValueError, match="localization_error is known of 1 images; choosing"):
        choose_threshold(errors_at({"alpha0.10": {"a": 1.0}}))
