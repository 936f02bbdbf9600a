import pytest
import torch
from torch import nn

import snipnb
from snipnb import networks as models
from snipnb._torchvision import torchvision

SHAPES = {
    "conv1.weight": (6, 1, 5, 5),
    "conv1.bias": (6,),
    "conv2.weight": (16, 6, 5, 5),
    "conv2.bias": (16,),
    "full1.weight": (120, 400),
    "full1.bias": (120,),
    "full2.weight": (84, 120),
    "full2.bias": (84,),
    "full3.weight": (10, 84),
    "full3.bias": (10,),
}


def test_lenet5_is_the_network_of_the_table():
    model = snipnb.lenet5()
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == SHAPES
    assert sum(p.numel() for p in model.parameters()) == 61_706
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_lenet_300_100():
    model = snipnb.lenet_300_100(seed=3)
    assert [name for name, _ in model.named_children()] == ["flatten", "full1", "relu1", "full2", "relu2", "full3"]
    assert sum(p.numel() for p in model.parameters()) == 266_610
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(3)
        layers = [torch.nn.Linear(*sizes) for sizes in ((784, 300), (300, 100), (100, 10))]
    for ours, layer in zip((model.full1, model.full2, model.full3), layers, strict=True):
        assert torch.equal(ours.weight, layer.weight)
        assert torch.equal(ours.bias, layer.bias)
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize("init", snipnb.INITIALISATIONS)
@pytest.mark.parametrize("network", [snipnb.lenet5, snipnb.lenet_300_100])
def test_seeds_determine_the_weights_and_nothing_else_is_touched(network, init):
    state = torch.get_rng_state()
    first, again, other = network(init=init, seed=4), network(init=init, seed=4), network(init=init, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    for name, p in first.named_parameters():
        assert torch.equal(p, again.get_parameter(name))
        if name.endswith("weight") or not init.endswith("zero_bias"):
            assert not torch.equal(p, other.get_parameter(name))


def test_initialisations_have_their_spread():
    fan_in, fan_out = 400, 120
    xavier = (2 / (fan_in + fan_out)) ** 0.5
    spread = {"pytorch": (1 / (3 * fan_in)) ** 0.5, "xavier_uniform": xavier, "xavier_normal": xavier}
    for init, expected in spread.items():
        weights = snipnb.lenet5(init=init, seed=0).full1.weight.detach()
        assert float(weights.std()) == pytest.approx(expected, rel=0.02)
        bound = float(weights.abs().max()) / expected
        assert (bound < 3**0.5 + 0.01) == (init != "xavier_normal")


def test_xavier_keeps_the_biases_of_pytorch_and_zero_bias_clears_them():
    default = snipnb.lenet5(seed=2)
    for init in ("xavier_uniform", "xavier_normal"):
        xavier, cleared = snipnb.lenet5(init=init, seed=2), snipnb.lenet5(init=f"{init}_zero_bias", seed=2)
        assert torch.equal(xavier.full1.bias, default.full1.bias)
        assert not torch.equal(xavier.full1.weight, default.full1.weight)
        assert torch.equal(xavier.full1.weight, cleared.full1.weight)
        assert bool((cleared.full1.bias == 0).all())


def test_unknown_initialisation_is_named():
    with pytest.raises(ValueError, match=r"init must be one of 'pytorch', 'xavier_uniform', .*; got 'he'"):
        snipnb.lenet5(init="he")


def test_labels_of_the_write_up():
    assert [snipnb.published_label(name) for name in ("conv1.weight", "full3.bias")] == ["conv 1", "bias full 3"]
    assert snipnb.published_label("features.0.weight") == "features.0.weight"


def test_lenet5_layer_by_layer():
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(3)
        layers = {
            "conv1": nn.Conv2d(1, 6, 5, padding=2),
            "relu1": nn.ReLU(),
            "pool1": nn.MaxPool2d(2),
            "conv2": nn.Conv2d(6, 16, 5),
            "relu2": nn.ReLU(),
            "pool2": nn.MaxPool2d(2),
            "flatten": nn.Flatten(),
            "full1": nn.Linear(400, 120),
            "relu3": nn.ReLU(),
            "full2": nn.Linear(120, 84),
            "relu4": nn.ReLU(),
            "full3": nn.Linear(84, 10),
        }
    model = snipnb.lenet5(seed=3)
    assert {name: repr(layer) for name, layer in model.named_children()} == {n: repr(m) for n, m in layers.items()}
    for name, p in model.named_parameters():
        assert torch.equal(p, nn.ModuleDict(layers).get_parameter(name))


def test_variants_are_wider_and_deeper(examples):
    model = models.lenet_variant(width=1.5, extra_conv=1, extra_full=1, init="pytorch_zero_bias")
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.dim() > 1}
    assert shapes == {
        "conv1.weight": (9, 1, 5, 5),
        "conv2.weight": (24, 9, 5, 5),
        "conv3.weight": (24, 24, 3, 3),
        "full1.weight": (180, 600),
        "full2.weight": (126, 180),
        "full3.weight": (126, 126),
        "full4.weight": (10, 126),
    }
    assert model(examples[0][:2]).shape == (2, 10)
    assert not model.conv3.bias.any()
    assert sum(isinstance(layer, torch.nn.ReLU) for layer in model) == 6
    assert torch.equal(model.conv1.weight, models.lenet_variant(width=1.5).conv1.weight)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base": "vgg"}, "base must be one of 'lenet5', 'lenet_300_100'; got 'vgg'"),
        ({"width": 0}, r"width must be a number in \(0, inf\); got 0"),
        ({"width": float("inf")}, "width .*; got inf"),
        ({"extra_full": -1}, "extra_full must be an integer of at least 0; got -1"),
        ({"extra_conv": 1.0}, r"extra_conv must be an integer .*; got 1\.0"),
        (
            {"base": "lenet_300_100", "extra_conv": 1},
            "extra_conv must be 0 for lenet_300_100, which has no convolutions; got 1",
        ),
        ({"init": "he"}, "init .*; got 'he'"),
    ],
)
def test_variants_that_cannot_be_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.lenet_variant(**arguments)


# --- batch norm and VGG16 ---------------------------------------------------------------------------------------------


def test_vgg16_is_torchvisions_with_one_channel_and_a_small_head():
    vgg = torchvision.models.vgg
    theirs = vgg.make_layers(vgg.cfgs["D"], batch_norm=True)
    ours = snipnb.vgg16_mnist()
    kinds = [type(m) for m in ours]
    assert kinds[: len(theirs)] == [type(m) for m in theirs]
    wanted = [tuple(p.shape) for p in theirs.parameters()]
    wanted[0] = (64, 1, 3, 3)
    assert [tuple(p.shape) for p in ours.parameters()][: len(wanted)] == wanted
    assert sum(p.numel() for p in ours.parameters()) == 14_879_494
    images = torch.rand(2, 1, 28, 28)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    first = torch.nn.functional.conv2d(padded, ours.conv1.weight, ours.conv1.bias, padding=1)
    torch.testing.assert_close(ours.conv1(images), first)  # padding 3 is 28 -> 32 and padding 1
    assert ours.eval()(images).shape == (2, 10)


def test_statistics_are_those_of_the_data(few):
    images, _ = few
    model = models.lenet_variant(batch_norm=True, extra_full=1, seed=0).double()
    model.train()
    before = {name: p.clone() for name, p in model.named_parameters()}
    assert snipnb.set_running_statistics(model, images) is model
    assert model.training
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    inputs = model.conv1(images)
    torch.testing.assert_close(model.norm1.running_mean, inputs.mean((0, 2, 3)))
    torch.testing.assert_close(model.norm1.running_var, inputs.transpose(0, 1).flatten(1).var(1))
    assert model.norm1.momentum == 0.1
    outputs = model.eval()(images)
    torch.testing.assert_close(outputs, model.train()(images), rtol=0.1, atol=0.05)  # up to n - 1 for n
    halves = snipnb.set_running_statistics(
        models.lenet_variant(batch_norm=True, seed=0).double(), images, batch_size=30
    )
    both = torch.stack([half.mean((0, 2, 3)) for half in halves.conv1(images).split(30)]).mean(0)
    torch.testing.assert_close(halves.norm1.running_mean, both)
    plain = models.lenet5()
    assert snipnb.set_running_statistics(plain, images[:1]) is plain  # nothing to set
    with pytest.raises(ValueError, match="leave a batch of one"):
        snipnb.set_running_statistics(model, images[:31], batch_size=30)


def test_a_batch_norm_stands_before_every_relu():
    model = models.lenet_variant(batch_norm=True, extra_conv=1, extra_full=1)
    names = [name for name, _ in model.named_children()]
    for i, name in enumerate(names):
        if name.startswith("relu"):
            assert names[i - 1] == f"norm{name.removeprefix('relu')}"
    plain = dict(models.lenet_variant(extra_conv=1, extra_full=1).named_parameters())
    assert {n for n, _ in model.named_parameters() if not n.startswith("norm")} == set(plain)
    xavier = models.lenet_variant(batch_norm=True, init="xavier_uniform")
    assert torch.equal(xavier.norm1.weight, torch.ones(6))


def test_statistics_survive_images_that_do_not_fit(few):
    model = models.lenet_variant(batch_norm=True, seed=0).double()
    model.norm1.running_mean.fill_(3)
    with pytest.raises(RuntimeError):
        snipnb.set_running_statistics(model, few[0][..., :4])
    assert (model.norm1.running_mean == 3).all()


def test_a_seed_is_for_the_processor_alone_and_put_back():
    before = torch.random.default_generator.get_state()
    with models.seeded(3):
        first = torch.rand(2)
    with models.seeded(3, torch.device("cpu")):
        assert torch.equal(torch.rand(2), first)
    assert torch.equal(torch.random.default_generator.get_state(), before)
