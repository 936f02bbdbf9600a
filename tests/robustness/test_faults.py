"""``make figures`` in odd set-ups, among obstacles, beside itself, with damaged files, on hostile input (``make robustness``).

Each is tried in a copy of the checkout with two notebooks of the smoke profile, one that computes and one that trains. Where a fault should not
matter, the published files must be those of a quiet run, byte for byte; where it does, what is said must be readable, nothing may be half
written, and once it is gone the same folder must end in the same files.
"""

import os
import re
import shutil
import subprocess
import sys

import pytest

from snipnb._files import data_dir, project_root
from snipnb.data import RAW_FILES
from tests.robustness.copies import (
    DAMAGE,
    Copy,
    damage_all,
    differences,
    disagreements,
    limited,
    ran_code,
    without_network,
    without_override,
)

pytestmark = [
    pytest.mark.robustness,
    pytest.mark.skipif(os.name != "posix", reason="the faults are those of a system with modes and limits"),
]

NOTEBOOKS = ("01", "03")
DEAD_PROXY = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    """A copy that ran undisturbed."""
    copy = Copy(project_root(), tmp_path_factory.mktemp("faults") / "quiet", notebooks=NOTEBOOKS)
    code, _ = copy.attempt()
    assert code == 0, copy.log.read_text(encoding="utf-8", errors="replace")
    return copy


@pytest.fixture
def fresh(tmp_path):
    """A copy in which nothing has run."""
    return Copy(project_root(), tmp_path / "fresh", notebooks=NOTEBOOKS)


@pytest.fixture
def finished(quiet, tmp_path):
    """A copy of the quiet one."""
    return Copy(quiet, tmp_path / "finished", notebooks=NOTEBOOKS)


def _date(folder, years):
    for path in folder.rglob("*"):
        os.utime(path, (years * 365 * 86400,) * 2)


# --- set-ups that should not matter -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "environment",
    [
        {"LANG": "de_DE.UTF-8", "LC_ALL": "C", "LC_NUMERIC": "de_DE.UTF-8", "TZ": "Pacific/Kiritimati"},
        {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "TZ": "America/St_Johns"},
    ],
)
def test_language(environment, fresh, quiet):
    """Another language, time zone and numeric locale: the same files."""
    fresh.check_same(quiet, environment=environment)


def test_settings_of_a_user(fresh, quiet, tmp_path):
    """A user's matplotlibrc, IPython and Jupyter settings, PYTHON variables: the same files."""
    home = tmp_path / "user-settings"
    startup = home / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00.py").write_text("import torch\ntorch.manual_seed(7)\nprint('started')\n")
    (startup.parent / "ipython_kernel_config.py").write_text("c.IPKernelApp.exec_lines = ['1 / 0']\n")
    (home / "jupyter_config.py").write_text("c.NotebookClient.timeout = 1\n")
    (home / "startup.py").write_text("raise SystemExit('startup')\n")
    settings = "font.size: 31\nfigure.dpi: 33\nsavefig.facecolor: red\naxes.prop_cycle: cycler(color=['k'])\n"
    for place in (home, fresh.folder, home / "matplotlib"):
        place.mkdir(exist_ok=True)
        (place / "matplotlibrc").write_text(settings)
    environment = {
        "MATPLOTLIBRC": str(home / "matplotlibrc"),
        "MPLCONFIGDIR": str(home / "matplotlib"),
        "MPLBACKEND": "module://nowhere",
        "IPYTHONDIR": str(home / "ipython"),
        "JUPYTER_CONFIG_DIR": str(home),
        "PYTHONSTARTUP": str(home / "startup.py"),
        "PYTHONHASHSEED": "7",
        "OMP_NUM_THREADS": "1",
    }
    fresh.check_same(quiet, environment=environment)


@pytest.mark.parametrize("home", [None, "/does/not/exist"])
def test_home(home, fresh, quiet):
    """No HOME, and one that does not exist: the same files."""
    fresh.check_same(quiet, environment={"HOME": home})


def test_path(quiet, tmp_path):
    """A path with spaces, quotes and letters beyond ASCII: the same files."""
    folder = tmp_path / "Ein Ordner, 'später' größer ünï 雪"
    Copy(project_root(), folder, notebooks=NOTEBOOKS).check_same(quiet)


def test_network(fresh, quiet):
    """No network: the same files."""
    fresh.check_same(quiet, environment={**DEAD_PROXY, "SNIPNB_OFFLINE": None}, before=without_network)


@pytest.mark.parametrize("years", [15, 70])
def test_dates(years, finished, quiet):
    """Files dated 1985 and 2040, all up to date: nothing runs."""
    _date(finished.folder, years)
    finished.check_same(quiet)
    assert finished.log.read_text(encoding="utf-8").count("is up to date") == len(NOTEBOOKS)


def test_dates_of_what_has_to_run(fresh, quiet):
    """Files dated 2040, nothing run yet: the same files."""
    _date(fresh.folder, 70)
    fresh.check_same(quiet)


@pytest.mark.parametrize("shares", [(NOTEBOOKS, NOTEBOOKS), (NOTEBOOKS[:1], NOTEBOOKS[1:])])
def test_two_at_once(shares, fresh, quiet):
    """Two runs at once, of the same notebooks, and of one each, as make -j2 does: each notebook once, the same files."""
    processes = [fresh.launch(notebooks=share) for share in shares]
    assert [process.wait(600) for process, _ in processes] == [0, 0]
    said = "".join(log.read_text(encoding="utf-8") for _, log in processes)
    assert len(re.findall(r"^\[.* \d+ files$", said, flags=re.MULTILINE)) == len(NOTEBOOKS)
    assert differences(quiet.published, fresh.published) == []


def test_one_thread(quiet, tmp_path):
    """One thread instead of two: numbers in tables agree within 0.001 of the largest of their column."""
    profile = tmp_path / "one_thread.yaml"
    smoke = project_root() / "snipnb" / "resources" / "profiles" / "smoke.yaml"
    profile.write_text(smoke.read_text(encoding="utf-8").replace("threads: 2", "threads: 1"), encoding="utf-8")
    copy = Copy(project_root(), tmp_path / "copy", str(profile), notebooks=NOTEBOOKS)
    assert copy.attempt(600)[0] == 0, copy.log.read_text(encoding="utf-8", errors="replace")
    assert disagreements(quiet.published, copy.published, tolerance=1e-3) == []


# --- obstacles ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10_000, 60_000, 300_000])
def test_full_disk(size, fresh, quiet):
    """A full disk (no file may grow beyond a size), then room again: refused with a message; then the same files."""
    fresh.check_refused(r"File too large|cannot be written|No space", before=limited(size))
    fresh.check_same(quiet)


def test_read_only(fresh, quiet):
    """A published folder that cannot be written, then can: refused with a message; then the same files."""
    fresh.published.mkdir(parents=True)
    fresh.published.chmod(0o555)
    fresh.check_refused("cannot be written|not be written|Permission", before=without_override)
    fresh.published.chmod(0o755)
    fresh.check_same(quiet)


def test_folder_in_the_way(fresh, quiet):
    """A folder where a file is to go, then not: refused with a message; then the same files."""
    name = next(file.relative_to(quiet.published) for file in sorted(quiet.published.glob("03_*/*.png")))
    (fresh.published / name).mkdir(parents=True)
    fresh.check_refused("a folder of that name exists")
    (fresh.published / name).rmdir()
    fresh.check_same(quiet)


def test_file_in_the_way(fresh, quiet):
    """A file where a folder is to go, then not: refused with a message; then the same files."""
    fresh.published.mkdir(parents=True)
    (fresh.published / "notebooks").write_text("mine")
    fresh.check_refused("notebooks")
    (fresh.published / "notebooks").unlink()
    fresh.check_same(quiet)


# --- damage -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", range(3))
def test_published_files_damaged(shift, finished, quiet):
    """Published files damaged in every way (byte by byte, cut, emptied, replaced, gone): the same files."""
    damage_all(finished.published.rglob("*"), shift)
    finished.check_same(quiet)


@pytest.mark.parametrize("shift", range(0, len(DAMAGE), len(NOTEBOOKS)))
def test_states_damaged(shift, finished, quiet):
    """What is known of published files damaged likewise: the same files."""
    damage_all(finished.place.state("any").parent.glob("*.json"), shift)
    finished.check_same(quiet)


@pytest.mark.parametrize("shift", range(0, len(DAMAGE), 3))
def test_store_damaged(shift, finished, quiet):
    """Kept training runs and saliences damaged likewise, notebooks run again: the same files."""
    damage_all((path for path in finished.runs.rglob("*") if path.suffix != ".lock"), shift)
    finished.check_same(quiet, force=True)
    assert ran_code(finished.folder) == []


@pytest.mark.parametrize("name", DAMAGE)
def test_sample_damaged(name, fresh):
    """The shipped sample of MNIST damaged likewise: refused with a message."""
    DAMAGE[name](fresh.folder / "snipnb" / "resources" / "mnist_sample.npz")
    fresh.check_refused("mnist_sample.npz")
    assert ran_code(fresh.folder) == []


LOAD = "import sys, snipnb\ntry:\n    snipnb.load_mnist('test', download=False)\nexcept Exception as e:\n    print(type(e).__name__, e)"


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("file", RAW_FILES[2:], ids=lambda file: file.name)
def test_mnist_damaged(file, name, quiet, tmp_path):
    """The files of MNIST damaged likewise, nothing to fetch them from: refused with a message."""
    raw, mine = data_dir() / "MNIST" / "raw", tmp_path / "MNIST" / "raw"
    if not all((raw / other.name).is_file() for other in RAW_FILES):
        pytest.skip("MNIST is not here; `make data` fetches it")
    mine.mkdir(parents=True)
    for other in RAW_FILES:
        if other == file:
            shutil.copyfile(raw / other.name, mine / other.name)
        else:
            (mine / other.name).symlink_to(raw / other.name)
    DAMAGE[name](mine / file.name)
    environment = os.environ | {"SNIPNB_DATA": str(tmp_path), "PYTHONPATH": str(quiet.folder)}
    done = subprocess.run([sys.executable, "-c", LOAD], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert re.match(rf"DataUnavailableError .*{file.name}", done.stdout, flags=re.DOTALL), done.stdout
    assert done.stderr == ""
    assert ran_code(tmp_path) == []


# --- hostile input ------------------------------------------------------------------------------------------------------

COMMON = "common: {threads: 2, sample: true}\n"
SPLIT = COMMON + "notebooks: {03_lenet5_table: {num_seeds: 2, split_name: %s}}\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("about: !!python/object/apply:os.mkdir [owned]\nnotebooks: {}\n", "not valid YAML"),
        ("notebooks: {}\nshell: mkdir owned\n", "the accepted sections are"),
        (
            "common: {threads: \"__import__('os').mkdir('owned')\", sample: true}\nnotebooks: {}\n",
            "it must be an integer",
        ),
        (SPLIT % "'$(mkdir owned); `mkdir owned`'", "split must be one of"),
        (SPLIT % "\"x'\\n__import__('os').mkdir('owned')\\n'\"", "split must be one of"),
        ("\udcff\udc80", "not valid YAML"),
    ],
    ids=["tag", "section", "code", "command", "quotes", "bytes"],
)
def test_hostile_profile(content, message, fresh):
    """Profiles that try to run code: refused with a message."""
    path = fresh.folder / "mine.yaml"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    fresh.profile_name = str(path)
    fresh.check_refused(message, notebooks=["03"])
    assert ran_code(fresh.folder) == []
