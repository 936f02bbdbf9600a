"""A closed form of what SNIP keeps in each layer, from the layers' shapes and the distribution of their initial weights alone.

Second moments are propagated through the untrained network for one image, for two images of a class, and for two images of
different classes. They give the scale of the salience in every tensor. Four constants describe the images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from scipy import integrate, optimize, special, stats
from torch import nn

from snipnb._checks import check_choice, check_number
from snipnb._engine.sequential import Layer, layers_of
from snipnb.networks import INITIALISATIONS
from snipnb.pruning.masks import sizes_and_kept

IMAGE_SHAPE = (1, 28, 28)


@dataclass(frozen=True)
class Constants:
    """What the closed form has to know about images: how similar they are.

    The constants are fitted to measured densities by :func:`snipnb.studies.seed_consistency.prediction.fit_constants`. The moments are
    means over all positions of an image, although its border is always the same. So the first two constants are larger than the
    correlations of the images themselves.

    Attributes:
        within: Correlation of two images of one class (mean product of their normalised pixels), in (0, 1).
        between: The same for two images of different classes.
        neighbours: Correlation of the values in one max-pooling window.
        contrast: Spread of the pixels' influence: standard deviation of its logarithm.
    """

    within: float
    between: float
    neighbours: float
    contrast: float


# fit_constants(measure_densities(images, labels, seeds=range(10))) on the 5,000 training images of the shipped sample
FITTED = Constants(within=0.623, between=0.416, neighbours=0.692, contrast=0.669)


@dataclass
class _Mixing:
    """One convolution or linear layer on the way of the second moments."""

    layer: Layer
    outputs: int  # connections out of one input
    positions: int  # of the layer's input per unit or channel of the layer before, where they are flattened; else 1
    inside: float  # share of connections that do not lie in the padding
    weight_variance: float
    bias_variance: float
    unit_moments: np.ndarray  # moments[1:] of single inputs, over initialisations [2, nodes]
    # probability that an output passes a gradient, for both images; unit_gates are gates[1:] of single outputs
    gates: np.ndarray = field(default_factory=lambda: np.ones(3))
    unit_gates: np.ndarray = field(default_factory=lambda: np.ones((2, 1)))


_NODES = 16
_EVEN = stats.norm.ppf((np.arange(_NODES) + 0.5) / _NODES)  # a standard normal in equal parts
_POINTS, _SHARES = np.polynomial.hermite_e.hermegauss(48)
_SHARES = _SHARES / _SHARES.sum()


def predicted_scales(
    model: nn.Sequential, image_shape: Sequence[int], init: str, constants: Constants
) -> dict[str, tuple[float, np.ndarray, bool]]:
    """The distribution of the SNIP salience in each parameter tensor, from shapes and initialisation alone.

    **Definition.** The scale is the root mean square of the salience. For a weight from input j to output i, the gradient is
    the mean over images of delta_i x_j. So its mean square over initialisations is a mean over pairs of images of the product
    of two correlations: K of the layer's inputs x, and P of the backward signals delta, summed over positions. Both follow
    from layer to layer, for pairs within a class and between classes:

    - forward, K <- var(w) fan_in K + var(b), then E[relu(a) relu(a')] for normal a, a' with these moments;
    - a max-pooling shifts and narrows the normal distribution to match the largest of k equally correlated values;
    - backward, P <- var(w) fan_out P, times the probability that both images pass the gate;
    - at C logits, (p - y)(p' - y') is (1 - 1/C)/C within a class and -1/C^2 between classes, plus the spread of the mean
      probabilities over the initial logits, (exp(K) - 1) (1 - 1/C)/C^2.

    The scale is sqrt(var(w)) times the root of the mean of K P over pairs (1/C of them within a class); x = 1 for a bias.
    Padding counts as input 0. The mean product of forward and backward signals is taken as the product of their means, as in
    wide networks.

    **Source.** The write-up's section 5 and claim C29 ask what SNIP knows about layers. This is what their shapes alone say.
    Moments of wide networks before training as in Poole et al. (2016) and Schoenholz et al. (2017).

    Args:
        model: ``nn.Sequential`` of Conv2d, Linear, ReLU, MaxPool2d, Flatten, Dropout; only its shapes are used.
        image_shape: ``(channels, height, width)`` or ``(features,)``; images are normalised to mean square 1.
        init: Initialisation of the parameters, one of :data:`snipnb.INITIALISATIONS`.
        constants: How similar images are.

    Returns:
        Name -> scale (0 for biases that start at zero), logarithms of its spread over pairs of units, and whether the initial values are normal.

    Raises:
        ValueError: If the network has another layer, images do not fit, or ``init`` or the constants are out of range.
    """
    check_choice("init", init, INITIALISATIONS)
    if not 0 < constants.between < constants.within < 1:
        raise ValueError(f"constants must have 0 < between < within < 1; got {constants}")
    check_number("neighbours", constants.neighbours, "[0, 1]")
    check_number("contrast", constants.contrast, "[0, inf)")
    mixings, moments = _mixings(model, tuple(image_shape), init, constants)
    classes, normal = len(mixings[-1].layer.module.weight), init.startswith("xavier_normal")
    spread = (1 - 1 / classes) / classes**2 * np.expm1(moments[2])
    signal = np.array([(1 - 1 / classes) / classes, -1 / classes**2]) + spread  # within, between classes
    within = np.array([1, classes - 1]) / classes
    found = {}
    for mixing in reversed(mixings):
        # mean squares of single gradients, [nodes of the output, nodes of the input]
        squares = np.einsum("t,ti,tj->ij", within * signal, mixing.unit_gates, mixing.unit_moments) * mixing.inside
        found[f"{mixing.layer.name}.weight"] = (*_scale_and_logs(mixing.weight_variance * squares), normal)
        if mixing.layer.module.bias is not None:
            squares = (within * signal) @ mixing.unit_gates
            found[f"{mixing.layer.name}.bias"] = (*_scale_and_logs(mixing.bias_variance * squares), False)
        signal = signal * mixing.gates[1:] * mixing.weight_variance * mixing.outputs * mixing.inside * mixing.positions
    return {name: found[name] for name, _ in model.named_parameters()}


def predicted_densities(
    model: nn.Sequential,
    sparsity: float,
    image_shape: Sequence[int] = IMAGE_SHAPE,
    *,
    init: str = "pytorch",
    constants: Constants = FITTED,
) -> dict[str, float]:
    """The fraction of each parameter tensor that SNIP would keep, from shapes and initialisation alone.

    **Definition.** Within a tensor the salience is distributed as r w n, with w from the initialisation (uniform or normal)
    and n normal. r is the scale of :func:`predicted_scales`, given what all images share in the input unit and in the output
    unit: images are similar, so some units are off for nearly all images, and others on. The threshold t solves
    sum_l m_l P(abs(s_l) > t) = number kept, over the m_l parameters of all tensors.

    Args:
        model: As :func:`predicted_scales`.
        sparsity: Fraction removed, in [0, 1).
        image_shape: As :func:`predicted_scales`.
        init: As :func:`predicted_scales`.
        constants: As :func:`predicted_scales`.

    Returns:
        Name -> density in [0, 1]; density times size adds up to the exact number kept. Parameters without salience
        (biases that start at zero) are kept only where there is room left.

    Raises:
        ValueError: As :func:`predicted_scales`, or if the sparsity is not a number in [0, 1).
    """
    tensors = predicted_scales(model, image_shape, init, constants)
    sizes, kept = sizes_and_kept(model, sparsity)
    live = {name: parts for name, parts in tensors.items() if parts[0] > 0}
    spare = kept - sum(sizes[name] for name in live)
    if spare >= 0:  # all parameters with a salience stay; the others fill the room that is left
        rest = sum(sizes[name] for name in sizes if name not in live)
        return {name: 1.0 if name in live else spare / rest for name in sizes}

    def share(name: str, log_threshold: float) -> float:
        scale, spread, normal = live[name]
        return float(_tail(normal, log_threshold - np.log(scale) - spread).mean())

    def excess(log_threshold: float) -> float:
        return sum(sizes[name] * share(name, log_threshold) for name in live) / kept - 1

    logs = np.concatenate([np.log(scale) + spread for scale, spread, _ in live.values()])
    threshold = optimize.brentq(excess, logs.min() + _LOG_GRID[0], logs.max() + _LOG_GRID[-1], xtol=1e-12, rtol=1e-14)
    return {name: share(name, threshold) if name in live else 0.0 for name in sizes}


def _mixings(
    model: nn.Module, shape: tuple[int, ...], init: str, constants: Constants
) -> tuple[list[_Mixing], np.ndarray]:
    """Propagate the second moments forward, up to those of the logits: [one image, two of a class, two of different classes]."""
    moments = np.array([1, constants.within, constants.between])
    unit_moments = moments[1:, None]
    if len(shape) not in (1, 3) or min(shape) < 1:
        raise ValueError(f"image_shape must be (channels, height, width) or (features,); got {shape}")
    mixings: list[_Mixing] = []
    positions = 1
    for layer in layers_of(model):
        before, shape = shape, layer.shape_behind(shape)
        if layer.kind in ("conv", "linear"):
            weight = layer.module.weight
            if not mixings and layer.kind == "linear":
                contrast = np.exp(2 * constants.contrast * _EVEN)
                unit_moments = moments[1:, None] * contrast / contrast.mean()
            inside = _inside(layer, before[1:]) if layer.kind == "conv" else 1.0
            inputs, outputs = weight[0].numel(), len(weight) * math.prod(layer.kernel)
            weight_variance, bias_variance = _variances(init, inputs, outputs)
            bias_variance *= layer.module.bias is not None
            mixings.append(_Mixing(layer, outputs, positions, inside, weight_variance, bias_variance, unit_moments))
            moments = weight_variance * inside * inputs * moments + bias_variance
            unit_moments, positions = moments[1:, None], 1
        elif layer.kind == "flat":
            positions = math.prod(before[1:])
        elif layer.kind == "relu" or layer.relu:
            if not mixings:
                raise ValueError(f"layer {layer.name!r} comes before any weights; a Conv2d or Linear must come first")
            last, kernel = mixings[-1], math.prod(layer.kernel)
            moments, last.gates, unit_moments, last.unit_gates = _gate(moments, kernel, constants.neighbours)
        else:
            pooling = layer.kind in ("max", "mean")
            kind = "average pooling or pooling without ReLU" if pooling else type(layer.module).__name__
            raise ValueError(
                f"layer {layer.name!r} must be Conv2d, Linear, ReLU, MaxPool2d with a ReLU, Flatten or Dropout; got {kind}"
            )
    if not mixings or len(shape) != 1 or mixings[-1].gates[0] != 1:
        raise ValueError("the model does not end in logits; its last layer must be a Linear")
    return mixings, moments


def _gate(moments: np.ndarray, kernel: int, neighbours: float) -> tuple[np.ndarray, ...]:
    """ReLU of the largest of ``kernel`` values: moments after it and gates, [3] each, and the same of single units, [2, nodes] each.

    A unit is described by the part of its input that all images share. Images of a class share a further part.
    """
    top, narrowing = _largest(kernel)
    mean = top * np.sqrt((1 - neighbours) * moments[0])
    variance, within, between = moments * (neighbours + (1 - neighbours) * narrowing)
    after, gates = np.empty(3), np.empty(3)
    for i, shared in enumerate((variance, within, between)):  # the variance that two images share
        value, passed = _given(mean + np.sqrt(shared) * _POINTS, variance - shared)
        after[i], gates[i] = _SHARES @ value**2, _SHARES @ passed**2
    centre = mean + np.sqrt(between) * _EVEN
    value, passed = _given(centre, variance - between)
    in_class = _given(centre[:, None] + np.sqrt(within - between) * _POINTS, variance - within)  # [nodes, points] each
    unit_moments, unit_gates = (
        np.array([square @ _SHARES, alone])
        for square, alone in zip((v**2 for v in in_class), (value**2, passed**2), strict=True)
    )
    return after, gates, unit_moments, unit_gates


def _given(centre: np.ndarray, variance: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean of relu(a), and probability of a > 0, for normal a."""
    deviation = np.sqrt(max(variance, 1e-12))
    passed = special.ndtr(centre / deviation)
    return centre * passed + deviation * np.exp(-0.5 * (centre / deviation) ** 2) / np.sqrt(2 * np.pi), passed


@lru_cache
def _largest(count: int) -> tuple[float, float]:
    """Mean and variance of the largest of independent standard normals."""
    if count == 1:
        return 0.0, 1.0
    x = np.linspace(-9, 9, 4001)
    density = count * stats.norm.pdf(x) * stats.norm.cdf(x) ** (count - 1)
    mean = float(integrate.trapezoid(x * density, x))
    return mean, float(integrate.trapezoid((x - mean) ** 2 * density, x))


def _scale_and_logs(squares: np.ndarray) -> tuple[float, np.ndarray]:
    """Root of the mean, and logarithms of the roots relative to it."""
    mean = float(squares.mean())
    if mean <= 0:
        return 0.0, np.zeros(1)
    return np.sqrt(mean), 0.5 * np.log(np.maximum(squares.ravel() / mean, 1e-60))


_LOG_GRID = np.linspace(-30, 4, 1200)


@lru_cache
def _tail_table(normal: bool) -> np.ndarray:
    """P(abs(w n) > t) on the grid of log t, for w with variance 1, uniform or normal, and standard normal n."""
    threshold = np.exp(_LOG_GRID)
    if not normal:  # w is uniform on (-sqrt(3), sqrt(3))
        t = threshold / np.sqrt(3)
        return special.erfc(t / np.sqrt(2)) - t / np.sqrt(2 * np.pi) * special.exp1(t**2 / 2)
    y = np.linspace(-32, 3, 6001)  # log of abs(w)
    density = np.exp(y - 0.5 * np.exp(2 * y)) * np.sqrt(2 / np.pi)
    return np.array([integrate.trapezoid(density * special.erfc(t * np.exp(-y) / np.sqrt(2)), y) for t in threshold])


def _tail(normal: bool, log_threshold: np.ndarray) -> np.ndarray:
    return np.interp(log_threshold, _LOG_GRID, _tail_table(normal), left=1.0, right=0.0)


def _variances(init: str, inputs: int, outputs: int) -> tuple[float, float]:
    """Variances of weights and of biases."""
    weights = 2 / (inputs + outputs) if init.startswith("xavier") else 1 / (3 * inputs)
    return weights, 0.0 if init.endswith("_zero_bias") else 1 / (3 * inputs)


def _inside(layer: Layer, size: Sequence[int]) -> float:
    """The share of a convolution's connections that meet the image, not the padding."""
    inside = 1.0
    sides = (size, layer.size_behind(size), layer.kernel, layer.stride, layer.padding, layer.dilation)
    for length, steps, kernel, stride, padding, dilation in zip(*sides, strict=True):
        met = np.arange(steps)[:, None] * stride - padding + np.arange(kernel) * dilation
        inside *= float(((met >= 0) & (met < length)).mean())
    return inside
