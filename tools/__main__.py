"""What make calls: ``python -m tools --help``."""

from __future__ import annotations

import argparse
import sys

from snipnb.data import DataUnavailableError
from snipnb.training.store import StoreError


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="tools", description="What make calls.")
    commands = parser.add_subparsers(dest="command", required=True)
    figures = commands.add_parser("figures", help="run the notebooks and publish figures, tables and verdicts")
    figures.add_argument("notebooks", nargs="*", help="names or leading digits; default all")
    figures.add_argument("--profile", default="default", help="profile name or path of a YAML file (default: default)")
    figures.add_argument("--force", action="store_true", help="run even what is up to date")
    figures.add_argument("--fresh", action="store_true", help="use no kept runs and saliences, and run everything")
    bench = commands.add_parser("bench", help="measure speed, side by side; writes figures/bench/")
    bench.add_argument("--threads", type=int, default=2, help="processor threads (default: 2)")
    bench.add_argument("--only", help="one table alone, e.g. training")
    bench.add_argument("--sample", action="store_true", help="a quick look on the shipped sample, into build/bench/")
    report = commands.add_parser("report", help="ledger, executed notebooks and reference as static pages")
    report.add_argument("--profile", default="default", help="whose published figures (default: default)")
    report.add_argument("--output", help="folder for the pages (default: build/report)")
    readme = commands.add_parser("readme", help="bring the generated parts of README.md up to date")
    readme.add_argument("--check", action="store_true", help="change nothing; fail if something is out of date")
    given = parser.parse_args(arguments)
    try:
        return _COMMANDS[given.command](given)
    except (ValueError, OSError, DataUnavailableError, StoreError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; everything that was finished is kept", file=sys.stderr)
        return 130


def _figures(given: argparse.Namespace) -> int:
    from tools import runner

    return 0 if runner.run(given.profile, given.notebooks, force=given.force, fresh=given.fresh) else 1


def _bench(given: argparse.Namespace) -> int:
    from snipnb._files import project_root
    from snipnb.data import load_mnist
    from snipnb.training.provenance import machine
    from tools import bench

    root = project_root()
    if root is None:
        raise ValueError("bench writes into the project's folder; run it in a checkout")
    if given.threads < 1:
        raise ValueError(f"--threads is {given.threads}; accepted are integers from 1")
    images, labels = load_mnist("train", sample=given.sample)
    folder = root / ("build/bench" if given.sample else "figures/bench")
    written = bench.run(folder, images, labels, threads=given.threads, machine=machine(), only=given.only)
    for path in written:
        if path.suffix == ".md":
            print(f"\n{path.relative_to(root)}\n\n{path.read_text()}", end="")
    return 0


def _readme(given: argparse.Namespace) -> int:
    from tools import readme

    return 0 if readme.update(check=given.check) else 1


def _report(given: argparse.Namespace) -> int:
    from pathlib import Path

    from snipnb._files import project_root
    from tools import site

    root = project_root()
    if root is None:
        raise ValueError("the report is made of the project's figures; run it in a checkout")
    target = Path(given.output).absolute() if given.output else root / "build" / "report"
    return site.main(root, target, profile=given.profile)


_COMMANDS = {"figures": _figures, "bench": _bench, "report": _report, "readme": _readme}

if __name__ == "__main__":
    sys.exit(main())
