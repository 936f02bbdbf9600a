"""Commands that make calls: ``python -m tools --help``. All but ``make verify``, which needs no torch."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from snipnb._progress import print_anywhere
from snipnb.data import DataUnavailableError
from snipnb.training.store import StoreError
from tools import checkout


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="tools", description="Commands that make calls.")
    add = parser.add_subparsers(dest="command", required=True).add_parser
    figures = add("figures", help="run the notebooks and publish figures, tables and verdicts")
    figures.add_argument("--force", action="store_true", help="run notebooks that are up to date, too")
    figures.add_argument("--fresh", action="store_true", help="run everything, and use no kept runs or saliences")
    redraw = add("redraw", help="redraw figures and tables, and judge again, from what is published")
    for command in (figures, redraw):
        command.add_argument("notebooks", nargs="*", help="names or leading digits; default all")
    claim = add(
        "claim", help="run the notebook that decides a claim, and compare the claim's row with the published one"
    )
    claim.add_argument("claim", help="for instance C20")
    for command in (figures, redraw, claim):
        what = "profile name or path of a YAML file (default: default)"
        command.add_argument("--profile", default="default", help=what)
    add("status", help="say which published notebooks are out of date, and why")
    runs = add("verify-runs", help="train the first epoch of kept runs again, and compare it with the records")
    runs.add_argument("folder", nargs="?", type=Path, help="folder of records (default: those kept with the project)")
    runs.add_argument("--all", action="store_true", help="every kept run; half an hour on two cores")
    bench = add("bench", help="measure speed, side by side; writes figures/bench/")
    bench.add_argument("--threads", type=int, default=2, help="processor threads (default: 2)")
    bench.add_argument("--only", help="measure this table only, e.g. training")
    readme = add("readme", help="update the generated parts of README.md")
    readme.add_argument("--check", action="store_true", help="change nothing; fail if something is out of date")
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


def _figures(given: argparse.Namespace) -> bool:
    from tools import runner

    return runner.run(given.profile, given.notebooks, force=given.force, fresh=given.fresh)


def _redraw(given: argparse.Namespace) -> bool:
    from tools import redraw

    return redraw.redraw(checkout(), given.profile, given.notebooks)


def _claim(given: argparse.Namespace) -> bool:
    from tools import claim

    return claim.again(given.claim, given.profile)


def _status(given: argparse.Namespace) -> bool:
    from tools import status

    print("\n".join(status.status(checkout())))
    return True


def _verify_runs(given: argparse.Namespace) -> bool:
    from tools import verify_runs

    return verify_runs.verify(given.folder or checkout() / "figures" / "full" / "runs", everything=given.all)


def _bench(given: argparse.Namespace) -> bool:
    from snipnb.data import load_mnist
    from snipnb.training.provenance import machine
    from tools import bench

    if given.threads < 1:
        raise ValueError(f"--threads must be at least 1; got {given.threads}")
    root, (images, labels) = checkout(), load_mnist("train")
    folder = root / "figures" / "bench"
    for path in bench.run(folder, images, labels, threads=given.threads, machine=machine(), only=given.only):
        if path.suffix == ".md":
            print(f"\n{path.relative_to(root)}\n\n{path.read_text()}", end="")
    return True


def _readme(given: argparse.Namespace) -> bool:
    from tools import readme

    return readme.update(check=given.check)


def _explorer(given: argparse.Namespace) -> bool:
    from tools import explorer

    explorer.write(given.target)
    print(given.target)
    return True


_COMMANDS = {
    "figures": _figures,
    "redraw": _redraw,
    "claim": _claim,
    "status": _status,
    "verify-runs": _verify_runs,
    "bench": _bench,
    "readme": _readme,
    "explorer": _explorer,
}

if __name__ == "__main__":
    sys.exit(main())
