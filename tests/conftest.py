"""Small networks and studies whose errors can't hide."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

ROOT = Path(__file__).resolve().parents[1]

# What takes longest comes first, so that no process is left with it at the end.
_LONGEST = (
    *("test_build", "test_pipeline", "test_claims", "test_exact", "test_mirror"),
    *("test_paper_figures", "test_faults", "test_benchmark", "test_comparisons", "test_searches"),
    *("test_cluster", "test_randomized_maps", "test_plugins", "test_contract", "test_figures"),
)


def pytest_collection_modifyitems(items):
    """Order files by how long they take; tests within a file stay in order."""
    ranks = {name: rank for rank, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))


def perturb(network: nn.Module, seed: int = 0) -> nn.Module:
    """Move BatchNorm and biases off their defaults, where many errors cancel."""
    generator = torch.Generator().manual_seed(seed)

    def like(value: torch.Tensor) -> torch.Tensor:
        return torch.randn(value.shape, generator=generator)

    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(1 + 0.2 * like(module.weight))
                module.bias.copy_(0.2 * like(module.bias))
                module.running_mean.copy_(0.1 * like(module.running_mean))
                module.running_var.copy_(1 + 0.2 * like(module.running_var).abs())
            elif isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
                module.bias.copy_(0.2 * like(module.bias))
    return network.eval()


class Tiny(nn.Module):
    """Functional, reused and in-place ReLUs around BatchNorm, in a few hundred weights."""

    def __init__(self, n_classes: int = 5):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.bn2 = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(3, 1, 1)
        self.fc = nn.Linear(8, n_classes)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        pooled = self.pool(x)
        pooled += x
        x = pooled
        x = torch.nn.functional.relu(x - 0.3, inplace=True)
        return self.fc(x.mean((2, 3)))


class NarrowVGG(nn.Module):
    """VGG16 with 64 values in place of 4,096 between its linear layers, where most weights are."""

    def __init__(self, n_classes: int):
        super().__init__()
        from torchvision.models import vgg

        self.features = vgg.make_layers(vgg.cfgs["D"])
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        hidden = [nn.Linear(512 * 49, 64), nn.ReLU(True), nn.Dropout()]
        hidden += [nn.Linear(64, 64), nn.ReLU(True), nn.Dropout()]
        self.classifier = nn.Sequential(*hidden, nn.Linear(64, n_classes))
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x):
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


@pytest.fixture(scope="module")
def narrow_vgg():
    """VGG16 is narrow at its end: for tests that ask nothing of its linear layers' size."""
    from steadymap.models.registry import CONSTRUCTORS

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CONSTRUCTORS, "vgg16", NarrowVGG)
        yield


class Linear(nn.Module):
    """Logits linear in the pixels: maps are known in closed form."""

    def __init__(self, side: int = 12, n_classes: int = 3, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        weights = torch.randn((n_classes, 3, side, side), generator=generator)
        self.register_buffer("weights", weights)

    def forward(self, x):
        return torch.einsum("bchw,kchw->bk", x, self.weights)


@pytest.fixture
def tiny():
    """Explainable tiny network with ImageNet's channel statistics."""
    from steadymap.models.registry import explainable

    torch.manual_seed(0)
    network = perturb(Tiny())
    return explainable(network, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])


@pytest.fixture
def images():
    """Six images in [0, 1], 24 px."""
    return torch.rand((6, 3, 24, 24), generator=torch.Generator().manual_seed(1))


SMALL = "small_network:network"


def write_model(
    folder: Path, *, model: str, classes: list[str], seed: int = 0, architecture: str = SMALL
) -> str:
    """Write a network with perturbed random weights as a trained model's folder."""
    from steadymap.models.registry import build, source_sha256
    from steadymap.store.atomic import file_sha256

    folder.mkdir(parents=True)
    network = perturb(build(architecture, len(classes), seed=seed), seed)
    path = folder / "weights.safetensors"
    safetensors.torch.save_file(network.state_dict(), path)
    card = {
        "model": model,
        "architecture": architecture,
        "source_sha256": source_sha256(architecture),
        "robust": model.endswith("-r"),
        "classes": classes,
        "mean": [0.5, 0.45, 0.4],
        "std": [0.2, 0.21, 0.22],
        "weights_sha256": file_sha256(path),
    }
    (folder / "card.json").write_text(json.dumps(card))
    (folder / "curves.csv").write_text("epoch\n1\n")
    return card["weights_sha256"]


@pytest.fixture(scope="session")
def embedded():
    """A small embedded data set."""
    from steadymap.data.fetch import fetch
    from steadymap.params.methods import CLASSES
    from steadymap.params.schema import EmbeddedData

    return fetch(
        EmbeddedData(
            kind="embedded",
            image_size=32,
            n_train=64,
            n_val=48,
            classes=list(CLASSES),
            pattern_amplitude=0.04,
            seed=0,
        )
    )


@pytest.fixture
def values():
    """The committed params as plain values, to be spoiled."""
    from steadymap.params.files import read_yaml

    return read_yaml(ROOT / "profiles" / "embedded.yaml")


@pytest.fixture
def rng():
    """Seeded numpy generator."""
    return np.random.default_rng(0)


COUNTED = """
from steadymap import Hyperparameter, attribution_method


@attribution_method(
    cost=(1, 0), n=Hyperparameter(int, 2, low=1, count=True), seed=Hyperparameter(int, 3, low=0)
)
def counted(runner, images, targets, *, n, seed):
    return images.mean(1)
"""


@pytest.fixture
def own_values(values, tmp_path, monkeypatch):
    """The embedded study's params with a method of one's own that counts and draws."""
    (tmp_path / "counted.py").write_text(COUNTED)
    monkeypatch.chdir(tmp_path)
    values["methods"].append("counted")
    values["sweeps"]["counted"] = {"C-n": {"vary": "n", "values": [4, 2], "reference": 2}}
    values["attribution"]["own"] = {"counted": "counted:counted"}
    return values
