"""The report: pages that need no network, from published files."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from snipnb._files import project_root
from snipnb.publish import ledger, style
from snipnb.publish.evidence import Finding
from tools import site


class Page(HTMLParser):
    """Tags of a page, with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], text
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def all(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A checkout with one executed notebook, its figure, and a ledger."""
    import matplotlib.pyplot as plt

    root = tmp_path_factory.mktemp("a check out é")
    figures = root / "figures"
    (figures / "notebooks").mkdir(parents=True)
    figure, axis = plt.subplots()
    axis.plot([1, 2])
    (figures / "02_snip_vs_exact").mkdir()
    picture = style.render(figure, "png", alt="Two points & a line")
    (figures / "02_snip_vs_exact" / "figure1.png").write_bytes(picture)
    plt.close(figure)
    table = '<div>\n<style scoped>\n  .x {}\n</style>\n<table border="1" class="dataframe"><thead><tr style="text-align: right;"><th></th><th>a</th></tr></thead><tbody><tr><th>0</th><td>1</td></tr></tbody></table>\n</div>'
    cells = [
        {"cell_type": "markdown", "id": "a", "metadata": {}, "source": "# 02 · SNIP & others\n\nA factor $w_0$, as in `$x$`:\n\n$$L' = \\tfrac{1}{2} w$$\n\n| a | b |\n|---|---|\n| $\\lvert w \\rvert$ | 5 $ or 6 $ |"},
        {
            "cell_type": "code",
            "id": "b",
            "metadata": {},
            "execution_count": 1,
            "source": "x = 1  # one\nx",
            "outputs": [
                {"output_type": "stream", "name": "stdout", "text": "said\n"},
                {"output_type": "execute_result", "execution_count": 1, "metadata": {}, "data": {"text/html": table, "text/plain": "1"}},
                {"output_type": "display_data", "metadata": {"image/png": {"alt": "a picture"}}, "data": {"image/png": "iVBORw0KGgo=", "text/plain": "p"}},
            ],
        },
    ]  # fmt: skip
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (figures / "notebooks" / "02_snip_vs_exact.ipynb").write_text(json.dumps(notebook))
    picture = "02_snip_vs_exact/figure1.png"
    found = ledger.entry(
        "C9",
        Finding({"cost_in_gradients": 1.01}, {"cost_in_gradients": (1.0, 1.02)}),
        profile="default",
        figure=picture,
    )
    ledger.write_ledger(figures, ledger.assemble([found]))
    return root


@pytest.fixture(scope="module")
def report(project):
    target = project / "build" / "report"
    site.make(project, target, reference=False)
    return target


def test_the_ledger_stands_first_and_leads_to_everything(report):
    page = Page((report / "index.html").read_text(encoding="utf-8"))
    text = page.text
    for claim in ledger.load_claims():
        assert f'id="{claim}"' in text
    assert "cost in gradients 1.01" in text
    files = {a["href"].split("#")[0] for a in page.all("a") if a.get("href", "").split("#")[0]}
    assert {"02_snip_vs_exact.html", "figures/02_snip_vs_exact/figure1.png"} <= files
    assert not [file for file in files if not (report / file).is_file()]
    assert text.index('id="verdicts"') < text.index('id="figures"')
    assert [i["alt"] for i in page.all("img")] == ["Two points & a line"]
    assert re.search(r'<span class="verdict good">1</span> supported', text)


def test_a_notebook_page_has_formulas_tables_and_pictures_without_network(report):
    page = Page((report / "02_snip_vs_exact.html").read_text(encoding="utf-8"))
    assert len(page.all("math")) == 3
    assert [m["display"] for m in page.all("math")].count("block") == 1
    assert "<code>$x$</code>" in page.text
    assert "5 $ or 6 $" in page.text
    assert {"a picture"} == {i["alt"] for i in page.all("img")}
    assert all(i["src"].startswith("data:") for i in page.all("img"))
    assert not page.all("script")
    assert not [tag for tag in page.all("link") if not tag["href"].startswith("data:")]
    assert len(page.all("details")) == 1
    assert len([d for d in page.all("div") if d.get("class") == "wide" and d["tabindex"] == "0"]) == 2
    assert "<style scoped" not in page.text
    assert page.all("html") == [{"lang": "en"}]
    assert [t for t in page.all("a") if t.get("aria-current") == "page"] == [
        {"href": "02_snip_vs_exact.html", "aria-current": "page"}
    ]


def test_a_new_report_replaces_the_old_one_as_a_whole(project, report):
    (report / "left-over.html").write_text("x")
    site.make(project, report, reference=False)
    assert not (report / "left-over.html").exists()
    assert not list(report.parent.glob(".report-*"))
    other = report.parent / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("x")
    with pytest.raises(site.ReportError, match="exists and is no report"):
        site.make(project, other, reference=False)
    assert (other / "thesis.txt").is_file()


def test_verdicts_are_those_of_full_where_it_was_run(project, tmp_path):
    default, full = project / "figures", tmp_path / "figures" / "full"
    shutil.copytree(default, tmp_path / "figures")
    shutil.copytree(default / "notebooks", full / "notebooks")
    (full / "02_snip_vs_exact").mkdir()
    shutil.copy(default / "02_snip_vs_exact" / "figure1.png", full / "02_snip_vs_exact")
    statistics = {"equivalence_p": 0.001, "random_equivalence_p": 0.9, "random_excess_low": 2.0, "beyond_margin": -0.1}
    decided = ledger.entry("C25a", Finding(statistics, n=10), profile="full", figure="02_snip_vs_exact/figure1.png")
    ledger.write_ledger(full, ledger.assemble([decided]))
    site.make(tmp_path, tmp_path / "report", reference=False)
    index = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    articles = {text.split('"')[0]: text for text in index.split('<article class="claim" id="')[1:]}
    assert "profile full" in articles["C25a"]
    linked = {a["href"] for a in Page(articles["C25a"]).all("a")}
    assert linked == {"full-02_snip_vs_exact.html", "figures/full/02_snip_vs_exact/figure1.png"}
    assert all((tmp_path / "report" / file).is_file() for file in linked)
    assert "not run (its notebook has not)" in articles["C9"]


def test_what_is_missing_is_said(tmp_path, capsys):
    with pytest.raises(site.ReportError, match="make figures makes them"):
        site.make(tmp_path, tmp_path / "report")
    assert site.main(tmp_path, tmp_path / "report", profile="full") == 1
    assert "make figures PROFILE=full" in capsys.readouterr().err


def test_every_verdict_has_a_kind():
    words = {word for kind, words in ledger.WORDS.items() if kind != "registered" for word in words} | {"not run"}
    assert {site.kind(word) for word in words} == {"good", "corrected", "failed", "open"}
    assert site.kind("inconclusive (n = 3, the rule asks for 5; so far supported)") == "open"


def test_colours_can_be_told_from_the_page():
    """Contrast of text by WCAG: at least 4.5 in both themes."""
    style = (project_root() / "snipnb" / "resources" / "site" / "style.css").read_text()
    themes = re.findall(r":root \{(.*?)\}", style, flags=re.DOTALL)[:2]
    for theme in themes:
        colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{3,6});", theme))
        for name in ("text", "quiet", "link", "good", "changed", "bad", "open"):
            for ground in ("page", "soft"):
                assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)


def contrast(first, second):
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour):
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    r, g, b = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
