"""Figures of notebook 05: orders of approximation."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from snipnb.networks import WHOLE
from snipnb.publish.published import published_label
from snipnb.publish.sentences import fill, power
from snipnb.publish.style import CATEGORIES, LAYER_COLOURS, LAYER_LINES, NEUTRAL, density, headline, panels, whiskers

HEADED = ("snip", "second_order", "printed_second_order")  # criteria that the title of the error rates names


def quadratic(frame: pd.DataFrame, errors: pd.DataFrame) -> Figure:
    """Two formulas against the exact salience where the loss is quadratic in each parameter.

    Args:
        frame: ``layer``, ``exact``, ``corrected``, ``printed`` (magnitudes).
        errors: ``formula``, ``largest_error``, ``spearman``.
    """
    titles = {"corrected": "corrected: |w L' \u2212 w\u00b2 L''/2|", "printed": "printed: |L' \u2212 L'' w/2|"}
    figure, axes = plt.subplots(1, 2, figsize=(8.6, 4.2), sharey=True, layout="constrained")
    layers, found = list(dict.fromkeys(frame["layer"])), errors.set_index("formula")
    for axis, (formula, title) in zip(axes, titles.items(), strict=True):
        for i, layer in enumerate(layers):
            part = frame[frame["layer"] == layer]
            label = re.sub(r"(\d)", r" \1", layer).replace(".weight", ", weights").replace(".bias", ", biases")
            looks = {"ms": 4, "mew": 0, "alpha": 0.75, "color": CATEGORIES[i], "label": label}
            axis.plot(part["exact"], part[formula], "osD^vX"[i], **looks)
        ends = [frame["exact"].clip(lower=1e-6).min(), frame["exact"].max()]
        axis.plot(ends, ends, color="black", lw=0.9, ls=":", label="equal" if axis is axes[0] else None)
        off, alike = found.loc[formula, ["largest_error", "spearman"]]
        largest = power(off) if off < 0.01 else f"{off:.2g}"
        axis.set(title=f"{title}\nlargest error {largest}, rank correlation {alike:.3f}")
        axis.set(xscale="log", yscale="log", xlabel="exact salience, magnitude")
    axes[0].set_ylabel("formula, magnitude")
    axes[0].legend(loc="lower right", ncols=2, fontsize=7)
    said = "On a quadratic loss, the corrected formula is exact to {corrected:power}; the printed formula is off by {printed:.1f} times the largest salience"
    return headline(figure, fill(said, dict(found["largest_error"])))


def row_sums(points: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """The Hessian's row sums against its diagonal, weight tensors only. Shade: number of parameters. Negative sums are below.

    Args:
        points: ``layer``, ``sign``, ``log10_diagonal``, ``log10_row_sum``, ``parameters``.
        table: ``layer``, ``spearman``, ``negative_percent``.
    """
    layers = [layer for layer in dict.fromkeys(points["layer"]) if layer.endswith("weight")]
    figure, axes = panels(2, len(layers), 2.3 * len(layers), 4.6, sharex=True, sharey="row")
    some = points[points["layer"].isin(layers)]
    width = np.diff(np.unique(some["log10_diagonal"])).min()
    diagonal, sums = some["log10_diagonal"], some["log10_row_sum"]
    left = np.floor(np.quantile(np.repeat(diagonal, some["parameters"]), 0.005))
    right, bottom, top = np.ceil(diagonal.max()), np.floor(sums.min()), np.ceil(sums.max())
    edges = [np.arange(start, end + width / 2, width) for start, end in ((left, right), (bottom, top))]
    norm = mpl.colors.LogNorm(1, some["parameters"].max())
    for column, layer in enumerate(layers):
        part = some[some["layer"] == layer]
        row = table[table["layer"] == layer].iloc[0]
        for axis, sign in zip(axes[:, column], (1, -1), strict=True):
            one, columns = part[part["sign"] == sign], ["log10_diagonal", "log10_row_sum"]
            mesh = density(axis, one, columns, edges, (bottom, right), norm)
            if sign < 0:
                axis.invert_yaxis()
                axis.set_xlabel("diagonal entry")
        found = f"rank corr. {row['spearman']:.2f}, {row['negative_percent']:.0f} % negative"
        axes[0, column].set_title(f"{published_label(layer)}\n{found}", fontsize=8)
    axes[0, 0].set_ylabel("row sum, positive")
    axes[1, 0].set_ylabel("row sum, negative\n(magnitude)")
    figure.colorbar(mesh, ax=axes, label="parameters in a bin", shrink=0.6, pad=0.01)
    found = table[table["layer"].isin(layers)]
    said = f"Row sums and diagonal of the Hessian: rank correlation {found['spearman'].min():.2f} to {found['spearman'].max():.2f}"
    signs = f"{found['negative_percent'].min():.0f} to {found['negative_percent'].max():.0f} % of the sums are negative"
    return headline(figure, f"{said}, and {signs} (dotted: equal)")


def orders(frame: pd.DataFrame, names: Mapping[str, str]) -> Figure:
    """Agreement with the exact salience by order: overlap of kept sets (top) and remaining error (bottom), by state of the network.

    Args:
        frame: ``state``, ``approximation``, ``layer``, ``measure``, ``mean``, ``smallest``, ``largest``.
        names: Approximation -> its name in the figure.
    """
    states, layers = list(dict.fromkeys(frame["state"])), list(dict.fromkeys(frame["layer"]))
    layers = [layer for layer in layers if layer == WHOLE or layer.endswith("weight")]
    measures = {
        "overlap": "overlap of kept sets\nwith the exact criterion",
        "relative_error": "remaining error, relative to\nthe exact saliences (log)",
    }
    figure, axes = panels(2, len(states), 4.9 * len(states), 6.4, sharex=True, sharey="row")
    for axis, (measure, state) in zip(axes.flat, itertools.product(measures, states), strict=True):
        for i, layer in enumerate(layers):
            part = frame[(frame["state"] == state) & (frame["layer"] == layer) & (frame["measure"] == measure)]
            part = part.set_index("approximation").reindex(names)
            if layer == WHOLE:
                options = {"fmt": "o-", "ms": 6, "lw": 2, "zorder": 3, "color": "black", "label": layer}
            else:
                marker, dash = LAYER_LINES[layer.split(".")[0]]
                options = {"fmt": marker, "ls": dash, "ms": 4, "lw": 1, "zorder": 2}
                options |= {"color": LAYER_COLOURS[layer.split(".")[0]], "label": published_label(layer)}
            x = np.arange(len(names)) + 0.05 * (i - (len(layers) - 1) / 2)
            axis.errorbar(x, part["mean"], yerr=whiskers(part), elinewidth=1, **options)
        if measure == "relative_error":
            axis.set_yscale("log")
        else:
            axis.set(ylim=(0, 1.03), title=state)
        axis.set_xticks(range(len(names)), names.values(), rotation=25, ha="right")
    for axis, label in zip(axes[:, 0], measures.values(), strict=True):
        axis.set_ylabel(label)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(layers))
    whole = frame[(frame["layer"] == WHOLE) & (frame["measure"] == "overlap")]
    whole = whole.set_index(["state", "approximation"])["mean"]
    steps = []
    for state in states:
        before, after = (f"{whole[state, order]:.2f}" for order in ("snip", "second_order"))
        steps.append(f"from {before} to {after} {state}" if before != after else f"not at all ({after}) {state}")
    return headline(figure, f"The second order changes the overlap with exact salience {' and '.join(steps)}")


def errors(pairs: pd.DataFrame, names: Mapping[str, str], *, sparsity: float) -> Figure:
    """Error rate after training of masks by different orders: a line joins the networks of one seed.

    Args:
        pairs: ``criterion``, ``seed``, ``error_percent``.
        names: Criterion -> its name in the figure, in order.
        sparsity: Sparsity of the masks.
    """
    figure, axis = plt.subplots(figsize=(7.4, 3.8), layout="constrained")
    wide = pairs.pivot(index="seed", columns="criterion", values="error_percent")[list(names)]
    axis.plot(range(len(names)), wide.T, color=NEUTRAL, lw=0.8, alpha=0.6, marker="o", ms=3.5, mew=0)
    for place, criterion in enumerate(names):
        axis.plot([place - 0.22, place + 0.22], [wide[criterion].mean()] * 2, color="black", lw=3, zorder=4)
    axis.set_xticks(range(len(names)), names.values(), rotation=15, ha="right")
    axis.set_ylabel(f"error rate at sparsity {sparsity:g}, %")
    axis.grid(axis="x", visible=False)
    means, first = wide.mean(), HEADED[0]
    others = [f"{names[c]} {means[c] - means[first]:+.2f}" for c in HEADED[1:] if c in names]
    said = f"Error rate after training, compared with SNIP's {means[first]:.2f} %, in percentage points"
    return headline(figure, f"{said}: {', '.join(others)} (means of {len(wide)} seeds)")
