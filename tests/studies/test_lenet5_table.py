import dataclasses
import re

import pandas as pd
import pytest
import scipy.stats

import snipnb
from snipnb.data import Split
from snipnb.publish.evidence import lenet5_table as evidence
from snipnb.publish.report import reported
from snipnb.studies import shared
from snipnb.studies.lenet5_table import measure as structure
from snipnb.training import scores
from snipnb.training.recipe import Recipe


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
    with pytest.raises(ValueError, match="must be one of figure1, figure2, figure2_errors, lenet_300_100; got"):
        reported("figure3")


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
    with pytest.raises(ValueError, match=r"ranking must be one of 'snip', 'gradient', .*; got 'grasp'"):
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


# --- error rates ---------------------------------------------------------------------------------------------------------


def sizes(training, scored):
    """Parts of a split, of which only the labels' number counts."""
    return (None, range(training), None, (), None, range(scored))


def different(split, recipe):
    table = structure.protocol(split, recipe)
    return table.loc[~table["same"], "what"].tolist()


def test_only_the_published_protocol_counts_as_such():
    published = Split("published", *sizes(59_500, 10_500))
    recipe = Recipe(epochs=80, learning_rate=0.0012, schedule="step")
    assert structure.protocol(published, recipe)["same"].all()
    assert set(different(Split("standard", *sizes(55_000, 10_000)), recipe)) == {"images trained on", "images scored"}
    for change in (
        {"epochs": 3},
        {"learning_rate": 0.01},
        {"schedule": "one_cycle"},
        {"schedule": "constant"},
        {"optimiser": "sgd"},
    ):
        assert len(different(published, dataclasses.replace(recipe, **change))) == 1


def test_recipes_are_what_their_names_say():
    for name, recipe in structure.RECIPES.items():
        if found := re.search(r"times ([0-9.]+) every( 40)?", name):
            assert recipe["decay"] == float(found[1])
            assert recipe.get("decay_every", 1) == int(found[2] or 1)
        assert Recipe(epochs=1, **recipe).optimiser == ("sgd" if "momentum" in name else "adam")
    assert (structure.ASSAY.epochs, structure.ASSAY.learning_rate) == (3, 0.01)


def test_error_rates_are_summed_up_by_way():
    values = {"last epoch": [50.0, 50.0], "best epoch on scored images": [40.0, 50.0]}
    rows = [
        {"criterion": "snip", "seed": seed, "sparsity": sparsity, "way": way, "error_percent": rates[seed]}
        for seed in range(2)
        for sparsity in (0.0, 0.5)
        for way, rates in values.items()
    ]
    table = pd.DataFrame(rows)
    reported = pd.DataFrame({"sparsity": [0.0, 0.5], "error_percent": [0.65, 0.55]})
    summary = structure.error_summary(table, reported)
    assert summary["n"].tolist() == [2] * 4
    assert summary["mean"].tolist() == [50, 45] * 2
    assert summary["mean_low95"].isna().all()  # of two runs
    assert summary["reported"].tolist() == [0.65] * 2 + [0.55] * 2
    three = pd.concat([table, table[table["seed"] == 1].assign(seed=2, error_percent=60.0)])
    assert structure.error_summary(three, reported)["mean_low95"].notna().all()
    assert structure.same_in_every_way(table) == 2  # both of seed 1


def test_published_errors_are_placed_by_spread_and_binomial_variance():
    way = scores.WAYS["best_error_rate"]
    table = pd.DataFrame({"sparsity": [0.0] * 4, "way": [way] * 4, "error_percent": [1.0, 1.1, 0.9, 1.0]})
    reported = pd.DataFrame({"sparsity": [0.0], "error_percent": [1.2]})
    placed = structure.place_errors(table, reported, num_scored=10_000).iloc[0]
    # s^2 = 0.02 / 3; binomial 99 (1/10000 + 1/10500); degrees 3 ((spread + binomial) / spread)^2
    spread, binomial = 0.02 / 3 * 1.25, 99 * (1 / 10_000 + 1 / 10_500)
    degrees = 3 * ((spread + binomial) / spread) ** 2
    half = scipy.stats.t.ppf(0.975, degrees) * (spread + binomial) ** 0.5
    assert placed[["mean", "low", "high"]].tolist() == pytest.approx([1.0, 1 - half, 1 + half])
    assert placed["inside"]
    for value, inside in ((1 + half - 0.001, True), (1 + half + 0.001, False), (1 - half - 0.001, False)):
        shifted = reported.assign(error_percent=value)
        assert structure.place_errors(table, shifted, num_scored=10_000)["inside"].tolist() == [inside]
    three = pd.concat([reported.assign(sparsity=s) for s in (0.0, 0.5, 0.95)])
    wider = structure.place_errors(
        pd.concat([table.assign(sparsity=s) for s in (0.0, 0.5, 0.95)]), three, num_scored=10_000
    )
    assert (wider["high"] > placed["high"]).all()  # three intervals that hold jointly
    with pytest.raises(ValueError, match="one more run needs at least 2 runs; got 1 at sparsity 0"):
        structure.place_errors(table[:1], reported, num_scored=10_000)


def test_runs_without_spread_are_placed_by_the_binomial_variance_alone():
    way = scores.WAYS["best_error_rate"]
    table = pd.DataFrame({"sparsity": [0.0] * 3, "way": [way] * 3, "error_percent": [1.0] * 3})
    reported = pd.DataFrame({"sparsity": [0.0], "error_percent": [1.0]})
    placed = structure.place_errors(table, reported, num_scored=10_000).iloc[0]
    assert placed["high"] - 1 == pytest.approx(1.95996 * (99 * (1 / 10_000 + 1 / 10_500)) ** 0.5, rel=1e-4)


def test_recipes_are_placed_one_by_one():
    rows = [
        {
            "name": name,
            "criterion": "snip",
            "init_seed": seed,
            "sparsity": sparsity,
            "epoch": epoch,
            "test_error": error / 100,
        }
        for name, base in (("one", 1.0), ("other", 3.0))
        for seed in range(3)
        for sparsity in (0.0, 0.95)
        for epoch, error in ((1, base + sparsity), (2, base + sparsity + 0.1 * seed))
    ]
    runs = pd.DataFrame(rows).assign(validation_error=float("nan"), train_loss=0.5)
    reported = pd.DataFrame({"sparsity": [0.0, 0.5, 0.95], "error_percent": [1.0, 9.0, 3.95]})
    levels = structure.recipe_levels(runs, reported, num_scored=10_000)
    assert levels[["recipe", "sparsity"]].values.tolist() == [
        ["one", 0.0],
        ["one", 0.95],
        ["other", 0.0],
        ["other", 0.95],
    ]
    assert levels["best_epoch"].tolist() == pytest.approx([1.0, 1.95, 3.0, 3.95])
    assert levels["last_epoch"].tolist() == pytest.approx([1.1, 2.05, 3.1, 4.05])
    assert levels[["smallest", "largest"]].values.tolist() == [
        [pytest.approx(b), pytest.approx(b)] for b in (1.0, 1.95, 3.0, 3.95)
    ]
    assert list(levels) == [
        "recipe",
        "sparsity",
        "n",
        "untrained",
        "last_epoch",
        "best_epoch",
        "smallest",
        "largest",
        "low",
        "high",
        "reported",
        "inside",
    ]
    assert levels["inside"].tolist() == [True, False, False, True]
    assert levels["untrained"].tolist() == [0] * 4
    failed = runs.assign(test_error=runs["test_error"].where((runs["init_seed"] > 0) | (runs["sparsity"] > 0), 0.9))
    dense = structure.recipe_levels(failed, reported, num_scored=10_000).iloc[0]
    assert (dense["untrained"], dense["inside"]) == (1, False)
    assert dense[["low", "high"]].isna().all()  # an interval from -334 to 394 % says nothing
    alone = structure.recipe_levels(runs[runs["name"] == "other"], reported, num_scored=10_000)
    pd.testing.assert_frame_equal(alone, levels[levels["recipe"] == "other"].reset_index(drop=True))


# --- which images -------------------------------------------------------------------------------------------------------


def test_counts_from_mini_batches_are_those_of_the_masks():
    images, labels = (t[:600] for t in snipnb.load_mnist("train", sample=True))
    networks = shared.ensemble(images, labels, seeds=[3, 1])
    found = structure.counts_by_images(networks, images, labels, sparsities=[0.95], num_seeds=2)
    model = snipnb.lenet5(seed=1)
    ways = {
        "all_images": snipnb.snip(model, images, labels),
        "one_batch": snipnb.snip(model, images[128:256], labels[128:256]),  # the second network's
        "batch_magnitudes": snipnb.snip(model, images[:512], labels[:512], aggregate="batch_magnitude", batch_size=128),
    }
    for way, salience in ways.items():
        own = found[(found["way"] == way) & (found["seed"] == 1)].set_index("layer")["kept"]
        assert own.to_dict() == {name: int(m.sum()) for name, m in snipnb.keep_mask(salience, 0.95).items()}
    assert structure.counts_by_images(networks, images, labels, sparsities=[0.95], num_seeds=0).empty


def test_each_way_is_placed():
    images, labels = (t[:256] for t in snipnb.load_mnist("train", sample=True))
    networks = shared.ensemble(images, labels, seeds=range(4))
    found = structure.counts_by_images(networks, images, labels, sparsities=[0.5, 0.95], num_seeds=4)
    fits = structure.fits_by_images(found, reported("figure2"))
    assert fits["way"].tolist() == ["all_images", "one_batch", "batch_magnitudes"]
    assert fits["n"].tolist() == [4] * 3
    finding = evidence.c38(found, reported("figure2"))
    assert finding.statistics == {f"p_{way}": p for way, p in zip(fits["way"], fits["p_value"], strict=True)}
    assert structure.fits_by_images(found[:0], reported("figure2")).empty
