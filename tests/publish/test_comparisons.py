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


def rates_of(values, *, sparsity=0.5, way=comparisons.LAST):
    """Criterion -> error rates in percent, one per seed."""
    rows = [(name, sparsity, seed, way, rate) for name, own in values.items() for seed, rate in enumerate(own)]
    return pd.DataFrame(rows, columns=["criterion", "sparsity", "seed", "way", "error_percent"])


def test_a_pair_of_criteria_is_compared_over_the_seeds_of_both():
    rates = rates_of({"first": [5.0, 6.0, 7.0, 9.0], "second": [4.0, 4.0, 4.0]})
    best = rates_of({"first": [0.0] * 4, "second": [8.0] * 4}, way=comparisons.BEST)
    # differences 1, 2, 3: mean 2, standard error 1 / sqrt(3); the 97.5 % quantile of t with 2 degrees of freedom is 4.302653
    found = comparisons.paired(pd.concat([best, rates]), "first", "second")
    assert found == pytest.approx((2, 2 - 2.484138, 2 + 2.484138), abs=1e-6)
    # and the 95 % quantile 2.919986
    assert comparisons.paired(rates, "first", "second", level=0.9)[1] == pytest.approx(2 - 1.685855, abs=1e-6)


def test_equivalence_is_of_mean_differences_at_the_judged_sparsities():
    judged = [
        rates_of({"exact": [10.0, 10.0, 10.0], "snip": [11.0, 12.0, 13.0]}, sparsity=0.5),
        rates_of({"exact": [20.0, 20.0, 20.0], "snip": [17.0, 18.0, 19.0]}, sparsity=0.9),
    ]
    others = [
        rates_of({"exact": [90.0] * 3, "snip": [10.0] * 3}, sparsity=0.99),
        rates_of({"exact": [70.0] * 3, "snip": [10.0] * 3}, sparsity=0.9, way=comparisons.BEST),
    ]
    rules = {"sparsities": [0.5, 0.9], "smallest_margin": 0.2}
    table, margin = comparisons.equivalence(pd.concat(judged + others), **rules)
    assert margin == pytest.approx(1.5)  # a tenth of (10 + 20) / 2
    row = table.iloc[0]
    assert (len(table), row["criterion"], row["n"]) == (1, "snip", 3)
    # of each seed (1 - 3) / 2, (2 - 2) / 2, (3 - 1) / 2: -1, 0, 1; standard error 1 / sqrt(3), quantile 4.302653
    assert row[["mean_difference", "low95", "high95"]].tolist() == pytest.approx([0, -2.484138, 2.484138], abs=1e-6)
    # 1.5 sqrt(3) = 2.598076 with 2 degrees of freedom: 1/2 - 2.598076 / (2 sqrt(8.75)) = 0.060845
    assert row["equivalence_p"] == pytest.approx(0.060845, abs=1e-6)
    assert comparisons.equivalence(judged[0], sparsities=[0.5], smallest_margin=3.0)[1] == 3.0


def test_margins_are_those_of_the_own_sparsity():
    def runs(sparsity, values):
        rows = rates_of(values, sparsity=sparsity).assign(epoch=2, collapsed=0)
        rows["test_error"] = rows["error_percent"] / 100
        early = rows.assign(epoch=1, test_error=0.9)  # which does not count
        return pd.concat([early, rows]).rename(columns={"seed": "init_seed"})

    tried = {"snip": [10.0, 10.0, 10.0], "b": [11.0, 12.0, 13.0], "a": [10.0, 10.0, 10.0]}
    both = pd.concat([runs(0.9, {name: [5 * x for x in own] for name, own in tried.items()}), runs(0.5, tried)])
    compared, pairs = comparisons.against_snip(both, smallest_margin=0.1)
    found = compared[["criterion", "sparsity", "margin", "mean", "error_percent", "collapsed"]]
    assert found.values.tolist() == [
        [name, sparsity, pytest.approx(margin), pytest.approx(mean), pytest.approx(rate), 0]
        for name, sparsity, margin, mean, rate in (
            ("b", 0.9, 5, 10, 60),
            ("a", 0.9, 5, 0, 50),
            ("b", 0.5, 1, 2, 12),
            ("a", 0.5, 1, 0, 10),
        )
    ]
    assert len(pairs) == 12


def test_draws_of_a_seed_are_one_criterion_where_it_stood():
    rates = rates_of({"snip": [1.0], "perturbed_1": [2.0], "perturbed_12": [5.0], "a_perturbed_1": [7.0]})
    found = comparisons.draws_together(rates)[["criterion", "error_percent"]]
    assert found.values.tolist() == [["snip", 1.0], ["perturbed", 3.5], ["a_perturbed_1", 7.0]]


def test_images_add_binomial_variance():
    # 2 % of two sets of 10,500 images: 100^2 * 0.02 * 0.98 * 2 / 10,500 = 392 / 10,500
    assert comparisons.binomial_variance(2.0, 10_500) == pytest.approx(392 / 10_500)


def test_levels_are_placed_by_seeds_and_images():
    rates = [
        rates_of({"snip": [1.0, 2.0, 3.0], "other": [1.0]}, way=comparisons.BEST),
        rates_of({"snip": [1.0, 3.0]}, sparsity=0.9, way=comparisons.BEST),
        rates_of({"snip": [2.0]}, sparsity=0.95, way=comparisons.BEST),
        rates_of({"snip": [9.0] * 3}),
    ]
    published = pd.DataFrame(
        {"criterion": ["snip"] * 3 + ["other"], "sparsity": [0.5, 0.9, 0.95, 0.5], "error_percent": [1.5, 3, 2, np.nan]}
    )
    placed = comparisons.place_levels(pd.concat(rates), published, num_scored=10_500)
    assert placed[["criterion", "sparsity", "n", "mean", "reported", "difference"]].values.tolist() == [
        ["snip", 0.5, 3, 2.0, 1.5, 0.5],
        ["snip", 0.9, 2, 2.0, 3.0, -1.0],
        ["snip", 0.95, 1, 2.0, 2.0, 0.0],
    ]
    # images 0.037333 (see above); seeds 1 (1/3 + 1/10) = 0.433333, and 2 (1/2 + 1/10) = 1.2; one run has no spread
    expected = placed["expected_difference"].tolist()
    assert expected[:2] == pytest.approx([1.96 * 0.470667**0.5, 1.96 * 1.237333**0.5], rel=1e-6)
    assert np.isnan(expected[2])


def counts_of(kept, parameters=(100, 100)):
    """Rows of seeds, columns of layers."""
    rows = [
        ("here", seed, layer, count, size)
        for seed, own in enumerate(kept)
        for layer, count, size in zip("abc", own, parameters, strict=False)
    ]
    return pd.DataFrame(rows, columns=["where", "seed", "layer", "kept", "parameters"])


def test_variance_is_split_between_layers_and_seeds():
    # fractions 0.1, 0.5 and 0.3, 0.7; grand mean 0.4; all squares 0.09 + 0.01 + 0.01 + 0.09 = 0.2; of the layers' means 0.2 and
    # 0.6 twice 0.04 + 0.04 = 0.16: 0.8. Resamples are both seeds (0.8), or one seed twice (1).
    found = comparisons.variance_split(counts_of([[10, 100], [30, 140]], (100, 200)), by=["where"]).iloc[0]
    assert found.tolist() == ["here", 2, pytest.approx(0.8), pytest.approx(0.8), pytest.approx(1)]


def test_its_interval_is_a_bootstrap_over_seeds():
    kept = np.array([[10, 50, 20], [30, 70, 20], [25, 52, 60], [5, 61, 33]])
    again = []
    for draw in np.random.RandomState(0).randint(4, size=(2000, 4)):  # 2,000 resamples, seed 0
        own = kept[draw] / 100
        within = ((own - own.mean(axis=0)) ** 2).sum()
        again.append(1 - within / ((own - own.mean()) ** 2).sum())
    found = comparisons.variance_split(counts_of(kept, (100,) * 3), by=["where"], level=0.9).iloc[0]
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.quantile(again, [0.05, 0.95])))


def test_the_share_by_chance_is_that_of_binomial_counts():
    # keep rates 0.2 and 0.6: variance 0.04; binomial 0.2 * 0.8 / 100 and 0.6 * 0.4 / 100, in the mean 0.002; 0.04 / 0.042
    assert comparisons.share_by_chance(counts_of([[10, 50], [30, 70]])) == pytest.approx(0.952381, abs=1e-6)


def test_slopes_are_on_layers_or_on_doublings_of_the_width():
    rows = [("deep", 0, 3, 0.9), ("deep", 2, 5, 0.7), ("wide", 1, 5, 0.5), ("wide", 4, 5, 0.9), ("single", 1, 5, 0.5)]
    swept = pd.DataFrame(rows, columns=["family", "value", "layers", "spearman"]).assign(seed=7)
    found = comparisons.slopes_by_seed(swept)
    assert found[["family", "per", "seed"]].values.tolist() == [
        ["deep", "layer", 7],
        ["wide", "doubling of width", 7],
        ["single", "layer", 7],
    ]
    assert found["slope"].tolist()[:2] == pytest.approx([-0.1, 0.2])  # -0.2 over 2 layers, +0.4 over 2 doublings
    assert np.isnan(found["slope"][2])


def test_the_right_side_is_xavier_or_any_other():
    rows = [("xavier_normal", 3, 1, 2), ("xavier_uniform", 0, 5, 1), ("pytorch", 1, 2, 7)]
    attributed = pd.DataFrame(rows, columns=["init", "xavier_normal", "xavier_uniform", "pytorch"])
    assert comparisons.right_side(attributed) == 16 / 22  # 4 + 5 + 7 of 6 + 6 + 10


def test_an_excess_is_over_twice_the_best_one_of_its_sparsity():
    # name, seed, error rates in percent at sparsities 0, 0.5 and 0.9; increases a: 0.5 and 2.5, b: 4 and 0.75
    rows = [("a", 1, 0.5, 0.75, 2.5), ("a", 2, 0.5, 1.25, 3.5), ("b", 1, 1.0, 5.0, 2.0), ("b", 2, 2.0, 6.0, 2.5)]
    wide = pd.DataFrame(rows, columns=["name", "init_seed", 0.0, 0.5, 0.9])
    runs = wide.melt(["name", "init_seed"], var_name="sparsity", value_name="test_error").assign(epoch=3)
    runs["test_error"] /= 100
    early = runs.assign(epoch=2, test_error=1.0)
    both = pd.concat([runs, early])
    assert comparisons.excess(both, sparsities=[0.5], allowed=0.25) == pytest.approx(4 - (2 * 0.5 + 0.25))
    assert comparisons.excess(both, sparsities=[0.9], allowed=0.25) == pytest.approx(2.5 - (2 * 0.75 + 0.25))
    assert comparisons.excess(both, sparsities=[0.5, 0.9], allowed=0.25) == pytest.approx(2.75)
