"""Comparisons of notebook 06, on tables whose answer is known."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from snipnb.publish.evidence import rules_of_thumb as evidence
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
    finding = evidence.c35(runs, sparsity=0.95, smallest_margin=0.1)
    assert finding.statistics == pytest.approx(
        {
            "non_inferiority_p": found.loc["closed_form", "non_inferiority_p"],
            "closed_form_minus_snip": found.loc["closed_form", "mean"],
            "margin": 0.2,
        }
    )
    assert finding.n == 4


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
    assert set(controls.QUESTIONS) == set(controls.RULES_OF_THUMB) - {"snip"}


def test_what_is_kept_of_each_layer(examples):
    images, labels = (t[:50] for t in examples)
    found = controls.kept_by_layer(images, labels, criteria=["snip", "snip_shuffled", "uniform"], sparsity=0.95)
    found = found.set_index("layer")
    assert found["snip"].equals(found["snip_shuffled"].rename("snip"))
    assert found.loc["full1.weight", "uniform"] == pytest.approx(5, abs=0.1)
    assert found.loc["conv1.weight", "snip"] > 30


def named_runs():
    frames = []
    for name, (dense, pruned) in {"good": ((1.0, 1.2), (1.5, 1.7)), "bad": ((1.0, 1.0), (4.0, 4.2))}.items():
        for sparsity, values in ((0.0, dense), (0.9, pruned)):
            frames.append(table({("snip", sparsity): values}).assign(name=name))
    return pd.concat(frames, ignore_index=True)


def test_increases_and_their_excess():
    increases = controls.increases(named_runs()).set_index("name")
    assert increases["increase"].to_dict() == pytest.approx({"good": 0.5, "bad": 3.1})
    assert increases["dense_percent"].to_dict() == pytest.approx({"good": 1.1, "bad": 1.0})
    excess = controls.excess(increases.reset_index(), allowed=0.2).iloc[0]
    assert (excess["best"], excess["worst"]) == ("good", "bad")
    assert excess["excess"] == pytest.approx(3.1 - 2 * 0.5 - 0.2)


PARAMETERS = {
    "num_runs": 2,
    "salience_images": 10,
    "split_name": "standard",
    "epochs": 1,
    "learning_rate": 0.01,
    "schedule": "one_cycle",
    "optimiser_epochs": 1,
    "sample": True,
}


def test_rates_are_chosen_by_validation(monkeypatch):
    def run_grid(named, **_):
        configs = [config for some in named.values() for config in some]
        # the largest rate of all is best, but for one optimiser two rates are alike
        errors = [0.5 if c.recipe.optimiser == "adam" else 1 / c.recipe.learning_rate for c in configs]
        return pd.DataFrame({"epoch": 1, "validation_error": errors, "test_error": 0.0, "name": list(named)})

    monkeypatch.setattr(controls, "run_grid", run_grid)
    tried = controls.choose_rates(PARAMETERS)
    rates = controls.rates_of(tried)
    assert set(rates) == set(controls.OPTIMISERS)
    assert rates["SGD, one-cycle"] == 1.0
    assert rates["Adam, one-cycle"] == 0.003  # of equal ones the smallest
    configs = controls.optimisers(PARAMETERS, rates, sparsities=[0.9, 0.95])
    assert {c.recipe.momentum for c in configs["SGD, one-cycle"]} == {0.0}
    assert {c.sparsity for c in configs["SGD, one-cycle"]} == {0.0, 0.9, 0.95}
    monkeypatch.setattr(
        controls, "run_grid", lambda configs, **_: run_grid(configs).assign(validation_error=float("nan"))
    )
    with pytest.raises(ValueError, match="validation images; split 'published' has none"):
        controls.choose_rates({**PARAMETERS, "split_name": "published"})


def test_figures(runs):
    compared, pairs = controls.against_snip(runs, smallest_margin=0.1)
    figure = plotting_controls.controls(pairs, compared)
    assert len(figure.axes) == 1
    increases = controls.increases(named_runs())
    plotting_controls.optimisers(increases, limits={0.9: 1.2})
    plt.close("all")
