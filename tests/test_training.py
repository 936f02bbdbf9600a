import dataclasses

import pandas as pd
import pytest
import scipy.stats
import torch
from torch import nn

import snipnb
from snipnb import experiments, training
from snipnb.data import Split


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


@pytest.mark.parametrize("optimiser", training.OPTIMISERS)
@pytest.mark.parametrize("schedule", training.SCHEDULES)
def test_pruned_parameters_are_exactly_zero_at_every_step(split, optimiser, schedule, monkeypatch):
    model = snipnb.lenet5(seed=0)
    mask = snipnb.keep_mask(snipnb.snip(model, split.train_images, split.train_labels), 0.9)
    seen = []

    def check(module, inputs, outputs):
        seen.append(all(bool((p[~mask[name]] == 0).all()) for name, p in model.named_parameters()))

    model.register_forward_hook(check)
    recipe = snipnb.Recipe(
        epochs=2, batch_size=40, optimiser=optimiser, schedule=schedule, learning_rate=0.01, weight_decay=0.1
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    snipnb.train(model, split, mask=mask, recipe=recipe)
    assert len(seen) == 2 * (3 + 2)  # three steps, and the two scored sets, an epoch
    assert all(seen)
    moved = [float((p.detach() - before[n])[mask[n]].abs().max()) for n, p in model.named_parameters() if mask[n].any()]
    assert min(moved) > 0  # what is kept is trained


def test_agrees_with_a_loop_written_out(split):
    recipe = snipnb.Recipe(epochs=2, batch_size=50, schedule="constant", learning_rate=0.003)
    model, by_hand = snipnb.lenet5(seed=1).double(), snipnb.lenet5(seed=1).double()
    mask = snipnb.keep_mask(snipnb.magnitude_salience(model), 0.5)
    double = Split(
        split.name,
        split.train_images.double(),
        split.train_labels,
        split.validation_images.double(),
        split.validation_labels,
        split.test_images.double(),
        split.test_labels,
    )
    history = snipnb.train(model, double, mask=mask, recipe=recipe, data_seed=9)

    snipnb.apply_mask(by_hand, mask)  # the other route: PyTorch's own pruning keeps the masks
    optimiser = torch.optim.Adam(by_hand.parameters(), lr=0.003)
    draw = torch.Generator().manual_seed(9)
    for _ in range(2):
        order, total = torch.randperm(120, generator=draw), 0.0
        for start in (0, 50, 100):
            batch = order[start : start + 50]
            loss = nn.functional.cross_entropy(by_hand(double.train_images[batch]), double.train_labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += float(loss.detach()) * len(batch)
    assert history["train_loss"].iloc[-1] == pytest.approx(total / 120, rel=1e-9)
    torch.testing.assert_close(model(double.test_images), by_hand(double.test_images), rtol=1e-8, atol=1e-10)


def test_same_seeds_give_the_same_run_and_others_do_not(split):
    recipe = snipnb.Recipe(epochs=1, batch_size=30)
    runs = [
        snipnb.train(snipnb.lenet5(seed=init), split, recipe=recipe, data_seed=order)
        for init, order in ((0, 0), (0, 0), (0, 1), (1, 0))
    ]
    pd.testing.assert_frame_equal(runs[0], runs[1])
    assert runs[0]["train_loss"].iloc[0] != runs[2]["train_loss"].iloc[0]
    assert runs[0]["train_loss"].iloc[0] != runs[3]["train_loss"].iloc[0]


def test_one_cycle_rises_to_the_peak_and_ends_at_zero():
    recipe = snipnb.Recipe(epochs=2, learning_rate=0.01)
    optimiser, schedule = training._optimiser([nn.Parameter(torch.zeros(1))], recipe, steps_per_epoch=50)
    rates = []
    for _ in range(100):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    assert max(rates) == pytest.approx(0.01, rel=0.01)
    assert rates.index(max(rates)) in (9, 10)
    assert rates[0] < 0.1 * max(rates)
    assert 0 < rates[-1] < 0.02 * max(rates)


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
        ("schedule", "cosine"),
        ("learning_rate", 0),
        ("learning_rate", float("nan")),
        ("weight_decay", -0.1),
    ],
)
def test_bad_recipes_are_named(field, value):
    with pytest.raises(ValueError, match=f"{field} is .*accepted"):
        snipnb.Recipe(**{field: value})


def test_a_mask_that_does_not_fit_is_refused_before_anything_changes(split):
    model = snipnb.lenet5()
    before = model.conv1.weight.detach().clone()
    with pytest.raises(ValueError, match="mask and model differ in names"):
        snipnb.train(model, split, mask={"conv1.weight": torch.zeros(6, 1, 5, 5, dtype=torch.bool)})
    assert torch.equal(model.conv1.weight, before)


def test_runs_of_one_seed_share_initial_weights_and_saliences_come_from_training_images(split, monkeypatch):
    seen = []

    def record(model, images, labels):
        seen.append((len(images), model.conv1.weight.detach().clone()))
        return snipnb.snip(model, images, labels)

    monkeypatch.setattr(experiments, "snip", record)
    recipe = snipnb.Recipe(epochs=1, batch_size=60)
    runs = experiments.train_pruned(split, seeds=[3, 4], sparsities=[0.0, 0.5], recipe=recipe)
    assert [n for n, _ in seen] == [120, 120]
    assert not torch.equal(seen[0][1], seen[1][1])
    assert runs[["seed", "sparsity"]].to_numpy().tolist() == [[3, 0.0], [3, 0.5], [4, 0.0], [4, 0.5]]
    errors = experiments.error_table(runs)
    assert len(errors) == 4 * 3
    reported = pd.DataFrame({"sparsity": [0.0, 0.5], "error_percent": [0.65, 0.55]})
    summary = experiments.error_summary(errors, reported)
    assert summary["n"].tolist() == [2] * 6
    assert summary["reported"].tolist() == [0.65] * 3 + [0.55] * 3


def test_published_errors_are_placed_by_spread_and_binomial_variance():
    way = experiments.WAYS["best_error_rate"]
    errors = pd.DataFrame({"sparsity": [0.0] * 4, "way": [way] * 4, "error_percent": [1.0, 1.1, 0.9, 1.0]})
    reported = pd.DataFrame({"sparsity": [0.0], "error_percent": [1.2]})
    placed = experiments.place_errors(errors, reported, num_scored=10_000).iloc[0]
    # s^2 = 0.02 / 3; binomial 99 (1/10000 + 1/10500); degrees 3 ((spread + binomial) / spread)^2
    spread, binomial = 0.02 / 3 * 1.25, 99 * (1 / 10_000 + 1 / 10_500)
    degrees = 3 * ((spread + binomial) / spread) ** 2
    half = scipy.stats.t.ppf(0.975, degrees) * (spread + binomial) ** 0.5
    assert placed[["mean", "low", "high"]].tolist() == pytest.approx([1.0, 1 - half, 1 + half])
    assert placed["inside"]
    for value, inside in ((1 + half - 0.001, True), (1 + half + 0.001, False), (1 - half - 0.001, False)):
        shifted = reported.assign(error_percent=value)
        assert experiments.place_errors(errors, shifted, num_scored=10_000)["inside"].tolist() == [inside]
    three = pd.concat([reported.assign(sparsity=s) for s in (0.0, 0.5, 0.95)])
    wider = experiments.place_errors(
        pd.concat([errors.assign(sparsity=s) for s in (0.0, 0.5, 0.95)]), three, num_scored=10_000
    )
    assert (wider["high"] > placed["high"]).all()  # three intervals that hold jointly
    with pytest.raises(ValueError, match="1 runs at sparsity 0; an interval for one more needs at least 2"):
        experiments.place_errors(errors[:1], reported, num_scored=10_000)


def test_runs_without_spread_are_placed_by_the_binomial_variance_alone():
    way = experiments.WAYS["best_error_rate"]
    errors = pd.DataFrame({"sparsity": [0.0] * 3, "way": [way] * 3, "error_percent": [1.0] * 3})
    reported = pd.DataFrame({"sparsity": [0.0], "error_percent": [1.0]})
    placed = experiments.place_errors(errors, reported, num_scored=10_000).iloc[0]
    assert placed["high"] - 1 == pytest.approx(1.95996 * (99 * (1 / 10_000 + 1 / 10_500)) ** 0.5, rel=1e-4)


def test_the_published_protocol_is_recognised(split):
    published = dataclasses.replace(split, name="published")
    recipe = snipnb.Recipe(epochs=80, learning_rate=0.0012, schedule="constant")
    assert experiments.follows_published_protocol(published, recipe)
    assert not experiments.follows_published_protocol(split, recipe)
    for change in ({"epochs": 3}, {"learning_rate": 0.01}, {"schedule": "one_cycle"}, {"optimiser": "sgd"}):
        assert not experiments.follows_published_protocol(published, dataclasses.replace(recipe, **change))


def test_a_split_without_validation_has_no_selected_epoch():
    runs = pd.DataFrame(
        {"seed": 0, "sparsity": 0.5, "epoch": [1, 2], "validation_error": float("nan"), "test_error": [0.2, 0.3]}
    )
    errors = experiments.error_table(runs)
    assert errors["way"].tolist() == ["last epoch", "best epoch on scored images"]
    assert errors["error_percent"].tolist() == [30, 20]
    assert experiments.same_in_every_way(errors) == 0
