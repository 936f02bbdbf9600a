"""The comparisons of notebook 05, on networks small enough to know the answer."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

import snipnb
from snipnb.studies.second_order import draw as plotting_orders
from snipnb.studies.second_order import measure as orders
from snipnb.training.scores import WAYS


@pytest.fixture(scope="module")
def compared():
    images, labels = snipnb.load_mnist("train", sample=True)
    states = {"start": [snipnb.lenet_300_100(seed=k) for k in range(2)], "shrunk": [snipnb.lenet_300_100(seed=2)]}
    for p in states["shrunk"][0].parameters():
        p.data *= 0.01
    return orders.compare_states(states, images[:60], labels[:60], sparsity=0.9)


def test_the_corrected_formula_is_the_exact_salience_and_the_printed_one_is_not():
    table = orders.symbolic_second_order()
    assert table["exact"].tolist() == [True, True, True, False]
    assert "(w_0 - 1)" in table["squared_minus_exact"].iloc[-1]  # equal at w0 = 1 and -1 only


def test_numbers_say_the_same_on_a_quadratic_loss():
    frame = orders.quadratic_loss(seed=3)
    errors = orders.formula_errors(frame).set_index("formula")
    assert errors.loc["corrected", "largest_error"] < 1e-12
    assert errors.loc["printed", "largest_error"] > 0.1
    assert errors.loc["snip", "largest_error"] > 1e-3
    assert errors.loc["corrected", "spearman"] > errors.loc["printed", "spearman"]
    assert len(frame) == 2 * 9 + 2 + 18 * 5 + 5 + 5 * 3 + 3
    assert orders.quadratic_loss(seed=3).equals(frame)


def test_slopes_give_every_order():
    images, labels = snipnb.load_mnist("train", sample=True)
    networks = orders.tiny_networks(images, labels, number=4)
    table = orders.against_nested_derivatives(dict(list(networks.items())[:1]), orders=[3, 4])
    assert table["order"].tolist() == [3, 4]
    assert (table["largest_error"] < 1e-8).all()
    assert (table["largest"] > 1e-4).all()


def test_row_sums_are_those_of_the_whole_hessian():
    torch.manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Linear(2, 3)).double()
    images, labels = torch.randn(5, 1, 2, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    table, points = orders.row_sums(model, images, labels)
    start = torch.cat([p.flatten() for p in model.parameters()]).detach()

    def loss(flat):
        hidden = images.flatten(1) @ flat[:8].view(2, 4).T + flat[8:10]
        return nn.functional.cross_entropy(hidden @ flat[10:16].view(3, 2).T + flat[16:], labels)

    hessian = torch.autograd.functional.hessian(loss, start)
    diagonal, sums = hessian.diagonal().numpy(), hessian.sum(1).numpy()
    whole = table.iloc[0]
    assert whole["parameters"] == 19
    assert whole["median_factor"] == pytest.approx(np.median(np.abs(sums) / diagonal))
    first = table[table["layer"] == "1.weight"].iloc[0]
    assert first["negative_percent"] == 100 * (sums[:8] < 0).mean()
    assert first["spearman"] == pytest.approx(spearmanr(diagonal[:8], np.abs(sums[:8])).statistic)
    filled = points[points["layer"] == "1.weight"]
    assert filled.groupby("sign")["parameters"].sum().reindex([-1, 1], fill_value=0).tolist() == [
        (sums[:8] < 0).sum(),
        (sums[:8] > 0).sum(),
    ]
    assert (
        filled["log10_diagonal"].between(np.log10(diagonal[:8].min()) - 0.2, np.log10(diagonal[:8].max()) + 0.2).all()
    )


def test_approximations_are_sums_of_their_terms():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double()
    images, labels = torch.randn(5, 1, 2, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    found = orders.approximations(model, images, labels)
    w = model[1].bias.detach()
    # along a bias of the last layer the derivatives are those of cross-entropy: p - y, p (1 - p), p (1 - p) (1 - 2 p)
    p = model(images).softmax(1).detach()
    aims = nn.functional.one_hot(labels, 3)
    one, two, three = (p - aims).mean(0), (p * (1 - p)).mean(0), (p * (1 - p) * (1 - 2 * p)).mean(0)
    expected = {"slope": one, "printed_second_order": one - w * two / 2, "snip": -w * one}
    expected["second_order"] = expected["snip"] + w**2 * two / 2
    expected["third_order"] = expected["second_order"] - w**3 * three / 6
    for name, value in expected.items():
        torch.testing.assert_close(found[name]["1.bias"].detach(), value)


def test_each_order_comes_closer_where_nothing_switches(compared):
    left = orders.switching(compared).set_index(["state", "layer"])
    last = left.loc[("start", "full3.weight")]
    assert last["order 1"] > last["order 2"] > last["order 3"] > last["switching"]
    assert last["switching"] < 0.01  # per cent: nothing switches behind the last layer
    assert left.loc[("start", "full1.weight"), "switching"] > 0.1


def test_tables_of_agreement(compared):
    table = orders.agreement_table(compared)
    assert table["state"].tolist() == ["start"] * 6 + ["shrunk"] * 6
    assert table["approximation"].tolist()[:6] == list(orders.APPROXIMATIONS.values())
    row = table[(table["state"] == "start") & (table["approximation"] == "order 2")].iloc[0]
    by = ["state", "approximation", "layer", "measure"]
    means = compared.set_index(by)["mean"]
    assert row["overlap"] == means["start", "second_order", "whole network", "overlap"]
    assert table.loc[table["approximation"] == "|L'| alone", "relative_error"].isna().all()
    counts = compared[(compared["state"] == "start") & (compared["measure"] == "overlap")]
    assert (counts["n"] == 2).all()
    assert (counts["smallest"] <= counts["mean"]).all()


def test_a_gain_is_what_the_other_criterion_loses():
    rows = [
        {"criterion": c, "seed": s, "sparsity": 0.95, "way": WAYS["error_rate"], "error_percent": e + 0.1 * s}
        for c, e in (("snip", 2.0), ("second_order", 1.5))
        for s in range(3)
    ]
    gain = orders.gains(pd.DataFrame(rows), way=WAYS["error_rate"], than="snip").iloc[0]
    assert (gain["criterion"], gain["n"]) == ("second_order", 3)
    assert gain[["mean", "low95", "high95", "error_percent"]].tolist() == pytest.approx([0.5, 0.5, 0.5, 1.6])


def test_runs_are_the_exact_criterion_and_its_approximations():
    parameters = {"num_runs": 2, "salience_images": 0, "split_name": "standard", "sample": True}
    recipe = {"epochs": 1, "learning_rate": 0.01, "schedule": "one_cycle"}
    (runs,) = orders.grids({**parameters, **recipe}).values()
    assert len(runs) == 12
    assert {run.criterion for run in runs} == {*orders.APPROXIMATIONS, "exact"} - {"slope"}
    assert {(run.sparsity, run.salience_images) for run in runs} == {(0.95, None)}


def test_figures_draw_what_they_are_given(compared):
    figures = [plotting_orders.orders(compared, orders.APPROXIMATIONS)]
    assert [t.get_text() for t in figures[0].axes[2].get_xticklabels()] == list(orders.APPROXIMATIONS.values())
    frame = orders.quadratic_loss()
    figures.append(plotting_orders.quadratic(frame, orders.formula_errors(frame)))
    assert "rank correlation 1.000" in figures[1].axes[0].get_title() + figures[1].axes[0].get_title("left")
    for figure in figures:
        plt.close(figure)
