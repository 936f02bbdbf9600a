"""What came out in notebook 09, in sentences made from its table."""

from __future__ import annotations

import pandas as pd

from snipnb.publish.sentences import outcome
from snipnb.publish.style import with_minus
from snipnb.studies.portability.measure import SHOWN, kinds


def findings(said: pd.DataFrame) -> pd.DataFrame:
    """What came out, in a sentence for all claims and one for each.

    Args:
        said: ``network``, ``claim``, ``verdict``, ``value``, ``bound``.

    Returns:
        ``question``, ``what came out``.
    """
    networks = list(dict.fromkeys(said["network"]))
    parts = [f"{kind}: {', '.join(SHOWN[claim].says for claim in claims)}" for kind, claims in kinds(said).items()]
    text = "; ".join(parts)
    text = f"On {networks[0]}: {text}" if len(networks) == 1 else f"{text[0].upper()}{text[1:]}"
    rows = [{"question": "Which findings hold elsewhere, too?", "what came out": f"{text}."}]
    for claim, own in said.groupby("claim", sort=False):
        shown = SHOWN[str(claim)]
        bound = "{:.0%}" if "%" in shown.form else "{:.2g}"
        texts = (
            f"{shown.form.format(row['value'])} (bound {bound.format(abs(row['bound']))})" for _, row in own.iterrows()
        )
        words = (outcome(verdict)[2] for verdict in own["verdict"])
        of = [
            f"{n}, {with_minus(t).replace('%', ' %')}: {w}"
            for n, t, w in zip(own["network"], texts, words, strict=True)
        ]
        rows.append({"question": f"{claim}: {shown.says}", "what came out": f"{'; '.join(of)}."})
    return pd.DataFrame(rows)
