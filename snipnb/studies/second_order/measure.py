"""What notebook 05 compares: formulas in symbols, orders of approximation in numbers, on quadratic losses and on LeNet-5."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from snipnb._checks import Salience, call_with, float_parameters
from snipnb._progress import track
from snipnb.networks import WHOLE
from snipnb.publish.comparisons import LAST, paired, summarise
from snipnb.publish.stats import rank_correlation
from snipnb.saliences import brute_force
from snipnb.saliences.exact import exact_salience
from snipnb.saliences.taylor import derivatives, diagonal_hessian, row_sum_hessian, taylor_salience
from snipnb.studies.shared import flat, grid_of, log_bins, overlaps, parts_of
from snipnb.training.runs import RunConfig

SECOND_ORDER = ("snip", "exact", "second_order", "third_order", "linear_region", "printed_second_order")

# Criterion (or, for the slope alone, no criterion) -> its name in notebook 05, in the order of what it takes into account.
APPROXIMATIONS: dict[str, str] = {
    "slope": "|L'| alone",
    "printed_second_order": "printed formula",
    "snip": "order 1 (SNIP)",
    "second_order": "order 2",
    "third_order": "order 3",
    "linear_region": "all orders",
}
IN_UNITS_OF_LOSS = ("snip", "second_order", "third_order", "linear_region")


# --- in symbols, and where the loss is quadratic ----------------------------------------------------------------------


def symbolic_second_order() -> pd.DataFrame:
    """The write-up's formulas for a quadratic loss along one weight, in SymPy: do they equal the exact salience, or what is left?

    Returns:
        One row per formula: ``formula``, ``for_a_quadratic_loss`` (worked out), ``squared_minus_exact`` (difference of the squares: zero if
        the magnitudes are equal for all weights), ``exact``.
    """
    import sympy as sp

    w, w0, alpha, beta, gamma = sp.symbols("w w_0 alpha beta gamma", real=True)
    loss = alpha * w**2 + beta * w + gamma
    slope, curvature = (sp.diff(loss, w, k).subs(w, w0) for k in (1, 2))
    a = curvature / 2
    b = slope - 2 * a * w0
    formulas = {
        "exact: L(w0) - L(0)": loss.subs(w, w0) - loss.subs(w, 0),
        "a w0^2 + b w0, a = L''/2, b = L' - 2 a w0": a * w0**2 + b * w0,
        "corrected: w0 L' - w0^2 L''/2": w0 * slope - w0**2 * curvature / 2,
        "printed: L' - L'' w0/2": slope - curvature * w0 / 2,
    }
    exact = next(iter(formulas.values()))
    rows = []
    for name, formula in formulas.items():
        left = sp.factor(sp.expand(formula**2 - exact**2))
        row = {"formula": name, "for_a_quadratic_loss": str(sp.factor(sp.expand(formula)))}
        rows.append(row | {"squared_minus_exact": str(left), "exact": left == 0})
    return pd.DataFrame(rows)


def quadratic_loss(*, seed: int = 0, images: int = 40) -> pd.DataFrame:
    """Both second-order formulas on a loss that is quadratic in each parameter, in float64, against brute force.

    The network is a convolution, an average-pooling and two linear layers without activations. The loss is the mean squared distance to random
    targets. The network's output is affine in each single parameter, so the loss along each parameter is a parabola.

    Returns:
        One row per parameter: ``layer``, ``exact``, ``corrected``, ``printed`` (magnitudes), ``snip`` (magnitude of the first order).
    """
    draw = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        layers = {"conv": nn.Conv2d(1, 2, 3), "pool": nn.AvgPool2d(2), "flatten": nn.Flatten()}
        model = nn.Sequential(OrderedDict(layers, full1=nn.Linear(18, 5), full2=nn.Linear(5, 3))).double()
    x = torch.randn(images, 1, 8, 8, generator=draw, dtype=torch.float64)
    targets = torch.randn(images, 3, generator=draw, dtype=torch.float64)

    def loss(outputs: Tensor, aims: Tensor) -> Tensor:
        return ((outputs - aims) ** 2).sum(1).mean()

    exact = brute_force.ablation_salience(model, x, targets, loss=loss)
    parameters = float_parameters(model)
    rows = []
    for name, w in parameters.items():
        flat = w.flatten()

        def along(values: Tensor, name: str = name, shape: torch.Size = w.shape) -> Tensor:
            return loss(call_with(model, {**parameters, name: values.view(shape)}, x), targets)

        slope = torch.autograd.functional.jacobian(along, flat)
        curvature = torch.autograd.functional.hessian(along, flat).diagonal()
        found = {
            "exact": exact[name].flatten(),
            "corrected": flat * slope - flat**2 * curvature / 2,
            "printed": slope - curvature * flat / 2,
            "snip": flat * slope,
        }
        rows.append(pd.DataFrame({"layer": name} | {key: value.abs().numpy() for key, value in found.items()}))
    return pd.concat(rows, ignore_index=True)


def formula_errors(frame: pd.DataFrame) -> pd.DataFrame:
    """How far formulas are from the exact salience: ``formula``, ``largest_error`` (relative to the largest salience), ``spearman``."""
    exact = frame["exact"].to_numpy()
    rows = []
    for formula in ("corrected", "printed", "snip"):
        values = frame[formula].to_numpy()
        error = np.abs(values - exact).max() / exact.max()
        rows.append({"formula": formula, "largest_error": error, "spearman": rank_correlation(values, exact)})
    return pd.DataFrame(rows)


# --- derivatives ------------------------------------------------------------------------------------------------------


def against_nested_derivatives(
    networks: Mapping[str, tuple[nn.Module, Tensor, Tensor]], *, orders: Sequence[int]
) -> pd.DataFrame:
    """Derivatives from the slopes of the logits alone against nested automatic differentiation, in float64.

    Args:
        networks: Name -> (tiny float64 model, images, labels).
        orders: Orders of the derivatives.

    Returns:
        One row per network and order: ``network``, ``parameters``, ``order``, ``largest`` (magnitude), ``largest_error`` (relative to it).
    """
    rows = []
    for network, examples in networks.items():
        found, nested = (derivatives(*examples, order=max(orders), method=m) for m in ("cumulants", "autodiff"))
        for order in orders:
            a, b = (flat(side[order - 1], side[order - 1]) for side in (found, nested))
            largest, error = float(b.abs().max()), float((a - b).abs().max())
            facts = {"network": network, "parameters": len(a), "order": order}
            rows.append(facts | {"largest": largest, "largest_error": error / largest})
    return pd.DataFrame(rows)


def tiny_networks(images: Tensor, labels: Tensor, *, number: int = 12) -> dict[str, tuple[nn.Module, Tensor, Tensor]]:
    """Piecewise-linear networks that are small enough for nested derivatives, with some images reduced to 7 x 7, in float64."""

    def linear(*sizes: int) -> list[nn.Module]:  # with a ReLU between any two layers
        pairs = [(nn.Linear(*pair), nn.ReLU()) for pair in itertools.pairwise(sizes)]
        return [nn.Flatten(), *itertools.chain(*pairs)][:-1]

    builders: dict[str, Callable[[], list[nn.Module]]] = {
        "linear - ReLU - linear": lambda: linear(49, 6, 10),
        "convolution - pooling - linear": lambda: [nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), *linear(8, 10)],
        "three linear layers": lambda: linear(49, 5, 5, 10),
    }
    small = nn.functional.avg_pool2d(images[:number].double(), 4)
    found: dict[str, tuple[nn.Module, Tensor, Tensor]] = {}
    for name, build in builders.items():
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(0)
            found[name] = (nn.Sequential(*build()).double(), small, labels[:number])
    return found


def row_sums(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The Hessian's row sums compared with its diagonal.

    Returns:
        Per tensor and for the whole network: ``layer``, ``parameters``, ``spearman`` (of the magnitudes), ``negative_percent`` (of the
        row sums; diagonal entries are never negative), ``median_factor`` (median of the row sum's magnitude over the diagonal entry).
        And the parameters of each tensor, counted in bins of log axes without zeros: ``layer``, ``sign`` (of the row sum),
        ``log10_diagonal``, ``log10_row_sum`` (centres of bins), ``parameters``.
    """
    diagonal, sums = diagonal_hessian(model, images, labels), row_sum_hessian(model, images, labels)
    rows, filled = [], []
    for layer, names in parts_of(diagonal, label=str).items():
        d, s = (flat(x, names).numpy() for x in (diagonal, sums))
        factor = float(np.median(np.abs(s[d > 0]) / d[d > 0])) if (d > 0).any() else float("nan")
        row = {"layer": layer, "parameters": len(d), "spearman": rank_correlation(d, np.abs(s))}
        rows.append(row | {"negative_percent": 100 * float((s < 0).mean()), "median_factor": factor})
        for sign in (1, -1) if layer != WHOLE else ():
            chosen = (d > 0) & (sign * s > 0)
            filled.append(log_bins(diagonal=d[chosen], row_sum=np.abs(s[chosen])).assign(layer=layer, sign=sign))
    columns = ["layer", "sign", "log10_diagonal", "log10_row_sum", "parameters"]
    return pd.DataFrame(rows), pd.concat(filled, ignore_index=True)[columns]


# --- orders of approximation ------------------------------------------------------------------------------------------


def approximations(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Salience]:
    """The exact salience, under ``"exact"``, and everything in :data:`APPROXIMATIONS` over the same images."""
    slope, curvature, third = derivatives(model, images, labels, order=3)
    w = float_parameters(model)
    first = {name: -w[name] * s for name, s in slope.items()}
    second = {name: first[name] + w[name] ** 2 * curvature[name] / 2 for name in w}
    return {
        "exact": exact_salience(model, images, labels),
        "slope": slope,
        "printed_second_order": {name: slope[name] - curvature[name] * w[name] / 2 for name in w},
        "snip": first,
        "second_order": second,
        "third_order": {name: second[name] - w[name] ** 3 * third[name] / 6 for name in w},
        "linear_region": taylor_salience(model, images, labels, order="linear-region"),
    }


def compare_orders(found: Mapping[str, Salience], *, sparsity: float) -> pd.DataFrame:
    """Every approximation against the exact salience, by tensor and for the whole network.

    **Definition.** ``relative_error``: sum of abs(approximation - exact) over sum of abs(exact); NaN for approximations that are not loss changes.
    ``overlap``: of the kept sets of the whole network at ``sparsity``, counted in the tensor.

    Args:
        found: As from :func:`approximations`.
        sparsity: Of the kept sets.

    Returns:
        ``approximation``, ``layer``, ``spearman`` (of the magnitudes), ``overlap``, ``relative_error``.
    """
    exact = found["exact"]
    rows = []
    for name in APPROXIMATIONS:
        shared = overlaps(exact, found[name], [sparsity])["overlap"]
        for (layer, names), overlap in zip(parts_of(exact, label=str).items(), shared, strict=True):
            e, a = (flat(s, names) for s in (exact, found[name]))
            error = float((a - e).abs().sum() / e.abs().sum()) if name in IN_UNITS_OF_LOSS else float("nan")
            spearman = rank_correlation(a.abs().numpy(), e.abs().numpy())
            row = {"approximation": name, "layer": layer, "spearman": spearman}
            rows.append(row | {"overlap": overlap, "relative_error": error})
    return pd.DataFrame(rows)


def compare_states(
    states: Mapping[str, Sequence[nn.Module]], images: Tensor, labels: Tensor, *, sparsity: float
) -> pd.DataFrame:
    """:func:`compare_orders` of several networks in several states.

    Args:
        states: State -> networks, one per seed.
        images: Images that all saliences are taken over.
        labels: Labels of the images.
        sparsity: Sparsity of the kept sets.

    Returns:
        One row per state, approximation, layer and measure: ``state``, ``approximation``, ``layer``, ``measure``, ``n``, ``mean``, ``smallest``,
        ``largest`` over networks.
    """
    jobs = [(state, model) for state, models in states.items() for model in models]
    frames = [
        compare_orders(approximations(model, images, labels), sparsity=sparsity).assign(state=state)
        for state, model in track(jobs, "orders, networks")
    ]
    by = ["state", "approximation", "layer"]
    long = pd.concat(frames, ignore_index=True).melt(by, ["spearman", "overlap", "relative_error"], "measure", "value")
    return summarise(long, [*by, "measure"], "value")


def agreement_table(compared: pd.DataFrame) -> pd.DataFrame:
    """Means for the whole network: one row per state and approximation, a column per measure."""
    whole = compared[compared["layer"] == WHOLE]
    table = whole.pivot(index=["state", "approximation"], columns="measure", values="mean")
    rows = itertools.product(compared["state"].unique(), APPROXIMATIONS)
    table = table.loc[list(rows), ["spearman", "overlap", "relative_error"]].reset_index()
    return table.assign(approximation=table["approximation"].map(APPROXIMATIONS))


def switching(compared: pd.DataFrame) -> pd.DataFrame:
    """The error that each order leaves, and that all orders together leave, by tensor, in percent of the exact saliences.

    Returns:
        One row per state and tensor: ``state``, ``layer``, ``order 1``, ``order 2``, ``order 3``, ``switching`` (left after all orders).
    """
    some = compared[(compared["measure"] == "relative_error") & compared["approximation"].isin(IN_UNITS_OF_LOSS)]
    names = dict(zip(IN_UNITS_OF_LOSS, ("order 1", "order 2", "order 3", "switching"), strict=True))
    wide = some.pivot_table("mean", ["state", "layer"], "approximation", sort=False)[list(names)]
    return (100 * wide).rename(columns=names).rename_axis(columns=None).reset_index()


def gains(rates: pd.DataFrame, *, than: str, way: str = LAST) -> pd.DataFrame:
    """By how much each criterion's error rate lies below another's, paired over seeds.

    Args:
        rates: As from :func:`snipnb.error_table`, at one sparsity.
        than: The other criterion.
        way: One of the values of :data:`snipnb.training.scores.WAYS`.

    Returns:
        One row per criterion: ``criterion``, ``n``, ``error_percent`` (mean), ``mean``, ``low95``, ``high95`` (of the gain, in percentage points).
    """
    rows = []
    for criterion in [c for c in rates["criterion"].unique() if c != than]:
        own = rates.loc[(rates["criterion"] == criterion) & (rates["way"] == way), "error_percent"]
        rows.append((criterion, len(own), own.mean(), *paired(rates, than, criterion, way=way)))
    return pd.DataFrame(rows, columns=["criterion", "n", "error_percent", "mean", "low95", "high95"])


def grids(parameters: Mapping[str, Any]) -> dict[str, list[RunConfig]]:
    """Training runs of the notebook with these parameters: ``second_order``, the exact criterion and its approximations at 0.95."""
    return {"second_order": grid_of(parameters, SECOND_ORDER, [0.95])}
