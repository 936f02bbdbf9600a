"""Command line: ``python -m snipnb --help``."""

from __future__ import annotations

import argparse
import sys

from snipnb._progress import print_anywhere
from snipnb.data import DataUnavailableError, acquire_mnist
from snipnb.training.recipe import Recipe
from snipnb.training.store import StoreError


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="snipnb", description="SNIP network pruning, reproduced.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("data", help="fetch and verify MNIST")
    run = commands.add_parser("run", help="do the training runs of a notebook without the notebook; resumes")
    run.add_argument("notebook", help="name or leading digits of a notebook that trains, e.g. 02")
    run.add_argument("--profile", default="default", help="profile name or path of a YAML file (default: default)")
    run.add_argument("--store", help="folder for the runs (default: where the notebook looks for them)")
    run.add_argument("--jobs", type=int, help="groups trained at a time (default: one per processor; one on a GPU)")
    run.add_argument("--device", help="cpu or cuda (default: cuda if available)")
    given = parser.parse_args(arguments)
    print_anywhere()
    try:
        return _COMMANDS[given.command](given)
    except (ValueError, OSError, DataUnavailableError, StoreError) as error:
        print(f"snipnb: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nsnipnb: interrupted; all finished runs are kept", file=sys.stderr)
        return 130


def _data(_: argparse.Namespace) -> int:
    print(f"MNIST is complete and verified in {acquire_mnist()}")
    return 0


def _run(given: argparse.Namespace) -> int:
    from snipnb._files import runs_dir
    from snipnb.publish import profiles
    from snipnb.studies import grids_of
    from snipnb.training.grid import run_grid

    profile = profiles.load_profile(given.profile)
    notebook = profiles.notebook_named(given.notebook)
    wanted = grids_of(notebook, profiles.complete_by_default(profile, notebook))
    if not wanted:
        raise ValueError(f"profile {profile.name!r} has no runs for {given.notebook}: its num_runs is below 1")
    store = given.store or runs_dir(profile.name)
    for configs in wanted:
        print(f"{len(configs)} networks of {configs[0].recipe.epochs} epochs, kept in {store}", flush=True)
        runs = run_grid(configs, store=store, jobs=given.jobs, device=given.device)
        last = runs[runs["epoch"] == runs["epoch"].max()].assign(recipe=[_described(c.recipe) for c in configs])
        means = 100 * last.pivot_table("test_error", "criterion", ["model", "recipe", "sparsity"], sort=False)
        print("\nerror rate at the last epoch, mean over seeds, in %\n" + means.to_string(float_format="{:.3f}".format))
    return 0


def _described(recipe: Recipe) -> str:
    """What a table shows of a recipe."""
    falls = f" {recipe.decay:g}" if recipe.schedule in ("step", "exponential") else ""
    return f"{recipe.optimiser} {recipe.learning_rate:g} {recipe.schedule}{falls}"


_COMMANDS = {"data": _data, "run": _run}

if __name__ == "__main__":
    sys.exit(main())
