import dataclasses

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from snipnb.data import Split
from snipnb.publish import ledger
from snipnb.publish.stats import equivalence_test
from snipnb.studies import shared as errors
from snipnb.studies.lenet5_table import measure as lenet5_table
from snipnb.studies.snip_vs_exact import trained
from snipnb.training import scores
from snipnb.training.loop import Recipe

JUDGED = ledger.settings("C25")["sparsities"]
LAST, BEST = scores.WAYS["error_rate"], scores.WAYS["best_error_rate"]


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


def test_every_way_of_every_run():
    table = scores.error_table(runs({(0, 0.5): [0.3, 0.1, 0.2], (1, 0.5): [0.2, 0.2, 0.1]}))
    assert len(table) == 6
    assert table.loc[(table["seed"] == 0) & (table["way"] == LAST), "error_percent"].item() == pytest.approx(20)
    assert table.loc[(table["seed"] == 0) & (table["way"] == BEST), "error_percent"].item() == pytest.approx(10)
    unvalidated = runs({(0, 0.5): [0.3, 0.1]}).assign(validation_error=float("nan"))
    assert len(scores.error_table(unvalidated)) == 2


def test_curves_hold_mean_and_range():
    table = scores.error_table(runs({(0, 0.5): [0.1], (1, 0.5): [0.2], (2, 0.5): [0.6]}))
    row = trained.curves(table, way=LAST).iloc[0]
    assert (row["n"], row["mean"], row["smallest"], row["largest"]) == pytest.approx((3, 30, 10, 60))


def test_differences_are_taken_between_runs_of_one_seed_and_sparsity():
    table = scores.error_table(many({"exact": 0.0, "snip": 0.05, "random": 2.0}))
    shuffled = table.sample(frac=1, random_state=1)
    pairs = errors.differences(shuffled, way=LAST)
    assert set(pairs["criterion"]) == {"snip", "random"}
    assert pairs.loc[pairs["criterion"] == "snip", "difference"].to_numpy() == pytest.approx(np.full(25, 0.05))
    assert pairs.loc[pairs["criterion"] == "random", "difference"].to_numpy() == pytest.approx(np.full(25, 2.0))
    with pytest.raises(ValueError, match="needs one of criterion 'exact' with the same seed"):
        errors.differences(table[~((table["criterion"] == "exact") & (table["seed"] == 2))], way=LAST)


RULE = ledger.settings("C25")


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


def test_the_equivalence_test_is_two_t_tests():
    values = np.array([0.03, -0.02, 0.05, 0.01, 0.04])
    found = equivalence_test(values, 0.1)
    above = scipy.stats.ttest_1samp(values, -0.1, alternative="greater").pvalue
    below = scipy.stats.ttest_1samp(values, 0.1, alternative="less").pvalue
    assert found.p_value == pytest.approx(max(above, below))
    assert (found.low, found.high) == pytest.approx(tuple(scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)))
    assert equivalence_test(values + 1, 0.1).p_value > 0.999
    assert np.isnan(equivalence_test(values[:1], 0.1).p_value)
    assert equivalence_test(np.zeros(4), 0.1).p_value == 0
    assert equivalence_test(np.ones(4), 0.1).p_value == 1
    with pytest.raises(ValueError, match="margin must be above 0; got 0"):
        equivalence_test(values, 0)


@pytest.mark.parametrize(("spread", "n"), [(0.05, 5), (0.1, 5), (0.1, 10), (0.3, 10)])
def test_its_level_and_power_are_as_said(spread, n):
    draw = np.random.default_rng(3)
    at_margin = [equivalence_test(draw.normal(0.1, spread, n), 0.1).p_value <= 0.05 for _ in range(2000)]
    assert np.mean(at_margin) <= 0.065
    none = [equivalence_test(draw.normal(0.0, spread, n), 0.1) for _ in range(2000)]
    rate = np.mean([t.p_value <= 0.05 for t in none])
    assert np.mean([t.power for t in none]) == pytest.approx(rate, abs=0.15)


def test_where_criteria_part():
    table = scores.error_table(many({"exact": 0.0, "snip": 0.01, "random": 1.0}, spread=0.02))
    apart = trained.parting(errors.differences(table, way=LAST), 0.1)
    assert set(apart.loc[apart["apart"], "criterion"]) == {"random"}
    assert len(apart) == 2 * len(JUDGED)
    below = trained.parting(errors.differences(scores.error_table(many({"exact": 2.0, "snip": 0.0})), way=LAST), 0.1)
    assert below["apart"].all()


def test_levels_beside_the_published_ones():
    reported = pd.DataFrame(
        {"criterion": ["snip", "snip"], "sparsity": [0.75, 0.9], "error_percent": [1.0, float("nan")]}
    )
    found = trained.place_levels(scores.error_table(many({"snip": 0.0})), reported, num_scored=10_500)
    assert found["sparsity"].tolist() == [0.75]
    assert found["difference"].item() == pytest.approx(found["mean"].item() - 1.0)
    binomial = 1.96 * (100**2 * 0.01 * 0.99 * 2 / 10_500) ** 0.5
    assert found["expected_difference"].item() > 0.9 * binomial


def test_only_the_published_protocol_counts_as_such():
    empty = (None,) * 6
    recipe = Recipe(epochs=80, learning_rate=0.0012, schedule="step")
    assert lenet5_table.follows_published_protocol(Split("published", *empty), recipe)
    assert not lenet5_table.follows_published_protocol(Split("standard", *empty), recipe)
    for change in (
        {"epochs": 3},
        {"learning_rate": 0.01},
        {"schedule": "one_cycle"},
        {"schedule": "constant"},
        {"optimiser": "sgd"},
    ):
        assert not lenet5_table.follows_published_protocol(
            Split("published", *empty), dataclasses.replace(recipe, **change)
        )


# --- beside the published table ---------------------------------------------------------------------------------------


def test_error_tables_hold_three_ways_of_every_run():
    runs = pd.DataFrame(
        {
            "criterion": "snip",
            "init_seed": [3, 3, 3, 3, 4, 4, 4, 4],
            "sparsity": [0.0, 0.0, 0.5, 0.5] * 2,
            "epoch": [1, 2] * 4,
            "validation_error": [0.3, 0.2] * 4,
            "test_error": [0.4, 0.5] * 4,
        }
    )
    table = scores.error_table(runs)
    assert len(table) == 4 * 3
    assert table["error_percent"].tolist() == [50, 40, 50] * 4
    reported = pd.DataFrame({"sparsity": [0.0, 0.5], "error_percent": [0.65, 0.55]})
    summary = lenet5_table.error_summary(table, reported)
    assert summary["n"].tolist() == [2] * 6
    assert summary["reported"].tolist() == [0.65] * 3 + [0.55] * 3


def test_published_errors_are_placed_by_spread_and_binomial_variance():
    way = scores.WAYS["best_error_rate"]
    table = pd.DataFrame({"sparsity": [0.0] * 4, "way": [way] * 4, "error_percent": [1.0, 1.1, 0.9, 1.0]})
    reported = pd.DataFrame({"sparsity": [0.0], "error_percent": [1.2]})
    placed = lenet5_table.place_errors(table, reported, num_scored=10_000).iloc[0]
    # s^2 = 0.02 / 3; binomial 99 (1/10000 + 1/10500); degrees 3 ((spread + binomial) / spread)^2
    spread, binomial = 0.02 / 3 * 1.25, 99 * (1 / 10_000 + 1 / 10_500)
    degrees = 3 * ((spread + binomial) / spread) ** 2
    half = scipy.stats.t.ppf(0.975, degrees) * (spread + binomial) ** 0.5
    assert placed[["mean", "low", "high"]].tolist() == pytest.approx([1.0, 1 - half, 1 + half])
    assert placed["inside"]
    for value, inside in ((1 + half - 0.001, True), (1 + half + 0.001, False), (1 - half - 0.001, False)):
        shifted = reported.assign(error_percent=value)
        assert lenet5_table.place_errors(table, shifted, num_scored=10_000)["inside"].tolist() == [inside]
    three = pd.concat([reported.assign(sparsity=s) for s in (0.0, 0.5, 0.95)])
    wider = lenet5_table.place_errors(
        pd.concat([table.assign(sparsity=s) for s in (0.0, 0.5, 0.95)]), three, num_scored=10_000
    )
    assert (wider["high"] > placed["high"]).all()  # three intervals that hold jointly
    with pytest.raises(ValueError, match="one more run needs at least 2; got 1 at sparsity 0"):
        lenet5_table.place_errors(table[:1], reported, num_scored=10_000)


def test_runs_without_spread_are_placed_by_the_binomial_variance_alone():
    way = scores.WAYS["best_error_rate"]
    table = pd.DataFrame({"sparsity": [0.0] * 3, "way": [way] * 3, "error_percent": [1.0] * 3})
    reported = pd.DataFrame({"sparsity": [0.0], "error_percent": [1.0]})
    placed = lenet5_table.place_errors(table, reported, num_scored=10_000).iloc[0]
    assert placed["high"] - 1 == pytest.approx(1.95996 * (99 * (1 / 10_000 + 1 / 10_500)) ** 0.5, rel=1e-4)


def test_recipes_are_placed_one_by_one():
    rows = [
        {
            "name": name,
            "criterion": "snip",
            "init_seed": seed,
            "sparsity": sparsity,
            "epoch": epoch,
            "test_error": error / 100,
        }
        for name, base in (("one", 1.0), ("other", 3.0))
        for seed in range(3)
        for sparsity in (0.0, 0.95)
        for epoch, error in ((1, base + sparsity), (2, base + sparsity + 0.1 * seed))
    ]
    runs = pd.DataFrame(rows).assign(validation_error=float("nan"), train_loss=0.5)
    reported = pd.DataFrame({"sparsity": [0.0, 0.5, 0.95], "error_percent": [1.0, 9.0, 3.95]})
    levels = lenet5_table.recipe_levels(runs, reported, num_scored=10_000)
    assert levels[["recipe", "sparsity"]].values.tolist() == [
        ["one", 0.0],
        ["one", 0.95],
        ["other", 0.0],
        ["other", 0.95],
    ]
    assert levels["best_epoch"].tolist() == pytest.approx([1.0, 1.95, 3.0, 3.95])
    assert levels["last_epoch"].tolist() == pytest.approx([1.1, 2.05, 3.1, 4.05])
    assert levels[["smallest", "largest"]].values.tolist() == [
        [pytest.approx(b), pytest.approx(b)] for b in (1.0, 1.95, 3.0, 3.95)
    ]
    assert list(levels) == [
        "recipe",
        "sparsity",
        "n",
        "last_epoch",
        "best_epoch",
        "smallest",
        "largest",
        "low",
        "high",
        "reported",
        "inside",
    ]
    assert levels["inside"].tolist() == [True, False, False, True]
    alone = lenet5_table.recipe_levels(runs[runs["name"] == "other"], reported, num_scored=10_000)
    pd.testing.assert_frame_equal(alone, levels[levels["recipe"] == "other"].reset_index(drop=True))


def test_a_split_without_validation_has_no_selected_epoch():
    runs = pd.DataFrame(
        {
            "criterion": "snip",
            "init_seed": 0,
            "sparsity": 0.5,
            "epoch": [1, 2],
            "validation_error": float("nan"),
            "test_error": [0.2, 0.3],
        }
    )
    table = scores.error_table(runs)
    assert table["way"].tolist() == ["last epoch", "best epoch on scored images"]
    assert table["error_percent"].tolist() == [30, 20]
    assert lenet5_table.same_in_every_way(table) == 0
