"""The numbers behind notebook 04, on small made-up masks whose answers are known, and on the shipped sample."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import snipnb
from snipnb.studies import shared
from snipnb.studies.seed_consistency import measure as consistency


@pytest.fixture(scope="module")
def networks():
    images, labels = snipnb.load_mnist("train", sample=True)
    return shared.ensemble(images[:400], labels[:400], seeds=range(24))


def counts_of(kept, parameters=100):
    """kept: [seeds][tensors]."""
    rows = [
        {
            "seed": s,
            "layer": str(t),
            "label": str(t),
            "kept": k,
            "parameters": parameters,
            "sparsity": 0.5,
            "what": "it",
        }
        for s, row in enumerate(kept)
        for t, k in enumerate(row)
    ]
    return pd.DataFrame(rows)


def test_variance_lies_where_it_is_put():
    same = consistency.variance_split(counts_of([[10, 50, 90]] * 5), by=["what"]).iloc[0]
    assert same[["share", "low", "high"]].tolist() == pytest.approx([1, 1, 1])
    assert (same["n"], same["what"]) == (5, "it")
    seeds = consistency.variance_split(counts_of([[10] * 3, [90] * 3]), by=["what"]).iloc[0]
    assert seeds["share"] == 0
    mixed = consistency.variance_split(counts_of([[0, 60], [20, 80]]), by=["what"]).iloc[0]
    assert mixed["share"] == pytest.approx(0.9)  # means 10 and 70 about 40: 4 x 900 of 4 x 1000
    assert mixed["low"] <= mixed["share"] <= mixed["high"]


def test_overlap_and_chance_are_counted_by_tensor():
    first = {"a": torch.tensor([[1, 1, 0, 0]], dtype=torch.bool), "b": torch.tensor([[1, 0]], dtype=torch.bool)}
    second = {"a": torch.tensor([[0, 1, 1, 0]], dtype=torch.bool), "b": torch.tensor([[1, 0]], dtype=torch.bool)}
    found = consistency.mask_overlaps(first, second)
    assert found.index.tolist() == [0, 1, 2]
    found = found.set_index("layer")
    assert found.loc["a", "overlap"] == pytest.approx(1 / 3)
    assert found.loc["a", "chance"] == pytest.approx(1 / 3)  # 2 x 2 / 4 in common of 4
    assert found.loc["b", "overlap"] == 1
    assert found.loc["b", "chance"] == pytest.approx(0.5 / 1.5)
    assert found.loc["whole network", "overlap"] == pytest.approx(2 / 4)
    assert found.loc["whole network", "chance"] == pytest.approx(1.5 / 4.5)


def test_chance_is_what_shuffled_masks_have(networks):
    kept = shared.masks(networks, 0.9)
    draw = torch.Generator().manual_seed(0)
    shuffled = {
        n: m.flatten(1).gather(1, torch.rand(m.flatten(1).shape, generator=draw).argsort(1)) for n, m in kept.items()
    }
    found = consistency.mask_overlaps(shuffled, consistency.next_seed(shuffled))
    whole = found[found["layer"] == "whole network"]
    assert len(whole) == 24
    assert whole["overlap"].mean() == pytest.approx(whole["chance"].mean(), rel=0.03)
    summary = consistency.overlap_summary({"shuffled": found, "itself": consistency.mask_overlaps(kept, kept)})
    assert summary.set_index(["comparison", "layer"]).loc[("itself", "conv1.weight"), "smallest"] == 1


def test_more_images_come_closer_to_all():
    images, labels = snipnb.load_mnist("train", sample=True)
    some = {n: shared.ensemble(images[:n], labels[:n], seeds=range(6)) for n in (50, 800)}
    found = consistency.image_effect(some, shared.ensemble(images, labels, seeds=range(6)), sparsities=[0.9])
    assert found["images"].tolist() == [50, 800]
    assert found["overlap"].iloc[0] < found["overlap"].iloc[1] < 1
    assert (found["largest_shift"] >= found["typical_shift"]).all()
    itself = consistency.image_effect({1: some[50]}, some[50], sparsities=[0.9]).iloc[0]
    assert (itself["overlap"], itself["largest_shift"]) == (1, 0)


def test_initialisations_are_told_apart(networks):
    images, labels = snipnb.load_mnist("train", sample=True)
    xavier = shared.ensemble(images[:400], labels[:400], seeds=range(24), init="xavier_normal")
    counts = {
        init: shared.kept_counts(one, sparsities=[0.5, 0.95])
        for init, one in (("pytorch", networks), ("xavier_normal", xavier))
    }
    published = counts["xavier_normal"].query("seed == 3").rename(columns={"label": "layer", "layer": "name"})
    others = {init: frame[frame["seed"] != 3] for init, frame in counts.items()}
    scores = consistency.score_initialisations(others, published).set_index("init")
    assert scores.loc["xavier_normal", "p_value"] > 0.05 > 1.01 * scores.loc["pytorch", "p_value"]
    cells = list(zip(published["sparsity"], published["layer"], strict=True))
    attributed = consistency.attribute_seeds(counts, cells)
    assert attributed[["pytorch", "xavier_normal"]].sum(axis=1).tolist() == [24, 24]
    assert consistency.right_side(attributed) > 0.9
    swapped = pd.DataFrame({"init": ["pytorch", "xavier_a"], "pytorch": [1, 3], "xavier_a": [3, 1]})
    assert consistency.right_side(swapped) == 0.25


def test_places_are_averaged_over_everything_else():
    mask = torch.zeros(2, 3, 1, 2, 2, dtype=torch.bool)
    mask[:, :, :, 0, 1] = True
    mask[0, 0, 0, 1, 1] = True
    found = consistency.place_map({"conv1.weight": mask}, "conv1.weight", (3, 1, 2, 2)).set_index(["row", "column"])
    assert found["kept"].tolist() == pytest.approx([0, 1, 0, 1 / 6])
    assert found.loc[(1, 1), "error"] == pytest.approx(np.std([1 / 3, 0], ddof=1) / 2**0.5)


def test_units_are_ordered_and_shuffling_keeps_their_sum(networks):
    kept = shared.masks(networks, 0.9)
    found = consistency.unit_counts(kept, ["full1.weight"])
    assert len(found) == 120
    assert (found["mean"].diff().dropna() <= 1e-9).all()
    assert found["mean"].sum() == pytest.approx(found["shuffled"].sum())
    assert found["mean"].iloc[0] > found["shuffled"].iloc[0]
    assert (found["smallest"] <= found["mean"]).all()


def test_magnitudes_before_and_after(networks):
    kept = shared.masks(networks, 0.5)
    histograms = consistency.weight_histograms(networks, kept)
    sums = histograms.groupby("layer")[["before", "kept"]].sum()
    assert sums.loc["full2.weight"].tolist() == [24 * 10_080, int(kept["full2.weight"].sum())]
    shares = consistency.kept_by_magnitude(networks, kept)
    conv = shares[shares["layer"] == "conv2.weight"]
    assert conv["kept"].mean() == pytest.approx(float(kept["conv2.weight"].double().mean()), rel=1e-6)
    everything = {name: torch.ones_like(m) for name, m in kept.items()}
    assert (consistency.low_to_middle(consistency.kept_by_magnitude(networks, everything))["ratio"] == 1).all()
    largest = {
        n: w.abs() > w.flatten(1).abs().median(1).values.view(-1, *(1,) * (w.dim() - 1))
        for n, w in networks.weights.items()
    }
    ratios = consistency.low_to_middle(consistency.kept_by_magnitude(networks, largest)).set_index("layer")
    assert ratios.loc["full1.weight", ["lowest", "highest", "ratio"]].tolist() == [0, 1, 0]


def test_tenths_of_magnitude_by_hand():
    weights = torch.arange(20.0).expand(2, 20).reshape(2, 4, 5) * -1
    kept = torch.zeros(2, 4, 5, dtype=torch.bool)
    kept[0, 2:] = True  # of one of two seeds the ten largest
    kept[:, 3, 4] = True  # of both the largest
    shares = consistency.kept_by_magnitude(SimpleNamespace(weights={"a.weight": weights}), {"a.weight": kept})
    assert shares["tenth"].tolist() == list(range(1, 11))
    assert shares["kept"].tolist() == [0] * 5 + [0.5] * 4 + [0.75]
    assert shares["low"].tolist() == [0] * 9 + [0.5]
    assert shares["high"].tolist() == [0] * 5 + [1] * 5
    found = consistency.low_to_middle(shares.sample(frac=1, random_state=0)).iloc[0]
    assert found[["lowest", "middle", "highest", "ratio"]].tolist() == [0, 0.25, 0.75, 0]
    none = consistency.low_to_middle(shares.assign(kept=0.0)).iloc[0]
    assert np.isnan(none["ratio"])


def test_places_of_a_unit_are_its_last_two_axes():
    mask = torch.zeros(2, 3, 2, 2, dtype=torch.bool)
    mask[0, :2, 1, 0] = True  # of one seed, in two of three units
    found = consistency.place_map({"full1.weight": mask}, "full1.weight", (3, 2, 2))
    assert found[["row", "column"]].values.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert found["kept"].tolist() == pytest.approx([0, 0, 1 / 3, 0])


def test_predictions_are_drawn_for_weights_at_one_sparsity():
    rows = [
        ("uniform", "a", "conv1.weight", 0.9, "pytorch", 0.5, 0.1),
        ("closed_form", "b", "conv1.weight", 0.9, "pytorch", 0.6, 0.2),
        ("uniform", "a", "conv1.bias", 0.9, "pytorch", 0.7, 0.1),
        ("uniform", "a", "conv1.weight", 0.5, "pytorch", 0.8, 0.1),
        ("uniform", "a", "conv1.weight", 0.9, "xavier_normal", 0.9, 0.1),
    ]
    columns = ["rule", "network", "layer", "sparsity", "init", "density", "predicted"]
    found = consistency.predictions_to_draw(pd.DataFrame(rows, columns=columns), fitted=["a"], sparsity=0.9)
    assert list(found) == ["rule", "network", "layer", "measured", "predicted", "fitted"]
    assert found.values.tolist() == [
        ["uniform", "a", "conv1.weight", 0.5, 0.1, True],
        ["closed form", "b", "conv1.weight", 0.6, 0.2, False],
    ]


def test_curves_over_sparsity(networks):
    counts = shared.kept_counts(networks, sparsities=[0.2, 0.8], ties="stable")
    curves = consistency.density_curves(counts)
    assert len(curves) == 20
    own = counts[(counts["layer"] == "conv2.weight") & (counts["sparsity"] == 0.8)]["kept"] / 2400
    row = curves[(curves["layer"] == "conv2.weight") & (curves["sparsity"] == 0.8)].iloc[0]
    assert row[["mean", "smallest", "largest"]].tolist() == pytest.approx([own.mean(), own.min(), own.max()])
