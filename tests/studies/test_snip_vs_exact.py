import numpy as np
import pandas as pd
import pytest
import torch

import snipnb
from snipnb import networks
from snipnb.publish import stats
from snipnb.saliences import brute_force
from snipnb.studies import shared
from snipnb.studies.snip_vs_exact import measure as agreement

EXACT = {"full1.weight": torch.tensor([[1.0, -2.0], [0.0, 4.0]]), "full1.bias": torch.tensor([8.0, 0.0])}
SNIP = {"full1.weight": torch.tensor([[-1.0, 2.0], [3.0, -2.0]]), "full1.bias": torch.tensor([-8.0, 0.0])}


def test_agreement_by_hand():
    frame = shared.agreement(EXACT, SNIP).set_index("layer")
    assert list(frame.index) == [networks.WHOLE, "full 1", "bias full 1"]
    assert list(frame["parameters"]) == [6, 4, 2]
    assert frame["zero_in_both"].tolist() == [1, 0, 1]
    assert frame["zero_in_exact_only"].tolist() == [1, 1, 0]
    assert frame["zero_in_snip_only"].tolist() == [0, 0, 0]
    assert frame.loc[networks.WHOLE, "typical_factor"] == 1.0  # of 1, 1, 2, 1 the median
    assert frame.loc["bias full 1", "spearman"] == pytest.approx(1.0)
    assert frame.loc["bias full 1", "pearson"] == pytest.approx(1.0)  # SNIP's sign is turned
    same = shared.agreement(EXACT, {name: -s for name, s in EXACT.items()})
    assert same["spearman"].to_numpy() == pytest.approx(1.0)
    assert (same["typical_factor"] == 1).all()


def test_where_they_part_by_hand():
    frame = agreement.where_they_part(EXACT, SNIP)
    assert frame["parameters"].sum() == 4  # those that are not exactly zero
    assert frame["other_sign_percent"].max() == 0
    turned = agreement.where_they_part(EXACT, EXACT)
    assert (turned["other_sign_percent"].dropna() == 100).all()
    assert (turned["median_relative_difference"].dropna() == 2).all()


def test_density_counts_every_parameter_that_is_not_zero():
    frame = agreement.density(EXACT, SNIP)
    assert frame["parameters"].sum() == 4
    eight = frame[(frame["layer"] == "bias full 1")].iloc[0]
    assert eight["log10_exact"] == eight["log10_snip"] == pytest.approx(np.log10(8), abs=0.125)


def test_networks_seeds_and_batches(examples):
    images, labels = examples
    alike, kept, whole = agreement.compare_networks(
        images, labels, seeds=[0, 1], inits=["pytorch", "xavier_normal"], num_images=30, sparsities=[0.5, 0.9]
    )
    facts = alike[["init", "seed", "images"]].drop_duplicates().to_numpy().tolist()
    expected = [["pytorch", 0, 200], ["pytorch", 1, 30], ["xavier_normal", 0, 30], ["xavier_normal", 1, 30]]
    assert facts == expected
    judged = alike[alike["layer"] == networks.WHOLE]
    assert judged["spearman"].between(0.9, 1).all()  # a broken engine or a wrong sign would not
    assert judged["pearson"].between(0.5, 1).all()
    assert len(kept) == 4 * 2 * 11
    summary = agreement.over_seeds(judged, ["spearman"], by=["init"])
    assert summary["n"].tolist() == [2, 2]
    assert summary["low95"].isna().all()
    drawn = agreement.overlap_lines(kept)
    assert drawn.groupby("panel", sort=False)["line"].nunique().tolist() == [2, 5]
    batches = agreement.by_batch_size(
        snipnb.lenet5(seed=0), images, labels, sizes=[1, 50, 500], draws=3, sparsity=0.9, whole=whole
    )
    assert batches.groupby("images")["draw"].nunique().to_dict() == {1: 3, 50: 3, 200: 1}
    last = batches[(batches["images"] == 200) & batches["comparison"].str.startswith("exact of")].iloc[0]
    assert last["overlap"] == 1
    assert last["spearman"] == pytest.approx(1)


def test_float32_differences_are_steps_of_the_loss(examples):
    images, labels = examples
    model = snipnb.lenet5(seed=0)
    found, step = agreement.published_way(model, images[:64], labels[:64], per_tensor=8)
    assert step == 2.0**-22  # the loss at the start is about 2.3
    exact, published = (torch.cat([*found[key].values()]).double() for key in ("exact", "published"))
    assert torch.equal(published / step * 2, (published / step * 2).round())  # just below 2 steps are half as wide
    assert float((exact - published).abs().max()) < 20 * step
    assert not torch.equal(exact, published)
    brute = brute_force.ablation_salience(
        model, images[:64], labels[:64], parameters=brute_force.stratified_sample(model, 8)
    )
    table = agreement.against_brute_force(
        snipnb.exact_salience(model, images[:64], labels[:64]), brute, brute_force.stratified_sample(model, 8)
    )
    assert table["largest_error"].max() < 1e-5
    assert table["layer"].iloc[-1] == networks.WHOLE
    quantities = agreement.resolution(found, step).set_index("quantity")["value"]
    assert 0 < quantities["share whose exact salience is below one step"] < 1
    kept = agreement.resolution_overlaps(found, [0.0, 0.5, 0.9])
    assert kept["published"].between(0, 1).all()
    assert kept["published"].iloc[0] == 1
    points = agreement.resolution_density(found, step)
    assert points["parameters"].sum() == int((exact != 0).sum())


def test_differences_are_rounded_to_one_digit_from_ten_steps_on():
    found = {"published": {"w": torch.tensor([3.0, -123.0, 128.0, 0.0, 5.0])}}
    found["exact"] = {"w": torch.tensor([1.0, 100.0, -100.0, 2e-3, 0.0])}
    points = agreement.resolution_density(found, 1.0).set_index("difference")
    assert points["parameters"].to_dict() == {
        0.0: 1,
        3.0: 1,
        120.0: 1,
        130.0: 1,
    }  # without the one that is zero exactly
    half = 0.25 / agreement.PER_DECADE  # two bins for each of the figure's, so that a centre is half of a half above
    assert points.loc[[3.0, 120.0], "log10_exact"].tolist() == pytest.approx([half, 2 + half])
    halved = agreement.resolution_density(found, 0.5)
    assert set(halved["difference"]) == {0.0, 6.0, 250.0, 260.0}  # 246 and 256 steps


def test_every_parameter_is_taken_unless_a_sample_is_asked_for():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    images, labels = torch.randn(6, 1, 2, 2), torch.arange(6) % 3
    found, _ = agreement.published_way(model, images, labels)
    assert {name: len(s) for name, s in found["published"].items()} == {"1.weight": 12, "1.bias": 3}
    some, _ = agreement.published_way(model, images, labels, per_tensor=2)
    assert {name: len(s) for name, s in some["exact"].items()} == {"1.weight": 2, "1.bias": 2}


def test_saliences_of_different_networks_are_refused():
    with pytest.raises(ValueError, match=r"the same parameters; they differ in \['full1.bias'\]"):
        shared.agreement(EXACT, {"full1.weight": SNIP["full1.weight"]})


def test_rank_correlation_of_what_does_not_vary_is_undefined():
    assert np.isnan(stats.rank_correlation(np.ones(3), np.arange(3.0)))


def test_cost_puts_both_benchmarks_in_one_table():
    exact = {"pass_seconds": 2.0, "parameters": 100, "passes": 4, "engine_seconds": 5.0, "engine_in_passes": 2.5}
    exact |= {"times_faster": 40.0, "times_faster_low95": 30.0, "times_faster_high95": 50.0}
    way = {"way": "SNIP", "seconds": 1.0, "in_gradients": 1.1, "low95": 1.0, "high95": 1.2}
    frame = agreement.cost(pd.DataFrame([exact]), pd.DataFrame([way]))
    assert frame["seconds"].tolist() == [200.0, 5.0, 5.0, 1.0]
    assert frame["ratio"].tolist() == [100, 2.5, 1 / 40, 1.1]
    assert frame.loc[2, "low95"] < frame.loc[2, "ratio"] < frame.loc[2, "high95"]
