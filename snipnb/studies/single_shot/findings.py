"""What came out in notebook 08, in sentences made from its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from snipnb.publish.style import look, with_minus
from snipnb.studies.single_shot.measure import JUDGED, UPPER

ROUNDS = ("iterative_snip", "force", "iterative_exact", "synflow", "ntk_sap")


def findings(compared: pd.DataFrame, kept: pd.DataFrame, found: pd.DataFrame, lost: pd.DataFrame) -> pd.DataFrame:
    """What came out, in a sentence for each question, from the tables of the notebook.

    Args:
        compared: From :func:`snipnb.studies.single_shot.measure.compare`.
        kept: From :func:`snipnb.studies.single_shot.measure.path_summary`.
        found: From :func:`snipnb.studies.single_shot.measure.estimates`.
        lost: From :func:`snipnb.studies.single_shot.measure.controls`.

    Returns:
        ``question``, ``what came out``.
    """
    highest = compared["sparsity"].max()
    at = {(n, s): part.set_index("criterion") for (n, s), part in compared.groupby(["network", "sparsity"], sort=False)}
    why = f"Why is SNIP weak at {highest:g}: is its score too rough, or is scoring only once the problem?"
    said = {
        why: _rounds(at["LeNet-5", highest], highest),
        "Does any criterion train better than SNIP?": _better(at, highest),
        "Which estimates of the loss change are accurate?": _truest(found),
        "Do masks cut the network, or waste what they keep?": _wasted(kept, highest),
    }
    if not lost.empty:
        said["Does it matter which parameters are kept, or only how many per layer?"] = _by_controls(lost)
    upper = [f"{_change(rows.loc[UPPER])} on {n} at {s:g}" for (n, s), rows in at.items() if UPPER in rows.index]
    if upper:
        which = "Iterative magnitude pruning, which trains the network in every round,"
        said["How much better is training many times?"] = f"{which} differs from SNIP by {_listed(upper)}."
    return pd.DataFrame({"question": said.keys(), "what came out": said.values()})


def _better(at: Mapping[tuple[str, float], pd.DataFrame], highest: float) -> str:
    if max(rows["n"].max() for rows in at.values()) < 2:
        return "One network each: too few for a verdict."
    parts = []
    for (network, sparsity), rows in at.items():
        if sparsity in (JUDGED, highest):
            rivals = rows.drop(index=UPPER, errors="ignore")
            better = rivals[rivals["outcome"] == "better"].sort_values("mean")
            names = [f"{look(str(c)).label} ({_change(row, bare=True)})" for c, row in better.iterrows()]
            if names:
                parts.append(f"on {network} at {sparsity:g}, {_listed(names)}")
    return f"Shown to be better than SNIP at {JUDGED:g} or {highest:g}, change of the error rate in points: {'; '.join(parts) or 'none'}."


def _rounds(rows: pd.DataFrame, highest: float) -> str:
    changes = {name: _change(rows.loc[name]) for name in ("exact", "iterative_snip", "iterative_exact")}
    snip = rows["error_percent"].sub(rows["mean"]).median()
    return (
        f"SNIP scored again in each of 20 rounds changes the error rate of LeNet-5 at {highest:g} by {changes['iterative_snip']}; the exact salience, "
        f"taken once, changes it by {changes['exact']}; the exact salience in rounds, by {changes['iterative_exact']}. SNIP's error rate is {snip:.3g} %."
    )


def _truest(found: pd.DataFrame) -> str:
    wide, parts = found.pivot(index=["state", "criterion"], columns="measure", values="mean"), []
    for state in dict.fromkeys(found["state"]):
        own = wide.loc[state].reindex(found["criterion"].unique())
        levels: dict[float, list[str]] = {}
        for criterion, value in own["spearman"].round(3).sort_values(ascending=False, kind="stable").items():
            levels.setdefault(value, []).append(look(str(criterion)).label)
        ranks = ", ".join(f"{_listed(names)} {value:.3f}" for value, names in levels.items())
        shown = dict.fromkeys([own["missed"].idxmin(), "snip"])
        missed = ", ".join(f"{look(str(c)).label} {100 * own.loc[c, 'missed']:.1f} %" for c in shown)
        parts.append(f"{state}: {ranks} (share of the largest 1 % that would be removed: {missed})")
    return f"Rank correlation with the exact salience {'; '.join(parts)}."


def _wasted(kept: pd.DataFrame, highest: float) -> str:
    parts = []
    for network, part in kept[kept["sparsity"] == highest].groupby("network", sort=False):
        own = part.set_index("criterion").sort_values("on_path", ascending=False, kind="stable")
        shown = [name for name in own.index if name in ("snip", *ROUNDS)]
        shares = ", ".join(f"{look(name).label} {100 * own.loc[name, 'on_path']:.0f} %" for name in shown)
        cut = [look(str(c)).label for c in own.index[own["cut"] > 0]]
        alike = f"{100 * own.loc['iterative_snip', 'in_common_with_snip']:.0f} %"
        parts.append(
            f"{network} at {highest:g}, share of the kept parameters on a path: {shares}; cut in at least one network by {_listed(cut) or 'none'}; "
            f"iterative SNIP has {alike} of its kept parameters in common with SNIP"
        )
    return f"{'. '.join(parts)}."


def _by_controls(lost: pd.DataFrame) -> str:
    if lost["n"].max() < 2:
        return "One network each: too few for a verdict."
    wide = lost.pivot(index="criterion", columns="control", values="low95").reindex(lost["criterion"].unique())
    worse, alone = wide > 0, wide.isna().any(axis=1)  # alone: one control applies
    kinds = {
        "worse by both": (1, 1),
        "worse if shuffled, not shown to be worse with other weights": (1, 0),
        "worse with other weights only": (0, 1),
        "not shown to be worse by either": (0, 0),
    }
    parts = []
    for kind, (shuffled, redrawn) in kinds.items():
        names = worse.index[(worse["shuffled"] == shuffled) & (worse["redrawn"] == redrawn)]
        parts.append(
            f"{kind}: {_listed([look(str(c)).label + ' (shuffled only)' * bool(alone[c]) for c in names]) or 'none'}"
        )
    return f"On LeNet-5 at {JUDGED:g}, compared with the criterion's own mask, {'; '.join(parts)}."


def _change(row: pd.Series, *, bare: bool = False) -> str:
    """The mean difference with its interval, or the mean alone."""
    mean, low, high = (f"{row[name]:z.{2 if abs(row[name]) < 10 else 1}f}" for name in ("mean", "low95", "high95"))
    sign, ends = "+" if row["mean"] > 0 else "", f" [{low}, {high}]" if row["n"] > 1 else " (one network)"
    return with_minus(f"{sign}{mean}" if bare else f"{sign}{mean} points{ends}")


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
