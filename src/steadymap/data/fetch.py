"""Making the data set that params describe."""

import pandas as pd

from steadymap.data import embedded, folders, imagenet
from steadymap.data.dataset import Dataset, channel_statistics, describe
from steadymap.params.schema import Data, EmbeddedData, FolderData, ImagenetData


def fetch(data: Data) -> Dataset:
    """Make the data set: generate it, read it from a folder, or find where ImageNet lies.

    Returns
    -------
    Dataset
        With splits train and val; its description carries `digest`, a hash of all images' hashes
        and labels, and the channels' `mean` and `std` over the training images, in [0, 1].
    """
    if isinstance(data, ImagenetData):
        return imagenet.gather(data)
    return folders.gather(data) if isinstance(data, FolderData) else _embedded(data)


def _embedded(data: EmbeddedData) -> Dataset:
    splits = {split: embedded.generate(data, split) for split in embedded.PHOTOGRAPHS}
    manifest = pd.concat([part.manifest for part in splits.values()], ignore_index=True)
    photographs = {split: sorted(part.manifest["photo"].unique()) for split, part in splits.items()}
    described = describe(data, manifest, *channel_statistics(splits["train"].images))
    return Dataset(
        classes=tuple(data.classes),
        images={split: part.images for split, part in splits.items()},
        masks={"val": splits["val"].masks},
        manifest=manifest,
        description={**described, "photographs": photographs},
    )
