"""The published values, as read off the write-up, and its names of parameters."""

from __future__ import annotations

import re

import pandas as pd

from snipnb._files import resource


def reported(name: str) -> pd.DataFrame:
    """A file of published values: ``"figure1"``, ``"figure2"``, ``"figure2_errors"``, or other papers' ``"lenet_300_100"``."""
    files = {path.stem.replace("_reported", ""): path for path in sorted(resource("reported").glob("*.csv"))}
    if name not in files:
        raise ValueError(f"the name of reported values must be one of {', '.join(files)}; got {name!r}")
    return pd.read_csv(files[name])


def published_label(parameter: str) -> str:
    """The write-up's name of a parameter: ``conv1.weight`` is "conv 1", ``full3.bias`` is "bias full 3".

    Example:
        >>> import snipnb
        >>> snipnb.published_label("conv1.weight"), snipnb.published_label("full3.bias")
        ('conv 1', 'bias full 3')
    """
    found = re.fullmatch(r"([a-z]+)(\d+)\.(weight|bias)", parameter)
    if found is None:
        return parameter
    return ("bias " if found[3] == "bias" else "") + f"{found[1]} {found[2]}"
