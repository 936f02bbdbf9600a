"""The generated parts of README.md, between markers, and the gallery ``figures/README.md``: both follow from the files of ``figures/``."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Container
from pathlib import Path

from snipnb._files import published_dir, write_atomically
from snipnb.publish import ledger
from snipnb.training.store import Store
from tools import checkout
from tools.gallery import gallery

MARKER = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
TRAINED_ON = 55_000  # images of an epoch of the default profile


def update(*, check: bool = False, root: Path | None = None) -> bool:
    """Bring README.md and the gallery up to date with what is published.

    Args:
        check: Change nothing; only say whether all but the run times, which differ every time, is up to date.
        root: The checkout.

    Returns:
        Whether both are up to date afterwards.

    Raises:
        ValueError: If a marker names a part that cannot be generated.
    """
    root = root or checkout()
    readme, figures = root / "README.md", root / "figures"
    text = readme.read_text(encoding="utf-8")
    pages = {
        readme: render(text, figures, parts=set(_PARTS) - {"cost"} if check else None),
        figures / "README.md": gallery(figures, root / "notebooks"),
    }
    stale = [path for path, new in pages.items() if not path.is_file() or path.read_text(encoding="utf-8") != new]
    if check and stale:
        print(f"{', '.join(str(path.relative_to(root)) for path in stale)}: not as figures/ says; run make readme")
        return False
    for path in stale:
        write_atomically(path, pages[path])
    return True


def render(text: str, figures: Path, *, parts: Container[str] | None = None) -> str:
    """The text with the named generated parts made anew, default all, and the others as they are."""
    chosen = _PARTS if parts is None else parts

    def replace(found: re.Match[str]) -> str:
        if found[2] not in _PARTS:
            raise ValueError(f"README.md has a part {found[2]!r}; the generated parts are {', '.join(_PARTS)}")
        return f"{found[1]}{_PARTS[found[2]](figures)}\n{found[3]}" if found[2] in chosen else found[0]

    return MARKER.sub(replace, text)


def verdicts(figures: Path) -> str:
    """The verdict table: every claim, by the ledger of the profile ``full``."""
    lines = ["| | the write-up says | verdict | scope | as registered | where |", "|---|---|---|---|---|---|"]
    for row in json.loads((figures / "full" / "claims.json").read_text(encoding="utf-8")):
        name, where = row["notebook"], ""
        if row["profile"]:
            where = f"[{name.split('_')[0]}](notebooks/{name}.ipynb)"
            file = published_dir(Path("figures"), row["profile"]) / (row["figure"] or "")
            where += f", [{file.suffix[1:]}]({file.as_posix()})" if row["figure"] else ""
        words = f"“{ledger.quoted(row['words'])}”"
        cells = [row["id"], words, row["verdict"], ledger.scope(row), row["registered"] or "", where]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def cost(figures: Path) -> str:
    """What each notebook of the default profile took when the published files were made."""
    lines = ["| notebook | minutes | peak memory | machine |", "|---|---|---|---|"]
    path = figures / "provenance.json"
    runs = json.loads(path.read_text(encoding="utf-8"))["notebooks"] if path.is_file() else {}
    for notebook, run in runs.items():
        machine = f"{run['machine']['cores']} cores, {run['machine']['processor']}"
        memory = f"{run['peak_memory_mb'] / 1024:.1f} GiB" if run.get("peak_memory_mb") else ""
        lines.append(f"| {notebook} | {run['seconds'] / 60:.1f} | {memory} | {machine} |")
    if runs:
        total = sum(run["seconds"] for run in runs.values())
        lines.append(f"| together | {total / 60:.0f} | | |")
        if epoch := _plain_epoch(figures):
            lines.append(f"| the same, in epochs of a plain loop ({epoch:.1f} s) | {total / epoch:.0f} epochs | | |")
    return "\n".join(lines)


def _plain_epoch(figures: Path) -> float | None:
    """Seconds that ``make bench`` measured for a plain PyTorch loop over the images that one LeNet-5 is trained on, if it did."""
    path = figures / "bench" / "training.csv"
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", newline="") as lines:
        plain = next(row for row in csv.DictReader(lines) if row["way"] == "plain loop")
    return float(plain["seconds"]) / float(plain["images"]) * TRAINED_ON


def kept(figures: Path) -> str:
    """How many training runs are finished and kept with the project."""
    folder = figures / "full" / "runs"
    runs = list(Store(folder).runs().values())
    if not runs:
        return "No training run is kept with the project yet."
    longest = max(len(run["history"]["epoch"]) for run in runs)
    long = sum(len(run["history"]["epoch"]) == longest for run in runs)
    return (
        f"{len(runs):,} trained networks, {long:,} of them over {longest} epochs, are kept in [figures/full/runs](figures/full/runs). They are found by what "
        "their configurations say, whatever becomes of the code, and `make verify-runs` trains the first epoch of some of them again."
    )


_PARTS = {"verdicts": verdicts, "cost": cost, "kept": kept}
