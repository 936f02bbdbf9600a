"""What a training run is: its configuration, its identity, and the group it is trained in."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from snipnb._checks import check_choice, check_integer, check_number, check_type
from snipnb.data import OWN_NAME, OWN_SPLITS, SPLITS, Split, data_checksum
from snipnb.networks import INITIALISATIONS, MODELS, Network
from snipnb.pruning.criteria import CRITERIA, Criterion, ranked_by
from snipnb.training.iterative_magnitude import removal_order
from snipnb.training.recipe import Recipe
from snipnb.training.store import FORMAT

# The version of the training computation. Raise it when the golden numbers (tests/golden/) change for a reason other than
# rounding, in a commit of its own that says what changed. Kept runs of another version are not used.
NUMERICS = 1

# The fields that identities had from the beginning. A field that is added to RunConfig or Recipe later counts only if it is not at
# its default. The default stands for what was done before the field existed and never changes, so kept runs are still found.
_FIRST_OF_RUNS = "criterion sparsity init_seed data_seed model init split sample salience_images recipe"
_FIRST_OF_RECIPES = "epochs batch_size optimiser learning_rate schedule weight_decay momentum decay decay_every"
FIRST_FIELDS = {"RunConfig": set(_FIRST_OF_RUNS.split()), "Recipe": set(_FIRST_OF_RECIPES.split())}
GROUP_SIZE = 16
MOST = 2**32  # bound of seeds; generators accept a little more, and seeds of other networks are derived from these
CRITERIA["iterative_magnitude"] = Criterion(removal_order, version=1)  # here, because it trains networks
SHIPPED, SHIPPED_MODELS = dict(CRITERIA), dict(MODELS)


@dataclass(frozen=True)
class RunConfig:
    """One network: how it starts, what is pruned, how it is trained.

    Attributes:
        criterion: Name in :data:`snipnb.CRITERIA`; saliences use only the training images of the split.
        sparsity: Share of parameters removed at the start, in [0, 1); ties are broken so that the count is exact.
        init_seed: Seed of the initial weights and of random saliences.
        data_seed: Seed of the image order; default ``init_seed``. Runs that share both seeds are compared as pairs.
        model: Name in :data:`snipnb.MODELS`.
        init: One of ``INITIALISATIONS``; a network of your own takes only ``"pytorch"``, which leaves its own initialisation.
        split: ``"standard"``, ``"published"``, ``"digits"``, or a :class:`snipnb.Split` of your own, which then counts by its key.
        sample: Use the shipped sample instead of all of MNIST.
        salience_images: How many training images are used for saliences, from the first on; default all.
        recipe: How the network is trained.

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
    split: str | Split = "standard"
    sample: bool = False
    salience_images: int | None = None
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        if self.data_seed is None:
            object.__setattr__(self, "data_seed", self.init_seed)
        check_choice("criterion", self.criterion, CRITERIA)
        own = CRITERIA[self.criterion]
        check_type(f"criterion {self.criterion!r}", own, Criterion)
        if own.salience_of is not None:
            with_own = [name for name, other in CRITERIA.items() if not getattr(other, "salience_of", None)]
            check_choice(f"salience_of of criterion {self.criterion!r}", own.salience_of, with_own)
        check_choice("model", self.model, MODELS)
        if not _is_shipped(self.model):
            check_type(f"network {self.model!r}", MODELS[self.model], Network)
        check_choice("init", self.init, INITIALISATIONS if _is_shipped(self.model) else ["pytorch"])
        if not OWN_NAME.fullmatch(self.model):
            words = "1 to 30 lower-case letters, digits and underscores"
            raise ValueError(f"the name of a network must have {words}; got {self.model!r}")
        if isinstance(self.split, Split):
            OWN_SPLITS[self.split.key] = self.split
            object.__setattr__(self, "split", self.split.key)
        check_choice("split", self.split, [*SPLITS, *OWN_SPLITS])
        check_integer("init_seed", self.init_seed, 0, MOST)
        check_integer("data_seed", self.data_seed, 0, MOST)
        if self.salience_images is not None:
            check_integer("salience_images", self.salience_images, 1, MOST)
        check_number("sparsity", self.sparsity, "[0, 1)")
        check_type("sample", self.sample, bool)
        if self.sample and self.split not in ("standard", "published"):
            raise ValueError(f"sample=True takes the shipped sample of MNIST; split {self.split!r} has none")
        check_type("recipe", self.recipe, Recipe)
        object.__setattr__(self, "sparsity", float(self.sparsity))
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
    return [
        RunConfig(criterion=criterion, sparsity=sparsity, init_seed=seed, **common)
        for seed, criterion, sparsity in itertools.product(seeds, criteria, sparsities)
    ]


def run_key(config: RunConfig) -> str:
    """The identity of a run: everything declared that its result depends on.

    **Definition.** Model, split, criterion, sparsity and seed, and a SHA-256 of the fields of ``config`` and its recipe (fields not in
    :data:`FIRST_FIELDS` only if they are not at their default), :data:`NUMERICS`, the versions of the criterion and of the criterion
    whose salience it takes, the version of a network of your own, and the checksum of the images. It contains neither the code nor
    package versions.

    Example:
        >>> import snipnb
        >>> from snipnb.training.grid import run_key
        >>> run_key(snipnb.RunConfig(criterion="random", sparsity=0.95))[:34]
        'lenet5-standard-random-0.95-seed0-'
    """
    content = {
        "config": _declared(config),
        "numerics": NUMERICS,
        "criterion": _versions(config.criterion),
        "data": data_checksum(sample=config.sample, split=str(config.split)),
    }
    if not _is_shipped(config.model):
        content["network"] = f"own {_network_version(config.model)}"
    return f"{config.model}-{config.split}-{config.criterion}-{config.sparsity:g}-seed{config.init_seed}-{short_digest(content)}"


def unversioned(config: RunConfig) -> list[str]:
    """What has no version, so that the run is not kept: its criterion, the criterion whose salience it takes, or its network."""
    found = ["network " + repr(config.model)] if _network_version(config.model) is None else []
    if any(version is None for version in _versions(config.criterion)):
        found.append("criterion " + repr(config.criterion))
    return found


def _is_shipped(model: str) -> bool:
    return MODELS[model] is SHIPPED_MODELS.get(model)


def _network_version(model: str) -> int | None:
    return 1 if _is_shipped(model) else getattr(MODELS[model], "version", None)


def _declared(value: RunConfig | Recipe) -> dict[str, Any]:
    """The fields of a configuration that enter its identity, with numbers in their declared types, so that 1 and 1.0 are the same."""
    content: dict[str, Any] = {}
    for f in dataclasses.fields(value):
        found = getattr(value, f.name)
        if f.name in FIRST_FIELDS[type(value).__name__] or found != f.default:
            if isinstance(found, Recipe):
                found = _declared(found)
            elif f.type == "float":
                found = float(found)
            content[f.name] = found
    return content


def _versions(criterion: str) -> list[int | str | None]:
    """The versions of a criterion and of the criterion whose salience it takes, marked if they do not come with the package."""
    found: list[int | str | None] = []
    for name in dict.fromkeys((criterion, ranked_by(criterion))):
        version = CRITERIA[name].version
        shipped = CRITERIA[name] is SHIPPED.get(name)
        found.append(version if shipped or version is None else f"own {version}")
    return found


def short_digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def groups_of(configs: Iterable[RunConfig], group_size: int = GROUP_SIZE) -> list[list[RunConfig]]:
    """The groups of a grid, fixed by the whole grid: what is finished does not matter, and of the order only which recipe comes first."""
    alike: dict[tuple, list[RunConfig]] = {}
    for c in dict.fromkeys(configs):
        common = (c.recipe.epochs, c.recipe.batch_size)
        alike.setdefault((c.model, c.init, c.init_seed, c.data_seed, c.split, c.sample, common), []).append(c)
    groups = []
    for runs in alike.values():
        recipes = list(dict.fromkeys(c.recipe for c in runs))
        runs.sort(key=lambda c: (recipes.index(c.recipe), c.criterion, c.sparsity, c.salience_images or 0))
        number = -(-len(runs) // group_size)
        groups += [runs[i * len(runs) // number : (i + 1) * len(runs) // number] for i in range(number)]
    return groups


def group_name(group: Sequence[RunConfig]) -> str:
    """Name of the record and the checkpoint of runs that are trained together."""
    first = group[0]
    digest = short_digest([FORMAT, *(run_key(config) for config in group)])
    return f"{first.model}-{first.split}-seed{first.init_seed}-{digest}"
