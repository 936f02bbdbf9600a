import json
import re
import shlex

import pytest

import snipnb
from snipnb._files import project_root
from snipnb.publish.sentences import sentence
from snipnb.training import store
from tools import readme
from tools.runner import find_notebooks

ROOT = project_root()
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    "README.md",
    "figures/README.md",
    "CONTRIBUTING.md",
    *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]
WRITTEN = [page for page in PAGES if page != "figures/README.md"]
EXAMPLES = {
    page: re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    for page in ("README.md", "docs/library.md", "docs/own.md")
}


def words_of(text):
    """How many words a reader meets: without code, the folded table, targets of links, and texts that stand for pictures."""
    for unread in (r"```.*?```", r"<details>.*?</details>", r"!\[.*?\]\([^)]*\)", r"<!--.*?-->", r"(?<=\])\([^)]*\)"):
        text = re.sub(unread, "", text, flags=re.DOTALL)
    return len(re.findall(r"\w[\w'-]*", text))


def test_readme_takes_a_few_minutes_to_read():
    assert words_of("one [two](three.md) ![four](five.png)\n```sh\nsix\n```\n<details>seven</details>") == 2
    assert 500 < words_of(TEXT) <= 900


def test_readme_answers_with_what_the_ledger_says():
    rows = {row["id"]: row for row in json.loads((ROOT / "figures/full/claims.json").read_text(encoding="utf-8"))}
    for claim in [*readme.FINDINGS, *(claim for _, claim in readme.QUESTIONS.values() if claim)]:
        assert sentence(rows[claim]) in TEXT
    assert readme.QUESTIONS.keys() == {path.stem for path in find_notebooks(ROOT)}


def test_links_to_notebooks_lead_to_outputs():
    copies = re.findall(r"\]\(([^)]+\.ipynb)\)", TEXT)
    assert len(copies) >= 7 + 30
    for copy in set(copies):
        cells = json.loads((ROOT / copy).read_text(encoding="utf-8"))["cells"]
        assert any(cell.get("outputs") for cell in cells), copy


def test_generated_parts_are_up_to_date():
    def without_times(content):
        kept = re.sub(rb"(<!-- generated: (?:run|cost) -->).*?<!-- end -->", rb"\1", content, flags=re.DOTALL)
        return re.sub(rb"(?m)^(\| \[.*\.ipynb\).*\|) \d+ \|$", rb"\1", kept)  # minutes of each notebook

    made = readme.contents(ROOT)
    assert b"generated: cost -->\n|" in made[ROOT / "docs/profiles.md"]
    stale = [path for path, new in made.items() if without_times(path.read_bytes()) != without_times(new)]
    assert not stale, "run make readme"


@pytest.mark.parametrize("page", PAGES)
def test_every_linked_file_and_heading_exists(page):
    path = ROOT / page
    text = re.sub(
        r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )  # code has no links
    targets = re.findall(r"\]\(([^)]+)\)|<img src=\"([^\"]+)\"", text)
    targets = [(link or image).partition("#") for link, image in targets if "://" not in link]
    assert not [target for target, _, _ in targets if not (path.parent / target).exists()]
    for target, _, heading in targets:
        if heading:
            titles = re.findall(r"^#+ (.*)", (path.parent / target).read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert heading in [title.lower().replace(" ", "-") for title in titles]


def test_a_link_that_leads_nowhere_would_be_found():
    assert len(re.findall(r"\]\((?!https)", TEXT)) > 60


def test_the_gallery_shows_every_figure():
    text = (ROOT / "figures" / "README.md").read_text(encoding="utf-8")
    pictures = {path.relative_to(ROOT / "figures").as_posix() for path in (ROOT / "figures").glob("[0-9]*/*.png")}
    assert set(re.findall(r'<img src="([^"]+)"', text)) == pictures


def test_every_path_named_exists():
    texts = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in WRITTEN)
    paths = re.findall(r"`((?:snipnb|notebooks|tests|figures|tools)/[\w./]*)`", texts)
    assert len(paths) > 20
    made_on_demand = {"figures/mine/", "notebooks/10_slug.ipynb", "snipnb/studies/slug/"}
    assert not [path for path in set(paths) - made_on_demand if not (ROOT / path).exists()]


def test_every_command_is_a_target():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE)) | {p.stem for p in find_notebooks(ROOT)}
    texts = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in WRITTEN)
    commands = re.findall(r"(?:`|^)(make [^`#\n]*)", texts, flags=re.MULTILINE)
    assert len(commands) > 20
    for command in commands:
        words = [word for word in shlex.split(command)[1:] if "=" not in word]
        assert set(words) <= targets | {"10_slug"}, command  # the page's own example of a notebook


@pytest.mark.parametrize("page", ["README.md", "docs/library.md"])
def test_the_example_runs(page, capsys):
    exec(compile(EXAMPLES[page][0], page, "exec"), {})
    assert "conv1.weight" in capsys.readouterr().out


def test_the_grid_of_the_page_runs_and_is_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    example = next(e for e in EXAMPLES["docs/library.md"] if "my-runs" in e)
    exec(compile(example, "docs/library.md", "exec"), {})
    assert re.search(r"random +0.90 +0\.\d", capsys.readouterr().out)
    assert len(list((tmp_path / "my-runs").glob("*.json"))) == 3


def test_a_criterion_of_your_own_runs_as_the_page_shows(capsys):
    before = dict(snipnb.CRITERIA)
    example = next(e for e in EXAMPLES["docs/library.md"] if "CRITERIA" in e)
    try:
        exec(compile(example, "docs/library.md", "exec"), {})
    finally:
        snipnb.CRITERIA.clear()
        snipnb.CRITERIA.update(before)
    said = capsys.readouterr().out
    assert re.search(r"gradient +6171", said)
    assert re.search(r"convolutions_first +6171", said)


def test_a_network_and_images_of_your_own_run_as_the_page_shows(tmp_path, monkeypatch, capsys):
    for registry in (snipnb.CRITERIA, snipnb.MODELS):
        for name in ("of_class_3", "residual"):
            monkeypatch.setitem(registry, name, None)  # put back afterwards
    monkeypatch.chdir(tmp_path)
    example = EXAMPLES["docs/own.md"][0]
    assert len([line for line in example.splitlines() if line.strip()]) <= 30
    exec(compile(example, "docs/own.md", "exec"), {})
    assert re.search(r"of_class_3 +\d.*\nrandom +\d.*\nsnip +\d", said := capsys.readouterr().out)
    assert re.search(r"snip +0\.\d+ +0\.\d+ +0\.\d+", said)
    assert len(list((tmp_path / "my-runs").glob("*.json"))) == 2


def test_verdicts_are_those_of_full_with_scope_and_as_registered(tmp_path):
    row = {"id": "C9", "words": "a $|x|$", "place": "section 1", "notebook": "02_x", "figure": "f.png"}
    row |= {"profile": "full", "reason": "one machine"}
    row |= {"verdict": "supported", "registered": "weak", "scope": "LeNet-5", "n": 3}
    row |= {"measured": {"cost_in_gradients": 1.016}, "low": {}, "high": {}}
    (tmp_path / "full").mkdir()
    open_row = {**row, "id": "C2", "profile": None, "verdict": "not run", "registered": None, "scope": "", "n": None}
    open_row |= {"reason": ""}
    (tmp_path / "full" / "claims.json").write_text(json.dumps([row, open_row]))
    rows = readme.verdicts(tmp_path).splitlines()[2:]
    where = "[02](figures/full/notebooks/02_x.ipynb), [figure](figures/full/f.png)"
    said = "SNIP scores every parameter for the price of 1.02 gradients."
    words, verdict = r"“a ${\vert}x{\vert}$” (section 1)", "**supported**"
    assert rows[0] == f"| C9 | {words} | {verdict} | {said} | weak | LeNet-5; n = 3 | {where} |"
    assert rows[1] == f"| C2 | {words} | **not run** | Not run. |  |  |  |"


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
    with pytest.raises(ValueError, match="no part 'weather'; the generated parts are hero, findings, run, notebooks"):
        readme.render("<!-- generated: weather -->\n<!-- end -->", tmp_path)
