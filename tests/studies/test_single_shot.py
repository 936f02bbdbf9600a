"""What notebook 08 measures, against what is known of it."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import snipnb
from snipnb.pruning.criteria import CRITERIA, Start, mask_for
from snipnb.publish import published, stats
from snipnb.publish.style import LOOKS, headline_of
from snipnb.studies.single_shot import draw, findings, measure

PARAMETERS = {
    "first_seed": 10,
    "num_runs": 2,
    "num_other_runs": 1,
    "num_upper_runs": 1,
    "num_control_runs": 1,
    "sparsities": [0.9, 0.99],
    "salience_images": 50,
    "split_name": "standard",
    "sample": True,
    "epochs": 1,
    "learning_rate": 0.01,
    "schedule": "one_cycle",
    "num_mask_seeds": 1,
    "num_seeds": 1,
    "num_images": 50,
}


def runs_of(errors):
    """Runs of one epoch: (model, criterion, sparsity) -> error rates in percent, one per seed."""
    rows = [
        {
            "model": m,
            "criterion": c,
            "sparsity": s,
            "init_seed": seed,
            "epoch": 1,
            "collapsed": 0,
            "test_error": e / 100,
        }
        for (m, c, s), values in errors.items()
        for seed, e in enumerate(values)
    ]
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def start(examples):
    images, labels = examples
    return Start(snipnb.lenet5(seed=4), images, labels, 4, draw=lambda seed: snipnb.lenet5(seed=seed))


# --- runs and comparisons ---------------------------------------------------------------------------------------------


def test_grids_hold_what_the_parameters_say():
    (runs,) = measure.grids(PARAMETERS).values()
    count = pd.DataFrame([vars(c) for c in runs]).groupby(["model", "criterion", "sparsity"]).size()
    compared = len(measure.CRITERIA_COMPARED)
    assert count["lenet5", "snip", 0.0] == 2
    assert count["lenet_300_100", "snip", 0.0] == 1
    assert (count["lenet5", "grasp"] == 2).all()
    assert list(count["lenet5", "grasp"].index) == [0.9, 0.95, 0.99]
    assert list(count["lenet5", "grasp_shuffled"].index) == [measure.JUDGED]
    assert "grasp_shuffled" not in count["lenet_300_100"]
    assert len(runs) == 3 * (3 * compared + 1) + 2 * 3 + 2 * len(measure.WITH_CONTROLS)
    assert {c.salience_images for c in runs if c.criterion == measure.UPPER} == {None}
    none = {**PARAMETERS, "num_upper_runs": 0, "num_control_runs": 0}
    names = {c.criterion for c in measure.grids(none)["single_shot"]}
    assert names == set(measure.CRITERIA_COMPARED)


def test_networks_are_compared_apart_and_without_controls():
    errors = {
        ("lenet5", "snip", 0.95): [2.0, 2.2, 1.8],
        ("lenet5", "snip", 0.0): [1.0, 1.1, 0.9],
        ("lenet5", "grasp", 0.95): [3.0, 3.2, 2.8],
        ("lenet5", "grasp_shuffled", 0.95): [9.0, 9.0, 9.0],
        ("lenet_300_100", "snip", 0.95): [3.0],
        ("lenet_300_100", "grasp", 0.95): [2.0],
    }
    compared, pairs = measure.compare(runs_of(errors), smallest_margin=0.1)
    found = compared.set_index(["network", "criterion"])["mean"]
    assert found.to_dict() == pytest.approx({("LeNet-5", "grasp"): 1.0, ("LeNet-300-100", "grasp"): -1.0})
    assert len(pairs) == 4


def test_controls_are_compared_with_the_criterions_own_mask():
    errors = {
        ("lenet5", "snip", 0.95): [2.0, 2.2, 1.8, 2.0],
        ("lenet5", "snip_shuffled", 0.95): [3.0, 3.4, 2.6],  # a seed less
        ("lenet5", "snip_redrawn", 0.95): [2.0, 2.1, 1.9],
        ("lenet5", "snip", 0.99): [50.0] * 4,
    }
    found = measure.controls(runs_of(errors)).set_index("control")
    assert found["mean"].to_dict() == pytest.approx({"shuffled": 1.0, "redrawn": 0.0})
    assert found["n"].tolist() == [3, 3]
    assert found["own_percent"].tolist() == pytest.approx([2.0, 2.0])
    assert found.loc["shuffled", "low95"] > 0 > found.loc["redrawn", "low95"]
    runs = runs_of(errors | {("lenet5", "ntk_sap", 0.95): [2.0, 3.0], ("lenet5", "ntk_sap_shuffled", 0.95): [4.0, 5.0]})
    tangent = measure.controls(runs).set_index("criterion").loc[["ntk_sap"]]
    assert tangent["control"].tolist() == ["shuffled"]  # its weights are drawn anew in any case
    dead = runs.assign(collapsed=(runs["criterion"].str.startswith("snip") & (runs["init_seed"] > 0)).astype(int))
    assert set(measure.controls(dead)["criterion"]) == {"snip", "ntk_sap"}  # a network of the first seed has all layers
    dead["collapsed"] = dead["criterion"].str.startswith("snip").astype(int)
    assert set(measure.controls(dead)["criterion"]) == {"ntk_sap"}
    assert measure.controls(runs_of({("lenet5", "snip", 0.95): [2.0]})).empty


def test_error_rates_of_all_criteria_stand_in_one_table():
    levels = {"snip": 5.0, "grasp": 4.0, "random": 9.0, "grasp_shuffled": 1.0}
    errors = {
        (model, name, sparsity): [level + 10 * (sparsity == 0.99), level + 2 + 10 * (sparsity == 0.99)]
        for model in measure.NETWORKS
        for name, level in levels.items()
        for sparsity in (0.9, 0.95, 0.99)
    }
    errors |= {(model, "snip", 0.0): [1.0, 2.0] for model in measure.NETWORKS}
    found = measure.error_rates(runs_of(errors))
    assert found["criterion"].tolist() == ["dense", "snip", "grasp", "random"]
    assert list(found)[1:] == [f"{n}, {s}" for n in measure.NETWORKS.values() for s in (0.95, 0.99)]
    assert found["LeNet-5, 0.95"].tolist() == pytest.approx([1.5, 6, 5, 10])
    assert found["LeNet-300-100, 0.99"].tolist() == pytest.approx([1.5, 16, 15, 20])


# --- what masks keep, and estimates -----------------------------------------------------------------------------------


def test_kept_sets_are_those_that_networks_train_with(monkeypatch, tmp_path):
    split = snipnb.load_split("standard", sample=True)
    images, labels = split.train_images[:50], split.train_labels[:50]
    monkeypatch.setattr(measure, "CRITERIA_COMPARED", ("snip", "exact", "synflow", "magnitude"))
    kept, layers = measure.kept_sets(PARAMETERS, images, store=tmp_path)
    rows = kept.set_index(["network", "criterion", "sparsity"])
    snip, synflow = rows.loc[("LeNet-5", "snip", 0.99)], rows.loc[("LeNet-5", "synflow", 0.99)]
    assert snip["in_common_with_snip"] == rows.loc[("LeNet-5", "exact", 0.99), "in_common_with_exact"] == 1
    assert snip["in_common_with_exact"] == rows.loc[("LeNet-5", "exact", 0.99), "in_common_with_snip"] < 1
    assert 0.99 <= synflow["effective_sparsity"] < snip["effective_sparsity"] < 1
    assert rows.loc[("LeNet-5", "magnitude", 0.99), "cut"]
    assert not synflow["cut"]
    mask = mask_for("snip", None, snipnb.snip(snipnb.lenet5(seed=10), images, labels), 0.95)
    conv1 = layers.set_index(["network", "criterion", "layer"]).loc[("LeNet-5", "snip", "conv1.weight"), "kept_percent"]
    assert conv1 == pytest.approx(100 * mask["conv1.weight"].double().mean().item())
    assert set(layers["layer"]) == {f"{n}.weight" for n in ("conv1", "conv2", "full1", "full2", "full3")}
    summary = measure.path_summary(kept)
    assert summary.loc[summary["criterion"] == "magnitude", "cut"].max() == 1
    assert summary["n"].unique().tolist() == [1]
    means = summary.set_index(["network", "criterion", "sparsity"])
    one = means.loc[("LeNet-5", "snip", 0.99)]
    assert one["on_path"] == pytest.approx((1 - one["effective_sparsity"]) / 0.01)
    assert means.loc[("LeNet-5", "magnitude", 0.99), "on_path"] < 0.05  # biases of the last layer alone


def test_an_estimate_is_measured_by_what_it_misses(examples, monkeypatch):
    images, labels = (t[:50] for t in examples)
    monkeypatch.setattr(measure, "ESTIMATES", ("exact", "random", "fisher_taylor", "fisher_taylor_as_coded"))
    models = [snipnb.lenet5(seed=seed) for seed in range(2)]
    found = measure.estimates({"at initialisation": models}, images, labels)
    mean = found.set_index(["criterion", "measure"])["mean"]
    assert mean["exact"].to_dict() == {"spearman": pytest.approx(1), "in_common": 1, "missed": 0}
    assert mean["random", "in_common"] == pytest.approx(0.05, abs=0.02)
    assert mean["random", "missed"] == pytest.approx(0.95, abs=0.03)
    assert mean["fisher_taylor", "spearman"] > mean["fisher_taylor_as_coded", "spearman"]
    assert found["n"].unique().tolist() == [2]
    table = measure.estimates_table(found)
    assert table["criterion"].tolist() == list(measure.ESTIMATES)


# --- beside what was published, and in words --------------------------------------------------------------------------


def test_published_rates_stand_beside_ours_where_as_much_is_kept():
    errors = {("lenet_300_100", "snip", 0.95): [2.0, 4.0], ("lenet_300_100", "snip", 0.0): [1.5]}
    errors |= {("lenet_300_100", measure.UPPER, 0.95): [1.0], ("lenet5", "snip", 0.98): [7.0]}
    found = measure.beside_published(runs_of(errors), published.reported("lenet_300_100"))
    assert set(found["kept_percent"]) == {100, 5}
    row = found[(found["method"] == "SNIP") & (found["kept_percent"] == 5)].iloc[0]
    assert (row["published"], row["snip"], row[measure.UPPER]) == (1.6, pytest.approx(3.0), pytest.approx(1.0))
    assert found.loc[found["kept_percent"] == 100, "snip"].tolist() == pytest.approx([1.5, 1.5])


@pytest.fixture
def tables():
    draws = np.random.RandomState(0)
    errors = {}
    for model in measure.NETWORKS:
        for sparsity, level in ((0.95, 2.0), (0.99, 9.0)):
            base = level + draws.normal(0, 0.1, 5)
            errors[model, "snip", sparsity] = base
            for name in measure.CRITERIA_COMPARED[1:]:
                shift = {"iterative_snip": -1.0, "random": 30.0}.get(name, 0.0)
                errors[model, name, sparsity] = base + shift + draws.normal(0, 0.01, 5)
    for name in measure.WITH_CONTROLS:
        errors["lenet5", f"{name}_shuffled", 0.95] = errors["lenet5", name, 0.95] + 1 + draws.normal(0, 0.01, 5)
        errors["lenet5", f"{name}_redrawn", 0.95] = errors["lenet5", name, 0.95] + draws.normal(0, 0.01, 5) - 0.05
    runs = runs_of(errors)
    kept = pd.DataFrame(
        {
            "network": n,
            "criterion": c,
            "sparsity": s,
            "n": 2,
            "cut": int(c == "random"),
            "effective_sparsity": 1 - (1 - s) / (2 if c == "random" else 1),
            "on_path": 0.5 if c == "random" else 1.0,
            "in_common_with_snip": 0.25,
        }
        for n in measure.NETWORKS.values()
        for c in measure.CRITERIA_COMPARED
        for s in (0.95, 0.99)
    )
    found = pd.DataFrame(
        {
            "state": s,
            "criterion": c,
            "measure": m,
            "n": 2,
            "mean": 1 - 0.1 * i,
            "smallest": 0.9 - 0.1 * i,
            "largest": 1.1 - 0.1 * i,
        }
        for s in ("at initialisation", "after training")
        for i, c in enumerate(measure.ESTIMATES)
        for m in ("spearman", "in_common", "missed")
    )
    return runs, kept, found


def test_findings_say_what_the_tables_hold(tables):
    runs, kept, found = tables
    compared, _ = measure.compare(runs, smallest_margin=0.1)
    said = findings.findings(compared, kept, found, measure.controls(runs)).set_index("question")["what came out"]
    assert said.index[0].startswith("Why is SNIP weak at 0.99")
    assert said.iloc[0].startswith(
        "SNIP scored again in each of 20 rounds changes the error rate of LeNet-5 at 0.99 by −1.00 points ["
    )
    better = re.sub(r"−(1\.00|0\.99)", "−1", said.iloc[1])
    places = [f"on {network} at {sparsity}" for network in measure.NETWORKS.values() for sparsity in (0.95, 0.99)]
    head = "Shown to be better than SNIP at 0.95 or 0.99, change of the error rate in points"
    assert better == f"{head}: {'; '.join(f'{p}, iterative SNIP (−1)' for p in places)}."
    assert said.iloc[2].startswith(
        "Rank correlation with the exact salience at initialisation: SNIP 1.000, second order 0.900"
    )
    assert (
        "(share of the largest 1 % that would be removed: Fisher-Taylor as coded 30.0 %, SNIP 100.0 %)" in said.iloc[2]
    )
    assert (
        "LeNet-5 at 0.99, share of the kept parameters on a path: SNIP 100 %, iterative SNIP 100 %, FORCE"
        in said.iloc[3]
    )
    assert (
        "cut in at least one network by random; iterative SNIP has 25 % of its kept parameters in common with SNIP"
        in said.iloc[3]
    )
    assert "worse by both: none; worse if shuffled, not shown to be worse with other weights: SNIP, " in said.iloc[4]
    assert ", NTK-SAP (shuffled only), " in said.iloc[4]  # the other control does not apply
    assert said.iloc[4].endswith("worse with other weights only: none; not shown to be worse by either: none.")
    assert len(said) == 5  # no upper reference was trained
    alone = compared.assign(n=1)
    assert "too few for a verdict" in findings.findings(alone, kept, found, pd.DataFrame())["what came out"][1]
    single = measure.controls(runs).assign(n=1, low95=np.nan, high95=np.nan)
    assert findings._by_controls(single) == "One network each: too few for a verdict."
    assert headline_of(draw.controls(single)).endswith("one network each, so no verdicts")


def test_equal_estimates_are_named_together(tables):
    _, _, found = tables
    found = found.assign(smallest=0.0, largest=1.0)
    equal = found.assign(mean=found["mean"].where(found["criterion"] != "second_order", 1.0))
    said = findings._truest(equal)
    assert "at initialisation: SNIP and second order 1.000, third order 0.800" in said
    title = headline_of(draw.estimates(equal))
    assert title.startswith("At initialisation, 2 estimates agree best with the exact salience (1.000); after training")
    worse = found.assign(mean=found["mean"].where(found["criterion"] != "snip", 0.7))
    assert "second order agrees best with the exact salience (0.900; SNIP 0.700)" in headline_of(draw.estimates(worse))
    plt.close("all")


def test_figures_name_what_they_show(tables):
    runs, kept, _ = tables
    compared, pairs = measure.compare(runs, smallest_margin=0.1)
    settings = {"judged": 0.95, "upper": measure.UPPER}
    title = headline_of(draw.lenet5(pairs, compared, **settings))
    assert title == (
        "LeNet-5: of 15 other criteria, at 0.95, 1 beats SNIP and 1 loses to it; at 0.99, 1 beats SNIP and 1 loses to it (5 networks each)"
    )
    upper = compared.assign(criterion=compared["criterion"].replace("grasp", measure.UPPER), n=1)
    alone = draw.lenet_300_100(pairs, upper, **settings)
    assert headline_of(alone) == "LeNet-300-100: SNIP and 14 other criteria, one network each, so no verdicts"
    assert alone.axes[0].get_yticklabels()[-1].get_text() == "iterative magnitude"  # last, whatever its error rate
    lost = measure.controls(runs)
    title = headline_of(draw.controls(lost))
    assert title == (
        "Worse than with their own mask: 14 of 14 criteria with a mask shuffled within layers; "
        "0 of 13 criteria with a mask made for other weights"
    )
    assert headline_of(draw.controls(pd.DataFrame())) == ""
    assert headline_of(draw.paths(kept)).endswith("; of what random keeps, 50 %")
    plt.close("all")


def test_the_thick_bar_shows_whether_a_criterion_is_as_good(tables):
    """The 90 % interval of the two one-sided tests, from the 95 % interval."""
    values = np.array([0.1, 0.3, -0.2, 0.25])
    runs = runs_of({("lenet5", "snip", 0.95): [2.0] * 4, ("lenet5", "grasp", 0.95): 2.0 + values})
    compared, pairs = measure.compare(runs, smallest_margin=0.1)
    figure = draw.lenet5(pairs, compared, judged=0.95, upper=measure.UPPER)
    (thick,) = (line for line in figure.axes[0].lines if line.get_linewidth() == 3.5)
    assert thick.get_xdata() == pytest.approx(stats.mean_interval(values, level=0.9)[1:])
    plt.close(figure)


def test_every_criterion_of_the_notebook_is_registered_with_a_look():
    assert {*measure.CRITERIA_COMPARED, measure.UPPER} <= CRITERIA.keys() & LOOKS.keys()
