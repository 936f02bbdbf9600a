import numpy as np
import pandas as pd
import pytest
import torch
from small_networks import tiny, tiny_examples

import snipnb
from snipnb.saliences import brute_force
from snipnb.studies.salience_derivation import measure as derivation


@pytest.fixture(scope="module")
def network():
    images, labels = snipnb.load_mnist("train", sample=True)
    return snipnb.lenet5(seed=0), images[:100], labels[:100]


def test_indicators_agree_for_every_parameter(network):
    frame = derivation.compare_indicators(*network)
    assert frame["parameters"].sum() == 61_706
    assert frame["relative_difference"].max() < 1e-10
    assert frame["negative_percent"].between(1, 99).all()


def test_steps_agree_with_snip(network):
    frame = derivation.step_errors(*network, per_tensor=3, steps=[1e-4, 1e-5])
    assert len(frame) == 2 * 30
    assert (frame.groupby("step")["error"].median() < 1e-6).all()
    table = derivation.step_table(frame)
    assert table["layer"].tolist() == [*dict.fromkeys(frame["layer"]), "all"]
    assert table["max at 1e-05"].iloc[-1] == frame.loc[frame["step"] == 1e-5, "error"].max()


def test_paths_start_at_zero_and_end_at_the_ablation(network):
    frame = derivation.loss_paths(*network, per_tensor=4, factors=np.linspace(0, 1, 3))
    assert frame.groupby(["layer", "kind"]).size().tolist() == [3] * 10
    assert (frame.loc[frame["c"] == 1, ["change", "tangent"]] == 0).all(axis=None)
    panel = frame[(frame["layer"] == "full 2") & (frame["kind"] == "worst")]
    index = {"full2.weight": torch.tensor([panel["index"].iloc[0]])}
    exact = brute_force.ablation_salience(*network, parameters=index)["full2.weight"]
    assert panel["change"].iloc[0] == pytest.approx(float(exact[0]))
    worst = frame[frame["kind"] == "worst"].groupby("layer")["error"].first()
    typical = frame[frame["kind"] == "typical"].groupby("layer")["error"].first()
    assert (worst >= typical).all()


def test_remainder_of_a_tangent_is_of_second_order():
    # Without activations the loss is smooth, and every remainder is of order 2; with them, switches blur it.
    orders = derivation.remainder_orders(tiny("linear"), *tiny_examples(), per_tensor=20)
    sampled = pd.DataFrame({"layer": ["1.weight"] * 20 + ["1.bias"] * 3})
    table = derivation.order_table(orders, sampled)
    assert table["sampled"].tolist() == [20, 3, 23]
    assert table["usable"].iloc[-1] == len(orders)
    assert len(orders) > 10
    assert orders["order"].to_numpy() == pytest.approx(2, abs=0.05)


def test_snip_is_exact_for_losses_linear_in_each_weight_and_only_for_them(network):
    frame = derivation.linear_cases(*network, per_tensor=3)
    largest = frame.groupby("case", sort=False)["error"].max()
    assert largest.iloc[0] < 1e-10
    assert (largest.iloc[1:] > 1e-6).all()
    counts = derivation.exact_counts(frame, bound=1e-10)
    assert counts["sampled"].tolist() == [30] * 4
    assert counts["exact"].iloc[0] == 30
    assert counts["exact, last layer"].tolist()[:3] == [6, 0, 6]  # nothing non-linear follows the last layer


def test_without_activations_shares_parameters_and_is_linear(network):
    model, images, _ = network
    linear = derivation.without_activations(model)
    assert [n for n, _ in linear.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert linear.conv1.weight is model.conv1.weight
    bias = linear(torch.zeros_like(images[:1]))
    torch.testing.assert_close(linear(3 * images) - bias, 3 * (linear(images) - bias), rtol=1e-4, atol=1e-5)


def test_operations_are_those_of_the_layers(network):
    model, images, labels = network
    frame = derivation.count_operations(model, images, labels).set_index("what")
    forward = 2 * 100 * (784 * 6 * 25 + 100 * 16 * 150 + 400 * 120 + 120 * 84 + 84 * 10)
    assert frame.loc["forward pass", "operations"] == forward
    assert frame.loc["SNIP", "over_one_gradient"] == 1


def test_rankings_to_the_letter_keep_other_parameters(network):
    frame = derivation.other_rankings(*network)
    assert frame["overlap"].between(0.05, 0.9).all()
    model, images, labels = network
    salience = snipnb.snip(model.double(), images.double(), labels)
    signed = torch.cat([s.flatten() for s in salience.values()])
    kept = signed > signed.kthvalue(snipnb.num_removed(61_706, 0.95)).values
    mask = torch.cat([m.flatten() for m in snipnb.keep_mask(salience, 0.95).values()])
    assert frame["overlap"].iloc[0] == pytest.approx(float((kept & mask).sum() / (kept | mask).sum()))
    model.float()


def test_percentages_add_up(network):
    salience = snipnb.snip(*network)
    table, masks = derivation.percentages(salience, [0.05, 0.5, 0.96])
    assert masks["mask_changed"].tolist() == [False] * 3
    assert masks["sum_percent"].tolist() == pytest.approx([100] * 3)
    assert table["share_percent"].sum() == pytest.approx(100)
    assert table["parameters_percent"].sum() == pytest.approx(100)
