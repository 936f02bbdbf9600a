"""What a notebook calls to publish: figures, tables and verdicts into one folder, and the provenance at its end."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.figure import Figure

from snipnb import claims, plotting
from snipnb.claims import reported as reported  # notebooks take it from here
from snipnb.data import data_checksum
from snipnb.paths import output_dir, project_root, runs_dir, write_atomically
from snipnb.profiles import declared_parameters

PACKAGES = ("torch", "numpy", "pandas", "scipy", "matplotlib", "seaborn", "sympy")
RUN_FILE = "run.json"  # what the runner reads: kept out of everything that is compared
INLINE_DPI = 100
BENCHMARKS = ("exact", "exact_layers", "exact_growth", "snip", "curvature", "training", "larger", "projection")


@dataclass(frozen=True)
class Picture:
    """A rendered figure with its text alternative, as Jupyter shows it."""

    png: bytes
    alt: str

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"image/png": self.png, "text/plain": self.alt}, {"image/png": {"alt": self.alt}}


@dataclass
class Report:
    """Where one run of a notebook writes, and what it found so far. Made by :func:`begin`."""

    notebook: str
    parameters: dict[str, Any]
    folder: Path
    entries: list[dict[str, Any]] = field(default_factory=list)

    @property
    def profile(self) -> str:
        """Name of the profile this run belongs to."""
        return self.parameters["profile"]

    @property
    def runs(self) -> Path:
        """Where training runs of this profile are kept."""
        return runs_dir(self.profile)

    def figure(self, figure: Figure, name: str, frame: pd.DataFrame, *, alt: str) -> Picture:
        """Write a figure as PNG and SVG with the plotted numbers as CSV, and return it for display.

        Args:
            name: File stem after the notebook's number, e.g. ``"figure2"`` gives ``03_figure2.png``.
            frame: The numbers that are plotted.
            alt: What the figure shows, for those who cannot see it.
        """
        self._csv(frame, name)
        plotting.save(figure, self.folder / f"{self._stem(name)}.png", alt=alt)
        plotting.save(figure, self.folder / f"{self._stem(name)}.svg", alt=alt)
        stream = BytesIO()
        plotting.save(figure, stream, alt=alt, dpi=INLINE_DPI)
        plt.close(figure)
        return Picture(stream.getvalue(), alt)

    def table(self, frame: pd.DataFrame, name: str, *, digits: int = 4) -> pd.DataFrame:
        """Write a table as CSV and, with ``digits`` significant digits, as Markdown and LaTeX; return it for display."""
        self._csv(frame, name)
        shown = frame.apply(lambda column: column.map(lambda value: _cell(value, digits)))
        align = ["right" if pd.api.types.is_numeric_dtype(frame[column]) else "left" for column in frame]
        text = shown.to_markdown(index=False, disable_numparse=True, colalign=align)
        write_atomically(self.folder / f"{self._stem(name)}.md", text + "\n")
        columns = "".join(side[0] for side in align)
        write_atomically(self.folder / f"{self._stem(name)}.tex", claims.latex(shown, columns))
        return frame

    def data(self, frame: pd.DataFrame, name: str) -> pd.DataFrame:
        """Write a long table as CSV alone, and return its first rows for display."""
        self._csv(frame, name)
        return frame.head()

    def claim(
        self,
        claim_id: str,
        measured: Mapping[str, float],
        *,
        n: int | None = None,
        intervals: Mapping[str, tuple[float, float]] | None = None,
        figure: str | None = None,
        protocol_followed: bool = False,
    ) -> None:
        """Put a verdict on a claim into the ledger; see :func:`snipnb.claims.entry`. Saying it again replaces it."""
        if figure is not None:
            figure = f"{self._stem(figure.split('.')[0])}.{figure.split('.')[1]}"
            if not (self.folder / figure).is_file():
                raise ValueError(f"{claim_id} points at {figure}, which this notebook has not written")
        new = claims.entry(
            claim_id,
            measured,
            notebook=self.notebook,
            profile=self.profile,
            n=n,
            intervals=intervals,
            figure=figure,
            protocol_followed=protocol_followed,
        )
        self.entries = [entry for entry in self.entries if entry["id"] != claim_id] + [new]

    def verdicts(self) -> pd.DataFrame:
        """Write the verdicts of this notebook and return them as a table.

        Raises:
            ValueError: If a claim that this notebook owns has none.
        """
        if missing := sorted(set(claims.claims_of(self.notebook)) - {entry["id"] for entry in self.entries}):
            raise ValueError(f"{self.notebook} has no verdict on {', '.join(missing)}")
        text = json.dumps(self.entries, indent=1, ensure_ascii=False, allow_nan=False)
        write_atomically(self.folder / "claims" / f"{self.notebook}.json", text + "\n")
        return claims.verdict_frame(self.entries)

    def provenance(self, *runs: pd.DataFrame) -> pd.DataFrame:
        """Versions, parameters and data of this run as a table; peak memory and who trained go to the runner, not into it.

        Args:
            runs: Tables of training runs, as from :func:`snipnb.run_grid`.
        """
        sample = bool(self.parameters.get("sample", False))
        rows = {"notebook": self.notebook, **{f"parameter {key}": value for key, value in self.parameters.items()}}
        rows["images"] = "sample of 6,000 MNIST images" if sample else "MNIST, 70,000 images"
        rows["images' SHA-256"] = data_checksum(sample=sample)[:16] + "..."
        rows["python"] = platform.python_version()
        rows |= versions()
        facts: dict[str, Any] = {"peak_memory_mb": _peak_memory_mb()}
        if trained_by := [row for table in runs for row in table.attrs.get("trained_by", [])]:
            facts["trained_by"] = trained_by
        write_atomically(self.folder / RUN_FILE, json.dumps(facts))
        return pd.DataFrame({"value": {key: str(value) for key, value in rows.items()}})

    def _stem(self, name: str) -> str:
        return f"{self.notebook.split('_')[0]}_{name}"

    def _csv(self, frame: pd.DataFrame, name: str) -> None:
        if not name.replace("_", "").isalnum() or not name.isascii():
            raise ValueError(f"{name!r} is no file stem; accepted are letters, digits and underscores")
        write_atomically(self.folder / f"{self._stem(name)}.csv", frame.to_csv(index=False, float_format="%.8g"))


def begin(notebook: str, namespace: Mapping[str, Any]) -> Report:
    """Start a run of a notebook: fixed thread count, house style, and a report that knows its parameters.

    Args:
        notebook: Stem of the notebook's file.
        namespace: The notebook's variables, ``globals()``; those of its parameters cell are recorded.
    """
    root = project_root()
    path = root / "notebooks" / f"{notebook}.ipynb" if root is not None else None
    names = (
        declared_parameters(path)
        if path is not None and path.is_file()
        else {"profile": "", "threads": 0, "sample": False}
    )
    parameters = {name: namespace[name] for name in names}
    torch.set_num_threads(parameters["threads"])
    plotting.use_house_style()
    return Report(notebook, parameters, output_dir())


def benchmark(name: str) -> pd.DataFrame:
    """A table of ``figures/bench/``, as ``make bench`` wrote it: ``"exact"``, ``"exact_layers"``, ``"exact_growth"`` or ``"snip"``."""
    root = project_root()
    path = None if root is None else root / "figures" / "bench" / f"{name}.csv"
    if path is None or not path.is_file():
        raise ValueError(f"there is no benchmark {name!r} in figures/bench/; make bench writes {', '.join(BENCHMARKS)}")
    return pd.read_csv(path)


def versions() -> dict[str, str]:
    """Installed versions of the packages that results depend on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _cell(value: Any, digits: int) -> str:
    """A number with so many significant digits, but never in powers of ten where all its digits fit; else the value."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if 10**digits <= abs(value) < 10**9 else f"{value:.{digits}g}"


def _peak_memory_mb() -> int | None:
    try:
        import resource as limits
    except ImportError:  # Windows
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(limits.getrusage(limits.RUSAGE_SELF).ru_maxrss / unit)
