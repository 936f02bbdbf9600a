"""The notebooks themselves: anatomy, and a smoke run of every file; and the runner, on tiny notebooks of its own."""

import ast
import importlib
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
from filelock import FileLock
from golden import smoke

from snipnb._files import project_root
from snipnb.publish import captions, ledger, profiles
from snipnb.publish.sentences import sentence
from tools import runner

ROOT = project_root()
NOTEBOOKS = runner.find_notebooks(ROOT)
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def code(path):
    return ["".join(c["source"]) for c in load(path)["cells"] if c["cell_type"] == "code"]


# --- anatomy ----------------------------------------------------------------------------------------------------------


@every_notebook
def test_sources_carry_no_outputs(path):
    notebook = load(path)
    assert all(c["outputs"] == [] and c["execution_count"] is None for c in notebook["cells"] if "outputs" in c)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)


@every_notebook
def test_anatomy(path):
    notebook = load(path)
    title, claims = ("".join(cell["source"]) for cell in notebook["cells"][:2])
    assert title.startswith(f"# {path.stem.split('_')[0]} ·")
    assert claims.startswith("**Claims under test**")  # the runner puts what came out before it
    assert set(ledger.claims_of(path.stem)) <= set(re.findall(r"C\d+[ab]?", claims))
    assert "parameters" in notebook["cells"][2]["metadata"]["tags"]
    assert f'begin("{path.stem}", globals())' in code(path)[1]
    assert re.fullmatch(r"report\.provenance\((\w+, )*images=snipnb\.data_checksum\(sample=sample\)\)", code(path)[-1])
    told = any(cell.endswith("report.verdicts()") for cell in code(path))
    assert told == bool(ledger.claims_of(path.stem))
    assert told or any(
        cell.endswith(")") and "report.findings(" in cell for cell in code(path)
    )  # which the runner puts there instead


@every_notebook
def test_cells_are_short_and_hold_no_logic(path):
    for place, cell in enumerate(code(path)):
        tree = ast.parse(cell)
        assert len(cell.splitlines()) <= (24 if place == 0 else 16), cell  # the first is the list of parameters
        banned = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Try, ast.Lambda, ast.While)
        assert not any(isinstance(node, banned) for node in ast.walk(tree)), cell
        assert not any(isinstance(n, ast.ImportFrom) and n.names[0].name == "*" for n in ast.walk(tree)), cell
        assert not re.search(r"[\"'][^\"']*/(home|tmp|work|data|build|figures)\b", cell), cell


@every_notebook
def test_each_parameter_has_a_comment(path):
    assert all("  # " in line for line in code(path)[0].splitlines())


@every_notebook
def test_a_reader_is_told_what_is_tested_and_what_to_try(path):
    cells = ["".join(c["source"]) for c in load(path)["cells"] if c["cell_type"] == "markdown"]
    chain = cells[0].splitlines()[2].split(" → ")
    assert [part.strip("*") for part in chain] == ["network", "score", "threshold", "mask", "train"]
    assert any(part.startswith("**") for part in chain)
    (tried,) = re.findall(r"## Try it\n.*?```python\n(.*?)```\n\n(?=.*\?)", "\n".join(cells), flags=re.DOTALL)
    declared, given = profiles.declared_parameters(path), {}
    exec(tried, {}, given)
    assert len(given) == 2
    for name, value in given.items():
        assert type(value) is type(declared[name])
        assert value != declared[name]


def test_promises_are_what_the_calls_of_the_report_say():
    promised = {path.stem: runner.promises(path) for path in NOTEBOOKS}
    assert {"png", "svg", "csv"} == {f.split(".")[1] for f in promised["01_salience_derivation"] if "/linearity." in f}
    assert {"md", "tex", "csv"} == {f.split(".")[1] for f in promised["01_salience_derivation"] if "/steps." in f}
    assert [f for f in promised["02_snip_vs_exact"] if "/runs." in f] == ["02_snip_vs_exact/runs.csv"]
    for path in NOTEBOOKS:
        calls = re.findall(r"\breport\.(?:figure|table|data|findings)\(", "\n".join(code(path)))
        assert len(calls) == len({file.split(".")[0] for file in promised[path.stem]}), "a name twice, or not a literal"


@every_notebook
def test_every_figure_has_a_caption_and_every_caption_a_figure(path):
    calls = [node for node in ast.walk(ast.parse("\n".join(code(path)))) if isinstance(node, ast.Call)]
    figures = [call for call in calls if ast.unparse(call.func) == "report.figure"]
    templates = captions.load_captions(f"snipnb.studies.{path.stem[3:]}")
    assert sorted(ast.literal_eval(call.args[0]) for call in figures) == sorted(templates)
    assert all(list(texts) == ["note", "alt"] and all(texts.values()) for texts in templates.values())


@every_notebook
def test_every_figure_is_drawn_by_the_function_of_its_name(path):
    draw = importlib.import_module(f"snipnb.studies.{path.stem[3:]}.draw")
    own = {name for name, f in vars(draw).items() if inspect.isfunction(f) and f.__module__ == draw.__name__}
    assert {name for name in own if not name.startswith("_")} == set(
        captions.load_captions(f"snipnb.studies.{path.stem[3:]}")
    )


def test_every_notebook_has_a_study_and_every_study_a_notebook():
    studies = {path.parent.name for path in (ROOT / "snipnb" / "studies").glob("*/measure.py")}
    assert studies == {path.stem[3:] for path in NOTEBOOKS}


# --- what makes a notebook stale --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of what notebooks are made from; returns it, and a function that changes a file and says who is stale, and why."""
    root = tmp_path_factory.mktemp("checkout")
    for folder in ("snipnb", "notebooks", "figures/bench"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    place, profile = runner.Place(root / "figures", root / "build"), profiles.load_profile("smoke")

    def mark(path):
        return runner.fingerprint(path, runner.parameters_of(path, profile), package=root / "snipnb")

    for path in runner.find_notebooks(root):
        assert runner.why_stale(path.stem, mark(path), place) == "not run yet"
        place.state(path.stem).parent.mkdir(parents=True, exist_ok=True)
        place.state(path.stem).write_text(json.dumps({"fingerprint": mark(path), "files": {}}))

    def stale(file, old, new):
        """Numbers of the notebooks that are stale after this change, with the reasons; then it is undone."""
        before = (root / file).read_text(encoding="utf-8")
        assert old in before
        (root / file).write_text(before.replace(old, new, 1), encoding="utf-8")
        found = {p.stem[:2]: runner.why_stale(p.stem, mark(p), place) for p in runner.find_notebooks(root)}
        (root / file).write_text(before, encoding="utf-8")
        return {number: reason for number, reason in found.items() if reason}

    return root, stale


CLAIMS, SECOND = "snipnb/resources/claims.yaml", "notebooks/02_snip_vs_exact.ipynb"
SENTENCES = "snipnb/resources/sentences.yaml"
ALL = [path.stem[:2] for path in NOTEBOOKS]


@pytest.mark.parametrize(
    ("file", "old", "new", "numbers", "reason"),
    [
        ("snipnb/pruning/masks.py", '"""', '"""Otherwise said: ', [], ""),
        ("snipnb/pruning/masks.py", "\n\n\ndef ", "\n# a comment\n\n\ndef ", [], ""),
        (
            "snipnb/_engine/cumulants.py",
            "\n\n\ndef ",
            "\n\n\ndef _later() -> None: ...\n\n\ndef ",
            ALL,
            "library changed",
        ),
        ("snipnb/studies/second_order/draw.py", "\n\n\ndef ", "\n\nLATER = 1\n\n\ndef ", ["05"], "drawing changed"),
        ("snipnb/studies/second_order/captions.yaml", "note:", "note: Then", ["05"], "drawing changed"),
        ("snipnb/resources/tables.yaml", "headings:", "# Headings\nheadings:", ALL, "drawing changed"),
        ("snipnb/publish/style.py", "\n\n\ndef ", "\n\nLATER = 1\n\n\ndef ", ALL, "drawing changed"),
        ("snipnb/studies/second_order/measure.py", "\n\n\ndef ", "\n\nLATER = 1\n\n\ndef ", ["05"], "library changed"),
        ("snipnb/resources/reported/figure1_reported.csv", "\n", "\n0,0\n", ALL, "reported values changed"),
        (CLAIMS, "rule: One matter with C6", "rule: The same matter as C6", ["01"], "claims changed"),
        (CLAIMS, "at_most: 1.0e-5", "at_most: 1.1e-5", ["02"], "claims changed"),
        (SENTENCES, "All {n} networks keep", "Each of {n} networks keeps", ["03"], "claims changed"),
        (CLAIMS, "place: section 1\n", "place: section 2\n", [], ""),
        (CLAIMS, "# The sentences of", "# All sentences of", [], ""),
        ("figures/bench/snip.csv", "\n", "\n\n", ["02"], "benchmarks changed"),
        ("figures/bench/curvature.csv", "\n", "\n\n", ["05"], "benchmarks changed"),
        ("figures/bench/training.csv", "\n", "\n\n", [], ""),
        (SECOND, 'benchmark(\\"exact\\")', 'benchmark(\\"larger\\")', ["02"], "code, benchmarks changed"),
        (SECOND, "report.provenance(", "report .provenance(", ["02"], "code changed"),
        (SECOND, "# 02 ·", "# 02 · Again:", ["02"], "prose changed"),
    ],
)
def test_what_makes_which_notebook_stale_and_why(checkout, file, old, new, numbers, reason):
    _, stale = checkout
    assert stale(file, old, new) == dict.fromkeys(numbers, reason)


def test_files_that_are_none_of_its_parts_leave_a_notebook_current(checkout):
    root, stale = checkout
    for file in ("notebooks/notes.txt", "figures/bench/later.csv", "snipnb/resources/notes.md", "snipnb/.#masks.py"):
        (root / file).write_text("( new")
    assert stale("snipnb/pruning/masks.py", "", "") == {}


def test_benchmarks_are_named_where_they_are_read():
    calls = [call for path in NOTEBOOKS for call in re.findall(r"\bbenchmark\(.", "\n".join(code(path)))]
    assert set(calls) == {'benchmark("'}  # or the fingerprint would not see which tables a notebook takes


# --- smoke runs -------------------------------------------------------------------------------------------------------


# Verdicts that follow from mathematics, whatever the budget.
CERTAIN = {
    "C8": "correct up to wording",
    "C14": "correct up to wording",
    "C15": "correct",
    "C19": "correct",
    "C20": "error, corrected",
    "C21": "error, corrected",
    "C23": "correct",
}


@pytest.mark.smoke
@every_notebook
def test_smoke(path, tmp_path, monkeypatch):
    monkeypatch.setenv("SNIPNB_RUNS", str(tmp_path / "runs"))
    profile = profiles.load_profile("smoke")
    place = runner.Place(tmp_path / "figures", tmp_path / "work")
    files = runner.run_one(path, runner.parameters_of(path, profile), place, mark={})
    assert runner.promises(path) <= set(files)
    entries = json.loads((place.published / "claims" / f"{path.stem}.json").read_text())
    assert {entry["id"] for entry in entries} == set(ledger.claims_of(path.stem))
    assert {entry["profile"] for entry in entries} <= {"smoke"}
    assert {e["id"]: e["verdict"].split(" (")[0] for e in entries if e["id"] in CERTAIN} == {
        claim: verdict for claim, verdict in CERTAIN.items() if claim in ledger.claims_of(path.stem)
    }
    executed = load(place.published / "notebooks" / path.name)
    outputs = [output for cell in executed["cells"] for output in cell.get("outputs", [])]
    assert not [o for o in outputs if o.get("name") == "stderr"]
    assert all(
        o["metadata"]["image/png"]["alt"] for o in outputs if o["output_type"] != "stream" and "image/png" in o["data"]
    )
    assert str(ROOT) not in json.dumps(executed)
    told = "".join(executed["cells"][1]["source"])
    assert all(sentence(entry) in told for entry in entries)
    tables = "".join(line for o in outputs if "data" in o for line in o["data"].get("text/markdown", []))
    assert all(sentence(entry).replace("|", r"\|") in tables for entry in entries)  # whole, not cut
    run = json.loads((place.published / "provenance.json").read_text())["notebooks"][path.stem]
    assert run["seconds"] > 0
    assert run["peak_memory_mb"] > 50
    golden = json.loads(smoke.FILE.read_text())
    if smoke.made_by() == golden["made_by"]:  # elsewhere the last digits are others
        before = {name: digest for name, digest in golden["files"].items() if name.startswith(path.stem)}
        now = smoke.checksums(place.published)
        assert [name for name in before if before[name] != now.get(name)] == []


# --- the runner -------------------------------------------------------------------------------------------------------

WRITE = """
import os, pathlib, types
folder = pathlib.Path(os.environ["SNIPNB_OUTPUT"], "98_test")
folder.mkdir(exist_ok=True)
report = types.SimpleNamespace(data=lambda text, name: (folder / f"{name}.csv").write_text(text))
report.data(f"{size} {os.environ['OMP_NUM_THREADS']}", "picture")
print(size)"""


@pytest.fixture
def project(tmp_path):
    """A checkout with one notebook that writes a file and imports nothing heavy; returns a function that changes it."""
    root = tmp_path / "a check out é"
    (root / "notebooks").mkdir(parents=True)
    profile = root / "mine.yaml"
    profile.write_text("common: {threads: 1, sample: true}\nnotebooks: {98_test: {size: 5}}")

    def change(*cells):
        sources = ['profile = "x"\nthreads = 2\nsample = True\nsize = 3\nnum_runs = 4', *cells]
        notebook = {
            "cells": [
                {
                    "cell_type": "code",
                    "execution_count": None,
                    "id": f"c{i}",
                    "metadata": {"tags": ["parameters"]} if i == 0 else {},
                    "outputs": [],
                    "source": source,
                }
                for i, source in enumerate(sources)
            ],
            "metadata": {
                "kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"},
            },
            "nbformat": 4,
            "nbformat_minor": 5,
        }
        (root / "notebooks" / "98_test.ipynb").write_text(json.dumps(notebook))

    change(WRITE)
    return root, change


def run(root, **options):
    return runner.run(str(root / "mine.yaml"), root=root, **options)


def test_what_is_up_to_date_is_left_and_what_is_not_is_run(project, capsys):
    root, _ = project
    published = root / "figures" / "mine"
    picture = published / "98_test" / "picture.csv"
    assert run(root)
    assert picture.read_text() == "5 1"
    assert "98_test/picture.csv" in capsys.readouterr().out
    executed = published / "notebooks" / "98_test.ipynb"
    first = executed.read_bytes()
    assert load(executed)["cells"][2]["outputs"][0]["text"] == ["5\n"]

    assert run(root)
    assert "is up to date" in capsys.readouterr().out
    assert run(root, force=True)
    assert "98_test: up to date, but forced ... " in capsys.readouterr().out
    assert executed.read_bytes() == first  # byte-stable

    picture.write_text("edited by hand")
    assert run(root)
    assert "98_test: 98_test/picture.csv changed ... " in capsys.readouterr().out
    assert picture.read_text() == "5 1"
    picture.unlink()
    (root / "mine.yaml").write_text("common: {threads: 1, sample: true}\nnotebooks: {98_test: {size: 6}}")
    assert run(root)
    assert "98_test: parameters changed; 98_test/picture.csv missing ... " in capsys.readouterr().out
    assert picture.read_text() == "6 1"


@pytest.mark.parametrize("damaged", ["{ half a fil", "[]", '{"fingerprint": "of old", "files": {}}', '{"files": {}}'])
def test_a_damaged_state_is_said_and_the_notebook_run(project, capsys, damaged):
    root, _ = project
    assert run(root)
    assert "98_test: not run yet ... " in capsys.readouterr().out
    (root / "build" / ".mine" / "state" / "98_test.json").write_text(damaged)
    assert run(root)
    assert "98_test: the state of the published files is unknown ... " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ((WRITE, "x = 1\nx / 0"), r"cell 3: ZeroDivisionError: division by zero\n  in: x = 1"),
        ((WRITE, "import sys; sys.exit(0)", "print('never')"), r"98_test failed"),
        ((WRITE, "import os; os._exit(1)"), r"the kernel failed|did not run"),
        (
            ("class report: data = print", "report.data('nothing', 'picture')"),
            r"it ran, but did not write 98_test/picture\.csv",
        ),
    ],
)
def test_a_failure_is_said_and_leaves_what_was_published(project, capsys, cells, message):
    root, change = project
    assert run(root)
    picture = root / "figures" / "mine" / "98_test" / "picture.csv"
    before = {f: f.read_bytes() for f in picture.parent.rglob("*") if f.is_file() and f.name != "provenance.json"}
    capsys.readouterr()
    change(*cells)
    assert not run(root)
    out = capsys.readouterr().out
    assert re.search(message, out)
    assert "partial notebook: " in out
    kept = root / "build" / ".mine" / "failed" / "98_test.ipynb"
    assert kept.is_file()
    assert {f: f.read_bytes() for f in before} == before
    assert not run(root)  # a failed notebook is never up to date
    change(WRITE)
    assert run(root)


def test_an_interruption_prints_no_traceback_of_the_kernel(project):
    root, change = project
    change(
        "import os, pathlib, time\npathlib.Path(os.environ['SNIPNB_OUTPUT'], 'began').touch()\nwhile True: time.sleep(0.1)"
    )
    script = "import signal, sys; from pathlib import Path; from tools import runner\nsignal.signal(signal.SIGINT, signal.default_int_handler)  # nohup ignores it\ntry: runner.run(sys.argv[1], root=Path(sys.argv[2]))\nexcept KeyboardInterrupt: print('interrupted')"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(root / "mine.yaml"), str(root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        deadline = time.monotonic() + 60
        while not (root / "build" / ".mine" / "stage" / "98_test" / "began").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        try:
            out = process.communicate(timeout=60)[0]
        finally:
            process.kill()  # else a failure would wait for it forever
    assert out.endswith("interrupted\n")
    assert "Traceback" not in out


def test_a_fresh_run_uses_nothing_that_was_kept(project, capsys, monkeypatch):
    root, change = project
    change(WRITE.replace("{size}", "{os.environ.get('SNIPNB_RUNS')}"))
    picture, kept = root / "figures" / "mine" / "98_test" / "picture.csv", root / "build" / "runs" / "kept.json"
    monkeypatch.setenv("SNIPNB_RUNS", str(kept.parent))
    for file in (kept, root / "build" / "fresh" / "mine" / "old.json"):
        file.parent.mkdir(parents=True)
        file.write_text("{}")
    assert run(root)
    assert picture.read_text().startswith(f"{kept.parent} ")
    assert run(root, fresh=True)
    assert "98_test: up to date, but forced ... " in capsys.readouterr().out
    assert picture.read_text().startswith(f"{root / 'build' / 'fresh' / 'mine'} ")
    assert os.environ["SNIPNB_RUNS"] == str(kept.parent)
    assert kept.exists()
    assert not (root / "build" / "fresh" / "mine" / "old.json").exists()


def test_files_that_are_no_longer_written_disappear(project):
    root, change = project
    change(WRITE, WRITE.replace("picture", "other"))
    assert run(root)
    change(WRITE)
    assert run(root)
    assert sorted(f.name for f in (root / "figures" / "mine" / "98_test").iterdir()) == ["picture.csv"]


def test_what_a_notebook_without_claims_has_found_stands_at_its_top(project):
    root, change = project
    change(WRITE, '(folder / "findings.md").write_text("| a | table |")')
    assert run(root)
    executed = root / "figures" / "mine" / "notebooks" / "98_test.ipynb"
    assert "".join(load(executed)["cells"][1]["source"]) == "**What came out**\n\n| a | table |"


def test_only_files_of_its_own_folder_are_published_or_removed(project):
    root, change = project
    intruder = """
import os, pathlib
out = pathlib.Path(os.environ["SNIPNB_OUTPUT"])
(out / "claims").mkdir()
(out / "97_other").mkdir()
for name in ("claims/01_other.json", "97_other/a.csv", "claims.json"):
    (out / name).write_text("[]")
(out / "98_test" / "link.csv").symlink_to("picture.csv")"""
    change(WRITE, intruder)
    assert run(root)
    published = root / "figures" / "mine"
    (published / "98_test" / "notes_of_mine.md").write_text("kept")
    assert not [f for f in published.rglob("*") if f.name in ("01_other.json", "a.csv", "link.csv")]
    assert len(json.loads((published / "claims.json").read_text())) == len(ledger.load_claims())
    change(WRITE)
    assert run(root)
    assert (published / "98_test" / "notes_of_mine.md").read_text() == "kept"


def test_if_one_file_cannot_be_published_none_is(project, capsys):
    root, change = project
    change(WRITE, WRITE.replace("picture", "z"))
    assert run(root)
    published = root / "figures" / "mine"
    (published / "98_test" / "z.csv").unlink()
    (published / "98_test" / "z.csv").mkdir()
    (root / "mine.yaml").write_text("common: {threads: 1, sample: true}\nnotebooks: {98_test: {size: 7}}")
    assert not run(root)
    assert (
        "98_test/z.csv cannot be written: a folder of that name exists; its results are in" in capsys.readouterr().out
    )
    assert (published / "98_test" / "picture.csv").read_text() == "5 1"
    assert not list(published.rglob(".*"))


def test_numbers_are_unique(project):
    root, _ = project
    (root / "notebooks" / "98_again.ipynb").write_text((root / "notebooks" / "98_test.ipynb").read_text())
    with pytest.raises(ValueError, match="several notebooks have the number 98"):
        run(root)


def test_a_notebook_computes_with_the_package_that_is_fingerprinted(project):
    root, change = project
    change(
        WRITE, "import snipnb, os\nassert os.path.dirname(os.path.dirname(snipnb.__file__)) == os.environ['PYTHONPATH']"
    )
    assert run(root)


def test_damaged_verdicts_are_named(project):
    root, change = project
    assert run(root)
    damaged = root / "figures" / "mine" / "claims" / "98_test.json"
    damaged.parent.mkdir(exist_ok=True)
    damaged.write_text("{ half")
    with pytest.raises(ValueError, match=r"98_test\.json does not hold verdicts; remove it and run 98_test again"):
        run(root)
    damaged.unlink()
    write = "import os\nos.makedirs('claims')\nopen('claims/98_test.json', 'w').write('[{}]')"
    change(WRITE, write)
    assert not run(root)  # refused before it is published
    assert not damaged.exists()


def test_the_users_own_set_up_stays_out(project, monkeypatch, tmp_path):
    root, change = project
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00.py").write_text("size = 'from the start-up file'; intruder = 1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("MPLBACKEND", "nonsense")
    change(WRITE, "import os\nassert 'intruder' not in globals() and os.environ['MPLBACKEND'] != 'nonsense'")
    assert run(root)


def test_unknown_names_are_errors_before_anything_runs(project):
    root, _ = project
    with pytest.raises(ValueError, match="no notebook '07'; the notebooks are 98_test"):
        run(root, notebooks=["07"])
    (root / "mine.yaml").write_text("notebooks: {98_test: {sise: 5}}")
    with pytest.raises(ValueError, match=r"sets \['sise'\]"):
        run(root)
    assert not (root / "figures").exists()


def test_a_folder_that_cannot_be_written_is_said(project):
    root, _ = project
    (root / "figures").write_text("a file where the folder should be")
    with pytest.raises(ValueError, match=r"figures/mine cannot be written to \(Not a directory\)"):
        run(root)


def test_a_ledger_that_cannot_be_written_is_said(project, monkeypatch, capsys):
    root, _ = project

    def full(*_):
        raise OSError(27, "File too large")

    with monkeypatch.context() as patch:
        patch.setattr(runner.ledger, "write_ledger", full)
        assert not run(root)
    said = capsys.readouterr().out
    assert "the ledger in figures/mine/ failed" in said
    assert "it cannot be written: File too large" in said
    assert "claims.json" not in said
    assert run(root)
    assert (root / "figures" / "mine" / "claims.json").is_file()


def test_what_the_system_refuses_is_said_without_a_traceback(monkeypatch, capsys):
    from tools.__main__ import main

    def full(*_, **__):
        raise OSError(28, "No space left on device", "figures/x.md")

    monkeypatch.setattr(runner, "run", full)
    assert main(["figures"]) == 1
    assert "[Errno 28] No space left on device: 'figures/x.md'" in capsys.readouterr().err


def test_a_second_run_waits_for_the_first(project, capsys):
    root, _ = project
    assert run(root)
    held, go_on = threading.Event(), threading.Event()

    def first_run():
        with FileLock(root / "build" / ".mine" / "lock"):
            held.set()
            go_on.wait(timeout=60)

    first = threading.Thread(target=first_run)
    first.start()
    held.wait(timeout=60)
    threading.Timer(1.0, go_on.set).start()
    assert run(root)
    first.join()
    assert "another run of this profile is in progress" in capsys.readouterr().out


def test_what_a_killed_run_left_is_removed(project, monkeypatch, tmp_path):
    root, _ = project
    assert run(root)
    published, work = root / "figures" / "mine", root / "build" / ".mine"
    files = set(root.rglob("*"))
    monkeypatch.setattr(runner.tempfile, "tempdir", str(tmp_path))
    left = [published / ".claims.json.x1.part", published / "notebooks" / ".98_test.ipynb.part"]
    left += [work / "state" / ".98_test.json.x2.part", work / "matplotlib" / "fontlist.json.matplotlib-lock"]
    left += [work / "stage" / "98_test" / "half.csv"]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    (tmp_path / "snipnb-x3").mkdir()
    (work / "scratch").write_text(str(tmp_path / "snipnb-x3"))
    (tmp_path / "mine").mkdir()
    assert run(root)
    assert set(root.rglob("*")) == files
    assert not (tmp_path / "snipnb-x3").exists()
    (work / "scratch").write_text(str(tmp_path / "mine"))  # nothing of ours
    assert run(root, force=True)
    assert (tmp_path / "mine").is_dir()
    assert not list(tmp_path.glob("snipnb-*"))


def test_a_kernel_keeps_its_files_in_the_folder_that_is_removed(project, monkeypatch, tmp_path):
    root, change = project
    monkeypatch.setattr(runner.tempfile, "tempdir", str(tmp_path))
    change(WRITE, "from ipykernel import get_connection_file\nassert '/snipnb-' in get_connection_file()")
    before = set(tmp_path.iterdir())
    assert run(root)
    assert set(tmp_path.iterdir()) == before
    assert not (root / "build" / ".mine" / "scratch").exists()


def test_a_notebook_finds_the_list_of_fonts_ready(project):
    root, change = project
    change(WRITE, "import os\nassert any(n.startswith('fontlist-v') for n in os.listdir(os.environ['MPLCONFIGDIR']))")
    assert run(root)
    fonts = list((root / "build" / ".mine" / "matplotlib").iterdir())
    change(WRITE, "from matplotlib import font_manager")
    assert run(root)
    assert list((root / "build" / ".mine" / "matplotlib").iterdir()) == fonts


@pytest.mark.parametrize("damage", [lambda text: text[:1000], lambda text: "", lambda text: "[1]"])
def test_a_damaged_list_of_fonts_is_made_anew(damage, project):
    root, _ = project
    assert run(root)
    (fonts,) = (root / "build" / ".mine" / "matplotlib").iterdir()
    before = fonts.read_text()
    fonts.write_text(damage(before))
    assert run(root)
    assert fonts.read_text() == before


def test_a_list_of_fonts_that_cannot_be_written_is_said(project, monkeypatch):
    from matplotlib import font_manager

    root, _ = project
    dump = font_manager.json_dump

    def full_disk(fonts, path):  # Matplotlib warns, and goes on
        dump(fonts, path)
        path.write_text(path.read_text()[:1000])

    monkeypatch.setattr(font_manager, "json_dump", full_disk)
    with pytest.raises(OSError, match=r"fontlist-v.*\.json cannot be written"):
        run(root)
    assert not list((root / "build" / ".mine" / "matplotlib").iterdir())
    monkeypatch.undo()
    assert run(root)


def test_environment_variables_come_back(project, monkeypatch):
    import os

    root, _ = project
    monkeypatch.setenv("MPLBACKEND", "agg")
    before = dict(os.environ)
    assert run(root)
    assert dict(os.environ) == before


def test_slow_cells_are_named():
    def cell(name, seconds):
        return {"cell_type": "code", "id": name, "metadata": {"papermill": {"duration": seconds}}}

    text = {"cell_type": "markdown", "id": "text", "metadata": {}}
    cells = [text, cell("a", 0.2), cell("b", runner.SLOW + 0.26), cell("c", None)]
    assert runner.slow_cells({"cells": cells}) == {"b": 5.3}
