"""The generated parts of README.md and of docs, between markers, the picture on top, and the gallery ``figures/README.md``, all from ``figures/``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from snipnb._files import published_dir, write_atomically
from snipnb.publish import ledger
from snipnb.publish.sentences import OUTCOMES, outcome, sentence
from snipnb.training.store import Store
from tools import checkout, hero
from tools.gallery import gallery

MARKER = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
TRAINED_ON = 55_000  # images of an epoch of the default profile
PAGES = ("README.md", "docs/profiles.md")
HERO = "hero.png"
# The claims that answer a newcomer's questions, and the questions.
FINDINGS = {
    "C24": "Is SNIP a good approximation of the exact loss change?",
    "C25a": "Does it train as well?",
    "C32": "Are the published layer counts typical?",
    "C35": "Which weights, or how many per layer?",
    "C28": "Does a second order help?",
}
MOST_WORDS = 24  # of a finding in a row
# Notebook -> its question, and the claim that answers it; None: the first of its findings does.
QUESTIONS: dict[str, tuple[str, str | None]] = {
    "01_salience_derivation": ("What does SNIP's salience measure?", "C17"),
    "02_snip_vs_exact": ("How expensive is the exact salience?", "C36"),
    "03_lenet5_table": ("Are the published error rates reproduced?", "C33"),
    "04_seed_consistency": ("What stays the same over seeds?", "C31"),
    "05_second_order": ("Is the second-order formula right?", "C20"),
    "06_rules_of_thumb": ("Does SNIP know what each layer needs?", "C29"),
    "07_larger_networks": ("What about larger networks?", "C26"),
    "08_single_shot": ("Does another criterion do better?", None),
    "09_portability": ("Is it about SNIP, or about LeNet-5?", None),
}


def update() -> bool:
    """Bring README.md, the pages with generated parts, the picture and the gallery up to date with what is published.

    Raises:
        ValueError: If a marker names a part that cannot be generated.
    """
    for path, content in contents(checkout()).items():
        write_atomically(path, content)
    return True


def contents(root: Path) -> dict[Path, bytes]:
    """What :func:`update` writes: file -> content."""
    figures = root / "figures"
    pages = {root / page: render((root / page).read_text(encoding="utf-8"), figures) for page in PAGES}
    pages[figures / "README.md"] = gallery(figures, root / "notebooks")
    return {path: text.encode() for path, text in pages.items()} | {figures / HERO: hero.draw(figures)}


def render(text: str, figures: Path) -> str:
    """The text with the generated parts made anew."""

    def replace(found: re.Match[str]) -> str:
        if found[2] not in _PARTS:
            raise ValueError(f"there is no part {found[2]!r}; the generated parts are {', '.join(_PARTS)}")
        return f"{found[1]}{_PARTS[found[2]](figures)}\n{found[3]}"

    return MARKER.sub(replace, text)


def picture(figures: Path) -> str:
    """The picture on top, with what it shows in words."""
    return f"![{hero.alt(_ledger(figures))}](figures/{HERO})"


def findings(figures: Path) -> str:
    """The number of verdicts by outcome, and what came out for a newcomer's questions."""
    rows = {row["id"]: row for row in _ledger(figures)}
    names = [outcome(row["verdict"])[2] for row in rows.values()]
    counts = [(names.count(name), name.replace("holds", "hold")) for _, _, name in OUTCOMES.values()]
    tally = ", ".join(f"{count} {name}" for count, name in counts if count)
    changed = sum(
        "changed" in claim and rows[name]["registered"] is not None for name, claim in ledger.load_claims().items()
    )
    said = f"The rules of {changed} [changed](figures/full/claims.md) after they were registered."
    lines = [f"**{len(rows)} sentences and numbers: {tally}.** {said}\n"]
    lines += [f"- **{question}** {sentence(rows[claim])} ({claim})" for claim, question in FINDINGS.items()]
    return "\n".join(lines)


def notebooks(figures: Path) -> str:
    """Each notebook's question, what came out, the executed copy, and minutes of the default profile."""
    rows = {row["id"]: row for row in _ledger(figures)}
    runs = _provenance(figures)
    lines = ["| | question | what came out | minutes (default) |", "|---|---|---|---|"]
    for name, (question, claim) in QUESTIONS.items():
        copy = f"[{name.split('_')[0]}](figures/full/notebooks/{name}.ipynb)"
        minutes = f"{runs[name]['seconds'] / 60:.0f}" if name in runs else ""
        said = _first_finding(figures / "full" / name) if claim is None else sentence(rows[claim])
        lines.append(f"| {copy} | {question} | {said} | {minutes} |")
    return "\n".join(lines)


def _first_finding(folder: Path) -> str:
    """The first finding of a notebook, or as many of its parts as are short."""
    parts = str(pd.read_csv(folder / "findings.csv")["what came out"][0]).split("; ")
    short = next(k for k in range(len(parts), 0, -1) if k == 1 or len(" ".join(parts[:k]).split()) <= MOST_WORDS)
    return "; ".join(parts[:short]).removesuffix(".") + "."


def run(figures: Path) -> str:
    """The two commands, with the minutes of the published run."""
    minutes = sum(run["seconds"] for run in _provenance(figures).values()) / 60
    return f"""```sh
git clone <address of this repository> snip && cd snip
make figures   # environment, MNIST, all notebooks: {minutes:.0f} minutes on two cores, 2 GB
make test      # environment, all tests, a smoke run of every notebook: 20 minutes, no data needed
```"""


def verdicts(figures: Path) -> str:
    """The verdict table: every claim, by the ledger of the profile ``full``; the ledger's own page has the reasons, too."""
    return ledger.markdown_table([{**row, "reason": ""} for row in _ledger(figures)], _evidence)


def _evidence(row: Mapping[str, Any]) -> str:
    """Links to the executed copy of a row's notebook, and to its figure or table."""
    if not row["profile"]:
        return ""
    folder, name = published_dir(Path("figures"), row["profile"]), row["notebook"]
    links = f"[{name.split('_')[0]}]({(folder / 'notebooks' / name).as_posix()}.ipynb)"
    if row["figure"]:
        kind = "table" if row["figure"].endswith(".md") else "figure"
        links += f", [{kind}]({(folder / row['figure']).as_posix()})"
    return links


def cost(figures: Path) -> str:
    """The time and memory that each notebook of the default profile took when the published files were made."""
    lines = ["| notebook | minutes | peak memory | machine |", "|---|---|---|---|"]
    runs = _provenance(figures)
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


def _ledger(figures: Path) -> list[dict[str, Any]]:
    """The rows of the profile ``full``."""
    return json.loads((figures / "full" / "claims.json").read_text(encoding="utf-8"))


def _provenance(figures: Path) -> dict[str, dict[str, Any]]:
    """Notebook -> facts of its run in the default profile."""
    path = figures / "provenance.json"
    return json.loads(path.read_text(encoding="utf-8"))["notebooks"] if path.is_file() else {}


def _plain_epoch(figures: Path) -> float | None:
    """Seconds that ``make bench`` measured for a plain PyTorch loop over the images that one LeNet-5 is trained on, if it did."""
    path = figures / "bench" / "training.csv"
    if not path.is_file():
        return None
    plain = pd.read_csv(path, index_col="way").loc["plain loop"]
    return plain["seconds"] / plain["images"] * TRAINED_ON


def kept(figures: Path) -> str:
    """How many training runs are finished and kept with the project."""
    folder = figures / "full" / "runs"
    runs = list(Store(folder).runs().values())
    if not runs:
        return "No training run is kept with the project yet."
    longest = max(len(run["history"]["epoch"]) for run in runs)
    long = sum(len(run["history"]["epoch"]) == longest for run in runs)
    return (
        f"{len(runs):,} trained networks, {long:,} of them over {longest} epochs, are kept in `figures/full/runs`. Their configurations identify them, "
        "whatever becomes of the code, and `make verify-runs` trains the first epoch of some of them again."
    )


_PARTS: dict[str, Callable[[Path], str]] = {
    "hero": picture,
    "findings": findings,
    "run": run,
    "notebooks": notebooks,
    "verdicts": verdicts,
    "cost": cost,
    "kept": kept,
}
