"""What published rows say about a claim: one function a claim, from tables as they stand in ``figures/`` to the numbers its rule compares.

Notebooks and ``make verify`` call the same functions on the same files, so a verdict follows from committed rows alone. Tables come as
``pandas.read_csv`` gives them, in the order in which the notebook hands them to ``report.claim``; settings of a rule as keyword
arguments. Nothing here knows a network, and nothing imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from snipnb.publish.evidence import (
    larger_networks,
    lenet5_table,
    rules_of_thumb,
    salience_derivation,
    second_order,
    seed_consistency,
    snip_vs_exact,
)
from snipnb.publish.evidence.parts import Finding as Finding

MODULES = (
    salience_derivation,
    snip_vs_exact,
    lenet5_table,
    seed_consistency,
    second_order,
    rules_of_thumb,
    larger_networks,
)


def function_of(claim_id: str) -> Callable[..., Finding]:
    """The function of a claim; ValueError if there is none."""
    name = claim_id.lower()
    found = next((vars(module)[name] for module in MODULES if name in vars(module)), None)
    if found is None:
        raise ValueError(f"snipnb/publish/evidence/ has no function {name}; add the one of {claim_id}")
    return found


def read_rows(path: Path) -> pd.DataFrame:
    """A published table; only an empty cell is a missing value, and of texts an empty text."""
    frame = pd.read_csv(path, keep_default_na=False, na_values=[""])
    return frame.fillna({name: "" for name in frame if not pd.api.types.is_numeric_dtype(frame[name])})
