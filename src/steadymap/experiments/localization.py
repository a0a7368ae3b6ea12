"""Localization of every map of a study, and of maps that know no model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from steadymap.draws import derived_seed
from steadymap.engine import evaluation_set as evaluation
from steadymap.experiments.similarity_scores import chunks
from steadymap.metrics.localization import ALPHAS, iou, localization_error, trivial_maps
from steadymap.params.schema import EmbeddedData, Params


class ChosenThreshold(NamedTuple):
    """A localization threshold, on how many images it was chosen, and scores of the others."""

    alpha: float
    n_images: int
    rows: pd.DataFrame


@dataclass(frozen=True)
class EvaluationImages:
    """The evaluation set as the metrics see it.

    Attributes
    ----------
    ids : list of str
        Image ids.
    pixels : ndarray
        Uint8 (n, height, width, 3).
    boxed : ndarray
        Positions of the images whose object's place is known.
    boxes, masks : ndarray or None
        Where that is, per image, as `iou` takes it: one of the two.
    """

    ids: list[str]
    pixels: np.ndarray
    boxed: np.ndarray
    boxes: np.ndarray | None = None
    masks: np.ndarray | None = None


def convention_of(alpha: float) -> str:
    """Name of a localization threshold in score rows: `alpha0.25`."""
    return f"alpha{alpha:.2f}"


def evaluation_images(folder: Path, params: Params) -> EvaluationImages:
    """Evaluation set of a folder, with the objects' boxes or masks."""
    rows, _, pixels = evaluation.read(folder)
    ids = list(rows["image_id"])
    masks = Path(folder) / "masks.npy"
    # Of photographs, masks are unions of boxes; of drawn images, the objects' outlines.
    if masks.is_file() and not isinstance(params.data, EmbeddedData):
        union = np.load(masks, mmap_mode="r")
        boxed = np.flatnonzero(union.any(axis=(1, 2)))
        return EvaluationImages(ids, pixels, boxed, masks=union)
    boxes = rows[["x0", "y0", "x1", "y1"]].fillna(-1).to_numpy()
    boxed = np.flatnonzero(boxes[:, 0] >= 0)
    return EvaluationImages(ids, pixels, boxed, boxes=boxes)


def located(
    stack: torch.Tensor, seen: EvaluationImages, some: slice
) -> dict[tuple[str, str], np.ndarray]:
    """Scores by metric and convention, one per map of some of the images that have a box."""
    where = seen.boxed[some]
    boxes = None if seen.boxes is None else seen.boxes[where]
    masks = None if seen.masks is None else seen.masks[where]
    measures = {"localization_error": localization_error, "iou": iou}
    return {
        (metric, convention_of(alpha)): values
        for metric, measure in measures.items()
        for alpha, values in zip(ALPHAS, measure(stack, boxes, masks).numpy().T, strict=True)
    }


def joined(
    parts: Sequence[dict[tuple[str, str], np.ndarray]],
) -> dict[tuple[str, str], np.ndarray]:
    """Scores of all images from those of some."""
    return {key: np.concatenate([part[key] for part in parts]) for key in (parts or [{}])[0]}


def baseline_scores(params: Params, *, evaluation_set: Path, seed: int = 0) -> pd.DataFrame:
    """Localization of maps that know no model (`trivial_maps`), per image.

    Returns
    -------
    DataFrame
        Columns name, image_id, metric, convention, score; empty where no image has a box.
    """
    seen = evaluation_images(evaluation_set, params)
    ids = np.array(seen.ids, dtype=object)[seen.boxed]
    by_name: dict[str, list[dict[tuple[str, str], np.ndarray]]] = {}
    for some in chunks(len(ids)):
        images = evaluation.as_images(seen.pixels[seen.boxed[some]])
        trivial = trivial_maps(images, image_ids=list(ids[some]), seed=seed)
        for name, stack in trivial.items():
            by_name.setdefault(name, []).append(located(stack, seen, some))
    frames = [pd.DataFrame(columns=["name", "image_id", "metric", "convention", "score"])]
    frames += [
        pd.DataFrame(
            {
                "name": name,
                "image_id": ids,
                "metric": metric,
                "convention": convention,
                "score": values,
            }
        )
        for name, parts in by_name.items()
        for (metric, convention), values in joined(parts).items()
    ]
    if by_name:
        del frames[0]  # empty, it would change the columns' types
    return pd.concat(frames, ignore_index=True)


def localization_baselines(
    scores: pd.DataFrame,
    rows: pd.DataFrame,
    *,
    interval: Callable[[np.ndarray, list[str], str], tuple[float, float]],
) -> pd.DataFrame:
    """Table of the baselines: mean over images and its interval.

    Parameters
    ----------
    scores : DataFrame
        From `baseline_scores`.
    rows : DataFrame
        The evaluation set, with columns image_id and photo.
    interval : callable
        From values, the photograph of each and the metric to the ends of the mean's interval.

    Returns
    -------
    DataFrame
        Columns name, metric, convention, n_images, mean, ci_low, ci_high.
    """
    merged = scores.merge(rows[["image_id", "photo"]], on="image_id")
    merged["photo"] = merged["photo"].where(merged["photo"] != "", merged["image_id"])
    found = []
    for (name, metric, convention), part in merged.groupby(
        ["name", "metric", "convention"], sort=False
    ):
        values = part["score"].to_numpy(dtype=np.float64)
        low, high = interval(values, list(part["photo"]), str(metric))
        found.append((name, metric, convention, len(values), values.mean(), low, high))
    return pd.DataFrame(
        found,
        columns=["name", "metric", "convention", "n_images", "mean", "ci_low", "ci_high"],
    )


def chosen_alpha(scores: pd.DataFrame, *, seed: int = 0) -> ChosenThreshold:
    """Choose a localization threshold on half of the images, and score the other half by it.

    Parameters
    ----------
    scores : DataFrame
        Score rows with `localization_error` at several thresholds; all that is given chooses
        together.
    seed : int
        Seed of the halves.

    Returns
    -------
    ChosenThreshold
        The threshold of lowest mean error on one half, the smallest of equals; the rows of
        `localization_error` and `iou` at it on the other, which is the larger by one where the
        number of images is odd.

    Raises
    ------
    ValueError
        Where fewer than two images have such scores.
    """
    known = scores[scores["metric"].isin(["localization_error", "iou"])]
    errors = known[(known["metric"] == "localization_error") & known["score"].notna()]
    ids = sorted(errors["image_id"].unique())
    if len(ids) < 2:
        raise ValueError(
            f"localization_error is known of {len(ids)} images; choosing a threshold on half of "
            "them takes 2: give boxes (data.boxes), or leave it out"
        )
    order = np.random.default_rng(derived_seed("localization half", seed)).permutation(len(ids))
    half = [ids[position] for position in order[: len(ids) // 2]]
    mean = errors[errors["image_id"].isin(half)].groupby("convention")["score"].mean()
    # Sorted by name, as groupby does, is by threshold: the first of equals is the smallest.
    convention = str(mean.idxmin())
    rest = known[~known["image_id"].isin(half) & (known["convention"] == convention)]
    return ChosenThreshold(
        float(convention.removeprefix("alpha")), len(half), rest.reset_index(drop=True)
    )
