"""Agreement from samples of parameters: weights, intervals, families of networks, VGG16."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import snipnb
from snipnb import networks as models
from snipnb.publish import comparisons
from snipnb.publish.evidence import larger_networks as evidence
from snipnb.publish.evidence.parts import holm
from snipnb.saliences.agreement import weighted_spearman
from snipnb.saliences.snip import snip
from snipnb.studies.larger_networks import draw as plotting_larger
from snipnb.studies.larger_networks import measure as larger


def test_a_weighted_correlation_is_that_of_the_repeated_points():
    draw = np.random.default_rng(0)
    a, b, weight = draw.integers(0, 6, 40), draw.integers(0, 6, 40), draw.integers(1, 5, 40)
    expected = stats.spearmanr(np.repeat(a, weight), np.repeat(b, weight)).statistic
    assert weighted_spearman(a, b, weight) == pytest.approx(expected)
    assert np.isnan(weighted_spearman(np.ones(40), b, weight))


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


def test_one_family_of_five_has_to_stand_out():
    draw, rows = np.random.default_rng(0), []
    for k, family in enumerate("abcde"):
        for seed, layers in itertools.product(range(10, 16), (5, 7, 9)):
            spearman = 0.99 - (0.02 * layers if family == "c" else 0) + draw.normal(0, 0.002)
            rows.append({"family": family, "value": k, "layers": layers, "seed": seed, "spearman": spearman})
    found = evidence.c27(pd.DataFrame(rows), layers_more=[0, 2, 4], fresh_from=10)
    slopes = comparisons.slopes_by_seed(pd.DataFrame(rows))
    p = slopes.groupby("family")["slope"].apply(lambda x: stats.ttest_1samp(x, 0, alternative="less").pvalue)
    assert found.statistics["smallest_p"] == pytest.approx(5 * p["c"])  # Holm's first step
    assert found.statistics["families_worse"] >= 1
    assert found.statistics["steepest_slope"] == pytest.approx(-0.02, abs=0.001)
    assert found.scope.endswith("steepest: c")
    assert (found.n, found.statistics["families"]) == (6, 5)
    assert holm(np.array([0.04, 0.01, 0.03])).tolist() == pytest.approx([0.06, 0.03, 0.06])


def test_passes_are_counted():
    table = larger.passes_at_peak().set_index("processor")
    row = table.loc["Tesla P100 (PCIe)"]
    assert row["parameters"] == 14_879_494
    assert row["teraflops"] == pytest.approx(9.3, rel=1e-14)
    # thirteen convolutions on images padded to 32 pixels a side (the linear layers are small); a product and a sum are two operations
    sides, channels, products, inputs = (
        (32, 16, 8, 4, 2),
        ((64, 64), (128, 128), *[(256,) * 3], *[(512,) * 3] * 2),
        0,
        1,
    )
    for side, outputs in zip(sides, channels, strict=True):
        for out in outputs:
            products, inputs = products + side**2 * 9 * inputs * out, out
    assert row["gigaflop_per_pass"] == pytest.approx(2e-9 * products, rel=0.01)
    assert row["minutes_for_one_image"] == pytest.approx(14_879_494 * row["gigaflop_per_pass"] / 9300 / 60)
    assert row["images_in_an_hour"] * row["hours_for_a_mini_batch"] == pytest.approx(larger.MINI_BATCH)
    projection = pd.DataFrame(
        [(way, n, 1.0 * n, 0.5 * n, 2.0 * n) for n in (60_000, 128) for way in ("one pass per parameter", "engine")],
        columns=["way", "images", "minutes", "low95", "high95"],
    )
    found = evidence.c26(projection, table.reset_index())
    assert found.statistics["images_in_an_hour"] == table["images_in_an_hour"].max()
    assert found.statistics["naive_minutes"] == 60_000
    assert found.intervals["engine_minutes_for_a_mini_batch"] == (64, 256)


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
