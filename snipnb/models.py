"""The networks of the write-up, as plain ``nn.Sequential`` with readable parameter names, and their initialisations."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import nn

_WEIGHT_INITIALISERS: dict[str, Callable[[torch.Tensor], torch.Tensor] | None] = {
    "pytorch": None,  # what the layers do by themselves
    "xavier_uniform": nn.init.xavier_uniform_,
    "xavier_normal": nn.init.xavier_normal_,
}
_ZERO_BIAS = "_zero_bias"
_drawing = threading.Lock()  # initial weights come from the global generator, which is put back afterwards
INITIALISATIONS = tuple(name + suffix for suffix in ("", _ZERO_BIAS) for name in _WEIGHT_INITIALISERS)


def lenet5(*, init: str = "pytorch", seed: int = 0) -> nn.Sequential:
    """LeNet-5 as the write-up uses it: 61,706 parameters, for images [n, 1, 28, 28], logits [n, 10].

    Layers: ``conv1`` 6@5x5 with padding 2, ReLU, max-pool 2; ``conv2`` 16@5x5, ReLU, max-pool 2; ``full1`` 400-120,
    ReLU; ``full2`` 120-84, ReLU; ``full3`` 84-10.

    Args:
        init: One of :data:`INITIALISATIONS`. ``"pytorch"`` leaves PyTorch's default; the Xavier ones re-draw the weights
            and keep PyTorch's biases; the suffix ``_zero_bias`` sets every bias to zero.
        seed: Draw of the initial weights. The global random state is neither used nor changed.

    Source: section 2 and Figure 2 of the write-up. Departs from it: the text names Xavier initialisation; the published
    code leaves PyTorch's default, which is the default here.

    Raises:
        ValueError: If ``init`` is unknown.
    """
    return _build(
        lambda: OrderedDict(
            conv1=nn.Conv2d(1, 6, 5, padding=2),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(6, 16, 5),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            full1=nn.Linear(400, 120),
            relu3=nn.ReLU(),
            full2=nn.Linear(120, 84),
            relu4=nn.ReLU(),
            full3=nn.Linear(84, 10),
        ),
        init,
        seed,
    )


def lenet_300_100(*, init: str = "pytorch", seed: int = 0) -> nn.Sequential:
    """LeNet-300-100: fully connected 784-300-100-10 with ReLU, 266,610 parameters; arguments as :func:`lenet5`."""
    return _build(
        lambda: OrderedDict(
            flatten=nn.Flatten(),
            full1=nn.Linear(784, 300),
            relu1=nn.ReLU(),
            full2=nn.Linear(300, 100),
            relu2=nn.ReLU(),
            full3=nn.Linear(100, 10),
        ),
        init,
        seed,
    )


def published_label(parameter: str) -> str:
    """The write-up's name of a parameter: ``conv1.weight`` is "conv 1", ``full3.bias`` is "bias full 3"."""
    found = re.fullmatch(r"([a-z]+)(\d+)\.(weight|bias)", parameter)
    if found is None:
        return parameter
    return ("bias " if found[3] == "bias" else "") + f"{found[1]} {found[2]}"


def _build(layers: Callable[[], OrderedDict[str, nn.Module]], init: str, seed: int) -> nn.Sequential:
    if init not in INITIALISATIONS:
        raise ValueError(f"init is {init!r}; accepted are {', '.join(INITIALISATIONS)}")
    with _drawing, torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)  # not torch.manual_seed, which would seed CUDA too
        model = nn.Sequential(layers())
        redraw = _WEIGHT_INITIALISERS[init.removesuffix(_ZERO_BIAS)]
        for name, parameter in model.named_parameters():
            if name.endswith("weight") and redraw is not None:
                redraw(parameter)
            elif name.endswith("bias") and init.endswith(_ZERO_BIAS):
                nn.init.zeros_(parameter)
    return model


MODELS: dict[str, Callable[..., nn.Sequential]] = {"lenet5": lenet5, "lenet_300_100": lenet_300_100}
