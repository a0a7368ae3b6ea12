"""The mirror is complete, readable, idempotent, and can be rebuilt."""

import json

import numpy as np
import pandas as pd

from steadymap.tracking import (
    Origin,
)

STUDY = "tiny"
MODELS = ("googlenet", "googlenet-r")
IMAGES = ("a0", "b1", "c2")
SWEEPS = {
    ("gradient", "default"): ("", (), "", "none"),
    ("smoothgrad", "SG-N"): ("n_samples", ("5", "10", "20"), "5", "nested"),
    ("sliding_patch", "SP-L"): ("patch_size", ("5", "9", "11"), "9", "none"),
    ("sliding_patch", "SP-S"): ("patch_size", ("14", "15"), "15", "none"),
}
READINGS = [("ssim", "common"), ("ssim", "sam"), ("spearman", "signed"), ("hog_pearson", "cells4")]
ORIGIN = Origin(STUDY, git_commit="0123abc", dvc_stage="track")


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
                for metric, convention in readings:
                    reading = {"metric": metric, "convention": convention, "draws": kind}
                    for value in values or ("",):
                        if value == reference and metric != "dynamic_range":
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
