"""Lines of code of the package and of the tools, without docstrings, comments and blank lines, as the formatter leaves them."""

from __future__ import annotations

import argparse
import ast
import io
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = {"installed": "snipnb", "tools": "tools"}
LAYOUT = {getattr(tokenize, name) for name in ("COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENDMARKER")}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_lines(text: str) -> int:
    """Lines that hold code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in LAYOUT:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node):
            lines -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len(lines)


def main(arguments: list[str] | None = None) -> int:
    """Print the count of every part, or of every file; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", action="store_true", help="count every file")
    given = parser.parse_args(arguments)
    total = 0
    for part, folder in PARTS.items():
        counts = {path: code_lines(path.read_text(encoding="utf-8")) for path in sorted((ROOT / folder).rglob("*.py"))}
        total += sum(counts.values())
        print(f"{sum(counts.values()):6,} {part}, {len(counts)} modules")
        for path, count in sorted(counts.items(), key=lambda item: -item[1]) if given.files else ():
            print(f"{count:6,}   {path.relative_to(ROOT)}")
    print(f"{total:6,} in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
