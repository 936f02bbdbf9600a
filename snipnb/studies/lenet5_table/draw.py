"""Figures of notebook 03."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from snipnb.publish.style import CATEGORIES, NEUTRAL, REPORTED, dots, headline, look, panels, percent_axis, write

PUBLISHED = REPORTED | {"markersize": 7, "markeredgewidth": 1.4}


def figure2(frame: pd.DataFrame, reported: pd.DataFrame) -> Figure:
    """Kept share of each layer over seeds, with prediction intervals, next to the published counts.

    Args:
        frame: One row per seed, sparsity and layer: ``label``, ``sparsity``, ``kept_percent``.
        reported: One row per sparsity and layer: ``label``, ``sparsity``, ``kept_percent``, ``low_percent``,
            ``high_percent`` (ends of the prediction interval), ``inside``.
    """
    labels, sparsities = list(dict.fromkeys(frame["label"])), sorted(frame["sparsity"].unique())
    figure, axes = panels(1, len(sparsities), 4.6 * len(sparsities), 4.6, sharey=True)
    draw, colour = np.random.RandomState(0), look("snip").colour
    for axis, sparsity in zip(axes[0], sparsities, strict=True):
        for row, label in enumerate(labels):
            own = (frame["sparsity"] == sparsity) & (frame["label"] == label)
            kept = frame.loc[own, "kept_percent"].to_numpy()
            cell = reported[(reported["sparsity"] == sparsity) & (reported["label"] == label)].iloc[0]
            ends = [cell["low_percent"], cell["high_percent"]]
            axis.plot(ends, [row, row], color=colour, alpha=0.25, lw=11, solid_capstyle="butt", zorder=1)
            dots(axis, kept, row, spread=0.2, draw=draw, color=colour, ms=4.5, alpha=0.7, zorder=2)
            axis.plot(cell["kept_percent"], row, **(PUBLISHED | {"markersize": 7.5}), zorder=3)
            if not cell["inside"]:
                write(axis, "outside", (cell["kept_percent"], row), (0, 8), ha="center", fontsize=7, color="black")
        whole = 100 * (1 - sparsity)
        axis.axvline(whole, color=NEUTRAL, lw=1, ls=":", zorder=0)
        write(axis, f"whole network: {whole:.0f} %", (whole, 1), (3, 2), xycoords=("data", "axes fraction"))
        axis.set_title(f"sparsity {sparsity:g}", pad=14)
        axis.set_xlabel("parameters kept, %" + (" (log scale)" if sparsity > 0.9 else ""))
        if sparsity > 0.9:
            percent_axis(axis, [1, 2, 5, 10, 20, 50, 100])
            axis.set_xlim(1, 130)
        else:
            axis.set_xlim(0, 104)
    axes[0, 0].set(yticks=range(len(labels)), yticklabels=labels, ylim=(len(labels) - 0.4, -0.6))
    handles = {
        "one seed": plt.Line2D([], [], ls="none", marker=".", ms=7, color=colour),
        "95 % prediction interval for one more seed": plt.Line2D([], [], color=colour, alpha=0.25, lw=9),
        "published": plt.Line2D([], [], **PUBLISHED),
    }
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=3)
    said = f"{reported['inside'].sum()} of {len(reported)} published counts lie within the 95 % prediction interval for one more seed"
    return headline(figure, f"{said} ({frame['seed'].nunique()} seeds)")


def errors(frame: pd.DataFrame, reported: pd.DataFrame) -> Figure:
    """Three ways to state the error rate of the same runs, per sparsity, next to the published values.

    Args:
        frame: One row per run and way: ``seed``, ``sparsity``, ``way``, ``error_percent``. If the ways never differ, only the first is drawn.
        reported: ``sparsity``, ``error_percent``.
    """
    sparsities, ways = sorted(frame["sparsity"].unique()), list(dict.fromkeys(frame["way"]))
    by_way = frame.pivot(index=["seed", "sparsity"], columns="way", values="error_percent")
    if len(ways) > 1 and (by_way.nunique(axis=1) == 1).all():  # one column says it all
        ways = ways[:1]
    figure, axis = plt.subplots(figsize=(6.8, 3.6), layout="constrained")
    colours = dict(zip(ways, CATEGORIES, strict=False))
    for column, sparsity in enumerate(sparsities):
        for place, way in enumerate(ways):
            errors = frame.loc[(frame["sparsity"] == sparsity) & (frame["way"] == way), "error_percent"].to_numpy()
            x = column + 0.22 * (place - (len(ways) - 1) / 2)
            axis.plot([x, x], [errors.min(), errors.max()], color=colours[way], lw=1.2, zorder=1)
            axis.plot([x] * len(errors), errors, "oDs"[place], color=colours[way], ms=4, alpha=0.6, mew=0, zorder=2)
            axis.plot([x - 0.07, x + 0.07], [errors.mean()] * 2, color=colours[way], lw=2.5, zorder=3)
        value = reported.loc[reported["sparsity"] == sparsity, "error_percent"].iloc[0]
        beside = column + 0.42, value
        axis.plot(*beside, **PUBLISHED)
        write(axis, f"{value:.2f}", beside, (0, 8), ha="center", color=plt.rcParams["text.color"])
    axis.set_xticks(range(len(sparsities)), [f"{s:g}" for s in sparsities])
    axis.set(xlim=(-0.5, len(sparsities) - 0.4), xlabel="sparsity", ylabel="error rate on scored images, %")
    axis.set_ylim(bottom=0)
    axis.grid(axis="x", visible=False)
    handles = [
        plt.Line2D([], [], color=colours[way], marker=marker, ms=4, lw=1.5, label=way)
        for way, marker in zip(ways, "oDs", strict=False)
    ]
    handles.append(plt.Line2D([], [], **PUBLISHED, label="published (best of 80 epochs)"))
    axis.legend(handles=handles, loc="upper left")
    own = frame[frame["way"] == ways[-1]].groupby("sparsity")["error_percent"].agg(["mean", "min", "max"])
    value = reported.set_index("sparsity")["error_percent"].loc[sparsities]
    inside = f"{((own['min'] <= value) & (value <= own['max'])).sum()} of {len(value)}"
    said = ", ".join(f"{own['mean'][s]:.2f} % at {s:g} (published {value[s]:.2f})" for s in sparsities)
    way = ways[-1].removesuffix(" on scored images")
    return headline(figure, f"{inside} published error rates lie within the seeds' range ({way}): {said}")
