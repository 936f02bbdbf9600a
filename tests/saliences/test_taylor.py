import copy
import itertools
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from small_networks import SEQUENTIAL, sequential, tiny, tiny_examples
from torch import nn

import snipnb
from snipnb._engine import curvature
from snipnb.saliences import brute_force, taylor

SOME = ["linear, no bias", "norms around ReLUs", "LeNet in small", "overlapping, uneven pool", "VGG in small"]


def largest(salience):
    return max(float(s.abs().max()) for s in salience.values())


def furthest(one, other):
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def central_differences(model, images, labels, step=1e-4):
    """First and second derivative along every parameter of a float64 model."""
    model = copy.deepcopy(model).eval()
    first, second = {}, {}
    with torch.no_grad():
        before = F.cross_entropy(model(images), labels)
        for name, p in model.named_parameters():
            losses = torch.empty(2, p.numel(), dtype=torch.float64)
            for j in range(p.numel()):
                at = float(p.view(-1)[j])
                for side in (0, 1):
                    p.view(-1)[j] = at + (2 * side - 1) * step
                    losses[side, j] = F.cross_entropy(model(images), labels)
                p.view(-1)[j] = at
            first[name] = ((losses[1] - losses[0]) / (2 * step)).view(p.shape)
            second[name] = ((losses[1] + losses[0] - 2 * before) / step**2).view(p.shape)
    return first, second


def nested(model, images, labels, name, index, order):
    """The derivative of one order along one parameter, by as many nested forward derivatives."""
    model = copy.deepcopy(model).eval()
    parameters = {key: p.detach() for key, p in model.named_parameters()}
    direction = torch.zeros_like(parameters[name])
    direction.view(-1)[index] = 1

    def loss(t):
        moved = {**parameters, name: parameters[name] + t * direction}
        return F.cross_entropy(torch.func.functional_call(model, moved, (images,)), labels)

    def derivative(f):
        return lambda t: torch.func.jvp(f, (t,), (torch.ones_like(t),))[1]

    for _ in range(order):
        loss = derivative(loss)
    return float(loss(torch.zeros((), dtype=torch.float64)))


def slopes_of(model, images):
    """J of every image, class and parameter, one backward pass each: name -> [images, classes, *shape]."""
    model = copy.deepcopy(model).eval()
    rows = [
        [torch.autograd.grad(z, list(model.parameters()), materialize_grads=True, retain_graph=True) for z in logits]
        for logits in (model(x[None])[0] for x in images)
    ]
    names = [name for name, _ in model.named_parameters()]
    return {name: torch.stack([torch.stack([z[k] for z in row]) for row in rows]) for k, name in enumerate(names)}


def region_by_definition(model, images, labels):
    """Mean of log sum_c p_c exp(-w J_c) + w J_y."""
    log_p = copy.deepcopy(model).eval()(images).detach().log_softmax(1)
    found = {}
    for (name, w), slopes in zip(model.named_parameters(), slopes_of(model, images).values(), strict=True):
        dz = -w.detach() * slopes
        p = log_p.view(*log_p.shape, *(1,) * w.dim())
        own = dz[torch.arange(len(labels)), labels]
        found[name] = (torch.logsumexp(p + dz, 1) - own).mean(0)
    return found


# --- the diagonal -----------------------------------------------------------------------------------------------------


def backpack_diagonal(model, images, labels):
    backpack = pytest.importorskip("backpack")
    from backpack.extensions import DiagHessian

    model = copy.deepcopy(model).eval()
    if isinstance(model[-1], nn.LogSoftmax):
        model = model[:-1]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Full backward hook is firing")  # BackPACK's hooks; images need no gradient
        model, loss = backpack.extend(model), backpack.extend(nn.CrossEntropyLoss())
        with backpack.backpack(DiagHessian()):
            loss(model(images), labels).backward()
    return {name: p.diag_h for name, p in model.named_parameters()}


# What BackPACK covers in float64: no batch norm in evaluation mode, no average pooling.
WITHOUT_NORMS = [
    "linear alone", "linear, no bias", "three ReLUs deep", "no ReLU between", "ends in a ReLU", "starts with a ReLU",
    "LeNet in small", "pool before ReLU", "overlapping, uneven pool", "padded pool", "pool without ReLU, twice", "pool first",
    "no linear layer", "logits from positions",
]  # fmt: skip


@pytest.mark.parametrize("name", WITHOUT_NORMS)
def test_the_diagonal_agrees_with_backpack(name):
    model, images, labels = sequential(name, spread=1.5)
    expected = backpack_diagonal(model, images, labels)
    found = snipnb.diagonal_hessian(model, images, labels)
    assert list(found) == list(expected)
    assert furthest(found, expected) < 1e-10 * largest(expected)
    assert largest(expected) > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_lenet5_agrees_with_backpack(few, dtype):
    images, labels = few
    model = snipnb.lenet5(seed=1).double()
    expected = backpack_diagonal(model, images, labels)
    found = snipnb.diagonal_hessian(model.to(dtype), images.to(dtype), labels)
    for name, h in found.items():
        assert h.dtype == dtype
        assert h.shape == expected[name].shape
        torch.testing.assert_close(
            h.double(),
            expected[name],
            rtol=1e-10 if dtype == torch.float64 else 1e-5,
            atol=(1e-13 if dtype == torch.float64 else 1e-6) * float(expected[name].max()),
        )


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.script:DeprecationWarning"
)  # PyTorch's own, at its first forward derivative
@pytest.mark.parametrize("name", ["linear, no bias", "LeNet in small", "pool before ReLU"])
def test_the_diagonal_agrees_with_curvlinops(name):
    HessianLinearOperator = pytest.importorskip("curvlinops").HessianLinearOperator

    model, images, labels = sequential(name)
    operator = HessianLinearOperator(model, nn.CrossEntropyLoss(), list(model.parameters()), [(images, labels)])
    size = sum(p.numel() for p in model.parameters())
    dense = operator @ torch.eye(size, dtype=torch.float64)
    found = torch.cat([h.flatten() for h in snipnb.diagonal_hessian(model, images, labels).values()])
    torch.testing.assert_close(found, dense.diag().detach(), rtol=0, atol=1e-12 * float(found.max()))
    rows = torch.cat([h.flatten() for h in taylor.row_sum_hessian(model, images, labels).values()])
    torch.testing.assert_close(rows, dense.sum(1).detach(), rtol=0, atol=1e-12 * float(rows.abs().max()))
    assert float((rows - found).abs().max()) > 0.1 * float(found.max()), "row sums and diagonal are different things"


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_first_and_second_derivative_agree_with_central_differences(name):
    model, images, labels = sequential(name)
    one, two = taylor.derivatives(model, images, labels, order=2)
    first, second = central_differences(model, images, labels)
    assert [p.shape for p in model.parameters()] == [h.shape for h in two.values()]
    assert furthest(one, first) < 1e-6 * largest(first)
    assert furthest(two, second) < 1e-5 * largest(second)
    assert furthest(snipnb.diagonal_hessian(model, images, labels), two) < 1e-14 * largest(two)
    assert all(bool((h >= 0).all()) for h in two.values())


def cumulants_of(p, values, order):
    """Cumulants 1 to ``order`` of values [..., classes] under probabilities p, by the recursion over raw moments."""
    moments, power, found = [], p, []
    for k in range(1, order + 1):
        power = power * values
        moments.append(power.sum(-1))
        lower = (math.comb(k - 1, i - 1) * found[i - 1] * moments[k - i - 1] for i in range(1, k))
        found.append(moments[k - 1] - sum(lower))
    return torch.stack(found)


@pytest.mark.parametrize("name", SEQUENTIAL)
@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_all_ways_to_the_same_derivatives_agree(name, spread):
    model, images, labels = sequential(name, spread=spread)
    two, four = (taylor.derivatives(model, images, labels, order=k) for k in (2, 4))
    for one, other in zip(two, four, strict=False):
        assert furthest(one, other) < 1e-12 * largest(other)
    slopes, p = slopes_of(model, images), model(images).detach().softmax(1)
    for key, found in ((key, torch.stack([d[key] for d in four])) for key in four[0]):
        by_class = slopes[key].movedim(1, -1)  # [images, *shape, classes]
        weights = p.view(len(p), *(1,) * (by_class.dim() - 2), -1)
        kappa = cumulants_of(weights.expand_as(by_class), by_class, 4)
        kappa[0] -= slopes[key][torch.arange(len(labels)), labels]
        for k, expected in enumerate(kappa.mean(1)):
            scale = max(float(d.abs().max()) for d in four[k].values())
            assert float((found[k] - expected).abs().max()) < 1e-8 * scale  # raw moments cancel


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # likewise
@pytest.mark.parametrize("name", ["linear, no bias", "three ReLUs deep", "norm after ReLU", "pool first"])
def test_orders_three_and_four_agree_with_nested_derivatives(name):
    model, images, labels = sequential(name, spread=1.5)
    found = taylor.derivatives(model, images, labels, order=4)
    sample = brute_force.stratified_sample(model, 2)
    for order in (3, 4):
        for key, indices in sample.items():
            for index in indices.tolist():
                expected = nested(model, images, labels, key, index, order)
                assert float(found[order - 1][key].view(-1)[index]) == pytest.approx(
                    expected, rel=1e-10, abs=1e-12 * largest(found[order - 1])
                )


def test_the_factor_of_the_covariance_holds_at_both_ends():
    """Relative to the standard deviations, however small they are."""
    rule = curvature.Variance(gradient=False)
    for logits in ([0.1, -0.3, 2.0, 0.0], [60.0, 0.0, -5.0, 1.0], [0.0, 1.0, 0.0, 90.0], [0.0, 0.0, -70.0, -80.0]):
        z = torch.tensor([logits], dtype=torch.float64)
        p = z.softmax(1)[0]
        covariance = -p[:, None] * p
        variance = torch.stack([p[i] * p[[c for c in range(4) if c != i]].sum() for i in range(4)])
        covariance = covariance - torch.diag(covariance.diag()) + torch.diag(variance)
        scale = (variance[:, None] * variance).sqrt()
        for dtype, bound in ((torch.float64, 1e-14), (torch.float32, 1e-5)):
            s = rule.start(z.to(dtype), torch.tensor([0]))[1][0].double()
            assert s.shape == (3, 4)
            assert float(((s.T @ s - covariance) / scale).abs().max()) < bound


# --- orders and the linear region -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SEQUENTIAL)
@pytest.mark.parametrize("spread", [0.3, 1.0, 4.0])
def test_the_linear_region_agrees_with_its_definition(name, spread):
    model, images, labels = sequential(name, spread=spread)
    found = snipnb.taylor_salience(model, images, labels, order="linear-region")
    expected = region_by_definition(model, images, labels)
    assert furthest(found, expected) < 1e-12 * largest(expected)


@pytest.mark.parametrize("longest", [0.0, 1e-3, 0.1, 1.0])
def test_series_and_exponentials_agree(longest, monkeypatch):
    model, images, labels = sequential("three ReLUs deep", spread=2.0)
    monkeypatch.setattr(curvature, "LONGEST", longest)
    found = snipnb.taylor_salience(model, images, labels, order="linear-region")
    expected = region_by_definition(model, images, labels)
    assert furthest(found, expected) < 1e-13 * largest(expected)


def test_the_series_has_all_its_digits_up_to_where_it_ends():
    """Two classes nearly even, whose series has the radius pi; the parameter is as large as a series takes."""
    w = curvature.LONGEST
    model = nn.Sequential(nn.Linear(2, 2, bias=False)).double()
    model[0].weight.data.copy_(torch.tensor([[w, -w], [0.0, 0.0]]))
    images, labels = torch.ones(1, 2, dtype=torch.float64), torch.tensor([1])
    found = snipnb.taylor_salience(model, images, labels, order="linear-region")["0.weight"]
    assert float(found[0, 0]) == pytest.approx(math.log1p(math.expm1(-w) / 2), rel=1e-14, abs=0)
    assert float(found[0, 1]) == pytest.approx(math.log1p(math.expm1(w) / 2), rel=1e-14, abs=0)


def test_it_is_the_exact_salience_where_nothing_switches():
    model, images, labels = sequential("LeNet in small")
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.01)
        for layer in (model[0], model[3], model[7], model[9]):
            layer.bias += 1.0  # every unit stays on
        model[2], model[5] = nn.AvgPool2d(2), nn.AvgPool2d(2)
    found = snipnb.taylor_salience(model, images, labels, order="linear-region")
    exactly = snipnb.exact_salience(model, images, labels)
    steady = [name for name in found if name.endswith("weight")]  # biases of 1 set to zero may switch a unit
    assert furthest({k: found[k] for k in steady}, {k: exactly[k] for k in steady}) < 1e-12 * largest(exactly)


def test_the_linear_network_is_all_one_region():
    model, images, labels = sequential("linear alone", spread=3.0)
    found = snipnb.taylor_salience(model, images, labels, order="linear-region")
    assert furthest(found, snipnb.exact_salience(model, images, labels)) < 1e-12 * largest(found)


def test_orders_tend_to_the_linear_region():
    model, images, labels = sequential("VGG in small", spread=0.7)
    limit = snipnb.taylor_salience(model, images, labels, order="linear-region")
    left = [furthest(snipnb.taylor_salience(model, images, labels, order=k), limit) for k in (1, 2, 3, 5, 8, 12)]
    assert all(later < earlier for earlier, later in itertools.pairwise(left))
    assert left[-1] < 1e-7 * left[0]


@pytest.mark.parametrize("name", SOME)
def test_order_one_is_minus_snip(name):
    model, images, labels = sequential(name)
    first = {key: -s for key, s in snipnb.snip(model, images, labels).items()}
    assert furthest(snipnb.taylor_salience(model, images, labels, order=1), first) == 0
    closed = snipnb.taylor_salience(model, images, labels, order=1, method="cumulants")
    assert furthest(closed, first) < 1e-14 * largest(first)


def test_order_two_is_the_corrected_formula_and_the_printed_one_is_not():
    model, images, labels = sequential("LeNet in small")
    first, second = taylor.derivatives(model, images, labels, order=2)
    corrected = snipnb.taylor_salience(model, images, labels, order=2)
    printed = taylor.printed_second_order(model, images, labels)
    for name, w in model.named_parameters():
        w = w.detach()
        torch.testing.assert_close(corrected[name], -(w * first[name] - w**2 * second[name] / 2))
        torch.testing.assert_close(printed[name], first[name] - second[name] * w / 2)
        torch.testing.assert_close(w * printed[name], -corrected[name])


def test_very_confident_networks_neither_overflow_nor_cancel():
    model = nn.Sequential(nn.Linear(3, 3, bias=False)).float()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[400.0, 0, 0], [0, 300.0, 0], [0, 0, 5.0]]))
    images, labels = torch.eye(3), torch.tensor([0, 2, 1])
    found = snipnb.taylor_salience(model, images, labels, order="linear-region")
    assert furthest(found, brute_force.ablation_salience(model, images, labels)) < 1e-4
    for order in (2, 6):
        assert all(
            bool(torch.isfinite(d["0.weight"]).all()) for d in taylor.derivatives(model, images, labels, order=order)
        )


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("margin", [5, 20, 40, 60])
def test_float32_keeps_its_digits_for_confident_images(margin, label):
    """One image with p = 1 - exp(-margin): its variance is some exp(-margin), its first derivative too if it is right."""
    model = nn.Sequential(nn.Linear(1, 2, bias=False)).double()
    model[0].weight.data.copy_(torch.tensor([[float(margin)], [1e-3]], dtype=torch.float64))
    images, labels = torch.ones(1, 1, dtype=torch.float64), torch.tensor([label])
    q = 1 / (1 + math.exp(margin - 1e-3))
    p = 1 - q
    exactly = [q if label == 1 else -q, q * p, -q * p * (p - q), q * p * (1 - 6 * q * p)]
    exactly[0] = p if label == 1 else -q
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        found = taylor.derivatives(model.to(dtype), images.to(dtype), labels, order=4)
        assert [float(d["0.weight"][0]) for d in found] == pytest.approx(exactly, rel=bound, abs=0)
        variance = snipnb.diagonal_hessian(model, images.to(dtype), labels)["0.weight"]
        assert float(variance[0]) == pytest.approx(q * p, rel=bound, abs=0)
        region = snipnb.taylor_salience(model, images.to(dtype), labels, order="linear-region")["0.weight"][1]
        change = math.log1p(q * math.expm1(-1e-3)) + (1e-3 if label == 1 else 0)
        assert float(region) == pytest.approx(change, rel=10 * bound, abs=0)


@pytest.mark.parametrize("what", ["diagonal", 2, 3, 6, "linear-region"])
def test_float32_is_accurate_relative_to_the_size_of_each_result(few, what):
    images, labels = few
    model = snipnb.lenet5(seed=0)

    def compute():
        if what == "diagonal":
            return snipnb.diagonal_hessian(model, images.to(model.conv1.weight.dtype), labels)
        return snipnb.taylor_salience(model, images.to(model.conv1.weight.dtype), labels, order=what)

    single = compute()
    model.double()
    double = compute()
    for name, expected in double.items():
        error = (single[name].double() - expected).abs()
        assert float(error.max()) < 3e-6 * float(expected.abs().max())
        assert float((error / expected.abs().clamp_min(1e-30)).median()) < 2e-6


# --- blocks, modes, devices -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOME)
def test_blocks_do_not_matter(name, monkeypatch):
    model, images, labels = sequential(name, spread=2.0)

    def everything():
        return [
            snipnb.diagonal_hessian(model, images, labels),
            *taylor.derivatives(model, images, labels, order=3),
            snipnb.taylor_salience(model, images, labels, order="linear-region"),
        ]

    whole = everything()
    few_at_once = snipnb.diagonal_hessian(model, images, labels, batch_size=2)
    assert furthest(few_at_once, whole[0]) < 1e-14 * largest(whole[0])
    for limit in (1, 100, 700):
        monkeypatch.setitem(curvature.TEMPORARY, "cpu", limit)
        for one, other in zip(everything(), whole, strict=True):
            assert furthest(one, other) < 1e-13 * largest(other)


def test_threads_do_not_matter(monkeypatch):
    model, images, labels = sequential("LeNet in small")
    monkeypatch.setitem(curvature.TEMPORARY, "cpu", 1000)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(snipnb.diagonal_hessian(model, images, labels))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert furthest(*found) == 0


@pytest.mark.parametrize("call", [
    snipnb.diagonal_hessian,
    lambda *args: snipnb.taylor_salience(*args, order=1),
    lambda *args: snipnb.taylor_salience(*args, order=3),
    lambda *args: snipnb.taylor_salience(*args, order="linear-region"),
    taylor.row_sum_hessian,
    lambda *args: snipnb.diagonal_hessian(*args, method="autodiff"),
])  # fmt: skip
def test_nothing_is_changed_and_the_mode_does_not_matter(call):
    model, images, labels = sequential("norms around ReLUs")
    expected = call(model.eval(), images, labels)
    model.train()
    model[0].weight.requires_grad_(False)
    before, given = copy.deepcopy(model.state_dict()), images.clone()
    state = torch.get_rng_state()
    found = call(model, images, labels)
    assert furthest(found, expected) == 0
    assert all(module.training for module in model.modules())
    assert [p.requires_grad for p in model.parameters()][:2] == [False, True]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images, given)
    assert not any(s.requires_grad for s in found.values())


def test_a_cuda_device_gives_the_same(few):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    images, labels = few
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        model = snipnb.lenet5(seed=0).to(dtype)
        for order in (2, 3, "linear-region"):
            expected = snipnb.taylor_salience(model.cpu(), images.to(dtype), labels, order=order)
            found = snipnb.taylor_salience(model.cuda(), images.to(dtype), labels, order=order)
            assert all(s.is_cuda for s in found.values())
            assert furthest({k: s.cpu() for k, s in found.items()}, expected) < bound * largest(expected)


# --- other models -----------------------------------------------------------------------------------------------------


def smooth():
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(5)
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.Tanh(), nn.Linear(3, 3)).double()


def dense_diagonal(model, images, labels):
    """The whole Hessian of a tiny model by autograd, of which the diagonal."""
    model = copy.deepcopy(model).eval()
    names, values = zip(*((name, p.detach()) for name, p in model.named_parameters()), strict=True)
    flat = torch.cat([v.flatten() for v in values])

    def loss(flat):
        parts = [part.view_as(v) for part, v in zip(flat.split([v.numel() for v in values]), values, strict=True)]
        return F.cross_entropy(
            torch.func.functional_call(model, dict(zip(names, parts, strict=True)), (images,)), labels
        )

    diagonal = torch.autograd.functional.hessian(loss, flat).diag()
    parts = diagonal.split([v.numel() for v in values])
    return {name: part.view_as(v) for name, part, v in zip(names, parts, values, strict=True)}


@pytest.mark.parametrize("model", [smooth(), tiny("two layers"), tiny("convolution")])
def test_any_module_is_differentiated(model):
    images, labels = tiny_examples()
    expected = dense_diagonal(model, images, labels)
    found = snipnb.diagonal_hessian(model, images, labels, method="autodiff")
    assert furthest(found, expected) < 1e-12 * largest(expected)
    if isinstance(model[2], nn.Tanh):
        assert furthest(snipnb.diagonal_hessian(model, images, labels, batch_size=5), expected) < 1e-12 * largest(
            expected
        )
        assert any(bool((h < 0).any()) for h in found.values()), "not a variance"


def test_shared_parameters_are_differentiated_as_one():
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(1)
        shared = nn.Linear(4, 4)
        model = nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(4, 3)).double()
        images, labels = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    expected = dense_diagonal(model, images, labels)
    assert furthest(snipnb.diagonal_hessian(model, images, labels), expected) < 1e-12 * largest(expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_higher_orders_of_any_module():
    model, (images, labels) = smooth(), tiny_examples(5)
    found = taylor.derivatives(model, images, labels, order=3)
    for index in (0, 4, 8):
        expected = nested(model, images, labels, "3.weight", index, 3)
        assert float(found[2]["3.weight"].view(-1)[index]) == pytest.approx(expected, rel=1e-10)
    corrected = snipnb.taylor_salience(model, images, labels, order=2)
    first, second = (d["1.bias"] for d in found[:2])
    w = model[1].bias.detach()
    torch.testing.assert_close(corrected["1.bias"], -w * first + w**2 * second / 2)


# --- what it does not do ----------------------------------------------------------------------------------------------


def refuses(words, model, *args, call=snipnb.diagonal_hessian, shape=(4,), **options):
    images = torch.randn(5, *shape)
    with pytest.raises(ValueError, match=words):
        call(model, images, torch.zeros(5, dtype=torch.long), *args, **options)


def test_what_is_not_covered_is_named():
    linear = nn.Sequential(nn.Linear(4, 3))
    series = snipnb.taylor_salience
    refuses("method must be one of 'auto', 'cumulants', 'autodiff'; got 'exact'", linear, method="exact")
    refuses("order must be an integer of at least 1 .*; got 0", linear, call=series, order=0)
    refuses("order must be an integer .*; got True", linear, call=series, order=True)
    refuses("order must be an integer .*; got 1.5", linear, call=series, order=1.5)
    refuses("an integer of at least 1 or 'linear-region'; got 'region'", linear, call=series, order="region")
    refuses("has only a closed form", linear, call=series, order="linear-region", method="autodiff")
    refuses("layer '1' is a Tanh", nn.Sequential(nn.Linear(4, 3), nn.Tanh()), method="cumulants")
    refuses("layer '1' is a Tanh", nn.Sequential(nn.Linear(4, 3), nn.Tanh()), call=series, order="linear-region")
    refuses("batch_size must be an integer .*; got 0", linear, batch_size=0)
    refuses("must be all float32 or all float64", copy.deepcopy(linear).half())
    refuses("images are torch.float32 and the model's parameters torch.float64", copy.deepcopy(linear).double())
    refuses("which does not fit", linear, shape=(5,))
    refuses("3 outputs accept 0 to 2", linear, call=lambda m, x, y: snipnb.diagonal_hessian(m, x, y + 3))
    lost = copy.deepcopy(linear)
    lost[0].weight.data[0, 0] = float("nan")
    refuses("logits of some images are not finite", lost)


def test_a_model_too_large_to_be_differentiated_says_so(monkeypatch):
    monkeypatch.setattr(taylor, "SMALL", 100)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    refuses(r"is a Tanh.*51 parameters are differentiated one by one over 5 images.*method='autodiff'", model)
    model = model.double()
    images, labels = torch.randn(5, 4, dtype=torch.float64), torch.zeros(5, dtype=torch.long)
    expected = dense_diagonal(model, images, labels)
    found = snipnb.diagonal_hessian(model, images, labels, method="autodiff")
    assert furthest(found, expected) < 1e-12 * largest(expected)
    first = snipnb.taylor_salience(model, images, labels, order=1)  # one gradient, whatever the size
    assert furthest(first, {name: -s for name, s in snipnb.snip(model, images, labels).items()}) == 0


def test_what_cannot_be_followed_is_refused():
    class Rounded(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 3)

        def forward(self, x):
            return self.inner(x) if self.inner.weight.detach().sum().item() > 0 else 2 * self.inner(x)

    refuses("cannot be differentiated 2 times by torch.func", Rounded())
    outside = nn.Linear(4, 3)

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.held = outside, [outside.weight]

        def forward(self, x):
            return x @ self.held[0].T

    refuses("reaches the loss in a way that cannot be followed", Around())
    refuses("reaches the loss in a way that cannot be followed", Around(), call=taylor.row_sum_hessian)
