"""Networks and images that do not come with the package: training, identity, keeping and resuming."""

import copy
import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import snipnb
from snipnb import data, networks
from snipnb.pruning import criteria
from snipnb.training import grid, groups
from snipnb.training import runs as identity
from snipnb.training.plain import plain_training
from snipnb.training.runs import RunConfig, run_key
from snipnb.training.store import Store

RECIPE = snipnb.Recipe(epochs=2, batch_size=30)


class Own(nn.Module):
    """A residual block with batch norm, and dropout."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.around, self.last = nn.Conv2d(1, 3, 1), nn.Linear(3 * 36, 3)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        h = self.norm(self.first(x)).relu() + self.around(x)
        return self.last(self.dropout(h.flatten(1)))


def own_split(seed=0, name="own", validation=True):
    draw = torch.Generator().manual_seed(seed)

    def part(number):
        return torch.randn(number, 1, 6, 6, generator=draw), torch.randint(3, (number,), generator=draw)

    return snipnb.Split.of(name, train=part(100), test=part(40), validation=part(20) if validation else None)


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(data, "OWN_SPLITS", own := {})
    for module in (grid, identity):
        monkeypatch.setattr(module, "OWN_SPLITS", own)
    monkeypatch.setitem(networks.MODELS, "own", snipnb.Network(Own, version=1))
    monkeypatch.setattr(grid, "_said", set())
    grid._split.cache_clear()


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
@pytest.mark.parametrize("masks_at", ["start", "end"])
def test_a_network_is_trained_as_by_the_plain_loop(optimiser, masks_at):
    split = own_split()
    recipe = snipnb.Recipe(epochs=3, batch_size=30, optimiser=optimiser, weight_decay=0.01, masks_at=masks_at)
    models = [snipnb.Network(Own)(seed=seed) for seed in range(2)]
    masks = [snipnb.keep_mask(snipnb.snip(m, split.train_images, split.train_labels), 0.6) for m in models]
    plain, found = copy.deepcopy(models), copy.deepcopy(models)
    expected = [
        plain_training(m, split, mask=mask, recipe=recipe, data_seed=5) for m, mask in zip(plain, masks, strict=True)
    ]
    histories = snipnb.train_together(found, split, masks=masks, recipe=recipe, data_seed=5)
    for one, other, before, a, b in zip(plain, found, models, expected, histories, strict=True):
        for key, value in one.state_dict().items():
            torch.testing.assert_close(other.state_dict()[key], value, rtol=1e-6, atol=1e-7)
        assert any(not torch.equal(p, q) for p, q in zip(before.parameters(), other.parameters(), strict=True))
        pd.testing.assert_frame_equal(a, b, rtol=1e-6)
        assert not other.training
        assert all(p.grad is None for p in other.parameters())


def test_pruned_parameters_stay_at_zero_and_frozen_ones_where_they_are():
    split, model = own_split(), snipnb.Network(Own)(seed=1)
    model.around.weight.requires_grad_(False)
    before = model.around.weight.clone()
    mask = snipnb.keep_mask(snipnb.random_salience(model), 0.5)
    mask["around.weight"] = torch.ones_like(mask["around.weight"])
    snipnb.train(model, split, mask=mask, recipe=dataclasses.replace(RECIPE, optimiser="sgd", weight_decay=0.1))
    assert all(not p[~mask[name]].any() for name, p in model.named_parameters())
    assert torch.equal(model.around.weight, before)


class Memory:
    """Keeps states as a store would, up to some epoch."""

    def __init__(self, upto):
        self.upto, self.saved = upto, None

    def load(self):
        return copy.deepcopy(self.saved)

    def save(self, tensors, rows):
        if len(rows) <= self.upto:
            self.saved = copy.deepcopy((dict(tensors), list(rows)))


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_training_resumes_to_the_same_end(optimiser):
    split = own_split()
    recipe = snipnb.Recipe(epochs=4, batch_size=30, optimiser=optimiser, schedule="cosine")

    def trained(checkpoint):
        models = [snipnb.Network(lambda: Own(dropout=0.5))(seed=seed) for seed in range(2)]
        histories = snipnb.train_together(models, split, recipe=recipe, data_seed=2, checkpoint=checkpoint)
        return models, histories

    kept = Memory(2)
    models, histories = trained(kept)
    assert len(kept.saved[1]) == 2
    kept.upto = 4
    resumed, again = trained(kept)
    for one, other in zip(models, resumed, strict=True):
        assert all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())
    for one, other in zip(histories, again, strict=True):
        pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_random_state_and_a_failed_network_are_left_alone():
    split, model = own_split(), snipnb.Network(lambda: Own(dropout=0.5))(seed=0)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    snipnb.train(copy.deepcopy(model), split, recipe=RECIPE)
    assert torch.equal(torch.get_rng_state(), state)
    wrong = dataclasses.replace(split, test_labels=split.test_labels + 5)
    with pytest.raises(ValueError, match="3 outputs accept 0 to 2"):
        snipnb.train(model, wrong, recipe=RECIPE)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_only_covered_networks_are_stacked():
    recipes = [RECIPE]
    assert groups.group_of([snipnb.lenet5()], [None], recipes).is_stacked
    assert not groups.group_of([Own()], [None], recipes).is_stacked


# --- splits -----------------------------------------------------------------------------------------------------------


def test_a_split_is_known_by_its_content():
    one, same, other = own_split(), own_split(), own_split(seed=1)
    assert one.key == same.key == f"own-{one.checksum[:16]}"
    assert other.key != one.key
    assert dataclasses.replace(one, train_labels=one.train_labels.int()).key != one.key
    assert dataclasses.replace(one, train_images=one.train_images.flatten(1)).key != one.key
    assert len(own_split(validation=False).validation_labels) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"name": "standard"},
            "must be 1 to 30 lower-case .*, and not 'standard' or 'published' or 'digits'; got 'standard'",
        ),
        ({"name": "My data"}, "got 'My data'"),
        ({"train": None}, "train must be a pair of tensors, images and labels; got NoneType"),
        ({"train": (np.zeros((3, 2)), np.zeros(3))}, r"images and labels; got \['ndarray', 'ndarray'\]"),
        ({"test": (torch.zeros(()), torch.zeros(3).long())}, r"images of test must be float32, .* of shape \(\)"),
        ({"train": (torch.zeros(3, 2).half(), torch.zeros(3).long())}, "images of train .* got torch.float16"),
        ({"train": (torch.zeros(3, 2), torch.zeros(2).long())}, "3 images but 2 labels"),
        (
            {"train": (torch.zeros(3, 2), torch.tensor(1))},
            r"labels of train must be integers \[n\]; got .* of shape \(\)",
        ),
        ({"train": (torch.zeros(0, 2), torch.zeros(0).long())}, "the data set is empty"),
        ({"test": (torch.zeros(3, 2), torch.zeros(3))}, r"labels of test must be integers \[n\]; got torch.float32"),
        ({"test": (torch.zeros(3, 4), torch.zeros(3).long())}, r"those of test have \(4,\), those of train \(2,\)"),
    ],
)
def test_what_is_no_split_is_refused(options, words):
    good = {"name": "own", "train": (torch.zeros(3, 2), torch.zeros(3).long())}
    good["test"] = good["train"]
    options = good | options
    with pytest.raises(ValueError, match=words):
        snipnb.Split.of(options.pop("name"), **options)


def test_a_split_goes_by_its_key(registered):
    split = own_split()
    config = RunConfig(model="own", split=split)
    assert config.split == split.key
    assert snipnb.load_split(split) is split
    assert snipnb.load_split(split.key) is split
    assert RunConfig(model="own", split=split.key) == config
    with pytest.raises(
        ValueError, match=r"split must be one of 'standard', 'published', 'digits', 'own-\w{16}'; got 'own'"
    ):
        RunConfig(split="own")
    with pytest.raises(ValueError, match="sample=True takes the shipped sample of MNIST"):
        RunConfig(split=split, sample=True)


# --- grids ------------------------------------------------------------------------------------------------------------


def own_grid(split, **changes):
    options = {"criteria": ["snip", "random"], "sparsities": [0.5], "seeds": range(2), "model": "own", "split": split}
    return snipnb.grid(**(options | {"recipe": RECIPE} | changes))


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_grid_is_kept_and_resumed(registered, tmp_path, monkeypatch, jobs):
    split = own_split()
    runs = snipnb.run_grid(own_grid(split), store=tmp_path, jobs=jobs)
    assert runs["split"].unique().tolist() == [split.key]
    assert set(Store(tmp_path).runs()) == {run_key(c) for c in own_grid(split)}
    model = networks.MODELS["own"](seed=1)
    networks.set_running_statistics(model, split.train_images)
    mask = snipnb.keep_mask(snipnb.snip(model, split.train_images, split.train_labels), 0.5, ties="stable")
    history = snipnb.train(networks.MODELS["own"](seed=1), split, mask=mask, recipe=RECIPE, data_seed=1)
    one = runs[(runs["criterion"] == "snip") & (runs["init_seed"] == 1)]
    assert one["train_loss"].to_numpy() == pytest.approx(history["train_loss"].to_numpy(), rel=1e-5)
    monkeypatch.setattr(grid, "_train_group", None)  # nothing is trained again
    again = snipnb.run_grid(own_grid(own_split()), store=tmp_path, jobs=1)
    pd.testing.assert_frame_equal(runs, again)


def test_other_images_and_other_versions_are_other_runs(registered, monkeypatch):
    config = own_grid(own_split())[0]
    keys = {run_key(config), run_key(own_grid(own_split(seed=1))[0])}
    monkeypatch.setitem(networks.MODELS, "own", snipnb.Network(Own, version=2))
    keys.add(run_key(config))
    assert len(keys) == 3
    shipped = run_key(RunConfig())
    monkeypatch.setitem(networks.MODELS, "lenet5", snipnb.Network(snipnb.lenet5, version=1))
    assert run_key(RunConfig()) != shipped


def test_a_network_without_a_version_is_not_kept(registered, monkeypatch, tmp_path):
    monkeypatch.setitem(networks.MODELS, "own", snipnb.Network(Own))
    with pytest.warns(
        UserWarning, match=r"runs of network 'own' are not kept, because .* with Network\(\.\.\., version=1\)"
    ):
        runs = snipnb.run_grid(own_grid(own_split(), seeds=[0]), store=tmp_path, jobs=1)
    assert len(runs) == 2 * RECIPE.epochs
    assert not Store(tmp_path).runs()


def test_what_is_no_network_is_refused(registered, monkeypatch):
    with pytest.raises(ValueError, match="init must be one of 'pytorch'; got 'xavier_normal'"):
        RunConfig(model="own", init="xavier_normal")
    monkeypatch.setitem(networks.MODELS, "My net", snipnb.Network(Own))
    with pytest.raises(ValueError, match=r"the name of a network must have 1 to 30 lower-case .*; got 'My net'"):
        RunConfig(model="My net")
    with pytest.raises(ValueError, match="what build returns must be a Module; got 3"):
        snipnb.Network(lambda: 3)()
    with pytest.raises(
        ValueError, match=r"build must make a network when it is called without arguments; .*in_features"
    ):
        snipnb.Network(nn.Linear)()
    with pytest.raises(ValueError, match=r"version must be an integer; got 1\.5"):
        snipnb.Network(Own, version=1.5)
    monkeypatch.setitem(networks.MODELS, "bare", Own)
    with pytest.raises(ValueError, match="network 'bare' must be a Network; got"):
        RunConfig(model="bare")


def test_what_is_no_criterion_is_refused(registered, monkeypatch):
    monkeypatch.setitem(criteria.CRITERIA, "bare", lambda start: {})
    with pytest.raises(ValueError, match="criterion 'bare' must be a Criterion; got"):
        RunConfig(criterion="bare")
    monkeypatch.setitem(criteria.CRITERIA, "lost", snipnb.Criterion(salience_of="nobody", version=1))
    with pytest.raises(ValueError, match=r"salience_of of criterion 'lost' must be one of .*; got 'nobody'"):
        RunConfig(criterion="lost")
    monkeypatch.setitem(criteria.CRITERIA, "lost", snipnb.Criterion(salience_of="snip_inverted", version=1))
    with pytest.raises(ValueError, match=r"salience_of of criterion 'lost' must be one of .*; got 'snip_inverted'"):
        RunConfig(criterion="lost")  # its version would not be part of the run's key


@pytest.mark.parametrize(
    ("salience", "words"),
    [
        (lambda start: {"first.weight": torch.ones(3, 1, 3, 3)}, "names of salience of 'broken' and model differ"),
        (lambda start: {n: p.tolist() for n, p in start.model.named_parameters()}, "must be a Tensor; got"),
    ],
)
def test_a_broken_salience_is_not_kept(registered, monkeypatch, tmp_path, salience, words):
    monkeypatch.setitem(criteria.CRITERIA, "broken", snipnb.Criterion(salience, version=1))
    configs = own_grid(own_split(), criteria=["broken"], seeds=[0])
    with pytest.raises(ValueError, match=words):
        snipnb.run_grid(configs, store=tmp_path, jobs=1)
    repaired = snipnb.Criterion(lambda start: dict(start.model.named_parameters()), version=1)  # with a gradient
    monkeypatch.setitem(criteria.CRITERIA, "broken", repaired)
    assert len(snipnb.run_grid(configs, store=tmp_path, jobs=1)) == RECIPE.epochs


def test_a_network_that_is_the_same_every_time_is_not_trained_twice():
    one = Own()
    network = snipnb.Network(lambda: one)
    first = network(seed=0)
    snipnb.train(first, own_split(), recipe=RECIPE)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), network(seed=1).parameters(), strict=True))
    assert snipnb.Network(lambda: snipnb.lenet5(seed=3))(seed=5).conv1.weight.shape == (6, 1, 5, 5)  # draws inside


def test_frozen_networks_and_buffers_of_one_memory():
    model = Own().requires_grad_(False)
    with pytest.raises(ValueError, match=r"the model \(Own\) has no parameter that requires a gradient"):
        snipnb.train(model, own_split(), recipe=RECIPE)
    model = Own()
    model.register_buffer("one", torch.zeros(3))
    model.register_buffer("same", model.one[:2])
    snipnb.train(model, own_split(), recipe=RECIPE)


def test_parameters_that_take_part_in_some_steps_only_resume(monkeypatch):
    class Skipping(Own):
        def forward(self, x):
            h = self.norm(self.first(x)).relu()
            if not self.training or float(torch.rand(())) < 0.5:
                h = h + self.around(x)
            return self.last(h.flatten(1))

    def trained(checkpoint):
        model = snipnb.Network(Skipping)(seed=0)
        recipe = snipnb.Recipe(epochs=4, batch_size=30)
        snipnb.train_together([model], own_split(), recipe=recipe, data_seed=2, checkpoint=checkpoint)
        return model

    kept = Memory(2)
    whole = trained(kept)
    kept.upto = 4
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), trained(kept).parameters(), strict=True))


def test_images_that_change_later_do_not_change_a_split():
    images, labels = torch.randn(20, 4), torch.arange(20, dtype=torch.int32) % 3
    split = snipnb.Split.of("own", train=(images, labels), test=(images, labels))
    before = split.key
    images.zero_()
    assert split.train_images.any()
    assert dataclasses.replace(split).key == before
    assert split.train_labels.dtype == torch.int64


def test_one_image_too_many_for_whole_batches(registered, monkeypatch):
    draw = torch.Generator().manual_seed(0)
    images, labels = torch.randn(1001, 1, 6, 6, generator=draw), torch.randint(3, (1001,), generator=draw)
    split = snipnb.Split.of("many", train=(images, labels), test=(images[:20], labels[:20]))
    recipe = snipnb.Recipe(epochs=1, batch_size=77)
    runs = snipnb.run_grid(own_grid(split, criteria=["snip"], seeds=[0], recipe=recipe), jobs=1)
    assert len(runs) == 1


@pytest.mark.parametrize("last", [nn.ReLU, nn.GELU])  # stacked, and through its own layers
def test_a_last_batch_of_one_is_refused_before_training(last):
    split = own_split()  # 100 images
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.BatchNorm1d(4), last(), nn.Linear(4, 3))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"one image \(100 images, batch_size 33\).* \(Sequential\) cannot train"):
        snipnb.train(model, split, recipe=snipnb.Recipe(epochs=1, batch_size=33))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert len(snipnb.train(model, split, recipe=snipnb.Recipe(epochs=1, batch_size=34))) == 1
    with_images = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), last(), nn.Flatten(), nn.Linear(32, 3))
    assert len(snipnb.train(with_images, split, recipe=snipnb.Recipe(epochs=1, batch_size=33))) == 1


def test_a_worker_whose_images_have_gone_says_so(registered, tmp_path, monkeypatch):
    monkeypatch.setenv("SNIPNB_PROGRESS", "0")
    config = own_grid(own_split())[0]
    identity.OWN_SPLITS.clear()
    before = dict(networks.MODELS)
    try:
        with pytest.raises(grid.StoreError, match=r"the images of split 'own-.*' are missing from"):
            grid._train_quietly(-1, ({}, {"own": before["own"]}), "name", [config], tmp_path, "cpu", wait=False)
    finally:
        networks.MODELS.clear()
        networks.MODELS.update(before)
