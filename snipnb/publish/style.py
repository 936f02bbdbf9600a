"""House figures: one style, one look per criterion, one function per figure. Functions take frames and return a figure."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from snipnb._files import write_atomically
from snipnb.pruning.criteria import CRITERIA, Criterion

PALETTE = sns.color_palette("colorblind").as_hex()
REPORTED: dict[str, Any] = {
    "marker": "o",
    "markerfacecolor": "none",
    "markeredgecolor": "black",
    "linestyle": "none",
    "color": "black",
}
NEUTRAL = "#5a5a5a"
PNG_DPI = 200
MOST_LOST = 0.08  # of 255, on average over a picture, for fewer colours


def look(criterion: str) -> Criterion:
    """The look of a criterion (``label``, ``colour``, ``marker``, ``dash``); an unknown one is an error, never a surprise colour."""
    if criterion not in CRITERIA:
        raise ValueError(f"there is no look for criterion {criterion!r}; there are {', '.join(CRITERIA)}")
    return CRITERIA[criterion]


def use_house_style() -> None:
    """The one style of all figures, whatever the user's own matplotlibrc says."""
    backend = mpl.rcParams["backend"]
    mpl.rcParams.update(mpl.rcParamsDefault)
    mpl.rcParams["backend"] = backend
    sns.set_theme(style="ticks", palette=PALETTE)
    mpl.rcParams.update(
        {
            "font.family": "DejaVu Sans",
            "font.size": 9,
            "axes.labelsize": 9,
            "axes.titlesize": 9.5,
            "axes.titlelocation": "left",
            "xtick.labelsize": 8,
            "ytick.labelsize": 8,
            "legend.fontsize": 8,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.linewidth": 0.5,
            "grid.color": "#e2e2e2",
            "axes.axisbelow": True,
            "lines.linewidth": 1.6,
            "lines.markersize": 5,
            "figure.dpi": 100,
            "figure.facecolor": "white",
            "svg.hashsalt": "snipnb",
            "svg.fonttype": "path",
        }
    )


def save(figure: Figure, target: Path | BytesIO, *, alt: str, dpi: int = PNG_DPI) -> None:
    """Write a figure so that the same figure gives the same bytes: no date, no software tag, a fixed salt for ids.

    Args:
        figure: The figure.
        target: Path ending in ``.png`` or ``.svg``, or a stream, which gets PNG.
        alt: Text alternative, stored in the file's metadata.
        dpi: Resolution of a PNG.
    """
    kind = target.suffix[1:] if isinstance(target, Path) else "png"
    metadata = (
        {"Date": None, "Creator": None, "Description": alt} if kind == "svg" else {"Software": None, "Description": alt}
    )
    stream = BytesIO()
    figure.savefig(stream, format=kind, dpi=dpi, metadata=metadata)
    content = with_palette(stream.getvalue()) if kind == "png" else stream.getvalue()
    if isinstance(target, Path):
        write_atomically(target, content)
    else:
        target.write(content)


def with_palette(png: bytes) -> bytes:
    """The same picture in at most 256 colours, a third of the size, unless it has shades that would be lost; its metadata stay."""
    with PngImageFile(BytesIO(png)) as picture:
        described, whole = PngInfo(), picture.convert("RGB")
        for key, text in picture.text.items():
            described.add_text(key, text)
        few = whole.quantize(256, method=Image.Quantize.MEDIANCUT, kmeans=3, dither=Image.Dither.NONE)
        lost = np.abs(np.asarray(few.convert("RGB"), np.int16) - np.asarray(whole, np.int16)).mean()
        stream = BytesIO()
        kept = few if lost < MOST_LOST else whole
        kept.save(stream, "PNG", optimize=True, dpi=picture.info["dpi"], pnginfo=described)
    return stream.getvalue()


def footnote(figure: Figure, text: str) -> None:
    """Small print under a figure: what the bars are, n, and the budget."""
    width = round(16.5 * figure.get_figwidth())  # characters of the small print that fit
    figure.supxlabel(textwrap.fill(text, width), x=0.01, ha="left", fontsize=7.5, color=NEUTRAL)


def sparsity_axis(axis: Axes, sparsities: Sequence[float], *, unlabelled: Sequence[float]) -> None:
    """Sparsity as the log of the share kept, so that high ones are not squeezed; some ticks are left out for room."""
    shown = [s for s in sparsities if s not in unlabelled]
    axis.set_xscale("log")
    axis.invert_xaxis()
    axis.set_xticks([1 - s for s in shown], [f"{s:g}" for s in shown])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("sparsity (axis: log of the share kept)")


# --- notebook 01 ------------------------------------------------------------------------------------------------------


def loss_paths(frame: pd.DataFrame, *, note: str) -> Figure:
    """The loss change along single weights, with the tangent at c = 1 that SNIP follows to c = 0.

    Args:
        frame: ``layer``, ``kind`` (row of panels), ``c``, ``change`` (L(c w_j) - L(w_j)), ``tangent``, ``error`` (of SNIP, relative
            to the larger of its own and the exact value).
        note: Small print.
    """
    kinds, layers = list(dict.fromkeys(frame["kind"])), list(dict.fromkeys(frame["layer"]))
    figure, axes = plt.subplots(
        len(kinds),
        len(layers),
        figsize=(2.15 * len(layers), 2.35 * len(kinds)),
        sharex=True,
        layout="constrained",
        squeeze=False,
    )
    for (kind, layer), path in frame.groupby(["kind", "layer"], sort=False):
        axis = axes[kinds.index(kind), layers.index(layer)]
        exponent = int(np.floor(np.log10(path[["change", "tangent"]].abs().to_numpy().max())))
        scale = 10.0**-exponent
        colour = look("exact").colour
        axis.plot(path["c"], path["tangent"] * scale, color=look("snip").colour, ls="--", lw=1.3, zorder=2)
        axis.plot(path["c"], path["change"] * scale, color=colour, lw=1.8, zorder=3)
        start = path.iloc[path["c"].argmin()]
        axis.plot(
            0, start["tangent"] * scale, "o", mfc="white", mec=look("snip").colour, ms=5.5, clip_on=False, zorder=5
        )
        axis.plot(0, start["change"] * scale, "s", color=colour, ms=4.5, clip_on=False, zorder=4)
        axis.axhline(0, color=NEUTRAL, lw=0.6, zorder=1)
        axis.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        title = f"$\\times 10^{{{exponent}}}$"
        axis.set_title(title, fontsize=7.5, color=NEUTRAL, pad=3)
        error = f"SNIP off by {100 * path['error'].iloc[0]:.{0 if path['error'].iloc[0] >= 0.1 else 1}f} %"
        axis.set_title(error, loc="right", fontsize=7.5, color="black", pad=3)
        axis.margins(y=0.12)
    for axis, layer in zip(axes[0], layers, strict=True):
        axis.annotate(layer, (0.5, 1.2), xycoords="axes fraction", ha="center", fontsize=10, fontweight="bold")
    for axis, kind in zip(axes[:, 0], kinds, strict=True):
        axis.set_ylabel(f"{kind}: loss change", fontsize=9.5, fontweight="bold", labelpad=7)
    for axis in axes[-1]:
        axis.set_xlabel("c  (weight is $c\\,w_j$)")
    handles = [
        plt.Line2D(
            [], [], color=look("exact").colour, lw=1.8, marker="s", ms=4.5, label="the loss; at c = 0 its exact change"
        ),
        plt.Line2D(
            [],
            [],
            color=look("snip").colour,
            lw=1.3,
            ls="--",
            marker="o",
            mfc="white",
            label="tangent at c = 1; at c = 0 what SNIP assumes",
        ),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    footnote(figure, note)
    return figure


def linearity(frame: pd.DataFrame, *, bound: float, note: str) -> Figure:
    """How far SNIP is from the exact salience where the loss is, and is not, linear in each weight.

    Args:
        frame: ``case`` (row), ``layer``, ``error`` (relative to the case's largest exact salience).
        bound: Error up to which SNIP counts as exact.
        note: Small print.
    """
    cases = list(dict.fromkeys(frame["case"]))
    floor = 1e-18  # where differences of exactly zero are drawn
    figure, axis = plt.subplots(figsize=(7.2, 0.75 * len(cases) + 1.5), layout="constrained")
    draw = np.random.RandomState(0)
    for row, case in enumerate(cases):
        errors = frame.loc[frame["case"] == case, "error"].to_numpy()
        shown = np.maximum(errors, floor)
        axis.plot(
            shown,
            row + draw.uniform(-0.22, 0.22, len(shown)),
            ".",
            ms=3.5,
            alpha=0.45,
            mew=0,
            color=PALETTE[0],
            rasterized=True,
        )
        axis.plot([np.median(shown)] * 2, [row - 0.32, row + 0.32], color="black", lw=2)
    axis.set_xscale("log")
    axis.set_yticks(range(len(cases)), cases)
    axis.set_ylim(len(cases) - 0.5, -0.5)
    axis.set_xlabel("difference between SNIP and exact salience, relative to the largest exact one")
    axis.axvspan(floor / 3, bound, color="#efefef", zorder=0)
    axis.annotate(
        f"exact by the rule of C23: up to {bound:g}",
        (bound, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-4, 3),
        textcoords="offset points",
        ha="right",
        fontsize=7.5,
        color=NEUTRAL,
    )
    decades = [10.0**k for k in range(-16, 1, 2)]
    axis.set_xticks([floor, *decades], ["0", *(f"$10^{{{k}}}$" for k in range(-16, 1, 2))])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlim(left=floor / 3)
    axis.grid(axis="y", visible=False)
    footnote(figure, note)
    return figure


# --- notebook 02 ------------------------------------------------------------------------------------------------------


def salience_density(frame: pd.DataFrame, *, note: str) -> Figure:
    """SNIP against the exact salience on log axes, a panel per tensor; shade: how many parameters.

    Args:
        frame: One row per filled bin: ``layer``, ``log10_exact``, ``log10_snip``, ``parameters``.
        note: Small print.
    """
    layers = list(dict.fromkeys(frame["layer"]))
    layers = [x for x in layers if "bias" not in x] + [x for x in layers if "bias" in x]
    columns = (len(layers) + 1) // 2
    figure, axes = plt.subplots(
        2, columns, figsize=(2.15 * columns, 5.0), sharex=True, sharey=True, layout="constrained", squeeze=False
    )
    ends = frame[["log10_exact", "log10_snip"]].to_numpy()
    low, high = np.floor(np.quantile(ends, 0.02)), np.ceil(ends.max())
    width = np.diff(np.unique(frame["log10_exact"])).min()
    edges = np.arange(low, high + width / 2, width)
    largest = frame["parameters"].max()
    for axis, layer in zip(axes.flat, layers, strict=False):
        part = frame[frame["layer"] == layer]
        counts, _, _ = np.histogram2d(
            part["log10_exact"], part["log10_snip"], bins=(edges, edges), weights=part["parameters"]
        )
        norm = mpl.colors.LogNorm(1, largest)
        mesh = axis.pcolormesh(
            10**edges, 10**edges, np.ma.masked_equal(counts.T, 0), norm=norm, cmap="viridis_r", rasterized=True
        )
        axis.plot([10**low, 10**high], [10**low, 10**high], color="black", lw=0.8, ls=":")
        axis.set_xscale("log")
        axis.set_yscale("log")
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
    footnote(figure, note)
    return figure


def overlap_curves(frame: pd.DataFrame, *, bound: float, note: str) -> Figure:
    """Overlap of the sets that SNIP and the exact salience keep, by initialisation (left) and by layer (right).

    Args:
        frame: ``panel``, ``line``, ``sparsity``, ``mean``, ``smallest``, ``largest``, ``chance``.
        bound: What the rule of C24 asks for.
        note: Small print.
    """
    panels = list(dict.fromkeys(frame["panel"]))
    figure, axes = plt.subplots(1, len(panels), figsize=(4.9 * len(panels), 3.9), sharey=True, layout="constrained")
    colours = [PALETTE[i] for i in (0, 1, 2, 4, 3, 5)]
    for axis, panel in zip(np.atleast_1d(axes), panels, strict=True):
        lines = list(dict.fromkeys(frame.loc[frame["panel"] == panel, "line"]))
        for i, line in enumerate(lines):
            part = frame[(frame["panel"] == panel) & (frame["line"] == line)]
            x = 1 - part["sparsity"]
            shift = 1.012 ** (i - (len(lines) - 1) / 2)
            bars = [part["mean"] - part["smallest"], part["largest"] - part["mean"]]
            axis.errorbar(
                x * shift,
                part["mean"],
                yerr=bars,
                color=colours[i % 6],
                marker="osD^vX"[i % 6],
                ms=4,
                lw=1.4,
                label=str(line).replace("_", " "),
            )
        whole = frame[(frame["panel"] == panel) & (frame["line"] == lines[0])]
        if panel == panels[0]:
            axis.plot(1 - whole["sparsity"], whole["chance"], color=NEUTRAL, ls=":", label="two random sets")
            axis.axhline(bound, color="black", lw=0.9, ls="--", label=f"C24 asks for {bound:g} in the blue line")
        sparsity_axis(axis, sorted(frame["sparsity"].unique()), unlabelled=(0.15, 0.35, 0.45, 0.65))
        axis.set_title(panel)
        axis.set_ylim(0, 1.02)
        axis.legend(loc="center right", bbox_to_anchor=(1, 0.45))
    np.atleast_1d(axes)[0].set_ylabel("overlap of kept sets\n(intersection over union)")
    footnote(figure, note)
    return figure


def batch_curves(frame: pd.DataFrame, *, note: str) -> Figure:
    """Rank correlation and overlap against the number of images that saliences are taken over.

    Args:
        frame: One row per batch and comparison: ``images``, ``comparison``, ``spearman``, ``overlap``.
        note: Small print.
    """
    names = {"spearman": "rank correlation (Spearman)", "overlap": "overlap of kept sets"}
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.9), layout="constrained")
    looks = (
        (PALETTE[3], "D"),
        (look("snip").colour, look("snip").marker),
        (look("exact").colour, look("exact").marker),
    )
    for axis, (column, label) in zip(axes, names.items(), strict=True):
        for (comparison, part), (colour, marker) in zip(frame.groupby("comparison", sort=False), looks, strict=True):
            grouped = part.groupby("images")[column]
            mean, low, high = grouped.mean(), grouped.min(), grouped.max()
            axis.errorbar(
                mean.index,
                mean,
                yerr=[mean - low, high - mean],
                color=colour,
                marker=marker,
                ms=4.5,
                lw=1.4,
                label=comparison,
            )
        axis.set_xscale("log")
        axis.set_ylim(0, 1.03)
        axis.set_xlabel("images in the batch")
        axis.set_ylabel(label)
    axes[1].legend(loc="lower right")
    footnote(figure, note)
    return figure


def float32_steps(points: pd.DataFrame, kept: pd.DataFrame, *, step: float, note: str) -> Figure:
    """Saliences from differences of float32 losses against exact ones (left); what that does to kept sets (right).

    Args:
        points: One row per filled bin: ``log10_exact``, ``difference`` (in steps), ``parameters``.
        kept: ``sparsity``, ``published``, ``snip`` (overlaps with exact).
        step: Distance between float32 numbers at the loss.
        note: Small print.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.0), layout="constrained")
    norm = mpl.colors.LogNorm(1, points["parameters"].max())
    order = points.sort_values("parameters")
    dots = left.scatter(
        10 ** order["log10_exact"],
        order["difference"] * step,
        c=order["parameters"],
        norm=norm,
        cmap="viridis_r",
        s=7,
        marker="s",
        linewidths=0,
        rasterized=True,
    )
    limit = points["difference"].max() * step
    line = np.geomspace(10 ** points["log10_exact"].min(), limit, 200)
    left.plot(line, line, color="black", lw=0.9, ls=":", label="equal")
    left.axvline(step, color=NEUTRAL, lw=0.9, ls="--")
    left.annotate(
        "one step",
        (step, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-3, -10),
        textcoords="offset points",
        ha="right",
        fontsize=7.5,
        color=NEUTRAL,
    )
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
    footnote(figure, note)
    return figure


def error_curves(frame: pd.DataFrame, reported: pd.DataFrame, *, top: float, note: str) -> Figure:
    """The write-up's Figure 1: error rate against sparsity, ours in one panel and the published curves in the other.

    Args:
        frame: ``criterion``, ``sparsity``, ``mean``, ``smallest``, ``largest``, in percent.
        reported: ``criterion``, ``sparsity``, ``error_percent``, ``low``, ``high``; empty where a curve runs off the plot.
        top: Upper end of the axis, in percent; means beyond it are written at the edge.
        note: Small print.
    """
    published = reported.rename(columns={"error_percent": "mean", "low": "smallest", "high": "largest"})
    figure, axes = plt.subplots(1, 2, figsize=(9.8, 4.4), sharey=True, layout="constrained")
    panels = (
        ("regenerated (black rings: published means)", frame),
        ("published (mean and range of 10 runs)", published),
    )
    for axis, (title, curves) in zip(axes, panels, strict=True):
        criteria = list(dict.fromkeys(curves["criterion"]))
        for i, criterion in enumerate(criteria):
            part, style = curves[curves["criterion"] == criterion].sort_values("sparsity"), look(criterion)
            shift = 1.012 ** (i - (len(criteria) - 1) / 2)  # bars stand side by side
            x, mean = (1 - part["sparsity"]) * shift, part["mean"]
            axis.errorbar(
                x,
                mean,
                yerr=[mean - part["smallest"], part["largest"] - mean],
                color=style.colour,
                marker=style.marker,
                ls=style.dash,
                ms=4.5,
                lw=1.5,
                elinewidth=1,
                label=style.label,
            )
            if axis is axes[0]:
                rings = published[published["criterion"] == criterion]
                axis.plot((1 - rings["sparsity"]) * shift, rings["mean"], **REPORTED, ms=7.5, mew=0.9, zorder=5)
        _beyond(axis, curves, top)
        axis.set_title(title)
        sparsity_axis(axis, sorted(frame["sparsity"].unique()), unlabelled=(0.15, 0.25, 0.45, 0.65))
    axes[0].set_ylim(0, top)
    axes[0].set_ylabel("error rate on scored images, %")
    axes[0].legend(loc="upper left", bbox_to_anchor=(0, 0.8))
    footnote(figure, note)
    return figure


def _beyond(axis: Axes, curves: pd.DataFrame, top: float) -> None:
    """Mark means above the axis by an arrow at its edge, with their value; a line for each criterion."""
    high = curves[curves["mean"] > top]
    for line, (criterion, part) in enumerate(high.groupby("criterion", sort=False)):
        for sparsity, mean in zip(part["sparsity"], part["mean"], strict=True):
            place = (1 - sparsity, top * (0.97 - 0.055 * line))
            text = f"{mean:.1f}" if mean < 10 else f"{mean:.0f}"
            axis.annotate(
                f"\u2191{text}",
                place,
                ha="center",
                va="center",
                fontsize=7,
                color=look(criterion).colour,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
                zorder=6,
            )


def paired_differences(pairs: pd.DataFrame, tests: pd.DataFrame, *, margin: float, note: str) -> Figure:
    """Error rate less that of the exact salience, pair by pair (left), and what C25 judges (right).

    Args:
        pairs: ``criterion``, ``sparsity``, ``seed``, ``difference``, in points.
        tests: ``criterion``, ``mean_difference``, ``low95``, ``high95``, ``equivalence_p``.
        margin: Of equivalence, in points.
        note: Small print.
    """
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9.8, 3.9), layout="constrained", sharey=True, width_ratios=(2.4, 1)
    )
    criteria = [c for c in CRITERIA if c in set(pairs["criterion"])]
    linear = 4 * margin
    for axis in (left, right):
        axis.axhspan(-margin, margin, color="#d9d9d9", lw=0, zorder=0)
        axis.axhline(0, color="black", lw=0.8)
        axis.set_yscale("symlog", linthresh=linear, linscale=2)
    for i, criterion in enumerate(criteria):
        part, style = pairs[pairs["criterion"] == criterion], look(criterion)
        shift = 1.015 ** (i - (len(criteria) - 1) / 2)
        left.plot(
            (1 - part["sparsity"]) * shift,
            part["difference"],
            style.marker,
            color=style.colour,
            ms=4,
            alpha=0.75,
            mew=0,
        )
        means = part.groupby("sparsity")["difference"].mean()
        left.plot((1 - means.index) * shift, means, color=style.colour, ls=style.dash, lw=1.2, label=style.label)
        test = tests[tests["criterion"] == criterion].iloc[0]
        mean = test["mean_difference"]
        bars = [[mean - test["low95"]], [test["high95"] - mean]]
        right.errorbar([i], [mean], yerr=bars, fmt=style.marker, color=style.colour, ms=6, capsize=3)
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
    footnote(figure, note)
    return figure


# --- notebook 03 ------------------------------------------------------------------------------------------------------


def layer_counts(frame: pd.DataFrame, reported: pd.DataFrame, *, note: str) -> Figure:
    """Kept share of each layer over seeds, with prediction intervals, beside the published counts.

    Args:
        frame: One row per seed, sparsity and layer: ``label``, ``sparsity``, ``kept_percent``.
        reported: One row per sparsity and layer: ``label``, ``sparsity``, ``kept_percent``, ``low_percent``,
            ``high_percent`` (ends of the prediction interval), ``inside``.
        note: Small print.
    """
    labels, sparsities = list(dict.fromkeys(frame["label"])), sorted(frame["sparsity"].unique())
    figure, axes = plt.subplots(
        1, len(sparsities), figsize=(4.6 * len(sparsities), 4.6), sharey=True, layout="constrained"
    )
    draw = np.random.RandomState(0)
    for axis, sparsity in zip(np.atleast_1d(axes), sparsities, strict=True):
        for row, label in enumerate(labels):
            own = (frame["sparsity"] == sparsity) & (frame["label"] == label)
            kept = frame.loc[own, "kept_percent"].to_numpy()
            cell = reported[(reported["sparsity"] == sparsity) & (reported["label"] == label)].iloc[0]
            low, high = cell["low_percent"], cell["high_percent"]
            axis.plot(
                [low, high], [row, row], color=look("snip").colour, alpha=0.25, lw=11, solid_capstyle="butt", zorder=1
            )
            axis.plot(
                kept,
                row + draw.uniform(-0.2, 0.2, len(kept)),
                ".",
                color=look("snip").colour,
                ms=4.5,
                mew=0,
                alpha=0.7,
                zorder=2,
                rasterized=True,
            )
            axis.plot(cell["kept_percent"], row, **(REPORTED | {"markersize": 7.5, "markeredgewidth": 1.4}), zorder=3)
            if not cell["inside"]:
                axis.annotate(
                    "outside",
                    (cell["kept_percent"], row),
                    xytext=(0, 8),
                    textcoords="offset points",
                    ha="center",
                    fontsize=7,
                    color="black",
                )
        axis.axvline(100 * (1 - sparsity), color=NEUTRAL, lw=1, ls=":", zorder=0)
        axis.annotate(
            f"whole network: {100 * (1 - sparsity):.0f} %",
            (100 * (1 - sparsity), 1),
            xycoords=("data", "axes fraction"),
            xytext=(3, 2),
            textcoords="offset points",
            fontsize=7.5,
            color=NEUTRAL,
        )
        axis.set_title(f"sparsity {sparsity:g}", pad=14)
        axis.set_xlabel("parameters kept, %" + (" (log scale)" if sparsity > 0.9 else ""))
        if sparsity > 0.9:
            axis.set_xscale("log")
            axis.set_xlim(1, 130)
            axis.xaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 50, 100]))
            axis.xaxis.set_minor_locator(NullLocator())
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        else:
            axis.set_xlim(0, 104)
    first: Axes = np.atleast_1d(axes)[0]
    first.set_yticks(range(len(labels)), labels)
    first.set_ylim(len(labels) - 0.4, -0.6)
    handles = [
        plt.Line2D([], [], ls="none", marker=".", ms=7, color=look("snip").colour, label="one seed"),
        plt.Line2D(
            [], [], color=look("snip").colour, alpha=0.25, lw=9, label="95 % prediction interval for one more seed"
        ),
        plt.Line2D([], [], **REPORTED, markersize=7, markeredgewidth=1.4, label="published"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    footnote(figure, note)
    return figure


def error_dots(frame: pd.DataFrame, reported: pd.DataFrame, *, note: str) -> Figure:
    """Three ways to state the error rate of the same runs, per sparsity, beside the published values.

    Args:
        frame: One row per run and way: ``sparsity``, ``way``, ``error_percent``.
        reported: ``sparsity``, ``error_percent``.
        note: Small print.
    """
    sparsities, ways = sorted(frame["sparsity"].unique()), list(dict.fromkeys(frame["way"]))
    figure, axis = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    colours = dict(zip(ways, (PALETTE[0], PALETTE[3], PALETTE[4]), strict=False))
    for column, sparsity in enumerate(sparsities):
        for place, way in enumerate(ways):
            errors = frame.loc[(frame["sparsity"] == sparsity) & (frame["way"] == way), "error_percent"].to_numpy()
            x = column + 0.22 * (place - (len(ways) - 1) / 2)
            axis.plot([x, x], [errors.min(), errors.max()], color=colours[way], lw=1.2, zorder=1)
            axis.plot(np.full(len(errors), x), errors, "o", color=colours[way], ms=4, alpha=0.6, mew=0, zorder=2)
            axis.plot([x - 0.07, x + 0.07], [errors.mean()] * 2, color=colours[way], lw=2.5, zorder=3)
        value = reported.loc[reported["sparsity"] == sparsity, "error_percent"].iloc[0]
        axis.plot(column + 0.42, value, **(REPORTED | {"markersize": 7, "markeredgewidth": 1.4}))
        axis.annotate(
            f"{value:.2f}", (column + 0.42, value), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=7.5
        )
    axis.set_xticks(range(len(sparsities)), [f"{s:g}" for s in sparsities])
    axis.set_xlim(-0.5, len(sparsities) - 0.4)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("sparsity")
    axis.set_ylabel("error rate on scored images, %")
    axis.grid(axis="x", visible=False)
    handles = [plt.Line2D([], [], color=colours[way], marker="o", ms=4, lw=1.5, label=way) for way in ways]
    handles.append(
        plt.Line2D([], [], **REPORTED, markersize=7, markeredgewidth=1.4, label="published (best of 80 epochs)")
    )
    axis.legend(handles=handles, loc="upper left")
    footnote(figure, note)
    return figure
