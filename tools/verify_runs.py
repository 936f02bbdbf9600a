"""Train the first epoch of kept runs again, with today's code and their own recipe, and compare it with the record.

A kept run is found by its configuration, not by the code that made it. This command shows that the code still makes the same numbers.
Runs are trained again in the groups in which they were recorded. On the kind of machine that made them, with the same versions, the
first epoch comes out bit for bit. Elsewhere rounding differs and grows with every step, so the mean training loss may differ by 2 %,
and the error rate by one percentage point. Both tolerances are several times the differences that were seen between code paths.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
import torch

from snipnb.pruning.masks import collapsed_layers, num_kept
from snipnb.training.grid import keep_saliences, masks_of, train_group
from snipnb.training.loop import one_thread
from snipnb.training.recipe import Recipe
from snipnb.training.runs import RunConfig, run_key
from snipnb.training.store import Store

CRITERIA = ("exact", "snip", "random")  # by default, the first seed of each is verified
LOSS, ERROR = 0.02, 0.01  # tolerances on another kind of machine: relative, and as a fraction of the scored images


class _Enough(Exception):
    """The first epoch is done; the rows so far are its argument."""


class _FirstEpoch:
    """A checkpoint that ends training as soon as there is something to keep."""

    def load(self) -> None:
        return None

    def save(self, tensors: Mapping[str, torch.Tensor], rows: list[dict[str, list[float]]]) -> None:
        raise _Enough(rows[0])


def records_of(kept: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Record -> its runs, in the order in which they were trained together."""
    records: dict[str, list[Mapping[str, Any]]] = {}
    for run in kept.values():
        records.setdefault(run["record"], []).append(run)
    return records


def chosen(records: Mapping[str, list[Mapping[str, Any]]], *, everything: bool) -> list[str]:
    """The records to verify: all, or the records of the first seed of exact, SNIP and random pruning with the longest recipe.

    Raises:
        ValueError: If there is no such run.
    """
    if everything:
        return sorted(records)
    runs = [{**run["config"], **run["config"]["recipe"], "record": name} for name in records for run in records[name]]
    some = pd.DataFrame(runs).query("criterion in @CRITERIA and sparsity > 0")
    if some.empty:
        raise ValueError(f"there are no runs of {', '.join(CRITERIA)}; --all verifies every run")
    some = some.query("epochs == epochs.max()").query("init_seed == init_seed.min()")
    # One record per criterion is enough, the record with most of its runs: Figure 1's twelve sparsities.
    counts = some.groupby(["criterion", "record"]).size().reset_index(name="runs").sort_values(["runs", "record"])
    return sorted(counts.groupby("criterion")["record"].last().unique())


def config_of(run: Mapping[str, Any]) -> RunConfig:
    """The configuration of a kept run."""
    return RunConfig(**run["config"] | {"recipe": Recipe(**run["config"]["recipe"])})


def replay(runs: Sequence[Mapping[str, Any]], saliences: Path) -> pd.DataFrame:
    """Compare the first epoch of runs that were trained together with the record.

    Returns:
        One row per run: ``run`` (its key), ``loss_difference`` (of the mean training loss, relative), ``error_difference`` (of the error rate on
        scored images), ``same_mask`` (as many parameters kept, the same tensors collapsed).
    """
    os.environ["SNIPNB_PROGRESS"] = "0"
    configs = [config_of(run) for run in runs]
    with one_thread():
        masks = masks_of(configs, Store(saliences), "cpu")
        try:
            train_group(configs, masks, "cpu", _FirstEpoch())
        except _Enough as enough:
            (now,) = enough.args
    rows = []
    for k, (run, mask) in enumerate(zip(runs, masks, strict=True)):
        then = {column: run["history"][column][0] for column in ("train_loss", "test_error")}
        row = {"run": run["key"], "loss_difference": abs(now["train_loss"][k] / then["train_loss"] - 1)}
        row["error_difference"] = abs(now["test_error"][k] - then["test_error"])
        rows.append(row | {"same_mask": (num_kept(mask), collapsed_layers(mask)) == (run["kept"], run["collapsed"])})
    return pd.DataFrame(rows)


def verify(folder: Path, *, everything: bool = False) -> bool:
    """Replay kept runs and print the comparison; returns whether all are within the tolerance.

    Raises:
        ValueError: If there are no runs in the folder, or none of exact, SNIP or random pruning.
    """
    kept = Store(folder).runs()
    if not kept:
        raise ValueError(f"there are no kept runs in {folder}")
    if lost := [key for key, run in kept.items() if run_key(config_of(run)) != key]:
        print(f"{len(lost)} runs have an identity from other numerics or another version; the first is {lost[0]}")
        return False
    records = records_of(kept)
    names = chosen(records, everything=everything)
    configs = [config_of(run) for name in names for run in records[name]]
    print(f"{len(configs)} of {len(kept)} kept runs, in {len(names)} groups, train their first epoch again", flush=True)
    with tempfile.TemporaryDirectory(prefix="snipnb-") as temporary:
        keep_saliences(configs, Store(temporary), "cpu")
        work = (joblib.delayed(replay)(records[name], Path(temporary)) for name in names)
        done = joblib.Parallel(n_jobs=os.cpu_count(), batch_size=1, return_as="generator")(work)
        tables = []
        for name, table in zip(names, done, strict=True):
            print(f"  {name}: {_in_words(table)}", flush=True)
            tables.append(table)
    agree = bool(_within(pd.concat(tables)).all())
    print("all agree" if agree else "some disagree: fix the code, or raise NUMERICS or a criterion's version")
    return agree


def _within(table: pd.DataFrame) -> pd.Series:
    return table["same_mask"] & (table["loss_difference"] <= LOSS) & (table["error_difference"] <= ERROR)


def _in_words(table: pd.DataFrame) -> str:
    exact = (table["loss_difference"] == 0) & (table["error_difference"] == 0) & table["same_mask"]
    words = f"{len(table)} runs, {exact.sum()} bit for bit"
    if not exact.all():
        words += f"; largest difference {table['loss_difference'].max():.2g} of the loss, "
        words += f"{100 * table['error_difference'].max():.2g} points of the error rate"
    failed = table.loc[~_within(table), "run"]
    return words + (f"; OUTSIDE THE TOLERANCE: {', '.join(failed)}" if len(failed) else "")
