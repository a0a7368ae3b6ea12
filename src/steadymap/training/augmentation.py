"""Augmentation of training images: random crops, flips and colors, as on ImageNet."""

import os

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms import v2

from steadymap.data.originals import Originals
from steadymap.draws import derived_seed

# Principal components of ImageNet's colors and their variances (Krizhevsky et al., 2012).
_COMPONENTS = torch.tensor(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)

_VARIANCES = torch.tensor([0.2175, 0.0188, 0.0045])

_LIGHTING = 0.05


def augment(image: Image.Image, *, image_size: int, seed: int) -> Float[Tensor, "3 height width"]:
    """Crop, flip and recolor one image at random.

    A crop of 8 to 100 % of the area at an aspect ratio of 3/4 to 4/3 is scaled to the side and
    flipped in half of the cases. Brightness, contrast and saturation change by up to a tenth; color
    is shifted along the principal components of ImageNet's colors with standard deviation .05.
    SAM's robust networks were trained so, with the robustness library's defaults.

    Parameters
    ----------
    image : Image
        RGB, of any size.
    image_size : int
        Side of the result, px.
    seed : int
        Seed of all randomness here.

    Returns
    -------
    Tensor
        In [0, 1], shape (3, image_size, image_size).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pixels = v2.Compose(
            [
                v2.RandomResizedCrop(image_size, antialias=True),
                v2.RandomHorizontalFlip(),
                v2.ColorJitter(0.1, 0.1, 0.1),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
            ]
        )(image)
        shift = _COMPONENTS @ (_LIGHTING * torch.randn(3) * _VARIANCES)
    return (pixels.as_subclass(Tensor) + shift.reshape(3, 1, 1)).clamp(0, 1)


class _EpochImages(TorchDataset):
    """Augmented images of one epoch; their randomness is keyed by seed, epoch and position."""

    def __init__(self, images: np.ndarray | Originals, image_size: int, seed: int, epoch: int):
        self.images, self.image_size, self.key = images, image_size, (seed, epoch)

    def __getitem__(self, position: int) -> Tensor:
        if isinstance(self.images, Originals):
            image = self.images.photograph(position)
        else:
            image = Image.fromarray(np.array(self.images[position]))
        seed = derived_seed("augmentation", *self.key, position)
        return augment(image, image_size=self.image_size, seed=seed)


def augmented_batches(
    images: np.ndarray | Originals,
    batches: list[np.ndarray],
    *,
    image_size: int,
    seed: int,
    epoch: int,
    n_processes: int = 1,
) -> DataLoader:
    """Load the augmented batches of an epoch, in the order given.

    Photographs that are read from disk are prepared by worker processes, whose number changes no
    bit.

    Parameters
    ----------
    images : ndarray or Originals
        Uint8 (n, height, width, 3), or photographs on disk.
    batches : list of ndarray
        Positions in `images` of each batch.
    image_size : int
        Side of the augmented images, px.
    seed, epoch : int
        Key of the randomness, with an image's position.
    n_processes : int
        Processes that train on this machine and share its cores.

    Returns
    -------
    DataLoader
        Yields float32 (batch, 3, image_size, image_size) in [0, 1].
    """
    cores = (os.cpu_count() or 1) // n_processes
    return DataLoader(
        _EpochImages(images, image_size, seed, epoch),
        batch_sampler=[positions.tolist() for positions in batches],
        num_workers=max(cores - 1, 0) if isinstance(images, Originals) else 0,
        pin_memory=torch.cuda.is_available(),
    )
