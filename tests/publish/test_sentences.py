import json
import re
from string import Formatter

import pytest

from snipnb._files import project_root
from snipnb.publish import ledger
from snipnb.publish.sentences import FORMATS, OUTCOMES, fill, load_sentences, outcome, sentence, summary

WORDS = [word for kind, words in ledger.WORDS.items() if kind != "registered" for word in words]
ROWS = {row["id"]: row for row in json.loads((project_root() / "figures/full/claims.json").read_text("utf-8"))}


def row(**changed):
    facts = {"id": "C5", "verdict": "supported (for the direct way; a structured one needs fewer)", "n": None}
    facts["profile"] = "smoke"
    measured = {"cost_in_forward_passes_over_m": 0.001}
    return facts | {"measured": measured, "low": {}, "high": {}} | changed


@pytest.mark.parametrize("claim_id", ledger.load_claims())
def test_every_outcome_of_a_rule_has_a_sentence(claim_id):
    written, general = load_sentences()[claim_id], {"inconclusive", "cannot tell", "not run"}
    for case in ledger.load_claims()[claim_id]["outcomes"]:
        whole = f"{case['verdict']} ({case['remark']})" if "remark" in case else case["verdict"]
        assert {whole, case["verdict"]} & (written.keys() | general), whole


def test_no_sentence_is_of_a_verdict_that_no_rule_has():
    for claim_id, written in load_sentences().items():
        outcomes = ledger.load_claims()[claim_id]["outcomes"]
        words = {outcome["verdict"] for outcome in outcomes}
        words |= {f"{o['verdict']} ({o['remark']})" for o in outcomes if "remark" in o}
        assert written.keys() <= words, claim_id


@pytest.mark.parametrize("claim_id", [name for name, row in ROWS.items() if "not run" not in row["verdict"]])
def test_every_sentence_names_numbers_that_the_ledger_has(claim_id):
    numbers = dict.fromkeys(ROWS[claim_id]["measured"], 0.5) | {"n": 3}
    numbers |= {f"{name}_{end}": 0.5 for end in ("low", "high") for name in ROWS[claim_id][end]}
    for verdict, template in load_sentences()[claim_id].items():
        names = {name for _, name, _, _ in Formatter().parse(template) if name}
        assert names <= numbers.keys(), verdict
        assert "{" not in fill(template, numbers)


@pytest.mark.parametrize("claim_id", ROWS)
def test_what_came_out_is_said_in_short_sentences(claim_id):
    said = sentence(ROWS[claim_id])
    assert said.endswith(".")
    assert max(len(part.split()) for part in re.split(r"\. (?=[A-Z])", said)) <= 28


def test_the_sentence_is_that_of_the_verdict_with_its_remark():
    written = load_sentences()["C35"]
    numbers = ROWS["C35"]["measured"]
    with_remark = row(id="C35", verdict="supported (at 0.95; at 0.99 both rules are worse)", measured=numbers)
    other_remark = row(id="C35", verdict="supported (also at 0.99)", measured=numbers)
    assert sentence(with_remark) == fill(written["supported (at 0.95; at 0.99 both rules are worse)"], numbers)
    assert sentence(other_remark) == fill(written["supported"], numbers)
    assert sentence(with_remark) != sentence(other_remark)


def test_too_few_runs_and_no_run_are_said():
    assert sentence(row(verdict="inconclusive (n = 3, the rule asks for 5; so far supported)")) == (
        "Open: n = 3, the rule asks for 5; so far supported."
    )
    assert sentence(row(verdict="not run (budget of profile default)")) == "Not run: budget of profile default."
    assert sentence(row(verdict="inconclusive")) == "Open."


def test_a_number_that_is_missing_is_named():
    with pytest.raises(ValueError, match="has no number 'cost_in_forward_passes_over_m'; there are n"):
        sentence(row(measured={}, n=4))


@pytest.mark.parametrize(
    ("template", "value", "said"),
    [
        ("{x:power}", 6.26e-8, "6.3 × 10⁻⁸"),
        ("{x:power}", 9.96e-8, "1.0 × 10⁻⁷"),
        ("{x:power}", 0.0, "0"),
        ("{x:p}", 0.0004, "<0.001"),
        ("{x:p}", 0.9999, ">0.99"),
        ("{x:p}", 0.0198, "0.02"),
        ("{x:inverse}", 0.0009213, "1,085"),
        ("{x:years}", 118_900_000, "226"),
        ("{x:+.3f}", -0.0177, "−0.018"),
        ("{x:.0%} of all", 0.971, "97 % of all"),
        ("{x}", 3, "3"),
    ],
)
def test_formats_of_numbers(template, value, said):
    assert fill(template, {"x": value}) == said


def test_every_format_is_used():
    templates = [template for written in load_sentences().values() for template in written.values()]
    used = {spec for template in templates for _, _, spec, _ in Formatter().parse(template)}
    assert FORMATS.keys() <= used


@pytest.mark.parametrize("word", [*WORDS, "not run"])
def test_every_word_of_a_verdict_comes_to_one_thing(word):
    assert outcome(f"{word} (with a remark)") in OUTCOMES.values()
    assert sum(word in words for words in OUTCOMES) == 1


def test_what_verdicts_come_to_differs_without_colours():
    glyphs, colours, names = zip(*OUTCOMES.values(), strict=True)
    assert len(set(glyphs)) == len(set(colours)) == len(set(names)) == len(OUTCOMES)


def test_a_word_that_no_ledger_has_is_refused():
    with pytest.raises(ValueError, match="a verdict must begin with a word of the ledger; got 'refuted'"):
        outcome("refuted")


def test_a_summary_has_a_line_for_every_verdict():
    lines = summary([row(), row(id="C2", verdict="not run (why)")]).splitlines()
    assert lines[0] == "**What came out** (profile smoke)"
    assert lines[4] == f"| C5 | ✓ supported | {sentence(row())} |"
    assert lines[5:] == ["| C2 | ? not run | Not run: why. |"]
