"""Making the data set that params describe."""

import hashlib

import numpy as np
import pandas as pd

from steadymap.data import embedded
from steadymap.data.dataset import Dataset
from steadymap.params import EmbeddedData


def fetch(data: EmbeddedData) -> Dataset:
    """Generate the embedded data set.

    Returns
    -------
    Dataset
        With splits train and val; its description carries `digest`, a hash of all images' hashes
        and labels, and the channels' `mean` and `std` over the training images, in [0, 1].
    """
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
    rows = manifest[["id", "sha256", "label"]].astype(str).agg(" ".join, axis=1)
    train = splits["train"].images
    return Dataset(
        classes=tuple(data.classes),
        images={split: made.images for split, made in splits.items()},
        masks={"val": splits["val"].masks},
        manifest=manifest,
        description={
            "kind": data.kind,
            "image_size": data.image_size,
            "preprocessing": f"{data.kind}-{data.image_size}",
            "mean": [round(float(value), 6) for value in train.mean((0, 1, 2), np.float64) / 255],
            "std": [round(float(value), 6) for value in train.std((0, 1, 2), np.float64) / 255],
            "digest": hashlib.sha256("\n".join(rows).encode()).hexdigest(),
            "photographs": {
                split: sorted(made.manifest["photo"].unique()) for split, made in splits.items()
            },
        },
    )
