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
    written, numbers = load_sentences()["C5"], row()["measured"]
    assert sentence(row()) == fill(written[row()["verdict"]], numbers)
    assert sentence(row(verdict="supported")) == fill(written["supported"], numbers)
    assert sentence(row(verdict="supported (for another reason)")) == fill(written["supported"], numbers)
    assert sentence(row()) != sentence(row(verdict="supported"))


def test_too_few_runs_and_no_run_are_said():
    assert sentence(row(verdict="inconclusive (n = 3, the rule asks for 5; so far supported)")) == (
        "Open: n = 3, the rule asks for 5; so far supported."
    )
    assert sentence(row(verdict="not run (budget of profile default)")) == "Not run: budget of profile default."
    assert sentence(row(verdict="inconclusive")) == "Open."


def test_a_number_that_is_missing_is_named_or_leaves_the_row_to_be_run():
    with pytest.raises(ValueError, match="needs the number 'x'; the numbers are n"):
        fill("{x}", {"n": 4})
    stale = row(measured={}, notebook="02_snip_vs_exact")
    assert sentence(stale) == "Found by another rule: 02_snip_vs_exact has to run again."


def test_no_published_row_waits_for_its_notebook():
    assert not [claim for claim in ROWS if "has to run again" in sentence(ROWS[claim])]


@pytest.mark.parametrize("claim_id", load_sentences())
def test_sentences_name_statistics_of_the_rule_or_of_the_row(claim_id):
    named = ledger.statistics(ledger.load_claims()[claim_id]) | set(ROWS[claim_id]["measured"])
    known = named | {name.removesuffix("_low").removesuffix("_high") for name in named} | {"n"}
    for template in load_sentences()[claim_id].values():
        assert {name for _, name, _, _ in Formatter().parse(template) if name} <= known


# Verdicts whose one sentence holds whatever the remark, as it says nothing but numbers.
WHATEVER_THE_REMARK = {"C1", "C2", "C4", "C13", "C29", "C30", "C31", "C35"}


@pytest.mark.parametrize("claim_id", sorted(ledger.load_claims().keys() - WHATEVER_THE_REMARK))
def test_outcomes_with_several_remarks_have_a_sentence_each(claim_id):
    outcomes, written = ledger.load_claims()[claim_id]["outcomes"], load_sentences()[claim_id]
    for word in {case["verdict"] for case in outcomes}:
        remarks = {case.get("remark") for case in outcomes if case["verdict"] == word}
        keys = {word if remark is None else f"{word} ({remark})" for remark in remarks}
        assert len(remarks) == 1 or len(keys & written.keys()) >= len(remarks) - 1


@pytest.mark.parametrize("claim_id", ledger.load_claims())
def test_numbers_that_a_sentence_has_typed_stand_in_the_rule_or_in_the_words(claim_id):
    claim = ledger.load_claims()[claim_id]
    rule = (
        claim["rule"] + claim["words"] + str(claim["outcomes"]) + str(claim.get("settings")) + str(claim.get("judged"))
    )
    allowed = {float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*\.?\d*", rule)} | {90, 95, 1}
    for template in load_sentences()[claim_id].values():
        typed = "".join(literal for literal, *_ in Formatter().parse(template))
        typed = re.sub(r"VGG16|LeNet-5|Figure \d|order [12]", "", typed)
        numbers = {float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*\.?\d*", typed)}
        assert numbers <= allowed, template


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
