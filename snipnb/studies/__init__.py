"""What the notebooks measure and draw, a folder each: ``measure`` makes tables, ``draw`` figures, of the same names as their files."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snipnb.training.runs import RunConfig


def grids_of(notebook: str, parameters: Mapping[str, Any]) -> list[list[RunConfig]]:
    """The training runs of a notebook with these parameters: lists that are trained in one go each, empty ones left out.

    Args:
        notebook: Its name, such as ``"02_snip_vs_exact"``.
        parameters: All of its parameters.

    Raises:
        ValueError: If it trains nothing.
    """
    study = import_module(f"snipnb.studies.{notebook.split('_', 1)[1]}.measure")
    if not hasattr(study, "grids"):
        raise ValueError(f"notebook {notebook} trains nothing")
    grids = study.grids(parameters).values()
    flat = [[run for some in grid.values() for run in some] if isinstance(grid, dict) else grid for grid in grids]
    return [runs for runs in flat if runs]
