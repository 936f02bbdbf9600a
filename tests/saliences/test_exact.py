import copy
import math
import threading

import pytest
import torch
from small_networks import SEQUENTIAL, Residual, sequential
from torch import nn

import snipnb
from snipnb._engine import cumulants, heads, propagation
from snipnb.saliences import ablation, brute_force, exact


def by_brute_force(model, images, labels):
    return brute_force.ablation_salience(model, images, labels)


def largest(salience):
    return max(float(s.abs().max()) for s in salience.values())


def furthest(one, other):
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


# --- against brute force ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("name", SEQUENTIAL)
def test_every_parameter_agrees_with_brute_force(name, spread):
    model, images, labels = sequential(name, spread=spread)
    expected = by_brute_force(model, images, labels)
    found = snipnb.exact_salience(model, images, labels)
    assert list(found) == [key for key, _ in model.named_parameters()]
    for key, p in model.named_parameters():
        assert found[key].shape == p.shape
        assert found[key].dtype == torch.float64
    assert furthest(found, expected) < 1e-10 * largest(expected)
    assert largest(expected) > 0


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_float32_agrees_with_brute_force_in_float64(name):
    model, images, labels = sequential(name)
    single, images = model.float(), images.float()
    found = snipnb.exact_salience(single, images, labels)
    expected = by_brute_force(single, images, labels)
    assert all(s.dtype == torch.float32 for s in found.values())
    assert furthest(found, expected) < 1e-5 * largest(expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("trained", [False, True])
def test_lenet5_agrees_with_brute_force(few, dtype, trained):
    images, labels = few
    model = snipnb.lenet5(seed=1)
    if trained:
        optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(30):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images.float()), labels).backward()
            optimiser.step()
    model, images = model.to(dtype), images.to(dtype)
    sample = brute_force.stratified_sample(model, 25)
    expected = brute_force.ablation_salience(model, images, labels, parameters=sample)
    found = snipnb.exact_salience(model, images, labels)
    bound = 1e-9 if dtype == torch.float64 else 1e-5
    assert furthest(brute_force.pick(found, sample), expected) < bound * largest(found)
    one, other = (torch.cat(list(s.values())).double() for s in (brute_force.pick(found, sample), expected))
    ranks = [x.abs().argsort().argsort().double() for x in (one, other)]
    assert float(torch.corrcoef(torch.stack(ranks))[0, 1]) > 0.99995


def test_a_layer_before_a_head_agrees_with_propagation(monkeypatch):
    for name in ("three ReLUs deep", "norms around ReLUs", "LeNet in small", "norm of a flattened map"):
        model, images, labels = sequential(name, spread=3.0)
        found = snipnb.exact_salience(model, images, labels)
        monkeypatch.setattr(heads.Head, "after", classmethod(lambda cls, steps, k: None))
        propagated = snipnb.exact_salience(model, images, labels)
        monkeypatch.undo()
        assert furthest(found, propagated) < 1e-12 * largest(found)
        assert furthest(found, propagated) > 0, "both ways came out bit for bit the same: one of them was not taken"


def test_a_change_that_turns_a_unit_at_its_switch():
    """Units that are exactly at zero, on which either side may switch."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -1.0], [0.5, 0.5]]))
        model[0].bias.zero_()
        model[2].weight.copy_(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
        model[2].bias.zero_()
    images = torch.tensor([[1.0, 1.0], [2.0, 0.0], [0.0, 0.0], [3.0, 1.0]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 1])
    expected = by_brute_force(model, images, labels)
    assert furthest(snipnb.exact_salience(model, images, labels), expected) < 1e-15


def test_large_loss_changes_neither_overflow_nor_cancel():
    model = nn.Sequential(nn.Linear(3, 3, bias=False)).float()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[400.0, 0, 0], [0, 300.0, 0], [0, 0, 5.0]]))
    images, labels = torch.eye(3), torch.tensor([0, 2, 1])
    found = snipnb.exact_salience(model, images, labels)["0.weight"]
    assert furthest({"0.weight": found}, by_brute_force(model, images, labels)) < 1e-4
    flat = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.Flatten())  # the same through propagation
    with torch.no_grad():
        flat[0].weight.copy_(torch.tensor([400.0, 300.0, 5.0]).view(3, 1, 1, 1))
    images, labels = torch.ones(3, 1, 1, 1), torch.tensor([0, 1, 2])
    found = snipnb.exact_salience(flat, images, labels)
    assert furthest(found, by_brute_force(flat, images, labels)) < 1e-4
    assert bool(torch.isfinite(found["0.weight"]).all())


def test_very_confident_networks_agree():
    """Logits in the thousands."""
    model, images, labels = sequential("no ReLU between", spread=30.0)
    assert float(model(images).detach().abs().max()) > 3e3
    expected = by_brute_force(model, images, labels)
    assert furthest(snipnb.exact_salience(model, images, labels), expected) < 1e-12 * largest(expected)


# --- exactness where nothing changes, and small changes ---------------------------------------------------------------


def test_saliences_that_are_zero_come_out_exactly_zero(few):
    images, labels = few
    model = snipnb.lenet5(seed=0).double()
    with torch.no_grad():
        model.conv2.bias[3] = -100.0  # a channel that is off, and stays off
        model.full1.bias[7] = -100.0
        model.full2.weight[5] = 0.0
        model.conv1.weight[2] = 0.0
    found = snipnb.exact_salience(model, images, labels)
    assert not found["conv2.weight"][3].any()
    assert not found["full1.weight"][7].any()
    assert not found["full1.weight"][:, 3 * 25 : 4 * 25].any()  # its inputs are zero
    assert not found["full2.weight"][5].any()
    assert not found["full2.weight"][:, 7].any()
    assert not found["conv1.weight"][2].any()
    assert found["conv2.bias"][3] != 0  # without the bias the channel comes on
    zero = {key: (s == 0).sum() for key, s in brute_force_sample(model, images, labels).items()}
    assert sum(zero.values()) > 0


def brute_force_sample(model, images, labels):
    sample = brute_force.stratified_sample(model, 20)
    found = brute_force.pick(snipnb.exact_salience(model, images, labels), sample)
    expected = brute_force.ablation_salience(model, images, labels, parameters=sample)
    for key in found:
        assert not found[key][expected[key] == 0].any()
    return found


def test_small_saliences_keep_their_digits():
    """A salience of 1e-12 beside a loss of 1: a difference of float32 losses would be 0 or 1e-7."""
    model, images, labels = sequential("LeNet in small")
    key, index = "3.weight", 5
    tiny = model[3].weight.data.view(-1)
    tiny[index] *= 1e-10
    model, images = model.float(), images.float()
    found = snipnb.exact_salience(model, images, labels)[key].view(-1)[index]
    slope = snipnb.snip(model.double(), images.double(), labels)[key].view(-1)[index]
    assert 0 < abs(float(slope)) < 1e-9
    assert float(found) == pytest.approx(-float(slope), rel=1e-4)


def test_it_tends_to_minus_snip_for_small_weights():
    model, images, labels = sequential("VGG in small")
    with torch.no_grad():
        model[4].weight[0, 0, 1, 1] *= 1e-7
    exactly = snipnb.exact_salience(model, images, labels)["4.weight"][0, 0, 1, 1]
    first = snipnb.snip(model, images, labels)["4.weight"][0, 0, 1, 1]
    assert float(exactly) == pytest.approx(-float(first), rel=1e-5)


# --- chunks, samples, modes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["LeNet in small", "VGG in small", "three ReLUs deep", "norm of a flattened map"])
def test_chunks_do_not_matter(name, monkeypatch):
    model, images, labels = sequential(name)
    whole = snipnb.exact_salience(model, images, labels)
    monkeypatch.setattr(exact, "IMAGES", 4)
    monkeypatch.setitem(exact.PAIRS, "cpu", 5)
    monkeypatch.setitem(exact.TOGETHER, "cpu", 3)
    monkeypatch.setitem(exact.LINEAR, "cpu", 6)
    monkeypatch.setattr(propagation, "TILE", 50)
    assert furthest(snipnb.exact_salience(model, images, labels), whole) < 1e-14 * largest(whole)


def test_the_number_of_threads_does_not_matter_and_stays(monkeypatch):
    model, images, labels = sequential("LeNet in small")
    monkeypatch.setitem(exact.TOGETHER, "cpu", 4)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(snipnb.exact_salience(model, images, labels))
            assert torch.get_num_threads() == threads
            later = []
            thread = threading.Thread(target=lambda seen=later: seen.append(torch.get_num_threads()))
            thread.start()
            thread.join()
            assert later == [threads]
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert furthest(other, found[0]) < 1e-14 * largest(found[0])


def test_an_error_in_a_worker_reaches_the_caller(monkeypatch):
    model, images, labels = sequential("LeNet in small")
    monkeypatch.setattr(exact, "loss_changes", lambda *_: (_ for _ in ()).throw(MemoryError("no more")))
    with pytest.raises(MemoryError, match="no more"):
        snipnb.exact_salience(model, images, labels)


@pytest.mark.parametrize("name", ["LeNet in small", "VGG in small", "norms around ReLUs", "norm of a flattened map"])
def test_a_sample_is_the_same_as_the_whole(name):
    model, images, labels = sequential(name)
    whole = snipnb.exact_salience(model, images, labels)
    sample = brute_force.stratified_sample(model, 3, seed=2)
    part = snipnb.exact_salience(model, images, labels, parameters=sample)
    assert list(part) == list(sample)
    for key, indices in sample.items():
        torch.testing.assert_close(part[key], whole[key].view(-1)[indices], rtol=1e-10, atol=1e-16)
    key = list(sample)[-1]
    twice = snipnb.exact_salience(model, images, labels, parameters={key: [1, 0, 1]})[key]
    torch.testing.assert_close(twice, whole[key].view(-1)[[1, 0, 1]], rtol=1e-10, atol=1e-16)


def test_a_sample_may_be_empty(few):
    model, (images, labels) = snipnb.lenet5().double(), few
    assert snipnb.exact_salience(model, images, labels, parameters={"full3.bias": []})["full3.bias"].shape == (0,)
    assert snipnb.exact_salience(model, images, labels, parameters={}) == {}
    both = {"full3.bias": torch.tensor([2]), "conv1.bias": torch.tensor([], dtype=torch.long)}
    assert [len(v) for v in snipnb.exact_salience(model, images, labels, parameters=both).values()] == [1, 0]


def test_images_in_any_order_give_the_same():
    model, images, labels = sequential("LeNet in small")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    one = snipnb.exact_salience(model, images, labels)
    other = snipnb.exact_salience(model, images[order], labels[order])
    assert furthest(one, other) < 1e-13 * largest(one)


def test_nothing_is_changed_and_the_mode_does_not_matter():
    model, images, labels = sequential("VGG in small")
    expected = snipnb.exact_salience(model.eval(), images, labels)
    model.train()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    found = snipnb.exact_salience(model, images, labels)
    assert furthest(found, expected) == 0
    assert all(module.training for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(s.requires_grad for s in found.values())


def test_nested_sequentials_keep_their_names():
    model, images, labels = sequential("LeNet in small")
    layers = list(model)
    nested = nn.Sequential(nn.Sequential(*layers[:6]), nn.Sequential(*layers[6:]))
    found = snipnb.exact_salience(nested, images, labels)
    assert list(found) == [key for key, _ in nested.named_parameters()]
    flat = snipnb.exact_salience(model, images, labels)
    for one, other in zip(found.values(), flat.values(), strict=True):
        assert torch.equal(one, other)


def test_a_cuda_device_gives_the_same(few):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    images, labels = few
    for dtype, bound in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        model = snipnb.lenet5(seed=0).to(dtype)
        expected = snipnb.exact_salience(model, images.to(dtype), labels)
        found = snipnb.exact_salience(model.cuda(), images.to(dtype), labels)
        assert all(s.is_cuda for s in found.values())
        assert furthest({k: s.cpu() for k, s in found.items()}, expected) < bound * largest(expected)


# --- what it does not do ----------------------------------------------------------------------------------------------


def refuses(model, words, shape=(1, 6, 6), **options):
    images = torch.randn(4, *shape)
    with pytest.raises(ValueError, match=words):
        snipnb.exact_salience(model, images, torch.zeros(4, dtype=torch.long), **options)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ((nn.Conv2d(2, 2, 3, groups=2), nn.Flatten()), "groups=2; groups must be 1"),
        ((nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), nn.Flatten()), "padding_mode='circular'"),
        ((nn.Conv2d(1, 2, 2, padding="same"), nn.Flatten()), "one side more"),
        ((nn.Conv2d(1, 2, 3), nn.MaxPool2d(3, ceil_mode=True), nn.Flatten()), "ceil_mode=True"),
        ((nn.Conv2d(1, 2, 3), nn.MaxPool2d(2, dilation=2), nn.Flatten()), "dilation=2"),
        ((nn.Conv2d(1, 2, 3), nn.AvgPool2d(2, divisor_override=3), nn.Flatten()), "divisor_override=3"),
        ((nn.Conv2d(1, 2, 3), nn.AvgPool2d(2, padding=1, count_include_pad=False), nn.Flatten()), "count_include_pad"),
        ((nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False), nn.Flatten()), "has no running statistics"),
        ((nn.Conv2d(1, 2, 3), nn.MaxPool2d(2, padding=2), nn.Flatten()), "at most half the window"),
        ((nn.Conv2d(1, 2, 3), nn.GELU(), nn.Flatten()), "layer '1' is a GELU; it must be one of Conv2d, Linear"),
        ((nn.Conv2d(1, 2, 3), nn.LogSoftmax(1), nn.Flatten()), "LogSoftmax; it must be one of"),
        ((nn.Conv2d(1, 2, 3), nn.Flatten(2)), "cross-entropy takes logits"),
        ((nn.Conv2d(3, 2, 3), nn.Flatten()), "which does not fit"),
        ((nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(9, 3)), "which does not fit"),
        ((nn.Linear(6, 3),), "which does not fit"),
        ((nn.Conv2d(1, 2, 7), nn.Flatten()), "which does not fit"),
        ((nn.Conv2d(1, 2, 3), nn.MaxPool2d(5), nn.Flatten()), "which does not fit"),
        ((nn.Conv2d(1, 2, 3),), "logits"),
    ],
)
def test_layers_and_options_that_are_not_covered_are_named(layers, words, monkeypatch):
    monkeypatch.setattr(ablation, "MOST", 0)
    refuses(nn.Sequential(*layers), words, (getattr(layers[0], "groups", 1), 6, 6))


def test_other_modules_and_sharing_are_named(monkeypatch):
    monkeypatch.setattr(ablation, "MOST", 0)
    refuses(Residual(), "is a Residual; it must be an nn.Sequential")
    shared = nn.Linear(4, 4)
    refuses(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), shared, nn.ReLU(), shared), "is also 2.weight", (4,))
    tied = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    tied[2].weight = tied[0].weight
    refuses(tied, "is also 0.weight", (4,))
    hooked = nn.Sequential(nn.Linear(4, 3))
    hooked[0].register_forward_hook(lambda module, inputs, output: output * 2)
    refuses(hooked, "layer '0' has hooks", (4,))
    nested = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU()), nn.Linear(4, 3))
    nested[1].register_forward_hook(lambda module, inputs, output: output * 2)
    refuses(nested, "layer '1' has hooks", (4,))
    whole = nn.Sequential(nn.Linear(4, 3))
    whole.register_forward_pre_hook(lambda module, inputs: None)
    refuses(whole, "the model has hooks", (4,))
    masked = snipnb.lenet5()
    snipnb.apply_mask(masked, snipnb.keep_mask(snipnb.magnitude_salience(masked), 0.5))
    refuses(masked, r"make masks permanent first", (1, 28, 28))


def test_bad_examples_are_refused():
    model = nn.Sequential(nn.Linear(4, 3))
    refuses(model.half(), "must be all float32 or all float64", (4,))
    refuses(model.double(), "images are torch.float32 and the model's parameters torch.float64", (4,))
    model = model.float()
    refuses(model, r"must have shape .*; got \(2, 2\)", (2, 2))
    refuses(model, "unknown name 'weight'; the model has 0.weight, 0.bias", (4,), parameters={"weight": [0]})
    refuses(model, "range from 0 to 12; they must be from 0 to 11", (4,), parameters={"0.weight": [0, 12]})
    refuses(model, "range from -1 to -1", (4,), parameters={"0.weight": [-1]})
    refuses(model, "must be integers .*; got 'abc'", (4,), parameters={"0.weight": "abc"})
    lost = nn.Sequential(nn.Linear(4, 3))
    lost[0].weight.data[0, 0] = float("nan")
    refuses(lost, "logits of some images are not finite", (4,))
    refuses(model, "torch.float32 of shape", (4,), parameters={"0.weight": torch.tensor([0.5])})
    refuses(model, "must be a dictionary .*; got a list", (4,), parameters=["0.weight"])
    with pytest.raises(ValueError, match="3 outputs accept 0 to 2"):
        snipnb.exact_salience(model, torch.randn(2, 4), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="the data set is empty"):
        snipnb.exact_salience(model, torch.randn(0, 4), torch.tensor([], dtype=torch.long))


# --- the parts --------------------------------------------------------------------------------------------------------


def test_derivatives_of_two_classes_are_cumulants_of_a_bernoulli_variable():
    q = 0.7
    p = torch.tensor([[1 - q, q]], dtype=torch.float64)
    slopes = torch.tensor([[[-2.0], [0.0]]], dtype=torch.float64)  # relative to the top class
    found = torch.stack(cumulants.derivatives_of(p, torch.tensor([1]), slopes, 4)).flatten()
    bernoulli = [q - 1, q * (1 - q), q * (1 - q) * (1 - 2 * q), q * (1 - q) * (1 - 6 * q * (1 - q))]
    torch.testing.assert_close(found, torch.tensor([2**k * c for k, c in enumerate(bernoulli, 1)], dtype=torch.float64))


def test_the_series_is_as_long_as_its_piece_needs():
    orders = [cumulants.terms_for(length, torch.float32) for length in (1e-9, 1e-6, 1e-2, 0.1, 0.5)]
    assert orders[0] == 1
    assert orders == sorted(orders)
    assert cumulants.terms_for(0.5, torch.float64) > orders[-1]


@pytest.mark.parametrize(
    ("dtype", "margin"), [(torch.float64, m) for m in (5, 60, 120)] + [(torch.float32, m) for m in (5, 20, 40)]
)
def test_confident_networks_keep_their_digits(dtype, margin):
    model = nn.Sequential(nn.Linear(6, 2, bias=False)).to(dtype)
    model[0].weight.data.copy_(torch.stack([torch.full((6,), margin / 6, dtype=dtype), torch.zeros(6, dtype=dtype)]))
    found = snipnb.exact_salience(model, torch.ones(1, 6, dtype=dtype), torch.tensor([0]))["0.weight"][0, 0]
    exactly = math.log1p(math.exp(margin / 6 - margin)) - math.log1p(math.exp(-margin))
    assert float(found) == pytest.approx(exactly, rel=1e-12 if dtype == torch.float64 else 1e-5, abs=0)


@pytest.mark.parametrize("scale", [1e3, 1e6, 1e18])
def test_steep_slopes_and_tied_classes_end(scale):
    model = nn.Sequential(nn.Linear(2, 3, bias=False)).double()
    model[0].weight.data.copy_(torch.tensor([[scale, 0], [0, 1], [0, 1.0]]))
    images, labels = torch.tensor([[1, 1.0], [-1, 1.0]], dtype=torch.float64), torch.tensor([1, 1])
    expected = by_brute_force(model, images, labels)
    assert furthest(snipnb.exact_salience(model, images, labels), expected) < 1e-12 * largest(expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scale", [1e-4, 1e3, 1e4, 1e8])
def test_scales_that_undo_each_other_change_nothing(scale, dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    for p in model[0].parameters():
        p.data /= scale
    model[2].weight.data *= scale
    model, images, labels = model.to(dtype), torch.randn(9, 5, dtype=dtype), torch.randint(3, (9,))
    expected = by_brute_force(model, images, labels)
    bound = 1e-9 if dtype == torch.float64 else 1e-5
    assert furthest(snipnb.exact_salience(model, images, labels), expected) < bound * largest(expected)


def test_loss_changes_is_careful_at_both_ends():
    log_p = torch.tensor([[0.0], [-30.0], [-40.0]], dtype=torch.float32)
    dz = torch.tensor([[[-1e-6]], [[2e-6]], [[0.0]]], dtype=torch.float32)
    found = cumulants.loss_changes(dz.clone(), log_p, torch.tensor([0]))
    exactly = math.exp(-30) * math.expm1(3e-6) + math.exp(-40) * math.expm1(1e-6)
    assert float(found) == pytest.approx(exactly, rel=1e-5)
    far = torch.tensor([[[-500.0]], [[0.0]], [[0.0]]], dtype=torch.float32)
    assert float(cumulants.loss_changes(far, log_p, torch.tensor([0]))) == pytest.approx(470.0, rel=1e-5)
