"""Compiled convolutions against PyTorch's, with its own pooling and gradients."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import snipnb
from snipnb._engine import ensembles, kernels
from snipnb._engine.ensembles import Kept, Stack

# inputs [channels, height, width], outputs, kernel, dilation, pooling, ReLU, networks
CASES = {
    "lenet's second": ((6, 14, 14), 16, (5, 5), (1, 1), (2, 2), True, 2),
    "six outputs": ((3, 7, 8), 6, (3, 2), (1, 1), (1, 1), False, 2),
    "one output": ((2, 5, 5), 1, (2, 2), (1, 1), (2, 1), True, 3),
    "one tap": ((1, 4, 3), 5, (1, 1), (1, 1), (3, 2), False, 2),
    "dilation, odd outputs": ((2, 9, 11), 7, (3, 2), (2, 3), (1, 1), True, 1),
    "rows left over by the pooling": ((4, 8, 9), 9, (2, 2), (1, 1), (3, 3), True, 2),
}


def by_pytorch(x, weight, bias, dilation, pool, relu):
    out = []
    for k in range(len(weight)):
        y = F.conv2d(x[k % len(x)].movedim(-1, 0), weight[k], bias[k], dilation=dilation)
        y = F.max_pool2d(y, pool)
        out.append((y.relu() if relu else y).movedim(0, -1))
    return torch.stack(out)


@pytest.mark.parametrize("share", [1, 0.6, 0.3, 0])
@pytest.mark.parametrize("images", [16, 48])
@pytest.mark.parametrize("name", CASES)
def test_outputs_and_all_gradients_are_pytorchs(name, images, share):
    shape, outputs, kernel, dilation, pool, relu, networks = CASES[name]
    draw = torch.Generator().manual_seed(0)
    shapes = (networks, *shape, images), (networks, outputs, shape[0], *kernel), (networks, outputs)
    x, weight, bias = (torch.randn(s, generator=draw, dtype=torch.float64, requires_grad=True) for s in shapes)
    kept = torch.rand(weight.shape, generator=draw) < share
    with torch.no_grad():
        weight *= kept
    expected = by_pytorch(x, weight, bias, dilation, pool, relu)
    gradient = torch.randn(expected.shape, generator=draw, dtype=torch.float64)
    of_x, of_weight, of_bias = torch.autograd.grad(expected, [x, weight, bias], gradient)

    arrays = [t.detach().numpy() for t in (x, weight, bias)]
    out = np.full(expected.shape, np.nan)
    winner = np.full(expected.shape if relu or pool != (1, 1) else (0,) * 5, 77, np.uint8)
    kernels.convolve(arrays[0], *kernels.packed(*arrays[1:]), dilation, (0, 0, 0), pool, relu, out, winner)
    np.testing.assert_allclose(out, expected.detach(), atol=1e-12)

    found = [np.full(t.shape, np.nan) for t in (weight, bias, x)]
    turned, _ = kernels.packed(arrays[1].swapaxes(1, 2)[..., ::-1, ::-1])
    kernels.gradients(
        arrays[0], gradient.numpy(), winner, dilation, pool, found[0], found[1], turned, found[2], kept.numpy()
    )
    for array, tensor in zip(found[1:], (of_bias, of_x), strict=True):
        np.testing.assert_allclose(array, tensor, atol=1e-11)
    np.testing.assert_allclose(found[0] * kept.numpy(), of_weight * kept, atol=1e-11)


def test_gradients_of_kept_weights_are_the_same_to_the_last_bit_whatever_else_is_kept():
    draw = np.random.default_rng(0)
    x, gradient = (draw.standard_normal((2, *s, 32), dtype=np.float32) for s in ((3, 9, 8), (6, 5, 4)))
    turned, _ = kernels.packed(draw.standard_normal((2, 3, 6, 5, 5), dtype=np.float32))
    kept = draw.random((2, 6, 3, 5, 5)) < 0.3
    found = {}
    for name, wanted in (("all", np.ones_like(kept)), ("some", kept)):
        found[name] = np.full(kept.shape, np.nan, np.float32)
        of_bias, of_x = np.empty((2, 6), np.float32), np.empty_like(x)
        winner = np.empty((0,) * 5, np.uint8)
        kernels.gradients(x, gradient, winner, (1, 1), (1, 1), found[name], of_bias, turned, of_x, wanted)
    np.testing.assert_array_equal(found["some"], np.where(kept, found["all"], 0))


@pytest.mark.parametrize("images", [1, 37, 64])
def test_linear_layers_of_few_weights_are_pytorchs(images):
    draw = torch.Generator().manual_seed(1)
    shapes = (3, 50, images), (3, 7, 50), (3, 7)
    x, weight, bias = (torch.randn(s, generator=draw, dtype=torch.float64) for s in shapes)
    mask = torch.rand(weight.shape, generator=draw) < 0.08
    mask[1, 2] = False  # nothing of one output
    mask[2] = True
    kept = Kept({"full.weight": mask})
    found = [x.clone().requires_grad_(), (weight * mask).requires_grad_(), bias.clone().requires_grad_()]
    expected = [t.detach().clone().requires_grad_() for t in found]
    y = ensembles._FewWeights.apply(*found, *kept.few["full.weight"])
    z = torch.baddbmm(expected[2][:, :, None], expected[1], expected[0])
    torch.testing.assert_close(y, z)
    gradient = torch.randn(z.shape, generator=draw, dtype=torch.float64)
    of_found, of_expected = torch.autograd.grad(y, found, gradient), torch.autograd.grad(z, expected, gradient)
    torch.testing.assert_close(of_found[0], of_expected[0])
    torch.testing.assert_close(of_found[1], of_expected[1] * mask)
    torch.testing.assert_close(of_found[2], of_expected[2])


def test_networks_that_keep_few_weights_are_listed_and_the_others_are_stretches():
    mask = torch.zeros(5, 10, 10, dtype=torch.bool)
    mask[1, 3, 4:7] = True
    mask[[0, 3, 4]] = True
    kept = Kept({"conv.weight": torch.ones(5, 1, 1, 3, 3, dtype=torch.bool), "full.weight": mask})
    ends, inputs, more = kept.few["full.weight"]
    assert list(kept.few) == ["full.weight"]
    assert inputs.tolist() == [4, 5, 6]
    assert ends.tolist() == [0] * 14 + [3] * 37
    assert more == [slice(0, 1), slice(3, 5)]
    mask[:] = True
    assert not Kept({"full.weight": mask}).few


def test_whole_tiles_hold_zeros_beyond_the_outputs():
    weight = np.arange(1, 2 * 5 * 3 + 1, dtype=np.float64).reshape(2, 5, 3, 1, 1)
    packed, bias = kernels.packed(weight, np.ones((2, 5)))
    assert packed.shape == (2, 1, 3, 1, 1, 6)
    np.testing.assert_array_equal(packed[1, 0, 2, 0, 0], [18, 21, 24, 27, 30, 0])
    np.testing.assert_array_equal(bias, [[1, 1, 1, 1, 1, 0]] * 2)
    assert kernels.packed(np.zeros((1, 16, 1, 2, 2)))[0].shape == (1, 4, 1, 2, 2, 4)  # 16 as 16, not as 18


def test_what_is_not_a_number_is_not_lost_in_a_pooling():
    x = np.zeros((1, 1, 2, 2, 16))
    x[0, 0, :, :, :4] = np.eye(4).reshape(2, 2, 4)
    x[0, 0, :, :, :4][x[0, 0, :, :, :4] == 1] = np.nan
    out, winner = np.empty((1, 1, 1, 1, 16)), np.empty((1, 1, 1, 1, 16), np.uint8)
    kernels.convolve(x, *kernels.packed(np.ones((1, 1, 1, 1, 1))), (1, 1), (0, 0, 0), (2, 2), True, out, winner)
    assert np.isnan(out[0, 0, 0, 0, :4]).all()
    assert not out[0, 0, 0, 0, 4:].any()


@pytest.mark.parametrize("images", [1, 16, 37])
def test_any_number_of_images(images):
    model, x = snipnb.lenet5(seed=1), torch.randn(images, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    parameters = {name: p.detach()[None] for name, p in model.named_parameters()}
    stack = Stack(model)
    logits = stack.logits(stack.inputs(x), parameters, {})
    assert logits.shape == (1, 10, images)
    torch.testing.assert_close(logits[0].T, model(x).detach(), atol=1e-5, rtol=1e-5)


def test_a_processor_uses_them(monkeypatch):
    calls = []
    monkeypatch.setattr(kernels, "convolve", lambda *given: calls.append(given[5]))
    stack = Stack(model := snipnb.lenet5())
    parameters = {name: p.detach()[None] for name, p in model.named_parameters()}
    stack.logits(stack.inputs(torch.zeros(3, 1, 28, 28)), parameters, {})
    assert calls == [(2, 2), (2, 2)]


def test_nothing_is_compiled_or_needed_until_a_network_is_trained():
    code = "import sys; sys.modules['numba'] = None; import snipnb, torch; m = snipnb.lenet5(); " + (
        "from snipnb._engine.ensembles import Stack; s = Stack(m); x = torch.zeros(2, 1, 28, 28); "
        "p = {n: t.detach()[None] for n, t in m.named_parameters()}; y = s.logits(s.inputs(x), p, {}); "
        "assert torch.allclose(y[0].T, m(x), atol=1e-5) and 'snipnb._engine.kernels' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("stride", [1, 2])
def test_other_strides_are_left_to_pytorch(stride, monkeypatch):
    calls, apply = [], ensembles._Compiled.apply
    monkeypatch.setattr(ensembles._Compiled, "apply", lambda *given: calls.append(1) or apply(*given))
    model, x = nn.Sequential(nn.Conv2d(1, 1, 2, stride=stride), nn.Flatten()), torch.ones(3, 1, 8, 8)
    stack, parameters = ensembles.Stack(model), {name: p.detach()[None] for name, p in model.named_parameters()}
    torch.testing.assert_close(stack.logits(stack.inputs(x), parameters, {})[0].T, model(x).detach())
    assert bool(calls) == (stride == 1)
