"""What ``make claim C=C20`` does: run the notebook that decides a claim, and compare what came out with what is published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from snipnb.publish import ledger
from snipnb.publish.profiles import load_profile
from tools import checkout, runner, state

SHOWN = ("measured", "low", "high", "n", "scope", "verdict", "registered")


def again(claim_id: str, profile: str) -> bool:
    """Run the notebook of a claim and print the claim's row, with the published and the new value where they differ; returns whether they are the same.

    Raises:
        ValueError: If there is no such claim or profile.
        DataUnavailableError: If the images are missing.
    """
    claims = ledger.load_claims()
    if claim_id not in claims:
        raise ValueError(f"there is no claim {claim_id!r}; the claims are {', '.join(claims)}")
    claim = claims[claim_id]
    file = state.place_of(load_profile(profile), checkout()).published / "claims.json"
    expected = _row(file, claim_id)
    if not runner.run(profile, [claim["notebook"]], force=True):
        return False
    obtained = _row(file, claim_id)
    print(f"{claim_id}: “{' '.join(claim['words'].split())}” ({claim['place']})\n{claim['rule']}\n")
    for field in SHOWN:
        before, now = (row.get(field) for row in (expected, obtained))
        print(
            f"  {field:<12} {now}" if before == now else f"  {field:<12} published {before}\n{'':<14} obtained  {now}"
        )
    same = all(expected.get(field) == obtained.get(field) for field in SHOWN)
    print("\nas published" if same else "\nnot as published")
    return same


def _row(file: Path, claim: str) -> dict[str, Any]:
    """A row of a published ledger; empty if there is none."""
    rows = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    return next((row for row in rows if row["id"] == claim), {})
