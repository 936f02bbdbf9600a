import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import joblib
import pandas as pd
import pytest
import torch

import snipnb
from snipnb import criteria, densities, experiments, grids, models, paths, profiles
from snipnb.experiments import RunConfig, groups_of
from snipnb.stats import overlap
from snipnb.store import Store

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
    assert [len(group) for group in groups_of(configs).values()] == [4, 2]  # all must have as many epochs
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


def test_a_finished_grid_is_looked_up(quiet, tmp_path, monkeypatch):
    snipnb.run_grid(small_grid(), store=tmp_path, jobs=1, group_size=2)
    monkeypatch.setattr(experiments, "train_together", lambda *_, **__: pytest.fail("trained again"))
    pd.testing.assert_frame_equal(snipnb.run_grid(small_grid(), store=tmp_path, group_size=2), quiet)


def test_an_interrupted_grid_goes_on_from_the_last_epoch(quiet, tmp_path, monkeypatch):
    train, done = experiments.train_together, []

    def interrupted(models, split, *, checkpoint, **options):
        class Stops:
            load = staticmethod(checkpoint.load)

            def save(self, tensors, rows):
                checkpoint.save(tensors, rows)
                done.append(len(rows))
                if len(done) == 5:
                    raise KeyboardInterrupt

        return train(models, split, checkpoint=Stops(), **options)

    monkeypatch.setattr(experiments, "train_together", interrupted)
    with pytest.raises(KeyboardInterrupt):
        snipnb.run_grid(small_grid(), store=tmp_path, jobs=1, group_size=2)
    assert done == [1, 2, 1, 2, 1]
    keys = list(groups_of(small_grid(), 2))
    assert [Store(tmp_path).record(key) is not None for key in keys] == [True, True, False, False]
    assert Store(tmp_path).progress(keys)[keys[2]] == 1
    found = snipnb.run_grid(small_grid(), store=tmp_path, jobs=1, group_size=2)
    assert done[5:] == [2, 1, 2]
    pd.testing.assert_frame_equal(found, quiet)


SCRIPT = """
import sys; sys.path.insert(0, {tests!r})
from test_experiments import small_grid
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


def reached(store):
    """Epochs that are kept in a store."""
    keys = list(groups_of(small_grid(), 2))
    place = Store(store)
    return sum(2 if place.record(key) else part for key, part in place.progress(keys).items())


def test_two_processes_share_a_store(quiet, tmp_path):
    store = tmp_path / "runs"
    processes = [start(store), start(store)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    facts = [json.loads(path.read_text()) for path in (store / "facts").glob("*.json")]
    assert [f["epochs"] for f in facts] == [2] * 4  # nobody did another's work again
    pd.testing.assert_frame_equal(snipnb.run_grid(small_grid(), store=store, jobs=1, group_size=2), quiet)


def test_a_damaged_record_is_done_again(quiet, tmp_path):
    snipnb.run_grid(small_grid(), store=tmp_path, jobs=1, group_size=2)
    key = next(iter(groups_of(small_grid(), 2)))
    path = tmp_path / f"{key}.json"
    path.write_bytes(path.read_bytes()[:-40])
    pd.testing.assert_frame_equal(snipnb.run_grid(small_grid(), store=tmp_path, jobs=1, group_size=2), quiet)


# --- what a group is --------------------------------------------------------------------------------------------------


def test_groups_are_fixed_by_the_grid():
    configs = small_grid(sparsities=[0.1, 0.5, 0.9], seeds=range(3))
    groups = groups_of(configs, 4)
    assert [len(group) for group in groups.values()] == [3, 3] * 3
    assert groups_of(configs[::-1], 4).keys() == groups.keys()
    assert groups_of(configs * 2, 4) == groups
    assert all(len({c.init_seed for c in group}) == 1 for group in groups.values())
    other = small_grid(sparsities=[0.1, 0.5, 0.9], seeds=range(3), recipe=dataclasses.replace(RECIPE, epochs=3))
    assert not groups_of(other, 4).keys() & groups.keys()


def test_a_record_of_other_code_is_not_used(monkeypatch):
    before = set(groups_of(small_grid()))
    monkeypatch.setattr(experiments, "sources_digest", lambda: "other")
    assert not before & set(groups_of(small_grid()))


def test_results_depend_on_what_makes_them_alone():
    found = set(experiments.result_sources())
    assert {"criteria", "densities", "exact", "experiments", "kernels", "masks", "models", "training"} <= found
    assert not found & {"store", "progress", "plotting", "notebooks", "claims", "report", "structure", "agreement"}


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
    with pytest.raises(ValueError, match=f"{field} .*accepted"):
        RunConfig(**{field: value})


def test_what_is_no_run_is_refused():
    with pytest.raises(ValueError, match="accepted are RunConfig"):
        snipnb.run_grid([{"criterion": "snip"}])
    with pytest.raises(ValueError, match="group_size is 0"):
        snipnb.run_grid(small_grid(), group_size=0)
    assert len(snipnb.run_grid([])) == 0


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


def test_masks_of_other_weights_are_those_of_the_network_that_is_drawn(beginning):
    other = beginning.draw(criteria.OTHER_SEEDS + 1)
    expected = snipnb.keep_mask(snipnb.snip(other, beginning.images, beginning.labels), 0.95, ties="stable")
    assert overlap(mask_of("snip_redrawn", beginning), expected) == 1
    assert overlap(mask_of("snip", beginning), expected) < 0.2


def test_mean_densities_are_those_of_other_networks(beginning):
    kept = counts(mask_of("snip_densities", beginning))
    seeds = range(criteria.OTHER_SEEDS + 5, criteria.OTHER_SEEDS + 10)
    masks = [
        snipnb.keep_mask(snipnb.snip(beginning.draw(seed), beginning.images, beginning.labels), 0.95, ties="stable")
        for seed in seeds
    ]
    for name, number in kept.items():
        assert abs(number - sum(int(m[name].sum()) for m in masks) / 5) < 1
    with pytest.raises(ValueError, match="a Start with draw"):
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

    monkeypatch.setitem(criteria.CRITERIA, "mine", snipnb.Criterion("mine", "#000000", "o", "-", salience=lowest_index))
    configs = [
        RunConfig(criterion="mine", sparsity=0.9, init_seed=seed, sample=True, recipe=RECIPE) for seed in range(2)
    ]
    runs = snipnb.run_grid(configs, jobs=jobs, store=tmp_path)
    assert len(runs) == 2 * RECIPE.epochs
    before = set(groups_of(configs))
    assert all(Store(tmp_path).record(key) is not None for key in before)

    def highest_index(start):
        return {n: torch.arange(p.numel()).view(p.shape) + 1.0 for n, p in start.model.named_parameters()}

    monkeypatch.setitem(
        criteria.CRITERIA, "mine", snipnb.Criterion("mine", "#000000", "o", "-", salience=highest_index)
    )
    assert not before & set(groups_of(configs))  # another function: nothing of the first one is taken


def test_the_code_of_a_criterion_is_all_that_it_does():
    def rule(density):
        return criteria.with_densities(lambda model, sparsity, init: {"all": density})

    def made(**options):
        return snipnb.Criterion("x", "#000000", "o", "-", **options).code()

    def with_default(value):
        def salience(start, value=value):
            return value

        return salience

    def recursive(n):
        return recursive(n - 1) if n else 0

    assert made(mask=rule(0.1)) == made(mask=rule(0.1)) != made(mask=rule(0.2))
    assert made(salience_of="snip") != made(salience_of="exact")
    assert made(salience=recursive) != made(salience=recursive, uses_images=False)
    large = torch.zeros(5000)
    other = large.clone()
    other[2500] = 1
    assert made(salience=with_default(large)) == made(salience=with_default(large.clone()))
    assert made(salience=with_default(large)) != made(salience=with_default(other))
    assert made(salience=uses_a_global) != _with_global(7, lambda: made(salience=uses_a_global))
    with pytest.raises(ValueError, match="cannot be told whether it changes"):
        made(salience=with_default(object()))


FACTOR = 3


def uses_a_global(start):
    return FACTOR


def _with_global(value, call):
    before = globals()["FACTOR"]
    globals()["FACTOR"] = value
    try:
        return call()
    finally:
        globals()["FACTOR"] = before


def test_a_worker_forgets_what_it_was_given_before(monkeypatch):
    monkeypatch.setattr(experiments, "_train_group", lambda *task, **options: None)
    monkeypatch.setattr(experiments, "_given_code", {"mine": "old"})
    before = dict(criteria.CRITERIA)
    monkeypatch.setenv("SNIPNB_PROGRESS", "0")
    try:
        criteria.CRITERIA["mine"] = criteria.CRITERIA["snip"] = before["random"]
        experiments._train_quietly(-1, {"yours": (before["exact"], "text")})
        assert dict(criteria.CRITERIA) == before | {"yours": before["exact"]}
        assert experiments._given_code == {"yours": "text"}
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


@pytest.mark.parametrize("profile", profiles.available_profiles())
@pytest.mark.parametrize("notebook", grids.GRIDS)
def test_every_profile_makes_the_grids_of_the_notebooks(profile, notebook):
    found = profiles.load_profile(profile)
    wanted = grids.of_notebook(notebook, found.parameters(notebook))
    assert wanted
    for configs in wanted:
        assert len(configs) == len(set(configs))
        assert {c.sample for c in configs} == {found.common["sample"]}
    with pytest.raises(ValueError, match="trains nothing"):
        grids.name_of("01")


def test_kept_runs_are_whole_groups_of_the_paper_profile():
    """Whatever code trained them: `make figures PROFILE=paper` looks for groups that hold the very same runs."""
    root = paths.project_root()
    if root is None:
        pytest.skip("needs the runs of a checkout")
    kept = sorted((root / "figures/paper/runs").glob("*.json"))
    assert kept
    paper, wanted = profiles.load_profile("paper"), []
    for notebook in grids.GRIDS:
        parameters = paper.parameters(notebook)
        size = parameters.get("group_size", experiments.GROUP_SIZE)
        for configs in grids.of_notebook(notebook, parameters):
            wanted += [[dataclasses.asdict(c) for c in group] for group in groups_of(configs, size).values()]
    for path in kept:
        held = [run["config"] for run in json.loads(path.read_text())["record"]["runs"]]
        assert held in wanted, f"{path.name} is no group that the paper profile makes"


def test_the_command_line_does_what_a_notebook_does(tmp_path, capsys):
    from snipnb.__main__ import main

    text = "about: tiny\ncommon: {threads: 1, sample: true}\nnotebooks:\n  03_lenet5_table: {num_runs: 1, num_recipe_runs: 1, epochs: 1}\n"
    tiny = tmp_path / "tiny.yaml"
    tiny.write_text(text)
    assert main(["run", "03", "--profile", str(tiny), "--jobs", "1", "--store", str(tmp_path / "s")]) == 0
    out = capsys.readouterr().out
    assert "3 networks of 1 epochs" in out
    assert "8 networks of 1 epochs" in out  # by other recipes
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


def test_the_command_line_takes_the_groups_of_the_notebook(tmp_path, monkeypatch):
    from snipnb.__main__ import main

    given = []

    def stopped(configs, *, group_size, **options):
        given.append(group_size)
        raise ValueError("that is enough")

    monkeypatch.setattr(experiments, "run_grid", stopped)
    own = tmp_path / "own.yaml"
    own.write_text("notebooks:\n  02_snip_vs_exact: {group_size: 5}\n")
    for words in (["02", "--profile", str(own)], ["02", "--profile", str(own), "--group-size", "3"], ["03"]):
        assert main(["run", *words]) == 1
    assert given == [5, 3, experiments.GROUP_SIZE]
