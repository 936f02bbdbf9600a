"""The grids of runs that notebooks show, so that the command line can do the same runs without them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from snipnb.publish.ledger import reported, setting
from snipnb.training.grid import RunConfig, grid
from snipnb.training.loop import Recipe

FIGURE_1 = ("exact", "snip", "random")  # and magnitude, in fewer runs


def figure1(
    *,
    num_runs: int,
    num_magnitude_runs: int,
    salience_images: int,
    split_name: str,
    epochs: int,
    learning_rate: float,
    schedule: str,
    sample: bool,
) -> list[RunConfig]:
    """Runs behind Figure 1: its three criteria and weight magnitude at its twelve sparsities.

    Args:
        num_runs: Seeds, from 0; a seed draws initial weights and image order.
        num_magnitude_runs: Those of them that are also pruned by weight magnitude.
        salience_images: Images that saliences take, the same for all criteria; 0: all to train on.
        split_name: ``"standard"`` or ``"published"``.
        epochs: Passes over the training images.
        learning_rate: Of the recipe: Adam, batches of 128.
        schedule: Of the recipe.
        sample: The shipped sample instead of all of MNIST.
    """
    common: dict[str, Any] = {
        "sparsities": sorted(reported("figure1")["sparsity"].unique()),
        "split": split_name,
        "sample": sample,
        "salience_images": salience_images or None,
        "recipe": Recipe(epochs=epochs, learning_rate=learning_rate, schedule=schedule),
    }
    controls = grid(criteria=["magnitude"], seeds=range(min(num_magnitude_runs, num_runs)), **common)
    return [*grid(criteria=FIGURE_1, seeds=range(num_runs), **common), *controls]


def short_figure1(*, num_short_runs: int, sample: bool) -> list[RunConfig]:
    """Runs behind Figure 1 by the protocol of the default profile: three epochs, another split, saliences over 5,000 images.

    Args:
        num_short_runs: Seeds, from 0.
        sample: The shipped sample instead of all of MNIST, and fewer images for saliences.
    """
    return figure1(
        num_runs=num_short_runs,
        num_magnitude_runs=0,
        salience_images=200 if sample else 5000,
        split_name="standard",
        epochs=3,
        learning_rate=0.01,
        schedule="one_cycle",
        sample=sample,
    )


def figure2(
    *, num_runs: int, split_name: str, epochs: int, learning_rate: float, schedule: str, sample: bool
) -> list[RunConfig]:
    """Runs behind the errors of Figure 2: SNIP at sparsity 0, 0.5 and 0.95, saliences over all images to train on.

    Arguments as for :func:`figure1`.
    """
    return grid(
        criteria=["snip"],
        sparsities=[0.0, *sorted(reported("figure2")["sparsity"].unique())],
        seeds=range(num_runs),
        split=split_name,
        sample=sample,
        recipe=Recipe(epochs=epochs, learning_rate=learning_rate, schedule=schedule),
    )


# What the published training may have been, besides the recipe that is followed. The text says Adam at a falling rate, not how it falls; the first is how the
# published code lets it fall unless told otherwise, the last is the training of its sample notebook.
RECIPES: dict[str, dict[str, Any]] = {
    "Adam, times 0.99 every epoch": {"learning_rate": 0.0012, "schedule": "exponential", "decay": 0.99},
    "Adam, times 0.95 every epoch": {"learning_rate": 0.0012, "schedule": "exponential", "decay": 0.95},
    "Adam, cosine": {"learning_rate": 0.0012, "schedule": "cosine"},
    "momentum, weight decay, times 0.1 every 40 epochs": {
        "optimiser": "sgd",
        "learning_rate": 0.1,
        "weight_decay": 0.0005,
        "schedule": "step",
        "decay": 0.1,
        "decay_every": 40,
    },
}


def recipes(*, num_recipe_runs: int, split_name: str, epochs: int, sample: bool) -> dict[str, list[RunConfig]]:
    """Runs of :data:`RECIPES`, by name: SNIP at the largest sparsity of Figure 2, saliences over all images to train on, and dense networks."""
    return {
        name: grid(
            criteria=["snip"],
            sparsities=[0.0, reported("figure2")["sparsity"].max()],
            seeds=range(num_recipe_runs),
            split=split_name,
            sample=sample,
            recipe=Recipe(epochs=epochs, **options),
        )
        for name, options in RECIPES.items()
    }


SECOND_ORDER = ("snip", "exact", "second_order", "third_order", "linear_region", "printed_second_order")


def second_order(
    *,
    num_runs: int,
    salience_images: int,
    split_name: str,
    epochs: int,
    learning_rate: float,
    schedule: str,
    sample: bool,
) -> list[RunConfig]:
    """Runs behind notebook 05: the exact criterion and its approximations at sparsity 0.95. Arguments as for :func:`figure1`."""
    return grid(
        criteria=SECOND_ORDER,
        sparsities=[0.95],
        seeds=range(num_runs),
        split=split_name,
        sample=sample,
        salience_images=salience_images or None,
        recipe=Recipe(epochs=epochs, learning_rate=learning_rate, schedule=schedule),
    )


RULES_OF_THUMB = (
    "snip",
    "snip_shuffled",
    "snip_redrawn",
    "snip_densities",
    "closed_form",
    "erdos_renyi_kernel",
    "uniform",
    "magnitude",
    "snip_inverted",
)
# What is tried of optimisers and schedules: name -> recipe but for epochs, and the learning rates to choose from.
OPTIMISERS: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    "Adam, one-cycle": ({"optimiser": "adam", "schedule": "one_cycle"}, (0.003, 0.01, 0.03)),
    "Adam, constant": ({"optimiser": "adam", "schedule": "constant"}, (0.0005, 0.0012, 0.003)),
    "momentum, one-cycle": ({"optimiser": "sgd", "schedule": "one_cycle"}, (0.03, 0.1, 0.3)),
    "momentum, constant": ({"optimiser": "sgd", "schedule": "constant"}, (0.003, 0.01, 0.03)),
    "SGD, one-cycle": ({"optimiser": "sgd", "schedule": "one_cycle", "momentum": 0.0}, (0.1, 0.3, 1.0)),
    "SGD, constant": ({"optimiser": "sgd", "schedule": "constant", "momentum": 0.0}, (0.03, 0.1, 0.3)),
}
TUNING_SEED = 1000  # its networks are in no comparison


def rules_of_thumb(
    *,
    num_runs: int,
    sparsities: list[float],
    salience_images: int,
    split_name: str,
    epochs: int,
    learning_rate: float,
    schedule: str,
    sample: bool,
) -> list[RunConfig]:
    """Runs behind notebook 06: SNIP and its controls, and masks by rules for layer densities. Arguments as for :func:`figure1`."""
    return grid(
        criteria=RULES_OF_THUMB,
        sparsities=sparsities,
        seeds=range(num_runs),
        split=split_name,
        sample=sample,
        salience_images=salience_images or None,
        recipe=Recipe(epochs=epochs, learning_rate=learning_rate, schedule=schedule),
    )


def tuning(*, optimiser_epochs: int, split_name: str, sample: bool) -> dict[tuple[str, float], RunConfig]:
    """Dense networks of a seed of their own, from whose validation error the learning rate of each optimiser is chosen."""
    return {
        (name, rate): RunConfig(
            criterion="random",
            sparsity=0.0,
            init_seed=TUNING_SEED,
            split=split_name,
            sample=sample,
            recipe=Recipe(epochs=optimiser_epochs, learning_rate=rate, **options),
        )
        for name, (options, rates) in OPTIMISERS.items()
        for rate in rates
    }


def optimisers(
    rates: Mapping[str, float],
    *,
    num_runs: int,
    salience_images: int,
    optimiser_epochs: int,
    split_name: str,
    sample: bool,
) -> dict[str, list[RunConfig]]:
    """Runs behind C13, by optimiser: SNIP at the sparsities of its rule, and dense networks.

    Args:
        rates: Name in :data:`OPTIMISERS` -> learning rate.
    """
    return {
        name: grid(
            criteria=["snip"],
            sparsities=[0.0, *setting("C13", "sparsities")],
            seeds=range(num_runs),
            split=split_name,
            sample=sample,
            salience_images=salience_images or None,
            recipe=Recipe(epochs=optimiser_epochs, learning_rate=rate, **OPTIMISERS[name][0]),
        )
        for name, rate in rates.items()
    }


Runs = list[RunConfig] | dict[str, list[RunConfig]]
GRIDS: dict[str, tuple[Callable[..., Runs], ...]] = {
    "02_snip_vs_exact": (figure1, short_figure1),
    "03_lenet5_table": (figure2, recipes),
    "05_second_order": (second_order,),
    "06_rules_of_thumb": (rules_of_thumb,),
}


def name_of(notebook: str) -> str:
    """Name of a notebook that trains, from its name or leading digits.

    Raises:
        ValueError: If there is none.
    """
    found = [name for name in GRIDS if notebook in (name, name.split("_")[0])]
    if not found:
        raise ValueError(f"notebook {notebook!r} trains nothing; those that do are {', '.join(GRIDS)}")
    return found[0]


def of_notebook(notebook: str, parameters: Mapping[str, object]) -> list[list[RunConfig]]:
    """The grids of a notebook under these parameters, each trained in one go; those without runs are left out, other parameters ignored."""
    found = []
    for make in GRIDS[name_of(notebook)]:
        runs = make(**{name: parameters[name] for name in inspect.signature(make).parameters})
        found.append([c for some in runs.values() for c in some] if isinstance(runs, dict) else runs)
    return [configs for configs in found if configs]
