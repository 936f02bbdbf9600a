"""Kept runs are trained again for one epoch and compared: what agrees passes bit for bit, what was altered is named."""

import json

import pytest

import snipnb
from snipnb.training import store
from tools.__main__ import main

RECIPE = snipnb.Recipe(epochs=2, batch_size=500, learning_rate=0.003)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    options = {"sparsities": [0.5, 0.9], "sample": True, "salience_images": 100, "recipe": RECIPE}
    snipnb.run_grid(snipnb.grid(criteria=["snip", "random"], seeds=range(2), **options), store=folder, jobs=1)
    return folder


def test_what_agrees_is_said(kept, capsys):
    assert main(["verify-runs", str(kept)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("4 of 8 kept runs, in 1 groups, train their first epoch again\n")
    assert ": 4 runs, 4 bit for bit\nall agree\n" in said
    assert main(["verify-runs", str(kept), "--all"]) == 0
    assert capsys.readouterr().out.count("4 bit for bit") == 2


def altered(kept, folder, change):
    """A copy of one kept record in which something was changed, with a digest that fits."""
    path = min(kept.glob("*.json"))
    content = json.loads(path.read_text())
    content.pop("digest")
    change(content["runs"][0])
    (folder / path.name).write_bytes(store._pack_record(content))
    return content["runs"][0]["key"]


@pytest.mark.parametrize(
    "change",
    [
        lambda run: run["history"].update(train_loss=[1.05 * loss for loss in run["history"]["train_loss"]]),
        lambda run: run["history"].update(test_error=[0.02 + error for error in run["history"]["test_error"]]),
        lambda run: run.update(kept=run["kept"] + 1),
    ],
)
def test_what_does_not_agree_is_named(kept, tmp_path, capsys, change):
    key = altered(kept, tmp_path, change)
    assert main(["verify-runs", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert f"OUTSIDE THE TOLERANCE: {key}" in said
    assert "3 bit for bit" in said


def test_a_run_under_a_key_that_is_not_its_own_is_named(kept, tmp_path, capsys):
    altered(kept, tmp_path, lambda run: run["config"].update(sparsity=0.7))
    assert main(["verify-runs", str(tmp_path)]) == 1
    assert "1 runs have an identity from other numerics or another version" in capsys.readouterr().out


def test_what_cannot_be_chosen_is_said(tmp_path, capsys):
    assert main(["verify-runs", str(tmp_path)]) == 1
    assert "there are no kept runs" in capsys.readouterr().err
