import copy

import pytest
import torch
import torch.utils.checkpoint
from small_networks import TINY, tiny, tiny_examples
from torch import nn

import snipnb
from snipnb.saliences import brute_force


@pytest.mark.parametrize("name", TINY)
def test_snip_is_the_derivative_of_explicit_indicators(name):
    model, (images, labels) = tiny(name), tiny_examples()
    expected = brute_force.indicator_salience(model, images, labels)
    torch.testing.assert_close(snipnb.snip(model, images, labels, batch_size=5), expected, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("name", TINY)
def test_snip_is_the_difference_of_losses(name):
    model, (images, labels) = tiny(name), tiny_examples()
    everything = {key: torch.arange(p.numel()) for key, p in model.named_parameters()}
    differences = brute_force.finite_difference_salience(model, images, labels, everything, step=1e-6)
    salience = brute_force.pick(snipnb.snip(model, images, labels), everything)
    torch.testing.assert_close(salience, differences, rtol=1e-5, atol=1e-8)


def test_snip_of_lenet5_in_both_precisions(few):
    images, labels = few
    model = snipnb.lenet5(seed=1)
    expected = brute_force.indicator_salience(model, images, labels)
    in_double = snipnb.snip(copy.deepcopy(model).double(), images, labels)
    torch.testing.assert_close(in_double, expected, rtol=1e-9, atol=1e-16)
    in_single = snipnb.snip(model, images.float(), labels)
    largest = max(float(s.abs().max()) for s in expected.values())
    for name, s in in_single.items():
        assert s.dtype == torch.float32
        assert float((s.double() - expected[name]).abs().max()) < 1e-5 * largest  # float32 gradients


def test_hand_computed_salience():
    # One weight of 2 and one image of 3: logits (6, 0), so L = -log softmax at class 1, dL/dw = p0 * 3.
    model = nn.Linear(1, 2, bias=False).double()
    model.weight.data = torch.tensor([[2.0], [0.0]], dtype=torch.float64)
    salience = snipnb.snip(model, torch.tensor([[3.0]], dtype=torch.float64), torch.tensor([1]))
    p0 = 1 / (1 + torch.exp(torch.tensor(-6.0, dtype=torch.float64)))
    torch.testing.assert_close(salience["weight"], torch.stack([2 * 3 * p0, 0 * p0])[:, None])


def test_batches_and_order_of_images_do_not_matter(few):
    images, labels = few
    model = snipnb.lenet5(seed=2).double()
    whole = snipnb.snip(model, images, labels, batch_size=60)
    shuffled = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(snipnb.snip(model, images, labels, batch_size=7), whole, rtol=1e-9, atol=1e-17)
    torch.testing.assert_close(snipnb.snip(model, images[shuffled], labels[shuffled]), whole, rtol=1e-9, atol=1e-17)


def test_scaling_the_loss_scales_the_salience(few):
    images, labels = few
    model = snipnb.lenet5(seed=2).double()
    plain = snipnb.snip(model, images, labels)
    tripled = snipnb.snip(model, images, labels, loss=lambda z, y: 3 * nn.functional.cross_entropy(z, y))
    torch.testing.assert_close(tripled, {name: 3 * s for name, s in plain.items()})


def test_published_variant_sums_magnitudes_over_batches(few):
    images, labels = few
    model = snipnb.lenet5(seed=0).double()
    batches = [snipnb.snip(model, images[i : i + 20], labels[i : i + 20]) for i in (0, 20, 40)]
    expected = {name: sum(b[name].abs() for b in batches) / 3 for name in batches[0]}
    measured = snipnb.snip(model, images, labels, batch_size=20, aggregate="batch_magnitude")
    torch.testing.assert_close(measured, expected, rtol=1e-9, atol=1e-17)
    assert any(bool((expected[n] > snipnb.snip(model, images, labels)[n].abs() + 1e-9).any()) for n in expected)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", ["batch norm, dropout", "residual"])
def test_nothing_is_changed(name, mode):
    model, (images, labels) = tiny(name), tiny_examples()
    model.train()
    next(model.children()).eval()  # a mixture of modes has to come back
    for p in model.parameters():
        p.grad = torch.full_like(p, 0.5)
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    state = torch.get_rng_state()
    snipnb.snip(model, images, labels, mode=mode)
    snipnb.magnitude_salience(model)
    snipnb.random_salience(model, seed=1)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert [m.training for m in model.modules()] == modes
    assert all(bool((p.grad == 0.5).all()) for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.requires_grad for p in model.parameters())


def test_train_mode_is_another_quantity():
    model, (images, labels) = tiny("batch norm, dropout"), tiny_examples()
    evaluation, training = (snipnb.snip(model, images, labels, mode=mode) for mode in ("eval", "train"))
    assert not torch.allclose(evaluation["0.weight"], training["0.weight"])


def test_shared_modules_and_tied_weights_count_every_use_and_survive():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.second.weight = self.first.weight  # one tensor in two modules
            self.repeated = nn.Sequential(self.first, nn.ReLU(), self.first)  # one module in three places

        def forward(self, x):
            return self.second(torch.tanh(self.repeated(x)))

    model = Tied().double()
    weight = model.first.weight
    images = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8) % 4
    nn.functional.cross_entropy(model(images), labels).backward()
    salience = snipnb.snip(model, images, labels)
    assert list(salience) == ["first.weight"]
    torch.testing.assert_close(salience["first.weight"], (weight * weight.grad).detach())
    assert model.first.weight is weight
    assert model.second.weight is weight


class HeldOutside(nn.Module):
    """Uses its weight through a list, where no one can replace it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.held = [self.layer.weight]

    def forward(self, x):
        return nn.functional.linear(x, self.held[0], self.layer.bias)


def test_a_salience_that_would_come_out_wrong_is_refused():
    images, labels = torch.randn(6, 4), torch.arange(6) % 3
    with pytest.raises(ValueError, match=r"'layer\.weight' reaches the loss in a way that cannot be followed"):
        snipnb.snip(HeldOutside(), images, labels)
    model = nn.Linear(4, 3)

    def penalised(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets) + model.weight.square().sum()

    with pytest.raises(ValueError, match="'weight' reaches the loss"):
        snipnb.snip(model, images, labels, loss=penalised)
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    with nn.utils.parametrize.cached():
        normed(images)
        with pytest.raises(ValueError, match="cannot be followed"):
            snipnb.snip(normed, images, labels)
    salience = snipnb.snip(normed, images, labels)  # without the cache it can
    loss = nn.functional.cross_entropy(normed(images), labels)
    for (name, p), g in zip(
        normed.named_parameters(), torch.autograd.grad(loss, list(normed.parameters())), strict=True
    ):
        torch.testing.assert_close(salience[name], (p * g).detach())


def test_writing_modules_leave_the_model_as_it_was():
    model = nn.Sequential(nn.Embedding(10, 4, max_norm=0.5), nn.Flatten(), nn.Linear(8, 3))
    before = copy.deepcopy(model.state_dict())
    snipnb.snip(model, torch.arange(12).view(6, 2) % 10, torch.arange(6) % 3, batch_size=2)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_recomputed_batch_norm_leaves_its_statistics():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)

        def forward(self, x):
            inner = torch.utils.checkpoint.checkpoint(lambda z: self.norm(self.first(z)), x, use_reentrant=False)
            return self.last(inner)

    model = Checkpointed()
    before = copy.deepcopy(model.state_dict())
    snipnb.snip(model, torch.randn(8, 4), torch.arange(8) % 3, mode="train")
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_a_pruned_model_can_still_be_trained(examples):
    images, labels = examples
    model = snipnb.lenet5(seed=0)
    mask = snipnb.keep_mask(snipnb.snip(model, images, labels), 0.5)
    snipnb.apply_mask(model, mask)
    model(images)
    salience = snipnb.snip(model, images, labels)
    assert bool((salience["full1.weight_orig"][~mask["full1.weight"]] == 0).all())
    model.full1.weight.square().sum().backward()  # what the hooks had set is what is set


def test_modes_come_back_when_the_forward_pass_fails():
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            raise RuntimeError("midway")

    model = Fails().train()
    model.requires_grad_(False)
    with pytest.raises(RuntimeError, match="midway"):
        snipnb.snip(model, torch.ones(2, 2), torch.zeros(2, dtype=torch.long))
    assert model.training
    assert model.layer.training
    assert not model.layer.weight.requires_grad


def test_half_precision_does_not_lose_small_saliences(examples):
    images, labels = examples
    model = snipnb.lenet5(seed=0).bfloat16()
    salience = snipnb.snip(model, images.bfloat16(), labels)
    assert {s.dtype for s in salience.values()} == {torch.float32}


def test_frozen_parameters_and_no_grad_do_not_matter(few):
    images, labels = few
    model = snipnb.lenet5(seed=0).double()
    expected = snipnb.snip(model, images, labels)
    model.requires_grad_(False)
    with torch.no_grad():
        torch.testing.assert_close(snipnb.snip(model, images, labels), expected)


def test_an_unused_parameter_has_salience_zero():
    model = nn.Sequential(nn.Linear(2, 2))
    model.unused = nn.Parameter(torch.ones(3))
    model.forward = lambda x: model[0](x)
    assert snipnb.snip(model, torch.ones(1, 2), torch.tensor([0]))["unused"].tolist() == [0, 0, 0]


def test_magnitude_salience_is_a_copy():
    model = snipnb.lenet5()
    salience = snipnb.magnitude_salience(model)
    salience["conv1.weight"].zero_()
    assert bool((model.conv1.weight != 0).all())
    assert not salience["full1.bias"].requires_grad


def test_random_salience_is_a_permutation():
    model = snipnb.lenet5()
    salience = snipnb.random_salience(model, seed=5)
    values = torch.cat([s.flatten() for s in salience.values()])
    assert values.sort().values.tolist() == list(range(1, 61_707))
    assert torch.equal(values, torch.cat([s.flatten() for s in snipnb.random_salience(model, seed=5).values()]))
    assert not torch.equal(values, torch.cat([s.flatten() for s in snipnb.random_salience(model, seed=6).values()]))
    assert snipnb.num_kept(snipnb.keep_mask(salience, 0.95)) == 3_086


def test_random_salience_has_no_ties_in_half_precision():
    salience = snipnb.random_salience(snipnb.lenet5().half())
    assert len(torch.cat([s.flatten() for s in salience.values()]).unique()) == 61_706


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.zeros(3, dtype=torch.long)}, "4 images but 3 labels"),
        ({"images": torch.zeros(0, 2), "labels": torch.zeros(0, dtype=torch.long)}, "empty"),
        ({"labels": torch.tensor([0, 1, 2, 3])}, "labels range from 0 to 3; the model's 3 outputs accept 0 to 2"),
        ({"labels": torch.tensor([0, -1, 2, 0])}, "labels range from -1 to 2"),
        ({"labels": torch.zeros(4)}, "labels must be integers"),
        ({"images": [[1.0]]}, "images must be a tensor .*; got a list"),
        ({"labels": None}, "labels must be a tensor .*; got a NoneType"),
        ({"images": torch.tensor(1.0)}, "images must be a tensor .*; got a 0-dimensional"),
        ({"images": torch.zeros(4, 2).double()}, "images are torch.float64 and the model's parameters torch.float32"),
        ({"loss": lambda z, y: 1.0}, "the loss must be .*; got a float"),
        ({"loss": lambda z, y: z}, r"the loss must be .*; got torch.float32 of shape \(4, 3\)"),
        ({"loss": lambda z, y: z.detach().sum()}, "that depends on the parameters; got torch.float32"),
        ({"batch_size": 0}, "batch_size must be an integer .*; got 0"),
        ({"batch_size": 2.5}, "batch_size must be an integer .*; got 2.5"),
        ({"aggregate": "mean"}, "aggregate must be one of 'dataset', 'batch_magnitude'; got 'mean'"),
        ({"mode": "test"}, "mode must be one of 'eval', 'train'; got 'test'"),
        ({"model": nn.Flatten()}, "has no parameters"),
        ({"model": nn.LazyLinear(2)}, "has no shape yet"),
        ({"model": nn.Linear(2, 3, dtype=torch.complex64)}, "must be floating-point"),
        ({"model": nn.Sequential(nn.Linear(2, 3), nn.Unflatten(1, (3, 1)))}, "takes logits"),
    ],
)
def test_bad_input_is_named(change, message):
    given = {"model": nn.Linear(2, 3), "images": torch.zeros(4, 2), "labels": torch.zeros(4, dtype=torch.long)} | change
    with pytest.raises(ValueError, match=message):
        snipnb.snip(**given)


def test_labels_of_any_integer_type(few):
    images, labels = few
    model = snipnb.lenet5().double()
    expected = snipnb.snip(model, images, labels)
    for dtype in (torch.uint8, torch.int16, torch.int32, torch.uint16):
        torch.testing.assert_close(snipnb.snip(model, images, labels.to(dtype)), expected, rtol=0, atol=0)


def test_inference_mode_is_refused_in_words(few):
    model = snipnb.lenet5().double()
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        snipnb.snip(model, *few)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees(few):
    images, labels = few
    model = snipnb.lenet5().double()
    expected = snipnb.snip(model, images, labels)
    on_device = snipnb.snip(copy.deepcopy(model).cuda(), images, labels)
    assert on_device["conv1.weight"].is_cuda
    torch.testing.assert_close({n: s.cpu() for n, s in on_device.items()}, expected, rtol=1e-8, atol=1e-15)
