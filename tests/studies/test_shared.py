"""What several studies use."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch

import snipnb
from snipnb import networks
from snipnb.publish.report import reported
from snipnb.studies import shared
from snipnb.training import scores

EXACT = {"full1.weight": torch.tensor([[1.0, -2.0], [0.0, 4.0]]), "full1.bias": torch.tensor([8.0, 0.0])}
SNIP = {"full1.weight": torch.tensor([[-1.0, 2.0], [3.0, -2.0]]), "full1.bias": torch.tensor([-8.0, 0.0])}


@pytest.fixture(scope="module")
def counts():
    images, labels = snipnb.load_mnist("train", sample=True)
    return shared.kept_counts(shared.ensemble(images[:500], labels[:500], seeds=range(5)), sparsities=[0.5, 0.95])


def test_counts_are_those_of_the_mask(counts):
    images, labels = snipnb.load_mnist("train", sample=True)
    mask = snipnb.keep_mask(snipnb.snip(snipnb.lenet5(seed=4), images[:500], labels[:500]), 0.95)
    own = counts[(counts["seed"] == 4) & (counts["sparsity"] == 0.95)].set_index("layer")["kept"]
    assert own.to_dict() == {name: int(m.sum()) for name, m in mask.items()}
    assert counts.groupby(["seed", "sparsity"])["kept"].sum().unique().tolist() == [30_853, 3_086]


def test_each_published_count_is_placed(counts):
    placement, fit = shared.place_reported(counts, reported("figure2"))
    assert len(placement) == 20
    assert (placement["low"] <= placement["smallest"].clip(upper=placement["mean"])).mean() > 0.5
    assert (placement["inside"] == placement["reported"].between(placement["low"], placement["high"])).all()
    assert fit.outside == int((~placement["inside"]).sum())
    assert 0 < fit.p_value <= 1


def test_a_table_of_another_network_is_refused(counts):
    table = reported("figure2")
    with pytest.raises(ValueError, match="'conv 3'"):
        shared.place_reported(counts, table.replace({"layer": {"conv 1": "conv 3"}}))
    with pytest.raises(ValueError, match="lists 151 parameters for 'conv 1'; the network has 150"):
        shared.place_reported(counts, table.replace({"params": {150: 151}}))


def test_lenet_300_100_goes_the_same_way():
    images, labels = snipnb.load_mnist("test", sample=True)
    networks = shared.ensemble(images[:100], labels[:100], seeds=[0], network=snipnb.lenet_300_100)
    counts = shared.kept_counts(networks, sparsities=[0.9], ties="stable")
    assert counts["kept"].sum() == 26_661
    assert counts["label"].tolist() == ["full 1", "bias full 1", "full 2", "bias full 2", "full 3", "bias full 3"]


def test_overlaps_by_hand_and_by_chance():
    frame = shared.overlaps(EXACT, SNIP, [0.0, 0.5])
    whole = frame[frame["layer"] == networks.WHOLE].set_index("sparsity")
    assert whole.loc[0.0, "overlap"] == 1.0
    assert whole.loc[0.0, "chance"] == 1.0
    assert whole.loc[0.5, "overlap"] == 0.5  # {8, 4, 2} against {8, 3, 2}
    assert whole.loc[0.5, "chance"] == pytest.approx(1.5 / 4.5)
    many = 20_000
    draws = [{"w": torch.rand(many, generator=torch.Generator().manual_seed(i))} for i in range(2)]
    row = shared.overlaps(*draws, [0.8]).iloc[0]
    assert row["overlap"] == pytest.approx(row["chance"], abs=0.01)


def test_differences_are_taken_between_runs_of_one_seed_and_sparsity():
    level = {"exact": 0.0, "snip": 0.05, "random": 2.0}
    rows = [
        {
            "criterion": name,
            "sparsity": sparsity,
            "seed": seed,
            "way": way,
            "error_percent": offset + seed + 10 * sparsity,
        }
        for name, offset in level.items()
        for sparsity in (0.5, 0.9)
        for seed in range(5)
        for way in scores.WAYS.values()
    ]
    table = pd.DataFrame(rows).sample(frac=1, random_state=1)
    pairs = shared.differences(table, way=scores.LAST)
    assert pairs.groupby("criterion").size().to_dict() == {"snip": 10, "random": 10}
    for name in ("snip", "random"):
        assert pairs.loc[pairs["criterion"] == name, "difference"].to_numpy() == pytest.approx([level[name]] * 10)
    with pytest.raises(ValueError, match="needs one of criterion 'exact' with the same seed"):
        shared.differences(table[~((table["criterion"] == "exact") & (table["seed"] == 2))], way=scores.LAST)


def test_seeds_are_summed_up():
    found = shared.spread_of(np.array([1.0, 2.0, 6.0]))
    low, high = scipy.stats.ttest_1samp([1.0, 2.0, 6.0], 0).confidence_interval(0.95)
    assert found == pytest.approx({"n": 3, "mean": 3, "low95": low, "high95": high, "smallest": 1, "largest": 6})
    assert np.isnan(shared.spread_of(np.array([1.0, 2.0]))["low95"])  # two seeds have no interval worth showing
    frame = pd.DataFrame({"layer": ["b", "a", "b"], "increase": [1.0, 5.0, 2.0]})
    assert shared.summarise(frame, ["layer"]).values.tolist() == [["b", 2, 1.5, 1, 2], ["a", 1, 5, 5, 5]]


def test_runs_are_those_of_the_parameters():
    parameters = {"num_runs": 2, "split_name": "standard", "sample": True, "epochs": 3, "learning_rate": 0.01}
    parameters["schedule"] = "cosine"
    runs = shared.grid_of(parameters, ["snip", "random"], [0.5])
    assert [(run.criterion, run.sparsity, run.init_seed) for run in runs] == [
        ("snip", 0.5, 0),
        ("random", 0.5, 0),
        ("snip", 0.5, 1),
        ("random", 0.5, 1),
    ]
    recipe = snipnb.Recipe(epochs=3, learning_rate=0.01, schedule="cosine")
    assert {(run.split, run.sample, run.salience_images, run.recipe) for run in runs} == {
        ("standard", True, None, recipe)
    }
    other = snipnb.Recipe(epochs=1)
    few = shared.grid_of({**parameters, "salience_images": 40}, ["snip"], [0.5, 0.9], num_seeds=1, recipe=other)
    assert [(run.init_seed, run.salience_images, run.recipe) for run in few] == [(0, 40, other)] * 2
    assert shared.grid_of(parameters, ["snip"], [0.5], num_seeds=0) == []
