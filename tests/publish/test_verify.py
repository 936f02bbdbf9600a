"""The published ledgers follow from the rows beside them, and nothing in rows, rules or quotations can change unnoticed."""

import copy
import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import yaml

from snipnb._files import project_root, resource
from snipnb.publish import ledger
from tools import verify

FIGURES = project_root() / "figures"
TRIES = 200
WITHOUT_TORCH = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ImportError(f"{name} is asked for")

sys.meta_path.insert(0, Block())
from tools import verify

sys.exit(verify.main([]))
"""


def test_the_published_verdicts_follow_from_their_rows_without_torch():
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], cwd=project_root(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    many = len(ledger.load_claims())
    assert [line.split(" (")[0] for line in done.stdout.splitlines()] == [
        f"{profile}: {many} verdicts follow from their rows" for profile in ("default", "full")
    ]
    assert time.monotonic() - start < 120  # some ten seconds on an idle machine


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The ledger of full and the tables that it rests on."""
    folder = tmp_path_factory.mktemp("figures")
    rows = json.loads((FIGURES / "full" / "claims.json").read_text(encoding="utf-8"))
    for name in {file for row in rows for file in row["rows"] if not file.startswith("reported/")}:
        source = FIGURES / name if name.startswith("bench/") else FIGURES / "full" / name
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, folder / name)
    write(folder, rows)
    return folder, rows


def write(folder, rows):
    (folder / "claims.json").write_text(json.dumps(rows), encoding="utf-8")


def found(folder, only=None):
    return ledger.verify(folder, benchmarks=folder / "bench", only=only)


def concerned(rows, file):
    """Claims that rest on a table."""
    return [row["id"] for row in rows if file in row["rows"]]


def moved(frame, rng):
    """A table with one number moved, far."""
    numbers = [name for name in frame if pd.api.types.is_numeric_dtype(frame[name])]
    name, row = rng.choice(numbers), rng.integers(len(frame))
    other = frame.astype({name: float if frame[name].dtype != bool else bool})
    value = other.loc[row, name]
    other.loc[row, name] = not value if frame[name].dtype == bool else 3 * value + rng.choice([-7, 7])
    return other


def text_of(frame):
    return frame.to_csv(index=False, float_format="%.8g")


def test_it_is_as_published(published):
    folder, _ = published
    assert found(folder) == {}


@pytest.mark.parametrize("seed", range(TRIES // 4))
def test_an_altered_cell_is_noticed_by_its_digest(published, seed):
    folder, rows = published
    rng = np.random.default_rng(seed)
    judged = [row["rows"] for row in rows if row["measured"]]  # of a claim that was not run, a table may be empty
    files = sorted({file for some in judged for file in some if not file.startswith("reported/")})
    path = folder / (file := rng.choice(files))
    before = path.read_text(encoding="utf-8")
    k = rng.choice([k for k, letter in enumerate(before) if letter.isdigit() and k > before.index("\n")])
    path.write_text(f"{before[:k]}{(int(before[k]) + rng.integers(1, 10)) % 10}{before[k + 1 :]}", encoding="utf-8")
    try:
        wrong = found(folder, only=concerned(rows, file))
    finally:
        path.write_text(before, encoding="utf-8")
    assert list(wrong) == concerned(rows, file) != []


@pytest.mark.parametrize("seed", range(TRIES // 2))
def test_an_altered_cell_is_noticed_by_its_number_when_the_digest_is_rewritten(published, seed):
    folder, rows = published
    rng = np.random.default_rng(1000 + seed)
    resting = [row for row in rows if row["measured"] and any(not f.startswith("reported/") for f in row["rows"])]
    row = copy.deepcopy(resting[seed % len(resting)])
    claim = row["id"]
    files = [file for file in row["rows"] if not file.startswith("reported/")]
    frames = {f: ledger.read_rows(resource(f) if f.startswith("reported/") else folder / f) for f in row["rows"]}
    try:
        for _ in range(2000):  # until a cell moves a number that the ledger shows
            file = files[rng.integers(len(files))]
            other = {**frames, file: moved(frames[file], rng)}
            try:
                entry = ledger.entry(claim, ledger.find(claim, other.values(), profile="full"), profile="full")
            except (ValueError, RuntimeWarning):
                continue
            if any(entry[field] != row[field] for field in ("measured", "low", "high", "n")):
                break
        else:
            raise AssertionError(f"no cell of {files} moves a number of {claim}")
        text = text_of(other[file])
        row["rows"][file] = ledger.digest(text)
        before = (folder / file).read_text(encoding="utf-8")
        (folder / file).write_text(text, encoding="utf-8")
        write(folder, [row if one["id"] == claim else one for one in rows])
        wrong = found(folder, only=[claim])
        (folder / file).write_text(before, encoding="utf-8")
    finally:
        write(folder, rows)
    assert list(wrong) == [claim]
    assert not any("is not the table that was read" in reason for reason in wrong[claim])


@pytest.mark.parametrize("change", [{"profile": None}, {"profile": None, "verdict": "contradicted"}, {"more": 1}])
def test_a_forged_row_is_noticed(published, change):
    folder, rows = published
    write(folder, [{**row, **change} if row["id"] == "C10" else row for row in rows])
    try:
        assert list(found(folder)) == ["C10"]
    finally:
        write(folder, rows)


@pytest.mark.parametrize("seed", range(TRIES // 4))
def test_an_altered_rule_or_quotation_is_noticed(published, monkeypatch, seed):
    folder, _ = published
    rng = np.random.default_rng(2000 + seed)
    claims = copy.deepcopy(ledger.load_claims())
    claim = claims[list(claims)[rng.integers(len(claims))]]
    part = rng.choice(["words", "rule", "number"])
    if part == "number":
        compared = [bounds for outcome in claim["outcomes"] for bounds in outcome.get("when", {}).values()]
        bounds = compared[rng.integers(len(compared))]
        kind = next(iter(bounds))
        bounds[kind] = bounds[kind] + rng.choice([-0.01, 0.01])
    else:
        k = rng.integers(len(claim[part]))
        claim[part] = f"{claim[part][:k]}{'x' if claim[part][k] != 'x' else 'y'}{claim[part][k + 1 :]}"
    monkeypatch.setattr(ledger, "load_claims", lambda: claims)
    assert list(found(folder, only=[claim["id"]])) == [claim["id"]]


def test_a_missing_row_table_or_ledger_is_said(published, tmp_path):
    folder, rows = published
    write(folder, [row for row in rows if row["id"] != "C3"])
    assert found(folder, only=["C3", "C4"]) == {"C3": ["the ledger has no row for it; run its notebook"]}
    write(folder, rows)
    path = folder / "06_rules_of_thumb" / "greedy_all.csv"
    path.rename(path.with_suffix(".away"))
    assert "greedy_all.csv" in found(folder, only=["C3"])["C3"][0]
    path.with_suffix(".away").rename(path)
    with pytest.raises(ValueError, match=r"claims\.json holds no ledger"):
        ledger.verify(tmp_path, benchmarks=tmp_path)


def test_what_does_not_agree_is_printed_by_profile_and_claim(monkeypatch, capsys):
    claims = yaml.safe_load(resource("claims.yaml").read_text(encoding="utf-8"))
    changed = {claim["id"]: {**claim, "rule": "Otherwise."} if claim["id"] == "C20" else claim for claim in claims}
    monkeypatch.setattr(ledger, "load_claims", lambda: changed)
    assert verify.main(["C20"]) == 1
    assert "full, C20:\n  its rule is not the rule that was applied" in capsys.readouterr().out
