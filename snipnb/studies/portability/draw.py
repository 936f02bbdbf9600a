"""The figure of notebook 09: what six rules compare, on several networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from snipnb.publish.sentences import outcome
from snipnb.publish.style import NEUTRAL, headline, panels, with_minus, write

MIRRORED = ("C2", "C25a")  # a margin on both sides of 0
LOGARITHMIC = 2  # an axis that reaches further is logarithmic
LINEAR = 0.5  # ... beyond this
COLUMNS = 3


def rules(said: pd.DataFrame, *, shown: Mapping[str, str], counted: Mapping[str, Sequence[str]]) -> Figure:
    """What the rule of each claim compares, a panel per claim, a row per network; dashed: the bound of the rule; beside it: the verdict.

    Args:
        said: ``network``, ``claim``, ``verdict``, ``value``, ``low``, ``high``, ``bound``.
        shown: Claim -> what is shown of its rule.
        counted: What came out -> claims.
    """
    networks = list(dict.fromkeys(said["network"]))
    height = 1.1 + 0.42 * len(networks)
    figure, axes = panels(-(-len(shown) // COLUMNS), COLUMNS, 10.4, 2 * height, sharey=True)
    for axis, (claim, what) in zip(axes.flat, shown.items(), strict=True):
        own = said[said["claim"] == claim].set_index("network").reindex(networks)
        for row, (_, one) in enumerate(own.iterrows()):
            bars = [[one["value"] - one["low"]], [one["high"] - one["value"]]] if np.isfinite(one["low"]) else None
            axis.errorbar(one["value"], row, xerr=bars, fmt="o", color="black", ms=5, capsize=3, elinewidth=1.2)
            for bound in (one["bound"], -one["bound"]) if claim in MIRRORED else (one["bound"],):
                axis.plot([bound, bound], [row - 0.4, row + 0.4], ls="--", color=NEUTRAL, lw=1.2)
            glyph, colour, _ = outcome(one["verdict"])
            box = {"boxstyle": "round,pad=0.25", "fc": colour, "ec": NEUTRAL, "lw": 0.6}
            placed = {"xycoords": ("axes fraction", "data"), "va": "center"}
            write(axis, glyph, (1.02, row), (0, 0), **placed, fontsize=9, color="black", bbox=box)
        widest = np.nanmax(own[["value", "low", "high", "bound"]].abs())
        if widest > LOGARITHMIC:
            axis.set_xscale("symlog", linthresh=LINEAR, linscale=1.5)
            ends = own[["value", "low", "high", "bound"]].to_numpy()
            low, high = min(1.3 * np.nanmin(ends), -LINEAR), max(1.3 * np.nanmax(ends), LINEAR)
            ticks = [tick for tick in (-10, -2, -LINEAR, 0, LINEAR, 2, 10, 50) if low <= tick <= high]
            axis.set_xticks(ticks, [with_minus(f"{tick:g}") for tick in ticks])
            axis.xaxis.set_minor_locator(NullLocator())
        axis.set_title(f"{claim}: {what}", fontsize=9)
        axis.set(yticks=range(len(networks)), yticklabels=networks, ylim=(len(networks) - 0.5, -0.5))
        axis.grid(axis="y", visible=False)
    counts = "; ".join(f"{', '.join(claims)}: {kind}" for kind, claims in counted.items())
    where = networks[0] if len(networks) == 1 else f"{len(networks)} networks"
    return headline(figure, f"{len(shown)} rules on {where}. {counts}")
