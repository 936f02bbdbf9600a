"""Small print and text alternatives of figures: templates in a study's ``captions.yaml``, filled with the values of a run."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from string import Formatter
from typing import Any

import yaml

from snipnb.publish.sentences import filled, shown


@cache
def load_captions(study: str) -> dict[str, dict[str, str]]:
    """Figure -> ``note`` (small print) and ``alt`` (text alternative), from the ``captions.yaml`` of a study's package."""
    return yaml.safe_load(resources.files(study).joinpath("captions.yaml").read_text(encoding="utf-8"))


def fill(study: str, figure: str, known: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, str]:
    """The ``note`` and ``alt`` of a figure.

    Args:
        study: Package, such as ``"snipnb.studies.lenet5_table"``.
        figure: Name of the figure.
        known: Field -> value, for fields that templates may use.
        given: Field -> value, for fields that the figure's own templates must use; they override known fields of the same name.

    Raises:
        ValueError: If the figure has no caption, a field of the caption has no value, or a given value has no field.
    """
    templates = load_captions(study).get(figure)
    if templates is None:
        raise ValueError(f"captions.yaml of {study} has no figure {figure!r}; add its note and alt there")
    fields = {name for text in templates.values() for _, name, _, _ in Formatter().parse(text) if name is not None}
    values = {**known, **given}
    if missing := sorted(fields - values.keys()):
        raise ValueError(f"the caption of {figure!r} in {study} has no value for {', '.join(missing)}")
    if unknown := sorted(given.keys() - fields):
        raise ValueError(f"the caption of {figure!r} in {study} has no field {', '.join(unknown)}")
    return {kind: filled(text, lambda name, form: shown(values[name], form)) for kind, text in templates.items()}
