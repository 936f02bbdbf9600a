"""Random networks, masks, settings and files against slow oracles and against the promise of a clear error.

The draws are the same every time; ``SNIPNB_FUZZ=20 python -m pytest tests/test_fuzz.py`` tries twenty times as many, and others.
"""

import copy
import dataclasses
import json
import math
import os
from fractions import Fraction

import pytest
import torch
import yaml
from hypothesis import HealthCheck, assume, example, given, note, settings
from hypothesis import strategies as st
from torch import nn

import snipnb
from snipnb._files import project_root
from snipnb.pruning import densities
from snipnb.publish import profiles
from snipnb.saliences import brute_force, taylor
from snipnb.training import plain, store
from snipnb.training.recipe import SCHEDULES, learning_rate
from snipnb.training.runs import groups_of, run_key

MORE = int(os.environ.get("SNIPNB_FUZZ", "1"))
LARGEST = 90  # parameters: brute force takes a pass for each


def fuzz(number):
    """So many examples; the same ones every time, unless more are asked for."""
    return settings(
        max_examples=number * MORE,
        derandomize=MORE == 1,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def outcome(make):
    """What is made and no message, or nothing and what the error says."""
    try:
        return make(), ""
    except ValueError as error:
        return None, str(error)


# --- networks ---------------------------------------------------------------------------------------------------------


@st.composite
def kernels(draw, size):
    """Kernel, stride, padding and dilation of a window that fits."""
    kernel = tuple(draw(st.integers(1, min(3, n))) for n in size)
    dilation = tuple(draw(st.integers(1, 2)) if k > 1 else 1 for k in kernel)
    padding = tuple(draw(st.integers(0, k)) for k in kernel)
    stride = tuple(draw(st.integers(1, 3)) for _ in kernel)
    out = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, d, p, s in zip(size, kernel, dilation, padding, stride, strict=True)
    ]
    assume(min(out) > 0)
    return kernel, stride, padding, dilation, tuple(out)


def norm(kind, features, seed, *, affine):
    torch.manual_seed(seed)
    layer = kind(features, affine=affine)
    layer.running_mean.uniform_(-0.5, 0.5)
    layer.running_var.uniform_(0.3, 2.0)
    if affine:
        nn.init.uniform_(layer.weight, -1.5, 1.5)
        nn.init.uniform_(layer.bias, -0.5, 0.5)
    return layer


@st.composite
def networks(draw, *, norms=True):
    """A sequential network of covered layers in float64 and evaluation mode, with images and labels."""
    seed, layers = draw(st.integers(0, 2**16)), []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        convolutions = draw(st.integers(0, 2))
        channels, size = draw(st.integers(1, 2)), (draw(st.integers(3, 7)), draw(st.integers(3, 7)))
        shape = (channels, *size)
        for _ in range(convolutions):
            kernel, stride, padding, dilation, size = draw(kernels(size))
            after, bias = draw(st.integers(1, 3)), draw(st.booleans())
            layers.append(nn.Conv2d(channels, after, kernel, stride, padding, dilation, bias=bias))
            channels = after
            if norms and draw(st.integers(0, 3)) == 0:
                layers.append(norm(nn.BatchNorm2d, channels, seed, affine=draw(st.booleans())))
            extras = draw(st.permutations(["relu", "pool", "nothing"]))[: draw(st.integers(0, 2))]
            for extra in extras:
                if extra == "relu":
                    layers.append(nn.ReLU(inplace=draw(st.booleans())))
                elif extra == "pool":
                    kernel, stride, padding, _, _ = draw(kernels(size))
                    assume(all(2 * p <= k for p, k in zip(padding, kernel, strict=True)))
                    size = tuple(
                        (n + 2 * p - k) // s + 1 for n, k, p, s in zip(size, kernel, padding, stride, strict=True)
                    )
                    assume(min(size) > 0)
                    if draw(st.booleans()):
                        layers.append(nn.MaxPool2d(kernel, stride, padding))
                    else:
                        inside = draw(st.booleans()) or any(
                            padding
                        )  # without, the exact salience refuses it, and says so
                        layers.append(nn.AvgPool2d(kernel, stride, padding, count_include_pad=inside))
        layers += [nn.Dropout(0.3)] * draw(st.integers(0, 1)) + [nn.Flatten()]
        features = channels * math.prod(size)
        for _ in range(draw(st.integers(0 if convolutions else 1, 2))):
            after, bias = draw(st.integers(1, 4)), draw(st.booleans())
            layers.append(nn.Linear(features, after, bias=bias))
            features = after
            if norms and draw(st.integers(0, 4)) == 0:
                layers.append(norm(nn.BatchNorm1d, features, seed, affine=True))
            if draw(st.booleans()):
                layers.append(nn.ReLU())
        layers.append(nn.Linear(features, draw(st.integers(2, 4)), bias=draw(st.booleans())))
        layers += [nn.LogSoftmax(dim=1)] * draw(st.integers(0, 1))
        model = nn.Sequential(*layers).double().eval()
        assume(sum(p.numel() for p in model.parameters()) <= LARGEST)
        images = torch.randn(draw(st.integers(1, 7)), *shape, dtype=torch.float64)
        classes = model(images[:1]).shape[1]
        labels = torch.randint(classes, (len(images),))
    note(f"{model}\nimages {tuple(images.shape)}")
    return model, images, labels


def worst(found, expected, *, least=1e-12):
    """Largest difference, relative to the largest magnitude of all, or to the least one that counts."""
    assert found.keys() == expected.keys()
    largest = max([float(e.abs().max()) for e in expected.values()] + [least])
    return max(float((found[n] - e).abs().max()) / largest for n, e in expected.items())


@fuzz(60)
@given(networks())
def test_the_exact_salience_is_that_of_brute_force(network):
    model, images, labels = network
    found = snipnb.exact_salience(model, images, labels)
    resolved = 2e-16  # by a difference of two losses in float64: where all changes are smaller, brute force finds zeros
    assert worst(found, brute_force.ablation_salience(model, images, labels), least=resolved / 1e-9) < 1e-9


@fuzz(25)
@given(networks(), st.data())
def test_some_parameters_are_those_of_all(network, data):
    model, images, labels = network
    everything = snipnb.exact_salience(model, images, labels)
    name = data.draw(st.sampled_from(sorted(everything)))
    indices = data.draw(st.lists(st.integers(0, everything[name].numel() - 1), min_size=1, max_size=5))
    some = snipnb.exact_salience(model, images, labels, parameters={name: torch.tensor(indices)})
    assert worst(some, {name: everything[name].flatten()[indices]}) < 1e-12


@fuzz(40)
@given(networks(), st.integers(1, 4))
def test_snip_is_weight_times_gradient_at_any_batch_size(network, batch_size):
    model, images, labels = network
    before = copy.deepcopy(model.state_dict())
    found = snipnb.snip(model, images, labels, batch_size=batch_size)
    gradients = torch.autograd.grad(nn.functional.cross_entropy(model(images), labels), list(model.parameters()))
    expected = {n: p.detach() * g for (n, p), g in zip(model.named_parameters(), gradients, strict=True)}
    assert worst(found, expected) < 1e-10
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert worst(snipnb.snip_together([model, copy.deepcopy(model)], images, labels)[1], expected) < 1e-10


@fuzz(25)
@given(networks(), st.integers(1, 3))
def test_derivatives_are_those_of_nested_differentiation(network, order):
    model, images, labels = network
    closed = taylor.derivatives(model, images, labels, order=order)
    nested = taylor.derivatives(model, images, labels, order=order, method="autodiff")
    for found, expected in zip(closed, nested, strict=True):
        assert worst(found, expected) < 1e-8


@fuzz(25)
@given(networks(norms=False), st.data())
def test_training_together_is_training_alone(network, data):
    model, _, labels = network
    for layer in model:
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    shape, classes = network[1].shape[1:], model(network[1]).shape[1]
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    images = torch.randn(11, *shape, generator=draw, dtype=torch.float64)
    labels = torch.randint(classes, (11,), generator=draw)
    split = snipnb.Split("mine", images, labels, images[:3], labels[:3], images[3:], labels[3:])
    models = [copy.deepcopy(model) for _ in range(3)]
    recipes = [
        snipnb.Recipe(
            epochs=2,
            batch_size=4,
            optimiser="sgd",
            learning_rate=data.draw(st.sampled_from([0.001, 0.02])),
            momentum=data.draw(st.sampled_from([0.0, 0.9])),
            weight_decay=data.draw(st.sampled_from([0.0, 0.1])),
            schedule=data.draw(st.sampled_from(SCHEDULES)),
        )
        for _ in models
    ]
    masks = [
        {n: torch.rand(p.shape, generator=draw) < 0.6 for n, p in model.named_parameters()}
        if data.draw(st.booleans())
        else None
        for _ in models
    ]
    alone = [copy.deepcopy(m) for m in models]
    histories = snipnb.train_together(models, split, masks=masks, recipe=recipes)
    for one, other, mask, recipe, history in zip(models, alone, masks, recipes, histories, strict=True):
        expected = plain.plain_training(other, split, mask=mask, recipe=recipe)
        assert worst(one.state_dict(), other.state_dict()) < 1e-8
        assert history["train_loss"].to_numpy() == pytest.approx(expected["train_loss"].to_numpy(), rel=1e-8)


# --- what is not in the package ---------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(9, 9)

    def forward(self, x):
        return x + torch.relu(self.inner(x))


OTHERS = {
    "residual block": lambda: nn.Sequential(nn.Flatten(), Block(), nn.Linear(9, 3)),
    "normalised": lambda: nn.Sequential(nn.Flatten(), nn.LayerNorm(9), nn.Linear(9, 3)),
    "smooth": lambda: nn.Sequential(nn.Flatten(), nn.Linear(9, 4), nn.GELU(), nn.Linear(4, 3)),
    "depthwise": lambda: nn.Sequential(nn.Conv2d(1, 4, 2), nn.Conv2d(4, 4, 2, groups=4), nn.Flatten()),
    "adaptive": lambda: nn.Sequential(nn.Conv2d(1, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_networks_of_other_kinds_get_a_right_answer_or_a_clear_error(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = OTHERS[name]().double()
        images = torch.randn(6, 1, 3, 3, dtype=torch.float64)
    labels = torch.arange(6) % model(images).shape[1]
    gradients = torch.autograd.grad(nn.functional.cross_entropy(model(images), labels), list(model.parameters()))
    expected = {n: p.detach() * g for (n, p), g in zip(model.named_parameters(), gradients, strict=True)}
    assert worst(snipnb.snip(model, images, labels), expected) < 1e-12  # any module
    mask = snipnb.keep_mask(snipnb.snip(model, images, labels), 0.5, ties="stable")
    found, ablated = snipnb.exact_salience(model, images, labels), brute_force.ablation_salience(model, images, labels)
    assert worst(found, ablated) < 1e-9
    with pytest.raises(ValueError, match=r"(?s)layer .*; \w+ must be|it must be an nn.Sequential|not piecewise linear"):
        snipnb.taylor_salience(model, images, labels, order="linear-region")
    second = snipnb.taylor_salience(model, images, labels, order=2)  # by nested differentiation
    nested = taylor.derivatives(model, images, labels, order=2, method="autodiff")
    by_hand = {n: -p.detach() * nested[0][n] + p.detach() ** 2 * nested[1][n] / 2 for n, p in model.named_parameters()}
    assert worst(second, by_hand) < 1e-10
    snipnb.apply_mask(model, mask)
    assert bool(torch.isfinite(model(images)).all())


# --- saliences and masks ----------------------------------------------------------------------------------------------

numbers = st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False)
values = numbers | st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0**-126])
shapes = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)


@st.composite
def saliences(draw):
    found = {}
    for k in range(draw(st.integers(1, 4))):
        shape = draw(shapes)
        numbers = draw(st.lists(values, min_size=math.prod(shape), max_size=math.prod(shape)))
        found[f"layer{k}.{draw(st.sampled_from(['weight', 'bias']))}"] = torch.tensor(numbers).view(shape)
    return found


sparsities = st.floats(0, 1, exclude_max=True) | st.sampled_from([0.0, 0.29, 0.5, 0.9, 0.95, 0.999])


@pytest.mark.filterwarnings("ignore::snipnb.LayerCollapseWarning")
@fuzz(200)
@given(saliences(), sparsities, sparsities)
def test_masks_remove_the_smallest_and_as_many_as_they_should(salience, one, other):
    count = sum(s.numel() for s in salience.values())
    low, high = sorted([one, other])
    kept = {ties: snipnb.keep_mask(salience, low, ties=ties) for ties in ("stable", "remove")}
    removed = snipnb.num_removed(count, low)
    assert removed == math.floor(Fraction(str(low)) * count)
    assert snipnb.num_kept(kept["stable"]) == count - removed
    assert snipnb.num_kept(kept["remove"]) <= count - removed
    flat = torch.cat([s.flatten().abs() for s in salience.values()])
    for mask in kept.values():
        chosen = torch.cat([m.flatten() for m in mask.values()])
        if bool(chosen.any()) and not bool(chosen.all()):
            assert flat[chosen].min() >= flat[~chosen].max()
    higher = snipnb.keep_mask(salience, high, ties="stable")
    assert all(bool((higher[n] <= kept["stable"][n]).all()) for n in salience)


@fuzz(60)
@given(saliences())
def test_percentages_add_up_and_rank_the_same(salience):
    assume(any(bool((s != 0).any()) for s in salience.values()))
    shares = snipnb.standardise(salience)
    assert float(sum(s.sum() for s in shares.values())) == pytest.approx(100)
    flat, shared = (torch.cat([s.flatten().abs().double() for s in side.values()]) for side in (salience, shares))
    order = flat.argsort()
    assert bool((shared[order].diff() >= 0).all())


@pytest.mark.filterwarnings("ignore::snipnb.LayerCollapseWarning")
@fuzz(60)
@given(st.lists(shapes, min_size=1, max_size=4), sparsities, st.integers(0, 2**31), st.data())
def test_masks_of_densities_have_the_exact_count(sizes, sparsity, seed, data):
    model = nn.ParameterDict({f"p{k}": nn.Parameter(torch.zeros(shape)) for k, shape in enumerate(sizes)})
    count = sum(p.numel() for p in model.parameters())
    wanted = {name: data.draw(st.floats(0, 1)) for name, _ in model.named_parameters()}
    kept = count - snipnb.num_removed(count, sparsity)
    mask, error = outcome(lambda: densities.mask_of_densities(model, wanted, num_kept=kept, seed=seed))
    if mask is None:
        assert "densit" in error
        return
    assert snipnb.num_kept(mask) == kept
    assert {n: m.shape for n, m in mask.items()} == {n: p.shape for n, p in model.named_parameters()}


# --- settings ---------------------------------------------------------------------------------------------------------

anything = (
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | st.text(max_size=8)
    | st.lists(st.integers(), max_size=2)
)


def accepted(make, **options):
    """What is made, or None where the error says what it must be."""
    made, error = outcome(lambda: make(**options))
    assert made is not None or "must be" in error
    return made


@fuzz(300)
@given(st.sampled_from([f.name for f in dataclasses.fields(snipnb.Recipe)]), anything)
def test_recipes_are_usable_or_refused(field, value):
    recipe = accepted(snipnb.Recipe, **{field: value})
    if recipe is not None:
        rates = [learning_rate(recipe, step, 3) for step in range(3)]
        assert all(isinstance(r, (int, float)) and math.isfinite(r) and r >= 0 for r in rates)


@fuzz(300)
@given(st.sampled_from([f.name for f in dataclasses.fields(snipnb.RunConfig)]), anything)
def test_configurations_are_usable_or_refused(field, value):
    config = accepted(snipnb.RunConfig, **{field: value})
    if config is not None:
        assert groups_of([config]) == [[config]]
        assert run_key(config) == run_key(dataclasses.replace(config))
        assert json.loads(json.dumps(dataclasses.asdict(config))) is not None


def checked(path):
    profile = profiles.load_profile(str(path))
    profiles.check_parameters(profile, NOTEBOOKS)
    return profile


ROOT = project_root()  # None where the package was installed from elsewhere
NOTEBOOKS = sorted(ROOT.glob("notebooks/[0-9]*.ipynb")) if ROOT else []
DECLARED = {path.stem: profiles.declared_parameters(path) for path in NOTEBOOKS}


@pytest.mark.skipif(ROOT is None, reason="needs the notebooks of a checkout")
@fuzz(200)
@given(data=st.data())
def test_parameters_of_a_profile_have_their_type_or_are_refused(data, tmp_path_factory):
    notebook = data.draw(st.sampled_from(sorted(DECLARED)))
    name = data.draw(st.sampled_from(sorted(DECLARED[notebook])) | st.text(min_size=1, max_size=6))
    value = data.draw(anything)
    path = tmp_path_factory.mktemp("profile") / "mine.yaml"
    path.write_text(yaml.safe_dump({"notebooks": {notebook: {name: value}}}), encoding="utf-8")
    profile, error = outcome(lambda: checked(path))
    if profile is None:
        assert error
        return
    kept, default = profile.parameters(notebook)[name], DECLARED[notebook][name]
    assert isinstance(kept, bool) == isinstance(default, bool)
    assert isinstance(kept, (int, float) if isinstance(default, float) else type(default))


@fuzz(200)
@given(content=st.binary(max_size=120) | st.text(max_size=120).map(lambda t: t.encode("utf-8", "replace")))
@example(content=b"about: &a [*a]\nnotebooks: {}")
@example(content=b"notebooks: {a: &b {c: *b}}")
@example(content=b"? {}\n: 1")
@example(content=b"? [a, {b: c}]\n: 1")
@example(content=b"<<: 3\nnotebooks: {}")
def test_a_profile_of_any_bytes_is_read_or_refused(content, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(content)
    profile, error = outcome(lambda: checked(path))
    assert profile is not None or error


# --- the store --------------------------------------------------------------------------------------------------------


@fuzz(150)
@given(data=st.data())
def test_a_record_with_any_change_is_not_used(data, tmp_path_factory):
    place = store.Store(tmp_path_factory.mktemp("store"))
    place.finish("a-key", {"a-run": {"kept": 5, "history": [0.5, 0.25]}}, {"commit": "abc"})
    before = place.runs()
    path = place.folder / "a-key.json"
    whole = path.read_bytes()
    position = data.draw(st.integers(0, len(whole) - 1))
    how = data.draw(st.sampled_from(["byte", "cut", "insert"]))
    byte = bytes([data.draw(st.integers(0, 255))])
    changed = {
        "byte": whole[:position] + byte + whole[position + 1 :],
        "cut": whole[:position],
        "insert": whole[:position] + byte + whole[position:],
    }[how]
    path.write_bytes(changed)
    assert store.Store(place.folder).runs() in ({}, before)
