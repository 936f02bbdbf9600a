"""Copies of the checkout in which ``make figures`` runs under difficulties, and what they are compared by.

A kill is SIGKILL to the process group of what ``make figures`` starts. Kernels and their workers have groups of their own: they are left to
themselves, as a user's ``kill -9`` leaves them, and the next attempt starts at once beside them.
"""

from __future__ import annotations

import ast
import ctypes
import itertools
import json
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil  # comes with ipykernel
from filelock import FileLock, Timeout

from snipnb._files import data_dir, write_atomically
from snipnb.publish.profiles import load_profile
from tools.state import place_of

GRACE_SECONDS = 320.0  # after the last attempt for what was left behind: idle workers of joblib end after 300
DROP_FROM_BOUND, NEW_NETWORK, SEES_ALL = 24, 0x40000000, (1, 2)  # Linux: prctl, unshare, capabilities that ignore modes
LONGEST_SECONDS = 1200  # of a run, beside other busy programs
LONGEST_MESSAGE = 4000  # characters of a message that can be read
HEAD = "| what was done to `make figures` | times | as it should be | seconds |\n|---|--:|--:|--:|\n"
Interval = tuple[str, float, float]  # a notebook, and when the quiet run began and ended it, in seconds


@dataclass
class Kill:
    """One kill: what it hit, and how long what it left behind went on.

    Attributes:
        moment: Where in the quiet run as much had been done, in seconds from its start.
        after: Seconds from the start of the attempt that was killed.
        during: What the attempt was at.
        groups: Finished groups of training runs at that time.
        orphans: Processes that it left behind.
        lived: Seconds that the last of them went on, so far.
    """

    moment: float
    after: float
    during: str
    groups: int
    orphans: int
    lived: float = 0.0


class Copy:
    """A copy of what a run needs of the checkout, without anything that earlier runs made but compiled kernels.

    Args:
        root: The checkout; or a copy, then with all that it made.
        folder: Of the copy; logs lie beside it.
        profile_name: Of a profile, or the path of a YAML file.
        notebooks: Those that are run; default all.
    """

    def __init__(
        self, root: Path | Copy, folder: Path, profile_name: str = "smoke", *, notebooks: Sequence[str] = ()
    ) -> None:
        if isinstance(root, Copy):
            shutil.copytree(root.folder, folder)
        else:
            for name in ("snipnb", "tools", "notebooks", "figures/bench"):
                if (root / name).is_dir():
                    shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("*.pyc"))
            (folder / "tmp").mkdir(parents=True)
            shutil.copy(root / "pyproject.toml", folder)
        self.folder, self.profile_name, self.notebooks = folder, profile_name, notebooks
        self.place = place_of(load_profile(profile_name), folder)
        self.published, self.runs = self.place.published, folder / "build" / "runs"
        self.kept: dict[Path, int] = {}  # what says that groups are finished, as first seen
        self.attempts, self.log = 0, folder
        self.orphans: list[psutil.Process] = []  # of the last kill
        self.left: list[psutil.Process] = []  # of all kills

    def launch(
        self,
        *,
        force: bool = False,
        notebooks: Sequence[str] | None = None,
        environment: Mapping[str, str | None] | None = None,
        before: Callable[[], object] | None = None,
    ) -> tuple[subprocess.Popen, Path]:
        """Start what ``make figures`` does.

        Args:
            force: Run what is up to date too.
            notebooks: Which; default those of the copy.
            environment: Variables that are set, or with None are not.
            before: What the process does first.

        Returns:
            The process, and the log it writes.
        """
        self.attempts += 1
        self.log = self.folder.with_name(f"{self.folder.name}{self.attempts}.log")
        chosen = self.notebooks if notebooks is None else notebooks
        command = [sys.executable, "-m", "tools", "figures", "--profile", self.profile_name, *chosen]
        clean = {name: value for name, value in os.environ.items() if name not in ("SNIPNB_OUTPUT", "PYTHONSAFEPATH")}
        places = {
            "PYTHONPATH": self.folder,
            "SNIPNB_DATA": data_dir(),
            "SNIPNB_RUNS": self.runs,
            "TMPDIR": self.folder / "tmp",
        }
        variables = clean | {name: str(place) for name, place in places.items()} | dict(environment or {})
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                [*command, "--force"] if force else command,
                cwd=self.folder,
                env={name: value for name, value in variables.items() if value is not None},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=before,
            )
        return process, self.log

    def attempt(self, seconds: float | None = None, **options) -> tuple[int | None, float]:
        """As :meth:`launch`, killed after so many seconds; its exit status, None if it was killed, and its seconds."""
        start, self.orphans = time.monotonic(), []
        process, _ = self.launch(**options)
        try:
            return process.wait(seconds), time.monotonic() - start
        except subprocess.TimeoutExpired:
            self.orphans = psutil.Process(process.pid).children(recursive=True)
            return None, time.monotonic() - start
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def check_same(self, quiet: Copy, **options) -> None:
        """Run; the published files have to be those of a quiet run, byte for byte."""
        code, _ = self.attempt(LONGEST_SECONDS, **options)
        assert code == 0, self.log.read_text(encoding="utf-8", errors="replace")
        assert differences(quiet.published, self.published) == []

    def check_refused(self, message: str, **options) -> None:
        """Run; that has to fail with a readable message, and nothing may be half written."""
        before = _contents(self.published)
        code, _ = self.attempt(LONGEST_SECONDS, **options)
        said = self.log.read_text(encoding="utf-8", errors="replace")
        assert code == 1, f"exit status {code}: {said}"
        assert re.search(message, said), said
        assert "Traceback" not in said, said
        assert len(said) <= LONGEST_MESSAGE + 200 * len(before), said
        now = _contents(self.published).items()
        half = [name for name, content in now if name not in before and (not content or name.endswith(".part"))]
        assert half == []

    def what_was_hit(self, moment: float, seconds: float) -> Kill:
        """The kill that has just been; what it left behind is watched from now on."""
        found = re.findall(r"^\[\d+/\d+\] (\w+)", self.log.read_text(encoding="utf-8"), flags=re.MULTILINE)
        records = list(self.runs.glob("*.json"))
        for path in records:
            self.kept.setdefault(path, path.stat().st_mtime_ns)
        orphans = [process for process in self.orphans if _lives(process)]
        kill = Kill(moment, seconds, found[-1] if found else "its start", len(records), len(orphans))
        start = time.monotonic()

        def watch() -> None:
            while any(map(_lives, orphans)):
                kill.lived = time.monotonic() - start
                time.sleep(0.05)

        threading.Thread(target=watch, daemon=True).start()
        self.left += orphans
        return kill

    def end_orphans(self) -> list[str]:
        """End what kills left behind and what still goes on after a time of grace; returns what that was."""
        end = time.monotonic() + GRACE_SECONDS
        while any(map(_lives, self.left)) and time.monotonic() < end:
            time.sleep(0.1)
        still_there = []
        for process in filter(_lives, self.left):
            command = " ".join(process.cmdline()[:6])
            if "resource_tracker" not in command:  # those clear away what the others had, and end with them
                still_there.append(command)
                process.kill()
        return still_there

    def rewritten(self) -> list[str]:
        """What said that a group is finished, and was written again or is gone."""
        changed = [
            path for path, time_ns in self.kept.items() if not path.is_file() or path.stat().st_mtime_ns != time_ns
        ]
        return sorted(path.relative_to(self.folder).as_posix() for path in changed)

    def done(self) -> set[str]:
        """The notebooks that are published."""
        return {path.stem for path in self.place.state("any").parent.glob("*.json")}

    def timeline(self, seconds: float) -> list[Interval]:
        """When each notebook began and ended, in a run that took so long in all; what is not theirs was before them."""
        runs = json.loads((self.published / "provenance.json").read_text(encoding="utf-8"))["notebooks"]
        start = seconds - sum(run["seconds"] for run in runs.values())
        intervals = []
        for notebook, run in runs.items():
            intervals.append((notebook, start, start + run["seconds"]))
            start += run["seconds"]
        return intervals


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# --- moments and comparisons ------------------------------------------------------------------------------------------


def moments(count: int, seconds: float, *, seed: int) -> list[float]:
    """So many random moments of a run, rising, one in each of as many equal parts of it."""
    draw = random.Random(seed)
    return [(part + draw.random()) * seconds / count for part in range(count)]


def time_to(moment: float, timeline: Sequence[Interval], done: set[str]) -> float:
    """Seconds after which a run that skips the notebooks that are done is where the quiet one was at a moment."""
    return moment - sum(max(0.0, min(end, moment) - start) for notebook, start, end in timeline if notebook in done)


def differences(one: Path, other: Path) -> list[str]:
    """What differs between the files of two published folders; ``provenance.json``, which holds times, is not compared."""
    first, second = _contents(one), _contents(other)
    found = []
    for name in sorted((first.keys() | second.keys()) - {"provenance.json"}):
        if name not in first or name not in second:
            found.append(f"{name} is {'new' if name in second else 'missing'}")
        elif first[name] != second[name]:
            found.append(f"{name} differs")
    return found


def leftovers(folder: Path, quiet: Path) -> list[str]:
    """What a copy holds that the quiet one does not, and locks that are still held; byte code is not looked at."""
    there = {path.relative_to(quiet) for path in quiet.rglob("*")}
    here = [path.relative_to(folder) for path in folder.rglob("*") if "__pycache__" not in path.parts]
    found = [path.as_posix() for path in here if path not in there and (path.parent in there or path.parent == Path())]
    for path in here:
        if path.suffix == ".lock" or path.name == "lock":
            try:
                with FileLock(folder / path, timeout=0):
                    pass
            except Timeout:
                found.append(f"{path.as_posix()}, still locked")
    return sorted(found)


def disagreements(one: Path, other: Path, *, tolerance: float) -> list[str]:
    """Tables (CSV) of two published folders whose numbers differ by more than a tolerance, relative to the largest of their column."""
    found = []
    for path in sorted(one.rglob("*.csv")):
        name = path.relative_to(one)
        if not (other / name).is_file():
            found.append(f"{name} is missing")
            continue
        first, second = pd.read_csv(path), pd.read_csv(other / name)
        if list(first) != list(second) or len(first) != len(second):
            found.append(f"{name} has other rows or columns")
            continue
        for column in first:
            a, b = first[column], second[column]
            if pd.api.types.is_numeric_dtype(a) and pd.api.types.is_numeric_dtype(b):
                worst = (a.astype(float) - b.astype(float)).abs().max() / max(a.astype(float).abs().max(), 1e-300)
                if worst > tolerance or (a.isna() != b.isna()).any():
                    found.append(f"{name}, {column}: off by {worst:.2g} of the largest")
            elif not a.equals(b):
                found.append(f"{name}, {column} differs")
    return found


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- damage -------------------------------------------------------------------------------------------------------------


def _flip(position: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[min(int(position * len(content)), len(content) - 1)] ^= 0x10
        path.write_bytes(bytes(content))

    return damage


class _Owned:
    """What runs code when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("owned",)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "first byte": _flip(0),
    "a byte early on": _flip(0.03),
    "a byte in the middle": _flip(0.5),
    "last byte": _flip(1),
    "cut in half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "other JSON": lambda path: path.write_text('[{"runs": 1}]'),
    "a pickle that runs code": lambda path: path.write_bytes(pickle.dumps(_Owned())),
    "gone": lambda path: path.unlink(),
}


def damage_all(files: Iterable[Path], shift: int) -> None:
    """Damage files, each in another way, beginning with the shift-th."""
    some = sorted(path for path in files if path.is_file() and path.stat().st_size)
    assert some, "there was nothing to damage"
    for path, damage in zip(some, itertools.islice(itertools.cycle(DAMAGE.values()), shift, None), strict=False):
        damage(path)


def ran_code(folder: Path) -> list[str]:
    """What hostile files made when they were allowed to run code."""
    return [str(path.relative_to(folder)) for path in folder.rglob("owned")]


# --- limits ---------------------------------------------------------------------------------------------------------------


def limited(size: int) -> Callable[[], None]:
    """What keeps a process from writing files beyond a size, in bytes, as a full disk does."""
    import resource as limits

    return lambda: limits.setrlimit(limits.RLIMIT_FSIZE, (size, size))


def without_override() -> None:
    """Root loses the right to write where modes forbid it; nothing for other users, and elsewhere than on Linux."""
    if sys.platform == "linux" and os.geteuid() == 0:
        libc = ctypes.CDLL(None)
        for capability in SEES_ALL:
            libc.prctl(DROP_FROM_BOUND, capability, 0, 0, 0)


def without_network() -> None:
    """A network without any interface, where the system allows it; there are dead proxies besides."""
    if sys.platform == "linux":
        ctypes.CDLL(None).unshare(NEW_NETWORK)


# --- what came of it ------------------------------------------------------------------------------------------------------


def write_down(path: Path, tried: Mapping[str, tuple[int, int, float]], known: Collection[str]) -> None:
    """Put rows into the table: what was tried -> times, times that it came out as it should, seconds. Rows of what is not known go."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rows = {line.split(" | ")[0][2:]: line for line in lines if line.startswith("| ") and line not in HEAD}
    rows = {what: line for what, line in rows.items() if what in known}
    for what, (times, right, seconds) in tried.items():
        rows[what] = f"| {what} | {times} | {right} | {seconds:.0f} |"
    body = "\n".join(rows[what] for what in sorted(rows))
    write_atomically(path, f"# Robustness\n\nWritten by `make robustness`.\n\n{HEAD}{body}\n")


def what_tests_try(folder: Path) -> set[str]:
    """What the tests of a folder try, in words: the first line of each one's docstring."""
    found = set()
    for path in folder.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.FunctionDef)
                and node.name.startswith("test_")
                and (text := ast.get_docstring(node))
            ):
                found.add(in_words(text))
    return found


def in_words(docstring: str) -> str:
    """The first line of a test's docstring, as a row has it."""
    return docstring.splitlines()[0].rstrip(".")
