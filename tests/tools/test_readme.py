import json
import re
import shlex

import pytest

import snipnb
from snipnb._files import project_root
from snipnb.training import store
from tools import readme
from tools.runner import find_notebooks

ROOT = project_root()
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_generated_parts_are_up_to_date():
    assert readme.update(check=True), "run make readme"


@pytest.mark.parametrize("page", ["README.md", "figures/README.md"])
def test_every_linked_file_exists(page):
    path = ROOT / page
    targets = re.findall(r"\]\(([^)]+)\)|<img src=\"([^\"]+)\"", path.read_text(encoding="utf-8"))
    targets = [link or image for link, image in targets if "://" not in link]
    assert len(targets) > 8
    assert not [target for target in targets if not (path.parent / target).exists()]


def test_the_gallery_shows_every_figure():
    text = (ROOT / "figures" / "README.md").read_text(encoding="utf-8")
    pictures = {path.relative_to(ROOT / "figures").as_posix() for path in (ROOT / "figures").glob("[0-9]*/*.png")}
    assert set(re.findall(r'<img src="([^"]+)"', text)) == pictures


def test_every_path_named_exists():
    paths = re.findall(r"`((?:snipnb|notebooks|tests|figures|tools)/[\w./]*)`", TEXT)
    assert paths
    made_on_demand = {"figures/mine/"}
    assert not [path for path in set(paths) - made_on_demand if not (ROOT / path).exists()]


def test_every_command_is_a_target():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE)) | {p.stem for p in find_notebooks(ROOT)}
    commands = re.findall(r"(?:`|^)(make [^`#\n]*)", TEXT, flags=re.MULTILINE)
    assert len(commands) > 5
    for command in commands:
        words = [word for word in shlex.split(command)[1:] if "=" not in word]
        assert set(words) <= targets, command


def test_the_example_runs(capsys):
    example = re.search(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)[1]
    exec(compile(example, "README.md", "exec"), {})
    assert "conv1.weight" in capsys.readouterr().out


def test_a_criterion_of_your_own_runs_as_the_page_shows(capsys):
    before = dict(snipnb.CRITERIA)
    example = next(e for e in re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL) if "CRITERIA" in e)
    try:
        exec(compile(example, "README.md", "exec"), {})
    finally:
        snipnb.CRITERIA.clear()
        snipnb.CRITERIA.update(before)
    said = capsys.readouterr().out
    assert re.search(r"gradient +6171", said)
    assert re.search(r"convolutions_first +6171", said)


def test_verdicts_are_those_of_full_with_scope_and_as_registered(tmp_path):
    row = {"id": "C1", "words": "a $|x|$", "notebook": "02_x", "figure": "f.png", "profile": "full"}
    row |= {"verdict": "supported", "registered": "weak", "scope": "LeNet-5", "n": 3}
    (tmp_path / "full").mkdir()
    open_row = {**row, "id": "C2", "profile": None, "verdict": "not run", "registered": None, "scope": "", "n": None}
    (tmp_path / "full" / "claims.json").write_text(json.dumps([row, open_row]))
    rows = readme.verdicts(tmp_path).splitlines()[2:]
    where = "[02](notebooks/02_x.ipynb), [png](figures/full/f.png)"
    assert rows[0] == rf"| C1 | “a ${{\vert}}x{{\vert}}$” | supported | LeNet-5; n = 3 | weak | {where} |"
    assert rows[1] == r"| C2 | “a ${\vert}x{\vert}$” | not run |  |  |  |"


def test_finished_runs_are_counted(tmp_path):
    text = "<!-- generated: kept -->\n<!-- end -->\n"
    assert "No training run is kept" in readme.render(text, tmp_path)
    kept = store.Store(tmp_path / "full" / "runs")
    for number, epochs in ((1, 1), (2, 2), (3, 2)):
        kept.finish(f"group-{number}", {f"run-{number}": {"history": {"epoch": [1, 2][:epochs]}}}, {})
    assert "3 trained networks, 2 of them over 2 epochs" in readme.render(text, tmp_path)


def test_the_time_is_told_in_epochs_of_a_plain_loop_too(tmp_path):
    run = {"seconds": 1100.0, "machine": {"cores": 2, "processor": "any"}}
    (tmp_path / "provenance.json").write_text(json.dumps({"notebooks": {"01_first": run}}))
    text = "<!-- generated: cost -->\n<!-- end -->\n"
    assert "plain loop" not in readme.render(text, tmp_path)
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench/training.csv").write_text("way,images,seconds\ntogether,500,0.01\nplain loop,500,0.1\n")
    assert "| the same, in epochs of a plain loop (11.0 s) | 100 epochs |" in readme.render(text, tmp_path)


def test_parts_follow_from_the_files(tmp_path):
    text = "a\n<!-- generated: verdicts -->\nOUT OF DATE\n<!-- end -->\nb\n<!-- generated: cost -->\n<!-- end -->\n"
    new = readme.render(text, ROOT / "figures")
    assert "OUT OF DATE" not in new
    assert "| C35 |" in new
    assert "\n| 01_salience_derivation |" in new
    assert readme.render(new, ROOT / "figures") == new
    only_verdicts = readme.render(text, ROOT / "figures", parts=("verdicts",))
    assert "| C35 |" in only_verdicts
    assert "\n| 01_salience_derivation |" not in only_verdicts
    with pytest.raises(ValueError, match="has a part 'weather'; the generated parts are verdicts, cost, kept"):
        readme.render("<!-- generated: weather -->\n<!-- end -->", tmp_path)
