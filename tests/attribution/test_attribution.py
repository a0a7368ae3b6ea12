"""`attribute`: calls that are refused, and what the package offers."""

import pytest
import torch

import steadymap
from steadymap import attribute

TARGETS = torch.tensor([0, 1, 2, 3, 4, 0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"method": "lyme"}, r"method is 'lyme'; choose one of gradient, smoothgrad"),
        ({"n_samples": 0}, r"n_samples is 0; choose at least 1"),
        ({"n_samples": 2.5}, r"n_samples is 2.5; write a whole number"),
        ({"n_samples": True}, r"n_samples is True; write a whole number"),
        ({"sigma": float("nan")}, r"sigma is nan; write a finite number"),
        ({"width": 1}, r"width is 1; smoothgrad has no such hyperparameter; known are n_samples"),
        ({"output": "log"}, r"output is 'log'; choose one of logit, probability"),
        ({"images": torch.rand(3, 24, 24)}, r"images have shape \(3, 24, 24\); give \(batch, ch"),
        ({"images": torch.rand(1, 3, 24, 24) * 255}, r"images lie in .*; give \[0, 1\]"),
        ({"images": torch.zeros(1, 3, 24, 24, dtype=torch.uint8)}, r"images are torch.uint8; give"),
        ({"targets": [0, 1, 2]}, r"targets have shape \(3,\), there are 2 images"),
        ({"targets": 9}, r"targets go up to 9, the model has 5 classes"),
        ({"image_ids": ["a", "a"]}, r"image_ids name 1 different images, there are 2"),
        ({"batch_size": 0}, r"batch_size is 0; choose at least 1"),
    ],
)
def test_wrong_calls_are_told(tiny, call, message):
    options = {"method": "smoothgrad", "images": torch.rand(2, 3, 24, 24), "targets": 0, **call}

    with pytest.raises(ValueError, match=message):
        attribute(options.pop("method"), tiny, options.pop("images"), **options)


def test_the_package_offers_what_it_names():
    assert all(callable(getattr(steadymap, name)) for name in steadymap.__all__)
    with pytest.raises(AttributeError, match="no attribute 'atribute'"):
        steadymap.atribute  # noqa: B018
