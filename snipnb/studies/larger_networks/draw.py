"""Figures of notebook 07: agreement over families of networks, VGG16 by depth, what is kept of its layers."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from snipnb.networks import published_label
from snipnb.publish.style import NEUTRAL, PALETTE, look, panels, whiskers


def sweep(frame: pd.DataFrame, fits: pd.DataFrame) -> Figure:
    """Rank correlation of SNIP and exact salience over families of networks: a panel each, a dot per network.

    Args:
        frame: ``family``, ``value``, ``layers``, ``seed``, ``spearman``, ``train_mode_spearman``.
        fits: ``family``, ``per``, ``slope``, ``low95``, ``high95``.
    """
    families = list(dict.fromkeys(frame["family"]))
    figure, axes = panels(1, len(families), 2.45 * len(families), 3.5, sharey=True)
    for axis, family in zip(axes[0], families, strict=True):
        part = frame[frame["family"] == family]
        values = sorted(part["value"].unique())
        place = dict(zip(values, range(len(values)), strict=True))
        columns = {"spearman": "snip"}
        if (part["spearman"] - part["train_mode_spearman"]).abs().max() > 1e-3:  # batch norm
            columns["train_mode_spearman"] = "snip_train_mode"
        for column, criterion in columns.items():
            style = look(criterion)
            means = part.groupby("value")[column].mean()
            axis.plot([place[v] for v in means.index], means, color=style.colour, ls=style.dash, lw=1.3)
            axis.plot(part["value"].map(place), part[column], style.marker, color=style.colour, ms=4, alpha=0.7, mew=0)
        fit = fits[fits["family"] == family].iloc[0]
        slope = f"slope {fit['slope']:+.4f} per {fit['per']}\n[{fit['low95']:.4f}, {fit['high95']:.4f}]"
        axis.set_title(f"{family}\n{slope}", fontsize=8)
        layers = part.groupby("value")["layers"].first()
        shown = [f"{v:g}" if layers.nunique() == 1 else f"{v:g}\n({layers[v]})" for v in values]
        axis.set_xticks(range(len(values)), shown)
        axis.set_xlim(-0.4, len(values) - 0.6)
        axis.set_xlabel("times" if layers.nunique() == 1 else "more (layers in all)")
    axes[0][0].set_ylabel("rank correlation with exact salience")
    axes[0][0].set_ylim(top=1.005)
    handles = [plt.Line2D([], [], **look(criterion).line, ms=4) for criterion in ("snip", "snip_train_mode")]
    axes[0][0].legend(handles, ["SNIP", "SNIP in training mode"], loc="lower left")
    return figure


def vgg(sample: pd.DataFrame, depth: pd.DataFrame) -> Figure:
    """VGG16: SNIP against exact salience of the drawn weights (left), and the typical difference by layer (right).

    Args:
        sample: ``layer``, ``exact``, ``snip``; one row per drawn parameter.
        depth: ``layer``, ``place``, ``median_relative_difference``, ``lower``, ``upper``, ``spearman``.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.2, 4.2), layout="constrained", width_ratios=(1, 1.25))
    weights = sample[sample["layer"].isin(depth["layer"])]
    place = depth.set_index("layer")["place"]
    e, s = weights["exact"].abs(), weights["snip"].abs()
    some = (e > 0) & (s > 0)
    dots = left.scatter(
        e[some], s[some], c=weights.loc[some, "layer"].map(place), cmap="viridis", s=14, linewidths=0, alpha=0.85
    )
    ends = [min(e[some].min(), s[some].min()) / 2, max(e[some].max(), s[some].max()) * 2]
    left.plot(ends, ends, color="black", lw=0.8, ls=":")
    left.set_xscale("log")
    left.set_yscale("log")
    left.set_xlabel("exact salience, magnitude")
    left.set_ylabel("SNIP, magnitude")
    figure.colorbar(dots, ax=left, label="layer", shrink=0.85)
    middle = "median_relative_difference"
    options = {"fmt": "o-", "color": PALETTE[0], "ms": 4.5, "lw": 1.2, "elinewidth": 1, "capsize": 2}
    right.errorbar(depth["place"], depth[middle], yerr=whiskers(depth, middle, "lower", "upper"), **options)
    right.axhline(1, color=NEUTRAL, lw=0.8, ls=":")
    right.set_yscale("log")
    right.set_xticks(depth["place"], [published_label(name) for name in depth["layer"]], rotation=60, fontsize=7)
    right.xaxis.set_minor_locator(NullLocator())
    right.set_ylabel("difference relative to exact salience\n(median, quartiles)")
    right.grid(axis="x", visible=False)
    return figure


def layers(frame: pd.DataFrame, *, sparsity: float) -> Figure:
    """What SNIP keeps of each weight tensor of VGG16, by how batch norm acts while it is computed.

    Args:
        frame: ``mode``, ``layer``, ``kept_percent``.
        sparsity: Of the whole network.
    """
    names = {
        "eval": ("statistics set from the data", look("snip").colour, "o", "-"),
        "train": ("training mode", look("snip_train_mode").colour, "p", (0, (1, 2))),
        "untouched statistics": ("statistics 0 and 1", PALETTE[3], "v", (0, (4, 2))),
    }
    layers = list(dict.fromkeys(frame["layer"]))
    figure, axis = plt.subplots(figsize=(8.6, 3.8), layout="constrained")
    floor = 10 ** np.floor(np.log10(frame.loc[frame["kept_percent"] > 0, "kept_percent"].min()))
    for mode, (label, colour, marker, dash) in names.items():
        part = frame[frame["mode"] == mode].set_index("layer").loc[layers]
        shown = part["kept_percent"].clip(lower=floor / 3)
        axis.plot(range(len(layers)), shown, color=colour, marker=marker, ls=dash, ms=5, lw=1.3, label=label)
    axis.axhline(100 * (1 - sparsity), color=NEUTRAL, lw=0.8, ls=":", label="all layers alike")
    axis.set_yscale("log")
    axis.set_xticks(range(len(layers)), [published_label(name) for name in layers], rotation=45, fontsize=7.5)
    axis.xaxis.set_minor_locator(NullLocator())
    decades = [10.0**k for k in range(int(np.log10(floor)), 3)]
    axis.set_yticks([floor / 3, *decades], ["0", *(np.format_float_positional(d, trim="-") for d in decades)])
    axis.yaxis.set_minor_locator(NullLocator())
    axis.set_ylabel(f"weights kept at sparsity {sparsity:g}, %")
    axis.legend()
    axis.grid(axis="x", visible=False)
    return figure
