"""What the tables of notebook 07 say about its claims."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from snipnb.publish.comparisons import slopes_by_seed
from snipnb.publish.evidence.parts import Finding, finding, holm, if_seen, one_sided
from snipnb.publish.stats import mean_interval


def c26(projection: pd.DataFrame, passes: pd.DataFrame) -> Finding:
    rows, found = projection.set_index(["images", "way"])[["minutes", "low95", "high95"]], {}
    for name, images in (("", projection["images"].max()), ("_for_a_mini_batch", projection["images"].min())):
        found[f"naive_minutes{name}"] = tuple(rows.loc[images, "one pass per parameter"])
        found[f"engine_minutes{name}"] = tuple(rows.loc[images, "engine"])
    fastest = passes.loc[passes["images_in_an_hour"].idxmax()]
    found["images_in_an_hour"] = fastest["images_in_an_hour"]
    scope = f"VGG16; one pass per parameter at the peak of a {fastest['processor']}, this package's engine on this processor"
    return finding(found, scope=scope)


def c27(sweep: pd.DataFrame, *, layers_more: Sequence[int], fresh_from: int) -> Finding:
    slopes = {family: own["slope"].to_numpy() for family, own in slopes_by_seed(sweep).groupby("family", sort=False)}
    tests = {family: stats.ttest_1samp(own, 0, alternative="less").pvalue for family, own in slopes.items()}
    each = {family: one_sided(own) for family, own in slopes.items()}
    corrected, steepest = holm(np.array(list(tests.values()))), min(tests, key=tests.__getitem__)
    found = {
        "slope": mean_interval(next(iter(slopes.values()))),
        "steepest_slope": each[steepest],
        "smallest_p": corrected.min(),
        "families_worse": (corrected <= 0.05).sum(),
        "families_not_worse": sum(low >= 0 for _, low, _ in each.values()),
        "families": len(slopes),
    }
    scope = f"LeNet-5, {len(slopes)} families, up to {max(layers_more)} layers more or 4 times as wide; steepest: {steepest}"
    n = int(sweep["seed"].nunique())
    return finding(found, n=n, scope=scope, not_fresh=if_seen(sweep["seed"], fresh_from))
