import pandas as pd
import pytest

import snipnb
from snipnb.publish.report import reported
from snipnb.studies import shared
from snipnb.studies.lenet5_table import measure as structure


@pytest.fixture(scope="module")
def counts():
    images, labels = snipnb.load_mnist("train", sample=True)
    return shared.kept_counts(shared.ensemble(images[:500], labels[:500], seeds=range(5)), sparsities=[0.5, 0.95])


def test_published_values_are_complete_and_add_up():
    table = reported("figure2")
    assert table.groupby("sparsity")["kept"].sum().to_dict() == {0.5: 30_853, 0.95: 3_086}
    assert table.groupby("sparsity")["params"].sum().to_dict() == {0.5: 61_706, 0.95: 61_706}
    assert reported("figure2_errors")["error_percent"].tolist() == [0.65, 0.55, 1.33]
    figure1 = reported("figure1").dropna()  # random runs off the published plot at the end
    assert len(figure1) == 33
    assert figure1.groupby("criterion")["sparsity"].nunique()[["exact", "snip"]].tolist() == [12, 12]
    assert (figure1["low"] <= figure1["error_percent"]).all()
    with pytest.raises(ValueError, match="accepted are figure1, figure2, figure2_errors"):
        reported("figure3")


def test_counts_are_those_of_the_mask(counts):
    images, labels = snipnb.load_mnist("train", sample=True)
    mask = snipnb.keep_mask(snipnb.snip(snipnb.lenet5(seed=4), images[:500], labels[:500]), 0.95)
    own = counts[(counts["seed"] == 4) & (counts["sparsity"] == 0.95)].set_index("layer")["kept"]
    assert own.to_dict() == {name: int(m.sum()) for name, m in mask.items()}
    assert counts.groupby(["seed", "sparsity"])["kept"].sum().unique().tolist() == [30_853, 3_086]


def test_each_published_count_is_placed(counts):
    placement, fit = shared.place_reported(counts, reported("figure2"))
    assert len(placement) == 20
    assert (placement["low"] <= placement["smallest"].clip(upper=placement["mean"])).mean() > 0.5
    assert (placement["inside"] == placement["reported"].between(placement["low"], placement["high"])).all()
    assert fit.outside == int((~placement["inside"]).sum())
    assert 0 < fit.p_value <= 1


def test_a_table_of_another_network_is_refused(counts):
    table = reported("figure2")
    with pytest.raises(ValueError, match="'conv 3'"):
        shared.place_reported(counts, table.replace({"layer": {"conv 1": "conv 3"}}))
    with pytest.raises(ValueError, match="lists 151 parameters for 'conv 1'; the network has 150"):
        shared.place_reported(counts, table.replace({"params": {150: 151}}))


def test_tables_beside_each_other(counts):
    table = structure.beside_reported(counts, reported("figure2"), seed=0)
    assert table["layer"].tolist()[-1] == "total"
    assert table["params"].tolist()[-1] == 61_706
    assert table["reported, 0.95"].tolist()[0] == "106 (29.3 %)"
    assert table["seed 0, 0.5"].tolist()[-1] == "30853 (50.0 %)"


def test_rounding_is_that_of_the_published_table():
    table = reported("figure2")
    counts = table.rename(columns={"layer": "label", "params": "parameters"}).assign(seed=0, ranking="snip")
    cells = structure.beside_reported(counts, table, seed=0)
    assert cells["reported, 0.95"].tolist()[2] == "666 (72.3 %)"  # 72.25, as printed
    assert (cells["reported, 0.5"] == cells["seed 0, 0.5"]).all()


def test_controls_are_other_rankings():
    images, labels = snipnb.load_mnist("train", sample=True)
    images, labels = images[:200], labels[:200]
    networks = shared.ensemble(images, labels, seeds=range(20))
    counts = shared.kept_counts(networks, sparsities=[0.5, 0.95], rankings=list(shared.RANKINGS), ties="stable")
    model = snipnb.lenet5(seed=1)
    own = counts[(counts["seed"] == 1) & (counts["sparsity"] == 0.5)].set_index(["ranking", "layer"])["kept"]
    magnitude = snipnb.layer_table(snipnb.keep_mask(snipnb.magnitude_salience(model), 0.5, ties="stable"))
    assert own["magnitude"].tolist() == magnitude["kept"].tolist()
    salience = snipnb.snip(model, images, labels)
    gradient = {name: s / model.get_parameter(name).detach() for name, s in salience.items()}
    table = snipnb.layer_table(snipnb.keep_mask(gradient, 0.5, ties="stable"))
    assert own["gradient"].tolist() == table["kept"].tolist()
    controls = structure.rejected_controls(counts).set_index("ranking")
    assert controls.loc["magnitude", "rejected"] == 20  # quite another structure is noticed every time
    assert controls.loc["snip", "rejected"] <= 3  # SNIP's own tables hardly ever are
    with pytest.raises(ValueError, match=r"ranking must be one of snip, gradient, .*; got 'grasp'"):
        shared.kept_counts(networks, sparsities=[0.5], rankings=["grasp"])


def test_totals(counts):
    table = structure.totals(counts, reported("figure2"))
    assert table["rank"].tolist() == [30_853, 58_620]
    assert table["kept_if_rounded"].tolist() == [30_853, 3_085]
    assert table["seeds_with_another_total"].tolist() == [0, 0]
    off = counts.assign(kept=counts["kept"] + (counts["layer"] == "conv1.bias") * (counts["seed"] == 1))
    assert structure.totals(off, reported("figure2"))["seeds_with_another_total"].tolist() == [1, 1]


def test_percent_for_plotting(counts):
    placement, _ = shared.place_reported(counts, reported("figure2"))
    points, cells = structure.kept_percent(counts, placement)
    assert len(points) == 5 * 2 * 10
    assert cells.loc[0, "kept_percent"] == pytest.approx(100 * 143 / 150)
    assert (cells["low_percent"] <= cells["high_percent"]).all()
    assert isinstance(points, pd.DataFrame)


def test_lenet_300_100_goes_the_same_way():
    images, labels = snipnb.load_mnist("test", sample=True)
    networks = shared.ensemble(images[:100], labels[:100], seeds=[0], network=snipnb.lenet_300_100)
    counts = shared.kept_counts(networks, sparsities=[0.9], ties="stable")
    assert counts["kept"].sum() == 26_661
    assert counts["label"].tolist() == ["full 1", "bias full 1", "full 2", "bias full 2", "full 3", "bias full 3"]
