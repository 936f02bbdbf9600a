"""Commands that make calls: ``python -m tools --help``."""

from __future__ import annotations

import argparse
import sys

from snipnb.data import DataUnavailableError
from snipnb.training.store import StoreError
from tools import checkout


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="tools", description="Commands that make calls.")
    commands = parser.add_subparsers(dest="command", required=True)
    figures = commands.add_parser("figures", help="run the notebooks and publish figures, tables and verdicts")
    figures.add_argument("notebooks", nargs="*", help="names or leading digits; default all")
    figures.add_argument("--profile", default="default", help="profile name or path of a YAML file (default: default)")
    figures.add_argument("--force", action="store_true", help="run notebooks that are up to date, too")
    figures.add_argument("--fresh", action="store_true", help="run everything, and use no kept runs or saliences")
    bench = commands.add_parser("bench", help="measure speed, side by side; writes figures/bench/")
    bench.add_argument("--threads", type=int, default=2, help="processor threads (default: 2)")
    bench.add_argument("--only", help="measure this table only, e.g. training")
    readme = commands.add_parser("readme", help="update the generated parts of README.md")
    readme.add_argument("--check", action="store_true", help="change nothing; fail if something is out of date")
    given = parser.parse_args(arguments)
    try:
        return _COMMANDS[given.command](given)
    except (ValueError, OSError, DataUnavailableError, StoreError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; everything finished is kept", file=sys.stderr)
        return 130


def _figures(given: argparse.Namespace) -> int:
    from tools import runner

    return 0 if runner.run(given.profile, given.notebooks, force=given.force, fresh=given.fresh) else 1


def _bench(given: argparse.Namespace) -> int:
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
    return 0


def _readme(given: argparse.Namespace) -> int:
    from tools import readme

    return 0 if readme.update(check=given.check) else 1


_COMMANDS = {"figures": _figures, "bench": _bench, "readme": _readme}

if __name__ == "__main__":
    sys.exit(main())
