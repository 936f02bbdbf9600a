import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats

from snipnb.publish import stats


def test_mean_interval_is_the_t_interval():
    values = np.array([1.0, 2.0, 4.0, 9.0])
    mean, low, high = stats.mean_interval(values)
    expected = scipy_stats.t.interval(0.95, 3, loc=4.0, scale=scipy_stats.sem(values))
    assert (mean, low, high) == pytest.approx((4.0, *expected))
    assert np.isnan(stats.mean_interval([3.0])[1])


def test_predictive_mid_p_of_the_centre_is_large_and_of_the_tail_small():
    counts = np.array([100, 102, 98, 101, 99, 100, 103, 97])
    assert stats.predictive_mid_p(100, counts) > 0.9
    assert stats.predictive_mid_p(110, counts) < 0.01
    assert stats.predictive_mid_p(90, counts) == pytest.approx(stats.predictive_mid_p(110, counts))


def test_predictive_mid_p_is_empirical_where_counts_hardly_vary():
    counts = np.array([6] * 19 + [5])
    # With the value itself 21 counts: at 6, below 6 stands one; at 5, below none and equal two.
    assert stats.predictive_mid_p(6, counts) == pytest.approx(2 * (1 - (1 + 0.5 * 20) / 21))
    assert stats.predictive_mid_p(5, counts) == pytest.approx(2 * 0.5 * 2 / 21)
    assert stats.predictive_mid_p(4, counts) == pytest.approx(2 * 0.5 / 21)
    assert stats.prediction_interval(counts, 6) == (5, 6)


def test_predictive_mid_p_is_that_of_the_t_distribution_where_counts_vary():
    # With 2 degrees of freedom the distribution function is 1/2 + x / (2 sqrt(2 + x^2)).
    # 1, 2, 3: mean 2, variance 1 (enough for t), scale sqrt(4/3); 3 lies between 0.5 and 1.5 above: 0.43301 and 1.29904 scales,
    # so 0.646385 and 0.838240 are below; mean 0.742313; 2 (1 - 0.742313) = 0.515375.
    assert stats.predictive_mid_p(3, np.array([1, 2, 3])) == pytest.approx(0.515375, abs=1e-6)
    # 0, 1, 3: mean 4/3, variance 7/3, scale sqrt(28/9); 7/6 and 13/6 above are 0.661438 and 1.228384 scales,
    # so 0.711830 and 0.827882; mean 0.769856; 2 (1 - 0.769856) = 0.460288.
    assert stats.predictive_mid_p(3, np.array([0, 1, 3])) == pytest.approx(0.460288, abs=1e-6)


def test_prediction_interval_holds_one_more_draw_as_often_as_it_says():
    draw = np.random.RandomState(0)
    hits = 0
    for _ in range(400):
        counts = draw.binomial(200, 0.3, size=21)
        low, high = stats.prediction_interval(counts[1:], 200)
        hits += low <= counts[0] <= high
    assert 0.92 < hits / 400 < 0.98


def test_prediction_interval_stays_within_the_layer():
    assert stats.prediction_interval(np.array([9, 10, 5, 10, 10]), 10)[1] == 10
    assert stats.prediction_interval(np.array([0, 1, 4, 0, 0]), 10)[0] == 0


def test_table_fit_tells_a_strange_table_from_one_more_seed():
    draw = np.random.RandomState(1)
    seeds = draw.binomial(500, np.linspace(0.1, 0.9, 12), size=(60, 12))
    usual = stats.table_fit(draw.binomial(500, np.linspace(0.1, 0.9, 12)), seeds)
    strange = stats.table_fit(seeds.mean(axis=0).round() + 45, seeds)
    assert usual.p_value > 0.05
    assert strange.p_value == pytest.approx(1 / 61)
    assert strange.outside == 12
    assert usual.seeds_outside.shape == (60,)


def test_table_fit_of_one_count():
    # 9 against 0, 1, 3: 43/6 and 49/6 above the mean are 4.063107 and 4.630053 scales, so 0.972214 and 0.978191 are below (see above);
    # 2 (1 - 0.975203) = 0.049595: outside. None of the others is, against the other three: so 9 is the most extreme of four.
    fit = stats.table_fit(np.array([9]), np.array([[0], [1], [3]]))
    assert fit.cell_p == pytest.approx([0.049595], abs=1e-6)
    assert (fit.outside, fit.smallest_p, fit.p_value) == (1, fit.cell_p[0], 0.25)
    assert fit.seeds_outside.tolist() == [0, 0, 0]
    assert stats.table_fit(np.array([1]), np.array([[0], [9], [3]])).outside == 0


def test_table_fit_is_calibrated():
    draw = np.random.RandomState(2)
    p_values = [
        stats.table_fit(tables[0], tables[1:]).p_value
        for tables in (draw.binomial(100, np.linspace(0.2, 0.8, 5), size=(20, 5)) for _ in range(100))
    ]
    assert np.mean(np.array(p_values) <= 0.25) < 0.25 + 3 * (0.25 * 0.75 / 100) ** 0.5


def test_overlap():
    first = {"a": torch.tensor([True, True, False]), "b": torch.tensor([True])}
    second = {"a": torch.tensor([True, False, True]), "b": torch.tensor([True])}
    assert stats.overlap(first, second) == 2 / 4
    assert stats.overlap(first, first) == 1
    nothing = {"a": torch.zeros(3, dtype=torch.bool)}
    assert stats.overlap(nothing, nothing) == 1
    with pytest.raises(ValueError, match=r"different parameters: \['b'\]"):
        stats.overlap(first, nothing)


def test_rank_correlation_gives_ties_their_mean_rank():
    # ranks 1.5, 1.5, 3.5, 3.5 and 1, 2, 3, 4: the products of deviations add up to 1.5 + 0.5 + 0.5 + 1.5 = 4, their squares to 4 and 5
    assert stats.rank_correlation(np.array([0, 0, 1, 1]), np.arange(4)) == pytest.approx(4 / 20**0.5)
    assert stats.rank_correlation(np.arange(4), np.array([0, 0, 1, 1])) == pytest.approx(4 / 20**0.5)
    assert np.isnan(stats.rank_correlation(np.arange(4), np.ones(4)))
    assert np.isnan(stats.rank_correlation(np.ones(4), np.arange(4)))


def test_largest_relative_difference():
    assert stats.largest_relative_difference([1.0, 0.0, -2.0], [1.0, 0.0, 2.0]) == 2
    assert stats.largest_relative_difference([4.0, 0.0], [3.0, 0.0]) == 0.25


def test_the_equivalence_test_is_two_t_tests():
    values = np.array([0.03, -0.02, 0.05, 0.01, 0.04])
    found = stats.equivalence_test(values, 0.1)
    above = scipy_stats.ttest_1samp(values, -0.1, alternative="greater").pvalue
    below = scipy_stats.ttest_1samp(values, 0.1, alternative="less").pvalue
    assert found.p_value == pytest.approx(max(above, below))
    assert (found.low, found.high) == pytest.approx(tuple(scipy_stats.ttest_1samp(values, 0).confidence_interval(0.95)))
    assert stats.equivalence_test(values + 1, 0.1).p_value > 0.999
    assert np.isnan(stats.equivalence_test(values[:1], 0.1).p_value)
    assert stats.equivalence_test(np.zeros(4), 0.1).p_value == 0
    assert stats.equivalence_test(np.ones(4), 0.1).p_value == 1
    with pytest.raises(ValueError, match="margin must be above 0; got 0"):
        stats.equivalence_test(values, 0)


def test_power_is_the_chance_within_the_margin():
    # n = 3: the 95 % quantile of t with 2 degrees of freedom is 2.919986; a margin of 4 standard errors leaves 1.080014,
    # below which 1/2 + 1.080014 / (2 sqrt(2 + 1.080014^2)) = 0.803469 lies; on both sides 2 * 0.803469 - 1 = 0.606939.
    assert stats.power_of(0.5, 3, 2.0, sides=1) == pytest.approx(0.803469, abs=1e-6)
    assert stats.power_of(0.5, 3, 2.0) == pytest.approx(0.606939, abs=1e-6)
    assert stats.power_of(1.0, 3, 0.1) == 0  # never below
    found = stats.equivalence_test(np.array([-1.0, 0.0, 1.0]), 4 / 3**0.5)  # the standard error is 1 / sqrt(3)
    assert found.power == pytest.approx(0.606939, abs=1e-6)
    assert stats.equivalence_test(np.zeros(4), 0.1).power == 1
    assert stats.equivalence_test(np.ones(4), 0.1).power == 0


def test_non_inferiority_is_one_t_test():
    values = np.array([-1.0, 0.0, 1.0])
    # (1 - 0) / (1 / sqrt(3)) = 1.732051 with 2 degrees of freedom: 1/2 - 1.732051 / (2 sqrt(5)) = 0.112702
    assert stats.non_inferiority_test(values, 1.0) == pytest.approx(0.112702, abs=1e-6)
    assert stats.non_inferiority_test(values - 9, 1.0) < 0.01  # much better is no worse
    assert stats.non_inferiority_test(np.ones(3), 1.0) == 1  # at the margin
    assert stats.non_inferiority_test(np.zeros(3), 1.0) == 0
    assert np.isnan(stats.non_inferiority_test(values[:1], 1.0))


@pytest.mark.parametrize(("spread", "n"), [(0.05, 5), (0.1, 5), (0.1, 10), (0.3, 10)])
def test_its_level_and_power_are_as_said(spread, n):
    draw = np.random.default_rng(3)
    at_margin = [stats.equivalence_test(draw.normal(0.1, spread, n), 0.1).p_value <= 0.05 for _ in range(2000)]
    assert np.mean(at_margin) <= 0.065
    none = [stats.equivalence_test(draw.normal(0.0, spread, n), 0.1) for _ in range(2000)]
    rate = np.mean([t.p_value <= 0.05 for t in none])
    assert np.mean([t.power for t in none]) == pytest.approx(rate, abs=0.15)
