"""``make figures`` in odd set-ups, among obstacles, beside itself, with damaged files, on hostile input (``make robustness``).

The tests run in copies of the checkout with two notebooks, one that computes and one that trains, on as little as they allow. If a fault should
not matter, the published files must equal those of an undisturbed run byte for byte. If it does matter, the message must be readable and no file
may be half written; once the fault is gone, another run in the same folder must produce the same files. Whatever needs no notebook is tested in
this process, in every combination.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest

from snipnb import data
from snipnb._files import data_dir, project_root, resource
from snipnb.training.store import Store
from tests.robustness.copies import (
    DAMAGE,
    LONGEST_SECONDS,
    Copy,
    damage_all,
    differences,
    disagreements,
    limited,
    ran_code,
    without_network,
    without_override,
)
from tools.__main__ import main
from tools.state import NOT_RUN, why_stale

pytestmark = [
    pytest.mark.robustness,
    pytest.mark.skipif(os.name != "posix", reason="the faults are those of a system with modes and limits"),
]

NOTEBOOKS = ("01", "03")
COMMON = "common: {threads: 2, sample: true}\n"
LEAST = f"""{COMMON}notebooks:
  01_salience_derivation: {{num_images: 20, per_tensor: 2, num_factors: 3}}
  03_lenet5_table: {{num_seeds: 2, num_batch_seeds: 0, num_runs: 2, num_recipe_runs: 0, epochs: 1}}
"""
ONE_JOB = {"LOKY_MAX_CPU_COUNT": "1"}  # groups of runs one after another in the kernel, without workers

# Set-ups that should not matter, but for those that need a folder. A failure of several at once is narrowed down by leaving some out.
GERMAN = {"LANG": "de_DE.UTF-8", "LC_ALL": None, "LC_NUMERIC": "de_DE.UTF-8", "TZ": "Pacific/Kiritimati"}
NO_HOME = {"HOME": None}
POSIX = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "TZ": "America/St_Johns"}
HOME_THAT_IS_GONE = {"HOME": "/does/not/exist"}
PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
NO_NETWORK = {**dict.fromkeys(PROXIES, "http://127.0.0.1:9"), "SNIPNB_OFFLINE": None}
ODD_NAME = "Ein Ordner, 'später' größer ünï 雪"


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    """The path of a profile."""
    path = tmp_path_factory.mktemp("profile") / "least.yaml"
    path.write_text(LEAST, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def quiet(profile, tmp_path_factory):
    """A copy that ran undisturbed."""
    copy = Copy(project_root(), tmp_path_factory.mktemp("faults") / "quiet", str(profile), notebooks=NOTEBOOKS)
    code, _ = copy.attempt()
    assert code == 0, copy.log.read_text(encoding="utf-8", errors="replace")
    return copy


def _anew(quiet, folder, profile_name=None):
    """A copy in which nothing has run, but with the kernels that the quiet run compiled."""
    return Copy(quiet.folder, folder, profile_name or quiet.profile_name, notebooks=NOTEBOOKS)


@pytest.fixture
def fresh(quiet, tmp_path):
    """A copy in which nothing has run."""
    return _anew(quiet, tmp_path / "fresh")


@pytest.fixture
def finished(quiet, tmp_path):
    """A copy of the quiet one."""
    return Copy(quiet, tmp_path / "finished", quiet.profile_name, notebooks=NOTEBOOKS)


# --- set-ups that should not matter -------------------------------------------------------------------------------------


def _date(folder, years):
    for path in folder.rglob("*"):
        os.utime(path, (years * 365 * 86400,) * 2)


def _settings_of_a_user(copy, home):
    """Write a user's matplotlibrc, IPython and Jupyter settings; gives the variables that point to them."""
    startup = home / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00.py").write_text("import torch\ntorch.manual_seed(7)\nprint('started')\n")
    (startup.parent / "ipython_kernel_config.py").write_text("c.IPKernelApp.exec_lines = ['1 / 0']\n")
    (home / "jupyter_config.py").write_text("c.NotebookClient.timeout = 1\n")
    (home / "startup.py").write_text("raise SystemExit('startup')\n")
    settings = "font.size: 31\nfigure.dpi: 33\nsavefig.facecolor: red\naxes.prop_cycle: cycler(color=['k'])\n"
    for place in (home, copy.folder, home / "matplotlib"):
        place.mkdir(exist_ok=True)
        (place / "matplotlibrc").write_text(settings)
    return {
        "MATPLOTLIBRC": str(home / "matplotlibrc"),
        "MPLCONFIGDIR": str(home / "matplotlib"),
        "MPLBACKEND": "module://nowhere",
        "IPYTHONDIR": str(home / "ipython"),
        "JUPYTER_CONFIG_DIR": str(home),
        "PYTHONSTARTUP": str(home / "startup.py"),
        "PYTHONHASHSEED": "7",
        "OMP_NUM_THREADS": "1",
    }


def test_settings_of_a_user(quiet, tmp_path):
    """German locale, another time zone, a user's matplotlibrc, IPython and Jupyter settings and PYTHON variables, no HOME, a path with spaces, quotes and letters beyond ASCII: the same files."""
    copy = _anew(quiet, tmp_path / ODD_NAME)
    settings = _settings_of_a_user(copy, tmp_path / "user-settings")
    copy.check_same(quiet, environment=GERMAN | settings | NO_HOME)


def test_bare_system(fresh, quiet):
    """POSIX locale, another time zone, a HOME that does not exist, no network, files dated 2040, training without workers: the same files."""
    _date(fresh.folder, 70)
    environment = POSIX | HOME_THAT_IS_GONE | NO_NETWORK | ONE_JOB
    fresh.check_same(quiet, environment=environment, before=without_network)


def test_dates(finished, quiet, record_property):
    """Files dated 1985, then 2040, all up to date: nothing runs."""
    record_property("times", 2)
    for years in (15, 70):
        _date(finished.folder, years)
        finished.check_same(quiet)
        assert finished.log.read_text(encoding="utf-8").count("is up to date") == len(NOTEBOOKS)


def test_three_at_once(fresh, quiet):
    """Three runs at once, one of both notebooks and one of each, as make -j3 does: each notebook once, the same files."""
    processes = [fresh.launch(notebooks=share) for share in (NOTEBOOKS, NOTEBOOKS[:1], NOTEBOOKS[1:])]
    assert [process.wait(LONGEST_SECONDS) for process, _ in processes] == [0, 0, 0]
    said = "".join(log.read_text(encoding="utf-8") for _, log in processes)
    assert len(re.findall(r"\b\d+ s, \d+ files$", said, flags=re.MULTILINE)) == len(NOTEBOOKS)
    assert differences(quiet.published, fresh.published) == []


def test_one_thread(quiet, tmp_path):
    """One thread instead of two: numbers in tables agree within 0.001 of the largest of their column."""
    profile = tmp_path / "one_thread.yaml"
    profile.write_text(LEAST.replace("threads: 2", "threads: 1"), encoding="utf-8")
    copy = _anew(quiet, tmp_path / "copy", str(profile))
    assert copy.attempt(LONGEST_SECONDS)[0] == 0, copy.log.read_text(encoding="utf-8", errors="replace")
    assert disagreements(quiet.published, copy.published, tolerance=1e-3) == []


# --- obstacles ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def obstructed(quiet, tmp_path_factory):
    """The copy in which one obstacle after another is put up and taken away."""
    return _anew(quiet, tmp_path_factory.mktemp("obstacles") / "copy")


def _full_disk(size):
    @contextmanager
    def obstacle(published, quiet):
        yield {"before": limited(size)}

    return obstacle


@contextmanager
def _read_only(published, quiet):
    published.mkdir(parents=True, exist_ok=True)
    published.chmod(0o555)
    try:
        yield {"before": without_override}
    finally:
        published.chmod(0o755)


@contextmanager
def _file_in_the_way(published, quiet):
    published.mkdir(parents=True, exist_ok=True)
    (published / "notebooks").write_text("mine")
    try:
        yield {"notebooks": NOTEBOOKS[:1]}
        assert (published / "notebooks").read_text() == "mine"
    finally:
        (published / "notebooks").unlink()


@contextmanager
def _folder_in_the_way(published, quiet):
    name = next(file.relative_to(quiet) for file in sorted(quiet.glob("03_*/*.png")))
    (published / name).mkdir(parents=True)
    try:
        yield {"notebooks": NOTEBOOKS[1:]}
    finally:
        (published / name).rmdir()


FULL = r"File too large|cannot be written|No space"


@pytest.mark.parametrize(
    ("obstacle", "message"),
    [
        (_read_only, "cannot be written|not be written|Permission"),
        (_full_disk(10_000), "fontlist.* cannot be written"),
        (_file_in_the_way, "notebooks"),
        (_full_disk(20_000), FULL),
        (_full_disk(60_000), FULL),
        (_full_disk(300_000), FULL),
        (_folder_in_the_way, "a folder of that name exists"),
    ],
    ids=["read-only", "disk-10k", "file", "disk-20k", "disk-60k", "disk-300k", "folder"],
)
def test_obstacle(obstacle, message, obstructed, quiet):
    """A full disk (no file may grow beyond a size), a folder that cannot be written, a file or folder in the way: refused with a message, nothing half written."""
    with obstacle(obstructed.published, quiet.published) as options:
        obstructed.check_refused(message, **options)
    assert list(obstructed.folder.rglob("*.part")) == []
    other = [line for line in differences(quiet.published, obstructed.published) if not line.endswith("is missing")]
    assert [line for line in other if not line.startswith("claims.")] == []  # the ledger lacks what did not run


def test_obstacles_are_gone(obstructed, quiet):
    """The same folder without these obstacles: the same files."""
    obstructed.check_same(quiet)


# --- damage -------------------------------------------------------------------------------------------------------------


def _kept(folder):
    return [path for path in sorted((folder / "build" / "runs").rglob("*.*")) if path.suffix in (".json", ".state")]


@pytest.mark.parametrize("shift", [0, 6])
def test_results_damaged(shift, finished, quiet):
    """Every published file, kept training run and salience damaged (a byte, cut, emptied, replaced, gone): the same files."""
    damage_all(finished.published.rglob("*"), shift)
    damage_all(_kept(finished.folder), shift)
    finished.check_same(quiet, environment=ONE_JOB)
    assert ran_code(finished.folder) == []


def test_states_damaged(finished, quiet):
    """What is known of published files, kept training runs and saliences damaged likewise: the same files."""
    damage_all(finished.place.state("any").parent.glob("*.json"), 8)
    damage_all(_kept(finished.folder), 3)
    finished.check_same(quiet, environment=ONE_JOB)
    assert ran_code(finished.folder) == []


def test_damage_is_noticed(finished, record_property, monkeypatch):
    """Every published file, and what is known of it, damaged in every way: the notebook is out of date."""
    monkeypatch.chdir(finished.folder)
    place, times = finished.place, 0
    for notebook in finished.done():
        state = json.loads(place.state(notebook).read_text(encoding="utf-8"))
        assert why_stale(notebook, state["fingerprint"], place) == ""
        for path in [*(place.published / name for name in state["files"]), place.state(notebook)]:
            content = path.read_bytes()
            for name, damage in DAMAGE.items():
                damage(path)
                said = why_stale(notebook, state["fingerprint"], place)
                assert said, f"{path.name}: {name}"
                assert (said == NOT_RUN) == (path == place.state(notebook) and name == "gone")
                path.write_bytes(content)
                times += 1
    record_property("times", times)
    assert ran_code(finished.folder) == []


def test_damaged_runs_are_not_used(finished, record_property, monkeypatch):
    """Every kept training run and salience damaged in every way: it is not used, and the others are."""
    monkeypatch.chdir(finished.folder)
    intact, paths = Store(finished.runs).runs(), _kept(finished.folder)
    record_property("times", len(paths) * len(DAMAGE))
    for path in paths:
        content = path.read_bytes()
        for damage in DAMAGE.values():
            damage(path)
            store = Store(finished.runs)
            if path.suffix == ".json":
                assert store.runs() == {key: run for key, run in intact.items() if run["record"] != path.stem}
            else:
                assert store.state(path.stem) is None
                assert store.runs() == intact
            path.write_bytes(content)
    assert ran_code(finished.folder) == []


def test_damaged_sample(fresh):
    """The shipped sample of MNIST damaged: refused with a message."""
    DAMAGE["a pickle that runs code"](fresh.folder / "snipnb" / "resources" / "mnist_sample.npz")
    fresh.check_refused("mnist_sample.npz", notebooks=NOTEBOOKS[:1])
    assert ran_code(fresh.folder) == []


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_sample_is_not_read(name, tmp_path, monkeypatch):
    """The shipped sample of MNIST damaged in every way: not read, with a message."""
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(resource("mnist_sample.npz"), tmp_path / "mnist_sample.npz")
    DAMAGE[name](tmp_path / "mnist_sample.npz")
    monkeypatch.setattr(data, "resource", lambda name: tmp_path / name)
    with pytest.raises(data.DataUnavailableError, match=r"mnist_sample.npz: .*comes with the package"):
        data.load_mnist("test", sample=True)
    assert ran_code(tmp_path) == []


@pytest.fixture
def mnist(tmp_path, monkeypatch):
    """A folder of links to MNIST; gives a function that damages one of its files there."""
    raw, mine = data_dir() / "MNIST" / "raw", tmp_path / "MNIST" / "raw"
    if not all((raw / file.name).is_file() for file in data.RAW_FILES):
        pytest.skip("MNIST is not here; `make data` fetches it")
    mine.mkdir(parents=True)
    for file in data.RAW_FILES:
        (mine / file.name).symlink_to(raw / file.name)
    monkeypatch.chdir(tmp_path)

    def damage(file, name):
        (mine / file.name).unlink()
        shutil.copyfile(raw / file.name, mine / file.name)
        DAMAGE[name](mine / file.name)

    return damage


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("file", data.RAW_FILES[2:], ids=lambda file: file.name)
def test_damaged_mnist_is_not_read(file, name, mnist, tmp_path):
    """The files of MNIST damaged in every way, nothing to fetch them from: not read, with a message."""
    mnist(file, name)
    with pytest.raises(data.DataUnavailableError, match=rf"{file.name}: "):
        data.load_mnist("test", root=tmp_path, download=False)
    assert ran_code(tmp_path) == []


def test_damaged_mnist(mnist, quiet, tmp_path):
    """MNIST damaged, for who loads it: a message without a traceback."""
    mnist(data.RAW_FILES[2], "a pickle that runs code")
    mnist(data.RAW_FILES[3], "a byte in the middle")
    load = "import snipnb\ntry:\n    snipnb.load_mnist('test', download=False)\nexcept Exception as e:\n    print(type(e).__name__, e)"
    environment = os.environ | {"SNIPNB_DATA": str(tmp_path), "PYTHONPATH": str(quiet.folder)}
    done = subprocess.run([sys.executable, "-c", load], cwd=tmp_path, env=environment, capture_output=True, text=True)
    wanted = rf"DataUnavailableError .*{data.RAW_FILES[2].name}.*{data.RAW_FILES[3].name}"
    assert re.match(wanted, done.stdout, flags=re.DOTALL), done.stdout
    assert done.stderr == ""
    assert ran_code(tmp_path) == []


# --- hostile input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("about: !!python/object/apply:os.mkdir [owned]\nnotebooks: {}\n", "not valid YAML"),
        ("about: !!python/name:os.mkdir\nnotebooks: {}\n", "not valid YAML"),
        ("about: !!timestamp never\nnotebooks: {}\n", "not valid YAML"),
        ("notebooks: {}\nshell: mkdir owned\n", "the accepted sections are"),
        (
            "common: {threads: \"__import__('os').mkdir('owned')\", sample: true}\nnotebooks: {}\n",
            "it must be an integer",
        ),
        ("notebooks: {01_salience_derivation: {\"init_seed = __import__('os').mkdir('owned') #\": 1}}\n", "sets"),
        (f"notebooks: {'[' * 3000}{']' * 3000}\n", "not valid YAML"),
        ("\udcff\udc80", "not valid YAML"),
    ],
    ids=["tag", "name", "time", "section", "code", "parameter", "depth", "bytes"],
)
def test_hostile_profile(content, message, tmp_path, monkeypatch, capsys):
    """Profiles that try to run code: refused with a message before anything runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert main(["figures", "--profile", "mine.yaml"]) == 1
    said = capsys.readouterr()
    assert re.search(message, said.err), said.err
    assert "Traceback" not in said.err
    assert said.out == ""
    assert os.listdir(tmp_path) == ["mine.yaml"]


def test_hostile_values(quiet, tmp_path, record_property):
    """Profiles whose values try to run code in a notebook: refused with a message."""
    record_property("times", 2)
    shell, python = "'$(mkdir owned); `mkdir owned`'", "\"x'\\n__import__('os').mkdir('owned')\\n'\""
    profile = tmp_path / "mine.yaml"
    profile.write_text(
        f"{COMMON}notebooks: {{06_rules_of_thumb: {{split_name: {shell}}}, 08_single_shot: {{split_name: {python}}}}}\n"
    )
    copy = _anew(quiet, tmp_path / "copy", str(profile))
    copy.check_refused(r"(?s)06_.*split must be one of.*08_.*split must be one of", notebooks=["06", "08"])
    assert ran_code(tmp_path) == []
