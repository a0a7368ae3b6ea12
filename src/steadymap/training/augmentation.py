"""Training images as ImageNet's robust checkpoints saw them: cropped, flipped, recolored."""

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


def augmented(
    image: Image.Image, *, image_size: int, seed: int
) -> Float[Tensor, "channel height width"]:
    """One image as training sees it, in [0, 1].

    A crop of 8 to 100 % of the area at an aspect of 3/4 to 4/3, scaled to the side; a flip in half
    of the cases; brightness, contrast and saturation by up to a tenth; a shift of color along the
    principal components of ImageNet's, standard deviation .05 (what the robustness library does, by
    which SAM's robust networks were trained).

    Parameters
    ----------
    image : Image
        RGB, of any size.
    image_size : int
        Side of the result, px.
    seed : int
        Of everything random here.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        shown = v2.Compose(
            [
                v2.RandomResizedCrop(image_size, antialias=True),
                v2.RandomHorizontalFlip(),
                v2.ColorJitter(0.1, 0.1, 0.1),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
            ]
        )(image)
        shift = _COMPONENTS @ (_LIGHTING * torch.randn(3) * _VARIANCES)
    return (shown.as_subclass(Tensor) + shift.reshape(3, 1, 1)).clamp(0, 1)


class _Epoch(TorchDataset):
    """Images of one epoch by position; what is random is keyed by it, whoever asks."""

    def __init__(self, images: np.ndarray | Originals, image_size: int, seed: int, epoch: int):
        self.images, self.image_size, self.key = images, image_size, (seed, epoch)

    def __getitem__(self, position: int) -> Tensor:
        if isinstance(self.images, Originals):
            image = self.images.photograph(position)
        else:
            image = Image.fromarray(np.array(self.images[position]))
        seed = derived_seed("augmentation", *self.key, position)
        return augmented(image, image_size=self.image_size, seed=seed)


def batches(
    images: np.ndarray | Originals,
    positions: list[np.ndarray],
    *,
    image_size: int,
    seed: int,
    epoch: int,
    n_processes: int = 1,
) -> DataLoader:
    """Augmented batches (batch, 3, image_size, image_size) of the positions given, in their order.

    Photographs that are read from disk are prepared by worker processes; how many there are does
    not change a bit.
    """
    cores = (os.cpu_count() or 1) // n_processes
    return DataLoader(
        _Epoch(images, image_size, seed, epoch),
        batch_sampler=[chosen.tolist() for chosen in positions],
        num_workers=max(cores - 1, 0) if isinstance(images, Originals) else 0,
        pin_memory=torch.cuda.is_available(),
    )
