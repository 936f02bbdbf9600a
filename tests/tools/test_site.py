"""The site: built once, as ``make site`` does, and read without a browser."""

import os
import subprocess
import sys
from urllib.parse import unquote

import pytest
from tags import Page

import snipnb
from snipnb._files import project_root
from snipnb.publish import ledger
from tools.runner import find_notebooks

pytest.importorskip("myst_nb")
ROOT = project_root()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of pages; a warning of Sphinx, such as a link that leads nowhere, fails."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-c", "docs", ".", str(target)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return target


@pytest.fixture(scope="module")
def pages(site):
    """Path -> page, of all pages."""
    return {
        path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html") if "_static" not in path.parts
    }


def test_every_page_that_readme_names_is_there(site):
    for page in ("index", "README", "docs/library", "docs/api", "docs/corrections", "figures/README", "search"):
        assert (site / f"{page}.html").is_file()
    for notebook in find_notebooks(ROOT):
        page = Page((site / f"figures/full/notebooks/{notebook.stem}.html").read_text(encoding="utf-8"))
        assert len(page.all("img")) >= 1
        source = (ROOT / "figures" / "full" / "notebooks" / notebook.name).read_text(encoding="utf-8")
        shown = source.count('"text/markdown"') - source.count(" rows: `") // 2  # without what says where a file is
        assert len(page.all("table")) > shown + 1  # with claims, what came out and provenance; one may be empty


def test_links_pictures_scripts_and_styles_lead_to_files(pages):
    count = 0
    for path, page in pages.items():
        targets = [a.get("href", "") for a in page.all("a") + page.all("link")]
        targets += [a.get("src", "") for a in page.all("img") + page.all("script")]
        for target in targets:
            file = unquote(target.partition("#")[0].partition("?")[0])
            if file and "://" not in file and not file.startswith(("mailto:", "data:")):
                assert (path.parent / file).exists(), f"{path.name}: {target}"
                count += 1
    assert count > 1000


def test_links_within_the_site_lead_to_headings_and_names(pages):
    ids = {path: {a["id"] for _, a in page.tags if a.get("id")} for path, page in pages.items()}
    count = 0
    for path, page in pages.items():
        for target in (a.get("href", "") for a in page.all("a")):
            file, _, anchor = target.partition("#")
            place = (path.parent / unquote(file)).resolve() if file else path
            if anchor and place in ids:
                assert unquote(anchor) in ids[place], f"{path.name}: {target}"
                count += 1
    assert count > 100


def test_nothing_is_loaded_from_elsewhere(pages):
    for path, page in pages.items():
        loaded = [a.get("src", "") for a in page.all("img") + page.all("script") + page.all("iframe")]
        loaded += [a.get("href", "") for a in page.all("link") if a.get("rel") in ("stylesheet", "preload", "icon")]
        assert not [target for target in loaded if target.startswith(("http", "//"))], path.name


def test_every_picture_has_an_alternative_text(pages):
    pictures = [a for page in pages.values() for a in page.all("img")]
    assert len(pictures) > 90
    assert all(a.get("alt") for a in pictures)


def test_the_reference_has_every_public_name_that_has_a_docstring(site):
    text = (site / "docs/api.html").read_text(encoding="utf-8")
    named = [name for name in snipnb.__all__ if callable(getattr(snipnb, name)) and name not in ("Mask", "Salience")]
    assert len(named) > 30
    assert not [name for name in named if f'id="snipnb.{name}"' not in text]


def test_the_ledger_has_every_claim(site):
    text = (site / "figures/full/claims.html").read_text(encoding="utf-8")
    assert not [claim for claim in ledger.load_claims() if f">{claim}<" not in text]


def test_formulas_are_set_by_what_is_shipped(site):
    page = (site / "figures/full/notebooks/05_second_order.html").read_text(encoding="utf-8")
    assert "math notranslate" in page
    assert any("mathjax" in a.get("src", "").lower() for a in Page(page).all("script"))
