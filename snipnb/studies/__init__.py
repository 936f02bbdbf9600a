"""What the notebooks measure and draw, one folder per notebook. ``measure`` makes tables, ``draw`` makes figures, each by the function of its name."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snipnb.training.runs import RunConfig


def grids_of(notebook: str, parameters: Mapping[str, Any]) -> list[list[RunConfig]]:
    """Training runs of a notebook with these parameters, as lists that are each trained in one go. Empty lists are left out.

    Args:
        notebook: Its name, such as ``"02_snip_vs_exact"``.
        parameters: All of its parameters.

    Raises:
        ValueError: If the notebook trains nothing.
    """
    study = import_module(f"snipnb.studies.{notebook.split('_', 1)[1]}.measure")
    if not hasattr(study, "grids"):
        raise ValueError(f"notebook {notebook} trains nothing")
    grids = study.grids(parameters).values()
    flat = [[run for some in grid.values() for run in some] if isinstance(grid, dict) else grid for grid in grids]
    return [runs for runs in flat if runs]
