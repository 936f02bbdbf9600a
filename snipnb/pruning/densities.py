"""How many parameters of each layer are kept, by rules that look at no image.

A density is the kept fraction of one parameter tensor. Densities are dictionaries keyed like ``model.named_parameters()``.
The rules are the closed form of :mod:`snipnb.pruning.closed_form`, Erdős–Rényi-kernel and uniform.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from snipnb._checks import check_integer, check_names, float_parameters
from snipnb.pruning.closed_form import FITTED, Constants, predicted_densities
from snipnb.pruning.masks import Mask, layer_table, sizes_and_kept, warn_of_collapse

Densities = dict[str, float]
Rule = Callable[[Any, float, str], Densities]  # model, sparsity, initialisation


def uniform_densities(model: nn.Module, sparsity: float) -> Densities:
    """The same density in every parameter tensor: number kept / number of parameters."""
    sizes, kept = sizes_and_kept(model, sparsity)
    return dict.fromkeys(sizes, kept / sum(sizes.values()))


def erdos_renyi_kernel_densities(model: nn.Module, sparsity: float) -> Densities:
    """Erdős–Rényi-kernel densities: large layers are thinned more than small ones.

    **Definition.** The density of a tensor is min(1, c r), with r = (sum of its dimensions) / (their product), and c such that
    the number kept is exact: what tensors capped at 1 leave over goes to the others.

    **Source.** Mocanu et al. (2018) for linear layers; Evci et al. (2020) with kernel sizes. In these papers biases stay whole
    and are not counted. Here biases are parameters like any other, as for SNIP: r = n / n = 1, the largest of all, so they are the
    first to be kept whole, and count.

    Raises:
        ValueError: If the sparsity is not a number in [0, 1).
    """
    sizes, kept = sizes_and_kept(model, sparsity)
    ratios = {name: sum(p.shape) / p.numel() if p.dim() else 1.0 for name, p in model.named_parameters()}
    return proportional_densities(sizes, ratios, kept)


def proportional_densities(sizes: Mapping[str, int], ratios: Mapping[str, float], num_kept: int) -> Densities:
    """Densities min(1, c r) with one factor c for all tensors, such that ``num_kept`` parameters are kept.

    Args:
        sizes: Name -> number of parameters.
        ratios: Name -> r, at least 0, above 0 for enough parameters.
        num_kept: From 0 to the number of all parameters.
    """
    whole: set[str] = set()
    while True:
        others = [name for name in sizes if name not in whole]
        room = num_kept - sum(sizes[name] for name in whole)
        factor = room / sum(ratios[name] * sizes[name] for name in others) if others else 0.0
        over = {name for name in others if factor * ratios[name] > 1}
        if not over:
            return {name: 1.0 if name in whole else factor * ratios[name] for name in sizes}
        whole |= over


def rules(*, constants: Constants = FITTED) -> dict[str, Rule]:
    """The rules for densities by name, each a function of model, sparsity and initialisation."""
    return {
        "closed_form": lambda model, sparsity, init: predicted_densities(
            model, sparsity, init=init, constants=constants
        ),
        "erdos_renyi_kernel": lambda model, sparsity, init: erdos_renyi_kernel_densities(model, sparsity),
        "uniform": lambda model, sparsity, init: uniform_densities(model, sparsity),
    }


def densities_of(mask: Mask) -> Densities:
    """The kept fraction of each tensor of a mask."""
    table = layer_table(mask)
    return dict(zip(table["layer"], (table["kept"] / table["parameters"]).tolist(), strict=True))


def mask_of_densities(model: nn.Module, densities: Densities, *, num_kept: int | None = None, seed: int = 0) -> Mask:
    """A random mask with given layer densities and an exact number kept.

    **Definition.** Each tensor keeps its density times its size, rounded down. The rest, up to ``num_kept``, goes one by one to
    the tensors with the largest remainders (of equal remainders, to the earlier tensor). All entries are equally likely to stay.

    With ``densities_of(mask)`` this shuffles a mask within its layers. For one seed, masks nest as densities rise.

    Args:
        model: Gives names, shapes and devices.
        densities: Name -> density in [0, 1] for every parameter.
        num_kept: Exact number kept; default what the densities add up to, rounded.
        seed: Determines the entries; the global random state is neither used nor changed.

    Returns:
        Name -> boolean tensor; True keeps.

    Raises:
        ValueError: If names differ, a density is not in [0, 1], or rounding cannot reach ``num_kept``.

    Warns:
        LayerCollapseWarning: If a weight tensor keeps nothing.
    """
    parameters = float_parameters(model)
    check_names("densities", densities, model)
    for name, density in densities.items():
        if not 0 <= density <= 1:
            raise ValueError(f"density of {name!r} must be a number in [0, 1]; got {density!r}")
    check_integer("seed", seed)
    counts = _rounded({name: densities[name] * p.numel() for name, p in parameters.items()}, num_kept)
    draw = torch.Generator().manual_seed(seed)
    mask = {}
    for name, p in parameters.items():
        kept = torch.zeros(p.numel(), dtype=torch.bool)
        kept[torch.randperm(p.numel(), generator=draw)[: counts[name]]] = True
        mask[name] = kept.view(p.shape).to(p.device)
    warn_of_collapse(mask)
    return mask


def _rounded(quotas: dict[str, float], total: int | None) -> dict[str, int]:
    """Integers that add up to the total, each the quota rounded down or up, by largest remainders."""
    counts = {name: math.floor(quota + 1e-9) for name, quota in quotas.items()}
    asked = round(sum(quotas.values())) if total is None else total
    remainders = {name: quotas[name] - count for name, count in counts.items()}
    up = [name for name in sorted(counts, key=lambda name: -remainders[name]) if remainders[name] > 1e-9]
    lowest = sum(counts.values())
    check_integer("num_kept", asked)
    if not lowest <= asked <= lowest + len(up):
        raise ValueError(
            f"num_kept must be from {lowest} to {lowest + len(up)}, the densities rounded down or up; got {asked}"
        )
    for name in up[: asked - lowest]:
        counts[name] += 1
    return counts
