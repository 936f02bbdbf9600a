"""Error rates compared pair by pair, on made-up rates."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from snipnb.publish import comparisons
from snipnb.training import scores


def test_differences_are_taken_between_runs_of_one_seed_and_sparsity():
    level = {"exact": 0.0, "snip": 0.05, "random": 2.0}
    rows = [
        {
            "criterion": name,
            "sparsity": sparsity,
            "seed": seed,
            "way": way,
            "error_percent": offset + seed + 10 * sparsity,
        }
        for name, offset in level.items()
        for sparsity in (0.5, 0.9)
        for seed in range(5)
        for way in scores.WAYS.values()
    ]
    table = pd.DataFrame(rows).sample(frac=1, random_state=1)
    pairs = comparisons.differences(table, way=scores.LAST)
    assert pairs.groupby("criterion").size().to_dict() == {"snip": 10, "random": 10}
    for name in ("snip", "random"):
        assert pairs.loc[pairs["criterion"] == name, "difference"].to_numpy() == pytest.approx([level[name]] * 10)
    with pytest.raises(ValueError, match="needs a run of criterion 'exact' with the same seed"):
        comparisons.differences(table[~((table["criterion"] == "exact") & (table["seed"] == 2))], way=scores.LAST)


def test_seeds_are_summed_up():
    found = comparisons.spread_of(np.array([1.0, 2.0, 6.0]))
    low, high = scipy.stats.ttest_1samp([1.0, 2.0, 6.0], 0).confidence_interval(0.95)
    assert found == pytest.approx({"n": 3, "mean": 3, "low95": low, "high95": high, "smallest": 1, "largest": 6})
    assert np.isnan(comparisons.spread_of(np.array([1.0, 2.0]))["low95"])  # two seeds have no interval worth showing
    frame = pd.DataFrame({"layer": ["b", "a", "b"], "increase": [1.0, 5.0, 2.0]})
    assert comparisons.summarise(frame, ["layer"]).values.tolist() == [["b", 2, 1.5, 1, 2], ["a", 1, 5, 5, 5]]
