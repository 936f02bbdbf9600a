"""The ledger: each claim of the write-up, the rule that was fixed for it, what was measured, and the verdict.

Rules are data (``resources/claims.yaml``). A notebook hands over named statistics; the verdict follows from the rule. What a
notebook measured is one small file; the ledger is all of those beside the list of claims, so that no claim is left out.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from snipnb._files import published_dir, resource, write_atomically

VERDICTS = ("reproduced", "reproduced with correction", "not reproduced", "refuted", "weak", "untested")
FIELDS = [
    "id",
    "claim",
    "section",
    "rule",
    "reported",
    "measured",
    "low",
    "high",
    "n",
    "verdict",
    "reason",
    "profile",
    "notebook",
    "figure",
]
STRENGTH = ("full", "default")  # of two profiles that decided a claim, the first is to be believed
_COMPARISONS = {"at_most": (float.__le__, "above"), "at_least": (float.__ge__, "below")}


@cache
def load_claims() -> dict[str, dict[str, Any]]:
    """All claims by id, in the write-up's order, as they stand in ``claims.yaml``."""
    return {claim["id"]: claim for claim in yaml.safe_load(resource("claims.yaml").read_text(encoding="utf-8"))}


def claims_of(notebook: str) -> list[str]:
    """Ids of the claims that a notebook has to give a verdict on."""
    return [c["id"] for c in load_claims().values() if c["notebook"] == notebook]


def without_verdict(notebook: str, entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """Ids of the claims of a notebook on which these entries give no verdict."""
    return sorted(set(claims_of(notebook)) - {entry["id"] for entry in entries})


def bound(claim_id: str, statistic: str) -> float:
    """The number that the rule of a claim compares a statistic with, for drawing it; the first if several."""
    for outcome in _claim(claim_id)["outcomes"]:
        if statistic in outcome.get("when", {}):
            return float(next(iter(outcome["when"][statistic].values())))
    raise ValueError(f"the rule of {claim_id} does not use the statistic {statistic!r}")


def statistics(claim_id: str) -> set[str]:
    """Names of the statistics that the rule of a claim compares with numbers."""
    return {name for outcome in _claim(claim_id)["outcomes"] for name in outcome.get("when", {})}


def settings(claim_id: str) -> dict[str, Any]:
    """Name -> number, or list of numbers, that the rule of a claim prescribes to whoever measures."""
    return _claim(claim_id).get("settings", {})


def settings_of(notebook: str) -> dict[str, dict[str, Any]]:
    """Claim -> settings, of the claims of a notebook that have some."""
    return {claim: settings(claim) for claim in claims_of(notebook) if settings(claim)}


def judge(
    claim_id: str, measured: Mapping[str, float], *, n: int | None, profile: str, protocol_followed: bool = False
) -> tuple[str, str]:
    """The verdict on a claim, and the reason for it.

    Args:
        claim_id: For instance ``"C8"``.
        measured: Statistic -> value; has to hold every statistic that the rule names, unless the verdict is ``untested``.
        n: Seeds or runs behind the numbers, None where there is nothing to count.
        profile: Name of the profile that was run.
        protocol_followed: Whether the published protocol was followed, for the rules that ask for it.

    Returns:
        Verdict (one of :data:`VERDICTS`; ``weak`` and ``untested`` with the reason in brackets) and the reason: which
        conditions failed, or empty.

    Raises:
        ValueError: If the claim is unknown, or a statistic is missing or not a number.
    """
    claim = _claim(claim_id)
    needs = claim.get("needs", {})
    accepted = needs.get("profiles", [profile])
    if profile not in accepted:
        return f"untested (budget of profile {profile})", ""
    if needs.get("protocol") and not protocol_followed:
        return "untested (not the published protocol)", ""
    needed = statistics(claim_id)
    if missing := needed - measured.keys():
        raise ValueError(f"{claim_id} needs the statistics {sorted(needed)}; missing are {sorted(missing)}")
    if "n" in needs and (isinstance(n, bool) or not isinstance(n, int) or n < 0):
        raise ValueError(f"{claim_id}: n must be an integer from 0, as its rule asks for n >= {needs['n']}; got {n!r}")
    for name, value in measured.items():
        if not _is_finite(value):
            if "n" in needs and n < needs["n"] and not isinstance(value, str):  # no interval from one run
                return f"weak (n = {n}, the rule asks for {needs['n']})", ""
            raise ValueError(f"{claim_id}: the statistic {name!r} must be a finite number; got {value!r}")
    verdict, reason = _outcome(claim, measured)
    if "n" in needs and n < needs["n"]:
        return f"weak (n = {n}, the rule asks for {needs['n']}; so far {verdict})", reason
    return (f"weak ({claim['weak_as']})" if verdict == "weak" else verdict), reason


def entry(
    claim_id: str,
    measured: Mapping[str, float],
    *,
    notebook: str,
    profile: str,
    n: int | None = None,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    figure: str | None = None,
    protocol_followed: bool = False,
) -> dict[str, Any]:
    """One row of the ledger: the claim, its rule, the numbers and the verdict; arguments as :func:`judge`.

    Numbers are judged as the row shows them, rounded, so that the verdict follows from the row alone.

    Args:
        intervals: Statistic -> (low, high), for those that have one.
        figure: File name of the figure or table that shows it.

    Raises:
        ValueError: As :func:`judge`; or if the claim belongs to another notebook.
    """
    claim = _claim(claim_id)
    if claim["notebook"] != notebook:
        raise ValueError(f"{claim_id} belongs to notebook {claim['notebook']!r}; got {notebook!r}")
    intervals = intervals or {}
    if extra := intervals.keys() - measured.keys():
        raise ValueError(f"{claim_id}: intervals for {sorted(extra)}, which are not among the statistics")
    shown = {name: _rounded(value) if _is_finite(value) else value for name, value in measured.items()}
    verdict, reason = judge(claim_id, shown, n=n, profile=profile, protocol_followed=protocol_followed)
    ends = {name: pair for name, pair in intervals.items() if all(math.isfinite(end) for end in pair)}
    return {
        **_description(claim),
        "measured": {name: value for name, value in shown.items() if _is_finite(value)},
        "low": {name: _rounded(pair[0]) for name, pair in ends.items()},
        "high": {name: _rounded(pair[1]) for name, pair in ends.items()},
        "n": n,
        "verdict": verdict,
        "reason": reason,
        "profile": profile,
        "figure": figure,
    }


def assemble(entries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The whole ledger in the write-up's order: what notebooks measured, and the other claims as untested."""
    measured = {entry["id"]: entry for entry in entries}
    rows = []
    for claim_id, claim in load_claims().items():
        nothing: dict[str, Any] = {
            "measured": {},
            "low": {},
            "high": {},
            "n": None,
            "reason": "",
            "profile": None,
            "figure": None,
        }
        untested = {**_description(claim), **nothing, "verdict": "untested (its notebook has not run)"}
        row = measured.get(claim_id, untested)
        rows.append({field: row[field] for field in FIELDS})
    return rows


def strongest(figures: Path) -> list[dict[str, Any]]:
    """The published ledger over all profiles: each claim as the strongest profile has it that had what its rule asks for.

    Profiles without the budget or protocol come last, those with too few runs before them; what no profile measured is untested.

    Args:
        figures: The folder of the default profile, those of others in it.

    Returns:
        Rows as from :func:`assemble`, in the write-up's order; ``profile`` says whose they are. Empty if the default profile has none.
    """
    ledgers = []
    for profile in STRENGTH:
        path = published_dir(figures, profile) / "claims.json"
        rows = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        ledgers.append({row["id"]: row for row in rows})
    found = {}
    for claim, row in ledgers[STRENGTH.index("default")].items():
        measured = [ledger[claim] for ledger in ledgers if ledger.get(claim, {}).get("profile")]
        found[claim] = min(measured, key=_lacking, default=row)
    return list(found.values())


def _lacking(row: Mapping[str, Any]) -> int:
    """How far a measured claim is from a verdict: 2 if its budget or protocol tells nothing, 1 if runs are missing, else 0."""
    return 2 if row["verdict"].startswith("untested") else 1 if row["verdict"].startswith("weak (n = ") else 0


def write_ledger(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write ``claims.json``, ``claims.md`` and ``claims.tex`` into a folder."""
    write_atomically(folder / "claims.json", json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    table = markdown_table(rows)
    rules = "\n".join(f"- **{row['id']}** {row['rule']}{_change(row['id'])}" for row in rows)
    text = f"# Claims and verdicts\n\n{table}\n\n## Rules, fixed beforehand; changes are marked\n\n{rules}\n"
    write_atomically(folder / "claims.md", text)
    frame = verdict_frame(rows).reset_index(names="")[["", "what it says", "verdict", "measured", "n"]]
    paper = latex(frame.rename(columns={"what it says": "claim"}), "lp{6cm}p{3cm}p{5cm}r", long=True)
    write_atomically(folder / "claims.tex", paper)


def latex(frame: pd.DataFrame, columns: str, *, long: bool = False) -> str:
    """A table for a paper: a LaTeX ``tabular``, or a ``longtable`` over pages; its first line says what it needs."""
    text = frame.to_latex(index=False, escape=True, column_format=columns, longtable=long)
    needs = r"\usepackage{booktabs,longtable}" if long else r"\usepackage{booktabs}"
    return f"% needs {needs} and UTF-8\n{text}"


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """The ledger as a Markdown table: id, claim, verdict, numbers, where to look."""
    lines = ["| | claim (section) | verdict | measured | n | profile | where |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        cells = [
            row["id"],
            f"{row['claim']} ({row['section']})",
            f"**{row['verdict']}**" + (f"<br>{row['reason']}" if row["reason"] else ""),
            "<br>".join(_numbers(row)),
            "" if row["n"] is None else str(row["n"]),
            row["profile"] or "",
            row["notebook"] + (f"<br>{row['figure']}" if row["figure"] else ""),
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def text_table(rows: list[dict[str, Any]], *, width: int = 118) -> str:
    """The ledger for a terminal: claims with a verdict line by line, and the untested ones as a list of ids."""
    room = width - 6 - 36  # beside the id and the verdict
    lines = [
        f"{row['id']:<5} {textwrap.shorten(row['claim'], room, placeholder=' ...'):<{room}} {row['verdict']}"
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
            "what it says": e["claim"],
            "reported": e["reported"] or "",
            "measured": "; ".join(_numbers(e)),
            "n": "" if e["n"] is None else e["n"],
            "verdict": e["verdict"],
        }
        for e in entries
    ).set_index("claim")


def _change(claim_id: str) -> str:
    changed = _claim(claim_id).get("changed")
    return f" *Changed:* {changed}" if changed else ""


def _claim(claim_id: str) -> dict[str, Any]:
    claims = load_claims()
    if claim_id not in claims:
        raise ValueError(f"there is no claim {claim_id!r}; the claims are {', '.join(claims)}")
    return claims[claim_id]


def _description(claim: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **{field: claim[field] for field in ("id", "claim", "section", "rule", "notebook")},
        "reported": claim.get("reported"),
    }


def _outcome(claim: Mapping[str, Any], measured: Mapping[str, float]) -> tuple[str, str]:
    """The first outcome whose conditions all hold, and what kept the first one from holding."""
    reasons: list[str] = []
    for outcome in claim["outcomes"]:
        failed = [
            f"{name} {float(measured[name]):.4g} is {_COMPARISONS[kind][1]} {bound:g}"
            for name, bounds in outcome.get("when", {}).items()
            for kind, bound in bounds.items()
            if not _COMPARISONS[kind][0](float(measured[name]), float(bound))
        ]
        if not failed:
            return outcome["verdict"], "; ".join(reasons)
        reasons = reasons or failed
    raise AssertionError(f"the last outcome of {claim['id']} has a condition")


def _is_finite(value: Any) -> bool:
    return not isinstance(value, str) and math.isfinite(value)


def _rounded(value: float) -> float | int:
    """Six significant digits are what a ledger compares; integers stay integers."""
    return int(value) if float(value).is_integer() else float(f"{float(value):.6g}")


def _numbers(row: Mapping[str, Any]) -> list[str]:
    texts = []
    for name, value in row["measured"].items():
        interval = f" [{row['low'][name]:.4g}, {row['high'][name]:.4g}]" if name in row["low"] else ""
        texts.append(f"{name.replace('_', ' ')} {value:.4g}{interval}")
    return texts
