"""Not how fast, which depends on the machine, but that what is compared does the same work."""

import pandas as pd
import pytest
import torch
from small_networks import sequential
from torch import nn

import snipnb
from snipnb import networks as models
from snipnb.publish import report
from tools import bench, curvature


def test_the_loop_and_the_engine_compute_the_same(examples):
    images, labels = examples
    frame = bench.exact_against_loop(snipnb.lenet5(seed=0), images, labels, per_tensor=1)
    row = frame.iloc[0]
    assert row["parameters"] == 61_706
    assert row["passes"] == 10
    assert row["largest_difference"] < 2e-6  # some steps of a float32 loss
    assert row["times_faster"] == pytest.approx(row["pass_seconds"] * 61_706 / row["engine_seconds"])


def test_a_pass_leaves_the_model_as_it_was(examples):
    model = snipnb.lenet5()
    before = [p.clone() for p in model.parameters()]
    bench.one_by_one(model, *examples, "conv2.weight", 7)
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


def test_snip_is_measured_in_gradients(examples):
    frame = bench.snip_cost(snipnb.lenet5(), *examples, rounds=2).set_index("way")
    assert frame.loc["one gradient", "in_gradients"] == 1
    assert (frame["seconds"] > 0).all()


def test_curvature_is_measured_in_gradients_and_against_backpack(examples, monkeypatch):
    images, labels = (t[:60] for t in examples)
    model = snipnb.lenet5(seed=0)
    table = bench.curvature_cost(model, images, labels, rounds=2, few=30)
    assert table["images"].tolist() == [60] * 3 + [30] * 8
    assert table["rounds"].tolist() == [2] * 3 + [8] * 2 + [2] * 6
    assert table.loc[table["way"] == "one gradient", "in_gradients"].tolist() == [1, 1, 1]
    frame = table.set_index("way")
    assert frame.loc["diagonal by BackPACK", "of_backpack"] == 1
    assert (frame["seconds"] > 0).all()
    theirs, ours = curvature.backpack_diagonal(model)(images, labels), snipnb.diagonal_hessian(model, images, labels)
    for name, h in ours.items():
        torch.testing.assert_close(theirs[name], h, rtol=1e-4, atol=1e-6 * float(h.max()))
    monkeypatch.setattr(curvature, "backpack_diagonal", lambda *_: None)
    alone = bench.curvature_cost(model, images, labels, rounds=2, few=30).set_index("way")
    assert "diagonal by BackPACK" not in alone.index
    assert alone["of_backpack"].isna().all()


def test_the_approximate_diagonal_is_one_pass_of_squares(few):
    images, labels = few
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 2, 5, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 10)]
    model = nn.Sequential(*layers).double()
    found = curvature.approximate_diagonal(model, images, labels, batch_size=25)
    exact = snipnb.diagonal_hessian(model, images, labels)
    for name in ("4.weight", "4.bias"):  # nothing is left out there
        torch.testing.assert_close(found[name], exact[name])
    # the convolution: squares of each image's own Jacobian, as if the second derivatives of its outputs were independent
    expected = torch.zeros_like(layers[0].bias)
    for x in images:
        before = layers[0](x[None])
        gates = torch.autograd.functional.jacobian(layers[2], before.relu()).reshape(72, -1).T  # 0 or 1
        p = model(x[None]).softmax(1)[0]
        pooled = (p * (1 - p)) @ layers[4].weight.square()
        into = (gates @ pooled).view_as(before) * (before > 0)
        expected += into.sum((0, 2, 3)) / len(images)
    torch.testing.assert_close(found["0.bias"], expected)
    assert not torch.allclose(found["0.bias"], exact["0.bias"], rtol=1e-3)


def test_hutchinson_tends_to_the_diagonal():
    model, images, labels = sequential("linear, no bias")
    expected = snipnb.diagonal_hessian(model, images, labels)
    samples = [curvature.hutchinson_sample(model, images, labels, seed=seed) for seed in range(400)]
    one, all_of_them = (
        max(float((sum(s[name] for s in some) / len(some) - h).abs().max()) for name, h in expected.items())
        for some in (samples[:1], samples)
    )
    assert all_of_them < 0.4 * one


def test_layers_and_growth(examples):
    images, labels = examples
    layers = bench.by_layer(snipnb.lenet5(), images, labels)
    assert layers["parameters"].sum() == 61_706
    assert (layers["share_of_matmul_speed"] > 0).all()
    assert sum(p.numel() for p in bench.lenet_like().parameters()) == 61_706
    deep = bench.lenet_like(width=0.5, depth=3)
    assert torch.isfinite(deep(images)).all()


def test_benchmarks_are_read_from_their_folder(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="make bench writes exact"):
        report.benchmark("nothing")
    (tmp_path / "figures" / "bench").mkdir(parents=True)
    pd.DataFrame({"a": [1]}).to_csv(tmp_path / "figures" / "bench" / "snip.csv", index=False)
    monkeypatch.setattr(report, "project_root", lambda: tmp_path)
    assert report.benchmark("snip")["a"].tolist() == [1]


def test_training_is_compared_with_the_plain_loop(examples):
    images, labels = examples
    frame = bench.training_against_plain(images, labels, threads=2, networks=2, rounds=2).set_index("way")
    assert frame.loc["plain loop", "of_plain"] == 1
    assert list(frame.index) == ["plain loop", "networks together", "networks together, 0.95 pruned"]
    assert frame["networks"].tolist() == [4, 4, 4]
    assert (frame["seconds"] > 0).all()
    assert (frame["share_of_matmul_speed"][:2] > 0).all()  # what is skipped is no operation
    assert frame["share_of_matmul_speed"].isna().tolist() == [False, False, True]


def test_tables_are_written_with_what_is_known_of_the_machine(examples, tmp_path):
    tables = bench.tables(*examples, threads=2)
    assert {*tables, "projection"} == set(report.BENCHMARKS)
    written = bench.run(tmp_path, {"snip": tables["snip"]}, threads=2, machine={"cores": 2})
    assert [path.name for path in written] == ["snip.csv", "snip.md", "machine.csv"]
    assert "cores,2\nthreads,2\n" in (tmp_path / "machine.csv").read_text()


def test_vgg_is_measured_layer_by_layer_and_projected(examples):
    images, labels = (t[:8] for t in examples)
    model = snipnb.set_running_statistics(models.lenet_variant(batch_norm=True, seed=0), images)
    cost = bench.vgg_cost(images, labels, num_images=4, rounds=2, model=model)
    count = sum(p.numel() for p in model.parameters())
    assert cost["way"].tolist()[:3] == [bench.PASSES, "conv1", "conv2"]
    assert cost.loc[0, "parameters"] == count == cost.loc[1:, "parameters"].sum()
    assert cost.loc[0, "of_pass"] == 1
    assert (cost["low95"] <= cost["milliseconds"]).all()
    projected = bench.projection(cost).set_index(["way", "images"])["minutes"]
    assert projected[bench.PASSES, 60_000] == pytest.approx(cost.loc[0, "milliseconds"] * count * 60_000 / 60_000)
    engine = (cost["parameters"] * cost["milliseconds"])[1:].sum() * 128 / 60_000
    assert projected["engine", 128] == pytest.approx(engine)
