"""A grid on the workers of a Dask cluster."""

import joblib
import pandas as pd
import pytest
import torch
from torch import nn

import snipnb
from snipnb import networks
from snipnb.training import grid
from snipnb.training.store import Store

distributed = pytest.importorskip("distributed")


@pytest.mark.filterwarnings("ignore")  # of Dask's own
def test_workers_of_a_cluster_give_the_same_table(tmp_path, monkeypatch):
    monkeypatch.setitem(
        networks.MODELS,
        "small",
        snipnb.Network(lambda: nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3)), version=1),
    )
    draw = torch.Generator().manual_seed(0)
    images, labels = torch.randn(90, 6, generator=draw), torch.randint(3, (90,), generator=draw)
    split = snipnb.Split.of("six", train=(images[:60], labels[:60]), test=(images[60:], labels[60:]))
    recipe = snipnb.Recipe(epochs=2, batch_size=20)
    options = {"criteria": ["snip", "random"], "sparsities": [0.5], "seeds": range(3), "recipe": recipe}
    configs = snipnb.grid(model="small", split=split, **options)
    expected = snipnb.run_grid(configs, jobs=1, store=tmp_path / "alone")
    monkeypatch.setattr(grid, "_train_group", None)  # here; workers have their own
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config("dask"),
    ):
        found = snipnb.run_grid(configs, store=tmp_path / "cluster")
    pd.testing.assert_frame_equal(found, expected)
    assert Store(tmp_path / "cluster").runs().keys() == Store(tmp_path / "alone").runs().keys()
