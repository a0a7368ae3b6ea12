"""A custom architecture for the studies of tests: GoogLeNet's kinds of layers, a tenth of them.

Its units are called after GoogLeNet's, and `small_network:network` names it in params and cards.
"""

import torch
from torch import Tensor, nn


class _Convolution(nn.Module):
    def __init__(self, n_in: int, n_out: int, size: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, size, stride, size // 2, bias=False)
        self.bn = nn.BatchNorm2d(n_out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.bn(self.conv(x)), inplace=True)


class _Inception(nn.Module):
    def __init__(self, n_in: int):
        super().__init__()
        self.branch1 = _Convolution(n_in, 16, 1)
        self.branch2 = _Convolution(n_in, 16, 3)
        self.branch3 = nn.MaxPool2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x)], 1)


class Small(nn.Module):
    """A stem, a block of branches, and a linear head."""

    def __init__(self, n_classes: int):
        super().__init__()
        self.conv1 = _Convolution(3, 16, 5, stride=2)
        self.maxpool1 = nn.MaxPool2d(3, 2, 1)
        self.inception5b = _Inception(16)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(48, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inception5b(self.maxpool1(self.conv1(x)))
        return self.fc(self.dropout(x.mean((2, 3))))


def network(n_classes: int) -> nn.Module:
    """The network with fresh weights."""
    return Small(n_classes)
