"""First-order saliences of all parameters at once, and two saliences that need no gradient.

A salience is a dictionary keyed like ``model.named_parameters()``. Each tensor has the parameter's shape, device and
dtype. Saliences are signed, and masks rank them by magnitude. No function here changes the model or the random state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snipnb._checks import (
    Loss,
    Salience,
    batch_starts,
    call_with,
    check_alike_and_precise,
    check_choice,
    check_classes,
    check_examples,
    check_integer,
    float_parameters,
    in_mode,
    unchanged,
)
from snipnb._engine.ensembles import Stack, check_alike, stacked
from snipnb._engine.workers import Crew
from snipnb._progress import track

NETWORKS = 16  # networks in one job: fixed, so that results do not depend on the number of workers
IMAGES = {"cpu": 64, "cuda": 1000}

AGGREGATES = ("dataset", "batch_magnitude")


def snip(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    batch_size: int = 500,
    aggregate: str = "dataset",
    mode: str = "eval",
    loss: Loss | None = None,
) -> Salience:
    """SNIP salience of every parameter, from one gradient of the loss over all given images.

    **Definition.** s_j = dL(c * w)/dc_j at c = 1 = w_j dL/dw_j, with L the mean loss over all of ``images``. Signed.
    Ranking by abs(s_j) is the connection sensitivity of Lee, Ajanthan and Torr (2019).

    **Source.** Write-up, sections 1 and 3. **Departs from** it: the write-up omits the absolute value, which the ranking
    needs. Its code sums abs(gradient) over mini-batches. The option ``aggregate="batch_magnitude"`` takes their mean here, which
    ranks in the same way. With this option, noise that would cancel over batches adds up.

    Args:
        model: Any module with floating-point parameters; its outputs for a batch must suit ``loss``.
        images: Inputs [n, ...], on any device; batches are moved to the model's device.
        labels: Classes, integers [n] in [0, C); with a ``loss`` of your own, targets [n, ...] of any kind.
        batch_size: Images per forward and backward pass. With ``"dataset"`` it changes only rounding, as long as the
            network treats images independently (it does in evaluation mode).
        aggregate: ``"dataset"`` takes the gradient of the mean over all images. ``"batch_magnitude"`` returns
            abs(w_j) times the mean over batches of abs(dL_batch/dw_j), which depends on batch size and order.
        mode: ``"eval"`` or ``"train"``: how batch norm and dropout act. The model's own mode and running statistics are
            left as they are. Dropout draws from the global random state, which is restored afterwards.
        loss: Mean loss of a batch; default cross-entropy on logits (or on log-probabilities, which gives the same).

    Returns:
        Dictionary name -> signed salience (non-negative for ``"batch_magnitude"``), each with its parameter's shape, device and
        dtype; float32 for half-precision parameters, because small saliences would all become zero in half precision.

    Raises:
        ValueError: If the model has no parameters or one that is not floating point, images and labels differ in length
            or are empty, labels are not integers in range, dtypes do not match, an option is unknown, or a parameter reaches the
            loss without its module, so that its salience would be wrong.

    Example:
        >>> import snipnb
        >>> images, labels = snipnb.load_mnist("test", sample=True)
        >>> salience = snipnb.snip(snipnb.lenet5(seed=0), images, labels)
        >>> salience["conv1.weight"].shape
        torch.Size([6, 1, 5, 5])
    """
    check_choice("aggregate", aggregate, AGGREGATES)
    parameters = float_parameters(model)
    first = next(iter(parameters.values()))
    check_examples(images, labels, batch_size)
    if torch.is_inference_mode_enabled():
        raise ValueError("gradients cannot be taken inside torch.inference_mode(); call snip outside of it")
    if loss is None and images.is_floating_point() and images.dtype != first.dtype:
        raise ValueError(f"images are {images.dtype} and the model's parameters {first.dtype}; convert one of them")
    total = {name: torch.zeros_like(p, dtype=_accumulator(p)) for name, p in parameters.items()}
    # Copies of parameters and buffers, so that a forward pass that writes into them leaves the model alone.
    leaves = {name: p.clone().requires_grad_() for name, p in parameters.items()}
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    originals = list(model.parameters())
    cuda = sorted({p.device.index for p in parameters.values() if p.device.type == "cuda"})
    with in_mode(model, mode), unchanged(model), torch.random.fork_rng(devices=cuda), torch.enable_grad():
        for p in originals:  # so that an original that is used nevertheless shows in the gradient
            p.requires_grad_(True)
        for batch in batch_starts(len(images), batch_size, "gradient"):
            x, y = images[batch].to(first.device), labels[batch].to(first.device)
            outputs = call_with(model, {**leaves, **buffers}, x)
            if loss is None and batch.start == 0:
                check_classes(outputs, labels)
            mean_loss = F.cross_entropy(outputs, y.long()) if loss is None else loss(outputs, y)
            _check_loss(mean_loss)
            gradients = torch.autograd.grad(mean_loss, [*leaves.values(), *originals], allow_unused=True)
            for name, gradient, around in zip(leaves, gradients, gradients[len(leaves) :], strict=False):
                if around is not None:
                    raise ValueError(
                        f"parameter {name!r} reaches the loss in a way that cannot be followed (held outside its module, cached "
                        "by a parametrization, or in the loss function itself); it may reach the loss only through its module"
                    )
                if gradient is not None and aggregate == "dataset":
                    total[name].add_(gradient, alpha=len(x) / len(images))
                elif gradient is not None:
                    total[name].add_(gradient.abs())
    if aggregate == "dataset":
        return {name: (p * total[name]).to(_result(p)) for name, p in parameters.items()}
    batches = math.ceil(len(images) / batch_size)
    return {name: (p.abs() * (total[name] / batches)).to(_result(p)) for name, p in parameters.items()}


def magnitude_salience(model: nn.Module) -> Salience:
    """Copies of the parameters themselves: ranking by magnitude then keeps the largest weights.

    Example:
        >>> import torch, snipnb
        >>> snipnb.magnitude_salience(torch.nn.Linear(1, 1, bias=False)).keys()
        dict_keys(['weight'])
    """
    return {name: parameter.clone() for name, parameter in float_parameters(model).items()}


def random_salience(model: nn.Module, *, seed: int = 0) -> Salience:
    """Uniform scores: a random order of all parameters, so that every mask of a given count is equally likely.

    **Definition.** The scores are a permutation of 1..m over the m parameters: no ties, so masks have the exact count.
    **Departs from** the write-up's code, whose random masks drew each parameter independently, so that the count varied.

    Args:
        model: Any module with floating-point parameters.
        seed: Determines the order; the global random state is neither used nor changed.

    Returns:
        Dictionary name -> score, in the parameter's dtype if it can tell m integers apart, else in float64.

    Example:
        >>> import torch, snipnb
        >>> model = snipnb.lenet5()
        >>> one, other = (snipnb.random_salience(model, seed=3) for _ in range(2))
        >>> torch.equal(one["conv1.weight"], other["conv1.weight"])
        True
    """
    parameters = float_parameters(model)
    count = sum(p.numel() for p in parameters.values())
    check_integer("seed", seed)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)) + 1
    salience = {}
    for (name, p), scores in zip(
        parameters.items(), order.split([p.numel() for p in parameters.values()]), strict=True
    ):
        exact = count <= 2 / torch.finfo(p.dtype).eps
        salience[name] = scores.view(p.shape).to(device=p.device, dtype=p.dtype if exact else torch.float64)
    return salience


def _check_loss(loss: Tensor) -> None:
    if not isinstance(loss, Tensor) or loss.dim() != 0 or not loss.requires_grad:
        given = f"{loss.dtype} of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise ValueError(f"the loss must be a scalar tensor that depends on the parameters; got {given}")


def _result(parameter: Tensor) -> torch.dtype:
    """The parameter's dtype, but not half precision: products of small weights and gradients vanish there."""
    return parameter.dtype if parameter.dtype.itemsize >= 4 else torch.float32


def _accumulator(parameter: Tensor) -> torch.dtype:
    """The dtype of sums over batches: float64, where the device has it."""
    return torch.float32 if parameter.device.type == "mps" else torch.float64


def snip_together(models: Sequence[nn.Module], images: Tensor, labels: Tensor) -> list[Salience]:
    """:func:`snipnb.snip` for several networks over the same images, several times faster than one network at a time.

    **Definition.** As for :func:`snipnb.snip` with its default options: w_j dL/dw_j, signed, with L the mean cross-entropy over
    all images and the networks in evaluation mode. Gradients of 64 images (1,000 on a GPU) are summed in the parameters' dtype.
    These sums are added in float64. On a processor, up to as many workers as PyTorch has threads share the networks. The number
    of workers changes no result.

    Args:
        models: Networks (``nn.Sequential`` of the layers that :func:`snipnb.exact_salience` covers) that differ only in their
            values; not changed.
        images: Inputs [n, ...] in the models' dtype, on any device.
        labels: Classes, integers [n] in [0, C).

    Returns:
        One salience per model, in its dtype and on its device.

    Raises:
        ValueError: If there are no models, models are not covered or differ in more than values, or the examples do not fit.

    Example:
        >>> import snipnb
        >>> images, labels = snipnb.load_mnist("test", sample=True)
        >>> models = [snipnb.lenet5(seed=seed) for seed in range(3)]
        >>> saliences = snipnb.snip_together(models, images[:100], labels[:100])
        >>> len(saliences), saliences[0]["conv1.weight"].shape
        (3, torch.Size([6, 1, 5, 5]))
    """
    if not models:
        raise ValueError("no models are given; at least one is needed")
    for model in models:
        check_alike(model, models[0])
    check_examples(images, labels)
    device = check_alike_and_precise(float_parameters(models[0]), images).device
    size = IMAGES.get(device.type, IMAGES["cuda"])
    Stack(models[0])  # an error if the models are not covered, before anything is done
    images, labels = images.to(device), labels.to(device)

    jobs = [models[k : k + NETWORKS] for k in range(0, len(models), NETWORKS)]
    found: list[Salience] = []
    with Crew(1 if device.type != "cpu" else min(len(jobs), torch.get_num_threads())) as crew:
        parts = crew.map(lambda some, _: _some(some, images, labels, size), jobs)
        for part in track(parts, "saliences, networks", total=len(jobs)):
            found += part
    return found


@torch.enable_grad()
def _some(models: Sequence[nn.Module], images: Tensor, labels: Tensor, size: int) -> list[Salience]:
    stack = Stack(models[0])
    parameters = stacked([dict(m.named_parameters()) for m in models])
    buffers = stacked([dict(m.named_buffers()) for m in models])
    leaves = {name: p.clone().requires_grad_() for name, p in parameters.items()}
    sums = {name: torch.zeros_like(p, dtype=_accumulator(p)) for name, p in parameters.items()}
    for k, (x, y) in enumerate(zip(images.split(size), labels.split(size), strict=True)):
        logits = stack.logits(stack.inputs(x), leaves, buffers)
        if k == 0:
            check_classes(logits[0].T, labels)
        loss = F.cross_entropy(logits, y.long().expand(len(logits), -1), reduction="sum")
        gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        for name, gradient in zip(leaves, gradients, strict=True):
            sums[name] += gradient
    total = {name: (p * sums[name] / len(images)).to(p.dtype) for name, p in parameters.items()}
    return [{name: t[k].clone() for name, t in total.items()} for k in range(len(models))]
