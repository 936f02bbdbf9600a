"""The three error rates of a run."""

import pandas as pd
import pytest

import snipnb
from snipnb.training import scores

LAST, BEST = scores.WAYS["error_rate"], scores.WAYS["best_error_rate"]


def runs_of(*rates):
    """Runs by seed with these error rates in their epochs."""
    frames = [
        pd.DataFrame({"test_error": r, "validation_error": r}).assign(init_seed=seed) for seed, r in enumerate(rates)
    ]
    return pd.concat(frames, ignore_index=True).assign(criterion="snip", sparsity=0.5)


def test_every_way_of_every_run():
    table = scores.error_table(runs_of([0.3, 0.1, 0.2], [0.2, 0.2, 0.1]))
    assert len(table) == 6
    assert table.loc[(table["seed"] == 0) & (table["way"] == LAST), "error_percent"].item() == pytest.approx(20)
    assert table.loc[(table["seed"] == 0) & (table["way"] == BEST), "error_percent"].item() == pytest.approx(10)
    unvalidated = runs_of([0.3, 0.1]).assign(validation_error=float("nan"))
    assert len(scores.error_table(unvalidated)) == 2


def test_error_tables_hold_three_ways_of_every_run():
    runs = pd.DataFrame(
        {
            "criterion": "snip",
            "init_seed": [3, 3, 3, 3, 4, 4, 4, 4],
            "sparsity": [0.0, 0.0, 0.5, 0.5] * 2,
            "epoch": [1, 2] * 4,
            "validation_error": [0.3, 0.2] * 4,
            "test_error": [0.4, 0.5] * 4,
        }
    )
    table = scores.error_table(runs)
    assert len(table) == 4 * 3
    assert table["error_percent"].tolist() == [50, 40, 50] * 4


def test_a_split_without_validation_has_no_selected_epoch():
    runs = pd.DataFrame(
        {
            "criterion": "snip",
            "init_seed": 0,
            "sparsity": 0.5,
            "epoch": [1, 2],
            "validation_error": float("nan"),
            "test_error": [0.2, 0.3],
        }
    )
    table = scores.error_table(runs)
    assert table["way"].tolist() == ["last epoch", "best epoch on scored images"]
    assert table["error_percent"].tolist() == [30, 20]


def test_a_table_has_one_network_and_one_split():
    recipe = snipnb.Recipe(epochs=1, batch_size=500)
    options = {"criteria": ["random"], "sparsities": [0.5], "seeds": [0], "sample": True, "recipe": recipe}
    runs = snipnb.run_grid([*snipnb.grid(**options), *snipnb.grid(model="lenet_300_100", **options)], jobs=1)
    with pytest.raises(ValueError, match="runs of one table must have one model; got 'lenet5', 'lenet_300_100'"):
        snipnb.error_table(runs)
    one = runs[runs["model"] == "lenet5"]
    assert len(snipnb.error_table(one, way="last epoch")) == 1
    for other in ({"name": "sgd"}, {"data_seed": 3}, {"train_loss": 0.1}):
        with pytest.raises(ValueError, match="runs of one criterion, seed and sparsity must have one recipe"):
            snipnb.error_table(pd.concat([one, one.assign(**other)]))
    assert len(snipnb.error_table(pd.concat([one, one]), way="last epoch")) == 1  # one run twice
    assert list(snipnb.error_table(runs[:0])) == ["criterion", "seed", "sparsity", "way", "error_percent"]
