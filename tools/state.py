"""Whether a notebook's published results are up to date, and if not, why.

This is decided by content (see :func:`fingerprint`, and the published files themselves), not by file times, which a clone or a checkout
changes.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

import snipnb
from snipnb._files import published_dir, write_atomically
from snipnb.data import data_checksum
from snipnb.publish.profiles import Profile
from snipnb.publish.report import versions

PACKAGE = Path(snipnb.__file__).resolve().parent
NOT_RUN = "not run yet"
ABOUT = "How each notebook was run. Times and machines live here only; this file is never compared."


@dataclass(frozen=True)
class Place:
    """The folders of one profile: where results are published, and where work is done."""

    published: Path
    work: Path

    def state(self, notebook: str) -> Path:
        """The file that says what was published for a notebook, and from what."""
        return self.work / "state" / f"{notebook}.json"


def place_of(profile: Profile, root: Path) -> Place:
    """``figures/`` for the default profile, ``build/smoke`` for smoke, ``figures/<name>`` for any other."""
    return Place(published_dir(root / "figures", profile.name), root / "build" / f".{profile.name}")


def fingerprint(path: Path, parameters: Mapping[str, Any], *, package: Path = PACKAGE) -> dict[str, str]:
    """SHA-256 of each part of what a notebook's results depend on.

    The library counts as a whole, by its syntax trees, without other notebooks' studies. Claims and benchmarks count if they are the
    notebook's own or if it names them.
    """
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = [(cell["cell_type"] == "code", "".join(cell["source"])) for cell in notebook["cells"]]
    code = "\n".join(text for runs, text in cells if runs)
    tables = re.findall(r"\bbenchmark\(\s*[\"'](\w+)", code)
    bench, study = path.parent.parent / "figures" / "bench", package / "studies" / path.stem.split("_", 1)[1]
    drawing = [study / "draw.py", study / "captions.yaml", package / "resources" / "tables.yaml"]
    drawing += [package / "publish" / name for name in ("style.py", "tables.py")]
    evidence = {file.stem: file for file in package.glob("publish/evidence/*.py")}
    judging = [study / "findings.py", *(package / "publish" / name for name in ("ledger.py", "sentences.py"))]
    judging += [file for name, file in evidence.items() if name in ("__init__", "parts", study.name)]
    others = {file for file in package.glob("studies/*/*") if file.parent != study} | {*evidence.values()}
    library = {*package.rglob("[!.]*.py")} - {*drawing, *others, *judging, package / "__main__.py"}
    parts = {
        "code": [text for runs, text in cells if runs],
        "prose": ["" if runs else text for runs, text in cells],  # and where it stands
        "library": _contents(package, library),
        "drawing": _contents(package, drawing),
        "parameters": parameters,
        "claims": [_claims_of(path.stem, code, package / "resources"), _contents(package, judging)],
        "benchmarks": _contents(bench, [bench / f"{name}.csv" for name in tables]),
        "reported values": _contents(package, package.glob("resources/reported/*.csv")),
        "data": data_checksum(sample=bool(parameters.get("sample"))),
        "versions": versions(),
    }
    texts = {part: json.dumps(content, sort_keys=True) for part, content in parts.items()}
    return {part: hashlib.sha256(text.encode()).hexdigest() for part, text in texts.items()}


def _contents(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """Name -> text of the files that exist, or :func:`_meaning` for modules."""
    texts = {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in files if path.is_file()}
    return {name: _meaning(text) if name.endswith(".py") else text for name, text in texts.items()}


@cache
def _meaning(code: str) -> str:
    """SHA-256 of a module's syntax tree: comments, layout and docstrings do not count."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            body[:] = [n for n in body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _claims_of(notebook: str, code: str, resources: Path) -> list[dict[str, Any]]:
    """The claims that are a notebook's own or that its code names, with their sentences, without the history of their rules."""
    named = set(re.findall(r"\bC\d+[ab]?\b", code))
    claims, sentences = (
        _read_yaml((resources / name).read_text("utf-8")) for name in ("claims.yaml", "sentences.yaml")
    )
    own = [claim for claim in claims if claim["notebook"] == notebook or claim["id"] in named]
    history = ("changed", "looks", "place")
    return [
        {field: value for field, value in claim.items() if field not in history} | {"says": sentences.get(claim["id"])}
        for claim in own
    ]


@cache
def _read_yaml(text: str) -> Any:
    return yaml.safe_load(text)


def record(
    notebook: str,
    mark: Mapping[str, str],
    files: Iterable[str] | None,
    place: Place,
    facts: dict[str, Any] | None = None,
) -> None:
    """Record the published files of a notebook, relative to the folder, and the fingerprint of what they were made from.

    The fingerprint also goes to ``provenance.json``, the only file that holds times, and the one never compared: to the facts of this run, or
    else to the facts that are there. Without ``files``, which then were made elsewhere, it goes nowhere else.
    """
    path = place.published / "provenance.json"
    known = read_dict(path).get("notebooks")
    known = known if isinstance(known, dict) else {}
    if isinstance(facts := facts or known.get(notebook), dict):
        known[notebook] = {**facts, "made_from": mark}
        content = {"about": ABOUT, "notebooks": dict(sorted(known.items()))}
        write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    if files is not None:
        hashes = {file: file_hash(place.published / file) for file in files}
        write_atomically(place.state(notebook), json.dumps({"fingerprint": mark, "files": hashes}, indent=1))


def read_dict(path: Path) -> dict[str, Any]:
    """A dictionary from a JSON file; an empty one if the file is missing or holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def why_stale(notebook: str, mark: Mapping[str, str], place: Place) -> str:
    """Why a notebook with this fingerprint has to run, in words; empty if it is up to date."""
    try:
        state = json.loads(place.state(notebook).read_text(encoding="utf-8"))
        before, files = {**state["fingerprint"], **state["files"]}, list(state["files"])
        now = {**mark, **{file: file_hash(place.published / file) for file in files}}
    except FileNotFoundError:
        return NOT_RUN
    except (OSError, ValueError, KeyError, TypeError):
        return "the state of the published files is unknown"
    missing = [file for file in files if now[file] is None]
    changed = [name for name in {**mark, **before} if name not in missing and before.get(name) != now.get(name)]
    return "; ".join(f"{_some(names)} {what}" for names, what in ((changed, "changed"), (missing, "missing")) if names)


def out_of_date(notebook: str, mark: Mapping[str, str], place: Place) -> str:
    """As :func:`why_stale`; of results that were made elsewhere, what has changed since then, as far as their provenance says."""
    reason, made = why_stale(notebook, mark, place), made_from(notebook, place)
    if reason != NOT_RUN or made is None:
        return reason
    if not made:
        return "published, but its inputs are not recorded"
    changed = [part for part in mark if mark[part] != made.get(part)]
    return f"published; changed since then: {', '.join(changed)}" if changed else ""


def made_from(notebook: str, place: Place) -> dict[str, str] | None:
    """The fingerprint that published files were made from, here or elsewhere; empty if it is not recorded, None if nothing is published."""
    known = read_dict(place.published / "provenance.json").get("notebooks")
    made = known.get(notebook) if isinstance(known, dict) else None
    return {**made.get("made_from", {})} if isinstance(made, dict) else None


def _some(names: Sequence[str], most: int = 10) -> str:
    """Names as a list, of at most ``most`` names."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def file_hash(path: Path) -> str | None:
    """SHA-256 of a file; None if there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
