"""Drawing again: after one smoke run, into a folder of its own."""

import copy
import json
import shutil

import pytest

from snipnb._files import project_root
from snipnb.publish import captions, ledger, profiles, style
from snipnb.publish.report import Report
from snipnb.studies.salience_derivation import draw
from tools import redraw, runner
from tools import state as states
from tools.__main__ import main

ROOT = project_root()
NOTEBOOK = "01_salience_derivation"
LEDGER = {"claims.json", "claims.md", "claims.tex"}
EXECUTED, VERDICTS = f"notebooks/{NOTEBOOK}.ipynb", f"claims/{NOTEBOOK}.json"

pytestmark = pytest.mark.smoke


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    root = tmp_path_factory.mktemp("ran")
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    assert runner.run("smoke", [NOTEBOOK], root=root)
    return root


@pytest.fixture
def root(ran, tmp_path, monkeypatch):
    """A copy of what one run has published; no salience can be computed here."""
    for name in ("saliences.snip.snip", "saliences.exact.exact_salience", "studies.salience_derivation.measure.snip"):
        monkeypatch.setattr(f"snipnb.{name}", None, raising=False)
    return shutil.copytree(ran, tmp_path / "root")


def files(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def again(root, capsys, *wanted):
    """Draw again; returns names of files that are others then, whether all went well, and what was said."""
    capsys.readouterr()
    published = root / "build" / "smoke"
    before = files(published)
    done = redraw.redraw(root, "smoke", wanted)
    after = files(published)
    assert before.keys() == after.keys()
    return {name for name in after if after[name] != before[name]}, done, capsys.readouterr().out.strip()


def stale(root):
    profile, path = profiles.load_profile("smoke"), root / "notebooks" / f"{NOTEBOOK}.ipynb"
    mark = runner.fingerprint(path, runner.parameters_of(path, profile))
    return runner.why_stale(NOTEBOOK, mark, runner.place_of(profile, root))


def out_of_date(root):
    profile, path = profiles.load_profile("smoke"), root / "notebooks" / f"{NOTEBOOK}.ipynb"
    mark = states.fingerprint(path, runner.parameters_of(path, profile))
    return states.out_of_date(NOTEBOOK, mark, states.place_of(profile, root))


def edit(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def with_bound(claim, statistic, number):
    """The claims, the first bound of one of them another."""
    changed = copy.deepcopy(ledger.load_claims())
    outcome = next(o for o in changed[claim]["outcomes"] if statistic in o["when"])
    outcome["when"][statistic] = dict.fromkeys(outcome["when"][statistic], number)
    return lambda: changed


def test_drawn_again_is_the_same_to_the_byte(root, capsys):
    state = files(root / "build" / ".smoke" / "state")
    assert again(root, capsys) == (set(), True, f"{NOTEBOOK}: 12 redrawn")
    assert files(root / "build" / ".smoke" / "state") == state


def test_a_lost_picture_is_drawn_again(root, capsys):
    lost = root / "build" / "smoke" / f"{NOTEBOOK}/linearity.png"
    before = lost.read_bytes()
    lost.write_bytes(b"")
    changed, done, _ = again(root, capsys)
    assert (changed, done, lost.read_bytes()) == ({f"{NOTEBOOK}/linearity.png"}, True, before)


def test_a_changed_caption_changes_its_picture_alone(root, capsys, monkeypatch):
    changed = copy.deepcopy(captions.load_captions("snipnb.studies.salience_derivation"))
    changed["linearity"]["alt"] = "Otherwise said."
    monkeypatch.setattr(captions, "load_captions", lambda study: changed)
    assert again(root, capsys)[:2] == ({f"{NOTEBOOK}/linearity.png", f"{NOTEBOOK}/linearity.svg", EXECUTED}, True)
    outputs = [
        o for c in json.loads((root / "build/smoke" / EXECUTED).read_text())["cells"] for o in c.get("outputs", [])
    ]
    alts = [o["metadata"]["image/png"]["alt"] for o in outputs if "image/png" in o.get("data", {})]
    assert any(alt.endswith("Otherwise said.") for alt in alts)


def test_a_changed_colour_changes_the_pictures_that_have_it(root, capsys, monkeypatch):
    monkeypatch.setattr(draw, "dots", lambda *place, **look: style.dots(*place, **{**look, "color": "#123456"}))
    assert again(root, capsys)[:2] == ({f"{NOTEBOOK}/linearity.png", f"{NOTEBOOK}/linearity.svg", EXECUTED}, True)


def test_a_changed_rule_is_judged_by(root, capsys, monkeypatch):
    monkeypatch.setattr(ledger, "load_claims", with_bound("C17", "median_remainder_order", 3))
    assert again(root, capsys)[:2] == ({VERDICTS, EXECUTED, *LEDGER}, True)
    rows = {row["id"]: row for row in json.loads((root / "build/smoke/claims.json").read_text())}
    assert rows["C17"]["verdict"] != "correct"
    assert rows["C15"]["verdict"] == "correct"


def test_numbers_of_rules_that_were_drawn_need_a_run(root, capsys, monkeypatch):
    monkeypatch.setattr(ledger, "load_claims", with_bound("C23", "largest_error", 1e-9))
    message = f"numbers in the rules of C23 have changed since it ran; make {NOTEBOOK} PROFILE=smoke runs it"
    assert again(root, capsys) == (set(), False, f"{NOTEBOOK}: {message}")


def test_prose_is_taken_over_and_is_then_up_to_date(root, capsys):
    edit(root / "notebooks" / f"{NOTEBOOK}.ipynb", "Ranked by magnitude they compete", "By magnitude they compete")
    assert stale(root) == "prose changed"
    assert again(root, capsys) == ({EXECUTED, "provenance.json"}, True, f"{NOTEBOOK}: 12 redrawn")
    assert "By magnitude they compete" in (root / "build" / "smoke" / EXECUTED).read_text(encoding="utf-8")
    assert stale(root) == ""


def test_other_changes_stay_to_be_run(root, capsys):
    edit(root / "notebooks" / f"{NOTEBOOK}.ipynb", "Ranked by magnitude they compete", "By magnitude they compete")
    state = root / "build" / ".smoke" / "state" / f"{NOTEBOOK}.json"
    edit(state, '"library": "', '"library": "0')
    edit(root / "build" / "smoke" / f"{NOTEBOOK}/linearity.csv", "LeNet", "lenet")
    said = again(root, capsys)[2]
    assert said.startswith(f"{NOTEBOOK}: 12 redrawn; needs a run for the rest: ")
    assert {"prose", "library", f"{NOTEBOOK}/linearity.csv"} <= set(stale(root).removesuffix(" changed").split(", "))


def test_changed_code_needs_a_run(root, capsys):
    edit(root / "notebooks" / f"{NOTEBOOK}.ipynb", "report.provenance(images", "report.provenance( images")
    message = f"its code has changed since it ran; make {NOTEBOOK} PROFILE=smoke runs it"
    assert again(root, capsys) == (set(), False, f"{NOTEBOOK}: {message}")


@pytest.mark.parametrize(
    "name", [f"{NOTEBOOK}/linearity.csv", f"{NOTEBOOK}/steps.csv", f"drawn/{NOTEBOOK}.json", EXECUTED, VERDICTS]
)
def test_a_missing_file_is_named(root, capsys, name):
    path = root / "build" / "smoke" / name
    path.unlink()
    said = f"{NOTEBOOK}: {path} is missing; make {NOTEBOOK} PROFILE=smoke runs it"
    assert again(root, capsys, NOTEBOOK)[1:] == (False, said)


def test_only_published_notebooks_are_drawn_unless_named(root, capsys):
    shutil.rmtree(root / "build" / "smoke")
    with pytest.raises(ValueError, match=r"nothing is published in .*smoke; run make figures PROFILE=smoke first"):
        redraw.redraw(root, "smoke")


def test_an_unknown_name_is_said(capsys):
    assert main(["redraw", "--profile", "smoke", "77"]) == 1
    assert "there is no notebook '77'" in capsys.readouterr().err


def test_what_was_made_elsewhere_is_redrawn_and_its_provenance_goes_along(root, capsys):
    shutil.rmtree(root / "build" / ".smoke" / "state")  # as in a fresh clone
    edit(root / "notebooks" / f"{NOTEBOOK}.ipynb", "Ranked by magnitude they compete", "By magnitude they compete")
    assert out_of_date(root) == "published; changed since then: prose"
    assert again(root, capsys) == ({EXECUTED, "provenance.json"}, True, f"{NOTEBOOK}: 12 redrawn")
    assert out_of_date(root) == ""
    assert stale(root) == states.NOT_RUN  # here: make figures still runs it


@pytest.mark.parametrize("name", ["02_snip_vs_exact", "05_second_order", "07_larger_networks"])
def test_tables_of_a_new_benchmark_are_published_without_a_run(name, tmp_path):
    notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    redraw.publish_benchmarks(notebook, Report(name, {"profile": "smoke"}, tmp_path))
    written = {path.name: path.read_bytes() for path in tmp_path.rglob("*.csv")}
    assert written
    assert written == {file: (ROOT / "figures" / name / file).read_bytes() for file in written}
