"""What the tables of notebook 03 say about its claims."""

from __future__ import annotations

import pandas as pd

from snipnb.publish import comparisons
from snipnb.publish.evidence.parts import Finding, best_rows, finding, one_sided
from snipnb.publish.stats import table_fit


def c12b(counts: pd.DataFrame, published: pd.DataFrame) -> Finding:
    own = counts[counts["ranking"] == "snip"].groupby(["sparsity", "seed"])["kept"].sum().unstack("sparsity")
    other = (own != published.groupby("sparsity")["kept"].sum()[own.columns]).to_numpy().sum()
    scope = f"LeNet-5, sparsity {' and '.join(f'{s:g}' for s in own.columns)}"
    return Finding({"seeds_with_another_total": other}, n=len(own), scope=scope)


c12a = c12b


def c32(counts: pd.DataFrame, published: pd.DataFrame) -> Finding:
    own = counts[counts["ranking"] == "snip"].pivot(index="seed", columns=["sparsity", "label"], values="kept")
    cells = list(zip(published["sparsity"], published["layer"], strict=True))
    fit = table_fit(published["kept"].to_numpy(), own[cells].to_numpy())
    return Finding({"share_as_extreme": fit.p_value, "counts_outside": fit.outside}, n=len(own), scope="20 counts")


def c33(errors: pd.DataFrame, published: pd.DataFrame, protocol: pd.DataFrame, assay: pd.DataFrame) -> Finding:
    facts = protocol.set_index("what")
    seeds = best_rows(errors).pivot(index="seed", columns="sparsity", values="error_percent")
    found = {f"best_error_percent_at_{sparsity:g}": value for sparsity, value in seeds.mean().items()}
    n, scope = len(seeds), f"LeNet-5, {facts['here']['epochs']} epochs, best one on the scored images"
    if not facts["same"].all():
        return Finding(found, n=n, scope=scope, not_run="not the published protocol")
    placed = comparisons.place_errors(errors, published, num_scored=int(facts["here"]["images scored"]))
    short = placed["sparsity"].map(best_rows(assay).groupby("sparsity")["error_percent"].mean())
    found["outside_interval"] = (~placed["inside"]).sum()
    found["assay_outside"] = ((short < placed["low"]) | (short > placed["high"])).sum()
    rates = published.set_index("sparsity")["error_percent"]
    found["half_minus_dense"] = one_sided(seeds[0.5] - seeds[0.0])
    found["published_half_minus_dense"] = rates[0.5] - rates[0.0]
    found |= {"sum_of_three": seeds.sum(axis=1).mean(), "published_sum_of_three": rates.sum()}
    return finding(found, n=n, scope=scope)


def c37(published: pd.DataFrame) -> Finding:
    return Finding({"largest_percent": published["error_percent"].max()}, scope="Figure 2, result")


def c38(image_counts: pd.DataFrame, published: pd.DataFrame) -> Finding:
    cells, found = list(zip(published["sparsity"], published["layer"], strict=True)), {}
    for way, part in image_counts.groupby("way", sort=False):
        own = part.pivot(index="seed", columns=["sparsity", "label"], values="kept")[cells]
        found[f"p_{way}"] = table_fit(published["kept"].to_numpy(), own.to_numpy()).p_value
    return Finding(found, n=image_counts["seed"].nunique(), scope=f"LeNet-5, {len(cells)} counts")
