"""Trained models whose weights are those of their card: a damaged training heals or is named."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steadymap.data.dataset import Dataset
from steadymap.models import registry
from steadymap.models.adoption import check_classifier
from steadymap.params.schema import Recipe, RobustAccuracy, architecture_of
from steadymap.store.atomic import file_sha256, read_json
from steadymap.training.distributed import started_first
from steadymap.training.loop import recipe_digest, train

logger = logging.getLogger(__name__)

_FILES = "weights.safetensors", "card.json", "curves.csv"


def damage(folder: Path) -> str | None:
    """What is wrong with the folder of a trained model, beginning with the file; None if nothing.

    The curves are only looked for: no card holds their sha256.
    """
    for name in _FILES:
        if not (folder / name).is_file():
            return f"{folder / name}: no such file"
    try:
        wanted = read_json(folder / "card.json")["weights_sha256"]
    except (ValueError, KeyError, TypeError):
        return f"{folder / 'card.json'}: not the card of a trained model"
    path = folder / "weights.safetensors"
    if (found := file_sha256(path)) != wanted:
        return f"{path}: sha256 {found[:16]}… is not the card's {wanted[:16]}…"
    return None


def train_whole(
    model: str,
    recipe: Recipe,
    dataset: Dataset,
    folder: Path,
    *,
    cache: Path,
    threat: RobustAccuracy,
    init_folder: Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Train a model as `training.train` does, from and to weights that are those of their card.

    A finished training in the cache that is damaged is removed, and trained once more. A network
    that maps can't be trusted of (`adoption.check`) is refused: one of one's own before it is
    trained, and each before it is handed on.

    Parameters
    ----------
    model, recipe, dataset, folder, cache, threat, init_folder, **options
        As `training.train` takes them.

    Returns
    -------
    dict
        The card.

    Raises
    ------
    ValueError
        Where the network is refused, where the weights to start from, or those just written, are
        not their card's, and where several processes found a damaged training, which they can't
        repeat together.
    """
    if recipe.init_from and init_folder and (found := damage(init_folder)):
        raise ValueError(
            f"{found}; {model} starts from it: make it anew with "
            f"`dvc repro -f train@{recipe.init_from}`, then run this again"
        )
    image = torch.from_numpy(np.array(dataset.images["val"][:1])).permute(0, 3, 1, 2).float() / 255
    n_classes, architecture = len(dataset.classes), architecture_of(model, recipe)
    if ":" in architecture:
        check_classifier(
            registry.explainable(
                registry.build(architecture, n_classes),
                mean=dataset.description["mean"],
                std=dataset.description["std"],
            ),
            key=f"training.{model}.architecture",
            n_classes=n_classes,
            images=image,
        )
    if not recipe.is_given and started_first():
        init_sha256 = None
        if recipe.init_from and init_folder:
            init_sha256 = read_json(init_folder / "card.json")["weights_sha256"]
        digest = recipe_digest(model, recipe, dataset, threat=threat, init_sha256=init_sha256)
        _drop_damaged(cache / digest[:32])
    card = train(
        model,
        recipe,
        dataset,
        folder,
        cache=cache,
        threat=threat,
        init_folder=init_folder,
        **options,
    )
    if started_first() and (found := damage(folder)):
        shutil.rmtree(folder)
        raise ValueError(
            f"{found}, though it was just written; the folder was removed: look at the disk, then "
            "run it again"
        )
    if started_first():
        try:
            check_classifier(
                registry.load(folder),
                key=f"training.{model}",
                n_classes=n_classes,
                images=image,
                outputs=("probability",),
            )
        except ValueError:
            shutil.rmtree(folder)
            raise
    return card


def _drop_damaged(finished: Path) -> None:
    """Remove a finished training from the cache where its weights are not its card's."""
    if not finished.is_dir() or not (found := damage(finished)):
        return
    shutil.rmtree(finished)
    # The others may have looked before it went, and would not come to train.
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            f"{found}; this finished training was damaged and is removed: start torchrun again, "
            "which trains once more"
        )
    logger.warning("%s; this finished training is damaged: it is removed and trained again", found)
