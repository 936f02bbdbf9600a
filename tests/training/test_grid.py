import dataclasses
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import snipnb
from snipnb import _files
from snipnb import networks as models
from snipnb.pruning import criteria, densities
from snipnb.publish import profiles
from snipnb.publish.stats import overlap
from snipnb.studies import grids_of
from snipnb.training import grid
from snipnb.training import runs as identity
from snipnb.training.runs import RunConfig, group_name, groups_of, run_key
from snipnb.training.store import Store

RECIPE = snipnb.Recipe(epochs=2, batch_size=500, learning_rate=0.01)


def small_grid(**changes):
    options = {"criteria": ["snip", "random"], "sparsities": [0.5, 0.9], "seeds": range(2), "sample": True}
    return snipnb.grid(**(options | {"salience_images": 100, "recipe": RECIPE} | changes))


@pytest.fixture(scope="module")
def quiet():
    """The table of one undisturbed run."""
    return snipnb.run_grid(small_grid(), jobs=1, group_size=2)


def test_the_table(quiet):
    assert len(quiet) == 8 * 2
    assert list(quiet["epoch"])[:4] == [1, 2, 1, 2]
    assert list(quiet["criterion"])[::4] == ["snip", "random"] * 2
    assert set(quiet.loc[quiet["sparsity"] == 0.9, "kept"]) == {61_706 - 55_535}
    assert (quiet.groupby("sparsity")["train_loss"].mean() > 0).all()
    assert quiet["test_error"].between(0, 1).all()


def test_runs_are_what_training_alone_makes_of_the_same_start(quiet):
    split = snipnb.load_split("standard", sample=True)
    model = snipnb.lenet5(seed=1)
    salience = snipnb.snip(model, split.train_images[:100], split.train_labels[:100])
    history = snipnb.train(
        model, split, mask=snipnb.keep_mask(salience, 0.9, ties="stable"), recipe=RECIPE, data_seed=1
    )
    run = quiet[(quiet["criterion"] == "snip") & (quiet["sparsity"] == 0.9) & (quiet["init_seed"] == 1)]
    assert run["train_loss"].to_numpy() == pytest.approx(history["train_loss"].to_numpy(), rel=1e-3)
    assert run["test_error"].to_numpy() == pytest.approx(history["test_error"].to_numpy(), abs=0.005)


def test_runs_of_several_recipes_are_one_group_and_come_out_as_by_themselves(quiet, tmp_path):
    others = [
        dataclasses.replace(RECIPE, learning_rate=0.003),
        dataclasses.replace(RECIPE, optimiser="sgd", schedule="constant", learning_rate=0.1),
    ]
    longer = dataclasses.replace(RECIPE, epochs=3)
    options = {"criteria": ["snip"], "sparsities": [0.0, 0.9], "seeds": [1]}
    configs = [c for recipe in [*others, longer] for c in small_grid(recipe=recipe, **options)]
    assert [len(group) for group in groups_of(configs)] == [4, 2]  # all must have as many epochs
    together = snipnb.run_grid(configs, store=tmp_path)
    for k, recipe in enumerate([*others, longer]):
        alone = snipnb.run_grid(small_grid(recipe=recipe, **options))
        mine = together.iloc[slice(4 * k, 4 * k + 4) if k < 2 else slice(8, None)].reset_index(drop=True)
        assert mine["train_loss"].to_numpy() == pytest.approx(alone["train_loss"].to_numpy(), rel=1e-3)
        pd.testing.assert_frame_equal(mine.iloc[:, :-3], alone.iloc[:, :-3])
    assert together["train_loss"].nunique() == len(together)


def test_spread_over_processes_or_threads_the_table_is_the_same(quiet, tmp_path):
    pd.testing.assert_frame_equal(snipnb.run_grid(small_grid(), store=tmp_path, jobs=2, group_size=2), quiet)
    with joblib.parallel_config(backend="threading", n_jobs=2):
        pd.testing.assert_frame_equal(snipnb.run_grid(small_grid(), group_size=2), quiet)


WORKERS_LEAVE = """
from joblib.externals.loky import process_executor
import snipnb

def leaving():
    process_executor._MAX_MEMORY_LEAK_SIZE = -(2**62)
    process_executor._MEMORY_LEAK_CHECK_DELAY = 0
    return snipnb.lenet5()

snipnb.MODELS["leaving"] = snipnb.Network(leaving, version=1)
common = {"model": "leaving", "sample": True, "recipe": snipnb.Recipe(epochs=1, batch_size=500)}
grid = snipnb.grid(criteria=["random"], sparsities=[0.5], seeds=range(5), **common)
print(len(snipnb.run_grid(grid, jobs=2, group_size=1)))
"""


def test_workers_that_joblib_replaces_do_not_stop_the_others_where_warnings_are_errors():
    command = [sys.executable, "-W", "error:A worker stopped:UserWarning", "-c", WORKERS_LEAVE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == "5\n", done.stderr


def test_a_finished_grid_is_looked_up(quiet, tmp_path, monkeypatch):
    snipnb.run_grid(small_grid(), store=tmp_path, jobs=1, group_size=2)
    monkeypatch.setattr(grid, "train_together", lambda *_, **__: pytest.fail("trained again"))
    pd.testing.assert_frame_equal(snipnb.run_grid(small_grid(), store=tmp_path, group_size=2), quiet)


def test_an_interrupted_grid_goes_on_from_the_last_epoch(quiet, tmp_path, monkeypatch):
    train, done = grid.train_together, []

    def interrupted(models, split, *, checkpoint, **options):
        class Stops:
            load = staticmethod(checkpoint.load)

            def save(self, tensors, rows):
                checkpoint.save(tensors, rows)
                done.append(len(rows))
                if len(done) == 5:
                    raise KeyboardInterrupt

        return train(models, split, checkpoint=Stops(), **options)

    monkeypatch.setattr(grid, "train_together", interrupted)
    with pytest.raises(KeyboardInterrupt):
        snipnb.run_grid(small_grid(), store=tmp_path, jobs=1, group_size=2)
    assert done == [1, 2, 1, 2, 1]
    names = group_names()
    assert [(tmp_path / f"{name}.json").exists() for name in names] == [True, True, False, False]
    assert [(Store(tmp_path).facts(name) or {"rows": []})["rows"] != [] for name in names] == [
        False,
        False,
        True,
        False,
    ]
    found = snipnb.run_grid(small_grid(), store=tmp_path, jobs=1, group_size=2)
    assert done[5:] == [2, 1, 2]
    pd.testing.assert_frame_equal(found, quiet)


SCRIPT = """
import sys; sys.path.insert(0, {tests!r})
from test_grid import small_grid
import snipnb
if __name__ == "__main__":
    snipnb.run_grid(small_grid(), store={store!r}, jobs={jobs}, group_size=2)
"""


def start(store, jobs=1):
    script = SCRIPT.format(tests=str(Path(__file__).parent), store=str(store), jobs=jobs)
    path = Path(store).parent / "script.py"
    path.write_text(script)
    return subprocess.Popen([sys.executable, str(path)], start_new_session=True)


def test_killed_again_and_again_it_ends_in_the_same_table(quiet, tmp_path):
    store = tmp_path / "runs"
    for _ in range(3):
        process = start(store)
        before, deadline = reached(store), time.time() + 60
        while reached(store) == before and process.poll() is None and time.time() < deadline:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert reached(store) > 0
    pd.testing.assert_frame_equal(snipnb.run_grid(small_grid(), store=store, jobs=1, group_size=2), quiet)


def group_names():
    return [group_name(group) for group in groups_of(small_grid(), 2)]


def reached(store):
    """Epochs that are kept in a store."""
    place = Store(store)
    unfinished = (place.facts(name) for name in group_names())
    return len(place.runs()) + sum(len(facts["rows"]) for facts in unfinished if facts is not None)


def test_two_processes_share_a_store(quiet, tmp_path):
    store = tmp_path / "runs"
    processes = [start(store), start(store)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert len(list(store.glob("*.json"))) == 4
    assert len(Store(store).runs()) == 8
    pd.testing.assert_frame_equal(snipnb.run_grid(small_grid(), store=store, jobs=1, group_size=2), quiet)


def test_a_damaged_record_is_done_again(quiet, tmp_path):
    snipnb.run_grid(small_grid(), store=tmp_path, jobs=1, group_size=2)
    path = tmp_path / f"{group_names()[0]}.json"
    before = path.read_bytes()
    path.write_bytes(before[:-40])
    pd.testing.assert_frame_equal(snipnb.run_grid(small_grid(), store=tmp_path, jobs=1, group_size=2), quiet)
    assert path.with_name(f"{path.name}.damaged").read_bytes() == before[:-40]


# --- what a group is, and what a run is -------------------------------------------------------------------------------


def test_groups_are_fixed_by_the_grid():
    configs = small_grid(sparsities=[0.1, 0.5, 0.9], seeds=range(3))
    groups = groups_of(configs, 4)
    assert [len(group) for group in groups] == [3, 3] * 3
    assert sorted(map(str, groups_of(configs[::-1], 4))) == sorted(map(str, groups))
    assert groups_of(configs * 2, 4) == groups
    assert all(len({c.init_seed for c in group}) == 1 for group in groups)


def trained(monkeypatch):
    """A list that fills with the runs of every group that is trained from now on."""
    names, train = [], grid._train_group
    monkeypatch.setattr(
        grid,
        "_train_group",
        lambda name, group, *rest, **kw: (names.append(group), train(name, group, *rest, **kw)),
    )
    return names


def test_a_grid_that_grows_trains_what_is_new_alone(quiet, tmp_path, monkeypatch):
    snipnb.run_grid(small_grid(), store=tmp_path, jobs=1, group_size=2)
    groups = trained(monkeypatch)
    grown = snipnb.run_grid(small_grid(criteria=["snip", "magnitude", "random"]), store=tmp_path, jobs=1, group_size=4)
    assert {c.criterion for group in groups for c in group} == {"magnitude"}
    assert sum(len(group) for group in groups) == 4
    old = grown[grown["criterion"] != "magnitude"].reset_index(drop=True)
    pd.testing.assert_frame_equal(old, quiet)


def test_a_run_that_is_kept_stays_as_it_is(quiet, tmp_path):
    """Two grids that overlap, trained side by side: what was finished first counts, and no run is kept twice."""
    place, first = Store(tmp_path), run_key(small_grid()[0])
    place.finish(
        "a-first", {first: {"config": {}, "kept": 1, "collapsed": [], "history": {"epoch": [1]}}}, {"seconds": 1}
    )
    snipnb.run_grid(small_grid()[1:], store=tmp_path, jobs=1)
    other = {key: run for key, run in place.runs().items() if key != first}
    place.finish("another", {first: {"kept": 2}} | {key: {"kept": 3} for key in other}, {"seconds": 2})
    assert place.runs()[first]["kept"] == 1
    assert not (tmp_path / "another.json").exists()


def test_the_identity_of_a_run_is_what_is_declared():
    config = RunConfig(criterion="snip", sparsity=0.9, init_seed=3, sample=True, recipe=RECIPE)
    key = run_key(config)
    assert key.startswith("lenet5-standard-snip-0.9-seed3-")
    assert key == run_key(dataclasses.replace(config))
    same = dataclasses.replace(config, recipe=dataclasses.replace(RECIPE, weight_decay=0))  # 0 is 0.0
    assert key == run_key(same)
    others = [
        dataclasses.replace(config, **change)
        for change in (
            {"criterion": "exact"},
            {"sparsity": 0.95},
            {"init_seed": 4},
            {"data_seed": 4},
            {"model": "lenet_300_100"},
            {"init": "xavier_normal"},
            {"split": "published"},
            {"sample": False},
            {"salience_images": 10},
            {"recipe": snipnb.Recipe()},
        )
    ]
    others += [
        dataclasses.replace(config, recipe=dataclasses.replace(RECIPE, **{name: value}))
        for name, value in {
            "epochs": 9,
            "batch_size": 9,
            "optimiser": "sgd",
            "learning_rate": 0.9,
            "schedule": "step",
            "weight_decay": 0.9,
            "momentum": 0.5,
            "decay": 0.5,
            "decay_every": 9,
        }.items()
    ]
    assert len({key, *map(run_key, others)}) == 1 + len(others) == 20


def test_every_field_of_today_counts():
    """Whoever adds a field adds it nowhere else: FIRST_FIELDS stay what they were when identities were first declared."""
    assert {name: len(fields) for name, fields in identity.FIRST_FIELDS.items()} == {"RunConfig": 10, "Recipe": 9}
    for kind in (RunConfig, snipnb.Recipe):
        assert identity.FIRST_FIELDS[kind.__name__] <= {f.name for f in dataclasses.fields(kind)}


def test_versions_count(monkeypatch):
    configs = [RunConfig(criterion=name) for name in ("snip", "snip_shuffled", "random")]
    before = [run_key(c) for c in configs]
    monkeypatch.setattr(identity, "NUMERICS", 2)
    assert not set(before) & {run_key(c) for c in configs}
    monkeypatch.undo()
    raised = dataclasses.replace(criteria.CRITERIA["snip"], version=2)
    monkeypatch.setitem(criteria.CRITERIA, "snip", raised)
    monkeypatch.setitem(identity.SHIPPED, "snip", raised)
    after = [run_key(c) for c in configs]
    assert [a == b for a, b in zip(before, after, strict=True)] == [
        False,
        False,
        True,
    ]  # shuffled takes SNIP's salience


def test_a_table_of_several_machines_says_so(quiet, tmp_path):
    assert [row["runs"] for row in quiet.attrs["trained_by"]] == [8]
    (maker,) = quiet.attrs["trained_by"]
    assert maker["torch"] == torch.__version__
    assert maker["device"] == "cpu"
    assert maker["seconds"] > 0
    snipnb.run_grid(small_grid()[:4], store=tmp_path, jobs=1)
    place = Store(tmp_path)
    others = {run_key(c): {} for c in small_grid()[4:]}
    some = next(iter(place.runs().values()))
    run = {name: some[name] for name in ("config", "kept", "collapsed", "history")}
    elsewhere = some["trained_by"] | {"device": "NVIDIA", "torch": "2.11.0"}
    place.finish("elsewhere", dict.fromkeys(others, run), elsewhere)
    with pytest.warns(UserWarning, match="runs of one table were trained with several") as said:
        runs = snipnb.run_grid(small_grid(), store=tmp_path)
    minor = ".".join(torch.__version__.split(".")[:2])
    assert [str(w.message).split(" with ")[1] for w in said] == [
        "several devices: NVIDIA, cpu",
        f"several versions of PyTorch: 2.11, {minor}",
    ]
    assert [row["runs"] for row in runs.attrs["trained_by"]] == [4, 4]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("criterion", "snap"),
        ("model", "alexnet"),
        ("init", "zeros"),
        ("split", "train"),
        ("sparsity", 1.0),
        ("sparsity", -0.1),
        ("sparsity", "0.5"),
        ("sparsity", float("nan")),
        ("init_seed", -1),
        ("data_seed", 1.5),
        ("salience_images", 0),
        ("recipe", "adam"),
        ("criterion", []),
        ("model", None),
        ("init_seed", 2**32),
    ],
)
def test_bad_configurations_are_named(field, value):
    with pytest.raises(ValueError, match=f"{field} must be .*; got"):
        RunConfig(**{field: value})


def test_what_is_no_run_is_refused():
    with pytest.raises(ValueError, match="must be a RunConfig"):
        snipnb.run_grid([{"criterion": "snip"}])
    with pytest.raises(ValueError, match=r"device must be one of 'cpu'.*; got 'gpu'"):
        snipnb.run_grid([], device="gpu")
    with pytest.raises(ValueError, match="group_size must be an integer of at least 1; got 0"):
        snipnb.run_grid(small_grid(), group_size=0)
    assert len(snipnb.run_grid([])) == 0
    columns = {"criterion", "sparsity", "epoch", "test_error"}
    assert columns <= set(snipnb.run_grid([])), "an empty table could not be written and read"


def test_layer_collapse_is_reported():
    config = RunConfig(criterion="magnitude", sparsity=0.99, sample=True, recipe=dataclasses.replace(RECIPE, epochs=1))
    runs = snipnb.run_grid([config], jobs=1)
    with pytest.warns(snipnb.LayerCollapseWarning):
        mask = snipnb.keep_mask(snipnb.magnitude_salience(snipnb.lenet5(seed=0)), 0.99, ties="stable")
    assert runs["collapsed"].tolist() == [len(snipnb.collapsed_layers(mask))]


# --- criteria, grids, command line ------------------------------------------------------------------------------------


def drawn(name, init, seed):
    return models.MODELS[name](init=init, seed=seed)


@pytest.fixture(scope="module")
def beginning():
    images, labels = (t[:100] for t in snipnb.load_mnist("train", sample=True))
    draw = partial(drawn, "lenet5", "pytorch")
    return criteria.Start(draw(1), images, labels, 1, "pytorch", draw)


def mask_of(name, beginning, sparsity=0.95):
    return criteria.mask_for(name, beginning, criteria.salience_for(name, beginning), sparsity)


def counts(mask):
    return {n: int(m.sum()) for n, m in mask.items()}


def test_shuffling_keeps_counts_and_moves_places(beginning):
    snip, shuffled = mask_of("snip", beginning), mask_of("snip_shuffled", beginning)
    assert counts(snip) == counts(shuffled)
    assert overlap(snip, shuffled) < 0.15


def test_the_inverted_mask_has_the_counts_of_snip_and_the_smallest_saliences(beginning):
    snip, inverted = (mask_of(name, beginning, 0.6) for name in ("snip", "snip_inverted"))
    assert counts(snip) == counts(inverted)
    salience = snipnb.snip(beginning.model, beginning.images, beginning.labels)
    for name, kept in inverted.items():
        if bool(kept.any()) and not bool(kept.all()):
            assert salience[name][kept].abs().max() <= salience[name][~kept].abs().min()
    again = mask_of("snip_inverted", beginning, 0.6)
    assert overlap(inverted, again) == 1


def test_float32_differences_come_in_steps_and_rank_like_exact_ones():
    draw = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    for p in model.parameters():
        nn.init.normal_(p, std=0.5, generator=draw)
    images, labels = torch.randn(40, 6, generator=draw), torch.randint(3, (40,), generator=draw)
    found = criteria.salience_for("exact_float32", criteria.Start(model, images, labels, seed=0))
    exact = snipnb.exact_salience(model, images, labels)
    assert {name: s.shape for name, s in found.items()} == {name: s.shape for name, s in exact.items()}
    loss = nn.functional.cross_entropy(model(images), labels)
    step = float(np.spacing(np.float32(loss.item() / 2)))  # of losses down to half of it
    for name, salience in found.items():
        assert (salience - exact[name]).abs().max() < 10 * step
        assert torch.equal(
            (salience / step).round() * step, salience
        )  # a difference of two float32 numbers of this size


def test_masks_of_other_weights_are_those_of_the_network_that_is_drawn(beginning):
    other = beginning.draw(criteria.OTHER_SEEDS + 1)
    expected = snipnb.keep_mask(snipnb.snip(other, beginning.images, beginning.labels), 0.95, ties="stable")
    assert overlap(mask_of("snip_redrawn", beginning), expected) == 1
    assert overlap(mask_of("snip", beginning), expected) < 0.2


def test_a_control_by_other_weights_takes_their_salience_also_where_it_is_another_criterions(beginning, monkeypatch):
    controls = criteria.controls_of("snip_inverted", criteria.CRITERIA["snip_inverted"])
    monkeypatch.setattr(criteria, "CRITERIA", criteria.CRITERIA | controls)
    other = dataclasses.replace(beginning, model=beginning.draw(criteria.OTHER_SEEDS + 1))
    found = mask_of("snip_inverted_redrawn", beginning)
    assert counts(found) == counts(mask_of("snip", other))
    assert overlap(found, mask_of("snip_inverted", other)) == 1


@pytest.mark.parametrize("name", ["grasp", "force"])
def test_controls_of_a_criterion_keep_its_counts_or_take_other_weights(beginning, name):
    own, shuffled = mask_of(name, beginning), mask_of(f"{name}_shuffled", beginning)
    assert counts(own) == counts(shuffled)
    assert overlap(own, shuffled) < 0.2
    other = dataclasses.replace(beginning, model=beginning.draw(criteria.OTHER_SEEDS + 1))
    assert overlap(mask_of(f"{name}_redrawn", beginning), mask_of(name, other)) == 1
    assert overlap(mask_of(f"{name}_redrawn", beginning), own) < 0.3
    assert criteria.ranked_by(f"{name}_shuffled") == name


def test_mean_densities_are_those_of_other_networks(beginning):
    kept = counts(mask_of("snip_densities", beginning))
    seeds = range(criteria.OTHER_SEEDS + 5, criteria.OTHER_SEEDS + 10)
    masks = [
        snipnb.keep_mask(snipnb.snip(beginning.draw(seed), beginning.images, beginning.labels), 0.95, ties="stable")
        for seed in seeds
    ]
    for name, number in kept.items():
        assert abs(number - sum(int(m[name].sum()) for m in masks) / 5) < 1
    with pytest.raises(ValueError, match="its Start must have draw"):
        criteria.CRITERIA["snip_densities"].salience(dataclasses.replace(beginning, draw=None))


def test_rules_of_thumb_have_their_densities(beginning):
    for name, rule in densities.rules().items():
        expected = rule(beginning.model, 0.95, "pytorch")
        for layer, number in counts(mask_of(name, beginning)).items():
            assert abs(number - expected[layer] * dict(beginning.model.named_parameters())[layer].numel()) < 1


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_criterion_of_your_own_runs_like_the_others(jobs, tmp_path, monkeypatch):
    def lowest_index(start):
        return {n: -torch.arange(p.numel()).view(p.shape) - 1.0 for n, p in start.model.named_parameters()}

    mine = snipnb.Criterion(lowest_index)
    monkeypatch.setitem(criteria.CRITERIA, "mine", mine)
    monkeypatch.setattr(grid, "_said", set())
    configs = [
        RunConfig(criterion="mine", sparsity=0.9, init_seed=seed, sample=True, recipe=RECIPE) for seed in range(2)
    ]
    with pytest.warns(UserWarning, match="'mine' are not kept, because it has no version"):
        runs = snipnb.run_grid(configs, jobs=jobs, store=tmp_path)
    assert len(runs) == 2 * RECIPE.epochs
    assert not Store(tmp_path).runs()
    if jobs == 2:
        return
    snipnb.run_grid(configs[:1], jobs=1, store=tmp_path)  # said once
    monkeypatch.setitem(criteria.CRITERIA, "mine", dataclasses.replace(mine, version=1))
    pd.testing.assert_frame_equal(snipnb.run_grid(configs, jobs=jobs, store=tmp_path), runs)
    assert set(Store(tmp_path).runs()) == {run_key(c) for c in configs}
    groups = trained(monkeypatch)
    snipnb.run_grid(configs, jobs=1, store=tmp_path)
    assert not groups
    monkeypatch.setitem(criteria.CRITERIA, "mine", dataclasses.replace(mine, version=2))
    snipnb.run_grid(configs, jobs=1, store=tmp_path)
    assert [len(group) for group in groups] == [1, 1]


def test_a_criterion_of_your_own_under_a_shipped_name_is_not_taken_for_it(monkeypatch):
    config = RunConfig(criterion="snip")
    before = run_key(config)
    monkeypatch.setitem(criteria.CRITERIA, "snip", dataclasses.replace(criteria.CRITERIA["random"], uses_images=True))
    assert run_key(config) != before
    follows = snipnb.Criterion(salience_of="mine", version=1)
    monkeypatch.setitem(criteria.CRITERIA, "mine", snipnb.Criterion(lambda start: {}))
    monkeypatch.setitem(criteria.CRITERIA, "follows", follows)
    assert identity.unversioned(RunConfig(criterion="follows")) == ["criterion 'follows'"]


def test_a_worker_forgets_what_it_was_given_before(monkeypatch):
    monkeypatch.setattr(grid, "_train_group", lambda *task, **options: None)
    before = dict(criteria.CRITERIA)
    monkeypatch.setenv("SNIPNB_PROGRESS", "0")
    try:
        criteria.CRITERIA["mine"] = criteria.CRITERIA["snip"] = before["random"]
        group = [RunConfig(criterion="random", sample=True)]
        grid._train_quietly(-1, ({"yours": before["exact"]}, {}), "name", group, None, "cpu")
        assert dict(criteria.CRITERIA) == identity.SHIPPED | {"yours": before["exact"]}
    finally:
        criteria.CRITERIA.clear()
        criteria.CRITERIA.update(before)


@pytest.mark.parametrize("name", criteria.CRITERIA)
def test_every_criterion_ranks_every_parameter(name, examples):
    images, labels = (t[:20] for t in examples)
    draw = partial(drawn, "lenet5", "pytorch")
    start = criteria.Start(draw(2), images, labels, 2, "pytorch", draw)
    masks = [criteria.mask_for(name, start, criteria.salience_for(name, start), 0.9) for _ in range(2)]
    shapes = {n: p.shape for n, p in start.model.named_parameters()}
    assert {n: m.shape for n, m in masks[0].items()} == shapes
    assert snipnb.num_kept(masks[0]) == 61_706 - snipnb.num_removed(61_706, 0.9)
    assert all(torch.equal(masks[0][n], masks[1][n]) for n in shapes)


def test_a_criterion_returns_a_dictionary(examples, monkeypatch):
    monkeypatch.setitem(criteria.CRITERIA, "vector", criteria.Criterion(lambda start: torch.zeros(61_706)))
    with pytest.raises(ValueError, match=r"criterion 'vector' must return a dictionary, .*; got a Tensor"):
        criteria.salience_for("vector", criteria.Start(snipnb.lenet5(), *examples, 0))


def test_names_stand_beside_their_runs():
    recipe = snipnb.Recipe(epochs=2, batch_size=500)
    configs = {
        "a": snipnb.grid(criteria=["random"], sparsities=[0.5, 0.9], seeds=[0], sample=True, recipe=recipe),
        "b": snipnb.grid(criteria=["magnitude"], sparsities=[0.5], seeds=[0], sample=True, recipe=recipe),
    }
    runs = snipnb.run_grid(configs, jobs=1)
    assert runs.groupby("name")["criterion"].unique().map(list).to_dict() == {"a": ["random"], "b": ["magnitude"]}
    assert runs["name"].tolist() == ["a"] * 4 + ["b"] * 2


TRAINING = ["02_snip_vs_exact", "03_lenet5_table", "05_second_order", "06_rules_of_thumb"]


@pytest.mark.parametrize("profile", profiles.available_profiles())
@pytest.mark.parametrize("notebook", TRAINING)
def test_every_profile_makes_the_grids_of_the_notebooks(profile, notebook):
    found = profiles.load_profile(profile)
    wanted = grids_of(notebook, found.parameters(notebook))
    assert wanted
    for configs in wanted:
        assert len(configs) == len(set(configs))
        assert {c.sample for c in configs} == {found.common["sample"]}
    with pytest.raises(ValueError, match="notebook 01_salience_derivation trains nothing"):
        grids_of("01_salience_derivation", {})


def test_every_long_run_that_the_full_profile_asks_for_is_kept():
    """`make figures PROFILE=full` is an hour and a half from kept runs, and days without them."""
    root = _files.project_root()
    if root is None:
        pytest.skip("needs the runs of a checkout")
    kept, full = Store(root / "figures/full/runs").runs(), profiles.load_profile("full")
    for notebook in TRAINING:
        for configs in grids_of(notebook, full.parameters(notebook)):
            missing = [c for c in configs if run_key(c) not in kept]
            assert not missing, (
                f"{len(missing)} of {len(configs)} runs of {notebook} are not kept, the first is {missing[0]}"
            )


def test_the_command_line_does_what_a_notebook_does(tmp_path, capsys):
    from snipnb.__main__ import main

    text = "about: tiny\ncommon: {threads: 1, sample: true}\nnotebooks:\n  03_lenet5_table: {num_runs: 1, num_recipe_runs: 1, epochs: 1}\n"
    tiny = tmp_path / "tiny.yaml"
    tiny.write_text(text)
    assert main(["run", "03", "--profile", str(tiny), "--jobs", "1", "--store", str(tmp_path / "s")]) == 0
    out = capsys.readouterr().out
    assert "3 networks of 1 epochs" in out
    assert "10 networks of 1 epochs" in out  # by other recipes
    assert "adam 0.0012 exponential 0.95" in out
    assert "0.95" in out
    assert "adam 0.01 one_cycle" in out  # what the profile leaves out is the default's
    assert main(["run", "01", "--profile", str(tiny)]) == 1
    for name, wrong, said in (
        ("03_lenet5_table", "03_lenet5", "has sections ['03_lenet5']"),
        ("epochs", "epoch", "sets ['epoch'] for 03_lenet5_table"),
    ):
        tiny.write_text(text.replace(name, wrong))
        assert main(["run", "03", "--profile", str(tiny)]) == 1
        assert said in capsys.readouterr().err
