"""Profiles: the parameters that notebooks run with, one YAML file per profile. Unknown names and wrong types are errors."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from snipnb._files import resource

SECTIONS = ("about", "common", "notebooks")
# Folders of figures/, and our own profiles.
RESERVED = ("default", "smoke", "full", "notebooks", "claims", "drawn", "bench")
KINDS = {int: "an integer", float: "a number", str: "text", bool: "true or false", list: "a list", dict: "a mapping"}
MOST_THREADS = 1024
REQUIRED = ("profile", "threads", "sample")
# What reading YAML raises: its constructors trust that a tag fits its value, and that nothing is nested too deeply.
_NOT_YAML = (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True)
class Profile:
    """A named set of notebook parameters.

    Attributes:
        name: Stem of the file; every notebook gets it as its parameter ``profile``.
        about: One line on what the profile is for.
        common: Parameters that every notebook declares.
        notebooks: Notebook -> its own parameters.
    """

    name: str
    about: str
    common: dict[str, Any]
    notebooks: dict[str, dict[str, Any]]

    def parameters(self, notebook: str) -> dict[str, Any]:
        """All parameters that the profile sets for one notebook."""
        return {"profile": self.name, **self.common, **self.notebooks.get(notebook, {})}


def available_profiles() -> list[str]:
    """Names of the profiles that ship with the package."""
    return sorted(path.stem for path in resource("profiles").glob("*.yaml"))


def load_profile(name: str) -> Profile:
    """Read a profile by name, or by the path of your own ``.yaml`` file.

    Raises:
        ValueError: If there is no such profile, or the file is not a mapping with the sections ``about``, ``common`` and
            ``notebooks``.
    """
    own = name.endswith((".yaml", ".yml"))
    path = Path(name) if own else resource("profiles", f"{name}.yaml")
    if not (own and path.is_file()) and name not in available_profiles():
        raise ValueError(
            f"there is no profile {name!r}; the profiles are {', '.join(available_profiles())}, or give a .yaml file"
        )
    if own and (path.stem in RESERVED or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,60}", path.stem)):
        raise ValueError(
            f"a profile file cannot be called {path.name!r}, as results go to a folder of that name; use letters, digits, - and _, "
            f"but none of the names {', '.join(RESERVED)}"
        )
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except _NOT_YAML as error:
        raise ValueError(f"profile {path} is not valid YAML: {error}") from None
    if not isinstance(content, dict) or set(content) - set(SECTIONS) or "notebooks" not in content:
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"profile {path} has {found}; the accepted sections are {', '.join(SECTIONS)}")
    common, notebooks = _section(content, "common", path), _section(content, "notebooks", path)
    notebooks = {key: _section(notebooks, key, path) for key in notebooks}
    for section, values in {"common": common, **notebooks}.items():
        if "profile" in values:
            raise ValueError(f"section {section!r} of profile {path} sets 'profile', which is always the file's name")
    return Profile(path.stem, str(content.get("about", "")), common, notebooks)


def declared_parameters(notebook: Path) -> dict[str, Any]:
    """Names and default values in a notebook's cell tagged ``parameters``, which holds only literals.

    Raises:
        ValueError: If there is not exactly one such cell, or if it holds anything but ``name = literal``.
    """
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{notebook.name} is not a notebook ({type(error).__name__}: {error})") from None
    if len(tagged) != 1:
        raise ValueError(f"{notebook.name} has {len(tagged)} cells tagged 'parameters'; it needs exactly one")
    values = {}
    try:
        statements: list[Any] = ast.parse("".join(tagged[0]["source"])).body
    except SyntaxError as error:
        raise ValueError(f"{notebook.name}: the parameters cell is not valid Python: {error}") from None
    for statement in statements:
        try:
            (target,) = statement.targets
            values[target.id] = ast.literal_eval(statement.value)
            json.dumps(values[target.id], allow_nan=False)  # what a profile can hold
        except (AttributeError, ValueError, TypeError):  # also of other statements
            message = f"{notebook.name}: {ast.unparse(statement)!r} in its parameters is not 'name = literal'"
            raise ValueError(message) from None
    if missing := [name for name in REQUIRED if name not in values]:
        raise ValueError(f"{notebook.name} has no parameters {missing}; every notebook needs {', '.join(REQUIRED)}")
    return values


def check_parameters(profile: Profile, notebooks: list[Path]) -> None:
    """Raise ValueError unless the notebooks declare every parameter that the profile sets, with the same type."""
    _check_sections(profile, {path.stem for path in notebooks})
    for path in notebooks:
        complete(profile, path.stem, declared_parameters(path))


def complete(profile: Profile, notebook: str, declared: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters of a notebook: the profile's values, else the declared values.

    Raises:
        ValueError: If the profile sets a parameter that is not declared, or with another type.
    """
    given = profile.parameters(notebook)
    if unknown := sorted(set(map(str, given)) - set(declared)):
        raise ValueError(
            f"profile {profile.name!r} sets {unknown} for {notebook}; its parameters are {', '.join(sorted(declared))}"
        )
    for name, value in given.items():
        if not _same_type(value, declared[name]):
            hint = "; YAML reads 1e-3 as text and 1.0e-3 as a number" if isinstance(value, str) else ""
            raise ValueError(
                f"profile {profile.name!r} sets {name} = {value!r} for {notebook}; "
                f"it must be {KINDS[type(declared[name])]}, such as {declared[name]!r}{hint}"
            )
    if not 1 <= given.get("threads", 1) <= MOST_THREADS:
        raise ValueError(
            f"profile {profile.name!r} sets threads = {given['threads']}; it must be from 1 to {MOST_THREADS}"
        )
    return {**declared, **given}


def complete_by_default(profile: Profile, notebook: str) -> dict[str, Any]:
    """As :func:`complete`, without the notebook's file: the default profile has the parameters of a notebook that is opened by hand.

    Raises:
        ValueError: As :func:`complete`; or if the profile has sections that are not notebooks.
    """
    default = load_profile("default")
    _check_sections(profile, set(default.notebooks))
    return complete(profile, notebook, default.parameters(notebook))


def notebook_named(name: str, known: Iterable[str] | None = None) -> str:
    """A notebook's full name, from its name, the name of its file or its leading digits.

    Args:
        name: What was given.
        known: Names of all notebooks; default the notebooks of the default profile.

    Raises:
        ValueError: If there is no such notebook.
    """
    known = list(load_profile("default").notebooks if known is None else known)
    for notebook in known:
        if name in (notebook, f"{notebook}.ipynb", notebook.split("_")[0]):
            return notebook
    raise ValueError(f"there is no notebook {name!r}; the notebooks are {', '.join(known)}")


def _check_sections(profile: Profile, known: set[str]) -> None:
    if unknown := sorted(set(map(str, profile.notebooks)) - known):
        raise ValueError(f"profile {profile.name!r} has sections {unknown}; the notebooks are {sorted(known)}")


def _same_type(value: Any, example: Any) -> bool:
    if bool in (type(value), type(example)):
        return type(value) is type(example)
    if isinstance(example, float):
        return isinstance(value, (int, float)) and math.isfinite(value)
    if isinstance(example, list):
        return isinstance(value, list) and all(_same_type(v, e) for v in value for e in example[:1] or [0.0])
    return isinstance(value, type(example))


def _section(content: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    """A section of a profile, which must be a mapping; an absent section counts as an empty mapping."""
    values = content.get(key)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"section {key!r} of profile {path} must be a mapping name: value; got {values!r}")
    return values


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, except that a duplicate key is an error; YAML keeps the last one silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := sorted({str(key) for key in keys if keys.count(key) > 1}):
            raise yaml.constructor.ConstructorError(None, None, f"{', '.join(twice)} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)
