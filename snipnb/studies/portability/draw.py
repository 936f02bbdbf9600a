"""The figure of notebook 09: what six rules compare, on several networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from snipnb.publish.sentences import outcome
from snipnb.publish.style import NEUTRAL, headline, panels, rows, signed_axis, write

MIRRORED = ("C2", "C25a")  # a margin on both sides of 0
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
        signed_axis(axis, own[["value", "low", "high", "bound"]])
        axis.set_title(f"{claim}: {what}", fontsize=9)
        rows(axis, networks)
    counts = "; ".join(f"{', '.join(claims)}: {kind}" for kind, claims in counted.items())
    where = networks[0] if len(networks) == 1 else f"{len(networks)} networks"
    return headline(figure, f"{len(shown)} rules on {where}. {counts}")
