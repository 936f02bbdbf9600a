"""Other criteria for pruning before training, as functions for the registry in :mod:`snipnb.pruning.criteria`.

All rank every parameter, biases too, as SNIP does here; the published codes rank weights only. All use the network in evaluation mode
and all given images, where the published codes take some mini-batches. A salience is ranked by magnitude: the largest are kept.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, vmap

from snipnb._checks import Salience, batch_starts, call_with, float_parameters, in_mode
from snipnb.pruning.masks import Mask, keep_number, sizes_and_kept
from snipnb.pruning.paths import replaced
from snipnb.saliences.exact import exact_salience
from snipnb.saliences.taylor import diagonal_hessian, hessian_times

if TYPE_CHECKING:
    from snipnb.pruning.criteria import Start

BATCH = 500  # images at a time
EACH = 50  # images at a time where each has a gradient of its own
Score = Callable[["Start", Mask, int], Salience]


def _outputs(model: nn.Module, values: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The outputs at given values of the parameters; what a forward pass writes goes into copies of the buffers."""
    return call_with(model, {**{name: b.clone() for name, b in model.named_buffers()}, **values}, x)


def gradient(model: nn.Module, images: Tensor, labels: Tensor, values: Mapping[str, Tensor]) -> Salience:
    """The gradient of the mean cross-entropy at given values of the parameters."""
    leaves = {name: v.detach().clone().requires_grad_() for name, v in values.items()}
    total = {name: torch.zeros_like(v) for name, v in leaves.items()}
    with in_mode(model, "eval"), torch.enable_grad():
        for batch in batch_starts(len(images), BATCH, "gradient"):
            outputs = _outputs(model, leaves, images[batch])
            loss = F.cross_entropy(outputs, labels[batch].long(), reduction="sum") / len(images)
            found = torch.autograd.grad(loss, [*leaves.values()], materialize_grads=True)
            for name, g in zip(leaves, found, strict=True):
                total[name] += g
    return total


# --- one score ----------------------------------------------------------------------------------------------------------


def grasp(start: Start, *, temperature: float = 200.0) -> Salience:
    """GraSP: the predicted effect of removing a parameter on the squared norm of the gradient.

    **Definition.** t_j = -w_j (H g)_j, with g and H the gradient and the Hessian of the cross-entropy of logits / ``temperature``. The parameters
    with the *highest* t are removed. So the salience is max(t) - t, which is largest for the lowest t.

    **Source.** Wang, Zhang and Grosse (2020), Picking winning tickets before training by preserving gradient flow.
    """
    given = start.model, start.images, start.labels
    values = float_parameters(start.model)
    # The model itself has the hook, until the end of the block: a copy would not follow parameters that are held outside of it.
    with start.model.register_forward_hook(lambda module, inputs, outputs: outputs / temperature):
        product = hessian_times(*given, gradient(*given, values))
    signed = {name: -(w * product[name]).double() for name, w in values.items()}
    highest = max(float(s.max()) for s in signed.values())
    return {name: highest - s for name, s in signed.items()}


def prospr(
    start: Start, *, steps: int = 3, learning_rate: float = 0.5, momentum: float = 0.9, batch: int = 128
) -> Salience:
    """ProsPr: how the loss after a few steps of training depends on each connection.

    **Definition.** s_j = dL(w_n)/dc_j at c = 1, with w_0 = c * w and w_n the parameters after n ``steps`` of SGD with momentum, each on the next
    ``batch`` images. L is the mean loss over all images. With no steps this is SNIP.

    **Source.** Alizadeh et al. (2022), Prospect pruning: finding trainable weights at initialization using meta-gradients.
    """
    weights = float_parameters(start.model)
    c = {name: torch.ones_like(w, requires_grad=True) for name, w in weights.items()}
    with in_mode(start.model, "eval"), torch.enable_grad():
        values = {name: c[name] * w for name, w in weights.items()}
        velocity = {name: torch.zeros_like(w) for name, w in weights.items()}
        for step in range(steps):
            some = torch.arange(step * batch, (step + 1) * batch, device=start.labels.device) % len(start.labels)
            loss = F.cross_entropy(_outputs(start.model, values, start.images[some]), start.labels[some].long())
            found = torch.autograd.grad(loss, [*values.values()], create_graph=True, materialize_grads=True)
            velocity = {name: momentum * velocity[name] + g for name, g in zip(values, found, strict=True)}
            values = {name: v - learning_rate * velocity[name] for name, v in values.items()}
        last = gradient(start.model, start.images, start.labels, values)
        found = torch.autograd.grad([*values.values()], [*c.values()], [*last.values()], materialize_grads=True)
    return dict(zip(c, found, strict=True))


def squared_gradients(start: Start) -> Salience:
    """The diagonal of the empirical Fisher matrix: the mean over images of the squared gradient of each image's loss."""
    model, values = start.model, float_parameters(start.model)

    def loss(values: Mapping[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(_outputs(model, values, image[None]), label[None].long())

    of_each = vmap(grad(loss), (None, 0, 0))
    total = {name: torch.zeros_like(v) for name, v in values.items()}
    with in_mode(model, "eval"):
        for batch in batch_starts(len(start.images), EACH, "gradients of single images"):
            for name, g in of_each(values, start.images[batch], start.labels[batch]).items():
                total[name] += g.square().sum(0)
    return {name: t / len(start.images) for name, t in total.items()}


def fisher(start: Start) -> Salience:
    """w^2 F / 2, with F the diagonal of the empirical Fisher matrix: the loss change to second order, if the gradient is zero and F is the curvature.

    **Source.** Theis et al. (2018), Faster gaze prediction with dense networks and Fisher pruning.
    """
    squares = squared_gradients(start)
    return {name: w.square() * squares[name] / 2 for name, w in float_parameters(start.model).items()}


def optimal_brain_damage(start: Start) -> Salience:
    """w^2 h / 2, with h the diagonal of the Hessian: the loss change to second order, if the gradient is zero.

    **Source.** LeCun, Denker and Solla (1990), Optimal brain damage.
    """
    second = diagonal_hessian(start.model, start.images, start.labels)
    return {name: w.square() * second[name] / 2 for name, w in float_parameters(start.model).items()}


def fisher_taylor(start: Start, *, sign: int = -1) -> Salience:
    """Fisher-Taylor sensitivity: the loss change to second order, with the empirical Fisher matrix as the curvature.

    **Definition.** s = sign w g + w^2 F / 2. Setting w to zero is the step -w, so ``sign`` must be -1. The published code has +1, which is the
    loss change of the step from w to 2 w.

    **Source.** Gollini et al. (2025), arXiv 2502.11450, and its code.
    """
    values, squares = float_parameters(start.model), squared_gradients(start)
    slopes = gradient(start.model, start.images, start.labels, values)
    return {name: sign * w * slopes[name] + w.square() * squares[name] / 2 for name, w in values.items()}


# --- several rounds -----------------------------------------------------------------------------------------------------


def in_rounds(score: Score, rounds: int, *, may_return: bool = False) -> Callable[[Start, Salience, float], Mask]:
    """A rule that prunes in rounds and scores the pruned network before each one.

    **Definition.** After round j of n, m rho^(j / n) of m parameters are kept, rounded, with rho the share kept in the end.

    Args:
        score: Start, what is kept so far, and the number of the round (from 0) -> salience.
        rounds: Their number n.
        may_return: Whether a removed parameter may come back in a later round.
    """

    def mask(start: Start, salience: Salience, sparsity: float) -> Mask:
        sizes, wanted = sizes_and_kept(start.model, sparsity)
        total = sum(sizes.values())
        kept = {name: torch.ones_like(p, dtype=torch.bool) for name, p in float_parameters(start.model).items()}
        for j in range(rounds):
            number = round(total * (wanted / total) ** ((j + 1) / rounds))
            kept = keep_number(score(start, kept, j), number, among=None if may_return else kept)
        return kept

    return mask


def sensitivity_of_pruned(start: Start, kept: Mask, round_number: int) -> Salience:
    """dL(c * w)/dc at c = the mask: w times the gradient of the pruned network, also for what is removed.

    Without return of what is removed this is iterative SNIP, with return it is FORCE; with one round, both are SNIP.

    **Source.** de Jorge et al. (2021), Progressive skeletonization; Verdenius et al. (2020), Pruning via iterative ranking of sensitivity statistics.
    """
    weights = float_parameters(start.model)
    found = gradient(start.model, start.images, start.labels, {name: w * kept[name] for name, w in weights.items()})
    return {name: w * found[name] for name, w in weights.items()}


def exact_of_pruned(start: Start, kept: Mask, round_number: int) -> Salience:
    """The exact salience of the pruned network: what is removed in each round is what its loss needs least. One round is the exact salience."""
    model = copy.deepcopy(start.model)
    for name, p in model.named_parameters():
        p.data *= kept[name]
    places = {name: m.flatten().nonzero()[:, 0] for name, m in kept.items()}
    found = exact_salience(model, start.images, start.labels, parameters=places)
    return {name: found[name].new_zeros(m.shape).masked_scatter_(m, found[name]) for name, m in kept.items()}


def synaptic_flow(start: Start, kept: Mask, round_number: int) -> Salience:
    """SynFlow: how much of the flow through the network passes each parameter. Of the images, only the shape counts.

    **Definition.** s = abs(w) dR/d abs(w), with R the sum of the outputs (logits) of the network of absolute values for an image of ones, in float64.

    **Source.** Tanaka et al. (2020), Pruning neural networks without any data by iteratively conserving synaptic flow.

    Raises:
        ValueError: If the images are integers, such as the words of a text.
    """
    _check_not_integers(start)
    model = replaced(copy.deepcopy(start.model).double().eval(), {nn.LogSoftmax: nn.Identity})
    flow = {name: (p.detach() * kept[name]).abs().requires_grad_() for name, p in model.named_parameters()}
    ones = torch.ones_like(start.images[:1], dtype=torch.float64)
    with torch.enable_grad():
        found = torch.autograd.grad(_outputs(model, flow, ones).sum(), [*flow.values()], materialize_grads=True)
    return {name: v.detach() * g for (name, v), g in zip(flow.items(), found, strict=True)}


def neural_tangent(
    start: Start, kept: Mask, round_number: int, *, draws: int = 5, epsilon: float = 0.01, noise: int = 128
) -> Salience:
    """NTK-SAP: how the trace of the neural tangent kernel depends on each connection, for weights drawn anew. Of the images, only the shape counts.

    **Definition.** d/dc of the sum over x of norm(f(x; c w) - f(x; c (w + epsilon D)))^2 at c = the mask, averaged over ``draws`` of
    weights w, of D from N(0, 1), and of ``noise`` images x from N(0, 1); signed.

    **Source.** Wang et al. (2023), NTK-SAP: improving neural network pruning by aligning training dynamics.

    Raises:
        ValueError: If the images are integers, such as the words of a text.
    """
    _check_not_integers(start)
    device = start.images.device
    seeds = np.random.SeedSequence((start.seed, 3, round_number)).generate_state(draws + 1)
    draw = torch.Generator().manual_seed(int(seeds[0]))
    total = {name: torch.zeros_like(p) for name, p in float_parameters(start.model).items()}
    for model in start.drawn(map(int, seeds[1:])):
        weights = float_parameters(model)
        c = {name: kept[name].to(w.dtype).requires_grad_() for name, w in weights.items()}
        x = torch.randn(noise, *start.images.shape[1:], generator=draw, dtype=start.images.dtype).to(device)
        moved = {
            n: w + epsilon * torch.randn(w.shape, generator=draw, dtype=w.dtype).to(device) for n, w in weights.items()
        }
        with torch.enable_grad():
            outputs = [_outputs(model, {n: c[n] * v for n, v in values.items()}, x) for values in (weights, moved)]
            distance = (outputs[0] - outputs[1]).square().sum() / epsilon**2
            found = torch.autograd.grad(distance, [*c.values()], materialize_grads=True)
        for name, g in zip(c, found, strict=True):
            total[name] += g / draws
    return total


def _check_not_integers(start: Start) -> None:
    """Raise ValueError unless images can be replaced by ones or by noise."""
    if not start.images.is_floating_point():
        raise ValueError(
            "this criterion replaces the images by ones or by noise, so they must be floating-point; "
            f"got {start.images.dtype}"
        )
