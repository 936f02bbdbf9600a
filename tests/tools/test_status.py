"""What is out of date, said without a run; and a claim's notebook run again, expected beside obtained."""

import json
import shutil

import pytest

from snipnb._files import project_root
from snipnb.publish import ledger
from tools import claim, runner, state
from tools.__main__ import main

ROOT = project_root()


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A checkout in which notebook 01 was published, by some machine."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    (tmp_path / "figures" / "full").mkdir(parents=True)
    mark = {"code": "a", "prose": "b"}
    provenance = {"notebooks": {"01_salience_derivation": {"made_from": mark}, "02_snip_vs_exact": {}}}
    (tmp_path / "figures" / "provenance.json").write_text(json.dumps(provenance))
    monkeypatch.setattr("tools.__main__.checkout", lambda: tmp_path)
    monkeypatch.setattr(state, "fingerprint", lambda path, parameters: dict(mark))
    return tmp_path, mark


def lines(capsys):
    assert main(["status"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "default, in figures/:"
    assert "full, in figures/full/:" in said
    return {
        line.split()[0]: line.strip().partition(" ")[2].strip()
        for line in said[1 : said.index("full, in figures/full/:")]
    }


def test_what_is_published_is_compared_with_what_it_was_made_from(published, capsys):
    _, mark = published
    said = lines(capsys)
    assert said["01_salience_derivation"] == "up to date"
    assert said["02_snip_vs_exact"] == "published, but its inputs are not recorded"
    assert said["03_lenet5_table"] == "not run yet"
    mark["prose"] = "c"
    assert lines(capsys)["01_salience_derivation"] == "published; changed since then: prose"


def test_what_was_run_here_is_known_file_by_file(published, capsys):
    root, mark = published
    place = state.Place(root / "figures", root / "build" / ".default")
    state.record("01_salience_derivation", mark, [], place)
    made = json.loads((root / "figures" / "provenance.json").read_text())["notebooks"]["01_salience_derivation"]
    assert made["made_from"] == mark
    assert lines(capsys)["01_salience_derivation"] == "up to date"
    mark["code"] = "other"
    assert lines(capsys)["01_salience_derivation"] == "code changed"


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """What a run would write: the ledger, by profile."""
    (tmp_path / "figures").mkdir()
    entries = ledger.assemble([])
    (tmp_path / "figures" / "claims.json").write_text(json.dumps(entries))
    monkeypatch.setattr(claim, "checkout", lambda: tmp_path)
    new = json.loads(json.dumps(entries))

    def run(profile, notebooks, *, force):
        assert (profile, notebooks, force) == ("default", ["05_second_order"], True)
        (tmp_path / "figures" / "claims.json").write_text(json.dumps(new))
        return True

    monkeypatch.setattr(runner, "run", run)
    return {row["id"]: row for row in new}


def test_a_claim_comes_out_as_published_or_not(rows, capsys):
    assert main(["claim", "C20"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("C20: “$$")
    assert said.endswith("as published\n")
    rows["C20"]["verdict"] = "correct"
    # the run writes what rows holds now
    assert main(["claim", "C20"]) == 1
    said = capsys.readouterr().out
    assert "verdict      published not run (its notebook has not)\n               obtained  correct" in said
    assert said.endswith("not as published\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["C99"], "there is no claim 'C99'; the claims are C1, C2"),
        (["C20", "--profile", "quick"], "there is no profile 'quick'; the profiles are default, full, smoke"),
    ],
)
def test_an_unknown_claim_or_profile_is_named(arguments, message, capsys):
    assert main(["claim", *arguments]) == 1
    assert message in capsys.readouterr().err
