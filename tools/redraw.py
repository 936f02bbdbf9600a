"""Redraw the figures and tables of a profile, and judge its claims again, from what its notebooks published and from the benchmark.

In this way captions, looks, prose, the wording of rules and the times of a new benchmark change in minutes. A notebook that needs a run is named and left as it was.
"""

from __future__ import annotations

import ast
import base64
import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import matplotlib

from snipnb.publish import ledger, style
from snipnb.publish.profiles import load_profile
from snipnb.publish.report import DRAWN, Picture, Report, benchmark
from snipnb.publish.tables import Table
from tools import runner, state

REDRAWN = {"drawing", "prose", "claims", "benchmarks"}  # the parts of a fingerprint that a redraw brings up to date


class NeedsRunError(ValueError):
    """A notebook cannot be drawn again before it has run; the message says why."""


def redraw(root: Path, profile_name: str, wanted: Sequence[str] = ()) -> bool:
    """Redraw notebooks of a profile (default all published ones) and its ledger, and print the result for each; returns whether all were redrawn."""
    matplotlib.use("Agg")
    profile, everything = load_profile(profile_name), runner.find_notebooks(root)
    chosen, place, failed = runner.choose(everything, wanted), state.place_of(profile, root), 0
    if not wanted:
        chosen = [path for path in everything if (place.published / "notebooks" / path.name).is_file()]
    if not chosen:
        raise ValueError(f"nothing is published in {place.published}; run make figures PROFILE={profile_name} first")
    place.work.mkdir(parents=True, exist_ok=True)
    with runner.only_one(place):
        for path in chosen:
            intact, mark = as_published(path.stem, place), state.fingerprint(path, runner.parameters_of(path, profile))
            try:
                files = redraw_one(path, place.published)
            except (ValueError, OSError) as error:
                failed += 1
                run = f"; make {path.stem} PROFILE={profile_name} runs it" if isinstance(error, NeedsRunError) else ""
                print(f"{path.stem}: {error}{run}", flush=True)
                continue
            stale = (refresh_state if intact else state.out_of_date)(path.stem, mark, place)
            print(f"{path.stem}: {files} redrawn{stale and f'; needs a run for the rest: {stale}'}", flush=True)
        if failed < len(chosen):
            ledger.write_ledger(place.published, runner.gather_ledger(place, everything))
    return not failed


def redraw_one(source: Path, published: Path) -> int:
    """Draw figures and tables of one notebook, judge its claims, and update its executed copy; returns how many were drawn.

    Raises:
        NeedsRunError: If a file is missing, or if something has changed that needs a run. Nothing is written then, except tables of benchmarks.
        ValueError: If a figure and its caption do not fit.
    """
    report, executed = _report(source.stem, published), published / "notebooks" / source.name
    if changed := _changed_rules(report):
        raise NeedsRunError(f"numbers in the rules of {', '.join(changed)} have changed since it ran")
    notebook = with_prose(_read(executed), _read(source))
    if notebook is None:
        raise NeedsRunError("its code has changed since it ran")
    rows = _read(published / "claims" / f"{source.stem}.json")
    publish_benchmarks(notebook, report)
    try:
        report.entries = [report.judge(row["id"], list(row["rows"]), row["figure"]) for row in rows]
    except (ValueError, OSError) as error:
        raise NeedsRunError(str(error)) from None
    if missing := ledger.without_verdict(source.stem, report.entries):
        raise NeedsRunError(f"it gave no verdict on {', '.join(missing)}")
    style.use_house_style()
    if "findings" in report.drawn:
        report.tell()
    shown: dict[tuple[str, str], Picture | Table] = {
        ("figure", name): report.draw(name) for name in report.drawn["figures"]
    }
    shown |= {("table", name): report.render(name) for name in report.drawn["tables"]}
    if rows:
        shown["verdicts", ""] = report.verdicts()
        report.write_verdicts(rows[0]["data"])
    for cell in notebook["cells"]:
        kind, name = shown_by(cell)
        thing = report.whereabouts(name) if kind == "data" else shown.get((kind, name))
        if thing is not None:
            _show(cell, thing)
    notebook = runner.with_summary(notebook, report.entries, published / source.stem)
    runner.write_notebook(executed, notebook)
    return len(report.drawn["figures"]) + len(report.drawn["tables"])


def as_published(notebook: str, place: state.Place) -> bool:
    """Whether the tables and the record of what was drawn, from which a redraw starts, are those of the run."""
    files = state.read_dict(place.state(notebook)).get("files", {})
    sources = [file for file in files if file.endswith((".csv", f"{DRAWN}/{notebook}.json"))]
    return all(state.file_hash(place.published / file) == files[file] for file in sources)


def refresh_state(notebook: str, mark: Mapping[str, str], place: state.Place) -> str:
    """Record a redrawn notebook as up to date if no other part has changed since it ran; returns why it is still out of date."""
    kept = state.read_dict(place.state(notebook))
    before = kept.get("fingerprint") if kept else state.made_from(notebook, place)
    if isinstance(before, dict) and before and not {part for part in mark if mark[part] != before.get(part)} - REDRAWN:
        state.record(notebook, mark, kept.get("files"), place)
    return state.out_of_date(notebook, mark, place)


def publish_benchmarks(notebook: Mapping[str, Any], report: Report) -> None:
    """Run the cells of a notebook that only publish tables of benchmarks: ``make bench`` has measured them, not the notebook."""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code" and "benchmark(" in (text := _text(cell)):
            exec(text, {"report": report, "benchmark": benchmark, "measure": import_module(f"{report.study}.measure")})


def with_prose(executed: dict[str, Any], source: dict[str, Any]) -> dict[str, Any] | None:
    """An executed notebook with the prose of its source, and with the source's cells that only judge; None if other code differs."""
    ran = [cell for cell in executed["cells"] if cell["cell_type"] == "code"]
    own = [cell for cell in ran if cell["id"] != runner.INJECTED_ID and not judges(cell)]
    injected = [cell for cell in ran if cell["id"] == runner.INJECTED_ID]
    code = [cell for cell in source["cells"] if cell["cell_type"] == "code" and not judges(cell)]
    if [_text(cell) for cell in own] != [_text(cell) for cell in code]:
        return None
    cells, following = [], iter(own)
    for cell in source["cells"]:
        if cell["cell_type"] == "code" and not judges(cell):
            cells.append(next(following))
            cells += injected if "parameters" in cell["metadata"].get("tags", []) else []
        else:
            text, tags = _text(cell).splitlines(True), {"tags": [], **cell["metadata"]}
            cells.append({**cell, "source": text, "metadata": tags})  # as papermill leaves it
    for number, cell in enumerate((cell for cell in cells if cell["cell_type"] == "code"), 1):
        cell["execution_count"] = number
        for output in cell["outputs"]:
            output |= {"execution_count": number} if "execution_count" in output else {}
    return {**executed, "cells": cells}


def judges(cell: Mapping[str, Any]) -> bool:
    """Whether a code cell only puts verdicts into the ledger, or shows verdicts or findings: they follow from tables, not from a run."""
    body = _statements(cell)
    return bool(body) and all(
        ast.unparse(line).startswith(("report.claim(", "report.verdicts(", "report.findings(")) for line in body
    )


def shown_by(cell: Mapping[str, Any]) -> tuple[str, str]:
    """What a cell shows: ``figure`` or ``table`` and its name, ``verdicts`` and no name, or nothing; findings are a table."""
    match _statements(cell)[-1:]:
        case [ast.Expr(ast.Call(ast.Attribute(ast.Name("report"), kind), arguments))]:
            if kind == "findings":
                return "table", kind
            names = [one.value for one in arguments if isinstance(one, ast.Constant) and isinstance(one.value, str)]
            return "table" if kind == "render" else kind, names[0] if names else ""
    return "", ""


def _show(cell: dict[str, Any], thing: Picture | Table) -> None:
    """Put a picture or a table into the output of a cell, as a notebook's kernel does."""
    if judges(cell):
        cell["outputs"] = [
            {"output_type": "execute_result", "execution_count": cell["execution_count"], "metadata": {}}
        ]
    output = next(output for output in cell["outputs"] if output["output_type"] == "execute_result")
    data, output["metadata"] = thing._repr_mimebundle_()
    output["data"] = {
        kind: base64.b64encode(content).decode() if isinstance(content, bytes) else content.splitlines(True)
        for kind, content in data.items()
    }


def _report(notebook: str, published: Path) -> Report:
    """The report of a published run, after checking that every file that it is drawn from is there."""
    if not (record := published / DRAWN / f"{notebook}.json").is_file():
        raise NeedsRunError(f"{record} is missing")
    report = Report.published(notebook, published)
    frames = [file for figure in report.drawn["figures"].values() for file in figure["frames"]]
    for name in [*frames, *(f"{report._stem(table)}.csv" for table in report.drawn["tables"])]:
        if not report._path(name).is_file():
            raise NeedsRunError(f"{report._path(name)} is missing")
    return report


def _changed_rules(report: Report) -> list[str]:
    """Claims whose rules had other numbers when a run used them for more than verdicts."""
    bounds, settings = report.drawn["bounds"], report.drawn["settings"]
    changed = {key.split(" ")[0] for key, used in bounds.items() if used != ledger.bound(*key.split(" "))}
    return sorted(changed | {claim for claim, used in settings.items() if used != ledger.settings(claim)})


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NeedsRunError(f"{path} is missing") from None


def _text(cell: Mapping[str, Any]) -> str:
    return "".join(cell["source"])


def _statements(cell: Mapping[str, Any]) -> list[ast.stmt]:
    return ast.parse(_text(cell)).body if cell["cell_type"] == "code" else []
