"""What the benchmark compares the exact diagonal of the Hessian with: an estimate, an approximation, and BackPACK's diagonal."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from snipnb._checks import Salience
from snipnb._progress import note
from snipnb.saliences.taylor import hessian_times


@torch.no_grad()
def approximate_diagonal(model: nn.Sequential, images: Tensor, labels: Tensor, *, batch_size: int) -> Salience:
    """An approximate diagonal of the Hessian by one backward pass, as if the second derivatives of every layer's outputs were independent.

    **Definition.** The pass goes from the softmax's own second derivatives, p (1 - p), back through every layer. The second derivatives of a layer's
    inputs are the squared weights, transposed, times the second derivatives of its outputs. The second derivatives of its weights are the squared
    inputs times the second derivatives of its outputs. ReLU and pooling hand second derivatives on where they hand values on.
    Exact for the last linear layer. **Source.** Becker and LeCun (1988).

    Args:
        model: A network of convolutions, linear layers, ReLU, pooling and flatten.
        images: [n, ...].
        labels: [n]; the cross-entropy's second derivatives do not depend on them.
        batch_size: Images at once.

    Returns:
        Name -> tensor like the parameter.
    """
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for some in images.split(batch_size):
        values = [some]
        for layer in model:
            values.append(layer(values[-1]))
        p = values[-1].softmax(1)
        back = p * (1 - p)
        steps = list(zip(model.named_children(), pairwise(values), strict=True))
        for (name, layer), (x, y) in reversed(steps):
            if isinstance(layer, nn.Linear):
                total[f"{name}.weight"] += back.T @ x.square()
                total[f"{name}.bias"] += back.sum(0)
                back = back @ layer.weight.square()
            elif isinstance(layer, nn.Conv2d):
                wanted = [x is not some, True, True]
                options = (layer.stride, layer.padding, layer.dilation, False, [0, 0], layer.groups, wanted)
                operands = (back, x.square(), layer.weight.square(), [layer.out_channels])
                back, weight, bias = torch.ops.aten.convolution_backward(*operands, *options)
                total[f"{name}.weight"] += weight
                total[f"{name}.bias"] += bias
            elif isinstance(layer, nn.ReLU):
                back = back * (y > 0)
            else:
                back = torch.func.vjp(layer, x)[1](back)[0]
    return {name: t / len(labels) for name, t in total.items()}


def hutchinson_sample(model: nn.Module, images: Tensor, labels: Tensor, *, seed: int = 0) -> Salience:
    """An unbiased estimate of the Hessian's diagonal: v * (H v) for one vector v of random signs.

    E[v_j (H v)_j] = H_jj for independent v of +-1 (Hutchinson 1989; Bekas, Kokiopoulou and Saad 2007). Its variance is the sum of the
    squares of the other entries of row j, so a few samples are far off unless the Hessian is nearly diagonal.
    """
    draw = torch.Generator().manual_seed(seed)
    signs = {n: (torch.randint(2, p.shape, generator=draw) * 2 - 1).to(p) for n, p in model.named_parameters()}
    return {n: signs[n] * product for n, product in hessian_times(model, images, labels, signs).items()}


def backpack_diagonal(model: nn.Module) -> Callable[[Tensor, Tensor], object] | None:
    """BackPACK's exact diagonal of the same Hessian, or None if BackPACK is not installed (``make test`` installs it)."""
    try:
        import backpack
        from backpack.extensions import DiagGGNExact  # the Hessian's diagonal too here, and faster than DiagHessian
    except ImportError:
        note("BackPACK is not installed and is left out (make env-test installs it)")
        return None
    network = backpack.extend(copy.deepcopy(model))
    loss = backpack.extend(nn.CrossEntropyLoss(reduction="sum"))
    size = 100  # images at once, at which it is fastest

    def diagonal(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        total = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Full backward hook is firing")  # its hooks; images need no gradient
            for x, y in zip(images.split(size), labels.split(size), strict=True):
                network.zero_grad()
                with backpack.backpack(DiagGGNExact()):
                    loss(network(x), y).backward()
                for name, p in network.named_parameters():
                    total[name] += p.diag_ggn_exact
        return {name: t / len(labels) for name, t in total.items()}

    return diagonal
