"""The ledger: each sentence of the write-up that can be judged, the rule for it, what published rows say, and the verdict.

Claims are data: ``claims.yaml`` has the write-up's exact words and today's rules, ``registered.yaml`` has the earlier rules and words, which are
never changed again, and ``quotations.json`` has the digests of all quotations. :mod:`snipnb.publish.evidence` turns rows into numbers. Each
notebook writes its verdicts to one small file. The ledger combines these files with the list of claims, so that no claim is left out.
:func:`verify` repeats all of it from committed rows. No torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from snipnb._files import resource, write_atomically
from snipnb.publish.evidence import Finding, function_of, read_rows
from snipnb.publish.sentences import SUPERSCRIPTS, sentence

# Kind of a claim -> the words of its verdicts. The words "not run" are possible for every kind.
WORDS = {
    "published number": ("matches", "differs", "cannot tell"),
    "empirical": ("supported", "partly supported", "contradicted", "inconclusive"),
    "mathematics": ("correct", "correct up to wording", "error, corrected"),
    "account": ("no verdict",),  # and definitions, and assumptions
    "registered": ("reproduced", "reproduced with correction", "not reproduced", "refuted", "weak"),
}
UNDECIDED = {
    "published number": "cannot tell",
    "empirical": "inconclusive",
    "account": "no verdict",
    "registered": "weak",
}
JUDGED_BY = ("rule", "outcomes", "settings", "judged", "needs")  # the parts of a claim that its verdict follows from
FIELDS = ["id", "kind", "words", "place", "rule", "reported", "measured", "low", "high", "n", "scope"]
FIELDS += ["verdict", "reason", "registered", "profile", "notebook", "figure", "data", "rows", "rule_digest"]
_COMPARISONS = {"at_most": (float.__le__, "above"), "at_least": (float.__ge__, "below")}


@cache
def load_claims() -> dict[str, dict[str, Any]]:
    """All claims by id, in the write-up's order, from ``claims.yaml``."""
    claims = _read("claims.yaml")
    for claim in claims.values():
        _check(claim)
    return claims


def _read(name: str) -> dict[str, dict[str, Any]]:
    return {claim["id"]: claim for claim in yaml.safe_load(resource(name).read_text(encoding="utf-8"))}


def _check(claim: Mapping[str, Any]) -> None:
    """Raise ValueError unless the kind, verdicts and comparisons of a claim are known."""
    kinds = [kind for kind in WORDS if kind != "registered"]
    if claim["kind"] not in kinds:
        raise ValueError(f"{claim['id']}: kind must be one of {', '.join(kinds)}; got {claim['kind']!r}")
    for outcome in claim["outcomes"]:
        if outcome["verdict"] not in (words := (*WORDS[claim["kind"]], "not run")):
            raise ValueError(f"{claim['id']}: a verdict must be one of {', '.join(words)}; got {outcome['verdict']!r}")
        for name, bounds in outcome.get("when", {}).items():
            if not bounds or not bounds.keys() <= _COMPARISONS.keys():
                raise ValueError(f"{claim['id']}: {name} must be compared by {', '.join(_COMPARISONS)}; got {bounds!r}")


@cache
def load_registered() -> dict[str, dict[str, Any]]:
    """The claims as first registered, by id. Their verdicts have other words, and their rules never change."""
    return {id: {**claim, "kind": "registered"} for id, claim in _read("registered.yaml").items()}


def claims_of(notebook: str) -> list[str]:
    """Ids of the claims that a notebook must give a verdict on."""
    return [c["id"] for c in load_claims().values() if c["notebook"] == notebook]


def without_verdict(notebook: str, entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """Ids of the claims of a notebook on which these entries give no verdict."""
    return sorted(set(claims_of(notebook)) - {entry["id"] for entry in entries})


def bound(claim_id: str, statistic: str) -> float:
    """The number with which a claim's rule compares a statistic or an end of its interval, for drawing; the first of several."""
    for outcome in _claim(claim_id)["outcomes"]:
        for name in (statistic, f"{statistic}_low", f"{statistic}_high"):
            if name in outcome.get("when", {}):
                return float(next(iter(outcome["when"][name].values())))
    raise ValueError(f"the rule of {claim_id} does not use the statistic {statistic!r}")


def settings(claim_id: str) -> dict[str, Any]:
    """Name -> number, or list of numbers, that the rule of a claim prescribes for measuring."""
    return _claim(claim_id).get("settings", {})


def judge(claim: Mapping[str, Any], finding: Finding, *, profile: str) -> tuple[str, str]:
    """The verdict on a claim, and the reason for it.

    Args:
        claim: As from :func:`load_claims` or :func:`load_registered`.
        finding: What rows say, with every statistic that the rule names.
        profile: Name of the profile that was run.

    Returns:
        The verdict, from the :data:`WORDS` of the claim's kind or ``not run``, with a remark in brackets if there is one; and the reason:
        the conditions that failed, or empty.

    Raises:
        ValueError: If a statistic is missing or not a number.
    """
    needs, kind = claim.get("needs", {}), claim["kind"]
    not_run = "untested" if kind == "registered" else "not run"
    if profile not in needs.get("profiles", [profile]):
        return f"{not_run} (budget of profile {profile})", ""
    if why := finding.not_run or (finding.not_fresh if kind != "registered" else ""):
        return f"{not_run} ({why})", ""
    found, needed, n = _numbers_of(finding), statistics(claim), finding.n
    if missing := needed - found.keys():
        raise ValueError(f"{claim['id']} needs the statistics {sorted(needed)}; {sorted(missing)} are missing")
    short = ""
    if "n" in needs:
        if isinstance(n, bool) or not isinstance(n, int) or n < 0:
            raise ValueError(
                f"{claim['id']}: n must be an integer of at least 0, as its rule asks for n >= {needs['n']}; got {n!r}"
            )
        short = f"n = {n}, the rule asks for {needs['n']}" if n < needs["n"] else ""
    for name in needed:
        if not math.isfinite(found[name]):
            if short:  # no interval from one run
                return f"{UNDECIDED[kind]} ({short})", ""
            raise ValueError(f"{claim['id']}: the statistic {name!r} must be a finite number; got {found[name]!r}")
    outcome, reason = _outcome(claim, found)
    verdict = outcome["verdict"]
    if short:
        so_far = "" if verdict == UNDECIDED[kind] else f"; so far {verdict}"
        return f"{UNDECIDED[kind]} ({short}{so_far})", reason
    remark = outcome.get("remark", claim.get("weak_as") if verdict == "weak" else None)
    if verdict == "inconclusive" and "n_to_decide" in found:
        enough = f"n = {found['n_to_decide']:.0f}" if math.isfinite(found["n_to_decide"]) else "no n"
        remark = f"power {found['power']:.2f}; {enough} would decide"
    return f"{verdict} ({remark})" if remark else verdict, reason


def statistics(claim: Mapping[str, Any]) -> set[str]:
    """Names of the statistics that the rule of a claim compares with numbers."""
    return {name for outcome in claim["outcomes"] for name in outcome.get("when", {})}


def find(claim_id: str, frames: Iterable[pd.DataFrame], *, profile: str) -> Finding:
    """What rows say about a claim, or only the reason if its rule is not applied in this profile.

    Raises:
        ValueError: If the claim is unknown, or the rows do not fit its function.
    """
    claim = _claim(claim_id)
    if profile not in claim.get("needs", {}).get("profiles", [profile]):
        return Finding({}, not_run=f"budget of profile {profile}")
    try:
        return function_of(claim_id, claim["notebook"])(*frames, **claim.get("settings", {}), **claim.get("judged", {}))
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{claim_id} cannot be read from these rows: {type(error).__name__}: {error}") from error


def entry(
    claim_id: str,
    finding: Finding,
    *,
    profile: str,
    rows: Mapping[str, str] | None = None,
    figure: str | None = None,
    data: str | None = None,
) -> dict[str, Any]:
    """One row of the ledger: the claim, its rule, the numbers, the verdict, and the verdict by the rule as registered.

    Numbers are judged as the row shows them, rounded, so that the verdict follows from the row alone.

    Args:
        claim_id: For instance ``"C8"``.
        finding: From :func:`find`.
        profile: Name of the profile that was run.
        rows: File -> digest, of the tables behind the row.
        figure: File name of the figure or table that shows the numbers.
        data: SHA-256 of the images.

    Raises:
        ValueError: As :func:`judge`; or if the claim is unknown.
    """
    claim = _claim(claim_id)
    if extra := finding.intervals.keys() - finding.statistics.keys():
        raise ValueError(f"{claim_id}: intervals for {sorted(extra)}, which are not among the statistics")
    ends = {name: (_rounded(low), _rounded(high)) for name, (low, high) in finding.intervals.items()}
    shown = replace(finding, statistics={k: _rounded(v) for k, v in finding.statistics.items()}, intervals=ends)
    verdict, reason = judge(claim, shown, profile=profile)
    before = _as_registered(claim)
    drawn = {name: pair for name, pair in ends.items() if all(map(math.isfinite, pair))}
    return {
        **_description(claim),
        "measured": {name: value for name, value in shown.statistics.items() if math.isfinite(value)},
        "low": {name: pair[0] for name, pair in drawn.items()},
        "high": {name: pair[1] for name, pair in drawn.items()},
        "n": finding.n,
        "scope": finding.scope,
        "verdict": verdict,
        "reason": reason,
        "registered": judge(before, shown, profile=profile)[0] if before else None,
        "profile": profile,
        "figure": figure,
        "data": data,
        "rows": dict(rows or {}),
    }


def assemble(entries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The whole ledger in the write-up's order: what notebooks found, with all other claims as not run."""
    found = {entry["id"]: entry for entry in entries}
    rows = (found.get(claim_id) or _not_run(claim) for claim_id, claim in load_claims().items())
    return [{field: row[field] for field in FIELDS} for row in rows]


def _not_run(claim: Mapping[str, Any]) -> dict[str, Any]:
    nothing = {"measured": {}, "low": {}, "high": {}, "rows": {}, "scope": "", "reason": ""}
    nothing["verdict"] = "not run (its notebook has not)"
    return {**dict.fromkeys(FIELDS), **nothing, **_description(claim)}


# --- proof ------------------------------------------------------------------------------------------------------------


def verify(folder: Path, *, benchmarks: Path, only: Iterable[str] | None = None) -> dict[str, list[str]]:
    """Recompute a published ledger from the tables that were published with it.

    Args:
        folder: Where ``claims.json`` and the tables are.
        benchmarks: The folder ``bench`` of the benchmark's tables.
        only: Ids; default all.

    Returns:
        Claim -> what disagrees: its quotation with the digest of the write-up's words, its rule with the rule that was applied, its rows
        with their digests, or a number or word with what the rows give now. Empty if everything is as published.

    Raises:
        ValueError: If there is no ledger.
    """
    try:
        published = {row["id"]: row for row in json.loads((folder / "claims.json").read_text(encoding="utf-8"))}
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / 'claims.json'} holds no ledger: {error}") from None
    quotations = json.loads(resource("quotations.json").read_text(encoding="utf-8"))
    wrong = {}
    for claim_id in dict.fromkeys([*load_claims(), *published]) if only is None else only:
        try:
            found = _differences(claim_id, published.get(claim_id), quotations.get(claim_id), folder, benchmarks)
        except (ValueError, OSError) as error:
            found = [str(error)]
        if found:
            wrong[claim_id] = found
    return wrong


def _differences(
    claim_id: str, row: Mapping[str, Any] | None, quotation: str | None, folder: Path, benchmarks: Path
) -> list[str]:
    claim = _claim(claim_id)
    if row is None:
        return ["the ledger has no row for it; run its notebook"]
    if row.keys() != set(FIELDS):
        return [f"its row does not have the fields of a ledger: {', '.join(sorted(row.keys() ^ set(FIELDS)))}"]
    found = []
    if quotation != digest(_squeezed(claim["words"])):
        found.append("its words differ from the words of the write-up")
    if row["rule_digest"] != _rule_digest(claim):
        found.append("its rule is not the rule that was applied")
    if row["profile"] is None:
        return found + _disagreeing(row, _not_run(claim))
    shelves = {"bench": benchmarks.parent, "reported": resource()}
    files = {name: shelves.get(name.split("/")[0], folder) / name for name in row["rows"]}
    for name, path in files.items():
        if digest(path.read_text(encoding="utf-8")) != row["rows"][name]:
            found.append(f"{name} is not the table that was read")
    finding = find(claim_id, map(read_rows, files.values()), profile=row["profile"])
    kept = {name: row[name] for name in ("profile", "rows", "figure", "data")}
    return found + _disagreeing(row, entry(claim_id, finding, **kept))


def _disagreeing(row: Mapping[str, Any], again: Mapping[str, Any]) -> list[str]:
    return [f"{field} is {again[field]!r}; published: {row[field]!r}" for field in FIELDS if again[field] != row[field]]


def digest(text: str) -> str:
    """The first 16 digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _squeezed(words: str) -> str:
    """A quotation with every run of white space as one space."""
    return " ".join(words.split())


def _rule_digest(claim: Mapping[str, Any]) -> str:
    return digest(json.dumps({part: claim.get(part) for part in JUDGED_BY}, sort_keys=True))


# --- as files and tables ----------------------------------------------------------------------------------------------


def write_ledger(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write ``claims.json``, ``claims.md`` and ``claims.tex`` into a folder; ``claims.md`` links to the profile ``full`` in it, if there is one."""
    write_atomically(folder / "claims.json", json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    rules = "\n".join(map(_rules, rows))
    stronger = _STRONGER if (folder / "full" / "claims.json").is_file() else ""
    text = f"# Claims and verdicts\n\n{stronger}{_ABOUT}\n\n{markdown_table(rows)}\n\n## Rules\n\n{rules}\n"
    write_atomically(folder / "claims.md", text)
    frame = verdict_frame(rows).reset_index(names="")[["", "the write-up says", "verdict", "found", "n"]]
    write_atomically(folder / "claims.tex", latex(frame, "lp{6cm}p{3cm}p{5cm}r", long=True))


_STRONGER = "The verdicts that count are those of [the profile full](full/claims.md): more seeds, longer training.\n\n"
_ABOUT = (
    "Quotations are exact. *As registered* is the verdict by the rule, and in the words, that were first written down; where the rule has "
    "changed since, both stand below with the reason. All tests are one-sided at 5 %, or intervals of 90 % for equivalence, unless a rule says "
    "otherwise; no correction is made across claims. `make verify` computes every row again from the tables beside this page."
)


def latex(frame: pd.DataFrame, columns: str, *, long: bool = False) -> str:
    """A table for a paper: a LaTeX ``tabular``, or a ``longtable`` over several pages; its first line says which packages it needs."""
    text = frame.to_latex(index=False, escape=True, column_format=columns, longtable=long)
    plain = {code: chr(digit) for digit, code in SUPERSCRIPTS.items()}
    text = re.sub(f"[{''.join(map(chr, plain))}]+", lambda power: f"$^{{{power[0].translate(plain)}}}$", text)
    text = text.replace("\N{MINUS SIGN}", "$-$").replace("\N{MULTIPLICATION SIGN}", r"$\times$")
    needs = r"\usepackage{booktabs,longtable}" if long else r"\usepackage{booktabs}"
    return f"% needs {needs} and UTF-8\n{text}"


def _where(row: Mapping[str, Any]) -> str:
    return row["notebook"] + (f"<br>{row['figure']}" if row["figure"] else "")


def markdown_table(rows: list[dict[str, Any]], where: Callable[[Mapping[str, Any]], str] = _where) -> str:
    """The ledger as a Markdown table: id, quotation, verdict, what came out, where to look (of a row; default names of files)."""
    lines = [
        "| | the write-up says | verdict | what came out | as registered | scope | where |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            row["id"],
            f"“{quoted(row['words'])}” ({row['place']})",
            f"**{row['verdict']}**" + (f"<br>{row['reason']}" if row["reason"] else ""),
            sentence(row),
            row["registered"] or "",
            scope(row),
            where(row),
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def quoted(words: str) -> str:
    """A quotation for a table: formulas inline, with bars as LaTeX commands, because plain bars would split the table's cells."""
    inline = _squeezed(words).replace("$$", "$")
    return re.sub(r"\$[^$]*\$", lambda formula: formula[0].replace("|", r"{\vert}"), inline)


def scope(row: Mapping[str, Any]) -> str:
    """What the numbers of a row are about, and their n."""
    number = "" if row["n"] is None else f"n = {row['n']}"
    return "; ".join(filter(None, (row["scope"], number)))


def text_table(rows: list[dict[str, Any]]) -> str:
    """The ledger for a terminal: one line for each claim with a verdict, and a list of the other ids."""
    room = 76  # of 118, next to the id and the verdict
    lines = [
        f"{row['id']:<5} {textwrap.shorten(row['words'], room, placeholder=' ...'):<{room}} {row['verdict']}"
        for row in rows
        if row["profile"]
    ]
    if rest := [row["id"] for row in rows if not row["profile"]]:
        lines.append(f"no verdict yet: {', '.join(rest)}")
    return "\n".join(lines)


def verdict_frame(entries: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """What a notebook shows of its verdicts: one row per claim."""
    return pd.DataFrame(
        {
            "claim": e["id"],
            "the write-up says": quoted(e["words"]),
            "what came out": sentence(e),
            "found": "; ".join(_numbers(e)),
            "scope": e["scope"],
            "n": "" if e["n"] is None else e["n"],
            "verdict": e["verdict"],
            "as registered": e["registered"] or "",
        }
        for e in entries
    ).set_index("claim")


def _rules(row: Mapping[str, Any]) -> str:
    """The rule of a claim, the numbers found, its changes, the looks at it, and the rule as registered, if there is one."""
    claim = _claim(row["id"])
    lines = [f"- **{row['id']}** ({claim['kind']}) {claim['rule']}"]
    if found := "; ".join(_numbers(row)):
        lines.append(f"  - *Found:* {found}")
    lines += [f"  - *{name.capitalize()}:* {claim[name]}" for name in ("changed", "looks") if name in claim]
    if before := _as_registered(claim):
        changed = f" *Changed then:* {before['changed']}" if "changed" in before else ""
        lines.append(f"  - *As registered:* {before['rule']}{changed}")
    return "\n".join(line.rstrip() for line in lines)


def _claim(claim_id: str) -> Mapping[str, Any]:
    claims = load_claims()
    if claim_id not in claims:
        raise ValueError(f"there is no claim {claim_id!r}; the claims are {', '.join(claims)}")
    return claims[claim_id]


def _as_registered(claim: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The claim as first registered; None for a claim that was added later."""
    return load_registered().get(claim["id"].rstrip("ab")) if claim.get("registered", True) else None


def _description(claim: Mapping[str, Any]) -> dict[str, Any]:
    fields = {field: claim[field] for field in ("id", "kind", "words", "place", "rule", "notebook")}
    return fields | {"reported": claim.get("reported"), "rule_digest": _rule_digest(claim)}


def _outcome(claim: Mapping[str, Any], found: Mapping[str, float]) -> tuple[Mapping[str, Any], str]:
    """The first outcome whose conditions all hold, and why the first outcome of the claim does not hold."""
    reasons: list[str] = []
    for outcome in claim["outcomes"]:
        failed = [
            f"{name} {float(found[name]):.4g} is {_COMPARISONS[kind][1]} {bound:g}"
            for name, bounds in outcome.get("when", {}).items()
            for kind, bound in bounds.items()
            if not _COMPARISONS[kind][0](float(found[name]), float(bound))
        ]
        if not failed:
            return outcome, "; ".join(reasons)
        reasons = reasons or failed
    raise AssertionError(f"the last outcome of {claim['id']} has a condition")


def _numbers_of(finding: Finding) -> dict[str, float]:
    """All numbers that a rule may compare: statistics, and the ends of their intervals."""
    lows = {f"{name}_low": low for name, (low, _) in finding.intervals.items()}
    highs = {f"{name}_high": high for name, (_, high) in finding.intervals.items()}
    return {**lows, **highs, **finding.statistics}


def _rounded(value: float) -> float | int:
    """A number with six significant digits, as the ledger compares it; integers stay integers."""
    value = float(value)
    return int(value) if value.is_integer() else float(f"{value:.6g}")


def _numbers(row: Mapping[str, Any]) -> list[str]:
    texts = []
    for name, value in row["measured"].items():
        interval = f" [{row['low'][name]:.4g}, {row['high'][name]:.4g}]" if name in row["low"] else ""
        texts.append(f"{name.replace('_', ' ')} {value:.4g}{interval}")
    return texts
