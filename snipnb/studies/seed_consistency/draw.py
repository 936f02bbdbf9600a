"""Figures of notebook 04: what is kept where, over many initialisations."""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from snipnb.networks import published_label
from snipnb.publish.style import (
    LAYER_COLOURS,
    LEAST_KEPT,
    NEUTRAL,
    PALETTE,
    dots,
    panels,
    percent_axis,
    sparsity_axis,
    whiskers,
)


def controls(counts: pd.DataFrame, shares: pd.DataFrame, *, whole: float) -> Figure:
    """Kept share of every parameter tensor, a dot a seed, a panel for each way to rank.

    Args:
        counts: ``condition``, ``seed``, ``label``, ``kept_percent``.
        shares: ``condition``, ``share`` (of the variance between tensors).
        whole: Kept share of the whole network, in percent.
    """
    conditions, labels = list(dict.fromkeys(counts["condition"])), list(dict.fromkeys(counts["label"]))
    figure, axes = panels(1, len(conditions), 2.15 * len(conditions) + 0.8, 4.3, sharey=True)
    draw, floor = np.random.RandomState(0), 0.25
    for axis, condition in zip(axes[0], conditions, strict=True):
        part, colour = counts[counts["condition"] == condition], PALETTE[0] if axis is axes[0, 0] else NEUTRAL
        for row, label in enumerate(labels):
            kept = part.loc[part["label"] == label, "kept_percent"].clip(lower=floor).to_numpy()
            dots(axis, kept, row, spread=0.28, draw=draw, ms=3, alpha=0.6, color=colour, zorder=2)
            axis.plot([np.median(kept)] * 2, [row - 0.36, row + 0.36], color="black", lw=1.3, zorder=3)
        axis.axvline(whole, color=NEUTRAL, lw=1, ls=":", zorder=0)
        percent_axis(axis, [floor, 1, 5, 20, 100])
        axis.set_xticklabels(["0", "1", "5", "20", "100"])
        axis.set_xlim(floor / 1.4, 140)
        share = shares.loc[shares["condition"] == condition, "share"].iloc[0]
        axis.set_title(f"{condition}\n{100 * share:.1f} % of variance\nbetween tensors", fontsize=8.5)
        axis.set_xlabel("kept, % (log)")
    axes[0, 0].set_yticks(range(len(labels)), labels)
    axes[0, 0].set_ylim(len(labels) - 0.4, -0.6)
    return figure


def overlap(summary: pd.DataFrame) -> Figure:
    """Overlap of pairs of masks by tensor: a colour for what differs between the two, a hollow mark for chance.

    Args:
        summary: ``comparison``, ``layer``, ``mean``, ``smallest``, ``largest``, ``chance``.
    """
    comparisons, layers = list(dict.fromkeys(summary["comparison"])), list(dict.fromkeys(summary["layer"]))
    figure, axis = plt.subplots(figsize=(8.2, 0.43 * len(layers) + 1.6), layout="constrained")
    for i, comparison in enumerate(comparisons):
        part = summary[summary["comparison"] == comparison].set_index("layer").loc[layers]
        y = np.arange(len(layers)) + 0.2 * (i - (len(comparisons) - 1) / 2)
        options = {"fmt": "osD^"[i], "color": PALETTE[(0, 1, 2, 4)[i]], "label": comparison}
        axis.errorbar(part["mean"], y, xerr=whiskers(part), ms=5, lw=1.4, **options)
        chance = "by chance, given the counts" if i == 0 else None
        axis.plot(part["chance"], y, "|", ms=9, mew=1.6, color="black", label=chance)
    axis.set_yticks(range(len(layers)), [published_label(layer) for layer in layers])
    axis.set_ylim(len(layers) - 0.5, -0.5)
    axis.set_xlim(-0.02, 1.03)
    axis.set_xlabel("overlap of the kept sets (intersection over union)")
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def initialisations(cells: pd.DataFrame, scores: pd.DataFrame) -> Figure:
    """Counts that each initialisation makes likely, relative to the published ones.

    Args:
        cells: ``init``, ``sparsity``, ``label``, ``reported``, ``low``, ``high`` (prediction interval), ``mean``.
        scores: ``init``, ``p_value``.
    """
    inits, labels = list(dict.fromkeys(cells["init"])), list(dict.fromkeys(cells["label"]))
    sparsities, floor = sorted(cells["sparsity"].unique()), 0.1
    figure, axes = panels(1, len(sparsities), 4.9 * len(sparsities), 5.2, sharey=True)
    for axis, sparsity in zip(axes[0], sparsities, strict=True):
        for i, init in enumerate(inits):
            part = cells[(cells["init"] == init) & (cells["sparsity"] == sparsity)].set_index("label").loc[labels]
            y = np.arange(len(labels)) + 0.15 * (i - (len(inits) - 1) / 2)
            colour = PALETTE[(0, 1, 2, 9, 4)[i]]
            ratio = {key: (part[key] / part["reported"]).clip(lower=floor) for key in ("low", "high", "mean")}
            axis.hlines(y, ratio["low"], ratio["high"], color=colour, lw=2.2, alpha=0.75)
            p = scores.loc[scores["init"] == init, "p_value"].iloc[0]
            name = f"{init.replace('_', ' ')} (p = {p:.2f})"
            axis.plot(ratio["mean"], y, "o", ms=3.2, color=colour, label=name if axis is axes[0, 0] else None)
        axis.axvline(1, color="black", lw=1)
        percent_axis(axis, [floor, 0.2, 0.5, 1, 2, 5])
        axis.set_xticklabels(["0", "0.2", "0.5", "1", "2", "5"])
        axis.set_xlim(floor / 1.15, max(3.0, 1.1 * (cells["high"] / cells["reported"]).max()))
        axis.set_title(f"sparsity {sparsity:g}")
        axis.set_xlabel("kept, relative to the published count (log)")
    axes[0, 0].set_yticks(range(len(labels)), labels)
    axes[0, 0].set_ylim(len(labels) - 0.5, -0.5)
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def places(maps: pd.DataFrame) -> Figure:
    """How often each place is kept, relative to its tensor's mean: a column per tensor, a row per sparsity.

    Args:
        maps: ``title``, ``sparsity``, ``row``, ``column``, ``kept``.
    """
    titles, sparsities = list(dict.fromkeys(maps["title"])), sorted(maps["sparsity"].unique())
    width, height = 2.35 * len(titles) + 0.6, 2.3 * len(sparsities) + 0.6
    figure, axes = panels(len(sparsities), len(titles), width, height)
    norm = mpl.colors.TwoSlopeNorm(1, 0, 3)
    for (title, sparsity), part in maps.groupby(["title", "sparsity"], sort=False):
        axis = axes[sparsities.index(sparsity), titles.index(title)]
        grid = part.pivot(index="row", columns="column", values="kept").to_numpy()
        picture = axis.imshow(grid / grid.mean(), cmap="RdBu", norm=norm, interpolation="nearest")
        if grid.size <= 49:
            for (row, column), value in np.ndenumerate(grid):
                colour = "white" if abs(norm(value / grid.mean()) - 0.5) > 0.33 else "black"  # on dark, on light
                text = f"{100 * value:.{0 if value >= 0.0995 else 1}f}"
                axis.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.grid(visible=False)
        axis.spines[:].set_visible(False)
        axis.set_xlabel(f"mean {100 * grid.mean():.3g} % kept", fontsize=8)
        if sparsity == sparsities[0]:
            axis.set_title(title, fontsize=9)
        if title == titles[0]:
            axis.set_ylabel(f"sparsity {sparsity:g}", fontsize=9.5, fontweight="bold")
    bar = figure.colorbar(picture, ax=axes, shrink=0.6, pad=0.02, label="kept, relative to the tensor's mean")
    bar.set_ticks([0, 0.5, 1, 2, 3], labels=["0", "0.5", "1", "2", "3 or more"])
    return figure


def units(frame: pd.DataFrame) -> Figure:
    """Kept weights into each unit, units in descending order, against the same number at random places of the tensor.

    Args:
        frame: ``layer``, ``rank``, ``mean``, ``smallest``, ``largest``, ``shuffled``.
    """
    layers = list(dict.fromkeys(frame["layer"]))
    figure, axes = panels(1, len(layers), 3.1 * len(layers), 3.1)
    for axis, layer in zip(axes[0], layers, strict=True):
        part = frame[frame["layer"] == layer]
        colour = LAYER_COLOURS[layer.split(".")[0]]
        axis.fill_between(part["rank"], part["smallest"], part["largest"], color=colour, alpha=0.2, lw=0)
        axis.plot(part["rank"], part["mean"], color=colour, label="SNIP")
        axis.plot(part["rank"], part["shuffled"], color="black", ls=":", label="shuffled within the tensor")
        axis.set_title(published_label(layer))
        axis.set_xlabel("unit, by rank")
        axis.set_ylim(bottom=0)
    axes[0, 0].set_ylabel("kept weights into a unit")
    axes[0, -1].legend(loc="upper right")
    return figure


def weights(histograms: pd.DataFrame, tenths: pd.DataFrame, *, bound: float) -> Figure:
    """Weights before and after pruning, by tensor (columns) and initialisation (rows); last row: kept share by magnitude.

    Args:
        histograms: ``init``, ``layer``, ``value``, ``before``, ``kept``.
        tenths: ``init``, ``layer``, ``tenth``, ``kept``, ``low``, ``high``.
        bound: What C34 asks the lowest tenth to stay below, as a share of the middle eight.
    """
    inits, layers = list(dict.fromkeys(histograms["init"])), list(dict.fromkeys(histograms["layer"]))
    figure, axes = panels(len(inits) + 1, len(layers), 2.2 * len(layers), 1.75 * len(inits) + 2.4)
    for (init, layer), part in histograms.groupby(["init", "layer"], sort=False):
        axis = axes[inits.index(init), layers.index(layer)]
        width = np.diff(part["value"]).mean()
        before, kept = (part[column] / part[column].max() for column in ("before", "kept"))
        axis.bar(part["value"], before, width, color="#d0d0d0", lw=0, label="before")
        axis.bar(part["value"], kept, width * 0.9, color=PALETTE[0], alpha=0.55, lw=0, label="kept")
        axis.set_yticks([])
        axis.set_xticks([-1, 0, 1])
        axis.grid(visible=False)
        if init == inits[0]:
            axis.set_title(published_label(layer))
        if layer == layers[0]:
            axis.set_ylabel(f"{init.replace('_', ' ')}\nweights", fontsize=8.5)
    for column, layer in enumerate(layers):
        axis = axes[-1, column]
        for i, init in enumerate(inits):
            part = tenths[(tenths["layer"] == layer) & (tenths["init"] == init)]
            bars = [100 * bar for bar in whiskers(part, "kept", "low", "high")]
            options = {"fmt": ("o-", "s-")[i % 2], "color": PALETTE[i % 2], "label": init.replace("_", " ")}
            axis.errorbar(part["tenth"] + 0.15 * i, 100 * part["kept"], yerr=bars, ms=3, lw=1, **options)
            if i == 0:
                middle = 100 * part["kept"].to_numpy()[1:-1].mean()
                axis.plot([0.6, 1.6], [bound * middle] * 2, color="black", lw=1.2, ls="--")
        axis.set_ylim(bottom=0)
        axis.set_xticks([1, 5, 10])
        axis.set_xlabel("tenth of magnitude")
    axes[-1, 0].set_ylabel("kept, %")
    ends = (axis.get_legend_handles_labels() for axis in (axes[0, 0], axes[-1, 0]))
    handles, names = ([*above, *below] for above, below in zip(*ends, strict=True))
    figure.legend(handles, names, loc="outside upper center", ncols=4)
    return figure


def curves(curves: pd.DataFrame) -> Figure:
    """Kept share of each tensor against sparsity, a panel per network: mean and range of the seeds, prediction dashed.

    Args:
        curves: ``network``, ``layer``, ``sparsity``, ``mean``, ``smallest``, ``largest``, and, if there is a prediction, ``predicted``.
    """
    networks = list(dict.fromkeys(curves["network"]))
    figure, axes = panels(1, len(networks), 4.9 * len(networks), 4.2, sharey=True)
    curves = curves[curves["layer"].str.endswith("weight")]
    for axis, network in zip(axes[0], networks, strict=True):
        part = curves[curves["network"] == network]
        sparsities = sorted(part["sparsity"].unique())
        for layer, one in part.groupby("layer", sort=False):
            colour, x = LAYER_COLOURS[layer.split(".")[0]], 1 - one["sparsity"]
            axis.fill_between(x, 100 * one["smallest"], 100 * one["largest"], color=colour, alpha=0.2, lw=0)
            axis.plot(x, 100 * one["mean"], color=colour)
            last = one.loc[one["sparsity"].idxmax()]
            end = 1 - last["sparsity"], max(100 * last["mean"], LEAST_KEPT)  # or where the line leaves the axes
            beside = {"xytext": (5, 0), "textcoords": "offset points", "color": colour}
            beside["va"] = "bottom" if 100 * last["mean"] < LEAST_KEPT else "center"
            axis.annotate(published_label(layer), end, **beside)
            if "predicted" in one:
                axis.plot(x, 100 * one["predicted"], color=colour, ls=(0, (3, 2)), lw=1.2)
        axis.plot([1 - s for s in sparsities], [100 * (1 - s) for s in sparsities], color=NEUTRAL, ls=":", lw=1)
        labelled = (0.05, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
        sparsity_axis(axis, sparsities, unlabelled=[s for s in sparsities if s not in labelled])
        percent_axis(axis, [0.1, 0.3, 1, 3, 10, 30, 100], along="y")
        axis.set_title(network)
    axes[0, 0].set_ylabel("weights kept, % (log)")
    axes[0, 0].set_ylim(LEAST_KEPT, 130)
    return figure


def prediction(frame: pd.DataFrame) -> Figure:
    """Densities that shapes alone predict against measured ones, a panel per rule.

    Args:
        frame: ``rule``, ``network``, ``layer``, ``measured``, ``predicted`` (fractions), ``fitted`` (whether constants saw the network).
    """
    rules = list(dict.fromkeys(frame["rule"]))
    networks = list(dict.fromkeys(frame["network"]))
    figure, axes = panels(1, len(rules), 3.5 * len(rules), 3.9, sharey=True)
    ends = [0.1, 110]
    for axis, rule in zip(axes[0], rules, strict=True):
        axis.plot(ends, ends, color="black", lw=0.8, ls=":")
        for i, network in enumerate(networks):
            part = frame[(frame["rule"] == rule) & (frame["network"] == network)]
            x, y = ((100 * part[column]).clip(lower=ends[0]) for column in ("predicted", "measured"))
            mark, colour = "osD^vXP*<>"[i % 10], PALETTE[i % 10]
            face = colour if part["fitted"].any() else "none"
            axis.plot(x, y, mark, ms=5, mfc=face, mec=colour, label=network)
        for along in ("x", "y"):
            percent_axis(axis, [0.1, 1, 10, 100], along=along)
        axis.set_title(rule)
        axis.set_xlabel("predicted density, % (log)")
        axis.set_aspect("equal")
    axes[0, 0].set_ylabel("SNIP's density, % (log)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure
