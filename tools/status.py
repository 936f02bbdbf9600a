"""What ``make status`` says: which published notebooks are out of date, and why. Nothing is run."""

from __future__ import annotations

import json
import sys

from snipnb.publish.profiles import load_profile
from tools import checkout, runner, state


def main() -> int:
    """Print a line for each notebook of each published profile; returns the exit code, 0 whatever is out of date."""
    root = checkout()
    for name in ("default", "full"):
        profile = load_profile(name)
        place = state.place_of(profile, root)
        print(f"{name}, in {place.published.relative_to(root)}/:")
        for path in runner.find_notebooks(root):
            mark = state.fingerprint(path, runner.parameters_of(path, profile))
            reason = state.why_stale(path.stem, mark, place)
            if reason == state.NOT_RUN:  # here; the results that the project holds were made elsewhere
                reason = _since_published(place, path.stem, mark)
            print(f"  {path.stem:<24} {reason or 'up to date'}")
    return 0


def _since_published(place: state.Place, notebook: str, mark: dict[str, str]) -> str:
    """What has changed since the published files of a notebook were made, as far as their provenance says."""
    try:
        made = json.loads((place.published / "provenance.json").read_text(encoding="utf-8"))["notebooks"][notebook]
    except (OSError, ValueError, KeyError, TypeError):
        return "not run yet"
    if "made_from" not in made:
        return "published, but its inputs are not recorded"
    changed = [part for part in mark if mark[part] != made["made_from"].get(part)]
    return f"published; changed since then: {', '.join(changed)}" if changed else ""


if __name__ == "__main__":
    sys.exit(main())
