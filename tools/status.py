"""What ``make status`` says: which published notebooks are out of date, and why. Nothing is run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from snipnb.publish.profiles import load_profile
from tools import runner, state


def status(root: Path) -> Iterator[str]:
    """A line for each notebook of each published profile of a checkout."""
    for name in ("default", "full"):
        profile = load_profile(name)
        place = state.place_of(profile, root)
        yield f"{name}, in {place.published.relative_to(root)}/:"
        for path in runner.find_notebooks(root):
            mark = state.fingerprint(path, runner.parameters_of(path, profile))
            yield f"  {path.stem:<24} {state.out_of_date(path.stem, mark, place) or 'up to date'}"
