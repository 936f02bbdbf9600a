"""The parts of the soak; the soak itself takes minutes (``make soak``)."""

import json
import sys
import time

import pytest
from filelock import FileLock

from snipnb._files import project_root
from tests.robustness import soak
from tools import __main__ as cli

TIMELINE = [("01_a", 5.0, 15.0), ("02_b", 15.0, 55.0), ("03_c", 55.0, 60.0)]


def test_moments_are_drawn_from_all_parts_of_a_run():
    found = soak.moments(10, 60.0, seed=3)
    assert [int(moment // 6) for moment in found] == list(range(10))
    assert found == soak.moments(10, 60.0, seed=3) != soak.moments(10, 60.0, seed=4)
    late = [soak.moments(1, 60.0, seed=seed)[0] for seed in range(200)]
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
    assert soak.time_to(moment, TIMELINE, done) == pytest.approx(wait)


@pytest.fixture
def copies(tmp_path):
    for name in ("quiet", "killed"):
        for file in ("figures/01_a.csv", "figures/claims/01_a.json", "build/runs/group.json", "build/.smoke/lock"):
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text("same")
    return tmp_path / "quiet", tmp_path / "killed"


def test_published_files_are_compared_byte_for_byte(copies):
    quiet, killed = (copy / "figures" for copy in copies)
    (killed / "provenance.json").write_text("other times")
    assert soak.differences(quiet, killed) == []
    (killed / "claims" / "01_a.json").write_text("same ")
    (killed / "01_b.csv").write_text("")
    (killed / "01_a.csv").unlink()
    assert soak.differences(quiet, killed) == ["01_a.csv is missing", "01_b.csv is new", "claims/01_a.json differs"]


def test_what_kills_leave_is_found(copies):
    quiet, killed = copies
    (killed / "__pycache__").mkdir()
    assert soak.leftovers(killed, quiet) == []
    (killed / "figures" / ".claims.json.x1.part").write_text("hal")
    (killed / "build" / ".smoke" / "stage" / "01_a").mkdir(parents=True)
    with FileLock(killed / "build" / ".smoke" / "lock"):
        found = soak.leftovers(killed, quiet)
    assert found == ["build/.smoke/lock, still locked", "build/.smoke/stage", "figures/.claims.json.x1.part"]


@pytest.fixture
def copy(tmp_path):
    return soak.Run(project_root(), tmp_path / "k", "smoke")


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
    monkeypatch.setattr(soak, "GRACE_SECONDS", 0.2)
    assert [line.startswith(sys.executable) for line in copy.end_orphans()] == [True]
    assert copy.end_orphans() == []
    assert kill.lived > 0


def test_an_attempt_that_ends_by_itself_says_how(copy):
    (copy.folder / "tools" / "__init__.py").write_text("")
    (copy.folder / "tools" / "__main__.py").write_text("import sys\nprint(sys.argv[1:])\nsys.exit(3)\n")
    assert copy.attempt(60.0, force=True)[0] == 3
    assert copy.log.read_text() == "['figures', '--profile', 'smoke', '--force']\n"


def test_what_cannot_be_soaked_is_said(capsys):
    assert cli.main(["soak", "--kills", "0"]) == 1
    assert "--kills is 0; accepted are integers from 1" in capsys.readouterr().err
    assert cli.main(["soak", "--profile", "quick"]) == 1
    assert "there is no profile 'quick'" in capsys.readouterr().err


@pytest.mark.parametrize(("only", "expected"), [(None, "kf"), ("kills", "k"), ("faults", "f"), ("full disk", "f")])
def test_one_part_can_be_had_alone(only, expected, monkeypatch, capsys):
    tried = []
    monkeypatch.setattr(soak, "_problems", lambda *_: tried.append("k") or [])
    monkeypatch.setattr(soak, "_faults", lambda *_: tried.append("f") or [])
    assert cli.main(["soak", *(["--only", only] if only else [])]) == 0
    assert "".join(tried) == expected
    assert cli.main(["soak", "--only", "luck"]) == 1
    assert "words of one of\n  another language" in capsys.readouterr().err


@pytest.mark.parametrize(("problems", "good"), [([], True), (["published: 01_a.csv differs"], False)])
def test_copies_stay_where_there_is_something_to_look_at(problems, good, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(soak.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(soak, "_problems", lambda *_: list(problems))
    monkeypatch.setattr(soak, "_faults", lambda *_: [])
    assert cli.main(["soak"]) == (0 if good else 1)
    assert [path.name.startswith("soak-") for path in tmp_path.iterdir()] == [True] * (not good)
    assert ("are kept in" in capsys.readouterr().out) is not good
