"""Joint changes, all sets of a toy network, removal from trained networks: against slower or known answers."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn

import snipnb
from snipnb.publish import style
from snipnb.publish.evidence import rules_of_thumb as evidence
from snipnb.studies.rules_of_thumb import assumptions
from snipnb.studies.rules_of_thumb import draw as plotting_controls


def test_the_joint_change_is_that_of_the_loss(examples):
    images, labels = (t[:80] for t in examples)
    model = snipnb.lenet5(seed=1)
    before = {name: p.clone() for name, p in model.named_parameters()}
    found = assumptions.joint_changes({"at initialisation": [model]}, images, labels, sparsities=[0.3, 0.9])
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    mask = snipnb.keep_mask(snipnb.snip(model, images, labels), 0.9, ties="stable")
    exact = snipnb.exact_salience(model, images, labels)
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model.double()(images.double()), labels)
        for name, p in model.named_parameters():
            p *= mask[name]
        joint = nn.functional.cross_entropy(model(images.double()), labels) - loss
    row = found.set_index(["criterion", "sparsity"]).loc[("snip", 0.9)]
    assert row["joint"] == pytest.approx(float(joint), rel=1e-9)
    assert row["sum_of_single"] == pytest.approx(sum(float(e[~mask[n]].double().sum()) for n, e in exact.items()))
    distance = evidence.c4(found, sparsities=[0.9]).statistics["largest_distance_from_one"]
    assert distance == pytest.approx(abs(row["ratio"] - 1))
    with pytest.raises(ValueError, match="some are missing"):
        evidence.c4(found, sparsities=[0.9, 0.95])
    summary = assumptions.joint_summary(found)
    assert summary["n"].tolist() == [1] * 4
    assert summary.loc[summary["sparsity"] == 0.9, "ratio"].iloc[0] == pytest.approx(row["ratio"])


def test_where_single_changes_do_add_up(few):
    """One linear layer and a loss that is nearly linear in it: tiny weights."""
    images, labels = few
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).double()
    for p in model.parameters():
        p.data *= 1e-6
    found = assumptions.joint_changes({"tiny": [model]}, images, labels, sparsities=[0.5, 0.9], criteria=["random"])
    assert found["ratio"].tolist() == pytest.approx([1, 1], abs=1e-3)


def test_all_sets_against_one_at_a_time(examples):
    x, y = assumptions.toy_problem(*examples)
    assert x.shape[1] == 4
    assert set(y.tolist()) == {0, 1}
    model = nn.Sequential(nn.Linear(4, 1), nn.ReLU(), nn.Linear(1, 2)).double()
    removed, changes = assumptions.changes_of_all_sets(model, x, y)
    assert len(changes) == 2**9
    assert changes[0] == 0
    before = nn.functional.cross_entropy(model(x), y)
    for row in (1, 37, 300, 511):
        kept = dict(zip(dict(model.named_parameters()), (~removed[row]).split([4, 1, 2, 2]), strict=True))
        mask = {name: kept[name].view_as(p) for name, p in model.named_parameters()}
        after = nn.functional.cross_entropy(assumptions.masked(model, mask)(x), y)
        assert float(changes[row]) == pytest.approx(float((after - before).detach()), abs=1e-12)
    with pytest.raises(ValueError, match=r"at most 20 parameters, .*; got 61706"):
        assumptions.changes_of_all_sets(snipnb.lenet5(), x, y)


def test_greedy_sets_are_placed_among_all_sets(examples):
    found = assumptions.greedy_against_best(*examples, seeds=range(2))
    assert len(found) == 2 * 15 * 2
    assert found.loc[found["size"] == 2, "sets"].unique().tolist() == [120]
    exact_one = found[(found["size"] == 1) & (found["ranking"] == "exact")]
    assert exact_one["is_best"].all()  # for one parameter the exact salience is the answer
    assert (found["best_change"] <= found["change"] * (1 + 1e-9)).all()
    assert found.loc[found["is_best"], "better_sets"].eq(0).all()
    summary = assumptions.greedy_summary(found)
    assert summary["n"].unique().tolist() == [2]
    assert set(summary["best_in_percent"]) <= {0, 50, 100}
    plotting_controls.greedy(summary)
    plt.close("all")


def test_the_number_of_sets_is_the_binomial_coefficient():
    assert assumptions.number_of_sets(16, 0.5) == pytest.approx(4.109578, abs=1e-5)  # 12,870
    expected = sum(1 for _ in itertools.combinations(range(10), 3))
    assert 10 ** assumptions.number_of_sets(10, 0.3) == pytest.approx(expected)


def test_trained_networks(examples):
    split = snipnb.load_split("standard", sample=True)
    models = [snipnb.lenet5(seed=k) for k in range(2)]
    snipnb.train_together(models, split, recipe=snipnb.Recipe(epochs=1))
    images, labels = (t[:100] for t in examples)
    saliences = assumptions.rankings_of(models, images, labels, first_seed=7)
    random = snipnb.random_salience(models[1], seed=8)  # of each network's own seed
    assert all(torch.equal(saliences[1]["random"][name], random[name]) for name in random)
    agreement = assumptions.trained_agreement(saliences).set_index(["ranking", "layer", "seed"]).sort_index()
    assert agreement.loc[("snip", "whole network", 1), "spearman"] > 0.8
    assert abs(agreement.loc[("random", "whole network", 0), "spearman"]) < 0.05
    removal = assumptions.removal_errors(models, saliences, split, sparsities=[0.0, 0.9])
    assert removal.loc[removal["sparsity"] == 0, "increase"].eq(0).all()
    mean = assumptions.summarise(removal, ["ranking", "sparsity"]).set_index(["ranking", "sparsity"])["mean"]
    assert mean["random", 0.9] > mean["snip", 0.9] > 0
    layers = assumptions.removal_by_layer(models, saliences, split, sparsity=0.5)
    summary = assumptions.layer_summary(layers)
    assert summary["n"].unique().tolist() == [2]
    assert summary.groupby("layer")["named_percent"].nunique().eq(1).all()
    assert set(layers["layer"]) == {f"{n}.weight" for n in ("conv1", "conv2", "full1", "full2", "full3")}
    pruned = assumptions.masked(models[0], snipnb.keep_mask(saliences[0]["snip"], 0.9, ties="stable"))
    row = removal[(removal["seed"] == 0) & (removal["ranking"] == "snip") & (removal["sparsity"] == 0.9)].iloc[0]
    assert row["error_percent"] == pytest.approx(100 * snipnb.error_rate(pruned, split.test_images, split.test_labels))
    finding = evidence.c30(removal, layers, agreement.reset_index(), named_from=50, fresh_from=0)
    own = layers[layers["ranking"] == "snip"].groupby("layer")[["named_percent", "increase"]].mean()
    named = own[own["named_percent"] >= 50]["increase"]
    assert finding.statistics["largest_cost_of_named"] == pytest.approx(named.max())
    assert finding.statistics["smallest_cost_of_others"] == pytest.approx(own["increase"].drop(named.index).min())
    rho = agreement.loc["snip", "spearman"].unstack()
    weights = rho[rho.index.str.endswith(".weight")].mean(axis=1)
    assert finding.statistics["smallest_spearman_by_layer"] == pytest.approx(weights.min())
    assert finding.statistics["spearman"] == pytest.approx(rho.loc["whole network"].mean())
    assert finding.scope.startswith("LeNet-5 after training; layers named: full1")
    assert evidence.c30(removal, layers, agreement.reset_index(), named_from=101, fresh_from=0).not_fresh
    plotting_controls.trained(removal, layers, sparsity=0.5, top=50)
    plt.close("all")


def test_the_joint_figure(examples):
    images, labels = (t[:20] for t in examples)
    models = [snipnb.lenet_300_100(seed=k) for k in range(2)]
    changes = assumptions.joint_changes({"a": models, "b": models[:1]}, images, labels, sparsities=[0.1, 0.95])
    style.use_house_style()
    figure = plotting_controls.joint(changes)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["a", "b"]
    marks = [dots.get_offsets() for dots in figure.axes[0].collections]
    assert [len(offsets) for offsets in marks] == [4, 4]  # two networks at two sparsities, by SNIP and at random
    mine = changes[(changes["state"] == "a") & (changes["criterion"] == changes["criterion"].iloc[0])]
    assert np.allclose(marks[0], mine[["sum_of_single", "joint"]])
    means = mine[mine["sparsity"] == 0.95]["joint"].mean()
    assert f"by {means:.2g} a (sum".replace("-", "\N{MINUS SIGN}") in style.headline_of(figure)
    plt.close("all")
