"""Figures of notebook 07: agreement over families of networks, VGG16 by depth, what is kept of its layers."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from snipnb.publish.published import published_label
from snipnb.publish.style import CATEGORIES, NEUTRAL, headline, look, panels, percent_axis, whiskers, with_minus


def sweep(frame: pd.DataFrame, fits: pd.DataFrame) -> Figure:
    """Rank correlation of SNIP and exact salience over families of networks: deeper ones (left), wider ones (right).

    Args:
        frame: ``family``, ``value``, ``layers``, ``seed``, ``spearman``, ``train_mode_spearman``.
        fits: ``family``, ``per``, ``slope``, ``low95``, ``high95``.
    """
    families = list(dict.fromkeys(frame["family"]))
    deeper = [name for name in families if frame.loc[frame["family"] == name, "layers"].nunique() > 1]
    figure, axes = panels(1, 2, 9.8, 4.2, sharey=True, width_ratios=(1.7, 1))
    slopes = fits.set_index("family")
    for axis, names in zip(axes[0], (deeper, [f for f in families if f not in deeper]), strict=True):
        for i, family in enumerate(names):
            part, order = frame[frame["family"] == family], families.index(family)
            values = sorted(part["value"].unique())
            place = {value: k + 0.06 * (i - (len(names) - 1) / 2) for k, value in enumerate(values)}
            means = part.groupby("value")["spearman"].mean()
            colour, marker = CATEGORIES[order % 5], "osD^v"[order % 5]
            fit = slopes.loc[family]
            more, end = names == deeper, f"[{_slope(fit['low95'])}, {_slope(fit['high95'])}]"
            label = f"{family}: {_slope(fit['slope'])} per {fit['per']} {end}"
            axis.plot([place[v] for v in means.index], means, color=colour, lw=1.5, marker=marker, label=label)
            axis.plot(part["value"].map(place), part["spearman"], ".", color=colour, ms=4, alpha=0.5, mew=0)
            if (part["spearman"] - part["train_mode_spearman"]).abs().max() > 1e-3:  # batch norm
                train = part.groupby("value")["train_mode_spearman"].mean()
                label = f"{family}: SNIP in training mode"
                axis.plot([place[v] for v in train.index], train, color=colour, lw=1.2, ls=":", label=label)
        layers = part.groupby("value")["layers"].first()
        axis.set_xticks(range(len(values)), [f"{v:g}\n({layers[v]})" if more else f"{v:g}" for v in values])
        axis.set_xlabel("additional layers (layers in total)" if more else "width relative to LeNet-5")
    lines = [line for axis in axes[0] for line in axis.get_legend_handles_labels()[0]]
    figure.legend(handles=lines, loc="outside upper center", ncols=2)
    axes[0, 0].set_ylabel("rank correlation with exact salience")
    low = frame[["spearman", "train_mode_spearman"]].min().min()
    axes[0, 0].set_ylim(low - 0.03, 1.01)
    most = slopes.loc[slopes["slope"].abs().idxmax()]
    end = f"{most['slope']:+.3f} per {most['per']} [{most['low95']:+.3f}, {most['high95']:+.3f}]"
    others = slopes.drop(most.name).groupby("per", sort=False)["slope"].agg(lambda own: own.abs().max())
    said = f"Agreement changes most in the family \u201c{most.name}\u201d: {end}"
    most_of_others = " and ".join(f"{value:.4f} per {per}" for per, value in others.items())
    return headline(figure, f"{said}; in the other families by at most {most_of_others}")


def _slope(value: float) -> str:
    """A slope with its sign, or 0.0000 without one."""
    return with_minus(f"{value:+.4f}") if round(value, 4) else "0.0000"


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
    depths = weights.loc[some, "layer"].map(place)
    dots = left.scatter(e[some], s[some], c=depths, cmap="viridis", s=14, linewidths=0, alpha=0.85)
    ends = [min(e[some].min(), s[some].min()) / 2, max(e[some].max(), s[some].max()) * 2]
    left.plot(ends, ends, color="black", lw=0.8, ls=":")
    left.set(xscale="log", yscale="log", xlabel="exact salience, magnitude", ylabel="SNIP, magnitude")
    bar = figure.colorbar(dots, ax=left, shrink=0.85)
    some = depth.iloc[[0, len(depth) // 2, -1]]
    bar.set_ticks(some["place"], labels=[published_label(name) for name in some["layer"]])
    middle = "median_relative_difference"
    options = {"fmt": "o-", "color": look("snip").colour, "ms": 4.5, "lw": 1.2, "elinewidth": 1, "capsize": 2}
    bars = [100 * bar for bar in whiskers(depth, middle, "lower", "upper")]
    right.errorbar(depth["place"], 100 * depth[middle], yerr=bars, **options)
    right.axhline(100, color=NEUTRAL, lw=0.8, ls=":")
    percent_axis(right, [1, 3, 10, 30, 100, 300, 1000], along="y")
    right.set_xticks(depth["place"], [published_label(name) for name in depth["layer"]], rotation=60, fontsize=7)
    right.set_ylabel("difference, % of the exact salience\n(median, quartiles; log)")
    right.grid(axis="x", visible=False)
    first, last = depth.iloc[0], depth.iloc[-1]
    said = f"For sampled weights of VGG16, SNIP's median error is {100 * first[middle]:.0f} % in {published_label(first['layer'])}"
    return headline(figure, f"{said} and {100 * last[middle]:.0f} % in {published_label(last['layer'])}")


def layers(frame: pd.DataFrame, *, sparsity: float) -> Figure:
    """What SNIP keeps of each weight tensor of VGG16, for three ways in which batch norm acts while SNIP is computed.

    Args:
        frame: ``mode``, ``layer``, ``kept_percent``.
        sparsity: Of the whole network.
    """
    names = {
        "eval": ("statistics set from the data", look("snip").colour, "o", "-"),
        "train": ("training mode", look("snip_train_mode").colour, "p", (0, (1, 2))),
        "untouched statistics": ("untouched statistics (0 and 1)", CATEGORIES[1], "v", (0, (4, 2))),
    }
    layers = list(dict.fromkeys(frame["layer"]))
    figure, axis = plt.subplots(figsize=(8.6, 3.8), layout="constrained")
    floor = 10 ** np.floor(np.log10(frame.loc[frame["kept_percent"] > 0, "kept_percent"].min()))
    for mode, (label, colour, marker, dash) in names.items():
        part = frame[frame["mode"] == mode].set_index("layer").loc[layers]
        shown = part["kept_percent"].clip(lower=floor / 3)
        axis.plot(range(len(layers)), shown, color=colour, marker=marker, ls=dash, ms=5, lw=1.3, label=label)
    axis.axhline(100 * (1 - sparsity), color=NEUTRAL, lw=0.8, ls=":", label="same share of every layer")
    axis.set_yscale("log")
    axis.set_xticks(range(len(layers)), [published_label(name) for name in layers], rotation=45, fontsize=7.5)
    decades = [10.0**k for k in range(int(np.log10(floor)), 3)]
    axis.set_yticks([floor / 3, *decades], ["0", *(np.format_float_positional(d, trim="-") for d in decades)])
    axis.minorticks_off()
    axis.set_ylabel(f"weights kept at sparsity {sparsity:g}, %")
    axis.legend()
    axis.grid(axis="x", visible=False)
    gone = {mode: (part["kept_percent"] == 0).sum() for mode, part in frame.groupby("mode")}
    said = f"With batch norm's statistics untouched, SNIP removes {gone['untouched statistics']} of {len(layers)} layers entirely"
    return headline(figure, f"{said} at sparsity {sparsity:g}, and {gone['eval']} with statistics set from the data")
