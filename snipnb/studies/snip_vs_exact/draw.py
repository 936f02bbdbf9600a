"""Figures of notebook 02."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from snipnb.publish.style import (
    LOOKS,
    NEUTRAL,
    PALETTE,
    REPORTED,
    density,
    look,
    panels,
    sparsity_axis,
    whiskers,
    write,
)


def salience_density(frame: pd.DataFrame) -> Figure:
    """SNIP against the exact salience on log axes, a panel per tensor; shade: how many parameters.

    Args:
        frame: One row per filled bin: ``layer``, ``log10_exact``, ``log10_snip``, ``parameters``.
    """
    layers = list(dict.fromkeys(frame["layer"]))
    layers = [x for x in layers if "bias" not in x] + [x for x in layers if "bias" in x]
    columns = (len(layers) + 1) // 2
    figure, axes = panels(2, columns, 2.15 * columns, 5.0, sharex=True, sharey=True)
    names = ["log10_exact", "log10_snip"]
    ends = frame[names].to_numpy()
    low, high = np.floor(np.quantile(ends, 0.02)), np.ceil(ends.max())
    width = np.diff(np.unique(frame["log10_exact"])).min()
    edges = np.arange(low, high + width / 2, width)
    norm = mpl.colors.LogNorm(1, frame["parameters"].max())
    for axis, layer in zip(axes.flat, layers, strict=False):
        part = frame[frame["layer"] == layer]
        mesh = density(axis, part, names, (edges, edges), (low, high), norm)
        axis.set_title(f"{layer} ({part['parameters'].sum():,})", fontsize=8.5)
        axis.set_aspect("equal")
        for ticks in (axis.xaxis, axis.yaxis):
            ticks.set_major_locator(FixedLocator([10.0**power for power in range(int(low), int(high) + 1, 2)]))
            ticks.set_minor_locator(NullLocator())
    for axis in axes.flat[len(layers) :]:
        axis.set_visible(False)
    figure.supylabel("SNIP, magnitude", fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("exact, magnitude")
    figure.colorbar(mesh, ax=axes, label="parameters in a bin", shrink=0.6, pad=0.01)
    return figure


def overlap(frame: pd.DataFrame, *, bound: float) -> Figure:
    """Overlap of the sets that SNIP and the exact salience keep, by initialisation (left) and by layer (right).

    Args:
        frame: ``panel``, ``line``, ``sparsity``, ``mean``, ``smallest``, ``largest``, ``chance``.
        bound: What the rule of C24 asks for.
    """
    titles = list(dict.fromkeys(frame["panel"]))
    figure, axes = panels(1, len(titles), 4.9 * len(titles), 3.9, sharey=True)
    looks = tuple(zip("osD^vX", (PALETTE[i] for i in (0, 1, 2, 4, 3, 5)), strict=True))
    for axis, title in zip(axes[0], titles, strict=True):
        here = frame[frame["panel"] == title]
        lines = list(dict.fromkeys(here["line"]))
        for i, line in enumerate(lines):
            part, (marker, colour) = here[here["line"] == line], looks[i % 6]
            x = (1 - part["sparsity"]) * 1.012 ** (i - (len(lines) - 1) / 2)
            options = {"color": colour, "marker": marker, "label": str(line).replace("_", " ")}
            axis.errorbar(x, part["mean"], yerr=whiskers(part), ms=4, lw=1.4, **options)
        if title == titles[0]:
            whole = here[here["line"] == lines[0]]
            axis.plot(1 - whole["sparsity"], whole["chance"], color=NEUTRAL, ls=":", label="two random sets")
            axis.axhline(bound, color="black", lw=0.9, ls="--", label=f"C24 asks for {bound:g} in the blue line")
        sparsity_axis(axis, sorted(frame["sparsity"].unique()), unlabelled=(0.15, 0.35, 0.45, 0.65))
        axis.set_title(title)
        axis.set_ylim(0, 1.02)
        axis.legend(loc="center right", bbox_to_anchor=(1, 0.45))
    axes[0, 0].set_ylabel("overlap of kept sets\n(intersection over union)")
    return figure


def batches(frame: pd.DataFrame) -> Figure:
    """Rank correlation and overlap against the number of images that saliences are taken over.

    Args:
        frame: One row per batch and comparison: ``images``, ``comparison``, ``spearman``, ``overlap``.
    """
    names = {"spearman": "rank correlation (Spearman)", "overlap": "overlap of kept sets"}
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.9), layout="constrained")
    looks = [(PALETTE[3], "D"), *((look(name).colour, look(name).marker) for name in ("snip", "exact"))]
    for axis, (column, label) in zip(axes, names.items(), strict=True):
        for (comparison, part), (colour, marker) in zip(frame.groupby("comparison", sort=False), looks, strict=True):
            found = part.groupby("images")[column].agg(["mean", "min", "max"])
            options = {"color": colour, "marker": marker, "ms": 4.5, "lw": 1.4, "label": comparison}
            axis.errorbar(found.index, found["mean"], yerr=whiskers(found, "mean", "min", "max"), **options)
        axis.set_xscale("log")
        axis.set_ylim(0, 1.03)
        axis.set_xlabel("images in the batch")
        axis.set_ylabel(label)
    axes[1].legend(loc="lower right")
    return figure


def float32_steps(points: pd.DataFrame, kept: pd.DataFrame, *, step: float) -> Figure:
    """Saliences from differences of float32 losses against exact ones (left); what that does to kept sets (right).

    Args:
        points: One row per filled bin: ``log10_exact``, ``difference`` (in steps), ``parameters``.
        kept: ``sparsity``, ``published``, ``snip`` (overlaps with exact).
        step: Distance between float32 numbers at the loss.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.0), layout="constrained")
    norm = mpl.colors.LogNorm(1, points["parameters"].max())
    order = points.sort_values("parameters")
    shade = {"c": order["parameters"], "norm": norm, "cmap": "viridis_r"}
    x, y = 10 ** order["log10_exact"], order["difference"] * step
    dots = left.scatter(x, y, **shade, s=7, marker="s", linewidths=0, rasterized=True)
    limit = points["difference"].max() * step
    line = np.geomspace(10 ** points["log10_exact"].min(), limit, 200)
    left.plot(line, line, color="black", lw=0.9, ls=":", label="equal")
    left.axvline(step, color=NEUTRAL, lw=0.9, ls="--")
    write(left, "one step", (step, 1), (-3, -10), xycoords=("data", "axes fraction"), ha="right")
    left.set_xscale("log")
    left.set_yscale("symlog", linthresh=step, linscale=0.6)
    left.set_xlabel("exact salience, magnitude")
    left.set_ylabel("difference of two float32 losses, magnitude")
    left.set_ylim(bottom=-step / 3)
    figure.colorbar(dots, ax=left, label="parameters", shrink=0.8)
    x = 1 - kept["sparsity"]
    right.plot(x, kept["snip"], color=look("snip").colour, marker=look("snip").marker, label="SNIP and exact")
    right.plot(x, kept["published"], color=PALETTE[3], marker="v", ls="--", label="float32 differences and exact")
    sparsity_axis(right, list(kept["sparsity"]), unlabelled=(0.15, 0.25, 0.35, 0.45, 0.65))
    right.set_ylabel("overlap of kept sets")
    right.set_ylim(0, 1.02)
    right.legend(loc="lower left")
    return figure


def figure1(frame: pd.DataFrame, reported: pd.DataFrame, *, top: float) -> Figure:
    """The write-up's Figure 1: error rate against sparsity, ours in one panel and the published curves in the other.

    Args:
        frame: ``criterion``, ``sparsity``, ``mean``, ``smallest``, ``largest``, in percent.
        reported: ``criterion``, ``sparsity``, ``error_percent``, ``low``, ``high``; empty where a curve runs off the plot.
        top: Upper end of the axis, in percent; means beyond it are written at the edge.
    """
    published = reported.rename(columns={"error_percent": "mean", "low": "smallest", "high": "largest"})
    figure, axes = plt.subplots(1, 2, figsize=(9.8, 4.4), sharey=True, layout="constrained")
    titles = ("regenerated (black rings: published means)", "published (mean and range of 10 runs)")
    for axis, title, curves in zip(axes, titles, (frame, published), strict=True):
        criteria = list(dict.fromkeys(curves["criterion"]))
        for i, criterion in enumerate(criteria):
            part = curves[curves["criterion"] == criterion].sort_values("sparsity")
            shift = 1.012 ** (i - (len(criteria) - 1) / 2)  # bars stand side by side
            options = {**look(criterion).line, "ms": 4.5, "lw": 1.5, "elinewidth": 1}
            axis.errorbar((1 - part["sparsity"]) * shift, part["mean"], yerr=whiskers(part), **options)
            if axis is axes[0]:
                rings = published[published["criterion"] == criterion]
                axis.plot((1 - rings["sparsity"]) * shift, rings["mean"], **REPORTED, ms=7.5, mew=0.9, zorder=5)
        _beyond(axis, curves, top)
        axis.set_title(title)
        sparsity_axis(axis, sorted(frame["sparsity"].unique()), unlabelled=(0.15, 0.25, 0.45, 0.65))
    axes[0].set_ylim(0, top)
    axes[0].set_ylabel("error rate on scored images, %")
    axes[0].legend(loc="upper left", bbox_to_anchor=(0, 0.8))
    return figure


def _beyond(axis: Axes, curves: pd.DataFrame, top: float) -> None:
    """Mark means above the axis by an arrow at its edge, with their value; a line for each criterion."""
    high = curves[curves["mean"] > top]
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
    for line, (criterion, part) in enumerate(high.groupby("criterion", sort=False)):
        options: dict[str, Any] = {
            "ha": "center",
            "va": "center",
            "fontsize": 7,
            "color": look(criterion).colour,
            "zorder": 6,
        }
        for sparsity, mean in zip(part["sparsity"], part["mean"], strict=True):
            text, place = f"\u2191{mean:.{1 if mean < 10 else 0}f}", (1 - sparsity, top * (0.97 - 0.055 * line))
            axis.annotate(text, place, bbox=box, **options)


def differences(pairs: pd.DataFrame, tests: pd.DataFrame, *, margin: float) -> Figure:
    """Error rate less that of the exact salience, pair by pair (left), and what C25 judges (right).

    Args:
        pairs: ``criterion``, ``sparsity``, ``seed``, ``difference``, in points.
        tests: ``criterion``, ``mean_difference``, ``low95``, ``high95``, ``equivalence_p``.
        margin: Of equivalence, in points.
    """
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9.8, 3.9), layout="constrained", sharey=True, width_ratios=(2.4, 1)
    )
    criteria = [c for c in LOOKS if c in set(pairs["criterion"])]
    linear = 4 * margin
    for axis in (left, right):
        axis.axhspan(-margin, margin, color="#d9d9d9", lw=0, zorder=0)
        axis.axhline(0, color="black", lw=0.8)
        axis.set_yscale("symlog", linthresh=linear, linscale=2)
    for i, criterion in enumerate(criteria):
        part, style = pairs[pairs["criterion"] == criterion], look(criterion)
        shift = 1.015 ** (i - (len(criteria) - 1) / 2)
        options = {"color": style.colour, "ms": 4, "alpha": 0.75, "mew": 0}
        left.plot((1 - part["sparsity"]) * shift, part["difference"], style.marker, **options)
        means = part.groupby("sparsity")["difference"].mean()
        left.plot((1 - means.index) * shift, means, color=style.colour, ls=style.dash, lw=1.2, label=style.label)
        test = tests[tests["criterion"] == criterion]
        bars = whiskers(test, "mean_difference", "low95", "high95")
        right.errorbar([i], test["mean_difference"], yerr=bars, fmt=style.marker, color=style.colour, ms=6, capsize=3)
    ticks = [t * margin for t in (-4, -2, -1, 0, 1, 2, 4)] + [t for t in (1, 3, 10, 30, 90) if t > 2 * linear]
    left.set_yticks(ticks, [f"{t:.2g}" for t in ticks])
    left.set_ylim(bottom=min(-1.5 * margin, 1.15 * pairs["difference"].min()))
    left.yaxis.set_minor_locator(NullLocator())
    sparsity_axis(left, sorted(pairs["sparsity"].unique()), unlabelled=(0.15, 0.25, 0.45, 0.65))
    left.set_ylabel("error rate less that of the\nexact salience, points")
    left.set_title("pair by pair: a marker is a seed, lines are means")
    left.legend(loc="upper left")
    right.set_xticks(range(len(criteria)), [look(c).label for c in criteria])
    right.set_xlim(-0.6, len(criteria) - 0.4)
    right.grid(axis="x", visible=False)
    right.set_title("mean over 0.75 to 0.96, 95 %")
    return figure
