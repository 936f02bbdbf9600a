"""Error rates of pruned networks, criterion against criterion, on made-up rates."""

import numpy as np
import pandas as pd
import pytest

from snipnb.publish import comparisons, ledger
from snipnb.studies.snip_vs_exact import trained
from snipnb.training import scores

RULE = ledger.settings("C25a")
JUDGED = RULE["sparsities"]
LAST = scores.LAST


def runs(rates, *, criterion="snip"):
    """rates: (seed, sparsity) -> error rates of the epochs."""
    frames = [
        pd.DataFrame({"test_error": values, "validation_error": values}).assign(
            criterion=criterion, init_seed=seed, sparsity=sparsity
        )
        for (seed, sparsity), values in rates.items()
    ]
    return pd.concat(frames, ignore_index=True)


def many(offsets, *, spread=0.0, seeds=5, seed=0):
    """Runs of several criteria at the judged sparsities: criterion -> offset in points from 1 %."""
    draw = np.random.default_rng(seed)
    shared = {(s, k): 1.0 + draw.normal(0, 0.2) for s in range(seeds) for k in JUDGED}
    return pd.concat(
        [
            runs(
                {key: [(level + offset + draw.normal(0, spread)) / 100] for key, level in shared.items()},
                criterion=name,
            )
            for name, offset in offsets.items()
        ],
        ignore_index=True,
    )


def test_curves_hold_mean_and_range():
    table = scores.error_table(runs({(0, 0.5): [0.1], (1, 0.5): [0.2], (2, 0.5): [0.6]}))
    best, last = trained.curves(table).itertuples()
    for row in (best, last):
        assert (row.n, row.mean, row.smallest, row.largest) == pytest.approx((3, 30, 10, 60))
    assert (best.way, last.way) == (comparisons.BEST, comparisons.LAST)


def test_optimism_of_the_best_epoch():
    rates = {(0, 0.5): [0.1, 0.2], (1, 0.5): [0.3, 0.3], (0, 0.9): [0.5, 0.4], (1, 0.9): [0.2, 0.8]}
    both = pd.concat([runs(rates), runs({key: [0.1] for key in rates}, criterion="exact")])
    found = trained.optimism(scores.error_table(both))
    assert list(found) == ["sparsity", "snip", "exact"]
    assert found.to_numpy() == pytest.approx(np.array([[0.5, 5, 0], [0.9, 30, 0]]))


def test_variants_are_compared_at_the_means_in_common():
    def levels(rows):
        return pd.DataFrame(rows, columns=["criterion", "sparsity", "n", "difference", "expected_difference"])

    whole = levels([("snip", 0.5, 4, 0.1, 0.2), ("snip", 0.9, 3, -0.3, 0.2), ("random", 0.9, 3, 0.0, 0.2)])
    part = levels([("snip", 0.9, 2, -0.1, 0.2)])
    found = trained.variants({"ours": whole, "batch": part, "none": whole[:0]})
    assert found["variant"].tolist() == ["ours", "ours, means in common", "batch, means in common"]
    assert found[["n", "means", "inside"]].values.tolist() == [[3, 3, 2], [3, 1, 0], [2, 1, 1]]
    assert found["off"].tolist() == pytest.approx([0.4 / 3, 0.3, 0.1])
    assert found["higher"].tolist() == pytest.approx([-0.2 / 3, -0.3, -0.1])
    assert trained.variants({"ours": whole})["variant"].tolist() == ["ours"]


def test_the_rule_of_c25():
    table = scores.error_table(many({"exact": 0.0, "snip": 0.02, "random": 1.0}, spread=0.05))
    tests, margin = trained.equivalence(table, **RULE)
    tests = tests.set_index("criterion")
    exact = table.loc[(table["criterion"] == "exact") & (table["way"] == LAST), "error_percent"].mean()
    assert margin == pytest.approx(max(0.1, exact / 10))
    assert tests.loc["snip", "equivalence_p"] < 0.05 < tests.loc["random", "equivalence_p"]
    assert tests.loc["random", "low95"] > margin
    assert tests.loc["snip", "power"] > 0.9
    # other sparsities are not judged
    low = runs({(s, 0.05): [0.5 if s else 0.01] for s in range(5)})
    other = pd.concat([table, scores.error_table(low.assign(criterion="snip"))], ignore_index=True)
    pd.testing.assert_frame_equal(trained.equivalence(other, **RULE)[0].set_index("criterion"), tests)


def test_where_criteria_part():
    table = scores.error_table(many({"exact": 0.0, "snip": 0.01, "random": 1.0}, spread=0.02))
    apart = trained.parting(trained.differences(table, way=LAST), 0.1)
    assert set(apart.loc[apart["apart"], "criterion"]) == {"random"}
    assert len(apart) == 2 * len(JUDGED)
    below = trained.parting(trained.differences(scores.error_table(many({"exact": 2.0, "snip": 0.0})), way=LAST), 0.1)
    assert below["apart"].all()
    few = table[table["seed"] < 4]
    assert not trained.parting(trained.differences(few, way=LAST), 0.1)["apart"].any()  # four seeds have no interval


def test_levels_beside_the_published_ones():
    reported = pd.DataFrame(
        {"criterion": ["snip", "snip"], "sparsity": [0.75, 0.9], "error_percent": [1.0, float("nan")]}
    )
    found = comparisons.place_levels(scores.error_table(many({"snip": 0.0})), reported, num_scored=10_500)
    assert found["sparsity"].tolist() == [0.75]
    assert found["difference"].item() == pytest.approx(found["mean"].item() - 1.0)
    binomial = 1.96 * (100**2 * 0.01 * 0.99 * 2 / 10_500) ** 0.5
    assert found["expected_difference"].item() > 0.9 * binomial
