"""Shapes of the tensors that the methods take and give."""

from jaxtyping import Float, Int
from torch import Tensor

Image = Float[Tensor, "channel height width"]

Images = Float[Tensor, "batch channel height width"]

Maps = Float[Tensor, "batch height width"]

# Class and number of each image.
Classes = Int[Tensor, " batch"]

PerImage = Float[Tensor, " batch"]
