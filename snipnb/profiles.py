"""Profiles: what each notebook is run with. One YAML file each; unknown names and wrong types are errors."""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from snipnb.paths import resource

SECTIONS = ("about", "common", "notebooks")


@dataclass(frozen=True)
class Profile:
    """A named set of notebook parameters.

    Attributes:
        name: Stem of the file; every notebook has it as its parameter ``profile``.
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
    """Read a profile by name, or by the path of a ``.yaml`` file of one's own.

    Raises:
        ValueError: If there is no such profile, or the file is not a mapping with the sections ``about``, ``common`` and
            ``notebooks``.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else resource("profiles", f"{name}.yaml")
    if not path.is_file():
        raise ValueError(
            f"there is no profile {name!r}; there are {', '.join(available_profiles())}, or give a .yaml file"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"profile {path} is not valid YAML: {error}") from None
    if not isinstance(content, dict) or set(content) - set(SECTIONS) or "notebooks" not in content:
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"profile {path} has {found}; accepted are the sections {', '.join(SECTIONS)}")
    common, notebooks = content.get("common") or {}, content["notebooks"] or {}
    sections = {"common": common, "notebooks": notebooks, **(notebooks if isinstance(notebooks, dict) else {})}
    for section, values in sections.items():
        if values is not None and not isinstance(values, dict):
            raise ValueError(f"section {section!r} of profile {path} is {values!r}; a mapping name: value is needed")
    return Profile(
        path.stem, str(content.get("about", "")), common, {key: value or {} for key, value in notebooks.items()}
    )


def declared_parameters(notebook: Path) -> dict[str, Any]:
    """Names and default values of a notebook's cell tagged ``parameters``, which holds literals only.

    Raises:
        ValueError: If there is not exactly one such cell, or it holds anything but ``name = literal``.
    """
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise ValueError(f"{notebook.name} has {len(tagged)} cells tagged 'parameters'; it needs exactly one")
    values = {}
    for statement in ast.parse("".join(tagged[0]["source"])).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                pass
            case _:
                name, value = "", statement
        try:
            values[name] = ast.literal_eval(value)
        except ValueError:
            message = f"{notebook.name}: {ast.unparse(statement)!r} in its parameters is not 'name = literal'"
            raise ValueError(message) from None
    return values


def check_parameters(profile: Profile, notebooks: list[Path]) -> None:
    """Raise ValueError unless every name that the profile sets is one that the notebook declares, in its type."""
    known = {path.stem for path in notebooks}
    if unknown := sorted(set(profile.notebooks) - known):
        raise ValueError(f"profile {profile.name!r} has sections {unknown}; the notebooks are {sorted(known)}")
    for path in notebooks:
        declared, given = declared_parameters(path), profile.parameters(path.stem)
        if unknown := sorted(set(given) - set(declared)):
            raise ValueError(
                f"profile {profile.name!r} sets {unknown} for {path.stem}; its parameters are {', '.join(sorted(declared))}"
            )
        for name, value in given.items():
            if not _same_type(value, declared[name]):
                hint = "; YAML needs a point and a sign in 1.0e-3" if isinstance(value, str) else ""
                raise ValueError(
                    f"profile {profile.name!r} sets {name} = {value!r} for {path.stem}; "
                    f"accepted is a {type(declared[name]).__name__}, as in {declared[name]!r}{hint}"
                )


def _same_type(value: Any, example: Any) -> bool:
    if isinstance(value, bool) or isinstance(example, bool):
        return isinstance(value, bool) and isinstance(example, bool)
    if isinstance(example, float):
        return isinstance(value, (int, float))
    if isinstance(example, list):
        return isinstance(value, list) and all(_same_type(v, e) for v in value for e in example[:1])
    return isinstance(value, type(example))
