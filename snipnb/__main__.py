"""Command line: ``python -m snipnb --help``."""

from __future__ import annotations

import argparse
import sys

from snipnb.data import DataUnavailableError, acquire_mnist
from snipnb.experiments import GROUP_SIZE
from snipnb.store import StoreError
from snipnb.training import Recipe


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="snipnb", description="SNIP network pruning, reproduced.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("data", help="fetch and verify MNIST")
    figures = commands.add_parser("figures", help="run the notebooks and publish figures, tables and verdicts")
    figures.add_argument("notebooks", nargs="*", help="names or leading digits; default all")
    figures.add_argument("--profile", default="default", help="profile name or path of a YAML file (default: default)")
    figures.add_argument("--force", action="store_true", help="run even what is up to date")
    run = commands.add_parser("run", help="do the training runs of a notebook, without it; resumes")
    run.add_argument("notebook", help="name or leading digits of a notebook that trains, e.g. 02")
    run.add_argument("--profile", default="default", help="profile name or path of a YAML file (default: default)")
    run.add_argument("--store", help="folder that keeps the runs (default: where the notebook looks)")
    run.add_argument("--jobs", type=int, help="groups at a time (default: one per processor; one on a GPU)")
    run.add_argument("--group-size", type=int, help="networks in a group (default: what the notebook takes)")
    run.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    bench = commands.add_parser("bench", help="measure speed, side by side; writes figures/bench/")
    bench.add_argument("--threads", type=int, default=2, help="processor threads (default: 2)")
    bench.add_argument("--only", help="one table alone, e.g. training")
    bench.add_argument("--sample", action="store_true", help="a quick look on the shipped sample, into build/bench/")
    soak = commands.add_parser(
        "soak", help="kill `figures` again and again in a copy, try other faults; compare with quiet runs"
    )
    soak.add_argument("--profile", default="smoke", help="profile name or path of a YAML file (default: smoke)")
    soak.add_argument("--kills", type=int, default=10, help="how many times (default: 10)")
    soak.add_argument("--seed", type=int, default=0, help="draw of the moments (default: 0)")
    soak.add_argument("--only", help="kills alone, faults alone, or some faults by words of their descriptions")
    report = commands.add_parser("report", help="ledger, executed notebooks and reference as static pages")
    report.add_argument("--profile", default="default", help="whose published figures (default: default)")
    report.add_argument("--output", help="folder for the pages (default: build/report)")
    readme = commands.add_parser("readme", help="bring the generated parts of README.md up to date")
    readme.add_argument("--check", action="store_true", help="change nothing; fail if something is out of date")
    given = parser.parse_args(arguments)
    try:
        return _COMMANDS[given.command](given)
    except (ValueError, OSError, DataUnavailableError, StoreError) as error:
        print(f"snipnb: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nsnipnb: interrupted; everything that was finished is kept", file=sys.stderr)
        return 130


def _data(_: argparse.Namespace) -> int:
    print(f"MNIST is complete and verified in {acquire_mnist()}")
    return 0


def _figures(given: argparse.Namespace) -> int:
    from snipnb import notebooks

    return 0 if notebooks.run(given.profile, given.notebooks, force=given.force) else 1


def _run(given: argparse.Namespace) -> int:
    from snipnb import grids, profiles
    from snipnb.experiments import run_grid
    from snipnb.paths import runs_dir

    profile = profiles.load_profile(given.profile)
    parameters = profiles.complete_by_default(profile, grids.name_of(given.notebook))
    wanted = grids.of_notebook(given.notebook, parameters)
    if not any(wanted):
        raise ValueError(f"profile {profile.name!r} has no runs for {given.notebook}: its num_runs is below 1")
    store = given.store or runs_dir(profile.name)
    group_size = parameters.get("group_size", GROUP_SIZE) if given.group_size is None else given.group_size
    options = {"jobs": given.jobs, "group_size": group_size, "device": given.device}
    for configs in wanted:
        print(f"{len(configs)} networks of {configs[0].recipe.epochs} epochs, kept in {store}", flush=True)
        runs = run_grid(configs, store=store, **options)
        last = runs[runs["epoch"] == runs["epoch"].max()].assign(recipe=[_described(c.recipe) for c in configs])
        means = 100 * last.pivot_table("test_error", ["recipe", "sparsity"], "criterion", sort=False)
        print("\nerror rate at the last epoch, mean over seeds, in %\n" + means.to_string(float_format="{:.3f}".format))
    return 0


def _described(recipe: Recipe) -> str:
    """What a table shows of a recipe."""
    falls = f" {recipe.decay:g}" if recipe.schedule in ("step", "exponential") else ""
    return f"{recipe.optimiser} {recipe.learning_rate:g} {recipe.schedule}{falls}"


def _bench(given: argparse.Namespace) -> int:
    from snipnb import bench, notebooks
    from snipnb.data import load_mnist
    from snipnb.paths import project_root

    root = project_root()
    if root is None:
        raise ValueError("bench writes into the project's folder; run it in a checkout")
    if given.threads < 1:
        raise ValueError(f"--threads is {given.threads}; accepted are integers from 1")
    images, labels = load_mnist("train", sample=given.sample)
    folder = root / ("build/bench" if given.sample else "figures/bench")
    written = bench.run(folder, images, labels, threads=given.threads, machine=notebooks.machine(), only=given.only)
    for path in written:
        if path.suffix == ".md":
            print(f"\n{path.relative_to(root)}\n\n{path.read_text()}", end="")
    return 0


def _soak(given: argparse.Namespace) -> int:
    from snipnb import soak

    return 0 if soak.run(given.profile, kills=given.kills, seed=given.seed, only=given.only) else 1


def _readme(given: argparse.Namespace) -> int:
    from snipnb import readme

    return 0 if readme.update(check=given.check) else 1


def _report(given: argparse.Namespace) -> int:
    from pathlib import Path

    from snipnb import site
    from snipnb.paths import project_root

    root = project_root()
    if root is None:
        raise ValueError("the report is made of the project's figures; run it in a checkout")
    target = Path(given.output).absolute() if given.output else root / "build" / "report"
    return site.main(root, target, profile=given.profile)


_COMMANDS = {
    "data": _data,
    "figures": _figures,
    "run": _run,
    "bench": _bench,
    "soak": _soak,
    "report": _report,
    "readme": _readme,
}

if __name__ == "__main__":
    sys.exit(main())
