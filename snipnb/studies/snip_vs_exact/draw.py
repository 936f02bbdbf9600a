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

from snipnb.publish.sentences import fill
from snipnb.publish.style import (
    CATEGORIES,
    LAYER_COLOURS,
    LAYER_LINES,
    LOOKS,
    NEUTRAL,
    density,
    headline,
    init_label,
    look,
    panels,
    sparsity_axis,
    whiskers,
    with_minus,
    write,
)

LEAST_SHOWN = 0.75  # smallest sparsity whose pairs are drawn and judged (C25)


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
    near = (frame["log10_snip"] - frame["log10_exact"]).abs() < 1.5 * width  # the same bin, or the next one
    share = frame.loc[near, "parameters"].sum() / frame["parameters"].sum()

    said = f"SNIP is within a factor of {10 ** (2 * width):.1f} of the exact salience"
    return headline(figure, f"{said} for {100 * share:.0f} % of the parameters shown")


def overlap(frame: pd.DataFrame, *, bound: float) -> Figure:
    """Overlap of the sets that SNIP and the exact salience keep, by initialisation (left) and by layer (right).

    Args:
        frame: ``panel``, ``line``, ``sparsity``, ``mean``, ``smallest``, ``largest``, ``chance``; the first line is the one that C24 judges.
        bound: C24's lower bound on the overlap.
    """
    titles = list(dict.fromkeys(frame["panel"]))
    figure, axes = panels(1, len(titles), 4.9 * len(titles), 3.9, sharey=True)
    looks = tuple(zip("osD^vX", CATEGORIES, strict=True))
    judged = frame[(frame["panel"] == titles[0]) & (frame["line"] == frame["line"].iloc[0])]
    worst = judged.loc[judged["mean"].idxmin()]
    for axis, title in zip(axes[0], titles, strict=True):
        here = frame[frame["panel"] == title]
        lines = list(dict.fromkeys(here["line"]))
        for i, line in reversed([*enumerate(lines)]):  # the judged one on top
            part, (marker, colour), layer = here[here["line"] == line], looks[i % 6], str(line).replace(" ", "")
            colour, (marker, dash) = LAYER_COLOURS.get(layer, colour), LAYER_LINES.get(layer, (marker, "-"))
            x = (1 - part["sparsity"]) * 1.012 ** (i - (len(lines) - 1) / 2)
            first = title == titles[0] and i == 0
            options = {"color": colour, "marker": marker, "ls": dash, "label": init_label(str(line))}
            axis.errorbar(x, part["mean"], yerr=whiskers(part), ms=4, lw=2.4 if first else 1.2, **options)
        sparsity_axis(axis, sorted(frame["sparsity"].unique()), unlabelled=(0.15, 0.35, 0.45, 0.65))
        axis.set_title(title.replace("pytorch", init_label("pytorch")))
        axis.legend(loc="lower left", ncols=2)
    left, low = axes[0, 0], frame["smallest"].min()
    left.set_ylim(min(0.02 * np.floor(50 * low) - 0.04, 0.76), 1.01)
    left.axhspan(left.get_ylim()[0], bound, color="#efefef", zorder=0)
    first, last = (judged.sort_values("sparsity").iloc[k] for k in (0, -1))
    chance = f"{first['chance']:.2f} at {first['sparsity']:g}, {last['chance']:.2f} at {last['sparsity']:g}"
    text = f"below {bound:g}, the bound of C24\n(two random sets: {chance})"
    write(left, text, (0, bound), (4, -4), xycoords=("axes fraction", "data"), va="top")
    place = 1 - worst["sparsity"], worst["mean"]
    write(left, f"{worst['mean']:.3f}", place, (-8, -4), ha="right", va="top", color="black", fontsize=8.5)
    left.set_ylabel("overlap of kept sets\n(intersection over union)")
    said = f"Over the whole network, the sets kept by SNIP and by exact salience overlap by {worst['mean']:.2f} at sparsity"
    return headline(figure, f"{said} {worst['sparsity']:g}, and by more at all other sparsities")


def batches(frame: pd.DataFrame) -> Figure:
    """Rank correlation and overlap against the number of images that saliences are taken over.

    Args:
        frame: One row per batch and comparison: ``images``, ``comparison``, ``spearman``, ``overlap``.
    """
    names = {"spearman": "rank correlation (Spearman)", "overlap": "overlap of kept sets"}
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.9), layout="constrained")
    looks = [(CATEGORIES[1], "D"), *((look(name).colour, look(name).marker) for name in ("snip", "exact"))]
    sizes = sorted(frame["images"].unique())
    for axis, (column, label) in zip(axes, names.items(), strict=True):
        for (comparison, part), (colour, marker) in zip(frame.groupby("comparison", sort=False), looks, strict=True):
            found = part.groupby("images")[column].agg(["mean", "min", "max"])
            options = {"color": colour, "marker": marker, "ms": 4.5, "lw": 1.4, "label": comparison}
            axis.errorbar(found.index, found["mean"], yerr=whiskers(found, "mean", "min", "max"), **options)
        axis.set(xscale="log", xlabel="images in the batch", ylim=(0, 1.03), ylabel=label)
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize=7.5)
        axis.xaxis.set_minor_locator(NullLocator())
    axes[1].legend(loc="lower right")
    few = min(sizes, key=lambda size: abs(size - 100))
    means = frame[frame["images"] == few].groupby("comparison", sort=False)["overlap"].mean()
    said = f"From {few:,} images, SNIP's kept set overlaps by {means.iloc[0]:.2f} with the exact set of the same images"
    return headline(figure, f"{said}, and by {means.iloc[1]:.2f} with the exact set of all images")


def float32_steps(points: pd.DataFrame, kept: pd.DataFrame, *, step: float) -> Figure:
    """Differences of float32 losses against exact saliences (left), and their effect on kept sets (right).

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
    left.set(xscale="log", xlabel="exact salience, magnitude", ylabel="difference of two float32 losses, magnitude")
    left.set_yscale("symlog", linthresh=step, linscale=0.6)
    left.set_ylim(bottom=-step / 3)
    left.legend(loc="upper left")
    figure.colorbar(dots, ax=left, label="parameters", shrink=0.8)
    x = 1 - kept["sparsity"]
    right.plot(x, kept["snip"], color=look("snip").colour, marker=look("snip").marker, label="SNIP and exact")
    right.plot(x, kept["published"], color=CATEGORIES[1], marker="v", ls="--", label="float32 differences and exact")
    sparsity_axis(right, list(kept["sparsity"]), unlabelled=(0.15, 0.25, 0.35, 0.45, 0.65))
    lowest = min(0.8, kept[["snip", "published"]].min().min() - 0.05)
    right.set(ylim=(lowest, 1.01), ylabel="overlap of kept sets")
    right.legend(loc="lower left")
    said = "Differences of float32 losses come in steps of {step:power}; the sets that they keep overlap by {least:.2f} or more with the exact sets"
    return headline(figure, fill(said, {"step": step, "least": kept["published"].min()}))


def figure1(frame: pd.DataFrame, reported: pd.DataFrame, levels: pd.DataFrame, *, top: float) -> Figure:
    """The write-up's Figure 1: error rate against sparsity, over the published means and ranges, at the best epoch (left) and the last.

    If every run's best epoch is its last one, there is one panel.

    Args:
        frame: ``criterion``, ``sparsity``, ``n``, ``mean``, ``smallest``, ``largest``, in percent, and ``way``, the published one first.
        reported: ``criterion``, ``sparsity``, ``error_percent``, ``low``, ``high``; empty where a curve runs off the plot.
        levels: ``criterion``, ``sparsity``, ``mean``, ``reported``: best epochs where there is a published mean.
        top: Upper end of the axis, in percent; means beyond it are written at the edge.
    """
    ways, criteria = list(dict.fromkeys(frame["way"])), list(dict.fromkeys(frame["criterion"]))
    rates = [frame.loc[frame["way"] == way, ["mean", "smallest", "largest"]].to_numpy() for way in ways]
    if all(np.array_equal(rates[0], other) for other in rates):  # few epochs: the last one is the best one of every run
        ways = ways[-1:]
    titles = ["best epoch (of each run its last)"] if len(ways) == 1 else ways
    figure, axes = panels(1, len(ways), 3.4 + 3.8 * len(ways), 4.4, sharey=True)
    for axis, way, title in zip(axes[0], ways, titles, strict=True):
        here = frame[frame["way"] == way]
        for i, criterion in enumerate(criteria):
            part = here[here["criterion"] == criterion].sort_values("sparsity")
            shift = 1.012 ** (i - (len(criteria) - 1) / 2)  # bars stand side by side
            options = {**look(criterion).line, "ms": 4, "lw": 1.6, "elinewidth": 1, "zorder": 3}
            axis.errorbar((1 - part["sparsity"]) * shift, part["mean"], yerr=whiskers(part), **options)
            band, colour = reported[reported["criterion"] == criterion].dropna(), look(criterion).colour
            axis.fill_between(1 - band["sparsity"], band["low"], band["high"], color=colour, alpha=0.15, lw=0)
            axis.plot(1 - band["sparsity"], band["error_percent"], color=colour, lw=0.9, ls=(0, (1, 1.5)), zorder=2)
        _beyond(axis, here, top)
        sparsity_axis(axis, sorted(frame["sparsity"].unique()), unlabelled=(0.15, 0.25, 0.45, 0.65))
        axis.set(ylim=(0, top), title=title)
    axes[0, 0].set_ylabel("error rate on scored images, %")
    handles, names = axes[0, 0].get_legend_handles_labels()
    handles.append(plt.Rectangle((0, 0), 1, 1, color=NEUTRAL, alpha=0.2, lw=0))
    legend = [*names, "published (best epochs): mean, dotted, and range"]
    figure.legend(handles, legend, loc="outside upper center", ncols=3 if len(ways) == 1 else len(legend))
    last = levels[levels["sparsity"] == levels["sparsity"].max()]
    said = [f"{look(r.criterion).label} {r.mean:.2f} % (published {r.reported:.2f} %)" for r in last.itertuples()]
    return headline(figure, f"Best epochs at sparsity {last['sparsity'].iloc[0]:g}: {', '.join(said)}")


def _beyond(axis: Axes, curves: pd.DataFrame, top: float) -> None:
    """Mark means above the axis by an arrow at its edge, with their value; a line for each criterion."""
    high = curves[curves["mean"] > top]
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
    for line, (criterion, part) in enumerate(high.groupby("criterion", sort=False)):
        for sparsity, mean in zip(part["sparsity"], part["mean"], strict=True):
            text, place = f"\u2191{mean:.{1 if mean < 10 else 0}f}", (1 - sparsity, top * (0.97 - 0.055 * line))
            centred: dict[str, Any] = {"ha": "center", "va": "center", "bbox": box}
            axis.annotate(text, place, fontsize=7, fontweight="bold", color=look(criterion).colour, zorder=6, **centred)


def differences(pairs: pd.DataFrame, tests: pd.DataFrame, *, margin: float) -> Figure:
    """Error rate minus exact salience's error rate, pair by pair (left), and what C25 judges (right).

    Args:
        pairs: ``criterion``, ``sparsity``, ``seed``, ``difference``, in percentage points.
        tests: ``criterion``, ``n``, ``mean_difference``, ``low95``, ``high95``, ``equivalence_p``.
        margin: Of equivalence, in percentage points.
    """
    figure, ((left, right),) = panels(1, 2, 9.8, 3.9, sharey=True, width_ratios=(2.4, 1))
    criteria = [c for c in LOOKS if c in set(pairs["criterion"])]
    shown = pairs[pairs["sparsity"] >= LEAST_SHOWN]
    for axis in (left, right):
        axis.axhspan(-margin, margin, color="#d9d9d9", lw=0, zorder=0)
        axis.axhline(0, color="black", lw=0.8)
        axis.set_yscale("symlog", linthresh=2 * margin, linscale=1.5)
    for i, criterion in enumerate(criteria):
        part, style = shown[shown["criterion"] == criterion], look(criterion)
        shift = 1.015 ** (i - (len(criteria) - 1) / 2)
        for _, own in part.sort_values("sparsity").groupby("seed"):
            left.plot((1 - own["sparsity"]) * shift, own["difference"], color=style.colour, lw=0.7, alpha=0.6)
        means = part.groupby("sparsity")["difference"].mean()
        options = {"color": style.colour, "ls": style.dash, "marker": style.marker, "ms": 5, "lw": 1.8}
        left.plot((1 - means.index) * shift, means, label=style.label, **options)
        test = tests[tests["criterion"] == criterion]
        bars, mean = whiskers(test, "mean_difference", "low95", "high95"), test["mean_difference"].item()
        right.errorbar([i], [mean], yerr=bars, fmt=style.marker, color=style.colour, ms=6, capsize=3)
        write(right, with_minus(f"{mean:+.2g}"), (i, mean), (8, -3))
    ticks = [-margin, 0, margin, *(t for t in (1, 3, 10, 30, 90) if t > 3 * margin)]
    left.set_yticks(ticks, [with_minus(f"{t:+.2f}") if abs(t) == margin else f"{t:g}" for t in ticks])
    reach = pd.concat([shown["difference"], tests["low95"], tests["high95"]])  # one seed has no interval
    left.set_ylim(min(1.3 * reach.min(), -1.5 * margin), 1.4 * reach.max())
    left.yaxis.set_minor_locator(NullLocator())
    sparsity_axis(left, sorted(shown["sparsity"].unique()), unlabelled=())
    left.set(ylabel="error rate minus exact salience's\nerror rate, percentage points")
    left.set(title="thin lines: seeds; thick: means; grey: margin")
    left.legend(loc="upper left")
    right.set_xticks(range(len(criteria)), [look(c).label for c in criteria])
    right.set(xlim=(-0.6, len(criteria) - 0.2), title=f"mean over {LEAST_SHOWN:g} to {shown['sparsity'].max():g}, 95 %")
    right.grid(axis="x", visible=False)
    test = tests.set_index("criterion").loc["snip"]
    said = f"Error rate, SNIP minus exact salience: {test['mean_difference']:+.3f} percentage points"
    if test["n"] > 1:
        said += f" [{test['low95']:+.3f}, {test['high95']:+.3f}]"
    return headline(figure, f"{said} (margin {margin:.2f}, seeds: {test['n']:.0f})")
