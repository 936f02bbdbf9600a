"""What notebook 09 measures: the tables that six claims are judged by, for another network, and for another network on other images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd

from snipnb.data import load_split
from snipnb.networks import MODELS
from snipnb.pruning.criteria import PERTURBATIONS
from snipnb.studies import shared
from snipnb.studies.shared import grid_of
from snipnb.training.recipe import Recipe
from snipnb.training.runs import RunConfig

NETWORKS = {
    "lenet5": "LeNet-5 (MNIST)",
    "lenet_300_100": "LeNet-300-100 (MNIST)",
    "lenet_digits": "small LeNet (digits)",
}
HALF, JUDGED, HIGHEST = 0.5, 0.95, 0.99  # sparsities of the rules
PERTURBED = [f"perturbed_{number}" for number in range(1, PERTURBATIONS + 1)]
DENSITIES = ["snip_densities", "closed_form"]
FIGURE_1 = [0.75, 0.85, 0.9, 0.93, 0.96]  # sparsities of the rule of C25a
CONTROLS = ["snip_shuffled", "snip_inverted", "uniform", "erdos_renyi_kernel", *PERTURBED]
OPEN = ("inconclusive", "cannot tell", "not run")  # words that decide nothing
FIRST_COUNTED = 100  # seeds of kept counts, as the rule of C31 has them
# Claim -> the statistic that its rule compares, and what it is.
SHOWN = {
    "C2": ("pruned_minus_dense", "pruned by half minus dense, points"),
    "C24": ("spearman", "rank correlation, SNIP and exact"),
    "C25a": ("mean_difference", "SNIP minus exact, points"),
    "C29": ("perturbed_costs", "perturbed minus SNIP's densities, points"),
    "C31": ("share_between_five_layers", "share of variance between layers"),
    "C35": ("snip_densities_minus_snip", "SNIP's densities minus SNIP, points"),
}


def _of(parameters: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Network -> what the grid of its runs takes, for those networks that have runs."""
    numbers = {"lenet5": parameters["num_lenet5_runs"], "lenet_300_100": parameters["num_other_runs"]}
    found = {model: {**parameters, "num_runs": number, "model": model} for model, number in numbers.items()}
    recipe = Recipe(
        parameters["digits_epochs"], 32, learning_rate=parameters["learning_rate"], schedule=parameters["schedule"]
    )
    own = {"split_name": "digits", "sample": False, "salience_images": 0, "num_runs": parameters["num_digits_runs"]}
    found["lenet_digits"] = {**parameters, **own, "model": "lenet_digits", "recipe": recipe}
    return {model: of for model, of in found.items() if of["num_runs"]}


def grids(parameters: Mapping[str, Any]) -> dict[str, list[RunConfig]]:
    """Training runs of the notebook, by network."""
    runs = {}
    for model, of in _of(parameters).items():
        grid = partial(grid_of, of, model=model, recipe=of.get("recipe"))
        runs[model] = grid(["snip"], [0.0, HALF, JUDGED, HIGHEST]) + grid(DENSITIES, [JUDGED, HIGHEST])
        runs[model] += grid(CONTROLS, [JUDGED]) + grid(["exact", "snip", "random"], FIGURE_1)
    return runs


def tables(
    parameters: Mapping[str, Any], runs: pd.DataFrame, *, sparsities: Sequence[float]
) -> dict[str, dict[str, list[pd.DataFrame]]]:
    """What the rules of :data:`SHOWN` read, for every network.

    Args:
        parameters: Of the notebook.
        runs: As from :func:`snipnb.run_grid` for :func:`grids`, with ``name``, the network.
        sparsities: Those of Figure 1, at which the rule of C24 compares kept sets.

    Returns:
        Network (as in a figure) -> claim -> its tables, in the order in which the function of the claim takes them.
    """
    found = {}
    for model, of in _of(parameters).items():
        split = load_split(of["split_name"], sample=of["sample"])
        some = slice(0, of["salience_images"] or None)
        images, labels = split.train_images[some], split.train_labels[some]
        seeds = range(of["first_seed"], of["first_seed"] + of["num_seeds"])
        alike, kept, _ = shared.compare_networks(
            images,
            labels,
            seeds=seeds,
            inits=["pytorch"],
            num_images=len(labels),
            sparsities=sparsities,
            network=MODELS[model],
        )
        counted = range(FIRST_COUNTED, FIRST_COUNTED + of["num_counted"])
        networks = shared.ensemble(images, labels, seeds=counted, network=MODELS[model])
        counts = shared.under_conditions({"SNIP": (networks, "snip"), "random": (networks, "random")}, sparsity=JUDGED)
        own = runs[runs["name"] == model]
        trained = own.drop(columns="name")
        found[NETWORKS[model]] = {
            "C2": [trained],
            "C24": [alike, kept],
            "C25a": [trained[trained["sparsity"] > 0], pd.DataFrame()],
            "C29": [trained],
            "C31": [counts],
            "C35": [trained],
        }
    return found


def verdicts(said: pd.DataFrame) -> pd.DataFrame:
    """A row per claim, a column per network: the verdicts by the same rules, without their remarks."""
    words = said.assign(word=said["verdict"].str.partition(" (")[0])
    wide = words.pivot(index="claim", columns="network", values="word")
    return wide.loc[list(SHOWN), list(dict.fromkeys(said["network"]))].reset_index()


def numbers(said: pd.DataFrame) -> str:
    """How many trained networks of each kind there are, as a text."""
    trained = said[said["claim"] == "C2"]
    return ", ".join(f"{n} for {network}" for network, n in zip(trained["network"], trained["n"], strict=True))


def kinds(said: pd.DataFrame) -> dict[str, list[str]]:
    """What came out -> claims. With several networks: whether a rule decides alike on all, decides otherwise on one, or leaves one open; with one, its verdicts."""
    words = said["verdict"].str.partition(" (")[0].groupby(said["claim"], sort=False)
    found: dict[str, list[str]] = {}
    for claim, own in words:
        if said["network"].nunique() == 1:
            kind = own.iloc[0]
        elif own.isin(OPEN).any():
            kind = "open on some network"
        else:
            kind = "alike everywhere" if own.nunique() == 1 else "different elsewhere"
        found.setdefault(kind, []).append(str(claim))
    return found


def findings(said: pd.DataFrame) -> pd.DataFrame:
    """What came out, in a sentence for all claims and one for each.

    Args:
        said: ``network``, ``claim``, ``verdict``.

    Returns:
        ``question``, ``what came out``.
    """
    networks = list(dict.fromkeys(said["network"]))
    parts = "; ".join(f"{kind}: {', '.join(claims)}" for kind, claims in kinds(said).items())
    question, where = (
        "Which findings hold elsewhere, too?",
        networks[0] if len(networks) == 1 else "Verdicts by the same rules",
    )
    rows = [{"question": question, "what came out": f"{where}: {parts}."}]
    for claim, own in said.groupby("claim", sort=False):
        words = own["verdict"].str.partition(" (")[0]
        by = {word: ", ".join(own["network"][words == word]) for word in dict.fromkeys(words)}
        whole = len(by) == 1 and len(networks) > 1
        said_of = [f"{word} for {'all' if whole else of}" for word, of in by.items()]
        rows.append({"question": SHOWN[str(claim)][1], "what came out": f"{claim}: {'; '.join(said_of)}."})
    return pd.DataFrame(rows)
