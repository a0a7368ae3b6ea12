"""Made-up tables of a study, to be mirrored to MLflow."""

import json

import numpy as np
import pandas as pd

from steadymap.analysis.parameters import IPR_COLUMNS, UNIT_COLUMNS
from steadymap.tracking.entries import Study
from steadymap.tracking.mirror import write_randomization, write_sweeps
from steadymap.tracking.writer import open_writer

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
    for (method, sweep), (hyperparameter, values, reference, draws) in sweeps.items():
        for model in MODELS:
            key = {
                "sweep": sweep,
                "method": method,
                "hyperparameter": hyperparameter,
                "model": model,
            }
            points = [(value, draws, value == reference) for value in values or ("",)]
            if hyperparameter == "n_samples":
                points.append((reference, "independent", True))
            for value, kind, is_reference in points:
                effective = {"output": "logit"} | (
                    {hyperparameter: json.loads(value)} if hyperparameter else {}
                )
                tasks.append(
                    key
                    | {
                        "value": value,
                        "draws": kind,
                        "is_reference": is_reference or not hyperparameter,
                        "task_id": f"{int(1e15 * number(method, model, value, kind)):016x}",
                        "hyperparameters": json.dumps(effective),
                        "n_images": len(IMAGES),
                        "forward_passes": 30,
                        "backward_passes": 0,
                    }
                )
            kinds = [draws, "independent"] if hyperparameter == "n_samples" else [draws]
            for kind in kinds:
                readings = (
                    [*READINGS, ("dynamic_range", "raw")]
                    if hyperparameter
                    else [("dynamic_range", "raw")]
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
                            | {
                                "ci_low": mean - 0.1,
                                "ci_high": mean + 0.1,
                                "n_degenerate": 0,
                                "n_inverted": 0,
                            }
                        )
                    mean = number(method, sweep, model, metric, convention, kind)
                    sensitivity.append(
                        {**key, **reading, "n_images": len(IMAGES), "n_settings": len(values)}
                        | {"mean": mean, "ci_low": mean - 0.1, "ci_high": mean + 0.1}
                        | {
                            "std_rms": mean / 9,
                            "std_mean": mean / 10,
                            "n_degenerate": 0,
                            "n_inverted": 0,
                        }
                    )
                    for image in IMAGES:
                        score = number(method, sweep, model, metric, convention, kind, image)
                        about = {"image_id": image, "class_name": "star", "photo": "coffee"}
                        images.append(
                            key
                            | about
                            | reading
                            | {"mean": score, "std": 0.1, "n_degenerate": 0, "n_inverted": 0}
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


UNITS = ("conv1", "inception3a", "fc")


# Per method: whether it draws random numbers, and its orders.
RANDOMIZED = {"gradient": (False, ("independent", "top_down")), "lime": (True, ("independent",))}


SETTINGS = {"gradient": {"output": "logit"}, "lime": {"n_samples": 100, "baseline": None}}


def make_randomization(methods: dict = RANDOMIZED) -> dict[str, pd.DataFrame]:
    """Tables of parameter randomization whose numbers are made up."""
    ipr, units = [], []
    for model in MODELS:
        for method, (stochastic, orders) in methods.items():
            for order in orders:
                for metric, convention in READINGS:
                    names = (model, method, metric, convention, order, "init")
                    key = dict(zip(IPR_COLUMNS[:6], names, strict=True))
                    row = {name: number(*key.values(), name) for name in IPR_COLUMNS[7:]}
                    counts = {
                        "n_images": 8,
                        "n_units": len(UNITS),
                        "n_draws": 2,
                        "n_degenerate": 1,
                        "n_inverted": 2,
                    }
                    row |= key | counts | {"preset": "paper", "passes": "inconclusive"}
                    if not stochastic:
                        row |= {"S_fresh": row["S_same"], "floor": 0.0, "S_rel": np.nan}
                    if metric != "ssim":
                        row |= {"threshold": np.nan, "passes": ""}
                    ipr.append(row)
                    for index, unit in enumerate(UNITS):
                        about = key | {"unit": unit, "unit_index": index, "n_images": 8}
                        about |= {"n_draws": 2, "n_degenerate": 0, "n_inverted": 0}
                        moved = {
                            name: number(*key.values(), unit, name)
                            for name in ("S_same", "low", "high", "S_fresh", "draw_sd")
                        }
                        function = {
                            name: number(model, order, unit, name) - 0.5
                            for name in ("accuracy", "kept_predictions", "target_change")
                        }
                        units.append(about | moved | function)
    return {
        "ipr": pd.DataFrame(ipr, columns=list(IPR_COLUMNS)),
        "ipr_units": pd.DataFrame(units, columns=list(UNIT_COLUMNS)),
    }


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
        "data": {"kind": "embedded", "digest": "d" * 64, "n_train": 4000, "n_val": 800},
    }
    return card, curves


def finished(card: dict) -> dict:
    accuracies = {"clean": 0.83, "n_clean": 800, "robust": 0.54, "n_robust": 400, "attack": {}}
    return card | {"accuracies": accuracies, "weights_sha256": "f" * 64}


def mirror_sweeps(tables, *, origin, uri, figures=None, **options):
    """Mirror sweeps and searches alone; counts of runs."""
    with open_writer(origin, uri) as writer:
        write_sweeps(writer, Study(origin.study, tables, figures), **options)
        return writer.mirrored


def mirror_randomization(tables, *, origin, uri, settings=None):
    """Mirror the randomization of parameters alone; counts of runs."""
    with open_writer(origin, uri) as writer:
        study = Study(origin.study, tables)
        write_randomization(writer, study, SETTINGS if settings is None else settings)
        return writer.mirrored
