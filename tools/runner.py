"""Running the notebooks without a browser: a stale notebook is executed, checked, cleaned and only then published.

A notebook runs in its own folder under ``build/``. Its figures, tables and verdicts move to ``figures/`` when every cell has run
and everything that the notebook promises is there. Until then, what was published before stays as it was. A run prints what is stale,
and why (see :mod:`tools.state`). This module needs papermill, and is the only one that imports it.
"""

from __future__ import annotations

import ast
import errno
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from filelock import FileLock, Timeout

from snipnb._files import data_dir, write_atomically
from snipnb.data import acquire_mnist
from snipnb.publish import ledger, profiles
from snipnb.publish.report import DRAWN, RUN_FILE, versions
from snipnb.publish.sentences import summary
from snipnb.training.provenance import commit, machine
from tools import checkout
from tools.state import PACKAGE, Place, fingerprint, place_of, read_dict, record, why_stale

KERNEL = "python3"
INJECTED_ID = "injected-parameters"
SUMMARY_ID = "summary"
# Method of a report -> endings of the files that it writes.
WRITES = {"figure": ("png", "svg", "csv"), "table": ("md", "tex", "csv"), "data": ("csv",)}
QUIET_KERNEL = "--IPKernelApp.log_level=50"  # otherwise an interrupted kernel prints a traceback of its sockets
SLOW = 5.0  # seconds; slower cells are named in the provenance
SCRATCH = "snipnb-"  # prefix of the kernels' temporary folders
# Variables that would let a user's own set-up into the kernel.
REMOVED = ("JUPYTER_PATH", "JUPYTER_CONFIG_PATH", "MPLBACKEND", "MATPLOTLIBRC", "PYTHONSTARTUP", "PYTHONWARNINGS")


class NotebookError(RuntimeError):
    """A notebook did not run to the end, or did not write what it promises."""


def find_notebooks(root: Path) -> list[Path]:
    """The notebooks of a checkout, in order."""
    found = sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    numbers = [path.stem[:2] for path in found]
    if twice := sorted({number for number in numbers if numbers.count(number) > 1}):
        raise ValueError(f"several notebooks have the number {', '.join(twice)}; commands need unique numbers")
    if not found:
        raise ValueError(f"there are no notebooks NN_slug.ipynb in {root / 'notebooks'}")
    return found


def parameters_of(path: Path, profile: profiles.Profile) -> dict[str, Any]:
    """All parameters of a notebook: the profile's values, else the values of its own cell."""
    return profiles.complete(profile, path.stem, profiles.declared_parameters(path))


def run(
    profile_name: str = "default",
    notebooks: Sequence[str] = (),
    *,
    force: bool = False,
    fresh: bool = False,
    root: Path | None = None,
) -> bool:
    """Bring figures, tables and verdicts of a profile up to date, and print the ledger.

    Args:
        profile_name: Name of a profile, or the path of a YAML file.
        notebooks: Names or leading digits of notebooks; default all.
        force: Run notebooks that are up to date, too.
        fresh: Run everything, and train and compute everything anew, in a separate folder below ``build/fresh/``; earlier kept runs stay, unused.
        root: The checkout; default the checkout that this package is imported from.

    Returns:
        Whether everything that was asked for is now up to date.

    Raises:
        ValueError: If profile, parameter or notebook names are unknown; nothing has run then.
        DataUnavailableError: If the images are missing.
    """
    root = root or checkout()
    profile, everything = profiles.load_profile(profile_name), find_notebooks(root)
    profiles.check_parameters(profile, everything)
    chosen = choose(everything, notebooks)
    parameters = {path: parameters_of(path, profile) for path in chosen}
    place = place_of(profile, root)
    _check_writable(place)
    if not all(given.get("sample") for given in parameters.values()):
        acquire_mnist()
    print(f"profile {profile.name}: {profile.about}" if profile.about else f"profile {profile.name}")
    kept, where = root / "build" / "fresh" / profile.name, f"{place.published.relative_to(root)}/"
    with only_one(place), mock.patch.dict(os.environ, {"SNIPNB_RUNS": str(kept)} if fresh else {}):
        _clear_leftovers(place)
        if fresh and kept.exists():
            shutil.rmtree(kept)
        _write_font_list(place.work / "matplotlib")
        failures, written, began = {}, [], time.monotonic()
        for number, path in enumerate(chosen, 1):
            print(f"[{number}/{len(chosen)}] {path.stem}", end="", flush=True)
            mark = fingerprint(path, parameters[path])
            reason = why_stale(path.stem, mark, place)
            if not (reason or force or fresh):
                shutil.rmtree(place.work / "stage" / path.stem, ignore_errors=True)  # of a forced run that was killed
                print(" is up to date")
                continue
            print(f": {reason or 'up to date, but forced'} ... ", end="", flush=True)
            start = time.monotonic()
            try:
                files = run_one(path, parameters[path], place, mark)
            except Exception as error:  # whatever one notebook does, the others still run
                known = isinstance(error, NotebookError)
                failures[path.stem] = str(error) if known else f"  {type(error).__name__}: {error}"
                print(f"FAILED after {time.monotonic() - start:.0f} s")
            else:
                written += files
                print(f"{time.monotonic() - start:.0f} s, {len(files)} files")
        rows, of_ledger = gather_ledger(place, everything), ["claims.json", "claims.md", "claims.tex"]
        try:
            ledger.write_ledger(place.published, rows)
        except OSError as error:
            of_ledger = []
            failures[f"the ledger in {where}"] = f"  it cannot be written: {error.strerror}"
    print(f"\n{ledger.text_table(rows)}\n")
    if written:
        print(f"written in {time.monotonic() - began:.0f} s to {where}:")
        print("\n".join(f"  {file}" for file in [*written, *of_ledger, "provenance.json"]))
    for name, message in failures.items():
        print(f"\n{name} failed; the next run tries it again, and its earlier results are kept.\n{message}")
    return not failures


def run_one(path: Path, parameters: Mapping[str, Any], place: Place, mark: Mapping[str, str]) -> list[str]:
    """Execute one notebook with these parameters and publish what it wrote; returns the published files, relative to the folder.

    Raises:
        NotebookError: If a cell fails or did not run, or a promised file or verdict is missing. The message names notebook,
            cell and error, and the partial notebook that was kept.
    """
    stage = place.work / "stage" / path.stem
    shutil.rmtree(stage, ignore_errors=True)
    (stage / "notebooks").mkdir(parents=True)
    executed = stage / "notebooks" / path.name
    start = time.monotonic()
    try:
        _execute(path, executed, parameters, stage)
        notebook = json.loads(executed.read_text(encoding="utf-8"))
        rows = _check(notebook, path, stage)
    except NotebookError as error:
        kept = place.work / "failed" / path.name
        kept.unlink(missing_ok=True)  # of an earlier failure
        if executed.is_file():
            kept.parent.mkdir(parents=True, exist_ok=True)
            os.replace(executed, kept)
        where = f"  partial notebook: {kept}" if kept.is_file() else "  no cell ran"
        raise NotebookError(f"{error}\n{where}") from None
    facts = {"seconds": round(time.monotonic() - start, 1), "slow_cells": slow_cells(notebook)}
    facts |= {**read_dict(stage / RUN_FILE), "parameters": parameters}
    clean(notebook, root=path.parent.parent)
    write_notebook(executed, with_summary(notebook, rows, stage / path.stem))
    files = _publish(path.stem, stage, place)
    facts |= {"commit": commit(), "machine": machine(), "versions": versions()}
    record(path.stem, mark, files, place, facts)
    return files


def gather_ledger(place: Place, notebooks: Sequence[Path]) -> list[dict[str, Any]]:
    """The ledger of a published folder, from what each notebook left there."""
    files = [place.published / "claims" / f"{path.stem}.json" for path in notebooks]
    return ledger.assemble(row for file in files for row in _verdicts(file))


def slow_cells(notebook: Mapping[str, Any]) -> dict[str, float]:
    """Id of a cell -> seconds, for cells that took more than :data:`SLOW`."""
    seconds = {c["id"]: c["metadata"].get("papermill", {}).get("duration") or 0.0 for c in notebook["cells"]}
    return {k: round(s, 1) for k, s in seconds.items() if s > SLOW}


def clean(notebook: Mapping[str, Any], *, root: Path) -> None:
    """Remove from an executed notebook what differs from run to run: times, ids, widget state and the checkout's path."""
    for key in ("papermill", "widgets"):
        notebook["metadata"].pop(key, None)
    for cell in notebook["cells"]:
        for key in ("papermill", "execution"):
            cell["metadata"].pop(key, None)
        if INJECTED_ID in cell["metadata"].get("tags", []):
            cell["id"] = INJECTED_ID
        for output in cell.get("outputs", []):
            if "text" in output:
                output["text"] = [line.replace(f"{root}{os.sep}", "") for line in output["text"]]


def with_summary(notebook: dict[str, Any], rows: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, Any]:
    """An executed notebook with a cell after the first one that says what came out: for each of its claims, or by the ``findings.md`` in its folder."""
    findings = folder / "findings.md"
    if not rows and not findings.is_file():
        return notebook
    text = summary(rows) if rows else f"**What came out**\n\n{findings.read_text(encoding='utf-8')}"
    first, *others = (cell for cell in notebook["cells"] if cell["id"] != SUMMARY_ID)
    metadata = {"tags": [SUMMARY_ID]}
    told = {"cell_type": "markdown", "id": SUMMARY_ID, "metadata": metadata, "source": text.splitlines(True)}
    return {**notebook, "cells": [first, told, *others]}


def write_notebook(path: Path, notebook: Mapping[str, Any]) -> None:
    """Write an executed notebook in the one form that is published."""
    write_atomically(path, json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n")


# --- execution --------------------------------------------------------------------------------------------------------


def _execute(path: Path, executed: Path, parameters: Mapping[str, Any], stage: Path) -> None:
    import papermill
    from jupyter_client.kernelspec import NoSuchKernel
    from traitlets.config import Config

    with _kernel_environment(stage, threads=parameters["threads"]) as scratch:
        kernel = {"connection_file": os.path.join(scratch, "kernel.json")}
        if sys.platform != "win32":  # sockets in the working directory: paths have to be short
            kernel |= {"transport": "ipc", "ip": "kernel-ipc"}
        try:
            papermill.execute_notebook(
                str(path),
                str(executed),
                parameters=dict(parameters),
                kernel_name=KERNEL,
                cwd=str(stage),
                progress_bar=sys.stderr.isatty(),
                start_timeout=120,
                config=Config(KernelManager=kernel, NotebookClient={"extra_arguments": [QUIET_KERNEL]}),
                coalesce_streams=True,
            )
        except papermill.PapermillExecutionError as error:
            message = f"  cell {error.cell_index}: {error.ename}: {error.evalue}\n  in: {_first_line(error.source)}"
            raise NotebookError(message) from None
        except (NoSuchKernel, RuntimeError) as error:  # a kernel that died is a RuntimeError, too
            raise NotebookError(f"  the kernel failed: {type(error).__name__}: {error}") from None


@contextmanager
def _kernel_environment(stage: Path, *, threads: int) -> Iterator[str]:
    """The variables that a kernel starts with: nothing of the user's set-up, a fixed thread count, where to write.

    Gives a folder for the kernel's own files. The folder is noted, so that the next run can remove it if this run is killed.
    """
    work = stage.parent.parent
    with tempfile.TemporaryDirectory(prefix=SCRATCH) as scratch:
        folders = ["IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"]
        variables = {name: os.path.join(scratch, name[:3] + str(i)) for i, name in enumerate(folders)}
        variables |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
        variables |= {
            "JUPYTER_PREFER_ENV_PATH": "1",
            "PYTHONHASHSEED": "0",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            "MPLCONFIGDIR": str(work / "matplotlib"),  # kept: its list of fonts takes seconds to build
            "PYTHONPATH": str(PACKAGE.parent),  # this package, not another
            "SNIPNB_DATA": str(data_dir()),
            "SNIPNB_OUTPUT": str(stage),
            "SNIPNB_PROGRESS": _terminal(),
        }
        write_atomically(work / "scratch", scratch)
        try:
            with mock.patch.dict(os.environ, variables):  # afterwards, all are as before
                for name in REMOVED:
                    os.environ.pop(name, None)
                yield scratch
        finally:
            (work / "scratch").unlink(missing_ok=True)


def _terminal() -> str:
    """Path of the terminal that progress goes to, "0" if there is none."""
    try:
        return os.ttyname(sys.stderr.fileno()) if sys.stderr.isatty() else "0"
    except (OSError, AttributeError, ValueError):
        return "0"


def _check(notebook: Mapping[str, Any], source: Path, stage: Path) -> list[dict[str, Any]]:
    """Check every cell, every promise and the verdicts, as an exit code of zero proves nothing; returns the verdicts."""
    for index, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] != "code" or not "".join(cell["source"]).strip():
            continue
        if cell["execution_count"] is None:
            raise NotebookError(f"  cell {index} did not run\n  in: {_first_line(cell['source'])}")
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                raise NotebookError(f"  cell {index}: {output['ename']}: {output['evalue']}")
    if missing := sorted(name for name in promises(source) if not (stage / name).is_file()):
        raise NotebookError(f"  it ran, but did not write {', '.join(missing)}")
    try:
        given = _verdicts(stage / "claims" / f"{source.stem}.json")
    except ValueError:
        raise NotebookError("  it ran, but its verdicts are not valid ledger rows; give them by report.claim") from None
    if missing := ledger.without_verdict(source.stem, given):
        raise NotebookError(f"  it ran, but gave no verdict on {', '.join(missing)}")
    return given


def promises(source: Path) -> set[str]:
    """The files that a notebook writes according to its calls of ``report``."""
    cells = json.loads(source.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    found = set()
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.Call(
                ast.Attribute(ast.Name("report"), "figure" as kind), [ast.Constant(str(name)), *_]
            ) | ast.Call(ast.Attribute(ast.Name("report"), "table" | "data" as kind), [_, ast.Constant(str(name)), *_]):
                found |= {f"{source.stem}/{name}.{ending}" for ending in WRITES[kind]}
            case ast.Call(ast.Attribute(ast.Name("report"), "findings")):
                found |= {f"{source.stem}/findings.{ending}" for ending in WRITES["table"]}
    return found


def _publish(notebook: str, stage: Path, place: Place) -> list[str]:
    """Copy the staged files next to their targets, then rename all of them; remove what the notebook no longer writes.

    Only what a notebook may write is published: the files of its folder, its executed copy, its verdicts and the record of what it
    drew. If a copy fails, nothing is renamed, and the staged files stay where the message says.
    """
    allowed = {f"notebooks/{notebook}.ipynb", f"claims/{notebook}.json", f"{DRAWN}/{notebook}.json"}
    staged = [file for file in stage.rglob("*") if file.is_file() and not file.is_symlink()]
    names = sorted(file.relative_to(stage).as_posix() for file in staged)
    files = [name for name in names if name in allowed or name.startswith(f"{notebook}/")]
    before = read_dict(place.state(notebook)).get("files", {})
    copies: list[tuple[Path, Path]] = []
    try:
        for file in files:
            target = place.published / file
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_dir():
                raise IsADirectoryError(errno.EISDIR, "a folder of that name exists", str(target))
            copies.append((target.with_name(f".{target.name}.part"), target))
            shutil.copyfile(stage / file, copies[-1][0])
        place.state(notebook).unlink(missing_ok=True)  # from here on, the state of the published files is unknown
        for copy, target in copies:
            os.replace(copy, target)
        for name in set(before) - set(files):
            (place.published / name).unlink(missing_ok=True)
    except OSError as error:
        why = f"{error.filename2 or error.filename} cannot be written: {error.strerror}"
        raise NotebookError(f"  it ran, but {why}; its results are in {stage}") from None
    finally:
        for copy, _ in copies:
            copy.unlink(missing_ok=True)
    shutil.rmtree(stage, ignore_errors=True)
    return files


def _verdicts(file: Path) -> list[dict[str, Any]]:
    """The verdicts that the notebook of the same name left in a file, an empty list if there is no file; else ValueError."""
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError):
        rows = None
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and row.keys() >= {*ledger.FIELDS} and row["notebook"] == file.stem for row in rows
    ):
        raise ValueError(f"{file} does not hold verdicts; remove it and run {file.stem} again")
    return rows


# --- bookkeeping ------------------------------------------------------------------------------------------------------


def choose(everything: Sequence[Path], wanted: Sequence[str]) -> list[Path]:
    """The notebooks with these names or leading digits, in their order; all if none is named."""
    stems = [path.stem for path in everything]
    named = {profiles.notebook_named(name, stems) for name in wanted}
    return [path for path in everything if path.stem in named or not wanted]


def _check_writable(place: Place) -> None:
    for folder in (place.published, place.work):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise ValueError(
                f"{folder} cannot be written to ({error.strerror}); make it writable and run again"
            ) from None


def only_one(place: Place) -> AbstractContextManager[object]:
    """Hold the lock of a profile: a second run waits for the first, and says so."""
    lock = FileLock(place.work / "lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        print("another run of this profile is in progress; waiting for it", flush=True)
        return lock.acquire()


def _clear_leftovers(place: Place) -> None:
    """Remove what killed runs left, which nothing else would ever remove; the profile's lock must be held."""
    ours = [place.work, place.work / "state", place.work / "matplotlib"]
    # A folder with a provenance of its own is another profile's.
    inner = [folder for folder in place.published.glob("*/") if not (folder / "provenance.json").is_file()]
    for folder in [place.published, *inner, *ours]:
        for file in [*folder.glob(".*.part"), *folder.glob("*.matplotlib-lock")]:
            file.unlink(missing_ok=True)
    noted = place.work / "scratch"
    scratch = Path(noted.read_text(encoding="utf-8")) if noted.is_file() else None
    if scratch is not None and scratch.parent == Path(tempfile.gettempdir()) and scratch.name.startswith(SCRATCH):
        shutil.rmtree(scratch, ignore_errors=True)
    noted.unlink(missing_ok=True)


def _write_font_list(folder: Path) -> None:
    """Make Matplotlib's list of fonts here, unless a readable one exists. If a notebook had to make it, a warning could end up in its outputs."""
    from matplotlib import font_manager

    def usable(path: Path) -> bool:
        try:
            return isinstance(font_manager.json_load(path), font_manager.FontManager)
        except Exception:  # whatever is wrong with it
            return False

    path = folder / f"fontlist-v{font_manager.FontManager.__version__}.json"
    if not usable(path):
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f".{path.name}.part"
        font_manager.json_dump(font_manager.FontManager(), part)
        if not usable(part):  # Matplotlib only warns of a full disk
            part.unlink(missing_ok=True)
            raise OSError(f"{path} cannot be written; make room in its folder and run again")
        os.replace(part, path)


def _first_line(source: str | list[str]) -> str:
    return next((line for line in "".join(source).splitlines() if line.strip()), "")
