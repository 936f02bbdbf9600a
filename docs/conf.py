"""How Sphinx makes the site from README, docs, ledger, gallery, executed notebooks and docstrings: ``make site``."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import snipnb

project = "SNIP pruning, reproduced"
author = "The snipnb authors"
copyright = "The snipnb authors, MIT licence"
version = release = snipnb.__version__

root_doc = "README"
include_patterns = [
    "README.md",
    "CONTRIBUTING.md",
    "docs/*.md",
    "figures/README.md",
    "figures/claims.md",
    "figures/full/claims.md",
    "figures/robustness.md",
    "figures/[0-9b]*/*.md",
    "figures/full/[0-9]*/*.md",
    "figures/notebooks/*.ipynb",
    "figures/full/notebooks/*.ipynb",
    "snipnb/resources/README.md",
]
# What the pages on GitHub have no need of: which page is under which.
TREES = {
    "README": [
        "Notebooks <docs/notebooks>",
        "Ledger <figures/full/claims>",
        "Gallery <figures/README>",
        "Library <docs/library>",
        "Your own network <docs/own>",
        "Reference <docs/api>",
        "docs/corrections",
        "docs/glossary",
        "docs/departures",
        "docs/profiles",
        "docs/benchmarks",
        "docs/engineering",
        "docs/architecture",
        "docs/kernels",
        "CONTRIBUTING",
    ],
    "docs/notebooks": ["/figures/full/notebooks/*"],
}

EXPLORER = "explorer.html"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
]
myst_enable_extensions = ["dollarmath", "amsmath", "html_image"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_render_markdown_format = "myst"  # the tables of outputs
napoleon_use_ivar = True
autodoc_member_order = "alphabetical"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
suppress_warnings = ["toc.not_included"]  # tables are pages without a place

html_theme = "pydata_sphinx_theme"
html_title = project
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options: dict[str, Any] = {
    "header_links_before_dropdown": 6,
    "navigation_with_keys": False,
    "show_prev_next": False,
    "navbar_align": "left",
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_sidebars: dict[str, list[str]] = {"**": []}
html_context = {"default_mode": "auto"}


def add_tree(app: Any, name: str, source: list[str]) -> None:
    """Give a page its place, and leave out what asks the network."""
    if name.startswith("figures/") and not source[0].startswith(("#", "{")):  # a table
        source[0] = f"# {Path(name).name.replace('_', ' ')}\n\n{source[0]}"
    source[0] = re.sub(r"^!\[.*?\]\(https://img\.shields\.io/.*\n", "", source[0], flags=re.MULTILINE)
    if not source[0].startswith("{"):  # not in notebooks: on the site, the explorer's name is a link to it
        up = "../" * name.count("/")
        source[0] = source[0].replace(f"`build/{EXPLORER}`", f'<a href="{up}{EXPLORER}">{EXPLORER}</a>')
    if name in TREES:
        lines = ["", "```{toctree}", ":hidden:", ":glob:", *TREES[name], "```", ""]
        source[0] += "\n".join(lines)


def add_index(app: Any, error: Exception | None) -> None:
    """The front page under the name that browsers and servers look for."""
    if error is None:
        shutil.copyfile(Path(app.outdir) / "README.html", Path(app.outdir) / "index.html")


def add_explorer(app: Any, error: Exception | None) -> None:
    """The page to play with, beside the front page; its sources are in docs/explorer."""
    if error is None:
        from tools import explorer

        explorer.write(Path(app.outdir) / EXPLORER)


def setup(app: Any) -> None:
    app.connect("source-read", add_tree)
    app.connect("build-finished", add_index)
    app.connect("build-finished", add_explorer)
