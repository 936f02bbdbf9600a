import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from snipnb.publish import ledger, tables
from snipnb.publish.evidence import read_rows

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = [
    (folder, path.stem, name, digits)
    for folder in (ROOT / "figures", ROOT / "figures" / "full")
    for path in sorted(folder.glob("drawn/*.json"))
    for name, digits in json.loads(path.read_text())["tables"].items()
]


def shown(frame, name="nothing", digits=3):
    return tables.readable(frame, "01_salience_derivation", name, digits=digits)


def cells(text):
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]


def test_a_pair_of_bounds_is_one_column_and_missing_ones_are_empty():
    frame = pd.DataFrame(
        {
            "mean_low95": [-0.1, np.nan],
            "mean_high95": [1 / 3, 1],
            "smallest": [1, 2],
            "largest": [30_000, 4],
            "below": 1,
            "low": 2,
        }
    )
    found = shown(frame)
    assert list(found) == ["95 % interval", "smallest to largest", "below", "low"]  # a lower bound without an upper one
    assert found.iloc[0].to_list() == ["−0.1 to 0.333", "1 to 30,000", "1", "2"]
    assert found.iloc[1, 0] == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (61_706, "61,706"),
        (1234, "1234"),
        (1234.4, "1234"),
        (999.6, "1000"),
        (9999.9, "10,000"),
        (23_456.7, "23,457"),
        (0.0123456, "0.0123"),
        (-0.5, "−0.5"),
        (1.26e-5, "1.3 × 10⁻⁵"),
        (0.0, "0"),
        (np.inf, "inf"),
        (np.nan, ""),
        (True, "yes"),
        ("w_0 - 1", "w_0 - 1"),
        ("spearman", "rank correlation"),
    ],
)
def test_cells(value, text):
    assert shown(pd.DataFrame({"what": [value]})).iloc[0, 0] == text


def test_columns_of_known_meaning_have_words():
    frame = pd.DataFrame({"criterion": ["snip"], "init": ["xavier_normal"], "layer": ["full3.bias"], "p_value": [1e-9]})
    assert shown(frame).iloc[0].to_list() == ["SNIP", "Xavier normal", "bias full 3", "<0.001"]
    gains = tables.readable(pd.DataFrame({"criterion": ["second_order"]}), "05_second_order", "gains", digits=3)
    assert gains.iloc[0].to_list() == ["order 2"]  # as this notebook's figures say
    assert "layer" not in shown(frame.assign(label="bias full 3"))  # the same in other words


def test_a_notebook_shows_eight_rows_and_says_where_the_others_are():
    frame = pd.DataFrame({"x": range(9)})
    told = tables.in_notebook(frame, shown(frame), "01_salience_derivation", "nothing").text
    assert cells(told)[2:] == [[str(x)] for x in range(8)]
    assert told.endswith("8 of 9 rows; all of them are in `01_salience_derivation/nothing.md`.")
    whole = tables.in_notebook(frame[:8], shown(frame[:8]), "01_salience_derivation", "nothing").text
    assert len(cells(whole)) == 10
    assert "rows" not in whole
    empty = frame[:0].rename(columns={"x": "criterion"})
    said = tables.in_notebook(empty, shown(empty), "02_snip_vs_exact", "parting").text
    assert said.startswith("No criterion with at least five seeds differs")


def test_markdown_and_latex_read_no_marks_out_of_a_table():
    found = shown(pd.DataFrame({"what": ["|L'| * w_0"], "value": [-1.2e-5]}))
    assert cells(tables.markdown(found))[2] == [r"\|L'\| \* w\_0", "−1.2 × 10⁻⁵"]
    assert r"$-$1.2 $\times$ 10$^{-5}$ \\" in ledger.latex(found, "lr")


@pytest.mark.parametrize(("folder", "notebook", "name", "digits"), PUBLISHED)
def test_published_tables_read_well(folder, notebook, name, digits):
    frame = read_rows(folder / notebook / f"{name}.csv")
    found = tables.readable(frame, notebook, name, digits=digits)
    assert list(found)
    assert not re.search("_|nan|None|low95|high95", " ".join(found))
    assert len(found) == len(frame)
    rows = cells(tables.in_notebook(frame, found, notebook, name).text)[2:]
    assert len(rows) == len(frame) if len(frame) <= tables.MOST_ROWS else 3 <= len(rows) <= tables.MOST_ROWS
    own = tables.load_tables()["tables"].get(notebook, {}).get(name, {})
    if "rows" in own and len(frame) > tables.MOST_ROWS:
        assert len(frame.query(own["rows"], engine="python")) <= tables.MOST_ROWS  # none is cut off
    told = {*own.get("hide", []), *own.get("percent", []), *own.get("headings", {})}
    assert told - {"untrained"} <= {*frame}


def test_nothing_is_said_of_tables_or_columns_that_are_not_there():
    known = tables.load_tables()
    columns, values = set(), set()
    for folder, notebook, name, _ in PUBLISHED:
        frame = read_rows(folder / notebook / f"{name}.csv")
        columns |= {*frame}
        values |= {value for column in frame for value in frame[column] if isinstance(value, str)}
    assert {(notebook, name) for notebook, own in known["tables"].items() for name in own} <= {
        one[1:3] for one in PUBLISHED
    }
    assert {*known["headings"]} <= columns
    assert {*known["p_values"]} <= columns
    words = [own.get("words", {}) for of in known["tables"].values() for own in of.values()]
    assert {*known["words"]}.union(*words) <= values
