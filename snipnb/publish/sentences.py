"""What came out for a claim, as a sentence: the template of ``sentences.yaml`` for the verdict, filled with the numbers of the ledger's row."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from string import Formatter
from typing import Any

import yaml

from snipnb._files import resource

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
# Words of verdicts -> their outcome: glyph, colour of a tile, and name.
OUTCOMES = {
    ("supported", "matches", "correct"): ("✓", "#a8d8c0", "holds"),
    ("partly supported", "correct up to wording"): ("≈", "#dcebb2", "in part or reworded"),
    ("error, corrected",): ("✎", "#f7d59c", "corrected"),
    ("contradicted", "differs"): ("✗", "#eda9a0", "contradicted"),
    ("inconclusive", "cannot tell", "not run"): ("?", "#ffffff", "open"),
    ("no verdict",): ("·", "#e4e4e4", "no verdict"),
}
GENERAL = {"not run": "Not run.", "inconclusive": "Open.", "cannot tell": "Open."}  # where no sentence is written


def power(value: float) -> str:
    """Two digits times a power of ten, such as 6.3 × 10⁻⁸; 0 and infinity stay as they are."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digit, exponent = f"{value:.1e}".split("e")
    return f"{digit} × 10{str(int(exponent)).translate(SUPERSCRIPTS)}"


def p_value(value: float) -> str:
    """A p-value with two digits, or as below 0.001 or above 0.99."""
    return "<0.001" if value < 0.001 else ">0.99" if value > 0.99 else f"{value:.2g}"


# Formats of a number in addition to Python's.
FORMATS: dict[str, Callable[[float], str]] = {
    "power": power,
    "p": p_value,
    "inverse": lambda value: f"{1 / value:,.0f}",
    "years": lambda minutes: f"{minutes / (365.25 * 24 * 60):,.0f}",
}


@cache
def load_sentences() -> dict[str, dict[str, str]]:
    """Claim -> verdict -> template, as in ``sentences.yaml``."""
    return yaml.safe_load(resource("sentences.yaml").read_text(encoding="utf-8"))


def sentence(row: Mapping[str, Any]) -> str:
    """What came out for a claim.

    Args:
        row: Row of the ledger, as in ``claims.json``. If it lacks a number of today's sentence, it was found by another rule, and the result says so.
    """
    word, _, remark = row["verdict"].removesuffix(")").partition(" (")
    if "the rule asks for" in remark:  # too few runs for a verdict
        return f"Open: {remark}."
    written = load_sentences().get(row["id"], {})
    template = written.get(row["verdict"], written.get(word))
    if template is None:
        return f"{GENERAL[word].removesuffix('.')}: {remark}." if remark else GENERAL[word]
    try:
        return fill(template, _numbers(row))
    except ValueError:  # the numbers of another rule
        return f"Found by another rule: {row['notebook']} has to run again."


def outcome(verdict: str) -> tuple[str, str, str]:
    """Glyph, colour and name of a verdict's outcome, whatever its remark.

    Raises:
        ValueError: If the verdict does not begin with a word of the ledger.
    """
    word = verdict.partition(" (")[0]
    for words, shown in OUTCOMES.items():
        if word in words:
            return shown
    raise ValueError(f"a verdict must begin with a word of the ledger; got {verdict!r}")


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """What came out for the claims of a run, as a table in Markdown: id, verdict with its glyph, sentence."""
    profiles = " and ".join(sorted({row["profile"] for row in rows}))
    lines = [f"**What came out** (profile {profiles})", "", "| claim | verdict | |", "|---|---|---|"]
    for row in rows:
        word = row["verdict"].partition(" (")[0]
        lines.append(f"| {row['id']} | {outcome(word)[0]} {word} | {sentence(row)} |")
    return "\n".join(lines)


def fill(template: str, numbers: Mapping[str, float]) -> str:
    """A template with numbers in place of its fields; names may hold a dot.

    Raises:
        ValueError: If a field has no number.
    """

    def number(name: str, form: str) -> str:
        if not math.isfinite(numbers.get(name, math.nan)):
            raise ValueError(f"{template!r} needs the number {name!r}; the numbers are {', '.join(numbers)}")
        return shown(numbers[name], form).replace("-", "−").replace("%", " %")

    return filled(template, number)


def filled(template: str, show: Callable[[str, str], str]) -> str:
    """A template with what ``show`` says of a name and a format in place of each field."""
    parsed = Formatter().parse(template)
    return "".join(text + ("" if name is None else show(name, form or "")) for text, name, form, _ in parsed)


def shown(value: Any, form: str) -> str:
    """A value in one of :data:`FORMATS`, or in a format of Python."""
    return FORMATS[form](value) if form in FORMATS else format(value, form)


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Statistics of a row, the ends of their intervals, and n."""
    ends = {f"{name}_{end}": value for end in ("low", "high") for name, value in row[end].items()}
    return {**row["measured"], **ends, **({} if row["n"] is None else {"n": row["n"]})}
