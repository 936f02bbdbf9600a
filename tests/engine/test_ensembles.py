"""Networks applied together, against each of them applied by itself by PyTorch."""

import pytest
import torch
from small_networks import SEQUENTIAL, sequential
from torch import nn

import snipnb
from snipnb._engine import ensembles as stacked_module
from snipnb._engine.ensembles import Stack


@pytest.fixture(autouse=True, params=["compiled", "PyTorch's"])
def convolutions(request, monkeypatch):
    """Everything here holds for both: the compiled convolutions of a processor, and those of a GPU."""
    if request.param != "compiled":
        monkeypatch.setattr(stacked_module, "runs_compiled", lambda *_: False)
    return request.param


# Beside the grid that the exact salience is tested with: geometries, batch norms and ends of their own.
ODD = {
    "one pixel": ((3, 1, 1), lambda: [nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3)]),
    "images without channels": ((4, 3), lambda: [nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 3)]),
    "window of one": ((2, 3, 2), lambda: [nn.Conv2d(2, 2, 1), nn.MaxPool2d(1), nn.ReLU(), nn.Flatten()]),
    "rows and columns left over": (
        (1, 11, 9),
        lambda: [nn.Conv2d(1, 3, 2), nn.ReLU(), nn.MaxPool2d((4, 3)), nn.Conv2d(3, 2, 1), nn.Flatten()],
    ),
    "left over behind an average": (
        (2, 7, 8),
        lambda: [nn.Conv2d(2, 3, 2), nn.AvgPool2d((4, 2)), nn.Conv2d(3, 2, (1, 2)), nn.ReLU(), nn.Flatten()],
    ),
    "gaps between windows": (
        (1, 9, 9),
        lambda: [nn.Conv2d(1, 2, 2), nn.ReLU(), nn.MaxPool2d(2, stride=3), nn.Conv2d(2, 2, 2), nn.Flatten()],
    ),
    "overlapping windows, padded": (
        (2, 9, 7),
        lambda: [
            nn.Conv2d(2, 3, 3),
            nn.MaxPool2d((3, 2), stride=(2, 1), padding=1),
            nn.ReLU(),
            nn.Conv2d(3, 2, 2),
            nn.Flatten(),
        ],
    ),
    "overlapping averages, padded": (
        (1, 6, 7),
        lambda: [nn.Conv2d(1, 2, 2), nn.AvgPool2d(3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(2, 3, 2), nn.Flatten()],
    ),
    "steps longer than kernels": (
        (2, 11, 10),
        lambda: [nn.Conv2d(2, 3, 2, stride=3), nn.ReLU(), nn.Conv2d(3, 2, 1, stride=2, padding=1), nn.Flatten()],
    ),
    "dilated, not square": (
        (2, 9, 10),
        lambda: [
            nn.Conv2d(2, 3, (2, 3), stride=(1, 2), padding=(2, 0), dilation=(3, 1)),
            nn.ReLU(),
            nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(0, 1), dilation=(2, 3), bias=False),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(36, 3, bias=False),
        ],
    ),
    "padding by name": (
        (1, 5, 7),
        lambda: [
            nn.Conv2d(1, 2, (3, 5), padding="same", dilation=(2, 1)),
            nn.ReLU(),
            nn.Conv2d(2, 3, 3, padding="same", bias=False),
            nn.MaxPool2d((2, 3)),
            nn.Conv2d(3, 2, 2, padding="valid"),
            nn.Flatten(),
        ],
    ),
    "ReLU first": ((2, 5, 5), lambda: [nn.ReLU(), nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3)]),
    "pool first, then pool": (
        (2, 9, 9),
        lambda: [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Conv2d(2, 3, 2), nn.Flatten(), nn.LogSoftmax(-1)],
    ),
    "norm first": ((3, 4, 4), lambda: [nn.BatchNorm2d(3), nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten()]),
    "norms, cumulative": (
        (2, 6, 6),
        lambda: [
            nn.Conv2d(2, 3, 3, bias=False),
            nn.BatchNorm2d(3, momentum=None),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(12, 5, bias=False),
            nn.BatchNorm1d(5, momentum=None, affine=False),
            nn.ReLU(),
            nn.Linear(5, 3),
        ],
    ),
    "norms without parameters": (
        (2, 5, 5),
        lambda: [
            nn.Conv2d(2, 3, 3),
            nn.ReLU(),
            nn.BatchNorm2d(3, momentum=0.4, affine=False, eps=0.1),
            nn.Conv2d(3, 2, 2),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.BatchNorm1d(2, momentum=0.0),
            nn.Linear(2, 3),
        ],
    ),
    "sub-sequences and what does nothing": (
        (1, 6, 6),
        lambda: [
            nn.Identity(),
            nn.Sequential(nn.Conv2d(1, 2, 3), nn.Identity(), nn.ReLU()),
            nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.0)),
            nn.Linear(8, 3),
            nn.LogSoftmax(1),
        ],
    ),
}


def networks_of(name, number):
    """Networks that are alike but for their values, in float64, without dropout, and the shape of their images."""
    if name in SEQUENTIAL:
        shape, models = SEQUENTIAL[name][0], [sequential(name, seed=k)[0] for k in range(number)]
    else:
        shape, build = ODD[name]
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(1)
            models = [nn.Sequential(*build()).double() for _ in range(number)]
    for layer in (layer for model in models for layer in model.modules() if isinstance(layer, nn.Dropout)):
        layer.p = 0.0
    return models, shape


def random_images(number, shape, seed=0):
    return torch.randn(number, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def stacked(models, kind):
    named = [dict(getattr(m, f"named_{kind}")()) for m in models]
    return {name: torch.stack([one[name].detach() for one in named]) for name in named[0]}


def gradients(loss, parameters):
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


@pytest.mark.parametrize("name", [*SEQUENTIAL, *ODD])
def test_outputs_gradients_and_statistics_are_those_of_each_network_alone(name):
    models, shape = networks_of(name, 3)
    stack, buffers = Stack(models[0]), stacked(models, "buffers")
    parameters = {n: p.requires_grad_() for n, p in stacked(models, "parameters").items()}
    for i, number in enumerate((7, 2, 7)):  # memory is used again, for a smaller batch and then the larger one
        images = random_images(number, shape, seed=i)
        logits = stack.logits(stack.inputs(images), parameters, buffers, training=True)
        aim = random_images(len(models), logits.shape[1:], seed=10 + i)  # a loss that is different for every output
        found = gradients((logits * aim).sum(), parameters)
        for k, model in enumerate(models):
            alone = model.train()(images)
            torch.testing.assert_close(logits[k].T, alone, rtol=1e-10, atol=1e-12)
            for key, gradient in gradients((alone * aim[k].T).sum(), dict(model.named_parameters())).items():
                torch.testing.assert_close(found[key][k], gradient, rtol=1e-8, atol=1e-9)
            for key, buffer in model.named_buffers():
                torch.testing.assert_close(buffers[key][k], buffer, rtol=1e-10, atol=1e-12)
    before = {key: b.clone() for key, b in buffers.items()}
    images = random_images(5, shape, seed=20)
    with torch.no_grad():
        logits = stack.logits(stack.inputs(images), parameters, buffers)
        for k, model in enumerate(models):
            torch.testing.assert_close(logits[k].T, model.eval()(images), rtol=1e-10, atol=1e-12)
    assert all(torch.equal(b, before[key]) for key, b in buffers.items())  # evaluation leaves the statistics


def test_only_batch_norm_mixes_images():
    assert [Stack(networks_of(n, 1)[0][0]).mixes_images for n in ("LeNet in small", "norm first")] == [False, True]
    assert Stack(networks_of("norm before ReLU", 1)[0][0]).mixes_images


@pytest.mark.parametrize("relu", ["before", "after", "none"])
def test_a_constant_channel_gives_its_bias_one_gradient_per_window_as_pytorch_does(relu):
    """All four values of each window tie: the weight is pruned, and what is left is the bias."""
    layers = {"before": [nn.ReLU(), nn.MaxPool2d(2)], "after": [nn.MaxPool2d(2), nn.ReLU()], "none": [nn.MaxPool2d(2)]}
    model = nn.Sequential(nn.Conv2d(1, 1, 1), *layers[relu], nn.Flatten()).double()
    model[0].weight.data.zero_()
    model[0].bias.data.fill_(0.5)
    images, stack = random_images(1, (1, 2, 4)), Stack(model)
    parameters = {n: p.requires_grad_() for n, p in stacked([model], "parameters").items()}
    logits = stack.logits(stack.inputs(images), parameters, {}, training=True)
    aim = torch.tensor([2.0, 3.0], dtype=torch.float64)
    found = gradients((logits[0, :, 0] * aim).sum(), parameters)
    assert float(found["0.bias"]) == 5  # not 20
    by_pytorch = gradients((model(images)[0] * aim).sum(), dict(model.named_parameters()))
    assert float(by_pytorch["0.bias"]) == 5
    first_of_window = (images[0, 0, 0, ::2] * aim).sum()
    torch.testing.assert_close(found["0.weight"].sum(), first_of_window)


@pytest.mark.parametrize("first", ["ReLU", "pool"])
def test_a_channel_that_is_zero_gets_no_gradient_through_a_relu(first):
    layers = [nn.ReLU(), nn.MaxPool2d(2)] if first == "ReLU" else [nn.MaxPool2d(2), nn.ReLU()]
    model = nn.Sequential(nn.Conv2d(1, 1, 1), *layers, nn.Flatten()).double()
    for p in model.parameters():
        p.data.zero_()
    images, stack = random_images(3, (1, 2, 4)), Stack(model)
    parameters = {n: p.requires_grad_() for n, p in stacked([model], "parameters").items()}
    found = gradients(stack.logits(stack.inputs(images), parameters, {}, training=True).sum(), parameters)
    expected = gradients(model(images).sum(), dict(model.named_parameters()))
    assert all(float(g) == float(expected[name]) == 0 for name, g in found.items())


def test_some_of_a_window_tie():
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.MaxPool2d(2), nn.Conv2d(1, 1, 1, bias=False), nn.Flatten())
    model = model.double()
    for layer in (model[0], model[2]):
        layer.weight.data.fill_(2.0)
    images = torch.tensor([[3.0, 1.0], [3.0, 2.0]], dtype=torch.float64).view(1, 1, 2, 2)
    stack, parameters = Stack(model), {n: p.requires_grad_() for n, p in stacked([model], "parameters").items()}
    logits = stack.logits(stack.inputs(images), parameters, {}, training=True)
    found = gradients(logits.sum(), parameters)
    assert float(logits.detach()) == 12
    assert {name: float(g) for name, g in found.items()} == {"0.weight": 6, "2.weight": 6}


# --- dropout ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.3, 0.5, 1.0])
def test_dropout_scales_what_it_keeps_and_acts_in_training_only(p):
    model = nn.Sequential(nn.Dropout(p), nn.Flatten(), nn.Linear(300, 300, bias=False)).double()
    stack, images = Stack(model), random_images(40, (300,))
    some = {"2.weight": torch.eye(300, dtype=torch.float64).repeat(2, 1, 1)}
    draw = torch.Generator().manual_seed(5)
    dropped = stack.logits(stack.inputs(images), some, {}, training=True, generator=draw)
    assert torch.equal(dropped[0], dropped[1])  # the same for all networks
    kept = dropped[0].T != 0
    assert float(kept.double().mean()) == pytest.approx(1 - p, abs=0.02)
    factor = 1 / (1 - p) if p < 1 else 0.0
    torch.testing.assert_close(dropped[0].T, torch.where(kept, images * factor, 0.0), rtol=1e-14, atol=0)
    assert not bool((kept[0] == kept[1]).all()) or p == 1  # another draw for every image
    torch.testing.assert_close(stack.logits(stack.inputs(images), some, {})[0].T, images, rtol=0, atol=0)


def test_a_dropout_draws_from_its_generator_alone():
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 3), nn.Dropout(0.5)).double()
    stack, images, parameters = Stack(model), random_images(4, (6,)), stacked([model], "parameters")

    def drawn(seed):
        generator = torch.Generator().manual_seed(seed)
        return stack.logits(stack.inputs(images), parameters, {}, training=True, generator=generator)

    state = torch.get_rng_state()
    first, other, again = (drawn(seed).clone() for seed in (1, 2, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# --- what is not covered ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(3, 2), "the model is a Linear; it must be an nn.Sequential"),
        (nn.Sequential(nn.Linear(3, 2), nn.Tanh()), "layer '1' is a Tanh; it must be one of"),
        (nn.Sequential(nn.LogSoftmax(1), nn.Linear(3, 2)), "layer '0' is a LogSoftmax"),
        (nn.Sequential(nn.Conv2d(2, 2, 1, groups=2), nn.Flatten()), "groups=2; groups must be 1"),
        (nn.Sequential(nn.Conv2d(1, 1, 2, padding="same"), nn.Flatten()), "pads one side more"),
        (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False)), "track_running_stats=False"),
    ],
)
def test_what_is_not_covered_is_named(model, message):
    with pytest.raises(ValueError, match=message):
        Stack(model)


def test_lenet5_is_covered_in_float32():
    models = [snipnb.lenet5(seed=k).eval() for k in range(3)]
    stack, images = Stack(models[0]), random_images(4, (1, 28, 28)).float()
    with torch.no_grad():
        logits = stack.logits(stack.inputs(images), stacked(models, "parameters"), {})
        for k, model in enumerate(models):
            torch.testing.assert_close(logits[k].T, model(images), rtol=1e-5, atol=1e-6)
