"""What the tables of notebook 07 say about its claims."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from snipnb.publish.evidence.parts import Finding
from snipnb.publish.stats import mean_interval


def c26(projection: pd.DataFrame) -> Finding:
    whole = projection[projection["images"] == projection["images"].max()].set_index("way")
    ways = {"naive_minutes": "one pass per parameter", "engine_minutes": "engine"}
    ends = {name: (whole["low95"][way], whole["high95"][way]) for name, way in ways.items()}
    found = {name: whole["minutes"][way] for name, way in ways.items()}
    return Finding(found, ends, scope=f"VGG16, {whole['images'].iloc[0]:,} images, this processor")


def c27(sweep: pd.DataFrame, *, layers_more: Sequence[int]) -> Finding:
    deeper = sweep[sweep["family"] == sweep["family"].iloc[0]]
    slopes = [stats.linregress(own["layers"], own["spearman"]).slope for _, own in deeper.groupby("seed")]
    slope, low, high = mean_interval(np.array(slopes))
    scope = f"LeNet-5 with up to {max(layers_more)} layers more"
    return Finding({"slope": slope}, {"slope": (low, high)}, n=len(slopes), scope=scope)
