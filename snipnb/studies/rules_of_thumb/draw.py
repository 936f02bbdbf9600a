"""Figures of notebook 06: controls and rules of thumb, optimisers, joint changes, all sets of a toy network, trained networks."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from snipnb.publish.published import published_label
from snipnb.publish.style import NEUTRAL, beside, forest, headline, look, panels, sparsity_axis, whiskers, with_minus

JUDGED = 0.95  # sparsity that titles name


def controls(pairs: pd.DataFrame, compared: pd.DataFrame) -> Figure:
    """Error rate minus SNIP's for every control and rule, a panel per sparsity; grey: the margin of equivalence.

    Args:
        pairs: ``criterion``, ``sparsity``, ``seed``, ``difference``, in percentage points.
        compared: ``criterion``, ``sparsity``, ``mean``, ``low95``, ``high95``, ``margin``, ``outcome``, ``error_percent``.
    """
    sparsities = sorted(compared["sparsity"].unique())
    first = compared[compared["sparsity"] == sparsities[0]]
    criteria = list(first.sort_values("mean")["criterion"])
    width, height = 2.4 + 3.7 * len(sparsities), 1.4 + 0.42 * len(criteria)
    figure, axes = panels(1, len(sparsities), width, height, sharey=True)
    for axis, sparsity in zip(axes[0], sparsities, strict=True):
        own, here = (frame[frame["sparsity"] == sparsity] for frame in (pairs, compared))
        forest(axis, own, here, criteria)
        axis.set_title(f"sparsity {sparsity:g}")
    good = compared[compared["outcome"] == "as good"].groupby("sparsity")["criterion"].apply(list)
    worse = (compared["outcome"] == "worse").groupby(compared["sparsity"]).sum()
    said = [
        f"at sparsity {sparsity:g}: {' and '.join(look(c).label for c in good.get(sparsity, [])) or 'none'} ({worse[sparsity]} of {len(criteria)} are worse)"
        for sparsity in sparsities
    ]
    return headline(figure, f"Shown to be as good as SNIP {'; '.join(said)}")


def optimisers(table: pd.DataFrame, *, bound: float) -> Figure:
    """Factor by which pruning multiplies the error rate under each optimiser, over the best optimiser's factor. Dashed: the bound of C13.

    Args:
        table: As from :func:`snipnb.publish.comparisons.recipe_ratios`; without rows the figure says so.
        bound: C13's upper bound on the factor, over the best optimiser's factor.
    """
    if table.empty:
        figure, axis = plt.subplots(figsize=(9.6, 1.2), layout="constrained")
        axis.axis("off")
        axis.text(0.5, 0.5, "No networks were trained with other optimisers under this profile.", ha="center")
        return figure
    names, sparsities = list(dict.fromkeys(table["name"])), sorted(table["sparsity"].unique())
    figure, axes = panels(1, len(sparsities), 9.6, 1.5 + 0.42 * len(names), sharey=True)
    for axis, sparsity in zip(axes[0], sparsities, strict=True):
        here = table[table["sparsity"] == sparsity].set_index("name").loc[names]
        axis.axvline(1, color="black", lw=0.8)
        axis.axvline(bound, color="black", lw=1, ls="--", label="largest factor allowed (C13)")
        bars = whiskers(here, "over_best", "over_best_low", "over_best_high")
        options = {"fmt": "o", "color": look("snip").colour, "ms": 5.5, "capsize": 3, "elinewidth": 1.2}
        axis.errorbar(here["over_best"], range(len(names)), xerr=bars, **options)
        for row, (dense, error) in enumerate(zip(here["dense_percent"], here["adjusted_percent"], strict=True)):
            beside(axis, row, f"{dense:.2f} \u2192 {error:.2f} %")
        axis.set(title=f"sparsity {sparsity:g}", xlabel="pruned / dense error rate, relative to the best recipe")
        axis.grid(axis="y", visible=False)
    axes[0][0].set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper right")
    most = table.loc[table["over_best"].idxmax()]
    said = f"Pruning multiplies the error rate by up to {most['over_best']:.1f} times the best recipe's factor"
    return headline(figure, f"{said} ({most['name']}, sparsity {most['sparsity']:g}; {bound:g} is allowed)")


def joint(changes: pd.DataFrame) -> Figure:
    """Loss change of removing a set at once against the sum of single changes: a panel per state, a mark per network and sparsity.

    Args:
        changes: ``state``, ``seed``, ``criterion``, ``sparsity``, ``joint``, ``sum_of_single``.
    """
    states, criteria = (list(dict.fromkeys(changes[column])) for column in ("state", "criterion"))
    figure, axes = panels(1, len(states), 4.6 * len(states), 4.4)
    for axis, state in zip(axes[0], states, strict=True):
        here = changes[changes["state"] == state]
        scale = here[["joint", "sum_of_single"]].abs().to_numpy().max()
        linear = scale * 10.0 ** -(2 if scale < 1 else 3)
        for criterion in criteria:
            part, style = here[here["criterion"] == criterion], look(criterion)
            options = {"c": style.colour, "marker": style.marker, "alpha": 0.75, "linewidths": 0}
            sizes = 8 + 50 * part["sparsity"] ** 3
            axis.scatter(part["sum_of_single"], part["joint"], s=sizes, label=f"{style.label} sets", **options)
        path = np.linspace(here["sum_of_single"].min(), here["sum_of_single"].max(), 500)
        axis.plot(path, path, color="black", lw=0.9, ls=":", label="equal")
        axis.set_xscale("symlog", linthresh=linear)
        axis.set_yscale("symlog", linthresh=linear)
        axis.axhline(0, color=NEUTRAL, lw=0.5)
        axis.axvline(0, color=NEUTRAL, lw=0.5)
        axis.set(title=state, xlabel="sum of single changes")
        axis.tick_params(axis="x", labelsize=7)
    axes[0, 0].set_ylabel("loss change when all are removed at once")
    axes[0, 0].legend(loc="best")
    last = changes[(changes["criterion"] == criteria[0]) & (changes["sparsity"] == JUDGED)].groupby("state")
    means = last[["joint", "sum_of_single"]].mean().reindex(states).dropna()
    pairs = [f"{r.joint:.2g} {r.Index} (sum of single changes {r.sum_of_single:.2g})" for r in means.itertuples()]
    return headline(figure, f"Removing {100 * JUDGED:g} % by SNIP changes the loss by {', and by '.join(pairs)}")


def greedy(summary: pd.DataFrame) -> Figure:
    """How often the greedy set is the best set of its size (left), and the loss change of both sets (right).

    Args:
        summary: ``size``, ``ranking``, ``best_in_percent``, ``median_change``, ``median_best_change``.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.8), layout="constrained")
    for ranking, part in summary.groupby("ranking", sort=False):
        left.plot(part["size"], part["best_in_percent"], **look(ranking).line, ms=4.5)
        right.plot(part["size"], part["median_change"], **look(ranking).line, ms=4.5)
    best = summary.drop_duplicates("size")
    right.plot(best["size"], best["median_best_change"], color="black", marker="_", ls=":", label="best of all sets")
    left.set(ylim=(-3, 103), ylabel="networks in which the greedy set\nis the best set, %")
    right.set(yscale="log", ylabel="loss change, magnitude (median)")
    for axis in (left, right):
        axis.set_xlabel("parameters removed, out of 16")
        axis.legend()
    exact = summary[summary["ranking"] == "exact"].set_index("size")["best_in_percent"]
    said = f"At size {exact.idxmin()}, the set of smallest exact saliences is the best set in {exact.min():.0f} % of the networks"
    return headline(figure, said)


def trained(errors: pd.DataFrame, by_layer: pd.DataFrame, *, sparsity: float, top: float) -> Figure:
    """Error of trained networks without the parameters that rankings put last, by sparsity (left) and by layer (right).

    Args:
        errors: ``ranking``, ``sparsity``, ``error_percent``; one row per network.
        by_layer: ``layer``, ``named_percent``, ``ranking``, ``increase``; one row per network.
        sparsity: Sparsity of the right panel.
        top: Upper end of the left axis, in percent.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.4, 4.1), layout="constrained")
    for i, (ranking, part) in enumerate(errors.groupby("ranking", sort=False)):
        found = part.groupby("sparsity")["error_percent"].agg(["mean", "min", "max"])
        x, bars = (1 - found.index) * 1.012 ** (i - 2), whiskers(found, "mean", "min", "max")
        left.errorbar(x, found["mean"], yerr=bars, **look(ranking).line, ms=4.5, lw=1.4, elinewidth=1)
    sparsity_axis(left, sorted(errors["sparsity"].unique()), unlabelled=())
    left.set(ylim=(0, top), ylabel="error rate on scored images, %", title="removed from the whole network")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=5)
    layers, rankings = (list(dict.fromkeys(by_layer[column])) for column in ("layer", "ranking"))
    for i, ranking in enumerate(rankings):
        style, own = look(ranking), by_layer[by_layer["ranking"] == ranking]
        found = own.groupby("layer")["increase"].agg(["mean", "min", "max"]).loc[layers]
        x, bars = np.arange(len(layers)) + 0.17 * (i - (len(rankings) - 1) / 2), whiskers(found, "mean", "min", "max")
        right.errorbar(x, found["mean"], yerr=bars, fmt=style.marker, color=style.colour, ms=5, elinewidth=1)
    named = by_layer.groupby("layer", sort=False)["named_percent"].mean()
    right.axhline(0, color="black", lw=0.6)
    right.set_yscale("symlog", linthresh=0.2)
    ticks = [-0.1, 0, 0.1, 0.2, 1, 5, 20, 80]
    right.set_yticks(ticks, [with_minus(f"{t:g}") for t in ticks])
    right.minorticks_off()
    right.set_ylim(bottom=min(1.2 * by_layer["increase"].min(), -0.1))
    right.set_xticks(range(len(layers)), [f"{published_label(layer)}\nSNIP: {named[layer]:.0f} %" for layer in layers])
    right.set(title=f"{100 * sparsity:g} % of one layer removed; below: share SNIP would remove")
    right.set(ylabel="increase in error rate, percentage points")
    right.grid(axis="x", visible=False)
    costs = by_layer[by_layer["ranking"] == "snip"].groupby("layer", sort=False)["increase"].mean()
    least, most = costs.idxmin(), costs.idxmax()
    said = f"After training, removing {100 * sparsity:g} % of {published_label(least)} by SNIP costs {costs[least]:.2f} percentage points"
    return headline(figure, f"{said}, and {100 * sparsity:g} % of {published_label(most)} costs {costs[most]:.1f}")
