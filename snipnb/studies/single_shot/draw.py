"""Figures of notebook 08: error rates beside SNIP's, controls, what masks keep, and estimates of the loss change."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from snipnb.publish.published import published_label
from snipnb.publish.style import (
    CONTROLS,
    LEAST_KEPT,
    NEUTRAL,
    beside,
    forest,
    headline,
    look,
    panels,
    rows,
    signed_axis,
    whiskers,
    with_minus,
)


def lenet5(pairs: pd.DataFrame, compared: pd.DataFrame, *, judged: float, upper: str) -> Figure:
    """Error rate of LeNet-5 minus SNIP's, for every criterion, at the judged and the highest sparsity; grey: the margin of equivalence.

    Args:
        pairs: ``network``, ``criterion``, ``sparsity``, ``seed``, ``difference``, in percentage points.
        compared: ``network``, ``criterion``, ``sparsity``, ``mean``, ``low95``, ``high95``, ``margin``, ``outcome``.
        judged: The sparsity of the left panel.
        upper: The criterion that is an upper reference, not a rival: it stands last, and is not counted.
    """
    return _field("LeNet-5", pairs, compared, judged, upper)


def lenet_300_100(pairs: pd.DataFrame, compared: pd.DataFrame, *, judged: float, upper: str) -> Figure:
    """The same for LeNet-300-100."""
    return _field("LeNet-300-100", pairs, compared, judged, upper)


def _field(network: str, pairs: pd.DataFrame, compared: pd.DataFrame, judged: float, upper: str) -> Figure:
    pairs, compared = (frame[frame["network"] == network] for frame in (pairs, compared))
    sparsities = sorted({judged, compared["sparsity"].max()})
    last = compared[compared["sparsity"] == sparsities[-1]]
    criteria = sorted(last.sort_values("mean")["criterion"], key=lambda name: name == upper)
    rivals = [name for name in criteria if name != upper]
    figure, axes = panels(1, len(sparsities), 9.8, 1.2 + 0.33 * len(criteria), sharey=True)
    said = []
    for axis, sparsity in zip(axes[0], sparsities, strict=True):
        own, here = (frame[frame["sparsity"] == sparsity] for frame in (pairs, compared))
        forest(axis, own, here, criteria)
        if len(rivals) < len(criteria):
            axis.axhline(len(rivals) - 0.5, color="black", lw=0.8)
        axis.set_title(f"sparsity {sparsity:g}")
        outcomes = here.loc[here["criterion"] != upper, "outcome"]
        good, worse = ((outcomes == word).sum() for word in ("better", "worse"))
        beat, lose = ("beats SNIP" if good == 1 else "beat SNIP"), ("loses to it" if worse == 1 else "lose to it")
        said.append(f"at {sparsity:g}, {good} {beat} and {worse} {lose}")
    number = compared["n"].max()
    if number == 1:
        return headline(figure, f"{network}: SNIP and {len(rivals)} other criteria, one network each, so no verdicts")
    return headline(figure, f"{network}: of {len(rivals)} other criteria, {'; '.join(said)} ({number} networks each)")


def controls(frame: pd.DataFrame) -> Figure:
    """What shuffling a mask within layers, and a mask made for other weights, cost; a row per criterion.

    Args:
        frame: ``criterion``, ``control``, ``n``, ``mean``, ``low95``, ``high95``; without rows the figure says so.
    """
    if frame.empty:
        figure, axis = plt.subplots(figsize=(9.6, 1.2), layout="constrained")
        axis.axis("off")
        axis.text(0.5, 0.5, "No controls were trained under this profile.", ha="center")
        return figure
    ranks = frame.groupby("criterion")["mean"].agg("first").sort_values()
    criteria = list(ranks.index)
    figure, axes = panels(1, 2, 9.8, 1.2 + 0.33 * len(criteria), sharey=True, sharex=True)
    said = []
    for axis, (control, part) in zip(axes[0], frame.groupby("control", sort=False), strict=True):
        tests = part.set_index("criterion")
        for row, criterion in enumerate(criteria):
            if criterion not in tests.index:
                beside(axis, row, "does not apply")
                continue
            style, ends = look(criterion), tests.loc[[criterion]]
            bars = whiskers(ends, "mean", "low95", "high95")
            options = {"fmt": style.marker, "color": style.colour, "ms": 6, "capsize": 3, "elinewidth": 1.2}
            axis.errorbar(ends["mean"], [row], xerr=bars, **options)
            beside(axis, row, with_minus(f"{tests.loc[criterion, 'mean']:+.2f}"))
        axis.axvline(0, color="black", lw=0.8)
        signed_axis(axis, frame[["mean", "low95", "high95"]])
        axis.set(
            title=f"mask {CONTROLS[str(control)]}", xlabel="error rate minus that of the own mask, percentage points"
        )
        rows(axis, [look(c).label for c in criteria])
        said.append(f"{(tests['low95'] > 0).sum()} of {len(tests)} criteria with a mask {CONTROLS[str(control)]}")
    if frame["n"].max() < 2:
        return headline(figure, f"Two controls for {len(criteria)} criteria, one network each, so no verdicts")
    return headline(figure, f"Worse than with their own mask: {'; '.join(said)}")


def paths(kept: pd.DataFrame) -> Figure:
    """The share of what is kept that lies on a path from input to output, a row per criterion, a panel per network, a mark per sparsity.

    Args:
        kept: ``network``, ``criterion``, ``sparsity``, ``on_path``, ``cut``, ``n``.
    """
    networks, sparsities = list(dict.fromkeys(kept["network"])), sorted(kept["sparsity"].unique())
    kept = kept.assign(share=100 * kept["on_path"])
    order = kept[kept["sparsity"] == sparsities[-1]].groupby("criterion")["share"].mean().sort_values(ascending=False)
    criteria = list(order.index)
    figure, axes = panels(1, len(networks), 9.8, 1.5 + 0.33 * len(criteria), sharey=True)
    sizes = np.linspace(4, 9, len(sparsities))
    for size, sparsity in zip(sizes, sparsities, strict=True):
        axes[0][0].plot([], [], "o", color=NEUTRAL, ms=size, label=f"sparsity {sparsity:g}")
    for axis, network in zip(axes[0], networks, strict=True):
        here = kept[kept["network"] == network]
        for row, criterion in enumerate(criteria):
            own = here[here["criterion"] == criterion].set_index("sparsity").loc[sparsities]
            axis.plot(own["share"], np.full(len(own), row), color=look(criterion).colour, lw=1, zorder=1)
            for size, (_, test) in zip(sizes, own.iterrows(), strict=True):
                options = {"ms": size, "mew": 0.6, "mec": "white", "zorder": 12 - size}  # small marks lie on large ones
                axis.plot(test["share"], row, look(criterion).marker, color=look(criterion).colour, **options)
            if own["cut"].any():
                beside(axis, row, f"cut: {own['cut'].iloc[-1]} of {own['n'].iloc[-1]}")
        axis.set(title=network, xlabel="kept parameters that lie on a path, %")
        rows(axis, [look(c).label for c in criteria])
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=len(sparsities))
    last = kept[kept["sparsity"] == sparsities[-1]].set_index(["network", "criterion"])["share"]
    (network, criterion), least = last.idxmin(), last.min()
    said = (
        f"At sparsity {sparsities[-1]:g}, {last[network, 'snip']:.0f} % of what SNIP keeps lies on a path in {network}"
    )
    return headline(figure, f"{said}; of what {look(criterion).label} keeps, {least:.0f} %")


def layers(frame: pd.DataFrame, *, judged: float) -> Figure:
    """What each criterion keeps of each weight tensor, in percent; a panel per network.

    Args:
        frame: ``network``, ``criterion``, ``layer``, ``kept_percent``.
        judged: The sparsity.
    """
    wide = {
        str(network): part.pivot(index="criterion", columns="layer", values="kept_percent")
        for network, part in frame.groupby("network", sort=False)
    }
    shown, first = next(iter(wide.items()))
    criteria = list(first.sort_values(first.columns[0], ascending=False).index)
    ratios = [own.shape[1] for own in wide.values()]
    figure, axes = panels(1, len(wide), 9.8, 1.2 + 0.33 * len(criteria), sharey=True, width_ratios=ratios)
    for axis, (network, own) in zip(axes[0], wide.items(), strict=True):
        values = own.loc[criteria]
        axis.imshow(values.clip(lower=LEAST_KEPT), norm=LogNorm(LEAST_KEPT, 100), cmap="viridis_r", aspect="auto")
        for row, column in np.ndindex(values.shape):
            value = values.iloc[row, column]
            text, ink = f"{value:.2g}" if value < 99.5 else "100", "white" if value > 6 else "black"
            axis.text(column, row, text, ha="center", va="center", fontsize=7.5, color=ink)
        axis.set_xticks(range(values.shape[1]), [published_label(name) for name in values.columns])
        axis.set_title(network)
        axis.grid(visible=False)
        axis.tick_params(length=0)
    axes[0][0].set_yticks(range(len(criteria)), [look(c).label for c in criteria])
    column = first[first.columns[0]]
    least, most = (look(str(c)).label for c in (column.idxmin(), column.idxmax()))
    said = f"At {judged:g}, criteria keep from {column.min():.2g} % ({least}) to {column.max():.2g} % ({most}) of"
    of = f"{published_label(str(first.columns[0]))} of {shown}"
    return headline(figure, f"{said} {of}; SNIP keeps {column['snip']:.0f} %")


def estimates(found: pd.DataFrame) -> Figure:
    """How well each estimate of the loss change agrees with the exact one, a panel per state of the network.

    Args:
        found: ``state``, ``criterion``, ``measure``, ``mean``, ``smallest``, ``largest``.
    """
    measures = {
        "spearman": ("rank correlation", 1),
        "in_common": ("kept by both, %", 100),
        "missed": ("largest that are missed, %: lower is better", 100),
    }
    states = list(dict.fromkeys(found["state"]))
    first = found[(found["state"] == states[0]) & (found["measure"] == "spearman")]
    criteria = list(first.sort_values("mean", ascending=False, kind="stable")["criterion"])
    figure, axes = panels(
        len(states), len(measures), 9.8, len(states) * (0.9 + 0.28 * len(criteria)), sharex="col", sharey=True
    )
    for line, state in zip(axes, states, strict=True):
        for axis, (measure, (label, factor)) in zip(line, measures.items(), strict=True):
            part = found[(found["state"] == state) & (found["measure"] == measure)].set_index("criterion").loc[criteria]
            ends = part[["mean", "smallest", "largest"]] * factor
            for row, criterion in enumerate(criteria):
                style, own = look(criterion), ends.iloc[[row]]
                axis.errorbar(own["mean"], [row], xerr=whiskers(own), fmt=style.marker, color=style.colour, ms=6)
                beside(axis, row, with_minus(f"{own['mean'].item():.3g}"))
            axis.set(title=state, xlabel=label)
            rows(axis, [look(c).label for c in criteria])
    means = found[found["measure"] == "spearman"].set_index(["state", "criterion"])["mean"].round(3)
    said = []
    for state in states:
        own = means[state]
        best = [look(str(c)).label for c in own.index[own == own.max()]]
        many = f"{len(best)} estimates agree best" if len(best) > 1 else f"{best[0]} agrees best"
        with_snip = "" if own["snip"] == own.max() else f"; SNIP {own['snip']:.3f}"
        said.append(f"{state}, {many} with the exact salience ({own.max():.3f}{with_snip})")
    return headline(figure, f"{'; '.join(said)[0].upper()}{'; '.join(said)[1:]}")
