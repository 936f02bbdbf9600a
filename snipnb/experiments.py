"""Grids of training runs: one call for hundreds of pruned networks, spread over processors, never losing what is finished.

The unit of work is a group: runs of one grid that share model, seeds, split, epochs and batch size, at most ``group_size`` of them, in a
fixed order. It is fixed by the grid, never by what happens to be missing, so its results do not depend on the history of a
store. A group keeps its state after every epoch and is recorded when it is finished (``store.py``); running a grid again does
only what is missing, goes on with an unfinished group from its last epoch, and ends in the same table. Each group is trained
on one processor thread, so the number of processors does not matter either.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from snipnb import sources
from snipnb.criteria import CRITERIA, Criterion, Start, mask_for, ranked_by, salience_for
from snipnb.data import Split, data_checksum, load_split
from snipnb.masks import Mask, collapsed_layers, num_kept
from snipnb.models import INITIALISATIONS, MODELS, set_running_statistics
from snipnb.paths import write_atomically
from snipnb.progress import note, progress_stream
from snipnb.salience import Salience
from snipnb.store import Store, StoreError
from snipnb.training import Recipe, one_thread, train_together

GROUP_SIZE = 16
MOST = 2**32  # seeds; generators take a little more, and other networks' seeds follow from these
# What is imported but does not show in results: where they are kept, how they are named, what is seen meanwhile.
WITHOUT_RESULTS = {"__init__", "paths", "progress", "sources", "store"}
_SHIPPED = dict(CRITERIA)
_given_code: dict[str, str] = {}  # criterion from elsewhere -> its text, where another process has looked it up


@dataclass(frozen=True)
class RunConfig:
    """One network: how it starts, what is pruned, how it is trained.

    Attributes:
        criterion: Name in :data:`snipnb.CRITERIA`; saliences come from the split's training images only.
        sparsity: Share of parameters removed at the start, in [0, 1); ties are broken so that the count is exact.
        init_seed: Draw of the initial weights, and of random saliences.
        data_seed: Draw of the image order; default ``init_seed``. Runs that share both are compared pair by pair.
        model: Name in ``models.MODELS``.
        init: One of ``INITIALISATIONS``.
        split: ``"standard"`` or ``"published"``.
        sample: The shipped sample instead of all of MNIST.
        salience_images: The first so many training images are used for saliences; default all.
        recipe: How it is trained.

    Example:
        >>> import snipnb
        >>> config = snipnb.RunConfig(criterion="random", sparsity=0.95, init_seed=3, salience_images=100)
        >>> config.data_seed, config.salience_images  # random saliences take no images
        (3, None)
    """

    criterion: str = "snip"
    sparsity: float = 0.9
    init_seed: int = 0
    data_seed: int | None = None
    model: str = "lenet5"
    init: str = "pytorch"
    split: str = "standard"
    sample: bool = False
    salience_images: int | None = None
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        if self.data_seed is None:
            object.__setattr__(self, "data_seed", self.init_seed)
        choices: dict[str, Collection[str]] = {
            "criterion": CRITERIA,
            "model": MODELS,
            "init": INITIALISATIONS,
            "split": ("standard", "published"),
        }
        for name, accepted in choices.items():
            if not isinstance(getattr(self, name), str) or getattr(self, name) not in accepted:
                raise ValueError(f"{name} is {getattr(self, name)!r}; accepted are {', '.join(accepted)}")
        least = {"init_seed": 0, "data_seed": 0} | ({} if self.salience_images is None else {"salience_images": 1})
        for name, smallest in least.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not smallest <= value < MOST:
                raise ValueError(f"{name} is {value!r}; accepted are integers from {smallest} and below {MOST:,}")
        if isinstance(self.sparsity, bool) or not isinstance(self.sparsity, (int, float)) or not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity is {self.sparsity!r}; accepted are numbers from 0 and below 1")
        object.__setattr__(self, "sparsity", float(self.sparsity))
        if not isinstance(self.sample, bool) or not isinstance(self.recipe, Recipe):
            raise ValueError(f"sample is {self.sample!r}, recipe {self.recipe!r}; accepted are a bool and a Recipe")
        if not CRITERIA[self.criterion].uses_images:
            object.__setattr__(self, "salience_images", None)


def grid(*, criteria: Iterable[str], sparsities: Iterable[float], seeds: Iterable[int], **common) -> list[RunConfig]:
    """Every criterion at every sparsity for every seed; ``common`` goes to each :class:`RunConfig`.

    Example:
        >>> import snipnb
        >>> configs = snipnb.grid(criteria=["snip", "random"], sparsities=[0.9, 0.95, 0.98], seeds=range(4), sample=True)
        >>> len(configs), configs[0].criterion, configs[0].sparsity
        (24, 'snip', 0.9)
    """
    criteria, sparsities = list(criteria), list(sparsities)
    return [
        RunConfig(criterion=criterion, sparsity=sparsity, init_seed=seed, **common)
        for seed in seeds
        for criterion in criteria
        for sparsity in sparsities
    ]


def run_grid(
    configs: Sequence[RunConfig],
    *,
    store: str | os.PathLike[str] | None = None,
    jobs: int | None = None,
    group_size: int = GROUP_SIZE,
    device: str | None = None,
) -> pd.DataFrame:
    """Train every configured network, or look it up where that was done before.

    Args:
        configs: The runs; equal ones are trained once.
        store: Folder that keeps finished groups and the state of unfinished ones; default none is kept.
        jobs: Groups at a time, spread by joblib. Default: what ``joblib.parallel_config`` says; without it one process per
            processor, or one in all on a GPU.
        group_size: Networks trained together, at most. Part of what a group is: another one does everything anew.
        device: Where to train; default CUDA where there is one.

    Returns:
        Tidy frame, one row per run and epoch, runs in the order given: the fields of :class:`RunConfig` without the recipe,
        ``kept`` (parameters), ``collapsed`` (weight tensors of which nothing is kept), ``epoch``, ``train_loss``,
        ``validation_error``, ``test_error`` (fractions; NaN where there are no such images).

    Raises:
        ValueError: If a configuration is none, or a record in the store is of a newer version.
        StoreError: If the store cannot be written; what was finished is kept.

    Example:
        >>> import snipnb
        >>> recipe = snipnb.Recipe(epochs=1, batch_size=500)
        >>> configs = snipnb.grid(criteria=["magnitude"], sparsities=[0.5, 0.9], seeds=[0], sample=True, recipe=recipe)
        >>> runs = snipnb.run_grid(configs, jobs=1)
        >>> runs[["criterion", "sparsity", "kept", "epoch"]].values.tolist()
        [['magnitude', 0.5, 30853, 1], ['magnitude', 0.9, 6171, 1]]
    """
    configs = list(configs)
    for config in configs:
        if not isinstance(config, RunConfig):
            raise ValueError(f"{config!r} is given among the runs; accepted are RunConfig")
    for name, value in (("group_size", group_size), ("jobs", 1 if jobs is None else jobs)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}; accepted are integers from 1")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    groups = groups_of(configs, group_size)
    with _folder(store) as folder:
        place = Store(folder)
        missing = {key: group for key, group in groups.items() if place.record(key) is None}
        if missing:
            _train_all(missing, place, folder, jobs, device)
        rows: dict[RunConfig, Mapping] = {}
        for key, group in groups.items():
            record = place.record(key)
            if record is None:  # somebody took it away meanwhile
                raise StoreError(f"the record of {key} is gone from {folder}; run again")
            rows |= dict(zip(group, record["runs"], strict=True))
    return _table(configs, rows)


def groups_of(configs: Iterable[RunConfig], group_size: int = GROUP_SIZE) -> dict[str, list[RunConfig]]:
    """Key -> runs of the groups that a grid falls into."""
    alike: dict[tuple, list[RunConfig]] = {}
    for c in dict.fromkeys(configs):
        common = (c.recipe.epochs, c.recipe.batch_size)
        alike.setdefault((c.model, c.init, c.init_seed, c.data_seed, c.split, c.sample, common), []).append(c)
    groups = {}
    for runs in alike.values():
        recipes = list(dict.fromkeys(c.recipe for c in runs))
        runs.sort(key=lambda c: (recipes.index(c.recipe), c.criterion, c.sparsity, c.salience_images or 0))
        number = -(-len(runs) // group_size)
        for i in range(number):
            group = runs[i * len(runs) // number : (i + 1) * len(runs) // number]
            groups[_key(group)] = group
    return groups


def _key(group: Sequence[RunConfig]) -> str:
    first = group[0]
    content: list[object] = [
        [dataclasses.asdict(c) for c in group],
        sources_digest(),
        data_checksum(sample=first.sample),
    ]
    if own := {name: _code_of(name) for name in _own_criteria(group)}:
        content.append(own)
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return f"{first.model}-{first.split}-seed{first.init_seed}-{digest[:16]}"


@cache
def result_sources() -> tuple[str, ...]:
    """The modules that results of runs depend on: records made by another version of these are not used."""
    return tuple(sorted(set(sources.reached(["import snipnb.experiments"])) - WITHOUT_RESULTS))


@cache
def sources_digest() -> str:
    """What names the code that runs depend on; comments, docstrings and layout do not count."""
    return sources.digest(result_sources())


def _own_criteria(group: Iterable[RunConfig]) -> list[str]:
    """Criteria of some runs that do not come with the package, and those whose saliences they take."""
    names = {c.criterion for c in group}
    names |= {ranked_by(name) for name in names}
    return sorted(name for name in names if CRITERIA[name] is not _SHIPPED.get(name))


def _code_of(name: str) -> str:
    return _given_code.get(name) or CRITERIA[name].code()


@contextmanager
def _folder(store: str | os.PathLike[str] | None) -> Iterator[Path]:
    if store is not None:
        yield Path(store)
        return
    with tempfile.TemporaryDirectory(prefix="snipnb-") as temporary:
        yield Path(temporary)


def _table(configs: Sequence[RunConfig], rows: Mapping[RunConfig, Mapping]) -> pd.DataFrame:
    frames = []
    for config in configs:
        run, fields = rows[config], dataclasses.asdict(config)
        del fields["recipe"]
        history = pd.DataFrame(run["history"])
        frames.append(history.assign(**fields, kept=run["kept"], collapsed=len(run["collapsed"])))
    if not frames:
        return pd.DataFrame()
    columns = [*fields, "kept", "collapsed", *history.columns]
    return pd.concat(frames, ignore_index=True)[columns]


# --- saliences and masks ----------------------------------------------------------------------------------------------


@cache
def _split(name: str, sample: bool) -> Split:
    return load_split(name, sample=sample)


def _source(config: RunConfig) -> RunConfig:
    """What the saliences of a run follow from."""
    return dataclasses.replace(
        config, criterion=ranked_by(config.criterion), sparsity=0.0, data_seed=0, recipe=Recipe()
    )


def _start(config: RunConfig, device: str) -> Start:
    """What the criterion of a run may look at."""
    images, labels = torch.empty(0), torch.empty(0)
    if CRITERIA[config.criterion].uses_images:
        split = _split(config.split, config.sample)
        some = slice(0, config.salience_images)
        images, labels = (t[some].to(device) for t in (split.train_images, split.train_labels))
    draw = partial(_drawn, config.model, config.init, images, device)
    return Start(draw(config.init_seed), images, labels, config.init_seed, config.init, draw)


def _drawn(name: str, init: str, images: Tensor, device: str, seed: int) -> nn.Module:
    """A network at its start; where it has batch norms, with the statistics of some images."""
    model = MODELS[name](init=init, seed=seed).to(device)
    return set_running_statistics(model, images) if len(images) else model


def _masks(group: Sequence[RunConfig], place: Store, device: str) -> list[Mask]:
    """What every run of a group keeps; saliences that take images are kept in the store."""
    masks: list[Mask] = []
    known: dict[RunConfig, Salience] = {}
    starts: dict[RunConfig, Start] = {}
    for config in group:
        source = _source(config)
        if source not in known:
            known.clear()  # the last one only: runs are in the order of criteria
            known[source] = _salience(source, place, device)
        alone = dataclasses.replace(config, sparsity=0.0, recipe=Recipe())
        if alone not in starts:
            starts.clear()
            starts[alone] = _start(config, device)
        masks.append(mask_for(config.criterion, starts[alone], known[source], config.sparsity))
    return masks


def _salience(config: RunConfig, place: Store, device: str) -> Salience:
    if not CRITERIA[config.criterion].uses_images:
        return salience_for(config.criterion, _start(config, device))
    key = f"salience-{config.criterion}-{_key([config])}"
    if (found := place.checkpoint(key)) is not None:
        return {name: torch.from_numpy(array) for name, array in found[0].items()}
    with place.lock(key):
        if (found := place.checkpoint(key)) is not None:
            return {name: torch.from_numpy(array) for name, array in found[0].items()}
        note(f"saliences: {config.criterion}, seed {config.init_seed}")
        salience = {name: s.cpu() for name, s in salience_for(config.criterion, _start(config, device)).items()}
        place.save_checkpoint(key, {name: s.numpy() for name, s in salience.items()}, {}, progress=1)
    return salience


# --- training ---------------------------------------------------------------------------------------------------------


def _train_all(
    missing: Mapping[str, list[RunConfig]], place: Store, folder: Path, jobs: int | None, device: str
) -> None:
    """Train all missing groups; those that another process is at are waited for at the end.

    Saliences are made before, with all threads. Workers make the masks from them: a task is but some configurations, as a worker
    that was sent half of a large one when its parent was killed would wait for the rest for ever.
    """
    for source in dict.fromkeys(_source(config) for group in missing.values() for config in group):
        if CRITERIA[source.criterion].uses_images:
            _salience(source, place, device)
    tasks = list(missing.items())
    jobs = jobs or _jobs(device)
    with _progress(missing, place):
        for wait in (False, True):
            tasks = [task for task in tasks if place.record(task[0]) is None]
            if jobs == 1 or len(tasks) < 2:
                for task in tasks:
                    _train_group(*task, folder, device, wait=wait)
                continue
            import joblib  # only where groups are spread

            work = joblib.delayed(_train_quietly)
            own = {name: (CRITERIA[name], _code_of(name)) for _, group in tasks for name in _own_criteria(group)}
            calls = (work(os.getpid(), own, *task, folder, device, wait=wait) for task in tasks)
            for _ in joblib.Parallel(n_jobs=jobs, batch_size=1, return_as="generator_unordered")(calls):
                pass


def _jobs(device: str) -> int:
    """How many groups at a time, if the caller does not say."""
    if device != "cpu":
        return 1
    from joblib.parallel import get_active_backend

    configured = get_active_backend()[1]
    return configured if (configured or 1) != 1 else os.cpu_count() or 1


def _train_quietly(caller: int, own: Mapping[str, tuple[Criterion, str]], *task, **options) -> None:
    """In a worker: the caller shows the progress, and gives the criteria that did not come with the package.

    A process that worked before may still have those of that time.
    """
    os.environ["SNIPNB_PROGRESS"] = "0"
    if os.getpid() != caller:
        CRITERIA.clear()
        CRITERIA.update(_SHIPPED | {name: criterion for name, (criterion, _) in own.items()})
        _given_code.clear()
        _given_code.update({name: code for name, (_, code) in own.items()})
    _train_group(*task, **options)


def _train_group(key: str, group: list[RunConfig], folder: Path, device: str, *, wait: bool) -> None:
    """Train one group and record it, unless somebody else does."""
    place = Store(folder)
    with place.lock(key, wait=wait) as ours:
        if not ours or place.record(key) is not None:
            return
        for half in (folder / "facts").glob(f".{key}.json.*.part"):  # of a killed process
            half.unlink(missing_ok=True)
        start, first = time.time(), group[0]
        split = _split(first.split, first.sample)
        with one_thread():
            models = [MODELS[c.model](init=c.init, seed=c.init_seed).to(device) for c in group]
            masks, checkpoint = _masks(group, place, device), _Checkpoint(place, key)
            resumed = place.progress([key])[key]
            histories = train_together(
                models,
                split,
                masks=masks,
                recipe=[c.recipe for c in group],
                data_seed=first.init_seed if first.data_seed is None else first.data_seed,
                checkpoint=checkpoint,
            )
        runs = [
            {
                "config": dataclasses.asdict(config),
                "kept": num_kept(mask),
                "collapsed": collapsed_layers(mask),
                "history": history.to_dict(orient="list"),
            }
            for config, mask, history in zip(group, masks, histories, strict=True)
        ]
        facts = {
            "seconds": round(time.time() - start, 1),
            "epochs": first.recipe.epochs - resumed,
            "networks": len(group),
            "device": torch.cuda.get_device_name() if device == "cuda" else device,
            "torch": torch.__version__,
        }
        write_atomically(folder / "facts" / f"{key}.json", json.dumps(facts, indent=1) + "\n")
        place.finish(key, {"runs": runs})  # last: with its record a group is done


class _Checkpoint:
    """Keeps the state of a group in the store."""

    def __init__(self, place: Store, key: str) -> None:
        self.place, self.key = place, key

    def load(self) -> tuple[dict[str, Tensor], list] | None:
        found = self.place.checkpoint(self.key)
        if found is None:
            return None
        arrays, facts = found
        return {name: torch.from_numpy(array) for name, array in arrays.items()}, facts["rows"]

    def save(self, tensors: Mapping[str, Tensor], rows: list) -> None:
        arrays = {name: t.numpy() for name, t in tensors.items()}
        self.place.save_checkpoint(self.key, arrays, {"rows": rows}, progress=len(rows))


@contextmanager
def _progress(missing: Mapping[str, list[RunConfig]], place: Store) -> Iterator[None]:
    """A bar over all epochs of all networks, read off the store, where somebody is there to see it."""
    stream = progress_stream()
    if stream is None:
        yield
        return
    epochs = {key: group[0].recipe.epochs for key, group in missing.items()}
    total = sum(len(group) * epochs[key] for key, group in missing.items())
    done, finished = threading.Event(), set[str]()

    def reached() -> int:
        finished.update(key for key in missing if key not in finished and place.record(key) is not None)
        found = place.progress(missing)
        return sum(len(g) * (epochs[k] if k in finished else found[k]) for k, g in missing.items())

    with tqdm(
        total=total, initial=reached(), desc="training, networks x epochs", file=stream, leave=False, delay=2.0
    ) as bar:

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
