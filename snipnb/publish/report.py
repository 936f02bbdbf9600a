"""What a notebook calls to publish figures, tables and verdicts into one folder, and to record provenance at its end."""

from __future__ import annotations

import inspect
import json
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from snipnb._files import output_dir, project_root, resource, runs_dir, write_atomically
from snipnb.publish import captions, ledger, style, tables
from snipnb.publish.evidence import read_rows
from snipnb.publish.profiles import declared_parameters, load_profile
from snipnb.publish.published import reported as reported  # notebooks take it from here
from snipnb.publish.tables import Table

PACKAGES = ("torch", "numpy", "pandas", "scipy", "matplotlib", "seaborn", "sympy")
RUN_FILE = "run.json"  # read by the runner, and never compared
DRAWN = "drawn"  # folder of what a redraw needs in addition to the tables
PUBLISHED = "reported"  # folder of published values among the resources
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
    """Where one run of a notebook writes, and what it has found so far. Created by :func:`begin`."""

    notebook: str
    parameters: dict[str, Any]
    folder: Path
    entries: list[dict[str, Any]] = field(default_factory=list)
    drawn: dict[str, Any] = field(default_factory=lambda: {"figures": {}, "tables": {}, "bounds": {}, "settings": {}})

    @classmethod
    def published(cls, notebook: str, folder: Path) -> Report:
        """The report of a published run, with what :meth:`provenance` recorded, but without verdicts."""
        drawn = json.loads((folder / DRAWN / f"{notebook}.json").read_text(encoding="utf-8"))
        return cls(notebook, drawn.pop("parameters"), folder, drawn=drawn)

    @property
    def profile(self) -> str:
        """Name of the profile this run belongs to."""
        return self.parameters["profile"]

    @property
    def runs(self) -> Path:
        """Where training runs of this profile are kept."""
        return runs_dir(self.profile)

    def figure(
        self,
        name: str,
        frame: pd.DataFrame,
        *frames: pd.DataFrame,
        caption: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Picture:
        """Write the plotted numbers as CSV, draw a figure from the CSV as PNG and SVG, and return it for display.

        Args:
            name: Name of the files, of the function in the study's ``draw`` that makes the figure from frames and settings, and
                of its small print and text alternative in the study's ``captions.yaml``.
            frame: The plotted numbers.
            frames: Further frames. A frame that was written before, or holds published values, is taken from its file; any other
                frame is written as ``<name>_<argument>.csv``.
            caption: Field of the caption -> value, for fields that are neither parameters nor settings.
            settings: The function's other arguments: numbers, texts, and mappings of them.
        """
        arguments = list(inspect.signature(self._drawing(name)).parameters)[1 : 1 + len(frames)]
        files = [self._csv(frame, name)]
        for other, argument in zip(frames, arguments, strict=True):
            files.append(self._find(other, PUBLISHED, self.notebook) or self._csv(other, f"{name}_{argument}"))
        drawn = {"frames": files, "settings": _plain(settings), "caption": _plain(caption or {})}
        self.drawn["figures"][name] = drawn
        return self.draw(name)

    def draw(self, name: str) -> Picture:
        """Draw a figure from the files that :meth:`figure` wrote."""
        drawn = self.drawn["figures"][name]
        settings, text = _settings(drawn), self.caption(name)
        figure = self._drawing(name)(*map(self._read, drawn["frames"]), **settings)
        title = style.headline_of(figure)
        alt = f"{title}. {text['alt']}" if title else text["alt"]
        style.footnote(figure, text["note"])
        for ending in ("png", "svg"):
            content = style.render(figure, ending, alt=alt)
            write_atomically(self.folder / f"{self._stem(name)}.{ending}", content)
        shown = Picture(style.render(figure, "png", alt=alt, dpi=INLINE_DPI), alt)
        plt.close(figure)
        return shown

    def caption(self, name: str) -> dict[str, str]:
        """The small print (``note``) and the text alternative (``alt``) of a figure that was drawn before."""
        drawn = self.drawn["figures"][name]
        return captions.fill(self.study, name, {**self.parameters, **_settings(drawn)}, drawn["caption"])

    def table(self, frame: pd.DataFrame, name: str, *, digits: int = 4) -> Table:
        """Write a table as CSV and, made readable by :mod:`snipnb.publish.tables`, as Markdown and LaTeX; return it for display.

        Args:
            frame: The table.
            name: Name of the files.
            digits: Significant digits of a number, in all files but the CSV.
        """
        self._csv(frame, name)
        self.drawn["tables"][name] = digits
        return self.render(name)

    def render(self, name: str) -> Table:
        """Write Markdown and LaTeX of a table from the CSV that :meth:`table` wrote, and return it for display."""
        frame, digits = self._read(f"{self._stem(name)}.csv"), self.drawn["tables"][name]
        shown = tables.readable(frame, self.notebook, name, digits=digits)
        write_atomically(self.folder / f"{self._stem(name)}.md", tables.markdown(shown) + "\n")
        columns = "".join("r" if number else "l" for number in shown.attrs["numbers"])
        write_atomically(self.folder / f"{self._stem(name)}.tex", ledger.latex(shown, columns))
        return tables.in_notebook(frame, shown, self.notebook, name)

    def data(self, frame: pd.DataFrame, name: str) -> Table:
        """Write a long table as CSV alone, and return a line that says where it is, for display."""
        self._csv(frame, name)
        return self.whereabouts(name)

    def whereabouts(self, name: str) -> Table:
        """A line that says in which file :meth:`data` wrote a table."""
        file = f"{self._stem(name)}.csv"
        return Table(f"{len(self._read(file)):,} rows: `{file}`")

    def settings(self, claim_id: str) -> dict[str, Any]:
        """As :func:`snipnb.publish.ledger.settings`, and recorded: a redraw must know which numbers of rules a run has used."""
        value = self.drawn["settings"][claim_id] = ledger.settings(claim_id)
        return value

    def bound(self, claim_id: str, statistic: str) -> float:
        """As :func:`snipnb.publish.ledger.bound`, and recorded in the same way."""
        value = self.drawn["bounds"][f"{claim_id} {statistic}"] = ledger.bound(claim_id, statistic)
        return value

    def claim(self, claim_id: str, *frames: pd.DataFrame, figure: str | None = None) -> None:
        """Put a verdict on a claim into the ledger. A second call replaces the verdict.

        Args:
            claim_id: A claim of this notebook.
            frames: What the function of the claim in :mod:`snipnb.publish.evidence` takes: tables that this run has written before, published
                values, or benchmarks. They are read from their files, as ``make verify`` does.
            figure: File name of the figure or table that shows the numbers.

        Raises:
            ValueError: If the claim belongs to another notebook, or a table or the figure is missing.
        """
        if claim_id not in (own := ledger.claims_of(self.notebook)):
            raise ValueError(f"{claim_id} is not among the claims of {self.notebook}: {', '.join(own)}")
        if figure is not None:
            name, _, ending = figure.partition(".")
            figure = f"{self._stem(name)}.{ending}"
            if not (self.folder / figure).is_file():
                raise ValueError(f"{claim_id} points at {figure}, which this notebook has not written")
        names = self._files(frames, claim_id)
        self.entries = [entry for entry in self.entries if entry["id"] != claim_id]
        self.entries.append(self.judge(claim_id, names, figure))

    def judge(self, claim_id: str, names: Sequence[str], figure: str | None) -> dict[str, Any]:
        """A row of the ledger from the files that a claim rests on."""
        finding = ledger.find(claim_id, map(self._read, names), profile=self.profile)
        rows = {name: ledger.digest(self._path(name).read_text(encoding="utf-8")) for name in names}
        return ledger.entry(claim_id, finding, profile=self.profile, rows=rows, figure=figure)

    def elsewhere(self, claim_id: str, *frames: pd.DataFrame, shown: str, setting: str | None = None) -> dict[str, Any]:
        """What the rule of a claim says of tables from another network or other images. It is no row of the ledger.

        Args:
            claim_id: Any claim.
            frames: As for :meth:`claim`; they need not be written.
            shown: A statistic of the rule.
            setting: The setting of the rule that is the bound of the statistic, if its outcomes do not name the statistic.

        Returns:
            ``claim``, ``verdict``, ``n``, ``statistic``, ``value``, ``low`` and ``high`` (ends of its interval; NaN if it has none), and ``bound``: the
            margin of the rule, or else the number that it compares the statistic with.
        """
        finding = ledger.find(claim_id, frames, profile="full")
        verdict, _ = ledger.judge(ledger.load_claims()[claim_id], finding, profile="full")
        low, high = finding.intervals.get(shown, (np.nan, np.nan))
        bound = finding.statistics.get("margin")
        row: dict[str, Any] = {"claim": claim_id, "verdict": verdict, "n": finding.n, "statistic": shown}
        row |= {"value": finding.statistics.get(shown, np.nan), "low": low, "high": high}
        if setting is not None:
            return row | {"bound": ledger.settings(claim_id)[setting]}
        return row | {"bound": self.bound(claim_id, shown) if bound is None else bound}

    def findings(self, *frames: pd.DataFrame) -> Table:
        """What came out in a notebook that decides no claim, for display: a table of questions and answers, which the runner also puts on top.

        Args:
            frames: What the function ``findings`` of the study's module of that name takes: tables that this run has written before. They are
                read from their files, so that a redraw makes the same sentences.

        Raises:
            ValueError: If a table is missing.
        """
        self.drawn["findings"] = self._files(frames, "the findings")
        return self.tell()

    def tell(self) -> Table:
        """Write the table ``findings`` from the files that :meth:`findings` found, and return it for display."""
        found = import_module(f"{self.study}.findings").findings(*map(self._read, self.drawn["findings"]))
        return self.table(found, "findings")

    def verdicts(self) -> Table:
        """The verdicts of this notebook as a table, with a sentence on what came out for each.

        Raises:
            ValueError: If a claim of this notebook has no verdict.
        """
        if missing := ledger.without_verdict(self.notebook, self.entries):
            raise ValueError(f"{self.notebook} has no verdict on {', '.join(missing)}")
        frame = ledger.verdict_frame(self.entries)
        columns = ["the write-up says", "verdict", "what came out", "scope", "as registered"]
        return Table(frame[columns].replace(r"\|", r"\\|", regex=True).to_markdown())

    def write_verdicts(self, data: str) -> None:
        """Write the verdicts, each with the SHA-256 of the images."""
        rows = [{**entry, "data": data} for entry in self.entries]
        text = json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False)
        write_atomically(self.folder / "claims" / f"{self.notebook}.json", text + "\n")

    def provenance(self, *runs: pd.DataFrame, images: str) -> pd.DataFrame:
        """Versions, parameters and data of this run as a table. Peak memory, and what trained the runs, go to the runner instead.

        This also writes the verdicts, and a record of what was drawn with which settings to ``drawn/``: all that a redraw needs in
        addition to the tables.

        Args:
            runs: Tables of training runs, as from :func:`snipnb.run_grid`.
            images: SHA-256 of the images, from :func:`snipnb.data_checksum`.
        """
        self.write_verdicts(images)
        drawn = {"parameters": self.parameters, **self.drawn}
        text = json.dumps(drawn, indent=1, ensure_ascii=False)
        write_atomically(self.folder / DRAWN / f"{self.notebook}.json", text + "\n")
        rows = {"notebook": self.notebook, **{f"parameter {key}": value for key, value in self.parameters.items()}}
        rows["images"] = "sample of 6,000 MNIST images" if self.parameters.get("sample") else "MNIST, 70,000 images"
        rows["images' SHA-256"] = images[:16] + "..."
        rows |= versions()
        facts: dict[str, Any] = {"peak_memory_mb": _peak_memory_mb()}
        if trained_by := [row for table in runs for row in table.attrs.get("trained_by", [])]:
            facts["trained_by"] = trained_by
        write_atomically(self.folder / RUN_FILE, json.dumps(facts))
        return pd.DataFrame({"value": {key: str(value) for key, value in rows.items()}})

    @property
    def study(self) -> str:
        """The package of the notebook's study."""
        return f"snipnb.studies.{self.notebook.split('_', 1)[1]}"

    def _drawing(self, name: str) -> Callable[..., Figure]:
        module = import_module(f"{self.study}.draw")
        if not callable(found := getattr(module, name, None)):
            raise ValueError(
                f"{module.__name__} has no function {name!r}; a figure is drawn by the function of the same name"
            )
        return found

    def _stem(self, name: str) -> str:
        """Path of a figure or table below the folder, without its ending."""
        return f"{self.notebook}/{name}"

    def _path(self, file: str) -> Path:
        if file.startswith("bench/"):
            return _of_checkout(f"figures/{file}") or self.folder / file
        return resource(file) if file.startswith(PUBLISHED) else self.folder / file

    def _csv(self, frame: pd.DataFrame, name: str) -> str:
        if not name.replace("_", "").isalnum() or not name.isascii():
            raise ValueError(f"a name may hold only ASCII letters, digits and underscores; got {name!r}")
        write_atomically(self.folder / f"{self._stem(name)}.csv", _csv_text(frame))
        return f"{self._stem(name)}.csv"

    def _files(self, frames: Sequence[pd.DataFrame], of: str) -> list[str]:
        """The files that hold frames."""
        names = []
        for number, frame in enumerate(frames, 1):
            if (file := self._find(frame, PUBLISHED, "bench", self.notebook)) is None:
                raise ValueError(
                    f"table {number} of {of} is not in any file; write it with report.table or report.data first"
                )
            names.append(file)
        return names

    def _find(self, frame: pd.DataFrame, *shelves: str) -> str | None:
        """The file that holds a frame, in the first of some folders that has it; None if no folder has it."""
        text = _csv_text(frame)
        for shelf in shelves:
            for path in sorted(self._path(f"{shelf}/").glob("*.csv")):
                own = shelf == self.notebook  # then the file is such a text
                if text == (path.read_text(encoding="utf-8") if own else _csv_text(pd.read_csv(path))):
                    return f"{shelf}/{path.name}"
        return None

    def _read(self, file: str) -> pd.DataFrame:
        """A table as a redraw has it; only empty cells are missing values, and in columns of texts they are empty texts."""
        return read_rows(self._path(file))


def begin(notebook: str, namespace: Mapping[str, Any]) -> Report:
    """Start a run of a notebook: fixed thread count, house style, and a report that knows its parameters.

    Args:
        notebook: Stem of the notebook's file.
        namespace: The notebook's variables, ``globals()``; the variables of its parameters cell are recorded.
    """
    path = _of_checkout(f"notebooks/{notebook}.ipynb")
    names = load_profile("default").parameters(notebook) if path is None else declared_parameters(path)
    parameters = {name: namespace[name] for name in names}
    torch.set_num_threads(parameters["threads"])
    style.use_house_style()
    return Report(notebook, parameters, output_dir())


def benchmark(name: str) -> pd.DataFrame:
    """A table of ``figures/bench/``, as ``make bench`` wrote it: one of :data:`BENCHMARKS`."""
    path = _of_checkout(f"figures/bench/{name}.csv")
    if path is None:
        raise ValueError(f"there is no benchmark {name!r} in figures/bench/; make bench writes {', '.join(BENCHMARKS)}")
    return pd.read_csv(path)


def _of_checkout(file: str) -> Path | None:
    """A file or folder of the checkout; None if it is missing, or if the package is installed without a checkout."""
    root = project_root()
    return root / file if root is not None and (root / file).exists() else None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _settings(drawn: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a figure as its drawing takes them, from the output of :func:`_plain`."""
    return {key: dict(v["pairs"]) if isinstance(v, dict) else v for key, v in drawn["settings"].items()}


def _csv_text(frame: pd.DataFrame) -> str:
    return frame.to_csv(index=False, float_format="%.8g")


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as JSON holds them: floats exactly, and a mapping as pairs, because its keys may be numbers."""
    pairs = {key: {"pairs": [*value.items()]} if isinstance(value, Mapping) else value for key, value in values.items()}
    return json.loads(json.dumps(pairs, default=lambda value: value.item()))


def _peak_memory_mb() -> int | None:
    try:
        import resource as limits
    except ImportError:  # Windows
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(limits.getrusage(limits.RUSAGE_SELF).ru_maxrss / unit)
