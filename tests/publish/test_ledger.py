import json

import pandas as pd
import pytest

from snipnb._files import project_root, resource
from snipnb.publish import comparisons, evidence, ledger, published
from snipnb.publish.evidence import Finding
from snipnb.training import scores

CLAIMS = ledger.load_claims()
REGISTERED = ledger.load_registered()
FIELDS = {"id", "kind", "words", "place", "notebook", "rule", "outcomes"}
MORE = {"reported", "registered", "needs", "settings", "judged", "changed", "looks"}


def judged(claim, statistics, *, n=None, profile="default", intervals=None, registered=False):
    found = Finding(statistics, intervals or {}, n)
    return ledger.judge((REGISTERED if registered else CLAIMS)[claim], found, profile=profile)


def test_every_claim_has_a_rule_that_can_be_applied():
    numbers = [int(claim.strip("Cab")) for claim in CLAIMS]
    assert numbers == sorted(numbers)
    assert {claim.rstrip("ab") for claim in CLAIMS} >= set(REGISTERED)  # nothing is deleted
    for claim in CLAIMS.values():
        assert FIELDS <= claim.keys() <= FIELDS | MORE
        assert callable(evidence.function_of(claim["id"], claim["notebook"]))
        assert "when" not in claim["outcomes"][-1]
        assert len(claim["rule"]) > 40
        for outcome in claim["outcomes"]:
            assert outcome.keys() <= {"verdict", "remark", "when"}
            assert outcome["verdict"] in (*ledger.WORDS[claim["kind"]], "not run")
            for bounds in outcome.get("when", {}).values():
                assert bounds.keys() <= {"at_most", "at_least"}
        for outcome in claim["outcomes"][:-1]:
            assert outcome["when"]
        if str(claim.get("reported")).endswith(".csv"):
            assert resource("reported", claim["reported"]).is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "opinion"}, "kind must be one of published number, empirical, .*; got 'opinion'"),
        ({"outcomes": [{"verdict": "refuted"}]}, "a verdict must be one of supported, .*; got 'refuted'"),
        (
            {"outcomes": [{"verdict": "supported", "when": {"p": {"below": 1}}}]},
            "p must be compared by at_most, at_least; got {'below': 1}",
        ),
    ],
)
def test_a_claim_that_cannot_be_judged_is_refused_when_it_is_read(change, message):
    with pytest.raises(ValueError, match=message):
        ledger._check({**CLAIMS["C28"], **change})


def test_quotations_are_those_whose_digests_were_written_down():
    digests = json.loads(resource("quotations.json").read_text())
    assert digests == {claim["id"]: ledger.digest(" ".join(claim["words"].split())) for claim in CLAIMS.values()}


def test_rules_as_registered_are_never_changed():
    text = resource("registered.yaml").read_text(encoding="utf-8")
    assert ledger.digest(text) == "db69d0be7569f701"
    assert {o["verdict"] for claim in REGISTERED.values() for o in claim["outcomes"]} <= set(ledger.WORDS["registered"])


def test_ways_of_stating_an_error_rate_have_one_name():
    assert {comparisons.LAST, comparisons.BEST} <= set(scores.WAYS.values())


@pytest.mark.parametrize(
    ("claim", "measured", "verdict", "reason"),
    [
        ("C8", {"relative_difference": 1e-12, "signed_overlap": 1.0}, "correct", ""),
        (
            "C8",
            {"relative_difference": 1e-12, "signed_overlap": 0.3},
            "correct up to wording (the magnitude is meant)",
            "signed_overlap 0.3 is below 0.99",
        ),
        (
            "C8",
            {"relative_difference": 1e-3, "signed_overlap": 1.0},
            "error, corrected",
            "relative_difference 0.001 is above 1e-10",
        ),
        ("C8", {"relative_difference": 1e-10, "signed_overlap": 0.99}, "correct", ""),  # bounds are included
        ("C3", {"seeds_where_greedy_fails": 0.4}, "contradicted", "seeds_where_greedy_fails 0.4 is below 0.5"),
    ],
)
def test_the_first_outcome_that_holds_is_the_verdict(claim, measured, verdict, reason):
    assert judged(claim, measured, n=20) == (verdict, reason)


@pytest.mark.parametrize(
    ("interval", "verdict"), [((1.6, 3.0), "contradicted"), ((1.4, 3.0), "inconclusive"), ((1.0, 1.4), "supported")]
)
def test_an_interval_across_the_edge_is_inconclusive(interval, verdict):
    both = ("cost_in_gradients", "approximate_cost_in_gradients")
    middle = sum(interval) / 2
    said, _ = judged("C18", dict.fromkeys(both, middle), intervals=dict.fromkeys(both, interval))
    assert said.split(" (")[0] == verdict


def test_too_little_evidence_leaves_a_claim_open():
    measured = {"share_as_extreme": 0.5}
    assert judged("C32", measured, n=100)[0] == "matches"
    assert judged("C32", measured, n=20)[0] == "cannot tell (n = 20, the rule asks for 100; so far matches)"
    assert judged("C32", measured, n=100, profile="smoke")[0] == "not run (budget of profile smoke)"
    registered = "weak (n = 20, the rule asks for 100; so far reproduced)"
    assert judged("C32", measured, n=20, registered=True)[0] == registered
    assert judged("C32", measured, n=100, profile="smoke", registered=True)[0] == "untested (budget of profile smoke)"
    other = Finding({}, n=10, not_run="not the published protocol")
    assert ledger.judge(CLAIMS["C33"], other, profile="full")[0] == "not run (not the published protocol)"


def test_a_rule_on_fresh_seeds_is_not_applied_to_others():
    statistics = {"overlap_gain": 0.0, "gain": 0.0, "error_gain_high": 0.01}
    seen = Finding(statistics, {"gain": (-0.01, 0.01)}, 10, not_fresh="its rule asks for seeds from 10 on")
    row = ledger.entry("C28", seen, profile="full")
    assert (row["verdict"], row["registered"]) == ("not run (its rule asks for seeds from 10 on)", "reproduced")


def test_what_would_decide_is_said():
    found = {"decided": 0.0, "power": 0.493, "n_to_decide": 29.0}
    claim = {
        "id": "X",
        "kind": "empirical",
        "outcomes": [{"verdict": "supported", "when": {"decided": {"at_least": 1}}}],
    }
    claim["outcomes"].append({"verdict": "inconclusive"})
    assert ledger.judge(claim, Finding(found), profile="x")[0] == "inconclusive (power 0.49; n = 29 would decide)"
    found["n_to_decide"] = float("inf")
    assert ledger.judge(claim, Finding(found), profile="x")[0] == "inconclusive (power 0.49; no n would decide)"


def test_a_weak_verdict_says_why_it_is_weak():
    weak = {"verdict": "weak", "when": {"p": {"at_most": 1}}}
    claim = {"id": "X", "kind": "registered", "weak_as": "one seed", "outcomes": [weak, {"verdict": "not reproduced"}]}
    assert ledger.judge(claim, Finding({"p": 1}), profile="x")[0] == "weak (one seed)"
    assert ledger.judge(claim, Finding({"p": 2}), profile="x") == ("not reproduced", "p 2 is above 1")
    own = {**claim, "outcomes": [{**weak, "remark": "two seeds"}, claim["outcomes"][1]]}
    assert ledger.judge(own, Finding({"p": 1}), profile="x")[0] == "weak (two seeds)"


def test_seeds_that_were_seen_stop_only_the_rule_for_fresh_ones():
    claim = {"id": "X", "kind": "empirical", "outcomes": [{"verdict": "supported", "when": {"p": {"at_least": 1}}}]}
    claim["outcomes"].append({"verdict": "contradicted"})
    seen = Finding({"p": 1}, not_fresh="seeds were seen")
    assert ledger.judge(claim, seen, profile="x") == ("not run (seeds were seen)", "")
    before = {**claim, "kind": "registered", "outcomes": [{"verdict": "reproduced"}]}
    assert ledger.judge(before, seen, profile="x") == ("reproduced", "")


def test_claims_without_a_verdict_are_listed():
    ids = ledger.claims_of("01_salience_derivation")
    assert {"C6", "C23"} <= set(ids)
    rest = ledger.without_verdict("01_salience_derivation", [{"id": "C23"}, {"id": "C1"}])
    assert rest == sorted(set(ids) - {"C23"})
    assert ledger.without_verdict("01_salience_derivation", [{"id": name} for name in ids]) == []


def test_the_digest_of_a_rule_does_not_depend_on_the_order_of_its_parts(monkeypatch):
    claim = CLAIMS["C28"]

    def digest_of(other):
        monkeypatch.setattr(ledger, "load_claims", lambda: {"C28": other})
        return ledger.entry("C28", Finding({}, not_run="x"), profile="x")["rule_digest"]

    turned = {**claim, "judged": dict(reversed(claim["judged"].items()))}
    assert list(turned["judged"]) != list(claim["judged"])
    assert digest_of(turned) == digest_of(claim)
    assert digest_of({**claim, "judged": {**claim["judged"], "fresh_from": 11}}) != digest_of(claim)


def test_settings_are_the_numbers_of_the_rules_words():
    settings = ledger.settings("C25a")
    rule = CLAIMS["C25a"]["rule"]
    assert ", ".join(f"{s:.2f}" for s in settings["sparsities"]) in rule
    assert f"the larger of {settings['smallest_margin']:g} points" in rule
    assert set(settings["sparsities"]) <= set(published.reported("figure1")["sparsity"])
    with pytest.raises(ValueError, match="there is no claim 'C99'; the claims are C1, C2"):
        ledger.settings("C99")


def test_bad_claims_and_rows_are_named():
    with pytest.raises(ValueError, match="no claim 'C99'; the claims are C1, C2"):
        ledger.entry("C99", Finding({}), profile="default")
    with pytest.raises(ValueError, match=r"\['signed_overlap'\] are missing"):
        judged("C8", {"relative_difference": 0})
    with pytest.raises(ValueError, match="'largest_error' must be a finite number; got nan"):
        judged("C23", {"largest_error": float("nan")})
    measured = {"share_as_extreme": 1}
    for n in (None, float("nan"), True, 2.0):
        with pytest.raises(ValueError, match=r"n must be an integer of at least 0, as its rule asks for n >= 100; got"):
            judged("C32", measured, n=n)
    with pytest.raises(ValueError, match=r"intervals for \['other'\]"):
        ledger.entry("C23", Finding({"largest_error": 0}, {"other": (0, 1)}), profile="default")
    with pytest.raises(ValueError, match="does not use the statistic 'size'"):
        ledger.bound("C23", "size")
    assert ledger.bound("C23", "largest_error") == 1e-10
    with pytest.raises(ValueError, match=r"evidence/second_order.py has no function c99; add one for C99"):
        evidence.function_of("C99", "05_second_order")
    rows = published.reported("figure2")
    with pytest.raises(ValueError, match="C23 cannot be read from these rows: KeyError: 'case'"):
        ledger.find("C23", [rows], profile="default")
    with pytest.raises(ValueError, match="C23 cannot be read from these rows: TypeError"):
        ledger.find("C23", [rows, rows], profile="default")


def test_a_row_is_judged_by_the_numbers_it_shows():
    row = ledger.entry("C23", Finding({"largest_error": 1.0000002e-10}), profile="default")
    assert row["measured"] == {"largest_error": 1e-10}
    assert (row["verdict"], row["registered"]) == ("correct", "reproduced")


def found_entry():
    finding = Finding({"largest_error": 3.14159265e-14}, {"largest_error": (1e-14, 5e-14)}, 4, "a network")
    figure = "01_salience_derivation/linearity.png"
    return ledger.entry("C23", finding, profile="default", rows={"a.csv": "0"}, figure=figure, data="abc")


def test_the_ledger_holds_every_claim(tmp_path):
    rows = ledger.assemble([found_entry()])
    assert [row["id"] for row in rows] == list(CLAIMS)
    assert all(list(row) == list(ledger.FIELDS) for row in rows)
    by_id = {row["id"]: row for row in rows}
    assert by_id["C23"]["measured"] == {"largest_error": 3.14159e-14}
    assert by_id["C23"]["verdict"] == "correct"
    assert by_id["C8"]["verdict"] == "not run (its notebook has not)"
    ledger.write_ledger(tmp_path, rows)
    assert json.loads((tmp_path / "claims.json").read_text()) == rows
    text = (tmp_path / "claims.md").read_text()
    assert "largest error 3.142e-14 [1e-14, 5e-14]" in text
    assert "a network; n = 4" in text
    assert "(full/claims.md)" not in text
    assert text.count("\n- **C") == len(CLAIMS)
    registered = [c for c in CLAIMS.values() if c["id"].rstrip("ab") in REGISTERED and c.get("registered", True)]
    assert text.count("*As registered:*") == len(registered) >= len(REGISTERED)
    paper = (tmp_path / "claims.tex").read_text()
    assert r"\begin{longtable}" in paper
    assert paper.count("\nC") == len(CLAIMS)
    terminal = ledger.text_table(rows)
    assert terminal.splitlines()[0].startswith("C23   For the original SNIP salience")
    assert "no verdict yet: C1, C2" in terminal
    assert ledger.verdict_frame([found_entry()]).loc["C23", "verdict"] == "correct"


def test_formulas_do_not_cut_a_table():
    assert ledger.quoted("a $|x|$ and | b") == r"a ${\vert}x{\vert}$ and | b"
    row = next(line for line in ledger.markdown_table(ledger.assemble([])).splitlines() if line.startswith("| C1 "))
    assert row.count(" | ") == 6


def test_a_notebook_shows_its_verdicts():
    counted = ledger.entry(
        "C23", Finding({"largest_error": 1.0}, {"largest_error": (0.5, 2.0)}, 4, "a network"), profile="x"
    )
    alone = ledger.entry("C23", Finding({"largest_error": 1.0}), profile="x")
    frame = ledger.verdict_frame([counted, {**alone, "registered": None}])
    assert frame[["found", "scope", "n", "as registered"]].values.tolist() == [
        ["largest error 1 [0.5, 2]", "a network", 4, counted["registered"]],
        ["largest error 1", "", "", ""],
    ]
    assert counted["registered"]


def test_a_table_for_a_paper_is_escaped_and_has_no_row_numbers():
    frame = pd.DataFrame({"a_b": ["5 % of −1.2 × 10⁻¹²"], "c": ["d"]})
    lines = ledger.latex(frame, "lr").splitlines()
    assert lines[0] == r"% needs \usepackage{booktabs} and UTF-8"
    assert r"\begin{tabular}{lr}" in lines
    assert r"a\_b & c \\" in lines
    assert r"5 \% of $-$1.2 $\times$ 10$^{-12}$ & d \\" in lines
    long = ledger.latex(frame, "lr", long=True)
    assert long.startswith(r"% needs \usepackage{booktabs,longtable} and")
    assert r"\begin{longtable}{lr}" in long


def test_a_reason_stands_below_its_verdict():
    rows = [ledger.entry("C23", Finding({"largest_error": error}), profile="x") for error in (0.0, 1.0)]
    good, bad = ledger.markdown_table(rows).splitlines()[2:]
    assert "| **correct** |" in good
    assert "| **error, corrected**<br>largest_error 1 is above 1e-10 |" in bad


def test_one_run_has_no_interval_and_that_leaves_a_claim_open():
    nan = float("nan")
    finding = Finding({"gain": 0.1, "overlap_gain": 0.0, "error_gain_high": nan}, {"gain": (nan, nan)}, 1)
    row = ledger.entry("C28", finding, profile="default")
    assert row["verdict"].startswith("inconclusive (n = 1, the rule asks for ")
    assert row["measured"] == {"gain": 0.1, "overlap_gain": 0}
    assert row["low"] == {}
    with pytest.raises(ValueError, match="must be a finite number; got"):
        ledger.judge(CLAIMS["C28"], Finding(finding.statistics, finding.intervals, 50), profile="default")


def test_the_default_ledger_points_to_the_one_of_more_evidence():
    text = (project_root() / "figures" / "claims.md").read_text(encoding="utf-8")
    assert "(full/claims.md)" in text
