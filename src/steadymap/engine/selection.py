"""Selection of the evaluation set: which images are explained, and for which class."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from steadymap.attribution.model_runner import ModelRunner
from steadymap.data.dataset import Dataset
from steadymap.data.originals import Originals
from steadymap.engine import evaluation_set
from steadymap.models import registry
from steadymap.models.registry import Explainable
from steadymap.params.methods import SAM_MODELS
from steadymap.params.schema import EvaluationSet, Params
from steadymap.store.atomic import atomic_folder
from steadymap.store.tables import write_table

_BATCH = 200

# Rules by which models' mistakes decide.
_BY_MODELS = ("all_correct", "sam-1735")

# Images that the SAM paper's code drew before it asked the last model.
SAM_DRAWN = 2000

COLUMNS = ("image_id", "sha256", "class_name", "label", "photo", "x0", "y0", "x1", "y1")


def predictions(model: Explainable, images: np.ndarray | Originals) -> np.ndarray:
    """Predicted class of uint8 images (n, height, width, 3), in float32."""
    passes, device = ModelRunner(model, _BATCH), next(model.buffers()).device
    found = []
    for start in range(0, len(images), _BATCH):
        batch = evaluation_set.as_images(images[start : start + _BATCH]).to(device)
        found.append(passes.logits(batch).argmax(1).cpu().numpy())
    return np.concatenate(found)


def study_predictions(params: Params, images: np.ndarray | Originals) -> dict[str, np.ndarray]:
    """Predicted classes of images by every trained model of a study."""
    folder = params.results / "models"
    return {n: predictions(registry.load(folder / n), images) for n in params.models.names}


def _spread(photos: pd.Series, order: np.ndarray) -> np.ndarray:
    """Reorder positions so that every beginning of the list is spread evenly over the photos."""
    turn = photos.iloc[order].groupby(photos.iloc[order].to_numpy()).cumcount().to_numpy()
    return order[np.argsort(turn, kind="stable")]


@dataclass(frozen=True)
class Selection:
    """An evaluation set, and what each model did to it.

    Attributes
    ----------
    images : DataFrame
        A row per image in the order in which they were drawn, so that a larger set begins with
        the smaller one.
    targets : DataFrame
        Columns image_id, model, prediction, target.
    models : DataFrame
        Columns model, n_candidates, n_correct, n_dropped.
    positions : ndarray
        Where the images stand in the validation split.
    """

    images: pd.DataFrame
    targets: pd.DataFrame
    models: pd.DataFrame
    positions: np.ndarray


def sam_positions(correct: Mapping[str, np.ndarray], order: np.ndarray, *, seed: int) -> np.ndarray:
    """Positions that the SAM paper's code chose its images by, in its order.

    Images that ResNet-50, GoogLeNet and ResNet-R classify correctly are shuffled by numpy's legacy
    generator; of the first 2,000, those that GoogLeNet-R classifies correctly stay.

    Parameters
    ----------
    correct : mapping of str to ndarray
        Per model of `SAM_MODELS`, whether each validation image is classified correctly.
    order : ndarray
        Positions sorted by name.
    seed : int
        The paper's is 0.
    """
    *three, last = (correct[name] for name in SAM_MODELS)
    shared = order[np.logical_and.reduce(three)[order]]
    drawn = np.random.RandomState(seed).permutation(shared)[:SAM_DRAWN]
    return drawn[last[drawn]]


def choose(rule: EvaluationSet, dataset: Dataset, predicted: dict[str, np.ndarray]) -> Selection:
    """Draw the evaluation set from the validation split.

    Parameters
    ----------
    rule : EvaluationSet
        `all_correct`: images that every model classifies correctly; `any`: all; `list`: those
        named; `sam-1735`: as the SAM paper's code chose its 1,735 images, `sam_positions`.
    dataset : Dataset
        With a validation split.
    predicted : dict of str to ndarray
        Per model, the predicted class of each validation image.

    Raises
    ------
    ValueError
        Where no image, or fewer than asked for, is left: with the counts per model.
    """
    rows = dataset.rows("val")
    labels = rows["label"].to_numpy()
    correct = {model: classes == labels for model, classes in predicted.items()}
    if rule.rule == "list":
        unknown = [name for name in rule.images if name not in set(rows["id"])]
        if unknown:
            raise ValueError(
                f"evaluation_set.images: {unknown[0]!r} is no image of the validation split "
                f"({len(unknown)} such names); take ids from manifest.csv"
            )
        order = rows.reset_index().set_index("id").loc[rule.images, "index"].to_numpy()
        kept = order
    elif rule.rule == "sam-1735":
        order = np.argsort(rows["id"].to_numpy(dtype=str), kind="stable")
        kept = sam_positions(correct, order, seed=rule.seed)
    else:
        order = np.random.default_rng(rule.seed).permutation(len(rows))
        keep = np.ones(len(rows), dtype=bool)
        if rule.rule == "all_correct":
            keep = np.logical_and.reduce(list(correct.values()))
        photos = rows["photo"].where(rows["photo"] != "", rows["id"])
        kept = _spread(photos, order[keep[order]])
    models = pd.DataFrame(
        {
            "model": model,
            "n_candidates": len(order),
            "n_correct": int(right[order].sum()),
            "n_dropped": int((~right[order]).sum()) if rule.rule in _BY_MODELS else 0,
        }
        for model, right in correct.items()
    )
    if len(kept) < rule.size:
        counts = ", ".join(f"{row.model} {row.n_correct}" for row in models.itertuples())
        raise ValueError(
            f"evaluation_set.n_images: {rule.size} wanted, {len(kept)} left under rule "
            f"{rule.rule} of {len(order)} validation images (correct: {counts}); "
            "ask for fewer, train longer, or use rule any"
        )
    positions = kept[: rule.size]
    images = rows.iloc[positions].rename(columns={"id": "image_id"}).reset_index(drop=True)
    targets = pd.concat(
        pd.DataFrame(
            {
                "image_id": images["image_id"],
                "model": model,
                "prediction": classes[positions],
                "target": images["label"] if rule.target == "label" else classes[positions],
            }
        )
        for model, classes in predicted.items()
    )
    return Selection(images[list(COLUMNS)], targets, models, positions)


def select(params: Params, dataset: Dataset) -> Selection:
    """Choose a study's evaluation set by its trained models: `results/{study}/evaluation_set`."""
    predicted = study_predictions(params, dataset.images["val"])
    chosen = choose(params.evaluation_set, dataset, predicted)
    write(chosen, dataset, params.results / "evaluation_set")
    return chosen


def write(selection: Selection, dataset: Dataset, folder: Path) -> None:
    """Write the evaluation set with its pixels and masks.

    Parameters
    ----------
    selection
        Images chosen, their targets and what was dropped.
    dataset
        Where their pixels and masks come from.
    folder
        Folder to write; it is replaced as a whole.
    """
    pixels = dataset.images["val"][selection.positions]
    masks = dataset.masks["val"][selection.positions] if "val" in dataset.masks else None
    with atomic_folder(folder) as temporary:
        evaluation_set.write(temporary, selection.images, selection.targets, pixels, masks)
        write_table(selection.models, temporary / "models.csv")
