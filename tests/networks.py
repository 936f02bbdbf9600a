"""Tiny networks for comparing two routes: linear, convolution, pooling, with and without bias, and odd ones."""

import torch
from torch import nn

WIDTH, CLASSES = 6, 3


def _seeded(build):
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(7)
        return build().double()


class Residual(nn.Module):
    """Not sequential: a skip connection, and one parameter tensor used twice."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(WIDTH * WIDTH, WIDTH * WIDTH)
        self.out = nn.Linear(WIDTH * WIDTH, CLASSES)
        self.scale = nn.Parameter(torch.ones(()))
        self.again = self.inner

    def forward(self, x):
        x = x.flatten(1)
        return self.out(x + self.scale * torch.tanh(self.again(torch.relu(self.inner(x)))))


TINY = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(WIDTH * WIDTH, CLASSES)),
    "linear without bias": lambda: nn.Sequential(nn.Flatten(), nn.Linear(WIDTH * WIDTH, CLASSES, bias=False)),
    "two layers": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(WIDTH * WIDTH, 5), nn.ReLU(), nn.Linear(5, CLASSES), nn.LogSoftmax(dim=1)
    ),
    "convolution": lambda: nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, CLASSES)
    ),
    "stride, no bias": lambda: nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2, bias=False), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(3, CLASSES)
    ),
    "batch norm, dropout": lambda: nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(32, CLASSES)
    ),
    "residual": Residual,
}


def tiny(name):
    """A tiny network in float64, always the same one."""
    return _seeded(TINY[name])


def tiny_examples(number=12):
    """Random images [n, 1, 6, 6] and labels, always the same ones."""
    draw = torch.Generator().manual_seed(3)
    images = torch.randn(number, 1, WIDTH, WIDTH, generator=draw, dtype=torch.float64)
    return images, torch.randint(CLASSES, (number,), generator=draw)
