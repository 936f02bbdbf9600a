"""Criteria from the literature against explicit derivatives, in float64 on tiny networks, and against what they are in special cases."""

import dataclasses
import inspect
import re
import types
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from small_networks import CLASSES, WIDTH, tiny
from torch import nn

import snipnb
from snipnb._files import project_root
from snipnb.pruning import criteria, single_shot
from snipnb.pruning.criteria import Start, mask_for, salience_for
from snipnb.pruning.masks import keep_number

NETWORKS = ("two layers", "convolution", "stride, no bias")
ADDED = (
    "grasp",
    "prospr",
    "fisher",
    "optimal_brain_damage",
    "fisher_taylor",
    "fisher_taylor_as_coded",
    "iterative_snip",
    "force",
    "iterative_exact",
    "synflow",
    "ntk_sap",
)


@pytest.fixture
def table():
    """The page's table of criteria."""
    if (root := project_root()) is None:
        pytest.skip("needs the page of a checkout")
    page = (root / "docs" / "library.md").read_text(encoding="utf-8")
    return page[page.index("## Criteria that come") : page.index("## Criteria and densities")]


def start_of(name, number=40):
    draw = torch.Generator().manual_seed(1)
    images = torch.randn(number, 1, WIDTH, WIDTH, generator=draw, dtype=torch.float64)
    return Start(tiny(name), images, torch.randint(CLASSES, (number,), generator=draw), seed=0)


def flat(salience):
    return torch.cat([s.flatten() for s in salience.values()])


def loss_at(start, vector, some=slice(None), temperature=1.0):
    """The mean loss with all parameters taken from one vector."""
    sizes = [p.numel() for p in start.model.parameters()]
    parts = zip(start.model.named_parameters(), vector.split(sizes), strict=True)
    outputs = torch.func.functional_call(
        start.model.eval(), {n: v.view(p.shape) for (n, p), v in parts}, start.images[some]
    )
    return F.cross_entropy(outputs / temperature, start.labels[some])


def gradient_at(start, vector, some=slice(None), temperature=1.0):
    return torch.func.grad(lambda v: loss_at(start, v, some, temperature))(vector.detach())


def hessian_at(start, vector, some=slice(None), temperature=1.0):
    return torch.autograd.functional.hessian(lambda v: loss_at(start, v, some, temperature), vector.detach())


def weights_of(start):
    return flat(dict(start.model.named_parameters())).detach()


@pytest.mark.parametrize("name", NETWORKS)
def test_grasp_is_the_hessian_times_the_gradient(name):
    start = start_of(name)
    w = weights_of(start)
    g, h = gradient_at(start, w, temperature=5.0), hessian_at(start, w, temperature=5.0)
    removed_first = -w * (h @ g)
    found = flat(single_shot.grasp(start, temperature=5.0))
    torch.testing.assert_close(found, removed_first.max() - removed_first, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("name", NETWORKS)
def test_prospr_without_steps_is_snip(name):
    start = start_of(name)
    snip = snipnb.snip(start.model, start.images, start.labels)
    torch.testing.assert_close(flat(single_shot.prospr(start, steps=0)), flat(snip))


@pytest.mark.parametrize("name", NETWORKS)
def test_prospr_follows_the_chain_of_two_steps(name):
    start, rate, momentum, batch = start_of(name), 0.3, 0.7, 16
    w0 = weights_of(start)
    g0, h0 = gradient_at(start, w0, slice(0, 16)), hessian_at(start, w0, slice(0, 16))
    w1 = w0 - rate * g0
    g1, h1 = gradient_at(start, w1, slice(16, 32)), hessian_at(start, w1, slice(16, 32))
    w2 = w1 - rate * (momentum * g0 + g1)
    last = gradient_at(start, w2)
    eye = torch.eye(len(w0), dtype=w0.dtype)
    first = eye - rate * h0
    jacobian = first - rate * (momentum * h0 + h1 @ first)
    options = {"steps": 2, "learning_rate": rate, "momentum": momentum, "batch": batch}
    found = flat(single_shot.prospr(start, **options))
    torch.testing.assert_close(found, w0 * (jacobian.T @ last), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_fisher_is_the_mean_of_squared_gradients(name):
    start = start_of(name, 70)
    w = weights_of(start)
    each = [gradient_at(start, w, slice(k, k + 1)) for k in range(70)]
    squares = torch.stack(each).square().mean(0)
    torch.testing.assert_close(flat(single_shot.fisher(start)), w.square() * squares / 2)
    g = gradient_at(start, w)
    torch.testing.assert_close(flat(single_shot.fisher_taylor(start)), -w * g + w.square() * squares / 2)


def test_the_sign_of_fisher_taylor_is_the_step_that_it_scores(monkeypatch):
    """With the true curvature in place of the Fisher matrix, and small weights: removal, and, as coded, doubling."""
    start = start_of("linear")
    with torch.no_grad():
        for p in start.model.parameters():
            p.mul_(1e-3)
    w = weights_of(start)
    monkeypatch.setattr(
        single_shot, "squared_gradients", lambda s: snipnb.diagonal_hessian(s.model, s.images, s.labels)
    )
    before = loss_at(start, w)
    for sign, factor in ((-1, 0.0), (1, 2.0)):
        changes = []
        for j in range(len(w)):
            moved = w.clone()
            moved[j] *= factor
            changes.append(loss_at(start, moved) - before)
        found = flat(single_shot.fisher_taylor(start, sign=sign))
        largest = found.abs().max()
        torch.testing.assert_close(found / largest, torch.stack(changes) / largest, rtol=0, atol=1e-6)
        other = flat(single_shot.fisher_taylor(start, sign=-sign))
        assert (other / largest - torch.stack(changes) / largest).abs().max() > 0.5


def test_optimal_brain_damage_is_half_the_curvature():
    start = start_of("two layers")
    w = weights_of(start)
    h = hessian_at(start, w)
    torch.testing.assert_close(flat(single_shot.optimal_brain_damage(start)), w.square() * h.diagonal() / 2)


@pytest.mark.parametrize(
    ("score", "one_shot"),
    [(single_shot.sensitivity_of_pruned, snipnb.snip), (single_shot.exact_of_pruned, snipnb.exact_salience)],
)
@pytest.mark.parametrize("may_return", [False, True])
def test_one_round_is_the_criterion_itself(score, one_shot, may_return):
    start = start_of("convolution")
    found = single_shot.in_rounds(score, 1, may_return=may_return)(start, {}, 0.7)
    expected = snipnb.keep_mask(one_shot(start.model, start.images, start.labels), 0.7, ties="stable")
    torch.testing.assert_close(found, expected)


def test_rounds_keep_a_shrinking_share_and_removed_parameters_return_only_where_they_may():
    start, seen = start_of("convolution"), []
    total = weights_of(start).numel()

    def score(start, kept, number):
        """Every second round prefers the other half of the model."""
        seen.append((number, kept))
        places = torch.arange(1.0, 1.0 + total) if number % 2 else torch.arange(0.0 + total, 0.0, -1.0)
        parts = zip(start.model.named_parameters(), places.split([m.numel() for m in kept.values()]), strict=True)
        return {name: part.view(p.shape) for (name, p), part in parts}

    for may_return in (False, True):
        seen.clear()
        last = single_shot.in_rounds(score, 4, may_return=may_return)(start, {}, 0.84)
        masks = [kept for _, kept in seen] + [last]
        wanted = snipnb.num_kept(snipnb.keep_mask(start.model.state_dict(), 0.84))
        assert [number for number, _ in seen] == [0, 1, 2, 3]
        assert [snipnb.num_kept(m) for m in masks] == [round(total * (wanted / total) ** (j / 4)) for j in range(5)]
        returned = [int((flat(b) & ~flat(a)).sum()) for a, b in pairwise(masks)]
        assert (max(returned) > 0) == may_return


def test_force_scores_what_is_removed_by_the_gradient_of_the_pruned_network():
    start = start_of("two layers")
    kept = snipnb.keep_mask(snipnb.random_salience(start.model), 0.5)
    w, m = weights_of(start), flat(kept)
    g = gradient_at(start, w * m)
    torch.testing.assert_close(flat(single_shot.sensitivity_of_pruned(start, kept, 0)), w * g)
    assert (w * g)[~m].abs().max() > 0


def test_iterated_exact_pruning_scores_the_pruned_network():
    start = start_of("convolution")
    kept = snipnb.keep_mask(snipnb.random_salience(start.model), 0.5)
    pruned = tiny("convolution")
    with torch.no_grad():
        for name, p in pruned.named_parameters():
            p.copy_(start.model.get_parameter(name) * kept[name])
    before = {name: p.clone() for name, p in start.model.named_parameters()}
    expected = snipnb.exact_salience(pruned, start.images, start.labels)
    torch.testing.assert_close(flat(single_shot.exact_of_pruned(start, kept, 0)), flat(expected))
    torch.testing.assert_close(dict(start.model.named_parameters()), before)


def without_biases():
    torch.manual_seed(3)
    layers = nn.Conv2d(1, 3, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(48, 7, bias=False), nn.ReLU()
    return nn.Sequential(*layers, nn.Linear(7, CLASSES, bias=False))


def test_the_flow_through_every_layer_is_the_same():
    model = without_biases()
    kept = snipnb.keep_mask(snipnb.random_salience(model), 0.6)
    found = single_shot.synaptic_flow(Start(model, torch.zeros(1, 1, 6, 6), torch.zeros(1), seed=0), kept, 0)
    sums = torch.stack([s.sum() for s in found.values()])
    torch.testing.assert_close(sums, sums[:1].expand(3), rtol=1e-12, atol=0)
    ones = torch.ones(1, 1, 6, 6, dtype=torch.float64)
    flow = model.double()
    for name, p in flow.named_parameters():
        p.data = (p.data * kept[name]).abs()
    torch.testing.assert_close(sums[0], flow(ones).sum().detach())


def test_synflow_flows_to_the_logits():
    plain = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    normed = nn.Sequential(*plain, nn.LogSoftmax(1))
    kept = {name: torch.ones_like(p, dtype=torch.bool) for name, p in plain.named_parameters()}
    a, b = (
        single_shot.synaptic_flow(Start(m, torch.zeros(1, 4), torch.zeros(1), seed=0), kept, 0) for m in (plain, normed)
    )
    assert all(torch.equal(a[name], b[name]) for name in kept)
    assert normed[-1].dim == 1  # the model itself is left as it was


def test_synflow_does_not_cut_a_layer():
    start = Start(snipnb.lenet5(), torch.zeros(1, 1, 28, 28), torch.zeros(1), seed=0)
    assert not snipnb.pruning.masks.collapsed_layers(mask_for("synflow", start, {}, 0.999))


def test_the_tangent_of_a_linear_network_is_known():
    """f = c w x: the expected distance over D is the sum of (c x)^2, so its slope at c = 1 is twice the number of images."""
    model = nn.Linear(5, 2, bias=False).double()
    images = torch.zeros(1, 5, dtype=torch.float64)
    start = Start(model, images, torch.zeros(1), seed=0, draw=lambda seed: nn.Linear(5, 2, bias=False).double())
    everything = {"weight": torch.ones(2, 5, dtype=torch.bool)}
    found = single_shot.neural_tangent(start, everything, 0, draws=400, noise=50)["weight"]
    torch.testing.assert_close(found, torch.full((2, 5), 100.0, dtype=torch.float64), rtol=0.3, atol=0)
    assert found.mean().item() == pytest.approx(100, rel=0.1)
    half = {"weight": torch.tensor([[True, False] * 2 + [True], [False] * 5])}
    found = single_shot.neural_tangent(start, half, 0, draws=400, noise=50)["weight"]
    torch.testing.assert_close(found, 100 * half["weight"].double(), rtol=0, atol=30)  # products of two D average to 0


def test_the_distance_does_not_depend_on_a_small_epsilon():
    def smooth(seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(WIDTH * WIDTH, 5), nn.Tanh(), nn.Linear(5, CLASSES)).double()

    start = Start(smooth(0), start_of("linear").images, torch.zeros(1), seed=0, draw=smooth)
    everything = {n: torch.ones_like(p, dtype=torch.bool) for n, p in start.model.named_parameters()}
    one, other = (flat(single_shot.neural_tangent(start, everything, 2, epsilon=e)) for e in (1e-4, 1e-5))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-3 * float(one.abs().max()))
    third = flat(single_shot.neural_tangent(start, everything, 3, epsilon=1e-4))
    assert (one - third).abs().max() > 0.01 * one.abs().max()  # other weights in another round


@pytest.mark.parametrize("name", ADDED)
def test_the_registry_prunes_lenet5_by_each(name):
    images, labels = snipnb.load_mnist("test", sample=True)
    start = Start(snipnb.lenet5(), images[:64], labels[:64], 0, draw=lambda seed: snipnb.lenet5(seed=seed))
    before = {n: p.clone() for n, p in start.model.named_parameters()}
    mask = mask_for(name, start, salience_for(name, start), 0.9)
    assert snipnb.num_kept(mask) == 6171
    assert name in criteria.CRITERIA
    torch.testing.assert_close(dict(start.model.named_parameters()), before)
    assert all(p.grad is None for p in start.model.parameters())


@pytest.mark.parametrize(
    ("name", "come_back"),
    [("iterative_snip", False), ("force", True), ("iterative_exact", False), ("synflow", False), ("ntk_sap", False)],
)
def test_the_registry_prunes_in_as_many_rounds_as_the_page_says(name, come_back, table, monkeypatch):
    row = next(line for line in table.splitlines() if line.startswith("|") and f"`{name}`" in line)
    among = []

    def keep(salience, number, **options):
        among.append(options["among"])
        return keep_number(salience, number, **options)

    monkeypatch.setattr(single_shot, "keep_number", keep)
    start = dataclasses.replace(start_of("two layers"), draw=lambda seed: tiny("two layers"))
    mask_for(name, start, {}, 0.5)
    assert len(among) == int(re.search(r"in (\d+) rounds", row)[1])
    assert {allowed is None for allowed in among} == {come_back}


@pytest.mark.parametrize("name", ["synflow", "ntk_sap"])
def test_words_cannot_be_replaced_by_ones_or_noise(name):
    def words(seed):
        return nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, CLASSES))

    start = Start(words(0), torch.randint(9, (5, 3)), torch.zeros(5, dtype=torch.int64), seed=0, draw=words)
    with pytest.raises(ValueError, match=r"ones or by noise, so they must be floating-point; got torch.int64"):
        mask_for(name, start, {}, 0.5)


# --- the identities notice a definition that is a little wrong ---------------------------------------------------------


def of(test, *arguments):
    return lambda monkeypatch: test(*arguments)


PERTURBED = [  # what stands in the code, what stands there instead, and the test that has to fail
    ("-(w * product[name])", "w * product[name]", of(test_grasp_is_the_hessian_times_the_gradient, "two layers")),
    ("outputs: outputs / temperature", "outputs: outputs", of(test_grasp_is_the_hessian_times_the_gradient, "two layers")),
    ("values = {name: c[name] * w", "values = {name: c[name] + w", of(test_prospr_without_steps_is_snip, "two layers")),
    ("momentum * velocity[name] + g", "velocity[name] + g", of(test_prospr_follows_the_chain_of_two_steps, "two layers")),
    ("v - learning_rate", "v + learning_rate", of(test_prospr_follows_the_chain_of_two_steps, "two layers")),
    ("step * batch, (step + 1) * batch", "0, batch", of(test_prospr_follows_the_chain_of_two_steps, "two layers")),
    ("g.square().sum(0)", "g.sum(0).square()", of(test_fisher_is_the_mean_of_squared_gradients, "convolution")),
    ("{name: w.square() * squares[name] / 2", "{name: w * squares[name] / 2", of(test_fisher_is_the_mean_of_squared_gradients, "convolution")),
    ("sign: int = -1", "sign: int = 1", of(test_fisher_is_the_mean_of_squared_gradients, "convolution")),
    ("sign * w * slopes", "-sign * w * slopes", test_the_sign_of_fisher_taylor_is_the_step_that_it_scores),
    ("w.square() * second[name] / 2", "w.square() * second[name]", of(test_optimal_brain_damage_is_half_the_curvature)),
    ("(j + 1) / rounds", "j / rounds", of(test_rounds_keep_a_shrinking_share_and_removed_parameters_return_only_where_they_may)),
    ("None if may_return else kept", "kept", of(test_rounds_keep_a_shrinking_share_and_removed_parameters_return_only_where_they_may)),
    ("None if may_return else kept", "None", of(test_rounds_keep_a_shrinking_share_and_removed_parameters_return_only_where_they_may)),
    ("{name: w * kept[name] for", "{name: w for", of(test_force_scores_what_is_removed_by_the_gradient_of_the_pruned_network)),
    ("{name: w * found[name] for", "{name: w * kept[name] * found[name] for", of(test_force_scores_what_is_removed_by_the_gradient_of_the_pruned_network)),
    ("p.data *= kept[name]", "pass", of(test_iterated_exact_pruning_scores_the_pruned_network)),
    ("(p.detach() * kept[name]).abs()", "(p.detach() * kept[name])", of(test_the_flow_through_every_layer_is_the_same)),
    ("(p.detach() * kept[name]).abs()", "p.detach().abs()", of(test_the_flow_through_every_layer_is_the_same)),
    ("ones = torch.ones_like", "ones = 2 * torch.ones_like", of(test_the_flow_through_every_layer_is_the_same)),
    ("sum() / epsilon**2", "sum() / epsilon", of(test_the_tangent_of_a_linear_network_is_known)),
    ("n: c[n] * v for", "n: v for", of(test_the_tangent_of_a_linear_network_is_known)),
    ("total[name] += g / draws", "total[name] += g", of(test_the_tangent_of_a_linear_network_is_known)),
    ("(start.seed, 3, round_number)", "(start.seed, 3)", of(test_the_distance_does_not_depend_on_a_small_epsilon)),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "test"), PERTURBED, ids=[new for _, new, _ in PERTURBED])
def test_every_identity_fails_where_the_definition_is_perturbed(old, new, test, monkeypatch):
    source = inspect.getsource(single_shot)
    assert source.count(old) == 1
    perturbed = types.ModuleType("perturbed")
    exec(compile(source.replace(old, new), "perturbed", "exec"), perturbed.__dict__)
    monkeypatch.setitem(globals(), "single_shot", perturbed)
    with pytest.raises((AssertionError, RuntimeError)):
        test(monkeypatch)


def test_a_number_is_kept_among_what_is_allowed():
    salience = {"a": torch.tensor([0.0, -3.0, 0.0]), "b": torch.tensor([2.0, 0.0])}
    allowed = {"a": torch.tensor([True, False, True]), "b": torch.tensor([False, True])}
    assert [m.tolist() for m in keep_number(salience, 2, among=allowed).values()] == [[True, False, True], [False] * 2]
    assert snipnb.num_kept(keep_number(salience, 5)) == 5
    with pytest.raises(ValueError, match="number must be an integer from 0 to 3; got 4"):
        keep_number(salience, 4, among=allowed)


def test_the_page_names_every_criterion(table):
    named = set(re.findall(r"`([a-z_0-9]+)`", table))
    controls = {f"{name}_{kind}" for name in criteria.WITH_CONTROLS for kind in ("shuffled", "redrawn")}
    assert {re.sub(r"_[2-5]$", "_1", name) for name in snipnb.CRITERIA} - controls == named
