"""Figures of notebook 04: what is kept where, over many initialisations."""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from snipnb.publish.published import published_label
from snipnb.publish.style import (
    CATEGORIES,
    LAYER_COLOURS,
    NEUTRAL,
    dots,
    headline,
    init_label,
    look,
    panels,
    percent_axis,
    sparsity_axis,
    whiskers,
)

REJECTED = 0.05  # p up to which a table counts as unlikely


def controls(counts: pd.DataFrame, shares: pd.DataFrame, *, whole: float) -> Figure:
    """Kept share of every parameter tensor, one dot per seed, one panel per way to rank.

    Args:
        counts: ``condition``, ``seed``, ``label``, ``kept_percent``.
        shares: ``condition``, ``share`` (of the variance between tensors).
        whole: Kept share of the whole network, in percent.
    """
    conditions, labels = list(dict.fromkeys(counts["condition"])), list(dict.fromkeys(counts["label"]))
    figure, axes = panels(1, len(conditions), 2.15 * len(conditions) + 0.8, 4.3, sharey=True)
    draw, floor, of = np.random.RandomState(0), 0.25, shares.set_index("condition")["share"]
    for axis, condition in zip(axes[0], conditions, strict=True):
        part, colour = counts[counts["condition"] == condition], look("snip").colour if axis is axes[0, 0] else NEUTRAL
        for row, label in enumerate(labels):
            kept = part.loc[part["label"] == label, "kept_percent"].clip(lower=floor).to_numpy()
            dots(axis, kept, row, spread=0.28, draw=draw, ms=3, alpha=0.6, color=colour, zorder=2)
            axis.plot([np.median(kept)] * 2, [row - 0.36, row + 0.36], color="black", lw=1.3, zorder=3)
        axis.axvline(whole, color=NEUTRAL, lw=1, ls=":", zorder=0)
        percent_axis(axis, [floor, 1, 5, 20, 100])
        axis.set(xticklabels=["0", "1", "5", "20", "100"], xlim=(floor / 1.4, 140), xlabel="kept, % (log)")
        axis.set_title(f"{condition}\n{100 * of[condition]:.1f} % of variance\nbetween tensors", fontsize=8.5)
    axes[0, 0].set(yticks=range(len(labels)), yticklabels=labels, ylim=(len(labels) - 0.4, -0.6))
    said = f"With SNIP, the tensor explains {100 * of[conditions[0]]:.0f} % of the variance of kept shares"
    return headline(figure, f"{said}, with {conditions[-1]} masks {100 * of[conditions[-1]]:.0f} %")


def overlap(summary: pd.DataFrame) -> Figure:
    """Overlap of pairs of masks by tensor: one colour per comparison, a black tick for chance.

    Args:
        summary: ``comparison``, ``layer``, ``mean``, ``smallest``, ``largest``, ``chance``.
    """
    comparisons, layers = list(dict.fromkeys(summary["comparison"])), list(dict.fromkeys(summary["layer"]))
    figure, axis = plt.subplots(figsize=(8.2, 0.43 * len(layers) + 1.6), layout="constrained")
    for i, comparison in enumerate(comparisons):
        part = summary[summary["comparison"] == comparison].set_index("layer").loc[layers]
        y = np.arange(len(layers)) + 0.2 * (i - (len(comparisons) - 1) / 2)
        options = {"fmt": "osD^"[i], "color": CATEGORIES[i], "label": comparison}
        axis.errorbar(part["mean"], y, xerr=whiskers(part), ms=5, lw=1.4, **options)
        chance = "by chance, given the counts" if i == 0 else None
        axis.plot(part["chance"], y, "|", ms=9, mew=1.6, color="black", label=chance)
    axis.set_yticks(range(len(layers)), [published_label(layer) for layer in layers])
    axis.set(ylim=(len(layers) - 0.5, -0.5), xlim=(-0.02, 1.03))
    axis.set_xlabel("overlap of the kept sets (intersection over union)")
    figure.legend(loc="outside upper center", ncols=2)
    whole = summary[summary["layer"] == layers[0]].set_index("comparison")
    last, first = whole.loc[comparisons[-1]], whole.loc[comparisons[0]]
    said = f"Masks of two networks overlap by {last['mean']:.3f} (chance: {last['chance']:.3f})"
    return headline(figure, f"{said}, masks of one network on other images by {first['mean']:.2f}")


def initialisations(cells: pd.DataFrame, scores: pd.DataFrame) -> Figure:
    """Counts that each initialisation makes likely at the highest sparsity, relative to the published counts.

    Initialisations that start biases at zero keep no bias. A line of text names them.

    Args:
        cells: ``init``, ``sparsity``, ``label``, ``reported``, ``low``, ``high`` (prediction interval), ``mean``, ``inside``.
        scores: ``init``, ``p_value``.
    """
    here = cells[cells["sparsity"] == cells["sparsity"].max()]
    biases = here[here["label"].str.startswith("bias")].groupby("init")["mean"].sum()
    none, p = [init for init in biases.index if biases[init] == 0], scores.set_index("init")["p_value"]
    inits = sorted((init for init in biases.index if init not in none), key=lambda init: -p[init])
    labels = list(dict.fromkeys(here["label"]))
    figure, axis = plt.subplots(figsize=(8.4, 5.0), layout="constrained")
    for i, init in enumerate(inits):
        part = here[here["init"] == init].set_index("label").loc[labels]
        y = np.arange(len(labels)) + 0.22 * (i - (len(inits) - 1) / 2)
        colour, marker = CATEGORIES[i % 5], "osD^v"[i % 5]
        ratio = {key: (part[key] / part["reported"]).clip(lower=0.1) for key in ("low", "high", "mean")}
        axis.hlines(y, ratio["low"], ratio["high"], color=colour, lw=2.2, alpha=0.75)
        lower = (part["low"] / part["reported"] < 0.1).to_numpy()
        axis.plot(ratio["low"][lower], y[lower], "<", ms=4.5, color=colour)  # the interval goes on
        axis.plot(ratio["mean"], y, marker, ms=4.5, color=colour, label=f"{init_label(init)} (p = {p[init]:.2f})")
        out = ~part["inside"].astype(bool).to_numpy()
        axis.plot(ratio["high"][out] * 1.06, y[out], "x", ms=5, mew=1.4, color="black")
    axis.axvline(1, color="black", lw=1)
    percent_axis(axis, [0.1, 0.2, 0.5, 1, 2, 5])
    axis.set_xlim(0.1 / 1.15, max(2.6, 1.1 * (here["high"] / here["reported"]).max()))
    kept = f"kept at sparsity {here['sparsity'].max():g}"
    axis.set(xlabel=f"{kept}, relative to the published count (log); \u00d7: outside")
    axis.set(yticks=range(len(labels)), yticklabels=labels, ylim=(len(labels) - 0.5, -0.5))
    if none:
        text = "\n".join(f"{init_label(init)}: no bias is kept (p = {p[init]:.2f})" for init in none)
        axis.text(0.01, 0.985, text, va="top", transform=axis.transAxes, fontsize=7.5, color=NEUTRAL)
    figure.legend(loc="outside upper center", ncols=len(inits))
    least_p = 1 / (1 + scores["n"].min())
    if least_p > REJECTED:
        return headline(figure, f"Too few seeds to tell initialisations apart: no p can be below {least_p:.2f}")
    fitting = [f"{init_label(init)} (p = {p[init]:.2f})" for init in p.index if p[init] > REJECTED]
    said = f"Of {len(p)} initialisations, the published table fits {' and '.join(fitting) or 'none'}"
    others = f"; for the others, p is at most {p[p <= REJECTED].max():.2f}" if len(fitting) < len(p) else ""
    return headline(figure, said + others)


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
        picture = axis.imshow(grid / grid.mean(), cmap="cividis", norm=norm, interpolation="nearest")
        if grid.size <= 49:
            for (row, column), value in np.ndenumerate(grid):
                colour = "white" if norm(value / grid.mean()) < 0.5 else "black"  # on dark, on light
                text = f"{100 * value:.{0 if value >= 0.0995 else 1 if grid.mean() >= 0.005 else 2}f}"
                axis.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
        axis.set(xticks=[], yticks=[])
        axis.grid(visible=False)
        axis.spines[:].set_visible(False)
        axis.set_xlabel(f"mean {100 * grid.mean():.3g} % kept", fontsize=8)
        if sparsity == sparsities[0]:
            axis.set_title(title, fontsize=9)
        if title == titles[0]:
            axis.set_ylabel(f"sparsity {sparsity:g}", fontsize=9.5, fontweight="bold")
    bar = figure.colorbar(picture, ax=axes, shrink=0.6, pad=0.02, label="kept, relative to the tensor's mean")
    bar.set_ticks([0, 0.5, 1, 2, 3], labels=["0", "0.5", "1", "2", "3 or more"])
    middle = sparsities[len(sparsities) // 2]
    grid = maps[(maps["title"] == titles[-2]) & (maps["sparsity"] == middle)]
    grid = grid.pivot(index="row", columns="column", values="kept").to_numpy()
    ratio = grid[len(grid) // 2, len(grid) // 2] / grid[[0, 0, -1, -1], [0, -1, 0, -1]].mean()
    said = f"At sparsity {middle:g}, full 1 keeps {ratio:.1f} times as many weights from the centre"
    return headline(figure, f"{said} of the last map as from an average corner")


def units(frame: pd.DataFrame) -> Figure:
    """Kept weights into each unit, units in descending order, against the same number at random places of the tensor.

    Args:
        frame: ``layer``, ``rank``, ``mean``, ``smallest``, ``largest``, ``shuffled``.
    """
    number = frame["layer"].nunique()
    figure, axes = panels(1, number, 2.5 * number, 3.1)
    for axis, (layer, part) in zip(axes[0], frame.groupby("layer", sort=False), strict=True):
        colour = LAYER_COLOURS[layer.split(".")[0]]
        axis.fill_between(part["rank"], part["smallest"], part["largest"], color=colour, alpha=0.2, lw=0)
        axis.plot(part["rank"], part["mean"], color=colour)
        axis.plot(part["rank"], part["shuffled"], color="black", ls=":")
        ticks = [1, part["rank"].max() // 2, part["rank"].max()]
        axis.set(title=published_label(layer), xlabel="unit, by rank", xticks=ticks)
        axis.set_ylim(bottom=0)
    axes[0, 0].set_ylabel("kept weights into a unit")
    handles = [plt.Line2D([], [], color="black", ls=dash) for dash in ("-", ":")]
    names = ["SNIP (colours: layers)", "shuffled within the tensor"]
    figure.legend(handles, names, loc="outside upper center", ncols=2)
    first = frame[frame["rank"] == 1].assign(ratio=lambda own: own["mean"] / own["shuffled"])
    most = first.loc[first["ratio"].idxmax()]
    said = f"In {published_label(most['layer'])}, the unit that keeps most has {most['mean']:.0f} weights left"
    return headline(figure, f"{said}, compared with {most['shuffled']:.0f} after shuffling")


def weights(histograms: pd.DataFrame, tenths: pd.DataFrame, *, bound: float) -> Figure:
    """Weights before and after pruning, by tensor (columns); below: kept share by magnitude, for each initialisation.

    Args:
        histograms: ``init``, ``layer``, ``value``, ``before``, ``kept``; the first initialisation is drawn.
        tenths: ``init``, ``layer``, ``tenth``, ``kept``, ``low``, ``high``.
        bound: C34's upper bound on what the lowest tenth keeps, as a share of what the middle eight keep.
    """
    inits, layers = list(dict.fromkeys(histograms["init"])), list(dict.fromkeys(histograms["layer"]))
    figure, axes = panels(2, len(layers), 2.1 * len(layers), 4.6)
    for layer, part in histograms[histograms["init"] == inits[0]].groupby("layer", sort=False):
        axis = axes[0, layers.index(layer)]
        width = np.diff(part["value"]).mean()
        axis.bar(part["value"], part["before"], width, color="#d0d0d0", lw=0, label="weights before")
        axis.bar(part["value"], part["kept"], width * 0.9, color=look("snip").colour, lw=0, label="weights kept")
        axis.set(title=published_label(layer), xlabel="weight / max |weight|", xticks=[-1, 0, 1], yticks=[])
        axis.grid(visible=False)
    for column, layer in enumerate(layers):
        axis = axes[1, column]
        for i, init in enumerate(inits):
            part = tenths[(tenths["layer"] == layer) & (tenths["init"] == init)]
            bars = [100 * bar for bar in whiskers(part, "kept", "low", "high")]
            options = {"fmt": ("o-", "s--")[i % 2], "color": CATEGORIES[i % 2], "label": init_label(init)}
            axis.errorbar(part["tenth"] + 0.15 * i, 100 * part["kept"], yerr=bars, ms=3, lw=1, **options)
            if i == 0:
                middle = 100 * part["kept"].to_numpy()[1:-1].mean()
                axis.plot([0.6, 1.6], [bound * middle] * 2, color="black", lw=1.2, ls="--")
        axis.set_ylim(bottom=0)
        axis.set(xticks=[1, 5, 10], xlabel="tenth by magnitude")
    axes[0, 0].set_ylabel(f"number of weights\n({init_label(inits[0])})")
    axes[1, 0].set_ylabel("kept, %")
    ends = (axis.get_legend_handles_labels() for axis in (axes[0, 0], axes[1, 0]))
    handles, names = ([*above, *below] for above, below in zip(*ends, strict=True))
    figure.legend(handles, names, loc="outside upper center", ncols=4)
    own = tenths[tenths["init"] == inits[0]].pivot(index="layer", columns="tenth", values="kept").loc[layers]
    largest = own.iloc[:, 0].idxmax()
    said = f"SNIP keeps at most {100 * own.loc[largest].iloc[0]:.0f} % of the smallest tenth of a layer's weights ({published_label(largest)})"
    return headline(figure, f"{said}, and {100 * own.loc[largest].iloc[-1]:.0f} % of that layer's largest tenth")


def curves(curves: pd.DataFrame) -> Figure:
    """Kept share of each tensor against sparsity, a panel per network: mean and range of the seeds, prediction dashed.

    Args:
        curves: ``network``, ``layer``, ``sparsity``, ``mean``, ``smallest``, ``largest``, ``predicted``.
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
            end = 1 - last["sparsity"], 100 * last["mean"]
            axis.annotate(published_label(layer), end, xytext=(5, 0), textcoords="offset points", va="center")
            axis.plot(x, 100 * one["predicted"], color=colour, ls=(0, (3, 2)), lw=1.2)
        axis.plot([1 - s for s in sparsities], [100 * (1 - s) for s in sparsities], color=NEUTRAL, ls=":", lw=1)
        labelled = (0.05, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
        sparsity_axis(axis, sparsities, unlabelled=[s for s in sparsities if s not in labelled])
        percent_axis(axis, [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100], along="y")
        axis.set_title(network)
    shown = curves[["mean", "predicted"]].stack()
    axes[0, 0].set(ylabel="weights kept, % (log)", ylim=(80 * shown[shown > 0].min(), 130))
    last = curves[(curves["network"] == networks[0]) & (curves["sparsity"] == curves["sparsity"].max())]
    last = last.set_index("layer")["mean"] * 100
    most, least = last.idxmax(), last.idxmin()
    said = f"At sparsity {curves['sparsity'].max():g}, {published_label(most)} keeps {last[most]:.0f} %"
    return headline(figure, f"{said} of its weights, and {published_label(least)} keeps {last[least]:.1f} %")


def prediction(frame: pd.DataFrame) -> Figure:
    """Measured densities against predicted densities, one panel per rule.

    Args:
        frame: ``rule``, ``network``, ``layer``, ``measured``, ``predicted`` (fractions), ``fitted`` (whether constants were fitted on the network).
    """
    frame = frame[frame["rule"] != "uniform"].replace({"rule": {"Erdos-Renyi-kernel": "Erdős–Rényi-kernel"}})
    rules = list(dict.fromkeys(frame["rule"]))
    figure, axes = panels(1, len(rules), 3.9 * len(rules), 4.0, sharey=True)
    lowest = 100 * frame[["measured", "predicted"]].to_numpy().min()
    ends = [max(0.7 * lowest, 0.1), 130]
    looks = {True: ("network used in the fit", "o", CATEGORIES[0]), False: ("unseen network", "D", "none")}
    for axis, rule in zip(axes[0], rules, strict=True):
        axis.plot(ends, ends, color="black", lw=0.8, ls=":")
        for fitted, (label, marker, face) in looks.items():
            part = frame[(frame["rule"] == rule) & (frame["fitted"].astype(bool) == fitted)]
            x, y = ((100 * part[column]).clip(lower=ends[0]) for column in ("predicted", "measured"))
            edge = CATEGORIES[0 if fitted else 1]
            axis.plot(x, y, marker, ms=5.5, mfc=face, mec=edge, mew=1.2, alpha=0.9, label=label)
        for along in ("x", "y"):
            percent_axis(axis, [0.1, 1, 2, 5, 10, 20, 50, 100], along=along)
        axis.set(xlim=ends, ylim=ends, title=rule, xlabel="predicted density, % (log)")
    axes[0, 0].set_ylabel("SNIP's density, % (log)")
    axes[0, 0].legend(loc="lower right")
    unseen = frame[~frame["fitted"].astype(bool)]
    logs = np.log(unseen[["measured", "predicted"]].clip(lower=1e-6)).assign(rule=unseen["rule"])
    off = np.exp((logs["measured"] - logs["predicted"]).abs().groupby(logs["rule"]).median())
    said = " and ".join(f"within a factor of {off[rule]:.2f} by the {rule} rule" for rule in rules if rule in off)
    said = said.replace("closed form rule", "closed form")
    return headline(figure, f"Densities of unseen networks are typically predicted {said}")
