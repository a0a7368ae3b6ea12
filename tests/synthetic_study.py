"""A study's tables, maps and data, made up, in the files that the stages would write."""

import json
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

from steadymap.store import write_json, write_maps, write_table

# Name, method, hyperparameter, values, reference, draws; a sweep over a count has both draws.
SWEEPS: tuple[tuple, ...] = (
    ("SG-N", "smoothgrad", "n_samples", ("5", "10", "20", "50"), "5", "both"),
    ("SG-sigma", "smoothgrad", "sigma", ("0.1", "0.2", "0.3"), "0.2", "nested"),
    ("SP-L", "sliding_patch", "patch_size", ("3", "5", "9", "11", "15"), "9", "none"),
    ("SP-S", "sliding_patch", "patch_size", ("14", "15", "16"), "15", "none"),
)
MEASURES = (
    ("ssim", "common"),
    ("ssim", "sam"),
    ("ssim", "wang"),
    ("spearman", "signed"),
    ("pearson", "signed"),
    ("hog_pearson", "cells4"),
)


@dataclass(frozen=True)
class Study:
    """What the synthetic study holds."""

    models: tuple[str, ...] = ("googlenet", "googlenet-r")
    sweeps: tuple[tuple, ...] = SWEEPS
    knobless: tuple[str, ...] = ("gradient",)
    n_images: int = 6
    size: int = 32
    photos: bool = True
    boxes: bool = True
    maps: bool = True
    data: bool = True
    degenerate: bool = False
    classes: tuple[str, ...] = ("disc", "ring", "star", "heart")
    params: dict = field(default_factory=lambda: {"study": "toy", "seed": 0})


def write_study(folder: Path, study: Study) -> tuple[Path, Path]:
    """Write reports/toy and results/toy below `folder`; both paths."""
    reports, results = folder / "reports" / "toy", folder / "results" / "toy"
    rows = _evaluation_set(study)
    images, masks = _images(rows, study.size)
    _write_inputs(reports, results, study, rows, images, masks)
    scores, tasks = [], []
    stacks: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    knobless = [("default", name, "", ("",), "", "none") for name in study.knobless]
    for sweep, method, knob, values, reference, draws in (*study.sweeps, *knobless):
        own = "nested" if draws == "both" else draws
        points = [(value, own, 0) for value in values]
        points += [(reference, "independent", 1)] if draws == "both" else []
        for model in study.models:
            base = {"sweep": sweep, "method": method, "model": model, "hyperparameter": knob}
            made = {}
            for value, kind, seed in points:
                stack = _heatmaps(masks, knob, value, model, seed, study)
                effective = {knob: _typed(value), "seed": seed} if knob else {}
                key = json.dumps(effective, sort_keys=True)
                stacks.setdefault(method, {}).setdefault(key, {})[model] = stack
                made[value, kind] = stack
                tasks.append(
                    base
                    | {
                        "value": value,
                        "draws": kind,
                        "is_reference": value == reference,
                        "task_id": sha256(f"{method}{key}{model}".encode()).hexdigest()[:16],
                        "hyperparameters": key,
                        "n_images": study.n_images,
                        "forward_passes": 10 * study.n_images,
                        "backward_passes": 10 * study.n_images * (method != "sliding_patch"),
                    }
                )
            scores += _scores(base, reference, made, rows, study)
    write_table(pd.DataFrame(scores, columns=_SCORES), results / "scores.parquet")
    _write_analysis(reports / "tables", pd.DataFrame(scores, columns=_SCORES), study, rows)
    write_table(pd.DataFrame(tasks, columns=_TASKS), reports / "tables" / "tasks.csv")
    if study.maps:
        for method, by_key in stacks.items():
            write_maps(
                results / "maps" / method,
                method=method,
                image_ids=list(rows["image_id"]),
                settings=[{"hyperparameters": json.loads(key), "task_ids": {}} for key in by_key],
                maps={m: iter([by_model[m] for by_model in by_key.values()]) for m in study.models},
                diagnostics=[],
            )
    return reports, results


def _typed(value: str) -> float | int | str:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


_GROUP = ["sweep", "method", "hyperparameter", "model", "metric", "convention", "draws"]
_SCORES = [*_GROUP, "value", "image_id", "score", "degenerate"]
_TASKS = [*_GROUP[:4], "value", "draws", "is_reference", "task_id", "hyperparameters", "n_images"]
_TASKS += ["forward_passes", "backward_passes"]


def _evaluation_set(study: Study) -> pd.DataFrame:
    rows = []
    for index in range(study.n_images):
        label = index % len(study.classes)
        start = 3 + index % 5
        side = study.size // 2
        box = (start, start + 2, start + side, start + 2 + side) if study.boxes else (-1,) * 4
        rows.append(
            {
                "image_id": f"val-{index:05d}",
                "sha256": f"{index:064x}",
                "class_name": study.classes[label],
                "label": label,
                "target": label,
                "photo": f"photo{index % 3}" if study.photos else "",
                **dict(zip(("x0", "y0", "x1", "y1"), box, strict=True)),
            }
        )
    return pd.DataFrame(rows)


def _images(rows: pd.DataFrame, size: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(7)
    images, masks = [], []
    down, across = np.mgrid[:size, :size]
    for index, row in rows.iterrows():
        x0 = row["x0"] if row["x0"] >= 0 else 4
        centre = x0 + size // 4, x0 + 2 + size // 4
        mask = np.hypot(across - centre[0], down - centre[1]) < size // 4
        noise = gaussian_filter(random.normal(size=(size, size, 3)), (3, 3, 0))
        colour = np.array([0.9, 0.6, 0.2])[[index % 3, (index + 1) % 3, (index + 2) % 3]]
        pixels = np.where(mask[..., None], colour, 0.5 + noise)
        images.append(np.uint8(255 * np.clip(pixels, 0, 1)))
        masks.append(mask)
    return np.array(images), np.array(masks)


def _heatmaps(
    masks: np.ndarray, knob: str, value: str, model: str, seed: int, study: Study
) -> np.ndarray:
    if study.degenerate:
        return np.zeros(masks.shape, np.float32)
    typed = _typed(value)
    number = float(typed) if isinstance(typed, int | float) else float(len(value))
    draws = int(number) if knob == "n_samples" else 25
    robust = model.endswith("-r")
    blur = number / 3 if knob == "patch_size" else 1.0 + 5 * number * (knob == "sigma")
    # The first draws are the same whatever their number: nested, as the study's are.
    random = np.random.default_rng((seed, len(model)))
    grain = np.mean([random.normal(size=masks.shape) for _ in range(draws)], axis=0)
    grain = gaussian_filter(grain, (0, 0.8, 0.8))
    hilly = gaussian_filter(masks.astype(float), (0, blur, blur))
    hilly = hilly - 0.5 * gaussian_filter(masks.astype(float), (0, 4 * blur, 4 * blur))
    noise = (0.3 if robust else 1.0) * (0.3 if knob == "patch_size" else 1.0)
    scale = np.linspace(0.5, 2, len(masks))[:, None, None]
    return (0.01 * (hilly + noise * scale * grain)).astype(np.float32)


def _scores(base: dict, reference: str, made: dict, rows: pd.DataFrame, study: Study) -> list[dict]:
    """Rows of one sweep and model: real SSIM for `common`, the other measures a step below."""
    found = []
    for (value, kind), stack in made.items():
        for image_id, heatmap in zip(rows["image_id"], stack, strict=True):
            score = {"score": float(np.ptp(heatmap)), "degenerate": study.degenerate}
            raw = {"metric": "dynamic_range", "convention": "raw", "draws": kind}
            found.append(base | raw | score | {"value": value, "image_id": image_id})
    references = {kind: stack for (value, kind), stack in made.items() if value == reference}
    for kind, other in references.items():
        for (value, _), stack in made.items():
            if value == reference:
                continue
            for index, image_id in enumerate(rows["image_id"]):
                ssim = float("nan")
                if not study.degenerate:
                    a, b = (m[index] / np.abs(m[index]).max() for m in (stack, other))
                    ssim = float(structural_similarity(a, b, win_size=5, data_range=2.0))
                for place, (metric, convention) in enumerate(MEASURES):
                    named = {"metric": metric, "convention": convention, "draws": kind}
                    score = {"score": ssim - 0.04 * place, "degenerate": study.degenerate}
                    found.append(base | named | score | {"value": value, "image_id": image_id})
    return found


def _interval(values: pd.Series) -> dict:
    half = 1.96 * values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    mean = values.mean()
    return {"mean": mean, "ci_low": mean - half, "ci_high": mean + half}


def _write_analysis(tables: Path, scores: pd.DataFrame, study: Study, rows: pd.DataFrame) -> None:
    reference = {sweep[0]: sweep[4] for sweep in study.sweeps} | {"default": ""}
    sensitivity, settings, images = [], [], []
    facts = rows.set_index("image_id")
    for key, group in scores.groupby(_GROUP, sort=False):
        named = dict(zip(_GROUP, key, strict=True))
        for value, own in group.groupby("value", sort=False):
            settings.append(
                named
                | {"value": value, "is_reference": value == reference[named["sweep"]]}
                | {"n_images": int(own["score"].notna().sum()), "std": own["score"].std(ddof=0)}
                | _interval(own["score"])
                | {"n_degenerate": int(own["degenerate"].sum())}
            )
        by_image = group.groupby("image_id")["score"]
        means, stds = by_image.mean(), by_image.std(ddof=0)
        for image_id, own in group.groupby("image_id"):
            images.append(
                named
                | {"image_id": image_id, "class_name": facts.loc[image_id, "class_name"]}
                | {"photo": facts.loc[image_id, "photo"], "mean": means[image_id]}
                | {"std": stds[image_id], "n_degenerate": int(own["degenerate"].sum())}
            )
        sensitivity.append(
            named
            | {"n_images": int(means.notna().sum()), "n_settings": group["value"].nunique() + 1}
            | _interval(means)
            | {"std_rms": float((stds**2).mean() ** 0.5), "std_mean": stds.mean()}
            | {"n_degenerate": int(group["degenerate"].sum())}
        )
    tail = ["n_images", "mean", "ci_low", "ci_high", "std", "n_degenerate"]
    spread = ["n_settings", "mean", "ci_low", "ci_high", "std_rms", "std_mean", "n_degenerate"]
    each = ["image_id", "class_name", "photo", "mean", "std", "n_degenerate"]
    for name, made, columns in (
        ("sensitivity", sensitivity, ["n_images", *spread]),
        ("settings", settings, ["value", "is_reference", *tail]),
        ("images", images, each),
    ):
        write_table(pd.DataFrame(made, columns=_GROUP + columns), tables / f"{name}.csv")


def _write_inputs(reports, results, study, rows, images, masks) -> None:
    models, cards = [], []
    for name in study.models:
        robust = name.endswith("-r")
        models.append(
            {
                "model": name,
                "architecture": name.removesuffix("-r"),
                "robust": robust,
                "n_val": 800,
                "clean_accuracy": 0.78 if robust else 0.91,
                "attack": "l2 eps 1.5, 20 steps",
                "n_attacked": 400,
                "robust_accuracy": 0.54 if robust else 0.04,
                "n_parameters": 5_600_000,
                "weights_sha256": f"{len(name):064x}",
                "init_from": name.removesuffix("-r") if robust else "",
                "epochs": 8,
            }
        )
        cards.append({"model": name, "n_candidates": 800, "n_correct": 600, "n_dropped": 200})
        epochs = np.arange(1, 9)
        curve = pd.DataFrame(
            {
                "epoch": epochs,
                "train_loss": 2 / epochs,
                "train_accuracy": 1 - 0.8 / epochs,
                "val_accuracy": 1 - 0.85 / epochs,
                "val_robust_accuracy": (0.6 - 0.4 / epochs) if robust else np.nan,
                "learning_rate": 0.1,
                "seconds": 15.0,
            }
        )
        if study.data:
            write_table(curve, results / "models" / name / "curves.csv")
    tables = reports / "tables"
    write_table(pd.DataFrame(models), tables / "models.csv")
    write_table(pd.DataFrame(cards), tables / "evaluation_models.csv")
    write_table(rows, tables / "evaluation_set.csv")
    if not study.data:
        return
    folder = results / "evaluation_set"
    write_table(rows, folder / "evaluation_set.csv")
    np.save(folder / "images.npy", images)
    np.save(folder / "masks.npy", masks)
    write_json(
        {
            "kind": "embedded",
            "classes": list(study.classes),
            "image_size": study.size,
            "digest": "d" * 64,
            "photographs": {"train": ["photo9"], "val": ["photo0", "photo1", "photo2"]},
        },
        results / "data" / "dataset.json",
    )
    manifest = rows.rename(columns={"image_id": "id"}).drop(columns="target")
    manifest = pd.concat(
        [
            manifest.assign(split="train", id=[f"train-{i:05d}" for i in range(len(rows))]),
            manifest.assign(split="val"),
        ]
    )
    columns = ["id", "split", "class_name", "label", "sha256", "x0", "y0", "x1", "y1", "photo"]
    write_table(manifest[columns], results / "data" / "manifest.csv")
    for split in ("train", "val"):
        np.save(results / "data" / f"{split}.npy", images)
