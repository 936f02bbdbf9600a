"""The report: executed notebooks, ledger and reference of the package as a folder of static pages that need no network.

Notebooks are rendered by nbconvert, their formulas as MathML, the reference by pdoc. Pages carry their style and pictures inside.
"""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from snipnb._files import published_dir, resource
from snipnb.publish import ledger
from snipnb.publish.profiles import load_profile

PICTURES = ("02_snip_vs_exact/figure1.png", "03_lenet5_table/figure2.png", "06_rules_of_thumb/controls.png")
MARK = ".snipnb-report"
KINDS = {
    **dict.fromkeys(("matches", "supported", "correct"), "good"),
    **dict.fromkeys(("correct up to wording", "error, corrected", "partly supported"), "corrected"),
    **dict.fromkeys(("differs", "contradicted"), "failed"),
    **dict.fromkeys(("cannot tell", "inconclusive", "no verdict", "not run"), "open"),
}
MATH = re.compile(
    r"(`+)(?:.+?)\1|\$\$(?P<block>.+?)\$\$|(?<![\\$\w])\$(?!\s)(?P<inline>[^$\n]+?)(?<!\s)\$(?![\w$])", flags=re.DOTALL
)


class ReportError(RuntimeError):
    """The report cannot be made; the message says what is missing, and the earlier report stays."""


def make(root: Path, target: Path, *, profile: str = "default", reference: bool = True) -> list[Path]:
    """Write the report of a profile's published figures; that of the default profile takes in what stronger ones decided.

    Args:
        root: The checkout.
        target: Folder for the pages; replaced as a whole when all are made.
        profile: Whose figures: ``"default"`` is ``figures/``, ``"smoke"`` is ``build/smoke/``, others are ``figures/<profile>/``.
        reference: Whether the reference of the package is made.

    Returns:
        The pages.

    Raises:
        ReportError: If nothing is published, or a package that makes the pages is not installed.
    """
    figures = published_dir(root / "figures", profile)
    if target.exists() and not (target / MARK).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise ReportError(f"{target} exists and is no report; name another folder, or remove it")
    executed = _executed(root, profile)
    if not executed or not (figures / "claims.json").is_file():
        command = "make figures" if profile == "default" else f"make figures PROFILE={profile}"
        raise ReportError(f"there are no executed notebooks in {figures}; {command} makes them")
    try:
        import jinja2
        import latex2mathml.converter  # noqa: F401  needed by the pages
        import nbconvert  # noqa: F401
        import pdoc  # noqa: F401
    except ImportError as error:
        raise ReportError(f"{error.name} is not installed; make report installs what the report needs") from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(resource("site")), autoescape=True, undefined=jinja2.StrictUndefined
    )
    pages = [{"file": "index.html", "name": "Ledger"}]
    pages += [{"file": page.file, "name": page.title} for page in executed]
    if reference:
        pages.append({"file": "api/snipnb.html", "name": "Reference"})
    style = resource("site", "style.css").read_text(encoding="utf-8")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".report-", dir=target.parent) as temporary:
        stage = Path(temporary) / "report"
        stage.mkdir()
        footer = _footer(figures, profile)

        def write(file: str, title: str, body: str) -> None:
            page = environment.get_template("page.html").render(
                title=title, style=_safe(style), pages=pages, here=file, body=_safe(body), footer=footer
            )
            (stage / file).write_text(page, encoding="utf-8")

        (stage / "figures").mkdir()
        write("index.html", "Ledger", _ledger(environment, root, profile, executed, stage))
        for page in executed:
            write(page.file, page.title, _notebook(page.path))
        if reference:
            _reference(stage / "api")
        (stage / MARK).write_text("made by snipnb report; replaced as a whole\n", encoding="utf-8")
        if target.exists():
            target.rename(Path(temporary) / "old")
        stage.rename(target)
    return sorted(target.rglob("*.html"))


@dataclass(frozen=True)
class _Page:
    """An executed notebook and the page it becomes."""

    path: Path
    profile: str
    file: str
    title: str


def _executed(root: Path, profile: str) -> list[_Page]:
    """The executed notebooks of a profile; behind those of the default one stand those of the stronger ones."""
    pages = []
    for name in dict.fromkeys([profile, *(["full"] if profile == "default" else [])]):
        for path in sorted((published_dir(root / "figures", name) / "notebooks").glob("[0-9]*.ipynb")):
            title = _title(path)
            if name == profile:
                pages.append(_Page(path, name, f"{path.stem}.html", title))
            else:
                pages.append(_Page(path, name, f"{name}-{path.stem}.html", f"{title} ({name})"))
    return pages


def _safe(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)  # our own pages


def kind(verdict: str) -> str:
    """The class of a verdict in the pages' style."""
    return KINDS[verdict.split(" (")[0]]


# --- the ledger ---------------------------------------------------------------------------------------------------------


def _ledger(environment: Any, root: Path, profile: str, executed: list[_Page], stage: Path) -> str:
    figures = root / "figures"
    published = [published_dir(figures, name) / "claims.json" for name in ("full", profile)]
    path = next(path for path in published if profile == path.parent.name or (profile == "default" and path.is_file()))
    rows = json.loads(path.read_text(encoding="utf-8"))
    rules = ledger.load_claims()
    files = {(page.profile, page.path.stem): page.file for page in executed}
    for row in rows:
        own = row["profile"] or profile
        row["page"] = files.get((own, row["notebook"]))
        row["said"] = _safe(with_mathml(html.escape(ledger.quoted(row["words"]), quote=False)))
        row["numbers"] = [n for n in ledger.verdict_frame([row])["found"].iloc[0].split("; ") if n]
        row |= {name: rules[row["id"]].get(name) for name in ("changed", "looks")}
        row["figure_file"] = _copied(published_dir(figures, own), row["figure"], stage, "" if own == profile else own)
    tally = Counter(row["verdict"].split(" (")[0] for row in rows)
    ordered = tally.most_common()
    others = {page.profile: load_profile(page.profile).about for page in executed if page.profile != profile}
    return environment.get_template("ledger.html").render(
        rows=rows, tally=ordered, kind=kind, pictures=_pictures(rows, stage), others=others
    )


def _copied(folder: Path, name: str | None, stage: Path, below: str) -> str | None:
    """A figure or table that a claim points to, copied beside the pages; None if there is none."""
    if not name or not (folder / name).is_file():
        return None
    target = Path("figures") / below / name
    (stage / target).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / name, stage / target)
    return target.as_posix()


def _pictures(rows: list[dict[str, Any]], stage: Path) -> list[dict[str, Any]]:
    """The first figures, as the claims that point to them have them, with the text alternatives that are stored in them."""
    found = []
    for name in PICTURES:
        row = next((r for r in rows if r["figure"] == name and r["figure_file"] and r["page"]), None)
        if row is not None:
            path = stage / row["figure_file"]
            encoded = base64.b64encode(path.read_bytes()).decode("ascii")
            with Image.open(path) as picture:
                (width, height), alt = picture.size, picture.info.get("Description", "")
            facts = {"width": width // 2, "height": height // 2, "alt": alt}
            facts |= {"page": row["page"], "notebook": row["notebook"][:2], "profile": row["profile"]}
            found.append({"data": f"data:image/png;base64,{encoded}"} | facts)
    return found


def _footer(figures: Path, profile: str) -> str:
    path = figures / "provenance.json"
    runs = json.loads(path.read_text(encoding="utf-8"))["notebooks"] if path.is_file() else {}
    minutes = sum(run["seconds"] for run in runs.values()) / 60
    return f"Profile {profile}; {len(runs)} notebooks, {minutes:.0f} minutes on the machine that ran them."


# --- notebooks ----------------------------------------------------------------------------------------------------------


def _title(path: Path) -> str:
    """The first heading of a notebook, without its mark."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    first = "".join(next(cell["source"] for cell in cells if cell["cell_type"] == "markdown"))
    return first.splitlines()[0].lstrip("# ").strip()


def _notebook(path: Path) -> str:
    """An executed notebook as HTML: formulas as MathML, code folded away, tables that scroll by themselves."""
    import nbformat
    from nbconvert import HTMLExporter

    notebook = nbformat.read(path, 4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = with_mathml(cell.source)
    body, _ = HTMLExporter(template_name="basic").from_notebook_node(notebook)
    return tidy(body)


def with_mathml(text: str) -> str:
    """Markdown with its formulas as MathML; code is left alone."""
    from latex2mathml.converter import convert

    def replace(found: re.Match[str]) -> str:
        if found["block"] is not None:
            return convert(found["block"].strip(), display="block")
        return convert(found["inline"], display="inline") if found["inline"] is not None else found[0]

    return MATH.sub(replace, text)


def tidy(body: str) -> str:
    """What nbconvert's plain template lacks: code that folds, tables and code that scroll and can be reached by keyboard."""
    body = re.sub(r'<div class="prompt[^"]*">.*?</div>', "", body, flags=re.DOTALL)
    body = re.sub(
        r'(<div class="input_area">\s*)(<div class="\s*highlight[^"]*">.*?</pre>\s*</div>)',
        r'\1<details class="code"><summary>code</summary>\2</details>',
        body,
        flags=re.DOTALL,
    )
    body = body.replace("<pre>", '<pre tabindex="0">')
    body = re.sub(r' style="text-align: right;"', "", body)
    body = re.sub(r'<table border="1"', "<table", body)
    body = re.sub(r"<style scoped[^>]*>.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r"<th></th>", "<td></td>", body)
    body = re.sub(r'(<a class="anchor-link" href="[^"]*")>', r'\1 aria-label="Link to this section">', body)
    return re.sub(
        r"<table.*?</table>",
        lambda found: f'<div class="wide" role="region" aria-label="Table" tabindex="0">{found[0]}</div>',
        body,
        flags=re.DOTALL,
    )


# --- reference ----------------------------------------------------------------------------------------------------------


READABLE = "#00600f"  # pdoc's greens are too light on its grey


def _reference(folder: Path) -> None:
    """The public names by pdoc, with a way back to the other pages."""
    import pdoc
    import pdoc.render

    names = ["snipnb"] + [f"snipnb.{name}" for name in _public_modules()]
    with tempfile.TemporaryDirectory() as templates:
        depth = "{{ '../' * (module.modulename.count('.') + 1) }}"
        text = (
            '{% extends "default/module.html.jinja2" %}\n{% block nav_title %}'
            f'<a class="pdoc-button module-list-button" href="{depth}index.html">&laquo; Ledger and notebooks</a>'
            "{% endblock %}\n{% block style %}{{ super() }}"
            f"<style>.pdoc .def, .pdoc-code :is(.nb, .kc, .bp, .nf, .kt) {{ color: {READABLE}; }}</style>{{% endblock %}}\n"
        )
        (Path(templates) / "module.html.jinja2").write_text(text, encoding="utf-8")
        pdoc.render.configure(docformat="google", template_directory=Path(templates), show_source=False, search=False)
        pdoc.pdoc(*names, output_directory=folder)


def _public_modules() -> list[str]:
    """Modules that hold public names, and so their docstrings."""
    import snipnb

    homes = {getattr(getattr(snipnb, name), "__module__", "snipnb") for name in snipnb.__all__}
    return sorted(home.removeprefix("snipnb.") for home in homes if home.startswith("snipnb."))


def main(root: Path, target: Path, *, profile: str) -> int:
    """For the command line: make the report and say where it is."""
    try:
        pages = make(root, target, profile=profile)
    except ReportError as error:
        print(error, file=sys.stderr)
        return 1
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file()) / 2**20
    print(f"{len(pages)} pages, {size:.1f} MiB; open {target / 'index.html'}")
    return 0
