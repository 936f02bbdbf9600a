"""``figures/README.md``: every published figure, what it shows, its files, the code that draws it and the command that makes it."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from snipnb.publish.report import DRAWN, Report

HEAD = """# Figures

The figures and tables of the default profile, as `make figures` writes them, and [the claims](claims.md) that they decide. A figure is drawn by the function
of its name in `snipnb/studies/<study>/draw.py`, from the tables named beside it. Where `full` has stronger evidence, *full* links to it.

<!-- written by `make readme` -->
"""


def gallery(figures: Path, notebooks: Path) -> str:
    """The page, from the folder of published files and the folder of notebooks."""
    reports = (Report.published(path.stem, figures) for path in sorted((figures / DRAWN).glob("*.json")))
    return "\n".join([HEAD, *(_section(report, notebooks) for report in reports)])


def _section(report: Report, notebooks: Path) -> str:
    notebook, figures = report.notebook, report.folder
    cells = json.loads((notebooks / f"{notebook}.ipynb").read_text("utf-8"))["cells"]
    title = "".join(cells[0]["source"]).splitlines()[0].lstrip("# ")
    lines = [
        f"## {title}\n",
        f"`make {notebook}`: [the notebook as it was run](notebooks/{notebook}.ipynb), "
        f"[code of the drawings](../{report.study.replace('.', '/')}/draw.py)\n",
        "| | what it shows | files |",
        "|---|---|---|",
    ]
    for name, figure in report.drawn["figures"].items():
        with Image.open(figures / f"{notebook}/{name}.png") as picture:
            alt = picture.info["Description"]
        files = [f"{notebook}/{name}.{kind}" for kind in ("png", "svg")] + figure["frames"]
        places = [file if (figures / file).is_file() else f"../snipnb/resources/{file}" for file in files]
        links = [f"[{Path(place).name}]({place})" for place in places]
        if (figures / "full" / files[0]).is_file():
            links.append(f"[full](full/{files[0]})")
        lines.append(f'| <img src="{files[0]}" width="260" alt="{name}"> | **{name}**: {alt} | {"<br>".join(links)} |')
    tables = [f"[{name}]({notebook}/{name}.md)" for name in report.drawn["tables"]]
    return "\n".join([*lines, "", f"Tables: {', '.join(tables)}" if tables else "", ""])
