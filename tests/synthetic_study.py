"""A study's tables, maps and data, made up, in the files that the stages would write."""

import json
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

from steadymap.analysis import parameters
from steadymap.analysis import plane as analysis_plane
from steadymap.analysis import structure as analysis_structure
from steadymap.analysis.claims import ipr
from steadymap.params.schema import Statistics
from steadymap.store.atomic import write_json
from steadymap.store.maps import write_maps
from steadymap.store.tables import write_table

# Name, method, hyperparameter, values, reference, draws; a sweep over a count has both draws.
SWEEPS: tuple[tuple, ...] = (
    ("SG-N", "smoothgrad", "n_samples", ("5", "10", "20", "50"), "5", "both"),
    ("SG-sigma", "smoothgrad", "sigma", ("0.1", "0.2", "0.3"), "0.2", "nested"),
    ("SP-L", "sliding_patch", "patch_size", ("3", "5", "9", "11", "15"), "9", "none"),
    ("SP-S", "sliding_patch", "patch_size", ("14", "15", "16"), "15", "none"),
)
# The paper's, as far as its figures and tables need them.
SAM_SWEEPS: tuple[tuple, ...] = (
    *SWEEPS,
    ("IG-N", "integrated_gradients", "n_trials", ("2", "5", "10"), "2", "both"),
    ("LIME-seed", "lime", "seed", ("0", "1", "2"), "0", "independent"),
    ("LIME-N", "lime", "n_samples", ("200", "400"), "400", "both"),
    ("LIME-S", "lime", "n_superpixels", ("50", "150"), "50", "nested"),
    ("MP-N", "meaningful_perturbation", "n_iterations", ("10", "30", "60"), "30", "nested"),
    ("MP-blur", "meaningful_perturbation", "blur_radius", ("1.5", "3", "8.5"), "3", "nested"),
    ("MP-seed", "meaningful_perturbation", "seed", ("0", "1", "2"), "0", "independent"),
)
PLAIN = ("gradient", "input_x_gradient", "guided_backprop")
TABLE_ROWS = {"SG": "SG-N", "SP-S": "SP-S", "SP-L": "SP-L", "LIME": "LIME-seed", "MP": "MP-seed"}
PATCHES, OBJECTS = (3, 5, 9), (6, 24)
# Level of S, whether it draws random numbers, and the setting where the method has sweeps.
RANDOMIZED: dict[str, tuple[float, bool, dict]] = {
    "gradient": (0.8, False, {}),
    "guided_backprop": (0.02, False, {}),
    "smoothgrad": (0.6, True, {"n_samples": 5, "seed": 0}),
    "sliding_patch": (0.4, False, {"patch_size": 9, "seed": 0}),
    "lime": (0.9, True, {}),
}
UNITS = ("conv1", "conv2", "inception3a", "inception4a", "inception5b")
MEASURES = (
    ("ssim", "common"),
    ("ssim", "sam"),
    ("ssim", "wang"),
    ("spearman", "signed"),
    ("pearson", "signed"),
    ("hog_pearson", "cells4"),
    ("ssim", "mass_weighted"),
)


@dataclass(frozen=True)
class Study:
    """What the synthetic study holds."""

    models: tuple[str, ...] = ("googlenet", "googlenet-r")
    sweeps: tuple[tuple, ...] = SWEEPS
    without_sweeps: tuple[str, ...] = ("gradient",)
    n_images: int = 6
    size: int = 32
    photos: bool = True
    boxes: bool = True
    maps: bool = True
    data: bool = True
    degenerate: bool = False
    # Sweeps, and methods of randomized models, whose maps turn over where SSIM sees little.
    inverted: tuple[str, ...] = ()
    accuracy: bool = False
    comparisons: bool = False
    randomization: bool = False
    units: tuple[str, ...] = UNITS
    n_draws: int = 2
    orders: tuple[str, ...] = ("independent",)
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
    without_sweeps = [("default", name, "", ("",), "", "none") for name in study.without_sweeps]
    for sweep, method, hyperparameter, values, reference, draws in (*study.sweeps, *without_sweeps):
        own = "nested" if draws == "both" else draws
        points = [(value, own, 0) for value in values]
        points += [(reference, "independent", 1)] if draws == "both" else []
        for model in study.models:
            base = {
                "sweep": sweep,
                "method": method,
                "model": model,
                "hyperparameter": hyperparameter,
            }
            made = {}
            for value, kind, seed in points:
                stack = _heatmaps(masks, hyperparameter, value, model, seed, study)
                effective = {hyperparameter: _typed(value), "seed": seed} if hyperparameter else {}
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
            if study.accuracy:
                scores += _accuracies(base, made, rows, study)
    write_table(pd.DataFrame(scores, columns=_SCORES), results / "scores.parquet")
    _write_analysis(reports / "tables", pd.DataFrame(scores, columns=_SCORES), study, rows)
    write_table(pd.DataFrame(tasks, columns=_TASKS), reports / "tables" / "tasks.csv")
    tables = reports / "tables"
    if study.accuracy:
        _write_accuracy_tables(tables, study)
    if study.comparisons:
        _write_comparisons(tables, results / "comparisons", study, rows, images, masks)
    if study.randomization:
        _write_randomization(tables, results, study, rows, masks, scores)
    if study.maps:
        for method, by_key in stacks.items():
            write_maps(
                results / "maps" / method,
                method=method,
                image_ids=list(rows["image_id"]),
                settings=[{"hyperparameters": json.loads(key), "task_ids": {}} for key in by_key],
                maps={m: iter([by_model[m] for by_model in by_key.values()]) for m in study.models},
                **_extras(method, study, rows, [json.loads(key) for key in by_key]),
            )
    return reports, results


def _extras(method: str, study: Study, rows: pd.DataFrame, settings: list[dict]) -> dict:
    """Losses, snapshots and the step of convergence of meaningful perturbation."""
    if method != "meaningful_perturbation":
        return {"diagnostics": []}
    n, arrays, notes = len(rows), {}, []
    for model in study.models:
        for index, setting in enumerate(settings):
            steps = int(setting.get("n_iterations", 30))
            falling = np.exp(-np.arange(steps) / (3 if model.endswith("-r") else 15))
            total = np.tile(falling, (n, 1)) + np.arange(n)[:, None]
            kept = np.array([0, 1, steps])
            arrays[model, index] = {
                "loss_total": total,
                "loss_l1": 0.1 * total,
                "loss_tv": 0.2 * total,
                "loss_probability": 0.7 * total,
                "snapshots": np.ones((n, 3, 8, 8)) * np.array([1, 0.5, 0.2])[:, None, None],
                "snapshot_steps": np.tile(kept, (n, 1)),
            }
            named = {"model": model, "setting": index, "image_id": rows["image_id"]}
            notes.append(pd.DataFrame({**named, "name": "converged_step", "value": steps / 3}))
    return {"diagnostics": notes, "arrays": arrays}


def _typed(value: str) -> float | int | str:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


_GROUP = ["sweep", "method", "hyperparameter", "model", "metric", "convention", "draws"]
_SCORES = [*_GROUP, "value", "image_id", "score", "degenerate", "inverted"]
_SIGNED = ("spearman", "pearson")
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
        center = x0 + size // 4, x0 + 2 + size // 4
        mask = np.hypot(across - center[0], down - center[1]) < size // 4
        noise = gaussian_filter(random.normal(size=(size, size, 3)), (3, 3, 0))
        color = np.array([0.9, 0.6, 0.2])[[index % 3, (index + 1) % 3, (index + 2) % 3]]
        pixels = np.where(mask[..., None], color, 0.5 + noise)
        images.append(np.uint8(255 * np.clip(pixels, 0, 1)))
        masks.append(mask)
    return np.array(images), np.array(masks)


def _heatmaps(
    masks: np.ndarray, hyperparameter: str, value: str, model: str, seed: int, study: Study
) -> np.ndarray:
    if study.degenerate:
        return np.zeros(masks.shape, np.float32)
    typed = _typed(value)
    number = float(typed) if isinstance(typed, int | float) else float(len(value))
    draws = int(number) if hyperparameter == "n_samples" else 25
    robust = model.endswith("-r")
    blur = (
        number / 3
        if hyperparameter == "patch_size"
        else 1.0 + 5 * number * (hyperparameter == "sigma")
    )
    # The first draws are the same whatever their number: nested, as the study's are.
    random = np.random.default_rng((seed, len(model)))
    grain = np.mean([random.normal(size=masks.shape) for _ in range(draws)], axis=0)
    grain = gaussian_filter(grain, (0, 0.8, 0.8))
    hilly = gaussian_filter(masks.astype(float), (0, blur, blur))
    hilly = hilly - 0.5 * gaussian_filter(masks.astype(float), (0, 4 * blur, 4 * blur))
    noise = (0.3 if robust else 1.0) * (0.3 if hyperparameter == "patch_size" else 1.0)
    scale = np.linspace(0.5, 2, len(masks))[:, None, None]
    return (0.01 * (hilly + noise * scale * grain)).astype(np.float32)


def _scores(base: dict, reference: str, made: dict, rows: pd.DataFrame, study: Study) -> list[dict]:
    """Rows of one sweep and model: real SSIM for `common`, the other measures a step below."""
    found = []
    for (value, kind), stack in made.items():
        for image_id, heatmap in zip(rows["image_id"], stack, strict=True):
            score = {"score": float(np.ptp(heatmap)), "degenerate": study.degenerate}
            score["inverted"] = False
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
                    score["inverted"] = base["sweep"] in study.inverted
                    if score["inverted"]:
                        score["score"] = -0.9 if metric in _SIGNED else 0.98
                    found.append(base | named | score | {"value": value, "image_id": image_id})
    return found


def _accuracies(base: dict, made: dict, rows: pd.DataFrame, study: Study) -> list[dict]:
    """Accuracy scores that depend on setting, image and model, reference included."""
    measures = [("insertion", "auc"), ("insertion", "auc_over_max")]
    measures += [("deletion", "auc"), ("deletion", "auc_over_max")]
    if study.boxes:
        measures += [("localization_error", "alpha0.25"), ("iou", "alpha0.25")]
    random = np.random.default_rng(len(base["sweep"]) + len(base["model"]))
    found = []
    for value, kind in made:
        for image_id in rows["image_id"]:
            drawn = random.uniform(0.3, 0.7, len(measures))
            for (metric, convention), score in zip(measures, drawn, strict=True):
                score = float(score > 0.5) if metric == "localization_error" else float(score)
                named = {"metric": metric, "convention": convention, "draws": kind}
                row = {"value": value, "image_id": image_id, "score": score, "degenerate": False}
                row["inverted"] = False
                found.append(base | named | row)
    return found


def _write_accuracy_tables(tables: Path, study: Study) -> None:
    known = {sweep[0]: sweep for sweep in study.sweeps}
    accuracy = ("localization_error", "insertion", "deletion")
    metrics = [m for m in accuracy if study.boxes or m != "localization_error"]
    names = {"googlenet": "GoogLeNet", "resnet18": "ResNet"}
    random = np.random.default_rng(3)
    rows, spreads = [], []
    for row, sweep in TABLE_ROWS.items():
        for model in study.models if sweep in known else ():
            family = names.get(model.removesuffix("-r"), "")
            for metric in ("ssim", *metrics):
                mean, std = random.uniform(0.3, 0.9), random.uniform(0.01, 0.1)
                rows.append(
                    {"row": row, "sweep": sweep, "model": model, "metric": metric}
                    | {"mean": mean, "std_rms": std, "std_mean": 0.9 * std}
                    | {"mean_low": mean - 0.05, "mean_high": mean + 0.05}
                    | {"rms_low": 0.8 * std, "rms_high": 1.2 * std, "n_images": study.n_images}
                    | {"paper_model": family + "-R" * (model.endswith("-r") and bool(family))}
                    | {"paper_mean": 0.6422 if family else np.nan}
                    | {"paper_std": 0.3197 if family else np.nan}
                )
    for sweep, method, hyperparameter, values, *_ in study.sweeps:
        for metric in metrics:
            kinds = ["alpha0.25"] if metric == "localization_error" else ["auc", "auc_over_max"]
            for model in (*study.models, "mean"):
                for convention in kinds:
                    std = 10 ** random.uniform(-3, -1)
                    spreads.append(
                        {
                            "sweep": sweep,
                            "method": method,
                            "hyperparameter": hyperparameter,
                            "model": model,
                        }
                        | {"metric": metric, "convention": convention}
                        | {"n_images": study.n_images, "n_settings": len(values), "std": std}
                        | {"std_low": 0.7 * std, "std_high": 1.4 * std}
                        | {"seed_sd": 0.02 if hyperparameter == "seed" else np.nan}
                        | {"std_scaled": std / (10 if hyperparameter == "seed" else 1.1)}
                    )
    columns = ["row", "sweep", "model", "metric", "mean", "std_rms", "std_mean", "mean_low"]
    columns += ["mean_high", "rms_low", "rms_high", "n_images", "paper_model", "paper_mean"]
    write_table(pd.DataFrame(rows, columns=[*columns, "paper_std"]), tables / "table_s1.csv")
    columns = ["sweep", "method", "hyperparameter", "model", "metric", "convention", "n_images"]
    columns += ["n_settings", "std", "std_low", "std_high", "seed_sd", "std_scaled"]
    write_table(pd.DataFrame(spreads, columns=columns), tables / "global_std.csv")
    trivial = [
        {"name": name, "metric": metric, "convention": "alpha0.25", "n_images": study.n_images}
        | {"mean": 0.1 * place + 0.3, "ci_low": 0.1 * place + 0.2, "ci_high": 0.1 * place + 0.4}
        for place, name in enumerate(("whole_image", "center_box", "random", "edges"))
        for metric in ("localization_error", "iou")
    ]
    columns = ["name", "metric", "convention", "n_images", "mean", "ci_low", "ci_high"]
    frame = pd.DataFrame(trivial if study.boxes else [], columns=columns)
    write_table(frame, tables / "localization_baselines.csv")
    if study.boxes:
        chosen = [
            {"sweep": sweep[0], "method": sweep[1], "model": model, "metric": "localization_error"}
            | {"convention": "alpha0.50", "n_scores": 4, "mean": 0.777, "alpha": 0.5}
            | {"draws": "independent" if sweep[2] == "seed" else "nested", "n_chosen_on": 4}
            for sweep in study.sweeps
            for model in study.models
        ]
        write_table(pd.DataFrame(chosen), tables / "localization_chosen.csv")
    verdicts = ["holds", "holds", "fails", "inconclusive", "not measurable here"]
    claims = [
        {"claim": f"{place + 1}", "name": f"claim {place + 1}", "section": "4.5"}
        | {"statement": f"Robust models are {place + 2} times steadier", "recipe": "a ratio"}
        | {"paper_value": 1.4, "value": np.nan if verdict[:3] == "not" else 1.2 + place / 10}
        | {"ci_low": 1.1, "ci_high": 1.9, "unit": "ratio", "n_images": study.n_images}
        | {"direction": verdict, "size": "" if verdict[:3] == "not" else "inside"}
        | {"reason": "the study has no ResNet pair" if verdict[:3] == "not" else ""}
        for place, verdict in enumerate(verdicts)
    ]
    write_table(pd.DataFrame(claims), tables / "claims.csv")


_COMPARED = ["comparison", "model", "other", "role", "method", "value", "pairing"]


def _write_comparisons(tables, folder, study, rows, images, masks) -> None:
    """Scores, tables and archives of comparisons, as `compare` and `analyze` write them."""
    robust = [name for name in study.models if name.endswith("-r")]
    regular = [name for name in study.models if not name.endswith("-r")]
    values = {sweep[0]: (sweep[1], sweep[3]) for sweep in study.sweeps}
    wanted = []
    for method in PLAIN[:2]:
        for variance in ("0.1", "0.01"):
            names = (f"{method}-noise", "", "self", method, variance, "same")
            wanted += [(names[0], model, *names[1:]) for model in study.models]
    for towards, sweep in (("gradient", "SG-N"), ("input_x_gradient", "IG-N")):
        method, steps = values.get(sweep, ("", ()))
        settings = [(towards, "0"), *((method, step) for step in steps), ("guided_backprop", "")]
        for other in robust:
            for model in regular if steps else ():
                role = "twin" if other == f"{model}-r" else "control"
                wanted += [
                    (f"denoising-{towards}", model, other, role, used, value, pairing)
                    for used, value in settings
                    for pairing in ("same", "mismatched")
                ]
    wanted += [("distance", m, "", "self", "smoothgrad", "5-50", "same") for m in study.models]
    random, scores = np.random.default_rng(5), []
    for names in wanted:
        level = 0.05
        if names[0] != "distance":
            level = 0.2 + 0.1 * ("-r" in names[1]) + 0.004 * float(names[5] or 60)
            level -= 0.1 * (names[6] == "mismatched")
        for image_id in rows["image_id"]:
            score = level + random.normal(0, 0.02)
            measures = [*MEASURES, *([("l1", "max_abs")] if names[0] == "distance" else [])]
            for metric, convention in measures:
                named = dict(zip(_COMPARED, names, strict=True))
                row = {"image_id": image_id, "metric": metric, "convention": convention}
                flags = {"degenerate": False, "inverted": False}
                scores.append(named | row | {"score": score} | flags)
    columns = [*_COMPARED, "image_id", "metric", "convention", "score", "degenerate", "inverted"]
    frame = pd.DataFrame(scores, columns=columns)
    write_table(frame, folder / "comparisons.parquet")
    summary = [
        dict(zip([*_COMPARED, "metric", "convention"], key, strict=True))
        | {"n_images": len(own), **_interval(own["score"])}
        | {"std": own["score"].std(ddof=0), "n_degenerate": 0, "n_inverted": 0}
        for key, own in frame.groupby([*_COMPARED, "metric", "convention"], sort=False)
    ]
    columns = [*_COMPARED, "metric", "convention", "n_images", "mean", "ci_low", "ci_high"]
    frame = pd.DataFrame(summary, columns=[*columns, "std", "n_degenerate", "n_inverted"])
    write_table(frame, tables / "comparisons.csv")
    made = _structure(study, rows)
    write_table(made, folder / "structure.parquet")
    frame = analysis_structure.structure(made, rows, Statistics(confidence=0.95))
    write_table(frame, tables / "structure.csv")
    for variance in ("0.1", "0.01"):
        _write_made(folder / f"noise-{variance}", rows, 255 - images)
        for method in PLAIN[:2]:
            stacks = {m: [_heatmaps(masks, "", "", m, 3, study)] for m in study.models}
            _write_archive(
                folder / f"noise-{variance}" / "maps" / method, method, rows, [{}], stacks
            )
    stacks = {m: [0.1 * masks[:1].astype(np.float32)] * 3 for m in study.models[:2]}
    settings = [{"n_samples": n, "sigma": 0.3} for n in (3, 5, 8)]
    _write_archive(folder / "teaser" / "smoothgrad", "smoothgrad", rows[:1], settings, stacks)
    objects = []
    for size in OBJECTS if study.boxes else ():
        own = rows[:2].assign(image_id=[f"{i}@{size}px" for i in rows["image_id"][:2]])
        place = folder / f"object-{size}px"
        _write_made(place, own, images[:2])
        stacks = {
            m: [patch * masks[:2].astype(np.float32) for patch in PATCHES] for m in study.models
        }
        settings = [{"patch_size": patch, "stride": 1} for patch in PATCHES]
        _write_archive(place / "maps" / "sliding_patch", "sliding_patch", own, settings, stacks)
        objects += [
            {"model": model, "image_id": image_id, "object_size": size, "patch_size": patch}
            | {
                "object_area": size**2,
                "area_above_half": patch**2,
                "peak": patch / 20,
                "score": 0.9,
            }
            for model in study.models
            for image_id in rows["image_id"][:2]
            for patch in PATCHES
        ]
    columns = ["model", "image_id", "object_size", "patch_size", "object_area"]
    frame = pd.DataFrame(objects, columns=[*columns, "area_above_half", "peak", "score"])
    write_table(frame, tables / "object_size.csv")


def _structure(study: Study, rows: pd.DataFrame) -> pd.DataFrame:
    """Structure of the maps of each sweep's reference, more of it on robust models."""
    references = [(sweep, method, value) for sweep, method, _, _, value, _ in study.sweeps]
    references += [("default", method, "") for method in study.without_sweeps]
    metrics = [name for name in analysis_structure.MEASURES if study.boxes or name != "mass_inside"]
    random, ids = np.random.default_rng(13), list(rows["image_id"])
    return pd.DataFrame(
        {"sweep": sweep, "method": method, "model": model, "value": value, "image_id": image_id}
        | {"other": other, "metric": metric, "pairing": pairing, "degenerate": study.degenerate}
        | {
            "score": 0.1
            + 0.3 * (pairing == "same") * (1 + model.endswith("-r"))
            + random.normal(0, 0.02)
        }
        for sweep, method, value in references
        for model in study.models
        for metric in metrics
        for pairing, others in (("same", ids), ("mismatched", [*ids[1:], ids[0]]))
        for image_id, other in zip(ids, others, strict=True)
    )


def _write_randomization(tables, results, study, rows, masks, sweep_scores) -> None:
    """Scores, tables and pictures as `randomize` and `analyze` write them."""
    random = np.random.default_rng(11)
    found, changes = [], []
    for model in study.models:
        for order in study.orders:
            for place, unit in enumerate(study.units):
                where = {"model": model, "order": order, "unit": unit, "unit_index": place}
                for draw in range(study.n_draws):
                    lost = 0.2 + 0.7 * (place + 1) / len(study.units)
                    kept = {"accuracy": 1 - lost, "kept_predictions": 1 - 0.9 * lost}
                    change = {"target_change": -lost * random.uniform(0.8, 1), "n_images": 64}
                    changes.append(where | {"draw": draw, "randomizer": "init"} | kept | change)
        for method, (level, stochastic, _) in RANDOMIZED.items():
            kinds = ["same", *(["fresh"] if stochastic else [])]
            cells = [
                (kind, order, unit, place, draw)
                for kind in kinds
                for order in study.orders
                for place, unit in enumerate(study.units)
                for draw in range(study.n_draws)
            ]
            still = ["mismatch", *(["floor"] if stochastic else [])]
            cells += [(kind, "", "", -1, draw) for kind in still for draw in range(study.n_draws)]
            for kind, order, unit, place, draw in cells:
                mean = level * (1 - 0.1 * model.endswith("-r")) * (0.8 + 0.08 * place)
                mean = {"floor": 0.2, "mismatch": 0.95}.get(kind, mean)
                named = {"model": model, "method": method, "order": order, "unit": unit}
                named |= {"unit_index": place, "draw": draw, "kind": kind}
                named |= {"randomizer": "init", "preset": "paper"}
                for image_id in rows["image_id"]:
                    moved = mean + 0.1 * level * random.normal()
                    for step, (metric, convention) in enumerate(MEASURES):
                        score = {"metric": metric, "convention": convention, "degenerate": False}
                        score |= {"image_id": image_id, "score": 1 - moved - 0.02 * step}
                        score["inverted"] = kind == "same" and method in study.inverted
                        if score["inverted"]:
                            score["score"] = -0.9 if metric in _SIGNED else 0.98
                        found.append(named | score)
    folder = results / "randomization"
    scores = pd.DataFrame(found)
    changes = pd.DataFrame(changes)
    write_table(scores, folder / "scores.parquet")
    write_table(changes, folder / "changes.parquet")
    write_json({name: one[2] for name, one in RANDOMIZED.items()}, folder / "settings.json")
    options = Statistics(confidence=0.95)
    table = parameters.ipr(scores, rows, options)
    units = parameters.ipr_units(scores, changes, rows, options)
    architectures = {name: name.removesuffix("-r") for name in study.models}
    references = {
        sweep: {hyperparameter: _typed(reference), "seed": 0}
        for sweep, _, hyperparameter, _, reference, _ in study.sweeps
    }
    plane = analysis_plane.plane(
        scores,
        pd.DataFrame(sweep_scores, columns=_SCORES),
        rows,
        options,
        references=references,
        settings={name: one[2] for name, one in RANDOMIZED.items()},
    )
    failures = [
        {"model": study.models[0], "method": "guided_gradcam", "order": "independent"}
        | {"unit": unit, "draw": 0, "reason": "no layer | to weigh"}
        for unit in study.units[:2]
    ]
    for name, frame in (
        ("ipr", table),
        ("ipr_units", units),
        ("ipr_function", parameters.function_correlation(units)),
        ("ipr_correlations", parameters.correlations(table, architectures)),
        (
            "ipr_claims",
            ipr.ipr_claims(scores, rows, options, architectures=architectures),
        ),
        ("plane", plane),
        ("ipr_failures", pd.DataFrame(failures)),
    ):
        write_table(frame, tables / f"{name}.csv")
    if not study.maps:
        return
    pictures = folder / "pictures"
    for model in study.models:
        (pictures / model).mkdir(parents=True)
        for method, (level, *_) in RANDOMIZED.items():
            hill = gaussian_filter(masks[0].astype(float), 2)
            grain = random.normal(size=(len(study.units) + 1, *hill.shape))
            grain[0] *= 0.05
            stack = hill + 0.3 * level * gaussian_filter(grain, (0, 0.8, 0.8))
            np.save(pictures / model / f"{method}.npy", stack.astype(np.float32))
    index = {"image_id": rows["image_id"].iloc[0], "order": "independent", "draw": 0}
    index["units"] = {model: list(study.units) for model in study.models}
    write_json(index, pictures / "index.json")


def _write_made(folder: Path, rows: pd.DataFrame, images: np.ndarray) -> None:
    write_table(rows, folder / "evaluation_set.csv")
    np.save(folder / "images.npy", images)


def _write_archive(folder, method, rows, settings, stacks) -> None:
    write_maps(
        folder,
        method=method,
        image_ids=list(rows["image_id"]),
        settings=[{"hyperparameters": one, "task_ids": {}} for one in settings],
        maps={model: iter(stack) for model, stack in stacks.items()},
        diagnostics=[],
    )


def _interval(values: pd.Series) -> dict:
    half = 1.96 * values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    mean = values.mean()
    return {"mean": mean, "ci_low": mean - half, "ci_high": mean + half}


def _flagged(group: pd.DataFrame) -> dict:
    return {f"n_{name}": int(group[name].sum()) for name in ("degenerate", "inverted")}


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
                | _flagged(own)
            )
        by_image = group.groupby("image_id")["score"]
        means, stds = by_image.mean(), by_image.std(ddof=0)
        for image_id, own in group.groupby("image_id"):
            images.append(
                named
                | {"image_id": image_id, "class_name": facts.loc[image_id, "class_name"]}
                | {"photo": facts.loc[image_id, "photo"], "mean": means[image_id]}
                | {"std": stds[image_id], **_flagged(own)}
            )
        sensitivity.append(
            named
            | {"n_images": int(means.notna().sum()), "n_settings": group["value"].nunique() + 1}
            | _interval(means)
            | {"std_rms": float((stds**2).mean() ** 0.5), "std_mean": stds.mean()}
            | _flagged(group)
        )
    flags = ["n_degenerate", "n_inverted"]
    tail = ["n_images", "mean", "ci_low", "ci_high", "std", *flags]
    spread = ["n_settings", "mean", "ci_low", "ci_high", "std_rms", "std_mean", *flags]
    each = ["image_id", "class_name", "photo", "mean", "std", *flags]
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
