"""Runs read well, and say what the tables say."""

import base64
import json
import zlib

import numpy as np
import pandas as pd
import pytest

from steadymap.runs import experiment_tags, metric_name, sweep_entries, training_entry

STUDY = "tiny"
MODELS = ("googlenet", "googlenet-r")
IMAGES = ("a0", "b1", "c2")
SWEEPS = {
    ("gradient", "default"): ("", (), "", "none"),
    ("smoothgrad", "SG-N"): ("n_samples", ("5", "10", "20"), "5", "nested"),
    ("sliding_patch", "SP-L"): ("patch_size", ("5", "9", "11"), "9", "none"),
    ("sliding_patch", "SP-S"): ("patch_size", ("14", "15"), "15", "none"),
}
MEASURED = [
    ("insertion", "auc"),
    ("insertion", "auc_over_max"),
    ("deletion", "auc_over_max"),
    ("localization_error", "alpha0.10"),
    ("localization_error", "alpha0.25"),
]
READINGS = [("ssim", "common"), ("ssim", "sam"), ("spearman", "signed"), ("hog_pearson", "cells4")]


def number(*key: str) -> float:
    """Some number in [0, 1) that depends on nothing but the key."""
    return float(f"{np.random.default_rng(list('/'.join(key).encode())).random():.6g}")


def make_tables(sweeps: dict = SWEEPS) -> dict[str, pd.DataFrame]:
    """Tables of a study whose numbers are made up, with the columns of real ones."""
    tasks, settings, sensitivity, images = [], [], [], []
    for (method, sweep), (knob, values, reference, draws) in sweeps.items():
        for model in MODELS:
            key = {"sweep": sweep, "method": method, "hyperparameter": knob, "model": model}
            points = [(value, draws, value == reference) for value in values or ("",)]
            if knob == "n_samples":
                points.append((reference, "independent", True))
            for value, kind, is_reference in points:
                effective = {"output": "logit"} | ({knob: json.loads(value)} if knob else {})
                tasks.append(
                    key
                    | {
                        "value": value,
                        "draws": kind,
                        "is_reference": is_reference or not knob,
                        "task_id": f"{int(1e15 * number(method, model, value, kind)):016x}",
                        "hyperparameters": json.dumps(effective),
                        "n_images": len(IMAGES),
                        "forward_passes": 30,
                        "backward_passes": 0,
                    }
                )
            kinds = [draws, "independent"] if knob == "n_samples" else [draws]
            for kind in kinds:
                readings = (
                    [*READINGS, ("dynamic_range", "raw")] if knob else [("dynamic_range", "raw")]
                )
                for metric, convention in [*readings, *MEASURED]:
                    reading = {"metric": metric, "convention": convention, "draws": kind}
                    for value in values or ("",):
                        if value == reference and (metric, convention) in READINGS:
                            continue
                        if (
                            kind == "independent"
                            and metric == "dynamic_range"
                            and value != reference
                        ):
                            continue
                        mean = number(method, sweep, model, value, metric, convention, kind)
                        settings.append(
                            {**key, "value": value, "is_reference": value == reference, **reading}
                            | {"n_images": len(IMAGES), "mean": mean, "std": mean / 8}
                            | {"ci_low": mean - 0.1, "ci_high": mean + 0.1, "n_degenerate": 0}
                        )
                    mean = number(method, sweep, model, metric, convention, kind)
                    sensitivity.append(
                        {**key, **reading, "n_images": len(IMAGES), "n_settings": len(values)}
                        | {"mean": mean, "ci_low": mean - 0.1, "ci_high": mean + 0.1}
                        | {"std_rms": mean / 9, "std_mean": mean / 10, "n_degenerate": 0}
                    )
                    for image in IMAGES:
                        score = number(method, sweep, model, metric, convention, kind, image)
                        about = {"image_id": image, "class_name": "star", "photo": "coffee"}
                        images.append(
                            key | about | reading | {"mean": score, "std": 0.1, "n_degenerate": 0}
                        )
    models = [
        {
            "model": model,
            "architecture": "googlenet",
            "robust": model.endswith("-r"),
            "clean_accuracy": 0.9,
            "weights_sha256": f"{int(1e15 * number(model)):064x}",
        }
        for model in MODELS
    ]
    evaluation_set = [
        {"image_id": image, "sha256": f"{i:064x}", "target": i} for i, image in enumerate(IMAGES)
    ]
    rows = {
        "tasks": tasks,
        "settings": settings,
        "sensitivity": sensitivity,
        "images": images,
        "models": models,
        "evaluation_set": evaluation_set,
    }
    return {name: pd.DataFrame(found) for name, found in rows.items()}


def make_training(model: str = "googlenet-r", epochs: int = 3) -> tuple[dict, pd.DataFrame]:
    """Card and curves as `steadymap.training` writes them."""
    steps = np.arange(1, epochs + 1)
    curves = pd.DataFrame(
        {
            "epoch": steps,
            "train_loss": 2.0 / steps,
            "train_accuracy": 1 - 0.5 / steps,
            "val_accuracy": 0.9 - 0.5 / steps,
            "val_robust_accuracy": np.nan,
            "learning_rate": 0.05,
            "seconds": 15.5,
        }
    )
    card = {
        "model": model,
        "architecture": "googlenet",
        "robust": True,
        "recipe": {"epochs": 3, "attack": {"norm": "l2", "eps": 1.5}, "init_from": None},
        "recipe_digest": "0123456789abcdef",
    }
    return card, curves


def finished(card: dict) -> dict:
    accuracies = {"clean": 0.83, "n_clean": 800, "robust": 0.54, "n_robust": 400, "attack": {}}
    return card | {"accuracies": accuracies, "weights_sha256": "f" * 64}


def entry_of(sweep: str, model: str, tables: dict | None = None):
    entries = sweep_entries(tables or make_tables(), study=STUDY)
    return next(e for e in entries if e.params["sweep"] == sweep and e.params["model"] == model)


@pytest.mark.parametrize(
    ("reading", "expected"),
    [
        (("ssim", "common", False), "ssim/mean"),
        (("ssim", "sam", False), "ssim.sam/mean"),
        (("ssim", "common", True), "ssim.common.independent/mean"),
        (("spearman", "signed", False), "spearman/mean"),
        (("spearman", "signed", True), "spearman.signed.independent/mean"),
        (("hog_pearson", "cells4", False), "hog_pearson/mean"),
    ],
)
def test_only_the_main_reading_has_a_short_name(reading, expected):
    metric, convention, independent = reading

    assert metric_name(metric, convention, "mean", independent=independent) == expected


def test_names_say_method_sweep_model_and_setting():
    entries = sweep_entries(make_tables(), study=STUDY)

    assert [entry.name for entry in entries[:4]] == [
        "gradient default googlenet",
        "gradient default googlenet-r",
        "smoothgrad SG-N googlenet",
        "smoothgrad SG-N googlenet-r",
    ]
    assert [child.name for child in entries[0].children] == ["the only setting"]
    assert [child.name for child in entries[2].children] == [
        "n_samples=5 (reference)",
        "n_samples=10",
        "n_samples=20",
    ]
    assert entries[2].experiment == "steadymap/tiny/smoothgrad"


def test_numbers_are_those_of_the_tables():
    """The parent's std is the sweep's sensitivity, a child's the spread over images."""
    tables = make_tables()
    parent = entry_of("SP-L", "googlenet", tables)
    child = next(child for child in parent.children if child.params["value"] == "11")
    headline = "metric == 'ssim' and convention == 'common' and sweep == 'SP-L'"
    of_sweep = tables["sensitivity"].query(f"{headline} and model == 'googlenet'").iloc[0]
    of_setting = tables["settings"].query(f"{headline} and model == 'googlenet' and value == '11'")

    assert parent.metrics["ssim/mean", 0] == of_sweep["mean"]
    assert parent.metrics["ssim/std", 0] == float(f"{of_sweep['std_rms']:.6g}")
    assert parent.metrics["n_settings", 0] == 3
    assert child.metrics["ssim/std", 0] == float(f"{of_setting.iloc[0]['std']:.6g}")
    assert child.metrics["value", 0] == 11


def test_a_child_has_its_hyperparameters_and_those_of_its_parent_as_params():
    """The UI's filter sees a run's own fields alone."""
    parent = entry_of("SP-L", "googlenet-r")

    assert parent.children[0].params == {
        **parent.params,
        "value": "5",
        "hp.output": "logit",
        "hp.patch_size": "5",
    }
    assert parent.params["robust"] == "true"


def test_the_independent_reference_is_a_tag_and_not_a_setting():
    tables = make_tables()
    parent = entry_of("SG-N", "googlenet", tables)
    rows = tables["tasks"].query("sweep == 'SG-N' and model == 'googlenet'")
    other = rows.loc[rows["draws"] == "independent", "task_id"].item()

    assert parent.tags["independent_task_id"] == other
    assert other not in [child.tags["task_id"] for child in parent.children]
    assert ("ssim.common.independent/mean", 0) in parent.metrics


def test_a_seed_sweep_has_short_names_though_its_draws_are_independent():
    sweeps = {("smoothgrad", "SG-seed"): ("seed", ("0", "1", "2"), "0", "independent")}
    parent = entry_of("SG-seed", "googlenet", make_tables(sweeps))

    assert len(parent.children) == 3
    assert ("ssim/mean", 0) in parent.metrics
    assert "independent_task_id" not in parent.tags


def test_what_is_not_finite_is_left_out_and_said():
    tables = make_tables()
    settings = tables["settings"]
    row = settings.query("sweep == 'SP-S' and metric == 'spearman'").index[0]
    settings.loc[row, ["mean", "std"]] = [np.nan, np.inf]
    child = entry_of("SP-S", "googlenet", tables).children[0]

    assert child.tags["dropped_metrics"] == "spearman/mean, spearman/std"
    assert all(np.isfinite(value) for value in child.metrics.values())


def test_two_conventions_never_share_a_name():
    tables = make_tables()
    more = tables["settings"].query("metric == 'hog_pearson'").assign(convention="cells8")
    tables["settings"] = pd.concat([tables["settings"], more])

    with pytest.raises(ValueError, match=r"hog_pearson/mean: two conventions .*MAIN_CONVENTIONS"):
        sweep_entries(tables, study=STUDY)


def test_missing_tables_are_named():
    with pytest.raises(ValueError, match="tables: 'settings' is missing"):
        sweep_entries({"tasks": pd.DataFrame()}, study=STUDY)


def test_least_stable_images_come_first():
    table = json.loads(entry_of("SP-L", "googlenet").artifacts["per_image.json"])
    place = table["columns"].index("ssim/mean")
    means = [row[place] for row in table["data"]]

    assert means == sorted(means)
    assert table["columns"][:3] == ["image_id", "class_name", "photo"]
    assert not any("." in name for name in table["columns"])


def test_training_has_epochs_as_steps_and_its_recipe_as_params():
    card, curves = make_training()
    entry = training_entry("googlenet-r", finished(card), curves, study=STUDY, finished=True)

    assert entry.metrics["train/loss", 2] == 1.0
    assert entry.metrics["final/robust_accuracy", 0] == 0.54
    assert not any(name == "val/robust_accuracy" for name, _ in entry.metrics)
    assert entry.params["attack.eps"] == "1.5"
    assert entry.params["init_from"] == "none"
    assert entry.seconds == pytest.approx(46.5)
    assert "n = 400" in entry.tags["mlflow.note.content"]


def test_saved_views_use_columns_that_exist():
    entry = entry_of("SP-L", "googlenet")
    variant = entry.children[0]
    known = {f"metrics.`{name}`" for name, _ in entry.metrics | variant.metrics}
    known |= {f"params.`{name}`" for name in variant.params}
    _, views = experiment_tags(entry.experiment)

    assert len(views) == 2
    for view in views.values():
        header, packed = json.loads(view)["state"].split(";")
        state = json.loads(zlib.decompress(base64.b64decode(packed)))
        assert header == "deflate"
        assert set(state["selectedColumns"]) <= known
