"""Grids of training runs: one call trains hundreds of pruned networks, spread over processors, and never loses a finished run.

A run is identified by its configuration (:func:`run_key`), not by the code that made it. A finished run is found whatever grid it was part of.
Missing runs are trained in groups of at most ``group_size`` runs that share model, seeds, split, epochs and batch size. The whole grid fixes
their order. A group saves its state after every epoch and is recorded when it is finished (``store.py``). Running a grid again resumes an
unfinished group after its last epoch, and ends in the same table. Each group is trained on one processor thread, so results do not depend
on the number of processors.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, fields, replace
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from snipnb._checks import Salience, check_choice, check_integer, check_names, check_type
from snipnb._progress import DELAY_SECONDS, note, progress_stream
from snipnb.data import OWN_SPLITS, SPLITS, Split, load_split
from snipnb.networks import MODELS, set_running_statistics
from snipnb.pruning.criteria import CRITERIA, Criterion, Start, mask_for, ranked_by, salience_for
from snipnb.pruning.masks import Mask, collapsed_layers, num_kept
from snipnb.training.loop import Checkpoint, one_thread, train_together
from snipnb.training.provenance import trained_by
from snipnb.training.recipe import Recipe
from snipnb.training.runs import (
    GROUP_SIZE,
    SHIPPED,
    SHIPPED_MODELS,
    RunConfig,
    group_name,
    groups_of,
    run_key,
    short_digest,
    unversioned,
)
from snipnb.training.store import Store, StoreError

_said: set[str] = set()  # unversioned criteria and networks that a warning was already given for


def run_grid(
    configs: Sequence[RunConfig] | Mapping[str, Sequence[RunConfig]],
    *,
    store: str | os.PathLike[str] | None = None,
    jobs: int | None = None,
    group_size: int = GROUP_SIZE,
    device: str | None = None,
) -> pd.DataFrame:
    """Train every configured network, or look it up if it was trained before.

    Args:
        configs: The runs, or name -> runs; equal runs are trained once.
        store: Folder for finished runs and the state of unfinished runs. By default, nothing is kept.
        jobs: Groups trained at a time, spread by joblib. Default: what ``joblib.parallel_config`` says, else one process per
            processor, or a single process on a GPU.
        group_size: Largest number of networks trained together. On a processor with Numba it changes no result.
        device: Where to train; default CUDA if available.

    Returns:
        Tidy frame, one row per run and epoch, runs in the order given: the fields of :class:`RunConfig` without the recipe,
        ``kept`` (number of parameters), ``collapsed`` (number of weight tensors that keep nothing), ``epoch``, ``train_loss``,
        ``validation_error``, ``test_error`` (fractions; NaN without such images). For named runs, ``name`` is added.
        ``attrs["trained_by"]`` lists what trained the runs: commit, versions, device and processor, with runs and seconds.
        Warnings say if devices or minor versions of PyTorch are mixed, and if runs are not kept because a criterion has no version.

    Raises:
        ValueError: If an element of ``configs`` is not a RunConfig, or this machine does not have the device.
        StoreError: If the store cannot be written. Finished runs are kept.

    Example:
        >>> import snipnb
        >>> recipe = snipnb.Recipe(epochs=1, batch_size=500)
        >>> configs = snipnb.grid(criteria=["magnitude"], sparsities=[0.5, 0.9], seeds=[0], sample=True, recipe=recipe)
        >>> runs = snipnb.run_grid(configs, jobs=1)
        >>> runs[["criterion", "sparsity", "kept", "epoch"]].values.tolist()
        [['magnitude', 0.5, 30853, 1], ['magnitude', 0.9, 6171, 1]]
    """
    names = None
    if isinstance(configs, Mapping):
        names = [name for name, some in configs.items() for _ in some]
        configs = [config for some in configs.values() for config in some]
    configs = list(configs)
    for config in configs:
        check_type("every run", config, RunConfig)
    check_integer("group_size", group_size, 1)
    check_integer("jobs", 1 if jobs is None else jobs, 1)
    kinds = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    device = device or kinds[-1]
    check_choice("device", str(device).split(":")[0], kinds)
    passing = [c for c in configs if unversioned(c)]
    for what in sorted({what for c in passing for what in unversioned(c)} - _said):
        _said.add(what)
        warnings.warn(
            f"runs of {what} are not kept, because it has no version; give it one with {what.split()[0].capitalize()}(..., version=1), "
            "and raise the version whenever its computation changes",
            stacklevel=2,
        )
    rows: dict[RunConfig, Mapping] = {}
    for some, place in (([c for c in configs if not unversioned(c)], store), (passing, None)):
        if some:
            with tempfile.TemporaryDirectory(prefix="snipnb-") if place is None else nullcontext(place) as folder:
                rows |= _runs_of(some, Store(folder), jobs, group_size, device)
    table = _table(configs, rows)
    if names is None:
        return table
    return table.assign(name=[name for name, c in zip(names, configs, strict=True) for _ in range(c.recipe.epochs)])


def _runs_of(
    configs: Sequence[RunConfig], place: Store, jobs: int | None, group_size: int, device: str
) -> dict[RunConfig, Mapping]:
    """The finished runs, after training the missing ones."""
    keys = {config: run_key(config) for config in configs}
    finished = place.runs()
    tasks: dict[str, list[RunConfig]] = {}
    for group in groups_of(configs, group_size):
        if missing := [config for config in group if keys[config] not in finished]:
            tasks[group_name(missing)] = missing
    if tasks:
        _train_all(tasks, place, jobs, device)
        finished = place.runs()
    if gone := [config for config, key in keys.items() if key not in finished]:  # deleted in the meantime
        raise StoreError(
            f"{len(gone)} finished runs are missing from {place.folder}; the first is {gone[0]}; run again"
        )
    return {config: finished[key] for config, key in keys.items()}


# --- the table --------------------------------------------------------------------------------------------------------


def _table(configs: Sequence[RunConfig], rows: Mapping[RunConfig, Mapping]) -> pd.DataFrame:
    names = [field.name for field in fields(RunConfig) if field.name != "recipe"]
    columns = [*names, "kept", "collapsed", "epoch", "train_loss", "validation_error", "test_error"]
    if not configs:
        return pd.DataFrame(columns=columns)
    frames = []
    for config in configs:
        run, facts = rows[config], {name: getattr(config, name) for name in names}
        history = pd.DataFrame(run["history"])
        history = history.astype({column: float for column in history if column != "epoch"})  # None is NaN
        frames.append(history.assign(**facts, kept=run["kept"], collapsed=len(run["collapsed"])))
    table = pd.concat(frames, ignore_index=True)[columns]
    table.attrs["trained_by"] = _provenance([rows[config] for config in dict.fromkeys(configs)])
    return table


def _provenance(runs: Sequence[Mapping]) -> list[dict[str, Any]]:
    """What trained the runs of a table: a dict for each commit, package version and machine, with its number of runs and seconds."""
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        maker = {key: run["trained_by"].get(key) for key in ("commit", "torch", "numba", "device", "processor")}
        row = found.setdefault(json.dumps(maker, sort_keys=True), {**maker, "runs": 0, "seconds": 0.0})
        row["runs"] += 1
        row["seconds"] += run["trained_by"]["seconds"] / run["trained_by"]["networks"]
    makers = [row | {"seconds": round(row["seconds"], 1)} for row in found.values()]
    devices = sorted({row["device"] for row in makers})
    minors = sorted({".".join(row["torch"].split("+")[0].split(".")[:2]) for row in makers})
    for what, values in (("devices", devices), ("versions of PyTorch", minors)):
        if len(values) > 1:
            warnings.warn(f"runs of one table were trained with several {what}: {', '.join(values)}", stacklevel=4)
    return makers


# --- saliences and masks ----------------------------------------------------------------------------------------------


_split = cache(load_split)


def _source(config: RunConfig) -> RunConfig:
    """A configuration that holds only what the saliences of a run depend on."""
    return replace(config, criterion=ranked_by(config.criterion), sparsity=0.0, data_seed=0, recipe=Recipe())


def _start(config: RunConfig, device: str) -> Start:
    """What the criterion of a run may use."""
    split = _split(config.split, sample=config.sample)
    some = slice(0, config.salience_images if CRITERIA[config.criterion].uses_images else 0)
    images, labels = (t[some].to(device) for t in (split.train_images, split.train_labels))
    draw = partial(_drawn, config.model, config.init, images, device)
    return Start(draw(config.init_seed), images, labels, config.init_seed, config.init, draw)


def _drawn(name: str, init: str, images: Tensor, device: str, seed: int) -> nn.Module:
    """A network before training; its batch norms have the statistics of the images, if there are any."""
    model = MODELS[name](init=init, seed=seed).to(device)
    size = 999 if len(images) % 1000 == 1 else 1000  # a batch of one image has no variance
    return set_running_statistics(model, images, batch_size=size) if len(images) else model


def masks_of(configs: Sequence[RunConfig], place: Store, device: str) -> list[Mask]:
    """The mask of every run. Saliences that use images, and masks that are made from images round by round, are kept in the store."""
    masks: list[Mask] = []
    # all that a mask depends on except its sparsity; in groups, runs are sorted by criterion
    for alone, runs in groupby(configs, lambda c: replace(c, sparsity=0.0, recipe=Recipe())):
        start, salience = _start(alone, device), _salience(_source(alone), place, device)
        masks += [_mask(config, start, salience, place) for config in runs]
    return masks


def _mask(config: RunConfig, start: Start, salience: Salience, place: Store) -> Mask:
    make = partial(mask_for, config.criterion, start, salience, config.sparsity)
    if salience or not CRITERIA[config.criterion].uses_images:
        return make()
    alone = replace(config, data_seed=0, recipe=Recipe())
    title = f"mask: {config.criterion}, seed {config.init_seed}"
    return _kept_tensors(f"mask-{short_digest(run_key(alone))}", title, make, place)


def _salience(config: RunConfig, place: Store, device: str) -> Salience:
    if CRITERIA[ranked_by(config.criterion)].salience is None:
        return {}

    def make() -> Salience:
        start = _start(config, device)
        found = salience_for(config.criterion, start)
        if found:
            check_names(f"salience of {config.criterion!r}", found, start.model)
            for name, value in found.items():
                check_type(f"salience of {config.criterion!r}, {name!r},", value, Tensor)
        return {name: value.detach() for name, value in found.items()}

    if not CRITERIA[config.criterion].uses_images:
        return make()
    title = f"saliences: {config.criterion}, seed {config.init_seed}"
    return _kept_tensors(f"salience-{short_digest(run_key(config))}", title, make, place)


def _kept_tensors(name: str, title: str, make: Callable[[], Mapping[str, Tensor]], place: Store) -> dict[str, Tensor]:
    """What ``make`` returns, from the store if it is there."""
    if (found := place.state(name)) is None:
        with place.lock(name):
            if (found := place.state(name)) is None:
                note(title)
                found = {key: tensor.cpu().numpy() for key, tensor in make().items()}, {}
                place.save_state(name, *found)
    return {key: torch.from_numpy(array) for key, array in found[0].items()}


# --- training ---------------------------------------------------------------------------------------------------------


def keep_saliences(configs: Iterable[RunConfig], place: Store, device: str) -> None:
    """Compute the saliences that runs need, on all threads, and keep them in ``place``; training itself uses one thread."""
    for source in dict.fromkeys(map(_source, configs)):
        if CRITERIA[source.criterion].uses_images:
            _salience(source, place, device)


def _train_all(tasks: Mapping[str, list[RunConfig]], place: Store, jobs: int | None, device: str) -> None:
    """Train all groups; wait at the end for groups that another process is training.

    Workers make the masks from saliences that were kept before, so a task is only a few configurations. If the parent were killed while
    it sent a large task, the worker would wait for the rest for ever.
    """
    keep_saliences((config for group in tasks.values() for config in group), place, device)
    jobs = jobs or _jobs(device)
    with _progress(tasks, place):
        for wait in (False, True):
            finished = place.runs()
            left = [(name, group) for name, group in tasks.items() if not _is_finished(group, finished)]
            if jobs == 1 or len(left) < 2:
                for task in left:
                    _train_group(*task, place.folder, device, wait=wait)
                continue
            import joblib  # only where groups are spread

            work = joblib.delayed(_train_quietly)
            own = _own_of([c for _, group in left for c in group], place)
            calls = (work(os.getpid(), own, *task, place.folder, device, wait=wait) for task in left)
            with warnings.catch_warnings():
                # joblib replaces a worker that has grown. Its warning, where warnings are errors, would end the thread that hands out the work
                warnings.filterwarnings("ignore", "A worker stopped", UserWarning)
                for _ in joblib.Parallel(n_jobs=jobs, batch_size=1, return_as="generator_unordered")(calls):
                    pass


def _is_finished(group: Iterable[RunConfig], finished: Collection[str]) -> bool:
    return all(run_key(config) in finished for config in group)


def _jobs(device: str) -> int:
    """How many groups to train at a time if the caller does not say."""
    if device != "cpu":
        return 1
    import joblib
    from joblib.parallel import get_active_backend

    configured = get_active_backend()[1]
    return joblib.effective_n_jobs(-1 if configured is None else configured)


# Criteria and networks that are not the package's.
_Own = tuple[dict[str, Criterion], dict[str, Callable[..., nn.Module]]]


def _own_of(configs: Sequence[RunConfig], place: Store) -> _Own:
    """What workers need to know of the caller's criteria and networks. Its splits are kept in the store, because they may be large."""
    for key in {str(c.split) for c in configs} & OWN_SPLITS.keys():
        if place.facts(f"split-{key}") is None:
            tensors = {f.name: getattr(OWN_SPLITS[key], f.name) for f in fields(Split) if f.name != "name"}
            arrays = {name: t.cpu().numpy() for name, t in tensors.items()}
            place.save_state(f"split-{key}", arrays, {"name": OWN_SPLITS[key].name})
    used = {name for c in configs for name in (c.criterion, ranked_by(c.criterion))}
    criteria = {name: CRITERIA[name] for name in used if CRITERIA[name] is not SHIPPED.get(name)}
    models = {c.model: MODELS[c.model] for c in configs if MODELS[c.model] is not SHIPPED_MODELS.get(c.model)}
    return criteria, models


def _train_quietly(
    caller: int, own: _Own, name: str, group: list[RunConfig], folder: Path, device: str, **options
) -> None:
    """Train a group in a worker: the caller shows the progress and passes what does not come with the package.

    A reused process may still hold what an earlier call passed.
    """
    if os.getpid() != caller:
        os.environ["SNIPNB_PROGRESS"] = "0"
        CRITERIA.clear()
        CRITERIA.update(SHIPPED | own[0])
        MODELS.clear()
        MODELS.update(SHIPPED_MODELS | own[1])
        key = str(group[0].split)
        if key not in SPLITS and key not in OWN_SPLITS:
            if (found := Store(folder).state(f"split-{key}")) is None:
                raise StoreError(f"the images of split {key!r} are missing from {folder}; run again")
            tensors = {part: torch.from_numpy(array) for part, array in found[0].items()}
            OWN_SPLITS[key] = Split(name=found[1]["name"], **tensors)
    _train_group(name, group, folder, device, **options)


def _train_group(name: str, group: list[RunConfig], folder: Path, device: str, *, wait: bool) -> None:
    """Train one group and record it, unless another process does."""
    place = Store(folder)
    with place.lock(name, wait=wait) as ours:
        if not ours or _is_finished(group, place.runs()):
            return
        checkpoint = _Checkpoint(place, name)
        with one_thread():
            masks = masks_of(group, place, device)
            histories = train_group(group, masks, device, checkpoint)
        runs = {
            run_key(config): {
                "config": asdict(config),
                "kept": num_kept(mask),
                "collapsed": collapsed_layers(mask),
                "history": history.to_dict(orient="list"),
            }
            for config, mask, history in zip(group, masks, histories, strict=True)
        }
        maker = trained_by(device) | {"seconds": round(checkpoint.seconds(), 1), "networks": len(group)}
        place.finish(name, runs, maker)


def train_group(
    group: Sequence[RunConfig], masks: Sequence[Mask], device: str, checkpoint: Checkpoint | None = None
) -> list[pd.DataFrame]:
    """Train the runs of one group from the start or from a checkpoint; returns their histories. Nothing is recorded."""
    first = group[0]
    return train_together(
        [MODELS[c.model](init=c.init, seed=c.init_seed).to(device) for c in group],
        _split(first.split, sample=first.sample),
        masks=masks,
        recipe=[c.recipe for c in group],
        data_seed=first.init_seed if first.data_seed is None else first.data_seed,
        checkpoint=checkpoint,
    )


class _Checkpoint:
    """Keeps the state of a group in the store, with the seconds spent on it, not counting interruptions."""

    def __init__(self, place: Store, name: str) -> None:
        self.place, self.name, self.before, self.start = place, name, 0.0, time.time()

    def load(self) -> tuple[dict[str, Tensor], list] | None:
        if (found := self.place.state(self.name)) is None:
            return None
        arrays, facts = found
        self.before = facts["seconds"]
        return {name: torch.from_numpy(array) for name, array in arrays.items()}, facts["rows"]

    def save(self, tensors: Mapping[str, Tensor], rows: list) -> None:
        arrays = {name: t.numpy() for name, t in tensors.items()}
        self.place.save_state(self.name, arrays, {"rows": rows, "seconds": self.seconds()})

    def seconds(self) -> float:
        return self.before + time.time() - self.start


@contextmanager
def _progress(tasks: Mapping[str, list[RunConfig]], place: Store) -> Iterator[None]:
    """A progress bar over all epochs of all networks, read from the store, if there is somebody to see it."""
    if (stream := progress_stream()) is None:
        yield
        return
    total = sum(config.recipe.epochs for group in tasks.values() for config in group)
    done = threading.Event()

    def reached() -> int:
        finished, epochs = place.runs(), 0
        for name, group in tasks.items():
            if _is_finished(group, finished):
                epochs += len(group) * group[0].recipe.epochs
            elif (facts := place.facts(name)) is not None:
                epochs += len(group) * len(facts["rows"])
        return epochs

    title = "training, networks x epochs"
    with tqdm(total=total, initial=reached(), desc=title, file=stream, leave=False, delay=DELAY_SECONDS) as bar:

        def watch() -> None:
            while not done.wait(1.0):
                bar.update(reached() - bar.n)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
