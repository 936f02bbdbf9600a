import copy

import pytest
import torch
from small_networks import TINY, tiny, tiny_examples

import snipnb
from snipnb.saliences import brute_force


@pytest.mark.parametrize("name", TINY)
def test_ablation_is_one_forward_pass_with_one_zero(name):
    model, (images, labels) = tiny(name).eval(), tiny_examples()
    ablation = brute_force.ablation_salience(model, images, labels)
    before = torch.nn.functional.cross_entropy(model(images), labels)
    for key, p in model.named_parameters():
        assert ablation[key].shape == p.shape
        for index in range(0, p.numel(), 7):
            changed = copy.deepcopy(model)
            dict(changed.named_parameters())[key].data.view(-1)[index] = 0
            after = torch.nn.functional.cross_entropy(changed(images), labels)
            torch.testing.assert_close(ablation[key].view(-1)[index], (after - before).detach())


def test_chosen_parameters_come_in_the_given_order():
    model, (images, labels) = tiny("two layers"), tiny_examples()
    whole = brute_force.ablation_salience(model, images, labels)
    chosen = {"1.weight": torch.tensor([9, 2, 4])}
    part = brute_force.ablation_salience(model, images, labels, parameters=chosen)
    assert part.keys() == chosen.keys()
    torch.testing.assert_close(part["1.weight"], whole["1.weight"].flatten()[[9, 2, 4]])


def test_loss_along_weight_starts_at_the_loss_and_ends_at_the_ablation():
    model, (images, labels) = tiny("convolution"), tiny_examples()
    path = brute_force.loss_along_weight(model, images, labels, "0.weight", 4, [1.0, 0.5, 0.0])
    torch.testing.assert_close(path[0], brute_force.mean_loss(model, images, labels))
    ablation = brute_force.ablation_salience(model, images, labels, parameters={"0.weight": torch.tensor([4])})
    torch.testing.assert_close(path[2] - path[0], ablation["0.weight"][0])


def test_indicators_at_one_change_nothing_and_elsewhere_they_do():
    model, (images, labels) = tiny("convolution"), tiny_examples()
    loss = brute_force.mean_loss(model, images, labels)
    assert float(brute_force.indicator_loss(model, images, labels)) == float(loss)
    assert float(brute_force.indicator_loss(model, images, labels, at=0.5)) != float(loss)
    halved = brute_force.indicator_salience(model, images, labels, at=0.5)
    assert not torch.allclose(halved["0.weight"], snipnb.snip(model, images, labels)["0.weight"])


def test_chunks_do_not_change_the_loss(few, monkeypatch):
    images, labels = few
    model = snipnb.lenet5()
    whole = brute_force.mean_loss(model, images, labels)
    monkeypatch.setattr(brute_force, "CHUNK", 7)
    torch.testing.assert_close(brute_force.mean_loss(model, images, labels), whole, rtol=1e-14, atol=0)


def test_stratified_sample_takes_all_of_small_tensors():
    sample = brute_force.stratified_sample(snipnb.lenet5(), 12, seed=1)
    assert {name: len(i) for name, i in sample.items()} == {
        **dict.fromkeys(sample, 12),
        "conv1.bias": 6,
        "full3.bias": 10,
    }
    assert all(len(i.unique()) == len(i) and bool((i.diff() > 0).all()) for i in sample.values())
    assert not torch.equal(sample["full1.weight"], brute_force.stratified_sample(snipnb.lenet5(), 12)["full1.weight"])
