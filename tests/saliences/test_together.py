"""Saliences of many networks together, against each one's own."""

import copy

import pytest
import torch
from small_networks import SEQUENTIAL, sequential
from torch import nn

import snipnb


@pytest.fixture(scope="module")
def sample():
    images, labels = snipnb.load_mnist("train", sample=True)
    return images[:150], labels[:150]


def worst(found, expected):
    return max(float((found[n] - e).abs().max() / e.abs().max()) for n, e in expected.items())


@torch.no_grad()
def far_from_a_switch(model, images, *, distance=1e-6):
    """Which images have no ReLU and no pooling window so close to switching that rounding in float32 may decide.

    Windows of equal values do not count: these are the same sums, and the first one wins in any precision.
    """
    x, clear = images.double(), torch.ones(len(images), dtype=torch.bool)
    for layer in copy.deepcopy(model).double():
        if isinstance(layer, nn.ReLU):
            clear &= x.abs().flatten(1).amin(1) > distance
        elif isinstance(layer, nn.MaxPool2d):
            windows = nn.functional.unfold(x.flatten(0, 1)[:, None], layer.kernel_size, stride=layer.stride)
            largest, second = windows.topk(2, dim=1).values.unbind(1)
            close = (largest > second) & (largest - second < distance) & (largest > -distance)
            clear &= ~close.view(len(images), -1).any(1)
        x = layer(x)
    return clear


@pytest.mark.parametrize("network", [snipnb.lenet5, snipnb.lenet_300_100])
def test_each_is_as_by_itself(network, sample):
    models = [network(seed=k, init="xavier_normal" if k % 2 else "pytorch") for k in range(11)]
    clear = torch.stack([far_from_a_switch(m, sample[0]) for m in models]).all(0)
    assert clear.float().mean() > 0.7
    sample = tuple(part[clear] for part in sample)
    before = [p.clone() for m in models for p in m.parameters()]
    found = snipnb.snip_together(models, *sample)
    for one, model in zip(found, models, strict=True):
        assert list(one) == [name for name, _ in model.named_parameters()]
        assert worst(one, snipnb.snip(model, *sample)) < 2e-5
    assert all(torch.equal(a, b) for a, b in zip(before, (p for m in models for p in m.parameters()), strict=True))
    assert all(p.grad is None for m in models for p in m.parameters())


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_every_covered_layer_in_float64(name):
    models, images, labels = zip(*(sequential(name, seed=k) for k in range(2)), strict=True)
    images, labels = images[0], labels[0]
    for one, model in zip(snipnb.snip_together(models, images, labels), models, strict=True):
        expected = snipnb.snip(model, images, labels)
        scale = max(float(e.abs().max()) for e in expected.values())
        assert all(float((one[n] - e).abs().max()) <= 1e-10 * scale for n, e in expected.items())


def test_a_parameter_that_no_layer_uses_has_no_salience():
    model, images, labels = sequential("norm before ReLU")
    functions = {
        "together": lambda *given: snipnb.snip_together([given[0]], *given[1:])[0],
        "alone": snipnb.snip,
        "exact": snipnb.exact_salience,
        "curvature": snipnb.diagonal_hessian,
    }
    expected = {name: function(model, images, labels) for name, function in functions.items()}
    model.register_parameter("spare", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    for name, function in functions.items():
        found = function(model, images, labels)
        assert found.pop("spare").tolist() == [0, 0]
        assert all(torch.equal(found[n], e) for n, e in expected[name].items()), name


def test_a_model_without_parameters_in_its_layers_is_refused():
    model, images, labels = nn.Sequential(nn.Flatten()), torch.ones(3, 2, 1, 1), torch.zeros(3, dtype=torch.int64)
    model.register_parameter("spare", nn.Parameter(torch.ones(2)))
    with pytest.raises(
        ValueError, match=r"no layer of the model has parameters; it must be an nn\.Sequential of Conv2d"
    ):
        snipnb.snip_together([model], images, labels)
    with pytest.raises(
        ValueError, match=r"no layer of the model has parameters; it must be an nn\.Sequential of Conv2d"
    ):
        snipnb.diagonal_hessian(model, images, labels, method="cumulants")
    with pytest.raises(ValueError, match="the loss must be a scalar tensor that depends on the parameters"):
        snipnb.diagonal_hessian(model, images, labels)
    assert snipnb.exact_salience(model, images, labels)["spare"].tolist() == [0, 0]


@pytest.mark.parametrize("kernel", [15, 16, 28])
def test_pooling_windows_of_any_size(sample, kernel):
    images, labels = sample[0][:30], sample[1][:30]
    size = (28 // kernel) ** 2 * 3
    layers = [nn.Conv2d(1, 3, 3, padding=1), nn.MaxPool2d(kernel), nn.ReLU(), nn.Flatten(), nn.Linear(size, 10)]
    model = nn.Sequential(*layers)
    (found,), expected = snipnb.snip_together([model], images, labels), snipnb.snip(model, images, labels)
    for name, e in expected.items():
        torch.testing.assert_close(found[name], e, rtol=1e-4, atol=1e-6 * float(e.abs().max()))


def test_the_number_of_workers_changes_nothing(sample):
    models, threads = [snipnb.lenet5(seed=k) for k in range(17)], torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = snipnb.snip_together(models, *sample)
        torch.set_num_threads(3)  # more than there are jobs for
        several = snipnb.snip_together(models, *sample)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a[n], b[n]) for a, b in zip(alone, several, strict=True) for n in a)


def test_what_does_not_fit_is_named(sample):
    images, labels = sample
    with pytest.raises(ValueError, match="no models are given"):
        snipnb.snip_together([], images, labels)
    with pytest.raises(ValueError, match="differ in layers"):
        snipnb.snip_together([snipnb.lenet5(), snipnb.lenet_300_100()], images, labels)
    with pytest.raises(ValueError, match=r"images are torch\.float64"):
        snipnb.snip_together([snipnb.lenet5()], images.double(), labels)
    with pytest.raises(ValueError, match="range from"):
        snipnb.snip_together([snipnb.lenet5()], images, labels + 1)
    with pytest.raises(ValueError, match="Tanh"):
        snipnb.snip_together([nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.Tanh())], images, labels)


@pytest.mark.parametrize("change", [lambda x: x.expand(-1, 2, -1, -1), lambda x: x[..., :20], lambda x: x[..., :3, :3]])
def test_images_that_do_not_fit_are_named(sample, change):
    images, labels = sample
    with pytest.raises(ValueError, match="does not fit"):
        snipnb.snip_together([snipnb.lenet5(seed=k) for k in range(2)], change(images), labels)
