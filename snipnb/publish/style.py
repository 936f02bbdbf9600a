"""How figures look: one style, one look per criterion, one colour per layer; and how they are rendered, to the same bytes each time."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from snipnb.publish.stats import t_quantile

PALETTE = sns.color_palette("colorblind").as_hex()
REPORTED: dict[str, Any] = {"marker": "o", "markerfacecolor": "none", "linestyle": "none", "color": "black"}
NEUTRAL = "#5a5a5a"
PNG_DPI = 200
MOST_LOST = 0.08  # of 255, on average over a picture, if fewer colours are used
LAYER_COLOURS = {"conv1": "#543005", "conv2": "#bf812d", "full1": "#003c30", "full2": "#35978f", "full3": "#80cdc1"}
# Marker and dash of a layer: convolutions dashed, so that they can be told apart in grey.
LAYER_LINES: dict[str, tuple[str, Any]] = {
    "conv1": ("o", (0, (4, 1.5))),
    "conv2": ("s", (0, (2, 1))),
    "full1": ("D", "-"),
    "full2": ("^", "-"),
    "full3": ("v", "-"),
}
CATEGORIES = ("#332288", "#882255", "#999933", "#117733", "#aa4499", "#88ccee")  # of anything but criteria and layers
HEADLINE = "headline"  # how the text above a figure is found again
LEAST_KEPT = 0.2  # percent, where axes of kept shares begin


@dataclass(frozen=True)
class Look:
    """How a criterion looks in every figure: its name there, colour, and Matplotlib's marker and line style."""

    label: str
    colour: str
    marker: str
    dash: Any

    @property
    def line(self) -> dict[str, Any]:
        """Options of a line with a marker and a name in the legend."""
        return {"color": self.colour, "marker": self.marker, "ls": self.dash, "label": self.label}


LOOKS = {
    "snip": Look("SNIP", "#0173b2", "o", "-"),
    "exact": Look("exact salience", "#de8f05", "s", (0, (4, 1.5))),
    "exact_float32": Look("exact, float32 differences", "#b8860b", "s", (0, (1, 1))),
    "random": Look("random", "#949494", "X", (0, (1, 1))),
    "magnitude": Look("magnitude", "#029e73", "D", (0, (5, 1, 1, 1))),
    "second_order": Look("second order", "#d55e00", "^", (0, (3, 1))),
    "third_order": Look("third order", "#cc78bc", "v", (0, (2, 1))),
    "linear_region": Look("linear region", "#ca9161", "P", (0, (6, 1.5))),
    "printed_second_order": Look("second order as printed", "#fbafe4", "*", (0, (1, 1.5))),
    "snip_train_mode": Look("SNIP, training mode", "#a6761d", "p", (0, (1, 2))),
    "snip_shuffled": Look("SNIP, shuffled within layers", "#56b4e9", "h", (0, (4, 1))),
    "snip_redrawn": Look("SNIP of other weights", "#23479e", "d", (0, (2, 2))),
    "snip_densities": Look("SNIP's layer densities", "#7d5fb2", "<", (0, (3, 1, 1, 1))),
    "closed_form": Look("closed-form densities", "#b2182b", ">", "-"),
    "erdos_renyi_kernel": Look("Erdős–Rényi-kernel densities", "#8c6d1f", "8", (0, (5, 2))),
    "uniform": Look("uniform densities", "#4d4d4d", "H", (0, (1, 1))),
    "perturbed": Look("SNIP's densities, perturbed", "#a88bd0", "8", (0, (1, 2))),
    "snip_inverted": Look("SNIP, inverted within layers", "#e377a2", "x", (0, (2, 1))),
    "iterative_snip": Look("iterative SNIP", "#1b4965", "^", (0, (4, 2))),
    "force": Look("FORCE", "#3a86c8", "v", (0, (2, 2))),
    "iterative_magnitude": Look("iterative magnitude", "#004d3a", "o", (0, (5, 1, 1, 1))),
    "iterative_exact": Look("iterated exact salience", "#a65e00", "D", (0, (3, 2))),
    "grasp": Look("GraSP", "#6b8e23", "s", (0, (5, 1))),
    "prospr": Look("ProsPr", "#00868b", "P", (0, (1, 2))),
    "synflow": Look("SynFlow", "#c71585", "h", (0, (6, 2))),
    "ntk_sap": Look("NTK-SAP", "#6a3d9a", "d", (0, (2, 3))),
    "fisher": Look("Fisher diagonal", "#b15928", "<", (0, (4, 1, 1, 1))),
    "optimal_brain_damage": Look("optimal brain damage", "#8b3a3a", ">", (0, (3, 3))),
    "fisher_taylor": Look("Fisher-Taylor", "#708238", "p", (0, (5, 3))),
    "fisher_taylor_as_coded": Look("Fisher-Taylor as coded", "#bdb76b", "*", (0, (1, 3))),
}
CONTROLS = {"shuffled": "shuffled within layers", "redrawn": "made for other weights"}  # end of a name -> what it says


def look(criterion: str) -> Look:
    """The look of a criterion. Controls that have none of their own look like their criterion; anything else is grey and labelled with its name as it is."""
    name, _, control = criterion.rpartition("_")
    if criterion not in LOOKS and name in LOOKS and control in CONTROLS:
        return replace(LOOKS[name], label=f"{LOOKS[name].label}, {CONTROLS[control]}")
    return LOOKS.get(criterion, Look(criterion, NEUTRAL, ".", "-"))


def use_house_style() -> None:
    """Set the one style of all figures, whatever the user's own matplotlibrc says."""
    mpl.rcdefaults()
    sns.set_theme(
        style="ticks",
        palette=PALETTE,
        rc={
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
            "lines.linewidth": 1.6,
            "lines.markersize": 5,
            "svg.hashsalt": "snipnb",
        },
    )


def render(figure: Figure, kind: str, *, alt: str, dpi: int = PNG_DPI) -> bytes:
    """A figure as a file's content, the same bytes for the same figure: no date, no software tag, a fixed salt for ids.

    Args:
        figure: The figure.
        kind: ``"png"`` or ``"svg"``.
        alt: Text alternative, stored in the file's metadata.
        dpi: Resolution of a PNG.
    """
    unsaid = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    stream = BytesIO()
    figure.savefig(stream, format=kind, dpi=dpi, metadata={**unsaid, "Description": alt})
    return with_palette(stream.getvalue()) if kind == "png" else stream.getvalue()


def with_palette(png: bytes) -> bytes:
    """The same picture in at most 256 colours, at a third of the size, unless shades would be lost; its metadata is kept."""
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


def headline(figure: Figure, text: str) -> Figure:
    """The figure, with what it shows written above it, in a sentence with numbers from its own tables."""
    lines = textwrap.wrap(with_minus(text), round(11.5 * figure.get_figwidth()))  # characters that fit
    band = 0.06 + 0.19 * len(lines)  # inches that are added at the top
    height = figure.get_figheight() + band
    figure.set_figheight(height)
    taken = band
    for legend in figure.legends:  # all of them stand above the axes
        legend.set_bbox_to_anchor((0, 0, 1, 1 - band / height), transform=figure.transFigure)
        taken += legend.get_window_extent(figure.canvas.get_renderer()).height / figure.dpi + 0.1  # type: ignore[attr-defined]
    figure.set_layout_engine("constrained", rect=(0, 0, 1, 1 - taken / height))
    place = 0.01, 1 - 0.04 / height
    figure.text(*place, "\n".join(lines), va="top", fontsize=10.5, fontweight="bold", linespacing=1.15, gid=HEADLINE)
    return figure


def headline_of(figure: Figure) -> str:
    """What :func:`headline` wrote above a figure; empty if nothing."""
    return next((" ".join(text.get_text().split()) for text in figure.texts if text.get_gid() == HEADLINE), "")


def with_minus(text: str) -> str:
    """The text with a minus sign, not a hyphen, before negative numbers."""
    return re.sub(r"(?<!\w)-(?=\d)", "\N{MINUS SIGN}", text)


def init_label(init: str) -> str:
    """The name of an initialisation in figures."""
    words = init.replace("_", " ").replace("xavier", "Xavier").replace("pytorch", "PyTorch")
    return "PyTorch's default" if words == "PyTorch" else words.replace(" zero bias", ", zero biases")


def footnote(figure: Figure, text: str) -> None:
    """Small print under a figure: what the bars are, n, and the budget."""
    width = round(16.5 * figure.get_figwidth())  # characters of the small print that fit
    figure.supxlabel(textwrap.fill(text, width), x=0.01, ha="left", fontsize=7.5, color=NEUTRAL)


def sparsity_axis(axis: Axes, sparsities: Sequence[float], *, unlabelled: Sequence[float]) -> None:
    """Show sparsity as the log of the share kept, so that high sparsities are not squeezed; some labels are left out for room."""
    shown = [s for s in sparsities if s not in unlabelled]
    axis.set_xscale("log")
    axis.invert_xaxis()
    axis.set_xticks([1 - s for s in shown], [f"{s:g}" for s in shown])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("sparsity (axis: log of the share kept)")


def percent_axis(axis: Axes, ticks: Sequence[float], *, along: str = "x") -> None:
    """A log axis of percentages with plain numbers."""
    which = axis.xaxis if along == "x" else axis.yaxis
    (axis.set_xscale if along == "x" else axis.set_yscale)("log")
    which.set_major_locator(FixedLocator(ticks))
    which.set_minor_locator(NullLocator())
    which.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def panels(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple[Figure, np.ndarray]:
    """A figure of this width and height in inches and its axes [rows, columns]; options go to ``plt.subplots``."""
    return plt.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False, **options)


def whiskers(
    frame: pd.DataFrame, middle: str = "mean", low: str = "smallest", high: str = "largest"
) -> list[pd.Series]:
    """What ``errorbar`` takes: how far down and how far up from the middle."""
    return [frame[middle] - frame[low], frame[high] - frame[middle]]


def dots(
    axis: Axes, values: np.ndarray, row: float, *, spread: float, draw: np.random.RandomState, **options: Any
) -> None:
    """A dot per value along a row, moved across it at random, so that dots can be told apart."""
    place = row + draw.uniform(-spread, spread, len(values))
    axis.plot(values, place, ".", mew=0, rasterized=True, **options)


def write(axis: Axes, text: str, place: tuple[Any, Any], shift: tuple[float, float], **options: Any) -> None:
    """Write small print next to a place, shifted by this many points."""
    looks = {"fontsize": 7.5, "color": NEUTRAL, **options}
    axis.annotate(text, place, xytext=shift, textcoords="offset points", **looks)


def beside(axis: Axes, row: int, text: str) -> None:
    """Small print at the right end of a row."""
    write(axis, text, (1, row), (4, 0), xycoords=("axes fraction", "data"), va="center")


def forest(axis: Axes, pairs: pd.DataFrame, compared: pd.DataFrame, criteria: Sequence[str]) -> None:
    """Error rate minus SNIP's, a row per criterion: dots, mean, 95 % interval, outcome; grey: the margin of equivalence.

    The thick part of a bar is the 90 % interval: a criterion is as good if it lies within the margin. Beside it: outcome and mean.

    Args:
        axis: Where to draw; panels of one figure share their rows.
        pairs: ``criterion``, ``difference``, in percentage points; one row per pair of networks.
        compared: ``criterion``, ``n``, ``mean``, ``low95``, ``high95``, ``margin``, ``outcome``.
        criteria: The rows, from the top.
    """
    tests = compared.set_index("criterion")
    margin = tests["margin"].iloc[0]
    axis.axvspan(-margin, margin, color="#d9d9d9", lw=0, zorder=0)
    axis.axvline(0, color="black", lw=0.8)
    axis.set_xscale("symlog", linthresh=2 * margin, linscale=1.2)
    for row, criterion in enumerate(criteria):
        if criterion not in tests.index:
            continue
        style, test = look(criterion), tests.loc[[criterion]]
        own = pairs.loc[pairs["criterion"] == criterion, "difference"]
        axis.plot(own, np.full(len(own), row + 0.2), ".", color=style.colour, ms=5, alpha=0.7, mew=0)
        bars = whiskers(test, "mean", "low95", "high95")
        options: dict[str, Any] = {"fmt": style.marker, "color": style.colour, "ms": 6, "capsize": 3, "elinewidth": 1.2}
        axis.errorbar(test["mean"], [row - 0.08], xerr=bars, **options)
        if (number := test["n"].item()) > 1:
            narrow = t_quantile(number - 1, level=0.9) / t_quantile(number - 1)
            ends = [test["mean"].item() + sign * narrow * bar.item() for sign, bar in zip((-1, 1), bars, strict=True)]
            axis.plot(ends, [row - 0.08] * 2, color=style.colour, lw=3.5, solid_capstyle="butt")
            beside(axis, row, with_minus(f"{test['outcome'].item()}, {test['mean'].item():+.2g}"))
    ticks = [t for t in (1, 3, 10, 30, 90) if t > 2.6 * margin]
    places = [*(-t for t in reversed(ticks)), -margin, 0, margin, *ticks]
    axis.set_xticks(places, [with_minus(f"{place:.2g}") for place in places])
    axis.minorticks_off()
    reach = pd.concat([pairs["difference"], tests["low95"], tests["high95"]]).dropna()
    axis.set_xlim(min(1.4 * min(reach), -2 * margin), max(1.4 * max(reach), 2 * margin))
    axis.set_xlabel("error rate minus SNIP's, percentage points")
    rows(axis, [look(c).label for c in criteria])


def rows(axis: Axes, labels: Sequence[str]) -> None:
    """A labelled row for each of these, the first at the top, without grid lines along them."""
    axis.set(yticks=range(len(labels)), yticklabels=labels, ylim=(len(labels) - 0.5, -0.5))
    axis.grid(axis="y", visible=False)


def signed_axis(axis: Axes, values: pd.DataFrame) -> None:
    """An axis across for values of both signs: logarithmic beyond 0.5 if one of them lies beyond 2."""
    if np.nanmax(values.abs()) <= 2:
        return
    axis.set_xscale("symlog", linthresh=0.5, linscale=1.5)
    low, high = min(1.3 * np.nanmin(values), -0.5), max(1.3 * np.nanmax(values), 0.5)
    ticks = [tick for tick in (-50, -10, -2, -0.5, 0, 0.5, 2, 10, 50) if low <= tick <= high]
    axis.set_xticks(ticks, [with_minus(f"{tick:g}") for tick in ticks])
    axis.minorticks_off()


def density(
    axis: Axes,
    bins: pd.DataFrame,
    columns: Sequence[str],
    edges: Sequence[np.ndarray],
    ends: Sequence[float],
    norm: Any,
) -> QuadMesh:
    """Shade each bin of two log axes by its number of parameters; a dotted line shows where both are equal.

    Args:
        axis: Where to draw.
        bins: The two ``columns``, log10 of a bin's centre, and ``parameters``.
        columns: Columns across and up.
        edges: Edges of the bins, log10, across and up.
        ends: Ends of the dotted line, log10.
        norm: Norm of the shades.
    """
    x, y = (bins[column] for column in columns)
    counts, _, _ = np.histogram2d(x, y, bins=list(edges), weights=bins["parameters"])
    across, up = (10**edge for edge in edges)
    shade = np.ma.masked_equal(counts.T, 0)
    mesh = axis.pcolormesh(across, up, shade, norm=norm, cmap="viridis_r", rasterized=True)
    axis.plot([10**end for end in ends], [10**end for end in ends], color="black", lw=0.8, ls=":")
    axis.set_xscale("log")
    axis.set_yscale("log")
    return mesh
