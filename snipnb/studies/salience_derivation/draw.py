"""Figures of notebook 01."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from snipnb.publish.sentences import fill, power
from snipnb.publish.style import NEUTRAL, dots, headline, look, panels, rows, write


def loss_paths(frame: pd.DataFrame) -> Figure:
    """The loss change along single weights, with the tangent at c = 1 that SNIP follows to c = 0.

    Args:
        frame: ``layer``, ``kind`` (row of panels), ``c``, ``change`` (L(c w_j) - L(w_j)), ``tangent``, ``error`` (of SNIP, relative
            to the larger of SNIP's and the exact value).
    """
    kinds, layers = list(dict.fromkeys(frame["kind"])), list(dict.fromkeys(frame["layer"]))
    figure, axes = panels(len(kinds), len(layers), 2.15 * len(layers), 2.35 * len(kinds), sharex=True)
    snip, exact = look("snip").colour, look("exact").colour
    for (kind, layer), path in frame.groupby(["kind", "layer"], sort=False):
        axis = axes[kinds.index(kind), layers.index(layer)]
        exponent = int(np.floor(np.log10(path[["change", "tangent"]].abs().to_numpy().max())))
        tangent, change = (path[column] * 10.0**-exponent for column in ("tangent", "change"))
        axis.plot(path["c"], tangent, color=snip, ls="--", lw=1.3, zorder=2)
        axis.plot(path["c"], change, color=exact, lw=1.8, zorder=3)
        start = path["c"].argmin()
        axis.plot(0, tangent.iloc[start], "o", mfc="white", mec=snip, ms=5.5, clip_on=False, zorder=5)
        axis.plot(0, change.iloc[start], "s", color=exact, ms=4.5, clip_on=False, zorder=4)
        axis.axhline(0, color=NEUTRAL, lw=0.6, zorder=1)
        axis.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axis.set_title(f"$\\times 10^{{{exponent}}}$", fontsize=7.5, color=NEUTRAL, pad=3)
        error = path["error"].iloc[0]
        text = f"SNIP off by {100 * error:.{0 if error >= 0.1 else 1}f} %"
        axis.set_title(text, loc="right", fontsize=7.5, color="black", pad=3)
        axis.margins(y=0.12)
    for axis, layer in zip(axes[0], layers, strict=True):
        axis.annotate(layer, (0.5, 1.2), xycoords="axes fraction", ha="center", fontsize=10, fontweight="bold")
    for axis, kind in zip(axes[:, 0], kinds, strict=True):
        axis.set_ylabel(f"{kind}: loss change", fontsize=9.5, fontweight="bold", labelpad=7)
    for axis in axes[-1]:
        axis.set_xlabel("c  (weight is $c\\,w_j$)")
    names = ("loss change; at c = 0 the exact change", "tangent at c = 1; at c = 0 SNIP's prediction")
    handles = [
        plt.Line2D([], [], color=exact, lw=1.8, marker="s", ms=4.5),
        plt.Line2D([], [], color=snip, lw=1.3, ls="--", marker="o", mfc="white"),
    ]
    figure.legend(handles, names, loc="outside upper center", ncols=2)
    off = frame.groupby("kind", sort=False)["error"].max()
    typical, worst = (100 * off[kind] for kind in kinds[:2])
    said = f"SNIP follows the tangent: it is off by up to {typical:.0f} % for typical weights"
    return headline(figure, f"{said}, {worst:.0f} % for the worst")


def linearity(frame: pd.DataFrame, *, bound: float) -> Figure:
    """How far SNIP is from the exact salience where the loss is, and is not, linear in each weight.

    Args:
        frame: ``case`` (row), ``layer``, ``error`` (relative to the case's largest exact salience).
        bound: Error up to which SNIP counts as exact.
    """
    cases = list(dict.fromkeys(frame["case"]))
    floor = 1e-18  # where differences of exactly zero are drawn
    figure, axis = plt.subplots(figsize=(7.2, 0.75 * len(cases) + 1.5), layout="constrained")
    draw = np.random.RandomState(0)
    for row, (_, errors) in enumerate(frame.groupby("case", sort=False)["error"]):
        shown = np.maximum(errors.to_numpy(), floor)
        dots(axis, shown, row, spread=0.22, draw=draw, ms=3.5, alpha=0.45, color=look("snip").colour)
        axis.plot([np.median(shown)] * 2, [row - 0.32, row + 0.32], color="black", lw=2)
    rows(axis, cases)
    axis.set(xscale="log", xlabel="difference between SNIP and exact salience, relative to the largest exact salience")
    axis.axvspan(floor / 3, bound, color="#efefef", zorder=0)
    text = f"exact by the rule of C23: up to {power(bound)}"
    write(axis, text, (bound, 1), (-4, 3), xycoords=("data", "axes fraction"), ha="right")
    powers = range(-16, 1, 2)
    axis.set_xticks([floor, *(10.0**k for k in powers)], ["0", *(f"$10^{{{k}}}$" for k in powers)])
    axis.minorticks_off()
    axis.set_xlim(left=floor / 3)
    most, elsewhere = (frame.loc[frame["case"] == case, "error"] for case in (cases[0], cases[-1]))
    said = "Relative to the largest salience, SNIP is off by at most {most:power} where the loss is linear in each weight, by {usual:power} (median) in LeNet-5"
    return headline(figure, fill(said, {"most": most.max(), "usual": elsewhere.median()}))
