"""Second order and every order after it: derivatives of the loss along single parameters, without a higher-order Hessian.

As long as no ReLU or max-pooling switches, the logits of an image are affine in one parameter w, with slopes J_c. Along w the
cross-entropy is then the cumulant generating function of the slopes under the softmax p, less a linear term:

    L(w + t) - L(w) = log sum_c p_c exp(t J_c) - t J_y = (kappa_1 - J_y) t + kappa_2 t^2 / 2 + kappa_3 t^3 / 6 + ...

So the k-th derivative is the k-th cumulant of J, averaged over the images: kappa_2 is the variance, the diagonal of the
Hessian. One forward pass and one backward pass with several columns give everything:

- For the variance the columns are a factor of the covariance diag(p) - p p^T, which has rank C - 1: squares add up.
- For higher orders they are the slopes J_c themselves, relative to those of the most probable class.

A linear layer's slopes are B_c x, a column of what is propagated back times an input, so that kappa_k(B x) = kappa_k(B) x^k and the
sum over images is a matrix product. A convolution's slopes are formed image by image from the patches that it sees.

Models that are not such a sequence of layers are differentiated along one parameter after the other.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from snipnb._engine.propagation import Scratch, running_statistics
from snipnb._engine.sequential import Pool, layers_of, padding_of, steps_of
from snipnb._engine.unit_lines import loss_changes
from snipnb._engine.workers import Crew
from snipnb._progress import track
from snipnb.saliences.snip import (
    Salience,
    batch_starts,
    call_with,
    check_alike_and_precise,
    check_classes,
    check_examples,
    float_parameters,
    in_mode,
    snip,
    unchanged,
)

METHODS = ("auto", "cumulants", "autodiff")
LINEAR_REGION = "linear-region"
TEMPORARY = {"cpu": 2**22, "cuda": 2**26}  # numbers that one temporary holds
SMALL = 2**22  # (parameter, image) pairs that are differentiated one by one without being asked for
TOGETHER = 64  # parameters differentiated at once
IMAGES = 1000  # images per batch, at most
LONGEST = 1.0  # of abs(w x) (max J - min J) that a series takes; it converges up to pi


def diagonal_hessian(
    model: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int = IMAGES, method: str = "auto"
) -> Salience:
    """The exact diagonal of the Hessian of the mean cross-entropy.

    **Definition.** h_j = d^2 L / dw_j^2 with L over all of ``images``, evaluation mode. Where the logits are piecewise linear in w_j this is
    the variance of their slopes J under the softmax, averaged over images.

    **Source.** Write-up, section 3, for the second-order salience. **Departs from** it: the write-up says that the diagonal costs
    nearly a gradient; exactly, it takes about one backward pass per class. What is cheap is :func:`row_sum_hessian`, which is another thing.

    Args:
        model: For the closed form, ``nn.Sequential`` (nested ones too) of Conv2d, Linear, ReLU, MaxPool2d, AvgPool2d, Flatten,
            Dropout, BatchNorm1d and BatchNorm2d, ending in logits or LogSoftmax. Other modules that return logits are
            differentiated. float32 or float64, on any device.
        images: Inputs [n, ...], in the model's dtype, on any device.
        labels: Classes, integers [n] in [0, C).
        batch_size: Images at once, at most; fewer are taken where memory would not be bounded otherwise. It changes rounding only.
        method: ``"cumulants"``: the closed form; an error if it does not cover the model. ``"autodiff"``: ``torch.func``, two nested forward
            derivatives for every parameter. ``"auto"``: the closed form, or else ``torch.func`` if that is a matter of minutes.

    Returns:
        Dictionary name -> second derivatives in the parameter's shape, device and dtype; never negative with the closed form.

    Raises:
        ValueError: If an option is unknown, images and labels do not fit, the model is in half precision or mixed, or no method
            covers it.

    Example:
        >>> import snipnb
        >>> images, labels = snipnb.load_mnist("test", sample=True)
        >>> snipnb.diagonal_hessian(snipnb.lenet5(), images[:100], labels[:100])["conv1.weight"].shape
        torch.Size([6, 1, 5, 5])
    """
    closed = _covers(model, images, labels, batch_size, method, 2)
    if not closed:
        return _differentiated(model, images, labels, 2, batch_size)[1]
    return _closed(model, images, labels, _Variance(gradient=False), batch_size)[0]


def derivatives(
    model: nn.Module, images: Tensor, labels: Tensor, *, order: int, batch_size: int = IMAGES, method: str = "auto"
) -> list[Salience]:
    """The first to the ``order``-th derivative of the mean cross-entropy along every parameter.

    **Definition.** L^(i) = d^i L / dw_j^i, the other parameters as they are: the i-th cumulant of the slopes J of the logits under the
    softmax, less J_y for i = 1, averaged over images.

    **Source.** Write-up, section 3. **Departs from** it: the write-up says that higher orders need higher-order Hessians; along single
    parameters they need the slopes only.

    Args:
        model: As for :func:`diagonal_hessian`.
        images: Likewise.
        labels: Likewise.
        order: How many derivatives, from 1.
        batch_size: Likewise.
        method: Likewise; ``"autodiff"`` nests ``order`` forward derivatives.

    Returns:
        List of dictionaries name -> derivatives, the first order first.

    Raises:
        ValueError: As for :func:`diagonal_hessian`, or if the order is not an integer from 1.
    """
    _check_order(order, "integers from 1")
    if not _covers(model, images, labels, batch_size, method, order):
        return _differentiated(model, images, labels, order, batch_size)
    rule = _Variance(gradient=True) if order <= 2 else _Cumulants(order)
    return _closed(model, images, labels, rule, batch_size)[:order]


def taylor_salience(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    order: int | str = 2,
    batch_size: int = IMAGES,
    method: str = "auto",
) -> Salience:
    """The loss change when a parameter is set to zero, from what is known of the loss around the model as it is.

    **Definition.** For order k the Taylor polynomial, sum_{i=1..k} (-w)^i L^(i) / i!; signed, so that order 1 is minus
    :func:`snipnb.snip`, and order 2 is -(w L' - w^2 L'' / 2). For ``"linear-region"`` the change as if no ReLU and no max-pooling
    switched, the mean over images of log sum_c p_c exp(-w J_c) + w J_y: the limit of the orders where they converge (surely
    for abs(w) (max J - min J) < pi), and defined everywhere. What it misses of :func:`snipnb.exact_salience` is switching only.

    **Source.** Write-up, section 3. **Departs from** it: its printed second order, abs(L' - L'' w / 2), has lost a factor w; that one is
    :func:`printed_second_order`.

    Args:
        model: As for :func:`diagonal_hessian`; for ``"linear-region"`` only what the closed form covers.
        images: Likewise.
        labels: Likewise.
        order: An integer from 1, or ``"linear-region"``.
        batch_size: Likewise.
        method: Likewise.

    Returns:
        Dictionary name -> signed salience in the parameter's shape, device and dtype.

    Raises:
        ValueError: As for :func:`derivatives`, or if the model is not piecewise linear and the linear region is asked for.

    Example:
        >>> import snipnb
        >>> images, labels = snipnb.load_mnist("test", sample=True)
        >>> snipnb.taylor_salience(snipnb.lenet5(), images[:100], labels[:100], order="linear-region")["conv1.bias"].shape
        torch.Size([6])
    """
    if not (isinstance(order, str) and order == LINEAR_REGION):
        _check_order(order, f"integers from 1 and {LINEAR_REGION!r}")
    tensors = float_parameters(model)
    if order == LINEAR_REGION:
        if method == "autodiff":
            raise ValueError(f"order={LINEAR_REGION!r} has a closed form only; method='autodiff' was asked for")
        _covers(model, images, labels, batch_size, "cumulants", 0)
        return _closed(model, images, labels, _Region(tensors), batch_size)[0]
    if order == 1 and method == "auto":
        _covers(model, images, labels, batch_size, method, 0)
        return {name: -s for name, s in snip(model, images, labels, batch_size=min(batch_size, 500)).items()}
    found = derivatives(model, images, labels, order=int(order), batch_size=batch_size, method=method)
    return {
        name: _total((-w) ** i / math.factorial(i) * d[name] for i, d in enumerate(found, 1))
        for name, w in tensors.items()
    }


def printed_second_order(
    model: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int = IMAGES, method: str = "auto"
) -> Salience:
    """The second-order salience as the write-up prints it: L' - L'' w / 2, signed; kept to show that a factor is lost.

    **Definition.** With a = L'' / 2 and b = L' - 2 a w the write-up's own steps give abs(a w^2 + b w) = abs(w L' - w^2 L'' / 2), minus
    :func:`taylor_salience` of order 2. **Source.** Write-up, section 3, its last formula.

    Args:
        model: As for :func:`diagonal_hessian`.
        images: Likewise.
        labels: Likewise.
        batch_size: Likewise.
        method: Likewise.

    Returns:
        Dictionary name -> L' - L'' w / 2.

    Raises:
        ValueError: As for :func:`diagonal_hessian`.
    """
    first, second = derivatives(model, images, labels, order=2, batch_size=batch_size, method=method)
    return {name: first[name] - second[name] * w / 2 for name, w in float_parameters(model).items()}


def row_sum_hessian(model: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int = 500) -> Salience:
    """Row sums of the Hessian, H 1: what code often computes where its text says diagonal.

    **Definition.** (H 1)_j = sum_k d^2 L / dw_j dw_k over all parameters k, by differentiating the sum of all first derivatives (Pearlmutter
    1994). It is the diagonal only if the Hessian is diagonal.

    Args:
        model: Any module that returns logits, in evaluation mode here; twice differentiable backwards.
        images: Inputs [n, ...].
        labels: Classes [n].
        batch_size: Images per pass.

    Returns:
        Dictionary name -> row sums in the parameter's shape, device and dtype.

    Raises:
        ValueError: As for :func:`snipnb.snip`.
    """
    ones = {name: torch.ones_like(p) for name, p in float_parameters(model).items()}
    return _hessian_times(model, images, labels, ones, batch_size)


def hutchinson_diagonal(
    model: nn.Module, images: Tensor, labels: Tensor, *, num_samples: int = 1, seed: int = 0, batch_size: int = 500
) -> Salience:
    """An unbiased estimate of the Hessian's diagonal: the mean of v * (H v) over random signs v.

    **Definition.** E[v_j (H v)_j] = H_jj for independent v of +-1 (Hutchinson 1989; Bekas, Kokiopoulou and Saad 2007); a sample's variance is the sum of the
    squares of the other entries of row j, so that few samples are far off where the Hessian is not nearly diagonal.

    Args:
        model: As for :func:`row_sum_hessian`.
        images: Likewise.
        labels: Likewise.
        num_samples: Vectors v, from 1; each costs a product with the Hessian.
        seed: Of the vectors; the global random state is neither used nor changed.
        batch_size: Likewise.

    Returns:
        Dictionary name -> estimates in the parameter's shape, device and dtype.

    Raises:
        ValueError: As for :func:`row_sum_hessian`, or if the number of samples is not an integer from 1.
    """
    if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"num_samples is {num_samples!r}; accepted are integers from 1")
    parameters, draw = float_parameters(model), torch.Generator().manual_seed(seed)
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for _ in range(num_samples):
        signs = {
            name: (torch.randint(2, p.shape, generator=draw) * 2 - 1).to(p.device, p.dtype)
            for name, p in parameters.items()
        }
        for name, product in _hessian_times(model, images, labels, signs, batch_size).items():
            total[name] += signs[name] * product / num_samples
    return total


# --- what is asked for ------------------------------------------------------------------------------------------------


def _check_order(order: object, accepted: str) -> None:
    if isinstance(order, bool) or not isinstance(order, int) or order < 1:
        raise ValueError(f"order is {order!r}; accepted are {accepted}")


def _covers(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int, method: str, order: int) -> bool:
    """Whether the closed form is to be taken; an error if nothing is. Order 0: that anyone covers it is enough."""
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; accepted are {', '.join(METHODS)}")
    tensors = float_parameters(model)
    check_examples(images, labels, batch_size)
    check_alike_and_precise(tensors, images)
    if method == "autodiff":
        return False
    try:
        layers_of(model)
    except ValueError as error:
        if method == "cumulants":
            raise
        count = sum(p.numel() for p in tensors.values())
        if order and count * len(images) > SMALL:
            raise ValueError(
                f"the closed form does not cover the model: {error}. Without it, {count:,} parameters are differentiated one by one over "
                f"{len(images):,} images: if you can wait, ask for it with method='autodiff', or give fewer images"
            ) from None
        return False
    steps_of(model, images.shape[1:])  # that every layer fits
    return True


@torch.no_grad()
def _closed(model: nn.Module, images: Tensor, labels: Tensor, rule: _Rule, batch_size: int) -> list[Salience]:
    """Means over the images of what a rule makes of the slopes, one dictionary for each order it gives."""
    tensors = float_parameters(model)
    first = next(iter(tensors.values()))
    network = _Network(model)
    x = images[:1].to(first.device)
    logits, sizes = network.forward(x)
    check_classes(logits, labels)
    limit = TEMPORARY["cuda" if first.is_cuda else "cpu"]
    columns = rule.columns(logits.shape[1])
    size = max(1, min(batch_size, IMAGES, limit // max(columns * kept.input.numel() for kept in sizes)))
    starts = range(0, len(images), size)
    totals = {
        name: torch.zeros(rule.orders, *p.shape, dtype=torch.float64, device=p.device) for name, p in tensors.items()
    }

    def work(start: int, scratch: Scratch) -> dict[str, Tensor]:
        some = slice(start, start + size)
        x, y = images[some].to(first.device), labels[some].to(first.device).long()
        return network.sums(x, y, rule, limit, scratch)

    with Crew(1 if first.is_cuda else torch.get_num_threads()) as crew:
        for sums in track(crew.map(work, starts), "slopes of the logits", total=len(starts)):
            for name, s in sums.items():
                totals[name] += s.view(totals[name].shape)
    return [
        {name: (total[i] / len(images)).to(first.dtype) for name, total in totals.items()} for i in range(rule.orders)
    ]


# --- the network, forwards and backwards ------------------------------------------------------------------------------


@dataclass
class _Kept:
    """What a layer keeps of a batch for the way back."""

    input: Tensor
    switches: Tensor | None = None  # where a ReLU is on
    places: Tensor | None = None  # which value of each window is the largest


class _Network:
    """A sequential network, and what reaches each of its layers from columns of the logits.

    Activations are PyTorch's, [images, channels, height, width] or [images, features]; what comes back has the columns as a second axis.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = layers_of(model)
        own = [i for i, (_, layer) in enumerate(self.layers) if any(True for _ in _module(layer).parameters())]
        self.first = own[0]  # what comes before has no parameters

    def forward(self, x: Tensor) -> tuple[Tensor, list[_Kept]]:
        """Logits [images, classes] and what each layer keeps."""
        everything = []
        for _, layer in self.layers:
            kept = _Kept(x)
            if isinstance(layer, nn.Conv2d):
                x = F.conv2d(x, layer.weight, layer.bias, layer.stride, padding_of(layer), layer.dilation)
            elif isinstance(layer, nn.Linear):
                x = F.linear(x, layer.weight, layer.bias)
            elif isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
                mean, deviation = running_statistics(layer)
                kept.input = (x - _wide(mean, x)) / _wide(deviation, x)
                x = kept.input
                if layer.affine:
                    x = x * _wide(layer.weight, x) + _wide(layer.bias, x)
            elif isinstance(layer, nn.ReLU):
                x = x.relu()
                kept.switches = x > 0
            elif isinstance(layer, nn.Flatten):
                x = x.flatten(1)
            elif not isinstance(layer, Pool):
                raise ValueError(f"{layer} is not covered")
            elif layer.kind == "max":
                x, kept.places = F.max_pool2d(x, layer.kernel, layer.stride, layer.padding, return_indices=True)
                if layer.relu:
                    x = x.relu_()
                    kept.switches = x > 0
            else:
                x = F.avg_pool2d(x, layer.kernel, layer.stride, layer.padding)
            everything.append(kept)
        if not bool(torch.isfinite(x).all()):
            raise ValueError(
                "the logits of some images are not finite; images and parameters with finite ones are needed"
            )
        return x, everything

    def sums(self, x: Tensor, labels: Tensor, rule: _Rule, limit: int, scratch: Scratch) -> dict[str, Tensor]:
        """Sums over a batch of images for every parameter, [orders, ...]."""
        logits, everything = self.forward(x)
        state, b = rule.start(logits, labels)  # [images, columns, classes]
        found: dict[str, Tensor] = {}
        for i in range(len(self.layers) - 1, self.first - 1, -1):
            (name, layer), kept = self.layers[i], everything[i]
            if isinstance(layer, nn.Linear):
                found[f"{name}.weight"] = rule.of_product(state, b, kept.input, f"{name}.weight")
                if layer.bias is not None:
                    found[f"{name}.bias"] = rule.of_slopes(state, b, f"{name}.bias")
            elif isinstance(layer, nn.Conv2d):
                found[f"{name}.weight"] = _of_patches(
                    layer, state, b, kept.input, rule, f"{name}.weight", limit, scratch
                )
                if layer.bias is not None:
                    found[f"{name}.bias"] = rule.of_slopes(state, b.flatten(3).sum(3), f"{name}.bias")
            elif isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)) and layer.affine:
                positions = tuple(range(3, b.dim()))
                for key, slopes in (("weight", b * kept.input[:, None]), ("bias", b)):
                    slopes = slopes.sum(positions) if positions else slopes
                    found[f"{name}.{key}"] = rule.of_slopes(state, slopes, f"{name}.{key}")
            if i > self.first:
                b = _back(layer, b, kept, scratch, i)
        return found


def _module(layer: nn.Module | Pool) -> nn.Module:
    return layer.module if isinstance(layer, Pool) else layer


def _wide(t: Tensor, like: Tensor) -> Tensor:
    """Values of channels [C] so that they fit [images, C, ...]."""
    return t.view(-1, *(1,) * (like.dim() - 2))


def _back(layer: nn.Module | Pool, b: Tensor, kept: _Kept, scratch: Scratch, place: int) -> Tensor:
    """From a layer's output to its input, [images, columns, ...]."""
    images, columns = b.shape[:2]
    shape = kept.input.shape[1:]
    if isinstance(layer, nn.Linear):
        return (b.flatten(0, 1) @ layer.weight).view(images, columns, -1)
    if isinstance(layer, nn.Conv2d):
        whole = (images * columns, *shape)
        options = (layer.stride, padding_of(layer), layer.dilation)
        return conv2d_input(whole, layer.weight, b.flatten(0, 1), *options).view(images, columns, *shape)
    if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
        _, deviation = running_statistics(layer)
        scale = 1 / deviation if layer.weight is None else layer.weight / deviation
        return b * _wide(scale, kept.input)
    if isinstance(layer, nn.Flatten):
        return b.view(images, columns, *shape)
    if kept.switches is not None:
        b = b * kept.switches[:, None]
    if isinstance(layer, nn.ReLU):
        return b
    if not isinstance(layer, Pool):
        raise ValueError(f"{layer} is not covered")
    if kept.places is not None:
        out = scratch.take(("pool", place), (images, columns, shape[0], shape[1] * shape[2]), b).zero_()
        places = kept.places.flatten(2)[:, None].expand(-1, columns, -1, -1)
        apart = all(s >= k for s, k in zip(layer.stride, layer.kernel, strict=True))
        (out.scatter_ if apart else out.scatter_add_)(3, places, b.flatten(3))
        return out.view(images, columns, *shape)
    like = kept.input[:1].expand(images * columns, *shape)
    window = (layer.kernel, layer.stride, layer.padding, False, True, None)
    return torch.ops.aten.avg_pool2d_backward(b.flatten(0, 1), like, *window).view(images, columns, *shape)


def _of_patches(
    layer: nn.Conv2d, state: _State, b: Tensor, x: Tensor, rule: _Rule, name: str, limit: int, scratch: Scratch
) -> Tensor:
    """Sums for a convolution's weights: the slopes are products of patches of the input with what comes back."""
    vertical, horizontal = padding_of(layer)
    x = F.pad(x, (horizontal, horizontal, vertical, vertical)) if vertical or horizontal else x.contiguous()
    images, inputs = x.shape[:2]
    columns, outputs, *size = b.shape[1:]
    s = x.stride()
    seen = x.as_strided(
        (images, inputs, *layer.kernel_size, *size),
        (
            *s[:2],
            *(a * d for a, d in zip(s[2:], layer.dilation, strict=True)),
            *(a * t for a, t in zip(s[2:], layer.stride, strict=True)),
        ),
    )
    taps, positions = math.prod(seen.shape[1:4]), math.prod(size)
    b = b.flatten(3)  # [images, columns, outputs, positions]
    several = max(1, limit // (columns * taps))  # outputs
    parts = []
    for first in range(0, outputs, several):
        few = b[:, :, first : first + several]
        total: list[Tensor] = []
        step = max(1, limit // max(taps * positions, columns * few.shape[2] * taps))
        for start in range(0, images, step):
            some = slice(start, start + step)
            patches = scratch.take(("patches",), seen[some].shape, x).copy_(seen[some]).view(-1, taps, positions)
            rows = few[some].flatten(1, 2)
            room = scratch.take(("slopes",), (*rows.shape[:2], taps), x)
            slopes = torch.bmm(rows, patches.transpose(1, 2), out=room).view(-1, columns, few.shape[2] * taps)
            total.append(rule.of_slopes(state.part(some), slopes, name, first * taps, spare=True))
        parts.append(reduce(torch.add, total))
    return torch.cat(parts, 1)


# --- what is made of the slopes ---------------------------------------------------------------------------------------


@dataclass
class _State:
    """What a rule knows of a batch of images."""

    p: Tensor  # [images, classes]
    log_p: Tensor
    labels: Tensor  # [images]

    def part(self, images: slice) -> _State:
        return _State(self.p[images], self.log_p[images], self.labels[images])


class _Rule:
    """Turns slopes of the logits along parameters into sums over images.

    Slopes are [images, columns, parameters], the columns being those of ``start``.
    """

    orders = 1

    def columns(self, classes: int) -> int:
        return classes

    def start(self, logits: Tensor, labels: Tensor) -> tuple[_State, Tensor]:
        """What is known of the images, and the columns at the logits [images, columns, classes]: slopes relative to the top class."""
        log_p = logits.log_softmax(1)
        identity = torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device)
        return _State(log_p.exp(), log_p, labels), identity - identity[logits.argmax(1)][:, None]

    def of_slopes(self, state: _State, slopes: Tensor, name: str, first: int = 0, *, spare: bool = False) -> Tensor:
        """Sums over images [orders, parameters] for the parameters of ``name`` from ``first`` on; ``spare``: may overwrite the slopes."""
        raise NotImplementedError

    def of_product(self, state: _State, b: Tensor, x: Tensor, name: str) -> Tensor:
        """Sums [orders, outputs, inputs] where the slopes are b [images, columns, outputs] times x [images, inputs]."""
        raise NotImplementedError


class _Variance(_Rule):
    """The second derivative, and the first before it where it is wanted.

    The covariance diag(p) - p p^T is S S^T with C - 1 columns: with q_j = sum_{c > j} p_c, column j holds
    sqrt(p_j q_j / (p_j + q_j)) at j, and -p_c / q_j times that at every c > j (Tanabe and Sagae 1992). Nothing cancels in it.
    """

    def __init__(self, *, gradient: bool) -> None:
        self.gradient, self.orders = gradient, 2 if gradient else 1

    def columns(self, classes: int) -> int:
        return classes - 1 + self.gradient

    def start(self, logits: Tensor, labels: Tensor) -> tuple[_State, Tensor]:
        log_p = logits.log_softmax(1)
        p = log_p.exp()
        rest = p.flip(1).cumsum(1).flip(1)  # p_j + q_j
        q, head = rest[:, 1:], p[:, :-1]
        tiny = torch.finfo(p.dtype).tiny
        scale = (head * (q / rest[:, :-1].clamp_min(tiny))).sqrt()
        below = torch.tril(torch.ones(p.shape[1], p.shape[1] - 1, dtype=p.dtype, device=p.device), -1).T
        b = torch.diag_embed(scale, dim1=1, dim2=2)
        b = F.pad(b, (0, 1)) - below * p[:, None] * (scale / q.clamp_min(tiny))[:, :, None]
        if self.gradient:
            b = torch.cat([b, (p - F.one_hot(labels, p.shape[1]))[:, None]], 1)
        return _State(p, log_p, labels), b

    def of_slopes(self, state: _State, slopes: Tensor, name: str, first: int = 0, *, spare: bool = False) -> Tensor:
        last = [slopes[:, -1].sum(0)] if self.gradient else []
        squares = slopes[:, : slopes.shape[1] - self.gradient]
        squares = squares.square_() if spare else squares.square()
        return torch.stack([*last, squares.sum((0, 1))])

    def of_product(self, state: _State, b: Tensor, x: Tensor, name: str) -> Tensor:
        squares = b[:, : b.shape[1] - self.gradient]
        second = squares.square().sum(1).T @ x.square()
        return torch.stack([b[:, -1].T @ x, second]) if self.gradient else second[None]


class _Cumulants(_Rule):
    """The first so many derivatives."""

    def __init__(self, orders: int) -> None:
        self.orders = orders

    def of_slopes(self, state: _State, slopes: Tensor, name: str, first: int = 0, *, spare: bool = False) -> Tensor:
        return torch.stack([kappa.sum(0) for kappa in _derivatives_of(state, slopes, self.orders)])

    def of_product(self, state: _State, b: Tensor, x: Tensor, name: str) -> Tensor:
        found, power = [], None
        for kappa in _derivatives_of(state, b, self.orders):
            power = x if power is None else power * x
            found.append(kappa.T @ power)
        return torch.stack(found)


class _Region(_Rule):
    """The loss change as if nothing switched, for parameters set to zero."""

    def __init__(self, parameters: Salience) -> None:
        self.values = {name: p.flatten() for name, p in parameters.items()}

    def of_slopes(self, state: _State, slopes: Tensor, name: str, first: int = 0, *, spare: bool = False) -> Tensor:
        values = self.values[name][first : first + slopes.shape[2]]
        dz = slopes.mul_(-values) if spare else slopes * -values
        return self._changes(state, dz).sum(0)[None]

    def _changes(self, state: _State, dz: Tensor) -> Tensor:
        """Loss changes [images, parameters] for changes of the logits [images, classes, parameters], which are overwritten."""
        return loss_changes(dz.permute(1, 2, 0), state.log_p.T, state.labels).T

    def of_product(self, state: _State, b: Tensor, x: Tensor, name: str) -> Tensor:
        """The series of cumulants where it converges quickly for all inputs of an output; else one by one."""
        w = self.values[name].view(b.shape[2], -1)
        spread = b.amax(1) - b.amin(1)  # [images, outputs]
        length = spread * w.abs().amax(1) * x.abs().amax(1, keepdim=True)
        short = length <= LONGEST
        total = torch.zeros_like(w, dtype=torch.float64)
        longest = float(torch.where(short, length, 0).max())
        if longest > 0:
            power, factor = x, -w
            within = b * short[:, None]
            for i, kappa in enumerate(_derivatives_of(state, within, _terms(longest, b.dtype)), 1):
                if i > 1:
                    power, factor = power * x, factor * (-w / i)
                total += (kappa.T @ power) * factor
        rows, units = (~short).nonzero(as_tuple=True)
        together = max(1, TEMPORARY["cuda" if x.is_cuda else "cpu"] // (b.shape[1] * x.shape[1]))
        for start in range(0, len(rows), together):
            n, u = (t[start : start + together] for t in (rows, units))
            dz = b[n, :, u][:, :, None] * (x[n] * -w[u])[:, None]  # [rows, classes, inputs]
            part = _State(state.p[n], state.log_p[n], state.labels[n])
            total.index_add_(0, u, self._changes(part, dz).double())
        return total[None]


def _terms(length: float, dtype: torch.dtype) -> int:
    """Terms of the series that reach the precision of the dtype, for a length of abs(w x) (max J - min J)."""
    return max(1, math.ceil(math.log(torch.finfo(dtype).eps / 8) / math.log(length / math.pi)))


def _derivatives_of(state: _State, slopes: Tensor, order: int) -> list[Tensor]:
    """Derivatives of the cross-entropy along parameters from slopes [images, classes, parameters] relative to the top class.

    **Definition.** By the recursion kappa_k = m_k - sum_{i=2..k-2} binomial(k-1, i-1) kappa_i m_{k-i} over the central moments m of the slopes; the
    first is their mean less the label's. The mean is that of the other classes, so a confident network's keeps its digits.

    Returns:
        Tensors [images, parameters], the first order first.
    """
    p = state.p[:, :, None]
    mean = (slopes * p).sum(1)
    own = slopes.gather(1, state.labels[:, None, None].expand(-1, 1, slopes.shape[2]))[:, 0]
    found, moments = [mean - own], [torch.ones_like(mean), torch.zeros_like(mean)]
    if order > 1:
        centred = slopes - mean[:, None]
        power = centred * p
    for k in range(2, order + 1):
        power = power * centred
        moments.append(power.sum(1))
        lower = [math.comb(k - 1, i - 1) * found[i - 1] * moments[k - i] for i in range(2, k - 1)]
        found.append(moments[k] - sum(lower) if lower else moments[k])
    return found


# --- any module -------------------------------------------------------------------------------------------------------


def _differentiated(model: nn.Module, images: Tensor, labels: Tensor, order: int, batch_size: int) -> list[Salience]:
    """Derivatives along each parameter by nested forward differentiation, several parameters at once."""
    snip(model, images[:1], labels[:1])  # an error where a parameter's effect cannot be followed
    check_examples(images, labels, batch_size)
    parameters = float_parameters(model)
    first = next(iter(parameters.values()))
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    size = min(batch_size, max(1, SMALL // (TOGETHER * 64)))
    batches = [(images[s].to(first.device), labels[s].to(first.device).long()) for s in _slices(len(images), size)]
    found = [
        {name: torch.zeros_like(p, dtype=torch.float64).flatten() for name, p in parameters.items()}
        for _ in range(order)
    ]
    jobs = [(name, some) for name, p in parameters.items() for some in _slices(p.numel(), TOGETHER)]
    with in_mode(model, "eval"), unchanged(model), torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.script", DeprecationWarning)  # PyTorch's own use of it
        for name, some in track(jobs, "derivatives, parameter by parameter", total=len(jobs)):
            w = parameters[name]
            directions = torch.eye(w.numel(), dtype=w.dtype, device=w.device)[some].view(-1, *w.shape)
            for x, y in batches:

                def along(direction: Tensor, name: str = name, w: Tensor = w, x: Tensor = x, y: Tensor = y):
                    def loss(t: Tensor) -> Tensor:
                        moved = {**parameters, **buffers, name: w + t * direction}
                        return F.cross_entropy(call_with(model, moved, x.clone()), y)

                    return _along(loss, w.new_zeros(()), order)

                try:
                    values = torch.func.vmap(along)(directions)
                except (RuntimeError, NotImplementedError) as error:
                    raise ValueError(
                        f"parameter {name!r} of the {type(model).__name__} cannot be differentiated {order} times by torch.func: {error}"
                    ) from error
                for i, value in enumerate(values):
                    found[i][name][some] += value.double() * len(x) / len(images)
    return [{name: d.view_as(parameters[name]).to(first.dtype) for name, d in one.items()} for one in found]


def _along(f: Callable[[Tensor], Tensor], at: Tensor, order: int) -> tuple[Tensor, ...]:
    """The first so many derivatives of a scalar function of a scalar."""

    def value(t: Tensor) -> tuple[Tensor, ...]:
        return (f(t),)

    values: Callable[[Tensor], tuple[Tensor, ...]] = value
    for _ in range(order):
        values = _one_more(values)
    return values(at)[1:]


def _one_more(values: Callable[[Tensor], tuple[Tensor, ...]]) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """From a function's value and derivatives to those and the next one."""

    def extended(t: Tensor) -> tuple[Tensor, ...]:
        known, tangents = torch.func.jvp(values, (t,), (torch.ones_like(t),))[:2]
        return (*known, tangents[-1])

    return extended


def _total(terms: Iterable[Tensor]) -> Tensor:
    return reduce(torch.add, terms)


def _slices(number: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, number, size)]


def _hessian_times(model: nn.Module, images: Tensor, labels: Tensor, vectors: Salience, batch_size: int) -> Salience:
    """The Hessian of the mean cross-entropy times a vector given by parameter."""
    snip(model, images[:1], labels[:1])  # an error where a parameter's effect cannot be followed
    check_examples(images, labels, batch_size)
    parameters = float_parameters(model)
    leaves = {name: p.clone().requires_grad_() for name, p in parameters.items()}
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    device = next(iter(parameters.values())).device
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in parameters.items()}
    with in_mode(model, "eval"), unchanged(model), torch.enable_grad():
        for batch in batch_starts(len(images), batch_size, "Hessian times a vector"):
            x, y = images[batch].to(device), labels[batch].to(device)
            outputs = call_with(model, {**leaves, **buffers}, x)
            if batch.start == 0:
                check_classes(outputs, labels)
            loss = F.cross_entropy(outputs, y.long(), reduction="sum")
            gradients = torch.autograd.grad(loss, list(leaves.values()), create_graph=True, materialize_grads=True)
            product = _total((g * vectors[name]).sum() for name, g in zip(leaves, gradients, strict=True))
            found = torch.autograd.grad(product, list(leaves.values()), materialize_grads=True)
            for name, h in zip(leaves, found, strict=True):
                total[name] += h
    return {name: (total[name] / len(images)).to(p.dtype) for name, p in parameters.items()}
