"""Checksums of the CSVs of the smoke profile: the quick net for changes that must not move a number.

``python tests/golden/smoke.py FOLDER`` writes ``smoke.json`` from a folder of published files that was made from nothing, each
notebook with a store of its own. The last digits depend on the kind of processor and on versions, so those are part of it.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from importlib import metadata
from pathlib import Path

import torch

from snipnb.training.provenance import machine

FILE = Path(__file__).resolve().with_name("smoke.json")
PACKAGES = ("torch", "numpy", "numba", "pandas", "scipy")


def made_by() -> dict[str, str]:
    """What the last digits depend on."""
    found = {name: metadata.version(name) for name in PACKAGES}
    found |= {"processor": machine()["processor"], "instructions": torch.backends.cpu.get_cpu_capability()}
    return found | {"python": ".".join(platform.python_version_tuple()[:2])}


def checksums(folder: Path) -> dict[str, str]:
    """Path -> SHA-256 of every CSV of the notebooks' folders."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.glob("*/*.csv"))
    }


if __name__ == "__main__":
    content = {"made_by": made_by(), "files": checksums(Path(sys.argv[1]))}
    FILE.write_text(json.dumps(content, indent=1) + "\n")
