"""Making the data set that params describe."""

import hashlib
from typing import Any

import numpy as np
import pandas as pd

from steadymap.data import embedded, folders, imagenet
from steadymap.data.dataset import Dataset
from steadymap.params.schema import Data, EmbeddedData, FolderData, ImagenetData

_CHUNK = 512


def fetch(data: Data) -> Dataset:
    """Make the data set: generate it, read it from a folder, or find where ImageNet lies.

    Returns
    -------
    Dataset
        With splits train and val; its description carries `digest`, a hash of all images' hashes
        and labels, and the channels' `mean` and `std` over the training images, in [0, 1].
    """
    if isinstance(data, ImagenetData):
        return _imagenet(data)
    return _from_folder(data) if isinstance(data, FolderData) else _embedded(data)


def _embedded(data: EmbeddedData) -> Dataset:
    splits = {
        split: embedded.generate(
            split,
            n,
            image_size=data.image_size,
            seed=data.seed,
            pattern_amplitude=data.pattern_amplitude,
            classes=data.classes,
        )
        for split, n in (("train", data.n_train), ("val", data.n_val))
    }
    manifest = pd.concat([made.manifest for made in splits.values()], ignore_index=True)
    photographs = {split: sorted(made.manifest["photo"].unique()) for split, made in splits.items()}
    return Dataset(
        classes=tuple(data.classes),
        images={split: made.images for split, made in splits.items()},
        masks={"val": splits["val"].masks},
        manifest=manifest,
        description={
            **_described(data, manifest, splits["train"].images),
            "photographs": photographs,
        },
    )


def _from_folder(data: FolderData) -> folders.FolderDataset:
    found = folders.gather(data)
    # Without training images, as finished models may do, the others tell the channels' range.
    measured = found.images["train"] if len(found.images["train"]) else found.images["val"]
    return folders.FolderDataset(
        classes=found.classes,
        images=found.images,
        masks=found.masks,
        manifest=found.manifest,
        description={
            **_described(data, found.manifest, measured),
            "files": found.counts,
            "listing": folders.listing(data).digest,
        },
        skipped=found.skipped,
    )


def _imagenet(data: ImagenetData) -> folders.FolderDataset:
    found = imagenet.gather(data)
    return folders.FolderDataset(
        classes=imagenet.wnids(),
        images=found.images,
        masks=found.masks,
        manifest=found.manifest,
        description={
            "kind": data.kind,
            "image_size": data.image_size,
            "preprocessing": data.pixel_recipe,
            "mean": list(imagenet.MEAN),
            "std": list(imagenet.STD),
            "digest": found.digest,
            "files": found.counts,
        },
        skipped=found.skipped,
    )


def _described(data: Data, manifest: pd.DataFrame, images: np.ndarray) -> dict[str, Any]:
    rows = manifest[["id", "sha256", "label"]].astype(str).agg(" ".join, axis=1)
    mean, std = _statistics(images)
    return {
        "kind": data.kind,
        "image_size": data.image_size,
        "preprocessing": data.pixel_recipe,
        "mean": [round(float(value), 6) for value in mean],
        "std": [round(float(value), 6) for value in std],
        "digest": hashlib.sha256("\n".join(rows).encode()).hexdigest(),
    }


def _statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation per channel in [0, 1], from counts: exact, in little memory."""
    counts = np.zeros((3, 256), np.int64)
    for start in range(0, len(images), _CHUNK):
        chunk = images[start : start + _CHUNK]
        counts += [np.bincount(chunk[..., c].ravel(), minlength=256) for c in range(3)]
    levels, total = np.arange(256) / 255, counts.sum(1)
    mean = counts @ levels / total
    return mean, np.sqrt((counts * (levels - mean[:, None]) ** 2).sum(1) / total)
