"""Training that checks its results: damaged weights are trained again or named."""

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
from steadymap.params.checks import check_recipe
from steadymap.params.schema import Params, architecture_of
from steadymap.store.atomic import file_sha256, read_json
from steadymap.training.distributed import is_first_process
from steadymap.training.loop import OnEpoch, TrainingSpec, train

logger = logging.getLogger(__name__)

_FILES = "weights.safetensors", "card.json", "curves.csv"


def find_damage(folder: Path) -> str | None:
    """Damage of a trained model's folder, beginning with the file; None if it is whole.

    Curves only need to exist: no card holds their sha256.
    """
    for name in _FILES:
        if not (folder / name).is_file():
            return f"{folder / name}: no such file"
    try:
        expected = read_json(folder / "card.json")["weights_sha256"]
    except (ValueError, KeyError, TypeError):
        return f"{folder / 'card.json'}: not the card of a trained model"
    path = folder / "weights.safetensors"
    if (sha256 := file_sha256(path)) != expected:
        return f"{path}: sha256 {sha256[:16]}… is not the card's {expected[:16]}…"
    return None


def train_model(
    model: str, params: Params, dataset: Dataset, *, cache: Path, on_epoch: OnEpoch | None = None
) -> dict[str, Any]:
    """Train a model of a study as `train_verified` does: `results/{study}/models/{model}`.

    Parameters
    ----------
    model : str
        Name of the model.
    params : Params
        The study.
    dataset : Dataset
        The study's data.
    cache, on_epoch
        As in `loop.train`.
    """
    recipe, folder = params.recipe(model), params.results / "models"
    n_train = len(dataset.rows("train"))
    check_recipe(model, recipe, classes=dataset.classes, n_train=n_train)
    init_folder = folder / recipe.init_from if recipe.init_from else None
    spec = TrainingSpec(model, recipe, dataset, params.robust_accuracy, init_folder)
    device = params.attribution.device
    return train_verified(spec, folder / model, cache=cache, device=device, on_epoch=on_epoch)


def train_verified(
    spec: TrainingSpec,
    folder: Path,
    *,
    cache: Path,
    device: str = "auto",
    on_epoch: OnEpoch | None = None,
) -> dict[str, Any]:
    """Train a model as `loop.train` does, and verify the weights that it starts from and writes.

    A finished training in the cache that is damaged is removed and trained again. A network whose
    maps can't be trusted (`adoption.check_classifier`) is refused: a custom one before it is
    trained, and each before it is handed on.

    Parameters
    ----------
    spec, folder, cache, device, on_epoch
        As in `loop.train`.

    Returns
    -------
    dict
        The card.

    Raises
    ------
    ValueError
        Where the network is refused, where the weights to start from, or those just written, are
        not those of their card, and where several processes find a damaged training, which they
        can't repair together.
    """
    model, recipe, dataset = spec.model, spec.recipe, spec.dataset
    if recipe.init_from and spec.init_folder and (damage := find_damage(spec.init_folder)):
        raise ValueError(
            f"{damage}; {model} starts from it: make it anew with "
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
    if not recipe.is_given and is_first_process():
        _remove_damaged(cache / spec.digest[:32])
    card = train(spec, folder, cache=cache, device=device, on_epoch=on_epoch)
    if not is_first_process():
        return card
    try:
        if damage := find_damage(folder):
            raise ValueError(
                f"{damage}, though it was just written; the folder was removed: look at the disk, "
                "then run it again"
            )
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


def _remove_damaged(finished: Path) -> None:
    """Remove a finished training from the cache if its weights are not those of its card."""
    if not finished.is_dir() or not (damage := find_damage(finished)):
        return
    shutil.rmtree(finished)
    # The other processes may have seen it before, and would not come to train.
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            f"{damage}; this finished training was damaged and is removed: start torchrun again, "
            "which trains once more"
        )
    logger.warning("%s; this finished training is damaged: it is removed and trained again", damage)
