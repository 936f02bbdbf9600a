"""Agreement from samples of parameters: weights, intervals, families of networks, VGG16."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import snipnb
from snipnb import networks as models
from snipnb.saliences.snip import snip
from snipnb.studies.larger_networks import draw as plotting_larger
from snipnb.studies.larger_networks import measure as larger


def test_a_weighted_correlation_is_that_of_the_repeated_points():
    draw = np.random.default_rng(0)
    a, b, weight = draw.integers(0, 6, 40), draw.integers(0, 6, 40), draw.integers(1, 5, 40)
    expected = stats.spearmanr(np.repeat(a, weight), np.repeat(b, weight)).statistic
    assert larger.weighted_spearman(a, b, weight) == pytest.approx(expected)
    assert np.isnan(larger.weighted_spearman(np.ones(40), b, weight))


def test_a_sample_stands_for_the_network(examples):
    images, labels = (t[:100] for t in examples)
    model = snipnb.lenet5(seed=3)
    sample = larger.compare(model, images, labels, per_tensor=150, seed=1)
    assert sample["weight"].sum() == pytest.approx(61_706)
    assert sample.groupby("layer")["weight"].sum()["full1.weight"] == pytest.approx(48_000)
    assert (sample["snip"] == sample["train_mode"]).all()  # no batch norm
    found = larger.agreement(sample, resamples=200).set_index("salience").loc["snip"]
    exact, first = snipnb.exact_salience(model, images, labels), snip(model, images, labels)
    flat = [torch.cat([s.flatten() for s in side.values()]).abs().numpy() for side in (exact, first)]
    whole = stats.spearmanr(*flat).statistic
    assert found["low95"] < found["spearman"] < found["high95"]
    assert found["low95"] - 0.01 < whole < found["high95"] + 0.01


def test_batch_norm_gets_its_statistics_first(examples):
    images, labels = (t[:60] for t in examples)
    model = models.lenet_variant(extra_full=1, batch_norm=True, seed=0)
    sample = larger.compare(model, images, labels, per_tensor=5)
    assert not (sample["snip"] == sample["train_mode"]).all()
    assert any(float(m.running_mean.abs().max()) > 0 for m in model.modules() if hasattr(m, "running_mean"))


def test_slopes_are_per_layer_and_over_seeds(examples):
    images, labels = (t[:40] for t in examples)
    networks = {
        "deeper": {n: larger.families((0, 2))["fully connected layers more"][n] for n in (0, 2)},
        "wider": {n: larger.families(())["times as wide"][n] for n in (0.5, 1)},
    }
    swept = larger.sweep(images, labels, seeds=range(2), per_tensor=20, networks=networks)
    assert swept.groupby("family")["layers"].unique().map(list).to_dict() == {"deeper": [5, 7], "wider": [5]}
    fits = larger.slopes(swept).set_index("family")
    part = swept[swept["family"] == "deeper"].pivot(index="seed", columns="layers", values="spearman")
    assert fits.loc["deeper", "slope"] == pytest.approx(((part[7] - part[5]) / 2).mean())
    assert fits["per"].to_dict() == {"deeper": "layer", "wider": "doubling of width"}
    assert fits["n"].tolist() == [2, 2]
    plotting_larger.sweep(swept, fits.reset_index())
    plt.close("all")


def test_vgg_tables():
    names = ["conv1.weight", "conv1.bias", "norm1.weight", "full1.weight"]
    sample = pd.DataFrame(
        {"layer": np.repeat(names, 3), "exact": [1.0, 2.0, 0.0] * 4, "snip": [1.5, 2.0, 1.0] * 4, "seed": 0}
    ).assign(weight=1.0)
    depth = larger.by_depth(sample)
    assert depth["layer"].tolist() == ["conv1.weight", "full1.weight"]
    assert depth["median_relative_difference"].tolist() == [0.25, 0.25]  # of 0.5 and 0; the exact zero is left out
    assert depth["drawn"].tolist() == [3, 3]
    layers = pd.DataFrame(
        {
            "mode": np.repeat(["eval", "train", "untouched statistics"], 2),
            "layer": ["conv1.weight", "full1.weight"] * 3,
            "kept_percent": [10.0, 1.0, 5.0, 0.0, 0.0, 2.0],
        }
    )
    plotting_larger.layers(layers, sparsity=0.99)
    plotting_larger.vgg(sample, depth)
    plt.close("all")
