import pytest
import torch

from conftest import Linear
from steadymap.params.schema import Attack
from steadymap.training.attacks import pgd


@pytest.fixture
def batch():
    images = torch.rand((4, 3, 12, 12), generator=torch.Generator().manual_seed(0))
    return images, torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("random_start", [False, True])
def test_attacked_images_stay_in_the_ball_and_in_range(batch, norm, random_start):
    images, labels = batch
    eps = {"l2": 0.7, "linf": 0.03}[norm]

    attacked = pgd(
        Linear(),
        images,
        labels,
        Attack(norm=norm, eps=eps, step_size=eps / 3, steps=5, random_start=random_start),
        generator=torch.Generator().manual_seed(1),
    )

    moved = (attacked - images).flatten(1)
    size = moved.norm(dim=1) if norm == "l2" else moved.abs().amax(1)
    assert (size <= eps * (1 + 1e-5)).all()
    assert (size > 0.5 * eps).all()
    assert attacked.min() >= 0
    assert attacked.max() <= 1


def test_one_step_on_a_two_class_linear_model_goes_along_its_weights():
    """The gradient's direction is that of the weight difference, whatever the logits."""
    model = Linear(n_classes=2)
    model.weights *= 0.01  # a saturated softmax would round its gradient away
    images = torch.full((1, 3, 12, 12), 0.5)

    attacked = pgd(
        model, images, torch.tensor([0]), Attack(norm="l2", eps=0.1, step_size=0.1, steps=1)
    )

    direction = model.weights[1] - model.weights[0]
    assert torch.allclose(attacked[0] - images[0], 0.1 * direction / direction.norm(), atol=1e-6)


def test_the_attacked_image_is_clamped_not_the_perturbation():
    model = Linear(n_classes=2)
    dark, bright = torch.zeros(1, 3, 12, 12), torch.ones(1, 3, 12, 12)

    up, down = (
        pgd(model, images, torch.tensor([0]), Attack(norm="l2", eps=5.0, step_size=5.0, steps=1))
        - images
        for images in (dark, bright)
    )

    assert up.min() == 0
    assert up.max() > 0
    assert down.max() == 0
    assert down.min() < 0


def test_it_raises_the_loss(batch):
    images, labels = batch
    loss = torch.nn.CrossEntropyLoss()

    attacked = pgd(Linear(), images, labels, Attack(norm="l2", eps=0.5, step_size=0.2, steps=4))

    assert loss(Linear()(attacked), labels) > loss(Linear()(images), labels) + 0.5
