"""How close rules for layer densities come to what SNIP keeps, and the constants of the closed form."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
from scipy import optimize, special
from torch import Tensor, nn

from snipnb.networks import lenet5, lenet_300_100, lenet_variant
from snipnb.pruning.closed_form import FITTED, Constants, predicted_densities
from snipnb.pruning.densities import Rule, rules
from snipnb.studies.shared import ensemble, kept_counts

SPARSITIES = (0.5, 0.9, 0.95, 0.99)
FITTING_NETWORKS: dict[str, Callable[..., nn.Sequential]] = {
    "LeNet-5": lenet5,
    "LeNet-300-100, half width": partial(lenet_variant, "lenet_300_100", width=0.5),
}
TEST_NETWORKS: dict[str, Callable[..., nn.Sequential]] = {
    "LeNet-5, half width": partial(lenet_variant, width=0.5),
    "LeNet-5, double width": partial(lenet_variant, width=2),
    "LeNet-5, 2 layers more": partial(lenet_variant, extra_full=2),
    "LeNet-5, 2 convolutions more": partial(lenet_variant, extra_conv=2),
    "LeNet-300-100": lenet_300_100,
    "LeNet-300-100, double width": partial(lenet_variant, "lenet_300_100", width=2),
    "LeNet-300-100, 2 layers more": partial(lenet_variant, "lenet_300_100", extra_full=2),
}
FITTING_INITIALISATIONS = ("pytorch", "xavier_uniform")
START = np.array([*special.logit([0.25, 1 / 3, 0.5]), np.log(0.5)])  # in the middle: where the search begins


def measure_densities(
    images: Tensor,
    labels: Tensor,
    *,
    networks: Mapping[str, Callable[..., nn.Module]] = FITTING_NETWORKS,
    inits: Sequence[str] = FITTING_INITIALISATIONS,
    seeds: Iterable[int] = range(5),
    sparsities: Sequence[float] = SPARSITIES,
) -> pd.DataFrame:
    """What SNIP keeps of each layer, on average over initialisations, for several networks.

    Args:
        images: [n, 1, 28, 28]; a thousand are enough.
        labels: [n].
        networks: Name -> function of ``init`` and ``seed``. By default, the networks that the constants are fitted on.
        inits: Initialisations, each for every network.
        seeds: Draws of the initial weights.
        sparsities: Fractions removed.

    Returns:
        Tidy frame, one row per network, initialisation, sparsity and parameter tensor: ``network``, ``init``, ``sparsity``,
        ``layer``, ``parameters``, ``density`` (mean over seeds), ``deviation`` (standard deviation over seeds), ``n``.
    """
    seeds, frames = list(seeds), []
    for name, network in networks.items():
        for init in inits:
            several = ensemble(images, labels, seeds=seeds, network=network, init=init)
            counts = kept_counts(several, sparsities=sparsities, ties="stable")
            counts["density"] = counts["kept"] / counts["parameters"]
            groups = counts.groupby(["sparsity", "layer", "parameters"], sort=False)["density"]
            table = groups.agg(density="mean", deviation="std", n="count").reset_index()
            frames.append(table.assign(network=name, init=init))
    columns = ["network", "init", "sparsity", "layer", "parameters", "density", "deviation", "n"]
    return pd.concat(frames, ignore_index=True)[columns]


def fit_constants(measured: pd.DataFrame) -> Constants:
    """The constants with which the closed form comes closest to measured densities.

    **Definition.** Least squares of log10(measured density / predicted density) over all rows. Each difference is divided by
    its standard error (spread over seeds and counting error together), or by 0.03 where 0.03 is larger. So small tensors
    count for little, and no row counts for more than a model error of 0.03 allows. ``FITTED`` is ``fit_constants(measure_densities(images,
    labels, seeds=range(10)))`` on the 5,000 training images that ship with the package.

    Args:
        measured: As from :func:`measure_densities`, of :data:`FITTING_NETWORKS`, from at least two seeds.

    Raises:
        ValueError: If a network is unknown, or there are fewer than two seeds.
    """
    if measured.empty or measured["deviation"].isna().any():
        raise ValueError("densities must have been measured for at least two seeds; got fewer")
    models = _models(measured, FITTING_NETWORKS)
    cells = [(*key, part) for key, part in measured.groupby(["network", "init", "sparsity"], sort=False)]

    def residuals(point: np.ndarray) -> np.ndarray:
        found = []
        for network, init, sparsity, part in cells:
            own = predicted_densities(models[network], sparsity, init=init, constants=_constants_at(point))
            ratio, error = _log_ratios(part, part["layer"].map(own))
            found.append(ratio / np.maximum(error, 0.03))
        return np.concatenate(found)

    return _constants_at(optimize.least_squares(residuals, START, xtol=1e-4, ftol=1e-5, diff_step=1e-4).x)


def compare(measured: pd.DataFrame, *, by: Mapping[str, Rule] | None = None) -> pd.DataFrame:
    """Measured densities compared with the densities of each rule.

    Args:
        measured: As from :func:`measure_densities`, of :data:`FITTING_NETWORKS` and :data:`TEST_NETWORKS`.
        by: Rules; default :func:`rules`.

    Returns:
        Tidy frame, one row per rule and row of ``measured``: its columns, ``rule``, ``predicted``, and ``log10_ratio`` of
        measured to predicted (half a parameter is added to both counts over all seeds, because some counts are 0).

    Raises:
        ValueError: If a network is unknown.
    """
    models, frames = _models(measured, FITTING_NETWORKS | TEST_NETWORKS), []
    for (network, init, sparsity), part in measured.groupby(["network", "init", "sparsity"], sort=False):
        for name, rule in (rules() if by is None else by).items():
            predicted = part["layer"].map(rule(models[network], sparsity, init))
            ratio, _ = _log_ratios(part, predicted)
            frames.append(part.assign(rule=name, predicted=predicted, log10_ratio=ratio))
    return pd.concat(frames, ignore_index=True)


def score(compared: pd.DataFrame) -> pd.DataFrame:
    """How much of SNIP's structure each rule explains.

    **Definition.** With m_l parameters in tensor l, measured density d_l, predicted p_l and overall density d:

    - ``explained`` = 1 - sum_l m_l (d_l - p_l)^2 / sum_l m_l (d_l - d)^2, the share of the variance of densities over
      parameters; 0 for uniform densities, below 0 for worse;
    - ``misplaced`` = sum_l m_l abs(d_l - p_l) / (2 sum_l m_l d_l), the share of kept parameters that would have to move to
      another tensor;
    - ``rms_log10_ratio``, the root mean square of log10(d_l / p_l), with equal weight for every tensor: 0.3 is a factor of 2.

    Args:
        compared: As from :func:`compare`.

    Returns:
        One row per network, initialisation, sparsity and rule, with these three scores.
    """
    keys = ["network", "init", "sparsity", "rule"]
    rows = []
    for key, part in compared.groupby(keys, sort=False):
        size, own, predicted = (part[column].to_numpy(float) for column in ("parameters", "density", "predicted"))
        overall = size @ own / size.sum()
        spread = size @ (own - overall) ** 2
        left = size @ (own - predicted) ** 2
        row = {"explained": float(np.round(1 - left / spread, 12)) if spread > 0 else float("nan")}
        row |= {"misplaced": size @ np.abs(own - predicted) / (2 * size @ own)}
        row |= {"rms_log10_ratio": float(np.sqrt(np.mean(part["log10_ratio"] ** 2)))}
        rows.append(dict(zip(keys, key, strict=True)) | row)
    return pd.DataFrame(rows)


def predicted_curves(
    networks: Mapping[str, nn.Sequential], sparsities: Sequence[float], *, constants: Constants = FITTED
) -> pd.DataFrame:
    """The closed form of several networks with PyTorch's initialisation: ``network``, ``sparsity``, ``layer``, ``predicted``."""
    rows = [
        {"network": name, "sparsity": sparsity, "layer": layer, "predicted": density}
        for name, model in networks.items()
        for sparsity in sparsities
        for layer, density in predicted_densities(model, sparsity, constants=constants).items()
    ]
    return pd.DataFrame(rows)


def summary(scores: pd.DataFrame) -> pd.DataFrame:
    """Scores averaged over networks and initialisations: one row per rule, sparsity, and whether the constants were fitted on the network."""
    seen = np.where(scores["network"].isin(FITTING_NETWORKS), "fitted", "not fitted")
    columns = ["explained", "misplaced", "rms_log10_ratio"]
    grouped = scores.assign(networks=seen).groupby(["rule", "networks", "sparsity"], sort=False)
    table = grouped[columns].mean().assign(n=grouped.size(), worst_misplaced=grouped["misplaced"].max())
    return table.reset_index()


def _models(measured: pd.DataFrame, networks: Mapping[str, Callable[..., nn.Sequential]]) -> dict[str, nn.Sequential]:
    names = list(measured["network"].unique())
    if unknown := [name for name in names if name not in networks]:
        raise ValueError(f"networks must be among {', '.join(networks)}; got {unknown}")
    return {name: networks[name](init="pytorch", seed=0) for name in names}  # only shapes matter


def _log_ratios(part: pd.DataFrame, predicted: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """log10 of measured to predicted density, and its standard error."""
    trials = (part["parameters"] * part["n"]).to_numpy(float)
    own, other = ((trials * d.to_numpy(float) + 0.5) / (trials + 1) for d in (part["density"], predicted))
    counting = (1 - other) / (trials * other)
    over_seeds = part["deviation"].fillna(0).to_numpy() ** 2 / part["n"].to_numpy() / own**2
    return np.log10(own / other), np.sqrt(counting + over_seeds) / np.log(10)


def _constants_at(point: np.ndarray) -> Constants:
    """Any four numbers -> constants in their ranges."""
    between, ahead, neighbours = special.expit(point[:3])
    return Constants(*(float(v) for v in (between + (1 - between) * ahead, between, neighbours, np.exp(point[3]))))
