"""The picture on top of README.md: a tile for every verdict, and three findings drawn from the tables that decide them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import NullLocator

from snipnb._files import resource
from snipnb.publish import style
from snipnb.publish.sentences import OUTCOMES, outcome

PER_ROW = 20
# The title of a panel for each verdict on its claim; for any other verdict, a question.
TITLES = {
    "C25a": {
        "supported": "SNIP trains as well as\nthe exact score",
        "contradicted": "SNIP and the exact score\ndo not train equally well",
        "": "Does SNIP train as well as\nthe exact score? Open so far",
    },
    "C32": {
        "matches": "Published counts look like\none more seed",
        "differs": "Published counts are unlike\nthose of these seeds",
        "": "Do published counts\nlook like one more seed?",
    },
    "C35": {
        "supported": "At 0.95 the right count\nper layer is enough",
        "contradicted": "Counts per layer\nare not enough",
        "": "Which weights,\nor how many per layer?",
    },
}
RULES = {
    "snip_densities": "SNIP's mean",
    "closed_form": "closed form",
    "erdos_renyi_kernel": "ERK",
    "uniform": "uniform",
    "magnitude": "magnitude",
}


def draw(figures: Path) -> bytes:
    """The picture as a PNG, from what the profile ``full`` published below the folder of figures."""
    style.use_house_style()
    full = figures / "full"
    rows = json.loads((full / "claims.json").read_text(encoding="utf-8"))
    verdicts = {row["id"]: row["verdict"].partition(" (")[0] for row in rows}
    figure, axes = plt.subplot_mosaic(
        [["tiles"] * 3, ["trained", "counts", "rules"]],
        figsize=(8.38, 4.2),
        height_ratios=[1, 3],
        layout="constrained",
    )
    _tiles(axes["tiles"], rows)
    _trained(axes["trained"], full / "02_snip_vs_exact" / "levels.csv")
    _counts(axes["counts"], full / "03_lenet5_table")
    _rules(axes["rules"], full / "06_rules_of_thumb" / "compared.csv")
    for axis, claim in zip(("trained", "counts", "rules"), TITLES, strict=True):
        axes[axis].set_title(TITLES[claim].get(verdicts[claim], TITLES[claim][""]), fontsize=9.5, fontweight="bold")
    content = style.render(figure, "png", alt=alt(rows))
    plt.close(figure)
    return content


def alt(rows: list[dict[str, Any]]) -> str:
    """What the picture shows, in words."""
    shown = "; ".join(f"{row['id']} {outcome(row['verdict'])[2]}" for row in rows)
    return f"A tile for every verdict: {shown}. Below: error rates of Figure 1, counts of Figure 2, and what wrong layer densities cost."


def _tiles(axis: Axes, rows: list[dict[str, Any]]) -> None:
    axis.set(xlim=(0, PER_ROW), ylim=(-((len(rows) - 1) // PER_ROW) - 1.05, 0.05))
    axis.axis("off")
    for number, row in enumerate(rows):
        glyph, colour, _ = outcome(row["verdict"])
        x, y = number % PER_ROW, -(number // PER_ROW) - 1
        box = FancyBboxPatch((x + 0.08, y + 0.08), 0.84, 0.84, boxstyle="round,pad=0,rounding_size=0.12")
        box.set(facecolor=colour, edgecolor="#8a8a8a", linewidth=0.6)
        axis.add_patch(box)
        axis.text(x + 0.5, y + 0.60, glyph, ha="center", va="center", fontsize=11)
        axis.text(x + 0.5, y + 0.24, row["id"], ha="center", va="center", fontsize=6.5, color=style.NEUTRAL)
    keys = [plt.Line2D([], [], ls="none", marker="s", ms=9, mfc=c, mec="#8a8a8a") for _, c, _ in OUTCOMES.values()]
    names = [f"{glyph} {name}" for glyph, _, name in OUTCOMES.values()]
    axis.legend(keys, names, loc="lower center", bbox_to_anchor=(0.5, 0.98), ncols=len(keys), handletextpad=0.2)


def _trained(axis: Axes, path: Path) -> None:
    """Error rates at the best epochs, means over seeds by sparsity, on top of the published range."""
    names = {"random": "random", "snip": "SNIP", "exact": "exact"}
    own, published = pd.read_csv(path), pd.read_csv(resource("reported") / "figure1_reported.csv")
    own, top = own[own["criterion"].isin(names)], published["high"].max() * 1.05
    for line, (criterion, name) in enumerate(names.items()):
        look, band = style.look(criterion), published[published["criterion"] == criterion].dropna()
        part = own[own["criterion"] == criterion].sort_values("sparsity")
        axis.fill_between(1 - band["sparsity"], band["low"], band["high"], color=look.colour, alpha=0.2, lw=0)
        axis.plot(1 - part["sparsity"], part["mean"], color=look.colour, ls=look.dash, marker=look.marker, ms=3.5)
        place = 0.05, 0.92 - 0.08 * line
        axis.plot(*place, look.marker, color=look.colour, ms=4.5, transform=axis.transAxes)
        axis.text(0.09, place[1], name, va="center", fontsize=8, fontweight="bold", transform=axis.transAxes)
    style.sparsity_axis(
        axis, sorted(own["sparsity"].unique()), unlabelled=(0.05, 0.15, 0.25, 0.35, 0.45, 0.65, 0.85, 0.93)
    )
    axis.set_xlabel(f"sparsity (n = {own['n'].min()}; bands: published)", fontsize=8)
    axis.set(ylabel="error rate, %", ylim=(0, top))


def _counts(axis: Axes, folder: Path) -> None:
    """The kept share of every layer's weights at sparsity 0.95: seeds and the published values."""
    seeds, published = (pd.read_csv(folder / name) for name in ("figure2.csv", "figure2_reported.csv"))
    colour = style.look("snip").colour
    labels = [label for label in dict.fromkeys(seeds["label"]) if "bias" not in label]
    for row, label in enumerate(labels):
        own = seeds[(seeds["label"] == label) & (seeds["sparsity"] == 0.95)]["kept_percent"]
        axis.plot(own, [row] * len(own), ".", color=colour, alpha=0.35, ms=7, mew=0)
        cell = published[(published["label"] == label) & (published["sparsity"] == 0.95)]
        axis.plot(cell["kept_percent"], [row], **style.REPORTED, ms=8, mew=1.3)
    style.percent_axis(axis, [1, 2, 5, 10, 20, 50, 100])
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.set_xlabel(f"weights kept, % (n = {seeds['seed'].nunique()}; rings: published)", fontsize=8)


def _rules(axis: Axes, path: Path) -> None:
    """How much more error random masks have if their counts are right, roughly right, or wrong."""
    compared = pd.read_csv(path)
    here = compared[compared["sparsity"] == 0.95].set_index("criterion").loc[list(RULES)]
    axis.axvspan(-here["margin"].iloc[0], here["margin"].iloc[0], color="#d9d9d9", lw=0, zorder=0)
    axis.axvline(0, color="black", lw=0.8)
    for row, criterion in enumerate(RULES):
        look, cell = style.look(criterion), here.loc[[criterion]]
        bars = style.whiskers(cell, "mean", "low95", "high95")
        axis.errorbar(cell["mean"], [row], xerr=bars, fmt=look.marker, color=look.colour, ms=6, capsize=3)
    axis.set_xscale("symlog", linthresh=0.5)
    axis.set_xticks([0, 1, 10, 90], ["0", "1", "10", "90"])
    axis.set_yticks(range(len(RULES)), list(RULES.values()))
    axis.set_ylim(len(RULES) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel(f"error above SNIP's, points (n ≥ {here['n'].min()})", fontsize=8)
