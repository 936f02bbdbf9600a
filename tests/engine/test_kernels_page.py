"""The NumPy of docs/kernels.md computes what the kernels do."""

import re

import numpy as np
import pytest

from snipnb._files import project_root

kernels = pytest.importorskip("snipnb._engine.kernels")
ROOT = project_root()
pytestmark = pytest.mark.skipif(ROOT is None, reason="needs the page of a checkout")


@pytest.fixture(scope="module")
def page():
    """The functions of the page by name."""
    known = {"np": np}
    for block in re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8"), re.DOTALL
    ):
        exec(block, known)
    return known


@pytest.fixture
def draw():
    generator = np.random.default_rng(0)
    return lambda *shape: generator.standard_normal(shape)


NONE = np.empty((0,) * 5)


@pytest.mark.parametrize("share", [1.0, 0.2])
def test_convolutions(page, draw, share):
    x, weight, bias = draw(3, 8, 10, 16), draw(5, 3, 3, 3), draw(5)
    weight *= np.random.default_rng(1).random(weight.shape) < share
    out, winner = np.empty((1, 5, 3, 4, 16)), np.empty((1, 5, 3, 4, 16), np.uint8)
    packed = kernels.packed(weight[None], bias[None])
    kernels.convolve(x[None], *packed, (1, 1), (0, 0, 0), (2, 2), True, out, winner)
    np.testing.assert_allclose(out[0], page["convolve"](x, weight, bias, 2), rtol=1e-12, atol=1e-12)

    back, before = draw(*out.shape), np.zeros((5, 3, 2, 4, 2, 16))
    for place in range(4):
        before[:, :, place // 2, :, place % 2] = np.where(winner[0] == place, back[0], 0)
    of_weight, of_bias = np.empty((1, *weight.shape)), np.empty((1, 5))
    kept = np.empty((0,) * 5, bool)
    kernels.gradients(x[None], back, winner, (1, 1), (2, 2), of_weight, of_bias, NONE[..., None], NONE, kept)
    expected = page["gradients"](x, before.reshape(5, 6, 8, 16), weight.shape)
    np.testing.assert_allclose(of_weight[0], expected[0], rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(of_bias[0], expected[1], rtol=1e-10, atol=1e-10)


def test_linear_layers(page, draw):
    x, weight, bias, gradient = draw(7, 16), draw(4, 7), draw(4), draw(4, 16)
    kept = [[0, 3], [], [1, 2, 6], [5]]
    ends = np.cumsum([0, *map(len, kept)])
    inputs = np.array([i for some in kept for i in some])
    out = np.empty((1, 4, 16))
    kernels.linear(x[None], weight[None], bias[None], ends, inputs, out)
    np.testing.assert_allclose(out[0], page["linear"](x, weight, bias, ends, inputs), rtol=1e-12)
    of_x, of_weight, of_bias = np.zeros((1, 7, 16)), np.zeros((1, 4, 7)), np.empty((1, 4))
    kernels.linear_gradients(x[None], weight[None], gradient[None], ends, inputs, of_x, of_weight, of_bias)
    for found, expected in zip(
        (of_x, of_weight, of_bias), page["linear_gradients"](x, weight, gradient, ends, inputs), strict=True
    ):
        np.testing.assert_allclose(found[0], expected, rtol=1e-10, atol=1e-12)
