"""What came out in notebook 08, in sentences made from its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from snipnb.publish.style import CONTROLS, look, with_minus
from snipnb.studies.single_shot.measure import JUDGED, UPPER


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
    said = {
        "Does any criterion train better than SNIP?": _better(at, highest),
        "Is SNIP's weakness that it is linear, or that it scores one by one and once?": _rounds(
            at["LeNet-5", highest], highest
        ),
        "Which estimates of the loss change are true?": _truest(found),
        "Do masks cut the network, or waste what they keep?": _wasted(kept, highest),
    }
    if not lost.empty:
        said["Which parameters, or how many per layer?"] = _by_controls(lost)
    upper = [f"{_change(rows.loc[UPPER])} on {n} at {s:g}" for (n, s), rows in at.items() if UPPER in rows.index]
    if upper:
        said["How far is the upper reference?"] = (
            f"Iterative magnitude pruning, which trains the network many times, differs from SNIP by {_listed(upper)}."
        )
    return pd.DataFrame({"question": said.keys(), "what came out": said.values()})


def _better(at: Mapping[tuple[str, float], pd.DataFrame], highest: float) -> str:
    parts = []
    for (network, sparsity), rows in at.items():
        if sparsity in (JUDGED, highest):
            outcomes = rows.drop(index=UPPER, errors="ignore")["outcome"]
            if better := [look(c).label for c in outcomes.index[outcomes == "better"]]:
                parts.append(f"{_listed(better)} on {network} at {sparsity:g}")
    return f"Shown to be better than SNIP: {'; '.join(parts) or 'none'}."


def _rounds(rows: pd.DataFrame, highest: float) -> str:
    changes = {name: _change(rows.loc[name]) for name in ("exact", "iterative_snip", "iterative_exact")}
    return (
        f"On LeNet-5 at {highest:g}, the exact salience instead of SNIP changes the error rate by {changes['exact']}, "
        f"SNIP in rounds by {changes['iterative_snip']}, and the exact salience in rounds by {changes['iterative_exact']}."
    )


def _truest(found: pd.DataFrame) -> str:
    parts = []
    for state, part in found[found["measure"] == "spearman"].groupby("state", sort=False):
        means = part.set_index("criterion")["mean"].round(3).sort_values(ascending=False, kind="stable")
        names = [f"{look(str(c)).label} {means[c]:.3f}" for c in means.index]
        parts.append(f"{state}: {', '.join(names)}")
    return f"Rank correlation with the exact salience {'; '.join(parts)}."


def _wasted(kept: pd.DataFrame, highest: float) -> str:
    parts = []
    for network, part in kept[kept["sparsity"] == highest].groupby("network", sort=False):
        share = ((1 - part["effective_sparsity"]) / (1 - highest)).set_axis(part["criterion"])
        cut = [look(c).label for c in part.loc[part["cut"] > 0, "criterion"]]
        least = f"{look(share.idxmin()).label} has {100 * share.min():.0f} % of its kept parameters on a path, SNIP {100 * share['snip']:.0f} %"
        parts.append(f"{network} at {highest:g}: cut through by {_listed(cut) or 'none'}; {least}")
    return f"{'. '.join(parts)}."


def _by_controls(lost: pd.DataFrame) -> str:
    parts = []
    for control, part in lost.groupby("control", sort=False):
        better = [look(c).label for c in part.loc[part["low95"] > 0, "criterion"]]
        parts.append(f"a mask {CONTROLS[str(control)]} for {len(better)} of {len(part)} ({_listed(better) or 'none'})")
    return f"On LeNet-5 at {JUDGED:g}, a criterion's own mask is better than {', and than '.join(parts)}."


def _change(row: pd.Series) -> str:
    mean, low, high = (f"{row[name]:.{2 if abs(row[name]) < 10 else 1}f}" for name in ("mean", "low95", "high95"))
    sign, ends = "+" if row["mean"] > 0 else "", f" [{low}, {high}]" if row["n"] > 1 else " (one network)"
    return with_minus(f"{sign}{mean} points{ends}")


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
