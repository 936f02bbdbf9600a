"""What tables say about claims, on small tables worked out by hand. Where seeds differ by 1, 0 and -1, an interval of 90 % is 2.919986 / sqrt(3) = 1.685855 wide to either side."""

import numpy as np
import pandas as pd
import pytest

from snipnb.publish import comparisons
from snipnb.publish.evidence import (
    larger_networks,
    lenet5_table,
    parts,
    rules_of_thumb,
    salience_derivation,
    second_order,
    seed_consistency,
    snip_vs_exact,
)


def table(columns, *rows):
    return pd.DataFrame(rows, columns=columns.split())


def runs_of(values, *, sparsity=0.5):
    """Criterion -> error rates in percent, one per seed, at the last of two epochs; the first one is worse."""
    rows = [
        (name, sparsity, seed, epoch, rate / 100 + (2 - epoch) / 10)
        for name, own in values.items()
        for seed, rate in enumerate(own)
        for epoch in (1, 2)
    ]
    return table("criterion sparsity init_seed epoch test_error", *rows)


# --- parts ------------------------------------------------------------------------------------------------------------


def test_a_finding_tells_numbers_from_intervals():
    found = parts.finding({"a": (1.0, 0.5, 2.0), "b": 3.0}, n=4, scope="x")
    assert found == parts.Finding({"a": 1.0, "b": 3.0}, {"a": (0.5, 2.0)}, 4, "x")
    triples = [(1.0, -3.0, 2.5), (2.0, -4.0, 2.25)]
    assert parts.largest(triples) == (2.0, -3.0, 2.5)
    assert parts.smallest(triples) == (1.0, -4.0, 2.25)


def test_rows_are_found():
    frame = table("way images value", ("a", 1, 5.0), ("a", 2, 6.0), ("b", 1, 7.0))
    assert parts.value_at(frame, "value", way="a", images=2) == 6.0
    with pytest.raises(ValueError, match="size 1"):
        parts.value_at(frame, "value", way="a")
    assert parts.differing(table("difference", "0", "w_0", "1")) == 2
    orders = table(
        "state layer measure approximation mean",
        (parts.START, parts.WHOLE, "spearman", "snip", 0.5),
        ("trained", parts.WHOLE, "spearman", "snip", 0.6),
        (parts.START, "conv1.weight", "spearman", "snip", 0.7),
        (parts.START, parts.WHOLE, "overlap", "snip", 0.8),
    )
    assert parts.mean_of(orders, "spearman") == {"snip": 0.5}


def test_the_best_epoch_is_the_smallest_rate_of_a_run():
    runs = runs_of({"snip": [2.0, 3.0]})
    runs.loc[0, "test_error"] = 0.0125  # of seed 0 the first epoch is best
    best = parts.best_rates(runs)
    assert best["error_percent"].tolist() == pytest.approx([1.25, 3.0])
    assert parts.best_rows(best).equals(best)
    assert parts.best_rows(best.assign(way=comparisons.LAST)).empty


def test_power_and_what_would_decide():
    values = np.array([-1.0, 0.0, 1.0])  # standard deviation 1
    found = parts.power(values, 4 / 3**0.5)
    assert found["power"] == pytest.approx(0.606939, abs=1e-6)  # as in test_stats
    # with 4: the 95 % quantile of t with 3 degrees of freedom is 2.353; 4.619 - 2.353 = 2.265 leaves 0.946 on one side, 0.892 on both
    assert found["n_to_decide"] == 4
    assert parts.power(values, 4 / 3**0.5, sides=1)["n_to_decide"] == 3  # 0.803469
    assert parts.power(values, 4 / 3**0.5, wanted=0.6)["n_to_decide"] == 3
    assert parts.power(values, 1e-3)["n_to_decide"] == np.inf
    assert parts.power(values[:1], 1.0) == parts.power(np.ones(3), 1.0) == {}


def test_seeds_are_fresh_from_the_first_that_a_rule_allows():
    assert parts.if_seen(pd.Series([10, 11]), 10) == ""
    assert parts.if_seen(pd.Series([9, 11]), 10) == "its rule asks for seeds from 10 on"


# --- claims -----------------------------------------------------------------------------------------------------------


def test_greedy_fails_where_one_of_its_steps_is_not_best():
    rows = [("exact", 0, True), ("exact", 0, False), ("exact", 1, True), ("exact", 1, True), ("snip", 1, False)]
    found = rules_of_thumb.c3(table("ranking seed is_best", *rows))
    assert (found.statistics, found.n) == ({"seeds_where_greedy_fails": 0.5}, 2)


def test_ratios_of_joint_removal_are_taken_apart_by_sparsity():
    rows = [
        (parts.START, "snip", 0.5, 0, 1.5, 3.0, 3.0),
        (parts.START, "snip", 0.5, 1, 0.8, 4.0, 1.0),
        (parts.START, "snip", 0.9, 0, 1.1, 1.0, 2.0),
        (parts.START, "snip", 0.9, 1, 1.0, 2.0, 4.0),
        (parts.START, "random", 0.9, 0, 9.0, 1.0, 9.0),
        ("trained", "snip", 0.9, 0, 9.0, 1.0, 9.0),
    ]
    joint = table("state criterion sparsity seed ratio joint sum_of_single", *rows)
    found = rules_of_thumb.c4(joint, sparsities=[0.5, 0.9])
    assert found.statistics == pytest.approx(
        {
            "smallest_distance_from_one": 0.1,
            "largest_distance_from_one": 0.5,
            "smallest_relative_miss": 0.6,  # root of 0 + 9 over 9 + 16
            "largest_relative_miss": 1.0,  # root of 1 + 4 over 1 + 4
            "correlation_at_0.5": -1.0,
            "correlation_at_0.9": 1.0,
        }
    )
    assert found.n == 2
    with pytest.raises(ValueError, match="some are missing"):
        rules_of_thumb.c4(joint, sparsities=[0.5, 0.99])
    with pytest.raises(ValueError, match="some are missing"):
        rules_of_thumb.c4(joint.assign(ratio=np.nan), sparsities=[0.5])


def test_layers_that_are_named_are_told_from_the_others():
    names, seeds = {"conv1.weight": (60, 2.0), "full1.weight": (2, 0.5), "full2.weight": (10, 4.0)}, range(10, 13)
    by_layer = table(
        "ranking layer seed named_percent increase",
        *[(r, n, s, p, c + s - 11) for r in ("snip", "random") for n, (p, c) in names.items() for s in seeds],
    )
    by_layer.loc[by_layer["ranking"] == "random", ["named_percent", "increase"]] = 99.0
    removal = table(
        "ranking sparsity seed increase",
        *[(r, p, s, c) for r, p, c in (("snip", 0.5, 3.0), ("snip", 0.9, 7.0), ("random", 0.5, 9.0)) for s in seeds],
    )
    rho = {parts.WHOLE: 0.9, "conv1.weight": 0.5, "full1.weight": 0.7, "conv1.bias": -1.0}
    agreement = table(
        "ranking layer seed spearman",
        *[("snip", n, s, r + (s - 11) / 10) for n, r in rho.items() for s in seeds],
        *[("random", n, s, -0.5) for n in rho for s in seeds],
    )
    found = rules_of_thumb.c30(removal, by_layer, agreement, named_from=10, fresh_from=10)
    assert found.statistics == pytest.approx(
        {
            "error_increase": 3.0,
            "spearman": 0.9,
            "largest_cost_of_named": 4.0,  # of conv1 and full2
            "smallest_cost_of_others": 0.5,
            "smallest_spearman_by_layer": 0.5,  # of those with a cost
        }
    )
    assert found.intervals["largest_cost_of_named"] == pytest.approx((4 - 1.685855, 4 + 1.685855), abs=1e-6)
    assert found.intervals["smallest_spearman_by_layer"] == pytest.approx((0.5 - 0.1685855, 0.5 + 0.1685855), abs=1e-6)
    assert found.scope == "LeNet-5 after training; layers named: conv1, full2; seeds 10 to 12"
    assert (found.n, found.not_fresh) == (3, "")
    none = rules_of_thumb.c30(removal, by_layer, agreement, named_from=90, fresh_from=10)
    assert none.not_fresh == "SNIP names no layer"
    assert "named: none;" in none.scope
    assert (
        np.isnan([none.statistics["largest_cost_of_named"], *none.intervals["largest_cost_of_named"]]).tolist()
        == [True] * 3
    )
    every = rules_of_thumb.c30(removal, by_layer, agreement, named_from=0, fresh_from=11)
    assert np.isnan(every.statistics["smallest_cost_of_others"])
    assert every.not_fresh == "its rule asks for seeds from 11 on"


def test_families_are_worse_by_holm_and_not_worse_by_their_lower_ends():
    rows = [
        (family, layers, layers, seed, 0.5 + sign * (seed - 9) / 10 * (layers - 3))
        for family, sign in (("z", -1), ("a", 1))
        for layers in (3, 5)
        for seed in (10, 11, 12)
    ]
    swept = table("family value layers seed spearman", *rows)
    found = larger_networks.c27(swept, layers_more=[0, 2], fresh_from=10)
    # slopes of z: -0.1, -0.2, -0.3; t = -0.2 sqrt(3) / 0.1 = -3.464102 with 2 degrees of freedom: 1/2 - 3.464102 / (2 sqrt(14)) = 0.037090,
    # doubled, as it is the smaller of two; the lower end of a is 0.2 - 0.1685855
    assert found.statistics == pytest.approx(
        {
            "slope": -0.2,  # of the first family of the table
            "steepest_slope": -0.2,
            "smallest_p": 0.074180,
            "families_worse": 0,
            "families_not_worse": 1,
            "families": 2,
        },
        abs=1e-6,
    )
    assert found.intervals["steepest_slope"] == pytest.approx((-0.3685855, -0.0314145), abs=1e-6)
    assert found.scope.endswith("up to 2 layers more or 4 times as wide; steepest: z")
    assert (found.n, found.not_fresh) == (3, "")


def test_published_means_are_outside_jointly():
    values = {"snip": [1.0, 2.0, 3.0], "other": [50.0, 50.0]}
    runs = pd.concat([runs_of(values), runs_of(values, sparsity=0.9)])
    # standard deviation of the difference: root of 0.037333 + 0.433333 = 0.686051, as in test_comparisons; 5 of these have p = 0.037750
    # on both sides with 2 degrees of freedom, 7 of them 0.019806; of two means, twice as much
    published = table(
        "criterion sparsity error_percent", ("snip", 0.5, 2 + 5 * 0.686051), ("snip", 0.9, 2 + 7 * 0.686051)
    )
    near = published.assign(error_percent=[2.0, 2.0])
    both = {"num_scored": 10_500, "assay_scored": 10_500}
    found = snip_vs_exact.c25b(runs, runs[runs["sparsity"] == 0.9], published, **both)
    assert found.statistics == {"means_outside": 1, "assay_outside": 1, "means": 2}
    assert found.n == 3
    assert snip_vs_exact.c25b(runs, runs, near, **both).statistics["means_outside"] == 0


def test_equally_good_training_is_measured_from_both_sides():
    better = runs_of({"exact": [10.0] * 3, "snip": [7.0, 8.0, 9.0], "random": [30.0, 31.0, 32.0]})
    short = table("criterion n mean_difference equivalence_p", ("snip", 2, 0.5, 0.25), ("random", 2, 9.0, 1.0))
    rules = {"sparsities": [0.5], "smallest_margin": 0.5}
    found = snip_vs_exact.c25a(better, short, **rules)
    assert found.statistics["margin"] == pytest.approx(1.0)
    assert found.statistics["mean_difference"] == pytest.approx(-2)
    assert found.intervals["mean_difference"] == pytest.approx((-2 - 1.685855, -2 + 1.685855), abs=1e-6)
    assert found.statistics["beyond_margin"] == pytest.approx(2 - 1.685855 - 1, abs=1e-6)
    assert found.statistics["random_excess_low"] == pytest.approx(21 - 2.484138 - 1, abs=1e-6)  # of a 95 % interval
    assert [found.statistics[f"short_{name}"] for name in ("n", "mean_difference", "equivalence_p")] == [2, 0.5, 0.25]
    assert found.n == 3
    for few in (short.assign(n=1), short[:0]):
        assert not any(name.startswith("short") for name in snip_vs_exact.c25a(better, few, **rules).statistics)


def test_the_worst_sparsity_is_that_of_the_smallest_mean_overlap():
    agreement = table("init layer seed spearman", *[("a", parts.WHOLE, s, 0.9 + s / 20) for s in range(3)])
    overlaps = table(
        "init layer sparsity seed overlap",
        *[("a", parts.WHOLE, 0.5, s, 0.9 + s / 1000) for s in range(3)],
        *[("a", parts.WHOLE, 0.9, s, 0.6 + s / 10) for s in range(3)],
    )
    more = [("b", parts.WHOLE, 0, -1.0), ("a", "conv1.weight", 0, -1.0)]
    agreement = pd.concat([agreement, table("init layer seed spearman", *more)])
    overlaps = pd.concat(
        [overlaps, overlaps.assign(init="b", overlap=0.0), overlaps.assign(layer="conv1.weight", overlap=0.0)]
    )
    found = snip_vs_exact.c24(agreement, overlaps, init="a", least_overlap=0.88)
    assert found.statistics == pytest.approx(
        {
            "smallest_spearman": 0.9,
            "smallest_overlap": 0.6,
            "spearman": 0.95,
            "overlap_at_the_worst": 0.7,
            "worst_sparsity": 0.9,
            "sparsities_inside": 1,  # 0.901 - 0.0017 is above
            "sparsities_outside": 1,  # 0.7 + 0.168586 is below
        }
    )
    assert found.intervals["spearman"] == pytest.approx((0.95 - 0.0842928, 0.95 + 0.0842928), abs=1e-6)
    assert found.intervals["overlap_at_the_worst"] == pytest.approx((0.5314145, 0.8685855), abs=1e-6)
    assert (found.n, found.scope) == (3, "LeNet-5 at its start, 2 sparsities")


def test_costs_are_in_units_of_the_cheaper_way():
    snip = table(
        "way seconds in_gradients low95 high95 rounds images", ("SNIP of every parameter", 2.0, 1.5, 1.25, 2.0, 7, 3000)
    )
    exact = table(
        "parameters pass_seconds pass_low95 pass_high95 engine_seconds engine_in_passes_over_parameters images",
        (100, 0.5, 0.4, 0.6, 8.0, 0.25, 1000),
        (999, 9.0, 9.0, 9.0, 9.0, 9.0, 9),
    )
    found = snip_vs_exact.c36(exact, snip)
    assert found.statistics == {"times_snip_directly": 25.0, "times_snip_by_the_engine": 4.0}
    assert found.intervals == {"times_snip_directly": pytest.approx((20.0, 30.0))}
    assert found.scope == "LeNet-5, 1,000 images"
    assert snip_vs_exact.c5(exact).statistics == {"cost_in_forward_passes_over_m": 0.25}
    gradients = snip_vs_exact.c9(snip)
    assert (gradients.statistics, gradients.intervals) == (
        {"cost_in_gradients": 1.5},
        {"cost_in_gradients": (1.25, 2.0)},
    )
    assert (gradients.n, gradients.scope) == (7, "this package, 3,000 images")
    ways = table("way in_gradients in_gradients_low95 in_gradients_high95 images", ("diagonal", 9.0, 8.0, 10.0, 50))
    alone = second_order.c18(ways)
    assert (alone.statistics, alone.intervals) == ({"cost_in_gradients": 9.0}, {"cost_in_gradients": (8.0, 10.0)})
    assert alone.not_fresh == "no approximate diagonal was timed"
    both = second_order.c18(pd.concat([ways, ways.assign(way=second_order.APPROXIMATE, in_gradients=2.0)]))
    assert (both.statistics["approximate_cost_in_gradients"], both.not_fresh) == (2.0, "")


def test_the_total_of_every_seed_is_compared():
    rows = [("snip", 0.5, 0, 3), ("snip", 0.5, 0, 4), ("snip", 0.5, 1, 8), ("snip", 0.9, 0, 1), ("snip", 0.9, 1, 1)]
    counts = table("ranking sparsity seed kept", *rows, ("random", 0.5, 0, 99))
    published = table("sparsity kept", (0.5, 2), (0.5, 5), (0.9, 1))
    found = lenet5_table.c12b(counts, published)
    assert found.statistics == {"seeds_with_another_total": 1}
    assert (found.n, found.scope) == (2, "LeNet-5, sparsity 0.5 and 0.9")


def test_xavier_has_to_fit_better_than_any_other():
    scores = table(
        "init p_value n",
        ("xavier_normal", 0.5, 30),
        ("xavier_uniform", 0.25, 20),
        ("pytorch", 0.5, 40),
        ("he", 0.1, 40),
    )
    placed = pd.DataFrame({"init": scores["init"], "xavier_normal": [8, 1, 0, 3], "pytorch": [2, 9, 10, 7]})
    found = seed_consistency.c11(scores, placed, candidates=["xavier_uniform", "pytorch"])
    assert found.statistics == {
        "best_xavier_p": 0.5,
        "best_other_p": 0.5,
        "xavier_fits_best": False,  # nor does it as well
        "attribution_accuracy": 26 / 40,  # 8 + 1 + 10 + 7
        "accuracy_of_candidates": 11 / 20,
        "xavier_p": 0.25,  # of the candidate
        "pytorch_p": 0.5,
    }
    assert (found.n, found.scope) == (20, "20 counts, 2 initialisations")


def test_mathematics_is_judged_by_its_largest_error():
    steps = table("step error", (1e-3, 0.5), (1e-3, 0.1), (1e-3, 0.2), (1e-2, 9.0))
    rankings = table("ranking overlap", ("gradient", 0.3), ("signed salience", 0.4))
    found = salience_derivation.c6(steps, rankings, step=1e-3, sparsity=0.95)
    assert found.statistics == {"additive_overlap": 0.3, "median_step_error": 0.2, "largest_step_error": 0.5}
    assert found.scope == "LeNet-5, sparsity 0.95, 3 parameters sampled"
    masks = table("mask_changed sum_percent", (False, 100.5), (True, 99.0), (False, 100.0))
    assert salience_derivation.c10(masks).statistics == {"masks_changed": 1, "distance_of_sum_from_100": 1.0}
    at_one = table("what value", ("share of saliences equal to 1", 0.25), ("loss change, indicators at 1", -2.0))
    assert salience_derivation.c14(at_one).statistics == {
        "share_of_saliences_at_one": 0.25,
        "loss_difference_at_one": 2.0,
    }
    indicators = table("relative_difference", (0.5,), (0.25,))
    operations = table("over_one_gradient", (1.0,), (2.0,), (1.5,))
    assert salience_derivation.c16(operations, indicators).statistics == {
        "operations_over_one_gradient": 1.5,
        "relative_difference": 0.5,
    }
    linearity = table("case error", ("linear", 0.1), ("linear", 0.2), ("ReLU", 9.0))
    found = salience_derivation.c23(linearity)
    assert (found.statistics, found.scope) == ({"largest_error": 0.2}, "2 parameters of a linear network")
    nested = table("order network largest_error", (2, "a", 9.0), (3, "a", 0.5), (4, "b", 0.25))
    assert second_order.c22(nested).statistics == {"largest_error": 0.5}
    formulas = table("formula exact", ("printed: a", False), ("corrected: b", True))
    assert second_order.c19(formulas).statistics == {"symbolic_differences": 0}
    assert second_order.c19(formulas[::-1]).statistics == {"symbolic_differences": 1}
