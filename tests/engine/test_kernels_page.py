"""The NumPy of docs/kernels.md computes what the kernels do."""

import itertools
import re

import numpy as np
import pytest

from snipnb._files import project_root

kernels = pytest.importorskip("snipnb._engine.kernels")
changes = pytest.importorskip("snipnb._engine.changes")
slopes = pytest.importorskip("snipnb._engine.slopes")
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
    kept = np.ones(of_weight.shape, bool)
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


@pytest.mark.parametrize("hidden_units", [(), (5,), (20, 7), (9, 30, 4)])
@pytest.mark.parametrize("scale", [1e-3, 0.3, 30.0])
def test_loss_changes(page, draw, hidden_units, scale):
    images, channels, window, positions, columns, classes = 3, 2, 4, 3, changes.BLOCK + 32, 4
    units = [*hidden_units, classes]
    first, hidden = draw(channels, units[0], positions), [draw(images, u) for u in hidden_units]
    weights = [draw(after, before) for before, after in itertools.pairwise(units)]
    x, values, before = draw(images, 50), scale * draw(channels, columns), draw(images, channels, window, positions)
    places = np.random.default_rng(2).integers(0, 50, (1, window, positions, columns))
    top = np.maximum(before.max(2), 0)
    log_p = np.log(np.random.default_rng(3).dirichlet(np.ones(classes), images))
    labels = np.array([0, 3, 1])

    def filled(matrix, rows):
        whole = np.zeros((rows or matrix.shape[0], -(-matrix.shape[1] // 16) * 16))
        whole[: len(matrix), : matrix.shape[1]] = matrix
        return whole

    sizes = np.array([-(-u // 16) * 16 for u in units])
    flat = [filled(w.T, size).ravel() for w, size in zip(weights, sizes, strict=False)]
    given = (
        filled(first.transpose(0, 2, 1).reshape(-1, units[0]), channels * positions + 4),
        np.concatenate([*flat, []]),
        sizes,
        np.concatenate([np.empty((images, 0)), *(filled(a, 0) for a in hidden)], 1),
    )
    sums = np.zeros((channels, columns))
    own = (x, places, values, before - top[:, :, None], -top)
    changes.loss_changes(*own, *given, np.exp(log_p), log_p, labels, *changes.series(np.dtype(float)), sums)

    expected = np.zeros((channels, columns))
    for i in range(images):
        for o in range(channels):
            moved = before[i, o][..., None] + values[o] * x[i][places[0]]
            change = np.maximum(moved.max(0), 0) - top[i, o][:, None]
            expected[o] += page["loss_changes"](change, first[o], [a[i] for a in hidden], weights, log_p[i], labels[i])
    np.testing.assert_allclose(sums, expected, rtol=1e-9, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("columns", [3, 16, 19])
@pytest.mark.parametrize("share", [1.0, 0.2, 0.0])
def test_slopes(page, draw, columns, share):
    images, outputs, inputs, kernel = 2, 3, 2, 3
    x, weight, b = (
        draw(images, inputs, 6, 7),
        draw(outputs, inputs, kernel, kernel),
        draw(images, columns, outputs, 4, 5),
    )
    b *= np.random.default_rng(1).random((images, 1, outputs, 4, 5)) < share
    found = np.zeros((2, outputs, inputs * kernel**2 + 1, -(-columns // 16) * 16))
    back = np.full((images, columns, *x.shape[1:]), np.nan)
    slopes.of_convolution(x, b, weight, (1, 1), found, back)
    along = np.stack([page["slopes"](x[i], b[i], kernel) for i in range(images)])
    along = along.reshape(images, columns, outputs, -1).transpose(2, 3, 1, 0)
    along = np.concatenate([along, b.sum((3, 4)).transpose(2, 1, 0)[:, None]], 1)
    for one, expected in zip(found, (along.sum(3), (along**2).sum(3)), strict=True):
        np.testing.assert_allclose(one[..., :columns], expected, rtol=1e-10, atol=1e-10)
        assert not one[..., columns:].any()
    expected = np.zeros_like(back)
    for i, j in np.ndindex(kernel, kernel):
        expected[:, :, :, i : i + 4, j : j + 5] += np.einsum("nsohw,oc->nschw", b, weight[:, :, i, j])
    np.testing.assert_allclose(back, expected, rtol=1e-10, atol=1e-10)
