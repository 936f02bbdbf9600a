"""Comparisons of notebook 06, on tables whose answer is known."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from snipnb.publish import comparisons
from snipnb.publish.evidence import rules_of_thumb as evidence
from snipnb.publish.stats import mean_interval
from snipnb.studies.rules_of_thumb import draw as plotting_controls
from snipnb.studies.rules_of_thumb import measure as controls


def table(errors, *, collapsed=()):
    """Runs of one epoch: (criterion, sparsity) -> error rates in percent, one per seed."""
    rows = [
        {
            "criterion": criterion,
            "sparsity": sparsity,
            "init_seed": seed,
            "epoch": 1,
            "collapsed": int((criterion, seed) in collapsed),
            "validation_error": error / 100,
            "test_error": error / 100,
        }
        for (criterion, sparsity), values in errors.items()
        for seed, error in enumerate(values)
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def runs():
    return table(
        {
            ("snip", 0.95): [2.0, 2.2, 1.8, 2.0],
            ("closed_form", 0.95): [2.01, 2.19, 1.82, 2.0],
            ("uniform", 0.95): [5.0, 5.3, 4.7, 5.1],
            ("magnitude", 0.95): [2.0, 9.0, 1.5, 4.0],
            ("snip_shuffled", 0.95): [1.0, 1.3, 0.7, 1.0],
            ("snip_redrawn", 0.95): [1.9, 2.35, 1.6, 1.95],
        },
        collapsed={("magnitude", 1), ("magnitude", 3)},
    )


def test_outcomes_follow_from_intervals_and_margin(runs):
    compared, pairs = controls.against_snip(runs, smallest_margin=0.1)
    found = compared.set_index("criterion")
    assert found["outcome"].to_dict() == {
        "closed_form": "as good",
        "uniform": "worse",
        "magnitude": "undecided",
        "snip_shuffled": "better",
        "snip_redrawn": "as good" if found.loc["snip_redrawn", "equivalence_p"] <= 0.05 else "no worse",
    }
    assert found["margin"].unique() == pytest.approx([0.2])  # a tenth of SNIP's 2 %
    assert found.loc["uniform", "mean"] == pytest.approx(3.025)
    assert found.loc["magnitude", "collapsed"] == 2
    assert found.loc["uniform", "collapsed"] == 0
    assert set(found["n"]) == {4}
    assert len(pairs) == 5 * 4


def test_one_rule_that_is_as_good_is_enough(runs):
    also = table({("snip", 0.99): [8.0, 8.2, 7.9, 8.1], ("snip_densities", 0.99): [11.0, 11.3, 10.8, 11.1]})
    more = [table({("snip_densities", 0.95): [1.99, 2.2, 1.81, 2.0]}), also]
    more.append(table({("closed_form", 0.99): [12.0, 12.3, 11.8, 12.1]}))
    rules = {"sparsity": 0.95, "also": 0.99, "smallest_margin": 0.1, "fresh_from": 0}
    finding = evidence.c35(pd.concat([runs, *more]), **rules)
    compared = controls.against_snip(runs, smallest_margin=0.1)[0].set_index("criterion").loc["closed_form"]
    assert finding.statistics["non_inferiority_p"] == pytest.approx(compared["non_inferiority_p"])
    assert finding.statistics["closed_form_minus_snip"] == pytest.approx(compared["mean"])
    assert finding.statistics["margin"] == pytest.approx(0.2)
    assert finding.statistics["smallest_p"] <= finding.statistics["snip_densities_p"] < 0.025
    low = finding.intervals["snip_densities_minus_snip_at_0.99"][0]
    assert finding.statistics["all_worse_by_at_0.99"] == pytest.approx(low - 0.805)  # the better rule's end, the margin
    assert low == pytest.approx(3.0 - stats.t.ppf(0.975, 3) * np.std([3.0, 3.1, 2.9, 3.0], ddof=1) / 2)
    assert finding.n == 4
    assert evidence.c35(pd.concat([runs, *more]), **{**rules, "fresh_from": 1}).not_fresh


def test_half_of_a_network_is_compared_with_all_of_it(runs):
    more = {("snip", 0.0): [1.0, 1.1, 0.9, 1.0], ("snip", 0.5): [1.02, 1.1, 0.94, 1.0]}
    inverted = table({("snip_inverted", 0.95): [3.0, 3.3, 2.7, 3.0]})
    rules = {"sparsity": 0.95, "half": 0.5, "margin": 0.1, "fresh_from": 0}
    finding = evidence.c2(pd.concat([runs, table(more), inverted]), **rules)
    mean, low, high = mean_interval(np.array([0.02, 0, 0.04, 0]), level=0.9)
    assert finding.statistics["pruned_minus_dense"] == pytest.approx(mean)
    assert finding.intervals["pruned_minus_dense"] == pytest.approx((low, high))
    assert finding.statistics["inverted_minus_snip"] == pytest.approx(1.0)
    assert evidence.c2(pd.concat([runs, inverted]), **rules).not_fresh  # nothing is dense


def test_perturbed_densities_of_a_seed_count_once(runs):
    more = {
        ("snip_densities", 0.95): [2.0, 2.1, 1.9, 2.0],
        ("erdos_renyi_kernel", 0.95): [2.5, 2.6, 2.5],  # a seed less
        ("perturbed_1", 0.95): [2.0, 2.0, 2.0, 2.0],
        ("perturbed_2", 0.95): [2.4, 2.8, 2.4, 2.6],
    }
    found = evidence.c29(pd.concat([runs, table(more)]), sparsity=0.95, fresh_from=0)
    each = np.array([2.2, 2.4, 2.2, 2.3]) - [2.0, 2.1, 1.9, 2.0]
    mean, low, high = mean_interval(each, level=0.9)
    assert found.statistics["perturbed_costs"] == pytest.approx(mean)
    assert found.intervals["perturbed_costs"] == pytest.approx((low, high))
    assert found.statistics["erk_costs"] == pytest.approx(np.mean([0.5, 0.5, 0.6]))
    assert found.statistics["minus_erk"] == pytest.approx(-found.statistics["erk_costs"])
    assert evidence.c29(
        pd.concat([runs, table({("snip_densities", 0.95): [2.0] * 4, ("erdos_renyi_kernel", 0.95): [2.5] * 4})]),
        sparsity=0.95,
        fresh_from=0,
    ).not_fresh
    compared, _ = controls.against_snip(pd.concat([runs, table(more)]), smallest_margin=0.1)
    row = compared.set_index("criterion").loc["perturbed"]
    assert (row["n"], row["mean"]) == (4, pytest.approx(np.mean(np.array([2.2, 2.4, 2.2, 2.3]) - [2.0, 2.2, 1.8, 2.0])))


def test_the_margin_has_a_floor():
    small = table({("snip", 0.95): [0.5, 0.7], ("uniform", 0.95): [0.5, 0.6]})
    compared, _ = controls.against_snip(small, smallest_margin=0.1)
    assert compared["margin"].tolist() == [0.1]


def test_advice_says_what_was_found(runs):
    compared, _ = controls.against_snip(runs, smallest_margin=0.1)
    said = controls.advice(compared).set_index("tried")["at 0.95"]
    assert said["uniform"].startswith("worse: +3.02 points [")
    assert said["magnitude"].endswith("; 2 of 4 networks cut through")
    assert said["erdos_renyi_kernel"] == "not tried"
    assert set(controls.QUESTIONS) == {*controls.RULES_OF_THUMB, *controls.CONTROLS, "perturbed"} - {"snip"}


def test_advice_from_one_network_has_no_interval():
    rows = [
        ("uniform", 0.9, 2, "worse", 1.0, 0.5, 1.5, 0),
        ("snip_shuffled", 0.9, 1, "undecided", -0.25, np.nan, np.nan, 1),
    ]
    columns = ["criterion", "sparsity", "n", "outcome", "mean", "low95", "high95", "collapsed"]
    said = controls.advice(pd.DataFrame(rows, columns=columns)).set_index("tried")["at 0.9"]
    assert said["uniform"] == "worse: +1.00 points [0.50, 1.50]"
    assert said["snip_shuffled"] == "-0.25 points, one network"


def test_what_is_kept_of_each_layer(examples):
    images, labels = (t[:50] for t in examples)
    found = controls.kept_by_layer(images, labels, criteria=["snip", "snip_shuffled", "uniform"], sparsity=0.95)
    found = found.set_index("layer")
    assert found["snip"].equals(found["snip_shuffled"].rename("snip"))
    assert found.loc["full1.weight", "uniform"] == pytest.approx(5, abs=0.1)
    assert found.loc["conv1.weight", "snip"] > 30


def named_runs():
    """Two recipes: "bad" trains pruned networks worse, and the rate chosen for them helps."""
    errors = {
        "good|dense": {0.0: (1.0, 1.2), 0.9: (1.5, 1.7)},
        "good|pruned": {0.9: (1.5, 1.7)},
        "bad|dense": {0.0: (1.0, 1.0), 0.9: (4.0, 4.2)},
        "bad|pruned": {0.9: (3.0, 3.0)},
    }
    frames = [
        table({("snip", sparsity): values}).assign(name=name)
        for name, some in errors.items()
        for sparsity, values in some.items()
    ]
    return pd.concat(frames, ignore_index=True)


def test_factors_of_recipes():
    found = comparisons.recipe_ratios(named_runs(), level=0.9).set_index("name")
    good = (1.5 * 1.7 / (1.0 * 1.2)) ** 0.5
    assert found["factor"].to_dict() == pytest.approx({"good": good, "bad": 3.0})
    assert found["over_best"].to_dict() == pytest.approx({"good": 1.0, "bad": 3 / good})
    logs = np.log([3 / 1.5, 3 / (1.7 / 1.2)])
    assert found.loc["bad", "over_best_high"] == pytest.approx(np.exp(mean_interval(logs, level=0.9)[2]))
    assert found["unadjusted"].to_dict() == pytest.approx({"good": 1.0, "bad": (4 * 4.2) ** 0.5 / 3})
    assert comparisons.recipe_ratios(named_runs().head(0)).empty
    rules = {"sparsities": [0.9], "allowed": 0.2, "least_epochs": 1, "fresh_from": 0}
    finding = evidence.c13(named_runs(), **rules)
    assert finding.statistics["largest_error"] == pytest.approx(4.1)  # without adjusting
    assert finding.statistics["largest_factor_over_best"] == pytest.approx(3 / good)
    assert finding.statistics["excess_increase"] == pytest.approx(3.1 - 2 * 0.5 - 0.2)
    assert "20 epochs" in evidence.c13(named_runs(), **{**rules, "least_epochs": 20}).not_fresh


PARAMETERS = {
    "num_runs": 2,
    "salience_images": 10,
    "split_name": "standard",
    "epochs": 1,
    "learning_rate": 0.01,
    "schedule": "one_cycle",
    "first_seed": 5,
    "num_optimiser_runs": 2,
    "optimiser_epochs": 1,
    "sample": True,
}


def test_rates_are_chosen_by_validation(monkeypatch):
    def run_grid(named, **_):
        names, configs = zip(*((name, config) for name, some in named.items() for config in some), strict=True)
        # for dense networks the largest rate of all is best, but for one optimiser two are alike; for pruned ones the smallest
        errors = [
            c.recipe.learning_rate
            if c.sparsity
            else 0.5
            if c.recipe.optimiser == "adam"
            else 1 / c.recipe.learning_rate
            for c in configs
        ]
        sparsities = [c.sparsity for c in configs]
        return pd.DataFrame({"epoch": 1, "validation_error": errors, "sparsity": sparsities, "name": names})

    monkeypatch.setattr(controls, "run_grid", run_grid)
    tried = controls.choose_rates(PARAMETERS)
    rates = {state: dict(tried[tried[f"best_{state}"]][["name", "rate"]].values) for state in controls.STATES}
    assert all(set(some) == set(controls.OPTIMISERS) for some in rates.values())
    assert [rates[state]["SGD, one-cycle"] for state in controls.STATES] == [1.0, 0.1]
    assert rates["dense"]["Adam, one-cycle"] == 0.003  # of equal ones the smallest
    configs = controls.optimisers(PARAMETERS, tried, sparsities=[0.9, 0.95])
    assert {c.recipe.momentum for c in configs["SGD, one-cycle|dense"]} == {0.0}
    assert {c.sparsity for c in configs["SGD, one-cycle|dense"]} == {0.0, 0.9, 0.95}
    assert {(c.sparsity, c.recipe.learning_rate) for c in configs["SGD, one-cycle|pruned"]} == {(0.9, 0.1), (0.95, 0.1)}
    assert {c.init_seed for c in configs["SGD, one-cycle|pruned"]} == {5, 6}
    monkeypatch.setattr(
        controls, "run_grid", lambda configs, **_: run_grid(configs).assign(validation_error=float("nan"))
    )
    with pytest.raises(ValueError, match="validation images; split 'published' has none"):
        controls.choose_rates({**PARAMETERS, "split_name": "published"})


def test_no_optimisers_are_no_runs():
    none = {**PARAMETERS, "num_optimiser_runs": 0}
    tried = controls.choose_rates(none)
    assert tried.empty
    assert controls.optimisers(none, tried, sparsities=[0.9]) == {}


def test_figures(runs):
    compared, pairs = controls.against_snip(runs, smallest_margin=0.1)
    figure = plotting_controls.controls(pairs, compared)
    assert len(figure.axes) == 1
    ratios = comparisons.recipe_ratios(named_runs())
    assert len(plotting_controls.optimisers(ratios, bound=1.5).axes) == 1
    texts = plotting_controls.optimisers(ratios.head(0), bound=1.5).axes[0].texts
    assert "No networks were trained with other optimisers" in texts[0].get_text()
    plt.close("all")
