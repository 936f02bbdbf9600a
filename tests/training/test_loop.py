import copy
import dataclasses

import pandas as pd
import pytest
import torch
from small_networks import SEQUENTIAL, sequential
from torch import nn
from torch.optim import lr_scheduler

import snipnb
from snipnb.data import Split
from snipnb.training import groups, plain
from snipnb.training import recipe as recipe_module
from snipnb.training.loop import train_together


def as_split(images, labels, *, validation=7, test=11):
    """Training images, some of them for scoring too."""
    return Split("standard", images, labels, images[:validation], labels[:validation], images[-test:], labels[-test:])


def random_split(shape, classes, number=26, seed=0):
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(number, *shape, generator=draw, dtype=torch.float64)
    return as_split(images, torch.randint(classes, (number,), generator=draw))


@pytest.fixture(scope="module")
def split():
    """120 training, 60 validation and 60 test images."""
    whole = snipnb.load_split("standard", sample=True)
    parts = (
        t[:n]
        for t, n in (
            (whole.train_images, 120),
            (whole.train_labels, 120),
            (whole.validation_images, 60),
            (whole.validation_labels, 60),
            (whole.test_images, 60),
            (whole.test_labels, 60),
        )
    )
    return Split("standard", *parts)


@pytest.fixture(scope="module")
def double(split):
    """The same images in float64."""
    return in_double(split)


def in_double(split):
    names = ("train_images", "validation_images", "test_images")
    return dataclasses.replace(split, **{name: getattr(split, name).double() for name in names})


def built(*layers, number=3, seed=0):
    """Networks of these layers that differ in their values, in float64; each layer is made anew by its function."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        return [nn.Sequential(*(layer() for layer in layers)).double() for _ in range(number)]


def small(number=3, seed=0):
    """A convolution, a pool and two linear layers, for images [1, 6, 6] of 3 classes."""
    return built(
        lambda: nn.Conv2d(1, 2, 3),
        nn.ReLU,
        lambda: nn.MaxPool2d(2),
        nn.Flatten,
        lambda: nn.Linear(8, 4),
        nn.ReLU,
        lambda: nn.Linear(4, 3),
        number=number,
        seed=seed,
    )


def with_norm_and_dropout(number=3, seed=0):
    return built(
        lambda: nn.Conv2d(1, 2, 3),
        lambda: nn.BatchNorm2d(2),
        nn.ReLU,
        lambda: nn.MaxPool2d(2),
        lambda: nn.Dropout(0.3),
        nn.Flatten,
        lambda: nn.Linear(8, 4, bias=False),
        lambda: nn.BatchNorm1d(4, momentum=None),
        nn.ReLU,
        lambda: nn.Dropout(0.5),
        lambda: nn.Linear(4, 3),
        number=number,
        seed=seed,
    )


def random_masks(models, density=0.5, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [{n: torch.rand(p.shape, generator=draw) < density for n, p in m.named_parameters()} for m in models]


def state_of(model):
    return {name: t.detach().clone() for name, t in model.state_dict().items()}


def assert_same_state(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def furthest(one, other):
    """Largest difference of two models' parameters and buffers."""
    other = other.state_dict()
    return max(float((t.double() - other[name].double()).abs().max()) for name, t in one.state_dict().items())


def assert_each_as_alone(models, masks, split, recipe, *, data_seed=0, tolerance=1e-9):
    """Train copies of the models alone by the obvious loop and the models together; compare all that comes out."""
    alone = [copy.deepcopy(m) for m in models]
    histories = train_together(models, split, masks=masks, recipe=recipe, data_seed=data_seed)
    assert len(histories) == len(models)
    recipes = [recipe] * len(models) if isinstance(recipe, snipnb.Recipe) else recipe
    for model, other, mask, own, history in zip(models, alone, masks, recipes, histories, strict=True):
        before = state_of(other)
        expected = plain.plain_training(other, split, mask=mask, recipe=own, data_seed=data_seed)
        assert furthest(model, other) < tolerance
        pd.testing.assert_frame_equal(history, expected, rtol=0, atol=tolerance)
        assert any(not torch.equal(t, before[name]) for name, t in other.state_dict().items())


# --- each network as if it were alone ---------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [64, 25])  # whole registers of images, and not; the last batch is smaller
@pytest.mark.parametrize("network", [snipnb.lenet5, snipnb.lenet_300_100])
def test_what_a_network_is_trained_with_does_not_matter_to_the_last_bit(split, network, batch_size):
    salience = snipnb.snip(network(), split.train_images, split.train_labels)
    masks = [None, *(snipnb.keep_mask(salience, sparsity) for sparsity in (0.5, 0.95, 0.9, 0.99, 0.95))]
    recipes = [snipnb.Recipe(epochs=2, batch_size=batch_size, learning_rate=rate) for rate in (3e-3, 1e-2, 1e-2)] * 2
    models = [network() for _ in masks]
    histories = train_together(models, split, masks=masks, recipe=recipes)
    for model, mask, recipe, history in zip(models, masks, recipes, histories, strict=True):
        alone = network()
        pd.testing.assert_frame_equal(snipnb.train(alone, split, mask=mask, recipe=recipe), history, check_exact=True)
        assert furthest(alone, model) == 0


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_lenets_with_masks_of_their_own_are_trained_as_each_alone(double, epochs):
    models = [snipnb.lenet5(seed=k).double() for k in range(5)]
    salience = snipnb.snip(models[1], double.train_images, double.train_labels)
    with pytest.warns(snipnb.LayerCollapseWarning):
        nothing_left = snipnb.keep_mask(snipnb.magnitude_salience(models[2]), 0.999)
    cut = {n: torch.full_like(p, n != "conv2.weight", dtype=torch.bool) for n, p in models[3].named_parameters()}
    masks = [None, snipnb.keep_mask(salience, 0.5), nothing_left, cut, snipnb.keep_mask(salience, 0.99)]
    recipe = snipnb.Recipe(epochs=epochs, batch_size=50, learning_rate=0.003, schedule="constant")  # 50, 50, 20
    assert_each_as_alone(models, masks, double, recipe, data_seed=9)


SEVERAL = [
    {"optimiser": "sgd", "momentum": 0.0, "learning_rate": 0.02, "schedule": "cosine"},
    {"optimiser": "sgd", "momentum": 0.0, "learning_rate": 0.02, "schedule": "cosine"},
    {"learning_rate": 0.003},
    {"optimiser": "sgd", "momentum": 0.5, "learning_rate": 0.02, "weight_decay": 0.05, "schedule": "constant"},
    {"learning_rate": 0.001, "schedule": "constant"},
]


def several(**common):
    return [snipnb.Recipe(**own | common) for own in SEVERAL]


def test_masks_at_the_start_of_a_step_leave_one_step_of_pruned_parameters(double):
    models, late = ([snipnb.lenet5(seed=k).double() for k in (0, 1, 0)] for _ in range(2))
    salience = snipnb.snip(models[0], double.train_images, double.train_labels)
    masks = [snipnb.keep_mask(salience, 0.5), None, snipnb.keep_mask(salience, 0.99)]
    common = {"epochs": 2, "batch_size": 50, "learning_rate": 0.003, "schedule": "constant"}
    recipes = [snipnb.Recipe(**common, masks_at=at) for at in ("start", "start", "end")]
    assert_each_as_alone(late, masks, double, recipes, data_seed=9)
    train_together(models, double, masks=masks, recipe=snipnb.Recipe(**common), data_seed=9)
    for name, p in late[0].named_parameters():
        kept, usual = masks[0][name], dict(models[0].named_parameters())[name]
        assert torch.allclose(p[kept], usual[kept], rtol=0, atol=1e-9)  # nothing passes from pruned to kept ones
        moved = p[~kept].abs()
        assert (usual[~kept] == 0).all()
        assert kept.all() or 0 < moved.max() < 2 * common["learning_rate"]  # of one step of Adam
    assert furthest(late[1], models[1]) < 1e-9
    assert furthest(late[2], models[2]) < 1e-9


def test_networks_with_recipes_of_their_own_are_trained_as_each_alone(double):
    models = [snipnb.lenet5(seed=k).double() for k in range(5)]
    masks = [None, *random_masks(models[1:])]
    assert_each_as_alone(models, masks, double, several(epochs=2, batch_size=50), data_seed=3)


# Batch norm takes away what a bias before it adds, so that its gradient is rounding alone, which Adam would blow up: SGD.
@pytest.mark.parametrize("name", SEQUENTIAL)
def test_every_layer_and_order_is_trained_as_each_alone(name):
    models = [sequential(name, seed=k)[0] for k in range(3)]
    for layer in (layer for model in models for layer in model if isinstance(layer, nn.Dropout)):
        layer.p = 0.0
    shape, classes = SEQUENTIAL[name][0], len(sequential(name)[0](torch.zeros(1, *SEQUENTIAL[name][0]).double())[0])
    masks = [None, *random_masks(models[1:])]
    recipe = snipnb.Recipe(epochs=2, batch_size=10, optimiser="sgd", learning_rate=0.02, weight_decay=0.05)
    assert_each_as_alone(models, masks, random_split(shape, classes), recipe)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("adam", {"momentum": 0.3}),
        ("adam", {"momentum": None}),
        ("sgd", {"momentum": None, "affine": False}),
        ("sgd", {"momentum": 0.0, "eps": 0.1}),
    ],
)
def test_batch_norms_are_trained_as_each_alone(kind, options):
    models = built(
        lambda: nn.BatchNorm2d(2, **options),
        lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=False),
        lambda: nn.BatchNorm2d(3, **options),
        nn.ReLU,
        lambda: nn.MaxPool2d(3, 2, 1),
        nn.Flatten,
        lambda: nn.Linear(27, 5, bias=False),
        lambda: nn.BatchNorm1d(5, **options),
        lambda: nn.Linear(5, 3),
        lambda: nn.LogSoftmax(1),
    )
    assert models[0][0].num_batches_tracked == 0
    recipe = snipnb.Recipe(epochs=2, batch_size=12, optimiser=kind, learning_rate=0.01)
    assert_each_as_alone(models, [None, *random_masks(models[1:], 0.8)], random_split((2, 9, 9), 3), recipe)
    assert models[0][0].num_batches_tracked == 6


@pytest.mark.parametrize("optimiser", recipe_module.OPTIMISERS)
@pytest.mark.parametrize("schedule", recipe_module.SCHEDULES)
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_every_optimiser_and_schedule_is_that_of_pytorch(optimiser, schedule, weight_decay):
    models = small()
    recipe = snipnb.Recipe(
        epochs=3,
        batch_size=6,  # 6, 6, 6, 6, 2
        optimiser=optimiser,
        learning_rate=0.02,
        schedule=schedule,
        weight_decay=weight_decay,
        decay=0.5,
        decay_every=2,
    )
    masks = [None, *random_masks(models[1:])]
    assert_each_as_alone(models, masks, random_split((1, 6, 6), 3), recipe, tolerance=1e-10)


def test_softmax_regression_by_hand():
    """Two steps with momentum and weight decay, no automatic differentiation: gradient (p - onehot) x / n."""
    split = random_split((4,), 3, number=8)
    mask = {"0.weight": torch.ones(3, 4, dtype=torch.bool), "0.bias": torch.tensor([True, False, True])}
    mask["0.weight"][1, 2] = False
    recipe = snipnb.Recipe(
        epochs=1, batch_size=4, optimiser="sgd", learning_rate=0.3, schedule="constant", weight_decay=0.1
    )
    (model,) = built(lambda: nn.Linear(4, 3), number=1)
    kept = torch.cat([mask["0.weight"], mask["0.bias"][:, None]], 1).double()
    w = torch.cat([model[0].weight.detach(), model[0].bias.detach()[:, None]], 1) * kept
    velocity, losses = torch.zeros_like(w), []
    for batch in torch.randperm(8, generator=torch.Generator().manual_seed(3)).split(4):
        x = torch.cat([split.train_images[batch], torch.ones(4, 1, dtype=torch.float64)], 1)
        onehot = nn.functional.one_hot(split.train_labels[batch], 3)
        p = (x @ w.T).softmax(1)
        losses.append(-(p.log() * onehot).sum(1).mean())
        velocity = 0.9 * velocity + (p - onehot).T @ x / 4 * kept + 0.1 * w
        w = w - 0.3 * velocity
    by_loop = copy.deepcopy(model)
    for one, train in ((model, snipnb.train), (by_loop, plain.plain_training)):
        history = train(one, split, mask=mask, recipe=recipe, data_seed=3)
        found = torch.cat([one[0].weight.detach(), one[0].bias.detach()[:, None]], 1)
        torch.testing.assert_close(found, w, rtol=1e-12, atol=1e-14)
        assert history["train_loss"].tolist() == pytest.approx([float(sum(losses)) / 2], rel=1e-12)


@pytest.mark.parametrize(("images", "networks", "scored"), [(7, 2, 4), (1, 1, 1), (100, 3, 5)])
def test_how_much_is_done_at_once_does_not_matter(images, networks, scored, monkeypatch):
    split, recipe = random_split((1, 6, 6), 3), snipnb.Recipe(epochs=2, batch_size=10)
    first, again = small(number=5), small(number=5)
    masks = random_masks(first)
    histories = train_together(first, split, masks=masks, recipe=recipe)
    for limits, value in ((groups.IMAGES, images), (groups.NETWORKS, networks), (groups.SCORED, scored)):
        monkeypatch.setitem(limits, "cpu", value)
    for one, other in zip(histories, train_together(again, split, masks=masks, recipe=recipe), strict=True):
        pd.testing.assert_frame_equal(one, other, rtol=0, atol=1e-12)
    assert max(furthest(one, other) for one, other in zip(first, again, strict=True)) < 1e-12


def test_blocks_of_networks_and_norms_over_whole_batches(monkeypatch):
    monkeypatch.setitem(groups.IMAGES, "cpu", 3)
    monkeypatch.setitem(groups.NETWORKS, "cpu", 2)
    models = with_norm_and_dropout(number=5)
    for layer in (layer for model in models for layer in model if isinstance(layer, nn.Dropout)):
        layer.p = 0.0
    recipe = snipnb.Recipe(epochs=2, batch_size=9, optimiser="sgd")
    assert_each_as_alone(models, [None] * 5, random_split((1, 6, 6), 3), recipe)


def test_lenets_in_float32_come_close_to_each_alone(split):
    """Rounding alone: the loop in float32 is as far from float64 (losses 2e-7, parameters 1e-4 where Adam's steps are tiny)."""
    models = [snipnb.lenet5(seed=k) for k in range(3)]
    alone, exact = [copy.deepcopy(m) for m in models], [copy.deepcopy(m).double() for m in models]
    saliences = [snipnb.snip(m, split.train_images, split.train_labels) for m in models]
    masks = [None, *(snipnb.keep_mask(s, 0.9) for s in saliences[1:])]
    recipe = snipnb.Recipe(epochs=2, batch_size=50, learning_rate=0.003)
    together = train_together(models, split, masks=masks, recipe=recipe)
    for k, history in enumerate(together):
        alone_history = plain.plain_training(alone[k], split, mask=masks[k], recipe=recipe)
        best = plain.plain_training(exact[k], in_double(split), mask=masks[k], recipe=recipe)
        assert history["train_loss"].to_numpy() == pytest.approx(best["train_loss"].to_numpy(), rel=3e-6)
        for way in ("validation_error", "test_error"):
            assert (history[way] - alone_history[way]).abs().max() <= 1 / 60 + 1e-9  # one image
        assert furthest(models[k], exact[k]) < 1e-3


# --- the order of things ----------------------------------------------------------------------------------------------


def test_same_seeds_give_the_same_run_and_others_do_not(split):
    recipe = snipnb.Recipe(epochs=1, batch_size=30)
    runs = [
        snipnb.train(snipnb.lenet5(seed=init), split, recipe=recipe, data_seed=order)
        for init, order in ((0, 0), (0, 0), (0, 1), (1, 0))
    ]
    pd.testing.assert_frame_equal(runs[0], runs[1])
    assert runs[0]["train_loss"].iloc[0] != runs[2]["train_loss"].iloc[0]
    assert runs[0]["train_loss"].iloc[0] != runs[3]["train_loss"].iloc[0]


@pytest.mark.parametrize("data_seed", [-1, 2**31, 2**40, 2**63])
def test_any_seed_of_the_image_order_will_do(data_seed):
    recipe = snipnb.Recipe(epochs=1, batch_size=10)
    assert_each_as_alone(small(), [None] * 3, random_split((1, 6, 6), 3), recipe, data_seed=data_seed)


def test_training_leaves_the_global_random_state_and_the_images():
    split, models = random_split((1, 6, 6), 3), with_norm_and_dropout()
    before, state = copy.deepcopy(split), torch.get_rng_state()
    train_together(models, split, recipe=snipnb.Recipe(epochs=1, batch_size=10))
    assert torch.equal(torch.get_rng_state(), state)
    for one, other in zip(dataclasses.astuple(split)[1:], dataclasses.astuple(before)[1:], strict=True):
        assert torch.equal(one, other)


# --- learning rates ---------------------------------------------------------------------------------------------------


def rates_of(recipe, steps):
    return [recipe_module.learning_rate(recipe, step, steps) for step in range(recipe.epochs * steps)]


def rates_of_pytorch(recipe, steps):
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=recipe.learning_rate)
    schedule = SCHEDULES[recipe.schedule](optimiser, recipe, recipe.epochs * steps)
    rates = []
    for step in range(recipe.epochs * steps):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        if recipe.schedule not in ("step", "exponential") or (step + 1) % steps == 0:  # these two advance once an epoch
            schedule.step()
    return rates


SCHEDULES = {
    "constant": lambda optimiser, recipe, total: lr_scheduler.LambdaLR(optimiser, lambda _: 1.0),
    "step": lambda optimiser, recipe, total: lr_scheduler.StepLR(optimiser, recipe.decay_every, recipe.decay),
    "exponential": lambda optimiser, recipe, total: lr_scheduler.ExponentialLR(optimiser, recipe.decay),
    "cosine": lambda optimiser, recipe, total: lr_scheduler.CosineAnnealingLR(optimiser, total),
    "one_cycle": lambda optimiser, recipe, total: lr_scheduler.OneCycleLR(
        optimiser,
        max_lr=recipe.learning_rate,
        total_steps=total + 1,  # the step after the last is never used
        pct_start=recipe_module.WARM_UP_SHARE,
        anneal_strategy="linear",
        cycle_momentum=False,
    ),
}


def test_nine_steps_of_one_cycle_have_no_warm_up(split):
    """PyTorch's own schedule divides by zero there."""
    recipe = snipnb.Recipe(epochs=3, batch_size=40, schedule="one_cycle", learning_rate=0.01)
    models = [snipnb.lenet5(seed=0) for _ in range(2)]
    assert rates_of(recipe, 3)[0] == pytest.approx(0.01)
    plain_losses = plain.plain_training(models[0], split, recipe=recipe)["train_loss"]
    assert plain_losses.tolist() == pytest.approx(snipnb.train(models[1], split, recipe=recipe)["train_loss"], rel=1e-3)


@pytest.mark.parametrize("schedule", recipe_module.SCHEDULES)
@pytest.mark.parametrize(
    ("epochs", "steps"), [(1, 1), (1, 2), (1, 5), (4, 2), (1, 8), (2, 5), (1, 19), (7, 3), (2, 50), (40, 4)]
)
def test_learning_rates_are_those_of_pytorch(schedule, epochs, steps):
    recipe = snipnb.Recipe(epochs=epochs, learning_rate=0.03, schedule=schedule, decay=0.7, decay_every=3)
    assert rates_of(recipe, steps) == pytest.approx(rates_of_pytorch(recipe, steps), rel=1e-9, abs=1e-15)


def test_one_cycle_rises_to_the_peak_and_ends_at_zero():
    rates = rates_of(snipnb.Recipe(epochs=2, learning_rate=0.01), 50)
    assert max(rates) == pytest.approx(0.01, rel=0.01)
    assert rates.index(max(rates)) in (9, 10)
    assert rates[0] == pytest.approx(0.01 / 25)
    assert 0 < rates[-1] < 0.02 * max(rates)


@pytest.mark.parametrize(("epochs", "steps"), [(1, 9), (3, 3), (9, 1)])
def test_one_cycle_of_nine_steps_starts_at_its_peak(epochs, steps):
    """PyTorch divides by zero here: a tenth of ten steps, less one, is no time to rise in."""
    recipe = snipnb.Recipe(epochs=epochs, learning_rate=0.01)
    with pytest.raises(ZeroDivisionError):
        rates_of_pytorch(recipe, steps)
    lowest = 0.01 / 250_000
    expected = [0.01 + (lowest - 0.01) * step / 9 for step in range(9)]
    assert rates_of(recipe, steps) == pytest.approx(expected, rel=1e-12)


def test_learning_rates_by_hand():
    step = snipnb.Recipe(epochs=5, learning_rate=1.0, schedule="step", decay=0.5, decay_every=2)
    assert rates_of(step, 2) == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25]
    assert rates_of(dataclasses.replace(step, schedule="exponential", epochs=3), 2) == [1, 1, 0.5, 0.5, 0.25, 0.25]
    assert rates_of(dataclasses.replace(step, schedule="cosine", epochs=2), 1) == pytest.approx([1, 0.5])
    assert rates_of(dataclasses.replace(step, schedule="constant", epochs=2), 1) == [1, 1]


# --- masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimiser", recipe_module.OPTIMISERS)
def test_pruned_parameters_are_exactly_zero_at_every_step(split, optimiser):
    models = [snipnb.lenet5(seed=k) for k in range(3)]
    saliences = [snipnb.snip(m, split.train_images, split.train_labels) for m in models]
    masks = [snipnb.keep_mask(saliences[0], 0.9), None, snipnb.keep_mask(saliences[2], 0.5)]
    recipe = snipnb.Recipe(optimiser=optimiser, learning_rate=0.01, weight_decay=0.1)
    group = groups.Together(models, masks, [recipe] * 3)
    start = {name: p.clone() for name, p in group.parameters.items()}
    for step in range(8):
        for k in (0, 2):
            for name, p in group.parameters.items():
                pruned = p[k][~masks[k][name]]
                assert torch.equal(pruned, torch.zeros_like(pruned)), (step, name)
                # momenta too: nothing waits to move them later
                kept = group.parts[0].state() if step else {}
                momenta = [m[k][~masks[k][name]] for key, m in kept.items() if key.endswith(f" {name}")]
                assert step == 0 or momenta
                assert all(bool((m == 0).all()) for m in momenta)
        group.step(split.train_images[:20], split.train_labels[:20], seed=step)
    for name, p in group.parameters.items():
        for k in range(3):
            kept = torch.ones_like(p[k], dtype=torch.bool) if masks[k] is None else masks[k][name]
            moved = (p[k] != start[name][k]) & kept
            assert int(moved.sum()) > 0.9 * int(kept.sum())
    assert torch.equal(models[0].conv1.weight, snipnb.lenet5(seed=0).conv1.weight)  # until they are written back


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ([snipnb.Recipe(), snipnb.Recipe(epochs=1)], "same epochs and batch_size"),
        ([snipnb.Recipe(), snipnb.Recipe(batch_size=1)], "same epochs and batch_size"),
        ([snipnb.Recipe()] * 3, "recipes as models; got 3 for 2"),
        ([], "recipes as models; got 0 for 2"),
        ("adam", "every recipe must be a Recipe"),
        ([snipnb.Recipe(), None], "every recipe must be a Recipe"),
    ],
)
def test_recipes_that_do_not_go_together_are_refused(recipe, message):
    models = small(number=2)
    before = [state_of(m) for m in models]
    with pytest.raises(ValueError, match=message):
        train_together(models, random_split((1, 6, 6), 3), masks=random_masks(models), recipe=recipe)
    for model, then in zip(models, before, strict=True):
        assert_same_state(model.state_dict(), then)


def test_trained_models_have_zeros_where_the_masks_say():
    models = small()
    masks = [*random_masks(models[:2]), None]
    train_together(models, random_split((1, 6, 6), 3), masks=masks, recipe=snipnb.Recipe(epochs=2, batch_size=5))
    for model, mask in zip(models[:2], masks[:2], strict=True):
        for name, p in model.named_parameters():
            assert bool((p[~mask[name]] == 0).all())
            assert bool((p[mask[name]] != 0).all())
    assert all(bool((p != 0).all()) for p in models[2].parameters())


# --- going on from a checkpoint ---------------------------------------------------------------------------------------


class Memory:
    """Keeps a copy of every state; gives back the last one, or the one after ``epochs``."""

    def __init__(self, saved=(), epochs=None):
        self.saved = list(saved)[:epochs]
        self.loaded = len(self.saved)

    def load(self):
        return copy.deepcopy(self.saved[-1]) if self.saved else None

    def save(self, tensors, rows):
        self.saved.append(copy.deepcopy((tensors, rows)))


@pytest.mark.parametrize("optimiser", [*recipe_module.OPTIMISERS, "several"])
@pytest.mark.parametrize("build", [small, with_norm_and_dropout])
def test_going_on_from_any_epoch_ends_the_same_bit_for_bit(optimiser, build):
    split, masks = random_split((1, 6, 6), 3), [None, *random_masks(build()[1:])]
    if optimiser == "several":
        recipe = several(epochs=4, batch_size=10)[1:4]
    else:
        recipe = snipnb.Recipe(epochs=4, batch_size=10, optimiser=optimiser, weight_decay=0.01)
    options = {"masks": masks, "recipe": recipe, "data_seed": 4}
    whole, without = build(), build()
    kept = Memory()
    histories = train_together(whole, split, checkpoint=kept, **options)
    assert [len(rows) for _, rows in kept.saved] == [1, 2, 3, 4]
    for one, other in zip(histories, train_together(without, split, **options), strict=True):
        pd.testing.assert_frame_equal(one, other, check_exact=True)
    for epochs in (1, 2, 3, 4):
        again = build(seed=1)  # other values: all of them come from the checkpoint
        memory = Memory(kept.saved, epochs)
        resumed = train_together(again, split, checkpoint=memory, **options)
        assert len(memory.saved) == 4  # after the last epoch nothing more is trained or saved
        for one, other, model, expected in zip(histories, resumed, again, whole, strict=True):
            pd.testing.assert_frame_equal(one, other, check_exact=True)
            assert_same_state(model.state_dict(), expected.state_dict())
            assert not model.training
    for model, expected in zip(without, whole, strict=True):
        assert_same_state(model.state_dict(), expected.state_dict())


def test_a_finished_checkpoint_takes_no_step(monkeypatch):
    split, recipe, kept = random_split((1, 6, 6), 3), snipnb.Recipe(epochs=2, batch_size=10), Memory()
    whole = train_together(small(), split, recipe=recipe, checkpoint=kept)
    monkeypatch.setattr(groups.Together, "step", None)
    for one, other in zip(whole, train_together(small(), split, recipe=recipe, checkpoint=kept), strict=True):
        pd.testing.assert_frame_equal(one, other, check_exact=True)
    assert len(kept.saved) == 2


def test_what_a_checkpoint_was_given_does_not_change_later():
    """A checkpoint that keeps what it is handed, instead of copies."""
    given = []

    class Careless:
        def load(self):
            return None

        def save(self, tensors, rows):
            given.append((tensors, rows, copy.deepcopy((dict(tensors), rows))))

    train_together(small(), random_split((1, 6, 6), 3), recipe=snipnb.Recipe(epochs=3), checkpoint=Careless())
    for tensors, rows, (tensors_then, rows_then) in given:
        assert rows == rows_then
        assert_same_state(tensors, tensors_then)


# --- dropout ----------------------------------------------------------------------------------------------------------


def drawn_in_training(monkeypatch, data_seed, **options):
    """What dropout drew, in order, in a training of 2 epochs of 3 steps."""
    drawn, rand = [], torch.rand
    with monkeypatch.context() as patch:
        patch.setattr(torch, "rand", lambda *a, **k: drawn.append(rand(*a, **k)) or drawn[-1])
        recipe = snipnb.Recipe(epochs=2, batch_size=10)
        train_together(with_norm_and_dropout(**options), random_split((1, 6, 6), 3), recipe=recipe, data_seed=data_seed)
    return drawn


def test_dropout_draws_anew_at_every_step_and_by_the_seed(monkeypatch):
    first, again, other = (drawn_in_training(monkeypatch, seed) for seed in (0, 0, 1))
    assert len(first) == len(again) == len(other) == 2 * 3 * 2  # epochs, steps, layers
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({tuple(d.flatten()[:8].tolist()) for d in (*first, *other)}) == 2 * len(first)


def test_dropout_draws_anew_for_every_part_of_a_batch(monkeypatch):
    monkeypatch.setitem(groups.IMAGES, "cpu", 4)
    drawn, rand = [], torch.rand
    monkeypatch.setattr(torch, "rand", lambda *a, **k: drawn.append(rand(*a, **k)) or drawn[-1])
    models = built(lambda: nn.Linear(6, 4), lambda: nn.Dropout(0.5), lambda: nn.Linear(4, 3), number=1)
    train_together(models, random_split((6,), 3, number=24), recipe=snipnb.Recipe(epochs=2, batch_size=12))
    assert len(drawn) == 2 * 2 * 3
    assert len({tuple(d.flatten().tolist()) for d in drawn}) == len(drawn)


def test_dropout_is_the_same_for_every_network_of_a_group_and_for_one_alone():
    split, recipe = random_split((1, 6, 6), 3), snipnb.Recipe(epochs=2, batch_size=10, optimiser="sgd")
    models = with_norm_and_dropout(number=6)
    for model in models[3:]:
        model.load_state_dict(models[0].state_dict())
    alone = [copy.deepcopy(m) for m in models]
    together = train_together(models, split, recipe=recipe)
    for k in range(6):
        history = snipnb.train(alone[k], split, recipe=recipe)
        assert furthest(models[k], alone[k]) < 1e-12
        pd.testing.assert_frame_equal(together[k], history, rtol=0, atol=1e-12)
    assert all(furthest(models[0], model) < 1e-12 for model in models[3:])  # though in other blocks


def test_dropout_acts_in_training_and_not_in_scoring():
    split, recipe = random_split((1, 6, 6), 3, number=60), snipnb.Recipe(epochs=1, batch_size=20)
    split = dataclasses.replace(split, test_images=split.train_images, test_labels=split.train_labels)
    (model,), (without,) = with_norm_and_dropout(number=1), with_norm_and_dropout(number=1)
    for layer in without:
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    history = snipnb.train(model, split, recipe=recipe)
    assert history["train_loss"].iloc[0] != snipnb.train(without, split, recipe=recipe)["train_loss"].iloc[0]
    assert history["test_error"].iloc[0] == snipnb.error_rate(model, split.test_images, split.test_labels)
    assert history["validation_error"].iloc[0] == snipnb.error_rate(
        model, split.validation_images, split.validation_labels
    )


# --- what is left behind ----------------------------------------------------------------------------------------------


def test_frozen_parameters_stay_but_for_the_mask():
    models = small()
    for model in models:
        model[0].weight.requires_grad_(False)
        model[4].bias.requires_grad_(False)
    before, masks = [state_of(m) for m in models], [None, *random_masks(models[1:])]
    recipe = snipnb.Recipe(epochs=1, batch_size=10, weight_decay=0.1)
    assert_each_as_alone(models, masks, random_split((1, 6, 6), 3), recipe)
    for model, then, mask in zip(models, before, masks, strict=True):
        for name in ("0.weight", "4.bias"):
            expected = then[name] if mask is None else then[name] * mask[name]
            assert torch.equal(model.state_dict()[name], expected)
        assert not torch.equal(model[4].weight, then["4.weight"])
        assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["0.weight", "4.bias"]


def test_a_parameter_that_no_layer_uses_stays():
    split, recipe = random_split((6,), 3), snipnb.Recipe(epochs=1, batch_size=9)
    with_spare, without = (built(lambda: nn.Linear(6, 3), number=2) for _ in range(2))
    for model in with_spare:
        model.register_parameter("spare", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    for one, other in zip(*(train_together(m, split, recipe=recipe) for m in (with_spare, without)), strict=True):
        pd.testing.assert_frame_equal(one, other)
    assert all(model.spare.tolist() == [1, 1] for model in with_spare)


def test_the_given_models_get_the_values_in_their_own_tensors_and_evaluation_mode():
    models = with_norm_and_dropout()
    places = [{name: t.data_ptr() for name, t in m.state_dict().items()} for m in models]
    before = [state_of(m) for m in models]
    recipe = snipnb.Recipe(epochs=4, batch_size=5)  # so many steps that no unit rests in all of them
    train_together([m.train() for m in models], random_split((1, 6, 6), 3, number=25), recipe=recipe)
    for model, place, then in zip(models, places, before, strict=True):
        assert {name: t.data_ptr() for name, t in model.state_dict().items()} == place
        assert [name for name, t in model.state_dict().items() if torch.equal(t, then[name])] == []
        assert not any(module.training for module in model.modules())
        assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("train", [snipnb.train, plain.plain_training])
def test_rows_of_a_split_without_validation(train):
    split = random_split((1, 6, 6), 3)
    split = dataclasses.replace(split, validation_images=split.test_images[:0], validation_labels=split.test_labels[:0])
    history = train(small()[0], split, recipe=snipnb.Recipe(epochs=2))
    assert history.columns.tolist() == ["epoch", "train_loss", "validation_error", "test_error"]
    assert history["epoch"].tolist() == [1, 2]
    assert history["validation_error"].isna().all()
    assert history["test_error"].between(0, 1).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_of_any_integer_type(dtype):
    split = random_split((1, 6, 6), 3)
    labels = {key: getattr(split, key).to(dtype) for key in ("train_labels", "validation_labels", "test_labels")}
    recipe = snipnb.Recipe(epochs=1, batch_size=10)
    expected = snipnb.train(small()[0], split, recipe=recipe)
    pd.testing.assert_frame_equal(
        snipnb.train(small()[0], dataclasses.replace(split, **labels), recipe=recipe), expected
    )


# --- what is refused --------------------------------------------------------------------------------------------------


def wider():
    return built(lambda: nn.Flatten(), lambda: nn.Linear(36, 5), nn.ReLU, lambda: nn.Linear(5, 3), number=1)[0]


def changed(change):
    """Two small networks of which the second is changed."""
    models = small(number=2)
    change(models[1])
    return models


def shared_bias():
    models = small(number=2)
    models[1][0].bias = models[0][0].bias
    return models


REFUSED = {
    "no models": (list, None, "no models are given"),
    "other layers": (lambda: [*small(number=1), wider()], None, "models differ in layers"),
    "other shapes": (
        lambda: [nn.Sequential(nn.Linear(6, width), nn.Linear(width, 3)) for width in (4, 5)],
        None,
        "models differ in layers, shapes",
    ),
    "other options": (lambda: changed(lambda m: setattr(m[2], "stride", 1)), None, "models differ in layers"),
    "other types": (lambda: changed(lambda m: m.float()), None, "models differ in layers, shapes, dtypes"),
    "others frozen": (lambda: changed(lambda m: m[0].requires_grad_(False)), None, "what is trained"),
    "one model twice": (lambda: small(number=1) * 2, None, "share"),
    "tensors of another": (shared_bias, None, "share"),
    "too few masks": (
        lambda: small(number=2),
        lambda models: random_masks(models[:1]),
        "masks as models; got 1 for 2",
    ),
    "no masks": (lambda: small(number=2), lambda models: [], "masks as models; got 0 for 2"),
    "a mask with a name less": (
        lambda: small(number=2),
        lambda models: [None, {"0.weight": torch.ones(2, 1, 3, 3, dtype=torch.bool)}],
        "names of mask and model differ",
    ),
    "a mask of another shape": (
        lambda: small(number=2),
        lambda models: [None, random_masks(models[:1])[0] | {"0.bias": torch.ones(3, dtype=torch.bool)}],
        "mask of '0.bias' must have the parameter's shape",
    ),
    "a mask of numbers": (
        lambda: small(number=2),
        lambda models: [None, {n: torch.ones_like(p) for n, p in models[0].named_parameters()}],
        "must be a tensor of torch.bool",
    ),
    "no parameters": (lambda: [nn.Sequential(nn.Flatten())], None, "no parameters"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_is_refused_before_anything_changes(name):
    build, masks_for, message = REFUSED[name]
    models = [m.train() for m in build()]
    before, masks = [state_of(m) for m in models], masks_for(models) if masks_for else None
    with pytest.raises(ValueError, match=message):
        train_together(models, random_split((1, 6, 6), 3), masks=masks, recipe=snipnb.Recipe(epochs=1))
    for model, then in zip(models, before, strict=True):
        assert_same_state(model.state_dict(), then)
        assert model.training


@pytest.mark.parametrize("train", [snipnb.train, plain.plain_training])
def test_a_mask_that_does_not_fit_is_refused_before_anything_changes(split, train):
    model = snipnb.lenet5()
    before = state_of(model)
    with pytest.raises(ValueError, match="names of mask and model differ"):
        train(model, split, mask={"conv1.weight": torch.zeros(6, 1, 5, 5, dtype=torch.bool)})
    assert_same_state(model.state_dict(), before)


@pytest.mark.parametrize("train", [snipnb.train, plain.plain_training])
@pytest.mark.parametrize(
    ("images", "labels", "message"), [(0, 0, "the data set is empty"), (26, 20, "26 images but 20 labels")]
)
def test_training_images_that_do_not_do_are_refused(train, images, labels, message):
    whole, (model,) = random_split((1, 6, 6), 3), small(number=1)
    before = state_of(model)
    split = dataclasses.replace(
        whole, train_images=whole.train_images[:images], train_labels=whole.train_labels[:labels]
    )
    with pytest.raises(ValueError, match=message):
        train(model, split, recipe=snipnb.Recipe(epochs=1))
    assert_same_state(model.state_dict(), before)


@pytest.mark.parametrize("train", [snipnb.train, plain.plain_training])
def test_batch_norm_of_a_single_value_is_refused_as_pytorch_does(train):
    (model,) = built(lambda: nn.Linear(6, 4), lambda: nn.BatchNorm1d(4), lambda: nn.Linear(4, 3), number=1)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        train(model, random_split((6,), 3, number=21), recipe=snipnb.Recipe(epochs=1, batch_size=10))


def test_what_fails_in_the_middle_leaves_the_models_as_they_were():
    split, models = random_split((1, 6, 6), 3), small()
    before, labels = [state_of(m) for m in models], split.train_labels.clone()
    labels[5] = 3
    with pytest.raises((ValueError, IndexError)):
        train_together(models, dataclasses.replace(split, train_labels=labels), recipe=snipnb.Recipe(batch_size=5))
    for model, then in zip(models, before, strict=True):
        assert_same_state(model.state_dict(), then)


# --- recipes and error rates ------------------------------------------------------------------------------------------


def test_error_rate_counts_wrong_images():
    model = nn.Linear(2, 2, bias=False)
    model.weight.data = torch.eye(2)
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [0.0, 3.0]])
    assert snipnb.error_rate(model, images, torch.tensor([0, 0, 0, 1])) == 0.25
    assert snipnb.error_rate(model, images[:0], torch.zeros(0)) != snipnb.error_rate(model, images[:0], torch.zeros(0))


def test_three_error_rates():
    history = pd.DataFrame({"validation_error": [0.5, 0.2, 0.2, 0.3], "test_error": [0.40, 0.30, 0.10, 0.35]})
    rates = snipnb.error_rates(history)
    assert rates == {"error_rate": 0.35, "best_error_rate": 0.10, "selected_error_rate": 0.30}
    without = snipnb.error_rates(history.assign(validation_error=float("nan")))
    assert without["best_error_rate"] == 0.10
    assert without["selected_error_rate"] != without["selected_error_rate"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("epochs", 1.5),
        ("epochs", True),
        ("batch_size", -1),
        ("optimiser", "lbfgs"),
        ("schedule", "linear"),
        ("decay", 0),
        ("decay", 1.5),
        ("decay_every", 0),
        ("learning_rate", 0),
        ("learning_rate", float("nan")),
        ("weight_decay", -0.1),
        ("weight_decay", None),
        ("learning_rate", float("inf")),
        ("learning_rate", True),
        ("momentum", "0.9"),
        ("optimiser", []),
        ("schedule", None),
    ],
)
def test_bad_recipes_are_named(field, value):
    with pytest.raises(ValueError, match=f"{field} must be .*; got"):
        snipnb.Recipe(**{field: value})


# --- tables of error rates --------------------------------------------------------------------------------------------


# --- examples that do not fit -----------------------------------------------------------------------------------------

MISFITS = {
    "a label too high": (
        lambda x, y: (x, y - y.min() + 1 + (y > y.min())),
        "labels range from 1 to .*; .* accept 0 to 2",
    ),
    "a label too low": (lambda x, y: (x, y - y.min() - 1), "labels range from -1"),
    "labels that are numbers": (lambda x, y: (x, y.double()), "labels must be integers"),
    "labels missing": (lambda x, y: (x, y[:-1]), "one label per image"),
    "two channels": (lambda x, y: (x.expand(-1, 2, -1, -1), y), "layer '0' is Conv2d.* does not fit"),
    "narrow images": (lambda x, y: (x[..., :5], y), r"layer '\d' is Linear.* does not fit"),
    "tiny images": (lambda x, y: (x[..., :2, :2], y), "does not fit"),
    "flat images": (lambda x, y: (x.flatten(1), y), "does not fit"),
    "another precision": (lambda x, y: (x.float(), y), "images are torch.float32"),
}


@pytest.mark.parametrize("part", ["train", "validation", "test"])
@pytest.mark.parametrize("name", MISFITS)
def test_examples_that_do_not_fit_are_named_before_anything_changes(name, part):
    change, message = MISFITS[name]
    split, models = random_split((1, 6, 6), 3), small()
    found = dict(zip((f"{part}_images", f"{part}_labels"), change(*part_of(split, part)), strict=True))
    before = [state_of(m) for m in models]
    with pytest.raises(ValueError, match=message):
        train_together(models, dataclasses.replace(split, **found), recipe=snipnb.Recipe(epochs=1))
    for model, then in zip(models, before, strict=True):
        assert_same_state(model.state_dict(), then)


def part_of(split, part):
    return getattr(split, f"{part}_images"), getattr(split, f"{part}_labels")


@pytest.mark.parametrize("name", ["a label too high", "a label too low", "labels that are numbers", "labels missing"])
def test_errors_are_not_counted_with_labels_that_are_no_classes(name):
    change, message = MISFITS[name]
    with pytest.raises(ValueError, match=message):
        snipnb.error_rate(small()[0], *change(*part_of(random_split((1, 6, 6), 3), "test")))
