"""Iterative magnitude pruning, against its rounds one by one."""

import copy
from itertools import pairwise

import pytest
import torch

import snipnb
from snipnb.data import Split
from snipnb.pruning.criteria import Start, mask_for
from snipnb.training import iterative_magnitude
from snipnb.training.recipe import Recipe


@pytest.fixture(scope="module")
def start(examples):
    images, labels = examples
    return Start(snipnb.lenet5(seed=4), images, labels, 4)


def test_iterative_magnitude_pruning_trains_prunes_and_goes_back(start, monkeypatch):
    monkeypatch.setattr(iterative_magnitude, "LEAST", 0.6)
    monkeypatch.setattr(iterative_magnitude, "OF_ROUNDS", Recipe(epochs=1, learning_rate=0.01, batch_size=50))
    before = copy.deepcopy(start.model.state_dict())
    order = iterative_magnitude.removal_order(start)
    assert all(torch.equal(before[n], p) for n, p in start.model.state_dict().items())

    def trained(mask):
        nothing = start.images[:0], start.labels[:0]
        model = snipnb.lenet5(seed=4)
        split = Split("own", start.images, start.labels, *nothing, *nothing)
        snipnb.train_together([model], split, masks=[mask], recipe=iterative_magnitude.OF_ROUNDS, data_seed=4)
        return {n: p.detach().abs() for n, p in model.named_parameters()}

    whole = {n: torch.ones_like(p, dtype=torch.bool) for n, p in start.model.named_parameters()}
    first = snipnb.keep_mask(trained(whole), 0.2, ties="stable")
    second = trained(first)  # from the initial weights again
    for sparsity, expected in ((0.2, first), (0.3, snipnb.keep_mask(second, 0.3, ties="stable"))):
        found = mask_for("iterative_magnitude", start, order, sparsity)
        assert all(torch.equal(found[n], expected[n]) for n in found)
    assert set(torch.cat([o.floor().flatten() for o in order.values()]).tolist()) == {0, 1, 2}


def test_the_later_a_parameter_goes_the_larger_its_salience(start, monkeypatch):
    monkeypatch.setattr(iterative_magnitude, "LEAST", 0.3)
    monkeypatch.setattr(iterative_magnitude, "OF_ROUNDS", Recipe(epochs=1, learning_rate=0.01, batch_size=100))
    order = torch.cat([o.flatten() for o in iterative_magnitude.removal_order(start).values()])
    left = [int((order >= number).sum()) for number in range(int(order.max()) + 1)]
    assert left[0] == 61_706
    assert all(after == round(0.8 * before) for before, after in pairwise(left))
    assert len(order.unique()) == len(order)  # no ties: every sparsity is exact


def test_a_tiny_network_comes_to_an_end():
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    start = Start(model, torch.randn(12, 4), torch.arange(12) % 3, 0)
    order = torch.cat([o.flatten() for o in iterative_magnitude.removal_order(start).values()])
    assert len(order.unique()) == 15
