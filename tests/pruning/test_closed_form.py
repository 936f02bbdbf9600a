import numpy as np
import pytest
import torch
from torch import nn

import snipnb
from snipnb._engine.sequential import Layer
from snipnb.networks import lenet_variant
from snipnb.pruning import closed_form
from snipnb.pruning.closed_form import FITTED, IMAGE_SHAPE, Constants, predicted_densities, predicted_scales

EVEN = Constants(within=0.6, between=0.3, neighbours=0.5, contrast=0.0)


def scales_of(model, shape=IMAGE_SHAPE, *, init="pytorch", constants=FITTED):
    return {name: scale for name, (scale, _, _) in predicted_scales(model, shape, init, constants).items()}


def alike_images(number, *shape, seed=0):
    """Normal pixels with just the correlations of EVEN, and evenly many labels of ten classes."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(number) % 10
    shared, classes = torch.randn(1, *shape, generator=draw), torch.randn(10, *shape, generator=draw)
    own = torch.randn(number, *shape, generator=draw)
    return 0.3**0.5 * shared + 0.3**0.5 * classes[labels] + 0.4**0.5 * own, labels


def wide():
    return nn.Sequential(
        nn.Linear(300, 400),
        nn.ReLU(),
        nn.Linear(400, 300),
        nn.ReLU(),
        nn.Linear(300, 200),
        nn.ReLU(),
        nn.Linear(200, 10),
    )


def padded():
    return nn.Sequential(
        nn.Conv2d(2, 60, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(60, 40, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(360, 10),
    )


@pytest.mark.parametrize(("build", "shape"), [(wide, (300,)), (padded, (2, 8, 8))])
def test_scales_are_those_of_wide_networks_on_images_that_are_so_alike(build, shape):
    squares = {}
    for seed in range(4):
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)
            model = build()
        for name, s in snipnb.snip(model, *alike_images(400, *shape, seed=seed)).items():
            squares.setdefault(name, []).append(float(s.square().mean()))
    scales = scales_of(build(), shape, constants=EVEN)
    scales.popitem()  # the ten output biases: their gradient comes in part from themselves, which the form leaves out
    for name, scale in scales.items():
        tolerance = 0.12 if name.endswith("weight") else 0.35  # few biases
        assert np.mean(squares[name]) ** 0.5 == pytest.approx(scale, rel=tolerance), name


@pytest.mark.parametrize(
    "options", [{}, {"padding": 2}, {"padding": "same", "dilation": 2}, {"stride": (2, 3), "padding": 1}]
)
def test_connections_into_the_padding_are_counted(options):
    layer = Layer.of("conv", nn.Conv2d(2, 1, (3, 5), bias=False, **options))
    met = nn.functional.conv2d(torch.ones(2, 9, 11), torch.ones_like(layer.module.weight), None, **options) / 30
    assert layer.shape_behind((2, 9, 11)) == tuple(met.shape)
    assert closed_form._inside(layer, (9, 11)) == pytest.approx(float(met.mean()))


def test_moments_of_relu_are_the_arc_cosine_kernels():
    moments = np.array([1.7, 0.9, 0.2])
    after, gates, unit_moments, unit_gates = closed_form._gate(moments, 1, 0.5)
    angle = np.arccos(moments / moments[0])
    assert after == pytest.approx(1.7 * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi), rel=0.01)
    assert gates == pytest.approx((np.pi - angle) / (2 * np.pi), rel=0.01)
    assert unit_moments.mean(axis=1) == pytest.approx(after[1:], rel=0.1)  # few nodes
    assert unit_gates.mean(axis=1) == pytest.approx(gates[1:], rel=0.02)


def test_the_largest_of_some_normals():
    assert closed_form._largest(2) == pytest.approx((np.pi**-0.5, 1 - 1 / np.pi), abs=1e-6)
    draws = np.random.default_rng(0).standard_normal((200_000, 4)).max(axis=1)
    assert closed_form._largest(4) == pytest.approx((draws.mean(), draws.var()), abs=0.01)


@pytest.mark.parametrize("normal", [False, True])
def test_tails_are_those_of_products(normal):
    draw = np.random.default_rng(1)
    w = draw.standard_normal(400_000) if normal else draw.uniform(-(3**0.5), 3**0.5, 400_000)
    products = np.abs(w * draw.standard_normal(400_000))
    for t in (0.01, 0.3, 1.0, 3.0):
        assert float(closed_form._tail(normal, np.log(t))) == pytest.approx((products > t).mean(), abs=0.003)


@pytest.mark.parametrize("init", snipnb.INITIALISATIONS)
def test_densities_add_up_and_fall_with_sparsity(init):
    model = snipnb.lenet5()
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    previous = dict.fromkeys(sizes, 1.0)
    for sparsity in (0, 0.01, 0.5, 0.9, 0.95, 0.99, 0.9999):
        densities = predicted_densities(model, sparsity, init=init)
        assert list(densities) == list(sizes)
        kept = 61_706 - snipnb.num_removed(61_706, sparsity)
        assert sum(densities[name] * sizes[name] for name in sizes) == pytest.approx(kept, rel=1e-9)
        assert all(0 <= densities[name] <= previous[name] + 1e-12 for name in sizes)
        previous = densities


def test_biases_that_start_at_zero_go_first():
    model = snipnb.lenet5()
    assert scales_of(model, init="pytorch_zero_bias")["full1.bias"] == 0
    assert predicted_densities(model, 0.5, init="pytorch_zero_bias")["full1.bias"] == 0
    few = predicted_densities(model, 0.002, init="pytorch_zero_bias")  # 123 of 236 biases go
    assert few["full1.weight"] == 1
    assert few["full1.bias"] == few["conv1.bias"] == pytest.approx(113 / 236)


def test_only_shapes_and_the_initialisation_matter():
    drawn = [predicted_densities(snipnb.lenet5(seed=seed), 0.9) for seed in (0, 1)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != predicted_densities(snipnb.lenet5(), 0.9, init="xavier_normal")
    with_dropout = nn.Sequential(nn.Flatten(), nn.Linear(784, 30), nn.Dropout(0.5), nn.ReLU(), nn.Linear(30, 10))
    without = nn.Sequential(nn.Flatten(), nn.Linear(784, 30), nn.ReLU(), nn.Linear(30, 10))
    assert list(scales_of(with_dropout).values()) == list(scales_of(without).values())


def test_networks_without_biases_and_layers_that_never_matter_are_covered():
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 30, bias=False), nn.ReLU(), nn.Linear(30, 10, bias=False))
    densities = predicted_densities(model, 0.9)
    assert list(densities) == ["1.weight", "3.weight"]
    assert densities["3.weight"] > densities["1.weight"]
    deep = lenet_variant("lenet_300_100", width=0.1, extra_full=40)  # first scales tens of powers of ten below the last
    densities, sizes = predicted_densities(deep, 0.5), {name: p.numel() for name, p in deep.named_parameters()}
    assert sum(densities[name] * sizes[name] for name in sizes) == pytest.approx(sum(sizes.values()) / 2, abs=1)


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (nn.Linear(3, 2), {}, r"it must be an nn\.Sequential"),
        (nn.Sequential(nn.Linear(784, 5), nn.Tanh()), {"image_shape": (784,)}, "'1' is a Tanh"),
        (
            nn.Sequential(nn.Linear(9, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)),
            {"image_shape": (9,)},
            "'1' must be .*; got BatchNorm1d",
        ),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.AvgPool2d(2)), {}, "got average pooling or pooling without ReLU"),
        (nn.Sequential(nn.Linear(784, 5), nn.ReLU()), {"image_shape": (784,)}, "does not end in logits"),
        (nn.Sequential(nn.ReLU(), nn.Linear(784, 5)), {"image_shape": (784,)}, "'0' comes before any weights"),
        (nn.Sequential(nn.Linear(784, 5)), {}, r"it gets \(1, 28, 28\) per image"),
        (snipnb.lenet5(), {"image_shape": (1, 32, 32)}, r"'full1'.* it gets \(576,\) per image, which does not fit"),
        (snipnb.lenet5(), {"image_shape": (28, 28)}, "image_shape must be \\(channels, height, width\\)"),
        (snipnb.lenet5(), {"init": "he"}, "init must be one of 'pytorch', .*; got 'he'"),
        (snipnb.lenet5(), {"constants": Constants(0.3, 0.4, 0.5, 0.5)}, "must have 0 < between < within < 1"),
        (
            snipnb.lenet5(),
            {"constants": Constants(0.4, 0.3, 1.5, 0.5)},
            r"neighbours must be a number in \[0, 1\]; got 1\.5",
        ),
        (snipnb.lenet5(), {"sparsity": 1}, r"sparsity must be a number in \[0, 1\).*; got 1"),
    ],
)
def test_what_the_closed_form_does_not_cover_is_named(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        predicted_densities(model, **{"sparsity": 0.5, **arguments})
