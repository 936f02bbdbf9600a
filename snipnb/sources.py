"""Which modules of the package some code can reach, and what their sources mean: results follow from those and no others."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
# What can reach a module that no import names: as attributes or imported names, and as plain names.
ANYTHING = {"__import__", "import_module", "run_module", "run_path", "spec_from_file_location", "snipnb"}
ANYTHING_NAMED = {"__import__", "import_module", "exec", "eval", "compile", "get_ipython"}


def digest(names: Iterable[str], *, package: Path = PACKAGE) -> str:
    """SHA-256 of what modules mean; comments, docstrings and layout do not count.

    Of ``__init__``, the imports from the package and ``__all__`` do not count either: they say where a name is from, not what it is.
    """
    parts = []
    for name in names:
        code = (package / f"{name}.py").read_text(encoding="utf-8")
        parts.append(f"{name}\0{meaning(code, of_init=name == '__init__')}\0")
    return hashlib.sha256("".join(parts).encode()).hexdigest()


@cache
def meaning(code: str, *, of_init: bool = False) -> str:
    """A source as text that changes when what it does changes; the code itself where it is not Python."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError):
        return code
    return _text([statement for statement in tree.body if not (of_init and _is_reexport(statement))])


def reached(cells: Iterable[str], *, package: Path = PACKAGE) -> list[str]:
    """Names of the modules that pieces of code reach through their imports, at whatever depth, sorted.

    A name imported from the package itself, or taken from it as in ``snipnb.lenet5``, leads to the module that ``__init__`` takes
    it from; ``__init__`` is always among them. Where the imports do not tell (code that is not plain Python, ``import_module``,
    ``import *``, the package handed on as an object), all modules are.

    Args:
        cells: Pieces of code that share their names, such as the cells of a notebook.
        package: Folder of the package.
    """
    everything = sorted(path.stem for path in package.glob("*.py"))
    found, waiting = {"__init__"}, [tuple(cells)]
    while waiting:
        names = _reached_at_once(waiting.pop(), package)
        if names is None:
            return everything
        waiting += [((package / f"{name}.py").read_text(encoding="utf-8"),) for name in names - found]
        found |= names
    return sorted(found)


def _reached_at_once(cells: tuple[str, ...], package: Path) -> set[str] | None:
    """The modules that some code names, or None if that cannot be told."""
    modules = {path.stem for path in package.glob("*.py")}
    found: set[str] = set()
    try:
        exports = _exports((package / "__init__.py").read_text(encoding="utf-8"))
        for name in _taken(cells):
            places = {name} & modules | exports.get(name, set())
            if not places or not places <= modules:
                return None
            found |= places
    except (SyntaxError, ValueError):
        return None
    return found


@cache
def _taken(cells: tuple[str, ...]) -> set[str]:
    """The names of modules, or names in ``__init__``, that code takes from the package; a ValueError if that cannot be told."""
    nodes = [node for cell in cells for node in ast.walk(ast.parse(cell))]
    taken: set[str] = set()
    packages, told = {"snipnb"}, set()  # what the package is called; nodes that say what is taken from it
    for node in nodes:
        match node:
            case ast.Import(names=names):
                packages |= {alias.asname for alias in names if alias.name == "snipnb" and alias.asname}
                parts = [alias.name.split(".") for alias in names]
                taken |= {inside[0] for first, *inside in parts if first == "snipnb" and inside}
            case ast.ImportFrom(names=names, level=level):
                if level > 1 or any(alias.name in ANYTHING | {"*"} for alias in names):
                    raise ValueError("an import of anything")
                if (module := _module_of(node)) is not None:
                    taken |= {module} if module else {alias.name for alias in names}
            case ast.Constant(value=str(text)) if text.split(".")[0] == "snipnb" and "." in text:
                raise ValueError("a module named by a string")
            case ast.Attribute(attr=name) if name in ANYTHING:
                raise ValueError("a call that may import anything")
    for node in nodes:
        match node:
            case ast.Attribute(value=ast.Name(id=name) as base, ctx=ast.Load(), attr=attribute) if name in packages:
                taken.add(attribute)
                told.add(base)
    if any(isinstance(n, ast.Name) and n.id in packages | ANYTHING_NAMED and n not in told for n in nodes):
        raise ValueError("the package as an object, or a call that may import anything")
    return taken


@cache
def _exports(code: str) -> dict[str, set[str]]:
    """Name -> modules that ``__init__`` takes it from; its own names are from itself."""
    exports: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.ImportFrom(names=names) if (module := _module_of(node)) is not None:
                for alias in names:
                    exports.setdefault(alias.asname or alias.name, set()).add(module or alias.name)
            case ast.Name(id=name, ctx=ast.Store()) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                exports.setdefault(name, set()).add("__init__")
    return exports


def _module_of(node: ast.ImportFrom) -> str | None:
    """The module of the package that an import is from, "" for the package itself, None for what is not of it."""
    first, *inside = [*["snipnb"] * node.level, *(node.module or "").split(".")]
    return "".join(inside[:1]) if first == "snipnb" else None


def _is_reexport(node: ast.stmt) -> bool:
    match node:
        case ast.ImportFrom():
            return _module_of(node) is not None
        case ast.Assign(targets=[ast.Name(id="__all__")]):
            return True
    return False


def _text(node: object) -> str:
    """A syntax tree as text, the same for every version of Python; strings that stand alone are left out."""
    if isinstance(node, list):
        kept = [n for n in node if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
        return f"[{','.join(map(_text, kept))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = ((name, getattr(node, name, None)) for name in node._fields)
    return f"{type(node).__name__}({','.join(f'{n}={_text(v)}' for n, v in fields if v is not None and v != [])})"
