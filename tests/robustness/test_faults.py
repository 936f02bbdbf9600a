"""The parts of the soak's faults, on a checkout that only pretends to run notebooks; the faults themselves take minutes (``make soak``)."""

import subprocess
import sys

import pytest

from tests.robustness import faults, soak

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
def site(tmp_path):
    (tmp_path / "root" / "snipnb" / "resources").mkdir(parents=True)
    (tmp_path / "root" / "tools").mkdir()
    (tmp_path / "root" / "tools" / "__init__.py").write_text("")
    (tmp_path / "root" / "tools" / "__main__.py").write_text(PRETEND)
    (tmp_path / "root" / "pyproject.toml").write_text("")
    (tmp_path / "copies").mkdir()
    return faults.Site(tmp_path / "root", tmp_path / "copies")


def test_a_run_that_ends_the_same_is_no_problem(site):
    assert site.same(site.fresh("a")) == []
    assert site.same(site.finished("b")) == []
    other = site.fresh("c")
    (other.folder / "tools" / "__main__.py").write_text(PRETEND.replace("* 100", "* 99"))
    assert site.same(other) == ["c: 03_errors.png differs"]
    assert "exit status 1" in site.same(site.fresh("d"), environment={"SAY": "no"})[0]


def test_a_refusal_has_to_be_readable(site):
    assert site.refused(site.fresh("a"), "it is (full|late)", environment={"SAY": "it is late"}) == []
    assert "does not say" in site.refused(site.fresh("b"), "it is late", environment={"SAY": "no"})[0]
    assert "traceback" in site.refused(site.fresh("c"), "it", environment={"SAY": "Traceback: it"})[0]
    assert "exit status 3" in site.refused(site.fresh("d"), "it", environment={"SAY": "it", "STATUS": "3"})[0]
    run = site.fresh("e")
    (run.folder / "tools" / "__main__.py").write_text(
        PRETEND.replace('b"picture" * 100', 'b""') + "print('it')\nsys.exit(1)"
    )
    assert "half written: 03_errors.png" in site.refused(run, "it")[0]


def test_two_runs_at_once_are_counted(site):
    problems = [line for some in faults._two(site) for line in some]
    assert problems == [
        "twice: 4 notebooks ran, not 2",
        "j2: 4 notebooks ran, not 2",
    ]  # the pretended one knows no lock


@pytest.mark.parametrize("name", faults.DAMAGE)
def test_damage_changes_a_file(name, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    faults.DAMAGE[name](path)
    assert not path.exists() or path.read_bytes() != b"0123456789"


def test_files_are_damaged_each_in_another_way(tmp_path):
    for k in range(4):
        (tmp_path / str(k)).write_bytes(b"0123456789")
    assert faults._damage(tmp_path.iterdir(), 4) == []
    found = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    assert found[:3] == [b"01234", b"", bytes(10)]
    assert faults._damage(iter(()), 0) == ["there was nothing to damage"]


def test_a_pickle_that_runs_code_would_be_seen(tmp_path):
    path = tmp_path / "file"
    faults.DAMAGE["a pickle that runs code"](path)
    assert faults._ran_code(tmp_path) == []
    loaded = "import pickle; pickle.load(open('file', 'rb'))"
    subprocess.run([sys.executable, "-c", loaded], cwd=tmp_path, check=True)
    assert faults._ran_code(tmp_path) == [f"{tmp_path / 'owned'} ran code"]


def write(folder, number, **options):
    code = f"with open('file', 'wb') as file: file.write(bytes({number}))"
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, **options)


def test_a_limit_on_files_is_one(tmp_path):
    assert write(tmp_path, 99, preexec_fn=faults._limited(100)).returncode == 0
    assert "File too large" in write(tmp_path, 101, preexec_fn=faults._limited(100)).stderr


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux's")
def test_root_can_be_kept_from_writing(tmp_path):
    tmp_path.chmod(0o555)
    assert "Permission denied" in write(tmp_path, 1, preexec_fn=faults._without_override).stderr
    tmp_path.chmod(0o755)
    assert write(tmp_path, 1, preexec_fn=faults._without_override).returncode == 0


def test_tables_that_disagree_are_named(tmp_path):
    for name, rows in (("one", "a,b\n1,x\n200,y\n"), ("other", "a,b\n1.1,x\n200,y\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "01_a.csv").write_text(rows)
    one, other = tmp_path / "one", tmp_path / "other"
    assert faults.disagreements(one, other) == []
    (other / "01_a.csv").write_text("a,b\n1.3,x\n200,z\n")
    assert faults.disagreements(one, other) == ["01_a.csv, a: off by 0.0015 of the largest", "01_a.csv, b differs"]
    (other / "01_a.csv").write_text("a,b\n1.3,x\n")
    (one / "01_b.csv").write_text("")
    assert faults.disagreements(one, other) == ["01_a.csv has other rows or columns", "01_b.csv is missing"]


def test_the_table_says_what_went_wrong(monkeypatch):
    monkeypatch.setattr(faults, "FAULTS", [(what, what * 3, None) for what in "abc"])
    found = [faults.Fault("b", faults.SAID, 1, ["x", "f-1: y, see /a b/c.log", "half written: z, see /a/b1.log"])]
    table = faults.markdown(found)
    assert table.splitlines()[2:] == [
        "| a | 0 | aaa | not tried | 0 |",
        "| b | 1 | refused with a message | no: x; f-1: y; half written: z | 0 |",
        "| c | 0 | ccc | not tried | 0 |",
    ]
    later = faults.markdown([faults.Fault("a", faults.SAME, 2, [], 3.4)], table)
    assert later.splitlines()[2:] == ["| a | 2 | the same files | all | 3 |", *table.splitlines()[3:]]


def test_some_faults_are_tried_by_their_words(tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr(faults, "Site", lambda *_: None)
    monkeypatch.setattr(faults, "FAULTS", [(what, "", lambda _, w=what: tried.append(w) or [[]]) for what in "abc"])
    assert [f.what for f in faults.try_all(tmp_path, tmp_path, faults.named("B"))] == ["b"]
    assert tried == ["b"]
    assert faults.named("") == ["a", "b", "c"]


def test_sections_are_written_down_beside_each_other(tmp_path):
    soak._write_down(tmp_path, "faults", "first")
    soak._write_down(tmp_path, "kills", "two\n\n| a |")
    soak._write_down(tmp_path, "faults", "three")
    text = (tmp_path / "figures" / "soak.md").read_text()
    assert text.index("two") < text.index("three")
    assert "first" not in text
    assert text.count("<!-- end -->") == 2
