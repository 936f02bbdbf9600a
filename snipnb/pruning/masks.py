"""From a salience and a sparsity to a mask, tables of what a mask keeps, and the bridge to ``torch.nn.utils.prune``.

A mask is a dictionary of boolean tensors, keyed like ``model.named_parameters()``; True keeps.
"""

from __future__ import annotations

import math
import warnings
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from snipnb._checks import Salience, check_choice, check_integer, check_tensors, float_parameters

Mask = dict[str, Tensor]
TIES = ("remove", "stable")


class LayerCollapseWarning(UserWarning):
    """A mask removes every entry of a weight tensor: nothing passes through that layer any more."""


def num_removed(count: int, sparsity: float) -> int:
    """floor(sparsity * count), with the sparsity taken as the decimal fraction it is written as.

    0.29 of 100 is 29, although the nearest binary number to 0.29 is a little less. Accepts anything that prints as a
    number in [0, 1): float, NumPy scalar, ``Decimal``, ``Fraction``.

    Raises:
        ValueError: If the sparsity is not a number in [0, 1).

    Example:
        >>> import snipnb
        >>> snipnb.num_removed(61_706, 0.95), snipnb.num_removed(100, 0.29)
        (58620, 29)
    """
    is_number = isinstance(sparsity, (int, float, np.number, Decimal, Fraction)) and not isinstance(sparsity, bool)
    try:
        fraction = Fraction(str(sparsity)) if is_number else None
    except ValueError:  # nan, infinite or complex
        fraction = None
    if fraction is None or not 0 <= fraction < 1:
        raise ValueError(f"sparsity must be a number in [0, 1), the fraction of parameters removed; got {sparsity!r}")
    return math.floor(fraction * count)


def sizes_and_kept(model: nn.Module, sparsity: float) -> tuple[dict[str, int], int]:
    """Numbers of parameters by tensor, and how many of them all a sparsity keeps."""
    sizes = {name: p.numel() for name, p in float_parameters(model).items()}
    total = sum(sizes.values())
    return sizes, total - num_removed(total, sparsity)


def keep_mask(salience: Salience, sparsity: float, *, ties: str = "remove") -> Mask:
    """The mask that removes the given fraction of all parameters, those with the smallest salience magnitude, in one shot.

    **Definition.** With m parameters in all and r = floor(sparsity * m), every parameter whose magnitude is at most the
    r-th smallest is removed; r = 0 removes none. Parameters of all tensors are ranked together.

    **Source.** Write-up, section 2, step 2: "set to 0 all the parameters w_j for which the salience" is at most the
    kappa-th. **Departs from** it in words only: kappa there is both a sparsity level and a rank; the rank is r.

    Args:
        salience: Name -> signed salience; ranked by magnitude.
        sparsity: Fraction removed, in [0, 1).
        ties: ``"remove"``: all parameters tied at the threshold are removed, which may be more than r (the write-up's rule).
            ``"stable"``: exactly r are removed; among ties, the parameter that comes earlier in the model stays.

    Returns:
        Dictionary name -> boolean tensor; True keeps. Masks nest: what a sparsity removes, every higher sparsity removes.

    Raises:
        ValueError: If the sparsity is not a number in [0, 1), the salience is empty or not finite, or ``ties`` is unknown.

    Warns:
        LayerCollapseWarning: If a weight tensor keeps nothing.

    Example:
        >>> import torch, snipnb
        >>> snipnb.keep_mask({"w": torch.tensor([0.1, -0.4, 0.2, 0.3])}, 0.5)
        {'w': tensor([False,  True, False,  True])}
    """
    check_choice("ties", ties, TIES)
    magnitudes = _flat_magnitudes(salience)
    removed = num_removed(magnitudes.numel(), sparsity)
    if ties == "stable" or removed == 0:
        kept = _largest(magnitudes, magnitudes.numel() - removed)
    else:
        kept = magnitudes > magnitudes.kthvalue(removed).values
    mask = _in_shape(kept, salience)
    warn_of_collapse(mask)
    return mask


def keep_number(salience: Salience, number: int, *, among: Mask | None = None) -> Mask:
    """The mask that keeps so many parameters, those with the largest salience magnitude; among equals, the earlier one in the model.

    Args:
        salience: Name -> signed salience.
        number: How many are kept.
        among: Only parameters that this mask keeps are kept; default: any.

    Raises:
        ValueError: If the salience is empty or not finite, or there are fewer parameters.

    Example:
        >>> import torch, snipnb
        >>> from snipnb.pruning.masks import keep_number
        >>> keep_number({"w": torch.tensor([0.1, -0.4, 0.2, 0.3])}, 1)
        {'w': tensor([False,  True, False, False])}
    """
    magnitudes = _flat_magnitudes(salience)
    if among is not None:
        allowed = torch.cat([among[name].flatten().to(magnitudes.device) for name in salience])
        magnitudes = magnitudes.masked_fill(~allowed, -1)
    check_integer("number", number, 0, 1 + int((magnitudes >= 0).sum()))
    return _in_shape(_largest(magnitudes, number), salience)


def _largest(magnitudes: Tensor, number: int) -> Tensor:
    """Which are the so many largest; among equals, the earlier ones."""
    if number == 0:
        return torch.zeros_like(magnitudes, dtype=torch.bool)
    smallest_kept = magnitudes.kthvalue(magnitudes.numel() - number + 1).values
    above, ties = magnitudes > smallest_kept, magnitudes == smallest_kept
    return above | (ties & (ties.cumsum(0) <= number - above.sum()))


def _in_shape(kept: Tensor, salience: Salience) -> Mask:
    """All decisions in one vector -> a mask."""
    parts = kept.split([s.numel() for s in salience.values()])
    return {name: part.view(s.shape).to(s.device) for (name, s), part in zip(salience.items(), parts, strict=True)}


def standardise(salience: Salience) -> Salience:
    """Saliences as percentages: 100 abs(s_j) / sum of abs(s), as the write-up suggests (section 1). The ranking stays the same.

    Raises:
        ValueError: If the salience is empty, not finite, or zero everywhere.

    Example:
        >>> import torch, snipnb
        >>> snipnb.standardise({"w": torch.tensor([1.0, -4.0, 3.0])})
        {'w': tensor([12.5000, 50.0000, 37.5000], dtype=torch.float64)}
    """
    largest = _flat_magnitudes(salience).max().double()
    if largest == 0:
        raise ValueError("every salience is zero; percentages need at least one nonzero salience")
    scaled = {name: s.detach().abs().double() / largest.to(s.device) for name, s in salience.items()}  # cannot overflow
    total = float(sum(s.sum().cpu() for s in scaled.values()))
    return {name: 100 * s / total for name, s in scaled.items()}


def num_kept(mask: Mask) -> int:
    """How many parameters a mask keeps.

    Example:
        >>> import torch, snipnb
        >>> snipnb.num_kept({"w": torch.tensor([True, False, True])})
        2
    """
    return sum(int(m.sum()) for m in mask.values())


def collapsed_layers(mask: Mask) -> list[str]:
    """Names of the weight tensors of which nothing is kept. Biases may vanish without cutting the network.

    Example:
        >>> import torch, snipnb
        >>> snipnb.collapsed_layers({"a.weight": torch.zeros(2, 2, dtype=torch.bool), "a.bias": torch.zeros(2, dtype=torch.bool)})
        ['a.weight']
    """
    weights = {name: m for name, m in mask.items() if m.dim() >= 2 or name.rpartition(".")[2] == "weight"}
    return [name for name, m in weights.items() if m.numel() and not bool(m.any())]


def warn_of_collapse(mask: Mask) -> None:
    """Warn the caller of the function that made a mask if a weight tensor keeps nothing."""
    if collapsed := collapsed_layers(mask):
        kept, left = num_kept(mask), ", ".join(collapsed)
        message = f"with {kept:,} parameters kept, nothing is left of {left}: the network is cut there"
        warnings.warn(message, LayerCollapseWarning, stacklevel=3)


def layer_table(mask: Mask) -> pd.DataFrame:
    """What a mask keeps, layer by layer.

    Returns:
        Tidy frame with one row per parameter tensor: ``layer``, ``parameters``, ``kept``, ``removed_percent``.

    Example:
        >>> import snipnb
        >>> mask = snipnb.keep_mask(snipnb.random_salience(snipnb.lenet5()), 0.9)
        >>> table = snipnb.layer_table(mask)
        >>> list(table), int(table["kept"].sum())
        (['layer', 'parameters', 'kept', 'removed_percent'], 6171)
    """
    _check_mask(mask)
    table = pd.DataFrame({"layer": name, "parameters": m.numel(), "kept": int(m.sum())} for name, m in mask.items())
    table["removed_percent"] = 100 * (1 - table["kept"] / table["parameters"])
    return table


def apply_mask(model: nn.Module, mask: Mask) -> nn.Module:
    """Prune a model in place through ``torch.nn.utils.prune.custom_from_mask``, parameter by parameter.

    Afterwards each parameter ``p`` is the product of ``p_orig`` and the buffer ``p_mask``, so pruned entries are exactly
    zero in every forward pass, whatever the optimiser does. ``torch.nn.utils.prune.remove`` makes it permanent.

    Args:
        model: The network to prune; changed.
        mask: Name -> boolean tensor for **every** parameter of the model; True keeps.

    Returns:
        The same model.

    Raises:
        ValueError: If names or shapes of the mask and the model differ, entries are not boolean, or a parameter is tied: it
            belongs to several modules, and ``torch.nn.utils.prune`` cannot mask it. The model is then unchanged.

    Example:
        >>> import snipnb
        >>> model = snipnb.lenet5()
        >>> pruned = snipnb.apply_mask(model, snipnb.keep_mask(snipnb.magnitude_salience(model), 0.5))
        >>> pruned is model, int((model.full1.weight == 0).sum()) > 0
        (True, True)
    """
    check_mask_fits(model, mask)
    _check_places(model)
    modules = dict(model.named_modules())
    for name, m in mask.items():
        module, _, parameter = name.rpartition(".")
        target = getattr(modules[module], parameter)
        prune.custom_from_mask(modules[module], parameter, m.to(device=target.device, dtype=target.dtype))
    return model


def check_mask_fits(model: nn.Module, mask: Mask) -> None:
    """Raise ValueError unless the mask has exactly the model's parameters, in their shapes."""
    _check_mask(mask)
    check_tensors("mask", mask, model)


def _check_places(model: nn.Module) -> None:
    """Raise ValueError unless torch.nn.utils.prune can mask every parameter: each has one place, and the names it needs are free."""
    places: dict[int, str] = {}
    for prefix, module in model.named_modules():
        for slot, p in module._parameters.items():
            if p is None:
                continue
            name = f"{prefix}.{slot}" if prefix else slot
            if id(p) in places:
                raise ValueError(
                    f"{places[id(p)]!r} and {name!r} are one tied parameter; untie them to prune the model"
                )
            places[id(p)] = name
            if taken := [s for s in (f"{slot}_orig", f"{slot}_mask") if hasattr(module, s)]:
                raise ValueError(f"{name!r} cannot be pruned: its module already has an attribute {taken[0]!r}")


def _flat_magnitudes(salience: Salience) -> Tensor:
    """All magnitudes in one vector, in the order of the dictionary; an error for an empty or non-finite salience."""
    for name, s in salience.items():
        if not isinstance(s, Tensor):
            raise ValueError(f"salience of {name!r} must be a tensor; got a {type(s).__name__}")
        if not s.is_floating_point():
            raise ValueError(f"salience of {name!r} must be floating-point; got {s.dtype}")
    if sum(s.numel() for s in salience.values()) == 0:
        raise ValueError("the salience is empty; it needs at least one parameter")
    device = next(iter(salience.values())).device
    magnitudes = torch.cat([s.detach().abs().flatten().to(device) for s in salience.values()])
    if not torch.isfinite(magnitudes).all():
        bad = {name: int((~torch.isfinite(s)).sum()) for name, s in salience.items()}
        name, number = next((name, number) for name, number in bad.items() if number)
        raise ValueError(f"salience of {name!r} must be finite; {number} of {salience[name].numel()} entries are not")
    return magnitudes


def _check_mask(mask: Mask) -> None:
    if not mask:
        raise ValueError("the mask is empty; it needs at least one parameter")
    for name, m in mask.items():
        kind = m.dtype if isinstance(m, Tensor) else type(m).__name__
        if kind != torch.bool:
            raise ValueError(f"mask of {name!r} must be a tensor of torch.bool (True keeps); got {kind}")
