"""The faults of ``make soak`` other than kills: odd set-ups, obstacles, two runs at once, damaged files, hostile input.

Each is tried in a copy of the checkout with two notebooks of the smoke profile, one that computes and one that trains. Where a fault should not
matter, the published files must be those of a quiet run, byte for byte; where it does, what is said must be readable, nothing may be half
written, and once it is gone the same folder must end in the same files.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from snipnb._files import data_dir
from snipnb.data import RAW_FILES
from tests.robustness.soak import Run, differences

THREADS_TOLERANCE = 1e-3
NOTEBOOKS = ("01", "03")
SAME, SAID = "the same files", "refused with a message"
LONGEST_MESSAGE = 4000  # characters of a message that can be read
DROP_FROM_BOUND, NEW_NETWORK, SEES_ALL = (
    24,
    0x40000000,
    (1, 2),
)  # of Linux: prctl, unshare, capabilities that ignore modes


@dataclass
class Fault:
    """One kind of fault and what came of it.

    Attributes:
        what: In words.
        expected: What should come of it.
        tried: How often.
        problems: What went wrong, one line each.
        seconds: That all tries took.
    """

    what: str
    expected: str
    tried: int = 0
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Site:
    """A folder of copies, one of which ran quietly."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder
        self.quiet = self.fresh("quiet")
        code, _ = self.quiet.attempt(notebooks=NOTEBOOKS)
        if code != 0:
            raise ValueError(f"the quiet run failed, so there is nothing to compare with; see {self.quiet.log}")

    def fresh(self, name: str) -> Run:
        """A copy in which nothing has run."""
        return Run(self.root, self.folder / name, "smoke")

    def finished(self, name: str) -> Run:
        """A copy of the quiet one as it is now."""
        run = Run(self.root, self.folder / name, "smoke", files=False)
        shutil.copytree(self.quiet.folder, run.folder, dirs_exist_ok=True)
        return run

    def same(self, run: Run, **options) -> list[str]:
        """Problems if a run does not end in the files of the quiet one."""
        code, _ = run.attempt(600, notebooks=NOTEBOOKS, **options)
        if code != 0:
            return [f"{run.folder.name}: exit status {code}, see {run.log}"]
        return [f"{run.folder.name}: {line}" for line in differences(self.quiet.published, run.published)]

    def refused(self, run: Run, message: str, **options) -> list[str]:
        """Problems if a run does not fail with a readable message."""
        before = _contents(run.published)
        code, _ = run.attempt(600, **{"notebooks": NOTEBOOKS, **options})
        said = run.log.read_text(encoding="utf-8", errors="replace")
        problems = [] if code == 1 else [f"exit status {code}, not 1"]
        if not re.search(message, said):
            problems.append(f"it does not say {message!r}")
        if "Traceback" in said or len(said) > LONGEST_MESSAGE + 200 * len(before):
            problems.append("a traceback, or too long to read")
        damaged = [name for name in _half_written(run.published) if name not in before]
        return [f"{run.folder.name}: {p}, see {run.log}" for p in [*problems, *(f"half written: {n}" for n in damaged)]]


Tries = Iterator[list[str]]
FAULTS: list[tuple[str, str, Callable[[Site], Tries]]] = []


def _fault(what: str, expected: str) -> Callable[[Callable[[Site], Tries]], Callable[[Site], Tries]]:
    def enter(function: Callable[[Site], Tries]) -> Callable[[Site], Tries]:
        FAULTS.append((what, expected, function))
        return function

    return enter


def named(words: str) -> list[str]:
    """The faults whose description has these words."""
    return [what for what, _, _ in FAULTS if words.casefold() in what.casefold()]


def try_all(root: Path, folder: Path, which: Container[str]) -> Iterator[Fault]:
    """Try faults, by their descriptions, in copies of a checkout, one after the other.

    Raises:
        ValueError: If the quiet run fails.
    """
    site = Site(root, folder)
    for what, expected, function in FAULTS:
        if what not in which:
            continue
        fault, start = Fault(what, expected), time.monotonic()
        print(f"{what}: ", end="", flush=True)
        for problems in function(site):
            fault.tried += 1
            fault.problems += problems
        fault.seconds = time.monotonic() - start
        print(f"{fault.tried} tried, {len(fault.problems)} problems, {fault.seconds:.0f} s", flush=True)
        for problem in fault.problems:
            print(f"  {problem}", flush=True)
        yield fault


# --- set-ups that should not matter -------------------------------------------------------------------------------------


@_fault("another language, time zone and numeric locale", SAME)
def _locale(site: Site) -> Tries:
    environment = {"LANG": "de_DE.UTF-8", "LC_ALL": "C", "LC_NUMERIC": "de_DE.UTF-8", "TZ": "Pacific/Kiritimati"}
    yield site.same(site.fresh("locale"), environment=environment)
    yield site.same(site.fresh("ascii"), environment={"LC_ALL": "POSIX", "PYTHONUTF8": "0", "TZ": "America/St_Johns"})


@_fault("a user's matplotlibrc, IPython and Jupyter settings, PYTHON variables", SAME)
def _user(site: Site) -> Tries:
    run = site.fresh("user")
    home = site.folder / "user-settings"
    startup = home / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00.py").write_text("import torch\ntorch.manual_seed(7)\nprint('started')\n")
    (startup.parent / "ipython_kernel_config.py").write_text("c.IPKernelApp.exec_lines = ['1 / 0']\n")
    (home / "jupyter_config.py").write_text("c.NotebookClient.timeout = 1\n")
    (home / "startup.py").write_text("raise SystemExit('startup')\n")
    settings = "font.size: 31\nfigure.dpi: 33\nsavefig.facecolor: red\naxes.prop_cycle: cycler(color=['k'])\n"
    for place in (home, run.folder, home / "matplotlib"):
        place.mkdir(exist_ok=True)
        (place / "matplotlibrc").write_text(settings)
    yield site.same(
        run,
        environment={
            "MATPLOTLIBRC": str(home / "matplotlibrc"),
            "MPLCONFIGDIR": str(home / "matplotlib"),
            "MPLBACKEND": "module://nowhere",
            "IPYTHONDIR": str(home / "ipython"),
            "JUPYTER_CONFIG_DIR": str(home),
            "PYTHONSTARTUP": str(home / "startup.py"),
            "PYTHONHASHSEED": "7",
            "OMP_NUM_THREADS": "1",
        },
    )


@_fault("no HOME, and one that does not exist", SAME)
def _home(site: Site) -> Tries:
    yield site.same(site.fresh("no-home"), environment={"HOME": None})
    yield site.same(site.fresh("lost-home"), environment={"HOME": "/does/not/exist"})


@_fault("a path with spaces, quotes and letters beyond ASCII", SAME)
def _path(site: Site) -> Tries:
    yield site.same(site.fresh("Ein Ordner, 'später' größer ünï 雪"))


@_fault("no network", SAME)
def _network(site: Site) -> Tries:
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    yield site.same(site.fresh("no-network"), environment=nowhere, before=_without_network)


@_fault("files dated 1985 and 2040: what is up to date stays so, the rest runs", SAME)
def _dates(site: Site) -> Tries:
    for name, when in (("1985", 15 * 365 * 86400), ("2040", 70 * 365 * 86400)):
        run = site.finished(f"dated-{name}")
        _date(run.folder, when)
        problems = site.same(run)
        if run.log.read_text(encoding="utf-8").count("is up to date") != len(NOTEBOOKS):
            problems.append(f"ran again for its dates, see {run.log}")
        yield problems
    run = site.fresh("from-2040")
    _date(run.folder, 70 * 365 * 86400)
    yield site.same(run)


@_fault("two runs at once: of the same notebooks, and of one each, as make -j2 does", SAME)
def _two(site: Site) -> Tries:
    for name, shares in (("twice", (NOTEBOOKS, NOTEBOOKS)), ("j2", ([NOTEBOOKS[0]], [NOTEBOOKS[1]]))):
        run = site.fresh(name)
        processes = [run.launch(notebooks=share) for share in shares]
        codes = [process.wait(600) for process, _ in processes]
        said = "".join(log.read_text(encoding="utf-8") for _, log in processes)
        problems = [f"{name}: exit statuses {codes}"] if codes != [0, 0] else []
        if (ran := len(re.findall(r"^\[.* \d+ files$", said, flags=re.MULTILINE))) != len(NOTEBOOKS):
            problems.append(f"{name}: {ran} notebooks ran, not {len(NOTEBOOKS)}")
        yield problems + [f"{name}: {line}" for line in differences(site.quiet.published, run.published)]


@_fault(
    f"one thread instead of two: numbers in tables agree within {THREADS_TOLERANCE:g} of the largest of their column",
    "tables that agree",
)
def _threads(site: Site) -> Tries:
    run = site.fresh("one-thread")
    path = run.folder / "one_thread.yaml"
    text = (run.folder / "snipnb" / "resources" / "profiles" / "smoke.yaml").read_text(encoding="utf-8")
    path.write_text(text.replace("threads: 2", "threads: 1"), encoding="utf-8")
    run.profile_name = str(path)
    code, _ = run.attempt(600, notebooks=NOTEBOOKS)
    problems = [f"exit status {code}, see {run.log}"] if code != 0 else []
    yield problems + disagreements(site.quiet.published, run.folder / "figures" / path.stem)


def disagreements(one: Path, other: Path, *, tolerance: float = THREADS_TOLERANCE) -> list[str]:
    """Tables (CSV) of two published folders whose numbers differ by more than a tolerance, relative to the largest of their column."""
    found = []
    for path in sorted(one.glob("*.csv")):
        if not (other / path.name).is_file():
            found.append(f"{path.name} is missing")
            continue
        first, second = pd.read_csv(path), pd.read_csv(other / path.name)
        if list(first) != list(second) or len(first) != len(second):
            found.append(f"{path.name} has other rows or columns")
            continue
        for column in first:
            a, b = first[column], second[column]
            if pd.api.types.is_numeric_dtype(a) and pd.api.types.is_numeric_dtype(b):
                worst = (a.astype(float) - b.astype(float)).abs().max() / max(a.astype(float).abs().max(), 1e-300)
                if worst > tolerance or (a.isna() != b.isna()).any():
                    found.append(f"{path.name}, {column}: off by {worst:.2g} of the largest")
            elif not a.equals(b):
                found.append(f"{path.name}, {column} differs")
    return found


# --- obstacles ----------------------------------------------------------------------------------------------------------


@_fault("a full disk (no file may grow beyond a size), then room again", f"{SAID}; then {SAME}")
def _disk(site: Site) -> Tries:
    for size in (10_000, 60_000, 300_000):
        run = site.fresh(f"full-{size}")
        yield site.refused(run, r"File too large|cannot be written|No space", before=_limited(size)) + site.same(run)


@_fault("a published folder that cannot be written, then can", f"{SAID}; then {SAME}")
def _read_only(site: Site) -> Tries:
    run = site.fresh("read-only")
    run.published.mkdir(parents=True)
    run.published.chmod(0o555)
    problems = site.refused(run, "cannot be written|not be written|Permission", before=_without_override)
    run.published.chmod(0o755)
    yield problems + site.same(run)


@_fault("a folder where a file is to go, a file where a folder is to go; then neither", f"{SAID}; then {SAME}")
def _in_the_way(site: Site) -> Tries:
    run = site.fresh("folder-in-place")
    name = next(file.relative_to(site.quiet.published) for file in sorted(site.quiet.published.glob("03_*/*.png")))
    (run.published / name).mkdir(parents=True)
    problems = site.refused(run, "a folder stands in its place")
    (run.published / name).rmdir()
    yield problems + site.same(run)
    run = site.fresh("file-in-place")
    run.published.mkdir(parents=True)
    (run.published / "notebooks").write_text("mine")
    problems = site.refused(run, "notebooks")
    (run.published / "notebooks").unlink()
    yield problems + site.same(run)


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


@_fault("published files damaged in every way: byte by byte, cut, emptied, replaced, gone", SAME)
def _published(site: Site) -> Tries:
    for shift in range(3):
        run = site.finished(f"published-{shift}")
        yield _damage(run.published.rglob("*"), shift) + site.same(run)


@_fault("what is known of published files damaged likewise", SAME)
def _states(site: Site) -> Tries:
    for shift in range(0, len(DAMAGE), len(NOTEBOOKS)):
        run = site.finished(f"states-{shift}")
        yield _damage(run.place.state("any").parent.glob("*.json"), shift) + site.same(run)


@_fault("kept training runs and saliences damaged likewise, notebooks run again", SAME)
def _store(site: Site) -> Tries:
    for shift in range(0, len(DAMAGE), 3):
        run = site.finished(f"store-{shift}")
        files = (p for p in run.runs.rglob("*") if p.suffix != ".lock")
        yield _damage(files, shift) + site.same(run, force=True) + _ran_code(run.folder)


@_fault("the shipped sample of MNIST damaged likewise", SAID)
def _sample(site: Site) -> Tries:
    for name, damage in DAMAGE.items():
        run = site.fresh(f"sample-{name.replace(' ', '-')}")
        damage(run.folder / "snipnb" / "resources" / "mnist_sample.npz")
        yield site.refused(run, "mnist_sample.npz") + _ran_code(run.folder)


LOAD = "import sys, snipnb\ntry:\n    snipnb.load_mnist('test', download=False)\nexcept Exception as e:\n    print(type(e).__name__, e)"


@_fault("the files of MNIST damaged likewise, nothing to fetch them from", SAID)
def _mnist(site: Site) -> Tries:
    raw = data_dir() / "MNIST" / "raw"
    if not all((raw / file.name).is_file() for file in RAW_FILES):
        return
    for file, (name, damage) in itertools.product(RAW_FILES[2:], DAMAGE.items()):
        folder = site.folder / f"data-{file.name}-{name.replace(' ', '-')}"
        (folder / "MNIST" / "raw").mkdir(parents=True)
        for other in RAW_FILES:
            place = folder / "MNIST" / "raw" / other.name
            if other == file:
                shutil.copyfile(raw / other.name, place)
            else:
                place.symlink_to(raw / other.name)
        damage(folder / "MNIST" / "raw" / file.name)
        environment = os.environ | {"SNIPNB_DATA": str(folder), "PYTHONPATH": str(site.quiet.folder)}
        done = subprocess.run([sys.executable, "-c", LOAD], cwd=folder, env=environment, capture_output=True, text=True)
        good = done.stdout.startswith("DataUnavailableError") and file.name in done.stdout and not done.stderr
        yield ([] if good else [f"{file.name}, {name}: {done.stdout[-300:]}{done.stderr[-300:]}"]) + _ran_code(folder)
        shutil.rmtree(folder)


# --- hostile input ------------------------------------------------------------------------------------------------------

HOSTILE = {
    "a tag that runs code": ("about: !!python/object/apply:os.mkdir [owned]\nnotebooks: {}\n", "not valid YAML"),
    "an unknown section": ("notebooks: {}\nshell: mkdir owned\n", "accepted are the sections"),
    "a parameter that is code": (
        "common: {threads: \"__import__('os').mkdir('owned')\", sample: true}\nnotebooks: {}\n",
        "accepted is a int",
    ),
    "a parameter that is a command": (
        "common: {threads: 2, sample: true}\nnotebooks: {03_lenet5_table: {num_seeds: 2, split_name: '$(mkdir owned); `mkdir owned`'}}\n",
        "split is",
    ),
    "a parameter that leaves its quotes": (
        "common: {threads: 2, sample: true}\nnotebooks: {03_lenet5_table: {num_seeds: 2, split_name: \"x'\\n__import__('os').mkdir('owned')\\n'\"}}\n",
        "split is",
    ),
    "not text": ("\udcff\udc80", "not valid YAML"),
}


@_fault("profiles that try to run code", SAID)
def _hostile(site: Site) -> Tries:
    for number, (content, message) in enumerate(HOSTILE.values()):
        run = site.fresh(f"hostile-{number}")
        path = run.folder / "mine.yaml"
        path.write_bytes(content.encode("utf-8", "surrogateescape"))
        run.profile_name = str(path)
        yield site.refused(run, message, notebooks=["03"]) + _ran_code(run.folder)


# --- what the tries are made of -----------------------------------------------------------------------------------------


def _damage(files: Iterator[Path], shift: int) -> list[str]:
    """Damage files, each in another way, beginning with the shift-th."""
    some = sorted(path for path in files if path.is_file())
    for path, damage in zip(some, itertools.islice(itertools.cycle(DAMAGE.values()), shift, None), strict=False):
        if path.stat().st_size:
            damage(path)
    return [] if some else ["there was nothing to damage"]


def _ran_code(folder: Path) -> list[str]:
    return [f"{path} ran code" for path in folder.rglob("owned")]


def _contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _half_written(folder: Path) -> list[str]:
    """Published files that are empty, or parts of files."""
    return [name for name, content in _contents(folder).items() if not content or name.endswith(".part")]


def _date(folder: Path, when: float) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (when, when))


def _limited(size: int) -> Callable[[], None]:
    import resource as limits

    return lambda: limits.setrlimit(limits.RLIMIT_FSIZE, (size, size))


def _without_override() -> None:
    """Root loses the right to write where modes forbid it; nothing for other users, and elsewhere than on Linux."""
    if sys.platform == "linux" and os.geteuid() == 0:
        libc = ctypes.CDLL(None)
        for capability in SEES_ALL:
            libc.prctl(DROP_FROM_BOUND, capability, 0, 0, 0)


def _without_network() -> None:
    """A network without any interface, where the system allows it; there are dead proxies besides."""
    if sys.platform == "linux":
        ctypes.CDLL(None).unshare(NEW_NETWORK)


def markdown(found: Sequence[Fault], before: str = "") -> str:
    """The faults as a table for ``figures/soak.md``: what was found, else what the table before says, else that it was not tried."""
    rows = {line[2:].split(" | ")[0]: line for line in before.splitlines()[2:]} | {f.what: _row(f) for f in found}
    lines = [rows.get(what) or _row(Fault(what, expected)) for what, expected, _ in FAULTS]
    return "\n".join(["| fault | tried | expected | right | seconds |", "|---|---|---|---|---|", *lines])


def _row(f: Fault) -> str:
    problems = "; ".join(re.sub(r", see /.*?\.log", "", problem) for problem in f.problems)
    right = "not tried" if not f.tried else f"no: {problems}" if problems else "all"
    return f"| {f.what} | {f.tried} | {f.expected} | {right} | {f.seconds:.0f} |"
