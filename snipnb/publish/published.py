"""The published values, as read off the write-up."""

from __future__ import annotations

import pandas as pd

from snipnb._files import resource


def reported(name: str) -> pd.DataFrame:
    """A file of published values: ``"figure1"``, ``"figure2"`` or ``"figure2_errors"``."""
    files = {
        "figure1": "figure1_reported.csv",
        "figure2": "figure2_reported.csv",
        "figure2_errors": "figure2_reported_errors.csv",
    }
    if name not in files:
        raise ValueError(f"there are no reported values {name!r}; accepted are {', '.join(files)}")
    return pd.read_csv(resource("reported", files[name]))
