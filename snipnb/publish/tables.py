"""How tables read, as ``tables.yaml`` says: column names become headings, pairs of bounds become intervals, code names become words."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import yaml

from snipnb._files import resource
from snipnb.publish import sentences, style
from snipnb.publish.published import published_label

MOST_ROWS = 8  # that a notebook shows
WORDS: dict[str, Callable[[str], str]] = {  # column -> its values as a reader knows them
    "layer": published_label,
    "init": style.init_label,
    **dict.fromkeys(
        ("criterion", "ranking", "salience", "approximation", "tried", "rule"), lambda name: style.look(name).label
    ),
}


@dataclass(frozen=True)
class Table:
    """A table in Markdown, as Jupyter shows it."""

    text: str

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"text/markdown": self.text, "text/plain": self.text}, {}


@cache
def load_tables() -> dict[str, Any]:
    """``tables.yaml``: general ``headings``, ``words``, ``pairs`` and ``p_values``, and settings of single ``tables``."""
    return yaml.safe_load(resource("tables.yaml").read_text(encoding="utf-8"))


def readable(frame: pd.DataFrame, notebook: str, name: str, *, digits: int) -> pd.DataFrame:
    """All rows of a table as texts under headings; ``attrs["numbers"]`` says for each column whether it holds numbers.

    Args:
        frame: The table as its CSV holds it.
        notebook: Stem of the notebook's file.
        name: Name of the table.
        digits: Significant digits of a number.
    """
    known, own = load_tables(), _own(notebook, name)
    headings, words = ({**known[key], **own.get(key, {})} for key in ("headings", "words"))
    hidden = {*own.get("hide", []), *(["layer"] if "label" in frame else [])}
    texts = {}
    for column in (column for column in frame if column not in hidden):
        values = frame[column] * 100 if column in own.get("percent", []) else frame[column]
        word = sentences.p_value if column in known["p_values"] else WORDS.get(column)
        found = [words.get(value) or _cell(value, digits, word) for value in values]
        texts[column] = [style.with_minus(text) for text in found]
    for low, high, heading in [*own.get("pairs", []), *known["pairs"]]:
        ends = {column: column.removesuffix(low) + high for column in texts if column.endswith(low)}
        for column, upper in ends.items():
            if upper in texts and (low.startswith("_") or column == low):
                between = zip(texts[column], texts.pop(upper), strict=True)
                texts[column] = ["" if "" in pair else "{} to {}".format(*pair) for pair in between]
                headings[column] = heading
    shown = pd.DataFrame(texts, dtype=object)
    shown.attrs["numbers"] = [pd.api.types.is_numeric_dtype(frame[column]) for column in shown]
    return shown.set_axis([headings.get(column, column.replace("_", " ")) for column in shown], axis=1)


def in_notebook(frame: pd.DataFrame, shown: pd.DataFrame, notebook: str, name: str) -> Table:
    """What a notebook shows of a table: all rows of a short table, else the rows that ``tables.yaml`` asks for, at most :data:`MOST_ROWS`.

    Args:
        frame: As for :func:`readable`.
        shown: The output of :func:`readable`.
        notebook: As for :func:`readable`.
        name: As for :func:`readable`.
    """
    own, rows = _own(notebook, name), list(range(len(frame)))
    if not len(frame):
        return Table(own.get("empty", "No rows."))
    if len(frame) > MOST_ROWS:
        found = frame.reset_index(drop=True).query(own["rows"], engine="python").index if "rows" in own else []
        rows = (list(found) or rows)[:MOST_ROWS]
    text = markdown(shown.iloc[rows])
    if len(rows) < len(frame):
        text += f"\n\n{len(rows)} of {len(frame)} rows; all of them are in `{notebook}/{name}.md`."
    return Table(text)


def markdown(shown: pd.DataFrame) -> str:
    """A table of :func:`readable` in Markdown; columns of numbers are aligned to the right."""
    texts = shown.map(escape).set_axis([escape(heading) for heading in shown], axis=1)
    align = ["right" if number else "left" for number in shown.attrs["numbers"]]
    return str(texts.to_markdown(index=False, disable_numparse=True, colalign=align))


def escape(text: str) -> str:
    """The text with Markdown's special characters escaped."""
    return re.sub(r"([\\|*_$<~`])", r"\\\1", text)


def _cell(value: Any, digits: int, word: Callable[[Any], str] | None) -> str:
    """A value as text: empty if missing; numbers with this many significant digits, in powers of ten below 0.001 and from 10⁹."""
    if pd.isna(value):
        return ""
    if word:
        return word(value)
    if isinstance(value, str):
        return value
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    number = float(value)
    if isinstance(value, int | np.integer):
        return f"{value:,}" if abs(number) >= 10_000 else str(value)
    if 0 < abs(number) < 1e-3 or abs(number) >= 1e9:
        return sentences.power(number)
    return _cell(round(number), digits, None) if round(abs(number)) >= 10**digits else f"{number:.{digits}g}"


def _own(notebook: str, name: str) -> Mapping[str, Any]:
    return load_tables()["tables"].get(notebook, {}).get(name, {})
