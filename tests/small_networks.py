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


def _sequential(shape, *layers):
    return shape, lambda: nn.Sequential(*(layer() for layer in layers))


def _norm(kind, features):
    """Batch norm with running statistics and parameters that do something."""

    def build():
        norm = kind(features)
        for tensor, low, high in ((norm.weight, -1.0, 1.5), (norm.bias, -0.5, 0.5)):
            nn.init.uniform_(tensor, low, high)
        norm.running_mean.uniform_(-0.3, 0.3)
        norm.running_var.uniform_(0.3, 2.0)
        return norm

    return build


def _conv(*args, **options):
    return lambda: nn.Conv2d(*args, **options)


def _linear(*args, **options):
    return lambda: nn.Linear(*args, **options)


def _pool(kind, *args, **options):
    return lambda: kind(*args, **options)


# Sequential networks on images [channels, height, width]: every layer kind, order and option that the exact engine covers.
SEQUENTIAL = {
    "linear alone": _sequential((6,), _linear(6, 4)),
    "linear, no bias": _sequential((6,), _linear(6, 5, bias=False), nn.ReLU, _linear(5, 3, bias=False)),
    "three ReLUs deep": _sequential(
        (7,), _linear(7, 6), nn.ReLU, _linear(6, 5), nn.ReLU, _linear(5, 4), nn.ReLU, _linear(4, 3), nn.LogSoftmax
    ),
    "no ReLU between": _sequential((5,), _linear(5, 4), _linear(4, 6), nn.ReLU, _linear(6, 3), _linear(3, 3)),
    "ends in a ReLU": _sequential((5,), _linear(5, 4), nn.ReLU, _linear(4, 3), nn.ReLU),
    "starts with a ReLU": _sequential((5,), nn.ReLU, _linear(5, 4), nn.ReLU, nn.ReLU, _linear(4, 3)),
    "norm before ReLU": _sequential((5,), _linear(5, 6), _norm(nn.BatchNorm1d, 6), nn.ReLU, _linear(6, 3)),
    "norm after ReLU": _sequential((5,), _linear(5, 6), nn.ReLU, _norm(nn.BatchNorm1d, 6), _linear(6, 3)),
    "norms around ReLUs": _sequential(
        (5,),
        _norm(nn.BatchNorm1d, 5),
        _linear(5, 6),
        _norm(nn.BatchNorm1d, 6),
        nn.ReLU,
        _norm(nn.BatchNorm1d, 6),
        _linear(6, 4),
        _norm(nn.BatchNorm1d, 4),
        nn.ReLU,
        nn.Dropout,
        _linear(4, 3),
        _norm(nn.BatchNorm1d, 3),
    ),
    "ReLU, norm, ReLU": _sequential((5,), _linear(5, 6), nn.ReLU, _norm(nn.BatchNorm1d, 6), nn.ReLU, _linear(6, 3)),
    "LeNet in small": _sequential(
        (1, 10, 10),
        _conv(1, 2, 3, padding=1),
        nn.ReLU,
        _pool(nn.MaxPool2d, 2),
        _conv(2, 3, 2),
        nn.ReLU,
        _pool(nn.MaxPool2d, 2),
        nn.Flatten,
        _linear(12, 5),
        nn.ReLU,
        _linear(5, 4),
        nn.ReLU,
        _linear(4, 3),
    ),
    "pool before ReLU": _sequential(
        (2, 6, 7), _conv(2, 3, 2), _pool(nn.MaxPool2d, 2), nn.ReLU, nn.ReLU, nn.Flatten, _linear(18, 3)
    ),
    "overlapping, uneven pool": _sequential(
        (1, 8, 7), _conv(1, 2, (2, 3)), nn.ReLU, _pool(nn.MaxPool2d, 3, stride=(2, 1)), nn.Flatten, _linear(18, 3)
    ),
    "padded pool": _sequential(
        (1, 6, 6), _conv(1, 2, 3), nn.ReLU, _pool(nn.MaxPool2d, 2, padding=1), nn.Flatten, _linear(18, 3)
    ),
    "pool without ReLU, twice": _sequential(
        (1, 8, 8), _conv(1, 2, 1), _pool(nn.MaxPool2d, 2), _pool(nn.MaxPool2d, 2), nn.Flatten, _linear(8, 3)
    ),
    "pool first": _sequential(
        (2, 6, 6), _pool(nn.MaxPool2d, 2), _conv(2, 2, 2), nn.ReLU, nn.Flatten, _linear(8, 4), nn.ReLU, _linear(4, 3)
    ),
    "stride, dilation, padding": _sequential(
        (2, 9, 8),
        _conv(2, 3, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
        nn.ReLU,
        _pool(nn.MaxPool2d, 2),
        _conv(3, 2, 2, padding="valid", bias=False),
        nn.ReLU,
        nn.Flatten,
        _linear(8, 3),
    ),
    "same padding": _sequential(
        (1, 5, 5), _conv(1, 2, 3, padding="same"), nn.ReLU, _conv(2, 2, 3, padding="same"), nn.Flatten, _linear(50, 3)
    ),
    "average pool": _sequential(
        (1, 8, 8),
        _conv(1, 2, 3),
        nn.ReLU,
        _pool(nn.AvgPool2d, 2),
        _conv(2, 2, 2),
        _pool(nn.AvgPool2d, 2),
        nn.ReLU,
        nn.Flatten,
        _linear(2, 3),
    ),
    "padded average, norm, pool": _sequential(
        (1, 7, 7),
        _conv(1, 2, 2),
        nn.ReLU,
        _pool(nn.AvgPool2d, 3, stride=2, padding=1),
        _norm(nn.BatchNorm2d, 2),
        _pool(nn.MaxPool2d, 2, stride=1),
        nn.Flatten,
        _linear(8, 3),
    ),
    "VGG in small": _sequential(
        (1, 8, 8),
        _conv(1, 2, 3, padding=1),
        _norm(nn.BatchNorm2d, 2),
        nn.ReLU,
        _pool(nn.MaxPool2d, 2),
        _conv(2, 3, 3, padding=1),
        _norm(nn.BatchNorm2d, 3),
        nn.ReLU,
        _conv(3, 3, 3, padding=1),
        nn.ReLU,
        _norm(nn.BatchNorm2d, 3),
        _pool(nn.MaxPool2d, 2),
        nn.Flatten,
        _linear(12, 4),
        _norm(nn.BatchNorm1d, 4),
        nn.ReLU,
        nn.Dropout,
        _linear(4, 3),
        nn.LogSoftmax,
    ),
    "norm of a flattened map": _sequential(
        (1, 4, 4), _conv(1, 2, 3), nn.Flatten, _norm(nn.BatchNorm1d, 8), nn.ReLU, _linear(8, 3)
    ),
    "norm of one flattened channel": _sequential(
        (1, 4, 4), _conv(1, 1, 3), nn.Flatten, _norm(nn.BatchNorm1d, 4), nn.ReLU, _linear(4, 3)
    ),
    "no linear layer": _sequential((1, 6, 6), _conv(1, 2, 3), nn.ReLU, _conv(2, 3, 4), nn.Flatten),
    "logits from positions": _sequential((1, 4, 4), _conv(1, 2, 3, stride=1), nn.ReLU, nn.Flatten),
}


def sequential(name, *, spread=1.0, seed=7):
    """A sequential network in float64, parameters times ``spread``, with random images and labels: (model, images, labels)."""
    shape, build = SEQUENTIAL[name]
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        model = build().double()
        for module in model:
            if isinstance(module, nn.LogSoftmax):
                module.dim = 1
        for p in model.parameters():
            p.data *= spread
        images = torch.randn(9, *shape, dtype=torch.float64)
        classes = model.eval()(images).shape[1]
        labels = torch.randint(classes, (9,))
    return model, images, labels
