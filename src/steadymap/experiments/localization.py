"""Localization of every map of a study, and of maps that know no model."""

from collections.abc import Mapping
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

BASELINE_COLUMNS = ("name", "image_id", "metric", "convention", "score")

# Scores by metric and convention, an array over images each.
Scores = Mapping[tuple[str, str], np.ndarray]


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
        Positions of the images whose object has a known place.
    boxes, masks : ndarray or None
        Place of the object per image as `iou` takes it: one of the two.
    """

    ids: list[str]
    pixels: np.ndarray
    boxed: np.ndarray
    boxes: np.ndarray | None = None
    masks: np.ndarray | None = None

    def first(self, n: int) -> "EvaluationImages":
        """The first so many of them."""
        boxes, masks = (
            None if places is None else places[:n] for places in (self.boxes, self.masks)
        )
        boxed = self.boxed[self.boxed < n]
        return EvaluationImages(self.ids[:n], self.pixels[:n], boxed, boxes, masks)

    @property
    def boxed_ids(self) -> list[str]:
        """Ids of the images whose object has a known place."""
        return [self.ids[position] for position in self.boxed]


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
    stack: torch.Tensor, images: EvaluationImages, positions: np.ndarray
) -> dict[tuple[str, str], np.ndarray]:
    """Localization scores of one map (height, width) of each image at `positions`.

    Parameters
    ----------
    stack
        Maps, shape (images, height, width).
    images
        The evaluation set with its boxes.
    positions
        Positions of the maps' images in the evaluation set.
    """
    boxes = None if images.boxes is None else images.boxes[positions]
    masks = None if images.masks is None else images.masks[positions]
    measures = {"localization_error": localization_error, "iou": iou}
    return {
        (metric, convention_of(alpha)): values
        for metric, measure in measures.items()
        for alpha, values in zip(ALPHAS, measure(stack, boxes, masks).numpy().T, strict=True)
    }


def joined(parts: list[dict[tuple[str, str], np.ndarray]]) -> Scores:
    """Scores of several chunks of images, one after the other."""
    return {key: np.concatenate([part[key] for part in parts]) for key in (parts or [{}])[0]}


def score_rows(scores: Scores, ids: list[str]) -> pd.DataFrame:
    """Columns image_id, metric, convention, score: all images of one score after the other."""
    wide = pd.DataFrame(dict(scores), index=pd.Index(ids, name="image_id", dtype=object))
    return pd.DataFrame(
        {
            "image_id": np.tile(wide.index, len(scores)),
            "metric": np.repeat([metric for metric, _ in scores], len(ids)),
            "convention": np.repeat([convention for _, convention in scores], len(ids)),
            "score": wide.to_numpy().T.ravel(),
        }
    )


def baseline_scores(params: Params, *, evaluation_set: Path, seed: int = 0) -> pd.DataFrame:
    """Localization of maps that know no model (`trivial_maps`), per image.

    Parameters
    ----------
    params : Params
        The study.
    evaluation_set : Path
        Folder of the evaluation set.
    seed : int
        Seed of the random maps.

    Returns
    -------
    DataFrame
        With the columns `BASELINE_COLUMNS`; empty where no image has a box.
    """
    images = evaluation_images(evaluation_set, params)
    ids = images.boxed_ids
    by_name: dict[str, list[dict[tuple[str, str], np.ndarray]]] = {}
    for chunk in chunks(len(ids)):
        positions = images.boxed[chunk]
        trivial = trivial_maps(
            evaluation.as_images(images.pixels[positions]), image_ids=ids[chunk], seed=seed
        )
        for name, stack in trivial.items():
            by_name.setdefault(name, []).append(located(stack, images, positions))
    if not by_name:
        return pd.DataFrame(columns=list(BASELINE_COLUMNS))
    frames = [score_rows(joined(parts), ids).assign(name=name) for name, parts in by_name.items()]
    return pd.concat(frames, ignore_index=True)[list(BASELINE_COLUMNS)]


def choose_threshold(scores: pd.DataFrame, *, seed: int = 0) -> ChosenThreshold:
    """Choose a localization threshold on half of the images, and score the other half by it.

    Parameters
    ----------
    scores : DataFrame
        Score rows with `localization_error` at several thresholds, which are averaged over all
        maps given.
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
    localization = scores[scores["metric"].isin(["localization_error", "iou"])]
    errors = localization[localization["metric"].eq("localization_error")].dropna(subset="score")
    ids = sorted(errors["image_id"].unique())
    if len(ids) < 2:
        raise ValueError(
            f"localization_error is known of {len(ids)} images; choosing a threshold on half of "
            "them takes 2: give boxes (data.boxes), or leave it out"
        )
    order = np.random.default_rng(derived_seed("localization half", seed)).permutation(len(ids))
    half = [ids[position] for position in order[: len(ids) // 2]]
    mean = errors[errors["image_id"].isin(half)].groupby("convention")["score"].mean()
    # groupby sorts by name, and so by threshold: the first of equals is the smallest.
    convention = str(mean.idxmin())
    other = ~localization["image_id"].isin(half) & localization["convention"].eq(convention)
    rows = localization[other].reset_index(drop=True)
    return ChosenThreshold(float(convention.removeprefix("alpha")), len(half), rows)
