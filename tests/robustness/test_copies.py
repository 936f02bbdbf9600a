"""Tests of the helpers that the robustness tests use."""

import json
import subprocess
import sys
import time

import pytest
from filelock import FileLock

from snipnb._files import project_root
from tests.robustness import copies

TIMELINE = [("01_a", 5.0, 15.0), ("02_b", 15.0, 55.0), ("03_c", 55.0, 60.0)]


def test_moments_are_drawn_from_all_parts_of_a_run():
    found = copies.moments(10, 60.0, seed=3)
    assert [int(moment // 6) for moment in found] == list(range(10))
    assert found == copies.moments(10, 60.0, seed=3) != copies.moments(10, 60.0, seed=4)
    late = [copies.moments(1, 60.0, seed=seed)[0] for seed in range(200)]
    assert 0 <= min(late) < 3
    assert 57 < max(late) <= 60


@pytest.mark.parametrize(
    ("moment", "done", "wait"),
    [
        (20.0, set(), 20.0),
        (20.0, {"01_a"}, 10.0),
        (20.0, {"01_a", "02_b"}, 5.0),  # 02_b was faster than in the quiet run
        (58.0, {"01_a", "02_b"}, 8.0),
        (3.0, {"01_a"}, 3.0),
    ],
)
def test_what_is_done_is_not_waited_for(moment, done, wait):
    assert copies.time_to(moment, TIMELINE, done) == pytest.approx(wait)


@pytest.fixture
def folders(tmp_path):
    for name in ("quiet", "killed"):
        for file in ("figures/01_a.csv", "figures/claims/01_a.json", "build/runs/group.json", "build/.smoke/lock"):
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text("same")
    return tmp_path / "quiet", tmp_path / "killed"


def test_published_files_are_compared_byte_for_byte(folders):
    quiet, killed = (copy / "figures" for copy in folders)
    (killed / "provenance.json").write_text("other times")
    assert copies.differences(quiet, killed) == []
    (killed / "claims" / "01_a.json").write_text("same ")
    (killed / "01_b.csv").write_text("")
    (killed / "01_a.csv").unlink()
    assert copies.differences(quiet, killed) == ["01_a.csv is missing", "01_b.csv is new", "claims/01_a.json differs"]


def test_what_kills_leave_is_found(folders):
    quiet, killed = folders
    (killed / "__pycache__").mkdir()
    assert copies.leftovers(killed, quiet) == []
    (killed / "figures" / ".claims.json.x1.part").write_text("hal")
    (killed / "build" / ".smoke" / "stage" / "01_a").mkdir(parents=True)
    with FileLock(killed / "build" / ".smoke" / "lock"):
        found = copies.leftovers(killed, quiet)
    assert found == ["build/.smoke/lock, still locked", "build/.smoke/stage", "figures/.claims.json.x1.part"]


@pytest.fixture
def copy(tmp_path):
    return copies.Copy(project_root(), tmp_path / "k")


def test_a_copy_holds_what_a_run_needs_and_nothing_that_others_made(copy):
    assert (copy.folder / "tools" / "runner.py").is_file()
    assert (copy.folder / "figures" / "bench" / "exact.csv").is_file()
    assert sorted(path.name for path in (copy.folder / "figures").iterdir()) == ["bench"]
    assert copy.done() == set()
    copy.place.state("01_a").parent.mkdir(parents=True)
    copy.place.state("01_a").write_text("{}")
    assert copy.done() == {"01_a"}


def test_the_time_before_the_first_notebook_is_nobodys(copy):
    copy.published.mkdir(parents=True)
    runs = {"01_a": {"seconds": 10.0}, "02_b": {"seconds": 40.0}, "03_c": {"seconds": 5.0}}
    (copy.published / "provenance.json").write_text(json.dumps({"notebooks": runs}))
    assert copy.timeline(60.0) == TIMELINE


def test_a_kill_leaves_orphans_that_are_watched_and_ended(copy, monkeypatch):
    (copy.folder / "tools" / "__main__.py").write_text(
        "import subprocess, sys, time\n"
        "print('[1/3] 01_a ', end='', flush=True)\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)\n"
        "time.sleep(60)\n"
    )
    (copy.folder / "tools" / "__init__.py").write_text("")
    copy.runs.mkdir(parents=True)
    (copy.runs / "group.json").write_text("{}")
    code, seconds = copy.attempt(2.0)
    assert code is None
    assert seconds == pytest.approx(2.0, abs=1.5)
    kill = copy.what_was_hit(20.0, seconds)
    assert (kill.during, kill.groups, kill.orphans) == ("01_a", 1, 1)
    assert copy.rewritten() == []
    time.sleep(0.2)
    (copy.runs / "group.json").write_text("{} ")
    assert copy.rewritten() == ["build/runs/group.json"]
    monkeypatch.setattr(copies, "GRACE_SECONDS", 0.2)
    assert [line.startswith(sys.executable) for line in copy.end_orphans()] == [True]
    assert copy.end_orphans() == []
    assert kill.lived > 0


def test_an_attempt_that_ends_by_itself_says_how(copy):
    (copy.folder / "tools" / "__init__.py").write_text("")
    (copy.folder / "tools" / "__main__.py").write_text("import sys\nprint(sys.argv[1:])\nsys.exit(3)\n")
    assert copy.attempt(60.0, force=True)[0] == 3
    assert copy.log.read_text() == "['figures', '--profile', 'smoke', '--force']\n"


PRETEND = """
import os, pathlib, sys
if os.environ.get("SAY"):
    print(os.environ["SAY"])
    sys.exit(int(os.environ.get("STATUS", "1")))
place = pathlib.Path("build/smoke")
place.mkdir(parents=True, exist_ok=True)
(place / "03_errors.png").write_bytes(b"picture" * 100)
(place / "provenance.json").write_text(str(os.getpid()))
for number in (1, 2):
    print(f"[{number}/2] 0{number}_a 3 s, 4 files")
"""


@pytest.fixture
def root(tmp_path):
    """A checkout that only pretends to run notebooks."""
    (tmp_path / "root" / "snipnb" / "resources").mkdir(parents=True)
    (tmp_path / "root" / "tools").mkdir()
    (tmp_path / "root" / "tools" / "__init__.py").write_text("")
    (tmp_path / "root" / "tools" / "__main__.py").write_text(PRETEND)
    (tmp_path / "root" / "pyproject.toml").write_text("")
    return tmp_path / "root"


def test_a_run_that_ends_the_same_passes(root, tmp_path):
    quiet = copies.Copy(root, tmp_path / "quiet")
    assert quiet.attempt()[0] == 0
    copies.Copy(root, tmp_path / "a").check_same(quiet)
    copies.Copy(quiet, tmp_path / "b").check_same(quiet)
    other = copies.Copy(root, tmp_path / "c")
    (other.folder / "tools" / "__main__.py").write_text(PRETEND.replace("* 100", "* 99"))
    with pytest.raises(AssertionError, match=r"03_errors\.png differs"):
        other.check_same(quiet)
    with pytest.raises(AssertionError, match="no"):
        other.check_same(quiet, environment={"SAY": "no"})


def test_a_refusal_has_to_be_readable(root, tmp_path):
    copy = copies.Copy(root, tmp_path / "a")
    copy.check_refused("it is (full|late)", environment={"SAY": "it is late"})
    for said, status, complaint in (
        ("no", "1", "no"),
        ("Traceback: it", "1", "Traceback"),
        ("it", "3", "exit status 3"),
    ):
        with pytest.raises(AssertionError, match=complaint):
            copy.check_refused("it", environment={"SAY": said, "STATUS": status})
    half = PRETEND.replace('b"picture" * 100', 'b""') + "print('it')\nsys.exit(1)"
    (copy.folder / "tools" / "__main__.py").write_text(half)
    with pytest.raises(AssertionError, match=r"03_errors\.png"):
        copy.check_refused("it")


@pytest.mark.parametrize("name", copies.DAMAGE)
def test_damage_changes_a_file(name, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    copies.DAMAGE[name](path)
    assert not path.exists() or path.read_bytes() != b"0123456789"


def test_files_are_damaged_each_in_another_way(tmp_path):
    for k in range(4):
        (tmp_path / str(k)).write_bytes(b"0123456789")
    copies.damage_all(tmp_path.iterdir(), 4)
    found = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    assert found[:3] == [b"01234", b"", bytes(10)]
    with pytest.raises(AssertionError, match="nothing to damage"):
        copies.damage_all(iter(()), 0)


def test_a_pickle_that_runs_code_would_be_seen(tmp_path):
    path = tmp_path / "file"
    copies.DAMAGE["a pickle that runs code"](path)
    assert copies.ran_code(tmp_path) == []
    loaded = "import pickle; pickle.load(open('file', 'rb'))"
    subprocess.run([sys.executable, "-c", loaded], cwd=tmp_path, check=True)
    assert copies.ran_code(tmp_path) == ["owned"]


def write(folder, number, **options):
    code = f"with open('file', 'wb') as file: file.write(bytes({number}))"
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, **options)


def test_a_limit_on_files_is_one(tmp_path):
    assert write(tmp_path, 99, preexec_fn=copies.limited(100)).returncode == 0
    assert "File too large" in write(tmp_path, 101, preexec_fn=copies.limited(100)).stderr


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux's")
def test_root_can_be_kept_from_writing(tmp_path):
    tmp_path.chmod(0o555)
    assert "Permission denied" in write(tmp_path, 1, preexec_fn=copies.without_override).stderr
    tmp_path.chmod(0o755)
    assert write(tmp_path, 1, preexec_fn=copies.without_override).returncode == 0


def test_tables_that_disagree_are_named(tmp_path):
    for name, rows in (("one", "a,b\n1,x\n200,y\n"), ("other", "a,b\n1.1,x\n200,y\n")):
        (tmp_path / name / "01_a").mkdir(parents=True)
        (tmp_path / name / "01_a" / "x.csv").write_text(rows)
    one, other = tmp_path / "one", tmp_path / "other"
    assert copies.disagreements(one, other, tolerance=1e-3) == []
    (other / "01_a" / "x.csv").write_text("a,b\n1.3,x\n200,z\n")
    assert copies.disagreements(one, other, tolerance=1e-3) == [
        "01_a/x.csv, a: off by 0.0015 of the largest",
        "01_a/x.csv, b differs",
    ]
    (other / "01_a" / "x.csv").write_text("a,b\n1.3,x\n")
    (one / "01_a" / "y.csv").write_text("")
    assert copies.disagreements(one, other, tolerance=1e-3) == [
        "01_a/x.csv has other rows or columns",
        "01_a/y.csv is missing",
    ]


def test_rows_of_what_was_not_tried_stay_while_there_is_a_test_of_it(tmp_path):
    path = tmp_path / "figures" / "robustness.md"
    copies.write_down(path, {"b": (2, 1, 3.4), "c": (1, 1, 0.1), "d": (1, 1, 1)}, "bcd")
    copies.write_down(path, {"a": (1, 1, 9.6), "c": (5, 5, 7)}, "abc")
    assert path.read_text().endswith("|--:|\n| a | 1 | 1 | 10 |\n| b | 2 | 1 | 3 |\n| c | 5 | 5 | 7 |\n")
    assert path.read_text().count("as it should be") == 1


def test_what_tests_try_is_what_their_docstrings_say(tmp_path):
    (tmp_path / "test_a.py").write_text('def test_x():\n    """Killed.\n\n    More."""\n\ndef y():\n    """Not."""\n')
    (tmp_path / "b.py").write_text('def test_z():\n    """Not."""\n')
    assert copies.what_tests_try(tmp_path) == {"Killed"}
