"""Numerical checks of what SNIP is: each function runs one comparison and returns a tidy frame."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from snipnb._checks import Loss, Salience
from snipnb.pruning.masks import keep_mask, standardise
from snipnb.publish.published import published_label
from snipnb.publish.stats import largest_relative_difference, overlap
from snipnb.saliences import brute_force
from snipnb.saliences.snip import magnitude_salience, snip
from snipnb.studies.shared import RANKINGS


def compare_indicators(model: nn.Module, images: Tensor, labels: Tensor) -> pd.DataFrame:
    """dL/dc by automatic differentiation of explicit indicators, compared with w dL/dw, in float64, for every parameter.

    Returns:
        One row per parameter tensor: ``layer``, ``label``, ``parameters``, ``largest_salience`` (magnitude),
        ``relative_difference`` (largest over entries), ``negative_percent`` (share of saliences below zero).
    """
    fast = snip(_double(model), images.double(), labels)
    slow = brute_force.indicator_salience(model, images, labels)
    return pd.DataFrame(
        {
            "layer": name,
            "label": published_label(name),
            "parameters": s.numel(),
            "largest_salience": float(s.abs().max()),
            "relative_difference": largest_relative_difference(s.numpy(), slow[name].numpy()),
            "negative_percent": 100 * float((s < 0).double().mean()),
        }
        for name, s in fast.items()
    )


def step_errors(
    model: nn.Module, images: Tensor, labels: Tensor, *, per_tensor: int, steps: Sequence[float]
) -> pd.DataFrame:
    """Central differences of the loss along c, compared with SNIP, on a stratified sample of every parameter tensor.

    Returns:
        One row per step and sampled parameter: ``step``, ``layer``, ``index``, ``salience``, ``finite_difference``, ``error``
        (absolute difference over the largest salience of the whole network).
    """
    fast = snip(_double(model), images.double(), labels)
    sample = brute_force.stratified_sample(model, per_tensor)
    largest = max(float(s.abs().max()) for s in fast.values())
    frames = []
    for step in steps:
        slow = brute_force.finite_difference_salience(model, images, labels, sample, step=step)
        frame = _sampled({"salience": brute_force.pick(fast, sample), "finite_difference": slow}, sample)
        frame["error"] = (frame["salience"] - frame["finite_difference"]).abs() / largest
        frames.append(frame.assign(step=step))
    return pd.concat(frames, ignore_index=True)


def step_table(errors: pd.DataFrame) -> pd.DataFrame:
    """Median and largest error by layer and, in the last row, over all layers, with one pair of columns per step."""
    both = pd.concat([errors, errors.assign(layer="all")])
    table = both.pivot_table("error", "layer", "step", aggfunc=["median", "max"], sort=False)
    table.columns = [f"{kind} at {step:g}" for kind, step in table.columns]
    return table.reset_index()


def order_table(orders: pd.DataFrame, sampled: pd.DataFrame) -> pd.DataFrame:
    """Observed orders by layer: how many parameters were sampled, how many have a remainder above rounding, quartiles.

    Args:
        orders: As from :func:`remainder_orders`.
        sampled: Any frame with one row per sampled parameter and a column ``layer``.
    """
    rows = []
    for layer in [*dict.fromkeys(sampled["layer"]), "all"]:
        drawn, own = (frame[(frame["layer"] == layer) | (layer == "all")] for frame in (sampled, orders))
        rows.append((layer, len(drawn), len(own), *own["order"].quantile([0.25, 0.5, 0.75])))
    return pd.DataFrame(rows, columns=["layer", "sampled", "usable", "q25", "median", "q75"])


def exact_counts(cases: pd.DataFrame, *, bound: float) -> pd.DataFrame:
    """For how many sampled parameters of each case SNIP is exact, and how many of these belong to the last layer.

    Args:
        cases: As from :func:`linear_cases`.
        bound: Error up to which SNIP counts as exact.
    """
    last = cases["layer"].str.split(".").str[0] == cases["layer"].iloc[-1].split(".")[0]
    exact = cases["error"] <= bound
    facts = {"exact": exact, "exact, last layer": exact & last, "loss unchanged": exact & (cases["exact"] == 0)}
    frame = pd.DataFrame({"case": cases["case"].str.replace("\n", " "), "sampled": 1, **facts})
    return frame.groupby("case", sort=False).sum().astype(int).reset_index()


def loss_paths(
    model: nn.Module, images: Tensor, labels: Tensor, *, per_tensor: int, factors: Sequence[float]
) -> pd.DataFrame:
    """The loss along single weights, for a typical and for the worst sampled weight of each weight tensor.

    ``per_tensor`` weights of each weight tensor are drawn from the half with the larger SNIP salience. The error of a weight
    is the difference between SNIP and the exact salience, relative to the larger of the two. The "typical" weight has the
    median error, the "worst" weight the largest error.

    Returns:
        One row per panel and factor: ``layer``, ``kind``, ``c``, ``change`` (L(c w_j) - L(w_j)), ``tangent`` (SNIP's
        line), ``index``, ``error`` (relative).
    """
    fast = snip(_double(model), images.double(), labels)
    draw = torch.Generator().manual_seed(0)
    sample: dict[str, Tensor] = {}
    for name, s in fast.items():
        if s.dim() > 1:
            pool = s.flatten().abs().argsort(descending=True)[: max(1, s.numel() // 2)]
            sample[name] = pool[torch.randperm(len(pool), generator=draw)[:per_tensor]].sort().values
    exact = brute_force.ablation_salience(model, images, labels, parameters=sample)
    rows = []
    for name, first_order in brute_force.pick(fast, sample).items():
        errors = (exact[name] + first_order).abs() / torch.maximum(exact[name].abs(), first_order.abs())
        order = errors.argsort()
        for kind, place in (("typical", order[len(order) // 2]), ("worst", order[-1])):
            index = int(sample[name][place])
            losses = brute_force.loss_along_weight(model, images, labels, name, index, [1.0, *factors])
            for c, value in zip(factors, losses[1:], strict=True):
                line = {"c": c, "change": float(value - losses[0]), "tangent": (c - 1) * float(first_order[place])}
                panel = {"layer": published_label(name), "kind": kind}
                rows.append(panel | line | {"index": index, "error": float(errors[place])})
    return pd.DataFrame(rows).sort_values("kind", kind="stable", ignore_index=True)


def remainder_orders(model: nn.Module, images: Tensor, labels: Tensor, *, per_tensor: int) -> pd.DataFrame:
    """How fast the tangent's error vanishes: the observed order of L(w (1 - d)) - L(w) + d s as d is halved from 0.001.

    Returns:
        One row per sampled parameter whose remainder is well above rounding: ``layer``, ``index``, ``order`` (2 for a
        tangent).
    """
    sample = brute_force.stratified_sample(model, per_tensor)
    fast = brute_force.pick(snip(_double(model), images.double(), labels), sample)
    before, step = float(brute_force.mean_loss(model, images, labels)), 1e-3
    rows = []
    for name, indices in sample.items():
        for index, s in zip(indices.tolist(), fast[name].tolist(), strict=True):
            losses = brute_force.loss_along_weight(model, images, labels, name, index, [1 - step, 1 - step / 2])
            whole, half = float(losses[0]) - before + step * s, float(losses[1]) - before + step / 2 * s
            if abs(half) > 1e4 * np.finfo(float).eps * abs(before) and whole != 0:
                rows.append({"layer": name, "index": index, "order": float(np.log2(abs(whole / half)))})
    return pd.DataFrame(rows)


def linear_cases(model: nn.Sequential, images: Tensor, labels: Tensor, *, per_tensor: int) -> pd.DataFrame:
    """SNIP against brute force with and without activations, with a loss linear in the outputs and with cross-entropy.

    Without activations, and with average instead of maximum pooling, the outputs are linear in each single parameter. A loss
    that is linear in the outputs is then linear in each parameter too. Here it is minus the mean output at the label.

    Returns:
        One row per case and sampled parameter: ``case``, ``layer``, ``index``, ``snip`` (loss change that SNIP predicts,
        minus the salience), ``exact``, ``error`` (absolute difference over the case's largest exact salience).
    """
    cases: dict[str, tuple[nn.Module, Loss | None]] = {
        "no activations,\nlinear loss": (without_activations(model), minus_label_output),
        "no activations,\ncross-entropy": (without_activations(model), None),
        "LeNet-5,\nlinear loss": (model, minus_label_output),
        "LeNet-5,\ncross-entropy": (model, None),
    }
    sample = brute_force.stratified_sample(model, per_tensor)
    frames = []
    for case, (network, loss) in cases.items():
        fast = brute_force.pick(snip(_double(network), images.double(), labels, loss=loss), sample)
        exact = brute_force.ablation_salience(network, images, labels, parameters=sample, loss=loss)
        frame = _sampled({"snip": {name: -s for name, s in fast.items()}, "exact": exact}, sample)
        frame["error"] = (frame["snip"] - frame["exact"]).abs() / frame["exact"].abs().max()
        frames.append(frame.assign(case=case))
    return pd.concat(frames, ignore_index=True)


def count_operations(model: nn.Module, images: Tensor, labels: Tensor) -> pd.DataFrame:
    """Counted floating-point operations of a forward pass, of one gradient, and of SNIP, over the same images.

    Counts matrix products and convolutions, which dominate the cost. Element-wise work is left out.

    Returns:
        Rows ``forward pass``, ``gradient``, ``SNIP``; columns ``operations`` and ``over_one_gradient``.
    """
    loss, parameters = nn.functional.cross_entropy, list(model.parameters())
    counts = {
        "forward pass": _flops(lambda: model(images)),
        "gradient": _flops(lambda: torch.autograd.grad(loss(model(images), labels), parameters)),
        "SNIP": _flops(lambda: snip(model, images, labels, batch_size=len(images))),
    }
    frame = pd.DataFrame({"what": list(counts), "operations": list(counts.values())})
    frame["over_one_gradient"] = frame["operations"] / counts["gradient"]
    return frame


def other_rankings(model: nn.Module, images: Tensor, labels: Tensor, *, sparsity: float = 0.95) -> pd.DataFrame:
    """What would be kept if two sentences of the write-up were taken literally, compared with what SNIP keeps.

    Returns:
        Rows ``signed salience`` (no absolute value) and ``gradient`` (additive step); columns ``ranking``, ``formula``,
        ``overlap`` (kept sets against SNIP's, intersection over union).
    """
    network = _double(model)
    salience, weights = snip(network, images.double(), labels), magnitude_salience(network)
    mask, rows = keep_mask(salience, sparsity), []
    for name, formula in (("signed salience", "w dL/dw"), ("gradient", "abs(dL/dw)")):
        other = keep_mask(RANKINGS[name](salience, weights, 0), sparsity)
        rows.append({"ranking": name, "formula": formula, "overlap": overlap(mask, other)})
    return pd.DataFrame(rows)


def percentages(salience: Salience, sparsities: Sequence[float]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Saliences as percentages by layer, and whether percentages would give another mask than saliences.

    Returns:
        One row per parameter tensor: ``layer``, ``label``, ``parameters``, ``share_percent`` (of all salience),
        ``parameters_percent``; and one per sparsity: ``sparsity``, ``mask_changed``, ``sum_percent`` (of all percentages).
    """
    shares, columns = standardise(salience), ["layer", "label", "parameters", "parameters_percent", "share_percent"]
    total = sum(s.numel() for s in salience.values())
    parts = [(n, published_label(n), s.numel(), 100 * s.numel() / total, float(s.sum())) for n, s in shares.items()]
    table = pd.DataFrame(parts, columns=columns)
    changed = [overlap(keep_mask(shares, s), keep_mask(salience, s)) < 1 for s in sparsities]
    masks = {"sparsity": sparsities, "mask_changed": changed, "sum_percent": float(table["share_percent"].sum())}
    return table, pd.DataFrame(masks)


def without_activations(model: nn.Sequential) -> nn.Sequential:
    """The same network without ReLUs, and with average pooling in place of max-pooling. It shares the parameters."""
    layers = OrderedDict(model.named_children())
    for name, layer in layers.items():
        if isinstance(layer, nn.ReLU):
            layers[name] = nn.Identity()
        elif isinstance(layer, nn.MaxPool2d):
            window: dict[str, Any] = {"kernel_size": layer.kernel_size, "stride": layer.stride}
            layers[name] = nn.AvgPool2d(**window, padding=layer.padding)
    return nn.Sequential(layers)


def minus_label_output(outputs: Tensor, labels: Tensor) -> Tensor:
    """A loss linear in the outputs: minus the mean output at the label."""
    return -outputs.gather(1, labels[:, None]).mean()


def _flops(function: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def _double(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).double()


def _sampled(columns: dict[str, dict[str, Tensor]], sample: dict[str, Tensor]) -> pd.DataFrame:
    parts = []
    for name, index in sample.items():
        values = {key: found[name].numpy() for key, found in columns.items()}
        parts.append(pd.DataFrame({"layer": name, "index": index.numpy(), **values}))
    return pd.concat(parts, ignore_index=True)
