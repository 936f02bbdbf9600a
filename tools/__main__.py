"""Commands that make calls: ``python -m tools --help``. All but ``make verify``, which needs no torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from snipnb._progress import print_anywhere
from snipnb.data import DataUnavailableError, load_mnist
from snipnb.publish.profiles import load_profile
from snipnb.training.provenance import machine
from snipnb.training.store import StoreError
from tools import checkout


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="tools", description="Commands that make calls.")
    add = parser.add_subparsers(dest="command", required=True).add_parser
    run = add("figures", help="run the notebooks and publish figures, tables and verdicts")
    run.add_argument("--force", action="store_true", help="run notebooks that are up to date, too")
    run.add_argument("--fresh", action="store_true", help="run everything, and use no kept runs or saliences")
    draw = add("redraw", help="redraw figures and tables, and judge again, from what is published")
    for command in (run, draw):
        command.add_argument("notebooks", nargs="*", help="names or leading digits; default all")
    one = add("claim", help="run the notebook that decides a claim, and compare the claim's row with the published one")
    one.add_argument("claim", help="for instance C20")
    for command in (run, draw, one):
        what = "profile name or path of a YAML file (default: default)"
        command.add_argument("--profile", default="default", help=what)
    add("status", help="say which published notebooks are out of date, and why")
    runs = add("verify-runs", help="train the first epoch of kept runs again, and compare it with the records")
    runs.add_argument("folder", nargs="?", type=Path, help="folder of records (default: those kept with the project)")
    runs.add_argument("--all", action="store_true", help="every kept run; half an hour on two cores")
    speed = add("bench", help="measure speed, side by side; writes figures/bench/")
    speed.add_argument("--threads", type=int, default=2, help="processor threads (default: 2)")
    add("readme", help="update the generated parts of README.md")
    add("explorer", help="write the explorer, one page").add_argument("target", type=Path, help="path of the page")
    given = parser.parse_args(arguments)
    print_anywhere()
    try:
        return 0 if _COMMANDS[given.command](given) else 1
    except (ValueError, OSError, DataUnavailableError, StoreError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; everything finished is kept", file=sys.stderr)
        return 130


def _tool(name: str) -> Any:
    """A module of tools, imported when its command is called: together they would take seconds."""
    return import_module(f"tools.{name}")


def _status(_: argparse.Namespace) -> bool:
    """Print a line for each notebook of each published profile."""
    root, runner, state = checkout(), _tool("runner"), _tool("state")
    for name in ("default", "full"):
        profile = load_profile(name)
        place = state.place_of(profile, root)
        print(f"{name}, in {place.published.relative_to(root)}/:")
        for path in runner.find_notebooks(root):
            mark = state.fingerprint(path, runner.parameters_of(path, profile))
            print(f"  {path.stem:<24} {state.out_of_date(path.stem, mark, place) or 'up to date'}")
    return True


def _bench(given: argparse.Namespace) -> bool:
    if given.threads < 1:
        raise ValueError(f"--threads must be at least 1; got {given.threads}")
    root, bench = checkout(), _tool("bench")
    tables = bench.tables(*load_mnist("train"), threads=given.threads)
    for path in bench.run(root / "figures" / "bench", tables, threads=given.threads, machine=machine()):
        if path.suffix == ".md":
            print(f"\n{path.relative_to(root)}\n\n{path.read_text()}", end="")
    return True


def _explorer(given: argparse.Namespace) -> bool:
    _tool("explorer").write(given.target)
    print(given.target)
    return True


_COMMANDS: dict[str, Callable[[argparse.Namespace], bool]] = {
    "figures": lambda g: _tool("runner").run(g.profile, g.notebooks, force=g.force, fresh=g.fresh),
    "redraw": lambda g: _tool("redraw").redraw(checkout(), g.profile, g.notebooks),
    "claim": lambda g: _tool("claim").again(g.claim, g.profile),
    "status": _status,
    "verify-runs": lambda g: _tool("verify_runs").verify(
        g.folder or checkout() / "figures/full/runs", everything=g.all
    ),
    "bench": _bench,
    "readme": lambda _: _tool("readme").update(),
    "explorer": _explorer,
}

if __name__ == "__main__":
    sys.exit(main())
