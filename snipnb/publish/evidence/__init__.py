"""What published rows say about a claim: one function per claim, from the tables in ``figures/`` to the numbers that its rule compares.

Notebooks and ``make verify`` call the same functions on the same files, so a verdict follows from committed rows alone. The arguments are
tables, as :func:`read_rows` reads them, in the order in which the notebook hands them to ``report.claim``. Settings of a rule are keyword
arguments. Nothing here knows a network, and nothing imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pandas as pd

from snipnb.publish.evidence.parts import Finding as Finding


def function_of(claim_id: str, notebook: str) -> Callable[..., Finding]:
    """Find a claim's function in the module that is named after its notebook. Raises ValueError if it has none."""
    slug, name = notebook.split("_", 1)[1], claim_id.lower()
    found = getattr(import_module(f"{__name__}.{slug}"), name, None)
    if found is None:
        raise ValueError(f"snipnb/publish/evidence/{slug}.py has no function {name}; add one for {claim_id}")
    return found


def read_rows(path: Path) -> pd.DataFrame:
    """A published table; only empty cells are missing values, and in columns of texts they are empty texts."""
    frame = pd.read_csv(path, keep_default_na=False, na_values=[""])
    return frame.fillna({name: "" for name in frame if not pd.api.types.is_numeric_dtype(frame[name])})
