"""Second and higher orders: derivatives of the loss along single parameters, without a higher-order Hessian.

As long as no ReLU or max-pooling switches, the logits of an image are affine in one parameter w, with slopes J_c. Along w the
cross-entropy is then the cumulant generating function of the slopes under the softmax p, minus a linear term:

    L(w + t) - L(w) = log sum_c p_c exp(t J_c) - t J_y = (kappa_1 - J_y) t + kappa_2 t^2 / 2 + kappa_3 t^3 / 6 + ...

So the k-th derivative is the k-th cumulant of J (minus J_y for k = 1), averaged over the images. kappa_2 is the variance, the
diagonal of the Hessian. One forward pass and one backward pass with several columns give everything:

- For the variance, the columns are a factor of the covariance diag(p) - p p^T, which has rank C - 1. Their squares add up.
- For higher orders, the columns are the slopes J_c themselves, relative to the slope of the most probable class.

A linear layer's slopes are B_c x, a column of what is propagated back times an input. So kappa_k(B x) = kappa_k(B) x^k, and the
sum over images is a matrix product. A convolution's slopes are computed image by image from the patches that it sees.

Models that are not such a sequence of layers are differentiated along one parameter after another.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from functools import partial, reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snipnb._checks import (
    Salience,
    batch_starts,
    call_with,
    check_alike_and_precise,
    check_choice,
    check_classes,
    check_examples,
    check_integer,
    flat_indices,
    float_parameters,
    in_mode,
    unchanged,
)
from snipnb._engine.curvature import IMAGES, Cumulants, LinearRegion, Rule, Variance, mean_over_images
from snipnb._engine.sequential import layers_of, shapes_of
from snipnb._progress import track
from snipnb.saliences.ablation import CANNOT_MAP, ordinary_attention, over_versions
from snipnb.saliences.brute_force import pick
from snipnb.saliences.snip import snip

Wanted = Mapping[str, Tensor] | None  # name -> flat indices; None: all parameters
METHODS = ("auto", "cumulants", "autodiff")
LINEAR_REGION = "linear-region"
SMALL = 2**22  # most (parameter, image) pairs that are differentiated one by one by default
TWICE = 500  # images at once where gradients are differentiated once more
TOGETHER = 64  # parameters differentiated at once
MAPPED = 100  # images at once, at most, where parameters are differentiated one by one
LARGEST = 2**24  # numbers in all directions along which is differentiated at once


def diagonal_hessian(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    parameters: Mapping[str, Tensor] | None = None,
    batch_size: int = IMAGES,
    method: str = "auto",
) -> Salience:
    """The exact diagonal of the Hessian of the mean cross-entropy.

    **Definition.** h_j = d^2 L / dw_j^2 with L over all of ``images``, evaluation mode. Where the logits are piecewise linear in w_j this is
    the variance of their slopes J under the softmax, averaged over images.

    **Source.** Write-up, section 3, for the second-order salience. **Departs from** it: the write-up says that the diagonal is nearly as
    quick as a gradient. The exact diagonal takes one backward pass with about one column per class, and costs more than a gradient. :func:`row_sum_hessian`
    is another quantity, and no cheaper.

    Args:
        model: For the closed form, ``nn.Sequential`` (nested ones too) of Conv2d, Linear, ReLU, MaxPool2d, AvgPool2d, Flatten,
            Dropout, Identity, BatchNorm1d and BatchNorm2d, ending in logits or LogSoftmax. Other modules that return logits are
            differentiated. float32 or float64, on any device.
        images: Inputs [n, ...], in the model's dtype, on any device.
        labels: Classes, integers [n] in [0, C).
        parameters: Name -> flat indices into the parameter tensor, as from :func:`snipnb.stratified_sample`; default all parameters.
            The closed form computes all in any case.
        batch_size: Most images at once; fewer are used where memory would not be bounded otherwise. It changes only rounding.
        method: ``"cumulants"``: the closed form; an error if it does not cover the model. ``"autodiff"``: ``torch.func``, two nested
            derivatives for every parameter. ``"auto"``: the closed form, or else ``torch.func`` if this takes only minutes.

    Returns:
        Dictionary name -> second derivatives in the parameter's shape, or, for ``parameters``, in the order of the given indices; on the
        model's device, in its dtype; never negative with the closed form.

    Raises:
        ValueError: If an option is unknown, images and labels do not fit, the model is in half or mixed precision, or no method
            covers it.

    Example:
        >>> import snipnb
        >>> images, labels = snipnb.load_mnist("test", sample=True)
        >>> snipnb.diagonal_hessian(snipnb.lenet5(), images[:100], labels[:100])["conv1.weight"].shape
        torch.Size([6, 1, 5, 5])
    """
    return _derivatives(model, images, labels, 2, Variance(gradient=False), parameters, batch_size, method)[-1]


def derivatives(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    order: int,
    parameters: Mapping[str, Tensor] | None = None,
    batch_size: int = IMAGES,
    method: str = "auto",
) -> list[Salience]:
    """The first to the ``order``-th derivative of the mean cross-entropy along every parameter.

    **Definition.** L^(i) = d^i L / dw_j^i, the other parameters as they are: the i-th cumulant of the slopes J of the logits under the
    softmax, minus J_y for i = 1, averaged over images.

    **Source.** Write-up, section 3. **Departs from** it: the write-up says that higher orders need higher-order Hessians. Along single
    parameters they need only the slopes.

    Args:
        model: As for :func:`diagonal_hessian`.
        images: Likewise.
        labels: Likewise.
        order: Number of derivatives, at least 1.
        parameters: Likewise.
        batch_size: Likewise.
        method: Likewise; ``"autodiff"`` nests ``order`` derivatives.

    Returns:
        List of dictionaries name -> derivatives, the first order first.

    Raises:
        ValueError: As for :func:`diagonal_hessian`, or if the order is not an integer of at least 1.
    """
    check_integer("order", order, 1)
    rule = Variance(gradient=True) if order <= 2 else Cumulants(order)
    return _derivatives(model, images, labels, order, rule, parameters, batch_size, method)[:order]


def taylor_salience(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    order: int | str = 2,
    parameters: Mapping[str, Tensor] | None = None,
    batch_size: int = IMAGES,
    method: str = "auto",
) -> Salience:
    """The loss change when a parameter is set to zero, predicted from the loss around the model as it is.

    **Definition.** Order k gives the Taylor polynomial sum_{i=1..k} (-w)^i L^(i) / i!, signed. So order 1 is minus
    :func:`snipnb.snip`, and order 2 is -(w L' - w^2 L'' / 2). ``"linear-region"`` gives the change as if no ReLU and no max-pooling
    switched: the mean over images of log sum_c p_c exp(-w J_c) + w J_y. It is defined everywhere, and is the limit of the orders where
    they converge (certainly for abs(w) (max J - min J) < pi). It misses only the switching that :func:`snipnb.exact_salience` includes.

    **Source.** Write-up, section 3. **Departs from** it: its printed second order, abs(L' - L'' w / 2), has lost a factor w (see
    :func:`printed_second_order`).

    Args:
        model: As for :func:`diagonal_hessian`; for ``"linear-region"`` only what the closed form covers.
        images: Likewise.
        labels: Likewise.
        order: An integer of at least 1, or ``"linear-region"``.
        parameters: Likewise.
        batch_size: Likewise.
        method: Likewise.

    Returns:
        Dictionary name -> signed salience in the parameter's shape, or, for ``parameters``, in the order of the given indices; on the model's
        device, in its dtype.

    Raises:
        ValueError: As for :func:`derivatives`, or if the closed form does not cover the model and the linear region is requested.

    Example:
        >>> import snipnb
        >>> images, labels = snipnb.load_mnist("test", sample=True)
        >>> snipnb.taylor_salience(snipnb.lenet5(), images[:100], labels[:100], order="linear-region")["conv1.bias"].shape
        torch.Size([6])
    """
    in_region = isinstance(order, str) and order == LINEAR_REGION
    if not in_region and (isinstance(order, bool) or not isinstance(order, int) or order < 1):
        raise ValueError(f"order must be an integer of at least 1 or {LINEAR_REGION!r}; got {order!r}")
    check_choice("method", method, METHODS)
    tensors = float_parameters(model)
    if in_region:
        if method == "autodiff":
            raise ValueError(f"order={LINEAR_REGION!r} has only a closed form; method must not be 'autodiff'")
        rule = LinearRegion(tensors)
        return _derivatives(model, images, labels, 0, rule, parameters, batch_size, "cumulants")[0]
    wanted = _wanted(tensors, parameters)
    if order == 1 and method == "auto":
        _covers(model, images, labels, batch_size, method, 0, wanted)
        first = snip(model, images, labels, batch_size=min(batch_size, 500))
        return {name: -s for name, s in _picked(first, wanted).items()}
    found = derivatives(
        model, images, labels, order=int(order), parameters=parameters, batch_size=batch_size, method=method
    )
    return {
        name: reduce(torch.add, ((-w) ** i / math.factorial(i) * d[name] for i, d in enumerate(found, 1)))
        for name, w in _picked(tensors, wanted).items()
    }


def printed_second_order(model: nn.Module, images: Tensor, labels: Tensor) -> Salience:
    """The second-order salience as the write-up prints it: L' - L'' w / 2, signed; kept to show that a factor is lost.

    **Definition.** With a = L'' / 2 and b = L' - 2 a w, the write-up's own steps give abs(a w^2 + b w) = abs(w L' - w^2 L'' / 2), the
    magnitude of :func:`taylor_salience` of order 2. **Source.** Write-up, section 3, its last formula.

    Args:
        model: As for :func:`diagonal_hessian`.
        images: Likewise.
        labels: Likewise.

    Returns:
        Dictionary name -> L' - L'' w / 2.

    Raises:
        ValueError: As for :func:`diagonal_hessian`.
    """
    first, second = derivatives(model, images, labels, order=2)
    return {name: first[name] - second[name] * w / 2 for name, w in float_parameters(model).items()}


def row_sum_hessian(model: nn.Module, images: Tensor, labels: Tensor) -> Salience:
    """Row sums of the Hessian, H 1: what code often computes where its text says diagonal.

    **Definition.** (H 1)_j = sum_k d^2 L / dw_j dw_k over all parameters k, by differentiating the sum of all first derivatives (Pearlmutter
    1994). It is the diagonal only if the Hessian is diagonal.

    Args:
        model: Any module that returns logits and can be differentiated backwards twice; used in evaluation mode.
        images: Inputs [n, ...].
        labels: Classes [n].

    Returns:
        Dictionary name -> row sums in the parameter's shape, device and dtype.

    Raises:
        ValueError: As for :func:`snipnb.snip`.
    """
    ones = {name: torch.ones_like(p) for name, p in float_parameters(model).items()}
    return hessian_times(model, images, labels, ones)


def hessian_times(model: nn.Module, images: Tensor, labels: Tensor, vectors: Salience) -> Salience:
    """The Hessian of the mean cross-entropy times a vector, which is given parameter by parameter.

    Args:
        model: As for :func:`row_sum_hessian`.
        images: Likewise.
        labels: Likewise.
        vectors: Name -> entries in the parameter's shape, for every parameter.

    Returns:
        Dictionary name -> product in the parameter's shape, device and dtype.

    Raises:
        ValueError: As for :func:`row_sum_hessian`.
    """
    snip(model, images[:1], labels[:1])  # an error where a parameter's effect cannot be followed
    check_examples(images, labels)
    parameters = float_parameters(model)
    leaves = {name: p.clone().requires_grad_() for name, p in parameters.items()}
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    device = next(iter(parameters.values())).device
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in parameters.items()}
    with in_mode(model, "eval"), unchanged(model), torch.enable_grad():
        for batch in batch_starts(len(images), TWICE, "Hessian times a vector"):
            x, y = images[batch].to(device), labels[batch].to(device)
            outputs = call_with(model, {**leaves, **buffers}, x)
            if batch.start == 0:
                check_classes(outputs, labels)
            loss = F.cross_entropy(outputs, y.long(), reduction="sum")
            gradients = torch.autograd.grad(loss, list(leaves.values()), create_graph=True, materialize_grads=True)
            products = ((g * vectors[name]).sum() for name, g in zip(leaves, gradients, strict=True))
            found = torch.autograd.grad(reduce(torch.add, products), list(leaves.values()), materialize_grads=True)
            for name, h in zip(leaves, found, strict=True):
                total[name] += h
    return {name: (total[name] / len(images)).to(p.dtype) for name, p in parameters.items()}


# --- what is asked for ------------------------------------------------------------------------------------------------


def _wanted(tensors: Salience, parameters: Wanted) -> Wanted:
    """The indices that are asked for, or None for all parameters."""
    return None if parameters is None else flat_indices(tensors, parameters)


def _picked(found: Salience, wanted: Wanted) -> Salience:
    return found if wanted is None else pick(found, wanted)


def _derivatives(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    order: int,
    rule: Rule,
    parameters: Wanted,
    batch_size: int,
    method: str,
) -> list[Salience]:
    """What the rule gives, where the closed form is used, else the derivatives up to ``order``."""
    wanted = _wanted(float_parameters(model), parameters)
    if not _covers(model, images, labels, batch_size, method, order, wanted):
        return _differentiated(model, images, labels, order, batch_size, wanted)
    return [_picked(d, wanted) for d in mean_over_images(model, images, labels, rule, batch_size)]


def _covers(
    model: nn.Module, images: Tensor, labels: Tensor, batch_size: int, method: str, order: int, wanted: Wanted
) -> bool:
    """Whether to use the closed form; an error if no method covers the model. With order 0, models outside the closed form are accepted whatever their size."""
    check_choice("method", method, METHODS)
    tensors = float_parameters(model)
    check_examples(images, labels, batch_size)
    check_alike_and_precise(tensors, images, integers=True)
    if method == "autodiff":
        return False
    try:
        layers = layers_of(model)
    except ValueError as error:
        if method == "cumulants":
            raise
        count = sum(p.numel() for p in tensors.values())
        if order and wanted is None and count * len(images) > SMALL:
            raise ValueError(
                f"the closed form does not cover the model: {error}. Without it, {count:,} parameters are differentiated one by one over "
                f"{len(images):,} images; give parameters=snipnb.stratified_sample(model, 50) or fewer images, or method='autodiff' if you can wait"
            ) from None
        return False
    check_alike_and_precise(tensors, images)
    shapes_of(layers, images.shape[1:])  # an error if a layer does not fit
    return True


# --- any module -------------------------------------------------------------------------------------------------------


def _differentiated(
    model: nn.Module, images: Tensor, labels: Tensor, order: int, batch_size: int, wanted: Wanted
) -> list[Salience]:
    """Derivatives along each parameter by nested differentiation, several parameters at once."""
    snip(model, images[:1], labels[:1])  # an error where a parameter's effect cannot be followed
    parameters = float_parameters(model)
    first = next(iter(parameters.values()))
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    size = min(batch_size, MAPPED)
    batches = [
        (x.to(first.device), y.to(first.device).long())
        for x, y in zip(images.split(size), labels.split(size), strict=True)
    ]
    indices = flat_indices(parameters, wanted)
    found = [
        {n: torch.zeros(len(i), dtype=torch.float64, device=first.device) for n, i in indices.items()}
        for _ in range(order)
    ]
    jobs = [
        (name, some)
        for name, index in indices.items()
        for some in torch.arange(len(index)).split(max(1, min(TOGETHER, LARGEST // parameters[name].numel())))
    ]

    def along(direction: Tensor, x: Tensor, *, name: str, y: Tensor) -> tuple[Tensor, ...]:
        def loss(t: Tensor) -> Tensor:
            moved = {**parameters, **buffers, name: parameters[name] + t * direction}
            return F.cross_entropy(call_with(model, moved, x.clone()), y)

        return _derivatives_at(first.new_zeros(()), loss, order)

    with in_mode(model, "eval"), unchanged(model), ordinary_attention(), torch.no_grad(), warnings.catch_warnings():
        check_classes(call_with(model, {**parameters, **buffers}, batches[0][0][:1]), labels)
        warnings.filterwarnings("ignore", ".*torch.jit.script", DeprecationWarning)  # PyTorch's own use of it
        warnings.filterwarnings("ignore", ".*performance drop", UserWarning)  # where vmap has no rule of its own
        for name, some in track(jobs, "derivatives, parameter by parameter", total=len(jobs)):
            w, index = parameters[name], indices[name][some].to(first.device)
            directions = w.new_zeros(len(index), w.numel())
            directions[torch.arange(len(index)), index] = 1
            for x, y in batches:
                try:
                    values = over_versions(partial(along, name=name, y=y), directions.view(-1, *w.shape), x)
                except CANNOT_MAP as error:
                    raise ValueError(
                        f"parameter {name!r} of the {type(model).__name__} cannot be differentiated {order} times by torch.func: {error}"
                    ) from error
                for i, value in enumerate(values):
                    found[i][name][some] += value.double() * len(x) / len(images)
    shapes = {name: p.shape if wanted is None else (-1,) for name, p in parameters.items()}
    return [{name: d.view(shapes[name]).to(first.dtype) for name, d in one.items()} for one in found]


def _derivatives_at(t: Tensor, f: Callable[[Tensor], Tensor], order: int) -> tuple[Tensor, ...]:
    """The derivatives of a scalar function of a scalar from the first up to ``order``.

    Backwards every time: PyTorch's forward derivative of a forward derivative is wrong for layer norms, without an error.
    """

    def with_lower(t: Tensor, order: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        if order == 0:
            return f(t), ()
        highest, (value, lower) = torch.func.grad_and_value(partial(with_lower, order=order - 1), has_aux=True)(t)
        return highest, (value, *lower)

    highest, (*lower, _) = with_lower(t, order)
    return (*reversed(lower), highest)
