import json

import pytest

from snipnb._files import resource
from snipnb.publish import ledger, published

IDS = [f"C{i}" for i in range(1, 36)]


def test_every_claim_has_a_rule_that_can_be_applied():
    loaded = ledger.load_claims()
    assert list(loaded) == IDS
    for claim in loaded.values():
        assert {"id", "claim", "section", "notebook", "rule", "outcomes"} <= claim.keys()
        assert claim.keys() <= {
            *(
                "id",
                "claim",
                "section",
                "notebook",
                "rule",
                "outcomes",
                "reported",
                "needs",
                "settings",
                "weak_as",
                "changed",
            )
        }
        assert "when" not in claim["outcomes"][-1]
        assert len(claim["rule"]) > 40
        for outcome in claim["outcomes"]:
            assert outcome["verdict"] in ledger.VERDICTS
            assert outcome["verdict"] != "weak" or claim["weak_as"]
            for bounds in outcome.get("when", {}).values():
                assert bounds.keys() <= {"at_most", "at_least"}
        for outcome in claim["outcomes"][:-1]:
            assert outcome["when"]
        if str(claim.get("reported")).endswith(".csv"):
            assert resource("reported", claim["reported"]).is_file()


@pytest.mark.parametrize(
    ("claim", "measured", "verdict", "reason"),
    [
        ("C8", {"relative_difference": 1e-12, "signed_overlap": 1.0}, "reproduced", ""),
        (
            "C8",
            {"relative_difference": 1e-12, "signed_overlap": 0.3},
            "reproduced with correction",
            "signed_overlap 0.3 is below 0.99",
        ),
        (
            "C8",
            {"relative_difference": 1e-3, "signed_overlap": 1.0},
            "not reproduced",
            "relative_difference 0.001 is above 1e-10",
        ),
        ("C8", {"relative_difference": 1e-10, "signed_overlap": 0.99}, "reproduced", ""),  # bounds are included
        ("C23", {"largest_error": 1.0}, "refuted", "largest_error 1 is above 1e-10"),
    ],
)
def test_the_first_outcome_that_holds_is_the_verdict(claim, measured, verdict, reason):
    assert ledger.judge(claim, measured, n=None, profile="default") == (verdict, reason)


def test_too_little_evidence_is_weak_or_untested():
    measured = {"share_as_extreme": 0.5}
    assert ledger.judge("C32", measured, n=100, profile="default")[0] == "reproduced"
    weak = "weak (n = 20, the rule asks for 100; so far reproduced)"
    assert ledger.judge("C32", measured, n=20, profile="default")[0] == weak
    assert ledger.judge("C32", measured, n=100, profile="smoke")[0] == "untested (budget of profile smoke)"
    assert ledger.judge("C32", measured, n=100, profile="full")[0] == "reproduced"
    inside = {"outside_interval": 0}
    assert ledger.judge("C33", inside, n=10, profile="full", protocol_followed=True)[0] == "reproduced"
    assert ledger.judge("C33", {}, n=10, profile="full")[0] == "untested (not the published protocol)"
    assert ledger.judge("C33", {}, n=10, profile="default", protocol_followed=True)[0].startswith("untested (budget")
    mixed = {"inverted_minus_snip_low": 1.0, "shuffled_minus_snip_low": 0.0}
    assert ledger.judge("C2", mixed, n=5, profile="default")[0].startswith("weak (the least sensitive ones")


def test_settings_are_the_numbers_of_the_rules_words():
    assert ledger.settings("C25")["sparsities"] == [0.75, 0.85, 0.9, 0.93, 0.96]
    rule = ledger.load_claims()["C25"]["rule"]
    assert ", ".join(f"{s:.2f}" for s in ledger.settings("C25")["sparsities"]) in rule
    assert f"the larger of {ledger.settings('C25')['smallest_margin']:g} points" in rule
    assert set(ledger.settings("C25")["sparsities"]) <= set(published.reported("figure1")["sparsity"])
    with pytest.raises(ValueError, match="there is no claim 'C99'; the claims are C1, C2"):
        ledger.settings("C99")


def test_bad_claims_are_named():
    with pytest.raises(ValueError, match="no claim 'C99'; the claims are C1, C2"):
        ledger.judge("C99", {}, n=None, profile="default")
    with pytest.raises(ValueError, match=r"missing are \['signed_overlap'\]"):
        ledger.judge("C8", {"relative_difference": 0}, n=None, profile="default")
    with pytest.raises(ValueError, match="'largest_error' must be a finite number; got nan"):
        ledger.judge("C23", {"largest_error": float("nan")}, n=None, profile="default")
    measured = {"inverted_minus_snip_low": 1, "shuffled_minus_snip_low": 1}
    for n in (None, float("nan"), True, 2.0):
        with pytest.raises(ValueError, match=r"C2: n must be an integer from 0, as its rule asks for n >= 5; got "):
            ledger.judge("C2", measured, n=n, profile="default")
    for value in (float("-inf"), "0"):
        with pytest.raises(ValueError, match="must be a finite number; got"):
            ledger.judge("C23", {"largest_error": value}, n=None, profile="default")
    with pytest.raises(ValueError, match="C23 belongs to notebook '01_salience_derivation'; got '02_x'"):
        ledger.entry("C23", {"largest_error": 0}, notebook="02_x", profile="default")
    with pytest.raises(ValueError, match=r"intervals for \['other'\]"):
        ledger.entry(
            "C23",
            {"largest_error": 0},
            notebook="01_salience_derivation",
            profile="default",
            intervals={"other": (0, 1)},
        )
    with pytest.raises(ValueError, match="does not use the statistic 'size'"):
        ledger.bound("C23", "size")
    assert ledger.bound("C23", "largest_error") == 1e-10


def test_a_row_is_judged_by_the_numbers_it_shows():
    row = ledger.entry("C23", {"largest_error": 1.0000002e-10}, notebook="01_salience_derivation", profile="default")
    assert row["measured"] == {"largest_error": 1e-10}
    assert row["verdict"] == "reproduced"


def measured_entry():
    return ledger.entry(
        "C23",
        {"largest_error": 3.14159265e-14},
        notebook="01_salience_derivation",
        profile="default",
        n=4,
        intervals={"largest_error": (1e-14, 5e-14)},
        figure="01_salience_derivation/linearity.png",
    )


def test_the_ledger_holds_every_claim(tmp_path):
    rows = ledger.assemble([measured_entry()])
    assert [row["id"] for row in rows] == IDS
    assert all(list(row) == list(ledger.FIELDS) for row in rows)
    by_id = {row["id"]: row for row in rows}
    assert by_id["C23"]["measured"] == {"largest_error": 3.14159e-14}
    assert by_id["C23"]["verdict"] == "reproduced"
    assert by_id["C8"]["verdict"] == "untested (its notebook has not run)"
    ledger.write_ledger(tmp_path, rows)
    assert json.loads((tmp_path / "claims.json").read_text()) == rows
    text = (tmp_path / "claims.md").read_text()
    assert "largest error 3.142e-14 [1e-14, 5e-14]" in text
    assert text.count("\n- **C") == 35
    assert text.count("*Changed:*") == sum("changed" in claim for claim in ledger.load_claims().values()) > 0
    paper = (tmp_path / "claims.tex").read_text()
    assert r"\begin{longtable}" in paper
    assert paper.count("\nC") == 35
    terminal = ledger.text_table(rows)
    assert terminal.splitlines()[0].startswith("C23   SNIP is exact")
    assert "no verdict yet: C1, C2" in terminal
    assert ledger.verdict_frame([measured_entry()]).loc["C23", "verdict"] == "reproduced"


def test_one_run_has_no_interval_and_that_makes_a_verdict_weak():
    nan = float("nan")
    measured = {"inverted_minus_snip_low": nan, "shuffled_minus_snip_low": nan, "shuffled_minus_snip": 0.3}
    found = ledger.entry(
        "C2",
        measured,
        notebook="06_rules_of_thumb",
        profile="default",
        n=1,
        intervals={"shuffled_minus_snip": (nan, nan)},
    )
    assert found["verdict"] == "weak (n = 1, the rule asks for 5)"
    assert found["measured"] == {"shuffled_minus_snip": 0.3}
    assert found["low"] == {}
    with pytest.raises(ValueError, match="must be a finite number; got"):
        ledger.judge("C2", measured, n=5, profile="default")
