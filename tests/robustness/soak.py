"""``make soak``: kill ``make figures`` again and again, let it finish, and compare with a run that nobody disturbed; then other faults.

Both work in copies of the checkout in a temporary folder, with this environment and these images. A kill is SIGKILL to the process
group of what ``make figures`` starts. Kernels and their workers have groups of their own: they are left to themselves, as a user's
``kill -9`` leaves them, and the next attempt starts at once beside them. The other faults are those of ``faults.py``. What was tried and what came
of it is written to ``figures/soak.md``.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from snipnb._files import data_dir, project_root, write_atomically
from snipnb.publish.profiles import check_parameters, load_profile
from tools.runner import find_notebooks, place_of

if TYPE_CHECKING:
    import psutil

GRACE_SECONDS = 320.0  # after the last attempt for what was left behind: idle workers of joblib end after 300
SECTIONS = {"kills": "Kills at random moments", "faults": "Other faults"}
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


def run(profile_name: str = "smoke", *, kills: int = 10, seed: int = 0, only: str | None = None) -> bool:
    """Run the notebooks of a profile quietly and under kills, try other faults, print and write down what came of it.

    Args:
        profile_name: Name of a profile, or the path of a YAML file; of the run that is killed.
        kills: How many times the disturbed run is killed.
        seed: Draw of the moments.
        only: ``"kills"``, ``"faults"``, or words of some faults' descriptions; default everything.

    Returns:
        Whether the disturbed run ended in the same published files, left nothing behind and trained nothing twice, and every fault
        did what it should.

    Raises:
        ValueError: If profile or number of kills cannot be used, or a quiet run fails.
    """
    from tests.robustness import faults  # which takes copies from here

    root = project_root()
    if root is None or os.name != "posix":
        raise ValueError("the soak needs a checkout of the repository, on a system with SIGKILL and process groups")
    if kills < 1:
        raise ValueError(f"--kills is {kills}; accepted are integers from 1")
    with_kills = only in (None, "kills")
    which = [] if only == "kills" else faults.named("" if only in (None, "faults") else only)
    if not with_kills and not which:
        everything = "\n  ".join(faults.named(""))
        raise ValueError(f"--only is {only!r}; accepted are kills, faults, and words of one of\n  {everything}")
    check_parameters(load_profile(profile_name), find_notebooks(root))
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    print(f"profile {profile_name}; copies and logs in {folder}")
    keep = True
    try:
        problems = _problems(folder, root, profile_name, kills, seed) if with_kills else []
        problems += _faults(folder / "faults", root, which) if which else []
        keep = bool(problems)
    except KeyboardInterrupt:
        keep = False
        raise
    finally:
        if keep:
            print(f"copies and logs are kept in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return not problems


def _problems(folder: Path, root: Path, profile_name: str, kills: int, seed: int) -> list[str]:
    """What the disturbed run did wrong; everything is printed."""
    quiet, killed = (Run(root, folder / name, profile_name) for name in ("quiet", "killed"))
    print("a quiet run: ", end="", flush=True)
    code, seconds = quiet.attempt()
    if code != 0:
        raise ValueError(f"the quiet run failed, so there is nothing to compare with; see {quiet.log}")
    print(f"{seconds:.0f} s", flush=True)
    try:
        table = _kill_again_and_again(killed, moments(kills, seconds, seed=seed), quiet.timeline(seconds))
        print("left alone at last: ", end="", flush=True)
        code, last = killed.attempt(10 * seconds + 60)
        print(f"{last:.0f} s\n")
    finally:
        still_there = killed.end_orphans()
    problems = [f"the last attempt {'hung' if code is None else 'failed'}: see {killed.log}"] if code != 0 else []
    problems += [f"published: {difference}" for difference in differences(quiet.published, killed.published)]
    problems += [f"left behind: {file}" for file in leftovers(killed.folder, quiet.folder)]
    problems += [f"trained again: {file}" for file in killed.rewritten()]
    problems += [f"still running: {process}" for process in still_there]
    legend = "moment: s of the quiet run; after: s of the attempt; groups: finished by then; lived: s the last orphan went on"
    shown = pd.DataFrame(table).to_markdown(index=False, floatfmt=".1f")
    said = (
        f"Profile {profile_name}; {len(table)} kills (seed {seed}); {len(_files(quiet.published))} published files compared; "
        f"{len(killed.kept)} records of finished groups watched; {len(problems)} problems."
    )
    print(f"{shown}\n{legend}\n\n{said}" + "".join(f"\n  {problem}" for problem in problems))
    listed = "".join(f"\n- {problem}" for problem in problems)
    _write_down(root, "kills", f"{said}{listed}\n\n{shown}\n\n*{legend}.*")
    return problems


def _faults(folder: Path, root: Path, which: Sequence[str]) -> list[str]:
    from tests.robustness import faults  # which takes copies from here

    folder.mkdir(parents=True)
    print("\nother faults, with two notebooks of the smoke profile", flush=True)
    found, before = [], _written_down(root).get("faults", "")
    for fault in faults.try_all(root, folder, which):
        found.append(fault)
        _write_down(root, "faults", faults.markdown(found, before))  # what was tried so far
    return [problem for fault in found for problem in fault.problems]


def _written_down(root: Path) -> dict[str, str]:
    """The sections of ``figures/soak.md``."""
    path = root / "figures" / "soak.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return dict(re.findall(r"<!-- (\w+) -->\n(.*?)\n<!-- end -->", text, flags=re.DOTALL))


def _write_down(root: Path, section: str, text: str) -> None:
    """Put a section into ``figures/soak.md``; the others stay."""
    parts = _written_down(root) | {section: text}
    body = "".join(
        f"\n## {SECTIONS[name]}\n\n<!-- {name} -->\n{parts[name]}\n<!-- end -->\n" for name in SECTIONS if name in parts
    )
    page = f"# What was done to `make figures`, and what came of it\n\nWritten by `make soak`.\n{body}"
    write_atomically(root / "figures" / "soak.md", page)


def _kill_again_and_again(killed: Run, when: Sequence[float], timeline: Sequence[Interval]) -> list[Kill]:
    table = []
    for number, moment in enumerate(when, 1):
        done = killed.done()
        force = done >= {notebook for notebook, _, _ in timeline}  # all is done: do it again
        wait = moment if force else time_to(moment, timeline, done)
        while True:
            code, seconds = killed.attempt(wait, force=force)
            if code is None:
                break
            if code != 0:
                raise ValueError(f"an attempt failed before its kill; see {killed.log}")
            force, wait = True, seconds * moment / timeline[-1][2]  # it was done before
        table.append(killed.what_was_hit(moment, seconds))
        kill = table[-1]
        print(f"kill {number} of {len(when)}, {kill.after:.1f} s into {kill.during}", flush=True)
    return table


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
    first, second = _files(one), _files(other)
    found = []
    for name in sorted((first.keys() | second.keys()) - {"provenance.json"}):
        if name not in first or name not in second:
            found.append(f"{name} is {'new' if name in second else 'missing'}")
        elif first[name].read_bytes() != second[name].read_bytes():
            found.append(f"{name} differs")
    return found


def leftovers(folder: Path, quiet: Path) -> list[str]:
    """What a copy holds that the quiet one does not, and locks that are still held; byte code is not looked at."""
    from filelock import FileLock, Timeout

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


def _files(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


# --- a copy of the checkout, run once or many times -------------------------------------------------------------------


class Run:
    """A copy of what a run needs of the checkout, without anything that earlier runs made but compiled kernels, and attempts to run it."""

    def __init__(self, root: Path, folder: Path, profile_name: str, *, files: bool = True) -> None:
        for name in ("snipnb", "tools", "notebooks", "figures/bench") if files else ():
            if (root / name).is_dir():
                shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("*.pyc"))
        (folder / "tmp").mkdir(parents=True)
        shutil.copy(root / "pyproject.toml", folder)
        profile = load_profile(profile_name)
        self.folder, self.place = folder, place_of(profile, folder)
        self.profile_name = profile.name if profile.name == profile_name else str(Path(profile_name).resolve())
        self.published, self.runs = self.place.published, folder / "build" / "runs"
        self.kept: dict[Path, int] = {}  # what says that groups are finished, as first seen
        self.attempts, self.log = 0, folder
        self.orphans: list[psutil.Process] = []  # of the last kill
        self.left: list[psutil.Process] = []  # of all kills

    def launch(
        self,
        *,
        force: bool = False,
        notebooks: Sequence[str] = (),
        environment: Mapping[str, str | None] | None = None,
        before: Callable[[], object] | None = None,
    ) -> tuple[subprocess.Popen, Path]:
        """Start what ``make figures`` does.

        Args:
            force: Run what is up to date too.
            notebooks: Which; default all.
            environment: Variables that are set, or with None are not.
            before: What the process does first.

        Returns:
            The process, and the log it writes.
        """
        self.attempts += 1
        self.log = self.folder.with_name(f"{self.folder.name}{self.attempts}.log")
        command = [sys.executable, "-m", "tools", "figures", "--profile", self.profile_name, *notebooks]
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
        import psutil  # comes with ipykernel

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
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
