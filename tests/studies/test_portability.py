"""What notebook 09 measures: tables that the rules of six claims can read, for other networks."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

import snipnb
from snipnb.publish import ledger
from snipnb.publish.report import Report
from snipnb.publish.style import headline_of
from snipnb.studies.portability import draw, findings, measure

PARAMETERS = {
    "profile": "default",
    "first_seed": 10,
    "num_lenet5_runs": 0,
    "num_other_runs": 0,
    "num_digits_runs": 2,
    "salience_images": 50,
    "split_name": "standard",
    "sample": True,
    "epochs": 1,
    "digits_epochs": 1,
    "learning_rate": 0.01,
    "schedule": "one_cycle",
    "num_seeds": 2,
    "num_counted": 4,
}


def test_grids_hold_what_the_rules_need():
    grids = measure.grids({**PARAMETERS, "num_lenet5_runs": 1, "num_other_runs": 3})
    assert list(grids) == list(measure.NETWORKS)
    counts = {model: pd.DataFrame([vars(c) for c in configs]) for model, configs in grids.items()}
    assert {model: frame["init_seed"].nunique() for model, frame in counts.items()} == dict(
        zip(measure.NETWORKS, (1, 3, 2), strict=True)
    )
    of_digits, other = counts["lenet_digits"], counts["lenet_300_100"]
    assert set(of_digits["split"]) == {"digits"}
    assert not of_digits["sample"].any()
    assert of_digits["salience_images"].isna().all()
    assert set(other["split"]) == {"standard"}
    assert set(other.loc[other["criterion"] == "snip", "sparsity"]) == {0, 0.5, 0.95, 0.99, 0.75, 0.85, 0.9, 0.93, 0.96}
    assert set(ledger.settings("C25a")["sparsities"]) == set(other.loc[other["criterion"] == "exact", "sparsity"])
    assert {c.recipe.epochs for c in grids["lenet_digits"]} == {1}
    assert {c.recipe.batch_size for c in grids["lenet_digits"]} == {32}


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    runs = snipnb.run_grid(measure.grids(PARAMETERS), jobs=1)
    tables = measure.tables(PARAMETERS, runs, sparsities=[0.5, 0.9])
    assert list(tables) == ["small LeNet (digits)"]
    report = Report("09_portability", PARAMETERS, tmp_path_factory.mktemp("portability"))
    rows = []
    for network, of in tables.items():
        assert of.keys() == measure.SHOWN.keys()
        for claim, frames in of.items():
            one = measure.SHOWN[claim]
            row = report.elsewhere(claim, *frames, shown=one.statistic, setting=one.setting)
            rows.append({"network": network} | row)
    return pd.DataFrame(rows), tables["small LeNet (digits)"], runs


def test_rules_read_the_tables_of_another_network(said):
    rows, tables, _ = said
    by = rows.set_index("claim")
    assert by.loc["C31", "n"] == 4
    assert by.loc["C2", "n"] == by.loc["C24", "n"] == 2
    assert by["verdict"].str.startswith("inconclusive (n = ").all()  # too few
    last = tables["C2"][0]
    last = last[(last["criterion"] == "snip") & (last["epoch"] == last["epoch"].max())]
    means = 100 * last.groupby("sparsity")["test_error"].mean()
    assert by.loc["C2", "value"] == pytest.approx(means[0.5] - means[0.0])
    assert abs(by.loc["C2", "bound"]) == 0.1  # on both sides of 0
    assert by.loc["C24", "bound"] == 0.9
    assert by.loc["C31", "bound"] == 0.2
    at = tables["C35"][0]
    at = at[(at["sparsity"] == 0.95) & (at["criterion"] == "snip") & (at["epoch"] == 1)]
    assert by.loc["C35", "bound"] == pytest.approx(max(0.1, 10 * at["test_error"].mean()))
    alike, kept = tables["C24"]
    assert set(kept["sparsity"]) == {0.5, 0.9}
    worst = kept[kept["layer"] == "whole network"].groupby("sparsity")["overlap"].mean().min()
    assert by.loc["C24", "value"] == pytest.approx(worst)
    whole = alike[alike["layer"] == "whole network"]
    model, split = snipnb.lenet_digits(seed=10), snipnb.load_split("digits")
    one = snipnb.exact_salience(model, split.train_images, split.train_labels)
    other = snipnb.snip(model, split.train_images, split.train_labels)
    ranks = [pd.concat([pd.Series(s.abs().flatten().numpy()) for s in side.values()]).rank() for side in (one, other)]
    assert whole["spearman"].iloc[0] == pytest.approx(
        ranks[0].reset_index(drop=True).corr(ranks[1].reset_index(drop=True))
    )


def test_what_is_said_elsewhere_is_no_row_of_the_ledger(said, tmp_path):
    report = Report("09_portability", PARAMETERS, tmp_path)
    report.elsewhere("C2", *said[1]["C2"], shown="pruned_minus_dense")
    assert not report.entries


def made_up(*verdicts):
    """Verdicts by claim and network."""
    rows = []
    for claim, words in zip(measure.SHOWN, verdicts, strict=True):
        for network, verdict in zip(measure.NETWORKS.values(), words, strict=True):
            row = {"network": network, "claim": claim, "verdict": verdict, "value": 0.5, "low": 0.4, "high": 0.6}
            rows.append(row | {"bound": 0.45})
    return pd.DataFrame(rows)


def test_error_rates_say_how_well_the_networks_learn(said):
    runs = said[2]
    found = measure.error_rates(runs)
    assert found["network"].tolist() == ["small LeNet (digits)"]
    assert found["parameters"].tolist() == [sum(p.numel() for p in snipnb.lenet_digits().parameters())]
    dense = runs[(runs["sparsity"] == 0) & (runs["epoch"] == 1)]
    assert found["dense"].item() == pytest.approx(100 * dense["test_error"].mean())
    assert list(found)[3:] == ["sparsity 0.5", "sparsity 0.95", "sparsity 0.99"]


def test_findings_tell_what_holds_elsewhere():
    holds, fails, undecided = "supported", "contradicted (for these)", "inconclusive (power 0.10)"
    rows = made_up(
        (holds, holds, holds),
        (holds, f"{holds} (also at 0.99)", f"partly {holds} (in rank)"),
        (holds, fails, holds),
        (holds, undecided, fails),
        (holds, undecided, undecided),
        (undecided, undecided, undecided),
    )
    kinds = measure.kinds(rows)
    expected = {
        "contradicted on some": ["C25a", "C29"],
        "upheld at least in part on all": ["C2", "C24"],
        "upheld on some, open on others": ["C31"],
        "open on all": ["C35"],
    }
    assert kinds == expected
    assert next(iter(kinds)) == "contradicted on some"
    found = findings.findings(rows)["what came out"]
    assert found[0] == (
        "Contradicted on some: SNIP trains as well as the exact salience, SNIP knows what each layer needs; upheld at least in part on all: "
        "pruning by half costs nothing, SNIP keeps what the exact salience keeps; upheld on some, open on others: layers keep similar numbers from "
        "seed to seed; open on all: random places with SNIP's layer densities are as good."
    )
    assert found[1] == (
        "LeNet-5 (MNIST), +0.50 points (bound 0.45): holds; LeNet-300-100 (MNIST), +0.50 points (bound 0.45): holds; "
        "small LeNet (digits), +0.50 points (bound 0.45): holds."
    )
    assert "small LeNet (digits), overlap 0.50 (bound 0.45): in part or reworded" in found[2]
    assert "LeNet-300-100 (MNIST), +0.50 points (bound 0.45): contradicted" in found[3]
    assert "change 50 % (bound 45 %)" in found[5]
    table = measure.verdicts(rows)
    assert table.columns.tolist() == ["claim", "says", *measure.NETWORKS.values()]
    assert table.set_index("claim").loc["C29"].tolist()[1:] == ["supported", "inconclusive", "contradicted"]
    assert measure.key(rows) == "✓ holds, ≈ in part or reworded, ✗ contradicted, ? open"
    figure = draw.rules(rows, shown={claim: one.what for claim, one in measure.SHOWN.items()}, counted=kinds)
    assert headline_of(figure) == (
        "6 rules on 3 networks. C25a, C29: contradicted on some; C2, C24: upheld at least in part on all; "
        "C31: upheld on some, open on others; C35: open on all"
    )
    assert [len(axis.containers) for axis in figure.axes] == [3] * 6
    assert {axis.get_xscale() for axis in figure.axes} == {"linear"}
    dashed = [[line for line in axis.lines if line.get_linestyle() == "--"] for axis in figure.axes]
    assert [len(lines) for lines in dashed] == [6, 3, 6, 3, 3, 3]
    plt.close(figure)


def test_an_axis_that_reaches_far_is_logarithmic_and_has_ticks_on_both_sides():
    rows = made_up(*[("supported",) * 3] * 6).assign(low=-3.0, high=30.0)
    figure = draw.rules(rows, shown={claim: one.what for claim, one in measure.SHOWN.items()}, counted={})
    axis = figure.axes[0]
    assert axis.get_xscale() == "symlog"
    assert list(axis.get_xticks()) == [-2, -0.5, 0, 0.5, 2, 10]
    plt.close(figure)


def test_one_network_has_its_verdicts_told():
    rows = made_up(*[("supported", "supported", "inconclusive (power 0.10)")] * 6)
    rows = rows[rows["network"] == "small LeNet (digits)"]
    found = findings.findings(rows)["what came out"]
    assert found[0].startswith("On small LeNet (digits): open: pruning by half costs nothing, SNIP keeps")
    figure = draw.rules(
        rows, shown={claim: one.what for claim, one in measure.SHOWN.items()}, counted=measure.kinds(rows)
    )
    assert headline_of(figure) == "6 rules on small LeNet (digits). C2, C24, C25a, C29, C31, C35: open"
    plt.close(figure)


def test_scored_images_are_told():
    assert measure.scored({**PARAMETERS, "num_other_runs": 1}) == (
        "1,000 for LeNet-300-100 (MNIST), 360 for small LeNet (digits)"
    )


def test_numbers_of_networks_are_told():
    rows = made_up(*[("supported",) * 3] * 6).assign(n=7)
    assert measure.numbers(rows) == "7 for LeNet-5 (MNIST), 7 for LeNet-300-100 (MNIST), 7 for small LeNet (digits)"


def test_findings_are_made_again_from_the_published_table(tmp_path):
    report, rows = Report("09_portability", {"profile": "smoke"}, tmp_path), made_up(*[("supported",) * 3] * 6)
    with pytest.raises(ValueError, match=r"table 1 of the findings is not in any file; write it with report.table"):
        report.findings(rows)
    report.data(rows, "said")
    report.findings(rows)
    files = {path: path.read_bytes() for path in (tmp_path / "09_portability").glob("findings.*")}
    assert {path.suffix for path in files} == {".csv", ".md", ".tex"}
    for path in files:
        path.unlink()
    Report("09_portability", {"profile": "smoke"}, tmp_path, drawn=report.drawn).tell()
    assert {path: path.read_bytes() for path in files} == files
