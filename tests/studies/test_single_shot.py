"""What notebook 08 measures, against what is known of it."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import snipnb
from snipnb.pruning.criteria import CRITERIA, Start, mask_for
from snipnb.publish import published
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
    assert measure.controls(runs_of({("lenet5", "snip", 0.95): [2.0]})).empty


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
    assert said.iloc[0].startswith("Shown to be better than SNIP: iterative SNIP on LeNet-5 at 0.95; iterative SNIP on")
    assert "SNIP in rounds by −1.00 points [" in said.iloc[1]
    assert said.iloc[2].startswith(
        "Rank correlation with the exact salience at initialisation: SNIP 1.000, second order 0.900"
    )
    assert (
        "LeNet-5 at 0.99: cut through by random; random has 50 % of its kept parameters on a path, SNIP 100 %"
        in said.iloc[3]
    )
    assert "better than a mask shuffled within layers for 14 of 14" in said.iloc[4]
    assert "made for other weights for 0 of 14 (none)" in said.iloc[4]
    assert len(said) == 5  # no upper reference was trained


def test_figures_name_what_they_show(tables):
    runs, kept, found = tables
    compared, pairs = measure.compare(runs, smallest_margin=0.1)
    title = headline_of(draw.lenet5(pairs, compared, judged=0.95))
    assert (
        title
        == "LeNet-5: of 15 criteria beside SNIP, at 0.95, 1 are better and 1 worse; at 0.99, 1 are better and 1 worse"
    )
    assert "shuffled within layers, 14; made for other weights, 0" in headline_of(draw.controls(measure.controls(runs)))
    assert headline_of(draw.controls(pd.DataFrame())) == ""
    assert "random has 50 % of what it keeps on a path" in headline_of(draw.paths(kept))
    assert headline_of(draw.estimates(found)).startswith("At initialisation, SNIP is closest")
    plt.close("all")


def test_every_criterion_of_the_notebook_is_registered_with_a_look():
    assert {*measure.CRITERIA_COMPARED, measure.UPPER} <= CRITERIA.keys() & LOOKS.keys()
