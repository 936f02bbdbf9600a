"""The networks of the write-up, as plain ``nn.Sequential`` with readable parameter names, and their initialisations."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snipnb._checks import check_choice, check_examples, check_integer, check_number, check_type, copied, in_mode
from snipnb._progress import track

WHOLE = "whole network"
Convolution = tuple[int, int, int, bool]  # channels, kernel size, padding, whether a max-pooling follows

_WEIGHT_INITIALISERS: dict[str, Callable[[torch.Tensor], torch.Tensor] | None] = {
    "pytorch": None,  # what the layers do by themselves
    "xavier_uniform": nn.init.xavier_uniform_,
    "xavier_normal": nn.init.xavier_normal_,
}
_ZERO_BIAS = "_zero_bias"
_drawing = threading.RLock()  # initial weights come from the global generator, which is put back afterwards
INITIALISATIONS = tuple(name + suffix for suffix in ("", _ZERO_BIAS) for name in _WEIGHT_INITIALISERS)


def lenet5(*, init: str = "pytorch", seed: int = 0) -> nn.Sequential:
    """LeNet-5 as the write-up uses it: 61,706 parameters, for images [n, 1, 28, 28], logits [n, 10].

    Layers: ``conv1`` 6@5x5 with padding 2, ReLU, max-pool 2; ``conv2`` 16@5x5, ReLU, max-pool 2; ``full1`` 400-120,
    ReLU; ``full2`` 120-84, ReLU; ``full3`` 84-10.

    Args:
        init: One of :data:`INITIALISATIONS`. ``"pytorch"`` leaves PyTorch's default; the Xavier initialisations draw the
            weights again and keep PyTorch's biases; the suffix ``_zero_bias`` sets every bias to zero.
        seed: Determines the initial weights. The global random state is neither used nor changed.

    Source: section 2 and Figure 2 of the write-up. Departs from it: the text names Xavier initialisation. The published
    code leaves PyTorch's default, which is the default here.

    Raises:
        ValueError: If ``init`` is unknown.

    Example:
        >>> import snipnb
        >>> model = snipnb.lenet5(init="xavier_uniform", seed=1)
        >>> sum(p.numel() for p in model.parameters())
        61706
    """
    return lenet_variant("lenet5", init=init, seed=seed)


def lenet_300_100(*, init: str = "pytorch", seed: int = 0) -> nn.Sequential:
    """LeNet-300-100: fully connected 784-300-100-10 with ReLU, 266,610 parameters; arguments as :func:`lenet5`.

    Example:
        >>> import snipnb
        >>> sum(p.numel() for p in snipnb.lenet_300_100().parameters())
        266610
    """
    return lenet_variant("lenet_300_100", init=init, seed=seed)


def lenet_variant(
    base: str = "lenet5",
    *,
    width: float = 1.0,
    extra_conv: int = 0,
    extra_full: int = 0,
    batch_norm: bool = False,
    init: str = "pytorch",
    seed: int = 0,
) -> nn.Sequential:
    """A wider, narrower or deeper LeNet-5 or LeNet-300-100, with layers named in the same way.

    Hidden channels and units are multiplied by ``width`` and rounded. Extra convolutions (3x3 with padding 1, ReLU, as many
    channels as the last convolution) follow the last max-pooling. Extra fully connected layers (ReLU, as many units as the last
    hidden layer) come before the logits. Without changes, the network is ``base`` itself, weight for weight.

    Args:
        base: ``"lenet5"`` or ``"lenet_300_100"``.
        width: Factor on all hidden sizes, above 0.
        extra_conv: Number of added convolutions, at least 0; for LeNet-5 only.
        extra_full: Number of added fully connected layers, at least 0.
        batch_norm: Whether a batch norm comes before every ReLU; see :func:`set_running_statistics`.
        init: One of :data:`INITIALISATIONS`.
        seed: Determines the initial weights. The global random state is neither used nor changed.

    Raises:
        ValueError: If an argument is not as described above.

    Example:
        >>> [tuple(p.shape) for p in lenet_variant("lenet_300_100", width=0.5, extra_full=1).parameters() if p.dim() == 2]
        [(150, 784), (50, 150), (50, 50), (10, 50)]
    """
    check_choice("base", base, _HIDDEN)
    check_number("width", width, "(0, inf)")
    check_integer("extra_conv", extra_conv, 0)
    check_integer("extra_full", extra_full, 0)
    channels, units = ([max(1, round(width * size)) for size in sizes] for sizes in _HIDDEN[base])
    if extra_conv and not channels:
        raise ValueError(f"extra_conv must be 0 for {base}, which has no convolutions; got {extra_conv}")
    convolutions = [(after, 5, 0 if i else 2, True) for i, after in enumerate(channels)]
    convolutions += [(after, 3, 1, False) for after in channels[-1:] * extra_conv]
    return _build(convolutions, units + units[-1:] * extra_full, batch_norm, init, seed)


def lenet_digits(*, init: str = "pytorch", seed: int = 0) -> nn.Sequential:
    """A LeNet for digits of 8 x 8 pixels: 7,832 parameters, for images [n, 1, 8, 8], logits [n, 10].

    Layers, as LeNet-5's with kernels of 3 x 3, padding 1, and half the units: ``conv1`` 6, ``conv2`` 16, each with ReLU and max-pool 2;
    ``full1`` 64-60, ``full2`` 60-42, with ReLU; ``full3`` 42-10.

    Args:
        init: One of :data:`INITIALISATIONS`.
        seed: Determines the initial weights. The global random state is neither used nor changed.

    Example:
        >>> import snipnb
        >>> sum(p.numel() for p in snipnb.lenet_digits().parameters())
        7832
    """
    return _build([(6, 3, 1, True), (16, 3, 1, True)], [60, 42], False, init, seed, side=8)


_VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # a pooling after each


def vgg16_mnist(*, init: str = "pytorch", seed: int = 0) -> nn.Sequential:
    """VGG16 with batch norm for images [n, 1, 28, 28]: thirteen convolutions and two linear layers, 14,879,494 parameters.

    The convolutions are torchvision's ``vgg16_bn`` with one input channel. The first pads images to 32x32 (its padding is 3
    instead of 1, which is the same). Two linear layers follow: 512-300 with batch norm and ReLU, and 300-10. Layers are named
    ``conv1``, ``norm1``, ..., ``conv13``, ``full1``, ``norm14``, ``full2``. Before training, see :func:`set_running_statistics`.

    Args:
        init: One of :data:`INITIALISATIONS`.
        seed: Determines the initial weights. The global random state is neither used nor changed.

    Source: section 4 of the write-up names VGG without saying which. Departs from torchvision: the classifier is smaller, since MNIST
    leaves 512 numbers where ImageNet leaves 25,088, and ``"pytorch"`` leaves the layers' own initialisation.

    Example:
        >>> import snipnb
        >>> sum(p.numel() for p in snipnb.vgg16_mnist().parameters())
        14879494
    """
    convolutions = [(after, 3, 1, i == len(stage)) for stage in _VGG16 for i, after in enumerate(stage, start=1)]
    convolutions[0] = (64, 3, 3, False)
    return _build(convolutions, [300], True, init, seed)


@torch.no_grad()
def set_running_statistics(model: nn.Module, images: Tensor, *, batch_size: int = 1000) -> nn.Module:
    """Give every batch norm of a model the means and variances of its inputs, in one pass over some images.

    A new batch norm has the statistics 0 and 1. With these, a deep network's logits in evaluation mode hardly depend on its input,
    so its saliences say nothing. Here each batch is normalised by its own statistics, as in training. The average of these
    statistics over batches is kept. Other layers are in evaluation mode.

    Args:
        model: The network; only the statistics of its batch norms change. Its mode is put back.
        images: Inputs [n, ...].
        batch_size: Images per batch, at least 2.

    Returns:
        The same model.

    Raises:
        ValueError: If a batch would hold a single image, which has no variance.

    Example:
        >>> import snipnb
        >>> images, _ = snipnb.load_mnist("test", sample=True)
        >>> model = snipnb.set_running_statistics(snipnb.vgg16_mnist(), images[:8])
        >>> bool((model.norm1.running_var != 1).all())
        True
    """
    check_examples(images, images, batch_size)
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    norms = [m for m in model.modules() if isinstance(m, kinds) and m.track_running_stats]
    if not norms:
        return model
    if min(batch_size, len(images)) < 2 or len(images) % batch_size == 1:
        raise ValueError(f"{len(images)} images in batches of {batch_size} leave a batch of one, which has no variance")
    momenta = [m.momentum for m in norms]
    device = next(model.parameters()).device
    with in_mode(model, "eval"):
        model(images[:1].to(device))  # an error comes before the old statistics are gone
        try:
            for norm in norms:
                norm.train()
                norm.reset_running_stats()
                norm.momentum = None  # the plain average over batches
            for batch in track(images.split(batch_size), "running statistics"):
                model(batch.to(device))
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    return model


_HIDDEN = {"lenet5": ([6, 16], [120, 84]), "lenet_300_100": ([], [300, 100])}  # channels and units


def _layers(convolutions: Sequence[Convolution], units: Sequence[int], batch_norm: bool, side: int) -> nn.Sequential:
    """Layers for images [1, side, side]: convolutions, then fully connected layers, each with a ReLU, up to 10 logits."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    before, pools = 1, 0
    for i, (after, kernel, padding, pooled) in enumerate(convolutions, start=1):
        layers[f"conv{i}"] = nn.Conv2d(before, after, kernel, padding=padding)
        if batch_norm:
            layers[f"norm{i}"] = nn.BatchNorm2d(after)
        layers[f"relu{i}"] = nn.ReLU()
        before, side = after, side + 2 * padding - kernel + 1
        if pooled:
            pools, side = pools + 1, side // 2
            layers[f"pool{pools}"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    before *= side**2
    for i, after in enumerate(units, start=1):
        layers[f"full{i}"] = nn.Linear(before, after)
        if batch_norm:
            layers[f"norm{len(convolutions) + i}"] = nn.BatchNorm1d(after)
        layers[f"relu{len(convolutions) + i}"] = nn.ReLU()
        before = after
    layers[f"full{len(units) + 1}"] = nn.Linear(before, 10)
    return nn.Sequential(layers)


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """PyTorch's global generators with a seed, for one thread at a time; then put back: of the processor, and of a CUDA device if ``device`` is one."""
    cuda = [device] if device is not None and device.type == "cuda" else []
    with _drawing, torch.random.fork_rng(devices=cuda):
        torch.random.default_generator.manual_seed(seed)  # not torch.manual_seed, which would seed every CUDA device
        for one in cuda:
            with torch.cuda.device(one):
                torch.cuda.manual_seed(seed)
        yield


def _build(
    convolutions: Sequence[Convolution], units: Sequence[int], batch_norm: bool, init: str, seed: int, side: int = 28
) -> nn.Sequential:
    check_choice("init", init, INITIALISATIONS)
    with seeded(seed):
        model = _layers(convolutions, units, batch_norm, side)
        redraw = _WEIGHT_INITIALISERS[init.removesuffix(_ZERO_BIAS)]
        for name, parameter in model.named_parameters():
            if name.endswith("weight") and parameter.dim() > 1 and redraw is not None:  # batch norms start at one
                redraw(parameter)
            elif name.endswith("bias") and init.endswith(_ZERO_BIAS):
                nn.init.zeros_(parameter)
    return model


@dataclass(frozen=True)
class Network:
    """A network of your own, for :class:`snipnb.RunConfig` and :func:`snipnb.run_grid`: ``snipnb.MODELS["mine"] = snipnb.Network(Mine, version=1)``.

    Attributes:
        build: Makes the network, with weights from PyTorch's random state: a class, or any function without arguments.
        version: Version of the architecture and its initial weights; part of the identity of runs. Raise it when they change. Runs of a
            network without a version are not kept.

    Example:
        >>> import torch
        >>> import snipnb
        >>> network = snipnb.Network(lambda: torch.nn.Linear(4, 2), version=1)
        >>> bool((network(seed=3).weight == network(seed=3).weight).all())
        True
    """

    build: Callable[[], nn.Module]
    version: int | None = None

    def __post_init__(self) -> None:
        if self.version is not None:
            check_integer("version", self.version)

    def __call__(self, *, init: str = "pytorch", seed: int = 0) -> nn.Module:
        """The network with the initial weights of a seed. The global random state is neither used nor changed."""
        check_choice("init of a network of your own", init, ["pytorch"])
        with seeded(seed):
            try:
                model = self.build()
            except TypeError as error:
                raise ValueError(f"build must make a network when it is called without arguments; {error}") from error
        check_type("what build returns", model, nn.Module)
        return copied(model)  # build may return the same network every time


# The networks of runs, by name: a function of ``init`` and ``seed``.
MODELS: dict[str, Callable[..., nn.Module]] = {
    "lenet5": lenet5,
    "lenet_300_100": lenet_300_100,
    "vgg16_mnist": vgg16_mnist,
    "lenet_digits": lenet_digits,
}
