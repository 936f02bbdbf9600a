"""What the tables of notebook 04 say about its claims."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from snipnb.publish import comparisons
from snipnb.publish.evidence.parts import ONE_SIDED, Finding, finding, if_seen, seeds_of, value_at


def c11(scores: pd.DataFrame, held_out: pd.DataFrame, *, candidates: Sequence[str]) -> Finding:
    xavier, able = scores["init"].str.startswith("xavier"), scores["init"].isin(candidates)
    best, other = scores.loc[xavier, "p_value"].max(), scores.loc[~xavier, "p_value"].max()
    found = {"best_xavier_p": best, "best_other_p": other, "xavier_fits_best": best > other}
    found["attribution_accuracy"] = comparisons.right_side(held_out)
    found["accuracy_of_candidates"] = comparisons.right_side(held_out[held_out["init"].isin(candidates)])
    found["xavier_p"] = scores.loc[xavier & able, "p_value"].max()
    found["pytorch_p"] = value_at(scores, "p_value", init="pytorch")
    return Finding(found, n=int(scores["n"].min()), scope=f"20 counts, {len(candidates)} initialisations")


def c31(controls: pd.DataFrame, *, fresh_from: int) -> Finding:
    tensors = controls[controls["condition"].isin(["SNIP", "random"])]
    layers = tensors.assign(layer=tensors["layer"].str.split(".").str[0])
    layers = layers.groupby(["condition", "seed", "layer"], sort=False)[["kept", "parameters"]].sum().reset_index()
    old = comparisons.variance_split(tensors, by=["condition"]).set_index("condition")
    new = comparisons.variance_split(layers, by=["condition"], level=ONE_SIDED).set_index("condition")
    rows = {"share_between_layers": old.loc["SNIP"], "share_under_random": old.loc["random"]}
    rows |= {"share_between_five_layers": new.loc["SNIP"], "five_under_random": new.loc["random"]}
    found: dict[str, Any] = {name: tuple(row[["share", "low", "high"]]) for name, row in rows.items()}
    for number, counts in (("ten_tensors", tensors), ("five_layers", layers)):
        found[f"noise_ceiling_{number}"] = comparisons.share_by_chance(counts[counts["condition"] == "SNIP"])
    wide = layers[layers["condition"] == "SNIP"].pivot(index="seed", columns="layer", values="kept")
    first, second = wide.iloc[0 : len(wide) // 2 * 2 : 2].to_numpy(), wide.iloc[1::2].to_numpy()
    change = np.abs(first - second) / ((first + second) / 2)
    most = change[:, np.argmax(np.median(change, axis=0))]
    ends = stats.quantile_test(most, p=0.5).confidence_interval(ONE_SIDED)
    found["largest_typical_change"] = (np.median(most), *ends)
    scope = f"LeNet-5, sparsity {controls['sparsity'].iloc[0]:g}, five layers, {seeds_of(layers['seed'])}"
    return finding(found, n=int(old["n"].min()), scope=scope, not_fresh=if_seen(layers["seed"], fresh_from))


def c34(magnitudes: pd.DataFrame, variance: pd.DataFrame) -> Finding:
    row = variance.iloc[0]
    scope = f"LeNet-5, sparsity {row['sparsity']:g}"
    return Finding({"largest_ratio_low_to_middle": magnitudes["ratio"].max()}, n=int(row["n"]), scope=scope)
