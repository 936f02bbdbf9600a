"""What several studies use."""

import pytest
import torch

import snipnb
from snipnb import networks
from snipnb.publish.report import reported
from snipnb.studies import shared

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
