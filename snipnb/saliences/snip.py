"""First-order saliences of all parameters at once, and the two that look at no gradient.

A salience is a dictionary keyed like ``model.named_parameters()``; each tensor has the parameter's shape, device and
dtype. Saliences are signed; masks rank them by magnitude. No function here changes the model or the random state.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from snipnb._progress import track

Salience = dict[str, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]  # (outputs, labels) of a batch -> mean loss, a scalar

AGGREGATES = ("dataset", "batch_magnitude")
MODES = ("eval", "train")


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
    needs; its code sums abs(gradient) over mini-batches, here the option ``aggregate="batch_magnitude"``, in which noise
    that would cancel over batches adds up.

    Args:
        model: Any module with floating-point parameters; its outputs for a batch must suit ``loss``.
        images: Inputs [n, ...], on any device; batches are moved to the model's.
        labels: Classes, integers [n] in [0, C); with a ``loss`` of your own, targets [n, ...] of any kind.
        batch_size: Images per forward and backward pass. With ``"dataset"`` it changes rounding only, as long as the
            network treats images independently (it does in evaluation mode).
        aggregate: ``"dataset"`` takes the gradient of the mean over all images. ``"batch_magnitude"`` returns
            abs(w_j) times the mean over batches of abs(dL_batch/dw_j), which depends on batch size and order.
        mode: ``"eval"`` or ``"train"``: how batch norm and dropout act. The model's own mode and running statistics are
            left as they are; dropout draws from the global random state, which is put back.
        loss: Mean loss of a batch; default cross-entropy on logits (or on log-probabilities, which gives the same).

    Returns:
        Dictionary name -> signed salience (non-negative for ``"batch_magnitude"``), each with its parameter's shape, device and
        dtype; float32 for half-precision parameters, in which small saliences would all become zero.

    Raises:
        ValueError: If the model has no parameters or one that is not floating point, images and labels differ in length
            or are empty, labels are not integers in range, dtypes do not match, an option is unknown, or a parameter reaches the
            loss around its module, so that its salience would come out wrong.

    Example:
        >>> import snipnb
        >>> images, labels = snipnb.load_mnist("test", sample=True)
        >>> salience = snipnb.snip(snipnb.lenet5(seed=0), images, labels)
        >>> salience["conv1.weight"].shape
        torch.Size([6, 1, 5, 5])
    """
    if aggregate not in AGGREGATES:
        raise ValueError(f"aggregate is {aggregate!r}; accepted are {', '.join(AGGREGATES)}")
    parameters = float_parameters(model)
    total = {name: torch.zeros_like(p, dtype=_accumulator(p)) for name, p in parameters.items()}
    check_examples(images, labels, batch_size)
    num_images, num_batches = len(images), 0
    for share, gradients in _batch_gradients(model, parameters, images, labels, batch_size, mode, loss):
        num_batches += 1
        for name, gradient in gradients.items():
            if aggregate == "dataset":
                total[name].add_(gradient, alpha=share / num_images)
            else:
                total[name].add_(gradient.abs())
    with torch.no_grad():
        if aggregate == "batch_magnitude":
            return {name: (p.abs() * (total[name] / num_batches)).to(_result(p)) for name, p in parameters.items()}
        return {name: (p * total[name]).to(_result(p)) for name, p in parameters.items()}


def magnitude_salience(model: nn.Module) -> Salience:
    """The parameters themselves: ranking by magnitude then keeps the largest weights. Copies; model untouched.

    Example:
        >>> import torch, snipnb
        >>> snipnb.magnitude_salience(torch.nn.Linear(1, 1, bias=False)).keys()
        dict_keys(['weight'])
    """
    return {name: parameter.clone() for name, parameter in float_parameters(model).items()}


def random_salience(model: nn.Module, *, seed: int = 0) -> Salience:
    """Uniform scores: a random order of all parameters, so that every mask of a given count is equally likely.

    **Definition.** The scores are a permutation of 1..m over the m parameters: no ties, so masks have the exact count.
    **Departs from** the write-up, whose random masks drew each parameter independently, so that the count varied.

    Args:
        model: Any module with floating-point parameters.
        seed: Draw of the order; the global random state is neither used nor changed.

    Returns:
        Dictionary name -> score, in the parameter's dtype if that can tell m integers apart, else in float64.

    Example:
        >>> import torch, snipnb
        >>> model = snipnb.lenet5()
        >>> one, other = (snipnb.random_salience(model, seed=3) for _ in range(2))
        >>> torch.equal(one["conv1.weight"], other["conv1.weight"])
        True
    """
    parameters = float_parameters(model)
    count = sum(p.numel() for p in parameters.values())
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed is {seed!r}; accepted are integers")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)) + 1
    salience, start = {}, 0
    for name, p in parameters.items():
        exact = count <= 2 / torch.finfo(p.dtype).eps
        scores = order[start : start + p.numel()].view(p.shape)
        salience[name] = scores.to(device=p.device, dtype=p.dtype if exact else torch.float64)
        start += p.numel()
    return salience


# --- shared with the other saliences ----------------------------------------------------------------------------------


def float_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Detached parameters by name; an error if there are none or one is not floating point."""
    parameters = dict(model.named_parameters())
    if not parameters:
        raise ValueError(f"the model ({type(model).__name__}) has no parameters; at least one is needed")
    for name, p in parameters.items():
        if nn.parameter.is_lazy(p):
            raise ValueError(f"parameter {name!r} has no shape yet; run the model once on a batch first")
        if not p.is_floating_point():
            raise ValueError(f"parameter {name!r} is {p.dtype}; accepted are floating-point parameters")
    return {name: p.detach() for name, p in parameters.items()}


def call_with(model: nn.Module, replaced: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """``model(inputs)`` with some parameters or buffers replaced for this call, also where one is used in several places.

    ``torch.func.functional_call`` finds shared tensors by itself, but then leaves a sub-module that stands in two places with
    the replacement inside. So every place is named here, each sub-module once.

    Args:
        replaced: Keyed like ``named_parameters()`` and ``named_buffers()``, which name a shared tensor once.
    """
    names = {id(t): name for name, t in itertools.chain(model.named_parameters(), model.named_buffers())}
    places = {}
    for prefix, module in model.named_modules():
        for slot, tensor in {**module._parameters, **module._buffers}.items():
            if tensor is not None and names[id(tensor)] in replaced:
                places[f"{prefix}.{slot}" if prefix else slot] = replaced[names[id(tensor)]]
    return functional_call(model, places, (inputs,), tie_weights=False)


def check_examples(images: Tensor, labels: Tensor, batch_size: int) -> None:
    """Raise ValueError unless images and labels are as many, not empty, and the batch size is a positive integer."""
    for name, given in (("images", images), ("labels", labels)):
        if not isinstance(given, Tensor) or given.dim() == 0:
            kind = type(given).__name__ if not isinstance(given, Tensor) else "tensor without dimensions"
            raise ValueError(f"{name} are a {kind}; tensors [n, ...] are needed")
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} images but {len(labels)} labels; as many of both are needed")
    if len(images) == 0:
        raise ValueError("the data set is empty: 0 images; at least one is needed")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r}; accepted are integers from 1")


def check_alike_and_precise(parameters: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """Raise ValueError unless parameters are float32 or float64, of one kind and device, and images are too; gives the first one."""
    first = next(iter(parameters.values()))
    for name, p in parameters.items():
        if p.dtype not in (torch.float32, torch.float64) or p.dtype != first.dtype or p.device != first.device:
            raise ValueError(
                f"parameter {name!r} is {p.dtype} on {p.device}; accepted are float32 or float64, all alike"
            )
    if images.dtype != first.dtype:
        raise ValueError(f"images are {images.dtype}, the model's parameters {first.dtype}; convert one of them")
    return first


def check_classes(outputs: Tensor, labels: Tensor) -> None:
    """Raise ValueError unless outputs are logits [n, C] and labels are integers [n] in [0, C)."""
    if not isinstance(outputs, Tensor):
        raise ValueError(f"the model's output is a {type(outputs).__name__}; give a loss of your own that takes it")
    if outputs.dim() != 2:
        raise ValueError(
            f"the model's output has shape {tuple(outputs.shape)}; cross-entropy takes logits [n, classes]"
        )
    if labels.dim() != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels are {labels.dtype} of shape {tuple(labels.shape)}; accepted are integers [n]")
    labels = labels.long()  # not every integer type has a minimum
    lowest, highest, classes = int(labels.min()), int(labels.max()), outputs.shape[1]
    if lowest < 0 or highest >= classes:
        raise ValueError(
            f"labels range from {lowest} to {highest}; the model's {classes} outputs accept 0 to {classes - 1}"
        )


@contextmanager
def in_mode(model: nn.Module, mode: str) -> Iterator[None]:
    """Put a model in ``"eval"`` or ``"train"`` mode, then every sub-module back as it was."""
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; accepted are {', '.join(MODES)}")
    before = [(module, module.training) for module in model.modules()]
    try:
        model.train(mode == "train")
        yield
    finally:
        for module, training in before:
            module.training = training


def batch_starts(number: int, batch_size: int, description: str) -> Iterator[slice]:
    """Slices that cover ``number`` examples, with progress."""
    starts = range(0, number, batch_size)
    for start in track(starts, description, total=len(starts)):
        yield slice(start, start + batch_size)


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Put back, afterwards, what a forward pass may leave in a model: buffers, tensors set by hooks, ``requires_grad``."""
    buffers = [(b, b.clone()) for b in model.buffers()]
    hooked = [(m, {k: v for k, v in m.__dict__.items() if isinstance(v, Tensor)}) for m in model.modules()]
    frozen = [(p, p.requires_grad) for p in model.parameters()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)
        for module, tensors in hooked:
            module.__dict__.update(tensors)
        for p, requires_grad in frozen:
            p.requires_grad_(requires_grad)


def _check_loss(loss: Tensor) -> None:
    if not isinstance(loss, Tensor) or loss.dim() != 0 or not loss.requires_grad:
        given = (
            f"a {type(loss).__name__}" if not isinstance(loss, Tensor) else f"{loss.dtype} of shape {tuple(loss.shape)}"
        )
        raise ValueError(
            f"the loss is {given}, or does not depend on the parameters; a differentiable scalar tensor is needed"
        )


def _result(parameter: Tensor) -> torch.dtype:
    """The parameter's dtype, but not half precision: products of small weights and gradients vanish there."""
    return parameter.dtype if parameter.dtype.itemsize >= 4 else torch.float32


def _accumulator(parameter: Tensor) -> torch.dtype:
    """Sums over batches are carried in float64, where the device has it."""
    return torch.float32 if parameter.device.type == "mps" else torch.float64


def _batch_gradients(
    model: nn.Module,
    parameters: dict[str, Tensor],
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    mode: str,
    loss: Loss | None,
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """For each batch its number of images and the gradient of its mean loss, by parameter name."""
    first = next(iter(parameters.values()))
    device = first.device
    if torch.is_inference_mode_enabled():
        raise ValueError("gradients cannot be taken inside torch.inference_mode(); call snip outside of it")
    if loss is None and images.is_floating_point() and images.dtype != first.dtype:
        raise ValueError(f"images are {images.dtype}, the model's parameters {first.dtype}; convert one of them")
    # Copies of parameters and buffers, so that a forward pass that writes into them leaves the model alone.
    leaves = {name: p.clone().requires_grad_() for name, p in parameters.items()}
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    originals = list(model.parameters())
    cuda = sorted({p.device.index for p in parameters.values() if p.device.type == "cuda"})
    with in_mode(model, mode), unchanged(model), torch.random.fork_rng(devices=cuda), torch.enable_grad():
        for p in originals:  # so that one that is used all the same shows in the gradient
            p.requires_grad_(True)
        for batch in batch_starts(len(images), batch_size, "gradient"):
            x, y = images[batch].to(device), labels[batch].to(device)
            outputs = call_with(model, {**leaves, **buffers}, x)
            if loss is None:
                if batch.start == 0:
                    check_classes(outputs, labels)
                mean_loss = nn.functional.cross_entropy(outputs, y.long())
            else:
                mean_loss = loss(outputs, y)
            _check_loss(mean_loss)
            gradients = torch.autograd.grad(mean_loss, [*leaves.values(), *originals], allow_unused=True)
            for name, around in zip(leaves, gradients[len(leaves) :], strict=True):
                if around is not None:
                    raise ValueError(
                        f"parameter {name!r} reaches the loss in a way that cannot be followed (held outside its module, "
                        "cached by a parametrization, or in the loss function itself); give a model and a loss without that"
                    )
            found = zip(leaves.items(), gradients, strict=False)
            yield len(x), {name: torch.zeros_like(leaf) if g is None else g for (name, leaf), g in found}
